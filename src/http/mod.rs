//! HTTP without I/O: bytes in, events out; no socket, no thread, no clock.
//!
//! Every protocol turns its input into a [`Request`], and the service responds through a
//! [`ResponseSink`]. HTTP/1.1 is in [`http1`]; each further protocol has its own `ResponseSink`.

pub mod compress;
mod fields;
pub mod http1;
pub mod http2;
pub mod negotiate;
pub mod origin;
pub mod retry_after;
pub mod sniff;
pub mod sse;
#[cfg(test)]
pub mod testing;

pub use fields::Fields;

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
}

/// The head of a response, without the fields that the protocol itself makes (length, transfer
/// coding, connection, date).
#[derive(Clone, Copy, Debug)]
pub struct ResponseHead<'a> {
    pub status: u16,
    pub content_type: Option<&'static str>,
    pub headers: &'a Fields,
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
