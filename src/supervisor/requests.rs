//! The queue of tasks for the store, as a part: its thread runs them from the birth of the daemon
//! until the reactors have ended.
//!
//! Born after the keys, which create the database.

use std::sync::Arc;

use super::failure::Failure;
use super::part::{Birth, Part};
use crate::console::exit;
use crate::store::{DATABASE_FILE, SqliteStore, StoreWorker};

pub struct StoreRequests {
    /// `None` once its thread has ended.
    worker: Option<StoreWorker>,
}

impl Part for StoreRequests {
    fn start(birth: &mut Birth) -> Result<StoreRequests, Failure> {
        let path = birth.config.state_dir.join(DATABASE_FILE);
        let open = move || SqliteStore::open_existing(&path).map(|store| Box::new(store) as _);
        let started = StoreWorker::start(Arc::clone(&birth.requests), open);
        let worker = started.map_err(|error| {
            Failure::new(
                exit::of_store(&error),
                format!("the store's thread: {error}"),
            )
        })?;
        Ok(StoreRequests {
            worker: Some(worker),
        })
    }

    fn join(&mut self) -> bool {
        // Dropping the worker runs what waits, ends its thread and waits for it.
        self.worker = None;
        true
    }
}
