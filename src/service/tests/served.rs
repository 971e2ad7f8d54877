//! Results that were computed for another request, and engines behind engines.

use super::*;
use crate::engine::{CacheMode, FailReason, Failed, GenerationId, Origin, Verdict};
use crate::grpc::messages::Message as _;
use crate::grpc::messages::autoglm::GenerateRequest;
use crate::grpc::messages::rpc::Status;

const PROTOBUF: &str = "application/x-protobuf";

fn joined() -> Served {
    Served {
        verdict: Verdict::Joined,
        age: Duration::from_secs(1),
        is_reproducible: true,
        origin: Some(Origin {
            id: GenerationId::FIRST,
            latency: Duration::from_millis(777),
        }),
    }
}

fn done_of(text: String, served: Served) -> Event {
    match done("") {
        Event::Done(done) => Event::Done(Box::new(Done {
            text,
            served,
            ..*done
        })),
        other => other,
    }
}

/// Mutations: `id` or `latency` of this request; `reconcile` that charges for every result;
/// `observe_speed` without its first line.
#[test]
fn a_result_of_another_request_keeps_its_id_and_is_free() {
    for body in [
        r#"{"prompt": "four", "max_tokens": 80}"#,
        r#"{"prompt": "four", "max_tokens": 80, "stream": true}"#,
    ] {
        let mut bench = Bench::new();
        let sent = Sent::generate(body).key(NARROW);
        for _ in 0..3 {
            let (mut reply, mut exchange) = bench.start(&sent);
            bench.advance(5);
            let event = done_of("```\nx\n```".into(), joined());
            let _ = bench.event(&mut exchange, event, &mut reply);
            let text = reply.text();
            for part in [
                r#""id":"gen_00000000-0000-7000-8000-000000000000""#,
                r#""cached":true"#,
                r#""latency_ms":777"#,
            ] {
                assert!(text.contains(part), "{text}");
            }
            // The third one passes only because those before were free: 81 of 100 are reserved, and
            // each would cost 12.
            assert_eq!(reply.status, 200);
            drop(exchange);
            bench.engine.jobs.lock().unwrap().clear();
        }
        let observed = bench.metric("autoglmd_time_per_output_token_seconds_count");
        assert_eq!(observed.as_deref(), Some("0"));
    }
}

/// Mutation: `Ended` with the id of this request.
#[test]
fn a_long_result_of_another_request_keeps_its_id_too() {
    let mut bench = Bench::new();
    let (mut reply, mut exchange) = bench.start(&Sent::generate(r#"{"prompt": "x"}"#));
    let text = "x".repeat(limits::WRITE_AT_ONCE_BYTES_MAX + 1);
    let flow = bench.event(&mut exchange, done_of(text, joined()), &mut reply);
    assert_eq!(flow, Flow::Finished);
    let json = reply.json();
    assert_eq!(
        (&json["id"], &json["cached"]),
        (&GenerationId::FIRST.to_string().into(), &true.into())
    );
    assert_eq!(json["latency_ms"], 777);
}

/// Mutation: `failure` that takes every refusal for a failure of the engine.
#[test]
fn a_refusal_that_comes_late_is_the_same_as_one_at_once() {
    for body in [r#"{"prompt": "x"}"#, r#"{"prompt": "x", "stream": true}"#] {
        let refused = Refused::QueueFull {
            retry_after: Duration::from_millis(2_300),
        };
        let mut bench = Bench::new();
        *bench.engine.refusal.lock().unwrap() = Some(refused.clone());
        let at_once = bench.ask(&Sent::generate(body));
        *bench.engine.refusal.lock().unwrap() = None;
        let (mut late, mut exchange) = bench.start(&Sent::generate(body));
        let failed = Failed {
            reason: FailReason::Refused(refused),
            message: String::new(),
            text: String::new(),
            usage: Usage::default(),
            timings: Timings::default(),
        };
        let _ = bench.event(&mut exchange, Event::Failed(Box::new(failed)), &mut late);
        assert_eq!(late.status, at_once.status);
        assert_eq!(
            late.json()["error"]["message"],
            at_once.json()["error"]["message"]
        );
        assert_eq!(late.field("retry-after-ms"), Some("2300"));
    }
}

/// Mutation: any of the three without its call.
#[test]
fn the_engine_hears_of_every_cancelled_job() {
    let mut bench = Bench::new();
    let sent = Sent::generate(r#"{"prompt": "x"}"#);
    let heard = |bench: &Bench| std::mem::take(&mut *bench.engine.cancelled.lock().unwrap());
    let now = bench.now;
    let (_, exchange) = bench.start(&sent);
    bench
        .service
        .abandon(exchange, CancelReason::Disconnect, now);
    assert_eq!(heard(&bench), [bench.job().key]);

    let (mut reply, mut exchange) = bench.start(&sent);
    let _ = bench.pass_deadline(&mut exchange, &mut reply);
    assert_eq!(heard(&bench), [], "the deadline is reported first");
    let _ = bench.pass_deadline(&mut exchange, &mut reply);
    assert_eq!(heard(&bench), [bench.job().key]);

    let (mut reply, mut exchange) = bench.start(&sent);
    bench.service.cut_off(&mut exchange, now, &mut reply);
    assert_eq!(heard(&bench), [bench.job().key]);
}

/// Mutations: `return_credit` or `release_credit` whose answer is dropped.
#[test]
fn an_engine_that_has_found_no_credit_is_told_of_the_next_grant() {
    let mut bench = Bench::new();
    let (mut reply, mut exchange) =
        bench.start(&Sent::generate(r#"{"prompt": "x", "stream": true}"#));
    let job = bench.job();
    let told = |bench: &Bench| std::mem::take(&mut *bench.engine.credited.lock().unwrap());
    let _ = bench.event(&mut exchange, token("```\none\n"), &mut reply);
    assert_eq!(told(&bench), [], "it had credit left");
    while job.ticket.take_credit() {}
    let _ = bench.event(&mut exchange, token("two\n"), &mut reply);
    assert_eq!(told(&bench), [job.key]);
    while job.ticket.take_credit() {}
    reply.room = false;
    let _ = bench.event(&mut exchange, token("three\n"), &mut reply);
    assert_eq!(told(&bench), []);
    bench.service.handle_room(&mut exchange);
    assert_eq!(told(&bench), [job.key]);
}

/// A regression test: a ticket is made before the body is read, so every job passed for one whose
/// response is sent whole, and no engine paused for a client that did not read.
#[test]
fn the_ticket_of_a_stream_is_known_as_one() {
    let mut bench = Bench::new();
    for (stream, expected) in [("false", false), ("true", true)] {
        let body = format!(r#"{{"prompt": "x", "stream": {stream}}}"#);
        let _ = bench.start(&Sent::generate(&body));
        assert_eq!(bench.job().ticket.is_streamed(), expected);
    }
}

/// Mutation: `submit` that always uses the cache.
#[test]
fn the_cache_mode_comes_to_the_engine() {
    let mut bench = Bench::new();
    for (member, mode) in [
        ("", CacheMode::Use),
        (r#", "cache": "use""#, CacheMode::Use),
        (r#", "cache": "refresh""#, CacheMode::Refresh),
        (r#", "cache": "bypass""#, CacheMode::Bypass),
    ] {
        let body = format!(r#"{{"prompt": "x"{member}}}"#);
        let _ = bench.start(&Sent::generate(&body));
        assert_eq!(bench.job().cache, mode);
    }
    for (number, mode) in [
        (0, CacheMode::Use),
        (1, CacheMode::Refresh),
        (2, CacheMode::Bypass),
    ] {
        let body = GenerateRequest {
            prompt: "x".into(),
            cache: number,
            ..GenerateRequest::default()
        };
        let sent = Sent::generate("").header("content-type", PROTOBUF);
        let _ = bench.start_with_body(&sent, &body.encode_to_vec());
        assert_eq!(bench.job().cache, mode);
    }
}

/// Mutation: the message of a number that is out of range.
#[test]
fn an_unknown_cache_mode_names_the_accepted_words() {
    let mut bench = Bench::new();
    let reply = bench.ask(&Sent::generate(r#"{"prompt": "x", "cache": "no"}"#));
    let message = r#"`cache` must be "use", "refresh" or "bypass", not "no""#;
    assert_eq!(reply.json()["error"]["message"], message);
    let body = GenerateRequest {
        prompt: "x".into(),
        cache: 3,
        ..GenerateRequest::default()
    };
    let sent = Sent::generate("")
        .header("content-type", PROTOBUF)
        .header("accept", PROTOBUF);
    let reply = bench.refused_body(&sent, &body.encode_to_vec());
    let status = Status::decode(&*reply.body).unwrap();
    let words = "CACHE_MODE_USE (0), CACHE_MODE_REFRESH (1) or CACHE_MODE_BYPASS (2)";
    assert_eq!(status.message, format!("`cache` must be {words}, not 3"));
}
