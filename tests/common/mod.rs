//! Shared by the end-to-end tests and the benches.
//!
//! * [`daemon`] starts the real binary in its own folder and ends it.
//! * [`client`] speaks HTTP/1.1 byte by byte, so that a test can also speak it wrongly.
//! * [`http2`] speaks HTTP/2 frame by frame, and wrongly as well.
//! * [`crowd`] is many clients at once.
//! * [`tls`] makes certificates, and clients that trust them.
//! * [`metrics`] reads `/metrics`; [`process`] reads `/proc` and makes the few system calls.
//! * [`asker`] asks an engine in this process; [`gguf`] makes model files, sound and broken ones.
//! * [`notify`] plays the service manager, [`player`] a server; [`model`] finds the model;
//!   [`python`] makes the environment in which the original client runs; [`terminal`] is one.
//! * [`workers`] prepares prompts for an engine in this process.
//! * [`postgres`] starts a PostgreSQL server of the test's own, and stops, freezes and kills it;
//!   [`redis`] does the same for Redis; [`haproxy`] stands in front of daemons.
//!
//! Nothing here sleeps to wait for something: a wait ends with a line of the log, a response, or a
//! bound that is far above what a working daemon needs.

// Each test binary compiles this module for itself and uses only a part of it.
#![allow(dead_code, unused_imports)]

#[cfg(feature = "llama")]
pub mod asker;
pub mod client;
pub mod crowd;
pub mod daemon;
pub mod gguf;
pub mod haproxy;
pub mod http2;
pub mod metrics;
pub mod model;
pub mod notify;
pub mod player;
pub mod postgres;
pub mod process;
pub mod python;
pub mod redis;
pub mod terminal;
pub mod tls;
pub mod workers;

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

pub use client::{Answer, Connection, request};
pub use daemon::{Daemon, Options};

/// A bound for anything that must happen, however busy the machine is.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Returns the files below a folder that hold one of the texts.
pub fn files_with(folder: &Path, texts: &[&[u8]]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(files_with(&path, texts));
            continue;
        }
        let bytes = std::fs::read(&path).unwrap_or_default();
        let holds = |text: &&[u8]| memchr::memmem::find(&bytes, text).is_some();
        if texts.iter().any(holds) {
            found.push(path);
        }
    }
    found
}

/// Returns how many times a test that kills a daemon does so: `AUTOGLMD_KILLS`, or 3.
pub fn kills() -> usize {
    let kills = std::env::var("AUTOGLMD_KILLS");
    kills.map_or(3, |text| text.parse().expect("AUTOGLMD_KILLS is a number"))
}

/// Rounds in which a promise about time may be shown.
const ROUNDS: usize = 5;

/// Runs `round` until one of a few stays within the bound, and returns how many were run: a machine
/// that is busy with other things is slow for seconds. `round` returns the time that it took.
pub fn within(bound: Duration, what: &str, mut round: impl FnMut() -> Duration) -> usize {
    for number in 1..=ROUNDS {
        let time = round();
        println!("{what}: {time:?}");
        if time < bound {
            return number;
        }
    }
    panic!("{what}: longer than {bound:?} in each of {ROUNDS} rounds");
}

/// Returns addresses for daemons of one cluster that is not started yet. Nothing else binds a port of
/// the loopback address that they share, so each port that was free is still free at their start.
pub fn udp_addresses<const COUNT: usize>() -> [SocketAddr; COUNT] {
    static CLUSTERS: AtomicU8 = AtomicU8::new(1);
    let [.., high, low] = std::process::id().to_be_bytes();
    let cluster = CLUSTERS.fetch_add(1, Ordering::Relaxed);
    // 127.0.0.1 is the address of all other tests.
    let host = Ipv4Addr::new(127, high | 0x80, low, cluster);
    let sockets = [(); COUNT].map(|()| UdpSocket::bind((host, 0)).expect("a port is free"));
    sockets.map(|socket| socket.local_addr().expect("it is bound"))
}

/// Calls `probe` again and again until it returns a value, and returns how long that took.
///
/// The probe paces itself: it makes a request, or reads a file that the kernel keeps.
pub fn eventually<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> (T, Duration) {
    let start = Instant::now();
    loop {
        if let Some(found) = probe() {
            return (found, start.elapsed());
        }
        assert!(start.elapsed() < PATIENCE, "timed out waiting until {what}");
        std::thread::yield_now();
    }
}
