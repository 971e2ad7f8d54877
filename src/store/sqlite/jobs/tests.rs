//! The plans of the statements; everything else is tested for each database at once.

use super::*;
use crate::store::sqlite::callbacks;

/// The statement of the trigger `job_forgotten`.
const FORGET: &str = "DELETE FROM idempotency WHERE job = ?1";

/// Mutations: `jobs_by_end` without `expires_at`, no index of `idempotency` by its jobs.
#[test]
fn no_statement_reads_all_jobs() {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open_in(folder.path()).unwrap();
    let next = "SELECT id FROM jobs WHERE key_id = ?1 AND state = 'queued' ORDER BY id LIMIT 1";
    let of_id = [SELECT_JOB, SELECT_LIFE];
    let all = [
        PAGE,
        PAGE_OF_STATE,
        LOST,
        OVERDUE,
        DELETE_OLD,
        FORGET_OLD,
        ERASE,
        ERASE_REMEMBERED,
        FORGET,
        next,
        callbacks::NEXT_KEY,
        callbacks::DUE,
    ];
    for sql in all.into_iter().chain(of_id) {
        let sql = format!("EXPLAIN QUERY PLAN {sql}");
        let mut statement = store.connection.prepare(&sql).unwrap();
        let mut rows = statement.raw_query();
        while let Some(row) = rows.next().unwrap() {
            let step: String = row.get(3).unwrap();
            assert!(!step.starts_with("SCAN"), "{sql}: {step}");
            assert!(!step.contains("TEMP B-TREE"), "{sql}: {step}");
        }
    }
}
