//! The series in `/metrics` of the workers, whose own numbers are copied at each scrape, and of the
//! resolver of names, which counts as it goes.

use std::sync::atomic::Ordering;

use super::workers::Figures;
use crate::telemetry::metrics::Seconds;

crate::families! {
    /// The present load of the workers and their work so far.
    pub struct WorkerSeries {
        /// Tasks that wait for a worker.
        waiting: Gauge = "worker_tasks_waiting", "autoglmd.worker.task.waiting";
        /// Bytes of bodies and prompts that wait for a worker.
        waiting_bytes: Gauge = "worker_waiting_bytes", "autoglmd.worker.task.waiting_size";
        /// Tasks that workers have ended, by their outcome.
        tasks: Counter = "worker_tasks" [ outcome: Outcome ], "autoglmd.worker.task";
        /// CPU time of the workers' tasks.
        busy: Seconds = "worker_cpu_seconds", "autoglmd.worker.cpu.time";
    }
}

/// How a task ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It ran.
    Done,
    /// Its request had ended before.
    Unwanted,
    /// A bug: its request failed.
    Panicked,
    /// No place was left for its tenant.
    Refused,
}

impl Outcome {
    const ALL: [Outcome; 4] = [
        Outcome::Done,
        Outcome::Unwanted,
        Outcome::Panicked,
        Outcome::Refused,
    ];

    const fn as_str(self) -> &'static str {
        match self {
            Outcome::Done => "done",
            Outcome::Unwanted => "unwanted",
            Outcome::Panicked => "panicked",
            Outcome::Refused => "refused",
        }
    }
}

crate::label!(Outcome, as_str, Outcome::ALL, 0);

crate::families! {
    /// The names that the daemon looks up for its own requests.
    pub struct ResolverSeries {
        /// Names that wait for a thread of the resolver.
        waiting: Gauge = "resolver_names_waiting", "autoglmd.resolver.name.waiting";
        /// Threads of the resolver that look up a name.
        busy: Gauge = "resolver_threads_busy", "autoglmd.resolver.thread.busy";
        /// Look-ups of names, by their outcome.
        look_ups: Counter = "resolver_look_ups" [ outcome: LookUpOutcome ],
            "autoglmd.resolver.look_up";
    }
}

/// How a look-up ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LookUpOutcome {
    Found,
    /// The name does not exist, or has no address.
    NotFound,
    /// No name server responded in time, or one of them has a fault of its own.
    NoResponse,
    /// The system could not ask.
    Failed,
    /// Nothing waited for it any more before it began.
    Withdrawn,
    /// No place was left for its tenant.
    Refused,
}

impl LookUpOutcome {
    pub(super) const ALL: [LookUpOutcome; 6] = [
        LookUpOutcome::Found,
        LookUpOutcome::NotFound,
        LookUpOutcome::NoResponse,
        LookUpOutcome::Failed,
        LookUpOutcome::Withdrawn,
        LookUpOutcome::Refused,
    ];

    const fn as_str(self) -> &'static str {
        match self {
            LookUpOutcome::Found => "found",
            LookUpOutcome::NotFound => "not_found",
            LookUpOutcome::NoResponse => "no_response",
            LookUpOutcome::Failed => "failed",
            LookUpOutcome::Withdrawn => "withdrawn",
            LookUpOutcome::Refused => "refused",
        }
    }
}

crate::label!(LookUpOutcome, as_str, LookUpOutcome::ALL, 0);

impl WorkerSeries {
    /// Copies the workers' numbers, before the registry is encoded.
    pub fn update(&self, figures: &Figures) {
        self.waiting.set(figures.waiting as i64);
        self.waiting_bytes.set(figures.waiting_bytes as i64);
        for (outcome, total) in [
            (Outcome::Done, figures.done),
            (Outcome::Unwanted, figures.unwanted),
            (Outcome::Panicked, figures.panicked),
            (Outcome::Refused, figures.refused),
        ] {
            // Of two scrapes at the same time the later value stays: a counter never goes back.
            let counter = self.tasks.get(outcome).inner();
            counter.fetch_max(total, Ordering::Relaxed);
        }
        raise(&self.busy, figures.busy.as_secs_f64());
    }
}

fn raise(seconds: &Seconds, total: f64) {
    let bits = seconds.inner();
    // The bits of positive numbers are in the numbers' own order.
    bits.fetch_max(total.to_bits(), Ordering::Relaxed);
}
