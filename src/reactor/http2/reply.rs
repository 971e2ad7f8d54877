//! The application's sink for one stream.

use crate::http::http2::connection::Connection;
use crate::http::{Fields, ResponseHead, ResponseSink};
use crate::limits::core as core_limits;
use crate::limits::http2 as http2_limits;

/// One stream's response, in HTTP/2's framing. A stream that is gone ignores everything: its event
/// has come, or comes with the next frames.
pub struct Sink<'a> {
    pub connection: &'a mut Connection,
    pub stream: u32,
    pub date: &'a [u8; 29],
    /// Whether the connection's output has room.
    pub has_room: bool,
    /// The bytes of all streams that may wait.
    pub waiting_most: usize,
}

impl ResponseSink for Sink<'_> {
    fn respond(&mut self, head: &ResponseHead<'_>, body: &[u8]) {
        self.connection.respond(self.stream, head, body, self.date);
    }

    fn start(&mut self, head: &ResponseHead<'_>) {
        self.connection.start(self.stream, head, self.date);
    }

    fn data(&mut self, bytes: &[u8]) {
        self.connection.send(self.stream, bytes);
    }

    fn finish_with(&mut self, trailers: &Fields) {
        self.connection.finish(self.stream, trailers);
    }

    fn has_room(&self) -> bool {
        let waiting = self.connection.waiting_bytes(self.stream);
        self.has_room
            && waiting < core_limits::OUTPUT_HIGH_BYTES
            && (waiting < http2_limits::STREAM_WAITING_FREE_BYTES
                || self.connection.all_waiting_bytes() < self.waiting_most)
    }
}
