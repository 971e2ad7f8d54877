//! An admitted job, and the one terminal event that it is owed.
//!
//! Owns the promise of [`Engine::submit`](crate::engine::Engine::submit): exactly one terminal
//! event for each admitted job, even if the engine's thread panics. An [`Owed`] can only be
//! delivered, which consumes it, or taken back; dropping it delivers a failure.

use std::mem;
use std::sync::Arc;

use super::places::Place;
use crate::core::Moment;
use crate::engine::{Deliver, Event, FailReason, Failed, Job, Prompt, Timings, Usage};
use crate::error::ErrorCode;
use crate::offload::{CancelReason, JobKey};

pub struct Owed {
    /// `None` once delivered or taken back.
    debt: Option<Debt>,
    /// Held until the job gets a sequence.
    place: Option<Place>,
}

struct Debt {
    job: Job,
    deliver: Arc<dyn Deliver>,
}

impl Owed {
    pub fn new(job: Job, place: Option<Place>, deliver: Arc<dyn Deliver>) -> Owed {
        Owed {
            debt: Some(Debt { job, deliver }),
            place,
        }
    }

    pub fn job(&self) -> &Job {
        // Only the two methods that consume `self` take the debt away.
        &self
            .debt
            .as_ref()
            .expect("an owed job is there until it is consumed")
            .job
    }

    /// Takes the prompt's text out of the job.
    pub fn take_prompt(&mut self) -> Prompt {
        let nothing = Prompt::Raw(String::new());
        let debt = self.debt.as_mut();
        debt.map_or(nothing.clone(), |debt| {
            mem::replace(&mut debt.job.prompt, nothing)
        })
    }

    /// Frees the job's place in the queue: the job has got a sequence.
    pub fn leave_queue(&mut self) {
        self.place = None;
    }

    /// Returns why the job must end now, if there is a reason.
    pub fn end(&self, now: Moment) -> Option<End> {
        let job = self.job();
        match job.ticket.cancelled() {
            Some(reason) => Some(End::Cancelled(reason)),
            None => job
                .ticket
                .expire(job.deadline, now)
                .then_some(End::Deadline),
        }
    }

    /// Delivers the terminal event.
    pub fn deliver(mut self, event: Event, events: &mut Vec<(JobKey, Event)>) {
        debug_assert!(event.is_terminal());
        if let Some(debt) = self.debt.take() {
            events.push((debt.job.key, event));
        }
    }

    /// Delivers the end of a job that is due to end and has never had a sequence; of any other job,
    /// the engine's failure.
    pub fn end_if_due(mut self, now: Moment) {
        let Some(end) = self.end(now) else { return };
        let Some(debt) = self.debt.take() else { return };
        let failed = Failed {
            reason: end.reason(),
            message: end.message().to_owned(),
            text: String::new(),
            usage: Usage::default(),
            timings: Timings {
                queue: now.since(debt.job.submitted),
                ..Timings::default()
            },
        };
        debt.deliver
            .deliver_one(debt.job.key, Event::Failed(Box::new(failed)));
    }

    /// Cancels the debt: the job was not admitted after all.
    pub fn take_back(mut self) {
        self.debt = None;
    }
}

impl Drop for Owed {
    fn drop(&mut self) {
        let Some(debt) = self.debt.take() else { return };
        let failed = Failed {
            reason: FailReason::Error(ErrorCode::EngineFailed),
            message: "the engine stopped before the response was complete; the reason is in the \
                      daemon's log"
                .to_owned(),
            text: String::new(),
            usage: Usage::default(),
            timings: Timings::default(),
        };
        debt.deliver
            .deliver_one(debt.job.key, Event::Failed(Box::new(failed)));
    }
}

/// Why a job ends before its output is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Cancelled(CancelReason),
    Deadline,
}

impl End {
    pub fn reason(self) -> FailReason {
        match self {
            End::Cancelled(reason) => FailReason::Cancelled(reason),
            End::Deadline => FailReason::Error(ErrorCode::GenerationTimeout),
        }
    }

    pub fn message(self) -> &'static str {
        match self {
            End::Cancelled(_) => "the request was cancelled",
            End::Deadline => "the request timed out; raise `timeout` or lower `max_tokens`",
        }
    }
}
