//! Estimates how fast this engine is, from its own measurements.
//!
//! Owns moving averages, and the estimates that admission uses. Knows no clock: durations and times
//! are arguments. An estimate may refuse a job, and a refused job produces no sample, so a wrong
//! estimate must not last:
//!
//!  1. One sample moves an average by a bounded factor, however far off it is. A process that was
//!     stopped (SIGSTOP, a freezer, a migration, swap) measures its pause as if it were work.
//!  2. A single sample far below the average corrects the average at once.
//!  3. A speed that has not been measured for a while is unknown, and refuses no job.
//!  4. Before there are enough measurements there is no estimate.
//!
//! Mutations that the tests below catch: no clamp in `Average::add` (`one_long_stall_...`), no age
//! in `Average::fresh` (`speed_that_was_not_measured_...`), no weight by tokens
//! (`last_tokens_of_a_prompt_...`).

use std::time::Duration;

use crate::core::Moment;
use crate::limits::engine as limits;

#[derive(Clone, Copy, Debug, Default)]
pub struct Speed {
    /// Seconds of computation per token of a prompt.
    prompt_token: Average,
    /// Seconds of computation per generated token, all running sequences together.
    answer_token: Average,
    /// Tokens of a job's prompt that had to be computed.
    job_prompt: Average,
    /// Generated tokens of a job.
    job_answer: Average,
    jobs: u32,
}

impl Speed {
    /// Records how long a batch of prompt tokens took. The last few tokens of a prompt reveal
    /// little about the many of the next one, so a small batch weighs less.
    pub fn handle_prompt_batch(&mut self, tokens: usize, took: Duration, now: Moment) {
        let share = (tokens as f64 / limits::SPEED_FULL_SAMPLE_TOKENS_MIN as f64).min(1.0);
        let sample = took.as_secs_f64() / tokens.max(1) as f64;
        self.prompt_token
            .add(sample, limits::SPEED_SAMPLE_WEIGHT * share, now);
    }

    /// Records how long a step took that generated one token for each of `tokens` sequences.
    pub fn handle_answer_batch(&mut self, tokens: usize, took: Duration, now: Moment) {
        let sample = took.as_secs_f64() / tokens.max(1) as f64;
        self.answer_token
            .add(sample, limits::SPEED_SAMPLE_WEIGHT, now);
    }

    /// Records the end of a job, complete, failed or cancelled: each made room for the next one.
    pub fn handle_job(&mut self, computed_prompt: u32, answer: u32, now: Moment) {
        // Sizes are not times: a large one is not an outlier.
        self.job_prompt.follow(f64::from(computed_prompt), now);
        self.job_answer.follow(f64::from(answer), now);
        self.jobs = self.jobs.saturating_add(1);
    }

    /// Returns how long the engine works for one job, and so when it can take the next one.
    pub fn job_cost(&self, now: Moment) -> Option<Duration> {
        let prompt = self.prompt_token.fresh(now)? * self.job_prompt.value?;
        let answer = self.answer_token.fresh(now)? * self.job_answer.value?;
        let is_confident = self.jobs >= limits::SPEED_CONFIDENT_JOBS_MIN;
        is_confident.then(|| Duration::from_secs_f64((prompt + answer).max(0.0)))
    }

    /// Returns how long one token of a prompt takes to compute.
    pub fn prompt_token_cost(&self, now: Moment) -> Option<Duration> {
        let is_confident = self.jobs >= limits::SPEED_CONFIDENT_JOBS_MIN;
        self.prompt_token
            .fresh(now)
            .filter(|_| is_confident)
            .map(Duration::from_secs_f64)
    }
}

/// An exponentially weighted moving average.
#[derive(Clone, Copy, Debug, Default)]
pub struct Average {
    value: Option<f64>,
    measured_at: Moment,
}

impl Average {
    /// Returns the average, however old.
    pub fn value(&self) -> Option<f64> {
        self.value
    }

    /// Adds a measurement of time, which may be an outlier.
    pub fn add(&mut self, sample: f64, weight: f64, now: Moment) {
        self.measured_at = now;
        self.value = Some(match self.value {
            None => sample,
            Some(value) => {
                let value = value.min(sample * limits::SPEED_OUTLIER_FACTOR_MAX);
                let sample = sample.min(value * limits::SPEED_OUTLIER_FACTOR_MAX);
                value + (sample - value) * weight
            }
        });
    }

    /// Adds a size, however far from the average.
    fn follow(&mut self, sample: f64, now: Moment) {
        self.measured_at = now;
        let value = self.value.unwrap_or(sample);
        self.value = Some(value + (sample - value) * limits::SPEED_SAMPLE_WEIGHT);
    }

    /// Returns the average, unless its last sample is too old.
    pub fn fresh(&self, now: Moment) -> Option<f64> {
        self.value
            .filter(|_| now.since(self.measured_at) < limits::SPEED_STALE_AFTER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Moment = Moment::from_micros(1_000_000);
    const MILLISECOND: Duration = Duration::from_millis(1);

    /// Ten milliseconds per token, measured often enough.
    fn warm() -> Speed {
        let mut speed = Speed::default();
        for _ in 0..limits::SPEED_CONFIDENT_JOBS_MIN {
            speed.handle_prompt_batch(100, 1000 * MILLISECOND, NOW);
            speed.handle_answer_batch(16, 160 * MILLISECOND, NOW);
            speed.handle_job(50, 20, NOW);
        }
        speed
    }

    fn prompt_token_ms(speed: &Speed, now: Moment) -> f64 {
        speed.prompt_token_cost(now).unwrap().as_secs_f64() * 1e3
    }

    #[test]
    fn no_estimate_before_enough_was_measured() {
        let mut speed = Speed::default();
        speed.handle_prompt_batch(100, 1000 * MILLISECOND, NOW);
        speed.handle_answer_batch(16, 160 * MILLISECOND, NOW);
        for _ in 1..limits::SPEED_CONFIDENT_JOBS_MIN {
            speed.handle_job(50, 20, NOW);
            assert_eq!(speed.job_cost(NOW), None);
        }
        speed.handle_job(50, 20, NOW);
        // 50 tokens of 10 ms, and 20 of 10 ms.
        let cost = speed.job_cost(NOW).unwrap().as_secs_f64();
        assert!((cost - 0.7).abs() < 1e-9, "{cost}");
    }

    #[test]
    fn one_long_stall_moves_the_estimate_by_little() {
        let mut speed = warm();
        speed.handle_prompt_batch(64, Duration::from_secs(45), NOW);
        speed.handle_answer_batch(1, Duration::from_secs(45), NOW);
        let cost = prompt_token_ms(&speed, NOW);
        assert!((10.0..12.0).contains(&cost), "{cost} ms");
        let job = speed.job_cost(NOW).unwrap();
        assert!(job < Duration::from_millis(840), "{job:?}");
    }

    #[test]
    fn stall_in_the_very_first_sample_is_forgotten_at_the_next() {
        let mut speed = Speed::default();
        speed.handle_prompt_batch(10, Duration::from_secs(45), NOW);
        speed.handle_prompt_batch(100, 1000 * MILLISECOND, NOW);
        (0..limits::SPEED_CONFIDENT_JOBS_MIN).for_each(|_| speed.handle_job(50, 20, NOW));
        let cost = prompt_token_ms(&speed, NOW);
        assert!(cost <= 40.0, "{cost} ms");
    }

    #[test]
    fn last_tokens_of_a_prompt_weigh_less_than_a_whole_batch() {
        let (mut few, mut many) = (warm(), warm());
        few.handle_prompt_batch(2, 40 * MILLISECOND, NOW);
        many.handle_prompt_batch(200, 4000 * MILLISECOND, NOW);
        let (few, many) = (prompt_token_ms(&few, NOW), prompt_token_ms(&many, NOW));
        assert!(few - 10.0 < (many - 10.0) / 8.0, "{few} and {many} ms");
    }

    #[test]
    fn speed_that_was_not_measured_for_a_while_is_unknown() {
        let mut speed = warm();
        let later = NOW + limits::SPEED_STALE_AFTER;
        assert!(
            speed
                .job_cost(NOW + (limits::SPEED_STALE_AFTER - MILLISECOND))
                .is_some()
        );
        assert_eq!(speed.job_cost(later), None);
        assert_eq!(speed.prompt_token_cost(later), None);
        // Output goes on while every prompt is refused: the speed of prompts becomes unknown all
        // the same.
        speed.handle_answer_batch(16, 160 * MILLISECOND, later);
        assert_eq!(speed.prompt_token_cost(later), None);
        speed.handle_prompt_batch(100, 1000 * MILLISECOND, later);
        assert!(speed.job_cost(later).is_some());
    }

    #[test]
    fn average_follows_what_has_changed() {
        let mut average = Average::default();
        average.add(1.0, limits::SPEED_SAMPLE_WEIGHT, NOW);
        (0..200).for_each(|_| average.add(8.0, limits::SPEED_SAMPLE_WEIGHT, NOW));
        assert!((average.value.unwrap() - 8.0).abs() < 0.01);
        (0..200).for_each(|_| average.add(1.0, limits::SPEED_SAMPLE_WEIGHT, NOW));
        assert!((average.value.unwrap() - 1.0).abs() < 0.01);
    }
}
