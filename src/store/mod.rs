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
//! * [`accepting`]: takes in the new jobs of a group;
//! * [`task`]: a piece of work for the store's thread, and [`requests`]: the queue of tasks, with
//!   [`records`] of generations, [`hits`] and [`pending`] entries of the cache beside it,
//!   [`health`], [`upkeep`], and the sizes of the files in the state [`folder`]; [`behind`]: those
//!   entries as tasks; and [`worker`], that thread, with its [`metrics`];
//! * [`erasure`]: removes everything that is kept for a key;
//! * [`transfer`]: writes all of a store to a file, and reads it into another one;
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

pub mod accepting;

pub mod task;

pub mod records;

pub mod hits;

pub mod pending;

pub mod health;

pub mod upkeep;

pub mod folder;

pub mod requests;

mod behind;

pub mod metrics;

pub mod worker;

pub mod erasure;

pub mod transfer;

pub mod watch;

pub use error::{Fault, StoreError};
pub use interface::callbacks::Callbacks;
pub use interface::jobs::{JobChange, JobEnd, Jobs};
pub use interface::keys::{
    BOOTSTRAP_FILE, Bootstrap, Keys, ListedKey, Mark, NewKey, ReadKeys, Reading, Renewal, Revoked,
};
pub use interface::usage::UsageRow;
pub use interface::{Examination, Store};
pub use place::Place;
pub use postgres::Target;
pub use requests::Requests;
pub use sqlite::{DATABASE_FILE, SqliteStore};
pub use task::StoreTask;
pub use watch::{Looks, StoreWatcher};
pub use worker::StoreWorker;

#[cfg(test)]
pub mod tests;
