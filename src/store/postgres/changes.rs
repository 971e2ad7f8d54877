//! Changes of jobs in PostgreSQL: those of many jobs in one statement.
//!
//! Owns the writing of lives, events and ends. The statement is planned each time, for as many jobs
//! as it has: a plan that was made while the table was short, and kept, would read all of it later.
//!
//! Mutations that tests catch: a save that moves `started_at`, or keeps the request of a job that
//! has ended (`a_job_is_read_as_it_was_saved`); bytes that are not added
//! (`totals_are_what_a_count_would_find`); a statement for each job
//! (`a_group_of_changes_costs_...`).

use tokio_postgres::types::{ToSql, Type};

use super::session::Session;
use crate::jobs::Life;
use crate::store::StoreError;
use crate::store::interface::jobs::{JobChange, JobEnd};
use crate::store::stored::to_sql;

pub(super) const SAVE: &str = "
    WITH added AS (
        INSERT INTO job_events (job, attempt, sequence, kind, text)
        SELECT * FROM unnest($12::bytea[], $13::bigint[], $14::bigint[], $15::text[],
            $16::bytea[]))
    UPDATE jobs SET state = change.state, attempt = change.attempt, sequence = change.sequence,
        lost = change.lost, lease_until = change.lease_until,
        started_at = CASE WHEN change.state = 'running'
                     THEN coalesce(started_at, greatest(created_at, $11)) ELSE started_at END,
        bytes = jobs.bytes + change.bytes
            - CASE WHEN change.finished_at IS NULL THEN 0 ELSE octet_length(request) END,
        finished_at = coalesce(change.finished_at, jobs.finished_at),
        expires_at = coalesce(change.expires_at, jobs.expires_at),
        ending = coalesce(change.ending, jobs.ending),
        request = CASE WHEN change.finished_at IS NULL THEN request ELSE '' END
    FROM unnest($1::bytea[], $2::text[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[],
        $7::bigint[], $8::bigint[], $9::bigint[], $10::text[])
        AS change (id, state, attempt, sequence, lost, lease_until, bytes, finished_at,
            expires_at, ending)
    WHERE jobs.id = change.id";

/// Saves changes of different jobs.
pub fn save(session: &Session, changes: &[JobChange], now: u64) -> Result<(), StoreError> {
    let ids: Vec<&[u8]> = changes
        .iter()
        .map(|change| &change.id.as_bytes()[..])
        .collect();
    let states: Vec<&str> = changes
        .iter()
        .map(|change| change.life.state.as_str())
        .collect();
    let lives = |read: fn(&Life) -> i64| -> Vec<i64> {
        changes.iter().map(|change| read(&change.life)).collect()
    };
    let ends = |read: fn(&JobEnd) -> u64| -> Vec<Option<i64>> {
        let ends = changes.iter().map(|change| change.end.as_ref());
        ends.map(|end| end.map(|end| to_sql(read(end)))).collect()
    };
    let bytes: Vec<i64> = changes
        .iter()
        .map(|change| to_sql(change.bytes()))
        .collect();
    let endings: Vec<Option<&str>> = changes
        .iter()
        .map(|change| change.end.as_ref().and_then(|end| end.ending.as_deref()))
        .collect();
    let events = || {
        let changes = changes.iter();
        changes.flat_map(|change| change.events.iter().map(|event| (&change.id, event)))
    };
    let jobs: Vec<&[u8]> = events().map(|(id, _)| &id.as_bytes()[..]).collect();
    let attempts: Vec<i64> = events().map(|(_, event)| event.id.attempt.into()).collect();
    let sequences: Vec<i64> = events()
        .map(|(_, event)| event.id.sequence.into())
        .collect();
    let kinds: Vec<&str> = events().map(|(_, event)| event.kind.as_str()).collect();
    let texts: Vec<&[u8]> = events().map(|(_, event)| event.text.as_bytes()).collect();
    let values: [(&(dyn ToSql + Sync), Type); 16] = [
        (&ids, Type::BYTEA_ARRAY),
        (&states, Type::TEXT_ARRAY),
        (&lives(|life| life.attempt.into()), Type::INT8_ARRAY),
        (&lives(|life| life.sequence.into()), Type::INT8_ARRAY),
        (&lives(|life| life.lost.into()), Type::INT8_ARRAY),
        (&lives(|life| to_sql(life.lease_until)), Type::INT8_ARRAY),
        (&bytes, Type::INT8_ARRAY),
        (&ends(|end| end.finished_at), Type::INT8_ARRAY),
        (&ends(|end| end.expires_at), Type::INT8_ARRAY),
        (&endings, Type::TEXT_ARRAY),
        (&to_sql(now), Type::INT8),
        (&jobs, Type::BYTEA_ARRAY),
        (&attempts, Type::INT8_ARRAY),
        (&sequences, Type::INT8_ARRAY),
        (&kinds, Type::TEXT_ARRAY),
        (&texts, Type::BYTEA_ARRAY),
    ];
    session.execute_once(SAVE, &values)
}
