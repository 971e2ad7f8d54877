//! The errors of a store, whatever database is behind it.

use std::fmt;
use std::io::{self, ErrorKind};
use std::path::PathBuf;

#[derive(Debug)]
pub enum StoreError {
    /// A file or folder, and its error.
    File(PathBuf, io::Error),
    /// The database at `place`; `reason` is its own message.
    Database {
        place: String,
        fault: Fault,
        reason: String,
    },
    /// A later version of this program has changed the database in a way that this one cannot
    /// work with.
    TooNew {
        place: String,
        /// The lowest version that can.
        needed: usize,
        known: usize,
    },
    UnknownKey(String),
    RevokedKey(String),
    Random(getrandom::Error),
    Thread(io::Error),
    /// A task failed by a fault of the daemon.
    Panicked,
}

/// The fault of a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Another process holds its lock.
    Busy,
    /// The disk is full, or the file's share of the state folder is used up.
    Full,
    /// The server has ended this transaction, so that another one can go on.
    Conflict,
    /// It has no tables of ours yet, or not all of them.
    Empty,
    /// It is not a database of ours, or not whole.
    Damaged,
    /// Its server cannot be reached, or has closed the connection, or is silent.
    Unreachable,
    /// Its server refuses user, password or certificate, or a right is missing.
    Denied,
    Other,
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreError::File(path, error) => write!(f, "{}: {error}", path.display()),
            StoreError::Database { place, reason, .. } => {
                write!(f, "{place}: {reason}")
            }
            StoreError::TooNew {
                place,
                needed,
                known,
            } => write!(
                f,
                "{place}: the database needs an autoglmd that supports version {needed} of it, but \
                 this one supports {known}; install the newer autoglmd again"
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
            StoreError::Panicked => f.write_str("a fault of the daemon, see above in the log"),
            StoreError::Random(error) => write!(f, "getrandom(2) failed: {error}"),
        }
    }
}

impl StoreError {
    /// Returns whether the same transaction will probably succeed when it is run again at once.
    pub fn is_conflict(&self) -> bool {
        self.is(Fault::Conflict)
    }

    /// Returns whether the database itself has failed in this way.
    pub fn is(&self, expected: Fault) -> bool {
        let StoreError::Database { fault, .. } = self else {
            return false;
        };
        *fault == expected
    }

    /// Returns what an operator can do about it, where the message itself does not say so.
    pub fn way_out(&self) -> Option<&'static str> {
        match self {
            StoreError::File(_, error) => Some(match error.kind() {
                ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
                    "let this user write there, or name another folder with --state-dir"
                }
                _ => "name another folder with --state-dir",
            }),
            StoreError::Database { fault, .. } => match fault {
                Fault::Busy => {
                    Some("another process holds its lock; try again when that has ended")
                }
                Fault::Full => Some("free space on its disk, or raise store.max_size"),
                Fault::Empty => Some("a daemon creates the tables when it starts"),
                Fault::Damaged => {
                    Some("put a backup in its place, or name another folder with --state-dir")
                }
                Fault::Unreachable | Fault::Denied => {
                    Some("see `store` in the configuration: `autoglmd check --show`")
                }
                Fault::Conflict | Fault::Other => None,
            },
            _ => None,
        }
    }

    /// Returns whether one of several rows may be the cause, so that others may be written without
    /// it.
    pub fn may_concern_one(&self) -> bool {
        match self {
            StoreError::Database { fault, .. } => *fault == Fault::Other,
            StoreError::Panicked => true,
            _ => false,
        }
    }
}

impl std::error::Error for StoreError {}

impl From<getrandom::Error> for StoreError {
    fn from(error: getrandom::Error) -> StoreError {
        StoreError::Random(error)
    }
}
