//! The certificates in force, from the supervisor's side: loads, watches and checks them for
//! expiry.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::failure::Failure;
use super::metrics::SupervisorSeries;
use super::part::{Birth, Part, Settings};
use crate::config::{Config, CredentialPath, Sources};
use crate::console::exit;
use crate::core::UnixSeconds;
use crate::limits::tls as tls_limits;
use crate::telemetry::metrics::Metrics;
use crate::tls::{Acceptor, Problem};

pub struct Certificates {
    acceptor: Option<Arc<Acceptor>>,
    next_look: Instant,
}

impl Part for Certificates {
    fn start(birth: &mut Birth) -> Result<Certificates, Failure> {
        birth.acceptor = load(&birth.config, &birth.sources, None).map_err(|problems| {
            let lines: Vec<_> = problems.iter().map(Problem::to_string).collect();
            Failure::new(exit::CONFIG, lines.join("\n"))
        })?;
        Ok(Certificates {
            acceptor: birth.acceptor.clone(),
            next_look: Instant::now(),
        })
    }

    fn apply(&mut self, settings: &Settings) {
        self.acceptor.clone_from(&settings.acceptor);
        self.next_look = Instant::now();
    }
}

impl Certificates {
    pub fn acceptor(&self) -> Option<Arc<Acceptor>> {
        self.acceptor.clone()
    }

    /// Returns the time until the next [`Certificates::look`]; `None` if there is nothing to check.
    pub fn until_next_look(&self) -> Option<Duration> {
        let wait = self.next_look.saturating_duration_since(Instant::now());
        self.acceptor.as_ref().map(|_| wait)
    }

    /// Must be called at the start, after a reload and once a day: publishes the validity of each
    /// certificate, and warns of those that are not valid now, or not for long.
    pub fn look(&mut self, metrics: &Metrics) {
        if self.next_look > Instant::now() {
            return;
        }
        self.next_look = Instant::now() + tls_limits::CERTIFICATE_CHECK_INTERVAL;
        let certificates = self.acceptor.iter().flat_map(|one| one.certificates());
        let validities = certificates.clone().map(|one| one.validity);
        let validities = validities.map(|one| (one.begins_at, one.expires_at));
        metrics
            .series::<SupervisorSeries>()
            .set_certificates(validities);
        let warnings = certificates.filter_map(|one| one.warning(now()));
        warnings.for_each(|warning| log::warn!("{warning}"));
    }
}

/// Reads and checks every file; `running` is the set in force until now.
pub fn load(
    config: &Config,
    sources: &Sources,
    running: Option<&Acceptor>,
) -> Result<Option<Arc<Acceptor>>, Vec<Problem>> {
    let credentials = sources.credentials_dir();
    Acceptor::load(config, credentials.as_deref(), running)
}

/// Returns the files whose change triggers a reload. A file whose path cannot be resolved cannot be
/// loaded either.
pub fn files(config: &Config, sources: &Sources) -> Vec<PathBuf> {
    let tls = &config.tls;
    let named = tls.certificates.iter().chain(&tls.keys);
    let named = named.chain(&tls.client_ca);
    let credentials = sources.credentials_dir();
    named
        .filter_map(|path| CredentialPath(path).resolve(credentials.as_deref()).ok())
        .collect()
}

/// The unit of [`crate::tls::acceptor::Certificate`].
fn now() -> i64 {
    UnixSeconds::now().as_i64()
}
