//! The state folder over the real binary: its budget, and a disk that is full or read-only.
//!
//! Mutations that these tests catch: a worker that trims only when its queue is empty, a bound on
//! jobs without the folder's, `trim_entries` with the old quarter (`a_flood_of_everything_...`); a
//! start that leaves the prefixes of an earlier daemon (`prefixes_and_records_...`); `make_room` of SQLite that
//! does not look at the log (`a_long_reader_...`); a lost group that is not given back
//! (`a_lock_of_some_seconds_...`); `note_success` that leaves the problem, a store that is opened
//! once (`a_folder_that_becomes_read_only_...`).

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use autoglmd::store::DATABASE_FILE;
use rusqlite::Connection;
use serde_json::{Value, json};

use common::{Answer, Daemon, Options, eventually, request};

/// Returns the bytes of all files below a folder.
fn bytes_below(folder: &Path) -> u64 {
    let Ok(items) = fs::read_dir(folder) else {
        return 0;
    };
    let bytes = items.flatten().map(|item| match item.metadata() {
        Ok(metadata) if metadata.is_dir() => bytes_below(&item.path()),
        Ok(metadata) => metadata.len(),
        // It went meanwhile.
        Err(_) => 0,
    });
    bytes.sum()
}

fn number(daemon: &Daemon, sql: &str) -> u64 {
    let path = daemon.state_folder().join(DATABASE_FILE);
    let other = Connection::open(path).expect("the database");
    let number: i64 = other.query_row(sql, (), |row| row.get(0)).expect(sql);
    number as u64
}

fn ask(daemon: &Daemon, number: u64, bytes: usize) -> Answer {
    let prompt = format!("program {number} {}", "x".repeat(bytes));
    daemon.generate(&json!({ "prompt": prompt }))
}

/// The text of `/readyz` about the store. The daemon is ready in any case.
fn problem(daemon: &Daemon) -> Option<String> {
    let ready = daemon.get("/readyz").expect(200).json();
    assert_eq!(ready["state"], "ready");
    ready["store"].as_str().map(str::to_owned)
}

fn wait_for_problem(daemon: &Daemon, text: &str) {
    let (problem, _) = eventually("the problem is reported", || problem(daemon));
    assert!(problem.contains(text), "{problem}");
}

fn wait_for_health(daemon: &Daemon) {
    wait_for_store(daemon);
    assert_eq!(daemon.metrics().value("autoglmd_store_dropped_total"), 0.0);
}

fn wait_for_store(daemon: &Daemon) {
    eventually("the store works again", || {
        problem(daemon).is_none().then_some(())
    });
    eventually("all records are stored", || {
        let waiting = daemon.metrics().value("autoglmd_store_records_waiting");
        (waiting == 0.0).then_some(())
    });
}

const BUDGET_BYTES: u64 = 16 << 20;

/// A key whose jobs wait: it has no tokens.
fn waiting_key(daemon: &Daemon, name: &str) -> String {
    let arguments = ["key", "create", "--name", name, "--tokens-per-minute", "1"];
    let made = daemon.run(&arguments);
    let secret = String::from_utf8(made.stdout).expect("a key");
    let secret = secret.trim().to_owned();
    eventually("the key works", || {
        let credentials = format!("Bearer {secret}");
        let head = [("authorization", credentials.as_str())];
        let answer = daemon.exchange(&request("GET", "/api/v1/jobs", &head, b""));
        (answer.status() == 200).then_some(())
    });
    secret
}

fn submit(daemon: &Daemon, secret: &str, bytes: usize) -> Answer {
    let credentials = format!("Bearer {secret}");
    let head = [
        ("authorization", credentials.as_str()),
        ("content-type", "application/json"),
    ];
    let body = json!({ "prompt": "x".repeat(bytes) }).to_string();
    daemon.exchange(&request("POST", "/api/v1/jobs", &head, body.as_bytes()))
}

/// Records with their texts, results in the cache, and jobs of five keys, each of them more than
/// the folder may hold.
#[test]
fn a_flood_of_everything_stays_within_the_budget() {
    let daemon = Options::echo()
        .with_cache()
        .set("store.max_size", "16MiB")
        .set_raw("store.content", "true")
        .set_raw("cache.persist", "true")
        .set("cache.policy", "write-behind")
        .set_raw("rate_limit.enabled", "true")
        .set_raw("rate_limit.requests_per_minute", "100000000")
        .set_raw("rate_limit.burst", "100000000")
        .set_raw("rate_limit.tokens_per_minute", "0")
        .set_raw("rate_limit.concurrency", "0")
        .start();
    let keys: Vec<_> = (0..5)
        .map(|at| waiting_key(&daemon, &format!("k{at}")))
        .collect();
    let is_over = AtomicBool::new(false);
    let (asked, refused) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let _end = EndOf(&is_over);
        for _ in 0..2 {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    let number = asked.fetch_add(1, Ordering::Relaxed);
                    ask(&daemon, number, 32 << 10).expect(200);
                }
            });
        }
        for key in &keys {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    let answer = submit(&daemon, key, 100 << 10);
                    match answer.status() {
                        202 => {}
                        // The key's part, and that of all jobs.
                        429 | 503 => {
                            refused.fetch_add(1, Ordering::Relaxed);
                        }
                        _ => panic!("{}", answer.text()),
                    }
                }
            });
        }
        eventually("each kind has reached its bound", || {
            let bytes = bytes_below(&daemon.state_folder());
            assert!(bytes <= BUDGET_BYTES, "{bytes} bytes");
            let removed = daemon.metrics().value("autoglmd_store_removed_total");
            (removed > 200.0 && refused.load(Ordering::Relaxed) > 20).then_some(())
        });
    });
    let metrics = daemon.metrics();
    assert_eq!(metrics.value("autoglmd_store_failed_commits_total"), 0.0);
    let limits = metrics.sum("autoglmd_state_limit_bytes", &[]);
    assert_eq!(limits, BUDGET_BYTES as f64);
    let database = metrics.sum("autoglmd_state_limit_bytes", &[("part", "database")]) as u64;
    assert!(number(&daemon, "SELECT sum(bytes) FROM jobs") <= database / 2);
    let entries = number(&daemon, "SELECT coalesce(sum(bytes), 0) FROM cache_entries");
    assert!(
        entries > 0 && entries <= database / 4 + (1 << 20),
        "{entries}"
    );
    daemon.wait_for_log(0, "the oldest records are removed before store.retention");
    let checked = daemon.run(&[
        "store",
        "check",
        "--json",
        "--config",
        daemon.configuration_file().to_str().expect("plain"),
        "--state-dir",
        daemon.state_folder().to_str().expect("plain"),
    ]);
    let checked: Value = serde_json::from_slice(&checked.stdout).expect("JSON");
    let share = &checked["folder"]["database"];
    assert_eq!(share["max_bytes"].as_u64(), Some(database));
    assert!(share["bytes"].as_u64() <= share["max_bytes"].as_u64());
}

/// Ends the clients, also when the test fails.
struct EndOf<'a>(&'a AtomicBool);

impl Drop for EndOf<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// An export, or a shell, that reads the database at one moment.
#[test]
fn a_long_reader_makes_records_wait_and_not_the_log_grow() {
    let daemon = Options::echo()
        .set("store.max_size", "16MiB")
        .set_raw("store.content", "true")
        .start();
    ask(&daemon, 0, 8).expect(200);
    eventually("a record is stored", || {
        (number(&daemon, "SELECT count(*) FROM generations") > 0).then_some(())
    });
    let reader = Connection::open(daemon.state_folder().join(DATABASE_FILE)).expect("a reader");
    let moment = "BEGIN; SELECT count(*) FROM generations";
    reader.execute_batch(moment).expect("a moment");
    let mut asked = 1;
    let (found, _) = eventually("the log has its share", || {
        ask(&daemon, asked, 8 << 10).expect(200);
        asked += 1;
        let bytes = bytes_below(&daemon.state_folder());
        assert!(bytes <= BUDGET_BYTES, "{bytes} bytes");
        problem(&daemon)
    });
    assert!(found.contains("log has grown"), "{found}");
    for _ in 0..20 {
        ask(&daemon, asked, 8 << 10).expect(200);
        asked += 1;
    }
    let log = daemon.state_folder().join(format!("{DATABASE_FILE}-wal"));
    assert!(fs::metadata(log).expect("the log").len() <= BUDGET_BYTES / 8);
    let refused = submit(&daemon, daemon.key(), 8);
    refused.expect_error(503, "store_unavailable");
    reader.execute_batch("ROLLBACK").expect("the end");
    wait_for_store(&daemon);
    // A busy machine reports the problem late, and the queue is full by then.
    eventually("each record is there, or counted", || {
        let metrics = daemon.metrics();
        let lost = [
            "autoglmd_store_dropped_total",
            "autoglmd_store_removed_total",
        ];
        let lost: f64 = lost.into_iter().map(|name| metrics.value(name)).sum();
        let stored = number(&daemon, "SELECT count(*) FROM generations");
        (stored + lost as u64 == asked).then_some(())
    });
    submit(&daemon, daemon.key(), 8).expect(202);
}

/// Submits three jobs, each twice with one key of idempotency, during a lock that outlasts one
/// attempt. Returns their ids; `None` for a request that has met a client's own deadline.
fn submit_during_a_lock(daemon: &Daemon, round: usize) -> Vec<Option<String>> {
    let path = daemon.state_folder().join(DATABASE_FILE);
    let other = Connection::open(path).expect("the database");
    other.execute_batch("BEGIN IMMEDIATE").expect("the lock");
    std::thread::scope(|scope| {
        let submit = |at: usize| {
            let key = format!("key-{round}-{}", at / 2);
            let fields = [("idempotency-key", key.as_str())];
            let body = json!({ "prompt": format!("job {}", at / 2) }).to_string();
            let path = "/api/v1/jobs";
            let bytes = daemon.request_with("POST", path, &fields, body.as_bytes());
            let answer = daemon.exchange(&bytes);
            let id = (answer.status() == 202).then(|| answer.json()["id"].clone());
            id.map(|id| id.as_str().expect("an id").to_owned())
        };
        let clients: Vec<_> = (0..6).map(|at| scope.spawn(move || submit(at))).collect();
        // The first attempt has ended, and its tasks wait for the second one.
        wait_for_problem(daemon, "locked");
        other.execute_batch("ROLLBACK").expect("the lock's end");
        let ended = clients.into_iter().map(|client| client.join());
        ended.map(|id| id.expect("a client")).collect()
    })
}

/// Several rounds, because a machine that is busy with other things may take the ten seconds that
/// a client waits.
#[test]
fn a_lock_of_some_seconds_delays_jobs_and_their_ends_and_loses_none() {
    let daemon = Options::echo().start();
    let mut rounds = (0..4).map(|round| submit_during_a_lock(&daemon, round));
    let is_whole = |ids: &Vec<Option<String>>| ids.iter().all(Option::is_some);
    let ids = rounds.find(is_whole).expect("a round without a refusal");
    let ids: Vec<_> = ids.into_iter().flatten().collect();
    for pair in ids.chunks(2) {
        assert_eq!(pair[0], pair[1], "the same key is the same job");
    }
    for id in &ids {
        eventually("the job has ended", || {
            let job = daemon.get(&format!("/api/v1/jobs/{id}")).expect(200).json();
            assert!(job["attempts"].as_u64() < Some(2), "it ran twice");
            (job["status"] == "completed").then_some(())
        });
    }
    wait_for_health(&daemon);
}

/// A lock that outlasts every client: what was refused is not run afterwards.
#[test]
fn a_job_that_was_refused_during_a_lock_does_not_run_after_it() {
    let daemon = Options::echo().start();
    let path = daemon.state_folder().join(DATABASE_FILE);
    let other = Connection::open(path).expect("the database");
    other.execute_batch("BEGIN IMMEDIATE").expect("the lock");
    submit(&daemon, daemon.key(), 8).expect_error(503, "store_unavailable");
    ask(&daemon, 1, 8).expect(200);
    other.execute_batch("ROLLBACK").expect("the lock's end");
    wait_for_health(&daemon);
    assert_eq!(number(&daemon, "SELECT count(*) FROM jobs"), 0);
    submit(&daemon, daemon.key(), 8).expect(202);
}

// ---- read-only -------------------------------------------------------------------------------

/// Runs the daemon in a mount namespace of its own, as the root of a user namespace.
const OWN_MOUNTS: [&str; 5] = ["unshare", "-rm", "sh", "-c", r#"exec "$0" "$@""#];

/// Puts a read-only copy of the state folder in its place, as a file system that its server has
/// made read-only: modes would not stop root.
const READ_ONLY: &str = r#"
    set -e
    mkdir -p "$1/copy"
    mount -t tmpfs tmpfs "$1/copy"
    cp -a "$1/state/." "$1/copy"
    mount -o remount,ro "$1/copy"
    mount --bind "$1/copy" "$1/state"
"#;

/// Runs a script in the daemon's namespaces, with its folder as the first argument.
fn inside(daemon: &Daemon, script: &str) {
    let id = daemon.process().0.to_string();
    let mut command = Command::new("nsenter");
    command.args([
        "--preserve-credentials",
        "--user",
        "--mount",
        "--target",
        &id,
    ]);
    command.args(["sh", "-c", script, "sh"]);
    command.arg(daemon.folder().path());
    let output = command.output().expect("nsenter");
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{message}");
}

#[test]
fn a_folder_that_becomes_read_only_delays_records_and_no_request() {
    let daemon = Options::echo().wrapped_in(&OWN_MOUNTS).start();
    for number in 0..5 {
        ask(&daemon, number, 8).expect(200);
    }
    wait_for_health(&daemon);
    inside(&daemon, READ_ONLY);
    ask(&daemon, 5, 8).expect(200);
    let (found, _) = eventually("the problem is reported", || problem(&daemon));
    assert!(found.contains("read"), "{found}");
    for number in 6..10 {
        ask(&daemon, number, 8).expect(200);
    }
    submit(&daemon, daemon.key(), 8).expect_error(503, "store_unavailable");
    assert_eq!(daemon.metrics().value("autoglmd_store_failing"), 1.0);
    inside(&daemon, r#"umount --lazy "$1/state""#);
    wait_for_health(&daemon);
    eventually("all records are there", || {
        (number(&daemon, "SELECT count(*) FROM generations") == 10).then_some(())
    });
    submit(&daemon, daemon.key(), 8).expect(202);
}

/// The daemon cannot know its keys then.
#[test]
fn a_folder_that_is_read_only_at_the_start_is_named() {
    let mut first = Daemon::echo();
    let folder = first.folder();
    first.process().signal(libc::SIGTERM);
    assert!(first.wait().success());
    let script = format!(r#"set -- "$HOME" "$0" "$@"; {READ_ONLY} shift; exec "$@""#);
    let mut command = Command::new("unshare");
    command.args(["-rm", "sh", "-c", &script, env!("CARGO_BIN_EXE_autoglmd")]);
    command.args(["serve", "--engine", "echo", "--listen", "127.0.0.1:0"]);
    command.arg("--state-dir").arg(folder.path().join("state"));
    common::daemon::isolate(&mut command, folder.path());
    let output = command.output().expect("unshare");
    let message = String::from_utf8_lossy(&output.stderr);
    for part in ["state: Read-only file system", "--state-dir"] {
        assert!(message.contains(part), "{message}");
    }
    // EX_NOPERM
    assert_eq!(output.status.code(), Some(77), "{message}");
}

// ---- prefixes beside the database -------------------------------------------------------------

/// With the real small model: the echo engine computes nothing that could be kept.
#[cfg(feature = "llama")]
mod prefixes {
    use super::*;

    const BUDGET_BYTES: u64 = 24 << 20;

    fn options() -> Options {
        Options::llama()
            .with_cache()
            .set_raw("engine.parallel", "1")
            .set_raw("engine.context", "1536")
            .set("store.max_size", "24MiB")
            .set("cache.prefixes", "12MiB")
            .set_raw("cache.persist", "true")
            .set_raw("cache.preload", "false")
            .set_raw("store.content", "true")
            .set("limits.default_request_timeout", "5m")
    }

    /// A prompt of some 700 tokens that no other one begins with.
    fn ask_long(daemon: &Daemon, number: u64) -> Answer {
        let line = |line| format!("def f{number}_{line}(x):\n    return x + {line}\n");
        let body = json!({
            "prompt": "add two numbers",
            "language": "python",
            "context": [{"path": "f.py", "text": (0..28).map(line).collect::<String>()}],
            "max_tokens": 2,
            "temperature": 0,
        });
        let mut connection = daemon.connect();
        connection.set_read_timeout(std::time::Duration::from_secs(300));
        connection.exchange(&daemon.generate_request(&body))
    }

    #[test]
    fn prefixes_and_records_share_the_folder() {
        let mut daemon = options().start();
        let mut written = 0.0;
        for number in 0..8 {
            ask_long(&daemon, number).expect(200);
            // A job with a long text, and the record of its failure.
            submit(&daemon, daemon.key(), 100 << 10);
            let bytes = bytes_below(&daemon.state_folder());
            assert!(bytes <= BUDGET_BYTES, "{bytes} bytes");
            let name = "autoglmd_engine_prefix_files_total";
            written = daemon.metrics().sum(name, &[("event", "written")]);
            // The engine passes over copies for which a busy machine leaves no time.
            if written > 1.0 {
                break;
            }
        }
        assert!(written > 0.0, "no prefix was written");
        let folder = daemon.state_folder().join("prefixes");
        // Those of the daemon's own words have a share of their own.
        let prefixes = bytes_below(&folder) - bytes_below(&folder.join("own"));
        assert!(prefixes > 1 << 20 && prefixes <= 12 << 20, "{prefixes}");
        let of = |name: &str| daemon.metrics().sum(name, &[("part", "prefixes")]);
        assert_eq!(of("autoglmd_state_limit_bytes"), f64::from(12 << 20));
        assert!(bytes_below(&folder.join("own")) <= BUDGET_BYTES / 16);
        eventually("the prefixes are measured", || {
            (of("autoglmd_state_bytes") > 0.0).then_some(())
        });
        eventually("the records are stored", || {
            (number_of_records(&daemon) >= 2).then_some(())
        });
        // A daemon that keeps none removes those of an earlier one.
        daemon.kill();
        let _next = Options::echo().in_folder(daemon.folder()).start();
        let left = bytes_below(&folder) - bytes_below(&folder.join("own"));
        assert!(left < 1 << 10, "{left} bytes");
    }

    fn number_of_records(daemon: &Daemon) -> u64 {
        super::number(daemon, "SELECT count(*) FROM generations")
    }
}
