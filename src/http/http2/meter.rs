//! Reads the headers of a peer's frames before h2 does, and counts what is odd about them.
//!
//! h2 reads frames and keeps its own bounds, but it does not say what it has read, and the floods
//! of this protocol are made of frames that are legal one by one. So this looks at the nine bytes
//! that each frame begins with (RFC 9113, section 4.1), skips the payload, and keeps a tally.
//!
//! The tally has a second use. h2 tells a task that something happened to a stream by waking it;
//! here nobody is woken, and the streams that were named are the ones to look at.
//!
//! Must never change, hold back or interpret what passes: what is wrong is h2's to refuse.
//!
//! Invariant: the same bytes give the same tally, wherever they are cut.

/// RFC 9113, section 6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FrameType {
    Data,
    Headers,
    ResetStream,
    Settings,
    Ping,
    GoAway,
    WindowUpdate,
    Continuation,
    /// PRIORITY, which RFC 9113 has put out of use, and types that nobody knows.
    Ignored,
}

impl FrameType {
    const fn of(byte: u8) -> FrameType {
        match byte {
            0 => FrameType::Data,
            1 => FrameType::Headers,
            3 => FrameType::ResetStream,
            4 => FrameType::Settings,
            6 => FrameType::Ping,
            7 => FrameType::GoAway,
            8 => FrameType::WindowUpdate,
            9 => FrameType::Continuation,
            _ => FrameType::Ignored,
        }
    }
}

const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const HEADER_BYTES: usize = 9;

/// A DATA frame of fewer bytes costs more to frame than it carries.
const TINY_BYTES: u32 = crate::limits::HTTP_CHUNK_TINY_BYTES as u32;

/// What one batch of bytes held.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// HEADERS frames that open a stream.
    pub opened: u32,
    pub resets: u32,
    pub empty_frames: u32,
    pub control_frames: u32,
    pub tiny_data: u32,
    pub ignored_frames: u32,
    /// The streams that frames were about, in the order of the frames.
    pub touched: Vec<u32>,
    /// The window of all streams may have grown.
    pub opens_window: bool,
}

impl Tally {
    pub fn clear(&mut self) {
        let mut touched = std::mem::take(&mut self.touched);
        touched.clear();
        *self = Tally {
            touched,
            ..Tally::default()
        };
    }
}

/// See the file's head.
#[derive(Debug, Default)]
pub struct FrameMeter {
    /// The part of a frame's header that has come.
    header: [u8; HEADER_BYTES],
    header_bytes: usize,
    /// Bytes of the present frame's payload that are still to come.
    payload_left: usize,
    /// A field block has begun and not ended (RFC 9113, section 4.3).
    in_field_block: bool,
    highest_stream: u32,
}

impl FrameMeter {
    /// Whether the peer is in the middle of something that it has to end soon: a frame, or a head
    /// that takes several.
    pub fn is_within(&self) -> bool {
        self.header_bytes > 0 || self.payload_left > 0 || self.in_field_block
    }

    /// Counts the frames that begin in `bytes`, which follow those of the call before.
    pub fn handle(&mut self, mut bytes: &[u8], tally: &mut Tally) {
        while !bytes.is_empty() {
            if self.payload_left > 0 {
                let skipped = self.payload_left.min(bytes.len());
                self.payload_left -= skipped;
                bytes = &bytes[skipped..];
                continue;
            }
            let wanted = (HEADER_BYTES - self.header_bytes).min(bytes.len());
            let (taken, rest) = bytes.split_at(wanted);
            self.header[self.header_bytes..][..wanted].copy_from_slice(taken);
            self.header_bytes += wanted;
            bytes = rest;
            if self.header_bytes == HEADER_BYTES {
                self.header_bytes = 0;
                self.count(tally);
            }
        }
    }

    fn count(&mut self, tally: &mut Tally) {
        let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = self.header;
        let length = u32::from_be_bytes([0, l0, l1, l2]);
        let stream = u32::from_be_bytes([s0 & 0x7f, s1, s2, s3]);
        self.payload_left = length as usize;
        match FrameType::of(kind) {
            FrameType::Data if flags & END_STREAM != 0 => {}
            FrameType::Data if length == 0 => tally.empty_frames += 1,
            FrameType::Data => tally.tiny_data += u32::from(length < TINY_BYTES),
            FrameType::Headers => {
                tally.opened += u32::from(stream > self.highest_stream);
                self.highest_stream = self.highest_stream.max(stream);
                self.in_field_block = flags & END_HEADERS == 0;
                tally.empty_frames += u32::from(length == 0);
            }
            FrameType::Continuation => {
                self.in_field_block &= flags & END_HEADERS == 0;
                tally.empty_frames += u32::from(length == 0);
            }
            FrameType::ResetStream => tally.resets += 1,
            FrameType::WindowUpdate | FrameType::Settings => {
                tally.control_frames += 1;
                tally.opens_window |= stream == 0;
            }
            FrameType::Ping | FrameType::GoAway => tally.control_frames += 1,
            FrameType::Ignored => tally.ignored_frames += 1,
        }
        if stream != 0 && tally.touched.last() != Some(&stream) {
            tally.touched.push(stream);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        bytes.extend_from_slice(&[kind, flags]);
        bytes.extend_from_slice(&stream.to_be_bytes());
        bytes.extend_from_slice(payload);
        bytes
    }

    fn tally(bytes: &[u8]) -> Tally {
        let mut tally = Tally::default();
        FrameMeter::default().handle(bytes, &mut tally);
        tally
    }

    #[test]
    fn each_oddity_is_counted_as_what_it_is() {
        let counted = tally(
            &[
                frame(1, END_HEADERS, 1, b"xx"),
                frame(0, 0, 1, b""),
                frame(0, 0, 1, b"tiny"),
                frame(0, 0, 1, b"large enough"),
                frame(0, END_STREAM, 1, b""),
                frame(3, 0, 1, &[0; 4]),
                frame(4, 0, 0, &[]),
                frame(6, 0, 0, &[0; 8]),
                frame(8, 0, 0x8000_0003, &[0, 0, 0, 1]),
                frame(2, 0, 5, &[0; 5]),
                frame(77, 0, 0, b"?"),
            ]
            .concat(),
        );
        let expected = Tally {
            opened: 1,
            resets: 1,
            empty_frames: 1,
            control_frames: 3,
            tiny_data: 1,
            ignored_frames: 2,
            touched: vec![1, 3, 5],
            opens_window: true,
        };
        assert_eq!(counted, expected);
    }

    #[test]
    fn a_head_in_pieces_is_something_to_be_ended() {
        let mut meter = FrameMeter::default();
        let mut tally = Tally::default();
        assert!(!meter.is_within());
        meter.handle(&frame(1, 0, 1, b"x"), &mut tally);
        assert!(meter.is_within());
        let end = frame(9, END_HEADERS, 1, b"y");
        meter.handle(&end[..3], &mut tally);
        assert!(meter.is_within());
        meter.handle(&end[3..], &mut tally);
        assert!(!meter.is_within());
    }

    proptest! {
        #[test]
        fn the_same_bytes_cut_anywhere_give_the_same_tally(
            frames in prop::collection::vec(
                (0u8..12, any::<u8>(), 0u32..9, prop::collection::vec(any::<u8>(), 0..20)), 0..12),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let frames = frames.iter();
            let bytes: Vec<u8> = frames
                .flat_map(|(kind, flags, stream, payload)| frame(*kind, *flags, *stream, payload))
                .collect();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.push(bytes.len());
            cuts.sort_unstable();
            let (mut meter, mut cut_tally, mut start) = (FrameMeter::default(), Tally::default(), 0);
            for cut in cuts {
                meter.handle(&bytes[start..cut], &mut cut_tally);
                start = cut;
            }
            prop_assert_eq!(cut_tally, tally(&bytes));
        }
    }
}
