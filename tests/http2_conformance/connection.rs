//! RFC 9113, section 6: the rules of each frame, except for flow control.

use super::common::http2::frame::code::{
    CANCEL, FLOW_CONTROL_ERROR, FRAME_SIZE_ERROR, NO_ERROR, PROTOCOL_ERROR, STREAM_CLOSED,
};
use super::common::http2::frame::{
    self, Frame, continuation, data, flag, goaway, headers, kind, padded, priority, reset, setting,
};
use super::common::http2::{Outcome, Peer, ensure};
use super::{Case, case};

const END: u8 = flag::END_HEADERS | flag::END_STREAM;

pub const CASES: &[Case] = &[
    // ---- 6.1: DATA ----
    case("rfc9113_6_1_data_on_stream_0", |peer| {
        peer.send(data(0, b"x", 0));
        peer.goaway(&[PROTOCOL_ERROR])
    }),
    case("rfc9113_6_1_data_in_many_pieces", |peer| {
        let target = peer.target();
        peer.headers_open(1, &target.post());
        for byte in &target.body {
            peer.data(1, &[*byte]);
        }
        peer.data_end(1, b"");
        peer.answer_of(1, 200)?;
        peer.works(3)
    }),
    case("rfc9113_6_1_padded_data", |peer| {
        let target = peer.target();
        peer.headers_open(1, &target.post());
        let payload = padded(&target.body, 255);
        peer.send(Frame::new(
            kind::DATA,
            flag::PADDED | flag::END_STREAM,
            1,
            payload,
        ));
        peer.answer_of(1, 200)?;
        peer.works(3)
    }),
    case("rfc9113_6_1_data_with_a_padding_of_no_bytes", |peer| {
        let target = peer.target();
        peer.headers_open(1, &target.post());
        let payload = padded(&target.body, 0);
        peer.send(Frame::new(
            kind::DATA,
            flag::PADDED | flag::END_STREAM,
            1,
            payload,
        ));
        peer.answer_of(1, 200).map(drop)
    }),
    case("rfc9113_6_1_data_of_padding_alone", |peer| {
        let target = peer.target();
        peer.headers_open(1, &target.post());
        peer.send(Frame::new(kind::DATA, flag::PADDED, 1, padded(b"", 7)));
        peer.data_end(1, &target.body);
        peer.answer_of(1, 200)?;
        peer.works(3)
    }),
    case("rfc9113_6_1_padding_as_long_as_the_payload", |peer| {
        let block = peer.target().post();
        peer.headers_open(1, &block);
        peer.send(Frame::new(kind::DATA, flag::PADDED, 1, *b"\x05body"));
        peer.goaway(&[PROTOCOL_ERROR])
    }),
    case("rfc9113_6_1_padding_longer_than_the_payload", |peer| {
        let block = peer.target().post();
        peer.headers_open(1, &block);
        peer.send(Frame::new(kind::DATA, flag::PADDED, 1, *b"\xffbody"));
        peer.goaway(&[PROTOCOL_ERROR])
    }),
    case("rfc9113_6_1_padded_data_without_a_length", |peer| {
        let block = peer.target().post();
        peer.headers_open(1, &block);
        peer.send(Frame::new(kind::DATA, flag::PADDED, 1, []));
        peer.goaway(&[PROTOCOL_ERROR, FRAME_SIZE_ERROR])
    }),
    case("rfc9113_6_1_empty_data_that_ends_the_stream", |peer| {
        let target = peer.target();
        peer.headers_open(1, &target.post());
        peer.data(1, &target.body);
        peer.data_end(1, b"");
        peer.answer_of(1, 200)?;
        peer.works(3)
    }),
    // ---- 6.2: HEADERS ----
    case("rfc9113_6_2_headers_on_stream_0", |peer| {
        let block = peer.target().get();
        peer.headers(0, &block);
        peer.goaway(&[PROTOCOL_ERROR])
    }),
    case("rfc9113_6_2_padded_headers", |peer| {
        let payload = padded(&peer.target().get(), 200);
        peer.send(Frame::new(kind::HEADERS, END | flag::PADDED, 1, payload));
        peer.answer_of(1, 200)?;
        peer.works(3)
    }),
    case("rfc9113_6_2_padded_headers_with_priority", |peer| {
        let content = [frame::priority_fields(0, 15), peer.target().get()].concat();
        let flags = END | flag::PADDED | flag::PRIORITY;
        peer.send(Frame::new(kind::HEADERS, flags, 1, padded(&content, 33)));
        peer.answer_of(1, 200)?;
        peer.works(3)
    }),
    case("rfc9113_6_2_padding_as_long_as_the_payload", |peer| {
        let block = peer.target().get();
        let payload = [vec![block.len() as u8 + 1], block].concat();
        peer.send(Frame::new(kind::HEADERS, END | flag::PADDED, 1, payload));
        peer.goaway(&[PROTOCOL_ERROR])
    }),
    case("rfc9113_6_2_padding_reaches_into_the_priority", |peer| {
        let payload = [&[4][..], &frame::priority_fields(0, 15)].concat();
        let flags = END | flag::PADDED | flag::PRIORITY;
        peer.send(Frame::new(kind::HEADERS, flags, 1, payload));
        peer.goaway(&[PROTOCOL_ERROR, FRAME_SIZE_ERROR])
    }),
    case("rfc9113_6_2_padded_headers_without_a_length", |peer| {
        peer.send(Frame::new(kind::HEADERS, END | flag::PADDED, 1, []));
        peer.goaway(&[PROTOCOL_ERROR, FRAME_SIZE_ERROR])
    }),
    case("rfc9113_6_2_priority_cut_short", |peer| {
        peer.send(Frame::new(kind::HEADERS, END | flag::PRIORITY, 1, [0; 4]));
        peer.goaway(&[PROTOCOL_ERROR, FRAME_SIZE_ERROR])
    }),
    case("rfc9113_6_2_end_stream_and_continuation", |peer| {
        // The flag ends the stream, but the block goes on.
        let block = peer.target().get();
        peer.send_all(&[
            Frame::new(kind::HEADERS, flag::END_STREAM, 1, &block[..1]),
            continuation(1, &block[1..], flag::END_HEADERS),
        ]);
        peer.answer_of(1, 200)?;
        peer.works(3)
    }),
    // ---- 6.3: PRIORITY ----
    case("rfc9113_6_3_priority_on_stream_0", |peer| {
        peer.send(priority(0, 1));
        peer.goaway(&[PROTOCOL_ERROR])
    }),
    case("rfc9113_6_3_priority_too_short", |peer| {
        let block = peer.target().post();
        peer.headers_open(1, &block);
        peer.send(Frame::new(kind::PRIORITY, 0, 1, [0; 4]));
        peer.reset_or_goaway(1, &[FRAME_SIZE_ERROR])
    }),
    case("rfc9113_6_3_priority_too_long", |peer| {
        let block = peer.target().post();
        peer.headers_open(1, &block);
        peer.send(Frame::new(kind::PRIORITY, 0, 1, [0; 6]));
        peer.reset_or_goaway(1, &[FRAME_SIZE_ERROR])
    }),
    // ---- 6.4: RST_STREAM ----
    case("rfc9113_6_4_reset_on_stream_0", |peer| {
        peer.send(reset(0, CANCEL));
        peer.goaway(&[PROTOCOL_ERROR])
    }),
    case("rfc9113_6_4_reset_too_short", |peer| {
        let block = peer.target().post();
        peer.headers_open(1, &block);
        peer.send(Frame::new(kind::RST_STREAM, 0, 1, [0; 3]));
        peer.goaway(&[FRAME_SIZE_ERROR])
    }),
    case("rfc9113_6_4_reset_too_long", |peer| {
        let block = peer.target().post();
        peer.headers_open(1, &block);
        peer.send(Frame::new(kind::RST_STREAM, 0, 1, [0; 5]));
        peer.goaway(&[FRAME_SIZE_ERROR])
    }),
    case("rfc9113_6_4_reset_leaves_the_others_alone", |peer| {
        let target = peer.target();
        peer.headers_open(1, &target.post());
        peer.headers_open(3, &target.post());
        peer.send(reset(1, CANCEL));
        peer.data_end(3, &target.body);
        peer.answer_of(3, 200)?;
        peer.works(5)
    }),
    // ---- 6.5: SETTINGS ----
    case("rfc9113_6_5_settings_on_a_stream", |peer| {
        peer.send_raw(&Frame::new(kind::SETTINGS, 0, 1, []).encode());
        peer.goaway(&[PROTOCOL_ERROR])
    }),
    case("rfc9113_6_5_acknowledgement_with_payload", |peer| {
        peer.send(Frame::new(
            kind::SETTINGS,
            flag::ACK,
            0,
            [0, 1, 0, 0, 16, 0],
        ));
        peer.goaway(&[FRAME_SIZE_ERROR])
    }),
    case("rfc9113_6_5_length_no_multiple_of_six", |peer| {
        peer.send(Frame::new(kind::SETTINGS, 0, 0, [0, 3, 0, 0, 0]));
        peer.goaway(&[FRAME_SIZE_ERROR])
    }),
    case("rfc9113_6_5_length_of_seven", |peer| {
        peer.send(Frame::new(kind::SETTINGS, 0, 0, [0, 3, 0, 0, 0, 100, 0]));
        peer.goaway(&[FRAME_SIZE_ERROR])
    }),
    case("rfc9113_6_5_2_enable_push_of_2", |peer| {
        peer.settings(&[(setting::ENABLE_PUSH, 2)]);
        peer.goaway(&[PROTOCOL_ERROR])
    }),
    case("rfc9113_6_5_2_enable_push_of_0_and_1", |peer| {
        let before = peer.acknowledged();
        peer.settings(&[(setting::ENABLE_PUSH, 0)]);
        peer.settings(&[(setting::ENABLE_PUSH, 1)]);
        peer.until("the acknowledgements", |peer| {
            peer.acknowledged() == before + 2
        })?;
        peer.works(1)
    }),
    case("rfc9113_6_5_2_initial_window_above_the_largest", |peer| {
        peer.send_raw(&frame::settings(&[(setting::INITIAL_WINDOW_SIZE, 1 << 31)]).encode());
        peer.goaway(&[FLOW_CONTROL_ERROR])
    }),
    case("rfc9113_6_5_2_initial_window_of_the_largest", |peer| {
        peer.settings(&[(setting::INITIAL_WINDOW_SIZE, (1 << 31) - 1)]);
        peer.works(1)
    }),
    case("rfc9113_6_5_2_frame_size_below_the_smallest", |peer| {
        peer.send_raw(&frame::settings(&[(setting::MAX_FRAME_SIZE, 16_383)]).encode());
        peer.goaway(&[PROTOCOL_ERROR])
    }),
    case("rfc9113_6_5_2_frame_size_above_the_largest", |peer| {
        peer.send_raw(&frame::settings(&[(setting::MAX_FRAME_SIZE, 1 << 24)]).encode());
        peer.goaway(&[PROTOCOL_ERROR])
    }),
    case("rfc9113_6_5_2_frame_size_of_the_largest", |peer| {
        peer.settings(&[(setting::MAX_FRAME_SIZE, (1 << 24) - 1)]);
        peer.works(1)
    }),
    case(
        "rfc9113_6_5_2_no_concurrent_streams_of_the_server",
        |peer| {
            // It limits only pushes.
            peer.settings(&[(setting::MAX_CONCURRENT_STREAMS, 0)]);
            peer.works(1)
        },
    ),
    case("rfc9113_6_5_2_header_list_of_one_byte", |peer| {
        // Advice to the server, which may respond all the same or not at all.
        peer.settings(&[(setting::MAX_HEADER_LIST_SIZE, 1)]);
        peer.alive()
    }),
    case("rfc9113_6_5_3_settings_are_acknowledged_each", |peer| {
        let before = peer.acknowledged();
        for number in 0..10 {
            peer.settings(&[(setting::INITIAL_WINDOW_SIZE, 65_535 + number)]);
        }
        peer.until("ten acknowledgements", |peer| {
            peer.acknowledged() == before + 10
        })?;
        peer.works(1)
    }),
    case("rfc9113_6_5_3_the_last_of_equal_settings_counts", |peer| {
        peer.stop_reading();
        let name = setting::INITIAL_WINDOW_SIZE;
        peer.settings(&[(name, 0), (name, 500), (name, 3)]);
        let block = peer.target().get_page();
        peer.headers(1, &block);
        peer.until("three bytes", |peer| peer.so_far(1).body.len() >= 3)?;
        peer.alive()?;
        ensure(peer.so_far(1).body.len() == 3, || peer.seen())
    }),
    // ---- 6.6: PUSH_PROMISE ----
    case("rfc9113_6_6_push_of_a_client", |peer| {
        let target = peer.target();
        peer.headers_open(1, &target.post());
        let payload = [&2u32.to_be_bytes()[..], &target.get()].concat();
        peer.send(Frame::new(
            kind::PUSH_PROMISE,
            flag::END_HEADERS,
            1,
            payload,
        ));
        peer.goaway(&[PROTOCOL_ERROR])
    }),
    case("rfc9113_6_6_push_on_stream_0", |peer| {
        let payload = [&2u32.to_be_bytes()[..], &peer.target().get()].concat();
        peer.send(Frame::new(
            kind::PUSH_PROMISE,
            flag::END_HEADERS,
            0,
            payload,
        ));
        peer.goaway(&[PROTOCOL_ERROR])
    }),
    // ---- 6.7: PING ----
    case("rfc9113_6_7_ping_comes_back", |peer| {
        peer.send(frame::ping(*b"\0\xff!echo\n"));
        peer.until("the same bytes", |peer| {
            peer.pongs().iter().any(|p| p == b"\0\xff!echo\n")
        })?;
        peer.alive()
    }),
    case("rfc9113_6_7_pings_come_back_in_order", |peer| {
        let pings: Vec<_> = (0..10).map(|number| [number; 8]).collect();
        let frames: Vec<_> = pings.iter().map(|opaque| frame::ping(*opaque)).collect();
        peer.send_all(&frames);
        peer.until("ten answers", |peer| peer.pongs().len() == 10)?;
        let is_in_order = pings
            .iter()
            .zip(peer.pongs())
            .all(|(sent, back)| back == sent);
        ensure(is_in_order, || format!("{:?}", peer.pongs()))
    }),
    case("rfc9113_6_7_acknowledgement_is_not_answered", |peer| {
        peer.send(Frame::new(kind::PING, flag::ACK, 0, *b"unasked!"));
        peer.alive()?;
        ensure(peer.pongs().len() == 1, || peer.seen())?;
        peer.works(1)
    }),
    case("rfc9113_6_7_ping_on_a_stream", |peer| {
        peer.send(Frame::new(kind::PING, 0, 1, *b"a stream"));
        peer.goaway(&[PROTOCOL_ERROR])
    }),
    case("rfc9113_6_7_ping_too_short", |peer| {
        peer.send(Frame::new(kind::PING, 0, 0, *b"seven b"));
        peer.goaway(&[FRAME_SIZE_ERROR])
    }),
    case("rfc9113_6_7_ping_too_long", |peer| {
        peer.send(Frame::new(kind::PING, 0, 0, *b"nine byte"));
        peer.goaway(&[FRAME_SIZE_ERROR])
    }),
    case("rfc9113_6_7_ping_without_payload", |peer| {
        peer.send(Frame::new(kind::PING, 0, 0, []));
        peer.goaway(&[FRAME_SIZE_ERROR])
    }),
    case("rfc9113_6_7_ping_is_answered_while_streams_wait", |peer| {
        let block = peer.target().post();
        peer.headers_open(1, &block);
        peer.alive()
    }),
    // ---- 6.8: GOAWAY ----
    case("rfc9113_6_8_goaway_on_a_stream", |peer| {
        peer.send(Frame::new(
            kind::GOAWAY,
            0,
            1,
            goaway(0, NO_ERROR, b"").payload,
        ));
        peer.goaway(&[PROTOCOL_ERROR])
    }),
    case("rfc9113_6_8_goaway_too_short", |peer| {
        peer.send(Frame::new(kind::GOAWAY, 0, 0, [0; 7]));
        peer.goaway(&[FRAME_SIZE_ERROR])
    }),
    case("rfc9113_6_8_running_streams_end_after_our_goaway", |peer| {
        let target = peer.target();
        peer.headers_open(1, &target.post());
        peer.send(goaway(0, NO_ERROR, b"so long, and thanks"));
        peer.data_end(1, &target.body);
        peer.answer_of(1, 200).map(drop)
    }),
    // ---- 6.10: CONTINUATION ----
    case("rfc9113_6_10_continuation_on_stream_0", |peer| {
        let block = peer.target().get();
        peer.send_all(&[
            Frame::new(kind::HEADERS, flag::END_STREAM, 1, &block[..4]),
            continuation(0, &block[4..], flag::END_HEADERS),
        ]);
        peer.goaway(&[PROTOCOL_ERROR])
    }),
    case(
        "rfc9113_6_10_continuation_after_the_end_of_the_block",
        |peer| {
            let block = peer.target().post();
            peer.headers_open(1, &block);
            peer.send(continuation(1, b"", flag::END_HEADERS));
            peer.goaway(&[PROTOCOL_ERROR])
        },
    ),
    case(
        "rfc9113_6_10_continuation_after_continuation_that_ended",
        |peer| {
            let block = peer.target().post();
            peer.send_all(&[
                Frame::new(kind::HEADERS, 0, 1, &block[..4]),
                continuation(1, &block[4..], flag::END_HEADERS),
                continuation(1, b"", flag::END_HEADERS),
            ]);
            peer.goaway(&[PROTOCOL_ERROR])
        },
    ),
    case("rfc9113_6_10_continuation_after_data", |peer| {
        let block = peer.target().post();
        peer.headers_open(1, &block);
        peer.data(1, b" ");
        peer.send(continuation(1, b"", flag::END_HEADERS));
        peer.goaway(&[PROTOCOL_ERROR])
    }),
    case("rfc9113_6_10_continuation_first_of_all", |peer| {
        let block = peer.target().get();
        peer.send(continuation(1, &block, flag::END_HEADERS));
        peer.goaway(&[PROTOCOL_ERROR])
    }),
    case("rfc9113_6_10_two_blocks_in_a_row", |peer| {
        let target = peer.target();
        let block = target.get();
        peer.send_all(&[
            Frame::new(kind::HEADERS, flag::END_STREAM, 1, &block[..4]),
            continuation(1, &block[4..], flag::END_HEADERS),
            headers(3, &block, flag::END_STREAM),
        ]);
        peer.answer_of(1, 200)?;
        peer.answer_of(3, 200)?;
        peer.alive()
    }),
    case("rfc9113_6_10_flags_of_continuation_end_no_stream", |peer| {
        // END_STREAM has no meaning there: the request has a body.
        let target = peer.target();
        let block = target.post();
        peer.send_all(&[
            Frame::new(kind::HEADERS, 0, 1, &block[..4]),
            continuation(1, &block[4..], flag::END_HEADERS | flag::END_STREAM),
        ]);
        peer.data_end(1, &target.body);
        peer.answer_of(1, 200)?;
        peer.works(3)
    }),
    case(
        "rfc9113_6_4_reset_of_a_stream_whose_block_just_ended",
        reset_after_request,
    ),
];

/// The response may have been sent already, or not at all; nothing else may happen.
fn reset_after_request(peer: &mut Peer) -> Outcome {
    let block = peer.target().get();
    peer.send_all(&[headers(1, &block, flag::END_STREAM), reset(1, CANCEL)]);
    peer.alive()?;
    let reset = peer.so_far(1).reset;
    ensure(reset.is_none_or(|reset| reset == STREAM_CLOSED), || {
        peer.seen()
    })?;
    peer.works(3)
}
