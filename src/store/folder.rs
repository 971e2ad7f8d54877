//! The state folder's files, by kind, and their sizes.
//!
//! Owns the last measurement, which the store's thread takes and `/metrics` shows. Must never be
//! measured on a reactor's thread: a disk may be slow. Sizes are the files' lengths; what a file
//! system adds to them is its own business.
//!
//! Mutation that the test below catches: a kind of file that is left out of `measure`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Instant;

use super::sqlite::DATABASE_FILE;
use crate::core::disk_shares::{DiskShares, PrefixBytes};
use crate::limits::store as limits;

/// Returns the bytes of all computed states in a state folder. The engine knows their place.
pub type MeasurePrefixes = fn(&Path) -> io::Result<PrefixBytes>;

/// A kind of file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Database,
    /// The write-ahead log, and its index.
    Log,
    Prefixes,
    /// The computed states of the daemon's own words.
    OwnWords,
    /// All other files that lie in the folder itself.
    Other,
}

impl Part {
    pub const ALL: [Part; 5] = [
        Part::Database,
        Part::Log,
        Part::Prefixes,
        Part::OwnWords,
        Part::Other,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Part::Database => "database",
            Part::Log => "log",
            Part::Prefixes => "prefixes",
            Part::OwnWords => "own_words",
            Part::Other => "other",
        }
    }

    /// Returns this part's share.
    pub const fn share(self, shares: &DiskShares) -> u64 {
        match self {
            Part::Database => shares.database,
            Part::Log => shares.log,
            Part::Prefixes => shares.prefixes,
            Part::OwnWords => shares.own_words,
            Part::Other => shares.other,
        }
    }
}

crate::label!(Part, as_str, Part::ALL, 0);

/// Bytes of each part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes([u64; Part::ALL.len()]);

impl Sizes {
    pub fn of(&self, part: Part) -> u64 {
        self.0[part as usize]
    }

    pub fn sum(&self) -> u64 {
        self.0.iter().sum()
    }
}

/// Measures a folder. One that does not exist has nothing.
pub fn measure(folder: &Path, prefixes: MeasurePrefixes) -> io::Result<Sizes> {
    let mut sizes = Sizes::default();
    let items = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(sizes),
        items => items?,
    };
    for item in items.take(limits::MEASURED_FILES_MAX) {
        let item = item?;
        // A file may go at any moment.
        let Ok(metadata) = item.metadata() else {
            continue;
        };
        if metadata.is_file() {
            let part = part_of(&item.file_name().to_string_lossy());
            sizes.0[part as usize] += metadata.len();
        }
    }
    let computed = prefixes(folder)?;
    sizes.0[Part::Prefixes as usize] = computed.prefixes;
    sizes.0[Part::OwnWords as usize] = computed.own_words;
    Ok(sizes)
}

fn part_of(name: &str) -> Part {
    match name.strip_prefix(DATABASE_FILE) {
        Some("") => Part::Database,
        Some("-wal" | "-shm") => Part::Log,
        _ => Part::Other,
    }
}

/// See the file's head.
#[derive(Default)]
pub struct StateFolder {
    place: OnceLock<(PathBuf, MeasurePrefixes)>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    sizes: Sizes,
    due: Option<Instant>,
}

impl StateFolder {
    /// Names the folder. Later calls change nothing: it is the same while the process runs.
    pub fn set_place(&self, folder: PathBuf, prefixes: MeasurePrefixes) {
        let _ = self.place.set((folder, prefixes));
    }

    /// Returns the last measurement.
    pub fn sizes(&self) -> Sizes {
        self.lock().sizes
    }

    /// Measures the folder if the last measurement is old. Of several threads one does so.
    pub fn measure_if_due(&self, now: Instant) {
        let Some((folder, prefixes)) = self.place.get() else {
            return;
        };
        {
            let mut state = self.lock();
            if state.due.is_some_and(|due| now < due) {
                return;
            }
            state.due = Some(now + limits::MEASURE_INTERVAL);
        }
        match measure(folder, *prefixes) {
            Ok(sizes) => self.lock().sizes = sizes,
            // The next write there has the same error, and reports it.
            Err(error) => log::debug!("cannot measure {}: {error}", folder.display()),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // No file is looked at under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_file_counts_once_in_its_part() {
        let folder = tempfile::tempdir().unwrap();
        let state_dir = folder.path().join("state");
        let prefixes: MeasurePrefixes = |_| {
            Ok(PrefixBytes {
                prefixes: 1_000,
                own_words: 2_000,
            })
        };
        let none: MeasurePrefixes = |_| Ok(PrefixBytes::default());
        assert_eq!(measure(&state_dir, none).unwrap(), Sizes::default());
        fs::create_dir_all(state_dir.join("prefixes")).unwrap();
        for (name, bytes) in [
            ("autoglmd.db", 1),
            ("autoglmd.db-wal", 10),
            ("autoglmd.db-shm", 20),
            ("bootstrap-key", 100),
            ("autoglmd.db.backup", 200),
            ("prefixes/x.kv", 5_000),
        ] {
            fs::write(state_dir.join(name), vec![0; bytes]).unwrap();
        }
        let sizes = measure(&state_dir, prefixes).unwrap();
        assert_eq!(sizes, Sizes([1, 30, 1_000, 2_000, 300]));
        assert_eq!((sizes.sum(), sizes.of(Part::Log)), (3_331, 30));
        let shares = DiskShares::of(64 << 20, 1 << 20, true);
        let sum: u64 = Part::ALL.map(|part| part.share(&shares)).iter().sum();
        assert_eq!(sum, 64 << 20);
    }
}
