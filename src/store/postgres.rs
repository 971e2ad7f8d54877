//! The store in a PostgreSQL database, which several daemons may share.
//!
//! Owns the schema, its steps and every SQL statement. Must never be called on a reactor's thread:
//! every call here may wait for the server, for as long as the timeouts of its [`Target`] allow.
//!
//! The tables are those of SQLite, and so are most invariants of [`sqlite`]. They hold by other
//! means:
//!  1. No text of a key enters the database, only its hash.
//!  2. Each key has at most one current secret (a unique index sees to it).
//!  3. A read that is followed by a write locks the row that it read. Migrations and the first key
//!     hold an advisory lock, so that daemons that start at once do either once.
//!  4. The bootstrap key's file is on the disk before its row is committed.
//!  5. No call waits longer than its timeout, even if the server was stopped in the middle of a
//!     statement. After that the connection is lost, and each later call fails at once.
//!
//! Why `tokio-postgres` and not `postgres`, which is the same client without `async`: its calls
//! wait without a bound. A server that is stopped, or a network that loses packets, would hold the
//! thread, and so the end of the process. A connection here has a runtime of its own, for one
//! socket and one timer, which runs only while a call waits.
//!
//! [`sqlite`]: super::sqlite

// In reading order.
mod target;

mod session;

mod schema;

mod connection;

mod rows;

mod undo;

mod keys;

mod changes;

mod jobs;

mod callbacks;

mod generations;

mod entries;

mod transfer;

mod examine;

pub use connection::PostgresStore;
pub use target::Target;

#[cfg(test)]
mod tests;
