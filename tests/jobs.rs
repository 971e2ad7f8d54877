//! Durable jobs from the client's side: accepted, run, followed, cancelled, and alive after a
//! SIGKILL.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use autoglmd::jobs::{EventId, JobId, State};
use autoglmd::keys::Scopes;
use autoglmd::store::{DATABASE_FILE, Jobs as _, Keys as _, NewKey, SqliteStore};
use serde_json::{Value, json};

use common::http2::frame::{flag, headers};
use common::http2::hpack::fields;
use common::http2::{Peer, Target};
use common::{Answer, Connection, Daemon, Options, eventually, request};

fn shared() -> &'static Daemon {
    Daemon::shared(Options::echo)
}

fn submit(daemon: &Daemon, body: &Value) -> Answer {
    submit_with(daemon, &[], body)
}

fn submit_with(daemon: &Daemon, fields: &[(&str, &str)], body: &Value) -> Answer {
    let body = body.to_string();
    daemon.exchange(&daemon.request_with("POST", "/api/v1/jobs", fields, body.as_bytes()))
}

/// Submits a job, and returns its id.
fn accepted(daemon: &Daemon, body: &Value) -> String {
    let answer = submit(daemon, body).expect(202);
    let id = answer.json()["id"].as_str().expect("an id").to_owned();
    let location = format!("/api/v1/jobs/{id}");
    assert_eq!(answer.field("location"), Some(location.as_str()));
    id
}

fn show(daemon: &Daemon, id: &str) -> Value {
    daemon.get(&format!("/api/v1/jobs/{id}")).expect(200).json()
}

/// Waits until a job has this status.
fn reach(daemon: &Daemon, id: &str, status: &str) -> Value {
    let what = format!("{id} is {status}");
    eventually(&what, || {
        Some(show(daemon, id)).filter(|job| job["status"] == status)
    })
    .0
}

fn cancel(daemon: &Daemon, id: &str) -> Answer {
    daemon.exchange(&daemon.request("DELETE", &format!("/api/v1/jobs/{id}"), b""))
}

/// One event, with its id.
#[derive(Clone, Debug, PartialEq)]
struct Followed {
    id: String,
    name: String,
    data: Value,
}

/// Begins to follow a job from an event on.
fn follow(daemon: &Daemon, id: &str, after: Option<&str>) -> Connection {
    let fields: Vec<_> = after
        .map(|after| ("last-event-id", after))
        .into_iter()
        .collect();
    let path = format!("/api/v1/jobs/{id}/events");
    let mut connection = daemon.connect();
    connection.send(&daemon.request_with("GET", &path, &fields, b""));
    connection
}

/// Reads events until the stream ends.
fn rest(connection: &mut Connection) -> Vec<Followed> {
    let head = connection.head().expect("a response");
    assert_eq!(head.status, 200);
    assert_eq!(head.field("content-type"), Some("text/event-stream"));
    let body = connection.rest_of_body().expect("events");
    parse(&String::from_utf8(body).expect("text"))
}

fn parse(text: &str) -> Vec<Followed> {
    let blocks = text.split("\n\n").filter(|block| block.contains("data: "));
    let value = |block: &str, field: &str| {
        let mut lines = block.lines().filter_map(|line| line.strip_prefix(field));
        lines.next().unwrap_or_default().to_owned()
    };
    let event = |block: &str| Followed {
        id: value(block, "id: "),
        name: value(block, "event: "),
        data: serde_json::from_str(&value(block, "data: ")).expect("JSON"),
    };
    blocks.map(event).collect()
}

fn history(daemon: &Daemon, id: &str, after: Option<&str>) -> Vec<Followed> {
    rest(&mut follow(daemon, id, after))
}

fn names(events: &[Followed]) -> Vec<&str> {
    events.iter().map(|event| event.name.as_str()).collect()
}

// ---- the life of a job -----------------------------------------------------------------------

/// Mutations: `Accept` that replies before the commit's `finish` is not seen here, but by the loop
/// of kills below; a result without `extract`; an event without its id.
#[test]
fn a_job_runs_and_has_the_result_of_a_request() {
    let daemon = shared();
    let body = json!({"prompt": "greet", "language": "python"});
    let id = accepted(daemon, &body);
    let job = reach(daemon, &id, "completed");
    let direct = daemon.generate(&body).expect(200).json();
    for member in [
        "code",
        "language",
        "text",
        "model",
        "finish_reason",
        "usage",
    ] {
        assert_eq!(job["result"][member], direct[member], "{member}");
    }
    assert_eq!(job["attempts"], 1);
    let times = ["created_at", "started_at", "finished_at", "expires_at"];
    let times = times.map(|name| job[name].as_u64().expect(name));
    assert!(times.is_sorted(), "{times:?}");

    let events = history(daemon, &id, None);
    assert_eq!(names(&events), ["started", "delta", "done"]);
    assert_eq!(events[0].id, "1.0");
    let texts = events
        .iter()
        .filter_map(|event| event.data["text"].as_str());
    let texts: String = texts.take(1).collect();
    assert_eq!(
        texts.trim_end(),
        direct["code"].as_str().expect("code").trim_end()
    );
    assert_eq!(events[2].data, job["result"]);
    // From each event on. After the last one there is nothing to follow.
    for (index, event) in events.iter().enumerate().take(events.len() - 1) {
        assert_eq!(history(daemon, &id, Some(&event.id)), events[index + 1..]);
    }
    let listed = daemon
        .get("/api/v1/jobs?status=completed&limit=100")
        .expect(200);
    let listed = listed.json();
    let listed = listed["data"].as_array().expect("a list");
    assert!(listed.iter().any(|job| job["id"] == id.as_str()));
    // A job that has ended stays as it is.
    assert_eq!(
        cancel(daemon, &id).expect(200).json()["status"],
        "completed"
    );
}

/// A browser follows again whenever a stream ends, with the id of the last event: 204 ends that.
/// An id that the job never had is an error, over both protocols.
///
/// Mutations: `handle_batch` without 204; `events` without `is_checked`.
#[test]
fn a_follower_that_has_all_events_is_told_to_stop_and_one_with_a_foreign_id_that_it_errs() {
    let daemon = shared();
    let id = accepted(daemon, &json!({"prompt": "greet"}));
    reach(daemon, &id, "completed");
    let last = history(daemon, &id, None).pop().expect("its end").id;
    let authorization = daemon.authorization();
    let path = format!("/api/v1/jobs/{id}/events");
    let mut peer = Peer::open(&Target::of(daemon)).expect("HTTP/2");
    for (index, (after, status)) in [
        (last.as_str(), 204),
        ("9.999", 400),
        ("1.999", 400),
        ("2.0", 400),
        ("0.1", 400),
        ("7", 400),
        ("-1.0", 400),
        ("1.0, 1.1", 400),
    ]
    .into_iter()
    .enumerate()
    {
        let field = [("last-event-id", after)];
        let answer = daemon.exchange(&daemon.request_with("GET", &path, &field, b""));
        let stream = 2 * index as u32 + 1;
        let block = fields(&[
            (":method", "GET"),
            (":scheme", "http"),
            (":path", &path),
            (":authority", "localhost"),
            ("authorization", &authorization),
            ("last-event-id", after),
        ]);
        peer.send(headers(stream, &block, flag::END_STREAM));
        let over_http2 = peer.answer_of(stream, status).expect(after);
        let answer = answer.expect(status);
        assert_eq!(answer.body.is_empty(), status == 204, "{after}");
        assert_eq!(over_http2.body.is_empty(), status == 204, "{after}");
        if status == 400 {
            assert_eq!(answer.json()["error"]["param"], "last-event-id", "{answer}");
            let error: Value = serde_json::from_slice(&over_http2.body).expect("JSON");
            assert_eq!(error["error"]["code"], "invalid_parameter", "{error}");
        }
    }
    let twice = [("last-event-id", "1.0"), ("last-event-id", "1.0")];
    let twice = daemon.exchange(&daemon.request_with("GET", &path, &twice, b""));
    twice.expect_error(400, "invalid_parameter");
}

/// Mutation: `follow` that looks before it registers.
#[test]
fn followers_of_a_job_see_its_end_however_early_they_come() {
    let daemon = shared();
    for _ in 0..20 {
        let id = accepted(daemon, &json!({"prompt": "greet"}));
        let mut followers: Vec<_> = (0..4).map(|_| follow(daemon, &id, None)).collect();
        for follower in &mut followers {
            assert_eq!(names(&rest(follower)), ["started", "delta", "done"]);
        }
    }
}

#[test]
fn another_key_s_jobs_do_not_exist() {
    let daemon = shared();
    let id = accepted(daemon, &json!({"prompt": "greet"}));
    reach(daemon, &id, "completed");
    let path = daemon.state_folder().join(DATABASE_FILE);
    let mut store = SqliteStore::open_existing(&path).expect("the database");
    let new = NewKey {
        scopes: Scopes::ALL,
        ..NewKey::default()
    };
    let (_, secret) = store.create(&new, 1).expect("a key");
    let authorization = format!("Bearer {}", secret.reveal());
    let fields = [("authorization", authorization.as_str())];
    let ask = |method: &str, path: &str| daemon.exchange(&request(method, path, &fields, b""));
    eventually("the key is known", || {
        (ask("GET", "/api/v1/models").status() == 200).then_some(())
    });
    let one = format!("/api/v1/jobs/{id}");
    for (method, path) in [
        ("GET", one.clone()),
        ("DELETE", one.clone()),
        ("GET", format!("{one}/events")),
        (
            "GET",
            "/api/v1/jobs/job_00000000-0000-7000-8000-000000000000".to_owned(),
        ),
        ("GET", "/api/v1/jobs/1".to_owned()),
    ] {
        ask(method, &path).expect_error(404, "not_found");
    }
    assert_eq!(
        ask("GET", "/api/v1/jobs").expect(200).json()["data"],
        json!([])
    );
    assert_eq!(show(daemon, &id)["status"], "completed");
}

#[test]
fn wrong_requests_are_refused_with_their_reason() {
    let daemon = shared();
    let get = |path: &str| daemon.get(path);
    for (path, param) in [
        ("/api/v1/jobs?status=done", "status"),
        ("/api/v1/jobs?cursor=7", "cursor"),
        ("/api/v1/jobs?limit=0", "limit"),
        ("/api/v1/jobs?limit=101", "limit"),
    ] {
        let answer = get(path).expect_error(400, "invalid_parameter");
        assert_eq!(answer.json()["error"]["param"], param);
    }
    let id = accepted(daemon, &json!({"prompt": "greet"}));
    let events = format!("/api/v1/jobs/{id}/events");
    for (method, path, allow) in [
        ("PUT", "/api/v1/jobs", "GET, HEAD, POST, OPTIONS"),
        (
            "POST",
            &format!("/api/v1/jobs/{id}"),
            "GET, HEAD, DELETE, OPTIONS",
        ),
        ("DELETE", &events, "GET, OPTIONS"),
    ] {
        let answer = daemon.exchange(&daemon.request(method, path, b""));
        let answer = answer.expect_error(405, "method_not_allowed");
        assert_eq!(answer.field("allow"), Some(allow));
    }
    let long = "x".repeat(256);
    for (body, fields, status, code) in [
        (json!({}), &[][..], 400, "invalid_parameter"),
        (
            json!({"prompt": "x", "timeout": 0}),
            &[],
            400,
            "invalid_parameter",
        ),
        (
            json!({"prompt": "x", "model": "other"}),
            &[],
            404,
            "model_not_found",
        ),
        (
            json!({"prompt": "x"}),
            &[("accept", "text/event-stream")],
            406,
            "not_acceptable",
        ),
        (
            json!({"prompt": "x"}),
            &[("idempotency-key", &long)],
            400,
            "invalid_parameter",
        ),
    ] {
        submit_with(daemon, fields, &body).expect_error(status, code);
    }
}

/// A long body takes the way over a worker.
#[test]
fn a_long_body_becomes_a_job_too() {
    let daemon = shared();
    let text = "x = 1\n".repeat(20_000);
    let id = accepted(daemon, &json!({"prompt": text}));
    reach(daemon, &id, "completed");
}

#[test]
fn a_retry_gets_the_first_job_and_another_body_a_conflict() {
    let daemon = shared();
    let retry = |prompt: &str| {
        let fields = [("idempotency-key", "order-66")];
        submit_with(
            daemon,
            &fields,
            &json!({"prompt": prompt, "temperature": 0.7}),
        )
    };
    let first = retry("greet").expect(202).json();
    let second = retry("greet").expect(202).json();
    assert_eq!(first["id"], second["id"]);
    retry("part").expect_error(409, "conflict");
}

/// Jobs of a key without tokens wait, so they can be counted.
#[test]
fn bounds_are_named_and_places_come_back() {
    let daemon = Options::echo()
        .set_raw("rate_limit.enabled", "true")
        .set_raw("rate_limit.tokens_per_minute", "1")
        .set_raw("rate_limit.requests_per_minute", "1000000")
        .set_raw("rate_limit.burst", "1000000")
        .set_raw("jobs.max_queued_per_key", "2")
        .set("jobs.max_size", "1MiB")
        .start();
    let first = accepted(&daemon, &json!({"prompt": "greet"}));
    reach(&daemon, &first, "completed");
    let waiting = accepted(&daemon, &json!({"prompt": "greet"}));
    accepted(&daemon, &json!({"prompt": "greet"}));
    let refused = submit(&daemon, &json!({"prompt": "greet"}));
    let refused = refused.expect_error(429, "too_many_concurrent");
    assert!(refused.text().contains("jobs.max_queued_per_key"));
    let events = std::thread::scope(|scope| {
        let follower = scope.spawn(|| history(&daemon, &waiting, None));
        let cancelled = cancel(&daemon, &waiting).expect(200).json();
        assert_eq!(cancelled["status"], "cancelled");
        follower.join().expect("events")
    });
    assert_eq!(names(&events).last(), Some(&"cancelled"));
    accepted(&daemon, &json!({"prompt": "greet"}));
    let long = json!({"prompt": "x".repeat(300_000)});
    // A job that was taken goes back when its key has no tokens left.
    let (queued, _) = eventually("a job waits", || {
        let list = daemon.get("/api/v1/jobs?status=queued").expect(200).json();
        list["data"][0]["id"].as_str().map(str::to_owned)
    });
    cancel(&daemon, &queued).expect(200);
    let refused = submit(&daemon, &long).expect_error(429, "too_many_concurrent");
    assert!(refused.text().contains("jobs.max_size"));
    let metrics = daemon.metrics();
    assert_eq!(
        metrics.sum("autoglmd_job_attempts_total", &[("outcome", "completed")]),
        1.0
    );
}

#[test]
fn a_job_that_waits_for_too_long_expires_and_an_old_one_is_deleted() {
    let daemon = Options::echo()
        .set_raw("rate_limit.enabled", "true")
        .set_raw("rate_limit.tokens_per_minute", "1")
        .set_raw("rate_limit.requests_per_minute", "1000000")
        .set_raw("rate_limit.burst", "1000000")
        .set("jobs.max_wait", "1s")
        .set("jobs.keep", "3s")
        .start();
    let first = accepted(&daemon, &json!({"prompt": "greet"}));
    reach(&daemon, &first, "completed");
    let waiting = accepted(&daemon, &json!({"prompt": "greet"}));
    let events = history(&daemon, &waiting, None);
    assert_eq!(names(&events).last(), Some(&"expired"));
    eventually("the first job is deleted", || {
        let answer = daemon.get(&format!("/api/v1/jobs/{first}"));
        (answer.status() == 404).then_some(())
    });
}

// ---- ends of the daemon ----------------------------------------------------------------------

/// Checks that each accepted job is completed in the record, once. `path` is the database of a
/// daemon that has ended.
fn check_record(path: &std::path::Path, ids: &[String]) {
    let mut store = SqliteStore::open_existing(path).expect("the database");
    for id in ids {
        let id = JobId::parse(id).expect("an id");
        let job = store.job(id).expect("the store works");
        let job = job.unwrap_or_else(|| panic!("{id} is lost"));
        assert_eq!(job.life.state, State::Completed, "{id}");
        let events = store.job_events(id, EventId::BEGINNING, usize::MAX);
        let events = events.expect("the store works");
        let ends = events.iter().filter(|event| event.kind.is_last()).count();
        assert_eq!(ends, 1, "{id}: {events:?}");
        assert!(
            events.is_sorted_by(|one, next| one.id < next.id),
            "{events:?}"
        );
    }
}

/// Rounds by `AUTOGLMD_JOB_KILLS`. Mutations: `Accept` that replies from `run`, before the commit; a
/// claim without a lease that runs out; `write` without its check of the attempt.
#[test]
fn no_accepted_job_is_lost_or_completed_twice_by_kills_at_random_moments() {
    let rounds = std::env::var("AUTOGLMD_JOB_KILLS").map_or(20, |text| {
        text.parse().expect("AUTOGLMD_JOB_KILLS is a number")
    });
    let options = || Options::echo().set("jobs.lease", "1s");
    let mut daemon = options().start();
    let folder = daemon.folder();
    let mut ids = Vec::new();
    for round in 0..rounds {
        let body = json!({"prompt": format!("greet {round}")}).to_string();
        let bytes = daemon.request("POST", "/api/v1/jobs", body.as_bytes());
        // The kill follows a random response, while other clients wait for theirs.
        let left = AtomicI64::new((getrandom::u64().expect("random numbers") % 40) as i64);
        let kill = || {
            if left.fetch_sub(1, Ordering::Relaxed) == 0 {
                daemon.process().signal(libc::SIGKILL);
            }
        };
        let before = ids.len();
        // All are connected before the first response, which may bring the kill.
        let connections = [0; 4].map(|_| daemon.connect());
        std::thread::scope(|scope| {
            let (bytes, kill) = (&bytes, &kill);
            let clients = connections
                .map(|connection| scope.spawn(move || until_it_ends(connection, bytes, kill)));
            for client in clients {
                ids.extend(client.join().expect("a client"));
            }
        });
        daemon.wait();
        drop(daemon);
        daemon = options().in_folder(Arc::clone(&folder)).start();
        // A job that is lost three times is given up.
        for id in &ids[before..] {
            reach(&daemon, id, "completed");
        }
    }
    println!("{} jobs in {rounds} rounds", ids.len());
    assert!(!ids.is_empty(), "no round has accepted a job");
    let path = daemon.state_folder().join(DATABASE_FILE);
    daemon.kill();
    check_record(&path, &ids);
}

/// Submits jobs until the daemon is killed, and returns the ids of those that it has accepted.
fn until_it_ends(mut connection: Connection, bytes: &[u8], after_each: impl Fn()) -> Vec<String> {
    let mut ids = Vec::new();
    while connection.try_send(bytes).is_ok() {
        match connection.try_answer() {
            Ok(answer) if answer.status() == 202 => {
                ids.push(answer.json()["id"].as_str().expect("an id").to_owned());
            }
            _ => break,
        }
        after_each();
    }
    ids
}

/// A daemon with a real model, and the body of a job that does not end by itself.
#[cfg(feature = "llama")]
fn slow() -> (Options, Value) {
    let options = Options::llama()
        .set_raw("engine.parallel", "2")
        .set("jobs.lease", "1s")
        .set("server.drain_timeout", "1s");
    (options, common::model::endless("count to a thousand"))
}

/// Mutations: `handle_cancelled` that does not stop the attempt; `DELETE` that only sets a state.
#[cfg(feature = "llama")]
#[test]
fn a_cancelled_job_stops_the_engine_and_its_followers_learn_it() {
    let (options, body) = slow();
    let daemon = options.start();
    let id = accepted(&daemon, &body);
    reach(&daemon, &id, "running");
    let mut follower = follow(&daemon, &id, None);
    assert_eq!(
        cancel(&daemon, &id).expect(200).json()["status"],
        "cancelled"
    );
    let events = rest(&mut follower);
    assert_eq!(names(&events).last(), Some(&"cancelled"));
    eventually("no sequence runs", || {
        let running = daemon.metrics().value("autoglmd_engine_sequences_running");
        (running == 0.0).then_some(())
    });
    assert_eq!(show(&daemon, &id)["status"], "cancelled");
}

/// Mutation: `drain` that leaves the lease to run out.
#[cfg(feature = "llama")]
#[test]
fn a_drain_parks_a_job_and_the_next_process_runs_it_again() {
    let (options, body) = slow();
    let mut daemon = options.clone().set("jobs.lease", "1h").start();
    let folder = daemon.folder();
    let id = accepted(&daemon, &body);
    let mut follower = follow(&daemon, &id, None);
    let head = follower.head().expect("a response");
    assert_eq!(head.status, 200);
    let mut seen = String::new();
    while !seen.contains("event: started") {
        let piece = follower.piece().expect("events").expect("more");
        seen.push_str(std::str::from_utf8(&piece).expect("text"));
    }
    daemon.process().signal(libc::SIGTERM);
    let rest_of_first = follower.rest_of_body().expect("events");
    seen.push_str(std::str::from_utf8(&rest_of_first).expect("text"));
    let seen = parse(&seen);
    let end = seen.last().expect("events");
    assert_eq!((end.id.as_str(), end.name.as_str()), ("", "error"));
    assert_eq!(end.data["error"]["code"], "draining");
    assert!(daemon.wait().success());
    drop(daemon);

    let daemon = options.in_folder(folder).start();
    let last = seen.iter().rev().find(|event| !event.id.is_empty());
    let last = last.expect("an id").id.clone();
    let mut resumed = follow(&daemon, &id, Some(&last));
    assert_eq!(resumed.head().expect("a response").status, 200);
    let mut text = String::new();
    while !text.contains("event: reset") {
        let piece = resumed.piece().expect("events").expect("more");
        text.push_str(std::str::from_utf8(&piece).expect("text"));
    }
    let events = parse(&text);
    assert!(
        events.iter().all(|event| event.id != last),
        "nothing comes twice"
    );
    cancel(&daemon, &id).expect(200);
    assert_eq!(show(&daemon, &id)["attempts"], 2);
}

/// A SIGKILL leaves the lease, which runs out.
#[cfg(feature = "llama")]
#[test]
fn a_running_job_runs_again_after_a_kill_with_the_same_output() {
    let (options, _) = slow();
    let body = json!({"prompt": "write a function", "language": "python", "max_tokens": 60,
        "temperature": 1.2, "cache": "bypass"});
    let mut daemon = options.clone().start();
    let folder = daemon.folder();
    let id = accepted(&daemon, &body);
    reach(&daemon, &id, "running");
    daemon.kill();
    drop(daemon);
    let daemon = options.in_folder(folder).start();
    let job = reach(&daemon, &id, "completed");
    let attempts = job["attempts"].as_u64().expect("a number");
    assert!(attempts >= 2, "{job}");
    let events = history(&daemon, &id, None);
    let code: String = events
        .iter()
        .skip_while(|event| event.id != format!("{attempts}.0"))
        .filter(|event| event.name == "delta")
        .filter_map(|event| event.data["text"].as_str())
        .collect();
    assert_eq!(
        code.trim_end(),
        job["result"]["code"].as_str().expect("code").trim_end()
    );
    assert_eq!(
        names(&events)
            .iter()
            .filter(|name| **name == "done")
            .count(),
        1
    );
    assert!(
        Duration::from_millis(job["result"]["latency_ms"].as_u64().expect("a number"))
            > Duration::ZERO
    );
}
