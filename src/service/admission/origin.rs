//! Detects requests of web pages among those that need no key.
//!
//! With keys switched off, and with `metrics.public_on_loopback`, a client on a loopback address is
//! served without a key, and browsers on the machine can reach that address for every page that
//! they show. Two signs reveal such a request. Its `Origin` is the page's. And a page that makes
//! its own name resolve to 127.0.0.1 (DNS rebinding) has the same origin, but asks for that name.

use crate::config::Hosts;
use crate::error::{ApiError, ErrorCode};
use crate::http::Request;

use super::arrival::Arrival;

/// Refuses requests from pages of other sites, and requests for a host other than this machine.
///
/// Only clients that have connected from a loopback address are checked: browsers do not connect to
/// Unix sockets, and a page can invent the contents of a forwarding field.
pub fn check(arrival: &Arrival<'_>, hosts: &Hosts) -> Result<(), ApiError> {
    let connected = arrival.connected;
    if connected.ip().is_none() || !connected.is_local() {
        return Ok(());
    }
    check_request(arrival.request, hosts)
}

fn check_request(request: &Request<'_>, hosts: &Hosts) -> Result<(), ApiError> {
    if request.host().is_some_and(|host| !hosts.are_named_by(host)) {
        return Err(refusal(
            "without a key only `localhost` and the names in `server.hosts` are served, but the \
             request names another host",
        ));
    }
    let mut origins = request
        .headers
        .iter()
        .filter(|field| field.name.eq_ignore_ascii_case("origin"));
    let is_foreign = origins.any(|field| {
        let origin = std::str::from_utf8(field.value).unwrap_or_default();
        let host = origin.split_once("://").map_or("", |(_, host)| host);
        !hosts.are_named_by(host)
    });
    if is_foreign || request.header("sec-fetch-site") == Some("cross-site") {
        return Err(refusal(
            "without a key only pages of `localhost` and of the names in `server.hosts` are \
             served, but a page of another site sent this request",
        ));
    }
    Ok(())
}

fn refusal(message: &str) -> ApiError {
    ApiError::new(ErrorCode::ForbiddenOrigin, message)
}
