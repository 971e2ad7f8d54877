//! Times as people write them on the command line, and as tables show them. All are in UTC.

use jiff::civil::{Date, date};
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp, Unit};

use crate::config::units::parse_duration_ms;

const DAY_SECONDS: u64 = 24 * 60 * 60;

const EPOCH: Date = date(1970, 1, 1);

/// An end, as it was written: some time from now, or at a date.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Seconds from now.
    After(u64),
    /// Seconds since 1970.
    At(u64),
}

impl End {
    /// Returns seconds since 1970. An end must be in the future.
    pub fn at(self, now: u64) -> Result<u64, String> {
        let end = match self {
            End::After(seconds) => now.saturating_add(seconds),
            End::At(end) => end,
        };
        match end > now {
            true => Ok(end),
            false => Err(format!("{} is not in the future", show(end))),
        }
    }
}

/// Parses `30d`, `12h`, `2027-01-31` (its first moment) or `2027-01-31T12:00:00Z`.
pub fn parse_end(text: &str) -> Result<End, String> {
    if let Some(seconds) = parse_seconds(text) {
        return Ok(End::After(seconds));
    }
    let timestamp = match text.parse::<Date>() {
        Ok(date) if !text.contains('T') => TimeZone::UTC.to_timestamp(date.at(0, 0, 0, 0)),
        _ => text.parse::<Timestamp>(),
    };
    let seconds = timestamp
        .ok()
        .and_then(|found| u64::try_from(found.as_second()).ok());
    seconds.map(End::At).ok_or_else(|| {
        "expected a time from now such as 30d or 12h, or a date such as 2027-01-31".to_owned()
    })
}

/// Parses a date such as `2027-01-31` into days since 1970 (UTC).
pub fn parse_day(text: &str) -> Result<u32, String> {
    let since_1970 = |date: Date| date.since((Unit::Day, EPOCH)).ok();
    let days = text.parse::<Date>().ok().filter(|_| !text.contains('T'));
    let days = days.and_then(since_1970).map(|span| span.get_days());
    days.and_then(|days| u32::try_from(days).ok())
        .ok_or_else(|| "expected a date such as 2027-01-31".to_owned())
}

/// Formats days since 1970 as `2027-01-31`.
pub fn show_day(day: u32) -> String {
    let span = Span::new().try_days(day);
    let shown = span.and_then(|span| EPOCH.checked_add(span));
    shown.map_or_else(|_| "the end of time".to_owned(), |date| date.to_string())
}

/// Parses `1h`, `30m`, `90s`, `7d`, in whole seconds.
pub fn parse_lifetime(text: &str) -> Result<u64, String> {
    parse_seconds(text).ok_or_else(|| "expected a time such as 1h, 30m or 7d".to_owned())
}

/// Parses `60s`, `500ms`, `2m`.
pub fn parse_timeout_ms(text: &str) -> Result<u64, String> {
    match parse_duration_ms(text) {
        Some(milliseconds) if milliseconds > 0 => Ok(milliseconds),
        _ => Err("expected a time such as 30s, 500ms or 2m".to_owned()),
    }
}

/// Formats a time as `2027-01-31 12:00:00Z`.
pub fn show(seconds: u64) -> String {
    let timestamp = i64::try_from(seconds)
        .ok()
        .and_then(|s| Timestamp::from_second(s).ok());
    match timestamp {
        Some(timestamp) => timestamp.strftime("%Y-%m-%d %H:%M:%SZ").to_string(),
        None => "the end of time".to_owned(),
    }
}

fn parse_seconds(text: &str) -> Option<u64> {
    match text.strip_suffix('d') {
        Some(days) if days.bytes().all(|byte| byte.is_ascii_digit()) => {
            days.parse::<u64>().ok()?.checked_mul(DAY_SECONDS)
        }
        Some(_) => None,
        None => parse_duration_ms(text).map(|milliseconds| milliseconds / 1_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_lifetimes_or_dates() {
        for (text, end) in [
            ("30d", End::After(2_592_000)),
            ("12h", End::After(43_200)),
            ("1970-01-02", End::At(86_400)),
            ("2027-01-31", End::At(1_801_353_600)),
            ("2027-01-31T12:00:00Z", End::At(1_801_396_800)),
            ("2027-01-31T12:00:00+02:00", End::At(1_801_389_600)),
        ] {
            assert_eq!(parse_end(text), Ok(end), "{text}");
        }
        for wrong in [
            "",
            "d",
            "+1d",
            "30",
            "30 d",
            "1w",
            "2027-02-30",
            "tomorrow",
            "1960-01-01",
        ] {
            assert!(parse_end(wrong).is_err(), "{wrong}");
        }
        assert!(parse_end(&format!("{}d", u64::MAX)).is_err());
    }

    #[test]
    fn what_is_over_is_refused() {
        assert_eq!(End::After(1).at(100), Ok(101));
        assert_eq!(End::At(101).at(100), Ok(101));
        assert!(End::After(0).at(100).is_err());
        assert_eq!(
            End::At(86_400).at(86_400),
            Err("1970-01-02 00:00:00Z is not in the future".into())
        );
    }

    #[test]
    fn days_are_dates() {
        for (text, day) in [
            ("1970-01-01", 0),
            ("1970-02-01", 31),
            ("2027-01-31", 20_849),
        ] {
            assert_eq!(parse_day(text), Ok(day), "{text}");
            assert_eq!(show_day(day), text);
        }
        for wrong in ["", "1969-12-31", "2027-02-30", "2027-01-31T12:00:00", "30d"] {
            assert!(parse_day(wrong).is_err(), "{wrong}");
        }
        assert_eq!(show_day(u32::MAX), "the end of time");
    }

    #[test]
    fn any_second_can_be_shown() {
        assert_eq!(show(0), "1970-01-01 00:00:00Z");
        assert_eq!(show(u64::MAX), "the end of time");
        assert_eq!(show(i64::MAX as u64), "the end of time");
    }
}
