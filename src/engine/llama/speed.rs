//! How fast this engine is, by what it has measured itself.
//!
//! Owns moving averages, and the estimates that admission rests on. Knows no clock: durations come
//! in as arguments. Before enough was measured there is no estimate, and nobody is refused by one.

use std::time::Duration;

use crate::limits::{SPEED_CONFIDENT_JOBS, SPEED_WEIGHT};

#[derive(Debug, Default)]
pub struct Speed {
    /// Seconds of computation for one token of a prompt.
    prompt_token: Average,
    /// Seconds of computation for one token of an answer, all running sequences together.
    answer_token: Average,
    /// Tokens of a job's prompt that had to be computed.
    job_prompt: Average,
    /// Tokens of a job's answer.
    job_answer: Average,
    jobs: u32,
}

impl Speed {
    /// A batch of prompt tokens took so long.
    pub fn handle_prompt_batch(&mut self, tokens: usize, took: Duration) {
        self.prompt_token
            .add(took.as_secs_f64() / tokens.max(1) as f64);
    }

    /// A step that gave one token to each of so many sequences took so long.
    pub fn handle_answer_batch(&mut self, tokens: usize, took: Duration) {
        self.answer_token
            .add(took.as_secs_f64() / tokens.max(1) as f64);
    }

    /// A job has ended, one way or another.
    pub fn handle_job(&mut self, computed_prompt: u32, answer: u32) {
        self.job_prompt.add(f64::from(computed_prompt));
        self.job_answer.add(f64::from(answer));
        self.jobs = self.jobs.saturating_add(1);
    }

    /// How long the engine works for one job: the time after which it is through with the next.
    pub fn job_cost(&self) -> Option<Duration> {
        let prompt = self.prompt_token.value? * self.job_prompt.value?;
        let answer = self.answer_token.value? * self.job_answer.value?;
        let is_confident = self.jobs >= SPEED_CONFIDENT_JOBS;
        is_confident.then(|| Duration::from_secs_f64((prompt + answer).max(0.0)))
    }

    /// How long one token of a prompt takes to compute.
    pub fn prompt_token_cost(&self) -> Option<Duration> {
        let is_confident = self.jobs >= SPEED_CONFIDENT_JOBS;
        self.prompt_token
            .value
            .filter(|_| is_confident)
            .map(Duration::from_secs_f64)
    }
}

/// An exponentially weighted moving average.
#[derive(Clone, Copy, Debug, Default)]
struct Average {
    value: Option<f64>,
}

impl Average {
    fn add(&mut self, sample: f64) {
        self.value = Some(match self.value {
            None => sample,
            Some(value) => value + (sample - value) * SPEED_WEIGHT,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_estimate_before_enough_was_measured() {
        let mut speed = Speed::default();
        speed.handle_prompt_batch(100, Duration::from_secs(1));
        speed.handle_answer_batch(16, Duration::from_millis(160));
        for _ in 1..SPEED_CONFIDENT_JOBS {
            speed.handle_job(50, 20);
            assert_eq!(speed.job_cost(), None);
        }
        speed.handle_job(50, 20);
        // 50 tokens of 10 ms, and 20 of 10 ms.
        let cost = speed.job_cost().unwrap().as_secs_f64();
        assert!((cost - 0.7).abs() < 1e-9, "{cost}");
    }

    #[test]
    fn average_follows_what_has_changed() {
        let mut average = Average::default();
        average.add(1.0);
        (0..100).for_each(|_| average.add(2.0));
        assert!((average.value.unwrap() - 2.0).abs() < 0.01);
    }
}
