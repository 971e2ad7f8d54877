//! The daemon's reading of the clock: microseconds since the process began.
//!
//! Pure parts never read a clock. The loop samples one `Moment` per turn and passes it down: all
//! decisions of that turn agree about "now", and the simulation can control time.

use std::ops::{Add, Sub};
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A point in monotonic time (`CLOCK_MONOTONIC`), in microseconds since [`Moment::epoch`].
///
/// Eight bytes instead of an `Instant`'s sixteen: a connection holds six of these.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(u64);

impl Moment {
    pub const ZERO: Moment = Moment(0);
    /// Later than every moment that will be reached.
    pub const NEVER: Moment = Moment(u64::MAX);

    pub const fn from_micros(micros: u64) -> Moment {
        Moment(micros)
    }

    pub const fn as_micros(self) -> u64 {
        self.0
    }

    pub const fn as_millis(self) -> u64 {
        self.0 / 1_000
    }

    /// Reads the clock. Only the real system, the engine's thread and other threads that own
    /// their time call this.
    pub fn now() -> Moment {
        Moment(Moment::epoch().elapsed().as_micros() as u64)
    }

    /// Returns the instant that all moments of this process count from: the first reading.
    fn epoch() -> Instant {
        static EPOCH: OnceLock<Instant> = OnceLock::new();
        *EPOCH.get_or_init(Instant::now)
    }

    /// Returns how long after `earlier` this is; zero if it is not after it.
    pub const fn since(self, earlier: Moment) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Moment {
    type Output = Moment;

    fn add(self, duration: Duration) -> Moment {
        Moment(
            self.0
                .saturating_add(duration.as_micros().min(u64::MAX as u128) as u64),
        )
    }
}

impl Sub<Moment> for Moment {
    type Output = Duration;

    fn sub(self, earlier: Moment) -> Duration {
        self.since(earlier)
    }
}

/// A point in wall-clock time, in whole seconds since 1970 (UTC): for what outlives the process,
/// such as the end of a key. It may jump; deadlines are [`Moment`]s.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixSeconds(u64);

impl UnixSeconds {
    pub const fn new(seconds: u64) -> UnixSeconds {
        UnixSeconds(seconds)
    }

    /// Reads the wall clock. A clock that is set before 1970 reads as 1970.
    pub fn now() -> UnixSeconds {
        let elapsed = SystemTime::now().duration_since(UNIX_EPOCH);
        UnixSeconds(elapsed.map_or(0, |elapsed| elapsed.as_secs()))
    }

    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// Returns the same as X.509 counts, whose times may lie before 1970.
    pub fn as_i64(self) -> i64 {
        i64::try_from(self.0).unwrap_or(i64::MAX)
    }
}

/// A point in wall-clock time, in milliseconds since 1970 (UTC): for ids and records. It may jump.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixMillis(u64);

impl UnixMillis {
    pub const fn new(milliseconds: u64) -> UnixMillis {
        UnixMillis(milliseconds)
    }

    /// Reads the wall clock. A clock that is set before 1970 reads as 1970.
    pub fn now() -> UnixMillis {
        let elapsed = SystemTime::now().duration_since(UNIX_EPOCH);
        UnixMillis(elapsed.map_or(0, |elapsed| elapsed.as_millis() as u64))
    }

    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// Returns the second that it is in.
    pub const fn as_seconds(self) -> UnixSeconds {
        UnixSeconds(self.0 / 1_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mutation: `as_i64` with a plain `as`.
    #[test]
    fn seconds_since_1970_are_counted_and_never_turn_negative() {
        let now = UnixSeconds::now();
        assert!(now > UnixSeconds::new(1_700_000_000), "{now:?}");
        assert_eq!(UnixSeconds::new(7).as_i64(), 7);
        assert_eq!(UnixSeconds::new(u64::MAX).as_i64(), i64::MAX);
    }
}
