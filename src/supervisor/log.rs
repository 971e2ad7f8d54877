//! The log, as a part: the first to start, and the last to end.

use super::failure::Failure;
use super::part::{Birth, Part, Settings};
use crate::console::exit;
use crate::telemetry::log::{LogHandle, Settings as LogSettings, init};

pub struct Log(LogHandle);

impl Log {
    /// SIGUSR1: opens the file again, because it may have been rotated away.
    pub fn reopen(&self) {
        self.0.reopen();
    }

    /// Waits until everything that was queued is written, for a bounded time.
    pub fn flush(&self) {
        self.0.shutdown();
    }
}

impl Part for Log {
    fn start(birth: &mut Birth) -> Result<Log, Failure> {
        let log = &birth.config.log;
        let handle = init(&LogSettings {
            level: log.level,
            format: log.format,
            file: log.file.clone(),
            access: log.access,
        });
        let handle = handle
            .map_err(|error| Failure::new(exit::CANT_CREATE, format!("log.file: {error}")))?;
        for warning in birth.warnings.drain(..) {
            log::warn!("{warning}");
        }
        Ok(Log(handle))
    }

    fn apply(&mut self, settings: &Settings) {
        self.0.set_level(settings.config.log.level);
        self.0.set_access(settings.config.log.access);
    }

    fn join(&mut self) -> bool {
        log::info!("stopped");
        self.flush();
        true
    }
}
