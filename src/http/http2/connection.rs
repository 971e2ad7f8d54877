//! One connection's protocol (RFC 9113): frames in, events and frames out. No socket, no clock.
//!
//! ```text
//!   FrameReader ── Frame ──> handle_frame ── Event ──> the caller
//!                                 |  state, windows, table
//!   bytes <── output_mut ── output <── respond, send, finish, reset <── the caller
//! ```
//!
//! Owns the streams, the windows of both sides and the table of the peer's fields. Frames that are
//! due as a mere consequence of a frame (acknowledgements, credit, resets) are in the output when
//! `handle_frame` returns; the event names the work that is left for the caller. The caller names
//! streams by their numbers. A number whose stream is gone is ignored, because the peer may reset a
//! stream at any time.
//!
//! [`control`] handles frames that carry no message, and [`sending`] writes responses.
//!
//! Errors of the connection end it: GOAWAY is the last frame of the output, and every later frame
//! is ignored. Errors of a stream reset it. The [`Tally`] counts frames that are legal but odd; the
//! caller has the budget for them.
//!
//! Invariants:
//!  1. Memory is bounded: streams by `STREAMS_MAX`, an unfinished field block by
//!     `FIELD_BLOCK_BYTES_MAX`, the table by `HEADER_TABLE_BYTES`, streams that were reset by
//!     `REMEMBERED_RESETS_MAX`. The caller bounds the bytes that wait.
//!  2. A stream that can send is in the queue, and no stream is in it twice.
//!  3. Nothing is written after the last GOAWAY.
//!  4. DATA never exceeds either window.

mod control;
mod sending;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};

use super::frame::{self, Frame, Kind, Reason, STREAM_MAX, flag, setting};
use super::head::{Head, are_trailers};
use super::hpack::{Decoder, FieldList};
use super::stream::{Local, Remote, Stream};
use super::window::{ReceiveWindow, SendWindow, WINDOW_DEFAULT};
use crate::limits::http as http_limits;
use crate::limits::http2 as limits;

/// The work that a frame leaves for the caller.
#[derive(Debug)]
pub enum Event<'a> {
    Nothing,
    /// A request has begun. Its body follows if it `has_body`.
    Request {
        stream: u32,
        head: Box<Head>,
        has_body: bool,
    },
    /// A part of a body. It may be empty.
    Data {
        stream: u32,
        bytes: &'a [u8],
        is_end: bool,
    },
    /// The stream is gone: the peer has reset it, or has made an error.
    Reset {
        stream: u32,
    },
}

/// Counts the odd frames of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Streams that cost an admission and brought nothing: reset by the peer, reset by us for an
    /// error of the peer, malformed, or above the bound on streams.
    pub resets: u32,
    /// DATA, HEADERS or CONTINUATION that carry nothing and end nothing.
    pub empty_frames: u32,
    /// SETTINGS, PING, GOAWAY, WINDOW_UPDATE, resets of streams that had already ended, and heads
    /// after our last GOAWAY.
    pub control_frames: u32,
    pub tiny_data: u32,
    /// PRIORITY and extensions.
    pub ignored_frames: u32,
    /// Changes of the compression table that no request needs.
    pub header_churn: u32,
}

/// See the file's head.
#[derive(Debug)]
pub struct Connection {
    phase: Phase,
    streams: BTreeMap<u32, Stream>,
    /// The numbers of streams that can send, in the order of their turns.
    sendable: VecDeque<u32>,
    /// Streams that we have reset, and whose frames may still be on their way.
    reset: VecDeque<u32>,
    highest_stream: u32,
    /// Streams from this number on were opened in the present batch.
    batch_begins: u32,
    block: Option<Block>,
    decoder: Decoder,
    /// The buffers of the last head.
    spare: FieldList,
    send_window: SendWindow,
    receive_window: ReceiveWindow,
    /// The window that the peer grants a new stream.
    initial_send_window: u32,
    /// The next field block must announce to the peer that our table is empty.
    owes_table_size: bool,
    tally: Tally,
    output: Vec<u8>,
    /// DATA is written while the output is shorter than this.
    room: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Our SETTINGS are still to be sent.
    New,
    Open,
    /// The peer was sent the first GOAWAY, and has not yet acknowledged the PING behind it.
    Leaving,
    /// The peer has acknowledged it: no stream above this one is accepted.
    Left {
        last: u32,
    },
    Closed,
}

/// A field block that continues in CONTINUATION.
#[derive(Debug)]
struct Block {
    stream: u32,
    ends_stream: bool,
    bytes: Vec<u8>,
}

/// The PING that follows the first GOAWAY.
const LEAVING: &[u8; 8] = b"leaving!";
/// The PING that asks whether the peer is there.
const PROBE: &[u8; 8] = b"is there";

/// DATA of fewer bytes costs more to frame than it carries.
const TINY_BYTES: usize = http_limits::BODY_PIECE_BYTES_MIN as usize;

impl Connection {
    pub fn new() -> Connection {
        Connection {
            phase: Phase::New,
            streams: BTreeMap::new(),
            sendable: VecDeque::new(),
            reset: VecDeque::new(),
            highest_stream: 0,
            batch_begins: 0,
            block: None,
            decoder: Decoder::default(),
            spare: FieldList::default(),
            send_window: SendWindow::new(WINDOW_DEFAULT),
            receive_window: ReceiveWindow::new(limits::CONNECTION_WINDOW_BYTES),
            initial_send_window: WINDOW_DEFAULT,
            owes_table_size: false,
            tally: Tally::default(),
            output: Vec::new(),
            room: 0,
        }
    }

    // ---- getters ----

    /// Returns whether nothing is read or written any more, except the rest of the output.
    pub fn is_closed(&self) -> bool {
        self.phase == Phase::Closed
    }

    /// Returns whether the peer must continue a head that it has begun.
    pub fn is_within_block(&self) -> bool {
        self.block.is_some()
    }

    pub fn has_stream(&self, stream: u32) -> bool {
        self.streams.contains_key(&stream)
    }

    /// Returns whether our side of this stream has ended and the peer's has not.
    pub fn awaits_end(&self, stream: u32) -> bool {
        let stream = self.streams.get(&stream);
        stream.is_some_and(|it| it.local == Local::Ended)
    }

    pub fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    pub fn output_bytes(&self) -> usize {
        self.output.len()
    }

    /// Returns the memory of its output, of an unfinished field block, and of the bytes that wait
    /// in streams.
    pub fn buffered_bytes(&self) -> usize {
        let block = self
            .block
            .as_ref()
            .map_or(0, |block| block.bytes.capacity());
        let waiting = self
            .streams
            .values()
            .map(|stream| stream.waiting.capacity());
        self.output.capacity() + block + waiting.sum::<usize>()
    }

    // ---- handle ----

    /// Begins a batch: the frames that came together. Forgets the tally of the batch before.
    pub fn begin_batch(&mut self) {
        self.greet();
        self.tally = Tally::default();
        self.batch_begins = self.highest_stream + 1;
    }

    /// Goes on with a batch that was interrupted between two frames: a stream that it has opened
    /// and now resets was never meant. Forgets the tally of the part before.
    pub fn resume_batch(&mut self) {
        self.tally = Tally::default();
    }

    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// Handles a frame of the peer.
    pub fn handle_frame<'a>(&mut self, frame: &Frame<'a>) -> Event<'a> {
        if self.is_closed() {
            return Event::Nothing;
        }
        let event = self.dispatch(frame).unwrap_or_else(|reason| {
            self.close(reason);
            Event::Nothing
        });
        self.debug_check();
        event
    }

    /// An error that it returns is one of the connection.
    fn dispatch<'a>(&mut self, frame: &Frame<'a>) -> Result<Event<'a>, Reason> {
        if self.block.is_some() && frame.kind != Kind::Continuation {
            return Err(Reason::PROTOCOL_ERROR);
        }
        match frame.kind {
            Kind::Data => return self.handle_data(frame),
            Kind::Headers => return self.handle_headers(frame),
            Kind::Continuation => return self.handle_continuation(frame),
            Kind::ResetStream => return self.handle_reset(frame),
            Kind::WindowUpdate => return self.handle_window_update(frame),
            Kind::Settings => self.handle_settings(frame)?,
            Kind::Ping => self.handle_ping(frame)?,
            Kind::GoAway if frame.stream == 0 => self.tally.control_frames += 1,
            // RFC 9113, section 6.3: on stream 0 it is still an error.
            Kind::Priority if frame.stream != 0 => self.tally.ignored_frames += 1,
            Kind::Unknown => self.tally.ignored_frames += 1,
            Kind::GoAway | Kind::Priority | Kind::PushPromise => {
                return Err(Reason::PROTOCOL_ERROR);
            }
        }
        Ok(Event::Nothing)
    }

    fn handle_data<'a>(&mut self, frame: &Frame<'a>) -> Result<Event<'a>, Reason> {
        let id = frame.stream;
        self.check_not_idle(id)?;
        let bytes = frame.data().ok_or(Reason::PROTOCOL_ERROR)?;
        self.receive_window.take(frame.payload.len())?;
        if let Some(increment) = self.receive_window.credit() {
            frame::put_window_update(&mut self.output, 0, increment);
        }
        let is_end = frame.has(flag::END_STREAM);
        if !is_end {
            self.tally.empty_frames += u32::from(bytes.is_empty());
            self.tally.tiny_data += u32::from(!bytes.is_empty() && bytes.len() < TINY_BYTES);
        }
        let Some(stream) = self.streams.get_mut(&id) else {
            return self.ignore_late(id).map(|()| Event::Nothing);
        };
        if stream.remote == Remote::Ended {
            return Err(Reason::STREAM_CLOSED);
        }
        let result = stream.receive_window.take(frame.payload.len());
        let result = result.and_then(|()| stream.handle_content(bytes.len()));
        let result = result.and_then(|()| match is_end {
            true => stream.handle_end(),
            false => Ok(()),
        });
        if let Err(reason) = result {
            return Ok(self.fail_stream(id, reason));
        }
        if stream.remote == Remote::Open
            && let Some(increment) = stream.receive_window.credit()
        {
            frame::put_window_update(&mut self.output, id, increment);
        }
        self.drop_if_over(id);
        Ok(Event::Data {
            stream: id,
            bytes,
            is_end,
        })
    }

    fn handle_headers<'a>(&mut self, frame: &Frame<'a>) -> Result<Event<'a>, Reason> {
        // RFC 9113, section 5.1.1: clients open odd ones.
        if frame.stream.is_multiple_of(2) {
            return Err(Reason::PROTOCOL_ERROR);
        }
        let fragment = frame.fragment().ok_or(Reason::PROTOCOL_ERROR)?;
        let ends_stream = frame.has(flag::END_STREAM);
        if frame.has(flag::END_HEADERS) {
            return self.handle_block(frame.stream, ends_stream, fragment);
        }
        self.tally.empty_frames += u32::from(frame.payload.is_empty());
        self.block = Some(Block {
            stream: frame.stream,
            ends_stream,
            bytes: fragment.to_vec(),
        });
        Ok(Event::Nothing)
    }

    fn handle_continuation<'a>(&mut self, frame: &Frame<'a>) -> Result<Event<'a>, Reason> {
        let Some(mut block) = self.block.take_if(|block| block.stream == frame.stream) else {
            return Err(Reason::PROTOCOL_ERROR);
        };
        block.bytes.extend_from_slice(frame.payload);
        if block.bytes.len() > limits::FIELD_BLOCK_BYTES_MAX {
            return Err(Reason::ENHANCE_YOUR_CALM);
        }
        if frame.has(flag::END_HEADERS) {
            return self.handle_block(block.stream, block.ends_stream, &block.bytes);
        }
        self.tally.empty_frames += u32::from(frame.payload.is_empty());
        self.block = Some(block);
        Ok(Event::Nothing)
    }

    /// Handles a complete field block: a head, or trailers. Decodes it in any case, to keep the
    /// table right.
    fn handle_block<'a>(
        &mut self,
        id: u32,
        ends_stream: bool,
        block: &[u8],
    ) -> Result<Event<'a>, Reason> {
        let mut list = std::mem::take(&mut self.spare);
        self.tally.header_churn += self.decoder.decode(block, &mut list)?;
        if id > self.highest_stream {
            return Ok(self.handle_head(id, ends_stream, list));
        }
        let Some(stream) = self.streams.get_mut(&id) else {
            // RFC 9113, section 5.1.1: a new stream has a higher number.
            let is_late = self.ignore_late(id);
            return is_late
                .map(|()| Event::Nothing)
                .map_err(|_| Reason::PROTOCOL_ERROR);
        };
        if stream.remote == Remote::Ended {
            return Err(Reason::STREAM_CLOSED);
        }
        let is_good = ends_stream && are_trailers(&list) && stream.handle_end().is_ok();
        self.spare = list.emptied();
        if !is_good {
            return Ok(self.fail_stream(id, Reason::PROTOCOL_ERROR));
        }
        self.drop_if_over(id);
        Ok(Event::Data {
            stream: id,
            bytes: b"",
            is_end: true,
        })
    }

    /// Handles the head of a new stream.
    fn handle_head<'a>(&mut self, id: u32, ends_stream: bool, list: FieldList) -> Event<'a> {
        self.highest_stream = id;
        if let Phase::Left { .. } = self.phase {
            self.tally.control_frames += 1;
            return Event::Nothing;
        }
        if self.streams.len() >= limits::STREAMS_MAX as usize {
            self.tally.resets += 1;
            self.reset(id, Reason::REFUSED_STREAM);
            return Event::Nothing;
        }
        let mut stream = Stream::new(SendWindow::new(self.initial_send_window));
        let head = Head::read(list).filter(|head| {
            stream.content_left = head.content_length();
            !ends_stream || stream.handle_end().is_ok()
        });
        let Some(head) = head else {
            self.tally.resets += 1;
            self.reset(id, Reason::PROTOCOL_ERROR);
            return Event::Nothing;
        };
        stream.head_only = head.is_of_method("HEAD");
        self.streams.insert(id, stream);
        Event::Request {
            stream: id,
            head: Box::new(head),
            has_body: !ends_stream,
        }
    }

    // ---- commands ----

    /// Announces to the peer that no new stream will be accepted, except those that are already on
    /// their way. GOAWAY is sent twice (RFC 9113, section 6.8): at once with the highest possible
    /// number, and with the last stream's own number when the peer has acknowledged the PING behind
    /// it.
    pub fn begin_shutdown(&mut self) {
        self.greet();
        if self.phase == Phase::Open {
            frame::put_goaway(&mut self.output, STREAM_MAX, Reason::NO_ERROR);
            frame::put_ping(&mut self.output, 0, LEAVING);
            self.phase = Phase::Leaving;
        }
    }

    /// Ends all streams and the connection, with GOAWAY as the last frame.
    pub fn close(&mut self, reason: Reason) {
        if self.is_closed() {
            return;
        }
        self.greet();
        let last = match self.phase {
            Phase::Left { last } => last,
            Phase::New | Phase::Open | Phase::Leaving | Phase::Closed => self.highest_stream,
        };
        frame::put_goaway(&mut self.output, last, reason);
        self.phase = Phase::Closed;
        self.streams.clear();
        self.sendable.clear();
        self.block = None;
    }

    /// Sends a PING, which any living peer acknowledges.
    pub fn probe(&mut self) {
        if !self.is_closed() {
            frame::put_ping(&mut self.output, 0, PROBE);
        }
    }

    /// Returns whether the peer knows that we leave, and no stream is left.
    pub fn has_left(&self) -> bool {
        matches!(self.phase, Phase::Left { .. }) && self.streams.is_empty()
    }

    /// Ends a stream on both sides.
    pub fn reset(&mut self, id: u32, reason: Reason) {
        if self.is_closed() {
            return;
        }
        self.remove(id);
        frame::put_reset(&mut self.output, id, reason);
        if self.reset.len() == limits::REMEMBERED_RESETS_MAX {
            self.reset.pop_front();
        }
        self.reset.push_back(id);
    }

    /// Stops granting window for this stream's body. `true`: the body has not ended.
    pub fn ignore_body(&mut self, id: u32) -> bool {
        let Some(stream) = self.streams.get_mut(&id) else {
            return false;
        };
        if stream.remote == Remote::Open {
            stream.remote = Remote::Unwanted;
        }
        stream.remote == Remote::Unwanted
    }

    /// Takes back the buffers of a head, for the next one.
    pub fn recycle(&mut self, head: Head) {
        self.spare = head.into_list().emptied();
    }

    // ---- poll ----

    /// Returns the bytes to be sent: the caller takes them and returns the buffer.
    pub fn output_mut(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    // ---- helpers ----

    /// Writes our side of the preface, before everything else (RFC 9113, section 3.4).
    fn greet(&mut self) {
        if self.phase != Phase::New {
            return;
        }
        self.phase = Phase::Open;
        let window = limits::STREAM_WINDOW_BYTES;
        let settings = [
            (setting::MAX_CONCURRENT_STREAMS, limits::STREAMS_MAX),
            (setting::INITIAL_WINDOW_SIZE, window),
            (setting::MAX_HEADER_LIST_SIZE, limits::HEADER_LIST_BYTES_MAX),
        ];
        frame::put_settings(&mut self.output, &settings);
        let window = limits::CONNECTION_WINDOW_BYTES;
        frame::put_window_update(&mut self.output, 0, window - WINDOW_DEFAULT);
    }

    /// RFC 9113, section 5.1: on a stream that was never opened, only HEADERS and PRIORITY may
    /// come. We open none, so every even one is such a stream.
    fn check_not_idle(&self, id: u32) -> Result<(), Reason> {
        match id.is_multiple_of(2) || id > self.highest_stream {
            true => Err(Reason::PROTOCOL_ERROR),
            false => Ok(()),
        }
    }

    /// Ignores a frame of a stream that is gone if it may have been on its way when we ended the
    /// stream.
    fn ignore_late(&self, id: u32) -> Result<(), Reason> {
        let is_beyond = matches!(self.phase, Phase::Left { last } if id > last);
        match is_beyond || self.reset.contains(&id) {
            true => Ok(()),
            false => Err(Reason::STREAM_CLOSED),
        }
    }

    /// Resets a stream for an error of the peer.
    fn fail_stream<'a>(&mut self, id: u32, reason: Reason) -> Event<'a> {
        self.tally.resets += 1;
        self.reset(id, reason);
        Event::Reset { stream: id }
    }

    fn drop_if_over(&mut self, id: u32) {
        if self.streams.get(&id).is_some_and(Stream::is_over) {
            self.remove(id);
        }
    }

    /// `true`: there was such a stream.
    fn remove(&mut self, id: u32) -> bool {
        let removed = self.streams.remove(&id);
        if removed.as_ref().is_some_and(|stream| stream.is_queued) {
            self.sendable.retain(|&queued| queued != id);
        }
        removed.is_some()
    }

    /// Puts the stream into the queue if it can send.
    fn enqueue(&mut self, id: u32) {
        if let Some(stream) = self.streams.get_mut(&id)
            && stream.is_sendable()
            && !stream.is_queued
        {
            stream.is_queued = true;
            self.sendable.push_back(id);
        }
    }

    fn debug_check(&self) {
        if cfg!(debug_assertions) {
            self.check_invariants();
        }
    }

    /// See the file's head.
    pub fn check_invariants(&self) {
        assert!(self.streams.len() <= limits::STREAMS_MAX as usize);
        assert!(self.reset.len() <= limits::REMEMBERED_RESETS_MAX);
        let streams = self.streams.values();
        let queued = streams.clone().filter(|stream| stream.is_queued).count();
        assert_eq!(queued, self.sendable.len());
        for stream in streams {
            stream.check_invariants();
            assert!(stream.is_queued || !stream.is_sendable());
        }
    }
}

impl Default for Connection {
    fn default() -> Connection {
        Connection::new()
    }
}
