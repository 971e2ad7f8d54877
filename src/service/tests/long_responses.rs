//! Responses that are too long for a reactor: workers write them.
//!
//! Mutations that these tests catch: `is_long` that is always false; `begin_written` without the
//! fields; `next_deadline` that does not mind the retry; a task whose drop does not reply; a last
//! piece that is flushed and not finished; `respond_with_error` that sends a head after a stream's.

use super::*;
use crate::engine::{FailReason, Failed, Timings, Usage};
use crate::http::compress::Coding;
use crate::http::compress::decode::{Bound, DecodeError, decode_body};

const LINE: &str = "print(\"a line of a long program\")\n";

fn long_text() -> String {
    let lines = LINE.repeat(limits::WRITE_AT_ONCE_BYTES_MAX / LINE.len() + 1);
    format!("```python\n{lines}```\n")
}

/// A generation whose workers run when the test wants it, and its exchange.
fn begun(header: (&str, &str)) -> (Bench, Box<Exchange>, Recording) {
    let mut bench = Bench::new();
    let sent = Sent::generate(r#"{"prompt": "x"}"#).header(header.0, header.1);
    let (mut reply, mut exchange) = bench.start(&sent);
    bench.are_workers_slow = true;
    let flow = bench.event(&mut exchange, done(&long_text()), &mut reply);
    assert_eq!(flow, Flow::Open);
    assert!(!reply.is_started);
    (bench, exchange, reply)
}

/// Runs the workers and hands in the result.
fn finish(bench: &mut Bench, exchange: &mut Exchange, reply: &mut Recording) -> Flow {
    assert!(bench.workers.run_one());
    let written = bench.replies.take().pop().expect("a result");
    bench.complete(exchange, written, reply)
}

#[test]
fn a_worker_writes_a_long_response_as_the_reactor_would() {
    let (mut bench, mut exchange, mut reply) = begun(("accept", "*/*"));
    assert_eq!(bench.workers.figures().waiting, 1);
    assert!(exchange.buffered_bytes() > limits::WRITE_AT_ONCE_BYTES_MAX);
    let flow = finish(&mut bench, &mut exchange, &mut reply);
    assert_eq!((flow, reply.status), (Flow::Finished, 200));
    let json = reply.json();
    assert_eq!(json["text"], long_text());
    assert!(json["code"].as_str().unwrap().starts_with("print("));
    assert_eq!(json["usage"]["completion_tokens"], 3);
    assert!(reply.field("server-timing").unwrap().contains("decode"));
    assert_eq!(reply.field("cache-control"), Some("no-store"));
    let labels = r#"autoglmd_requests_total{route="generate",status="200"}"#;
    assert_eq!(bench.metric(labels).as_deref(), Some("1"));
}

#[test]
fn a_worker_compresses_it() {
    for coding in ["gzip", "br", "zstd"] {
        let (mut bench, mut exchange, mut reply) = begun(("accept-encoding", coding));
        let flow = finish(&mut bench, &mut exchange, &mut reply);
        assert_eq!(flow, Flow::Finished);
        assert_eq!(reply.field("content-encoding"), Some(coding));
        assert_eq!(reply.field("vary"), Some("Accept-Encoding"));
        assert!(reply.body.len() < long_text().len() / 10, "{coding}");
    }
}

#[test]
fn a_short_response_needs_no_worker() {
    let mut bench = Bench::new();
    bench.are_workers_slow = true;
    let short = &long_text()[..limits::WRITE_AT_ONCE_BYTES_MAX];
    for body in [r#"{"prompt": "x"}"#, STREAMED] {
        let (mut reply, mut exchange) = bench.start(&Sent::generate(body));
        let flow = bench.event(&mut exchange, done(short), &mut reply);
        assert_eq!(flow, Flow::Finished);
    }
    assert_eq!(bench.workers.figures().waiting, 0);
}

const STREAMED: &str = r#"{"prompt": "x", "stream": true}"#;

/// A stream that has sent a line, and whose last event is at slow workers.
fn streaming(header: (&str, &str)) -> (Bench, Box<Exchange>, Recording) {
    let mut bench = Bench::new();
    let sent = Sent::generate(STREAMED).header(header.0, header.1);
    let (mut reply, mut exchange) = bench.start(&sent);
    let (first, rest) = SPLIT;
    let flow = bench.event(&mut exchange, token(first), &mut reply);
    assert_eq!((flow, reply.is_started), (Flow::Open, true));
    bench.are_workers_slow = true;
    let rest = rest.repeat(limits::WRITE_AT_ONCE_BYTES_MAX / rest.len() + 1);
    let flow = bench.event(&mut exchange, done(&rest), &mut reply);
    assert_eq!((flow, reply.is_finished), (Flow::Open, false));
    (bench, exchange, reply)
}

const SPLIT: (&str, &str) = ("```python\nfirst()\n", LINE);

fn plain(reply: &Recording, coding: Option<Coding>) -> String {
    let mut text = Vec::new();
    match coding {
        None => text.clone_from(&reply.body),
        Some(coding) => {
            let bound = Bound::of(usize::MAX, 1 << 24, u32::MAX);
            decode_body(coding, &reply.body, bound, &mut text).unwrap();
        }
    }
    String::from_utf8(text).unwrap()
}

#[test]
fn a_worker_writes_the_last_event_of_a_long_stream() {
    for coding in [
        None,
        Some(Coding::Gzip),
        Some(Coding::Zstd),
        Some(Coding::Brotli),
    ] {
        let name = coding.map_or("identity", Coding::name);
        let (mut bench, mut exchange, mut reply) = streaming(("accept-encoding", name));
        let flow = finish(&mut bench, &mut exchange, &mut reply);
        assert_eq!((flow, reply.is_finished), (Flow::Finished, true));
        let text = plain(&reply, coding);
        let events: Vec<&str> = text.split_terminator("\n\n").collect();
        let names = events.iter().map(|event| event.lines().next().unwrap());
        let names: Vec<_> = names.collect();
        assert_eq!(names, ["event: delta", "event: delta", "event: done"]);
        let data = |event: &str| -> serde_json::Value {
            serde_json::from_str(event.split_once("data: ").unwrap().1).unwrap()
        };
        let deltas = events[..2].iter().map(|event| data(event));
        let deltas: String = deltas
            .map(|it| it["text"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(data(events[2])["code"], deltas);
        assert_eq!(
            bench.metric("autoglmd_compressed_streams").as_deref(),
            Some("0")
        );
        assert_eq!(bench.service.buffered().held(), 0);
    }
}

/// With an encoder the coded bytes end early instead. Mutation: `failing` that is always `None`.
#[test]
fn a_stream_whose_last_event_is_lost_ends_with_an_error() {
    for coding in ["identity", "gzip"] {
        let (mut bench, mut exchange, mut reply) = streaming(("accept-encoding", coding));
        drop(bench.workers.take_one());
        let lost = bench.replies.take().pop().expect("its drop replies");
        let flow = bench.complete(&mut exchange, lost, &mut reply);
        assert_eq!((flow, reply.is_finished), (Flow::Finished, true));
        let labels = r#"autoglmd_requests_total{route="generate",status="200"}"#;
        assert_eq!(bench.metric(labels).as_deref(), Some("1"));
        if coding == "gzip" {
            let (mut text, bound) = (Vec::new(), Bound::of(usize::MAX, 1 << 24, u32::MAX));
            let decoded = decode_body(Coding::Gzip, &reply.body, bound, &mut text);
            assert_eq!(decoded, Err(DecodeError::Truncated));
            continue;
        }
        let (_, last) = reply.text().rsplit_once("event: ").unwrap();
        assert!(
            last.starts_with("error\n") && last.contains("internal"),
            "{last}"
        );
    }
}

#[test]
fn a_stream_that_finds_no_worker_ends_with_an_error() {
    let mut bench = Bench::new();
    let (mut reply, mut exchange) = bench.start(&Sent::generate(STREAMED));
    bench.are_workers_slow = true;
    bench.workers.close();
    let flow = bench.event(&mut exchange, done(&long_text()), &mut reply);
    assert_eq!((flow, reply.is_started), (Flow::Open, true));
    bench.now = bench.now + limits::WRITING_TIME_MAX;
    let now = bench.now;
    let flow = bench
        .service
        .handle_deadline(&mut exchange, now, &mut reply);
    assert_eq!((flow, reply.is_finished), (Flow::Finished, true));
    let (_, last) = reply.text().rsplit_once("event: ").unwrap();
    assert!(
        last.starts_with("error\n") && last.contains("generation_timeout"),
        "{last}"
    );
}

/// Mutation: `may_repeat_text` that is always true.
#[test]
fn an_error_repeats_no_long_text_that_would_have_to_be_compressed() {
    for (body, accepted, is_repeated) in [
        (STREAMED, "gzip", false),
        (r#"{"prompt": "x"}"#, "gzip", true),
        (r#"{"prompt": "x"}"#, "gzip, identity;q=0", false),
    ] {
        let mut bench = Bench::new();
        let sent = Sent::generate(body).header("accept-encoding", accepted);
        let (mut reply, mut exchange) = bench.start(&sent);
        let mut text = long_text();
        if body == STREAMED {
            let flow = bench.event(&mut exchange, token(&text), &mut reply);
            assert_eq!(flow, Flow::Open);
            text.clear();
        }
        let before = reply.body.len();
        let timed_out = Event::Failed(Box::new(Failed {
            reason: FailReason::Error(ErrorCode::GenerationTimeout),
            message: String::new(),
            text,
            usage: Usage::default(),
            timings: Timings::default(),
        }));
        let flow = bench.event(&mut exchange, timed_out, &mut reply);
        assert_eq!(flow, Flow::Finished);
        let compressed = plain(
            &reply,
            reply.field("content-encoding").and_then(Coding::parse),
        );
        let last = compressed.rsplit("generation_timeout").next().unwrap();
        assert_eq!(
            last.contains("a line of a long program"),
            is_repeated,
            "{body} {accepted}"
        );
        assert!(is_repeated || reply.body.len() - before < 1_024);
    }
}

#[test]
fn a_lost_task_ends_the_response_with_an_error() {
    let (mut bench, mut exchange, mut reply) = begun(("accept", "*/*"));
    drop(bench.workers.take_one());
    let lost = bench.replies.take().pop().expect("its drop replies");
    let flow = bench.complete(&mut exchange, lost, &mut reply);
    assert_eq!(flow, Flow::Finished);
    assert_eq!(reply.error(), "internal");
}

#[test]
fn a_client_that_has_left_is_written_nothing() {
    let (mut bench, exchange, _) = begun(("accept", "*/*"));
    let now = bench.now;
    bench
        .service
        .abandon(exchange, CancelReason::Disconnect, now);
    assert!(bench.workers.run_one());
    assert_eq!(bench.workers.figures().unwanted, 1);
}

#[test]
fn a_response_waits_for_a_place_at_the_workers() {
    let mut bench = Bench::new();
    let (mut reply, mut exchange) = bench.start(&Sent::generate(r#"{"prompt": "x"}"#));
    bench.are_workers_slow = true;
    bench.workers.close();
    let flow = bench.event(&mut exchange, done(&long_text()), &mut reply);
    assert_eq!(flow, Flow::Open);
    assert_eq!(exchange.next_deadline(), bench.now + limits::WORKER_RETRY);
    let longest = bench.now + limits::WRITING_TIME_MAX;
    while bench.now < longest {
        bench.now = exchange.next_deadline();
        let flow = bench
            .service
            .handle_deadline(&mut exchange, bench.now, &mut reply);
        assert_eq!(flow == Flow::Finished, bench.now >= longest);
    }
    assert_eq!(reply.error(), "generation_timeout");
}
