//! The steps of `docs/tour.md` that grow a smallest reactor: each is compiled here and serves real
//! sockets, on a port that the kernel chooses.
//!
//! Mutations, each of which fails here:
//!
//!  * `echo.rs`: `accept` returns after one connection; `pump` returns after one read
//!    (`every_step`).
//!  * `echo_slots.rs`: `get_mut` ignores the generation (`a_late_hang_up_reaches_no_other_client`).
//!  * `echo_readiness.rs`: `handle_short_read` clears the bit behind a FIN
//!    (`a_client_that_half_closes_at_once_gets_its_echo_and_a_fin`); a full read clears it
//!    (`more_than_all_buffers_hold`).
//!  * `echo_run_queue.rs`: `for _ in 0..READS_PER_TURN` becomes `loop`; `Pumped::Again` queues
//!    nothing (`a_share_of_a_turn_and_no_more`).
//!  * `echo_wheel.rs`: `expire` closes without a look at `idle_until`, or never closes
//!    (`a_client_that_is_silent_for_a_minute_loses_its_place`).

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

#[allow(dead_code, reason = "`main` is for `cargo run --example`")]
#[path = "../docs/tour/echo.rs"]
mod echo;
#[allow(dead_code, reason = "`main` is for `cargo run --example`")]
#[path = "../docs/tour/echo_readiness.rs"]
mod echo_readiness;
#[allow(dead_code, reason = "`main` is for `cargo run --example`")]
#[path = "../docs/tour/echo_run_queue.rs"]
mod echo_run_queue;
#[allow(dead_code, reason = "`main` is for `cargo run --example`")]
#[path = "../docs/tour/echo_slots.rs"]
mod echo_slots;
#[allow(dead_code, reason = "`main` is for `cargo run --example`")]
#[path = "../docs/tour/echo_wheel.rs"]
mod echo_wheel;

/// A client that hears nothing for this long fails its test.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a turn waits for what a test has just sent, before the test looks for its effect.
const PAUSE: Duration = Duration::from_millis(10);
/// After so many turns a client that has heard nothing fails its test.
const TURNS_MAX: usize = 2_000;
/// Any free port.
const HERE: ([u8; 4], u16) = ([127, 0, 0, 1], 0);

fn connect(address: SocketAddr) -> TcpStream {
    let client = TcpStream::connect(address).expect("the kernel takes it into the backlog");
    let patience = Some(PATIENCE);
    client.set_read_timeout(patience).expect("a timeout");
    client.set_write_timeout(patience).expect("a timeout");
    client
}

fn read_all(mut client: &TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    client
        .read_to_end(&mut bytes)
        .expect("the echo, then a FIN");
    bytes
}

/// The stream's bytes, with a period that no buffer's size divides.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at % 251) as u8).collect()
}

/// What every step does, each as it stands in its file.
macro_rules! every_step {
    ($($step:ident)*) => { $(
        mod $step {
            use super::*;
            use super::super::$step::Reactor;

            /// A reactor on a thread that ends with the test's process.
            fn serve() -> SocketAddr {
                let mut reactor = Reactor::bind(HERE.into(), 1_000).expect("a free port");
                let address = reactor.address().expect("it is bound");
                std::thread::spawn(move || loop {
                    reactor.turn(None).expect("poll and accept work");
                });
                address
            }

            #[test]
            fn many_clients_at_once() {
                let address = serve();
                let clients: Vec<_> = (0..100).map(|_| connect(address)).collect();
                for (number, mut client) in clients.iter().enumerate() {
                    client.write_all(format!("I am {number}").as_bytes()).expect("it is short");
                }
                for (number, client) in clients.iter().enumerate() {
                    client.shutdown(Shutdown::Write).expect("it is connected");
                    assert_eq!(read_all(client), format!("I am {number}").as_bytes());
                }
            }

            #[test]
            fn more_than_all_buffers_hold() {
                let client = connect(serve());
                let sent = pattern(8 * 1024 * 1024);
                let received = std::thread::scope(|scope| {
                    scope.spawn(|| {
                        (&client).write_all(&sent).expect("the echo is read meanwhile");
                        client.shutdown(Shutdown::Write).expect("it is connected");
                    });
                    read_all(&client)
                });
                assert!(received == sent, "{} of {} bytes", received.len(), sent.len());
            }

            #[test]
            fn a_client_that_half_closes_at_once_gets_its_echo_and_a_fin() {
                let mut reactor = Reactor::bind(HERE.into(), 1_000).expect("a free port");
                let mut client = connect(reactor.address().expect("it is bound"));
                client.write_all(b"all that I had to say").expect("it is short");
                client.shutdown(Shutdown::Write).expect("it is connected");
                std::thread::spawn(move || loop {
                    reactor.turn(None).expect("poll and accept work");
                });
                assert_eq!(read_all(&client), b"all that I had to say");
            }
        }
    )* };
}

mod every_step {
    use super::*;

    every_step!(echo echo_slots echo_readiness echo_run_queue echo_wheel);
}

/// Turns until this client has got a byte, or its connection is closed; evaluates to either.
macro_rules! echo_of {
    ($reactor:expr, $client:expr) => {{
        let mut byte = [0];
        $client.set_nonblocking(true).expect("a socket");
        (0..TURNS_MAX)
            .find_map(|_| match $client.read(&mut byte) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let turned = $reactor.turn(Some(PAUSE));
                    turned.expect("poll and accept work");
                    None
                }
                end => Some(end.map(|length| (length == 1).then_some(byte[0]))),
            })
            .expect("a lost wake-up: no echo, and nothing left to do")
    }};
}

/// One place, an old client that resets its connection, and a new one that takes its place: both
/// in one batch of events, the new one's first. Evaluates to what the new client gets.
macro_rules! late_hang_up {
    ($reactor:expr) => {{
        let address = $reactor.address().expect("it is bound");
        let mut old = connect(address);
        old.write_all(b"o").expect("it is short");
        assert_eq!(echo_of!($reactor, old).expect("an echo"), Some(b'o'));
        let mut new = connect(address);
        // Its FIN is a reset.
        socket2::SockRef::from(&old)
            .set_linger(Some(Duration::ZERO))
            .expect("a socket");
        drop(old);
        new.write_all(b"n").expect("it is short");
        echo_of!($reactor, new)
    }};
}

/// The two edges are in one batch unless the kernel is busy; then the next attempt has them there.
const ATTEMPTS: usize = 100;

/// The first fault of `echo.rs`, which its head names.
#[test]
fn without_generations_a_late_hang_up_closes_the_wrong_connection() {
    let closes_the_wrong_one = |_| {
        let mut reactor = echo::Reactor::bind(HERE.into(), 1).expect("a free port");
        !matches!(late_hang_up!(reactor), Ok(Some(b'n')))
    };
    assert!((0..ATTEMPTS).any(closes_the_wrong_one));
}

#[test]
fn a_late_hang_up_reaches_no_other_client() {
    let is_stale = |_| {
        let mut reactor = echo_slots::Reactor::bind(HERE.into(), 1).expect("a free port");
        assert_eq!(late_hang_up!(reactor).expect("an echo"), Some(b'n'));
        reactor.stale_events == 1
    };
    assert!((0..ATTEMPTS).any(is_stale));
}

#[test]
fn a_share_of_a_turn_and_no_more() {
    const SHARE: usize = echo_run_queue::READS_PER_TURN * echo_run_queue::BUFFER_BYTES;
    const FLOOD: usize = 40 * SHARE;
    let mut reactor = echo_run_queue::Reactor::bind(HERE.into(), 10).expect("a free port");
    let address = reactor.address().expect("it is bound");
    let (mut greedy, mut modest) = (connect(address), connect(address));
    let writer = greedy.try_clone().expect("a descriptor");
    let flood = std::thread::spawn(move || (&writer).write_all(&pattern(FLOOD)));
    // The descriptors share one socket, so the writer would not block either if this one did not.
    greedy
        .set_read_timeout(Some(Duration::from_millis(1)))
        .expect("a socket");
    modest.write_all(b"m").expect("it is short");
    let (mut received, mut turns, mut buffer) = (Vec::new(), 0, vec![0; FLOOD]);
    while received.len() < FLOOD {
        reactor.turn(Some(PAUSE)).expect("poll and accept work");
        turns += 1;
        assert!(
            turns < TURNS_MAX,
            "a lost wake-up: {} bytes",
            received.len()
        );
        match greedy.read(&mut buffer) {
            Ok(length) => received.extend_from_slice(&buffer[..length]),
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        assert!(
            received.len() <= turns * SHARE,
            "{} bytes in {turns} turns",
            received.len()
        );
    }
    assert!(received == pattern(FLOOD));
    flood.join().expect("no panic").expect("all is sent");
    assert_eq!(echo_of!(reactor, modest).expect("an echo"), Some(b'm'));
}

#[test]
fn a_client_that_is_silent_for_a_minute_loses_its_place() {
    use echo_wheel::{IDLE_TIMEOUT, TICK};
    let mut reactor = echo_wheel::Reactor::bind(HERE.into(), 10).expect("a free port");
    let mut client = connect(reactor.address().expect("it is bound"));
    let mut echo = |reactor: &mut echo_wheel::Reactor| {
        let begun = Instant::now();
        client.write_all(b"a").expect("it is short");
        assert_eq!(echo_of!(reactor, client).expect("an echo"), Some(b'a'));
        begun
    };
    // From here on the test chooses the moments: nothing waits for a minute.
    let before = echo(&mut reactor);
    let accepted_by = Instant::now();
    reactor.expire(before + IDLE_TIMEOUT - TICK);
    // The deadline moves behind the moment at which its entry fires.
    while echo(&mut reactor) <= accepted_by + 2 * TICK {}
    reactor.expire(accepted_by + IDLE_TIMEOUT + TICK);
    echo(&mut reactor);
    reactor.expire(Instant::now() + IDLE_TIMEOUT + TICK);
    client.set_nonblocking(false).expect("a socket");
    assert_eq!(read_all(&client), b"");
}
