//! The interface of a part of the daemon, and the things that parts pass on to each other.
//!
//! Owns the steps of a part's life, and nothing of its work. The list of the parts, in order
//! of birth, is in [`parts`].
//!
//! [`parts`]: super::parts

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crossbeam_channel::Receiver;

use super::buffers;
use super::failure::Failure;
use super::spawner::Spawner;
use crate::bus::Invalidation;
use crate::cache::timer::Timer;
use crate::config::{Config, Loaded, Problem, Sources};
use crate::core::buffered::Account;
use crate::engine::Engine;
use crate::keys::KeyRing;
use crate::offload::Workers;
use crate::offload::fetch::Fetcher;
use crate::reactor::outbound;
use crate::redis;
use crate::runner::{self, Journal, Note};
use crate::service::{Limiter, Purger, Responses};
use crate::store::{Bootstrap, Looks, Requests};
use crate::telemetry::metrics::Metrics;
use crate::tls::Acceptor;

/// A part of the daemon with a life of its own.
pub trait Part {
    /// Starts the part. It takes from `birth` what the parts before it have left there, and leaves
    /// what those after it need. If it fails, the parts before it are dropped.
    fn start(birth: &mut Birth) -> Result<Self, Failure>
    where
        Self: Sized;

    /// Puts the settings of a reload in force.
    fn apply(&mut self, _settings: &Settings) {}

    /// Accepts no more work. Running work has `patience` to end by itself.
    fn drain(&mut self, _patience: Duration) {}

    /// Keeps what would be lost with the part, until `is_over` returns true. Called before
    /// [`Part::join`]; the parts that depend on this one have ended.
    fn keep(&mut self, _is_over: &mut dyn FnMut() -> bool) {}

    /// Waits for the part's end, after [`Part::drain`]. `false`: something went wrong, and was
    /// logged.
    fn join(&mut self) -> bool {
        true
    }
}

/// The settings that a reload has read and checked.
pub struct Settings {
    pub config: Arc<Config>,
    pub acceptor: Option<Arc<Acceptor>>,
}

/// The things that are known when the parts start. The part that is named fills its field.
pub struct Birth {
    /// Warnings about the configuration, for the log.
    pub warnings: Vec<String>,
    pub config: Arc<Config>,
    pub sources: Sources,
    pub metrics: Metrics,
    pub limiter: Arc<Limiter>,
    /// The memory of all connections.
    pub buffered: Account,
    /// The engine and the reactors send it tasks.
    pub workers: Arc<Workers>,
    /// The tasks for the store.
    pub requests: Arc<Requests>,
    /// The time within which a reactor must turn; `None` without a watchdog.
    pub heartbeat: Option<Duration>,
    /// From the certificates: the acceptor that all sessions share.
    pub acceptor: Option<Arc<Acceptor>>,
    /// From the listeners: the number of descriptors that are left for connections.
    pub max_connections: usize,
    /// From the listeners: the number of descriptors that are for the daemon's own connections.
    pub outbound_sockets: usize,
    /// From the outbound part, for the reactors.
    pub outbound: Option<outbound::Parts>,
    /// From the outbound part: the way of requests to other servers.
    pub fetcher: Option<Fetcher>,
    /// From the reactors: the cache of finished responses.
    pub responses: Option<Arc<Responses>>,
    /// From the listeners: reactors that already receive messages, but do not run yet.
    pub spawner: Option<Spawner>,
    /// From Redis: the way to its thread; `None` without Redis.
    pub redis: Option<(redis::Settings, redis::Handle)>,
    /// The journal of durable jobs and the requests that follow them.
    pub jobs: runner::Access,
    /// The receiving end of that journal, for the runner.
    pub notes: Option<Receiver<Note>>,
    /// From the keys: the present ring.
    pub keys: Arc<KeyRing>,
    /// From the keys: the way to have changed keys read at once.
    pub looks: Option<Looks>,
    /// From the keys: the key of the very first start, which must be shown.
    pub bootstrap: Option<Bootstrap>,
    /// From the bus: the way to other daemons; `None` without a bus.
    pub bus: Option<Arc<dyn Invalidation>>,
    /// From the reactors, for the bus: purges that other daemons announce. Empty until then, when
    /// there is nothing to purge.
    pub purger: Arc<OnceLock<Arc<Purger>>>,
    /// From the engine part.
    pub engine: Option<Arc<dyn Engine>>,
    /// From the engine part: acts at later moments.
    pub timer: Option<Timer>,
}

impl Birth {
    pub fn new(loaded: &Loaded, sources: &Sources, heartbeat: Option<Duration>) -> Birth {
        let warnings = loaded.warnings.iter();
        let (journal, notes) = Journal::new();
        Birth {
            warnings: warnings.map(Problem::brief).collect(),
            config: Arc::new(loaded.config.clone()),
            metrics: Metrics::new(loaded.config.engine.kind.as_str()),
            sources: sources.clone(),
            limiter: Arc::new(Limiter::default()),
            buffered: Account::new(buffers::bound(&loaded.config)),
            workers: Arc::default(),
            requests: Arc::default(),
            jobs: runner::Access {
                journal,
                ..runner::Access::default()
            },
            notes: Some(notes),
            heartbeat,
            acceptor: None,
            max_connections: 0,
            outbound_sockets: 0,
            outbound: None,
            fetcher: None,
            responses: None,
            spawner: None,
            redis: None,
            keys: Arc::default(),
            looks: None,
            bootstrap: None,
            bus: None,
            purger: Arc::default(),
            engine: None,
            timer: None,
        }
    }
}
