//! The computing phases of a step: the next token of every output, and a piece of the prompts.
//!
//! Builds the batches, computes them and handles their results. Keeps invariants 1 and 5 of the
//! scheduler. Must never choose who gets a sequence: `seating` does.

use std::time::Duration;

use super::super::backend::{Backend, DecodeError, Token};
use super::super::owed::Owed;
use super::Scheduler;
use super::pieces::{self, Reader};
use super::run::{Phase, Progress};
use crate::core::Moment;
use crate::engine::{Event, FailReason};
use crate::error::ErrorCode;

impl<B: Backend> Scheduler<B> {
    /// Computes one more token for every sequence that is writing.
    pub(super) fn answer(&mut self) {
        let mut next: Vec<(usize, Token)> = Vec::new();
        for (index, slot) in self.slots.iter().enumerate() {
            let run = slot.run.as_ref().filter(|run| !run.is_paused());
            if let Some(Phase::Answer { next: token }) = run.map(|run| run.phase) {
                next.push((index, token));
            }
        }
        let together = if self.terms.is_reproducible {
            1
        } else {
            next.len()
        };
        let started = self.backend.now();
        self.answering = Duration::ZERO;
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
            self.answering = took;
            self.speed.handle_answer_batch(computed, took, now);
        }
    }

    /// Reads pieces of the prompts, as many tokens as the budget of a step allows. More would make
    /// the streams, and the requests that arrive now, wait for them.
    pub(super) fn read(&mut self) {
        let mut readers: Vec<Reader> = Vec::new();
        for (index, slot) in self.slots.iter().enumerate() {
            let run = slot.run.as_ref();
            if let Some(run) = run.filter(|run| run.reads()) {
                readers.push(Reader {
                    used: slot.used,
                    index,
                    piece: self.piece_length(index),
                    left: run.prompt.len().saturating_sub(slot.tokens.len()),
                    passed: run.passed,
                });
            }
        }
        let pieces = match self.terms.is_reproducible {
            true => pieces::one(&readers),
            false => {
                let tokens = self.budget.tokens(self.answering, self.copying.spent());
                (self.terms.divide)(readers, tokens)
            }
        };
        if pieces.is_empty() {
            return;
        }
        for (index, slot) in self.slots.iter_mut().enumerate() {
            let is_read = pieces
                .binary_search_by_key(&index, |(index, _)| *index)
                .is_ok();
            if let Some(run) = &mut slot.run {
                run.passed = if is_read { 0 } else { run.passed + 1 };
            }
        }
        let started = self.backend.now();
        let last_entries = self.fill_with_prompts(&pieces);
        if self.compute() {
            let now = self.backend.now();
            let took = now.since(started);
            self.speed.handle_prompt_batch(self.batch.len(), took, now);
            self.budget.handle_batch(self.batch.len(), took, now);
            for (index, entry) in last_entries {
                self.keep_prefix(index);
                if let Some(entry) = entry {
                    self.take_token(index, entry);
                }
            }
        }
    }

    /// Returns how much of a slot's prompt fits into one batch: up to its end, or first to the end
    /// of the daemon's own text, if that is to be kept for others. In reproducible mode, up to the
    /// next place at which every reading of this prompt stops.
    fn piece_length(&self, index: usize) -> usize {
        let slot = &self.slots[index];
        let Some(run) = &slot.run else { return 0 };
        let computed = slot.tokens.len();
        if self.terms.is_reproducible {
            let chunk = self.terms.piece_tokens.min(self.backend.batch_limit());
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

    /// Restores invariant 1 after a batch, however much of it was computed, and charges the lines
    /// for what was.
    fn note_lengths(&mut self) {
        for entry in self.batch.entries() {
            let slot = &mut self.slots[entry.sequence];
            if slot.tokens.len() < self.backend.length(entry.sequence) {
                slot.tokens.push(entry.token);
                slot.computed += 1;
            }
        }
        for index in self.batch.sequences() {
            let length = self.backend.length(index);
            let slot = &mut self.slots[index];
            slot.truncate(length);
            let computed = std::mem::take(&mut slot.computed);
            if let Some(run) = &mut slot.run {
                let (charged, read) = run.note_computed(computed);
                let reserved = charged.min(run.tenure.reserved);
                run.tenure.reserved -= reserved;
                self.queue.charge(run.line, charged, reserved);
                self.gauges.prompt_tokens += u64::from(read);
            }
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
            && let Some(state) = self.save(index)
        {
            let tokens = self.slots[index].tokens.clone();
            if let Some(words) = &self.own_words {
                words.keep(tokens.clone(), state.clone());
            }
            self.prefixes.insert(tokens, state);
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
}
