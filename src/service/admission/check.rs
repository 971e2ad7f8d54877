//! Checks by its head alone whether a request may go on: route, key, rate, method, media types.
//!
//! Owns the order of these checks. Must never look at a body.
//!
//! Invariants:
//!  1. A request of a route that is not open has shown a valid key before anything else about it is
//!     checked.
//!  2. Every request takes from a rate, that of its key or of its address, except for probes: a
//!     route that is open to all, used as intended, or `OPTIONS` of it. Refusing a probe costs as
//!     much as responding to it, and a load balancer whose probe is refused takes the daemon out of
//!     service. If the balancer forwards connections without the clients' addresses, any client
//!     could cause that.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::auth::{self, Caller};
use super::client_address;
use super::rate_limit::{Account, Bucket, Rate};
use super::router::{Access, Route, Row, Verbs};
use crate::core::Moment;
use crate::error::{ApiError, ErrorCode};
use crate::http::negotiate::{AcceptEncoding, ContentType, MediaType, body_coding};
use crate::http::{Method, Request};
use crate::keys::KeyRecord;
use crate::limits::service as limits;
use crate::offload::Permit;
use crate::service::call::{Call, Peer, PeerAddress};
use crate::service::response::coding;
use crate::service::{Service, render};

impl Service {
    /// Checks everything that a head can be refused for, in the order that reveals least to
    /// strangers.
    pub(in crate::service) fn check(
        &mut self,
        call: &mut Call,
        request: &Request<'_>,
        peer: &Peer,
        connected: PeerAddress,
        is_local: &dyn Fn() -> bool,
        now: Moment,
    ) -> Result<Option<Permit>, ApiError> {
        let Some(row) = call.row else {
            self.take_from_sender(call, request, peer, now)?;
            return match is_about_server(request) {
                true => Ok(None),
                false if call.representation.is_grpc() => Err(render::no_method()),
                false => Err(not_found()),
            };
        };
        if request.method == Method::Options {
            if row.access != Access::Public {
                self.take_from_sender(call, request, peer, now)?;
            }
            return Ok(None);
        }
        let mut is_open = self.is_open(row, is_local);
        let mut origin = self.check_origin(row, is_open, request, connected);
        if origin.is_err() && self.parts.config.auth.enabled && auth::sends_credentials(request) {
            // A page knows no key, so a request that carries one must prove it instead.
            (is_open, origin) = (false, Ok(()));
        }
        if !is_open {
            call.caller = self.identify(request, peer, now)?;
            self.take_request(call, peer, now)?;
            if let (Some(caller), Access::Scope(scope) | Access::PublicOnLoopback(scope)) =
                (&call.caller, row.access)
            {
                auth::require(&caller.record, scope)?;
            }
        }
        let checked = origin.and_then(|()| self.check_fields(row, call, request));
        if is_open && checked.is_err() {
            self.take_from_sender(call, request, peer, now)?;
        }
        checked?;
        match row.route {
            Route::Generate | Route::RpcGenerate | Route::RpcGenerateStream => {
                self.take_place(call)
            }
            _ => Ok(None),
        }
    }

    /// Checks the route's requirements on the method and on the fields about bodies.
    fn check_fields(
        &self,
        row: &Row,
        call: &mut Call,
        request: &Request<'_>,
    ) -> Result<(), ApiError> {
        if row.access != Access::Public {
            call.accept_encoding = AcceptEncoding::of(request);
        }
        check_method(row, request.method)?;
        check_media_types(row, call, request)?;
        // gRPC compresses its messages, and by its own rules.
        if row.verbs != Verbs::Rpc && !self.buffer.coder.can_please(call.accept_encoding) {
            return Err(coding::no_coding());
        }
        if row.verbs == Verbs::Post {
            call.body_coding = body_coding(request).map_err(coding::unsupported_coding)?;
        }
        Ok(())
    }

    /// Returns the request's sender: the peer or, if that is a trusted proxy, its client.
    pub(in crate::service) fn sender<'p>(
        &self,
        request: &Request<'_>,
        peer: &'p Peer,
    ) -> Cow<'p, Peer> {
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

    /// Returns whether a route needs no key for a client on this machine, or elsewhere.
    fn is_open(&self, row: &Row, is_local: &dyn Fn() -> bool) -> bool {
        match row.access {
            Access::Public => true,
            Access::PublicOnLoopback(_) => {
                self.parts.config.metrics.public_on_loopback && is_local()
            }
            Access::Scope(_) | Access::AnyKey => false,
        }
    }

    /// Returns the caller; `None` if keys are switched off.
    ///
    /// The strangers' rate is charged only for failed attempts, after they failed: a valid key is
    /// never refused for the requests of its neighbours behind the same address. A key is 256
    /// random bits, so trying is hopeless, and the look-up costs less than a refusal.
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

    /// Counts a request whose response is the same with and without a key: a valid key takes it
    /// from its own rate, all others from the rate of the address.
    fn take_from_sender(
        &mut self,
        call: &mut Call,
        request: &Request<'_>,
        peer: &Peer,
        now: Moment,
    ) -> Result<(), ApiError> {
        match self.identify(request, peer, now) {
            Ok(caller) => {
                call.caller = caller;
                self.take_request(call, peer, now)
            }
            Err(error) if error.code == ErrorCode::RateLimited => Err(error),
            // Without a valid key, which `identify` has charged to the address.
            Err(_) => Ok(()),
        }
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

    /// A peer on a Unix socket has no address: the file system decides who may connect there.
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

    /// Takes one of the places that a key has for simultaneous requests.
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
                    .with_retry_after(limits::BUSY_RETRY_AFTER))
            }
        }
    }

    /// Returns how many tokens per minute a key may use.
    pub(in crate::service) fn token_rate(&self, record: &KeyRecord) -> Rate {
        let limits = &self.parts.config.rate_limit;
        let per_minute = match limits.enabled {
            true => record.tokens_per_minute.unwrap_or(limits.tokens_per_minute),
            false => 0,
        };
        Rate::new(per_minute, per_minute)
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
        Verbs::Rpc => return render::check_rpc(call, request),
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

/// A body that does not belong there is a misunderstanding, and is refused rather than skipped. A
/// chunked body may turn out to be empty, which is no content (RFC 9112, section 6.3): the limit of
/// 0 bytes refuses the others.
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

pub fn not_found() -> ApiError {
    let message = "nothing is served at this path; `GET /` lists what is";
    ApiError::new(ErrorCode::NotFound, message)
}

fn rate_limited(who: &str, rate: Rate, retry_after: Duration) -> ApiError {
    let message = format!(
        "{who} may make {} requests a minute, {} at once; wait for `Retry-After`",
        rate.per_minute, rate.burst
    );
    ApiError::new(ErrorCode::RateLimited, message).with_retry_after(retry_after)
}
