//! Counts the instructions that a request costs the daemon, so that two commits can be compared
//! where time cannot: on a machine whose speed varies by a tenth.
//!
//!     RUSTFLAGS="-C target-cpu=x86-64-v3" cargo bench --no-default-features --bench instructions
//!
//! The daemon runs under callgrind with the echo engine and everything that is always on. Each way
//! of asking is warmed up first; then the counters are set to zero, the requests are made, and the
//! counters are read. Instructions of the kernel are not counted, those of all threads are, and the
//! reactor's by themselves as well: the store's thread looks after its tables each second, so its
//! part depends on how long the requests take under valgrind. TLS uses the instructions that
//! valgrind's processor has, which has AVX2 and AES but not AVX-512, so the program must be built
//! without them.
//!
//! The requests bypass the cache. They are made without records, then with them.
//!
//! `AUTOGLMD_TEST_BINARY` names the binary, and `INSTRUCTIONS_BESIDE` another one to compare it
//! with; the bench fails if a way of asking costs the reactor more than `INSTRUCTIONS_MORE` (2)
//! percent more than with that one, or with records `INSTRUCTIONS_MORE_RECORDED` (5) percent.
//! `INSTRUCTIONS_REQUESTS` (400) is the number of requests of each. `INSTRUCTIONS_KEEP` names a
//! folder for the dumps, which callgrind_annotate reads: a folder in it for each run, and a number
//! for each way of asking.

#[path = "../tests/common/mod.rs"]
mod common;
mod support;

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use rustls::ClientConfig;
use serde_json::json;
use tempfile::TempDir;

use common::http2::frame::{Frame, data, flag, headers, kind};
use common::http2::{Peer, Target};
use common::process::Process;
use common::tls::{Authority, without_resumption};
use common::{Connection, Daemon, Options, eventually, request};
use support::parameter;

/// Requests that are sent in one write where several are sent at once.
const BATCH: usize = 20;

fn main() {
    support::require("valgrind", "valgrind");
    let requests: usize = parameter("INSTRUCTIONS_REQUESTS", 400);
    let beside: String = parameter("INSTRUCTIONS_BESIDE", String::new());
    assert!(requests.is_multiple_of(BATCH), "a multiple of {BATCH}");
    println!("{}; {requests} requests each\n", support::machine());
    // Earlier versions have no records.
    let other = (!beside.is_empty()).then(|| count(Some(&beside), None, requests));
    let mut missed = Vec::new();
    for (are_recorded, name, most) in [
        (false, "INSTRUCTIONS_MORE", 2.0),
        (true, "INSTRUCTIONS_MORE_RECORDED", 5.0),
    ] {
        let counts = count(None, Some(are_recorded), requests);
        let title = if are_recorded {
            "with records"
        } else {
            "without records"
        };
        println!("| {title} | the reactor's instructions | before | more, % | of all threads |");
        println!("| --- | --- | --- | --- | --- |");
        let most: f64 = parameter(name, most);
        for (number, (what, counted)) in counts.iter().enumerate() {
            let Counted { reactor, all } = counted;
            let Some(other) = &other else {
                println!("| {what} | {reactor:.0} | | | {all:.0} |");
                continue;
            };
            let before = other[number].1.reactor;
            let more = (reactor / before - 1.0) * 100.0;
            println!("| {what} | {reactor:.0} | {before:.0} | {more:+.1} | {all:.0} |");
            if more > most {
                missed.push(format!("{what}, {title}: {more:.1} % more, at most {most}"));
            }
        }
        println!();
    }
    if !missed.is_empty() {
        println!("missed:\n* {}", missed.join("\n* "));
        std::process::exit(1);
    }
}

/// The instructions of one request.
#[derive(Clone, Copy, Debug)]
struct Counted {
    reactor: f64,
    all: f64,
}

/// A daemon under callgrind, and what its clients need.
struct Measured {
    daemon: Daemon,
    client: Arc<ClientConfig>,
    generation: Vec<u8>,
    stream: Vec<u8>,
    folder: TempDir,
    dumps: usize,
}

/// Sends this many batches of requests.
type Way = fn(&Measured, usize);

/// Returns the instructions of one request, by way of asking.
fn count(
    binary: Option<&str>,
    are_recorded: Option<bool>,
    requests: usize,
) -> Vec<(&'static str, Counted)> {
    let mut measured = Measured::start(binary, are_recorded);
    let batches = requests / BATCH;
    let ways: [(&'static str, Way); 9] = [
        ("GET /livez, HTTP/1.1", |it, batches| {
            let bytes = request("GET", "/livez", &[], b"");
            one_by_one(&mut it.daemon.connect(), &bytes, batches * BATCH);
        }),
        ("GET /api/v1/languages, HTTP/1.1", |it, batches| {
            let bytes = it.daemon.request("GET", "/api/v1/languages", b"");
            one_by_one(&mut it.daemon.connect(), &bytes, batches * BATCH);
        }),
        ("a generation, HTTP/1.1", |it, batches| {
            one_by_one(&mut it.daemon.connect(), &it.generation, batches * BATCH);
        }),
        ("the same, 20 pipelined", |it, batches| {
            pipelined(&mut it.daemon.connect(), &it.generation, batches);
        }),
        ("a streamed generation, HTTP/1.1", |it, batches| {
            one_by_one(&mut it.daemon.connect(), &it.stream, batches * BATCH);
        }),
        ("a generation, TLS 1.3", |it, batches| {
            one_by_one(&mut it.connect_tls(), &it.generation, batches * BATCH);
        }),
        ("20 generations at once, HTTP/2", Measured::over_http2),
        ("a new connection and GET /livez", |it, batches| {
            let bytes = request("GET", "/livez", &[("connection", "close")], b"");
            for _ in 0..batches * BATCH {
                it.daemon.connect().exchange(&bytes).expect(200);
            }
        }),
        ("a handshake of TLS 1.3 and GET /livez", |it, batches| {
            let bytes = request("GET", "/livez", &[("connection", "close")], b"");
            for _ in 0..batches * BATCH {
                it.connect_tls().exchange(&bytes).expect(200);
            }
        }),
    ];
    let dumps = ways.map(|(what, ask)| {
        ask(&measured, 3);
        measured.control(&["--zero"]);
        ask(&measured, batches);
        (what, measured.dump())
    });
    // The thread with the most to do is the reactor: handshakes are its alone.
    let mut totals: HashMap<&str, f64> = HashMap::new();
    for (thread, count) in dumps.iter().flat_map(|(_, threads)| threads) {
        *totals.entry(thread).or_default() += count;
    }
    let busiest = totals.into_iter().max_by(|a, b| a.1.total_cmp(&b.1));
    let (reactor, _) = busiest.expect("a thread");
    let counted = dumps.iter().map(|(what, threads)| {
        let of = |is_counted: &dyn Fn(&str) -> bool| {
            let counted = threads.iter().filter(|(thread, _)| is_counted(thread));
            counted.map(|(_, count)| count).sum::<f64>() / requests as f64
        };
        let counted = Counted {
            reactor: of(&|thread| thread == reactor),
            all: of(&|_| true),
        };
        (*what, counted)
    });
    counted.collect()
}

fn one_by_one(connection: &mut Connection, bytes: &[u8], count: usize) {
    for _ in 0..count {
        connection.exchange(bytes).expect(200);
    }
}

fn pipelined(connection: &mut Connection, bytes: &[u8], batches: usize) {
    let batch = bytes.repeat(BATCH);
    for _ in 0..batches {
        connection.send(&batch);
        for _ in 0..BATCH {
            connection.answer().expect(200);
        }
    }
}

impl Measured {
    fn start(binary: Option<&str>, are_recorded: Option<bool>) -> Measured {
        let authority = Authority::new("the bench");
        let keep: String = parameter("INSTRUCTIONS_KEEP", String::new());
        let folder = match keep.as_str() {
            "" => TempDir::new(),
            keep => TempDir::new_in(keep).map(|mut folder| {
                folder.disable_cleanup(true);
                folder
            }),
        };
        let folder = folder.expect("a folder for the dumps");
        let (certificate, key) = authority.server("localhost").save(folder.path(), "site");
        let file = format!("--callgrind-out-file={}/dump", folder.path().display());
        // What a key is admitted by is on; access lines are off, as in the other benches.
        let mut options = Options::echo()
            .set_raw("server.tls.certificates", &format!("{:?}", [&certificate]))
            .set_raw("server.tls.keys", &format!("{:?}", [&key]))
            .set_raw("rate_limit.enabled", "true")
            .set_raw("rate_limit.requests_per_minute", "100000000")
            .set_raw("rate_limit.burst", "100000000")
            .set_raw("log.access", "false")
            .with_cache();
        if let Some(are_recorded) = are_recorded {
            options = options.set_raw("store.records", &are_recorded.to_string());
        }
        let callgrind = [
            "valgrind",
            "-q",
            "--tool=callgrind",
            "--separate-threads=yes",
            &file,
        ];
        options = options.wrapped_in(&callgrind);
        if let Some(binary) = binary {
            options = options.binary(Path::new(binary));
        }
        let daemon = options.start();
        let mut body = json!({"prompt": "实现快速排序算法", "language": "python", "timeout": 10000,
                   "cache": "bypass"});
        let generation = daemon.generate_request(&body);
        body["stream"] = json!(true);
        let stream = daemon.generate_request(&body);
        let client = authority.client_of(None, &[&rustls::version::TLS13]);
        Measured {
            daemon,
            client: without_resumption(client),
            generation,
            stream,
            folder,
            dumps: 0,
        }
    }

    fn connect_tls(&self) -> Connection {
        let connection = Connection::tls(self.daemon.address(), &self.client, "localhost");
        connection.expect("a handshake")
    }

    /// All requests of a batch lie in one write, and the next batch follows the last response.
    fn over_http2(&self, batches: usize) {
        let target = Target {
            body: self.generation.clone(),
            ..Target::of(&self.daemon)
        };
        let head = self
            .generation
            .windows(4)
            .position(|four| four == b"\r\n\r\n");
        let body = &self.generation[head.expect("a head has an end") + 4..];
        let mut peer = Peer::open(&target).expect("it answers");
        let block = target.post();
        let mut streams = (1..).step_by(2);
        for _ in 0..batches {
            let ids: Vec<u32> = streams.by_ref().take(BATCH).collect();
            let frames = ids
                .iter()
                .flat_map(|&id| [headers(id, &block, 0), data(id, body, flag::END_STREAM)]);
            peer.send_all(&frames.collect::<Vec<Frame>>());
            for id in ids {
                peer.answer_of(id, 200).expect("an answer");
            }
        }
        peer.send(Frame::new(kind::GOAWAY, 0, 0, [0; 8]));
    }

    fn control(&self, arguments: &[&str]) {
        let Process(id) = self.daemon.process();
        let output = Command::new("callgrind_control")
            // Where valgrind has its pipe.
            .env("TMPDIR", self.daemon.folder().path())
            .args(arguments)
            .arg(id.to_string())
            .output()
            .expect("callgrind_control comes with valgrind");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("OK"), "callgrind_control said {output:?}");
    }

    /// Returns the instructions of each thread since the counters were set to zero.
    fn dump(&mut self) -> Vec<(String, f64)> {
        self.control(&["--dump"]);
        self.dumps += 1;
        let prefix = format!("dump.{}-", self.dumps);
        eventually("the dumps are written", || self.threads(&prefix)).0
    }

    /// Returns the instructions of each thread, by its number. `None`: a file is not complete yet.
    fn threads(&self, prefix: &str) -> Option<Vec<(String, f64)>> {
        let mut threads = Vec::new();
        for file in std::fs::read_dir(self.folder.path()).ok()? {
            let file = file.ok()?;
            let name = file.file_name().into_string().ok()?;
            let Some(thread) = name.strip_prefix(prefix) else {
                continue;
            };
            let text = std::fs::read_to_string(file.path()).ok()?;
            let mut lines = text.lines();
            let total = lines.find_map(|line| line.strip_prefix("summary: "))?;
            threads.push((thread.to_owned(), total.trim().parse().ok()?));
        }
        (!threads.is_empty()).then_some(threads)
    }
}
