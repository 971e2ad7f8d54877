//! Where the store is: the one place that knows which databases there are.
//!
//! Owns the choice between them. Everything else works with a [`Store`].

use std::fmt;
use std::path::PathBuf;

use super::error::StoreError;
use super::interface::{Examination, Store};
use super::postgres::{PostgresStore, Target};
use super::sqlite::SqliteStore;

#[derive(Clone, Debug)]
pub enum Place {
    /// The file.
    Sqlite(PathBuf),
    Postgres(Box<Target>),
}

impl Place {
    /// Opens the store, and brings it to this program's version. Creates file and tables if they
    /// are missing.
    pub fn open(&self) -> Result<Box<dyn Store>, StoreError> {
        Ok(match self {
            Place::Sqlite(path) => Box::new(SqliteStore::open(path)?),
            Place::Postgres(target) => Box::new(PostgresStore::open(target)?),
        })
    }

    /// The same, but creates no store: while an operator puts a backup in its place, a new one
    /// would be in the way.
    pub fn open_existing(&self) -> Result<Box<dyn Store>, StoreError> {
        Ok(match self {
            Place::Sqlite(path) => Box::new(SqliteStore::open_existing(path)?),
            Place::Postgres(target) => Box::new(PostgresStore::open_existing(target)?),
        })
    }

    /// Looks at the store without changing it, whatever its version.
    pub fn examine(&self) -> Result<Examination, StoreError> {
        match self {
            Place::Sqlite(path) => SqliteStore::examine(path),
            Place::Postgres(target) => PostgresStore::examine(target),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Sqlite(path) => write!(f, "{}", path.display()),
            Place::Postgres(target) => write!(f, "{target}"),
        }
    }
}
