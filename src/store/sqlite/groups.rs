//! Groups of tasks that share one commit.

use super::connection::{SqliteStore, database_error};
use crate::store::error::StoreError;
use crate::store::interface::{Groups, Store, Work};

impl SqliteStore {
    fn execute(&mut self, sql: &str) -> Result<(), StoreError> {
        let done = self.connection.execute_batch(sql);
        done.map_err(|error| database_error(&self.path, error))
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
        self.execute("SAVEPOINT task")?;
        let own = work(self as &mut dyn Store);
        match own {
            Err(error) if self.is_group_lost() => return Err(error),
            Err(_) => self.execute("ROLLBACK TO task; RELEASE task")?,
            Ok(()) => self.execute("RELEASE task")?,
        }
        Ok(own)
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
