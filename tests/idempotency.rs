//! `Idempotency-Key` on a generation: a retry joins the running one or gets its result, in any
//! representation, also after its client has left and the daemon was killed.

mod common;

use std::sync::Mutex;

use autoglmd::grpc::messages::{Message, autoglm};
use autoglmd::keys::Scopes;
use autoglmd::store::{DATABASE_FILE, Keys as _, NewKey, SqliteStore};
use serde_json::{Value, json};

use common::{Answer, Connection, Daemon, Options, eventually, request};

const PATH: &str = "/api/v1/generate";

fn shared() -> &'static Daemon {
    Daemon::shared(Options::echo)
}

fn body() -> Value {
    json!({"prompt": "greet", "language": "python", "temperature": 1.5})
}

fn send(daemon: &Daemon, key: &str, fields: &[(&str, &str)], body: &[u8]) -> Connection {
    let mut all = vec![("idempotency-key", key)];
    all.extend_from_slice(fields);
    let mut connection = daemon.connect();
    connection.send(&daemon.request_with("POST", PATH, &all, body));
    connection
}

fn ask(daemon: &Daemon, key: &str, body: &Value) -> Answer {
    send(daemon, key, &[], body.to_string().as_bytes()).answer()
}

/// Returns the jobs of the daemon's key, the newest first.
fn jobs(daemon: &Daemon) -> Vec<Value> {
    let page = daemon.get("/api/v1/jobs?limit=100").expect(200).json();
    page["data"].as_array().expect("a list").clone()
}

/// Reads a stream to its end: the pieces of the program, and the last event.
fn stream(connection: &mut Connection) -> (String, Value) {
    assert_eq!(connection.head().expect("a response").status, 200);
    let (mut code, mut last) = (String::new(), Value::Null);
    for event in connection.events().all() {
        match event.name.as_str() {
            "delta" => code.push_str(event.json()["text"].as_str().expect("text")),
            "done" | "error" => last = event.json(),
            _ => {}
        }
    }
    (code, last)
}

/// Mutations: `begin` that forgets the key; `with_object` in another representation than the
/// retry's; `digest` with the time of a live generation.
#[test]
fn a_retry_gets_the_stored_response_in_the_form_that_it_asks_for() {
    let daemon = shared();
    let first = ask(daemon, "forms", &body()).expect(200).json();
    assert!(first["id"].as_str().expect("an id").starts_with("gen_"));
    assert_eq!(ask(daemon, "forms", &body()).expect(200).json(), first);
    // Written in another order, and with another deadline.
    let text = r#"{"temperature":1.5,"timeout":5000, "language":"py", "prompt":"greet"}"#;
    let again = send(daemon, "forms", &[], text.as_bytes()).answer();
    assert_eq!(again.expect(200).json(), first);
    let short = send_to(daemon, "/api/v1/generate?fields=id", "forms", &body());
    assert_eq!(short.expect(200).json(), json!({"id": first["id"]}));

    let fields = [("accept", "text/event-stream")];
    let sent = body().to_string();
    let (code, done) = stream(&mut send(daemon, "forms", &fields, sent.as_bytes()));
    assert_eq!(
        (code.as_str(), &done),
        (first["code"].as_str().expect("code"), &first)
    );

    let message = autoglm::GenerateRequest {
        prompt: "greet".to_owned(),
        language: "python".to_owned(),
        temperature: 1.5,
        ..autoglm::GenerateRequest::default()
    };
    let fields = [("content-type", "application/x-protobuf")];
    let answer = send(daemon, "forms", &fields, &message.encode_to_vec()).answer();
    let answer = answer.expect(200);
    let response = autoglm::GenerateResponse::decode(&*answer.body).expect("a message");
    assert_eq!(
        (first["id"].as_str(), first["code"].as_str()),
        (Some(&*response.id), Some(&*response.code))
    );

    // Without the key it is another generation.
    let other = daemon.generate(&body()).expect(200).json();
    assert_ne!(other["id"], first["id"]);
}

fn send_to(daemon: &Daemon, path: &str, key: &str, body: &Value) -> Answer {
    let fields = [("idempotency-key", key)];
    let body = body.to_string();
    daemon.exchange(&daemon.request_with("POST", path, &fields, body.as_bytes()))
}

/// Mutation: `is_live` that is not part of the digest.
#[test]
fn another_request_with_the_same_key_is_a_conflict() {
    let daemon = shared();
    ask(daemon, "taken", &body()).expect(200);
    let mut other = body();
    other["prompt"] = json!("something else");
    let refused = ask(daemon, "taken", &other);
    assert_eq!(refused.json()["error"]["param"], "idempotency-key");
    refused.expect_error(409, "conflict");
    // A durable job is another request than a generation.
    send_to(daemon, "/api/v1/jobs", "taken", &body()).expect_error(409, "conflict");
    send_to(
        daemon,
        "/api/v1/jobs",
        "of a job".replace(' ', "-").as_str(),
        &body(),
    )
    .expect(202);
    ask(daemon, "of-a-job", &body()).expect_error(409, "conflict");
}

/// Mutations: `idempotency_key` without its check; `has_key` that overlooks a binary key.
#[test]
fn a_malformed_key_is_refused() {
    let daemon = shared();
    let long = "x".repeat(256);
    for key in ["", "two words", &long, "caf\u{e9}"] {
        let refused = ask(daemon, key, &body());
        assert_eq!(refused.json()["error"]["param"], "idempotency-key", "{key}");
        refused.expect_error(400, "invalid_parameter");
    }
    let twice = send(daemon, "first", &[("idempotency-key", "second")], b"{}").answer();
    twice.expect_error(400, "invalid_parameter");
    ask(daemon, &long[1..], &body()).expect(200);
}

/// Mutation: `remembered_job` that ignores the API key.
#[test]
fn keys_of_other_clients_are_other_keys() {
    let daemon = shared();
    let first = ask(daemon, "mine", &body()).expect(200).json();
    let path = daemon.state_folder().join(DATABASE_FILE);
    let mut store = SqliteStore::open_existing(&path).expect("the database");
    let new = NewKey {
        scopes: Scopes::ALL,
        ..NewKey::default()
    };
    let (_, secret) = store.create(&new, 1).expect("a key");
    let authorization = format!("Bearer {}", secret.reveal());
    let fields = [
        ("authorization", authorization.as_str()),
        ("content-type", "application/json"),
        ("idempotency-key", "mine"),
    ];
    let mut other = body();
    other["prompt"] = json!("another client's");
    let bytes = request("POST", PATH, &fields, other.to_string().as_bytes());
    let second = eventually("the key is known", || {
        Some(daemon.exchange(&bytes)).filter(|answer| answer.status() == 200)
    });
    assert_ne!(second.0.json()["id"], first["id"]);
}

/// Mutation: `accept` that does not look for a remembered job.
#[test]
fn five_hundred_equal_requests_are_one_generation() {
    let daemon = Daemon::echo();
    let ids = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| {
                for _ in 0..25 {
                    // Of all that wait for one job at once, 16 may: the others come again.
                    let (answer, _) = eventually("a response", || {
                        let answer = ask(&daemon, "storm", &body());
                        match answer.status() {
                            429 => None,
                            _ => Some(answer),
                        }
                    });
                    ids.lock()
                        .expect("no panic")
                        .push(answer.expect(200).json());
                }
            });
        }
    });
    let ids = ids.into_inner().expect("no panic");
    assert_eq!(ids.len(), 500);
    assert!(ids.iter().all(|response| *response == ids[0]));
    assert_eq!(jobs(&daemon).len(), 1);
}

#[test]
fn a_daemon_that_keeps_no_jobs_refuses_the_key() {
    let daemon = Options::echo().set_raw("jobs.enabled", "false").start();
    ask(&daemon, "any", &body()).expect_error(501, "not_implemented");
    daemon.generate(&body()).expect(200);
}

#[cfg(feature = "llama")]
mod with_a_model {
    use super::*;

    fn options() -> Options {
        Options::llama().set("jobs.lease", "1s")
    }

    fn long() -> Value {
        json!({"prompt": "write a long program", "language": "python", "max_tokens": 200,
            "temperature": 2, "seed": 1, "cache": "bypass", "timeout": 120_000})
    }

    fn running(daemon: &Daemon) -> Value {
        let one = || {
            jobs(daemon)
                .into_iter()
                .find(|job| job["status"] == "running")
        };
        eventually("the generation runs", one).0
    }

    /// Mutations: `abandon` that cancels the job; `send_code` that sends what was sent.
    #[test]
    fn a_client_leaves_and_its_retries_join_the_running_generation() {
        let daemon = options().start();
        let bytes = long().to_string();
        let first = send(&daemon, "joined", &[], bytes.as_bytes());
        let job = running(&daemon);
        drop(first);
        let fields = [("accept", "text/event-stream")];
        let mut streamed = send(&daemon, "joined", &fields, bytes.as_bytes());
        let mut whole = send(&daemon, "joined", &[], bytes.as_bytes());
        let (code, done) = stream(&mut streamed);
        let whole = whole.answer().expect(200).json();
        assert_eq!(done, whole);
        assert_eq!(code, whole["code"].as_str().expect("code"));
        assert_eq!(ask(&daemon, "joined", &long()).expect(200).json(), whole);
        let all = jobs(&daemon);
        assert_eq!((all.len(), &all[0]["id"]), (1, &job["id"]));
        assert_eq!(all[0]["attempts"], 1);
    }

    /// Mutation: `Accept::note` that calls no job.
    #[test]
    fn a_generation_does_not_wait_for_the_places_of_other_jobs() {
        let daemon = options().set_raw("jobs.concurrency", "1").start();
        let bytes = common::model::endless("write a long program").to_string();
        let accept = || {
            let request = daemon.request("POST", "/api/v1/jobs", bytes.as_bytes());
            daemon.exchange(&request).expect(202).json()
        };
        let first = accept();
        assert_eq!(running(&daemon)["id"], first["id"]);
        let later = accept();
        let short = json!({"prompt": "greet", "max_tokens": 5, "temperature": 1.5});
        ask(&daemon, "beside", &short).expect(200);
        let state = |id: &Value| {
            let all = jobs(&daemon);
            let job = all.into_iter().find(|job| job["id"] == *id);
            job.expect("it is listed")["status"].clone()
        };
        assert_eq!(state(&later["id"]), "queued");
        assert_eq!(state(&first["id"]), "running");
    }

    /// Mutation: a lease that never runs out.
    #[test]
    fn a_generation_that_was_killed_runs_again_and_a_finished_one_is_kept() {
        let mut daemon = options().start();
        let folder = daemon.folder();
        let short = json!({"prompt": "greet", "max_tokens": 5, "temperature": 1.5});
        let kept = ask(&daemon, "finished", &short).expect(200).json();
        let lost = send(&daemon, "running", &[], long().to_string().as_bytes());
        running(&daemon);
        daemon.kill();
        drop((daemon, lost));
        let daemon = options().in_folder(folder).start();
        assert_eq!(ask(&daemon, "finished", &short).expect(200).json(), kept);
        let fields = [("accept", "text/event-stream")];
        let bytes = long().to_string();
        let (code, done) = stream(&mut send(&daemon, "running", &fields, bytes.as_bytes()));
        assert_eq!(code, done["code"].as_str().expect("code"));
        assert_eq!(ask(&daemon, "running", &long()).expect(200).json(), done);
        let all = jobs(&daemon);
        assert_eq!(all.len(), 2);
        assert!(
            all[0]["attempts"].as_u64().expect("a number") >= 2,
            "{all:?}"
        );
    }

    /// Mutation: `error_of` that is always `internal`.
    #[test]
    fn a_refusal_is_kept_like_a_result() {
        let daemon = options().start();
        let body = json!({"prompt": "word ".repeat(20_000)});
        for _ in 0..2 {
            let refused = ask(&daemon, "too-long", &body);
            refused.expect_error(400, "context_length_exceeded");
        }
        assert_eq!(jobs(&daemon).len(), 1);
    }

    /// A job that was cancelled has no result to repeat.
    ///
    /// Mutation: `unfinished` that waits on.
    #[test]
    fn a_generation_may_be_cancelled_as_a_job() {
        let daemon = options().start();
        let mut waiting = send(&daemon, "ended", &[], long().to_string().as_bytes());
        let job = running(&daemon);
        let path = format!("/api/v1/jobs/{}", job["id"].as_str().expect("an id"));
        daemon
            .exchange(&daemon.request("DELETE", &path, b""))
            .expect(200);
        waiting.answer().expect_error(409, "conflict");
        ask(&daemon, "ended", &long()).expect_error(409, "conflict");
    }
}
