//! The runner's own tasks for the store's thread.
//!
//! Each task reports to the runner exactly once, with what it was for: also if the store has failed
//! or its thread has ended. So the runner always knows what is under way, and what it has to do
//! again.

use std::collections::HashMap;

use crate::jobs::{EventId, Fenced, JobId, JobRecord, JobTotals};
use crate::limits::jobs as limits;
use crate::store::{Store, StoreError, StoreTask};

use super::calls::Called;
use super::change;
use super::changes::Write;

/// The store's own line for the runner: no API key has this number.
pub(super) const TENANT: u64 = u64::MAX;

/// Work of the runner's threads in the store.
pub trait StoreWork: Send {
    /// Appends the jobs that `run` will read for a change, as far as they are known before.
    fn name_jobs(&self, _jobs: &mut Vec<JobId>) {}

    fn run(&mut self, store: &mut dyn Store) -> Result<(), StoreError>;
}

/// A task that has ended.
pub struct Done<W = Work> {
    pub work: W,
    /// Why the store has done nothing of it; empty if its thread has ended.
    pub failure: Option<String>,
}

/// A request to the store, and later its result.
pub enum Work {
    Claim {
        /// Jobs whose clients wait, each with a place of its own.
        called: Vec<Called>,
        room: usize,
        now: u64,
        lease_until: u64,
        claimed: Vec<JobRecord>,
    },
    Save {
        /// By the serial numbers of attempts.
        parts: Vec<(u32, Write)>,
        now: u64,
        keep_ms: u64,
        saved: Vec<Result<(), Fenced>>,
    },
    Sweep {
        now: u64,
        keep_ms: u64,
        changed: Vec<JobId>,
        has_more: bool,
        totals: JobTotals,
    },
    /// Looks at jobs that are followed here. `None`: the job is gone.
    Look {
        ids: Vec<JobId>,
        seen: Vec<(JobId, Option<EventId>)>,
    },
}

impl StoreWork for Work {
    fn name_jobs(&self, jobs: &mut Vec<JobId>) {
        match self {
            Work::Claim { called, .. } => jobs.extend(called.iter().map(|called| called.id)),
            Work::Save { parts, .. } => jobs.extend(parts.iter().map(|(_, part)| part.id)),
            Work::Sweep { .. } | Work::Look { .. } => {}
        }
    }

    fn run(&mut self, store: &mut dyn Store) -> Result<(), StoreError> {
        match self {
            Work::Claim {
                called,
                room,
                now,
                lease_until,
                claimed,
            } => {
                let called: Vec<JobId> = called.iter().map(|called| called.id).collect();
                *claimed = change::claim(store, &called, *room, *now, *lease_until)?;
            }
            Work::Save {
                parts,
                now,
                keep_ms,
                saved,
            } => {
                let parts = parts.iter().map(|(_, part)| part);
                *saved = change::write(store, parts, *now, *keep_ms)?;
            }
            Work::Sweep {
                now,
                keep_ms,
                changed,
                has_more,
                totals,
            } => {
                (*changed, *has_more) =
                    change::sweep(store, *now, *keep_ms, limits::SWEPT_JOBS_MAX)?;
                *totals = store.job_totals(None)?;
            }
            Work::Look { ids, seen } => {
                let found: HashMap<JobId, EventId> =
                    store.last_job_events(ids)?.into_iter().collect();
                let last = |id: &JobId| (*id, found.get(id).copied());
                *seen = ids.iter().map(last).collect();
            }
        }
        Ok(())
    }
}

/// See the file's head.
pub struct RunnerTask<W: StoreWork, F: FnMut(Done<W>) + Send> {
    /// `None` once it has reported.
    work: Option<W>,
    on_end: F,
}

impl<W: StoreWork, F: FnMut(Done<W>) + Send> RunnerTask<W, F> {
    pub fn new(work: W, on_end: F) -> RunnerTask<W, F> {
        RunnerTask {
            work: Some(work),
            on_end,
        }
    }

    fn report(&mut self, failure: Option<String>) {
        if let Some(work) = self.work.take() {
            (self.on_end)(Done { work, failure });
        }
    }
}

impl<W: StoreWork, F: FnMut(Done<W>) + Send> StoreTask for RunnerTask<W, F> {
    fn name_jobs(&self, jobs: &mut Vec<JobId>) {
        if let Some(work) = &self.work {
            work.name_jobs(jobs);
        }
    }

    fn run(&mut self, store: &mut dyn Store) -> Result<(), StoreError> {
        match &mut self.work {
            Some(work) => work.run(store),
            None => Ok(()),
        }
    }

    fn finish(mut self: Box<Self>, result: Result<(), &StoreError>) {
        self.report(result.err().map(ToString::to_string));
    }
}

impl<W: StoreWork, F: FnMut(Done<W>) + Send> Drop for RunnerTask<W, F> {
    fn drop(&mut self) {
        self.report(Some(String::new()));
    }
}

#[cfg(test)]
mod tests;
