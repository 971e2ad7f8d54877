//! Finished responses that are sent again.

use super::grpc::Rpc;
use super::*;
use crate::cache::metrics::Figures;
use crate::engine::{GenerationId, Origin, Verdict};
use crate::grpc::frame::{self, Encoding, PREFIX_BYTES};
use crate::grpc::messages::Message as _;
use crate::grpc::messages::autoglm::{GenerateRequest, GenerateResponse};
use crate::http::compress::Coding;
use crate::http::compress::decode::{Bound, decode_body};
use crate::keys::ChangedKey;

const BODY: &str = r#"{"prompt": "sort"}"#;

fn bench() -> Bench {
    bench_with(|_| ())
}

fn bench_with(change: impl FnOnce(&mut Config)) -> Bench {
    Bench::with(|config| {
        config.cache.enabled = true;
        change(config);
    })
}

fn inflate(coding: Coding, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let bound = Bound::of(usize::MAX, 1 << 24, u32::MAX);
    decode_body(coding, body, bound, &mut out).unwrap();
    out
}

/// Sends a request that is not in the cache, and completes its job.
fn compute(bench: &mut Bench, sent: &Sent<'_>, text: &str) -> Recording {
    let (mut reply, mut exchange) = bench.start(sent);
    bench.advance(5);
    let flow = bench.event(&mut exchange, done(text), &mut reply);
    assert_eq!(flow, Flow::Finished);
    // Its ticket has the permit of the key.
    bench.engine.jobs.lock().unwrap().clear();
    reply
}

fn code(text: &str) -> String {
    format!("```\n{text}\n```")
}

fn verdict(reply: &Recording) -> Option<&str> {
    reply.field("x-cache")
}

/// Mutations: `keep` with `is_cached` of the first response; `latency` or `id` of the hit; a hit
/// that is not counted among the requests; `Age` from the request's start.
#[test]
fn a_finished_response_is_sent_again() {
    let mut bench = bench();
    let sent = Sent::generate(r#"{"prompt": "sort", "max_tokens": 80}"#).key(NARROW);
    let first = compute(&mut bench, &sent, &code("x"));
    assert_eq!((verdict(&first), first.field("age")), (Some("miss"), None));
    bench.advance(2_500);
    let again = bench.ask(&sent);
    assert_eq!((again.status, verdict(&again)), (200, Some("hit")));
    assert_eq!(again.field("age"), Some("2"));
    assert_ne!(again.field("x-request-id"), first.field("x-request-id"));
    let timing = again.field("server-timing").unwrap();
    assert!(
        timing.starts_with("auth;dur=") && !timing.contains("decode"),
        "{timing}"
    );
    let (mut expected, found) = (first.json(), again.json());
    assert_eq!(expected["cached"], false);
    expected["cached"] = true.into();
    assert_eq!(found, expected);
    // A hit costs a request, of which this key has four per minute, and no tokens, of which it has
    // too few for a second computation.
    for _ in 0..2 {
        assert_eq!(verdict(&bench.ask(&sent)), Some("hit"));
    }
    assert_eq!(bench.ask(&sent).error(), "rate_limited");
    assert!(bench.engine.jobs.lock().unwrap().is_empty());
    let hits = r#"autoglmd_cache_total{level="response",verdict="hit"}"#;
    assert_eq!(bench.metric(hits).as_deref(), Some("3"));
    let requests = r#"autoglmd_requests_total{route="generate",status="200"}"#;
    assert_eq!(bench.metric(requests).as_deref(), Some("4"));
    let misses = r#"autoglmd_cache_total{level="response",verdict="miss"}"#;
    assert_eq!(bench.metric(misses).as_deref(), Some("1"));
}

/// Mutation: a digest without the type or the coding of the body, `fields`, the key, or the body.
/// Route, representation and accepted type follow from each other.
#[test]
fn everything_that_decides_a_response_is_in_its_digest() {
    let mut bench = bench();
    let sent = Sent::generate(BODY);
    compute(&mut bench, &sent, &code("x"));
    assert_eq!(verdict(&bench.ask(&sent)), Some("hit"));
    let with = |name, value| sent.clone().header(name, value);
    let target = |target| Sent {
        target,
        ..sent.clone()
    };
    let body = |body| Sent {
        body,
        ..sent.clone()
    };
    let one_field = target("/api/v1/generate?fields=code");
    compute(&mut bench, &one_field, &code("x"));
    assert_eq!(verdict(&bench.ask(&one_field)), Some("hit"));
    for other in [
        sent.clone().key(NARROW),
        with("accept", "application/x-protobuf"),
        with("accept", "text/event-stream"),
        with("content-type", "application/json"),
        with("content-encoding", "gzip"),
        target("/api/v1/generate?fields="),
        target("/api/v1/generate?fields=text"),
        target("/api/v1/generate?fields=cod%26e"),
        body(r#"{"prompt":"sort"}"#),
        body(r#"{"prompt": "sort", "stream": false}"#),
    ] {
        let (reply, exchange) = bench.send(&other);
        let is_refused = reply.status >= 400;
        assert!(exchange.is_some() || is_refused, "{other:?}");
    }
    // Of these the response does not depend.
    for same in [with("accept", "*/*"), with("user-agent", "another one")] {
        assert_eq!(verdict(&bench.ask(&same)), Some("hit"), "{same:?}");
    }
}

/// Mutations: `decide` that stores whatever is reproducible; `Replace` that forgets nothing.
#[test]
fn bodies_that_ask_for_another_mode_are_neither_found_nor_stored() {
    let mut bench = bench();
    let used = Sent::generate(BODY);
    compute(&mut bench, &used, &code("old"));
    // However the word is spelled: not every body is found by the search for it.
    for (body, mode, is_found_later) in [
        (r#"{"prompt": "sort", "cache": "bypass"}"#, "bypass", true),
        (
            r#"{"prompt": "sort", "cache": "byp\u0061ss"}"#,
            "bypass",
            true,
        ),
        (r#"{"prompt": "sort", "cache": "refresh"}"#, "miss", false),
    ] {
        let other = Sent::generate(body);
        for _ in 0..2 {
            let reply = compute(&mut bench, &other, &code("new"));
            assert_eq!(verdict(&reply), Some(mode), "{body}");
        }
        let (reply, exchange) = bench.send(&used);
        assert_eq!(exchange.is_none(), is_found_later, "{body}");
        if is_found_later {
            assert_eq!(reply.json()["code"], "old");
        }
    }
    // A response that was on its way when the refresh began is not older than it, but may be.
    let (mut early, mut exchange) = bench.start(&used);
    let refresh = Sent::generate(r#"{"prompt": "sort", "cache": "refresh"}"#);
    compute(&mut bench, &refresh, &code("new"));
    let _ = bench.event(&mut exchange, done(&code("old")), &mut early);
    assert!(bench.send(&used).1.is_some());
}

/// Mutation: `code_stored` for gRPC, whose messages have a coding of their own.
#[test]
fn protobuf_and_grpc_are_sent_again_too() {
    let mut bench = bench();
    let sent = Sent::generate(BODY).header("accept", "application/x-protobuf");
    let first = compute(&mut bench, &sent, &code("x"));
    let again = bench.ask(&sent);
    assert_eq!(verdict(&again), Some("hit"));
    assert_again(&first.body, &again.body);

    let mut message = Vec::new();
    let request = GenerateRequest {
        prompt: "sort".into(),
        ..GenerateRequest::default()
    };
    frame::append(&mut message, &request, Encoding::Identity);
    let rpc = Rpc::of_bytes("/AutoGLMService/Generate", message);
    let (mut first, exchange) = rpc.send(&mut bench);
    let flow = bench.event(&mut exchange.expect("a job"), done(&code("x")), &mut first);
    assert_eq!((flow, verdict(&first)), (Flow::Finished, Some("miss")));
    let (again, exchange) = rpc.send(&mut bench);
    assert!(exchange.is_none());
    assert_eq!((again.status, verdict(&again)), (200, Some("hit")));
    assert_eq!(again.trailers, first.trailers);
    assert_again(&first.body[PREFIX_BYTES..], &again.body[PREFIX_BYTES..]);
}

/// Asserts that two responses differ in `cached` alone.
#[track_caller]
fn assert_again(first: &[u8], again: &[u8]) {
    let read = |body: &[u8]| GenerateResponse::decode(body).expect("a response");
    let (first, again) = (read(first), read(again));
    assert!(!first.cached && again.cached);
    let first = GenerateResponse {
        cached: true,
        ..first
    };
    assert_eq!(first, again);
}

/// Mutation: `decide` without `is_reproducible`.
#[test]
fn a_response_that_chance_has_decided_is_not_stored() {
    let mut bench = bench();
    for (body, is_stored) in [
        (r#"{"prompt": "x", "temperature": 0.5}"#, false),
        (r#"{"prompt": "x", "temperature": 0.5, "seed": -1}"#, false),
        (r#"{"prompt": "x", "temperature": 0.5, "seed": 7}"#, true),
        (r#"{"prompt": "x", "temperature": 0}"#, true),
    ] {
        let sent = Sent::generate(body);
        let reply = compute(&mut bench, &sent, &code("x"));
        let expected = if is_stored { "miss" } else { "bypass" };
        assert_eq!(verdict(&reply), Some(expected), "{body}");
        assert_eq!(bench.send(&sent).1.is_none(), is_stored, "{body}");
    }
}

/// Mutation: a look-up before the checks of the head.
#[test]
fn a_hit_needs_a_key_that_is_still_valid() {
    let mut bench = bench();
    let sent = Sent::generate(BODY);
    compute(&mut bench, &sent, &code("x"));
    let revoked = KeyRecord {
        revoked: true,
        ..record(FULL)
    };
    let change = ChangedKey {
        id: revoked.id.clone(),
        records: vec![revoked],
    };
    let keys = ring().changed([change]).expect("a key is revoked");
    bench.service.set_keys(Arc::new(keys));
    assert_eq!(bench.ask(&sent).error(), "invalid_key");
    bench.service.set_keys(Arc::new(ring()));
    assert_eq!(verdict(&bench.ask(&sent)), Some("hit"));
}

/// Mutations: a variant that is made for each hit; one that is not counted.
#[test]
fn each_coding_is_made_once_and_counts_in_the_budget() {
    let mut bench = bench_with(|config| config.server.compress_min = 64);
    let text = code(&"print('again and again')\n".repeat(40));
    let plain = Sent::generate(BODY);
    compute(&mut bench, &plain, &text);
    let before = bench.responses.figures();
    let expected = bench.ask(&plain);
    let mut bytes = before.bytes;
    for coding in [Coding::Gzip, Coding::Zstd, Coding::Brotli] {
        let sent = plain.clone().header("accept-encoding", coding.name());
        for is_new in [true, false] {
            let reply = bench.ask(&sent);
            assert_eq!(reply.field("content-encoding"), Some(coding.name()));
            assert_eq!(reply.field("vary"), Some("Accept-Encoding"));
            assert_eq!(inflate(coding, &reply.body), expected.body);
            let figures = bench.responses.figures();
            assert_eq!(figures.bytes > bytes, is_new, "{coding:?}");
            bytes = figures.bytes;
        }
    }
    assert_eq!(bench.responses.figures().entries, 1);
    // A client that refuses plain responses, and for which nothing is kept.
    let sent = plain.header("accept-encoding", "gzip, identity;q=0");
    assert_eq!(bench.ask(&sent).field("content-encoding"), Some("gzip"));
    assert_eq!(bench.responses.figures().bytes, bytes);
}

/// Mutations: `apply` that keeps the key of digests; a TTL without its jitter's sign.
#[test]
fn entries_end_with_their_time_and_with_the_configuration() {
    let mut bench = bench();
    let sent = Sent::generate(BODY);
    compute(&mut bench, &sent, &code("x"));
    let mut config = config();
    config.cache.enabled = true;
    bench.service.apply(Arc::new(config.clone()));
    assert_eq!(
        verdict(&bench.ask(&sent)),
        Some("hit"),
        "nothing has changed"
    );
    config.limits.default_request_timeout = Duration::from_secs(59);
    bench.service.apply(Arc::new(config.clone()));
    compute(&mut bench, &sent, &code("x"));
    assert_eq!(verdict(&bench.ask(&sent)), Some("hit"));
    // Nine tenths of an hour have not passed, then all of it has.
    bench.advance(3_239_000);
    assert_eq!(verdict(&bench.ask(&sent)), Some("hit"));
    bench.advance(361_000);
    compute(&mut bench, &sent, &code("x"));
    config.cache.enabled = false;
    bench.service.apply(Arc::new(config.clone()));
    bench.responses.apply(&config.cache, bench.now);
    let reply = compute(&mut bench, &sent, &code("x"));
    assert_eq!(verdict(&reply), Some("bypass"));
    assert_eq!(
        bench.responses.figures(),
        Figures {
            evicted: bench.responses.figures().evicted,
            ..Figures::default()
        }
    );
}

/// It was computed before this process began.
///
/// Mutation: `keep` with an age of at most the time since.
#[test]
fn a_result_from_before_the_start_does_not_live_longer_here() {
    let mut bench = bench();
    let sent = Sent::generate(BODY);
    let (mut reply, mut exchange) = bench.start(&sent);
    let Event::Done(done) = done(&code("x")) else {
        panic!("it is done");
    };
    // Of an hour.
    let age = Duration::from_secs(3_000);
    let served = Served {
        verdict: Verdict::Hit,
        age,
        is_reproducible: true,
        origin: Some(Origin {
            id: GenerationId::FIRST,
            latency: Duration::from_millis(777),
        }),
    };
    let event = Event::Done(Box::new(Done { served, ..*done }));
    let _ = bench.event(&mut exchange, event, &mut reply);
    bench.engine.jobs.lock().unwrap().clear();
    bench.advance(10_000);
    let again = bench.ask(&sent);
    assert_eq!(
        (verdict(&again), again.field("age")),
        (Some("hit"), Some("3010"))
    );
    bench.advance(590_000);
    let (_, exchange) = bench.send(&sent);
    assert!(exchange.is_some(), "the hour has passed");
}

/// Mutation: `keep_refusal` for every error.
#[test]
fn a_refusal_that_would_recur_is_kept_for_a_short_time() {
    let mut bench = bench();
    let sent = Sent::generate(BODY);
    let refuse = |bench: &Bench, refused| *bench.engine.refusal.lock().unwrap() = refused;
    let queue_full = Refused::QueueFull {
        retry_after: Duration::from_secs(1),
    };
    refuse(&bench, Some(queue_full));
    assert_eq!(bench.ask(&sent).error(), "queue_full");
    refuse(&bench, Some(Refused::TooLong { context_length: 8 }));
    let first = bench.ask(&sent);
    assert_eq!(
        (first.error().as_str(), verdict(&first)),
        ("context_length_exceeded", Some("miss"))
    );
    refuse(&bench, None);
    bench.advance(1_000);
    let again = bench.ask(&sent);
    assert_eq!(again.error(), "context_length_exceeded");
    assert_eq!(
        (verdict(&again), again.field("age")),
        (Some("hit"), Some("1"))
    );
    bench.advance(9_000);
    let (_, exchange) = bench.send(&sent);
    assert!(exchange.is_some(), "ten seconds have passed");
}

/// Mutation: a bound that is not divided by the shards.
#[test]
fn a_key_that_fills_the_cache_takes_no_entry_of_another_one() {
    let mut bench = bench_with(|config| {
        config.cache.max_size = 1 << 20;
        config.rate_limit.enabled = false;
    });
    let text = code(&"x = 1\n".repeat(20));
    let mut ask = |key: u8, number: u32| {
        let body = format!(r#"{{"prompt": "{number}"}}"#);
        let (mut reply, exchange) = bench.send(&Sent::generate(&body).key(key));
        if let Some(mut exchange) = exchange {
            let _ = bench.event(&mut exchange, done(&text), &mut reply);
        }
        let figures = bench.responses.figures();
        assert!(figures.bytes <= figures.max_bytes && figures.max_bytes <= 1 << 19);
        verdict(&reply) == Some("hit")
    };
    for number in 0..100 {
        ask(NARROW, number);
    }
    for number in 0..5_000 {
        assert!(!ask(FULL, number));
    }
    let kept = (0..100).filter(|number| ask(NARROW, *number)).count();
    assert_eq!(kept, 100);
}
