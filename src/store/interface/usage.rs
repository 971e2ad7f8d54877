//! Usage by key and day, which outlives the records that it is counted from.

use std::ops::RangeInclusive;

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

    /// Removes the usage of a key.
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
}
