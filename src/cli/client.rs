//! A small blocking HTTP/1.1 client: one request per connection, over TCP or a Unix socket.
//!
//! Owns the socket and the framing of the response. It exists because no blocking client crate
//! supports Unix sockets, and one code path for both is simpler than two. Only the command line
//! uses it: the daemon's own sockets belong to the reactor.
//!
//! Invariants:
//!  1. A server's response is bounded: head, fields, and the part of a body that is held at once.
//!  2. A body that ends before its framing allows is an error, never a short response.
//!  3. Dropping a [`Response`] closes the connection, which cancels the request.

use std::error::Error;
use std::fmt;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use crate::http::http1::chunked;
use crate::http::http1::response::{self, Framing, ResponseHead};
use crate::http::sse;
use crate::limits::cli as limits;

/// Where a daemon listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// `http://HOST:PORT`: the address to connect to, and the value of `Host`.
    Tcp { address: String, authority: String },
    /// `unix:/PATH`
    Unix(PathBuf),
}

impl Target {
    pub fn parse(text: &str) -> Result<Target, String> {
        if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty()) {
            return match path.starts_with('@') {
                true => Err(
                    "expected unix:/PATH; the daemon does not listen on abstract sockets"
                        .to_owned(),
                ),
                false => Ok(Target::Unix(path.into())),
            };
        }
        let authority = text
            .strip_prefix("http://")
            .map(|rest| rest.trim_end_matches('/'));
        let is_plain = |authority: &&str| {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_[]:%".contains(&byte);
            !authority.is_empty() && authority.bytes().all(plain)
        };
        let Some(authority) = authority.filter(is_plain) else {
            return Err("expected http://HOST:PORT or unix:/PATH".to_owned());
        };
        // An IPv6 address has its own colons, within brackets.
        let has_port = authority
            .rsplit(']')
            .next()
            .is_some_and(|rest| rest.contains(':'));
        let address = match has_port {
            true => authority.to_owned(),
            false => format!("{authority}:80"),
        };
        Ok(Target::Tcp {
            address,
            authority: authority.to_owned(),
        })
    }

    fn authority(&self) -> &str {
        match self {
            Target::Tcp { authority, .. } => authority,
            Target::Unix(_) => "localhost",
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Tcp { authority, .. } => write!(f, "http://{authority}"),
            Target::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A request without a body, or with JSON.
pub struct Request<'a> {
    pub method: &'static str,
    pub path: &'a str,
    pub accept: &'a str,
    /// Visible ASCII, so that it cannot become more than one field.
    pub key: Option<&'a str>,
    pub json: Option<&'a [u8]>,
}

/// Sends the request and receives the head of the response. `patience` bounds each silence of the
/// server.
pub fn send(target: &Target, request: &Request<'_>, patience: Duration) -> io::Result<Response> {
    let mut socket = connect(target, patience)?;
    let mut head = format!(
        "{} {} HTTP/1.1\r\nhost: {}\r\naccept: {}\r\nconnection: close\r\n\
         user-agent: autoglmd/{}\r\n",
        request.method,
        request.path,
        target.authority(),
        request.accept,
        env!("CARGO_PKG_VERSION"),
    );
    if let Some(json) = request.json {
        head.push_str("content-type: application/json\r\n");
        head.push_str(&format!("content-length: {}\r\n", json.len()));
    }
    if let Some(key) = request.key {
        head.push_str(&format!("authorization: Bearer {key}\r\n"));
    }
    head.push_str("\r\n");
    // A server that refuses by the head alone may close before it has read the body: its response
    // is then worth more than our error.
    let sent = socket
        .write_all(head.as_bytes())
        .and_then(|()| socket.write_all(request.json.unwrap_or_default()));
    match (Response::receive(socket), sent) {
        (Err(_), Err(error)) => Err(error),
        (received, _) => received,
    }
}

trait Socket: Read + Write {}

impl<T: Read + Write> Socket for T {}

fn connect(target: &Target, patience: Duration) -> io::Result<Box<dyn Socket>> {
    match target {
        Target::Unix(path) => {
            let socket = UnixStream::connect(path)?;
            socket.set_read_timeout(Some(patience))?;
            Ok(Box::new(socket))
        }
        Target::Tcp { address, .. } => {
            let socket = dial(address)?;
            socket.set_read_timeout(Some(patience))?;
            // Head and body are two writes: with Nagle's algorithm the second would wait for the
            // acknowledgement of the first, which the peer delays by 40 ms.
            socket.set_nodelay(true)?;
            Ok(Box::new(socket))
        }
    }
}

/// Tries each address of a name: `localhost` may be `::1` while the daemon listens on `127.0.0.1`.
fn dial(address: &str) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host name has no address");
    for address in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, limits::CLIENT_CONNECT_TIMEOUT) {
            Ok(socket) => return Ok(socket),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// A response whose head has come; its body is read from it.
pub struct Response {
    pub status: u16,
    pub content_type: String,
    body: Body,
}

impl Response {
    fn receive(mut socket: impl Read + 'static) -> io::Result<Response> {
        let mut buffer = Vec::new();
        loop {
            let head = receive_head(&mut socket, &mut buffer)?;
            buffer.drain(..head.len);
            // RFC 9110, section 15.2: any number of interim responses may come first.
            if head.status >= 200 {
                return Ok(Response {
                    status: head.status,
                    content_type: head.content_type,
                    body: Body::begin(Box::new(socket), head.framing, buffer)?,
                });
            }
        }
    }

    /// Reads the body as a stream of events.
    pub fn into_events(self) -> Events {
        Events {
            response: self,
            reader: sse::Reader::new(),
        }
    }
}

/// The events of a response, in order.
pub struct Events {
    response: Response,
    reader: sse::Reader,
}

impl Events {
    /// Waits for the next event. `None`: the stream has ended.
    pub fn next_event(&mut self) -> io::Result<Option<sse::Event>> {
        let mut piece = [0; limits::CLIENT_BUFFER_BYTES];
        loop {
            if let Some(event) = self.reader.next_event().map_err(nonsense)? {
                return Ok(Some(event));
            }
            match self.response.read(&mut piece) {
                Ok(0) => return Ok(None),
                Ok(count) => self.reader.handle_bytes(&piece[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl Read for Response {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.body.read(out)
    }
}

/// Reads until the buffer holds a whole head.
fn receive_head(socket: &mut impl Read, buffer: &mut Vec<u8>) -> io::Result<ResponseHead> {
    loop {
        if let Some(head) = response::parse(buffer).map_err(nonsense)? {
            return Ok(head);
        }
        if buffer.len() >= limits::CLIENT_HEAD_BYTES_MAX {
            return Err(nonsense("the response's head has no end"));
        }
        let mut piece = [0; 4096];
        match socket.read(&mut piece) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => buffer.extend_from_slice(&piece[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// How much of the body is still to come.
enum Rest {
    Length(u64),
    Chunked(chunked::Decoder),
    UntilClose,
    Finished,
}

/// The body's bytes, without their framing.
struct Body {
    socket: Box<dyn Read>,
    rest: Rest,
    buffer: Vec<u8>,
    /// The decoded bytes: `buffer[next..end]`.
    next: usize,
    end: usize,
}

impl Body {
    /// `received` is the data that came after the head.
    fn begin(socket: Box<dyn Read>, framing: Framing, received: Vec<u8>) -> io::Result<Body> {
        let mut body = Body {
            socket,
            rest: match framing {
                Framing::Empty => Rest::Finished,
                Framing::Length(length) => Rest::Length(length),
                Framing::Chunked => Rest::Chunked(chunked::Decoder::new(usize::MAX)),
                Framing::UntilClose => Rest::UntilClose,
            },
            buffer: received,
            next: 0,
            end: 0,
        };
        body.decode()?;
        Ok(body)
    }

    /// Removes the framing from the buffer's bytes, all of which came from the socket.
    fn decode(&mut self) -> io::Result<()> {
        self.next = 0;
        let length = self.buffer.len();
        self.end = match &mut self.rest {
            Rest::Finished => 0,
            Rest::UntilClose => length,
            Rest::Length(left) => {
                // Bytes after the body are ignored: the connection is closed after it.
                let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(length);
                *left -= taken as u64;
                if *left == 0 {
                    self.rest = Rest::Finished;
                }
                taken
            }
            Rest::Chunked(decoder) => {
                let decoded = decoder.decode(&mut self.buffer, 0, 0);
                let decoded = decoded.map_err(|error| nonsense(error.message))?;
                if decoded.is_finished {
                    self.rest = Rest::Finished;
                }
                decoded.write
            }
        };
        Ok(())
    }

    /// Reads more from the socket. Returns `false` when the body is complete.
    fn fill(&mut self) -> io::Result<bool> {
        if matches!(self.rest, Rest::Finished) {
            return Ok(false);
        }
        self.buffer.resize(limits::CLIENT_BUFFER_BYTES, 0);
        let count = self.socket.read(&mut self.buffer)?;
        self.buffer.truncate(count);
        match (count, &self.rest) {
            (0, Rest::UntilClose) => {
                self.rest = Rest::Finished;
                Ok(false)
            }
            (0, _) => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => self.decode().map(|()| true),
        }
    }
}

impl Read for Body {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        // A piece that is only framing decodes to nothing, and 0 would mean the end.
        while self.next == self.end {
            if !self.fill()? {
                return Ok(0);
            }
        }
        let count = out.len().min(self.end - self.next);
        out[..count].copy_from_slice(&self.buffer[self.next..self.next + count]);
        self.next += count;
        Ok(count)
    }
}

fn nonsense(what: impl Into<Box<dyn Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A socket that returns a few bytes at a time.
    struct Pieces {
        bytes: Vec<u8>,
        size: usize,
        next: usize,
    }

    impl Read for Pieces {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            let count = self.size.min(out.len()).min(self.bytes.len() - self.next);
            out[..count].copy_from_slice(&self.bytes[self.next..self.next + count]);
            self.next += count;
            Ok(count)
        }
    }

    /// Returns the status and body of a response; they must not depend on how the bytes are cut.
    fn receive(bytes: &str) -> Result<(u16, String), io::ErrorKind> {
        let read = |size| -> io::Result<(u16, String)> {
            let pieces = Pieces {
                bytes: bytes.as_bytes().to_vec(),
                size,
                next: 0,
            };
            let mut response = Response::receive(pieces)?;
            let mut text = String::new();
            response.read_to_string(&mut text)?;
            Ok((response.status, text))
        };
        let whole = read(usize::MAX).map_err(|error| error.kind());
        for size in 1..bytes.len() {
            assert_eq!(
                read(size).map_err(|error| error.kind()),
                whole,
                "pieces of {size}"
            );
        }
        whole
    }

    #[test]
    fn each_framing_is_taken_off() {
        let length = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello and more";
        assert_eq!(receive(length), Ok((200, "hello".into())));
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
                       5\r\nhello\r\n1;x=y\r\n!\r\n0\r\nt: u\r\n\r\n";
        assert_eq!(receive(chunked), Ok((200, "hello!".into())));
        assert_eq!(
            receive("HTTP/1.1 503 Busy\r\n\r\nlater"),
            Ok((503, "later".into()))
        );
        assert_eq!(
            receive("HTTP/1.1 204 No Content\r\n\r\n"),
            Ok((204, String::new()))
        );
        let interim = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
        assert_eq!(receive(interim), Ok((200, String::new())));
    }

    #[test]
    fn a_response_that_breaks_off_is_an_error() {
        for cut in [
            "",
            "HTTP/1.1 200 O",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        ] {
            assert_eq!(receive(cut), Err(io::ErrorKind::UnexpectedEof), "{cut}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for nonsense in [
            "SSH-2.0-OpenSSH_9.2\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: five\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 1\r\n\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n",
        ] {
            assert_eq!(
                receive(nonsense),
                Err(io::ErrorKind::InvalidData),
                "{nonsense}"
            );
        }
        let endless = Pieces {
            bytes: format!(
                "HTTP/1.1 200 OK\r\nx: {}",
                "y".repeat(limits::CLIENT_HEAD_BYTES_MAX)
            )
            .into_bytes(),
            size: 1_000,
            next: 0,
        };
        let error = Response::receive(endless).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn targets_are_plain_http_or_a_socket_s_path() {
        let tcp = |text: &str| match Target::parse(text) {
            Ok(Target::Tcp { address, authority }) => (address, authority),
            other => panic!("{text}: {other:?}"),
        };
        for (text, address, authority) in [
            ("http://127.0.0.1:8080", "127.0.0.1:8080", "127.0.0.1:8080"),
            ("http://example.org/", "example.org:80", "example.org"),
            ("http://[::1]:8080", "[::1]:8080", "[::1]:8080"),
            ("http://[::1]", "[::1]:80", "[::1]"),
        ] {
            assert_eq!(tcp(text), (address.to_owned(), authority.to_owned()));
        }
        assert_eq!(
            Target::parse("unix:/run/a b"),
            Ok(Target::Unix("/run/a b".into()))
        );
        for wrong in [
            "",
            "unix:",
            "https://h",
            "127.0.0.1:80",
            "http://",
            "http://h/x",
            "http://h\r\n",
        ] {
            assert!(Target::parse(wrong).is_err(), "{wrong}");
        }
    }
}
