//! The numbers of the daemon at one moment, as the batches that are pushed.
//!
//! Owns the registry's encoding and the wall clock of the points; decides nothing.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::core::buffered::Account;
use crate::engine::Engine;
use crate::offload::Workers;
use crate::service::{Copied, Owners, Responses, templates};
use crate::store::Requests;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::otlp::snapshot::{Batch, Source};
use crate::telemetry::random::random_seed;

/// Numbers that can be read: those of the daemon, or a test's own.
pub trait Numbers {
    fn read(&mut self) -> Vec<Batch>;
}

/// The owners of numbers that are copied before the registry is read.
pub struct Owned {
    pub engine: Arc<dyn Engine>,
    pub responses: Arc<Responses>,
    pub buffered: Account,
    pub workers: Arc<Workers>,
    pub requests: Arc<Requests>,
}

/// All numbers of the daemon: what a scraper gets as well.
pub struct Registry {
    metrics: Metrics,
    copied: Copied,
    owned: Owned,
    source: Source,
}

impl Registry {
    /// `engine`: the engine's name.
    pub fn new(metrics: &Metrics, owned: Owned, engine: &str) -> Registry {
        Registry {
            metrics: metrics.clone(),
            copied: Copied::new(metrics),
            owned,
            source: Source::new(&instance(), engine, templates().collect(), unix_nanos()),
        }
    }
}

impl Numbers for Registry {
    fn read(&mut self) -> Vec<Batch> {
        let owned = &self.owned;
        self.copied.update(&Owners {
            engine: &*owned.engine,
            buffered: &owned.buffered,
            workers: &owned.workers,
            responses: &owned.responses,
            requests: &owned.requests,
        });
        let mut text = String::new();
        self.metrics.encode(&mut text);
        let rows = self.metrics.rows();
        self.source.batches(&text, &rows, unix_nanos())
    }
}

/// Returns the wall clock in nanoseconds since 1970.
fn unix_nanos() -> u64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH);
    elapsed.map_or(0, |elapsed| elapsed.as_nanos() as u64)
}

/// Names this process among all daemons: a UUID of version 4.
fn instance() -> String {
    let (high, low) = (random_seed(), random_seed());
    let bytes = (u128::from(high) << 64 | u128::from(low)).to_be_bytes();
    uuid::Builder::from_random_bytes(bytes)
        .into_uuid()
        .to_string()
}
