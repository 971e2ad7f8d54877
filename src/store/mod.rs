//! API keys in SQLite: the data that outlives the process.
//!
//! Reading order: [`sqlite`] keeps the records in a file; [`watch`] watches that file from its own
//! thread and passes a new ring of keys to the reactors when it has changed. [`crate::keys`]
//! defines the keys.

pub mod sqlite;
pub mod watch;

pub use sqlite::{
    BOOTSTRAP_FILE, Bootstrap, DATABASE_FILE, KeyStore, NewKey, Renewal, Revoked, StoreError,
};
pub use watch::StoreWorker;
