//! Looks at a database without changing it.
//!
//! Owns the statements of `autoglmd store check`. Must never write: the database may be of a later
//! version, or in use by a daemon. The server has checks of its own for its files (pg_amcheck(1)).

use super::schema::{STEPS, Schema};
use super::session::Session;
use crate::limits::store as limits;
use crate::store::error::StoreError;
use crate::store::interface::Examination;

pub fn examine(session: &Session) -> Result<Examination, StoreError> {
    // All of it is of one moment.
    session.batch("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")?;
    let schema = Schema::read(session)?;
    let mut found = Examination {
        version: schema.version,
        min_reader: schema.min_reader,
        known: STEPS.len(),
        keys: None,
        secrets: None,
        problems: invalid_indexes(session)?,
    };
    // The tables of a version that this program cannot read may mean something else.
    if schema.version > 0 && found.is_readable() {
        found.keys = Some(count(session, "SELECT count(*) FROM keys")?);
        found.secrets = Some(count(session, "SELECT count(*) FROM secrets")?);
        found.problems.extend(without_secret(session)?);
    }
    session.batch("COMMIT")?;
    Ok(found)
}

fn count(session: &Session, sql: &str) -> Result<u32, StoreError> {
    let count: i64 = session.value(sql, &[])?;
    Ok(u32::try_from(count).unwrap_or(u32::MAX))
}

/// Returns indexes that the server does not use, because making them failed.
fn invalid_indexes(session: &Session) -> Result<Vec<String>, StoreError> {
    let sql = "
        SELECT 'the index ' || indexrelid::regclass || ' is invalid; run REINDEX INDEX'
        FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
        WHERE NOT indisvalid AND relnamespace = current_schema()::regnamespace
        LIMIT $1";
    let most = i64::from(limits::EXAMINED_PROBLEMS_MAX);
    session.query(sql, &[&most], |row| Ok(row.try_get(0)?))
}

/// Returns keys that no secret opens. A secret without a key is impossible: it refers to its key.
fn without_secret(session: &Session) -> Result<Vec<String>, StoreError> {
    let sql = "
        SELECT 'the key ' || id || ' has no secret, so nothing can be done with it' FROM keys
        WHERE NOT EXISTS (
            SELECT 1 FROM secrets WHERE key_id = keys.id AND valid_until IS NULL
        )
        LIMIT $1";
    let most = i64::from(limits::EXAMINED_PROBLEMS_MAX);
    session.query(sql, &[&most], |row| Ok(row.try_get(0)?))
}
