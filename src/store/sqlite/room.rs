//! Keeps the database's files within their shares of the state folder.
//!
//! Three bounds hold them, and none costs a statement more than a look at the log's length:
//!
//! * `max_page_count`: a statement that would make the file larger fails, and its transaction with
//!   it. Records give way long before ([`Upkeep`]).
//! * `wal_autocheckpoint` and `journal_size_limit`: a commit moves the log into the file, and the
//!   next one begins the log again and cuts it.
//! * [`SqliteStore::make_room`]: neither helps while another connection reads at one moment, as an
//!   export does, because the log keeps everything since. Then transactions wait.
//!
//! SQLite's temporary files would lie beside the folder. A group's savepoint keeps the pages as
//! they were before, and beyond 64 KiB it would write them to such a file. They stay in memory,
//! where a transaction's share bounds them.
//!
//! Other connections are not bound: a key can always be created, and a migration or an import takes
//! what it needs.
//!
//! Mutations that the tests below catch: no `max_page_count`
//! (`the_file_ends_at_its_share_...`); `make_room` that does not look at the log, or that does not
//! empty it (`the_log_of_a_database_that_is_read_...`).
//!
//! [`Upkeep`]: crate::store::upkeep::Upkeep

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use super::connection::{SqliteStore, database_error};
use crate::core::disk_shares::DiskShares;
use crate::limits::store as limits;
use crate::store::error::{Fault, StoreError};

/// Returns the name of the write-ahead log of the database at `path`.
pub fn log_path(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push("-wal");
    name.into()
}

impl SqliteStore {
    /// Returns once a transaction that writes `bytes`, or as much as one usually may, fits into the
    /// log. An error means that it must wait.
    pub(super) fn keep_room(&mut self, shares: &DiskShares, bytes: u64) -> Result<(), StoreError> {
        if self.shares != Some(*shares) {
            let applied = self.apply(shares);
            applied.map_err(|error| database_error(&self.path, error))?;
            self.shares = Some(*shares);
        }
        let length = fs::metadata(log_path(&self.path)).map_or(0, |log| log.len());
        let needed = bytes.max(shares.transaction());
        match length == 0 || length.saturating_add(needed) <= shares.log_file() {
            true => Ok(()),
            false => self.empty_log(length),
        }
    }

    fn apply(&self, shares: &DiskShares) -> rusqlite::Result<()> {
        let connection = &self.connection;
        let page_bytes = connection.pragma_query_value(None, "page_size", |row| row.get(0))?;
        let page_bytes = u64::from(u32::max(page_bytes, 1));
        let pages = (shares.database / page_bytes).max(1);
        let usual = limits::CHECKPOINT_BYTES.min(shares.log_file() / 4);
        let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        // A file that is larger stays as it is, and does not grow.
        connection.pragma_update(None, "max_page_count", number(pages))?;
        connection.pragma_update(None, "wal_autocheckpoint", number(usual / page_bytes))?;
        connection.pragma_update(None, "journal_size_limit", number(usual))?;
        connection.pragma_update(None, "temp_store", "MEMORY")
    }

    /// Moves the log into the file and cuts it. Waits a moment for readers that are about to end.
    fn empty_log(&mut self, length: u64) -> Result<(), StoreError> {
        let connection = &self.connection;
        let empty = || -> rusqlite::Result<bool> {
            connection.busy_timeout(limits::READERS_PATIENCE)?;
            let sql = "PRAGMA wal_checkpoint(TRUNCATE)";
            let is_busy = connection.query_row(sql, (), |row| row.get(0));
            connection.busy_timeout(limits::BUSY_TIMEOUT)?;
            is_busy
        };
        match empty().map_err(|error| database_error(&self.path, error))? {
            false => Ok(()),
            true => Err(StoreError::Database {
                place: self.path.display().to_string(),
                fault: Fault::Busy,
                reason: format!(
                    "another process has been using the database for long, so that its log has \
                     grown to {length} bytes and cannot be emptied"
                ),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::DATABASE_FILE;
    use crate::store::interface::entries::{Entries, EntryRow};
    use crate::store::interface::{Groups, Store};
    use rusqlite::Connection;

    const SHARES_BYTES: u64 = 16 << 20;

    fn shares() -> DiskShares {
        DiskShares::of(SHARES_BYTES, 0, true)
    }

    struct Bench {
        _folder: tempfile::TempDir,
        path: PathBuf,
        store: SqliteStore,
        number: u32,
    }

    impl Bench {
        fn new() -> Bench {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join(DATABASE_FILE);
            let store = SqliteStore::open(&path).unwrap();
            Bench {
                _folder: folder,
                path,
                store,
                number: 0,
            }
        }

        /// Writes an entry in a transaction of its own, as the store's thread does.
        fn put(&mut self, bytes: usize) -> Result<(), StoreError> {
            self.number += 1;
            let mut digest = [0; 32];
            digest[..4].copy_from_slice(&self.number.to_be_bytes());
            let entry = EntryRow {
                digest,
                tenant: 1,
                created_at: 1,
                expires_at: u64::MAX,
                value: vec![7; bytes],
            };
            self.store.make_room(&shares(), 0)?;
            self.store.begin()?;
            let done = self.store.put_entry(&entry, 1);
            let done = done.and_then(|()| self.store.commit());
            done.inspect_err(|_| self.store.roll_back())
        }

        fn length(&self, path: &Path) -> u64 {
            fs::metadata(path).map_or(0, |file| file.len())
        }

        fn log(&self) -> u64 {
            self.length(&log_path(&self.path))
        }
    }

    #[test]
    fn the_file_ends_at_its_share_and_goes_on_once_there_is_room() {
        let mut bench = Bench::new();
        let failure = (0..100).find_map(|_| bench.put(256 << 10).err());
        let Some(StoreError::Database { fault, .. }) = failure else {
            panic!("{failure:?}");
        };
        assert_eq!(fault, Fault::Full);
        assert!(bench.length(&bench.path) <= shares().database);
        assert!(bench.length(&bench.path) + (1 << 20) > shares().database);
        // A key can be created all the same: other connections are not bound.
        let mut other = SqliteStore::open(&bench.path).unwrap();
        crate::store::Keys::create(&mut other, &Default::default(), 1).unwrap();
        while bench.store.trim_entries(1 << 20, 100).unwrap() > 0 {}
        bench.put(256 << 10).unwrap();
        assert!(bench.length(&bench.path) <= shares().database + (64 << 10));
    }

    #[test]
    fn the_log_of_a_database_that_is_read_for_long_stays_below_its_share() {
        let mut bench = Bench::new();
        bench.put(256 << 10).unwrap();
        let reader = Connection::open(&bench.path).unwrap();
        let rows = "BEGIN; SELECT count(*) FROM cache_entries";
        reader.execute_batch(rows).unwrap();
        let failure = (0..100).find_map(|_| bench.put(256 << 10).err());
        let Some(StoreError::Database { fault, reason, .. }) = failure else {
            panic!("{failure:?}");
        };
        assert_eq!(fault, Fault::Busy);
        assert!(reason.contains("log has grown to"), "{reason}");
        let share = shares().log_file();
        assert!(
            bench.log() <= share && bench.log() > share / 4,
            "{}",
            bench.log()
        );
        reader.execute_batch("ROLLBACK").unwrap();
        for _ in 0..20 {
            bench.put(256 << 10).unwrap();
            assert!(bench.log() <= share);
        }
    }

    /// Mutation: `temp_store` left as it is. 256 jobs that are accepted together then cost a file
    /// of 0.3 MB.
    #[test]
    fn groups_make_no_temporary_files() {
        let mut bench = Bench::new();
        bench.put(1).unwrap();
        let connection = &bench.store.connection;
        let temp_store = connection.pragma_query_value(None, "temp_store", |row| row.get(0));
        assert_eq!(temp_store, Ok(2), "2 is MEMORY");
    }

    #[test]
    fn a_burst_leaves_a_short_log() {
        let mut bench = Bench::new();
        bench.put(900 << 10).unwrap();
        assert!(bench.log() > 900 << 10);
        bench.put(1).unwrap();
        assert!(bench.log() <= shares().log_file() / 4, "{}", bench.log());
    }
}
