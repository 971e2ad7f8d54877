//! Changes of jobs in the store.
//!
//! Each function is one unit of work: it reads, applies transitions of a job's life ([`Changes`])
//! and writes. Its caller runs it in one transaction. Knows no thread and no clock, and no
//! database: every store that keeps rows has these rules.
//!
//! Mutations that the tests catch: `claim` that returns a called job of another daemon; `cancel`
//! without the key; `sweep` that leaves a lost job; a
//! statement for each job (`a_group_of_changes_costs_...`).

use crate::jobs::{Fenced, JobId, JobRecord};
use crate::store::{Store, StoreError};

use super::changes::{Changes, Write};

/// Claims those of the `called` jobs that wait, and up to `room` others.
pub fn claim(
    store: &mut dyn Store,
    called: &[JobId],
    room: usize,
    now: u64,
    lease_until: u64,
) -> Result<Vec<JobRecord>, StoreError> {
    let mut ids = called.to_vec();
    if room > 0 {
        let next = store.next_waiting_jobs(now, room)?;
        ids.extend(next.into_iter().filter(|id| !called.contains(id)));
    }
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let mut changes = Changes::read(store, ids.iter().copied(), now, 0)?;
    ids.retain(|id| changes.claim(*id, lease_until));
    changes.save(store)?;
    let mut claimed = store.jobs(&ids)?;
    claimed.sort_by_key(|job| ids.iter().position(|id| *id == job.id));
    Ok(claimed)
}

/// Saves parts of attempts. `Err(Fenced)`: the job does not belong to the attempt any more, and
/// nothing of the part was written.
pub fn write<'a>(
    store: &mut dyn Store,
    parts: impl Iterator<Item = &'a Write> + Clone,
    now: u64,
    keep_ms: u64,
) -> Result<Vec<Result<(), Fenced>>, StoreError> {
    let ids = parts.clone().map(|part| part.id);
    let mut changes = Changes::read(store, ids, now, keep_ms)?;
    let saved = parts.map(|part| changes.write(part)).collect();
    changes.save(store)?;
    Ok(saved)
}

/// Cancels a key's job. `None`: the key has no such job. A job that is finished stays as it is.
pub fn cancel(
    store: &mut dyn Store,
    key_id: &str,
    id: JobId,
    now: u64,
    keep_ms: u64,
) -> Result<Option<JobRecord>, StoreError> {
    let mut changes = Changes::read(store, [id].into_iter(), now, keep_ms)?;
    let found = store.job(id)?.filter(|job| job.key_id == key_id);
    if found.is_none() || !changes.cancel(id) {
        return Ok(found);
    }
    changes.save(store)?;
    store.job(id)
}

/// Takes back jobs whose leases have run out, ends those that have waited for too long, and deletes
/// those whose time has passed: a bounded number of each. Returns the jobs that have changed, and
/// whether there may be more to do.
pub fn sweep(
    store: &mut dyn Store,
    now: u64,
    keep_ms: u64,
    limit: u32,
) -> Result<(Vec<JobId>, bool), StoreError> {
    let lost = store.lost_jobs(now, limit)?;
    let overdue = store.overdue_jobs(now, limit)?;
    let found = lost.iter().chain(&overdue).copied();
    let mut changes = Changes::read(store, found, now, keep_ms)?;
    lost.iter().for_each(|id| changes.take_back(*id));
    overdue.iter().for_each(|id| changes.expire(*id));
    changes.save(store)?;
    let deleted = store.delete_old_jobs(now, limit)?;
    let most = lost.len().max(overdue.len()).max(deleted as usize);
    let changed = [lost, overdue].concat();
    Ok((changed, most >= limit as usize))
}

#[cfg(test)]
mod tests;
