//! Receives requests: a head, then its body, from bytes that may end anywhere.
//!
//! Owns nothing: it drives the codec's [`Reception`](crate::http::http1::Reception) and passes
//! complete requests to the application. A request that is in the buffer whole is handled with a
//! single parse of its head and no copy.

use super::reply::Framing;
use super::{Http1, Stage};
use crate::core::buffered::Claim;
use crate::core::glitch::Glitch;
use crate::core::output::Level;
use crate::error::{ApiError, ErrorCode};
use crate::http::http1::{Accepted, Head, HeadSpan, Message, Progress, Storage, encode};
use crate::limits::reactor as limits;
use crate::offload::JobKey;
use crate::reactor::context::Lent;
use crate::reactor::handler::{Admission, Handler};
use crate::reactor::machine::{Machine, Used, Waiting};
use crate::reactor::metrics::Part;
use crate::service::buffers_full;

/// The result of one look at the input.
enum Step {
    Incomplete {
        keep: usize,
    },
    /// The head was accepted; the body is next.
    Admitted,
    /// The client got an error response, and the connection ends.
    Refused,
    Handled {
        consumed: usize,
        /// Whether it came with a valid key.
        has_key: bool,
    },
}

impl<H: Handler> Http1<H> {
    /// Receives requests, one after the other. Stops early, for its count, its time or lack of
    /// room, only between two requests: the remaining bytes have not been read, and
    /// [`Waiting::Request`] shows that.
    pub(super) fn receive(&mut self, bytes: &mut [u8], lent: &mut Lent<'_, '_, H>) -> Used {
        let mut used = Used {
            consumed: 0,
            keep: bytes.len(),
            is_known: false,
        };
        let mut handled = 0;
        while handled < limits::REQUESTS_PER_READ_MAX
            && used.consumed < bytes.len()
            && self.takes_input()
            && lent.output.level(&lent.turn.marks) < Level::High
            && (handled == 0 || self.may_serve_another(lent))
        {
            match self.receive_one(&mut bytes[used.consumed..], lent) {
                Step::Incomplete { keep } => {
                    used.keep = used.consumed + keep;
                    break;
                }
                Step::Admitted | Step::Refused => {}
                Step::Handled { consumed, has_key } => {
                    used.consumed += consumed;
                    used.is_known |= has_key;
                    handled += 1;
                    // The following bytes are another request, which begins only now.
                    self.glitches.begin_transfer(lent.turn.now);
                }
            }
        }
        if self.waiting() == Waiting::Over {
            used.consumed = bytes.len();
        }
        used.is_known |= self.is_known();
        used
    }

    /// Returns whether the pump has time for another request, and memory for its response: once
    /// that is used up, the responses before it must leave first.
    fn may_serve_another(&self, lent: &mut Lent<'_, '_, H>) -> bool {
        let claim = Claim::of(lent.peer.is_known || self.is_known());
        let has_memory = lent.output.is_empty() || lent.turn.buffered.admits(claim);
        has_memory && !lent.turn.budget.is_spent()
    }

    /// Goes as far with one request as its bytes allow.
    fn receive_one(&mut self, input: &mut [u8], lent: &mut Lent<'_, '_, H>) -> Step {
        let step = self.look(input, lent);
        match step {
            // Its body may have come already.
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
            self.refuse_received(error, lent);
            return Step::Refused;
        }
        match progress {
            Ok(Progress::Partial { keep }) => self.wait_for_rest(keep, lent),
            Ok(Progress::Head(span)) => self.handle_head(span, input, lent),
            Ok(Progress::Complete(message)) => self.handle_complete(&message, input, lent),
            Err(malformed) => {
                self.refuse_received(malformed.into(), lent);
                Step::Refused
            }
        }
    }

    /// Lets the beginning of a request wait for its rest, if there is memory for it.
    fn wait_for_rest(&mut self, keep: usize, lent: &mut Lent<'_, '_, H>) -> Step {
        let is_admitted = match &mut self.stage {
            Stage::Receiving(Some(admitted)) => lent.turn.admits_body(&mut **admitted, keep),
            _ => lent.turn.admits(Claim::Anonymous, Part::Head),
        };
        if is_admitted {
            return Step::Incomplete { keep };
        }
        self.refuse_received(buffers_full(), lent);
        Step::Refused
    }

    /// Decides about a complete head. The usual request has come whole, and is handled with this
    /// one parse of its head.
    fn handle_head(&mut self, span: HeadSpan, input: &[u8], lent: &mut Lent<'_, '_, H>) -> Step {
        let mut storage = Storage::new();
        let head = match span.parse(input, &mut storage) {
            Ok(head) => head,
            Err(malformed) => {
                let refusal = H::refusal_of_peer(lent.peer, malformed.into());
                return self.refused(refusal, lent);
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
                    let claim = Claim::of(admitted.has_key());
                    if !lent.turn.admits(claim, Part::Body) {
                        return self.refused(H::refusal(admitted, buffers_full()), lent);
                    }
                    lent.output
                        .tail(lent.turn.pool)
                        .extend_from_slice(encode::CONTINUE);
                }
                self.stage = Stage::Receiving(Some(Box::new(admitted)));
                Step::Admitted
            }
            Err(malformed) => self.refused(H::refusal(admitted, malformed.into()), lent),
        }
    }

    /// Responds to a request that the service refuses by its head. If all of it has come the
    /// connection goes on; otherwise reading the rest would cost more than a new connection.
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
            _ => self.refused(refusal, lent),
        }
    }

    /// Handles a request whose body has become complete after its head was admitted. The head is
    /// parsed again, which is cheaper than keeping data that borrows from a growing buffer.
    fn handle_complete(
        &mut self,
        message: &Message,
        input: &[u8],
        lent: &mut Lent<'_, '_, H>,
    ) -> Step {
        let mut storage = Storage::new();
        let head = message.head.parse(input, &mut storage);
        let (Some(admitted), Ok(head)) = (self.take_admitted(), head) else {
            // Only an admitted request is polled further, and the same bytes parse as before.
            debug_assert!(false, "a request is complete but was never admitted");
            let error = ApiError::new(ErrorCode::Internal, "the request was lost on the way");
            return self.refused(H::refusal_of_peer(lent.peer, error), lent);
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
        // The drain may have begun while the body was arriving.
        self.framing.last |= lent.turn.draining;
        let key = JobKey {
            reactor: lent.turn.reactor,
            connection: lent.turn.key,
            request: self.request,
        };
        let now = lent.turn.now;
        let (handler, mut sink) = self.framing.sink(lent);
        match handler.handle(admitted, &head.request, body.into(), key, now, &mut sink) {
            Some(exchange) => self.stage = Stage::Answering(exchange),
            None => self.finish(),
        }
    }

    pub(super) fn take_admitted(&mut self) -> Option<H::Admitted> {
        match &mut self.stage {
            Stage::Receiving(admitted) => admitted.take().map(|admitted| *admitted),
            Stage::Answering(_) | Stage::Over => None,
        }
    }

    /// Refuses a request whose connection ends with it.
    fn refused(&mut self, refusal: H::Refusal, lent: &mut Lent<'_, '_, H>) -> Step {
        self.refuse(refusal, lent);
        Step::Refused
    }
}

const TOO_ODD: &str = "too many chunks of a few bytes, or empty lines between requests";
