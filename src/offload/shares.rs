//! How many places each tenant may hold, where a place is held for as long as another machine
//! likes: a thread that waits for a name server, a socket whose server is silent.
//!
//! Owns the counts. Pure: the caller takes a place and gives it back.
//!
//! A queue that is fair decides whose turn is next, and is of no use once every place is taken for
//! seconds. So a tenant takes another place only if it holds fewer than are free, as in the bounds
//! of [`super::fair_queue`]: of seven places one tenant alone gets four, a second one two, a third
//! one the last. A place that is the last free one goes only to a tenant that holds none. Apart
//! from those, one place is kept for the daemon itself, whose own requests nothing may hold up.
//!
//! The alternative was a fixed number for each tenant. It leaves places unused while there are few
//! tenants, and none for a newcomer once there are enough of them.
//!
//! # Invariants
//!
//!  1. Never more than `most` places are taken, and at most `most - 1` by others than the daemon.
//!  2. A tenant that holds no place has no entry: the counts take memory for places alone.
//!
//! Mutations that the tests catch: `admits` that looks at the free places alone (one tenant takes
//! all), one without the daemon's place, `give_back` that leaves an entry.

use std::collections::HashMap;

/// See the file's head.
#[derive(Debug)]
pub struct Shares {
    most: usize,
    /// The daemon itself, among the tenants.
    own: u64,
    held: HashMap<u64, usize>,
    taken: usize,
}

impl Shares {
    pub fn new(most: usize, own: u64) -> Shares {
        debug_assert!(most > 1, "one for the daemon, and one for all others");
        Shares {
            most,
            own,
            held: HashMap::new(),
            taken: 0,
        }
    }

    // ---- getters ----

    /// Returns whether this tenant may take another place.
    pub fn admits(&self, tenant: u64) -> bool {
        let free = self.most - self.taken;
        if tenant == self.own {
            return free > 0;
        }
        let kept = usize::from(self.held(self.own) == 0);
        self.held(tenant) < free.saturating_sub(kept)
    }

    /// Returns how many places are taken.
    #[cfg(any(test, debug_assertions))]
    pub fn taken(&self) -> usize {
        self.taken
    }

    /// Returns how many tenants have an entry.
    #[cfg(test)]
    pub fn tenants(&self) -> usize {
        self.held.len()
    }

    fn held(&self, tenant: u64) -> usize {
        self.held.get(&tenant).copied().unwrap_or(0)
    }

    // ---- commands ----

    /// Takes a place. The caller has asked `admits`.
    pub fn take(&mut self, tenant: u64) {
        *self.held.entry(tenant).or_default() += 1;
        self.taken += 1;
        debug_assert!(self.taken <= self.most, "1");
    }

    /// Returns a place.
    pub fn give_back(&mut self, tenant: u64) {
        let Some(held) = self.held.get_mut(&tenant) else {
            debug_assert!(false, "it holds none");
            return;
        };
        *held -= 1;
        self.taken -= 1;
        if *held == 0 {
            self.held.remove(&tenant);
        }
    }
}
