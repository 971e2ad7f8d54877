//! Durations (`"10s"`, `"250ms"`, `"2m"`, `"1h"`) and sizes (`"64KiB"`, `65536`) as text.
//!
//! Whole numbers with one unit, nothing else: `"1.5s"`, `"1h30m"` and `"64k"` are errors, because
//! other programs read each of them differently. Units are powers of 1,024, so they have the `i` of
//! IEC 80000-13.
//!
//! Invariant: a printed value is the same when it is read again.

use std::time::Duration;

/// Largest first: printing takes the first unit that divides the value.
const DURATION_UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];
const SIZE_UNITS: [(&str, u64); 4] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];

/// Parses a duration with its unit; returns milliseconds.
pub fn parse_duration_ms(text: &str) -> Option<u64> {
    let (number, unit) = split(text)?;
    scale(number, unit, &DURATION_UNITS)
}

/// Parses a size; a number without a unit means bytes.
pub fn parse_size_bytes(text: &str) -> Option<u64> {
    match split(text)? {
        (number, "") => Some(number),
        (number, unit) => scale(number, unit, &SIZE_UNITS),
    }
}

/// Drops parts of a millisecond: no key can have them.
pub fn print_duration(duration: Duration) -> String {
    print_duration_ms(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

pub fn print_duration_ms(milliseconds: u64) -> String {
    match milliseconds {
        0 => "0s".to_owned(),
        _ => print(milliseconds, &DURATION_UNITS),
    }
}

/// Bytes without a larger unit stay a plain number.
pub fn print_size_bytes(bytes: u64) -> String {
    match bytes {
        0 => "0".to_owned(),
        _ => print(bytes, &SIZE_UNITS[..3]),
    }
}

/// Splits digits from the unit. `None` without digits or if the number exceeds a `u64`.
fn split(text: &str) -> Option<(u64, &str)> {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    Some((digits.parse().ok()?, unit))
}

fn scale(number: u64, unit: &str, units: &[(&str, u64)]) -> Option<u64> {
    let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    number.checked_mul(*factor)
}

fn print(value: u64, units: &[(&str, u64)]) -> String {
    match units
        .iter()
        .find(|(_, factor)| value.is_multiple_of(*factor))
    {
        Some((name, factor)) => format!("{}{name}", value / factor),
        None => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_have_exactly_one_unit() {
        for (text, milliseconds) in [
            ("10s", 10_000),
            ("250ms", 250),
            ("2m", 120_000),
            ("1h", 3_600_000),
            ("0s", 0),
        ] {
            assert_eq!(parse_duration_ms(text), Some(milliseconds), "{text}");
        }
        let overflow = format!("{}h", u64::MAX);
        for text in [
            "", "s", "10", "10 s", "-1s", "+1s", "1.5s", "1h30m", "10S", "1d", &overflow,
        ] {
            assert_eq!(parse_duration_ms(text), None, "{text}");
        }
    }

    #[test]
    fn sizes_are_powers_of_1024_and_plain_numbers_bytes() {
        for (text, bytes) in [
            ("64KiB", 65_536),
            ("1MiB", 1 << 20),
            ("2GiB", 2 << 30),
            ("7", 7),
            ("7B", 7),
        ] {
            assert_eq!(parse_size_bytes(text), Some(bytes), "{text}");
        }
        for text in [
            "",
            "KiB",
            "64k",
            "64KB",
            "64kib",
            "1 MiB",
            "-1",
            "0x10",
            "99999999999999GiB",
        ] {
            assert_eq!(parse_size_bytes(text), None, "{text}");
        }
    }

    #[test]
    fn the_largest_unit_that_divides_is_printed() {
        assert_eq!(print_duration(Duration::from_secs(90)), "90s");
        assert_eq!(print_duration(Duration::from_secs(600)), "10m");
        assert_eq!(print_duration(Duration::from_millis(1_500)), "1500ms");
        assert_eq!(print_size_bytes(16 << 10), "16KiB");
        assert_eq!(print_size_bytes(1_000), "1000");
    }

    proptest! {
        #[test]
        fn print_then_read_is_the_same(value: u64) {
            prop_assert_eq!(parse_duration_ms(&print_duration_ms(value)), Some(value));
            prop_assert_eq!(parse_size_bytes(&print_size_bytes(value)), Some(value));
        }

        #[test]
        fn round_values_too(count in 0u64..1_000_000, unit in 0usize..3) {
            let (time, bytes) = (count * DURATION_UNITS[unit].1, count * SIZE_UNITS[unit].1);
            prop_assert_eq!(parse_duration_ms(&print_duration_ms(time)), Some(time));
            prop_assert_eq!(parse_size_bytes(&print_size_bytes(bytes)), Some(bytes));
        }

        #[test]
        fn any_text_is_read_or_refused(text: String) {
            let _ = parse_duration_ms(&text);
            let _ = parse_size_bytes(&text);
        }
    }
}
