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
//! Mutation that `tests/bus.rs` and `tests/kafka.rs` catch: no `Notice::All` after a connect
//! (`the_store_is_read_...`).

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
