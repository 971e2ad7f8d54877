//! Frames (RFC 9113, sections 4 and 6): their types and lengths, how they are cut from bytes, and
//! how they are written.
//!
//! [`FrameReader`] cuts the peer's bytes into frames. A frame that lies completely in one read is
//! borrowed from it; only a frame that is spread over several reads is copied. The reader refuses
//! every frame whose nine-byte header alone shows an error, before it waits for the payload: a
//! first frame that is not SETTINGS, a frame that is too long, and a length that the frame's type
//! cannot have.
//!
//! The functions at the end append frames to a buffer. They know lengths and flags, not streams.
//!
//! Must never read more of a payload than its padding.
//!
//! Invariants:
//!  1. The same bytes yield the same frames, wherever the reads cut them.
//!  2. The reader holds at most one frame.

use crate::http::sniff::PREFACE;
use crate::limits::http2 as limits;

pub const HEADER_BYTES: usize = 9;

/// Payload of the largest frame, in either direction.
pub const PAYLOAD_MAX: usize = limits::FRAME_BYTES_MAX as usize;

pub const STREAM_MAX: u32 = (1 << 31) - 1;

/// Flags (RFC 9113, section 6). ACK and END_STREAM are the same bit of different types.
pub mod flag {
    pub const ACK: u8 = 0x1;
    pub const END_STREAM: u8 = 0x1;
    pub const END_HEADERS: u8 = 0x4;
    pub const PADDED: u8 = 0x8;
    pub const PRIORITY: u8 = 0x20;
}

/// Settings (RFC 9113, section 6.5.2).
pub mod setting {
    pub const HEADER_TABLE_SIZE: u16 = 1;
    pub const ENABLE_PUSH: u16 = 2;
    pub const MAX_CONCURRENT_STREAMS: u16 = 3;
    pub const INITIAL_WINDOW_SIZE: u16 = 4;
    pub const MAX_FRAME_SIZE: u16 = 5;
    pub const MAX_HEADER_LIST_SIZE: u16 = 6;
}

/// The reason why a stream or a connection ends (RFC 9113, section 7). Peers may send codes that
/// are not listed here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reason(pub u32);

impl Reason {
    pub const NO_ERROR: Reason = Reason(0);
    pub const PROTOCOL_ERROR: Reason = Reason(1);
    pub const FLOW_CONTROL_ERROR: Reason = Reason(3);
    pub const STREAM_CLOSED: Reason = Reason(5);
    pub const FRAME_SIZE_ERROR: Reason = Reason(6);
    pub const REFUSED_STREAM: Reason = Reason(7);
    pub const CANCEL: Reason = Reason(8);
    pub const COMPRESSION_ERROR: Reason = Reason(9);
    pub const ENHANCE_YOUR_CALM: Reason = Reason(11);
}

/// A frame's type (RFC 9113, section 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Data,
    Headers,
    /// Deprecated by RFC 9113: its length is checked, its content ignored.
    Priority,
    ResetStream,
    Settings,
    PushPromise,
    Ping,
    GoAway,
    WindowUpdate,
    Continuation,
    /// An extension: ignored (RFC 9113, section 5.5).
    Unknown,
}

impl Kind {
    const fn of(byte: u8) -> Kind {
        match byte {
            0 => Kind::Data,
            1 => Kind::Headers,
            2 => Kind::Priority,
            3 => Kind::ResetStream,
            4 => Kind::Settings,
            5 => Kind::PushPromise,
            6 => Kind::Ping,
            7 => Kind::GoAway,
            8 => Kind::WindowUpdate,
            9 => Kind::Continuation,
            _ => Kind::Unknown,
        }
    }

    const fn can_have(self, length: usize, is_ack: bool) -> bool {
        match self {
            Kind::Priority => length == 5,
            Kind::ResetStream | Kind::WindowUpdate => length == 4,
            Kind::Ping => length == 8,
            Kind::GoAway => length >= 8,
            Kind::Settings if is_ack => length == 0,
            Kind::Settings => length.is_multiple_of(6),
            Kind::Data | Kind::Headers | Kind::PushPromise | Kind::Continuation | Kind::Unknown => {
                true
            }
        }
    }
}

/// One complete frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    pub kind: Kind,
    pub flags: u8,
    pub stream: u32,
    pub payload: &'a [u8],
}

impl<'a> Frame<'a> {
    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Returns the payload of DATA without its padding; `None` if the padding is as long as the
    /// payload.
    pub fn data(&self) -> Option<&'a [u8]> {
        if !self.has(flag::PADDED) {
            return Some(self.payload);
        }
        let (&padding, rest) = self.payload.split_first()?;
        rest.get(..rest.len().checked_sub(padding.into())?)
    }

    /// Returns the part of a field block that HEADERS carries, without padding and priority.
    pub fn fragment(&self) -> Option<&'a [u8]> {
        let content = self.data()?;
        match self.has(flag::PRIORITY) {
            true => content.get(5..),
            false => Some(content),
        }
    }

    /// Returns the number in the payload's first four bytes, without the reserved bit.
    pub fn number(&self) -> u32 {
        let bytes = self.payload.first_chunk::<4>();
        bytes.map_or(0, |&bytes| u32::from_be_bytes(bytes) & STREAM_MAX)
    }

    /// Returns the pairs of SETTINGS.
    pub fn settings(&self) -> impl Iterator<Item = (u16, u32)> + use<'a> {
        let (pairs, _) = self.payload.as_chunks::<6>();
        pairs
            .iter()
            .map(|&[n0, n1, value @ ..]| (u16::from_be_bytes([n0, n1]), u32::from_be_bytes(value)))
    }
}

/// See the file's head.
#[derive(Debug)]
pub struct FrameReader {
    preface_left: usize,
    has_begun: bool,
    /// The beginning of a frame; or all of it, once it has been returned.
    partial: Vec<u8>,
    /// Whether `partial` was returned as a frame.
    is_taken: bool,
}

impl Default for FrameReader {
    fn default() -> FrameReader {
        FrameReader {
            preface_left: PREFACE.len(),
            has_begun: false,
            partial: Vec::new(),
            is_taken: false,
        }
    }
}

impl FrameReader {
    /// Returns whether the peer is in the middle of a frame or of the preface.
    pub fn is_within(&self) -> bool {
        let is_within_preface = self.preface_left > 0 && self.preface_left < PREFACE.len();
        is_within_preface || (!self.partial.is_empty() && !self.is_taken)
    }

    /// Returns the memory that it holds.
    pub fn buffered_bytes(&self) -> usize {
        self.partial.capacity()
    }

    /// Takes the next frame from `input`, which begins where the last call stopped. Returns the
    /// number of bytes used; if there is no frame, all of them were.
    pub fn next<'a>(&'a mut self, input: &'a [u8]) -> Result<(usize, Option<Frame<'a>>), Reason> {
        if self.is_taken {
            self.partial.clear();
            self.is_taken = false;
        }
        let preface = self.skip_preface(input)?;
        let rest = &input[preface..];
        if self.partial.is_empty()
            && let Some((header, after)) = rest.split_first_chunk()
        {
            let (length, frame) = self.read_header(header)?;
            if let Some(payload) = after.get(..length) {
                let used = preface + HEADER_BYTES + length;
                return Ok((used, Some(Frame { payload, ..frame })));
            }
        }
        if rest.is_empty() && self.partial.is_empty() {
            // Between batches an idle connection holds no buffer.
            self.partial = Vec::new();
            return Ok((preface, None));
        }
        let (used, is_whole) = self.collect(rest)?;
        if !is_whole {
            return Ok((preface + used, None));
        }
        self.is_taken = true;
        let Some((header, payload)) = self.partial.split_first_chunk() else {
            return Ok((preface + used, None));
        };
        let (_, frame) = parse_header(header);
        Ok((preface + used, Some(Frame { payload, ..frame })))
    }

    /// Copies the missing part of the present frame. Returns the number of bytes that it took from
    /// `rest`, and whether the frame is complete.
    fn collect(&mut self, rest: &[u8]) -> Result<(usize, bool), Reason> {
        let wanted = HEADER_BYTES.saturating_sub(self.partial.len());
        let (start, rest) = rest.split_at(wanted.min(rest.len()));
        self.partial.extend_from_slice(start);
        let Some(&header) = self.partial.first_chunk() else {
            return Ok((start.len(), false));
        };
        let (length, _) = match wanted {
            0 => parse_header(&header),
            _ => self.read_header(&header)?,
        };
        let wanted = HEADER_BYTES + length - self.partial.len();
        let count = wanted.min(rest.len());
        self.partial.extend_from_slice(&rest[..count]);
        Ok((start.len() + count, count == wanted))
    }

    fn skip_preface(&mut self, input: &[u8]) -> Result<usize, Reason> {
        let count = self.preface_left.min(input.len());
        let expected = &PREFACE[PREFACE.len() - self.preface_left..][..count];
        if input[..count] != *expected {
            return Err(Reason::PROTOCOL_ERROR);
        }
        self.preface_left -= count;
        Ok(count)
    }

    /// Reads a header that has just become complete. Returns its payload's length, and the frame
    /// without its payload.
    fn read_header(
        &mut self,
        header: &[u8; HEADER_BYTES],
    ) -> Result<(usize, Frame<'static>), Reason> {
        let (length, frame) = parse_header(header);
        let is_ack = frame.has(flag::ACK);
        if !self.has_begun && (frame.kind != Kind::Settings || is_ack || frame.stream != 0) {
            return Err(Reason::PROTOCOL_ERROR);
        }
        self.has_begun = true;
        match length <= PAYLOAD_MAX && frame.kind.can_have(length, is_ack) {
            true => Ok((length, frame)),
            false => Err(Reason::FRAME_SIZE_ERROR),
        }
    }
}

fn parse_header(header: &[u8; HEADER_BYTES]) -> (usize, Frame<'static>) {
    let &[l0, l1, l2, kind, flags, s0, s1, s2, s3] = header;
    let frame = Frame {
        kind: Kind::of(kind),
        flags,
        stream: u32::from_be_bytes([s0, s1, s2, s3]) & STREAM_MAX,
        payload: &[],
    };
    (u32::from_be_bytes([0, l0, l1, l2]) as usize, frame)
}

// ---- writing ------------------------------------------------------------------------------------

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

fn header(length: usize, kind: u8, flags: u8, stream: u32) -> [u8; HEADER_BYTES] {
    debug_assert!(length <= PAYLOAD_MAX, "a frame of {length} bytes");
    let [_, l0, l1, l2] = (length as u32).to_be_bytes();
    let [s0, s1, s2, s3] = stream.to_be_bytes();
    [l0, l1, l2, kind, flags, s0, s1, s2, s3]
}

pub fn put_data(out: &mut Vec<u8>, stream: u32, payload: &[u8], flags: u8) {
    out.extend_from_slice(&header(payload.len(), DATA, flags, stream));
    out.extend_from_slice(payload);
}

/// Writes a field block, which `write` appends; in several frames if it is longer than one.
pub fn put_headers(out: &mut Vec<u8>, stream: u32, flags: u8, write: impl FnOnce(&mut Vec<u8>)) {
    let at = out.len();
    let whole = flags | flag::END_HEADERS;
    out.extend_from_slice(&header(0, HEADERS, whole, stream));
    write(out);
    let length = out.len() - at - HEADER_BYTES;
    if length <= PAYLOAD_MAX {
        out[at..at + HEADER_BYTES].copy_from_slice(&header(length, HEADERS, whole, stream));
        return;
    }
    let block = out.split_off(at + HEADER_BYTES);
    out.truncate(at);
    let mut pieces = block.chunks(PAYLOAD_MAX).peekable();
    let (mut kind, mut flags) = (HEADERS, flags);
    while let Some(piece) = pieces.next() {
        if pieces.peek().is_none() {
            flags |= flag::END_HEADERS;
        }
        out.extend_from_slice(&header(piece.len(), kind, flags, stream));
        out.extend_from_slice(piece);
        (kind, flags) = (CONTINUATION, 0);
    }
}

pub fn put_reset(out: &mut Vec<u8>, stream: u32, reason: Reason) {
    out.extend_from_slice(&header(4, RST_STREAM, 0, stream));
    out.extend_from_slice(&reason.0.to_be_bytes());
}

pub fn put_settings(out: &mut Vec<u8>, pairs: &[(u16, u32)]) {
    out.extend_from_slice(&header(6 * pairs.len(), SETTINGS, 0, 0));
    for (name, value) in pairs {
        out.extend_from_slice(&name.to_be_bytes());
        out.extend_from_slice(&value.to_be_bytes());
    }
}

pub fn put_settings_ack(out: &mut Vec<u8>) {
    out.extend_from_slice(&header(0, SETTINGS, flag::ACK, 0));
}

pub fn put_ping(out: &mut Vec<u8>, flags: u8, opaque: &[u8]) {
    out.extend_from_slice(&header(opaque.len(), PING, flags, 0));
    out.extend_from_slice(opaque);
}

pub fn put_goaway(out: &mut Vec<u8>, last_stream: u32, reason: Reason) {
    out.extend_from_slice(&header(8, GOAWAY, 0, 0));
    out.extend_from_slice(&last_stream.to_be_bytes());
    out.extend_from_slice(&reason.0.to_be_bytes());
}

pub fn put_window_update(out: &mut Vec<u8>, stream: u32, increment: u32) {
    out.extend_from_slice(&header(4, WINDOW_UPDATE, 0, stream));
    out.extend_from_slice(&increment.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::testing::frame;
    use super::*;

    /// Returns a reader that has read the preface and the first SETTINGS.
    fn begun() -> FrameReader {
        FrameReader {
            preface_left: 0,
            has_begun: true,
            ..FrameReader::default()
        }
    }

    type Owned = (Kind, u8, u32, Vec<u8>);

    /// Returns all frames of the pieces, and the error that ended them.
    fn read<'a>(
        reader: &mut FrameReader,
        pieces: impl IntoIterator<Item = &'a [u8]>,
    ) -> (Vec<Owned>, Option<Reason>) {
        let mut frames = Vec::new();
        for piece in pieces {
            let mut rest = piece;
            loop {
                match reader.next(rest) {
                    Ok((used, Some(frame))) => {
                        let payload = frame.payload.to_vec();
                        frames.push((frame.kind, frame.flags, frame.stream, payload));
                        rest = &rest[used..];
                    }
                    Ok((used, None)) => {
                        assert_eq!(used, rest.len());
                        break;
                    }
                    Err(reason) => return (frames, Some(reason)),
                }
            }
        }
        (frames, None)
    }

    fn refused(bytes: &[u8]) -> Option<Reason> {
        read(&mut begun(), [bytes]).1
    }

    /// Mutation: `read_header` without `has_begun`.
    #[test]
    fn the_first_frame_is_settings() {
        let first = |bytes: &[u8]| {
            let bytes = [PREFACE, bytes].concat();
            read(&mut FrameReader::default(), [&bytes[..]]).1
        };
        let refused = Some(Reason::PROTOCOL_ERROR);
        assert_eq!(first(&frame(4, 0, 0, &[])), None);
        assert_eq!(first(&frame(4, flag::ACK, 0, &[])), refused);
        assert_eq!(first(&frame(4, 0, 1, &[])), refused);
        assert_eq!(first(&frame(6, 0, 0, &[0; 8])), refused);
        assert_eq!(first(&frame(77, 0, 0, &[])), refused);
    }

    #[test]
    fn a_wrong_preface_is_refused_at_its_first_wrong_byte() {
        let mut reader = FrameReader::default();
        assert_eq!(
            read(&mut reader, [&b"PRI * HT"[..], b"TP/3"]).1,
            Some(Reason::PROTOCOL_ERROR)
        );
    }

    /// Mutation: a length of `can_have` off by one.
    #[test]
    fn lengths_that_a_type_cannot_have_are_refused() {
        for (kind, flags, length) in [
            (2, 0, 4),
            (3, 0, 5),
            (4, 0, 7),
            (4, flag::ACK, 6),
            (6, 0, 7),
            (7, 0, 7),
            (8, 0, 3),
            (0, 0, PAYLOAD_MAX + 1),
            (77, 0, PAYLOAD_MAX + 1),
        ] {
            let bytes = frame(kind, flags, 0, &vec![0; length]);
            assert_eq!(refused(&bytes), Some(Reason::FRAME_SIZE_ERROR), "{kind}");
            assert_eq!(
                refused(&bytes[..HEADER_BYTES]),
                Some(Reason::FRAME_SIZE_ERROR)
            );
        }
    }

    #[test]
    fn padding_and_priority_are_taken_off() {
        let of = |flags, payload| Frame {
            kind: Kind::Headers,
            flags,
            stream: 1,
            payload,
        };
        assert_eq!(of(0, b"\x01abc").data(), Some(&b"\x01abc"[..]));
        assert_eq!(of(flag::PADDED, b"\x01abc").data(), Some(&b"ab"[..]));
        assert_eq!(of(flag::PADDED, b"\x03abc").data(), Some(&b""[..]));
        assert_eq!(of(flag::PADDED, b"\x04abc").data(), None);
        assert_eq!(of(flag::PADDED, b"").data(), None);
        let both = flag::PADDED | flag::PRIORITY;
        assert_eq!(of(both, b"\x02pppppab..").fragment(), Some(&b"ab"[..]));
        assert_eq!(of(both, b"\x02pppp..").fragment(), None);
    }

    /// Mutation: no CONTINUATION, or END_HEADERS on each frame.
    #[test]
    fn a_long_block_is_cut_into_frames() {
        let mut out = Vec::new();
        let block = vec![7; 2 * PAYLOAD_MAX + 1];
        put_headers(&mut out, 5, flag::END_STREAM, |out| {
            out.extend_from_slice(&block)
        });
        let (frames, error) = read(&mut begun(), [&out[..]]);
        assert_eq!(error, None);
        let heads: Vec<_> = frames.iter().map(|it| (it.0, it.1, it.3.len())).collect();
        let expected = [
            (Kind::Headers, flag::END_STREAM, PAYLOAD_MAX),
            (Kind::Continuation, 0, PAYLOAD_MAX),
            (Kind::Continuation, flag::END_HEADERS, 1),
        ];
        assert_eq!(heads, expected);
    }

    proptest! {
        #[test]
        fn the_same_bytes_cut_anywhere_are_the_same_frames(
            frames in prop::collection::vec(
                (0u8..12, any::<u8>(), 0u32..9, prop::collection::vec(any::<u8>(), 0..20)), 0..12),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let bytes: Vec<u8> = frames.iter()
                .flat_map(|(kind, flags, stream, payload)| frame(*kind, *flags, *stream, payload))
                .collect();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let mut reader = begun();
            let pieces = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]);
            prop_assert_eq!(read(&mut reader, pieces), read(&mut begun(), [&bytes[..]]));
        }
    }
}
