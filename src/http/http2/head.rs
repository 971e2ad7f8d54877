//! A request's head, from h2's form to everybody's.
//!
//! h2 has checked most of what RFC 9113, section 8, asks of it. What is left are a few things
//! that it lets pass, the bounds that the configuration names, and the two places where the
//! protocols differ: the host has a pseudo-field of its own, and a target can lack what HTTP/1.1
//! always has.

use http::header::{CONTENT_LENGTH, COOKIE, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;

use crate::error::ErrorCode;
use crate::http::http1::target::{CONNECT_IS_FOR_PROXIES, is_host};
use crate::http::http1::{self, Bounds, Malformed};
use crate::http::{Method, Request, Version};

/// What is read of a head besides the request itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Announced {
    /// The body's length, where the peer has said it.
    pub length: Option<u64>,
    /// The client waits for `100 Continue` before it sends the body.
    pub expects_continue: bool,
}

/// The head's field lines in the form that requests have; they live as long as the request does.
pub fn fields(parts: &Parts) -> Vec<httparse::Header<'_>> {
    let mut fields = Vec::with_capacity(parts.headers.len() + 1);
    // RFC 9113, section 8.3.1: `:authority` stands for Host.
    if let Some(authority) = parts.uri.authority()
        && !parts.headers.contains_key(HOST)
    {
        fields.push(httparse::Header {
            name: "host",
            value: authority.as_str().as_bytes(),
        });
    }
    fields.extend(parts.headers.iter().map(|(name, value)| httparse::Header {
        name: name.as_str(),
        value: value.as_bytes(),
    }));
    fields
}

/// The request that `parts` and its [`fields`] are.
pub fn request<'a>(parts: &'a Parts, fields: &'a [httparse::Header<'a>]) -> Request<'a> {
    Request {
        method: Method::from_token(parts.method.as_str()),
        authority: parts.uri.authority().map(|it| it.as_str()),
        path: parts.uri.path(),
        query: parts.uri.query(),
        version: Version::Http2,
        headers: fields,
    }
}

/// Refuses, with a response, what is larger than the configuration allows, what names no host (a
/// health check of a balancer may not, and learns more from a 400 than from a reset), and CONNECT.
pub fn check(parts: &Parts, bounds: &Bounds) -> Result<Announced, Malformed> {
    if parts.method == http::Method::CONNECT {
        return Err(CONNECT_IS_FOR_PROXIES);
    }
    if parts.uri.authority().is_none() && !parts.headers.contains_key(HOST) {
        return Err(NO_HOST);
    }
    let target_bytes = parts.uri.path_and_query().map_or(0, |it| it.as_str().len());
    if target_bytes > bounds.uri_bytes_max {
        return Err(URI_TOO_LONG);
    }
    if field_count(&parts.headers) > bounds.fields_max {
        return Err(TOO_MANY_FIELDS);
    }
    let mut expects_continue = false;
    for value in parts.headers.get_all(EXPECT) {
        expects_continue |= http1::head::expects_continue(value.as_bytes())?;
    }
    // h2 has checked that it is a number and compares it with what comes.
    let length = parts.headers.get(CONTENT_LENGTH);
    Ok(Announced {
        length: length.and_then(|value| value.to_str().ok()?.parse().ok()),
        expects_continue,
    })
}

/// Field lines as HTTP/1.1 would have them: a client may send one `Cookie` in crumbs, which count
/// as the one field that they make up (RFC 9113, section 8.2.3).
fn field_count(fields: &HeaderMap) -> usize {
    let crumbs = fields.get_all(COOKIE).iter().count();
    fields.len() - crumbs.saturating_sub(1)
}

/// What h2 lets pass of what RFC 9113, sections 8.2.1 and 8.3.1, call malformed.
pub fn is_well_formed(parts: &Parts) -> bool {
    has_valid_path(parts)
        && parts.uri.scheme_str() != Some("")
        && has_one_host(parts)
        && parts.headers.keys().all(is_token)
        && parts.headers.values().all(is_trimmed)
}

/// Every request but CONNECT, and `OPTIONS *`, has a path that begins with a slash.
fn has_valid_path(parts: &Parts) -> bool {
    let path = parts.uri.path_and_query().map_or("", |it| it.as_str());
    match parts.method {
        http::Method::CONNECT => path.is_empty() && parts.uri.authority().is_some(),
        http::Method::OPTIONS if path == "*" => true,
        _ => path.starts_with('/'),
    }
}

/// Whether it names at most one host, perhaps twice alike; by the rules of HTTP/1.1's Host, which
/// knows no user. [`check`] answers a request that names none.
fn has_one_host(parts: &Parts) -> bool {
    let authority = parts.uri.authority().map(|it| it.as_str().as_bytes());
    let mut hosts = parts.headers.get_all(HOST).iter();
    let host = hosts.next().map(HeaderValue::as_bytes);
    let Some(name) = authority.or(host) else {
        return true;
    };
    hosts.next().is_none()
        && is_host(name)
        && host.is_none_or(|host| host.eq_ignore_ascii_case(name))
}

/// The `http` crate checks all of RFC 9110, section 5.6.2, but takes the quote for a letter.
fn is_token(name: &HeaderName) -> bool {
    !name.as_str().contains('"')
}

/// No white space around it, which the reader behind us might take for a part of it.
fn is_trimmed(value: &HeaderValue) -> bool {
    let is_space = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    !is_space(value.as_bytes().first()) && !is_space(value.as_bytes().last())
}

const NO_HOST: Malformed = Malformed::bad("the request has neither :authority nor Host");

const URI_TOO_LONG: Malformed = Malformed::new(
    ErrorCode::UriTooLong,
    "the request's target is longer than limits.max_uri",
);

const TOO_MANY_FIELDS: Malformed = Malformed::new(
    ErrorCode::HeadersTooLarge,
    "the request has more fields than limits.max_headers",
);

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(method: &str, uri: &str, fields: &[(&str, &str)]) -> Parts {
        let mut builder = http::Request::builder().method(method).uri(uri);
        for (name, value) in fields {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap().into_parts().0
    }

    #[test]
    fn a_head_reads_like_that_of_http1() {
        let parts = parts("POST", "https://here:1/a?b=c", &[("x-y", "z")]);
        let fields = fields(&parts);
        let request = request(&parts, &fields);
        assert_eq!(request.method, Method::Post);
        assert_eq!((request.path, request.query), ("/a", Some("b=c")));
        assert_eq!(request.header("Host"), Some("here:1"));
        assert_eq!(request.host(), Some("here:1"));
        assert_eq!(request.header("X-Y"), Some("z"));
    }

    #[test]
    fn a_host_field_is_kept_as_it_is() {
        let parts = parts("GET", "https://here/", &[("host", "there")]);
        let fields = fields(&parts);
        assert_eq!(fields.len(), 1);
        assert_eq!(request(&parts, &fields).header("host"), Some("there"));
    }

    #[test]
    fn bounds_are_those_of_http1() {
        let bounds = Bounds {
            uri_bytes_max: 4,
            fields_max: 1,
            ..Bounds::default()
        };
        let code = |parts: &Parts| check(parts, &bounds).unwrap_err().code;
        assert_eq!(
            code(&parts("GET", "http://h/abcd", &[])),
            ErrorCode::UriTooLong
        );
        let two = [("a", "1"), ("b", "2")];
        assert_eq!(
            code(&parts("GET", "http://h/", &two)),
            ErrorCode::HeadersTooLarge
        );
        // A cookie in crumbs is one field, and no other field is.
        let crumbs = [("cookie", "a=1"), ("cookie", "b=2"), ("cookie", "c=3")];
        assert!(check(&parts("GET", "http://h/", &crumbs), &bounds).is_ok());
        let beside = [crumbs[0], crumbs[1], ("a", "1")];
        assert_eq!(
            code(&parts("GET", "http://h/", &beside)),
            ErrorCode::HeadersTooLarge
        );
        let doubled = [("a", "1"), ("a", "2")];
        assert_eq!(
            code(&parts("GET", "http://h/", &doubled)),
            ErrorCode::HeadersTooLarge
        );
        let list = [("expect", "100-continue, 100-continue")];
        assert!(
            check(&parts("POST", "http://h/", &list), &bounds)
                .unwrap()
                .expects_continue
        );
        let empty = [("expect", "")];
        assert!(
            !check(&parts("POST", "http://h/", &empty), &bounds)
                .unwrap()
                .expects_continue
        );
        let odd = [("expect", "a miracle")];
        assert_eq!(
            code(&parts("GET", "http://h/", &odd)),
            ErrorCode::ExpectationFailed
        );
        let expecting = parts("POST", "http://h/abc", &[("expect", "100-Continue")]);
        let announced = check(&expecting, &bounds).unwrap();
        assert!(announced.expects_continue && announced.length.is_none());
        let long = parts("POST", "http://h/", &[("content-length", "17")]);
        assert_eq!(check(&long, &bounds).unwrap().length, Some(17));
    }

    #[test]
    fn a_path_begins_with_a_slash() {
        let host = [("host", "h")];
        assert!(is_well_formed(&parts("GET", "/", &host)));
        assert!(is_well_formed(&parts("OPTIONS", "*", &host)));
        assert!(!is_well_formed(&parts("GET", "*", &host)));
        assert!(!is_well_formed(&parts("GET", "here:1", &host)));
        assert!(is_well_formed(&parts("CONNECT", "here:1", &[])));
        assert!(!is_well_formed(&parts("CONNECT", "http://here:1/", &[])));
    }

    #[test]
    fn some_requests_that_cannot_be_served_are_answered() {
        let bounds = Bounds::default();
        let code = |parts: &Parts| check(parts, &bounds).unwrap_err().code;
        assert_eq!(code(&parts("OPTIONS", "/", &[])), ErrorCode::MalformedHttp);
        assert_eq!(code(&parts("OPTIONS", "*", &[])), ErrorCode::MalformedHttp);
        let connect = parts("CONNECT", "here:1", &[]);
        assert_eq!(code(&connect), ErrorCode::NotImplemented);
    }

    #[test]
    fn a_request_names_one_host() {
        let is_good = |uri: &str, hosts: &[&str]| {
            let fields: Vec<_> = hosts.iter().map(|host| ("host", *host)).collect();
            is_well_formed(&parts("GET", uri, &fields))
        };
        assert!(is_good("http://here/", &[]));
        assert!(is_good("http://here/", &["HERE"]));
        assert!(is_good("/", &["here:80"]));
        assert!(is_good("/", &[]), "it is answered");
        assert!(!is_good("/", &["here", "here"]));
        assert!(!is_good("/", &["here/there"]));
        assert!(!is_good("http://here/", &["there"]));
        assert!(!is_good("http://user@here/", &[]));
    }

    #[test]
    fn a_name_has_no_quote() {
        let mut parts = parts("GET", "/", &[("host", "h")]);
        assert!(is_well_formed(&parts));
        let name = HeaderName::from_lowercase(b"x\"").expect("it passes there");
        parts.headers.insert(name, HeaderValue::from_static("y"));
        assert!(!is_well_formed(&parts));
    }

    #[test]
    fn values_have_no_white_space_around_them() {
        for (value, good) in [("a b", true), ("", true), (" a", false), ("a\t", false)] {
            let fields = [("host", "h"), ("x", value)];
            assert_eq!(
                is_well_formed(&parts("GET", "/", &fields)),
                good,
                "{value:?}"
            );
        }
    }
}
