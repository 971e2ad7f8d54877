//! Copies of sequences that survive the daemon: when one is taken, and how a prompt gets it back.
//!
//! Owns the moves between slots and the [`Archive`], which keeps the copies and decides which ones
//! it wants. A copy is taken when a slot is about to lose tokens, and of all slots at the end. A
//! job whose prompt begins like a copy keeps its slot and reads nothing until the copy is loaded;
//! all others go on meanwhile. If it does not come in time, the job reads its prompt itself.
//!
//! Reproducible mode has no archive: a job must not go on from tokens that were computed
//! in other batches than its own would be (invariant 5).

use std::cmp::Reverse;

use super::super::backend::Backend;
use super::Scheduler;
use super::run::{Loading, Run};
use super::slot::Slot;
use crate::engine::prefixes::{Archive, Copied, LoadedCopy};
use crate::limits::prefixes as limits;

impl<B: Backend> Scheduler<B> {
    /// Keeps copies there, and goes on from those that are there.
    pub fn use_archive(&mut self, archive: Box<dyn Archive>) {
        debug_assert!(!self.terms.is_reproducible);
        self.archive = Some(archive);
    }

    /// Copies a slot's tokens if enough of them, all but the first `kept` ones, are about to be
    /// lost. A step takes few copies, because the streams wait for each.
    pub(super) fn archive_slot(&mut self, index: usize, kept: usize) {
        let lost = self.slots[index].tokens.len().saturating_sub(kept);
        if lost >= self.terms.archived_tokens_min
            && self.archived < limits::COPIED_SEQUENCES_PER_STEP_MAX
        {
            self.copy_slot(index);
        }
    }

    fn copy_slot(&mut self, index: usize) {
        let (Some(archive), slot) = (&mut self.archive, &self.slots[index]) else {
            return;
        };
        if !is_long(slot, self.terms.archived_tokens_min)
            || slot.epoch != archive.epoch()
            || !archive.wants(slot.tenant, &slot.tokens)
        {
            return;
        }
        self.archived += 1;
        if let Some(state) = self.backend.save(index) {
            archive.keep(Copied {
                tenant: slot.tenant,
                tokens: slot.tokens.clone(),
                state,
                epoch: slot.epoch,
            });
        }
    }

    /// Lets a job that has just got its slot wait for a copy, if there is one that saves enough.
    pub(super) fn begin_load(&mut self, index: usize) {
        let since = self.backend.now();
        let slot = &mut self.slots[index];
        if let (Some(archive), Some(run)) = (&mut self.archive, &mut slot.run) {
            // The last token is always computed, because its scores are needed.
            let prompt = &run.prompt[..run.prompt.len() - 1];
            if let Some(load) = archive.begin_load(slot.tenant, prompt, slot.tokens.len()) {
                run.begin_loading(Loading { load, since });
            }
        }
    }

    /// Puts a copy that was loaded into its slot, at most one in a step. Jobs that have waited too
    /// long wait no longer.
    pub(super) fn take_loaded(&mut self) {
        self.archived = 0;
        let loaded = self
            .archive
            .as_mut()
            .and_then(|archive| archive.poll_loaded());
        let now = self.backend.now();
        for index in 0..self.slots.len() {
            let run = self.slots[index].run.as_ref();
            let Some(loading) = run.and_then(|run| run.loading()) else {
                continue;
            };
            let is_late = now.since(loading.since) >= limits::LOAD_PATIENCE;
            let is_used = match &loaded {
                Some(loaded) if loaded.load == loading.load => {
                    let copy = loaded.copy.as_ref();
                    copy.is_some_and(|copy| self.take_copy(index, copy))
                }
                _ if is_late => false,
                _ => continue,
            };
            if let Some(mut run) = self.slots[index].run.take() {
                self.end_load(&mut run, is_used);
                self.slots[index].run = Some(run);
            }
        }
    }

    /// Replaces a slot's tokens by a copy, as far as the slot's prompt begins with it. Returns
    /// whether that was possible.
    fn take_copy(&mut self, index: usize, copy: &LoadedCopy) -> bool {
        let slot = &mut self.slots[index];
        let Some(run) = &mut slot.run else {
            return false;
        };
        let before = slot.tokens.len();
        let prompt = &run.prompt[..run.prompt.len() - 1];
        let pairs = copy.tokens.iter().zip(prompt);
        let shared = pairs.take_while(|(copied, own)| copied == own).count();
        let fits = copy.tokens.len() <= self.backend.context_length();
        if !fits || shared <= before {
            return false;
        }
        slot.tokens.clear();
        let length = copy.tokens.len();
        if self.backend.restore(index, &copy.state, length) {
            slot.tokens.extend_from_slice(&copy.tokens);
            self.backend.truncate(index, shared);
            slot.tokens.truncate(self.backend.length(index));
        }
        let held = slot.tokens.len();
        run.note_held(held);
        let more = held.saturating_sub(before) as u64;
        self.gauges.prompt_tokens += more;
        self.gauges.prompt_cached_tokens += more;
        let expected = run.expected_tokens(held, self.terms.share.tokens);
        let released = run.tenure.reserved.saturating_sub(expected);
        run.tenure.reserved -= released;
        self.queue.charge(run.line, 0, released);
        held > before
    }

    /// Lets a job wait no longer for its copy, if it waits for one.
    pub(super) fn end_load(&mut self, run: &mut Run<B::Sampler>, is_used: bool) {
        if let (Some(archive), Some(loading)) = (&mut self.archive, run.end_loading()) {
            archive.end_load(loading.load, is_used);
        }
    }

    /// Copies all slots, the last used ones first, and waits until the copies are kept. Must be
    /// called at the end, when no job runs.
    pub fn archive_all(&mut self) {
        let until = self.backend.now() + limits::DRAIN_TIME_MAX;
        let mut order: Vec<usize> = (0..self.slots.len()).collect();
        order.sort_by_key(|index| Reverse(self.slots[*index].used));
        let least = self.terms.archived_tokens_min;
        for index in order {
            let slot = &self.slots[index];
            let archive = self.archive.as_ref().filter(|_| is_long(slot, least));
            let Some(archive) = archive else { continue };
            if archive.await_room(slot.tokens.len(), until) {
                self.copy_slot(index);
            }
        }
        if let Some(archive) = &mut self.archive {
            archive.finish(until);
        }
    }
}

/// Returns whether a slot holds enough tokens of its tenant's own text.
fn is_long<S>(slot: &Slot<S>, least: usize) -> bool {
    slot.tokens.len().saturating_sub(slot.common) >= least
}
