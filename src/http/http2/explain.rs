//! Why h2 has ended a connection, for the error code that its GOAWAY carries.
//!
//! h2 0.4 calls every error of the connection PROTOCOL_ERROR. RFC 9113 asks for COMPRESSION_ERROR
//! where a field block cannot be decoded (section 4.3) and for FLOW_CONTROL_ERROR where SETTINGS
//! name a window that is too large (section 6.5.2). h2 does not say what it was, so its last
//! bytes are read once more: once in a connection's life, at its end, and nothing but a code
//! depends on it.
//!
//! Looked for is the first block that h2 did not take and can have refused: one that cannot be
//! decoded, or that holds a name or value that no message may have (section 8.2.1), which is
//! PROTOCOL_ERROR. Both are told from the block alone, but for the indices of the dynamic table,
//! which depend on all blocks before: a block that is good otherwise and uses such an index is
//! taken for the one that used a wrong one. That is a guess where another frame of the same batch
//! was wrong too; whoever sent it is at fault in any case.
//!
//! Must never panic, and never be needed: without an explanation h2's own code stands.

use h2::Reason;
use http::header::{HeaderName, HeaderValue};
use http::{Method, StatusCode};

use crate::limits::http2 as limits;

const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const ACK: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
const INITIAL_WINDOW_SIZE: [u8; 2] = [0, 4];
const WINDOW_MAX: u32 = (1 << 31) - 1;

/// Looks for the first frame in `bytes`, which begin with a frame's header, that h2 can have ended
/// the connection for. `last_stream` is the last that it has taken.
pub fn explain(bytes: &[u8], last_stream: u32) -> Option<Reason> {
    let mut frames = Frames(bytes);
    while let Some(frame) = frames.next() {
        match frame.kind {
            SETTINGS if frame.flags & ACK == 0 && has_too_large_window(frame.payload) => {
                return Some(Reason::FLOW_CONTROL_ERROR);
            }
            // An increment of nothing, which is PROTOCOL_ERROR (section 6.9).
            WINDOW_UPDATE if frame.payload.iter().all(|&byte| byte == 0) => return None,
            HEADERS if frame.stream % 2 == 1 && frame.stream > last_stream => {
                match judge(frame, Frames(frames.0)) {
                    Judgement::Good => {}
                    Judgement::Bad(reason) => return reason,
                }
            }
            _ => {}
        }
    }
    None
}

enum Judgement {
    /// Nothing is wrong with it that can be seen.
    Good,
    /// h2 has ended the connection for this; without a reason, its own code is right.
    Bad(Option<Reason>),
}

fn has_too_large_window(payload: &[u8]) -> bool {
    let (pairs, _) = payload.as_chunks::<6>();
    pairs.iter().any(|&[n0, n1, value @ ..]| {
        [n0, n1] == INITIAL_WINDOW_SIZE && u32::from_be_bytes(value) > WINDOW_MAX
    })
}

/// A block that was not taken, in its frames.
fn judge(first: Frame<'_>, mut frames: Frames<'_>) -> Judgement {
    let Some(fragment) = first.fragment() else {
        return Judgement::Bad(None);
    };
    let mut block = fragment.to_vec();
    let mut has_ended = first.flags & END_HEADERS != 0;
    while !has_ended {
        let Some(frame) = frames.next() else {
            break;
        };
        if frame.kind != CONTINUATION || frame.stream != first.stream {
            return Judgement::Bad(None);
        }
        block.extend_from_slice(frame.payload);
        has_ended = frame.flags & END_HEADERS != 0;
    }
    match Reader(&block).judge(has_ended) {
        None => Judgement::Good,
        reason => Judgement::Bad(reason),
    }
}

#[derive(Clone, Copy)]
struct Frame<'a> {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// A HEADERS frame's part of the block (RFC 9113, section 6.2).
    fn fragment(&self) -> Option<&'a [u8]> {
        let mut payload = self.payload;
        let mut padding = 0;
        if self.flags & PADDED != 0 {
            let (&length, rest) = payload.split_first()?;
            (padding, payload) = (usize::from(length), rest);
        }
        if self.flags & PRIORITY != 0 {
            payload = payload.get(5..)?;
        }
        payload.get(..payload.len().checked_sub(padding)?)
    }
}

/// Frame by frame; the last may be cut off.
struct Frames<'a>(&'a [u8]);

impl<'a> Frames<'a> {
    fn next(&mut self) -> Option<Frame<'a>> {
        let (&[l0, l1, l2, kind, flags, s0, s1, s2, s3], rest) = self.0.split_first_chunk::<9>()?;
        let length = u32::from_be_bytes([0, l0, l1, l2]) as usize;
        let (payload, rest) = rest.split_at(length.min(rest.len()));
        self.0 = rest;
        Some(Frame {
            kind,
            flags,
            stream: u32::from_be_bytes([s0 & 0x7f, s1, s2, s3]),
            payload,
        })
    }
}

// ---- the block, as far as no table is needed (RFC 7541, section 6) ------------------------------

/// RFC 9113, section 8.2.2. h2 refuses the request alone; but where the block goes on in
/// CONTINUATION, it has forgotten of what, and ends the connection.
const CONNECTION_SPECIFIC: [&[u8]; 5] = [
    b"connection",
    b"keep-alive",
    b"proxy-connection",
    b"transfer-encoding",
    b"upgrade",
];

/// The same checks that h2 makes, by the same functions.
fn is_malformed(name: Option<&[u8]>, value: &[u8]) -> bool {
    match name {
        Some(b":method") => Method::from_bytes(value).is_err(),
        Some(b":status") => StatusCode::from_bytes(value).is_err(),
        Some(b":authority" | b":scheme" | b":path" | b":protocol") => {
            std::str::from_utf8(value).is_err()
        }
        Some(name) if CONNECTION_SPECIFIC.contains(&name) => true,
        Some(name) if HeaderName::from_lowercase(name).is_err() => true,
        _ => HeaderValue::from_bytes(value).is_err(),
    }
}

/// One representation.
enum Representation {
    Index(u32),
    TableSize(u32),
    /// The name, where it is a literal of its own or that of a pseudo-field.
    Literal {
        index: u32,
        name: Option<Vec<u8>>,
        value: Vec<u8>,
    },
}

/// Why there is no more to read.
enum Stop {
    End,
    Undecodable,
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    /// What is wrong with the block, if it is not whether an index is in the table: then that is.
    fn judge(&mut self, has_ended: bool) -> Option<Reason> {
        let (mut has_field, mut has_dynamic) = (false, false);
        while !self.0.is_empty() {
            let index = match self.representation() {
                Ok(Representation::TableSize(size)) => {
                    if has_field || size > limits::HEADER_TABLE_BYTES {
                        return Some(Reason::COMPRESSION_ERROR);
                    }
                    continue;
                }
                Ok(Representation::Literal { name, value, .. })
                    if is_malformed(name.as_deref(), &value) =>
                {
                    return Some(Reason::PROTOCOL_ERROR);
                }
                Ok(Representation::Index(index) | Representation::Literal { index, .. }) => index,
                // The rest was to come.
                Err(Stop::End) if !has_ended => break,
                Err(_) => return Some(Reason::COMPRESSION_ERROR),
            };
            has_field = true;
            has_dynamic |= index >= DYNAMIC_FIRST;
        }
        has_dynamic.then_some(Reason::COMPRESSION_ERROR)
    }

    fn representation(&mut self) -> Result<Representation, Stop> {
        let prefix_bits = match self.0.first() {
            Some(0x80..) => 7,
            Some(0x40..) => 6,
            Some(0x20..) => 5,
            _ => 4,
        };
        let number = self.integer(prefix_bits)?;
        match (prefix_bits, number) {
            (7, 0) => Err(Stop::Undecodable),
            (7, index) => Ok(Representation::Index(index)),
            (5, size) => Ok(Representation::TableSize(size)),
            (_, index) => {
                let name = match index {
                    0 => Some(self.string()?),
                    _ => static_pseudo_name(index).map(<[u8]>::to_vec),
                };
                let value = self.string()?;
                Ok(Representation::Literal { index, name, value })
            }
        }
    }

    /// RFC 7541, section 5.1; as many bytes as h2 reads.
    fn integer(&mut self, prefix_bits: u32) -> Result<u32, Stop> {
        let most = (1 << prefix_bits) - 1;
        let value = u32::from(self.byte()?) & most;
        if value < most {
            return Ok(value);
        }
        let mut value = most;
        for shift in [0, 7, 14, 21] {
            let byte = self.byte()?;
            value += u32::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Stop::Undecodable)
    }

    /// RFC 7541, section 5.2.
    fn string(&mut self) -> Result<Vec<u8>, Stop> {
        let is_huffman = self.0.first().ok_or(Stop::End)? & 0x80 != 0;
        let length = self.integer(7)? as usize;
        let (bytes, rest) = self.0.split_at_checked(length).ok_or(Stop::End)?;
        self.0 = rest;
        match is_huffman {
            true => unhuffman(bytes).ok_or(Stop::Undecodable),
            false => Ok(bytes.to_vec()),
        }
    }

    fn byte(&mut self) -> Result<u8, Stop> {
        let (&first, rest) = self.0.split_first().ok_or(Stop::End)?;
        self.0 = rest;
        Ok(first)
    }
}

/// RFC 7541, section 2.3.3: the first index that is not in the static table.
const DYNAMIC_FIRST: u32 = 62;

/// RFC 7541, appendix A.
fn static_pseudo_name(index: u32) -> Option<&'static [u8]> {
    match index {
        1 => Some(b":authority"),
        2 | 3 => Some(b":method"),
        4 | 5 => Some(b":path"),
        6 | 7 => Some(b":scheme"),
        8..=14 => Some(b":status"),
        _ => None,
    }
}

/// Lengths in bits of the codes of RFC 7541, appendix B, by symbol; the last is EOS. The code is
/// canonical: codes of one length are numbered in the order of their symbols, and longer ones
/// follow on shorter ones. So the lengths are all of it.
#[rustfmt::skip]
const HUFFMAN_LENGTHS: [u8; 257] = [
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

const HUFFMAN_LENGTH_MAX: u32 = 30;

/// Of the canonical code, by length in bits: the first code, how many there are, and where their
/// symbols begin in `HUFFMAN.symbols`.
struct Huffman {
    first: [u32; HUFFMAN_LENGTH_MAX as usize + 1],
    count: [u32; HUFFMAN_LENGTH_MAX as usize + 1],
    start: [u32; HUFFMAN_LENGTH_MAX as usize + 1],
    /// By length, then by value.
    symbols: [u16; HUFFMAN_LENGTHS.len()],
}

static HUFFMAN: Huffman = Huffman::new();

impl Huffman {
    const fn new() -> Huffman {
        let mut huffman = Huffman {
            first: [0; HUFFMAN_LENGTH_MAX as usize + 1],
            count: [0; HUFFMAN_LENGTH_MAX as usize + 1],
            start: [0; HUFFMAN_LENGTH_MAX as usize + 1],
            symbols: [0; HUFFMAN_LENGTHS.len()],
        };
        let (mut length, mut next) = (1, 0);
        while length <= HUFFMAN_LENGTH_MAX as usize {
            huffman.first[length] = (huffman.first[length - 1] + huffman.count[length - 1]) << 1;
            huffman.start[length] = next as u32;
            let mut symbol = 0;
            while symbol < HUFFMAN_LENGTHS.len() {
                if HUFFMAN_LENGTHS[symbol] as usize == length {
                    huffman.symbols[next] = symbol as u16;
                    huffman.count[length] += 1;
                    next += 1;
                }
                symbol += 1;
            }
            length += 1;
        }
        huffman
    }

    /// The symbol that `code`, of so many bits, stands for.
    fn symbol(&self, code: u32, length: u32) -> Option<u16> {
        let length = length as usize;
        let offset = code.checked_sub(self.first[length])?;
        let is_code = offset < self.count[length];
        is_code.then(|| self.symbols[(self.start[length] + offset) as usize])
    }
}

/// Bit by bit: among the codes of each length, those from `first` on are symbols. A step is a
/// subtraction and a comparison, for a peer may send 64 KiB of this.
fn unhuffman(coded: &[u8]) -> Option<Vec<u8>> {
    let mut text = Vec::new();
    let (mut code, mut length) = (0u32, 0u32);
    for bit in coded
        .iter()
        .flat_map(|byte| (0..8).rev().map(move |at| byte >> at & 1))
    {
        code = code << 1 | u32::from(bit);
        length += 1;
        if let Some(symbol) = HUFFMAN.symbol(code, length) {
            // EOS has no place in a string.
            text.push(u8::try_from(symbol).ok()?);
            (code, length) = (0, 0);
        } else if length == HUFFMAN_LENGTH_MAX {
            return None;
        }
    }
    // The rest is the beginning of EOS, which is all ones, and less than a byte.
    (length < 8 && code == (1 << length) - 1).then_some(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::frame;
    use super::*;

    fn block(block: &[u8]) -> Option<Reason> {
        explain(&frame(HEADERS, END_HEADERS, 1, block), 0)
    }

    #[test]
    fn undecodable_blocks_and_malformed_fields_are_told_apart() {
        let compression = Some(Reason::COMPRESSION_ERROR);
        let protocol = Some(Reason::PROTOCOL_ERROR);
        assert_eq!(block(b"\x82\x86\x84"), None);
        // An index that may be in no table, index 0, a string that is longer than its block.
        assert_eq!(block(b"\x82\xbe"), compression);
        assert_eq!(block(b"\x7e\x01y"), compression);
        assert_eq!(block(b"\x80"), compression);
        assert_eq!(block(b"\x82\x00\x01x\x05y"), compression);
        // Integers without an end, and sizes that are too large or too late.
        assert_eq!(block(b"\xff\x80\x80\x80\x80\x00"), compression);
        assert_eq!(block(b"\x3f\xe2\x1f\x82"), compression);
        assert_eq!(block(b"\x82\x20"), compression);
        // Huffman's padding is not all ones.
        assert_eq!(block(b"\x00\x01x\x81\x18"), compression);
        assert_eq!(block(b"\x82\x00\x01X\x01y"), protocol);
        assert_eq!(block(b"\x82\x40\x01x\x01\n"), protocol);
        assert_eq!(block(b"\x02\x03G T"), protocol);
        assert_eq!(block(b"\x00\x04:new\x01y"), protocol);
        assert_eq!(block(b"\x00\x07upgrade\x01y"), protocol);
        // The same name `X` in Huffman's code, which is 0xfc and 8 bits.
        assert_eq!(block(b"\x82\x00\x81\xfc\x01y"), protocol);
    }

    #[test]
    fn huffman_of_the_rfc_is_read() {
        let coded = b"\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff";
        assert_eq!(unhuffman(coded).unwrap(), b"www.example.com");
        assert_eq!(unhuffman(&[0xff]), None);
        assert_eq!(unhuffman(&[0xff; 4]), None);
        assert_eq!(unhuffman(&[]).unwrap(), b"");
    }

    #[test]
    fn only_a_block_that_was_not_taken_counts() {
        let bad = frame(HEADERS, END_HEADERS, 3, &[0x80]);
        assert_eq!(explain(&bad, 1), Some(Reason::COMPRESSION_ERROR));
        assert_eq!(explain(&bad, 3), None);
        let even = frame(HEADERS, END_HEADERS, 4, &[0x80]);
        assert_eq!(explain(&even, 1), None);
        let good = frame(HEADERS, END_HEADERS, 1, &[0x82]);
        assert_eq!(
            explain(&[good, bad].concat(), 1),
            Some(Reason::COMPRESSION_ERROR)
        );
    }

    #[test]
    fn wrong_frames_are_not_explained() {
        // The padding is longer than the payload, and the priority is cut off.
        assert_eq!(
            explain(&frame(HEADERS, END_HEADERS | PADDED, 1, b"\x05x"), 0),
            None
        );
        assert_eq!(
            explain(&frame(HEADERS, END_HEADERS | PRIORITY, 1, b"\0\0\0"), 0),
            None
        );
        let begun = frame(HEADERS, 0, 1, b"\x82\x00\x01X");
        let other = frame(6, 0, 0, &[0; 8]);
        assert_eq!(explain(&[begun.clone(), other].concat(), 0), None);
        assert_eq!(explain(&begun, 0), None);
        let end = frame(CONTINUATION, END_HEADERS, 1, b"\x01y");
        assert_eq!(
            explain(&[begun, end].concat(), 0),
            Some(Reason::PROTOCOL_ERROR)
        );
    }

    #[test]
    fn a_window_of_settings_is_looked_at() {
        let settings = |value: u32| {
            let payload = [&[0, 3, 0, 0, 0, 9, 0, 4][..], &value.to_be_bytes()].concat();
            explain(&frame(SETTINGS, 0, 0, &payload), 0)
        };
        assert_eq!(settings(WINDOW_MAX), None);
        assert_eq!(settings(WINDOW_MAX + 1), Some(Reason::FLOW_CONTROL_ERROR));
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            last in any::<u32>(),
        ) {
            let _ = explain(&bytes, last);
            let _ = block(&bytes);
            let _ = unhuffman(&bytes);
        }
    }
}
