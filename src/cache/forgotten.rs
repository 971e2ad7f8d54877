//! Which entries were purged: the moment of each tenant's last purge, and of the last one of all.
//!
//! Owns a table of moments, so that a purge takes effect at once and costs no search. Tenants share
//! it: a purge also makes the entries of one tenant in [`limits::EPOCH_BUCKETS`] miss once.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::core::Moment;
use crate::limits::cache as limits;

/// See the file's head.
pub struct Forgotten {
    /// In microseconds. Entries that were complete by then are forgotten.
    by_tenant: Box<[AtomicU64]>,
    all: AtomicU64,
}

impl Default for Forgotten {
    fn default() -> Forgotten {
        Forgotten {
            by_tenant: (0..limits::EPOCH_BUCKETS)
                .map(|_| AtomicU64::new(0))
                .collect(),
            all: AtomicU64::new(0),
        }
    }
}

impl Forgotten {
    /// Forgets all that a tenant, or every tenant, has until now.
    pub fn note(&self, tenant: Option<u64>, now: Moment) {
        let forgotten = tenant.map_or(&self.all, |tenant| self.of(tenant));
        forgotten.fetch_max(now.as_micros(), Ordering::AcqRel);
    }

    /// Returns whether an entry is forgotten that was complete at this moment.
    pub fn covers(&self, tenant: u64, completed: Moment) -> bool {
        let of_all = self.all.load(Ordering::Acquire);
        let until = of_all.max(self.of(tenant).load(Ordering::Acquire));
        until > 0 && completed.as_micros() <= until
    }

    /// A tenant's number is a part of a hash, so its lower bits spread.
    fn of(&self, tenant: u64) -> &AtomicU64 {
        &self.by_tenant[tenant as usize % limits::EPOCH_BUCKETS]
    }
}
