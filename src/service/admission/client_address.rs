//! Finds a request's client behind proxies: `Forwarded` (RFC 7239) and `X-Forwarded-For`.
//!
//! Every proxy adds, at the right end, the address of the peer that called it. So the fields are
//! read from the right, beginning with the connection's own peer, and only as long as each writer
//! is trusted: the first address that is not a trusted proxy's is the client's.
//!
//! ```text
//!   X-Forwarded-For: 1.2.3.4, 203.0.113.9, 10.0.0.2     connection from 10.0.0.1
//!                    written  the client:  trusted,      trusted, so its word
//!                    by it    not trusted  so its word   (10.0.0.2) is taken
//! ```
//!
//! Owns that walk. Must never trust a field of an untrusted peer, nor an address to the left of an
//! untrusted one.
//!
//! Invariants:
//!  1. The result is the peer's own address, or one that a trusted proxy wrote.
//!  2. An element that is not an address (`unknown`, `_hidden`, nonsense) ends the walk at the
//!     proxy that wrote it: the request counts as the proxy's own.
//!  3. A proxy adds to one of the two fields and passes the other on unchanged. So if both are
//!     present and do not agree, the client has invented one of them, and neither is trusted.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::config::{ForwardedField, TrustedProxies};
use crate::http::Request;
use crate::limits::service as limits;
use crate::service::call::PeerAddress;

/// Returns the address under which this request is counted, limited and logged.
pub fn of(
    request: &Request<'_>,
    peer: PeerAddress,
    proxies: &TrustedProxies,
    field: ForwardedField,
) -> PeerAddress {
    if !is_trusted(peer, proxies) {
        return peer;
    }
    let walk = |kind: ForwardedField| {
        let mut walk = Walk { proxies, at: peer };
        walk.follow(request, kind);
        walk.at
    };
    let has = |name| has_field(request, name);
    match (field, has("forwarded"), has("x-forwarded-for")) {
        (ForwardedField::Any, true, true) => {
            let standard = walk(ForwardedField::Forwarded);
            if standard == walk(ForwardedField::XForwardedFor) {
                standard
            } else {
                peer
            }
        }
        (ForwardedField::Any, true, false) => walk(ForwardedField::Forwarded),
        (ForwardedField::Any, false, _) => walk(ForwardedField::XForwardedFor),
        (kind, _, _) => walk(kind),
    }
}

/// Returns whether a proxy, trusted or not, has forwarded this request. Such a request comes from
/// elsewhere, even over a loopback address.
pub fn is_forwarded(request: &Request<'_>) -> bool {
    ["forwarded", "x-forwarded-for", "x-real-ip", "via"]
        .iter()
        .any(|name| has_field(request, name))
}

/// Finds the field even with a value that no header may have.
fn has_field(request: &Request<'_>, name: &str) -> bool {
    let mut fields = request.headers.iter();
    fields.any(|field| field.name.eq_ignore_ascii_case(name))
}

fn is_trusted(peer: PeerAddress, proxies: &TrustedProxies) -> bool {
    match peer {
        PeerAddress::Ip(address) => proxies.contains(address),
        PeerAddress::Unix => proxies.has_unix(),
    }
}

struct Walk<'a> {
    proxies: &'a TrustedProxies,
    /// The address found so far, which wrote the next element.
    at: PeerAddress,
}

impl Walk<'_> {
    fn follow(&mut self, request: &Request<'_>, kind: ForwardedField) {
        let (name, words): (_, ReadWords) = match kind {
            ForwardedField::Forwarded => ("forwarded", forwarded),
            _ => ("x-forwarded-for", forwarded_for),
        };
        let mut hops = 0;
        let lines = request.headers.iter().rev();
        for line in lines.filter(|line| line.name.eq_ignore_ascii_case(name)) {
            let text = std::str::from_utf8(line.value).ok();
            let Some(words) = text.and_then(words) else {
                return;
            };
            for word in words.into_iter().rev() {
                hops += 1;
                if hops > limits::FORWARDED_HOPS_MAX || !self.step(word) {
                    return;
                }
            }
        }
    }

    /// Goes to the next address on the left. Returns `false` if the walk ends.
    fn step(&mut self, word: Word<'_>) -> bool {
        let Word(Some(node)) = word else {
            return false;
        };
        let Some(address) = address(node) else {
            return false;
        };
        self.at = PeerAddress::Ip(address);
        self.proxies.contains(address)
    }
}

/// Splits a field's value into elements; `None` if it is malformed.
type ReadWords = fn(&str) -> Option<Vec<Word<'_>>>;

/// The address that one proxy wrote; `None` if it wrote none.
struct Word<'a>(Option<&'a str>);

/// Parses `X-Forwarded-For`: addresses between commas.
fn forwarded_for(text: &str) -> Option<Vec<Word<'_>>> {
    let items = text.split(',').map(str::trim);
    let items = items.filter(|item| !item.is_empty());
    Some(items.map(|item| Word(Some(item))).collect())
}

/// Parses `Forwarded`: elements between commas, each with pairs between semicolons; quotes may
/// contain commas and semicolons (RFC 7239, section 4). `None` if malformed: then no part can be
/// trusted.
fn forwarded(text: &str) -> Option<Vec<Word<'_>>> {
    let mut words = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        // Empty elements of a list are allowed (RFC 9110, section 5.6.1).
        if let Some(after) = rest.strip_prefix(',') {
            rest = after.trim_start();
            continue;
        }
        let (word, after) = element(rest)?;
        words.push(word);
        rest = after;
    }
    Some(words)
}

/// Returns one element up to its comma, and the rest.
fn element(text: &str) -> Option<(Word<'_>, &str)> {
    let (mut found, mut rest) = (None, text);
    loop {
        let (name, after) = rest.split_once('=')?;
        if !is_token(name) {
            return None;
        }
        let (value, after) = value(after)?;
        if name.eq_ignore_ascii_case("for") && found.replace(value).is_some() {
            return None;
        }
        rest = after.trim_start();
        match rest.as_bytes().first() {
            None => return Some((Word(found), rest)),
            Some(b',') => return Some((Word(found), rest[1..].trim_start())),
            Some(b';') => rest = rest[1..].trim_start(),
            Some(_) => return None,
        }
    }
}

/// Reads a token, or the inside of a quoted string. No address needs an escape, so none is
/// accepted.
fn value(text: &str) -> Option<(&str, &str)> {
    if let Some(quoted) = text.strip_prefix('"') {
        let (inside, after) = quoted.split_once('"')?;
        return (!inside.contains('\\')).then_some((inside, after));
    }
    let end = text.find([',', ';', ' ', '\t']).unwrap_or(text.len());
    let (token, after) = text.split_at(end);
    is_token(token).then_some((token, after))
}

/// RFC 9110, section 5.6.2; also the colons and brackets that many proxies write without quotes.
fn is_token(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~:[]".contains(&byte);
    !text.is_empty() && text.bytes().all(is_plain)
}

/// Parses an address: alone, with a port, or in brackets.
fn address(node: &str) -> Option<IpAddr> {
    let plain = node.parse::<IpAddr>().ok();
    let with_port = || node.parse::<SocketAddr>().ok().map(|socket| socket.ip());
    let bracketed = || {
        let inside = node.strip_prefix('[')?;
        // A port may be hidden as well (RFC 7239, section 6): `[2001:db8::1]:_http`.
        let (inside, port) = inside.split_once(']')?;
        let is_port = port.is_empty() || port.starts_with(':');
        inside
            .parse::<Ipv6Addr>()
            .ok()
            .filter(|_| is_port)
            .map(IpAddr::from)
    };
    let address = plain.or_else(with_port).or_else(bracketed)?;
    Some(address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::testing::headers;
    use crate::http::{Method, Version};
    use proptest::prelude::*;

    /// Returns the address under which a request from `peer` with these fields is counted.
    fn seen(peer: &str, fields: &[(&str, &str)], field: ForwardedField) -> String {
        let proxies = TrustedProxies::parse(&["10.0.0.0/8", "::1", "unix"]).expect("networks");
        let headers = headers(fields);
        let request = Request {
            method: Method::Get,
            authority: None,
            path: "/",
            query: None,
            version: Version::Http11,
            headers: &headers,
        };
        let peer = match peer {
            "unix" => PeerAddress::Unix,
            text => PeerAddress::Ip(text.parse().expect("an address")),
        };
        match of(&request, peer, &proxies, field) {
            PeerAddress::Ip(address) => address.to_string(),
            PeerAddress::Unix => "unix".to_owned(),
        }
    }

    fn with(name: &str, value: &str) -> String {
        seen("10.0.0.1", &[(name, value)], ForwardedField::Any)
    }

    #[test]
    fn an_untrusted_peer_is_not_believed() {
        let fields = [("x-forwarded-for", "1.2.3.4"), ("forwarded", "for=1.2.3.4")];
        for field in [&fields[..1], &fields[1..], &fields[..]] {
            for peer in ["203.0.113.9", "127.0.0.1", "2001:db8::1"] {
                assert_eq!(seen(peer, field, ForwardedField::Any), peer);
            }
        }
    }

    /// Mutations that this test catches: the walk from the left; `step` always `true`.
    #[test]
    fn the_rightmost_address_that_is_not_a_trusted_proxy_is_the_client() {
        for (value, client) in [
            ("1.2.3.4", "1.2.3.4"),
            ("6.6.6.6, 1.2.3.4", "1.2.3.4"),
            ("6.6.6.6, 1.2.3.4, 10.0.0.2", "1.2.3.4"),
            ("1.2.3.4,10.0.0.3,10.0.0.2", "1.2.3.4"),
            ("1.2.3.4:5678", "1.2.3.4"),
            ("2001:db8::9", "2001:db8::9"),
            ("[2001:db8::9]:80", "2001:db8::9"),
            ("[2001:db8::9]", "2001:db8::9"),
            ("::ffff:1.2.3.4", "1.2.3.4"),
            ("1.2.3.4,", "1.2.3.4"),
            ("10.0.0.3, 10.0.0.2", "10.0.0.3"),
            ("", "10.0.0.1"),
            ("unknown", "10.0.0.1"),
            ("1.2.3.4, unknown", "10.0.0.1"),
            ("1.2.3.4, nonsense, 10.0.0.2", "10.0.0.2"),
            ("1.2.3.4.5", "10.0.0.1"),
        ] {
            assert_eq!(with("X-Forwarded-For", value), client, "{value}");
        }
        for (value, client) in [
            ("for=1.2.3.4", "1.2.3.4"),
            ("For=\"1.2.3.4:90\"; proto=http;by=10.0.0.1", "1.2.3.4"),
            ("proto=https;for=\"[2001:db8::9]:4711\"", "2001:db8::9"),
            ("for=[2001:db8::9]", "2001:db8::9"),
            ("for=\"[2001:db8::9]:_http\"", "2001:db8::9"),
            ("for=6.6.6.6, for=1.2.3.4", "1.2.3.4"),
            (
                "for=6.6.6.6;host=\"a,b;c\" , for=1.2.3.4, for=10.0.0.2",
                "1.2.3.4",
            ),
            ("for=1.2.3.4, , ", "1.2.3.4"),
            ("for=_hidden", "10.0.0.1"),
            ("for=unknown, for=10.0.0.2", "10.0.0.2"),
            ("proto=http", "10.0.0.1"),
            // Malformed: a quote left open may swallow what the proxy added.
            ("for=\"6.6.6.6, for=1.2.3.4", "10.0.0.1"),
            ("for=\"x, for=\"1.2.3.4\"", "10.0.0.1"),
            ("for=1.2.3.4;for=6.6.6.6", "10.0.0.1"),
            ("for", "10.0.0.1"),
            ("for=", "10.0.0.1"),
            ("=1.2.3.4", "10.0.0.1"),
            ("for=1.2.3.4 for=6.6.6.6", "10.0.0.1"),
            ("for=\"\\1.2.3.4\"", "10.0.0.1"),
        ] {
            assert_eq!(with("Forwarded", value), client, "{value}");
        }
    }

    #[test]
    fn several_lines_are_one_list_and_the_last_line_is_the_nearest() {
        let lines = [
            ("x-forwarded-for", "6.6.6.6"),
            ("x-forwarded-for", "1.2.3.4"),
            ("x-forwarded-for", "10.0.0.2"),
        ];
        assert_eq!(seen("10.0.0.1", &lines, ForwardedField::Any), "1.2.3.4");
        // A line that the client has spoilt comes to the left of the proxy's own, and is not
        // reached.
        let lines = [("forwarded", "for=\"6.6"), ("forwarded", "for=1.2.3.4")];
        assert_eq!(seen("::1", &lines, ForwardedField::Any), "1.2.3.4");
        assert_eq!(seen("unix", &lines, ForwardedField::Any), "1.2.3.4");
    }

    /// Invariant 3. A mutation that this test catches: `standard` returned in either case.
    #[test]
    fn of_two_fields_that_disagree_neither_is_believed_unless_one_is_named() {
        let fields = [("forwarded", "for=6.6.6.6"), ("x-forwarded-for", "1.2.3.4")];
        let seen = |field| seen("10.0.0.1", &fields, field);
        assert_eq!(seen(ForwardedField::Any), "10.0.0.1");
        assert_eq!(seen(ForwardedField::XForwardedFor), "1.2.3.4");
        assert_eq!(seen(ForwardedField::Forwarded), "6.6.6.6");
        let agree = [("forwarded", "for=1.2.3.4"), ("x-forwarded-for", "1.2.3.4")];
        assert_eq!(
            super::tests::seen("10.0.0.1", &agree, ForwardedField::Any),
            "1.2.3.4"
        );
    }

    #[test]
    fn a_chain_without_end_is_cut() {
        let long = ["10.0.0.9"; 500].join(",");
        assert_eq!(
            with("x-forwarded-for", &format!("1.2.3.4,{long}")),
            "10.0.0.9"
        );
    }

    proptest! {
        /// Whatever a client writes on the left, the proxy's element on the right decides.
        #[test]
        fn nothing_that_a_client_sends_changes_what_the_proxy_adds(text in "[ -~]{0,80}") {
            let fields = [("x-forwarded-for", text.as_str()), ("x-forwarded-for", "1.2.3.4")];
            prop_assert_eq!(seen("10.0.0.1", &fields, ForwardedField::Any), "1.2.3.4");
            let joined = format!("{text}, 1.2.3.4");
            prop_assert_eq!(with("x-forwarded-for", &joined), "1.2.3.4");
            let fields = [("forwarded", text.as_str()), ("forwarded", "for=1.2.3.4")];
            prop_assert_eq!(seen("10.0.0.1", &fields, ForwardedField::Any), "1.2.3.4");
            // In one line a malformed beginning invalidates the proxy's element, and no other
            // replaces it.
            let client = with("forwarded", &format!("{text}, for=1.2.3.4"));
            prop_assert!(client == "1.2.3.4" || client == "10.0.0.1", "{}", client);
        }
    }
}
