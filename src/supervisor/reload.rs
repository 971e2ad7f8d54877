//! A reload: everything is read and checked again, and applied as a whole or not at all.
//!
//! Owns its order, and the messages to the service manager: RELOADING when it begins, READY with
//! the outcome in its status when it has ended. The files are read on another thread ([`reading`]).
//!
//! [`reading`]: super::reading

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use super::certificates::{self, Certificates};
use super::reading::Cause;
use super::{Daemon, Phase, lines};
use crate::config::{self, Loaded, Sources};
use crate::os::watch::FileWatch;
use crate::reactor::message::Message;

impl Daemon {
    pub(super) fn handle_file_change(&mut self) {
        match self.watch.as_mut().map(FileWatch::changed) {
            Some(Ok(true)) => self.reload("a file was saved"),
            Some(Err(error)) => {
                log::error!("watching the configuration's files: {error}; watching ends");
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
        self.store.refresh();
        let (sources, running) = (self.sources.clone(), self.certificates.clone());
        let begun = self
            .reading
            .begin(cause, move || read_anew(&sources, &running));
        if let Err(error) = begun {
            self.refuse_reload(
                cause,
                &format!("no thread can be started to read it: {error}"),
            );
            self.end_reload();
        }
    }

    /// Sends the new configuration to all reactors, or to none.
    pub(super) fn handle_reading(&mut self) {
        let Some((cause, fresh)) = self.reading.take() else {
            if let Some(cause) = self.reading.take_overdue(Instant::now()) {
                log::warn!("{cause}: the files are still being read; does their disk answer?");
            }
            return;
        };
        if self.is_ending() {
            return;
        }
        match fresh {
            Some(Ok((loaded, certificates))) => {
                let wrong = config::contradictions(&self.loaded.config, &loaded.config);
                match wrong.is_empty() {
                    true => self.put_in_force(cause, loaded, certificates),
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

    fn refuse_reload(&mut self, cause: &str, text: &str) {
        self.metrics.config_reloads(false).inc();
        log::error!("{cause}: the configuration stays as it was");
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

    fn put_in_force(&mut self, cause: &str, mut fresh: Loaded, certificates: Certificates) {
        self.metrics.config_reloads(true).inc();
        self.refusal = None;
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
}

/// Returns everything that a reload may change, or all errors in it. Runs on a thread that may wait
/// for a disk.
fn read_anew(sources: &Sources, running: &Certificates) -> Result<(Loaded, Certificates), String> {
    let loaded = config::load(sources).map_err(|errors| errors.to_string())?;
    match Certificates::load(&loaded.config, sources, Some(running)) {
        Ok(certificates) => Ok((loaded, certificates)),
        Err(problems) => Err(lines(&problems)),
    }
}

/// Returns the files that a reload reads: the configuration, and the certificates that it names.
fn watched_files(loaded: &Loaded, sources: &Sources) -> Vec<PathBuf> {
    let certificates = certificates::files(&loaded.config, sources);
    loaded.file.iter().cloned().chain(certificates).collect()
}

pub(super) fn watch_files(loaded: &Loaded, sources: &Sources) -> Option<FileWatch> {
    let files = watched_files(loaded, sources);
    if !loaded.config.server.watch_config || files.is_empty() {
        return None;
    }
    FileWatch::new(&files)
        .inspect_err(|error| log::error!("the configuration's files cannot be watched: {error}"))
        .ok()
}
