//! One log line on its way from the thread that wrote it to the thread that formats it.
//!
//! A line is one allocation: target, message and fields follow each other in one buffer, still
//! unescaped. Escaping, time stamps and formatting cost more than copying, so the writer's thread
//! does them.
//!
//! Layout of the buffer: target, message, then for each field one byte of kind, two lengths (`u32`,
//! little endian), key, value.
//!
//! Invariants:
//!  1. The buffer never grows beyond `limits::LOG_LINE_BYTES_MAX` plus the few bytes of its fields'
//!     heads: longer text is cut at a character, and the message shows it.
//!  2. A `Raw` value is a JSON token of ours (number, true, false), never a caller's text.

use std::fmt::{self, Write};
use std::time::SystemTime;

use log::Level;
use log::kv::{self, VisitSource, VisitValue};

use crate::limits::telemetry as limits;

/// The end of a message that was cut.
const CUT: &str = " [cut]";

#[derive(Debug)]
pub(super) struct Line {
    pub(super) time: SystemTime,
    pub(super) level: Level,
    /// Source file and line, if the record has them.
    pub(super) place: Option<(&'static str, u32)>,
    target_bytes: u32,
    message_bytes: u32,
    buffer: Vec<u8>,
}

/// How to show a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// Any text; must be quoted and escaped.
    Text = b't',
    /// A number, `true` or `false`; shown as it is.
    Raw = b'r',
    /// Text that the message contains already: left out where people read.
    StatedText = b'T',
    /// The same for a number.
    StatedRaw = b'R',
}

impl Kind {
    pub(super) const fn is_raw(self) -> bool {
        matches!(self, Kind::Raw | Kind::StatedRaw)
    }

    pub(super) const fn is_stated(self) -> bool {
        matches!(self, Kind::StatedText | Kind::StatedRaw)
    }

    const fn from_byte(byte: u8) -> Kind {
        match byte {
            b'r' => Kind::Raw,
            b'T' => Kind::StatedText,
            b'R' => Kind::StatedRaw,
            _ => Kind::Text,
        }
    }
}

impl Line {
    /// Call order: `new`, then any number of `field`s.
    pub(super) fn new(level: Level, target: &str, message: fmt::Arguments<'_>) -> Line {
        let mut buffer = Vec::with_capacity(limits::LOG_LINE_BYTES_TYPICAL);
        let target = cut(target, limits::LOG_LINE_BYTES_MAX / 16);
        buffer.extend_from_slice(target.as_bytes());
        let mut writer = Bounded {
            buffer: &mut buffer,
            end: limits::LOG_LINE_BYTES_MAX,
        };
        // Fails when the bound is reached, or when a value's own `Display` does.
        if writer.write_fmt(message).is_err() {
            buffer.extend_from_slice(CUT.as_bytes());
        }
        Line {
            time: SystemTime::now(),
            level,
            place: None,
            target_bytes: target.len() as u32,
            message_bytes: (buffer.len() - target.len()) as u32,
            buffer,
        }
    }

    pub(super) fn from_record(record: &log::Record<'_>) -> Line {
        let mut line = Line::new(record.level(), record.target(), *record.args());
        line.place = record.file_static().zip(record.line());
        // A visitor that fails has already written what it could.
        let _ = record.key_values().visit(&mut line);
        line
    }

    /// Appends a field. `value` is cut to the remaining room; a field without any room is left out.
    pub(super) fn field(&mut self, kind: Kind, key: &str, value: impl fmt::Display) {
        let start = self.buffer.len();
        if start + key.len() >= limits::LOG_LINE_BYTES_MAX {
            return;
        }
        self.buffer.push(kind as u8);
        self.buffer
            .extend_from_slice(&(key.len() as u32).to_le_bytes());
        self.buffer.extend_from_slice(&[0; 4]);
        self.buffer.extend_from_slice(key.as_bytes());
        let value_start = self.buffer.len();
        let mut writer = Bounded {
            buffer: &mut self.buffer,
            end: limits::LOG_LINE_BYTES_MAX,
        };
        if write!(writer, "{value}").is_err() && kind.is_raw() {
            // Half a number is a wrong number.
            self.buffer.truncate(start);
            return;
        }
        let value_bytes = (self.buffer.len() - value_start) as u32;
        self.buffer[start + 5..start + 9].copy_from_slice(&value_bytes.to_le_bytes());
    }

    pub(super) fn target(&self) -> &str {
        text(&self.buffer[..self.target_bytes as usize])
    }

    pub(super) fn message(&self) -> &str {
        let start = self.target_bytes as usize;
        text(&self.buffer[start..start + self.message_bytes as usize])
    }

    pub(super) fn fields(&self) -> Fields<'_> {
        let start = self.target_bytes as usize + self.message_bytes as usize;
        Fields {
            rest: &self.buffer[start..],
        }
    }
}

/// The fields of a line, in the order in which they were added.
pub(super) struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Fields<'a> {
    type Item = (Kind, &'a str, &'a str);

    fn next(&mut self) -> Option<Self::Item> {
        let (head, rest) = self.rest.split_first_chunk::<9>()?;
        let [kind, key @ ..] = head;
        let (key, value) = key.split_first_chunk::<4>()?;
        let value = value.first_chunk::<4>()?;
        let (key, rest) = rest.split_at_checked(u32::from_le_bytes(*key) as usize)?;
        let (value, rest) = rest.split_at_checked(u32::from_le_bytes(*value) as usize)?;
        self.rest = rest;
        Some((Kind::from_byte(*kind), text(key), text(value)))
    }
}

impl<'kvs> VisitSource<'kvs> for Line {
    fn visit_pair(&mut self, key: kv::Key<'kvs>, value: kv::Value<'kvs>) -> Result<(), kv::Error> {
        value.visit(Field {
            line: self,
            key: key.as_str(),
        })
    }
}

/// Adds one of the `key = value` pairs of the `log` macros.
struct Field<'a, 'k> {
    line: &'a mut Line,
    key: &'k str,
}

impl<'v> VisitValue<'v> for Field<'_, '_> {
    fn visit_any(&mut self, value: kv::Value) -> Result<(), kv::Error> {
        self.line.field(Kind::Text, self.key, value);
        Ok(())
    }

    fn visit_u64(&mut self, value: u64) -> Result<(), kv::Error> {
        self.line.field(Kind::Raw, self.key, value);
        Ok(())
    }

    fn visit_i64(&mut self, value: i64) -> Result<(), kv::Error> {
        self.line.field(Kind::Raw, self.key, value);
        Ok(())
    }

    fn visit_f64(&mut self, value: f64) -> Result<(), kv::Error> {
        // JSON cannot represent infinity.
        let kind = if value.is_finite() {
            Kind::Raw
        } else {
            Kind::Text
        };
        self.line.field(kind, self.key, value);
        Ok(())
    }

    fn visit_bool(&mut self, value: bool) -> Result<(), kv::Error> {
        self.line.field(Kind::Raw, self.key, value);
        Ok(())
    }

    fn visit_str(&mut self, value: &str) -> Result<(), kv::Error> {
        self.line.field(Kind::Text, self.key, value);
        Ok(())
    }
}

/// Writes up to `end`, then fails; never ends within a character.
struct Bounded<'a> {
    buffer: &'a mut Vec<u8>,
    end: usize,
}

impl Write for Bounded<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self.end.saturating_sub(self.buffer.len());
        let fitting = cut(text, room);
        self.buffer.extend_from_slice(fitting.as_bytes());
        if fitting.len() == text.len() {
            Ok(())
        } else {
            Err(fmt::Error)
        }
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

/// The buffer's parts were copied from whole strings, so they are UTF-8.
fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or("?")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_come_back_as_they_were_put_in() {
        let mut line = Line::new(Level::Warn, "target", format_args!("a {} message", 1));
        line.field(Kind::Text, "key", "value = \"x\"\n");
        line.field(Kind::Text, "", "");
        line.field(Kind::StatedRaw, "n", 17);
        assert_eq!(line.target(), "target");
        assert_eq!(line.message(), "a 1 message");
        let fields: Vec<_> = line.fields().collect();
        assert_eq!(
            fields,
            [
                (Kind::Text, "key", "value = \"x\"\n"),
                (Kind::Text, "", ""),
                (Kind::StatedRaw, "n", "17")
            ]
        );
    }

    #[test]
    fn key_values_of_the_macros_keep_their_types() {
        let pairs: [(&str, kv::Value); 4] = [
            ("text", "x".into()),
            ("number", 3_u32.into()),
            ("minus", (-2.5_f64).into()),
            ("nan", f64::NAN.into()),
        ];
        let record = log::Record::builder()
            .args(format_args!("m"))
            .key_values(&pairs)
            .build();
        let line = Line::from_record(&record);
        let fields: Vec<_> = line.fields().collect();
        assert_eq!(
            fields,
            [
                (Kind::Text, "text", "x"),
                (Kind::Raw, "number", "3"),
                (Kind::Raw, "minus", "-2.5"),
                (Kind::Text, "nan", "NaN")
            ]
        );
    }

    #[test]
    fn what_does_not_fit_is_cut_at_a_character_and_marked() {
        let long = "快".repeat(limits::LOG_LINE_BYTES_MAX);
        let mut line = Line::new(Level::Info, &long, format_args!("{long}"));
        assert!(line.message().ends_with(CUT));
        assert!(
            line.message()
                .trim_end_matches(CUT)
                .chars()
                .all(|char| char == '快')
        );
        assert!(line.target().chars().all(|char| char == '快'));
        line.field(Kind::Text, "key", &long);
        line.field(Kind::Raw, "number", 123_456);
        assert!(line.buffer.len() <= limits::LOG_LINE_BYTES_MAX + 64);

        let mut line = Line::new(Level::Info, "t", format_args!("m"));
        line.field(Kind::Text, "first", &long);
        line.field(Kind::Raw, "number", 123_456);
        let fields: Vec<_> = line.fields().collect();
        assert_eq!(fields.len(), 1, "half a number is no number");
        assert!(fields[0].2.chars().all(|char| char == '快'));
        assert!(line.buffer.len() <= limits::LOG_LINE_BYTES_MAX + 64);
    }
}
