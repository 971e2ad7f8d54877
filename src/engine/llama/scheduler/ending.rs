//! How a job leaves the scheduler: finished, failed or refused, by one terminal event.

use super::super::backend::Backend;
use super::super::owed::Owed;
use super::Scheduler;
use super::run::Ended;
use crate::engine::{Done, Event, FailReason, Failed, FinishReason, Timings, Usage};

impl<B: Backend> Scheduler<B> {
    /// Ends a job whose output is complete.
    pub(super) fn finish(&mut self, index: usize, finish_reason: FinishReason) {
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
    pub(super) fn fail(&mut self, index: usize, reason: FailReason, message: String) {
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
    pub(super) fn refuse(&mut self, owed: Owed, reason: FailReason, message: String) {
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
}
