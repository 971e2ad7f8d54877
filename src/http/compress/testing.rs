//! The most expensive input for a deflate decoder: blocks that consist of code tables alone.
//!
//! Used by the tests of the decoder and, by its path, by tests of the whole daemon.

/// Packs bits into bytes, the lowest first (RFC 1951, section 3.1.1).
struct Bits {
    bytes: Vec<u8>,
    pending: u32,
    count: u32,
}

impl Bits {
    fn push(&mut self, value: u32, count: u32) {
        self.pending |= value << self.count;
        self.count += count;
        while self.count >= 8 {
            self.bytes.push(self.pending as u8);
            self.pending >>= 8;
            self.count -= 8;
        }
    }

    /// Writes `symbol` the given number of times in the code of the code lengths: 0, 8, 9 and 16
    /// (repeat three to six times) have two bits each, written highest first.
    fn push_lengths(&mut self, symbol: u32, mut times: u32) {
        let code = [(0, 0b00), (8, 0b10), (9, 0b01)];
        let (_, code) = code
            .into_iter()
            .find(|(known, _)| *known == symbol)
            .unwrap();
        self.push(code, 2);
        times -= 1;
        while times >= 3 {
            let repeated = if times > 6 && times < 9 {
                3
            } else {
                times.min(6)
            };
            self.push(0b11, 2);
            self.push(repeated - 3, 2);
            times -= repeated;
        }
        for _ in 0..times {
            self.push(code, 2);
        }
    }
}

/// Appends `blocks` deflate blocks to `head`. Each consists of the tables of 286 symbols and the
/// end of the block, in about 33 bytes. A mebibyte of them decodes to nothing, and its 32,000
/// tables take 280 ms where text takes 10. The stream has no end: the last block is missing.
pub fn code_tables(head: &[u8], blocks: usize) -> Vec<u8> {
    let mut bits = Bits {
        bytes: head.to_vec(),
        pending: 0,
        count: 0,
    };
    for _ in 0..blocks {
        // Not the last, dynamic; 286 literals and lengths, one distance, seven code lengths.
        for (value, count) in [(0, 1), (2, 2), (29, 5), (0, 5), (3, 4)] {
            bits.push(value, count);
        }
        // In the order 16, 17, 18, 0, 8, 7, 9.
        for length in [2, 0, 0, 2, 2, 0, 2] {
            bits.push(length, 3);
        }
        // 226 codes of 8 bits and 60 of 9 bits fill the tree; there is no distance.
        bits.push_lengths(8, 226);
        bits.push_lengths(9, 60);
        bits.push_lengths(0, 1);
        // The end of the block is the 31st code of 9 bits: 482, highest bit first.
        bits.push(482_u32.reverse_bits() >> (32 - 9), 9);
    }
    bits.bytes
}
