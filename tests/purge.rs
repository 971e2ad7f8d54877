//! A purge of the cache on two daemons that share a Redis and a store.
//!
//! Mutations, each caught by the test named:
//! * `delete` without `delete_behind`: `a_purge_reaches_redis_the_store_and_the_other_daemon`
//! * `purge` without `announce`, `on_notice` that ignores `Tenant` and `Entries`: the same
//! * `delete_twice` that deletes once: `a_copy_that_comes_between_the_two_deletes_goes_as_well`

mod common;

use autoglmd::store::DATABASE_FILE;
use rusqlite::{Connection, params};
use serde_json::json;

use common::redis::Server;
use common::{Answer, Daemon, Options, eventually, request};

const PATH: &str = "/api/v1/admin/cache";

/// Two daemons on one database and one Redis.
struct Pair {
    server: Server,
    daemons: [Daemon; 2],
}

impl Pair {
    fn start(second_delete: &str) -> Pair {
        let server = Server::start();
        let options = || {
            Options::echo()
                .with_cache()
                .set_raw("cache.persist", "true")
                .set_raw("cache.preload", "false")
                .set("cache.second_delete", second_delete)
                .set("cache.store_timeout", "20s")
                .set("cache.shared.url", &server.url())
                // A late response would be a miss, and an entry come from the store.
                .set("cache.shared.timeout", "5s")
        };
        let first = options().start();
        let second = options().in_folder(first.folder()).start();
        let daemons = [first, second];
        for daemon in &daemons {
            for gauge in ["autoglmd_redis_up", "autoglmd_bus_up"] {
                eventually(gauge, || {
                    (daemon.metrics().value(gauge) == 1.0).then_some(())
                });
            }
        }
        Pair { server, daemons }
    }

    fn database(&self) -> Connection {
        let path = self.daemons[0].state_folder().join(DATABASE_FILE);
        Connection::open(path).expect("the database")
    }

    /// The keys of the entries in Redis.
    fn keys(&self) -> Vec<String> {
        let mut connection = self.server.connect();
        let keys = redis::cmd("KEYS")
            .arg("autoglmd:entry:*")
            .query(&mut connection);
        keys.expect("the keys")
    }

    fn rows(&self) -> u32 {
        let sql = "SELECT count(*) FROM cache_entries";
        let count = self.database().query_row(sql, (), |row| row.get(0));
        count.expect("a count")
    }

    fn wait_for_entries(&self, count: usize) {
        eventually("the entries behind memory", || {
            (self.keys().len() == count && self.rows() as usize == count).then_some(())
        });
    }

    fn purge(&self, query: &str) {
        let daemon = &self.daemons[0];
        let bytes = daemon.request("DELETE", &format!("{PATH}{query}"), b"");
        daemon.exchange(&bytes).expect(200);
    }
}

fn ask(daemon: &Daemon, prompt: &str) -> Answer {
    daemon.generate(&json!({ "prompt": prompt })).expect(200)
}

fn id(answer: &Answer) -> String {
    answer.json()["id"].as_str().expect("an id").to_owned()
}

/// Returns the id of the daemons' key.
fn key_id(daemon: &Daemon) -> String {
    let output = daemon.run(&["key", "list"]);
    let text = String::from_utf8(output.stdout).expect("a list");
    let mut words = text.split_whitespace();
    let id = words.find(|word| word.starts_with("key_"));
    id.expect("an id").to_owned()
}

#[test]
fn a_purge_reaches_redis_the_store_and_the_other_daemon() {
    for is_of_all in [true, false] {
        // A purge deletes again a moment later, so each pair has one.
        let pair = Pair::start("100ms");
        let [first, second] = &pair.daemons;
        let made = id(&ask(first, "a"));
        pair.wait_for_entries(1);
        assert_eq!(id(&ask(second, "a")), made, "from Redis");
        assert_eq!(id(&ask(second, "a")), made, "from its own memory");
        pair.purge("?key=key_000000000000");
        assert_eq!(id(&ask(first, "a")), made);
        pair.wait_for_entries(1);
        match is_of_all {
            true => pair.purge(""),
            false => pair.purge(&format!("?key={}", key_id(first))),
        }
        pair.wait_for_entries(0);
        // The notice comes over another connection than the deletion.
        eventually("the other daemon forgets", || {
            let shown = second.get(PATH).expect(200).json();
            let levels = shown["levels"].as_array().expect("levels").iter();
            let entries = levels.map(|level| level["entries"].as_u64().expect("a count"));
            (entries.sum::<u64>() == 0).then_some(())
        });
        let again = ask(second, "a");
        assert_eq!(again.field("x-cache"), Some("miss"), "{again}");
        assert_ne!(id(&again), made);
        let deleted = first.metrics().value("autoglmd_cache_shared_deleted_total");
        assert!(deleted >= 1.0, "{deleted}");
    }
}

#[test]
fn a_copy_that_comes_between_the_two_deletes_goes_as_well() {
    let pair = Pair::start("10s");
    let [first, second] = &pair.daemons;
    let made = id(&ask(first, "a"));
    pair.wait_for_entries(1);
    let key = pair.keys().remove(0);
    let mut connection = pair.server.connect();
    let get = redis::cmd("GET").arg(&key).query(&mut connection);
    let value: Vec<u8> = get.expect("the value");
    let sql = "SELECT digest, tenant, created_at, expires_at, bytes, value FROM cache_entries";
    let row = pair.database().query_row(sql, (), |row| {
        Ok((
            row.get::<_, Vec<u8>>(0)?,
            row.get::<_, i64>(1)?,
            row.get::<_, i64>(2)?,
            row.get::<_, i64>(3)?,
            row.get::<_, i64>(4)?,
            row.get::<_, Vec<u8>>(5)?,
        ))
    });
    let row = row.expect("the row");
    pair.purge("");
    pair.wait_for_entries(0);
    // A copy that a daemon has read before the purge, and writes after it.
    let set = redis::cmd("SET")
        .arg(&key)
        .arg(&value)
        .exec(&mut connection);
    set.expect("the copy");
    let insert = "INSERT INTO cache_entries VALUES (?1, ?2, ?3, ?4, 1, 0, ?5, ?6)";
    let values = params![row.0, row.1, row.2, row.3, row.4, row.5];
    let database = pair.database();
    database.busy_timeout(common::PATIENCE).expect("a wait");
    database.execute(insert, values).expect("the copy");
    // A memory does not take it: it is older than the purge.
    assert_ne!(id(&ask(first, "a")), made);
    pair.wait_for_entries(0);
    assert_ne!(id(&ask(second, "a")), made);
}

/// Mutation: an erasure without `erase_shared`.
#[test]
fn an_erased_key_has_no_entry_in_redis_and_others_keep_theirs() {
    let pair = Pair::start("100ms");
    let [first, second] = &pair.daemons;
    ask(first, "a");
    let made = first.run(&["key", "create", "--name", "gone"]);
    let secret = String::from_utf8(made.stdout).expect("a key");
    let credentials = format!("Bearer {}", secret.trim());
    let fields = [
        ("authorization", credentials.as_str()),
        ("content-type", "application/json"),
    ];
    let body = json!({ "prompt": "a" }).to_string();
    let bytes = request("POST", "/api/v1/generate", &fields, body.as_bytes());
    eventually("the key works", || {
        (first.exchange(&bytes).status() == 200).then_some(())
    });
    pair.wait_for_entries(2);
    let config = first.configuration_file();
    let config = config.to_str().expect("a path");
    let erased = first.run(&["key", "erase", "gone", "--yes", "--config", config]);
    let message = String::from_utf8_lossy(&erased.stderr);
    assert_eq!(erased.status.code(), Some(0), "{message}");
    pair.wait_for_entries(1);
    let hit = ask(second, "a");
    assert_eq!(hit.field("x-cache"), Some("shared"), "{hit}");
}
