//! The formats of a log line: text for people, JSON for collectors, journald's native fields.
//!
//! Pure: a [`Line`] in, bytes out. Used only by the writer's thread, which keeps the formatter
//! because it remembers the date.
//!
//! Invariants:
//!  1. One line of input is one line of output (text, JSON): whatever a client puts into a path or
//!     a header, it cannot begin another line.
//!  2. Bytes that move a terminal's cursor, and characters that reorder text around them, are
//!     always escaped.

use std::fmt::{self, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use log::Level;

use super::line::Line;

/// How lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
    /// journald's native protocol.
    Journald,
}

/// Turns lines into bytes in one format.
#[derive(Debug)]
pub(super) struct Formatter {
    format: LogFormat,
    /// The second that `date` represents: a date costs more to compute than to copy.
    second: i64,
    /// Such as `2026-01-31T23:59:59`.
    date: String,
    scratch: String,
}

impl Formatter {
    pub(super) fn new(format: LogFormat) -> Formatter {
        Formatter {
            format,
            second: i64::MIN,
            date: String::new(),
            scratch: String::new(),
        }
    }

    /// Appends `line`, including its end.
    pub(super) fn append(&mut self, line: &Line, out: &mut Vec<u8>) {
        if self.format == LogFormat::Journald {
            append_journald(line, out);
            return;
        }
        self.scratch.clear();
        // Writing to a string does not fail.
        let _ = match self.format {
            LogFormat::Json => self.json(line),
            _ => self.text(line),
        };
        out.extend_from_slice(self.scratch.as_bytes());
    }

    fn text(&mut self, line: &Line) -> fmt::Result {
        self.time(line.time)?;
        let out = &mut self.scratch;
        write!(
            out,
            " {:<5} {}: ",
            line.level.as_str(),
            Plain(line.target())
        )?;
        write!(out, "{}", Plain(line.message()))?;
        for (kind, key, value) in line.fields() {
            if kind.is_stated() {
                continue;
            }
            if value.bytes().all(is_bare) && !value.is_empty() {
                write!(out, " {}={value}", Plain(key))?;
            } else {
                write!(out, " {}=\"{}\"", Plain(key), Quoted(value))?;
            }
        }
        out.write_char('\n')
    }

    fn json(&mut self, line: &Line) -> fmt::Result {
        self.scratch.push_str("{\"time\":\"");
        self.time(line.time)?;
        let out = &mut self.scratch;
        let level = level_word(line.level);
        write!(
            out,
            "\",\"level\":\"{level}\",\"target\":\"{}\"",
            Json(line.target())
        )?;
        write!(out, ",\"message\":\"{}\"", Json(line.message()))?;
        for (kind, key, value) in line.fields() {
            if kind.is_raw() {
                write!(out, ",\"{}\":{value}", Json(key))?;
            } else {
                write!(out, ",\"{}\":\"{}\"", Json(key), Json(value))?;
            }
        }
        out.write_str("}\n")
    }

    /// Appends RFC 3339 in UTC with milliseconds. A time before 1970 becomes 1970.
    fn time(&mut self, time: SystemTime) -> fmt::Result {
        let since_1970 = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let second = i64::try_from(since_1970.as_secs()).unwrap_or(i64::MAX);
        if second != self.second {
            self.second = second;
            self.date.clear();
            let timestamp = Timestamp::from_second(second).unwrap_or(Timestamp::MAX);
            write!(self.date, "{timestamp:.0}")?;
            self.date.truncate("2026-01-31T23:59:59".len());
        }
        write!(
            self.scratch,
            "{}.{:03}Z",
            self.date,
            since_1970.subsec_millis()
        )
    }
}

/// Appends one datagram of `systemd.journal-fields(7)` in the native protocol: `KEY=value` lines.
/// If a value has a line feed: the key, a line feed, the length as 64 bits and the value.
fn append_journald(line: &Line, out: &mut Vec<u8>) {
    let priority: &[u8] = match line.level {
        Level::Error => b"3",
        Level::Warn => b"4",
        Level::Info => b"6",
        Level::Debug | Level::Trace => b"7",
    };
    append_journald_field("PRIORITY", priority, out);
    append_journald_field("SYSLOG_IDENTIFIER", b"autoglmd", out);
    append_journald_field("TARGET", line.target().as_bytes(), out);
    if let Some((file, number)) = line.place {
        append_journald_field("CODE_FILE", file.as_bytes(), out);
        append_journald_field("CODE_LINE", number.to_string().as_bytes(), out);
    }
    append_journald_field("MESSAGE", line.message().as_bytes(), out);
    for (_, key, value) in line.fields() {
        append_journald_field(key, value.as_bytes(), out);
    }
}

/// Appends one field. Its name is converted to what the journal accepts: upper case letters, digits
/// and underscores, no underscore or digit first (those are the journal's own), at most 64.
fn append_journald_field(key: &str, value: &[u8], out: &mut Vec<u8>) {
    let name = key.trim_start_matches(|first: char| !first.is_ascii_alphabetic());
    if name.is_empty() {
        return;
    }
    out.extend(name.bytes().take(64).map(|byte| {
        if byte.is_ascii_alphanumeric() {
            byte.to_ascii_uppercase()
        } else {
            b'_'
        }
    }));
    if value.contains(&b'\n') {
        out.push(b'\n');
        out.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        out.push(b'=');
    }
    out.extend_from_slice(value);
    out.push(b'\n');
}

/// Returns whether a value with this byte may go without quotes.
const fn is_bare(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b':' | b'/' | b'@' | b'+')
}

/// Control characters (C0, DEL, C1), line and paragraph separators, and the characters that reorder
/// text in both directions.
const fn is_dangerous(char: char) -> bool {
    matches!(char,
        '\0'..='\x1f' | '\x7f'..='\u{9f}' | '\u{2028}' | '\u{2029}'
        | '\u{200e}' | '\u{200f}' | '\u{061c}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A message with dangerous characters as escapes, otherwise unchanged.
struct Plain<'a>(&'a str);

impl fmt::Display for Plain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        escape(self.0, f, is_dangerous, |char, f| {
            write!(f, "{}", char.escape_default())
        })
    }
}

/// The inside of a quoted value in a text line.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let needs = |char| is_dangerous(char) || matches!(char, '"' | '\\');
        escape(self.0, f, needs, |char, f| {
            write!(f, "{}", char.escape_default())
        })
    }
}

/// The inside of a JSON string (RFC 8259, section 7).
struct Json<'a>(&'a str);

impl fmt::Display for Json<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let needs = |char| is_dangerous(char) || matches!(char, '"' | '\\');
        escape(self.0, f, needs, |char, f| match char {
            '"' => f.write_str("\\\""),
            '\\' => f.write_str("\\\\"),
            '\n' => f.write_str("\\n"),
            // All dangerous characters are in the basic plane, so four digits are enough.
            _ => write!(f, "\\u{:04x}", char as u32),
        })
    }
}

/// Writes `text` unchanged, but calls `write_escaped` for each character that `needs` it.
fn escape(
    text: &str,
    f: &mut fmt::Formatter<'_>,
    needs: impl Fn(char) -> bool,
    write_escaped: impl Fn(char, &mut fmt::Formatter<'_>) -> fmt::Result,
) -> fmt::Result {
    let mut written = 0;
    for (at, char) in text.char_indices().filter(|(_, char)| needs(*char)) {
        f.write_str(&text[written..at])?;
        write_escaped(char, f)?;
        written = at + char.len_utf8();
    }
    f.write_str(&text[written..])
}

/// Lower case, as collectors expect it.
const fn level_word(level: Level) -> &'static str {
    match level {
        Level::Error => "error",
        Level::Warn => "warn",
        Level::Info => "info",
        Level::Debug => "debug",
        Level::Trace => "trace",
    }
}

#[cfg(test)]
mod tests {
    use super::super::line::Kind;
    use super::*;
    use std::time::Duration;

    const HOSTILE: &str = "a\r\n2026 INFO forged\x1b[2J\u{9b}1m\u{202e}\"\\\0快";

    fn line() -> Line {
        let mut line = Line::new(Level::Info, "autoglmd::service", format_args!("{HOSTILE}"));
        line.time = UNIX_EPOCH + Duration::from_millis(1_767_225_599_007);
        line.field(Kind::StatedRaw, "status", 200);
        line.field(Kind::Text, "path", HOSTILE);
        line.field(Kind::Text, "peer", "127.0.0.1");
        line.field(Kind::Text, "empty", "");
        line.field(Kind::Raw, "ms", 1.5);
        line
    }

    fn formatted(format: LogFormat) -> Vec<u8> {
        let mut out = Vec::new();
        Formatter::new(format).append(&line(), &mut out);
        out
    }

    #[test]
    fn text_is_one_line_whatever_a_client_sends() {
        let text = String::from_utf8(formatted(LogFormat::Text)).unwrap();
        let escaped = "a\\r\\n2026 INFO forged\\u{1b}[2J\\u{9b}1m\\u{202e}";
        assert_eq!(
            text,
            format!(
                "2025-12-31T23:59:59.007Z INFO  autoglmd::service: {escaped}\"\\\\u{{0}}快 \
                 path=\"{escaped}\\\"\\\\\\u{{0}}快\" peer=127.0.0.1 empty=\"\" ms=1.5\n"
            )
        );
    }

    #[test]
    fn json_reads_back_as_what_was_logged() {
        let text = String::from_utf8(formatted(LogFormat::Json)).unwrap();
        assert_eq!(text.matches('\n').count(), 1);
        assert!(!text.trim_end().chars().any(is_dangerous), "{text}");
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["time"], "2025-12-31T23:59:59.007Z");
        assert_eq!(value["level"], "info");
        assert_eq!(value["target"], "autoglmd::service");
        assert_eq!(value["message"], HOSTILE);
        assert_eq!(value["path"], HOSTILE);
        assert_eq!(value["status"], 200);
        assert_eq!(value["ms"], 1.5);
    }

    #[test]
    fn journald_fields_with_line_feeds_carry_their_length() {
        let bytes = formatted(LogFormat::Journald);
        let fields = parse_journald(&bytes);
        let find = |key: &str| {
            let found = fields.iter().find(|(name, _)| name == key);
            found.map(|(_, value)| value.as_str())
        };
        assert_eq!(find("PRIORITY"), Some("6"));
        assert_eq!(find("SYSLOG_IDENTIFIER"), Some("autoglmd"));
        assert_eq!(find("MESSAGE"), Some(HOSTILE));
        assert_eq!(find("PATH"), Some(HOSTILE));
        assert_eq!(find("STATUS"), Some("200"));
    }

    #[test]
    fn journald_names_cannot_pose_as_the_journals_own() {
        let mut out = Vec::new();
        append_journald_field("_UID", b"0", &mut out);
        append_journald_field("9lives-left", b"8", &mut out);
        append_journald_field("__", b"x", &mut out);
        assert_eq!(out, b"UID=0\nLIVES_LEFT=8\n");
    }

    #[test]
    fn the_kept_date_follows_the_clock_in_both_directions() {
        let mut formatter = Formatter::new(LogFormat::Text);
        let mut line = Line::new(Level::Info, "t", format_args!("m"));
        for (seconds, expected) in [
            (59, "1970-01-01T00:00:59.000Z"),
            (60, "1970-01-01T00:01:00.000Z"),
            (59, "1970-01-01T00:00:59.000Z"),
        ] {
            line.time = UNIX_EPOCH + Duration::from_secs(seconds);
            let mut out = Vec::new();
            formatter.append(&line, &mut out);
            assert!(out.starts_with(expected.as_bytes()));
        }
        line.time = UNIX_EPOCH - Duration::from_secs(1);
        let mut out = Vec::new();
        formatter.append(&line, &mut out);
        assert!(out.starts_with(b"1970-01-01T00:00:00.000Z"));
    }

    /// Plays the receiver's part of the protocol.
    fn parse_journald(mut bytes: &[u8]) -> Vec<(String, String)> {
        let mut fields = Vec::new();
        while !bytes.is_empty() {
            let end = bytes
                .iter()
                .position(|byte| matches!(byte, b'=' | b'\n'))
                .unwrap();
            let (name, rest) = bytes.split_at(end);
            let (value, rest) = if rest[0] == b'=' {
                let end = rest.iter().position(|byte| *byte == b'\n').unwrap();
                (&rest[1..end], &rest[end..])
            } else {
                let length = u64::from_le_bytes(rest[1..9].try_into().unwrap()) as usize;
                rest[9..].split_at(length)
            };
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            fields.push((text(name), text(value)));
            bytes = rest.strip_prefix(b"\n").unwrap();
        }
        fields
    }
}
