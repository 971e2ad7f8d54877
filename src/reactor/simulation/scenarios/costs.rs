//! How much of the loop's thread one client can use, in CPU time: never in wall time, which depends
//! more on the machine. The bounds hold for an unoptimised build on a slow core; the faults that
//! they detect cost a hundred times as much.

use std::time::Duration;

use super::Stage;
use super::streams::{call, field, preface};
use crate::http::compress::testing::code_tables;
use crate::http::http2::testing::frame;
use crate::limits::http2 as http2_limits;
use crate::os::process::thread_cpu_time;

/// Returns the CPU time that the stage uses for this client until the loop would sleep, and the
/// response.
fn cost(stage: &mut Stage, wire: usize, bytes: impl AsRef<[u8]>) -> (Duration, String) {
    stage.settle();
    stage.send(wire, bytes);
    let before = thread_cpu_time();
    stage.settle();
    let spent = thread_cpu_time() - before;
    let answer = stage.on(wire, |wire| wire.client_reads(usize::MAX));
    (spent, String::from_utf8_lossy(&answer).into_owned())
}

/// The cost of all that a client without a key may send. An optimised build takes a tenth of it.
const STRANGERS_COST_MOST: Duration = Duration::from_millis(250);

fn gzip_tables(bytes: usize) -> Vec<u8> {
    let tables = code_tables(b"\x1f\x8b\x08\0\0\0\0\0\0\x03", bytes / 33);
    tables[..bytes.min(tables.len())].to_vec()
}

fn post(body: &str) -> String {
    let length = body.len();
    format!(
        "POST /api/v1/generate HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n\r\n{body}"
    )
}

/// A client chooses names, and comparing one with a known name takes the product of both lengths:
/// 190 ms for a mebibyte in an optimised build. Mutation: without the bound in `nearest`.
#[test]
fn long_names_are_refused_without_comparing_them() {
    let long = "prompt".repeat(160_000);
    let many = (10..60).map(|number| format!(r#""{number}{}": 1"#, &long[..16_000]));
    for members in [
        format!(r#""{long}": 1"#),
        format!(r#""context": [{{"path": "x", "{long}": 1}}]"#),
        format!(r#""{0}": 1, "{0}": 1"#, &long[..400_000]),
        format!(r#""language": "{long}""#),
        format!(r#""cache": "{long}""#),
        format!(r#""model": "{long}""#),
        format!(r#""stop": "{long}""#),
        format!(r#""seed": {}"#, "1".repeat(900_000)),
        many.collect::<Vec<_>>().join(","),
    ] {
        let mut stage = Stage::new(|_| {});
        let wire = stage.connect();
        let (spent, answer) = cost(&mut stage, wire, post(&format!("{{{members}}}")));
        let start = &members[..40];
        assert!(answer.starts_with("HTTP/1.1 400"), "{start}: {answer}");
        assert!(answer.len() < 2_000, "{start}");
        assert!(spent < Duration::from_millis(150), "{start}: {spent:?}");
    }
}

// ---- clients without a key ----

fn with_keys() -> Stage {
    Stage::new(|config| config.auth.enabled = true)
}

/// 31 streams whose messages lack their last byte, and then all the last bytes in one read: 126 ms
/// each in an optimised build when they were inflated. Mutation: `BodyBound::MaxBody` in the rows
/// of health.
#[test]
fn code_tables_on_every_public_route_cost_their_sender_more_than_us_over_http2() {
    let tables = gzip_tables(1 << 20);
    let message = [&[1][..], &(tables.len() as u32).to_be_bytes(), &tables].concat();
    let gzip = field(b"\x00\x0dgrpc-encoding", "gzip");
    for path in [
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
        "/livez",
        "/readyz",
        "/metrics",
        "/api/v1/generate",
        "/AutoGLMService/Generate",
        "/nothing",
    ] {
        let mut stage = with_keys();
        let wire = stage.connect();
        let streams = (0..31).map(|number| 2 * number + 1);
        // As much as the windows allow: 64 KiB per stream, and a mebibyte in all.
        let parts = message[..32 * 1024].chunks(16 * 1024);
        let parts: Vec<_> = parts.collect();
        let mut bytes = preface();
        for stream in streams.clone() {
            bytes.extend(call(stream, path, &gzip));
            for part in &parts {
                bytes.extend(frame(0, 0, stream, part));
            }
        }
        let (first, _) = cost(&mut stage, wire, bytes);
        let ends = streams.map(|stream| frame(0, 1, stream, &message[..1]));
        let (last, _) = cost(&mut stage, wire, ends.collect::<Vec<_>>().concat());
        let spent = first + last;
        assert!(spent < STRANGERS_COST_MOST, "{path}: {spent:?}");
        let counters = &stage.daemon.coded;
        assert_eq!(counters.inflating_seconds(), 0.0, "{path}");
    }
}

#[test]
fn code_tables_on_every_public_route_cost_their_sender_more_than_us_over_http1() {
    let tables = gzip_tables(60_000);
    for (method, path) in [
        ("POST", "/livez"),
        ("GET", "/readyz"),
        ("POST", "/healthz"),
        ("GET", "/metrics"),
        ("POST", "/grpc.health.v1.Health/Check"),
        ("POST", "/api/v1/generate"),
        ("OPTIONS", "*"),
        ("POST", "/nothing"),
    ] {
        let head =
            format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-encoding: gzip\r\n");
        let length = format!("content-length: {}\r\n\r\n", tables.len());
        let whole = [head.as_bytes(), length.as_bytes(), &tables].concat();
        let chunked = format!("transfer-encoding: chunked\r\n\r\n{:x}\r\n", tables.len());
        let ended = [
            head.as_bytes(),
            chunked.as_bytes(),
            &tables,
            b"\r\n0\r\n\r\n",
        ]
        .concat();
        for bytes in [whole.repeat(16), ended.repeat(16)] {
            let mut stage = with_keys();
            let wire = stage.connect();
            let (spent, _) = cost(&mut stage, wire, bytes);
            assert!(spent < STRANGERS_COST_MOST, "{method} {path}: {spent:?}");
            let counters = &stage.daemon.coded;
            assert_eq!(counters.inflating_seconds(), 0.0, "{path}");
        }
    }
}

/// The longest and most varied heads that are allowed, over and over.
#[test]
fn heads_cost_their_sender_more_than_us() {
    let lists = "gzip;q=0.5, ".repeat(400);
    for fields in [
        format!("accept-encoding: {lists}\r\n"),
        format!("accept: {}\r\n", "text/a;q=0.1, ".repeat(400)),
        format!("expect: {}\r\n", "100-continue, ".repeat(400)),
        format!("connection: {}\r\n", "x, ".repeat(1_500)),
        format!("content-encoding: {}\r\n", "identity, ".repeat(400)),
        format!("authorization: Bearer {}\r\n", "x".repeat(5_000)),
        format!(
            "traceparent: {0}\r\nx-request-id: {0}\r\n",
            "0".repeat(2_500)
        ),
        "x: y\r\n".repeat(95),
    ] {
        for path in ["/livez", "/api/v1/models", "/nothing"] {
            let mut stage = with_keys();
            let wire = stage.connect();
            let head = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n{fields}\r\n");
            let (spent, _) = cost(&mut stage, wire, head.repeat(32));
            let name = &fields[..10];
            assert!(spent < STRANGERS_COST_MOST, "{name} {path}: {spent:?}");
        }
    }
}

/// The longest field block that is decoded: 64 KiB of Huffman's longest codes. Mutation: search the
/// lengths for each bit's symbol, which takes seconds.
#[test]
fn the_longest_field_block_costs_little() {
    let mut block = vec![0x83, 0x86, 0x84, 0x00, 1, b'x', 0xff];
    let mut length = http2_limits::FIELD_BLOCK_BYTES_MAX - 100 - 0x7f;
    while length >= 0x80 {
        block.push(length as u8 | 0x80);
        length >>= 7;
    }
    block.push(length as u8);
    block.resize(http2_limits::FIELD_BLOCK_BYTES_MAX - 90, 0xff);
    block.push(0x80);
    let mut parts = block.chunks(16 * 1024).peekable();
    let mut bytes = preface();
    bytes.extend(frame(1, 0, 1, parts.next().unwrap_or_default()));
    while let Some(part) = parts.next() {
        let flags = if parts.peek().is_none() { 0x4 } else { 0 };
        bytes.extend(frame(9, flags, 1, part));
    }
    let mut stage = with_keys();
    let wire = stage.connect();
    let (spent, _) = cost(&mut stage, wire, bytes);
    assert!(spent < STRANGERS_COST_MOST, "{spent:?}");
}
