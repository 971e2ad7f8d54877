//! Requests of every kind while Redis and PostgreSQL are frozen, killed and started again.
//!
//! Both servers are real ones. Each client checks the whole of each response: a right result, or a
//! documented refusal with the time to wait.
//!
//! Mutations, each caught by the test named:
//! * `RedisLevel::get` that waits for its reply: `hits_pass_a_request_that_waits_for_redis`
//! * a link that gives up after a failed connect: `every_response_is_right_during_outages`
//! * `unavailable` without its `with_retry_after`: the same

mod common;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use serde_json::{Value, json};
use tempfile::TempDir;

use common::postgres::{Postgres, Way};
use common::redis::Server;
use common::{Answer, Connection, Daemon, Options, PATIENCE, eventually, request};

const LANGUAGES: [&str; 2] = ["python", "rust"];

/// One reactor: a wait of its thread would stop all clients.
fn options(redis: &Server, postgres: &Postgres) -> Options {
    let folder = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    Options::echo()
        .with_cache()
        .in_folder(Arc::new(folder))
        .set_raw("server.reactors", "1")
        .set(
            "store.url",
            &postgres.url(&postgres.database(), Way::Socket),
        )
        .set("cache.shared.url", &redis.url())
}

/// Clients that go on until one of them, or the test, has ended.
struct Load<'a> {
    daemon: &'a Daemon,
    expected: [Value; 2],
    is_over: AtomicBool,
    tallies: Vec<Tally>,
    /// Notified after each client's turn.
    turns: (Mutex<()>, Condvar),
}

/// The responses that one client has had.
#[derive(Default)]
struct Tally {
    right: AtomicU64,
    refused: AtomicU64,
}

/// Ends the load, also when its thread panics.
struct EndOf<'a>(&'a Load<'a>);

impl Drop for EndOf<'_> {
    fn drop(&mut self) {
        self.0.is_over.store(true, Ordering::Relaxed);
        self.0.note_turn();
    }
}

/// The work of a client: one response, or several that belong together.
type Client = fn(&Load, &mut Connection, u64, &Tally);

/// Each with its name, and whether it needs PostgreSQL.
const CLIENTS: [(&str, Client, bool); 6] = [
    ("hits", hit, false),
    ("misses", miss, false),
    ("bypasses", bypass, false),
    ("keys", keys, false),
    ("jobs", job, true),
    ("generations", generations, true),
];

/// Responses of each client that are waited for in each phase.
const RESPONSES: u64 = 3;

/// Responses that a client may have for each one of the slowest client.
const AHEAD: u64 = 100;

impl Load<'_> {
    fn run(&self, tally: &Tally, client: Client) {
        let _end = EndOf(self);
        let mut connection = self.daemon.connect();
        for turn in 0.. {
            if self.is_over.load(Ordering::Relaxed) {
                return;
            }
            client(self, &mut connection, turn, tally);
            self.note_turn();
            self.await_others(tally);
        }
    }

    fn note_turn(&self) {
        let _turn = self.turns.0.lock().unwrap_or_else(PoisonError::into_inner);
        self.turns.1.notify_all();
    }

    /// Keeps a fast client from taking all of the machine: it waits for the slowest one.
    fn await_others(&self, tally: &Tally) {
        let turn = self.turns.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_ahead = |_: &mut ()| {
            let slowest = self.tallies.iter().map(Tally::all).min().unwrap_or(0);
            !self.is_over.load(Ordering::Relaxed) && tally.all() > AHEAD * (slowest + 1)
        };
        let waited = self.turns.1.wait_timeout_while(turn, PATIENCE, is_ahead);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    fn counts(&self, count: fn(&Tally) -> u64) -> Vec<u64> {
        self.tallies.iter().map(count).collect()
    }

    /// Waits until each client has had more responses of a kind.
    fn wait_for(&self, what: &str, count: fn(&Tally) -> u64) {
        let before = self.counts(count);
        eventually(what, || {
            assert!(!self.is_over.load(Ordering::Relaxed), "a client has failed");
            let now = self.counts(count);
            let mut pairs = before.iter().zip(&now);
            pairs
                .all(|(before, now)| *now >= before + RESPONSES)
                .then_some(())
        });
    }

    /// Returns how often the clients that need PostgreSQL were refused, and how often the others.
    fn refusals(&self) -> (u64, u64) {
        let counts = self.counts(Tally::refused);
        let sum = |needs: bool| {
            let mut sum = 0;
            for ((_, _, needs_store), count) in CLIENTS.iter().zip(&counts) {
                sum += if *needs_store == needs { *count } else { 0 };
            }
            sum
        };
        (sum(true), sum(false))
    }
}

impl Tally {
    fn right(&self) -> u64 {
        self.right.load(Ordering::Relaxed)
    }

    fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    fn all(&self) -> u64 {
        self.right() + self.refused()
    }

    fn note_right(&self) {
        self.right.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns a response that is not a refusal, and counts one that is.
    #[track_caller]
    fn served(&self, answer: Answer) -> Option<Answer> {
        if answer.status() != 503 {
            return Some(answer);
        }
        let wait = answer.field("retry-after").map(str::parse::<u32>);
        assert!(matches!(wait, Some(Ok(1..))), "no time to wait: {answer}");
        answer.expect_error(503, "store_unavailable");
        self.refused.fetch_add(1, Ordering::Relaxed);
        None
    }
}

fn body(prompt: &str, turn: u64, cache: &str) -> Value {
    let language = LANGUAGES[turn as usize % 2];
    json!({"prompt": prompt, "language": language, "cache": cache})
}

fn hit(load: &Load, connection: &mut Connection, turn: u64, tally: &Tally) {
    let bytes = load.daemon.generate_request(&body("kept", turn, "use"));
    let answer = connection.exchange(&bytes).expect(200);
    assert_eq!(answer.field("x-cache"), Some("hit"), "{answer}");
    load.check(&answer.json(), turn);
    tally.note_right();
}

fn miss(load: &Load, connection: &mut Connection, turn: u64, tally: &Tally) {
    let body = body(&format!("number {turn}"), turn, "use");
    let answer = connection
        .exchange(&load.daemon.generate_request(&body))
        .expect(200);
    assert_eq!(answer.field("x-cache"), Some("miss"), "{answer}");
    load.check(&answer.json(), turn);
    tally.note_right();
}

fn bypass(load: &Load, connection: &mut Connection, turn: u64, tally: &Tally) {
    let bytes = load.daemon.generate_request(&body("kept", turn, "bypass"));
    let answer = connection.exchange(&bytes).expect(200);
    assert_eq!(answer.field("x-cache"), Some("bypass"), "{answer}");
    load.check(&answer.json(), turn);
    tally.note_right();
}

/// A key that exists, and one that does not.
fn keys(load: &Load, connection: &mut Connection, _: u64, tally: &Tally) {
    let path = "/api/v1/models";
    connection
        .exchange(&load.daemon.request("GET", path, b""))
        .expect(200);
    let wrong = format!("{}x", load.daemon.authorization());
    let fields = [("authorization", wrong.as_str())];
    let refused = connection.exchange(&request("GET", path, &fields, b""));
    refused.expect_error(401, "invalid_key");
    tally.note_right();
}

/// An accepted job is there whenever the store responds, and completes with the right result.
fn job(load: &Load, connection: &mut Connection, turn: u64, tally: &Tally) {
    let body = body("a job", turn, "bypass").to_string();
    let submit = load.daemon.request("POST", "/api/v1/jobs", body.as_bytes());
    let Some(accepted) = tally.served(connection.exchange(&submit)) else {
        return;
    };
    let accepted = accepted.expect(202).json();
    let path = format!("/api/v1/jobs/{}", accepted["id"].as_str().expect("an id"));
    let show = load.daemon.request("GET", &path, b"");
    eventually("the job is completed", || {
        let job = tally.served(connection.exchange(&show))?.expect(200).json();
        let is_open = ["queued", "running"]
            .iter()
            .any(|open| job["status"] == *open);
        if is_open {
            return None;
        }
        assert_eq!(job["status"], "completed", "{job}");
        load.check(&job["result"], turn);
        Some(())
    });
    tally.note_right();
}

/// Pages are whole and in order, the newest first.
fn generations(load: &Load, connection: &mut Connection, _: u64, tally: &Tally) {
    let list = load
        .daemon
        .request("GET", "/api/v1/generations?limit=5", b"");
    let Some(page) = tally.served(connection.exchange(&list)) else {
        return;
    };
    let page = page.expect(200).json();
    let records = page["data"].as_array().expect("a list");
    let ids: Vec<&str> = records
        .iter()
        .filter_map(|one| one["id"].as_str())
        .collect();
    assert_eq!(ids.len(), 5, "{page}");
    assert!(ids.is_sorted_by(|one, next| one > next), "{page}");
    tally.note_right();
}

impl Load<'_> {
    /// Checks a result against the one that was computed before all outages.
    fn check(&self, result: &Value, turn: u64) {
        let expected = &self.expected[turn as usize % 2];
        for member in ["code", "text", "language", "model", "finish_reason"] {
            assert_eq!(result[member], expected[member], "{member}");
        }
    }
}

/// Returns the results of both languages, and leaves them in the cache, with enough records for a
/// page.
fn prepare(daemon: &Daemon) -> [Value; 2] {
    let expected = [0, 1].map(|turn| {
        daemon
            .generate(&body("kept", turn, "use"))
            .expect(200)
            .json()
    });
    assert_ne!(expected[0]["code"], expected[1]["code"]);
    for turn in 0..4 {
        daemon
            .generate(&body("a record", turn, "bypass"))
            .expect(200);
    }
    eventually("a page of records", || {
        let page = daemon.get("/api/v1/generations?limit=5").expect(200).json();
        (page["data"].as_array()?.len() == 5).then_some(())
    });
    expected
}

#[test]
fn every_response_is_right_during_outages() {
    let mut redis = Server::start();
    let postgres = Postgres::start();
    let daemon = options(&redis, &postgres)
        .set("cache.shared.timeout", "300ms")
        .set("store.connect_timeout", "2s")
        .set("store.statement_timeout", "500ms")
        .set("jobs.lease", "1s")
        .set_raw("rate_limit.enabled", "true")
        .set_raw("rate_limit.requests_per_minute", "60000000")
        .set_raw("rate_limit.burst", "1000000")
        .set_raw("rate_limit.unauthenticated_per_minute", "60000000")
        .start();
    let redis_is_up = |value: f64| {
        eventually("Redis is lost, or found", || {
            (daemon.metrics().sum("autoglmd_redis_up", &[]) == value).then_some(())
        });
    };
    redis_is_up(1.0);
    let load = Load {
        daemon: &daemon,
        expected: prepare(&daemon),
        is_over: AtomicBool::new(false),
        tallies: CLIENTS.map(|_| Tally::default()).into(),
        turns: Default::default(),
    };
    std::thread::scope(|scope| {
        let _end = EndOf(&load);
        for ((_, client, _), tally) in CLIENTS.iter().zip(&load.tallies) {
            scope.spawn(|| load.run(tally, *client));
        }
        load.wait_for("all work before the outages", Tally::right);

        redis.pause();
        redis_is_up(0.0);
        load.wait_for("all are served without Redis", Tally::right);
        redis.resume();
        redis_is_up(1.0);
        redis.kill();
        redis_is_up(0.0);
        load.wait_for("all are served without Redis", Tally::right);
        redis.restart();
        redis_is_up(1.0);
        load.wait_for("all are served with Redis", Tally::right);
        assert_eq!(load.refusals().1, 0, "these do not need Redis");

        for (begin, end) in POSTGRES_FAULTS {
            let before = load.refusals().0;
            begin(&postgres);
            load.wait_for("all get responses without PostgreSQL", Tally::all);
            assert!(load.refusals().0 > before, "nothing has needed PostgreSQL");
            end(&postgres);
            load.wait_for("all are served with PostgreSQL", Tally::right);
        }

        // Both at once.
        redis.kill();
        postgres.kill();
        load.wait_for("all get responses without both", Tally::all);
        postgres.restart();
        redis.restart();
        redis_is_up(1.0);
        load.wait_for("all are served with both", Tally::right);
        assert_eq!(load.refusals().1, 0, "these do not need PostgreSQL");
    });
    for ((name, ..), tally) in CLIENTS.iter().zip(&load.tallies) {
        println!(
            "{name}: {} right, {} refused",
            tally.right(),
            tally.refused()
        );
    }
}

type Act = fn(&Postgres);

const POSTGRES_FAULTS: [(Act, Act); 3] = [
    (Postgres::freeze, Postgres::thaw),
    (Postgres::kill, Postgres::restart),
    (Postgres::stop, Postgres::restart),
];

/// Sends a request that must wait, and checks that hits are complete before it.
fn pass(daemon: &Daemon, waiting: &[u8]) -> Connection {
    let mut waits = daemon.connect();
    let mut hits = daemon.connect();
    waits.send(waiting);
    for turn in 0..20 {
        let bytes = daemon.generate_request(&body("kept", turn, "use"));
        let answer = hits.exchange(&bytes).expect(200);
        assert_eq!(answer.field("x-cache"), Some("hit"), "{answer}");
    }
    let is_early = waits.readable_within(std::time::Duration::from_millis(1));
    assert!(!is_early, "the request did not wait for the frozen server");
    waits
}

/// The order of completion shows that the reactor does not wait, however fast the machine is.
#[test]
fn hits_pass_a_request_that_waits_for_redis() {
    let (redis, postgres) = (Server::start(), Postgres::shared());
    let options = options(&redis, &postgres).set("cache.shared.timeout", "5s");
    let daemon = options.start();
    eventually("Redis is there", || {
        (daemon.metrics().sum("autoglmd_redis_up", &[]) == 1.0).then_some(())
    });
    prepare(&daemon);
    redis.pause();
    let mut waits = pass(&daemon, &daemon.generate_request(&body("a miss", 0, "use")));
    redis.resume();
    let answer = waits.answer().expect(200);
    assert_eq!(answer.field("x-cache"), Some("miss"), "{answer}");
}

#[test]
fn hits_pass_a_request_that_waits_for_postgresql() {
    let (redis, postgres) = (Server::start(), Postgres::start());
    let options = options(&redis, &postgres).set("store.statement_timeout", "1m");
    let daemon = options.start();
    prepare(&daemon);
    let list = daemon.request("GET", "/api/v1/generations?limit=5", b"");
    postgres.freeze();
    let mut waits = pass(&daemon, &list);
    postgres.thaw();
    let page = waits.answer().expect(200).json();
    assert_eq!(page["data"].as_array().expect("a list").len(), 5);
}
