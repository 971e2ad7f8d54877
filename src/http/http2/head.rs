//! A request's head: the rules of RFC 9113, section 8, for a list of fields, and the form that all
//! protocols share.
//!
//! [`Head::read`] refuses malformed heads, which are errors of the stream. [`check`] refuses, with
//! a response, well-formed heads that cannot be served: they are larger than the configuration
//! allows, name no host, or are CONNECT. [`are_trailers`] checks the fields behind a body.

use crate::error::ErrorCode;
use crate::http::http1::target::{CONNECT_IS_FOR_PROXIES, is_host};
use crate::http::http1::{self, Bounds, Malformed, is_token_byte, is_value_byte};
use crate::http::{Method, Request, Version};

use super::hpack::FieldList;

/// The fields of a request.
#[derive(Debug, Default)]
pub struct Head {
    list: FieldList,
    /// The places of the pseudo-fields in the list.
    method: Option<usize>,
    scheme: Option<usize>,
    authority: Option<usize>,
    path: Option<usize>,
    /// The number of pseudo-fields, which come first.
    pseudo_fields: usize,
    content_length: Option<u64>,
}

/// Facts of a head that are not in the request itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Announced {
    /// The body's length, if the peer has announced it.
    pub length: Option<u64>,
    /// The client waits for `100 Continue` before it sends the body.
    pub expects_continue: bool,
}

impl Head {
    /// Returns the head that consists of these fields; `None` if they are malformed. Does not
    /// complain about fields that are missing because the list was too long: [`check`] refuses that
    /// request.
    pub fn read(list: FieldList) -> Option<Head> {
        let mut head = Head::default();
        let mut host = None;
        for (at, (name, value)) in list.iter().enumerate() {
            if name.first() == Some(&b':') {
                // After another field, or a second time, it is malformed (section 8.3).
                let place = head.pseudo_field(name)?;
                if place.replace(at).is_some() || head.pseudo_fields != at {
                    return None;
                }
                head.pseudo_fields += 1;
                continue;
            }
            if !is_field(name, value) {
                return None;
            }
            match name {
                b"content-length" => head.add_content_length(value)?,
                b"host" if host.replace(value).is_some() => return None,
                _ => {}
            }
        }
        let is_good = list.is_oversized() || is_request(&head, &list, host);
        is_good.then_some(Head { list, ..head })
    }

    fn pseudo_field(&mut self, name: &[u8]) -> Option<&mut Option<usize>> {
        match name {
            b":method" => Some(&mut self.method),
            b":scheme" => Some(&mut self.scheme),
            b":authority" => Some(&mut self.authority),
            b":path" => Some(&mut self.path),
            _ => None,
        }
    }

    /// RFC 9110, section 8.6: digits, and the same number if the field occurs twice.
    fn add_content_length(&mut self, value: &[u8]) -> Option<()> {
        if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
            return None;
        }
        let length = std::str::from_utf8(value).ok()?.parse().ok()?;
        let before = self.content_length.replace(length);
        before.is_none_or(|before| before == length).then_some(())
    }

    /// Returns the bytes that the body must have, if the peer has announced them.
    pub fn content_length(&self) -> Option<u64> {
        self.content_length
    }

    pub fn is_of_method(&self, method: &str) -> bool {
        self.pseudo_value(self.method) == method
    }

    fn pseudo_value(&self, at: Option<usize>) -> &str {
        let value = at.and_then(|at| self.list.get(at)).map(|(_, value)| value);
        text(value.unwrap_or_default())
    }

    /// Returns the fields without pseudo-fields.
    fn regular(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.list.iter().skip(self.pseudo_fields)
    }

    fn authority(&self) -> Option<&str> {
        self.authority.map(|at| self.pseudo_value(Some(at)))
    }

    /// Returns the field lines in the form that requests use.
    pub fn fields(&self) -> Vec<httparse::Header<'_>> {
        let mut fields = Vec::with_capacity(self.list.len() + 1);
        // RFC 9113, section 8.3.1: `:authority` stands for Host.
        if let Some(authority) = self.authority()
            && !self.regular().any(|(name, _)| name == b"host")
        {
            fields.push(httparse::Header {
                name: "host",
                value: authority.as_bytes(),
            });
        }
        fields.extend(self.regular().map(|(name, value)| httparse::Header {
            name: text(name),
            value,
        }));
        fields
    }

    /// Returns the request of this head and its [`fields`](Head::fields).
    pub fn request<'a>(&'a self, fields: &'a [httparse::Header<'a>]) -> Request<'a> {
        let target = self.pseudo_value(self.path);
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (target, None),
        };
        Request {
            method: Method::from_token(self.pseudo_value(self.method)),
            authority: self.authority(),
            path,
            query,
            version: Version::Http2,
            headers: fields,
        }
    }

    /// Returns the memory that it holds.
    pub fn memory_bytes(&self) -> usize {
        self.list.memory_bytes()
    }

    /// Returns the buffers, for the next head.
    pub fn into_list(self) -> FieldList {
        self.list
    }
}

/// Names are tokens, and [`is_request`] accepts only pseudo-fields of ASCII.
fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default()
}

/// RFC 9113, sections 8.3.1 and 8.5.
fn is_request(head: &Head, list: &FieldList, host: Option<&[u8]>) -> bool {
    let value = |at: Option<usize>| at.and_then(|at| list.get(at)).map(|(_, value)| value);
    let Some(method) = value(head.method) else {
        return false;
    };
    let authority = value(head.authority);
    let has_target = match (value(head.scheme), value(head.path)) {
        (None, None) => method == b"CONNECT" && authority.is_some(),
        (Some(scheme), Some(path)) => {
            method != b"CONNECT" && is_scheme(scheme) && is_path(method, path)
        }
        _ => false,
    };
    !method.is_empty()
        && method.iter().all(|&byte| is_token_byte(byte))
        && has_target
        && is_one_host(authority, host)
}

/// RFC 3986, section 3.1.
fn is_scheme(scheme: &[u8]) -> bool {
    let is_further = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.');
    scheme.first().is_some_and(u8::is_ascii_alphabetic) && scheme.iter().all(is_further)
}

/// Accepts a path with a query, by the rules of HTTP/1's target; or `*`, for the server itself.
fn is_path(method: &[u8], path: &[u8]) -> bool {
    let is_of_server = method == b"OPTIONS" && path == b"*";
    let is_good = |byte: &u8| byte.is_ascii_graphic() && *byte != b'#';
    is_of_server || (path.first() == Some(&b'/') && path.iter().all(is_good))
}

/// Accepts at most one host, perhaps named in both places, by the rules of HTTP/1's Host, which
/// allows no user. [`check`] refuses a request that names none.
fn is_one_host(authority: Option<&[u8]>, host: Option<&[u8]>) -> bool {
    match (authority, host) {
        (Some(authority), Some(host)) => is_host(authority) && authority.eq_ignore_ascii_case(host),
        (Some(name), None) | (None, Some(name)) => is_host(name),
        (None, None) => true,
    }
}

/// Returns whether the fields behind a body are well formed: none of them is a pseudo-field.
pub fn are_trailers(list: &FieldList) -> bool {
    list.iter().all(|(name, value)| is_field(name, value))
}

/// RFC 9113, sections 8.2.1 and 8.2.2.
fn is_field(name: &[u8], value: &[u8]) -> bool {
    let is_name_byte = |&byte: &u8| is_token_byte(byte) && !byte.is_ascii_uppercase();
    let is_space = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    !name.is_empty()
        && name.iter().all(is_name_byte)
        && value.iter().all(|&byte| is_value_byte(byte))
        && !is_space(value.first())
        && !is_space(value.last())
        && !is_connection_specific(name, value)
}

fn is_connection_specific(name: &[u8], value: &[u8]) -> bool {
    match name {
        b"connection" | b"keep-alive" | b"proxy-connection" | b"transfer-encoding" | b"upgrade" => {
            true
        }
        b"te" => !value.eq_ignore_ascii_case(b"trailers"),
        _ => false,
    }
}

/// Refuses, with a response, a head that is larger than the configuration allows or names no host
/// (a balancer's health check may name none, and learns more from a 400 than from a reset), and
/// CONNECT.
pub fn check(head: &Head, bounds: &Bounds) -> Result<Announced, Malformed> {
    if head.list.is_oversized() {
        return Err(FIELDS_TOO_LONG);
    }
    if head.is_of_method("CONNECT") {
        return Err(CONNECT_IS_FOR_PROXIES);
    }
    if head.pseudo_value(head.path).len() > bounds.uri_bytes_max {
        return Err(URI_TOO_LONG);
    }
    let (mut count, mut has_cookie, mut has_host) = (0, false, head.authority.is_some());
    let mut expects_continue = false;
    for (name, value) in head.regular() {
        count += 1;
        match name {
            // One `Cookie` may come in crumbs, which count as one field (RFC 9113, section 8.2.3).
            b"cookie" if std::mem::replace(&mut has_cookie, true) => count -= 1,
            b"expect" => expects_continue |= http1::head::expects_continue(value)?,
            b"host" => has_host = true,
            _ => {}
        }
    }
    if !has_host {
        return Err(NO_HOST);
    }
    if count > bounds.fields_max {
        return Err(TOO_MANY_FIELDS);
    }
    Ok(Announced {
        length: head.content_length,
        expects_continue,
    })
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

const FIELDS_TOO_LONG: Malformed = Malformed::new(
    ErrorCode::HeadersTooLarge,
    "the request's fields are longer than 16 KiB together",
);

#[cfg(test)]
mod tests {
    use super::super::hpack::{Decoder, encode};
    use super::*;
    use crate::limits::http2 as limits;

    fn list(fields: &[(&str, &str)]) -> FieldList {
        let (mut block, mut list) = (Vec::new(), FieldList::default());
        for (name, value) in fields {
            encode::field(&mut block, name, value.as_bytes());
        }
        Decoder::default().decode(&block, &mut list).unwrap();
        list
    }

    fn head(method: &str, path: &str, fields: &[(&str, &str)]) -> Option<Head> {
        let pseudo = [(":method", method), (":scheme", "http"), (":path", path)];
        Head::read(list(&[&pseudo[..], fields].concat()))
    }

    fn good(method: &str, path: &str, fields: &[(&str, &str)]) -> Head {
        head(method, path, fields).expect("it is well formed")
    }

    #[test]
    fn a_head_reads_like_that_of_http1() {
        let head = good("POST", "/a?b=c", &[(":authority", "here:1"), ("x-y", "z")]);
        let fields = head.fields();
        let request = head.request(&fields);
        assert_eq!(request.method, Method::Post);
        assert_eq!((request.path, request.query), ("/a", Some("b=c")));
        assert_eq!(request.header("Host"), Some("here:1"));
        assert_eq!(request.host(), Some("here:1"));
        assert_eq!(request.header("X-Y"), Some("z"));
    }

    #[test]
    fn a_host_field_is_kept_as_it_is() {
        let head = good("GET", "/", &[(":authority", "here"), ("host", "HERE")]);
        let fields = head.fields();
        assert_eq!(fields.len(), 1);
        assert_eq!(head.request(&fields).header("host"), Some("HERE"));
    }

    #[test]
    fn bounds_are_those_of_http1() {
        let bounds = Bounds {
            uri_bytes_max: 4,
            fields_max: 1,
            ..Bounds::default()
        };
        let host = (":authority", "h");
        let code = |path: &str, fields: &[(&str, &str)]| {
            let head = good("POST", path, &[&[host], fields].concat());
            check(&head, &bounds).map_err(|malformed| malformed.code)
        };
        assert_eq!(code("/abcd", &[]), Err(ErrorCode::UriTooLong));
        let two = [("a", "1"), ("b", "2")];
        assert_eq!(code("/", &two), Err(ErrorCode::HeadersTooLarge));
        // The crumbs of a cookie count as one field; other fields of the same name do not.
        let crumbs = [("cookie", "a=1"), ("cookie", "b=2"), ("cookie", "c=3")];
        assert!(code("/", &crumbs).is_ok());
        let beside = [crumbs[0], crumbs[1], ("a", "1")];
        assert_eq!(code("/", &beside), Err(ErrorCode::HeadersTooLarge));
        let doubled = [("a", "1"), ("a", "2")];
        assert_eq!(code("/", &doubled), Err(ErrorCode::HeadersTooLarge));
        let list = [("expect", "100-continue, 100-continue")];
        assert!(code("/", &list).unwrap().expects_continue);
        assert!(!code("/", &[("expect", "")]).unwrap().expects_continue);
        let odd = [("expect", "a miracle")];
        assert_eq!(code("/", &odd), Err(ErrorCode::ExpectationFailed));
        let announced = code("/abc", &[("expect", "100-Continue")]).unwrap();
        assert!(announced.expects_continue && announced.length.is_none());
        let long = code("/", &[("content-length", "17")]).unwrap();
        assert_eq!(long.length, Some(17));
    }

    /// Mutation: `check` without `is_oversized`.
    #[test]
    fn a_list_that_is_too_long_is_refused_with_a_response() {
        let value = "b".repeat(limits::HEADER_LIST_BYTES_MAX as usize);
        for fields in [&[("x", value.as_str())][..], &[(":authority", &value)]] {
            let head = good("GET", "/", fields);
            let refused = check(&head, &Bounds::default());
            assert_eq!(
                refused.map_err(|it| it.code),
                Err(ErrorCode::HeadersTooLarge)
            );
        }
    }

    #[test]
    fn a_path_begins_with_a_slash() {
        let host = [("host", "h")];
        assert!(head("GET", "/", &host).is_some());
        assert!(head("OPTIONS", "*", &host).is_some());
        for path in [
            "*",
            "",
            "here:1",
            "http://h/",
            "/a b",
            "/a\x01",
            "/a#b",
            "/\u{e9}",
        ] {
            assert!(head("GET", path, &host).is_none(), "{path:?}");
        }
    }

    #[test]
    fn a_request_has_its_pseudo_fields_once_and_first() {
        let (method, scheme) = ((":method", "GET"), (":scheme", "http"));
        let (path, host) = ((":path", "/"), (":authority", "h"));
        let is_good = |fields: &[(&str, &str)]| Head::read(list(fields)).is_some();
        assert!(is_good(&[host, path, scheme, method]));
        for bad in [
            &[][..],
            &[scheme, path, host],
            &[method, path, host],
            &[method, scheme, host],
            &[method, scheme, path, host, host],
            &[method, scheme, path, ("x", "y"), host],
            &[method, scheme, path, host, (":protocol", "websocket")],
            &[method, scheme, path, host, (":status", "200")],
            &[("x", "y"), method, scheme, path, host],
            &[(":method", "G T"), scheme, path, host],
            &[(":method", ""), scheme, path, host],
            &[method, (":scheme", ""), path, host],
            &[method, (":scheme", "ht tp"), path, host],
            &[(":method", "CONNECT"), scheme, path, host],
            &[(":method", "CONNECT")],
        ] {
            assert!(!is_good(bad), "{bad:?}");
        }
        assert!(is_good(&[(":method", "CONNECT"), (":authority", "h:1")]));
    }

    #[test]
    fn some_requests_that_cannot_be_served_are_answered() {
        let bounds = Bounds::default();
        let code = |head: &Head| check(head, &bounds).unwrap_err().code;
        assert_eq!(code(&good("OPTIONS", "/", &[])), ErrorCode::MalformedHttp);
        assert_eq!(code(&good("OPTIONS", "*", &[])), ErrorCode::MalformedHttp);
        let connect = list(&[(":method", "CONNECT"), (":authority", "here:1")]);
        let connect = Head::read(connect).unwrap();
        assert_eq!(code(&connect), ErrorCode::NotImplemented);
    }

    #[test]
    fn a_request_names_one_host() {
        let is_good = |authority: Option<&str>, hosts: &[&str]| {
            let authority = authority.map(|name| (":authority", name));
            let hosts = hosts.iter().map(|host| ("host", *host));
            let fields: Vec<_> = authority.into_iter().chain(hosts).collect();
            head("GET", "/", &fields).is_some()
        };
        assert!(is_good(Some("here"), &[]));
        assert!(is_good(Some("here"), &["HERE"]));
        assert!(is_good(None, &["here:80"]));
        assert!(is_good(None, &[]), "it is answered");
        assert!(!is_good(None, &["here", "here"]));
        assert!(!is_good(None, &["here/there"]));
        assert!(!is_good(Some("here"), &["there"]));
        assert!(!is_good(Some("user@here"), &[]));
        assert!(!is_good(Some(""), &[]));
    }

    /// Mutations: each part of `is_field`.
    #[test]
    fn names_and_values_hold_what_they_may() {
        for (name, value, expected) in [
            ("x", "a b\tc", true),
            ("x", "", true),
            ("x", "\u{e9}", true),
            ("te", "trailers", true),
            ("te", "gzip", false),
            ("x", " a", false),
            ("x", "a\t", false),
            ("x", "a\nb", false),
            ("x", "a\0b", false),
            ("x", "a\x7f", false),
            ("", "a", false),
            ("X", "a", false),
            ("x y", "a", false),
            ("x\"", "a", false),
            ("x\u{e9}", "a", false),
            ("connection", "close", false),
            ("transfer-encoding", "chunked", false),
            ("content-length", "12", true),
            ("content-length", "+5", false),
            ("content-length", "", false),
            ("content-length", "5,5", false),
            ("content-length", "99999999999999999999", false),
        ] {
            let found = head("GET", "/", &[("host", "h"), (name, value)]);
            assert_eq!(found.is_some(), expected, "{name:?}: {value:?}");
        }
        let twice = |second| {
            let lengths = [("content-length", "5"), ("content-length", second)];
            head("GET", "/", &lengths).is_some()
        };
        assert!(twice("5") && !twice("6"));
    }

    /// Mutation: `are_trailers` is always true.
    #[test]
    fn trailers_hold_no_pseudo_field() {
        assert!(are_trailers(&list(&[])));
        assert!(are_trailers(&list(&[("x-a", "1")])));
        assert!(!are_trailers(&list(&[("x-a", "1"), (":path", "/")])));
        assert!(!are_trailers(&list(&[("connection", "close")])));
    }
}
