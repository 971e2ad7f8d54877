//! How much a field block changes the compression table, without decompressing it.
//!
//! HPACK lets a client put fields into the server's dynamic table (RFC 7541, section 2.3.2). A few
//! in each request is how it is meant; hundreds that push one another out again, or table sizes
//! that go up and down, are work for nothing. h2 decodes the block and does not say what was in it,
//! so this walks over its representations (section 6): a prefix tells each one's kind, and lengths
//! tell where the next begins. No string is decoded.
//!
//! Nothing is refused here: what is wrong in a block is h2's to find, and the count of such a block
//! means nothing.
//!
//! Invariant: the same bytes give the same count, wherever they are cut.

use crate::limits::HTTP2_INSERTIONS_FREE;

/// One field block, from its first byte on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldBlock {
    state: State,
    insertions: u32,
    churn: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// A representation begins.
    #[default]
    Start,
    /// The rest of an integer that nobody needs, then so many strings.
    Integer { strings: u8 },
    /// A string's length begins; this many strings are left, this one included.
    Length { strings: u8 },
    /// The length goes on: what has come of it, and the place of the next seven bits.
    LengthRest { value: u32, shift: u8, strings: u8 },
    /// A string's bytes.
    Text { bytes: u32, strings: u8 },
}

impl FieldBlock {
    /// What is more than a request has use for: every change of the table's size, which a client
    /// needs once or twice in a connection (RFC 7541, section 4.2), and fields that are put into
    /// the table after the first [`HTTP2_INSERTIONS_FREE`] of the block.
    pub fn churn(&self) -> u32 {
        self.churn
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
            State::Start => self.begin(byte),
            State::Integer { strings } => match byte & 0x80 {
                0 => before_string(strings),
                _ => self.state,
            },
            State::Length { strings } => match byte & 0x7f {
                0x7f => State::LengthRest {
                    value: 0x7f,
                    shift: 0,
                    strings,
                },
                length => text(length.into(), strings),
            },
            State::LengthRest {
                value,
                shift,
                strings,
            } => {
                // What does not fit is longer than any block: h2 refuses it.
                let bits = u32::from(byte & 0x7f)
                    .checked_shl(shift.into())
                    .unwrap_or(0);
                let value = value.saturating_add(bits);
                match byte & 0x80 {
                    0 => text(value, strings),
                    _ => State::LengthRest {
                        value,
                        shift: shift.saturating_add(7),
                        strings,
                    },
                }
            }
            State::Text { .. } => self.state,
        }
    }

    /// The first byte of a representation (RFC 7541, section 6).
    fn begin(&mut self, byte: u8) -> State {
        let (prefix, is_literal) = match byte.leading_zeros() {
            // Indexed.
            0 => (0x7f, false),
            // Literal, and into the table with it.
            1 => {
                self.insertions += 1;
                self.churn += u32::from(self.insertions > HTTP2_INSERTIONS_FREE);
                (0x3f, true)
            }
            // Another table size.
            2 => {
                self.churn += 1;
                (0x1f, false)
            }
            // Literal, and forgotten.
            _ => (0x0f, true),
        };
        let index = byte & prefix;
        let strings = match (is_literal, index) {
            (false, _) => 0,
            // The name comes as well.
            (true, 0) => 2,
            (true, _) => 1,
        };
        match index == prefix {
            true => State::Integer { strings },
            false => before_string(strings),
        }
    }
}

fn before_string(strings: u8) -> State {
    match strings {
        0 => State::Start,
        _ => State::Length { strings },
    }
}

fn after_string(strings: u8) -> State {
    before_string(strings.saturating_sub(1))
}

fn text(bytes: u32, strings: u8) -> State {
    match bytes {
        0 => after_string(strings),
        _ => State::Text { bytes, strings },
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
        let free = HTTP2_INSERTIONS_FREE as usize;
        assert_eq!(walked(&insertion.repeat(free)).churn(), 0);
        assert_eq!(walked(&insertion.repeat(free + 5)).churn(), 5);
        assert_eq!(walked(&[0x20, 0x3f, 0xe1, 0x1f, 0x82]).churn(), 2);
    }

    proptest! {
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
