//! The interface of a key store, whatever database is behind it.
//!
//! Must never name a database. [`sqlite`] is the only one so far; the thread in [`watch`] and the
//! commands know only this trait.
//!
//! [`sqlite`]: super::sqlite
//! [`watch`]: super::watch

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::keys::{ChangedKey, KeyRecord, Scopes, Secret};
use crate::limits::keys as limits;

/// The bootstrap key's name in the state folder.
pub const BOOTSTRAP_FILE: &str = "bootstrap-key";

/// An open store of API keys. It is one connection, so it must be used from one thread at a time.
/// Each call may wait for a disk, a network or another process's lock, so none may be made on a
/// reactor's thread.
pub trait Store: Send {
    /// Adds a key. Its secret is only in the result.
    fn create(&mut self, new: &NewKey, now: u64) -> Result<(KeyRecord, Secret), StoreError>;

    /// Replaces a key's secret. The previous one works for `grace` seconds more, but no longer than
    /// it would have; without grace it is deleted at once, and so are those of earlier rotations.
    fn rotate(
        &mut self,
        id: &str,
        grace: u64,
        renewal: Renewal,
        now: u64,
    ) -> Result<(KeyRecord, Secret), StoreError>;

    /// Takes back the last [`Store::create`] or [`Store::rotate`] of this connection, whose secret
    /// could not be shown. Returns `false` if there was none, or the key has changed since.
    fn withdraw(&mut self) -> Result<bool, StoreError>;

    /// Changes a key's weight. Its secrets stay.
    fn set_weight(&mut self, id: &str, weight: u16) -> Result<(), StoreError>;

    /// Revokes a key for good.
    fn revoke(&mut self, id: &str, now: u64) -> Result<Revoked, StoreError>;

    /// Returns every key, oldest first.
    fn list(&self) -> Result<Vec<ListedKey>, StoreError>;

    /// Reads the keys that have changed since a mark, or all keys if the store does not remember
    /// that mark. The records are those for the reactors: one for every secret, including those in
    /// their grace.
    fn read(&self, since: Option<Mark>) -> Result<Reading, StoreError>;

    /// If the store has no key, creates one with every scope, and its file in `state_dir`. A store
    /// whose keys are all revoked does have keys: its owner wanted them gone.
    fn bootstrap(&mut self, state_dir: &Path, now: u64) -> Result<Option<Bootstrap>, StoreError>;

    /// Returns a number that changes when another connection has changed the store, even one of
    /// this process.
    fn version(&self) -> Result<i64, StoreError>;

    /// Returns whether the store must be opened again, because its name now means another database,
    /// as after a restored backup.
    fn is_replaced(&self) -> bool;
}

/// A moment in the store's history of changes. Another store, or the same one after a backup was
/// put back, has other marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    pub number: i64,
    pub token: i64,
}

/// The result of [`Store::read`].
#[derive(Debug)]
pub struct Reading {
    pub keys: ReadKeys,
    /// The moment of this reading. `None`: the store has no history, so the next reading is whole.
    pub mark: Option<Mark>,
}

#[derive(Debug)]
pub enum ReadKeys {
    All(Vec<KeyRecord>),
    /// Each key once.
    Changed(Vec<ChangedKey>),
}

/// What a look at a store has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Examination {
    pub version: usize,
    pub min_reader: usize,
    /// The version of this program.
    pub known: usize,
    /// The numbers of keys and of secrets; `None`: the tables cannot be read.
    pub keys: Option<u32>,
    pub secrets: Option<u32>,
    /// What is wrong, for people.
    pub problems: Vec<String>,
}

impl Examination {
    /// Returns whether this program may work with the store.
    pub fn is_readable(&self) -> bool {
        self.min_reader <= self.known
    }
}

/// The properties of a new key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewKey {
    pub name: String,
    pub scopes: Scopes,
    pub expires_at: Option<u64>,
    pub requests_per_minute: Option<u32>,
    pub tokens_per_minute: Option<u32>,
    pub concurrency: Option<u32>,
    pub weight: u16,
}

impl Default for NewKey {
    fn default() -> NewKey {
        NewKey {
            name: String::new(),
            scopes: Scopes::NONE,
            expires_at: None,
            requests_per_minute: None,
            tokens_per_minute: None,
            concurrency: None,
            weight: limits::WEIGHT_DEFAULT,
        }
    }
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
    /// The database at `place`; `reason` is its own message.
    Database {
        place: PathBuf,
        fault: Fault,
        reason: String,
    },
    /// A later version of this program has changed the database in a way that this one cannot
    /// work with.
    TooNew {
        path: PathBuf,
        /// The lowest version that can.
        needed: usize,
        known: usize,
    },
    UnknownKey(String),
    RevokedKey(String),
    Random(getrandom::Error),
    Thread(io::Error),
}

/// The fault of a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Another process holds its lock.
    Busy,
    /// It is not a database of ours, or not whole.
    Damaged,
    Other,
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreError::File(path, error) => write!(f, "{}: {error}", path.display()),
            StoreError::Database { place, reason, .. } => {
                write!(f, "{}: {reason}", place.display())
            }
            StoreError::TooNew {
                path,
                needed,
                known,
            } => write!(
                f,
                "{}: the database needs an autoglmd that supports version {needed} of it, but this \
                 one supports {known}; install the newer autoglmd again",
                path.display()
            ),
            StoreError::UnknownKey(id) => {
                write!(
                    f,
                    "no key has the id {id}; list the ids with `autoglmd key list`"
                )
            }
            StoreError::RevokedKey(id) => write!(
                f,
                "{id} is revoked for good; make another key with `autoglmd key create`"
            ),
            StoreError::Thread(error) => write!(f, "no thread can be started: {error}"),
            StoreError::Random(error) => write!(f, "getrandom(2) failed: {error}"),
        }
    }
}

impl std::error::Error for StoreError {}

impl From<getrandom::Error> for StoreError {
    fn from(error: getrandom::Error) -> StoreError {
        StoreError::Random(error)
    }
}
