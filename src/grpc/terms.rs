//! Reads the head of a gRPC request, apart from its path: the form of its messages, their
//! compression, and the deadline.

use std::time::Duration;

use crate::error::{ApiError, ErrorCode};
use crate::http::Request;

use super::Encoding;

/// The media type of every response.
pub const CONTENT_TYPE: &str = "application/grpc";

/// The terms that the head of a request sets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// Of the request's messages and of the response's: a client that sends gzip can read it.
    pub encoding: Encoding,
    /// Counted from the head on.
    pub timeout: Option<Duration>,
}

impl Terms {
    pub fn of(request: &Request<'_>) -> Result<Terms, ApiError> {
        let subtype = request.header("content-type").and_then(subtype);
        if !matches!(subtype, Some("" | "+proto")) {
            let message = "messages must be Protobuf; send `content-type: application/grpc`";
            return Err(ApiError::new(ErrorCode::UnsupportedMediaType, message));
        }
        let encoding = match request.header("grpc-encoding").map(str::trim) {
            None | Some("identity") => Encoding::Identity,
            Some("gzip") => Encoding::Gzip,
            Some(_) => {
                let message = "unknown `grpc-encoding`; expected gzip or identity";
                return Err(ApiError::new(ErrorCode::NotImplemented, message));
            }
        };
        let timeout = request.header("grpc-timeout").map(timeout).transpose()?;
        Ok(Terms { encoding, timeout })
    }
}

/// Returns whether a request's media type is gRPC's, whatever the form of its messages.
pub fn is_grpc(request: &Request<'_>) -> bool {
    request
        .header("content-type")
        .is_some_and(|value| subtype(value).is_some())
}

/// Returns what follows `application/grpc`: nothing or `+proto`, without parameters. `None` for
/// other types, such as `application/grpc-web`, which is another protocol.
fn subtype(content_type: &str) -> Option<&str> {
    let name = content_type.split(';').next()?.trim();
    let (start, rest) = name.split_at_checked(CONTENT_TYPE.len())?;
    let is_grpc = start.eq_ignore_ascii_case(CONTENT_TYPE);
    (is_grpc && (rest.is_empty() || rest.starts_with('+'))).then_some(rest)
}

/// Parses one to eight digits and a unit.
fn timeout(value: &str) -> Result<Duration, ApiError> {
    let malformed = || {
        let message = "`grpc-timeout` must be 1 to 8 digits and one of H, M, S, m, u, n";
        ApiError::new(ErrorCode::MalformedGrpc, message)
    };
    let value = value.trim();
    let (digits, unit) = value
        .split_at_checked(value.len().saturating_sub(1))
        .ok_or_else(malformed)?;
    let is_number = (1..=8).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
    if !is_number {
        return Err(malformed());
    }
    let count: u64 = digits.parse().map_err(|_| malformed())?;
    match unit {
        "H" => Ok(Duration::from_secs(count * 3_600)),
        "M" => Ok(Duration::from_secs(count * 60)),
        "S" => Ok(Duration::from_secs(count)),
        "m" => Ok(Duration::from_millis(count)),
        "u" => Ok(Duration::from_micros(count)),
        "n" => Ok(Duration::from_nanos(count)),
        _ => Err(malformed()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::testing::headers;
    use crate::http::{Method, Version};
    use proptest::prelude::*;

    fn terms(fields: &[(&str, &str)]) -> Result<Terms, ErrorCode> {
        let headers = headers(fields);
        let request = Request {
            method: Method::Post,
            authority: None,
            path: "/",
            query: None,
            version: Version::Http2,
            headers: &headers,
        };
        Terms::of(&request).map_err(|error| error.code)
    }

    #[test]
    fn timeouts_have_six_units() {
        for (value, expected) in [
            ("1H", Duration::from_secs(3_600)),
            ("2M", Duration::from_secs(120)),
            ("3S", Duration::from_secs(3)),
            ("4m", Duration::from_millis(4)),
            ("5u", Duration::from_micros(5)),
            ("6n", Duration::from_nanos(6)),
            ("0S", Duration::ZERO),
            ("00000001S", Duration::from_secs(1)),
            ("99999999H", Duration::from_secs(99_999_999 * 3_600)),
        ] {
            assert_eq!(timeout(value), Ok(expected), "{value}");
        }
        for value in [
            "",
            "S",
            "1",
            "1s",
            "1 S",
            "-1S",
            "+1S",
            "1.5S",
            "123456789S",
            "1SS",
            "é",
            "1é",
            "S1",
        ] {
            let error = timeout(value).unwrap_err();
            assert_eq!(error.code, ErrorCode::MalformedGrpc, "{value}");
        }
    }

    #[test]
    fn heads_are_read() {
        let grpc = ("content-type", "application/grpc");
        assert_eq!(terms(&[grpc]), Ok(Terms::default()));
        let all = [
            ("Content-Type", "Application/gRPC+proto; x=y"),
            ("grpc-encoding", "gzip"),
            ("grpc-timeout", "100m"),
        ];
        let expected = Terms {
            encoding: Encoding::Gzip,
            timeout: Some(Duration::from_millis(100)),
        };
        assert_eq!(terms(&all), Ok(expected));
        let unsupported = Err(ErrorCode::UnsupportedMediaType);
        for value in [
            "application/grpc+json",
            "application/grpc-web",
            "application/grpcx",
            "application/json",
            "",
        ] {
            assert_eq!(terms(&[("content-type", value)]), unsupported, "{value}");
        }
        assert_eq!(terms(&[]), unsupported);
        let deflate = terms(&[grpc, ("grpc-encoding", "deflate")]);
        assert_eq!(deflate, Err(ErrorCode::NotImplemented));
        let odd = terms(&[grpc, ("grpc-timeout", "soon")]);
        assert_eq!(odd, Err(ErrorCode::MalformedGrpc));
    }

    proptest! {
        #[test]
        fn any_value_is_a_timeout_or_an_error(value: String) {
            let _ = timeout(&value);
        }
    }
}
