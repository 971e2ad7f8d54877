//! The meaning of a collector's response for the batch that was sent.
//!
//! Owns the table of OTLP/HTTP (specification 1.5, "OTLP/HTTP Response"): 2xx is success, 429, 502,
//! 503 and 504 may be tried again, and everything else is final. A success may say that some
//! points were rejected; they must not be sent again.
//!
//! Mutations that the tests below catch: 500 in the list of those that may be tried again, 502 not
//! in it, a date in the past that waits, a partial success that is not read.

use std::time::Duration;

use prost::Message as _;

use super::message::ExportResponse;
use crate::core::UnixSeconds;

/// The fate of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Taken, without `rejected` of its points, for the reason in the collector's message.
    Taken { rejected: u64, message: String },
    /// To be sent again, at the earliest after the time that the collector asked for.
    Again { after: Option<Duration> },
    /// Refused for good.
    Refused,
}

/// Statuses that may be tried again.
const AGAIN: [u16; 4] = [429, 502, 503, 504];

/// Reads a response. `now`: the wall clock, for a date in `Retry-After`.
pub fn read(status: u16, retry_after: Option<&str>, body: &[u8], now: UnixSeconds) -> Fate {
    match status {
        200..=299 => {
            // A collector that responds with success has taken the batch, whatever its body is.
            let response = ExportResponse::decode(body).unwrap_or_default();
            let partial = response.partial_success.unwrap_or_default();
            Fate::Taken {
                rejected: u64::try_from(partial.rejected_data_points).unwrap_or(0),
                message: partial.error_message,
            }
        }
        _ if AGAIN.contains(&status) => Fate::Again {
            after: retry_after.and_then(|text| parse_retry_after(text, now)),
        },
        _ => Fate::Refused,
    }
}

/// Reads `Retry-After` (RFC 9110, section 10.2.3): seconds, or a date.
fn parse_retry_after(text: &str, now: UnixSeconds) -> Option<Duration> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // Too many digits mean very long; the caller has its own bound.
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
    }
    let date = jiff::fmt::rfc2822::DateTimeParser::new()
        .parse_timestamp(text)
        .ok()?;
    let wait = date.as_second().saturating_sub(now.as_i64());
    Some(Duration::from_secs(u64::try_from(wait).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::otlp::message::PartialSuccess;
    use proptest::prelude::*;

    /// 1994-11-06, 08:49:37 UTC.
    const NOW: UnixSeconds = UnixSeconds::new(784_111_777);

    fn wait(text: &str) -> Option<u64> {
        parse_retry_after(text, NOW).map(|wait| wait.as_secs())
    }

    #[test]
    fn exactly_four_statuses_may_be_tried_again() {
        let again = |status: &u16| matches!(read(*status, None, b"", NOW), Fate::Again { .. });
        let found: Vec<u16> = (100..=599).filter(again).collect();
        assert_eq!(found, [429, 502, 503, 504]);
        for status in [300, 400, 401, 404, 413, 500, 501, 505] {
            assert_eq!(read(status, Some("7"), b"", NOW), Fate::Refused, "{status}");
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        assert_eq!(wait("7"), Some(7));
        assert_eq!(wait("0"), Some(0));
        assert_eq!(wait("Sun, 06 Nov 1994 08:49:47 GMT"), Some(10));
        assert_eq!(wait("Sun, 06 Nov 1994 08:49:27 GMT"), Some(0));
        assert_eq!(wait("99999999999999999999999"), Some(u64::MAX));
        for odd in ["", "-1", "1.5", "soon", "+3", "Sun, 06 Nov"] {
            assert_eq!(wait(odd), None, "{odd:?}");
        }
    }

    #[test]
    fn a_partial_success_tells_what_was_rejected() {
        let response = ExportResponse {
            partial_success: Some(PartialSuccess {
                rejected_data_points: 3,
                error_message: "too old".to_owned(),
            }),
        };
        let taken = |rejected, message: &str| Fate::Taken {
            rejected,
            message: message.to_owned(),
        };
        let body = response.encode_to_vec();
        assert_eq!(read(200, None, &body, NOW), taken(3, "too old"));
        assert_eq!(read(202, None, b"", NOW), taken(0, ""));
        assert_eq!(read(200, None, b"\xff<html>", NOW), taken(0, ""));
    }

    proptest! {
        #[test]
        fn any_response_has_a_fate(
            status in any::<u16>(),
            text in ".{0,40}",
            body in prop::collection::vec(any::<u8>(), 0..60),
        ) {
            read(status, Some(&text), &body, NOW);
        }
    }
}
