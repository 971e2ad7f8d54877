//! One connection to a server: its socket, TLS or its absence, and the exchange on it.
//!
//! Owns the bytes on their way in and out, and what they mean as HTTP/1.1. It knows neither
//! deadlines nor other connections: [`super::Outbound`] decides when it begins, and what follows
//! from each [`Event`].
//!
//! ```text
//!              connected                the response is whole, and the server goes on
//!   Dialing ───────────────> Exchanging ─────────────────────────────────────────────> Kept
//!      │                      │     ^                                                    │
//!      │ error                │     └──────────────── the next request ─────────────────┤
//!      v                      v                                                          v
//!    closed <──────────────────────────────── the server's FIN, bytes that nobody asked for
//! ```
//!
//! Invariants:
//!  1. Nothing is read or written before the handshake of TCP has ended.
//!  2. A kept connection holds no buffer. Any byte or FIN on it ends it: a response without a
//!     request would be taken for the next one's.
//!  3. Of a connection that is kept, all bytes of the request were written and all of the response
//!     used.
//!  4. A response that only the end of the connection ends is whole under TLS only after
//!     close_notify: a FIN alone may be an attacker's.

use std::net::SocketAddr;

use bytes::Bytes;
use rustls::client::UnbufferedClientConnection;

use super::lent::Lent;
use crate::core::output::OutputQueue;
use crate::core::pool::BufferPool;
use crate::core::{Key, Moment};
use crate::http::Method;
use crate::http::http1::request::{RequestHead, request_head};
use crate::http::http1::response::BadResponse;
use crate::http::http1::response_reader::{
    ReadProgress, ResponseBounds, ResponseReader, WholeResponse,
};
use crate::http::origin::{Origin, Scheme};
use crate::limits::reactor as limits;
use crate::limits::tls as tls_limits;
use crate::offload::fetch::{FetchError, Request};
use crate::reactor::endpoint::{Endpoint, Received};
use crate::reactor::system::{Edge, System};
use crate::tls::{Connector, Session};

/// See the file's head.
pub struct Connection<K> {
    endpoint: Endpoint<K>,
    origin: Origin,
    address: SocketAddr,
    tls: Option<Box<Session<UnbufferedClientConnection>>>,
    output: OutputQueue,
    state: State,
}

enum State {
    Dialing {
        fetch: Key,
    },
    Exchanging {
        fetch: Key,
        reader: Box<ResponseReader>,
        /// Something was written. On a connection that is reused, the server may have seen a part
        /// of the request; on a new one it may be TLS's handshake.
        is_begun: bool,
        /// An earlier exchange went over this connection.
        is_reused: bool,
    },
    Kept {
        since: Moment,
    },
}

/// The result of a pump.
pub enum Event {
    /// Nothing more until an edge.
    Waiting,
    /// More to do, for which there was no time.
    Again,
    /// The handshake of TLS has ended.
    Opened,
    /// The response, and whether the connection can be kept.
    Response(Box<WholeResponse>, bool),
    Failed(FetchError),
    /// A kept connection has ended.
    Closed,
}

impl<K> Connection<K> {
    /// A socket whose handshake runs.
    pub fn new(socket: K, origin: Origin, address: SocketAddr, fetch: Key) -> Connection<K> {
        Connection {
            endpoint: Endpoint::new(socket),
            origin,
            address,
            tls: None,
            output: OutputQueue::new(),
            state: State::Dialing { fetch },
        }
    }

    // ---- getters ----

    pub fn socket(&self) -> &K {
        self.endpoint.socket()
    }

    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the fetch that it serves.
    pub fn fetch(&self) -> Option<Key> {
        match self.state {
            State::Dialing { fetch } | State::Exchanging { fetch, .. } => Some(fetch),
            State::Kept { .. } => None,
        }
    }

    pub fn is_dialing(&self) -> bool {
        matches!(self.state, State::Dialing { .. })
    }

    /// Returns since when it is kept.
    pub fn kept_since(&self) -> Option<Moment> {
        match self.state {
            State::Kept { since } => Some(since),
            State::Dialing { .. } | State::Exchanging { .. } => None,
        }
    }

    /// Returns whether the handshake of TLS has ended, if there is one.
    pub fn is_open(&self) -> bool {
        self.tls.as_ref().is_none_or(|session| session.is_open())
    }

    /// Returns whether a byte of the response has come.
    pub fn has_begun(&self) -> bool {
        matches!(&self.state, State::Exchanging { reader, .. } if reader.has_begun())
    }

    /// Returns whether the request may go over another connection instead: it met one that its
    /// server was about to close, and the server has not acted on it, or may act twice.
    pub fn may_retry(&self, is_idempotent: bool) -> bool {
        match &self.state {
            State::Exchanging {
                reader,
                is_begun,
                is_reused: true,
                ..
            } => !reader.has_begun() && (is_idempotent || !is_begun),
            _ => false,
        }
    }

    /// Returns the memory of its buffers.
    pub fn buffered_bytes(&self) -> usize {
        let tls = self
            .tls
            .as_ref()
            .map_or(0, |session| session.buffered_bytes());
        let reader = match &self.state {
            State::Exchanging { reader, .. } => reader.buffered_bytes(),
            State::Dialing { .. } | State::Kept { .. } => 0,
        };
        tls + reader + self.output.memory_bytes()
    }

    /// Returns whether it could go on now, as far as the kernel has reported: then it must be in
    /// the run queue.
    pub fn can_go_on(&self) -> bool {
        let readiness = self.endpoint.readiness();
        match self.state {
            // An edge queues it, and the pump that follows has seen all there was to see.
            State::Dialing { .. } => false,
            State::Exchanging { .. } | State::Kept { .. } => {
                readiness.can_read() || (self.has_output() && readiness.can_write())
            }
        }
    }

    /// Returns whether something can be written, encrypted or not.
    pub fn has_output(&self) -> bool {
        match &self.tls {
            None => !self.output.is_empty(),
            Some(session) => {
                !session.queue().is_empty() || (session.is_open() && !self.output.is_empty())
            }
        }
    }

    // ---- events ----

    pub fn handle_edge(&mut self, edge: &Edge) {
        self.endpoint.handle_edge(edge);
    }

    // ---- commands ----

    /// Begins TLS on a connection that has just been made, if its origin wants it.
    pub fn begin_tls(
        &mut self,
        connector: &Connector,
        pool: &mut BufferPool,
    ) -> Result<(), FetchError> {
        if self.origin.scheme == Scheme::Https {
            let session = connector.session(&self.origin.host, pool);
            self.tls = Some(session.map_err(|error| FetchError::Tls(error.to_string()))?);
        }
        Ok(())
    }

    /// Begins an exchange: queues the request.
    pub fn begin_exchange(
        &mut self,
        fetch: Key,
        request: &Request,
        bounds: ResponseBounds,
        pool: &mut BufferPool,
    ) {
        let is_head = request.method == Method::Head;
        let has_body = !matches!(request.method, Method::Get | Method::Head);
        let head = RequestHead {
            method: request.method,
            target: &request.target,
            authority: &self.origin.authority(),
            fields: &request.fields,
            content_length: has_body.then_some(request.body.len()),
        };
        request_head(self.output.tail(pool), &head);
        self.output.push_bytes(Bytes::clone(&request.body), pool);
        self.state = State::Exchanging {
            fetch,
            reader: Box::new(ResponseReader::new(bounds, is_head)),
            is_begun: false,
            is_reused: matches!(self.state, State::Kept { .. }),
        };
    }

    /// Keeps the connection for another exchange.
    pub fn keep(&mut self, now: Moment) {
        debug_assert_eq!(self.buffered_bytes(), 0, "2");
        self.state = State::Kept { since: now };
    }

    /// Ends it: TLS's close_notify if the kernel takes it at once, buffers to the pool.
    pub fn close<S: System<Socket = K>>(mut self, system: &mut S, pool: &mut BufferPool) -> K {
        let can_write = self.endpoint.readiness().can_write();
        if let Some(session) = &mut self.tls {
            if can_write && session.close(pool) {
                // The connection ends either way.
                let _ = self.endpoint.write(system, session.queue_mut(), pool);
            }
            session.release(pool);
        }
        self.output.clear(pool);
        self.endpoint.into_socket()
    }

    // ---- the pump ----

    /// Advances the exchange as far as the socket allows: write, then read.
    pub fn pump<S: System<Socket = K>>(&mut self, lent: &mut Lent<'_, S>) -> Event {
        debug_assert!(!self.is_dialing(), "1");
        let was_open = self.is_open();
        if let Err(error) = self.flush(lent) {
            // The server may have sent a response, such as a 413, before it stopped reading.
            // The connection is not kept, because a part of the request is left.
            return match self.receive(lent) {
                response @ Event::Response(..) => response,
                _ => self.ended(error),
            };
        }
        let event = self.receive(lent);
        if was_open != self.is_open() && matches!(event, Event::Waiting | Event::Again) {
            // The request could not be encrypted before, nor the handshake's end be sent.
            return match self.flush(lent) {
                Ok(()) => Event::Opened,
                Err(error) => self.ended(error),
            };
        }
        match event {
            // TLS has something to send that reading has caused, such as another ClientHello.
            Event::Waiting if self.has_output() && self.endpoint.readiness().can_write() => {
                Event::Again
            }
            Event::Failed(error) => {
                // The alert that explains it, if there is one.
                let _ = self.flush(lent);
                self.ended(error)
            }
            event => event,
        }
    }

    /// Returns what has come of the response, if the rest of it is not needed.
    pub fn take_status(&mut self) -> Option<WholeResponse> {
        let State::Exchanging { reader, .. } = &mut self.state else {
            return None;
        };
        if !reader.has_status() {
            // It stays: whether a byte has come decides if the request may be sent again.
            return None;
        }
        let empty = ResponseReader::new(ResponseBounds::NOTHING, false);
        std::mem::replace(&mut **reader, empty).into_status()
    }

    /// The end of a connection means something else while it is kept, and is not a failure if the
    /// response has come as far as it is needed.
    fn ended(&mut self, error: FetchError) -> Event {
        match self.state {
            State::Kept { .. } => Event::Closed,
            State::Dialing { .. } => Event::Failed(error),
            State::Exchanging { .. } => match self.take_status() {
                Some(response) => Event::Response(Box::new(response), false),
                None => Event::Failed(error),
            },
        }
    }

    fn flush<S: System<Socket = K>>(&mut self, lent: &mut Lent<'_, S>) -> Result<(), FetchError> {
        while self.has_output() && self.endpoint.readiness().can_write() {
            let queue = match &mut self.tls {
                None => &mut self.output,
                Some(session) => session.encrypt(&mut self.output, lent.pool),
            };
            let written = self.endpoint.write(lent.system, queue, lent.pool);
            let written = written.map_err(|_| FetchError::Broken)?;
            if written.offered == 0 {
                return Err(FetchError::Broken);
            }
            if let State::Exchanging { is_begun, .. } = &mut self.state {
                *is_begun |= written.taken > 0;
            }
        }
        Ok(())
    }

    fn receive<S: System<Socket = K>>(&mut self, lent: &mut Lent<'_, S>) -> Event {
        for _ in 0..limits::READS_PER_PUMP_MAX {
            if self
                .tls
                .as_ref()
                .is_some_and(|session| session.input_is_over())
            {
                return self.handle_end();
            }
            if !self.endpoint.readiness().can_read() {
                return Event::Waiting;
            }
            if !self.is_open() && *lent.handshake_steps == 0 {
                return Event::Again;
            }
            let room = match self.tls {
                Some(_) => tls_limits::READ_BYTES_MAX,
                None => lent.scratch.len(),
            };
            let event = match self.endpoint.read(lent.system, &mut lent.scratch[..room]) {
                Ok(Received::Bytes(length)) => self.handle_bytes(length, lent),
                Ok(Received::End) => return self.handle_end(),
                Ok(Received::Blocked) => return Event::Waiting,
                Ok(Received::Interrupted) => Event::Again,
                Err(_) => return self.ended(FetchError::Broken),
            };
            if !matches!(event, Event::Again) {
                return event;
            }
        }
        Event::Again
    }

    /// Handles bytes at the front of the scratch buffer. `Again`: the next ones may be read.
    fn handle_bytes<S: System>(&mut self, length: usize, lent: &mut Lent<'_, S>) -> Event {
        let place = match &mut self.tls {
            None => 0..length,
            Some(session) => {
                let start = tls_limits::READ_BYTES_MAX;
                let (ciphertext, plaintext) = lent.scratch.split_at_mut(start);
                match session.handle_input(&mut ciphertext[..length], plaintext, lent.pool) {
                    Ok(received) => {
                        if received.worked {
                            *lent.handshake_steps = lent.handshake_steps.saturating_sub(1);
                        }
                        start..start + received.plaintext
                    }
                    Err(failed) => {
                        let error = FetchError::Tls(failed.error.to_string());
                        return self.ended(error);
                    }
                }
            }
        };
        let bytes = &mut lent.scratch[place];
        // The beginning of a record, which has to wait for its rest, or TLS's reply to a message.
        let holds_buffer = self
            .tls
            .as_ref()
            .is_some_and(|session| session.buffered_bytes() > 0);
        match &mut self.state {
            State::Exchanging { reader, .. } if !bytes.is_empty() => {
                match reader.handle_input(bytes) {
                    Ok(ReadProgress::Incomplete) => Event::Again,
                    Ok(ReadProgress::Complete { used }) => {
                        let is_used_up = used == bytes.len();
                        self.take_response(is_used_up)
                    }
                    Err(error) => Event::Failed(FetchError::Response(error)),
                }
            }
            State::Kept { .. } if !bytes.is_empty() || holds_buffer => Event::Closed,
            State::Dialing { .. } | State::Exchanging { .. } | State::Kept { .. } => Event::Again,
        }
    }

    /// Handles the server's FIN, or TLS's close_notify.
    fn handle_end(&mut self) -> Event {
        let may_be_cut = self
            .tls
            .as_ref()
            .is_some_and(|session| !session.input_is_over());
        let State::Exchanging { reader, .. } = &mut self.state else {
            return self.ended(FetchError::Broken);
        };
        let ended = match may_be_cut {
            true => Err(BadResponse::CutOff),
            false => reader.handle_end(),
        };
        match ended {
            Ok(()) => self.take_response(false),
            Err(BadResponse::CutOff) => Event::Failed(FetchError::Broken),
            Err(error) => Event::Failed(FetchError::Response(error)),
        }
    }

    fn take_response(&mut self, is_used_up: bool) -> Event {
        let State::Exchanging { reader, .. } = &mut self.state else {
            return Event::Closed;
        };
        let empty = ResponseReader::new(ResponseBounds::NOTHING, false);
        let Some(response) = std::mem::replace(&mut **reader, empty).into_response() else {
            return Event::Failed(FetchError::Broken);
        };
        // A FIN that has come as well ends it with the next pump.
        let may_keep = is_used_up && response.head.keeps_alive && self.buffered_bytes() == 0;
        Event::Response(Box::new(response), may_keep)
    }
}
