//! Copies of sequences that survive the daemon: when one is taken, and how a prompt gets it back.
//!
//! Owns the moves between slots and the [`Archive`], which keeps the copies and decides which ones
//! it wants. A copy is taken when a slot has not been used for a while, when it is about to lose
//! tokens, and of all slots at the end. A job whose prompt begins like a copy keeps its slot and
//! reads nothing until the copy is loaded; all others go on meanwhile. If it does not come in time,
//! the job reads its prompt itself.
//!
//! Reproducible mode has no archive: a job must not go on from tokens that were computed
//! in other batches than its own would be (invariant 5).

use std::cmp::Reverse;

use super::super::backend::Backend;
use super::Scheduler;
use super::copying::Way;
use super::run::{Loading, Run};
use super::slot::Slot;
use crate::core::Moment;
use crate::engine::prefixes::{
    Archive, Copied, LoadedCopy, OwnState, OwnWords, Token, Wanted, Wish, shared,
};
use crate::limits::prefixes as limits;

impl<B: Backend> Scheduler<B> {
    /// Keeps copies there, and goes on from those that are there.
    pub fn use_archive(&mut self, archive: Box<dyn Archive>) {
        debug_assert!(!self.terms.is_reproducible);
        self.archive = Some(archive);
    }

    /// Uses the daemon's own words that were computed before, and keeps others.
    pub fn use_own_words(&mut self, words: OwnWords, states: Vec<OwnState>) {
        for (tokens, state) in states {
            self.prefixes.insert(tokens, state);
        }
        self.own_words = Some(words);
    }

    /// Copies a slot's tokens if enough of them, all but the first `kept` ones, are about to be
    /// lost. A step takes few copies, and only within its time, because the streams wait for each.
    pub(super) fn archive_slot(&mut self, index: usize, kept: usize) {
        let tokens = self.slots[index].tokens.len();
        let is_lost = tokens.saturating_sub(kept) >= self.terms.archived_tokens_min;
        let wish = match is_lost {
            true => self.wish(index),
            false => Wish::Nothing,
        };
        match wish {
            Wish::Copy if self.has_time(tokens) => self.copy_slot(index),
            Wish::Copy | Wish::Later => self.archive.iter().for_each(|archive| archive.skip()),
            Wish::Nothing => {}
        }
    }

    fn has_time(&self, tokens: usize) -> bool {
        self.archived < limits::COPIED_SEQUENCES_PER_STEP_MAX
            && tokens <= self.copying.tokens_left(Way::Save, self.backend.now())
    }

    /// Copies a sequence that no job has used for a while, so that the end has little to keep, and
    /// a kill loses little. At most one in a step.
    pub(super) fn keep_old(&mut self) {
        let now = self.backend.now();
        let is_due = |slot: &Slot<B::Sampler>| slot.keep_at.is_some_and(|at| at <= now);
        let Some(index) = self.slots.iter().position(is_due) else {
            return;
        };
        let later = Some(now + limits::KEEP_RETRY_PAUSE);
        self.slots[index].keep_at = match self.wish(index) {
            Wish::Copy if self.has_time(self.slots[index].tokens.len()) => {
                self.copy_slot(index);
                None
            }
            Wish::Copy | Wish::Later => later,
            Wish::Nothing => None,
        };
    }

    /// Does the same between two jobs. Must be called only while the scheduler is idle.
    pub fn rest(&mut self) {
        self.begin_copies();
        self.keep_old();
    }

    /// Returns when to call [`Scheduler::rest`], if there is a reason to.
    pub fn rest_at(&self) -> Option<Moment> {
        let all = self.slots.iter().filter_map(|slot| slot.keep_at);
        all.min().filter(|_| self.archive.is_some())
    }

    /// Returns whether the archive would keep a copy of a slot.
    fn wish(&self, index: usize) -> Wish {
        let slot = &self.slots[index];
        match &self.archive {
            Some(archive)
                if is_long(slot, self.terms.archived_tokens_min)
                    && slot.epoch == archive.epoch() =>
            {
                archive.wish(slot.tenant, &slot.tokens)
            }
            _ => Wish::Nothing,
        }
    }

    fn copy_slot(&mut self, index: usize) {
        self.archived += 1;
        let state = self.save(index);
        let slot = &self.slots[index];
        if let (Some(archive), Some(state)) = (&mut self.archive, state) {
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
        let longest = self.copying.tokens_max(Way::Restore, since);
        let slot = &mut self.slots[index];
        if let (Some(archive), Some(run)) = (&mut self.archive, &mut slot.run) {
            // The last token is always computed, because its scores are needed.
            let wanted = Wanted {
                tenant: slot.tenant,
                prompt: &run.prompt[..run.prompt.len() - 1],
                held: slot.tokens.len(),
                longest,
            };
            if let Some(load) = archive.begin_load(wanted) {
                run.begin_loading(Loading { load, since });
            }
        }
    }

    fn begin_copies(&mut self) {
        self.archived = 0;
        self.copying.begin_step();
    }

    /// Puts a copy that was loaded into its slot, at most one in a step. Jobs that have waited too
    /// long wait no longer.
    pub(super) fn take_loaded(&mut self) {
        self.begin_copies();
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
        let slot = &self.slots[index];
        let Some(run) = &slot.run else {
            return false;
        };
        let before = slot.tokens.len();
        let shared = shared(&copy.tokens, &run.prompt[..run.prompt.len() - 1]);
        let fits = copy.tokens.len() <= self.backend.context_length();
        if !fits || shared <= before {
            return false;
        }
        if self.restore(index, &copy.tokens, &copy.state) {
            self.backend.truncate(index, shared);
            let length = self.backend.length(index);
            self.slots[index].truncate(length);
        }
        let slot = &mut self.slots[index];
        let held = slot.tokens.len();
        let Some(run) = &mut slot.run else {
            return false;
        };
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

    /// Copies all slots, and waits until the copies are kept, as far as there is time. The last
    /// used ones come first: they are the most likely to be asked for again, and the cost of
    /// computing a sequence is in proportion to the cost of keeping it. Must be called at the end,
    /// when no job runs.
    pub fn archive_all(&mut self, is_over: &dyn Fn() -> bool) {
        let mut order: Vec<usize> = (0..self.slots.len()).collect();
        order.sort_by_key(|index| Reverse(self.slots[*index].used));
        let least = self.terms.archived_tokens_min;
        for index in order {
            let slot = &self.slots[index];
            let archive = self.archive.as_ref().filter(|_| is_long(slot, least));
            let Some(archive) = archive else { continue };
            let has_room = archive.await_room(slot.tokens.len(), is_over);
            if has_room && self.wish(index) == Wish::Copy {
                self.copy_slot(index);
            }
        }
        if let Some(archive) = &mut self.archive {
            archive.finish(is_over);
        }
    }
}

/// The copies themselves, for whatever purpose: all of them go through here.
impl<B: Backend> Scheduler<B> {
    /// Copies the contents of a slot.
    pub(super) fn save(&mut self, index: usize) -> Option<Vec<u8>> {
        let start = self.backend.now();
        let state = self.backend.save(index);
        let tokens = self.slots[index].tokens.len();
        self.note_copy(Way::Save, tokens, start);
        state
    }

    /// Replaces the contents of a slot by a copy of these tokens. Returns whether that worked; if
    /// not, the slot is empty.
    pub(super) fn restore(&mut self, index: usize, tokens: &[Token], state: &[u8]) -> bool {
        let start = self.backend.now();
        let is_restored = self.backend.restore(index, state, tokens.len());
        self.note_copy(Way::Restore, tokens.len(), start);
        let held = &mut self.slots[index].tokens;
        held.clear();
        held.extend_from_slice(if is_restored { tokens } else { &[] });
        is_restored
    }

    fn note_copy(&mut self, way: Way, tokens: usize, start: Moment) {
        let now = self.backend.now();
        let took = now.since(start);
        log::debug!("{way:?} of a sequence: {tokens} tokens, {took:?}");
        self.copying.handle_copy(way, tokens, took, now);
    }
}

/// Returns whether a slot holds enough tokens of its tenant's own text.
fn is_long<S>(slot: &Slot<S>, least: usize) -> bool {
    slot.tokens.len().saturating_sub(slot.common) >= least
}
