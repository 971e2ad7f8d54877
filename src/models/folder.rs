//! The folder of models: what is there, and the one way in.
//!
//! Owns the names in the folder, the record beside each file, and the lock of each name. How bytes
//! arrive is not known here: each way leaves a `.part` file, which [`Models::pull`] puts in place.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::thread;

use serde::{Deserialize, Serialize};

use super::catalogue::Entry;
use super::error::ModelError;
use super::files::{
    check_gguf, hex, identity, identity_path, note_identity, read_bounded, replace, sha256,
};
use super::means::Means;
use super::progress::{Progress, Watch, tell};
use super::source::{Source, check_name};
use super::{fetch, files};
use crate::core::UnixSeconds;
use crate::limits::models as limits;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pull {
    pub source: Source,
    /// Instead of the name that the source suggests.
    pub name: Option<String>,
    pub sha256: Option<[u8; 32]>,
    /// Fetch even if a file of this name exists.
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
    /// It existed already, from the same source.
    Present(PathBuf),
}

/// A model that can be loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub name: String,
    pub path: PathBuf,
    /// The model's identity, in hexadecimal digits.
    pub sha256: String,
    /// The catalogue's entry for a file with this digest, whatever its name.
    pub entry: Option<&'static Entry>,
}

/// One file in the folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelFile {
    pub name: String,
    pub path: PathBuf,
    pub bytes: u64,
    /// `None`: it was not put there by a pull.
    pub record: Option<Record>,
}

/// The record of a pull beside its file.
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
    /// A GGUF file without a recorded checksum.
    Unknown {
        sha256: String,
    },
}

/// The folder of the models.
#[derive(Clone, Debug)]
pub struct Models {
    pub(super) folder: PathBuf,
}

impl Models {
    pub fn new(cache_dir: &Path) -> Models {
        Models {
            folder: cache_dir.join("models"),
        }
    }

    /// Returns the first of `models` that is available, after fetching it if necessary. The daemon
    /// does this at its start.
    pub fn ensure_one_of(
        &self,
        models: &[String],
        means: &Means,
        watch: &mut Watch<'_>,
    ) -> Result<Found, ModelError> {
        let mut attempts = Vec::new();
        for (index, model) in models.iter().enumerate() {
            let error = match self.ensure(model, means, watch) {
                Ok(found) => return Ok(found),
                Err(ModelError::Cancelled) => return Err(ModelError::Cancelled),
                Err(error) if models.len() == 1 => return Err(error),
                Err(error) => error.to_string(),
            };
            if let Some(next) = models.get(index + 1) {
                let (failed, next) = (model.clone(), next.clone());
                let reason = error.clone();
                let step = Progress::Next {
                    failed,
                    reason,
                    next,
                };
                tell(watch, step)?;
            }
            attempts.push((model.clone(), error));
        }
        Err(ModelError::NoneOf(attempts))
    }

    /// Returns the file of a configured model, after fetching it if it is in the catalogue and not
    /// here. `model` is a name, or a path if it looks like one.
    pub fn ensure(
        &self,
        model: &str,
        means: &Means,
        watch: &mut Watch<'_>,
    ) -> Result<Found, ModelError> {
        let path = if model.contains('/') || model.ends_with(".gguf") {
            PathBuf::from(model)
        } else {
            check_name(model)?;
            if let Some(entry) = Entry::find(model) {
                return self.ensure_entry(entry, means, watch);
            }
            self.inspect(model)?.path
        };
        check_gguf(&path)?;
        let sha256 = identity(&path, watch)?;
        let stem = path.file_stem().unwrap_or_default();
        Ok(Found {
            name: stem.to_string_lossy().into_owned(),
            entry: Entry::of_digest(&sha256),
            path,
            sha256,
        })
    }

    /// Takes in a file of this machine. One of the catalogue's is recognised by its digest and gets
    /// its name.
    pub fn import(
        &self,
        file: &Path,
        name: Option<String>,
        force: bool,
        watch: &mut Watch<'_>,
    ) -> Result<Pulled, ModelError> {
        check_gguf(file)?;
        let digest = sha256(file, watch)?;
        let found = hex(&digest);
        let name = match (name, Entry::of_digest(&found)) {
            (Some(name), _) => name,
            (None, Some(entry)) => entry.name.to_owned(),
            (None, None) => Source::File(file.to_owned()).name()?,
        };
        if let Some(entry) = Entry::find(&name)
            && entry.sha256 != found
        {
            let expected = entry.sha256.to_owned();
            return Err(ModelError::OtherFile {
                name,
                expected,
                found,
            });
        }
        let pull = Pull {
            source: Source::File(file.to_owned()),
            name: Some(name),
            sha256: Some(digest),
            force,
        };
        self.pull(&pull, &Means::default(), watch)
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
        // Checked under the lock: the previous holder may have fetched this very file.
        if !pull.force
            && let Some(path) = self.present(&name, pull, watch)?
        {
            return Ok(Pulled::Present(path));
        }
        let part = self.folder.join(format!("{name}.gguf.part"));
        match &pull.source {
            Source::Catalogue(entry) => self.pull_entry(entry, pull, &part, means, watch),
            source => {
                let from = source.to_string();
                let step = match source {
                    Source::Optimized(original) => Progress::Optimizing {
                        name: name.clone(),
                        from: original.clone(),
                    },
                    _ => Progress::Started {
                        name: name.clone(),
                        from: from.clone(),
                    },
                };
                tell(watch, step)?;
                self.bring(source, &part, means, watch)?;
                self.install(&name, pull, &from, &part, watch)
            }
        }
        .map(Pulled::Fetched)
    }

    /// Returns the models here, by name.
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
            // A file without a valid name was not put here by a pull and cannot be asked for.
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
        note_identity(&file.path, &found);
        let expected = match (Entry::find(name), file.record) {
            (Some(entry), _) => entry.sha256.to_owned(),
            (None, Some(record)) => record.sha256,
            (None, None) => return Ok(Verdict::Unknown { sha256: found }),
        };
        Ok(match expected == found {
            true => Verdict::Good { sha256: found },
            false => Verdict::Damaged { expected, found },
        })
    }

    /// Deletes a model and everything that a pull left of it, and returns how many bytes that
    /// freed. A daemon that has loaded it keeps its mapping until it ends.
    pub fn remove(&self, name: &str, watch: &mut Watch<'_>) -> Result<u64, ModelError> {
        check_name(name)?;
        let suffixes = ["gguf", "gguf.part", "gguf.part.json", "json"];
        let mut paths = suffixes
            .map(|suffix| self.folder.join(format!("{name}.{suffix}")))
            .to_vec();
        paths.push(identity_path(&self.path(name)));
        let pieces = self.pieces(name);
        for piece in fs::read_dir(&pieces).into_iter().flatten().flatten() {
            paths.push(piece.path());
        }
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
        // Empty by now, or absent.
        let _ = fs::remove_dir(pieces);
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
        // An unreadable record counts as none: `verify` then reports that the checksum is unknown.
        let record = read_bounded(&self.record_path(name), limits::MODEL_RECORD_BYTES_MAX).ok();
        Ok(ModelFile {
            name: name.to_owned(),
            path,
            bytes: metadata.len(),
            record: record.and_then(|bytes| serde_json::from_slice(&bytes).ok()),
        })
    }

    /// Returns the file that makes a pull unnecessary. A file of another origin is an error; a file
    /// of the catalogue with wrong bytes counts as absent.
    pub(super) fn present(
        &self,
        name: &str,
        pull: &Pull,
        watch: &mut Watch<'_>,
    ) -> Result<Option<PathBuf>, ModelError> {
        let file = match self.inspect(name) {
            Ok(file) => file,
            Err(ModelError::Missing(_)) => return Ok(None),
            Err(error) => return Err(error),
        };
        let origin = file.record.map(|record| record.source);
        let is_it = match &pull.source {
            Source::Catalogue(entry) => {
                let is_it =
                    file.bytes == entry.bytes && identity(&file.path, watch)? == entry.sha256;
                return Ok(is_it.then_some(file.path));
            }
            // A file may have changed since it was imported; its digest shows it.
            Source::File(_) => {
                let digest = pull.sha256.map(|sum| hex(&sum));
                Some(identity(&file.path, watch)?) == digest
            }
            source => origin.as_ref() == Some(&source.to_string()),
        };
        match is_it {
            true => Ok(Some(file.path)),
            false => Err(ModelError::NameTaken {
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
                // flock(2) can only wait without a timeout, and the caller must be able to give up,
                // so this polls a few times per second.
                Err(TryLockError::WouldBlock) => {
                    tell(watch, Progress::Waiting)?;
                    thread::sleep(limits::PULL_PROGRESS_INTERVAL);
                }
            }
        }
    }

    /// Leaves all bytes in `part`, from a source that is one place.
    fn bring(
        &self,
        source: &Source,
        part: &Path,
        means: &Means,
        watch: &mut Watch<'_>,
    ) -> Result<(), ModelError> {
        let (url, token) = match source {
            // Its origins are tried by `pull_entry`.
            Source::Catalogue(entry) => {
                return Err(ModelError::UnknownName(entry.name.to_owned()));
            }
            Source::File(path) => {
                fetch::forget(part)?;
                return files::copy(path, part, watch);
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
                let place = format!("{owner}/{repository}/resolve/main/{file}");
                (means.hub_url(&place), means.hub_token.as_deref())
            }
        };
        fetch::bring(
            &fetch::Wanted {
                url: &url,
                token,
                part,
                bytes: None,
                has_alternative: false,
            },
            means,
            watch,
        )
    }

    /// Checks the part and gives it its name.
    pub(super) fn install(
        &self,
        name: &str,
        pull: &Pull,
        from: &str,
        part: &Path,
        watch: &mut Watch<'_>,
    ) -> Result<PathBuf, ModelError> {
        let found = check_part(pull, part, watch);
        if let Err(ModelError::NotGguf(_) | ModelError::WrongChecksum { .. }) = &found {
            // Wrong bytes cannot be resumed. Failing to delete them changes no verdict.
            let _ = (fs::remove_file(part), fetch::forget(part));
        }
        let found = found?;
        let path = self.path(name);
        let finish = || -> io::Result<()> {
            let file = File::open(part)?;
            file.sync_all()?;
            let record = Record {
                source: from.to_owned(),
                sha256: found.clone(),
                bytes: file.metadata()?.len(),
                pulled_at: UnixSeconds::now().as_u64(),
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
        note_identity(&path, &found);
        Ok(path)
    }
}

/// Checks a finished download against the expected size and digest; returns its SHA-256 in
/// hexadecimal digits.
fn check_part(pull: &Pull, part: &Path, watch: &mut Watch<'_>) -> Result<String, ModelError> {
    check_gguf(part)?;
    let found = hex(&sha256(part, watch)?);
    let pinned = match &pull.source {
        Source::Catalogue(entry) => Some(entry.sha256.to_owned()),
        _ => None,
    };
    for expected in pinned.into_iter().chain(pull.sha256.map(|sum| hex(&sum))) {
        if expected != found {
            return Err(ModelError::WrongChecksum { expected, found });
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
