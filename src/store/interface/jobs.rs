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
    EventId, EventKind, JobEvent, JobId, JobRecord, JobSummary, JobTotals, Life, NewJob,
    RememberedJob, State,
};
use crate::limits::jobs as limits;
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

    /// Reads lives in order to change them: until the transaction ends, no other connection changes
    /// those jobs. They are locked in the order of their ids. A job that is gone is left out.
    fn job_lives(&mut self, ids: &[JobId]) -> Result<Vec<(JobId, Life)>, StoreError>;

    /// Locks jobs that will be read for a change later in this transaction. With a store of one
    /// writer this is that transaction's beginning.
    fn lock_jobs(&mut self, _ids: &[JobId]) -> Result<(), StoreError> {
        Ok(())
    }

    /// Returns the last event of each of those jobs that are there, in any order.
    fn last_job_events(&mut self, ids: &[JobId]) -> Result<Vec<(JobId, EventId)>, StoreError>;

    /// Saves changes of different jobs. The first time that a job runs begins at `now`.
    fn save_jobs(&mut self, changes: &[JobChange], now: u64) -> Result<(), StoreError>;

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

    /// For each job, keeps all jobs of its key waiting until then.
    fn postpone_jobs(&mut self, jobs: &[(JobId, u64)]) -> Result<(), StoreError>;

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

    /// Returns running jobs whose leases have run out, except those that another connection is
    /// changing.
    fn lost_jobs(&mut self, now: u64, limit: u32) -> Result<Vec<JobId>, StoreError>;

    /// Returns waiting jobs whose time has passed, except those that another connection is
    /// changing.
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

/// A change of a job.
#[derive(Clone, Debug, PartialEq)]
pub struct JobChange {
    pub id: JobId,
    pub life: Life,
    /// New events of its history.
    pub events: Vec<JobEvent>,
    /// If it has ended. Its request is dropped.
    pub end: Option<JobEnd>,
}

impl JobChange {
    pub fn new(id: JobId, life: Life) -> JobChange {
        JobChange {
            id,
            life,
            events: Vec::new(),
            end: None,
        }
    }

    /// Adds an event.
    pub fn push(&mut self, id: EventId, kind: EventKind, text: &str) {
        self.events.push(JobEvent {
            id,
            kind,
            text: text.to_owned(),
        });
    }

    /// Returns the bytes that the change adds to those of the job. The request of a job that ends
    /// is not subtracted.
    pub fn bytes(&self) -> u64 {
        let events = self.events.iter();
        let events: u64 = events
            .map(|event| limits::EVENT_BYTES + event.text.len() as u64)
            .sum();
        let ending = self.end.as_ref().and_then(|end| end.ending.as_ref());
        events + ending.map_or(0, String::len) as u64
    }
}

/// The end of a job, as it is saved.
#[derive(Clone, Debug, PartialEq)]
pub struct JobEnd {
    pub finished_at: u64,
    /// When it is deleted.
    pub expires_at: u64,
    /// An [`Ending`](crate::jobs::Ending), as JSON; `None` if it never ran to an end.
    pub ending: Option<String>,
}
