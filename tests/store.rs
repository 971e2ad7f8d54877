//! The store's records over the real binary: lists, and what happens when the disk or another
//! process stands in the way.
//!
//! Mutations that these tests catch: a failed group that drops its records; `note_success` that
//! leaves the problem; a query without the caller's key; a worker that opens the store once, or
//! never again; hits that a drain leaves in the accounts.

mod common;

use std::path::Path;
use std::sync::Arc;

use autoglmd::store::DATABASE_FILE;
use rusqlite::Connection;
use serde_json::{Value, json};

use common::{Daemon, Options, eventually, files_with, kills, request};

fn generate(daemon: &Daemon, count: usize) -> Vec<String> {
    let ids = (0..count).map(|number| {
        let body = json!({ "prompt": format!("program {number}"), "cache": "bypass" });
        let answer = daemon.generate(&body);
        let answer = answer.expect(200).json();
        answer["id"].as_str().expect("an id").to_owned()
    });
    ids.collect()
}

fn list(daemon: &Daemon, query: &str) -> Value {
    let answer = daemon.get(&format!("/api/v1/generations?{query}"));
    answer.expect(200).json()
}

fn ids(page: &Value) -> Vec<String> {
    let data = page["data"].as_array().expect("a list");
    data.iter()
        .map(|entry| entry["id"].as_str().expect("an id").to_owned())
        .collect()
}

/// Waits until the list has this many entries.
fn wait_for_records(daemon: &Daemon, count: usize) -> Vec<String> {
    let (found, _) = eventually("the records are stored", || {
        let found = ids(&list(daemon, "limit=100"));
        (found.len() == count).then_some(found)
    });
    found
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
    eventually("the store works again", || {
        problem(daemon).is_none().then_some(())
    });
}

/// A daemon of a later version would write rows that this one misreads.
#[test]
fn a_running_daemon_leaves_a_database_that_a_later_program_has_changed() {
    let daemon = Daemon::echo();
    let path = daemon.state_folder().join(DATABASE_FILE);
    let set = |min_reader: u32| {
        let sql = format!(
            "BEGIN; UPDATE schema SET value = {min_reader} WHERE name = 'min_reader';
             PRAGMA user_version = {min_reader}; COMMIT"
        );
        let connection = Connection::open(&path).expect("the database");
        connection.execute_batch(&sql).expect("the schema");
    };
    set(99);
    wait_for_problem(&daemon, "install the newer autoglmd");
    generate(&daemon, 3);
    let refused = daemon.get("/api/v1/generations").expect(503).json();
    assert_eq!(refused["error"]["code"], "store_unavailable");
    set(1);
    wait_for_health(&daemon);
    wait_for_records(&daemon, 3);
}

#[test]
fn a_key_lists_its_own_generations_page_by_page() {
    let daemon = Daemon::echo();
    let mut made = generate(&daemon, 5);
    made.reverse();
    assert_eq!(wait_for_records(&daemon, 5), made);
    let first = list(&daemon, "limit=2&status=done");
    let cursor = first["next_cursor"].as_str().expect("a second page");
    let second = list(&daemon, &format!("limit=3&cursor={cursor}"));
    assert_eq!([ids(&first), ids(&second)].concat(), made);
    assert_eq!(second["next_cursor"], Value::Null);
    let entry = &first["data"][0];
    assert_eq!(
        (&entry["status"], &entry["finish_reason"], &entry["cache"]),
        (&"done".into(), &"stop".into(), &"bypass".into())
    );
    assert!(entry["usage"]["completion_tokens"].as_u64() > Some(0));
    assert!(entry.get("prompt").is_none(), "no text by default");
    assert_eq!(list(&daemon, "status=failed")["data"], json!([]));
    let created_at = entry["created_at"].as_u64().expect("a time") + 1;
    assert_eq!(
        list(&daemon, &format!("since={created_at}"))["data"],
        json!([])
    );

    let made = daemon.run(&["key", "create", "--name", "other", "--scopes", "generate"]);
    let other = String::from_utf8(made.stdout).expect("a key");
    let other = other.trim();
    eventually("the other key works", || {
        let credentials = format!("Bearer {other}");
        let head = [("authorization", credentials.as_str())];
        let target = format!("/api/v1/generations?cursor={cursor}");
        let bytes = request("GET", &target, &head, b"");
        let answer = daemon.exchange(&bytes);
        (answer.status() == 200).then(|| assert_eq!(answer.json()["data"], json!([])))
    });
}

/// Returns the rows that `key usage` prints.
fn usage(daemon: &Daemon, arguments: &[&str]) -> Vec<Value> {
    let arguments = [&["key", "usage", "--json"], arguments].concat();
    let output = daemon.run(&arguments);
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{message}");
    let rows: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    rows.as_array().expect("a list").clone()
}

/// Mutations that this test catches: a query that ignores one end of its days; a name that matches
/// several keys and means the first.
#[test]
fn usage_is_shown_by_key_and_day_beside_the_running_daemon() {
    let daemon = Daemon::echo();
    generate(&daemon, 3);
    wait_for_records(&daemon, 3);
    let all = usage(&daemon, &[]);
    assert_eq!(all.len(), 1);
    let (row, completion) = (&all[0], all[0]["completion_tokens"].as_u64());
    assert_eq!(
        (&row["requests"], &row["unfinished"]),
        (&3.into(), &0.into())
    );
    assert!(completion > Some(0));
    let (id, day) = (row["key"].as_str().expect("an id"), &row["day"]);
    let day = day.as_str().expect("a date");
    for named in [id, "bootstrap"] {
        assert_eq!(
            usage(&daemon, &[named, "--since", day, "--until", day]),
            all
        );
    }
    assert!(usage(&daemon, &["--since", "9999-01-01"]).is_empty());
    assert!(usage(&daemon, &["--until", "2000-01-01"]).is_empty());
    let table = daemon.run(&["key", "usage", id]).stdout;
    assert!(String::from_utf8_lossy(&table).contains(day));

    for _ in 0..2 {
        daemon.run(&["key", "create", "--name", "twice"]);
    }
    for (arguments, code) in [
        (["twice", "--json"], 65),
        (["unknown", "--json"], 66),
        (["--since=9999-01-01", "--until=2000-01-01"], 64),
        (["--since=yesterday", "--json"], 64),
    ] {
        let output = daemon.run(&[&["key", "usage"], &arguments[..]].concat());
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
        assert!(output.stdout.is_empty());
    }
}

/// Mutations that this test catches: `take_hits` left out of a group, or of `end`; a hit of either
/// level that is a record.
#[test]
fn hits_of_the_cache_are_usage_without_tokens_and_no_generations() {
    let mut daemon = Options::echo().with_cache().start();
    let ask = |body: &Value, verdict| {
        let answer = daemon.generate(body).expect(200);
        assert_eq!(answer.field("x-cache"), Some(verdict), "{answer}");
    };
    let body = json!({"prompt": "program"});
    ask(&body, "miss");
    let computed = eventually("the generation is counted", || usage(&daemon, &[]).pop()).0;
    for _ in 0..5 {
        ask(&body, "hit");
    }
    // Found by the level of the engine: a stream is in no other one.
    let stream = json!({"prompt": "program", "stream": true});
    ask(&stream, "hit");
    let counted = eventually("the hits are counted", || {
        let row = usage(&daemon, &[]).pop()?;
        (row["hits"] == 6).then_some(row)
    });
    let mut expected = computed;
    (expected["requests"], expected["hits"]) = (7.into(), 6.into());
    assert_eq!(counted.0, expected, "tokens are those of one generation");
    assert_eq!(ids(&list(&daemon, "limit=100")).len(), 1);
    for _ in 0..10 {
        ask(&body, "hit");
    }
    daemon.process().signal(libc::SIGTERM);
    assert!(daemon.wait().success());
    let path = daemon.state_folder().join(DATABASE_FILE);
    let database = Connection::open(path).expect("the database");
    let sum = "SELECT sum(hits) FROM usage_hits";
    let hits: u32 = database
        .query_row(sum, (), |row| row.get(0))
        .expect("a number");
    assert_eq!(hits, 16, "a drain loses none");
}

/// Mutations: `handle_saved` that sends no record; a hit that leaves one.
#[test]
fn the_generations_of_durable_jobs_are_recorded_and_counted() {
    let daemon = Options::echo().with_cache().start();
    let body = json!({"prompt": "a job"}).to_string();
    let submit = || {
        let answer = daemon.exchange(&daemon.request("POST", "/api/v1/jobs", body.as_bytes()));
        let id = answer.expect(202).json()["id"].clone();
        let path = format!("/api/v1/jobs/{}", id.as_str().expect("an id"));
        let (job, _) = eventually("the job completes", || {
            let job = daemon.get(&path).expect(200).json();
            (job["status"] == "completed").then_some(job)
        });
        job
    };
    let job = submit();
    let found = wait_for_records(&daemon, 1);
    assert_eq!(found, [job["result"]["id"].as_str().expect("an id")]);
    let record = &list(&daemon, "limit=1")["data"][0];
    assert_eq!(
        (&record["request_id"], &record["status"]),
        (&job["id"], &"done".into())
    );
    assert_eq!(submit()["result"]["cached"], true);
    let (row, _) = eventually("the second one counts as a hit", || {
        let row = usage(&daemon, &[]).pop()?;
        (row["hits"] == 1).then_some(row)
    });
    assert_eq!(row["requests"], 2, "{row}");
    assert_eq!(
        row["completion_tokens"],
        record["usage"]["completion_tokens"]
    );
    wait_for_records(&daemon, 1);
}

/// Mutations that this test catches: an erasure that leaves out jobs, entries, the history of
/// changes, or `overwrite_removed`; a daemon that keeps its results (`forget_gone`).
#[test]
fn nothing_of_an_erased_key_is_left_in_the_state_folder_or_in_the_daemon() {
    const MARKER: &str = "albatross-7f3a";
    let daemon = Options::echo()
        .with_cache()
        .set_raw("store.content", "true")
        .set_raw("cache.persist", "true")
        .start();
    let made = daemon.run(&["key", "create", "--name", "gone", "--scopes", "generate"]);
    let secret = String::from_utf8(made.stdout).expect("a key");
    let credentials = format!("Bearer {}", secret.trim());
    let head = [
        ("authorization", credentials.as_str()),
        ("content-type", "application/json"),
        ("idempotency-key", "once"),
    ];
    let send = |path: &str, number: usize| {
        let body = json!({"prompt": format!("{MARKER} {number}"), "temperature": 0});
        // Only the job is to be remembered.
        let head = if path == "/api/v1/jobs" {
            &head[..]
        } else {
            &head[..2]
        };
        daemon.exchange(&request("POST", path, head, body.to_string().as_bytes()))
    };
    eventually("the key works", || {
        (send("/api/v1/jobs", 0).status() == 202).then_some(())
    });
    for number in 0..30 {
        send("/api/v1/generate", number).expect(200);
    }
    let entries = || {
        let cache = daemon.get("/api/v1/admin/cache").expect(200).json();
        let levels = cache["levels"].as_array().expect("a list").clone();
        levels
            .iter()
            .filter_map(|level| level["entries"].as_u64())
            .sum::<u64>()
    };
    assert!(entries() > 0);
    generate(&daemon, 2);
    let row = eventually("the key's generations are stored", || {
        let rows = usage(&daemon, &["gone"]);
        rows.into_iter()
            .find(|row| row["requests"].as_u64() >= Some(30))
    });
    let id = row.0["key"].as_str().expect("an id").to_owned();
    let digest = blake3::hash(secret.trim().as_bytes());
    let texts: [&[u8]; 3] = [MARKER.as_bytes(), id.as_bytes(), digest.as_bytes()];
    assert!(!files_with(&daemon.state_folder(), &texts).is_empty());

    let refused = daemon.run(&["key", "erase", "gone"]);
    assert_eq!(
        refused.status.code(),
        Some(64),
        "without a terminal it cannot ask"
    );
    let erased = daemon.run(&["key", "erase", "gone", "--yes"]);
    let message = String::from_utf8_lossy(&erased.stderr);
    assert_eq!(erased.status.code(), Some(0), "{message}");
    assert!(
        message.contains("jobs 1") && !message.contains("generations 0"),
        "{message}"
    );

    send("/api/v1/generate", 1).expect_error(401, "invalid_key");
    eventually("the daemon has forgotten its results", || {
        (entries() == 0).then_some(())
    });
    let left = files_with(&daemon.state_folder(), &texts);
    assert!(left.is_empty(), "{left:?}");
    wait_for_records(&daemon, 2);
    assert_eq!(usage(&daemon, &["bootstrap"]).len(), 1);
    assert_eq!(
        daemon.run(&["key", "erase", "gone", "--yes"]).status.code(),
        Some(66)
    );
}

/// Mutation: an erasure that needs the key itself.
#[test]
fn an_erasure_that_was_interrupted_is_repeated_by_the_id() {
    let daemon = Daemon::echo();
    generate(&daemon, 3);
    wait_for_records(&daemon, 3);
    let id = usage(&daemon, &["bootstrap"])[0]["key"].clone();
    let id = id.as_str().expect("an id");
    // What a command leaves that was killed after it has removed the key.
    let path = daemon.state_folder().join(DATABASE_FILE);
    let database = Connection::open(path).expect("the database");
    for statement in [
        "DELETE FROM secrets WHERE key_id = ?1",
        "DELETE FROM keys WHERE id = ?1",
    ] {
        database.execute(statement, [id]).expect("a row");
    }
    let erase = |key: &str| {
        let output = daemon.run(&["key", "erase", key, "--yes"]);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), message)
    };
    let (code, message) = erase(id);
    assert_eq!(code, Some(0), "{message}");
    assert!(message.contains("generations 3"), "{message}");
    let (code, message) = erase(id);
    assert_eq!(code, Some(0), "{message}");
    assert!(message.contains("generations 0"), "{message}");
    assert_eq!(erase("bootstrap").0, Some(66));
}

#[test]
fn a_database_that_another_process_locks_delays_records_and_no_request() {
    let daemon = Daemon::echo();
    let path = daemon.state_folder().join(DATABASE_FILE);
    let other = Connection::open(path).expect("the database");
    other.execute_batch("BEGIN IMMEDIATE").expect("the lock");
    generate(&daemon, 20);
    wait_for_problem(&daemon, "locked");
    generate(&daemon, 5);
    other.execute_batch("ROLLBACK").expect("the lock's end");
    wait_for_health(&daemon);
    wait_for_records(&daemon, 25);
    assert_eq!(daemon.metrics().value("autoglmd_store_dropped_total"), 0.0);
}

#[test]
fn a_database_that_is_removed_and_put_back_is_taken_up_again() {
    let daemon = Daemon::echo();
    generate(&daemon, 3);
    wait_for_records(&daemon, 3);
    let path = daemon.state_folder().join(DATABASE_FILE);
    let backup = path.with_extension("backup");
    let source = Connection::open(&path).expect("the database");
    let target = backup.to_str().expect("a path");
    source.execute("VACUUM INTO ?1", [target]).expect("a copy");
    drop(source);
    for suffix in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{suffix}", path.display()));
    }
    generate(&daemon, 2);
    wait_for_problem(&daemon, DATABASE_FILE);
    generate(&daemon, 2);
    std::fs::rename(&backup, &path).expect("the backup takes its place");
    wait_for_health(&daemon);
    wait_for_records(&daemon, 7);
}

/// The state folder on a file system of 8 MiB, most of which a file takes that can be removed.
/// The folder is copied there, so that the test still finds the key.
const SMALL_DISK: &str = r#"
    set -e
    cp -a "$HOME/state" "$HOME/copy"
    mount -t tmpfs -o size=8M tmpfs "$HOME/state"
    cp -a "$HOME/copy/." "$HOME/state"
    head -c 7600000 /dev/zero > "$HOME/state/ballast"
    exec "$0" "$@"
"#;

#[test]
fn a_full_disk_delays_records_and_no_request() {
    let mut first = Daemon::echo();
    let folder = first.folder();
    first.kill();
    let daemon = Options::echo()
        .in_folder(Arc::clone(&folder))
        .wrapped_in(&["unshare", "-rm", "sh", "-c", SMALL_DISK])
        .start();
    eventually("the disk is full", || {
        generate(&daemon, 50);
        problem(&daemon)
    });
    wait_for_problem(&daemon, "full");
    generate(&daemon, 50);
    let root = format!("/proc/{}/root", daemon.process().0);
    let state = daemon.state_folder();
    let inside = Path::new(&root).join(state.strip_prefix("/").expect("an absolute path"));
    std::fs::remove_file(inside.join("ballast")).expect("the ballast");
    wait_for_health(&daemon);
    let last = generate(&daemon, 1);
    eventually("all records are stored", || {
        let metrics = daemon.metrics();
        (metrics.value("autoglmd_store_records_waiting") == 0.0).then_some(())
    });
    eventually("the last record is stored", || {
        (ids(&list(&daemon, "limit=1")) == last).then_some(())
    });
    assert_eq!(daemon.metrics().value("autoglmd_store_dropped_total"), 0.0);
}

/// `AUTOGLMD_KILLS` rounds; each begins with what the one before has left.
#[test]
fn the_store_opens_after_each_kill() {
    let mut folder = None;
    let mut known = Vec::new();
    for round in 0..kills() {
        let mut options = Options::echo();
        if let Some(folder) = folder.take() {
            options = options.in_folder(folder);
        }
        let mut daemon = options.start();
        assert_eq!(problem(&daemon), None);
        // What was listed once is there after the kill.
        let found = ids(&list(&daemon, "limit=100"));
        let kept = known.iter().filter(|id| found.contains(id)).count();
        assert_eq!(kept, known.len(), "round {round}");
        generate(&daemon, 1 + round % 7);
        if round % 2 == 0 {
            known = ids(&list(&daemon, "limit=20"));
        } else {
            known.clear();
        }
        folder = Some(daemon.folder());
        daemon.kill();
    }
    let folder = folder.expect("a round");
    let path = folder.path().join("state").join(DATABASE_FILE);
    let database = Connection::open(path).expect("the database");
    let check: String = database
        .query_row("PRAGMA integrity_check", (), |row| row.get(0))
        .expect("a check");
    assert_eq!(check, "ok");
}

/// Mutation: `end` that writes nothing.
#[test]
fn a_drain_stores_all_records() {
    let mut daemon = Daemon::echo();
    let made = generate(&daemon, 30);
    daemon.process().signal(libc::SIGTERM);
    assert!(daemon.wait().success());
    let path = daemon.state_folder().join(DATABASE_FILE);
    let database = Connection::open(path).expect("the database");
    let count: u32 = database
        .query_row("SELECT count(*) FROM generations", (), |row| row.get(0))
        .expect("a count");
    assert_eq!(count as usize, made.len());
}
