//! The formats of a log line, and how text goes into each: for people, JSON for collectors,
//! journald's native fields.
//!
//! Pure: text in, bytes out. [`Formatter`] is kept by each thread that writes many lines, because
//! it remembers the date.
//!
//! Most text needs no escape. One pass over its bytes shows whether it does (`CLASSES`), and such
//! text is copied as it is; only the rest is looked at character by character.
//!
//! Invariants:
//!  1. One line of input is one line of output (text, JSON): whatever a client puts into a path or
//!     a header, it cannot begin another line.
//!  2. Bytes that move a terminal's cursor, and characters that reorder text around them, are
//!     always escaped.
//!
//! Mutations that the tests of this file and of `access` catch: a quotation mark, a control
//! character, or a byte above ASCII in the class `CLEAN`; a space in the class `BARE`; a date that
//! is kept for another second.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use log::Level;

/// How lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
    /// journald's native protocol.
    Journald,
}

/// The format, and the date of the last line.
#[derive(Debug)]
pub(super) struct Formatter {
    pub(super) format: LogFormat,
    /// The second that `date` represents: a date costs more to compute than to copy.
    second: i64,
    /// Such as `2026-01-31T23:59:59`.
    date: String,
}

impl Formatter {
    pub(super) fn new(format: LogFormat) -> Formatter {
        Formatter {
            format,
            second: i64::MIN,
            date: String::new(),
        }
    }

    /// Appends RFC 3339 in UTC with milliseconds. A time before 1970 becomes 1970.
    pub(super) fn time(&mut self, time: SystemTime, out: &mut Vec<u8>) {
        let since_1970 = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let second = i64::try_from(since_1970.as_secs()).unwrap_or(i64::MAX);
        if second != self.second {
            self.second = second;
            let timestamp = Timestamp::from_second(second).unwrap_or(Timestamp::MAX);
            // In the same memory: a line allocates nothing, in a new second either.
            self.date.clear();
            let _ = write!(self.date, "{timestamp:.0}");
            self.date.truncate("2026-01-31T23:59:59".len());
        }
        out.extend_from_slice(self.date.as_bytes());
        let [hundreds, tens, ones] = three_digits(since_1970.subsec_millis());
        out.extend_from_slice(&[b'.', hundreds, tens, ones, b'Z']);
    }
}

/// Returns the last three digits of a number.
pub(super) fn three_digits(number: u32) -> [u8; 3] {
    [100, 10, 1].map(|place| b'0' + (number / place % 10) as u8)
}

// ---- text ---------------------------------------------------------------------------------------

/// Text of these bytes alone may be a value without quotes.
const BARE: u8 = 1;

/// Text of these bytes alone is copied as it is, inside quotes too.
const CLEAN: u8 = 2;

/// The classes of each byte.
static CLASSES: [u8; 256] = {
    let mut classes = [0; 256];
    let mut byte = b' ';
    while byte < 0x7f {
        if !matches!(byte, b'"' | b'\\') {
            classes[byte as usize] |= CLEAN;
        }
        if byte.is_ascii_alphanumeric()
            || matches!(byte, b'_' | b'-' | b'.' | b':' | b'/' | b'@' | b'+')
        {
            classes[byte as usize] |= BARE;
        }
        byte += 1;
    }
    classes
};

/// Returns the classes that all bytes of `text` belong to.
fn classes(text: &str) -> u8 {
    text.bytes()
        .fold(BARE | CLEAN, |all, byte| all & CLASSES[usize::from(byte)])
}

/// Returns whether `value` may go without quotes.
pub(super) fn is_bare(value: &str) -> bool {
    classes(value) & BARE != 0 && !value.is_empty()
}

/// How text goes into a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Escape {
    /// The message of a text line.
    Plain,
    /// The inside of a quoted value in a text line.
    Quoted,
    /// The inside of a JSON string (RFC 8259, section 7).
    Json,
    /// A value for the journal: any bytes.
    Nothing,
}

impl Escape {
    /// Appends `text` with the escapes that it needs.
    pub(super) fn append(self, text: &str, out: &mut Vec<u8>) {
        if self == Escape::Nothing || classes(text) & CLEAN != 0 {
            out.extend_from_slice(text.as_bytes());
            return;
        }
        let mut copied = 0;
        for (at, char) in text.char_indices().filter(|(_, char)| self.needs(*char)) {
            out.extend_from_slice(&text.as_bytes()[copied..at]);
            self.append_escaped(char, out);
            copied = at + char.len_utf8();
        }
        out.extend_from_slice(&text.as_bytes()[copied..]);
    }

    const fn needs(self, char: char) -> bool {
        is_dangerous(char) || self.is_inside_quotes() && matches!(char, '"' | '\\')
    }

    const fn is_inside_quotes(self) -> bool {
        matches!(self, Escape::Quoted | Escape::Json)
    }

    fn append_escaped(self, char: char, out: &mut Vec<u8>) {
        match char {
            '"' if self == Escape::Json => out.extend_from_slice(b"\\\""),
            '\\' if self == Escape::Json => out.extend_from_slice(b"\\\\"),
            '\n' if self == Escape::Json => out.extend_from_slice(b"\\n"),
            _ if self == Escape::Json => {
                // All dangerous characters are in the basic plane, so four digits are enough.
                out.extend_from_slice(b"\\u");
                out.extend([12, 8, 4, 0].map(|shift| hexadecimal(char as u32 >> shift)));
            }
            // Escapes are ASCII.
            _ => out.extend(char.escape_default().map(|escape| escape as u8)),
        }
    }
}

fn hexadecimal(digit: u32) -> u8 {
    b"0123456789abcdef"[(digit & 0xf) as usize]
}

/// Control characters (C0, DEL, C1), line and paragraph separators, and the characters that reorder
/// text in both directions.
const fn is_dangerous(char: char) -> bool {
    matches!(char,
        '\0'..='\x1f' | '\x7f'..='\u{9f}' | '\u{2028}' | '\u{2029}'
        | '\u{200e}' | '\u{200f}' | '\u{061c}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Lower case, as collectors expect it.
pub(super) const fn level_word(level: Level) -> &'static str {
    match level {
        Level::Error => "error",
        Level::Warn => "warn",
        Level::Info => "info",
        Level::Debug => "debug",
        Level::Trace => "trace",
    }
}

/// Upper case with spaces up to one width, for columns.
pub(super) const fn level_column(level: Level) -> &'static str {
    match level {
        Level::Error => "ERROR",
        Level::Warn => "WARN ",
        Level::Info => "INFO ",
        Level::Debug => "DEBUG",
        Level::Trace => "TRACE",
    }
}

/// The journal's number, which is syslog's.
pub(super) const fn priority(level: Level) -> &'static str {
    match level {
        Level::Error => "3",
        Level::Warn => "4",
        Level::Info => "6",
        Level::Debug | Level::Trace => "7",
    }
}

// ---- fields of the journal ----------------------------------------------------------------------

/// Appends the name of a field of `systemd.journal-fields(7)`: converted to what the journal
/// accepts, which is upper case letters, digits and underscores, no underscore or digit first
/// (those are the journal's own), at most 64. Returns false if nothing is left of it.
pub(super) fn append_journald_name(key: &str, out: &mut Vec<u8>) -> bool {
    let name = key.trim_start_matches(|first: char| !first.is_ascii_alphabetic());
    out.extend(name.bytes().take(64).map(|byte| {
        if byte.is_ascii_alphanumeric() {
            byte.to_ascii_uppercase()
        } else {
            b'_'
        }
    }));
    !name.is_empty()
}

/// Ends the field whose `=` is at `start`. If its value has a line feed, the protocol wants a line
/// feed instead of the `=`, and the value's length as 64 bits.
pub(super) fn end_journald_field(start: usize, out: &mut Vec<u8>) {
    let value = &out[start + 1..];
    if value.contains(&b'\n') {
        let length = (value.len() as u64).to_le_bytes();
        out.splice(start..=start, [b'\n'].into_iter().chain(length));
    }
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_kept_date_follows_the_clock_in_both_directions() {
        let mut formatter = Formatter::new(LogFormat::Text);
        let mut formatted = |time| {
            let mut out = Vec::new();
            formatter.time(time, &mut out);
            String::from_utf8(out).unwrap()
        };
        for (milliseconds, expected) in [
            (59_000, "1970-01-01T00:00:59.000Z"),
            (60_042, "1970-01-01T00:01:00.042Z"),
            (60_999, "1970-01-01T00:01:00.999Z"),
            (59_107, "1970-01-01T00:00:59.107Z"),
        ] {
            let time = UNIX_EPOCH + Duration::from_millis(milliseconds);
            assert_eq!(formatted(time), expected);
        }
        assert_eq!(
            formatted(UNIX_EPOCH - Duration::from_secs(1)),
            "1970-01-01T00:00:00.000Z"
        );
    }

    /// The class of a text must say what its characters say, one by one.
    #[test]
    fn text_that_is_copied_as_it_is_needs_no_escape() {
        let all = ('\0'..='\u{ff}').chain(['\u{61c}', '\u{2028}', '\u{202e}', '快']);
        for char in all {
            let text = format!("a{char}b");
            for escape in [Escape::Plain, Escape::Quoted, Escape::Json] {
                let mut out = Vec::new();
                escape.append(&text, &mut out);
                let is_same = out == text.as_bytes();
                assert_eq!(is_same, !escape.needs(char), "{char:?} as {escape:?}");
            }
            let is_word = char.is_ascii_alphanumeric() || "_-.:/@+".contains(char);
            assert_eq!(is_bare(&text), is_word, "{char:?}");
        }
        assert!(!is_bare(""), "an empty value would look like none");
    }
}
