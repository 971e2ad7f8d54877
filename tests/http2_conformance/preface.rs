//! RFC 9113, section 3: starting HTTP/2.

use super::common::http2::frame::code::PROTOCOL_ERROR;
use super::common::http2::frame::{self, Frame, PREFACE, kind, setting, settings, settings_ack};
use super::common::http2::{Outcome, Peer, ensure};
use super::{Case, case, fresh, ours_fresh};

pub const CASES: &[Case] = &[
    fresh("rfc9113_3_4_preface_with_a_wrong_last_byte", |peer| {
        refused_as_http1(peer, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\rX")
    }),
    fresh("rfc9113_3_4_preface_with_a_wrong_word", |peer| {
        refused_as_http1(peer, b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n")
    }),
    fresh("rfc9113_3_4_preface_of_another_version", |peer| {
        refused_as_http1(peer, b"PRI * HTTP/3.0\r\n\r\nSM\r\n\r\n")
    }),
    fresh("rfc9113_3_4_preface_in_lower_case", |peer| {
        refused_as_http1(peer, b"pri * http/2.0\r\n\r\nsm\r\n\r\n")
    }),
    fresh("rfc9113_3_4_part_of_a_preface_and_the_end", |peer| {
        peer.send_raw(&PREFACE[..20]);
        peer.finish_sending();
        let bytes = peer.raw_until_closed()?;
        is_refusal(&bytes)
    }),
    fresh("rfc9113_3_4_preface_byte_by_byte", |peer| {
        let bytes = [&PREFACE[..], &settings(&[]).encode()].concat();
        peer.note_settings(&[]);
        for byte in bytes {
            peer.send_raw(&[byte]);
        }
        peer.works(1)
    }),
    fresh("rfc9113_3_4_preface_and_request_in_one_write", |peer| {
        let request = frame::headers(1, &peer.target().get(), frame::flag::END_STREAM);
        let bytes = [PREFACE.to_vec(), settings(&[]).encode(), request.encode()].concat();
        peer.note_settings(&[]);
        peer.send_raw(&bytes);
        peer.answer_of(1, 200).map(drop)
    }),
    fresh(
        "rfc9113_3_4_first_frame_of_the_server_is_settings",
        |peer| {
            peer.send_raw(PREFACE);
            peer.settings(&[]);
            peer.step()?;
            ensure(peer.settings_count() == 1, || peer.seen())
        },
    ),
    fresh("rfc9113_3_4_settings_with_values_in_the_preface", |peer| {
        peer.send_raw(PREFACE);
        let pairs = [(setting::ENABLE_PUSH, 0), (setting::INITIAL_WINDOW_SIZE, 1)];
        peer.settings(&pairs);
        peer.stop_reading();
        let block = peer.target().get_page();
        peer.headers(1, &block);
        peer.alive()?;
        peer.until("one byte", |peer| !peer.so_far(1).body.is_empty())?;
        peer.alive()?;
        ensure(peer.so_far(1).body.len() == 1, || peer.seen())
    }),
    fresh("rfc9113_3_4_ping_instead_of_settings", |peer| {
        first_frame(peer, &frame::ping(*b"too soon"))
    }),
    fresh("rfc9113_3_4_headers_instead_of_settings", |peer| {
        let block = peer.target().get();
        first_frame(peer, &frame::headers(1, &block, frame::flag::END_STREAM))
    }),
    fresh("rfc9113_3_4_window_update_instead_of_settings", |peer| {
        first_frame(peer, &frame::window_update(0, 1))
    }),
    fresh("rfc9113_3_4_acknowledgement_instead_of_settings", |peer| {
        first_frame(peer, &settings_ack())
    }),
    fresh("rfc9113_3_4_unknown_frame_instead_of_settings", |peer| {
        first_frame(peer, &Frame::new(0xbf, 0, 0, *b"greetings"))
    }),
    fresh("rfc9113_3_4_text_instead_of_settings", |peer| {
        peer.send_raw(PREFACE);
        peer.send_raw(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n");
        peer.goaway(&[PROTOCOL_ERROR, frame::code::FRAME_SIZE_ERROR])
    }),
    case("rfc9113_3_4_second_preface", |peer| {
        // As a frame it has a length of 5,263,945 bytes.
        peer.send_raw(PREFACE);
        peer.goaway(&[PROTOCOL_ERROR, frame::code::FRAME_SIZE_ERROR])
    }),
    ours_fresh("rfc9113_3_1_upgrade_to_h2c_is_ignored", |peer| {
        // The mechanism of RFC 7540 is gone; an HTTP/1.1 request stays one.
        let path = peer.target().small;
        let request = format!(
            "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade, http2-settings, close\r\n\
             upgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n\r\n"
        );
        peer.send_raw(request.as_bytes());
        let bytes = peer.raw_until_closed()?;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        ensure(text.starts_with("HTTP/1.1 200 "), || text)
    }),
];

/// Sends bytes other than a preface: the connection ends, without a frame other than GOAWAY.
fn refused_as_http1(peer: &mut Peer, bytes: &[u8]) -> Outcome {
    peer.send_raw(bytes);
    peer.send_raw(&settings(&[]).encode());
    let bytes = peer.raw_until_closed()?;
    is_refusal(&bytes)
}

/// Accepts nothing, an HTTP/1.1 error, or SETTINGS and GOAWAY.
fn is_refusal(bytes: &[u8]) -> Outcome {
    let text = String::from_utf8_lossy(bytes).into_owned();
    if let Some(status) = text.strip_prefix("HTTP/1.1 ") {
        return ensure(status.starts_with(['4', '5']), || text.clone());
    }
    let mut rest = bytes;
    while let Some((frame, length)) = Frame::decode(rest) {
        rest = &rest[length..];
        let is_goaway = frame.kind == kind::GOAWAY && frame.number(4) == PROTOCOL_ERROR;
        let is_settings = frame.kind == kind::SETTINGS || frame.kind == kind::WINDOW_UPDATE;
        ensure(is_goaway || is_settings, || format!("{frame:?}"))?;
    }
    ensure(rest.is_empty(), || text)
}

fn first_frame(peer: &mut Peer, first: &Frame) -> Outcome {
    peer.send_raw(&[&PREFACE[..], &first.encode()].concat());
    peer.goaway(&[PROTOCOL_ERROR])
}
