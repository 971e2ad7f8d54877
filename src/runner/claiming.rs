//! A claim that is under way, and what happens to its jobs before its result comes.
//!
//! With PostgreSQL the store has several threads. One of them may have committed a claim, and
//! another one the cancel of a claimed job, and the news of the cancel comes first: there is no
//! attempt yet that it could end. So the claim remembers the cancels since it was made, and their
//! jobs do not begin.
//!
//! Only cancels after the claim's commit matter, which are the latest. So the oldest ones make
//! room; a job whose cancel was forgotten begins, and its first save is fenced.
//!
//! Mutations that the tests catch: `note_cancelled` without its bound, or that forgets the latest.

use std::collections::VecDeque;

use crate::jobs::JobId;
use crate::limits::jobs as limits;

/// See the file's head.
#[derive(Debug, Default)]
pub struct Claiming {
    /// The wall clock was set since the claim was made: its leases are by the earlier time.
    pub is_doubtful: bool,
    /// The latest last.
    cancelled: VecDeque<JobId>,
}

impl Claiming {
    pub fn doubt_leases(&mut self) {
        self.is_doubtful = true;
    }

    pub fn note_cancelled(&mut self, id: JobId) {
        if self.cancelled.len() >= limits::CANCELLED_JOBS_MAX {
            self.cancelled.pop_front();
        }
        self.cancelled.push_back(id);
    }

    pub fn has_cancelled(&self, id: JobId) -> bool {
        self.cancelled.contains(&id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_cancels_are_remembered() {
        let mut claiming = Claiming::default();
        let id = |number| JobId::new(number, [0; 10]);
        let most = limits::CANCELLED_JOBS_MAX as u64;
        (0..=most).for_each(|number| claiming.note_cancelled(id(number)));
        assert!(!claiming.has_cancelled(id(0)));
        assert!((1..=most).all(|number| claiming.has_cancelled(id(number))));
    }
}
