//! RFC 9113, sections 8.1 (framing of messages) and 8.2 (fields).

use super::common::http2::frame::code::{NO_ERROR, PROTOCOL_ERROR};
use super::common::http2::frame::{self, Frame, data, flag, headers, kind};
use super::common::http2::hpack::{
    DYNAMIC_FIRST, fields, huffman_string, indexed, literal, literal_indexed, literal_indexed_name,
    literal_name,
};
use super::common::http2::{Outcome, Peer, Target, ensure, index};
use super::{Case, case, ours};

pub const CASES: &[Case] = &[
    // ---- 8.1: one HEADERS, DATA, one HEADERS ----
    case("rfc9113_8_1_second_headers_without_end_stream", |peer| {
        let block = peer.target().post();
        peer.headers_open(1, &block);
        peer.headers_open(1, &fields(&[("x-trailer", "1")]));
        peer.malformed(1)?;
        peer.works(3)
    }),
    case("rfc9113_8_1_trailers_without_end_stream", |peer| {
        let target = peer.target();
        peer.headers_open(1, &target.post());
        peer.data(1, &target.body);
        peer.headers_open(1, &fields(&[("x-trailer", "1")]));
        peer.malformed(1)?;
        peer.works(3)
    }),
    case("rfc9113_8_1_trailers", |peer| {
        let target = peer.target();
        peer.headers_open(1, &target.post());
        peer.data(1, &target.body);
        peer.headers(1, &fields(&[("x-trailer", "1"), ("x-other", "")]));
        peer.answer_of(1, 200)?;
        peer.works(3)
    }),
    case("rfc9113_8_1_trailers_without_a_body", |peer| {
        let block = peer.target().get();
        peer.headers_open(1, &block);
        peer.headers(1, &fields(&[("x-trailer", "1")]));
        peer.answer_of(1, 200)?;
        peer.works(3)
    }),
    case("rfc9113_8_1_empty_trailers", |peer| {
        let target = peer.target();
        peer.headers_open(1, &target.post());
        peer.data(1, &target.body);
        peer.headers(1, b"");
        peer.answer_of(1, 200)?;
        peer.works(3)
    }),
    case("rfc9113_8_1_pseudo_header_in_trailers", |peer| {
        trailers(peer, &fields(&[("x-trailer", "1"), (":path", "/")]))
    }),
    case("rfc9113_8_1_method_in_trailers", |peer| {
        trailers(peer, &fields(&[(":method", "GET")]))
    }),
    case("rfc9113_8_1_status_in_trailers", |peer| {
        trailers(peer, &fields(&[(":status", "200")]))
    }),
    case("rfc9113_8_1_path_alone_in_trailers", |peer| {
        trailers(peer, &literal_name(index::PATH, "/"))
    }),
    case("rfc9113_8_1_indexed_path_in_trailers", |peer| {
        trailers(peer, &indexed(index::PATH))
    }),
    case(
        "rfc9113_8_1_huffman_coded_pseudo_header_in_trailers",
        |peer| {
            let block = [&[0][..], &huffman_string(":path"), &huffman_string("/")];
            trailers(peer, &block.concat())
        },
    ),
    case(
        "rfc9113_8_1_pseudo_header_in_trailers_of_two_frames",
        |peer| {
            let target = peer.target();
            peer.headers_open(1, &target.post());
            peer.data(1, &target.body);
            let block = literal_name(index::PATH, "/");
            let first = Frame::new(kind::HEADERS, flag::END_STREAM, 1, &block[..1]);
            peer.send(first);
            peer.send(frame::continuation(1, &block[1..], flag::END_HEADERS));
            peer.malformed(1)?;
            peer.works(3)
        },
    ),
    case("rfc9113_8_1_dynamic_pseudo_header_in_trailers", |peer| {
        let target = peer.target();
        // The newest entry is not a name, the older one is.
        let more = [
            literal_indexed_name(index::PATH, &target.small),
            literal_indexed("x-trailer", "1"),
        ];
        let head = [indexed(index::METHOD_GET), indexed(index::SCHEME_HTTP)].concat();
        let authority = literal_name(index::AUTHORITY, "localhost");
        let block = [&head[..], &more[0], &authority, &more[1]].concat();
        peer.headers_open(1, &block);
        peer.headers(1, &indexed(DYNAMIC_FIRST));
        peer.answer_of(1, 200)?;
        let block = [&head[..], &indexed(DYNAMIC_FIRST + 1), &authority].concat();
        peer.headers_open(3, &block);
        peer.headers(3, &indexed(DYNAMIC_FIRST + 1));
        peer.malformed(3)?;
        peer.works(5)
    }),
    case(
        "rfc9113_8_1_pseudo_header_in_trailers_without_a_body",
        |peer| {
            let block = peer.target().get();
            peer.headers_open(1, &block);
            peer.headers(1, &indexed(index::PATH));
            peer.malformed(1)?;
            peer.works(3)
        },
    ),
    case("rfc9113_8_2_connection_in_trailers", |peer| {
        trailers(peer, &fields(&[("connection", "close")]))
    }),
    case("rfc9113_8_2_upper_case_in_trailers", |peer| {
        let target = peer.target();
        peer.headers_open(1, &target.post());
        peer.data(1, &target.body);
        peer.headers(1, &fields(&[("X-Trailer", "1")]));
        peer.malformed_or_goaway(1).map(drop)
    }),
    case(
        "rfc9113_8_1_early_answer_to_an_unfinished_request",
        |peer| {
            // Nothing is served there, and no body is needed to report that (section 8.1).
            let target = peer.target();
            let path = literal_name(index::PATH, "/nowhere");
            let block = [
                vec![0x83, 0x86],
                path,
                literal_name(index::AUTHORITY, "localhost"),
            ];
            peer.headers_open(1, &block.concat());
            if target.is_ours {
                let answer = peer.answer(1)?;
                ensure(answer.status == 404, || answer.text())?;
                // NO_ERROR would be correct too, but clients that still write take it for a
                // failure.
                ensure(answer.reset.is_none(), || peer.seen())?;
            }
            peer.data_end(1, b"late");
            peer.works(3)
        },
    ),
    // ---- 8.1.1: content-length ----
    case("rfc9113_8_1_1_content_length_that_fits", |peer| {
        let target = peer.target();
        let length = target.body.len().to_string();
        peer.headers_open(1, &target.post_with(&[("content-length", &length)]));
        let (first, second) = target.body.split_at(7);
        peer.data(1, first);
        peer.data_end(1, second);
        peer.answer_of(1, 200)?;
        peer.works(3)
    }),
    case("rfc9113_8_1_1_content_length_above_the_body", |peer| {
        content_length(peer, 1)
    }),
    case("rfc9113_8_1_1_content_length_below_the_body", |peer| {
        content_length(peer, -1)
    }),
    case("rfc9113_8_1_1_content_length_of_0_with_a_body", |peer| {
        let target = peer.target();
        content_length(peer, -(target.body.len() as i64))
    }),
    case("rfc9113_8_1_1_content_length_and_no_body", |peer| {
        let block = peer.target().post_with(&[("content-length", "5")]);
        peer.headers(1, &block);
        peer.malformed(1)?;
        peer.works(3)
    }),
    case(
        "rfc9113_8_1_1_content_length_of_a_get_without_a_body",
        |peer| {
            let block = peer.target().get_with(&[("content-length", "1")]);
            peer.headers(1, &block);
            peer.malformed(1)?;
            peer.works(3)
        },
    ),
    case(
        "rfc9113_8_1_1_late_content_length_mismatch_in_many_frames",
        |peer| {
            let target = peer.target();
            let length = (target.body.len() + 1).to_string();
            peer.headers_open(1, &target.post_with(&[("content-length", &length)]));
            for piece in target.body.chunks(9) {
                peer.data(1, piece);
            }
            peer.data_end(1, b"");
            peer.malformed(1)?;
            peer.works(3)
        },
    ),
    case(
        "rfc9113_8_1_1_late_content_length_mismatch_before_trailers",
        |peer| {
            let target = peer.target();
            let length = (target.body.len() + 1).to_string();
            peer.headers_open(1, &target.post_with(&[("content-length", &length)]));
            peer.data(1, &target.body);
            peer.headers(1, &fields(&[("x-trailer", "1")]));
            peer.malformed(1)?;
            peer.works(3)
        },
    ),
    case(
        "rfc9113_8_1_1_late_content_length_mismatch_after_the_answer",
        |peer| {
            // The response came before the body; the length is still wrong, but harmless.
            let block = peer.target().get_with(&[("content-length", "5")]);
            peer.headers_open(1, &block);
            peer.alive()?;
            peer.data_end(1, b"seven b");
            let answer = peer.so_far(1);
            ensure(
                answer.reset.is_none() || answer.reset == Some(NO_ERROR) || {
                    answer.reset == Some(PROTOCOL_ERROR)
                },
                || peer.seen(),
            )?;
            peer.works(3)
        },
    ),
    case("rfc9113_8_1_1_padding_does_not_count_as_content", |peer| {
        let target = peer.target();
        let length = target.body.len().to_string();
        peer.headers_open(1, &target.post_with(&[("content-length", &length)]));
        let payload = frame::padded(&target.body, 100);
        peer.send(Frame::new(
            kind::DATA,
            flag::PADDED | flag::END_STREAM,
            1,
            payload,
        ));
        peer.answer_of(1, 200)?;
        peer.works(3)
    }),
    case("rfc9113_8_1_1_two_different_content_lengths", |peer| {
        let target = peer.target();
        let length = target.body.len().to_string();
        let pairs = [("content-length", length.as_str()), ("content-length", "1")];
        whole(peer, &target.post_with(&pairs))
    }),
    case("rfc9113_8_1_1_content_length_that_is_no_number", |peer| {
        for (number, value) in [
            "+5",
            "-1",
            "5 ",
            "0x5",
            "five",
            "",
            "5,5",
            "99999999999999999999",
        ]
        .iter()
        .enumerate()
        {
            let stream = 2 * number as u32 + 1;
            let block = peer.target().post_with(&[("content-length", value)]);
            peer.headers_open(stream, &block);
            peer.data_end(stream, b"12345");
            peer.malformed(stream)
                .map_err(|error| format!("{value:?}: {error}"))?;
        }
        peer.works(101)
    }),
    case("rfc9113_8_1_1_a_malformed_request_harms_no_other", |peer| {
        let target = peer.target();
        peer.headers_open(1, &target.post());
        peer.send(headers(
            3,
            &target.get_with(&[("upgrade", "h2c")]),
            flag::END_STREAM,
        ));
        peer.send(headers(5, &target.get(), flag::END_STREAM));
        peer.malformed(3)?;
        peer.answer_of(5, 200)?;
        peer.send(data(1, &target.body, flag::END_STREAM));
        peer.answer_of(1, 200)?;
        peer.works(7)
    }),
    // ---- 8.2.1: names and values ----
    case("rfc9113_8_2_1_upper_case_name", |peer| {
        bytes(peer, "X-Upper", "1")
    }),
    case("rfc9113_8_2_1_upper_case_in_the_middle", |peer| {
        bytes(peer, "x-uPper", "1")
    }),
    case("rfc9113_8_2_1_empty_name", |peer| bytes(peer, "", "1")),
    case("rfc9113_8_2_1_space_in_a_name", |peer| {
        bytes(peer, "x y", "1")
    }),
    case("rfc9113_8_2_1_colon_in_a_name", |peer| {
        bytes(peer, "x:y", "1")
    }),
    case("rfc9113_8_2_1_control_characters_in_a_name", |peer| {
        for name in ["x\r\ny", "x\0", "x\x7f", "\tx"] {
            fresh_bytes(peer, name, "1")?;
        }
        Ok(())
    }),
    case("rfc9113_8_2_1_delimiters_in_a_name", |peer| {
        // Section 5.6.2 of RFC 9110: not tokens.
        for name in ["x(", "x,y", "x/y", "x\"", "x@", "x[", "x{", "x="] {
            fresh_bytes(peer, name, "1")?;
        }
        Ok(())
    }),
    case("rfc9113_8_2_1_a_name_beyond_ascii", |peer| {
        bytes(peer, "x-\u{e9}", "1")
    }),
    case("rfc9113_8_2_1_nul_in_a_value", |peer| {
        bytes(peer, "x-value", "a\0b")
    }),
    case("rfc9113_8_2_1_lf_in_a_value", |peer| {
        bytes(peer, "x-value", "a\nb")
    }),
    case("rfc9113_8_2_1_cr_in_a_value", |peer| {
        bytes(peer, "x-value", "a\rb")
    }),
    case("rfc9113_8_2_1_request_hidden_in_a_value", |peer| {
        bytes(peer, "x-value", "a\r\n\r\nGET /evil HTTP/1.1\r\nhost: b")
    }),
    case("rfc9113_8_2_1_space_at_the_beginning_of_a_value", |peer| {
        field(peer, "x-value", " a")
    }),
    case("rfc9113_8_2_1_space_at_the_end_of_a_value", |peer| {
        field(peer, "x-value", "a ")
    }),
    case("rfc9113_8_2_1_tab_at_the_beginning_of_a_value", |peer| {
        field(peer, "x-value", "\ta")
    }),
    case("rfc9113_8_2_1_tab_at_the_end_of_a_value", |peer| {
        field(peer, "x-value", "a\t")
    }),
    case("rfc9113_8_2_1_spaces_and_tabs_within_a_value", |peer| {
        let block = peer.target().get_with(&[("x-value", "a b\tc")]);
        peer.headers(1, &block);
        peer.answer_of(1, 200)?;
        peer.works(3)
    }),
    case("rfc9113_8_2_1_empty_value", |peer| {
        let block = peer.target().get_with(&[("x-value", "")]);
        peer.headers(1, &block);
        peer.answer_of(1, 200)?;
        peer.works(3)
    }),
    case("rfc9113_8_2_1_bytes_beyond_ascii_in_a_value", |peer| {
        let block = [peer.target().get(), literal("x-value", b"\xc3\xa9\xff")].concat();
        peer.headers(1, &block);
        peer.answer_of(1, 200)?;
        peer.works(3)
    }),
    ours(
        "rfc9113_8_2_1_other_control_characters_in_a_value",
        |peer| {
            // RFC 9110, section 5.5: may be refused, and is refused over HTTP/1.1.
            fresh_bytes(peer, "x-value", "a\x1bb")?;
            fresh_bytes(peer, "x-value", "a\x7f")
        },
    ),
    // ---- 8.2.2: connection-specific fields ----
    case("rfc9113_8_2_2_connection", |peer| {
        field(peer, "connection", "keep-alive")
    }),
    case("rfc9113_8_2_2_connection_close", |peer| {
        field(peer, "connection", "close")
    }),
    case("rfc9113_8_2_2_keep_alive", |peer| {
        field(peer, "keep-alive", "timeout=5")
    }),
    case("rfc9113_8_2_2_proxy_connection", |peer| {
        field(peer, "proxy-connection", "keep-alive")
    }),
    case("rfc9113_8_2_2_transfer_encoding", |peer| {
        field(peer, "transfer-encoding", "chunked")
    }),
    case("rfc9113_8_2_2_transfer_encoding_of_a_body", |peer| {
        let block = peer.target().post_with(&[("transfer-encoding", "chunked")]);
        whole(peer, &block)
    }),
    case("rfc9113_8_2_2_upgrade", |peer| {
        field(peer, "upgrade", "h2c")
    }),
    case("rfc9113_8_2_2_te_of_something_else", |peer| {
        field(peer, "te", "gzip")
    }),
    case("rfc9113_8_2_2_te_of_trailers_and_more", |peer| {
        field(peer, "te", "trailers, deflate")
    }),
    case("rfc9113_8_2_2_te_of_trailers", |peer| {
        let block = peer.target().get_with(&[("te", "trailers")]);
        peer.headers(1, &block);
        peer.answer_of(1, 200)?;
        peer.works(3)
    }),
    // ---- 8.2.3: cookies ----
    case("rfc9113_8_2_3_cookie_in_pieces", |peer| {
        let block = peer
            .target()
            .get_with(&[("cookie", "a=b"), ("cookie", "c=d")]);
        peer.headers(1, &block);
        peer.answer_of(1, 200)?;
        peer.works(3)
    }),
];

/// Sends a good GET with this one malformed field.
fn field(peer: &mut Peer, name: &str, value: &str) -> Outcome {
    let stream = next_stream(peer);
    let block = [peer.target().get(), literal(name, value)].concat();
    peer.headers(stream, &block);
    peer.malformed(stream)?;
    peer.works(stream + 2)
}

/// The same with bytes that no name or value may have. A decoder may find them, and may then stop
/// trusting the connection and end it (section 5.4.1).
fn bytes(peer: &mut Peer, name: &str, value: &str) -> Outcome {
    let block = [peer.target().get(), literal(name, value)].concat();
    peer.headers(1, &block);
    match peer.malformed_or_goaway(1)? {
        true => Ok(()),
        false => peer.works(3),
    }
}

/// The same on a new connection, for cases that try several.
fn fresh_bytes(peer: &Peer, name: &str, value: &str) -> Outcome {
    let mut peer = Peer::open(&peer.target())?;
    bytes(&mut peer, name, value).map_err(|error| format!("{name:?}, {value:?}: {error}"))
}

/// Returns the first unused stream.
fn next_stream(peer: &Peer) -> u32 {
    let is_fresh = |stream: &u32| {
        let answer = peer.so_far(*stream);
        answer.status == 0 && answer.reset.is_none()
    };
    (1..).step_by(2).find(is_fresh).expect("few are used")
}

/// Sends a good POST with these bad trailers.
fn trailers(peer: &mut Peer, block: &[u8]) -> Outcome {
    let target = peer.target();
    peer.headers_open(1, &target.post());
    peer.data(1, &target.body);
    peer.headers(1, block);
    peer.malformed(1)?;
    peer.works(3)
}

/// Sends a POST with this block instead of a good one.
fn whole(peer: &mut Peer, block: &[u8]) -> Outcome {
    let Target { body, .. } = peer.target();
    peer.headers_open(1, block);
    peer.data_end(1, &body);
    peer.malformed(1)?;
    peer.works(3)
}

/// Sends a good POST whose `content-length` exceeds its body by `more`.
fn content_length(peer: &mut Peer, more: i64) -> Outcome {
    let target = peer.target();
    let length = (target.body.len() as i64 + more).to_string();
    whole(peer, &target.post_with(&[("content-length", &length)]))
}
