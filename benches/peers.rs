//! The daemon beside nginx: the same request, the same response, a core each, taking turns.
//!
//!     cargo bench --bench peers
//!
//! The daemon runs everything that is always on (keys, rate limits, request ids, metrics) with the
//! echo engine, which computes no model; nginx returns the same bytes from its configuration. wrk
//! loads one of them at a time from the other core with the original client's body. Rounds
//! alternate, so that a machine that becomes slower or faster does so for both; the table shows
//! medians.
//!
//! `PEERS_ROUNDS`, `PEERS_SECONDS` and `PEERS_CONNECTIONS` (a list) change its size.

#[path = "../tests/common/mod.rs"]
mod common;
mod support;

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::json;

use common::Options;
use common::process::{Process, allow_descriptors};
use support::{Nginx, median, parameter};

/// One server's figures of one round.
#[derive(Clone, Copy, Debug)]
struct Round {
    requests_per_second: f64,
    p50_us: f64,
    p99_us: f64,
    cpu_us: f64,
}

struct Peer<'a> {
    name: &'a str,
    address: SocketAddr,
    process: Process,
    rounds: Vec<Round>,
}

fn main() {
    support::require("nginx", "nginx");
    support::require("wrk", "wrk");
    allow_descriptors(4_096);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    assert!(cores >= 2, "a core for the server and one for the load");
    let rounds: usize = parameter("PEERS_ROUNDS", 5);
    let duration = Duration::from_secs(parameter("PEERS_SECONDS", 8));
    let connections: String = parameter("PEERS_CONNECTIONS", "64,1024".to_owned());

    let body = json!({"prompt": "实现快速排序算法", "language": "python", "timeout": 10000});
    let daemon = support::measured_daemon(Options::echo());
    let answer = daemon.generate(&body).expect(200);
    let nginx = Nginx::start(answer.text(), &answer.head.fields, 4_000);
    println!("{}; {}", support::machine(), Nginx::version());
    println!(
        "{rounds} rounds of {} s each, medians\n",
        duration.as_secs()
    );
    println!("| connections | server | requests/s | p50, us | p99, us | CPU a request, us |");
    println!("| --- | --- | --- | --- | --- | --- |");
    for count in connections.split(',') {
        let count: usize = count
            .trim()
            .parse()
            .expect("PEERS_CONNECTIONS is a list of numbers");
        let mut peers = [
            Peer::new("autoglmd", daemon.address(), daemon.process()),
            Peer::new("nginx", nginx.address(), nginx.process()),
        ];
        for _ in 0..rounds {
            for peer in &mut peers {
                peer.measure(daemon.key(), &body.to_string(), count, duration);
            }
        }
        print(count, &peers);
    }
    let refused = daemon.metrics().sum("autoglmd_errors_total", &[]);
    assert_eq!(refused, 0.0, "a refused request measures something else");
}

impl<'a> Peer<'a> {
    fn new(name: &'a str, address: SocketAddr, process: Process) -> Peer<'a> {
        Peer {
            name,
            address,
            process,
            rounds: Vec::new(),
        }
    }

    fn measure(&mut self, key: &str, body: &str, connections: usize, duration: Duration) {
        let before = self.process.cpu_time();
        let load = support::wrk(self.address, key, body, connections, duration);
        let spent = self.process.cpu_time() - before;
        self.rounds.push(Round {
            requests_per_second: load.requests as f64 / load.seconds,
            p50_us: load.p50_us,
            p99_us: load.p99_us,
            cpu_us: spent.as_secs_f64() * 1e6 / load.requests as f64,
        });
    }

    fn median(&self) -> Round {
        let of = |figure: fn(&Round) -> f64| median(self.rounds.iter().map(figure));
        Round {
            requests_per_second: of(|round| round.requests_per_second),
            p50_us: of(|round| round.p50_us),
            p99_us: of(|round| round.p99_us),
            cpu_us: of(|round| round.cpu_us),
        }
    }
}

fn print(connections: usize, peers: &[Peer<'_>; 2]) {
    let [ours, nginx] = peers.each_ref().map(Peer::median);
    for (peer, round) in peers.iter().zip([ours, nginx]) {
        println!(
            "| {connections} | {} | {:.0} | {:.0} | {:.0} | {:.2} |",
            peer.name, round.requests_per_second, round.p50_us, round.p99_us, round.cpu_us
        );
    }
    println!(
        "| {connections} | autoglmd / nginx | {:.2} | {:.2} | {:.2} | {:.2} |",
        ours.requests_per_second / nginx.requests_per_second,
        ours.p50_us / nginx.p50_us,
        ours.p99_us / nginx.p99_us,
        ours.cpu_us / nginx.cpu_us
    );
}
