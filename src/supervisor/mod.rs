//! The supervisor: assembles the daemon, then watches over it from the main thread.
//!
//! Owns the order in which parts start and stop, and none of their work:
//!
//! ```text
//!   configuration -> signals blocked -> log -> descriptors -> listeners -> keys
//!                 -> engine -> reactors -> (ready) -> signals, file watch, watchdog ...
//!                 -> drain: reactors end -> engine ends -> log flushed
//! ```
//!
//! Signals are blocked before the first thread starts, so that only this thread gets them. Work
//! that may block for as long as a disk does (a reload's files, SQLite) happens in a worker,
//! because this thread feeds the watchdog, and reactors serve.

mod certificates;
mod engine;
mod household;
mod listeners;
#[cfg(feature = "llama")]
pub mod prover;
mod reactors;
mod reading;
mod reload;
mod rhythm;
mod stored;
mod vigil;

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::Socket;

use crate::config::{Config, Loaded, LogFormat, Sources};
use crate::console::{exit, note};
use crate::engine::{Engine, State};
use crate::keys::KeyRing;
use crate::limits::supervisor as limits;
use crate::offload::mailbox::Sender;
use crate::os::notify::Notifier;
use crate::os::signals::{self, Signal, Signals};
use crate::os::wait::wait_readable;
use crate::os::watch::FileWatch;
use crate::os::{memory, process, rlimit};
use crate::reactor::message::{Mailboxes, Message};
use crate::service::{self, Limiter};
use crate::store::{Bootstrap, DATABASE_FILE, KeyStore, Store, StoreError, StoreWatcher};
use crate::telemetry::log::LogHandle;
use crate::telemetry::metrics::Metrics;
use crate::tls::Problem;
use certificates::Certificates;
use household::Household;
use listeners::Listeners;
use reactors::{Reactors, Spawner};
use reading::Reading;
use rhythm::Rhythm;
use vigil::Vigil;

/// Assembles the daemon; [`Daemon::supervise`] runs it.
pub fn start(sources: &Sources, loaded: Loaded) -> Result<Daemon, Failure> {
    engine::prepare_process(&loaded.config)?;
    Daemon::start(sources, loaded)
}

/// A failed start: what was tried, why it failed, what to do.
pub struct Failure {
    message: String,
    pub code: exit::Code,
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
pub struct Daemon {
    sources: Sources,
    loaded: Loaded,
    signals: Signals,
    watch: Option<FileWatch>,
    notifier: Notifier,
    log: LogHandle,
    metrics: Metrics,
    engine: Arc<dyn Engine>,
    store: StoreWatcher,
    reactors: Reactors,
    listeners: Listeners,
    certificates: Certificates,
    reading: Reading<Result<(Loaded, Certificates), String>>,
    vigil: Vigil,
    household: Household,
    /// Why the last reload was refused, until one succeeds.
    refusal: Option<String>,
    /// The last status that was sent to the service manager.
    told: String,
    /// The signal that began the drain, and its time.
    drained_by: Option<(Signal, Instant)>,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Loading,
    Serving,
    Draining,
    /// The engine's thread will not end: everything else ends, then the process.
    Hung,
}

impl Daemon {
    fn start(sources: &Sources, loaded: Loaded) -> Result<Daemon, Failure> {
        let config = Arc::new(loaded.config.clone());
        signals::block().map_err(|error| Failure::os("blocking signals", &error))?;
        let signals = Signals::new().map_err(|error| Failure::os("signalfd", &error))?;
        memory::return_large_blocks();
        let mut notifier = Notifier::from_environment()
            .map_err(|error| Failure::os("the service manager's socket", &error))?;
        let log = crate::telemetry::log::init(&config.log)
            .map_err(|error| Failure::new(exit::CANT_CREATE, format!("log.file: {error}")))?;
        for warning in &loaded.warnings {
            log::warn!("{}: {}", warning.place, warning.message);
        }
        let certificates = Certificates::load(&config, sources, None)
            .map_err(|problems| unusable_certificates(&problems))?;
        let max_connections = max_connections(&config)?;
        // Before the first start's key is created: a port in use must not use up its only display.
        let mut listeners = Listeners::open(&config.server.listen)?;
        let keys = open_store(&config.state_dir)?;
        let metrics = Metrics::new(config.engine.kind.as_str());

        let spawner = Spawner::prepare(config.server.reactors, &listeners)
            .map_err(|error| Failure::os("epoll", &error))?;
        let mailboxes = spawner.mailboxes();
        let limiter = Arc::new(Limiter::new());
        let store = start_store_worker(&config.state_dir, &limiter, &mailboxes)?;
        let engine = engine::start(&config, Arc::new(Mailboxes(mailboxes)))?;
        let parts = service::Parts {
            config: config.clone(),
            keys: store.1,
            engine: engine.clone(),
            limiter,
            metrics: metrics.clone(),
            wall_clock: service::unix_seconds,
        };
        let heartbeat = notifier.watchdog_interval().map(|interval| interval / 2);
        let reactors = spawner
            .start(&parts, &certificates.acceptor(), max_connections, heartbeat)
            .map_err(|error| Failure::os("starting a thread", &error))?;

        for address in listeners.addresses() {
            log::info!("listening on {address}");
        }
        listeners.store_in(&mut notifier);
        if let Some(bootstrap) = keys {
            let plain = config.log.format == LogFormat::Text && config.log.file.is_none();
            show_bootstrap_key(&bootstrap, plain && !notifier.is_active());
        }
        let watch = reload::watch_files(&loaded, sources);
        let reading = Reading::new().map_err(|error| Failure::os("a pipe", &error))?;
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
            reading,
            vigil: Vigil::new(Instant::now()),
            household: Household::new(),
            refusal: None,
            told: String::new(),
            drained_by: None,
            phase: Phase::Loading,
        })
    }

    /// Waits for signals, changes of the file and the end of the reactors, until all have ended.
    pub fn supervise(mut self) -> exit::Code {
        let mut rhythm = Rhythm::new(Instant::now());
        self.certificates.look(&self.metrics);
        self.household.look(&self.metrics, Instant::now());
        while self.reactors.are_running() {
            if let Err(error) = self.wait() {
                log::error!("the supervisor cannot wait: {error}");
                self.stop();
                break;
            }
            self.handle_signals();
            self.handle_file_change();
            self.handle_reading();
            self.certificates.look(&self.metrics);
            self.household.look(&self.metrics, Instant::now());
            self.note_readiness(&mut rhythm);
            self.watch_engine();
            self.notifier.flush();
            self.feed_watchdog(&mut rhythm);
        }
        self.finish()
    }

    /// Sleeps until there is something to do, or the next check is due.
    fn wait(&mut self) -> io::Result<()> {
        let watchdog = self.notifier.watchdog_interval();
        let tick = match self.phase {
            Phase::Loading => limits::LOADING_TICK,
            Phase::Serving | Phase::Draining | Phase::Hung => limits::TICK,
        };
        let retry = (self.notifier.has_pending()).then_some(limits::NOTIFY_RETRY);
        let look = self.certificates.until_next_look();
        let others = [watchdog.map(|interval| interval / 2), retry, look];
        let patience = others.into_iter().flatten().fold(tick, Duration::min);
        let (ends, signals) = (self.reactors.ends(), self.signals.as_fd());
        let read = self.reading.as_fd();
        let somebody_ended = match &self.watch {
            Some(watch) => wait_readable([ends, signals, read, watch.as_fd()], Some(patience))?[0],
            None => wait_readable([ends, signals, read], Some(patience))?[0],
        };
        if somebody_ended {
            self.reactors.count_ends()?;
            if !self.is_ending() {
                log::error!("a reactor has ended by itself: the daemon stops");
                self.stop();
            }
        }
        Ok(())
    }

    fn is_ending(&self) -> bool {
        matches!(self.phase, Phase::Draining | Phase::Hung)
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
                Ok(Some(signal @ (Signal::Terminate | Signal::Interrupt))) => {
                    self.handle_end_signal(signal, Instant::now());
                }
                Err(error) => return log::error!("reading a signal: {error}"),
            }
        }
    }

    /// The first signal drains, the second stops. SIGTERM and SIGINT that come together count as
    /// one.
    fn handle_end_signal(&mut self, signal: Signal, now: Instant) {
        let Some((first, at)) = self.drained_by else {
            self.drained_by = Some((signal, now));
            // A drain that has another cause is ended by the first signal.
            return match self.phase {
                Phase::Loading | Phase::Serving => self.begin_drain(),
                Phase::Draining | Phase::Hung => self.stop(),
            };
        };
        let is_same_wish =
            signal != first && now.saturating_duration_since(at) < limits::SIGNALS_TOGETHER;
        if !is_same_wish {
            log::warn!("second signal: ending at once");
            self.stop();
        }
    }

    fn begin_drain(&mut self) {
        self.phase = Phase::Draining;
        let patience = self.loaded.config.server.drain_timeout;
        log::info!(
            "draining: running requests have {} s to end",
            patience.as_secs_f32()
        );
        self.notifier.stopping("draining");
        self.reactors.post(|| Message::Drain(patience));
        // The reactor accepts connections that already wait, then closes its listeners. The last
        // descriptor must be its own or the service manager's: from then on the kernel refuses new
        // connections, or keeps them for the next process.
        self.listeners = Listeners::default();
    }

    /// Cuts off running requests.
    fn stop(&mut self) {
        if self.phase != Phase::Hung {
            self.phase = Phase::Draining;
        }
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
                    said_at_once(self.notifier.extend_timeout(extension));
                }
            }
            State::Ready | State::Stalled { .. } => {
                self.phase = Phase::Serving;
                self.told = self.status();
                log::info!("ready: {}", self.told);
                self.notifier.ready(&self.told);
                self.show_first_steps();
            }
            State::Failed(why) => {
                // A line break within a line of the log would be escaped.
                let mut lines = why.lines();
                let cause = lines.next().unwrap_or_default();
                log::error!("the engine cannot start: {cause}");
                lines.for_each(|line| log::error!("{line}"));
                self.begin_drain();
            }
        }
    }

    /// An engine that has failed ends the daemon, and so does one that hangs: only a new process
    /// helps, and the service manager starts one.
    fn watch_engine(&mut self) {
        let silent_for = self.vigil.look(&self.engine.gauges(), Instant::now());
        if self.phase != Phase::Serving {
            return;
        }
        let hung_after = self.loaded.config.engine.stall_timeout * limits::ENGINE_HUNG_STALLS;
        if let State::Failed(why) = self.engine.state() {
            log::error!("the engine has failed: {why}; the daemon ends");
            return self.begin_drain();
        }
        if silent_for >= hung_after {
            let seconds = silent_for.as_secs();
            log::error!("the engine hangs: no sign of life for {seconds} s; the process ends");
            self.notifier.stopping("the engine hangs");
            self.phase = Phase::Hung;
            return self.stop();
        }
        let status = self.status();
        if status != self.told {
            self.notifier.status(&status);
            self.told = status;
        }
    }

    fn status(&self) -> String {
        let model = self.engine.model();
        let model = model.map_or_else(|| "no model".to_owned(), |model| model.id);
        let mut status = match self.engine.state() {
            State::Stalled { seconds } => format!("stalled: no step of the engine for {seconds} s"),
            State::Loading { percent } => format!("loading {model} again, {percent} %"),
            State::Failed(why) => format!("the engine has failed: {why}"),
            State::Ready => format!("serving {model}"),
        };
        status += &format!(" on {}", self.listeners.addresses().join(", "));
        if let Some(refusal) = &self.refusal {
            status += &format!("; the last reload was refused: {refusal}");
        }
        status
    }

    /// The loops themselves feed it: one that has not turned for too long stops the feeding.
    fn feed_watchdog(&self, rhythm: &mut Rhythm) {
        let Some(interval) = self.notifier.watchdog_interval() else {
            return;
        };
        let is_healthy = self.reactors.have_turned_within(interval);
        if is_healthy && rhythm.is_watchdog_due(interval, Instant::now()) {
            said_at_once(self.notifier.watchdog());
            self.metrics.watchdog_fed.inc();
        }
    }

    /// On a terminal or in a script, but not under a service manager: shows how to use the daemon.
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
        if self.phase == Phase::Hung {
            self.log.shutdown();
            // The engine's thread cannot be waited for, and destructors must not run beside it.
            process::exit_at_once(exit::SOFTWARE.0);
        }
        self.engine.drain();
        log::info!("stopped");
        self.log.shutdown();
        code
    }
}

/// A message that is sent again and again may be lost.
fn said_at_once(sent: io::Result<()>) {
    if let Err(error) = sent {
        log::debug!("the service manager was not told: {error}");
    }
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
        0 => Ok(most.min(limits::CONNECTIONS_MAX)),
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

/// Opens the database; on the very first start, returns a key to show.
fn open_store(state_dir: &Path) -> Result<Option<Bootstrap>, Failure> {
    let mut store = KeyStore::open_in(state_dir).map_err(|error| unusable_store(&error))?;
    store
        .bootstrap(state_dir, service::unix_seconds())
        .map_err(|error| unusable_store(&error))
}

fn unusable_store(error: &StoreError) -> Failure {
    Failure::new(
        exit::of_store(error),
        format!("the key store: {error}; --state-dir names another folder"),
    )
}

/// If a person reads the output, the key itself is shown, this once. Elsewhere it would stay in a
/// journal for ever, so only its file is named.
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
    limiter: &Arc<Limiter>,
    mailboxes: &[Sender<Message<Socket>>],
) -> Result<(StoreWatcher, Arc<KeyRing>), Failure> {
    let (limiter, mailboxes) = (Arc::clone(limiter), mailboxes.to_vec());
    let path = state_dir.join(DATABASE_FILE);
    let store = KeyStore::open(&path).map_err(|error| unusable_store(&error))?;
    let reopen = move || KeyStore::open_existing(&path).map(|store| Box::new(store) as _);
    StoreWatcher::start(Box::new(store), reopen, move |keys| {
        log::info!("{} keys are known", keys.len());
        limiter.keep(&keys);
        mailboxes
            .iter()
            .for_each(|mailbox| mailbox.post(Message::Keys(keys.clone())));
    })
    .map_err(|error| unusable_store(&error))
}

fn unusable_certificates(problems: &[Problem]) -> Failure {
    Failure::new(exit::CONFIG, lines(problems))
}

fn lines(problems: &[Problem]) -> String {
    let lines: Vec<_> = problems.iter().map(Problem::to_string).collect();
    lines.join("\n")
}
