//! Shows other threads whether the engine's thread makes progress.
//!
//! Owns two atomics. The engine's thread writes them; the reactors and the supervisor read them.
//!
//! ```text
//!   at rest ── beat ──> at work ── beat ──> at work
//!      ^                   └────── rest ─────┘
//! ```
//!
//! A beat is a step of the scheduler, and each time that llama.cpp asks within a step whether it
//! should stop. An engine at rest waits for a job, so its silence means nothing.
//!
//! The state and the time of the last beat are one atomic. A flag beside the time could be read
//! with the beat before the rest, and hours of rest would look like a stall.
//!
//! Mutation that a test catches: `rest` without its store (`an_engine_at_rest_is_never_silent`).

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::core::Moment;

#[derive(Debug)]
pub struct Heartbeat {
    beats: AtomicU64,
    /// The time of the last beat, in microseconds; `AT_REST` since a rest.
    last: AtomicU64,
}

/// Later than any reading of the clock, so nothing has been silent since.
const AT_REST: u64 = Moment::NEVER.as_micros();

impl Default for Heartbeat {
    fn default() -> Heartbeat {
        Heartbeat {
            beats: AtomicU64::new(0),
            last: AtomicU64::new(AT_REST),
        }
    }
}

// Relaxed throughout: the numbers publish no other data, and a value one beat old is good enough.
impl Heartbeat {
    /// Work goes on, or begins: the rest before it does not count.
    pub fn beat(&self, now: Moment) {
        self.beats.fetch_add(1, Ordering::Relaxed);
        self.last.store(now.as_micros(), Ordering::Relaxed);
    }

    /// There is nothing to do.
    pub fn rest(&self) {
        self.last.store(AT_REST, Ordering::Relaxed);
    }

    pub fn beats(&self) -> u64 {
        self.beats.load(Ordering::Relaxed)
    }

    /// Returns how long ago the last beat was; zero at rest.
    pub fn silence(&self, now: Moment) -> Duration {
        now.since(Moment::from_micros(self.last.load(Ordering::Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_at_rest_is_never_silent() {
        let heartbeat = Heartbeat::default();
        let at = |seconds: u64| Moment::from_micros(seconds * 1_000_000);
        assert_eq!(heartbeat.silence(at(100)), Duration::ZERO);
        heartbeat.beat(at(100));
        assert_eq!(heartbeat.silence(at(103)), Duration::from_secs(3));
        heartbeat.beat(at(103));
        assert_eq!(heartbeat.silence(at(104)), Duration::from_secs(1));
        heartbeat.rest();
        assert_eq!(heartbeat.silence(at(1_000)), Duration::ZERO);
        heartbeat.beat(at(2_000));
        assert_eq!(heartbeat.silence(at(2_000)), Duration::ZERO);
        assert_eq!(heartbeat.beats(), 3);
    }
}
