//! Many clients at once, while a probe asks all the time whether the daemon lives.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::client::{Answer, request};
use super::daemon::Daemon;

/// How long `/livez` took while something else was going on, and how long the machine took for the
/// same between two threads that have nothing else to do. Both in rising order.
pub struct Health {
    daemon: Vec<Duration>,
    machine: Vec<Duration>,
}

impl Health {
    /// Ninety-nine of a hundred within 50 ms and all within a second, or within three times of what
    /// the scheduler itself takes, on two cores that a model and others use as well.
    pub fn check(&self) {
        assert!(!self.daemon.is_empty(), "no probe was sent");
        for (part, bound) in [
            (99, Duration::from_millis(50)),
            (100, Duration::from_secs(1)),
        ] {
            let bound = bound.max(3 * percentile(&self.machine, part));
            let took = percentile(&self.daemon, part);
            assert!(took < bound, "{part} of 100 within {took:?}: {self}");
        }
    }
}

fn percentile(times: &[Duration], part: usize) -> Duration {
    times[(times.len() - 1) * part / 100]
}

impl std::fmt::Display for Health {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let count = self.daemon.len();
        for (name, times) in [("/livez", &self.daemon), ("an echo", &self.machine)] {
            let at = |part| percentile(times, part);
            let (median, p99, worst) = (at(50), at(99), at(100));
            write!(
                f,
                "{name} {count} times: median {median:?}, p99 {p99:?}, worst {worst:?}; "
            )?;
        }
        Ok(())
    }
}

/// Ends [`echo`], however the thread that holds this ends.
struct EndEcho(SocketAddr);

impl Drop for EndEcho {
    fn drop(&mut self) {
        let _ = TcpStream::connect(self.0);
    }
}

/// Sends one byte back to each client that connects, until a connection brings none.
fn echo(listener: &TcpListener) {
    loop {
        let (mut peer, _) = listener.accept().expect("it listens");
        let mut byte = [0];
        if peer.read(&mut byte).expect("the test writes") == 0 {
            return;
        }
        peer.write_all(&byte).expect("the test reads");
    }
}

/// Sends all requests at once, each on its own connection, and asks for `/livez` all the while,
/// each time on a new connection, as a probe does.
pub fn crowd(
    daemon: &Daemon,
    count: usize,
    body: impl Fn(usize) -> Value + Sync,
) -> (Vec<(Answer, Duration)>, Health) {
    let over = AtomicBool::new(false);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port of the kernel's choice");
    let (body, over, listener) = (&body, &over, &listener);
    std::thread::scope(|scope| {
        scope.spawn(move || echo(listener));
        let probe = scope.spawn(move || {
            let bytes = request("GET", "/livez", &[("connection", "close")], b"");
            let address = listener.local_addr().expect("it is bound");
            let connect = || TcpStream::connect(address).expect("it listens");
            let _end = EndEcho(address);
            let (mut times, mut machine) = (Vec::new(), Vec::new());
            while !over.load(Ordering::Relaxed) {
                let start = Instant::now();
                let mut connection = daemon.connect();
                connection.exchange(&bytes).expect(200);
                times.push(start.elapsed());
                assert_eq!(connection.until_closed(), b"");
                let start = Instant::now();
                let mut control = connect();
                control.write_all(&[1]).expect("the echo reads");
                control.read_exact(&mut [0]).expect("the echo writes");
                machine.push(start.elapsed());
                // The pace of the probe; it waits for nothing.
                std::thread::park_timeout(Duration::from_millis(20));
            }
            times.sort();
            machine.sort();
            Health {
                daemon: times,
                machine,
            }
        });
        let asking: Vec<_> = (0..count)
            .map(|number| {
                scope.spawn(move || {
                    let mut connection = daemon.connect();
                    connection.set_read_timeout(Duration::from_secs(1_800));
                    let start = Instant::now();
                    connection.send(&daemon.generate_request(&body(number)));
                    (connection.answer(), start.elapsed())
                })
            })
            .collect();
        let answers = asking
            .into_iter()
            .map(|thread| thread.join().expect("an answer"))
            .collect();
        over.store(true, Ordering::Relaxed);
        (answers, probe.join().expect("the probe"))
    })
}
