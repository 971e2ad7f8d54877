//! Measures whether memory stays flat: resident memory over a million requests of every protocol,
//! and over thousands of distinct prompts on a real model.
//!
//!     cargo bench --bench memory
//!
//! Requests go in rounds of 100,000, a fifth each over HTTP/1.1, HTTP/2, TLS, gRPC, and as streams
//! of events. `MEMORY_ROUNDS` (10) is their number; the second round is the base, because a daemon
//! takes the memory that it needs in the first one. `MEMORY_PROMPTS` (6,000) prompts, no two of
//! them alike, are answered with a few tokens each by the test model; the base is the first sixth.
//! 0 of either leaves it out. Ends with an error if the memory at the end differs from the base by
//! more than 2 %. On two cores the first part takes about two minutes, the second ten.

#[path = "../tests/common/mod.rs"]
mod common;
mod support;

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use serde_json::json;
use tempfile::TempDir;

use common::tls::{Authority, Wanted};
use common::{Daemon, Options};
use support::{measured_daemon, parameter};

const REQUESTS_PER_ROUND: usize = 100_000;
const KINDS: [Kind; 5] = [
    Kind::Http1,
    Kind::Http2,
    Kind::Tls,
    Kind::Grpc,
    Kind::Stream,
];

/// Memory may differ from the base by this part.
const DIFFERENCE_MAX: f64 = 0.02;

/// Clients that send prompts at the same time.
const PROMPT_CLIENTS: usize = 4;

#[derive(Clone, Copy, Debug)]
enum Kind {
    Http1,
    Http2,
    Tls,
    Grpc,
    Stream,
}

fn main() -> ExitCode {
    support::require("h2load", "nghttp2-client");
    println!("{}\n", support::machine());
    let rounds: usize = parameter("MEMORY_ROUNDS", 10);
    let prompts: usize = parameter("MEMORY_PROMPTS", 6_000);
    let mut is_flat = true;
    if rounds > 0 {
        is_flat &= measure_requests(rounds);
    }
    if prompts > 0 && cfg!(feature = "llama") {
        is_flat &= measure_prompts(prompts);
    }
    if is_flat {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Resident memory at several moments, the base first.
struct Course {
    base: Option<f64>,
    last: f64,
}

impl Course {
    fn begin() -> Course {
        println!("| after | resident, KiB | its own, KiB | seconds |");
        println!("| --- | --- | --- | --- |");
        Course {
            base: None,
            last: 0.0,
        }
    }

    fn note(&mut self, daemon: &Daemon, after: usize, is_base: bool, start: Instant) {
        let process = daemon.process();
        self.last = process.resident_bytes() as f64;
        if is_base {
            self.base = Some(self.last);
        }
        println!(
            "| {after} | {:.0} | {:.0} | {:.0} |",
            self.last / 1024.0,
            process.anonymous_bytes() as f64 / 1024.0,
            start.elapsed().as_secs_f64()
        );
    }

    /// Returns whether the last value is as high as the base.
    fn is_flat(&self) -> bool {
        let base = self.base.unwrap_or(self.last);
        let difference = self.last / base - 1.0;
        println!(
            "\nThe last differs from the base by {:+.2} %.\n",
            difference * 100.0
        );
        difference.abs() <= DIFFERENCE_MAX
    }
}

// ---- requests --------------------------------------------------------------------------------

fn measure_requests(rounds: usize) -> bool {
    let folder = TempDir::new().expect("a folder for certificates and bodies");
    let certificate = folder.path().join("site.pem");
    let key = folder.path().join("site.key");
    let issued = Authority::new("memory").issue(&Wanted {
        hosts: &["localhost"],
        ..Wanted::default()
    });
    fs::write(&certificate, issued.certificate.pem()).expect("a fresh folder");
    fs::write(&key, issued.key.serialize_pem()).expect("a fresh folder");
    let options = Options::echo()
        .set_raw("server.tls.certificates", &format!("{:?}", [&certificate]))
        .set_raw("server.tls.keys", &format!("{:?}", [&key]));
    let daemon = measured_daemon(options);
    write_bodies(folder.path());
    let (mut course, start) = (Course::begin(), Instant::now());
    for round in 1..=rounds {
        for kind in KINDS {
            load(&daemon, kind, folder.path());
        }
        let is_base = round == 2.min(rounds);
        course.note(&daemon, round * REQUESTS_PER_ROUND, is_base, start);
    }
    // Over gRPC a refusal has the status 200, too.
    let errors = daemon.metrics().sum("autoglmd_errors_total", &[]);
    assert_eq!(errors, 0.0, "error responses measure nothing");
    course.is_flat()
}

fn write_bodies(folder: &Path) {
    let body = |stream: bool| {
        let body = json!({"prompt": "sort a list", "language": "python", "stream": stream});
        body.to_string().into_bytes()
    };
    // `Generate` of the schema: a message with the prompt as its first field, uncompressed.
    let prompt = b"sort a list";
    let message = [&[0x0a, prompt.len() as u8][..], prompt].concat();
    let framed = [&[0, 0, 0, 0, message.len() as u8][..], &message].concat();
    for (name, bytes) in [
        ("whole", body(false)),
        ("stream", body(true)),
        ("grpc", framed),
    ] {
        fs::write(folder.join(name), bytes).expect("a fresh folder");
    }
}

/// Sends one kind's part of a round.
fn load(daemon: &Daemon, kind: Kind, folder: &Path) {
    let (scheme, file, path) = match kind {
        Kind::Http1 | Kind::Http2 => ("http", "whole", "/api/v1/generate"),
        Kind::Tls => ("https", "whole", "/api/v1/generate"),
        Kind::Stream => ("http", "stream", "/api/v1/generate"),
        Kind::Grpc => ("http", "grpc", "/AutoGLMService/Generate"),
    };
    let fields: &[&str] = match kind {
        Kind::Grpc => &["content-type: application/grpc", "te: trailers"],
        _ => &["content-type: application/json"],
    };
    let count = REQUESTS_PER_ROUND / KINDS.len();
    let mut command = Command::new("h2load");
    command.args(["-t1", "-c16", "-m8", "-n", &count.to_string(), "-d"]);
    command.arg(folder.join(file));
    if let Kind::Http1 = kind {
        command.arg("--h1");
    }
    for field in fields {
        command.args(["-H", field]);
    }
    command.args(["-H", &format!("authorization: {}", daemon.authorization())]);
    command.arg(format!("{scheme}://{}{path}", daemon.address()));
    let output = command.output().expect("h2load is installed");
    let text = String::from_utf8_lossy(&output.stdout);
    let good = format!("status codes: {count} 2xx");
    assert!(text.contains(&good), "{kind:?}: {text}");
}

// ---- prompts ---------------------------------------------------------------------------------

fn measure_prompts(count: usize) -> bool {
    let daemon = Options::llama().set_raw("log.access", "false").start();
    let (mut course, start) = (Course::begin(), Instant::now());
    let part = count.div_ceil(6);
    for done in (0..count).step_by(part) {
        let end = (done + part).min(count);
        let next = AtomicUsize::new(done);
        std::thread::scope(|scope| {
            for _ in 0..PROMPT_CLIENTS {
                scope.spawn(|| ask(&daemon, &next, end));
            }
        });
        course.note(&daemon, end, done == 0, start);
    }
    course.is_flat()
}

/// Sends the prompts that are left, one after the other.
fn ask(daemon: &Daemon, next: &AtomicUsize, end: usize) {
    let mut connection = daemon.connect();
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= end {
            return;
        }
        let prompt = format!("print the number {number} and its square root");
        let body = json!({"prompt": prompt, "language": "python", "max_tokens": 3});
        connection
            .exchange(&daemon.generate_request(&body))
            .expect(200);
    }
}
