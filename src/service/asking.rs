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
//!   503 queue_full              503 store_unavailable
//! ```
//!
//! The request and its task share a ticket, as a body at a worker does: a client that leaves takes
//! its question back, and its permit is released with the task.
//!
//! Mutations that tests catch: a task without its reply in `Drop` (a client waits until its
//! deadline), `is_wanted` that is always true, a deadline that is never looked at.

use std::sync::Arc;

use crate::core::Moment;
use crate::error::{ApiError, ErrorCode};
use crate::limits::service as limits;
use crate::offload::{CancelReason, JobKey, Permit, Ticket};
use crate::store::requests::Full;
use crate::store::{Store, StoreError, StoreTask};

use super::call::Call;
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
    permit: Option<Permit>,
    key: JobKey,
    question: Box<dyn Question>,
    wire: &mut Wire<'_>,
) -> Option<Asking> {
    let ticket = Arc::new(match permit {
        Some(permit) => Ticket::with_permit(0, permit),
        None => Ticket::new(0),
    });
    let task = AskTask {
        question: Some(question),
        key,
        ticket: Arc::clone(&ticket),
        replies: Some(Arc::clone(&desk.parts.replies)),
    };
    let submitted = desk.parts.requests.submit(call.tenant(), Box::new(task));
    if let Err(Full) = submitted {
        let message = "too many requests wait for the store; wait for `Retry-After`";
        let error =
            ApiError::new(ErrorCode::QueueFull, message).with_retry_after(limits::BUSY_RETRY_AFTER);
        desk.fail(&call, &error, wire);
        return None;
    }
    Some(Asking {
        deadline: wire.now + limits::STORE_TIME_MAX,
        call,
        ticket,
    })
}

/// Sends the response of a question that came back.
pub fn handle_answer(desk: &mut Desk, asking: &Asking, answered: Answered, wire: &mut Wire<'_>) {
    match answered {
        Ok(question) => {
            let (call, buffer) = (&asking.call, &mut desk.buffer);
            buffer.begin(call);
            buffer.fields.push("cache-control", "no-store");
            match question.write(buffer) {
                Ok(status) => desk.send(call, status, Some(JSON), wire),
                Err(error) => desk.fail(call, &error, wire),
            }
        }
        Err(error) => desk.fail(&asking.call, &error, wire),
    }
}

/// Handles a passed [`Asking::next_deadline`].
pub fn handle_deadline(desk: &mut Desk, asking: &Asking, wire: &mut Wire<'_>) -> Flow {
    if wire.now < asking.deadline {
        return Flow::Open;
    }
    end(desk, asking, CancelReason::Deadline, &unavailable(), wire);
    Flow::Finished
}

/// Ends the response with the error `draining`: the drain's patience has ended.
pub fn cut_off(desk: &mut Desk, asking: &Asking, wire: &mut Wire<'_>) {
    let message = "the daemon has stopped before the response was complete";
    let error =
        ApiError::new(ErrorCode::Draining, message).with_retry_after(limits::BUSY_RETRY_AFTER);
    end(desk, asking, CancelReason::Drain, &error, wire);
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

fn unavailable() -> ApiError {
    let message = "the daemon's store does not work at present; wait for `Retry-After`";
    ApiError::new(ErrorCode::StoreUnavailable, message).with_retry_after(limits::BUSY_RETRY_AFTER)
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
        self.ticket.cancelled().is_none()
    }

    fn bytes(&self) -> u32 {
        self.question
            .as_ref()
            .map_or(0, |question| question.bytes())
    }

    fn run(&mut self, store: &mut dyn Store) -> Result<(), StoreError> {
        match &mut self.question {
            Some(question) => question.ask(store),
            None => Ok(()),
        }
    }

    fn finish(mut self: Box<Self>, result: Result<(), &StoreError>) {
        let question = self.question.take();
        match (result, question) {
            (Ok(()), Some(question)) => self.reply(Ok(question)),
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
