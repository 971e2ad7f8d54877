//! Streams without a result: reset by the attacker, or by us for the attacker's errors.

use super::common::Daemon;
use super::common::http2::frame::code::{
    CANCEL, ENHANCE_YOUR_CALM, FRAME_SIZE_ERROR, PROTOCOL_ERROR, STREAM_CLOSED,
};
use super::common::http2::frame::{Frame, data, flag, headers, kind, reset, window_update};
use super::common::http2::hpack::fields;
use super::common::http2::{Peer, Target};
use super::{Attack, CPU_MOST, FRAMES_MOST, good_request, warm, withstand};

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

/// Opens streams that wait for their bodies, until the server must reset them.
fn made_you_reset(provoke: fn(u32) -> Vec<Frame>) {
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
        FRAME_SIZE_ERROR,
    ];
    peer.goaway(&codes).expect("the end");
    let spent = daemon.process().cpu_time() - cpu_before;
    assert!(spent < CPU_MOST, "{spent:?} for {frames} frames");
    good_request(&target);
}
