//! What a request costs that something else takes part in: a database, Redis, the access log.
//!
//!     apt-get install nginx wrk postgresql redis-server
//!     cargo bench --bench stores
//!
//! Three tables. *Jobs*: how many `POST /api/v1/jobs` per second get their 202, which a commit on
//! the disk precedes, from one client and from several at once, in SQLite and in PostgreSQL.
//! *Redis*: the latency of responses that another daemon has computed, beside those from the
//! daemon's own memory and computed ones. *Access lines*: the CPU time of a request with a line
//! (ours into a pipe, nginx's into a file) and without.
//!
//! The daemon computes with the echo engine. `STORES_SECONDS` (4) is the time for each figure,
//! `STORES_REQUESTS` (4000) the number of requests to Redis, `STORES_ROUNDS` (3) the rounds of the
//! last table, which shows medians. `STORES_PARTS` is a list of jobs, redis, log.

#[path = "../tests/common/mod.rs"]
mod common;
mod support;

use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use common::postgres::{Postgres, Way};
use common::process::allow_descriptors;
use common::redis::Server;
use common::{Daemon, Options};
use support::{Nginx, Speaks, measured_daemon, median, parameter, percentile};

/// Clients that send one job after the other.
const CLIENTS: [usize; 4] = [1, 4, 16, 64];

/// Connections of wrk.
const CONNECTIONS: usize = 64;

fn main() {
    allow_descriptors(4_096);
    println!("{}\n", support::machine());
    let parts: String = parameter("STORES_PARTS", "jobs,redis,log".to_owned());
    for part in parts.split(',') {
        match part.trim() {
            "jobs" => jobs(),
            "redis" => shared_responses(),
            "log" => access_lines(),
            other => panic!("STORES_PARTS: {other:?} is none of jobs, redis, log"),
        }
        println!();
    }
}

fn seconds() -> Duration {
    Duration::from_secs(parameter("STORES_SECONDS", 4))
}

// ---- jobs --------------------------------------------------------------------------------------

fn jobs() {
    println!("| database | clients | jobs accepted/s | p50, ms | p99, ms |");
    println!("| --- | --- | --- | --- | --- |");
    let server = Postgres::shared();
    let url = server.url(&server.database(), Way::Socket);
    for (name, url) in [("SQLite", "sqlite"), ("PostgreSQL", &url)] {
        let options = Options::echo()
            .set("store.url", url)
            .set_raw("jobs.max_queued", "10000000")
            .set_raw("jobs.max_queued_per_key", "10000000")
            .set("jobs.max_size", "64GiB")
            .set_raw("jobs.concurrency", "1");
        let daemon = measured_daemon(options);
        for clients in CLIENTS {
            accepted(name, &daemon, clients);
        }
    }
}

/// Sends jobs from this many clients, and prints a row.
fn accepted(name: &str, daemon: &Daemon, clients: usize) {
    let body = json!({"prompt": "a quicksort", "language": "python"}).to_string();
    let bytes = daemon.request("POST", "/api/v1/jobs", body.as_bytes());
    let end = Instant::now() + seconds();
    let one = || {
        let mut connection = daemon.connect();
        let mut times = Vec::new();
        while Instant::now() < end {
            let start = Instant::now();
            connection.exchange(&bytes).expect(202);
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
        times
    };
    let times: Vec<f64> = thread::scope(|scope| {
        let threads: Vec<_> = (0..clients).map(|_| scope.spawn(one)).collect();
        let times = threads.into_iter().map(|it| it.join().expect("no panic"));
        times.flatten().collect()
    });
    println!(
        "| {name} | {clients} | {:.0} | {:.2} | {:.2} |",
        times.len() as f64 / seconds().as_secs_f64(),
        percentile(&times, 0.5),
        percentile(&times, 0.99),
    );
}

// ---- Redis -------------------------------------------------------------------------------------

fn shared_responses() {
    let server = Server::start();
    let options = || {
        Options::echo()
            .with_cache()
            .set("cache.max_size", "256MiB")
            .set("cache.shared.url", &server.url())
    };
    let first = measured_daemon(options());
    // The same folder has the same keys.
    let second = measured_daemon(options().in_folder(first.folder()));
    let count: usize = parameter("STORES_REQUESTS", 4_000);
    println!("| response | requests | p50, ms | p99, ms |");
    println!("| --- | --- | --- | --- |");
    let body = |number: usize, mode: &str| {
        let prompt = format!("program {number}");
        json!({"prompt": prompt, "language": "python", "cache": mode})
    };
    let ask = |name: &str, daemon: &Daemon, mode: &str, verdict: &str| {
        let mut connection = daemon.connect();
        let mut times = Vec::new();
        for number in 0..count {
            // The second daemon speaks for the first one's key.
            let bytes = first.generate_request(&body(number, mode));
            let start = Instant::now();
            let answer = connection.exchange(&bytes).expect(200);
            times.push(start.elapsed().as_secs_f64() * 1e3);
            assert_eq!(answer.field("x-cache"), Some(verdict), "{name}, {number}");
        }
        println!(
            "| {name} | {count} | {:.3} | {:.3} |",
            percentile(&times, 0.5),
            percentile(&times, 0.99)
        );
    };
    ask("computed, without a look-up", &first, "bypass", "bypass");
    ask("computed, after a look-up in Redis", &first, "use", "miss");
    common::eventually("Redis has all entries", || {
        let mut connection = server.connect();
        let entries: usize = redis::cmd("DBSIZE").query(&mut connection).ok()?;
        (entries >= count).then_some(())
    });
    ask("from Redis", &second, "use", "shared");
    ask("from memory", &second, "use", "hit");
}

// ---- access lines ------------------------------------------------------------------------------

fn access_lines() {
    support::require("nginx", "nginx");
    support::require("wrk", "wrk");
    let quiet = measured_daemon(Options::echo());
    // Into a pipe, as under a service manager.
    let talking = support::logging_daemon(Options::echo());
    let body = json!({"prompt": "a quicksort", "language": "python"});
    let answer = quiet.generate(&body).expect(200);
    let fields = &answer.head.fields;
    let without = Nginx::start_with(answer.text(), fields, 4_000, &Speaks::Http1);
    let with = Nginx::start_logging(answer.text(), fields, 4_000);
    let body = body.to_string();
    let rounds: usize = parameter("STORES_ROUNDS", 3);
    let peers = [
        ("autoglmd", quiet.address(), quiet.process(), quiet.key()),
        (
            "autoglmd, lines",
            talking.address(),
            talking.process(),
            talking.key(),
        ),
        ("nginx", without.address(), without.process(), quiet.key()),
        ("nginx, lines", with.address(), with.process(), quiet.key()),
    ];
    let mut figures = vec![Vec::new(); peers.len()];
    for _ in 0..rounds {
        for ((_, address, process, key), figures) in peers.iter().zip(&mut figures) {
            let before = process.cpu_time();
            let load = support::wrk(*address, key, &body, CONNECTIONS, seconds());
            let spent = process.cpu_time() - before;
            figures.push(spent.as_secs_f64() * 1e6 / load.requests as f64);
        }
    }
    println!("| server | CPU a request, us | its line, us |");
    println!("| --- | --- | --- |");
    let medians: Vec<f64> = figures.into_iter().map(median).collect();
    for (pair, names) in medians.chunks(2).zip(peers.chunks(2)) {
        println!("| {} | {:.2} | |", names[0].0, pair[0]);
        println!(
            "| {} | {:.2} | {:.2} |",
            names[1].0,
            pair[1],
            pair[1] - pair[0]
        );
    }
}
