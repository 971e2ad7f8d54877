//! The keys of the database.

use std::path::Path;

use super::connection::{LOCK_SCHEMA, PostgresStore};
use super::rows::{
    SELECT_SECRETS, all_records, insert, keys_since, lock, newest_change, read, remembers,
    replace_secret,
};
use super::session::Session;
use super::undo::{Before, Undo};
use crate::keys::{KeyRecord, Secret};
use crate::store::error::StoreError;
use crate::store::interface::keys::{
    BOOTSTRAP_FILE, Bootstrap, Keys, ListedKey, Mark, NewKey, ReadKeys, Reading, Renewal, Revoked,
};
use crate::store::new_key::{bootstrap_key, draw, write_secret};
use crate::store::stored::{StoredSecret, to_sql};

impl PostgresStore {
    /// Reads in one moment of the database.
    pub(super) fn reading<T>(
        &self,
        work: impl FnOnce(&Session) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let session = &self.session;
        session.batch("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")?;
        let result = work(session);
        // Nothing was written, so it does not matter how the transaction ends; if this fails, the
        // connection is lost.
        let ended = session.batch("ROLLBACK");
        result.and_then(|value| ended.map(|()| value))
    }
}

/// Locks a key that is to be changed.
fn valid_key(session: &Session, id: &str) -> Result<StoredSecret, StoreError> {
    let found = lock(session, id)?;
    let key = found.ok_or_else(|| StoreError::UnknownKey(id.to_owned()))?;
    match key.record.revoked {
        true => Err(StoreError::RevokedKey(id.to_owned())),
        false => Ok(key),
    }
}

impl Keys for PostgresStore {
    fn create(&mut self, new: &NewKey, now: u64) -> Result<(KeyRecord, Secret), StoreError> {
        let (record, secret) = draw(new, now)?;
        self.write(|session| insert(session, &record))?;
        self.undo = Some(Undo {
            id: record.id.clone(),
            made: record.hash,
            before: None,
        });
        Ok((record, secret))
    }

    fn rotate(
        &mut self,
        id: &str,
        grace: u64,
        renewal: Renewal,
        now: u64,
    ) -> Result<(KeyRecord, Secret), StoreError> {
        let (record, secret, before) = self.write(|session| {
            let mut key = valid_key(session, id)?;
            let old_end = now.saturating_add(grace);
            let key_end = key.record.expires_at;
            let old_end = key_end.map_or(old_end, |end| end.min(old_end));
            key.record.expires_at = key.renewed_expiry(renewal, now);
            let secret = Secret::random()?;
            key.record.hash = secret.hash();
            let before = Before::read(session, id)?;
            replace_secret(session, &key.record, old_end, now)?;
            Ok((key.record, secret, before))
        })?;
        self.undo = Some(Undo {
            id: id.to_owned(),
            made: record.hash,
            before: Some(before),
        });
        Ok((record, secret))
    }

    fn withdraw(&mut self) -> Result<bool, StoreError> {
        match self.undo.take() {
            Some(undo) => self.write(|session| undo.apply(session)),
            None => Ok(false),
        }
    }

    fn set_weight(&mut self, id: &str, weight: u16) -> Result<(), StoreError> {
        self.write(|session| {
            valid_key(session, id)?;
            let sql = "UPDATE keys SET weight = $2 WHERE id = $1";
            session.execute(sql, &[&id, &i64::from(weight)])?;
            Ok(())
        })
    }

    fn revoke(&mut self, id: &str, now: u64) -> Result<Revoked, StoreError> {
        self.write(|session| {
            let found = lock(session, id)?;
            let key = found.ok_or_else(|| StoreError::UnknownKey(id.to_owned()))?;
            if let Some(then) = key.revoked_at {
                return Ok(Revoked::Before(then));
            }
            let sql = "UPDATE keys SET revoked_at = $2 WHERE id = $1";
            session.execute(sql, &[&id, &to_sql(now)])?;
            Ok(Revoked::Now)
        })
    }

    fn remove(&mut self, id: &str) -> Result<bool, StoreError> {
        self.write(|session| {
            session.execute("DELETE FROM secrets WHERE key_id = $1", &[&id])?;
            let removed = session.execute("DELETE FROM keys WHERE id = $1", &[&id])?;
            // A reader needs a row to remember. None remembers this one.
            session
                .batch("DELETE FROM key_changes; INSERT INTO key_changes (key_id) VALUES ('')")?;
            Ok(removed > 0)
        })
    }

    fn list(&self) -> Result<Vec<ListedKey>, StoreError> {
        let sql =
            format!("{SELECT_SECRETS} WHERE s.valid_until IS NULL ORDER BY k.created_at, k.id");
        self.session.query(&sql, &[], |row| {
            let stored = read(row)?;
            Ok(ListedKey {
                revoked_at: stored.revoked_at,
                record: stored.record,
            })
        })
    }

    fn read(&self, since: Option<Mark>) -> Result<Reading, StoreError> {
        self.reading(|session| {
            let mark = newest_change(session)?;
            let keys = match since {
                Some(since) if remembers(session, since)? => {
                    ReadKeys::Changed(keys_since(session, since)?)
                }
                _ => ReadKeys::All(all_records(session)?),
            };
            Ok(Reading { keys, mark })
        })
    }

    fn bootstrap(&mut self, state_dir: &Path, now: u64) -> Result<Option<Bootstrap>, StoreError> {
        let path = state_dir.join(BOOTSTRAP_FILE);
        self.write(|session| {
            session.batch(LOCK_SCHEMA)?;
            if session.value("SELECT EXISTS (SELECT 1 FROM keys)", &[])? {
                return Ok(None);
            }
            let (record, secret) = draw(&bootstrap_key(), now)?;
            insert(session, &record)?;
            write_secret(&path, &secret).map_err(|error| StoreError::File(path.clone(), error))?;
            Ok(Some(Bootstrap {
                record,
                secret,
                path,
            }))
        })
    }
}
