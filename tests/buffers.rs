//! The account of buffered memory, on the real binary: what floods of incomplete requests cost the
//! process, who is refused, and who is served meanwhile.
//!
//! Mutations that these tests catch: `admits_body` that does not ask the key's own account
//! (`one_key_cannot_use_up_the_memory`), or that takes each claim for an anonymous one
//! (`strangers_are_refused_before_keys`).

mod common;

use std::time::Duration;

use serde_json::json;

use common::http2::frame::setting;
use common::http2::{Peer, Target};
use common::{Connection, Daemon, Options, eventually, request};

const KIB: usize = 1 << 10;
const MIB: f64 = (1 << 20) as f64;

/// What the process may take beyond the bound: for its one reactor a step, and one pump, doubled by
/// a growing vector; the allocator's own; the working memory of the first requests of each kind.
const SLACK_BYTES: f64 = 8.0 * MIB;

/// The bodies of one flood: connections, streams of each, and pieces of each stream, which is then
/// short of a mebibyte by a little.
const CONNECTIONS: usize = 10;
const STREAMS: i64 = 31;
const PIECES: i64 = 63;
const PIECE_BYTES: i64 = 16_384;

fn create_key(daemon: &Daemon) -> String {
    let output = daemon.run(&["key", "create", "--name", "flood"]);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).expect("text");
    text.trim().to_owned()
}

/// Waits until the running daemon knows a key that a command has created.
fn wait_for_key(daemon: &Daemon, key: &str) {
    let authorization = format!("Bearer {key}");
    let fields = [("authorization", authorization.as_str())];
    let bytes = request("GET", "/api/v1/languages", &fields, b"");
    eventually("the key is known", || {
        (daemon.exchange(&bytes).status() == 200).then_some(())
    });
}

/// Sends bodies that lack their end, as long as the daemon takes them. Returns the connections.
fn flood(target: &Target) -> Vec<Peer> {
    (0..CONNECTIONS).map(|_| flood_one(target)).collect()
}

fn flood_one(target: &Target) -> Peer {
    let mut peer = Peer::open(target).expect("it answers");
    let first = peer.server_setting(setting::INITIAL_WINDOW_SIZE);
    let first = i64::from(first.unwrap_or(65_535));
    let mut sent = 0;
    for stream in (0..STREAMS).map(|number| 2 * number as u32 + 1) {
        peer.headers_open(stream, &target.post());
        for piece in 0..PIECES {
            let room = |peer: &Peer| {
                let of_connection = 65_535 + peer.credit(0) - sent;
                let of_stream = first + peer.credit(stream) - piece * PIECE_BYTES;
                of_connection.min(of_stream)
            };
            let is_refused = |peer: &Peer| {
                let answer = peer.so_far(stream);
                peer.is_over() || answer.status != 0 || answer.reset.is_some()
            };
            while !is_refused(&peer) && room(&peer) < PIECE_BYTES {
                peer.step().expect("credit, or a refusal");
            }
            if is_refused(&peer) {
                break;
            }
            peer.data(stream, &[b' '; PIECE_BYTES as usize]);
            sent += PIECE_BYTES;
        }
        if peer.is_over() {
            break;
        }
    }
    peer
}

fn held(daemon: &Daemon) -> f64 {
    daemon.metrics().value("autoglmd_buffered_bytes")
}

fn refused(daemon: &Daemon, claim: &str) -> f64 {
    let labels = [("claim", claim)];
    daemon
        .metrics()
        .sum("autoglmd_buffers_refused_total", &labels)
}

/// Ten connections of 31 bodies of a mebibyte, for each of five keys: 1.5 GiB that are announced.
#[test]
fn a_flood_of_bodies_takes_its_bound_and_others_are_served() {
    const BOUND: f64 = 16.0 * MIB;
    let daemon = Options::echo().set("limits.max_buffered", "16MiB").start();
    daemon.generate(&json!({"prompt": "hello"})).expect(200);
    let before = daemon.process().anonymous_bytes() as f64;
    let mut floods = Vec::new();
    for _ in 0..5 {
        let mut target = Target::of(&daemon);
        let key = create_key(&daemon);
        wait_for_key(&daemon, &key);
        target.authorization = format!("Bearer {key}");
        floods.extend(flood(&target));
        daemon.generate(&json!({"prompt": "hello"})).expect(200);
    }
    let grown = daemon.process().anonymous_bytes() as f64 - before;
    assert!(
        grown <= BOUND + SLACK_BYTES,
        "grown by {:.1} MiB",
        grown / MIB
    );
    assert!(refused(&daemon, "keyed") > 0.0);
    let most = daemon.metrics().value("autoglmd_buffered_most_bytes");
    assert!(most > BOUND * 0.5 && most <= BOUND + SLACK_BYTES, "{most}");
    println!(
        "grown by {:.1} MiB, at most {:.1} MiB counted",
        grown / MIB,
        most / MIB
    );
    drop(floods);
    eventually("nothing is held", || (held(&daemon) == 0.0).then_some(()));
}

/// A quarter of the memory, and a body of the largest size, is for one key. A body of another key
/// that comes in two pieces is accepted meanwhile.
#[test]
fn one_key_cannot_use_up_the_memory() {
    let daemon = Options::echo().set("limits.max_buffered", "16MiB").start();
    let mut target = Target::of(&daemon);
    let key = create_key(&daemon);
    wait_for_key(&daemon, &key);
    target.authorization = format!("Bearer {key}");
    let flood = flood(&target);
    assert!(refused(&daemon, "keyed") > 0.0);
    // Bodies of 4 MiB, in vectors that may be twice as large, and the heads beside them.
    let held = held(&daemon);
    assert!((3.0 * MIB..=10.0 * MIB).contains(&held), "{held}");
    let body = format!(r#"{{"prompt": "{}"}}"#, "x".repeat(300_000));
    let bytes = daemon.request("POST", "/api/v1/generate", body.as_bytes());
    let mut other = daemon.connect();
    let (beginning, rest) = bytes.split_at(200_000);
    other.send(beginning);
    // Served after the beginning has been read, because the reactor reads in order.
    daemon.get("/livez").expect(200);
    other.send(rest);
    other.answer().expect(200);
    drop(flood);
}

/// Heads of strangers fill their three quarters; a key's body still finds room.
#[test]
fn strangers_are_refused_before_keys() {
    let daemon = Options::echo()
        .set("limits.max_body", "64KiB")
        .set("limits.max_buffered", "256KiB")
        .start();
    let head = format!(
        "GET /livez HTTP/1.1\r\nhost: localhost\r\nx: {}",
        "x".repeat(15 * KIB)
    );
    let mut strangers: Vec<Connection> = Vec::new();
    while refused(&daemon, "anonymous") == 0.0 {
        assert!(strangers.len() < 40, "there is no bound");
        let mut stranger = daemon.connect();
        stranger.send(head.as_bytes());
        strangers.push(stranger);
    }
    let mut latest_first = strangers.iter_mut().rev();
    let refused = latest_first.find_map(|one| {
        let is_answered = one.readable_within(Duration::from_secs(1));
        is_answered.then_some(one)
    });
    let refused = refused.expect("one was refused");
    refused.answer().expect_error(503, "buffers_full");
    let fields = [("expect", "100-continue"), ("content-length", "2000")];
    let ask = |authorization: &str| {
        let mut fields = fields.to_vec();
        fields.push(("authorization", authorization));
        fields.push(("content-type", "application/json"));
        let bytes = request("POST", "/api/v1/generate", &fields, b"");
        let text = String::from_utf8(bytes).expect("a head is text");
        let mut connection = daemon.connect();
        connection.send(text.replace("content-length: 0\r\n", "").as_bytes());
        connection
    };
    let mut keyed = ask(&daemon.authorization());
    assert_eq!(keyed.interim().expect("it answers"), 100);
    drop(strangers);
    drop(keyed);
    eventually("nothing is held", || (held(&daemon) == 0.0).then_some(()));
}

/// The bound follows SIGHUP in both directions.
#[test]
fn the_bound_is_reloaded() {
    let options = Options::echo();
    let daemon = options.clone().start();
    let bound = |daemon: &Daemon| daemon.metrics().value("autoglmd_buffered_limit_bytes");
    let before = bound(&daemon);
    assert!((16.0 * MIB..=48.0 * MIB).contains(&before), "{before}");
    for (text, bytes) in [("5MiB", 5.0 * MIB), ("0", before)] {
        let text = options.clone().set("limits.max_buffered", text);
        std::fs::write(daemon.configuration_file(), text.configuration())
            .expect("the folder can be written");
        daemon.process().signal(libc::SIGHUP);
        eventually("the reload is in force", || {
            (bound(&daemon) == bytes).then_some(())
        });
    }
}
