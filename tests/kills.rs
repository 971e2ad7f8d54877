//! SIGKILL at random moments, again and again, while clients submit jobs and fill the cache.
//!
//! `AUTOGLMD_KILLS` sets the number of rounds: 3 by default, 100 for a thorough run.
//!
//! Mutations, each caught by the tests named:
//! * `Accept` that replies from `run`, before the commit: both
//! * a claim without a lease that runs out: both
//! * `write` without its check of the attempt:
//!   `two_daemons_on_postgresql_lose_no_job_while_one_is_killed`
//! * entries that are written in another order than they came:
//!   `one_daemon_loses_no_job_and_only_the_last_results`

mod common;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use autoglmd::store::DATABASE_FILE;
use rusqlite::Connection as Database;
use serde_json::{Value, json};
use tempfile::TempDir;

use common::postgres::{Postgres, Way};
use common::process::Process;
use common::{Answer, Connection, Daemon, Options, eventually, kills};

/// Jobs of one client in one round: the daemon completes fewer in the same time than it accepts.
const JOBS: usize = 20;

/// The end of a round: SIGKILL after this many responses.
struct Fuse {
    left: AtomicI64,
    victim: Process,
    is_over: AtomicBool,
}

impl Fuse {
    fn new(daemon: &Daemon, responses_max: u64) -> Fuse {
        let left = getrandom::u64().expect("random numbers") % responses_max;
        Fuse {
            left: AtomicI64::new(left as i64),
            victim: daemon.process(),
            is_over: AtomicBool::new(false),
        }
    }

    fn note_response(&self) {
        if self.left.fetch_sub(1, Ordering::Relaxed) <= 0 {
            let was_over = self.is_over.swap(true, Ordering::Relaxed);
            if !was_over {
                self.victim.signal(libc::SIGKILL);
            }
        }
    }

    /// Kills the daemon now, if it still runs.
    fn burn(&self) {
        self.left.store(0, Ordering::Relaxed);
        self.note_response();
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }
}

/// Sends a request. `None`: the daemon was killed before its response was complete.
fn try_exchange(connection: &mut Connection, bytes: &[u8]) -> Option<Answer> {
    connection.try_send(bytes).ok()?;
    connection.try_answer().ok()
}

/// Submits jobs until the round is over, and returns the ids of those that were accepted. The
/// connection is older than the round's first response, which may bring the kill.
fn submit(mut connection: Connection, daemon: &Daemon, fuse: &Fuse) -> Vec<String> {
    let body = json!({"prompt": "a job", "cache": "bypass"}).to_string();
    let bytes = daemon.request("POST", "/api/v1/jobs", body.as_bytes());
    let mut ids = Vec::new();
    for _ in 0..JOBS {
        let Some(answer) = try_exchange(&mut connection, &bytes) else {
            break;
        };
        // A store that is busy with the end of the other daemon.
        if answer.status() == 503 {
            answer.expect_error(503, "store_unavailable");
            continue;
        }
        let id = answer.expect(202).json()["id"].clone();
        ids.push(id.as_str().expect("an id").to_owned());
        fuse.note_response();
        if fuse.is_over() {
            break;
        }
    }
    ids
}

fn await_completed(daemon: &Daemon, ids: &[String]) {
    let mut connection = daemon.connect();
    for id in ids {
        let request = daemon.request("GET", &format!("/api/v1/jobs/{id}"), b"");
        eventually("the job is completed", || {
            let job = connection.exchange(&request).expect(200).json();
            (job["status"] == "completed").then_some(())
        });
    }
}

// ---- one daemon, SQLite ----

fn ask(connection: &mut Connection, daemon: &Daemon, prompt: &str) -> Option<Answer> {
    let bytes = daemon.generate_request(&json!({ "prompt": prompt }));
    try_exchange(connection, &bytes).map(|answer| answer.expect(200))
}

/// A prompt, and the id of its result.
type Made = (String, Value);

/// Computes some results. Ends early when the round is over.
fn fill(
    connection: &mut Connection,
    daemon: &Daemon,
    name: &str,
    count: usize,
    fuse: Option<&Fuse>,
) -> Vec<Made> {
    let mut made = Vec::new();
    for number in 0..count {
        let prompt = format!("{name}, number {number}");
        let Some(answer) = ask(connection, daemon, &prompt) else {
            break;
        };
        made.push((prompt, answer.json()["id"].clone()));
        if let Some(fuse) = fuse {
            fuse.note_response();
        }
        if fuse.is_some_and(Fuse::is_over) {
            break;
        }
    }
    made
}

/// Returns how many results are still there: the oldest ones, without a gap.
fn kept(daemon: &Daemon, made: &[Made]) -> usize {
    let mut connection = daemon.connect();
    let mut is_kept = Vec::new();
    for (prompt, id) in made {
        let answer = ask(&mut connection, daemon, prompt).expect("the daemon runs");
        let is_hit = answer.field("x-cache") == Some("hit");
        assert_eq!(is_hit, answer.json()["id"] == *id, "{answer}");
        is_kept.push(is_hit);
    }
    assert!(
        is_kept.is_sorted_by(|one, next| one >= next),
        "a gap: {is_kept:?}"
    );
    is_kept.iter().filter(|is_kept| **is_kept).count()
}

fn wait_for_writes(daemon: &Daemon) {
    eventually("all results are written", || {
        let metrics = daemon.metrics();
        let stored = [("outcome", "stored")];
        let written = metrics.sum("autoglmd_cache_store_writes_total", &stored);
        let waiting = metrics.value("autoglmd_store_entries_waiting");
        (written > 0.0 && waiting == 0.0).then_some(())
    });
}

fn check_sqlite(path: &Path, jobs: usize) {
    let database = Database::open(path).expect("the database");
    let text = |sql: &str| -> String {
        let found = database.query_row(sql, (), |row| row.get(0));
        found.expect(sql)
    };
    assert_eq!(text("PRAGMA integrity_check"), "ok");
    let completed = "SELECT CAST(count(*) AS TEXT) FROM jobs WHERE state = 'completed'";
    let completed: usize = text(completed).parse().expect("a number");
    assert!(completed >= jobs, "{completed} of {jobs} jobs");
    let twice = "SELECT CAST(count(*) AS TEXT) FROM (SELECT job FROM job_events
        WHERE kind = 'done' GROUP BY job HAVING count(*) > 1)";
    assert_eq!(text(twice), "0");
}

#[test]
fn one_daemon_loses_no_job_and_only_the_last_results() {
    let folder = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let folder = Arc::new(folder);
    let start = || {
        let options = Options::echo().with_cache().in_folder(Arc::clone(&folder));
        options
            .set("jobs.lease", "1s")
            .set_raw("cache.persist", "true")
            .set("cache.policy", "write-behind")
            // Only a store that stands still takes longer, however busy the machine is.
            .set("cache.store_timeout", "20s")
            .start()
    };
    let (mut jobs, mut written, mut lost) = (Vec::new(), 0, 0);
    let mut daemon = start();
    for round in 0..kills() {
        let first = fill(
            &mut daemon.connect(),
            &daemon,
            &format!("round {round}"),
            4,
            None,
        );
        wait_for_writes(&daemon);
        let before = jobs.len();
        let fuse = Fuse::new(&daemon, 300);
        let later = std::thread::scope(|scope| {
            let (daemon, fuse) = (&daemon, &fuse);
            let mut own = daemon.connect();
            let clients = [(); 2].map(|()| daemon.connect());
            let clients =
                clients.map(|connection| scope.spawn(move || submit(connection, daemon, fuse)));
            let later = fill(
                &mut own,
                daemon,
                &format!("end of {round}"),
                usize::MAX,
                Some(fuse),
            );
            for client in clients {
                jobs.extend(client.join().expect("a client"));
            }
            later
        });
        daemon.wait();
        drop(daemon);
        daemon = start();
        assert_eq!(kept(&daemon, &first), first.len(), "round {round}");
        let kept = kept(&daemon, &later);
        written += kept;
        lost += later.len() - kept;
        // A job that is lost three times is given up.
        await_completed(&daemon, &jobs[before..]);
    }
    daemon.kill();
    check_sqlite(&daemon.state_folder().join(DATABASE_FILE), jobs.len());
    println!(
        "{} rounds: {} jobs; {written} results written, {lost} lost",
        kills(),
        jobs.len()
    );
}

// ---- two daemons, PostgreSQL ----

#[test]
fn two_daemons_on_postgresql_lose_no_job_while_one_is_killed() {
    let postgres = Postgres::shared();
    let database = postgres.database();
    let start = |folder: &Arc<TempDir>| {
        Options::echo()
            .in_folder(Arc::clone(folder))
            .set("store.url", &postgres.url(&database, Way::Socket))
            .set("jobs.lease", "1s")
            .start()
    };
    let folders = [(); 2].map(|()| {
        let folder = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
        Arc::new(folder)
    });
    let first = start(&folders[0]);
    // The first start of all makes the key; the other daemon finds it in the database.
    std::fs::create_dir(folders[1].path().join("state")).expect("a folder");
    let key = "state/bootstrap-key";
    std::fs::copy(folders[0].path().join(key), folders[1].path().join(key)).expect("a file");
    let mut daemons = vec![first, start(&folders[1])];
    let mut jobs = Vec::new();
    for round in 0..kills() {
        let victim = round % 2;
        let fuse = Fuse::new(&daemons[victim], 2 * JOBS as u64);
        std::thread::scope(|scope| {
            let fuse = &fuse;
            let clients = daemons.iter().chain(&daemons);
            let clients: Vec<_> = clients.map(|one| (one.connect(), one)).collect();
            let clients = clients.into_iter();
            let clients = clients
                .map(|(connection, daemon)| scope.spawn(move || submit(connection, daemon, fuse)));
            let clients: Vec<_> = clients.collect();
            for client in clients {
                jobs.extend(client.join().expect("a client"));
            }
        });
        fuse.burn();
        daemons[victim].wait();
        daemons[victim] = start(&folders[victim]);
        // A key has a bound on unfinished jobs, and a job that is lost three times is given up.
        eventually("all jobs have ended", || {
            let left = "SELECT count(*) FROM jobs WHERE state IN ('queued', 'running')";
            (postgres.sql(&database, left) == "0").then_some(())
        });
    }
    await_completed(&daemons[0], &jobs);
    // Whatever was cut off: the totals are those that a count finds.
    let totals = "SELECT sum(queued), sum(running), sum(jobs), sum(bytes) FROM job_totals";
    let counted = "SELECT count(*) FILTER (WHERE state = 'queued'),
                   count(*) FILTER (WHERE state = 'running'), count(*), sum(bytes) FROM jobs";
    assert_eq!(
        postgres.sql(&database, totals),
        postgres.sql(&database, counted)
    );
    let twice = "SELECT count(*) FROM (SELECT job FROM job_events WHERE kind = 'done'
                 GROUP BY job HAVING count(*) > 1) AS jobs";
    assert_eq!(postgres.sql(&database, twice), "0");
    let again = "SELECT count(*) FROM jobs WHERE attempt > 1";
    let again = postgres.sql(&database, again);
    println!(
        "{} rounds: {} jobs, {again} of them ran again",
        kills(),
        jobs.len()
    );
}
