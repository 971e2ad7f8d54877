//! What each part of the daemon costs with many idle connections, and with none: a part that costs
//! more with them is one whose cost grows with their number.
//!
//!     ulimit -n 16000
//!     cargo bench --bench scale
//!
//! One reactor with the echo engine. The figures are CPU time of all of the daemon's threads
//! (`schedstat`), medians of `SCALE_ROUNDS` (20); and the kernel's memory per connection, of which
//! one half belongs to the clients on the same machine. `SCALE_CONNECTIONS` (15,000) needs a
//! descriptor limit of that and 200 more.

#[path = "../tests/common/mod.rs"]
mod common;
mod support;

use std::fs;
use std::time::Duration;

use common::process::{Process, allow_descriptors};
use common::{Connection, Daemon, Options, eventually, request};
use support::{median, parameter};

/// The descriptors that the daemon reserves (128), and those opened meanwhile.
const SPARE_DESCRIPTORS: u64 = 200;

/// How long the daemon is left alone, to see what it does by itself.
const IDLE_TIME: Duration = Duration::from_secs(5);

fn main() {
    let count: usize = parameter("SCALE_CONNECTIONS", 15_000);
    let rounds: usize = parameter("SCALE_ROUNDS", 20);
    allow_descriptors(count as u64 + SPARE_DESCRIPTORS);
    println!("{}; {count} idle connections\n", support::machine());
    let before = kernel_bytes();
    let (without, _) = measure(0, rounds, before);
    let (with, kernel) = measure(count, rounds, before);
    println!("| CPU time, us | with none | with {count} | more for each connection |");
    println!("| --- | --- | --- | --- |");
    for ((what, none), (_, all)) in without.iter().zip(&with) {
        let each = (all - none) / count as f64;
        println!("| {what} | {none:.0} | {all:.0} | {each:.3} |");
    }
    println!(
        "\nThe kernel holds {:.0} bytes for both ends of a connection.",
        kernel as f64 / count as f64
    );
}

/// Returns what each part costs beside this many connections, and the kernel's memory for them.
fn measure(count: usize, rounds: usize, kernel_before: u64) -> (Vec<(&'static str, f64)>, u64) {
    let mut daemon = Options::echo()
        .set_raw("server.reactors", "1")
        .set("limits.idle_timeout", "10m")
        .set_raw("log.access", "false")
        .descriptors(count as u64 + SPARE_DESCRIPTORS)
        .start();
    let bytes = request("GET", "/livez", &[], b"");
    let mut connections = Vec::with_capacity(count);
    let opening = cpu_us(daemon.process());
    for _ in 0..count {
        let mut connection = Connection::tcp(daemon.address()).expect("there is room");
        connection.exchange(&bytes).expect(200);
        connections.push(connection);
    }
    let opened = (cpu_us(daemon.process()) - opening) / count.max(1) as f64;
    let kernel = kernel_bytes().saturating_sub(kernel_before);
    let mut costs = vec![("a new connection and its first request", opened)];
    let mut of = |what, daemon: &Daemon, act: &mut dyn FnMut(&Daemon)| {
        act(daemon);
        let each = (0..rounds).map(|_| {
            let before = cpu_us(daemon.process());
            act(daemon);
            cpu_us(daemon.process()) - before
        });
        costs.push((what, median(each.collect::<Vec<_>>())));
    };
    let mut kept = daemon.connect();
    of("a request for /livez", &daemon, &mut |_| {
        kept.exchange(&bytes).expect(200);
    });
    of("a response of /metrics", &daemon, &mut |daemon| {
        daemon.get("/metrics").expect(200);
    });
    of("a reload of the configuration", &daemon, &mut |daemon| {
        let position = daemon.log_position();
        daemon.process().signal(libc::SIGHUP);
        daemon.wait_for_log(position, "SIGHUP");
    });
    of("a new key, until it is known", &daemon, &mut |daemon| {
        let output = daemon.run(&["key", "create"]);
        let key = String::from_utf8(output.stdout).expect("a key is ASCII");
        let authorization = format!("Bearer {}", key.trim());
        let fields = [("authorization", authorization.as_str())];
        let bytes = request("GET", "/api/v1/models", &fields, b"");
        let mut connection = daemon.connect();
        // One request in 20 ms, so that asking is not what is measured.
        eventually("the daemon knows the key", || {
            std::thread::park_timeout(Duration::from_millis(20));
            (connection.exchange(&bytes).status() == 200).then_some(())
        });
    });
    let before = cpu_us(daemon.process());
    std::thread::sleep(IDLE_TIME);
    let idle = (cpu_us(daemon.process()) - before) / IDLE_TIME.as_secs_f64();
    costs.push(("a second in which nothing happens", idle));
    drop(kept);
    costs.push(("a drain, to the end of the process", drain(&mut daemon)));
    drop(connections);
    (costs, kernel)
}

/// Ends the daemon and returns the CPU time that this took: the last figure that the kernel gave.
fn drain(daemon: &mut Daemon) -> f64 {
    let process = daemon.process();
    let before = cpu_us(process);
    process.signal(libc::SIGTERM);
    let mut last = before;
    while let Some(now) = try_cpu_us(process).filter(|&now| now >= last) {
        last = now;
    }
    daemon.wait();
    last - before
}

/// Returns the CPU time of all threads, in microseconds.
fn cpu_us(process: Process) -> f64 {
    try_cpu_us(process).expect("the process lives")
}

fn try_cpu_us(Process(id): Process) -> Option<f64> {
    let mut total = 0.0;
    for task in fs::read_dir(format!("/proc/{id}/task")).ok()? {
        // A thread may end meanwhile.
        let text = fs::read_to_string(task.ok()?.path().join("schedstat")).unwrap_or_default();
        let spent = text.split(' ').next().and_then(|word| word.parse().ok());
        total += spent.unwrap_or(0.0) / 1e3;
    }
    (total > 0.0).then_some(total)
}

/// Returns the kernel's own memory, of which sockets are a part.
fn kernel_bytes() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").expect("Linux");
    let line = text.lines().find_map(|line| line.strip_prefix("Slab:"));
    let number = line.and_then(|rest| rest.split_whitespace().next());
    number
        .and_then(|number| number.parse::<u64>().ok())
        .expect("a number")
        * 1_024
}
