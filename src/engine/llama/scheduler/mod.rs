//! Continuous batching: decides which tokens are computed next, and handles the results.
//!
//! Owns the sequences of a backend and the jobs on them. Pure: no thread, no channel, no clock of
//! its own. The backend is behind a trait and the events leave through another. Each step:
//!
//! ```text
//!   step: sweep ── cancelled and expired jobs leave, waiting and running ones
//!         pace ─── streams whose client has stopped reading pause, others go on
//!         load ─── a prefix that was read from the disk goes into its slot
//!         seat ─── waiting jobs get the free slots, or one whose job has to yield
//!         keep ─── a sequence that no job has used for a while is copied for the disk
//!         answer ─ one batch: the next token of every sequence that is writing its output
//!         read ─── one batch: a bounded piece of the prompts that are still being read
//! ```
//!
//! In reading order:
//!
//! * [`queue`]: the lines of waiting jobs, and how many tokens each has got.
//! * [`seats`]: which job yields its slot.
//! * [`seating`]: moves jobs between lines and slots.
//! * [`run`], [`slot`], [`saved`], [`prefixes`]: a job, its slot, and copies of sequences.
//! * [`copying`], [`archived`]: the time that copies may take, and copies that survive the daemon.
//! * [`budget`], [`pieces`], [`compute`]: the batches.
//! * [`ending`]: the terminal events.
//!
//! Sequences join and leave between steps. Because the time of `read` is bounded, a long prompt
//! never holds up streams, or requests that have just arrived, for longer than that. Prompts and
//! outputs go in separate batches: with separate streams llama.cpp splits a batch into passes of as
//! many tokens for each sequence, so mixing the two would save no pass.
//!
//! Invariants:
//!  1. `slot.tokens` is what the backend holds of the slot's sequence, token by token.
//!  2. A job's cache contains only tokens of its own prompt, wherever they were computed; reused
//!     tokens beyond the daemon's own text were computed for the same tenant.
//!  3. A job leaves by exactly one terminal event ([`Owed`]).
//!  4. Each step frees a slot, computes a token, or leaves nothing to do but wait for credit, or
//!     for a copy that is being loaded.
//!  5. In reproducible mode a batch holds one sequence, and that sequence's own prompt decides
//!     where it begins and ends. llama.cpp uses other kernels, which round differently, for a batch
//!     of another size.

mod archived;
mod budget;
mod compute;
mod copying;
mod ending;
mod pieces;
mod prefixes;
mod queue;
mod run;
mod saved;
mod seating;
mod seats;
mod slot;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use super::backend::{Backend, Batch, PrepareError, Prepared, Token};
use super::heartbeat::Heartbeat;
use super::owed::{End, Owed};
use super::speed::Speed;
use crate::core::Moment;
use crate::engine::prefixes::{Archive, OwnWords};
use crate::engine::{Deliver, Event, FailReason, FinishReason, Gauges, Timings, Usage};
use crate::error::ErrorCode;
use crate::limits::engine as limits;
use crate::limits::prefixes as prefix_limits;
use crate::offload::{CancelReason, JobKey};

use budget::Budget;
use copying::Copying;
use pieces::Reader;
use prefixes::Prefixes;
use queue::Queue;
use run::{Run, Yielded};
use saved::Saved;
use seats::Share;
use slot::Slot;

pub struct Scheduler<B: Backend> {
    backend: B,
    deliver: Arc<dyn Deliver>,
    /// Gets a beat for each sign of life within a step.
    heartbeat: Arc<Heartbeat>,
    slots: Vec<Slot<B::Sampler>>,
    queue: Queue<Waiting<B::Sampler>>,
    /// Paused jobs that have given their slots away.
    aside: Vec<Yielded<B::Sampler>>,
    saved: Saved,
    prefixes: Prefixes,
    archive: Option<Box<dyn Archive>>,
    own_words: Option<OwnWords>,
    /// Copies for the archive that this step has taken.
    archived: usize,
    copying: Copying,
    speed: Speed,
    gauges: Gauges,
    terms: Terms,
    budget: Budget,
    /// How long this step has computed outputs.
    answering: Duration,
    /// Since when background jobs wait and none of them runs.
    background_since: Option<Moment>,
    /// Jobs wait, and the last step had no slot for any of them.
    is_stuck: bool,
    /// Counts the jobs that got a slot; orders slots by use.
    seated: u64,
    // Both are empty between steps and kept for their memory.
    batch: Batch,
    events: Vec<(JobKey, Event)>,
}

/// A job that waits for a slot.
enum Waiting<S> {
    Fresh { owed: Box<Owed>, prepared: Prepared },
    Begun(Box<Yielded<S>>),
}

impl<S> Waiting<S> {
    fn owed(&self) -> &Owed {
        match self {
            Waiting::Fresh { owed, .. } => owed,
            Waiting::Begun(yielded) => &yielded.run.owed,
        }
    }
}

/// The rules by which jobs share the slots.
struct Terms {
    /// Whether an output must not depend on what else is computed (invariant 5).
    is_reproducible: bool,
    /// The tokens of a piece in that case.
    piece_tokens: usize,
    /// Divides the tokens of a step among the prompts.
    divide: fn(Vec<Reader>, usize) -> Vec<(usize, usize)>,
    /// Tokens that a copy for the archive must save.
    archived_tokens_min: usize,
    /// How long a job may keep its slot while others wait.
    share: Share,
    /// How long a stream may have no credit before it pauses.
    credit_patience: Duration,
    /// How long the background waits before it goes first.
    background_patience: Duration,
}

impl<B: Backend> Scheduler<B> {
    pub fn new(
        backend: B,
        prompt_budget: Duration,
        is_reproducible: bool,
        deliver: Arc<dyn Deliver>,
        heartbeat: Arc<Heartbeat>,
    ) -> Scheduler<B> {
        let slots = (0..backend.sequences()).map(|_| Slot::default()).collect();
        let kv_size = (backend.sequences() * backend.context_length()) as u64;
        let budget = Budget::new(prompt_budget, backend.batch_limit());
        Scheduler {
            backend,
            deliver,
            heartbeat,
            slots,
            queue: Queue::default(),
            aside: Vec::new(),
            saved: Saved::new(limits::SAVED_STATES_BYTES_MAX),
            prefixes: Prefixes::default(),
            archive: None,
            own_words: None,
            archived: 0,
            copying: Copying::default(),
            speed: Speed::default(),
            gauges: Gauges {
                kv_size,
                ..Gauges::default()
            },
            terms: Terms {
                is_reproducible,
                piece_tokens: limits::REPRODUCIBLE_PIECE_TOKENS,
                divide: pieces::shortest_first,
                archived_tokens_min: prefix_limits::TOKENS_MIN,
                share: Share::default(),
                credit_patience: limits::CREDIT_PATIENCE,
                background_patience: limits::BACKGROUND_PATIENCE,
            },
            budget,
            answering: Duration::ZERO,
            background_since: None,
            is_stuck: false,
            seated: 0,
            batch: Batch::default(),
            events: Vec::new(),
        }
    }

    /// Takes a job into the queue with its prepared prompt, or with the reason why it has none. A
    /// job that cannot be served fails at once.
    pub fn admit(&mut self, owed: Owed, prepared: Result<Prepared, PrepareError>) {
        if let Some(end) = owed.end(self.backend.now()) {
            return self.refuse(owed, end.reason(), end.message().to_owned());
        }
        let room = self.backend.context_length();
        match prepared {
            Ok(prepared) if prepared.tokens.is_empty() => {
                let reason = FailReason::Error(ErrorCode::InvalidRequest);
                self.refuse(owed, reason, "the prompt has no tokens".to_owned());
            }
            // At least one cell for the output.
            Ok(prepared) if prepared.tokens.len() >= room => {
                let length = prepared.tokens.len();
                let message = format!(
                    "the prompt has {length} tokens, but the model's context holds {room} for \
                     prompt and completion together; shorten the prompt or raise engine.context"
                );
                let reason = FailReason::Error(ErrorCode::ContextLengthExceeded);
                self.refuse(owed, reason, message);
            }
            Ok(prepared) => {
                let (line, weight) = (run::line_of(owed.job()), owed.job().weight);
                let owed = Box::new(owed);
                self.queue
                    .push(line, weight, Waiting::Fresh { owed, prepared });
            }
            Err(PrepareError::TooLong) => {
                let message = format!(
                    "the prompt is too long for the model's context of {room} tokens; shorten it \
                     or raise engine.context"
                );
                let reason = FailReason::Error(ErrorCode::ContextLengthExceeded);
                self.refuse(owed, reason, message);
            }
            Err(PrepareError::Template(says)) => {
                let message = format!("the model's chat template rejects the messages: {says}");
                let reason = FailReason::Error(ErrorCode::InvalidRequest);
                self.refuse(owed, reason, message);
            }
            Err(PrepareError::Engine(says)) => {
                log::error!("a prompt cannot be tokenized: {says}");
                let message = format!("the model cannot process this prompt: {says}");
                self.refuse(owed, FailReason::Error(ErrorCode::EngineFailed), message);
            }
        }
    }

    /// Runs one step. Must be called as long as [`Scheduler::is_idle`] returns false.
    pub fn step(&mut self) {
        self.sweep(limits::SWEPT_JOBS_PER_STEP_MAX);
        self.pace();
        self.take_loaded();
        self.seat();
        self.keep_old();
        self.flush();
        self.answer();
        self.flush();
        self.read();
        self.flush();
        self.count();
        self.check_invariants();
    }

    /// Returns whether no job runs and none waits.
    pub fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.aside.is_empty() && self.slots.iter().all(Slot::is_free)
    }

    /// Returns how long to wait before the next step if nothing can be computed: every job is a
    /// stream whose client has stopped reading, or waits for its prefix. A new job ends the wait,
    /// and so does a prefix.
    pub fn pause(&self) -> Option<Duration> {
        let mut runs = self.slots.iter().filter_map(|slot| slot.run.as_ref());
        let is_paused = match self.queue.is_empty() {
            true => runs.all(|run| run.is_paused() || run.is_loading()),
            // Jobs that load keep their slots. Paused ones make room for those that wait, unless
            // the copy that they must leave finds no room.
            false => self.slots.iter().all(|slot| {
                let rests = |run: &Run<_>| run.is_loading() || (run.is_paused() && self.is_stuck);
                slot.run.as_deref().is_some_and(rests)
            }),
        };
        (is_paused && !self.is_idle()).then_some(limits::CREDIT_POLL_INTERVAL)
    }

    pub fn gauges(&self) -> Gauges {
        self.gauges
    }

    pub fn speed(&self) -> &Speed {
        &self.speed
    }

    /// Yields for each sequence the tenant whose text it holds, and how many tokens of that text.
    pub fn held(&self) -> impl Iterator<Item = (u64, usize)> {
        let of_tenants = |slot: &Slot<B::Sampler>| slot.tokens.len().saturating_sub(slot.common);
        self.slots
            .iter()
            .map(move |slot| (slot.tenant, of_tenants(slot)))
    }

    /// Continues the totals of the engine that this one replaces.
    pub fn resume(&mut self, before: Gauges) {
        self.gauges = Gauges {
            kv_size: self.gauges.kv_size,
            ..before.totals()
        };
    }

    /// Ends every job now: the results are no longer wanted.
    pub fn cancel_all(&mut self, reason: CancelReason) {
        let runs = self.slots.iter().filter_map(|slot| slot.run.as_ref());
        let running = runs.map(|run| run.job());
        let aside = self.aside.iter().map(|yielded| yielded.run.job());
        let waiting = self.queue.jobs().map(|waiting| waiting.owed().job());
        for job in running.chain(aside).chain(waiting) {
            job.ticket.cancel(reason);
        }
        self.sweep(usize::MAX);
        self.flush();
        self.count();
    }

    /// Delivers the events so far. Also called between the two batches of a step: new tokens need
    /// not wait until other jobs' prompts are read.
    fn flush(&mut self) {
        if !self.events.is_empty() {
            self.deliver.deliver(&mut self.events);
            self.events.clear();
        }
    }

    fn count(&mut self) {
        self.gauges.sequences_running =
            self.slots.iter().filter(|slot| !slot.is_free()).count() as u32;
        self.gauges.queue_depth = self.queue.len() as u32;
        self.gauges.kv_used = self.slots.iter().map(|slot| slot.tokens.len() as u64).sum();
    }

    fn check_invariants(&self) {
        if cfg!(debug_assertions) {
            for (index, slot) in self.slots.iter().enumerate() {
                assert_eq!(slot.tokens.len(), self.backend.length(index), "invariant 1");
                slot.check_invariants();
            }
            assert!(self.events.is_empty(), "what has happened was delivered");
        }
    }
}

impl<B: Backend> Drop for Scheduler<B> {
    /// Events that are ready go out before dropping the fields delivers the failures of the rest.
    fn drop(&mut self) {
        self.flush();
    }
}
