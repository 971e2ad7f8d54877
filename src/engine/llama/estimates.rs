//! Estimates how long a job would wait, for the decision to admit it.
//!
//! Owns nothing: it reads the counts of the queue and the numbers of the last step. A tenant's wait
//! depends on its own queue and its share of the engine, not on how much others have sent: beside a
//! tenant with a hundred jobs, the first job of another is the next but one.
//!
//! An estimate may be wrong and must then not last: see [`super::speed`]. An engine at rest takes
//! every job, because refusing one would teach it nothing, and computing it delays no other.

use std::time::Duration;

use super::shared::Shared;
use crate::core::Moment;
use crate::engine::{Class, Job};
use crate::limits::engine as limits;

impl Shared {
    /// Returns when a job that is submitted now would get its first token, by measured speed, in an
    /// engine of `parallel` sequences. `None` while too little is known, and while the engine is at
    /// rest.
    pub fn time_to_first_token(&self, job: &Job, parallel: u32) -> Option<Duration> {
        let now = Moment::now();
        let context = self.model.get()?.context_length as usize;
        let tokens = job.prompt.bytes() / limits::BYTES_PER_TOKEN;
        if tokens > context {
            // Probably too long: the tokens are counted, and the client learns by how much.
            return None;
        }
        let weight = Some(job.weight);
        let outlook = self.places.outlook(job.tenant, job.class, weight);
        let published = self.published();
        let running = published.gauges.sequences_running;
        if running == 0 && outlook.total == 0 {
            return None;
        }
        let job_cost = published.speed.job_cost(now)?;
        let prompt_token_cost = published.speed.prompt_token_cost(now)?;
        // The sequences of the tenant may hold the beginning of this prompt, which is then not
        // computed again. That is certain only after the prompt is tokenized.
        let held = published.held.iter();
        let own = held.filter_map(|(tenant, held)| (*tenant == job.tenant).then_some(*held));
        let computed = tokens.saturating_sub(own.max().unwrap_or(0));
        // The engine finishes one job per `job_cost`, and the next one begins.
        let is_full = running >= parallel;
        let before = outlook.jobs_until(outlook.own + u32::from(is_full));
        let reading = prompt_token_cost.checked_mul(u32::try_from(computed).ok()?)?;
        Some(job_cost.saturating_mul(before).saturating_add(reading))
    }

    /// Returns when all jobs of a tenant and class that wait now will have begun, by measured
    /// speed.
    pub fn time_to_empty_queue(&self, tenant: u64, class: Class) -> Duration {
        let job_cost = self.published().speed.job_cost(Moment::now());
        let outlook = self.places.outlook(tenant, class, None);
        let before = outlook.jobs_until(outlook.own);
        match job_cost.unwrap_or_default().saturating_mul(before) {
            Duration::ZERO => limits::RETRY_AFTER,
            wait => wait,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mutation: every tenant counted with a weight of 1.
    #[test]
    fn a_heavy_tenant_may_come_back_sooner_to_a_full_queue() {
        const JOBS: u32 = 6;
        let shared = Shared::new(2 * JOBS, Duration::from_secs(1));
        let take = |tenant, weight| {
            let places = (0..JOBS).map(|_| shared.places.try_take(tenant, Class::Live, weight));
            places.collect::<Option<Vec<_>>>().expect("there is room")
        };
        let _waiting = [take(1, 1), take(2, 3)];
        let wait = |tenant| shared.time_to_empty_queue(tenant, Class::Live);
        assert_eq!(wait(1), limits::RETRY_AFTER, "no speed was measured");
        // A job takes a second.
        let (half, now) = (Duration::from_millis(500), Moment::now());
        let mut published = shared.published();
        let speed = &mut published.speed;
        speed.handle_prompt_batch(1, half, now);
        speed.handle_answer_batch(1, half, now);
        (0..limits::SPEED_CONFIDENT_JOBS_MIN).for_each(|_| speed.handle_job(1, 1, now));
        drop(published);
        assert_eq!([wait(1), wait(2)].map(|wait| wait.as_secs()), [12, 8]);
    }
}
