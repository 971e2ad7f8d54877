//! RFC 9113, section 4 (frames), section 5.4 (errors) and section 5.5 (extensions).

use super::common::http2::frame::code::{
    COMPRESSION_ERROR, FRAME_SIZE_ERROR, NO_ERROR, PROTOCOL_ERROR,
};
use super::common::http2::frame::{
    self, FRAME_SIZE_DEFAULT, Frame, continuation, data, flag, headers, kind, ping, priority,
    reset, setting, settings, window_update,
};
use super::common::http2::{Outcome, Peer, ensure, hpack};
use super::{Case, case, ours};

/// A type that no document defines.
const UNKNOWN: u8 = 0xbf;

pub const CASES: &[Case] = &[
    // ---- 4.1: format ----
    case("rfc9113_4_1_unknown_type_on_the_connection", |peer| {
        peer.send(Frame::new(UNKNOWN, 0xff, 0, *b"ignore me"));
        peer.works(1)
    }),
    case("rfc9113_4_1_unknown_type_on_an_idle_stream", |peer| {
        peer.send(Frame::new(UNKNOWN, 0xff, 5, *b"ignore me"));
        // If it had opened stream 5, stream 1 would be too low.
        peer.works(1)
    }),
    case("rfc9113_4_1_unknown_type_on_an_open_stream", |peer| {
        let target = peer.target();
        peer.headers_open(1, &target.post());
        peer.send(Frame::new(UNKNOWN, flag::END_STREAM, 1, *b"ignore me"));
        peer.data_end(1, &target.body);
        peer.answer_of(1, 200)?;
        peer.works(3)
    }),
    case("rfc9113_4_1_unknown_type_without_payload", |peer| {
        peer.send(Frame::new(UNKNOWN, 0, 0, []));
        peer.works(1)
    }),
    case("rfc9113_4_1_unknown_flags_of_headers", |peer| {
        let block = peer.target().get();
        let unknown = !(flag::PADDED | flag::PRIORITY);
        peer.send(Frame::new(kind::HEADERS, unknown, 1, block));
        peer.answer_of(1, 200)?;
        peer.works(3)
    }),
    case("rfc9113_4_1_unknown_flags_of_data", |peer| {
        let target = peer.target();
        peer.headers_open(1, &target.post());
        peer.send(data(1, &target.body, !flag::PADDED));
        peer.answer_of(1, 200)?;
        peer.works(3)
    }),
    case("rfc9113_4_1_unknown_flags_of_ping", |peer| {
        peer.send(Frame::new(kind::PING, 0xfe, 0, *b"flagged!"));
        peer.until("the PING's answer", |peer| {
            peer.pongs().iter().any(|pong| pong == b"flagged!")
        })?;
        peer.works(1)
    }),
    case("rfc9113_4_1_unknown_flags_of_settings", |peer| {
        peer.note_settings(&[]);
        peer.send_raw(&Frame::new(kind::SETTINGS, 0xfe, 0, []).encode());
        peer.until("the acknowledgement", |peer| peer.acknowledged() == 2)?;
        peer.works(1)
    }),
    case(
        "rfc9113_4_1_unknown_flags_of_window_update_and_reset",
        |peer| {
            let target = peer.target();
            peer.headers_open(1, &target.post());
            let increment = 1u32.to_be_bytes();
            peer.send_raw(&Frame::new(kind::WINDOW_UPDATE, 0xff, 1, increment).encode());
            peer.send_raw(&Frame::new(kind::WINDOW_UPDATE, 0xff, 0, increment).encode());
            peer.send(Frame::new(kind::RST_STREAM, 0xff, 1, 8u32.to_be_bytes()));
            peer.works(3)
        },
    ),
    case("rfc9113_4_1_reserved_bit_of_headers", |peer| {
        let block = peer.target().get();
        peer.send(headers(1 | 1 << 31, &block, flag::END_STREAM));
        peer.answer_of(1, 200)?;
        peer.works(3)
    }),
    case("rfc9113_4_1_reserved_bit_of_ping", |peer| {
        peer.send(Frame::new(kind::PING, 0, 1 << 31, *b"reserved"));
        peer.until("the PING's answer", |peer| {
            peer.pongs().iter().any(|pong| pong == b"reserved")
        })?;
        peer.works(1)
    }),
    case("rfc9113_4_1_reserved_bit_of_data", |peer| {
        let target = peer.target();
        peer.headers_open(1, &target.post());
        peer.send(data(1 | 1 << 31, &target.body, flag::END_STREAM));
        peer.answer_of(1, 200).map(drop)
    }),
    // ---- 4.2: size ----
    case("rfc9113_4_2_data_of_the_largest_size", |peer| {
        let target = peer.target();
        peer.headers_open(1, &target.post());
        // White space before the body's JSON.
        peer.data(1, &vec![b' '; FRAME_SIZE_DEFAULT]);
        peer.data_end(1, &target.body);
        peer.answer_of(1, 200)?;
        peer.works(3)
    }),
    case("rfc9113_4_2_data_above_the_largest_size", |peer| {
        let size = frame_size(peer) + 1;
        let block = peer.target().post();
        peer.headers_open(1, &block);
        peer.data(1, &vec![b' '; size]);
        peer.reset_or_goaway(1, &[FRAME_SIZE_ERROR])
    }),
    case("rfc9113_4_2_headers_of_the_largest_size", |peer| {
        let get = peer.target().get();
        // The literal's own overhead: its first byte, the name with its length, 3 bytes of length.
        let filler = FRAME_SIZE_DEFAULT - get.len() - 1 - 2 - 3;
        let block = [get, hpack::literal("x", "y".repeat(filler))].concat();
        ensure(block.len() == FRAME_SIZE_DEFAULT, || {
            block.len().to_string()
        })?;
        peer.headers(1, &block);
        // The frame is good; its list of fields may be too long for the server.
        let status = peer.answer(1)?.status;
        ensure([200, 400, 431].contains(&status), || status.to_string())?;
        peer.works(3)
    }),
    case("rfc9113_4_2_headers_above_the_largest_size", |peer| {
        let size = frame_size(peer) + 1;
        too_large(
            peer,
            &Frame::new(kind::HEADERS, flag::END_HEADERS, 1, vec![0; size]),
        )
    }),
    case("rfc9113_4_2_continuation_above_the_largest_size", |peer| {
        let size = frame_size(peer) + 1;
        let block = peer.target().get();
        peer.send(Frame::new(kind::HEADERS, flag::END_STREAM, 1, block));
        too_large(peer, &continuation(1, &vec![0; size], flag::END_HEADERS))
    }),
    case("rfc9113_4_2_settings_above_the_largest_size", |peer| {
        let count = frame_size(peer) / 6 + 1;
        let payload = settings(&vec![(0xf000, 1); count]).payload;
        too_large(peer, &Frame::new(kind::SETTINGS, 0, 0, payload))
    }),
    case("rfc9113_4_2_unknown_type_above_the_largest_size", |peer| {
        let size = frame_size(peer) + 1;
        too_large(peer, &Frame::new(UNKNOWN, 0, 0, vec![0; size]))
    }),
    case(
        "rfc9113_4_2_length_of_sixteen_megabytes_is_not_waited_for",
        |peer| {
            let head = Frame::new(kind::DATA, 0, 0, []).encode_with_length(0xff_ffff);
            peer.send_raw(&head);
            peer.goaway(&[FRAME_SIZE_ERROR])
        },
    ),
    case(
        "rfc9113_4_2_no_frame_of_the_server_is_above_our_size",
        |peer| {
            // The peer itself checks the size of every frame.
            let block = peer.target().get_page();
            for stream in [1, 3, 5] {
                peer.headers(stream, &block);
            }
            for stream in [1, 3, 5] {
                peer.answer_of(stream, 200)?;
            }
            Ok(())
        },
    ),
    // ---- 4.3: field blocks ----
    case("rfc9113_4_3_block_cut_at_every_byte", |peer| {
        let block = peer.target().get();
        for cut in 0..=block.len() {
            let stream = 2 * cut as u32 + 1;
            peer.send_all(&[
                Frame::new(kind::HEADERS, flag::END_STREAM, stream, &block[..cut]),
                continuation(stream, &block[cut..], flag::END_HEADERS),
            ]);
            peer.answer_of(stream, 200)?;
        }
        Ok(())
    }),
    case("rfc9113_4_3_block_in_three_frames", |peer| {
        let block = peer.target().get();
        peer.send_all(&[
            Frame::new(kind::HEADERS, flag::END_STREAM, 1, &block[..3]),
            continuation(1, &block[3..6], 0),
            continuation(1, &block[6..], flag::END_HEADERS),
        ]);
        peer.answer_of(1, 200)?;
        peer.works(3)
    }),
    case("rfc9113_4_3_empty_continuation_at_the_end", |peer| {
        let block = peer.target().get();
        peer.send_all(&[
            Frame::new(kind::HEADERS, flag::END_STREAM, 1, block),
            continuation(1, b"", flag::END_HEADERS),
        ]);
        peer.answer_of(1, 200)?;
        peer.works(3)
    }),
    case("rfc9113_4_3_headers_of_another_stream_inside", |peer| {
        let other = headers(3, &peer.target().get(), flag::END_STREAM);
        inside_block(peer, &other)
    }),
    case("rfc9113_4_3_headers_of_the_same_stream_inside", |peer| {
        let other = headers(1, &peer.target().get(), flag::END_STREAM);
        inside_block(peer, &other)
    }),
    case("rfc9113_4_3_data_inside", |peer| {
        inside_block(peer, &data(1, b"x", 0))
    }),
    case("rfc9113_4_3_ping_inside", |peer| {
        inside_block(peer, &ping(*b"inside!!"))
    }),
    case("rfc9113_4_3_settings_inside", |peer| {
        inside_block(peer, &settings(&[]))
    }),
    case("rfc9113_4_3_priority_inside", |peer| {
        inside_block(peer, &priority(1, 0))
    }),
    case("rfc9113_4_3_reset_inside", |peer| {
        inside_block(peer, &reset(1, 8))
    }),
    case("rfc9113_4_3_window_update_inside", |peer| {
        inside_block(peer, &window_update(0, 1))
    }),
    case(
        "rfc9113_4_3_continuation_of_another_stream_inside",
        |peer| inside_block(peer, &continuation(3, b"", flag::END_HEADERS)),
    ),
    case("rfc9113_5_5_unknown_type_inside_a_block", |peer| {
        inside_block(peer, &Frame::new(UNKNOWN, 0, 1, *b"extension"))
    }),
    case("rfc9113_4_3_block_that_ends_inside_a_field", |peer| {
        let block = peer.target().get();
        peer.headers(1, &block[..block.len() - 1]);
        peer.goaway(&[COMPRESSION_ERROR])
    }),
    case(
        "rfc9113_4_3_block_in_two_frames_that_ends_inside_a_field",
        |peer| {
            let block = peer.target().get();
            peer.send_all(&[
                Frame::new(kind::HEADERS, flag::END_STREAM, 1, &block[..3]),
                continuation(1, &block[3..block.len() - 1], flag::END_HEADERS),
            ]);
            peer.goaway(&[COMPRESSION_ERROR])
        },
    ),
    case(
        "rfc9113_4_3_table_is_kept_after_a_malformed_request",
        |peer| {
            // The field goes into the table although its request is refused.
            let bad = peer.target().get_with(&[("connection", "close")]);
            let kept = hpack::literal_indexed("x-kept", "kept");
            peer.headers(1, &[bad, kept].concat());
            peer.malformed(1)?;
            entry_is(peer, 3)
        },
    ),
    case(
        "rfc9113_4_3_table_is_kept_after_a_malformed_request_in_two_frames",
        |peer| {
            let get = peer.target().get();
            let first = [get, hpack::fields(&[("connection", "close")])].concat();
            let second = hpack::literal_indexed("x-kept", "kept");
            peer.send_all(&[
                Frame::new(kind::HEADERS, flag::END_STREAM, 1, first),
                continuation(1, &second, flag::END_HEADERS),
            ]);
            match peer.malformed_or_goaway(1)? {
                true => Ok(()),
                false => entry_is(peer, 3),
            }
        },
    ),
    case("rfc9113_4_3_1_our_table_of_no_bytes", |peer| {
        // The peer's decoder refuses a block without the required size update.
        let before = peer.acknowledged();
        peer.settings(&[(setting::HEADER_TABLE_SIZE, 0)]);
        peer.until("the acknowledgement", |peer| peer.acknowledged() > before)?;
        peer.works(1)?;
        peer.works(3)
    }),
    case("rfc9113_4_3_1_our_table_shrinks_and_grows_again", |peer| {
        peer.works(1)?;
        let before = peer.acknowledged();
        peer.settings(&[(setting::HEADER_TABLE_SIZE, 0)]);
        peer.settings(&[(setting::HEADER_TABLE_SIZE, 256)]);
        peer.until("the acknowledgements", |peer| {
            peer.acknowledged() == before + 2
        })?;
        for stream in [3, 5, 7] {
            peer.works(stream)?;
        }
        Ok(())
    }),
    case("rfc9113_4_3_1_our_table_of_four_gigabytes", |peer| {
        peer.settings(&[(setting::HEADER_TABLE_SIZE, u32::MAX)]);
        peer.works(1)?;
        peer.works(3)
    }),
    // ---- 5.4: errors ----
    case("rfc9113_5_4_1_goaway_names_the_last_stream", |peer| {
        peer.works(1)?;
        peer.works(3)?;
        peer.send(Frame::new(kind::PING, 0, 5, *b"a stream"));
        peer.goaway(&[PROTOCOL_ERROR])?;
        let last = peer.goaways().last().map(|(last, _)| *last);
        ensure(last == Some(3), || peer.seen())
    }),
    ours("rfc9113_5_4_1_goaway_comes_once", |peer| {
        peer.send_raw(
            &Frame::new(kind::PING, 0, 5, *b"a stream")
                .encode()
                .repeat(3),
        );
        peer.goaway(&[PROTOCOL_ERROR])?;
        ensure(peer.goaways().len() == 1, || peer.seen())
    }),
    case("rfc9113_5_4_2_reset_is_not_answered_with_reset", |peer| {
        let block = peer.target().post();
        peer.headers_open(1, &block);
        peer.send(reset(1, PROTOCOL_ERROR));
        peer.alive()?;
        ensure(peer.so_far(1).reset.is_none(), || peer.seen())?;
        peer.works(3)
    }),
    // ---- 5.5 and 7: unknown elements ----
    case("rfc9113_5_5_unknown_settings", |peer| {
        let before = peer.acknowledged();
        peer.settings(&[(0, 1), (0x7777, u32::MAX), (u16::MAX, 0)]);
        peer.until("the acknowledgement", |peer| peer.acknowledged() > before)?;
        peer.works(1)
    }),
    case("rfc9113_7_unknown_error_code_of_a_reset", |peer| {
        let block = peer.target().post();
        peer.headers_open(1, &block);
        peer.send(reset(1, 0xdead_beef));
        peer.works(3)
    }),
    case("rfc9113_7_unknown_error_code_of_goaway", |peer| {
        peer.send(frame::goaway(0, 0xdead_beef, b""));
        // It announces to the server that we are going; the server may not fail.
        peer.finish_sending();
        peer.closed()?;
        let errors = peer.goaways().iter().any(|(_, code)| *code != NO_ERROR);
        ensure(!errors, || peer.seen())
    }),
];

fn frame_size(peer: &Peer) -> usize {
    let size = peer.server_setting(setting::MAX_FRAME_SIZE);
    size.map_or(FRAME_SIZE_DEFAULT, |size| size as usize)
}

/// Section 4.2: an error of the whole connection, because the frame could change its state.
fn too_large(peer: &mut Peer, frame: &Frame) -> Outcome {
    peer.send(frame.clone());
    peer.goaway(&[FRAME_SIZE_ERROR])
}

/// Section 4.3: no frame may come between HEADERS and its CONTINUATION.
fn inside_block(peer: &mut Peer, other: &Frame) -> Outcome {
    let block = peer.target().get();
    peer.send_all(&[
        Frame::new(kind::HEADERS, flag::END_STREAM, 1, &block[..4]),
        other.clone(),
        continuation(1, &block[4..], flag::END_HEADERS),
    ]);
    peer.goaway(&[PROTOCOL_ERROR])
}

/// Checks whether the newest entry of the server's table can be used.
fn entry_is(peer: &mut Peer, stream: u32) -> Outcome {
    let block = [peer.target().get(), hpack::indexed(hpack::DYNAMIC_FIRST)].concat();
    peer.headers(stream, &block);
    peer.answer_of(stream, 200)?;
    peer.works(stream + 2)
}
