//! The series of durable jobs in `/metrics`.

use std::time::Duration;

use crate::jobs::{Ending, JobTotals};
use crate::limits::telemetry as telemetry_limits;

use super::change::Next;

crate::families! {
    /// Durable jobs: those of the whole store, and the attempts of this daemon.
    pub struct RunnerSeries {
        /// Unfinished jobs in the store.
        jobs: Gauge = "jobs" [ state: Unfinished ], "autoglmd.job.unfinished";
        /// Bytes of requests, results and events in the store.
        bytes: Gauge = "jobs_stored_bytes", "autoglmd.job.size";
        /// Attempts of this daemon that have ended.
        attempts: Counter = "job_attempts" [ outcome: Outcome ], "autoglmd.job.attempt";
        /// Time from the acceptance of a job to the beginning of its first attempt.
        waits: Histogram(telemetry_limits::REQUEST_DURATION_BUCKETS_MICROS) =
            "job_wait_seconds", "autoglmd.job.wait";
        /// Time from the beginning of an attempt to its saved end.
        runs: Histogram(telemetry_limits::REQUEST_DURATION_BUCKETS_MICROS) =
            "job_run_seconds", "autoglmd.job.run";
    }
}

/// The states of unfinished jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfinished {
    Queued,
    Running,
}

impl Unfinished {
    const ALL: [Unfinished; 2] = [Unfinished::Queued, Unfinished::Running];

    const fn as_str(self) -> &'static str {
        match self {
            Unfinished::Queued => "queued",
            Unfinished::Running => "running",
        }
    }
}

crate::label!(Unfinished, as_str, Unfinished::ALL, 0);

/// How an attempt has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Completed,
    Failed,
    /// The job waits for another attempt.
    Released,
}

impl Outcome {
    const ALL: [Outcome; 3] = [Outcome::Completed, Outcome::Failed, Outcome::Released];

    const fn as_str(self) -> &'static str {
        match self {
            Outcome::Completed => "completed",
            Outcome::Failed => "failed",
            Outcome::Released => "released",
        }
    }
}

crate::label!(Outcome, as_str, Outcome::ALL, 0);

impl RunnerSeries {
    pub fn set_totals(&self, totals: &JobTotals) {
        self.jobs.get(Unfinished::Queued).set(totals.queued as i64);
        self.jobs
            .get(Unfinished::Running)
            .set(totals.running as i64);
        self.bytes.set(totals.bytes as i64);
    }

    pub fn observe_wait(&self, wait: Duration) {
        self.waits.observe(wait);
    }

    pub fn count_end(&self, end: &Next, age: Duration) {
        let outcome = match end {
            Next::End(ending) => match **ending {
                Ending::Completed(_) => Outcome::Completed,
                Ending::Failed(_) => Outcome::Failed,
            },
            Next::Lose => Outcome::Failed,
            Next::Wait { .. } | Next::Run { .. } => Outcome::Released,
        };
        self.attempts.get(outcome).inc();
        self.runs.observe(age);
    }
}
