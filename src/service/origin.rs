//! Whether a request that needs no key may come from a web page.
//!
//! With keys switched off, whatever reaches a loopback address is served, and browsers on the
//! machine reach it for every page that they show. Two things tell such a request apart. Its
//! `Origin` is the page's. And a page that lets its own name resolve to 127.0.0.1 (DNS rebinding)
//! is of the same origin, but sends that name as `Host`.

use crate::error::{ApiError, ErrorCode};
use crate::http::Request;

/// Refuses what a page of another site sends, and what names a host other than this machine.
pub fn check(request: &Request<'_>) -> Result<(), ApiError> {
    if let Some(host) = request.header("host")
        && !is_loopback(host)
    {
        return Err(refusal(
            "`Host` names another machine; without keys, ask for localhost",
        ));
    }
    let is_foreign = request.header("origin").is_some_and(|origin| {
        let host = origin.split_once("://").map_or("", |(_, host)| host);
        !is_loopback(host)
    });
    if is_foreign || request.header("sec-fetch-site") == Some("cross-site") {
        return Err(refusal(
            "a page of another site sent this; without keys, only pages of this machine may",
        ));
    }
    Ok(())
}

fn refusal(message: &str) -> ApiError {
    ApiError::new(ErrorCode::ForbiddenOrigin, message)
}

/// `host[:port]` of this machine: RFC 6761, section 6.3, and the loopback addresses.
fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(literal) => literal.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    let address = name.parse::<std::net::IpAddr>();
    name == "localhost"
        || name.ends_with(".localhost")
        || address.is_ok_and(|ip| ip.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_are_loopback() {
        for host in [
            "localhost",
            "LOCALHOST:80",
            "localhost.",
            "a.localhost:1",
            "127.0.0.1",
            "127.9.9.9:80",
            "[::1]:80",
            "[::ffff:127.0.0.1]",
        ] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "evil-localhost",
            "10.0.0.1",
            "[::2]",
            "0.0.0.0",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
