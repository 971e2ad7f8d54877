//! Files of models: their magic, their digest, and small notes that are replaced whole.
//!
//! Owns a file's identity: its SHA-256, which is stored beside it and valid as long as device,
//! inode, size and time of change are the same. A file that was overwritten, even by one of the
//! same size, is read again.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::error::ModelError;
use super::progress::{Progress, Watch, tell};
use crate::limits::models as limits;

/// The stored identity of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Remembered {
    sha256: String,
    #[serde(flatten)]
    stamp: Stamp,
}

/// Changes when the content of a file changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    /// Since 1970, with the nanoseconds of the second in a field of their own.
    modified_seconds: i64,
    modified_nanoseconds: i64,
}

impl Stamp {
    fn of(metadata: &fs::Metadata) -> Stamp {
        Stamp {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.len(),
            modified_seconds: metadata.mtime(),
            modified_nanoseconds: metadata.mtime_nsec(),
        }
    }
}

/// Returns the file's SHA-256: the stored one if the file is still the same, otherwise it reads
/// every byte.
pub(super) fn identity(path: &Path, watch: &mut Watch<'_>) -> Result<String, ModelError> {
    let file_error = |error| ModelError::File(path.to_owned(), error);
    let stamp = Stamp::of(&fs::metadata(path).map_err(file_error)?);
    let remembered = read_bounded(&identity_path(path), limits::MODEL_RECORD_BYTES_MAX)
        .ok()
        .and_then(|bytes| serde_json::from_slice::<Remembered>(&bytes).ok());
    match remembered {
        Some(remembered) if remembered.stamp == stamp => Ok(remembered.sha256),
        _ => {
            let sha256 = hex(&sha256(path, watch)?);
            remember(path, stamp, &sha256);
            Ok(sha256)
        }
    }
}

/// Stores the digest of a file that was just read as a whole.
pub(super) fn note_identity(path: &Path, sha256: &str) {
    if let Ok(metadata) = fs::metadata(path) {
        remember(path, Stamp::of(&metadata), sha256);
    }
}

/// If the folder cannot be written, the next start must read the file again, but nothing is lost.
fn remember(path: &Path, stamp: Stamp, sha256: &str) {
    let remembered = Remembered {
        sha256: sha256.to_owned(),
        stamp,
    };
    let written = serde_json::to_vec(&remembered)
        .map_err(io::Error::from)
        .and_then(|bytes| replace(&identity_path(path), &bytes));
    if let Err(error) = written {
        log::debug!("cannot store the digest of {}: {error}", path.display());
    }
}

/// Returns `.NAME.gguf.identity`, beside the file.
pub(super) fn identity_path(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.identity"))
}

/// Checks the first bytes of every GGUF file, since its version 2 in this byte order.
pub(super) fn check_gguf(path: &Path) -> Result<(), ModelError> {
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

pub(super) fn sha256(path: &Path, watch: &mut Watch<'_>) -> Result<[u8; 32], ModelError> {
    let file_error = |error| ModelError::File(path.to_owned(), error);
    let mut file = File::open(path).map_err(file_error)?;
    let total = file.metadata().map_err(file_error)?.len();
    let mut digest = Sha256::new();
    let mut buffer = vec![0; limits::PULL_BUFFER_BYTES];
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

/// Copies a file byte by byte: a model in the folder must not change with its original.
pub(super) fn copy(from: &Path, to: &Path, watch: &mut Watch<'_>) -> Result<(), ModelError> {
    let from_error = |error| ModelError::File(from.to_owned(), error);
    let to_error = |error| ModelError::File(to.to_owned(), error);
    let mut input = File::open(from).map_err(from_error)?;
    let total = Some(input.metadata().map_err(from_error)?.len());
    let mut output = File::create(to).map_err(to_error)?;
    let mut buffer = vec![0; limits::PULL_BUFFER_BYTES];
    let mut done = 0;
    let mut pace = Pace::new();
    loop {
        let count = input.read(&mut buffer).map_err(from_error)?;
        if count == 0 {
            return tell(watch, Progress::Bytes { done, total });
        }
        output.write_all(&buffer[..count]).map_err(to_error)?;
        done += count as u64;
        if pace.is_due() {
            tell(watch, Progress::Bytes { done, total })?;
        }
    }
}

/// Lets a report through a few times per second.
pub(super) struct Pace {
    last: Instant,
}

impl Pace {
    pub(super) fn new() -> Pace {
        Pace {
            last: Instant::now(),
        }
    }

    pub(super) fn is_due(&mut self) -> bool {
        let due = self.last.elapsed() >= limits::PULL_PROGRESS_INTERVAL;
        if due {
            self.last = Instant::now();
        }
        due
    }
}

pub(super) fn read_bounded(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Writes a small file so that a reader sees either the old bytes or the new ones.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use super::*;

    /// Mutations that this test catches: any of the stamp's fields left out of the comparison (the
    /// second file keeps the size, the third the time and the size), and a digest that is not
    /// stored.
    #[test]
    fn digest_is_remembered_until_the_file_changes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        let read = |path: &Path| {
            let mut readings = 0;
            let sha256 = identity(path, &mut |_| {
                readings += 1;
                ControlFlow::Continue(())
            });
            (sha256.unwrap(), readings > 0)
        };
        fs::write(&path, b"first").unwrap();
        let first = hex(&<[u8; 32]>::from(Sha256::digest(b"first")));
        assert_eq!(read(&path), (first.clone(), true));
        assert_eq!(read(&path), (first, false), "it was read again");
        let modified = fs::metadata(&path).unwrap().modified().unwrap();

        // Another time of change, the same size and inode.
        let later = modified + std::time::Duration::from_nanos(1);
        fs::write(&path, b"other").unwrap();
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_modified(later)
            .unwrap();
        let other = hex(&<[u8; 32]>::from(Sha256::digest(b"other")));
        assert_eq!(read(&path), (other, true));

        // Another file in its place, of the same size and time.
        let third = folder.path().join("third");
        fs::write(&third, b"third").unwrap();
        File::options()
            .write(true)
            .open(&third)
            .unwrap()
            .set_modified(later)
            .unwrap();
        fs::rename(&third, &path).unwrap();
        let third = hex(&<[u8; 32]>::from(Sha256::digest(b"third")));
        assert_eq!(read(&path), (third, true));
    }
}
