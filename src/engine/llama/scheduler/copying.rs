//! The time that copies of sequences take from a step, measured and bounded.
//!
//! Owns the measured cost of a token in each direction, and the time that the present step has
//! spent. llama.cpp copies a sequence as a whole, and all streams wait meanwhile. So one step has a
//! bounded time for copies that it can do without, and its prompts are read for as much less time
//! as all of its copies have taken.
//!
//! A refused copy produces no sample. So a cost that was not measured for a while is unknown, and
//! refuses none: the bound on a copy is then its size.
//!
//! Mutations that tests catch: no bound, `spent` that is not added up or not begun again, short
//! copies that count (below); prompts that are read for the whole time all the same
//! (`streams_wait_no_longer_...`); a load or a save that does not look at the bound
//! (`copy_that_would_take_too_long_...`).

use std::time::Duration;

use super::super::speed::Average;
use crate::core::Moment;
use crate::limits::engine as engine_limits;
use crate::limits::prefixes as limits;

#[derive(Debug)]
pub struct Copying {
    /// A shorter copy shows mostly its fixed cost, and nothing about long ones.
    pub sample_tokens_min: usize,
    /// Seconds per token.
    saving: Average,
    restoring: Average,
    /// The time of all copies in this step.
    spent: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Out of the engine.
    Save,
    /// Into it.
    Restore,
}

impl Default for Copying {
    fn default() -> Copying {
        Copying {
            sample_tokens_min: limits::TOKENS_MIN,
            saving: Average::default(),
            restoring: Average::default(),
            spent: Duration::ZERO,
        }
    }
}

impl Copying {
    pub fn begin_step(&mut self) {
        self.spent = Duration::ZERO;
    }

    pub fn spent(&self) -> Duration {
        self.spent
    }

    /// Returns how many tokens may still be copied in this step.
    pub fn tokens_left(&self, way: Way, now: Moment) -> usize {
        let left = limits::COPY_TIME_MAX.saturating_sub(self.spent);
        match left {
            Duration::ZERO => 0,
            _ => self.tokens_in(left, way, now),
        }
    }

    /// Returns the tokens of the longest sequence that a step may copy.
    pub fn tokens_max(&self, way: Way, now: Moment) -> usize {
        self.tokens_in(limits::COPY_TIME_MAX, way, now)
    }

    fn tokens_in(&self, time: Duration, way: Way, now: Moment) -> usize {
        let cost = match way {
            Way::Save => self.saving.fresh(now),
            Way::Restore => self.restoring.fresh(now),
        };
        cost.map_or(usize::MAX, |cost| {
            (time.as_secs_f64() / cost.max(f64::MIN_POSITIVE)) as usize
        })
    }

    /// Records a copy.
    pub fn handle_copy(&mut self, way: Way, tokens: usize, took: Duration, now: Moment) {
        self.spent += took;
        if tokens < self.sample_tokens_min {
            return;
        }
        let sample = took.as_secs_f64() / tokens as f64;
        let average = match way {
            Way::Save => &mut self.saving,
            Way::Restore => &mut self.restoring,
        };
        average.add(sample, engine_limits::PROMPT_COST_WEIGHT, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Moment = Moment::from_micros(1);
    const LONG: usize = 4 * limits::TOKENS_MIN;

    #[test]
    fn copies_of_a_step_stay_within_its_time() {
        let mut copying = Copying::default();
        assert_eq!(copying.tokens_left(Way::Save, NOW), usize::MAX, "unknown");
        let cost = limits::COPY_TIME_MAX / (2 * LONG) as u32;
        copying.handle_copy(Way::Save, LONG, cost * LONG as u32, NOW);
        assert!(copying.tokens_left(Way::Save, NOW) <= LONG);
        assert!(copying.tokens_left(Way::Save, NOW) >= LONG - LONG / 8);
        assert_eq!(copying.tokens_left(Way::Restore, NOW), usize::MAX);
        assert!(copying.tokens_max(Way::Save, NOW) >= 2 * LONG - LONG / 8);
        copying.handle_copy(Way::Restore, LONG, cost * LONG as u32, NOW);
        assert!(copying.spent() >= limits::COPY_TIME_MAX - Duration::from_millis(1));
        copying.handle_copy(Way::Save, 1, Duration::from_millis(1), NOW);
        assert_eq!(copying.tokens_left(Way::Save, NOW), 0);
        assert_eq!(copying.tokens_left(Way::Restore, NOW), 0);
        copying.begin_step();
        assert!(copying.tokens_left(Way::Save, NOW) >= 2 * LONG - LONG / 8);
    }

    #[test]
    fn short_copies_and_old_ones_tell_nothing_about_long_ones() {
        let mut copying = Copying::default();
        copying.handle_copy(Way::Save, 1, limits::COPY_TIME_MAX / 2, NOW);
        copying.begin_step();
        assert_eq!(copying.tokens_left(Way::Save, NOW), usize::MAX);
        copying.handle_copy(Way::Save, LONG, limits::COPY_TIME_MAX * 2, NOW);
        copying.begin_step();
        assert!(copying.tokens_max(Way::Save, NOW) < LONG);
        let later = NOW + engine_limits::SPEED_STALE_AFTER;
        assert_eq!(copying.tokens_max(Way::Save, later), usize::MAX);
    }
}
