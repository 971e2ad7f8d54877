//! RFC 9113, sections 5.2 and 6.9: flow control, in both directions.

use super::common::http2::frame::code::{FLOW_CONTROL_ERROR, FRAME_SIZE_ERROR, PROTOCOL_ERROR};
use super::common::http2::frame::{
    self, Frame, WINDOW_DEFAULT, data, flag, kind, padded, setting, window_update,
};
use super::common::http2::{Outcome, Peer, ensure};
use super::{Case, case};

const WINDOW_MAX: u32 = (1 << 31) - 1;

pub const CASES: &[Case] = &[
    case("rfc9113_6_9_increment_of_0_on_a_stream", |peer| {
        let block = peer.target().post();
        peer.headers_open(1, &block);
        peer.send(window_update(1, 0));
        peer.reset_or_goaway(1, &[PROTOCOL_ERROR])
    }),
    case("rfc9113_6_9_increment_of_0_on_the_connection", |peer| {
        peer.send(window_update(0, 0));
        peer.goaway(&[PROTOCOL_ERROR])
    }),
    case("rfc9113_6_9_window_update_too_short", |peer| {
        peer.send_raw(&Frame::new(kind::WINDOW_UPDATE, 0, 0, [0; 3]).encode());
        peer.goaway(&[FRAME_SIZE_ERROR])
    }),
    case("rfc9113_6_9_window_update_too_long", |peer| {
        peer.send_raw(&Frame::new(kind::WINDOW_UPDATE, 0, 0, [0, 0, 0, 1, 0]).encode());
        peer.goaway(&[FRAME_SIZE_ERROR])
    }),
    case("rfc9113_6_9_reserved_bit_of_the_increment", |peer| {
        peer.send(window_update(0, 1 | 1 << 31));
        peer.works(1)
    }),
    case("rfc9113_6_9_reserved_bit_and_increment_of_0", |peer| {
        peer.send(window_update(0, 1 << 31));
        peer.goaway(&[PROTOCOL_ERROR])
    }),
    case("rfc9113_6_9_1_window_of_a_stream_overflows", |peer| {
        let block = peer.target().post();
        peer.headers_open(1, &block);
        peer.send(window_update(1, WINDOW_MAX));
        peer.reset(1, &[FLOW_CONTROL_ERROR])?;
        peer.works(3)
    }),
    case("rfc9113_6_9_1_window_of_the_connection_overflows", |peer| {
        peer.send(window_update(0, WINDOW_MAX));
        peer.goaway(&[FLOW_CONTROL_ERROR])
    }),
    case(
        "rfc9113_6_9_1_window_of_a_stream_overflows_in_two_steps",
        |peer| {
            let block = peer.target().post();
            peer.headers_open(1, &block);
            peer.send(window_update(1, WINDOW_MAX - WINDOW_DEFAULT as u32));
            peer.alive()?;
            peer.send(window_update(1, 1));
            peer.reset(1, &[FLOW_CONTROL_ERROR])
        },
    ),
    case("rfc9113_6_9_1_largest_windows", |peer| {
        peer.send(window_update(0, WINDOW_MAX - WINDOW_DEFAULT as u32));
        peer.settings(&[(setting::INITIAL_WINDOW_SIZE, WINDOW_MAX)]);
        peer.works(1)
    }),
    case(
        "rfc9113_6_9_1_window_of_no_bytes_holds_data_and_not_headers",
        |peer| {
            page_with_window(peer, 0)?;
            ensure(peer.so_far(1).body.is_empty(), || peer.seen())
        },
    ),
    case("rfc9113_6_9_1_window_of_one_byte", |peer| {
        page_with_window(peer, 0)?;
        for length in 1..=5 {
            peer.send(window_update(1, 1));
            peer.until("one more byte", |peer| peer.so_far(1).body.len() >= length)?;
            peer.alive()?;
            ensure(peer.so_far(1).body.len() == length, || peer.seen())?;
        }
        peer.send(window_update(1, WINDOW_DEFAULT as u32));
        whole_page(peer)
    }),
    case("rfc9113_6_9_1_empty_answers_need_no_window", |peer| {
        peer.stop_reading();
        peer.settings(&[(setting::INITIAL_WINDOW_SIZE, 0)]);
        let target = peer.target();
        let head = [
            super::common::http2::hpack::literal_name(2, "HEAD"),
            target.get()[1..].to_vec(),
        ];
        peer.headers(1, &head.concat());
        peer.answer_of(1, 200)?;
        peer.alive()
    }),
    case(
        "rfc9113_6_9_1_connection_window_holds_all_streams",
        |peer| {
            // As many pages as exceed 65,535 bytes, with room on each stream.
            peer.stop_reading();
            let block = peer.target().get_page();
            peer.headers(1, &block);
            let length = peer.answer_of(1, 200)?.body.len();
            let mut received = length;
            let mut stream = 1;
            while received + length <= WINDOW_DEFAULT {
                stream += 2;
                peer.headers(stream, &block);
                peer.answer_of(stream, 200)?;
                received += length;
            }
            stream += 2;
            peer.headers(stream, &block);
            let rest = WINDOW_DEFAULT - received;
            peer.until("the rest of the window", |peer| {
                peer.so_far(stream).body.len() >= rest
            })?;
            peer.alive()?;
            let answer = peer.so_far(stream);
            ensure(answer.body.len() == rest && !answer.is_ended, || {
                peer.seen()
            })?;
            peer.send(window_update(0, WINDOW_DEFAULT as u32));
            let answer = peer.answer_of(stream, 200)?;
            ensure(answer.body.len() == length, || peer.seen())
        },
    ),
    case(
        "rfc9113_6_9_1_stream_window_holds_one_stream_alone",
        |peer| {
            page_with_window(peer, 10)?;
            peer.send(window_update(0, 1));
            // The waiting stream does not delay others: another one has its own ten bytes.
            let block = peer.target().get_page();
            peer.headers(3, &block);
            peer.until("ten bytes", |peer| peer.so_far(3).body.len() >= 10)?;
            peer.send(window_update(3, WINDOW_DEFAULT as u32));
            peer.answer_of(3, 200)?;
            ensure(peer.so_far(1).body.len() == 10, || peer.seen())
        },
    ),
    case(
        "rfc9113_6_9_2_raised_initial_window_frees_waiting_streams",
        |peer| {
            page_with_window(peer, 0)?;
            peer.settings(&[(setting::INITIAL_WINDOW_SIZE, 1)]);
            peer.until("one byte", |peer| !peer.so_far(1).body.is_empty())?;
            peer.alive()?;
            ensure(peer.so_far(1).body.len() == 1, || peer.seen())?;
            peer.settings(&[(setting::INITIAL_WINDOW_SIZE, WINDOW_DEFAULT as u32)]);
            whole_page(peer)
        },
    ),
    case("rfc9113_6_9_2_negative_window", |peer| {
        page_with_window(peer, 20)?;
        peer.until("twenty bytes", |peer| peer.so_far(1).body.len() >= 20)?;
        // 20 were sent, 5 are allowed: the window is -15.
        let before = peer.acknowledged();
        peer.settings(&[(setting::INITIAL_WINDOW_SIZE, 5)]);
        peer.until("the acknowledgement", |peer| peer.acknowledged() > before)?;
        peer.send(window_update(1, 10));
        peer.alive()?;
        ensure(peer.so_far(1).body.len() == 20, || peer.seen())?;
        peer.send(window_update(1, 10));
        peer.until("five bytes more", |peer| peer.so_far(1).body.len() >= 25)?;
        peer.alive()?;
        ensure(peer.so_far(1).body.len() == 25, || peer.seen())?;
        peer.send(window_update(1, WINDOW_DEFAULT as u32));
        whole_page(peer)
    }),
    case("rfc9113_6_9_2_negative_window_that_settings_lift", |peer| {
        page_with_window(peer, 20)?;
        peer.until("twenty bytes", |peer| peer.so_far(1).body.len() >= 20)?;
        peer.settings(&[(setting::INITIAL_WINDOW_SIZE, 0)]);
        peer.alive()?;
        peer.settings(&[(setting::INITIAL_WINDOW_SIZE, 22)]);
        peer.until("two bytes more", |peer| peer.so_far(1).body.len() >= 22)?;
        peer.alive()?;
        ensure(peer.so_far(1).body.len() == 22, || peer.seen())
    }),
    case(
        "rfc9113_6_9_2_initial_window_does_not_change_the_connections",
        |peer| {
            peer.settings(&[(setting::INITIAL_WINDOW_SIZE, WINDOW_MAX)]);
            peer.send(window_update(0, WINDOW_MAX - WINDOW_DEFAULT as u32));
            peer.works(1)
        },
    ),
    case("rfc9113_6_9_2_initial_window_overflows_a_stream", |peer| {
        let block = peer.target().post();
        peer.headers_open(1, &block);
        peer.send(window_update(1, WINDOW_MAX - WINDOW_DEFAULT as u32));
        peer.alive()?;
        peer.settings(&[(setting::INITIAL_WINDOW_SIZE, WINDOW_DEFAULT as u32 + 1)]);
        peer.goaway(&[FLOW_CONTROL_ERROR])
    }),
    case(
        "rfc9113_6_9_updates_are_no_requests_for_an_answer",
        |peer| {
            for _ in 0..50 {
                peer.send(window_update(0, 1));
            }
            peer.works(1)
        },
    ),
    // ---- the windows that the server grants ----
    case("rfc9113_5_2_2_a_body_larger_than_the_window", |peer| {
        let target = peer.target();
        peer.headers_open(1, &target.post());
        let window = initial_window(peer);
        let body = [vec![b' '; 3 * window as usize], target.body].concat();
        send_within_windows(peer, 1, &body)?;
        peer.answer_of(1, 200)?;
        peer.works(3)
    }),
    case("rfc9113_5_2_2_many_bodies_on_one_connection", |peer| {
        // The credit of each stream's DATA returns to the connection.
        let target = peer.target();
        let body = [vec![b' '; 30_000], target.body.clone()].concat();
        for number in 0..10 {
            let stream = 2 * number + 1;
            peer.headers_open(stream, &target.post());
            send_within_windows(peer, stream, &body)?;
            peer.answer_of(stream, 200)?;
        }
        peer.alive()
    }),
    case("rfc9113_6_1_padding_gives_its_credit_back", |peer| {
        let target = peer.target();
        peer.headers_open(1, &target.post());
        let payload = padded(&[b' '; 100], 255);
        let length = payload.len() as i64;
        let padded = Frame::new(kind::DATA, flag::PADDED, 1, payload);
        let window = initial_window(peer);
        while peer.sent_data() < 2 * WINDOW_DEFAULT as i64 {
            peer.until("credit", |peer| {
                room(peer, window, peer.sent_data(), 1) >= length
            })?;
            peer.send(padded.clone());
            peer.drain()?;
        }
        let length = target.body.len() as i64;
        peer.until("credit", |peer| {
            room(peer, window, peer.sent_data(), 1) >= length
        })?;
        peer.data_end(1, &target.body);
        peer.answer_of(1, 200)?;
        peer.alive()?;
        let left = WINDOW_DEFAULT as i64 + peer.credit(0) - peer.sent_data();
        ensure(left >= WINDOW_DEFAULT as i64 / 2, || {
            format!("a window of {left} is left")
        })
    }),
    case("rfc9113_6_9_1_data_beyond_the_window", |peer| {
        // Twice the allowed bytes, at once; any credit that comes meanwhile is far less.
        let block = peer.target().post();
        peer.headers_open(1, &block);
        let window = initial_window(peer).max(WINDOW_DEFAULT as i64);
        let count = 2 * window / 16_384 + 2;
        let frames = vec![data(1, &vec![b' '; 16_384], 0); count as usize];
        peer.send_all(&frames);
        let sent = count * 16_384;
        let what = "FLOW_CONTROL_ERROR, or credit for all of it";
        peer.until(what, |peer| {
            let is_error = peer
                .goaways()
                .iter()
                .any(|(_, code)| *code == FLOW_CONTROL_ERROR);
            let is_reset = peer.so_far(1).reset == Some(FLOW_CONTROL_ERROR);
            let is_paid = room(peer, initial_window(peer), sent, 1) >= 0;
            is_error || is_reset || is_paid || peer.is_over()
        })?;
        let is_error = peer.goaways().iter().any(|(_, code)| *code != 0);
        match is_error {
            true => peer.goaway(&[FLOW_CONTROL_ERROR]),
            false => ensure(!peer.is_over(), || peer.seen()),
        }
    }),
];

/// Requests the page with this initial window, and waits for its HEADERS.
fn page_with_window(peer: &mut Peer, window: u32) -> Outcome {
    peer.stop_reading();
    peer.settings(&[(setting::INITIAL_WINDOW_SIZE, window)]);
    let block = peer.target().get_page();
    peer.headers(1, &block);
    peer.until("the answer's HEADERS", |peer| peer.so_far(1).status == 200)?;
    peer.alive()
}

fn whole_page(peer: &mut Peer) -> Outcome {
    let answer = peer.answer_of(1, 200)?;
    ensure(answer.body.len() > 100, || answer.text())?;
    peer.alive()
}

/// Returns the window that the server grants a new stream.
fn initial_window(peer: &Peer) -> i64 {
    let window = peer.server_setting(setting::INITIAL_WINDOW_SIZE);
    window.map_or(WINDOW_DEFAULT as i64, i64::from)
}

/// Returns how much may be sent on a stream after `sent` bytes: the smaller of its own window and
/// the connection's.
fn room(peer: &Peer, window: i64, sent: i64, stream: u32) -> i64 {
    let connection = WINDOW_DEFAULT as i64 + peer.credit(0) - sent;
    (window + peer.credit(stream) - sent).min(connection)
}

fn send_within_windows(peer: &mut Peer, stream: u32, body: &[u8]) -> Outcome {
    let window = initial_window(peer);
    let connection_before = peer.sent_data();
    let mut sent = 0;
    while sent < body.len() {
        let room = |peer: &Peer| {
            let connection = WINDOW_DEFAULT as i64 + peer.credit(0) - peer.sent_data();
            let own = window + peer.credit(stream) - (peer.sent_data() - connection_before);
            own.min(connection)
        };
        peer.until("credit", |peer| room(peer) > 0)?;
        let count = room(peer).min(16_384) as usize;
        let end = (sent + count).min(body.len());
        let flags = if end == body.len() {
            flag::END_STREAM
        } else {
            0
        };
        peer.send(frame::data(stream, &body[sent..end], flags));
        sent = end;
        peer.drain()?;
    }
    Ok(())
}
