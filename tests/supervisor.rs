//! How the daemon keeps going: with its service manager, its engine's restarts and its own memory.
//!
//! Each test injects one fault into the real binary and waits for the promised reaction. The table
//! of `docs/reliability.md` names them.

mod common;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use serde_json::json;

use common::http2::frame::setting;
use common::http2::{Peer, Target};
use common::notify::Manager;
use common::{Daemon, Options, PATIENCE, eventually};

fn managed(folder: &tempfile::TempDir, options: Options) -> (Manager, Options) {
    let manager = Manager::new(folder.path());
    let options = options.environment("NOTIFY_SOCKET", manager.address());
    (manager, options)
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder for the socket")
}

// ---- the service manager ---------------------------------------------------------------------

/// A regression test. A busy manager's queue holds about ten messages. READY was sent once, and
/// lost: the unit stayed "activating" until its timeout killed it.
#[test]
fn ready_is_delivered_though_the_managers_queue_was_full() {
    let folder = folder();
    let (manager, options) = managed(&folder, Options::echo());
    manager.fill();
    let daemon = options.start();
    manager.wait_for("READY");
    daemon.get("/readyz").expect(200);

    manager.fill();
    daemon.process().signal(libc::SIGHUP);
    manager.wait_for("RELOADING");
    let ready = manager.wait_for("READY");
    assert!(
        ready
            .value("STATUS")
            .expect("a status")
            .starts_with("serving")
    );
}

#[test]
fn refused_reload_is_reported_until_one_succeeds() {
    let folder = folder();
    let (manager, options) = managed(&folder, Options::echo());
    let daemon = options.clone().start();
    manager.wait_for("READY");
    let reload = |options: &Options| {
        let text = options.configuration();
        std::fs::write(daemon.configuration_file(), text).expect("the file can be written");
        daemon.process().signal(libc::SIGHUP);
        manager.wait_for("RELOADING");
        let ready = manager.wait_for("READY");
        ready.value("STATUS").expect("a status").to_owned()
    };
    let status = reload(&options.clone().set("limits.max_body", "1 potato"));
    assert!(status.contains("last reload was refused"), "{status}");
    assert!(status.contains("max_body"), "{status}");
    let status = reload(&options);
    assert!(!status.contains("refused"), "{status}");
}

/// `systemctl restart` without a socket unit: the manager keeps the socket meanwhile.
/// Two reactors accept from it: each drains the backlog before it lets go of the socket.
#[test]
fn restart_refuses_no_connection() {
    let folder = folder();
    let (manager, options) = managed(
        &folder,
        Options::echo().argument("--reactors").argument("2"),
    );
    let mut first = options.clone().start();
    let mut stored = manager.wait_for("FDSTORE");
    let name = stored.value("FDNAME").expect("a name").to_owned();
    assert!(!name.contains(':'), "{name}");
    let kept = stored.listener.take().expect("a socket comes with it");
    manager.wait_for("READY");

    let clients = Clients::start(first.address());
    eventually("the first daemon serves", || clients.answered(10));
    first.process().signal(libc::SIGTERM);
    assert_eq!(first.wait().code(), Some(0));
    let second = options
        .in_folder(first.folder())
        .activated_with(kept, &name)
        .start();
    assert_eq!(second.address(), clients.address, "the same socket");
    let before = clients.answers.load(Ordering::Relaxed);
    eventually("the second daemon serves", || clients.answered(before + 10));
    let (refused, answers) = clients.stop();
    assert_eq!(refused, 0, "of {answers} answered");
}

/// An address that was removed from the configuration must keep neither its port nor waiting
/// clients.
#[test]
fn stored_socket_of_an_address_that_is_gone_is_removed() {
    let folder = folder();
    let (manager, options) = managed(&folder, Options::echo());
    let gone = std::net::TcpListener::bind("127.0.0.2:0").expect("all of 127/8 is ours");
    let address = gone.local_addr().expect("it is bound");
    let _managers_own = gone.try_clone().expect("descriptors are left");
    let _daemon = options.activated_with(gone, "autoglmd-127.0.0.2,1").start();
    let removed = manager.wait_for("FDSTOREREMOVE");
    assert_eq!(removed.value("FDNAME"), Some("autoglmd-127.0.0.2,1"));
    assert!(TcpStream::connect(address).is_err());
}

/// A file on a network disk that does not respond, simulated by a pipe without a writer, which is
/// given up after two seconds. The thread that read it used to be the one that feeds the watchdog.
#[test]
fn slow_configuration_file_does_not_starve_the_watchdog() {
    let folder = folder();
    let (manager, options) = managed(&folder, Options::echo());
    let daemon = options.environment("WATCHDOG_USEC", "400000").start();
    manager.wait_for("READY");
    let file = daemon.configuration_file();
    std::fs::remove_file(&file).expect("it is there");
    let made = Command::new("mkfifo").arg(&file).status();
    assert!(made.expect("mkfifo(1)").success());
    daemon.process().signal(libc::SIGHUP);
    manager.wait_for("RELOADING");
    let (ready, fed) = manager.wait_and_count("READY", "WATCHDOG");
    // Due ten times a second.
    assert!(fed >= 3, "fed {fed} times while the file was read");
    let status = ready.value("STATUS").expect("a status");
    assert!(status.contains("last reload was refused"), "{status}");
}

/// A regression test: one script's `kill -TERM` and `kill -INT` used to cut off running requests.
#[test]
fn term_and_int_that_come_together_begin_one_drain() {
    let mut daemon = Options::echo().start();
    let request = daemon.generate_request(&json!({"prompt": "hello"}));
    let mut connection = daemon.connect();
    connection.send(&request[..request.len() - 5]);
    eventually("the connection is open", || {
        let open = daemon.metrics().value("autoglmd_connections");
        (open >= 2.0).then_some(())
    });
    // Both are pending when the process continues.
    daemon.process().signal(libc::SIGSTOP);
    daemon.process().signal(libc::SIGTERM);
    daemon.process().signal(libc::SIGINT);
    daemon.process().signal(libc::SIGCONT);
    daemon.wait_for_log(0, "draining");
    connection.send(&request[request.len() - 5..]);
    // Too late to be accepted, but it gets a response and is not cut off.
    connection.answer().expect_error(503, "draining");
    assert_eq!(daemon.wait().code(), Some(0));
    let lines = daemon.log_lines();
    assert!(
        !lines.iter().any(|line| line.contains("second signal")),
        "{lines:?}"
    );
}

// ---- the engine's life -----------------------------------------------------------------------

/// Only debug builds know the faults of `AUTOGLMD_FAULT`.
#[cfg(all(feature = "llama", debug_assertions))]
mod faults {
    use super::*;

    #[test]
    fn engine_that_panics_starts_again_and_the_daemon_stays() {
        let daemon = Options::llama()
            .environment("AUTOGLMD_FAULT", "engine-panic")
            .start();
        let process = daemon.process();
        let mut bystander = daemon.connect();
        let body = json!({"prompt": "hello", "max_tokens": 4});
        daemon.generate(&body).expect_error(500, "engine_failed");
        // It loads again; until then it reports that.
        let (answer, _) = eventually("the engine is back", || {
            let answer = daemon.generate(&body);
            assert!(matches!(answer.status(), 200 | 503), "{}", answer.status());
            (answer.status() == 200).then_some(answer)
        });
        answer.expect(200);
        let metrics = daemon.metrics();
        assert_eq!(metrics.value("autoglmd_engine_restarts_total"), 1.0);
        assert!(process.is_alive());
        bystander
            .exchange(&daemon.request("GET", "/readyz", b""))
            .expect(200);
    }

    /// With a bug that hits every job, the daemon must not stay up and respond with 500 for ever.
    #[test]
    fn engine_that_panics_again_and_again_ends_the_daemon() {
        let mut daemon = Options::llama()
            .environment("AUTOGLMD_FAULT", "engine-panic:100")
            .start();
        let body = json!({"prompt": "hello", "max_tokens": 4});
        // Five restarts after a panic, and the panic that is one too many.
        for _ in 0..6 {
            eventually("the engine is there", || {
                (daemon.get("/readyz").status() == 200).then_some(())
            });
            daemon.generate(&body).expect_error(500, "engine_failed");
        }
        assert_eq!(daemon.wait().code(), Some(69));
        daemon.wait_for_log(0, "the engine has failed: a bug: AUTOGLMD_FAULT asks");
    }

    #[test]
    fn engine_that_hangs_is_reported_and_ends_the_process() {
        let folder = folder();
        let (manager, options) = managed(&folder, Options::llama());
        let mut daemon = options
            .environment("AUTOGLMD_FAULT", "engine-hang")
            .set("engine.stall_timeout", "5s")
            .start();
        daemon.get("/readyz").expect(200);
        let mut client = daemon.connect();
        client.send(&daemon.generate_request(&json!({"prompt": "hello"})));
        // The process ends ten seconds later.
        eventually("readiness follows", || {
            let answer = daemon.get("/readyz");
            (answer.status() == 503 && answer.text().contains("stalled")).then_some(())
        });
        let told = |start: &str| loop {
            let message = manager.wait_for("STATUS");
            let status = message.value("STATUS").expect("a status");
            if status.starts_with(start) {
                return;
            }
        };
        told("stalled: no progress of the engine");
        told("the engine hangs");
        assert_eq!(daemon.wait().code(), Some(70));
        daemon.wait_for_log(0, "the engine hangs: no sign of life");
    }
}

// ---- memory ----------------------------------------------------------------------------------

/// Bodies up to the limit on many connections, none of them complete, with a key. Their memory used
/// to stay with the process for ever.
#[test]
fn memory_of_a_flood_of_bodies_goes_back() {
    const CONNECTIONS: usize = 150;
    let daemon = Options::echo().start();
    daemon.generate(&json!({"prompt": "hello"})).expect(200);
    let process = daemon.process();
    let before = process.resident_bytes();
    let head = daemon.request_with("POST", "/api/v1/generate", &[], b"");
    let head = String::from_utf8(head).expect("a head is text");
    let head = head.replace("content-length: 0", "content-length: 1048576");
    let piece = vec![b' '; 1_000_000];
    let flood: Vec<TcpStream> = (0..CONNECTIONS)
        .map(|_| {
            let mut stream = TcpStream::connect(daemon.address()).expect("it accepts");
            stream.set_write_timeout(Some(PATIENCE)).expect("not zero");
            // The daemon may refuse some of it, which is good, too.
            let _ = stream.write_all(head.as_bytes());
            let _ = stream.write_all(&piece);
            stream
        })
        .collect();
    let peak = process.resident_bytes();
    drop(flood);
    expect_return(&daemon, before, peak);
}

/// The same over HTTP/2, where a few connections carry as much: 31 streams each, every body
/// incomplete.
#[test]
fn memory_of_a_flood_of_streams_goes_back() {
    const CONNECTIONS: usize = 5;
    const PIECE: i64 = 16_384;
    const PIECES: i64 = 60;
    let daemon = Options::echo().start();
    let target = Target::of(&daemon);
    daemon.generate(&json!({"prompt": "hello"})).expect(200);
    let process = daemon.process();
    let before = process.resident_bytes();
    let mut flood: Vec<Peer> = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut peer = Peer::open(&target).expect("it answers");
        let first = peer.server_setting(setting::INITIAL_WINDOW_SIZE);
        let first = i64::from(first.unwrap_or(65_535));
        let (mut sent, mut is_refused) = (0, false);
        for stream in (1..63).step_by(2) {
            peer.headers_open(stream, &target.post());
            for piece in 0..PIECES {
                let room = |peer: &Peer| {
                    let of_connection = 65_535 + peer.credit(0) - sent;
                    let of_stream = first + peer.credit(stream) - piece * PIECE;
                    of_connection.min(of_stream)
                };
                while !is_refused && room(&peer) < PIECE {
                    peer.step().expect("credit, or a refusal");
                    let answer = peer.so_far(stream);
                    is_refused = peer.is_over() || answer.status != 0 || answer.reset.is_some();
                }
                if is_refused {
                    break;
                }
                peer.data(stream, &[b' '; PIECE as usize]);
                sent += PIECE;
            }
            is_refused = peer.is_over();
        }
        flood.push(peer);
    }
    let peak = process.resident_bytes();
    drop(flood);
    expect_return(&daemon, before, peak);
}

/// Checks that resident memory falls to 120 % of the earlier value, without a further request.
fn expect_return(daemon: &Daemon, before: u64, peak: u64) {
    let (after, took) = eventually("memory goes back", || {
        let after = daemon.process().resident_bytes();
        (after * 10 <= before * 12).then_some(after)
    });
    let mib = |bytes: u64| bytes as f64 / 1024.0 / 1024.0;
    println!(
        "resident: {:.1} MiB before, {:.1} in the flood, {:.1} after {took:.1?}",
        mib(before),
        mib(peak),
        mib(after)
    );
}

// ---- clients that connect all the time -------------------------------------------------------

struct Clients {
    address: SocketAddr,
    answers: Arc<AtomicU32>,
    is_over: Arc<AtomicBool>,
    thread: thread::JoinHandle<u32>,
}

impl Clients {
    fn start(address: SocketAddr) -> Clients {
        let (answers, is_over) = (Arc::<AtomicU32>::default(), Arc::<AtomicBool>::default());
        let thread = {
            let (answers, is_over) = (answers.clone(), is_over.clone());
            thread::spawn(move || {
                let mut refused = 0;
                while !is_over.load(Ordering::Relaxed) {
                    match ask(address) {
                        Ok(true) => drop(answers.fetch_add(1, Ordering::Relaxed)),
                        // A draining daemon may close a connection before its request comes.
                        Ok(false) => {}
                        Err(_) => refused += 1,
                    }
                }
                refused
            })
        };
        Clients {
            address,
            answers,
            is_over,
            thread,
        }
    }

    fn answered(&self, count: u32) -> Option<()> {
        (self.answers.load(Ordering::Relaxed) >= count).then_some(())
    }

    /// Returns how many connections were refused, and how many requests got a response.
    fn stop(self) -> (u32, u32) {
        self.is_over.store(true, Ordering::Relaxed);
        let refused = self.thread.join().expect("it does not panic");
        (refused, self.answers.load(Ordering::Relaxed))
    }
}

/// Returns whether a request got a response; the error is that of connecting.
fn ask(address: SocketAddr) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut answer = String::new();
    let asked = stream.write_all(b"GET /livez HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
    let read = asked.and_then(|()| stream.read_to_string(&mut answer));
    Ok(read.is_ok() && answer.starts_with("HTTP/1.1 200"))
}
