//! `http` and `https` URLs, as far as a client of a server needs them (RFC 9110, section 4.2).
//!
//! Owns the split of a URL into the [`Origin`] to connect to and the target of the request. Strict:
//! it refuses what two readers could understand differently, because the text may come from a
//! stranger. So it accepts neither user information, which hides the host from a hasty reader
//! (`http://trusted@evil/`), nor the old spellings of IPv4 addresses that a resolver understands
//! (`2130706433`, `0x7f.1`), nor bytes that would need an encoding first. A fragment is dropped.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use crate::limits::http as limits;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    Http,
    Https,
}

/// The host of a URL.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// In lower case.
    Name(Box<str>),
    Address(IpAddr),
}

/// A server that requests can be sent to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    pub scheme: Scheme,
    pub host: Host,
    pub port: u16,
}

/// Why a URL is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadUrl {
    Scheme,
    TooLong,
    UserInformation,
    Host,
    Port,
    Target,
}

impl fmt::Display for BadUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BadUrl::Scheme => f.write_str("it must begin with http:// or https://"),
            BadUrl::TooLong => write!(f, "it is longer than {} bytes", limits::URL_BYTES_MAX),
            BadUrl::UserInformation => f.write_str("it must not contain a user or a password"),
            BadUrl::Host => f.write_str("its host is neither a name nor an address"),
            BadUrl::Port => f.write_str("its port must be a number from 1 to 65535"),
            BadUrl::Target => {
                f.write_str("its path and query must be visible ASCII; encode other bytes as %XX")
            }
        }
    }
}

impl Origin {
    /// Splits a URL. Returns the request's target as well: its path, with the query.
    pub fn parse(url: &str) -> Result<(Origin, String), BadUrl> {
        if url.len() > limits::URL_BYTES_MAX {
            return Err(BadUrl::TooLong);
        }
        let (scheme, rest) = url.split_once("://").ok_or(BadUrl::Scheme)?;
        let (scheme, usual_port) = match scheme.to_ascii_lowercase().as_str() {
            "http" => (Scheme::Http, 80),
            "https" => (Scheme::Https, 443),
            _ => return Err(BadUrl::Scheme),
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, target) = rest.split_at(end);
        if authority.contains('@') {
            return Err(BadUrl::UserInformation);
        }
        let (host, port) = split_port(authority)?;
        let host = match host {
            HostText::V6(address) => Host::Address(address.into()),
            HostText::Plain(text) => parse_host(text).ok_or(BadUrl::Host)?,
        };
        let port = port.unwrap_or(usual_port);
        let target = parse_target(target).ok_or(BadUrl::Target)?;
        Ok((Origin { scheme, host, port }, target))
    }

    /// Returns the value of the `Host` field: the port is left out if it is the scheme's own.
    pub fn authority(&self) -> String {
        let is_usual = matches!(
            (self.scheme, self.port),
            (Scheme::Http, 80) | (Scheme::Https, 443)
        );
        match is_usual {
            true => self.host.to_string(),
            false => format!("{}:{}", self.host, self.port),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Name(name) => f.write_str(name),
            Host::Address(IpAddr::V4(address)) => write!(f, "{address}"),
            Host::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
        }
    }
}

/// The host of an authority, before its name is looked at.
pub enum HostText<'a> {
    /// It was in brackets.
    V6(Ipv6Addr),
    Plain(&'a str),
}

/// Splits `HOST`, `HOST:PORT` or `[ADDRESS]:PORT`.
pub fn split_port(authority: &str) -> Result<(HostText<'_>, Option<u16>), BadUrl> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(bracketed) => {
            let (address, port) = bracketed.split_once(']').ok_or(BadUrl::Host)?;
            let address = address.parse().map_err(|_| BadUrl::Host)?;
            (HostText::V6(address), port)
        }
        None => {
            let end = authority.find(':').unwrap_or(authority.len());
            let (host, port) = authority.split_at(end);
            (HostText::Plain(host), port)
        }
    };
    match port.strip_prefix(':') {
        None if port.is_empty() => Ok((host, None)),
        None => Err(BadUrl::Host),
        Some(digits) => match parse_port(digits) {
            None => Err(BadUrl::Port),
            port => Ok((host, port)),
        },
    }
}

fn parse_host(text: &str) -> Option<Host> {
    if let Ok(address) = text.parse() {
        return Some(Host::Address(IpAddr::V4(address)));
    }
    if text.is_empty() || text.len() > limits::HOST_NAME_BYTES_MAX {
        return None;
    }
    let is_good = |label: &str| {
        let byte = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        !label.is_empty() && label.len() <= limits::HOST_LABEL_BYTES_MAX && label.bytes().all(byte)
    };
    // No top-level domain is a number, and resolvers take such a name for an address.
    let last = text.rsplit('.').next()?;
    let hex = last.strip_prefix("0x").or(last.strip_prefix("0X"));
    let is_number = last.bytes().all(|byte| byte.is_ascii_digit())
        || hex.is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
    (text.split('.').all(is_good) && !is_number)
        .then(|| Host::Name(text.to_ascii_lowercase().into()))
}

/// `parse` alone would accept `+80`.
fn parse_port(digits: &str) -> Option<u16> {
    let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|port| *port != 0 && is_number)
}

fn parse_target(text: &str) -> Option<String> {
    let text = text.split('#').next()?;
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return None;
    }
    Some(match text.starts_with('/') {
        true => text.to_owned(),
        false => format!("/{text}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_url_is_split_into_origin_and_target() {
        for (url, authority, port, target) in [
            ("http://example.org", "example.org", 80, "/"),
            ("HTTPS://Example.ORG/a?b=c#d", "example.org", 443, "/a?b=c"),
            (
                "https://example.org:8443?x",
                "example.org:8443",
                8443,
                "/?x",
            ),
            ("http://example.org:80/", "example.org", 80, "/"),
            (
                "http://192.0.2.1:8080/hook",
                "192.0.2.1:8080",
                8080,
                "/hook",
            ),
            ("https://[2001:db8::1]/", "[2001:db8::1]", 443, "/"),
            ("http://[::1]:81#x", "[::1]:81", 81, "/"),
            ("http://my_host-1/%C3%A4", "my_host-1", 80, "/%C3%A4"),
        ] {
            let (origin, found) = Origin::parse(url).expect(url);
            assert_eq!(
                (origin.authority().as_str(), origin.port, found.as_str()),
                (authority, port, target)
            );
        }
    }

    /// Mutations that this test catches: no look at the last label, at user information, at the
    /// port's digits.
    #[test]
    fn ambiguous_urls_are_refused() {
        for (url, why) in [
            ("example.org", BadUrl::Scheme),
            ("ftp://example.org/", BadUrl::Scheme),
            ("http://user@example.org/", BadUrl::UserInformation),
            ("http://example.org:80@evil/", BadUrl::UserInformation),
            ("http:///path", BadUrl::Host),
            ("http://a..b/", BadUrl::Host),
            ("http://a b/", BadUrl::Host),
            ("http://example.org./", BadUrl::Host),
            ("http://2130706433/", BadUrl::Host),
            ("http://0x7f000001/", BadUrl::Host),
            ("http://127.1/", BadUrl::Host),
            ("http://127.0.0.0x1/", BadUrl::Host),
            ("http://\u{e4}.org/", BadUrl::Host),
            ("http://[::1/", BadUrl::Host),
            ("http://[::1%eth0]/", BadUrl::Host),
            ("http://[::1]x/", BadUrl::Host),
            ("http://a:/", BadUrl::Port),
            ("http://a:0/", BadUrl::Port),
            ("http://a:+80/", BadUrl::Port),
            ("http://a:65536/", BadUrl::Port),
            ("http://a/\r\nx: y", BadUrl::Target),
            ("http://a/b c", BadUrl::Target),
        ] {
            assert_eq!(Origin::parse(url), Err(why), "{url:?}");
        }
        let long = format!("http://a/{}", "x".repeat(limits::URL_BYTES_MAX));
        assert_eq!(Origin::parse(&long), Err(BadUrl::TooLong));
    }

    proptest! {
        #[test]
        fn an_accepted_url_holds_no_byte_that_ends_a_line(url in "https?://[ -~\r\n]{0,40}") {
            if let Ok((origin, target)) = Origin::parse(&url) {
                let text = format!("{}{target}", origin.authority());
                prop_assert!(text.bytes().all(|byte| byte.is_ascii_graphic()), "{:?}", text);
                prop_assert!(target.starts_with('/'));
            }
        }
    }
}
