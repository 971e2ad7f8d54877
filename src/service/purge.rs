//! A purge: nothing that was kept for a key, or for any, is used again, on any daemon.
//!
//! Owns the *double delete*. Memory forgets what was kept, it is deleted behind memory, a notice
//! goes to the other daemons, and all of it happens once more after `cache.second_delete`. A copy
//! that was on its way during the first delete, from Redis or the store into a memory or the other
//! way, has arrived by then. Must never wait: memory forgets at once, and all else is under way
//! when a call returns.
//!
//! Invariants:
//!  1. A notice of another daemon is not passed on.
//!  2. Entries in Redis are deleted by the daemon that was asked, those of a store by each one.
//!
//! Mutations that `tests/purge.rs` catches: no second delete (`a_copy_that_comes_between_...`), no
//! notice, a delete in memory alone (both in `a_purge_reaches_...`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::cache::timer::Timer;
use crate::config::Cache;
use crate::core::Moment;
use crate::engine::Engine;
use crate::keys;
use crate::offload::{Task, Workers};
use crate::service::response::cached::Responses;

/// Announces a purge to the other daemons: of the key with this id, or of all.
pub type Announce = Box<dyn Fn(Option<&str>) + Send + Sync>;

/// See the file's head.
pub struct Purger {
    responses: Arc<Responses>,
    engine: Arc<dyn Engine>,
    workers: Arc<Workers>,
    /// `None` in tests, which have no second delete.
    timer: Option<Timer>,
    announce: Option<Announce>,
    /// In milliseconds.
    second_delete: AtomicU64,
}

impl Purger {
    pub fn new(
        responses: Arc<Responses>,
        engine: Arc<dyn Engine>,
        workers: Arc<Workers>,
    ) -> Purger {
        Purger {
            responses,
            engine,
            workers,
            timer: None,
            announce: None,
            second_delete: AtomicU64::new(0),
        }
    }

    /// With the way to the other daemons, and a second delete.
    pub fn with(self, timer: Option<Timer>, announce: Option<Announce>, config: &Cache) -> Purger {
        let purger = Purger {
            timer,
            announce,
            ..self
        };
        purger.apply(config);
        purger
    }

    /// Puts the settings of a reload in force.
    pub fn apply(&self, config: &Cache) {
        let pause = config.second_delete.as_millis() as u64;
        self.second_delete.store(pause, Ordering::Relaxed);
    }

    /// Purges what was kept for a key, or for all, on all daemons.
    pub fn purge(self: &Arc<Self>, key: Option<&str>) {
        self.delete_twice(key.map(keys::tenant_of), true);
        if let Some(announce) = &self.announce {
            announce(key);
        }
    }

    /// Handles the notice of another daemon's purge.
    pub fn handle_notice(self: &Arc<Self>, key: Option<&str>) {
        self.delete_twice(key.map(keys::tenant_of), false);
    }

    fn delete_twice(self: &Arc<Self>, tenant: Option<u64>, is_ours: bool) {
        self.delete(tenant, is_ours);
        let Some(timer) = &self.timer else {
            return;
        };
        let pause = Duration::from_millis(self.second_delete.load(Ordering::Relaxed));
        let again = Arc::clone(self);
        // Without a place for it the first delete stands alone; entries expire in any case.
        timer.at(Moment::now() + pause, move || again.delete(tenant, is_ours));
    }

    fn delete(&self, tenant: Option<u64>, is_ours: bool) {
        self.forget(tenant);
        self.engine.delete_behind(tenant, is_ours);
    }

    /// Forgets what this daemon's memory has of a key that is gone, or of all.
    pub fn forget(&self, tenant: Option<u64>) {
        let entries = self.responses.figures().entries;
        self.responses.purge(tenant);
        self.engine.forget(tenant);
        let release = Release {
            responses: Arc::clone(&self.responses),
            engine: Arc::clone(&self.engine),
            tenant,
        };
        // Without a worker the entries stay until others need their room; they are not found any
        // more.
        let work = u32::try_from(entries).unwrap_or(u32::MAX);
        let _ = self.workers.submit(tenant.unwrap_or(0), work, release);
    }
}

/// Frees the memory of purged entries.
struct Release {
    responses: Arc<Responses>,
    engine: Arc<dyn Engine>,
    tenant: Option<u64>,
}

impl Task for Release {
    fn is_wanted(&self) -> bool {
        true
    }

    fn run(self: Box<Release>) {
        self.responses.release(self.tenant);
        self.engine.free_forgotten(self.tenant);
    }
}
