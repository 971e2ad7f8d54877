//! What the supervisor asks of each part of the daemon, and what the parts pass on to each other.
//!
//! Owns the four moments of a part's life, and nothing of its work. The list of the parts, in order
//! of birth, is in [`parts`].
//!
//! [`parts`]: super::parts

use std::sync::Arc;
use std::time::Duration;

use super::failure::Failure;
use super::spawner::Spawner;
use crate::config::{Config, Loaded, Sources};
use crate::engine::Engine;
use crate::keys::KeyRing;
use crate::service::Limiter;
use crate::store::Bootstrap;
use crate::telemetry::metrics::Metrics;
use crate::tls::Acceptor;

/// A part of the daemon with a life of its own.
pub trait Part {
    /// Begins its work. A part takes from `birth` what the parts before it have left there, and
    /// leaves what those after it need. Where it fails, the parts before it are dropped.
    fn start(birth: &mut Birth) -> Result<Self, Failure>
    where
        Self: Sized;

    /// Puts the settings of a reload in force.
    fn apply(&mut self, _settings: &Settings) {}

    /// Takes on nothing more. What runs has `patience` to end by itself.
    fn drain(&mut self, _patience: Duration) {}

    /// Waits for its end, after [`Part::drain`]. `false`: something went wrong, and was logged.
    fn join(&mut self) -> bool {
        true
    }
}

/// What a reload has read and checked.
pub struct Settings {
    pub config: Arc<Config>,
    pub acceptor: Option<Arc<Acceptor>>,
}

/// What is known when the parts are born. Each `Option` is filled by the part that it names.
pub struct Birth {
    /// What is unusual about the configuration, for the log.
    pub warnings: Vec<String>,
    pub config: Arc<Config>,
    pub sources: Sources,
    pub metrics: Metrics,
    pub limiter: Arc<Limiter>,
    /// How often a reactor has to turn; `None` where there is no watchdog.
    pub heartbeat: Option<Duration>,
    /// The certificates: what sessions share.
    pub acceptor: Option<Arc<Acceptor>>,
    /// The listeners: how many descriptors are left for connections.
    pub max_connections: usize,
    /// The listeners: reactors that can be written to, and do not run yet.
    pub spawner: Option<Spawner>,
    /// The keys: the ring of this moment.
    pub keys: Arc<KeyRing>,
    /// The keys: on the very first start there is one to show.
    pub bootstrap: Option<Bootstrap>,
    /// The engine.
    pub engine: Option<Arc<dyn Engine>>,
}

impl Birth {
    pub fn new(loaded: &Loaded, sources: &Sources, heartbeat: Option<Duration>) -> Birth {
        let warnings = loaded.warnings.iter();
        Birth {
            warnings: warnings
                .map(|warning| format!("{}: {}", warning.place, warning.message))
                .collect(),
            config: Arc::new(loaded.config.clone()),
            metrics: Metrics::new(loaded.config.engine.kind.as_str()),
            sources: sources.clone(),
            limiter: Arc::new(Limiter::new()),
            heartbeat,
            acceptor: None,
            max_connections: 0,
            spawner: None,
            keys: Arc::default(),
            bootstrap: None,
            engine: None,
        }
    }
}
