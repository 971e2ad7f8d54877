//! The bus over Redis: publish and subscribe.
//!
//! Owns a connection that is subscribed, and the thread that reads it. Notices are published
//! through the connection of all other commands. In a cluster every node passes messages on to the
//! others, so one connection to any of them is enough.
//!
//! Invariants:
//!  1. After each connect [`Notice::All`] is reported: what was published before is lost.
//!  2. A server that does not respond is given up after `cache.shared.timeout` beyond
//!     [`limits::SILENCE_CHECK_INTERVAL`].
//!
//! Mutations that `tests/bus.rs` catches: no `Notice::All` after a connect
//! (`the_store_is_read_...`), no PING (`a_stopped_...`).

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ::redis::{Connection, RedisResult};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::metrics::BusSeries;
use super::{Invalidation, Notice, OnNotice};
use crate::core::Moment;
use crate::limits::bus as limits;
use crate::redis::breaker::Breaker;
use crate::redis::{Dialer, Handle, Request, Settings};

/// The channel of notices.
pub const CHANNEL: &str = "autoglmd:notices";

/// Publishes notices.
#[derive(Clone)]
pub struct RedisBus {
    redis: Handle,
    is_subscribed: Arc<AtomicBool>,
}

impl Invalidation for RedisBus {
    fn publish(&self, notice: &Notice) {
        let text = notice.to_text();
        let words = [b"PUBLISH", CHANNEL.as_bytes(), text.as_bytes()];
        let request = Request::new(CHANNEL, &words, Moment::NEVER, drop);
        // A daemon that misses it reads the store within a second.
        let _ = self.redis.submit(request);
    }

    fn is_connected(&self) -> bool {
        self.is_subscribed.load(Ordering::Relaxed)
    }
}

/// Publishes notices on a connection of its own: for commands, which have no thread for Redis.
pub fn publish(settings: Settings, notices: &[Notice]) -> RedisResult<()> {
    let mut dialer = Dialer::new(settings);
    let mut dialed = dialer.dial();
    for _ in 1..limits::PUBLISH_ATTEMPTS {
        if dialed.is_err() {
            dialed = dialer.dial();
        }
    }
    let mut connection = dialed?;
    for notice in notices {
        let mut command = ::redis::cmd("PUBLISH");
        command.arg(CHANNEL).arg(notice.to_text());
        command.exec(&mut connection)?;
    }
    Ok(())
}

/// The thread that receives notices. Dropping it ends the thread and waits for that.
pub struct Subscriber {
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Subscriber {
    pub fn start(
        settings: Settings,
        redis: Handle,
        series: Arc<BusSeries>,
        on_notice: OnNotice,
    ) -> std::io::Result<(Subscriber, RedisBus)> {
        let (end, ended) = bounded(0);
        let is_subscribed = Arc::new(AtomicBool::new(false));
        let receiver = Subscription {
            dialer: Dialer::new(settings),
            breaker: Breaker::default(),
            ended,
            is_subscribed: Arc::clone(&is_subscribed),
            series,
            on_notice,
            has_failed: false,
        };
        let thread = thread::Builder::new()
            .name("bus".into())
            .spawn(move || receiver.run())?;
        let subscriber = Subscriber {
            end: Some(end),
            thread: Some(thread),
        };
        let bus = RedisBus {
            redis,
            is_subscribed,
        };
        Ok((subscriber, bus))
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the bus's thread has panicked");
        }
    }
}

/// The state of the thread.
struct Subscription {
    dialer: Dialer,
    breaker: Breaker,
    ended: Receiver<()>,
    is_subscribed: Arc<AtomicBool>,
    series: Arc<BusSeries>,
    on_notice: OnNotice,
    /// A failure was logged, and no success since.
    has_failed: bool,
}

impl Subscription {
    fn run(mut self) {
        let random = RandomState::new();
        for attempt in 0_u64.. {
            let pause = self.breaker.next_try().since(Moment::now());
            if self.has_ended_within(pause) {
                return;
            }
            let received = self.dialer.dial();
            let received = received.and_then(|mut connection| self.receive(&mut connection));
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

    /// Reads notices until the connection is lost (an error) or the bus ends.
    fn receive(&mut self, connection: &mut Connection) -> RedisResult<()> {
        let timeout = self.dialer.settings().timeout;
        let mut messages = connection.as_pubsub();
        messages.subscribe(CHANNEL)?;
        self.breaker.note_success();
        self.note(true);
        if self.has_failed {
            log::info!("the bus is back");
            self.has_failed = false;
        }
        (self.on_notice)(Notice::All);
        let mut heard_at = Instant::now();
        while !self.has_ended_within(Duration::ZERO) {
            messages.set_read_timeout(Some(limits::END_CHECK_INTERVAL))?;
            match messages.get_message() {
                Ok(message) => self.take(message.get_payload_bytes()),
                Err(error) if error.is_timeout() => {
                    if heard_at.elapsed() < limits::SILENCE_CHECK_INTERVAL {
                        continue;
                    }
                    messages.set_read_timeout(Some(timeout))?;
                    messages.ping::<::redis::Value>()?;
                }
                Err(error) => return Err(error),
            }
            heard_at = Instant::now();
        }
        Ok(())
    }

    fn take(&self, payload: &[u8]) {
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

    fn note(&self, is_up: bool) {
        self.is_subscribed.store(is_up, Ordering::Relaxed);
        self.series.up.set(i64::from(is_up));
    }

    fn has_ended_within(&self, patience: Duration) -> bool {
        self.ended.recv_timeout(patience) == Err(RecvTimeoutError::Disconnected)
    }
}
