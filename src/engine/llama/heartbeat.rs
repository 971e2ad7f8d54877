//! Whether the engine's thread goes on, as other threads see it.
//!
//! Owns three atomics. The engine's thread writes them; the reactors and the supervisor read them.
//!
//! ```text
//!   at rest ── begin ──> at work ── beat ──> at work
//!      ^                    └────── rest ─────┘
//! ```
//!
//! A beat is a step of the scheduler, and within one each time that llama.cpp asks whether it
//! shall stop. An engine at rest waits for a job, and its silence means nothing.
//!
//! Mutation that a test catches: `rest` without its store (`an_engine_at_rest_is_never_silent`).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::core::Moment;

#[derive(Debug, Default)]
pub struct Heartbeat {
    is_at_work: AtomicBool,
    beats: AtomicU64,
    /// When the last one was, in microseconds.
    last: AtomicU64,
}

// Relaxed throughout: the numbers publish no other data, and a reading that is a beat old is good.
impl Heartbeat {
    /// Work begins. Counted from here, so that the rest before it does not count as silence.
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

    /// How long ago the last beat was, if there should have been another since.
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
