//! HTTP/2 on one connection: many requests at once, each on a stream of its own.
//!
//! Owns what is between h2 (`http::http2`) and the service: the streams, which of them is being
//! received and which answered, and when each has to be looked at. The same inputs and outputs as
//! [`super::http1`]: bytes come in by `handle_input`, answers go into the connection's output
//! queue. It knows no socket.
//!
//! ```text
//!            GOAWAY, GOAWAY           no stream is left
//!   Open ────────────────> Leaving ────────────────────> Over
//!    └── an error of the peer, its FIN, too many oddities ──^
//! ```
//!
//! Bytes that come are driven through h2 at once. All other calls act on streams and their handles
//! and leave `has_work` behind: the connection's next `poll` lets h2 write what all of them have
//! brought. Nobody is woken: see `http::http2`.
//!
//! Invariants:
//!  1. Every request that was admitted ends in exactly one of: a complete answer, `abandon`.
//!  2. A stream's number is its request's, so an event of a stream that is gone is recognised.
//!  3. A stream that was given up while its job runs stays among the orphans until the job has
//!     ended, and counts against the peer's streams: resets cannot pile up work.
//!  4. Memory for one connection is bounded by its streams, its bodies' bytes and the output's
//!     marks.
//!  5. What waits for the peer's window is no work: `has_work` does not stay set for it.

mod machine;
mod reception;
mod reply;
mod stream;

use std::collections::{BTreeMap, BTreeSet};

use h2::Reason;

use super::context::{Lent, Turn};
use super::machine::late;
use crate::core::Moment;
use crate::core::deadlines::{Taken, stalls_at};
use crate::core::glitch::{Glitch, GlitchBudget, GlitchVerdict};
use crate::core::output::Level;
use crate::http::http2::meter::{FrameMeter, Tally};
use crate::http::http2::{Polled, Server};
use crate::http::sniff::PREFACE;
use crate::limits::http2 as http2_limits;
use crate::offload::CancelReason;
use crate::service::{Flow, Refusal, Service};

use reply::{Outgoing, Sink};
use stream::{Stage, Stream};

pub struct Http2 {
    server: Server,
    meter: FrameMeter,
    tally: Tally,
    /// The beginning of a field block that was fed and goes on.
    unfinished: Vec<u8>,
    /// Bytes of the preface that are still to come; the meter begins behind it.
    preface_left: usize,
    /// By their numbers.
    streams: BTreeMap<u32, Stream>,
    /// Requests whose stream is gone and whose job has not ended.
    orphans: BTreeSet<u32>,
    glitches: GlitchBudget,
    state: State,
    /// How many requests have been answered, refused or given up.
    exchanges: u32,
    /// A frame or a head that has begun has to be whole by then.
    head_until: Moment,
    /// The peer has sent its FIN: it gets the answers that it waits for, and nothing is read.
    input_has_ended: bool,
    has_probed: bool,
    /// A handle was used since h2 was last polled.
    has_work: bool,
    /// A stream was told that there is no room, and may hold credit back.
    holds_credit: bool,
    /// It is the connection's output that has to drain before that can be looked at.
    awaits_room: bool,
    /// A valid key has come, or a job has run.
    is_known: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    /// The peer knows that we go; by then it must have said so.
    Leaving {
        until: Moment,
    },
    /// It has not said so. Its streams are waited for, and the connection ends with the last.
    Overdue,
    Over,
}

impl Http2 {
    pub fn new(now: Moment) -> Http2 {
        Http2 {
            server: Server::new(),
            meter: FrameMeter::default(),
            tally: Tally::default(),
            unfinished: Vec::new(),
            preface_left: PREFACE.len(),
            streams: BTreeMap::new(),
            orphans: BTreeSet::new(),
            glitches: GlitchBudget::new(now),
            state: State::Open,
            exchanges: 0,
            head_until: Moment::NEVER,
            input_has_ended: false,
            has_probed: false,
            has_work: false,
            holds_credit: false,
            awaits_room: false,
            is_known: false,
        }
    }

    #[cfg(test)]
    pub fn is_answering(&self) -> bool {
        !self.streams.is_empty()
    }

    // ---- handle ----

    /// The earliest of the deadlines has passed.
    fn handle_earliest_deadline(&mut self, lent: &mut Lent<'_, '_>) {
        let now = lent.turn.now;
        let due = self.streams.iter();
        let due = due.filter(|(_, stream)| stream.next_deadline() <= now);
        for id in due.map(|(&id, _)| id).collect::<Vec<_>>() {
            self.handle_stream_deadline(id, lent);
        }
        if self.head_until <= now {
            self.shut_down(
                Reason::ENHANCE_YOUR_CALM,
                CancelReason::Disconnect,
                lent.turn,
            );
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

    fn handle_stream_deadline(&mut self, id: u32, lent: &mut Lent<'_, '_>) {
        let now = lent.turn.now;
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        if stream.stalls_at <= now {
            stream.outgoing.reset(Reason::CANCEL);
            return self.abandon_stream(id, CancelReason::SlowReader, lent.turn);
        }
        match std::mem::replace(&mut stream.stage, Stage::Sending) {
            Stage::Receiving(receiving) => {
                let error = late("body", lent.turn.config.limits.body_timeout);
                let refusal = receiving.admitted.refuse(error);
                refuse(&mut stream.outgoing, refusal, lent);
            }
            Stage::Answering(mut exchange) => {
                let (service, mut reply) = writer(&mut stream.outgoing, lent);
                if service.handle_deadline(&mut exchange, now, &mut reply) == Flow::Open {
                    stream.stage = Stage::Answering(exchange);
                }
            }
            Stage::Sending => stream.stop_lingering(),
        }
        self.drop_if_over(id);
    }

    // ---- poll ----

    /// Sends what the calls before have brought, and begins to leave when the daemon does. Called
    /// once a pump, before the connection writes.
    fn poll_output(&mut self, lent: &mut Lent<'_, '_>) {
        if lent.turn.draining && self.state == State::Open {
            self.server.begin_shutdown();
            let until = lent.turn.now + http2_limits::GOAWAY_TIMEOUT;
            self.state = State::Leaving { until };
            self.has_work = true;
        }
        if std::mem::take(&mut self.has_work) {
            self.drive(b"", lent);
        }
        if self.state == State::Overdue && self.streams.is_empty() {
            self.shut_down(Reason::NO_ERROR, CancelReason::Drain, lent.turn);
            self.drive(b"", lent);
        }
        if self.input_has_ended && self.state != State::Over {
            self.give_up_stalled(lent.turn);
            if self.streams.is_empty() {
                self.shut_down(Reason::NO_ERROR, CancelReason::Disconnect, lent.turn);
                self.drive(b"", lent);
            }
        }
    }

    /// After the peer's FIN no window will be granted: who needs more waits in vain. What waits
    /// while h2 has room to write waits for window.
    fn give_up_stalled(&mut self, turn: &mut Turn<'_>) {
        if self.server.wants_room() {
            return;
        }
        let streams = self.streams.iter();
        let stalled = streams.filter(|(_, stream)| stream.outgoing.waiting_bytes() > 0);
        for id in stalled.map(|(&id, _)| id).collect::<Vec<_>>() {
            self.abandon_stream(id, CancelReason::Disconnect, turn);
        }
    }

    /// Lets h2 read, write and hand over requests until nothing moves any more. `frames` are those
    /// that it was just fed. Gives the number of requests.
    fn drive(&mut self, frames: &[u8], lent: &mut Lent<'_, '_>) -> u32 {
        let mut accepted = 0;
        loop {
            accepted += self.take_requests(frames, lent);
            if !self.push_waiting(lent.turn) {
                break;
            }
        }
        self.grant_held_credit(lent);
        accepted
    }

    fn take_requests(&mut self, frames: &[u8], lent: &mut Lent<'_, '_>) -> u32 {
        let mut accepted = 0;
        loop {
            let room = lent.turn.marks.high.saturating_sub(lent.output.len());
            let polled = self.server.poll_request(room);
            if matches!(polled, Polled::Closed) && !frames.is_empty() {
                let unfinished = std::mem::take(&mut self.unfinished);
                self.server.correct_goaway(&[&unfinished, frames].concat());
            }
            if let Some(bytes) = self.server.take_output() {
                let earned = bytes.len() as u32 / http2_limits::BYTES_PER_CONTROL_FRAME;
                self.glitches.forgive(earned);
                lent.output.push_bytes(bytes, lent.turn.pool);
            }
            match polled {
                Polled::Request(incoming) => {
                    accepted += 1;
                    self.handle_request(*incoming, lent);
                }
                Polled::Waiting => return accepted,
                Polled::Closed => {
                    self.abandon_all(CancelReason::Disconnect, lent.turn);
                    self.state = State::Over;
                    return accepted;
                }
            }
        }
    }

    /// Streams whose window, or whose room with h2, may have grown.
    fn push_waiting(&mut self, turn: &mut Turn<'_>) -> bool {
        let mut took = false;
        let mut over = Vec::new();
        for (&id, stream) in &mut self.streams {
            let before = stream.outgoing.waiting_bytes();
            took |= stream.outgoing.push();
            let left = stream.outgoing.waiting_bytes();
            stream.stalls_at = match left {
                0 => Moment::NEVER,
                _ => {
                    let bytes = before - left;
                    let timeout = turn.config.limits.write_timeout;
                    stalls_at(stream.stalls_at, Taken { bytes, left }, turn.now, timeout)
                }
            };
            if stream.is_over() {
                over.push(id);
            }
        }
        over.into_iter().for_each(|id| self.drop_if_over(id));
        took
    }

    /// Streams that are short of window are looked at again when the peer has sent something: the
    /// connection's room is no news for them, or the loop would turn for nothing.
    fn grant_held_credit(&mut self, lent: &mut Lent<'_, '_>) {
        let has_drained = lent.output.level(&lent.turn.marks) <= Level::Low;
        self.awaits_room = self.holds_credit && !has_drained;
        if !self.holds_credit || !has_drained {
            return;
        }
        self.holds_credit = false;
        for stream in self.streams.values_mut() {
            let Stage::Answering(exchange) = &mut stream.stage else {
                continue;
            };
            match stream.outgoing.waiting_bytes() <= lent.turn.marks.low {
                true => lent.turn.handler.handle_room(exchange),
                false => self.holds_credit = true,
            }
        }
    }

    // ---- helpers ----

    /// Looks at the streams that the peer's frames were about: bodies go on, and who was reset is
    /// let go of. Gives the number of those that were reset while there was something to do.
    fn look_at_touched(&mut self, lent: &mut Lent<'_, '_>) -> u32 {
        let touched = std::mem::take(&mut self.tally.touched);
        let mut resets = 0;
        for &id in &touched {
            let Some(stream) = self.streams.get_mut(&id) else {
                continue;
            };
            if stream.outgoing.was_reset() {
                self.abandon_stream(id, CancelReason::Disconnect, lent.turn);
                resets += 1;
            } else if self.meter.has_malformed_trailers(id) {
                self.reset_malformed(id, lent.turn);
            } else if let Stage::Receiving(_) = stream.stage {
                self.receive(id, lent);
            } else if stream.pieces.is_some() {
                self.receive_pieces(id, lent);
            } else {
                stream.discard();
                self.drop_if_over(id);
            }
        }
        self.tally.touched = touched;
        resets
    }

    /// Trailers with a pseudo-field make the whole message malformed (RFC 9113, section 8.1), which
    /// is an error of the stream (section 8.1.1).
    fn reset_malformed(&mut self, id: u32, turn: &mut Turn<'_>) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.outgoing.reset(Reason::PROTOCOL_ERROR);
            self.abandon_stream(id, CancelReason::Disconnect, turn);
        }
    }

    /// `resets` streams cost us an admission and came to nothing: reset by the peer, or by h2 for
    /// the peer's errors. Those with malformed trailers are counted with them.
    fn count_oddities(&mut self, resets: u32, turn: &mut Turn<'_>) {
        let tally = &self.tally;
        let oddities = [
            (Glitch::StreamReset, resets + tally.malformed_trailers),
            (Glitch::EmptyFrame, tally.empty_frames),
            // A reset of a stream that is over already costs no more than another frame.
            (
                Glitch::ControlFrame,
                tally.control_frames + tally.resets.saturating_sub(resets),
            ),
            (Glitch::TinyData, tally.tiny_data),
            (Glitch::HeaderChurn, tally.header_churn),
            (Glitch::IgnoredBytes, tally.ignored_frames),
        ];
        for (glitch, count) in oddities {
            if count == 0 {
                continue;
            }
            let counter = turn.metrics.glitches(glitch.as_str());
            counter.inc_by(count.into());
            let verdict = self.glitches.handle_glitches(glitch, count, turn.now);
            if verdict == GlitchVerdict::Excess {
                self.shut_down(Reason::ENHANCE_YOUR_CALM, CancelReason::Disconnect, turn);
            }
        }
    }

    /// After anything was done to a stream: one that is over is let go of.
    fn drop_if_over(&mut self, id: u32) {
        self.has_work = true;
        if self.streams.get(&id).is_some_and(Stream::is_over) {
            self.streams.remove(&id);
            self.meter.forget(id);
            self.exchanges = self.exchanges.wrapping_add(1);
            self.glitches.forgive(http2_limits::POINTS_PER_REQUEST);
        }
    }

    fn abandon_stream(&mut self, id: u32, reason: CancelReason, turn: &mut Turn<'_>) {
        let Some(stream) = self.streams.remove(&id) else {
            return;
        };
        self.meter.forget(id);
        self.exchanges = self.exchanges.wrapping_add(1);
        self.has_work = true;
        let (service, now) = (&mut *turn.handler, turn.now);
        match stream.stage {
            Stage::Receiving(receiving) => {
                service.abandon_admitted(receiving.admitted, reason, now);
            }
            Stage::Answering(exchange) => {
                if exchange.has_job() {
                    self.orphans.insert(id);
                }
                service.abandon(exchange, reason, now);
            }
            Stage::Sending => {}
        }
    }

    fn abandon_all(&mut self, reason: CancelReason, turn: &mut Turn<'_>) {
        while let Some((&id, _)) = self.streams.first_key_value() {
            self.abandon_stream(id, reason, turn);
        }
    }

    /// Keeps what the batch has brought of a field block that goes on in the next one, should h2
    /// refuse it: see `http::http2::explain`. Of more than the bound it keeps nothing, and h2's own
    /// error code stands.
    fn keep_unfinished_block(&mut self, frames: &[u8]) {
        let Some(from) = self.meter.unfinished_block() else {
            self.unfinished = Vec::new();
            return;
        };
        if from > 0 {
            self.unfinished.clear();
        }
        match self.unfinished.len() + frames.len() - from <= http2_limits::EXPLAINED_BYTES_MAX {
            true => self.unfinished.extend_from_slice(&frames[from..]),
            false => self.unfinished = Vec::new(),
        }
    }

    /// Ends the connection: GOAWAY with this reason, and nothing after it.
    fn shut_down(&mut self, reason: Reason, cancel: CancelReason, turn: &mut Turn<'_>) {
        self.server.shut_down(reason);
        self.abandon_all(cancel, turn);
        self.state = State::Over;
        self.has_work = true;
    }
}

/// The service, and its way to one stream.
fn writer<'a>(
    outgoing: &'a mut Outgoing,
    lent: &'a mut Lent<'_, '_>,
) -> (&'a mut Service, Sink<'a>) {
    let has_room = lent.output.level(&lent.turn.marks) < Level::High;
    let writer = Sink {
        outgoing,
        date: lent.turn.date,
        has_room,
    };
    (lent.turn.handler, writer)
}

fn refuse(outgoing: &mut Outgoing, refusal: Refusal, lent: &mut Lent<'_, '_>) {
    let now = lent.turn.now;
    let (service, mut reply) = writer(outgoing, lent);
    service.refuse(refusal, now, &mut reply);
}
