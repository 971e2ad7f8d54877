//! API keys in a database: the data that outlives the process.
//!
//! In reading order:
//!
//! * [`interface`]: the trait of a store, whatever database is behind it;
//! * [`sqlite`]: the store in one file;
//! * [`watch`]: a thread that watches the store, and passes on a new ring of keys when it changed.
//!
//! [`crate::keys`] defines the keys.

pub mod interface;
pub mod sqlite;
pub mod watch;

pub use interface::{
    BOOTSTRAP_FILE, Bootstrap, Examination, Fault, ListedKey, Mark, NewKey, ReadKeys, Reading,
    Renewal, Revoked, Store, StoreError,
};
pub use sqlite::{DATABASE_FILE, KeyStore};
pub use watch::StoreWatcher;
