//! How much the store keeps, and the step that removes the rest.
//!
//! Each step removes a few of the oldest records, and of the entries of the cache, and ends, so
//! that tasks wait for milliseconds and not until all is done.

use std::time::Duration;

use super::error::StoreError;
use super::interface::Store;
use super::interface::generations::Bounds;
use crate::core::UnixMillis;
use crate::core::disk_shares::DiskShares;
use crate::limits::store as limits;

/// The bounds of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Upkeep {
    /// Records live this long.
    pub retention: Duration,
    pub max_records: u64,
    /// Of entries of the cache.
    pub entries_bytes: u64,
    /// Of the files in the state folder.
    pub shares: DiskShares,
}

impl Default for Upkeep {
    fn default() -> Upkeep {
        Upkeep {
            retention: Duration::MAX,
            max_records: u64::MAX,
            entries_bytes: u64::MAX,
            shares: DiskShares::of(u64::MAX, 0, true),
        }
    }
}

/// The result of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trimmed {
    pub removed: u32,
    /// Entries of the cache.
    pub entries: u32,
    /// Before the step.
    pub used_bytes: u64,
    /// Whether records gave way to the bound on bytes.
    pub is_over: bool,
}

impl Upkeep {
    /// Returns how much one transaction may write. A database server's log is its own business.
    pub fn transaction_bytes(&self) -> u64 {
        match self.shares.log {
            0 => u64::MAX,
            _ => self.shares.transaction(),
        }
    }

    /// Returns how many records one transaction may add or remove.
    pub fn transaction_records(&self, most: usize) -> usize {
        let fit = self.transaction_bytes() / 2 / limits::RECORD_PAGES_BYTES;
        usize::try_from(fit).unwrap_or(usize::MAX).clamp(1, most)
    }

    /// Removes some of the records that are too many. If it removed any, there may be more.
    ///
    /// Where even no records leave too much, entries of the cache go: they can be computed again.
    pub fn trim(&self, store: &mut dyn Store, now: UnixMillis) -> Result<Trimmed, StoreError> {
        let used_bytes = store.used_bytes()?;
        let is_over = used_bytes > self.shares.records_yield_at();
        let age = u64::try_from(self.retention.as_millis()).unwrap_or(u64::MAX);
        let bounds = Bounds {
            oldest: match is_over {
                true => u64::MAX,
                false => now.as_u64().saturating_sub(age),
            },
            records: self.max_records,
        };
        let rows = self.transaction_records(limits::TRIMMED_RECORDS_MAX);
        let rows = u32::try_from(rows).unwrap_or(u32::MAX);
        store.make_room(&self.shares, 0)?;
        let removed = store.trim_generations(&bounds, rows)?;
        let entries_bytes = match is_over && removed == 0 {
            true => 0,
            false => self.entries_bytes,
        };
        store.make_room(&self.shares, 0)?;
        let old = store.delete_old_entries(now.as_u64(), limits::TRIMMED_ENTRIES_MAX)?;
        Ok(Trimmed {
            removed,
            entries: old + store.trim_entries(entries_bytes, limits::TRIMMED_ENTRIES_MAX)?,
            used_bytes,
            is_over,
        })
    }
}
