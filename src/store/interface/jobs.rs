//! Durable jobs in a store: rows, the order in which they run, their events.
//!
//! The states of a job are changed by [`Life`] alone: a caller reads a life, applies a transition
//! and saves it, all in the transaction that the caller's task is. So the rules are the same for
//! each database, and what is here only reads and writes.
//!
//! Must never name a database. Times are milliseconds since 1970.

use crate::jobs::{
    EventId, JobEvent, JobId, JobRecord, JobSummary, JobTotals, Life, NewJob, State,
};
use crate::store::StoreError;

/// The durable jobs of an open store.
pub trait Jobs {
    /// Adds a job that waits.
    fn insert_job(&mut self, job: &NewJob) -> Result<(), StoreError>;

    /// Returns a job, whichever key it belongs to: the caller compares.
    fn job(&mut self, id: JobId) -> Result<Option<JobRecord>, StoreError>;

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

    /// Returns the job that should run next: the oldest that waits, of the key that has the fewest
    /// running and has been passed over for longest. Another connection that asks at the same time
    /// gets another job.
    fn next_waiting_job(&mut self, now: u64) -> Result<Option<JobId>, StoreError>;

    /// Keeps the jobs of a key waiting until then.
    fn postpone_jobs(&mut self, key_id: &str, until: u64) -> Result<(), StoreError>;

    /// Returns what a key's jobs take; of all keys together with `None`. O(1).
    fn job_totals(&mut self, key_id: Option<&str>) -> Result<JobTotals, StoreError>;

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

    /// Deletes finished jobs whose time has passed, and keys of idempotency with them. Returns how
    /// many rows; fewer than `limit` if there are no more.
    fn delete_old_jobs(&mut self, now: u64, limit: u32) -> Result<u32, StoreError>;

    /// Deletes jobs of one key, whatever their state. Returns how many; fewer than `limit` if there
    /// are no more.
    fn erase_jobs(&mut self, key_id: &str, limit: u32) -> Result<u32, StoreError>;

    /// Returns the job that was accepted under this key of idempotency, unless that has expired.
    fn remembered_job(
        &mut self,
        key_id: &str,
        key: &str,
        now: u64,
    ) -> Result<Option<RememberedJob>, StoreError>;

    /// Remembers a job under a key of idempotency, in the place of an expired one.
    fn remember_job(
        &mut self,
        key_id: &str,
        key: &str,
        job: &RememberedJob,
    ) -> Result<(), StoreError>;
}

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

/// The job of a request with `Idempotency-Key`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RememberedJob {
    pub id: JobId,
    /// Of the request: another request with the same key is a conflict.
    pub digest: [u8; 32],
    pub expires_at: u64,
}
