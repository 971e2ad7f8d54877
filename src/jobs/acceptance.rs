//! A request for a job on its way to a verdict: what it asks for, and what it may get.

use super::{JobId, JobRecord, NewJob};

/// A job that is to be accepted, and the terms of that.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// With a URL for its callback, its key needs a secret that signs it.
    pub job: NewJob,
    pub bounds: Bounds,
}

/// How much the store takes.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Unfinished jobs.
    pub jobs: u64,
    pub jobs_of_key: u64,
    /// Of all requests, results, events and keys of idempotency.
    pub bytes: u64,
}

/// The job of an earlier request with `Idempotency-Key`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RememberedJob {
    pub id: JobId,
    /// Of the request: another request with the same key is a conflict.
    pub digest: [u8; 32],
    pub expires_at: u64,
}

/// The outcome of a request for a job.
#[derive(Clone, Debug, PartialEq)]
pub enum Acceptance {
    New(Box<JobRecord>),
    /// An earlier request with the same key of idempotency has made this job.
    Known(Box<JobRecord>),
    /// An earlier request with the same key was another one.
    Conflict,
    /// Its callback could not be signed.
    Unsigned,
    Full(Bound),
}

/// A bound that is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    Jobs,
    JobsOfKey,
    Bytes,
    BytesOfKey,
}
