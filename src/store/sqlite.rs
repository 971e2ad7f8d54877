//! The keys in one SQLite file, shared by the daemon and by `autoglmd key` in other processes.
//!
//! Owns the schema, its steps, the file's mode and every SQL statement. Must never be called
//! on a reactor's thread: every call here may wait for the disk or for another process's lock.
//!
//! A key is a row of `keys`; its hashes are rows of `secrets`. Each key has one current secret
//! (`valid_until` is NULL), and after a rotation with grace the older ones, each until its own
//! second. A revoked key's row stays, so that the key is not taken for an unknown one and its name
//! stays in the records.
//!
//! Invariants:
//!  1. No text of a key enters the database, only its hash.
//!  2. Each key has at most one current secret (a unique index sees to it).
//!  3. Every read that is followed by a write is in one `BEGIN IMMEDIATE` transaction with it, so
//!     that two processes never act on the same stale reading. That is why two daemons that start
//!     at once make one bootstrap key, and why each migration runs once.
//!  4. The bootstrap key's file is on the disk before its row is committed. A crash between the two
//!     leaves a file that opens nothing, which the next start replaces; the other order could leave
//!     a key whose secret is lost.
//!  5. The file is 0600 from the moment it exists; SQLite gives its `-wal` and `-shm` its mode.

mod changes;
mod examine;
mod file;
mod rows;
mod schema;
mod undo;

use std::io;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior};

use self::file::{configure, connect, identity, prepare_file, write_secret};
use self::rows::{SELECT_SECRETS, StoredSecret, all_records, find, insert, replace_secret, to_sql};
use self::schema::{STEPS, Schema, Step};
use self::undo::{Before, Undo};
use super::interface::{
    BOOTSTRAP_FILE, Bootstrap, Examination, Fault, ListedKey, Mark, NewKey, ReadKeys, Reading,
    Renewal, Revoked, Store, StoreError,
};
use crate::keys::{KeyRecord, Scopes, Secret, random_id};
use crate::limits::store as limits;

/// The database's name in the state folder.
pub const DATABASE_FILE: &str = "autoglmd.db";

/// The open database. It is one connection, so it must be used from one thread at a time.
#[derive(Debug)]
pub struct KeyStore {
    connection: Connection,
    path: PathBuf,
    /// Device and inode of the opened file, to notice when another file takes its name.
    identity: (u64, u64),
    /// The state before the last change that made a secret.
    undo: Option<Undo>,
}

impl KeyStore {
    /// Opens `autoglmd.db` in the state folder; creates folder, file and tables if they are
    /// missing.
    pub fn open_in(state_dir: &Path) -> Result<KeyStore, StoreError> {
        KeyStore::open(&state_dir.join(DATABASE_FILE))
    }

    pub fn open(path: &Path) -> Result<KeyStore, StoreError> {
        let identity = prepare_file(path)?;
        let connection = connect(path).map_err(|error| database_error(path, error))?;
        let mut store = KeyStore {
            connection,
            path: path.to_owned(),
            identity,
            undo: None,
        };
        store.migrate(STEPS)?;
        Ok(store)
    }

    /// Opens an existing database, and creates none: while an operator puts a backup in its place,
    /// a new one would be in the way. A file that is empty or half copied is refused before
    /// anything is written to it.
    pub fn open_existing(path: &Path) -> Result<KeyStore, StoreError> {
        let of_file = |error| StoreError::File(path.to_owned(), error);
        let of_database = |error| database_error(path, error);
        let identity = identity(path).map_err(of_file)?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags).map_err(of_database)?;
        connection
            .busy_timeout(limits::BUSY_TIMEOUT)
            .map_err(of_database)?;
        if Schema::read(&connection).map_err(of_database)?.version == 0 {
            return Err(unfinished(path));
        }
        configure(&connection).map_err(of_database)?;
        let mut store = KeyStore {
            connection,
            path: path.to_owned(),
            identity,
            undo: None,
        };
        store.migrate(STEPS)?;
        Ok(store)
    }

    /// Looks at a database without changing it, whatever its version.
    pub fn examine(path: &Path) -> Result<Examination, StoreError> {
        // Where there is no file, SQLite would only say that it cannot open it.
        identity(path).map_err(|error| StoreError::File(path.to_owned(), error))?;
        let found = examine::examine(path).map_err(|error| database_error(path, error))?;
        match found.version {
            0 => Err(unfinished(path)),
            _ => Ok(found),
        }
    }

    /// Applies the steps that this database has not seen, each in its own transaction.
    fn migrate(&mut self, steps: &[Step]) -> Result<(), StoreError> {
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
                    return Err(StoreError::TooNew {
                        path: path.clone(),
                        needed: found.min_reader,
                        known,
                    });
                }
                if found.version > index {
                    return Ok(());
                }
                step.apply(transaction, index + 1).map_err(of_database)
            })?;
        }
        Ok(())
    }

    /// Runs `work` in a transaction that holds the write lock from its beginning. An error of
    /// `work` rolls back.
    fn write<T>(
        &mut self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let path = &self.path;
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(|error| database_error(path, error))?;
        let value = work(&transaction)?;
        transaction
            .commit()
            .map_err(|error| database_error(path, error))?;
        Ok(value)
    }

    #[cfg(test)]
    pub fn ring(&self) -> Result<crate::keys::KeyRing, StoreError> {
        let ReadKeys::All(records) = self.read(None)?.keys else {
            unreachable!("no mark was given");
        };
        Ok(crate::keys::KeyRing::new(records))
    }

    fn select(&self, sql: &str) -> Result<Vec<StoredSecret>, StoreError> {
        let rows = || -> rusqlite::Result<Vec<StoredSecret>> {
            let mut statement = self.connection.prepare(sql)?;
            statement.query_map((), StoredSecret::read)?.collect()
        };
        rows().map_err(|error| database_error(&self.path, error))
    }
}

impl Store for KeyStore {
    fn create(&mut self, new: &NewKey, now: u64) -> Result<(KeyRecord, Secret), StoreError> {
        let path = self.path.clone();
        let (record, secret) = self.write(|transaction| {
            let (record, secret) = draw(new, now)?;
            insert(transaction, &record).map_err(|error| database_error(&path, error))?;
            Ok((record, secret))
        })?;
        self.undo = Some(Undo::creation(&record.id, record.hash));
        Ok((record, secret))
    }

    fn rotate(
        &mut self,
        id: &str,
        grace: u64,
        renewal: Renewal,
        now: u64,
    ) -> Result<(KeyRecord, Secret), StoreError> {
        let path = self.path.clone();
        let (record, secret, before) = self.write(|transaction| {
            let old = find(transaction, id).map_err(|error| database_error(&path, error))?;
            let mut record = old.ok_or_else(|| StoreError::UnknownKey(id.to_owned()))?;
            if record.record.revoked {
                return Err(StoreError::RevokedKey(id.to_owned()));
            }
            let old_end = now.saturating_add(grace);
            let old_end = record
                .record
                .expires_at
                .map_or(old_end, |end| end.min(old_end));
            record.record.expires_at = record.renewed_expiry(renewal, now);
            let secret = Secret::random()?;
            record.record.hash = secret.hash();
            let before = Before::read(transaction, id)
                .and_then(|before| {
                    replace_secret(transaction, &record.record, old_end, now)?;
                    Ok(before)
                })
                .map_err(|error| database_error(&path, error))?;
            Ok((record.record, secret, before))
        })?;
        self.undo = Some(Undo::rotation(id, record.hash, before));
        Ok((record, secret))
    }

    fn withdraw(&mut self) -> Result<bool, StoreError> {
        let Some(undo) = self.undo.take() else {
            return Ok(false);
        };
        let path = self.path.clone();
        self.write(|transaction| {
            undo.apply(transaction)
                .map_err(|error| database_error(&path, error))
        })
    }

    fn set_weight(&mut self, id: &str, weight: u16) -> Result<(), StoreError> {
        let path = self.path.clone();
        let of_database = |error| database_error(&path, error);
        self.write(|transaction| {
            let found = find(transaction, id).map_err(of_database)?;
            let key = found.ok_or_else(|| StoreError::UnknownKey(id.to_owned()))?;
            if key.record.revoked {
                return Err(StoreError::RevokedKey(id.to_owned()));
            }
            transaction
                .execute("UPDATE keys SET weight = ?2 WHERE id = ?1", (id, weight))
                .map_err(of_database)?;
            Ok(())
        })
    }

    fn revoke(&mut self, id: &str, now: u64) -> Result<Revoked, StoreError> {
        let path = self.path.clone();
        self.write(|transaction| {
            let found = find(transaction, id).map_err(|error| database_error(&path, error))?;
            let key = found.ok_or_else(|| StoreError::UnknownKey(id.to_owned()))?;
            if let Some(then) = key.revoked_at {
                return Ok(Revoked::Before(then));
            }
            transaction
                .execute(
                    "UPDATE keys SET revoked_at = ?2 WHERE id = ?1",
                    (id, to_sql(now)),
                )
                .map_err(|error| database_error(&path, error))?;
            Ok(Revoked::Now)
        })
    }

    fn list(&self) -> Result<Vec<ListedKey>, StoreError> {
        let sql =
            format!("{SELECT_SECRETS} WHERE s.valid_until IS NULL ORDER BY k.created_at, k.id");
        let listed = |stored: StoredSecret| ListedKey {
            revoked_at: stored.revoked_at,
            record: stored.record,
        };
        Ok(self.select(&sql)?.into_iter().map(listed).collect())
    }

    fn read(&self, since: Option<Mark>) -> Result<Reading, StoreError> {
        let read = || -> rusqlite::Result<Reading> {
            // The mark and the keys must be of one moment.
            let transaction = self.connection.unchecked_transaction()?;
            let mark = changes::newest(&transaction)?;
            let keys = match since {
                Some(since) if changes::remembers(&transaction, since)? => {
                    ReadKeys::Changed(changes::keys_since(&transaction, since)?)
                }
                _ => ReadKeys::All(all_records(&transaction)?),
            };
            Ok(Reading { keys, mark })
        };
        read().map_err(|error| database_error(&self.path, error))
    }

    fn bootstrap(&mut self, state_dir: &Path, now: u64) -> Result<Option<Bootstrap>, StoreError> {
        let database = self.path.clone();
        let path = state_dir.join(BOOTSTRAP_FILE);
        let new = NewKey {
            name: "bootstrap".into(),
            scopes: Scopes::ALL,
            ..NewKey::default()
        };
        self.write(|transaction| {
            let keys: i64 = transaction
                .query_row("SELECT count(*) FROM keys", (), |row| row.get(0))
                .map_err(|error| database_error(&database, error))?;
            if keys > 0 {
                return Ok(None);
            }
            let (record, secret) = draw(&new, now)?;
            insert(transaction, &record).map_err(|error| database_error(&database, error))?;
            write_secret(&path, &secret).map_err(|error| StoreError::File(path.clone(), error))?;
            Ok(Some(Bootstrap {
                record,
                secret,
                path,
            }))
        })
    }

    /// SQLite's `PRAGMA data_version`.
    fn version(&self) -> Result<i64, StoreError> {
        self.connection
            .pragma_query_value(None, "data_version", |row| row.get(0))
            .map_err(|error| database_error(&self.path, error))
    }

    fn is_replaced(&self) -> bool {
        identity(&self.path).map_or(true, |found| found != self.identity)
    }
}

fn draw(new: &NewKey, now: u64) -> Result<(KeyRecord, Secret), StoreError> {
    let secret = Secret::random()?;
    let record = KeyRecord {
        id: random_id()?,
        name: new.name.clone(),
        hash: secret.hash(),
        scopes: new.scopes,
        created_at: now,
        expires_at: new.expires_at,
        requests_per_minute: new.requests_per_minute,
        tokens_per_minute: new.tokens_per_minute,
        concurrency: new.concurrency,
        weight: new.weight,
        revoked: false,
    };
    Ok((record, secret))
}

fn unfinished(path: &Path) -> StoreError {
    let message = "no key database, or not complete yet";
    let error = io::Error::new(io::ErrorKind::InvalidData, message);
    StoreError::File(path.to_owned(), error)
}

fn database_error(path: &Path, error: rusqlite::Error) -> StoreError {
    StoreError::Database {
        place: path.to_owned(),
        fault: match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy) => Fault::Busy,
            Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => Fault::Damaged,
            _ => Fault::Other,
        },
        reason: error.to_string(),
    }
}

#[cfg(test)]
mod tests;
