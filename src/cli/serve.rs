//! `autoglmd serve`: puts the daemon together, then supervises it from the main thread.
//!
//! Owns the order of birth and death, and nothing of the work:
//!
//! ```text
//!   configuration -> signals blocked -> log -> descriptors -> listeners -> keys
//!                 -> engine -> reactors -> (ready) -> signals, file watch, watchdog ...
//!                 -> drain: reactors end -> engine ends -> log flushed
//! ```
//!
//! Signals are blocked before the first thread starts, so that only this one gets them. Everything
//! that may block (reading files, SQLite) happens here or in a worker, never in a reactor.

mod certificates;
mod engine;
mod listeners;
mod reactors;

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::Socket;

use super::console::note;
use super::{exit, key};
use crate::config::{self, Config, Loaded, LogFormat, Sources};
use crate::engine::{Engine, State};
use crate::limits;
use crate::offload::mailbox::Sender;
use crate::os::notify::Notifier;
use crate::os::rlimit;
use crate::os::signals::{self, Signal, Signals};
use crate::os::wait::wait_readable;
use crate::os::watch::FileWatch;
use crate::reactor::message::{Mailboxes, Message};
use crate::service;
use crate::service::rate_limit::Limiter;
use crate::store::{Bootstrap, KeyRing, KeyStore, StoreError, StoreWorker};
use crate::telemetry::log::LogHandle;
use crate::telemetry::metrics::Metrics;
use crate::tls::Problem;
use certificates::Certificates;
use listeners::Listeners;
use reactors::{Births, Reactors};

/// Runs the daemon until it is told to stop.
pub fn run(sources: &Sources) -> exit::Code {
    let loaded = match config::load(sources) {
        Ok(loaded) => loaded,
        Err(errors) => {
            note(errors);
            return exit::CONFIG;
        }
    };
    match engine::prepare_process(&loaded.config).and_then(|()| Daemon::start(sources, loaded)) {
        Ok(daemon) => daemon.supervise(),
        Err(failure) => {
            log::logger().flush();
            note(format_args!("autoglmd cannot start: {failure}"));
            failure.code
        }
    }
}

/// What keeps the daemon from starting: what it tried, why it failed, what to do.
struct Failure {
    message: String,
    code: exit::Code,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl Failure {
    fn new(code: exit::Code, message: impl Into<String>) -> Failure {
        Failure {
            message: message.into(),
            code,
        }
    }

    fn os(what: &str, error: &io::Error) -> Failure {
        Failure::new(exit::OS_ERROR, format!("{what}: {error}"))
    }
}

/// The daemon's parts, as its supervisor sees them.
struct Daemon {
    sources: Sources,
    loaded: Loaded,
    signals: Signals,
    watch: Option<FileWatch>,
    notifier: Notifier,
    log: LogHandle,
    metrics: Metrics,
    engine: Arc<dyn Engine>,
    store: StoreWorker,
    reactors: Reactors,
    listeners: Listeners,
    certificates: Certificates,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Loading,
    /// Answers are being generated, or the engine has failed and says so to each request.
    Serving,
    Draining,
}

impl Daemon {
    fn start(sources: &Sources, loaded: Loaded) -> Result<Daemon, Failure> {
        let config = Arc::new(loaded.config.clone());
        signals::block().map_err(|error| Failure::os("blocking signals", &error))?;
        let signals = Signals::new().map_err(|error| Failure::os("signalfd", &error))?;
        let notifier = Notifier::from_environment()
            .map_err(|error| Failure::os("the service manager's socket", &error))?;
        let log = crate::telemetry::log::init(&config.log)
            .map_err(|error| Failure::new(exit::CANT_CREATE, format!("log.file: {error}")))?;
        for warning in &loaded.warnings {
            log::warn!("{}: {}", warning.place, warning.message);
        }
        let certificates = Certificates::load(&config, sources, None)
            .map_err(|problems| unusable_certificates(&problems))?;
        let max_connections = max_connections(&config)?;
        // Before the first start's key is made: a port in use must not cost the one showing of it.
        let listeners = Listeners::open(&config.server.listen)?;
        let keys = open_store(&config.state_dir)?;
        let metrics = Metrics::new(config.engine.kind.as_str());

        let births = Births::prepare(config.server.reactors, &listeners)
            .map_err(|error| Failure::os("epoll", &error))?;
        let mailboxes = births.mailboxes();
        let store = start_store_worker(&config.state_dir, &mailboxes)?;
        let engine = engine::start(&config, Arc::new(Mailboxes(mailboxes)))?;
        let parts = service::Parts {
            config: config.clone(),
            keys: store.1,
            engine: engine.clone(),
            limiter: Arc::new(Limiter::new()),
            metrics: metrics.clone(),
            wall_clock: service::unix_seconds,
        };
        let heartbeat = notifier.watchdog_interval().map(|interval| interval / 2);
        let reactors = births
            .start(&parts, &certificates.acceptor(), max_connections, heartbeat)
            .map_err(|error| Failure::os("starting a thread", &error))?;

        for address in listeners.addresses() {
            log::info!("listening on {address}");
        }
        if let Some(bootstrap) = keys {
            let plain = config.log.format == LogFormat::Text && config.log.file.is_none();
            show_bootstrap_key(&bootstrap, plain && !notifier.is_active());
        }
        let watch = watch_files(&loaded, sources);
        Ok(Daemon {
            sources: sources.clone(),
            loaded,
            signals,
            watch,
            notifier,
            log,
            metrics,
            engine,
            store: store.0,
            reactors,
            listeners,
            certificates,
            phase: Phase::Loading,
        })
    }

    /// Waits for signals, changes of the file and the end of the reactors, until all have ended.
    fn supervise(mut self) -> exit::Code {
        let mut rhythm = Rhythm::new(Instant::now());
        self.certificates.look(&self.metrics);
        while self.reactors.are_running() {
            if let Err(error) = self.wait() {
                log::error!("the supervisor cannot wait: {error}");
                self.stop();
                break;
            }
            self.handle_signals();
            self.handle_file_change();
            self.certificates.look(&self.metrics);
            self.note_readiness(&mut rhythm);
            self.feed_watchdog(&mut rhythm);
        }
        self.finish()
    }

    /// Sleeps until there is something to do. Between events a daemon that serves does nothing
    /// here, unless it has a watchdog to feed.
    fn wait(&mut self) -> io::Result<()> {
        let watchdog = self.notifier.watchdog_interval();
        let patience = match self.phase {
            Phase::Loading => Some(limits::SUPERVISOR_LOADING_TICK),
            Phase::Serving | Phase::Draining => {
                watchdog.map(|interval| limits::SUPERVISOR_WATCHDOG_TICK.min(interval / 2))
            }
        };
        let look = self.certificates.until_next_look();
        let patience = patience.into_iter().chain(look).min();
        let (ends, signals) = (self.reactors.ends(), self.signals.as_fd());
        let somebody_ended = match &self.watch {
            Some(watch) => wait_readable([ends, signals, watch.as_fd()], patience)?[0],
            None => wait_readable([ends, signals], patience)?[0],
        };
        if somebody_ended {
            self.reactors.count_ends()?;
            if self.phase != Phase::Draining {
                log::error!("a reactor has ended by itself: the daemon stops");
                self.stop();
            }
        }
        Ok(())
    }

    fn handle_signals(&mut self) {
        loop {
            match self.signals.next_pending() {
                Ok(None) => return,
                Ok(Some(Signal::Hangup)) => self.reload("SIGHUP"),
                Ok(Some(Signal::User1)) => {
                    self.log.reopen();
                    match &self.loaded.config.log.file {
                        Some(path) => log::info!("SIGUSR1: {} is open anew", path.display()),
                        None => log::info!("SIGUSR1: log.file is not set, nothing is reopened"),
                    }
                }
                Ok(Some(Signal::Terminate | Signal::Interrupt)) => self.begin_drain(),
                Err(error) => return log::error!("reading a signal: {error}"),
            }
        }
    }

    fn handle_file_change(&mut self) {
        match self.watch.as_mut().map(FileWatch::changed) {
            Some(Ok(true)) => self.reload("a file was saved"),
            Some(Err(error)) => {
                log::error!("watching the configuration's files: {error}; watching ends");
                self.watch = None;
            }
            Some(Ok(false)) | None => {}
        }
    }

    /// Reads and checks everything; then all reactors get the new configuration, or none.
    fn reload(&mut self, cause: &str) {
        if self.phase == Phase::Draining {
            return;
        }
        // Whoever waits for the first READY must not get it from a reload.
        let is_ready = self.phase == Phase::Serving;
        if is_ready {
            self.notify(self.notifier.reloading());
        }
        self.store.refresh();
        let fresh = self.read_anew();
        self.metrics.config_reloads(fresh.is_ok()).inc();
        match fresh {
            Err(text) => {
                log::error!("{cause}: the configuration stays as it was");
                // A line break within a line would be escaped.
                text.lines().for_each(|line| log::error!("{line}"));
            }
            Ok((loaded, certificates)) => self.put_in_force(cause, loaded, certificates),
        }
        if is_ready {
            self.notify(self.notifier.ready(&self.status()));
        }
    }

    /// Everything that a reload may change, or what is wrong with any of it.
    fn read_anew(&self) -> Result<(Loaded, Certificates), String> {
        let loaded = config::load(&self.sources).map_err(|errors| errors.to_string())?;
        let running = Some(&self.certificates);
        match Certificates::load(&loaded.config, &self.sources, running) {
            Ok(certificates) => Ok((loaded, certificates)),
            Err(problems) => Err(lines(&problems)),
        }
    }

    fn put_in_force(&mut self, cause: &str, mut fresh: Loaded, certificates: Certificates) {
        let changes = config::diff(&self.loaded.config, &fresh.config);
        log::info!("{cause}: {}", config::summary(&changes));
        fresh.config = config::reloaded(&self.loaded.config, &fresh.config);
        self.log.set_level(fresh.config.log.level);
        self.log.set_access(fresh.config.log.access);
        let config = Arc::new(fresh.config.clone());
        let acceptor = certificates.acceptor();
        self.reactors.post(|| Message::Tls(acceptor.clone()));
        self.reactors.post(|| Message::Apply(config.clone()));
        self.loaded = fresh;
        self.certificates = certificates;
        if let Some(watch) = &mut self.watch {
            let files = watched_files(&self.loaded, &self.sources);
            if let Err(error) = watch.watch(&files) {
                log::error!("watching the configuration's files: {error}; watching ends");
                self.watch = None;
            }
        }
    }

    /// The first signal drains, the second ends.
    fn begin_drain(&mut self) {
        if self.phase == Phase::Draining {
            log::warn!("second signal: ending at once");
            return self.stop();
        }
        self.phase = Phase::Draining;
        let patience = self.loaded.config.server.drain_timeout;
        log::info!(
            "draining: running requests have {} s to end",
            patience.as_secs_f32()
        );
        self.notify(self.notifier.stopping("draining"));
        self.reactors.post(|| Message::Drain(patience));
        // The reactor takes in who waits already, then closes its listeners. The last descriptor
        // has to be its own: from then on the kernel refuses whoever comes.
        self.listeners = Listeners::default();
    }

    /// Cuts off what runs.
    fn stop(&mut self) {
        self.phase = Phase::Draining;
        self.reactors.post(|| Message::Stop);
    }

    fn note_readiness(&mut self, rhythm: &mut Rhythm) {
        if self.phase != Phase::Loading {
            return;
        }
        match self.engine.state() {
            State::Loading { .. } => {
                if rhythm.is_extension_due(Instant::now()) {
                    let extension = limits::LOADING_TIMEOUT_EXTENSION;
                    self.notify(self.notifier.extend_timeout(extension));
                }
            }
            State::Ready | State::Stalled { .. } => {
                self.phase = Phase::Serving;
                let status = self.status();
                log::info!("ready: {status}");
                self.notify(self.notifier.ready(&status));
                self.show_first_steps();
            }
            State::Failed(why) => {
                log::error!("the engine cannot start: {why}");
                self.begin_drain();
            }
        }
    }

    fn status(&self) -> String {
        let model = self
            .engine
            .model()
            .map_or_else(|| "no model".to_owned(), |model| model.id);
        format!(
            "serving {model} on {}",
            self.listeners.addresses().join(", ")
        )
    }

    /// Fed by the loops themselves: one that has not turned for too long starves it.
    fn feed_watchdog(&self, rhythm: &mut Rhythm) {
        let Some(interval) = self.notifier.watchdog_interval() else {
            return;
        };
        let is_healthy = self.reactors.have_turned_within(interval);
        if is_healthy && rhythm.is_watchdog_due(interval, Instant::now()) {
            self.notify(self.notifier.watchdog());
            self.metrics.watchdog_fed.inc();
        }
    }

    fn notify(&self, sent: io::Result<()>) {
        if let Err(error) = sent {
            log::debug!("the service manager was not told: {error}");
        }
    }

    /// On a terminal or in a script, not under a service manager: how to use what just started.
    fn show_first_steps(&self) {
        if self.notifier.is_active() || self.loaded.config.log.format != LogFormat::Text {
            return;
        }
        if let Some(text) = self.listeners.first_steps(&self.loaded.config.state_dir) {
            log::logger().flush();
            let _ = io::stderr().write_all(text.as_bytes());
        }
    }

    /// The reactors have ended; the engine follows, then the log.
    fn finish(mut self) -> exit::Code {
        let problems = self.reactors.join();
        problems.iter().for_each(|problem| log::error!("{problem}"));
        let mut code = match problems.is_empty() {
            true => exit::OK,
            false => exit::SOFTWARE,
        };
        if let (State::Failed(_), exit::OK) = (self.engine.state(), code) {
            code = exit::UNAVAILABLE;
        }
        self.engine.drain();
        log::info!("stopped");
        self.log.shutdown();
        code
    }
}

/// When the service manager was last told what it wants to hear again and again. Each of the two
/// has a time of its own: one that is told often must not keep the other from being told at all.
struct Rhythm {
    extended_at: Instant,
    fed_at: Instant,
}

impl Rhythm {
    fn new(now: Instant) -> Rhythm {
        Rhythm {
            extended_at: now,
            fed_at: now,
        }
    }

    /// Whether more time for loading has to be asked for, well before the last grant ends.
    fn is_extension_due(&mut self, now: Instant) -> bool {
        take_if_due(
            &mut self.extended_at,
            limits::LOADING_TIMEOUT_EXTENSION / 2,
            now,
        )
    }

    fn is_watchdog_due(&mut self, interval: Duration, now: Instant) -> bool {
        take_if_due(&mut self.fed_at, interval / 2, now)
    }
}

fn take_if_due(told_at: &mut Instant, interval: Duration, now: Instant) -> bool {
    let is_due = now.saturating_duration_since(*told_at) >= interval;
    if is_due {
        *told_at = now;
    }
    is_due
}

/// As many as the descriptors allow, less those for files, epoll, database and pipes.
fn max_connections(config: &Config) -> Result<usize, Failure> {
    let limit = rlimit::raise_descriptor_limit()
        .map_err(|error| Failure::os("raising RLIMIT_NOFILE", &error))?;
    let allowed = usize::try_from(limit.soft).unwrap_or(usize::MAX);
    let most = allowed.saturating_sub(limits::RESERVED_DESCRIPTORS).max(1);
    match config.limits.max_connections as usize {
        0 if allowed <= limits::RESERVED_DESCRIPTORS => {
            log::warn!(
                "RLIMIT_NOFILE = {allowed} is no more than the daemon needs for itself: one \
                 connection is served at a time (raise it with `ulimit -n` or LimitNOFILE=)"
            );
            Ok(most)
        }
        0 => Ok(most.min(limits::CONNECTIONS_MOST)),
        wanted if wanted > most => {
            log::warn!(
                "limits.max_connections = {wanted} needs more descriptors than RLIMIT_NOFILE = \
                 {allowed} gives: {most} are served (raise it with `ulimit -n` or LimitNOFILE=)"
            );
            Ok(most)
        }
        wanted => Ok(wanted),
    }
}

/// Opens the database; on the very first start there is a key to show.
fn open_store(state_dir: &Path) -> Result<Option<Bootstrap>, Failure> {
    let mut store = KeyStore::open_in(state_dir).map_err(|error| unusable_store(&error))?;
    store
        .bootstrap(state_dir, service::unix_seconds())
        .map_err(|error| unusable_store(&error))
}

fn unusable_store(error: &StoreError) -> Failure {
    Failure::new(
        key::code_of(error),
        format!("the key store: {error}; --state-dir names another folder"),
    )
}

/// Where a person reads along the key itself is shown, this once. Elsewhere it would stay in a
/// journal for ever: there only its file is named.
fn show_bootstrap_key(bootstrap: &Bootstrap, person_reads: bool) {
    let path = bootstrap.path.display();
    if !person_reads {
        return log::info!("first start: a key with every scope was made and is kept in {path}");
    }
    log::logger().flush();
    note(format_args!(
        "\nThis is the first start: a key with every scope was made, and is shown only now.\n\n    \
         {}\n\nIt is kept in {path} (mode 0600). Make others with `autoglmd key create`.\n",
        bootstrap.secret.reveal(),
    ));
}

fn start_store_worker(
    state_dir: &Path,
    mailboxes: &[Sender<Message<Socket>>],
) -> Result<(StoreWorker, Arc<KeyRing>), Failure> {
    let mailboxes = mailboxes.to_vec();
    let path = state_dir.join(crate::store::sqlite::DATABASE_FILE);
    StoreWorker::start(&path, move |keys| {
        log::info!("{} keys are known", keys.len());
        mailboxes
            .iter()
            .for_each(|mailbox| mailbox.post(Message::Keys(keys.clone())));
    })
    .map_err(|error| unusable_store(&error))
}

/// What a reload reads: the configuration, and the certificates that it names.
fn watched_files(loaded: &Loaded, sources: &Sources) -> Vec<PathBuf> {
    let certificates = certificates::files(&loaded.config, sources);
    loaded.file.iter().cloned().chain(certificates).collect()
}

fn watch_files(loaded: &Loaded, sources: &Sources) -> Option<FileWatch> {
    let files = watched_files(loaded, sources);
    if !loaded.config.server.watch_config || files.is_empty() {
        return None;
    }
    FileWatch::new(&files)
        .inspect_err(|error| log::error!("the configuration's files cannot be watched: {error}"))
        .ok()
}

fn unusable_certificates(problems: &[Problem]) -> Failure {
    Failure::new(exit::CONFIG, lines(problems))
}

fn lines(problems: &[Problem]) -> String {
    let lines: Vec<_> = problems.iter().map(Problem::to_string).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With the unit's own `WatchdogSec=30s` a loading daemon feeds every 7.5 s and asks for time
    /// every 15 s.
    #[test]
    fn a_watchdog_that_is_fed_does_not_keep_a_loading_daemon_from_asking_for_time() {
        let start = Instant::now();
        let mut rhythm = Rhythm::new(start);
        let watchdog_interval = Duration::from_secs(15);
        let (mut fed, mut extended) = (0, 0);
        for ticks in 1..=6_000 {
            let now = start + ticks * limits::SUPERVISOR_LOADING_TICK;
            extended += u32::from(rhythm.is_extension_due(now));
            fed += u32::from(rhythm.is_watchdog_due(watchdog_interval, now));
        }
        // Two minutes.
        assert_eq!((fed, extended), (16, 8));
    }
}
