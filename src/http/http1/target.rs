//! The request target (RFC 9112, section 3.2) and the host that it or the `Host` field names.
//!
//! This file owns the three forms that an origin server accepts (`/path?query`,
//! `http://host/path?query` and, for OPTIONS, `*`) and must never decode: the router interprets
//! `%2e`. A target with a fragment, a user, a byte outside visible ASCII or a scheme other than
//! HTTP's is refused.

use super::{Malformed, byte_table};
use crate::error::ErrorCode;

pub const CONNECT_IS_FOR_PROXIES: Malformed = Malformed::new(
    ErrorCode::NotImplemented,
    "CONNECT is for proxies; this server is not a proxy",
);

/// The parts of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target<'a> {
    /// From the absolute form. It replaces the `Host` field (RFC 9112, section 3.2.2).
    pub authority: Option<&'a str>,
    /// Starts with `/`, or is `*`.
    pub path: &'a str,
    pub query: Option<&'a str>,
}

/// Splits a target into its parts.
pub fn split<'a>(method: &str, target: &'a str) -> Result<Target<'a>, Malformed> {
    if method == "CONNECT" {
        return Err(CONNECT_IS_FOR_PROXIES);
    }
    if !target
        .bytes()
        .all(|byte| byte.is_ascii_graphic() && byte != b'#')
    {
        return Err(Malformed::bad(
            "the request target holds a byte that must be percent-encoded",
        ));
    }
    if target == "*" && method == "OPTIONS" {
        return Ok(Target {
            authority: None,
            path: target,
            query: None,
        });
    }
    let (authority, after) = match target.starts_with('/') {
        true => (None, target),
        false => split_authority(target).map(|(authority, after)| (Some(authority), after))?,
    };
    let (path, query) = match after.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (after, None),
    };
    Ok(Target {
        authority,
        path: if path.is_empty() { "/" } else { path },
        query,
    })
}

/// Returns the authority of the absolute form, and the rest of the target.
fn split_authority(target: &str) -> Result<(&str, &str), Malformed> {
    const NEITHER: Malformed =
        Malformed::bad("the request target is neither a path nor an http URI");
    let (scheme, rest) = target.split_once("://").ok_or(NEITHER)?;
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return Err(NEITHER);
    }
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, after) = rest.split_at(end);
    // A user before the host (`user@host`) is refused with it: RFC 9110, section 4.2.4.
    if !is_host(authority.as_bytes()) {
        return Err(Malformed::bad(
            "the request target does not contain a valid host",
        ));
    }
    Ok((authority, after))
}

/// Returns whether this is a non-empty `host[:port]` (RFC 3986, section 3.2): a name, an IPv4
/// address or a bracketed IPv6 address, and decimal digits.
pub fn is_host(value: &[u8]) -> bool {
    let (is_host_valid, after) = match value.strip_prefix(b"[") {
        Some(rest) => match rest.iter().position(|&byte| byte == b']') {
            Some(end) => (is_ip_literal(&rest[..end]), &rest[end + 1..]),
            None => return false,
        },
        None => {
            let end = value.iter().position(|&byte| byte == b':');
            let (name, after) = value.split_at(end.unwrap_or(value.len()));
            (is_registered_name(name), after)
        }
    };
    is_host_valid
        && match after.split_first() {
            None => true,
            Some((b':', port)) => port.len() <= 5 && port.iter().all(u8::is_ascii_digit),
            Some(_) => false,
        }
}

/// Accepts the text between the brackets: an IPv6 address, perhaps with a zone (`%25eth0`), which
/// link-local clients do send.
fn is_ip_literal(literal: &[u8]) -> bool {
    let is_literal_byte = |&byte: &u8| {
        byte.is_ascii_alphanumeric() || matches!(byte, b':' | b'.' | b'%' | b'-' | b'_')
    };
    literal.contains(&b':') && literal.iter().all(is_literal_byte)
}

/// Accepts a non-empty `reg-name`: unreserved, percent-encoded and sub-delimiter bytes.
fn is_registered_name(name: &[u8]) -> bool {
    const NAME_BYTES: [bool; 256] = byte_table(b"-._~%!$&'()*+,;=");
    !name.is_empty() && name.iter().all(|&byte| NAME_BYTES[byte as usize])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_gives_its_path_and_query() {
        let cases = [
            ("GET", "/", None, "/", None),
            ("GET", "/a/b?c=d&e", None, "/a/b", Some("c=d&e")),
            ("GET", "/?", None, "/", Some("")),
            ("GET", "/a?b?c", None, "/a", Some("b?c")),
            ("GET", "//a", None, "//a", None),
            ("GET", "http://h/a?b", Some("h"), "/a", Some("b")),
            ("GET", "HTTPS://h:8080", Some("h:8080"), "/", None),
            ("GET", "http://h?q", Some("h"), "/", Some("q")),
            ("GET", "http://[::1]:8080/a", Some("[::1]:8080"), "/a", None),
            ("OPTIONS", "*", None, "*", None),
        ];
        for (method, target, authority, path, query) in cases {
            let parts = Target {
                authority,
                path,
                query,
            };
            assert_eq!(split(method, target), Ok(parts), "{target}");
        }
    }

    #[test]
    fn other_targets_are_refused() {
        let targets = [
            "*",
            "a",
            "h:80",
            "ftp://h/",
            "http:///a",
            "http://u@h/",
            "http://h:x/",
            "/a#b",
            "/\u{e9}",
            "://h/",
            "http://[::1/",
            "http://h:123456/",
        ];
        for target in targets {
            let malformed = split("GET", target).unwrap_err();
            assert_eq!(malformed.code, ErrorCode::MalformedHttp, "{target}");
        }
        let connect = split("CONNECT", "example.com:443").unwrap_err();
        assert_eq!(connect.code, ErrorCode::NotImplemented);
    }

    #[test]
    fn hosts() {
        for host in [
            "localhost",
            "a.b:80",
            "127.0.0.1:",
            "[::1]",
            "[fe80::1%25eth0]:1",
            "a_b",
        ] {
            assert!(is_host(host.as_bytes()), "{host}");
        }
        for host in [
            "", ":80", "a b", "a:b", "a/b", "a@b", "[::1", "[::1]x", "[]", "a\u{e9}", "a:1:2",
        ] {
            assert!(!is_host(host.as_bytes()), "{host}");
        }
    }
}
