//! The state of the store, as `/readyz` and `/metrics` report it.
//!
//! Owns a few numbers and one text that the store's thread writes. Must never make a reader wait
//! for the store.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// See the file's head.
#[derive(Debug, Default)]
pub struct Health {
    problem: Mutex<Option<String>>,
    groups: AtomicU64,
    failed_groups: AtomicU64,
    records: AtomicU64,
    removed: AtomicU64,
    used_bytes: AtomicU64,
    /// Whether records give way to the bound on bytes, which was logged.
    is_at_bound: AtomicBool,
}

/// Numbers for `/metrics`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub groups: u64,
    pub failed_groups: u64,
    /// Records that were stored, and that were removed because of their age or number.
    pub records: u64,
    pub removed: u64,
    pub used_bytes: u64,
    pub is_failing: bool,
}

impl Health {
    /// Returns the present problem, for people.
    pub fn problem(&self) -> Option<String> {
        self.lock().clone()
    }

    pub fn is_failing(&self) -> bool {
        self.lock().is_some()
    }

    pub fn totals(&self) -> Totals {
        let read = |number: &AtomicU64| number.load(Ordering::Relaxed);
        Totals {
            groups: read(&self.groups),
            failed_groups: read(&self.failed_groups),
            records: read(&self.records),
            removed: read(&self.removed),
            used_bytes: read(&self.used_bytes),
            is_failing: self.is_failing(),
        }
    }

    /// Notes a group that was committed with this many records. Logs the end of a failure.
    pub fn note_success(&self, records: usize) {
        self.groups.fetch_add(1, Ordering::Relaxed);
        self.records.fetch_add(records as u64, Ordering::Relaxed);
        if self.lock().take().is_some() {
            log::info!("the store works again");
        }
    }

    /// Notes a group that was lost. Logs the beginning of a failure, not each group of it.
    pub fn note_failure(&self, problem: String) {
        self.failed_groups.fetch_add(1, Ordering::Relaxed);
        let before = self.lock().replace(problem.clone());
        if before.is_none() {
            log::warn!("the store does not work: {problem}; requests are served, records wait");
        }
    }

    pub fn note_removed(&self, records: u32) {
        self.removed.fetch_add(records.into(), Ordering::Relaxed);
    }

    /// Notes the bytes of all data. Logs once that they have reached `bound`, until they are an
    /// eighth below it.
    pub fn set_used_bytes(&self, bytes: u64, bound: u64) {
        self.used_bytes.store(bytes, Ordering::Relaxed);
        if bytes > bound && !self.is_at_bound.swap(true, Ordering::Relaxed) {
            log::warn!(
                "the database has used up its part of store.max_size, {bound} bytes: the oldest \
                 records are removed before store.retention has passed"
            );
        } else if bytes < bound - bound / 8 {
            self.is_at_bound.store(false, Ordering::Relaxed);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<String>> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
