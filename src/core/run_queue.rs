//! The connections that have work: a first-in, first-out queue with each in it at most once.
//!
//! Readiness events, completions and timers do no I/O. They record what has changed and push the
//! connection's key here; the loop then pumps each connection once, within a budget. This keeps one
//! fast peer from starving all others: a connection that stops because its budget is used up pushes
//! itself again, behind all the others, and waits for the queue's *next* turn. nginx calls its
//! equivalent "posted events".
//!
//! A turn of the queue is a snapshot of its length. The loop takes two of them in each turn of its
//! own (`run_connections`), so a connection is pumped at most twice between two polls:
//!
//! ```text
//!   queue.take_turn();                        // everything queued until now
//!   while let Some(key) = queue.pop() {       // None at the snapshot's end
//!       pump(key);                            // may push(key) again: next turn
//!   }
//!   timeout = if queue.is_empty() { wheel } else { 0 };
//! ```
//!
//! The last line matters: queued work produces no edge, so a loop that slept would leave bytes that
//! are already here unprocessed.
//!
//! # Invariants
//!
//!  1. A key is queued at most once; `queued[index]` is the generation that waits, 0 if none does.
//!  2. A new tenant of a slot can be queued while its predecessor's key still is: the old key is
//!     skipped when its place comes, and the new one is not lost. A single bit per slot would lose
//!     it, which is why this is a generation.
//!  3. `pop` never returns a key that was pushed after `take_turn`.

use std::collections::VecDeque;

use super::Key;

/// See the file's head.
#[derive(Debug, Default)]
pub struct RunQueue {
    keys: VecDeque<Key>,
    queued: Vec<u32>,
    /// How many of `keys` belong to the present turn.
    turn: usize,
}

impl RunQueue {
    pub const fn new() -> RunQueue {
        RunQueue {
            keys: VecDeque::new(),
            queued: Vec::new(),
            turn: 0,
        }
    }

    // ---- getters ----

    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Returns whether the loop may sleep.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    pub fn contains(&self, key: Key) -> bool {
        self.queued.get(key.index as usize) == Some(&key.generation)
    }

    // ---- commands ----

    /// Queues the key of a slot's present tenant. Returns false if it was queued already.
    ///
    /// The key of an earlier tenant must not come here: it would take the present one's place.
    pub fn push(&mut self, key: Key) -> bool {
        debug_assert_ne!(key.generation, 0, "generation 0 names no slot");
        let index = key.index as usize;
        if index >= self.queued.len() {
            self.queued.resize(index + 1, 0);
        }
        if self.queued[index] == key.generation {
            return false;
        }
        self.queued[index] = key.generation;
        self.keys.push_back(key);
        true
    }

    /// Begins a turn, which serves the keys queued until now and none that are queued later.
    pub fn take_turn(&mut self) {
        self.turn = self.keys.len();
    }

    /// Returns the next key of this turn, or `None` at its end.
    pub fn pop(&mut self) -> Option<Key> {
        while self.turn > 0 {
            self.turn -= 1;
            let key = self.keys.pop_front()?;
            let waiting = &mut self.queued[key.index as usize];
            if *waiting == key.generation {
                *waiting = 0;
                return Some(key);
            }
            // Invariant 2: the slot has a new tenant, and this is the old one's place.
        }
        None
    }

    /// Checks every key: for tests and the simulation.
    pub fn check_invariants(&self) {
        assert!(self.turn <= self.keys.len());
        let waiting = self.queued.iter().filter(|generation| **generation != 0);
        let valid = self.keys.iter().filter(|key| self.contains(**key));
        assert_eq!(waiting.count(), valid.count());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_queued_once_and_in_order() {
        let (first, second) = (Key::new(3, 1), Key::new(0, 9));
        let mut queue = RunQueue::new();
        assert!(queue.push(first));
        assert!(queue.push(second));
        assert!(!queue.push(first));
        queue.check_invariants();
        queue.take_turn();
        assert_eq!(queue.pop(), Some(first));
        assert_eq!(queue.pop(), Some(second));
        assert_eq!(queue.pop(), None);
        assert!(queue.is_empty());
        assert!(queue.push(first));
    }

    #[test]
    fn one_that_queues_itself_again_waits_for_the_next_turn() {
        let (greedy, modest) = (Key::new(0, 1), Key::new(1, 1));
        let mut queue = RunQueue::new();
        queue.push(greedy);
        queue.push(modest);
        queue.take_turn();
        let mut served = Vec::new();
        while let Some(key) = queue.pop() {
            served.push(key);
            queue.push(greedy);
        }
        assert_eq!(served, [greedy, modest]);
        assert_eq!(queue.pop(), None);
        assert!(!queue.is_empty());
        queue.take_turn();
        assert_eq!(queue.pop(), Some(greedy));
        queue.check_invariants();
    }

    #[test]
    fn a_new_tenant_is_not_lost_behind_its_predecessor() {
        let (old, new) = (Key::new(5, 1), Key::new(5, 2));
        let mut queue = RunQueue::new();
        queue.push(old);
        assert!(queue.push(new));
        queue.check_invariants();
        queue.take_turn();
        assert_eq!(queue.pop(), Some(new));
        assert_eq!(queue.pop(), None);
        queue.check_invariants();
    }
}
