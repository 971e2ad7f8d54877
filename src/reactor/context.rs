//! What a connection is lent while it is at work, and what its protocol says in return.
//!
//! Owns nothing: these are the words that [`super::connection`], [`super::transport`] and the
//! protocols have in common, so that none of them has to know another one.

use std::sync::Arc;
use std::time::Duration;

use crate::config::Config;
use crate::core::output::Marks;
use crate::core::pool::BufferPool;
use crate::core::{Key, Moment};
use crate::error::{ApiError, ErrorCode};
use crate::http::http1::Bounds;
use crate::service::Service;
use crate::telemetry::metrics::Metrics;
use crate::tls::Acceptor;

/// What a connection's protocol may use while it is at work: its reactor's tools.
pub struct Context<'a> {
    pub now: Moment,
    pub key: Key,
    pub reactor: u16,
    pub service: &'a mut Service,
    pub pool: &'a mut BufferPool,
    pub config: &'a Config,
    pub bounds: &'a Bounds,
    pub marks: Marks,
    /// The `Date` field's value (RFC 9110, section 6.6.1).
    pub date: &'a [u8; 29],
    /// Every answer is the last one of its connection.
    pub draining: bool,
    /// What TLS sessions are made from; none where there is no certificate.
    pub tls: Option<&'a Arc<Acceptor>>,
    /// Steps of handshakes that are left in this turn.
    pub handshake_steps: &'a mut u32,
    /// Until when no more is said of what proxies do wrong.
    pub proxy_warned_until: &'a mut Moment,
    pub metrics: &'a Metrics,
}

/// What a connection waits for; which of its deadlines runs depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// The first byte of the next request.
    Request,
    /// The rest of a head.
    Head,
    /// The rest of a body.
    Body,
    /// The engine, and us at `until`.
    Answer { until: Moment },
}

/// What has become of the bytes that were handed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// Up to here they are used up.
    pub consumed: usize,
    /// From here on they are used up too, being decoded: `consumed..keep` is what remains.
    pub keep: usize,
    /// A valid key has come, or a job runs.
    pub is_known: bool,
}

/// The error for a part of a request that was not complete in time.
pub fn late(part: &str, limit: Duration) -> ApiError {
    let limit = limit.as_secs_f32();
    let message = format!("the request's {part} was not complete within {limit} s");
    ApiError::new(ErrorCode::RequestTimeout, message)
}
