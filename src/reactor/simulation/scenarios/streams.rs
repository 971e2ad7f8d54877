//! HTTP/2's streams and their windows.

use std::time::Duration;

use super::{LOUD, SECOND, Stage};
use crate::http::http2::testing::frame;
use crate::http::sniff::PREFACE;
use crate::limits::service as service_limits;
use crate::reactor::close_reason::CloseReason;
use crate::reactor::message::Message;

const SETTINGS: u8 = 4;
const WINDOW_UPDATE: u8 = 8;
const INITIAL_WINDOW_SIZE: u16 = 4;
const STREAM: u32 = 1;

/// Encodes a field that is put into no table. The name is a literal, or an index as HPACK writes
/// it.
pub fn field(name: &[u8], value: &str) -> Vec<u8> {
    [name, &[value.len() as u8], value.as_bytes()].concat()
}

/// Returns the head of a gRPC call, with `more` fields after the usual ones.
pub fn call(stream: u32, path: &str, more: &[u8]) -> Vec<u8> {
    let block = [
        &[0x83, 0x86][..],
        &field(&[0x04], path),
        &field(&[0x01], "localhost"),
        &field(&[0x0f, 0x10], "application/grpc"),
        more,
    ];
    frame(1, 0x4, stream, &block.concat())
}

/// Returns a watch of health, which needs no key.
pub fn watch(stream: u32) -> Vec<u8> {
    let head = call(stream, "/grpc.health.v1.Health/Watch", &[]);
    [head, frame(0, 0x1, stream, &[0; 5])].concat()
}

pub fn preface() -> Vec<u8> {
    [PREFACE, &frame(SETTINGS, 0, 0, &[])[..]].concat()
}

fn settings(initial_window: u32) -> Vec<u8> {
    let setting = [
        &INITIAL_WINDOW_SIZE.to_be_bytes()[..],
        &initial_window.to_be_bytes(),
    ];
    frame(SETTINGS, 0, 0, &setting.concat())
}

/// Returns a request for a stream of events: indexed fields of the static table, and literals.
fn request() -> Vec<u8> {
    let body = r#"{"prompt":"sort","language":"python","stream":true}"#;
    [head(), frame(0, 0x1, STREAM, body.as_bytes())].concat()
}

/// Returns the head of a request whose body is to follow.
fn head() -> Vec<u8> {
    let block = [
        &[0x83, 0x86][..],
        &field(&[0x04], "/api/v1/generate"),
        &field(&[0x01], "localhost"),
        &field(&[0x0f, 0x10], "application/json"),
    ];
    frame(1, 0x4, STREAM, &block.concat())
}

/// A stream without a job does not stay open for ever, and neither does its connection. Mutation:
/// `expires` of a watch is `Moment::NEVER`.
#[test]
fn streams_without_a_job_end_and_their_connection_with_them() {
    let mut stage = Stage::new(|_| {});
    let wire = stage.connect();
    let check = "/grpc.health.v1.Health/Check";
    let reflection = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
    // A watch, a request whose body does not come, a dialogue whose client is silent.
    let streams = [
        preface(),
        watch(1),
        call(3, check, &[]),
        call(5, reflection, &[]),
    ];
    stage.send(wire, streams.concat());
    stage.settle();
    let mut waited = Duration::ZERO;
    while !stage.is_closed(wire) {
        stage.pass(SECOND);
        // A PING is not a request, and does not keep the connection open.
        stage.send(wire, frame(6, 0, 0, &[0; 8]));
        stage.on(wire, |wire| wire.client_reads(usize::MAX));
        waited += SECOND;
        assert!(waited < service_limits::JOBLESS_STREAM_AGE_MAX + 100 * SECOND);
    }
    assert!(waited > service_limits::JOBLESS_STREAM_AGE_MAX);
    assert_eq!(stage.closed(CloseReason::Evicted), 0);
}

/// Output that waits for window is not work: the loop sleeps until the peer sends something, and
/// then the stream goes on, and its job with it.
#[test]
fn a_stream_without_window_costs_no_turn_and_goes_on_when_it_has_one() {
    let mut stage = Stage::with(1, 100, LOUD, |_| {});
    let wire = stage.connect();
    stage.send(wire, [PREFACE, &settings(0)[..], &request()].concat());
    stage.settle();
    // `generate` fails if the loop does not come to rest.
    (0..30).for_each(|_| stage.generate());
    let mut read = || {
        stage.settle();
        stage.on(wire, |wire| wire.client_reads(usize::MAX)).len()
    };
    let head = read();
    assert!(head < 1_000, "{head} bytes without any window");
    assert_eq!(stage.daemon.engine.running(), 1);
    let increment = (1_u32 << 30).to_be_bytes();
    let window = [settings(1 << 30), frame(WINDOW_UPDATE, 0, 0, &increment)];
    stage.send(wire, window.concat());
    let mut bytes = 0;
    while stage.daemon.engine.running() > 0 {
        stage.generate();
        stage.settle();
        bytes += stage.on(wire, |wire| wire.client_reads(usize::MAX)).len();
    }
    assert!(bytes > 100_000, "{bytes} bytes of a long program");
}

/// The peer has a stream open and never acknowledges the PING of our GOAWAY. The connection ends
/// with the stream, and not with the drain's patience.
///
/// Mutation that this catches: `poll_output` without checking for `State::Overdue`.
#[test]
fn a_drain_ends_with_the_last_stream_though_the_ping_stays_unanswered() {
    let mut stage = Stage::new(|config| config.limits.body_timeout = 7 * SECOND);
    let wire = stage.connect();
    stage.send(wire, [PREFACE, &settings(1 << 16)[..], &head()].concat());
    stage.settle();
    stage.daemon.tell_all(|| Message::Drain(40 * SECOND));
    stage.settle();
    // Longer than the patience of our GOAWAY, shorter than a body may take.
    stage.pass(6 * SECOND);
    assert!(!stage.is_closed(wire), "its stream may still be answered");
    stage.pass(2 * SECOND);
    stage.on(wire, |wire| wire.client_reads(usize::MAX));
    // The response is 408, and after it the daemon waits only for the peer's FIN.
    stage.pass(3 * SECOND);
    assert!(stage.is_closed(wire));
}
