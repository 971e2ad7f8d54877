//! When the next batch is sent: one at a time, at once after a success, later after a failure.
//!
//! Owns the spool and the wait. The wait doubles with each failure in a row, from
//! `PUSH_RETRY_DELAY_MIN` to `PUSH_RETRY_DELAY_MAX`, and a half of it is random, so that daemons
//! that lost the same collector do not all come back at once. A collector that asks for a longer
//! wait by `Retry-After` gets it, up to `PUSH_RETRY_AFTER_MAX`.
//!
//! Invariants:
//!  1. At most one batch is on its way.
//!  2. No batch is sent before the wait has ended.
//!
//! Mutations that the tests below catch: a wait that does not grow, no bound on `Retry-After`, a
//! wait that a success does not end, one that is as long after the next failure, no jitter, more
//! points rejected than sent, an end that waits.

use std::time::Duration;

use bytes::Bytes;

use super::reply::Fate;
use super::snapshot::Batch;
use super::spool::Spool;
use crate::core::Moment;
use crate::limits::telemetry as limits;
use crate::telemetry::random::SplitMix64;

#[derive(Debug)]
pub struct Delivery {
    spool: Spool,
    random: SplitMix64,
    /// Failures since the last success.
    failures: u32,
    /// Before this, no batch is sent.
    not_before: Moment,
    wait: Duration,
}

/// The end of an attempt, for counts and the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// The points of the batch, if it has left the spool.
    pub points: u64,
    /// How many of these the collector rejected.
    pub rejected: u64,
}

impl Delivery {
    pub fn new(spool_bytes_most: usize, seed: u64) -> Delivery {
        Delivery {
            spool: Spool::new(spool_bytes_most),
            random: SplitMix64::new(seed, 0),
            failures: 0,
            not_before: Moment::from_micros(0),
            wait: Duration::ZERO,
        }
    }

    // ---- getters ----

    pub fn spool(&self) -> &Spool {
        &self.spool
    }

    /// Returns the wait that the last failure has caused; zero after a success.
    pub fn wait(&self) -> Duration {
        self.wait
    }

    /// Returns when [`Delivery::poll`] has a batch, unless an event comes before.
    pub fn due_at(&self) -> Option<Moment> {
        (!self.spool.is_sending() && !self.spool.is_empty()).then_some(self.not_before)
    }

    // ---- handle ----

    /// Adds a batch. Returns the points of those that were dropped for it.
    pub fn handle_batch(&mut self, batch: Batch) -> u64 {
        self.spool.add(batch)
    }

    /// The batch on its way has a result.
    pub fn handle_fate(&mut self, fate: &Fate, now: Moment) -> Ended {
        let (points, rejected) = match fate {
            Fate::Again { after } => {
                self.spool.keep_sent();
                self.back_off(*after, now);
                (0, 0)
            }
            Fate::Taken { rejected, .. } => {
                let points = self.spool.remove_sent();
                (points, points.min(*rejected))
            }
            Fate::Refused => (self.spool.remove_sent(), 0),
        };
        if !matches!(fate, Fate::Again { .. }) {
            self.failures = 0;
            self.wait = Duration::ZERO;
        }
        Ended { points, rejected }
    }

    /// The daemon ends: what waits has one more chance, at once.
    pub fn handle_end(&mut self, now: Moment) {
        self.not_before = now;
    }

    fn back_off(&mut self, after: Option<Duration>, now: Moment) {
        let doubled = limits::PUSH_RETRY_DELAY_MIN * (1 << self.failures.min(16));
        let full = doubled.min(limits::PUSH_RETRY_DELAY_MAX);
        self.failures = self.failures.saturating_add(1);
        let half = full / 2;
        let micros = half.as_micros() as u64 + 1;
        let own = half + Duration::from_micros(self.random.draw() % micros);
        let asked = after.unwrap_or_default().min(limits::PUSH_RETRY_AFTER_MAX);
        self.wait = own.max(asked);
        self.not_before = now + self.wait;
    }

    // ---- poll ----

    /// Returns a batch that must be sent now.
    pub fn poll(&mut self, now: Moment) -> Option<Bytes> {
        match now < self.not_before {
            true => None,
            false => self.spool.send(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const AGAIN: Fate = Fate::Again { after: None };

    fn batch(points: u64) -> Batch {
        Batch {
            bytes: vec![0; 10].into(),
            points,
        }
    }

    fn taken(rejected: u64) -> Fate {
        Fate::Taken {
            rejected,
            message: String::new(),
        }
    }

    /// Fails `count` times in a row, and returns each wait.
    fn waits(delivery: &mut Delivery, fate: &Fate, count: usize) -> Vec<Duration> {
        let mut now = Moment::from_micros(1_000_000);
        let one = |_| {
            assert!(delivery.poll(now).is_some());
            delivery.handle_fate(fate, now);
            let due = delivery.due_at().unwrap();
            assert_eq!(due.since(now), delivery.wait());
            let just_before = Moment::from_micros(due.as_micros() - 1);
            assert!(delivery.poll(just_before).is_none(), "too early");
            now = due;
            delivery.wait()
        };
        (0..count).map(one).collect()
    }

    #[test]
    fn the_wait_doubles_up_to_its_bound_and_ends_with_a_success() {
        let mut delivery = Delivery::new(1_000, 7);
        delivery.handle_batch(batch(5));
        let mut full = limits::PUSH_RETRY_DELAY_MIN;
        // More than a shift of the shortest wait has bits.
        let waits = waits(&mut delivery, &AGAIN, 70);
        for wait in &waits {
            assert!(*wait >= full / 2 && *wait <= full, "{wait:?} of {full:?}");
            full = (full * 2).min(limits::PUSH_RETRY_DELAY_MAX);
        }
        let at_the_bound = &waits[8..];
        assert!(
            at_the_bound.iter().any(|wait| *wait != at_the_bound[0]),
            "jitter"
        );
        let now = delivery.due_at().unwrap();
        assert!(delivery.poll(now).is_some());
        let ended = delivery.handle_fate(&taken(2), now);
        assert_eq!((ended.points, ended.rejected), (5, 2));
        assert_eq!(delivery.wait(), Duration::ZERO);
        delivery.handle_batch(batch(1));
        assert!(delivery.poll(now).is_some(), "at once");
        // After a success the waits are short again.
        delivery.handle_fate(&AGAIN, now);
        assert!(delivery.wait() <= limits::PUSH_RETRY_DELAY_MIN);
        assert!(delivery.poll(now).is_none());
        delivery.handle_end(now);
        assert!(delivery.poll(now).is_some(), "the end does not wait");
        // A collector cannot reject more than it got.
        let ended = delivery.handle_fate(&taken(9), now);
        assert_eq!((ended.points, ended.rejected), (1, 1));
    }

    #[test]
    fn retry_after_is_kept_within_its_bound() {
        let asked = |seconds| Fate::Again {
            after: Some(Duration::from_secs(seconds)),
        };
        let wait = |fate| {
            let mut delivery = Delivery::new(1_000, 7);
            delivery.handle_batch(batch(1));
            waits(&mut delivery, &fate, 1)[0]
        };
        assert_eq!(wait(asked(30)), Duration::from_secs(30));
        assert_eq!(wait(asked(u64::MAX)), limits::PUSH_RETRY_AFTER_MAX);
        assert!(wait(asked(0)) >= limits::PUSH_RETRY_DELAY_MIN / 2);
    }

    #[test]
    fn a_refused_batch_does_not_hold_up_the_next() {
        let mut delivery = Delivery::new(1_000, 7);
        let now = Moment::from_micros(1);
        delivery.handle_batch(batch(1));
        delivery.handle_batch(batch(2));
        assert!(delivery.poll(now).is_some());
        assert!(delivery.poll(now).is_none(), "one at a time");
        assert_eq!(delivery.handle_fate(&Fate::Refused, now).points, 1);
        assert!(delivery.poll(now).is_some());
        assert_eq!(delivery.handle_fate(&taken(0), now).points, 2);
        assert_eq!(delivery.due_at(), None);
    }

    proptest! {
        /// Within the spool's bound nothing is lost: each point is taken, or waits.
        #[test]
        fn nothing_is_lost_within_the_bound(fates in prop::collection::vec(0_u8..3, 0..80)) {
            let mut delivery = Delivery::new(1_000_000, 7);
            let mut now = Moment::from_micros(1);
            let (mut added, mut gone) = (0, 0);
            for (at, fate) in fates.into_iter().enumerate() {
                let points = at as u64 + 1;
                added += points;
                prop_assert_eq!(delivery.handle_batch(batch(points)), 0);
                now = now.max(delivery.due_at().unwrap_or(now));
                if delivery.poll(now).is_some() {
                    let fate = [taken(0), AGAIN, taken(1)][usize::from(fate)].clone();
                    gone += delivery.handle_fate(&fate, now).points;
                }
            }
            while let Some(due) = delivery.due_at() {
                prop_assert!(delivery.poll(due.max(now)).is_some());
                gone += delivery.handle_fate(&taken(0), due.max(now)).points;
            }
            prop_assert_eq!(added, gone);
        }
    }
}
