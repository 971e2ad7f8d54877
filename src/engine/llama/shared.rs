//! The state that the engine's thread shares with its callers.
//!
//! Owns flags, counts and the numbers of the last step. The lock must never be held during a step
//! or a call into llama.cpp, because reactors take it, too.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use super::heartbeat::Heartbeat;
use super::speed::Speed;
use crate::core::Moment;
use crate::engine::{Gauges, ModelInfo, State};

#[derive(Debug, Default)]
pub struct Shared {
    /// Jobs that were submitted and have no sequence yet.
    pub queued: Arc<AtomicU32>,
    pub is_ready: AtomicBool,
    pub is_draining: AtomicBool,
    /// The engine's owner is gone: the thread must end at once.
    pub is_ending: AtomicBool,
    /// The thread takes no more messages.
    pub is_over: AtomicBool,
    pub percent: AtomicU8,
    failure: OnceLock<String>,
    pub model: OnceLock<ModelInfo>,
    pub heartbeat: Arc<Heartbeat>,
    /// How often the engine was restarted after a panic.
    restarts: AtomicU64,
    stall_timeout: Duration,
    published: Mutex<Published>,
}

/// The numbers after a step.
#[derive(Debug, Default)]
pub struct Published {
    pub gauges: Gauges,
    pub speed: Speed,
    /// For each sequence: the tenant whose text it holds, and the tokens of that text.
    pub held: Vec<(u64, usize)>,
}

impl Shared {
    pub fn new(stall_timeout: Duration) -> Shared {
        Shared {
            stall_timeout,
            ..Shared::default()
        }
    }

    /// Returns whether a model that is still being fetched or loaded would be used.
    pub fn is_wanted(&self) -> bool {
        !self.is_draining.load(Ordering::Acquire) && !self.is_ending.load(Ordering::Acquire)
    }

    pub fn state(&self, now: Moment) -> State {
        let silence = self.heartbeat.silence(now);
        if let Some(message) = self.failure.get() {
            State::Failed(message.clone())
        } else if !self.is_ready.load(Ordering::Acquire) {
            State::Loading {
                percent: self.percent.load(Ordering::Relaxed),
            }
        } else if silence >= self.stall_timeout {
            State::Stalled {
                seconds: silence.as_secs(),
            }
        } else {
            State::Ready
        }
    }

    pub fn gauges(&self, now: Moment) -> Gauges {
        Gauges {
            // Jobs in the channel wait, too.
            queue_depth: self.queued.load(Ordering::Relaxed),
            beats: self.heartbeat.beats(),
            silence: self.heartbeat.silence(now),
            restarts: self.restarts.load(Ordering::Relaxed),
            ..self.published().gauges
        }
    }

    pub fn published(&self) -> MutexGuard<'_, Published> {
        // Numbers that are copied whole: a holder's panic cannot leave them half written.
        self.published
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Records that the engine has panicked: no job is taken until the model is loaded again.
    pub fn end_serving(&self) {
        self.is_ready.store(false, Ordering::Release);
        self.percent.store(0, Ordering::Relaxed);
    }

    /// Counts a restart, and forgets what was measured on the model that is gone.
    pub fn begin_restart(&self) {
        // A load that fails leaves its progress behind.
        self.percent.store(0, Ordering::Relaxed);
        self.heartbeat.rest();
        self.restarts.fetch_add(1, Ordering::Relaxed);
        let mut published = self.published();
        published.speed = Speed::default();
        published.held.clear();
        published.gauges = published.gauges.totals();
    }

    pub fn fail(&self, message: String) {
        // The supervisor logs all lines of a message.
        let cause = message.lines().next().unwrap_or_default();
        log::error!("the engine stopped: {cause}");
        self.heartbeat.rest();
        // The first failure is the cause.
        let _ = self.failure.set(message);
    }
}
