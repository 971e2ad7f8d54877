//! Content codings: which ones the client accepts (`Accept-Encoding`) and which ones its body has
//! (`Content-Encoding`); RFC 9110, sections 12.5.3 and 8.4.
//!
//! 1. A coding's own weight counts before that of `*`; a coding that neither names is not accepted.
//! 2. No coding at all (`identity`) is always accepted, unless `identity;q=0` or `*;q=0` excludes
//!    it.
//! 3. Of equal weights the server's first offer wins, and any coding wins over none. A client that
//!    prefers `identity` to all codings gets it.
//! 4. Without the field the client accepts anything, and gets no coding, which costs neither side
//!    anything.

use super::{Weight, field_values, parameter, split_unquoted};
use crate::http::Request;
use crate::http::compress::Coding;
use crate::limits::http as limits;

/// The codings that a client accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AcceptEncoding {
    /// By `Coding as usize`; 0: not accepted.
    weights: [Weight; Coding::ALL.len()],
    /// 0 if the field does not mention it.
    identity: Weight,
    refuses_identity: bool,
}

impl AcceptEncoding {
    /// Of a client that sends no such field.
    pub const NONE: AcceptEncoding = AcceptEncoding {
        weights: [Weight(0); Coding::ALL.len()],
        identity: Weight(0),
        refuses_identity: false,
    };

    /// Reads it from the request's fields.
    pub fn of(request: &Request<'_>) -> AcceptEncoding {
        AcceptEncoding::parse(field_values(request, "accept-encoding"))
    }

    fn parse<'a>(values: impl Iterator<Item = &'a str>) -> AcceptEncoding {
        let mut codings = [None; Coding::ALL.len()];
        let (mut identity, mut any) = (None, None);
        let elements = values.flat_map(|value| split_unquoted(value, b','));
        for element in elements.take(limits::ACCEPT_RANGES_MAX) {
            let mut parts = split_unquoted(element, b';');
            let Some(name) = parts.next() else { continue };
            let weight = parts
                .filter_map(parameter)
                .find(|(name, _)| name.eq_ignore_ascii_case("q"))
                .map_or(Some(Weight::MOST), |(_, weight)| Weight::parse(weight));
            let place = match Coding::parse(name) {
                Some(coding) => &mut codings[coding as usize],
                None if name == "*" => &mut any,
                None if name.eq_ignore_ascii_case("identity") => &mut identity,
                None => continue,
            };
            // If a coding is named twice, the higher weight counts; unreadable parts are ignored.
            *place = weight.max(*place);
        }
        let identity = identity.or(any);
        AcceptEncoding {
            weights: codings.map(|own| own.or(any).unwrap_or(Weight(0))),
            identity: identity.unwrap_or(Weight(0)),
            refuses_identity: identity == Some(Weight(0)),
        }
    }

    /// Returns the client's favourite among `offers`, which are in the server's order of
    /// preference; `None` means no coding.
    pub fn choose(&self, offers: &[Coding]) -> Option<Coding> {
        let mut best = (Weight(0), None);
        for &offer in offers {
            let weight = self.weights[offer as usize];
            if weight > best.0 {
                best = (weight, Some(offer));
            }
        }
        match best {
            (weight, Some(coding)) if weight >= self.identity => Some(coding),
            _ => None,
        }
    }

    /// Returns whether the client refuses a response without a coding.
    pub const fn refuses_identity(&self) -> bool {
        self.refuses_identity
    }
}

/// Why the codings of a request's body are refused (415).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyCodingError {
    Unknown,
    /// More than one coding. The size of a coded body bounds what it may decode to. With two
    /// codings, the outer one alone could inflate the inner body up to that bound: 10 KB become a
    /// mebibyte of code tables, which take 130 ms to read.
    Several,
}

/// Returns the coding of a request's body, or `None` if it has none.
pub fn body_coding(request: &Request<'_>) -> Result<Option<Coding>, BodyCodingError> {
    let fields = request.headers.iter();
    let mut fields = fields.filter(|field| field.name.eq_ignore_ascii_case("content-encoding"));
    fields.try_fold(None, |coding, field| {
        let value = std::str::from_utf8(field.value).map_err(|_| BodyCodingError::Unknown)?;
        parse_body_coding(coding, value)
    })
}

/// Several lines form one list (RFC 9110, section 5.3). `identity` should not be in it (section
/// 8.4), and has no effect if it is.
fn parse_body_coding(
    mut coding: Option<Coding>,
    value: &str,
) -> Result<Option<Coding>, BodyCodingError> {
    let names = value.split(',').map(|name| name.trim_matches([' ', '\t']));
    for name in names.filter(|name| !name.is_empty() && !name.eq_ignore_ascii_case("identity")) {
        let next = Coding::parse(name).ok_or(BodyCodingError::Unknown)?;
        if coding.replace(next).is_some() {
            return Err(BodyCodingError::Several);
        }
    }
    Ok(coding)
}

#[cfg(test)]
mod tests {
    use super::*;
    use Coding::{Brotli, Gzip, Zstd};

    const OFFERS: &[Coding] = &[Zstd, Gzip, Brotli];

    fn parse(values: &[&str]) -> AcceptEncoding {
        AcceptEncoding::parse(values.iter().copied())
    }

    #[test]
    fn accept_encoding_decides_by_weight_then_by_our_order() {
        let cases: &[(&[&str], Option<Coding>, bool)] = &[
            (&[], None, false),
            (&[""], None, false),
            (&["gzip, deflate, br, zstd"], Some(Zstd), false),
            (&["gzip, deflate"], Some(Gzip), false),
            (&["GZip"], Some(Gzip), false),
            (&["x-gzip"], Some(Gzip), false),
            (&["br;q=1.0, gzip;q=0.8, *;q=0.1"], Some(Brotli), false),
            (&["gzip;q=0.5", "br;q=0.7"], Some(Brotli), false),
            (&["gzip;q=0.5, br;q=0.5"], Some(Gzip), false),
            (&["*"], Some(Zstd), false),
            (&["*;q=0.2, zstd;q=0"], Some(Gzip), false),
            (&["zstd;q=0, gzip;q=0"], None, false),
            (&["deflate"], None, false),
            (&["compress, lzma"], None, false),
            // The client prefers no coding to any coding.
            (&["identity, gzip;q=0.5"], None, false),
            (&["identity;q=0.5, gzip;q=0.5"], Some(Gzip), false),
            (&["identity;q=0.5, gzip"], Some(Gzip), false),
            (&["gzip;q=0.001"], Some(Gzip), false),
            // A response without a coding is refused.
            (&["identity;q=0"], None, true),
            (&["*;q=0"], None, true),
            (&["gzip, identity;q=0"], Some(Gzip), true),
            (&["gzip, *;q=0"], Some(Gzip), true),
            (&["*;q=0, identity;q=0.1"], None, false),
            (&["br ; q=0.000, *"], Some(Zstd), false),
            // Unreadable parts are ignored.
            (&["gzip;q=2, br"], Some(Brotli), false),
            (&["gzip;q="], None, false),
            (&["identity;q=x"], None, false),
            (&["gzip;q=0, gzip;q=1"], Some(Gzip), false),
        ];
        for (values, expected, refuses_identity) in cases {
            let accepted = parse(values);
            assert_eq!(accepted.choose(OFFERS), *expected, "{values:?}");
            assert_eq!(accepted.refuses_identity(), *refuses_identity, "{values:?}");
        }
        assert_eq!(parse(&[]), AcceptEncoding::NONE);
        assert_eq!(parse(&["br, gzip"]).choose(&[Brotli, Gzip]), Some(Brotli));
    }

    #[test]
    fn elements_beyond_the_bound_are_not_read() {
        let many = "x,".repeat(limits::ACCEPT_RANGES_MAX) + "gzip";
        assert_eq!(parse(&[&many]).choose(OFFERS), None);
    }

    #[test]
    fn a_body_has_one_coding_or_none() {
        let coding = |values: &[&str]| {
            let mut values = values.iter();
            values.try_fold(None, |coding, value| parse_body_coding(coding, value))
        };
        let (unknown, several) = (BodyCodingError::Unknown, BodyCodingError::Several);
        type Case = (
            &'static [&'static str],
            Result<Option<Coding>, BodyCodingError>,
        );
        let cases: &[Case] = &[
            (&[], Ok(None)),
            (&[""], Ok(None)),
            (&["identity"], Ok(None)),
            (&["gzip"], Ok(Some(Gzip))),
            (&[" X-GZIP ,"], Ok(Some(Gzip))),
            (&["identity, zstd", "identity"], Ok(Some(Zstd))),
            (&["deflate, br"], Err(several)),
            (&["gzip, gzip"], Err(several)),
            (&["zstd", "gzip"], Err(several)),
            (&["gzip, identity, x-gzip"], Err(several)),
            (&["compress"], Err(unknown)),
            (&["gzip, compress"], Err(unknown)),
            (&["gzip;q=1"], Err(unknown)),
            (&["gzip br"], Err(unknown)),
        ];
        for (values, expected) in cases {
            assert_eq!(coding(values), *expected, "{values:?}");
        }
    }
}
