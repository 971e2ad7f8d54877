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
        self.lines.extend_from_slice(value.as_bytes());
        if may_have_controls(value.as_bytes()) {
            let start = self.lines.len() - value.len();
            replace_controls(&mut self.lines[start..]);
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

/// Returns whether a value has control characters, of which the tab is one.
///
/// Eight bytes at a time: a byte below 32 has its high bit clear and gets it set by subtracting 32.
/// One that is 0x7f becomes 0 by exclusive or, and gets its high bit set by subtracting 1. A byte
/// above one that was found may be found as well, so the place of the first is not known.
fn may_have_controls(value: &[u8]) -> bool {
    const fn eight_times(byte: u8) -> u64 {
        u64::from_le_bytes([byte; 8])
    }
    let (words, rest) = value.as_chunks::<8>();
    let found = words.iter().fold(0, |found, word| {
        let word = u64::from_le_bytes(*word);
        let deletes = word ^ eight_times(0x7f);
        let low = word.wrapping_sub(eight_times(b' ')) & !word;
        found | low | deletes.wrapping_sub(eight_times(1)) & !deletes
    });
    found & eight_times(0x80) != 0 || rest.iter().any(u8::is_ascii_control)
}

#[cold]
fn replace_controls(value: &mut [u8]) {
    let bytes = value.iter_mut();
    let controls = bytes.filter(|byte| byte.is_ascii_control() && **byte != b'\t');
    controls.for_each(|byte| *byte = b' ');
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mutations that this test catches: `b' '` as 31 or 33 in `may_have_controls`, 0x7f as 0x7e,
    /// `rest` left out.
    #[test]
    fn no_value_can_end_its_line() {
        for length in 0..20 {
            for place in 0..length {
                for byte in 0..=0x7f {
                    for others in ["x", " ", "~"] {
                        let mut value = others.repeat(length).into_bytes();
                        value[place] = byte;
                        let mut fields = Fields::new();
                        fields.push("a", std::str::from_utf8(&value).unwrap());
                        if byte.is_ascii_control() && byte != b'\t' {
                            value[place] = b' ';
                        }
                        assert_eq!(fields.lines(), [b"a: ", &value[..], b"\r\n"].concat());
                        let common = others.as_bytes()[0];
                        let is_found = may_have_controls(&value);
                        assert_eq!(is_found, value[place] == b'\t', "{common} {byte}");
                    }
                }
            }
        }
        let mut fields = Fields::new();
        fields.push("a", "é\u{85}\u{7f}\u{80}");
        assert_eq!(fields.lines(), "a: é\u{85} \u{80}\r\n".as_bytes());
    }
}
