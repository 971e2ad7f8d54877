//! How many prompt tokens one step may read: as many as the engine computes in a given time.
//!
//! Owns the measured cost of a token. A batch of prompts delays the next token of every stream, and
//! the first token of every request that arrives meanwhile, so its bound is a time. The bound holds
//! also while no sequence writes: the next request may come at any moment.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::super::speed::Average;
use crate::core::Moment;
use crate::limits::engine as limits;

#[derive(Debug)]
pub struct Budget {
    time: Duration,
    /// The least and the most tokens, however fast the engine is.
    pub bounds: RangeInclusive<usize>,
    /// Seconds per token, in batches of about the present size.
    cost: Average,
}

impl Budget {
    pub fn new(time: Duration, batch_limit: usize) -> Budget {
        let least = limits::PROMPT_STEP_TOKENS_MIN.min(batch_limit);
        Budget {
            time,
            bounds: least..=batch_limit,
            cost: Average::default(),
        }
    }

    /// Returns the tokens of the next step. `answering` is how long this step has computed outputs:
    /// beside them the prompts may take a multiple of that, because their next tokens wait. The
    /// time of copies, `copying`, is taken off.
    pub fn tokens(&self, answering: Duration, copying: Duration) -> usize {
        let time = match answering {
            Duration::ZERO => self.time,
            _ => self.time.min(answering * limits::PROMPT_TIME_FACTOR_MAX),
        };
        let time = time.saturating_sub(copying);
        let tokens = match self.cost.value() {
            Some(cost) => (time.as_secs_f64() / cost.max(f64::MIN_POSITIVE)) as usize,
            None => limits::PROMPT_STEP_TOKENS_TYPICAL,
        };
        tokens.clamp(*self.bounds.start(), *self.bounds.end())
    }

    /// Records how long a batch took. A batch much smaller than the budget shows mostly its fixed
    /// cost, and weighs less.
    pub fn handle_batch(&mut self, tokens: usize, took: Duration, now: Moment) {
        let whole = self.tokens(Duration::ZERO, Duration::ZERO);
        let share = (tokens as f64 / whole as f64).min(1.0);
        let sample = took.as_secs_f64() / tokens.max(1) as f64;
        self.cost
            .add(sample, limits::PROMPT_COST_WEIGHT * share, now);
    }
}

/// Mutations that these tests catch: no bound below or above; a cost that is not measured; one slow
/// batch that counts in full (`Average::add` without its clamp).
#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Moment = Moment::from_micros(1);
    const NONE: Duration = Duration::ZERO;

    fn after(token_time: Duration, batches: usize) -> Budget {
        let mut budget = Budget::new(Duration::from_millis(250), 512);
        for _ in 0..batches {
            let tokens = budget.tokens(NONE, NONE);
            budget.handle_batch(tokens, token_time * tokens as u32, NOW);
        }
        budget
    }

    #[test]
    fn a_step_has_as_many_tokens_as_the_time_allows() {
        assert_eq!(
            after(Duration::ZERO, 0).tokens(NONE, NONE),
            limits::PROMPT_STEP_TOKENS_TYPICAL
        );
        let tokens = after(Duration::from_millis(5), 1).tokens(NONE, NONE);
        assert!((49..=50).contains(&tokens), "{tokens}");
        assert_eq!(
            after(Duration::from_secs(1), 9).tokens(NONE, NONE),
            limits::PROMPT_STEP_TOKENS_MIN
        );
        assert_eq!(after(Duration::from_micros(1), 9).tokens(NONE, NONE), 512);
    }

    /// Mutation: outputs that are not looked at.
    #[test]
    fn beside_outputs_the_prompts_take_a_multiple_of_their_time() {
        let budget = after(Duration::from_millis(1), 9);
        let (short, long) = (Duration::from_millis(50), Duration::from_secs(1));
        assert!((96..=100).contains(&budget.tokens(short, NONE)));
        assert_eq!(budget.tokens(long, NONE), budget.tokens(NONE, NONE));
        assert_eq!(
            budget.tokens(short / 1_000, NONE),
            limits::PROMPT_STEP_TOKENS_MIN
        );
    }

    /// Mutation: copies that are not taken off.
    #[test]
    fn the_time_of_copies_is_taken_off() {
        let budget = after(Duration::from_millis(1), 9);
        let copying = Duration::from_millis(50);
        assert!((190..=200).contains(&budget.tokens(NONE, copying)));
        let short = Duration::from_millis(40);
        assert!((28..=30).contains(&budget.tokens(short, copying)));
        assert_eq!(
            budget.tokens(NONE, 9 * copying),
            limits::PROMPT_STEP_TOKENS_MIN
        );
    }

    #[test]
    fn the_budget_follows_a_machine_that_gets_slower_and_faster() {
        let mut budget = after(Duration::from_millis(1), 9);
        assert!((240..=251).contains(&budget.tokens(NONE, NONE)));
        for _ in 0..5 {
            let tokens = budget.tokens(NONE, NONE);
            budget.handle_batch(tokens, Duration::from_millis(8) * tokens as u32, NOW);
        }
        assert!(
            (31..=40).contains(&budget.tokens(NONE, NONE)),
            "{}",
            budget.tokens(NONE, NONE)
        );
        for _ in 0..12 {
            let tokens = budget.tokens(NONE, NONE);
            budget.handle_batch(tokens, Duration::from_millis(1) * tokens as u32, NOW);
        }
        assert!(
            (200..=251).contains(&budget.tokens(NONE, NONE)),
            "{}",
            budget.tokens(NONE, NONE)
        );
    }

    #[test]
    fn a_pause_of_the_process_does_not_stop_reading() {
        let mut budget = after(Duration::from_millis(1), 9);
        budget.handle_batch(250, Duration::from_secs(3_600), NOW);
        assert!(
            budget.tokens(NONE, NONE) > 80,
            "{}",
            budget.tokens(NONE, NONE)
        );
    }

    #[test]
    fn the_last_tokens_of_a_prompt_reveal_little() {
        let mut budget = after(Duration::from_millis(1), 9);
        budget.handle_batch(1, Duration::from_millis(40), NOW);
        assert!(
            budget.tokens(NONE, NONE) > 240,
            "{}",
            budget.tokens(NONE, NONE)
        );
    }
}
