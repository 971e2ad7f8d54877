//! Takes back a secret that was created but could not be shown, as [SQLite's undo] does.
//!
//! [SQLite's undo]: crate::store::sqlite

use super::rows::lock;
use super::session::Session;
use crate::store::error::StoreError;

/// The state before a change by `create` or `rotate`.
#[derive(Debug)]
pub struct Undo {
    pub id: String,
    /// The hash of the secret that was created.
    pub made: [u8; 32],
    /// `None`: the key is new.
    pub before: Option<Before>,
}

#[derive(Debug)]
pub struct Before {
    expires_at: Option<i64>,
    secrets: Vec<StoredHash>,
}

#[derive(Debug)]
struct StoredHash {
    hash: Vec<u8>,
    created_at: i64,
    valid_until: Option<i64>,
}

impl Undo {
    /// Returns `false` if another process has rotated the key since; its change stays.
    pub fn apply(&self, session: &Session) -> Result<bool, StoreError> {
        let current = lock(session, &self.id)?.map(|stored| stored.record.hash);
        if current != Some(self.made) {
            return Ok(false);
        }
        session.execute("DELETE FROM secrets WHERE key_id = $1", &[&self.id])?;
        let Some(before) = &self.before else {
            session.execute("DELETE FROM keys WHERE id = $1", &[&self.id])?;
            return Ok(true);
        };
        session.execute(
            "UPDATE keys SET expires_at = $2 WHERE id = $1",
            &[&self.id, &before.expires_at],
        )?;
        for secret in &before.secrets {
            session.execute(
                "INSERT INTO secrets (hash, key_id, created_at, valid_until)
                 VALUES ($1, $2, $3, $4)",
                &[
                    &secret.hash,
                    &self.id,
                    &secret.created_at,
                    &secret.valid_until,
                ],
            )?;
        }
        Ok(true)
    }
}

impl Before {
    pub fn read(session: &Session, id: &str) -> Result<Before, StoreError> {
        let sql = "SELECT hash, created_at, valid_until FROM secrets WHERE key_id = $1";
        let secrets = session.query(sql, &[&id], |row| {
            Ok(StoredHash {
                hash: row.try_get(0)?,
                created_at: row.try_get(1)?,
                valid_until: row.try_get(2)?,
            })
        })?;
        Ok(Before {
            expires_at: session.value("SELECT expires_at FROM keys WHERE id = $1", &[&id])?,
            secrets,
        })
    }
}
