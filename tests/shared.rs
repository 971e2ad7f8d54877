//! The level of the cache that daemons share, over the real binary and a real Redis: every form of
//! a response, tenants, values that are not what a daemon has written, and the age of an entry.
//!
//! Mutations, each caught by the test named:
//! * `entry.done` without the text, a stream without its last event: `an_entry_is_sent_in_every_form`
//! * a digest without the tenant: `tenants_do_not_meet`
//! * `open` without its look at the version, the model, the name or the checksum, `finish` that does
//!   not share: `a_value_that_is_wrong_is_a_miss_and_is_replaced`
//! * `submit` that asks for `refresh` as for `use`, `digest_of` for `bypass`:
//!   `refresh_replaces_and_bypass_neither_asks_nor_writes`
//! * an age by the time of day: `an_entry_is_as_old_as_redis_has_kept_it`

mod common;

use std::cell::Cell;

use autoglmd::grpc::messages::{Message as _, autoglm};
use autoglmd::http::compress::Coding;
use autoglmd::http::compress::decode::{Bound, decode_body};
use serde_json::{Value, json};

use common::http2::{self, Peer, Target, hpack};
use common::redis::Server;
use common::{Answer, Daemon, Options, eventually, request};

/// Prompts that a test may need until one of them was looked up in time: a look-up that a busy
/// machine does not send within 100 ms is a miss.
const ROUNDS: usize = 20;

/// In seconds: the default.
const TTL: u64 = 3_600;

/// Daemons with one set of keys and one Redis.
struct House {
    server: Server,
    first: Daemon,
    prompts: Cell<usize>,
}

fn options(server: &Server) -> Options {
    Options::echo()
        .with_cache()
        .set_raw("cache.preload", "false")
        .set("cache.shared.url", &server.url())
        .set("cache.shared.timeout", "5s")
        .set("server.compress_min", "64")
}

fn started(options: Options) -> Daemon {
    let daemon = options.start();
    eventually("Redis is connected", || {
        let is_up = daemon.metrics().value("autoglmd_redis_up") == 1.0;
        is_up.then_some(())
    });
    daemon
}

impl House {
    fn new() -> House {
        House::on(Server::start())
    }

    fn on(server: Server) -> House {
        let first = started(options(&server));
        House {
            server,
            first,
            prompts: Cell::new(0),
        }
    }

    /// Starts another daemon with the keys of the first one.
    fn another(&self) -> Daemon {
        let options = options(&self.server);
        started(options.in_folder(self.first.folder()))
    }

    /// Returns a prompt that no request has had.
    fn prompt(&self) -> String {
        self.prompts.set(self.prompts.get() + 1);
        format!("program {}", self.prompts.get())
    }

    fn keys(&self) -> Vec<String> {
        let keys = redis::cmd("KEYS").arg("autoglmd:entry:*").to_owned();
        keys.query(&mut self.server.connect()).expect("the keys")
    }

    fn value(&self, key: &str) -> Vec<u8> {
        let get = redis::cmd("GET").arg(key).to_owned();
        get.query(&mut self.server.connect()).expect("a value")
    }

    fn command(&self, words: &[&[u8]]) {
        let mut command = redis::cmd(std::str::from_utf8(words[0]).expect("a name"));
        words[1..].iter().for_each(|word| _ = command.arg(*word));
        let done = command.exec(&mut self.server.connect());
        done.expect("the server does it");
    }

    /// Has the first daemon compute a result. Returns its prompt, its response, and its key in
    /// Redis.
    fn computed(&self) -> (String, Value, String) {
        let (prompt, before) = (self.prompt(), self.keys());
        let made = ask(&self.first, &prompt);
        assert_eq!(made.field("x-cache"), Some("miss"), "{made}");
        let (key, _) = eventually("the entry is in Redis", || {
            let keys = self.keys().into_iter();
            keys.into_iter().find(|key| !before.contains(key))
        });
        (prompt, made.json(), key)
    }

    /// Calls `ask` for one computed result after the other, until it was looked up in time.
    fn look_up<T>(&self, what: &str, mut ask: impl FnMut(&str, &Value, &str) -> Option<T>) -> T {
        for _ in 0..ROUNDS {
            let (prompt, made, key) = self.computed();
            if let Some(found) = ask(&prompt, &made, &key) {
                return found;
            }
        }
        panic!("{what}: no look-up was sent in time");
    }
}

fn ask(daemon: &Daemon, prompt: &str) -> Answer {
    daemon.generate(&json!({ "prompt": prompt })).expect(200)
}

fn lookups(daemon: &Daemon, verdict: &str) -> f64 {
    let name = "autoglmd_cache_shared_lookups_total";
    daemon.metrics().sum(name, &[("verdict", verdict)])
}

// ---- forms ----

/// A response, whatever form it came in.
#[derive(Debug, PartialEq)]
struct Seen {
    verdict: Option<String>,
    has_age: bool,
    id: String,
    code: String,
    text: String,
    is_cached: bool,
}

impl Seen {
    fn of_json(field: impl Fn(&str) -> Option<String>, object: &Value) -> Seen {
        let text = |name: &str| object[name].as_str().expect("a text").to_owned();
        Seen {
            verdict: field("x-cache"),
            has_age: field("age").is_some(),
            id: text("id"),
            code: text("code"),
            text: text("text"),
            is_cached: object["cached"].as_bool().expect("a boolean"),
        }
    }

    fn of_message(
        field: impl Fn(&str) -> Option<String>,
        message: autoglm::GenerateResponse,
    ) -> Seen {
        Seen {
            verdict: field("x-cache"),
            has_age: field("age").is_some(),
            id: message.id,
            code: message.code,
            text: message.text,
            is_cached: message.cached,
        }
    }
}

fn field_of(answer: &Answer) -> impl Fn(&str) -> Option<String> {
    |name| answer.field(name).map(str::to_owned)
}

fn json_in(coding: Option<Coding>) -> impl Fn(&Daemon, &str) -> Seen {
    move |daemon, prompt| {
        let accepted = coding.map_or("identity", Coding::name);
        let body = json!({ "prompt": prompt }).to_string();
        let fields = [("accept-encoding", accepted)];
        let path = "/api/v1/generate";
        let bytes = daemon.request_with("POST", path, &fields, body.as_bytes());
        let mut answer = daemon.exchange(&bytes).expect(200);
        let sent = answer.field("content-encoding").map(str::to_owned);
        assert_eq!(sent.as_deref(), coding.map(Coding::name));
        if let Some(coding) = coding {
            let mut plain = Vec::new();
            let bound = Bound::of(usize::MAX, 1 << 24, u32::MAX);
            decode_body(coding, &answer.body, bound, &mut plain).expect("a whole body");
            answer.body = plain;
        }
        Seen::of_json(field_of(&answer), &answer.json())
    }
}

fn events(daemon: &Daemon, prompt: &str) -> Seen {
    let mut connection = daemon.connect();
    let body = json!({ "prompt": prompt, "stream": true });
    connection.send(&daemon.generate_request(&body));
    let head = connection.head().expect("a head");
    assert_eq!(head.status, 200);
    let events = connection.events().all();
    let pieces = events.iter().filter(|event| event.name == "delta");
    let pieces: Vec<_> = pieces.map(|event| event.json()["text"].clone()).collect();
    let pieces: String = pieces.iter().filter_map(Value::as_str).collect();
    let done = events.last().expect("an event").json();
    let seen = Seen::of_json(|name| head.field(name).map(str::to_owned), &done);
    assert_eq!(pieces, seen.code, "the pieces are the program");
    seen
}

fn message(prompt: &str) -> Vec<u8> {
    let message = autoglm::GenerateRequest {
        prompt: prompt.to_owned(),
        ..autoglm::GenerateRequest::default()
    };
    message.encode_to_vec()
}

fn protobuf(daemon: &Daemon, prompt: &str) -> Seen {
    let fields = [("content-type", "application/x-protobuf")];
    let path = "/api/v1/generate";
    let bytes = daemon.request_with("POST", path, &fields, &message(prompt));
    let answer = daemon.exchange(&bytes).expect(200);
    let message = autoglm::GenerateResponse::decode(&*answer.body).expect("a message");
    Seen::of_message(field_of(&answer), message)
}

fn over_http2(daemon: &Daemon, path: &str, content_type: &str, body: &[u8]) -> http2::Answer {
    let target = Target::of(daemon);
    let mut peer = Peer::open(&target).expect("a connection");
    let fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
        ("te", "trailers"),
        ("content-type", content_type),
        ("authorization", &target.authorization),
    ];
    peer.headers_open(1, &hpack::fields(&fields));
    peer.data_end(1, body);
    peer.answer(1).expect("a response")
}

fn json_over_http2(daemon: &Daemon, prompt: &str) -> Seen {
    let body = json!({ "prompt": prompt }).to_string();
    let answer = over_http2(
        daemon,
        "/api/v1/generate",
        "application/json",
        body.as_bytes(),
    );
    assert_eq!(answer.status, 200);
    let object = serde_json::from_slice(&answer.body).expect("JSON");
    Seen::of_json(|name| answer.field(name).map(str::to_owned), &object)
}

/// The messages of a gRPC response.
fn grpc<M: autoglmd::grpc::messages::Message + Default>(
    daemon: &Daemon,
    method: &str,
    prompt: &str,
) -> (http2::Answer, Vec<M>) {
    let message = message(prompt);
    let length = (message.len() as u32).to_be_bytes();
    let framed = [&[0], &length[..], &message].concat();
    let path = format!("/AutoGLMService/{method}");
    let answer = over_http2(daemon, &path, "application/grpc", &framed);
    let status = ("grpc-status".to_owned(), "0".to_owned());
    assert!(answer.trailers.contains(&status), "{answer:?}");
    let (mut messages, mut rest) = (Vec::new(), &answer.body[..]);
    while let Some((prefix, behind)) = rest.split_first_chunk::<5>() {
        let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]);
        let (message, behind) = behind.split_at(length as usize);
        messages.push(M::decode(message).expect("a message"));
        rest = behind;
    }
    (answer, messages)
}

fn unary(daemon: &Daemon, prompt: &str) -> Seen {
    let (answer, mut messages) = grpc::<autoglm::GenerateResponse>(daemon, "Generate", prompt);
    assert_eq!(messages.len(), 1);
    let field = |name: &str| answer.field(name).map(str::to_owned);
    Seen::of_message(field, messages.remove(0))
}

fn chunks(daemon: &Daemon, prompt: &str) -> Seen {
    let (answer, mut messages) = grpc::<autoglm::GenerateChunk>(daemon, "GenerateStream", prompt);
    let last = messages.pop().and_then(|chunk| chunk.response);
    let pieces: String = messages.into_iter().map(|chunk| chunk.text).collect();
    let field = |name: &str| answer.field(name).map(str::to_owned);
    let seen = Seen::of_message(field, last.expect("the last chunk has the response"));
    assert_eq!(pieces, seen.code, "the pieces are the program");
    seen
}

type Form = Box<dyn Fn(&Daemon, &str) -> Seen>;

#[test]
fn an_entry_is_sent_in_every_form() {
    let house = House::new();
    let second = house.another();
    let forms: [(&str, Form); 9] = [
        ("JSON", Box::new(json_in(None))),
        ("JSON, gzip", Box::new(json_in(Some(Coding::Gzip)))),
        ("JSON, br", Box::new(json_in(Some(Coding::Brotli)))),
        ("JSON, zstd", Box::new(json_in(Some(Coding::Zstd)))),
        ("events", Box::new(events)),
        ("Protobuf", Box::new(protobuf)),
        ("JSON over HTTP/2", Box::new(json_over_http2)),
        ("gRPC", Box::new(unary)),
        ("gRPC, a stream", Box::new(chunks)),
    ];
    for (name, form) in &forms {
        let (seen, made) = house.look_up(name, |prompt, made, _| {
            let seen = form(&second, prompt);
            let is_in_time = seen.verdict.as_deref() == Some("shared");
            is_in_time.then(|| (seen, made.clone()))
        });
        let text = |name: &str| made[name].as_str().expect("a text").to_owned();
        let expected = Seen {
            verdict: Some("shared".to_owned()),
            has_age: true,
            id: text("id"),
            code: text("code"),
            text: text("text"),
            is_cached: true,
        };
        assert_eq!(seen, expected, "{name}");
    }
}

// ---- tenants ----

#[test]
fn tenants_do_not_meet() {
    let house = House::new();
    let second = house.another();
    let keyless = options(&house.server).set_raw("auth.enabled", "false");
    let keyless = started(keyless);
    let created = second.run(&["key", "create", "--name", "other", "--scopes", "generate"]);
    let other = String::from_utf8(created.stdout).expect("a key");
    let authorization = format!("Bearer {}", other.trim());
    let ask_as_other = |daemon: &Daemon, prompt: &str| {
        let fields = [
            ("authorization", authorization.as_str()),
            ("content-type", "application/json"),
        ];
        let body = json!({ "prompt": prompt }).to_string();
        daemon.exchange(&request(
            "POST",
            "/api/v1/generate",
            &fields,
            body.as_bytes(),
        ))
    };
    for daemon in [&house.first, &second] {
        eventually("the other key works", || {
            (ask_as_other(daemon, "x").status() == 200).then_some(())
        });
    }
    let (prompt, made, key) = house.computed();
    let of_other = ask_as_other(&second, &prompt).expect(200);
    let of_keyless = ask(&keyless, &prompt);
    for answer in [&of_other, &of_keyless] {
        assert_eq!(answer.field("x-cache"), Some("miss"), "{answer}");
        assert_ne!(answer.json()["id"], made["id"]);
    }
    let tenant = |key: &str| key.split(':').nth(2).expect("a tenant").to_owned();
    eventually("each of the three has an entry of its own", || {
        let mut tenants: Vec<_> = house.keys().iter().map(|key| tenant(key)).collect();
        tenants.sort();
        tenants.dedup();
        (tenants.len() == 3).then_some(())
    });
    // A value of one tenant under the name of another one's is foreign.
    let value = house.value(&key);
    for name in house.keys() {
        house.command(&[b"SET", name.as_bytes(), &value]);
    }
    let third = house.another();
    let found = ask_as_other(&third, &prompt).expect(200);
    assert_eq!(found.field("x-cache"), Some("miss"), "{found}");
    assert_ne!(found.json()["id"], made["id"]);
}

// ---- values ----

/// Changes a value at this place, and makes its checksum fit.
fn resealed(mut value: Vec<u8>, at: usize) -> Vec<u8> {
    const CHECKSUM_AT: usize = 80;
    const ENTRY_AT: usize = CHECKSUM_AT + 32;
    value[at] ^= 1;
    let mut hasher = blake3::Hasher::new();
    hasher
        .update(&value[..CHECKSUM_AT])
        .update(&value[ENTRY_AT..]);
    let sum = *hasher.finalize().as_bytes();
    value[CHECKSUM_AT..ENTRY_AT].copy_from_slice(&sum);
    value
}

type Damage = fn(Vec<u8>) -> Vec<u8>;

#[test]
fn a_value_that_is_wrong_is_a_miss_and_is_replaced() {
    let house = House::new();
    let (second, third) = (house.another(), house.another());
    let damages: [(&str, Damage); 7] = [
        ("cut", |mut value| {
            value.pop();
            value
        }),
        ("a header alone", |value| value[..112].to_vec()),
        ("a flipped bit", |mut value| {
            *value.last_mut().expect("a text") ^= 1;
            value
        }),
        ("another version", |value| resealed(value, 4)),
        ("another model", |value| resealed(value, 16)),
        ("another name", |value| resealed(value, 48)),
        ("too long", |mut value| {
            value.resize(2 << 20, b'x');
            value
        }),
    ];
    for (name, damage) in damages {
        let (prompt, made) = house.look_up(name, |prompt, made, key| {
            let wrong = damage(house.value(key));
            house.command(&[b"SET", key.as_bytes(), &wrong]);
            let before = (lookups(&second, "foreign"), lookups(&second, "lost"));
            let answer = ask(&second, prompt);
            assert_eq!(answer.field("x-cache"), Some("miss"), "{name}: {answer}");
            assert_ne!(answer.json()["id"], made["id"]);
            if lookups(&second, "lost") > before.1 {
                return None;
            }
            assert_eq!(lookups(&second, "foreign"), before.0 + 1.0, "{name}");
            eventually("the value is replaced", || {
                (house.value(key) != wrong).then_some(())
            });
            Some((prompt.to_owned(), answer.json()))
        });
        let again = ask(&third, &prompt);
        if again.field("x-cache") == Some("shared") {
            assert_eq!(again.json()["id"], made["id"], "{name}");
        } else {
            assert!(lookups(&third, "lost") > 0.0, "{name}: {again}");
        }
    }
}

/// Mutation: `judge` that passes a reply of another kind on as a failure of the server.
#[test]
fn a_key_of_another_type_is_a_miss_and_is_replaced() {
    let house = House::new();
    let second = house.another();
    let (prompt, _, key) = house.computed();
    house.command(&[b"DEL", key.as_bytes()]);
    house.command(&[b"RPUSH", key.as_bytes(), b"a", b"b"]);
    assert_eq!(ask(&second, &prompt).field("x-cache"), Some("miss"));
    eventually("the list is replaced", || {
        let kind = redis::cmd("TYPE").arg(&key).to_owned();
        let kind: String = kind.query(&mut house.server.connect()).expect("a type");
        (kind == "string").then_some(())
    });
}

// ---- wishes and ages ----

#[test]
fn refresh_replaces_and_bypass_neither_asks_nor_writes() {
    let house = House::new();
    let (second, third) = (house.another(), house.another());
    let asked = |daemon: &Daemon| {
        daemon
            .metrics()
            .sum("autoglmd_cache_shared_lookups_total", &[])
    };
    let (prompt, made, key) = house.computed();
    let value = house.value(&key);
    let wish = |mode: &str| {
        let body = json!({ "prompt": prompt, "cache": mode });
        second.generate(&body).expect(200)
    };
    let bypass = wish("bypass");
    assert_eq!(bypass.field("x-cache"), Some("bypass"), "{bypass}");
    assert_eq!((asked(&second), house.value(&key)), (0.0, value.clone()));
    assert_eq!(house.keys().len(), 1);

    let refreshed = wish("refresh");
    assert_eq!(refreshed.field("x-cache"), Some("miss"), "{refreshed}");
    assert_ne!(refreshed.json()["id"], made["id"]);
    assert_eq!(asked(&second), 0.0, "it is computed in any case");
    eventually("the value is replaced", || {
        (house.value(&key) != value).then_some(())
    });
    let rest = redis::cmd("PTTL").arg(&key).to_owned();
    let rest: u64 = rest.query(&mut house.server.connect()).expect("a time");
    assert!(rest > 0 && rest <= TTL * 1_000, "{rest}");
    let found = ask(&third, &prompt);
    if found.field("x-cache") == Some("shared") {
        assert_eq!(found.json()["id"], refreshed.json()["id"]);
    } else {
        assert!(lookups(&third, "lost") > 0.0, "{found}");
    }
}

#[test]
fn an_entry_is_as_old_as_redis_has_kept_it() {
    const AGE: u64 = 600;
    let house = House::new();
    let second = house.another();
    let found = house.look_up("the age", |prompt, _, key| {
        // By the time of day in the entry it is new.
        let rest = ((TTL - AGE) * 1_000).to_string();
        house.command(&[b"PEXPIRE", key.as_bytes(), rest.as_bytes()]);
        let found = ask(&second, prompt);
        (found.field("x-cache") == Some("shared")).then_some(found)
    });
    let age = found.field("age").and_then(|age| age.parse::<u64>().ok());
    let age = age.expect("a number");
    let patience = common::PATIENCE.as_secs();
    assert!((AGE..AGE + patience).contains(&age), "{age}");
}
