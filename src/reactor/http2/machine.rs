//! HTTP/2 as a connection sees it: bytes, events and deadlines go in, `poll` sends what they
//! brought.

use h2::Reason;

use super::stream::{Stage, Stream};
use super::{Http2, State, writer};
use crate::core::Moment;
use crate::core::deadlines::DeadlineKind;
use crate::core::output::Level;
use crate::engine::Event;
use crate::http::ResponseSink;
use crate::limits::http2 as http2_limits;
use crate::offload::CancelReason;
use crate::reactor::close_reason::CloseReason;
use crate::reactor::context::{Lent, Turn};
use crate::reactor::machine::{Input, Machine, Used, Waiting};
use crate::service::Flow;

impl Machine for Http2 {
    /// All that has a time of its own is one deadline here, the earliest, since the connection has
    /// one of each kind.
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
            None => Waiting::Request,
        }
    }

    fn takes_input(&self) -> bool {
        self.state != State::Over && !self.input_has_ended
    }

    fn exchanges(&self) -> u32 {
        self.exchanges
    }

    fn awaits(&self, request: u32) -> bool {
        self.orphans.contains(&request)
            || matches!(
                self.streams.get(&request),
                Some(Stream {
                    stage: Stage::Answering(_),
                    ..
                })
            )
    }

    /// Takes in all of `input`.
    fn handle_input(&mut self, input: Input<'_>, lent: &mut Lent<'_, '_>) -> Used {
        let input = &*input.bytes;
        let (preface, frames) = input.split_at(self.preface_left.min(input.len()));
        self.preface_left -= preface.len();
        self.tally.clear();
        let violation = self.meter.handle(frames, &mut self.tally).err();
        // h2 gets no part of a frame that must not be.
        let frames = &frames[..violation.map_or(frames.len(), |violation| violation.at)];
        self.head_until = match (self.meter.is_within(), self.head_until) {
            (false, _) => Moment::NEVER,
            // Once, at its first byte: dripping does not extend it.
            (true, Moment::NEVER) => lent.turn.now + lent.turn.config.limits.header_timeout,
            (true, until) => until,
        };
        self.server.feed(preface);
        self.server.feed(frames);
        let accepted = self.drive(frames, lent);
        self.keep_unfinished_block(frames);
        let resets = self.look_at_touched(lent);
        let rejected = self.tally.opened.saturating_sub(accepted);
        self.count_oddities(rejected + resets, lent.turn);
        if let Some(violation) = violation
            && self.state != State::Over
        {
            self.shut_down(violation.reason, CancelReason::Disconnect, lent.turn);
        }
        self.has_work = true;
        Used {
            consumed: input.len(),
            keep: input.len(),
            is_known: self.is_known,
        }
    }

    fn handle_end_of_input(&mut self, lent: &mut Lent<'_, '_>) {
        self.input_has_ended = true;
        self.has_work = true;
        let cut_off = self
            .streams
            .iter()
            .filter(|(_, stream)| stream.is_receiving());
        for id in cut_off.map(|(&id, _)| id).collect::<Vec<_>>() {
            self.abandon_stream(id, CancelReason::Disconnect, lent.turn);
        }
        for stream in self.streams.values_mut() {
            stream.stop_lingering();
        }
    }

    /// An engine's event for a request that [`Machine::awaits`] it. What it makes is sent by the
    /// next [`Machine::poll`], together with what other events have made.
    fn handle_event(&mut self, request: u32, event: Event, lent: &mut Lent<'_, '_>) {
        if self.orphans.contains(&request) {
            if !matches!(event, Event::Token { .. }) {
                self.orphans.remove(&request);
            }
            return;
        }
        let Some(stream) = self.streams.get_mut(&request) else {
            return;
        };
        let Stage::Answering(exchange) = &mut stream.stage else {
            return;
        };
        let now = lent.turn.now;
        let (service, mut reply) = writer(&mut stream.outgoing, lent);
        let flow = service.handle_event(exchange, event, now, &mut reply);
        self.holds_credit |= !reply.has_room();
        if stream.outgoing.waiting_bytes() == 0 {
            // All of it fitted into the window; who grants it byte by byte is forgiven nothing.
            self.glitches.forgive(http2_limits::POINTS_PER_EVENT);
        }
        if flow == Flow::Finished {
            stream.stage = Stage::Sending;
        }
        self.drop_if_over(request);
    }

    fn handle_deadline(
        &mut self,
        kind: DeadlineKind,
        lent: &mut Lent<'_, '_>,
    ) -> Option<CloseReason> {
        match kind {
            // The peer is told before the connection ends.
            DeadlineKind::Idle => {
                self.shut_down(Reason::NO_ERROR, CancelReason::Disconnect, lent.turn);
            }
            DeadlineKind::Request => self.handle_earliest_deadline(lent),
            // A head and a body have their deadlines in `waiting`; the others are the connection's.
            DeadlineKind::Header
            | DeadlineKind::Body
            | DeadlineKind::WriteStall
            | DeadlineKind::Linger => {}
        }
        None
    }

    /// The same question as HTTP/1's, asked with a PING.
    fn probe(&mut self, _: &mut Lent<'_, '_>) {
        if !self.has_probed && !self.streams.is_empty() {
            self.has_probed = true;
            self.has_work = true;
            self.server.probe();
        }
    }

    fn abandon(&mut self, reason: CancelReason, turn: &mut Turn<'_>) {
        self.state = State::Over;
        self.abandon_all(reason, turn);
        self.orphans.clear();
    }

    fn poll(&mut self, lent: &mut Lent<'_, '_>) -> bool {
        if lent.output.level(&lent.turn.marks) == Level::Low {
            self.has_work |= self.server.wants_room() || self.awaits_room;
        }
        self.poll_output(lent);
        self.has_work
    }
}
