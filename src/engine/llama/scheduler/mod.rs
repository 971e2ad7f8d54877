//! Continuous batching: decides which tokens are computed next, and handles the results.
//!
//! Owns the sequences of a backend and the jobs on them. Pure: no thread, no channel, no clock of
//! its own. The backend is behind a trait and the events leave through another. Each step:
//!
//! ```text
//!   step: sweep ── cancelled and expired jobs leave, waiting and running ones
//!         seat ─── waiting jobs get the free slots
//!         answer ─ one batch: the next token of every sequence that is writing its output
//!         read ─── one batch: a bounded piece of the prompts that are still being read
//! ```
//!
//! Sequences join and leave between steps. Because `read` is bounded while any sequence writes, a
//! long prompt never stops the streams of others for longer than one piece takes. Prompts and
//! outputs go in separate batches: with separate streams llama.cpp splits a batch into passes of as
//! many tokens for each sequence, so mixing the two would save no pass.
//!
//! Invariants:
//!  1. `slot.tokens` is what the backend holds of the slot's sequence, token by token.
//!  2. A job's cache contains only tokens of its own prompt, wherever they were computed; reused
//!     tokens beyond the daemon's own text were computed for the same tenant.
//!  3. A job leaves by exactly one terminal event ([`Owed`]).
//!  4. Each step frees a slot, computes a token, or leaves nothing to do.
//!  5. In reproducible mode a batch holds one sequence, and that sequence's own prompt decides
//!     where it begins and ends. llama.cpp uses other kernels, which round differently, for a batch
//!     of another size.

mod pieces;
mod prefixes;
mod run;
mod slot;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;

use super::backend::{Backend, Batch, DecodeError, PrepareError, Prepared, Token};
use super::heartbeat::Heartbeat;
use super::owed::{End, Owed};
use super::speed::Speed;
use crate::core::Moment;
use crate::engine::{
    Deliver, Done, Event, FailReason, Failed, FinishReason, Gauges, Timings, Usage,
};
use crate::error::ErrorCode;
use crate::offload::{CancelReason, JobKey};

use pieces::Reader;
use prefixes::Prefixes;
use run::{Ended, Phase, Progress, Run};
use slot::{Reuse, Slot};

pub struct Scheduler<B: Backend> {
    backend: B,
    deliver: Arc<dyn Deliver>,
    /// Gets a beat for each sign of life within a step.
    heartbeat: Arc<Heartbeat>,
    slots: Vec<Slot<B::Sampler>>,
    waiting: VecDeque<Waiting>,
    prefixes: Prefixes,
    speed: Speed,
    gauges: Gauges,
    /// Prompt tokens computed in one step while any sequence is writing.
    prefill_chunk: usize,
    /// Whether an output must not depend on what else is computed (invariant 5).
    is_reproducible: bool,
    /// Counts the jobs that got a slot; orders slots by use.
    seated: u64,
    // Both are empty between steps and kept for their memory.
    batch: Batch,
    events: Vec<(JobKey, Event)>,
}

/// A job that waits for a slot.
struct Waiting {
    owed: Owed,
    prepared: Prepared,
}

impl<B: Backend> Scheduler<B> {
    pub fn new(
        backend: B,
        prefill_chunk: usize,
        is_reproducible: bool,
        deliver: Arc<dyn Deliver>,
        heartbeat: Arc<Heartbeat>,
    ) -> Scheduler<B> {
        let slots = (0..backend.sequences()).map(|_| Slot::default()).collect();
        let kv_size = (backend.sequences() * backend.context_length()) as u64;
        Scheduler {
            backend,
            deliver,
            heartbeat,
            slots,
            waiting: VecDeque::new(),
            prefixes: Prefixes::default(),
            speed: Speed::default(),
            gauges: Gauges {
                kv_size,
                ..Gauges::default()
            },
            prefill_chunk: prefill_chunk.max(1),
            is_reproducible,
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
            Ok(prepared) => self.waiting.push_back(Waiting { owed, prepared }),
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
        self.sweep();
        self.seat();
        self.answer();
        self.flush();
        self.read();
        self.flush();
        self.count();
        self.check_invariants();
    }

    /// Returns whether no job runs and none waits.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.slots.iter().all(Slot::is_free)
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
        let jobs = self
            .slots
            .iter()
            .filter_map(|slot| slot.run.as_ref())
            .map(|run| run.job());
        for job in jobs.chain(self.waiting.iter().map(|waiting| waiting.owed.job())) {
            job.ticket.cancel(reason);
        }
        self.sweep();
        self.flush();
        self.count();
    }

    // ---- the phases of a step ------------------------------------------------------------------

    /// Removes cancelled and expired jobs: they cost no further token and need no slot to learn
    /// their end.
    fn sweep(&mut self) {
        let now = self.backend.now();
        for _ in 0..self.waiting.len() {
            // The loop runs as often as there are entries.
            let Some(waiting) = self.waiting.pop_front() else {
                break;
            };
            match waiting.owed.end(now) {
                None => self.waiting.push_back(waiting),
                Some(end) => {
                    let message = end.message().to_owned();
                    self.refuse(waiting.owed, end.reason(), message);
                }
            }
        }
        for index in 0..self.slots.len() {
            if let Some(end) = self.slots[index].run.as_ref().and_then(|run| run.end(now)) {
                self.fail(index, end.reason(), end.message().to_owned());
            }
        }
    }

    /// Assigns the free slots to waiting jobs, in order.
    fn seat(&mut self) {
        while !self.waiting.is_empty() && self.slots.iter().any(Slot::is_free) {
            // Neither can be missing: the line above has checked.
            let Some(waiting) = self.waiting.pop_front() else {
                break;
            };
            let tenant = waiting.owed.job().tenant;
            let reuse = Reuse::of(self.is_reproducible);
            let Some(index) = slot::choose(&self.slots, tenant, &waiting.prepared, reuse) else {
                break;
            };
            self.seated += 1;
            self.start(index, waiting);
        }
    }

    /// Computes one more token for every sequence that is writing.
    fn answer(&mut self) {
        let mut next: Vec<(usize, Token)> = Vec::new();
        for (index, slot) in self.slots.iter().enumerate() {
            if let Some(Phase::Answer { next: token }) = slot.run.as_ref().map(|run| run.phase) {
                next.push((index, token));
            }
        }
        let together = if self.is_reproducible { 1 } else { next.len() };
        let started = self.backend.now();
        let mut computed = 0;
        for tokens in next.chunks(together.max(1)) {
            self.batch.clear();
            for (index, token) in tokens {
                self.batch.push(*index, *token, true);
            }
            if self.compute() {
                computed += tokens.len();
                for (entry, (index, _)) in tokens.iter().enumerate() {
                    self.take_token(*index, entry);
                }
            }
        }
        if computed > 0 {
            let now = self.backend.now();
            let took = now.since(started);
            self.speed.handle_answer_batch(computed, took, now);
        }
    }

    /// Reads a piece of the prompts, the oldest job's first. While no sequence is writing, that job
    /// may take a whole batch. More than a chunk for several together would only make the first
    /// output wait for the last prompt, because the cost of a batch grows with its tokens.
    fn read(&mut self) {
        let mut readers: Vec<Reader> = Vec::new();
        let mut is_answering = false;
        for (index, slot) in self.slots.iter().enumerate() {
            match slot.run.as_ref().map(|run| run.phase) {
                Some(Phase::Prompt) => readers.push(Reader {
                    used: slot.used,
                    index,
                    piece: self.piece_length(index),
                }),
                Some(Phase::Answer { .. }) => is_answering = true,
                None => {}
            }
        }
        let limit = self.backend.batch_limit();
        let chunk = self.prefill_chunk.min(limit);
        let first = if is_answering { chunk } else { limit };
        let pieces = match self.is_reproducible {
            true => pieces::oldest(&readers),
            false => pieces::share(readers, first, chunk),
        };
        if pieces.is_empty() {
            return;
        }
        let started = self.backend.now();
        let last_entries = self.fill_with_prompts(&pieces);
        if self.compute() {
            let now = self.backend.now();
            let took = now.since(started);
            self.speed.handle_prompt_batch(self.batch.len(), took, now);
            for (index, entry) in last_entries {
                self.keep_prefix(index);
                if let Some(entry) = entry {
                    self.take_token(index, entry);
                }
            }
        }
    }

    // ---- what the phases are made of -----------------------------------------------------------

    /// Puts a job on a slot, reusing as much of its prompt as is already computed.
    fn start(&mut self, index: usize, waiting: Waiting) {
        let Waiting { mut owed, prepared } = waiting;
        owed.leave_queue();
        let now = self.backend.now();
        let reuse = Reuse::of(self.is_reproducible);
        let slot = &mut self.slots[index];
        let reusable = slot.reusable(owed.job().tenant, &prepared, reuse);
        self.backend.truncate(index, reusable);
        slot.truncate(self.backend.length(index));
        // The last token is always computed again, because its scores are needed.
        if slot.tokens.len() < prepared.common && prepared.common < prepared.tokens.len() {
            let common = &prepared.tokens[..prepared.common];
            if let Some(state) = self.prefixes.find(common) {
                let is_restored = self.backend.restore(index, state, common.len());
                slot.tokens.clear();
                slot.tokens
                    .extend_from_slice(if is_restored { common } else { &[] });
            }
        }
        slot.tenant = owed.job().tenant;
        slot.common = prepared.common;
        slot.used = self.seated;
        let sampler = self.backend.sampler(&owed.job().sampling, &prepared.tokens);
        let room = self.backend.context_length() - prepared.tokens.len();
        self.gauges.prompt_tokens += prepared.tokens.len() as u64;
        self.gauges.prompt_cached_tokens += slot.tokens.len() as u64;
        let run = Run::new(owed, prepared, slot.tokens.len(), room, sampler, now);
        let wants_nothing = run.max_tokens == 0;
        slot.run = Some(Box::new(run));
        if wants_nothing {
            self.finish(index, FinishReason::Length);
        }
    }

    /// Returns how much of a slot's prompt fits into one batch: up to its end, or first to the end
    /// of the daemon's own text, if that is to be kept for others. In reproducible mode, up to the
    /// next place at which every reading of this prompt stops.
    fn piece_length(&self, index: usize) -> usize {
        let slot = &self.slots[index];
        let Some(run) = &slot.run else { return 0 };
        let computed = slot.tokens.len();
        if self.is_reproducible {
            let chunk = self.prefill_chunk.min(self.backend.batch_limit());
            let end = pieces::next_stop(computed, slot.common, run.prompt.len(), chunk);
            return end.saturating_sub(computed);
        }
        let common = &run.prompt[..slot.common];
        let end = match computed < common.len() && !self.prefixes.contains(common) {
            true => common.len(),
            false => run.prompt.len(),
        };
        end.saturating_sub(computed)
    }

    /// Builds a batch from pieces of prompts. Returns for each slot whose prompt ends here the
    /// entry whose scores choose the first token of the output.
    fn fill_with_prompts(&mut self, pieces: &[(usize, usize)]) -> Vec<(usize, Option<usize>)> {
        self.batch.clear();
        let mut last_entries = Vec::with_capacity(pieces.len());
        for (index, piece) in pieces {
            let slot = &self.slots[*index];
            let Some(run) = &slot.run else { continue };
            let start = slot.tokens.len();
            let mut last = None;
            for position in start..start + piece {
                let is_last = position + 1 == run.prompt.len();
                let entry = self.batch.push(*index, run.prompt[position], is_last);
                last = is_last.then_some(entry);
            }
            last_entries.push((*index, last));
        }
        last_entries
    }

    /// Computes the batch. On failure its jobs fail with it; returns whether it was computed.
    fn compute(&mut self) -> bool {
        let slots = &self.slots;
        let sequences = self.batch.sequences();
        let runs = sequences.filter_map(|index| slots[index].run.as_deref());
        let owed: Vec<&Owed> = runs.map(|run| &run.owed).collect();
        // One job that is still wanted keeps the batch going: otherwise clients that come and go
        // could hold up the prompts of all others.
        let heartbeat = &self.heartbeat;
        let all_ended = |now: Moment| {
            heartbeat.beat(now);
            owed.iter().all(|owed| owed.end(now).is_some())
        };
        let result = self.backend.decode(&self.batch, &all_ended);
        self.gauges.decode_steps += 1;
        self.note_lengths();
        match result {
            Ok(()) => true,
            // The next sweep ends the jobs. The computed tokens stay, for a retry.
            Err(DecodeError::Stopped) => false,
            Err(error) => {
                self.fail_batch(error);
                false
            }
        }
    }

    /// Restores invariant 1 after a batch, however much of it was computed.
    fn note_lengths(&mut self) {
        for entry in self.batch.entries() {
            let slot = &mut self.slots[entry.sequence];
            if slot.tokens.len() < self.backend.length(entry.sequence) {
                slot.tokens.push(entry.token);
            }
        }
        for entry in self.batch.entries() {
            let length = self.backend.length(entry.sequence);
            self.slots[entry.sequence].truncate(length);
        }
    }

    /// Handles a batch whose computation failed: the contents of its sequences are in doubt.
    fn fail_batch(&mut self, error: DecodeError) {
        log::error!(
            "the engine failed on a batch of {} tokens: {error:?}",
            self.batch.len()
        );
        let indices: Vec<usize> = self.batch.entries().map(|entry| entry.sequence).collect();
        for index in indices {
            let message = "the engine failed while computing this response; send the request again";
            let reason = FailReason::Error(ErrorCode::EngineFailed);
            self.fail(index, reason, message.to_owned());
            self.backend.truncate(index, 0);
            self.slots[index].truncate(0);
        }
    }

    /// If a slot holds exactly the daemon's own text, keeps a copy of it for others.
    fn keep_prefix(&mut self, index: usize) {
        let slot = &self.slots[index];
        let is_common = slot.tokens.len() == slot.common && slot.common > 0;
        if is_common
            && !self.prefixes.contains(&slot.tokens)
            && let Some(state) = self.backend.save(index)
        {
            self.prefixes.insert(slot.tokens.clone(), state);
        }
    }

    /// Chooses a slot's next token by the scores of an entry, and hands on the text that became
    /// ready.
    fn take_token(&mut self, index: usize, entry: usize) {
        let Some(run) = self.slots[index].run.as_deref_mut() else {
            return;
        };
        let Some(token) = self.backend.sample(entry, &mut run.sampler) else {
            let message =
                "the engine computed no scores for the next token; send the request again"
                    .to_owned();
            return self.fail(index, FailReason::Error(ErrorCode::EngineFailed), message);
        };
        let now = self.backend.now();
        let progress = match self.backend.is_end(token) {
            true => run.handle_end(now),
            false => {
                self.gauges.generated_tokens += 1;
                run.handle_token(token, now, |bytes| self.backend.append_piece(token, bytes))
            }
        };
        match progress {
            Progress::Going => {
                if let Some(text) = run.poll_text() {
                    self.events.push((run.job().key, Event::Token { text }));
                }
            }
            Progress::Finished(reason) => self.finish(index, reason),
        }
    }

    /// Ends a job whose output is complete.
    fn finish(&mut self, index: usize, finish_reason: FinishReason) {
        let Some(run) = self.slots[index].run.take() else {
            return;
        };
        let ended = run.end_with_text();
        self.note_job(index, &ended);
        let done = Done {
            text: ended.text,
            finish_reason,
            usage: ended.usage,
            timings: ended.timings,
        };
        ended
            .owed
            .deliver(Event::Done(Box::new(done)), &mut self.events);
    }

    /// Ends a job whose output is incomplete. Its slot keeps the computed tokens.
    fn fail(&mut self, index: usize, reason: FailReason, message: String) {
        let Some(run) = self.slots[index].run.take() else {
            return;
        };
        let ended = run.end_with_text();
        self.note_job(index, &ended);
        let failed = Failed {
            reason,
            message,
            text: ended.text,
            usage: ended.usage,
            timings: ended.timings,
        };
        ended
            .owed
            .deliver(Event::Failed(Box::new(failed)), &mut self.events);
    }

    /// Records the cost of a job that has just left its slot, complete or not.
    fn note_job(&mut self, index: usize, ended: &Ended) {
        let Usage {
            prompt_tokens,
            cached_tokens,
            completion_tokens,
        } = ended.usage;
        // A prompt that was not read to its end has cost as much as the slot holds of it.
        let read = (self.slots[index].tokens.len() as u32).min(prompt_tokens);
        let computed = read.saturating_sub(cached_tokens);
        let now = self.backend.now();
        self.speed.handle_job(computed, completion_tokens, now);
    }

    /// Ends a job that never had a slot: nothing was computed for it, and nothing is charged.
    fn refuse(&mut self, owed: Owed, reason: FailReason, message: String) {
        let queue = self.backend.now().since(owed.job().submitted);
        let failed = Failed {
            reason,
            message,
            text: String::new(),
            usage: Usage::default(),
            timings: Timings {
                queue,
                ..Timings::default()
            },
        };
        owed.deliver(Event::Failed(Box::new(failed)), &mut self.events);
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
        self.gauges.queue_depth = self.waiting.len() as u32;
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
