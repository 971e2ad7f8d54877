//! Durable jobs in SQLite.
//!
//! Owns the statements on `jobs`, `job_events`, `job_totals` and `idempotency`. A transaction is
//! begun by the caller: each call is one statement, or a few that belong to one job.
//!
//! `job_totals` has a row for each key with jobs, and one for all keys together. Triggers maintain
//! it, so that no program can forget to, and so that neither a bound nor the choice of the next job
//! has to count rows.
//!
//! Mutations that tests catch: a trigger that is left out (`totals_are_what_a_count_would_find`);
//! `next_waiting_jobs` without `running` in its order (`the_key_with_fewer_running_jobs_...`), or
//! that does not move the turn on (`a_key_that_had_its_turn_...`); `job_events` that reads from
//! `after` on (`events_are_read_from_any_place_...`); a statement without its index
//! (`no_statement_reads_all_jobs`).

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::SqliteStore;
use super::connection::database_error;
use crate::jobs::{
    Callback, CallbackState, EventId, EventKind, JobEvent, JobId, JobRecord, JobSummary, JobTotals,
    Life, NewJob, RememberedJob, State, WaitingKey, next_turns,
};
use crate::limits::jobs as limits;
use crate::store::StoreError;
use crate::store::interface::jobs::{IdempotencyKey, JobChange, Jobs};
use crate::store::stored::{from_sql, to_sql};

const SELECT_JOB: &str = "
    SELECT j.id, j.key_id, j.state, attempt, sequence, lost, lease_until, created_at, started_at,
           finished_at, expires_at, request, ending, callback_url,
           c.state, c.attempts, c.next_at, c.error
    FROM jobs j LEFT JOIN callbacks c ON c.job = j.id WHERE j.id = ?1";

const SELECT_LIFE: &str = "
    SELECT state, attempt, sequence, lost, lease_until FROM jobs WHERE id = ?1";

const ADD_EVENT: &str = "
    INSERT INTO job_events (job, attempt, sequence, kind, text) VALUES (?1, ?2, ?3, ?4, ?5)";

const SAVE: &str = "
    UPDATE jobs SET state = ?2, attempt = ?3, sequence = ?4, lost = ?5, lease_until = ?6,
        started_at = CASE WHEN ?2 = 'running' THEN coalesce(started_at, max(created_at, ?7))
                     ELSE started_at END,
        bytes = bytes + ?8
            - CASE WHEN ?9 IS NULL THEN 0 ELSE length(CAST(request AS BLOB)) END,
        finished_at = coalesce(?9, finished_at), expires_at = coalesce(?10, expires_at),
        ending = coalesce(?11, ending),
        request = CASE WHEN ?9 IS NULL THEN request ELSE '' END
    WHERE id = ?1";

/// The row of `job_totals` for all keys together. No key has this id.
const ALL_KEYS: &str = "*";

impl Jobs for SqliteStore {
    fn insert_jobs(&mut self, jobs: &[&NewJob]) -> Result<(), StoreError> {
        self.run(|connection| {
            let sql = "INSERT INTO jobs (id, key_id, state, created_at, expires_at, bytes, \
                       callback_url, request) VALUES (?1, ?2, 'queued', ?3, ?4, ?5, ?6, ?7)";
            let mut statement = connection.prepare_cached(sql)?;
            for job in jobs {
                statement.execute(params![
                    job.id.as_bytes(),
                    job.key_id,
                    to_sql(job.created_at),
                    to_sql(job.expires_at),
                    to_sql(job.bytes()),
                    job.callback_url,
                    job.request,
                ])?;
            }
            Ok(())
        })
    }

    fn jobs(&mut self, ids: &[JobId]) -> Result<Vec<JobRecord>, StoreError> {
        self.run(|connection| {
            let mut statement = connection.prepare_cached(SELECT_JOB)?;
            let found = ids
                .iter()
                .map(|id| statement.query_row([id.as_bytes()], record).optional());
            found.filter_map(Result::transpose).collect()
        })
    }

    fn job_lives(&mut self, ids: &[JobId]) -> Result<Vec<(JobId, Life)>, StoreError> {
        self.run(|connection| {
            let mut statement = connection.prepare_cached(SELECT_LIFE)?;
            let found = ids.iter().map(|id| {
                let life = statement.query_row([id.as_bytes()], |row| life(row, 0));
                Ok(life.optional()?.map(|life| (*id, life)))
            });
            found.filter_map(Result::transpose).collect()
        })
    }

    fn last_job_events(&mut self, ids: &[JobId]) -> Result<Vec<(JobId, EventId)>, StoreError> {
        let lives = self.job_lives(ids)?.into_iter();
        Ok(lives.map(|(id, life)| (id, life.last_event())).collect())
    }

    fn save_jobs(&mut self, changes: &[JobChange], now: u64) -> Result<(), StoreError> {
        self.run(|connection| {
            let mut add_event = connection.prepare_cached(ADD_EVENT)?;
            let mut save = connection.prepare_cached(SAVE)?;
            for change in changes {
                let id = change.id.as_bytes();
                for event in &change.events {
                    add_event.execute(params![
                        id,
                        event.id.attempt,
                        event.id.sequence,
                        event.kind.as_str(),
                        event.text,
                    ])?;
                }
                let (life, end) = (&change.life, change.end.as_ref());
                save.execute(params![
                    id,
                    life.state.as_str(),
                    life.attempt,
                    life.sequence,
                    life.lost,
                    to_sql(life.lease_until),
                    to_sql(now),
                    to_sql(change.bytes()),
                    end.map(|end| to_sql(end.finished_at)),
                    end.map(|end| to_sql(end.expires_at)),
                    end.and_then(|end| end.ending.as_deref()),
                ])?;
            }
            Ok(())
        })
    }

    fn job_events(
        &mut self,
        id: JobId,
        after: EventId,
        bytes_max: usize,
    ) -> Result<Vec<JobEvent>, StoreError> {
        self.run(|connection| {
            let sql = "SELECT attempt, sequence, kind, text FROM job_events WHERE job = ?1 AND \
                       (attempt, sequence) > (?2, ?3) ORDER BY attempt, sequence";
            let mut statement = connection.prepare_cached(sql)?;
            let mut rows =
                statement.query(params![id.as_bytes(), after.attempt, after.sequence])?;
            let (mut events, mut bytes) = (Vec::new(), 0);
            while let Some(row) = rows.next()? {
                let event = event(row)?;
                bytes += event.text.len() + limits::EVENT_BYTES as usize;
                events.push(event);
                if bytes >= bytes_max {
                    break;
                }
            }
            Ok(events)
        })
    }

    fn next_waiting_jobs(&mut self, now: u64, room: usize) -> Result<Vec<JobId>, StoreError> {
        self.run(|connection| {
            let mut statement = connection.prepare_cached(WAITING_KEYS)?;
            let keys = statement.query_map(params![to_sql(now), room as i64], waiting_key)?;
            let keys: Vec<WaitingKey> = keys.collect::<rusqlite::Result<_>>()?;
            let turns = next_turns(&keys, room);
            let mut waiting = keys.iter().map(|_| Vec::new()).collect::<Vec<_>>();
            for (index, key) in keys.iter().enumerate() {
                let share = turns.iter().filter(|turn| **turn == index).count();
                let mut statement = connection.prepare_cached(WAITING_OF_KEY)?;
                let jobs =
                    statement.query_map(params![key.id, share as i64], |row| job_id(row, 0))?;
                waiting[index] = jobs.collect::<rusqlite::Result<_>>()?;
            }
            let mut waiting: Vec<_> = waiting.into_iter().map(Vec::into_iter).collect();
            let mut next = Vec::new();
            for turn in turns {
                // The row of all keys counts the turns.
                let sql = "UPDATE job_totals SET turn = turn + 1 WHERE key_id = '*'";
                connection.prepare_cached(sql)?.execute(())?;
                let sql = "UPDATE job_totals SET turn = (SELECT turn FROM job_totals \
                           WHERE key_id = '*') WHERE key_id = ?1";
                connection.prepare_cached(sql)?.execute([&keys[turn].id])?;
                next.extend(waiting[turn].next());
            }
            Ok(next)
        })
    }

    fn postpone_jobs(&mut self, jobs: &[(JobId, u64)]) -> Result<(), StoreError> {
        self.run(|connection| {
            let sql = "UPDATE job_totals SET not_before = max(not_before, ?2) \
                       WHERE key_id = (SELECT key_id FROM jobs WHERE id = ?1)";
            let mut statement = connection.prepare_cached(sql)?;
            for (id, until) in jobs {
                statement.execute(params![id.as_bytes(), to_sql(*until)])?;
            }
            Ok(())
        })
    }

    fn totals_of_keys(
        &mut self,
        key_ids: &[&str],
    ) -> Result<(Vec<JobTotals>, JobTotals), StoreError> {
        self.run(|connection| {
            let sql = "SELECT queued, running, bytes FROM job_totals WHERE key_id = ?1";
            let mut statement = connection.prepare_cached(sql)?;
            let mut read = |key_id: &str| {
                let totals = statement.query_row([key_id], |row| {
                    Ok(JobTotals {
                        queued: unsigned(row, 0)?,
                        running: unsigned(row, 1)?,
                        bytes: unsigned(row, 2)?,
                    })
                });
                totals.optional().map(Option::unwrap_or_default)
            };
            let own = key_ids.iter().map(|key_id| read(key_id));
            let own: Vec<JobTotals> = own.collect::<rusqlite::Result<_>>()?;
            Ok((own, read(ALL_KEYS)?))
        })
    }

    fn job_page(
        &mut self,
        key_id: &str,
        state: Option<State>,
        before: Option<JobId>,
        limit: u32,
    ) -> Result<Vec<JobSummary>, StoreError> {
        // After every id that there can be.
        let before = before.map_or([0xff; JobId::BYTES], |id| *id.as_bytes());
        self.run(|connection| {
            let sql = match state {
                None => PAGE,
                Some(_) => PAGE_OF_STATE,
            };
            let mut statement = connection.prepare_cached(sql)?;
            let word = state.map_or("", State::as_str);
            let rows = statement.query_map(params![key_id, word, before, limit], summary)?;
            rows.collect()
        })
    }

    fn lost_jobs(&mut self, now: u64, limit: u32) -> Result<Vec<JobId>, StoreError> {
        self.ids(LOST, now, limit)
    }

    fn overdue_jobs(&mut self, now: u64, limit: u32) -> Result<Vec<JobId>, StoreError> {
        self.ids(OVERDUE, now, limit)
    }

    fn delete_old_jobs(&mut self, now: u64, limit: u32) -> Result<u32, StoreError> {
        let mut deleted = 0;
        for state in State::ALL.into_iter().filter(|state| state.is_finished()) {
            deleted += self.run(|connection| {
                let mut statement = connection.prepare_cached(DELETE_OLD)?;
                statement.execute(params![state.as_str(), to_sql(now), limit - deleted])
            })? as u32;
        }
        deleted += self.run(|connection| {
            let mut statement = connection.prepare_cached(FORGET_OLD)?;
            statement.execute(params![to_sql(now), limit - deleted])
        })? as u32;
        Ok(deleted)
    }

    fn erase_jobs(&mut self, key_id: &str, limit: u32) -> Result<u32, StoreError> {
        self.change(ERASE, (key_id, limit))
    }

    fn erase_remembered_jobs(&mut self, key_id: &str, limit: u32) -> Result<u32, StoreError> {
        self.change(ERASE_REMEMBERED, (key_id, limit))
    }

    fn remembered_jobs(
        &mut self,
        keys: &[IdempotencyKey<'_>],
    ) -> Result<Vec<Option<RememberedJob>>, StoreError> {
        self.run(|connection| {
            let sql = "SELECT job, digest, expires_at FROM idempotency \
                       WHERE key_id = ?1 AND key = ?2";
            let mut statement = connection.prepare_cached(sql)?;
            let found = keys.iter().map(|(key_id, key)| {
                let found = statement.query_row([key_id, key], |row| {
                    Ok(RememberedJob {
                        id: job_id(row, 0)?,
                        digest: row.get(1)?,
                        expires_at: unsigned(row, 2)?,
                    })
                });
                found.optional()
            });
            found.collect()
        })
    }

    fn remember_jobs(
        &mut self,
        jobs: &[(IdempotencyKey<'_>, RememberedJob)],
    ) -> Result<(), StoreError> {
        self.run(|connection| {
            let sql = "INSERT OR REPLACE INTO idempotency (key_id, key, digest, job, expires_at) \
                       VALUES (?1, ?2, ?3, ?4, ?5)";
            let mut statement = connection.prepare_cached(sql)?;
            for ((key_id, key), job) in jobs {
                statement.execute(params![
                    key_id,
                    key,
                    job.digest,
                    job.id.as_bytes(),
                    to_sql(job.expires_at),
                ])?;
            }
            Ok(())
        })
    }
}

const WAITING_KEYS: &str = "
    SELECT key_id, queued, running FROM job_totals INDEXED BY turns_of_keys
    WHERE queued > 0 AND key_id <> '*' AND not_before <= ?1
    ORDER BY running, turn LIMIT ?2";

const WAITING_OF_KEY: &str = "
    SELECT id FROM jobs WHERE key_id = ?1 AND state = 'queued' ORDER BY id LIMIT ?2";

const PAGE: &str = "
    SELECT id, state, attempt, created_at, started_at, finished_at, expires_at
    FROM jobs INDEXED BY jobs_of_keys
    WHERE key_id = ?1 AND ?2 = '' AND id < ?3 ORDER BY id DESC LIMIT ?4";

const PAGE_OF_STATE: &str = "
    SELECT id, state, attempt, created_at, started_at, finished_at, expires_at
    FROM jobs INDEXED BY jobs_of_keys_by_state
    WHERE key_id = ?1 AND state = ?2 AND id < ?3 ORDER BY id DESC LIMIT ?4";

const LOST: &str = "
    SELECT id FROM jobs INDEXED BY leases_of_jobs
    WHERE state = 'running' AND lease_until <= ?1
    ORDER BY lease_until LIMIT ?2";

const OVERDUE: &str = "
    SELECT id FROM jobs WHERE state = 'queued' AND expires_at <= ?1 ORDER BY expires_at LIMIT ?2";

const DELETE_OLD: &str = "
    DELETE FROM jobs WHERE rowid IN
        (SELECT rowid FROM jobs WHERE state = ?1 AND expires_at <= ?2 LIMIT ?3)";

const FORGET_OLD: &str = "
    DELETE FROM idempotency WHERE (key_id, key) IN
        (SELECT key_id, key FROM idempotency WHERE expires_at <= ?1 LIMIT ?2)";

const ERASE: &str = "
    DELETE FROM jobs WHERE rowid IN (SELECT rowid FROM jobs WHERE key_id = ?1 LIMIT ?2)";

const ERASE_REMEMBERED: &str = "
    DELETE FROM idempotency WHERE key_id = ?1 AND key IN
        (SELECT key FROM idempotency WHERE key_id = ?1 LIMIT ?2)";

impl SqliteStore {
    pub(super) fn run<T>(
        &mut self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        work(&self.connection).map_err(|error| database_error(&self.path, error))
    }

    fn ids(&mut self, sql: &str, now: u64, limit: u32) -> Result<Vec<JobId>, StoreError> {
        self.run(|connection| {
            let mut statement = connection.prepare_cached(sql)?;
            let rows = statement.query_map(params![to_sql(now), limit], |row| job_id(row, 0))?;
            rows.collect()
        })
    }
}

fn record(row: &Row<'_>) -> rusqlite::Result<JobRecord> {
    Ok(JobRecord {
        id: job_id(row, 0)?,
        key_id: row.get(1)?,
        life: life(row, 2)?,
        created_at: unsigned(row, 7)?,
        started_at: optional(row, 8)?,
        finished_at: optional(row, 9)?,
        expires_at: unsigned(row, 10)?,
        request: row.get(11)?,
        ending: row.get(12)?,
        callback_url: row.get(13)?,
        callback: callback(row, 14)?,
    })
}

/// Reads the four columns of a callback; `None` without one.
fn callback(row: &Row<'_>, first: usize) -> rusqlite::Result<Option<Callback>> {
    let Some(word) = row.get::<_, Option<String>>(first)? else {
        return Ok(None);
    };
    Ok(Some(Callback {
        // A state that a later version has written needs nothing of this one.
        state: CallbackState::parse(&word).unwrap_or(CallbackState::Failed),
        attempts: row.get(first + 1)?,
        next_at: unsigned(row, first + 2)?,
        error: row.get(first + 3)?,
    }))
}

fn summary(row: &Row<'_>) -> rusqlite::Result<JobSummary> {
    Ok(JobSummary {
        id: job_id(row, 0)?,
        state: state(row, 1)?,
        attempt: row.get(2)?,
        created_at: unsigned(row, 3)?,
        started_at: optional(row, 4)?,
        finished_at: optional(row, 5)?,
        expires_at: unsigned(row, 6)?,
    })
}

fn event(row: &Row<'_>) -> rusqlite::Result<JobEvent> {
    let word: String = row.get(2)?;
    Ok(JobEvent {
        id: EventId {
            attempt: row.get(0)?,
            sequence: row.get(1)?,
        },
        kind: EventKind::parse(&word).ok_or_else(|| unknown(2, &word))?,
        text: row.get(3)?,
    })
}

fn waiting_key(row: &Row<'_>) -> rusqlite::Result<WaitingKey> {
    Ok(WaitingKey {
        id: row.get(0)?,
        queued: unsigned(row, 1)?,
        running: unsigned(row, 2)?,
    })
}

/// Reads the five columns of a life.
fn life(row: &Row<'_>, first: usize) -> rusqlite::Result<Life> {
    Ok(Life {
        state: state(row, first)?,
        attempt: row.get(first + 1)?,
        sequence: row.get(first + 2)?,
        lost: row.get(first + 3)?,
        lease_until: unsigned(row, first + 4)?,
    })
}

fn state(row: &Row<'_>, column: usize) -> rusqlite::Result<State> {
    let word: String = row.get(column)?;
    State::parse(&word).ok_or_else(|| unknown(column, &word))
}

pub(super) fn job_id(row: &Row<'_>, column: usize) -> rusqlite::Result<JobId> {
    row.get(column).map(JobId::from_bytes)
}

fn unsigned(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    row.get::<_, i64>(column).map(from_sql)
}

fn optional(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<u64>> {
    let value: Option<i64> = row.get(column)?;
    Ok(value.map(from_sql))
}

/// A word that a later version has written.
fn unknown(column: usize, word: &str) -> rusqlite::Error {
    let error = format!("unknown word `{word}`");
    rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, error.into())
}

#[cfg(test)]
mod tests;
