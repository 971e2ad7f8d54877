//! Looks at a database without changing it.
//!
//! Owns the statements of `autoglmd store check`. Must never write: the file may be damaged, of a
//! later version, or in use by a daemon.

use std::path::Path;

use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::schema::{STEPS, Schema};
use crate::limits::store as limits;
use crate::store::interface::Examination;

pub fn examine(path: &Path) -> rusqlite::Result<Examination> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(limits::BUSY_TIMEOUT)?;
    // All of it is of one moment.
    let transaction = connection.unchecked_transaction()?;
    let schema = Schema::read(&transaction)?;
    let mut found = Examination {
        version: schema.version,
        min_reader: schema.min_reader,
        known: STEPS.len(),
        keys: None,
        secrets: None,
        problems: damage(&transaction)?,
    };
    // The tables of a version that this program cannot read may mean something else, and damaged
    // ones would only fail.
    if schema.version > 0 && found.is_readable() && found.problems.is_empty() {
        let count = |sql: &str| transaction.query_row(sql, (), |row| row.get(0));
        found.keys = count("SELECT count(*) FROM keys")?;
        found.secrets = count("SELECT count(*) FROM secrets")?;
        found.problems = orphans(&transaction)?;
    }
    Ok(found)
}

/// Returns what SQLite finds: pages, and indexes that disagree with their tables. Some damage ends
/// its check at once; that is a finding, too.
fn damage(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    let sql = format!("PRAGMA integrity_check({})", limits::EXAMINED_PROBLEMS_MAX);
    let mut statement = connection.prepare(&sql)?;
    let mut found = Vec::new();
    for line in statement.query_map((), |row| row.get::<_, String>(0))? {
        match line {
            Ok(line) if line == "ok" => {}
            Ok(line) => found.push(line),
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseCorrupt) => {
                found.push(error.to_string());
                break;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// Returns secrets without a key, and keys that no secret opens. A program that does not switch
/// foreign keys on, such as SQLite's shell, can leave both.
fn orphans(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    let keys = "
        SELECT 'the key ' || id || ' has no secret, so nothing can be done with it' FROM keys
        WHERE NOT EXISTS (
            SELECT 1 FROM secrets WHERE key_id = keys.id AND valid_until IS NULL
        )
        LIMIT ?1";
    let secrets = "
        SELECT 'a secret belongs to the key ' || key_id || ', which does not exist' FROM secrets
        WHERE NOT EXISTS (SELECT 1 FROM keys WHERE id = secrets.key_id)
        LIMIT ?1";
    let mut found = Vec::new();
    for sql in [keys, secrets] {
        let mut statement = connection.prepare(sql)?;
        let lines = statement.query_map([limits::EXAMINED_PROBLEMS_MAX], |row| row.get(0))?;
        found.extend(lines.collect::<rusqlite::Result<Vec<String>>>()?);
    }
    Ok(found)
}
