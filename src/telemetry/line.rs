//! One log line, written straight into a buffer in the log's format.
//!
//! The thread that logs formats its line, because it is cheaper to format a line once than to store
//! its parts, hand them over and read them again. What is handed over is bytes.
//!
//! Call order: [`Line::begin`], [`Line::message`] or [`Line::message_of`], any number of
//! [`Line::field`]s, [`Line::end`].
//!
//! Invariants:
//!  1. A line has at most `limits::LOG_LINE_BYTES_MAX` of text before it is escaped: longer text is
//!     cut at a character, and the message shows it.
//!  2. A `Raw` value is a JSON token of ours (number, true, false), never a caller's text.
//!
//! Mutations that the tests below catch: half a number that stays, a field that takes no room, text
//! that is cut within a character.

use std::fmt::{self, Write};
use std::time::SystemTime;

use log::Level;
use log::kv::{self, VisitSource, VisitValue};

use super::format::{self, Escape, Formatter, LogFormat};
use crate::limits::telemetry as limits;

/// The end of a message that was cut.
const CUT: &str = " [cut]";

/// What a line begins with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head<'a> {
    pub(super) time: SystemTime,
    pub(super) level: Level,
    pub(super) target: &'a str,
    /// Source file and line, if the record has them.
    pub(super) place: Option<(&'static str, u32)>,
}

impl<'a> Head<'a> {
    /// A line of this moment.
    pub(super) fn now(level: Level, target: &'a str) -> Head<'a> {
        Head {
            time: SystemTime::now(),
            level,
            target,
            place: None,
        }
    }
}

/// How to show a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Any text; must be quoted and escaped.
    Text,
    /// A number, `true` or `false`; shown as it is.
    Raw,
    /// Text that the message contains already: left out where people read.
    StatedText,
    /// The same for a number.
    StatedRaw,
}

impl Kind {
    const fn is_raw(self) -> bool {
        matches!(self, Kind::Raw | Kind::StatedRaw)
    }

    const fn is_stated(self) -> bool {
        matches!(self, Kind::StatedText | Kind::StatedRaw)
    }
}

pub(super) struct Line<'a> {
    format: LogFormat,
    out: &'a mut Vec<u8>,
    /// Bytes of text that the line may still take, before they are escaped.
    room: usize,
}

impl<'a> Line<'a> {
    /// Appends the beginning of a line to `out`.
    pub(super) fn begin(
        formatter: &mut Formatter,
        head: &Head<'_>,
        out: &'a mut Vec<u8>,
    ) -> Line<'a> {
        let target = cut(head.target, limits::LOG_LINE_BYTES_MAX / 16);
        let mut line = Line {
            format: formatter.format,
            out,
            room: limits::LOG_LINE_BYTES_MAX - target.len(),
        };
        match line.format {
            LogFormat::Text => {
                formatter.time(head.time, line.out);
                line.push(" ");
                line.push(format::level_column(head.level));
                line.push(" ");
                Escape::Plain.append(target, line.out);
                line.push(": ");
            }
            LogFormat::Json => {
                line.push("{\"time\":\"");
                formatter.time(head.time, line.out);
                line.push("\",\"level\":\"");
                line.push(format::level_word(head.level));
                line.push("\",\"target\":\"");
                Escape::Json.append(target, line.out);
                line.push("\"");
            }
            LogFormat::Journald => {
                line.journald("PRIORITY", format::priority(head.level));
                line.journald("SYSLOG_IDENTIFIER", "autoglmd");
                line.journald("TARGET", target);
                if let Some((file, number)) = head.place {
                    line.journald("CODE_FILE", file);
                    line.journald("CODE_LINE", itoa::Buffer::new().format(number));
                }
            }
        }
        line
    }

    /// Appends the message.
    pub(super) fn message(&mut self, message: fmt::Arguments<'_>) {
        let start = self.begin_message();
        // Fails when the bound is reached, or when a value's own `Display` does.
        if self.write_fmt(message).is_err() {
            self.push(CUT);
        }
        self.end_message(start);
    }

    /// Appends the message that these pieces make up.
    pub(super) fn message_of(&mut self, pieces: &[&str]) {
        let start = self.begin_message();
        if pieces.iter().any(|piece| self.write_str(piece).is_err()) {
            self.push(CUT);
        }
        self.end_message(start);
    }

    fn begin_message(&mut self) -> usize {
        self.push(match self.format {
            LogFormat::Text => "",
            LogFormat::Json => ",\"message\":\"",
            LogFormat::Journald => "MESSAGE=",
        });
        self.out.len()
    }

    fn end_message(&mut self, start: usize) {
        match self.format {
            LogFormat::Text => {}
            LogFormat::Json => self.push("\""),
            LogFormat::Journald => format::end_journald_field(start - 1, self.out),
        }
    }

    /// Appends a field. `value` is cut to the remaining room; a field without any room is left out.
    pub(super) fn field(&mut self, kind: Kind, key: &str, value: &str) {
        let Some(room @ 1..) = self.room.checked_sub(key.len()) else {
            return;
        };
        let fitting = cut(value, room);
        if kind.is_raw() && fitting.len() < value.len() {
            // Half a number is a wrong number.
            return;
        }
        self.room = room - fitting.len();
        match self.format {
            LogFormat::Text if kind.is_stated() => {}
            LogFormat::Text => self.text(key, fitting),
            LogFormat::Json => self.json(kind, key, fitting),
            LogFormat::Journald => self.journald(key, fitting),
        }
    }

    fn text(&mut self, key: &str, value: &str) {
        self.push(" ");
        Escape::Plain.append(key, self.out);
        if format::is_bare(value) {
            self.push("=");
            self.push(value);
        } else {
            self.push("=\"");
            Escape::Quoted.append(value, self.out);
            self.push("\"");
        }
    }

    fn json(&mut self, kind: Kind, key: &str, value: &str) {
        self.push(",\"");
        Escape::Json.append(key, self.out);
        if kind.is_raw() {
            self.push("\":");
            self.push(value);
        } else {
            self.push("\":\"");
            Escape::Json.append(value, self.out);
            self.push("\"");
        }
    }

    fn journald(&mut self, key: &str, value: &str) {
        if format::append_journald_name(key, self.out) {
            let start = self.out.len();
            self.push("=");
            self.push(value);
            format::end_journald_field(start, self.out);
        }
    }

    /// Appends the end of the line.
    pub(super) fn end(mut self) {
        self.push(match self.format {
            LogFormat::Text => "\n",
            LogFormat::Json => "}\n",
            // The datagram ends the entry.
            LogFormat::Journald => "",
        });
    }

    fn push(&mut self, text: &str) {
        self.out.extend_from_slice(text.as_bytes());
    }
}

/// The message: escaped, and cut at the line's bound.
impl Write for Line<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let fitting = cut(text, self.room);
        self.room -= fitting.len();
        let escape = match self.format {
            LogFormat::Text => Escape::Plain,
            LogFormat::Json => Escape::Json,
            LogFormat::Journald => Escape::Nothing,
        };
        escape.append(fitting, self.out);
        if fitting.len() == text.len() {
            Ok(())
        } else {
            Err(fmt::Error)
        }
    }
}

impl<'kvs> VisitSource<'kvs> for Line<'_> {
    fn visit_pair(&mut self, key: kv::Key<'kvs>, value: kv::Value<'kvs>) -> Result<(), kv::Error> {
        value.visit(Field {
            line: self,
            key: key.as_str(),
        })
    }
}

/// Adds one of the `key = value` pairs of the `log` macros.
struct Field<'l, 'a, 'k> {
    line: &'l mut Line<'a>,
    key: &'k str,
}

impl<'v> VisitValue<'v> for Field<'_, '_, '_> {
    fn visit_any(&mut self, value: kv::Value) -> Result<(), kv::Error> {
        self.line.field(Kind::Text, self.key, &value.to_string());
        Ok(())
    }

    fn visit_u64(&mut self, value: u64) -> Result<(), kv::Error> {
        let mut digits = itoa::Buffer::new();
        self.line.field(Kind::Raw, self.key, digits.format(value));
        Ok(())
    }

    fn visit_i64(&mut self, value: i64) -> Result<(), kv::Error> {
        let mut digits = itoa::Buffer::new();
        self.line.field(Kind::Raw, self.key, digits.format(value));
        Ok(())
    }

    fn visit_f64(&mut self, value: f64) -> Result<(), kv::Error> {
        // JSON cannot represent infinity.
        let kind = if value.is_finite() {
            Kind::Raw
        } else {
            Kind::Text
        };
        self.line.field(kind, self.key, &value.to_string());
        Ok(())
    }

    fn visit_bool(&mut self, value: bool) -> Result<(), kv::Error> {
        let word = if value { "true" } else { "false" };
        self.line.field(Kind::Raw, self.key, word);
        Ok(())
    }

    fn visit_str(&mut self, value: &str) -> Result<(), kv::Error> {
        self.line.field(Kind::Text, self.key, value);
        Ok(())
    }
}

/// Returns the longest beginning of `text` that has at most `bytes` bytes.
pub(super) fn cut(text: &str, bytes: usize) -> &str {
    let mut end = bytes.min(text.len());
    // At most three steps; 0 is a boundary.
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    use serde_json::json;

    const HOSTILE: &str = "a\r\n2026 INFO forged\x1b[2J\u{9b}1m\u{202e}\"\\\0快";

    /// Writes one line.
    fn line(format: LogFormat, target: &str, write: impl FnOnce(&mut Line<'_>)) -> Vec<u8> {
        let mut out = Vec::new();
        let head = Head {
            time: UNIX_EPOCH + Duration::from_millis(1_767_225_599_007),
            ..Head::now(Level::Info, target)
        };
        let mut line = Line::begin(&mut Formatter::new(format), &head, &mut out);
        write(&mut line);
        line.end();
        out
    }

    fn text(format: LogFormat, target: &str, write: impl FnOnce(&mut Line<'_>)) -> String {
        String::from_utf8(line(format, target, write)).unwrap()
    }

    fn json(target: &str, write: impl FnOnce(&mut Line<'_>)) -> serde_json::Value {
        serde_json::from_str(&text(LogFormat::Json, target, write)).unwrap()
    }

    fn hostile(line: &mut Line<'_>) {
        line.message(format_args!("{HOSTILE}"));
        line.field(Kind::StatedRaw, "status", "200");
        line.field(Kind::Text, "path", HOSTILE);
        line.field(Kind::Text, "peer", "127.0.0.1");
        line.field(Kind::Text, "empty", "");
        line.field(Kind::Text, "words", "two words");
        line.field(Kind::Raw, "ms", "1.5");
    }

    #[test]
    fn text_is_one_line_whatever_a_client_sends() {
        let escaped = "a\\r\\n2026 INFO forged\\u{1b}[2J\\u{9b}1m\\u{202e}";
        assert_eq!(
            text(LogFormat::Text, "autoglmd::service", hostile),
            format!(
                "2025-12-31T23:59:59.007Z INFO  autoglmd::service: {escaped}\"\\\\u{{0}}快 \
                 path=\"{escaped}\\\"\\\\\\u{{0}}快\" peer=127.0.0.1 empty=\"\" \
                 words=\"two words\" ms=1.5\n"
            )
        );
    }

    #[test]
    fn json_reads_back_as_what_was_logged() {
        let line = text(LogFormat::Json, "autoglmd::service", hostile);
        assert_eq!(line.matches('\n').count(), 1);
        let is_safe = |char: char| !char.is_control() && !"\u{202e}\u{9b}".contains(char);
        assert!(line.trim_end().chars().all(is_safe), "{line}");
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&line).unwrap(),
            json!({
                "time": "2025-12-31T23:59:59.007Z", "level": "info",
                "target": "autoglmd::service", "message": HOSTILE, "status": 200,
                "path": HOSTILE, "peer": "127.0.0.1", "empty": "", "words": "two words",
                "ms": 1.5,
            })
        );
    }

    #[test]
    fn journald_fields_with_line_feeds_carry_their_length() {
        let bytes = line(LogFormat::Journald, "t", hostile);
        let fields = parse_journald(&bytes);
        let find = |key: &str| {
            let found = fields.iter().find(|(name, _)| name == key);
            found.map(|(_, value)| value.as_str())
        };
        assert_eq!(find("PRIORITY"), Some("6"));
        assert_eq!(find("SYSLOG_IDENTIFIER"), Some("autoglmd"));
        assert_eq!(find("TARGET"), Some("t"));
        assert_eq!(find("MESSAGE"), Some(HOSTILE));
        assert_eq!(find("PATH"), Some(HOSTILE));
        assert_eq!(find("STATUS"), Some("200"));
    }

    #[test]
    fn journald_names_cannot_pose_as_the_journals_own() {
        let bytes = text(LogFormat::Journald, "t", |line| {
            line.message(format_args!("m"));
            line.field(Kind::Text, "_UID", "0");
            line.field(Kind::Text, "9lives-left", "8");
            line.field(Kind::Text, "__", "x");
        });
        assert!(
            bytes.ends_with("MESSAGE=m\nUID=0\nLIVES_LEFT=8\n"),
            "{bytes}"
        );
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

    #[test]
    fn key_values_of_the_macros_keep_their_types() {
        let pairs: [(&str, kv::Value); 5] = [
            ("text", "x".into()),
            ("number", 3_u32.into()),
            ("minus", (-2.5_f64).into()),
            ("nan", f64::NAN.into()),
            ("yes", true.into()),
        ];
        let mut line = json("t", |line| {
            line.message(format_args!("a {} message", 1));
            kv::Source::visit(&pairs, line).unwrap();
        });
        line.as_object_mut().unwrap().remove("time");
        assert_eq!(
            line,
            json!({"level": "info", "target": "t", "message": "a 1 message", "text": "x",
                   "number": 3, "minus": -2.5, "nan": "NaN", "yes": true})
        );
    }

    #[test]
    fn what_does_not_fit_is_cut_at_a_character_and_marked() {
        let long = "快".repeat(limits::LOG_LINE_BYTES_MAX);
        let is_cut = |value: &serde_json::Value, end: &str| {
            let text = value.as_str().unwrap();
            let text = text.strip_suffix(end).expect("it is marked");
            text.len() < limits::LOG_LINE_BYTES_MAX && text.chars().all(|char| char == '快')
        };
        let line = json(&long, |line| {
            line.message(format_args!("{long}"));
            line.field(Kind::Text, "key", &long);
            line.field(Kind::Raw, "number", "123456");
        });
        assert!(is_cut(&line["target"], "") && is_cut(&line["message"], CUT));
        assert!(line.to_string().len() <= limits::LOG_LINE_BYTES_MAX + 128);

        let pieces = json("t", |line| line.message_of(&["a ", "b ", &long]));
        let message = pieces["message"].as_str().unwrap();
        assert!(message.starts_with("a b 快") && message.ends_with(CUT));

        let line = json("t", |line| {
            line.message(format_args!("m"));
            line.field(Kind::Text, "first", &long);
            line.field(Kind::Raw, "number", "123456");
        });
        assert!(is_cut(&line["first"], ""));
        assert!(line.to_string().len() <= limits::LOG_LINE_BYTES_MAX + 128);

        let line = json("t", |line| {
            line.message(format_args!("m"));
            // Three of the six digits would fit.
            let others = "tm".len() + "first".len() + "number".len() + 3;
            let most = "x".repeat(limits::LOG_LINE_BYTES_MAX - others);
            line.field(Kind::Text, "first", &most);
            line.field(Kind::Raw, "number", "123456");
            line.field(Kind::Raw, "n", "12");
        });
        assert!(line.get("number").is_none(), "a number is cut off whole");
        assert_eq!(line["n"], 12, "its room is there for the next field");
    }
}
