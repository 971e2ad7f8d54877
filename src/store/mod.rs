//! API keys in SQLite: what outlives the process.
//!
//! Reading order: [`sqlite`] keeps the records in a file; [`watch`] looks at that file from a
//! thread of its own and passes the reactors a new ring of keys when it has changed. What a key is
//! stands in [`crate::keys`].

pub mod sqlite;
pub mod watch;

pub use sqlite::{
    BOOTSTRAP_FILE, Bootstrap, DATABASE_FILE, KeyStore, NewKey, Renewal, Revoked, StoreError,
};
pub use watch::StoreWorker;
