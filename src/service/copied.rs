//! Numbers that others own, copied into the registry before it is read: for a scraper, and for the
//! thread that pushes metrics.

use std::sync::Arc;

use crate::cache::metrics::{CacheSeries, Level};
use crate::core::buffered::Account;
use crate::engine::Engine;
use crate::engine::metrics::EngineSeries;
use crate::offload::Workers;
use crate::offload::metrics::WorkerSeries;
use crate::store::Requests;
use crate::store::metrics::StoreSeries;
use crate::telemetry::metrics::Metrics;

use super::metrics::ServiceSeries;
use super::response::cached::Responses;

/// The owners of the numbers.
pub struct Owners<'a> {
    pub engine: &'a dyn Engine,
    pub buffered: &'a Account,
    pub workers: &'a Workers,
    pub responses: &'a Responses,
    pub requests: &'a Requests,
}

/// The series that the numbers are copied into.
#[derive(Debug)]
pub struct Copied {
    engine: Arc<EngineSeries>,
    cache: Arc<CacheSeries>,
    service: Arc<ServiceSeries>,
    workers: Arc<WorkerSeries>,
    store: Arc<StoreSeries>,
}

impl Copied {
    pub fn new(metrics: &Metrics) -> Copied {
        Copied {
            engine: metrics.series(),
            cache: metrics.series(),
            service: metrics.series(),
            workers: metrics.series(),
            store: metrics.series(),
        }
    }

    /// Copies all of them. Two threads may do so at the same time.
    pub fn update(&self, owners: &Owners<'_>) {
        let gauges = owners.engine.gauges();
        self.engine.update(&gauges);
        self.cache.update(Level::Generation, &gauges.kept.into());
        self.cache.update_prefixes(&gauges.prefixes);
        self.service.update(owners.buffered);
        self.workers.update(&owners.workers.figures());
        let responses = owners.responses.figures();
        self.cache.update(Level::Response, &responses);
        self.store.update(owners.requests);
    }
}
