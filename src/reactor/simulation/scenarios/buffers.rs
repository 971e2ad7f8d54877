//! The account of buffered memory: what is refused when it is full, and that nothing stays in it.
//!
//! Mutations that these scenarios catch: `close` that leaves a connection's bytes in the tally, and
//! `reschedule` that does not count them again (`each_end_of_a_connection_gives_its_memory_back`,
//! and the check after each turn); `wait_for_rest` that always waits
//! (`bodies_beyond_the_bound_are_refused_and_whole_requests_are_not`); `give_up_beginnings` left
//! out (`streams_without_memory_are_refused_and_their_connection_stays`).

use std::time::Duration;

use super::super::engine::{TERSE, Verbosity};
use super::streams::{field, preface};
use super::{GET, SECOND, Stage, generate};
use crate::core::buffered::Claim;
use crate::http::http2::testing::frame;
use crate::reactor::close_reason::CloseReason;
use crate::reactor::message::Message;

const KIB: usize = 1024;

/// The beginning of a request, whose rest does not come.
fn beginning(body_bytes: usize) -> String {
    let head = "POST /api/v1/generate HTTP/1.1\r\nhost: localhost\r\n";
    let fields = "content-type: application/json\r\ncontent-length: 200000\r\n\r\n";
    format!("{head}{fields}{}", "x".repeat(body_bytes))
}

fn held(stage: &Stage) -> usize {
    stage.daemon.buffered.held()
}

fn expect_full(response: &str) {
    assert!(response.starts_with("HTTP/1.1 503"), "{response}");
    assert!(response.contains("\r\nretry-after: 1\r\n"), "{response}");
    assert!(response.contains(r#""code":"buffers_full""#), "{response}");
}

#[test]
fn bodies_beyond_the_bound_are_refused_and_whole_requests_are_not() {
    let mut stage = Stage::new(|config| config.limits.max_buffered = 256 * KIB);
    let mut waiting = Vec::new();
    let refused = loop {
        let wire = stage.connect();
        stage.send(wire, beginning(20 * KIB));
        let response = stage.receive(wire);
        if !response.is_empty() {
            break response;
        }
        waiting.push(wire);
        assert!(waiting.len() < 20, "there is no bound");
    };
    expect_full(&refused);
    // Requests without a key have three quarters of it; the last one may have crossed the mark.
    assert!((7..=10).contains(&waiting.len()), "{}", waiting.len());
    // A client that asks is refused, and not invited to send a body.
    let polite = stage.connect();
    let head = beginning(0).replacen("\r\n\r\n", "\r\nexpect: 100-continue\r\n\r\n", 1);
    stage.send(polite, head);
    expect_full(&stage.receive(polite));
    // Whole requests need no memory.
    let other = stage.connect();
    stage.send(other, GET.repeat(3) + &generate(false));
    assert_eq!(stage.receive(other).matches("HTTP/1.1 200").count(), 3);
    assert_eq!(stage.daemon.engine.running(), 1);
    // A request that waits is refused when it grows.
    stage.send(waiting[0], "x".repeat(100));
    expect_full(&stage.receive(waiting[0]));
    for wire in waiting {
        stage.on(wire, |wire| wire.client_resets());
    }
    stage.pass(3 * SECOND);
    let wire = stage.connect();
    stage.send(wire, beginning(20 * KIB));
    assert_eq!(stage.receive(wire), "", "there is room again");
}

/// Heads are kept as well, and a stranger's may be as long as a small body.
#[test]
fn heads_that_are_not_complete_count() {
    let mut stage = Stage::new(|config| config.limits.max_buffered = 128 * KIB);
    let filling = "x".repeat(9_000);
    let head = format!("GET /livez HTTP/1.1\r\nhost: localhost\r\nx: {filling}");
    let (mut refused, mut waiting) = (0, 0);
    for _ in 0..40 {
        let wire = stage.connect();
        stage.send(wire, &head);
        match stage.receive(wire).as_str() {
            "" => waiting += 1,
            response => {
                expect_full(response);
                refused += 1;
            }
        }
    }
    assert!(refused > 20 && waiting >= 5, "{refused} {waiting}");
}

fn post(stream: u32) -> Vec<u8> {
    let block = [
        &[0x83, 0x86][..],
        &field(&[0x04], "/api/v1/generate"),
        &field(&[0x01], "localhost"),
        &field(&[0x0f, 0x10], "application/json"),
    ];
    frame(1, 0x4, stream, &block.concat())
}

/// Returns the number of refusals among the daemon's frames.
fn refusals(bytes: &[u8]) -> usize {
    let text = b"\"buffers_full\"";
    let windows = bytes.windows(text.len());
    windows.filter(|window| window == text).count()
}

#[test]
fn streams_without_memory_are_refused_and_their_connection_stays() {
    let mut stage = Stage::new(|config| config.limits.max_buffered = 256 * KIB);
    let wire = stage.connect();
    stage.send(wire, preface());
    let mut received = Vec::new();
    let (mut stream, mut sent) = (1, 0);
    while refusals(&received) == 0 {
        let piece = frame(0, 0, stream, &[b' '; 16_000]);
        stage.send(wire, [post(stream), piece].concat());
        stage.settle();
        received.extend(stage.on(wire, |wire| wire.client_reads(usize::MAX)));
        stream += 2;
        sent += 1;
        assert!(sent < 40, "there is no bound");
    }
    assert!(sent > 6, "{sent}");
    // A head alone is refused, too, and a whole request on the same connection is served.
    let body = br#"{"prompt":"sort","language":"python"}"#;
    let whole = [post(stream + 2), frame(0, 0x1, stream + 2, body)].concat();
    stage.send(wire, [post(stream), whole].concat());
    stage.settle();
    let more = stage.on(wire, |wire| wire.client_reads(usize::MAX));
    assert_eq!(refusals(&more), 1);
    assert_eq!(stage.daemon.engine.running(), 1);
    assert!(!stage.is_closed(wire));
    for stream in (1..stream + 4).step_by(2) {
        stage.send(wire, frame(3, 0, stream, &8_u32.to_be_bytes()));
    }
    stage.generate();
    assert!(!stage.is_closed(wire));
    assert_eq!(held(&stage), 0, "resets give everything back");
}

/// A stranger's frame, or field block, whose rest does not come.
#[test]
fn beginnings_of_frames_end_their_connection_when_there_is_no_memory() {
    let block = frame(1, 0, 1, &[0x83]);
    let mut incomplete = frame(1, 0x4, 1, &[0; 9_000]);
    incomplete.truncate(8_000);
    for rest in [block, incomplete] {
        let mut stage = Stage::new(|config| config.limits.max_buffered = 1);
        let wire = stage.connect();
        stage.send(wire, preface());
        stage.settle();
        assert!(!stage.is_closed(wire), "it has only greeted");
        stage.send(wire, rest);
        stage.settle();
        let goodbye = stage.on(wire, |wire| wire.client_reads(usize::MAX));
        // GOAWAY with ENHANCE_YOUR_CALM.
        assert!(goodbye.ends_with(&[0, 0, 0, 11]), "{goodbye:?}");
    }
}

#[test]
fn each_end_of_a_connection_gives_its_memory_back() {
    let filled = |stage: &mut Stage| {
        let wire = stage.connect();
        stage.send(wire, beginning(100 * KIB));
        stage.settle();
        assert!(held(stage) >= 100 * KIB);
        wire
    };
    let mut stage = Stage::new(|config| config.limits.body_timeout = SECOND);
    let wire = filled(&mut stage);
    stage.on(wire, |wire| wire.client_resets());
    stage.settle();
    assert_eq!(held(&stage), 0, "after a reset");
    let wire = filled(&mut stage);
    stage.on(wire, |wire| wire.client_half_closes());
    stage.settle();
    assert_eq!(held(&stage), 0, "after a FIN");
    let wire = filled(&mut stage);
    stage.pass(2 * SECOND);
    assert!(stage.receive(wire).starts_with("HTTP/1.1 408"));
    assert_eq!(held(&stage), 0, "after a deadline");
    let wire = filled(&mut stage);
    stage.daemon.panics_expected = 1;
    let reactor = stage.daemon.reactors[0].reactor.as_mut();
    reactor.expect("it runs").system.cursed_wire = Some(wire);
    stage.send(wire, "x");
    stage.settle();
    assert!(stage.is_closed(wire));
    assert_eq!(held(&stage), 0, "after a panic");
    let wire = filled(&mut stage);
    stage.daemon.tell_all(|| Message::Drain(Duration::ZERO));
    stage.settle();
    assert!(stage.is_closed(wire) && stage.daemon.has_ended());
    assert_eq!(held(&stage), 0, "after a drain");
}

/// Clients that send requests and read no responses, without a key: half of all slots may be
/// theirs. Those for which there is memory are served once they read on.
///
/// Mutations: `hold_back` that holds nothing back, that never lets go, or that ends no connection.
#[test]
fn clients_that_read_nothing_are_not_read_once_memory_is_used_up() {
    let bound = 512 * KIB;
    let mut stage = Stage::new(|config| config.limits.max_buffered = bound);
    let wires: Vec<usize> = (0..90).map(|_| stage.connect_slowly(5_000)).collect();
    for _ in 0..40 {
        for &wire in &wires {
            stage.send(wire, GET.repeat(20));
        }
        stage.settle();
        // The last one may have crossed the bound, with its output and the rest of its requests.
        assert!(held(&stage) <= bound + 17 * KIB, "{}", held(&stage));
    }
    assert!(held(&stage) >= bound, "{}", held(&stage));
    let held_back = stage.daemon.metrics.held_back.get(Claim::Anonymous);
    assert_eq!(held_back.get(), 90);
    let evicted = stage.closed(CloseReason::Evicted);
    assert!((20..60).contains(&evicted), "{evicted}");
    // Others are served meanwhile, pipelined or not.
    let other = stage.connect();
    stage.send(other, GET.repeat(200));
    let served = stage.receive(other);
    assert_eq!(served.matches("HTTP/1.1 200").count(), 200);
    let mut texts = vec![String::new(); wires.len()];
    let mut is_over = false;
    while !is_over {
        is_over = true;
        for (text, &wire) in texts.iter_mut().zip(&wires) {
            let more = stage.on(wire, |wire| wire.client_reads(usize::MAX));
            is_over &= more.is_empty();
            text.push_str(std::str::from_utf8(&more).expect("ASCII"));
        }
        stage.settle();
    }
    let served = texts
        .iter()
        .map(|text| text.matches("HTTP/1.1 200").count());
    let whole = served.filter(|count| *count == 40 * 20).count();
    let evicted = stage.closed(CloseReason::Evicted) as usize;
    assert_eq!(whole + evicted, wires.len(), "none is forgotten");
    assert!(whole > 5, "{whole}");
    assert_eq!(held(&stage), 0);
}

/// The same with a key, or a job: their connections stay.
#[test]
fn known_clients_that_read_nothing_are_held_back_at_the_bound() {
    let bound = 256 * KIB;
    let reliable = Verbosity {
        fails_one_in: u64::MAX,
        ..TERSE
    };
    let mut stage = Stage::with(1, 100, reliable, |config| {
        config.limits.max_buffered = bound
    });
    let wires: Vec<usize> = (0..60).map(|_| stage.connect_slowly(5_000)).collect();
    for &wire in &wires {
        stage.send(wire, generate(false));
    }
    stage.settle();
    while stage.daemon.engine.running() > 0 {
        stage.generate();
    }
    for &wire in &wires {
        let response = stage.receive_all(wire);
        assert!(response.starts_with("HTTP/1.1 200"), "{response}");
    }
    for _ in 0..40 {
        for &wire in &wires {
            stage.send(wire, GET.repeat(20));
        }
        stage.settle();
    }
    let most = bound + wires.len() * 17 * KIB;
    assert!(
        held(&stage) > bound && held(&stage) <= most,
        "{}",
        held(&stage)
    );
    assert_eq!(stage.closed(CloseReason::Evicted), 0);
    for wire in wires {
        let served = stage.receive_all(wire);
        assert_eq!(served.matches("HTTP/1.1 200").count(), 40 * 20);
    }
    assert_eq!(held(&stage), 0);
}

#[test]
fn a_slow_reader_counts_and_keeps_its_response() {
    let mut stage = Stage::new(|config| config.metrics.public_on_loopback = true);
    let wire = stage.connect_slowly(1_000);
    let request = "GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n";
    stage.send(wire, request.repeat(30));
    stage.settle();
    assert!(held(&stage) > 64 * KIB, "{}", held(&stage));
    stage.daemon.buffered.set_bound(32 * KIB);
    let other = stage.connect();
    stage.send(other, beginning(100));
    expect_full(&stage.receive(other));
    assert_eq!(stage.receive_all(wire).matches("HTTP/1.1 200").count(), 30);
    assert_eq!(held(&stage), 0);
}
