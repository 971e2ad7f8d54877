//! Entries bounded by the bytes that they take: the least recently used one goes first.
//!
//! Owns the entries, each under a key and of a tenant, with a time at which it expires. Pure: time
//! is an argument, and a caller that shares it between threads puts a lock around it
//! ([`super::shards`]). Everything that leaves goes to a list of the caller, which drops it when it
//! has released that lock.
//!
//! # The order in which entries go
//!
//! A cache is full most of the time, so an insertion takes the room of other entries. One order of
//! all entries would let a client that sends a thousand different requests per second flush the
//! entries of every other tenant. So an insertion that exceeds the bound removes, until it fits,
//!
//!  1. the least recently used entry of all, if it has expired;
//!  2. otherwise the least recently used entry of the tenant that has the most bytes.
//!
//! Of `n` tenants the largest has at least an `n`th of the bytes. Therefore a tenant that has less
//! than an equal share loses no live entry to another one, and a single tenant may use all of the
//! room.
//!
//! # Accounting
//!
//! An entry counts the bytes that the caller states, which must include all blocks that its value
//! owns, and [`Lru::ENTRY_BYTES`] for its row in the tables. Rows that were used once and are free
//! count as well, because the tables do not shrink. `tests/cache_memory.rs` compares the sum with
//! the allocator's.
//!
//! # Costs
//!
//! `get`, `insert` and `remove` cost the same for a thousand and for a million entries, without a
//! pause for a table that grows ([`index`]). An insertion or removal also moves its tenant in an
//! order by bytes, which takes the logarithm of the number of tenants.
//!
//! # Invariants
//!
//!  1. `bytes()` is at most `max_bytes()` after every call, unless the tables alone exceed it after
//!     a smaller bound was set. Then there are no entries.
//!  2. An entry is in the index, in the list of all entries and in its tenant's list.
//!  3. A tenant has a row exactly while it has entries.
//!
//! Mutations that `an_lru_is_its_naive_model` catches: `get` that does not move its entry, or moves
//! it in one list alone; an expired entry that is found; `evict` from the inserting tenant instead
//! of the largest; `resize` that forgets the tenant's bytes; a free slot that is not used again.

pub mod blocks;
pub mod index;
pub mod lists;
pub mod tenants;

#[cfg(test)]
mod tests;

use std::hash::{BuildHasher, Hash, RandomState};

use blocks::Blocks;
use index::{INDEX_BYTES, Index};
use lists::{Links, List, Order, UNLINKED};
use tenants::Tenants;

use crate::core::Moment;
use crate::limits::cache as limits;

/// A value, and the facts about its entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item<V> {
    /// Whose entry it is: see the file's head.
    pub tenant: u64,
    pub value: V,
    /// The memory that the value owns beside its own size, with the allocator's part.
    pub bytes: usize,
    /// From then on it is not found.
    pub expires: Moment,
}

/// The item would exceed the bound alone. It comes back.
#[derive(Debug, PartialEq, Eq)]
pub struct TooLarge<V>(pub V);

/// See the file's head.
#[derive(Debug)]
pub struct Lru<K, V, S = RandomState> {
    hasher: S,
    entries: Blocks<Option<Entry<K, V>>>,
    /// By entry.
    links: Blocks<Links>,
    free: Vec<u32>,
    index: Index,
    /// All entries, the most recently used first.
    uses: List,
    tenants: Tenants,
    len: usize,
    /// The bytes that callers stated, of all entries.
    value_bytes: usize,
    max_bytes: usize,
}

#[derive(Debug)]
struct Entry<K, V> {
    key: K,
    value: V,
    bytes: usize,
    expires: Moment,
    /// Its tenant's row.
    tenant: u32,
}

impl<K: Eq + Hash, V> Lru<K, V> {
    pub fn new(max_bytes: usize) -> Lru<K, V> {
        Lru::with_hasher(max_bytes, RandomState::new())
    }
}

impl<K: Eq + Hash, V, S: BuildHasher> Lru<K, V, S> {
    /// The bytes that an entry costs beside those that its caller states: its row in each table,
    /// and its number in the list of free rows, which doubles when it grows.
    pub const ENTRY_BYTES: usize =
        size_of::<Option<Entry<K, V>>>() + size_of::<Links>() + INDEX_BYTES + 2 * size_of::<u32>();

    /// With a hasher that must be seeded, if clients choose the keys.
    pub fn with_hasher(max_bytes: usize, hasher: S) -> Lru<K, V, S> {
        Lru {
            hasher,
            entries: Blocks::new(),
            links: Blocks::new(),
            free: Vec::new(),
            index: Index::new(),
            uses: List::EMPTY,
            tenants: Tenants::new(),
            len: 0,
            value_bytes: 0,
            max_bytes,
        }
    }

    pub const fn len(&self) -> usize {
        self.len
    }

    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the accounted bytes of all entries and tables.
    pub fn bytes(&self) -> usize {
        self.value_bytes
            + self.entries.count() * Self::ENTRY_BYTES
            + self.tenants.rows() * limits::TENANT_BYTES
    }

    pub const fn max_bytes(&self) -> usize {
        self.max_bytes
    }

    /// Returns how many tenants have entries.
    pub fn tenants(&self) -> usize {
        self.tenants.count()
    }

    /// Returns the value under a key, as the most recently used one. A value that has expired is
    /// not found, and its entry will be the next to go.
    pub fn get(&mut self, key: &K, now: Moment) -> Option<&V> {
        let slot = self.find(key)?;
        let (tenant, expires) = {
            let entry = self.entry(slot);
            (entry.tenant, entry.expires)
        };
        let (uses, own) = (&mut self.uses, self.tenants.uses(tenant));
        uses.remove(&mut self.links, Order::All, slot);
        own.remove(&mut self.links, Order::Tenant, slot);
        if expires <= now {
            uses.push_oldest(&mut self.links, Order::All, slot);
            own.push_oldest(&mut self.links, Order::Tenant, slot);
            return None;
        }
        uses.push_newest(&mut self.links, Order::All, slot);
        own.push_newest(&mut self.links, Order::Tenant, slot);
        self.entries.at(slot).as_ref().map(|entry| &entry.value)
    }

    /// Stores an item, as the most recently used one. Removes the one under the same key, and those
    /// that the bound requires.
    pub fn insert(
        &mut self,
        key: K,
        item: Item<V>,
        now: Moment,
        removed: &mut Vec<(K, V)>,
    ) -> Result<(), TooLarge<V>> {
        if let Some(old) = self.find(&key) {
            removed.push(self.take(old));
        }
        let least = item.bytes + Self::ENTRY_BYTES + limits::TENANT_BYTES;
        if least > self.max_bytes {
            return Err(TooLarge(item.value));
        }
        let tenant_hash = self.hash(&item.tenant);
        while self.len > 0 && self.bytes_with(&item, tenant_hash) > self.max_bytes {
            self.evict(now, removed);
        }
        // Free rows may have all of the room, after many small entries or a smaller bound.
        if self.bytes_with(&item, tenant_hash) > self.max_bytes {
            self.release_tables();
        }
        let row = self.tenants.find_or_insert(item.tenant, tenant_hash);
        self.tenants
            .replace_bytes(row, 0, item.bytes + Self::ENTRY_BYTES);
        let hash = self.hash(&key);
        self.value_bytes += item.bytes;
        self.len += 1;
        let entry = Some(Entry {
            key,
            value: item.value,
            bytes: item.bytes,
            expires: item.expires,
            tenant: row,
        });
        let slot = match self.free.pop() {
            Some(slot) => {
                *self.entries.at_mut(slot) = entry;
                slot
            }
            None => {
                self.links.push(UNLINKED);
                self.entries.push(entry)
            }
        };
        self.index.insert(hash, slot);
        self.uses.push_newest(&mut self.links, Order::All, slot);
        self.tenants
            .uses(row)
            .push_newest(&mut self.links, Order::Tenant, slot);
        Ok(())
    }

    /// Removes the value under a key.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        let slot = self.find(key)?;
        Some(self.take(slot).1)
    }

    /// Replaces the bytes that were stated for a value, which has grown or shrunk. This may remove
    /// entries, even the value's own. Returns whether it is still stored.
    pub fn resize(
        &mut self,
        key: &K,
        bytes: usize,
        now: Moment,
        removed: &mut Vec<(K, V)>,
    ) -> bool {
        let Some(slot) = self.find(key) else {
            return false;
        };
        let Some(entry) = self.entries.at_mut(slot) else {
            return false;
        };
        let (tenant, old) = (entry.tenant, std::mem::replace(&mut entry.bytes, bytes));
        self.value_bytes = self.value_bytes - old + bytes;
        let constant = Self::ENTRY_BYTES;
        self.tenants
            .replace_bytes(tenant, old + constant, bytes + constant);
        self.shrink(now, removed);
        self.find(key).is_some()
    }

    /// Removes all entries of a tenant.
    pub fn remove_tenant(&mut self, tenant: u64, removed: &mut Vec<(K, V)>) {
        let hash = self.hash(&tenant);
        // The row goes with the last entry.
        while let Some(row) = self.tenants.find(tenant, hash) {
            let Some(slot) = self.tenants.uses(row).oldest() else {
                return;
            };
            removed.push(self.take(slot));
        }
    }

    /// Returns all entries as a table of its own, which the caller drops, and begins again.
    pub fn take_all(&mut self) -> Lru<K, V, S>
    where
        S: Clone,
    {
        let empty = Lru::with_hasher(self.max_bytes, self.hasher.clone());
        std::mem::replace(self, empty)
    }

    /// Sets another bound, and removes what exceeds it.
    pub fn set_max_bytes(&mut self, max_bytes: usize, now: Moment, removed: &mut Vec<(K, V)>) {
        self.max_bytes = max_bytes;
        self.shrink(now, removed);
    }

    fn shrink(&mut self, now: Moment, removed: &mut Vec<(K, V)>) {
        while self.len > 0 && self.bytes() > self.max_bytes {
            self.evict(now, removed);
        }
        if self.bytes() > self.max_bytes {
            self.release_tables();
        }
    }

    /// Begins with empty tables. There must be no entries.
    fn release_tables(&mut self) {
        debug_assert_eq!(self.len, 0, "entries would be lost");
        self.entries = Blocks::new();
        self.links = Blocks::new();
        self.free = Vec::new();
        self.index = Index::new();
        self.uses = List::EMPTY;
        self.tenants = Tenants::new();
    }

    /// Removes the entry that goes first. There must be one.
    fn evict(&mut self, now: Moment, removed: &mut Vec<(K, V)>) {
        let oldest = self.uses.oldest();
        let expired = oldest.filter(|slot| self.entry(*slot).expires <= now);
        let victim = expired.or_else(|| {
            let largest = self.tenants.largest()?;
            self.tenants.uses(largest).oldest()
        });
        debug_assert!(victim.is_some(), "an entry is in both lists");
        if let Some(slot) = victim {
            removed.push(self.take(slot));
        }
    }

    /// Takes an entry out of every table.
    fn take(&mut self, slot: u32) -> (K, V) {
        let entry = self.entries.at_mut(slot).take();
        let entry = entry.expect("a slot that was found has an entry");
        self.index.remove(slot);
        self.uses.remove(&mut self.links, Order::All, slot);
        let own = self.tenants.uses(entry.tenant);
        own.remove(&mut self.links, Order::Tenant, slot);
        let bytes = entry.bytes + Self::ENTRY_BYTES;
        self.tenants.replace_bytes(entry.tenant, bytes, 0);
        self.free.push(slot);
        self.value_bytes -= entry.bytes;
        self.len -= 1;
        (entry.key, entry.value)
    }

    /// Returns the accounted bytes with one more item.
    fn bytes_with(&self, item: &Item<V>, tenant_hash: u32) -> usize {
        let mut bytes = self.bytes() + item.bytes;
        if self.free.is_empty() {
            bytes += Self::ENTRY_BYTES;
        }
        if self.tenants.needs_row(item.tenant, tenant_hash) {
            bytes += limits::TENANT_BYTES;
        }
        bytes
    }

    fn find(&self, key: &K) -> Option<u32> {
        let is_it = |slot| self.entry(slot).key == *key;
        self.index.find(self.hash(key), is_it)
    }

    fn entry(&self, slot: u32) -> &Entry<K, V> {
        let entry = self.entries.at(slot).as_ref();
        entry.expect("a slot in a list has an entry")
    }

    /// Returns the lower half of the hash: [`super::shards`] chooses by the upper one.
    fn hash<T: Hash + ?Sized>(&self, key: &T) -> u32 {
        self.hasher.hash_one(key) as u32
    }
}
