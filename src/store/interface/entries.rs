//! Entries of the cache in a store: results that survive a restart.
//!
//! A value is bytes that the cache has sealed; no database looks into it. Must never name a
//! database. Times are milliseconds since 1970.

use crate::store::error::StoreError;

/// The cache entries of an open store.
pub trait Entries {
    /// Returns an entry that has not expired, and counts the use.
    fn find_entry(&mut self, digest: &[u8; 32], now: u64) -> Result<Option<EntryRow>, StoreError>;

    /// Adds an entry, in the place of one that is not newer. A database whose other connection is
    /// writing an entry of the same digest at this moment may leave it to that one.
    fn put_entry(&mut self, entry: &EntryRow, now: u64) -> Result<(), StoreError>;

    /// Returns entries that have not expired, the most used first, from the one after `after` on,
    /// each with its place in that order.
    fn most_used_entries(
        &mut self,
        now: u64,
        after: Option<EntryPlace>,
        limit: u32,
    ) -> Result<Vec<(EntryPlace, EntryRow)>, StoreError>;

    /// Removes at most `limit` entries that have expired, and returns how many.
    fn delete_old_entries(&mut self, now: u64, limit: u32) -> Result<u32, StoreError>;

    /// Removes the least recently used entries of the tenant with the most bytes, at most `limit`
    /// of them, if all entries together exceed the bound. Returns how many; 0: they fit. A tenant
    /// that has less than an equal share of the bound loses none.
    fn trim_entries(&mut self, bytes_max: u64, limit: u32) -> Result<u32, StoreError>;

    /// Removes at most `limit` entries of a tenant, or of all, and returns how many.
    fn erase_entries(&mut self, tenant: Option<u64>, limit: u32) -> Result<u32, StoreError>;

    /// Removes an entry, unless it is newer than `created_at`. `false`: another connection is using
    /// it at this moment, so it is still there.
    fn erase_entry(&mut self, digest: &[u8; 32], created_at: u64) -> Result<bool, StoreError>;
}

/// An entry as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryRow {
    /// Its name: the digest of the request.
    pub digest: [u8; 32],
    pub tenant: u64,
    /// When its result was complete.
    pub created_at: u64,
    pub expires_at: u64,
    pub value: Vec<u8>,
}

impl EntryRow {
    /// Returns the bytes that it counts in the store.
    pub fn bytes(&self) -> u64 {
        self.value.len() as u64 + crate::limits::store::ENTRY_ROW_BYTES
    }
}

/// A place in the order of use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryPlace {
    pub hits: u64,
    pub digest: [u8; 32],
}
