//! The places of the whole daemon: how many connections may be open at once, whichever reactor
//! accepts them.
//!
//! Owns the numbers that all reactors share. Each change is one atomic instruction, so no reactor
//! waits for another one. Only the table of client networks has locks; see its file's head. A place
//! is taken before `accept4(2)` is called and given back where its connection is closed. A share of
//! the maximum for each reactor would leave places idle in one reactor while another one closes
//! connections for lack of them.
//!
//! Invariants:
//!  1. At no moment are more than `maximum` places taken.
//!  2. Each place that was taken is given back once. The simulation compares [`Places::taken`] with
//!     the open connections after each turn.
//!
//! Mutation that tests catch: `take` that adds without looking at the maximum
//! (`takers_on_several_threads_never_exceed_the_maximum`).

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::Moment;
use super::network_counts::NetworkCounts;
use crate::limits::core as limits;

/// See the file's head.
#[derive(Debug)]
pub struct Places {
    maximum: usize,
    taken: AtomicUsize,
    /// No connection that is at work is evicted before this moment.
    evicts_at_micros: AtomicU64,
    /// The connections of each client network.
    networks: NetworkCounts,
    /// No warning about a network before this moment.
    warns_at_micros: AtomicU64,
}

impl Default for Places {
    fn default() -> Places {
        Places::new(1)
    }
}

impl Places {
    /// Creates places for at most `maximum` connections at once; never less than one.
    pub fn new(maximum: usize) -> Places {
        Places {
            maximum: maximum.max(1),
            taken: AtomicUsize::new(0),
            evicts_at_micros: AtomicU64::new(0),
            networks: NetworkCounts::new(),
            warns_at_micros: AtomicU64::new(0),
        }
    }

    pub const fn maximum(&self) -> usize {
        self.maximum
    }

    pub fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    pub fn are_all_taken(&self) -> bool {
        self.taken() >= self.maximum
    }

    /// Returns how many connections to close while all places are taken, so that new ones find room
    /// for a while.
    pub fn excess(&self) -> usize {
        let relieved = (self.maximum * limits::GATE_RELIEF_PERCENT / 100).min(self.maximum - 1);
        match self.are_all_taken() {
            true => self.taken() - relieved,
            false => 0,
        }
    }

    /// Takes a place. `false`: all are taken.
    pub fn take(&self) -> bool {
        let one_more = |taken: usize| (taken < self.maximum).then_some(taken + 1);
        let order = Ordering::Relaxed;
        self.taken.fetch_update(order, order, one_more).is_ok()
    }

    /// Returns a place: its connection is closed, or did not come.
    pub fn give_back(&self) {
        let before = self.taken.fetch_sub(1, Ordering::Relaxed);
        debug_assert!(before > 0, "a place comes back that was not taken");
    }

    // ---- client networks ----

    pub const fn networks(&self) -> &NetworkCounts {
        &self.networks
    }

    /// Returns how many connections one client network may have; 0 means half of the maximum.
    pub fn network_maximum(&self, configured: usize) -> usize {
        match configured {
            0 => (self.maximum / 2).max(1),
            some => some,
        }
    }

    /// Returns whether a refused connection may be logged: once per minute, in one reactor.
    pub fn may_warn_of_network(&self, now: Moment) -> bool {
        let next = (now + limits::NETWORK_WARNING_INTERVAL).as_micros();
        let is_due = |at: u64| (at <= now.as_micros()).then_some(next);
        let order = Ordering::Relaxed;
        self.warns_at_micros
            .fetch_update(order, order, is_due)
            .is_ok()
    }

    // ---- the pace of evictions ----

    /// Returns whether a connection that is at work may be evicted now.
    pub fn may_evict(&self, now: Moment) -> bool {
        now.as_micros() >= self.evicts_at_micros.load(Ordering::Relaxed)
    }

    /// Lets no reactor evict before this moment. Two reactors that evict in the same instant may
    /// both have found leave to do so: the pace is then exceeded by one batch.
    pub fn put_off_evictions(&self, until: Moment) {
        let until = until.as_micros();
        self.evicts_at_micros.fetch_max(until, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::thread;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_place_is_free_again_when_it_is_given_back() {
        let places = Places::new(2);
        assert!(places.take() && places.take() && !places.take());
        assert_eq!((places.taken(), places.excess()), (2, 1));
        places.give_back();
        assert!(!places.are_all_taken() && places.excess() == 0);
        assert!(places.take());
        assert_eq!(Places::new(0).maximum(), 1);
    }

    #[test]
    fn takers_on_several_threads_never_exceed_the_maximum() {
        const MAXIMUM: usize = 3;
        const TURNS: usize = 20_000;
        let places = Places::new(MAXIMUM);
        // Each taker marks one of as many desks as there are places; none is free if there are too
        // many takers.
        let desks: [AtomicBool; MAXIMUM] = Default::default();
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..TURNS {
                        if !places.take() {
                            continue;
                        }
                        let mut free = desks.iter();
                        let own = free.find(|desk| !desk.swap(true, Ordering::AcqRel));
                        let own = own.expect("a desk for each place");
                        own.store(false, Ordering::Release);
                        places.give_back();
                    }
                });
            }
        });
        assert_eq!(places.taken(), 0);
    }

    #[test]
    fn one_network_has_half_of_the_places_unless_configured() {
        let places = Places::new(5);
        assert_eq!(places.network_maximum(0), 2);
        assert_eq!(places.network_maximum(4), 4);
        assert_eq!(Places::new(1).network_maximum(0), 1);
    }

    #[test]
    fn warnings_of_networks_come_once_a_minute() {
        let places = Places::new(1);
        let start = Moment::from_micros(7);
        assert!(places.may_warn_of_network(start));
        assert!(!places.may_warn_of_network(start));
        let later = start + limits::NETWORK_WARNING_INTERVAL;
        assert!(places.may_warn_of_network(later) && !places.may_warn_of_network(later));
    }

    #[test]
    fn evictions_wait_for_the_latest_pause() {
        let places = Places::new(1);
        let (soon, late) = (Moment::from_micros(5), Moment::from_micros(9));
        assert!(places.may_evict(Moment::ZERO));
        places.put_off_evictions(late);
        places.put_off_evictions(soon);
        assert!(!places.may_evict(soon));
        assert!(places.may_evict(late + Duration::ZERO));
    }
}
