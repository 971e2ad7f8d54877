//! The series of pushed metrics: how the pushes themselves fare.

crate::families! {
    /// Attempts, points, and what waits.
    pub struct PushSeries {
        /// Requests to the collector, by their outcome.
        attempts: Counter = "metrics_push_attempts" [ outcome: Attempt ], "autoglmd.push.attempt";
        /// Points of pushed metrics, by what became of them.
        points: Counter = "metrics_push_points" [ outcome: Points ], "autoglmd.push.point";
        /// Intervals whose numbers were put into the spool.
        intervals: Counter = "metrics_push_intervals", "autoglmd.push.interval";
        /// Size of the batches that wait for the collector.
        spool: Gauge = "metrics_push_spool_bytes", "autoglmd.push.spool";
        /// The wait before the next attempt, rounded up; 0 after a success.
        wait: Gauge = "metrics_push_wait_seconds", "autoglmd.push.wait";
    }
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    Taken,
    /// The collector took the batch without some of its points.
    Partial,
    /// It asked to be tried again: 429, 502, 503 or 504.
    Again,
    /// It refused the batch for good.
    Refused,
    /// There was no response.
    Failed,
}

impl Attempt {
    const ALL: [Attempt; 5] = [
        Attempt::Taken,
        Attempt::Partial,
        Attempt::Again,
        Attempt::Refused,
        Attempt::Failed,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Attempt::Taken => "taken",
            Attempt::Partial => "partial",
            Attempt::Again => "again",
            Attempt::Refused => "refused",
            Attempt::Failed => "failed",
        }
    }
}

/// The end of points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Points {
    Taken,
    /// By a partial success.
    Rejected,
    /// With the whole batch.
    Refused,
    /// The spool was full.
    Dropped,
}

impl Points {
    const ALL: [Points; 4] = [
        Points::Taken,
        Points::Rejected,
        Points::Refused,
        Points::Dropped,
    ];

    const fn as_str(self) -> &'static str {
        match self {
            Points::Taken => "taken",
            Points::Rejected => "rejected",
            Points::Refused => "refused",
            Points::Dropped => "dropped",
        }
    }
}

crate::label!(Attempt, as_str, Attempt::ALL, 0);
crate::label!(Points, as_str, Points::ALL, 0);
