//! A bucket that limits a rate: one atomic number, shared by threads.
//!
//! Owns the arithmetic of rates. Must never wait and never read the clock: a bucket is moved by
//! compare-and-swap, and `now` is an argument.
//!
//! The algorithm is GCRA (the generic cell rate algorithm of ITU-T I.371), a token bucket that
//! needs no refilling: a bucket remembers only the moment at which it will be full again. Taking
//! `n` moves that moment `n` intervals into the future; a request that would move it further ahead
//! of now than the burst allows is refused.
//!
//! Invariants:
//!  1. Within any span of time `t` a bucket grants at most `burst + t * per_minute / 60 s`.
//!  2. A refused request takes nothing: asking again and again never postpones the next grant.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::Moment;

/// How fast a bucket fills, and how much it holds. Unlimited if `per_minute` is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    pub per_minute: u32,
    /// The number of units that may be taken at once after a quiet time.
    pub burst: u32,
}

/// Nanoseconds of a minute, to which every rate refers.
const MINUTE: u128 = 60_000_000_000;

impl Rate {
    /// A burst above the minute's sum would break the rate, and one of 0 would forbid everything.
    pub fn new(per_minute: u32, burst: u32) -> Rate {
        let burst = burst.clamp(1, per_minute.max(1));
        Rate { per_minute, burst }
    }

    pub const fn is_bounded(self) -> bool {
        self.per_minute > 0
    }

    /// Returns the nanoseconds that it takes to earn `units`. Rounded down, so that `burst` single
    /// units never exceed the capacity, which is rounded up.
    fn weight(self, units: u32) -> u64 {
        (u128::from(units) * MINUTE / u128::from(self.per_minute)) as u64
    }

    fn capacity(self) -> u64 {
        (u128::from(self.burst) * MINUTE).div_ceil(u128::from(self.per_minute)) as u64
    }

    /// Returns the whole units that are earned in `nanoseconds`.
    fn units(self, nanoseconds: u64) -> u32 {
        let units = u128::from(nanoseconds) * u128::from(self.per_minute) / MINUTE;
        units.min(u128::from(self.burst)) as u32
    }
}

/// The state of a bucket for a caller: the `x-ratelimit-*` fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level {
    /// Units per minute.
    pub limit: u32,
    /// Units that may be taken now.
    pub remaining: u32,
    /// Time until the bucket is full.
    pub reset: Duration,
}

/// A refusal: how long to wait until the same request would pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exceeded {
    pub level: Level,
    pub retry_after: Duration,
}

/// One bucket: the moment at which it will be full, in nanoseconds since the process began.
#[derive(Debug, Default)]
pub struct Bucket(AtomicU64);

impl Bucket {
    /// Takes `units` out of the bucket, all or nothing. More than the bucket can ever hold counts
    /// as all that it can hold: otherwise a request that can never pass would be asked to wait for
    /// ever.
    pub fn take(&self, rate: Rate, units: u32, now: Moment) -> Result<Level, Exceeded> {
        debug_assert!(rate.is_bounded());
        let now = nanoseconds(now);
        let capacity = rate.capacity();
        let weight = rate.weight(units.min(rate.burst));
        let taken = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full_at| {
                let full_at = full_at.max(now).saturating_add(weight);
                (full_at - now <= capacity).then_some(full_at)
            });
        match taken {
            Ok(before) => Ok(level(rate, before.max(now) + weight - now)),
            Err(full_at) => {
                let missing = full_at.saturating_sub(now);
                Err(Exceeded {
                    level: level(rate, missing),
                    retry_after: Duration::from_nanos(missing + weight - capacity),
                })
            }
        }
    }

    /// Replaces a reservation of `reserved` units by the `used` ones. Using more than the
    /// reservation makes a debt, which must be paid off before the key may take again.
    pub fn reconcile(&self, rate: Rate, reserved: u32, used: u32, now: Moment) {
        debug_assert!(rate.is_bounded());
        let (now, reserved) = (nanoseconds(now), rate.weight(reserved.min(rate.burst)));
        let used = rate.weight(used);
        let reconciled = |full_at: u64| {
            Some(if used > reserved {
                full_at.max(now).saturating_add(used - reserved)
            } else {
                full_at.saturating_sub(reserved - used)
            })
        };
        // The closure always returns a value, so this cannot fail.
        let _ = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, reconciled);
    }
}

impl Bucket {
    /// Returns the state for a caller that takes nothing.
    pub fn level(&self, rate: Rate, now: Moment) -> Level {
        let full_at = self.0.load(Ordering::Relaxed);
        level(rate, full_at.saturating_sub(nanoseconds(now)))
    }

    /// Sets the bucket to be full in `ahead`, and `units` later than that, or earlier.
    pub fn set(&self, rate: Rate, ahead: Duration, units: i64, now: Moment) {
        self.0
            .store(full_at(rate, ahead, units, now), Ordering::Relaxed);
    }

    /// Does the same, unless the bucket is full later than that. Returns how many whole units it
    /// misses more; 0 if it was set.
    pub fn postpone(&self, rate: Rate, ahead: Duration, units: i64, now: Moment) -> u32 {
        let full_at = full_at(rate, ahead, units, now);
        let before = self.0.fetch_max(full_at, Ordering::Relaxed);
        rate.units(before.saturating_sub(full_at))
    }
}

/// Returns the moment, in nanoseconds, that is `ahead` of now, and `units` later, or earlier.
fn full_at(rate: Rate, ahead: Duration, units: i64, now: Moment) -> u64 {
    let most = u64::MAX / 4;
    let ahead = u64::try_from(ahead.as_nanos()).unwrap_or(most).min(most);
    let weight = rate.weight(units.unsigned_abs().min(u64::from(u32::MAX)) as u32);
    let full_at = nanoseconds(now).saturating_add(ahead);
    match units < 0 {
        true => full_at.saturating_sub(weight),
        false => full_at.saturating_add(weight),
    }
}

fn nanoseconds(now: Moment) -> u64 {
    now.as_micros().saturating_mul(1_000)
}

/// Returns the level; `missing` is the nanoseconds until the bucket is full.
fn level(rate: Rate, missing: u64) -> Level {
    Level {
        limit: rate.per_minute,
        remaining: rate.units(rate.capacity().saturating_sub(missing)),
        reset: Duration::from_nanos(missing),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(milliseconds: u64) -> Moment {
        Moment::from_micros(milliseconds * 1_000)
    }

    #[test]
    fn a_burst_passes_then_the_rate_is_felt() {
        let (bucket, rate) = (Bucket::default(), Rate::new(60, 3));
        for remaining in [2, 1, 0] {
            let level = bucket.take(rate, 1, at(10)).unwrap();
            assert_eq!(level.limit, 60);
            assert_eq!(level.remaining, remaining);
            assert_eq!(level.reset, Duration::from_secs(u64::from(3 - remaining)));
        }
        for asked_at in [10, 10, 510] {
            let exceeded = bucket.take(rate, 1, at(asked_at)).unwrap_err();
            assert_eq!(exceeded.level.remaining, 0);
            assert_eq!(
                exceeded.retry_after,
                Duration::from_millis(1_010 - asked_at)
            );
        }
        assert!(bucket.take(rate, 1, at(1_010)).is_ok());
        assert!(bucket.take(rate, 1, at(1_010)).is_err());
    }

    #[test]
    fn more_than_a_bucket_holds_passes_when_it_is_full() {
        let (bucket, rate) = (Bucket::default(), Rate::new(1_000, 1_000));
        assert_eq!(bucket.take(rate, 50_000, at(0)).unwrap().remaining, 0);
        assert!(bucket.take(rate, 50_000, at(59_999)).is_err());
        assert!(bucket.take(rate, 50_000, at(60_000)).is_ok());
    }

    #[test]
    fn settling_returns_unused_units_and_charges_those_used_beyond() {
        let (bucket, rate) = (Bucket::default(), Rate::new(600, 600));
        let _ = bucket.take(rate, 500, at(0)).unwrap();
        bucket.reconcile(rate, 500, 100, at(0));
        assert_eq!(bucket.take(rate, 1, at(0)).unwrap().remaining, 499);
        bucket.reconcile(rate, 1, 1_000, at(0));
        let exceeded = bucket.take(rate, 1, at(0)).unwrap_err();
        // 1,100 used of 600: the debt of 500 takes 50 s, the one requested unit a tenth of a second
        // more.
        assert_eq!(exceeded.retry_after, Duration::from_millis(50_100));
        // A bucket that has filled up meanwhile does not overflow.
        let (bucket, rate) = (Bucket::default(), Rate::new(60, 60));
        let _ = bucket.take(rate, 10, at(0)).unwrap();
        bucket.reconcile(rate, 10, 0, at(100_000));
        assert_eq!(bucket.take(rate, 1, at(100_000)).unwrap().remaining, 59);
    }

    #[test]
    fn impossible_bounds_are_corrected() {
        assert_eq!(Rate::new(10, 60).burst, 10);
        assert_eq!(Rate::new(10, 0).burst, 1);
        assert!(!Rate::new(0, 60).is_bounded());
    }

    /// The textbook's bucket: a number of units, refilled as time passes. In units of 1/60,000,000
    /// of a unit, so that a microsecond earns a whole number and nothing is rounded.
    struct Model {
        level: u128,
        seen: u64,
    }

    const MODEL_UNIT: u128 = 60_000_000;

    impl Model {
        fn take(&mut self, rate: Rate, units: u32, now: Moment) -> Option<u32> {
            let earned = u128::from(now.as_micros() - self.seen) * u128::from(rate.per_minute);
            self.seen = now.as_micros();
            self.level = (self.level + earned).min(u128::from(rate.burst) * MODEL_UNIT);
            let cost = u128::from(units.min(rate.burst)) * MODEL_UNIT;
            self.level = self.level.checked_sub(cost)?;
            Some((self.level / MODEL_UNIT) as u32)
        }
    }

    proptest! {
        /// Rates that divide the minute's nanoseconds: the two must agree in everything.
        #[test]
        fn bucket_agrees_with_the_textbook(
            per_minute in prop::sample::select(vec![1, 2, 3, 10, 60, 600, 60_000, 1_000_000]),
            burst in 1_u32..100,
            steps in prop::collection::vec((0_u64..3_000_000, 0_u32..20), 1..200),
        ) {
            let rate = Rate::new(per_minute, burst);
            let bucket = Bucket::default();
            let mut model = Model { level: u128::from(rate.burst) * MODEL_UNIT, seen: 0 };
            let mut now = Moment::ZERO;
            for (pause, units) in steps {
                now = now + Duration::from_micros(pause);
                let expected = model.take(rate, units, now);
                let taken = bucket.take(rate, units, now).ok().map(|level| level.remaining);
                prop_assert_eq!(taken, expected);
            }
        }

        /// Any rate: the first invariant, and that a refused caller who waits as long as asked gets
        /// through.
        #[test]
        fn bucket_keeps_its_promises(
            per_minute in 1_u32..5_000_000,
            burst in 1_u32..1_000,
            steps in prop::collection::vec((0_u64..500_000, 0_u32..50), 1..200),
        ) {
            let rate = Rate::new(per_minute, burst);
            let bucket = Bucket::default();
            let (mut now, mut given) = (Moment::ZERO, 0_u64);
            for (pause, units) in steps {
                now = now + Duration::from_micros(pause);
                let units = units.min(rate.burst);
                if let Err(exceeded) = bucket.take(rate, units, now) {
                    now = now + exceeded.retry_after + Duration::from_micros(1);
                    prop_assert!(bucket.take(rate, units, now).is_ok());
                }
                given += u64::from(units);
                let earned = u128::from(now.as_micros()) * u128::from(rate.per_minute) / MODEL_UNIT;
                // One unit for the rounding of the weights.
                prop_assert!(u128::from(given) <= u128::from(rate.burst) + earned + 1);
            }
        }
    }
}
