//! The keys in one SQLite file, shared by the daemon and by `autoglmd key` in other processes.
//!
//! Owns the schema, its migrations, the file's mode and every SQL statement. Must never be called
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

mod undo;

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rusqlite::{
    Connection, ErrorCode, OpenFlags, OptionalExtension, Row, Transaction, TransactionBehavior,
};

use self::undo::{Before, Undo};
use crate::keys::{KeyRecord, KeyRing, Scopes, Secret, random_id};
use crate::limits::store as limits;

/// The database's name in the state folder.
pub const DATABASE_FILE: &str = "autoglmd.db";

/// The bootstrap key's name in the state folder.
pub const BOOTSTRAP_FILE: &str = "bootstrap-key";

/// The properties of a new key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewKey {
    pub name: String,
    pub scopes: Scopes,
    pub expires_at: Option<u64>,
    pub requests_per_minute: Option<u32>,
    pub tokens_per_minute: Option<u32>,
    pub concurrency: Option<u32>,
}

/// When a rotated key expires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// The same lifetime as that of the previous secret, from now on; for ever if that had no end.
    SameLifetime,
    At(u64),
}

/// The time of a revocation: the first one counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Revoked {
    Now,
    Before(u64),
}

/// A key for `list`: the record found by the current secret, and data that no request needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedKey {
    pub record: KeyRecord,
    pub revoked_at: Option<u64>,
}

/// The key of the first start: shown once, and kept in a file that only its owner can read.
#[derive(Debug)]
pub struct Bootstrap {
    pub record: KeyRecord,
    pub secret: Secret,
    pub path: PathBuf,
}

#[derive(Debug)]
pub enum StoreError {
    /// A file or folder, and its error.
    File(PathBuf, io::Error),
    Database(PathBuf, rusqlite::Error),
    /// A later version of this program has created the database.
    TooNew {
        path: PathBuf,
        found: usize,
        known: usize,
    },
    UnknownKey(String),
    RevokedKey(String),
    Random(getrandom::Error),
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreError::File(path, error) => write!(f, "{}: {error}", path.display()),
            StoreError::Database(path, error) => write!(f, "{}: {error}", path.display()),
            StoreError::TooNew { path, found, known } => write!(
                f,
                "{}: the database has version {found}, this autoglmd knows {known}; \
                 install the newer autoglmd again",
                path.display()
            ),
            StoreError::UnknownKey(id) => {
                write!(f, "no key has the id {id}; see `autoglmd key list`")
            }
            StoreError::RevokedKey(id) => write!(
                f,
                "{id} is revoked, and stays so; make another with `autoglmd key create`"
            ),
            StoreError::Random(error) => write!(f, "the kernel gives no random bytes: {error}"),
        }
    }
}

impl std::error::Error for StoreError {}

impl From<getrandom::Error> for StoreError {
    fn from(error: getrandom::Error) -> StoreError {
        StoreError::Random(error)
    }
}

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
        store.migrate(MIGRATIONS)?;
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
        if user_version(&connection).map_err(of_database)? == 0 {
            let message = "no key database, or not whole yet";
            return Err(of_file(io::Error::new(io::ErrorKind::InvalidData, message)));
        }
        settle(&connection).map_err(of_database)?;
        let mut store = KeyStore {
            connection,
            path: path.to_owned(),
            identity,
            undo: None,
        };
        store.migrate(MIGRATIONS)?;
        Ok(store)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds a key. Its secret is only in the result.
    pub fn create(&mut self, new: &NewKey, now: u64) -> Result<(KeyRecord, Secret), StoreError> {
        let path = self.path.clone();
        let (record, secret) = self.write(|transaction| {
            let (record, secret) = draw(new, now)?;
            insert(transaction, &record).map_err(|error| database_error(&path, error))?;
            Ok((record, secret))
        })?;
        self.undo = Some(Undo::creation(&record.id, record.hash));
        Ok((record, secret))
    }

    /// Returns every key, oldest first.
    pub fn list(&self) -> Result<Vec<ListedKey>, StoreError> {
        let sql =
            format!("{SELECT_SECRETS} WHERE s.valid_until IS NULL ORDER BY k.created_at, k.id");
        let listed = |stored: StoredSecret| ListedKey {
            revoked_at: stored.revoked_at,
            record: stored.record,
        };
        Ok(self.select(&sql)?.into_iter().map(listed).collect())
    }

    /// Returns the snapshot for the reactors: every secret, including those in their grace.
    pub fn ring(&self) -> Result<KeyRing, StoreError> {
        let stored = self.select(SELECT_SECRETS)?;
        Ok(KeyRing::new(
            stored.into_iter().map(StoredSecret::into_record).collect(),
        ))
    }

    /// Revokes a key for good.
    pub fn revoke(&mut self, id: &str, now: u64) -> Result<Revoked, StoreError> {
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

    /// Replaces a key's secret. The previous one works for `grace` seconds more, but no longer than
    /// it would have; without grace it is deleted at once, and so are those of earlier rotations.
    pub fn rotate(
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

    /// If the store has no key, creates one with every scope, and its file in `state_dir`. A store
    /// whose keys are all revoked does have keys: its owner wanted them gone.
    pub fn bootstrap(
        &mut self,
        state_dir: &Path,
        now: u64,
    ) -> Result<Option<Bootstrap>, StoreError> {
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

    /// Returns a number that changes when another connection has changed the database, even one of
    /// this process (SQLite's `PRAGMA data_version`).
    pub fn data_version(&self) -> Result<i64, StoreError> {
        self.connection
            .pragma_query_value(None, "data_version", |row| row.get(0))
            .map_err(|error| database_error(&self.path, error))
    }

    /// Returns whether the path now names another file, as after a restored backup.
    pub fn is_replaced(&self) -> bool {
        identity(&self.path).map_or(true, |found| found != self.identity)
    }

    /// Applies the steps that this database has not seen, each in its own transaction.
    fn migrate(&mut self, steps: &[&str]) -> Result<(), StoreError> {
        let path = self.path.clone();
        let known = steps.len();
        // The usual case takes no lock.
        if user_version(&self.connection).map_err(|e| database_error(&path, e))? == known {
            return Ok(());
        }
        for (index, step) in steps.iter().enumerate() {
            self.write(|transaction| {
                // Read inside the transaction: another process may just have done this step.
                let found = user_version(transaction).map_err(|e| database_error(&path, e))?;
                if found > known {
                    return Err(StoreError::TooNew {
                        path: path.clone(),
                        found,
                        known,
                    });
                }
                if found > index {
                    return Ok(());
                }
                transaction
                    .execute_batch(&format!("{step}; PRAGMA user_version = {}", index + 1))
                    .map_err(|error| database_error(&path, error))
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

    fn select(&self, sql: &str) -> Result<Vec<StoredSecret>, StoreError> {
        let rows = || -> rusqlite::Result<Vec<StoredSecret>> {
            let mut statement = self.connection.prepare(sql)?;
            statement.query_map((), StoredSecret::read)?.collect()
        };
        rows().map_err(|error| database_error(&self.path, error))
    }
}

/// The schema's history. Append steps; never change one that was released.
const MIGRATIONS: &[&str] = &["
    CREATE TABLE keys (
        id                  TEXT PRIMARY KEY,
        name                TEXT NOT NULL,
        scopes              TEXT NOT NULL,
        created_at          INTEGER NOT NULL,
        expires_at          INTEGER,
        revoked_at          INTEGER,
        requests_per_minute INTEGER,
        tokens_per_minute   INTEGER,
        concurrency         INTEGER
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE secrets (
        hash        BLOB PRIMARY KEY CHECK (length(hash) = 32),
        key_id      TEXT NOT NULL REFERENCES keys (id),
        created_at  INTEGER NOT NULL,
        valid_until INTEGER
    ) STRICT, WITHOUT ROWID;

    CREATE UNIQUE INDEX current_secrets ON secrets (key_id) WHERE valid_until IS NULL;
    CREATE INDEX secrets_of_keys ON secrets (key_id)
"];

const SELECT_SECRETS: &str = "
    SELECT k.id, k.name, s.hash, k.scopes, k.created_at, k.expires_at, k.requests_per_minute,
           k.tokens_per_minute, k.concurrency, k.revoked_at, s.created_at, s.valid_until
    FROM keys k JOIN secrets s ON s.key_id = k.id";

/// One row of [`SELECT_SECRETS`].
struct StoredSecret {
    record: KeyRecord,
    revoked_at: Option<u64>,
    secret_created_at: u64,
    valid_until: Option<u64>,
}

impl StoredSecret {
    fn read(row: &Row<'_>) -> rusqlite::Result<StoredSecret> {
        let seconds = |index| {
            row.get::<_, Option<i64>>(index)
                .map(|value| value.map(from_sql))
        };
        let scopes: String = row.get(3)?;
        let revoked_at = seconds(9)?;
        let record = KeyRecord {
            id: row.get(0)?,
            name: row.get(1)?,
            hash: row.get(2)?,
            // An unknown word grants no right; the others stay valid.
            scopes: Scopes::parse_known(&scopes),
            created_at: from_sql(row.get(4)?),
            expires_at: seconds(5)?,
            requests_per_minute: row.get(6)?,
            tokens_per_minute: row.get(7)?,
            concurrency: row.get(8)?,
            revoked: revoked_at.is_some(),
        };
        Ok(StoredSecret {
            record,
            revoked_at,
            secret_created_at: from_sql(row.get(10)?),
            valid_until: seconds(11)?,
        })
    }

    /// Returns the record for the ring: one that is found by an old secret ends with that secret.
    fn into_record(self) -> KeyRecord {
        let mut record = self.record;
        record.expires_at = match (record.expires_at, self.valid_until) {
            (Some(key), Some(secret)) => Some(key.min(secret)),
            (key, secret) => key.or(secret),
        };
        record
    }

    fn renewed_expiry(&self, renewal: Renewal, now: u64) -> Option<u64> {
        match renewal {
            Renewal::At(end) => Some(end),
            Renewal::SameLifetime => {
                let lifetime = self
                    .record
                    .expires_at?
                    .saturating_sub(self.secret_created_at);
                Some(now.saturating_add(lifetime))
            }
        }
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
        revoked: false,
    };
    Ok((record, secret))
}

fn insert(transaction: &Transaction<'_>, record: &KeyRecord) -> rusqlite::Result<()> {
    transaction.execute(
        "INSERT INTO keys (id, name, scopes, created_at, expires_at, requests_per_minute, \
         tokens_per_minute, concurrency) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        (
            &record.id,
            &record.name,
            record.scopes.to_string(),
            to_sql(record.created_at),
            record.expires_at.map(to_sql),
            record.requests_per_minute,
            record.tokens_per_minute,
            record.concurrency,
        ),
    )?;
    insert_secret(transaction, record, record.created_at)
}

fn insert_secret(
    transaction: &Transaction<'_>,
    record: &KeyRecord,
    now: u64,
) -> rusqlite::Result<()> {
    transaction.execute(
        "INSERT INTO secrets (hash, key_id, created_at) VALUES (?1, ?2, ?3)",
        (record.hash, &record.id, to_sql(now)),
    )?;
    Ok(())
}

/// Makes `record.hash` the key's current secret. Older secrets with time left keep it, up to
/// `old_end`; the others are deleted.
fn replace_secret(
    transaction: &Transaction<'_>,
    record: &KeyRecord,
    old_end: u64,
    now: u64,
) -> rusqlite::Result<()> {
    let old_end = to_sql(old_end);
    transaction.execute(
        "UPDATE secrets SET valid_until = min(coalesce(valid_until, ?2), ?2) WHERE key_id = ?1",
        (&record.id, old_end),
    )?;
    transaction.execute(
        "DELETE FROM secrets WHERE key_id = ?1 AND valid_until <= ?2",
        (&record.id, to_sql(now)),
    )?;
    transaction.execute(
        "UPDATE keys SET expires_at = ?2 WHERE id = ?1",
        (&record.id, record.expires_at.map(to_sql)),
    )?;
    insert_secret(transaction, record, now)
}

fn find(transaction: &Transaction<'_>, id: &str) -> rusqlite::Result<Option<StoredSecret>> {
    let sql = format!("{SELECT_SECRETS} WHERE k.id = ?1 AND s.valid_until IS NULL");
    transaction
        .query_row(&sql, [id], StoredSecret::read)
        .optional()
}

fn user_version(connection: &Connection) -> rusqlite::Result<usize> {
    let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    // No version of ours is negative; converted to the largest number it is refused.
    Ok(usize::try_from(version).unwrap_or(usize::MAX))
}

/// Creates the folder (0700) and the file (0600) if they are missing, and removes the rights of
/// others on the file if they are wider.
///
/// A file that exists is never opened here. POSIX drops *all* of a process's locks on a file when
/// any of its descriptors for that file is closed (fcntl(2), "record locks"): opening the database
/// for a moment would silently unlock the connection that another thread has to it.
fn prepare_file(path: &Path) -> Result<(u64, u64), StoreError> {
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
        let metadata = fs::metadata(path)?;
        if !metadata.is_file() {
            return Err(io::Error::other("this is not a file"));
        }
        if metadata.permissions().mode() & 0o077 != 0 {
            fs::set_permissions(path, Permissions::from_mode(0o600))?;
        }
        Ok((metadata.dev(), metadata.ino()))
    };
    prepare().map_err(|error| StoreError::File(path.to_owned(), error))
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    settle(&connection)?;
    Ok(connection)
}

/// Applies the settings of each connection.
fn settle(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(limits::BUSY_TIMEOUT)?;
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

/// Writes the key and a line end to a new file that only its owner may read, and renames it once it
/// is on the disk. The caller holds the database's write lock, so no other process uses the
/// temporary name; one found there is left from a crash.
fn write_secret(path: &Path, secret: &Secret) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let temporary = path.with_extension("new");
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)?;
    writeln!(file, "{}", secret.reveal())?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(folder)?.sync_all()
}

fn database_error(path: &Path, error: rusqlite::Error) -> StoreError {
    StoreError::Database(path.to_owned(), error)
}

/// SQLite's integers are signed. Times beyond their range mean "never" in practice.
fn to_sql(seconds: u64) -> i64 {
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

/// A time before 1970 was not written by us; as second 0 it has passed, which errs on the safe
/// side.
fn from_sql(seconds: i64) -> u64 {
    u64::try_from(seconds).unwrap_or(0)
}

#[cfg(test)]
mod tests;
