//! The running daemon, from the supervisor's side: parts with threads of their own, and a loop on
//! the main thread that waits for signals, saved files and the end of reactors.
//!
//! Owns the phase of the daemon's life, and the last status that the service manager received.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::failure::Failure;
use super::files::{self, Fresh};
use super::household::Household;
use super::keys::show_bootstrap_key;
use super::metrics::SupervisorSeries;
use super::part::{Birth, Part};
use super::parts::Parts;
use super::reading::Reading;
use super::remaining::{Remaining, is_same_wish};
use super::rhythm::Rhythm;
use super::vigil::Vigil;
use crate::config::{Loaded, LogFormat, Sources};
use crate::console::exit;
use crate::engine::State;
use crate::limits::supervisor as limits;
use crate::os::notify::Notifier;
use crate::os::signals::{self, Signal, Signals};
use crate::os::wait::wait_readable;
use crate::os::watch::FileWatch;
use crate::os::{memory, process};
use crate::telemetry::metrics::Metrics;

/// The daemon's parts, as its supervisor sees them.
pub struct Daemon {
    pub(super) sources: Sources,
    pub(super) loaded: Loaded,
    signals: Signals,
    pub(super) watch: Option<FileWatch>,
    pub(super) notifier: Notifier,
    pub(super) metrics: Metrics,
    pub(super) parts: Parts,
    pub(super) reading: Reading<Result<Fresh, String>>,
    vigil: Vigil,
    household: Household,
    /// Why the last reload was refused, until one succeeds.
    pub(super) refusal: Option<String>,
    /// The last status that was sent to the service manager.
    pub(super) told: String,
    /// The signal that began the drain, and its time.
    drained_by: Option<(Signal, Instant)>,
    /// The end of the drain's time, once there is a drain.
    drain_until: Option<Instant>,
    pub(super) phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Loading,
    Serving,
    Draining,
    /// The engine's thread will not end: everything else ends, then the process.
    Hung,
}

impl Daemon {
    pub fn start(sources: &Sources, loaded: Loaded) -> Result<Daemon, Failure> {
        signals::block().map_err(|error| Failure::os("blocking signals", &error))?;
        let signals = Signals::new().map_err(|error| Failure::os("signalfd", &error))?;
        memory::return_large_blocks();
        let mut notifier = Notifier::from_environment()
            .map_err(|error| Failure::os("the service manager's socket", &error))?;
        let heartbeat = notifier.watchdog_interval().map(|interval| interval / 2);
        let mut birth = Birth::new(&loaded, sources, heartbeat);
        let mut parts = Parts::start(&mut birth)?;
        for address in parts.listeners.addresses() {
            log::info!("listening on {address}");
        }
        parts.listeners.store_in(&mut notifier);
        if let Some(bootstrap) = &birth.bootstrap {
            let log = &loaded.config.log;
            let is_plain = log.format == LogFormat::Text && log.file.is_none();
            show_bootstrap_key(bootstrap, is_plain && !notifier.is_active());
        }
        Ok(Daemon {
            sources: sources.clone(),
            signals,
            watch: files::watch(&loaded, sources),
            loaded,
            notifier,
            metrics: birth.metrics.clone(),
            parts,
            reading: Reading::new().map_err(|error| Failure::os("a pipe", &error))?,
            vigil: Vigil::new(Instant::now()),
            household: Household::new(&birth.metrics),
            refusal: None,
            told: String::new(),
            drained_by: None,
            drain_until: None,
            phase: Phase::Loading,
        })
    }

    /// Waits for signals, changes of the file and the end of the reactors, until all have ended.
    pub fn supervise(mut self) -> exit::Code {
        let mut rhythm = Rhythm::new(Instant::now());
        self.parts.certificates.look(&self.metrics);
        self.household.look(Instant::now());
        while self.parts.reactors.are_running() {
            if let Err(error) = self.wait() {
                log::error!("the supervisor's poll failed: {error}");
                self.stop();
                break;
            }
            self.handle_signals();
            self.handle_file_change();
            self.handle_reading();
            self.parts.certificates.look(&self.metrics);
            self.household.look(Instant::now());
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
        let look = self.parts.certificates.until_next_look();
        let others = [watchdog.map(|interval| interval / 2), retry, look];
        let patience = others.into_iter().flatten().fold(tick, Duration::min);
        let (ends, signals) = (self.parts.reactors.ends(), self.signals.as_fd());
        let read = self.reading.as_fd();
        let somebody_ended = match &self.watch {
            Some(watch) => wait_readable([ends, signals, read, watch.as_fd()], Some(patience))?[0],
            None => wait_readable([ends, signals, read], Some(patience))?[0],
        };
        if somebody_ended {
            self.parts.reactors.count_ends()?;
            if !self.is_ending() {
                log::error!("a reactor ended unexpectedly; stopping the daemon");
                self.stop();
            }
        }
        Ok(())
    }

    pub(super) fn is_ending(&self) -> bool {
        matches!(self.phase, Phase::Draining | Phase::Hung)
    }

    fn handle_signals(&mut self) {
        loop {
            match self.signals.next_pending() {
                Ok(None) => return,
                Ok(Some(Signal::Hangup)) => self.reload("SIGHUP"),
                Ok(Some(Signal::User1)) => {
                    self.parts.log.reopen();
                    match &self.loaded.config.log.file {
                        Some(path) => log::info!("SIGUSR1: reopened {}", path.display()),
                        None => {
                            log::info!("SIGUSR1: log.file is not set; there is nothing to reopen")
                        }
                    }
                }
                Ok(Some(signal @ (Signal::Terminate | Signal::Interrupt))) => {
                    self.handle_end_signal(signal, Instant::now());
                }
                Err(error) => return log::error!("cannot read a signal: {error}"),
            }
        }
    }

    /// The first signal drains, the second stops. SIGTERM and SIGINT together count as one.
    fn handle_end_signal(&mut self, signal: Signal, now: Instant) {
        if self.drained_by.is_none() {
            self.drained_by = Some((signal, now));
            // The first signal ends a drain that has another cause.
            return match self.phase {
                Phase::Loading | Phase::Serving => self.begin_drain(),
                Phase::Draining | Phase::Hung => self.stop(),
            };
        }
        if !is_same_wish(self.drained_by, signal, now) {
            log::warn!("second signal: exiting at once");
            self.stop();
        }
    }

    fn begin_drain(&mut self) {
        self.phase = Phase::Draining;
        let patience = self.loaded.config.server.drain_timeout;
        self.drain_until = Some(Instant::now() + patience);
        // Before the log line: a connection that is opened after it finds a reactor that drains.
        self.parts.drain(patience);
        self.notifier.stopping("draining");
        log::info!(
            "draining: running requests have {} s to finish",
            patience.as_secs_f32()
        );
    }

    /// Cuts off running requests.
    fn stop(&mut self) {
        if self.phase != Phase::Hung {
            self.phase = Phase::Draining;
        }
        self.drain_until = Some(Instant::now());
        self.parts.reactors.stop();
    }

    fn note_readiness(&mut self, rhythm: &mut Rhythm) {
        if self.phase != Phase::Loading {
            return;
        }
        match self.parts.engine.state() {
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
                log::error!("cannot start the engine: {cause}");
                lines.for_each(|line| log::error!("{line}"));
                self.begin_drain();
            }
        }
    }

    /// An engine that has failed ends the daemon, and so does one that hangs: only a new process
    /// helps, and the service manager starts one.
    fn watch_engine(&mut self) {
        let silent_for = self.vigil.look(&self.parts.engine.gauges(), Instant::now());
        if self.phase != Phase::Serving {
            return;
        }
        let hung_after = self.loaded.config.engine.stall_timeout * limits::ENGINE_HUNG_STALLS;
        if let State::Failed(why) = self.parts.engine.state() {
            log::error!("the engine has failed: {why}; stopping the daemon");
            return self.begin_drain();
        }
        if silent_for >= hung_after {
            let seconds = silent_for.as_secs();
            log::error!("the engine hangs: no sign of life for {seconds} s; ending the process");
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

    pub(super) fn status(&self) -> String {
        let model = self.parts.engine.model();
        let model = model.map_or_else(|| "no model".into(), |model| model.id);
        let mut status = match self.parts.engine.state() {
            State::Stalled { seconds } => {
                format!("stalled: no progress of the engine for {seconds} s")
            }
            State::Loading { percent } => format!("reloading {model}, {percent} %"),
            State::Failed(why) => format!("the engine has failed: {why}"),
            State::Ready => format!("serving {model}"),
        };
        status += &format!(" on {}", self.parts.listeners.addresses().join(", "));
        if self.parts.bus.is_connected() == Some(false) {
            status += "; the bus to other daemons is lost";
        }
        if let Some(refusal) = &self.refusal {
            status += &format!("; the last reload was refused: {refusal}");
        }
        status
    }

    /// The loops themselves feed the watchdog: one that has not turned for too long stops the
    /// feeding.
    fn feed_watchdog(&self, rhythm: &mut Rhythm) {
        let Some(interval) = self.notifier.watchdog_interval() else {
            return;
        };
        let is_healthy = self.parts.reactors.have_turned_within(interval);
        if is_healthy && rhythm.is_watchdog_due(interval, Instant::now()) {
            said_at_once(self.notifier.watchdog());
            self.metrics.series::<SupervisorSeries>().watchdog_fed.inc();
        }
    }

    /// Shows how to use the daemon: on a terminal and in a script, but not under a service manager.
    fn show_first_steps(&self) {
        if self.notifier.is_active() || self.loaded.config.log.format != LogFormat::Text {
            return;
        }
        if let Some(text) = self
            .parts
            .listeners
            .first_steps(&self.loaded.config.state_dir)
        {
            log::logger().flush();
            let _ = io::stderr().write_all(text.as_bytes());
        }
    }

    /// Ends the other parts after the reactors, the log last.
    fn finish(mut self) -> exit::Code {
        if self.phase == Phase::Hung {
            self.parts.reactors.join();
            self.parts.log.flush();
            // The engine's thread cannot be waited for, and its destructors must not run beside it.
            process::exit_at_once(exit::SOFTWARE.0);
        }
        let has_failed = matches!(self.parts.engine.state(), State::Failed(_));
        let mut remaining = Remaining {
            signals: &mut self.signals,
            drained_by: self.drained_by,
            until: self.drain_until.unwrap_or_else(Instant::now),
        };
        let is_good = (self.parts).join(&mut || remaining.is_over(Instant::now()));
        match (is_good, has_failed) {
            (false, _) => exit::SOFTWARE,
            (true, true) => exit::UNAVAILABLE,
            (true, false) => exit::OK,
        }
    }
}

/// Ignores a failure, except for the debug log: this message is sent again and again, so one may be
/// lost.
fn said_at_once(sent: io::Result<()>) {
    if let Err(error) = sent {
        log::debug!("cannot notify the service manager: {error}");
    }
}
