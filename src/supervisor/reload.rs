//! A reload: everything is read and checked again, and applied as a whole or not at all.
//!
//! Owns its order, and the messages to the service manager: RELOADING when it begins, READY with
//! the outcome in its status when it has ended. The files are read on another thread ([`reading`]).
//!
//! [`reading`]: super::reading

use std::sync::Arc;
use std::time::Instant;

use super::daemon::{Daemon, Phase};
use super::files::{self, Fresh};
use super::metrics::{ReloadResult, SupervisorSeries};
use super::part::Settings;
use super::reading::Cause;
use crate::config::{self, Problem};
use crate::os::watch::FileWatch;

impl Daemon {
    pub(super) fn handle_file_change(&mut self) {
        match self.watch.as_mut().map(FileWatch::changed) {
            Some(Ok(true)) => self.reload("a file was saved"),
            Some(Err(error)) => {
                log::error!("cannot watch the configuration's files any longer: {error}");
                self.watch = None;
            }
            Some(Ok(false)) | None => {}
        }
    }

    /// Starts reading and checking everything; [`Daemon::handle_reading`] handles the result.
    pub(super) fn reload(&mut self, cause: Cause) {
        if self.is_ending() {
            return;
        }
        // A manager that waits for the first READY must not get it from a reload.
        if self.phase == Phase::Serving {
            self.notifier.reloading();
        }
        self.parts.keys.refresh();
        let (sources, running) = (self.sources.clone(), self.parts.certificates.acceptor());
        let begun = self
            .reading
            .begin(cause, move || files::read(&sources, running.as_deref()));
        if let Err(error) = begun {
            self.refuse_reload(
                cause,
                &format!("cannot start a thread to read the files: {error}"),
            );
            self.end_reload();
        }
    }

    /// Sends the new configuration to all reactors, or to none.
    pub(super) fn handle_reading(&mut self) {
        let Some((cause, fresh)) = self.reading.take() else {
            if let Some(cause) = self.reading.take_overdue(Instant::now()) {
                log::warn!(
                    "{cause}: the files are still being read; check that their disk responds"
                );
            }
            return;
        };
        if self.is_ending() {
            return;
        }
        match fresh {
            Some(Ok(fresh)) => {
                let wrong = config::contradictions(&self.loaded.config, &fresh.0.config);
                match wrong.is_empty() {
                    true => self.put_in_force(cause, fresh),
                    false => self.refuse_reload(cause, &wrong.join("\n")),
                }
            }
            Some(Err(text)) => self.refuse_reload(cause, &text),
            None => self.refuse_reload(cause, "a bug: reading the configuration panicked"),
        }
        match self.reading.take_again() {
            Some(cause) => self.reload(cause),
            None => self.end_reload(),
        }
    }

    fn count_reload(&self, result: ReloadResult) {
        let series = self.metrics.series::<SupervisorSeries>();
        series.reloads.get(result).inc();
    }

    fn refuse_reload(&mut self, cause: &str, text: &str) {
        self.count_reload(ReloadResult::Refused);
        log::error!("{cause}: reload refused; the old configuration stays in force");
        // A line break within a line would be escaped.
        text.lines().for_each(|line| log::error!("{line}"));
        self.refusal = text.lines().next().map(str::to_owned);
    }

    fn end_reload(&mut self) {
        if self.phase == Phase::Serving {
            self.told = self.status();
            self.notifier.ready(&self.told);
        }
    }

    fn put_in_force(&mut self, cause: &str, (mut fresh, acceptor): Fresh) {
        self.count_reload(ReloadResult::Succeeded);
        self.refusal = None;
        let changes = config::diff(&self.loaded.config, &fresh.config);
        let is_new = |warning: &&Problem| {
            let mut before = self.loaded.warnings.iter();
            !before.any(|one| one.message == warning.message)
        };
        let warnings: Vec<String> = fresh
            .warnings
            .iter()
            .filter(is_new)
            .map(Problem::brief)
            .collect();
        fresh.config = config::reloaded(&self.loaded.config, &fresh.config);
        let settings = Settings {
            config: Arc::new(fresh.config.clone()),
            acceptor,
        };
        // After the last reactor has them: a connection that is opened after this line finds the
        // new settings.
        self.parts.apply(&settings, || {
            log::info!("{cause}: {}", config::summary(&changes));
            warnings.iter().for_each(|warning| log::warn!("{warning}"));
        });
        self.loaded = fresh;
        if let Some(watch) = &mut self.watch {
            let files = files::of(&self.loaded, &self.sources);
            if let Err(error) = watch.watch(&files) {
                log::error!("cannot watch the configuration's files any longer: {error}");
                self.watch = None;
            }
        }
    }
}
