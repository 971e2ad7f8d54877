//! Assigns the free sequences to waiting jobs.

use super::super::backend::Backend;
use super::run::Run;
use super::slot::{self, Reuse, Slot};
use super::{Scheduler, Waiting};
use crate::engine::FinishReason;

impl<B: Backend> Scheduler<B> {
    /// Assigns the free slots to waiting jobs, in order.
    pub(super) fn seat(&mut self) {
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
}
