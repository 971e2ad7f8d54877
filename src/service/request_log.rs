//! Counts and logs every request, once, when it has ended.
//!
//! Owns this reactor's handles to the counters by route and status, found once and kept: the shared
//! registry is locked only when a pair of route and status is seen for the first time. Routes and
//! statuses come from closed sets, so the number of series is bounded whatever clients send.
//!
//! Invariant: each request that was admitted or refused is closed exactly once, by the last byte of
//! its response or by [`Outcome::Abandoned`].

use std::sync::Arc;

use crate::core::Moment;
use crate::error::ErrorCode;
use crate::offload::CancelReason;
use crate::telemetry::access::{Access, AccessLines, Figures};
use crate::telemetry::metrics::{Counter, Histogram};

use super::call::Call;
use super::metrics::ServiceSeries;
use crate::service::router::Route;

/// The status in the records of a response that its client did not wait for: nginx's number.
pub const STATUS_ABANDONED: u16 = 499;

/// How a request ended.
#[derive(Clone, Copy, Debug)]
pub enum Outcome {
    /// The response was sent in full.
    Completed { status: u16, bytes: u64 },
    /// The response was an error, or a stream that ended in one.
    Failed {
        status: u16,
        bytes: u64,
        code: ErrorCode,
    },
    /// Abandoned before its response was complete.
    Abandoned { bytes: u64, reason: CancelReason },
}

/// One reactor's counters.
#[derive(Debug)]
pub struct RequestLog {
    metrics: Arc<ServiceSeries>,
    routes: [RouteCounters; Route::COUNT],
    has_access_lines: bool,
    lines: AccessLines,
}

#[derive(Debug, Default)]
struct RouteCounters {
    /// The statuses seen so far: only a few, usually the most common first.
    requests: Vec<(u16, Counter)>,
    duration: Option<Histogram>,
}

impl RequestLog {
    pub fn new(metrics: Arc<ServiceSeries>, access_lines: bool) -> RequestLog {
        RequestLog {
            metrics,
            routes: Default::default(),
            has_access_lines: access_lines,
            lines: AccessLines::default(),
        }
    }

    pub fn metrics(&self) -> &ServiceSeries {
        &self.metrics
    }

    pub const fn writes_access_lines(&self) -> bool {
        self.has_access_lines
    }

    pub fn set_access_lines(&mut self, access_lines: bool) {
        self.has_access_lines = access_lines;
    }

    /// Records the end of a request.
    pub fn close(&mut self, call: &Call, outcome: Outcome, figures: Option<Figures>, now: Moment) {
        let (status, bytes, code) = match outcome {
            Outcome::Completed { status, bytes } => (status, bytes, None),
            Outcome::Failed {
                status,
                bytes,
                code,
            } => (status, bytes, Some(code)),
            Outcome::Abandoned { bytes, reason } => {
                self.metrics.cancelled.get(reason).inc();
                (STATUS_ABANDONED, bytes, None)
            }
        };
        let duration = now.since(call.started);
        self.count(call.route(), status, duration);
        if let Some(code) = code {
            self.metrics.errors.get(code).inc();
        }
        if !self.has_access_lines {
            return;
        }
        let trace_digits = call.trace.map(|trace| trace.trace_id_digits());
        let access = Access {
            request_id: call.request_id.as_str(),
            method: call.method.as_str(),
            path: &call.path,
            route: call.route().label(),
            status,
            bytes,
            duration,
            peer: call.peer.ip(),
            key_id: call.caller.as_ref().map(|caller| caller.record.id.as_str()),
            error: code.map(ErrorCode::as_str),
            user_agent: call.user_agent.as_deref(),
            // Hexadecimal digits are ASCII.
            trace_id: trace_digits
                .as_ref()
                .and_then(|digits| std::str::from_utf8(digits).ok()),
            figures,
        };
        self.lines.add(&access);
    }

    fn count(&mut self, route: Route, status: u16, duration: std::time::Duration) {
        let counters = &mut self.routes[route as usize];
        match counters.requests.iter().find(|(seen, _)| *seen == status) {
            Some((_, counter)) => {
                counter.inc();
            }
            None => {
                let counter = self.metrics.requests.get((route, status));
                counter.inc();
                counters.requests.push((status, counter));
            }
        }
        let metrics = &self.metrics;
        let histogram = counters
            .duration
            .get_or_insert_with(|| metrics.durations.get(route));
        histogram.observe(duration);
    }
}
