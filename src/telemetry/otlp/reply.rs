//! The meaning of a collector's response for the batch that was sent.
//!
//! Owns the table of OTLP/HTTP (specification 1.5, "OTLP/HTTP Response"): 2xx is success, 429, 502,
//! 503 and 504 may be tried again, and everything else is final. A success may say that some
//! points were rejected; they must not be sent again.
//!
//! Mutations that the tests below catch: 500 in the list of those that may be tried again, 502 not
//! in it, a partial success that is not read.

use std::time::Duration;

use prost::Message as _;

use super::message::ExportResponse;

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

/// Reads a response; `after` is the wait that it asks for.
pub fn read(status: u16, after: Option<Duration>, body: &[u8]) -> Fate {
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
        _ if AGAIN.contains(&status) => Fate::Again { after },
        _ => Fate::Refused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::otlp::message::PartialSuccess;
    use proptest::prelude::*;

    const WAIT: Option<Duration> = Some(Duration::from_secs(7));

    #[test]
    fn exactly_four_statuses_may_be_tried_again() {
        let again = |status: &u16| read(*status, WAIT, b"") == Fate::Again { after: WAIT };
        let found: Vec<u16> = (100..=599).filter(again).collect();
        assert_eq!(found, [429, 502, 503, 504]);
        for status in [300, 400, 401, 404, 413, 500, 501, 505] {
            assert_eq!(read(status, WAIT, b""), Fate::Refused, "{status}");
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
        assert_eq!(read(200, None, &body), taken(3, "too old"));
        assert_eq!(read(202, None, b""), taken(0, ""));
        assert_eq!(read(200, None, b"\xff<html>"), taken(0, ""));
    }

    proptest! {
        #[test]
        fn any_response_has_a_fate(
            status in any::<u16>(),
            body in prop::collection::vec(any::<u8>(), 0..60),
        ) {
            read(status, None, &body);
        }
    }
}
