//! A key is erased while everything of it is under way: jobs that run and wait, followers on two
//! daemons, a stream, entries of write-behind, counts and results in Redis, a computed prefix.
//!
//! Mutations that the test catches:
//! * `Look` that leaves out jobs that are gone: the follower of the other daemon waits for ever
//! * `handle_saved` that lets a fenced attempt go on: the engine computes for a job that is gone
//! * `erase_shared` without the counts of limits
//! * `finish` of the cache that keeps a result that was asked for before the erasure

#![cfg(feature = "llama")]

mod common;

use std::path::PathBuf;

use autoglmd::keys::tenant_of;
use serde_json::{Value, json};

use common::redis::Server;
use common::{Connection, Daemon, Options, eventually, files_with, model, request};

const MARKER: &str = "albatross-7f3a";

/// One of them runs at a time.
const JOBS: usize = 4;

/// A key, and requests with it.
struct Gone {
    id: String,
    secret: String,
}

impl Gone {
    fn create(daemon: &Daemon) -> Gone {
        // Each request is remembered in Redis for half a second.
        let made = daemon.run(&["key", "create", "--name", "gone", "--rate", "120"]);
        let secret = String::from_utf8(made.stdout).expect("a key");
        let said = String::from_utf8(made.stderr).expect("a message");
        let (id, _) = said.split_once(':').expect("the id is first");
        Gone {
            id: id.to_owned(),
            secret: secret.trim().to_owned(),
        }
    }

    fn request(&self, method: &str, path: &str, body: Option<&Value>) -> Vec<u8> {
        let credentials = format!("Bearer {}", self.secret);
        let fields = [
            ("authorization", credentials.as_str()),
            ("content-type", "application/json"),
        ];
        let body = body.map(Value::to_string).unwrap_or_default();
        request(method, path, &fields, body.as_bytes())
    }

    fn submit(&self, daemon: &Daemon, number: usize) -> String {
        // It runs through both pauses of the command, however fast the machine is.
        let body = model::endless(&format!("{MARKER} job {number}, count to ten thousand"));
        let answer = daemon.exchange(&self.request("POST", "/api/v1/jobs", Some(&body)));
        let job = answer.expect(202).json();
        job["id"].as_str().expect("an id").to_owned()
    }

    fn follow(&self, daemon: &Daemon, job: &str) -> Connection {
        let mut connection = daemon.connect();
        let path = format!("/api/v1/jobs/{job}/events");
        connection.send(&self.request("GET", &path, None));
        assert_eq!(connection.head().expect("a response").status, 200);
        connection
    }
}

fn keys_in(server: &Server) -> Vec<String> {
    let keys = redis::cmd("KEYS").arg("*").query(&mut server.connect());
    keys.expect("the keys")
}

/// Entries of all levels but the engine's own, which has the daemon's words.
fn entries(daemon: &Daemon) -> u64 {
    let cache = daemon.get("/api/v1/admin/cache").expect(200).json();
    let levels = cache["levels"].as_array().expect("a list").iter();
    let counted = levels.filter(|level| level["level"] != "prefix");
    counted
        .map(|level| level["entries"].as_u64().expect("a count"))
        .sum()
}

fn options(options: Options, server: &Server) -> Options {
    options
        .with_cache()
        .set_raw("store.content", "true")
        .set_raw("cache.persist", "true")
        .set_raw("cache.preload", "false")
        .set("cache.policy", "write-behind")
        .set("cache.prefixes", "64MiB")
        .set("cache.shared.url", &server.url())
        .set("cache.shared.timeout", "5s")
        .set_raw("rate_limit.enabled", "true")
        .set_raw("rate_limit.requests_per_minute", "6000000")
        .set_raw("rate_limit.burst", "1000000")
        .set_raw("rate_limit.unauthenticated_per_minute", "6000000")
}

fn started(options: Options) -> Daemon {
    let daemon = options.start();
    for gauge in ["autoglmd_redis_up", "autoglmd_bus_up"] {
        eventually(gauge, || {
            (daemon.metrics().value(gauge) == 1.0).then_some(())
        });
    }
    daemon
}

/// Returns the names of a stream's events, and the code of an error that ends it.
fn rest(connection: &mut Connection) -> (Vec<String>, Option<String>) {
    let events = connection.events().all();
    let names = events.iter().map(|event| event.name.clone()).collect();
    let last = events.last().filter(|event| event.name == "error");
    let code = last.map(|event| event.json()["error"]["code"].clone());
    (
        names,
        code.and_then(|code| code.as_str().map(str::to_owned)),
    )
}

#[test]
fn nothing_of_a_key_is_left_that_is_erased_in_the_middle_of_its_work() {
    let server = Server::start();
    let first = options(Options::llama(), &server)
        .set_raw("engine.parallel", "2")
        .set_raw("engine.context", "8192")
        .set_raw("jobs.concurrency", "1");
    let mut first = started(first);
    let second = options(Options::echo(), &server).set_raw("jobs.enabled", "false");
    let mut second = started(second.in_folder(first.folder()));
    let gone = Gone::create(&first);
    let own = json!({"prompt": "a", "max_tokens": 4, "temperature": 0});
    for daemon in [&first, &second] {
        eventually("the key works", || {
            let models = gone.request("GET", "/api/v1/models", None);
            (daemon.exchange(&models).status() == 200).then_some(())
        });
        daemon.generate(&own).expect(200);
    }

    // A prompt that is long enough for a prefix, and results in all places.
    let long = json!({"prompt": format!("{MARKER} {}", "words ".repeat(400)), "max_tokens": 1,
        "temperature": 0});
    let generate = |body: &Value| gone.request("POST", "/api/v1/generate", Some(body));
    first.exchange(&generate(&long)).expect(200);
    let jobs: Vec<String> = (0..JOBS)
        .map(|number| gone.submit(&first, number))
        .collect();
    eventually("a job runs", || {
        let running = first.metrics().value("autoglmd_engine_sequences_running");
        (running == 1.0).then_some(())
    });
    let mut followers: Vec<Connection> = [&first, &second]
        .iter()
        .flat_map(|daemon| jobs.iter().map(|job| gone.follow(daemon, job)))
        .collect();
    let mut stream = first.connect();
    let body = json!({"prompt": format!("{MARKER} stream"), "max_tokens": 300, "stream": true,
        "temperature": 0, "stop": []});
    stream.send(&generate(&body));
    assert_eq!(stream.head().expect("a response").status, 200);
    let tenant = format!(":{:016x}:", tenant_of(&gone.id));
    let is_its_own = |key: &String| key.contains(&tenant) || key.contains(&gone.id);
    for number in 0..20 {
        let body = json!({"prompt": format!("{MARKER} {number}")});
        second.exchange(&generate(&body)).expect(200);
    }
    for part in [&tenant, &gone.id] {
        eventually("Redis knows the key", || {
            keys_in(&server)
                .iter()
                .any(|key| key.contains(part))
                .then_some(())
        });
    }

    let config = first.configuration_file();
    let config = config.to_str().expect("a path");
    let erased = first.run(&["key", "erase", "gone", "--yes", "--config", config]);
    let message = String::from_utf8_lossy(&erased.stderr);
    assert_eq!(erased.status.code(), Some(0), "{message}");
    let left: Vec<String> = keys_in(&server).into_iter().filter(is_its_own).collect();
    assert!(left.iter().all(|key| key.ends_with(":tokens")), "{left:?}");

    // Each follower learns that its job is gone, unless it had ended before.
    let ends: Vec<_> = followers.iter_mut().map(rest).collect();
    let was_gone = |end: &&(Vec<String>, Option<String>)| end.1.as_deref() == Some("not_found");
    for end in &ends {
        assert!(
            was_gone(&end) || end.0.iter().any(|name| name == "done"),
            "{end:?}"
        );
    }
    let cut_off: Vec<_> = ends.iter().filter(was_gone).collect();
    let has_begun = |end: &&&(Vec<String>, Option<String>)| end.0[0] == "started";
    let begun = cut_off.iter().filter(has_begun).count();
    assert!(begun >= 2 && cut_off.len() >= 4, "{ends:?}");
    // The stream had begun before, and ends as it would have.
    let (names, _) = rest(&mut stream);
    assert_eq!(names.last().map(String::as_str), Some("done"));
    eventually("the engine rests", || {
        let running = first.metrics().value("autoglmd_engine_sequences_running");
        (running == 0.0).then_some(())
    });

    for daemon in [&first, &second] {
        let models = gone.request("GET", "/api/v1/models", None);
        daemon.exchange(&models).expect_error(401, "invalid_key");
        // Each has the other key's result at both levels.
        eventually("its memory has forgotten the key", || {
            (entries(daemon) == 2).then_some(())
        });
    }
    eventually("Redis has forgotten the key", || {
        (!keys_in(&server).iter().any(is_its_own)).then_some(())
    });
    // Nothing comes with the end of the daemons either.
    for daemon in [&mut first, &mut second] {
        daemon.process().signal(libc::SIGTERM);
        assert!(daemon.wait().success());
    }
    let digest = blake3::hash(gone.secret.as_bytes());
    let texts: [&[u8]; 3] = [MARKER.as_bytes(), gone.id.as_bytes(), digest.as_bytes()];
    let left = files_with(&first.state_folder(), &texts);
    assert!(left.is_empty(), "{left:?}");
    let prefixes = std::fs::read_dir(first.state_folder().join("prefixes")).expect("a folder");
    let names = prefixes.map(|entry| entry.expect("an entry").path());
    // The mark of the erasure stays, for a writer that is late.
    let is_prefix = |path: &PathBuf| path.extension().is_some_and(|end| end == "kv");
    let files: Vec<PathBuf> = names.filter(is_prefix).collect();
    assert!(files.is_empty(), "{files:?}");
    assert!(!keys_in(&server).iter().any(is_its_own));
}
