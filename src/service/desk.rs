//! The tools that every route borrows to build a response and record it.
//!
//! Owns one of each tool per reactor. A route is a function on `&mut Desk` that ends in [`fail`],
//! [`send`] or another call that closes the request in the log.
//!
//! [`fail`]: Desk::fail
//! [`send`]: Desk::send

use std::borrow::Cow;
use std::sync::Arc;

use crate::cache::metrics::CacheSeries;
use crate::config::Config;
use crate::core::buffered::Account;
use crate::core::id::{Id, Kind};
use crate::core::{Moment, UnixMillis};
use crate::engine::{Engine, ModelInfo};
use crate::error::ApiError;
use crate::http::negotiate::AcceptEncoding;
use crate::http::{Request, ResponseSink};
use crate::keys::KeyRing;
use crate::limits::telemetry as telemetry_limits;
use crate::offload::Workers;
use crate::runner;
use crate::store::Requests;
use crate::telemetry::access::Figures;
use crate::telemetry::id::Ids;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::random::SplitMix64;
use crate::telemetry::request_id::RequestIds;

use super::call::{Call, Peer};
use super::completion::Reply;
use super::copied::Copied;
use super::dialect::Dialect;
use super::excerpt::beginning;
use super::inflation::Inflater;
use super::purge::Purger;
use super::rate_limit::Limiter;
use super::representation::{Media, Representation};
use super::request_log::{Outcome, RequestLog};
use super::response::buffer::ResponseBuffer;
use super::response::cached::{Lookup, Responses};
use super::response::coding::Coder;
use super::router::{self, Surface};

/// The parts of a service. Each reactor has a clone; shared parts are behind `Arc`s.
#[derive(Clone)]
pub struct Parts {
    pub config: Arc<Config>,
    pub keys: Arc<KeyRing>,
    pub engine: Arc<dyn Engine>,
    /// One for the whole daemon: a key's rate is the same on every reactor.
    pub limiter: Arc<Limiter>,
    /// One for the whole daemon: the memory that slow peers make it hold.
    pub buffered: Account,
    /// One for the whole daemon: finished responses.
    pub responses: Arc<Responses>,
    /// One for the whole daemon: purges of all levels of the cache.
    pub purger: Arc<Purger>,
    /// One for the whole daemon, for work that takes longer than a reactor may.
    pub workers: Arc<Workers>,
    /// The workers' way back to this and the other reactors.
    pub replies: Arc<dyn Reply>,
    /// One for the whole daemon: the tasks for the store's thread.
    pub requests: Arc<Requests>,
    /// The runner of durable jobs, as requests see it.
    pub jobs: runner::Access,
    pub metrics: Metrics,
    /// Read for keys that expire, ids and records; [`UnixMillis::now`] outside of tests.
    pub wall_clock: fn() -> UnixMillis,
    /// Seeds this reactor's ids; from the kernel outside of tests.
    pub seed: u64,
}

/// Whether more of a response will come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Flow {
    Open,
    /// The response is complete; the exchange can be dropped.
    Finished,
}

/// The destination of a response, and the time of this call.
pub struct Wire<'a> {
    pub now: Moment,
    pub sink: &'a mut dyn ResponseSink,
}

/// One reactor's tools: see the file's head.
pub struct Desk {
    pub parts: Parts,
    pub request_ids: RequestIds,
    /// Of generations and jobs.
    pub ids: Ids,
    pub log: RequestLog,
    pub copied: Copied,
    pub buffer: ResponseBuffer,
    pub inflater: Inflater,
    pub cache_series: Arc<CacheSeries>,
    pub lookup: Lookup,
    /// The engine's model, once it is known: it never changes for this engine.
    pub model: Option<ModelInfo>,
    pub is_draining: bool,
    /// The table of dialects. A function, because the APIs know the desk and not the reverse.
    dialects: fn(Surface) -> &'static dyn Dialect,
}

impl Desk {
    pub fn new(parts: Parts, dialects: fn(Surface) -> &'static dyn Dialect) -> Desk {
        let log = RequestLog::new(parts.metrics.series(), parts.config.log.access);
        let compression = parts.metrics.series();
        let inflater = Inflater(Arc::clone(&compression));
        let coder = Coder::new(&parts.config, compression, parts.buffered.clone());
        let copied = Copied::new(&parts.metrics);
        let mut seeds = SplitMix64::new(parts.seed, 0);
        let mut random = || SplitMix64::new(seeds.draw(), seeds.draw());
        let now = ((parts.wall_clock)(), Moment::now());
        let (request_ids, ids) = (RequestIds::new(random(), now), Ids::new(random()));
        let cache_series = parts.metrics.series();
        let lookup = Lookup::new(&cache_series);
        Desk {
            parts,
            request_ids,
            ids,
            log,
            copied,
            buffer: ResponseBuffer::new(coder),
            inflater,
            cache_series,
            lookup,
            model: None,
            is_draining: false,
            dialects,
        }
    }

    /// Applies a new configuration.
    pub fn apply(&mut self, config: Arc<Config>) {
        self.log.set_access_lines(config.log.access);
        self.buffer.coder.apply(&config);
        self.parts.config = config;
        self.lookup.key = None;
    }

    /// Begins the record of a request. Its end is [`RequestLog::close`].
    pub fn begin_call(&mut self, request: &Request<'_>, sender: &Peer, now: Moment) -> Call {
        let client_id = request.header("x-request-id").map(str::as_bytes);
        let traceparent = request.header("traceparent").map(str::as_bytes);
        let row = router::find(request.path);
        let media = Media::of(request, row);
        let user_agent = if self.log.writes_access_lines() {
            request.header("user-agent")
        } else {
            None
        };
        Call {
            request_id: self.request_ids.accept_or_make(client_id, now),
            method: request.method,
            path: match row {
                Some(row) if row.path == request.path => Cow::Borrowed(row.path),
                _ => Cow::Owned(logged(request.path).to_owned()),
            },
            row,
            started: now,
            peer: sender.address,
            user_agent: user_agent.map(|agent| logged(agent).into()),
            trace: traceparent.map(|parent| self.request_ids.continue_trace(Some(parent))),
            // Nothing is compressed without a key: an encoder costs more than all the rest.
            accept_encoding: AcceptEncoding::NONE,
            body_coding: None,
            caller: None,
            requests: None,
            tokens: None,
            representation: Representation::of(request, row, &media),
            reuse: None,
            media,
            idempotency_key: None,
        }
    }

    pub fn dialect(&self, surface: Surface) -> &'static dyn Dialect {
        (self.dialects)(surface)
    }

    pub fn model(&mut self) -> Option<&ModelInfo> {
        if self.model.is_none() {
            // A name of its own, so that reactors do not share the counter of its users.
            self.model = self.parts.engine.model().map(|model| ModelInfo {
                id: Arc::from(&*model.id),
                ..model
            });
        }
        self.model.as_ref()
    }

    /// Returns an id for a new generation or job.
    pub fn new_id<K: Kind>(&mut self) -> Id<K> {
        self.ids.make((self.parts.wall_clock)())
    }

    /// Returns the key of digests of requests; `None`: no response is looked up.
    pub fn digest_key(&mut self) -> Option<[u8; 32]> {
        if self.lookup.key.is_none() && self.parts.config.cache.enabled {
            let config = Arc::clone(&self.parts.config);
            let responses = Arc::clone(&self.parts.responses);
            let model = self.model()?;
            self.lookup.key = Some(responses.digest_key(&config, model));
        }
        self.lookup.key
    }

    /// Responds with an error, and closes the request.
    pub fn fail(&mut self, call: &Call, error: &ApiError, wire: &mut Wire<'_>) {
        self.fail_generation(call, error, None, wire);
    }

    /// Responds with an error after the engine has worked for the request.
    pub fn fail_generation(
        &mut self,
        call: &Call,
        error: &ApiError,
        figures: Option<Figures>,
        wire: &mut Wire<'_>,
    ) {
        let dialect = self.dialect(call.surface());
        let bytes = dialect.send_error(&mut self.buffer, call, error, wire.sink);
        // Over gRPC the response's own status is always 200. Log and metrics have the status of the
        // same error over REST.
        let outcome = Outcome::Failed {
            status: error.code.status(),
            bytes,
            code: error.code,
        };
        self.log.close(call, outcome, figures, wire.now);
    }

    /// Sends the buffer's fields and body, and closes the request.
    pub fn send(
        &mut self,
        call: &Call,
        status: u16,
        content_type: Option<&'static str>,
        wire: &mut Wire<'_>,
    ) {
        let bytes = self.buffer.send(status, content_type, wire.sink);
        let outcome = Outcome::Completed { status, bytes };
        self.log.close(call, outcome, None, wire.now);
    }
}

/// Returns the beginning of a client's text, as much as an access line shows.
fn logged(text: &str) -> &str {
    beginning(text, telemetry_limits::ACCESS_TEXT_BYTES_MAX)
}
