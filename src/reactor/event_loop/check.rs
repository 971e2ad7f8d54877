//! The invariants of the loop that it can check itself, after each turn of a debug build.

use super::Reactor;
use crate::reactor::system::System;

impl<S: System> Reactor<S> {
    /// Invariants 1 and 2.
    pub(super) fn check_invariants(&self) {
        self.outbound.check_invariants();
        for (key, connection) in self.slots.iter() {
            let is_queued = self.run_queue.contains(key) || self.unfinished.contains(key);
            assert!(
                is_queued
                    || self.deferred.contains(key)
                    || !connection.can_go_on(&self.shared.marks),
                "lost wake-up: {key:?} can go on and is not queued"
            );
            if let Some((at, kind)) = connection.deadlines().earliest() {
                let entry = self.wheel.scheduled(key);
                assert!(
                    entry.is_some_and(|entry| entry <= at) || is_queued,
                    "{kind:?} of {key:?} at {at:?} has its entry at {entry:?}"
                );
            }
        }
    }
}
