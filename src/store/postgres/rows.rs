//! Rows of the database, and the statements that read and write them.
//!
//! Owns the SQL of keys and secrets. Knows no transaction: each caller brings its own.

use tokio_postgres::Row;

use super::session::{Session, Unread};
use crate::keys::{ChangedKey, KeyRecord, Scopes};
use crate::store::error::StoreError;
use crate::store::interface::keys::Mark;
use crate::store::stored::{StoredSecret, from_sql, to_sql, weight_from_sql};

pub const SELECT_SECRETS: &str = "
    SELECT k.id, k.name, s.hash, k.scopes, k.created_at, k.expires_at, k.requests_per_minute,
           k.tokens_per_minute, k.concurrency, k.revoked_at, s.created_at, s.valid_until, k.weight
    FROM keys k JOIN secrets s ON s.key_id = k.id";

/// Reads one row of [`SELECT_SECRETS`].
pub fn read(row: &Row) -> Result<StoredSecret, Unread> {
    let seconds = |index| {
        row.try_get::<_, Option<i64>>(index)
            .map(|value| value.map(from_sql))
    };
    let bound = |index| {
        let value: Option<i64> = row.try_get(index)?;
        Ok::<_, Unread>(value.map(|value| u32::try_from(value).unwrap_or(u32::MAX)))
    };
    let revoked_at = seconds(9)?;
    let hash: &[u8] = row.try_get(2)?;
    let record = KeyRecord {
        id: row.try_get(0)?,
        name: row.try_get(1)?,
        // A constraint keeps the length; another one would open nothing.
        hash: hash.try_into().unwrap_or_default(),
        // An unknown word grants no right; the others stay valid.
        scopes: Scopes::parse_known(row.try_get(3)?),
        created_at: from_sql(row.try_get(4)?),
        expires_at: seconds(5)?,
        requests_per_minute: bound(6)?,
        tokens_per_minute: bound(7)?,
        concurrency: bound(8)?,
        weight: weight_from_sql(row.try_get(12)?),
        revoked: revoked_at.is_some(),
    };
    Ok(StoredSecret {
        record,
        revoked_at,
        created_at: from_sql(row.try_get(10)?),
        valid_until: seconds(11)?,
    })
}

pub fn all_records(session: &Session) -> Result<Vec<KeyRecord>, StoreError> {
    session.query(SELECT_SECRETS, &[], |row| {
        read(row).map(StoredSecret::into_record)
    })
}

/// Locks the key up to the end of the transaction, and returns it with its current secret.
pub fn lock(session: &Session, id: &str) -> Result<Option<StoredSecret>, StoreError> {
    let sql = format!("{SELECT_SECRETS} WHERE k.id = $1 AND s.valid_until IS NULL");
    // Two statements: a row that another transaction has changed while this one waited for its
    // lock would otherwise be joined with secrets of an earlier moment.
    session.execute("SELECT 1 FROM keys WHERE id = $1 FOR UPDATE", &[&id])?;
    session.first(&sql, &[&id], read)
}

pub fn insert(session: &Session, record: &KeyRecord) -> Result<(), StoreError> {
    let wide = |bound: Option<u32>| bound.map(i64::from);
    session.execute(
        "INSERT INTO keys (id, name, scopes, created_at, expires_at, requests_per_minute,
                           tokens_per_minute, concurrency, weight)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        &[
            &record.id,
            &record.name,
            &record.scopes.to_string(),
            &to_sql(record.created_at),
            &record.expires_at.map(to_sql),
            &wide(record.requests_per_minute),
            &wide(record.tokens_per_minute),
            &wide(record.concurrency),
            &i64::from(record.weight),
        ],
    )?;
    insert_secret(session, record, record.created_at)
}

fn insert_secret(session: &Session, record: &KeyRecord, now: u64) -> Result<(), StoreError> {
    session.execute(
        "INSERT INTO secrets (hash, key_id, created_at) VALUES ($1, $2, $3)",
        &[&&record.hash[..], &record.id, &to_sql(now)],
    )?;
    Ok(())
}

/// Makes `record.hash` the key's current secret. Older secrets with time left keep it, up to
/// `old_end`; the others are deleted.
pub fn replace_secret(
    session: &Session,
    record: &KeyRecord,
    old_end: u64,
    now: u64,
) -> Result<(), StoreError> {
    session.execute(
        "UPDATE secrets SET valid_until = least(coalesce(valid_until, $2), $2) WHERE key_id = $1",
        &[&record.id, &to_sql(old_end)],
    )?;
    session.execute(
        "DELETE FROM secrets WHERE key_id = $1 AND valid_until <= $2",
        &[&record.id, &to_sql(now)],
    )?;
    session.execute(
        "UPDATE keys SET expires_at = $2 WHERE id = $1",
        &[&record.id, &record.expires_at.map(to_sql)],
    )?;
    insert_secret(session, record, now)
}

// ---- the history of changes ----------------------------------------------------------------

pub fn newest_change(session: &Session) -> Result<Option<Mark>, StoreError> {
    let sql = "SELECT number, token FROM key_changes ORDER BY number DESC LIMIT 1";
    session.first(sql, &[], |row| {
        Ok(Mark {
            number: row.try_get(0)?,
            token: row.try_get(1)?,
        })
    })
}

pub fn remembers(session: &Session, mark: Mark) -> Result<bool, StoreError> {
    let sql = "SELECT EXISTS (SELECT 1 FROM key_changes WHERE number = $1 AND token = $2)";
    session.value(sql, &[&mark.number, &mark.token])
}

/// Returns the present state of each key that has changed since a mark.
pub fn keys_since(session: &Session, mark: Mark) -> Result<Vec<ChangedKey>, StoreError> {
    let sql = "SELECT DISTINCT key_id FROM key_changes WHERE number > $1";
    let ids: Vec<String> = session.query(sql, &[&mark.number], |row| Ok(row.try_get(0)?))?;
    let sql = format!("{SELECT_SECRETS} WHERE k.id = $1");
    let changed = ids.into_iter().map(|id| {
        let records =
            session.query(&sql, &[&id], |row| read(row).map(StoredSecret::into_record))?;
        Ok(ChangedKey { id, records })
    });
    changed.collect()
}
