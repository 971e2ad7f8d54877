//! HTTP/2 (RFC 9113) without I/O: the h2 crate, driven by hand.
//!
//! h2 is written for tasks that a runtime wakes. Here it has neither: it reads and writes a
//! [`pipe`] in memory, and whoever has put something in, or has acted on a stream's handle, polls
//! it again. That takes one rule in place of a runtime: **after every call on a handle follows a
//! poll of the connection**, or what was said stays in h2's queues.
//!
//! ```text
//!              feed                   poll_request
//!   bytes ────────────> pipe ──> h2 ─────────────────> requests, each with its handle
//!           FrameMeter   |        ^
//!   bytes <──────────── pipe <────┴── answers, on the handles
//!           take_output
//! ```
//!
//! In reading order: [`pipe`], [`head`] (a request as the service sees it), [`meter`] (what a
//! peer's frames are, counted and checked before h2 reads them), [`field_block`] (what their field
//! blocks hold, as far as h2 does not say it), [`explain`] (the right code for an error that h2 has
//! found), [`Server`] (h2 with every limit set).
//!
//! h2 looks at a clock by itself, for how long it remembers a stream that was reset; nothing that a
//! peer sees depends on it.

pub mod explain;
pub mod field_block;
pub mod frame;
pub mod head;
pub mod hpack;
pub mod meter;
pub mod pipe;
#[cfg(test)]
pub mod testing;
pub mod window;

use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use h2::server::{Builder, Connection, Handshake, SendResponse};
use h2::{Ping, PingPong, Reason, RecvStream};

use crate::limits::http2 as limits;
use pipe::{Pipe, PipeEnd};

/// One connection's side of h2.
pub struct Server {
    pipe: Pipe,
    state: State,
    /// Taken out of h2 when the first probe is sent: there is one for each connection.
    pings: Option<PingPong>,
    /// h2 has ended the connection with PROTOCOL_ERROR, its code for most errors.
    has_failed: bool,
}

enum State {
    /// The peer's preface is still to be read.
    Handshaking(Handshake<PipeEnd, Bytes>),
    Open(Connection<PipeEnd, Bytes>),
    Closed,
}

/// A request as h2 hands it over.
pub struct Incoming {
    pub request: http::Request<RecvStream>,
    pub respond: SendResponse<Bytes>,
}

/// What [`Server::poll_request`] has found.
pub enum Polled {
    Request(Box<Incoming>),
    /// Nothing until more bytes come, or more room.
    Waiting,
    /// The connection is over; what is in the pipe is to be sent still.
    Closed,
}

impl Server {
    pub fn new() -> Server {
        let (pipe, end) = Pipe::new();
        Server {
            pipe,
            state: State::Handshaking(builder().handshake(end)),
            pings: None,
            has_failed: false,
        }
    }

    // ---- handle ----

    /// What the peer has sent, the preface included. [`Server::poll_request`] follows.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.pipe.feed(bytes);
    }

    // ---- commands ----

    /// Says that no stream will be taken that is not on its way already. h2 sends GOAWAY twice
    /// (RFC 9113, section 6.8): at once with the highest number there is, and with the last
    /// stream's own when the peer has answered the PING behind it.
    pub fn begin_shutdown(&mut self) {
        if let State::Open(connection) = &mut self.state {
            connection.graceful_shutdown();
        }
    }

    /// Ends all streams and the connection, with this for a reason.
    pub fn shut_down(&mut self, reason: Reason) {
        if let State::Open(connection) = &mut self.state {
            connection.abrupt_shutdown(reason);
        }
    }

    /// Sends something that a peer which is there answers. Nothing if the last one is not answered
    /// yet.
    pub fn probe(&mut self) {
        if let State::Open(connection) = &mut self.state {
            let pings = &mut self.pings;
            if pings.is_none() {
                *pings = connection.ping_pong();
            }
            if let Some(pings) = pings {
                // Its only error is that a ping is under way, which does as well.
                let _ = pings.send_ping(Ping::opaque());
            }
        }
    }

    /// h2 has ended the connection over what is in `bytes`, which begin with a frame's header:
    /// gives its GOAWAY the code that the RFC asks for. Before [`Server::take_output`].
    pub fn correct_goaway(&mut self, bytes: &[u8]) {
        if self.has_failed {
            self.pipe
                .amend_goaway(|last| explain::explain(bytes, last).map(u32::from));
        }
    }

    // ---- poll ----

    /// Lets h2 read and write, with room for `room` bytes, and takes the next request from it.
    pub fn poll_request(&mut self, room: usize) -> Polled {
        self.pipe.set_room(room);
        let mut context = Context::from_waker(Waker::noop());
        if let State::Handshaking(handshake) = &mut self.state {
            match Pin::new(handshake).poll(&mut context) {
                Poll::Ready(Ok(connection)) => self.state = State::Open(connection),
                Poll::Ready(Err(_)) => self.state = State::Closed,
                Poll::Pending => return Polled::Waiting,
            }
        }
        let State::Open(connection) = &mut self.state else {
            return Polled::Closed;
        };
        match connection.poll_accept(&mut context) {
            Poll::Ready(Some(Ok((request, respond)))) => {
                Polled::Request(Box::new(Incoming { request, respond }))
            }
            Poll::Ready(ended) => {
                self.has_failed = ended.is_some_and(|result| {
                    let reason = result.err().and_then(|error| error.reason());
                    reason == Some(Reason::PROTOCOL_ERROR)
                });
                self.state = State::Closed;
                Polled::Closed
            }
            Poll::Pending => Polled::Waiting,
        }
    }

    /// Whether h2 would write more if there were room.
    pub fn wants_room(&self) -> bool {
        self.pipe.was_full()
    }

    /// What is to be sent.
    pub fn take_output(&self) -> Option<Bytes> {
        self.pipe.take_output().map(Bytes::from)
    }
}

impl Default for Server {
    fn default() -> Server {
        Server::new()
    }
}

/// Every limit that h2 has, none left at its default by accident.
fn builder() -> Builder {
    let mut builder = Builder::new();
    builder
        .max_concurrent_streams(limits::STREAMS_MAX)
        .max_header_list_size(limits::HEADER_LIST_BYTES_MAX)
        .header_table_size(limits::HEADER_TABLE_BYTES)
        .max_frame_size(limits::FRAME_BYTES_MAX)
        .initial_window_size(limits::STREAM_WINDOW_BYTES)
        .initial_connection_window_size(limits::CONNECTION_WINDOW_BYTES)
        .max_send_buffer_size(limits::SEND_BUFFER_BYTES)
        .max_concurrent_reset_streams(limits::REMEMBERED_RESETS_MAX)
        .reset_stream_duration(limits::RESETS_REMEMBERED_FOR)
        .max_pending_accept_reset_streams(limits::UNSEEN_RESETS_MAX)
        .max_local_error_reset_streams(Some(limits::LOCAL_RESETS_MAX));
    builder
}
