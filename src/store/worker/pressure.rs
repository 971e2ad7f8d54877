//! The store's thread beside another process that holds the lock or reads for long, and under a
//! flood.
//!
//! Mutations, each caught by the test named:
//! * `run_group` without `give_back`: `a_group_that_meets_a_lock_...`
//! * no bound on `busy`: `a_lock_without_an_end_...`
//! * `try_run` that does not ask `is_wanted`: `a_task_whose_owner_has_left_...`
//! * a group without a bound of bytes: `a_group_ends_at_its_bytes`
//! * `look_after` only when the queue is empty, or `trim` that ignores the bytes:
//!   `a_flood_of_records_stays_within_the_shares`
//! * `trim_if_due` that leaves a full store alone: `a_full_store_makes_room_by_itself`
//! * `Records::take` without its bound of bytes: `kept_records_have_a_bound_of_bytes`

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use rusqlite::Connection;

use super::tests::{Bench, Probe, create};
use super::*;
use crate::core::disk_shares::DiskShares;
use crate::store::interface::generations::GenerationRecord;
use crate::store::interface::generations::{Content, Generations as _, Status};
use crate::store::sqlite::SqliteStore;
use crate::store::tests::generations::{START, ids, record};
use crate::store::upkeep::Upkeep;

/// Far above the expected time; reached only by a failure.
const PATIENCE: Duration = Duration::from_secs(60);

const BUDGET_BYTES: u64 = 16 << 20;

fn shares() -> DiskShares {
    DiskShares::of(BUDGET_BYTES, 0, true)
}

fn lock(bench: &Bench) -> Connection {
    let other = Connection::open(&bench.path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    other
}

/// Starts a worker that waits for a lock only for a moment. `on_open` is called with the number of
/// each opening: after a lost group the store is opened again.
fn start(bench: &Bench, mut on_open: impl FnMut(u32) + Send + 'static) -> StoreWorker {
    let (path, mut opened) = (bench.path.clone(), 0);
    let open = move || {
        opened += 1;
        on_open(opened);
        let store = SqliteStore::open_existing(&path)?;
        store.set_patience(Duration::from_millis(1));
        Ok(Box::new(store) as Box<dyn Store>)
    };
    StoreWorker::start_with(Arc::clone(&bench.requests), open, Duration::MAX).unwrap()
}

#[test]
fn a_group_that_meets_a_lock_is_run_again_and_nothing_is_lost() {
    let bench = Bench::new();
    let mut held = Some(lock(&bench));
    for _ in 0..3 {
        bench.submit(create);
    }
    let mut ids = ids();
    bench
        .requests
        .records()
        .push(record(&mut ids, "", Status::Done, START));
    let health = Arc::clone(&bench.requests);
    let _worker = start(&bench, move |opened| {
        if opened == 3 {
            assert!(health.health().is_failing(), "the lock was not noticed");
            held.take();
        }
    });
    for (result, keys) in bench.results(3) {
        assert_eq!((result, keys), (Ok(()), 3));
    }
    assert!(!bench.requests.health().is_failing());
    assert_eq!(bench.requests.health().totals().records, 1);
}

#[test]
fn a_lock_without_an_end_fails_the_tasks_after_a_few_attempts() {
    let bench = Bench::new();
    let held = lock(&bench);
    bench.submit(create);
    let opened = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&opened);
    let _worker = start(&bench, move |number| count.store(number, Ordering::Relaxed));
    let (result, keys) = bench.results(1).remove(0);
    assert!(result.unwrap_err().contains("locked"));
    assert_eq!(keys, 0);
    assert!(opened.load(Ordering::Relaxed) > limits::BUSY_GROUP_ATTEMPTS_MAX);
    drop(held);
    bench.submit(create);
    assert_eq!(bench.results(1), [(Ok(()), 1)]);
}

#[test]
fn a_task_whose_owner_has_left_is_not_run_after_the_lock() {
    let bench = Bench::new();
    let mut held = Some(lock(&bench));
    let is_wanted = Arc::new(AtomicBool::new(true));
    let probe = Probe {
        is_wanted: Arc::clone(&is_wanted),
        ..bench.probe(create)
    };
    bench.requests.submit(1, Box::new(probe)).unwrap();
    bench.submit(|_| Ok(()));
    let _worker = start(&bench, move |opened| {
        if opened == 2 {
            is_wanted.store(false, Ordering::Relaxed);
            held.take();
        }
    });
    assert_eq!(bench.results(1), [(Ok(()), 0)]);
}

#[test]
fn a_group_ends_at_its_bytes() {
    let bench = Bench::new();
    let upkeep = Upkeep {
        shares: shares(),
        ..Upkeep::default()
    };
    bench.requests.set_upkeep(upkeep);
    // Two of them fit into what a transaction may write.
    let bytes = (upkeep.transaction_bytes() / 5) as u32;
    for _ in 0..4 {
        let probe = Probe {
            bytes,
            ..bench.probe(create)
        };
        bench.requests.submit(1, Box::new(probe)).unwrap();
    }
    let _worker = start(&bench, |_| ());
    let seen = bench.results(4).into_iter().map(|(_, keys)| keys);
    assert_eq!(seen.collect::<Vec<_>>(), [2, 2, 4, 4]);
}

fn long_record(ids: &mut crate::telemetry::id::Ids, bytes: usize) -> Box<GenerationRecord> {
    let mut record = record(ids, "", Status::Done, START);
    record.content = Some(Content {
        prompt: "x".repeat(bytes),
        text: String::new(),
    });
    record
}

#[test]
fn a_flood_of_records_stays_within_the_shares() {
    let bench = Bench::new();
    let upkeep = Upkeep {
        shares: shares(),
        ..Upkeep::default()
    };
    bench.requests.set_upkeep(upkeep);
    let _worker = start(&bench, |_| ());
    let (mut ids, requests) = (ids(), &bench.requests);
    let length = |suffix: &str| {
        let path = format!("{}{suffix}", bench.path.display());
        fs::metadata(path).map_or(0, |file| file.len())
    };
    let deadline = Instant::now() + PATIENCE;
    // Twice what the folder may hold, without a pause.
    for number in 0..2 * BUDGET_BYTES / (8 << 10) {
        while requests.records().waiting() > 200 {
            assert!(Instant::now() < deadline, "the records are not written");
            thread::yield_now();
        }
        requests.records().push(long_record(&mut ids, 8 << 10));
        if number % 50 == 0 {
            assert!(length("") <= shares().database, "{}", length(""));
            let log = length("-wal") + length("-shm");
            assert!(log <= shares().log, "{log}");
        }
    }
    assert!(requests.health().totals().removed > 500);
    assert!(requests.health().totals().used_bytes <= shares().database);
    assert_eq!(requests.records().dropped(), 0);
    assert_eq!(requests.health().totals().failed_groups, 0);
}

#[test]
fn a_full_store_makes_room_by_itself() {
    let (bench, mut ids) = (Bench::new(), ids());
    {
        // As an earlier daemon with a larger budget has left it.
        let mut store = SqliteStore::open(&bench.path).unwrap();
        for _ in 0..20 {
            let records: Vec<_> = (0..10).map(|_| long_record(&mut ids, 100 << 10)).collect();
            store.add_generations(&records).unwrap();
        }
    }
    bench.requests.set_upkeep(Upkeep {
        shares: shares(),
        ..Upkeep::default()
    });
    let record = long_record(&mut ids, 100 << 10);
    bench.requests.records().push(record);
    let _worker = start(&bench, |_| ());
    let (deadline, health) = (Instant::now() + PATIENCE, bench.requests.health());
    while health.totals().records == 0 || health.totals().used_bytes > shares().database {
        assert!(Instant::now() < deadline, "{health:?}");
        thread::yield_now();
    }
    assert!(health.totals().failed_groups > 0, "it was never full");
    bench.submit(create);
    assert_eq!(bench.results(1)[0].0, Ok(()));
}

#[test]
fn kept_records_have_a_bound_of_bytes() {
    let (requests, mut ids, mut taken) = (Requests::default(), ids(), Vec::new());
    for _ in 0..10 {
        requests.records().push(long_record(&mut ids, 1_000));
    }
    for _ in 0..3 {
        requests.records().take(&mut taken, 100, 3_500);
        assert_eq!(taken.len(), 4);
    }
}

/// A pool's threads end one after the other. Mutation: each of them counts what waits.
#[test]
fn records_that_no_thread_of_a_pool_could_write_are_counted_once() {
    let (bench, mut ids) = (Bench::new(), ids());
    let records = 3 * limits::GROUP_RECORDS_MAX + 5;
    for _ in 0..records {
        bench.requests.records().push(long_record(&mut ids, 1));
    }
    let lost = || Err(StoreError::UnknownKey("lost".into()));
    let start = || StoreWorker::start(Arc::clone(&bench.requests), lost).unwrap();
    drop([start(), start(), start()]);
    assert_eq!(bench.requests.records().dropped(), records as u64);
}
