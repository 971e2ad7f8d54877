//! Header blocks that never end, that grow when they are decoded, or that only make work.

use super::common::Daemon;
use super::common::http2::frame::code::{COMPRESSION_ERROR, ENHANCE_YOUR_CALM, PROTOCOL_ERROR};
use super::common::http2::frame::{Frame, continuation, flag, headers, kind, setting};
use super::common::http2::hpack::{DYNAMIC_FIRST, fields, indexed, literal_indexed, size_update};
use super::common::http2::{Peer, Target};
use super::{Attack, MEMORY_MOST, warm, withstand};

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

/// One string that never ends, so that nothing can be decoded and everything would have to be kept.
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
/// becomes four megabytes of fields.
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

/// Just below the bound of one request, on as many streams as possible. Each is a good request, so
/// none is cut off; their cost together must be bounded.
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

/// New entries in every request, each of which evicts the earlier ones.
#[test]
fn header_churn() {
    withstand(&Attack {
        step: |target, number| {
            let entry = |at| literal_indexed(format!("x-{number}-{at}"), "1234567890");
            let churn: Vec<u8> = (0..60).flat_map(entry).collect();
            let block = [target.get(), churn].concat();
            vec![headers(2 * number + 1, &block, flag::END_STREAM)]
        },
        codes: &[ENHANCE_YOUR_CALM],
        glitch: Some("header_churn"),
    });
}

/// A frame full of size updates before one field: it only makes work for the decoder.
#[test]
fn size_update_flood() {
    withstand(&Attack {
        step: |target, number| {
            let updates = [size_update(0), size_update(4_096)].concat().repeat(4_000);
            let block = [updates, target.get()].concat();
            vec![headers(2 * number + 1, &block, flag::END_STREAM)]
        },
        codes: &[ENHANCE_YOUR_CALM, COMPRESSION_ERROR],
        glitch: Some("header_churn"),
    });
}
