//! The fields that responses have in common.
//!
//! Owns their names and their spelling. Everything goes into one reusable buffer of fields; text
//! from a client goes through [`Fields::push`], which lets no line end pass.

use std::time::Duration;

use crate::core::bucket::Level;
use crate::engine::Timings;
use crate::error::{ApiError, ErrorCode};
use crate::http::Fields;
use crate::http::compress::BODY_CODINGS;

use crate::service::call::Call;
use crate::service::router::Row;

/// The `param` of an error that a content coding caused. A 415 with it lists the accepted codings,
/// and one without it must not (RFC 9110, section 12.5.3).
pub const CONTENT_ENCODING: &str = "content-encoding";

/// Adds the fields of every response: its ids, and the state of the caller's buckets.
pub fn identity(fields: &mut Fields, call: &Call, text: &mut String) {
    fields.push("x-request-id", call.request_id.as_str());
    if let Some(trace) = &call.trace {
        // Hexadecimal digits and dashes are ASCII.
        let header = trace.header();
        fields.push(
            "traceparent",
            std::str::from_utf8(&header).unwrap_or_default(),
        );
    }
    if let Some(reuse) = &call.reuse {
        fields.push("x-cache", reuse.verdict.as_str());
        if reuse.verdict.is_cached() {
            fields.push_number("age", reuse.age.as_secs());
        }
    }
    if let Some(level) = &call.requests {
        fields.push_number("x-ratelimit-limit-requests", level.limit.into());
        fields.push_number("x-ratelimit-remaining-requests", level.remaining.into());
        fields.push("x-ratelimit-reset-requests", span(text, level));
    }
    if let Some(level) = &call.tokens {
        fields.push_number("x-ratelimit-limit-tokens", level.limit.into());
        fields.push_number("x-ratelimit-remaining-tokens", level.remaining.into());
        fields.push("x-ratelimit-reset-tokens", span(text, level));
    }
}

/// Adds the fields of an error response.
pub fn error(fields: &mut Fields, error: &ApiError, row: Option<&Row>) {
    fields.push("cache-control", "no-store");
    match error.code {
        // RFC 9110, section 11.6.1: a 401 must name the required scheme.
        ErrorCode::MissingCredentials => fields.push("www-authenticate", "Bearer"),
        ErrorCode::InvalidKey | ErrorCode::ExpiredKey => {
            fields.push("www-authenticate", "Bearer error=\"invalid_token\"");
        }
        ErrorCode::MethodNotAllowed => {
            fields.push("allow", row.map_or("", |row| row.verbs.allow()));
        }
        ErrorCode::UnsupportedMediaType if error.param.as_deref() == Some(CONTENT_ENCODING) => {
            fields.push("accept-encoding", BODY_CODINGS);
        }
        _ => {}
    }
    if let Some(milliseconds) = error.retry_after_ms {
        fields.push_number("retry-after", milliseconds.div_ceil(1_000).max(1));
        fields.push_number("retry-after-ms", milliseconds);
    }
}

/// Adds `Server-Timing` (W3C): how the time of a complete response was spent. `auth` is the time
/// from the head to the start of the job: credentials, limits, and the arrival of the body.
pub fn server_timing(
    fields: &mut Fields,
    auth: Duration,
    timings: Option<&Timings>,
    total: Duration,
    text: &mut String,
) {
    text.clear();
    push_metric(text, "auth", auth);
    if let Some(timings) = timings {
        push_metric(text, "queue", timings.queue);
        push_metric(text, "prefill", timings.prefill);
        push_metric(text, "decode", timings.decode);
    }
    push_metric(text, "total", total);
    fields.push("server-timing", text);
}

/// Appends `name;dur=1.234`, in milliseconds.
fn push_metric(text: &mut String, name: &str, duration: Duration) {
    if !text.is_empty() {
        text.push_str(", ");
    }
    text.push_str(name);
    text.push_str(";dur=");
    push_thousandths(text, duration.as_micros());
}

/// Appends `1.234` for 1,234 thousandths. Written by hand: the formatting machinery costs ten times
/// as much, and every response has five of these.
fn push_thousandths(text: &mut String, thousandths: u128) {
    let thousandths = u64::try_from(thousandths).unwrap_or(u64::MAX);
    let (whole, mut rest) = (thousandths / 1_000, thousandths % 1_000);
    text.push_str(itoa::Buffer::new().format(whole));
    if rest == 0 {
        return;
    }
    text.push('.');
    while rest > 0 {
        text.push(char::from(b'0' + (rest / 100) as u8));
        rest = rest % 100 * 10;
    }
}

/// Formats a bucket's reset as the OpenAI API does, which is Go's way: `120ms`, `8.64s`, `6m0s`.
/// Rounded up to a millisecond, so that the bucket really is full at that time.
fn span<'t>(text: &'t mut String, level: &Level) -> &'t str {
    text.clear();
    let below_second = u64::from(level.reset.subsec_nanos().div_ceil(1_000_000));
    let milliseconds = level
        .reset
        .as_secs()
        .saturating_mul(1_000)
        .saturating_add(below_second);
    let (minutes, rest) = (milliseconds / 60_000, milliseconds % 60_000);
    if minutes == 0 && (1..1_000).contains(&rest) {
        text.push_str(itoa::Buffer::new().format(rest));
        text.push_str("ms");
        return text;
    }
    if minutes > 0 {
        text.push_str(itoa::Buffer::new().format(minutes));
        text.push('m');
    }
    push_thousandths(text, rest.into());
    text.push('s');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_read_as_in_the_openai_api() {
        for (microseconds, expected) in [
            (0, "0s"),
            (1, "1ms"),
            (999_000, "999ms"),
            (999_001, "1s"),
            (8_640_000, "8.64s"),
            (59_999_000, "59.999s"),
            (360_000_000, "6m0s"),
            (3_600_050_000, "60m0.05s"),
        ] {
            let level = Level {
                limit: 1,
                remaining: 0,
                reset: Duration::from_micros(microseconds),
            };
            assert_eq!(span(&mut String::from("old"), &level), expected);
        }
    }

    #[test]
    fn server_timing_lists_what_is_known() {
        let mut fields = Fields::new();
        let timings = Timings {
            queue: Duration::from_micros(1_050),
            prefill: Duration::from_millis(20),
            decode: Duration::from_micros(3),
        };
        let (auth, total) = (Duration::from_micros(7), Duration::from_secs(2));
        server_timing(&mut fields, auth, Some(&timings), total, &mut String::new());
        let (name, value) = fields.iter().next().unwrap();
        assert_eq!(name, "server-timing");
        assert_eq!(
            std::str::from_utf8(value).unwrap(),
            "auth;dur=0.007, queue;dur=1.05, prefill;dur=20, decode;dur=0.003, total;dur=2000"
        );
    }
}
