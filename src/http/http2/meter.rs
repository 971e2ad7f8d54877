//! Reads the headers of a peer's frames before h2 does: counts what is odd, and stops what h2 would
//! answer with the wrong error.
//!
//! h2 reads frames and keeps its own bounds, but it does not say what it has read, and the floods
//! of this protocol are made of frames that are legal one by one. So this looks at the nine bytes
//! that each frame begins with (RFC 9113, section 4.1), skips the payload but for field blocks
//! ([`FieldBlock`]), and keeps a tally.
//!
//! The tally has a second use. h2 tells a task that something happened to a stream by waking it;
//! here nobody is woken, and the streams that were named are the ones to look at.
//!
//! What is wrong is h2's to refuse, but for three rules that can be told from a frame's header
//! and that h2 0.4 does not keep to: the first frame is SETTINGS (RFC 9113, section 3.4), a frame
//! of a length that its type cannot have is FRAME_SIZE_ERROR (section 4.2), and what follows the
//! end of a stream is STREAM_CLOSED (section 5.1); h2 lets the first pass and calls the others
//! PROTOCOL_ERROR. They end here, as a [`Violation`]: h2 is not given the frame.
//!
//! A fourth rule is about a field block: trailers hold no pseudo-field (section 8.1). h2 drops one
//! without a word where no other field stands before it. Its stream is marked here, for
//! [`FrameMeter::has_malformed_trailers`]; h2 gets the block, for its table must not miss one.
//!
//! Must never change or interpret what passes.
//!
//! Invariants:
//!  1. The same bytes give the same tally and the same violation, wherever they are cut.
//!  2. Nothing behind a violation is looked at.

use std::collections::BTreeMap;

use h2::Reason;

use super::field_block::FieldBlock;
use crate::limits::http as http_limits;
use crate::limits::http2 as limits;

/// RFC 9113, section 6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FrameType {
    Data,
    Headers,
    /// RFC 9113 has put it out of use.
    Priority,
    ResetStream,
    Settings,
    Ping,
    GoAway,
    WindowUpdate,
    Continuation,
    /// PUSH_PROMISE, which is h2's to refuse, and types that nobody knows.
    Ignored,
}

impl FrameType {
    const fn of(byte: u8) -> FrameType {
        match byte {
            0 => FrameType::Data,
            1 => FrameType::Headers,
            2 => FrameType::Priority,
            3 => FrameType::ResetStream,
            4 => FrameType::Settings,
            6 => FrameType::Ping,
            7 => FrameType::GoAway,
            8 => FrameType::WindowUpdate,
            9 => FrameType::Continuation,
            _ => FrameType::Ignored,
        }
    }

    /// RFC 9113, sections 6.3 to 6.9. What is too long for every frame is h2's to refuse.
    const fn can_have(self, length: u32, is_ack: bool) -> bool {
        match self {
            FrameType::Priority => length == 5,
            FrameType::ResetStream | FrameType::WindowUpdate => length == 4,
            FrameType::Ping => length == 8,
            FrameType::GoAway => length >= 8,
            FrameType::Settings if is_ack => length == 0,
            FrameType::Settings => length.is_multiple_of(6),
            FrameType::Data | FrameType::Headers | FrameType::Continuation | FrameType::Ignored => {
                true
            }
        }
    }
}

const END_STREAM: u8 = 0x1;
const ACK: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
/// The stream's priority stands before the field block (RFC 9113, section 6.2).
const HAS_PRIORITY: u8 = 0x20;
const PRIORITY_BYTES: usize = 5;
const HEADER_BYTES: usize = 9;

/// A DATA frame of fewer bytes costs more to frame than it carries.
const TINY_BYTES: u32 = http_limits::BODY_PIECE_BYTES_MIN as u32;

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
    /// Changes of the compression table that no request has use for.
    pub header_churn: u32,
    pub malformed_trailers: u32,
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

/// A frame that ends the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Where in the batch its header begins; 0 if that was in an earlier one.
    pub at: usize,
    pub reason: Reason,
}

/// See the file's head.
#[derive(Debug, Default)]
pub struct FrameMeter {
    /// The first frame has come.
    has_begun: bool,
    /// Streams that the peer has ended and we have not, and whether it did so with trailers that
    /// must not be.
    ended: BTreeMap<u32, bool>,
    /// The part of a frame's header that has come.
    header: [u8; HEADER_BYTES],
    header_bytes: usize,
    /// Bytes of the present frame's payload that are still to come.
    payload_left: usize,
    /// A field block has begun and not ended (RFC 9113, section 4.3).
    in_field_block: bool,
    field_block: FieldBlock,
    /// That block is not the first of its stream.
    in_trailers: bool,
    /// What comes before the present frame's part of the field block: the padding's length, and
    /// a priority.
    has_pad_length: bool,
    priority_left: usize,
    /// Behind that part, once its length is known.
    padding: usize,
    highest_stream: u32,
    /// Where in the last batch the present frame or field block begins.
    begins_at: usize,
}

impl FrameMeter {
    /// Whether the peer is in the middle of something that it has to end soon: a frame, or a head
    /// that takes several.
    pub fn is_within(&self) -> bool {
        self.header_bytes > 0 || self.payload_left > 0 || self.in_field_block
    }

    /// The bytes handled last end inside a field block, or inside what may become one: from where
    /// on they have to be kept for [`super::explain`]. 0 may also mean that it began earlier.
    pub fn unfinished_block(&self) -> Option<usize> {
        let kind = FrameType::of(self.header[3]);
        let is_part = matches!(kind, FrameType::Headers | FrameType::Continuation);
        let is_unfinished =
            self.header_bytes > 0 || self.in_field_block || (is_part && self.payload_left > 0);
        is_unfinished.then_some(self.begins_at)
    }

    /// The peer has ended this stream with trailers that hold a pseudo-field, in this batch or
    /// before: the stream is to be reset with PROTOCOL_ERROR.
    pub fn has_malformed_trailers(&self, stream: u32) -> bool {
        self.ended
            .get(&stream)
            .is_some_and(|&is_malformed| is_malformed)
    }

    /// The stream is over on our side too: it is no longer half closed.
    pub fn forget(&mut self, stream: u32) {
        self.ended.remove(&stream);
    }

    /// Counts the frames that begin in `bytes`, which follow those of the call before, up to the
    /// first that must not be.
    pub fn handle(&mut self, bytes: &[u8], tally: &mut Tally) -> Result<(), Violation> {
        let mut at = 0;
        self.begins_at = 0;
        while at < bytes.len() {
            if self.payload_left > 0 {
                let skipped = self.payload_left.min(bytes.len() - at);
                self.handle_payload(&bytes[at..at + skipped], tally);
                self.payload_left -= skipped;
                at += skipped;
                self.judge_trailers(tally);
                continue;
            }
            if self.header_bytes == 0 && !self.in_field_block {
                self.begins_at = at;
            }
            let wanted = (HEADER_BYTES - self.header_bytes).min(bytes.len() - at);
            self.header[self.header_bytes..][..wanted].copy_from_slice(&bytes[at..at + wanted]);
            self.header_bytes += wanted;
            at += wanted;
            if self.header_bytes == HEADER_BYTES {
                self.header_bytes = 0;
                self.count(tally).map_err(|reason| Violation {
                    at: at.saturating_sub(HEADER_BYTES),
                    reason,
                })?;
                self.judge_trailers(tally);
            }
        }
        Ok(())
    }

    /// Marks the stream if a field block ends here that is a malformed one of trailers.
    fn judge_trailers(&mut self, tally: &mut Tally) {
        let kind = FrameType::of(self.header[3]);
        let is_part = matches!(kind, FrameType::Headers | FrameType::Continuation);
        let has_ended = is_part && self.payload_left == 0 && !self.in_field_block;
        if !(has_ended && self.in_trailers && self.field_block.has_pseudo_field()) {
            return;
        }
        // Trailers that do not end the stream are h2's to refuse.
        if let Some(is_malformed) = self.ended.get_mut(&self.stream()) {
            *is_malformed = true;
            tally.malformed_trailers += 1;
        }
    }

    /// The stream of the present frame.
    fn stream(&self) -> u32 {
        let [.., s0, s1, s2, s3] = self.header;
        u32::from_be_bytes([s0 & 0x7f, s1, s2, s3])
    }

    /// The next bytes of the present frame's payload.
    fn handle_payload(&mut self, mut piece: &[u8], tally: &mut Tally) {
        let kind = FrameType::of(self.header[3]);
        if !matches!(kind, FrameType::Headers | FrameType::Continuation) {
            return;
        }
        let mut left = self.payload_left;
        if self.has_pad_length
            && let Some((&length, rest)) = piece.split_first()
        {
            self.has_pad_length = false;
            self.padding = length.into();
            left -= 1;
            piece = rest;
        }
        let priority = self.priority_left.min(piece.len());
        self.priority_left -= priority;
        left -= priority;
        piece = &piece[priority..];
        let block = left.saturating_sub(self.padding).min(piece.len());
        let before = self.field_block.churn();
        self.field_block.handle(&piece[..block]);
        tally.header_churn += self.field_block.churn() - before;
    }

    fn count(&mut self, tally: &mut Tally) -> Result<(), Reason> {
        let [l0, l1, l2, kind, flags, ..] = self.header;
        let length = u32::from_be_bytes([0, l0, l1, l2]);
        let stream = self.stream();
        let kind = FrameType::of(kind);
        self.check(kind, flags, length, stream)?;
        self.payload_left = length as usize;
        match kind {
            FrameType::Data if flags & END_STREAM != 0 => self.end(stream),
            FrameType::Data if length == 0 => tally.empty_frames += 1,
            FrameType::Data => tally.tiny_data += u32::from(length < TINY_BYTES),
            FrameType::Headers => {
                self.begin_part(flags & PADDED != 0, flags & HAS_PRIORITY != 0);
                self.field_block.begin();
                self.in_trailers = stream <= self.highest_stream;
                tally.opened += u32::from(stream > self.highest_stream);
                self.highest_stream = self.highest_stream.max(stream);
                self.in_field_block = flags & END_HEADERS == 0;
                tally.empty_frames += u32::from(length == 0);
                if flags & END_STREAM != 0 {
                    self.end(stream);
                }
            }
            FrameType::Continuation => {
                self.begin_part(false, false);
                self.in_field_block &= flags & END_HEADERS == 0;
                tally.empty_frames += u32::from(length == 0);
            }
            FrameType::ResetStream => {
                tally.resets += 1;
                self.forget(stream);
            }
            FrameType::WindowUpdate | FrameType::Settings => {
                tally.control_frames += 1;
                tally.opens_window |= stream == 0;
            }
            FrameType::Ping | FrameType::GoAway => tally.control_frames += 1,
            FrameType::Priority | FrameType::Ignored => tally.ignored_frames += 1,
        }
        if stream != 0 && tally.touched.last() != Some(&stream) {
            tally.touched.push(stream);
        }
        Ok(())
    }

    fn begin_part(&mut self, is_padded: bool, has_priority: bool) {
        self.has_pad_length = is_padded;
        self.priority_left = if has_priority { PRIORITY_BYTES } else { 0 };
        self.padding = 0;
    }

    fn check(
        &mut self,
        kind: FrameType,
        flags: u8,
        length: u32,
        stream: u32,
    ) -> Result<(), Reason> {
        let is_ack = flags & ACK != 0;
        if !self.has_begun {
            if kind != FrameType::Settings || is_ack || stream != 0 {
                return Err(Reason::PROTOCOL_ERROR);
            }
            self.has_begun = true;
        }
        // Whatever it is, within a field block it is h2's to refuse.
        if self.in_field_block {
            return Ok(());
        }
        if !kind.can_have(length, is_ack) {
            return Err(Reason::FRAME_SIZE_ERROR);
        }
        let goes_on = matches!(kind, FrameType::Data | FrameType::Headers);
        match goes_on && self.ended.contains_key(&stream) {
            true => Err(Reason::STREAM_CLOSED),
            false => Ok(()),
        }
    }

    fn end(&mut self, stream: u32) {
        // Some are never forgotten, since they were over on our side before, or refused. Whoever
        // goes on with a stream that is so old is still refused by h2.
        if self.ended.len() == limits::ENDED_STREAMS_MAX {
            self.ended.pop_first();
        }
        self.ended.insert(stream, false);
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::frame;
    use super::*;
    use crate::limits::http2 as limits;
    use proptest::prelude::*;

    fn tally(bytes: &[u8]) -> Tally {
        let mut tally = Tally::default();
        assert_eq!(begun().handle(bytes, &mut tally), Ok(()));
        tally
    }

    /// A meter behind the first SETTINGS.
    fn begun() -> FrameMeter {
        FrameMeter {
            has_begun: true,
            ..FrameMeter::default()
        }
    }

    fn violation(bytes: &[u8]) -> Option<Violation> {
        begun().handle(bytes, &mut Tally::default()).err()
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
            header_churn: 0,
            malformed_trailers: 0,
            touched: vec![1, 3, 5],
            opens_window: true,
        };
        assert_eq!(counted, expected);
    }

    #[test]
    fn a_block_is_walked_over_all_its_frames_and_nothing_else() {
        let insertions = |count: u32| [0x41, 1, b'x'].repeat(count as usize);
        let (one, other) = (insertions(limits::FREE_INSERTIONS_MAX), insertions(3));
        let head = frame(1, 0, 1, &one);
        let rest = frame(9, END_HEADERS, 1, &other);
        assert_eq!(tally(&[head, rest].concat()).header_churn, 3);
        // The same again in two requests is none.
        let head = |stream| frame(1, END_HEADERS, stream, &one);
        assert_eq!(tally(&[head(1), head(3)].concat()).header_churn, 0);
        // Padding and priority look like representations, and are none.
        let payload = [&[9][..], &[0x3f; PRIORITY_BYTES], &one, &other, &[0x3f; 9]].concat();
        let padded = frame(1, END_HEADERS | PADDED | HAS_PRIORITY, 1, &payload);
        assert_eq!(tally(&padded).header_churn, 3);
        let body = frame(0, 0, 1, &[0x20; 99]);
        assert_eq!(tally(&body).header_churn, 0);
    }

    #[test]
    fn the_first_frame_is_settings() {
        let first = |bytes: &[u8]| FrameMeter::default().handle(bytes, &mut Tally::default());
        let refused = Err(Violation {
            at: 0,
            reason: Reason::PROTOCOL_ERROR,
        });
        assert_eq!(first(&frame(4, 0, 0, &[])), Ok(()));
        assert_eq!(first(&frame(4, ACK, 0, &[])), refused);
        assert_eq!(first(&frame(4, 0, 1, &[])), refused);
        assert_eq!(first(&frame(6, 0, 0, &[0; 8])), refused);
        assert_eq!(first(&frame(77, 0, 0, &[])), refused);
    }

    #[test]
    fn lengths_that_a_type_cannot_have_are_violations() {
        let good = frame(6, 0, 0, &[0; 8]);
        for (kind, flags, length) in [
            (2, 0, 4),
            (3, 0, 5),
            (4, 0, 7),
            (4, ACK, 6),
            (6, 0, 7),
            (7, 0, 7),
            (8, 0, 3),
        ] {
            let bad = frame(kind, flags, 0, &vec![0; length]);
            let expected = Violation {
                at: good.len(),
                reason: Reason::FRAME_SIZE_ERROR,
            };
            assert_eq!(
                violation(&[good.clone(), bad].concat()),
                Some(expected),
                "{kind}"
            );
        }
    }

    #[test]
    fn nothing_follows_the_end_of_a_stream() {
        let end = frame(1, END_HEADERS | END_STREAM, 1, b"x");
        let more = frame(0, 0, 1, b"more");
        let closed = Violation {
            at: end.len(),
            reason: Reason::STREAM_CLOSED,
        };
        assert_eq!(
            violation(&[end.clone(), more.clone()].concat()),
            Some(closed)
        );
        // What is over on both sides is h2's to know.
        let mut meter = begun();
        assert_eq!(meter.handle(&end, &mut Tally::default()), Ok(()));
        meter.forget(1);
        assert_eq!(meter.handle(&more, &mut Tally::default()), Ok(()));
        let reset = frame(3, 0, 1, &[0; 4]);
        assert_eq!(violation(&[end, reset, more].concat()), None);
    }

    /// Mutations that this test catches: every block taken for trailers, none of them, a mark that
    /// outlives its stream, a block judged before its last frame.
    #[test]
    fn trailers_with_a_pseudo_field_mark_their_stream() {
        let head = |stream| frame(1, END_HEADERS, stream, &[0x82, 0x84]);
        let trailers = |stream, block: &[u8]| frame(1, END_HEADERS | END_STREAM, stream, block);
        let mut meter = begun();
        let handle = |meter: &mut FrameMeter, frames: &[Vec<u8>]| {
            let mut tally = Tally::default();
            assert_eq!(meter.handle(&frames.concat(), &mut tally), Ok(()));
            tally.malformed_trailers
        };
        assert_eq!(handle(&mut meter, &[head(1), trailers(1, &[0x84])]), 1);
        assert!(meter.has_malformed_trailers(1));
        meter.forget(1);
        assert!(!meter.has_malformed_trailers(1));
        assert_eq!(handle(&mut meter, &[head(3), trailers(3, &[0x90])]), 0);
        assert_eq!(handle(&mut meter, &[trailers(5, &[0x82, 0x84])]), 0);
        assert_eq!(handle(&mut meter, &[head(7), trailers(7, &[])]), 0);
        let first = frame(1, END_STREAM, 9, &[0x84]);
        assert_eq!(handle(&mut meter, &[head(9), first]), 0);
        let last = frame(9, END_HEADERS, 9, &[]);
        assert_eq!(handle(&mut meter, &[last]), 1);
        for (stream, expected) in [(3, false), (5, false), (7, false), (9, true)] {
            assert_eq!(meter.has_malformed_trailers(stream), expected, "{stream}");
        }
    }

    #[test]
    fn ended_streams_are_a_bounded_memory() {
        let mut meter = begun();
        for number in 0..4 * limits::ENDED_STREAMS_MAX as u32 {
            let end = frame(1, END_HEADERS | END_STREAM, 2 * number + 1, b"x");
            assert_eq!(meter.handle(&end, &mut Tally::default()), Ok(()));
        }
        assert_eq!(meter.ended.len(), limits::ENDED_STREAMS_MAX);
    }

    #[test]
    fn an_unfinished_block_is_known_from_its_beginning() {
        let mut meter = begun();
        let mut handle = |bytes: &[u8]| {
            assert_eq!(meter.handle(bytes, &mut Tally::default()), Ok(()));
            meter.unfinished_block()
        };
        let ping = frame(6, 0, 0, &[0; 8]);
        let block = frame(1, 0, 1, b"xyz");
        assert_eq!(handle(&ping), None);
        assert_eq!(handle(&[&ping[..], &block[..10]].concat()), Some(17));
        assert_eq!(handle(&block[10..]), Some(0));
        let end = frame(9, END_HEADERS, 1, b"uvw");
        assert_eq!(handle(&end[..10]), Some(0));
        assert_eq!(handle(&end[10..]), None);
        // Half of a body is none.
        assert_eq!(handle(&frame(0, 0, 1, b"half")[..11]), None);
    }

    #[test]
    fn a_head_in_pieces_is_something_to_be_ended() {
        let mut meter = begun();
        let mut handle = |bytes: &[u8]| {
            assert_eq!(meter.handle(bytes, &mut Tally::default()), Ok(()));
            meter.is_within()
        };
        assert!(!handle(b""));
        assert!(handle(&frame(1, 0, 1, b"x")));
        let end = frame(9, END_HEADERS, 1, b"y");
        assert!(handle(&end[..3]));
        assert!(!handle(&end[3..]));
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
            let whole = {
                let mut tally = Tally::default();
                let verdict = begun().handle(&bytes, &mut tally).map_err(|it| it.reason);
                (verdict, tally)
            };
            let (mut meter, mut tally, mut start) = (begun(), Tally::default(), 0);
            let mut verdict = Ok(());
            for cut in cuts {
                verdict = verdict.and_then(|()| {
                    meter.handle(&bytes[start..cut], &mut tally).map_err(|it| it.reason)
                });
                start = cut;
            }
            prop_assert_eq!((verdict, tally), whole);
        }
    }
}
