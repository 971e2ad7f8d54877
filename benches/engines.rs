//! The llama engine beside llama-server: one model, the same prompts and flags, taking turns.
//!
//!     LLAMA_SERVER=/path/to/llama-server cargo bench --bench engines
//!
//! `docs/benchmarks.md` explains how to get a llama-server. Both apply the model's own template to
//! one user message that asks for Python, decode greedily, keep 16 sequences and 8,192 tokens of
//! context, and stream. The client is this process, with a thread per stream, on the same cores.
//! Every stream sends its requests one after another, so at 64 streams 48 requests wait. Prompts
//! never repeat.
//!
//! A third row is the daemon on the same model after `autoglmd model optimize`.
//!
//! `ENGINES_STREAMS` (a list), `ENGINES_ROUNDS`, `ENGINES_REQUESTS` (per stream and round),
//! `ENGINES_THREADS` and `ENGINES_BESIDE=0` (leaves the second part out) change its size.

#[path = "../tests/common/mod.rs"]
mod common;
mod support;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use common::process::{Process, allow_descriptors};
use common::{Connection, Daemon, Options, eventually, model, request};
use support::{mean, parameter, percentile};

const ANSWER_TOKENS: u32 = 64;
const PARALLEL: u32 = 16;
const CONTEXT_TOKENS: u32 = 8_192;
/// A request beside others that has no response by then counts as failed.
const BESIDE_PATIENCE: Duration = Duration::from_secs(60);

fn main() {
    let Some(program) = std::env::var_os("LLAMA_SERVER") else {
        println!("Set LLAMA_SERVER to a llama-server; docs/benchmarks.md says how to get one.");
        return;
    };
    allow_descriptors(12_000);
    let threads: usize = parameter("ENGINES_THREADS", 2);
    let rounds: usize = parameter("ENGINES_ROUNDS", 3);
    let requests: usize = parameter("ENGINES_REQUESTS", 2);
    let streams: String = parameter("ENGINES_STREAMS", "1,8,16,64".to_owned());
    println!(
        "{}; {threads} compute threads, {PARALLEL} sequences; model {}",
        support::machine(),
        model::path().display()
    );

    let folder = tempfile::tempdir().expect("a folder for the optimized model");
    let optimized = folder.path().join("optimized.gguf");
    autoglmd::engine::optimize(model::path(), &optimized).expect("the model can be optimized");
    let daemons = [model::path(), &optimized].map(|model| daemon(model, threads));
    let llama_server = LlamaServer::start(&program, threads);
    let mut peers = [
        Peer::daemon("autoglmd", &daemons[0]),
        Peer::llama_server(&llama_server),
        Peer::daemon("autoglmd, optimized", &daemons[1]),
    ];
    for peer in &mut peers {
        peer.run(1, 1);
    }
    println!("\n{HEADING}");
    for count in streams.split(',') {
        let count: usize = count
            .trim()
            .parse()
            .expect("ENGINES_STREAMS is a list of numbers");
        let mut all = [const { Vec::new() }; 3];
        for _ in 0..rounds {
            for (peer, runs) in peers.iter_mut().zip(&mut all) {
                runs.push(peer.run(count, requests));
            }
        }
        for (peer, runs) in peers.iter().zip(&all) {
            print_row(peer, count, runs);
        }
    }
    if parameter("ENGINES_BESIDE", 1) == 1 {
        println!(
            "\n| server | alone, s | beside 5,000 idle, s | beside 1,500 half-sent heads, s |"
        );
        println!("| --- | --- | --- | --- |");
        for peer in &mut peers {
            peer.print_beside();
        }
    }
}

fn daemon(model: &Path, threads: usize) -> Daemon {
    Options::llama()
        .set("engine.model", &model.display().to_string())
        .set_raw("engine.parallel", &PARALLEL.to_string())
        .set_raw("engine.threads", &threads.to_string())
        .set_raw("engine.context", &(CONTEXT_TOKENS / PARALLEL).to_string())
        .set("limits.header_timeout", "10m")
        .set("limits.idle_timeout", "10m")
        .set("limits.default_request_timeout", "10m")
        .descriptors(12_000)
        .start()
}

/// The peer, started as its own documentation recommends.
struct LlamaServer {
    child: Child,
    address: SocketAddr,
}

impl LlamaServer {
    fn start(program: &std::ffi::OsStr, threads: usize) -> LlamaServer {
        let address = TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .expect("a port of the kernel's choice");
        let mut child = Command::new(program)
            .arg("-m")
            .arg(model::path())
            .args(["-np", &PARALLEL.to_string(), "-t", &threads.to_string()])
            .args(["-c", &CONTEXT_TOKENS.to_string(), "-fa", "on", "--jinja"])
            .args(["--host", "127.0.0.1", "--port", &address.port().to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("LLAMA_SERVER can be run");
        eventually("llama-server is ready", || {
            let ended = child.try_wait().expect("the child is ours");
            assert!(ended.is_none(), "llama-server has ended: {ended:?}");
            let bytes = request("GET", "/health", &[("connection", "close")], b"");
            let mut connection = Connection::tcp(address).ok()?;
            connection.try_send(&bytes).ok()?;
            (connection.try_answer().ok()?.status() == 200).then_some(())
        });
        LlamaServer { child, address }
    }
}

impl Drop for LlamaServer {
    fn drop(&mut self) {
        // Fails only if it has ended by itself, and then there is nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Peer<'a> {
    name: &'static str,
    address: SocketAddr,
    process: Process,
    /// The bytes of a request for this prompt.
    request: Box<RequestOf<'a>>,
    /// The text that one event's data carries.
    text: fn(&Value) -> Option<&str>,
    /// The number of output tokens, from the event that contains it.
    tokens: fn(&Value) -> Option<u64>,
    prompts: AtomicUsize,
}

/// Builds a request's bytes for a prompt.
type RequestOf<'a> = dyn Fn(&str) -> Vec<u8> + Sync + 'a;

/// One response as its reader saw it.
struct Answer {
    first_token_s: f64,
    whole_s: f64,
    tokens: u64,
}

/// All responses of one run.
struct Run {
    answers: Vec<Answer>,
    tokens_per_second: f64,
}

impl<'a> Peer<'a> {
    fn daemon(name: &'static str, daemon: &'a Daemon) -> Peer<'a> {
        let request = |prompt: &str| {
            daemon.generate_request(&json!({
                "prompt": prompt, "language": "python", "max_tokens": ANSWER_TOKENS,
                "temperature": 0, "repeat_penalty": 1, "stream": true,
            }))
        };
        Peer {
            name,
            address: daemon.address(),
            process: daemon.process(),
            request: Box::new(request),
            text: |data| data.get("usage").is_none().then(|| data["text"].as_str())?,
            tokens: |data| data["usage"]["completion_tokens"].as_u64(),
            prompts: AtomicUsize::new(0),
        }
    }

    fn llama_server(server: &LlamaServer) -> Peer<'a> {
        let request = |prompt: &str| {
            let content = format!("Write a Python function.\n{prompt}");
            let body = json!({
                "messages": [{"role": "user", "content": content}], "max_tokens": ANSWER_TOKENS,
                "temperature": 0, "stream": true, "stream_options": {"include_usage": true},
            });
            let fields = [("content-type", "application/json")];
            request(
                "POST",
                "/v1/chat/completions",
                &fields,
                body.to_string().as_bytes(),
            )
        };
        Peer {
            name: "llama-server",
            address: server.address,
            process: Process(server.child.id()),
            request: Box::new(request),
            text: |data| data["choices"][0]["delta"]["content"].as_str(),
            tokens: |data| data["usage"]["completion_tokens"].as_u64(),
            prompts: AtomicUsize::new(0),
        }
    }

    /// Runs `streams` readers, each with `requests` one after another.
    fn run(&self, streams: usize, requests: usize) -> Run {
        let start = Instant::now();
        let answers: Vec<Answer> = std::thread::scope(|scope| {
            let readers: Vec<_> = (0..streams)
                .map(|_| {
                    scope.spawn(move || {
                        let answers = (0..requests).map(|_| self.ask(Duration::from_secs(600)));
                        answers.collect::<io::Result<Vec<_>>>().expect("an answer")
                    })
                })
                .collect();
            readers
                .into_iter()
                .flat_map(|reader| reader.join().expect("a reader"))
                .collect()
        });
        let tokens: u64 = answers.iter().map(|answer| answer.tokens).sum();
        let tokens_per_second = tokens as f64 / start.elapsed().as_secs_f64();
        Run {
            answers,
            tokens_per_second,
        }
    }

    /// Sends one request on its own connection.
    fn ask(&self, patience: Duration) -> io::Result<Answer> {
        let number = self.prompts.fetch_add(1, Ordering::Relaxed);
        let prompt = format!(
            "Find the {number}th prime number. Explain each step in detail in a long docstring."
        );
        let start = Instant::now();
        let mut connection = Connection::tcp(self.address)?;
        connection.set_read_timeout(patience);
        connection.try_send(&(self.request)(&prompt))?;
        let head = connection.head()?;
        assert_eq!(head.status, 200, "{} answers {head:?}", self.name);
        let mut answer = Answer {
            first_token_s: 0.0,
            whole_s: 0.0,
            tokens: 0,
        };
        let mut events = connection.events();
        while let Some(event) = events.next()? {
            let Ok(data) = serde_json::from_str::<Value>(&event.data) else {
                continue;
            };
            assert_ne!(event.name, "error", "{} failed: {data}", self.name);
            let has_text = (self.text)(&data).is_some_and(|text| !text.is_empty());
            if has_text && answer.first_token_s == 0.0 {
                answer.first_token_s = start.elapsed().as_secs_f64();
            }
            answer.tokens = (self.tokens)(&data).unwrap_or(answer.tokens);
        }
        answer.whole_s = start.elapsed().as_secs_f64();
        assert!(answer.first_token_s > 0.0, "{} sends no text", self.name);
        Ok(answer)
    }

    fn print_beside(&mut self) {
        let address = self.address;
        let alone = self.beside(Vec::new());
        let idle: io::Result<Vec<Connection>> =
            (0..5_000).map(|_| Connection::tcp(address)).collect();
        let idle = self.beside(idle.unwrap_or_default());
        let half_sent: io::Result<Vec<Connection>> = (0..1_500)
            .map(|_| {
                let mut connection = Connection::tcp(address)?;
                connection.try_send(b"POST /v1/chat/completions HTTP/1.1\r\nhost: local")?;
                Ok(connection)
            })
            .collect();
        let half_sent = self.beside(half_sent.unwrap_or_default());
        println!("| {} | {alone} | {idle} | {half_sent} |", self.name);
    }

    /// Returns how long a request takes while these connections are open.
    fn beside(&self, connections: Vec<Connection>) -> String {
        let answer = self.ask(BESIDE_PATIENCE);
        drop(connections);
        match answer {
            Ok(answer) => format!("{:.2}", answer.whole_s),
            Err(_) => format!("none within {} s", BESIDE_PATIENCE.as_secs()),
        }
    }
}

const HEADING: &str = "\
| streams | server | tokens/s | first token, mean, s | p95, s | whole answer, mean, s | p95, s \
| memory, MB | threads |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |";

fn print_row(peer: &Peer<'_>, streams: usize, runs: &[Run]) {
    let tokens_per_second = support::median(runs.iter().map(|run| run.tokens_per_second));
    let answers = || runs.iter().flat_map(|run| &run.answers);
    let first: Vec<f64> = answers().map(|answer| answer.first_token_s).collect();
    let whole: Vec<f64> = answers().map(|answer| answer.whole_s).collect();
    println!(
        "| {streams} | {} | {tokens_per_second:.0} | {:.2} | {:.2} | {:.2} | {:.2} | {} | {} |",
        peer.name,
        mean(&first),
        percentile(&first, 0.95),
        mean(&whole),
        percentile(&whole, 0.95),
        peer.process.resident_bytes() / 1_000_000,
        peer.process.threads(),
    );
}
