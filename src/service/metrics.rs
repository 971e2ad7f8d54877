//! The service's series in `/metrics`: requests, generations, errors.

use crate::core::buffered::Account;
use crate::error::ErrorCode;
use crate::limits::telemetry as telemetry_limits;
use crate::offload::CancelReason;

use super::router::Route;

crate::families! {
    /// Requests, generations, and their outcomes.
    pub struct ServiceSeries {
        /// Time from the first byte of a request to its first token.
        time_to_first_token: Histogram(telemetry_limits::TIME_TO_FIRST_TOKEN_BUCKETS_MICROS) =
            "time_to_first_token_seconds", "gen_ai.server.time_to_first_token", per model;
        /// Time from one generated token to the next, averaged over each response.
        time_per_output_token: Histogram(telemetry_limits::TIME_PER_OUTPUT_TOKEN_BUCKETS_MICROS) =
            "time_per_output_token_seconds", "gen_ai.server.time_per_output_token", per model;
        /// Responses sent.
        requests: Counter = "requests" { route: Route, status: u16 },
            "autoglmd.http.server.request";
        /// From a request's first byte to its response's last.
        durations: Histogram(telemetry_limits::REQUEST_DURATION_BUCKETS_MICROS) =
            "request_duration_seconds" { route: Route }, "http.server.request.duration";
        /// Error responses, by the catalogue's code.
        errors: Counter = "errors" [ code: ErrorCode ], "autoglmd.http.server.error";
        /// Memory held for incomplete requests and unread responses.
        buffered: Gauge = "buffered_bytes", "autoglmd.buffer.usage";
        /// The most of it that was held at once.
        buffered_most: Gauge = "buffered_most_bytes", "autoglmd.buffer.peak";
        /// The bound on it, `limits.max_buffered`.
        buffered_limit: Gauge = "buffered_limit_bytes", "autoglmd.buffer.limit";
        /// Jobs that were stopped.
        cancelled: Counter = "cancelled" [ reason: CancelReason ], "autoglmd.job.cancelled";
    }
}

impl ServiceSeries {
    /// Copies the account's numbers, before the registry is encoded.
    pub fn update(&self, buffered: &Account) {
        self.buffered.set(buffered.held() as i64);
        self.buffered_most.set(buffered.held_most() as i64);
        self.buffered_limit.set(buffered.bound() as i64);
    }
}

crate::label!(Route, label);
crate::label!(ErrorCode, as_str, *ErrorCode::ALL, 0);
// Discriminants count from 1, in the order of `ALL`.
crate::label!(CancelReason, as_str, CancelReason::ALL, 1);
