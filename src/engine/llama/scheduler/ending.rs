//! How a job leaves the scheduler: finished, failed or refused, by one terminal event.

use std::time::Duration;

use super::super::backend::Backend;
use super::super::owed::{End, Owed};
use super::run::{Ended, Run};
use super::{Scheduler, Waiting};
use crate::engine::{Done, Event, FailReason, Failed, FinishReason, Served, Timings, Usage};
use crate::limits::prefixes as prefix_limits;

impl<B: Backend> Scheduler<B> {
    /// Ends a job whose output is complete.
    pub(super) fn finish(&mut self, index: usize, finish_reason: FinishReason) {
        let Some(run) = self.leave_slot(index) else {
            return;
        };
        let ended = run.end_with_text();
        self.note_job(&ended);
        let done = Done {
            text: ended.text,
            finish_reason,
            usage: ended.usage,
            timings: ended.timings,
            served: Served::default(),
        };
        ended
            .owed
            .deliver(Event::Done(Box::new(done)), &mut self.events);
    }

    /// Ends a job whose output is incomplete. Its slot keeps the computed tokens.
    pub(super) fn fail(&mut self, index: usize, reason: FailReason, message: String) {
        if let Some(run) = self.leave_slot(index) {
            self.fail_run(*run, reason, message);
        }
    }

    /// Takes the job from its slot, and returns the rest of its reservation to its line.
    pub(super) fn leave_slot(&mut self, index: usize) -> Option<Box<Run<B::Sampler>>> {
        let mut run = self.slots[index].run.take()?;
        self.slots[index].keep_at = Some(self.backend.now() + prefix_limits::KEPT_AFTER);
        self.end_load(&mut run, false);
        self.queue.unseat(run.line, run.tenure.reserved);
        Some(run)
    }

    fn fail_run(&mut self, run: Run<B::Sampler>, reason: FailReason, message: String) {
        let ended = run.end_with_text();
        self.note_job(&ended);
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

    /// Ends a job that waits, whether it has begun or not.
    pub(super) fn end_waiting(&mut self, waiting: Waiting<B::Sampler>, end: End) {
        let (reason, message) = (end.reason(), end.message().to_owned());
        match waiting {
            Waiting::Fresh { owed, .. } => self.refuse(*owed, reason, message),
            Waiting::Begun(yielded) => self.fail_run(*yielded.run, reason, message),
        }
    }

    /// Refuses up to `jobs` live jobs that have not begun, because the queue is above its bound:
    /// each time the newest one of the tenant with the most of them. `retry_after` returns when
    /// that tenant may come back; or `None` if another one has more jobs that have not come here
    /// yet.
    pub fn make_room(&mut self, jobs: u32, retry_after: &dyn Fn(u64) -> Option<Duration>) {
        for _ in 0..jobs {
            let longest = self.queue.longest();
            let Some(retry_after) = longest.and_then(|line| retry_after(line.tenant)) else {
                break;
            };
            let Some(Waiting::Fresh { owed, .. }) = self.queue.pop_newest_of_longest() else {
                break;
            };
            let message = "the queue is full, and this client has the most requests in it";
            let reason = FailReason::CrowdedOut { retry_after };
            self.refuse(*owed, reason, message.to_owned());
        }
        self.flush();
        self.count();
    }

    /// Records the cost of a job that has ended, complete or not. A prompt that was not read to its
    /// end has cost what was read of it.
    fn note_job(&mut self, ended: &Ended) {
        let now = self.backend.now();
        let answer = ended.usage.completion_tokens;
        self.speed.handle_job(ended.read, answer, now);
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
