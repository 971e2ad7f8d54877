//! Computed prefixes that survive a restart (`cache.prefixes`), with the real small model.
//!
//! Mutations that these tests catch: `load_and_serve` without `archive_all`, or the engine's part
//! without `await_end`, `Folder::find` for any tenant, `erase` without its mark
//! (`restarted_daemon_goes_on_...`); `Origin` without the type of keys and values or the model,
//! `read_state` without its checksum (`damaged_prefix_...`).

#![cfg(feature = "llama")]

mod common;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use autoglmd::limits::prefixes::{DRAIN_TIME_MAX, LOAD_PATIENCE};
use serde_json::{Value, json};

use common::{Daemon, Options, eventually, model, request};

fn options() -> Options {
    Options::llama()
        .set_raw("engine.parallel", "2")
        .set_raw("engine.context", "1536")
        .set("cache.prefixes", "64MiB")
}

/// A program that the prompt shows: about 700 tokens.
fn body(lines: usize, question: &str) -> Value {
    let lines = (0..lines).map(|line| format!("def f{line}(x):\n    return x + {line}\n"));
    json!({
        "prompt": question,
        "language": "python",
        "context": [{"path": "f.py", "text": lines.collect::<String>()}],
        "max_tokens": 16,
        "temperature": 0,
        "cache": "bypass",
    })
}

/// A daemon, and the key that its first start has shown.
struct Served {
    daemon: Daemon,
    key: String,
}

impl Served {
    fn start(options: Options) -> Served {
        let daemon = options.start();
        let key = daemon.key().to_owned();
        Served { daemon, key }
    }

    /// Drains the daemon, and starts another one over its files.
    fn restart(mut self, options: Options) -> Served {
        self.end();
        self.next(options)
    }

    /// Starts another daemon over the files of one that has ended.
    fn next(&self, options: Options) -> Served {
        let daemon = options.in_folder(self.daemon.folder()).start();
        let key = self.key.clone();
        Served { daemon, key }
    }

    /// Drains the daemon, and returns how long that took.
    fn end(&mut self) -> Duration {
        let start = Instant::now();
        self.daemon.process().signal(libc::SIGTERM);
        assert!(self.daemon.wait().success());
        start.elapsed()
    }

    /// Drains the daemon until there are so many files. A round that leaves too few has taken all
    /// the time that a drain has for the disk: a busy machine is slow for seconds. Another daemon
    /// then asks for them again.
    fn end_with(mut self, files: usize, options: fn() -> Options, ask: impl Fn(&Served)) -> Served {
        for _ in 0..ROUNDS {
            let elapsed = self.end();
            let left = self.files().len();
            if left == files {
                return self;
            }
            assert!(elapsed >= DRAIN_TIME_MAX, "{left} files after {elapsed:?}");
            self = self.next(options());
            ask(&self);
        }
        panic!("a drain did not leave {files} files in any of {ROUNDS} rounds");
    }

    /// Asks for something whose prefix has a file, and returns the daemon that has used the file.
    /// One that does not has waited for the disk as long as it may; another one is then asked.
    fn find(mut self, options: fn() -> Options, body: &Value, text: &str) -> Served {
        for _ in 0..ROUNDS {
            self.wait_until_it_knows_its_files();
            let start = Instant::now();
            let (again, cached) = self.ask(body);
            let elapsed = start.elapsed();
            assert_eq!(again, text, "the output is the same");
            if cached > OWN_TOKENS_MAX {
                return self;
            }
            let what = format!("{cached} tokens were there after {elapsed:?}");
            assert!(elapsed >= LOAD_PATIENCE, "{what}");
            self = self.restart(options());
        }
        panic!("the file was not read in time in any of {ROUNDS} rounds");
    }

    /// A thread of low priority reads the folder after the start.
    fn wait_until_it_knows_its_files(&self) {
        self.daemon.wait_for_log(0, " prefixes, ");
    }

    fn ask(&self, body: &Value) -> (String, u64) {
        self.ask_with(&self.key, body)
    }

    /// Returns the text, and how many tokens of the prompt were there.
    fn ask_with(&self, key: &str, body: &Value) -> (String, u64) {
        let authorization = format!("Bearer {key}");
        let fields = [
            ("authorization", authorization.as_str()),
            ("content-type", "application/json"),
        ];
        let body = body.to_string();
        let bytes = request("POST", "/api/v1/generate", &fields, body.as_bytes());
        let mut connection = self.daemon.connect();
        connection.set_read_timeout(Duration::from_secs(600));
        let response = connection.exchange(&bytes).expect(200).json();
        let cached = response.pointer("/usage/prompt_tokens_details/cached_tokens");
        let text = response["code"].as_str().or(response["text"].as_str());
        let text = text.map_or_else(|| response["choices"].to_string(), str::to_owned);
        (text, cached.and_then(Value::as_u64).expect("a usage"))
    }

    fn files(&self) -> Vec<PathBuf> {
        let items = std::fs::read_dir(self.daemon.state_folder().join("prefixes"));
        let paths = items.expect("the folder").map(|item| item.unwrap().path());
        paths
            .filter(|path| path.extension().is_some_and(|end| end == "kv"))
            .collect()
    }
}

/// Rounds in which the disk may be in time.
const ROUNDS: usize = 5;

/// Own words of the daemon, which every tenant shares, have fewer tokens.
const OWN_TOKENS_MAX: u64 = 200;

#[test]
fn restarted_daemon_goes_on_from_a_prefix_for_its_key_alone() {
    let asked = body(28, "add two numbers");
    let first = Served::start(options());
    let (text, cached) = first.ask(&asked);
    assert_eq!(cached, 0);
    let first = first.end_with(1, options, |daemon| {
        assert_eq!(daemon.ask(&asked).0, text);
    });
    let second = first.next(options()).find(options, &asked, &text);
    let output = second.daemon.run(&["key", "create", "--name", "other"]);
    let other = String::from_utf8(output.stdout).expect("a key");
    let verdict = |verdict| {
        let labels = [("level", "prefix"), ("verdict", verdict)];
        second.daemon.metrics().sum("autoglmd_cache_total", &labels)
    };
    assert_eq!((verdict("hit"), verdict("miss")), (1.0, 0.0));
    wait_for_key(&second.daemon, other.trim());
    let (of_other, cached) = second.ask_with(other.trim(), &asked);
    assert_eq!(of_other, text);
    assert!(cached < OWN_TOKENS_MAX, "{cached} tokens of another key");
    assert_eq!((verdict("hit"), verdict("miss")), (1.0, 1.0));
    // The other key's prefix gets a file of its own. Erasing one key leaves the other one's.
    let second = second.end_with(2, options, |daemon| {
        assert_eq!(daemon.ask_with(other.trim(), &asked).0, text);
    });
    let third = second.next(options());
    let tenant = autoglmd::keys::tenant_of(&id_of(&third.daemon, "other"));
    let erased = autoglmd::engine::prefixes::erase(&third.daemon.state_folder(), tenant);
    assert_eq!(erased.expect("the folder can be written"), 1);
    let (_, cached) = third.ask_with(other.trim(), &asked);
    assert!(cached < OWN_TOKENS_MAX, "{cached} tokens of an erased key");
    let fourth = third.restart(options());
    // What it has computed since was not written, or goes when the folder is read.
    eventually("the erased key has no file", || {
        (fourth.files().len() == 1).then_some(())
    });
    fourth.find(options, &asked, &text);
}

#[test]
fn damaged_prefix_or_one_of_another_engine_is_computed_again() {
    let asked = body(28, "multiply two numbers");
    let first = Served::start(options());
    let (text, _) = first.ask(&asked);
    let ask = |daemon: &Served| assert_eq!(daemon.ask(&asked).0, text);
    let first = first.end_with(1, options, ask);
    let path = first.files().remove(0);
    let mut bytes = std::fs::read(&path).expect("the file");
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&path, bytes).expect("the file can be written");
    let events = |served: &Served, event: &str| {
        let metrics = served.daemon.metrics();
        metrics.sum("autoglmd_engine_prefix_files_total", &[("event", event)])
    };
    let is_removed = |served: &Served, event: &str| {
        // It is counted first.
        eventually("the file is removed", || {
            (events(served, event) == 1.0 && served.files().is_empty()).then_some(())
        });
    };
    let mut second = first.next(options());
    for round in 1.. {
        second.wait_until_it_knows_its_files();
        let start = Instant::now();
        let (of_damaged, cached) = second.ask(&asked);
        let elapsed = start.elapsed();
        assert_eq!(of_damaged, text);
        assert!(cached < OWN_TOKENS_MAX, "{cached} tokens of a damaged file");
        if events(&second, "damaged") == 1.0 {
            break;
        }
        // The engine has not waited for the end of the file.
        assert!(elapsed >= LOAD_PATIENCE && round < ROUNDS, "{elapsed:?}");
        second = second.restart(options());
    }
    is_removed(&second, "damaged");
    // Written again at its end.
    let second = second.end_with(1, options, ask);
    let f16 = || options().set("engine.kv_type", "f16");
    let other_type = second.next(f16());
    is_removed(&other_type, "foreign");
    assert!(other_type.ask(&asked).1 < OWN_TOKENS_MAX);
    let other_type = other_type.end_with(1, f16, |daemon| _ = daemon.ask(&asked));
    let folder = other_type.daemon.folder();
    let optimized = folder.path().join("optimized.gguf");
    autoglmd::engine::optimize(model::path(), &optimized).expect("another model");
    let other_model = f16().set("engine.model", optimized.to_str().expect("plain"));
    let other_model = other_type.next(other_model);
    is_removed(&other_model, "foreign");
}

/// Mutation that this test catches: `serve` that does not wake for a sequence that rests.
#[test]
fn killed_daemon_has_kept_the_prompts_that_rested() {
    let asked = body(28, "divide two numbers");
    let mut first = Served::start(options());
    let (text, _) = first.ask(&asked);
    eventually("the prompt is written", || {
        (first.files().len() == 1).then_some(())
    });
    first.daemon.kill();
    first.next(options()).find(options, &asked, &text);
}

/// Mutations that this test catches: `keep` of the engine's part that does not ask whether the time
/// is over; `archive_all` that does not.
#[test]
fn drain_with_no_time_left_keeps_no_prefix() {
    let mut served = Served::start(options().set("server.drain_timeout", "0s"));
    served.ask(&body(28, "subtract two numbers"));
    served.end();
    assert!(served.files().is_empty());
}

/// Without `cache.prefixes`. Mutations that this test catches: `keep_prefix` that hands nothing on,
/// `use_own_words` that takes nothing.
#[test]
fn own_words_come_from_the_disk_after_a_restart() {
    let options = || Options::llama().set_raw("cache.preload", "false");
    let own = |served: &Served| served.daemon.state_folder().join("prefixes/own");
    let files = |served: &Served| {
        let items = std::fs::read_dir(own(served)).expect("the folder");
        let paths = items.map(|item| item.expect("an entry").path());
        // One that is being written has another suffix.
        paths
            .filter(|path| path.extension().is_some_and(|suffix| suffix == "kv"))
            .count()
    };
    // Returns how many tokens of the prompts were there, and how many were computed.
    let ask = |served: &Served| {
        let cached = ["c", "python", "rust"].map(|language| {
            let asked = json!({ "prompt": "add", "language": language, "max_tokens": 1 });
            served.ask(&asked).1
        });
        // The engine counts a token after it has sent it.
        let (computed, _) = eventually("the tokens are counted", || {
            let metrics = served.daemon.metrics();
            let tokens = |kind| metrics.sum("autoglmd_tokens_total", &[("kind", kind)]);
            let computed = tokens("prompt") - tokens("prompt_cached");
            (tokens("generated") >= 3.0).then_some(computed)
        });
        (cached, computed)
    };
    let first = Served::start(options());
    let (cached, computed) = ask(&first);
    eventually("three files are written", || {
        (files(&first) == 3).then_some(())
    });
    let second = first.restart(options());
    let (again, computed_again) = ask(&second);
    let more = |index: usize| again[index] as f64 - cached[index] as f64;
    assert!(
        (0..3).all(|index| more(index) > 0.0),
        "{cached:?}, {again:?}"
    );
    assert_eq!(computed - computed_again, (0..3).map(more).sum::<f64>());
    assert_eq!(files(&second), 3, "none is written again");
}

/// Mutations that this test catches: a share that does not depend on `store.max_size`, `bytes` that
/// leaves the folder out.
#[test]
fn own_words_stay_within_their_share_of_the_folder() {
    let options = |size: &str| {
        let options = Options::llama().set_raw("cache.preload", "false");
        options.set("store.max_size", size)
    };
    let own = |served: &Served| -> Vec<u64> {
        let folder = served.daemon.state_folder().join("prefixes/own");
        let items = std::fs::read_dir(folder).expect("the folder").flatten();
        let files = items.filter(|item| item.path().extension().is_some_and(|it| it == "kv"));
        files
            .map(|item| item.metadata().map_or(0, |file| file.len()))
            .collect()
    };
    let languages = ["c", "go", "java", "kotlin", "python", "rust"];
    let first = Served::start(options("1GiB"));
    for language in languages {
        first.ask(&json!({ "prompt": "add", "language": language, "max_tokens": 1 }));
    }
    eventually("the files are written", || {
        (own(&first).len() == languages.len()).then_some(())
    });
    assert!(own(&first).iter().sum::<u64>() > 1 << 20);
    let second = first.restart(options("16MiB"));
    second.ask(&json!({ "prompt": "add", "language": "c", "max_tokens": 1 }));
    let of = |name: &str| second.daemon.metrics().sum(name, &[("part", "own_words")]);
    assert_eq!(of("autoglmd_state_limit_bytes"), f64::from(1 << 20));
    let bytes: u64 = own(&second).iter().sum();
    assert!(bytes > 0 && bytes <= 1 << 20, "{bytes}");
    eventually("they are measured", || {
        // The secret that their names are made with has 32 bytes.
        (of("autoglmd_state_bytes") >= bytes as f64).then_some(())
    });
}

/// Returns the id of the key with this name.
fn id_of(daemon: &Daemon, name: &str) -> String {
    let output = daemon.run(&["key", "list", "--json"]);
    let text = String::from_utf8(output.stdout).expect("text");
    let list: Value = serde_json::from_str(&text).expect("JSON");
    let list = list.as_array().or_else(|| list["data"].as_array());
    let mut keys = list.expect("a list").iter();
    let key = keys.find(|key| key["name"] == name).expect("the key");
    key["id"].as_str().expect("an id").to_owned()
}

fn wait_for_key(daemon: &Daemon, key: &str) {
    let authorization = format!("Bearer {key}");
    let fields = [("authorization", authorization.as_str())];
    let bytes = request("GET", "/api/v1/languages", &fields, b"");
    eventually("the key is known", || {
        (daemon.exchange(&bytes).status() == 200).then_some(())
    });
}

/// Prints the time to the end of a one-token output after a restart, with and without prefixes.
#[test]
#[ignore = "measures; docs/benchmarks.md has the command"]
fn measure_a_long_context_after_a_restart() {
    let options = |size: &str| {
        Options::llama()
            .set_raw("engine.parallel", "2")
            .set_raw("engine.context", "4096")
            .set("limits.default_request_timeout", "10m")
            .set("cache.prefixes", size)
    };
    let mut asked = body(138, "add two numbers");
    asked["max_tokens"] = 1.into();
    let timed = |served: &Served| {
        let start = Instant::now();
        let (_, cached) = served.ask(&asked);
        (start.elapsed(), cached)
    };
    println!("model {}", model::path().display());
    let mut with = Served::start(options("1GiB"));
    println!("first, computed: {:?}", timed(&with));
    let mut without = Served::start(options("0"));
    for _ in 0..3 {
        with = with.restart(options("1GiB"));
        without = without.restart(options("0"));
        let (kept, cached) = timed(&with);
        let (computed, _) = timed(&without);
        let ratio = computed.as_secs_f64() / kept.as_secs_f64();
        println!("with: {kept:.2?}, {cached} tokens; without: {computed:.2?}; ratio {ratio:.0}");
    }
    let files = with.files();
    let bytes = files
        .iter()
        .map(|path| path.metadata().expect("a file").len());
    let mebibytes = bytes.sum::<u64>() as f64 / f64::from(1 << 20);
    println!("file: {mebibytes:.1} MiB");
}

/// Prints the longest pause of a stream: alone, beside a load, and beside a save.
#[test]
#[ignore = "measures; docs/benchmarks.md has the command"]
fn measure_the_pause_of_a_stream_beside_copies() {
    let options = || {
        Options::llama()
            .set_raw("engine.parallel", "2")
            .set_raw("engine.context", "4096")
            .set("limits.default_request_timeout", "10m")
            .set("log.level", "debug")
            .set("cache.prefixes", "1GiB")
    };
    let long = |question: &str| {
        let mut asked = body(138, question);
        asked["max_tokens"] = 1.into();
        asked
    };
    let short = json!({ "prompt": "add", "max_tokens": 1, "cache": "bypass" });
    let mut served = Served::start(options());
    println!("model {}", model::path().display());
    served.ask(&long("add two numbers"));
    for round in 0..3 {
        served = served.restart(options());
        let other = || served.ask(&short);
        let (alone, beside) = pauses(&served, other);
        println!("{round}: alone {alone:.1?}, beside a short prompt {beside:.1?}");
        let (_, beside) = pauses(&served, || served.ask(&long("add two numbers")));
        println!("{round}: beside a load {beside:.1?}");
        // Another prompt is computed, and the next one takes its slot.
        let mut other = long(&format!("round {round}"));
        other["context"][0]["path"] = format!("{round}.py").into();
        served.ask(&other);
        let (_, beside) = pauses(&served, || served.ask(&short));
        println!("{round}: beside a save {beside:.1?}");
        let lines = served.daemon.log_lines();
        let copies = lines.iter().filter(|line| line.contains("of a sequence"));
        copies.for_each(|line| println!("{line}"));
    }
}

/// Returns the longest times between two tokens of a stream, before and while `other` runs.
fn pauses<T: Send>(served: &Served, other: impl FnOnce() -> T + Send) -> (Duration, Duration) {
    let asked = json!({
        "prompt": "Write a very long program with many classes and comments",
        "language": "python", "max_tokens": 3_000, "stream": true, "temperature": 2.0,
        "timeout": 600_000, "cache": "bypass",
    });
    let mut stream = served.daemon.connect();
    stream.set_read_timeout(Duration::from_secs(600));
    stream.send(&served.daemon.generate_request(&asked));
    assert_eq!(stream.head().expect("a head").status, 200);
    let mut events = stream.events();
    let mut last = None;
    let mut gap = || {
        let event = events.next().expect("a stream").expect("it goes on");
        assert_eq!(event.name, "delta", "the stream is long enough");
        let now = Instant::now();
        let gap = last.map(|last: Instant| now.duration_since(last));
        last = Some(now);
        gap.unwrap_or_default()
    };
    let before = (0..40).map(|_| gap()).max().expect("some");
    let during = std::thread::scope(|scope| {
        let other = scope.spawn(other);
        let mut longest = Duration::ZERO;
        while !other.is_finished() {
            longest = longest.max(gap());
        }
        (0..5).map(|_| gap()).fold(longest, Duration::max)
    });
    (before, during)
}
