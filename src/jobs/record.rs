//! A job as the store keeps it.

use super::{Callback, JobId, Life, State};
use crate::limits::jobs as limits;

/// A job on its way into the store.
#[derive(Clone, Debug, PartialEq)]
pub struct NewJob {
    pub id: JobId,
    /// The id of the API key that it belongs to; empty for clients without one.
    pub key_id: String,
    pub created_at: u64,
    /// If no attempt has begun by then, it expires.
    pub expires_at: u64,
    /// A [`JobRequest`](super::JobRequest), as JSON.
    pub request: String,
    pub callback_url: Option<String>,
    pub idempotency: Option<Idempotency>,
}

impl NewJob {
    /// Returns what the job counts: no less than all its rows take, with their places in indexes.
    /// What it writes while it runs comes on top.
    pub fn bytes(&self) -> u64 {
        let url = self.callback_url.as_ref();
        let callback = url.map_or(0, |url| limits::CALLBACK_ROW_BYTES + url.len() as u64);
        let key = self.idempotency.as_ref().map_or(0, Idempotency::bytes);
        limits::ROW_BYTES + self.request.len() as u64 + callback + key
    }
}

/// The key of a request with `Idempotency-Key`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Idempotency {
    pub key: String,
    /// Of everything that decides the job.
    pub digest: [u8; 32],
    pub expires_at: u64,
}

impl Idempotency {
    /// Returns what the key counts until its job is deleted, also if it expires before.
    pub fn bytes(&self) -> u64 {
        limits::IDEMPOTENCY_ROW_BYTES + limits::IDEMPOTENCY_KEY_FACTOR * self.key.len() as u64
    }
}

/// Everything about a job except its events.
#[derive(Clone, Debug, PartialEq)]
pub struct JobRecord {
    pub id: JobId,
    pub key_id: String,
    pub life: Life,
    pub created_at: u64,
    /// The beginning of the first attempt.
    pub started_at: Option<u64>,
    pub finished_at: Option<u64>,
    /// Of an unfinished job: when it expires if it waits then. Of a finished one: when it is
    /// deleted.
    pub expires_at: u64,
    /// A [`JobRequest`](super::JobRequest), as JSON; empty once the job is finished.
    pub request: String,
    /// An [`Ending`](super::Ending), as JSON.
    pub ending: Option<String>,
    pub callback_url: Option<String>,
    /// Once a job with a `callback_url` has ended.
    pub callback: Option<Callback>,
}

impl JobRecord {
    /// Returns the record of a job that was just accepted.
    pub fn of_new(job: &NewJob) -> JobRecord {
        JobRecord {
            id: job.id,
            key_id: job.key_id.clone(),
            life: Life::NEW,
            created_at: job.created_at,
            started_at: None,
            finished_at: None,
            expires_at: job.expires_at,
            request: job.request.clone(),
            ending: None,
            callback_url: job.callback_url.clone(),
            callback: None,
        }
    }
}

/// A job in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobSummary {
    pub id: JobId,
    pub state: State,
    pub attempt: u32,
    pub created_at: u64,
    pub started_at: Option<u64>,
    pub finished_at: Option<u64>,
    pub expires_at: u64,
}

/// The amounts that the store holds, of one key or of all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JobTotals {
    pub queued: u64,
    pub running: u64,
    /// Of requests, results and events.
    pub bytes: u64,
}

impl JobTotals {
    pub const fn unfinished(&self) -> u64 {
        self.queued + self.running
    }
}
