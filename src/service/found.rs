//! The store's replies to requests that follow jobs.
//!
//! Plain data: events are already written, by the store's thread.

use crate::error::ApiError;
use crate::jobs::{Ending, EventId, JobId, State};

/// The reply of the store to a request.
pub type StoreReply = Result<Found, ApiError>;

#[derive(Debug)]
pub enum Found {
    /// Events of a followed job.
    Events(Batch),
    /// The job of a kept generation: a new one, or that of an earlier request.
    Accepted(JobId),
    /// How far a kept generation is.
    Progress(Box<Progress>),
}

/// How far a kept generation is.
#[derive(Debug, Default)]
pub struct Progress {
    /// The id of the last event that was read, or of the one that was asked for.
    pub last: EventId,
    /// Another attempt has begun; `code` is from its beginning.
    pub is_reset: bool,
    /// The next part of the code.
    pub code: String,
    /// There may be more already.
    pub has_more: bool,
    pub end: Option<(State, Option<Ending>)>,
    /// All the code of a job that is complete, for a stream.
    pub whole: String,
}

/// A part of a job's history.
#[derive(Debug, Default)]
pub struct Batch {
    /// The events, as they are sent.
    pub body: Vec<u8>,
    /// The id of the last of them, or of the one that was asked for.
    pub last: EventId,
    /// No event follows.
    pub is_end: bool,
    /// There may be more already.
    pub has_more: bool,
}
