//! HTTP without I/O: bytes in, events out; no socket, no thread, no clock.
//!
//! Every protocol turns its input into a [`Request`], and the service responds through a
//! [`ResponseSink`]. HTTP/1.1 is in [`http1`]; each further protocol has its own `ResponseSink`.

use std::ops::Range;

pub mod compress;
pub mod http1;
pub mod http2;
pub mod negotiate;
pub mod origin;
pub mod sniff;
pub mod sse;
#[cfg(test)]
pub mod testing;

/// A request method. Methods that are not listed here are refused by every route with 405 or 501.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    Get,
    Head,
    Post,
    Put,
    Delete,
    Options,
    Patch,
    /// A token that RFC 9110 allows and that is not implemented here.
    Other,
}

impl Method {
    pub const fn as_str(self) -> &'static str {
        match self {
            Method::Get => "GET",
            Method::Head => "HEAD",
            Method::Post => "POST",
            Method::Put => "PUT",
            Method::Delete => "DELETE",
            Method::Options => "OPTIONS",
            Method::Patch => "PATCH",
            Method::Other => "OTHER",
        }
    }

    pub fn from_token(token: &str) -> Method {
        match token {
            "GET" => Method::Get,
            "HEAD" => Method::Head,
            "POST" => Method::Post,
            "PUT" => Method::Put,
            "DELETE" => Method::Delete,
            "OPTIONS" => Method::Options,
            "PATCH" => Method::Patch,
            _ => Method::Other,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    Http10,
    Http11,
    Http2,
}

/// The head of a request, borrowed from the bytes it came in.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    pub method: Method,
    /// The host in the target itself: from the absolute form of HTTP/1.1, or HTTP/2's `:authority`.
    pub authority: Option<&'a str>,
    /// The target's path, starting with `/`, not decoded; or `*` of `OPTIONS *`.
    pub path: &'a str,
    /// The part after the first `?`, without it.
    pub query: Option<&'a str>,
    pub version: Version,
    /// In the order and in the case in which they came.
    pub headers: &'a [httparse::Header<'a>],
}

impl<'a> Request<'a> {
    /// Returns the first field of this name (compared without case), if it is visible ASCII.
    pub fn header(&self, name: &str) -> Option<&'a str> {
        let field = self
            .headers
            .iter()
            .find(|field| field.name.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(field.value)
            .ok()
            .filter(|value| value.is_ascii())
    }

    /// Returns the requested `host[:port]`: if there is an authority, the `Host` field is ignored
    /// (RFC 9112, section 3.2.2). HTTP/1.0 may name none.
    pub fn host(&self) -> Option<&'a str> {
        self.authority.or_else(|| self.header("host"))
    }

    /// Returns the value of a query parameter, not decoded.
    pub fn query_value(&self, name: &str) -> Option<&'a str> {
        self.query?
            .split('&')
            .find_map(|pair| match pair.split_once('=') {
                Some((key, value)) if key == name => Some(value),
                None if pair == name => Some(""),
                _ => None,
            })
    }
}

/// The head of a response, without the fields that the protocol itself makes (length, transfer
/// coding, connection, date).
#[derive(Clone, Copy, Debug)]
pub struct ResponseHead<'a> {
    pub status: u16,
    pub content_type: Option<&'static str>,
    pub headers: &'a Fields,
}

/// Field lines of a response, in one reusable buffer.
///
/// Names are lower case and values are visible ASCII, space or tab: [`Fields::push`] checks it. The
/// buffer holds the lines as HTTP/1.1 sends them, so that one copy takes them all.
#[derive(Clone, Debug, Default)]
pub struct Fields {
    /// `name: value CRLF`, once per field.
    lines: Vec<u8>,
    /// Each field's name, and where its line ends in `lines`.
    ends: Vec<(&'static str, u32)>,
}

const AFTER_NAME: &[u8] = b": ";
const AFTER_VALUE: &[u8] = b"\r\n";

impl Fields {
    pub const fn new() -> Fields {
        Fields {
            lines: Vec::new(),
            ends: Vec::new(),
        }
    }

    pub fn clear(&mut self) {
        self.lines.clear();
        self.ends.clear();
    }

    /// Adds a field. Bytes that would break the framing (CR, LF, NUL and other controls) become
    /// spaces: a value may come from outside, and response splitting must be impossible here.
    #[inline]
    pub fn push(&mut self, name: &'static str, value: &str) {
        debug_assert!(
            name.bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        );
        self.lines.extend_from_slice(name.as_bytes());
        self.lines.extend_from_slice(AFTER_NAME);
        let value_start = self.lines.len();
        self.lines.extend_from_slice(value.as_bytes());
        for byte in &mut self.lines[value_start..] {
            if *byte < b' ' && *byte != b'\t' || *byte == 0x7f {
                *byte = b' ';
            }
        }
        self.lines.extend_from_slice(AFTER_VALUE);
        self.ends.push((name, self.lines.len() as u32));
    }

    /// Adds a field whose value is a decimal number.
    pub fn push_number(&mut self, name: &'static str, value: u64) {
        self.push(name, itoa::Buffer::new().format(value));
    }

    /// Returns all fields as HTTP/1.1 sends them, each with its line end.
    pub fn lines(&self) -> &[u8] {
        &self.lines
    }

    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &[u8])> {
        self.spans().map(|(name, span)| (name, &self.lines[span]))
    }

    /// Yields each name, and the range of its value in [`Fields::lines`].
    pub fn spans(&self) -> impl Iterator<Item = (&'static str, Range<usize>)> {
        let mut start = 0;
        self.ends.iter().map(move |&(name, end)| {
            let end = end as usize;
            let value = start + name.len() + AFTER_NAME.len()..end - AFTER_VALUE.len();
            start = end;
            (name, value)
        })
    }
}

/// The receiver of a response, whatever the protocol. The service calls either `respond`, or
/// `start`, any number of `data` and `finish`. No call blocks; everything is queued.
pub trait ResponseSink {
    /// Sends a whole response at once.
    fn respond(&mut self, answer: &ResponseHead<'_>, body: &[u8]);

    /// Sends the head of a response that comes in pieces.
    fn start(&mut self, answer: &ResponseHead<'_>);

    /// Sends one piece, flushed at the end of the turn.
    fn data(&mut self, bytes: &[u8]);

    /// Ends a response that came in pieces.
    fn finish(&mut self) {
        self.finish_with(&Fields::new());
    }

    /// Like `finish`, with trailers after the last piece (RFC 9110, section 6.5): gRPC's status.
    fn finish_with(&mut self, trailers: &Fields);

    /// Returns whether more may be produced now: false above the output queue's high mark.
    fn has_room(&self) -> bool;
}
