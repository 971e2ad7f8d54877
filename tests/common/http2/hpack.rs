//! HPACK (RFC 7541): an encoder that can also encode wrongly, and a strict decoder.
//!
//! The encoder is a set of functions that append nothing to a table: each returns the bytes of one
//! representation, right or wrong, and a test combines them. The decoder keeps the state that the
//! responses of one connection need and refuses what the RFC refuses.

use std::collections::VecDeque;

/// Lengths in bits of the codes of Appendix B, by symbol; the last is EOS. The code is canonical,
/// so its lengths define it: codes of a length are in the order of their symbols.
const HUFFMAN_LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28,
    28, 28, 28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5,
    5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6,
    6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22,
    23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22,
    21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20,
    22, 22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19,
    21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22,
    22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, 30,
];

const EOS: usize = 256;

/// Appendix A.
const STATIC_TABLE: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];

/// The first index of the dynamic table: section 2.3.3.
pub const DYNAMIC_FIRST: u64 = STATIC_TABLE.len() as u64 + 1;
/// Section 4.2, and SETTINGS_HEADER_TABLE_SIZE of RFC 9113.
pub const TABLE_BYTES_DEFAULT: usize = 4_096;
/// The cost of an entry beside its name and value: section 4.1.
pub const ENTRY_OVERHEAD: usize = 32;

// ---- encoding ----------------------------------------------------------------------------------

/// Section 5.1. `first` holds the bits before the prefix.
pub fn integer(first: u8, prefix_bits: u8, value: u64) -> Vec<u8> {
    let most = (1u64 << prefix_bits) - 1;
    if value < most {
        return vec![first | value as u8];
    }
    let mut bytes = vec![first | most as u8];
    let mut rest = value - most;
    while rest >= 128 {
        bytes.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    bytes.push(rest as u8);
    bytes
}

/// Section 5.2, not Huffman-coded.
pub fn string(text: impl AsRef<[u8]>) -> Vec<u8> {
    let text = text.as_ref();
    [integer(0, 7, text.len() as u64), text.to_vec()].concat()
}

/// Section 5.2, Huffman-coded.
pub fn huffman_string(text: impl AsRef<[u8]>) -> Vec<u8> {
    huffman_raw(&huffman(text.as_ref()))
}

/// A string that claims to be Huffman-coded, of any bytes.
pub fn huffman_raw(coded: &[u8]) -> Vec<u8> {
    [integer(0x80, 7, coded.len() as u64), coded.to_vec()].concat()
}

/// Section 6.1.
pub fn indexed(index: u64) -> Vec<u8> {
    integer(0x80, 7, index)
}

/// Section 6.2.1, with a new name.
pub fn literal_indexed(name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Vec<u8> {
    [vec![0x40], string(name), string(value)].concat()
}

/// Section 6.2.1, with the name of an entry.
pub fn literal_indexed_name(index: u64, value: impl AsRef<[u8]>) -> Vec<u8> {
    [integer(0x40, 6, index), string(value)].concat()
}

/// Section 6.2.2, with a new name.
pub fn literal(name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Vec<u8> {
    [vec![0], string(name), string(value)].concat()
}

/// Section 6.2.2, with the name of an entry.
pub fn literal_name(index: u64, value: impl AsRef<[u8]>) -> Vec<u8> {
    [integer(0, 4, index), string(value)].concat()
}

/// Section 6.2.3, with a new name.
pub fn literal_never(name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Vec<u8> {
    [vec![0x10], string(name), string(value)].concat()
}

/// Section 6.2.3, with the name of an entry.
pub fn literal_never_name(index: u64, value: impl AsRef<[u8]>) -> Vec<u8> {
    [integer(0x10, 4, index), string(value)].concat()
}

/// Section 6.3.
pub fn size_update(bytes: u64) -> Vec<u8> {
    integer(0x20, 5, bytes)
}

/// A list of fields as literals that touch no table.
pub fn fields(list: &[(&str, &str)]) -> Vec<u8> {
    let literals = list.iter().map(|(name, value)| literal(name, value));
    literals.collect::<Vec<_>>().concat()
}

/// Returns the code of `text`, padded with the beginning of EOS as section 5.2 requires.
pub fn huffman(text: &[u8]) -> Vec<u8> {
    let symbols = text.iter().map(|&byte| usize::from(byte));
    pack(symbols, true)
}

/// Returns the code of `text` and of EOS itself, which an encoder must not send.
pub fn huffman_with_eos(text: &[u8]) -> Vec<u8> {
    let symbols = text.iter().map(|&byte| usize::from(byte));
    pack(symbols.chain([EOS]), true)
}

/// Returns the code of `text`, padded with zeros: an error.
pub fn huffman_zero_padded(text: &[u8]) -> Vec<u8> {
    let symbols = text.iter().map(|&byte| usize::from(byte));
    pack(symbols, false)
}

fn pack(symbols: impl Iterator<Item = usize>, ones: bool) -> Vec<u8> {
    let codes = huffman_codes();
    let mut bits: Vec<bool> = Vec::new();
    for symbol in symbols {
        let length = HUFFMAN_LENGTHS[symbol];
        bits.extend((0..length).rev().map(|at| codes[symbol] >> at & 1 == 1));
    }
    bits.resize(bits.len().next_multiple_of(8), ones);
    let byte = |bits: &[bool]| bits.iter().fold(0, |byte, bit| byte << 1 | u8::from(*bit));
    bits.chunks(8).map(byte).collect()
}

fn huffman_codes() -> [u32; 257] {
    let mut symbols: Vec<usize> = (0..=EOS).collect();
    symbols.sort_by_key(|&symbol| (HUFFMAN_LENGTHS[symbol], symbol));
    let mut codes = [0; 257];
    let mut next = 0;
    let mut length = 0;
    for symbol in symbols {
        next <<= HUFFMAN_LENGTHS[symbol] - length;
        length = HUFFMAN_LENGTHS[symbol];
        codes[symbol] = next;
        next += 1;
    }
    codes
}

// ---- decoding ----------------------------------------------------------------------------------

pub type Field = (String, String);

/// The peer's dynamic table as this end knows it.
pub struct Decoder {
    /// The newest first.
    entries: VecDeque<Field>,
    size: usize,
    size_most: usize,
    /// The size that SETTINGS allow.
    allowed: usize,
    /// The lowest allowance since the last block: the next one must begin with an update to it
    /// (section 4.2).
    owed: Option<usize>,
}

impl Default for Decoder {
    fn default() -> Decoder {
        Decoder {
            entries: VecDeque::new(),
            size: 0,
            size_most: TABLE_BYTES_DEFAULT,
            allowed: TABLE_BYTES_DEFAULT,
            owed: None,
        }
    }
}

impl Decoder {
    /// Records that the peer has acknowledged a SETTINGS_HEADER_TABLE_SIZE.
    pub fn allow(&mut self, bytes: usize) {
        self.allowed = bytes;
        if bytes < self.size_most {
            self.owed = Some(self.owed.map_or(bytes, |owed| owed.min(bytes)));
        }
    }

    pub fn decode(&mut self, block: &[u8]) -> Result<Vec<Field>, String> {
        let mut reader = Reader(block);
        let mut list = Vec::new();
        while let Some(&first) = reader.0.first() {
            if first & 0xe0 == 0x20 {
                if !list.is_empty() {
                    return Err("a size update behind a field".to_owned());
                }
                let size = reader.integer(5)?;
                self.update(size)?;
                continue;
            }
            if let Some(owed) = self.owed {
                return Err(format!("a block without the size update to {owed}"));
            }
            list.push(self.field(first, &mut reader)?);
        }
        Ok(list)
    }

    fn update(&mut self, size: usize) -> Result<(), String> {
        if size > self.allowed {
            return Err(format!("a size update to {size}, above {}", self.allowed));
        }
        if self.owed.is_some_and(|owed| size <= owed) {
            self.owed = None;
        }
        self.size_most = size;
        self.evict();
        Ok(())
    }

    fn field(&mut self, first: u8, reader: &mut Reader<'_>) -> Result<Field, String> {
        if first & 0x80 != 0 {
            let index = reader.integer(7)?;
            return self.entry(index);
        }
        let is_indexed = first & 0x40 != 0;
        let index = reader.integer(if is_indexed { 6 } else { 4 })?;
        let name = match index {
            0 => reader.string()?,
            _ => self.entry(index)?.0,
        };
        let field = (name, reader.string()?);
        if is_indexed {
            self.size += field.0.len() + field.1.len() + ENTRY_OVERHEAD;
            self.entries.push_front(field.clone());
            self.evict();
        }
        Ok(field)
    }

    fn entry(&self, index: usize) -> Result<Field, String> {
        let at = index.checked_sub(1).ok_or("index 0")?;
        if let Some((name, value)) = STATIC_TABLE.get(at) {
            return Ok(((*name).to_owned(), (*value).to_owned()));
        }
        let entry = self.entries.get(at - STATIC_TABLE.len());
        entry.cloned().ok_or(format!("no entry {index}"))
    }

    fn evict(&mut self) {
        while self.size > self.size_most {
            let (name, value) = self.entries.pop_back().expect("a size has entries");
            self.size -= name.len() + value.len() + ENTRY_OVERHEAD;
        }
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn byte(&mut self) -> Result<u8, String> {
        let (&first, rest) = self.0.split_first().ok_or("the block ends too early")?;
        self.0 = rest;
        Ok(first)
    }

    fn integer(&mut self, prefix_bits: u8) -> Result<usize, String> {
        let most = (1usize << prefix_bits) - 1;
        let mut value = usize::from(self.byte()?) & most;
        if value < most {
            return Ok(value);
        }
        for shift in [0, 7, 14, 21] {
            let byte = self.byte()?;
            value += usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err("an integer above 2^28".to_owned())
    }

    fn string(&mut self) -> Result<String, String> {
        let first = *self.0.first().ok_or("the block ends too early")?;
        let length = self.integer(7)?;
        let bytes = self
            .0
            .get(..length)
            .ok_or("a string longer than the block")?;
        self.0 = &self.0[length..];
        let bytes = match first & 0x80 {
            0 => bytes.to_vec(),
            _ => unhuffman(bytes)?,
        };
        String::from_utf8(bytes).map_err(|_| "a string that is no UTF-8".to_owned())
    }
}

fn unhuffman(coded: &[u8]) -> Result<Vec<u8>, String> {
    let codes = huffman_codes();
    let mut text = Vec::new();
    let (mut code, mut length) = (0u32, 0u8);
    for bit in coded
        .iter()
        .flat_map(|byte| (0..8).rev().map(move |at| byte >> at & 1))
    {
        code = code << 1 | u32::from(bit);
        length += 1;
        let symbol = (0..=EOS).find(|&at| HUFFMAN_LENGTHS[at] == length && codes[at] == code);
        if let Some(symbol) = symbol {
            text.push(u8::try_from(symbol).map_err(|_| "EOS in a string")?);
            (code, length) = (0, 0);
        }
        if length > 30 {
            return Err("no Huffman code".to_owned());
        }
    }
    if length > 7 || code != (1 << length) - 1 {
        return Err("wrong Huffman padding".to_owned());
    }
    Ok(text)
}
