//! HTTP/2 from the connection's side: bytes, events and deadlines go in, `poll` sends their
//! results.

use super::stream::{Stage, Stream};
use super::{Credit, Http2, InputState, State, writer};
use crate::core::Moment;
use crate::core::deadlines::DeadlineKind;
use crate::http::ResponseSink;
use crate::http::http2::frame::Reason;
use crate::limits::http2 as http2_limits;
use crate::offload::CancelReason;
use crate::reactor::close_reason::CloseReason;
use crate::reactor::context::{Lent, Turn};
use crate::reactor::handler::Handler;
use crate::reactor::machine::{Input, Machine, Used, Waiting};
use crate::service::{Completion, Flow};

impl<H: Handler> Machine<H> for Http2<H> {
    /// All deadlines become one here, the earliest, because the connection has only one of each
    /// kind.
    fn waiting(&self) -> Waiting {
        let leaving = match self.state {
            State::Leaving { until } => Some(until),
            State::Open | State::Overdue => None,
            State::Over => return Waiting::Over,
        };
        let streams = self.streams.values().map(Stream::next_deadline).min();
        let head = (self.head_until != Moment::NEVER).then_some(self.head_until);
        match [streams, leaving, head].into_iter().flatten().min() {
            Some(until) => Waiting::Response { until },
            // The next `poll` still has to send the end of a response.
            None if self.connection.has_output() => Waiting::Response {
                until: Moment::NEVER,
            },
            None => Waiting::Request,
        }
    }

    fn takes_input(&self) -> bool {
        self.state != State::Over && self.input == InputState::Open
    }

    fn has_stopped_early(&self) -> bool {
        self.has_stopped_early
    }

    fn exchanges(&self) -> u32 {
        self.exchanges
    }

    fn awaits(&self, request: u32) -> bool {
        self.orphans.contains(&request)
            || matches!(
                self.streams.get(&request),
                Some(Stream {
                    stage: Stage::Answering { .. },
                    ..
                })
            )
    }

    fn buffered_bytes(&self) -> usize {
        let streams = self.streams.values().map(Stream::buffered_bytes);
        let frames = self.reader.buffered_bytes() + self.connection.buffered_bytes();
        frames + streams.sum::<usize>()
    }

    /// Uses up all of `input`, unless its time is used up before.
    fn handle_input(&mut self, input: Input<'_>, lent: &mut Lent<'_, '_, H>) -> Used {
        self.prepare(lent);
        let left = self.handle_bytes(input.bytes, lent);
        if left == 0 {
            // Otherwise the rest of what has begun may be among the bytes that are left.
            self.give_up_beginnings(lent);
        }
        self.flush(lent);
        Used {
            consumed: input.bytes.len() - left,
            keep: input.bytes.len(),
            is_known: self.is_known,
        }
    }

    fn handle_end_of_input(&mut self, lent: &mut Lent<'_, '_, H>) {
        self.input = InputState::Ended { is_probed: false };
        self.prepare(lent);
        let streams = self.streams.iter();
        let unfinished = streams.filter(|(_, stream)| stream.is_receiving());
        for id in unfinished.map(|(&id, _)| id).collect::<Vec<_>>() {
            self.abandon_stream(id, CancelReason::Disconnect, lent.turn);
        }
        for stream in self.streams.values_mut() {
            if let Stage::Sending { lingers_until } = &mut stream.stage {
                *lingers_until = Moment::NEVER;
            }
        }
        self.settle_all();
    }

    /// Handles a message of the engine or a worker. The next [`Machine::poll`] sends the result,
    /// together with those of other events.
    fn handle_event(&mut self, request: u32, completion: Completion, lent: &mut Lent<'_, '_, H>) {
        if self.orphans.contains(&request) {
            if completion.is_last() {
                self.orphans.remove(&request);
            }
            return;
        }
        self.prepare(lent);
        let Some(stream) = self.streams.get_mut(&request) else {
            return;
        };
        let Stage::Answering { exchange, .. } = &mut stream.stage else {
            return;
        };
        let now = lent.turn.now;
        let (handler, mut sink) = writer(&mut self.connection, request, lent);
        let flow = handler.handle_event(exchange, completion, now, &mut sink);
        if !sink.has_room() {
            self.credit = Credit::Held;
        }
        if self.connection.waiting_bytes(request) == 0 {
            // All of it fitted into the window. A peer that grants the window byte by byte is
            // forgiven nothing.
            self.glitches.forgive(http2_limits::POINTS_PER_EVENT);
        }
        if flow == Flow::Finished {
            self.finish(request, lent.turn);
        }
    }

    fn handle_deadline(
        &mut self,
        kind: DeadlineKind,
        lent: &mut Lent<'_, '_, H>,
    ) -> Option<CloseReason> {
        self.prepare(lent);
        match kind {
            // The peer gets a GOAWAY before the connection ends.
            DeadlineKind::Idle => {
                self.shut_down(Reason::NO_ERROR, CancelReason::Disconnect, lent.turn);
            }
            DeadlineKind::Request => self.handle_earliest_deadline(lent),
            // `waiting` has the deadlines of heads and bodies; the others belong to the connection.
            DeadlineKind::Header
            | DeadlineKind::Body
            | DeadlineKind::WriteStall
            | DeadlineKind::Linger => {}
        }
        None
    }

    /// Asks the peer with a PING whether it is still there, as HTTP/1 does in its own way.
    fn probe(&mut self, lent: &mut Lent<'_, '_, H>) {
        if self.input == (InputState::Ended { is_probed: false }) && !self.streams.is_empty() {
            self.input = InputState::Ended { is_probed: true };
            self.prepare(lent);
            self.connection.probe();
        }
    }

    fn cut_off(&mut self, lent: &mut Lent<'_, '_, H>) {
        self.prepare(lent);
        for id in self.streams.keys().copied().collect::<Vec<_>>() {
            self.cut_off_stream(id, lent);
        }
        // As far as windows and room allow, with the results of the calls before. Then the GOAWAY,
        // behind which nothing follows; it may be among these results.
        self.flush(lent);
        self.shut_down(Reason::NO_ERROR, CancelReason::Drain, lent.turn);
        self.flush(lent);
    }

    fn abandon(&mut self, reason: CancelReason, turn: &mut Turn<'_, H>) {
        self.state = State::Over;
        self.borrow_buffer(turn);
        self.abandon_all(reason, turn);
        self.orphans.clear();
        self.return_buffer(turn);
    }

    /// Never asks to be called again: the peer's next frame resumes bytes that wait for window, and
    /// the next drained output those that wait for room.
    fn poll(&mut self, lent: &mut Lent<'_, '_, H>) -> bool {
        self.prepare(lent);
        if lent.turn.draining && self.state == State::Open {
            self.connection.begin_shutdown();
            let until = lent.turn.now + http2_limits::GOAWAY_TIMEOUT;
            self.state = State::Leaving { until };
        }
        self.flush(lent);
        if self.state != State::Over && self.input != InputState::Open {
            self.give_up_stalled(lent.turn);
        }
        if self.state != State::Over && self.streams.is_empty() {
            match (self.state, self.input) {
                (State::Overdue, _) => {
                    self.shut_down(Reason::NO_ERROR, CancelReason::Drain, lent.turn);
                }
                (_, InputState::Ended { .. }) => {
                    self.shut_down(Reason::NO_ERROR, CancelReason::Disconnect, lent.turn);
                }
                _ => {}
            }
        }
        if self.connection.has_output() {
            self.flush(lent);
        }
        self.grant_held_credit(lent);
        false
    }
}
