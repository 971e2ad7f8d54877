//! `Retry-After` of a response: how long a server asks to be left alone.
//!
//! Owns the reading of both forms (RFC 9110, section 10.2.3): seconds, and a date in each of the
//! formats that a recipient must accept (section 5.6.7). A date is compared with the `Date` of the
//! same response, so that the clocks of both machines need not agree; without one, with the
//! caller's clock. Bounds nothing: each caller has a bound of its own.
//!
//! Mutations that the tests below catch: a date in the past that waits, a `Date` that is ignored, a
//! format left out.

use std::time::Duration;

use jiff::civil::DateTime;
use jiff::tz::Offset;

/// The format that is sent today, and two obsolete ones.
const FORMATS: [&str; 3] = [
    "%a, %d %b %Y %H:%M:%S GMT",
    "%A, %d-%b-%y %H:%M:%S GMT",
    "%a %b %e %H:%M:%S %Y",
];

/// Reads the fields `Retry-After` and `Date`. `now_seconds` is the wall clock, since 1970. `None`:
/// the server asks for nothing that can be understood.
pub fn parse(retry_after: &str, date: Option<&str>, now_seconds: u64) -> Option<Duration> {
    if !retry_after.is_empty() && retry_after.bytes().all(|byte| byte.is_ascii_digit()) {
        // Too many digits mean very long.
        let seconds = retry_after.parse().unwrap_or(u64::MAX);
        return Some(Duration::from_secs(seconds));
    }
    let until = seconds_of(retry_after)?;
    let now = date.and_then(seconds_of);
    let now = now.unwrap_or_else(|| i64::try_from(now_seconds).unwrap_or(i64::MAX));
    let wait = u64::try_from(until.saturating_sub(now)).unwrap_or(0);
    Some(Duration::from_secs(wait))
}

/// Reads a date of HTTP.
fn seconds_of(text: &str) -> Option<i64> {
    let mut dates = FORMATS
        .iter()
        .map(|format| DateTime::strptime(format, text));
    let date = dates.find_map(Result::ok)?;
    let timestamp = Offset::UTC.to_timestamp(date).ok()?;
    Some(timestamp.as_second())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// 1994-11-06, 08:49:37 UTC.
    const NOW: u64 = 784_111_777;

    fn wait(text: &str, date: Option<&str>) -> Option<u64> {
        parse(text, date, NOW).map(|wait| wait.as_secs())
    }

    #[test]
    fn it_is_seconds_or_a_date_in_three_formats() {
        assert_eq!(wait("7", None), Some(7));
        assert_eq!(wait("0", None), Some(0));
        assert_eq!(wait("99999999999999999999999", None), Some(u64::MAX));
        for date in [
            "Sun, 06 Nov 1994 08:49:47 GMT",
            "Sunday, 06-Nov-94 08:49:47 GMT",
            "Sun Nov  6 08:49:47 1994",
        ] {
            assert_eq!(wait(date, None), Some(10), "{date}");
        }
        assert_eq!(wait("Sun, 06 Nov 1994 08:49:27 GMT", None), Some(0));
        for odd in [
            "",
            "-1",
            "1.5",
            "+3",
            "soon",
            "Sun, 06 Nov",
            "Sun, 06 Nov 1994 08:49:47 +0100",
            "Sun, 06 Nov 1994 08:49:47 GMT and more",
            "Sun, 31 Feb 1994 08:49:47 GMT",
        ] {
            assert_eq!(wait(odd, None), None, "{odd:?}");
        }
    }

    #[test]
    fn a_date_counts_from_the_date_of_the_response() {
        let until = "Sun, 06 Nov 1994 09:00:30 GMT";
        let sent = Some("Sun, 06 Nov 1994 09:00:00 GMT");
        assert_eq!(wait(until, sent), Some(30), "its clock is ahead of ours");
        assert_eq!(wait(until, Some("today")), Some(653), "by our clock");
        assert_eq!(wait("30", sent), Some(30));
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in ".{0,40}", date in prop::option::of(".{0,40}"), now: u64) {
            parse(&text, date.as_deref(), now);
        }
    }
}
