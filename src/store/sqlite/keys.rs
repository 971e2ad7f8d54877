//! The keys of the database.

use std::path::Path;

use rusqlite::Connection;

use super::changes;
use super::connection::{SqliteStore, database_error};
use super::rows::{SELECT_SECRETS, all_records, find, insert, read, replace_secret};
use super::undo::{Before, Undo};
use crate::keys::{KeyRecord, Secret};
use crate::store::error::StoreError;
use crate::store::interface::keys::{
    BOOTSTRAP_FILE, Bootstrap, Keys, ListedKey, Mark, NewKey, ReadKeys, Reading, Renewal, Revoked,
};
use crate::store::new_key::{bootstrap_key, draw, write_secret};
use crate::store::stored::{StoredSecret, to_sql};

impl SqliteStore {
    #[cfg(test)]
    pub fn ring(&self) -> Result<crate::keys::KeyRing, StoreError> {
        let ReadKeys::All(records) = self.read(None)?.keys else {
            unreachable!("no mark was given");
        };
        Ok(crate::keys::KeyRing::new(records))
    }

    fn select(&self, sql: &str) -> Result<Vec<StoredSecret>, StoreError> {
        let rows = || -> rusqlite::Result<Vec<StoredSecret>> {
            let mut statement = self.connection.prepare(sql)?;
            statement.query_map((), read)?.collect()
        };
        rows().map_err(|error| database_error(&self.path, error))
    }
}

impl Keys for SqliteStore {
    fn create(&mut self, new: &NewKey, now: u64) -> Result<(KeyRecord, Secret), StoreError> {
        let path = self.path.clone();
        let (record, secret) = self.write(|transaction| {
            let (record, secret) = draw(new, now)?;
            insert(transaction, &record).map_err(|error| database_error(&path, error))?;
            Ok((record, secret))
        })?;
        self.undo = Some(Undo::creation(&record.id, record.hash));
        Ok((record, secret))
    }

    fn rotate(
        &mut self,
        id: &str,
        grace: u64,
        renewal: Renewal,
        now: u64,
    ) -> Result<(KeyRecord, Secret), StoreError> {
        let path = self.path.clone();
        let (record, secret, before) = self.write(|transaction| {
            let old = find(transaction, id).map_err(|error| database_error(&path, error))?;
            let mut record = old.ok_or_else(|| StoreError::UnknownKey(id.to_owned()))?;
            if record.record.revoked {
                return Err(StoreError::RevokedKey(id.to_owned()));
            }
            let old_end = now.saturating_add(grace);
            let old_end = record
                .record
                .expires_at
                .map_or(old_end, |end| end.min(old_end));
            record.record.expires_at = record.renewed_expiry(renewal, now);
            let secret = Secret::random()?;
            record.record.hash = secret.hash();
            let before = Before::read(transaction, id)
                .and_then(|before| {
                    replace_secret(transaction, &record.record, old_end, now)?;
                    Ok(before)
                })
                .map_err(|error| database_error(&path, error))?;
            Ok((record.record, secret, before))
        })?;
        self.undo = Some(Undo::rotation(id, record.hash, before));
        Ok((record, secret))
    }

    fn withdraw(&mut self) -> Result<bool, StoreError> {
        let Some(undo) = self.undo.take() else {
            return Ok(false);
        };
        let path = self.path.clone();
        self.write(|transaction| {
            undo.apply(transaction)
                .map_err(|error| database_error(&path, error))
        })
    }

    fn set_weight(&mut self, id: &str, weight: u16) -> Result<(), StoreError> {
        let path = self.path.clone();
        let of_database = |error| database_error(&path, error);
        self.write(|transaction| {
            let found = find(transaction, id).map_err(of_database)?;
            let key = found.ok_or_else(|| StoreError::UnknownKey(id.to_owned()))?;
            if key.record.revoked {
                return Err(StoreError::RevokedKey(id.to_owned()));
            }
            transaction
                .execute("UPDATE keys SET weight = ?2 WHERE id = ?1", (id, weight))
                .map_err(of_database)?;
            Ok(())
        })
    }

    fn revoke(&mut self, id: &str, now: u64) -> Result<Revoked, StoreError> {
        let path = self.path.clone();
        self.write(|transaction| {
            let found = find(transaction, id).map_err(|error| database_error(&path, error))?;
            let key = found.ok_or_else(|| StoreError::UnknownKey(id.to_owned()))?;
            if let Some(then) = key.revoked_at {
                return Ok(Revoked::Before(then));
            }
            transaction
                .execute(
                    "UPDATE keys SET revoked_at = ?2 WHERE id = ?1",
                    (id, to_sql(now)),
                )
                .map_err(|error| database_error(&path, error))?;
            Ok(Revoked::Now)
        })
    }

    fn remove(&mut self, id: &str) -> Result<bool, StoreError> {
        let path = self.path.clone();
        let remove = |transaction: &Connection| -> rusqlite::Result<bool> {
            transaction.execute("DELETE FROM secrets WHERE key_id = ?1", [id])?;
            let removed = transaction.execute("DELETE FROM keys WHERE id = ?1", [id])?;
            // A reader needs a row to remember. None remembers this one.
            transaction.execute_batch(
                "DELETE FROM key_changes; INSERT INTO key_changes (key_id) VALUES ('')",
            )?;
            Ok(removed > 0)
        };
        self.write(|transaction| remove(transaction).map_err(|error| database_error(&path, error)))
    }

    fn list(&self) -> Result<Vec<ListedKey>, StoreError> {
        let sql =
            format!("{SELECT_SECRETS} WHERE s.valid_until IS NULL ORDER BY k.created_at, k.id");
        let listed = |stored: StoredSecret| ListedKey {
            revoked_at: stored.revoked_at,
            record: stored.record,
        };
        Ok(self.select(&sql)?.into_iter().map(listed).collect())
    }

    fn read(&self, since: Option<Mark>) -> Result<Reading, StoreError> {
        let read = || -> rusqlite::Result<Reading> {
            // The mark and the keys must be of one moment.
            let transaction = self.connection.unchecked_transaction()?;
            let mark = changes::newest(&transaction)?;
            let keys = match since {
                Some(since) if changes::remembers(&transaction, since)? => {
                    ReadKeys::Changed(changes::keys_since(&transaction, since)?)
                }
                _ => ReadKeys::All(all_records(&transaction)?),
            };
            Ok(Reading { keys, mark })
        };
        read().map_err(|error| database_error(&self.path, error))
    }

    fn bootstrap(&mut self, state_dir: &Path, now: u64) -> Result<Option<Bootstrap>, StoreError> {
        let database = self.path.clone();
        let path = state_dir.join(BOOTSTRAP_FILE);
        let new = bootstrap_key();
        self.write(|transaction| {
            let keys: i64 = transaction
                .query_row("SELECT count(*) FROM keys", (), |row| row.get(0))
                .map_err(|error| database_error(&database, error))?;
            if keys > 0 {
                return Ok(None);
            }
            let (record, secret) = draw(&new, now)?;
            insert(transaction, &record).map_err(|error| database_error(&database, error))?;
            write_secret(&path, &secret).map_err(|error| StoreError::File(path.clone(), error))?;
            Ok(Some(Bootstrap {
                record,
                secret,
                path,
            }))
        })
    }
}
