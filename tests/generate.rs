//! The real engine with the real small model, through the whole daemon.
//!
//! The tests take turns: most of them measure, and a model on two cores is slow enough alone. One
//! daemon serves all tests that leave it as they found it.

#![cfg(feature = "llama")]

mod common;

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use common::crowd::crowd;
use common::{Connection, Daemon, Options, eventually, model, python, request};

fn shared() -> &'static Daemon {
    Daemon::shared(Options::llama)
}

fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    // A failed test leaves nothing behind that would harm the next.
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

// ---- what users do ---------------------------------------------------------------------------

/// The client in the README, word for word except for the address and the key.
#[test]
fn original_python_client_prints_python_that_parses() {
    let _turn = turn();
    let daemon = shared();
    let readme = include_str!("../README.md");
    let client = readme
        .split("```python\n")
        .nth(1)
        .and_then(|rest| rest.split("```").next())
        .expect("the README shows the client");
    assert!(client.contains("http://localhost:8080") && client.contains("YOUR_API_KEY"));
    let client = client
        .replace("localhost:8080", &daemon.address().to_string())
        .replace("YOUR_API_KEY", daemon.key());
    let output = Command::new(python::interpreter())
        .args(["-c", &client])
        .env("PYTHONIOENCODING", "utf-8")
        .output()
        .expect("the interpreter runs");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{printed}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_parses(&printed);
}

#[test]
fn three_languages_are_written_streamed_and_not() {
    let _turn = turn();
    let daemon = shared();
    for (language, prompt) in [
        ("python", "a function that reverses a string"),
        ("javascript", "a function that adds two numbers"),
        ("rust", "a function that returns the larger of two integers"),
    ] {
        let mut body = json!({"prompt": prompt, "language": language, "max_tokens": 160});
        let whole = daemon.generate(&body).expect(200).json();
        body["stream"] = json!(true);
        let (streamed, done) = stream(daemon, &body);
        assert_eq!(done["code"], streamed, "the deltas are the program");
        assert_eq!(whole["code"], streamed, "greedy: the same, streamed or not");
        assert_eq!(whole["text"], done["text"]);
        assert_eq!(whole["language"], language);
        let code = whole["code"].as_str().expect("code");
        assert!(!code.trim().is_empty() && !code.contains("```"), "{code}");
        if language == "python" && whole["finish_reason"] == "stop" {
            assert_parses(code);
        }
    }
}

#[test]
fn answer_is_bounded_by_max_tokens_and_ends_before_a_stop_string() {
    let _turn = turn();
    let daemon = shared();
    let prompt = "a function that reverses a string";
    let ask = |more: Value| {
        let mut body = json!({"prompt": prompt, "language": "python"});
        body.as_object_mut()
            .expect("an object")
            .extend(more.as_object().expect("one").clone());
        daemon.generate(&body).expect(200).json()
    };
    let short = ask(json!({"max_tokens": 5}));
    assert_eq!(short["finish_reason"], "length");
    assert_eq!(short["usage"]["completion_tokens"], 5);
    let stopped = ask(json!({"stop": ["return"], "max_tokens": 100}));
    assert_eq!(stopped["finish_reason"], "stop");
    assert!(!stopped["text"].as_str().expect("text").contains("return"));
}

#[test]
fn same_seed_leads_to_the_same_output_and_another_seed_to_another() {
    let _turn = turn();
    let daemon = shared();
    let with_seed = |seed: u32| {
        let body = json!({"prompt": "tell a story", "temperature": 1.5, "seed": seed,
                          "max_tokens": 24});
        daemon.generate(&body).expect(200).json()["text"].clone()
    };
    assert_eq!(with_seed(7), with_seed(7));
    let texts: Vec<Value> = (0..4).map(with_seed).collect();
    assert!(texts.iter().any(|text| *text != texts[0]), "{texts:?}");
}

#[test]
fn greedy_output_does_not_depend_on_other_requests() {
    let _turn = turn();
    let daemon = shared();
    let body = |number: usize| {
        json!({"prompt": format!("a function that multiplies its argument by {number}"),
               "language": "python", "max_tokens": 48})
    };
    let ask = |number| daemon.generate(&body(number)).expect(200).json()["text"].clone();
    let alone: Vec<Value> = (0..8).map(ask).collect();
    let together = std::thread::scope(|scope| {
        let asking: Vec<_> = (0..8)
            .map(|number| scope.spawn(move || ask(number)))
            .collect();
        let answers = asking
            .into_iter()
            .map(|thread| thread.join().expect("an answer"));
        answers.collect::<Vec<Value>>()
    });
    assert_eq!(alone, together);
}

#[test]
fn prompt_beyond_the_context_is_refused_with_the_numbers() {
    let _turn = turn();
    let daemon = shared();
    let prompt = "number ".repeat(60_000);
    let answer = daemon.generate(&json!({ "prompt": prompt }));
    let answer = answer.expect_error(400, "context_length_exceeded");
    let message = answer.json()["error"]["message"].to_string();
    assert!(
        message.chars().any(|character| character.is_ascii_digit()),
        "{message}"
    );
}

// ---- clients that leave ----------------------------------------------------------------------

#[test]
fn leaving_during_a_long_prompt_frees_the_engine_and_a_retry_finds_the_prefix() {
    let _turn = turn();
    let daemon = shared();
    let mut times = Vec::new();
    for attempt in 0..5 {
        wait_until_idle(daemon);
        let body = json!({"prompt": long_prompt(attempt), "max_tokens": 4});
        let before = tokens(daemon, "prompt_cached");
        let computed = tokens(daemon, "prompt");
        let mut connection = daemon.connect();
        connection.send(&daemon.generate_request(&body));
        // A part of the prompt, and by far not all of it. On a busy machine the first step has only
        // a few tokens.
        eventually("a part of the prompt is computed", || {
            (tokens(daemon, "prompt") >= computed + 64.0).then_some(())
        });
        times.push(leave(daemon, connection));
        daemon.generate(&body).expect(200);
        let kept = tokens(daemon, "prompt_cached") - before;
        // More than the server's own prompt, which any request finds.
        assert!(kept >= 32.0, "the retry found {kept} tokens computed");
    }
    assert_best(times, Duration::from_millis(200));
}

#[test]
fn leaving_during_a_long_answer_frees_the_engine() {
    let _turn = turn();
    let daemon = shared();
    let mut times = Vec::new();
    for attempt in 0..5 {
        wait_until_idle(daemon);
        let mut connection = daemon.connect();
        connection.send(&daemon.generate_request(&long_answer(attempt)));
        connection.head().expect("a head");
        for _ in 0..3 {
            connection
                .events()
                .next()
                .expect("a stream")
                .expect("a delta");
        }
        times.push(leave(daemon, connection));
    }
    assert_best(times, Duration::from_millis(200));
    let cancelled = daemon.metrics();
    assert!(cancelled.sum("autoglmd_cancelled_total", &[("reason", "disconnect")]) >= 5.0);
}

#[test]
fn leaving_a_request_that_is_not_streamed_frees_the_engine() {
    let _turn = turn();
    let daemon = shared();
    let mut times = Vec::new();
    for attempt in 100..103 {
        wait_until_idle(daemon);
        let mut body = long_answer(attempt);
        body["stream"] = json!(false);
        let mut connection = daemon.connect();
        connection.send(&daemon.generate_request(&body));
        wait_until_running(daemon);
        times.push(leave(daemon, connection));
    }
    assert_best(times, Duration::from_millis(200));
}

/// Clients that are gone must not be served from the queue either.
#[test]
fn clients_that_leave_the_queue_are_never_computed() {
    let _turn = turn();
    let daemon = Options::llama()
        .argument("--parallel")
        .argument("1")
        .start();
    let mut running = daemon.connect();
    running.send(&daemon.generate_request(&long_answer(0)));
    wait_until_running(&daemon);
    let waiting: Vec<Connection> = (0..20)
        .map(|number| {
            let mut connection = daemon.connect();
            connection.send(&daemon.generate_request(&json!({"prompt": long_prompt(number)})));
            connection
        })
        .collect();
    eventually("twenty wait", || {
        (daemon.metrics().value("autoglmd_engine_queue_depth") >= 20.0).then_some(())
    });
    let before = tokens(&daemon, "prompt");
    drop(waiting);
    drop(running);
    wait_until_idle(&daemon);
    // Their prompts are twenty times as long.
    let computed = tokens(&daemon, "prompt") - before;
    assert!(
        computed < 1_000.0,
        "{computed} prompt tokens were computed for clients that had left"
    );
}

#[test]
fn interrupted_command_line_client_stops_the_work() {
    let _turn = turn();
    let daemon = shared();
    wait_until_idle(daemon);
    let url = format!("http://{}", daemon.address());
    // A test run in the background may have SIGINT ignored, and children inherit that.
    let mut client = Command::new("env")
        .args([
            "--default-signal=INT",
            env!("CARGO_BIN_EXE_autoglmd"),
            "generate",
            "write a very long program",
            "--stream",
            "--url",
            &url,
        ])
        .args(["--key", daemon.key()])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the binary was built for this test");
    wait_until_running(daemon);
    let disconnected = || {
        let reason = [("reason", "disconnect")];
        daemon.metrics().sum("autoglmd_cancelled_total", &reason)
    };
    let before = disconnected();
    common::process::Process(client.id()).signal(libc::SIGINT);
    wait_until_idle(daemon);
    let status = client.wait().expect("the child is ours");
    // The work was stopped before its end.
    assert_eq!(disconnected() - before, 1.0);
    assert!(!status.success());
}

// ---- deadlines and crowds --------------------------------------------------------------------

#[test]
fn deadline_ends_the_work_and_the_response_has_the_partial_text() {
    let _turn = turn();
    let daemon = shared();
    wait_until_idle(daemon);
    let mut body = long_answer(200);
    body["stream"] = json!(false);
    body["timeout"] = json!(3_000);
    let before = tokens(daemon, "generated");
    let start = Instant::now();
    let answer = daemon
        .generate(&body)
        .expect_error(504, "generation_timeout");
    let elapsed = start.elapsed();
    assert!(elapsed >= Duration::from_millis(2_700), "{elapsed:?}");
    let partial = answer.json()["error"]["partial"].to_string();
    assert!(partial.len() > 10, "{answer}");
    assert!(answer.field("retry-after").is_some(), "{answer}");
    wait_until_idle(daemon);
    let generated = tokens(daemon, "generated") - before;
    assert!(generated < 1_500.0, "all {generated} tokens were generated");
}

#[test]
fn concurrency_of_a_key_is_counted_until_the_work_has_ended() {
    let _turn = turn();
    let daemon = Options::llama()
        .set_raw("rate_limit.enabled", "true")
        .set_raw("rate_limit.concurrency", "1")
        .start();
    let mut running = daemon.connect();
    running.send(&daemon.generate_request(&long_answer(0)));
    running.head().expect("a head");
    let answer = daemon.generate(&json!({"prompt": "hello", "max_tokens": 2}));
    let answer = answer.expect_error(429, "too_many_concurrent");
    assert!(answer.field("retry-after").is_some(), "{answer}");
    drop(running);
    eventually("the place is free again", || {
        let answer = daemon.generate(&json!({"prompt": "hello", "max_tokens": 2}));
        (answer.status() == 200).then_some(())
    });
}

/// Health checks must get a response while every sequence is busy: orchestrators kill a silent
/// process.
#[test]
fn full_queue_refuses_within_milliseconds_and_health_answers_throughout() {
    const TIMEOUT: Duration = Duration::from_secs(20);
    let _turn = turn();
    let daemon = Options::llama().set_raw("engine.queue", "64").start();
    daemon
        .generate(&json!({"prompt": "warm up", "max_tokens": 8}))
        .expect(200);
    let (answers, health) = crowd(&daemon, 300, |number| {
        let prompt = format!("count to {number}");
        // No place is free again before all have come.
        json!({"prompt": prompt, "max_tokens": 64, "timeout": TIMEOUT.as_millis() as u64})
    });
    let (mut refusal_times, mut answer_times) = (Vec::new(), Vec::new());
    for (answer, elapsed) in &answers {
        match answer.status() {
            200 => answer_times.push(*elapsed),
            503 | 504 => {
                let wait = answer
                    .field("retry-after")
                    .and_then(|wait| wait.parse::<u64>().ok());
                assert!(wait.is_some_and(|seconds| seconds >= 1), "{answer}");
                if answer.status() == 503 {
                    refusal_times.push(*elapsed);
                }
            }
            other => panic!("{other}: {answer}"),
        }
    }
    assert!(
        refusal_times.len() >= 200,
        "{} refusals for 80 places",
        refusal_times.len()
    );
    // A machine with other work may delay some of three hundred clients, but not all. A client that
    // had to wait for a sequence to end would wait as long as one that was served.
    refusal_times.sort();
    let quick = refusal_times[refusal_times.len() / 10];
    assert!(
        quick < Duration::from_millis(100),
        "a tenth within {quick:?}"
    );
    let median = refusal_times[refusal_times.len() / 2];
    let served = answer_times.into_iter().min();
    let served = served.unwrap_or(TIMEOUT);
    assert!(
        median < served,
        "{median:?} to refuse, {served:?} to answer"
    );
    health.check();
    wait_until_idle(&daemon);
    daemon
        .generate(&json!({"prompt": "still there?", "max_tokens": 4}))
        .expect(200);
}

/// The daemon promises five hundred at once; `AUTOGLMD_TEST_CROWD` asks for more or less. What is
/// tested is the crowd and not the length of its programs: at 32 tokens each they were 17,000 in
/// all, two minutes on two idle cores and more than seven on cores that compilers share. At four
/// tokens most of the time goes to reading the prompts.
#[test]
fn crowd_with_patience_is_served_to_the_last_one() {
    let _turn = turn();
    let chosen = std::env::var("AUTOGLMD_TEST_CROWD").ok();
    let count = chosen.map_or(500, |text| {
        text.parse().expect("AUTOGLMD_TEST_CROWD is a number")
    });
    let daemon = Options::llama()
        .argument("--parallel")
        .argument("16")
        .set_raw("engine.queue", "1024")
        .set("limits.max_request_timeout", "1h")
        .start();
    let body = |number: usize| {
        json!({"prompt": format!("add {number}"), "language": "python", "max_tokens": 4,
               "timeout": 3_000_000})
    };
    crowd(&daemon, 32, body);
    let process = daemon.process();
    let before = (
        process.anonymous_bytes(),
        process.threads(),
        process.descriptors(),
    );
    let start = Instant::now();
    let (answers, health) = crowd(&daemon, count, body);
    for (answer, _) in &answers {
        assert_eq!(answer.status(), 200, "{answer}");
    }
    assert_eq!(answers.len(), count);
    eprintln!(
        "{count} requests at once took {:?}; {health}",
        start.elapsed()
    );
    health.check();
    wait_until_idle(&daemon);
    let grown = process.anonymous_bytes().saturating_sub(before.0);
    assert!(grown < 32 << 20, "memory grew by {grown} bytes");
    assert_eq!(process.threads(), before.1);
    // The connection of the last request for the metrics may be open for a moment longer.
    eventually("all descriptors are closed", || {
        (process.descriptors() <= before.2).then_some(())
    });
}

// ---- the end of a daemon that is at work -----------------------------------------------------

#[test]
fn drain_lets_running_requests_end_and_accepts_no_new_ones() {
    let _turn = turn();
    let mut daemon = Options::llama().start();
    let mut other = daemon.connect();
    other
        .exchange(&request("GET", "/readyz", &[], b""))
        .expect(200);
    let mut running = daemon.connect();
    let body = json!({"prompt": "write a long program", "max_tokens": 200, "stream": true});
    running.send(&daemon.generate_request(&body));
    running.head().expect("a head");
    let position = daemon.log_position();
    daemon.process().signal(libc::SIGTERM);
    daemon.wait_for_log(position, "drain");
    // A connected client gets a response, or finds the connection closed; no new connection is
    // accepted.
    let sent = other.try_send(&request("GET", "/readyz", &[], b""));
    if let Ok(answer) = sent.and_then(|()| other.try_answer()) {
        assert_eq!(answer.status(), 503, "{answer}");
    }
    eventually("the daemon does not listen any more", || {
        Connection::tcp(daemon.address()).err()
    });
    let events = running.events().all();
    assert_eq!(events.last().map(|event| event.name.as_str()), Some("done"));
    assert_eq!(running.until_closed(), b"");
    assert_eq!(daemon.wait().code(), Some(0));
}

#[test]
fn patience_of_the_drain_is_bounded_and_a_second_term_ends_it() {
    let _turn = turn();
    for second_signal in [false, true] {
        let patience = if second_signal { "10m" } else { "500ms" };
        let mut daemon = Options::llama()
            .set("server.drain_timeout", patience)
            .start();
        let mut running = daemon.connect();
        let mut body = model::endless("count to a thousand");
        body["stream"] = json!(true);
        running.send(&daemon.generate_request(&body));
        running.head().expect("a head");
        let position = daemon.log_position();
        daemon.process().signal(libc::SIGTERM);
        daemon.wait_for_log(position, "drain");
        if second_signal {
            daemon.process().signal(libc::SIGTERM);
        }
        // A stream that was waited for would end with `done`.
        let rest = String::from_utf8_lossy(&running.until_closed()).into_owned();
        assert!(!rest.contains("event: done"), "{rest}");
        daemon.wait();
    }
}

// ---- helpers ---------------------------------------------------------------------------------

/// About a thousand tokens, different ones for each number.
fn long_prompt(number: usize) -> String {
    let lines = (0..60).map(|line| {
        format!("value_{number}_{line} = compute(first={line}, second={number}, third=true)\n")
    });
    format!("Explain program {number}:\n{}", lines.collect::<String>())
}

/// At this temperature the model babbles, and its end is one token among many thousands.
fn long_answer(number: usize) -> Value {
    json!({"prompt": format!("Write a very long program with {number} classes and comments"),
           "language": "python",
           "max_tokens": 1_500, "stream": true, "temperature": 2.0, "seed": number,
           "timeout": 120_000})
}

fn stream(daemon: &Daemon, body: &Value) -> (String, Value) {
    let mut connection = daemon.connect();
    connection.send(&daemon.generate_request(body));
    assert_eq!(connection.head().expect("a head").status, 200);
    let events = connection.events().all();
    let (done, deltas) = events.split_last().expect("events");
    assert_eq!(done.name, "done", "{done:?}");
    let mut text = String::new();
    for delta in deltas {
        assert_eq!(delta.name, "delta");
        text.push_str(delta.json()["text"].as_str().expect("text"));
    }
    assert!(
        deltas.len() > 3,
        "an answer in {} pieces is no stream",
        deltas.len()
    );
    (text, done.json())
}

fn assert_parses(code: &str) {
    assert!(!code.trim().is_empty(), "no code");
    let mut child = Command::new(python::interpreter())
        .args(["-c", "import ast, sys; ast.parse(sys.stdin.buffer.read())"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the interpreter runs");
    let mut stdin = child.stdin.take().expect("stdin is piped");
    stdin
        .write_all(code.as_bytes())
        .expect("the interpreter reads");
    drop(stdin);
    let output = child.wait_with_output().expect("the child is ours");
    assert!(
        output.status.success(),
        "Python does not parse this:\n{code}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn tokens(daemon: &Daemon, kind: &str) -> f64 {
    daemon
        .metrics()
        .sum("autoglmd_tokens_total", &[("kind", kind)])
}

fn wait_until_running(daemon: &Daemon) {
    eventually("a sequence runs", || {
        (daemon.metrics().value("autoglmd_engine_sequences_running") > 0.0).then_some(())
    });
}

fn wait_until_idle(daemon: &Daemon) -> Duration {
    let ((), elapsed) = eventually("the engine is idle", || {
        let metrics = daemon.metrics();
        let busy = metrics.value("autoglmd_engine_sequences_running")
            + metrics.value("autoglmd_engine_queue_depth");
        (busy == 0.0).then_some(())
    });
    elapsed
}

/// Closes the connection, and returns how long the engine went on.
fn leave(daemon: &Daemon, connection: Connection) -> Duration {
    let running = daemon.metrics().value("autoglmd_engine_sequences_running");
    assert_eq!(running, 1.0, "the work ended before the client left");
    drop(connection);
    wait_until_idle(daemon)
}

/// One of a few attempts must keep the promise: a machine with other work may delay a thread in any
/// of them, but work that goes on to its end takes far longer in each.
fn assert_best(times: Vec<Duration>, bound: Duration) {
    assert!(times.iter().any(|time| *time < bound), "{times:?}");
}
