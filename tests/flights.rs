//! Equal requests at once, in all four representations, through the real binary and a real model:
//! one generation.
//!
//! Mutations that these tests catch: a digest of the form of the request
//! (`equal_requests_of_every_form_are_one_generation`), a client that leaves and takes the others'
//! job with it (`clients_that_leave_do_not_disturb_the_rest`).

#![cfg(feature = "llama")]

mod common;

use autoglmd::grpc::messages::{Message, autoglm};
use serde_json::{Value, json};

use common::http2::{Peer, Target, frame, hpack};
use common::{Connection, Daemon, Options, eventually, request};

/// Requests in each of the four representations.
const EACH: usize = 125;

/// Streams of an HTTP/2 connection.
const STREAMS: usize = 25;

/// A generation that takes some seconds: chance, with a seed, does not find an early end.
const PROMPT: &str = "write a long program";
const TOKENS: u32 = 200;

struct Crowd {
    json: Vec<Connection>,
    events: Vec<Connection>,
    protobuf: Vec<Connection>,
    /// Connections, with the streams that wait for a response.
    grpc: Vec<(Peer, Vec<u32>)>,
}

/// The parts of a result that every representation shows.
#[derive(Debug, PartialEq)]
struct Result {
    id: String,
    text: String,
    code: String,
    completion_tokens: u64,
}

/// Without preloading, which generates a token of its own for each prompt that it reads.
fn daemon() -> Daemon {
    let options = Options::llama().with_cache();
    options.set_raw("cache.preload", "false").start()
}

fn message(seed: i64) -> Vec<u8> {
    let message = autoglm::GenerateRequest {
        prompt: PROMPT.to_owned(),
        temperature: 2.0,
        seed: Some(seed),
        max_tokens: Some(TOKENS),
        timeout_ms: 600_000,
        ..autoglm::GenerateRequest::default()
    };
    message.encode_to_vec()
}

impl Crowd {
    /// Sends all requests, and reads nothing yet.
    fn send(daemon: &Daemon, seed: i64) -> Crowd {
        let mut body = json!({"prompt": PROMPT, "temperature": 2, "seed": seed,
                              "max_tokens": TOKENS, "timeout": 600_000});
        let json = daemon.generate_request(&body);
        body["stream"] = json!(true);
        let events = daemon.generate_request(&body);
        let authorization = daemon.authorization();
        let fields = [
            ("authorization", authorization.as_str()),
            ("content-type", "application/x-protobuf"),
        ];
        let protobuf = request("POST", "/api/v1/generate", &fields, &message(seed));
        let connect = |bytes: &[u8]| -> Vec<Connection> {
            let one = |_| {
                let mut connection = daemon.connect();
                connection.send(bytes);
                connection
            };
            (0..EACH).map(one).collect()
        };
        Crowd {
            grpc: (0..EACH / STREAMS).map(|_| call(daemon, seed)).collect(),
            json: connect(&json),
            events: connect(&events),
            protobuf: connect(&protobuf),
        }
    }

    fn results(&mut self) -> Vec<Result> {
        let mut results = Vec::new();
        for connection in &mut self.json {
            results.push(result_of_json(&connection.answer().expect(200).json()));
        }
        for connection in &mut self.events {
            assert_eq!(connection.head().expect("a head").status, 200);
            let events = connection.events().all();
            let done = events.last().expect("an event").json();
            results.push(result_of_json(&done));
        }
        for connection in &mut self.protobuf {
            let answer = connection.answer().expect(200);
            results.push(result_of_message(&answer.body));
        }
        for (peer, streams) in &mut self.grpc {
            for stream in streams.drain(..) {
                let answer = peer.answer(stream).expect("an answer");
                let status = ("grpc-status".to_owned(), "0".to_owned());
                assert!(answer.trailers.contains(&status), "{answer:?}");
                // A flag and a length come first.
                results.push(result_of_message(&answer.body[5..]));
            }
        }
        results
    }
}

fn streams() -> impl Iterator<Item = u32> {
    (0..STREAMS as u32).map(|index| 2 * index + 1)
}

fn call(daemon: &Daemon, seed: i64) -> (Peer, Vec<u32>) {
    let target = Target {
        post: "/AutoGLMService/Generate".to_owned(),
        ..Target::of(daemon)
    };
    let mut peer = Peer::open(&target).expect("a connection");
    let fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/AutoGLMService/Generate"),
        (":authority", "localhost"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        ("authorization", &target.authorization),
    ];
    let block = hpack::fields(&fields);
    let message = message(seed);
    let length = (message.len() as u32).to_be_bytes();
    let body = [&[0], &length[..], &message].concat();
    for stream in streams() {
        peer.headers_open(stream, &block);
        peer.data_end(stream, &body);
    }
    (peer, streams().collect())
}

fn result_of_json(object: &Value) -> Result {
    let text = |name: &str| object[name].as_str().expect("a text").to_owned();
    Result {
        id: text("id"),
        text: text("text"),
        code: text("code"),
        completion_tokens: object["usage"]["completion_tokens"]
            .as_u64()
            .expect("a number"),
    }
}

fn result_of_message(bytes: &[u8]) -> Result {
    let message = autoglm::GenerateResponse::decode(bytes).expect("a message");
    Result {
        id: message.id,
        text: message.text,
        code: message.code,
        completion_tokens: message.usage.expect("usage").completion_tokens.into(),
    }
}

/// Checks that there was one generation, and that all of these are its result.
fn check(daemon: &Daemon, results: &[Result], generations: f64) {
    for result in results {
        assert_eq!(*result, results[0]);
    }
    assert!(results[0].completion_tokens > 20, "{:?}", results[0]);
    let metrics = daemon.metrics();
    let verdict = |verdict| {
        let labels = [("level", "generation"), ("verdict", verdict)];
        metrics.sum("autoglmd_cache_total", &labels)
    };
    assert_eq!(verdict("miss"), generations);
    assert!(verdict("joined") > 0.0, "all of them came too late");
}

fn generated(daemon: &Daemon) -> f64 {
    let labels = [("kind", "generated")];
    daemon.metrics().sum("autoglmd_tokens_total", &labels)
}

/// The engine counts a token after it has sent it.
fn wait_until_generated(daemon: &Daemon, tokens: u64) {
    eventually("the tokens are counted", || {
        let counted = generated(daemon);
        assert!(counted <= tokens as f64, "{counted} of {tokens} tokens");
        (counted == tokens as f64).then_some(())
    });
}

#[test]
fn equal_requests_of_every_form_are_one_generation() {
    let daemon = daemon();
    let results = Crowd::send(&daemon, 1).results();
    assert_eq!(results.len(), 4 * EACH);
    check(&daemon, &results, 1.0);
    wait_until_generated(&daemon, results[0].completion_tokens);
}

#[test]
fn clients_that_leave_do_not_disturb_the_rest() {
    let daemon = daemon();
    let mut crowd = Crowd::send(&daemon, 2);
    // In the middle: some tokens were written.
    eventually("the first tokens", || {
        (generated(&daemon) > 5.0).then_some(())
    });
    for connections in [&mut crowd.json, &mut crowd.events, &mut crowd.protobuf] {
        connections.truncate(EACH / 2);
    }
    let mut left = 3 * EACH.div_ceil(2);
    for (peer, streams) in &mut crowd.grpc {
        for stream in streams.split_off(STREAMS / 2) {
            peer.send(frame::reset(stream, 8));
            left += 1;
        }
    }
    let results = crowd.results();
    assert_eq!(results.len(), 4 * EACH - left);
    assert!((240..=260).contains(&left));
    check(&daemon, &results, 1.0);
    wait_until_generated(&daemon, results[0].completion_tokens);
    let labels = [("reason", "disconnect")];
    eventually("every one that left is counted", || {
        let cancelled = daemon.metrics().sum("autoglmd_cancelled_total", &labels);
        (cancelled == left as f64).then_some(())
    });
}
