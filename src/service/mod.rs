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
//! Reading order: [`router`] (what there is), [`auth`] and [`rate_limit`] (who may, and how much),
//! [`body`] and [`validate`] (what is asked), [`generate`] and [`exchange`] (a job and its answer),
//! [`message`] (the same in Protobuf), [`info`], [`health`] and [`reflection`] (all other routes),
//! [`dialogue`] (answers of several messages), [`form`], [`page`] and [`headers`] (what answers
//! look like), [`ledger`] (what is counted and logged).
//!
//! Must never block, and never panic at what a client sent.
//!
//! Invariants:
//!  1. Every request gets exactly one answer: from `handle`, from `refuse`, or from the call that
//!     returns `Flow::Finished`.
//!  2. Nothing is done for a request that its route's row in [`router::ROUTES`] does not allow.

mod auth;
mod body;
mod call;
mod client_address;
mod coding;
mod dialogue;
mod exchange;
mod form;
mod generate;
mod headers;
mod health;
mod info;
mod json;
mod kept;
mod ledger;
mod message;
mod origin;
mod page;
pub mod rate_limit;
mod reflection;
pub mod router;
mod selection;
mod validate;

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::config::Config;
use crate::core::Moment;
use crate::engine::{Engine, ModelInfo};
use crate::error::{ApiError, ErrorCode};
use crate::grpc::frame;
use crate::http::negotiate::{AcceptEncoding, ContentType, MediaType, body_coding};
use crate::http::{Method, Reply, Request};
use crate::limits;
use crate::offload::{CancelReason, JobKey, Permit};
use crate::store::{KeyRecord, KeyRing};
use crate::telemetry::access::Generation;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::request_id::RequestIds;

use auth::Caller;
use call::{Call, Known};
use coding::Coder;
use form::Form;
use kept::Constants;
use ledger::{Ledger, Outcome};
use page::Page;
use rate_limit::{Account, Bucket, Limiter, Rate};
use router::{Access, BodyBound, Route, Row, Verbs};

pub use call::{Admitted, Intake, Peer, PeerAddress, Refusal};
pub use exchange::Exchange;

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
    ledger: Ledger,
    page: Page,
    constants: Constants,
    /// The last body that was inflated.
    inflated: Vec<u8>,
    /// The engine's model, once it is known: it never changes for this engine.
    model: Option<ModelInfo>,
    is_draining: bool,
}

impl Service {
    pub fn new(parts: Parts) -> Service {
        let ledger = Ledger::new(parts.metrics.clone(), parts.config.log.access);
        let coder = Coder::new(&parts.config, parts.metrics.clone());
        Service {
            parts,
            request_ids: RequestIds::new(),
            accounts: HashMap::new(),
            ledger,
            page: Page::new(coder),
            constants: Constants::default(),
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
        match self.check(&mut call, request, sender, &is_local, now) {
            Ok(permit) => Ok(Admitted {
                intake: match call.route() {
                    Route::Reflection if call.form.is_grpc() => Intake::Pieces,
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
        reply: &mut dyn Reply,
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
            Route::Metrics => self.show_metrics(call, now, reply),
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
        reply: &mut dyn Reply,
    ) -> Option<Box<Exchange>> {
        let Some(coding) = admitted.call.body_coding.take() else {
            return self.handle(admitted, request, body, key, now, reply);
        };
        let mut inflated = std::mem::take(&mut self.inflated);
        let config = &self.parts.config;
        let result = self.page.coder.inflate(coding, body, config, &mut inflated);
        let exchange = match result {
            Ok(()) => self.handle(admitted, request, &inflated, key, now, reply),
            Err(error) => {
                self.fail(&admitted.call, &error, None, now, reply);
                None
            }
        };
        inflated.clear();
        inflated.shrink_to(limits::PAGE_BYTES_KEPT);
        self.inflated = inflated;
        exchange
    }

    /// Answers a request that was refused, malformed or late.
    pub fn refuse(&mut self, refusal: Refusal, now: Moment, reply: &mut dyn Reply) {
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
        self.ledger.close(&admitted.call, outcome, None, now);
    }

    /// A new configuration is in force for requests from now on.
    pub fn apply(&mut self, config: Arc<Config>) {
        self.ledger.set_access_lines(config.log.access);
        self.page.coder.apply(&config);
        self.parts.config = config;
    }

    /// The keys have changed.
    pub fn set_keys(&mut self, keys: Arc<KeyRing>) {
        let known: HashSet<&str> = keys.records().map(|record| record.id.as_str()).collect();
        self.parts.limiter.retain(&known);
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
        let media = form::Media::of(request, row);
        let user_agent = match self.ledger.writes_access_lines() {
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
            form: Form::of(request, row, &media),
            media,
        }
    }

    /// Everything that a head can be refused for, in the order that tells strangers least.
    fn check(
        &mut self,
        call: &mut Call,
        request: &Request<'_>,
        peer: &Peer,
        is_local: &dyn Fn() -> bool,
        now: Moment,
    ) -> Result<Option<Permit>, ApiError> {
        if is_about_server(request) {
            return Ok(None);
        }
        let Some(row) = call.row else {
            return Err(match self.identify(request, peer, now) {
                // Whoever has no key may look for unknown paths at the strangers' rate only.
                Err(error) if error.code == ErrorCode::RateLimited => error,
                _ if call.form.is_grpc() => form::no_method(),
                _ => not_found(),
            });
        };
        if request.method == Method::Options {
            return Ok(None);
        }
        let is_loopback = peer.address.ip().is_some() && peer.address.is_local();
        if !self.parts.config.auth.enabled && row.access != Access::Public && is_loopback {
            origin::check(request)?;
        }
        if !self.is_open(row, is_local) {
            call.caller = self.identify(request, peer, now)?;
            self.take_request(call, peer, now)?;
            if let (Some(caller), Access::Scope(scope) | Access::PublicOnLoopback(scope)) =
                (&call.caller, row.access)
            {
                auth::require(&caller.record, scope)?;
            }
        }
        if row.access != Access::Public {
            call.accept_encoding = AcceptEncoding::of(request);
        }
        check_method(row, request.method)?;
        check_media_types(row, call, request)?;
        // gRPC compresses its messages, and by its own rules.
        if row.verbs != Verbs::Rpc && !self.page.coder.can_please(call.accept_encoding) {
            return Err(coding::no_coding());
        }
        if row.verbs == Verbs::Post {
            call.body_coding = body_coding(request).map_err(coding::unsupported_coding)?;
        }
        match row.route {
            Route::Generate | Route::RpcGenerate | Route::RpcGenerateStream => {
                self.take_place(call)
            }
            _ => Ok(None),
        }
    }

    /// Whose request it is: the peer's or, where that is a trusted proxy, its client's.
    fn sender<'p>(&self, request: &Request<'_>, peer: &'p Peer) -> Cow<'p, Peer> {
        let server = &self.parts.config.server;
        if server.trusted_proxies.is_empty() {
            return Cow::Borrowed(peer);
        }
        let (proxies, field) = (&server.trusted_proxies, server.forwarded_header);
        let address = client_address::of(request, peer.address, proxies, field);
        match address == peer.address {
            true => Cow::Borrowed(peer),
            false => Cow::Owned(Peer {
                address,
                client: peer.client.clone(),
            }),
        }
    }

    /// Whether a route needs no key for a client that is on this machine, or is not.
    fn is_open(&self, row: &Row, is_local: &dyn Fn() -> bool) -> bool {
        match row.access {
            Access::Public => true,
            Access::PublicOnLoopback(_) => {
                self.parts.config.metrics.public_on_loopback && is_local()
            }
            Access::Scope(_) | Access::AnyKey => false,
        }
    }

    /// Who sends this; `None` where keys are switched off.
    ///
    /// The strangers' rate is charged for failed attempts alone, after they failed: a valid key is
    /// never refused for what its neighbours behind the same address do. A key is 256 random bits,
    /// so nobody comes closer to one by trying, and the look-up costs less than a refusal.
    fn identify(
        &mut self,
        request: &Request<'_>,
        peer: &Peer,
        now: Moment,
    ) -> Result<Option<Caller>, ApiError> {
        if !self.parts.config.auth.enabled {
            return Ok(None);
        }
        let keys = &self.parts.keys;
        let (client, known) = (peer.client.as_deref(), &self.parts.config.tls.client_keys);
        match auth::authenticate(request, client, known, keys, self.parts.wall_clock) {
            Ok(record) => {
                let record = Arc::clone(record);
                let account = self.account(&record.id);
                Ok(Some(Caller { record, account }))
            }
            Err(error) => {
                let per_minute = self.parts.config.rate_limit.unauthenticated_per_minute;
                self.take_from_address(peer, per_minute, now)?;
                Err(error)
            }
        }
    }

    fn account(&mut self, key_id: &str) -> Arc<Account> {
        if let Some(account) = self.accounts.get(key_id) {
            return Arc::clone(account);
        }
        let account = self.parts.limiter.account(key_id);
        self.accounts
            .insert(key_id.to_owned(), Arc::clone(&account));
        account
    }

    /// Takes one request out of the caller's bucket; without keys, out of the address's.
    fn take_request(&self, call: &mut Call, peer: &Peer, now: Moment) -> Result<(), ApiError> {
        let limits = &self.parts.config.rate_limit;
        let Some(caller) = &call.caller else {
            return self.take_from_address(peer, limits.requests_per_minute, now);
        };
        let own = caller.record.requests_per_minute;
        let rate = Rate::new(own.unwrap_or(limits.requests_per_minute), limits.burst);
        if !limits.enabled || !rate.is_bounded() {
            return Ok(());
        }
        match caller.account.requests.take(rate, 1, now) {
            Ok(level) => {
                call.requests = Some(level);
                Ok(())
            }
            Err(exceeded) => {
                call.requests = Some(exceeded.level);
                Err(rate_limited("this key", rate, exceeded.retry_after))
            }
        }
    }

    /// A peer on a Unix socket has no address: who may connect there is the file system's business.
    fn take_from_address(&self, peer: &Peer, per_minute: u32, now: Moment) -> Result<(), ApiError> {
        let limits = &self.parts.config.rate_limit;
        let rate = Rate::new(per_minute, limits.burst);
        let Some(bucket) = self.address_bucket(peer.address.ip()) else {
            return Ok(());
        };
        if !limits.enabled || !rate.is_bounded() {
            return Ok(());
        }
        match bucket.take(rate, 1, now) {
            Ok(_) => Ok(()),
            Err(exceeded) => Err(rate_limited("this address", rate, exceeded.retry_after)),
        }
    }

    fn address_bucket(&self, address: Option<IpAddr>) -> Option<&Bucket> {
        Some(self.parts.limiter.address(address?))
    }

    /// Takes one of the places that a key has for requests at once.
    fn take_place(&self, call: &Call) -> Result<Option<Permit>, ApiError> {
        let limits = &self.parts.config.rate_limit;
        let Some(caller) = call.caller.as_ref().filter(|_| limits.enabled) else {
            return Ok(None);
        };
        let bound = caller.record.concurrency.unwrap_or(limits.concurrency);
        match Permit::try_take(&caller.account.running, bound) {
            Some(permit) => Ok(Some(permit)),
            None => {
                let message =
                    format!("this key has {bound} requests running already, as many as it may");
                Err(ApiError::new(ErrorCode::TooManyConcurrent, message)
                    .with_retry_after_ms(limits::BUSY_RETRY_AFTER_MS))
            }
        }
    }

    /// How many tokens a minute a key may spend.
    fn token_rate(&self, record: &KeyRecord) -> Rate {
        let limits = &self.parts.config.rate_limit;
        let per_minute = match limits.enabled {
            true => record.tokens_per_minute.unwrap_or(limits.tokens_per_minute),
            false => 0,
        };
        Rate::new(per_minute, per_minute)
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
        reply: &mut dyn Reply,
    ) {
        // Over gRPC the answer's own status is always 200; what is counted and logged is what the
        // same error has elsewhere.
        let (status, code) = (error.code.status(), error.code);
        let bytes = form::send_error(&mut self.page, call, error, reply);
        let outcome = Outcome::Failed {
            status,
            bytes,
            code,
        };
        self.ledger.close(call, outcome, generation, now);
    }
}

fn check_method(row: &Row, method: Method) -> Result<(), ApiError> {
    if row.verbs.include(method) {
        return Ok(());
    }
    if method == Method::Other {
        let message = "the request's method is not implemented";
        return Err(ApiError::new(ErrorCode::NotImplemented, message));
    }
    let (path, allow, method) = (row.path, row.verbs.allow(), method.as_str());
    let message = format!("{path} takes {allow}, not {method}");
    Err(ApiError::new(ErrorCode::MethodNotAllowed, message))
}

fn check_media_types(row: &Row, call: &mut Call, request: &Request<'_>) -> Result<(), ApiError> {
    match row.verbs {
        Verbs::Read => return check_no_body(request),
        Verbs::Rpc => return form::check_rpc(call, request),
        Verbs::Post => {}
    }
    let unsupported = |message| Err(ApiError::new(ErrorCode::UnsupportedMediaType, message));
    match call.media.sent {
        ContentType::Absent | ContentType::Known(MediaType::Json | MediaType::Protobuf) => {}
        ContentType::Known(_) | ContentType::Unsupported => {
            return unsupported(
                "the body must be JSON in UTF-8, or application/x-protobuf; with curl, add \
                 -H 'content-type: application/json'",
            );
        }
    }
    if call.media.accepted.is_none() {
        let message = "answers are application/json, text/event-stream or \
                       application/x-protobuf; `Accept` takes none of them";
        return Err(ApiError::new(ErrorCode::NotAcceptable, message));
    }
    Ok(())
}

/// A body where none belongs is a misunderstanding, and is refused rather than skipped. One that
/// comes in chunks may turn out to be empty, which is no content (RFC 9112, section 6.3): the limit
/// of 0 bytes refuses the others.
fn check_no_body(request: &Request<'_>) -> Result<(), ApiError> {
    let length = request.header("content-length").map_or("0", str::trim);
    if length.bytes().all(|digit| digit == b'0') {
        return Ok(());
    }
    let message = "this request takes no body";
    Err(ApiError::new(ErrorCode::InvalidRequest, message))
}

/// `OPTIONS *` is about the server as a whole (RFC 9110, section 9.3.7).
fn is_about_server(request: &Request<'_>) -> bool {
    request.method == Method::Options && request.path == "*"
}

fn not_found() -> ApiError {
    let message = "nothing is served at this path; `GET /` lists what is";
    ApiError::new(ErrorCode::NotFound, message)
}

fn rate_limited(who: &str, rate: Rate, retry_after: Duration) -> ApiError {
    let message = format!(
        "{who} may make {} requests a minute, {} at once; wait for `Retry-After`",
        rate.per_minute, rate.burst
    );
    ApiError::new(ErrorCode::RateLimited, message).with_retry_after_ms(milliseconds_up(retry_after))
}

/// Whole milliseconds, rounded up: whoever waits so long has waited long enough.
fn milliseconds_up(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

/// The beginning of a client's text, as much as an access line shows.
fn bounded(text: &str) -> &str {
    body::beginning(text, limits::ACCESS_TEXT_BYTES_MAX)
}

#[cfg(test)]
mod tests;
