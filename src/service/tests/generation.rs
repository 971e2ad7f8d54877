//! Jobs and their responses.

use super::*;
use crate::engine::{Class, FailReason, Failed, Prompt};

const FENCED: &str = "Here:\n```python\nprint(1)\nprint(2)\n```\nDone.";
const CODE: &str = "print(1)\nprint(2)";

fn failed(reason: FailReason, text: &str) -> Event {
    Event::Failed(Box::new(Failed {
        reason,
        message: "why".into(),
        text: text.into(),
        usage: USAGE,
        timings: TIMINGS,
    }))
}

fn failed_with(code: ErrorCode) -> Event {
    failed(FailReason::Error(code), "")
}

/// Returns the events of a stream: names and data.
fn events(text: &str) -> Vec<(String, serde_json::Value)> {
    let blocks = text.split_terminator("\n\n");
    let event = |block: &str| {
        let (name, data) = block.split_once('\n')?;
        let data = serde_json::from_str(data.strip_prefix("data: ")?).unwrap();
        Some((name.strip_prefix("event: ")?.to_owned(), data))
    };
    blocks.filter_map(event).collect()
}

#[test]
fn the_original_client_gets_its_code() {
    let mut bench = Bench::new();
    let body = r#"{"prompt": "实现快速排序算法", "language": "py", "timeout": 10000}"#;
    let sent = Sent::generate(body)
        .header("accept", "*/*")
        .header("content-type", "application/json")
        .header("x-request-id", "r-1");
    let (mut reply, mut exchange) = bench.start(&sent);
    let job = bench.job();
    assert_eq!(job.deadline, bench.now + Duration::from_secs(10));
    assert!(!job.ticket.take_credit(), "an answer in one piece");
    let Prompt::Code {
        language, prompt, ..
    } = job.prompt
    else {
        panic!("{:?}", job.prompt);
    };
    assert_eq!(
        (language, prompt.as_str()),
        (Some("python"), "实现快速排序算法")
    );

    bench.advance(1_500);
    let flow = bench.event(&mut exchange, done(FENCED), &mut reply);
    assert_eq!(flow, Flow::Finished);
    assert_eq!(reply.status, 200);
    let json = reply.json();
    assert_eq!(json["id"].as_str().map(|id| &id[..8]), Some("gen_0000"));
    assert_eq!(json["code"], CODE);
    assert_eq!(json["language"], "python");
    assert_eq!(json["text"], FENCED);
    assert_eq!(json["model"], "tiny");
    assert_eq!(json["finish_reason"], "stop");
    assert_eq!(json["usage"]["total_tokens"], 12);
    assert_eq!(json["latency_ms"], 1_500);
    assert_eq!(reply.field("cache-control"), Some("no-store"));
    assert_eq!(
        reply.field("server-timing"),
        Some("auth;dur=0, queue;dur=1, prefill;dur=20, decode;dur=300, total;dur=1500")
    );
    let labels = r#"autoglmd_requests_total{route="generate",status="200"}"#;
    assert_eq!(bench.metric(labels).as_deref(), Some("1"));
    for name in [
        "time_to_first_token_seconds",
        "time_per_output_token_seconds",
    ] {
        let count = bench.metric(&format!("autoglmd_{name}_count"));
        assert_eq!(count.as_deref(), Some("1"), "{name}");
    }
}

#[test]
fn chosen_fields_only() {
    let mut bench = Bench::new();
    let mut sent = Sent::generate(r#"{"prompt": "x"}"#);
    sent.target = "/api/v1/generate?&fields=code%2Cusage";
    let (mut reply, mut exchange) = bench.start(&sent);
    let _ = bench.event(&mut exchange, done("x = 1"), &mut reply);
    let json = reply.json();
    let names: Vec<_> = json.as_object().unwrap().keys().collect();
    assert_eq!(names, ["code", "usage"]);
    sent.target = "/api/v1/generate?fields=kode";
    assert_eq!(bench.ask(&sent).error(), "invalid_parameter");
}

#[test]
fn a_stream_shows_code_as_it_comes_and_the_whole_at_the_end() {
    let mut bench = Bench::new();
    let sent = Sent::generate(r#"{"prompt": "x", "language": "python", "stream": true}"#);
    let (mut reply, mut exchange) = bench.start(&sent);
    for piece in ["Here:\n``", "`python\npri", "nt(1)\nprint", "(2)\n``"] {
        bench.advance(10);
        let flow = bench.event(&mut exchange, token(piece), &mut reply);
        assert_eq!(flow, Flow::Open);
    }
    assert_eq!(reply.status, 200);
    assert_eq!(reply.content_type, Some("text/event-stream"));
    assert_eq!(reply.field("cache-control"), Some("no-store"));
    assert!(reply.text().starts_with("event: delta\ndata: {\"text\":\""));
    let flow = bench.event(&mut exchange, done("`\nDone."), &mut reply);
    assert_eq!(flow, Flow::Finished);
    assert!(reply.is_finished && reply.text().ends_with("\n\n"));
    let events = events(reply.text());
    let (last, deltas) = events.split_last().unwrap();
    let shown: String = deltas
        .iter()
        .map(|(name, data)| {
            assert_eq!(name, "delta");
            data["text"].as_str().unwrap()
        })
        .collect();
    assert_eq!(shown, CODE);
    assert_eq!(last.0, "done");
    assert_eq!(last.1["code"], CODE);
    assert_eq!(last.1["text"], FENCED);
    assert_eq!(last.1["usage"]["completion_tokens"], 3);
    let sum = bench.metric("autoglmd_time_to_first_token_seconds_sum");
    assert_eq!(sum.as_deref(), Some("0.01"));
}

#[test]
fn accept_asks_for_a_stream_and_the_body_decides() {
    let mut bench = Bench::new();
    for (accept, stream, expected) in [
        ("text/event-stream", "", true),
        ("text/event-stream", r#", "stream": false"#, false),
        ("application/json", r#", "stream": true"#, true),
        ("*/*", "", false),
        ("application/json, text/event-stream", "", false),
    ] {
        let body = format!(r#"{{"prompt": "x"{stream}}}"#);
        let sent = Sent::generate(&body).header("accept", accept);
        let (mut reply, mut exchange) = bench.start(&sent);
        assert_eq!(
            bench.job().ticket.take_credit(),
            expected,
            "{accept}{stream}"
        );
        let _ = bench.event(&mut exchange, done("x = 1"), &mut reply);
        let is_stream = reply.content_type == Some("text/event-stream");
        assert_eq!(is_stream, expected, "{accept}{stream}");
    }
}

#[test]
fn credit_is_held_back_while_the_client_does_not_read() {
    let mut bench = Bench::new();
    let sent = Sent::generate(r#"{"prompt": "x", "stream": true}"#);
    let (mut reply, mut exchange) = bench.start(&sent);
    let ticket = bench.job().ticket;
    let credit = || std::iter::from_fn(|| ticket.take_credit().then_some(())).count();
    assert_eq!(credit(), limits::CREDIT_EVENTS as usize);
    let _ = bench.event(&mut exchange, token("a"), &mut reply);
    assert_eq!(credit(), 1);
    reply.room = false;
    let _ = bench.event(&mut exchange, token("b"), &mut reply);
    let _ = bench.event(&mut exchange, token("c"), &mut reply);
    assert_eq!(credit(), 0);
    bench.service.handle_room(&mut exchange);
    assert_eq!(credit(), 2);
    bench.service.handle_room(&mut exchange);
    assert_eq!(credit(), 0);
}

#[test]
fn a_waiting_stream_is_pinged() {
    let mut bench = Bench::new();
    let sent = Sent::generate(r#"{"prompt": "x", "stream": true}"#);
    let (mut reply, mut exchange) = bench.start(&sent);
    let due = bench.now + limits::PING_INTERVAL;
    assert_eq!(exchange.next_deadline(), due);
    // A timer may be early: nothing happens.
    let now = bench.now;
    let flow = bench
        .service
        .handle_deadline(&mut exchange, now, &mut reply);
    assert_eq!((flow, reply.is_started), (Flow::Open, false));
    for expected in [": ping\n\n", ": ping\n\n: ping\n\n"] {
        bench.now = exchange.next_deadline();
        let now = bench.now;
        let flow = bench
            .service
            .handle_deadline(&mut exchange, now, &mut reply);
        assert_eq!((flow, reply.text()), (Flow::Open, expected));
    }
    // A full output needs no sign of life.
    reply.room = false;
    bench.now = exchange.next_deadline();
    let now = bench.now;
    let _ = bench
        .service
        .handle_deadline(&mut exchange, now, &mut reply);
    assert_eq!(reply.text(), ": ping\n\n: ping\n\n");
    assert!(exchange.next_deadline() > now);
    // A response in one piece has no pings.
    let (_, exchange) = bench.start(&Sent::generate(r#"{"prompt": "x", "timeout": 20000}"#));
    let deadline = bench.now + Duration::from_secs(20);
    assert_eq!(exchange.next_deadline(), deadline);
}

#[test]
fn a_refusal_of_the_engine_carries_the_time_to_wait() {
    let mut bench = Bench::new();
    let seconds = Duration::from_secs;
    for (refused, code, retry_after) in [
        (
            Refused::QueueFull {
                retry_after: Duration::from_millis(2_300),
            },
            "queue_full",
            "3",
        ),
        (
            Refused::DeadlineUnmeetable {
                estimated: seconds(9),
            },
            "deadline_unmeetable",
            "9",
        ),
        (Refused::Loading, "model_loading", "2"),
        (Refused::Draining, "draining", "1"),
        (Refused::Unavailable("gone".into()), "engine_failed", "1"),
    ] {
        *bench.engine.refusal.lock().unwrap() = Some(refused);
        for body in [r#"{"prompt": "x"}"#, r#"{"prompt": "x", "stream": true}"#] {
            let reply = bench.ask(&Sent::generate(body));
            assert_eq!(reply.error(), code);
            assert_eq!(reply.field("retry-after"), Some(retry_after), "{code}");
        }
    }
    *bench.engine.refusal.lock().unwrap() = None;
    bench.service.set_draining();
    let reply = bench.ask(&Sent::generate(r#"{"prompt": "x"}"#));
    assert_eq!(reply.error(), "draining");
}

#[test]
fn a_job_that_fails_before_the_first_code_gets_its_true_status() {
    for stream in ["", r#", "stream": true"#] {
        let mut bench = Bench::new();
        let body = format!(r#"{{"prompt": "x"{stream}}}"#);
        for code in [
            ErrorCode::ContextLengthExceeded,
            ErrorCode::EngineFailed,
            ErrorCode::GenerationTimeout,
            ErrorCode::DeadlineUnmeetable,
        ] {
            let (mut reply, mut exchange) = bench.start(&Sent::generate(&body));
            let flow = bench.event(&mut exchange, failed_with(code), &mut reply);
            assert_eq!(flow, Flow::Finished);
            assert_eq!(reply.error(), code.as_str());
            let can_be_retried = code != ErrorCode::ContextLengthExceeded;
            assert_eq!(reply.field("retry-after").is_some(), can_be_retried);
        }
    }
}

#[test]
fn time_that_is_up_shows_what_was_written() {
    let mut bench = Bench::new();
    let written = "```\nprint(1)\nprint(2)";
    let (mut reply, mut exchange) = bench.start(&Sent::generate(r#"{"prompt": "x"}"#));
    let event = failed(FailReason::Error(ErrorCode::GenerationTimeout), written);
    let _ = bench.event(&mut exchange, event, &mut reply);
    assert_eq!(reply.error(), "generation_timeout");
    assert_eq!(reply.json()["error"]["partial"], CODE);
    assert_eq!(
        bench
            .metric(r#"autoglmd_cancelled_total{reason="deadline"}"#)
            .as_deref(),
        Some("1")
    );

    // A stream that has begun ends in an event, after the code that was still held back.
    let sent = Sent::generate(r#"{"prompt": "x", "stream": true}"#);
    let (mut reply, mut exchange) = bench.start(&sent);
    let _ = bench.event(&mut exchange, token("```\nprint(1)\npr"), &mut reply);
    let event = failed(FailReason::Error(ErrorCode::GenerationTimeout), "int(2)");
    assert_eq!(
        bench.event(&mut exchange, event, &mut reply),
        Flow::Finished
    );
    assert!(reply.is_finished);
    let events = events(reply.text());
    let (last, deltas) = events.split_last().unwrap();
    let shown = deltas
        .iter()
        .map(|(_, data)| data["text"].as_str().unwrap());
    assert_eq!(shown.collect::<String>(), CODE);
    assert_eq!(last.0, "error");
    assert_eq!(last.1["error"]["code"], "generation_timeout");
    assert_eq!(last.1["error"]["partial"], CODE);
    let labels = r#"autoglmd_errors_total{code="generation_timeout"}"#;
    assert_eq!(bench.metric(labels).as_deref(), Some("2"));
}

#[test]
fn an_engine_that_is_stuck_does_not_hold_the_client() {
    for stream in ["", r#", "stream": true"#] {
        let mut bench = Bench::new();
        let body = format!(r#"{{"prompt": "x", "timeout": 1000{stream}}}"#);
        let (mut reply, mut exchange) = bench.start(&Sent::generate(&body));
        let due = bench.pass_deadline(&mut exchange, &mut reply);
        let flow = bench.pass_deadline(&mut exchange, &mut reply);
        assert_eq!((due, flow), (Flow::Open, Flow::Finished));
        assert_eq!(*bench.engine.overdue.lock().unwrap(), [bench.job().key]);
        assert_eq!(reply.error(), "generation_timeout");
        assert_eq!(reply.json()["error"]["partial"], "");
        let ticket = bench.job().ticket;
        assert_eq!(ticket.cancelled(), Some(CancelReason::Deadline));
    }
}

#[test]
fn a_client_that_leaves_stops_its_job_and_is_recorded() {
    let mut bench = Bench::new();
    let (_, exchange) = bench.start(&Sent::generate(r#"{"prompt": "x"}"#));
    let now = bench.now;
    bench
        .service
        .abandon(exchange, CancelReason::Disconnect, now);
    let ticket = bench.job().ticket;
    assert_eq!(ticket.cancelled(), Some(CancelReason::Disconnect));
    for (name, expected) in [
        (r#"autoglmd_cancelled_total{reason="disconnect"}"#, "1"),
        (
            r#"autoglmd_requests_total{route="generate",status="499"}"#,
            "1",
        ),
    ] {
        assert_eq!(bench.metric(name).as_deref(), Some(expected), "{name}");
    }
}

#[test]
fn a_key_has_so_many_places_until_its_jobs_have_really_ended() {
    let mut bench = Bench::new();
    let sent = Sent::generate(r#"{"prompt": "x", "max_tokens": 1}"#).key(NARROW);
    let (_, exchange) = bench.start(&sent);
    let reply = bench.ask(&sent);
    assert_eq!(reply.error(), "too_many_concurrent");
    assert_eq!(reply.field("retry-after"), Some("1"));
    let now = bench.now;
    bench
        .service
        .abandon(exchange, CancelReason::Disconnect, now);
    // The client is gone, but the engine has not released the job yet.
    assert_eq!(bench.ask(&sent).error(), "too_many_concurrent");
    bench.engine.jobs.lock().unwrap().clear();
    let _ = bench.start(&sent);
}

/// Mutations that this test catches: a request's own value that is overwritten, and the neutral
/// defaults instead of the model's.
#[test]
fn what_a_request_leaves_open_is_the_model_s_default() {
    for (body, repeat_penalty, max_tokens) in [
        (r#"{"prompt": "x"}"#, 1.25, 77),
        (
            r#"{"prompt": "x", "repeat_penalty": 1, "max_tokens": 5}"#,
            1.0,
            5,
        ),
        (r#"{"prompt": "x", "repeat_penalty": null}"#, 1.25, 77),
    ] {
        let mut bench = Bench::new();
        let _ = bench.start(&Sent::generate(body));
        let job = bench.job();
        let effective = (job.sampling.repeat_penalty, job.max_tokens);
        assert_eq!(effective, (repeat_penalty, max_tokens), "{body}");
    }
    // The reservation covers what may be generated: a token of prompt and 77 of output.
    let mut bench = Bench::new();
    let (mut reply, mut exchange) =
        bench.start(&Sent::generate(r#"{"prompt": "four"}"#).key(NARROW));
    let event = failed_with(ErrorCode::EngineFailed);
    let _ = bench.event(&mut exchange, event, &mut reply);
    assert_eq!(reply.field("x-ratelimit-remaining-tokens"), Some("22"));
}

#[test]
fn tokens_are_reserved_and_settled() {
    let mut bench = Bench::new();
    let body = r#"{"prompt": "four", "max_tokens": 80}"#;
    let sent = Sent::generate(body).key(NARROW);
    let (mut reply, mut exchange) = bench.start(&sent);
    let _ = bench.event(&mut exchange, done("x"), &mut reply);
    assert_eq!(reply.field("x-ratelimit-limit-tokens"), Some("100"));
    assert_eq!(reply.field("x-ratelimit-remaining-tokens"), Some("19"));
    drop(exchange);
    bench.engine.jobs.lock().unwrap().clear();
    // 12 of the 81 were used, so 88 are left: 81 pass, and after them 7 are left.
    let (mut reply, mut exchange) = bench.start(&sent);
    let event = failed_with(ErrorCode::EngineFailed);
    let _ = bench.event(&mut exchange, event, &mut reply);
    assert_eq!(reply.field("x-ratelimit-remaining-tokens"), Some("7"));
    drop(exchange);
    bench.engine.jobs.lock().unwrap().clear();
    // 24 are used by now; a job that the engine refuses costs nothing.
    *bench.engine.refusal.lock().unwrap() = Some(Refused::Loading);
    let body = r#"{"prompt": "four", "max_tokens": 70}"#;
    let reply = bench.ask(&Sent::generate(body).key(NARROW));
    assert_eq!(reply.error(), "model_loading");
    let body = r#"{"prompt": "four", "max_tokens": 76}"#;
    let reply = bench.ask(&Sent::generate(body).key(NARROW));
    assert_eq!(reply.error(), "token_budget_exceeded");
    assert_eq!(reply.field("x-ratelimit-remaining-tokens"), Some("76"));
    // One token short, at 100 per minute.
    assert_eq!(reply.field("retry-after-ms"), Some("600"));
}

/// A regression test: an engine that was stuck made its jobs free of charge.
#[test]
fn what_a_stuck_engine_has_cost_is_not_given_back() {
    let mut bench = Bench::new();
    let body = r#"{"prompt": "four", "max_tokens": 80}"#;
    let sent = Sent::generate(body).key(NARROW);
    let (mut reply, mut exchange) = bench.start(&sent);
    // Without the bench's clock, which refills the bucket.
    for expected in [Flow::Open, Flow::Finished] {
        let until = exchange.next_deadline();
        let flow = bench
            .service
            .handle_deadline(&mut exchange, until, &mut reply);
        assert_eq!(flow, expected);
    }
    drop(exchange);
    bench.engine.jobs.lock().unwrap().clear();
    // The bucket is as it was after the reservation: 19 of 100 are left.
    let reply = bench.ask(&sent);
    assert_eq!(reply.error(), "token_budget_exceeded");
    assert_eq!(reply.field("x-ratelimit-remaining-tokens"), Some("19"));
}

#[test]
fn models_are_checked_by_name() {
    let mut bench = Bench::new();
    for name in ["tiny", "default"] {
        let _ = bench.start(&Sent::generate(&format!(
            r#"{{"prompt": "x", "model": "{name}"}}"#
        )));
    }
    let reply = bench.ask(&Sent::generate(r#"{"prompt": "x", "model": "huge"}"#));
    assert_eq!(reply.error(), "model_not_found");
    assert!(reply.text().contains("tiny"));
    // While no model is known, the engine's own refusal is the response.
    let mut bench = Bench::new();
    *bench.engine.state.lock().unwrap() = State::Loading { percent: 1 };
    *bench.engine.refusal.lock().unwrap() = Some(Refused::Loading);
    let reply = bench.ask(&Sent::generate(r#"{"prompt": "x", "model": "huge"}"#));
    assert_eq!(reply.error(), "model_loading");
}

#[test]
fn a_hostile_body_is_just_a_bad_one() {
    let mut bench = Bench::new();
    let nested = "[".repeat(64 * 1024);
    let closed = format!(r#"{{"prompt": {nested}{}}}"#, "]".repeat(64 * 1024));
    for (body, code) in [
        (nested.as_str(), "invalid_request"),
        (&closed, "invalid_parameter"),
        ("{", "invalid_json"),
        ("", "invalid_json"),
        ("null", "invalid_request"),
        (r#"{"prompt": "x", "prompt": "y"}"#, "invalid_parameter"),
    ] {
        let reply = bench.ask(&Sent::generate(body));
        assert_eq!(reply.error(), code, "{:.40}", body);
    }
    assert!(bench.engine.jobs.lock().unwrap().is_empty());
}

#[test]
fn tenants_differ_by_key_and_not_by_request() {
    let mut bench = Bench::new();
    let mut tenant = |byte| {
        let _ = bench.start(&Sent::generate(r#"{"prompt": "x"}"#).key(byte));
        bench.job().tenant
    };
    let mine = tenant(FULL);
    assert_eq!(mine, tenant(FULL));
    assert_ne!(mine, tenant(NARROW));
}

/// Mutation: a job that always has the weight of an anonymous one.
#[test]
fn a_keys_weight_comes_to_the_engine() {
    let mut bench = Bench::new();
    let mut job = |byte| {
        let _ = bench.start(&Sent::generate(r#"{"prompt": "x"}"#).key(byte));
        bench.job()
    };
    assert_eq!((job(FULL).weight, job(NARROW).weight), (1, 3));
    assert_eq!(job(FULL).class, Class::Live, "a client waits for it");
}

/// Mutation: `failure` without its retry.
#[test]
fn a_job_that_made_room_for_another_tenant_says_when_to_come_back() {
    let mut bench = Bench::new();
    let (mut reply, exchange) = bench.send(&Sent::generate(r#"{"prompt": "x"}"#));
    let reason = FailReason::CrowdedOut {
        retry_after: Duration::from_millis(2_300),
    };
    let _ = bench.event(
        &mut exchange.expect("a job"),
        failed(reason, ""),
        &mut reply,
    );
    assert_eq!(reply.error(), "queue_full");
    assert_eq!(reply.field("retry-after"), Some("3"));
}
