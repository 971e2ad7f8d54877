//! Transactions of several daemons that want the same rows: none waits for one that waits for it.
//!
//! Where two could, a third transaction holds the row in the middle until they wait, one from each
//! end: if they lock in different orders, each holds what the other one needs next.

use std::time::Instant;

use super::*;
use crate::jobs::Idempotency;
use crate::limits::store as limits;
use crate::store::tests::AcceptTask;

/// The number of rows. The third transaction holds the one in the middle.
const ROWS: u8 = 5;
const MIDDLE: usize = 2;

/// Returns once that number of transactions wait for another one.
fn await_waiting(bed: &PostgresBed, count: u64) {
    let waiting = "SELECT count(*) FROM pg_stat_activity
                   WHERE datname = current_database() AND wait_event_type = 'Lock'";
    let begin = Instant::now();
    while bed.number(waiting) < count {
        assert!(begin.elapsed() < PATIENCE, "none waits");
        thread::yield_now();
    }
}

/// Locks one job, which it has named.
struct LockOne {
    job: JobId,
    results: Sender<Result<(), String>>,
}

impl StoreTask for LockOne {
    fn name_jobs(&self, jobs: &mut Vec<JobId>) {
        jobs.push(self.job);
    }

    fn run(&mut self, store: &mut dyn Store) -> Result<(), StoreError> {
        store.job_life(self.job).map(drop)
    }

    fn finish(self: Box<Self>, result: Result<(), &StoreError>) {
        self.results
            .send(result.map_err(ToString::to_string))
            .unwrap();
    }
}

/// Runs tasks on two daemons, on one of them in the opposite order, while `store` has a
/// transaction. Commits that once both wait for it, and returns when all tasks have ended.
fn run_against(
    bed: &PostgresBed,
    mut store: PostgresStore,
    task: impl Fn(u8, bool) -> Box<dyn StoreTask>,
) {
    let workers = [false, true].map(|is_reversed| {
        let requests = Arc::new(Requests::default());
        for number in 0..ROWS {
            let number = match is_reversed {
                false => number,
                true => ROWS - 1 - number,
            };
            requests.submit(1, task(number, is_reversed)).unwrap();
        }
        worker(&target_of(bed), &requests)
    });
    await_waiting(bed, 2);
    store.commit().unwrap();
    drop(workers);
}

/// Mutations that this test catches: a group that locks no jobs before its tasks, or those of one
/// task alone; `job_lives` without its order.
#[test]
fn daemons_that_change_the_same_jobs_never_wait_in_a_circle() {
    let (bed, target) = bed();
    let mut store = PostgresStore::open(&target).unwrap();
    let jobs: Vec<NewJob> = (0..ROWS).map(|number| new_job(number, "key_a")).collect();
    store.insert_jobs(&jobs.iter().collect::<Vec<_>>()).unwrap();
    store.begin().unwrap();
    store.job_life(jobs[MIDDLE].id).unwrap();
    let (sender, results) = channel();
    run_against(&bed, store, |number, _| {
        Box::new(LockOne {
            job: jobs[usize::from(number)].id,
            results: sender.clone(),
        })
    });
    drop(sender);
    let ends: Vec<_> = results.iter().collect();
    assert_eq!(ends, vec![Ok(()); 2 * usize::from(ROWS)]);
    assert_eq!(deadlocks(&bed), 0);
}

/// One daemon changes two jobs, and accepts one under a name. Another one accepts one under the
/// same name, and changes the first of these jobs.
///
/// Mutation that this test catches: a group with new jobs that locks no jobs before those.
#[test]
fn daemons_that_accept_and_change_jobs_never_wait_in_a_circle() {
    let (bed, target) = bed();
    let mut store = PostgresStore::open(&target).unwrap();
    let jobs = [new_job(1, "key_a"), new_job(2, "key_a")];
    store.insert_jobs(&[&jobs[0], &jobs[1]]).unwrap();
    store.begin().unwrap();
    store.lock_jobs(&[jobs[1].id]).unwrap();
    let (changed, changes) = channel();
    let (sender, accepted) = channel();
    let mut workers = Vec::new();
    for (waiting, changing) in [(1, &jobs[..]), (2, &jobs[..1])] {
        let requests = Arc::new(Requests::default());
        for job in changing {
            let task = LockOne {
                job: job.id,
                results: changed.clone(),
            };
            requests.submit(1, Box::new(task)).unwrap();
        }
        let task = named_task(waiting, "retry", &sender);
        requests.submit(1, Box::new(task)).unwrap();
        workers.push(worker(&target, &requests));
        await_waiting(&bed, waiting);
    }
    store.commit().unwrap();
    drop((store, workers, changed, sender));
    let ends: Vec<_> = changes.iter().collect();
    assert_eq!(ends, vec![Ok(()); 3]);
    let ends: Vec<_> = accepted.iter().map(|(_, end)| end.is_ok()).collect();
    assert_eq!(ends, [true, true]);
    assert_eq!(deadlocks(&bed), 0);
}

/// Returns a task for a job of `key_a` with a key of idempotency.
fn named_task(
    number: u64,
    name: &str,
    results: &Sender<(JobId, Result<Acceptance, String>)>,
) -> AcceptTask {
    let mut task = accept_task(number, "key_a", results);
    task.candidate.job.idempotency = Some(Idempotency {
        key: name.to_owned(),
        digest: [7; 32],
        expires_at: 5_000,
    });
    task
}

/// Mutation that this test catches: `accept` that takes some of the group's jobs, and then others.
#[test]
fn daemons_that_accept_jobs_with_the_same_names_never_wait_in_a_circle() {
    let (bed, target) = bed();
    let mut store = PostgresStore::open(&target).unwrap();
    let name = |number: u8| format!("retry-{number}");
    store.begin().unwrap();
    let middle = name(MIDDLE as u8);
    store.remembered_jobs(&[("key_a", &middle)]).unwrap();
    let (sender, results) = channel();
    run_against(&bed, store, |number, is_reversed| {
        let id = u64::from(number) + u64::from(ROWS) * u64::from(is_reversed);
        let mut task = named_task(id, &name(number), &sender);
        // One statement takes no second one of this size.
        task.bytes = limits::ACCEPTED_BYTES_MAX as u32 / 2 + 1;
        Box::new(task)
    });
    drop(sender);
    let new =
        |(_, end): &(JobId, Result<Acceptance, String>)| matches!(end, Ok(Acceptance::New(_)));
    let known = |(_, end): &(JobId, _)| matches!(end, Ok(Acceptance::Known(_)));
    let ends: Vec<_> = results.iter().collect();
    let counted = (
        ends.iter().filter(|end| new(end)).count(),
        ends.iter().filter(|end| known(end)).count(),
    );
    assert_eq!(counted, (usize::from(ROWS), usize::from(ROWS)));
    assert_eq!(deadlocks(&bed), 0);
}

/// Mutations that this test catches: `LOST` or `OVERDUE` without `SKIP LOCKED`, or without a lock.
#[test]
fn a_sweep_passes_over_jobs_that_another_daemon_changes() {
    let (_bed, target) = bed();
    let mut one = PostgresStore::open(&target).unwrap();
    let mut other = PostgresStore::open(&target).unwrap();
    let jobs: Vec<NewJob> = (0..4).map(|number| new_job(number, "key_a")).collect();
    let [lost, also_lost, overdue, also_overdue] = [0, 1, 2, 3].map(|index| jobs[index].id);
    one.insert_jobs(&jobs.iter().collect::<Vec<_>>()).unwrap();
    for id in [lost, also_lost] {
        let mut life = one.job_life(id).unwrap().unwrap();
        life.claim(100).unwrap();
        one.save_job_life(id, &life, 1).unwrap();
    }
    one.begin().unwrap();
    one.lock_jobs(&[lost, overdue]).unwrap();
    assert_eq!(other.lost_jobs(100, 9).unwrap(), [also_lost]);
    assert_eq!(other.overdue_jobs(5_000, 9).unwrap(), [also_overdue]);
    other.begin().unwrap();
    assert_eq!(other.lost_jobs(100, 9).unwrap(), [also_lost]);
    assert_eq!(one.lost_jobs(100, 9).unwrap(), [lost]);
    one.commit().unwrap();
    other.commit().unwrap();
}

/// Mutation that this test catches: `LOCK_IDEMPOTENCY` that locks in the order of its names.
#[test]
fn requests_with_the_same_names_never_wait_in_a_circle() {
    let (bed, target) = bed();
    let mut store = PostgresStore::open(&target).unwrap();
    let names: Vec<String> = (0..ROWS).map(|number| format!("retry-{number}")).collect();
    let names: Vec<_> = names.iter().map(|name| ("key_a", name.as_str())).collect();
    let reversed: Vec<_> = names.iter().rev().copied().collect();
    store.begin().unwrap();
    store.remembered_jobs(&names[MIDDLE..=MIDDLE]).unwrap();
    thread::scope(|scope| {
        let ask = |names: &[(&str, &str)]| {
            let mut store = PostgresStore::open(&target).unwrap();
            store.begin().unwrap();
            store.remembered_jobs(names).unwrap();
            store.commit().unwrap();
        };
        let orders = [&names[..], &reversed[..]];
        let threads = orders.map(|names| scope.spawn(move || ask(names)));
        await_waiting(&bed, 2);
        store.commit().unwrap();
        threads
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
    });
    drop(store);
    assert_eq!(deadlocks(&bed), 0);
}

/// Each of these would wait for the other transaction, and fail after the timeout.
///
/// Mutations that this test catches: a statement that deletes without `SKIP LOCKED`.
#[test]
fn steps_that_delete_pass_over_rows_of_other_transactions() {
    let (_bed, target) = bed();
    let mut one = PostgresStore::open(&target).unwrap();
    let mut hasty = target.clone();
    hasty.statement_timeout = Duration::from_secs(5);
    let mut other = PostgresStore::open(&hasty).unwrap();
    let jobs = [1, 2].map(|number| new_job(number, "key_a"));
    insert_cancelled(&mut one, &jobs);
    for number in 3..=4 {
        one.put_entry(&entry(number), 1).unwrap();
    }
    one.begin().unwrap();
    one.lock_jobs(&[jobs[0].id]).unwrap();
    one.find_entry(&[3; 32], 1).unwrap().unwrap();
    assert_eq!(other.delete_old_jobs(9, 9).unwrap(), 1);
    other.begin().unwrap();
    assert_eq!(other.trim_entries(0, 9).unwrap(), 1);
    other.roll_back();
    assert!(!other.erase_entry(&[3; 32], 1).unwrap(), "it is used");
    for tenant in [Some(1), None] {
        other.begin().unwrap();
        assert_eq!(other.erase_entries(tenant, 9).unwrap(), 1);
        other.roll_back();
    }
    assert_eq!(other.delete_old_entries(100, 9).unwrap(), 1);
    one.commit().unwrap();
    assert_eq!(other.delete_old_jobs(9, 9).unwrap(), 1);
    assert_eq!(other.delete_old_entries(100, 9).unwrap(), 1);
}

/// Mutation that this test catches: `rows::lock` without `FOR UPDATE`.
#[test]
fn rotations_at_the_same_time_follow_each_other() {
    let (bed, target) = bed();
    let mut one = PostgresStore::open(&target).unwrap();
    let (record, first) = one.create(&NewKey::default(), 1).unwrap();
    let mut other = PostgresStore::open(&target).unwrap();
    one.begin().unwrap();
    let (_, second) = one
        .rotate(&record.id, 60, Renewal::SameLifetime, 2)
        .unwrap();
    let id = record.id.clone();
    let thread = thread::spawn(move || other.rotate(&id, 60, Renewal::SameLifetime, 3));
    await_waiting(&bed, 1);
    one.commit().unwrap();
    let (_, third) = thread.join().unwrap().unwrap();
    let crate::store::ReadKeys::All(records) = one.read(None).unwrap().keys else {
        unreachable!("no mark was given");
    };
    let ring = crate::keys::KeyRing::new(records);
    for (secret, end) in [(first, Some(62)), (second, Some(63)), (third, None)] {
        let found = ring.find(secret.reveal()).unwrap();
        assert_eq!(found.record.expires_at, end);
    }
}
