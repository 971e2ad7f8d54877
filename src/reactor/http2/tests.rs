//! The machine with an application of a few lines: paths below `/job` run a job, all others get
//! their response at once.

use std::borrow::Cow;
use std::rc::Rc;
use std::sync::Arc;

use super::*;
use crate::config::Config;
use crate::core::Key;
use crate::core::deadlines::DeadlineKind;
use crate::core::output::OutputQueue;
use crate::engine::{Event, FailReason, Failed, Timings, Usage};
use crate::error::ApiError;
use crate::http::http2::frame::{Kind, flag};
use crate::http::http2::hpack::encode;
use crate::http::http2::testing::frame;
use crate::http::sniff::PREFACE;
use crate::http::{Fields, Request, ResponseHead, ResponseSink};
use crate::offload::JobKey;
use crate::reactor::context::Resources;
use crate::reactor::handler::Admission;
use crate::reactor::machine::{Input, Machine, Waiting};
use crate::service::{Completion, Intake, Peer, PeerAddress};
use crate::telemetry::metrics::Metrics;

const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const WHOLE: u8 = flag::END_HEADERS | flag::END_STREAM;
const BODY_BYTES_MAX: usize = 10;
const PAGE: [u8; 1_000] = [b'x'; 1_000];

#[derive(Default)]
struct App {
    /// The reasons for which requests got no complete response.
    abandoned: Vec<CancelReason>,
    rooms: u32,
}

struct Ticket;
struct Job;

impl Handler for App {
    type Admitted = Ticket;
    type Exchange = Job;
    type Refusal = ApiError;

    fn admit(&mut self, _: &Request<'_>, _: &Peer, _: Moment) -> Result<Ticket, ApiError> {
        Ok(Ticket)
    }

    fn handle(
        &mut self,
        _: Ticket,
        request: &Request<'_>,
        _: Cow<'_, [u8]>,
        _: JobKey,
        _: Moment,
        sink: &mut dyn ResponseSink,
    ) -> Option<Box<Job>> {
        let head = ResponseHead {
            status: 200,
            content_type: None,
            headers: &Fields::new(),
        };
        if request.path.starts_with("/job") {
            sink.start(&head);
            return Some(Box::new(Job));
        }
        sink.respond(&head, &PAGE);
        None
    }

    fn open(&mut self, _: Ticket, _: Moment) -> Box<Job> {
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
        match completion {
            Completion::Event(Event::Token { text }) => {
                sink.data(text.as_bytes());
                Flow::Open
            }
            _ => {
                sink.finish();
                Flow::Finished
            }
        }
    }

    fn handle_deadline(&mut self, _: &mut Job, _: Moment, _: &mut dyn ResponseSink) -> Flow {
        Flow::Open
    }

    fn handle_room(&mut self, _: &mut Job) {
        self.rooms += 1;
    }

    fn refusal(_: Ticket, error: ApiError) -> ApiError {
        error
    }

    fn refusal_of_peer(_: &Peer, error: ApiError) -> ApiError {
        error
    }

    fn refuse(&mut self, error: ApiError, _: Moment, sink: &mut dyn ResponseSink) {
        let head = ResponseHead {
            status: error.code.status(),
            content_type: None,
            headers: &Fields::new(),
        };
        sink.respond(&head, b"");
    }

    fn cut_off(&mut self, _: &mut Job, _: Moment, sink: &mut dyn ResponseSink) {
        sink.data(b"the daemon ends");
        sink.finish();
    }

    fn abandon(&mut self, _: Box<Job>, reason: CancelReason, _: Moment) {
        self.abandoned.push(reason);
    }

    fn abandon_admitted(&mut self, _: Ticket, reason: CancelReason, _: Moment) {
        self.abandoned.push(reason);
    }
}

impl Admission for Ticket {
    fn intake(&self) -> Intake {
        Intake::Whole
    }

    fn body_limit(&self) -> usize {
        BODY_BYTES_MAX
    }

    fn has_key(&self) -> bool {
        false
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

/// A machine and the things that a connection would hold for it.
struct Stage {
    http2: Http2<App>,
    resources: Resources<App>,
    output: OutputQueue,
    theirs: FrameReader,
}

type Sent = (Kind, u8, u32, Vec<u8>);

impl Stage {
    /// Opens a connection: both prefaces have been read.
    fn new() -> Stage {
        let now = Moment::from_micros(1_000_000);
        let (config, metrics) = (Arc::new(Config::default()), Metrics::new("test").series());
        let mut resources = Resources::new(0, now, App::default(), config, metrics);
        resources.set_clock(Rc::new(move || now));
        let mut stage = Stage {
            http2: Http2::new(now),
            resources,
            output: OutputQueue::new(),
            theirs: FrameReader::default(),
        };
        // This reader is a server's, so it expects a preface.
        assert!(stage.theirs.next(PREFACE).is_ok());
        stage.feed(&[&PREFACE[..], &frame(SETTINGS, 0, 0, &[])].concat());
        assert_eq!(stage.sent().len(), 3);
        stage
    }

    fn call<R>(&mut self, call: impl FnOnce(&mut Http2<App>, &mut Lent<'_, '_, App>) -> R) -> R {
        let peer = Peer::new(PeerAddress::Unix);
        let mut turn = self.resources.turn(Key::new(0, 1));
        let mut lent = Lent {
            peer: &peer,
            output: &mut self.output,
            turn: &mut turn,
        };
        call(&mut self.http2, &mut lent)
    }

    fn feed(&mut self, bytes: &[u8]) {
        let mut bytes = bytes.to_vec();
        let fresh = bytes.len();
        let input = Input {
            bytes: &mut bytes,
            fresh,
        };
        self.call(|http2, lent| http2.handle_input(input, lent));
    }

    fn event(&mut self, request: u32, event: Event) {
        let completion = Completion::Event(event);
        self.call(|http2, lent| http2.handle_event(request, completion, lent));
    }

    /// Advances the clock to the machine's own deadline.
    fn pass_deadline(&mut self) {
        let Waiting::Response { until } = self.http2.waiting() else {
            panic!("it has no deadline: {:?}", self.http2.waiting());
        };
        self.resources.now = until;
        self.call(|http2, lent| http2.handle_deadline(DeadlineKind::Request, lent));
    }

    /// Polls, and takes the frames that were sent since the last call.
    fn sent(&mut self) -> Vec<Sent> {
        self.call(|http2, lent| http2.poll(lent));
        let mut slices = [std::io::IoSlice::new(&[]); 64];
        let filled = self.output.io_slices(&mut slices);
        let bytes: Vec<u8> = slices[..filled].iter().flat_map(|it| it.to_vec()).collect();
        let count = bytes.len();
        self.output.advance(count, &mut self.resources.pool);
        let (mut rest, mut frames) = (&bytes[..], Vec::new());
        while let Ok((used, Some(frame))) = self.theirs.next(rest) {
            frames.push((
                frame.kind,
                frame.flags,
                frame.stream,
                frame.payload.to_vec(),
            ));
            rest = &rest[used..];
        }
        frames
    }

    /// Like `sent`, without payloads.
    fn sent_heads(&mut self) -> Vec<(Kind, u32)> {
        self.sent().into_iter().map(|it| (it.0, it.2)).collect()
    }
}

fn request(stream: u32, flags: u8, path: &str) -> Vec<u8> {
    let fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "h"),
    ];
    let mut block = Vec::new();
    for (name, value) in fields {
        encode::field(&mut block, name, value.as_bytes());
    }
    frame(HEADERS, flags, stream, &block)
}

fn window(bytes: u32) -> Vec<u8> {
    frame(
        SETTINGS,
        0,
        0,
        &[&[0, 4][..], &bytes.to_be_bytes()].concat(),
    )
}

fn token(text: &str) -> Event {
    Event::Token {
        text: text.to_owned(),
    }
}

fn failed() -> Event {
    Event::Failed(Box::new(Failed {
        reason: FailReason::Cancelled(CancelReason::Disconnect),
        message: String::new(),
        text: String::new(),
        usage: Usage::default(),
        timings: Timings::default(),
    }))
}

/// Mutations: a stream that stays after its response; a buffer that stays with an idle connection.
#[test]
fn requests_are_answered_and_leave_nothing_behind() {
    let mut stage = Stage::new();
    stage.feed(&[request(1, WHOLE, "/"), request(3, WHOLE, "/")].concat());
    let expected = [
        (Kind::Headers, 1),
        (Kind::Data, 1),
        (Kind::Headers, 3),
        (Kind::Data, 3),
    ];
    assert_eq!(stage.sent_heads(), expected);
    assert_eq!(stage.http2.exchanges(), 2);
    assert_eq!(stage.http2.waiting(), Waiting::Request);
    assert_eq!(stage.resources.pool.outstanding(), 0);
}

/// Mutations: no orphan; an orphan that a token ends.
#[test]
fn a_job_without_its_stream_is_awaited_to_its_end() {
    let mut stage = Stage::new();
    stage.feed(&request(1, WHOLE, "/job"));
    stage.event(1, token("a"));
    assert_eq!(stage.sent_heads(), [(Kind::Headers, 1), (Kind::Data, 1)]);
    stage.feed(&frame(RESET, 0, 1, &8u32.to_be_bytes()));
    assert_eq!(
        stage.resources.handler.abandoned,
        [CancelReason::Disconnect]
    );
    stage.event(1, token("b"));
    assert!(stage.http2.awaits(1), "its end is still to come");
    stage.event(1, failed());
    assert!(!stage.http2.awaits(1));
    assert_eq!(stage.sent_heads(), []);
}

/// Mutations: `watch_stalls` without its deadline; one that each poll moves.
#[test]
fn a_peer_that_grants_no_window_is_given_up() {
    let mut stage = Stage::new();
    stage.feed(
        &[
            window(10),
            request(1, WHOLE, "/"),
            request(3, WHOLE, "/job"),
        ]
        .concat(),
    );
    let Waiting::Response { until } = stage.http2.waiting() else {
        panic!("a response waits");
    };
    stage.resources.now = Moment::from_micros(2_000_000);
    stage.sent();
    assert_eq!(stage.http2.waiting(), Waiting::Response { until });
    stage.pass_deadline();
    assert_eq!(stage.sent_heads(), [(Kind::ResetStream, 1)]);
    assert!(stage.http2.awaits(3), "the other stream goes on");
}

/// Mutations: credit that is never granted again; credit granted while the window is closed.
#[test]
fn held_credit_comes_with_the_window() {
    let mut stage = Stage::new();
    stage.feed(&[window(0), request(1, WHOLE, "/job")].concat());
    let text = "x".repeat(core_limits::OUTPUT_HIGH_BYTES);
    stage.event(1, token(&text));
    stage.sent();
    assert_eq!(stage.resources.handler.rooms, 0);
    stage.feed(&window(u32::MAX >> 1));
    stage.sent();
    stage.sent();
    assert_eq!(stage.resources.handler.rooms, 1);
}

/// Mutations: a request without its end that is kept; a connection that stays open.
#[test]
fn after_the_peers_fin_its_responses_are_sent() {
    let mut stage = Stage::new();
    stage.feed(
        &[
            request(1, WHOLE, "/job"),
            request(3, flag::END_HEADERS, "/"),
        ]
        .concat(),
    );
    stage.sent();
    stage.call(|http2, lent| http2.handle_end_of_input(lent));
    assert!(!stage.http2.takes_input());
    stage.call(|http2, lent| http2.probe(lent));
    stage.call(|http2, lent| http2.probe(lent));
    let expected = [(Kind::ResetStream, 3), (Kind::Ping, 0)];
    assert_eq!(stage.sent_heads(), expected);
    assert_eq!(stage.resources.handler.abandoned.len(), 1);
    stage.event(1, failed());
    assert_eq!(stage.sent_heads(), [(Kind::Data, 1), (Kind::GoAway, 0)]);
    assert_eq!(stage.http2.waiting(), Waiting::Over);
}

/// Mutations: a reset instead of lingering; lingering without end.
#[test]
fn a_refused_body_is_let_come_for_a_while() {
    let mut stage = Stage::new();
    let body = frame(0, 0, 1, &[b'x'; BODY_BYTES_MAX + 1]);
    stage.feed(&[request(1, flag::END_HEADERS, "/"), body.clone()].concat());
    assert_eq!(stage.sent_heads(), [(Kind::Headers, 1)]);
    stage.feed(&body);
    assert_eq!(stage.http2.exchanges(), 0);
    stage.pass_deadline();
    let sent = stage.sent();
    assert_eq!(
        (sent[0].0, &sent[0].3[..]),
        (Kind::ResetStream, &[0; 4][..])
    );
    assert_eq!(stage.http2.exchanges(), 1);
}

/// Mutations: the connection ends at once, or never; `waiting` without `has_output`, which would
/// make the event loop close the connection as an idle one.
#[test]
fn a_drain_ends_with_the_last_stream() {
    let mut stage = Stage::new();
    stage.feed(&request(1, WHOLE, "/job"));
    stage.sent();
    stage.resources.draining = true;
    assert_eq!(stage.sent_heads(), [(Kind::GoAway, 0), (Kind::Ping, 0)]);
    // The peer does not acknowledge the PING.
    stage.pass_deadline();
    assert_ne!(stage.http2.waiting(), Waiting::Over);
    stage.event(1, failed());
    assert_ne!(
        stage.http2.waiting(),
        Waiting::Request,
        "its end is to be sent"
    );
    assert_eq!(stage.sent_heads(), [(Kind::Data, 1), (Kind::GoAway, 0)]);
    assert_eq!(stage.http2.waiting(), Waiting::Over);
}

/// A slow upload: each read ends within a frame, and none takes long. A frame or a head that does
/// take long has the deadline of its first byte.
///
/// Mutations: `handle_bytes` keeps the deadline of a frame that is complete; it forgets that of a
/// head which continues; it moves the deadline at each byte.
#[test]
fn each_frame_has_a_deadline_of_its_own() {
    let mut stage = Stage::new();
    let data = frame(0, 0, 1, &[b'x'; 2]);
    let (start, end) = data.split_at(5);
    let started_at = stage.resources.now;
    let timeout = stage.resources.config.limits.header_timeout;
    stage.feed(&[&request(1, flag::END_HEADERS, "/")[..], start].concat());
    for round in 1..=3 {
        stage.resources.now = started_at + timeout / 2 * round;
        stage.feed(&[end, start].concat());
        let until = stage.resources.now + timeout;
        assert_eq!(stage.http2.waiting(), Waiting::Response { until });
    }
    let head_at = stage.resources.now;
    let head = request(3, flag::END_STREAM, "/");
    stage.feed(&[end, &head, &frame(9, 0, 3, b"\x10")[..1]].concat());
    stage.resources.now = head_at + timeout / 2;
    stage.feed(&[&frame(9, 0, 3, b"\x10")[1..], &[0]].concat());
    let until = head_at + timeout;
    assert_eq!(stage.http2.waiting(), Waiting::Response { until });
    stage.pass_deadline();
    assert_eq!(stage.sent_heads().last(), Some(&(Kind::GoAway, 0)));
    assert_eq!(stage.http2.waiting(), Waiting::Over);
}

/// Mutation: `count_oddities` without its verdict.
#[test]
fn too_many_oddities_end_the_connection() {
    let mut stage = Stage::new();
    stage.feed(&frame(6, 0, 0, &[0; 8]).repeat(2_000));
    let last = stage.sent().pop().unwrap();
    assert_eq!((last.0, last.3[7]), (Kind::GoAway, 11));
    assert_eq!(stage.http2.waiting(), Waiting::Over);
    assert_eq!(stage.resources.pool.outstanding(), 0);
}
