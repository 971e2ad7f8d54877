//! Entries of the cache.
//!
//! Mutations that `store/tests/entries.rs` catches: a find without the time, an older entry that
//! replaces a newer one, a trim of another tenant than the largest, a trim beyond the excess,
//! beyond an equal share or beyond its step, one that does not begin with the entries that were not
//! used for longest, a total that a removal leaves.

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::connection::{SqliteStore, database_error};
use crate::store::error::StoreError;
use crate::store::interface::entries::{Entries, EntryPlace, EntryRow};
use crate::store::stored::{from_sql, to_sql};

const FIND: &str = "
    UPDATE cache_entries SET hits = hits + 1, used_at = ?2
    WHERE digest = ?1 AND expires_at > ?2
    RETURNING digest, tenant, created_at, expires_at, value";

const PUT: &str = "
    INSERT INTO cache_entries VALUES (?1, ?2, ?3, ?4, ?5, 0, ?6, ?7)
    ON CONFLICT (digest) DO UPDATE SET created_at = excluded.created_at,
        expires_at = excluded.expires_at, used_at = excluded.used_at, bytes = excluded.bytes,
        value = excluded.value
    WHERE excluded.created_at >= created_at";

/// The query for the entries that are used most.
const MOST_USED: &str = "
    SELECT digest, tenant, created_at, expires_at, value, hits
    FROM cache_entries WHERE (hits, digest) < (?1, ?2) AND expires_at > ?3
    ORDER BY hits DESC, digest DESC LIMIT ?4";

/// Removes what exceeds the bound, but no more of the largest tenant than it has beyond an equal
/// share.
const TRIM: &str = "
    WITH sums AS (SELECT sum(bytes) AS bytes, count(*) AS tenants FROM cache_totals),
        largest AS (SELECT tenant, bytes FROM cache_totals ORDER BY bytes DESC LIMIT 1),
        oldest AS (
            SELECT digest, sum(bytes) OVER (ORDER BY used_at, digest) - bytes AS before FROM (
                SELECT digest, used_at, bytes FROM cache_entries
                WHERE tenant = (SELECT tenant FROM largest) ORDER BY used_at, digest LIMIT ?2
            )
        )
    DELETE FROM cache_entries WHERE digest IN (
        SELECT digest FROM oldest, sums, largest
        WHERE before < min(sums.bytes - ?1, largest.bytes - ?1 / sums.tenants))";

const DELETE_OLD: &str = "
    DELETE FROM cache_entries WHERE digest IN (
        SELECT digest FROM cache_entries WHERE expires_at <= ?1 LIMIT ?2)";

const ERASE: &str = "
    DELETE FROM cache_entries WHERE digest IN (
        SELECT digest FROM cache_entries WHERE tenant = ?1 LIMIT ?2)";

const ERASE_ONE: &str = "DELETE FROM cache_entries WHERE digest = ?1 AND created_at <= ?2";

impl Entries for SqliteStore {
    fn find_entry(&mut self, digest: &[u8; 32], now: u64) -> Result<Option<EntryRow>, StoreError> {
        self.with_entries(|connection| {
            let mut statement = connection.prepare_cached(FIND)?;
            let values = params![digest, to_sql(now)];
            statement.query_row(values, read).optional()
        })
    }

    fn put_entry(&mut self, entry: &EntryRow, now: u64) -> Result<(), StoreError> {
        self.with_entries(|connection| {
            let mut statement = connection.prepare_cached(PUT)?;
            let values = params![
                entry.digest,
                entry.tenant.cast_signed(),
                to_sql(entry.created_at),
                to_sql(entry.expires_at),
                to_sql(now),
                to_sql(entry.bytes()),
                entry.value,
            ];
            statement.execute(values).map(drop)
        })
    }

    fn most_used_entries(
        &mut self,
        now: u64,
        after: Option<EntryPlace>,
        limit: u32,
    ) -> Result<Vec<(EntryPlace, EntryRow)>, StoreError> {
        let hits = after.map_or(i64::MAX, |place| to_sql(place.hits));
        let digest = after.map_or([u8::MAX; 32], |place| place.digest);
        let read_with_place = |row: &Row<'_>| {
            let entry = read(row)?;
            let place = EntryPlace {
                hits: from_sql(row.get(5)?),
                digest: entry.digest,
            };
            Ok((place, entry))
        };
        let find = || -> rusqlite::Result<Vec<_>> {
            let mut statement = self.connection.prepare_cached(MOST_USED)?;
            let values = params![hits, digest, to_sql(now), limit];
            statement.query_map(values, read_with_place)?.collect()
        };
        find().map_err(|error| database_error(&self.path, error))
    }

    fn delete_old_entries(&mut self, now: u64, limit: u32) -> Result<u32, StoreError> {
        self.change(DELETE_OLD, (to_sql(now), limit))
    }

    fn trim_entries(&mut self, bytes_max: u64, limit: u32) -> Result<u32, StoreError> {
        self.change(TRIM, (to_sql(bytes_max), limit))
    }

    fn erase_entries(&mut self, tenant: Option<u64>, limit: u32) -> Result<u32, StoreError> {
        match tenant {
            Some(tenant) => self.change(ERASE, (tenant.cast_signed(), limit)),
            None => {
                let all = "
                    DELETE FROM cache_entries WHERE digest IN (
                        SELECT digest FROM cache_entries LIMIT ?1
                    )";
                self.change(all, [limit])
            }
        }
    }

    fn erase_entry(&mut self, digest: &[u8; 32], created_at: u64) -> Result<bool, StoreError> {
        let values = params![digest, to_sql(created_at)];
        let _ = self.change(ERASE_ONE, values)?;
        // Nothing else changes the database meanwhile.
        Ok(true)
    }
}

impl SqliteStore {
    fn with_entries<T>(
        &mut self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        let path = self.path.clone();
        self.write(|connection| work(connection).map_err(|error| database_error(&path, error)))
    }
}

fn read(row: &Row<'_>) -> rusqlite::Result<EntryRow> {
    Ok(EntryRow {
        digest: row.get(0)?,
        tenant: row.get::<_, i64>(1)?.cast_unsigned(),
        created_at: from_sql(row.get(2)?),
        expires_at: from_sql(row.get(3)?),
        value: row.get(4)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mutations: the index of ends, of hits, of tenants, or of totals left out.
    #[test]
    fn no_statement_reads_all_entries() {
        let folder = tempfile::tempdir().unwrap();
        let store = SqliteStore::open_in(folder.path()).unwrap();
        for (sql, index) in [
            (MOST_USED, "cache_entries_by_hits"),
            (TRIM, "cache_entries_of_tenants"),
            (TRIM, "cache_totals_by_bytes"),
            (FIND, "sqlite_autoindex_cache_entries_1"),
            (DELETE_OLD, "cache_entries_by_end"),
            (ERASE, "cache_entries_of_tenants"),
        ] {
            let sql = format!("EXPLAIN QUERY PLAN {sql}");
            let mut statement = store.connection.prepare(&sql).unwrap();
            let rows = statement.raw_query().mapped(|row| row.get::<_, String>(3));
            let plan: Vec<String> = rows.map(Result::unwrap).collect();
            assert!(plan.iter().any(|line| line.contains(index)), "{plan:#?}");
            let scans = plan.iter().filter(|line| line.starts_with("SCAN"));
            let mut scans = scans.filter(|line| line.contains("cache_entries"));
            assert_eq!(scans.next(), None, "{plan:#?}");
        }
    }
}
