//! The series of durable jobs in `/metrics`.

use std::time::Duration;

use crate::jobs::{self, Ending, JobTotals};
use crate::limits::telemetry as telemetry_limits;

use super::changes::Next;

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

crate::families! {
    /// Callbacks of durable jobs that this daemon sends.
    pub struct CallbackSeries {
        /// Callbacks under way, or whose results are not saved yet.
        under_way: Gauge = "job_callbacks_under_way", "autoglmd.job.callback.active";
        /// Attempts to deliver a callback that have ended.
        attempts: Counter = "job_callback_attempts" [ outcome: CallbackOutcome ],
            "autoglmd.job.callback.attempt";
        /// Time from the beginning of an attempt to its result.
        durations: Histogram(telemetry_limits::REQUEST_DURATION_BUCKETS_MICROS) =
            "job_callback_seconds", "autoglmd.job.callback.duration";
    }
}

/// How an attempt to deliver a callback has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallbackOutcome {
    Delivered,
    /// It is sent again, unless that was the last attempt.
    Failed,
    /// It is not sent again.
    Refused,
    /// By the end of the daemon.
    CutOff,
}

impl CallbackOutcome {
    const ALL: [CallbackOutcome; 4] = [
        CallbackOutcome::Delivered,
        CallbackOutcome::Failed,
        CallbackOutcome::Refused,
        CallbackOutcome::CutOff,
    ];

    const fn as_str(self) -> &'static str {
        match self {
            CallbackOutcome::Delivered => "delivered",
            CallbackOutcome::Failed => "failed",
            CallbackOutcome::Refused => "refused",
            CallbackOutcome::CutOff => "cut_off",
        }
    }

    pub const fn of(outcome: &jobs::Outcome) -> CallbackOutcome {
        match outcome {
            jobs::Outcome::Delivered => CallbackOutcome::Delivered,
            jobs::Outcome::Failed { .. } => CallbackOutcome::Failed,
            jobs::Outcome::Refused { .. } => CallbackOutcome::Refused,
            jobs::Outcome::CutOff => CallbackOutcome::CutOff,
        }
    }
}

crate::label!(CallbackOutcome, as_str, CallbackOutcome::ALL, 0);
