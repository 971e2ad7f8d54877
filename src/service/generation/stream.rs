//! A response in pieces: head, pings, credit.
//!
//! The narrator decides the contents of the pieces; this file decides when they are sent, and how
//! much the engine may produce ahead.

use crate::core::Moment;
use crate::error::ApiError;
use crate::http::compress::encode::Step;
use crate::limits::service as limits;
use crate::offload::Ticket;
use crate::service::call::Call;
use crate::service::desk::{Desk, Wire};
use crate::service::dialect::Pieces;
use crate::service::response::coding::StreamCoder;

/// Everything that writes the last piece of a stream.
#[derive(Debug)]
pub struct Ending {
    pub pieces: Box<dyn Pieces>,
    pub coder: Option<Box<StreamCoder>>,
    /// Bytes of content that were sent before, counted after coding.
    pub sent: u64,
}

/// See the file's head.
#[derive(Debug)]
pub struct Stream {
    pub pieces: Box<dyn Pieces>,
    /// Whether the head has been sent.
    is_flowing: bool,
    /// When the last bytes were sent; a ping is due an interval later.
    silent_since: Moment,
    /// Credit of delivered events that found the output full.
    held_credit: u32,
    /// Bytes of content that were sent, counted after coding.
    bytes: u64,
    /// Set once the stream flows, for a client that accepts a coding.
    coder: Option<Box<StreamCoder>>,
}

impl Stream {
    pub fn new(pieces: Box<dyn Pieces>, now: Moment) -> Stream {
        Stream {
            pieces,
            is_flowing: false,
            silent_since: now,
            held_credit: 0,
            bytes: 0,
            coder: None,
        }
    }

    pub const fn is_flowing(&self) -> bool {
        self.is_flowing
    }

    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns when the next ping is due, in a dialect that has pings.
    pub fn ping_due(&self) -> Moment {
        match self.pieces.ping() {
            Some(_) => self.silent_since + limits::PING_INTERVAL,
            None => Moment::NEVER,
        }
    }

    /// Sends a ping if one is due.
    pub fn ping(&mut self, desk: &mut Desk, call: &Call, wire: &mut Wire<'_>) {
        let Some(append) = self.pieces.ping() else {
            return;
        };
        if wire.now < self.ping_due() {
            return;
        }
        // A full output shows by itself that the connection is alive.
        if wire.sink.has_room() {
            desk.buffer.body.clear();
            append(&mut desk.buffer.body);
            self.send(desk, call, Step::Flush, wire);
        } else {
            self.silent_since = wire.now;
        }
    }

    /// Sends the addition of the model's next text to the response, if there is any.
    pub fn push(&mut self, desk: &mut Desk, call: &Call, text: &str, wire: &mut Wire<'_>) {
        desk.buffer.body.clear();
        self.pieces.push(&mut desk.buffer, call, text);
        if !desk.buffer.body.is_empty() {
            self.send(desk, call, Step::Flush, wire);
        }
    }

    /// Sends the next part of a program that was taken out of the text before.
    pub fn push_code(&mut self, desk: &mut Desk, call: &Call, code: &str, wire: &mut Wire<'_>) {
        desk.buffer.body.clear();
        self.pieces.push_code(&mut desk.buffer, call, code);
        if !desk.buffer.body.is_empty() {
            self.send(desk, call, Step::Flush, wire);
        }
    }

    /// Returns the credit of one delivered event to the engine, or holds it while the output is
    /// full. Returns whether the engine must be told: it has found none.
    #[must_use]
    pub fn return_credit(&mut self, ticket: &Ticket, wire: &Wire<'_>) -> bool {
        self.held_credit += 1;
        wire.sink.has_room() && self.release_credit(ticket)
    }

    /// Returns the held credit: the output has room again. Returns whether the engine must be told.
    #[must_use]
    pub fn release_credit(&mut self, ticket: &Ticket) -> bool {
        ticket.grant(std::mem::take(&mut self.held_credit))
    }

    /// Sends the buffer as the last piece, and the end. Returns the bytes of all pieces.
    pub fn finish(
        &mut self,
        desk: &mut Desk,
        call: &Call,
        error: Option<&ApiError>,
        wire: &mut Wire<'_>,
    ) -> u64 {
        // The body may be empty; even then an encoder has its own end.
        if !desk.buffer.body.is_empty() || self.coder.is_some() {
            self.send(desk, call, Step::Finish, wire);
        }
        desk.dialect(call.surface()).end(call, error, wire.sink);
        self.bytes
    }

    /// Sends the head if that has not been sent yet, and hands over the rest of the stream.
    pub fn into_ending(mut self, desk: &mut Desk, call: &Call, wire: &mut Wire<'_>) -> Ending {
        self.start(desk, call, wire);
        Ending {
            pieces: self.pieces,
            coder: self.coder,
            sent: self.bytes,
        }
    }

    /// Sends the head, once.
    fn start(&mut self, desk: &mut Desk, call: &Call, wire: &mut Wire<'_>) {
        if self.is_flowing {
            return;
        }
        self.is_flowing = true;
        let dialect = desk.dialect(call.surface());
        let buffer = &mut desk.buffer;
        buffer.begin_fields(call);
        buffer.fields.push("cache-control", "no-store");
        // nginx holds responses back to fill its buffers, unless this field forbids it.
        buffer.fields.push("x-accel-buffering", "no");
        self.coder = dialect.start(buffer, call, wire.sink);
    }

    /// Sends the buffer's body, after the head.
    fn send(&mut self, desk: &mut Desk, call: &Call, step: Step, wire: &mut Wire<'_>) {
        self.start(desk, call, wire);
        let coder = self.coder.as_deref_mut();
        self.bytes += desk.buffer.send_piece(coder, step, wire.sink);
        self.silent_since = wire.now;
    }
}
