//! Durable jobs in PostgreSQL.
//!
//! Owns the statements on `jobs`, `job_events`, `job_changes` and `idempotency`. A transaction is
//! begun by the caller. A statement is a round trip to the server, so each takes as many jobs as
//! the caller has. Changes of jobs are written by [`changes`](super::changes).
//!
//! Several daemons work on these tables at once. A job that is about to change is locked by its
//! row. A request with `Idempotency-Key` holds a lock on that key, so that its retry on another
//! daemon waits and finds the job. The bounds on jobs may be exceeded by the jobs that other
//! daemons accept at the same moment.
//!
//! Two transactions that wait for each other stand still for a second, until the server ends one of
//! them. So locks are taken in one order. A transaction takes those for which it may wait before
//! all others: jobs in the order of their ids (`job_lives`), then keys of idempotency in the order
//! of their numbers. Jobs that it finds by their state are passed over if they are locked
//! (`SKIP LOCKED`). No statement here writes to `job_totals`, where all connections would wait in
//! any order: changes are noted in `job_changes`, and counted in the moment of the commit, in the
//! order of the keys; see `schema/counts.rs`.
//!
//! Mutations that tests catch: a trigger that is left out (`totals_are_what_a_count_would_find`);
//! `next_waiting_jobs` without `running` in its order (`the_key_with_the_fewest_...`) or without
//! `SKIP LOCKED` (`a_job_that_another_daemon_takes_...`), or that returns a job again which it has
//! found before (`daemons_that_take_jobs_at_once_...`); `remembered_jobs` without its lock
//! (`a_retry_on_another_daemon_...`); `insert_jobs` with a statement for each job
//! (`a_group_of_jobs_costs_...`); `job_lives` without its order
//! (`daemons_that_change_the_same_jobs_...`); a sweep that waits for a job
//! (`a_sweep_passes_over_...`).

use std::collections::VecDeque;

use tokio_postgres::Row;

use super::changes::save;
use super::connection::PostgresStore;
use super::session::{Parameters, Unread};
use crate::jobs::{
    Callback, CallbackState, EventId, EventKind, JobEvent, JobId, JobRecord, JobSummary, JobTotals,
    Life, NewJob, RememberedJob, State, WaitingKey, next_turns,
};
use crate::limits::jobs as limits;
use crate::store::StoreError;
use crate::store::interface::jobs::{IdempotencyKey, JobChange, Jobs};
use crate::store::stored::{from_sql, to_sql};

pub(super) const SELECT_JOBS: &str = "
    SELECT j.id, j.key_id, j.state, attempt, sequence, lost, lease_until, created_at, started_at,
           finished_at, expires_at, request, ending, callback_url,
           c.state, c.attempts, c.next_at, c.error
    FROM jobs j LEFT JOIN callbacks c ON c.job = j.id WHERE j.id = ANY ($1)";

pub(super) const LOCK_LIVES: &str = "
    SELECT state, attempt, sequence, lost, lease_until, one.id
    FROM unnest($1::bytea[]) AS one (id)
    CROSS JOIN LATERAL (
        SELECT state, attempt, sequence, lost, lease_until FROM jobs
        WHERE id = one.id FOR UPDATE) AS life";

pub(super) const LAST_EVENTS: &str = "
    SELECT id, attempt, sequence FROM jobs WHERE id = ANY ($1)";

impl Jobs for PostgresStore {
    fn insert_jobs(&mut self, jobs: &[&NewJob]) -> Result<(), StoreError> {
        let ids: Vec<&[u8]> = jobs.iter().map(|job| bytes_of(&job.id)).collect();
        let texts =
            |read: fn(&NewJob) -> &str| -> Vec<&str> { jobs.iter().map(|job| read(job)).collect() };
        let numbers = |read: fn(&NewJob) -> u64| -> Vec<i64> {
            jobs.iter().map(|job| to_sql(read(job))).collect()
        };
        let urls: Vec<Option<&str>> = jobs.iter().map(|job| job.callback_url.as_deref()).collect();
        self.execute(
            INSERT,
            &[
                &ids,
                &texts(|job| &job.key_id),
                &numbers(|job| job.created_at),
                &numbers(|job| job.expires_at),
                &numbers(NewJob::bytes),
                &urls,
                &texts(|job| &job.request),
            ],
        )?;
        Ok(())
    }

    fn jobs(&mut self, ids: &[JobId]) -> Result<Vec<JobRecord>, StoreError> {
        let ids: Vec<&[u8]> = ids.iter().map(bytes_of).collect();
        self.session.query(SELECT_JOBS, &[&ids], record)
    }

    fn job_lives(&mut self, ids: &[JobId]) -> Result<Vec<(JobId, Life)>, StoreError> {
        let mut ids: Vec<&[u8]> = ids.iter().map(bytes_of).collect();
        // In one order, so that no two transactions wait for each other.
        ids.sort_unstable();
        ids.dedup();
        let read = |row: &Row| Ok((job_id(row, 5)?, life(row, 0)?));
        self.session.query(LOCK_LIVES, &[&ids], read)
    }

    fn lock_jobs(&mut self, ids: &[JobId]) -> Result<(), StoreError> {
        self.job_lives(ids).map(drop)
    }

    fn last_job_events(&mut self, ids: &[JobId]) -> Result<Vec<(JobId, EventId)>, StoreError> {
        let ids: Vec<&[u8]> = ids.iter().map(bytes_of).collect();
        self.session.query(LAST_EVENTS, &[&ids], |row| {
            let last = EventId {
                attempt: small(row, 1)?,
                sequence: small(row, 2)?,
            };
            Ok((job_id(row, 0)?, last))
        })
    }

    fn save_jobs(&mut self, changes: &[JobChange], now: u64) -> Result<(), StoreError> {
        save(&self.session, changes, now)
    }

    fn job_events(
        &mut self,
        id: JobId,
        after: EventId,
        bytes_max: usize,
    ) -> Result<Vec<JobEvent>, StoreError> {
        // The server adds up the sizes, so that no more events than wanted are sent.
        let sql = "
            SELECT attempt, sequence, kind, text FROM (
                SELECT attempt, sequence, kind, text,
                       sum(octet_length(text) + $5::bigint) OVER (ORDER BY attempt, sequence)
                           - octet_length(text) - $5::bigint AS bytes_before
                FROM job_events WHERE job = $1 AND (attempt, sequence) > ($2, $3)
            ) AS events
            WHERE bytes_before < $4::bigint ORDER BY attempt, sequence";
        self.session.query(
            sql,
            &[
                &bytes_of(&id),
                &i64::from(after.attempt),
                &i64::from(after.sequence),
                &to_sql(bytes_max as u64),
                &to_sql(limits::EVENT_BYTES),
            ],
            event,
        )
    }

    fn next_waiting_jobs(&mut self, now: u64, room: usize) -> Result<Vec<JobId>, StoreError> {
        let most = i64::from(limits::WAITING_KEYS_MAX);
        let mut keys: Vec<WaitingKey> =
            self.session
                .query(NEXT_KEYS, &[&to_sql(now), &most], waiting_key)?;
        let (mut found, mut turns) = (Vec::new(), Vec::new());
        while found.len() < room {
            let line = next_turns(&keys, room - found.len());
            if line.is_empty() {
                break;
            }
            let mut jobs = self.lock_waiting_jobs(&keys, &line, &found)?;
            let mut is_short = false;
            for turn in line {
                let Some(job) = jobs[turn].pop_front() else {
                    // Other daemons are taking the rest of this key's jobs.
                    keys[turn].queued = 0;
                    is_short = true;
                    continue;
                };
                found.push(job);
                turns.push(keys[turn].id.clone());
                keys[turn].queued = keys[turn].queued.saturating_sub(1);
                keys[turn].running += 1;
            }
            if !is_short {
                break;
            }
        }
        if !turns.is_empty() {
            self.execute(NOTE_TURNS, &[&turns])?;
        }
        Ok(found)
    }

    fn postpone_jobs(&mut self, jobs: &[(JobId, u64)]) -> Result<(), StoreError> {
        let ids: Vec<&[u8]> = jobs.iter().map(|(id, _)| bytes_of(id)).collect();
        let ends: Vec<i64> = jobs.iter().map(|(_, until)| to_sql(*until)).collect();
        self.execute(POSTPONE, &[&ids, &ends])?;
        Ok(())
    }

    fn totals_of_keys(
        &mut self,
        key_ids: &[&str],
    ) -> Result<(Vec<JobTotals>, JobTotals), StoreError> {
        let mut own = self.session.query(TOTALS, &[&key_ids], totals)?;
        let all = own.pop().unwrap_or_default();
        Ok((own, all))
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
        let (before, limit) = (&before[..], i64::from(limit));
        match state.map(State::as_str) {
            None => {
                let parameters: Parameters<'_> = &[&key_id, &before, &limit];
                self.session.query(PAGE, parameters, summary)
            }
            Some(state) => {
                let parameters: Parameters<'_> = &[&key_id, &before, &limit, &state];
                self.session.query(PAGE_OF_STATE, parameters, summary)
            }
        }
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
            let rest = i64::from(limit - deleted);
            deleted += self.execute(DELETE_OLD, &[&state.as_str(), &to_sql(now), &rest])?;
        }
        let rest = i64::from(limit - deleted);
        deleted += self.execute(FORGET_OLD, &[&to_sql(now), &rest])?;
        Ok(deleted)
    }

    fn erase_jobs(&mut self, key_id: &str, limit: u32) -> Result<u32, StoreError> {
        let sql = "
            DELETE FROM jobs WHERE id IN
                (SELECT id FROM jobs WHERE key_id = $1 ORDER BY id LIMIT $2 FOR UPDATE)";
        self.execute(sql, &[&key_id, &i64::from(limit)])
    }

    fn erase_remembered_jobs(&mut self, key_id: &str, limit: u32) -> Result<u32, StoreError> {
        let sql = "
            DELETE FROM idempotency WHERE key_id = $1 AND key IN (
                SELECT key FROM idempotency WHERE key_id = $1 ORDER BY key LIMIT $2 FOR UPDATE)";
        self.execute(sql, &[&key_id, &i64::from(limit)])
    }

    fn remembered_jobs(
        &mut self,
        keys: &[IdempotencyKey<'_>],
    ) -> Result<Vec<Option<RememberedJob>>, StoreError> {
        let (key_ids, names): (Vec<&str>, Vec<&str>) = keys.iter().copied().unzip();
        // Two statements, so that the second one sees what was committed during the first.
        self.execute(LOCK_IDEMPOTENCY, &[&key_ids, &names])?;
        self.session.query(REMEMBERED, &[&key_ids, &names], |row| {
            let Some(digest) = row.try_get::<_, Option<&[u8]>>(1)? else {
                return Ok(None);
            };
            Ok(Some(RememberedJob {
                id: job_id(row, 0)?,
                digest: digest.try_into().map_err(|_| unknown("digest"))?,
                expires_at: unsigned(row, 2)?,
            }))
        })
    }

    fn remember_jobs(
        &mut self,
        jobs: &[(IdempotencyKey<'_>, RememberedJob)],
    ) -> Result<(), StoreError> {
        let (key_ids, names): (Vec<&str>, Vec<&str>) = jobs.iter().map(|(key, _)| *key).unzip();
        let jobs = || jobs.iter().map(|(_, job)| job);
        let digests: Vec<&[u8]> = jobs().map(|job| &job.digest[..]).collect();
        let ids: Vec<&[u8]> = jobs().map(|job| bytes_of(&job.id)).collect();
        let ends: Vec<i64> = jobs().map(|job| to_sql(job.expires_at)).collect();
        self.execute(REMEMBER, &[&key_ids, &names, &digests, &ids, &ends])?;
        Ok(())
    }
}

const INSERT: &str = "
    INSERT INTO jobs (id, key_id, state, created_at, expires_at, bytes, callback_url, request)
    SELECT id, key_id, 'queued', created_at, expires_at, bytes, callback_url, request
    FROM unnest($1::bytea[], $2::text[], $3::bigint[], $4::bigint[], $5::bigint[], $6::text[],
        $7::text[]) AS new (id, key_id, created_at, expires_at, bytes, callback_url, request)";

const NEXT_KEYS: &str = "
    SELECT key_id, queued, running FROM job_totals WHERE is_waiting AND not_before <= $1
    ORDER BY running, turn, key_id LIMIT $2";

/// The jobs are locked key by key, in the order of the keys, as `next_waiting_jobs` of all daemons
/// do; it passes over those that are locked, so that none waits.
pub(super) const LOCK_WAITING: &str = "
    SELECT id, place FROM unnest($1::text[], $2::bigint[]) WITH ORDINALITY
        AS line (key_id, share, place)
    CROSS JOIN LATERAL (
        SELECT id FROM jobs
        WHERE key_id = line.key_id AND state = 'queued' AND id <> ALL ($3::bytea[])
        ORDER BY id LIMIT line.share FOR UPDATE SKIP LOCKED) AS next";

/// The first row of a statement has all changes of its transaction counted.
const NOTE_TURNS: &str = "
    INSERT INTO job_changes (key_id, turn, is_first)
    SELECT key_id, nextval('job_turns'), place = 1
    FROM unnest($1::text[]) WITH ORDINALITY AS turn (key_id, place)";

pub(super) const POSTPONE: &str = "
    INSERT INTO job_changes (key_id, not_before, is_first)
    SELECT key_id, until, row_number() OVER () = 1
    FROM unnest($1::bytea[], $2::bigint[]) AS one (id, until)
    CROSS JOIN LATERAL (SELECT key_id FROM jobs WHERE id = one.id LIMIT 1) AS job";

/// The totals of each key, and then of all, with what this transaction has changed: that is counted
/// when it commits.
pub(super) const TOTALS: &str = "
    WITH own AS MATERIALIZED (SELECT * FROM own_job_changes())
    SELECT coalesce(t.queued, 0) + coalesce(own.queued, 0),
           coalesce(t.running, 0) + coalesce(own.running, 0),
           coalesce(t.bytes, 0) + coalesce(own.bytes, 0), place
    FROM unnest($1::text[]) WITH ORDINALITY AS keys (key_id, place)
    LEFT JOIN LATERAL (
        SELECT queued, running, bytes FROM job_totals WHERE key_id = keys.key_id LIMIT 1
    ) AS t ON true
    LEFT JOIN own ON own.of_key = keys.key_id
    UNION ALL
    SELECT coalesce(sum(queued), 0)::bigint, coalesce(sum(running), 0)::bigint,
           coalesce(sum(bytes), 0)::bigint, 9223372036854775807
    FROM (SELECT queued, running, bytes FROM job_totals
          UNION ALL SELECT queued, running, bytes FROM own) AS everything
    ORDER BY place";

/// In one order, so that no two daemons wait for each other.
const LOCK_IDEMPOTENCY: &str = "
    SELECT pg_advisory_xact_lock(number) FROM (
        SELECT DISTINCT hashtextextended(key, hashtext(key_id)) AS number
        FROM unnest($1::text[], $2::text[]) AS name (key_id, key) ORDER BY number) AS numbers";

pub(super) const REMEMBERED: &str = "
    SELECT job, digest, expires_at
    FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS name (key_id, key, place)
    LEFT JOIN LATERAL (
        SELECT job, digest, expires_at FROM idempotency
        WHERE key_id = name.key_id AND key = name.key LIMIT 1) AS found ON true
    ORDER BY place";

const REMEMBER: &str = "
    INSERT INTO idempotency (key_id, key, digest, job, expires_at)
    SELECT * FROM unnest($1::text[], $2::text[], $3::bytea[], $4::bytea[], $5::bigint[])
    ON CONFLICT (key_id, key) DO UPDATE SET digest = excluded.digest, job = excluded.job,
        expires_at = excluded.expires_at";

pub(super) const PAGE: &str = "
    SELECT id, state, attempt, created_at, started_at, finished_at, expires_at FROM jobs
    WHERE key_id = $1 AND id < $2 ORDER BY id DESC LIMIT $3";

pub(super) const PAGE_OF_STATE: &str = "
    SELECT id, state, attempt, created_at, started_at, finished_at, expires_at FROM jobs
    WHERE key_id = $1 AND state = $4 AND id < $2 ORDER BY id DESC LIMIT $3";

pub(super) const LOST: &str = "
    SELECT id FROM jobs WHERE state = 'running' AND lease_until <= $1
    ORDER BY lease_until LIMIT $2 FOR UPDATE SKIP LOCKED";

pub(super) const OVERDUE: &str = "
    SELECT id FROM jobs WHERE state = 'queued' AND expires_at <= $1
    ORDER BY expires_at LIMIT $2 FOR UPDATE SKIP LOCKED";

pub(super) const DELETE_OLD: &str = "
    DELETE FROM jobs WHERE id IN (
        SELECT id FROM jobs WHERE state = $1 AND expires_at <= $2
        ORDER BY expires_at LIMIT $3 FOR UPDATE SKIP LOCKED)";

pub(super) const FORGET_OLD: &str = "
    DELETE FROM idempotency WHERE (key_id, key) IN (
        SELECT key_id, key FROM idempotency WHERE expires_at <= $1
        ORDER BY expires_at LIMIT $2 FOR UPDATE SKIP LOCKED)";

impl PostgresStore {
    /// Returns the number of changed rows.
    pub(super) fn execute(&self, sql: &str, parameters: Parameters<'_>) -> Result<u32, StoreError> {
        let changed = self.session.execute(sql, parameters)?;
        Ok(u32::try_from(changed).unwrap_or(u32::MAX))
    }

    /// Locks the oldest waiting jobs of each key, as many as it has turns, and returns them by key:
    /// fewer if other daemons are taking them. Those that were found before are locked already.
    fn lock_waiting_jobs(
        &self,
        keys: &[WaitingKey],
        line: &[usize],
        found: &[JobId],
    ) -> Result<Vec<VecDeque<JobId>>, StoreError> {
        let shares = |index| line.iter().filter(|turn| **turn == index).count();
        let ids: Vec<&str> = keys.iter().map(|key| key.id.as_str()).collect();
        let shares: Vec<i64> = (0..keys.len()).map(|index| shares(index) as i64).collect();
        let found: Vec<&[u8]> = found.iter().map(bytes_of).collect();
        let locked = self
            .session
            .query(LOCK_WAITING, &[&ids, &shares, &found], |row| {
                let place: i64 = row.try_get(1)?;
                Ok((job_id(row, 0)?, place))
            })?;
        let mut jobs = vec![VecDeque::new(); keys.len()];
        for (job, place) in locked {
            // The first place is 1.
            jobs[place as usize - 1].push_back(job);
        }
        Ok(jobs)
    }

    fn ids(&mut self, sql: &str, now: u64, limit: u32) -> Result<Vec<JobId>, StoreError> {
        let parameters: Parameters<'_> = &[&to_sql(now), &i64::from(limit)];
        self.session.query(sql, parameters, |row| job_id(row, 0))
    }
}

fn record(row: &Row) -> Result<JobRecord, Unread> {
    Ok(JobRecord {
        id: job_id(row, 0)?,
        key_id: row.try_get(1)?,
        life: life(row, 2)?,
        created_at: unsigned(row, 7)?,
        started_at: optional(row, 8)?,
        finished_at: optional(row, 9)?,
        expires_at: unsigned(row, 10)?,
        request: row.try_get(11)?,
        ending: row.try_get(12)?,
        callback_url: row.try_get(13)?,
        callback: callback(row, 14)?,
    })
}

/// Reads the four columns of a callback; `None` without one.
fn callback(row: &Row, first: usize) -> Result<Option<Callback>, Unread> {
    let Some(word) = row.try_get::<_, Option<String>>(first)? else {
        return Ok(None);
    };
    Ok(Some(Callback {
        // A state that a later version has written needs nothing of this one.
        state: CallbackState::parse(&word).unwrap_or(CallbackState::Failed),
        attempts: small(row, first + 1)?,
        next_at: unsigned(row, first + 2)?,
        error: row.try_get(first + 3)?,
    }))
}

fn summary(row: &Row) -> Result<JobSummary, Unread> {
    Ok(JobSummary {
        id: job_id(row, 0)?,
        state: state(row, 1)?,
        attempt: small(row, 2)?,
        created_at: unsigned(row, 3)?,
        started_at: optional(row, 4)?,
        finished_at: optional(row, 5)?,
        expires_at: unsigned(row, 6)?,
    })
}

fn event(row: &Row) -> Result<JobEvent, Unread> {
    let word: &str = row.try_get(2)?;
    let text: Vec<u8> = row.try_get(3)?;
    Ok(JobEvent {
        id: EventId {
            attempt: small(row, 0)?,
            sequence: small(row, 1)?,
        },
        kind: EventKind::parse(word).ok_or_else(|| unknown(word))?,
        text: String::from_utf8(text).map_err(|_| unknown("text"))?,
    })
}

fn totals(row: &Row) -> Result<JobTotals, Unread> {
    Ok(JobTotals {
        queued: unsigned(row, 0)?,
        running: unsigned(row, 1)?,
        bytes: unsigned(row, 2)?,
    })
}

fn waiting_key(row: &Row) -> Result<WaitingKey, Unread> {
    Ok(WaitingKey {
        id: row.try_get(0)?,
        queued: unsigned(row, 1)?,
        running: unsigned(row, 2)?,
    })
}

/// Reads the five columns of a life.
fn life(row: &Row, first: usize) -> Result<Life, Unread> {
    Ok(Life {
        state: state(row, first)?,
        attempt: small(row, first + 1)?,
        sequence: small(row, first + 2)?,
        lost: small(row, first + 3)?,
        lease_until: unsigned(row, first + 4)?,
    })
}

fn state(row: &Row, column: usize) -> Result<State, Unread> {
    let word: &str = row.try_get(column)?;
    State::parse(word).ok_or_else(|| unknown(word))
}

pub(super) fn bytes_of(id: &JobId) -> &[u8] {
    &id.as_bytes()[..]
}

pub(super) fn job_id(row: &Row, column: usize) -> Result<JobId, Unread> {
    let bytes: &[u8] = row.try_get(column)?;
    let bytes = bytes.try_into().map_err(|_| unknown("id"))?;
    Ok(JobId::from_bytes(bytes))
}

fn unsigned(row: &Row, column: usize) -> Result<u64, Unread> {
    Ok(from_sql(row.try_get(column)?))
}

fn small(row: &Row, column: usize) -> Result<u32, Unread> {
    let value: i64 = row.try_get(column)?;
    Ok(u32::try_from(value).unwrap_or(u32::MAX))
}

fn optional(row: &Row, column: usize) -> Result<Option<u64>, Unread> {
    let value: Option<i64> = row.try_get(column)?;
    Ok(value.map(from_sql))
}

/// A value that a later version has written.
fn unknown(word: &str) -> Unread {
    Unread::Content(format!("unknown value `{word}`"))
}
