//! The store in one SQLite file, shared by the daemon and by the commands in other processes.
//!
//! Owns the schema, its steps, the file's mode and every SQL statement. Must never be called
//! on a reactor's thread: every call here may wait for the disk or for another process's lock.
//!
//! A key is a row of `keys`; its hashes are rows of `secrets`. Each key has one current secret
//! (`valid_until` is NULL), and after a rotation with grace the older ones, each until its own
//! second. A revoked key's row stays, so that the key is not taken for an unknown one and its name
//! stays in the records.
//!
//! Invariants:
//!  1. No text of a key enters the database, only its hash. The secrets that sign callbacks are
//!     there as they are, because the daemon signs with them.
//!  2. Each key has at most one current secret (a unique index sees to it).
//!  3. Every read that is followed by a write is in one `BEGIN IMMEDIATE` transaction with it, so
//!     that two processes never act on the same stale reading. That is why two daemons that start
//!     at once make one bootstrap key, and why each migration runs once.
//!  4. The bootstrap key's file is on the disk before its row is committed. A crash between the two
//!     leaves a file that opens nothing, which the next start replaces; the other order could leave
//!     a key whose secret is lost.
//!  5. The file is 0600 from the moment it exists; SQLite gives its `-wal` and `-shm` its mode.

// In reading order.
mod schema;

mod file;

mod connection;

mod rows;

mod changes;

mod undo;

mod keys;

mod jobs;

mod callbacks;

mod generations;

mod entries;

mod groups;

mod room;

mod transfer;

mod examine;

pub use connection::{DATABASE_FILE, SqliteStore};

#[cfg(test)]
mod tests;
