//! Requests that the cache has served, on their way into the usage of their keys.
//!
//! A hit is one addition to a number in the account of its key. The first one since the store's
//! thread has looked also names the key here, so a key costs one message between two looks,
//! however many hits it has. No reactor needs a timer for that, and none that ends leaves hits
//! behind.
//!
//! Invariants:
//!  1. A key is in the channel once, from its first hit until it is taken. So the channel needs no
//!     bound: it never has more than there are keys.
//!  2. Each hit is taken once.
//!
//! Mutations that the tests below catch: a key that each hit names
//! (`a_key_is_named_once_for_all_its_hits`), a take that leaves the number as it is
//! (`hits_of_many_threads_are_taken_once_each`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_channel::{Receiver, Sender, unbounded};

use super::interface::usage;
use crate::keys::Holder;

/// See the file's head.
pub struct Hits {
    /// Of clients without a key.
    keyless: AtomicU64,
    sender: Sender<Arc<Holder>>,
    receiver: Receiver<Arc<Holder>>,
}

impl Default for Hits {
    fn default() -> Hits {
        let (sender, receiver) = unbounded();
        Hits {
            keyless: AtomicU64::new(0),
            sender,
            receiver,
        }
    }
}

impl Hits {
    /// Counts a request that the cache has served.
    pub fn count(&self, caller: Option<&Arc<Holder>>) {
        let Some(holder) = caller else {
            self.keyless.fetch_add(1, Ordering::Relaxed);
            return;
        };
        if holder.account.hits.fetch_add(1, Ordering::Relaxed) == 0 {
            // It cannot fail: the other end is here.
            let _ = self.sender.send(Arc::clone(holder));
        }
    }

    /// Moves counted requests to `taken`, as those of this day, until that has `most` rows. Returns
    /// whether none is left.
    pub fn take(&self, taken: &mut usage::Hits, day: u32, most: usize) -> bool {
        let mut add = |key_id: &str, hits: &AtomicU64| {
            let requests = hits.swap(0, Ordering::Relaxed);
            if requests > 0 {
                *taken.entry((key_id.to_owned(), day)).or_default() += requests;
            }
            taken.len() < most
        };
        if !add("", &self.keyless) {
            return false;
        }
        for holder in self.receiver.try_iter() {
            if !add(&holder.record.id, &holder.account.hits) {
                return false;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(key_id: &str, day: u32, requests: u64) -> ((String, u32), u64) {
        ((key_id.to_owned(), day), requests)
    }

    #[test]
    fn a_key_is_named_once_for_all_its_hits() {
        let (hits, one, other) = (Hits::default(), Holder::of("key_1"), Holder::of("key_2"));
        let mut taken = usage::Hits::new();
        for _ in 0..100 {
            hits.count(Some(&one));
        }
        hits.count(Some(&other));
        hits.count(None);
        assert_eq!(hits.receiver.len(), 2);
        assert!(hits.take(&mut taken, 7, 10));
        hits.count(Some(&one));
        assert_eq!(hits.receiver.len(), 1, "it was taken");
        assert!(hits.take(&mut taken, 7, 10));
        hits.count(Some(&one));
        assert!(hits.take(&mut taken, 8, 10));
        assert!(hits.take(&mut taken, 8, 10), "nothing is left");
        let rows = [
            row("", 7, 1),
            row("key_1", 7, 101),
            row("key_1", 8, 1),
            row("key_2", 7, 1),
        ];
        assert_eq!(taken, usage::Hits::from(rows));
    }

    /// Mutation: `take` without its bound.
    #[test]
    fn a_take_has_a_bound_and_the_next_one_goes_on() {
        let hits = Hits::default();
        for number in 0..5 {
            hits.count(Some(&Holder::of(&format!("key_{number}"))));
        }
        let mut sizes = Vec::new();
        loop {
            let mut taken = usage::Hits::new();
            let is_all = hits.take(&mut taken, 1, 2);
            sizes.push(taken.len());
            if is_all {
                break;
            }
        }
        assert_eq!(sizes, [2, 2, 1]);
    }

    #[test]
    fn hits_of_many_threads_are_taken_once_each() {
        const EACH: u64 = 20_000;
        let (hits, one) = (Hits::default(), Holder::of("key_1"));
        let mut taken = usage::Hits::new();
        std::thread::scope(|scope| {
            let counting: Vec<_> = (0..3)
                .map(|_| scope.spawn(|| (0..EACH).for_each(|_| hits.count(Some(&one)))))
                .collect();
            while !counting.iter().all(|thread| thread.is_finished()) {
                hits.take(&mut taken, 1, 10);
                assert!(hits.receiver.len() <= 1, "invariant 1");
            }
        });
        hits.take(&mut taken, 1, 10);
        assert_eq!(taken, usage::Hits::from([row("key_1", 1, 3 * EACH)]));
    }
}
