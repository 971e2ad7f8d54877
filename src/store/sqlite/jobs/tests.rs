//! The plans of the statements, and what jobs take in the file; everything else is tested for each
//! database at once.

use super::*;
use crate::jobs::Idempotency;
use crate::store::interface::Groups as _;
use crate::store::interface::callbacks::Callbacks as _;
use crate::store::interface::generations::Generations as _;
use crate::store::interface::jobs::JobEnd;
use crate::store::sqlite::callbacks;
use crate::store::tests::OneJob as _;

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

/// A number without order, but the same in each run.
fn scattered(number: u64) -> [u8; 8] {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()
}

/// Accepts jobs, and ends them with a callback that has failed if they have one. Returns what they
/// take in the file, and what they count.
fn taken_and_counted(key_bytes: usize, has_callback: bool) -> (u64, u64) {
    const JOBS: u64 = 400;
    let folder = tempfile::tempdir().unwrap();
    let mut store = SqliteStore::open_in(folder.path()).unwrap();
    let key_id = "key_0123456789abcdef";
    let before = store.used_bytes().unwrap();
    store.begin().unwrap();
    for number in 0..JOBS {
        let [a, b, c, d, e, f, g, h] = scattered(number);
        let now = 1_700_000_000_000 + number;
        let id = JobId::new(now, [a, b, c, d, e, f, g, h, 0, 0]);
        let name: String = scattered(number + JOBS)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let idempotency = (key_bytes > 0).then(|| Idempotency {
            key: name.repeat(key_bytes.div_ceil(16))[..key_bytes].to_owned(),
            digest: [a; 32],
            expires_at: now,
        });
        let job = NewJob {
            id,
            key_id: key_id.to_owned(),
            created_at: now,
            expires_at: now,
            request: String::new(),
            callback_url: has_callback.then(|| "https://example.com/".to_owned()),
            idempotency,
        };
        store.insert_job(&job).unwrap();
        if let Some(idempotency) = &job.idempotency {
            let remembered = RememberedJob {
                id,
                digest: idempotency.digest,
                expires_at: idempotency.expires_at,
            };
            let named = ((key_id, idempotency.key.as_str()), remembered);
            store.remember_jobs(&[named]).unwrap();
        }
        end(&mut store, &job);
    }
    store.commit().unwrap();
    let taken = store.used_bytes().unwrap() - before;
    let (own, all) = store.totals_of_keys(&[key_id]).unwrap();
    assert_eq!(own, [all]);
    (taken, all.bytes)
}

fn end(store: &mut SqliteStore, job: &NewJob) {
    let mut life = store.job_life(job.id).unwrap().unwrap();
    life.claim(job.expires_at).unwrap();
    life.finish(1, State::Completed).unwrap();
    let mut change = JobChange::new(job.id, life);
    change.end = Some(JobEnd {
        finished_at: job.expires_at,
        expires_at: job.expires_at,
        ending: None,
    });
    store.save_jobs(&[change], job.expires_at).unwrap();
    if job.callback_url.is_some() {
        let failed = Callback {
            state: CallbackState::Failed,
            attempts: 9,
            next_at: job.expires_at,
            error: Some("x".repeat(limits::CALLBACK_REASON_CHARACTERS_MAX)),
        };
        assert!(store.save_callback(job.id, 0, &failed).unwrap());
    }
}

/// So the bounds on what jobs count bound the file.
///
/// Mutations: `NewJob::bytes` without the key of idempotency, or with its text once.
#[test]
fn no_job_takes_more_than_it_counts() {
    for has_callback in [false, true] {
        for key_bytes in [0, 36, limits::IDEMPOTENCY_KEY_BYTES_MAX] {
            let (taken, counted) = taken_and_counted(key_bytes, has_callback);
            assert!(
                taken <= counted,
                "{key_bytes} {has_callback}: {taken} {counted}"
            );
        }
    }
}
