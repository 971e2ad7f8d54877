//! Callbacks of jobs in PostgreSQL, and the secrets that sign them.
//!
//! Owns the statements on `callbacks`, and on the secrets' columns of `keys`. Several daemons take
//! from one table: a callback that one of them is claiming is passed over by the others
//! (`SKIP LOCKED`), and afterwards it is not due.
//!
//! Mutations that tests catch are those of SQLite's; `a_callback_that_another_daemon_...` in
//! `postgres/tests.rs` catches `DUE` without `SKIP LOCKED`.

use tokio_postgres::Row;

use super::connection::PostgresStore;
use super::jobs::{bytes_of, job_id};
use super::session::Parameters;
use crate::jobs::{Callback, JobId};
use crate::store::error::StoreError;
use crate::store::interface::callbacks::Callbacks;
use crate::store::stored::to_sql;

pub(super) const NEXT_KEY: &str = "
    SELECT key_id FROM callbacks WHERE state = 'pending' AND key_id > $1
    ORDER BY key_id LIMIT 1";

pub(super) const DUE: &str = "
    SELECT job FROM callbacks WHERE state = 'pending' AND key_id = $1 AND next_at <= $2
    ORDER BY next_at LIMIT $3 FOR UPDATE SKIP LOCKED";

const SAVE: &str = "
    UPDATE callbacks SET state = $3, attempts = $4, next_at = $5, error = $6
    WHERE job = $1 AND attempts = $2 AND state = 'pending'";

const SECRETS: &str = "
    SELECT webhook_secret, CASE WHEN old_webhook_secret_until > $2 THEN old_webhook_secret END
    FROM keys WHERE id = $1 AND revoked_at IS NULL";

const SIGNING: &str = "
    SELECT id FROM keys
    WHERE id = ANY ($1) AND webhook_secret IS NOT NULL AND revoked_at IS NULL";

const ROTATE: &str = "
    UPDATE keys SET old_webhook_secret = webhook_secret, old_webhook_secret_until = $3,
        webhook_secret = $2
    WHERE id = $1 AND revoked_at IS NULL";

const RETIRE: &str = "
    UPDATE keys SET old_webhook_secret = NULL, old_webhook_secret_until = NULL
    WHERE id = $1 AND revoked_at IS NULL";

const WITHDRAW: &str = "
    UPDATE keys SET webhook_secret = old_webhook_secret, old_webhook_secret = NULL,
        old_webhook_secret_until = NULL
    WHERE id = $1 AND webhook_secret = $2";

impl Callbacks for PostgresStore {
    fn next_callback_key(&mut self, after: &str) -> Result<Option<String>, StoreError> {
        let key = |row: &Row| Ok(row.try_get(0)?);
        self.session.first(NEXT_KEY, &[&after], key)
    }

    fn due_callbacks(
        &mut self,
        key_id: &str,
        now: u64,
        limit: u32,
    ) -> Result<Vec<JobId>, StoreError> {
        let parameters: Parameters<'_> = &[&key_id, &to_sql(now), &i64::from(limit)];
        self.session.query(DUE, parameters, |row| job_id(row, 0))
    }

    fn save_callback(
        &mut self,
        job: JobId,
        attempt: u32,
        callback: &Callback,
    ) -> Result<bool, StoreError> {
        self.changes(
            SAVE,
            &[
                &bytes_of(&job),
                &i64::from(attempt),
                &callback.state.as_str(),
                &i64::from(callback.attempts),
                &to_sql(callback.next_at),
                &callback.error,
            ],
        )
    }

    fn webhook_secrets(&mut self, key_id: &str, now: u64) -> Result<Vec<String>, StoreError> {
        let read = |row: &Row| Ok([row.try_get::<_, Option<String>>(0)?, row.try_get(1)?]);
        let secrets = self
            .session
            .first(SECRETS, &[&key_id, &to_sql(now)], read)?;
        Ok(secrets.into_iter().flatten().flatten().collect())
    }

    fn signing_keys(&mut self, key_ids: &[&str]) -> Result<Vec<String>, StoreError> {
        self.session
            .query(SIGNING, &[&key_ids], |row| Ok(row.try_get(0)?))
    }

    fn rotate_webhook_secret(
        &mut self,
        key_id: &str,
        secret: &str,
        old_until: u64,
    ) -> Result<bool, StoreError> {
        self.changes(ROTATE, &[&key_id, &secret, &to_sql(old_until)])
    }

    fn retire_webhook_secret(&mut self, key_id: &str) -> Result<bool, StoreError> {
        self.changes(RETIRE, &[&key_id])
    }

    fn withdraw_webhook_secret(&mut self, key_id: &str, secret: &str) -> Result<bool, StoreError> {
        self.changes(WITHDRAW, &[&key_id, &secret])
    }
}

impl PostgresStore {
    /// Returns whether a row was changed.
    fn changes(&self, sql: &str, parameters: Parameters<'_>) -> Result<bool, StoreError> {
        self.execute(sql, parameters).map(|changed| changed > 0)
    }
}
