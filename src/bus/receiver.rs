//! The thread of a bus that is one connection to a server: Redis or Kafka.
//!
//! ```text
//!            connected                     lost, or refused
//!   pause ──────────────> notices ... ──────────────────────> pause, which grows
//! ```
//!
//! Owns the thread, its pauses and what it reports; the connection is the [`Source`]'s. Gossip has
//! a thread of another kind, because it has no server that could be lost.
//!
//! Invariants:
//!  1. After each connect [`Notice::All`] is reported: what was published before is lost.
//!  2. A loss is logged once, and so is the first connect after it.
//!  3. Dropping the handle ends the thread and waits for that.
//!
//! Mutations that the tests below catch: a connect or a loss that is not noted, no `Notice::All`
//! after a connect, no pauses, or pauses that a connect leaves long. `tests/bus.rs` catches a loss
//! that is logged at each attempt.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};

use super::metrics::BusSeries;
use super::{Notice, OnNotice};
use crate::core::Moment;
use crate::redis::breaker::Breaker;

/// A connection to the server of a bus.
pub trait Source: Send + 'static {
    type Error: fmt::Display;

    /// Connects, and calls [`Inbox::note_connected`]. Then passes notices on to [`Inbox::take`]
    /// until the connection is lost, which is an error, or [`Inbox::has_ended`].
    fn receive(&mut self, inbox: &mut Inbox) -> Result<(), Self::Error>;
}

/// The running thread.
pub struct Receiver {
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Receiver {
    /// Starts the thread. Returns it with the flag that is set while notices arrive.
    pub fn start(
        source: impl Source,
        series: Arc<BusSeries>,
        on_notice: OnNotice,
    ) -> io::Result<(Receiver, Arc<AtomicBool>)> {
        let (end, ended) = bounded(0);
        let is_connected = Arc::new(AtomicBool::new(false));
        let inbox = Inbox {
            breaker: Breaker::default(),
            ended,
            is_connected: Arc::clone(&is_connected),
            series,
            on_notice,
            has_failed: false,
        };
        let thread = thread::Builder::new()
            .name("bus".into())
            .spawn(move || inbox.run(source))?;
        let receiver = Receiver {
            end: Some(end),
            thread: Some(thread),
        };
        Ok((receiver, is_connected))
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the bus's thread has panicked");
        }
    }
}

/// The state of the thread beside its connection.
pub struct Inbox {
    breaker: Breaker,
    ended: crossbeam_channel::Receiver<()>,
    is_connected: Arc<AtomicBool>,
    series: Arc<BusSeries>,
    on_notice: OnNotice,
    /// A failure was logged, and no success since.
    has_failed: bool,
}

impl Inbox {
    /// Reports that notices arrive from now on.
    pub fn note_connected(&mut self) {
        self.breaker.note_success();
        self.note(true);
        if self.has_failed {
            log::info!("the bus is back");
            self.has_failed = false;
        }
        (self.on_notice)(Notice::All);
    }

    /// Passes a notice on. Other messages are counted.
    pub fn take(&self, payload: &[u8]) {
        match Notice::parse(payload) {
            Some(notice) => {
                self.series.received.inc();
                (self.on_notice)(notice);
            }
            None => {
                self.series.refused.inc();
            }
        }
    }

    /// Returns whether the thread must end.
    pub fn has_ended(&self) -> bool {
        self.has_ended_within(Duration::ZERO)
    }

    fn run(mut self, mut source: impl Source) {
        let random = RandomState::new();
        for attempt in 0_u64.. {
            let pause = self.breaker.next_try().since(Moment::now());
            if self.has_ended_within(pause) {
                return;
            }
            let received = source.receive(&mut self);
            self.note(false);
            let Err(error) = received else {
                return;
            };
            if !self.has_failed {
                log::warn!("the bus is lost: {error}; the store is read each second");
                self.has_failed = true;
            }
            self.breaker
                .note_failure(Moment::now(), random.hash_one(attempt));
        }
    }

    fn note(&self, is_connected: bool) {
        self.is_connected.store(is_connected, Ordering::Relaxed);
        self.series.up.set(i64::from(is_connected));
    }

    fn has_ended_within(&self, patience: Duration) -> bool {
        self.ended.recv_timeout(patience) == Err(RecvTimeoutError::Disconnected)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::redis::RETRY_PAUSE_MIN;
    use crate::telemetry::metrics::Metrics;
    use std::sync::mpsc;

    const PATIENCE: Duration = Duration::from_secs(60);

    #[derive(Debug)]
    enum Step {
        Connect,
        Send(&'static [u8]),
        Lose,
    }

    /// A server whose every step the test wants. It reports each attempt to connect, and its
    /// breaker then and after each step.
    struct Scripted {
        steps: mpsc::Receiver<Step>,
        breakers: mpsc::Sender<(Moment, Breaker)>,
    }

    impl Scripted {
        fn report(&self, inbox: &Inbox) {
            let sent = self.breakers.send((Moment::now(), inbox.breaker));
            sent.expect("the test listens");
        }
    }

    impl Source for Scripted {
        type Error = &'static str;

        fn receive(&mut self, inbox: &mut Inbox) -> Result<(), &'static str> {
            self.report(inbox);
            while !inbox.has_ended() {
                match self.steps.recv_timeout(Duration::from_millis(1)) {
                    Ok(Step::Connect) => inbox.note_connected(),
                    Ok(Step::Send(payload)) => inbox.take(payload),
                    Ok(Step::Lose) => return Err("the test's"),
                    Err(_) => continue,
                }
                self.report(inbox);
            }
            Ok(())
        }
    }

    struct Bench {
        receiver: Receiver,
        is_connected: Arc<AtomicBool>,
        series: Arc<BusSeries>,
        steps: mpsc::Sender<Step>,
        breakers: mpsc::Receiver<(Moment, Breaker)>,
        notices: mpsc::Receiver<Notice>,
    }

    impl Bench {
        fn new() -> Bench {
            let (steps, inbox) = mpsc::channel();
            let (reports, breakers) = mpsc::channel();
            let (sender, notices) = mpsc::channel();
            let source = Scripted {
                steps: inbox,
                breakers: reports,
            };
            let series: Arc<BusSeries> = Metrics::new("echo").series();
            let on_notice = Box::new(move |notice| sender.send(notice).expect("it listens"));
            let started = Receiver::start(source, Arc::clone(&series), on_notice);
            let (receiver, is_connected) = started.expect("it starts");
            let bench = Bench {
                receiver,
                is_connected,
                series,
                steps,
                breakers,
                notices,
            };
            bench.reported();
            bench
        }

        /// Has a step taken, or the next attempt made. Returns when that was, and the breaker.
        fn take(&self, step: Step) -> (Moment, Breaker) {
            self.steps.send(step).expect("the thread runs");
            self.reported()
        }

        fn reported(&self) -> (Moment, Breaker) {
            self.breakers.recv_timeout(PATIENCE).expect("a report")
        }

        fn state(&self) -> (bool, i64) {
            let is_connected = self.is_connected.load(Ordering::Relaxed);
            (is_connected, self.series.up.get())
        }
    }

    /// Mutations: no `Notice::All` after a connect; a connect or a loss that is not noted; notices
    /// and other messages that are counted as each other.
    #[test]
    fn a_connect_a_loss_and_each_message_are_reported() {
        let bench = Bench::new();
        assert_eq!(bench.state(), (false, 0));
        for _ in 0..2 {
            bench.take(Step::Connect);
            assert_eq!(bench.state(), (true, 1));
            bench.take(Step::Send(b"1 entries"));
            bench.take(Step::Send(b"no notice"));
            let notices: Vec<Notice> = bench.notices.try_iter().collect();
            assert_eq!(notices, [Notice::All, Notice::Entries]);
            bench.take(Step::Lose);
            assert_eq!(bench.state(), (false, 0));
        }
        assert!(bench.notices.try_recv().is_err());
        let series = &bench.series;
        assert_eq!((series.received.get(), series.refused.get()), (2, 2));
        bench.take(Step::Connect);
        drop(bench.receiver);
        assert!(!bench.is_connected.load(Ordering::Relaxed));
    }

    /// Mutations: no pause; pauses that do not grow; a connect that leaves them long.
    #[test]
    fn pauses_grow_until_a_connect() {
        let bench = Bench::new();
        for (number, begins_again) in [(0, false), (1, false), (2, true), (0, false)] {
            let lost_at = Moment::now();
            let (tried_at, breaker) = bench.take(Step::Lose);
            let least = RETRY_PAUSE_MIN * 2_u32.pow(number) / 2;
            assert!(breaker.next_try() >= lost_at + least, "{breaker:?}");
            assert!(tried_at >= breaker.next_try(), "{tried_at:?} {breaker:?}");
            if begins_again {
                let (_, breaker) = bench.take(Step::Connect);
                assert_eq!(breaker, Breaker::default());
            }
        }
    }
}
