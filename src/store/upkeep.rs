//! How much the store keeps, and the step that removes the rest.
//!
//! Each step removes a few of the oldest records, and of the entries of the cache, and ends, so
//! that tasks wait for milliseconds and not until all is done.

use std::time::Duration;

use super::error::StoreError;
use super::interface::Store;
use super::interface::generations::Bounds;
use crate::core::UnixMillis;
use crate::limits::store as limits;

/// The bounds of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Upkeep {
    /// Records live this long.
    pub retention: Duration,
    pub max_records: u64,
    /// Of all data together. Only records give way to it.
    pub max_bytes: u64,
}

impl Default for Upkeep {
    fn default() -> Upkeep {
        Upkeep {
            retention: Duration::MAX,
            max_records: u64::MAX,
            max_bytes: u64::MAX,
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
}

impl Upkeep {
    /// Removes some of the records that are too many. If it removed any, there may be more.
    pub fn trim(&self, store: &mut dyn Store, now: UnixMillis) -> Result<Trimmed, StoreError> {
        let used_bytes = store.used_bytes()?;
        let age = u64::try_from(self.retention.as_millis()).unwrap_or(u64::MAX);
        let bounds = Bounds {
            oldest: match used_bytes > self.max_bytes {
                true => u64::MAX,
                false => now.as_u64().saturating_sub(age),
            },
            records: self.max_records,
        };
        let removed = store.trim_generations(&bounds, limits::TRIMMED_RECORDS_MAX)?;
        Ok(Trimmed {
            removed,
            entries: self.trim_entries(store, now)?,
            used_bytes,
        })
    }

    fn trim_entries(&self, store: &mut dyn Store, now: UnixMillis) -> Result<u32, StoreError> {
        let most = limits::TRIMMED_ENTRIES_MAX;
        let old = store.delete_old_entries(now.as_u64(), most)?;
        let bytes_max = self.max_bytes / limits::ENTRIES_SIZE_DIVISOR;
        Ok(old + store.trim_entries(bytes_max, most)?)
    }
}
