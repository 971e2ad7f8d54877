//! Checks by its head alone whether a request may go on: route, key, rate, method, media types,
//! query.
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

use std::sync::Arc;
use std::time::Duration;

use crate::core::bucket::Rate;
use crate::error::{ApiError, ErrorCode};
use crate::grpc::frame;
use crate::http::negotiate::{AcceptEncoding, body_coding};
use crate::http::{Method, Request};
use crate::keys::Holder;
use crate::leases::{Draw, Unit};
use crate::limits::service as limits;
use crate::offload::Permit;
use crate::service::call::{Call, Intake};
use crate::service::desk::{Desk, Parts};
use crate::service::inflation::unsupported_coding;
use crate::service::query;
use crate::service::response::coding;

use super::arrival::Arrival;
use super::auth;
use super::origin;
use crate::service::router::{Access, BodyBound, Route, Row, Surface};

/// Checks everything that a head can be refused for, in the order that reveals least to
/// strangers. Returns the permit that counts a generation among those of its key.
pub fn check_head(
    desk: &Desk,
    call: &mut Call,
    arrival: &Arrival<'_>,
) -> Result<Option<Permit>, ApiError> {
    let (parts, request) = (&desk.parts, arrival.request);
    let Some(row) = call.row else {
        take_from_sender(parts, call, arrival)?;
        return if is_about_server(request) {
            Ok(None)
        } else {
            Err(desk.dialect(call.surface()).not_found())
        };
    };
    if request.method == Method::Options {
        if row.access != Access::Public {
            take_from_sender(parts, call, arrival)?;
        }
        return Ok(None);
    }
    let mut is_open = is_open(parts, row, arrival);
    let mut origin = check_origin(parts, row, is_open, arrival);
    if origin.is_err() && parts.config.auth.enabled && auth::sends_credentials(request) {
        // A page knows no key, so a request that carries one must prove it instead.
        (is_open, origin) = (false, Ok(()));
    }
    if !is_open {
        call.caller = identify(parts, arrival)?;
        take_request(parts, call, arrival)?;
        if let (Some(caller), Access::Scope(scope) | Access::PublicOnLoopback(scope)) =
            (&call.caller, row.access)
        {
            auth::require(&caller.record, scope)?;
        }
    }
    let checked = origin.and_then(|()| check_fields(desk, row, call, request));
    if is_open && checked.is_err() {
        take_from_sender(parts, call, arrival)?;
    }
    checked?;
    if row.route.is_generation() {
        take_permit(parts, call)
    } else {
        Ok(None)
    }
}

/// Returns the holder of the request's key; `None` if keys are switched off.
///
/// The strangers' rate is charged only for failed attempts, after they failed: a valid key is
/// never refused for the requests of its neighbours behind the same address. A key is 256
/// random bits, so trying is hopeless, and the look-up costs less than a refusal.
fn identify(parts: &Parts, arrival: &Arrival<'_>) -> Result<Option<Arc<Holder>>, ApiError> {
    let config = &parts.config;
    if !config.auth.enabled {
        return Ok(None);
    }
    let client = arrival.sender.client.as_deref();
    let (known, clock) = (&config.tls.client_keys, parts.wall_clock);
    match auth::authenticate(arrival.request, client, known, &parts.keys, clock) {
        Ok(holder) => Ok(Some(Arc::clone(holder))),
        Err(error) => {
            let per_minute = config.rate_limit.unauthenticated_per_minute;
            take_from_address(parts, arrival, per_minute)?;
            Err(error)
        }
    }
}

/// Counts a request whose response is the same with a key and without one: a valid key takes
/// it from its own rate, every other request from the rate of its address.
fn take_from_sender(parts: &Parts, call: &mut Call, arrival: &Arrival<'_>) -> Result<(), ApiError> {
    match identify(parts, arrival) {
        Ok(caller) => {
            call.caller = caller;
            take_request(parts, call, arrival)
        }
        Err(error) if error.code == ErrorCode::RateLimited => Err(error),
        // Without a valid key, which `identify` has charged to the address.
        Err(_) => Ok(()),
    }
}

/// Returns how the body of an admitted request is read.
pub fn intake(call: &Call) -> Intake {
    match call.route() {
        Route::Reflection if call.representation.is_grpc() => Intake::Pieces,
        _ => Intake::Whole,
    }
}

/// Returns how many body bytes a request may have; a bound in messages leaves room for one's
/// prefix.
pub fn body_limit(parts: &Parts, call: &Call) -> usize {
    let Some(row) = call.row.filter(|_| call.method == Method::Post) else {
        return 0;
    };
    let prefix = match row.surface {
        Surface::Grpc => frame::PREFIX_BYTES,
        Surface::Native => 0,
    };
    match row.body {
        BodyBound::None => 0,
        BodyBound::Bytes(bytes) => bytes + prefix,
        BodyBound::MaxBody => parts.config.limits.max_body + prefix,
    }
}

/// Returns whether a route needs no key for this client.
fn is_open(parts: &Parts, row: &Row, arrival: &Arrival<'_>) -> bool {
    match row.access {
        Access::Public => true,
        Access::PublicOnLoopback(_) => {
            parts.config.metrics.public_on_loopback && arrival.is_local()
        }
        Access::Scope(_) | Access::AnyKey => false,
    }
}

/// Returns why a request that would be served without a key is refused.
fn check_origin(
    parts: &Parts,
    row: &Row,
    is_open: bool,
    arrival: &Arrival<'_>,
) -> Result<(), ApiError> {
    let needs_no_key = is_open || !parts.config.auth.enabled;
    match row.access {
        Access::Public => Ok(()),
        _ if needs_no_key => origin::check(arrival, &parts.config.server.hosts),
        _ => Ok(()),
    }
}

/// Checks the route's requirements on the method and on the fields about bodies.
fn check_fields(
    desk: &Desk,
    row: &Row,
    call: &mut Call,
    request: &Request<'_>,
) -> Result<(), ApiError> {
    if row.access != Access::Public {
        call.accept_encoding = AcceptEncoding::of(request);
    }
    check_method(row, request.method)?;
    desk.dialect(row.surface).check_head(row, call, request)?;
    query::check(row, request)?;
    // gRPC compresses its messages, and by its own rules.
    if row.surface == Surface::Grpc {
        return Ok(());
    }
    if !desk.buffer.coder.can_please(call.accept_encoding) {
        return Err(coding::no_coding());
    }
    if request.method == Method::Post {
        call.body_coding = body_coding(request).map_err(unsupported_coding)?;
    }
    Ok(())
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
    let message = format!("{path} accepts {allow}, not {method}");
    Err(ApiError::new(ErrorCode::MethodNotAllowed, message))
}

/// Takes one request out of the caller's bucket; without keys, out of the address's.
fn take_request(parts: &Parts, call: &mut Call, arrival: &Arrival<'_>) -> Result<(), ApiError> {
    let limits = &parts.config.rate_limit;
    let Some(caller) = &call.caller else {
        return take_from_address(parts, arrival, limits.requests_per_minute);
    };
    let own = caller.record.requests_per_minute;
    let rate = Rate::new(own.unwrap_or(limits.requests_per_minute), limits.burst);
    if !limits.enabled || !rate.is_bounded() {
        return Ok(());
    }
    let draw = Draw {
        unit: Unit::Requests,
        rate,
        units: 1,
        percent: limits.lease,
    };
    match parts.limiter.leases.take(caller, draw, arrival.now) {
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
fn take_from_address(
    parts: &Parts,
    arrival: &Arrival<'_>,
    per_minute: u32,
) -> Result<(), ApiError> {
    let limits = &parts.config.rate_limit;
    let rate = Rate::new(per_minute, limits.burst);
    let Some(address) = arrival.sender.address.ip() else {
        return Ok(());
    };
    if !limits.enabled || !rate.is_bounded() {
        return Ok(());
    }
    match parts.limiter.address(address).take(rate, 1, arrival.now) {
        Ok(_) => Ok(()),
        Err(exceeded) => Err(rate_limited("this address", rate, exceeded.retry_after)),
    }
}

/// Takes one of the permits that a key has for simultaneous requests.
fn take_permit(parts: &Parts, call: &Call) -> Result<Option<Permit>, ApiError> {
    let limits = &parts.config.rate_limit;
    let Some(caller) = call.caller.as_ref().filter(|_| limits.enabled) else {
        return Ok(None);
    };
    let bound = caller.record.concurrency.unwrap_or(limits.concurrency);
    match Permit::try_take(&caller.account.running, bound) {
        Some(permit) => Ok(Some(permit)),
        None => {
            let message = format!(
                "this key already has {bound} requests running (its limit); wait for one to end"
            );
            Err(ApiError::new(ErrorCode::TooManyConcurrent, message)
                .with_retry_after(limits::BUSY_RETRY_AFTER))
        }
    }
}

/// `OPTIONS *` is about the server as a whole (RFC 9110, section 9.3.7).
fn is_about_server(request: &Request<'_>) -> bool {
    request.method == Method::Options && request.path == "*"
}

fn rate_limited(who: &str, rate: Rate, retry_after: Duration) -> ApiError {
    let message = format!(
        "{who} has used up its rate of {} per minute, {} at once; wait for `Retry-After`",
        rate.per_minute, rate.burst
    );
    ApiError::new(ErrorCode::RateLimited, message).with_retry_after(retry_after)
}
