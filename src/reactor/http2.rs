//! HTTP/2 on one connection: many requests at once, each on a stream of its own.
//!
//! Owns the link between the protocol (`http::http2`) and the application ([`Handler`]): which
//! request is being received and which one is being served, when each is due, and the budget for
//! oddities. It knows no socket: bytes come in by
//! [`Machine::handle_input`](super::machine::Machine::handle_input), responses go into the
//! connection's output queue.
//!
//! ```text
//!            GOAWAY, GOAWAY           no stream is left
//!   Open ────────────────> Leaving ────────────────────> Over
//!    └── an error of the peer, its FIN, too many oddities ──^
//! ```
//!
//! Every call leaves its frames in the protocol's output. `handle_input` and `poll` move them to
//! the connection's queue; the other calls leave that to the next `poll`, which sends all results
//! together.
//!
//! Invariants; `check_invariants` checks 3, 5 and 6 after each flush in debug builds:
//!  1. Every admitted request ends in exactly one of: a complete response, `abandon`.
//!  2. A stream's number is its request's, so an event of a stream that is gone is recognised.
//!  3. A stream that was abandoned while its job runs stays among the orphans until the job has
//!     ended, and counts against the peer's streams: resets cannot pile up work.
//!  4. Memory for one connection is bounded by its streams, its bodies' bytes and the output's
//!     marks.
//!  5. After a flush the protocol's output is empty, and without streams it holds no buffer.
//!  6. Each stream here is one of the protocol's, and only a response can wait for window.
//!  7. Between two frames the machine may stop because its time is used up. The connection keeps
//!     the rest of the bytes and passes them in again: of several streams that one read completes,
//!     those that were not handled are still there, as frames.
//!
//! # Example
//!
//! The machine with the application of [`super::http1`], which greets every request.
//!
//! ```
//! # use std::borrow::Cow;
//! use std::sync::Arc;
//!
//! use autoglmd::config::Config;
//! use autoglmd::core::output::OutputQueue;
//! use autoglmd::core::{Key, Moment};
//! # use autoglmd::error::ApiError;
//! # use autoglmd::http::{Fields, Request, ResponseHead, ResponseSink};
//! # use autoglmd::offload::{CancelReason, JobKey};
//! use autoglmd::reactor::context::{Lent, Resources};
//! # use autoglmd::reactor::handler::{Admission, Handler, Pending};
//! use autoglmd::reactor::http2::Http2;
//! use autoglmd::reactor::machine::{Input, Machine, Waiting};
//! # use autoglmd::service::{Completion, Flow, Intake};
//! use autoglmd::service::{Peer, PeerAddress};
//! use autoglmd::telemetry::metrics::Metrics;
//! #
//! # struct Greeter;
//! # struct Welcome;
//! # enum Never {}
//! # impl Handler for Greeter {
//! #   type Admitted = Welcome;
//! #   type Exchange = Never;
//! #   type Refusal = ApiError;
//! #   fn admit(&mut self, _: &Request<'_>, _: &Peer, _: Moment) -> Result<Welcome, ApiError> {
//! #       Ok(Welcome)
//! #   }
//! #   fn handle(
//! #       &mut self, _: Welcome, request: &Request<'_>, _: Cow<'_, [u8]>, _: JobKey, _: Moment,
//! #       sink: &mut dyn ResponseSink,
//! #   ) -> Option<Box<Never>> {
//! #       let head = ResponseHead { status: 200, content_type: None, headers: &Fields::new() };
//! #       sink.respond(&head, format!("hello, {}", request.path).as_bytes());
//! #       None
//! #   }
//! #   fn refuse(&mut self, error: ApiError, _: Moment, sink: &mut dyn ResponseSink) {
//! #       let status = error.code.status();
//! #       let head = ResponseHead { status, content_type: None, headers: &Fields::new() };
//! #       sink.respond(&head, error.message.as_bytes());
//! #   }
//! #   fn refusal(_: Welcome, error: ApiError) -> ApiError { error }
//! #   fn refusal_of_peer(_: &Peer, error: ApiError) -> ApiError { error }
//! #   fn abandon_admitted(&mut self, _: Welcome, _: CancelReason, _: Moment) {}
//! #   fn open(&mut self, _: Welcome, _: Moment) -> Box<Never> { unreachable!() }
//! #   fn handle_data(
//! #       &mut self, it: &mut Never, _: &[u8], _: bool, _: Moment, _: &mut dyn ResponseSink,
//! #   ) -> Flow { match *it {} }
//! #   fn handle_event(
//! #       &mut self, it: &mut Never, _: Completion, _: Moment, _: &mut dyn ResponseSink,
//! #   ) -> Flow { match *it {} }
//! #   fn handle_deadline(
//! #       &mut self, it: &mut Never, _: Moment, _: &mut dyn ResponseSink,
//! #   ) -> Flow { match *it {} }
//! #   fn handle_room(&mut self, it: &mut Never) { match *it {} }
//! #   fn cut_off(&mut self, it: &mut Never, _: Moment, _: &mut dyn ResponseSink) { match *it {} }
//! #   fn abandon(&mut self, it: Box<Never>, _: CancelReason, _: Moment) { match *it {} }
//! # }
//! # impl Admission for Welcome {
//! #     fn intake(&self) -> Intake { Intake::Whole }
//! #     fn body_limit(&self) -> usize { 0 }
//! #     fn has_key(&self) -> bool { false }
//! # }
//! # impl Pending for Never {
//! #     fn next_deadline(&self) -> Moment { match *self {} }
//! #     fn has_job(&self) -> bool { match *self {} }
//! # }
//!
//! let now = Moment::from_micros(1_000_000);
//! let (config, metrics) = (Arc::new(Config::default()), Metrics::new("example").series());
//! let mut resources = Resources::new(0, now, Greeter, config, metrics);
//! let mut output = OutputQueue::new();
//! let mut http2 = Http2::<Greeter>::new(now);
//!
//! // The preface, SETTINGS, and HEADERS on stream 1: GET, http, the path "/a", the host "x".
//! let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\
//!     \0\0\0\x04\0\0\0\0\0\
//!     \0\0\x09\x01\x05\0\0\0\x01\x82\x86\x04\x02/a\x01\x01x"
//!     .to_vec();
//! let fresh = bytes.len();
//! http2.handle_input(
//!     Input { bytes: &mut bytes, fresh },
//!     &mut Lent {
//!         peer: &Peer::new(PeerAddress::Unix),
//!         output: &mut output,
//!         turn: &mut resources.turn(Key::new(0, 1)),
//!     },
//! );
//! assert_eq!(http2.waiting(), Waiting::Request);
//! assert_eq!(http2.exchanges(), 1);
//! let mut slices = [std::io::IoSlice::new(&[])];
//! output.io_slices(&mut slices);
//! // DATA of nine bytes, which ends stream 1.
//! assert!(slices[0].ends_with(b"\0\0\x09\0\x01\0\0\0\x01hello, /a"));
//! ```

mod machine;
mod reception;
mod reply;
mod stream;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use super::context::{Lent, Turn};
use super::handler::{Handler, Pending};
use super::machine::{cut_off, late};
use crate::core::Moment;
use crate::core::buffered::Claim;
use crate::core::deadlines::{Taken, stalls_at};
use crate::core::glitch::{Glitch, GlitchBudget, GlitchVerdict};
use crate::core::output::Level;
use crate::http::http2::connection::Connection;
use crate::http::http2::frame::{FrameReader, Reason};
use crate::limits::core as core_limits;
use crate::limits::http2 as http2_limits;
use crate::offload::CancelReason;
use crate::service::{Flow, Service};

use reply::Sink;
use stream::{Stage, Stream};

pub struct Http2<H: Handler = Service> {
    reader: FrameReader,
    connection: Connection,
    /// By their numbers.
    streams: BTreeMap<u32, Stream<H>>,
    /// Requests whose stream is gone and whose job has not ended.
    orphans: BTreeSet<u32>,
    glitches: GlitchBudget,
    state: State,
    input: InputState,
    credit: Credit,
    /// Its time was over before the last bytes were used up.
    has_stopped_early: bool,
    /// The number of requests that got a response, were refused or were abandoned.
    exchanges: u32,
    /// A frame or a head that has begun must be complete by then.
    head_until: Moment,
    /// A valid key has come, or a job has run.
    is_known: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    /// The peer was sent a GOAWAY, and must acknowledge it by then.
    Leaving {
        until: Moment,
    },
    /// The peer has not acknowledged it. The connection ends with its last stream.
    Overdue,
    Over,
}

/// The peer's side of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum InputState {
    Open,
    /// The peer has sent its FIN. It gets the responses that it waits for, and nothing more is
    /// read.
    Ended {
        /// A PING was sent, to find out whether the peer is still there.
        is_probed: bool,
    },
}

/// Whether jobs may produce more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Credit {
    Granted,
    /// A stream had no room, so credit of its job may be held back. Each poll looks again, once the
    /// output has drained.
    Held,
}

impl<H: Handler> Http2<H> {
    pub fn new(now: Moment) -> Http2<H> {
        Http2 {
            reader: FrameReader::default(),
            connection: Connection::new(),
            streams: BTreeMap::new(),
            orphans: BTreeSet::new(),
            glitches: GlitchBudget::new(now),
            state: State::Open,
            input: InputState::Open,
            credit: Credit::Granted,
            has_stopped_early: false,
            exchanges: 0,
            head_until: Moment::NEVER,
            is_known: false,
        }
    }

    #[cfg(test)]
    pub fn is_answering(&self) -> bool {
        !self.streams.is_empty()
    }

    // ---- handle ----

    /// Reads frames until the bytes or the pump's time are used up, or the connection has ended.
    /// Returns the number of bytes that are left.
    fn handle_bytes(&mut self, bytes: &[u8], lent: &mut Lent<'_, '_, H>) -> usize {
        match std::mem::take(&mut self.has_stopped_early) {
            true => self.connection.resume_batch(),
            false => self.connection.begin_batch(),
        }
        let mut reader = std::mem::take(&mut self.reader);
        let (mut rest, mut frames) = (bytes, 0);
        while !self.connection.is_closed() && !self.has_stopped_early {
            match reader.next(rest) {
                Ok((used, Some(frame))) => {
                    rest = &rest[used..];
                    frames += 1;
                    let event = self.connection.handle_frame(&frame);
                    let has_worked = self.handle_frame_event(event, lent);
                    if !self.connection.is_within_block() {
                        // A head that has begun behind this frame has a deadline of its own.
                        self.head_until = Moment::NEVER;
                    }
                    let asks = has_worked || frames % http2_limits::FRAMES_PER_CLOCK_READING == 0;
                    self.has_stopped_early =
                        asks && !rest.is_empty() && lent.turn.budget.is_spent();
                }
                Ok((_, None)) => {
                    rest = &[];
                    break;
                }
                Err(reason) => self.connection.close(reason),
            }
        }
        if self.connection.is_closed() {
            (rest, self.has_stopped_early) = (&[], false);
        }
        let is_within = reader.is_within() || self.connection.is_within_block();
        self.reader = reader;
        self.head_until = match (is_within, self.head_until) {
            (false, _) => Moment::NEVER,
            // Set once, at its first byte: dripping does not extend it.
            (true, Moment::NEVER) => lent.turn.now + lent.turn.config.limits.header_timeout,
            (true, until) => until,
        };
        self.count_oddities(lent.turn);
        rest.len()
    }

    /// Handles the deadlines that have passed, the streams' first. Those for which there is no time
    /// are still in the past, so the wheel's next tick comes back to them.
    fn handle_earliest_deadline(&mut self, lent: &mut Lent<'_, '_, H>) {
        let now = lent.turn.now;
        let due = self.streams.iter();
        let due = due.filter(|(_, stream)| stream.next_deadline() <= now);
        for id in due.map(|(&id, _)| id).collect::<Vec<_>>() {
            self.handle_stream_deadline(id, lent);
            if lent.turn.budget.is_spent() {
                return;
            }
        }
        if self.head_until <= now {
            let reason = Reason::ENHANCE_YOUR_CALM;
            self.shut_down(reason, CancelReason::Disconnect, lent.turn);
        }
        if let State::Leaving { until } = self.state
            && until <= now
        {
            match self.streams.is_empty() {
                true => self.shut_down(Reason::NO_ERROR, CancelReason::Drain, lent.turn),
                false => self.state = State::Overdue,
            }
        }
    }

    fn handle_stream_deadline(&mut self, id: u32, lent: &mut Lent<'_, '_, H>) {
        let now = lent.turn.now;
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        if stream.stalls_at <= now {
            return self.abandon_stream(id, CancelReason::SlowReader, lent.turn);
        }
        match &mut stream.stage {
            Stage::Receiving(_) => {
                let error = late("body", lent.turn.config.limits.body_timeout);
                if let Stage::Receiving(receiving) = stream.take_stage() {
                    let (handler, mut sink) = writer(&mut self.connection, id, lent);
                    handler.refuse(H::refusal(receiving.admitted, error), now, &mut sink);
                    // The body had its time, so the daemon does not wait for the rest of it.
                    self.settle(id);
                }
            }
            Stage::Answering { exchange, .. } => {
                let (handler, mut sink) = writer(&mut self.connection, id, lent);
                if handler.handle_deadline(exchange, now, &mut sink) == Flow::Finished {
                    self.finish(id, lent.turn);
                }
            }
            Stage::Sending { lingers_until } => {
                *lingers_until = Moment::NEVER;
                self.settle(id);
            }
        }
    }

    // ---- output ----

    /// Must precede the application's writes: borrows a buffer, and sets the room for DATA.
    fn prepare(&mut self, lent: &mut Lent<'_, '_, H>) {
        let room = lent.turn.marks.high.saturating_sub(lent.output.len());
        self.connection.set_room(room);
        self.borrow_buffer(lent.turn);
    }

    /// Everything that is written needs a buffer of the pool, because it returns there.
    fn borrow_buffer(&mut self, turn: &mut Turn<'_, H>) {
        let buffer = self.connection.output_mut();
        if buffer.capacity() == 0 {
            *buffer = turn.pool.take();
        }
    }

    /// Writes as much as windows and room allow, and moves it to the connection's queue.
    fn flush(&mut self, lent: &mut Lent<'_, '_, H>) {
        self.connection.write_waiting();
        self.watch_stalls(lent.turn);
        let buffer = self.connection.output_mut();
        let earned = buffer.len() as u32 / http2_limits::BYTES_PER_CONTROL_FRAME;
        self.glitches.forgive(earned);
        for piece in buffer.chunks(core_limits::OUTPUT_COPY_BYTES_MAX) {
            lent.output.tail(lent.turn.pool).extend_from_slice(piece);
        }
        buffer.clear();
        if self.connection.is_closed() || self.connection.has_left() {
            self.state = State::Over;
            self.abandon_all(CancelReason::Disconnect, lent.turn);
        }
        if self.streams.is_empty() {
            self.return_buffer(lent.turn);
        }
        self.debug_check();
    }

    /// Returns the protocol's buffer: an idle connection holds none.
    fn return_buffer(&mut self, turn: &mut Turn<'_, H>) {
        let buffer = self.connection.output_mut();
        if buffer.capacity() != 0 {
            turn.pool.give(std::mem::take(buffer));
        }
    }

    /// Sets the deadline of each stream whose bytes wait for the peer, and removes those that have
    /// ended.
    fn watch_stalls(&mut self, turn: &Turn<'_, H>) {
        let timeout = turn.config.limits.write_timeout;
        for (&id, stream) in &mut self.streams {
            let (bytes, left) = self.connection.take_progress(id);
            stream.stalls_at = match left {
                0 => Moment::NEVER,
                _ => stalls_at(stream.stalls_at, Taken { bytes, left }, turn.now, timeout),
            };
        }
        self.settle_all();
    }

    /// Grants the credit that was held for lack of room, to streams that have some.
    fn grant_held_credit(&mut self, lent: &mut Lent<'_, '_, H>) {
        let has_drained = lent.output.level(&lent.turn.marks) == Level::Low;
        if self.credit == Credit::Granted || !has_drained {
            return;
        }
        self.credit = Credit::Granted;
        for (&id, stream) in &mut self.streams {
            let Stage::Answering { exchange, .. } = &mut stream.stage else {
                continue;
            };
            match self.connection.waiting_bytes(id) <= lent.turn.marks.low {
                true => lent.turn.handler.handle_room(exchange),
                false => self.credit = Credit::Held,
            }
        }
    }

    /// Ends the streams that need more window. After the peer's FIN none will be granted, so they
    /// cannot go on. Bytes that wait although there is room wait for window.
    fn give_up_stalled(&mut self, turn: &mut Turn<'_, H>) {
        if self.connection.wants_room() {
            return;
        }
        let streams = self.streams.keys().copied();
        let stalled = streams.filter(|&id| self.connection.waiting_bytes(id) > 0);
        for id in stalled.collect::<Vec<_>>() {
            self.abandon_stream(id, CancelReason::Disconnect, turn);
        }
    }

    // ---- helpers ----

    fn count_oddities(&mut self, turn: &mut Turn<'_, H>) {
        let tally = self.connection.tally();
        let oddities = [
            (Glitch::StreamReset, tally.resets),
            (Glitch::EmptyFrame, tally.empty_frames),
            (Glitch::ControlFrame, tally.control_frames),
            (Glitch::TinyData, tally.tiny_data),
            (Glitch::HeaderChurn, tally.header_churn),
            (Glitch::IgnoredBytes, tally.ignored_frames),
        ];
        for (glitch, count) in oddities {
            if count == 0 {
                continue;
            }
            let counter = turn.metrics.glitches.get(glitch);
            counter.inc_by(count.into());
            let verdict = self.glitches.handle_glitches(glitch, count, turn.now);
            if verdict == GlitchVerdict::Excess {
                let reason = Reason::ENHANCE_YOUR_CALM;
                self.shut_down(reason, CancelReason::Disconnect, turn);
            }
        }
    }

    /// Removes a stream that has ended. A complete response whose request is incomplete ends its
    /// stream as soon as the rest of the body is no longer read.
    fn settle(&mut self, id: u32) {
        let Some(Stage::Sending { lingers_until }) = self.streams.get(&id).map(|it| &it.stage)
        else {
            return;
        };
        if *lingers_until == Moment::NEVER && self.connection.awaits_end(id) {
            // RFC 9113, section 8.1.
            self.connection.reset(id, Reason::NO_ERROR);
        }
        if !self.connection.has_stream(id) {
            self.streams.remove(&id);
            self.exchanges = self.exchanges.wrapping_add(1);
            self.glitches.forgive(http2_limits::POINTS_PER_REQUEST);
        }
    }

    fn settle_all(&mut self) {
        let sending = self.streams.iter().filter(|(_, it)| it.is_sending());
        for id in sending.map(|(&id, _)| id).collect::<Vec<_>>() {
            self.settle(id);
        }
    }

    /// Ends a stream's response with the error `draining`.
    fn cut_off_stream(&mut self, id: u32, lent: &mut Lent<'_, '_, H>) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        match &mut stream.stage {
            Stage::Receiving(_) => {
                if let Stage::Receiving(receiving) = stream.take_stage() {
                    self.refuse(id, H::refusal(receiving.admitted, cut_off()), lent);
                }
            }
            Stage::Answering { exchange, .. } => {
                let now = lent.turn.now;
                let (handler, mut sink) = writer(&mut self.connection, id, lent);
                handler.cut_off(exchange, now, &mut sink);
                self.finish(id, lent.turn);
            }
            Stage::Sending { .. } => {}
        }
    }

    fn abandon_stream(&mut self, id: u32, reason: CancelReason, turn: &mut Turn<'_, H>) {
        let Some(stream) = self.streams.remove(&id) else {
            return;
        };
        if self.connection.has_stream(id) {
            self.connection.reset(id, Reason::CANCEL);
        }
        self.exchanges = self.exchanges.wrapping_add(1);
        let (handler, now) = (&mut *turn.handler, turn.now);
        match stream.stage {
            Stage::Receiving(receiving) => {
                handler.abandon_admitted(receiving.admitted, reason, now);
            }
            Stage::Answering { exchange, .. } => {
                if exchange.has_job() {
                    self.orphans.insert(id);
                }
                handler.abandon(exchange, reason, now);
            }
            Stage::Sending { .. } => {}
        }
    }

    fn abandon_all(&mut self, reason: CancelReason, turn: &mut Turn<'_, H>) {
        while let Some((&id, _)) = self.streams.first_key_value() {
            self.abandon_stream(id, reason, turn);
        }
    }

    /// Ends the connection: GOAWAY with this reason, and nothing after it.
    fn shut_down(&mut self, reason: Reason, cancel: CancelReason, turn: &mut Turn<'_, H>) {
        self.borrow_buffer(turn);
        self.connection.close(reason);
        self.abandon_all(cancel, turn);
        self.state = State::Over;
    }

    fn debug_check(&self) {
        if cfg!(debug_assertions) {
            self.check_invariants();
        }
    }

    /// Checks invariants 3, 5 and 6 of the file's head.
    pub fn check_invariants(&self) {
        let both = self.streams.len() + self.orphans.len();
        assert!(both <= http2_limits::STREAMS_MAX as usize, "invariant 3");
        assert!(self.orphans.iter().all(|id| !self.streams.contains_key(id)));
        assert!(!self.connection.has_output(), "invariant 5");
        for (&id, stream) in &self.streams {
            assert!(self.connection.has_stream(id), "invariant 6");
            assert!(!stream.is_receiving() || self.connection.waiting_bytes(id) == 0);
        }
    }
}

/// Returns the application, and its sink for one stream.
fn writer<'a, H: Handler>(
    connection: &'a mut Connection,
    stream: u32,
    lent: &'a mut Lent<'_, '_, H>,
) -> (&'a mut H, Sink<'a>) {
    let made = lent.output.len() + connection.output_bytes();
    let sink = Sink {
        connection,
        stream,
        date: lent.turn.date,
        has_room: made < lent.turn.marks.high,
        waiting_most: match lent.turn.buffered.admits(Claim::Keyed) {
            true => http2_limits::WAITING_BYTES_MAX,
            false => 0,
        },
    };
    (lent.turn.handler, sink)
}
