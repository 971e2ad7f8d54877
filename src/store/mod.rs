//! What outlives the process: API keys in SQLite, and models.
//!
//! Reading order: [`keys`] says what a key is and how one is found, without any input or output;
//! [`sqlite`] keeps the records in a file; [`worker`] watches that file from a thread of its own
//! and hands the reactors a new ring of keys when it has changed. [`models`] is the other thing on
//! disk: GGUF files, fetched once and checked.

pub mod keys;
pub mod models;
pub mod sqlite;
pub mod worker;

pub use keys::{KeyRecord, KeyRing, Scopes, Secret, Standing};
pub use sqlite::{
    BOOTSTRAP_FILE, Bootstrap, DATABASE_FILE, KeyStore, NewKey, Renewal, Revoked, StoreError,
};
pub use worker::StoreWorker;
