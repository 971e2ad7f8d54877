//! Encodes fields into a field block: indices of the static table, and literals that no table
//! keeps.

use super::table::static_name;

const STATUS: u32 = 8;
const DATE: u32 = 33;
const CONTENT_LENGTH: u32 = 28;
const CONTENT_TYPE: u32 = 31;

/// Announces to the peer that the encoder's table has no room (RFC 7541, section 6.3). This is due
/// once, at the beginning of a block, after the peer has bounded the table below the default; the
/// table has never held anything, and no later bound is below zero.
pub fn empty_table(block: &mut Vec<u8>) {
    block.push(0x20);
}

/// Writes `:status`, which always comes first (RFC 9113, section 8.3).
pub fn status(block: &mut Vec<u8>, status: u16) {
    let index = match status {
        200 => 8,
        204 => 9,
        206 => 10,
        304 => 11,
        400 => 12,
        404 => 13,
        500 => 14,
        _ => {
            let mut digits = itoa::Buffer::new();
            return named(block, STATUS, digits.format(status).as_bytes());
        }
    };
    block.push(0x80 | index);
}

pub fn date(block: &mut Vec<u8>, date: &[u8; 29]) {
    named(block, DATE, date);
}

pub fn content_type(block: &mut Vec<u8>, value: &str) {
    named(block, CONTENT_TYPE, value.as_bytes());
}

pub fn content_length(block: &mut Vec<u8>, bytes: usize) {
    let mut digits = itoa::Buffer::new();
    named(block, CONTENT_LENGTH, digits.format(bytes).as_bytes());
}

/// Writes any field. Names are lower case and values hold no control character: `Fields::push`
/// checks that.
pub fn field(block: &mut Vec<u8>, name: &str, value: &[u8]) {
    match static_name(name) {
        Some(index) => named(block, index, value),
        None => {
            block.push(0);
            string(block, name.as_bytes());
            string(block, value);
        }
    }
}

/// Writes a literal without indexing, whose name is given by a static index (RFC 7541, section
/// 6.2.2).
fn named(block: &mut Vec<u8>, name: u32, value: &[u8]) {
    integer(block, 0, 4, name);
    string(block, value);
}

/// Writes a string without Huffman's code (RFC 7541, section 5.2).
fn string(block: &mut Vec<u8>, text: &[u8]) {
    integer(block, 0, 7, text.len() as u32);
    block.extend_from_slice(text);
}

/// RFC 7541, section 5.1.
fn integer(block: &mut Vec<u8>, pattern: u8, prefix_bits: u32, value: u32) {
    let most = (1 << prefix_bits) - 1;
    if value < most {
        return block.push(pattern | value as u8);
    }
    block.push(pattern | most as u8);
    let mut rest = value - most;
    while rest >= 0x80 {
        block.push(0x80 | rest as u8);
        rest >>= 7;
    }
    block.push(rest as u8);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Decoder, FieldList};
    use super::*;

    /// RFC 7541, appendix C.1.
    #[test]
    fn the_integers_of_the_rfc() {
        let encoded = |bits, value| {
            let mut block = Vec::new();
            integer(&mut block, 0, bits, value);
            block
        };
        assert_eq!(encoded(5, 10), [0b0_1010]);
        assert_eq!(encoded(5, 1337), [0b1_1111, 0b1001_1010, 0b1010]);
        assert_eq!(encoded(8, 42), [42]);
        assert_eq!(encoded(7, 127), [0x7f, 0]);
    }

    #[test]
    fn statuses_are_one_byte_where_the_table_has_them() {
        for (code, length) in [(200, 1), (404, 1), (500, 1), (431, 5), (100, 5)] {
            let (mut block, mut list) = (Vec::new(), FieldList::default());
            empty_table(&mut block);
            status(&mut block, code);
            assert_eq!(block.len() - 1, length, "{code}");
            Decoder::default().decode(&block, &mut list).unwrap();
            let text = code.to_string();
            let expected = (&b":status"[..], text.as_bytes());
            assert_eq!(list.iter().collect::<Vec<_>>(), [expected]);
        }
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(
            fields in prop::collection::vec(
                ("[a-z-]{1,20}|vary|date|server", "[ -~]{0,300}"), 0..8),
        ) {
            let (mut block, mut list) = (Vec::new(), FieldList::default());
            for (name, value) in &fields {
                field(&mut block, name, value.as_bytes());
            }
            Decoder::default().decode(&block, &mut list).unwrap();
            let fields = fields.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes()));
            prop_assert_eq!(list.iter().collect::<Vec<_>>(), fields.collect::<Vec<_>>());
        }
    }
}
