//! The known attacks on HTTP/2, each from raw frames against the real daemon.
//!
//! Each test shows the same four facts. The attacker's connection ends with the protocol's own code
//! for its attack, within a bounded number of frames. The daemon spends little time and keeps
//! little memory. A good client on another connection goes on meanwhile. And the counter that only
//! such a peer moves has moved.

#[path = "../common/mod.rs"]
mod common;

mod blocks;
mod floods;
mod resets;
mod slow;

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::http2::frame::Frame;
use common::http2::{Peer, Target, ensure};
use common::{Daemon, within};

/// Frames after which an attack counts as a success: far more than any budget, and far less than a
/// flood would send.
const FRAMES_MOST: usize = 100_000;

/// Attackers one after another, so that leftovers of each would add up.
const ATTACKERS: usize = 4;

/// The cost of one attacker in an unoptimised build, and the leftovers of all of them.
const CPU_MOST: Duration = Duration::from_millis(300);
const MEMORY_MOST: u64 = 6 << 20;

/// The description of an attack.
struct Attack {
    /// The frames of one step; numbers count from 0.
    step: fn(&Target, u32) -> Vec<Frame>,
    /// Codes with which the connection may end.
    codes: &'static [u32],
    /// The label of the counter that moves, if it is one of the glitches.
    glitch: Option<&'static str>,
}

// ---- a real stream goes on -------------------------------------------------------------------

/// The real model writes to a good client while attackers come one after another.
#[cfg(feature = "llama")]
#[test]
fn an_open_stream_flows_through_all_attacks() {
    use common::http2::frame::code::CANCEL;
    use common::http2::frame::{headers, ping, priority, reset, settings};
    use common::{Options, model};
    use serde_json::json;

    let daemon = Options::llama().start();
    let target = Target::of(&daemon);
    let mut good = Peer::open(&target).expect("it answers");
    let mut body = model::endless("a long story about numbers");
    body["stream"] = json!(true);
    body["max_tokens"] = json!(400);
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

/// Measures the attack alone, and then runs it beside a good client.
#[track_caller]
fn withstand(attack: &Attack) {
    let daemon = Daemon::echo();
    let target = Target::of(&daemon);
    let memory_before = warm(&daemon, &target);
    let cpu_before = daemon.process().cpu_time();
    let frames: Vec<_> = (0..ATTACKERS).map(|_| strike(attack, &target)).collect();
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
    // How much it took to be cut off, shown with `--nocapture`.
    let name = std::thread::current().name().map(str::to_owned);
    println!("{name:?}: {frames:?} frames, {spent:?}, {grown} bytes");
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

/// Runs one attacker to its end. Returns the number of its frames.
#[track_caller]
fn strike(attack: &Attack, target: &Target) -> usize {
    let mut peer = Peer::open(target).expect("it answers");
    let frames = flood(&mut peer, target, attack.step);
    assert!(
        frames < FRAMES_MOST,
        "{frames} frames and no end: {}",
        peer.seen()
    );
    peer.goaway(attack.codes)
        .unwrap_or_else(|error| panic!("after {frames} frames: {error}"));
    frames
}

/// Runs steps of an attack until the connection ends. Returns the number of frames.
fn flood(peer: &mut Peer, target: &Target, step: fn(&Target, u32) -> Vec<Frame>) -> usize {
    let mut frames = 0;
    for number in 0.. {
        let batch = step(target, number);
        frames += batch.len();
        peer.send_all(&batch);
        // Reads the server's frames, as a client would; an error ends the flood.
        let _ = peer.drain();
        if peer.is_over() || !peer.goaways().is_empty() || frames >= FRAMES_MOST {
            break;
        }
    }
    frames
}

/// Runs a good client's streams, one after another on one connection, while `action` runs.
#[track_caller]
fn beside_a_good_client(target: &Target, action: impl Fn()) {
    let what = "the slowest stream of the good client";
    within(Duration::from_secs(2), what, || {
        slowest_stream(target, &action)
    });
}

fn slowest_stream(target: &Target, action: impl FnOnce()) -> Duration {
    let over = AtomicBool::new(false);
    let times = std::thread::scope(|scope| {
        let good = scope.spawn(|| {
            let mut peer = Peer::open(target).expect("it answers");
            let mut times = Vec::new();
            // Reaching the last identifier would take days.
            for number in 0.. {
                let start = Instant::now();
                stream_on(&mut peer, target, 2 * number + 1);
                times.push(start.elapsed());
                if over.load(Ordering::Relaxed) {
                    return times;
                }
                // A pace, not a wait: the daemon must serve the attackers too.
                std::thread::park_timeout(Duration::from_millis(5));
            }
            times
        });
        action();
        over.store(true, Ordering::Relaxed);
        good.join().expect("the good client is served")
    });
    times.into_iter().max().expect("one stream at least")
}

/// Reads one server-sent stream, from its request to its end.
fn stream_on(peer: &mut Peer, target: &Target, stream: u32) {
    peer.headers_open(stream, &target.post());
    peer.data_end(stream, br#"{"prompt": "hello", "stream": true}"#);
    let answer = peer.answer_of(stream, 200).expect("a stream");
    assert!(answer.text().contains("event: done"), "{}", answer.text());
}

/// Lets the daemon allocate the memory that it keeps anyway. Returns its memory.
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

/// Checks that the numbers above fit together.
#[test]
fn the_bounds_of_these_tests_make_sense() {
    const BUDGET: RangeInclusive<usize> = 100..=FRAMES_MOST / 10;
    let budget = autoglmd::limits::core::GLITCH_POINTS_MAX as usize;
    ensure(BUDGET.contains(&budget), || format!("{budget} points")).expect("a budget");
}
