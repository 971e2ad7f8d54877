//! The header fields of a response, written once for every protocol.
//!
//! Owns their buffer, and the promise that no value can end its line.

use std::ops::Range;

/// Field lines of a response, in one reusable buffer.
///
/// Names are lower case and values are visible ASCII, space or tab: [`Fields::push`] checks it. The
/// buffer holds the lines as HTTP/1.1 sends them, so that one copy takes them all.
#[derive(Clone, Debug, Default)]
pub struct Fields {
    /// `name: value CRLF`, once per field.
    lines: Vec<u8>,
    /// Each field's name, and where its line ends in `lines`.
    ends: Vec<(&'static str, u32)>,
}

const AFTER_NAME: &[u8] = b": ";
const AFTER_VALUE: &[u8] = b"\r\n";

impl Fields {
    pub const fn new() -> Fields {
        Fields {
            lines: Vec::new(),
            ends: Vec::new(),
        }
    }

    pub fn clear(&mut self) {
        self.lines.clear();
        self.ends.clear();
    }

    /// Adds a field. Bytes that would break the framing (CR, LF, NUL and other controls) become
    /// spaces: a value may come from outside, and response splitting must be impossible here.
    #[inline]
    pub fn push(&mut self, name: &'static str, value: &str) {
        debug_assert!(
            name.bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        );
        self.lines.extend_from_slice(name.as_bytes());
        self.lines.extend_from_slice(AFTER_NAME);
        let value_start = self.lines.len();
        self.lines.extend_from_slice(value.as_bytes());
        for byte in &mut self.lines[value_start..] {
            if *byte < b' ' && *byte != b'\t' || *byte == 0x7f {
                *byte = b' ';
            }
        }
        self.lines.extend_from_slice(AFTER_VALUE);
        self.ends.push((name, self.lines.len() as u32));
    }

    /// Adds a field whose value is a decimal number.
    pub fn push_number(&mut self, name: &'static str, value: u64) {
        self.push(name, itoa::Buffer::new().format(value));
    }

    /// Returns all fields as HTTP/1.1 sends them, each with its line end.
    pub fn lines(&self) -> &[u8] {
        &self.lines
    }

    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &[u8])> {
        self.spans().map(|(name, span)| (name, &self.lines[span]))
    }

    /// Yields each name, and the range of its value in [`Fields::lines`].
    pub fn spans(&self) -> impl Iterator<Item = (&'static str, Range<usize>)> {
        let mut start = 0;
        self.ends.iter().map(move |&(name, end)| {
            let end = end as usize;
            let value = start + name.len() + AFTER_NAME.len()..end - AFTER_VALUE.len();
            start = end;
            (name, value)
        })
    }
}
