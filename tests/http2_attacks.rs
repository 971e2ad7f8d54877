//! The known attacks on HTTP/2, each from raw frames against the real daemon.
//!
//! Each test shows the same four things. The attacker's connection is ended with the protocol's own
//! word for it, within a bounded number of frames. The daemon spends little time and keeps little
//! memory. A good client on another connection goes on meanwhile. And the counter that only such a
//! peer moves has moved.

mod common;

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::http2::frame::code::{
    CANCEL, COMPRESSION_ERROR, ENHANCE_YOUR_CALM, FLOW_CONTROL_ERROR, PROTOCOL_ERROR, STREAM_CLOSED,
};
use common::http2::frame::{
    self, Frame, continuation, data, flag, headers, kind, padded, ping, priority, reset, setting,
    settings, window_update,
};
use common::http2::hpack::{DYNAMIC_FIRST, fields, indexed, literal_indexed, size_update};
use common::http2::{Peer, Target, ensure};
use common::{Daemon, Options};

/// Frames after which an attack is a success: far more than any budget, and far less than a flood
/// would send.
const FRAMES_MOST: usize = 100_000;

/// Attackers one after another, so that what each leaves behind would add up.
const ATTACKERS: usize = 4;

/// What one attacker may cost in an unoptimised build, and what all of them may leave behind.
const CPU_MOST: Duration = Duration::from_millis(700);
const MEMORY_MOST: u64 = 12 << 20;

/// What is known of an attack.
struct Attack {
    /// The frames of one step; numbers count from 0.
    step: fn(&Target, u32) -> Vec<Frame>,
    /// With which the connection may end.
    codes: &'static [u32],
    /// The label of the counter that moves, if it is one of the glitches'.
    glitch: Option<&'static str>,
}

// ---- resets ----------------------------------------------------------------------------------

#[test]
fn rapid_reset_cve_2023_44487() {
    withstand(&Attack {
        step: |target, number| {
            let stream = 2 * number + 1;
            let request = headers(stream, &target.get(), flag::END_STREAM);
            vec![request, reset(stream, CANCEL)]
        },
        codes: &[ENHANCE_YOUR_CALM],
        glitch: None,
    });
}

/// The requests are admitted and wait for their bodies, so that each reset undoes an admission.
#[test]
fn rapid_reset_of_requests_that_wait_for_their_bodies() {
    withstand(&Attack {
        step: |target, number| {
            let stream = 2 * number + 1;
            vec![
                headers(stream, &target.post(), 0),
                data(stream, b" {", 0),
                reset(stream, CANCEL),
            ]
        },
        codes: &[ENHANCE_YOUR_CALM],
        glitch: None,
    });
}

/// Slow enough that each stream is seen before it is reset: 40 at a time, then their resets.
#[test]
fn rapid_reset_in_waves() {
    withstand(&Attack {
        step: |target, number| {
            let streams = (0..40).map(|at| 2 * (40 * (number / 2) + at) + 1);
            match number % 2 {
                0 => streams
                    .map(|stream| headers(stream, &target.post(), 0))
                    .collect(),
                _ => streams.map(|stream| reset(stream, CANCEL)).collect(),
            }
        },
        codes: &[ENHANCE_YOUR_CALM],
        glitch: Some("stream_reset"),
    });
}

#[test]
fn made_you_reset_cve_2025_8671_by_window_overflow() {
    made_you_reset(|stream| vec![window_update(stream, 0x7fff_ffff)]);
}

#[test]
fn made_you_reset_cve_2025_8671_by_a_body_beyond_its_length() {
    withstand(&Attack {
        step: |target, number| {
            let stream = 2 * number + 1;
            let request = target.post_with(&[("content-length", "1")]);
            vec![
                headers(stream, &request, 0),
                data(stream, b"far too long", 0),
            ]
        },
        codes: &[ENHANCE_YOUR_CALM],
        glitch: Some("stream_reset"),
    });
}

#[test]
fn made_you_reset_cve_2025_8671_by_a_second_head() {
    made_you_reset(|stream| vec![headers(stream, &fields(&[("x-a", "1")]), 0)]);
}

#[test]
fn made_you_reset_cve_2025_8671_by_a_window_update_of_nothing() {
    made_you_reset(|stream| vec![window_update(stream, 0)]);
}

#[test]
fn made_you_reset_cve_2025_8671_by_a_priority_of_the_wrong_length() {
    made_you_reset(|stream| vec![Frame::new(kind::PRIORITY, 0, stream, [0; 4])]);
}

#[test]
fn made_you_reset_cve_2025_8671_by_data_after_the_end() {
    made_you_reset(|stream| {
        vec![
            data(stream, b"{}", flag::END_STREAM),
            data(stream, b"more", flag::END_STREAM),
        ]
    });
}

#[test]
fn made_you_reset_cve_2025_8671_by_malformed_heads() {
    withstand(&Attack {
        step: |target, number| {
            let request = target.get_with(&[("connection", "close")]);
            vec![headers(2 * number + 1, &request, flag::END_STREAM)]
        },
        codes: &[ENHANCE_YOUR_CALM, PROTOCOL_ERROR],
        glitch: Some("stream_reset"),
    });
}

#[test]
fn streams_beyond_the_limit() {
    withstand(&Attack {
        step: |target, number| vec![headers(2 * number + 1, &target.post(), 0)],
        codes: &[ENHANCE_YOUR_CALM],
        glitch: Some("stream_reset"),
    });
}

#[test]
fn resets_of_streams_that_are_over() {
    withstand(&Attack {
        step: |target, number| match number {
            0 => vec![headers(1, &target.get(), flag::END_STREAM)],
            _ => vec![reset(1, CANCEL)],
        },
        codes: &[ENHANCE_YOUR_CALM, STREAM_CLOSED, PROTOCOL_ERROR],
        glitch: Some("control_frame"),
    });
}

// ---- header blocks ---------------------------------------------------------------------------

#[test]
fn continuation_flood_cve_2024_27316() {
    withstand(&Attack {
        step: |target, number| match number {
            0 => vec![Frame::new(kind::HEADERS, flag::END_STREAM, 1, target.get())],
            _ => vec![continuation(
                1,
                &fields(&[("x-flood", "0123456789")]).repeat(50),
                0,
            )],
        },
        codes: &[ENHANCE_YOUR_CALM, COMPRESSION_ERROR, PROTOCOL_ERROR],
        glitch: None,
    });
}

#[test]
fn continuation_flood_of_empty_frames() {
    withstand(&Attack {
        step: |target, number| match number {
            0 => vec![Frame::new(kind::HEADERS, flag::END_STREAM, 1, target.get())],
            _ => vec![continuation(1, b"", 0)],
        },
        codes: &[ENHANCE_YOUR_CALM, COMPRESSION_ERROR, PROTOCOL_ERROR],
        glitch: Some("empty_frame"),
    });
}

/// One string that never ends, so that nothing can be decoded and all would have to be kept.
#[test]
fn continuation_flood_of_one_endless_value() {
    withstand(&Attack {
        step: |target, number| match number {
            0 => {
                // A literal whose value claims 256 MiB.
                let endless = [&[0, 1, b'x'][..], &[0x7f, 0x81, 0xff, 0xff, 0x7f]].concat();
                let block = [target.get(), endless].concat();
                vec![Frame::new(kind::HEADERS, flag::END_STREAM, 1, block)]
            }
            _ => vec![continuation(1, &[b'y'; 1_000], 0)],
        },
        codes: &[ENHANCE_YOUR_CALM, COMPRESSION_ERROR, PROTOCOL_ERROR],
        glitch: None,
    });
}

/// A large entry in the table, and blocks that name it thousands of times: a kilobyte of frames
/// is four megabytes of fields.
#[test]
fn hpack_bomb() {
    withstand(&Attack {
        step: |target, number| {
            let bomb = match number {
                0 => literal_indexed("x-bomb", "b".repeat(4_000)),
                _ => indexed(DYNAMIC_FIRST).repeat(1_000),
            };
            let block = [target.get(), bomb].concat();
            vec![headers(2 * number + 1, &block, flag::END_STREAM)]
        },
        codes: &[ENHANCE_YOUR_CALM, COMPRESSION_ERROR],
        glitch: None,
    });
}

/// Just below the bound of one request, on as many streams as there may be. Each is a good request,
/// so nobody is cut off; what they cost together has to be bounded.
#[test]
fn header_lists_below_the_bound_on_all_streams() {
    let daemon = Daemon::echo();
    let target = Target::of(&daemon);
    let before = warm(&daemon, &target);
    let mut peer = Peer::open(&target).expect("it answers");
    let most = peer
        .server_setting(setting::MAX_HEADER_LIST_SIZE)
        .expect("it is announced");
    let streams = peer
        .server_setting(setting::MAX_CONCURRENT_STREAMS)
        .expect("so is this");
    let value = "b".repeat(most as usize / 4 - 100);
    for number in 0..streams {
        let bomb = match number {
            0 => literal_indexed("x-bomb", &value),
            _ => indexed(DYNAMIC_FIRST).repeat(3),
        };
        let block = [target.post(), bomb].concat();
        peer.headers_open(2 * number + 1, &block);
    }
    peer.alive().expect("all of them are good requests");
    let grown = daemon.process().anonymous_bytes().saturating_sub(before);
    assert!(grown < MEMORY_MOST, "{grown} bytes for {streams} streams");
    for number in 0..streams {
        peer.data_end(2 * number + 1, &target.body);
    }
    for number in 0..streams {
        peer.answer_of(2 * number + 1, 200)
            .expect("each is answered");
    }
}

/// New entries in every request, each of which evicts those before it.
#[test]
fn header_churn_costs_no_more_than_its_bytes() {
    let daemon = Daemon::echo();
    let target = Target::of(&daemon);
    let before = warm(&daemon, &target);
    let cpu_before = daemon.process().cpu_time();
    let mut peer = Peer::open(&target).expect("it answers");
    let mut answered = 0;
    for number in 0..300 {
        let entry = |at| literal_indexed(format!("x-{number}-{at}"), "1234567890");
        let churn: Vec<u8> = (0..50).flat_map(entry).collect();
        peer.headers(2 * number + 1, &[target.get(), churn].concat());
        match peer.answer(2 * number + 1) {
            Ok(_) => answered += 1,
            Err(error) => {
                let calm = peer
                    .goaways()
                    .iter()
                    .any(|(_, code)| *code == ENHANCE_YOUR_CALM);
                assert!(calm, "after {answered} answers: {error}");
                break;
            }
        }
    }
    let spent = daemon.process().cpu_time() - cpu_before;
    assert!(spent < 4 * CPU_MOST, "{spent:?} for {answered} requests");
    let grown = daemon.process().anonymous_bytes().saturating_sub(before);
    assert!(grown < MEMORY_MOST, "{grown} bytes are kept");
}

/// A frame's worth of size updates before one field: nothing but work for the decoder.
#[test]
fn size_update_flood() {
    let daemon = Daemon::echo();
    let target = Target::of(&daemon);
    warm(&daemon, &target);
    let cpu_before = daemon.process().cpu_time();
    let mut peer = Peer::open(&target).expect("it answers");
    let updates = [size_update(0), size_update(4_096)].concat().repeat(4_000);
    let block = [updates, target.get()].concat();
    for number in 0..20 {
        peer.headers(2 * number + 1, &block);
    }
    let _ = peer.answer(39);
    let spent = daemon.process().cpu_time() - cpu_before;
    assert!(spent < CPU_MOST, "{spent:?} for 160,000 size updates");
    good_request(&target);
}

// ---- small frames ----------------------------------------------------------------------------

#[test]
fn settings_flood_cve_2019_9515() {
    withstand(&Attack {
        step: |_, _| vec![settings(&[(setting::INITIAL_WINDOW_SIZE, 65_535)])],
        codes: &[ENHANCE_YOUR_CALM],
        glitch: Some("control_frame"),
    });
}

#[test]
fn ping_flood_cve_2019_9512() {
    withstand(&Attack {
        step: |_, _| vec![ping(*b"and you?")],
        codes: &[ENHANCE_YOUR_CALM],
        glitch: Some("control_frame"),
    });
}

#[test]
fn ping_flood_whose_answers_nobody_reads() {
    let daemon = Daemon::echo();
    let target = Target::of(&daemon);
    let before = warm(&daemon, &target);
    let mut peer = Peer::open(&target).expect("it answers");
    let batch = ping(*b"and you?").encode().repeat(1_000);
    for _ in 0..1_000 {
        if !peer.try_send_raw(&batch) {
            break;
        }
    }
    let grown = daemon.process().anonymous_bytes().saturating_sub(before);
    assert!(grown < MEMORY_MOST, "{grown} bytes of answers are kept");
    peer.closed().expect("the end comes");
    good_request(&target);
}

#[test]
fn empty_data_flood_cve_2019_9518() {
    withstand(&Attack {
        step: |target, number| match number {
            0 => vec![headers(1, &target.post(), 0)],
            _ => vec![data(1, b"", 0)],
        },
        codes: &[ENHANCE_YOUR_CALM],
        glitch: Some("empty_frame"),
    });
}

#[test]
fn tiny_data_flood() {
    withstand(&Attack {
        step: |target, number| match number {
            0 => vec![headers(1, &target.post(), 0)],
            _ => vec![data(1, b" ", 0)],
        },
        codes: &[ENHANCE_YOUR_CALM],
        glitch: Some("tiny_data"),
    });
}

#[test]
fn padding_flood() {
    // Content of no bytes, and 255 of padding: it is nothing, however long the frame.
    withstand(&Attack {
        step: |target, number| match number {
            0 => vec![headers(1, &target.post(), 0)],
            _ => vec![Frame::new(kind::DATA, flag::PADDED, 1, padded(b"", 255))],
        },
        codes: &[ENHANCE_YOUR_CALM, FLOW_CONTROL_ERROR],
        glitch: None,
    });
}

#[test]
fn priority_flood_cve_2019_9513() {
    withstand(&Attack {
        step: |_, number| vec![priority(2 * (number % 1_000) + 1, 0)],
        codes: &[ENHANCE_YOUR_CALM],
        glitch: Some("ignored_bytes"),
    });
}

#[test]
fn flood_of_unknown_frames() {
    withstand(&Attack {
        step: |_, _| vec![Frame::new(0xbf, 0, 0, [])],
        codes: &[ENHANCE_YOUR_CALM],
        glitch: Some("ignored_bytes"),
    });
}

#[test]
fn window_update_flood() {
    withstand(&Attack {
        step: |_, _| vec![window_update(0, 1)],
        codes: &[ENHANCE_YOUR_CALM],
        glitch: Some("control_frame"),
    });
}

// ---- slow readers and slow writers -----------------------------------------------------------

/// CVE-2019-9511: a page byte by byte, each byte paid for with a frame.
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

/// All streams ask for a page and grant no window: CVE-2019-9517's cousin without a full socket.
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

/// CVE-2019-9517: windows as large as they can be, and a socket that nobody reads.
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
        "{grown} bytes of answers that nobody reads"
    );
    good_request(&target);
    common::eventually("only the asking connection is left", || {
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
        // A byte now and then does not extend the time: only the first is what began it.
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

// ---- a real stream goes on -------------------------------------------------------------------

/// The real model writes to a good client while attackers come one after another.
#[cfg(feature = "llama")]
#[test]
fn an_open_stream_flows_through_all_attacks() {
    use serde_json::json;
    let daemon = Options::llama().start();
    let target = Target::of(&daemon);
    let mut good = Peer::open(&target).expect("it answers");
    let body = json!({"prompt": "a long story about numbers", "stream": true, "max_tokens": 400});
    good.headers_open(1, &target.post());
    good.data_end(1, body.to_string().as_bytes());
    good.until("the first token", |good| !good.so_far(1).body.is_empty())
        .expect("a stream");
    let attacks: [fn(&Target, u32) -> Vec<Frame>; 4] = [
        |target, number| {
            let request = headers(2 * number + 1, &target.post(), 0);
            vec![request, reset(2 * number + 1, CANCEL)]
        },
        |_, _| vec![settings(&[])],
        |_, _| vec![ping(*b"and you?")],
        |_, _| vec![priority(1, 0)],
    ];
    for step in attacks {
        let had = good.so_far(1).body.len();
        let mut bad = Peer::open(&target).expect("it answers");
        let frames = flood(&mut bad, &target, step);
        assert!(frames < FRAMES_MOST, "{}", bad.seen());
        let flows = |good: &Peer| good.so_far(1).body.len() > had || good.so_far(1).is_ended;
        good.until("more of the stream", flows).expect("it flows");
    }
    let answer = good.answer_of(1, 200).expect("a whole stream");
    assert!(answer.text().contains("event: done"), "{}", answer.text());
}

// ---- helpers ---------------------------------------------------------------------------------

const GLITCHES: &str = "autoglmd_glitches_total";

/// Streams that wait for their bodies, until the server has to reset them.
fn made_you_reset(provoke: fn(u32) -> Vec<Frame>) {
    // A closure that captures cannot be a step, so the provocations are told apart by number.
    let daemon = Daemon::echo();
    let target = Target::of(&daemon);
    warm(&daemon, &target);
    let cpu_before = daemon.process().cpu_time();
    let mut peer = Peer::open(&target).expect("it answers");
    let mut frames = 0;
    for number in 0.. {
        let stream = 2 * number + 1;
        let request = headers(stream, &target.post(), 0);
        peer.send_all(&[vec![request], provoke(stream)].concat());
        frames += 2;
        let _ = peer.drain();
        if peer.is_over() || !peer.goaways().is_empty() || frames >= FRAMES_MOST {
            break;
        }
    }
    assert!(
        frames < FRAMES_MOST,
        "{frames} frames and no end: {}",
        peer.seen()
    );
    let codes = [
        ENHANCE_YOUR_CALM,
        PROTOCOL_ERROR,
        STREAM_CLOSED,
        frame::code::FRAME_SIZE_ERROR,
    ];
    peer.goaway(&codes).expect("the end");
    let spent = daemon.process().cpu_time() - cpu_before;
    assert!(spent < CPU_MOST, "{spent:?} for {frames} frames");
    good_request(&target);
}

/// Runs the attack alone, measuring, and then beside a good client.
#[track_caller]
fn withstand(attack: &Attack) {
    let daemon = Daemon::echo();
    let target = Target::of(&daemon);
    let memory_before = warm(&daemon, &target);
    let cpu_before = daemon.process().cpu_time();
    for _ in 0..ATTACKERS {
        strike(attack, &target);
    }
    let spent = daemon.process().cpu_time() - cpu_before;
    let most = CPU_MOST * ATTACKERS as u32;
    assert!(
        spent < most,
        "{ATTACKERS} attackers cost {spent:?} of CPU time"
    );
    let grown = daemon
        .process()
        .anonymous_bytes()
        .saturating_sub(memory_before);
    assert!(
        grown < MEMORY_MOST,
        "{ATTACKERS} attackers leave {grown} bytes behind"
    );
    if let Some(kind) = attack.glitch {
        let moved = daemon.metrics().sum(GLITCHES, &[("kind", kind)]);
        assert!(moved > 0.0, "{GLITCHES}{{kind={kind}}} did not move");
    }
    beside_a_good_client(&target, || {
        for _ in 0..ATTACKERS {
            strike(attack, &target);
        }
    });
}

#[track_caller]
fn strike(attack: &Attack, target: &Target) {
    let mut peer = Peer::open(target).expect("it answers");
    let frames = flood(&mut peer, target, attack.step);
    assert!(
        frames < FRAMES_MOST,
        "{frames} frames and no end: {}",
        peer.seen()
    );
    peer.goaway(attack.codes)
        .unwrap_or_else(|error| panic!("after {frames} frames: {error}"));
}

/// Steps of an attack until the connection ends. Gives the number of frames.
fn flood(peer: &mut Peer, target: &Target, step: fn(&Target, u32) -> Vec<Frame>) -> usize {
    let mut frames = 0;
    for number in 0.. {
        let batch = step(target, number);
        frames += batch.len();
        peer.send_all(&batch);
        // What the server says is read, as a client would; an error ends the flood.
        let _ = peer.drain();
        if peer.is_over() || !peer.goaways().is_empty() || frames >= FRAMES_MOST {
            break;
        }
    }
    frames
}

/// A good client's streams, one after another on one connection, while something else goes on.
#[track_caller]
fn beside_a_good_client(target: &Target, action: impl FnOnce()) {
    let over = AtomicBool::new(false);
    let times = std::thread::scope(|scope| {
        let good = scope.spawn(|| {
            let mut peer = Peer::open(target).expect("it answers");
            let mut times = Vec::new();
            // One more than half of all identifiers would take days.
            for number in 0.. {
                let start = Instant::now();
                stream_on(&mut peer, target, 2 * number + 1);
                times.push(start.elapsed());
                if over.load(Ordering::Relaxed) {
                    return times;
                }
                // A pace, not a wait: the daemon is to serve the attackers too.
                std::thread::park_timeout(Duration::from_millis(5));
            }
            times
        });
        action();
        over.store(true, Ordering::Relaxed);
        good.join().expect("the good client is served")
    });
    let worst = times.iter().max().expect("one stream at least");
    assert!(
        *worst < Duration::from_secs(2),
        "a stream of the good client took {worst:?}"
    );
}

/// One server-sent stream, from its request to its end.
fn stream_on(peer: &mut Peer, target: &Target, stream: u32) {
    peer.headers_open(stream, &target.post());
    peer.data_end(stream, br#"{"prompt": "hello", "stream": true}"#);
    let answer = peer.answer_of(stream, 200).expect("a stream");
    assert!(answer.text().contains("event: done"), "{}", answer.text());
}

/// Lets the daemon make what it keeps anyway. Gives its memory.
fn warm(daemon: &Daemon, target: &Target) -> u64 {
    let mut peer = Peer::open(target).expect("it answers");
    for number in 0..20 {
        stream_on(&mut peer, target, 2 * number + 1);
    }
    daemon.process().anonymous_bytes()
}

fn good_request(target: &Target) {
    let mut peer = Peer::open(target).expect("it answers");
    peer.works(1).expect("others are served");
}

/// The numbers above fit together.
#[test]
fn the_bounds_of_these_tests_make_sense() {
    const BUDGET: RangeInclusive<usize> = 100..=FRAMES_MOST / 10;
    let budget = autoglmd::limits::GLITCH_BUDGET_POINTS as usize;
    ensure(BUDGET.contains(&budget), || format!("{budget} points")).expect("a budget");
}
