//! Usage by key and day, which outlives the records that it is counted from.
//!
//! A request that the cache has served is not a generation: it leaves no record, and is counted in
//! a table of its own. So programs that do not know this table work beside those that do.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use crate::core::UnixMillis;
use crate::store::error::StoreError;

/// The usage in an open store.
pub trait Usage {
    /// Returns the usage of a key, or of all keys, on these days; the latest day first. Days are
    /// counted from 1970 (UTC).
    fn usage(
        &self,
        key_id: Option<&str>,
        days: &RangeInclusive<u32>,
    ) -> Result<Vec<UsageRow>, StoreError>;

    /// Adds requests that the cache has served, except those of keys that were erased meanwhile.
    fn add_hits(&mut self, hits: &Hits) -> Result<(), StoreError>;

    /// Removes the usage of a key, and returns of how many days.
    fn erase_usage(&mut self, key_id: &str) -> Result<u32, StoreError>;
}

/// The usage of one key on one day.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UsageRow {
    pub key_id: String,
    pub day: u32,
    pub generations: u64,
    /// Those of them that failed or were abandoned.
    pub unfinished: u64,
    pub prompt_tokens: u64,
    pub cached_tokens: u64,
    pub completion_tokens: u64,
    /// Requests beside the generations, which the cache has served.
    pub hits: u64,
}

/// Requests that the cache has served, by the id of their key and the day.
pub type Hits = BTreeMap<(String, u32), u64>;

pub const DAY_MS: u64 = 86_400_000;

/// Returns the day of a time, counted from 1970 (UTC).
pub fn day_of(time: UnixMillis) -> u32 {
    u32::try_from(time.as_u64() / DAY_MS).unwrap_or(u32::MAX)
}
