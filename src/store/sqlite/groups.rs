//! Groups of tasks that share one commit.

use super::connection::{SqliteStore, database_error};
use crate::store::error::StoreError;
use crate::store::interface::{Groups, Work};

impl SqliteStore {
    /// Runs a statement that begins or ends a transaction or a savepoint. It is prepared once, like
    /// all that each group runs.
    fn execute(&self, sql: &str) -> Result<(), StoreError> {
        let run = || self.connection.prepare_cached(sql)?.execute(()).map(drop);
        run().map_err(|error| database_error(&self.path, error))
    }

    /// Runs work at a savepoint, to which an error of its own rolls back. The outer error means
    /// that the whole transaction is lost.
    pub(super) fn at_savepoint<T>(
        &mut self,
        work: impl FnOnce(&mut SqliteStore) -> Result<T, StoreError>,
    ) -> Result<Result<T, StoreError>, StoreError> {
        self.execute("SAVEPOINT task")?;
        let own = work(self);
        match own {
            Err(error) if self.is_group_lost() => return Err(error),
            Err(_) => {
                self.execute("ROLLBACK TO task")?;
                self.execute("RELEASE task")?;
            }
            Ok(_) => self.execute("RELEASE task")?,
        }
        Ok(own)
    }

    /// Some errors, such as a full disk, end the whole transaction.
    fn is_group_lost(&self) -> bool {
        self.connection.is_autocommit()
    }
}

impl Groups for SqliteStore {
    fn begin(&mut self) -> Result<(), StoreError> {
        // At once with the write lock: a transaction that begins by reading may find its snapshot
        // outdated when it wants to write.
        self.execute("BEGIN IMMEDIATE")?;
        let checked = self.check_reader();
        if checked.is_err() {
            self.roll_back();
        }
        checked
    }

    fn attempt(&mut self, work: Work<'_>) -> Result<Result<(), StoreError>, StoreError> {
        self.at_savepoint(|store| work(store))
    }

    fn commit(&mut self) -> Result<(), StoreError> {
        self.execute("COMMIT")
    }

    fn roll_back(&mut self) {
        if !self.is_group_lost()
            && let Err(error) = self.execute("ROLLBACK")
        {
            // The connection is dropped after a failure, which rolls back as well.
            log::debug!("cannot roll back: {error}");
        }
    }
}
