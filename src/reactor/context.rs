//! What a reactor lends a connection, what a connection lends its protocol, and what the protocol
//! reports back.
//!
//! Owns nothing but references: these are the types that [`super::connection`],
//! [`super::transport`] and the protocols have in common, so that none of them has to import
//! another one. Everything here lives for one call; nothing may be kept.

use std::sync::Arc;
use std::time::Duration;

use crate::config::Config;
use crate::core::output::{Marks, OutputQueue};
use crate::core::pool::BufferPool;
use crate::core::{Key, Moment};
use crate::error::{ApiError, ErrorCode};
use crate::http::http1::Bounds;
use crate::service::{Peer, Service};
use crate::telemetry::metrics::Metrics;
use crate::tls::Acceptor;

/// What a connection lends its protocol for one call.
pub struct Lent<'a, 't> {
    pub peer: &'a Peer,
    pub output: &'a mut OutputQueue,
    pub turn: &'a mut Turn<'t>,
}

/// What a reactor lends a connection for its turn: the time, and everything that the connections of
/// the reactor share.
pub struct Turn<'t> {
    pub now: Moment,
    /// The connection's own key.
    pub key: Key,
    /// The reactor's index.
    pub reactor: u16,
    pub service: &'t mut Service,
    pub pool: &'t mut BufferPool,
    pub config: &'t Config,
    pub bounds: &'t Bounds,
    pub marks: Marks,
    /// The `Date` field's value (RFC 9110, section 6.6.1).
    pub date: &'t [u8; 29],
    /// The daemon stops: every response is the last one of its connection.
    pub draining: bool,
    /// What TLS sessions are made from; `None` without a certificate.
    pub tls: Option<&'t Arc<Acceptor>>,
    /// Handshake steps that are left in this turn of the loop.
    pub handshake_steps: &'t mut u32,
    /// Faults of proxies are not logged again before this moment.
    pub proxy_warned_until: &'t mut Moment,
    pub metrics: &'t Metrics,
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
