//! The code of HPACK's strings (RFC 7541, appendix B).
//!
//! The code is canonical: codes of one length are numbered in the order of their symbols, and
//! longer ones follow shorter ones. So this file needs only the lengths, and computes the tables
//! from them at compile time.
//!
//! Decoding looks at eight bits at a time: every letter and digit has a code of eight bits at most,
//! so one lookup decodes it. A longer code is searched for length by length. Either way the work is
//! bounded by the number of bits.

/// Lengths in bits, by symbol; the last is EOS.
#[rustfmt::skip]
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28,
    28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5,
    6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23,
    21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25,
    19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];

const LENGTH_MAX: u32 = 30;

/// Bits that one lookup decodes.
const LOOKUP_BITS: u32 = 8;

/// The tables of the code. The index is the length in bits unless a comment names another.
struct Code {
    first: [u32; LENGTH_MAX as usize + 1],
    count: [u32; LENGTH_MAX as usize + 1],
    /// The places in `symbols` where the symbols of a length begin.
    start: [u32; LENGTH_MAX as usize + 1],
    /// Ordered by length, then by value.
    symbols: [u16; LENGTHS.len()],
    /// Indexed by the next eight bits: symbol and length. A length of 0 means that the code is
    /// longer.
    short: [(u8, u8); 1 << LOOKUP_BITS],
}

static CODE: Code = Code::new();

impl Code {
    const fn new() -> Code {
        let mut code = Code {
            first: [0; LENGTH_MAX as usize + 1],
            count: [0; LENGTH_MAX as usize + 1],
            start: [0; LENGTH_MAX as usize + 1],
            symbols: [0; LENGTHS.len()],
            short: [(0, 0); 1 << LOOKUP_BITS],
        };
        let (mut length, mut next) = (1, 0);
        while length <= LENGTH_MAX as usize {
            code.first[length] = (code.first[length - 1] + code.count[length - 1]) << 1;
            code.start[length] = next as u32;
            let mut symbol = 0;
            while symbol < LENGTHS.len() {
                if LENGTHS[symbol] as usize == length {
                    code.add_short(symbol, length);
                    code.symbols[next] = symbol as u16;
                    code.count[length] += 1;
                    next += 1;
                }
                symbol += 1;
            }
            length += 1;
        }
        code
    }

    /// Enters the next code of this length into `short`, once for each possible end of its eight
    /// bits.
    const fn add_short(&mut self, symbol: usize, length: usize) {
        if length > LOOKUP_BITS as usize {
            return;
        }
        let code = (self.first[length] + self.count[length]) as usize;
        let free = LOOKUP_BITS as usize - length;
        let mut ending = 0;
        while ending < 1 << free {
            self.short[code << free | ending] = (symbol as u8, length as u8);
            ending += 1;
        }
    }

    /// Returns the code at the top of `bits` if it is longer than eight bits.
    fn long(&self, bits: u32) -> Option<(u16, u32)> {
        (LOOKUP_BITS + 1..=LENGTH_MAX).find_map(|length| {
            let offset = (bits >> (32 - length)).checked_sub(self.first[length as usize])?;
            let is_code = offset < self.count[length as usize];
            let at = self.start[length as usize] + offset;
            is_code.then(|| (self.symbols[at as usize], length))
        })
    }
}

/// Appends the decoded text. `false`: the code is wrong, or ends wrongly.
#[must_use]
pub fn decode(coded: &[u8], text: &mut Vec<u8>) -> bool {
    let mut rest = coded.iter();
    // The next bits, from the top; the bits behind them are ones, like those of EOS.
    let (mut bits, mut count) = (u64::MAX, 0);
    loop {
        while count <= 56
            && let Some(&byte) = rest.next()
        {
            let place = 56 - count;
            bits = bits & !(0xff << place) | u64::from(byte) << place;
            count += 8;
        }
        let (symbol, length) = match CODE.short[(bits >> 56) as usize] {
            (_, 0) => match CODE.long((bits >> 32) as u32) {
                // A complete EOS is not allowed in a string. A string may end with the beginning of
                // one.
                Some((256, _)) | None => return count < 8 && is_padding(bits),
                Some((symbol, length)) => (symbol as u8, length),
            },
            (symbol, length) => (symbol, u32::from(length)),
        };
        if length > count {
            // Fewer bits are left than this code has, so they are the beginning of EOS or wrong.
            return count < 8 && is_padding(bits);
        }
        text.push(symbol);
        bits = bits << length | ((1 << length) - 1);
        count -= length;
    }
}

/// Returns whether all remaining bits are ones.
fn is_padding(bits: u64) -> bool {
    bits == u64::MAX
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decoded(coded: &[u8]) -> Option<Vec<u8>> {
        let mut text = Vec::new();
        decode(coded, &mut text).then_some(text)
    }

    /// Encodes bit by bit, from the lengths alone: slow, and independent of the tables above.
    fn encode(text: &[u8]) -> Vec<u8> {
        let code = |symbol: usize| {
            let length = LENGTHS[symbol];
            let key = |other: usize| (LENGTHS[other], other);
            let before = (0..LENGTHS.len()).filter(|&other| key(other) < key(symbol));
            let value: u64 = before
                .map(|other| 1 << (32 - u32::from(LENGTHS[other])))
                .sum();
            (value >> (32 - u32::from(length)), length)
        };
        let (mut bits, mut out) = (Vec::new(), Vec::new());
        for &byte in text {
            let (value, length) = code(byte.into());
            bits.extend((0..length).rev().map(|at| value >> at & 1));
        }
        bits.resize(bits.len().next_multiple_of(8), 1);
        for byte in bits.chunks(8) {
            out.push(byte.iter().fold(0, |value, bit| value << 1 | *bit as u8));
        }
        out
    }

    /// RFC 7541, appendix C.4 and C.6.
    #[test]
    fn the_examples_of_the_rfc() {
        for (coded, text) in [
            (
                &b"\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff"[..],
                "www.example.com",
            ),
            (b"\xa8\xeb\x10\x64\x9c\xbf", "no-cache"),
            (b"\x25\xa8\x49\xe9\x5b\xa9\x7d\x7f", "custom-key"),
            (b"\x25\xa8\x49\xe9\x5b\xb8\xe8\xb4\xbf", "custom-value"),
            (b"\x64\x02", "302"),
            (b"\x64\x0e\xff", "307"),
            (b"\xae\xc3\x77\x1a\x4b", "private"),
            (b"", ""),
        ] {
            assert_eq!(decoded(coded).as_deref(), Some(text.as_bytes()));
        }
    }

    /// Mutations: padding of any bits, of a whole byte, EOS taken for a symbol.
    #[test]
    fn what_is_not_the_code_is_refused() {
        // 'a' is 00011: the three bits that are left must be ones.
        assert_eq!(decoded(&[0b0001_1111]).as_deref(), Some(&b"a"[..]));
        assert_eq!(decoded(&[0b0001_1000]), None);
        assert_eq!(decoded(&[0b0001_1101]), None);
        assert_eq!(decoded(&[0b0001_1111, 0xff]), None);
        assert_eq!(decoded(&[0xff]), None);
        assert_eq!(decoded(&[0xff, 0xff, 0xff, 0xff]), None);
        // EOS, then 'a'.
        assert_eq!(decoded(&[0xff, 0xff, 0xff, 0xfc, 0x1f]), None);
        // A code of 30 bits that is cut off.
        assert_eq!(decoded(&[0xff, 0xff, 0xff]), None);
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded(text in prop::collection::vec(any::<u8>(), 0..40)) {
            prop_assert_eq!(decoded(&encode(&text)), Some(text));
        }

        #[test]
        fn what_is_decoded_was_encoded(coded in prop::collection::vec(any::<u8>(), 0..20)) {
            if let Some(text) = decoded(&coded) {
                prop_assert_eq!(encode(&text), coded);
            }
        }
    }
}
