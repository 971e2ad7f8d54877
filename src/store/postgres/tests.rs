//! The store on a real server: connections, migrations, and a server that ends or falls silent.

mod erasure;
mod locks;
mod sessions;

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use super::callbacks;
use super::changes;
use super::connection::PostgresStore;
use super::entries;
use super::generations;
use super::jobs;
use super::schema::{STEPS, Schema, Step};
use super::session::Session;
use super::target::Target;
use crate::jobs::{Acceptance, JobId, NewJob, RememberedJob};
use crate::store::interface::Groups;
use crate::store::interface::entries::{Entries, EntryRow};
use crate::store::interface::jobs::JobEnd;
use crate::store::task::StoreTask;
use crate::store::tests::server::{PASSWORD, Postgres, Way};
use crate::store::tests::{Bed, OneJob as _, PostgresBed, accept_task, target};
use crate::store::{
    Callbacks, Fault, Jobs, Keys, NewKey, Place, Renewal, Requests, Store, StoreError, StoreWorker,
};

/// A bound for what must happen, however busy the machine is.
const PATIENCE: Duration = Duration::from_secs(60);

fn bed() -> (PostgresBed, Target) {
    let bed = PostgresBed::new();
    let target = target_of(&bed);
    (bed, target)
}

fn target_of(bed: &PostgresBed) -> Target {
    match bed.place() {
        Place::Postgres(target) => (**target).clone(),
        Place::Sqlite(_) => unreachable!("it is PostgreSQL's"),
    }
}

fn fault<T>(result: Result<T, StoreError>) -> Fault {
    match result.err().expect("it fails") {
        StoreError::Database { fault, reason, .. } => {
            assert!(!reason.contains(PASSWORD), "{reason}");
            fault
        }
        error => panic!("{error}"),
    }
}

/// A step of a later program.
fn later(sql: &'static str, min_reader: usize) -> Step {
    Step { sql, min_reader }
}

// ---- the schema ----------------------------------------------------------------------------

#[test]
fn connections_that_open_at_once_migrate_once() {
    const DAEMONS: usize = 8;
    let (bed, target) = bed();
    let barrier = Barrier::new(DAEMONS);
    let steps = [STEPS, &[later("CREATE TABLE extra AS SELECT 1 AS x", 1)]].concat();
    thread::scope(|scope| {
        for _ in 0..DAEMONS {
            scope.spawn(|| {
                barrier.wait();
                let mut store = PostgresStore::open(&target).unwrap();
                store.migrate(&steps).unwrap();
            });
        }
    });
    assert_eq!(bed.count("extra"), 1);
    let found = PostgresStore::examine(&target).unwrap();
    assert_eq!((found.version, found.known), (STEPS.len() + 1, STEPS.len()));
}

#[test]
fn a_step_runs_once_and_a_failing_one_leaves_no_trace() {
    let (bed, target) = bed();
    let mut store = PostgresStore::open(&target).unwrap();
    let steps = |sql| [STEPS, &[later(sql, 1)]].concat();
    let broken = steps("CREATE TABLE extra (x INTEGER); CREATE TABLE nonsense (");
    assert!(store.migrate(&broken).is_err());
    assert!(bed.try_raw("SELECT * FROM extra").is_err());
    let found = Schema::read(&store.session).unwrap();
    assert_eq!(found.version, STEPS.len());
    for _ in 0..2 {
        let whole = steps("CREATE TABLE extra (x INTEGER)");
        store.migrate(&whole).unwrap();
        let found = Schema::read(&store.session).unwrap();
        assert_eq!(found.version, STEPS.len() + 1);
    }
}

/// Mutations that this test catches: `migrate` that compares versions alone; `is_replaced` without
/// `is_outgrown`.
#[test]
fn a_program_works_while_its_version_is_at_least_min_reader() {
    let (_bed, target) = bed();
    let mut store = PostgresStore::open(&target).unwrap();
    let harmless = later("CREATE TABLE extra (x INTEGER)", STEPS.len());
    let mut steps = [STEPS, &[harmless]].concat();
    store.migrate(&steps).unwrap();
    let running = PostgresStore::open(&target).unwrap();

    let needed = steps.len() + 1;
    steps.push(later("DROP TABLE extra", needed));
    store.migrate(&steps).unwrap();
    assert!(running.is_replaced());
    for older in [
        PostgresStore::open(&target),
        PostgresStore::open_existing(&target),
    ] {
        let error = older.err().expect("it is refused");
        assert!(
            matches!(error, StoreError::TooNew { needed: found, known, .. }
                if (found, known) == (needed, STEPS.len())),
            "{error}"
        );
    }
    assert!(!PostgresStore::examine(&target).unwrap().is_readable());
    store.migrate(&steps).unwrap();
}

/// A mutation that this test catches: the step without its `DELETE`.
#[test]
fn a_step_forgets_keys_of_idempotency_whose_jobs_are_gone() {
    let (bed, target) = bed();
    let session = Session::open(&target).unwrap();
    let is_it = |step: &Step| step.sql.contains("idempotency_of_jobs");
    let steps_before = STEPS.iter().take_while(|step| !is_it(step));
    for (index, step) in steps_before.enumerate() {
        step.apply(&session, index + 1).unwrap();
    }
    bed.raw(
        "INSERT INTO jobs (id, key_id, state, created_at, expires_at, bytes, request)
         VALUES (decode(repeat('01', 16), 'hex'), 'key_1', 'queued', 1, 2, 512, '');
         INSERT INTO idempotency SELECT 'key_1', name, decode(repeat('00', 32), 'hex'),
             decode(repeat(job, 16), 'hex'), 9
         FROM (VALUES ('a', '01'), ('b', '02')) AS new (name, job)",
    );
    drop(PostgresStore::open_existing(&target).unwrap());
    let left = "SELECT string_agg(key, ' ') FROM idempotency";
    assert_eq!(bed.server.sql(&bed.database, left), "a");
}

/// As while `pg_restore` fills it.
#[test]
fn an_empty_database_is_not_filled_by_a_daemon_that_runs() {
    let (bed, target) = bed();
    assert_eq!(fault(PostgresStore::open_existing(&target)), Fault::Empty);
    assert_eq!(fault(PostgresStore::examine(&target)), Fault::Empty);
    assert!(bed.try_raw("SELECT * FROM keys").is_err());
}

#[test]
fn a_look_names_keys_that_nothing_opens() {
    let (bed, target) = bed();
    let mut store = PostgresStore::open(&target).unwrap();
    let (one, _) = store.create(&NewKey::default(), 1).unwrap();
    let (two, _) = store.create(&NewKey::default(), 1).unwrap();
    let found = PostgresStore::examine(&target).unwrap();
    assert_eq!((found.keys, found.secrets), (Some(2), Some(2)));
    assert!(found.problems.is_empty(), "{found:?}");
    bed.raw(&format!("DELETE FROM secrets WHERE key_id = '{}'", one.id));
    let found = PostgresStore::examine(&target).unwrap();
    assert!(found.problems[0].contains(&one.id), "{found:?}");
    // A secret that was replaced opens it for a while only.
    store.rotate(&two.id, 60, Renewal::SameLifetime, 2).unwrap();
    bed.raw(&format!(
        "DELETE FROM secrets WHERE key_id = '{}' AND valid_until IS NULL",
        two.id
    ));
    let found = PostgresStore::examine(&target).unwrap();
    assert_eq!(found.problems.len(), 2, "{found:?}");
}

/// As after `CREATE INDEX CONCURRENTLY` that was interrupted.
///
/// Mutation that this test catches: `examine` without `invalid_indexes`.
#[test]
fn a_look_names_an_index_that_the_server_does_not_use() {
    let (bed, target) = bed();
    drop(PostgresStore::open(&target).unwrap());
    bed.raw("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'jobs_of_keys'::regclass");
    let found = PostgresStore::examine(&target).unwrap();
    assert!(found.problems[0].contains("jobs_of_keys"), "{found:?}");
    assert_eq!(found.problems.len(), 1, "{found:?}");
}

// ---- the history of changes ----------------------------------------------------------------

/// The transaction that took its number first is committed last. Without the lock a reader would
/// see the later number, and never the earlier one.
///
/// Mutation that this test catches: `note_key_changes` without its lock.
#[test]
fn changes_become_visible_in_the_order_of_their_numbers() {
    let (_bed, target) = bed();
    let mut one = PostgresStore::open(&target).unwrap();
    let (slow, _) = one.create(&NewKey::default(), 1).unwrap();
    let (fast, _) = one.create(&NewKey::default(), 1).unwrap();
    let mark = one.read(None).unwrap().mark;
    let mut other = PostgresStore::open(&target).unwrap();
    let revoked = one.write(|session| {
        let sql = "UPDATE keys SET revoked_at = 2 WHERE id = $1";
        session.execute(sql, &[&slow.id])?;
        // It waits for the lock, so it is committed after this transaction.
        let thread = thread::spawn(move || other.revoke(&fast.id, 2).map(|_| other));
        let mut count = 0;
        while count == 0 && !thread.is_finished() {
            count = waiting_for_locks(session);
        }
        assert_eq!(count, 1, "the other transaction did not wait");
        Ok(thread)
    });
    let other = revoked.unwrap().join().unwrap().unwrap();
    let reading = other.read(mark).unwrap();
    let crate::store::ReadKeys::Changed(keys) = reading.keys else {
        panic!("everything was read");
    };
    assert_eq!(keys.len(), 2);
}

// ---- connections ---------------------------------------------------------------------------

#[test]
fn a_wrong_password_user_or_database_is_named_and_the_password_is_not() {
    let server = Postgres::shared();
    let bed = PostgresBed::on(server, Way::Tcp);
    let right = target_of(&bed);
    PostgresStore::open(&right).unwrap();
    assert!(!format!("{right:?}").contains(PASSWORD), "{right:?}");

    let mut wrong = right.clone();
    wrong.password_file = None;
    assert_eq!(fault(PostgresStore::open(&wrong)), Fault::Unreachable);
    let mut wrong = right.clone();
    wrong.password_file = Some(bed.folder().join("none"));
    assert_eq!(fault(PostgresStore::open(&wrong)), Fault::Denied);
    let file = right.password_file.clone().unwrap();
    std::fs::write(&file, "another password\n").unwrap();
    assert_eq!(fault(PostgresStore::open(&right)), Fault::Denied);
    // A file that is replaced is read again.
    std::fs::write(&file, PASSWORD).unwrap();
    PostgresStore::open(&right).unwrap();
    let mut wrong = right.clone();
    wrong.settings.dbname("no_such_database");
    assert_eq!(fault(PostgresStore::open(&wrong)), Fault::Denied);
}

/// Mutations that this test catches: `wait` without its timeout, `is_lost` that asks the client
/// alone.
#[test]
fn a_silent_server_ends_each_call_in_its_time_and_a_new_connection_heals() {
    let folder = tempfile::tempdir().unwrap();
    let server = Postgres::start();
    let database = server.database();
    let target = target(&server, &database, Way::Tcp, folder.path());
    let mut hasty = target.clone();
    hasty.connect_timeout = Duration::from_millis(100);
    let mut store = PostgresStore::open(&target).unwrap();
    let (record, _) = store.create(&NewKey::default(), 1).unwrap();
    assert!(!store.is_replaced());

    server.freeze();
    let soon = Duration::from_millis(100);
    let asked = store.session.patiently(soon, || store.version());
    assert_eq!(fault(asked), Fault::Unreachable);
    assert!(
        store.is_replaced(),
        "a late reply would be taken for another"
    );
    assert_eq!(fault(store.version()), Fault::Unreachable);
    assert_eq!(
        fault(PostgresStore::open_existing(&hasty)),
        Fault::Unreachable
    );
    server.thaw();
    let store = PostgresStore::open_existing(&target).unwrap();
    assert_eq!(store.list().unwrap()[0].record, record);

    server.kill();
    assert_eq!(fault(store.version()), Fault::Unreachable);
    assert!(store.is_replaced());
    assert_eq!(
        fault(PostgresStore::open_existing(&target)),
        Fault::Unreachable
    );
    server.restart();
    let store = PostgresStore::open_existing(&target).unwrap();
    assert_eq!(store.list().unwrap()[0].record, record);
}

/// The server's own bound: the connection stays.
#[test]
fn a_statement_that_waits_for_a_lock_is_cancelled_and_the_connection_stays() {
    let (_bed, mut target) = bed();
    target.statement_timeout = Duration::from_millis(200);
    let mut one = PostgresStore::open(&target).unwrap();
    let (record, _) = one.create(&NewKey::default(), 1).unwrap();
    let mut other = PostgresStore::open(&target).unwrap();
    let refused = one.write(|session| {
        session.execute("SELECT 1 FROM keys WHERE id = $1 FOR UPDATE", &[&record.id])?;
        Ok(fault(other.revoke(&record.id, 2)))
    });
    assert_eq!(refused.unwrap(), Fault::Busy);
    assert!(!other.is_replaced());
    other.revoke(&record.id, 2).unwrap();
}

// ---- jobs ----------------------------------------------------------------------------------

/// Adds jobs that have ended.
fn insert_cancelled(store: &mut PostgresStore, jobs: &[NewJob]) {
    for job in jobs {
        store.insert_job(job).unwrap();
        let mut life = store.job_life(job.id).unwrap().unwrap();
        life.cancel().unwrap();
        let end = JobEnd {
            finished_at: 1,
            expires_at: 9,
            ending: None,
        };
        store.finish_job(job.id, &life, end).unwrap();
    }
}

fn new_job(number: u8, key_id: &str) -> NewJob {
    NewJob {
        id: JobId::new(number.into(), [number; 10]),
        key_id: key_id.to_owned(),
        created_at: 1,
        expires_at: 5_000,
        request: "{}".to_owned(),
        callback_url: None,
        idempotency: None,
    }
}

/// Mutations that this test catches: `LOCK_WAITING` without `SKIP LOCKED`, or without the share of
/// each key; `next_waiting_jobs` without a second round.
#[test]
fn a_job_that_another_daemon_takes_is_passed_over_without_waiting() {
    let (_bed, target) = bed();
    let mut one = PostgresStore::open(&target).unwrap();
    let mut other = PostgresStore::open(&target).unwrap();
    let jobs = [(1, "key_a"), (2, "key_b"), (3, "key_a")];
    let jobs = jobs.map(|(number, key)| new_job(number, key));
    for job in &jobs {
        one.insert_job(job).unwrap();
    }
    one.begin().unwrap();
    assert_eq!(one.next_waiting_jobs(1, 1).unwrap(), [jobs[0].id]);
    // Also the other job of the same key is free.
    let free = [jobs[2].id, jobs[1].id];
    assert_eq!(other.next_waiting_jobs(1, 2).unwrap(), free);
    one.commit().unwrap();
}

/// There are more waiting keys than are looked at.
///
/// Mutation that this test catches: `NEXT_KEYS` without `running` in its order.
#[test]
fn the_key_with_the_fewest_running_jobs_is_among_those_that_are_looked_at() {
    let (_bed, target) = bed();
    let mut store = PostgresStore::open(&target).unwrap();
    let most = crate::limits::jobs::WAITING_KEYS_MAX as usize;
    let jobs: Vec<NewJob> = (0..=most as u8)
        .flat_map(|key| [2 * key, 2 * key + 1].map(|job| new_job(job, &format!("key_{key:02}"))))
        .collect();
    store.insert_jobs(&jobs.iter().collect::<Vec<_>>()).unwrap();
    let mut last = jobs[0].id;
    for room in [most, 1] {
        for id in store.next_waiting_jobs(1, room).unwrap() {
            let mut life = store.job_life(id).unwrap().unwrap();
            life.claim(100).unwrap();
            store.save_job_life(id, &life, 1).unwrap();
            last = id;
        }
    }
    // Each key has a running job, and this one had the last turn.
    assert_eq!(last, jobs[2 * most].id);
    let mut life = store.job_life(last).unwrap().unwrap();
    life.release(1).unwrap();
    store.save_job_life(last, &life, 1).unwrap();
    assert_eq!(store.next_waiting_jobs(1, 1).unwrap(), [last]);
}

/// Mutation that this test catches: `LOCK_WAITING` without `FOR UPDATE`.
#[test]
fn daemons_that_take_jobs_at_once_run_each_once() {
    const DAEMONS: usize = 4;
    const JOBS: u8 = 40;
    let (_bed, target) = bed();
    let mut store = PostgresStore::open(&target).unwrap();
    for number in 0..JOBS {
        let key = format!("key_{}", number % 3);
        store.insert_job(&new_job(number, &key)).unwrap();
    }
    let run = || {
        let mut store = PostgresStore::open(&target).unwrap();
        let mut taken = Vec::new();
        // A daemon that finds all waiting jobs locked by others asks again.
        while store.job_totals(None).unwrap().queued > 0 {
            store.begin().unwrap();
            for job in store.next_waiting_jobs(1, 2).unwrap() {
                let mut life = store.job_life(job).unwrap().unwrap();
                life.claim(100).unwrap();
                store.save_job_life(job, &life, 1).unwrap();
                taken.push(job);
            }
            store.commit().unwrap();
        }
        taken
    };
    let mut taken: Vec<JobId> = thread::scope(|scope| {
        let threads: Vec<_> = (0..DAEMONS).map(|_| scope.spawn(run)).collect();
        let taken = threads.into_iter().map(|thread| thread.join().unwrap());
        taken.flatten().collect()
    });
    taken.sort();
    let all: Vec<JobId> = (0..JOBS).map(|number| new_job(number, "").id).collect();
    assert_eq!(taken, all);
}

/// Locks two jobs, and names none of them. On its first run it waits in the middle for another
/// task, and on its second one at the beginning for that one's end.
///
/// Without that wait both would sometimes meet again, up to the last attempt: the server releases
/// what the loser has locked and wakes the other transaction, but the loser may be faster to lock
/// the same job again.
struct LockTwo {
    jobs: [JobId; 2],
    middle: Option<Arc<Barrier>>,
    own_end: Sender<()>,
    other_end: Receiver<()>,
    results: Sender<Result<(), String>>,
}

impl StoreTask for LockTwo {
    fn run(&mut self, store: &mut dyn Store) -> Result<(), StoreError> {
        let Some(middle) = self.middle.take() else {
            let end = self.other_end.recv_timeout(PATIENCE);
            end.expect("the other task ends");
            return store.lock_jobs(&self.jobs);
        };
        store.job_life(self.jobs[0])?;
        middle.wait();
        store.job_life(self.jobs[1]).map(drop)
    }

    fn finish(self: Box<Self>, result: Result<(), &StoreError>) {
        let result = result.map_err(ToString::to_string);
        self.results.send(result).unwrap();
        // The other task may have ended before.
        let _ = self.own_end.send(());
    }
}

/// Starts the thread of a daemon's requests. A busy machine does not cut its groups in two.
fn worker(target: &Target, requests: &Arc<Requests>) -> StoreWorker {
    let target = target.clone();
    let open = move || PostgresStore::open_existing(&target).map(|store| Box::new(store) as _);
    StoreWorker::start_with(Arc::clone(requests), open, Duration::MAX).unwrap()
}

/// Returns how often the server has ended a transaction so that another one could go on. A
/// connection has reported its own at the latest when it has ended.
fn deadlocks(bed: &PostgresBed) -> u64 {
    let others = "SELECT count(*) FROM pg_stat_activity
                  WHERE datname = current_database() AND pid <> pg_backend_pid()";
    while bed.number(others) > 0 {
        thread::yield_now();
    }
    bed.number("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
}

/// Two daemons lock two jobs in different orders, each at the same moment.
///
/// Mutations that this test catches: `is_conflict` that is always false, `run` without `give_back`,
/// a task whose conflict ends it alone.
#[test]
fn transactions_that_wait_for_each_other_are_both_committed() {
    let (bed, target) = bed();
    let jobs = [new_job(1, "key_a"), new_job(2, "key_a")];
    let mut store = PostgresStore::open(&target).unwrap();
    store.insert_jobs(&[&jobs[0], &jobs[1]]).unwrap();
    drop(store);
    let (sender, results) = channel();
    let middle = Arc::new(Barrier::new(2));
    let ((one, end_of_one), (two, end_of_two)) = (channel(), channel());
    let orders = [([0, 1], one, end_of_two), ([1, 0], two, end_of_one)];
    let workers = orders.map(|(order, own_end, other_end)| {
        let task = LockTwo {
            jobs: order.map(|index| jobs[index].id),
            middle: Some(Arc::clone(&middle)),
            own_end,
            other_end,
            results: sender.clone(),
        };
        let requests = Arc::new(Requests::default());
        requests.submit(1, Box::new(task)).unwrap();
        worker(&target, &requests)
    });
    for _ in 0..2 {
        let result = results.recv_timeout(PATIENCE).unwrap();
        assert_eq!(result, Ok(()));
    }
    drop(workers);
    assert_eq!(deadlocks(&bed), 1);
}

/// Two daemons with two threads each accept jobs of the same keys, in opposite orders.
///
/// Mutations that this test catches: a trigger of `jobs` that changes `job_totals` at once;
/// `job_changes` without its index.
#[test]
fn daemons_that_accept_jobs_of_the_same_keys_never_wait_in_a_circle() {
    const JOBS: u64 = 600;
    let (bed, target) = bed();
    drop(PostgresStore::open(&target).unwrap());
    let (sender, results) = channel();
    let mut workers = Vec::new();
    for daemon in 0..2 {
        let requests = Arc::new(Requests::default());
        for number in 0..JOBS {
            let key = match daemon {
                0 => number % 7,
                _ => 6 - number % 7,
            };
            let key = format!("key_{key}");
            let task = accept_task(daemon * JOBS + number, &key, &sender);
            requests.submit(1, Box::new(task)).unwrap();
        }
        workers.push([(); 2].map(|()| worker(&target, &requests)));
    }
    for _ in 0..2 * JOBS {
        let (_, result) = results.recv_timeout(PATIENCE).unwrap();
        assert!(matches!(result, Ok(Acceptance::New(_))), "{result:?}");
    }
    drop(workers);
    assert_eq!(deadlocks(&bed), 0);
    // Its removed rows stay for a while, so it must be read by its index.
    let read = "SELECT seq_tup_read FROM pg_stat_user_tables WHERE relname = 'job_changes'";
    assert_eq!(bed.number(read), 0);
    assert_eq!(bed.count("job_changes"), 0);
    assert_eq!(bed.count("jobs"), 2 * JOBS as u32);
    assert_eq!(
        bed.number("SELECT sum(queued)::int FROM job_totals"),
        2 * JOBS
    );
}

/// Two commits that change the same rows in different orders may wait for each other. A plan that
/// hashes the keys has one order for equal sets of them alone, so a circle is rare without the
/// order of the keys. But new rows lie in the order in which they were written.
///
/// Mutation that this test catches: `count_job_changes` without its order.
#[test]
fn a_commit_counts_keys_in_their_order() {
    let (bed, target) = bed();
    let mut store = PostgresStore::open(&target).unwrap();
    // Without the order, a plan that sorts would do as well by chance.
    bed.raw("ALTER FUNCTION count_job_changes() SET enable_sort = off");
    let jobs: Vec<_> = (0..20)
        .map(|number| new_job(number, &format!("key_{}", number * 7 % 20)))
        .collect();
    store.begin().unwrap();
    store.insert_jobs(&jobs.iter().collect::<Vec<_>>()).unwrap();
    store.commit().unwrap();
    let keys = |order: &str| {
        let sql = format!("SELECT string_agg(key_id, ' ' ORDER BY {order}) FROM job_totals");
        bed.server.sql(&bed.database, &sql)
    };
    assert_eq!(keys("ctid"), keys("key_id"));
}

/// Mutations that this test catches: `insert_jobs` with a statement for each job, a group that runs
/// its jobs one by one, a savepoint that is sent alone.
#[test]
fn a_group_of_jobs_costs_as_many_statements_as_one_job() {
    let bed = PostgresBed::counting();
    let target = target_of(&bed);
    let statements_of = |numbers: std::ops::Range<u64>| {
        let (sender, results) = channel();
        let requests = Arc::new(Requests::default());
        let jobs = numbers.end - numbers.start;
        for number in numbers {
            let task = accept_task(number, &format!("key_{}", number % 5), &sender);
            requests.submit(1, Box::new(task)).unwrap();
        }
        let statements = bed.statements(|| drop(worker(&target, &requests)));
        assert_eq!(
            results.try_iter().filter(|(_, end)| end.is_ok()).count() as u64,
            jobs
        );
        statements
    };
    let of_one = statements_of(0..1);
    assert_eq!(statements_of(1..201), of_one);
    let calls = of_one.iter().filter(|line| line.starts_with("1|"));
    // Beside the savepoint and the commit: totals, jobs, and what the commit counts.
    assert_eq!(calls.count(), 6, "{of_one:#?}");
}

#[test]
fn a_callback_that_another_daemon_takes_is_passed_over_without_waiting() {
    let (_bed, target) = bed();
    let mut one = PostgresStore::open(&target).unwrap();
    let mut other = PostgresStore::open(&target).unwrap();
    let jobs = [1, 2].map(|number| NewJob {
        callback_url: Some("https://example.com/".to_owned()),
        ..new_job(number, "key_a")
    });
    insert_cancelled(&mut one, &jobs);
    one.begin().unwrap();
    assert_eq!(one.due_callbacks("key_a", 1, 1).unwrap(), [jobs[0].id]);
    assert_eq!(other.due_callbacks("key_a", 1, 9).unwrap(), [jobs[1].id]);
    one.commit().unwrap();
}

#[test]
fn a_retry_on_another_daemon_waits_and_finds_the_job() {
    let (_bed, target) = bed();
    let mut one = PostgresStore::open(&target).unwrap();
    let mut other = PostgresStore::open(&target).unwrap();
    let remembered = RememberedJob {
        id: new_job(1, "").id,
        digest: [7; 32],
        expires_at: 100,
    };
    one.begin().unwrap();
    let key = ("key_a", "retry");
    assert_eq!(one.remembered_jobs(&[key]).unwrap(), [None]);
    let thread = thread::spawn(move || other.remembered_jobs(&[key]));
    while waiting_for_locks(&one.session) == 0 && !thread.is_finished() {}
    one.remember_jobs(&[(key, remembered)]).unwrap();
    one.commit().unwrap();
    assert_eq!(thread.join().unwrap().unwrap(), [Some(remembered)]);
}

/// The plans of PostgreSQL depend on the tables' contents, so there are some.
///
/// Mutations that this test catches: each index of `jobs`, `callbacks` and `idempotency` that is
/// left out.
#[test]
fn no_statement_reads_all_jobs() {
    let (bed, target) = bed();
    let store = PostgresStore::open(&target).unwrap();
    bed.raw(
        "ALTER TABLE jobs DISABLE TRIGGER USER;
         INSERT INTO jobs (id, key_id, state, created_at, expires_at, bytes, request)
         SELECT decode(lpad(to_hex(n), 32, '0'), 'hex'), 'key_' || n % 50,
                (ARRAY['queued', 'running', 'completed', 'failed'])[n % 4 + 1], n, n, 1, '{}'
         FROM generate_series(1, 100000) AS n;
         INSERT INTO callbacks (job, key_id, next_at) SELECT id, key_id, expires_at FROM jobs;
         INSERT INTO job_totals (key_id, queued) SELECT 'key_' || n, 500
         FROM generate_series(0, 49) AS n;
         INSERT INTO idempotency
         SELECT 'key_' || n % 50, n::text, decode(repeat('00', 32), 'hex'),
                decode(lpad(to_hex(n), 32, '0'), 'hex'), n
         FROM generate_series(1, 100000) AS n;
         ANALYZE",
    );
    let id = "decode(lpad('7', 32, '0'), 'hex')";
    let ids = "ARRAY[decode(lpad('7', 32, '0'), 'hex')]";
    let (one, none, word) = ("ARRAY[1]", "ARRAY[NULL]", "ARRAY['running']");
    let save = vec![
        ids, word, one, one, one, one, one, none, none, none, "5", ids, one, one, word, word,
    ];
    for (sql, values) in [
        (jobs::SELECT_JOBS, vec![ids]),
        (jobs::LOCK_LIVES, vec![ids]),
        (jobs::LAST_EVENTS, vec![ids]),
        (changes::SAVE, save),
        (jobs::POSTPONE, vec![ids, "ARRAY[9]"]),
        (
            jobs::LOCK_WAITING,
            vec!["ARRAY['key_7']", "ARRAY[5]", "ARRAY[]::bytea[]"],
        ),
        (jobs::TOTALS, vec!["ARRAY['key_7']"]),
        (jobs::REMEMBERED, vec!["ARRAY['key_7']", "ARRAY['7']"]),
        (jobs::PAGE, vec!["'key_7'", id, "20"]),
        (jobs::PAGE_OF_STATE, vec!["'key_7'", id, "20", "'failed'"]),
        (jobs::LOST, vec!["900", "20"]),
        (jobs::OVERDUE, vec!["900", "20"]),
        (jobs::DELETE_OLD, vec!["'failed'", "900", "20"]),
        (jobs::FORGET_OLD, vec!["900", "20"]),
        (callbacks::NEXT_KEY, vec!["'key_7'"]),
        (callbacks::DUE, vec!["'key_7'", "900", "20"]),
    ] {
        let plan = plan(&store, sql, &values);
        let scans = plan.iter().filter(|line| line.contains("Seq Scan on"));
        // The totals are few.
        let mut scans = scans.filter(|line| !line.contains("job_totals"));
        assert_eq!(scans.next(), None, "{sql}: {plan:#?}");
    }
}

/// Returns the lines of a plan. The values are those that the statement would have.
fn plan(store: &PostgresStore, sql: &str, values: &[&str]) -> Vec<String> {
    let mut sql = format!("EXPLAIN {sql}");
    // The highest first: `$1` is a part of `$10`.
    for (index, value) in values.iter().enumerate().rev() {
        sql = sql.replace(&format!("${}", index + 1), value);
    }
    let lines = store.session.query(&sql, &[], |row| Ok(row.try_get(0)?));
    lines.unwrap()
}

/// Returns how many connections to the same database wait for an advisory lock.
fn waiting_for_locks(session: &Session) -> i64 {
    let sql = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
               AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    session.value(sql, &[]).unwrap()
}

/// Mutations that this test catches: each index of `generations` that is left out.
#[test]
fn no_statement_reads_all_records() {
    let (bed, target) = bed();
    let store = PostgresStore::open(&target).unwrap();
    bed.raw(
        "INSERT INTO generations (id, key_id, created_at, status, cached, request_id, \
         prompt_tokens, cached_tokens, completion_tokens, queue_ms, prefill_ms, decode_ms, \
         latency_ms, digest)
         SELECT 'gen_' || lpad(to_hex(n), 32, '0'), 'key_' || n % 50, n,
                (ARRAY['done', 'failed', 'abandoned'])[n % 3 + 1], 'miss', 'r', 0, 0, 0, 0, 0, 0,
                0, ''
         FROM generate_series(1, 100000) AS n;
         ANALYZE",
    );
    let (key, most, id) = ("'key_7'", "50000", "'gen_0'");
    for (sql, values) in [
        (generations::PAGE, vec![key, "7", most, id, "20", "1000"]),
        (
            generations::PAGE_OF_STATUS,
            vec![key, "7", most, id, "20", "1000", "'failed'"],
        ),
        (generations::TRIM, vec!["100", "7", "1000000"]),
        (generations::ERASE, vec![key, "100"]),
    ] {
        let plan = plan(&store, sql, &values);
        assert!(
            !plan.iter().any(|line| line.contains("Seq Scan on")),
            "{sql}: {plan:#?}"
        );
    }
}

fn entry(number: u8) -> EntryRow {
    EntryRow {
        digest: [number; 32],
        tenant: 1,
        created_at: 1,
        expires_at: 100,
        value: vec![number],
    }
}

/// Mutations that this test catches: a put or a use without its advisory lock; one lock for all.
#[test]
fn entries_of_two_transactions_never_wait_for_each_other() {
    let (_bed, target) = bed();
    let mut one = PostgresStore::open(&target).unwrap();
    let mut other = PostgresStore::open(&target).unwrap();
    one.put_entry(&entry(3), 1).unwrap();
    one.begin().unwrap();
    other.begin().unwrap();
    one.put_entry(&entry(1), 1).unwrap();
    other.put_entry(&entry(2), 1).unwrap();
    let own = other.find_entry(&[2; 32], 2).unwrap();
    assert!(own.is_some(), "the lock of one is not that of the other");
    assert!(one.find_entry(&[3; 32], 2).unwrap().is_some());
    // With locks of rows, each of these would wait for the other's transaction.
    one.put_entry(&entry(2), 1).unwrap();
    other.put_entry(&entry(1), 1).unwrap();
    assert!(other.find_entry(&[3; 32], 2).unwrap().is_some());
    one.commit().unwrap();
    other.commit().unwrap();
    for number in 1..=2 {
        assert!(one.find_entry(&[number; 32], 1).unwrap().is_some());
    }
}

/// Mutations that this test catches: each index of `cache_entries` that is left out.
#[test]
fn no_statement_reads_all_entries() {
    let (bed, target) = bed();
    let store = PostgresStore::open(&target).unwrap();
    bed.raw(
        "INSERT INTO cache_entries
         SELECT decode(lpad(to_hex(n), 64, '0'), 'hex'), n % 50, n, n, n, n % 7, 300, 'value'
         FROM generate_series(1, 100000) AS n;
         ANALYZE",
    );
    let digest = "decode(lpad('7', 64, '0'), 'hex')";
    for (sql, values) in [
        (entries::FIND, vec![digest, "7"]),
        (entries::MOST_USED, vec!["3", digest, "7", "20"]),
        (entries::DELETE_OLD, vec!["900", "20"]),
        (entries::ERASE, vec!["7", "20"]),
    ] {
        let plan = plan(&store, sql, &values);
        assert!(
            !plan.iter().any(|line| line.contains("Seq Scan on")),
            "{sql}: {plan:#?}"
        );
    }
}
