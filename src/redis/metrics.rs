//! The series of Redis in `/metrics`.

crate::families! {
    /// Requests to Redis, and its state.
    pub struct RedisSeries {
        /// Whether a server of Redis is connected: 1, or 0.
        up: Gauge = "redis_up", "autoglmd.redis.up";
        /// Requests to Redis.
        requests: Counter = "redis_requests" [ outcome: Outcome ], "autoglmd.redis.request";
        /// Pipelines sent to Redis: requests that waited together went in one.
        batches: Counter = "redis_batches", "autoglmd.redis.batch";
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Served,
    /// Its server was lost, or refused it.
    Failed,
    /// Its time was up before it was sent.
    Late,
    /// The queue was full, or no server was connected.
    Refused,
}

impl Outcome {
    const ALL: [Outcome; 4] = [
        Outcome::Served,
        Outcome::Failed,
        Outcome::Late,
        Outcome::Refused,
    ];

    const fn as_str(self) -> &'static str {
        match self {
            Outcome::Served => "served",
            Outcome::Failed => "failed",
            Outcome::Late => "late",
            Outcome::Refused => "refused",
        }
    }
}

crate::label!(Outcome, as_str, Outcome::ALL, 0);
