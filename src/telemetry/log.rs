//! The `log` crate's logger: a bounded queue, and one thread that writes.
//!
//! A caller formats its line and tries to queue the bytes. If the queue is full, the line is
//! dropped and counted; a caller never waits for a disk, a terminal or a journal. The thread takes
//! all queued lines at once, and writes them with one call.
//!
//! Between two batches the thread lingers for a moment. If it waited for lines, the next caller
//! would pay a system call to wake it: at full load one per request. This way it is at most one per
//! linger, and one per `limits::LOG_BATCH_BYTES`.
//!
//! The thread's states: idle (waits for lines and commands), lingering (lines were written),
//! retrying (the output refuses: the batch is kept, the queue fills behind it, callers drop and
//! count).
//!
//! Invariants:
//!  1. Queueing never waits for an output and never fails for the caller.
//!  2. Each line is written once, dropped and counted once, or still on its way.
//!  3. The thread logs nothing through itself: its own messages go into its own batch.
//!
//! Mutations that the tests below catch: a batch that is given up after a failed write, a flush
//! that is acknowledged although the output refuses, drops that the log does not report, the mark
//! of a batch for an idle thread.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use crossbeam_channel::bounded;
use log::{Level, LevelFilter, Metadata, Record};

use super::format::{Formatter, LogFormat};
use super::line::{Head, Kind, Line};
pub use super::output::Settings;
use super::output::{Batch, Output};
use super::queue::{Command, NEVER, Queue, Woken};
use crate::limits::telemetry as limits;
use crate::os::process::give_way;

/// The installed logger. `log` requires a `'static` one.
static LOGGER: OnceLock<Logger> = OnceLock::new();

/// Starts the writer's thread and installs the logger, once for the process.
///
/// The thread inherits the signal mask, so the caller must first block the signals that other
/// threads must not take.
pub fn init(settings: &Settings) -> io::Result<LogHandle> {
    let already = || io::Error::new(io::ErrorKind::AlreadyExists, "a logger is installed");
    if LOGGER.get().is_some() {
        return Err(already());
    }
    let (logger, handle) = start(settings, Output::open(settings)?)?;
    LOGGER.set(logger).map_err(|_| already())?;
    // `set` has just succeeded.
    let logger = LOGGER.get().ok_or_else(already)?;
    log::set_logger(logger).map_err(|_| already())?;
    handle.set_level(settings.level);
    Ok(handle)
}

/// Returns how many lines were dropped since the start because the queue was full.
pub fn dropped() -> u64 {
    LOGGER
        .get()
        .map_or(0, |logger| logger.shared.queue.dropped())
}

/// Returns how many writes failed since the start. Each is retried.
pub fn write_errors() -> u64 {
    LOGGER.get().map_or(0, |logger| {
        logger.shared.write_errors.load(Ordering::Relaxed)
    })
}

/// Controls the logger. Dropping it changes nothing.
#[derive(Clone, Debug)]
pub struct LogHandle {
    shared: Arc<Shared>,
}

impl LogHandle {
    /// Opens the file again, on SIGUSR1.
    pub fn reopen(&self) {
        // A full queue already holds a request to reopen.
        self.shared.queue.command(Command::Reopen);
    }

    pub fn set_level(&self, level: LevelFilter) {
        log::set_max_level(level);
    }

    /// Switches access lines. They have level info, so `warn` silences them too.
    pub fn set_access(&self, access: bool) {
        self.shared.access.store(access, Ordering::Relaxed);
    }

    /// Waits until all queued lines are written, within `limits::LOG_FLUSH_TIMEOUT`; returns
    /// whether they were. The last act of the daemon.
    pub fn shutdown(&self) -> bool {
        flush(&self.shared.queue, limits::LOG_FLUSH_TIMEOUT)
    }
}

/// Queues lines. The installed logger is reached through `log`'s macros and [`access_logger`].
#[derive(Debug)]
pub(super) struct Logger {
    format: LogFormat,
    shared: Arc<Shared>,
}

impl Logger {
    pub(super) fn format(&self) -> LogFormat {
        self.format
    }

    /// Queues a line that has its end.
    pub(super) fn queue(&self, line: &[u8]) {
        self.shared.queue.push(line);
    }
}

impl Drop for Logger {
    fn drop(&mut self) {
        self.shared.queue.close();
    }
}

impl log::Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            self.queue(&format_record(record, self.format));
        }
    }

    fn flush(&self) {
        flush(&self.shared.queue, limits::LOG_FLUSH_TIMEOUT);
    }
}

fn format_record(record: &Record<'_>, format: LogFormat) -> Vec<u8> {
    let mut out = Vec::with_capacity(limits::LOG_LINE_BYTES_TYPICAL);
    let head = Head {
        place: record.file_static().zip(record.line()),
        ..Head::now(record.level(), record.target())
    };
    let mut line = Line::begin(&mut Formatter::new(format), &head, &mut out);
    line.message(*record.args());
    // A visitor that fails has already written what it could.
    let _ = record.key_values().visit(&mut line);
    line.end();
    out
}

/// Returns the installed logger if access lines are switched on.
pub(super) fn access_logger() -> Option<&'static Logger> {
    let logger = LOGGER.get()?;
    let wanted = logger.shared.access.load(Ordering::Relaxed) && Level::Info <= log::max_level();
    wanted.then_some(logger)
}

#[derive(Debug)]
struct Shared {
    queue: Queue,
    write_errors: AtomicU64,
    access: AtomicBool,
}

fn flush(queue: &Queue, patience: Duration) -> bool {
    let (done, wait) = bounded(1);
    queue.command(Command::Flush(done)) && wait.recv_timeout(patience).is_ok()
}

/// Creates a logger and starts its thread, without installing it.
fn start(settings: &Settings, output: Output) -> io::Result<(Logger, LogHandle)> {
    let shared = Arc::new(Shared {
        queue: Queue::default(),
        write_errors: AtomicU64::new(0),
        access: AtomicBool::new(settings.access),
    });
    let writer = Writer {
        shared: shared.clone(),
        formatter: Formatter::new(settings.format),
        output,
        batch: Batch::new(),
        next: Next::Idle,
        reported_drops: 0,
    };
    thread::Builder::new().name("log".to_owned()).spawn(|| {
        // No client waits for a line.
        give_way();
        writer.run();
    })?;
    let handle = LogHandle {
        shared: shared.clone(),
    };
    let logger = Logger {
        format: settings.format,
        shared,
    };
    Ok((logger, handle))
}

/// The thread's own state.
struct Writer {
    shared: Arc<Shared>,
    formatter: Formatter,
    output: Output,
    /// What the output has not accepted yet.
    batch: Batch,
    next: Next,
    /// How many drops the log itself has reported.
    reported_drops: u64,
}

/// How the thread waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Idle,
    Linger,
    Retry,
}

impl Writer {
    fn run(mut self) {
        loop {
            match self.wait() {
                Woken::Lines => self.write_queued(),
                Woken::Command(Command::Reopen) => self.reopen(),
                Woken::Command(Command::Flush(done)) => {
                    self.write_queued();
                    if self.next != Next::Retry {
                        // The requester may have stopped waiting.
                        let _ = done.try_send(());
                    }
                }
                Woken::Closed => return self.write_queued(),
            }
        }
    }

    fn wait(&self) -> Woken {
        let (mark, patience) = match self.next {
            Next::Idle => (1, None),
            Next::Linger => (limits::LOG_BATCH_BYTES, Some(limits::LOG_LINGER)),
            Next::Retry => (NEVER, Some(limits::LOG_RETRY_INTERVAL)),
        };
        self.shared.queue.wait(mark, patience)
    }

    /// Writes what an output refused before, and what is queued now. Lines that come meanwhile wait
    /// for the next round; otherwise a flood would delay commands.
    fn write_queued(&mut self) {
        self.next = Next::Idle;
        self.write_batch();
        if self.next == Next::Retry {
            return;
        }
        self.shared.queue.take(&mut self.batch);
        self.report_drops();
        self.write_batch();
    }

    fn write_batch(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        self.next = Next::Linger;
        if self.output.write(&mut self.batch).is_err() {
            // Not reported through the log, which is failing; the metric shows it.
            self.shared.write_errors.fetch_add(1, Ordering::Relaxed);
            self.next = Next::Retry;
        }
    }

    /// Reports dropped lines behind those that were not.
    fn report_drops(&mut self) {
        let dropped = self.shared.queue.dropped();
        let news = dropped - self.reported_drops;
        if news == 0 {
            return;
        }
        self.reported_drops = dropped;
        let message = format_args!("{news} log lines dropped: the queue was full");
        let mut digits = itoa::Buffer::new();
        let field = (Kind::StatedRaw, "dropped", digits.format(news));
        self.append(Level::Warn, message, Some(field));
    }

    fn reopen(&mut self) {
        // The old file gets the lines that were logged before.
        self.write_queued();
        if let Err(error) = self.output.reopen() {
            let message =
                format_args!("cannot reopen the log file, so the old one stays in use: {error}");
            self.append(Level::Error, message, None);
        }
        self.write_queued();
    }

    /// Adds a line of the thread's own.
    fn append(
        &mut self,
        level: Level,
        message: std::fmt::Arguments<'_>,
        field: Option<(Kind, &str, &str)>,
    ) {
        let mut out = Vec::new();
        let head = Head::now(level, module_path!());
        let mut line = Line::begin(&mut self.formatter, &head, &mut out);
        line.message(message);
        if let Some((kind, key, value)) = field {
            line.field(kind, key, value);
        }
        line.end();
        self.batch.add(&out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixDatagram;
    use std::path::Path;

    /// Far above the expected time; reached only by a failure. The thread has a low priority.
    const PATIENCE: Duration = Duration::from_secs(60);

    fn settings(file: Option<&Path>, format: LogFormat) -> Settings {
        Settings {
            level: LevelFilter::Info,
            format,
            file: file.map(Path::to_owned),
            access: true,
        }
    }

    fn start_file(path: &Path) -> (Logger, LogHandle) {
        let settings = settings(Some(path), LogFormat::Text);
        start(&settings, Output::open(&settings).unwrap()).unwrap()
    }

    impl LogHandle {
        /// Returns whether all queued lines are written; `false` once the output has refused them.
        fn flush(&self) -> bool {
            flush(&self.shared.queue, PATIENCE)
        }
    }

    impl Logger {
        fn line(&self, number: usize) {
            self.line_with(number, "");
        }

        fn line_with(&self, number: usize, more: &str) {
            let mut record = Record::builder();
            record.level(Level::Info).target("test");
            let message = format_args!("line {number}.{more}");
            let line = format_record(&record.args(message).build(), self.format);
            self.queue(&line);
        }
    }

    #[test]
    fn lines_come_in_order_and_a_rotated_file_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let (logger, handle) = start_file(&path);
        for number in 0..100 {
            logger.line(number);
        }
        assert!(handle.flush());
        let rotated = folder.path().join("log.1");
        fs::rename(&path, &rotated).unwrap();
        handle.reopen();
        assert!(handle.flush(), "commands are served in order");
        logger.line(100);
        assert!(handle.flush());

        let old = fs::read_to_string(&rotated).unwrap();
        assert_eq!(old.lines().count(), 100);
        for (number, found) in old.lines().enumerate() {
            assert!(
                found.ends_with(&format!(" INFO  test: line {number}.")),
                "{found}"
            );
        }
        assert!(fs::read_to_string(&path).unwrap().ends_with("line 100.\n"));
    }

    /// `/dev/full` fails every write with ENOSPC, as a full disk does.
    #[test]
    fn a_full_disk_blocks_no_caller_and_every_lost_line_is_counted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        symlink("/dev/full", &path).unwrap();
        let (logger, handle) = start_file(&path);
        logger.line(0);
        assert!(!handle.flush(), "nothing can be written");
        assert!(handle.shared.write_errors.load(Ordering::Relaxed) > 0);

        // The thread holds line 0; the queue holds up to its bound; the rest is dropped.
        let long = "x".repeat(8_192);
        let sent = limits::LOG_QUEUE_BYTES_MAX / long.len() * 2;
        for number in 1..sent {
            logger.line_with(number, &long);
        }
        let dropped = handle.shared.queue.dropped() as usize;
        assert!(dropped > 0);

        fs::remove_file(&path).unwrap();
        handle.reopen();
        assert!(handle.flush());
        let text = fs::read_to_string(&path).unwrap();
        let written = text
            .lines()
            .filter(|line| line.contains(" test: line "))
            .count();
        assert_eq!(written + dropped, sent, "each line is written or counted");
        let told: usize = text
            .lines()
            .filter_map(|line| line.split_once(": ")?.1.strip_suffix(" the queue was full"))
            .map(|told| told.split(' ').next().unwrap().parse::<usize>().unwrap())
            .sum();
        assert_eq!(told, dropped, "and the log itself tells");
    }

    #[test]
    fn a_file_that_cannot_be_opened_again_leaves_the_old_one_in_use() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("inner");
        let outer = folder.path().join("outer");
        fs::create_dir(&inner).unwrap();
        let (logger, handle) = start_file(&inner.join("log"));
        fs::rename(&inner, &outer).unwrap();
        handle.reopen();
        assert!(handle.flush(), "commands are served in order");
        logger.line(7);
        assert!(handle.flush());
        let text = fs::read_to_string(outer.join("log")).unwrap();
        assert!(text.contains("so the old one stays in use"), "{text}");
        assert!(text.ends_with("line 7.\n"));
    }

    #[test]
    fn the_journal_gets_one_datagram_per_line_and_may_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let settings = settings(None, LogFormat::Journald);
        let missing = super::super::journald::Journal::open(&path);
        assert!(
            missing
                .unwrap_err()
                .to_string()
                .contains("cannot reach the journal")
        );

        let mut buffer = [0; 4096];
        let mut receive = |journal: &UnixDatagram| {
            let length = journal.recv(&mut buffer).unwrap();
            String::from_utf8(buffer[..length].to_vec()).unwrap()
        };
        let journal = UnixDatagram::bind(&path).unwrap();
        // No flush wakes the thread: its lines must.
        journal.set_read_timeout(Some(PATIENCE)).unwrap();
        let output = Output::Journal(super::super::journald::Journal::open(&path).unwrap());
        let (logger, handle) = start(&settings, output).unwrap();
        logger.line(1);
        logger.line(2);
        assert!(receive(&journal).contains("\nMESSAGE=line 1.\n"));
        assert!(receive(&journal).contains("\nMESSAGE=line 2.\n"));

        drop(journal);
        fs::remove_file(&path).unwrap();
        logger.line(3);
        assert!(!handle.flush());
        let journal = UnixDatagram::bind(&path).unwrap();
        journal.set_read_timeout(Some(PATIENCE)).unwrap();
        assert!(receive(&journal).contains("\nMESSAGE=line 3.\n"));
    }

    #[test]
    fn a_journal_and_a_file_exclude_each_other() {
        let settings = settings(Some(Path::new("/nonexistent/log")), LogFormat::Journald);
        let error = Output::open(&settings).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
