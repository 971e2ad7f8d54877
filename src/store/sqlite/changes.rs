//! The history of changed keys, so that a daemon reads one key after a change, and not all.
//!
//! Owns the statements that read `key_changes`. Triggers write it, so no program can forget to,
//! whatever its version: each change of a key or of one of its secrets is a row with the key's id.
//! The newest [`HISTORY_ENTRIES`](crate::limits::store::HISTORY_ENTRIES) rows are kept.
//!
//! A row has a number and a random token. A reader remembers both of the newest row. If they are
//! still there, the rows after them are what has changed since; if not, everything must be read:
//! the reader was away for too long, or the database's contents were replaced by others, whose
//! numbers may be lower, or the same with other keys.
//!
//! Mutations that tests catch: `remembers` that compares numbers alone
//! (`a_history_of_another_database_...`), a trigger that is left out
//! (`every_kind_of_change_is_in_the_history`), no bound on the rows (`the_history_is_bounded_...`).

use rusqlite::{Connection, OptionalExtension};

use super::rows::{SELECT_SECRETS, read};
use crate::keys::ChangedKey;
use crate::store::interface::keys::Mark;
use crate::store::stored::StoredSecret;

pub fn newest(connection: &Connection) -> rusqlite::Result<Option<Mark>> {
    let sql = "SELECT number, token FROM key_changes ORDER BY number DESC LIMIT 1";
    let mark = connection.query_row(sql, (), |row| {
        Ok(Mark {
            number: row.get(0)?,
            token: row.get(1)?,
        })
    });
    mark.optional()
}

pub fn remembers(connection: &Connection, mark: Mark) -> rusqlite::Result<bool> {
    let sql = "SELECT EXISTS (SELECT 1 FROM key_changes WHERE number = ?1 AND token = ?2)";
    connection.query_row(sql, (mark.number, mark.token), |row| row.get(0))
}

/// Returns the present state of each key that has changed since a mark.
pub fn keys_since(connection: &Connection, mark: Mark) -> rusqlite::Result<Vec<ChangedKey>> {
    let ids = "SELECT DISTINCT key_id FROM key_changes WHERE number > ?1";
    let mut ids = connection.prepare(ids)?;
    let mut secrets = connection.prepare(&format!("{SELECT_SECRETS} WHERE k.id = ?1"))?;
    let mut changed = Vec::new();
    for id in ids.query_map([mark.number], |row| row.get(0))? {
        let id: String = id?;
        let stored = secrets.query_map([&id], read)?;
        let records = stored.map(|row| row.map(StoredSecret::into_record));
        let records = records.collect::<rusqlite::Result<_>>()?;
        changed.push(ChangedKey { id, records });
    }
    Ok(changed)
}
