//! Entries of the cache, in PostgreSQL.
//!
//! A group of tasks finds and writes entries in any order, and so do those of other daemons. Two of
//! them that wait for each other's rows would both be held up until the server ends one. So a row
//! is written only under an advisory lock of its digest that is there at once: without it another
//! transaction is writing the same result, or counting a use.
//!
//! Mutations that `store/tests/entries.rs` catches are those of SQLite's; `entries_of_two_...` in
//! `postgres/tests.rs` catches a put without the advisory lock.

use tokio_postgres::Row;

use super::connection::PostgresStore;
use super::session::Unread;
use crate::store::error::StoreError;
use crate::store::interface::entries::{Entries, EntryPlace, EntryRow};
use crate::store::stored::{from_sql, to_sql};

pub(super) const FIND: &str = "
    SELECT digest, tenant, created_at, expires_at, value
    FROM cache_entries WHERE digest = $1 AND expires_at > $2";

const USE: &str = "
    UPDATE cache_entries SET hits = hits + 1, used_at = $2
    WHERE digest = $1 AND pg_try_advisory_xact_lock($3)";

const PUT: &str = "
    INSERT INTO cache_entries AS e
    SELECT $1::bytea, $2::bigint, $3::bigint, $4::bigint, $5::bigint, 0, $6::bigint, $7::bytea
    WHERE pg_try_advisory_xact_lock($8)
    ON CONFLICT (digest) DO UPDATE SET created_at = excluded.created_at,
        expires_at = excluded.expires_at, used_at = excluded.used_at, bytes = excluded.bytes,
        value = excluded.value
    WHERE excluded.created_at >= e.created_at";

/// The query for the entries that are used most.
pub(super) const MOST_USED: &str = "
    SELECT digest, tenant, created_at, expires_at, value, hits
    FROM cache_entries WHERE (hits, digest) < ($1, $2) AND expires_at > $3
    ORDER BY hits DESC, digest DESC LIMIT $4";

/// Removes what exceeds the bound, but no more of the largest tenant than it has beyond an equal
/// share.
const TRIM: &str = "
    WITH totals AS (
            SELECT tenant, sum(bytes)::bigint AS bytes FROM cache_entries GROUP BY tenant),
        sums AS (SELECT sum(bytes)::bigint AS bytes, count(*) AS tenants FROM totals),
        largest AS (SELECT tenant, bytes FROM totals ORDER BY bytes DESC LIMIT 1),
        oldest AS (
            SELECT digest, sum(bytes) OVER (ORDER BY used_at, digest) - bytes AS before FROM (
                SELECT digest, used_at, bytes FROM cache_entries
                WHERE tenant = (SELECT tenant FROM largest) ORDER BY used_at, digest LIMIT $2
            ) AS own
        ),
        excess AS (
            SELECT digest FROM oldest, sums, largest
            WHERE before < least(sums.bytes - $1::bigint, largest.bytes - $1 / sums.tenants))
    DELETE FROM cache_entries WHERE digest IN (
        SELECT digest FROM cache_entries WHERE digest IN (SELECT digest FROM excess)
        FOR UPDATE SKIP LOCKED)";

/// Without the order the server may read the table from its beginning, in the hope of a row soon.
pub(super) const DELETE_OLD: &str = "
    DELETE FROM cache_entries WHERE digest IN (
        SELECT digest FROM cache_entries WHERE expires_at <= $1 ORDER BY expires_at LIMIT $2
        FOR UPDATE SKIP LOCKED)";

pub(super) const ERASE: &str = "
    DELETE FROM cache_entries WHERE digest IN (
        SELECT digest FROM cache_entries WHERE tenant = $1 ORDER BY used_at LIMIT $2
        FOR UPDATE SKIP LOCKED)";

const ERASE_ALL: &str = "
    DELETE FROM cache_entries WHERE digest IN (
        SELECT digest FROM cache_entries LIMIT $1 FOR UPDATE SKIP LOCKED)";

const ERASE_ONE: &str = "
    DELETE FROM cache_entries WHERE digest IN (
        SELECT digest FROM cache_entries WHERE digest = $1 AND created_at <= $2
        FOR UPDATE SKIP LOCKED)";

const IS_LEFT: &str = "SELECT 1 FROM cache_entries WHERE digest = $1 AND created_at <= $2";

impl Entries for PostgresStore {
    fn find_entry(&mut self, digest: &[u8; 32], now: u64) -> Result<Option<EntryRow>, StoreError> {
        let (name, now) = (&digest[..], to_sql(now));
        let found = self.session.first(FIND, &[&name, &now], read)?;
        if found.is_some() {
            self.session
                .execute(USE, &[&name, &now, &lock_of(digest)])?;
        }
        Ok(found)
    }

    fn put_entry(&mut self, entry: &EntryRow, now: u64) -> Result<(), StoreError> {
        self.session.execute(
            PUT,
            &[
                &&entry.digest[..],
                &entry.tenant.cast_signed(),
                &to_sql(entry.created_at),
                &to_sql(entry.expires_at),
                &to_sql(now),
                &to_sql(entry.bytes()),
                &entry.value,
                &lock_of(&entry.digest),
            ],
        )?;
        Ok(())
    }

    fn most_used_entries(
        &mut self,
        now: u64,
        after: Option<EntryPlace>,
        limit: u32,
    ) -> Result<Vec<(EntryPlace, EntryRow)>, StoreError> {
        let hits = after.map_or(i64::MAX, |place| to_sql(place.hits));
        let digest = after.map_or([u8::MAX; 32], |place| place.digest);
        let (digest, limit) = (&digest[..], i64::from(limit));
        self.session
            .query(MOST_USED, &[&hits, &digest, &to_sql(now), &limit], |row| {
                let entry = read(row)?;
                let place = EntryPlace {
                    hits: from_sql(row.try_get(5)?),
                    digest: entry.digest,
                };
                Ok((place, entry))
            })
    }

    fn delete_old_entries(&mut self, now: u64, limit: u32) -> Result<u32, StoreError> {
        self.execute(DELETE_OLD, &[&to_sql(now), &i64::from(limit)])
    }

    fn trim_entries(&mut self, bytes_max: u64, limit: u32) -> Result<u32, StoreError> {
        self.execute(TRIM, &[&to_sql(bytes_max), &i64::from(limit)])
    }

    fn erase_entries(&mut self, tenant: Option<u64>, limit: u32) -> Result<u32, StoreError> {
        let limit = i64::from(limit);
        match tenant {
            Some(tenant) => self.execute(ERASE, &[&tenant.cast_signed(), &limit]),
            None => self.execute(ERASE_ALL, &[&limit]),
        }
    }

    fn erase_entry(&mut self, digest: &[u8; 32], created_at: u64) -> Result<bool, StoreError> {
        let (name, created_at) = (&digest[..], to_sql(created_at));
        self.execute(ERASE_ONE, &[&name, &created_at])?;
        let left = self
            .session
            .first(IS_LEFT, &[&name, &created_at], |_| Ok(()))?;
        Ok(left.is_none())
    }
}

/// Returns the number of the advisory lock of an entry. Two entries that share one only miss a
/// write.
fn lock_of(digest: &[u8; 32]) -> i64 {
    let mut number = [0; 8];
    number.copy_from_slice(&digest[..8]);
    i64::from_le_bytes(number)
}

fn read(row: &Row) -> Result<EntryRow, Unread> {
    let digest: &[u8] = row.try_get(0)?;
    let wrong = |_| Unread::Content("a digest of another length".to_owned());
    Ok(EntryRow {
        digest: digest.try_into().map_err(wrong)?,
        tenant: row.try_get::<_, i64>(1)?.cast_unsigned(),
        created_at: from_sql(row.try_get(2)?),
        expires_at: from_sql(row.try_get(3)?),
        value: row.try_get(4)?,
    })
}
