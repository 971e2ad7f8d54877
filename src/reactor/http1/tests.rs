//! The machine with a small application instead of the service.
//!
//! Mutations that these tests catch: `takes_input` that is true while a response is under way
//! (`what_follows_a_request_waits_for_its_response`); `finish` that does not count the request
//! (`an_event_of_an_earlier_request_is_not_awaited`); `abandon` that forgets what was admitted
//! (`a_request_that_the_fin_cuts_off_is_abandoned_once`); `poll` that does not begin a new window
//! (`a_pause_of_ours_is_not_the_peers_silence`); `handle_deadline` that takes a passed deadline of
//! an earlier request for the present one's (`a_late_head_is_refused_and_a_new_request_is_not`).

use std::borrow::Cow;
use std::io::IoSlice;
use std::rc::Rc;
use std::sync::Arc;

use super::*;
use crate::config::Config;
use crate::core::Key;
use crate::core::output::OutputQueue;
use crate::engine::{Event, FailReason, Failed, Timings, Usage};
use crate::http::{Fields, Request, ResponseHead, ResponseSink};
use crate::limits::reactor::REQUESTS_PER_READ_MAX;
use crate::offload::JobKey;
use crate::reactor::context::Resources;
use crate::service::{Intake, Peer, PeerAddress};
use crate::telemetry::metrics::Metrics;

/// Responds to a request with its path and its body; `/job` waits for an event.
#[derive(Default)]
struct Echo {
    abandoned: Vec<&'static str>,
    granted: u32,
}

struct Admitted;

struct Job;

impl Admission for Admitted {
    fn intake(&self) -> Intake {
        Intake::Whole
    }

    fn body_limit(&self) -> usize {
        1_000
    }

    fn has_key(&self) -> bool {
        true
    }
}

impl Pending for Job {
    fn next_deadline(&self) -> Moment {
        Moment::NEVER
    }

    fn has_job(&self) -> bool {
        true
    }
}

fn respond(sink: &mut dyn ResponseSink, status: u16, body: &str) {
    let headers = &Fields::new();
    let content_type = None;
    let head = ResponseHead {
        status,
        content_type,
        headers,
    };
    sink.respond(&head, body.as_bytes());
}

impl Handler for Echo {
    type Admitted = Admitted;
    type Exchange = Job;
    type Refusal = ApiError;

    fn admit(&mut self, _: &Request<'_>, _: &Peer, _: Moment) -> Result<Admitted, ApiError> {
        Ok(Admitted)
    }

    fn handle(
        &mut self,
        _: Admitted,
        request: &Request<'_>,
        body: Cow<'_, [u8]>,
        _: JobKey,
        _: Moment,
        sink: &mut dyn ResponseSink,
    ) -> Option<Box<Job>> {
        if request.path == "/job" {
            return Some(Box::new(Job));
        }
        let body = String::from_utf8_lossy(&body);
        respond(sink, 200, &format!("{}:{body}", request.path));
        None
    }

    fn open(&mut self, _: Admitted, _: Moment) -> Box<Job> {
        Box::new(Job)
    }

    fn handle_data(
        &mut self,
        _: &mut Job,
        _: &[u8],
        _: bool,
        _: Moment,
        _: &mut dyn ResponseSink,
    ) -> Flow {
        Flow::Open
    }

    fn handle_event(
        &mut self,
        _: &mut Job,
        completion: Completion,
        _: Moment,
        sink: &mut dyn ResponseSink,
    ) -> Flow {
        if !completion.is_last() {
            return Flow::Open;
        }
        respond(sink, 200, "the job");
        Flow::Finished
    }

    fn handle_deadline(&mut self, _: &mut Job, _: Moment, _: &mut dyn ResponseSink) -> Flow {
        Flow::Open
    }

    fn handle_room(&mut self, _: &mut Job) {
        self.granted += 1;
    }

    fn refusal(_: Admitted, error: ApiError) -> ApiError {
        error
    }

    fn refusal_of_peer(_: &Peer, error: ApiError) -> ApiError {
        error
    }

    fn refuse(&mut self, error: ApiError, _: Moment, sink: &mut dyn ResponseSink) {
        respond(sink, error.code.status(), &error.message);
    }

    fn cut_off(&mut self, _: &mut Job, _: Moment, sink: &mut dyn ResponseSink) {
        respond(sink, 503, "the daemon ends");
    }

    fn abandon(&mut self, _: Box<Job>, _: CancelReason, _: Moment) {
        self.abandoned.push("job");
    }

    fn abandon_admitted(&mut self, _: Admitted, _: CancelReason, _: Moment) {
        self.abandoned.push("request");
    }
}

/// One machine, and what its connection and its reactor would lend it.
struct Bench {
    http1: Http1<Echo>,
    output: OutputQueue,
    resources: Resources<Echo>,
    /// Bytes that the machine has not used up.
    held: Vec<u8>,
}

impl Bench {
    fn new() -> Bench {
        let now = Moment::from_micros(1_000_000);
        let (config, metrics) = (Arc::new(Config::default()), Metrics::new("test").series());
        let mut resources = Resources::new(0, now, Echo::default(), config, metrics);
        resources.set_clock(Rc::new(move || now));
        Bench {
            http1: Http1::new(now),
            output: OutputQueue::new(),
            resources,
            held: Vec::new(),
        }
    }

    fn with<T>(&mut self, call: impl FnOnce(&mut Http1<Echo>, &mut Lent<'_, '_, Echo>) -> T) -> T {
        let lent = &mut Lent {
            peer: &Peer::new(PeerAddress::Unix),
            output: &mut self.output,
            turn: &mut self.resources.turn(Key::new(0, 1)),
        };
        call(&mut self.http1, lent)
    }

    /// Receives bytes, and holds those that the machine does not use up.
    fn receive(&mut self, bytes: &[u8]) -> Used {
        let mut held = std::mem::take(&mut self.held);
        held.extend_from_slice(bytes);
        let (bytes, fresh) = (&mut held[..], bytes.len());
        let used = self.with(|http1, lent| http1.handle_input(Input { bytes, fresh }, lent));
        held.truncate(used.keep);
        held.drain(..used.consumed);
        self.held = held;
        used
    }

    fn end_job(&mut self) {
        let failed = Failed {
            reason: FailReason::Error(ErrorCode::Internal),
            message: String::new(),
            text: String::new(),
            usage: Usage::default(),
            timings: Timings::default(),
        };
        let request = self.http1.exchanges();
        let event = Completion::Event(Event::Failed(Box::new(failed)));
        self.with(|http1, lent| http1.handle_event(request, event, lent));
    }

    fn pass(&mut self, seconds: u64) {
        self.resources.now = self.resources.now + std::time::Duration::from_secs(seconds);
    }

    /// Returns everything that was sent since the last call.
    fn sent(&mut self) -> String {
        let mut text = String::new();
        while !self.output.is_empty() {
            let mut slices = [IoSlice::new(&[])];
            self.output.io_slices(&mut slices);
            text += std::str::from_utf8(&slices[0]).expect("responses are UTF-8 here");
            let length = slices[0].len();
            self.output.advance(length, &mut self.resources.pool);
        }
        text
    }
}

const GET: &[u8] = b"GET /a HTTP/1.1\r\nhost: x\r\n\r\n";
const JOB: &[u8] = b"GET /job HTTP/1.1\r\nhost: x\r\n\r\n";
const BODY: &[u8] = b"POST /b HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\n";

#[test]
fn requests_are_answered_in_order_up_to_the_budget_of_a_read() {
    let mut bench = Bench::new();
    let used = bench.receive(&GET.repeat(REQUESTS_PER_READ_MAX + 2));
    assert_eq!(used.consumed, GET.len() * REQUESTS_PER_READ_MAX);
    assert_eq!(bench.http1.waiting(), Waiting::Request);
    assert_eq!(bench.sent().matches("/a:").count(), REQUESTS_PER_READ_MAX);
    // The machine looks at the held bytes again although nothing new has come.
    bench.receive(b"");
    assert_eq!(bench.sent().matches("/a:").count(), 2);
    assert!(bench.held.is_empty());
}

#[test]
fn a_body_may_come_in_any_pieces() {
    let request = [BODY, b"body"].concat();
    for cut in 1..request.len() {
        let mut bench = Bench::new();
        bench.receive(&request[..cut]);
        assert!(bench.sent().is_empty());
        let in_head = cut < BODY.len();
        assert_eq!(bench.http1.waiting() == Waiting::Head, in_head, "{cut}");
        bench.receive(&request[cut..]);
        assert!(bench.sent().ends_with("/b:body"));
        assert_eq!(bench.http1.waiting(), Waiting::Request);
    }
}

#[test]
fn what_follows_a_request_waits_for_its_response() {
    let mut bench = Bench::new();
    let used = bench.receive(&[JOB, GET].concat());
    assert_eq!(used.consumed, JOB.len());
    assert!(!bench.http1.takes_input() && bench.sent().is_empty());
    bench.end_job();
    assert!(bench.sent().ends_with("the job"));
    assert!(bench.http1.takes_input());
    bench.receive(b"");
    assert!(bench.sent().ends_with("/a:"));
}

#[test]
fn an_event_of_an_earlier_request_is_not_awaited() {
    let mut bench = Bench::new();
    bench.receive(JOB);
    let first = bench.http1.exchanges();
    assert!(bench.http1.awaits(first));
    bench.end_job();
    assert!(!bench.http1.awaits(first));
    bench.receive(JOB);
    assert!(!bench.http1.awaits(first) && bench.http1.awaits(first + 1));
}

#[test]
fn a_request_that_the_fin_cuts_off_is_abandoned_once() {
    let cases: [(&[u8], &[&str]); 3] = [(BODY, &["request"]), (JOB, &["job"]), (b"GET", &[])];
    for (bytes, abandoned) in cases {
        let mut bench = Bench::new();
        bench.receive(bytes);
        bench.with(|http1, lent| http1.handle_end_of_input(lent));
        assert_eq!(bench.http1.waiting(), Waiting::Over);
        bench.with(|http1, lent| http1.abandon(CancelReason::Drain, lent.turn));
        assert_eq!(bench.resources.handler.abandoned, abandoned);
        assert!(
            bench.sent().is_empty(),
            "the client is gone, so nothing may be sent"
        );
    }
}

#[test]
fn a_late_head_is_refused_and_a_new_request_is_not() {
    let late =
        |bench: &mut Bench, kind| bench.with(|http1, lent| http1.handle_deadline(kind, lent));
    let mut bench = Bench::new();
    bench.receive(GET);
    bench.sent();
    assert_eq!(late(&mut bench, DeadlineKind::Header), None);
    assert!(bench.sent().is_empty() && bench.http1.takes_input());
    bench.receive(&GET[..7]);
    assert_eq!(late(&mut bench, DeadlineKind::Header), None);
    assert!(bench.sent().starts_with("HTTP/1.1 408"));
    assert_eq!(bench.http1.waiting(), Waiting::Over);
    let mut bench = Bench::new();
    assert_eq!(
        late(&mut bench, DeadlineKind::Idle),
        Some(CloseReason::Idle)
    );
}

#[test]
fn a_full_output_stops_requests_and_an_empty_one_grants_credit() {
    let mut bench = Bench::new();
    let high = bench.resources.marks.high;
    bench
        .output
        .push_bytes(vec![b'x'; high].into(), &mut bench.resources.pool);
    assert_eq!(bench.receive(GET).consumed, 0);
    bench.sent();
    bench.receive(JOB);
    assert!(bench.sent().ends_with("/a:"));
    let poll = |bench: &mut Bench| bench.with(|http1, lent| http1.poll(lent));
    bench
        .output
        .push_bytes(vec![b'x'; high].into(), &mut bench.resources.pool);
    assert!(!poll(&mut bench));
    assert_eq!(bench.resources.handler.granted, 0);
    bench.sent();
    assert!(!poll(&mut bench));
    assert_eq!(bench.resources.handler.granted, 1);
}

/// Sends a body of a byte every two seconds. Where reading was paused before each byte, it is in
/// time.
fn drip(is_paused: bool) -> Waiting {
    let mut bench = Bench::new();
    let high = bench.resources.marks.high;
    bench.receive(b"POST /b HTTP/1.1\r\nhost: x\r\ncontent-length: 900\r\n\r\n");
    for _ in 0..30 {
        bench.pass(2);
        if is_paused {
            bench
                .output
                .push_bytes(vec![b'x'; high].into(), &mut bench.resources.pool);
            bench.with(|http1, lent| http1.poll(lent));
            bench.sent();
        }
        bench.receive(b"x");
    }
    bench.http1.waiting()
}

#[test]
fn a_pause_of_ours_is_not_the_peers_silence() {
    assert_eq!(drip(false), Waiting::Over);
    assert_eq!(drip(true), Waiting::Body);
}

#[test]
fn a_half_closed_peer_is_probed_once_and_only_while_it_waits() {
    let mut bench = Bench::new();
    let probe = |bench: &mut Bench| bench.with(|http1, lent| http1.probe(lent));
    probe(&mut bench);
    assert!(bench.sent().is_empty());
    bench.receive(JOB);
    probe(&mut bench);
    probe(&mut bench);
    assert_eq!(bench.sent(), "HTTP/1.1 100 Continue\r\n\r\n");
}
