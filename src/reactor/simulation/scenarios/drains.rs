//! The drain of many connections, and the last bytes of those that it cuts off.

use super::streams::{call, field, preface, watch};
use super::{GET, LOUD, SECOND, Stage, TERSE, Wire, generate};
use crate::http::http2::testing::frame;
use crate::limits::reactor as limits;
use crate::reactor::close_reason::CloseReason;
use crate::reactor::message::Message;

/// More connections than a drain comes to in one turn.
const MANY: usize = 3 * limits::DRAINED_CONNECTIONS_PER_TURN_MAX as usize;

/// A stream that runs gets its tokens, and a connection that comes is served, while a drain walks.
/// Mutations: `walk_connections` queues all connections at once; `poll_slots` skips the last ones
/// (the stage does not end); `timeout` without `is_walking`.
#[test]
fn a_drain_of_many_connections_takes_many_turns_and_holds_up_nobody() {
    let mut stage = Stage::with(1, 2 * MANY, LOUD, |_| {});
    let wires: Vec<_> = (0..MANY).map(|_| stage.connect()).collect();
    let streaming = stage.connect();
    stage.send(streaming, generate(true));
    stage.settle();
    stage.daemon.tell_all(|| Message::Drain(100 * SECOND));
    let new = stage.connect();
    stage.send(new, GET);
    let mut left = stage.open();
    let mut turns = 0;
    while stage.open() > 2 {
        stage.daemon.engine.step(&mut stage.dice);
        stage.turn();
        let gone = left.saturating_sub(stage.open());
        assert!(
            gone <= limits::DRAINED_CONNECTIONS_PER_TURN_MAX as usize,
            "{gone}"
        );
        left = stage.open();
        turns += 1;
        assert!(turns < 100, "{left} are left");
    }
    assert!(turns >= 3, "{turns}");
    assert!(wires.iter().all(|&wire| stage.is_closed(wire)));
    assert!(stage.receive(new).starts_with("HTTP/1.1 200"));
    stage.generate();
    assert!(stage.receive(streaming).contains("event: delta"));
}

/// Mutations: a step that does not look at the run queue; one without its least number.
#[test]
fn a_drain_takes_small_steps_while_other_work_waits() {
    let mut stage = Stage::with(1, 2 * MANY, TERSE, |_| {});
    let idle: Vec<_> = (0..MANY).map(|_| stage.connect()).collect();
    let busy: Vec<_> = (0..limits::EVENTS_PER_TURN_MAX)
        .map(|_| stage.connect())
        .collect();
    stage.settle();
    for &wire in &busy {
        stage.send(wire, GET);
    }
    stage.daemon.tell_all(|| Message::Drain(100 * SECOND));
    stage.turn();
    let closed = idle.iter().filter(|&&wire| stage.is_closed(wire)).count();
    assert_eq!(closed, limits::DRAINED_CONNECTIONS_PER_TURN_MIN as usize);
}

/// A stage with a drain whose patience will end in ten seconds.
fn draining(wires: impl FnOnce(&mut Stage) -> Vec<usize>) -> (Stage, Vec<usize>) {
    let mut stage = Stage::with(1, 2_000, LOUD, |config| {
        (config.limits.header_timeout, config.limits.body_timeout) = (100 * SECOND, 100 * SECOND);
    });
    let wires = wires(&mut stage);
    stage.settle();
    for _ in 0..20 * wires.len() {
        stage.daemon.engine.step(&mut stage.dice);
    }
    stage.settle();
    stage.daemon.tell_all(|| Message::Drain(10 * SECOND));
    stage.settle();
    (stage, wires)
}

/// Checks that the daemon has ended, owes nothing, and has left its clients their last bytes.
fn check_ended(stage: &mut Stage, wires: &[usize]) {
    assert!(stage.daemon.has_ended(), "{}", stage.daemon.describe());
    assert_eq!(stage.closed(CloseReason::Drain), wires.len() as u64);
    assert!(
        stage.daemon.engine.wanted().is_empty(),
        "a job is not cancelled"
    );
    while stage.daemon.engine.running() > 0 {
        stage.generate();
    }
    stage.daemon.check_ended();
}

/// Each kind of request over HTTP/1, with the beginning of its error.
///
/// Mutations: `Connection::cut_off` without the protocol's part, or without its flush; without the
/// reads behind the FIN (the last case); `Service::cut_off` that does not cancel the job.
#[test]
fn a_request_that_the_drain_cuts_off_gets_its_error_over_http1() {
    let body = generate(false);
    let half = &body[..body.len() - 1];
    // A stream, a response in one piece, half a body, half a head, and a stream behind which a
    // request has come that is not read.
    for (sent, later, last) in [
        (
            generate(true).as_str(),
            "",
            "event: error\ndata: {\"error\":{",
        ),
        (&generate(false), "", "HTTP/1.1 503"),
        (half, "", "HTTP/1.1 503"),
        (&GET[..9], "", "HTTP/1.1 503"),
        (&generate(true), GET, "event: error\ndata: {\"error\":{"),
    ] {
        let (mut stage, wires) = draining(|stage| {
            let wire = stage.connect();
            stage.send(wire, sent);
            vec![wire]
        });
        if !later.is_empty() {
            stage.send(wires[0], later);
        }
        stage.pass(11 * SECOND);
        let bytes = stage.on(wires[0], |wire| wire.client_reads(usize::MAX));
        let text = String::from_utf8(bytes).expect("UTF-8");
        let at = text.find(last).unwrap_or_else(|| panic!("{sent}: {text}"));
        let end = &text[at..];
        assert!(end.contains(r#""code":"draining""#), "{end}");
        match last.starts_with("HTTP") {
            true => assert!(end.contains("connection: close"), "{end}"),
            false => assert!(end.ends_with("\r\n0\r\n\r\n"), "{end}"),
        }
        assert!(stage.is_closed_in_good_order(wires[0]), "{sent}");
        check_ended(&mut stage, &wires);
    }
}

/// A generation as a gRPC call, in pieces or in one.
fn rpc(stream: u32, method: &str) -> Vec<u8> {
    let message = b"\x0a\x04sort";
    let length = (message.len() as u32).to_be_bytes();
    let data = [&[0][..], &length, message].concat();
    let path = format!("/AutoGLMService/{method}");
    [call(stream, &path, &[]), frame(0, 1, stream, &data)].concat()
}

/// A generation as JSON, whose body may lack its end.
fn post(stream: u32, is_stream: bool, is_whole: bool) -> Vec<u8> {
    let body = format!(r#"{{"prompt":"sort","language":"python","stream":{is_stream}}}"#);
    let block = [
        &[0x83, 0x86][..],
        &field(&[0x04], "/api/v1/generate"),
        &field(&[0x01], "localhost"),
        &field(&[0x0f, 0x10], "application/json"),
    ];
    let head = frame(1, 0x4, stream, &block.concat());
    [head, frame(0, is_whole.into(), stream, body.as_bytes())].concat()
}

/// Mutation: `Http2::cut_off` without `cut_off_stream`.
#[test]
fn streams_that_the_drain_cuts_off_get_their_errors_over_http2() {
    // Whether the error is in DATA as text; gRPC has it in its trailers.
    for (request, is_text) in [
        (post(1, true, true), true),
        (post(1, false, true), true),
        (post(1, false, false), true),
        (rpc(1, "Generate"), false),
        (rpc(1, "GenerateStream"), false),
        (watch(1), false),
        (
            call(
                1,
                "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
                &[],
            ),
            false,
        ),
    ] {
        let (mut stage, wires) = draining(|stage| {
            let wire = stage.connect();
            stage.send(wire, [preface(), request].concat());
            vec![wire]
        });
        if stage.daemon.has_ended() {
            // A watch ends with the beginning of the drain.
            continue;
        }
        stage.pass(11 * SECOND);
        let bytes = stage.on(wires[0], |wire| wire.client_reads(usize::MAX));
        let text = String::from_utf8_lossy(&bytes);
        match is_text {
            true => assert!(text.contains(r#""code":"draining""#), "{text:?}"),
            false => assert!(text.contains("grpc-status"), "{text:?}"),
        }
        // The GOAWAY is the last frame, and it reports no error.
        assert!(
            bytes.ends_with(&frame(7, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 0])),
            "{text:?}"
        );
        assert!(stage.is_closed_in_good_order(wires[0]));
        check_ended(&mut stage, &wires);
    }
}

/// A client that takes nothing is closed all the same, and at once.
#[test]
fn a_client_that_does_not_read_delays_no_end() {
    let (mut stage, wires) = draining(|stage| {
        let wire = stage.connect_slowly(100);
        stage.send(wire, generate(true));
        vec![wire]
    });
    stage.pass(11 * SECOND);
    assert!(stage.is_closed(wires[0]));
    check_ended(&mut stage, &wires);
}

/// The end comes to many connections in several turns, in which nothing stands still. Mutation:
/// `cut_off_connections` takes all slots at once.
#[test]
fn many_streams_are_cut_off_in_several_turns() {
    let (mut stage, wires) = draining(|stage| {
        let wires: Vec<_> = (0..MANY).map(|_| stage.connect()).collect();
        for &wire in &wires {
            stage.send(wire, generate(true));
        }
        wires
    });
    let clock = stage.daemon.network.borrow().clock;
    stage.daemon.network.borrow_mut().clock = clock + 11 * SECOND;
    stage.turn();
    let most = limits::DRAINED_CONNECTIONS_PER_TURN_MAX as usize;
    assert_eq!(stage.open(), MANY - most);
    stage.settle();
    for &wire in &wires {
        let bytes = stage.on(wire, |wire| wire.client_reads(usize::MAX));
        assert!(String::from_utf8_lossy(&bytes).contains("draining"));
    }
    check_ended(&mut stage, &wires);
}

/// A second signal does the same at once.
#[test]
fn a_stop_tells_its_clients_why() {
    let mut stage = Stage::with(1, 100, TERSE, |_| {});
    let wire = stage.connect();
    stage.send(wire, generate(false));
    stage.settle();
    stage.daemon.tell_all(|| Message::Stop);
    assert!(stage.receive(wire).starts_with("HTTP/1.1 503"));
    stage.on(wire, Wire::client_half_closes);
    check_ended(&mut stage, &[wire]);
}
