//! The open database: how it is opened, brought up to date, and written to.
//!
//! Owns the connection and its transactions. Knows no table but those of the schema.
//!
//! Mutations that tests catch: `migrate` without its lock (`connections_that_open_at_once_...`),
//! `open_existing` that migrates an empty database (`an_empty_database_is_not_filled_...`).

use std::cell::Cell;
use std::thread;
use std::time::{Duration, Instant};

use super::examine;
use super::schema::{STEPS, Schema, Step};
use super::session::Session;
use super::target::Target;
use super::undo::Undo;
use crate::limits::store as limits;
use crate::store::error::{Fault, StoreError};
use crate::store::interface::{Examination, Groups, Store, Work};

/// Protects migrations and the first key; the bytes `agms`.
pub(super) const LOCK_SCHEMA: &str = "SELECT pg_advisory_xact_lock(1634168179)";

/// The open database. It is one connection, so it must be used from one thread at a time.
pub struct PostgresStore {
    pub(super) session: Session,
    /// Transactions and savepoints that have begun.
    depth: u32,
    /// The state before the last change that made a secret.
    pub(super) undo: Option<Undo>,
    /// When to ask again whether a later program has raised `min_reader`.
    look_at_reader: Cell<Instant>,
}

impl PostgresStore {
    /// Opens the database; creates the tables if it is empty.
    pub fn open(target: &Target) -> Result<PostgresStore, StoreError> {
        let mut store = PostgresStore::connect(target)?;
        store.migrate(STEPS)?;
        Ok(store)
    }

    /// Opens a database that has tables, and creates none: while an operator restores a backup,
    /// they would be in the way.
    pub fn open_existing(target: &Target) -> Result<PostgresStore, StoreError> {
        let mut store = PostgresStore::connect(target)?;
        if Schema::read(&store.session)?.version == 0 {
            return Err(store.unfinished());
        }
        store.migrate(STEPS)?;
        Ok(store)
    }

    /// Looks at a database without changing it, whatever its version.
    pub fn examine(target: &Target) -> Result<Examination, StoreError> {
        let store = PostgresStore::connect(target)?;
        let found = examine::examine(&store.session)?;
        match found.version {
            0 => Err(store.unfinished()),
            _ => Ok(found),
        }
    }

    fn connect(target: &Target) -> Result<PostgresStore, StoreError> {
        Ok(PostgresStore {
            session: Session::open(target)?,
            depth: 0,
            undo: None,
            look_at_reader: Cell::new(Instant::now()),
        })
    }

    fn unfinished(&self) -> StoreError {
        let reason = "the database has no tables of autoglmd yet".to_owned();
        self.session.error(Fault::Empty, reason)
    }

    /// Applies the steps that this database has not seen, each in its own transaction. Another
    /// daemon may do so at the same moment, and a step may read whole tables, so neither the lock
    /// nor a step has the timeout of other statements.
    pub(super) fn migrate(&mut self, steps: &[Step]) -> Result<(), StoreError> {
        let known = steps.len();
        // The usual case takes no lock.
        let found = Schema::read(&self.session)?;
        if found.version >= known && found.min_reader <= known {
            return Ok(());
        }
        for (index, step) in steps.iter().enumerate() {
            self.write(|session| {
                session.patiently(limits::MIGRATION_TIMEOUT, || {
                    session.batch("SET LOCAL statement_timeout = 0")?;
                    session.batch(LOCK_SCHEMA)?;
                    // Another process may just have done this step.
                    let found = Schema::read(session)?;
                    if found.min_reader > known {
                        return Err(StoreError::TooNew {
                            place: session.name().to_owned(),
                            needed: found.min_reader,
                            known,
                        });
                    }
                    if found.version > index {
                        return Ok(());
                    }
                    step.apply(session, index + 1)
                })
            })?;
        }
        Ok(())
    }

    /// Runs `work` in a transaction, or at a savepoint of the transaction that has begun. An error
    /// of `work` rolls back.
    pub(super) fn write<T>(
        &mut self,
        work: impl FnOnce(&Session) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.enter();
        match work(&self.session) {
            Ok(value) => self.leave().map(|()| value),
            Err(error) => {
                self.back_out();
                Err(error)
            }
        }
    }

    /// Begins a transaction or, inside of one, sets a savepoint.
    fn enter(&mut self) {
        match self.depth {
            0 => {
                self.session.forget_failure();
                self.session.owe("BEGIN");
            }
            depth => self.session.owe(&format!("SAVEPOINT s{depth}")),
        }
        self.depth += 1;
    }

    /// Keeps what was written since the last [`PostgresStore::enter`].
    fn leave(&mut self) -> Result<(), StoreError> {
        self.depth -= 1;
        let release = match self.depth {
            0 => return self.session.batch("COMMIT"),
            depth => format!("RELEASE SAVEPOINT s{depth}"),
        };
        // The server refuses it after an error, which the caller may have ignored.
        match self.session.has_failed() {
            true => self.session.batch(&release),
            false => {
                self.session.owe(&release);
                Ok(())
            }
        }
    }

    /// Takes back what was written since the last [`PostgresStore::enter`]. If this fails, the
    /// connection is lost, and the server takes back everything.
    fn back_out(&mut self) {
        self.depth = self.depth.saturating_sub(1);
        let done = match self.depth {
            0 => self.session.batch("ROLLBACK"),
            depth => self
                .session
                .batch(&format!("ROLLBACK TO s{depth}; RELEASE s{depth}")),
        };
        match done {
            Ok(()) => self.session.forget_failure(),
            Err(error) => log::debug!("cannot roll back: {error}"),
        }
    }
}

impl Groups for PostgresStore {
    fn begin(&mut self) -> Result<(), StoreError> {
        self.enter();
        Ok(())
    }

    fn attempt(&mut self, work: Work<'_>) -> Result<Result<(), StoreError>, StoreError> {
        self.enter();
        match work(self as &mut dyn Store) {
            Ok(()) => self.leave().map(Ok),
            Err(error) if self.session.is_lost() => Err(error),
            Err(error) => {
                self.back_out();
                Ok(Err(error))
            }
        }
    }

    fn commit(&mut self) -> Result<(), StoreError> {
        self.leave()
    }

    fn roll_back(&mut self) {
        // A lost connection has lost its transaction.
        if self.depth > 0 && !self.session.is_lost() {
            self.depth = 1;
            self.back_out();
        }
    }
}

impl Store for PostgresStore {
    /// The number of the newest change of a key.
    fn version(&self) -> Result<i64, StoreError> {
        let sql = "SELECT coalesce(max(number), 0) FROM key_changes";
        self.session.value(sql, &[])
    }

    /// A transaction gets its number with its first write, so those that had one before this call
    /// have smaller ones.
    fn await_earlier_writes(&mut self, patience: Duration) -> Result<bool, StoreError> {
        let own: i64 = self.session.value("SELECT txid_current()", &[])?;
        let until = Instant::now() + patience;
        loop {
            let oldest = "SELECT txid_snapshot_xmin(txid_current_snapshot())";
            if self.session.value::<i64>(oldest, &[])? > own {
                return Ok(true);
            }
            if Instant::now() >= until {
                return Ok(false);
            }
            thread::sleep(limits::ERASURE_POLL_INTERVAL);
        }
    }

    fn overwrite_removed(&mut self) -> Result<(), StoreError> {
        Ok(())
    }

    /// A lost connection is opened again. That finds a database that took the place of the first:
    /// none can be replaced while a connection uses it.
    fn is_replaced(&self) -> bool {
        self.session.is_lost() || self.is_outgrown()
    }
}

impl PostgresStore {
    /// Returns whether a later program has raised `min_reader`. It is asked for twice per second
    /// and not in each transaction, whose round trips are most of its time.
    fn is_outgrown(&self) -> bool {
        let now = Instant::now();
        if now < self.look_at_reader.get() {
            return false;
        }
        self.look_at_reader.set(now + limits::WATCH_INTERVAL);
        // A lost connection is noticed by itself.
        Schema::read(&self.session).is_ok_and(|found| found.min_reader > STEPS.len())
    }
}
