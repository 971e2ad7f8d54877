//! JSON written by hand, for the response that every request pays for.
//!
//! serde writes every other response. It hands each quote, comma and run of text to its writer one
//! by one and looks at a text byte by byte. Here a text is checked eight bytes at a time and copied
//! in long runs, which makes the whole response several times as fast.
//!
//! Must always write the same as serde would: the tests compare the two.

use std::ops::Range;

use serde::Serialize;

/// A value that a response can contain. serde writes most; the code here writes the frequent ones.
pub trait WriteJson {
    /// Appends the value.
    fn write_json(&self, out: &mut Vec<u8>);
}

impl<T: Serialize> WriteJson for T {
    fn write_json(&self, out: &mut Vec<u8>) {
        let written = serde_json::to_writer(out, self);
        // A vector takes every byte, and the serialized values have neither maps with odd keys nor
        // numbers that JSON lacks.
        debug_assert!(written.is_ok(), "{written:?}");
    }
}

/// Appends a value as JSON.
pub fn write_json(out: &mut Vec<u8>, value: &impl WriteJson) {
    value.write_json(out);
}

/// An object that is being written. The caller must end it explicitly: dropping it does nothing.
pub struct Object<'a> {
    out: &'a mut Vec<u8>,
    is_empty: bool,
}

impl<'a> Object<'a> {
    pub fn begin(out: &'a mut Vec<u8>) -> Object<'a> {
        out.push(b'{');
        Object {
            out,
            is_empty: true,
        }
    }

    /// Begins a member; the caller appends its value. The name must need no escape. Inlined, so
    /// that the compiler knows the name and writes it as a constant.
    #[inline]
    pub fn member(&mut self, name: &str) -> &mut Vec<u8> {
        debug_assert!(name.bytes().all(is_clean));
        if !self.is_empty {
            self.out.push(b',');
        }
        self.is_empty = false;
        self.out.push(b'"');
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b"\":");
        self.out
    }

    pub fn end(self) {
        self.out.push(b'}');
    }
}

/// Appends a text as a JSON string.
pub fn push_text(out: &mut Vec<u8>, text: &str) {
    out.reserve(text.len() + 2);
    out.push(b'"');
    push_content(out, text);
    out.push(b'"');
}

/// Appends a text as a JSON string, of which `out` holds the part between `before` and `after`
/// already, escaped: an escape depends on its byte alone.
pub fn push_text_around(out: &mut Vec<u8>, before: &str, written: Range<usize>, after: &str) {
    out.reserve(before.len() + written.len() + after.len() + 2);
    out.push(b'"');
    push_content(out, before);
    out.extend_from_within(written);
    push_content(out, after);
    out.push(b'"');
}

/// Appends a text with its escapes. Copies eight bytes before it checks them, and cuts off again
/// what must not stay. So ordinary text costs a load, a store and a few bit operations per eight
/// bytes.
fn push_content(out: &mut Vec<u8>, text: &str) {
    let mut rest = text.as_bytes();
    while let Some((word, after)) = rest.split_first_chunk::<8>() {
        out.extend_from_slice(word);
        let clean = clean_bytes(*word);
        if clean == word.len() {
            rest = after;
        } else {
            out.truncate(out.len() - (word.len() - clean));
            push_escaped(out, word[clean]);
            rest = &rest[clean + 1..];
        }
    }
    for &byte in rest {
        if is_clean(byte) {
            out.push(byte)
        } else {
            push_escaped(out, byte)
        }
    }
}

pub fn push_optional_text(out: &mut Vec<u8>, text: Option<&str>) {
    match text {
        Some(text) => push_text(out, text),
        None => out.extend_from_slice(b"null"),
    }
}

pub fn push_number(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// Appends the escape of a byte (RFC 8259, section 7).
fn push_escaped(out: &mut Vec<u8>, byte: u8) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let letter = match byte {
        b'"' | b'\\' => byte,
        b'\n' => b'n',
        b'\r' => b'r',
        b'\t' => b't',
        0x08 => b'b',
        0x0c => b'f',
        _ => {
            let (high, low) = (usize::from(byte >> 4), usize::from(byte & 15));
            out.extend_from_slice(&[b'\\', b'u', b'0', b'0', DIGITS[high], DIGITS[low]]);
            return;
        }
    };
    out.extend_from_slice(&[b'\\', letter]);
}

/// Returns whether a byte is not a quote, a backslash or a control character.
const fn is_clean(byte: u8) -> bool {
    byte >= b' ' && byte != b'"' && byte != b'\\'
}

/// Returns how many bytes come before the first that must be escaped.
///
/// A byte below `n` (up to 128) has its high bit clear and gets it set by subtracting `n`. All
/// eight are subtracted at once. Only a found byte borrows from those above it, so the first one
/// found is correct. A byte that is equal to another becomes 0 by exclusive or, and so is below 1.
fn clean_bytes(word: [u8; 8]) -> usize {
    const fn eight_times(byte: u8) -> u64 {
        u64::from_le_bytes([byte; 8])
    }
    let word = u64::from_le_bytes(word);
    let below = |word: u64, bound: u8| word.wrapping_sub(eight_times(bound)) & !word;
    let equal = |byte: u8| below(word ^ eight_times(byte), 1);
    let found = (below(word, b' ') | equal(b'"') | equal(b'\\')) & eight_times(0x80);
    // If no byte is found, all 64 bits are trailing zeros.
    found.trailing_zeros() as usize / 8
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn written(text: &str) -> String {
        let mut out = Vec::new();
        push_text(&mut out, text);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn each_byte_is_found_at_each_place() {
        for byte in 0..=255u8 {
            let expected = byte < b' ' || byte == b'"' || byte == b'\\';
            assert_eq!(is_clean(byte), !expected, "{byte}");
            for place in 0..8 {
                for others in [b'x', 0x80, 0xff] {
                    let mut word = [others; 8];
                    word[place] = byte;
                    let clean = if expected { place } else { word.len() };
                    assert_eq!(clean_bytes(word), clean, "{byte} at {place}");
                }
            }
        }
    }

    #[test]
    fn an_object_has_its_commas_between_its_members() {
        let mut out = Vec::new();
        let mut object = Object::begin(&mut out);
        push_number(object.member("a"), u64::MAX);
        push_optional_text(object.member("b"), None);
        let mut inner = Object::begin(object.member("c"));
        push_optional_text(inner.member("d"), Some("e"));
        inner.end();
        Object::begin(object.member("f")).end();
        object.end();
        let expected = r#"{"a":18446744073709551615,"b":null,"c":{"d":"e"},"f":{}}"#;
        assert_eq!(out, expected.as_bytes());
    }

    proptest! {
        #[test]
        fn texts_are_written_as_serde_writes_them(
            text in any::<String>(),
            special in "[\u{0}-\u{7f}é]{0,40}",
        ) {
            prop_assert_eq!(written(&text), serde_json::to_string(&text).unwrap());
            prop_assert_eq!(written(&special), serde_json::to_string(&special).unwrap());
        }

        #[test]
        fn a_part_that_is_written_already_is_not_escaped_again(
            parts in prop::array::uniform3("[\u{0}-\u{7f}é]{0,20}"),
        ) {
            let [before, part, after] = &parts;
            let mut out = Vec::new();
            push_text(&mut out, part);
            let start = out.len();
            push_text_around(&mut out, before, 1..start - 1, after);
            let whole = serde_json::to_string(&parts.concat()).unwrap();
            prop_assert_eq!(&out[start..], whole.as_bytes());
        }
    }
}
