//! A key with one of its secrets, as every database stores it, and numbers on their way to and from
//! a database.
//!
//! Knows no database and no SQL.

use crate::keys::KeyRecord;
use crate::limits::keys as limits;
use crate::store::interface::keys::Renewal;

pub struct StoredSecret {
    pub record: KeyRecord,
    pub revoked_at: Option<u64>,
    /// The secret's own time, not the key's.
    pub created_at: u64,
    /// The secret's end after a rotation with grace. `None`: it is the current one.
    pub valid_until: Option<u64>,
}

impl StoredSecret {
    /// Returns the record for the ring: one that is found by an old secret ends with that secret.
    pub fn into_record(self) -> KeyRecord {
        let mut record = self.record;
        record.expires_at = match (record.expires_at, self.valid_until) {
            (Some(key), Some(secret)) => Some(key.min(secret)),
            (key, secret) => key.or(secret),
        };
        record
    }

    pub fn renewed_expiry(&self, renewal: Renewal, now: u64) -> Option<u64> {
        match renewal {
            Renewal::At(end) => Some(end),
            Renewal::SameLifetime => {
                let lifetime = self.record.expires_at?.saturating_sub(self.created_at);
                Some(now.saturating_add(lifetime))
            }
        }
    }
}

/// No weight outside of the bounds was written by us. The nearest one that is allowed is used, so
/// that the key still works.
pub fn weight_from_sql(weight: i64) -> u16 {
    let (least, most) = (limits::WEIGHT_DEFAULT, limits::WEIGHT_MAX);
    weight.clamp(least.into(), most.into()) as u16
}

/// The integers of databases are signed. Times beyond their range mean "never" in practice.
pub fn to_sql(seconds: u64) -> i64 {
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

/// A time before 1970 was not written by us; as second 0 it has passed, which errs on the safe
/// side.
pub fn from_sql(seconds: i64) -> u64 {
    u64::try_from(seconds).unwrap_or(0)
}
