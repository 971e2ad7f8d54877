//! One LRU for all reactors, cut into shards with a lock each.
//!
//! A lock is held for a look-up, an insertion and the rows that it removes, never for a copy of a
//! value or its release: values are cheap to clone (an `Arc`), and removed ones are dropped by the
//! caller after the lock. A secret seed chooses an entry's shard.
//!
//! Bound and shares of tenants hold in each shard; the hash spreads entries evenly over them. So an
//! entry can have at most a shard's part of the whole.

use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::lru::Lru;
use crate::limits::cache as limits;

/// See the file's head.
#[derive(Debug)]
pub struct Shards<K, V> {
    shards: Box<[Mutex<Lru<K, V>>]>,
    hasher: RandomState,
}

impl<K: Eq + Hash, V> Shards<K, V> {
    /// With this bound on the bytes of all shards together.
    pub fn new(max_bytes: usize) -> Shards<K, V> {
        let hasher = RandomState::new();
        let shard = || {
            let lru = Lru::with_hasher(part(max_bytes), hasher.clone());
            Mutex::new(lru)
        };
        Shards {
            shards: (0..limits::SHARDS).map(|_| shard()).collect(),
            hasher,
        }
    }

    /// Locks the shard of a key.
    pub fn of(&self, key: &K) -> MutexGuard<'_, Lru<K, V>> {
        // Its table uses the lower half of the same hash.
        let hash = self.hasher.hash_one(key) >> 32;
        lock(&self.shards[hash as usize % limits::SHARDS])
    }

    /// Locks a shard by its number, below [`limits::SHARDS`].
    pub fn at(&self, index: usize) -> MutexGuard<'_, Lru<K, V>> {
        lock(&self.shards[index])
    }

    /// Locks one shard after the other.
    pub fn each(&self) -> impl Iterator<Item = MutexGuard<'_, Lru<K, V>>> {
        self.shards.iter().map(lock)
    }
}

/// Returns a shard's part of a bound on all of them.
pub const fn part(max_bytes: usize) -> usize {
    max_bytes / limits::SHARDS
}

/// A panic in a test's thread must not stop the others; no call leaves a shard half changed.
fn lock<T>(shard: &Mutex<T>) -> MutexGuard<'_, T> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::lru::Item;
    use crate::core::Moment;

    #[test]
    fn entries_spread_over_the_shards_and_are_found_again() {
        let shards = Shards::new(16 << 20);
        for key in 0..10_000u32 {
            let item = Item {
                tenant: 0,
                value: key,
                bytes: 0,
                expires: Moment::NEVER,
            };
            let stored = shards
                .of(&key)
                .insert(key, item, Moment::ZERO, &mut Vec::new());
            stored.expect("it fits");
        }
        for shard in shards.each() {
            assert!(
                (10_000 / 32..10_000 / 8).contains(&shard.len()),
                "{}",
                shard.len()
            );
            assert_eq!(shard.max_bytes(), 1 << 20);
        }
        for key in 0..10_000 {
            assert_eq!(shards.of(&key).get(&key, Moment::ZERO), Some(&key));
        }
    }
}
