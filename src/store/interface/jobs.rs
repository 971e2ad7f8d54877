//! Durable jobs in a store: rows, the order in which they run, their events.
//!
//! The states of a job are changed by [`Life`] alone: a caller reads a life, applies a transition
//! and saves it, all in the transaction that the caller's task is. So the rules are the same for
//! each database, and what is here only reads and writes.
//!
//! A database server is a round trip away, so what a group of tasks does again and again takes many
//! jobs at once: a statement for all of them, and not one for each. The functions for one job are
//! made of those.
//!
//! Must never name a database. Times are milliseconds since 1970.

use crate::jobs::{
    EventId, JobEvent, JobId, JobRecord, JobSummary, JobTotals, Life, NewJob, RememberedJob, State,
};
use crate::store::StoreError;

/// The durable jobs of an open store.
pub trait Jobs {
    /// Adds jobs that wait.
    fn insert_jobs(&mut self, jobs: &[&NewJob]) -> Result<(), StoreError>;

    /// Adds a job that waits.
    fn insert_job(&mut self, job: &NewJob) -> Result<(), StoreError> {
        self.insert_jobs(&[job])
    }

    /// Returns those jobs that are there, in any order, whichever keys they belong to: the caller
    /// compares.
    fn jobs(&mut self, ids: &[JobId]) -> Result<Vec<JobRecord>, StoreError>;

    /// Returns a job, whichever key it belongs to: the caller compares.
    fn job(&mut self, id: JobId) -> Result<Option<JobRecord>, StoreError> {
        self.jobs(&[id]).map(|mut found| found.pop())
    }

    /// Reads a life in order to change it: until the transaction ends, no other connection changes
    /// the job.
    fn job_life(&mut self, id: JobId) -> Result<Option<Life>, StoreError>;

    /// Saves the life of a job that is not finished. The first time that it runs begins at `now`.
    fn save_job_life(&mut self, id: JobId, life: &Life, now: u64) -> Result<(), StoreError>;

    /// Saves a job that has ended, and drops its request.
    fn finish_job(&mut self, id: JobId, end: &FinishedJob<'_>) -> Result<(), StoreError>;

    /// Adds an event to the history of a job.
    fn push_job_event(&mut self, id: JobId, event: &JobEvent) -> Result<(), StoreError>;

    /// Returns events of a job in their order, from the one after `after` on, until their texts
    /// have `bytes_max` or more.
    fn job_events(
        &mut self,
        id: JobId,
        after: EventId,
        bytes_max: usize,
    ) -> Result<Vec<JobEvent>, StoreError>;

    /// Returns up to `room` jobs that should run next: each time the oldest that waits, of the key
    /// that has the fewest running and has been passed over for longest. The caller claims them
    /// all. Another connection that asks at the same time gets others.
    fn next_waiting_jobs(&mut self, now: u64, room: usize) -> Result<Vec<JobId>, StoreError>;

    /// Keeps the jobs of a key waiting until then.
    fn postpone_jobs(&mut self, key_id: &str, until: u64) -> Result<(), StoreError>;

    /// Returns what the jobs of each key take, and those of all keys together. It counts no jobs.
    fn totals_of_keys(
        &mut self,
        key_ids: &[&str],
    ) -> Result<(Vec<JobTotals>, JobTotals), StoreError>;

    /// Returns what a key's jobs take; of all keys together with `None`.
    fn job_totals(&mut self, key_id: Option<&str>) -> Result<JobTotals, StoreError> {
        let (own, all) = self.totals_of_keys(key_id.as_slice())?;
        Ok(own.first().copied().unwrap_or(all))
    }

    /// Returns a key's jobs, the newest first, from the one before `before` on.
    fn job_page(
        &mut self,
        key_id: &str,
        state: Option<State>,
        before: Option<JobId>,
        limit: u32,
    ) -> Result<Vec<JobSummary>, StoreError>;

    /// Returns running jobs whose leases have run out.
    fn lost_jobs(&mut self, now: u64, limit: u32) -> Result<Vec<JobId>, StoreError>;

    /// Returns waiting jobs whose time has passed.
    fn overdue_jobs(&mut self, now: u64, limit: u32) -> Result<Vec<JobId>, StoreError>;

    /// Deletes finished jobs whose time has passed, and keys of idempotency whose own time has.
    /// Returns how many rows; fewer than `limit` if there are no more.
    fn delete_old_jobs(&mut self, now: u64, limit: u32) -> Result<u32, StoreError>;

    /// Deletes jobs of one key, whatever their state. Returns how many; fewer than `limit` if there
    /// are no more.
    fn erase_jobs(&mut self, key_id: &str, limit: u32) -> Result<u32, StoreError>;

    /// Deletes keys of idempotency of one API key that are there without a job: an import may bring
    /// such. Returns how many; fewer than `limit` if there are no more.
    fn erase_remembered_jobs(&mut self, key_id: &str, limit: u32) -> Result<u32, StoreError>;

    /// Returns the job that was accepted under each of these keys of idempotency, or `None`. It may
    /// have expired. Until the transaction ends, another connection that asks for one of these keys
    /// waits.
    fn remembered_jobs(
        &mut self,
        keys: &[IdempotencyKey<'_>],
    ) -> Result<Vec<Option<RememberedJob>>, StoreError>;

    /// Remembers jobs under different keys of idempotency, in the place of earlier ones. Each is
    /// forgotten when its job is deleted.
    fn remember_jobs(
        &mut self,
        jobs: &[(IdempotencyKey<'_>, RememberedJob)],
    ) -> Result<(), StoreError>;
}

/// An API key's id, and one of the values of `Idempotency-Key` that its clients have sent.
pub type IdempotencyKey<'a> = (&'a str, &'a str);

/// The end of a job, as it is saved.
#[derive(Clone, Copy, Debug)]
pub struct FinishedJob<'a> {
    pub life: &'a Life,
    pub finished_at: u64,
    /// When it is deleted.
    pub expires_at: u64,
    /// An [`Ending`](crate::jobs::Ending), as JSON; `None` if it never ran to an end.
    pub ending: Option<&'a str>,
}
