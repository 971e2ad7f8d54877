//! A hash table of slot numbers that grows by one bucket at a time (linear hashing, Litwin 1980).
//!
//! A common hash table doubles: the insertion that meets its bound moves all entries, 50 ms for a
//! million, and meanwhile every reactor waits for the lock around it. Here each insertion beyond
//! one entry per bucket adds a bucket and splits one chain, which has one or two entries. So every
//! call costs the same, whatever the number of entries.
//!
//! Owns the buckets and the chains, which link slots by their numbers; keys stay in the slots, and
//! the caller compares them. Hashes must be seeded: a client that could choose them would make one
//! long chain.
//!
//! Invariants:
//!  1. A slot is in the chain of the bucket that its hash has among the buckets of now.
//!  2. There are at least as many buckets as slots were in the table at once.

use super::blocks::Blocks;

/// The end of a chain, and an empty bucket.
pub const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Link {
    hash: u32,
    next: u32,
}

/// See the file's head.
#[derive(Debug)]
pub struct Index {
    buckets: Blocks<u32>,
    /// By slot.
    links: Blocks<Link>,
    len: usize,
}

/// Bytes that each slot costs here: its link and one bucket.
pub const INDEX_BYTES: usize = size_of::<Link>() + size_of::<u32>();

impl Default for Index {
    fn default() -> Index {
        Index::new()
    }
}

impl Index {
    pub fn new() -> Index {
        let mut buckets = Blocks::new();
        buckets.push(NONE);
        Index {
            buckets,
            links: Blocks::new(),
            len: 0,
        }
    }

    /// Returns the slot with this hash for which `is_it` returns true.
    pub fn find(&self, hash: u32, mut is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        let mut slot = *self.buckets.at(self.bucket(hash));
        while slot != NONE {
            let link = self.links.at(slot);
            if link.hash == hash && is_it(slot) {
                return Some(slot);
            }
            slot = link.next;
        }
        None
    }

    /// Adds a slot, which must not be in the table. Slots are numbered without gaps.
    pub fn insert(&mut self, hash: u32, slot: u32) {
        while self.links.count() <= slot as usize {
            self.links.push(Link {
                hash: 0,
                next: NONE,
            });
        }
        self.len += 1;
        if self.len > self.buckets.count() {
            self.split();
        }
        self.links.at_mut(slot).hash = hash;
        self.chain(slot);
    }

    /// Takes a slot out, which must be in the table.
    pub fn remove(&mut self, slot: u32) {
        let Link { hash, next } = *self.links.at(slot);
        let bucket = self.buckets.at_mut(self.bucket(hash));
        self.len -= 1;
        if *bucket == slot {
            *bucket = next;
            return;
        }
        let mut before = *bucket;
        while self.links.at(before).next != slot {
            before = self.links.at(before).next;
        }
        self.links.at_mut(before).next = next;
    }

    /// Puts a slot in front of its bucket's chain.
    fn chain(&mut self, slot: u32) {
        let bucket = self.bucket(self.links.at(slot).hash);
        let head = self.buckets.at_mut(bucket);
        self.links.at_mut(slot).next = std::mem::replace(head, slot);
    }

    /// Returns a hash's bucket: its lowest bits, one fewer where that bucket does not exist yet.
    fn bucket(&self, hash: u32) -> u32 {
        let buckets = self.buckets.count() as u32;
        let round = buckets.next_power_of_two();
        let bucket = hash & (round - 1);
        match bucket < buckets {
            true => bucket,
            false => bucket - round / 2,
        }
    }

    /// Adds a bucket, and divides the chain of the bucket that had its entries until now.
    fn split(&mut self) {
        let added = self.buckets.push(NONE);
        let old = added - (1 << added.ilog2());
        let mut slot = std::mem::replace(self.buckets.at_mut(old), NONE);
        while slot != NONE {
            let next = self.links.at(slot).next;
            self.chain(slot);
            slot = next;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Mutations: `split` that leaves its chain where it was; `bucket` without the subtraction;
        /// `remove` that forgets the rest of the chain.
        #[test]
        fn finds_the_slots_that_a_map_has(
            steps in prop::collection::vec((any::<bool>(), 0u32..48, 0u32..12), 0..300),
        ) {
            let mut index = Index::new();
            let mut model: HashMap<u32, u32> = HashMap::new();
            for (inserts, slot, hash) in steps {
                // Few hashes, spread over the low and the high bits, so that chains are long.
                let hash = hash.wrapping_mul(0x9e37_79b9);
                if model.remove(&slot).is_some() {
                    index.remove(slot);
                }
                if inserts {
                    index.insert(hash, slot);
                    model.insert(slot, hash);
                }
                for slot in 0..48 {
                    let known = model.get(&slot).copied();
                    let found = known.and_then(|hash| index.find(hash, |one| one == slot));
                    prop_assert_eq!(found, known.map(|_| slot));
                }
                prop_assert_eq!(index.find(1, |_| true), None);
                prop_assert!(index.buckets.count() > 0 && index.buckets.count() >= model.len());
            }
        }
    }

    /// Chains stay short, and no insertion touches more than one.
    #[test]
    fn a_million_slots_have_short_chains() {
        const SLOTS: u32 = 1_000_000;
        let mut index = Index::new();
        let mut state = 1u64;
        let mut longest = 0;
        for slot in 0..SLOTS {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let hash = (state >> 32) as u32;
            index.insert(hash, slot);
            let mut length = 0;
            let mut next = *index.buckets.at(index.bucket(hash));
            while next != NONE {
                length += 1;
                next = index.links.at(next).next;
            }
            longest = longest.max(length);
        }
        assert_eq!(index.buckets.count(), SLOTS as usize);
        assert!(longest <= 16, "{longest}");
    }
}
