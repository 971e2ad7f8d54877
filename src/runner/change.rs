//! Changes of jobs in the store.
//!
//! Each function is one unit of work: it reads, applies a transition of [`Life`] and writes. Its
//! caller runs it in one transaction. Knows no thread and no clock, and no database: every store
//! that keeps rows has these rules.
//!
//! Mutations that the tests catch: `cancel` without the key;
//! `write` that appends before it has checked the attempt; `sweep` that leaves a lost job.

use crate::error::ErrorCode;
use crate::jobs::{
    Ending, EventKind, Failure, Fenced, JobEvent, JobId, JobRecord, Life, State, TakenBack,
};
use crate::limits::jobs as limits;
use crate::store::{FinishedJob, Store, StoreError};

/// Claims up to `room` jobs.
pub fn claim(
    store: &mut dyn Store,
    room: usize,
    now: u64,
    lease_until: u64,
) -> Result<Vec<JobRecord>, StoreError> {
    let mut claimed = Vec::new();
    for id in store.next_waiting_jobs(now, room)? {
        let Some(mut life) = store.job_life(id)? else {
            continue;
        };
        let Some(opening) = life.claim(lease_until) else {
            continue;
        };
        store.save_job_life(id, &life, now)?;
        let event = JobEvent {
            id: opening.id,
            kind: opening.kind,
            text: String::new(),
        };
        store.push_job_event(id, &event)?;
        claimed.extend(store.job(id)?);
    }
    Ok(claimed)
}

/// The part of an attempt that is to be saved.
#[derive(Clone, Debug)]
pub struct Write {
    pub id: JobId,
    pub attempt: u32,
    /// The addition to the program since the last part.
    pub text: String,
    pub next: Next,
}

/// How an attempt continues.
#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    /// It runs on, with a lease until then.
    Run {
        lease_until: u64,
    },
    End(Box<Ending>),
    /// The job waits again. With `postponed`, the key's jobs wait until then.
    Wait {
        postponed: Option<u64>,
    },
    /// The engine has failed under it: it waits again, but not for ever.
    Lose,
}

/// Saves a part of an attempt. `Err(Fenced)`: the job does not belong to it any more, and nothing
/// was written.
pub fn write(
    store: &mut dyn Store,
    write: &Write,
    now: u64,
    keep_ms: u64,
) -> Result<Result<(), Fenced>, StoreError> {
    let Some(mut life) = store.job_life(write.id)? else {
        return Ok(Err(Fenced));
    };
    if !life.holds(write.attempt) {
        return Ok(Err(Fenced));
    }
    if !write.text.is_empty()
        && let Ok(id) = life.push_event(write.attempt)
    {
        let event = JobEvent {
            id,
            kind: EventKind::Delta,
            text: write.text.clone(),
        };
        store.push_job_event(write.id, &event)?;
    }
    let changed = match &write.next {
        Next::Run { lease_until } => life.renew(write.attempt, *lease_until),
        Next::Wait { .. } => life.release(write.attempt),
        Next::End(ending) => {
            let state = match **ending {
                Ending::Completed(_) => State::Completed,
                Ending::Failed(_) => State::Failed,
            };
            let ended = life.finish(write.attempt, state);
            return match ended {
                Ok(_) => {
                    end(store, write.id, &life, Some(ending), now, keep_ms)?;
                    Ok(Ok(()))
                }
                Err(Fenced) => Ok(Err(Fenced)),
            };
        }
        Next::Lose => {
            let taken = life.lose(limits::LOST_ATTEMPTS_MAX);
            settle_lost(store, write.id, &life, taken, now, keep_ms)?;
            return Ok(Ok(()));
        }
    };
    store.save_job_life(write.id, &life, now)?;
    if let Next::Wait {
        postponed: Some(until),
    } = write.next
        && let Some(record) = store.job(write.id)?
    {
        store.postpone_jobs(&record.key_id, until)?;
    }
    Ok(changed)
}

/// Cancels a key's job. `None`: the key has no such job. A job that is finished stays as it is.
pub fn cancel(
    store: &mut dyn Store,
    key_id: &str,
    id: JobId,
    now: u64,
    keep_ms: u64,
) -> Result<Option<JobRecord>, StoreError> {
    let Some(mut life) = store.job_life(id)? else {
        return Ok(None);
    };
    let found = store.job(id)?.filter(|job| job.key_id == key_id);
    if found.is_none() || life.cancel().is_none() {
        return Ok(found);
    }
    end(store, id, &life, None, now, keep_ms)?;
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
    for id in &lost {
        if let Some(mut life) = store.job_life(*id)?
            && let Some(taken) = life.take_back(now, limits::LOST_ATTEMPTS_MAX)
        {
            settle_lost(store, *id, &life, taken, now, keep_ms)?;
        }
    }
    let overdue = store.overdue_jobs(now, limit)?;
    for id in &overdue {
        if let Some(mut life) = store.job_life(*id)?
            && life.expire().is_some()
        {
            end(store, *id, &life, None, now, keep_ms)?;
        }
    }
    let deleted = store.delete_old_jobs(now, limit)?;
    let most = lost.len().max(overdue.len()).max(deleted as usize);
    let changed = [lost, overdue].concat();
    Ok((changed, most >= limit as usize))
}

/// Saves a job that was lost.
fn settle_lost(
    store: &mut dyn Store,
    id: JobId,
    life: &Life,
    taken: TakenBack,
    now: u64,
    keep_ms: u64,
) -> Result<(), StoreError> {
    match taken {
        TakenBack::Queued => store.save_job_life(id, life, now),
        TakenBack::Failed(_) => {
            let message = format!("the job was lost {} times while it ran", life.lost);
            let failure = Ending::Failed(Failure {
                code: ErrorCode::EngineFailed.as_str().to_owned(),
                message,
            });
            end(store, id, life, Some(&failure), now, keep_ms)
        }
    }
}

/// Saves a finished job with its last event, whose id is the life's.
fn end(
    store: &mut dyn Store,
    id: JobId,
    life: &Life,
    ending: Option<&Ending>,
    now: u64,
    keep_ms: u64,
) -> Result<(), StoreError> {
    let ending = ending.map(Ending::to_json);
    if let Some(kind) = life.state.last_event() {
        let event = JobEvent {
            id: life.last_event(),
            kind,
            text: String::new(),
        };
        store.push_job_event(id, &event)?;
    }
    let end = FinishedJob {
        life,
        finished_at: now,
        expires_at: now.saturating_add(keep_ms),
        ending: ending.as_deref(),
    };
    store.finish_job(id, &end)
}

#[cfg(test)]
mod tests;
