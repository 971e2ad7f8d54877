//! How the engine is divided between keys: one that floods it, one that asks for little, and two
//! that flood it with different weights.
//!
//!     cargo bench --bench fairness
//!
//! The daemon runs the default model, if it is there, with four sequences and 4,096 tokens of
//! context for each. Part one: key B asks for a short generation, alone; then beside key A, which
//! keeps 16 requests of some 1,000 tokens under way, every second body compressed; then beside one
//! request of A whose prompt fills the context. B's generation may take four times as long as
//! alone: four sequences that share the machine take about three times as long by arithmetic. Its
//! first token may come two prompt budgets later. Part two: keys of the weights 1 and 3 keep eight
//! small requests each under way; the tokens computed for them must divide 1 to 3 within 10 %.
//!
//! * `FAIRNESS_ROUNDS` (7) is how often B asks in each situation; the table has medians.
//! * `FAIRNESS_SECONDS` (90) is the length of part two.
//! * `FAIRNESS_PARTS` (`flood,weights`) chooses parts.
//!
//! `AUTOGLMD_TEST_BINARY` measures another binary, such as one of an earlier commit.
//!
//! The model is chosen as for the tests: `AUTOGLMD_TEST_DEFAULT_MODEL`, or the one in the daemon's
//! cache, or the small one. The clients are this process, on the same cores.

#[path = "../tests/common/mod.rs"]
mod common;
mod support;

use std::io::{self, Write as _};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};

use common::{Connection, Daemon, Options, eventually, model, request};
use support::{median, parameter};

const PARALLEL: u32 = 4;
const CONTEXT_TOKENS: u32 = 4_096;
/// Requests that the flooding key keeps under way: four times as many as there are sequences.
const FLOOD: usize = 16;
const FLOOD_WORDS: usize = 500;
/// Words of a prompt that nearly fills the context of a sequence; each has two tokens.
const FILLING_WORDS: usize = 1_950;
const SHORT_TOKENS: u32 = 32;
/// The default of `engine.prompt_budget`.
const PROMPT_BUDGET: Duration = Duration::from_millis(250);
const SLOWER_MAX: f64 = 4.0;
/// Requests of each key in part two, and the tokens of their answers.
const STREAMS: usize = 8;
const STREAM_TOKENS: u32 = 24;
/// How often a client looks whether the measurement has ended.
const LOOK: Duration = Duration::from_millis(100);

fn main() {
    let rounds: usize = parameter("FAIRNESS_ROUNDS", 7);
    let seconds: u64 = parameter("FAIRNESS_SECONDS", 90);
    let parts: String = parameter("FAIRNESS_PARTS", "flood,weights".to_owned());
    let model = model::default_path().unwrap_or_else(|| model::path().to_owned());
    let daemon = Options::llama()
        .set("engine.model", &model.display().to_string())
        .set_raw("engine.parallel", &PARALLEL.to_string())
        .set_raw("engine.context", &CONTEXT_TOKENS.to_string())
        .set("limits.default_request_timeout", "10m")
        .set("limits.max_request_timeout", "10m")
        .start();
    println!(
        "{}; {PARALLEL} sequences; model {}",
        support::machine(),
        model.file_name().unwrap_or_default().display()
    );
    let is_good = [
        !parts.contains("flood") || flood(&daemon, rounds),
        !parts.contains("weights") || weights(&daemon, Duration::from_secs(seconds)),
    ];
    assert!(is_good.iter().all(|good| *good), "a bound is broken");
}

// ---- part one: a flood, and a prompt that fills the context --------------------------------------

fn flood(daemon: &Daemon, rounds: usize) -> bool {
    let (a, b) = (make_key(daemon, "a", 1), make_key(daemon, "b", 1));
    // Two requests before, so that the daemon's own words are in the cache, as they always are.
    for _ in 0..2 {
        ask_short(daemon, &b);
    }
    let alone = short_rounds(daemon, &b, rounds);
    let beside_flood = beside(daemon, &b, rounds, |stop| {
        thread::scope(|scope| {
            for client in 0..FLOOD {
                let a = &a;
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        let body = long_body(FLOOD_WORDS, 64);
                        let _ = send_and_wait(daemon, a, &body, client % 2 == 0, stop);
                    }
                });
            }
        });
    });
    let beside_long = beside(daemon, &b, rounds, |stop| {
        while !stop.load(Ordering::Relaxed) {
            let _ = send_and_wait(daemon, &a, &long_body(FILLING_WORDS, 1), false, stop);
        }
    });
    println!(
        "\n| key B's generation of {SHORT_TOKENS} tokens | first token, s | whole, s | times |"
    );
    println!("| --- | --- | --- | --- |");
    let mut is_good = true;
    for (name, runs) in [
        ("alone", &alone),
        ("beside a flood of key A", &beside_flood),
        ("beside one prompt that fills the context", &beside_long),
    ] {
        let first = median(runs.iter().map(|run| run.first_token_s));
        let whole = median(runs.iter().map(|run| run.whole_s));
        let first_alone = median(alone.iter().map(|run| run.first_token_s));
        let times = whole / median(alone.iter().map(|run| run.whole_s));
        println!("| {name} | {first:.2} | {whole:.2} | {times:.1} |");
        is_good &= times <= SLOWER_MAX;
        is_good &= first <= first_alone + 2.0 * PROMPT_BUDGET.as_secs_f64();
    }
    is_good
}

/// Runs B's rounds while `load` runs in another thread, until it is told to stop.
fn beside(
    daemon: &Daemon,
    key: &str,
    rounds: usize,
    load: impl FnOnce(&AtomicBool) + Send,
) -> Vec<Timing> {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| load(&stop));
        eventually("the engine works", || {
            (daemon.metrics().value("autoglmd_engine_sequences_running") > 0.0).then_some(())
        });
        let runs = short_rounds(daemon, key, rounds);
        stop.store(true, Ordering::Relaxed);
        runs
    })
}

fn short_rounds(daemon: &Daemon, key: &str, rounds: usize) -> Vec<Timing> {
    (0..rounds).map(|_| ask_short(daemon, key)).collect()
}

/// One response as its reader saw it.
struct Timing {
    first_token_s: f64,
    whole_s: f64,
}

fn ask_short(daemon: &Daemon, key: &str) -> Timing {
    let prompt = format!("Print the number {} in words.", next_number());
    let body = json!({
        "prompt": prompt, "language": "python", "max_tokens": SHORT_TOKENS, "temperature": 0,
        "stream": true,
    });
    let start = Instant::now();
    let mut connection = send(daemon, key, &body, false).expect("the daemon takes it");
    let head = connection.head().expect("a response");
    assert_eq!(head.status, 200, "{head:?}");
    let mut first_token_s = None;
    let mut events = connection.events();
    while let Some(event) = events.next().expect("a stream") {
        let data: Value = serde_json::from_str(&event.data).unwrap_or_default();
        assert_ne!(event.name, "error", "{data}");
        if data["text"].as_str().is_some_and(|text| !text.is_empty()) {
            first_token_s.get_or_insert(start.elapsed().as_secs_f64());
        }
    }
    Timing {
        first_token_s: first_token_s.expect("the model says something"),
        whole_s: start.elapsed().as_secs_f64(),
    }
}

// ---- part two: weights ---------------------------------------------------------------------------

fn weights(daemon: &Daemon, length: Duration) -> bool {
    let keys = [1, 3].map(|weight| (weight, make_key(daemon, &format!("w{weight}"), weight)));
    let tokens = [const { AtomicU64::new(0) }; 2];
    let (stop, start) = (AtomicBool::new(false), Instant::now());
    thread::scope(|scope| {
        for ((_, key), tokens) in keys.iter().zip(&tokens) {
            for _ in 0..STREAMS {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        let prompt = format!("Add {} to a number.", next_number());
                        let body = json!({
                            "prompt": prompt, "language": "python", "max_tokens": STREAM_TOKENS,
                            "temperature": 0,
                        });
                        let answer = send_and_wait(daemon, key, &body, false, &stop);
                        let counted = answer.as_ref().map_or(0, computed_tokens);
                        tokens.fetch_add(counted, Ordering::Relaxed);
                    }
                });
            }
        }
        thread::sleep(length);
        stop.store(true, Ordering::Relaxed);
    });
    let seconds = start.elapsed().as_secs_f64();
    println!("\n| weight | tokens computed | per second |\n| --- | --- | --- |");
    let counted = tokens.map(AtomicU64::into_inner);
    for ((weight, _), tokens) in keys.iter().zip(counted) {
        println!("| {weight} | {tokens} | {:.1} |", tokens as f64 / seconds);
    }
    let ratio = counted[1] as f64 / counted[0].max(1) as f64;
    println!("\nThe tokens divide 1 to {ratio:.2}.");
    (2.7..=3.3).contains(&ratio)
}

/// Returns the tokens that were computed for a response: those of the prompt that were not cached,
/// and those of the answer.
fn computed_tokens(answer: &Value) -> u64 {
    let usage = |name: &str| answer["usage"][name].as_u64().unwrap_or(0);
    usage("prompt_tokens") - usage("cached_tokens") + usage("completion_tokens")
}

// ---- requests ------------------------------------------------------------------------------------

/// Returns a number that no other prompt has, so that no prompt is cached.
fn next_number() -> u64 {
    static NUMBERS: AtomicU64 = AtomicU64::new(1_000);
    NUMBERS.fetch_add(1, Ordering::Relaxed)
}

fn long_body(words: usize, max_tokens: u32) -> Value {
    let number = next_number();
    let text: Vec<String> = (0..words)
        .map(|word| format!("word{}", (word as u64 * 7 + number) % 10))
        .collect();
    let prompt = format!("{number}: sort these words. {}", text.join(" "));
    json!({
        "prompt": prompt, "language": "python", "max_tokens": max_tokens, "temperature": 0,
    })
}

fn send(daemon: &Daemon, key: &str, body: &Value, is_compressed: bool) -> io::Result<Connection> {
    let mut bytes = body.to_string().into_bytes();
    let authorization = format!("Bearer {key}");
    let mut fields = vec![
        ("content-type", "application/json"),
        ("authorization", authorization.as_str()),
    ];
    if is_compressed {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(&bytes)?;
        bytes = encoder.finish()?;
        fields.push(("content-encoding", "gzip"));
    }
    let mut connection = Connection::tcp(daemon.address())?;
    connection.try_send(&request("POST", "/api/v1/generate", &fields, &bytes))?;
    Ok(connection)
}

/// Sends a request and returns its response; `None` if the measurement ends before. Hanging up then
/// cancels it.
fn send_and_wait(
    daemon: &Daemon,
    key: &str,
    body: &Value,
    is_compressed: bool,
    stop: &AtomicBool,
) -> Option<Value> {
    let mut connection = send(daemon, key, body, is_compressed).ok()?;
    while !stop.load(Ordering::Relaxed) {
        if connection.readable_within(LOOK) {
            let answer = connection.try_answer().ok()?;
            assert_eq!(answer.status(), 200, "{answer}");
            return Some(answer.json());
        }
    }
    None
}

/// Creates a key with the command line tool, and waits until the daemon knows it.
fn make_key(daemon: &Daemon, name: &str, weight: u16) -> String {
    let number = weight.to_string();
    let mut arguments = vec!["key", "create", "--name", name];
    // So that part one runs with binaries from before keys had weights.
    if weight != 1 {
        arguments.extend(["--weight", &number]);
    }
    let output = daemon.run(&arguments);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).expect("text");
    let prefix = daemon.key().split('_').next().unwrap_or_default();
    let words = text
        .split_whitespace()
        .filter(|word| word.starts_with(prefix));
    let key = words
        .max_by_key(|word| word.len())
        .expect("the key is shown")
        .to_owned();
    let authorization = format!("Bearer {key}");
    let fields = [("authorization", authorization.as_str())];
    eventually("the daemon knows the key", || {
        let bytes = request("GET", "/api/v1/models", &fields, b"");
        (daemon.exchange(&bytes).status() == 200).then_some(())
    });
    key
}
