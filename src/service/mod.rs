//! What a request means, whatever protocol brought it.
//!
//! The reactor owns one [`Service`] for each of its threads and calls it in this order:
//!
//! ```text
//! head complete ── admit ──> Ok(Admitted)            read the body, at most body_limit
//!                    │            │
//!                    │ Err        ├── handle ──> None: the answer is in `reply`
//!                    v            │      │
//!                 refuse <── admitted.refuse │ Some(Exchange): more is to come
//!                                        v
//!            handle_event, handle_deadline, handle_room   until Flow::Finished
//!                                        │
//!                                     abandon             if the client leaves before that
//! ```
//!
//! A request whose [`Intake`] is `Pieces` goes another way: `open` gives its exchange at once, and
//! `handle_data` takes each piece of its body until it returns `Flow::Finished`.
//!
//! Reading order: [`admission`] (which requests may go on, by their heads), [`call`] (what is known
//! of each), [`api`] (how each API is read, and the routes beside generation), [`generation`] (a
//! job and its response), [`representation`], [`render`] and [`response`] (what responses are made
//! of), [`request_log`] (what is counted and logged).
//!
//! Must never block, and never panic at what a client sent.
//!
//! Invariants:
//!  1. Every request gets exactly one answer: from `handle`, from `refuse`, or from the call that
//!     returns `Flow::Finished`.
//!  2. Nothing is done for a request that its route's row in [`router::ROUTES`] does not allow.

mod admission;
mod api;
mod call;
mod generation;
mod render;
mod representation;
mod request_log;
mod response;

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::config::Config;
use crate::core::Moment;
use crate::engine::{Engine, ModelInfo};
use crate::error::ApiError;
use crate::grpc::frame;
use crate::http::negotiate::AcceptEncoding;
use crate::http::{Method, Request, ResponseSink};
use crate::keys::KeyRing;
use crate::limits::service as limits;
use crate::limits::telemetry as telemetry_limits;
use crate::offload::{CancelReason, JobKey};
use crate::telemetry::access::Generation;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::request_id::RequestIds;

use admission::check::not_found;
use admission::client_address;
use admission::rate_limit::Account;
use admission::router::{self, BodyBound, Route, Verbs};
use api::native::body;
use call::{Call, Known};
use representation::{Media, Representation};
use request_log::{Outcome, RequestLog};
use response::buffer::ResponseBuffer;
use response::coding::Coder;
use response::static_body::StaticBodies;

pub use admission::rate_limit::Limiter;
pub use call::{Admitted, Intake, Peer, PeerAddress, Refusal};
pub use generation::running::Exchange;

/// What a service is made of. Cloned for each reactor; what is shared is behind `Arc`s.
#[derive(Clone)]
pub struct Parts {
    pub config: Arc<Config>,
    pub keys: Arc<KeyRing>,
    pub engine: Arc<dyn Engine>,
    /// One for the whole daemon: a key's rate is the same whichever reactor it meets.
    pub limiter: Arc<Limiter>,
    pub metrics: Metrics,
    /// Seconds since 1970, asked for keys that expire. [`unix_seconds`] outside of tests.
    pub wall_clock: fn() -> u64,
}

/// The real wall clock, for [`Parts::wall_clock`].
pub fn unix_seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// Whether more of an answer will come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Flow {
    Open,
    /// The answer is complete in `reply`; the exchange can be dropped.
    Finished,
}

/// One reactor's view of all routes.
pub struct Service {
    parts: Parts,
    request_ids: RequestIds,
    /// The accounts of the keys that this reactor has met, so that the limiter's lock is taken once
    /// for each.
    accounts: HashMap<String, Arc<Account>>,
    log: RequestLog,
    buffer: ResponseBuffer,
    static_bodies: StaticBodies,
    /// The last body that was inflated.
    inflated: Vec<u8>,
    /// The engine's model, once it is known: it never changes for this engine.
    model: Option<ModelInfo>,
    is_draining: bool,
}

impl Service {
    pub fn new(parts: Parts) -> Service {
        let log = RequestLog::new(parts.metrics.clone(), parts.config.log.access);
        let coder = Coder::new(&parts.config, parts.metrics.clone());
        Service {
            parts,
            request_ids: RequestIds::new(),
            accounts: HashMap::new(),
            log,
            buffer: ResponseBuffer::new(coder),
            static_bodies: StaticBodies::default(),
            inflated: Vec::new(),
            model: None,
            is_draining: false,
        }
    }

    /// From the head alone: route, credentials, rate limit, media type, body limit. Called once a
    /// head is complete.
    pub fn admit(
        &mut self,
        request: &Request<'_>,
        peer: &Peer,
        now: Moment,
    ) -> Result<Admitted, Refusal> {
        let sender = &*self.sender(request, peer);
        let mut call = self.begin_call(request, sender, now);
        // What a proxy of this machine brings has come from elsewhere. Few routes ask.
        let is_local = || {
            sender.address.is_local()
                && !(client_address::is_forwarded(request) && sender.address == peer.address)
        };
        match self.check(&mut call, request, sender, peer.address, &is_local, now) {
            Ok(permit) => Ok(Admitted {
                intake: match call.route() {
                    Route::Reflection if call.representation.is_grpc() => Intake::Pieces,
                    _ => Intake::Whole,
                },
                body_limit: self.body_limit(&call),
                call,
                permit,
            }),
            Err(error) => Err(Refusal::of(call, error)),
        }
    }

    /// The whole request is there. `None`: answered completely in `reply`. `Some`: a job runs, and
    /// its events, carrying `key`, will follow.
    pub fn handle(
        &mut self,
        admitted: Admitted,
        request: &Request<'_>,
        body: &[u8],
        key: JobKey,
        now: Moment,
        reply: &mut dyn ResponseSink,
    ) -> Option<Box<Exchange>> {
        if admitted.call.body_coding.is_some() {
            return self.handle_coded(admitted, request, body, key, now, reply);
        }
        let call = &admitted.call;
        if call.method == Method::Options {
            self.options(call, now, reply);
            return None;
        }
        match call.route() {
            Route::Generate | Route::RpcGenerate | Route::RpcGenerateStream => {
                return self.generate(admitted, request, body, key, now, reply);
            }
            Route::HealthCheck => self.check_health(call, body, now, reply),
            Route::HealthWatch => return self.watch_health(admitted.call, body, now, reply),
            Route::Reflection => {
                let mut exchange = self.open(admitted, now);
                let flow = self.handle_data(&mut exchange, body, true, now, reply);
                return (flow == Flow::Open).then_some(exchange);
            }
            Route::Live => self.live(call, now, reply),
            Route::Ready => self.ready(call, now, reply),
            Route::Metrics => self.show_metrics(call, request, now, reply),
            Route::Models => self.models(call, now, reply),
            Route::Languages => self.languages(call, now, reply),
            Route::Index => self.index(call, now, reply),
            // Neither is ever admitted; an answer is due all the same.
            Route::Unknown | Route::Unread => self.fail(call, &not_found(), None, now, reply),
        }
        None
    }

    /// The same for a body with a content coding, which comes off first. It is done here, where the
    /// body is whole, and `limits.max_body` bounds how long it takes: 10 ms for a MiB of text, and
    /// 280 ms for one that a holder of a key made to be slow (one core, release). No route that is
    /// open without a key takes a coded body.
    fn handle_coded(
        &mut self,
        mut admitted: Admitted,
        request: &Request<'_>,
        body: &[u8],
        key: JobKey,
        now: Moment,
        reply: &mut dyn ResponseSink,
    ) -> Option<Box<Exchange>> {
        let Some(coding) = admitted.call.body_coding.take() else {
            return self.handle(admitted, request, body, key, now, reply);
        };
        let mut inflated = std::mem::take(&mut self.inflated);
        let config = &self.parts.config;
        let result = self
            .buffer
            .coder
            .inflate(coding, body, config, &mut inflated);
        let exchange = match result {
            Ok(()) => self.handle(admitted, request, &inflated, key, now, reply),
            Err(error) => {
                self.fail(&admitted.call, &error, None, now, reply);
                None
            }
        };
        inflated.clear();
        inflated.shrink_to(limits::RESPONSE_BUFFER_KEPT_BYTES_MAX);
        self.inflated = inflated;
        exchange
    }

    /// Answers a request that was refused, malformed or late.
    pub fn refuse(&mut self, refusal: Refusal, now: Moment, reply: &mut dyn ResponseSink) {
        let (error, known) = refusal.into_parts();
        let call = match known {
            Known::Call(call) => *call,
            Known::Peer(peer) => Call::unread(self.request_ids.make(now), peer, now),
        };
        self.fail(&call, &error, None, now, reply);
    }

    /// The client left before its body was whole.
    pub fn abandon_admitted(&mut self, admitted: Admitted, reason: CancelReason, now: Moment) {
        let outcome = Outcome::Abandoned { bytes: 0, reason };
        self.log.close(&admitted.call, outcome, None, now);
    }

    /// A new configuration is in force for requests from now on.
    pub fn apply(&mut self, config: Arc<Config>) {
        self.log.set_access_lines(config.log.access);
        self.buffer.coder.apply(&config);
        self.parts.config = config;
    }

    /// The keys have changed. The limiter's accounts are [`Limiter::keep`]'s to drop: this reactor
    /// may be late, and others may serve keys that its ring does not have yet.
    pub fn set_keys(&mut self, keys: Arc<KeyRing>) {
        let known: HashSet<&str> = keys.records().map(|record| record.id.as_str()).collect();
        self.accounts.retain(|id, _| known.contains(id.as_str()));
        self.parts.keys = keys;
    }

    /// No new generation from now on; running ones end by themselves.
    pub fn set_draining(&mut self) {
        self.is_draining = true;
    }

    fn begin_call(&mut self, request: &Request<'_>, peer: &Peer, now: Moment) -> Call {
        let client_id = request.header("x-request-id").map(str::as_bytes);
        let traceparent = request.header("traceparent").map(str::as_bytes);
        let row = router::find(request.path);
        let media = Media::of(request, row);
        let user_agent = match self.log.writes_access_lines() {
            true => request.header("user-agent"),
            false => None,
        };
        Call {
            request_id: self.request_ids.accept_or_make(client_id, now),
            method: request.method,
            path: match row {
                Some(row) => Cow::Borrowed(row.path),
                None => Cow::Owned(bounded(request.path).to_owned()),
            },
            row,
            started: now,
            peer: peer.address,
            user_agent: user_agent.map(|agent| bounded(agent).into()),
            trace: traceparent.map(|parent| self.request_ids.continue_trace(Some(parent))),
            // A stranger is answered as it is: a fresh encoder takes longer than the rest.
            accept_encoding: AcceptEncoding::NONE,
            body_coding: None,
            caller: None,
            requests: None,
            tokens: None,
            representation: Representation::of(request, row, &media),
            media,
        }
    }

    /// Bytes of body that a request may have; a bound in messages leaves room for one's prefix.
    fn body_limit(&self, call: &Call) -> usize {
        let Some(row) = call.row.filter(|_| call.method == Method::Post) else {
            return 0;
        };
        let prefix = match row.verbs {
            Verbs::Rpc => frame::PREFIX_BYTES,
            Verbs::Read | Verbs::Post => 0,
        };
        match row.body {
            BodyBound::None => 0,
            BodyBound::Bytes(bytes) => bytes + prefix,
            BodyBound::MaxBody => self.parts.config.limits.max_body + prefix,
        }
    }

    fn model(&mut self) -> Option<&ModelInfo> {
        if self.model.is_none() {
            self.model = self.parts.engine.model();
        }
        self.model.as_ref()
    }

    /// Answers with an error, and closes the request.
    fn fail(
        &mut self,
        call: &Call,
        error: &ApiError,
        generation: Option<Generation>,
        now: Moment,
        reply: &mut dyn ResponseSink,
    ) {
        // Over gRPC the answer's own status is always 200; what is counted and logged is what the
        // same error has elsewhere.
        let (status, code) = (error.code.status(), error.code);
        let bytes = render::send_error(&mut self.buffer, call, error, reply);
        let outcome = Outcome::Failed {
            status,
            bytes,
            code,
        };
        self.log.close(call, outcome, generation, now);
    }
}

/// The beginning of a client's text, as much as an access line shows.
fn bounded(text: &str) -> &str {
    body::beginning(text, telemetry_limits::ACCESS_TEXT_BYTES_MAX)
}

#[cfg(test)]
mod tests;
