//! Keys in a store: made, changed, listed, and read for the reactors.
//!
//! Must never name a database.

use std::path::{Path, PathBuf};

use crate::keys::{ChangedKey, KeyRecord, Scopes, Secret};
use crate::limits::keys as limits;
use crate::store::error::StoreError;

/// The bootstrap key's name in the state folder.
pub const BOOTSTRAP_FILE: &str = "bootstrap-key";

/// The API keys of an open store.
pub trait Keys {
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

    /// Takes back the last [`Keys::create`] or [`Keys::rotate`] of this connection, whose secret
    /// could not be shown. Returns `false` if there was none, or the key has changed since.
    fn withdraw(&mut self) -> Result<bool, StoreError>;

    /// Changes a key's weight. Its secrets stay.
    fn set_weight(&mut self, id: &str, weight: u16) -> Result<(), StoreError>;

    /// Revokes a key for good.
    fn revoke(&mut self, id: &str, now: u64) -> Result<Revoked, StoreError>;

    /// Removes a key with its secrets, and its id from the history of changes: every daemon reads
    /// all keys again. Returns `false` if no key has this id.
    fn remove(&mut self, id: &str) -> Result<bool, StoreError>;

    /// Returns every key, oldest first.
    fn list(&self) -> Result<Vec<ListedKey>, StoreError>;

    /// Reads the keys that have changed since a mark, or all keys if the store does not remember
    /// that mark. The records are those for the reactors: one for every secret, including those in
    /// their grace.
    fn read(&self, since: Option<Mark>) -> Result<Reading, StoreError>;

    /// If the store has no key, creates one with every scope, and its file in `state_dir`. A store
    /// whose keys are all revoked does have keys: its owner wanted them gone.
    fn bootstrap(&mut self, state_dir: &Path, now: u64) -> Result<Option<Bootstrap>, StoreError>;
}

/// A moment in the store's history of changes. Another store, or the same one after a backup was
/// put back, has other marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    pub number: i64,
    pub token: i64,
}

/// The result of [`Keys::read`].
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
