//! The bus over Redis: publish and subscribe.
//!
//! Owns a connection that is subscribed; the thread that reads it is a [`Receiver`]. Notices are
//! published through the connection of all other commands. In a cluster every node passes messages
//! on to the others, so one connection to any of them is enough.
//!
//! Invariant: a server that does not respond is given up after `cache.shared.timeout` beyond
//! [`limits::SILENCE_CHECK_INTERVAL`].
//!
//! Mutations that tests catch: no PING (`a_stopped_...` in `tests/bus.rs`); a PING at each look, or
//! one that has less time than other replies (`a_subscription_is_...` in `tests/redis.rs`).

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use ::redis::{RedisError, RedisResult};

use super::metrics::BusSeries;
use super::receiver::{Inbox, Receiver, Source};
use super::{Invalidation, Notice, OnNotice};
use crate::core::Moment;
use crate::limits::bus as limits;
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
        dialed = dialed.or_else(|_| dialer.dial());
    }
    let mut connection = dialed?;
    for notice in notices {
        let mut command = ::redis::cmd("PUBLISH");
        command.arg(CHANNEL).arg(notice.to_text());
        command.exec(&mut connection)?;
    }
    Ok(())
}

/// Starts the thread that receives notices.
pub fn start(
    settings: Settings,
    redis: Handle,
    series: Arc<BusSeries>,
    on_notice: OnNotice,
) -> io::Result<(Receiver, RedisBus)> {
    let subscription = Subscription(Dialer::new(settings));
    let (receiver, is_subscribed) = Receiver::start(subscription, series, on_notice)?;
    let bus = RedisBus {
        redis,
        is_subscribed,
    };
    Ok((receiver, bus))
}

struct Subscription(Dialer);

impl Source for Subscription {
    type Error = RedisError;

    fn receive(&mut self, inbox: &mut Inbox) -> RedisResult<()> {
        let mut connection = self.0.dial()?;
        let timeout = self.0.settings().timeout;
        let mut messages = connection.as_pubsub();
        messages.subscribe(CHANNEL)?;
        inbox.note_connected();
        let mut heard_at = Instant::now();
        while !inbox.has_ended() {
            messages.set_read_timeout(Some(limits::END_CHECK_INTERVAL))?;
            match messages.get_message() {
                Ok(message) => inbox.take(message.get_payload_bytes()),
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
}
