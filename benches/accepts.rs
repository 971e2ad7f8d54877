//! Measures three ways of accepting with several reactors, each with and without hand-over to the
//! reactor with the fewest connections:
//!
//!  * `first`: the first reactor has the listener, and hands over;
//!  * `own`: each reactor has a listener of its own (`SO_REUSEPORT`), and the kernel chooses by hash;
//!  * `shared`: all reactors watch one listener with `EPOLLEXCLUSIVE`, as the daemon does.
//!
//!     cargo bench --bench accepts
//!
//! The columns: new connections per second, each with one request, and the reactors' CPU time for
//! one; how 400 kept connections are distributed; and how long a new connection waits for its
//! response while one other client holds its reactor up, 20 ms at a time. Everything is in one
//! process on loopback, client threads included, so the rates are those of both sides together.

#[allow(dead_code, reason = "the bench and the test use a part each")]
#[path = "../tests/common/reactors.rs"]
mod reactors;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, SockRef, Socket, Type};

use reactors::Reactors;

const GET: &[u8] = b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n";

/// Connections of one measurement of the rate, and the clients that open them one after the other.
const RATE_CONNECTIONS: usize = 10_000;
const RATE_CLIENTS: usize = 4;

/// Kept connections, of which the reactors have a share each.
const KEPT_CONNECTIONS: usize = 400;

/// Connections that come one after the other while a reactor is held up.
const LATE_CONNECTIONS: usize = 300;

/// How long the engine holds up the reactor that submits a job.
const HOLD: Duration = Duration::from_millis(20);

/// Repetitions; the tables show medians of the rates.
const ROUNDS: usize = 3;

#[derive(Clone, Copy, PartialEq)]
enum Way {
    First,
    Own,
    Shared,
}

fn main() {
    println!(
        "| reactors | listener | hand-over | connections/s | CPU for one, us | distribution of \
         {KEPT_CONNECTIONS} | wait while one is held up: median, ms | p95 | longest |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    measure(1, Way::Shared, false);
    for reactors in [2, 4] {
        measure(reactors, Way::First, true);
        for way in [Way::Own, Way::Shared] {
            for hands_over in [false, true] {
                measure(reactors, way, hands_over);
            }
        }
    }
}

fn measure(reactors: usize, way: Way, hands_over: bool) {
    let mut rates: Vec<(f64, f64)> = (0..ROUNDS)
        .map(|_| rate(start(reactors, way, hands_over)))
        .collect();
    rates.sort_by(|a, b| a.0.total_cmp(&b.0));
    let per_second = rates[ROUNDS / 2].0;
    rates.sort_by(|a, b| a.1.total_cmp(&b.1));
    let cpu = rates[ROUNDS / 2].1;
    let shares = distribution(&start(reactors, way, hands_over));
    let waits = waits(&start(reactors, way, hands_over));
    let at = |share: usize| waits[(waits.len() * share / 100).min(waits.len() - 1)];
    let milliseconds = |wait: Duration| wait.as_secs_f64() * 1_000.0;
    let name = match way {
        Way::First => "first",
        Way::Own => "own",
        Way::Shared => "shared",
    };
    let hands_over = if hands_over { "yes" } else { "no" };
    println!(
        "| {reactors} | {name} | {hands_over} | {per_second:.0} | {cpu:.1} | {shares} | {:.2} | \
         {:.2} | {:.2} |",
        milliseconds(at(50)),
        milliseconds(at(95)),
        milliseconds(at(100)),
    );
}

struct Running {
    reactors: Reactors,
    address: SocketAddr,
}

fn start(count: usize, way: Way, hands_over: bool) -> Running {
    let first = listen(([127, 0, 0, 1], 0).into(), way == Way::Own);
    let address = first.local_addr().expect("it is bound");
    let address = address.as_socket().expect("a TCP address");
    let listeners = (0..count).map(|index| match way {
        Way::First if index > 0 => Vec::new(),
        Way::Own if index > 0 => vec![listen(address, true)],
        Way::First | Way::Own | Way::Shared => vec![first.clone()],
    });
    let reactors = Reactors::start(listeners.collect(), hands_over, |_| thread::sleep(HOLD));
    Running { reactors, address }
}

fn listen(address: SocketAddr, is_one_of_many: bool) -> Arc<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.set_reuse_port(is_one_of_many).expect("a socket");
    socket.set_tcp_nodelay(true).expect("a socket");
    socket.bind(&address.into()).expect("the address is free");
    socket.listen(4_096).expect("a backlog");
    socket.set_nonblocking(true).expect("a socket");
    Arc::new(socket)
}

fn ask(client: &mut TcpStream) {
    client.write_all(GET).expect("it is taken");
    let mut buffer = [0; 1_024];
    let count = client.read(&mut buffer).expect("a response");
    assert!(buffer[..count].starts_with(b"HTTP/1.1 200"));
}

fn connect(address: SocketAddr) -> TcpStream {
    let client = TcpStream::connect(address).expect("the reactors listen");
    // A reset instead of TIME_WAIT, of which loopback has too few ports.
    let none = Some(Duration::ZERO);
    SockRef::from(&client).set_linger(none).expect("a socket");
    client
}

/// Returns new connections per second, each with one request, and the reactors' CPU time for one,
/// in microseconds.
fn rate(mut running: Running) -> (f64, f64) {
    let address = running.address;
    let left = AtomicUsize::new(RATE_CONNECTIONS);
    let start = Instant::now();
    thread::scope(|scope| {
        for _ in 0..RATE_CLIENTS {
            scope.spawn(|| {
                let one_less = |left: usize| left.checked_sub(1);
                let order = Ordering::Relaxed;
                while left.fetch_update(order, order, one_less).is_ok() {
                    ask(&mut connect(address));
                }
            });
        }
    });
    let elapsed = start.elapsed().as_secs_f64();
    let cpu: Duration = running.reactors.stop().into_iter().sum();
    let count = RATE_CONNECTIONS as f64;
    (count / elapsed, cpu.as_secs_f64() * 1e6 / count)
}

/// Opens connections from several clients at once, and returns how many each reactor has.
fn distribution(running: &Running) -> String {
    let address = running.address;
    let each = KEPT_CONNECTIONS / RATE_CLIENTS;
    let clients: Vec<_> = (0..RATE_CLIENTS)
        .map(|_| {
            thread::spawn(move || {
                let mut kept: Vec<TcpStream> = (0..each).map(|_| connect(address)).collect();
                kept.iter_mut().for_each(ask);
                kept
            })
        })
        .collect();
    let kept: Vec<_> = clients.into_iter().map(|client| client.join()).collect();
    let shares = running.reactors.connections();
    drop(kept);
    let shares: Vec<_> = shares.iter().map(u32::to_string).collect();
    shares.join(" + ")
}

/// Returns how long new connections wait for their response while another client holds its reactor
/// up without a break, sorted.
fn waits(running: &Running) -> Vec<Duration> {
    let body = r#"{"prompt":"sort","language":"python"}"#;
    let request = format!(
        "POST /api/v1/generate HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    let ends = AtomicBool::new(false);
    let mut blocker = connect(running.address);
    ask(&mut blocker);
    let mut waits = thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = [0; 4_096];
            while !ends.load(Ordering::Relaxed) {
                blocker.write_all(request.as_bytes()).expect("it is taken");
                let count = blocker.read(&mut buffer).expect("a response");
                assert!(count > 0, "a response");
            }
        });
        let late = (0..LATE_CONNECTIONS).map(|_| {
            // Not in step with the blocker.
            thread::sleep(Duration::from_micros(1_700));
            let start = Instant::now();
            ask(&mut connect(running.address));
            start.elapsed()
        });
        let late: Vec<_> = late.collect();
        ends.store(true, Ordering::Relaxed);
        late
    });
    waits.sort_unstable();
    waits
}
