//! The queue of tasks for the store, as a part: its thread runs them from the birth of the daemon
//! until the reactors have ended.
//!
//! Born after the keys, which create the database.

use std::sync::Arc;

use super::database;
use super::failure::Failure;
use super::part::{Birth, Part};
use crate::console::exit;
use crate::store::StoreWorker;

pub struct StoreRequests {
    /// `None` once its thread has ended.
    worker: Option<StoreWorker>,
}

impl Part for StoreRequests {
    fn start(birth: &mut Birth) -> Result<StoreRequests, Failure> {
        let place = database::place(&birth.config, &birth.sources);
        let place = place.map_err(|reason| Failure::new(exit::CONFIG, reason))?;
        let open = move || place.open_existing();
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
