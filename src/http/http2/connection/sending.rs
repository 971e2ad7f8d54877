//! Sends responses.
//!
//! Heads are written at once. DATA is written as far as three bounds allow: the stream's window,
//! the connection's, and the room that the caller has for output ([`Connection::set_room`]). The
//! rest waits in its stream. Streams that could send take turns, a frame each.

use super::Connection;
use crate::http::http1::encode::is_bodiless;
use crate::http::http2::frame::{self, PAYLOAD_MAX, flag};
use crate::http::http2::hpack::encode;
use crate::http::http2::stream::{Local, Stream};
use crate::http::{Fields, ResponseHead};

impl Connection {
    // ---- getters ----

    /// Returns the bytes of this stream that wait for window or room.
    pub fn waiting_bytes(&self, id: u32) -> usize {
        self.streams.get(&id).map_or(0, |it| it.waiting.len())
    }

    /// Returns the bytes of all streams that wait for window or room.
    pub fn all_waiting_bytes(&self) -> usize {
        self.streams.values().map(|it| it.waiting.len()).sum()
    }

    /// Returns whether more would be written if there were room.
    pub fn wants_room(&self) -> bool {
        !self.sendable.is_empty() && self.send_window.is_open()
    }

    // ---- commands ----

    /// Sets the length of the output up to which DATA may be written.
    pub fn set_room(&mut self, bytes: usize) {
        self.room = bytes;
    }

    /// Writes as much of the waiting bytes as windows and room allow.
    pub fn write_waiting(&mut self) {
        while self.has_room() {
            let Some(id) = self.sendable.pop_front() else {
                break;
            };
            let Some(stream) = self.streams.get_mut(&id) else {
                continue;
            };
            stream.is_queued = false;
            let count = stream.waiting.len().min(PAYLOAD_MAX);
            let count = count
                .min(stream.send_window.bytes())
                .min(self.send_window.bytes());
            if count > 0 {
                let is_last = count == stream.waiting.len() && stream.local == Local::Ending(None);
                let flags = if is_last { flag::END_STREAM } else { 0 };
                frame::put_data(&mut self.output, id, &stream.waiting[..count], flags);
                stream.advance(count);
                stream.send_window.take(count);
                stream.sent += count;
                self.send_window.take(count);
                if is_last {
                    stream.local = Local::Ended;
                }
            }
            self.write_end(id);
            self.enqueue(id);
        }
        self.debug_check();
    }

    /// Sends `100 Continue` (RFC 9110, section 15.2.1).
    pub fn send_continue(&mut self, id: u32) {
        if self.has_stream(id) {
            self.put_block(id, 0, |block| encode::status(block, 100));
        }
    }

    /// Sends a whole response.
    pub fn respond(&mut self, id: u32, head: &ResponseHead<'_>, body: &[u8], date: &[u8; 29]) {
        let is_bodiless = is_bodiless(head.status);
        let length = (!is_bodiless).then_some(body.len());
        if self.send_head(id, head, length, date, body.is_empty() || is_bodiless) {
            self.push(id, body, Local::Ending(None));
        }
    }

    /// Sends the head of a response that comes in pieces.
    pub fn start(&mut self, id: u32, head: &ResponseHead<'_>, date: &[u8; 29]) {
        self.send_head(id, head, None, date, false);
    }

    /// Sends a piece of a response.
    pub fn send(&mut self, id: u32, bytes: &[u8]) {
        self.push(id, bytes, Local::Body);
    }

    /// Ends a response, perhaps with trailers.
    pub fn finish(&mut self, id: u32, trailers: &Fields) {
        let mut block = Vec::new();
        for (name, value) in trailers.iter() {
            encode::field(&mut block, name, value);
        }
        let trailers = (!block.is_empty()).then_some(block);
        self.push(id, b"", Local::Ending(trailers));
    }

    // ---- poll ----

    /// Returns the bytes of this stream that were sent since the last call, and those that wait.
    pub fn take_progress(&mut self, id: u32) -> (usize, usize) {
        self.streams
            .get_mut(&id)
            .map_or((0, 0), Stream::take_progress)
    }

    // ---- helpers ----

    /// Returns whether any DATA may be written.
    fn has_room(&self) -> bool {
        self.output.len() < self.room && self.send_window.is_open()
    }

    /// Writes a response's head. `false`: nothing may follow it.
    fn send_head(
        &mut self,
        id: u32,
        head: &ResponseHead<'_>,
        length: Option<usize>,
        date: &[u8; 29],
        is_whole: bool,
    ) -> bool {
        let Some(stream) = self.streams.get_mut(&id) else {
            return false;
        };
        debug_assert!(stream.local == Local::Head, "a second head");
        let is_whole = is_whole || stream.head_only;
        stream.local = if is_whole { Local::Ended } else { Local::Body };
        let flags = if is_whole { flag::END_STREAM } else { 0 };
        self.put_block(id, flags, |block| {
            encode::status(block, head.status);
            encode::date(block, date);
            if let Some(content_type) = head.content_type {
                encode::content_type(block, content_type);
            }
            if let Some(length) = length {
                encode::content_length(block, length);
            }
            for (name, value) in head.headers.iter() {
                encode::field(block, name, value);
            }
        });
        self.drop_if_over(id);
        !is_whole
    }

    fn put_block(&mut self, id: u32, flags: u8, write: impl FnOnce(&mut Vec<u8>)) {
        let owes_table_size = std::mem::take(&mut self.owes_table_size);
        frame::put_headers(&mut self.output, id, flags, |block| {
            if owes_table_size {
                encode::empty_table(block);
            }
            write(block);
        });
    }

    /// Sends as much as possible at once, and lets the rest wait.
    fn push(&mut self, id: u32, mut bytes: &[u8], next: Local) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        if stream.local != Local::Body {
            return;
        }
        stream.local = next;
        // Streams that wait for room or window go first.
        if self.sendable.is_empty() && stream.waiting.is_empty() {
            while !bytes.is_empty() && self.output.len() < self.room {
                let count = bytes.len().min(PAYLOAD_MAX);
                let count = count
                    .min(stream.send_window.bytes())
                    .min(self.send_window.bytes());
                if count == 0 {
                    break;
                }
                let (piece, rest) = bytes.split_at(count);
                let is_last = rest.is_empty() && stream.local == Local::Ending(None);
                let flags = if is_last { flag::END_STREAM } else { 0 };
                frame::put_data(&mut self.output, id, piece, flags);
                stream.send_window.take(count);
                stream.sent += count;
                self.send_window.take(count);
                if is_last {
                    stream.local = Local::Ended;
                }
                bytes = rest;
            }
        }
        stream.waiting.extend_from_slice(bytes);
        self.write_end(id);
        self.enqueue(id);
    }

    /// Writes the end that is due once nothing waits, and drops a stream that has ended on both
    /// sides.
    fn write_end(&mut self, id: u32) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        if stream.waiting.is_empty()
            && let Local::Ending(trailers) = &mut stream.local
        {
            let trailers = trailers.take();
            stream.local = Local::Ended;
            match trailers {
                None => frame::put_data(&mut self.output, id, b"", flag::END_STREAM),
                Some(trailers) => self.put_block(id, flag::END_STREAM, |block| {
                    block.extend_from_slice(&trailers);
                }),
            }
        }
        self.drop_if_over(id);
    }
}
