//! A piece of work for the store's thread.
//!
//! A task owns everything that it needs, and the way to its owner. `run` may be called again after
//! a transaction was lost, so it must neither consume what it needs nor begin where the lost run
//! has ended. `finish` is called once, unless the task is dropped, because its owner has left or
//! the store's thread has ended: an owner that waits learns that from the task's `Drop`. Neither
//! may wait for anything but the store.
//!
//! New jobs come in numbers, so those of a group are accepted together
//! ([`accepting`](super::accepting)): the thread takes their candidates and passes on the outcomes,
//! in the place of `run`. Tasks that change jobs name them, so that those of a group are locked in
//! one order.

use super::error::StoreError;
use super::interface::Store;
use crate::jobs::{Acceptance, Candidate, JobId};

/// A piece of work for the store's thread. See the file's head for its rules.
pub trait StoreTask: Send {
    /// Returns whether its owner still waits for the result. Asked before `run`.
    fn is_wanted(&self) -> bool {
        true
    }

    /// Returns the memory that it holds, as far as it depends on a client.
    fn bytes(&self) -> u32 {
        0
    }

    /// Takes note that no place is free for it: its owner knows, and waits for nothing.
    fn refuse(self: Box<Self>) {}

    /// Appends the jobs that `run` will read for a change, as far as they are known before.
    fn name_jobs(&self, _jobs: &mut Vec<JobId>) {}

    /// Reads and writes. An error takes back what it has written.
    fn run(&mut self, store: &mut dyn Store) -> Result<(), StoreError>;

    /// Returns whether all that it does is to have a job accepted.
    fn accepts_job(&self) -> bool {
        false
    }

    /// Returns that job.
    fn candidate(&mut self) -> Option<&Candidate> {
        None
    }

    /// Takes the outcome for that job.
    fn take_outcome(&mut self, _outcome: Acceptance) {}

    /// Passes the result on. `Ok`: what `run` has written survives a power cut.
    fn finish(self: Box<Self>, result: Result<(), &StoreError>);

    /// Passes on that the whole group was lost, whatever became of this task alone. Called in place
    /// of [`StoreTask::finish`].
    fn lose(self: Box<Self>, error: &StoreError) {
        self.finish(Err(error));
    }
}
