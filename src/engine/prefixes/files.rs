//! The folder's place in the state folder, its bytes, and the removals that need no index.
//!
//! An erased tenant's files go although a daemon may be running that knows nothing of it. The
//! removal leaves a mark before its first look at the folder, and a writer looks for the mark after
//! it has renamed a file, so no order of the two leaves one.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::names::{self, Kind, Secret, entries, remove};
use super::own;
use crate::core::disk_shares::PrefixBytes;

/// Returns the folder within the state folder.
pub fn folder(state_dir: &Path) -> PathBuf {
    state_dir.join("prefixes")
}

/// Returns the bytes of all files in the folder within the state folder.
pub fn bytes(state_dir: &Path) -> io::Result<PrefixBytes> {
    let prefixes = folder(state_dir);
    Ok(PrefixBytes {
        own_words: bytes_in(&own::folder(&prefixes))?,
        prefixes: bytes_in(&prefixes)?,
    })
}

/// Returns the bytes of the files that lie in a folder itself.
fn bytes_in(folder: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in entries(folder)? {
        // A file may go at any moment.
        let metadata = entry?.metadata().ok();
        let file = metadata.filter(|metadata| metadata.is_file());
        bytes += file.map_or(0, |metadata| metadata.len());
    }
    Ok(bytes)
}

/// Removes all prefixes, for a daemon that keeps none: a folder of an earlier one would take room
/// and hold what prompts said.
pub fn clear(state_dir: &Path) -> io::Result<usize> {
    let mut removed = 0;
    for item in entries(&folder(state_dir))? {
        let item = item?;
        let name = item.file_name();
        if matches!(
            names::kind(&name.to_string_lossy()),
            Kind::Prefix | Kind::Unfinished
        ) {
            remove(&item.path())?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// Removes all files of a tenant, and returns how many. A daemon that runs writes none of its
/// prefixes any more.
pub fn erase(state_dir: &Path, tenant: u64) -> io::Result<usize> {
    let path = folder(state_dir);
    let Some(secret) = Secret::read(&path)? else {
        return Ok(0);
    };
    let tenant = secret.tenant(tenant);
    // Before the first look at the folder: a writer looks for the mark after it has renamed a file.
    names::create(&path.join(tenant.erased()))?;
    let mut removed = 0;
    for entry in entries(&path)? {
        let entry = entry?;
        if tenant.owns(&entry.file_name().to_string_lossy()) {
            remove(&entry.path())?;
            removed += 1;
        }
    }
    sync(&path)?;
    Ok(removed)
}

/// Removes the marks of erased tenants, before a process writes its first file. A process that
/// ended after it had renamed a file, and before it looked for the mark, has left that file.
pub fn finish_erasures(path: &Path) -> io::Result<()> {
    let items = entries(path)?.collect::<io::Result<Vec<_>>>()?;
    let names = items.iter().map(|item| item.file_name());
    let names: Vec<String> = names.map(|it| it.to_string_lossy().into_owned()).collect();
    let marks = names
        .iter()
        .filter(|name| names::kind(name) == Kind::Erased);
    for mark in marks {
        let left = names.iter().filter(|name| names::is_erased_by(name, mark));
        for name in left {
            remove(&path.join(name))?;
        }
        remove(&path.join(mark))?;
    }
    Ok(())
}

/// Waits until the disk has the names of a folder.
fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}
