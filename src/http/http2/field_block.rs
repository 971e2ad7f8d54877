//! What a field block changes in the compression table, and whether it holds a pseudo-field,
//! without decompressing it.
//!
//! HPACK lets a client put fields into the server's dynamic table (RFC 7541, section 2.3.2). A few
//! in each request is how it is meant; hundreds that push one another out again, or table sizes
//! that go up and down, are work for nothing. h2 decodes the block and does not say what was in it,
//! so this walks over its representations (section 6): a prefix tells each one's kind, and lengths
//! tell where the next begins. No string is decoded.
//!
//! A pseudo-field is told by its name's first character, which is `:` in these alone (RFC 9113,
//! section 8.3). For names in the dynamic table one bit each is kept. The table's size need not be
//! followed for that: an index counts from the newest entry, and an entry that is put into the
//! table leaves it only after all older ones (RFC 7541, sections 2.3.3 and 4.3). So the n-th entry,
//! where there is one, is the n-th that was put in, from the last one backwards.
//!
//! Nothing is refused here: what is wrong in a block is h2's to find, and what is told of such a
//! block means nothing.
//!
//! Invariant: the same bytes give the same result, wherever they are cut.

use crate::limits::http2 as limits;

/// The field blocks of a connection, one after the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldBlock {
    state: State,
    kind: Kind,
    /// The string whose length came last is coded by Huffman's code.
    is_huffman: bool,
    insertions: u32,
    churn: u32,
    has_pseudo_field: bool,
    /// Of the names that were put into the table, whether they are those of pseudo-fields. The
    /// newest is the lowest bit.
    pseudo_names: u128,
}

/// An entry counts for 32 bytes more than its strings have (RFC 7541, section 4.1).
const ENTRIES_MAX: u32 = limits::HEADER_TABLE_BYTES / 32;
const _: () = assert!(ENTRIES_MAX <= u128::BITS);

/// RFC 7541, appendix A: `:authority`, `:method`, `:path`, `:scheme` and `:status` come first.
const STATIC_PSEUDO_FIELD_LAST: u32 = 14;
const STATIC_FIELD_FIRST: u32 = STATIC_PSEUDO_FIELD_LAST + 1;
const STATIC_LAST: u32 = 61;

/// What `:` is in Huffman's code (RFC 7541, appendix B): seven bits, so it is in the first byte.
const HUFFMAN_COLON: u8 = 0b101_1100;

/// What the present representation is (RFC 7541, section 6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Kind {
    #[default]
    TableSize,
    Indexed,
    /// Literal, and into the table with it.
    Insertion,
    /// Literal, and forgotten.
    Literal,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// A representation begins.
    #[default]
    Start,
    /// The rest of an index or a table size: what has come of it, and the place of the next seven
    /// bits.
    Integer { value: u32, shift: u8 },
    /// A string's length begins; this many strings are left, this one included. The first of two
    /// is a name.
    Length { strings: u8 },
    /// The length goes on.
    LengthRest { value: u32, shift: u8, strings: u8 },
    /// The first byte of a name of so many.
    Name { bytes: u32 },
    /// A string's bytes.
    Text { bytes: u32, strings: u8 },
}

impl FieldBlock {
    /// What is more than a request has use for: every change of the table's size, which a client
    /// needs once or twice in a connection (RFC 7541, section 4.2), and fields that are put into
    /// the table after the first [`limits::FREE_INSERTIONS_MAX`] of the block.
    pub fn churn(&self) -> u32 {
        self.churn
    }

    /// Whether a field of the block so far is a pseudo-field.
    pub fn has_pseudo_field(&self) -> bool {
        self.has_pseudo_field
    }

    /// The next block of the connection. The table stays.
    pub fn begin(&mut self) {
        *self = FieldBlock {
            pseudo_names: self.pseudo_names,
            ..FieldBlock::default()
        };
    }

    pub fn handle(&mut self, bytes: &[u8]) {
        let mut at = 0;
        while at < bytes.len() {
            if let State::Text {
                bytes: left,
                strings,
            } = self.state
            {
                let skipped = (left as usize).min(bytes.len() - at);
                at += skipped;
                self.state = match left - skipped as u32 {
                    0 => after_string(strings),
                    bytes => State::Text { bytes, strings },
                };
                continue;
            }
            self.state = self.handle_byte(bytes[at]);
            at += 1;
        }
    }

    fn handle_byte(&mut self, byte: u8) -> State {
        match self.state {
            State::Start => self.begin_representation(byte),
            State::Integer { value, shift } => {
                let value = with_seven_bits(value, shift, byte);
                match byte & 0x80 {
                    0 => self.handle_integer(value),
                    _ => State::Integer {
                        value,
                        shift: shift.saturating_add(7),
                    },
                }
            }
            State::Length { strings } => {
                self.is_huffman = byte & 0x80 != 0;
                match byte & 0x7f {
                    0x7f => State::LengthRest {
                        value: 0x7f,
                        shift: 0,
                        strings,
                    },
                    length => self.begin_string(length.into(), strings),
                }
            }
            State::LengthRest {
                value,
                shift,
                strings,
            } => {
                let value = with_seven_bits(value, shift, byte);
                match byte & 0x80 {
                    0 => self.begin_string(value, strings),
                    _ => State::LengthRest {
                        value,
                        shift: shift.saturating_add(7),
                        strings,
                    },
                }
            }
            State::Name { bytes } => {
                self.handle_name(match self.is_huffman {
                    true => byte >> 1 == HUFFMAN_COLON,
                    false => byte == b':',
                });
                match bytes - 1 {
                    0 => after_string(2),
                    bytes => State::Text { bytes, strings: 2 },
                }
            }
            State::Text { .. } => self.state,
        }
    }

    /// The first byte of a representation.
    fn begin_representation(&mut self, byte: u8) -> State {
        let (kind, prefix) = match byte.leading_zeros() {
            0 => (Kind::Indexed, 0x7f),
            1 => (Kind::Insertion, 0x3f),
            2 => (Kind::TableSize, 0x1f),
            _ => (Kind::Literal, 0x0f),
        };
        self.kind = kind;
        match kind {
            Kind::Insertion => {
                self.insertions += 1;
                self.churn += u32::from(self.insertions > limits::FREE_INSERTIONS_MAX);
            }
            Kind::TableSize => self.churn += 1,
            Kind::Indexed | Kind::Literal => {}
        }
        let value = byte & prefix;
        match value == prefix {
            true => State::Integer {
                value: value.into(),
                shift: 0,
            },
            false => self.handle_integer(value.into()),
        }
    }

    /// The integer that each representation begins with.
    fn handle_integer(&mut self, value: u32) -> State {
        match self.kind {
            Kind::TableSize => State::Start,
            Kind::Indexed => {
                self.handle_name(self.is_pseudo_name(value));
                State::Start
            }
            // The name comes as well.
            Kind::Insertion | Kind::Literal if value == 0 => State::Length { strings: 2 },
            Kind::Insertion | Kind::Literal => {
                self.handle_name(self.is_pseudo_name(value));
                State::Length { strings: 1 }
            }
        }
    }

    fn begin_string(&mut self, bytes: u32, strings: u8) -> State {
        match (bytes, strings) {
            (0, 2) => {
                self.handle_name(false);
                after_string(strings)
            }
            (0, _) => after_string(strings),
            (_, 2) => State::Name { bytes },
            (_, _) => State::Text { bytes, strings },
        }
    }

    /// What kind of name the present field has.
    fn handle_name(&mut self, is_pseudo: bool) {
        self.has_pseudo_field |= is_pseudo;
        if self.kind == Kind::Insertion {
            self.pseudo_names = self.pseudo_names << 1 | u128::from(is_pseudo);
        }
    }

    /// Whether an entry of the tables has the name of a pseudo-field; `false` for what is none.
    fn is_pseudo_name(&self, index: u32) -> bool {
        match index {
            1..=STATIC_PSEUDO_FIELD_LAST => true,
            0 | STATIC_FIELD_FIRST..=STATIC_LAST => false,
            _ => {
                let names = self.pseudo_names.checked_shr(index - STATIC_LAST - 1);
                names.is_some_and(|names| names & 1 == 1)
            }
        }
    }
}

/// An integer with seven bits more (RFC 7541, section 5.1). What does not fit is longer than any
/// block, or an index of no table: h2 refuses it.
fn with_seven_bits(value: u32, shift: u8, byte: u8) -> u32 {
    let bits = u32::from(byte & 0x7f).checked_shl(shift.into());
    value.saturating_add(bits.unwrap_or(0))
}

/// `strings`: how many were left before one has ended.
fn after_string(strings: u8) -> State {
    match strings {
        0 | 1 => State::Start,
        _ => State::Length {
            strings: strings - 1,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn walked(bytes: &[u8]) -> FieldBlock {
        let mut block = FieldBlock::default();
        block.handle(bytes);
        block
    }

    fn bytes(hex: &str) -> Vec<u8> {
        let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
        let pair =
            |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
        digits.chunks(2).map(pair).collect()
    }

    /// The index of an entry of the dynamic table.
    fn indexed(kind: u8, prefix: u8, place: usize) -> Vec<u8> {
        let index = place + STATIC_LAST as usize + 1;
        match index.checked_sub(prefix.into()) {
            None => vec![kind | index as u8],
            Some(rest) if rest < 0x80 => vec![kind | prefix, rest as u8],
            Some(rest) => vec![kind | prefix, 0x80 | (rest & 0x7f) as u8, (rest >> 7) as u8],
        }
    }

    #[test]
    fn the_examples_of_the_rfc_are_walked_to_their_ends() {
        // RFC 7541, appendix C: block, and the fields that it puts into the table.
        for (hex, insertions) in [
            (
                "400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572",
                1,
            ),
            ("040c 2f73 616d 706c 652f 7061 7468", 0),
            ("1008 7061 7373 776f 7264 0673 6563 7265 74", 0),
            ("82", 0),
            ("8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d", 1),
            ("8286 84be 5808 6e6f 2d63 6163 6865", 1),
            (
                "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
                1,
            ),
            ("8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff", 1),
        ] {
            let block = walked(&bytes(hex));
            assert_eq!(
                (block.insertions, block.state),
                (insertions, State::Start),
                "{hex}"
            );
            assert_eq!(block.churn(), 0, "{hex}");
        }
    }

    #[test]
    fn long_integers_and_empty_strings_are_walked_over() {
        // An index and a length of several bytes each: 0x7f + 0x80 + 2 bytes of text.
        let long = [
            &[0x7f, 0x80, 0x01, 0x7f, 0x83, 0x01][..],
            &[b'x'; 0x102],
            &[0x82],
        ]
        .concat();
        let block = walked(&long);
        assert_eq!((block.insertions, block.state), (1, State::Start));
        let empty = walked(&[0x40, 0, 0, 0x40, 0, 0]);
        assert_eq!((empty.insertions, empty.state), (2, State::Start));
    }

    #[test]
    fn what_a_request_needs_is_no_churn_and_more_is() {
        let insertion = [0x41, 1, b'x'];
        let free = limits::FREE_INSERTIONS_MAX as usize;
        assert_eq!(walked(&insertion.repeat(free)).churn(), 0);
        assert_eq!(walked(&insertion.repeat(free + 5)).churn(), 5);
        assert_eq!(walked(&[0x20, 0x3f, 0xe1, 0x1f, 0x82]).churn(), 2);
    }

    /// Mutations that this test catches: 7 for the last static pseudo-field, `:` sought in the
    /// second byte, and the bit of an insertion left out.
    #[test]
    fn pseudo_fields_are_known_in_every_representation() {
        for (block, expected) in [
            (&[0x81][..], true),
            (&[0x84], true),
            (&[0x8e], true),
            (&[0x8f], false),
            (&[0xbd], false),
            (&[0x80], false),
            // Literals: the name's index in one byte, and in two.
            (&[0x04, 1, b'/'], true),
            (&[0x0f, 0, 1, b'x'], false),
            (&[0x14, 1, b'/'], true),
            // The name as text, plain and coded; `x:`, and no name.
            (&[0x00, 2, b':', b'x', 1, b'v'], true),
            (&[0x10, 1, b':', 1, b'v'], true),
            (&[0x00, 2, b'x', b':', 1, b':'], false),
            (&[0x00, 0, 1, b':'], false),
            (&[0x00, 0x84, 0xb9, 0x58, 0xd3, 0x3f, 1, b'/'], true),
            (&[0x00, 0x82, 0xf2, 0xb2, 1, b'/'], false),
            // A table's size is no index.
            (&[0x24], false),
        ] {
            assert_eq!(walked(block).has_pseudo_field(), expected, "{block:x?}");
        }
    }

    #[test]
    fn pseudo_fields_are_known_from_the_dynamic_table() {
        let mut connection = walked(&[0x44, 1, b'/', 0x40, 1, b'x', 1, b':']);
        let mut has_pseudo_field = |block: &[u8]| {
            connection.begin();
            connection.handle(block);
            connection.has_pseudo_field()
        };
        // 62 is `x`, 63 is `:path`.
        assert!(!has_pseudo_field(&[0xbe]));
        assert!(has_pseudo_field(&[0xbf]));
        // A new entry with the name of the older: then it is 62, and the others move on.
        assert!(has_pseudo_field(&[0x7f, 0, 1, b'y']));
        assert!(has_pseudo_field(&[0xbe]));
        assert!(!has_pseudo_field(&[0xbf]));
        assert!(has_pseudo_field(&[0xc0]));
        // Another size changes no order, and an index of nothing is nothing.
        assert!(!has_pseudo_field(&[0x20, 0x3f, 0xe1, 0x1f, 0xbf]));
        assert!(!has_pseudo_field(&[0xff, 0xff, 0x07]));
    }

    proptest! {
        /// Against a table that is a list. No entry has more than 40 bytes, so all of them fit.
        #[test]
        fn names_of_the_dynamic_table_agree_with_a_list(
            steps in prop::collection::vec(
                (0_u8..5, any::<bool>(), any::<prop::sample::Index>()), 1..90),
        ) {
            let mut connection = FieldBlock::default();
            let mut table: Vec<bool> = Vec::new();
            for (kind, is_pseudo, place) in steps {
                let colon = if is_pseudo { b':' } else { b'x' };
                let place = (!table.is_empty()).then(|| place.index(table.len()));
                let (block, expected) = match (kind, place) {
                    // Insertions: a new name, and the name of an entry.
                    (0, _) => (vec![0x40, 2, colon, b'x', 1, b'v'], is_pseudo),
                    (1, Some(place)) => ([indexed(0x40, 0x3f, place), vec![1, b'v']].concat(),
                        table[place]),
                    (2, Some(place)) => ([indexed(0x00, 0x0f, place), vec![1, b'v']].concat(),
                        table[place]),
                    (3, Some(place)) => (indexed(0x80, 0x7f, place), table[place]),
                    _ => (vec![0x00, 2, colon, b'x', 1, b'v'], is_pseudo),
                };
                connection.begin();
                connection.handle(&block);
                prop_assert_eq!(connection.has_pseudo_field(), expected);
                if block[0] & 0xc0 == 0x40 {
                    table.insert(0, expected);
                }
            }
        }

        #[test]
        fn any_bytes_cut_anywhere_give_the_same_count(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let mut block = FieldBlock::default();
            cuts.windows(2).for_each(|cut| block.handle(&bytes[cut[0]..cut[1]]));
            prop_assert_eq!(block, walked(&bytes));
        }
    }
}
