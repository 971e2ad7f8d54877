//! The destinations of log lines: stderr, a file, or the journal.
//!
//! Owns the file's descriptor and its path. Writes may block, so only the log's own thread calls
//! this.
//!
//! Invariants:
//!  1. A failed write loses nothing: the batch keeps the bytes that were not accepted. A disk that
//!     was full for an hour leaves neither a torn line nor a repeated one.
//!  2. After [`Output::reopen`] the old file is not written again; if reopening fails, it is kept.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::format::LogFormat;
use super::journald::{self, Journal};
use crate::limits::telemetry as limits;

/// How the log is written.
#[derive(Clone, Debug)]
pub struct Settings {
    pub level: log::LevelFilter,
    pub format: LogFormat,
    /// A file instead of the standard error stream.
    pub file: Option<PathBuf>,
    /// Whether each request has a line.
    pub access: bool,
}

#[derive(Debug)]
pub(super) enum Output {
    Stderr,
    File { path: PathBuf, file: File },
    Journal(Journal),
}

impl Output {
    pub(super) fn open(settings: &Settings) -> io::Result<Output> {
        match (&settings.file, settings.format) {
            (None, LogFormat::Journald) => {
                Journal::open(Path::new(journald::SOCKET)).map(Output::Journal)
            }
            (Some(_), LogFormat::Journald) => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "log.format = \"journald\" writes to the journal; remove log.file",
            )),
            (None, LogFormat::Text | LogFormat::Json) => Ok(Output::Stderr),
            (Some(path), LogFormat::Text | LogFormat::Json) => Ok(Output::File {
                file: open_file(path)?,
                path: path.clone(),
            }),
        }
    }

    /// Opens the file again, after `logrotate` has renamed the old one.
    pub(super) fn reopen(&mut self) -> io::Result<()> {
        if let Output::File { path, file } = self {
            *file = open_file(path)?;
        }
        Ok(())
    }

    /// Writes as much of `batch` as is accepted; after an error the rest stays in it.
    pub(super) fn write(&mut self, batch: &mut Batch) -> io::Result<()> {
        while !batch.is_empty() {
            let result = match self {
                Output::Stderr => io::stderr().lock().write(batch.rest()),
                Output::File { file, .. } => file.write(batch.rest()),
                Output::Journal(journal) => {
                    let entry = batch.first();
                    journal.send(entry).map(|()| entry.len())
                }
            };
            match result {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(bytes) => batch.accept(bytes),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Formatted lines that wait for their output.
#[derive(Debug)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    /// How many of `bytes` were accepted.
    start: usize,
    /// Where each line ends in `bytes`, for the output that takes lines one by one.
    ends: VecDeque<usize>,
}

impl Batch {
    /// Creates a batch with the room that it keeps, so that lines allocate nothing. Memory that no
    /// line has touched is not there yet.
    pub(super) fn new() -> Batch {
        Batch {
            bytes: Vec::with_capacity(limits::LOG_KEPT_BYTES),
            start: 0,
            ends: VecDeque::with_capacity(limits::LOG_KEPT_LINES),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.start == self.bytes.len()
    }

    /// Returns how many bytes it takes, with those that were accepted.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Appends a line, which has its end.
    pub(super) fn add(&mut self, line: &[u8]) {
        self.bytes.extend_from_slice(line);
        self.ends.push_back(self.bytes.len());
    }

    /// Frees what a burst has added to an empty batch.
    pub(super) fn shrink(&mut self) {
        self.bytes.shrink_to(limits::LOG_KEPT_BYTES);
        self.ends.shrink_to(limits::LOG_KEPT_LINES);
    }

    fn rest(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    fn first(&self) -> &[u8] {
        let end = self.ends.front().copied().unwrap_or(self.bytes.len());
        &self.bytes[self.start..end]
    }

    fn accept(&mut self, bytes: usize) {
        self.start += bytes;
        if self.is_empty() {
            self.bytes.clear();
            self.ends.clear();
            self.start = 0;
        }
        while self.ends.front().is_some_and(|end| *end <= self.start) {
            self.ends.pop_front();
        }
    }
}

/// Opens a file without ever waiting. Opening a FIFO only for writing would wait for a reader, at a
/// time when the daemon does not handle SIGTERM yet.
///
/// So a FIFO is opened for reading too, as rsyslog does. It then needs no reader, neither at the
/// start nor when the log's collector restarts: the kernel keeps as much as its pipe holds, then
/// refuses more, and waiting lines are kept, dropped and counted as with a full disk.
fn open_file(path: &Path) -> io::Result<File> {
    let is_fifo = fs::metadata(path).is_ok_and(|found| found.file_type().is_fifo());
    let opened = OpenOptions::new()
        // Appending keeps lines whole when `logrotate` copies and truncates.
        .append(true)
        .read(is_fifo)
        .create(true)
        .mode(0o640)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path);
    opened.map_err(|error| {
        let path_shown = path.display();
        // ENXIO: it cannot be opened for writing, like a socket. `/dev/stderr` is one under
        // systemd.
        let hint = match error.raw_os_error() {
            Some(libc::ENXIO) => {
                "it is a socket or a device; use a file or a FIFO, or remove log.file to log to \
                 stderr"
            }
            Some(libc::EISDIR) => "it is a folder; expected a file in it",
            _ => "its folder must exist and be writable",
        };
        let message = format!("cannot open the log file {path_shown}: {error}; {hint}");
        io::Error::new(error.kind(), message)
    })
}
