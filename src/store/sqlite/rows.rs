//! Rows of the database, and the statements that read and write them.
//!
//! Owns the SQL of keys and secrets. Knows no transaction: each caller brings its own.

use rusqlite::{Connection, OptionalExtension, Row};

use crate::keys::{KeyRecord, Scopes};
use crate::store::stored::{StoredSecret, from_sql, to_sql, weight_from_sql};

pub const SELECT_SECRETS: &str = "
    SELECT k.id, k.name, s.hash, k.scopes, k.created_at, k.expires_at, k.requests_per_minute,
           k.tokens_per_minute, k.concurrency, k.revoked_at, s.created_at, s.valid_until, k.weight
    FROM keys k JOIN secrets s ON s.key_id = k.id";

/// Reads one row of [`SELECT_SECRETS`].
pub fn read(row: &Row<'_>) -> rusqlite::Result<StoredSecret> {
    let seconds = |index| {
        row.get::<_, Option<i64>>(index)
            .map(|value| value.map(from_sql))
    };
    let scopes: String = row.get(3)?;
    let revoked_at = seconds(9)?;
    let record = KeyRecord {
        id: row.get(0)?,
        name: row.get(1)?,
        hash: row.get(2)?,
        // An unknown word grants no right; the others stay valid.
        scopes: Scopes::parse_known(&scopes),
        created_at: from_sql(row.get(4)?),
        expires_at: seconds(5)?,
        requests_per_minute: row.get(6)?,
        tokens_per_minute: row.get(7)?,
        concurrency: row.get(8)?,
        weight: weight_from_sql(row.get(12)?),
        revoked: revoked_at.is_some(),
    };
    Ok(StoredSecret {
        record,
        revoked_at,
        created_at: from_sql(row.get(10)?),
        valid_until: seconds(11)?,
    })
}

pub fn all_records(connection: &Connection) -> rusqlite::Result<Vec<KeyRecord>> {
    let mut statement = connection.prepare(SELECT_SECRETS)?;
    let stored = statement.query_map((), read)?;
    stored
        .map(|row| row.map(StoredSecret::into_record))
        .collect()
}

pub fn insert(connection: &Connection, record: &KeyRecord) -> rusqlite::Result<()> {
    connection.execute(
        "INSERT INTO keys (id, name, scopes, created_at, expires_at, requests_per_minute, \
         tokens_per_minute, concurrency, weight) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        (
            &record.id,
            &record.name,
            record.scopes.to_string(),
            to_sql(record.created_at),
            record.expires_at.map(to_sql),
            record.requests_per_minute,
            record.tokens_per_minute,
            record.concurrency,
            record.weight,
        ),
    )?;
    insert_secret(connection, record, record.created_at)
}

fn insert_secret(connection: &Connection, record: &KeyRecord, now: u64) -> rusqlite::Result<()> {
    connection.execute(
        "INSERT INTO secrets (hash, key_id, created_at) VALUES (?1, ?2, ?3)",
        (record.hash, &record.id, to_sql(now)),
    )?;
    Ok(())
}

/// Makes `record.hash` the key's current secret. Older secrets with time left keep it, up to
/// `old_end`; the others are deleted.
pub fn replace_secret(
    connection: &Connection,
    record: &KeyRecord,
    old_end: u64,
    now: u64,
) -> rusqlite::Result<()> {
    let old_end = to_sql(old_end);
    connection.execute(
        "UPDATE secrets SET valid_until = min(coalesce(valid_until, ?2), ?2) WHERE key_id = ?1",
        (&record.id, old_end),
    )?;
    connection.execute(
        "DELETE FROM secrets WHERE key_id = ?1 AND valid_until <= ?2",
        (&record.id, to_sql(now)),
    )?;
    connection.execute(
        "UPDATE keys SET expires_at = ?2 WHERE id = ?1",
        (&record.id, record.expires_at.map(to_sql)),
    )?;
    insert_secret(connection, record, now)
}

pub fn find(connection: &Connection, id: &str) -> rusqlite::Result<Option<StoredSecret>> {
    let sql = format!("{SELECT_SECRETS} WHERE k.id = ?1 AND s.valid_until IS NULL");
    connection.query_row(&sql, [id], read).optional()
}
