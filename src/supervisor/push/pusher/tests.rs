//! The pusher with a clock of the test's own, numbers of the test's own, and no reactor.

use std::path::PathBuf;
use std::sync::Mutex;

use crossbeam_channel::{TryRecvError, bounded, unbounded};
use prost::Message as _;

use super::*;
use crate::config::MetricsPush;
use crate::limits::outbound as outbound_limits;
use crate::offload::fetch::{Admitted, FetchDoor, Order, Stage};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::otlp::message::{ExportResponse, PartialSuccess};
use crate::telemetry::otlp::snapshot::Batch;

const INTERVAL: Duration = Duration::from_secs(15);
const BATCH_BYTES: usize = 100;

/// Each reading is a batch, and has one point more than the one before.
struct Counted {
    readings: u64,
    batch_bytes: usize,
}

impl Numbers for Counted {
    fn read(&mut self) -> Vec<Batch> {
        self.readings += 1;
        vec![Batch {
            bytes: vec![self.readings as u8; self.batch_bytes].into(),
            points: self.readings,
        }]
    }
}

/// Keeps the fetches, as reactors that are slow.
#[derive(Default)]
struct Held(Mutex<Vec<Admitted>>);

impl FetchDoor for Held {
    fn post(&self, _: u64, order: Order) {
        if let Order::Begin(admitted) = order {
            self.0.lock().expect("one thread").push(*admitted);
        }
    }
}

struct Bench {
    pusher: Pusher<Counted>,
    held: Arc<Held>,
    notes: Receiver<Note>,
    now: Moment,
}

impl Bench {
    fn new(spool: usize, adjust: impl FnOnce(&mut MetricsPush)) -> Bench {
        let mut settings = MetricsPush {
            url: "http://collector.test/v1/metrics?a=b".to_owned(),
            ..crate::config::Config::default().metrics_push
        };
        adjust(&mut settings);
        let held = Arc::<Held>::default();
        let (own, notes) = unbounded();
        let now = Moment::from_micros(1_000_000);
        let pusher = Pusher {
            numbers: Counted {
                readings: 0,
                batch_bytes: BATCH_BYTES,
            },
            series: Metrics::new("echo").series(),
            delivery: Delivery::new(spool, 7),
            target: Target::of(&settings, None).expect("good settings"),
            fetcher: Fetcher::new(held.clone()),
            own,
            interval: INTERVAL,
            next_at: now + INTERVAL,
            last: None,
            troubles: Troubles::default(),
        };
        Bench {
            pusher,
            held,
            notes,
            now,
        }
    }

    /// Lets the time pass until the pusher has something to do, as its thread does.
    fn wait(&mut self) {
        self.now = self.pusher.next_moment();
        self.pusher.poll(self.now);
    }

    /// Takes the request that is on its way.
    fn sent(&self) -> Option<Admitted> {
        let mut held = self.held.0.lock().expect("one thread");
        assert!(held.len() <= 1, "one at a time");
        held.pop()
    }

    /// Returns the number of the batch that is on its way.
    fn number(&self) -> Option<u8> {
        let held = self.held.0.lock().expect("one thread");
        held.first().map(|sent| sent.request.body[0])
    }

    /// Ends the request that is on its way.
    fn end(&mut self, result: Result<Response, FetchError>) {
        self.finish(result);
        self.pusher.poll(self.now);
    }

    /// The same without the next `poll`, which takes the line of the log.
    fn finish(&mut self, result: Result<Response, FetchError>) {
        self.sent().expect("a request").finish(result);
        let Ok(Note::Result(result)) = self.notes.try_recv() else {
            panic!("the result comes back to the thread");
        };
        self.pusher.handle_result(result, self.now);
    }

    fn respond(&mut self, status: u16) {
        self.end(response(status, "", b""));
    }

    /// Returns the pushes with each outcome, in the order of [`Attempt`].
    fn attempts(&self) -> [u64; 5] {
        let attempts = &self.pusher.series.attempts;
        [
            Attempt::Taken,
            Attempt::Partial,
            Attempt::Again,
            Attempt::Refused,
            Attempt::Failed,
        ]
        .map(|attempt| attempts.get(attempt).get())
    }

    /// Returns the points with each end, in the order of [`Points`].
    fn points(&self) -> [u64; 4] {
        let points = &self.pusher.series.points;
        [
            Points::Taken,
            Points::Rejected,
            Points::Refused,
            Points::Dropped,
        ]
        .map(|end| points.get(end).get())
    }

    fn line(&mut self) -> Option<String> {
        self.pusher.troubles.take_line("URL")
    }
}

fn response(status: u16, fields: &str, body: &[u8]) -> Result<Response, FetchError> {
    Ok(Response {
        status,
        head_bytes: format!("HTTP/1.1 {status} Word\r\n{fields}\r\n").into_bytes(),
        body: body.to_vec(),
    })
}

/// Mutations: `next_at` that grows from itself; a reading in each `poll`, or none; a `next_moment`
/// that has passed already, which is a busy loop.
#[test]
fn each_interval_is_read_once_and_those_that_a_sleep_has_missed_are_not() {
    let mut bench = Bench::new(1_000, |_| {});
    let start = bench.now;
    assert_eq!(bench.pusher.next_moment(), start + INTERVAL);
    bench
        .pusher
        .poll(Moment::from_micros((start + INTERVAL).as_micros() - 1));
    assert_eq!(bench.pusher.numbers.readings, 0);
    bench.wait();
    assert_eq!(bench.pusher.numbers.readings, 1);
    assert_eq!(
        bench.pusher.next_moment(),
        bench.now + INTERVAL,
        "a result may come before"
    );
    bench.respond(200);
    assert_eq!(bench.pusher.next_moment(), bench.now + INTERVAL);
    bench.now = bench.now + 10 * INTERVAL;
    bench.pusher.poll(bench.now);
    assert_eq!(bench.pusher.numbers.readings, 2);
    assert_eq!(bench.pusher.next_moment(), bench.now + INTERVAL);
    assert_eq!(bench.pusher.series.intervals.get(), 2);
}

/// Mutation: any part of the request left out or changed.
#[test]
fn a_batch_is_sent_to_the_collector_as_a_request_of_the_daemons_own() {
    let mut bench = Bench::new(1_000, |settings| settings.timeout = 3 * INTERVAL);
    bench.wait();
    let sent = bench.sent().expect("a request");
    assert_eq!(sent.tenant, OWN_TENANT);
    assert_eq!(sent.origin.authority(), "collector.test");
    assert_eq!(sent.request.method, Method::Post);
    assert_eq!(sent.request.target, "/v1/metrics?a=b");
    assert_eq!(sent.request.body, vec![1; BATCH_BYTES]);
    assert!(sent.request.is_idempotent);
    let times = &sent.timeouts;
    let times = [times.connect, times.first_byte, times.whole];
    assert_eq!(times, [3 * INTERVAL; 3]);
    assert!(sent.bounds.status_is_enough);
    let bounds = [sent.bounds.head_bytes, sent.bounds.body_bytes];
    assert_eq!(bounds, [limits::PUSH_RESPONSE_BYTES_MAX; 2]);
    assert!(matches!(sent.policy, AddressPolicy::Any));
}

/// Mutations: a fate without its count, or with another one's; `rejected` points counted as taken
/// too; a result without its line in the log.
#[test]
fn each_result_is_counted_once_with_its_points() {
    let partial = ExportResponse {
        partial_success: Some(PartialSuccess {
            rejected_data_points: 2,
            error_message: "x".repeat(2 * limits::PUSH_TEXT_CHARACTERS_MAX),
        }),
    };
    let partial = partial.encode_to_vec();
    let failed = || Err(FetchError::TimedOut(Stage::Connect));
    let mut bench = Bench::new(10_000, |_| {});
    let mut lines = Vec::new();
    for (result, attempts, points) in [
        (response(200, "", b""), [1, 0, 0, 0, 0], [1, 0, 0, 0]),
        // Two points go, two are rejected; the next batch has three.
        (response(503, "", b""), [1, 0, 1, 0, 0], [1, 0, 0, 0]),
        (failed(), [1, 0, 1, 0, 1], [1, 0, 0, 0]),
        (response(200, "", b""), [2, 0, 1, 0, 1], [3, 0, 0, 0]),
        (response(200, "", &partial), [2, 1, 1, 0, 1], [4, 2, 0, 0]),
        (response(400, "", b""), [2, 1, 1, 1, 1], [4, 2, 4, 0]),
    ] {
        while bench.number().is_none() {
            bench.wait();
        }
        bench.pusher.troubles = Troubles::default();
        bench.finish(result);
        assert_eq!(bench.attempts(), attempts);
        assert_eq!(bench.points(), points);
        lines.push(bench.line());
    }
    let line = |latest: &str, points| {
        let text = format!(
            "metrics.push: 1 pushes to URL failed, the last one: {latest}; {points} points were \
             lost"
        );
        Some(text)
    };
    let reason = "x".repeat(limits::PUSH_TEXT_CHARACTERS_MAX);
    assert_eq!(
        lines,
        [
            None,
            line("status 503", 0),
            line("no connection in time", 0),
            None,
            line(&format!("it rejected 2 points: {reason}"), 2),
            line("status 400", 4),
        ]
    );
}

/// Mutations: a wait that stops the readings; `Retry-After` that is not passed on.
#[test]
fn intervals_are_read_while_the_collector_wants_to_be_left_alone() {
    let mut bench = Bench::new(1_000, |_| {});
    bench.wait();
    bench.end(response(429, "retry-after: 40\r\n", b""));
    let until = bench.now + Duration::from_secs(40);
    assert_eq!(bench.pusher.series.wait.get(), 40);
    for reading in 2..=3 {
        bench.wait();
        assert_eq!(bench.pusher.numbers.readings, reading);
        assert_eq!(bench.number(), None);
    }
    assert_eq!(bench.pusher.series.spool.get(), 3 * BATCH_BYTES as i64);
    bench.wait();
    assert_eq!(bench.now, until, "before the next interval");
    // Without another wait, the three batches go one after the other.
    for number in 1..=3 {
        assert_eq!(bench.number(), Some(number));
        bench.respond(200);
    }
    assert_eq!(bench.number(), None);
    assert_eq!(bench.pusher.series.wait.get(), 0);
    assert_eq!(bench.pusher.series.spool.get(), 0);
}

/// Mutation: the wait in whole seconds, rounded down.
#[test]
fn a_wait_of_less_than_a_second_is_not_shown_as_none() {
    let mut bench = Bench::new(1_000, |_| {});
    bench.wait();
    bench.respond(503);
    assert!(bench.pusher.delivery.wait() < Duration::from_secs(1));
    assert_eq!(bench.pusher.series.wait.get(), 1);
}

/// Mutations: dropped points that are not counted, or have no line in the log.
#[test]
fn what_the_spool_has_no_room_for_is_counted() {
    let mut bench = Bench::new(2 * BATCH_BYTES, |_| {});
    bench.wait();
    bench.end(response(429, "retry-after: 600\r\n", b""));
    bench.pusher.troubles = Troubles::default();
    // Of the first two batches, of one point and of two, there is nothing left.
    (0..3).for_each(|_| bench.pusher.read(bench.now));
    assert_eq!(bench.points(), [0, 0, 0, 1 + 2]);
    let line = bench.line().expect("a line");
    assert!(
        line.contains("3 points") && line.contains("spool"),
        "{line}"
    );
}

/// Mutations: `send` that leaves such a batch on its way, for ever; one that does not count.
#[test]
fn a_push_that_cannot_be_made_is_tried_again() {
    // Neither a token nor a place for the fetch.
    let folder = tempfile::tempdir().expect("a folder");
    let token: PathBuf = folder.path().join("token");
    std::fs::write(&token, "word").expect("a file");
    let mut bench = Bench::new(usize::MAX, |settings| {
        settings.token_file = Some(token.clone());
    });
    std::fs::remove_file(&token).expect("it is there");
    bench.wait();
    assert_eq!(bench.number(), None);
    assert_eq!(bench.attempts(), [0, 0, 0, 0, 1]);
    std::fs::write(&token, "word").expect("a file");
    bench.wait();
    assert_eq!(bench.number(), Some(1), "the same batch");
    bench.respond(200);
    // More than all fetches may hold.
    bench.pusher.numbers.batch_bytes = outbound_limits::FETCH_BYTES_MAX as usize + 1;
    bench.wait();
    assert_eq!(bench.number(), None);
    assert_eq!(bench.attempts(), [1, 0, 0, 0, 2]);
    assert!(
        bench.pusher.delivery.due_at().is_some(),
        "it is not on its way"
    );
}

/// Mutations: `handle_last` without a reading, or without `handle_end`; `last` that is dropped
/// early, or never.
#[test]
fn the_end_sends_all_numbers_at_once_and_waits_until_they_were_taken() {
    let mut bench = Bench::new(1_000, |_| {});
    bench.wait();
    bench.end(response(429, "retry-after: 600\r\n", b""));
    let (done, end) = bounded(0);
    bench.pusher.handle_last(done, bench.now);
    bench.pusher.poll(bench.now);
    assert_eq!(bench.pusher.numbers.readings, 2, "those of this moment");
    bench.respond(200);
    assert_eq!(
        end.try_recv(),
        Err(TryRecvError::Empty),
        "the second batch is on its way"
    );
    bench.respond(200);
    assert_eq!(end.try_recv(), Err(TryRecvError::Disconnected));
    // One chance is enough.
    let (done, end) = bounded(0);
    bench.pusher.handle_last(done, bench.now);
    bench.pusher.poll(bench.now);
    bench.respond(503);
    assert_eq!(end.try_recv(), Err(TryRecvError::Disconnected));
}
