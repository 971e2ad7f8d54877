//! How much of the loop's thread one client can use for a step, in CPU time: never in wall time,
//! which depends more on the machine. A step is what happens between two readings of the clock, so
//! that the budgets of a turn can end it; no input may make one last a millisecond.
//!
//! A release build states just that:
//!
//! ```text
//!   cargo test --release --no-default-features --lib scenarios::costs -- --nocapture
//! ```
//!
//! With debug assertions the bound is that of a fixed piece of work, measured in the same process:
//! reading 64 KiB of JSON, which is about as much as a step may do.

use std::time::Duration;

use super::super::engine::Verbosity;
use super::Stage;
use super::streams::{call, field, preface};
use crate::http::compress::Coding;
use crate::http::compress::encode::encode_whole;
use crate::http::compress::testing::code_tables;
use crate::http::http2::testing::frame;
use crate::limits::http2 as http2_limits;
use crate::os::process::thread_cpu_time;

/// Returns the CPU time of the longest step that this client causes until the loop would sleep, and
/// the response.
fn cost(stage: &mut Stage, wire: usize, bytes: impl AsRef<[u8]>) -> (Duration, String) {
    stage.settle();
    stage.send(wire, bytes);
    measure(stage, true);
    stage.settle();
    let longest = measure(stage, false);
    let answer = stage.on(wire, |wire| wire.client_reads(usize::MAX));
    (longest, String::from_utf8_lossy(&answer).into_owned())
}

/// Starts or stops measuring. Returns the longest step since the last call.
fn measure(stage: &mut Stage, is_on: bool) -> Duration {
    let stopwatch = &mut stage.daemon.network.borrow_mut().stopwatch;
    stopwatch.is_on = is_on;
    std::mem::take(&mut stopwatch.longest)
}

/// The longest that a step may last: see the file's head.
fn step_most() -> Duration {
    if cfg!(not(debug_assertions)) {
        return Duration::from_millis(1);
    }
    let numbers = format!("[1{}]", ",1".repeat(32 * 1024));
    let read = || {
        let start = thread_cpu_time();
        let value: serde_json::Value = serde_json::from_str(&numbers).expect("it is JSON");
        assert!(value.is_array());
        thread_cpu_time() - start
    };
    let fastest = (0..5).map(|_| read()).min();
    4 * fastest.unwrap_or_default()
}

/// Measures up to three times, each time beside the bound: the thread's CPU time has what the
/// machine does meanwhile too, and a core that was slow for one may be fast for the other. A step
/// that is too long by itself is so each time.
#[track_caller]
fn assert_short(what: &str, mut measure: impl FnMut() -> Duration) {
    let mut longest = Vec::new();
    for _ in 0..3 {
        let (step, most) = (measure(), step_most());
        println!("{step:>12?} of {most:?}: {what}");
        if step < most {
            return;
        }
        longest.push((step, most));
    }
    panic!("{what}: {longest:?}");
}

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
        let start = &members[..40];
        assert_short(start, || {
            let mut stage = Stage::new(|_| {});
            let wire = stage.connect();
            let (spent, answer) = cost(&mut stage, wire, post(&format!("{{{members}}}")));
            assert!(answer.starts_with("HTTP/1.1 400"), "{start}: {answer}");
            assert!(answer.len() < 2_000, "{start}");
            spent
        });
    }
}

// ---- clients with a key ----

/// Bodies of about this many bytes that take longest to read.
fn worst_bodies(bytes: usize) -> Vec<(&'static str, String)> {
    let list = |item: &str| {
        let count = bytes / (item.len() + 1);
        vec![item; count.max(1)].join(",")
    };
    let files = |text: &str| {
        let text = text.repeat(bytes / 64 / text.len());
        let file = format!(r#"{{"path": "a.py", "text": "{text}"}}"#);
        vec![file; 63].join(",")
    };
    let names = |name: &str| {
        let members = (0..60).map(|n| format!(r#""{n}{name}": null"#));
        members.collect::<Vec<_>>().join(",")
    };
    vec![
        ("deep", format!(r#"{{"x": {}"#, "[".repeat(bytes))),
        ("deep and whole", {
            let half = bytes / 2;
            format!(r#"{{"stop": {}{}}}"#, "[".repeat(half), "]".repeat(half))
        }),
        ("numbers", format!(r#"{{"stop": [{}]}}"#, list("1"))),
        (
            "reals",
            format!(r#"{{"stop": [{}]}}"#, list("-1.7976931348623157e308")),
        ),
        ("objects", format!(r#"{{"context": [{}]}}"#, list("{}"))),
        (
            "empty strings",
            format!(r#"{{"stop": [{}]}}"#, list(r#""""#)),
        ),
        (
            "escapes",
            format!(r#"{{"prompt": "{}"}}"#, "\\n\\\"".repeat(bytes / 4)),
        ),
        (
            "unicode escapes",
            format!(r#"{{"prompt": "{}"}}"#, "\\u00e9".repeat(bytes / 6)),
        ),
        (
            "surrogates",
            format!(r#"{{"prompt": "{}"}}"#, "\\ud83d\\ude00".repeat(bytes / 12)),
        ),
        (
            "64 files",
            format!(r#"{{"prompt": "x", "context": [{}]}}"#, files("\\n")),
        ),
        (
            "64 files of text",
            format!(r#"{{"prompt": "x", "context": [{}]}}"#, files("é")),
        ),
        (
            "names",
            format!("{{{}}}", names(&"promp".repeat(bytes / 300))),
        ),
        (
            "white space",
            format!(r#"{{"prompt": "x"{}}}"#, " ".repeat(bytes)),
        ),
        (
            "blank prompt",
            format!(r#"{{"prompt": "{}"}}"#, "\\u2003".repeat(bytes / 6)),
        ),
        ("long stops", {
            let stop = format!(r#""{}""#, "ab".repeat(128));
            format!(
                r#"{{"prompt": "x", "stop": [{}]}}"#,
                vec![stop; 16].join(",")
            )
        }),
    ]
}

/// Mutations: `is_long` that is always false, or that asks for ten times as many bytes.
#[test]
fn no_body_holds_the_loop() {
    let mut stage = Stage::new(|_| {});
    for bytes in [60_000, 1_000_000] {
        for (name, body) in worst_bodies(bytes) {
            assert_short(name, || {
                let wire = stage.connect();
                let (spent, answer) = cost(&mut stage, wire, post(&body));
                // A prompt that is fine has become a job.
                assert!(
                    answer.is_empty() || answer.starts_with("HTTP/1.1 400"),
                    "{name}: {answer}"
                );
                spent
            });
        }
    }
}

fn post_coded(coding: Coding, body: &[u8]) -> Vec<u8> {
    let (name, length) = (coding.name(), body.len());
    let head = format!(
        "POST /api/v1/generate HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         content-encoding: {name}\r\ncontent-length: {length}\r\n\r\n"
    );
    [head.as_bytes(), body].concat()
}

/// Mutation: `is_compressed` that is always false. A larger `INFLATE_AT_ONCE_BYTES_MAX` changes
/// nothing here: with the default ratio a body of 656 bytes may become longer than a reactor reads.
#[test]
fn no_compressed_body_holds_the_loop() {
    let mut stage = Stage::new(|_| {});
    for bytes in [1_000, 60_000, 1_000_000] {
        let tables = post_coded(Coding::Gzip, &gzip_tables(bytes));
        assert_short("code tables", || {
            let wire = stage.connect();
            let (spent, answer) = cost(&mut stage, wire, &tables);
            assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
            spent
        });
        for (name, body) in worst_bodies(bytes) {
            // Making the others from a megabyte takes a debug build a minute.
            let codings = Coding::ALL.iter().copied();
            for coding in codings.filter(|one| bytes < 100_000 || *one == Coding::Gzip) {
                let mut packed = Vec::new();
                assert!(encode_whole(coding, body.as_bytes(), &mut packed).is_ok());
                assert_short(&format!("{name} in {}", coding.name()), || {
                    let wire = stage.connect();
                    cost(&mut stage, wire, post_coded(coding, &packed)).0
                });
            }
        }
    }
}

/// Requests that are complete in one read, each of them as long as a reactor reads itself.
#[test]
fn streams_that_end_at_once_are_read_one_after_the_other() {
    let body = worst_bodies(30_000).swap_remove(6).1;
    let streams = (0..31).map(|number| 2 * number + 1);
    let mut bytes = preface();
    for stream in streams.clone() {
        let block = [
            &[0x83, 0x86][..],
            &field(&[0x04], "/api/v1/generate"),
            &field(&[0x01], "localhost"),
        ];
        bytes.extend(frame(1, 0x4, stream, &block.concat()));
        let (most, _) = body.as_bytes().split_at(body.len() - 1);
        for part in most.chunks(16 * 1024) {
            bytes.extend(frame(0, 0, stream, part));
        }
    }
    let last = &body.as_bytes()[body.len() - 1..];
    let ends: Vec<_> = streams.map(|stream| frame(0, 1, stream, last)).collect();
    assert_short("31 streams", || {
        let mut stage = Stage::new(|_| {});
        let wire = stage.connect();
        let (first, _) = cost(&mut stage, wire, &bytes);
        let (second, _) = cost(&mut stage, wire, ends.concat());
        let running = stage.daemon.engine.running();
        assert!(running > 20, "{running}");
        first.max(second)
    });
}

/// A program of 200 KB, and no failure.
const LONG: Verbosity = Verbosity {
    program_lines_least: 22_000,
    program_lines_most: 22_000,
    token_lines_most: 100,
    fails_one_in: u64::MAX,
};

/// Mutation: `is_long` that is false for a stream: 3 ms for 50 KB in gzip.
#[test]
fn no_end_of_a_response_holds_the_loop() {
    for body in [r#"{"prompt": "x"}"#, r#"{"prompt": "x", "stream": true}"#] {
        for coding in ["identity", "gzip", "zstd", "br"] {
            let what = format!("{body} in {coding}");
            assert_short(&what, || {
                let mut stage = Stage::with(1, 100, LONG, |_| {});
                let wire = stage.connect();
                let fields = format!("HTTP/1.1\r\naccept-encoding: {coding}\r\n");
                stage.send(wire, post(body).replacen("HTTP/1.1\r\n", &fields, 1));
                stage.settle();
                let mut bytes = 0;
                let mut longest = Duration::ZERO;
                while stage.daemon.engine.running() > 0 {
                    stage.daemon.engine.step(&mut stage.dice);
                    measure(&mut stage, true);
                    stage.settle();
                    longest = longest.max(measure(&mut stage, false));
                    bytes += stage.on(wire, |wire| wire.client_reads(usize::MAX)).len();
                }
                assert!(bytes > 500, "{what}: {bytes}");
                longest
            });
        }
    }
}

#[test]
fn the_metrics_do_not_hold_the_loop() {
    let mut stage = Stage::new(|_| {});
    for coding in ["identity", "gzip", "gzip, identity;q=0"] {
        let head = format!(
            "GET /metrics HTTP/1.1\r\nhost: localhost\r\naccept-encoding: {coding}\r\n\r\n"
        );
        assert_short(&format!("metrics in {coding}"), || {
            let wire = stage.connect();
            let (spent, answer) = cost(&mut stage, wire, &head);
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            spent
        });
    }
}

/// Questions that all come in one frame: those with the longest responses, and the most of them.
#[test]
fn a_dialogue_about_the_schema_does_not_hold_the_loop() {
    let path = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
    // `file_containing_symbol`.
    for symbol in ["AutoGLMService", "grpc.health.v1.Health", ""] {
        let question = [&[0x22, symbol.len() as u8][..], symbol.as_bytes()].concat();
        let message = [&[0, 0, 0, 0, question.len() as u8][..], &question].concat();
        let questions = message.repeat(16_000 / message.len());
        let bytes = [preface(), call(1, path, &[]), frame(0, 0, 1, &questions)].concat();
        assert_short(&format!("questions about `{symbol}`"), || {
            let mut stage = Stage::new(|_| {});
            let wire = stage.connect();
            let (spent, answers) = cost(&mut stage, wire, &bytes);
            assert!(answers.len() > 10_000, "{}", answers.len());
            spent
        });
    }
}

/// The listings are compressed once for each reactor, with an effort that many responses share.
#[test]
fn the_first_of_many_equal_responses_does_not_hold_the_loop() {
    for path in ["/", "/api/v1/languages", "/api/v1/models"] {
        for coding in ["br", "zstd", "gzip"] {
            let head = format!(
                "GET {path} HTTP/1.1\r\nhost: localhost\r\naccept-encoding: {coding}\r\n\r\n"
            );
            assert_short(&format!("{path} in {coding}"), || {
                let mut stage = Stage::new(|_| {});
                let wire = stage.connect();
                let (spent, answer) = cost(&mut stage, wire, &head);
                assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
                spent
            });
        }
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
        let ends = streams.map(|stream| frame(0, 1, stream, &message[..1]));
        let ends = ends.collect::<Vec<_>>().concat();
        assert_short(path, || {
            let mut stage = with_keys();
            let wire = stage.connect();
            let (first, _) = cost(&mut stage, wire, &bytes);
            let (last, _) = cost(&mut stage, wire, &ends);
            let counters = &stage.daemon.coded;
            assert_eq!(counters.inflating_seconds(), 0.0, "{path}");
            first.max(last)
        });
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
            assert_short(path, || {
                let mut stage = with_keys();
                let wire = stage.connect();
                let (spent, _) = cost(&mut stage, wire, &bytes);
                let counters = &stage.daemon.coded;
                assert_eq!(counters.inflating_seconds(), 0.0, "{path}");
                spent
            });
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
            let head = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n{fields}\r\n");
            assert_short(&fields[..10], || {
                let mut stage = with_keys();
                let wire = stage.connect();
                cost(&mut stage, wire, head.repeat(32)).0
            });
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
    assert_short("the longest field block", || {
        let mut stage = with_keys();
        let wire = stage.connect();
        cost(&mut stage, wire, &bytes).0
    });
}
