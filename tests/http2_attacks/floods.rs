//! Floods of small frames, each of which is legal.

use super::common::Daemon;
use super::common::http2::frame::code::{ENHANCE_YOUR_CALM, FLOW_CONTROL_ERROR};
use super::common::http2::frame::{
    Frame, data, flag, headers, kind, padded, ping, priority, setting, settings, window_update,
};
use super::common::http2::{Peer, Target};
use super::{Attack, MEMORY_MOST, good_request, warm, withstand};

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
fn ping_flood_without_reading_the_replies() {
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
    // Content of no bytes, and 255 of padding: an empty frame, however long.
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
