//! A blocking HTTP/1.1 client that hides nothing: bytes out as given, responses parsed strictly.
//!
//! Owns one socket and the bytes that were received but not yet used. States of a connection's
//! reading side: between responses, or inside the body of the last head.
//!
//! Invariants:
//!  1. No read waits longer than [`PATIENCE`] unless a test asks for another bound.
//!  2. A body is read to its end by its own framing, so the next response starts where it ended.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::{ClientConfig, ClientConnection, StreamOwned};

use serde_json::Value;

use super::PATIENCE;

/// Returns a request's bytes. Adds `host`, and `content-length` if there is a body or the method
/// promises one.
pub fn request(method: &str, path: &str, fields: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut bytes = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\n").into_bytes();
    for (name, value) in fields {
        bytes.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
    }
    if !body.is_empty() || method == "POST" {
        bytes.extend_from_slice(format!("content-length: {}\r\n", body.len()).as_bytes());
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(body);
    bytes
}

pub struct Connection {
    stream: Stream,
    received: Vec<u8>,
    body: Body,
}

/// The framing of the rest of the present response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Body {
    /// Between responses.
    None,
    Length(usize),
    Chunked,
    UntilClose,
}

/// The head of a response.
#[derive(Clone, Debug)]
pub struct Head {
    pub status: u16,
    pub fields: Vec<(String, String)>,
    /// Statuses of the 1xx responses that came before.
    pub interim: Vec<u16>,
}

/// A whole response.
#[derive(Clone, Debug)]
pub struct Answer {
    pub head: Head,
    pub body: Vec<u8>,
}

/// One server-sent event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub name: String,
    pub data: String,
}

impl Connection {
    pub fn tcp(address: SocketAddr) -> io::Result<Connection> {
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Connection::new(Stream::Tcp(stream)))
    }

    pub fn unix(path: &Path) -> io::Result<Connection> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Connection::new(Stream::Unix(stream)))
    }

    /// Connects with TLS over TCP and completes the handshake.
    pub fn tls(
        address: SocketAddr,
        config: &Arc<ClientConfig>,
        name: &str,
    ) -> io::Result<Connection> {
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let name = name.to_owned().try_into().expect("a server's name");
        let client = ClientConnection::new(config.clone(), name).expect("a configuration");
        let mut stream = StreamOwned::new(client, stream);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        Ok(Connection::new(Stream::Tls(Box::new(stream))))
    }

    /// Returns the TLS session of a connection that has one.
    pub fn session(&mut self) -> &mut ClientConnection {
        match &mut self.stream {
            Stream::Tls(stream) => &mut stream.conn,
            Stream::Tcp(_) | Stream::Unix(_) => panic!("a connection in clear text"),
        }
    }

    /// Returns the socket below TLS.
    pub fn socket(&mut self) -> &mut TcpStream {
        match &mut self.stream {
            Stream::Tls(stream) => &mut stream.sock,
            Stream::Tcp(stream) => stream,
            Stream::Unix(_) => panic!("a Unix socket"),
        }
    }

    fn new(stream: Stream) -> Connection {
        Connection {
            stream,
            received: Vec::new(),
            body: Body::None,
        }
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.try_send(bytes)
            .expect("the daemon takes what it is sent");
    }

    pub fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.stream {
            Stream::Tcp(stream) => stream.write_all(bytes),
            Stream::Unix(stream) => stream.write_all(bytes),
            Stream::Tls(stream) => stream.write_all(bytes),
        }
    }

    /// Closes only the sending half.
    pub fn finish_sending(&mut self) {
        match &self.stream {
            Stream::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Stream::Unix(stream) => stream.shutdown(Shutdown::Write),
            Stream::Tls(stream) => stream.sock.shutdown(Shutdown::Write),
        }
        .expect("the socket is open");
    }

    pub fn set_read_timeout(&mut self, timeout: Duration) {
        match &self.stream {
            Stream::Tcp(stream) => stream.set_read_timeout(Some(timeout)),
            Stream::Unix(stream) => stream.set_read_timeout(Some(timeout)),
            Stream::Tls(stream) => stream.sock.set_read_timeout(Some(timeout)),
        }
        .expect("the timeout is not zero");
    }

    pub fn set_write_timeout(&mut self, timeout: Duration) {
        match &self.stream {
            Stream::Tcp(stream) => stream.set_write_timeout(Some(timeout)),
            Stream::Unix(stream) => stream.set_write_timeout(Some(timeout)),
            Stream::Tls(stream) => stream.sock.set_write_timeout(Some(timeout)),
        }
        .expect("the timeout is not zero");
    }

    /// Returns the next whole response to a request that was not HEAD.
    pub fn answer(&mut self) -> Answer {
        self.try_answer().expect("an answer")
    }

    pub fn try_answer(&mut self) -> io::Result<Answer> {
        let head = self.head()?;
        let body = self.rest_of_body()?;
        Ok(Answer { head, body })
    }

    /// Sends one request and reads its response.
    pub fn exchange(&mut self, bytes: &[u8]) -> Answer {
        self.send(bytes);
        self.answer()
    }

    /// Returns the head of the response to a HEAD request: whatever it announces, no body follows.
    pub fn head_alone(&mut self) -> Head {
        let head = self.head().expect("an answer");
        self.body = Body::None;
        head
    }

    /// Returns the head of the next response, including the 1xx responses before it.
    pub fn head(&mut self) -> io::Result<Head> {
        assert_eq!(
            self.body,
            Body::None,
            "the last answer was not read to its end"
        );
        let mut interim = Vec::new();
        loop {
            let mut head = self.one_head()?;
            if head.status >= 200 {
                head.interim = interim;
                self.body = head.framing();
                return Ok(head);
            }
            interim.push(head.status);
        }
    }

    /// Waits for one interim response such as `100 Continue`, or returns what came instead.
    pub fn interim(&mut self) -> io::Result<u16> {
        let head = self.one_head()?;
        if head.status >= 200 {
            self.body = head.framing();
        }
        Ok(head.status)
    }

    /// Returns the next piece of the body: a chunk, or what has come; `None` at its end.
    pub fn piece(&mut self) -> io::Result<Option<Vec<u8>>> {
        let piece = match self.body {
            Body::None | Body::Length(0) => None,
            Body::Length(left) => {
                if self.received.is_empty() {
                    self.receive()?;
                }
                let taken = left.min(self.received.len());
                self.body = Body::Length(left - taken);
                Some(self.take(taken))
            }
            Body::Chunked => self.chunk()?,
            Body::UntilClose => match self.receive() {
                Ok(()) => Some(std::mem::take(&mut self.received)),
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                    Some(std::mem::take(&mut self.received)).filter(|rest| !rest.is_empty())
                }
                Err(error) => return Err(error),
            },
        };
        if piece.is_none() {
            self.body = Body::None;
        }
        Ok(piece)
    }

    pub fn rest_of_body(&mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        while let Some(piece) = self.piece()? {
            body.extend_from_slice(&piece);
        }
        Ok(body)
    }

    /// Returns the server-sent events of the response whose head was just read.
    pub fn events(&mut self) -> Events<'_> {
        Events {
            connection: self,
            text: Vec::new(),
            comments: 0,
        }
    }

    /// Returns everything up to the end of the connection; a reset is an end too.
    pub fn until_closed(&mut self) -> Vec<u8> {
        loop {
            match self.receive() {
                Ok(()) => {}
                Err(error) if is_end(&error) => return std::mem::take(&mut self.received),
                Err(error) => panic!("the daemon did not close the connection: {error}"),
            }
        }
    }

    /// Returns whether the daemon closes the connection within this time.
    pub fn closed_within(&mut self, timeout: Duration) -> bool {
        self.set_read_timeout(timeout);
        let closed = matches!(self.receive(), Err(error) if is_end(&error));
        self.set_read_timeout(PATIENCE);
        closed
    }

    /// Returns whether something (a response, or the end) comes within this time.
    pub fn readable_within(&mut self, timeout: Duration) -> bool {
        self.set_read_timeout(timeout);
        let received = self.receive();
        self.set_read_timeout(PATIENCE);
        let nothing =
            |error: &io::Error| matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
        !received.is_err_and(|error| nothing(&error))
    }

    fn one_head(&mut self) -> io::Result<Head> {
        let end = loop {
            if let Some(at) = self
                .received
                .windows(4)
                .position(|window| window == b"\r\n\r\n")
            {
                break at + 4;
            }
            self.receive()?;
        };
        let bytes = self.take(end);
        Head::parse(&bytes)
    }

    fn chunk(&mut self) -> io::Result<Option<Vec<u8>>> {
        let line = self.line()?;
        let size = usize::from_str_radix(line.split(';').next().unwrap_or_default().trim(), 16)
            .map_err(|_| malformed("a chunk size", &line))?;
        if size == 0 {
            while !self.line()?.is_empty() {}
            return Ok(None);
        }
        while self.received.len() < size + 2 {
            self.receive()?;
        }
        let mut piece = self.take(size + 2);
        if !piece.ends_with(b"\r\n") {
            return Err(malformed("the end of a chunk", "other bytes"));
        }
        piece.truncate(size);
        Ok(Some(piece))
    }

    fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(at) = self
                .received
                .windows(2)
                .position(|window| window == b"\r\n")
            {
                let mut line = self.take(at + 2);
                line.truncate(at);
                return String::from_utf8(line).map_err(|_| malformed("a line", "no UTF-8"));
            }
            self.receive()?;
        }
    }

    fn take(&mut self, count: usize) -> Vec<u8> {
        let rest = self.received.split_off(count);
        std::mem::replace(&mut self.received, rest)
    }

    /// Reads once. The end of the stream is `UnexpectedEof`.
    fn receive(&mut self) -> io::Result<()> {
        let mut buffer = [0; 16 * 1024];
        let count = match &mut self.stream {
            Stream::Tcp(stream) => stream.read(&mut buffer),
            Stream::Unix(stream) => stream.read(&mut buffer),
            Stream::Tls(stream) => stream.read(&mut buffer),
        }?;
        if count == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        self.received.extend_from_slice(&buffer[..count]);
        Ok(())
    }
}

impl Head {
    fn parse(bytes: &[u8]) -> io::Result<Head> {
        let text = std::str::from_utf8(bytes).map_err(|_| malformed("a head", "no UTF-8"))?;
        let mut lines = text.split("\r\n");
        let status_line = lines.next().unwrap_or_default();
        let status = status_line
            .strip_prefix("HTTP/1.1 ")
            .and_then(|rest| rest.get(..3))
            .and_then(|digits| digits.parse().ok())
            .ok_or_else(|| malformed("a status line", status_line))?;
        let mut fields = Vec::new();
        for line in lines.take_while(|line| !line.is_empty()) {
            let (name, value) = line
                .split_once(':')
                .ok_or_else(|| malformed("a field line", line))?;
            fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        Ok(Head {
            status,
            fields,
            interim: Vec::new(),
        })
    }

    pub fn field(&self, name: &str) -> Option<&str> {
        let found = self.fields.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    fn framing(&self) -> Body {
        if matches!(self.status, 204 | 304) {
            return Body::None;
        }
        if self.field("transfer-encoding") == Some("chunked") {
            assert_eq!(self.field("content-length"), None, "two framings: {self:?}");
            return Body::Chunked;
        }
        match self.field("content-length") {
            Some(length) => Body::Length(length.parse().expect("content-length is a number")),
            None => Body::UntilClose,
        }
    }
}

impl Answer {
    pub fn status(&self) -> u16 {
        self.head.status
    }

    pub fn field(&self, name: &str) -> Option<&str> {
        self.head.field(name)
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("the body is UTF-8")
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("no JSON ({error}) in {self}"))
    }

    /// Returns the error code of an error response.
    pub fn error_code(&self) -> String {
        let body = self.json();
        let code = body["error"]["code"].as_str();
        code.unwrap_or_else(|| panic!("no error code in {self}"))
            .to_owned()
    }

    /// Asserts the status and returns the response; a failure shows all of it.
    #[track_caller]
    pub fn expect(self, status: u16) -> Answer {
        assert_eq!(self.status(), status, "{self}");
        self
    }

    /// Asserts that this is the error with this code.
    #[track_caller]
    pub fn expect_error(self, status: u16, code: &str) -> Answer {
        assert_eq!(
            (self.status(), self.error_code().as_str()),
            (status, code),
            "{self}"
        );
        self
    }
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{:?}", self.head)?;
        f.write_str(&String::from_utf8_lossy(&self.body))
    }
}

/// Reads server-sent events as they come.
pub struct Events<'a> {
    connection: &'a mut Connection,
    text: Vec<u8>,
    /// Comment lines seen so far, such as pings.
    pub comments: usize,
}

impl Events<'_> {
    /// Returns the next event; `None` at the end of the response.
    pub fn next(&mut self) -> io::Result<Option<Event>> {
        loop {
            if let Some(at) = self.text.windows(2).position(|window| window == b"\n\n") {
                let rest = self.text.split_off(at + 2);
                let block = std::mem::replace(&mut self.text, rest);
                if let Some(event) = self.parse(&String::from_utf8(block).expect("UTF-8")) {
                    return Ok(Some(event));
                }
                continue;
            }
            match self.connection.piece()? {
                Some(piece) => self.text.extend_from_slice(&piece),
                None => {
                    assert!(self.text.is_empty(), "the stream ended inside an event");
                    return Ok(None);
                }
            }
        }
    }

    /// Returns all remaining events.
    pub fn all(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(event) = self.next().expect("a whole stream") {
            events.push(event);
        }
        events
    }

    fn parse(&mut self, block: &str) -> Option<Event> {
        let mut event = Event {
            name: "message".to_owned(),
            data: String::new(),
        };
        let mut data_lines = 0;
        for line in block.lines() {
            if line.starts_with(':') {
                self.comments += 1;
            } else if let Some(name) = line.strip_prefix("event: ") {
                name.clone_into(&mut event.name);
            } else if let Some(data) = line.strip_prefix("data: ") {
                if data_lines > 0 {
                    event.data.push('\n');
                }
                event.data.push_str(data);
                data_lines += 1;
            }
        }
        (data_lines > 0).then_some(event)
    }
}

impl Event {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.data).unwrap_or_else(|_| panic!("no JSON in {self:?}"))
    }
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

fn is_end(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
    )
}

fn malformed(what: &str, found: &str) -> io::Error {
    io::Error::new(
        ErrorKind::InvalidData,
        format!("expected {what}, found {found:?}"),
    )
}
