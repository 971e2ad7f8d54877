//! Measures the cost of an idle kept connection: resident memory of one process with thousands of
//! them, and a generation served meanwhile. nginx is measured in the same way.
//!
//!     cargo bench --bench idle
//!
//! Then the same over TLS 1.3, with `IDLE_TLS_CONNECTIONS` (10,000); 0 of either leaves it out.
//! `IDLE_CONNECTIONS` (15,000) needs a descriptor limit of that and 200 more, `ulimit -Hn`.
//! Memory is the process's own (`RssAnon`); the kernel's socket buffers are counted for neither.

#[path = "../tests/common/mod.rs"]
mod common;
mod support;

use std::io;
use std::time::{Duration, Instant};

use serde_json::json;
use tempfile::TempDir;

use common::process::{Process, allow_descriptors};
use common::tls::{Authority, without_resumption};
use common::{Connection, Options, request};
use support::{Nginx, parameter};

/// The body of a health check's response; the daemon's own are as short.
const BODY: &str = "{\"status\":\"ok\"}\n";

/// The descriptors that the daemon reserves (128), those for its own connections to servers (256),
/// and those opened meanwhile: with fewer it would close its oldest idle connections to make room.
const SPARE_DESCRIPTORS: u64 = 456;

fn main() {
    support::require("nginx", "nginx");
    let count: usize = parameter("IDLE_CONNECTIONS", 15_000);
    let tls_count: usize = parameter("IDLE_TLS_CONNECTIONS", 10_000);
    allow_descriptors(count.max(tls_count) as u64 + SPARE_DESCRIPTORS);
    println!(
        "{}; {}; {count} connections, {tls_count} over TLS\n",
        support::machine(),
        Nginx::version()
    );
    println!("| server | before, KiB | with them, KiB | bytes a connection | gone again, KiB |");
    println!("| --- | --- | --- | --- | --- |");

    let times = (count > 0).then(|| compare_clear(count));
    if tls_count > 0 {
        compare_tls(tls_count);
    }
    if let Some((alone, beside)) = times {
        println!("\nA generation of 32 tokens took {alone:?} alone and {beside:?} beside them.");
    }
}

/// Returns how long a generation takes alone, and beside the connections.
fn compare_clear(count: usize) -> (Duration, Duration) {
    let descriptors = count as u64 + SPARE_DESCRIPTORS;
    let options = if cfg!(feature = "llama") {
        Options::llama()
    } else {
        Options::echo()
    };
    let daemon = options
        .set("limits.idle_timeout", "10m")
        .set_raw("log.access", "false")
        .descriptors(descriptors)
        .start();
    let body = json!({"prompt": "a function that adds two numbers", "language": "python",
                      "max_tokens": 32});
    let generate = || {
        let start = Instant::now();
        daemon.generate(&body).expect(200);
        start.elapsed()
    };
    generate();
    let alone = generate();
    let beside = measure(
        "autoglmd",
        || Connection::tcp(daemon.address()),
        daemon.process(),
        count,
        generate,
    );
    let nginx = Nginx::start(BODY, &[], nginx_connections(count));
    let connect = || Connection::tcp(nginx.address());
    measure("nginx", connect, nginx.process(), count, || ());
    (alone, beside)
}

/// Full handshakes of TLS 1.3 with the same certificate (ECDSA on P-256) on both sides.
fn compare_tls(count: usize) {
    let authority = Authority::new("the bench");
    let folder = TempDir::new().expect("a folder for the certificate");
    let (certificate, key) = authority.server("localhost").save(folder.path(), "site");
    let client = without_resumption(authority.client_of(None, &[&rustls::version::TLS13]));
    let daemon = Options::echo()
        .set("limits.idle_timeout", "10m")
        .set_raw("log.access", "false")
        .set_raw("server.tls.certificates", &format!("{:?}", [&certificate]))
        .set_raw("server.tls.keys", &format!("{:?}", [&key]))
        .descriptors(count as u64 + SPARE_DESCRIPTORS)
        .start();
    let connect = || Connection::tls(daemon.address(), &client, "localhost");
    measure("autoglmd, TLS", connect, daemon.process(), count, || ());
    drop(daemon);
    let nginx = Nginx::start_tls(
        BODY,
        &[],
        nginx_connections(count),
        (&certificate, &key),
        &client,
    );
    let connect = || Connection::tls(nginx.address(), &client, "localhost");
    measure("nginx, TLS", connect, nginx.process(), count, || ());
}

/// nginx closes idle connections when fewer than a sixteenth of its places are free.
fn nginx_connections(count: usize) -> usize {
    count + count / 8 + 100
}

/// Opens the connections, completes one request on each, and closes them again. Returns the result
/// of `meanwhile`.
fn measure<T>(
    name: &str,
    connect: impl Fn() -> io::Result<Connection>,
    process: Process,
    count: usize,
    meanwhile: impl Fn() -> T,
) -> T {
    let bytes = request("GET", "/livez", &[], b"");
    // One exchange first, so that what a server sets up only once is not counted.
    connect().expect("it listens").exchange(&bytes).expect(200);
    let before = process.anonymous_bytes();
    let mut connections = Vec::with_capacity(count);
    for _ in 0..count {
        let mut connection = connect().expect("there is room for this many");
        connection.exchange(&bytes).expect(200);
        connections.push(connection);
    }
    let with = process.anonymous_bytes();
    let said = meanwhile();
    for connection in &mut connections {
        connection.exchange(&bytes).expect(200);
    }
    drop(connections);
    meanwhile();
    let after = process.anonymous_bytes();
    println!(
        "| {name} | {} | {} | {:.0} | {} |",
        before >> 10,
        with >> 10,
        (with as f64 - before as f64) / count as f64,
        after >> 10
    );
    said
}
