//! The `log` crate's logger: a bounded queue, and one thread that writes.
//!
//! A caller builds a line and tries to queue it. If the queue is full, the line is dropped and
//! counted; a caller never waits for a disk, a terminal or a journal. The thread takes all queued
//! lines, formats them into one buffer and writes that at once.
//!
//! Between two batches the thread lingers for a moment, waiting for commands instead of lines. If
//! it waited for lines, the next caller would pay a system call to wake it: at full load one per
//! request. This way it is at most one per linger.
//!
//! The thread's states: idle (waits for lines and commands), lingering (lines were written),
//! retrying (the output refuses: the batch is kept, the queue fills behind it, callers drop and
//! count).
//!
//! Invariants:
//!  1. Queueing never blocks and never fails for the caller.
//!  2. Each line is written once, dropped and counted once, or still on its way.
//!  3. The thread logs nothing through itself: its own messages go into its own batch.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, select};
use log::{Level, LevelFilter, Metadata, Record};

use super::format::Formatter;
use super::line::{Kind, Line};
pub use super::output::Settings;
use super::output::{Batch, Output};
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
        .map_or(0, |logger| logger.shared.dropped.load(Ordering::Relaxed))
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
    commands: Sender<Command>,
    shared: Arc<Shared>,
}

impl LogHandle {
    /// Opens the file again, on SIGUSR1.
    pub fn reopen(&self) {
        // A full channel already holds a request to reopen.
        let _ = self.commands.try_send(Command::Reopen);
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
        flush(&self.commands)
    }
}

/// Queues lines. The installed logger is reached through `log`'s macros and [`access_logger`].
#[derive(Debug)]
pub(super) struct Logger {
    lines: Sender<Line>,
    commands: Sender<Command>,
    shared: Arc<Shared>,
}

impl Logger {
    pub(super) fn queue(&self, line: Line) {
        if self.lines.try_send(line).is_err() {
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl log::Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            self.queue(Line::from_record(record));
        }
    }

    fn flush(&self) {
        flush(&self.commands);
    }
}

/// Returns the installed logger if access lines are switched on.
pub(super) fn access_logger() -> Option<&'static Logger> {
    let logger = LOGGER.get()?;
    let wanted = logger.shared.access.load(Ordering::Relaxed) && Level::Info <= log::max_level();
    wanted.then_some(logger)
}

#[derive(Debug)]
struct Shared {
    dropped: AtomicU64,
    write_errors: AtomicU64,
    access: AtomicBool,
}

#[derive(Debug)]
enum Command {
    Reopen,
    /// Acknowledged once everything that was queued before is written, unless the output refuses.
    Flush(Sender<()>),
}

fn flush(commands: &Sender<Command>) -> bool {
    let deadline = Instant::now() + limits::LOG_FLUSH_TIMEOUT;
    let (done, wait) = bounded(1);
    commands
        .send_deadline(Command::Flush(done), deadline)
        .is_ok()
        && wait.recv_deadline(deadline).is_ok()
}

/// Creates a logger and starts its thread, without installing it.
fn start(settings: &Settings, output: Output) -> io::Result<(Logger, LogHandle)> {
    let (lines, line_receiver) = bounded(limits::LOG_QUEUE_LINES_MAX);
    let (commands, command_receiver) = bounded(limits::LOG_QUEUE_COMMANDS_MAX);
    let shared = Arc::new(Shared {
        dropped: AtomicU64::new(0),
        write_errors: AtomicU64::new(0),
        access: AtomicBool::new(settings.access),
    });
    let writer = Writer {
        lines: line_receiver,
        commands: command_receiver,
        shared: shared.clone(),
        formatter: Formatter::new(settings.format),
        output,
        batch: Batch::default(),
        next: Next::Idle,
        reported_drops: 0,
    };
    thread::Builder::new().name("log".to_owned()).spawn(|| {
        // The lines of a whole batch are formatted at once, and no client waits for them.
        give_way();
        writer.run();
    })?;
    let handle = LogHandle {
        commands: commands.clone(),
        shared: shared.clone(),
    };
    let logger = Logger {
        lines,
        commands,
        shared,
    };
    Ok((logger, handle))
}

/// The thread's own state.
struct Writer {
    lines: Receiver<Line>,
    commands: Receiver<Command>,
    shared: Arc<Shared>,
    formatter: Formatter,
    output: Output,
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

/// The reason why a wait ended.
enum Woken {
    Lines,
    Command(Command),
    /// All senders are gone.
    Orphaned,
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
                Woken::Orphaned => return self.write_queued(),
            }
        }
    }

    fn wait(&mut self) -> Woken {
        match self.next {
            Next::Linger => self.wait_for_command(limits::LOG_LINGER),
            Next::Retry => self.wait_for_command(limits::LOG_RETRY_INTERVAL),
            Next::Idle => {
                let line = select! {
                    recv(self.lines) -> line => line,
                    recv(self.commands) -> command => {
                        return command.map_or(Woken::Orphaned, Woken::Command);
                    }
                };
                line.map_or(Woken::Orphaned, |line| {
                    self.append(&line);
                    Woken::Lines
                })
            }
        }
    }

    fn wait_for_command(&self, patience: Duration) -> Woken {
        match self.commands.recv_timeout(patience) {
            Ok(command) => Woken::Command(command),
            Err(RecvTimeoutError::Timeout) => Woken::Lines,
            Err(RecvTimeoutError::Disconnected) => Woken::Orphaned,
        }
    }

    /// Writes the lines queued now, batch by batch, until the output refuses.
    fn write_queued(&mut self) {
        // Lines that come meanwhile wait for the next round; otherwise a flood would delay
        // commands.
        let mut remaining = self.lines.len();
        self.next = Next::Idle;
        loop {
            remaining = self.collect(remaining);
            self.report_drops();
            if self.batch.is_empty() {
                return;
            }
            self.next = Next::Linger;
            if self.output.write(&mut self.batch).is_err() {
                // Not reported through the log, which is failing; the metric shows it.
                self.shared.write_errors.fetch_add(1, Ordering::Relaxed);
                self.next = Next::Retry;
                return;
            }
            if remaining == 0 {
                return;
            }
        }
    }

    /// Formats up to `remaining` lines into the batch, as far as it has room. Returns the rest.
    fn collect(&mut self, mut remaining: usize) -> usize {
        while remaining > 0 && self.batch.bytes.len() < limits::LOG_BATCH_BYTES_MAX {
            let Ok(line) = self.lines.try_recv() else {
                return 0;
            };
            self.append(&line);
            remaining -= 1;
        }
        remaining
    }

    /// Reports dropped lines as soon as there is room.
    fn report_drops(&mut self) {
        let dropped = self.shared.dropped.load(Ordering::Relaxed);
        let news = dropped - self.reported_drops;
        if news == 0 || self.batch.bytes.len() >= limits::LOG_BATCH_BYTES_MAX {
            return;
        }
        self.reported_drops = dropped;
        let message = format_args!("{news} log lines dropped: the queue was full");
        let mut line = Line::new(Level::Warn, module_path!(), message);
        line.field(Kind::StatedRaw, "dropped", news);
        self.append(&line);
    }

    fn reopen(&mut self) {
        // The old file gets the lines that were logged before.
        self.write_queued();
        if let Err(error) = self.output.reopen() {
            let message =
                format_args!("cannot reopen the log file, so the old one stays in use: {error}");
            self.append(&Line::new(Level::Error, module_path!(), message));
        }
        self.write_queued();
    }

    fn append(&mut self, line: &Line) {
        self.formatter.append(line, &mut self.batch.bytes);
        self.batch.end_line();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::LogFormat;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixDatagram;
    use std::path::Path;

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

    fn line(number: usize) -> Line {
        Line::new(Level::Info, "test", format_args!("line {number}."))
    }

    #[test]
    fn lines_come_in_order_and_a_rotated_file_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let (logger, handle) = start_file(&path);
        for number in 0..100 {
            logger.queue(line(number));
        }
        assert!(handle.shutdown());
        let rotated = folder.path().join("log.1");
        fs::rename(&path, &rotated).unwrap();
        handle.reopen();
        assert!(handle.shutdown(), "commands are served in order");
        logger.queue(line(100));
        assert!(handle.shutdown());

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
        logger.queue(line(0));
        assert!(!handle.shutdown(), "nothing can be written");
        assert!(handle.shared.write_errors.load(Ordering::Relaxed) > 0);

        // The thread holds line 0, and up to a batch more; the queue holds up to its bound; the
        // rest is dropped.
        let sent = limits::LOG_QUEUE_LINES_MAX * 4;
        for number in 1..sent {
            logger.queue(line(number));
        }
        let dropped = handle.shared.dropped.load(Ordering::Relaxed) as usize;
        assert!(dropped > 0);

        fs::remove_file(&path).unwrap();
        handle.reopen();
        assert!(handle.shutdown());
        assert!(
            handle.shutdown(),
            "a batch that is full tells of drops in the next one"
        );
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
        assert!(handle.shutdown(), "commands are served in order");
        logger.queue(line(7));
        assert!(handle.shutdown());
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
        let output = Output::Journal(super::super::journald::Journal::open(&path).unwrap());
        let (logger, handle) = start(&settings, output).unwrap();
        logger.queue(line(1));
        logger.queue(line(2));
        assert!(receive(&journal).contains("\nMESSAGE=line 1.\n"));
        assert!(receive(&journal).contains("\nMESSAGE=line 2.\n"));

        drop(journal);
        fs::remove_file(&path).unwrap();
        logger.queue(line(3));
        assert!(!handle.shutdown());
        let journal = UnixDatagram::bind(&path).unwrap();
        assert!(receive(&journal).contains("\nMESSAGE=line 3.\n"));
    }

    #[test]
    fn a_journal_and_a_file_exclude_each_other() {
        let settings = settings(Some(Path::new("/nonexistent/log")), LogFormat::Journald);
        let error = Output::open(&settings).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
