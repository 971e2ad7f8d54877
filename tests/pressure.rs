//! The daemon under pressure: slow peers, deadlines, delays, thousands of connections, a full
//! descriptor table, several listeners and reactors. With the echo engine.

mod common;

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use serde_json::json;

use common::process::{NoDelay, allow_descriptors, count_nodelay};
use common::{Answer, Connection, Daemon, Options, eventually, request};

/// One daemon for all tests that neither fill nor end it.
fn shared() -> &'static Daemon {
    Daemon::shared(Options::echo)
}

const SMALL: &str = r#"{"prompt": "hello", "language": "python"}"#;

// ---- deadlines -------------------------------------------------------------------------------

#[test]
fn header_deadline_is_not_moved_by_dripping_bytes() {
    let daemon = Options::echo()
        .set("limits.header_timeout", "700ms")
        .start();
    let mut connection = daemon.connect();
    let start = Instant::now();
    connection.send(b"GET /livez HTTP/1.1\r\nhost: a\r\nx-slow: ");
    let answer = drip(&mut connection);
    let elapsed = start.elapsed();
    answer.expect_error(408, "request_timeout");
    // Tools that watch the log for such peers find their address there.
    let line = daemon.wait_for_log(0, "request_timeout");
    assert!(line.contains("peer=127.0.0.1"), "{line}");
    assert!(
        elapsed >= Duration::from_millis(600),
        "too early: {elapsed:?}"
    );
    assert!(elapsed < Duration::from_secs(10), "too late: {elapsed:?}");
}

#[test]
fn body_deadline_is_not_moved_by_dripping_bytes() {
    let daemon = Options::echo().set("limits.body_timeout", "700ms").start();
    let mut connection = daemon.connect();
    let mut head = daemon.request_with(
        "GET",
        "/api/v1/generate",
        &[("content-length", "9999")],
        b"",
    );
    head.splice(..3, *b"POST");
    let start = Instant::now();
    connection.send(&head);
    let answer = drip(&mut connection);
    let elapsed = start.elapsed();
    answer.expect_error(408, "request_timeout");
    assert!(
        elapsed >= Duration::from_millis(600),
        "too early: {elapsed:?}"
    );
    assert!(elapsed < Duration::from_secs(10), "too late: {elapsed:?}");
}

#[test]
fn idle_connection_is_closed_whether_or_not_it_was_used() {
    let daemon = Options::echo().set("limits.idle_timeout", "3s").start();
    let mut fresh = daemon.connect();
    let mut used = daemon.connect();
    let start = Instant::now();
    used.exchange(&request("GET", "/livez", &[], b""))
        .expect(200);
    assert_eq!(used.until_closed(), b"");
    assert_eq!(fresh.until_closed(), b"");
    let elapsed = start.elapsed();
    assert!(
        elapsed >= Duration::from_millis(2_900),
        "too early: {elapsed:?}"
    );
    assert!(elapsed < Duration::from_secs(30), "too late: {elapsed:?}");
}

#[test]
fn idle_time_counts_from_the_last_answer() {
    const TIMEOUT: Duration = Duration::from_secs(2);
    let daemon = Options::echo().set("limits.idle_timeout", "2s").start();
    for round in 1.. {
        match idle_after_last_answer(daemon.connect()) {
            Ok(elapsed) => {
                assert!(elapsed > TIMEOUT);
                return;
            }
            // Only a busy machine, which leaves the client or the daemon standing, is idle for as long.
            Err(idle) => assert!(idle >= TIMEOUT && round < 5, "closed after {idle:?}"),
        }
    }
}

/// Asks again and again, each time before the timeout is over, and returns how long that took
/// together. If the connection is closed, returns the time from the last request that had a response.
fn idle_after_last_answer(mut connection: Connection) -> Result<Duration, Duration> {
    let bytes = request("GET", "/livez", &[], b"");
    let start = Instant::now();
    let mut last = start;
    for _ in 0..6 {
        let asked = Instant::now();
        let answer = connection
            .try_send(&bytes)
            .and_then(|()| connection.try_answer());
        let Ok(answer) = answer else {
            return Err(last.elapsed());
        };
        answer.expect(200);
        last = asked;
        if connection.closed_within(Duration::from_millis(500)) {
            return Err(last.elapsed());
        }
    }
    Ok(start.elapsed())
}

// ---- delays ----------------------------------------------------------------------------------

/// A published table shows a gateway without TCP_NODELAY: 40 ms more for each exchange.
///
/// Only a response of several writes can be delayed: the second one waits for the acknowledgement
/// of the first, which the client delays because it has nothing to send. A burst of more requests
/// than are handled at a time makes such a response.
#[test]
fn several_small_writes_do_not_wait_for_delayed_acknowledgements() {
    let daemon = shared();
    let mut connection = daemon.connect();
    let burst = request("GET", "/livez", &[], b"").repeat(40);
    let mut times = Vec::new();
    for _ in 0..100 {
        let start = Instant::now();
        connection.send(&burst);
        for _ in 0..40 {
            connection.answer().expect(200);
        }
        times.push(start.elapsed());
    }
    // The kernel acknowledges the first segments of a connection at once.
    let mut times = times.split_off(20);
    times.sort();
    // On a busy machine many exchanges wait for a core. Those that do not would show the delay: it
    // is the same for all.
    let quick = times[times.len() / 10];
    assert!(
        quick < Duration::from_millis(35),
        "a tenth within {quick:?}"
    );
}

/// Checks the option itself, read from the daemon's own descriptors.
#[test]
fn every_accepted_socket_has_nodelay() {
    let daemon = Daemon::echo();
    let mut connections: Vec<Connection> = (0..8).map(|_| daemon.connect()).collect();
    for connection in &mut connections {
        connection
            .exchange(&request("GET", "/livez", &[], b""))
            .expect(200);
    }
    match count_nodelay(daemon.process()) {
        Ok(found) => assert_eq!(found, NoDelay { set: 8, unset: 0 }),
        // A container without CAP_SYS_PTRACE: only the test above, which measures, checks the
        // option.
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            eprintln!("pidfd_getfd(2) is not permitted here; the delay itself is tested instead");
            several_small_writes_do_not_wait_for_delayed_acknowledgements();
        }
        Err(error) => panic!("pidfd_getfd: {error}"),
    }
}

#[test]
fn client_that_does_not_read_does_not_hold_up_others() {
    // A client that had to wait for the slow one would wait for as long.
    let daemon = Options::echo().set("limits.write_timeout", "10m").start();
    let mut slow = daemon.connect();
    slow.set_write_timeout(Duration::from_millis(300));
    // Requests until the daemon stops reading: it neither grows without bound nor waits.
    let batch = daemon.request("GET", "/api/v1/languages", b"").repeat(100);
    let before = daemon.process().resident_bytes();
    let stopped = (0..2_000).any(|_| slow.try_send(&batch).is_err());
    assert!(
        stopped,
        "the daemon read 200,000 requests whose responses are not read"
    );
    let mut other = daemon.connect();
    for _ in 0..50 {
        other
            .exchange(&daemon.request("POST", "/api/v1/generate", SMALL.as_bytes()))
            .expect(200);
    }
    let grown = daemon.process().resident_bytes().saturating_sub(before);
    assert!(grown < 16 << 20, "one slow reader costs {grown} bytes");
}

#[test]
fn slow_reader_is_closed_after_the_write_timeout() {
    let daemon = Options::echo().set("limits.write_timeout", "500ms").start();
    let mut slow = daemon.connect();
    slow.set_write_timeout(Duration::from_millis(200));
    let batch = daemon.request("GET", "/api/v1/languages", b"").repeat(100);
    assert!((0..2_000).any(|_| slow.try_send(&batch).is_err()));
    eventually("only the asking connection is left", || {
        (daemon.metrics().value("autoglmd_connections") <= 1.0).then_some(())
    });
}

// ---- many connections ------------------------------------------------------------------------

#[test]
fn thousands_of_idle_connections_cost_no_thread_and_no_delay() {
    allow_descriptors(4_000);
    let daemon = Options::echo().descriptors(4_000).start();
    let threads = daemon.process().threads();
    let idle: Vec<Connection> = (0..2_000).map(|_| daemon.connect()).collect();
    let half_sent: Vec<Connection> = (0..1_000)
        .map(|_| {
            let mut connection = daemon.connect();
            connection.send(b"POST /api/v1/generate HTTP/1.1\r\nhost: a\r\n");
            connection
        })
        .collect();
    let start = Instant::now();
    for _ in 0..20 {
        daemon.generate(&json!({"prompt": "hello"})).expect(200);
    }
    let elapsed = start.elapsed();
    assert!(elapsed < Duration::from_secs(10), "20 took {elapsed:?}");
    let open = daemon.metrics().value("autoglmd_connections");
    assert!(open >= 3_000.0, "{open} connections");
    assert_eq!(daemon.process().threads(), threads);
    drop((idle, half_sent));
    eventually("all connections are gone", || {
        (daemon.metrics().value("autoglmd_connections") <= 1.0).then_some(())
    });
}

/// Several servers turn EMFILE into a busy loop: the listener stays readable for ever.
#[test]
fn running_out_of_descriptors_costs_no_cpu_and_heals() {
    let daemon = Options::echo().descriptors(512).start();
    let process = daemon.process();
    // The daemon has sized itself by the first limit; now the kernel refuses far earlier.
    process.limit_descriptors(process.descriptors() as u64 + 8);
    let mut connections: Vec<Connection> = (0..64)
        .map(|_| {
            let mut connection = daemon.connect();
            connection.send(b"GET /livez HTTP/1.1\r\n");
            connection
        })
        .collect();
    let before = process.cpu_time();
    // The last one waits in the kernel's queue: nothing comes during the time that we look.
    let last = connections.last_mut().expect("64 connections");
    assert!(!last.closed_within(Duration::from_secs(1)));
    let spent = process.cpu_time() - before;
    assert!(
        spent < Duration::from_millis(200),
        "{spent:?} of CPU in a second of EMFILE"
    );
    drop(connections);
    let start = Instant::now();
    daemon
        .exchange(&request("GET", "/livez", &[], b""))
        .expect(200);
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "back after {:?}",
        start.elapsed()
    );
}

#[test]
fn too_few_descriptors_for_two_connections_draw_a_warning() {
    let daemon = Options::echo().descriptors(100).start();
    daemon.wait_for_log(0, "RLIMIT_NOFILE = 100");
    for _ in 0..3 {
        daemon.generate(&json!({"prompt": "hello"})).expect(200);
    }
}

#[test]
fn oldest_idle_connection_makes_room_for_a_new_one() {
    let daemon = Options::echo()
        .set_raw("limits.max_connections", "64")
        .start();
    let bytes = request("GET", "/livez", &[], b"");
    let mut idle: Vec<Connection> = Vec::new();
    for _ in 0..64 {
        let mut connection = daemon.connect();
        connection.exchange(&bytes).expect(200);
        idle.push(connection);
    }
    for _ in 0..4 {
        daemon.exchange(&bytes).expect(200);
    }
    assert_eq!(idle[0].until_closed(), b"");
    idle[63].exchange(&bytes).expect(200);
}

// ---- listeners and reactors ------------------------------------------------------------------

#[test]
fn unix_socket_and_several_addresses_are_served_together() {
    let folder = tempfile::tempdir().expect("a folder for the socket");
    let path = folder.path().join("autoglmd.sock");
    let listen = format!(
        r#"["127.0.0.1:0", "127.0.0.2:0", "unix:{}"]"#,
        path.display()
    );
    let daemon = Options::echo().set_raw("server.listen", &listen).start();
    let bytes = daemon.request("POST", "/api/v1/generate", SMALL.as_bytes());
    assert_eq!(daemon.addresses().len(), 2);
    for &address in daemon.addresses() {
        Connection::tcp(address)
            .expect("it listens")
            .exchange(&bytes)
            .expect(200);
    }
    let mut connection = Connection::unix(&path).expect("it listens");
    connection.exchange(&bytes).expect(200);
    connection.exchange(&bytes).expect(200);
}

#[test]
fn two_reactors_share_the_connections() {
    let daemon = Options::echo().argument("--reactors").argument("2").start();
    let bytes = daemon.request("POST", "/api/v1/generate", SMALL.as_bytes());
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut connections: Vec<Connection> = (0..8).map(|_| daemon.connect()).collect();
                for connection in &mut connections {
                    for _ in 0..10 {
                        connection.exchange(&bytes).expect(200);
                    }
                }
            });
        }
    });
    let metrics = daemon.metrics();
    let served = metrics.sum("autoglmd_requests_total", &[("status", "200")]);
    assert!(served >= 640.0, "{served} requests counted");
    eventually("all connections are gone", || {
        (daemon.metrics().value("autoglmd_connections") <= 1.0).then_some(())
    });
}

// ---- helpers ---------------------------------------------------------------------------------

/// Sends a byte every 50 ms until a response comes.
fn drip(connection: &mut Connection) -> Answer {
    let start = Instant::now();
    while start.elapsed() < common::PATIENCE {
        if connection.readable_within(Duration::from_millis(50)) {
            return connection.answer();
        }
        // The daemon may just have closed; the response has then come before.
        let _ = connection.try_send(b"a");
    }
    panic!("a minute of single bytes and no answer");
}
