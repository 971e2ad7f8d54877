//! RFC 9113, section 5.1 (states of a stream, identifiers, concurrency) and 5.3 (priority).

use super::common::http2::frame::code::{
    CANCEL, FLOW_CONTROL_ERROR, NO_ERROR, PROTOCOL_ERROR, REFUSED_STREAM, STREAM_CLOSED,
};
use super::common::http2::frame::{
    self, Frame, continuation, data, flag, headers, kind, priority, reset, setting, window_update,
};
use super::common::http2::{Outcome, Peer, ensure};
use super::{Case, case, ours};

const STREAM_MAX: u32 = (1 << 31) - 1;

pub const CASES: &[Case] = &[
    // ---- idle ----
    case("rfc9113_5_1_idle_data", |peer| {
        peer.data_end(1, b"x");
        peer.goaway(&[PROTOCOL_ERROR])
    }),
    case("rfc9113_5_1_idle_reset", |peer| {
        peer.send(reset(1, CANCEL));
        peer.goaway(&[PROTOCOL_ERROR])
    }),
    case("rfc9113_5_1_idle_window_update", |peer| {
        peer.send(window_update(1, 100));
        peer.goaway(&[PROTOCOL_ERROR])
    }),
    case("rfc9113_5_1_idle_continuation", |peer| {
        let block = peer.target().get();
        peer.send(continuation(
            1,
            &block,
            flag::END_HEADERS | flag::END_STREAM,
        ));
        peer.goaway(&[PROTOCOL_ERROR])
    }),
    case("rfc9113_5_1_idle_priority", |peer| {
        peer.send(priority(1, 0));
        peer.send(priority(9, 1));
        peer.works(1)
    }),
    case("rfc9113_5_1_idle_data_above_a_used_stream", |peer| {
        peer.works(1)?;
        peer.data_end(5, b"x");
        peer.goaway(&[PROTOCOL_ERROR])
    }),
    case("rfc9113_5_1_idle_stream_of_the_server", |peer| {
        peer.send(window_update(2, 1));
        peer.goaway(&[PROTOCOL_ERROR])
    }),
    // ---- open ----
    case("rfc9113_5_1_open_window_update_and_priority", |peer| {
        let target = peer.target();
        peer.headers_open(1, &target.post());
        peer.send(window_update(1, 100));
        peer.send(priority(1, 0));
        peer.data_end(1, &target.body);
        peer.answer_of(1, 200)?;
        peer.works(3)
    }),
    case("rfc9113_5_1_open_reset", |peer| {
        let block = peer.target().post();
        peer.headers_open(1, &block);
        peer.send(reset(1, CANCEL));
        peer.works(3)?;
        ensure(peer.so_far(1).status == 0, || peer.seen())
    }),
    // ---- half-closed (remote): we have ended, the response has not ----
    case("rfc9113_5_1_half_closed_data", |peer| {
        half_closed(peer)?;
        peer.data_end(1, b"x");
        peer.reset_or_goaway(1, &[STREAM_CLOSED])
    }),
    case("rfc9113_5_1_half_closed_empty_data", |peer| {
        half_closed(peer)?;
        peer.data_end(1, b"");
        peer.reset_or_goaway(1, &[STREAM_CLOSED])
    }),
    case("rfc9113_5_1_half_closed_headers", |peer| {
        half_closed(peer)?;
        let block = peer.target().get();
        peer.headers(1, &block);
        peer.reset_or_goaway(1, &[STREAM_CLOSED])
    }),
    case("rfc9113_5_1_half_closed_headers_keep_the_table", |peer| {
        use super::common::http2::hpack;
        half_closed(peer)?;
        peer.headers(1, &hpack::literal_indexed("x-kept", "kept"));
        peer.reset_or_goaway(1, &[STREAM_CLOSED])?;
        if peer.is_over() {
            return Ok(());
        }
        peer.settings(&[(setting::INITIAL_WINDOW_SIZE, 65_535)]);
        let block = [peer.target().get(), hpack::indexed(hpack::DYNAMIC_FIRST)].concat();
        peer.headers(3, &block);
        peer.answer_of(3, 200).map(drop)
    }),
    case("rfc9113_5_1_half_closed_continuation", |peer| {
        half_closed(peer)?;
        peer.send(continuation(1, b"", flag::END_HEADERS));
        // Section 6.10 names one error, section 5.1 the other.
        peer.reset_or_goaway(1, &[PROTOCOL_ERROR, STREAM_CLOSED])
    }),
    case(
        "rfc9113_5_1_half_closed_window_update_and_priority",
        |peer| {
            half_closed(peer)?;
            peer.send(priority(1, 0));
            peer.send(window_update(1, 65_535));
            peer.answer_of(1, 200)?;
            peer.alive()
        },
    ),
    case("rfc9113_5_1_half_closed_reset", |peer| {
        half_closed(peer)?;
        peer.send(reset(1, CANCEL));
        peer.alive()?;
        let before = peer.so_far(1).body.len();
        peer.settings(&[(setting::INITIAL_WINDOW_SIZE, 65_535)]);
        peer.works(3)?;
        ensure(peer.so_far(1).body.len() == before, || peer.seen())
    }),
    // ---- closed by both ends ----
    case("rfc9113_5_1_closed_data", |peer| {
        peer.works(1)?;
        peer.data_end(1, b"x");
        closed_error(peer)
    }),
    case("rfc9113_5_1_closed_headers", |peer| {
        peer.works(1)?;
        let block = peer.target().get();
        peer.headers(1, &block);
        closed_error(peer)
    }),
    case("rfc9113_5_1_closed_continuation", |peer| {
        peer.works(1)?;
        peer.send(continuation(1, b"", flag::END_HEADERS));
        peer.goaway(&[PROTOCOL_ERROR, STREAM_CLOSED])
    }),
    case("rfc9113_5_1_closed_window_update_and_reset", |peer| {
        // These may have been on their way when the response ended.
        peer.works(1)?;
        peer.send(window_update(1, 100));
        peer.send(reset(1, CANCEL));
        peer.works(3)
    }),
    case("rfc9113_5_1_closed_priority", |peer| {
        peer.works(1)?;
        peer.send(priority(1, 0));
        peer.works(3)
    }),
    // ---- closed by our RST_STREAM ----
    case("rfc9113_5_1_reset_then_data", |peer| {
        reset_by_us(peer)?;
        peer.data_end(1, b"x");
        closed_error(peer)
    }),
    case("rfc9113_5_1_reset_then_headers", |peer| {
        reset_by_us(peer)?;
        let block = peer.target().get();
        peer.headers(1, &block);
        closed_error(peer)
    }),
    case("rfc9113_5_1_reset_then_continuation", |peer| {
        reset_by_us(peer)?;
        peer.send(continuation(1, b"", flag::END_HEADERS));
        peer.goaway(&[PROTOCOL_ERROR, STREAM_CLOSED])
    }),
    case("rfc9113_5_1_reset_then_priority", |peer| {
        reset_by_us(peer)?;
        peer.send(priority(1, 0));
        peer.works(3)
    }),
    // ---- closed by the server's RST_STREAM: frames on their way are discarded ----
    case("rfc9113_5_1_reset_by_the_server_then_data", |peer| {
        reset_by_server(peer)?;
        for _ in 0..8 {
            peer.data(1, &[b' '; 1_000]);
        }
        peer.data_end(1, b"x");
        peer.works(3)
    }),
    case("rfc9113_5_1_reset_by_the_server_then_trailers", |peer| {
        use super::common::http2::hpack;
        reset_by_server(peer)?;
        peer.headers(1, &hpack::literal_indexed("x-kept", "kept"));
        let block = [peer.target().get(), hpack::indexed(hpack::DYNAMIC_FIRST)].concat();
        peer.headers(3, &block);
        peer.answer_of(3, 200)?;
        peer.alive()
    }),
    case(
        "rfc9113_5_1_reset_by_the_server_then_control_frames",
        |peer| {
            reset_by_server(peer)?;
            peer.send(window_update(1, 100));
            peer.send(priority(1, 0));
            peer.send(reset(1, CANCEL));
            peer.works(3)
        },
    ),
    case(
        "rfc9113_5_1_discarded_data_counts_for_the_connection",
        |peer| {
            // More than one window: if the credit did not return, later bodies would wait for ever.
            reset_by_server(peer)?;
            let mut sent = 0;
            while sent < 200_000 {
                let allowed = 65_535 + peer.credit(0) - 10_000;
                if sent < allowed {
                    peer.data(1, &[b' '; 10_000]);
                    sent += 10_000;
                    peer.drain()?;
                } else {
                    peer.until("credit for discarded DATA", |peer| {
                        65_535 + peer.credit(0) - 10_000 > sent
                    })?;
                }
            }
            peer.works(3)
        },
    ),
    // ---- 5.1.1: identifiers ----
    case("rfc9113_5_1_1_even_stream_id", |peer| {
        let block = peer.target().get();
        peer.headers(2, &block);
        peer.goaway(&[PROTOCOL_ERROR])
    }),
    case("rfc9113_5_1_1_lower_stream_id", |peer| {
        peer.works(5)?;
        let block = peer.target().get();
        peer.headers(3, &block);
        peer.goaway(&[PROTOCOL_ERROR])
    }),
    case("rfc9113_5_1_1_lower_stream_id_while_one_is_open", |peer| {
        let target = peer.target();
        peer.headers_open(5, &target.post());
        peer.headers(3, &target.get());
        peer.goaway(&[PROTOCOL_ERROR])
    }),
    case("rfc9113_5_1_1_skipped_stream_ids_are_closed", |peer| {
        peer.works(7)?;
        peer.data_end(3, b"x");
        peer.reset_or_goaway(3, &[PROTOCOL_ERROR, STREAM_CLOSED])
    }),
    case("rfc9113_5_1_1_stream_ids_may_be_skipped", |peer| {
        peer.works(1)?;
        peer.works(101)?;
        peer.works(10_001)
    }),
    case("rfc9113_5_1_1_largest_stream_id", |peer| {
        peer.works(STREAM_MAX)
    }),
    case(
        "rfc9113_5_1_1_nothing_above_the_largest_stream_id",
        |peer| {
            peer.works(STREAM_MAX)?;
            let block = peer.target().get();
            peer.headers(1, &block);
            peer.goaway(&[PROTOCOL_ERROR, STREAM_CLOSED])
        },
    ),
    // ---- 5.1.2: concurrency ----
    ours("rfc9113_5_1_2_limit_is_announced", |peer| {
        let most = peer.server_setting(setting::MAX_CONCURRENT_STREAMS);
        ensure(
            most.is_some_and(|most| (100..=1_000).contains(&most)),
            || format!("{most:?}; section 6.5.2 recommends 100 at least"),
        )
    }),
    case("rfc9113_5_1_2_streams_above_the_limit", |peer| {
        let target = peer.target();
        let most = peer.server_setting(setting::MAX_CONCURRENT_STREAMS);
        let most = most.ok_or("no limit is announced")?;
        // A body that does not come keeps each of them open.
        for number in 0..most + 3 {
            peer.headers_open(2 * number + 1, &target.post());
        }
        for number in most..most + 3 {
            peer.reset_only(2 * number + 1, &[REFUSED_STREAM, PROTOCOL_ERROR])?;
        }
        peer.alive()?;
        let untouched = (0..most).all(|number| peer.so_far(2 * number + 1).reset.is_none());
        ensure(untouched, || peer.seen())?;
        // One ends, and its place is free again.
        peer.data_end(1, &target.body);
        peer.answer_of(1, 200)?;
        peer.works(2 * most + 101)
    }),
    case("rfc9113_5_1_2_many_streams_at_once", |peer| {
        let target = peer.target();
        let frames: Vec<_> = (0..100)
            .map(|number| headers(2 * number + 1, &target.get(), flag::END_STREAM))
            .collect();
        peer.send_all(&frames);
        for number in 0..100 {
            peer.answer_of(2 * number + 1, 200)?;
        }
        peer.alive()
    }),
    case("rfc9113_5_1_2_bodies_of_many_streams_interleaved", |peer| {
        let target = peer.target();
        let streams = (0..50).map(|number| 2 * number + 1);
        for stream in streams.clone() {
            peer.headers_open(stream, &target.post());
        }
        let (first, second) = target.body.split_at(target.body.len() / 2);
        for stream in streams.clone() {
            peer.data(stream, first);
        }
        for stream in streams.clone().rev() {
            peer.data_end(stream, second);
        }
        for stream in streams {
            peer.answer_of(stream, 200)?;
        }
        peer.alive()
    }),
    // ---- 5.3: priority, which is deprecated ----
    case("rfc9113_5_3_priority_fields_of_headers", |peer| {
        let block = peer.target().get();
        for (number, dependency) in [0, 1, 1 << 31, 77].into_iter().enumerate() {
            let stream = 2 * number as u32 + 1;
            let payload = [frame::priority_fields(dependency, 255), block.clone()].concat();
            let flags = flag::END_HEADERS | flag::END_STREAM | flag::PRIORITY;
            // The second would depend on stream 1, which is closed by then.
            peer.send(Frame::new(kind::HEADERS, flags, stream, payload));
            peer.answer_of(stream, 200)?;
        }
        Ok(())
    }),
    case("rfc9113_5_3_headers_that_depend_on_themselves", |peer| {
        let block = peer.target().get();
        let payload = [frame::priority_fields(1, 15), block].concat();
        let flags = flag::END_HEADERS | flag::END_STREAM | flag::PRIORITY;
        peer.send(Frame::new(kind::HEADERS, flags, 1, payload));
        dependence_on_itself(peer)
    }),
    case("rfc9113_5_3_priority_that_depends_on_itself", |peer| {
        let block = peer.target().post();
        peer.headers_open(1, &block);
        peer.send(priority(1, 1));
        let body = peer.target().body;
        peer.data_end(1, &body);
        dependence_on_itself(peer)
    }),
    case("rfc9113_5_3_priority_that_makes_a_circle", |peer| {
        peer.send(priority(1, 3));
        peer.send(priority(3, 5));
        peer.send(priority(5, 1));
        peer.works(1)?;
        peer.works(3)
    }),
    case(
        "rfc9113_5_1_data_after_the_window_was_overrun_is_discarded",
        |peer| {
            let target = peer.target();
            peer.headers_open(1, &target.post());
            peer.send(window_update(1, STREAM_MAX));
            peer.reset(1, &[FLOW_CONTROL_ERROR])?;
            peer.send(data(1, b"late", flag::END_STREAM));
            peer.works(3)
        },
    ),
];

/// Stream 1 has a whole request; its response waits for a window.
fn half_closed(peer: &mut Peer) -> Outcome {
    peer.stop_reading();
    peer.settings(&[(setting::INITIAL_WINDOW_SIZE, 0)]);
    let block = peer.target().get_page();
    peer.headers(1, &block);
    peer.until("the answer's HEADERS", |peer| peer.so_far(1).status == 200)?;
    peer.alive()
}

/// Stream 1 was opened and reset by us.
fn reset_by_us(peer: &mut Peer) -> Outcome {
    let block = peer.target().post();
    peer.headers_open(1, &block);
    peer.send(reset(1, CANCEL));
    peer.alive()
}

/// Stream 1 was opened by us and reset by the server.
fn reset_by_server(peer: &mut Peer) -> Outcome {
    let block = peer.target().post();
    peer.headers_open(1, &block);
    peer.send(window_update(1, STREAM_MAX));
    peer.reset(1, &[FLOW_CONTROL_ERROR])
}

/// A frame on stream 1, which is closed: either error, and for HEADERS also the error for a lower
/// identifier.
fn closed_error(peer: &mut Peer) -> Outcome {
    let what = "an error of the closed stream";
    let before = peer.so_far(1).reset;
    peer.until(what, |peer| {
        let has_error = peer.goaways().iter().any(|(_, code)| *code != NO_ERROR);
        (before.is_none() && peer.so_far(1).reset.is_some()) || has_error || peer.is_over()
    })?;
    match peer.so_far(1).reset {
        Some(STREAM_CLOSED) => peer.alive(),
        Some(_) => Err(format!("wanted STREAM_CLOSED; got {}", peer.seen())),
        None => peer.goaway(&[STREAM_CLOSED, PROTOCOL_ERROR]),
    }
}

/// RFC 7540 called this PROTOCOL_ERROR of the stream; RFC 9113 no longer reads priorities.
fn dependence_on_itself(peer: &mut Peer) -> Outcome {
    match peer.answer(1) {
        Ok(answer) => ensure(answer.status == 200, || answer.text())?,
        Err(_) => peer.reset_only(1, &[PROTOCOL_ERROR])?,
    }
    peer.works(3)
}
