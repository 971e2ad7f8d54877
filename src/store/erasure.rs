//! Removes everything that the store has of a key.
//!
//! Each step removes a few rows in a transaction of its own, so that a daemon's tasks wait for
//! milliseconds and not until all is done. Must never be called on a reactor's thread.
//!
//! A daemon that has not heard of the end of the key yet may add rows behind a step. So the caller
//! revokes the key first, waits until the daemons know it, and calls [`erase`] a second time after
//! the key itself is gone. Records that come later still are not added: their key is not there. One
//! that was added before and is not committed yet is not seen by any step, so the second call must
//! come after [`Store::await_earlier_writes`].

use super::error::{Fault, StoreError};
use super::interface::Store;
use crate::keys::tenant_of;
use crate::limits::store as limits;

/// How many rows were removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Erased {
    pub generations: u64,
    pub usage_days: u64,
    /// Their events, callbacks and keys of idempotency went with them.
    pub jobs: u64,
    pub entries: u64,
}

impl Erased {
    /// Returns both together.
    pub fn and(self, other: Erased) -> Erased {
        Erased {
            generations: self.generations + other.generations,
            usage_days: self.usage_days + other.usage_days,
            jobs: self.jobs + other.jobs,
            entries: self.entries + other.entries,
        }
    }
}

/// Removes all rows of a key but the key itself.
pub fn erase(store: &mut dyn Store, key_id: &str) -> Result<Erased, StoreError> {
    let (most, tenant) = (limits::ERASED_RECORDS_MAX, tenant_of(key_id));
    // Jobs first: one that runs would add a record and usage.
    let jobs = repeat(|| store.erase_jobs(key_id, most))?;
    repeat(|| store.erase_remembered_jobs(key_id, most))?;
    Ok(Erased {
        jobs,
        entries: repeat(|| store.erase_entries(Some(tenant), most))?,
        generations: repeat(|| store.erase_generations(key_id, most))?,
        usage_days: patiently(|| store.erase_usage(key_id))?.into(),
    })
}

/// Repeats a step until it removes nothing. Returns how many rows it removed.
fn repeat(mut step: impl FnMut() -> Result<u32, StoreError>) -> Result<u64, StoreError> {
    let mut removed = 0;
    loop {
        match patiently(&mut step)? {
            0 => return Ok(removed),
            rows => removed += u64::from(rows),
        }
    }
}

/// Tries again while another process holds the lock.
pub fn patiently<T>(mut step: impl FnMut() -> Result<T, StoreError>) -> Result<T, StoreError> {
    for _ in 1..limits::BUSY_ATTEMPTS_MAX {
        match step() {
            Err(StoreError::Database {
                fault: Fault::Busy, ..
            }) => {}
            done => return done,
        }
    }
    step()
}
