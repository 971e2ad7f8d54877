//! HTTP/2 and TLS compared with nginx: the same request and the same response, on one core each,
//! taking turns.
//!
//!     cargo bench --bench protocols
//!
//! * HTTP/2 in clear text and over TLS 1.3: h2load posts the original client's body on 16
//!   connections with 16 streams each;
//! * HTTP/1.1 over TLS 1.3: wrk does the same on 64 kept connections;
//! * full handshakes of TLS 1.3 without resumption, one after the other on 8 threads, with one
//!   request each, ECDSA on P-256 on both sides.
//!
//! Our server runs everything that is always on, with the echo engine; nginx returns the same bytes
//! from its configuration. "A core's worth" is the rate of one core that does nothing else: one
//! second divided by the server's CPU time for one request or handshake. It is the better figure
//! where the load's core is the slower one. More than half of a handshake's time is the kernel's:
//! both ends of the connection are in one machine and wait for its locks. The share of the program
//! itself is under "user".
//!
//! `PROTOCOLS_ROUNDS` and `PROTOCOLS_SECONDS` set the number and the length of the rounds.

#[path = "../tests/common/mod.rs"]
mod common;
mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustls::ClientConfig;
use serde_json::json;
use tempfile::TempDir;

use common::process::{Process, allow_descriptors};
use common::tls::{Authority, without_resumption};
use common::{Connection, Options, request};
use support::{Load, Nginx, Speaks, median, parameter};

const HTTP2_CONNECTIONS: usize = 16;
const HTTP2_STREAMS: usize = 16;
const HTTP1_CONNECTIONS: usize = 64;
const HANDSHAKE_THREADS: usize = 8;

/// One server's figures of one round.
#[derive(Clone, Copy, Debug)]
struct Round {
    a_second: f64,
    cpu_us: f64,
    /// The part of it in the program itself, not in the kernel.
    user_us: f64,
}

/// A server, and the way to reach it.
struct Peer {
    name: &'static str,
    address: SocketAddr,
    process: Process,
    rounds: Vec<Round>,
}

fn main() {
    support::require("nginx", "nginx");
    support::require("wrk", "wrk");
    support::require("h2load", "nghttp2-client");
    allow_descriptors(4_096);
    let rounds: usize = parameter("PROTOCOLS_ROUNDS", 5);
    let duration = Duration::from_secs(parameter("PROTOCOLS_SECONDS", 5));

    let authority = Authority::new("the bench");
    let folder = TempDir::new().expect("a folder for the certificate");
    let (certificate, key_file) = authority.server("localhost").save(folder.path(), "site");
    let client = authority.client_of(None, &[&rustls::version::TLS13]);
    let client = without_resumption(client);
    let options = Options::echo()
        .set_raw("server.tls.certificates", &format!("{:?}", [&certificate]))
        .set_raw("server.tls.keys", &format!("{:?}", [&key_file]));
    let daemon = support::measured_daemon(options);
    let body = json!({"prompt": "实现快速排序算法", "language": "python", "timeout": 10000});
    let answer = daemon.generate(&body).expect(200);
    let nginx =
        |speaks: &Speaks<'_>| Nginx::start_with(answer.text(), &answer.head.fields, 4_000, speaks);
    let over_tls = |http2| Speaks::Tls {
        certificate: &certificate,
        key: &key_file,
        http2,
    };
    let (clear, secure) = (nginx(&Speaks::Http2), nginx(&over_tls(true)));
    let (key, body) = (daemon.key(), body.to_string());

    println!("{}; {}", support::machine(), Nginx::version());
    println!(
        "{rounds} rounds of {} s each, medians\n",
        duration.as_secs()
    );
    println!(
        "| what | server | a second | CPU for one, us | user, us | a core's worth, a second |"
    );
    println!("| --- | --- | --- | --- | --- | --- |");
    let ours = || Peer::new("autoglmd", daemon.address(), daemon.process());
    let http2 = |scheme: &'static str| {
        let (key, body) = (key, &body);
        move |address: SocketAddr| {
            let origin = format!("{scheme}://{address}");
            let shape = (HTTP2_CONNECTIONS, HTTP2_STREAMS);
            support::h2load(&origin, key, body, shape, duration)
        }
    };
    compare(
        "HTTP/2, clear",
        [ours(), Peer::of(&clear)],
        rounds,
        http2("http"),
    );
    compare(
        "HTTP/2, TLS 1.3",
        [ours(), Peer::of(&secure)],
        rounds,
        http2("https"),
    );
    let http1 = |address: SocketAddr| {
        let origin = format!("https://{address}");
        support::wrk_at(&origin, key, &body, HTTP1_CONNECTIONS, duration)
    };
    compare(
        "HTTP/1.1, TLS 1.3",
        [ours(), Peer::of(&secure)],
        rounds,
        http1,
    );
    let handshakes = |address: SocketAddr| handshakes(address, &client, duration);
    compare(
        "full handshake, TLS 1.3",
        [ours(), Peer::of(&secure)],
        rounds,
        handshakes,
    );

    let refused = daemon.metrics().sum("autoglmd_errors_total", &[]);
    assert_eq!(refused, 0.0, "a refused request measures something else");
}

/// Runs alternating rounds of both, and prints a row for each.
fn compare(what: &str, mut peers: [Peer; 2], rounds: usize, load: impl Fn(SocketAddr) -> Load) {
    for _ in 0..rounds {
        for peer in &mut peers {
            peer.measure(&load);
        }
    }
    let [ours, nginx] = peers.each_ref().map(Peer::median);
    for (peer, round) in peers.iter().zip([ours, nginx]) {
        println!(
            "| {what} | {} | {:.0} | {:.2} | {:.2} | {:.0} |",
            peer.name,
            round.a_second,
            round.cpu_us,
            round.user_us,
            1e6 / round.cpu_us
        );
    }
    println!(
        "| {what} | autoglmd / nginx | {:.2} | {:.2} | {:.2} | {:.2} |",
        ours.a_second / nginx.a_second,
        ours.cpu_us / nginx.cpu_us,
        ours.user_us / nginx.user_us,
        nginx.cpu_us / ours.cpu_us
    );
}

impl Peer {
    fn new(name: &'static str, address: SocketAddr, process: Process) -> Peer {
        Peer {
            name,
            address,
            process,
            rounds: Vec::new(),
        }
    }

    fn of(nginx: &Nginx) -> Peer {
        Peer::new("nginx", nginx.address(), nginx.process())
    }

    fn measure(&mut self, load: impl Fn(SocketAddr) -> Load) {
        let (user_before, system_before) = self.process.times();
        let start = Instant::now();
        let done = load(self.address);
        let (user, system) = self.process.times();
        // h2load counts after a second of warming up, in which the server works too.
        let counted = done.seconds / start.elapsed().as_secs_f64().max(done.seconds);
        let each_us = |spent: Duration| spent.as_secs_f64() * counted * 1e6 / done.requests as f64;
        self.rounds.push(Round {
            a_second: done.requests as f64 / done.seconds,
            cpu_us: each_us(user - user_before + (system - system_before)),
            user_us: each_us(user - user_before),
        });
    }

    fn median(&self) -> Round {
        let of = |figure: fn(&Round) -> f64| median(self.rounds.iter().map(figure));
        Round {
            a_second: of(|round| round.a_second),
            cpu_us: of(|round| round.cpu_us),
            user_us: of(|round| round.user_us),
        }
    }
}

/// Connects, shakes hands, sends one request and leaves, on the load's core.
fn handshakes(address: SocketAddr, client: &Arc<ClientConfig>, duration: Duration) -> Load {
    let (done, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
    let bytes = request("GET", "/livez", &[("connection", "close")], b"");
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..HANDSHAKE_THREADS {
            scope.spawn(|| {
                support::move_to_load_core();
                while !is_over.load(Ordering::Relaxed) {
                    let connection = Connection::tls(address, client, "localhost");
                    let mut connection = connection.expect("a handshake");
                    connection.exchange(&bytes).expect(200);
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        std::thread::sleep(duration);
        is_over.store(true, Ordering::Relaxed);
    });
    Load {
        requests: done.into_inner(),
        seconds: start.elapsed().as_secs_f64(),
        p50_us: f64::NAN,
        p99_us: f64::NAN,
    }
}
