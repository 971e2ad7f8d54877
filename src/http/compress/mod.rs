//! Content codings (RFC 9110, section 8.4.1): their names, encoders and bounded decoders.
//!
//! Owns what is common to both directions. [`encode`] compresses responses, whole or event by
//! event; [`decode`] decodes request bodies, within bounds. Neither does I/O or reads a clock;
//! [`super::negotiate`] decides which coding is used.

pub mod decode;
pub mod encode;
#[cfg(test)]
pub mod testing;

/// A content coding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Coding {
    /// RFC 8878, with the window of RFC 9659.
    Zstd,
    /// RFC 1952.
    Gzip,
    /// RFC 7932.
    Brotli,
    /// RFC 1950: deflate within zlib's wrapper. Accepted but never offered, because many
    /// implementations send the bare stream of RFC 1951 under this name.
    Deflate,
}

impl Coding {
    /// `coding as usize` is the index.
    pub const ALL: [Coding; 4] = [Coding::Zstd, Coding::Gzip, Coding::Brotli, Coding::Deflate];

    /// Returns its name in IANA's registry, which is its label in the metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Coding::Zstd => "zstd",
            Coding::Gzip => "gzip",
            Coding::Brotli => "br",
            Coding::Deflate => "deflate",
        }
    }

    /// Parses a name, compared without case; `x-gzip` is gzip (RFC 9110, section 8.4.1.3).
    pub fn parse(name: &str) -> Option<Coding> {
        let is = |coding: &Coding| name.eq_ignore_ascii_case(coding.name());
        let known = Coding::ALL.into_iter().find(is);
        known.or_else(|| name.eq_ignore_ascii_case("x-gzip").then_some(Coding::Gzip))
    }
}

/// The `Accept-Encoding` of a response, about request bodies (RFC 9110, section 12.5.3).
pub const BODY_CODINGS: &str = "gzip, deflate, br, zstd";

/// Returns whether compressing responses of this type is worth its time. gRPC compresses its
/// messages itself, one by one, and they must not be compressed again.
pub fn is_compressible(content_type: &str) -> bool {
    const TYPES: [&str; 6] = [
        "application/json",
        "text/event-stream",
        "application/x-protobuf",
        "application/openmetrics-text",
        "text/plain",
        "text/html",
    ];
    let name = content_type.split(';').next().unwrap_or_default();
    TYPES.contains(&name.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_without_case() {
        for (index, coding) in Coding::ALL.into_iter().enumerate() {
            assert_eq!(coding as usize, index);
            assert_eq!(Coding::parse(coding.name()), Some(coding));
            assert!(BODY_CODINGS.split(", ").any(|name| name == coding.name()));
        }
        assert_eq!(Coding::parse("X-GZip"), Some(Coding::Gzip));
        for name in ["", "identity", "compress", "gzip ", "brotli"] {
            assert_eq!(Coding::parse(name), None, "{name}");
        }
    }

    #[test]
    fn text_is_compressible_and_grpc_is_not() {
        for content_type in [
            "application/json",
            "text/plain; charset=utf-8",
            "text/event-stream",
            "application/x-protobuf",
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
        ] {
            assert!(is_compressible(content_type), "{content_type}");
        }
        for content_type in [
            "application/grpc",
            "application/grpc+proto",
            "image/png",
            "",
        ] {
            assert!(!is_compressible(content_type), "{content_type}");
        }
    }
}
