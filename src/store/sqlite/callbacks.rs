//! Callbacks of jobs in SQLite, and the secrets that sign them.
//!
//! Owns the statements on `callbacks`, and on the secrets' columns of `keys`.
//!
//! Mutations that `store/tests/callbacks.rs` catches: a schema without the trigger; `DUE` without
//! the time or the order; `SAVE` without its fence; `ROTATE` that drops the old secret.

use rusqlite::{Connection, OptionalExtension, params};

use super::SqliteStore;
use super::jobs::job_id;
use crate::jobs::{Callback, JobId};
use crate::store::error::StoreError;
use crate::store::interface::callbacks::Callbacks;
use crate::store::stored::to_sql;

pub(super) const NEXT_KEY: &str = "
    SELECT key_id FROM callbacks WHERE state = 'pending' AND key_id > ?1
    ORDER BY key_id LIMIT 1";

pub(super) const DUE: &str = "
    SELECT job FROM callbacks WHERE state = 'pending' AND key_id = ?1 AND next_at <= ?2
    ORDER BY next_at LIMIT ?3";

const SAVE: &str = "
    UPDATE callbacks SET state = ?3, attempts = ?4, next_at = ?5, error = ?6
    WHERE job = ?1 AND attempts = ?2 AND state = 'pending'";

const SECRETS: &str = "
    SELECT webhook_secret, CASE WHEN old_webhook_secret_until > ?2 THEN old_webhook_secret END
    FROM keys WHERE id = ?1 AND revoked_at IS NULL";

const SIGNING: &str = "
    SELECT id FROM keys WHERE id = ?1 AND webhook_secret IS NOT NULL AND revoked_at IS NULL";

const ROTATE: &str = "
    UPDATE keys SET old_webhook_secret = webhook_secret, old_webhook_secret_until = ?3,
        webhook_secret = ?2
    WHERE id = ?1 AND revoked_at IS NULL";

const RETIRE: &str = "
    UPDATE keys SET old_webhook_secret = NULL, old_webhook_secret_until = NULL
    WHERE id = ?1 AND revoked_at IS NULL";

const WITHDRAW: &str = "
    UPDATE keys SET webhook_secret = old_webhook_secret, old_webhook_secret = NULL,
        old_webhook_secret_until = NULL
    WHERE id = ?1 AND webhook_secret = ?2";

impl Callbacks for SqliteStore {
    fn next_callback_key(&mut self, after: &str) -> Result<Option<String>, StoreError> {
        self.run(|connection| {
            let mut statement = connection.prepare_cached(NEXT_KEY)?;
            statement.query_row([after], |row| row.get(0)).optional()
        })
    }

    fn due_callbacks(
        &mut self,
        key_id: &str,
        now: u64,
        limit: u32,
    ) -> Result<Vec<JobId>, StoreError> {
        self.run(|connection| {
            let mut statement = connection.prepare_cached(DUE)?;
            let due =
                statement.query_map(params![key_id, to_sql(now), limit], |row| job_id(row, 0))?;
            due.collect()
        })
    }

    fn save_callback(
        &mut self,
        job: JobId,
        attempt: u32,
        callback: &Callback,
    ) -> Result<bool, StoreError> {
        self.changes(|connection| {
            connection.prepare_cached(SAVE)?.execute(params![
                job.as_bytes(),
                attempt,
                callback.state.as_str(),
                callback.attempts,
                to_sql(callback.next_at),
                callback.error,
            ])
        })
    }

    fn webhook_secrets(&mut self, key_id: &str, now: u64) -> Result<Vec<String>, StoreError> {
        self.run(|connection| {
            let mut statement = connection.prepare_cached(SECRETS)?;
            let secrets = statement.query_row(params![key_id, to_sql(now)], |row| {
                Ok([row.get::<_, Option<String>>(0)?, row.get(1)?])
            });
            Ok(secrets
                .optional()?
                .into_iter()
                .flatten()
                .flatten()
                .collect())
        })
    }

    fn signing_keys(&mut self, key_ids: &[&str]) -> Result<Vec<String>, StoreError> {
        self.run(|connection| {
            let mut statement = connection.prepare_cached(SIGNING)?;
            let found = key_ids
                .iter()
                .map(|key_id| statement.query_row([key_id], |row| row.get(0)).optional());
            found.filter_map(Result::transpose).collect()
        })
    }

    fn rotate_webhook_secret(
        &mut self,
        key_id: &str,
        secret: &str,
        old_until: u64,
    ) -> Result<bool, StoreError> {
        self.changes(|connection| {
            connection.execute(ROTATE, params![key_id, secret, to_sql(old_until)])
        })
    }

    fn retire_webhook_secret(&mut self, key_id: &str) -> Result<bool, StoreError> {
        self.changes(|connection| connection.execute(RETIRE, [key_id]))
    }

    fn withdraw_webhook_secret(&mut self, key_id: &str, secret: &str) -> Result<bool, StoreError> {
        self.changes(|connection| connection.execute(WITHDRAW, [key_id, secret]))
    }
}

impl SqliteStore {
    /// Returns whether a row was changed.
    fn changes(
        &mut self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<usize>,
    ) -> Result<bool, StoreError> {
        self.run(work).map(|changed| changed > 0)
    }
}
