//! Detects an engine without progress, from one check of the supervisor to the next.
//!
//! Owns the time that was watched without a sign of life. Knows no clock: `now` is an argument.
//!
//! A process can be stopped as a whole (SIGSTOP, a freezer, a migration). Then every clock shows a
//! long silence of the engine, although its thread had no time to do anything. So the measure is
//! not the time since the last sign, but how long the supervisor itself was awake and saw none: a
//! gap between two checks counts as two ticks at most.
//!
//! Mutations that the tests below catch: no bound on the gap (`a_process_that_was_stopped_...`),
//! no comparison of the beats (`an_engine_that_works_slowly_...`).

use std::time::{Duration, Instant};

use crate::engine::Gauges;
use crate::limits::supervisor as limits;

pub struct Vigil {
    beats: u64,
    watched: Duration,
    looked_at: Instant,
}

impl Vigil {
    pub fn new(now: Instant) -> Vigil {
        Vigil {
            beats: 0,
            watched: Duration::ZERO,
            looked_at: now,
        }
    }

    /// Checks the engine; returns how long it was watched without a sign of life although it has
    /// work.
    pub fn look(&mut self, gauges: &Gauges, now: Instant) -> Duration {
        let gap = now.saturating_duration_since(self.looked_at);
        self.looked_at = now;
        if gauges.silence.is_zero() || gauges.beats != self.beats {
            self.beats = gauges.beats;
            self.watched = Duration::ZERO;
        } else {
            self.watched += gap.min(2 * limits::TICK);
        }
        self.watched
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gauges(beats: u64, silence: Duration) -> Gauges {
        Gauges {
            beats,
            silence,
            ..Gauges::default()
        }
    }

    #[test]
    fn an_engine_that_hangs_is_watched_for_as_long_as_it_does() {
        let start = Instant::now();
        let mut vigil = Vigil::new(start);
        let silent = |ticks: u32| gauges(7, ticks * limits::TICK);
        assert_eq!(vigil.look(&silent(1), start), Duration::ZERO);
        for ticks in 1..=90 {
            let now = start + ticks * limits::TICK;
            assert_eq!(vigil.look(&silent(ticks), now), ticks * limits::TICK);
        }
    }

    #[test]
    fn an_engine_that_works_slowly_or_rests_does_not_hang() {
        let start = Instant::now();
        let mut vigil = Vigil::new(start);
        for ticks in 0..100 {
            let now = start + ticks * limits::TICK;
            let slow = gauges(u64::from(ticks / 10), limits::TICK);
            assert!(vigil.look(&slow, now) < 10 * limits::TICK);
        }
        for ticks in 100..200 {
            let now = start + ticks * limits::TICK;
            let resting = gauges(9, Duration::ZERO);
            assert_eq!(vigil.look(&resting, now), Duration::ZERO);
        }
    }

    #[test]
    fn a_process_that_was_stopped_for_an_hour_does_not_hang() {
        let start = Instant::now();
        let hour = Duration::from_secs(3_600);
        let mut vigil = Vigil::new(start);
        vigil.look(&gauges(7, limits::TICK), start);
        let watched = vigil.look(&gauges(7, hour), start + hour);
        assert!(watched <= 2 * limits::TICK, "{watched:?}");
    }
}
