//! Inflates request bodies and gRPC messages, within their bounds.
//!
//! Owns the errors about codings of bodies. Knows no thread: a reactor inflates short bodies, a
//! worker long ones.

use std::borrow::Cow;
use std::sync::Arc;

use crate::config::Limits;
use crate::error::{ApiError, ErrorCode};
use crate::grpc::{Bounds, Encoding, frame};
use crate::http::compress::Coding;
use crate::http::compress::decode::{Bound, DecodeError, decode_body};
use crate::http::negotiate::BodyCodingError;
use crate::limits::compression as compression_limits;

use super::response::compression::CompressionSeries;
use super::response::headers::CONTENT_ENCODING;
use super::router::{BodyBound, Row};

/// Inflates, and counts the bytes and the time.
#[derive(Clone, Debug)]
pub struct Inflater(pub Arc<CompressionSeries>);

impl Inflater {
    /// Returns the message of a method that takes one.
    pub fn only_message<'b>(
        &self,
        body: &'b [u8],
        encoding: Encoding,
        bounds: Bounds,
    ) -> Result<Cow<'b, [u8]>, ApiError> {
        if encoding == Encoding::Identity || bounds.inflate_ratio.is_none() {
            return frame::only_message(body, encoding, bounds);
        }
        let (coding, counters) = (Coding::Gzip, &*self.0);
        let message = counters.inflating(coding, || frame::only_message(body, encoding, bounds))?;
        counters.observe_inflated(coding, body.len(), message.len());
        Ok(message)
    }

    /// Writes a request's body without its coding into `out`.
    pub fn inflate(
        &self,
        coding: Coding,
        body: &[u8],
        limits: &Limits,
        out: &mut Vec<u8>,
    ) -> Result<(), ApiError> {
        let bound = Bound::of(body.len(), limits.max_body, limits.max_inflate_ratio);
        let counters = &*self.0;
        let result = counters.inflating(coding, || decode_body(coding, body, bound, out));
        counters.observe_inflated(coding, body.len(), out.len());
        result.map_err(|error| {
            counters.refused.get(error).inc();
            refusal(error, coding, limits)
        })
    }
}

/// Returns the bounds of the gRPC messages that a route accepts.
pub fn message_bounds(limits: &Limits, row: Option<&Row>) -> Bounds {
    match row.map_or(BodyBound::None, |row| row.body) {
        BodyBound::None => Bounds {
            bytes: 0,
            inflate_ratio: None,
        },
        BodyBound::Bytes(bytes) => Bounds {
            bytes,
            inflate_ratio: None,
        },
        BodyBound::MaxBody => Bounds {
            bytes: limits.max_body,
            inflate_ratio: Some(limits.max_inflate_ratio),
        },
    }
}

/// Returns 415, with the accepted codings.
pub fn unsupported_coding(error: BodyCodingError) -> ApiError {
    let message = match error {
        BodyCodingError::Unknown => {
            "unknown coding in `Content-Encoding`; expected gzip, deflate, br or zstd, or an \
             uncompressed body"
        }
        BodyCodingError::Several => {
            "`Content-Encoding` names more than one coding; compress the body once, with gzip, \
             deflate, br or zstd"
        }
    };
    ApiError::new(ErrorCode::UnsupportedMediaType, message).with_param(CONTENT_ENCODING)
}

fn refusal(error: DecodeError, coding: Coding, limits: &Limits) -> ApiError {
    let name = coding.name();
    let (code, message) = match error {
        DecodeError::TooLarge => (
            ErrorCode::BodyTooLarge,
            format!(
                "the body inflates to more than `limits.max_body`, which is {} bytes",
                limits.max_body
            ),
        ),
        DecodeError::TooDense => (
            ErrorCode::BodyTooLarge,
            format!(
                "the body inflates to more than {} times its size (`limits.max_inflate_ratio`); \
                 send it uncompressed",
                limits.max_inflate_ratio
            ),
        ),
        DecodeError::WindowTooLarge => (
            ErrorCode::BodyTooLarge,
            format!(
                "the body needs a zstd window of more than {} MiB (RFC 9659); compress it without \
                 `--long`",
                (1 << compression_limits::ZSTD_DECODER_WINDOW_BITS_MAX) >> 20
            ),
        ),
        DecodeError::Malformed => (
            ErrorCode::InvalidRequest,
            format!("the body is not valid {name}, which `Content-Encoding` names"),
        ),
        DecodeError::Truncated => (
            ErrorCode::InvalidRequest,
            format!("the body ends early: its {name} data is incomplete"),
        ),
    };
    ApiError::new(code, message).with_param(CONTENT_ENCODING)
}
