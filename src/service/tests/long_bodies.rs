//! Bodies that are too long for a reactor: workers read them.
//!
//! Mutations that these tests catch: `is_long` that is always false, or that does not count what a
//! compressed body may become; `is_wanted` that is always true; a task whose drop does not reply;
//! `abandon` without `cancel` while a body is read; a refused task that replies as well.

use super::grpc::Rpc;
use super::*;
use crate::engine::Prompt;
use crate::http::compress::Coding;
use crate::http::compress::encode::encode_whole;
use crate::offload::Task;

/// A request for `x` of at least `bytes` bytes.
fn padded(bytes: usize) -> String {
    format!(
        "{{\"prompt\": \"x\",{} \"max_tokens\": 1}}",
        " ".repeat(bytes)
    )
}

fn long() -> String {
    padded(limits::READ_AT_ONCE_BYTES_MAX)
}

fn gzip(text: &str) -> Vec<u8> {
    let mut packed = Vec::new();
    encode_whole(Coding::Gzip, text.as_bytes(), &mut packed).unwrap();
    packed
}

/// A bench whose workers run when the test wants it.
fn slow_bench() -> Bench {
    let mut bench = Bench::new();
    bench.are_workers_slow = true;
    bench
}

fn waiting(bench: &Bench) -> usize {
    bench.workers.figures().waiting
}

/// Hands the workers' results in, as the reactor would.
fn deliver(bench: &mut Bench, exchange: Box<Exchange>) -> (Recording, Option<Box<Exchange>>) {
    let mut reply = Recording::new();
    bench.are_workers_slow = false;
    let exchange = bench.run_workers(Some(exchange), &mut reply);
    bench.are_workers_slow = true;
    (reply, exchange)
}

#[test]
fn a_worker_reads_what_a_reactor_would_read_slowly() {
    let mut bench = slow_bench();
    let short = padded(limits::READ_AT_ONCE_BYTES_MAX - 100);
    bench.start(&Sent::generate(&short));
    assert_eq!(waiting(&bench), 0, "short bodies are read at once");
    let body = long();
    let (reply, exchange) = bench.start(&Sent::generate(&body));
    assert!(!reply.is_started);
    assert_eq!(waiting(&bench), 1);
    assert_eq!(bench.engine.jobs.lock().unwrap().len(), 1);
    let (_, exchange) = deliver(&mut bench, exchange);
    let mut exchange = exchange.expect("a job");
    let job = bench.job();
    assert!(matches!(job.prompt, Prompt::Code { prompt, .. } if prompt == "x"));
    assert_eq!(job.max_tokens, 1);
    let mut reply = Recording::new();
    assert_eq!(
        bench.event(&mut exchange, done("y"), &mut reply),
        Flow::Finished
    );
    assert_eq!(reply.json()["text"], "y");
}

#[test]
fn a_stream_gets_its_credit_after_a_worker_has_read_it() {
    let mut bench = slow_bench();
    let body = long();
    let sent = Sent::generate(&body).header("accept", "text/event-stream");
    let (_, exchange) = bench.start(&sent);
    let (_, exchange) = deliver(&mut bench, exchange);
    assert!(exchange.is_some());
    let job = bench.job();
    let credit = std::iter::from_fn(|| job.ticket.take_credit().then_some(())).count();
    assert_eq!(credit, limits::CREDIT_EVENTS as usize);
}

#[test]
fn what_a_compressed_body_may_become_decides() {
    let mut bench = slow_bench();
    let sent = Sent::generate("").header("content-encoding", "gzip");
    let small = gzip(&padded(100));
    assert!(small.len() < 100, "{}", small.len());
    assert!(bench.start_with_body(&sent, &small).is_some());
    assert_eq!(waiting(&bench), 0);
    // A thousandth of its size, but long enough to become 64 KiB within the ratio.
    let dense = gzip(&padded(800_000));
    assert!(
        dense.len() < limits::INFLATE_AT_ONCE_BYTES_MAX,
        "{}",
        dense.len()
    );
    let exchange = bench.start_with_body(&sent, &dense).unwrap();
    assert_eq!(waiting(&bench), 1);
    let (reply, _) = deliver(&mut bench, exchange);
    assert_eq!(reply.error(), "body_too_large", "more than a hundredfold");
    // gRPC compresses the message.
    let message = [&[1][..], &[0, 0, 8, 0], &[0; 2_048]].concat();
    let rpc = Rpc::of_bytes("/AutoGLMService/Generate", message);
    let (_, exchange) = rpc.send(&mut bench);
    assert!(exchange.is_some());
    assert_eq!(waiting(&bench), 1);
}

#[test]
fn errors_in_a_long_body_are_found_as_in_a_short_one() {
    let mut bench = Bench::new();
    for (body, code) in [
        (
            format!("{{\"prompt\": {}", "[".repeat(100_000)),
            "invalid_json",
        ),
        (padded(100_000).replace("\"x\"", "7"), "invalid_parameter"),
        (
            padded(100_000).replace("prompt", "promt"),
            "invalid_parameter",
        ),
    ] {
        let reply = bench.ask(&Sent::generate(&body));
        assert_eq!(reply.error(), code);
        let id = reply.field("x-request-id").unwrap();
        assert!(!id.is_empty());
    }
    assert_eq!(bench.workers.figures().done, 3);
}

#[test]
fn a_client_that_leaves_gets_its_place_back_from_the_worker() {
    let mut bench = slow_bench();
    let body = long();
    let sent = Sent::generate(&body).key(NARROW);
    let (_, exchange) = bench.start(&sent);
    bench
        .service
        .abandon(exchange, CancelReason::Disconnect, bench.now);
    assert_eq!(bench.ask(&sent).error(), "too_many_concurrent");
    assert!(bench.workers.run_one());
    assert_eq!(bench.workers.figures().unwanted, 1, "it was not read");
    assert!(matches!(bench.replies.take()[..], [Completion::Read(_)]));
    assert!(bench.engine.jobs.lock().unwrap().is_empty());
    bench.start(&sent);
}

#[test]
fn a_full_pool_refuses_once() {
    let mut bench = slow_bench();
    struct Idle;
    impl Task for Idle {
        fn is_wanted(&self) -> bool {
            true
        }

        fn run(self: Box<Idle>) {}
    }
    let mut others = 1_000_000..;
    while bench
        .workers
        .submit(others.next().unwrap(), 0, Idle)
        .is_ok()
    {}
    let before = waiting(&bench);
    let body = long();
    let reply = bench.ask(&Sent::generate(&body));
    assert_eq!(reply.error(), "queue_full");
    assert!(reply.field("retry-after").is_some());
    assert_eq!(waiting(&bench), before);
    assert!(bench.replies.take().is_empty(), "a second response");
}

#[test]
fn a_task_that_is_lost_ends_its_request() {
    let mut bench = slow_bench();
    let body = long();
    let (_, exchange) = bench.start(&Sent::generate(&body));
    // A panic drops the task, and so does the end of the pool.
    drop(bench.workers.take_one());
    let (reply, exchange) = deliver(&mut bench, exchange);
    assert!(exchange.is_none());
    assert_eq!(reply.error(), "internal");
}

#[test]
fn a_body_that_is_not_read_in_time_times_out() {
    let mut bench = slow_bench();
    let body = long();
    let (_, mut exchange) = bench.start(&Sent::generate(&body));
    let longest = config().limits.max_request_timeout;
    assert_eq!(exchange.next_deadline(), bench.now + longest);
    bench.now = bench.now + longest;
    let mut reply = Recording::new();
    let flow = bench
        .service
        .handle_deadline(&mut exchange, bench.now, &mut reply);
    assert_eq!(flow, Flow::Finished);
    assert_eq!(reply.error(), "generation_timeout");
    assert!(bench.workers.run_one());
    assert_eq!(bench.workers.figures().unwanted, 1);
}

#[test]
fn a_drain_refuses_a_body_that_has_been_read_too_late() {
    let mut bench = slow_bench();
    let body = long();
    let (_, exchange) = bench.start(&Sent::generate(&body));
    bench.service.set_draining();
    let (reply, _) = deliver(&mut bench, exchange);
    assert_eq!(reply.error(), "draining");
    assert!(bench.engine.jobs.lock().unwrap().is_empty());
}
