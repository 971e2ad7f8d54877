//! The data that outlives the process: API keys, and records of generations.
//!
//! In reading order:
//!
//! * [`error`]: what can go wrong;
//! * [`interface`]: the traits of a store, whatever database is behind it;
//! * [`stored`] and [`new_key`]: what databases have in common;
//! * [`sqlite`]: the store in one file;
//! * [`postgres`]: the store in a database server;
//! * [`place`]: which of them it is;
//! * [`requests`]: the queue of tasks for the store's thread, with [`records`] of generations
//!   beside it, [`health`] and [`upkeep`]; and [`worker`], that thread, with its [`metrics`];
//! * [`watch`]: a thread that watches the store, and passes on a new ring of keys when it changed.
//!
//! [`crate::keys`] defines the keys.

pub mod error;

pub mod interface;

mod stored;

mod new_key;

pub mod sqlite;

pub mod postgres;

pub mod place;

pub mod records;

pub mod health;

pub mod upkeep;

pub mod requests;

pub mod metrics;

pub mod worker;

pub mod watch;

pub use error::{Fault, StoreError};
pub use interface::jobs::{FinishedJob, Jobs, RememberedJob};
pub use interface::keys::{
    BOOTSTRAP_FILE, Bootstrap, Keys, ListedKey, Mark, NewKey, ReadKeys, Reading, Renewal, Revoked,
};
pub use interface::{Examination, Store};
pub use place::Place;
pub use postgres::Target;
pub use requests::{Requests, StoreTask};
pub use sqlite::{DATABASE_FILE, SqliteStore};
pub use watch::{Looks, StoreWatcher};
pub use worker::StoreWorker;

#[cfg(test)]
mod tests;
