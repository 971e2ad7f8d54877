//! The open database: how it is opened, brought up to date, and written to.
//!
//! Owns the connection and its transactions. Knows no table.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};

use super::examine;
use super::file::{configure, connect, identity, prepare_file, try_to_write};
use super::schema::{STEPS, Schema, Step, number};
use super::undo::Undo;
use crate::core::disk_shares::DiskShares;
use crate::limits::store as limits;
use crate::store::erasure::patiently;
use crate::store::error::{Fault, StoreError};
use crate::store::interface::{Examination, Store};

/// The database's name in the state folder.
pub const DATABASE_FILE: &str = "autoglmd.db";

/// The open database. It is one connection, so it must be used from one thread at a time.
#[derive(Debug)]
pub struct SqliteStore {
    pub(super) connection: Connection,
    pub(super) path: PathBuf,
    /// Device and inode of the opened file, to notice when another file takes its name.
    identity: (u64, u64),
    /// The state before the last change that made a secret.
    pub(super) undo: Option<Undo>,
    /// The bounds of the files, once they are in force.
    pub(super) shares: Option<DiskShares>,
}

impl SqliteStore {
    /// Opens `autoglmd.db` in a folder.
    #[cfg(test)]
    pub fn open_in(state_dir: &Path) -> Result<SqliteStore, StoreError> {
        SqliteStore::open(&state_dir.join(DATABASE_FILE))
    }

    /// Sets how long a statement waits for another process's lock.
    #[cfg(test)]
    pub fn set_patience(&self, patience: std::time::Duration) {
        self.connection.busy_timeout(patience).unwrap();
    }

    /// Has statements that forget to name an order yield the rows in the opposite of the one that
    /// an index happens to have.
    #[cfg(test)]
    pub fn reverse_unordered(&self) {
        let pragma = "reverse_unordered_selects";
        self.connection.pragma_update(None, pragma, true).unwrap();
    }

    /// Opens the database; creates folder, file and tables if they are missing.
    pub fn open(path: &Path) -> Result<SqliteStore, StoreError> {
        let identity = prepare_file(path)?;
        let connection = connect(path).map_err(|error| open_error(path, error))?;
        let mut store = SqliteStore {
            connection,
            path: path.to_owned(),
            identity,
            undo: None,
            shares: None,
        };
        store.migrate(STEPS)?;
        Ok(store)
    }

    /// Opens an existing database, and creates none: while an operator puts a backup in its place,
    /// a new one would be in the way. A file that is empty or half copied is refused before
    /// anything is written to it.
    pub fn open_existing(path: &Path) -> Result<SqliteStore, StoreError> {
        let of_file = |error| StoreError::File(path.to_owned(), error);
        let of_opening = |error| open_error(path, error);
        let identity = identity(path).map_err(of_file)?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags).map_err(of_opening)?;
        connection
            .busy_timeout(limits::BUSY_TIMEOUT)
            .map_err(of_opening)?;
        if Schema::read(&connection).map_err(of_opening)?.version == 0 {
            return Err(unfinished(path));
        }
        configure(&connection).map_err(of_opening)?;
        let mut store = SqliteStore {
            connection,
            path: path.to_owned(),
            identity,
            undo: None,
            shares: None,
        };
        store.migrate(STEPS)?;
        Ok(store)
    }

    /// Looks at a database without changing it, whatever its version.
    pub fn examine(path: &Path) -> Result<Examination, StoreError> {
        // Where there is no file, SQLite would only report that it cannot open it.
        identity(path).map_err(|error| StoreError::File(path.to_owned(), error))?;
        let found = examine::examine(path).map_err(|error| open_error(path, error))?;
        match found.version {
            0 => Err(unfinished(path)),
            _ => Ok(found),
        }
    }

    /// Applies the steps that this database has not seen, each in its own transaction.
    pub(super) fn migrate(&mut self, steps: &[Step]) -> Result<(), StoreError> {
        let path = self.path.clone();
        let of_database = |error| database_error(&path, error);
        let known = steps.len();
        // The usual case takes no lock.
        let found = Schema::read(&self.connection).map_err(of_database)?;
        if found.version >= known && found.min_reader <= known {
            return Ok(());
        }
        for (index, step) in steps.iter().enumerate() {
            self.write(|transaction| {
                // Read inside the transaction: another process may just have done this step.
                let found = Schema::read(transaction).map_err(of_database)?;
                if found.min_reader > known {
                    return Err(too_new(&path, found.min_reader, known));
                }
                if found.version > index {
                    return Ok(());
                }
                step.apply(transaction, index + 1).map_err(of_database)
            })?;
        }
        Ok(())
    }

    /// Runs `work` in a transaction that holds the write lock from its beginning, or at a savepoint
    /// of the group that has begun. An error of `work` rolls back.
    pub(super) fn write<T>(
        &mut self,
        work: impl FnOnce(&Connection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        if !self.connection.is_autocommit() {
            return self.at_savepoint(|store| work(&store.connection))?;
        }
        let of_database = |error| database_error(&self.path, error);
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(of_database)?;
        let value = work(&transaction)?;
        transaction.commit().map_err(of_database)?;
        Ok(value)
    }
}

impl Store for SqliteStore {
    /// SQLite's `PRAGMA data_version`.
    fn version(&self) -> Result<i64, StoreError> {
        self.connection
            .pragma_query_value(None, "data_version", |row| row.get(0))
            .map_err(|error| database_error(&self.path, error))
    }

    fn make_room(&mut self, shares: &DiskShares, bytes: u64) -> Result<(), StoreError> {
        self.keep_room(shares, bytes)
    }

    fn overwrite_removed(&mut self) -> Result<(), StoreError> {
        // VACUUM writes all pages again, into the log. The checkpoint moves them into the file and
        // makes the log empty, for which it waits for the readers of other connections.
        let rewrite = || -> rusqlite::Result<bool> {
            self.connection.execute_batch("VACUUM")?;
            let sql = "PRAGMA wal_checkpoint(TRUNCATE)";
            self.connection.query_row(sql, (), |row| row.get(0))
        };
        patiently(|| {
            let is_busy = rewrite().map_err(|error| database_error(&self.path, error))?;
            match is_busy {
                false => Ok(()),
                true => Err(StoreError::Database {
                    place: self.path.display().to_string(),
                    fault: Fault::Busy,
                    reason: "another process reads the database".to_owned(),
                }),
            }
        })
    }

    fn is_replaced(&self) -> bool {
        let is_another = identity(&self.path).map_or(true, |found| found != self.identity);
        is_another || matches!(self.check_reader(), Err(StoreError::TooNew { .. }))
    }
}

impl SqliteStore {
    /// Refuses to go on if a later program has raised `min_reader` since the database was opened.
    /// Reads a number in the file's head; within a transaction it stays true up to the commit.
    pub(super) fn check_reader(&self) -> Result<(), StoreError> {
        let of_database = |error| database_error(&self.path, error);
        let statement = self.connection.prepare_cached("PRAGMA user_version");
        let needed: Result<i64, _> =
            statement.and_then(|mut statement| statement.query_row((), |row| row.get(0)));
        match needed.map(number).map_err(of_database)? {
            needed if needed > STEPS.len() => Err(too_new(&self.path, needed, STEPS.len())),
            _ => Ok(()),
        }
    }
}

fn too_new(path: &Path, needed: usize, known: usize) -> StoreError {
    StoreError::TooNew {
        place: path.display().to_string(),
        needed,
        known,
    }
}

fn unfinished(path: &Path) -> StoreError {
    StoreError::Database {
        place: path.display().to_string(),
        fault: Fault::Empty,
        reason: "no key database, or not complete yet".to_owned(),
    }
}

/// Returns the error of opening: SQLite only reports that it cannot, also where the folder is
/// read-only and it needs a log there.
fn open_error(path: &Path, error: rusqlite::Error) -> StoreError {
    let is_vague = matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly)
    );
    let folder = path.parent().unwrap_or(path);
    match is_vague.then(|| try_to_write(folder)) {
        Some(Err(error)) => StoreError::File(folder.to_owned(), error),
        _ => database_error(path, error),
    }
}

pub(super) fn database_error(path: &Path, error: rusqlite::Error) -> StoreError {
    StoreError::Database {
        place: path.display().to_string(),
        fault: match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy) => Fault::Busy,
            Some(ErrorCode::DiskFull) => Fault::Full,
            Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => Fault::Damaged,
            _ => Fault::Other,
        },
        reason: error.to_string(),
    }
}
