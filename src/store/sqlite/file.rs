//! The database's file: how it comes into being, who may read it, and how a connection is set up.
//! Owns modes, names and pragmas. Knows no table.

use std::fs::{self, DirBuilder, Metadata, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rusqlite::{Connection, ErrorCode};

use crate::limits::store as limits;
use crate::os::slices;
use crate::store::error::StoreError;

/// Creates the folder (0700) and the file (0600) if they are missing, and removes the rights of
/// others on the file if they are wider.
///
/// A file that exists is never opened here. POSIX drops *all* of a process's locks on a file when
/// any of its descriptors for that file is closed (fcntl(2), "record locks"): opening the database
/// for a moment would silently unlock the connection that another thread has to it.
pub fn prepare_file(path: &Path) -> Result<(u64, u64), StoreError> {
    let prepare = || -> io::Result<(u64, u64)> {
        if let Some(folder) = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
        {
            if fs::metadata(folder).is_ok_and(|found| !found.is_dir()) {
                let message = format!("{} is not a folder", folder.display());
                return Err(io::Error::new(io::ErrorKind::NotADirectory, message));
            }
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(folder)?;
        }
        let created = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path);
        match created {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let metadata = regular_file(path)?;
        if metadata.permissions().mode() & 0o077 != 0 {
            fs::set_permissions(path, Permissions::from_mode(0o600))?;
        }
        Ok((metadata.dev(), metadata.ino()))
    };
    prepare().map_err(|error| StoreError::File(path.to_owned(), error))
}

/// Creates a file and removes it.
pub fn try_to_write(folder: &Path) -> io::Result<()> {
    let probe = folder.join(".autoglmd-probe");
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&probe)?;
    fs::remove_file(probe)
}

/// Device and inode of the file that has this name now.
pub fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = regular_file(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

fn regular_file(path: &Path) -> io::Result<Metadata> {
    let metadata = fs::metadata(path)?;
    match metadata.is_file() {
        true => Ok(metadata),
        false => Err(io::Error::other("not a regular file")),
    }
}

pub fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    configure(&connection)?;
    Ok(connection)
}

/// Applies the settings of each connection.
pub fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(limits::BUSY_TIMEOUT)?;
    let go_on = || {
        slices::offer();
        false
    };
    connection.set_prepared_statement_cache_capacity(limits::PREPARED_ITEMS_MAX);
    connection.progress_handler(limits::STEPS_PER_OFFER, Some(go_on))?;
    write_ahead(connection)?;
    // With FULL, a commit that was reported survives a power cut. Keys change rarely: the price of
    // one fsync does not matter.
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)
}

/// Switches to write-ahead logging, in which readers never wait for the writer. Two processes that
/// do so at once on a new file can meet in a deadlock, for which SQLite returns BUSY without
/// waiting. So this function retries.
fn write_ahead(connection: &Connection) -> rusqlite::Result<()> {
    let switch = || connection.pragma_update(None, "journal_mode", "WAL");
    for _ in 1..limits::WAL_ATTEMPTS_MAX {
        match switch() {
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => {
                std::thread::sleep(limits::WAL_PAUSE);
            }
            done => return done,
        }
    }
    switch()
}
