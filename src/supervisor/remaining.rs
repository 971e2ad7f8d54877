//! The time that a draining daemon has left once its reactors have ended.
//!
//! Owns the end of that time. A second signal moves it to now; other signals mean nothing any more.

use std::time::Instant;

use crate::limits::supervisor as limits;
use crate::os::signals::{Signal, Signals};

pub struct Remaining<'a> {
    pub signals: &'a mut Signals,
    /// The signal that began the drain, and its time.
    pub drained_by: Option<(Signal, Instant)>,
    pub until: Instant,
}

impl Remaining<'_> {
    pub fn is_over(&mut self, now: Instant) -> bool {
        while let Ok(Some(signal)) = self.signals.next_pending() {
            let is_end = matches!(signal, Signal::Terminate | Signal::Interrupt);
            if is_end && !is_same_wish(self.drained_by, signal, now) {
                log::warn!("second signal: exiting at once");
                self.until = self.until.min(now);
            }
        }
        now >= self.until
    }
}

/// Returns whether a signal belongs to the one that began the drain: SIGTERM and SIGINT together
/// count as one.
pub fn is_same_wish(first: Option<(Signal, Instant)>, signal: Signal, now: Instant) -> bool {
    first.is_some_and(|(first, at)| {
        signal != first && now.saturating_duration_since(at) < limits::SIGNALS_TOGETHER
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::signals::block;
    use std::time::Duration;

    /// Mutations that this test catches: no look at the signals; any signal that ends the time; a
    /// pair that counts as two.
    #[test]
    fn time_ends_by_itself_or_with_a_second_signal() {
        block().unwrap();
        let mut signals = Signals::new().unwrap();
        let start = Instant::now();
        let mut remaining = Remaining {
            signals: &mut signals,
            drained_by: Some((Signal::Terminate, start)),
            until: start + Duration::from_secs(9),
        };
        assert!(!remaining.is_over(start));
        assert!(remaining.is_over(start + Duration::from_secs(9)));
        Signal::Hangup.raise();
        assert!(!remaining.is_over(start + limits::SIGNALS_TOGETHER));
        Signal::Interrupt.raise();
        assert!(!remaining.is_over(start), "it came with the first one");
        Signal::Terminate.raise();
        assert!(remaining.is_over(start));
        assert!(remaining.is_over(start), "it stays so");
    }
}
