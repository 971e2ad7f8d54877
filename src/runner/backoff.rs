//! The pause after a failure of something that many tasks need: the store, or the engine.
//!
//! Owns the length of the pause. It doubles with each failure that follows a pause. Tasks that are
//! under way together fail together, of one cause: those that fail within a pause make it no
//! longer. Otherwise a short failure of the store, which four tasks meet at once, would make jobs
//! wait for the longest pause after it.
//!
//! Mutations that the test below catches: failures within a pause that count, no longest pause, a
//! success that leaves the pause.

use std::time::Duration;

use crate::core::Moment;
use crate::limits::jobs as limits;

/// See the file's head.
#[derive(Debug, Default)]
pub struct Backoff {
    /// Zero while nothing fails.
    pause: Duration,
    until: Option<Moment>,
}

impl Backoff {
    pub fn is_failing(&self) -> bool {
        self.until.is_some()
    }

    /// Returns the later one of this moment and the end of the pause.
    pub fn after(&self, moment: Moment) -> Moment {
        self.until.map_or(moment, |until| until.max(moment))
    }

    /// Notes a failure. Returns whether it is the first one since a success.
    pub fn fail(&mut self, now: Moment) -> bool {
        let is_first = !self.is_failing();
        if self.until.is_none_or(|until| until <= now) {
            let doubled = self.pause * 2;
            self.pause = doubled.clamp(limits::BACKOFF_MIN, limits::BACKOFF_MAX);
            self.until = Some(now + self.pause);
        }
        is_first
    }

    /// Notes a success. Returns whether there was a failure before it.
    pub fn succeed(&mut self) -> bool {
        let was_failing = self.is_failing();
        *self = Backoff::default();
        was_failing
    }

    /// Logs the first failure of the store and its recovery, and puts off the tasks that have these
    /// times until the pause has ended. `work` is what the store does not do meanwhile.
    pub fn note_store(
        &mut self,
        failure: Option<&str>,
        work: &str,
        times: &mut [&mut Moment],
        now: Moment,
    ) {
        let Some(why) = failure else {
            if self.succeed() {
                log::info!("the store takes {work} again");
                // Tasks that have waited for the end of the pause are due.
                for at in times {
                    **at = now.min(**at);
                }
            }
            return;
        };
        if self.fail(now) {
            log::warn!("{work} wait, because the store has failed: {why}");
        }
        let later = self.after(now);
        for at in times {
            **at = later.max(**at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_of_one_cause_make_one_pause() {
        let mut backoff = Backoff::default();
        let mut now = Moment::from_micros(1_000_000);
        assert_eq!(backoff.after(now), now);
        assert!(!backoff.succeed());
        assert!(backoff.fail(now));
        for expected in [1, 2, 4, 8, 16, 30, 30] {
            let end = now + Duration::from_secs(expected);
            for millis in [0, 1, 999] {
                assert!(!backoff.fail(now + Duration::from_millis(millis)));
                assert_eq!(backoff.after(now), end, "{expected}");
            }
            assert_eq!(
                backoff.after(end + Duration::from_secs(1)),
                end + Duration::from_secs(1)
            );
            now = end;
            assert!(!backoff.fail(now));
        }
        assert!(backoff.succeed());
        assert!(!backoff.is_failing());
        assert_eq!(backoff.after(now), now);
        assert!(backoff.fail(now));
        assert_eq!(backoff.after(now), now + limits::BACKOFF_MIN);
    }

    /// Mutations: times that stay as they are after a failure, or after the recovery.
    #[test]
    fn a_store_that_fails_puts_off_all_tasks_until_it_works() {
        let mut backoff = Backoff::default();
        let now = Moment::from_micros(1_000_000);
        let later = now + 2 * limits::BACKOFF_MAX;
        let (mut claim_at, mut save_at) = (now, later);
        let times = &mut [&mut claim_at, &mut save_at];
        backoff.note_store(Some("as the test wants it"), "jobs", times, now);
        assert_eq!([claim_at, save_at], [now + limits::BACKOFF_MIN, later]);
        let times = &mut [&mut claim_at, &mut save_at];
        backoff.note_store(None, "jobs", times, now);
        assert_eq!([claim_at, save_at], [now, now]);
    }
}
