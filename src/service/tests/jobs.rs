//! Requests about durable jobs: what they ask the store for, and when.

use super::grpc::Rpc;
use super::*;
use crate::grpc::messages::autoglm::{self, GenerateRequest, WatchJobRequest};
use crate::jobs::{JobId, JobRequest, NewJob};
use crate::limits::jobs as limits;
use crate::runner::Wake;
use crate::runner::change::{cancel, claim, write};
use crate::runner::changes::{Next, Write};
use crate::store::{Jobs as _, SqliteStore, StoreError};

const ID: &str = "job_00000000-0001-7000-8000-000000000000";

/// A service, and a store that works when the test lets it.
struct Desk {
    bench: Bench,
    store: SqliteStore,
    _folder: tempfile::TempDir,
}

impl Desk {
    /// With a job of the full key that has these deltas.
    fn with_job(deltas: &[&str]) -> Desk {
        let folder = tempfile::tempdir().unwrap();
        let mut store = SqliteStore::open_in(folder.path()).unwrap();
        let id = JobId::parse(ID).unwrap();
        let job = NewJob {
            id,
            key_id: record(FULL).id,
            created_at: 1,
            expires_at: u64::MAX,
            request: "{}".to_owned(),
            callback_url: None,
            idempotency: None,
        };
        store.insert_job(&job).unwrap();
        claim(&mut store, &[], 1, 1, u64::MAX).unwrap();
        let parts = (0..).zip(deltas).map(|(after, text)| Write {
            id,
            attempt: 1,
            after,
            text: (*text).to_owned(),
            next: Next::Run {
                lease_until: u64::MAX,
            },
        });
        let parts: Vec<Write> = parts.collect();
        write(&mut store, parts.iter(), 1, 0).unwrap();
        Desk {
            bench: Bench::new(),
            store,
            _folder: folder,
        }
    }

    fn waiting(&self) -> usize {
        self.bench.service.desk.parts.requests.waiting()
    }

    fn moved(&mut self, exchange: &mut Exchange, reply: &mut Recording) {
        let (now, moved) = (self.bench.now, Completion::JobMoved);
        let service = &mut self.bench.service;
        let flow = service.handle_event(exchange, moved, now, reply);
        assert_eq!(flow, Flow::Open);
    }

    /// Loses the group of what waits for the store.
    fn fail(&mut self, exchange: &mut Exchange, reply: &mut Recording) {
        let requests = self.bench.service.desk.parts.requests.clone();
        let mut group = Vec::new();
        assert!(requests.take(&mut group, Duration::ZERO));
        for task in group {
            task.lose(&StoreError::Panicked);
        }
        for completion in self.bench.replies.take() {
            let (now, service) = (self.bench.now, &mut self.bench.service);
            let flow = service.handle_event(exchange, completion, now, reply);
            assert_eq!(flow, Flow::Open);
        }
    }

    /// Lets the pause after a failure end.
    fn pass_pause(&mut self, exchange: &mut Exchange, reply: &mut Recording) {
        self.bench.now = self.bench.now + limits::BACKOFF_MIN;
        let (now, service) = (self.bench.now, &mut self.bench.service);
        let flow = service.handle_deadline(exchange, now, reply);
        assert_eq!(flow, Flow::Open);
    }

    /// Runs what waits for the store, and passes the replies to an exchange.
    fn reply(&mut self, exchange: &mut Exchange, reply: &mut Recording) -> Flow {
        let requests = self.bench.service.desk.parts.requests.clone();
        let mut group = Vec::new();
        assert!(requests.take(&mut group, Duration::ZERO));
        for mut task in group {
            let result = task.run(&mut self.store);
            task.finish(result.as_ref().copied());
        }
        let mut flow = Flow::Open;
        for completion in self.bench.replies.take() {
            let now = self.bench.now;
            let service = &mut self.bench.service;
            flow = service.handle_event(exchange, completion, now, reply);
        }
        flow
    }
}

fn follow() -> Sent<'static> {
    Sent::get("/api/v1/jobs/job_00000000-0001-7000-8000-000000000000/events").key(FULL)
}

/// Mutations: `handle_batch` and `handle_moved` that look without room.
#[test]
fn a_slow_follower_keeps_its_place_and_reads_when_it_has_room() {
    let long = "x".repeat(limits::FOLLOWED_BYTES);
    let mut desk = Desk::with_job(&[&long, "second"]);
    let (mut reply, exchange) = desk.bench.send(&follow());
    let mut exchange = exchange.expect("it waits for the store");
    assert!(
        !exchange.has_job(),
        "nothing has to end before it can be dropped"
    );
    reply.room = false;
    assert_eq!(desk.reply(&mut exchange, &mut reply), Flow::Open);
    assert!(reply.text().contains("id: 1.1\n") && !reply.text().contains("id: 1.2\n"));
    let now = desk.bench.now;
    let moved = Completion::JobMoved;
    let flow = desk
        .bench
        .service
        .handle_event(&mut exchange, moved, now, &mut reply);
    assert_eq!(
        (flow, desk.waiting()),
        (Flow::Open, 0),
        "its output is full"
    );
    assert_eq!(exchange.buffered_bytes(), 0);
    reply.room = true;
    desk.bench.service.handle_room(&mut exchange);
    assert_eq!(desk.waiting(), 1);
    assert_eq!(desk.reply(&mut exchange, &mut reply), Flow::Open);
    assert!(reply.text().contains("id: 1.2\n"));
    assert_eq!(desk.waiting(), 0, "there is nothing more to read");
}

/// Mutations: a `JobTask` that is refused and replies all the same; a pause that room ends.
#[test]
fn a_look_that_is_refused_or_fails_is_made_once_after_a_pause() {
    let mut desk = Desk::with_job(&["first"]);
    let (mut reply, exchange) = desk.bench.send(&follow());
    let mut exchange = exchange.expect("it waits for the store");
    assert_eq!(desk.reply(&mut exchange, &mut reply), Flow::Open);
    // It fails.
    desk.moved(&mut exchange, &mut reply);
    desk.fail(&mut exchange, &mut reply);
    for _ in 0..3 {
        desk.moved(&mut exchange, &mut reply);
        desk.bench.service.handle_room(&mut exchange);
        assert_eq!(desk.waiting(), 0, "the store does not work");
    }
    desk.pass_pause(&mut exchange, &mut reply);
    assert_eq!(desk.waiting(), 1);
    assert_eq!(desk.reply(&mut exchange, &mut reply), Flow::Open);
    // No place is left for it.
    desk.bench.service.desk.parts.requests.close();
    desk.moved(&mut exchange, &mut reply);
    assert!(desk.bench.replies.take().is_empty(), "its caller knows");
    desk.bench.service.handle_room(&mut exchange);
    assert!(desk.bench.replies.take().is_empty());
    assert_eq!(reply.text().matches("id: 1.1\n").count(), 1);
}

/// Mutations: a second look while one is under way; a wake-up during a look that is forgotten.
#[test]
fn a_wake_up_during_a_look_makes_one_more() {
    let mut desk = Desk::with_job(&["first"]);
    let (mut reply, exchange) = desk.bench.send(&follow());
    let mut exchange = exchange.expect("it waits for the store");
    for _ in 0..3 {
        let now = desk.bench.now;
        let moved = Completion::JobMoved;
        let flow = desk
            .bench
            .service
            .handle_event(&mut exchange, moved, now, &mut reply);
        assert_eq!((flow, desk.waiting()), (Flow::Open, 1));
    }
    assert_eq!(desk.reply(&mut exchange, &mut reply), Flow::Open);
    assert_eq!(desk.waiting(), 1);
    assert_eq!(desk.reply(&mut exchange, &mut reply), Flow::Open);
    assert_eq!(desk.waiting(), 0);
    assert_eq!(
        reply.text().matches("id: 1.1\n").count(),
        1,
        "each event once"
    );
}

/// The queue, and with it the transaction and the database's log, are bounded by what tasks count.
///
/// Mutation: `JobRequest::bytes` of the prompt alone.
#[test]
fn a_job_counts_with_its_files_in_the_store_s_queue() {
    let text = "x".repeat(30_000);
    let file = format!(r#"{{"path": "a.py", "text": "{text}"}}"#);
    let body = format!(r#"{{"prompt": "sort", "context": [{file}, {file}]}}"#);
    let job = Sent {
        target: "/api/v1/jobs",
        ..Sent::generate(&body)
    };
    let kept = Sent::generate(&body).header("idempotency-key", "k");
    for sent in [job, kept] {
        let mut bench = Bench::new();
        let (_, exchange) = bench.start(&sent);
        let mut group = Vec::new();
        assert!(bench.store.take(&mut group, Duration::ZERO));
        let bytes: Vec<u32> = group.iter().map(|task| task.bytes()).collect();
        assert_eq!(bytes, [60_012], "{}", sent.target);
        drop(exchange);
    }
}

/// Mutation: `Following` that ignores `Last-Event-ID`.
#[test]
fn a_follower_resumes_behind_the_event_that_it_names() {
    let mut desk = Desk::with_job(&["first", "second"]);
    let (mut reply, exchange) = desk.bench.send(&follow().header("last-event-id", "1.1"));
    let mut exchange = exchange.expect("it waits for the store");
    assert_eq!(desk.reply(&mut exchange, &mut reply), Flow::Open);
    assert!(!reply.text().contains("first") && reply.text().contains("second"));
}

/// An id that the job never had is an error of the client's, and no empty stream. The id of the
/// last event of a finished job is none: a browser comes back with it, and must stop.
///
/// Mutations: `events` without `is_checked`; `from` that is `after`; `handle_batch` without 204.
#[test]
fn the_last_event_id_is_one_that_the_job_has() {
    let long = "x".repeat(limits::FOLLOWED_BYTES);
    for (after, status, text) in [
        (
            "9.999",
            400,
            "this job has no event 9.999; its last one is 1.2",
        ),
        ("1.3", 400, "its last one is 1.2"),
        ("0.7", 400, "no event 0.7"),
        ("2.0", 400, "no event 2.0"),
        ("1", 400, "such as `1.7`"),
        ("1.\u{e9}", 400, "such as `1.7`"),
        ("1.0", 200, "id: 1.1\n"),
        ("1.1", 200, "id: 1.2\n"),
        ("1.2", 200, ""),
        ("0.0", 200, "id: 1.1\n"),
        ("", 200, "id: 1.1\n"),
    ] {
        let mut desk = Desk::with_job(&[&long, "second"]);
        let (mut reply, exchange) = desk.bench.send(&follow().header("last-event-id", after));
        if let Some(mut exchange) = exchange {
            while desk.waiting() > 0 {
                let _ = desk.reply(&mut exchange, &mut reply);
            }
        }
        assert_eq!(reply.status, status, "{after:?}");
        assert!(reply.text().contains(text), "{after:?}: {}", reply.text());
        if status == 400 {
            assert_eq!(reply.json()["error"]["param"], "last-event-id");
        }
    }
}

#[test]
fn a_client_that_has_the_end_of_a_job_is_told_to_stop() {
    let mut desk = Desk::with_job(&["first"]);
    let id = JobId::parse(ID).unwrap();
    cancel(&mut desk.store, &record(FULL).id, id, 9, u64::MAX).unwrap();
    for (after, status, text) in [
        ("1.1", 200, "event: cancelled\nid: 1.2\n"),
        ("1.2", 204, ""),
        ("1.3", 400, "its last one is 1.2"),
    ] {
        let (mut reply, exchange) = desk.bench.send(&follow().header("last-event-id", after));
        let flow = desk.reply(&mut exchange.expect("it waits"), &mut reply);
        assert_eq!((flow, reply.status), (Flow::Finished, status), "{after}");
        assert!(reply.text().contains(text), "{}", reply.text());
        assert_eq!(reply.text().is_empty(), status == 204, "{}", reply.text());
        assert_eq!(reply.content_type.is_none(), status == 204);
    }
    let (mut reply, exchange) = watch("1.2").send(&mut desk.bench);
    let flow = desk.reply(&mut exchange.expect("it waits"), &mut reply);
    assert_eq!((flow, reply.grpc_status()), (Flow::Finished, 0));
    assert_eq!(reply.messages::<autoglm::JobEvent>().len(), 0);
    let (mut reply, exchange) = watch("1.3").send(&mut desk.bench);
    let _ = desk.reply(&mut exchange.expect("it waits"), &mut reply);
    assert_eq!(
        (reply.grpc_status(), reply.reason().as_str()),
        (3, "invalid_parameter")
    );
}

/// A request whose store does not reply gets an error, and not silence.
#[test]
fn a_store_that_does_not_respond_is_not_waited_for() {
    let mut desk = Desk::with_job(&[]);
    let one = Sent::get("/api/v1/jobs/job_00000000-0001-7000-8000-000000000000").key(FULL);
    let (mut reply, exchange) = desk.bench.send(&one);
    let mut exchange = exchange.expect("it waits for the store");
    assert!(exchange.has_job());
    let now = desk.bench.now + crate::limits::service::STORE_TIME_MAX;
    assert_eq!(exchange.next_deadline(), now);
    let flow = desk
        .bench
        .service
        .handle_deadline(&mut exchange, now, &mut reply);
    assert_eq!(
        (flow, reply.error().as_str()),
        (Flow::Finished, "store_unavailable")
    );
}

/// A change is made although its client has left, as a client may not wait for the response. One
/// whose client got an error, because the store does not respond, is not made later.
///
/// Mutations: `outlives_client` that is always false; `is_wanted` that is true after a deadline;
/// `Kept::fail` that does not cancel.
#[test]
fn a_change_is_made_for_a_client_that_left_and_not_for_one_that_got_an_error() {
    let generate = Sent::generate(r#"{"prompt": "x"}"#);
    let submit = Sent {
        target: "/api/v1/jobs",
        ..generate.clone()
    };
    let kept = generate.header("idempotency-key", "once");
    let show = Sent::get("/api/v1/jobs/job_00000000-0001-7000-8000-000000000000").key(FULL);
    let cancel = show.clone().method(Method::Delete);
    for (sent, is_change) in [(show, false), (cancel, true), (submit, true), (kept, true)] {
        for is_late in [false, true] {
            let mut desk = Desk::with_job(&[]);
            let (mut reply, exchange) = desk.bench.send(&sent);
            let mut exchange = exchange.expect("it waits for the store");
            let service = &mut desk.bench.service;
            let requests = service.desk.parts.requests.clone();
            let now = exchange.next_deadline();
            match is_late {
                true => {
                    let flow = service.handle_deadline(&mut exchange, now, &mut reply);
                    assert_eq!((flow, reply.status), (Flow::Finished, 503), "{sent:?}");
                }
                false => service.abandon(exchange, CancelReason::Disconnect, now),
            }
            let mut group = Vec::new();
            assert!(requests.take(&mut group, Duration::ZERO));
            let is_wanted = group[0].is_wanted();
            assert_eq!(
                is_wanted,
                is_change && !is_late,
                "{sent:?}, late: {is_late}"
            );
        }
    }
}

/// Output of a model that is longer than a reactor may write at once.
fn long_text(lines: usize) -> String {
    let lines = "print(\"a line of a long program\")\n".repeat(lines);
    format!("```python\n{lines}```\n")
}

impl Desk {
    /// Runs the job that waits, and ends it with this text. Returns the code that is saved before.
    fn complete_job(&mut self, text: &str) -> String {
        let job = claim(&mut self.store, &[], 1, 2, u64::MAX)
            .unwrap()
            .remove(0);
        let code = crate::engine::code::extract(text, Some("python")).into_owned();
        let completion = crate::jobs::Completion {
            id: "gen_00000000-0001-7000-8000-000000000000".to_owned(),
            language: Some("python".to_owned()),
            text: text.to_owned(),
            model: Some("tiny".to_owned()),
            finish_reason: "length".to_owned(),
            prompt_tokens: 7,
            completion_tokens: 9,
            latency_ms: 70,
            ..Default::default()
        };
        let end = Box::new(crate::jobs::Ending::Completed(completion));
        for (after, text, next) in [
            (0, &code[..100], Next::Run { lease_until: 9 }),
            (1, &code[100..], Next::End(end)),
        ] {
            let part = Write {
                id: job.id,
                attempt: 1,
                after,
                text: text.to_owned(),
                next,
            };
            let saved = write(&mut self.store, std::iter::once(&part), 3, u64::MAX);
            assert_eq!(saved.unwrap(), [Ok(())]);
        }
        code
    }
}

/// A generation with `Idempotency-Key` gets the result of its job, which may be long: whole or as a
/// stream, in each form.
///
/// Mutations: `complete` that writes by itself; `begin_writing` without the rest of the code, or
/// with another id or another model; `uncompressed` that leaves the encoding.
#[test]
fn a_worker_writes_the_long_result_of_a_kept_generation() {
    // The store reads all of it at once, with the end.
    let text = long_text(600);
    let asked = GenerateRequest {
        prompt: "x".to_owned(),
        language: "python".to_owned(),
        ..GenerateRequest::default()
    };
    for (method, body) in [
        ("", r#"{"prompt": "x", "language": "python"}"#),
        (
            "",
            r#"{"prompt": "x", "language": "python", "stream": true}"#,
        ),
        ("/AutoGLMService/Generate", ""),
        ("/AutoGLMService/GenerateStream", ""),
    ] {
        let mut desk = Desk::with_job(&[]);
        let (mut reply, exchange) = match method {
            "" => {
                let sent = Sent::generate(body).header("accept-encoding", "gzip");
                desk.bench.send(&sent.header("idempotency-key", "k"))
            }
            method => {
                let rpc = Rpc::new(method, &asked).header("grpc-encoding", "gzip");
                rpc.header("idempotency-key", "k").send(&mut desk.bench)
            }
        };
        let mut exchange = exchange.expect("it waits for the store");
        assert_eq!(desk.reply(&mut exchange, &mut reply), Flow::Open);
        let code = desk.complete_job(&text);
        while desk.waiting() > 0 {
            assert_eq!(desk.reply(&mut exchange, &mut reply), Flow::Open);
        }
        assert!(exchange.has_job(), "a worker has it");
        assert!(exchange.buffered_bytes() > text.len());
        assert!(reply.body.is_empty(), "{method} {body}: written here");
        assert!(desk.bench.workers.run_one());
        let written = desk.bench.replies.take().pop().expect("a result");
        let flow = desk.bench.complete(&mut exchange, written, &mut reply);
        assert_eq!((flow, reply.is_finished), (Flow::Finished, true));
        let is_coded = reply.body.len() < text.len();
        match (method, body.contains("stream")) {
            ("", false) => {
                assert_eq!(reply.field("content-encoding"), Some("gzip"));
                assert!(is_coded && reply.field("server-timing").is_none());
            }
            ("", true) => {
                let events = reply.text();
                let last = events.split_once("event: done\ndata: ").unwrap().1;
                let last: serde_json::Value = serde_json::from_str(last.trim()).unwrap();
                assert_eq!(last["code"], code);
                assert_eq!(last["id"], "gen_00000000-0001-7000-8000-000000000000");
                assert_eq!(
                    (&last["model"], &last["finish_reason"]),
                    (&"tiny".into(), &"length".into())
                );
                assert_eq!(
                    (&last["cached"], &last["latency_ms"]),
                    (&false.into(), &70.into())
                );
                assert_eq!(last["usage"]["completion_tokens"], 9);
                assert_eq!(events.matches("event: delta\n").count(), 1);
            }
            ("/AutoGLMService/Generate", _) => {
                assert_eq!(reply.field("grpc-encoding"), Some("gzip"));
                let response = reply.messages::<autoglm::GenerateResponse>().remove(0);
                assert!(is_coded && response.code == code);
            }
            _ => {
                assert_eq!(reply.field("grpc-encoding"), None);
                let chunks = reply.messages::<autoglm::GenerateChunk>();
                let pieces: String = chunks.iter().map(|chunk| chunk.text.as_str()).collect();
                assert!(pieces == code && !is_coded);
            }
        }
        assert_eq!(desk.bench.service.buffered().held(), 0);
    }
}

/// Mutation: `code_quickly` that compresses for such a client.
#[test]
fn a_long_result_is_not_compressed_here_for_a_client_that_refuses_plain_bodies() {
    let mut desk = Desk::with_job(&[]);
    let show = Sent::get("/api/v1/jobs/job_00000000-0001-7000-8000-000000000000").key(FULL);
    let id = JobId::parse(ID).unwrap();
    let completion = crate::jobs::Completion {
        text: long_text(3_000),
        ..Default::default()
    };
    let end = Box::new(crate::jobs::Ending::Completed(completion));
    let part = Write {
        id,
        attempt: 1,
        after: 0,
        text: String::new(),
        next: Next::End(end),
    };
    write(&mut desk.store, std::iter::once(&part), 3, u64::MAX).unwrap();
    let mut bodies = Vec::new();
    for accepted in ["identity", "gzip, identity;q=0", "zstd, *;q=0", "br, *;q=0"] {
        let sent = show.clone().header("accept-encoding", accepted);
        let (mut reply, exchange) = desk.bench.send(&sent);
        let mut exchange = exchange.expect("it waits for the store");
        assert_eq!(desk.reply(&mut exchange, &mut reply), Flow::Finished);
        let plain = super::coding::plain(&reply);
        // At its quickest, zstd finds what repeats itself.
        let is_wrapped = reply.body.len() >= plain.len() || accepted.starts_with("zstd");
        assert!(is_wrapped, "{accepted}");
        assert_eq!(
            reply.field("content-encoding").is_some(),
            accepted != "identity"
        );
        bodies.push(plain);
    }
    assert!(bodies.iter().all(|body| *body == bodies[0]));
}

/// Mutation: a follower that is not in the list before its first look.
#[test]
fn a_follower_is_woken_from_its_first_look_on() {
    #[derive(Default)]
    struct Bell(Mutex<u32>);
    impl Wake for Bell {
        fn wake(&self, _: JobKey) {
            *self.0.lock().unwrap() += 1;
        }
    }
    let mut desk = Desk::with_job(&[]);
    let bell = Arc::new(Bell::default());
    let followers = Arc::new(crate::runner::Followers::new(bell.clone()));
    desk.bench.service.desk.parts.jobs.followers = followers.clone();
    let (_, exchange) = desk.bench.send(&follow());
    followers.wake(JobId::parse(ID).unwrap());
    assert_eq!(*bell.0.lock().unwrap(), 1);
    drop(exchange);
    followers.wake(JobId::parse(ID).unwrap());
    assert_eq!(*bell.0.lock().unwrap(), 1, "it has left");
}

fn watch(after: &str) -> Rpc<'static> {
    let asked = WatchJobRequest {
        id: ID.to_owned(),
        after: after.to_owned(),
    };
    Rpc::new("/AutoGLMJobService/WatchJob", &asked)
}

/// A watch is a follower: it resumes, waits for room and runs no job of its own.
///
/// Mutations: `place_of` that ignores `after`; `is_grpc` that is false.
#[test]
fn a_watch_over_grpc_is_a_follower_like_any_other() {
    let mut desk = Desk::with_job(&["first", "second"]);
    let (mut reply, exchange) = watch("1.1").send(&mut desk.bench);
    let mut exchange = exchange.expect("it waits for the store");
    assert!(!exchange.has_job());
    assert_eq!(desk.reply(&mut exchange, &mut reply), Flow::Open);
    let events: Vec<autoglm::JobEvent> = reply.messages();
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!(
        (events[0].id.as_str(), events[0].text.as_str()),
        ("1.2", "second")
    );
    assert_eq!(events[0].kind(), autoglm::JobEventKind::Delta);
    assert_eq!(exchange.buffered_bytes(), 0);
    // A silent watch sends nothing: HTTP/2 has pings of its own.
    let now = exchange.next_deadline();
    let sent = reply.body.len();
    let service = &mut desk.bench.service;
    assert_eq!(
        service.handle_deadline(&mut exchange, now, &mut reply),
        Flow::Open
    );
    assert_eq!(reply.body.len(), sent);

    let (reply, exchange) = watch("first").send(&mut desk.bench);
    assert!(exchange.is_none());
    assert_eq!(reply.reason(), "invalid_parameter");
}

/// Mutations: `handle_deadline` that ignores `ends`, or that ends an old watch without an error.
#[test]
fn a_watch_ends_with_its_deadline_or_its_age() {
    for (timeout, reason, status) in [
        (Some("7S"), "request_timeout", 4),
        (None, "stream_expired", 14),
    ] {
        for is_answered in [false, true] {
            let mut desk = Desk::with_job(&["first"]);
            let mut rpc = watch("");
            if let Some(timeout) = timeout {
                rpc = rpc.header("grpc-timeout", timeout);
            }
            let started = desk.bench.now;
            let (mut reply, exchange) = rpc.send(&mut desk.bench);
            let mut exchange = exchange.expect("it waits for the store");
            if is_answered {
                assert_eq!(desk.reply(&mut exchange, &mut reply), Flow::Open);
            }
            let end = match timeout {
                Some(_) => Duration::from_secs(7),
                None if is_answered => crate::limits::service::JOBLESS_STREAM_AGE_MAX,
                // The reply of the store, which always comes, ends it.
                None => continue,
            };
            let service = &mut desk.bench.service;
            let mut now = started;
            while now < started + end {
                now = exchange.next_deadline();
                let flow = service.handle_deadline(&mut exchange, now, &mut reply);
                assert_eq!(flow == Flow::Finished, now == started + end);
            }
            assert_eq!(
                (reply.grpc_status(), reply.reason().as_str()),
                (status, reason)
            );
        }
    }
}

/// The call's deadline is how long the client waits for the acceptance.
///
/// Mutation: `Grpc::read` with `terms.timeout` for a job.
#[test]
fn the_deadline_of_a_submission_is_not_the_job_s() {
    let mut desk = Desk::with_job(&[]);
    let asked = GenerateRequest {
        prompt: "greet".to_owned(),
        ..GenerateRequest::default()
    };
    let rpc = Rpc::new("/AutoGLMJobService/SubmitJob", &asked).header("grpc-timeout", "2S");
    let started = desk.bench.now;
    let (mut reply, exchange) = rpc.send(&mut desk.bench);
    let mut exchange = exchange.expect("it waits for the store");
    assert!(exchange.has_job());
    assert_eq!(exchange.next_deadline(), started + Duration::from_secs(2));
    assert_eq!(desk.reply(&mut exchange, &mut reply), Flow::Finished);
    let job = reply.messages::<autoglm::Job>().remove(0);
    assert_eq!(job.status(), autoglm::JobStatus::Queued);
    let stored = desk
        .store
        .job(JobId::parse(&job.id).unwrap())
        .unwrap()
        .unwrap();
    let longest = config().limits.max_request_timeout.as_millis() as u64;
    assert_eq!(
        JobRequest::parse(&stored.request).unwrap().timeout_ms,
        longest
    );

    // A store that takes longer: the client's own deadline has expired.
    let (mut reply, exchange) = rpc.send(&mut desk.bench);
    let mut exchange = exchange.expect("it waits for the store");
    let now = exchange.next_deadline();
    let service = &mut desk.bench.service;
    assert_eq!(
        service.handle_deadline(&mut exchange, now, &mut reply),
        Flow::Finished
    );
    assert_eq!(
        (reply.grpc_status(), reply.reason().as_str()),
        (4, "request_timeout")
    );
}

/// Mutation: `name_jobs` of a cancellation, or of the task around it, that names none.
#[test]
fn a_cancellation_names_the_job_that_it_changes() {
    let mut desk = Desk::with_job(&[]);
    let target = format!("/api/v1/jobs/{ID}");
    let sent = Sent::get(&target).method(Method::Delete).key(FULL);
    let (_, exchange) = desk.bench.send(&sent);
    assert!(exchange.is_some(), "it waits for the store");
    let mut tasks = Vec::new();
    let requests = desk.bench.service.desk.parts.requests.clone();
    assert!(requests.take(&mut tasks, Duration::ZERO));
    let mut jobs = Vec::new();
    tasks.iter().for_each(|task| task.name_jobs(&mut jobs));
    assert_eq!(jobs, [JobId::parse(ID).unwrap()]);
}
