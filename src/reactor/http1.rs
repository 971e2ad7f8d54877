//! HTTP/1.1 on one connection: requests come in one after the other, each gets its answer.
//!
//! Owns what is between the codec (`http::http1`) and the service: which request is being
//! received, which one is being answered, and how its answer is framed. It knows no socket: bytes
//! come in by [`Http1::handle_input`], answers go into the connection's output queue. HTTP/2 takes
//! the same inputs and outputs.
//!
//! ```text
//!            head complete, admitted          body complete, a job runs
//!  Receiving(None) ------> Receiving(Some) ------------------> Answering
//!      ^  |                     |    |                             |
//!      |  | refused             |    | answered at once            | answer complete
//!      |  v                     v    v                             v
//!      |  Over <--------- not persistent --------------------------+
//!      +----------------- persistent ------------------------------+
//! ```
//!
//! Invariants:
//!  1. One request at a time: while one is being answered, later bytes are not looked at
//!     (RFC 9112, section 9.3.2: answers in the order of the requests).
//!  2. Every request that was admitted ends in exactly one of: a complete answer, `abandon`.
//!  3. `request` grows with each exchange, so an event of an earlier one is recognised as stale.

mod reply;

use reply::Framing;

use super::context::{Lent, Turn, Used, Waiting, late};
use super::handler::{Admission, Handler, Pending};
use crate::core::Moment;
use crate::core::glitch::{Glitch, GlitchBudget, GlitchVerdict};
use crate::core::output::Level;
use crate::engine::Event;
use crate::error::{ApiError, ErrorCode};
use crate::http::http1::{
    Accepted, Head, HeadSpan, Message, Progress, Reception, Stage as ReceptionStage, Storage,
    encode,
};
use crate::limits::reactor as limits;
use crate::offload::{CancelReason, JobKey};
use crate::service::{Flow, Service};

pub struct Http1<H: Handler = Service> {
    reception: Reception,
    stage: Stage<H>,
    framing: Framing,
    glitches: GlitchBudget,
    /// The number of the exchange in progress, or of the next one: how many are over.
    request: u32,
}

enum Stage<H: Handler> {
    /// A request is awaited or on its way in; `Some` once its head was admitted.
    Receiving(Option<Box<H::Admitted>>),
    /// A job runs.
    Answering(Box<H::Exchange>),
    /// The last answer of this connection is in the output queue.
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

    pub fn waiting(&self) -> Waiting {
        match &self.stage {
            Stage::Receiving(Some(_)) => Waiting::Body,
            Stage::Receiving(None) if self.reception.stage() == ReceptionStage::Idle => {
                Waiting::Request
            }
            Stage::Receiving(None) | Stage::Over => Waiting::Head,
            Stage::Answering(exchange) => Waiting::Answer {
                until: exchange.next_deadline(),
            },
        }
    }

    /// How many requests have been answered, or refused.
    pub fn exchanges(&self) -> u32 {
        self.request
    }

    /// Whether a valid key has come with the present request, or its job runs.
    fn is_known(&self) -> bool {
        match &self.stage {
            Stage::Receiving(admitted) => admitted.as_ref().is_some_and(|it| it.has_key()),
            Stage::Answering(exchange) => exchange.has_job(),
            Stage::Over => false,
        }
    }

    /// Whether bytes of a request may be handed in.
    pub fn is_receptive(&self) -> bool {
        matches!(self.stage, Stage::Receiving(_))
    }

    pub fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Over)
    }

    /// Whether this request's job still has somebody who waits for it.
    pub fn awaits(&self, request: u32) -> bool {
        matches!(self.stage, Stage::Answering(_)) && self.request == request
    }

    /// Answers what is no request of this connection, and ends it.
    pub fn refuse_connection(&mut self, error: ApiError, lent: &mut Lent<'_, '_, H>) {
        let _ = self.refuse_received(error, lent);
    }

    /// `count` bytes have come, which [`Http1::handle_input`] is given next. A request that comes
    /// too slowly for too long is answered here.
    pub fn handle_arrival(&mut self, count: usize, lent: &mut Lent<'_, '_, H>) {
        if self.waiting() == Waiting::Request {
            self.handle_pause(lent.turn.now);
        }
        let drips = self.glitches.poll_drips(lent.turn.now);
        self.glitches.handle_bytes(count);
        if self.is_excess(Glitch::Drip, drips, lent.turn) {
            let error = ApiError::new(ErrorCode::RequestTimeout, TOO_SLOW);
            self.refuse_received(error, lent);
        }
    }

    /// Nothing is read until `now`: that nothing comes is not the peer's fault.
    pub fn handle_pause(&mut self, now: Moment) {
        self.glitches.begin_transfer(now);
    }

    /// Takes in `input`, which starts with the first byte that was not used up before. What
    /// remains of it is to be handed in again: with more bytes behind it, or after the answer that
    /// it has to wait for.
    ///
    /// It stops early, for the budget or for want of room, only between two requests: what remains
    /// then has not been looked at, and [`Waiting::Request`] says so.
    pub fn handle_input(&mut self, input: &mut [u8], lent: &mut Lent<'_, '_, H>) -> Used {
        let mut used = Used {
            consumed: 0,
            keep: input.len(),
            is_known: false,
        };
        let mut handled = 0;
        while handled < limits::REQUESTS_PER_READ_MAX
            && used.consumed < input.len()
            && self.is_receptive()
            && lent.output.level(&lent.turn.marks) < Level::High
        {
            match self.receive(&mut input[used.consumed..], lent) {
                Step::Incomplete { keep } => {
                    used.keep = used.consumed + keep;
                    break;
                }
                Step::Admitted | Step::Refused => {}
                Step::Handled { consumed, has_key } => {
                    used.consumed += consumed;
                    used.is_known |= has_key;
                    handled += 1;
                    // What follows is another request, which has begun only now.
                    self.handle_pause(lent.turn.now);
                }
            }
        }
        if self.is_over() {
            used.consumed = input.len();
        }
        used.is_known |= self.is_known();
        used
    }

    /// Goes as far with one request as its bytes allow.
    fn receive(&mut self, input: &mut [u8], lent: &mut Lent<'_, '_, H>) -> Step {
        let step = self.look(input, lent);
        match step {
            // Its body may be here already.
            Step::Admitted => self.look(input, lent),
            _ => step,
        }
    }

    fn look(&mut self, input: &mut [u8], lent: &mut Lent<'_, '_, H>) -> Step {
        let progress = self.reception.poll(input, lent.turn.bounds);
        let tiny_chunks = self.reception.take_tiny_chunks();
        let empty_lines = match &progress {
            Ok(Progress::Head(span)) => u32::from(span.follows_empty_line()),
            _ => 0,
        };
        if self.is_excess(Glitch::TinyData, tiny_chunks, lent.turn)
            || self.is_excess(Glitch::IgnoredBytes, empty_lines, lent.turn)
        {
            let error = ApiError::new(ErrorCode::MalformedHttp, TOO_ODD);
            return self.refuse_received(error, lent);
        }
        match progress {
            Ok(Progress::Partial { keep }) => Step::Incomplete { keep },
            Ok(Progress::Head(span)) => self.handle_head(span, input, lent),
            Ok(Progress::Complete(message)) => self.handle_complete(&message, input, lent),
            Err(malformed) => self.refuse_received(malformed.into(), lent),
        }
    }

    /// Counts what the peer may do, but not often. True if it did it too often.
    fn is_excess(&mut self, glitch: Glitch, count: u32, turn: &Turn<'_, H>) -> bool {
        if count == 0 {
            return false;
        }
        let counter = turn.metrics.glitches(glitch.as_str());
        counter.inc_by(count.into());
        let verdict = self.glitches.handle_glitches(glitch, count, turn.now);
        verdict == GlitchVerdict::Excess
    }

    /// A head is complete: may its body come? The usual request is here whole, and is handled with
    /// this one parse of its head.
    fn handle_head(&mut self, span: HeadSpan, input: &[u8], lent: &mut Lent<'_, '_, H>) -> Step {
        let mut storage = Storage::new();
        let head = match span.parse(input, &mut storage) {
            Ok(head) => head,
            Err(malformed) => {
                let refusal = H::refusal_of_peer(lent.peer, malformed.into());
                return self.refuse(refusal, lent);
            }
        };
        let served = self.request.wrapping_add(1);
        // Not "equal": a reload may have lowered it below what was served already.
        let served_most = lent.turn.config.limits.max_requests_per_connection;
        let last = !head.keep_alive || (served_most != 0 && served >= served_most);
        self.framing = Framing::of(&head, last || lent.turn.draining);
        let admitted = match lent
            .turn
            .handler
            .admit(&head.request, lent.peer, lent.turn.now)
        {
            Ok(admitted) => admitted,
            Err(refusal) => return self.refuse_head(&head, refusal, input.len(), lent),
        };
        match self
            .reception
            .accept(&head, admitted.body_limit(), input.len())
        {
            Ok(Accepted::Complete(message)) => {
                let has_key = admitted.has_key();
                self.handle_request(admitted, &head, &input[message.body], lent);
                Step::Handled {
                    consumed: message.consumed,
                    has_key,
                }
            }
            Ok(accepted) => {
                if accepted == Accepted::WaitingForContinue {
                    lent.output
                        .tail(lent.turn.pool)
                        .extend_from_slice(encode::CONTINUE);
                }
                self.stage = Stage::Receiving(Some(Box::new(admitted)));
                Step::Admitted
            }
            Err(malformed) => self.refuse(H::refusal(admitted, malformed.into()), lent),
        }
    }

    /// The service wants nothing of this request but to answer it. If all of it is here the
    /// connection lives on; otherwise reading the rest away would cost more than a new connection.
    fn refuse_head(
        &mut self,
        head: &Head<'_>,
        refusal: H::Refusal,
        input_bytes: usize,
        lent: &mut Lent<'_, '_, H>,
    ) -> Step {
        match self.reception.accept(head, input_bytes, input_bytes) {
            Ok(Accepted::Complete(message)) => {
                self.answer_refusal(refusal, lent);
                Step::Handled {
                    consumed: message.consumed,
                    has_key: false,
                }
            }
            _ => self.refuse(refusal, lent),
        }
    }

    /// The rest of a body has come, after its head had been admitted. The head is parsed once more,
    /// which is cheaper than keeping what borrows from a buffer that grows.
    fn handle_complete(
        &mut self,
        message: &Message,
        input: &[u8],
        lent: &mut Lent<'_, '_, H>,
    ) -> Step {
        let mut storage = Storage::new();
        let head = message.head.parse(input, &mut storage);
        let (Some(admitted), Ok(head)) = (self.take_admitted(), head) else {
            // Only what was admitted is polled on, and the same bytes parse as they did before.
            debug_assert!(false, "a request is complete that was never admitted");
            let error = ApiError::new(ErrorCode::Internal, "the request was lost on the way");
            return self.refuse(H::refusal_of_peer(lent.peer, error), lent);
        };
        let (has_key, body) = (admitted.has_key(), &input[message.body.clone()]);
        self.handle_request(admitted, &head, body, lent);
        Step::Handled {
            consumed: message.consumed,
            has_key,
        }
    }

    fn handle_request(
        &mut self,
        admitted: H::Admitted,
        head: &Head<'_>,
        body: &[u8],
        lent: &mut Lent<'_, '_, H>,
    ) {
        // The drain may have begun while the body was on its way.
        self.framing.last |= lent.turn.draining;
        let key = JobKey {
            reactor: lent.turn.reactor,
            connection: lent.turn.key,
            request: self.request,
        };
        let now = lent.turn.now;
        let (handler, mut sink) = self.framing.sink(lent);
        match handler.handle(admitted, &head.request, body, key, now, &mut sink) {
            Some(exchange) => self.stage = Stage::Answering(exchange),
            None => self.finish(),
        }
    }

    fn take_admitted(&mut self) -> Option<H::Admitted> {
        match &mut self.stage {
            Stage::Receiving(admitted) => admitted.take().map(|admitted| *admitted),
            Stage::Answering(_) | Stage::Over => None,
        }
    }

    /// Hands an engine's event to the exchange that awaits it.
    pub fn handle_event(&mut self, event: Event, lent: &mut Lent<'_, '_, H>) {
        let Stage::Answering(exchange) = &mut self.stage else {
            return;
        };
        self.framing.last |= lent.turn.draining;
        let now = lent.turn.now;
        let (handler, mut sink) = self.framing.sink(lent);
        match handler.handle_event(exchange, event, now, &mut sink) {
            Flow::Open => {}
            Flow::Finished => self.finish(),
        }
    }

    /// The exchange asked to be called now: for a ping, or because its time is up.
    pub fn handle_deadline(&mut self, lent: &mut Lent<'_, '_, H>) {
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

    /// The request that is on its way in has taken too long: this part of it was waited for.
    pub fn handle_late_request(&mut self, waiting: Waiting, lent: &mut Lent<'_, '_, H>) {
        let limits = &lent.turn.config.limits;
        let error = match waiting {
            _ if !self.is_receptive() => return,
            Waiting::Head => late("head", limits.header_timeout),
            Waiting::Body => late("body", limits.body_timeout),
            // The deadline belongs to a request that has been received since.
            Waiting::Request | Waiting::Answer { .. } => return,
        };
        self.refuse_received(error, lent);
    }

    /// The output queue has drained: what was held back for the lack of room may come.
    pub fn handle_room(&mut self, turn: &mut Turn<'_, H>) {
        if let Stage::Answering(exchange) = &mut self.stage {
            turn.handler.handle_room(exchange);
        }
    }

    /// Says something that a waiting client ignores and a dead one's kernel answers with a reset.
    ///
    /// An interim answer may come before any final one (RFC 9110, section 15.2); of them all, 100
    /// is the one that every client skips. HTTP/1.0 has none: such a client is believed to wait.
    pub fn probe(&mut self, lent: &mut Lent<'_, '_, H>) {
        if let Stage::Answering(_) = self.stage {
            self.framing.probe(lent.output, lent.turn.pool);
        }
    }

    /// The connection ends: nobody waits for the answer any more.
    pub fn abandon(&mut self, reason: CancelReason, turn: &mut Turn<'_, H>) {
        match std::mem::replace(&mut self.stage, Stage::Over) {
            Stage::Receiving(Some(admitted)) => {
                turn.handler.abandon_admitted(*admitted, reason, turn.now);
            }
            Stage::Answering(exchange) => turn.handler.abandon(exchange, reason, turn.now),
            Stage::Receiving(None) | Stage::Over => {}
        }
    }

    /// Refuses the request that is on its way in.
    fn refuse_received(&mut self, error: ApiError, lent: &mut Lent<'_, '_, H>) -> Step {
        let refusal = match self.take_admitted() {
            Some(admitted) => H::refusal(admitted, error),
            None => H::refusal_of_peer(lent.peer, error),
        };
        self.refuse(refusal, lent)
    }

    /// Answers with an error and ends the connection: what follows in it can't be trusted, or is
    /// more than we want to read.
    fn refuse(&mut self, refusal: H::Refusal, lent: &mut Lent<'_, '_, H>) -> Step {
        self.framing.last = true;
        self.answer_refusal(refusal, lent);
        Step::Refused
    }

    fn answer_refusal(&mut self, refusal: H::Refusal, lent: &mut Lent<'_, '_, H>) {
        let now = lent.turn.now;
        let (handler, mut sink) = self.framing.sink(lent);
        handler.refuse(refusal, now, &mut sink);
        self.finish();
    }

    /// The answer is complete: the next request may come, or none.
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
}

/// What one look at the input has brought.
enum Step {
    Incomplete {
        keep: usize,
    },
    /// The head was found good; the body is to be looked for.
    Admitted,
    /// It was answered, and the connection ends.
    Refused,
    Handled {
        consumed: usize,
        /// Whether it came with a valid key.
        has_key: bool,
    },
}

const TOO_SLOW: &str = "the request comes too slowly";

const TOO_ODD: &str = "too many chunks of a few bytes, or empty lines between requests";
