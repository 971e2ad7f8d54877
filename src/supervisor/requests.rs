//! The queue of tasks for the store, as a part: its threads run them from the birth of the daemon
//! until the reactors have ended. With SQLite it is one thread, with PostgreSQL a pool of them,
//! each with a connection of its own.
//!
//! Born after the keys, which create the database.

use std::sync::Arc;

use super::database;
use super::failure::Failure;
use super::part::{Birth, Part, Settings};
use crate::config::Config;
use crate::console::exit;
use crate::engine::prefixes;
use crate::store::upkeep::Upkeep;
use crate::store::{Place, Requests, StoreWorker};

pub struct StoreRequests {
    /// Empty once their threads have ended.
    workers: Vec<StoreWorker>,
    requests: Arc<Requests>,
}

impl Part for StoreRequests {
    fn start(birth: &mut Birth) -> Result<StoreRequests, Failure> {
        birth.requests.set_upkeep(upkeep(&birth.config));
        let folder = birth.requests.folder();
        folder.set_place(birth.config.state_dir.clone(), prefixes::bytes);
        clear_prefixes(&birth.config);
        let place = database::place(&birth.config, &birth.sources);
        let place = place.map_err(|reason| Failure::new(exit::CONFIG, reason))?;
        // SQLite has one writer at a time.
        let threads = match place {
            Place::Sqlite(_) => 1,
            Place::Postgres(_) => birth.config.store.pool_size,
        };
        let start = |_| {
            let place = place.clone();
            StoreWorker::start(Arc::clone(&birth.requests), move || place.open_existing())
        };
        let workers: Result<Vec<_>, _> = (0..threads).map(start).collect();
        let workers = workers.map_err(|error| {
            Failure::new(
                exit::of_store(&error),
                format!("the store's thread: {error}"),
            )
        })?;
        Ok(StoreRequests {
            workers,
            requests: birth.requests.clone(),
        })
    }

    fn apply(&mut self, settings: &Settings) {
        self.requests.set_upkeep(upkeep(&settings.config));
    }

    fn join(&mut self) -> bool {
        // Dropping the first worker closes the queue, and dropping each waits for its thread.
        self.workers.clear();
        true
    }
}

/// Removes the prefixes of an earlier daemon, if this one keeps none.
fn clear_prefixes(config: &Config) {
    if config.cache.prefixes > 0 {
        return;
    }
    match prefixes::clear(&config.state_dir) {
        Ok(0) => {}
        Ok(removed) => log::info!("cache.prefixes is 0: {removed} prefixes are removed"),
        Err(error) => {
            let folder = prefixes::folder(&config.state_dir);
            log::warn!("cannot remove prefixes in {}: {error}", folder.display());
        }
    }
}

fn upkeep(config: &Config) -> Upkeep {
    Upkeep {
        retention: config.store.retention,
        max_records: config.store.max_records,
        entries_bytes: config.entries_bytes(),
        shares: config.disk_shares(),
    }
}
