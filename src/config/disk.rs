//! The state folder's budget, as the keys of several sections divide it.
//!
//! Owns the way from the configuration to the bounds. The rule itself is in
//! [`crate::core::disk_shares`].

use super::database::StoreUrl;
use super::schema::Config;
use crate::core::disk_shares::DiskShares;
use crate::limits::store as limits;

impl Config {
    /// Returns whether the state folder holds the database.
    pub fn has_database_file(&self) -> bool {
        self.store.url == StoreUrl::Sqlite
    }

    /// Returns the shares of `store.max_size`.
    pub fn disk_shares(&self) -> DiskShares {
        let prefixes = self.cache.prefixes as u64;
        DiskShares::of(self.store.max_size, prefixes, self.has_database_file())
    }

    /// Returns the most that jobs may have: `jobs.max_size`, or less if the folder has no room for
    /// it.
    pub fn jobs_bytes(&self) -> u64 {
        let own = self.jobs.max_size as u64;
        match self.has_database_file() {
            true => own.min(self.disk_shares().jobs()),
            false => own,
        }
    }

    /// Returns the most that entries of the cache may have in the store. A database server has a
    /// disk of its own: there `store.max_size` bounds nothing else.
    pub fn entries_bytes(&self) -> u64 {
        match self.has_database_file() {
            true => self.disk_shares().entries(),
            false => self.store.max_size / limits::ENTRIES_SIZE_DIVISOR,
        }
    }
}
