//! The promises of each `cache.policy`, over the real binary: when the store fails, when it is slow,
//! and when the process is killed.
//!
//! Mutations, each caught by the test named:
//! * `StoreLevel::get` that looks up with `cache-aside`: `cache_aside_never_asks_the_store`
//! * `get` without its timer: `read_through_computes_if_the_store_is_slow_or_fails`
//! * `is_out_of_order` that ignores overdue look-ups: the same
//! * `finish_after_store` that concludes before the write: `write_through_keeps_what_a_client_has`
//! * `put_first` without its timer: `write_through_ends_a_response_without_a_store_that_works`
//! * `end` that takes no entries, `run` that ends before the queue is empty:
//!   `a_drain_loses_nothing_with_any_policy`
//! * `put_back` that drops: `a_lost_group_keeps_its_entries_...` in `src/store/behind.rs`
//! * `open` without its comparison of the digest: `a_row_that_is_not_whole_...`
//! * `Erase::finish` that does not try again: `a_purge_while_the_store_does_not_work_...`
//! * the digest of a request with a secret of each daemon: `daemons_that_share_a_database_...`
//! * `Entry::decode` without the age before: `an_entry_is_as_old_after_a_restart_as_before`

mod common;

use std::sync::Arc;
use std::time::Duration;

use autoglmd::store::DATABASE_FILE;
use rusqlite::Connection;
use serde_json::json;
use tempfile::TempDir;

use common::postgres::{Postgres, Way};
use common::{Answer, Daemon, Options, eventually, kills};

/// With a timeout that only a store that stands still exceeds, however busy the machine is.
fn options(policy: &str) -> Options {
    slow_options(policy).set("cache.store_timeout", "20s")
}

fn slow_options(policy: &str) -> Options {
    let options = Options::echo().with_cache();
    options
        .set_raw("cache.persist", "true")
        .set("cache.policy", policy)
}

fn again(policy: &str, folder: Arc<TempDir>) -> Daemon {
    options(policy).in_folder(folder).start()
}

fn ask(daemon: &Daemon, number: usize) -> Answer {
    let answer = daemon.generate(&json!({ "prompt": format!("program {number}") }));
    answer.expect(200)
}

/// Asks, and returns the ids of the generations that computed the responses.
fn ids(daemon: &Daemon, numbers: std::ops::Range<usize>) -> Vec<String> {
    let id = |number| ask(daemon, number).json()["id"].as_str().map(str::to_owned);
    numbers.map(|number| id(number).expect("an id")).collect()
}

fn verdict(answer: &Answer) -> String {
    answer.field("x-cache").expect("a verdict").to_owned()
}

fn lookups(daemon: &Daemon) -> f64 {
    let name = "autoglmd_cache_store_lookups_total";
    daemon.metrics().sum(name, &[])
}

fn unconfirmed(daemon: &Daemon) -> f64 {
    let name = "autoglmd_cache_store_unconfirmed_total";
    daemon.metrics().value(name)
}

fn wait_for_writes(daemon: &Daemon, count: usize) {
    let name = "autoglmd_cache_store_writes_total";
    eventually("the entries are written", || {
        let stored = daemon.metrics().sum(name, &[("outcome", "stored")]);
        (stored == count as f64).then_some(())
    });
}

fn stop(daemon: &mut Daemon) -> Arc<TempDir> {
    daemon.process().signal(libc::SIGTERM);
    assert!(daemon.wait().success());
    daemon.folder()
}

/// Another process that keeps the database locked: the store is slow, and fails after some seconds.
struct Lock(Connection);

impl Lock {
    fn of(daemon: &Daemon) -> Lock {
        let path = daemon.state_folder().join(DATABASE_FILE);
        let other = Connection::open(path).expect("the database");
        other.busy_timeout(Duration::from_secs(30)).expect("a wait");
        other.execute_batch("BEGIN IMMEDIATE").expect("the lock");
        Lock(other)
    }

    fn release(self) {
        self.0.execute_batch("ROLLBACK").expect("the lock's end");
    }
}

fn wait_for_health(daemon: &Daemon) {
    eventually("the store works again", || {
        let failing = daemon.metrics().value("autoglmd_store_failing");
        (failing == 0.0).then_some(())
    });
}

#[test]
fn cache_aside_never_asks_the_store() {
    let mut daemon = options("cache-aside").start();
    let made = ids(&daemon, 0..3);
    wait_for_writes(&daemon, 3);
    let folder = stop(&mut daemon);
    let daemon = again("cache-aside", folder);
    let lock = Lock::of(&daemon);
    for number in 3..20 {
        ask(&daemon, number);
    }
    lock.release();
    assert_eq!(lookups(&daemon), 0.0);
    assert_eq!(
        daemon.metrics().value("autoglmd_cache_store_late_total"),
        0.0
    );
    assert_eq!(made.len(), 3);
}

#[test]
fn read_through_finds_what_was_computed_before_a_restart() {
    let mut daemon = options("read-through").start();
    let made = ids(&daemon, 0..3);
    wait_for_writes(&daemon, 3);
    let folder = stop(&mut daemon);
    let daemon = again("read-through", folder);
    for (number, id) in made.iter().enumerate() {
        let answer = ask(&daemon, number);
        assert_eq!(verdict(&answer), "hit", "{answer}");
        assert_eq!(answer.json()["id"], **id);
        assert_eq!(answer.json()["cached"], true);
        assert!(answer.field("age").is_some(), "{answer}");
    }
    assert_eq!(verdict(&ask(&daemon, 3)), "miss");
}

#[test]
fn read_through_computes_if_the_store_is_slow_or_fails() {
    let daemon = slow_options("read-through").start();
    let first = ids(&daemon, 0..1);
    wait_for_writes(&daemon, 1);
    let lock = Lock::of(&daemon);
    for number in 1..30 {
        assert_eq!(verdict(&ask(&daemon, number)), "miss");
    }
    // The first one waits for its timeout, and the others see that.
    let late = daemon.metrics().value("autoglmd_cache_store_late_total");
    assert!((1.0..=5.0).contains(&late), "{late}");
    lock.release();
    wait_for_health(&daemon);
    assert_eq!(ids(&daemon, 0..1), first);
    // A store that is gone fails at once.
    let path = daemon.state_folder().join(DATABASE_FILE);
    for suffix in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{suffix}", path.display()));
    }
    for number in 30..40 {
        assert_eq!(verdict(&ask(&daemon, number)), "miss");
    }
}

/// A row that is damaged, one that another model has computed, or one of another request.
#[test]
fn a_row_that_is_not_whole_is_computed_again_and_replaced() {
    let mut daemon = options("read-through").start();
    let made = ids(&daemon, 0..2);
    wait_for_writes(&daemon, 2);
    let folder = stop(&mut daemon);
    let path = folder.path().join("state").join(DATABASE_FILE);
    let database = Connection::open(path).expect("the database");
    // Each row gets the value of the other one.
    let change = "CREATE TEMP TABLE made AS SELECT digest, value FROM cache_entries;
        UPDATE cache_entries SET value =
            (SELECT value FROM made WHERE made.digest <> cache_entries.digest)";
    database.execute_batch(change).expect("a change");
    drop(database);
    let daemon = again("read-through", folder);
    let computed = ids(&daemon, 0..2);
    assert!(computed.iter().all(|id| !made.contains(id)), "{computed:?}");
    let name = "autoglmd_cache_store_lookups_total";
    let foreign = daemon.metrics().sum(name, &[("verdict", "foreign")]);
    assert_eq!(foreign, 2.0);
    wait_for_writes(&daemon, 2);
    let mut daemon = daemon;
    let folder = stop(&mut daemon);
    assert_eq!(ids(&again("read-through", folder), 0..2), computed);
}

#[test]
fn rows_hold_no_prompt() {
    const MARKER: &str = "a prompt that is nowhere else";
    let mut daemon = options("write-through").start();
    daemon.generate(&json!({ "prompt": MARKER })).expect(200);
    wait_for_writes(&daemon, 1);
    let folder = stop(&mut daemon);
    let items = std::fs::read_dir(folder.path().join("state")).expect("the folder");
    let mut bytes = 0;
    for item in items.flatten().filter(|item| item.path().is_file()) {
        let content = std::fs::read(item.path()).expect("a file");
        let mut windows = content.windows(MARKER.len());
        assert!(
            windows.all(|window| window != MARKER.as_bytes()),
            "{item:?}"
        );
        bytes += content.len();
    }
    assert!(bytes > 4_096, "the database was looked at");
}

#[test]
fn a_purge_while_the_store_does_not_work_is_made_up_for() {
    let daemon = options("cache-aside")
        .set("cache.second_delete", "1ms")
        .start();
    ids(&daemon, 0..5);
    wait_for_writes(&daemon, 5);
    let path = daemon.state_folder().join(DATABASE_FILE);
    let backup = path.with_extension("backup");
    let source = Connection::open(&path).expect("the database");
    let target = backup.to_str().expect("a path");
    source.execute("VACUUM INTO ?1", [target]).expect("a copy");
    drop(source);
    for suffix in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{suffix}", path.display()));
    }
    let purge = daemon.request("DELETE", "/api/v1/admin/cache", b"");
    daemon.exchange(&purge).expect(200);
    // Both deletes have failed long before the last of these.
    eventually("the deletes fail", || {
        let failed = daemon
            .metrics()
            .value("autoglmd_store_failed_commits_total");
        (failed >= 5.0).then_some(())
    });
    std::fs::rename(&backup, &path).expect("the backup takes its place");
    let database = Connection::open(&path).expect("the database");
    let rows = "SELECT count(*) FROM cache_entries";
    let rows = || database.query_row(rows, (), |row| row.get::<_, u32>(0));
    eventually("the entries are deleted", || {
        (rows().expect("a count") == 0).then_some(())
    });
}

#[test]
fn daemons_that_share_a_database_find_each_other_s_results() {
    let postgres = Postgres::shared();
    let database = postgres.database();
    let start = |folder: &Arc<TempDir>| {
        let options = options("read-through").in_folder(Arc::clone(folder));
        options
            .set("store.url", &postgres.url(&database, Way::Socket))
            .start()
    };
    let folders = [(); 2].map(|()| {
        let folder = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
        Arc::new(folder)
    });
    let first = start(&folders[0]);
    std::fs::create_dir(folders[1].path().join("state")).expect("a folder");
    let key = "state/bootstrap-key";
    std::fs::copy(folders[0].path().join(key), folders[1].path().join(key)).expect("a file");
    let second = start(&folders[1]);
    let made = ids(&first, 0..3);
    wait_for_writes(&first, 3);
    assert_eq!(ids(&second, 0..3), made);
}

#[test]
fn an_entry_is_as_old_after_a_restart_as_before() {
    let mut daemon = options("read-through").start();
    ids(&daemon, 0..1);
    wait_for_writes(&daemon, 1);
    let folder = stop(&mut daemon);
    let path = folder.path().join("state").join(DATABASE_FILE);
    let database = Connection::open(path).expect("the database");
    let seconds = |sql: &str| -> i64 {
        let read = database.query_row(sql, (), |row| row.get::<_, i64>(0));
        read.expect("a time") / 1_000
    };
    let ttl = seconds("SELECT expires_at - created_at FROM cache_entries");
    // Up to a tenth is taken off.
    assert!((3_240..=3_600).contains(&ttl), "{ttl}");
    // A result of the past expires when it would have.
    database
        .execute_batch("UPDATE cache_entries SET expires_at = 1")
        .expect("a change");
    let daemon = again("read-through", folder);
    assert_eq!(verdict(&ask(&daemon, 0)), "miss");
}

#[test]
fn preloading_brings_entries_into_memory_that_nothing_asks_the_store_for() {
    let mut daemon = options("cache-aside").start();
    let made = ids(&daemon, 0..5);
    wait_for_writes(&daemon, 5);
    let folder = stop(&mut daemon);
    // One of them is damaged: it is not taken.
    let path = folder.path().join("state").join(DATABASE_FILE);
    let database = Connection::open(path).expect("the database");
    let damage = "UPDATE cache_entries SET value = zeroblob(length(value)) WHERE digest =
        (SELECT min(digest) FROM cache_entries)";
    assert_eq!(database.execute(damage, ()).expect("a change"), 1);
    let daemon = again("cache-aside", folder);
    eventually("the entries are preloaded", || {
        let name = "autoglmd_cache_preloaded_total";
        let preloaded = daemon.metrics().sum(name, &[("kind", "entry")]);
        (preloaded == 4.0).then_some(())
    });
    let found = ids(&daemon, 0..5);
    let same = made
        .iter()
        .zip(&found)
        .filter(|(made, found)| made == found);
    assert_eq!(same.count(), 4);
    assert_eq!(lookups(&daemon), 0.0);
}

/// Mutation: a job that is not the daemon's own prompt.
#[cfg(feature = "llama")]
#[test]
fn preloading_reads_the_daemons_own_words_before_the_first_request() {
    let daemon = Options::llama().with_cache().start();
    eventually("the prompts are preloaded", || {
        let metrics = daemon.metrics();
        let read = metrics.sum("autoglmd_cache_preloaded_total", &[("kind", "prompt")]);
        // The first two have been read once a third one was taken.
        (read >= 3.0).then_some(())
    });
    let body = json!({ "prompt": "sort a list", "language": "python", "max_tokens": 1 });
    let usage = daemon.generate(&body).expect(200).json()["usage"].clone();
    let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64();
    assert!(cached > Some(0), "{usage}");
}

#[test]
fn write_through_keeps_what_a_client_has() {
    let mut daemon = options("write-through").start();
    for round in 0..kills() {
        let made = ids(&daemon, round * 10..round * 10 + 4);
        assert_eq!(unconfirmed(&daemon), 0.0);
        daemon.kill();
        let folder = daemon.folder();
        daemon = again("write-through", folder);
        assert_eq!(
            ids(&daemon, round * 10..round * 10 + 4),
            made,
            "round {round}"
        );
    }
}

/// Asks for a result that is not looked up before. So no look-up is overdue when it is written.
fn refresh(daemon: &Daemon, number: usize) -> String {
    let body = json!({ "prompt": format!("program {number}"), "cache": "refresh" });
    let id = daemon.generate(&body).expect(200).json()["id"].clone();
    id.as_str().expect("an id").to_owned()
}

/// Mutation: a write that fails in time and counts as confirmed.
#[test]
fn write_through_counts_a_write_that_fails_at_once() {
    let daemon = options("write-through").start();
    let path = daemon.state_folder().join(DATABASE_FILE);
    for suffix in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{suffix}", path.display()));
    }
    let made = refresh(&daemon, 0);
    assert_eq!(unconfirmed(&daemon), 1.0);
    assert_eq!(ids(&daemon, 0..1), [made], "it is in memory");
}

#[test]
fn write_through_ends_a_response_without_a_store_that_works() {
    let daemon = slow_options("write-through").start();
    let lock = Lock::of(&daemon);
    let mut made = vec![refresh(&daemon, 0)];
    // Long before the store has given up the write.
    let name = "autoglmd_cache_store_writes_total";
    assert_eq!(daemon.metrics().sum(name, &[("outcome", "failed")]), 0.0);
    made.extend(ids(&daemon, 1..10));
    assert_eq!(unconfirmed(&daemon), 10.0, "each is counted");
    // They are in memory.
    assert_eq!(ids(&daemon, 0..10), made);
    lock.release();
    let mut number = 10;
    eventually("later ones are written first again", || {
        let before = unconfirmed(&daemon);
        ask(&daemon, number);
        number += 1;
        (unconfirmed(&daemon) == before).then_some(())
    });
}

/// The bound: what a client got in the last quarter of a second, and the group after it.
#[test]
fn write_behind_loses_the_last_moment_to_a_kill() {
    let mut daemon = options("write-behind").start();
    for round in 0..kills() {
        let first = round * 20;
        let made = ids(&daemon, first..first + 8);
        wait_for_writes(&daemon, 8);
        assert_eq!(
            daemon.metrics().value("autoglmd_store_entries_waiting"),
            0.0
        );
        ids(&daemon, first + 8..first + 12);
        daemon.kill();
        let folder = daemon.folder();
        daemon = again("write-behind", folder);
        assert_eq!(ids(&daemon, first..first + 8), made, "round {round}");
        let mut last = (first + 8..first + 12).map(|number| verdict(&ask(&daemon, number)));
        let kept = last
            .by_ref()
            .take_while(|verdict| verdict != "miss")
            .count();
        // Only the last ones may be lost: no group is written before an earlier one.
        assert!(
            last.all(|verdict| verdict == "miss"),
            "a gap after {kept}, round {round}"
        );
        // The next round counts the writes of its own daemon.
        let folder = stop(&mut daemon);
        daemon = again("write-behind", folder);
    }
}

const POLICIES: [&str; 4] = [
    "cache-aside",
    "read-through",
    "write-through",
    "write-behind",
];

#[test]
fn a_drain_loses_nothing_with_any_policy() {
    for policy in POLICIES {
        let mut daemon = options(policy).start();
        let made = ids(&daemon, 0..30);
        let folder = stop(&mut daemon);
        let daemon = again("read-through", folder);
        assert_eq!(ids(&daemon, 0..30), made, "{policy}");
    }
}

/// With none of them is a result lost to a kill whose transaction had ended.
#[test]
fn what_was_written_survives_a_kill_with_any_policy() {
    for policy in POLICIES {
        let mut daemon = options(policy).start();
        let made = ids(&daemon, 0..5);
        wait_for_writes(&daemon, 5);
        daemon.kill();
        let daemon = again("read-through", daemon.folder());
        assert_eq!(ids(&daemon, 0..5), made, "{policy}");
    }
}

/// Responses wait neither for the writes nor for the store's health.
#[test]
fn without_a_store_that_works_results_are_in_memory_with_any_policy() {
    for policy in POLICIES {
        let daemon = slow_options(policy).start();
        let lock = Lock::of(&daemon);
        let made = ids(&daemon, 0..10);
        assert_eq!(ids(&daemon, 0..10), made, "{policy}");
        let hits = (0..10).filter(|number| verdict(&ask(&daemon, *number)) == "hit");
        assert_eq!(hits.count(), 10, "{policy}");
        lock.release();
        wait_for_health(&daemon);
    }
}

#[test]
fn write_behind_waits_for_a_store_that_fails() {
    let mut daemon = options("write-behind").start();
    let lock = Lock::of(&daemon);
    let made = ids(&daemon, 0..20);
    eventually("the store fails", || {
        let failing = daemon.metrics().value("autoglmd_store_failing");
        (failing == 1.0).then_some(())
    });
    lock.release();
    wait_for_writes(&daemon, 20);
    daemon.kill();
    let folder = daemon.folder();
    let daemon = again("write-behind", folder);
    assert_eq!(ids(&daemon, 0..20), made);
}
