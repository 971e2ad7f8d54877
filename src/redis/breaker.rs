//! A circuit breaker: whether a server may be tried now, and when it may be tried again.
//!
//! Owns the pauses between attempts: the first one is short, each failure doubles it up to a
//! bound, and each is shortened by a random part, so that daemons that have lost the same server
//! don't come back together. Pure: the time and the random number are arguments.
//!
//! Invariants:
//!  1. A breaker that has not failed since its last success is closed.
//!  2. A pause is at least half of its step, and at most the whole.
//!
//! Mutations that the tests below catch: a success that leaves the count, a pause without its
//! bound, no jitter.

use std::time::Duration;

use crate::core::Moment;
use crate::limits::redis as limits;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Breaker {
    /// Failures in a row.
    failures: u32,
    /// The end of the pause; in the past or zero: closed.
    opens_until: Moment,
}

impl Breaker {
    /// Returns whether the server may be tried.
    pub fn may_try(&self, now: Moment) -> bool {
        now >= self.opens_until
    }

    /// Returns when the server may be tried again.
    pub fn next_try(&self) -> Moment {
        self.opens_until
    }

    pub fn note_success(&mut self) {
        *self = Breaker::default();
    }

    /// Begins a pause; `random` is any number.
    pub fn note_failure(&mut self, now: Moment, random: u64) {
        let step = limits::RETRY_PAUSE_MIN
            .saturating_mul(1 << self.failures.min(16))
            .min(limits::RETRY_PAUSE_MAX);
        self.failures = self.failures.saturating_add(1);
        let half = step.as_micros() as u64 / 2;
        self.opens_until = now + Duration::from_micros(half + random % (half + 1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pause(breaker: &Breaker, now: Moment) -> Duration {
        breaker.next_try() - now
    }

    #[test]
    fn pauses_double_up_to_a_bound_and_a_success_closes() {
        let mut breaker = Breaker::default();
        let mut now = Moment::from_micros(7);
        assert!(breaker.may_try(now));
        let mut steps = Vec::new();
        for _ in 0..8 {
            // The greatest random number of each step is the whole step.
            breaker.note_failure(now, u64::MAX - u64::MAX % 2);
            assert!(!breaker.may_try(now));
            let mut whole = breaker;
            whole.failures -= 1;
            let half = step_of(whole.failures).as_micros() as u64 / 2;
            whole.note_failure(now, half);
            steps.push(pause(&whole, now).as_millis());
            now = breaker.next_try();
            assert!(breaker.may_try(now));
        }
        assert_eq!(steps, [50, 100, 200, 400, 800, 1_600, 2_000, 2_000]);
        breaker.note_success();
        breaker.note_failure(now, 0);
        assert_eq!(pause(&breaker, now), Duration::from_millis(25));
    }

    fn step_of(failures: u32) -> Duration {
        (limits::RETRY_PAUSE_MIN * (1 << failures.min(16))).min(limits::RETRY_PAUSE_MAX)
    }

    proptest! {
        #[test]
        fn a_pause_is_at_least_half_of_its_step(failures in 0_u32..100, random: u64) {
            let mut breaker = Breaker { failures, ..Breaker::default() };
            let now = Moment::from_micros(1_000);
            breaker.note_failure(now, random);
            let step = step_of(failures);
            let pause = pause(&breaker, now);
            prop_assert!(pause >= step / 2 && pause <= step, "{pause:?} of {step:?}");
        }
    }

    #[test]
    fn daemons_do_not_come_back_together() {
        let now = Moment::ZERO;
        let ends: std::collections::BTreeSet<Moment> = (0..50_u64)
            .map(|random| {
                let mut breaker = Breaker::default();
                breaker.note_failure(now, random * 487);
                breaker.next_try()
            })
            .collect();
        assert!(ends.len() > 40);
    }
}
