//! Shows other threads whether the engine's thread makes progress.
//!
//! Owns three atomics. The engine's thread writes them; the reactors and the supervisor read them.
//!
//! ```text
//!   at rest ── begin ──> at work ── beat ──> at work
//!      ^                    └────── rest ─────┘
//! ```
//!
//! A beat is a step of the scheduler, and each time that llama.cpp asks within a step whether it
//! should stop. An engine at rest waits for a job, so its silence means nothing.
//!
//! Mutation that a test catches: `rest` without its store (`an_engine_at_rest_is_never_silent`).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::core::Moment;

#[derive(Debug, Default)]
pub struct Heartbeat {
    is_at_work: AtomicBool,
    beats: AtomicU64,
    /// The time of the last beat, in microseconds.
    last: AtomicU64,
}

// Relaxed throughout: the numbers publish no other data, and a value one beat old is good enough.
impl Heartbeat {
    /// Work begins. The silence counts from here, so that the rest before it does not count.
    pub fn begin(&self, now: Moment) {
        self.beat(now);
        self.is_at_work.store(true, Ordering::Relaxed);
    }

    pub fn beat(&self, now: Moment) {
        self.beats.fetch_add(1, Ordering::Relaxed);
        self.last.store(now.as_micros(), Ordering::Relaxed);
    }

    /// There is nothing to do.
    pub fn rest(&self) {
        self.is_at_work.store(false, Ordering::Relaxed);
    }

    pub fn beats(&self) -> u64 {
        self.beats.load(Ordering::Relaxed)
    }

    /// Returns how long ago the last beat was; zero at rest.
    pub fn silence(&self, now: Moment) -> Duration {
        let last = Moment::from_micros(self.last.load(Ordering::Relaxed));
        match self.is_at_work.load(Ordering::Relaxed) {
            true => now.since(last),
            false => Duration::ZERO,
        }
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
        heartbeat.begin(at(100));
        assert_eq!(heartbeat.silence(at(103)), Duration::from_secs(3));
        heartbeat.beat(at(103));
        assert_eq!(heartbeat.silence(at(104)), Duration::from_secs(1));
        heartbeat.rest();
        assert_eq!(heartbeat.silence(at(1_000)), Duration::ZERO);
        assert_eq!(heartbeat.beats(), 2);
    }
}
