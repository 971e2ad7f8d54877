//! RFC 9113, sections 8.3 to 8.8 and 10.5: the contents of a request, and the responses to it.

use super::common::http2::frame::code::{
    CANCEL, COMPRESSION_ERROR, ENHANCE_YOUR_CALM, NO_ERROR, PROTOCOL_ERROR, REFUSED_STREAM,
};
use super::common::http2::frame::{
    Frame, continuation, data, flag, headers, kind, padded, priority_fields, reset, setting,
};
use super::common::http2::hpack::{DYNAMIC_FIRST, fields, indexed, literal_indexed};
use super::common::http2::{Outcome, Peer, ensure};
use super::common::{Connection, request};
use super::{Case, case, ours};

pub const CASES: &[Case] = &[
    // ---- 8.3: pseudo-headers ----
    case("rfc9113_8_3_unknown_pseudo_header", |peer| {
        undecodable(peer, ":unknown", "1")
    }),
    case("rfc9113_8_3_status_in_a_request", |peer| {
        with(peer, &[(":status", "200")])
    }),
    case("rfc9113_8_3_pseudo_header_after_a_field", |peer| {
        let path = peer.target().small;
        refused(
            peer,
            &[
                (":method", "GET"),
                (":scheme", "http"),
                (":authority", "localhost"),
                ("x-field", "1"),
                (":path", &path),
            ],
        )
    }),
    case("rfc9113_8_3_empty_pseudo_header_name", |peer| {
        undecodable(peer, ":", "1")
    }),
    case("rfc9113_8_3_pseudo_headers_in_any_order", |peer| {
        let path = peer.target().small;
        peer.headers(
            1,
            &fields(&[
                (":authority", "localhost"),
                (":path", &path),
                (":scheme", "http"),
                (":method", "GET"),
            ]),
        );
        peer.answer_of(1, 200)?;
        peer.works(3)
    }),
    // ---- 8.3.1: request pseudo-headers ----
    case("rfc9113_8_3_1_no_method", |peer| without(peer, ":method")),
    case("rfc9113_8_3_1_no_scheme", |peer| without(peer, ":scheme")),
    case("rfc9113_8_3_1_no_path", |peer| without(peer, ":path")),
    case("rfc9113_8_3_1_no_pseudo_header_at_all", |peer| {
        refused(peer, &[("x-field", "1")])
    }),
    case("rfc9113_8_3_1_empty_block", |peer| refused(peer, &[])),
    case("rfc9113_8_3_1_empty_path", |peer| {
        replaced(peer, ":path", "")
    }),
    case("rfc9113_8_3_1_empty_method", |peer| {
        undecodable(peer, ":method", "")
    }),
    case("rfc9113_8_3_1_empty_scheme", |peer| {
        replaced(peer, ":scheme", "")
    }),
    case("rfc9113_8_3_1_two_methods", |peer| {
        with(peer, &[(":method", "GET")])
    }),
    case("rfc9113_8_3_1_two_schemes", |peer| {
        with(peer, &[(":scheme", "http")])
    }),
    case("rfc9113_8_3_1_two_paths", |peer| {
        with(peer, &[(":path", "/")])
    }),
    case("rfc9113_8_3_1_two_authorities", |peer| {
        with(peer, &[(":authority", "localhost")])
    }),
    case("rfc9113_8_3_1_path_without_a_slash", |peer| {
        replaced(peer, ":path", "livez")
    }),
    case("rfc9113_8_3_1_path_with_a_space", |peer| {
        replaced(peer, ":path", "/a b")
    }),
    case("rfc9113_8_3_1_path_with_a_control_character", |peer| {
        replaced(peer, ":path", "/a\x01")
    }),
    case("rfc9113_8_3_1_path_with_a_hidden_request", |peer| {
        replaced(peer, ":path", "/ HTTP/1.1\r\nhost: evil\r\n\r\n")
    }),
    case("rfc9113_8_3_1_path_with_a_fragment", |peer| {
        replaced(peer, ":path", "/livez#a")
    }),
    case(
        "rfc9113_8_3_1_star_for_another_method_than_options",
        |peer| replaced(peer, ":path", "*"),
    ),
    case("rfc9113_8_3_1_method_that_is_no_token", |peer| {
        for method in ["G T", "GET /evil HTTP/1.1\r\n", "G(T"] {
            undecodable(&mut Peer::open(&peer.target())?, ":method", method)?;
        }
        Ok(())
    }),
    ours(
        "rfc9113_8_3_1_method_in_lower_case_is_another_method",
        |peer| {
            // RFC 9110, section 9.1: methods are case-sensitive, so this one is unknown.
            let stream = next_stream(peer);
            let block = changed(peer, ":method", "get");
            peer.headers(stream, &block);
            match peer.answer(stream) {
                Ok(answer) => ensure(answer.status >= 400, || answer.text())?,
                Err(_) => peer.reset_only(stream, &[PROTOCOL_ERROR])?,
            }
            peer.works(stream + 2)
        },
    ),
    case("rfc9113_8_3_1_scheme_that_is_none", |peer| {
        replaced(peer, ":scheme", "ht tp")?;
        replaced(peer, ":scheme", "http://evil/")
    }),
    case("rfc9113_8_3_1_authority_with_a_user", |peer| {
        replaced(peer, ":authority", "user@localhost")
    }),
    case("rfc9113_8_3_1_authority_with_a_path", |peer| {
        replaced(peer, ":authority", "localhost/evil")
    }),
    case("rfc9113_8_3_1_authority_with_a_space", |peer| {
        replaced(peer, ":authority", "a b")
    }),
    case("rfc9113_8_3_1_empty_authority", |peer| {
        replaced(peer, ":authority", "")
    }),
    case("rfc9113_8_3_1_host_instead_of_authority", |peer| {
        let path = peer.target().small;
        peer.headers(
            1,
            &fields(&[
                (":method", "GET"),
                (":scheme", "http"),
                (":path", &path),
                ("host", "localhost"),
            ]),
        );
        peer.answer_of(1, 200)?;
        peer.works(3)
    }),
    case(
        "rfc9113_8_3_1_host_that_agrees_with_the_authority",
        |peer| {
            let block = peer.target().get_with(&[("host", "localhost")]);
            peer.headers(1, &block);
            peer.answer_of(1, 200)?;
            peer.works(3)
        },
    ),
    case(
        "rfc9113_8_3_1_host_that_differs_from_the_authority",
        |peer| with(peer, &[("host", "evil.example")]),
    ),
    case("rfc9113_8_3_1_two_hosts", |peer| {
        with(peer, &[("host", "localhost"), ("host", "localhost")])
    }),
    ours("rfc9113_8_3_1_neither_host_nor_authority", |peer| {
        without(peer, ":authority")
    }),
    // HAProxy's `check proto h2` does this, and takes a reset for a dead server.
    ours(
        "rfc9113_8_3_1_options_without_any_host_is_answered",
        |peer| {
            let fields = fields(&[(":method", "OPTIONS"), (":scheme", "http"), (":path", "/")]);
            peer.headers(1, &fields);
            peer.answer_of(1, 400)?;
            peer.works(3)
        },
    ),
    ours("rfc9113_8_3_1_options_of_the_server", |peer| {
        let block = fields(&[
            (":method", "OPTIONS"),
            (":scheme", "http"),
            (":path", "*"),
            (":authority", "localhost"),
        ]);
        peer.headers(1, &block);
        let answer = peer.answer(1)?;
        let http1 = over_http1(peer, "OPTIONS", "*")?;
        ensure(answer.status == http1.status(), || {
            format!(
                "{} here and {} over HTTP/1.1",
                answer.status,
                http1.status()
            )
        })
    }),
    // ---- 8.4: push; 8.5: CONNECT ----
    case("rfc9113_8_4_nothing_is_pushed", |peer| {
        // The peer fails on any PUSH_PROMISE, also while push is enabled.
        peer.settings(&[(setting::ENABLE_PUSH, 1)]);
        let block = peer.target().get_page();
        peer.headers(1, &block);
        peer.answer_of(1, 200)?;
        peer.works(3)
    }),
    case("rfc9113_8_5_connect", |peer| {
        let block = fields(&[(":method", "CONNECT"), (":authority", "localhost:80")]);
        peer.headers_open(1, &block);
        not_served(peer)
    }),
    ours("rfc9113_8_5_connect_is_answered_as_over_http1", |peer| {
        let block = fields(&[(":method", "CONNECT"), (":authority", "localhost:80")]);
        peer.headers_open(1, &block);
        peer.answer_of(1, 501)?;
        peer.works(3)
    }),
    case("rfc9113_8_5_connect_with_scheme_and_path", |peer| {
        replaced(peer, ":method", "CONNECT")
    }),
    case("rfc9113_8_5_connect_without_authority", |peer| {
        refused(peer, &[(":method", "CONNECT")])
    }),
    case("rfc8441_3_extended_connect_was_not_offered", |peer| {
        let most = peer.server_setting(8);
        ensure(most.is_none_or(|value| value == 0), || {
            format!("offered: {most:?}")
        })?;
        refused(
            peer,
            &[
                (":method", "CONNECT"),
                (":protocol", "websocket"),
                (":scheme", "http"),
                (":path", "/"),
                (":authority", "localhost"),
            ],
        )
    }),
    case("rfc8441_4_protocol_of_another_method", |peer| {
        with(peer, &[(":protocol", "websocket")])
    }),
    case("rfc9113_8_6_upgrade_is_no_part_of_http2", |peer| {
        with(peer, &[("upgrade", "websocket")])
    }),
    ours(
        "rfc9113_8_2_3_a_cookie_in_150_crumbs_is_one_field",
        |peer| {
            // Never indexed, so that they do not churn the compression table either.
            let crumb = [&b"\x1f\x11\x03"[..], b"a=b"].concat();
            let block = [peer.target().get_page(), crumb.repeat(150)].concat();
            peer.headers(1, &block);
            peer.answer_of(1, 200)?;
            let block = [peer.target().get_page(), fields(&[("x", "y")]).repeat(150)].concat();
            peer.headers(3, &block);
            peer.answer_of(3, 431)?;
            peer.works(5)
        },
    ),
    // ---- 10.5.1: header lists ----
    case("rfc9113_10_5_1_more_fields_than_allowed", |peer| {
        // 40 bytes each in the sense of section 6.5.2.
        let count = list_most(peer) / 40 + 20;
        let list = fields(&[("x-y", "12345")]).repeat(count);
        let block = [peer.target().get(), list].concat();
        oversized(peer, &block)
    }),
    case("rfc9113_10_5_1_one_field_longer_than_allowed", |peer| {
        let value = "y".repeat(list_most(peer));
        let block = peer.target().get_with(&[("x-long", &value)]);
        oversized(peer, &block)
    }),
    case("rfc9113_10_5_1_path_longer_than_allowed", |peer| {
        let path = format!("/{}", "a".repeat(list_most(peer)));
        let block = peer.target().get_of(&path);
        oversized(peer, &block)
    }),
    case("rfc9113_10_5_1_long_list_in_few_bytes", |peer| {
        // An entry of some 4,000 bytes, named often enough to make the list twice too long.
        let entry = literal_indexed("x-bomb", "b".repeat(4_000));
        let names = indexed(DYNAMIC_FIRST).repeat(2 * list_most(peer) / 4_000 + 1);
        let block = [peer.target().get(), entry, names].concat();
        oversized(peer, &block)
    }),
    case("rfc9113_10_5_1_list_of_many_times_the_bound", |peer| {
        // Here even the connection may end: no client sends such a list by mistake.
        let entry = literal_indexed("x-bomb", "b".repeat(4_000));
        let names = indexed(DYNAMIC_FIRST).repeat(50 * list_most(peer) / 4_000);
        let block = [peer.target().get(), entry, names].concat();
        send_block(peer, &block);
        peer.until("an error", |peer| {
            let answer = peer.so_far(1);
            let has_error = peer.goaways().iter().any(|(_, code)| *code != NO_ERROR);
            answer.status >= 400 || answer.reset.is_some() || has_error || peer.is_over()
        })?;
        match peer.goaways().last() {
            Some(_) => peer.goaway(&[ENHANCE_YOUR_CALM, COMPRESSION_ERROR]),
            None => peer.works(3),
        }
    }),
    ours("rfc9113_6_5_2_header_list_bound_is_announced", |peer| {
        let most = peer.server_setting(setting::MAX_HEADER_LIST_SIZE);
        ensure(
            most.is_some_and(|most| (4_096..=1 << 20).contains(&most)),
            || format!("{most:?}"),
        )
    }),
    // ---- responses ----
    ours("rfc9113_8_1_the_same_answers_as_over_http1", same_as_http1),
    case("rfc9110_9_3_2_head_has_no_body", |peer| {
        let block = changed(peer, ":method", "HEAD");
        peer.headers(1, &block);
        let answer = peer.answer_of(1, 200)?;
        ensure(answer.body.is_empty(), || answer.text())?;
        let block = peer.target().get();
        peer.headers(3, &block);
        let get = peer.answer_of(3, 200)?;
        let length = answer.field("content-length").map(str::to_owned);
        ensure(
            length.is_none_or(|length| length == get.body.len().to_string()),
            || format!("{answer:?}"),
        )
    }),
    ours("rfc9110_10_1_1_expect_100_continue", |peer| {
        let target = peer.target();
        peer.headers_open(1, &target.post_with(&[("expect", "100-continue")]));
        peer.until("100", |peer| peer.so_far(1).interim == [100])?;
        peer.data_end(1, &target.body);
        let answer = peer.answer_of(1, 200)?;
        ensure(answer.interim == [100], || format!("{:?}", answer.interim))?;
        peer.works(3)
    }),
    ours(
        "rfc9110_10_1_1_expect_is_not_answered_after_the_body",
        |peer| {
            let target = peer.target();
            let block = target.post_with(&[("expect", "100-continue")]);
            peer.send_all(&[
                headers(1, &block, 0),
                data(1, &target.body, flag::END_STREAM),
            ]);
            peer.answer_of(1, 200)?;
            peer.works(3)
        },
    ),
    ours("rfc9110_10_1_1_expect_of_something_else", |peer| {
        let target = peer.target();
        peer.headers_open(1, &target.post_with(&[("expect", "miracles")]));
        peer.data_end(1, &target.body);
        peer.answer_of(1, 417)?;
        peer.works(3)
    }),
    case(
        "rfc9113_8_1_answer_has_date_and_no_connection_fields",
        |peer| {
            // The peer refuses upper case and connection-specific fields in every response.
            let block = peer.target().get();
            peer.headers(1, &block);
            let answer = peer.answer_of(1, 200)?;
            ensure(answer.field("date").is_some(), || format!("{answer:?}"))
        },
    ),
    case("rfc9113_8_1_body_of_an_answer_has_its_length", |peer| {
        let block = peer.target().get_page();
        peer.headers(1, &block);
        let answer = peer.answer_of(1, 200)?;
        let length = answer.field("content-length").map(str::to_owned);
        ensure(
            length.is_none_or(|length| length == answer.body.len().to_string()),
            || format!("{answer:?}"),
        )
    }),
    case("rfc9113_8_7_a_refused_stream_was_not_processed", |peer| {
        // Reset before its body was complete: no response ever comes there.
        let target = peer.target();
        peer.headers_open(1, &target.post());
        peer.send(data(1, &target.body[..3], 0));
        peer.send(reset(1, CANCEL));
        peer.works(3)?;
        ensure(peer.so_far(1).status == 0, || peer.seen())
    }),
    case(
        "rfc9113_8_1_headers_of_a_request_with_padding_priority_and_continuation",
        |peer| {
            let block = peer.target().get();
            let content = [priority_fields(0, 1), block[..5].to_vec()].concat();
            let flags = flag::PADDED | flag::PRIORITY | flag::END_STREAM;
            peer.send_all(&[
                Frame::new(kind::HEADERS, flags, 1, padded(&content, 9)),
                continuation(1, &block[5..], flag::END_HEADERS),
            ]);
            peer.answer_of(1, 200)?;
            peer.works(3)
        },
    ),
];

type Pairs = Vec<(&'static str, String)>;

/// Returns a good GET as a list.
fn good(peer: &Peer) -> Pairs {
    vec![
        (":method", "GET".to_owned()),
        (":scheme", "http".to_owned()),
        (":path", peer.target().small),
        (":authority", "localhost".to_owned()),
    ]
}

fn fields_of(pairs: &Pairs) -> Vec<u8> {
    let pairs: Vec<_> = pairs
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    fields(&pairs)
}

fn next_stream(peer: &Peer) -> u32 {
    let is_fresh = |stream: &u32| {
        let answer = peer.so_far(*stream);
        answer.status == 0 && answer.reset.is_none()
    };
    (1..).step_by(2).find(is_fresh).expect("few are used")
}

/// A request with these fields is malformed.
fn refused(peer: &mut Peer, pairs: &[(&str, &str)]) -> Outcome {
    refused_block(peer, &fields(pairs))
}

fn refused_block(peer: &mut Peer, block: &[u8]) -> Outcome {
    let stream = next_stream(peer);
    peer.headers(stream, block);
    peer.malformed(stream)?;
    peer.works(stream + 2)
}

/// A good GET with these fields added is malformed.
fn with(peer: &mut Peer, more: &[(&str, &str)]) -> Outcome {
    let block = peer.target().get_with(more);
    refused_block(peer, &block)
}

/// A good GET without this field is malformed.
fn without(peer: &mut Peer, name: &str) -> Outcome {
    let mut pairs = good(peer);
    pairs.retain(|(known, _)| *known != name);
    refused_block(peer, &fields_of(&pairs))
}

/// A good GET with this value instead of its own is malformed.
fn replaced(peer: &mut Peer, name: &str, value: &str) -> Outcome {
    let block = changed(peer, name, value);
    refused_block(peer, &block)
}

/// A good GET with this in place of its own field, or beside it, is malformed, or ends the
/// connection: an error in decoding may do that (section 5.4.1).
fn undecodable(peer: &mut Peer, name: &str, value: &str) -> Outcome {
    let is_known = good(peer).iter().any(|(known, _)| *known == name);
    let block = match is_known {
        true => changed(peer, name, value),
        false => peer.target().get_with(&[(name, value)]),
    };
    peer.headers(1, &block);
    match peer.malformed_or_goaway(1)? {
        true => Ok(()),
        false => peer.works(3),
    }
}

fn changed(peer: &Peer, name: &str, value: &str) -> Vec<u8> {
    let mut pairs = good(peer);
    for pair in &mut pairs {
        if pair.0 == name {
            value.clone_into(&mut pair.1);
        }
    }
    fields_of(&pairs)
}

/// An error response or a reset; there is no tunnel.
fn not_served(peer: &mut Peer) -> Outcome {
    match peer.answer(1) {
        Ok(answer) => ensure(answer.status >= 400, || answer.text())?,
        Err(_) => {
            let reset = peer.so_far(1).reset;
            ensure(reset.is_some_and(|code| code != NO_ERROR), || peer.seen())?;
        }
    }
    peer.works(3)
}

/// Returns the largest list of fields that the server announced.
fn list_most(peer: &Peer) -> usize {
    let most = peer.server_setting(setting::MAX_HEADER_LIST_SIZE);
    most.map_or(65_536, |most| most as usize)
}

/// A list larger than announced: 431, 414 or a reset of this stream alone.
fn oversized(peer: &mut Peer, block: &[u8]) -> Outcome {
    send_block(peer, block);
    match peer.answer(1) {
        Ok(answer) => {
            let is_refused = [400, 414, 431].contains(&answer.status);
            ensure(is_refused, || format!("answer {}", answer.status))?;
        }
        Err(error) => {
            let codes = [PROTOCOL_ERROR, REFUSED_STREAM, CANCEL];
            let reset = peer.so_far(1).reset;
            ensure(reset.is_some_and(|code| codes.contains(&code)), || error)?;
        }
    }
    peer.works(3)
}

/// Sends a request with this block, in as many frames as it needs.
fn send_block(peer: &mut Peer, block: &[u8]) {
    let mut pieces = block.chunks(16_384).peekable();
    let first = pieces.next().expect("not empty");
    let end = |is_last: bool| if is_last { flag::END_HEADERS } else { 0 };
    let flags = flag::END_STREAM | end(pieces.peek().is_none());
    let mut frames = vec![Frame::new(kind::HEADERS, flags, 1, first)];
    while let Some(piece) = pieces.next() {
        frames.push(continuation(1, piece, end(pieces.peek().is_none())));
    }
    peer.send_all(&frames);
}

fn over_http1(peer: &Peer, method: &str, path: &str) -> Outcome<super::common::Answer> {
    let target = peer.target();
    let mut connection = Connection::tcp(target.address).map_err(|error| error.to_string())?;
    let authorization = [("authorization", target.authorization.as_str())];
    Ok(connection.exchange(&request(method, path, &authorization, b"")))
}

/// Compares status, type and body of a GET, except for what differs from response to response.
fn same_as_http1(peer: &mut Peer) -> Outcome {
    let target = peer.target();
    let paths = [
        "/livez",
        "/readyz",
        "/api/v1/models",
        "/api/v1/languages",
        "/",
        "/nowhere",
    ];
    for (number, path) in paths.into_iter().enumerate() {
        let http1 = over_http1(peer, "GET", path)?;
        let stream = 2 * number as u32 + 1;
        let authorization = fields(&[("authorization", &target.authorization)]);
        peer.headers(stream, &[target.get_of(path), authorization].concat());
        let answer = peer.answer(stream)?;
        let is_same = answer.status == http1.status()
            && answer.field("content-type") == http1.field("content-type")
            && (http1.status() >= 400 || answer.body == http1.body);
        ensure(is_same, || {
            format!("{path}: {answer:?}; over HTTP/1.1 {http1}")
        })?;
    }
    Ok(())
}
