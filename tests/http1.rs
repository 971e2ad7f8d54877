//! HTTP/1.1 over real sockets, against the daemon with the echo engine.
//!
//! The parser's own tests cover bytes alone; here are the tests that need a socket: responses in
//! order, closes, limits. Tests that need a clock or a full kernel are in `pressure.rs`.

mod common;

use serde_json::json;

use common::{Answer, Daemon, Options, eventually, request};

/// One daemon for all tests that neither fill nor end it.
fn shared() -> &'static Daemon {
    Daemon::shared(Options::echo)
}

const SMALL: &str = r#"{"prompt": "hello", "language": "python"}"#;

// ---- the plain life of a connection ----------------------------------------------------------

#[test]
fn connection_is_kept_alive_between_requests() {
    let daemon = shared();
    let mut connection = daemon.connect();
    for _ in 0..5 {
        let answer =
            connection.exchange(&daemon.request("POST", "/api/v1/generate", SMALL.as_bytes()));
        let answer = answer.expect(200);
        assert_ne!(answer.field("connection"), Some("close"));
        assert!(answer.field("date").is_some());
    }
}

#[test]
fn connection_close_is_honoured_and_announced() {
    let daemon = shared();
    let mut connection = daemon.connect();
    let answer = connection.exchange(&request("GET", "/livez", &[("connection", "close")], b""));
    assert_eq!(answer.expect(200).field("connection"), Some("close"));
    assert_eq!(connection.until_closed(), b"");
}

#[test]
fn http_1_0_is_answered_and_closed_unless_it_asks_otherwise() {
    let daemon = shared();
    let mut connection = daemon.connect();
    connection.send(b"GET /livez HTTP/1.0\r\n\r\n");
    connection.answer().expect(200);
    assert_eq!(connection.until_closed(), b"");

    let mut connection = daemon.connect();
    for _ in 0..2 {
        connection.send(b"GET /livez HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
        assert_eq!(
            connection.answer().expect(200).field("connection"),
            Some("keep-alive")
        );
    }
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let daemon = shared();
    let mut connection = daemon.connect();
    let routes = [
        ("GET", "/livez", "", 200),
        ("POST", "/api/v1/generate", SMALL, 200),
        ("GET", "/nothing/here", "", 404),
        ("GET", "/api/v1/languages", "", 200),
        ("POST", "/api/v1/generate", "{", 400),
        ("DELETE", "/livez", "", 405),
    ];
    let rounds = routes.iter().cycle().take(60).enumerate();
    let mut bytes = Vec::new();
    for (number, (method, path, body, _)) in rounds.clone() {
        let id = format!("pipelined-{number}");
        let fields = [("x-request-id", id.as_str())];
        bytes.extend(daemon.request_with(method, path, &fields, body.as_bytes()));
    }
    connection.send(&bytes);
    for (number, (_, _, _, status)) in rounds {
        let answer = connection.answer().expect(*status);
        let id = format!("pipelined-{number}");
        assert_eq!(answer.field("x-request-id"), Some(id.as_str()));
    }
}

#[test]
fn request_may_arrive_a_byte_at_a_time() {
    let daemon = shared();
    let mut connection = daemon.connect();
    for byte in daemon.request("POST", "/api/v1/generate", SMALL.as_bytes()) {
        connection.send(&[byte]);
    }
    connection.answer().expect(200);
}

#[test]
fn head_has_the_fields_of_get_and_no_body() {
    let daemon = shared();
    let mut connection = daemon.connect();
    let get = connection
        .exchange(&request("GET", "/livez", &[], b""))
        .expect(200);
    connection.send(&request("HEAD", "/livez", &[], b""));
    let head = connection.head_alone();
    assert_eq!(head.status, 200);
    assert_eq!(head.field("content-length"), get.field("content-length"));
    // If a body had followed, it would be taken for the head of this response.
    connection
        .exchange(&request("GET", "/livez", &[], b""))
        .expect(200);
}

/// micro_http lost the responses to these clients: `printf ... | nc` closes its half at once.
#[test]
fn half_closing_client_gets_its_responses() {
    let daemon = shared();
    let mut connection = daemon.connect();
    let one = daemon.request("POST", "/api/v1/generate", SMALL.as_bytes());
    connection.send(&[one.as_slice(), one.as_slice()].concat());
    connection.finish_sending();
    connection.answer().expect(200);
    connection.answer().expect(200);
    assert_eq!(connection.until_closed(), b"");
}

/// A client that has sent its request and closed its side may wait for the response or be gone. An
/// interim response, which the former ignores, makes the kernel of the latter send a reset.
#[test]
fn half_closer_is_probed_while_its_request_is_worked_on() {
    let daemon = shared();
    let mut connection = daemon.connect();
    connection.send(&daemon.request("POST", "/api/v1/generate", SMALL.as_bytes()));
    let first = connection.interim().expect("an answer");
    assert_eq!(first, 200, "neither side has closed yet");
    connection.rest_of_body().expect("a whole answer");

    // The FIN may come in one batch with the request, or later, when the response is out already: a
    // client that is slow to close is not probed.
    eventually("a request and its FIN arrive together", || {
        let mut connection = daemon.connect();
        connection.send(&daemon.request("POST", "/api/v1/generate", SMALL.as_bytes()));
        connection.finish_sending();
        let answer = connection.answer().expect(200);
        assert_eq!(connection.until_closed(), b"");
        (answer.head.interim == [100]).then_some(())
    });
}

#[test]
fn half_close_inside_a_request_ends_the_connection_quietly() {
    let daemon = shared();
    let mut connection = daemon.connect();
    connection.send(b"POST /api/v1/generate HTTP/1.1\r\nhost: a\r\ncontent-le");
    connection.finish_sending();
    let rest = connection.until_closed();
    assert!(
        rest.is_empty() || rest.starts_with(b"HTTP/1.1 400 "),
        "{rest:?}"
    );
}

// ---- bodies ----------------------------------------------------------------------------------

#[test]
fn chunked_request_is_read_with_extensions_and_trailers() {
    let daemon = shared();
    let mut connection = daemon.connect();
    let authorization = daemon.authorization();
    let fields = [
        ("authorization", authorization.as_str()),
        ("content-type", "application/json"),
        ("transfer-encoding", "chunked"),
    ];
    let mut bytes = request("GET", "/api/v1/generate", &fields, b"");
    bytes.splice(..3, *b"POST");
    for piece in SMALL.as_bytes().chunks(7) {
        bytes.extend(format!("{:x};note=\"a;b\"\r\n", piece.len()).into_bytes());
        bytes.extend_from_slice(piece);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"0\r\nx-checksum: 1\r\n\r\n");
    let whole = connection.exchange(&bytes).expect(200);
    for piece in bytes.chunks(5) {
        connection.send(piece);
    }
    let split = connection.answer().expect(200);
    assert_eq!(whole.json()["code"], split.json()["code"]);
}

#[test]
fn stream_comes_in_chunks_and_leaves_the_connection_usable() {
    let daemon = shared();
    let mut connection = daemon.connect();
    let body = json!({"prompt": "hello", "language": "python", "stream": true});
    for _ in 0..3 {
        connection.send(&daemon.generate_request(&body));
        let head = connection.head().expect("a head");
        assert_eq!(head.status, 200);
        assert_eq!(head.field("transfer-encoding"), Some("chunked"));
        assert!(
            head.field("content-type")
                .is_some_and(|is| is.starts_with("text/event-stream"))
        );
        let events = connection.events().all();
        let (done, deltas) = events.split_last().expect("events");
        assert_eq!(done.name, "done");
        let mut text = String::new();
        for delta in deltas {
            assert_eq!(delta.name, "delta");
            text.push_str(delta.json()["text"].as_str().expect("text"));
        }
        assert_eq!(done.json()["code"], text, "the deltas are the program");
    }
}

#[test]
fn stream_to_http_1_0_is_not_chunked_and_ends_with_the_connection() {
    let daemon = shared();
    let mut connection = daemon.connect();
    let body = json!({"prompt": "hello", "stream": true});
    let text = String::from_utf8(daemon.generate_request(&body)).expect("UTF-8");
    connection.send(text.replacen("HTTP/1.1", "HTTP/1.0", 1).as_bytes());
    let head = connection.head().expect("a head");
    assert_eq!((head.status, head.field("transfer-encoding")), (200, None));
    assert_eq!(
        connection.events().all().last().expect("events").name,
        "done"
    );
}

#[test]
fn expect_continue_is_answered_once_and_before_the_body() {
    let daemon = shared();
    let mut connection = daemon.connect();
    let fields = [("expect", "100-continue")];
    let bytes = daemon.request_with("POST", "/api/v1/generate", &fields, SMALL.as_bytes());
    for _ in 0..2 {
        let (head, body) = bytes.split_at(bytes.len() - SMALL.len());
        connection.send(head);
        assert_eq!(connection.interim().expect("an interim answer"), 100);
        connection.send(body);
        let answer = connection.answer().expect(200);
        assert_eq!(answer.head.interim, [0; 0]);
    }
}

#[test]
fn expect_continue_is_refused_before_the_body_is_sent() {
    let daemon = shared();
    let bytes = request(
        "POST",
        "/api/v1/generate",
        &[("expect", "100-continue")],
        SMALL.as_bytes(),
    );
    let mut connection = daemon.connect();
    connection.send(&bytes[..bytes.len() - SMALL.len()]);
    let answer = connection.answer().expect_error(401, "missing_credentials");
    assert_eq!(answer.head.interim, [0; 0]);

    let fields = [("expect", "a-miracle")];
    let bytes = daemon.request_with("POST", "/api/v1/generate", &fields, SMALL.as_bytes());
    daemon
        .exchange(&bytes)
        .expect_error(417, "expectation_failed");
}

// ---- limits ----------------------------------------------------------------------------------

#[test]
fn limits_of_head_target_and_body_have_their_own_errors() {
    let daemon = Options::echo()
        .set("limits.max_body", "1KiB")
        .set("limits.max_head", "2KiB")
        .set("limits.max_uri", "512B")
        .set_raw("limits.max_headers", "20")
        .start();
    let long = "a".repeat(4 * 1024);

    let answer = daemon.generate(&json!({ "prompt": long }));
    let answer = answer.expect_error(413, "body_too_large");
    let message = answer.json()["error"]["message"].to_string();
    assert!(message.contains("`limits.max_body`"), "{message}");
    assert_closing(answer);

    let authorization = daemon.authorization();
    let fields = [
        ("authorization", authorization.as_str()),
        ("transfer-encoding", "chunked"),
    ];
    let mut bytes = request("GET", "/api/v1/generate", &fields, b"");
    bytes.splice(..3, *b"POST");
    for _ in 0..8 {
        bytes.extend(format!("100\r\n{}\r\n", &long[..0x100]).into_bytes());
    }
    assert_closing(daemon.exchange(&bytes).expect_error(413, "body_too_large"));

    let answer = daemon.exchange(&request("GET", &format!("/{}", &long[..600]), &[], b""));
    assert_closing(answer.expect_error(414, "uri_too_long"));

    let answer = daemon.exchange(&request("GET", "/livez", &[("x-long", &long)], b""));
    assert_closing(answer.expect_error(431, "headers_too_large"));

    let many = [("x", "y"); 21];
    let answer = daemon.exchange(&request("GET", "/livez", &many, b""));
    assert_closing(answer.expect_error(431, "headers_too_large"));

    // At the limit, not above it: `host` and 19 more.
    daemon
        .exchange(&request("GET", "/livez", &many[..19], b""))
        .expect(200);
}

/// A client that does not read before it has sent everything must still find the response: a close
/// with unread bytes would reset the connection and lose the response.
#[test]
fn client_that_is_still_sending_gets_the_refusal() {
    let daemon = Options::echo().set("limits.max_body", "1KiB").start();
    for _ in 0..10 {
        let mut connection = daemon.connect();
        let fields = [("content-length", "1048576")];
        let mut head = daemon.request_with("GET", "/api/v1/generate", &fields, b"");
        head.splice(..3, *b"POST");
        connection.send(&head);
        for _ in 0..64 {
            // Sending may fail once the daemon has stopped reading; the response is there.
            if connection.try_send(&[b'a'; 16 * 1024]).is_err() {
                break;
            }
        }
        connection.answer().expect_error(413, "body_too_large");
    }
}

#[test]
fn connection_is_closed_after_its_last_allowed_request() {
    let daemon = Options::echo()
        .set_raw("limits.max_requests_per_connection", "3")
        .start();
    let mut connection = daemon.connect();
    let bytes = request("GET", "/livez", &[], b"");
    for _ in 0..2 {
        assert_ne!(
            connection.exchange(&bytes).expect(200).field("connection"),
            Some("close")
        );
    }
    assert_eq!(
        connection.exchange(&bytes).expect(200).field("connection"),
        Some("close")
    );
    assert_eq!(connection.until_closed(), b"");
}

// ---- framing that two servers could read differently -----------------------------------------

const SMUGGLED: &str = "GET /livez HTTP/1.1\r\nhost: a\r\nx-request-id: smuggled\r\n\r\n";

/// The error, and the bytes. `POST` and `GET` stand for a request line with a host.
const AMBIGUOUS: &[(&str, &str)] = &[
    (
        "both framings",
        "POST content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "another coding",
        "POST transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "chunked is not last",
        "POST transfer-encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    ),
    (
        "a coding in disguise",
        "POST transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    ),
    (
        "two lengths",
        "POST content-length: 0\r\ncontent-length: 4\r\n\r\n",
    ),
    ("a list of lengths", "POST content-length: 0, 4\r\n\r\n"),
    ("a length with a sign", "POST content-length: +0\r\n\r\n"),
    ("a hexadecimal length", "POST content-length: 0x0\r\n\r\n"),
    ("an empty length", "POST content-length: \r\n\r\n"),
    (
        "a length beyond 64 bits",
        "POST content-length: 18446744073709551616\r\n\r\n",
    ),
    ("two hosts", "GET host: b\r\n\r\n"),
    ("one bare line feed", "GET x: y\nz: 1\r\n\r\n"),
    ("a folded line", "GET x: y\r\n z\r\n\r\n"),
    ("a space before the colon", "GET content-length : 4\r\n\r\n"),
    ("a NUL", "GET x: y\0z\r\n\r\n"),
    ("a control byte", "GET x: y\x01z\r\n\r\n"),
    ("a bare carriage return", "GET x: y\rz\r\n\r\n"),
    ("a field without a name", "GET : y\r\n\r\n"),
    ("a line without a colon", "GET x\r\n\r\n"),
    (
        "a chunk size with a sign",
        "POST transfer-encoding: chunked\r\n\r\n+1\r\na\r\n0\r\n\r\n",
    ),
    (
        "a chunk without its end",
        "POST transfer-encoding: chunked\r\n\r\n1\r\nab0\r\n\r\n",
    ),
    (
        "a chunk size beyond 64 bits",
        "POST transfer-encoding: chunked\r\n\r\n10000000000000000\r\n",
    ),
    ("no host", "LINE GET /livez HTTP/1.1\r\n\r\n"),
    ("only line feeds", "LINE GET /livez HTTP/1.1\nhost: a\n\n"),
    ("two spaces", "LINE GET  /livez HTTP/1.1\r\nhost: a\r\n\r\n"),
    ("no version", "LINE GET /livez\r\nhost: a\r\n\r\n"),
    (
        "another protocol",
        "LINE GET /livez HTTP/3.0\r\nhost: a\r\n\r\n",
    ),
    (
        "chunked on 1.0",
        "LINE POST /livez HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
];

#[test]
fn ambiguous_framing_gets_one_refusal_and_a_close() {
    let daemon = shared();
    for (name, case) in AMBIGUOUS {
        let bytes = match case.split_once(' ').expect("a word stands first") {
            ("LINE", whole) => whole.to_owned(),
            // A route that takes bodies, and credentials, so that nothing else refuses it first.
            ("POST", fields) => format!(
                "POST /api/v1/generate HTTP/1.1\r\nhost: a\r\nauthorization: {}\r\n{fields}",
                daemon.authorization()
            ),
            (method, fields) => format!("{method} /livez HTTP/1.1\r\nhost: a\r\n{fields}"),
        };
        let mut connection = daemon.connect();
        connection.send(format!("{bytes}{SMUGGLED}").as_bytes());
        let answer = connection
            .try_answer()
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let status = answer.status();
        let refused = (400..500).contains(&status) || status == 501 || status == 505;
        assert!(refused, "{name}: {answer}");
        assert_eq!(
            answer.field("connection"),
            Some("close"),
            "{name}: {answer}"
        );
        let rest = connection.until_closed();
        assert!(
            rest.is_empty(),
            "{name}: a second answer, {}",
            String::from_utf8_lossy(&rest)
        );
    }
    daemon
        .exchange(&request("GET", "/livez", &[], b""))
        .expect(200);
}

#[test]
fn bytes_that_are_not_http_are_refused_without_harm() {
    let daemon = shared();
    let tls_hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec();
    for bytes in [
        tls_hello,
        vec![0; 512],
        vec![0xff; 512],
        b"\r\n\r\n\r\nGARBAGE\r\n\r\n".to_vec(),
    ] {
        let mut connection = daemon.connect();
        connection.send(&bytes);
        let rest = connection.until_closed();
        assert!(
            rest.is_empty() || rest.starts_with(b"HTTP/1.1 4"),
            "{rest:?}"
        );
    }
    daemon
        .exchange(&request("GET", "/livez", &[], b""))
        .expect(200);
}

// ---- helpers ---------------------------------------------------------------------------------

fn assert_closing(answer: Answer) {
    assert_eq!(answer.field("connection"), Some("close"), "{answer}");
}
