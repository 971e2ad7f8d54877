//! Content codings from the client's side, with the echo engine: curl and gzip as independent
//! decoders, streams read event by event, and bombs.

mod common;

use std::io::Write;
use std::process::{Command, Stdio};

use autoglmd::http::compress::Coding;
use autoglmd::http::compress::decode::{Bound, Decoder};
use autoglmd::http::compress::encode::{Encoder, Step};
use serde_json::json;

use common::python::interpreter;
use common::{Daemon, Options, request};

const MIB: usize = 1 << 20;

fn shared() -> &'static Daemon {
    Daemon::shared(|| Options::echo().set("server.compress_min", "64"))
}

fn decoder(coding: Coding) -> Decoder {
    Decoder::new(coding, Bound::of(usize::MAX, 64 * MIB, u32::MAX)).expect("memory")
}

fn encoded(coding: Coding, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut encoder = Encoder::stream(coding).expect("memory");
    encoder
        .encode(body, Step::Finish, &mut out)
        .expect("memory");
    out
}

/// Runs a program with this input, and returns its output.
fn run(program: &str, package: &str, arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}; apt-get install {package}"));
    let mut stdin = child.stdin.take().expect("it is piped");
    // The input fits into a pipe, so neither side waits for the other.
    assert!(input.len() <= 64 * 1024);
    stdin.write_all(input).expect("it reads its input");
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {error}");
    output.stdout
}

fn curl(arguments: &[&str]) -> String {
    let common = ["--silent", "--show-error", "--fail", "--max-time", "60"];
    let out = run("curl", "curl", &[&common, arguments].concat(), b"");
    String::from_utf8(out).expect("UTF-8")
}

// ---- answers -----------------------------------------------------------------------------------

#[test]
fn curl_reads_each_coding_and_gets_fewer_bytes() {
    let daemon = shared();
    let url = format!("http://{}/api/v1/languages", daemon.address());
    let authorization = format!("authorization: {}", daemon.authorization());
    let get = |more: &[&str]| {
        let form = [
            "--write-out",
            "\n%{size_download} %header{content-encoding}",
        ];
        let arguments = [&["-H", &authorization, &url][..], &form, more].concat();
        let text = curl(&arguments);
        let (body, written) = text.rsplit_once('\n').expect("what was written out");
        let (size, coding) = written.split_once(' ').expect("two words");
        let size: usize = size.parse().expect("a number");
        (body.to_owned(), size, coding.to_owned())
    };
    let (plain, plain_size, none) = get(&[]);
    assert_eq!((plain.len(), none.as_str()), (plain_size, ""));
    for coding in ["gzip", "zstd", "br"] {
        let header = format!("accept-encoding: {coding}");
        let (body, size, named) = get(&["--compressed", "-H", &header]);
        assert_eq!(named, coding);
        assert_eq!(body, plain, "{coding}");
        assert!(size * 2 < plain_size, "{coding}: {size} of {plain_size}");
    }
    let (body, _, named) = get(&["--compressed"]);
    assert_eq!((body, named.as_str()), (plain, "br"));
}

#[test]
fn curl_reads_compressed_streams_to_their_end() {
    let daemon = shared();
    let url = format!("http://{}/api/v1/generate", daemon.address());
    let authorization = format!("authorization: {}", daemon.authorization());
    let body = r#"{"prompt": "hello", "language": "python", "stream": true}"#;
    for coding in ["gzip", "zstd", "br"] {
        let header = format!("accept-encoding: {coding}");
        let text = curl(&[
            "--compressed",
            "--no-buffer",
            "-H",
            &header,
            "-H",
            &authorization,
            "-H",
            "content-type: application/json",
            "-d",
            body,
            &url,
        ]);
        assert!(text.starts_with("event: delta\n"), "{coding}: {text}");
        assert!(text.contains("event: done\n"), "{coding}: {text}");
        assert!(text.ends_with("\n\n"), "{coding}: {text}");
    }
}

#[test]
fn each_chunk_of_a_stream_holds_whole_events() {
    let daemon = shared();
    let body = br#"{"prompt": "hello", "language": "python", "stream": true}"#;
    for coding in [Coding::Zstd, Coding::Gzip, Coding::Brotli] {
        let fields = [("accept-encoding", coding.name())];
        let mut connection = daemon.connect();
        connection.send(&daemon.request_with("POST", "/api/v1/generate", &fields, body));
        let head = connection.head().expect("a head");
        assert_eq!(head.field("content-encoding"), Some(coding.name()));
        assert_eq!(head.field("vary"), Some("Accept-Encoding"));
        let mut decoder = decoder(coding);
        let (mut text, mut events) = (Vec::new(), 0);
        while let Some(chunk) = connection.piece().expect("a whole stream") {
            text.clear();
            decoder.decode(&chunk, &mut text).expect("a good coding");
            let shown = String::from_utf8_lossy(&text);
            assert!(
                shown.starts_with("event: ") && shown.ends_with("\n\n"),
                "{shown}"
            );
            events += 1;
        }
        assert!(events >= 3, "{events} events");
        assert_eq!(decoder.finish(), Ok(()));
    }
}

#[test]
fn head_announces_what_get_sends() {
    let daemon = shared();
    let fields = [("accept-encoding", "gzip")];
    let get = daemon.exchange(&daemon.request_with("GET", "/api/v1/languages", &fields, b""));
    let mut connection = daemon.connect();
    connection.send(&daemon.request_with("HEAD", "/api/v1/languages", &fields, b""));
    let head = connection.head_alone();
    for name in ["content-length", "content-encoding", "vary", "content-type"] {
        assert!(get.field(name).is_some(), "{name}: {get}");
        assert_eq!(get.field(name), head.field(name), "{name}");
    }
    // No body came: the next response begins where the head ended.
    connection
        .exchange(&request("GET", "/livez", &[], b""))
        .expect(200);
}

// ---- bodies ------------------------------------------------------------------------------------

#[test]
fn bodies_of_the_fields_own_tools_are_read() {
    let daemon = shared();
    let body = json!({"prompt": "a long wish ".repeat(200), "language": "python"}).to_string();
    for (coding, program, package) in [("gzip", "gzip", "gzip"), ("zstd", "zstd", "zstd")] {
        let coded = run(program, package, &["-c"], body.as_bytes());
        assert!(coded.len() * 4 < body.len());
        let fields = [("content-encoding", coding)];
        let bytes = daemon.request_with("POST", "/api/v1/generate", &fields, &coded);
        daemon.exchange(&bytes).expect(200);
    }
}

const PYTHON: &str = r#"
import gzip, json, sys, zlib
import requests
url, key = sys.argv[1:]
headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
body = json.dumps({"prompt": "quicksort", "language": "python"}).encode()
for name, pack in [("gzip", gzip.compress), ("deflate", zlib.compress)]:
    answer = requests.post(url, headers=headers | {"Content-Encoding": name}, data=pack(body))
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-encoding"] == "gzip", answer.headers
    assert answer.json()["code"]
answer = requests.post(url, headers=headers, json={"prompt": "x", "stream": True}, stream=True)
assert answer.headers["content-encoding"] == "gzip", answer.headers
lines = list(answer.iter_lines(decode_unicode=True))
assert "event: done" in lines, lines
"#;

#[test]
fn requests_of_python_sends_and_reads_without_knowing_it() {
    let daemon = shared();
    let url = format!("http://{}/api/v1/generate", daemon.address());
    let python = interpreter();
    let python = python.to_str().expect("the path is plain");
    run(python, "python3", &["-c", PYTHON, &url, daemon.key()], b"");
}

#[test]
fn unknown_coding_gets_the_list() {
    let daemon = shared();
    let fields = [("content-encoding", "compress")];
    let bytes = daemon.request_with("POST", "/api/v1/generate", &fields, b"x");
    let answer = daemon
        .exchange(&bytes)
        .expect_error(415, "unsupported_media_type");
    assert_eq!(
        answer.field("accept-encoding"),
        Some("gzip, deflate, br, zstd")
    );
}

// ---- bombs -------------------------------------------------------------------------------------

/// Returns 256 MiB of zeros (32 for brotli) in a few kilobytes.
fn bomb(coding: Coding) -> Vec<u8> {
    match coding {
        // A frame with a window of 128 KiB, and 2,048 blocks that mean "128 KiB of this byte" (RFC
        // 8878, section 3.1.1.2).
        Coding::Zstd => {
            let block = [0x02, 0x00, 0x10, 0x00];
            [
                &[0x28, 0xb5, 0x2f, 0xfd, 0x00, 7 << 3][..],
                &block.repeat(2_048),
            ]
            .concat()
        }
        // After a flush the same bytes have the same meaning again.
        Coding::Gzip | Coding::Deflate => {
            let mut encoder = Encoder::stream(coding).expect("memory");
            let (mut first, mut block) = (Vec::new(), Vec::new());
            encoder
                .encode(b"0", Step::Flush, &mut first)
                .expect("memory");
            let zeros = vec![0; MIB];
            encoder
                .encode(&zeros, Step::Flush, &mut block)
                .expect("memory");
            [first, block.repeat(256)].concat()
        }
        Coding::Brotli => encoded(coding, &vec![0; 32 * MIB]),
    }
}

#[test]
fn bombs_get_413_and_cost_bounded_memory() {
    let bombs = Coding::ALL.map(|coding| (coding, bomb(coding)));
    for (ratio, named) in [("100", "max_inflate_ratio"), ("1000000", "max_body")] {
        let daemon = Options::echo()
            .set_raw("limits.max_inflate_ratio", ratio)
            .start();
        let throw = |coding: Coding, bomb: &[u8]| {
            let fields = [("content-encoding", coding.name())];
            let bytes = daemon.request_with("POST", "/api/v1/generate", &fields, bomb);
            daemon.exchange(&bytes).expect_error(413, "body_too_large")
        };
        daemon.generate(&json!({"prompt": "hello"})).expect(200);
        let before = daemon.process().peak_bytes();
        for (coding, bomb) in &bombs {
            for _ in 0..8 {
                let answer = throw(*coding, bomb);
                // A hundred times a longer bomb exceeds the bound of a body in any case.
                let is_long = bomb.len() * 100 > MIB;
                let named = if is_long { "max_body" } else { named };
                assert!(answer.text().contains(named), "{coding:?}: {answer}");
            }
        }
        let grown = daemon.process().peak_bytes() - before;
        // At the worst moment: the bomb, one buffer of a mebibyte while it grows, and a decoder's
        // window.
        assert!(grown < 12 * MIB as u64, "bombs cost {grown} bytes");
        let refused = daemon
            .metrics()
            .sum("autoglmd_inflation_refused_total", &[]);
        assert_eq!(refused, 32.0);
        daemon.generate(&json!({"prompt": "hello"})).expect(200);
    }
}

#[test]
fn bomb_within_a_bomb_is_refused_unread() {
    let daemon = shared();
    let bomb = encoded(Coding::Gzip, &bomb(Coding::Deflate));
    let fields = [("content-encoding", "deflate, gzip")];
    let bytes = daemon.request_with("POST", "/api/v1/generate", &fields, &bomb);
    let answer = daemon.exchange(&bytes);
    answer.expect_error(415, "unsupported_media_type");
}

// ---- numbers -----------------------------------------------------------------------------------

#[test]
fn bytes_saved_and_time_spent_are_counted() {
    let daemon = Options::echo().set("server.compress_min", "64").start();
    let fields = [("accept-encoding", "zstd")];
    let body = br#"{"prompt": "hello", "language": "python"}"#;
    let bytes = daemon.request_with("POST", "/api/v1/generate", &fields, body);
    let mut sent = 0;
    for _ in 0..20 {
        sent += daemon.exchange(&bytes).expect(200).body.len();
    }
    let metrics = daemon.metrics();
    let labels = [("coding", "zstd")];
    let output = metrics.sum("autoglmd_compressed_output_bytes_total", &labels);
    let input = metrics.sum("autoglmd_compressed_input_bytes_total", &labels);
    assert_eq!(output, sent as f64);
    assert!(input > output, "{input} became {output}");
    let seconds = metrics.sum("autoglmd_compression_cpu_seconds_total", &labels);
    assert!(seconds > 0.0 && seconds < 10.0, "{seconds}");
}
