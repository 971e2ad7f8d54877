//! Peers that read or write as slowly as they can, to fill our memory with their data.

use std::time::{Duration, Instant};

use super::common::http2::frame::code::ENHANCE_YOUR_CALM;
use super::common::http2::frame::{Frame, flag, headers, kind, setting, window_update};
use super::common::http2::{Peer, Target};
use super::common::{Daemon, Options, eventually};
use super::{CPU_MOST, FRAMES_MOST, GLITCHES, MEMORY_MOST, good_request, warm};

/// CVE-2019-9511: a page byte by byte, with a frame paid for each byte.
#[test]
fn window_dribble_cve_2019_9511() {
    let daemon = Daemon::echo();
    let target = Target::of(&daemon);
    warm(&daemon, &target);
    let cpu_before = daemon.process().cpu_time();
    let mut peer = Peer::open(&target).expect("it answers");
    peer.stop_reading();
    peer.settings(&[(setting::INITIAL_WINDOW_SIZE, 0)]);
    let page = target.get_page();
    let (mut stream, mut frames) = (1, 0);
    peer.headers(stream, &page);
    while !peer.is_over() && frames < FRAMES_MOST {
        if peer.so_far(stream).is_ended {
            stream += 2;
            peer.headers(stream, &page);
        }
        peer.send(window_update(stream, 1));
        frames += 1;
        let _ = peer.drain();
    }
    let last = peer.goaways().last().map(|(_, code)| *code);
    assert_eq!(
        last,
        Some(ENHANCE_YOUR_CALM),
        "after {frames} frames: {}",
        peer.seen()
    );
    let spent = daemon.process().cpu_time() - cpu_before;
    assert!(spent < CPU_MOST, "{spent:?} for {frames} bytes");
    assert!(daemon.metrics().sum(GLITCHES, &[("kind", "control_frame")]) > 0.0);
}

/// All streams ask for a page and grant no window: like CVE-2019-9517, without a full socket.
#[test]
fn zero_windows_of_many_streams() {
    let daemon = Options::echo().set("limits.write_timeout", "700ms").start();
    let target = Target::of(&daemon);
    let before = warm(&daemon, &target);
    let mut peer = Peer::open_with(&target, &[(setting::INITIAL_WINDOW_SIZE, 0)]).expect("open");
    let streams = peer
        .server_setting(setting::MAX_CONCURRENT_STREAMS)
        .expect("it is announced");
    let start = Instant::now();
    for number in 0..streams {
        peer.headers(2 * number + 1, &target.get_page());
    }
    peer.alive().expect("waiting is no error");
    let grown = daemon.process().anonymous_bytes().saturating_sub(before);
    assert!(
        grown < MEMORY_MOST,
        "{grown} bytes for {streams} waiting answers"
    );
    good_request(&target);
    for number in 0..streams {
        let stream = 2 * number + 1;
        let is_over = |peer: &Peer| peer.so_far(stream).reset.is_some() || peer.is_over();
        peer.until("the end of a waiting stream", is_over)
            .expect("after the write timeout");
    }
    let elapsed = start.elapsed();
    assert!(
        elapsed > Duration::from_millis(600),
        "too early: {elapsed:?}"
    );
    assert!(elapsed < Duration::from_secs(15), "too late: {elapsed:?}");
}

/// CVE-2019-9517: windows as large as possible, and a socket that is never read.
#[test]
fn internal_data_buffering_cve_2019_9517() {
    let daemon = Options::echo().set("limits.write_timeout", "700ms").start();
    let target = Target::of(&daemon);
    let before = warm(&daemon, &target);
    let largest = 0x7fff_ffff;
    let pairs = [(setting::INITIAL_WINDOW_SIZE, largest)];
    let mut peer = Peer::open_with(&target, &pairs).expect("open");
    peer.send(window_update(0, largest - 65_535));
    let page = target.get_page();
    for number in 0..20_000 {
        let request = headers(2 * number + 1, &page, flag::END_STREAM);
        if !peer.try_send_raw(&request.encode()) {
            break;
        }
    }
    let grown = daemon.process().anonymous_bytes().saturating_sub(before);
    assert!(
        grown < MEMORY_MOST,
        "{grown} bytes are held for responses that are not read"
    );
    good_request(&target);
    eventually("only the asking connection is left", || {
        (daemon.metrics().value("autoglmd_connections") <= 1.0).then_some(())
    });
}

#[test]
fn frames_that_do_not_end() {
    let daemon = Options::echo()
        .set("limits.header_timeout", "700ms")
        .set("limits.idle_timeout", "60s")
        .start();
    let target = Target::of(&daemon);
    let block = target.get();
    let half_frame = headers(1, &block, flag::END_STREAM).encode();
    let half_block = Frame::new(kind::HEADERS, flag::END_STREAM, 1, block).encode();
    for bytes in [&half_frame[..5], &half_frame[..12], &half_block[..]] {
        let mut peer = Peer::open(&target).expect("it answers");
        let start = Instant::now();
        // A byte now and then does not extend the time: only the first byte started it.
        peer.send_raw(bytes);
        peer.closed_within(Duration::from_secs(15))
            .expect("the end");
        let elapsed = start.elapsed();
        assert!(
            elapsed > Duration::from_millis(600),
            "too early: {elapsed:?}"
        );
    }
}

#[test]
fn a_body_that_drips_meets_its_deadline() {
    let daemon = Options::echo().set("limits.body_timeout", "700ms").start();
    let target = Target::of(&daemon);
    let mut peer = Peer::open(&target).expect("it answers");
    let start = Instant::now();
    peer.headers_open(1, &target.post());
    peer.headers_open(3, &target.post());
    peer.data(1, b" ");
    let answer = peer.answer_of(1, 408).expect("the body's time is over");
    assert!(
        answer.text().contains("request_timeout"),
        "{}",
        answer.text()
    );
    peer.answer_of(3, 408).expect("for each stream");
    let elapsed = start.elapsed();
    assert!(
        elapsed > Duration::from_millis(600),
        "too early: {elapsed:?}"
    );
    peer.works(5).expect("the connection goes on");
}
