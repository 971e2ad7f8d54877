//! Reads a request's head, the request line and the fields, once it is whole.
//!
//! This file owns the meaning of the head and keeps no byte of it. `httparse` does the parsing. It
//! accepts what clients actually send, which is more than RFC 9112 allows. The [`scanner`] has
//! refused some of that already (bare LF, empty lines); the rest is refused here:
//!
//! 1. The head that [`parse`] reads ends exactly where the scanner found its end.
//! 2. HTTP/1.1 names its host exactly once; in any version, a named host is valid and named once.
//! 3. Method, target, version, names and values hold only bytes that their grammar allows.
//!
//! [`scanner`]: super::scanner

use std::mem::MaybeUninit;

use super::framing::FramingFields;
use super::{Framing, Malformed, target};
use crate::error::ErrorCode;
use crate::http::{Method, Request, Version};
use crate::limits::http1 as limits;

pub(super) const TOO_MANY: Malformed = Malformed::new(
    ErrorCode::HeadersTooLarge,
    "the request has more fields than limits.max_headers",
);

/// Room for a head's fields on the stack, uninitialised until `httparse` fills it.
pub struct Storage<'a>([MaybeUninit<httparse::Header<'a>>; limits::FIELDS_MAX]);

impl Storage<'_> {
    pub const fn new() -> Self {
        Storage([const { MaybeUninit::uninit() }; limits::FIELDS_MAX])
    }
}

impl Default for Storage<'_> {
    fn default() -> Self {
        Storage::new()
    }
}

/// A parsed and valid head.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    pub request: Request<'a>,
    pub framing: Framing,
    /// Whether the client wants the connection to go on after the response.
    pub keep_alive: bool,
    /// Whether the client waits for `100 Continue` before it sends the body.
    pub expects_continue: bool,
    /// Bytes of the head, including the empty line at its end.
    pub len: usize,
}

/// Parses a head. `bytes` must be exactly the head that the scanner found within its bounds, so
/// that a second parse succeeds if the first did.
pub fn parse<'a>(bytes: &'a [u8], storage: &'a mut Storage<'a>) -> Result<Head<'a>, Malformed> {
    let mut parsed = httparse::Request::new(&mut []);
    match parsed.parse_with_uninit_headers(bytes, &mut storage.0) {
        Ok(httparse::Status::Complete(len)) if len == bytes.len() => {}
        Ok(_) => return Err(Malformed::bad("the head ends in the middle of a line")),
        Err(error) => return Err(explain(error, bytes)),
    }
    let (Some(method), Some(raw_target), Some(minor)) =
        (parsed.method, parsed.path, parsed.version)
    else {
        return Err(Malformed::bad("the request line is incomplete"));
    };
    let version = match minor {
        0 => Version::Http10,
        _ => Version::Http11,
    };
    let target = target::split(method, raw_target)?;
    let fields = ProtocolFields::collect(parsed.headers, version)?;
    Ok(Head {
        request: Request {
            method: Method::from_token(method),
            authority: target.authority,
            path: target.path,
            query: target.query,
            version,
            headers: parsed.headers,
        },
        framing: fields.framing.conclude(version)?,
        keep_alive: fields.keeps_alive(version),
        expects_continue: fields.expects_continue,
        len: bytes.len(),
    })
}

/// The fields that the protocol itself reads, gathered in one pass.
#[derive(Default)]
struct ProtocolFields {
    framing: FramingFields,
    has_host: bool,
    asks_close: bool,
    asks_keep_alive: bool,
    expects_continue: bool,
}

impl ProtocolFields {
    fn collect(
        headers: &[httparse::Header<'_>],
        version: Version,
    ) -> Result<ProtocolFields, Malformed> {
        let mut fields = ProtocolFields::default();
        for header in headers {
            fields.handle_field(header.name, header.value, version)?;
        }
        // HTTP/1.0 does not require Host; if a 1.0 client sends one, it must still be valid.
        if !fields.has_host && version != Version::Http10 {
            return Err(Malformed::bad("the Host field is missing"));
        }
        Ok(fields)
    }

    fn handle_field(
        &mut self,
        name: &str,
        value: &[u8],
        version: Version,
    ) -> Result<(), Malformed> {
        let is = |other: &str| name.eq_ignore_ascii_case(other);
        // The length rules most fields out before a letter is compared.
        match name.len() {
            4 if is("host") => self.handle_host(value),
            6 if is("expect") => self.handle_expect(value, version),
            10 if is("connection") => {
                self.handle_connection(value);
                Ok(())
            }
            14 if is("content-length") => self.framing.handle_content_length(value),
            17 if is("transfer-encoding") => self.framing.handle_transfer_encoding(value),
            _ => Ok(()),
        }
    }

    fn handle_host(&mut self, value: &[u8]) -> Result<(), Malformed> {
        if self.has_host {
            return Err(Malformed::bad("the Host field is repeated"));
        }
        self.has_host = true;
        match target::is_host(value) {
            true => Ok(()),
            false => Err(Malformed::bad(
                "the Host field is malformed; expected host[:port]",
            )),
        }
    }

    /// RFC 9110, section 10.1.1: an expectation in HTTP/1.0 is ignored.
    fn handle_expect(&mut self, value: &[u8], version: Version) -> Result<(), Malformed> {
        if version != Version::Http10 {
            self.expects_continue |= expects_continue(value)?;
        }
        Ok(())
    }

    fn handle_connection(&mut self, value: &[u8]) {
        for option in value.split(|&byte| byte == b',') {
            let option = option.trim_ascii();
            self.asks_close |= option.eq_ignore_ascii_case(b"close");
            self.asks_keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
        }
    }

    /// RFC 9112, section 9.3: `close` wins; 1.1 goes on by default, 1.0 only when asked to.
    fn keeps_alive(&self, version: Version) -> bool {
        !self.asks_close && (version != Version::Http10 || self.asks_keep_alive)
    }
}

/// Reads a value of `Expect`, a list whose elements may be empty (RFC 9110, sections 10.1.1 and
/// 5.6.1). True if it asks for `100 Continue`; any other expectation is 417.
pub fn expects_continue(value: &[u8]) -> Result<bool, Malformed> {
    let elements = value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii);
    let mut expects = false;
    for element in elements.filter(|element| !element.is_empty()) {
        if !element.eq_ignore_ascii_case(b"100-continue") {
            return Err(Malformed::new(
                ErrorCode::ExpectationFailed,
                "unknown expectation in Expect; only 100-continue is supported",
            ));
        }
        expects = true;
    }
    Ok(expects)
}

/// Explains what `httparse` refused, in words that help the sender.
fn explain(error: httparse::Error, bytes: &[u8]) -> Malformed {
    use httparse::Error;
    match error {
        Error::TooManyHeaders => TOO_MANY,
        Error::Version => explain_version(bytes),
        Error::HeaderName => Malformed::bad(
            "a field name is not a token followed at once by a colon, or a line is folded",
        ),
        Error::HeaderValue => Malformed::bad("a field value holds a control byte"),
        Error::NewLine => Malformed::bad("a line of the head does not end with CRLF"),
        Error::Token | Error::Status => {
            Malformed::bad("the request line is not METHOD SP TARGET SP VERSION")
        }
    }
}

/// Distinguishes a version that exists but is not supported from one that does not exist. nginx
/// sends 505 for the former; the daemon's error catalogue uses 501 for HTTP features that it does
/// not support.
fn explain_version(bytes: &[u8]) -> Malformed {
    let line = bytes
        .split(|&byte| byte == b'\r')
        .next()
        .unwrap_or_default();
    let version = line.rsplit(|&byte| byte == b' ').next().unwrap_or_default();
    match version {
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
            if major.is_ascii_digit() && minor.is_ascii_digit() =>
        {
            Malformed::new(
                ErrorCode::NotImplemented,
                "unsupported HTTP version; this port accepts HTTP/1.1, HTTP/1.0 and HTTP/2",
            )
        }
        _ => Malformed::bad("the request line does not end with an HTTP version"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::http1::Bounds;
    use crate::http::http1::scanner::HeadScanner;

    /// Scans and parses the whole head of `text`; `check` gets the result.
    fn read<T>(text: &str, check: impl FnOnce(Head<'_>) -> T) -> Result<T, Malformed> {
        let bounds = Bounds::default();
        let place = HeadScanner::default()
            .poll(text.as_bytes(), &bounds)?
            .expect("the test's head is whole");
        let bytes = &text.as_bytes()[place.start as usize..place.end as usize];
        let mut storage = Storage::new();
        parse(bytes, &mut storage).map(check)
    }

    fn refusal(text: &str) -> ErrorCode {
        match read(text, |_| ()) {
            Ok(()) => panic!("accepted: {text:?}"),
            Err(malformed) => malformed.code,
        }
    }

    #[test]
    fn a_head_is_read_whole() {
        let text = "POST /x?y=1 HTTP/1.1\r\nHost: h:1\r\nX-A:  b c\t\r\nContent-Length: 5\r\n\r\n";
        read(text, |head| {
            assert_eq!(head.request.method, Method::Post);
            assert_eq!((head.request.path, head.request.query), ("/x", Some("y=1")));
            assert_eq!(head.request.version, Version::Http11);
            assert_eq!(head.request.header("x-a"), Some("b c"));
            assert_eq!(head.framing, Framing::Length(5));
            assert!(head.keep_alive && !head.expects_continue);
            assert_eq!(head.len, text.len());
        })
        .unwrap();
    }

    /// Mutation: `Request::host` reads the field alone.
    #[test]
    fn the_targets_authority_counts_for_more_than_the_host_field() {
        for (target, host) in [("/", "there"), ("http://here:1/", "here:1")] {
            let text = format!("GET {target} HTTP/1.1\r\nHost: there\r\n\r\n");
            read(&text, |head| assert_eq!(head.request.host(), Some(host))).unwrap();
        }
    }

    #[test]
    fn connection_and_version_decide_what_is_kept_alive() {
        let cases = [
            ("1.1", "", true),
            ("1.1", "Connection: close\r\n", false),
            ("1.1", "Connection: keep-alive, Close\r\n", false),
            ("1.1", "Connection: x-closed\r\n", true),
            ("1.1", "Connection: upgrade\r\nconnection: CLOSE\r\n", false),
            ("1.0", "", false),
            ("1.0", "Connection: Keep-Alive\r\n", true),
            ("1.0", "Connection: te ,keep-alive\r\n", true),
            ("1.0", "Connection: keep-alive, close\r\n", false),
        ];
        for (version, field, expected) in cases {
            let text = format!("GET / HTTP/{version}\r\nHost: h\r\n{field}\r\n");
            assert_eq!(
                read(&text, |head| head.keep_alive),
                Ok(expected),
                "{text:?}"
            );
        }
    }

    #[test]
    fn expectations() {
        let with = |version: &str, value: &str| {
            let text = format!("POST / HTTP/{version}\r\nHost: h\r\nExpect: {value}\r\n\r\n");
            read(&text, |head| head.expects_continue).map_err(|malformed| malformed.code)
        };
        assert_eq!(with("1.1", "100-Continue"), Ok(true));
        assert_eq!(with("1.1", ""), Ok(false));
        assert_eq!(with("1.1", " ,"), Ok(false));
        assert_eq!(with("1.1", "100-continue, 100-CONTINUE,"), Ok(true));
        assert_eq!(with("1.1", "100-continue\r\nExpect:"), Ok(true));
        let other = Err(ErrorCode::ExpectationFailed);
        assert_eq!(with("1.1", "100-continue;x"), other);
        assert_eq!(with("1.1", "x\r\nExpect: 100-continue"), other);
        assert_eq!(with("1.1", "200-ok"), Err(ErrorCode::ExpectationFailed));
        assert_eq!(
            with("1.1", "100-continue, x"),
            Err(ErrorCode::ExpectationFailed)
        );
        assert_eq!(with("1.0", "100-continue"), Ok(false));
        assert_eq!(with("1.0", "anything"), Ok(false));
    }

    #[test]
    fn unsupported_versions_and_nonsense_are_different_errors() {
        for version in ["HTTP/2.0", "HTTP/1.2", "HTTP/0.9", "HTTP/3.0"] {
            let text = format!("GET / {version}\r\nHost: h\r\n\r\n");
            assert_eq!(refusal(&text), ErrorCode::NotImplemented, "{version}");
        }
        for version in [
            "HTTP/1",
            "http/1.1",
            "HTTP/1.10",
            "HTTP/11",
            "ICAP/1.0",
            "HTTP/1.1 ",
            "",
        ] {
            let text = format!("GET / {version}\r\nHost: h\r\n\r\n");
            assert_eq!(refusal(&text), ErrorCode::MalformedHttp, "{version}");
        }
    }
}
