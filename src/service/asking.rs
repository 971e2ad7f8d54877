//! A request that waits for the store.
//!
//! Owns the way of a question to the store's thread and back, with a deadline of its own. A
//! [`Question`] knows the rest: it is asked on the store's thread, and writes its response on the
//! reactor.
//!
//! ```text
//!   reactor                     store's thread                reactor
//!   begin ── AskTask ─────────> Question::ask ── commit ────> Question::write
//!     │ queue full                │ failed, lost
//!     v                           v
//!   503 store_unavailable       503 store_unavailable
//! ```
//!
//! The request and its task share a ticket, as a body at a worker does: a client that leaves takes
//! its question back, unless that is a change, and its permit is released with the task.
//!
//! Invariant: a question whose client has got an error because the store was too slow, or because
//! the daemon ends, is not asked any more, unless the store is at it already.
//!
//! Mutations that tests catch: a task without its reply in `Drop` (a client waits until its
//! deadline), `is_wanted` that is always true, a deadline that is never looked at, a
//! question without its look at the memory.

use std::sync::Arc;

use crate::core::Moment;
use crate::core::buffered::Claim;
use crate::error::{ApiError, ErrorCode};
use crate::jobs::{Acceptance, Candidate, JobId};
use crate::limits::service as limits;
use crate::offload::{CancelReason, JobKey, Ticket};
use crate::store::requests::Full;
use crate::store::{Store, StoreError, StoreTask};

use super::call::{Call, buffers_full};
use super::completion::{Completion, Reply};
use super::desk::{Desk, Flow, Wire};
use super::question::{Answered, Question};
use super::request_log::Outcome;
use super::response::buffer::JSON;

/// A request that waits for the store.
#[derive(Debug)]
pub struct Asking {
    call: Call,
    ticket: Arc<Ticket>,
    deadline: Moment,
}

impl Asking {
    pub fn next_deadline(&self) -> Moment {
        self.deadline
    }

    /// Takes the question back: the client left.
    pub fn abandon(&self, desk: &mut Desk, reason: CancelReason, now: Moment) {
        self.ticket.cancel(reason);
        let outcome = Outcome::Abandoned { bytes: 0, reason };
        desk.log.close(&self.call, outcome, None, now);
    }
}

/// Sends a question to the store. `None`: it was refused, and the response is complete.
pub fn begin(
    desk: &mut Desk,
    call: Call,
    ticket: Arc<Ticket>,
    key: JobKey,
    question: Box<dyn Question>,
    wire: &mut Wire<'_>,
) -> Option<Asking> {
    if !has_room(desk, &call) {
        desk.fail(&call, &buffers_full(), wire);
        return None;
    }
    let task = AskTask {
        question: Some(question),
        key,
        ticket: Arc::clone(&ticket),
        replies: Some(Arc::clone(&desk.parts.replies)),
    };
    let submitted = desk.parts.requests.submit(call.tenant(), Box::new(task));
    if let Err(Full) = submitted {
        desk.fail(&call, &crowded(), wire);
        return None;
    }
    Some(Asking {
        deadline: deadline_of(&call).min(wire.now + limits::STORE_TIME_MAX),
        call,
        ticket,
    })
}

/// Returns whether there is memory for a response of the store, which may be long: a client that
/// reads slowly may ask for many of them.
pub fn has_room(desk: &Desk, call: &Call) -> bool {
    let claim = Claim::of(call.caller.is_some());
    desk.parts.buffered.has_room(claim)
}

/// Sends the response of a question that came back.
pub fn handle_answer(desk: &mut Desk, asking: &Asking, answered: Answered, wire: &mut Wire<'_>) {
    let (call, buffer) = (&asking.call, &mut desk.buffer);
    buffer.begin(call);
    match answered.and_then(|question| question.write(buffer)) {
        Ok(_) if call.representation.is_grpc() => {
            let dialect = desk.dialect(call.surface());
            let bytes = dialect.send(&mut desk.buffer, call, wire.sink);
            let outcome = Outcome::Completed { status: 200, bytes };
            desk.log.close(call, outcome, None, wire.now);
        }
        Ok(status) => {
            desk.buffer.fields.push("cache-control", "no-store");
            desk.send(call, status, Some(JSON), wire);
        }
        Err(error) => desk.fail(call, &error, wire),
    }
}

/// Handles a passed [`Asking::next_deadline`].
pub fn handle_deadline(desk: &mut Desk, asking: &Asking, wire: &mut Wire<'_>) -> Flow {
    if wire.now < asking.deadline {
        return Flow::Open;
    }
    let error = match wire.now < deadline_of(&asking.call) {
        true => unavailable(),
        false => late(),
    };
    end(desk, asking, CancelReason::Deadline, &error, wire);
    Flow::Finished
}

/// Ends the response with the error `draining`: the drain's patience has ended.
pub fn cut_off(desk: &mut Desk, asking: &Asking, wire: &mut Wire<'_>) {
    end(desk, asking, CancelReason::Drain, &draining(), wire);
}

fn end(
    desk: &mut Desk,
    asking: &Asking,
    reason: CancelReason,
    error: &ApiError,
    wire: &mut Wire<'_>,
) {
    asking.ticket.cancel(reason);
    desk.log.metrics().cancelled.get(reason).inc();
    desk.fail(&asking.call, error, wire);
}

/// Returns the deadline of a call by `grpc-timeout`.
pub fn deadline_of(call: &Call) -> Moment {
    let timeout = call.terms().timeout;
    timeout.map_or(Moment::NEVER, |timeout| call.started + timeout)
}

/// The error of a call whose own deadline has expired.
pub fn late() -> ApiError {
    ApiError::new(ErrorCode::RequestTimeout, "the call's deadline expired")
}

/// The error of a request that the end of a drain cuts off.
pub fn draining() -> ApiError {
    let message = "the daemon is stopping; send the request again, or to another one";
    ApiError::new(ErrorCode::Draining, message).with_retry_after(limits::BUSY_RETRY_AFTER)
}

/// The error of a request that finds no place in the store's queue.
pub fn crowded() -> ApiError {
    let message = "too many requests wait for the daemon's store; wait for `Retry-After`";
    ApiError::new(ErrorCode::StoreUnavailable, message).with_retry_after(limits::BUSY_RETRY_AFTER)
}

/// The error for a store that fails or takes too long.
pub fn unavailable() -> ApiError {
    let message = "the daemon's store does not respond; wait for `Retry-After`, and repeat a \
                   request that must not run twice with its `Idempotency-Key`";
    ApiError::new(ErrorCode::StoreUnavailable, message).with_retry_after(limits::BUSY_RETRY_AFTER)
}

/// Returns whether a task is still wanted. `outlives_client`: it is, even if its client has left.
pub fn is_wanted(ticket: &Ticket, outlives_client: bool) -> bool {
    match ticket.cancelled() {
        None => true,
        Some(CancelReason::Disconnect | CancelReason::SlowReader) => outlives_client,
        Some(CancelReason::Deadline | CancelReason::Drain) => false,
    }
}

/// A question in the store's queue. It replies exactly once, at the latest by its drop, unless it
/// found no place.
struct AskTask {
    /// `None` once it has gone back.
    question: Option<Box<dyn Question>>,
    key: JobKey,
    ticket: Arc<Ticket>,
    /// `None` once it has replied.
    replies: Option<Arc<dyn Reply>>,
}

impl AskTask {
    fn reply(&mut self, answered: Answered) {
        if let Some(replies) = self.replies.take() {
            replies.reply(self.key, Completion::Stored(answered));
        }
    }
}

impl StoreTask for AskTask {
    fn is_wanted(&self) -> bool {
        let question = self.question.as_ref();
        let outlives_client = question.is_some_and(|question| question.outlives_client());
        is_wanted(&self.ticket, outlives_client)
    }

    fn bytes(&self) -> u32 {
        self.question
            .as_ref()
            .map_or(0, |question| question.bytes())
    }

    fn name_jobs(&self, jobs: &mut Vec<JobId>) {
        if let Some(question) = &self.question {
            question.name_jobs(jobs);
        }
    }

    fn run(&mut self, store: &mut dyn Store) -> Result<(), StoreError> {
        match &mut self.question {
            Some(question) => question.ask(store),
            None => Ok(()),
        }
    }

    fn accepts_job(&self) -> bool {
        let question = self.question.as_ref();
        question.is_some_and(|question| question.accepts_job())
    }

    fn candidate(&mut self) -> Option<&Candidate> {
        self.question.as_mut()?.candidate()
    }

    fn take_outcome(&mut self, outcome: Acceptance) {
        if let Some(question) = &mut self.question {
            question.take_outcome(outcome);
        }
    }

    fn finish(mut self: Box<Self>, result: Result<(), &StoreError>) {
        let question = self.question.take();
        match (result, question) {
            (Ok(()), Some(mut question)) => {
                question.handle_commit();
                self.reply(Ok(question));
            }
            (Err(StoreError::Panicked), _) | (Ok(()), None) => {}
            (Err(_), _) => self.reply(Err(unavailable())),
        }
    }

    fn refuse(mut self: Box<Self>) {
        self.replies = None;
    }
}

impl Drop for AskTask {
    fn drop(&mut self) {
        // Without a reply only if its client has left, the store's thread has ended, or a panic.
        let message = "the store could not be asked because of a fault of the daemon";
        self.reply(Err(ApiError::new(ErrorCode::Internal, message)));
    }
}
