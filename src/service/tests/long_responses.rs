//! Responses that are too long for a reactor: workers write them.
//!
//! Mutations that these tests catch: `is_long` that is always false; `begin_written` without the
//! fields; `next_deadline` that does not mind the retry; a task whose drop does not reply.

use super::*;

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
fn a_stream_and_a_short_response_need_no_worker() {
    let mut bench = Bench::new();
    bench.are_workers_slow = true;
    let short = &long_text()[..limits::WRITE_AT_ONCE_BYTES_MAX];
    for (body, text) in [
        (r#"{"prompt": "x"}"#, short.to_owned()),
        (r#"{"prompt": "x", "stream": true}"#, long_text()),
    ] {
        let (mut reply, mut exchange) = bench.start(&Sent::generate(body));
        let flow = bench.event(&mut exchange, done(&text), &mut reply);
        assert_eq!(flow, Flow::Finished);
    }
    assert_eq!(bench.workers.figures().waiting, 0);
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
