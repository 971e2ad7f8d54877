//! Remembers when the repeated messages to the service manager were last sent.
//!
//! Owns two times, one for each message: a frequent one must not suppress the other.

use std::time::{Duration, Instant};

use crate::limits::supervisor as limits;

pub struct Rhythm {
    extended_at: Instant,
    fed_at: Instant,
}

impl Rhythm {
    pub fn new(now: Instant) -> Rhythm {
        Rhythm {
            extended_at: now,
            fed_at: now,
        }
    }

    /// Returns whether to ask for more loading time, well before the last grant ends.
    pub fn is_extension_due(&mut self, now: Instant) -> bool {
        take_if_due(
            &mut self.extended_at,
            limits::LOADING_TIMEOUT_EXTENSION / 2,
            now,
        )
    }

    pub fn is_watchdog_due(&mut self, interval: Duration, now: Instant) -> bool {
        take_if_due(&mut self.fed_at, interval / 2, now)
    }
}

fn take_if_due(told_at: &mut Instant, interval: Duration, now: Instant) -> bool {
    let is_due = now.saturating_duration_since(*told_at) >= interval;
    if is_due {
        *told_at = now;
    }
    is_due
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With the unit's own `WatchdogSec=30s` a loading daemon feeds the watchdog every 7.5 s and
    /// asks for time every 15 s.
    #[test]
    fn a_watchdog_that_is_fed_does_not_keep_a_loading_daemon_from_asking_for_time() {
        let start = Instant::now();
        let mut rhythm = Rhythm::new(start);
        let watchdog_interval = Duration::from_secs(15);
        let (mut fed, mut extended) = (0, 0);
        for ticks in 1..=6_000 {
            let now = start + ticks * limits::LOADING_TICK;
            extended += u32::from(rhythm.is_extension_due(now));
            fed += u32::from(rhythm.is_watchdog_due(watchdog_interval, now));
        }
        // Two minutes.
        assert_eq!((fed, extended), (16, 8));
    }
}
