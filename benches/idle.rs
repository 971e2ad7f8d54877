//! What an idle kept connection costs: resident memory with thousands of them on one process, and
//! a generation served meanwhile. nginx goes through the same.
//!
//!     cargo bench --bench idle
//!
//! `IDLE_CONNECTIONS` (15,000) needs a descriptor limit of that and 100 more, `ulimit -Hn`.
//! Memory is the process's own (`RssAnon`); the kernel's socket buffers are counted for neither.

#[path = "../tests/common/mod.rs"]
mod common;
mod support;

use std::net::SocketAddr;
use std::time::Instant;

use serde_json::json;

use common::process::{Process, allow_descriptors};
use common::{Connection, Options, request};
use support::{Nginx, parameter};

/// Answers of the kind that a health check gets; the daemon's own are as short.
const BODY: &str = "{\"status\":\"ok\"}\n";

fn main() {
    support::require("nginx", "nginx");
    let count: usize = parameter("IDLE_CONNECTIONS", 15_000);
    let descriptors = count as u64 + 100;
    allow_descriptors(descriptors);
    println!(
        "{}; {}; {count} connections\n",
        support::machine(),
        Nginx::version()
    );
    println!("| server | before, KiB | with them, KiB | bytes a connection | gone again, KiB |");
    println!("| --- | --- | --- | --- | --- |");

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
        daemon.address(),
        daemon.process(),
        count,
        generate,
    );
    let nginx = Nginx::start(BODY, &[], count + 100);
    measure("nginx", nginx.address(), nginx.process(), count, || ());
    println!("\nA generation of 32 tokens took {alone:?} alone and {beside:?} beside them.");
}

/// Opens the connections, each with one answered request behind it, and closes them again.
/// Returns what `meanwhile` said.
fn measure<T>(
    name: &str,
    address: SocketAddr,
    process: Process,
    count: usize,
    meanwhile: impl Fn() -> T,
) -> T {
    let bytes = request("GET", "/livez", &[], b"");
    // One exchange first: what a server sets up once is no connection's cost.
    Connection::tcp(address)
        .expect("it listens")
        .exchange(&bytes)
        .expect(200);
    let before = process.anonymous_bytes();
    let mut connections = Vec::with_capacity(count);
    for _ in 0..count {
        let mut connection = Connection::tcp(address).expect("there is room for this many");
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
