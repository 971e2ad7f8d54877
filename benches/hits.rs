//! Responses from the cache beside nginx: the same request, the same response, a core each, taking
//! turns.
//!
//!     cargo bench --bench hits
//!
//! Four servers: the daemon with hits; the daemon with `"cache": "bypass"`, where the echo engine
//! computes; nginx that returns the same bytes from its configuration (`return 200`); and nginx with
//! `proxy_cache` in front of that, with key, path and body as the cache's key. The daemon runs
//! everything that is always on (keys, rate limits, request ids, metrics). wrk loads one of them at
//! a time over HTTP/1.1 and h2load over HTTP/2, from the other core; rounds alternate, and the table
//! shows medians.
//!
//! Two more tables: the memory of an entry beside the bytes that the cache accounts for it, and the
//! time of a look-up among a thousand to a million entries.
//!
//! `HITS_ROUNDS`, `HITS_SECONDS`, `HITS_CONNECTIONS` (a list) and `HITS_ENTRIES` (for the memory)
//! change its size. `HITS_CHECK=1` fails if a hit takes more CPU time than nginx's `return 200` over
//! HTTP/1.1, or more than 1.1 of it over HTTP/2.

#[path = "../tests/common/mod.rs"]
mod common;
mod support;

use std::hint::black_box;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use autoglmd::cache::lru::Item;
use autoglmd::cache::shards::Shards;
use autoglmd::core::Moment;
use common::process::{Process, allow_descriptors};
use common::{Daemon, Options};
use support::{Load, Nginx, Speaks, median, parameter};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Http1,
    Http2,
}

impl Protocol {
    const fn name(self) -> &'static str {
        match self {
            Protocol::Http1 => "HTTP/1.1",
            Protocol::Http2 => "HTTP/2",
        }
    }

    /// The share of nginx's CPU time that a hit may take.
    const fn cpu_most(self) -> f64 {
        match self {
            Protocol::Http1 => 1.0,
            Protocol::Http2 => 1.1,
        }
    }
}

/// Streams of HTTP/2 that are open at once, on all connections together.
const STREAMS: usize = 256;

/// A daemon that works for less than a tenth of this time is at rest.
const SETTLING: Duration = Duration::from_millis(200);

/// One server's figures of one round.
#[derive(Clone, Copy, Debug)]
struct Round {
    hits_per_second: f64,
    p50_us: f64,
    p99_us: f64,
    cpu_us: f64,
}

struct Peer {
    name: &'static str,
    address: SocketAddr,
    process: Process,
    body: String,
    rounds: Vec<Round>,
}

fn body(cache: &str) -> Value {
    json!({"prompt": "实现快速排序算法", "language": "python", "timeout": 10000, "cache": cache})
}

fn main() {
    support::require("nginx", "nginx");
    support::require("wrk", "wrk");
    support::require("h2load", "nghttp2-client");
    allow_descriptors(4_096);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    assert!(cores >= 2, "a core for the server and one for the load");
    let rounds: usize = parameter("HITS_ROUNDS", 5);
    let duration = Duration::from_secs(parameter("HITS_SECONDS", 8));
    let connections: String = parameter("HITS_CONNECTIONS", "64,1024".to_owned());
    let connections: Vec<usize> = connections
        .split(',')
        .map(|count| count.trim().parse().expect("a list of numbers"))
        .collect();
    println!("{}; {}", support::machine(), Nginx::version());
    println!(
        "{rounds} rounds of {} s each, medians\n",
        duration.as_secs()
    );
    let mut missed = Vec::new();
    for protocol in [Protocol::Http1, Protocol::Http2] {
        missed.extend(hits(protocol, &connections, rounds, duration));
    }
    memory(parameter("HITS_ENTRIES", 20_000));
    look_ups();
    if parameter("HITS_CHECK", 0) == 1 && !missed.is_empty() {
        println!("\nmissed:\n* {}", missed.join("\n* "));
        std::process::exit(1);
    }
}

/// Compares the servers, and returns the goals that were missed.
fn hits(
    protocol: Protocol,
    connections: &[usize],
    rounds: usize,
    duration: Duration,
) -> Vec<String> {
    let daemon = support::measured_daemon(Options::echo().with_cache());
    let used = body("use");
    daemon.generate(&used).expect(200);
    let answer = daemon.generate(&used).expect(200);
    assert_eq!(answer.field("x-cache"), Some("hit"), "{answer}");
    let speaks = match protocol {
        Protocol::Http1 => Speaks::Http1,
        Protocol::Http2 => Speaks::Http2,
    };
    let fields = &answer.head.fields;
    let fixed = Nginx::start_with(answer.text(), fields, 4_000, &speaks);
    let caching = Nginx::start_caching(answer.text(), fields, 4_000, &speaks);
    println!("| protocol | connections | server | hits/s | p50, us | p99, us | CPU a hit, us |");
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    let mut missed = Vec::new();
    for &count in connections {
        let ours = |name, mode: &str| {
            Peer::new(
                name,
                daemon.address(),
                daemon.process(),
                body(mode).to_string(),
            )
        };
        let nginx = |name, nginx: &Nginx| {
            Peer::new(name, nginx.address(), nginx.process(), used.to_string())
        };
        let mut peers = [
            ours("autoglmd, hit", "use"),
            nginx("nginx, return 200", &fixed),
            nginx("nginx, proxy_cache", &caching),
            ours("autoglmd, computed", "bypass"),
        ];
        for _ in 0..rounds {
            for peer in &mut peers {
                peer.measure(protocol, daemon.key(), count, duration);
                // The records of computed responses are written for seconds after the last one.
                settle(&daemon);
            }
        }
        missed.extend(print(protocol, count, &peers));
    }
    println!();
    let refused = daemon.metrics().sum("autoglmd_errors_total", &[]);
    assert_eq!(refused, 0.0, "a refused request measures something else");
    missed
}

/// Waits until the daemon has nothing left to do.
fn settle(daemon: &Daemon) {
    let mut before = daemon.process().cpu_time();
    loop {
        std::thread::sleep(SETTLING);
        let now = daemon.process().cpu_time();
        if now - before < SETTLING / 10 {
            return;
        }
        before = now;
    }
}

impl Peer {
    fn new(name: &'static str, address: SocketAddr, process: Process, body: String) -> Peer {
        Peer {
            name,
            address,
            process,
            body,
            rounds: Vec::new(),
        }
    }

    fn measure(&mut self, protocol: Protocol, key: &str, connections: usize, duration: Duration) {
        let before = self.process.cpu_time();
        let load = self.load(protocol, key, connections, duration);
        let spent = self.process.cpu_time() - before;
        self.rounds.push(Round {
            hits_per_second: load.requests as f64 / load.seconds,
            p50_us: load.p50_us,
            p99_us: load.p99_us,
            cpu_us: spent.as_secs_f64() * 1e6 / load.requests as f64,
        });
    }

    fn load(&self, protocol: Protocol, key: &str, connections: usize, duration: Duration) -> Load {
        match protocol {
            Protocol::Http1 => support::wrk(self.address, key, &self.body, connections, duration),
            Protocol::Http2 => {
                let origin = format!("http://{}", self.address);
                let shape = (connections, (STREAMS / connections).max(1));
                support::h2load_timed(&origin, key, &self.body, shape, duration)
            }
        }
    }

    fn median(&self) -> Round {
        let of = |figure: fn(&Round) -> f64| median(self.rounds.iter().map(figure));
        Round {
            hits_per_second: of(|round| round.hits_per_second),
            p50_us: of(|round| round.p50_us),
            p99_us: of(|round| round.p99_us),
            cpu_us: of(|round| round.cpu_us),
        }
    }
}

fn print(protocol: Protocol, connections: usize, peers: &[Peer; 4]) -> Option<String> {
    let name = protocol.name();
    let medians = peers.each_ref().map(Peer::median);
    for (peer, round) in peers.iter().zip(medians) {
        println!(
            "| {name} | {connections} | {} | {:.0} | {:.0} | {:.0} | {:.2} |",
            peer.name, round.hits_per_second, round.p50_us, round.p99_us, round.cpu_us
        );
    }
    let [ours, fixed, ..] = medians;
    let cpu = ours.cpu_us / fixed.cpu_us;
    println!(
        "| {name} | {connections} | hit / return 200 | {:.2} | {:.2} | {:.2} | {cpu:.2} |",
        ours.hits_per_second / fixed.hits_per_second,
        ours.p50_us / fixed.p50_us,
        ours.p99_us / fixed.p99_us,
    );
    let most = protocol.cpu_most();
    (cpu > most).then(|| {
        format!("{name}, {connections} connections: {cpu:.2} of nginx's CPU time, at most {most}")
    })
}

/// Fills a cache with different requests, and compares its growth with its account. Each request
/// has an entry in both levels.
fn memory(entries: usize) {
    // Without records, whose database keeps pages in memory.
    let options = Options::echo().with_cache().set("cache.max_size", "1GiB");
    let options = options.set_raw("store.records", "false");
    let daemon = support::measured_daemon(options);
    let fill = |from: usize, to: usize| {
        let mut connection = daemon.connect();
        for number in from..to {
            let body = json!({"prompt": format!("program {number}"), "language": "python"});
            let answer = connection.exchange(&daemon.generate_request(&body));
            assert_eq!(answer.field("x-cache"), Some("miss"));
        }
    };
    // The buffers of the first requests belong to no entry.
    fill(0, 1_000);
    let before = (daemon.process().anonymous_bytes(), accounted(&daemon));
    fill(1_000, 1_000 + entries);
    let after = (daemon.process().anonymous_bytes(), accounted(&daemon));
    let grown = after.0.saturating_sub(before.0) as f64 / entries as f64;
    let counted = (after.1 - before.1) / entries as f64;
    println!("| entries | memory of one, bytes | accounted, bytes | memory / accounted |");
    println!("| --- | --- | --- | --- |");
    println!(
        "| {entries} | {grown:.0} | {counted:.0} | {:.2} |\n",
        grown / counted
    );
}

fn accounted(daemon: &Daemon) -> f64 {
    daemon.metrics().sum("autoglmd_cache_bytes", &[])
}

/// Looks entries up in no order, in tables of several sizes.
fn look_ups() {
    const LOOK_UPS: u64 = 1_000_000;
    println!("| entries | a look-up, ns | a replacement, ns |");
    println!("| --- | --- | --- |");
    for entries in [1_000u64, 10_000, 100_000, 1_000_000] {
        let shards: Shards<[u64; 4], Arc<()>> = Shards::new(entries as usize * 1_024);
        let mut removed = Vec::new();
        let mut store = |number: u64| {
            let key = [number; 4];
            let item = Item {
                tenant: number % 8,
                value: Arc::new(()),
                bytes: 512,
                expires: Moment::NEVER,
            };
            let mut shard = shards.of(&key);
            let stored = shard.insert(key, item, Moment::ZERO, &mut removed);
            stored.expect("it fits");
            drop(shard);
            removed.clear();
        };
        (0..2 * entries).for_each(&mut store);
        let start = Instant::now();
        (2 * entries..2 * entries + LOOK_UPS).for_each(&mut store);
        let replacement = start.elapsed();
        let newest = 2 * entries + LOOK_UPS;
        let start = Instant::now();
        let mut place = 0u64;
        for _ in 0..LOOK_UPS {
            // An odd factor visits the recent entries in no order.
            place = place.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let key = [newest - 1 - place % entries; 4];
            black_box(shards.of(&key).get(&key, Moment::ZERO).cloned());
        }
        let each = |time: Duration| time.as_nanos() as f64 / LOOK_UPS as f64;
        println!(
            "| {entries} | {:.0} | {:.0} |",
            each(start.elapsed()),
            each(replacement)
        );
    }
}
