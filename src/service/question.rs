//! The interface of a request's part that needs the store.

use std::fmt::Debug;

use crate::error::ApiError;
use crate::jobs::{Acceptance, Candidate, JobId};
use crate::store::{Store, StoreError};

use super::response::buffer::ResponseBuffer;

/// The part of a request that needs the store. It carries its own result back to the reactor.
pub trait Question: Debug + Send {
    /// Reads and writes, on the store's thread. It may be called again if a transaction was lost.
    fn ask(&mut self, store: &mut dyn Store) -> Result<(), StoreError>;

    /// Appends the jobs that `ask` will read for a change.
    fn name_jobs(&self, _jobs: &mut Vec<JobId>) {}

    /// Returns whether all that it does is to have a job accepted. Then it is asked together with
    /// others, by the next two functions.
    fn accepts_job(&self) -> bool {
        false
    }

    /// Returns that job.
    fn candidate(&mut self) -> Option<&Candidate> {
        None
    }

    /// Takes the outcome for that job.
    fn take_outcome(&mut self, _outcome: Acceptance) {}

    /// Takes note, on the store's thread, that all that `ask` has written is durable.
    fn handle_commit(&mut self) {}

    /// Returns whether it is asked although its client has left: a client may send a change and
    /// not wait for the response.
    fn outlives_client(&self) -> bool {
        false
    }

    /// Returns the memory that it holds, as far as it depends on the client.
    fn bytes(&self) -> u32 {
        0
    }

    /// Appends the response's fields and its body, as JSON or as one message of gRPC, on the
    /// reactor. Returns the status. All that `ask` has written is durable.
    fn write(self: Box<Self>, buffer: &mut ResponseBuffer) -> Result<u16, ApiError>;
}

/// A question that comes back from the store.
pub type Answered = Result<Box<dyn Question>, ApiError>;
