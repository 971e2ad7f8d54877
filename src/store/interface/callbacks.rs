//! Callbacks of jobs in a store, and the secrets of keys that sign them.
//!
//! A callback is added by the database itself when a job with a URL ends, so that no program can
//! forget it. Its states are changed by [`Callback`] alone, like those of jobs.
//!
//! Must never name a database. Times are milliseconds since 1970, those of keys are seconds.

use crate::jobs::{Callback, JobId};
use crate::store::error::StoreError;

/// The callbacks of an open store.
pub trait Callbacks {
    /// Returns the first key after this one that has a pending callback, due or not.
    fn next_callback_key(&mut self, after: &str) -> Result<Option<String>, StoreError>;

    /// Returns jobs of a key whose callbacks are due, the oldest first. Until the transaction ends,
    /// another connection that asks gets others.
    fn due_callbacks(
        &mut self,
        key_id: &str,
        now: u64,
        limit: u32,
    ) -> Result<Vec<JobId>, StoreError>;

    /// Saves a callback whose last attempt is `attempt`. Returns `false` if it has another one, or
    /// is not pending.
    fn save_callback(
        &mut self,
        job: JobId,
        attempt: u32,
        callback: &Callback,
    ) -> Result<bool, StoreError>;

    /// Returns the secrets of a key that sign at this second, the newest first; none if the key is
    /// revoked, unknown or has none.
    fn webhook_secrets(&mut self, key_id: &str, now: u64) -> Result<Vec<String>, StoreError>;

    /// Returns those of these keys that have a secret and are not revoked, in any order.
    fn signing_keys(&mut self, key_ids: &[&str]) -> Result<Vec<String>, StoreError>;

    /// Replaces the secret of a key, which goes on signing until then. The one before it is gone.
    /// Returns `false` if the key is revoked or unknown.
    fn rotate_webhook_secret(
        &mut self,
        key_id: &str,
        secret: &str,
        old_until: u64,
    ) -> Result<bool, StoreError>;

    /// Lets the newest secret alone sign. Returns `false` if the key is revoked or unknown.
    fn retire_webhook_secret(&mut self, key_id: &str) -> Result<bool, StoreError>;

    /// Puts the secret before this one back in its place, if this one is the newest.
    fn withdraw_webhook_secret(&mut self, key_id: &str, secret: &str) -> Result<bool, StoreError>;
}
