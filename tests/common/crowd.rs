//! Many clients at once, and somebody who asks all the while whether the daemon lives.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::client::{Answer, request};
use super::daemon::Daemon;

/// How long `/livez` took while something else was going on.
pub struct Health(Vec<Duration>);

impl Health {
    /// Ninety-nine of a hundred within 50 ms; the rest is the scheduler's, on two cores that a
    /// model and hundreds of test threads want as well.
    pub fn check(&self) {
        let within = self
            .0
            .iter()
            .filter(|time| **time < Duration::from_millis(50))
            .count();
        assert!(
            !self.0.is_empty() && within * 100 >= self.0.len() * 99,
            "{self}"
        );
        assert!(self.0[self.0.len() - 1] < Duration::from_secs(1), "{self}");
    }
}

impl std::fmt::Display for Health {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let at = |part: usize| self.0[(self.0.len() - 1) * part / 100];
        let (median, p99, worst) = (at(50), at(99), at(100));
        let count = self.0.len();
        write!(
            f,
            "/livez {count} times: median {median:?}, p99 {p99:?}, worst {worst:?}"
        )
    }
}

/// Sends all requests at once, each on a connection of its own, and asks for `/livez` all the
/// while on a connection that is opened anew each time, as a probe does.
pub fn crowd(
    daemon: &Daemon,
    count: usize,
    body: impl Fn(usize) -> Value + Sync,
) -> (Vec<(Answer, Duration)>, Health) {
    let over = AtomicBool::new(false);
    let (body, over) = (&body, &over);
    std::thread::scope(|scope| {
        let probe = scope.spawn(move || {
            let bytes = request("GET", "/livez", &[("connection", "close")], b"");
            let mut times = Vec::new();
            while !over.load(Ordering::Relaxed) {
                let start = Instant::now();
                let mut connection = daemon.connect();
                connection.exchange(&bytes).expect(200);
                times.push(start.elapsed());
                assert_eq!(connection.until_closed(), b"");
                // A pace for the probe, not a wait for anything.
                std::thread::park_timeout(Duration::from_millis(20));
            }
            times.sort();
            Health(times)
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
