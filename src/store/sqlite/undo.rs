//! Takes back a secret that was created but could not be shown.
//!
//! A key's text leaves the process once, on the standard output. If that fails (a full disk, a
//! closed pipe) the secret is lost, and a valid key would remain whose secret is unknown; a rotated
//! key would even have lost the secret that worked. So the change is undone. It is not delayed
//! until the text is written, because a program that reads the text may use it at once, and because
//! a pipe that is not emptied would hold the database's write lock.

use rusqlite::{Connection, OptionalExtension};

/// The state before a change by [`Keys::create`] or [`Keys::rotate`].
///
/// [`Keys::create`]: crate::store::Keys::create
/// [`Keys::rotate`]: crate::store::Keys::rotate
#[derive(Debug)]
pub(super) struct Undo {
    id: String,
    /// The hash of the secret that was created.
    made: [u8; 32],
    /// `None`: the key is new.
    before: Option<Before>,
}

#[derive(Debug)]
pub(super) struct Before {
    expires_at: Option<i64>,
    secrets: Vec<StoredHash>,
}

#[derive(Debug)]
struct StoredHash {
    hash: [u8; 32],
    created_at: i64,
    valid_until: Option<i64>,
}

impl Undo {
    pub(super) fn creation(id: &str, made: [u8; 32]) -> Undo {
        Undo {
            id: id.to_owned(),
            made,
            before: None,
        }
    }

    pub(super) fn rotation(id: &str, made: [u8; 32], before: Before) -> Undo {
        Undo {
            id: id.to_owned(),
            made,
            before: Some(before),
        }
    }

    /// Returns `false` if another process has rotated the key since; its change stays.
    pub(super) fn apply(&self, connection: &Connection) -> rusqlite::Result<bool> {
        let current: Option<[u8; 32]> = connection
            .query_row(
                "SELECT hash FROM secrets WHERE key_id = ?1 AND valid_until IS NULL",
                [&self.id],
                |row| row.get(0),
            )
            .optional()?;
        if current != Some(self.made) {
            return Ok(false);
        }
        connection.execute("DELETE FROM secrets WHERE key_id = ?1", [&self.id])?;
        let Some(before) = &self.before else {
            connection.execute("DELETE FROM keys WHERE id = ?1", [&self.id])?;
            return Ok(true);
        };
        connection.execute(
            "UPDATE keys SET expires_at = ?2 WHERE id = ?1",
            (&self.id, before.expires_at),
        )?;
        for secret in &before.secrets {
            connection.execute(
                "INSERT INTO secrets (hash, key_id, created_at, valid_until) \
                 VALUES (?1, ?2, ?3, ?4)",
                (secret.hash, &self.id, secret.created_at, secret.valid_until),
            )?;
        }
        Ok(true)
    }
}

impl Before {
    pub(super) fn read(connection: &Connection, id: &str) -> rusqlite::Result<Before> {
        let expires_at =
            connection.query_row("SELECT expires_at FROM keys WHERE id = ?1", [id], |row| {
                row.get(0)
            })?;
        let sql = "SELECT hash, created_at, valid_until FROM secrets WHERE key_id = ?1";
        let mut statement = connection.prepare(sql)?;
        let secrets = statement.query_map([id], |row| {
            Ok(StoredHash {
                hash: row.get(0)?,
                created_at: row.get(1)?,
                valid_until: row.get(2)?,
            })
        })?;
        Ok(Before {
            expires_at,
            secrets: secrets.collect::<rusqlite::Result<_>>()?,
        })
    }
}
