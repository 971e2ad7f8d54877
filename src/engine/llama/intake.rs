//! The stage before the engine's thread: prompts are rendered and tokenized by workers.
//!
//! Owns a job from its admission to its arrival in the engine's channel. Rendering and tokenizing
//! take up to 200 ms for a prompt that fills a large context; on the engine's thread that time
//! would be taken from every running stream. The workers are fair between tenants, and bounded.
//!
//! ```text
//!   submit ──> Workers ── run ──> channel ──> the engine's thread ──> Scheduler::admit
//!                 │
//!                 └ client gone, deadline passed, engine ending, pool closed, panic:
//!                   dropped, and the drop delivers the job's terminal event
//! ```
//!
//! # Exactly one terminal event
//!
//! An [`Owed`] is at one place at a time: in the [`Preparation`], then in the [`Arrival`], then in
//! the scheduler. Each is moved, never shared, so only one of them can end the job; and whatever
//! drops an `Owed` delivers its event. The pool returns a task that it does not take, so a refused
//! job has no event.
//!
//! # A drain waits for what is under way
//!
//! `submit` counts its job as under way before it reads the engine's life; a drain publishes the
//! life before the thread reads the count. So either the thread waits for the job, or `submit`
//! refuses it. A job is in the channel before it stops to count, and the thread reads the count
//! before it looks into the channel: it finds the job in one of the two. The last one that stops to
//! count wakes a thread that is draining.
//!
//! Mutations that tests catch: a preparation dropped without a look at its ticket
//! (`job_whose_client_has_left_is_not_prepared`), a drain that does not read the count
//! (`drain_waits_for_jobs_that_are_being_prepared`), no wake at the last one (the same), `submit`
//! that drops a task that comes back (`full_pool_refuses_without_an_event`).

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use crossbeam_channel::{Receiver, Sender};

use super::backend::{Prepare, PrepareError, Prepared};
use super::owed::Owed;
use super::shared::{Life, Shared};
use crate::core::Moment;
use crate::limits::engine as limits;
use crate::limits::offload::WORKER_STACK_BYTES;
use crate::offload::CancelReason;
use crate::offload::workers::{Full, Task, Workers};

/// A worker tokenizes on its own stack.
const _: () = assert!(WORKER_STACK_BYTES > limits::TOKENIZER_STACK_BYTES);

/// A job that comes to the engine's thread.
pub struct Arrival {
    pub owed: Owed,
    pub prepared: Result<Prepared, PrepareError>,
}

/// The way from a caller of [`Engine::submit`](crate::engine::Engine::submit) to the engine's
/// thread.
pub struct Intake {
    pub workers: Arc<Workers>,
    pub exit: Exit,
    /// Disconnected when the last preparation has ended, for an owner that waits for that.
    pub ending: Sender<Infallible>,
}

/// Where a prepared job goes.
#[derive(Clone)]
pub struct Exit {
    pub shared: Arc<Shared>,
    pub sender: Sender<Box<Arrival>>,
    /// The channel's other end, for jobs that come after the thread has ended.
    pub left: Receiver<Box<Arrival>>,
}

/// Counts a job as under way for as long as it lives.
pub struct UnderWay {
    shared: Arc<Shared>,
    _ending: Sender<Infallible>,
}

impl Intake {
    /// Must be called before the engine's life is read: see the head of this file.
    pub fn begin(&self) -> UnderWay {
        self.exit.shared.under_way.fetch_add(1, Ordering::SeqCst);
        UnderWay {
            shared: self.exit.shared.clone(),
            _ending: self.ending.clone(),
        }
    }

    /// Sends a job to the workers. If they have no room for its tenant, the job comes back.
    pub fn submit(
        &self,
        owed: Owed,
        preparer: Arc<dyn Prepare>,
        under_way: UnderWay,
    ) -> Result<(), Box<Owed>> {
        let job = owed.job();
        let (tenant, bytes) = (job.tenant, job.prompt.bytes());
        let preparation = Preparation {
            owed: Some(owed),
            preparer,
            exit: self.exit.clone(),
            _under_way: under_way,
        };
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        match self.workers.submit(tenant, bytes, preparation) {
            Ok(()) => Ok(()),
            // Still there: only `run` takes it, and the task did not run.
            Err(Full(mut preparation)) => match preparation.owed.take() {
                Some(owed) => Err(Box::new(owed)),
                None => Ok(()),
            },
        }
    }
}

/// The task of a worker.
struct Preparation {
    /// `None` once it is prepared.
    owed: Option<Owed>,
    preparer: Arc<dyn Prepare>,
    exit: Exit,
    /// Dropped last: until then the job counts.
    _under_way: UnderWay,
}

impl Task for Preparation {
    fn is_wanted(&self) -> bool {
        let is_ending = self.exit.shared.life() >= Life::Ending;
        let owed = self.owed.as_ref();
        !is_ending && owed.is_some_and(|owed| owed.end(Moment::now()).is_none())
    }

    fn run(mut self: Box<Self>) {
        let Some(owed) = &mut self.owed else { return };
        // The text is much larger than its tokens, and the job may wait for long.
        let prompt = owed.take_prompt();
        let prepared = self.preparer.prepare(&prompt);
        if let Some(owed) = self.owed.take() {
            self.exit.send(Arrival { owed, prepared });
        }
    }
}

impl Drop for Preparation {
    /// A job that is still here was not prepared: this is its end. If its client is not to blame,
    /// dropping the debt reports that the engine has failed.
    fn drop(&mut self) {
        let Some(owed) = self.owed.take() else { return };
        if self.exit.shared.life() >= Life::Ending {
            owed.job().ticket.cancel(CancelReason::Drain);
        }
        owed.end_if_due(Moment::now());
    }
}

impl Exit {
    fn send(&self, arrival: Arrival) {
        // The job's place in the queue guarantees room in the channel. Were there none, dropping
        // the job would report its failure.
        let sent = self.sender.try_send(Box::new(arrival));
        debug_assert!(sent.is_ok(), "a job without a place");
        drop_jobs_if_over(&self.shared, &self.left);
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let before = self.shared.under_way.fetch_sub(1, Ordering::SeqCst);
        if before == 1 && self.shared.life() >= Life::Draining {
            self.shared.wake();
        }
    }
}

/// If the thread has ended, drops the jobs in the channel; each then reports its own failure.
/// Called by the thread after it has published its end, and by a caller after it has sent a job:
/// one of the two finds the job.
pub fn drop_jobs_if_over(shared: &Shared, receiver: &Receiver<Box<Arrival>>) {
    // The fence keeps the order: send, then read the state; publish the end, then receive.
    fence(Ordering::SeqCst);
    if shared.life() == Life::Over {
        receiver.try_iter().for_each(drop);
    }
}
