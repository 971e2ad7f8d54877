//! The daemon's reading of the clock: microseconds since the process began.
//!
//! Pure parts never read a clock. The loop samples one `Moment` per turn and passes it down: all
//! decisions of that turn agree about "now", and the simulation can control time.

use std::ops::{Add, Sub};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

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
