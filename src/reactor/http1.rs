//! HTTP/1.1 on one connection: requests come in one after the other, and each gets its response.
//!
//! Owns what is between the codec (`http::http1`) and the application ([`Handler`]): which request
//! is being received, which one is being served, and how its response is framed. It knows no
//! socket: bytes come in by [`Machine::handle_input`], responses go into the connection's output
//! queue.
//!
//! ```text
//!            head complete, admitted          body complete, a job runs
//!  Receiving(None) ------> Receiving(Some) ------------------> Answering
//!      ^  |                     |    |                             |
//!      |  | refused             |    | complete at once            | response complete
//!      |  v                     v    v                             v
//!      |  Over <--------- not persistent --------------------------+
//!      +----------------- persistent ------------------------------+
//! ```
//!
//! Invariants; `check_invariants` checks the first two after each call in debug builds:
//!  1. One request at a time: while one is being served, later bytes are not read (RFC 9112,
//!     section 9.3.2: responses in the order of the requests).
//!  2. Every admitted request ends in exactly one of: a complete response, `abandon`.
//!  3. `request` grows with each exchange, so an event of an earlier one is recognised as stale.
//!
//! # Example
//!
//! The machine with the smallest application there is, which greets every request:
//!
//! ```
//! use std::borrow::Cow;
//! use std::sync::Arc;
//!
//! use autoglmd::config::Config;
//! use autoglmd::core::output::OutputQueue;
//! use autoglmd::core::{Key, Moment};
//! use autoglmd::error::ApiError;
//! use autoglmd::http::{Fields, Request, ResponseHead, ResponseSink};
//! use autoglmd::offload::{CancelReason, JobKey};
//! use autoglmd::reactor::context::{Lent, Resources};
//! use autoglmd::reactor::handler::{Admission, Handler, Pending};
//! use autoglmd::reactor::http1::Http1;
//! use autoglmd::reactor::machine::{Input, Machine, Waiting};
//! use autoglmd::service::{Completion, Flow, Intake, Peer, PeerAddress};
//! use autoglmd::telemetry::metrics::Metrics;
//!
//! struct Greeter;
//! struct Welcome;
//! /// It responds at once, so no exchange ever waits.
//! enum Never {}
//!
//! impl Handler for Greeter {
//!     type Admitted = Welcome;
//!     type Exchange = Never;
//!     type Refusal = ApiError;
//!
//!     fn admit(&mut self, _: &Request<'_>, _: &Peer, _: Moment) -> Result<Welcome, ApiError> {
//!         Ok(Welcome)
//!     }
//!     fn handle(
//!         &mut self,
//!         _: Welcome,
//!         request: &Request<'_>,
//!         _body: Cow<'_, [u8]>,
//!         _: JobKey,
//!         _: Moment,
//!         sink: &mut dyn ResponseSink,
//!     ) -> Option<Box<Never>> {
//!         let head = ResponseHead { status: 200, content_type: None, headers: &Fields::new() };
//!         sink.respond(&head, format!("hello, {}", request.path).as_bytes());
//!         None
//!     }
//!     fn refuse(&mut self, error: ApiError, _: Moment, sink: &mut dyn ResponseSink) {
//!         let status = error.code.status();
//!         let head = ResponseHead { status, content_type: None, headers: &Fields::new() };
//!         sink.respond(&head, error.message.as_bytes());
//!     }
//!     fn refusal(_: Welcome, error: ApiError) -> ApiError { error }
//!     fn refusal_of_peer(_: &Peer, error: ApiError) -> ApiError { error }
//!     fn abandon_admitted(&mut self, _: Welcome, _: CancelReason, _: Moment) {}
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
//! }
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
//! let mut http1 = Http1::<Greeter>::new(now);
//!
//! // Two requests in one read, the second of them without its last byte.
//! let mut bytes = *b"GET /a HTTP/1.1\r\nhost: x\r\n\r\nGET /b HTTP/1.1\r\nhost: x\r\n\r";
//! let fresh = bytes.len();
//! let used = http1.handle_input(
//!     Input { bytes: &mut bytes, fresh },
//!     &mut Lent {
//!         peer: &Peer::new(PeerAddress::Unix),
//!         output: &mut output,
//!         turn: &mut resources.turn(Key::new(0, 1)),
//!     },
//! );
//! assert_eq!(used.consumed, 28);
//! assert_eq!(http1.waiting(), Waiting::Head);
//! let mut slices = [std::io::IoSlice::new(&[])];
//! output.io_slices(&mut slices);
//! assert!(slices[0].starts_with(b"HTTP/1.1 200 OK\r\n"));
//! assert!(slices[0].ends_with(b"hello, /a"));
//! ```
mod reception;
mod reply;
#[cfg(test)]
mod tests;

use reply::Framing;

use super::close_reason::CloseReason;
use super::context::{Lent, Turn};
use super::handler::{Admission, Handler, Pending};
use super::machine::{Input, Machine, Used, Waiting, cut_off, late};
use crate::core::Moment;
use crate::core::deadlines::DeadlineKind;
use crate::core::glitch::{Glitch, GlitchBudget, GlitchVerdict};
use crate::core::output::Level;
use crate::error::{ApiError, ErrorCode};
use crate::http::http1::{Reception, Stage as ReceptionStage};
use crate::offload::CancelReason;
use crate::service::{Completion, Flow, Service};

pub struct Http1<H: Handler = Service> {
    reception: Reception,
    stage: Stage<H>,
    framing: Framing,
    glitches: GlitchBudget,
    /// The number of the present or next exchange: how many have ended.
    request: u32,
}

enum Stage<H: Handler> {
    /// A request is awaited or arriving; `Some` once its head was admitted.
    Receiving(Option<Box<H::Admitted>>),
    /// A job runs.
    Answering(Box<H::Exchange>),
    /// The last response of this connection is in the output queue.
    Over,
}

impl<H: Handler> Http1<H> {
    pub fn new(now: Moment) -> Http1<H> {
        Http1 {
            reception: Reception::new(),
            stage: Stage::Receiving(None),
            framing: Framing::default(),
            glitches: GlitchBudget::new(now),
            request: 0,
        }
    }

    /// Responds to bytes that are not an HTTP/1 request at all. The connection ends with it.
    pub fn refuse_connection(error: ApiError, lent: &mut Lent<'_, '_, H>) {
        Http1::new(lent.turn.now).refuse_received(error, lent);
    }

    /// Returns whether a valid key came with the present request, or its job runs.
    fn is_known(&self) -> bool {
        match &self.stage {
            Stage::Receiving(admitted) => admitted.as_ref().is_some_and(|it| it.has_key()),
            Stage::Answering(exchange) => exchange.has_job(),
            Stage::Over => false,
        }
    }

    /// Counts `count` new bytes, before they are read. Refuses a request that has come too slowly
    /// for too long.
    fn handle_arrival(&mut self, count: usize, lent: &mut Lent<'_, '_, H>) {
        let now = lent.turn.now;
        if self.waiting() == Waiting::Request {
            self.glitches.begin_transfer(now);
        }
        let drips = self.glitches.poll_drips(now);
        self.glitches.handle_bytes(count);
        if self.is_excess(Glitch::Drip, drips, lent.turn) {
            let error = ApiError::new(ErrorCode::RequestTimeout, TOO_SLOW);
            self.refuse_received(error, lent);
        }
    }

    /// Counts events that a peer may cause, but not often. Returns whether they were too many.
    fn is_excess(&mut self, glitch: Glitch, count: u32, turn: &Turn<'_, H>) -> bool {
        if count == 0 {
            return false;
        }
        let counter = turn.metrics.glitches.get(glitch);
        counter.inc_by(count.into());
        let verdict = self.glitches.handle_glitches(glitch, count, turn.now);
        verdict == GlitchVerdict::Excess
    }

    /// Calls the exchange at its own deadline: for a ping, or because its time has passed.
    fn handle_exchange_deadline(&mut self, lent: &mut Lent<'_, '_, H>) {
        let Stage::Answering(exchange) = &mut self.stage else {
            return;
        };
        self.framing.last |= lent.turn.draining;
        let now = lent.turn.now;
        let (handler, mut sink) = self.framing.sink(lent);
        match handler.handle_deadline(exchange, now, &mut sink) {
            Flow::Open => {}
            Flow::Finished => self.finish(),
        }
    }

    /// Refuses an arriving request that has taken too long.
    fn handle_late_request(&mut self, lent: &mut Lent<'_, '_, H>) {
        let limits = &lent.turn.config.limits;
        let error = match self.waiting() {
            Waiting::Head => late("head", limits.header_timeout),
            Waiting::Body => late("body", limits.body_timeout),
            // The deadline belongs to a request that has been received since.
            Waiting::Request | Waiting::Response { .. } | Waiting::Over => return,
        };
        self.refuse_received(error, lent);
    }

    /// Refuses the arriving request.
    fn refuse_received(&mut self, error: ApiError, lent: &mut Lent<'_, '_, H>) {
        let refusal = match self.take_admitted() {
            Some(admitted) => H::refusal(admitted, error),
            None => H::refusal_of_peer(lent.peer, error),
        };
        self.refuse(refusal, lent);
    }

    /// Responds with an error and ends the connection: the following bytes cannot be trusted, or
    /// are more than we want to read.
    fn refuse(&mut self, refusal: H::Refusal, lent: &mut Lent<'_, '_, H>) {
        self.framing.last = true;
        self.answer_refusal(refusal, lent);
    }

    fn answer_refusal(&mut self, refusal: H::Refusal, lent: &mut Lent<'_, '_, H>) {
        let now = lent.turn.now;
        let (handler, mut sink) = self.framing.sink(lent);
        handler.refuse(refusal, now, &mut sink);
        self.finish();
    }

    /// The response is complete: waits for the next request, or ends.
    fn finish(&mut self) {
        debug_assert!(self.framing.is_complete());
        self.request = self.request.wrapping_add(1);
        self.reception = Reception::new();
        self.stage = if self.framing.last {
            Stage::Over
        } else {
            Stage::Receiving(None)
        };
        self.framing = Framing::default();
    }

    fn debug_check(&self) {
        if cfg!(debug_assertions) {
            self.check_invariants();
        }
    }

    /// Checks invariants 1 and 2: the stage, the input and the output agree.
    fn check_invariants(&self) {
        match &self.stage {
            Stage::Receiving(None) => {
                assert!(
                    self.framing.has_not_begun(),
                    "a response before its request"
                );
                let stage = self.reception.stage();
                assert!(matches!(stage, ReceptionStage::Idle | ReceptionStage::Head));
            }
            Stage::Receiving(Some(_)) => {
                assert!(
                    self.framing.has_not_begun(),
                    "a response before its request"
                );
                assert_eq!(self.reception.stage(), ReceptionStage::Body);
            }
            Stage::Answering(_) => {
                assert!(!self.framing.is_complete(), "a job outlives its response");
            }
            Stage::Over => {}
        }
    }
}

impl<H: Handler> Machine<H> for Http1<H> {
    fn waiting(&self) -> Waiting {
        match &self.stage {
            Stage::Receiving(Some(_)) => Waiting::Body,
            Stage::Receiving(None) if self.reception.stage() == ReceptionStage::Idle => {
                Waiting::Request
            }
            Stage::Receiving(None) => Waiting::Head,
            Stage::Answering(exchange) => Waiting::Response {
                until: exchange.next_deadline(),
            },
            Stage::Over => Waiting::Over,
        }
    }

    fn takes_input(&self) -> bool {
        matches!(self.stage, Stage::Receiving(_))
    }

    /// It stops between two requests, never within one.
    fn has_stopped_early(&self) -> bool {
        self.waiting() == Waiting::Request
    }

    fn exchanges(&self) -> u32 {
        self.request
    }

    fn awaits(&self, request: u32) -> bool {
        matches!(self.stage, Stage::Answering(_)) && self.request == request
    }

    fn buffered_bytes(&self) -> usize {
        match &self.stage {
            Stage::Answering(exchange) => exchange.buffered_bytes(),
            Stage::Receiving(_) | Stage::Over => 0,
        }
    }

    fn handle_input(&mut self, input: Input<'_>, lent: &mut Lent<'_, '_, H>) -> Used {
        let Input { bytes, fresh } = input;
        if fresh > 0 {
            self.handle_arrival(fresh, lent);
        }
        let used = self.receive(bytes, lent);
        self.debug_check();
        used
    }

    /// Drops a request that the FIN has cut off: it frees its places and does not time out later.
    /// No more input is wanted: after the FIN no further request can come.
    fn handle_end_of_input(&mut self, lent: &mut Lent<'_, '_, H>) {
        self.abandon(CancelReason::Disconnect, lent.turn);
    }

    fn handle_event(&mut self, request: u32, completion: Completion, lent: &mut Lent<'_, '_, H>) {
        debug_assert!(self.awaits(request), "an event of another request");
        let Stage::Answering(exchange) = &mut self.stage else {
            return;
        };
        self.framing.last |= lent.turn.draining;
        let now = lent.turn.now;
        let (handler, mut sink) = self.framing.sink(lent);
        match handler.handle_event(exchange, completion, now, &mut sink) {
            Flow::Open => {}
            Flow::Finished => self.finish(),
        }
        self.debug_check();
    }

    fn handle_deadline(
        &mut self,
        kind: DeadlineKind,
        lent: &mut Lent<'_, '_, H>,
    ) -> Option<CloseReason> {
        match kind {
            DeadlineKind::Idle => return Some(CloseReason::Idle),
            DeadlineKind::Header | DeadlineKind::Body => self.handle_late_request(lent),
            DeadlineKind::Request => self.handle_exchange_deadline(lent),
            // These belong to the connection.
            DeadlineKind::WriteStall | DeadlineKind::Linger => {}
        }
        self.debug_check();
        None
    }

    /// An interim response may come before any final one (RFC 9110, section 15.2); of these, every
    /// client skips 100. HTTP/1.0 has none, so such a client is assumed to wait.
    fn probe(&mut self, lent: &mut Lent<'_, '_, H>) {
        if let Stage::Answering(_) = self.stage {
            self.framing.probe(lent.output, lent.turn.pool);
        }
    }

    fn cut_off(&mut self, lent: &mut Lent<'_, '_, H>) {
        if let Stage::Answering(exchange) = &mut self.stage {
            self.framing.last = true;
            let now = lent.turn.now;
            let (handler, mut sink) = self.framing.sink(lent);
            handler.cut_off(exchange, now, &mut sink);
            self.finish();
        } else if matches!(self.waiting(), Waiting::Head | Waiting::Body) {
            self.refuse_received(cut_off(), lent);
        }
        self.debug_check();
    }

    fn abandon(&mut self, reason: CancelReason, turn: &mut Turn<'_, H>) {
        match std::mem::replace(&mut self.stage, Stage::Over) {
            Stage::Receiving(Some(admitted)) => {
                turn.handler.abandon_admitted(*admitted, reason, turn.now);
            }
            Stage::Answering(exchange) => turn.handler.abandon(exchange, reason, turn.now),
            Stage::Receiving(None) | Stage::Over => {}
        }
    }

    fn poll(&mut self, lent: &mut Lent<'_, '_, H>) -> bool {
        let level = lent.output.level(&lent.turn.marks);
        if let Stage::Answering(exchange) = &mut self.stage
            && level == Level::Low
        {
            lent.turn.handler.handle_room(exchange);
        }
        if !self.takes_input() || level >= Level::High {
            // Nothing is read until the next pump, so that the silence is not the peer's fault.
            self.glitches.begin_transfer(lent.turn.now);
        }
        false
    }
}

const TOO_SLOW: &str = "the request arrives too slowly";
