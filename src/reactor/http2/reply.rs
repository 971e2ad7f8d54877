//! One stream's way out: an answer's head, its bytes as far as the windows allow, its end.
//!
//! Owns the stream's handles of h2 and the bytes that the peer has not granted window for. h2 would
//! take them all and hold them; they stay here, so that the service sees how much waits and stops,
//! and so that no stream reserves window of the connection that it does not use.
//!
//! ```text
//!   Head ── respond, start ──> Body ── finish ──> Ending ── nothing waits any more ──> Ended
//!     └── respond without a body ─────────────────────────────────────────────────────^
//! ```
//!
//! Invariants:
//!  1. A head is sent once, and nothing after `Ended`.
//!  2. What waits is not more than one answer, or a stream's credit above the high mark.

use std::task::{Context, Waker};

use bytes::{BufMut, Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{Reason, SendStream};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, DATE, HeaderMap, HeaderName, HeaderValue};

use crate::http::http1::encode::is_bodiless;
use crate::http::{Fields, ResponseHead, ResponseSink};
use crate::limits::core as core_limits;

/// See the file's head.
pub struct Outgoing {
    state: State,
    /// The answer to HEAD has no body (RFC 9110, section 9.3.2).
    head_only: bool,
    waiting: BytesMut,
}

enum State {
    Head(SendResponse<Bytes>),
    Body(SendStream<Bytes>),
    Ending(SendStream<Bytes>, Option<HeaderMap>),
    Ended,
}

impl Outgoing {
    pub fn new(respond: SendResponse<Bytes>, head_only: bool) -> Outgoing {
        Outgoing {
            state: State::Head(respond),
            head_only,
            waiting: BytesMut::new(),
        }
    }

    // ---- getters ----

    /// Whether all of the answer is h2's, or nobody wants it any more.
    pub fn has_ended(&self) -> bool {
        matches!(self.state, State::Ended)
    }

    /// Bytes that the peer has not granted window for.
    pub fn waiting_bytes(&self) -> usize {
        self.waiting.len()
    }

    // ---- poll ----

    /// Whether the stream was reset: by the peer, or by h2 for an error of the peer's.
    pub fn was_reset(&mut self) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        match &mut self.state {
            State::Head(respond) => respond.poll_reset(&mut context).is_ready(),
            State::Body(stream) | State::Ending(stream, _) => {
                stream.poll_reset(&mut context).is_ready()
            }
            State::Ended => false,
        }
    }

    // ---- commands ----

    /// `100 Continue` (RFC 9110, section 15.2.1).
    pub fn send_continue(&mut self) {
        if let State::Head(respond) = &mut self.state {
            let mut response = http::Response::new(());
            *response.status_mut() = http::StatusCode::CONTINUE;
            // Fails only where the stream is gone, which its next poll says.
            let _ = respond.send_informational(response);
        }
    }

    pub fn reset(&mut self, reason: Reason) {
        match &mut self.state {
            State::Head(respond) => respond.send_reset(reason),
            State::Body(stream) | State::Ending(stream, _) => stream.send_reset(reason),
            State::Ended => {}
        }
        self.give_up();
    }

    /// Hands h2 as much as the windows have room for. `true` if it took something.
    pub fn push(&mut self) -> bool {
        let mut took = false;
        loop {
            let (stream, is_ending) = match &mut self.state {
                State::Body(stream) => (stream, false),
                State::Ending(stream, trailers) => (stream, trailers.is_none()),
                State::Head(_) | State::Ended => return took,
            };
            if self.waiting.is_empty() {
                break;
            }
            // The connection's window is shared: no more of it is asked for than is used at once.
            stream.reserve_capacity(self.waiting.len());
            let count = stream.capacity().min(self.waiting.len());
            if count == 0 {
                return took;
            }
            let piece = self.waiting.split_to(count).freeze();
            let is_last = is_ending && self.waiting.is_empty();
            took = true;
            if stream.send_data(piece, is_last).is_err() || is_last {
                self.give_up();
                return took;
            }
        }
        self.end() || took
    }

    /// Says the end that was due when nothing waits any more. `true` if it did.
    fn end(&mut self) -> bool {
        let State::Ending(stream, trailers) = &mut self.state else {
            return false;
        };
        // An error says that the stream is gone, and then so is the need for an end.
        let _ = match trailers.take() {
            Some(trailers) => stream.send_trailers(trailers),
            None => stream.send_data(Bytes::new(), true),
        };
        self.give_up();
        true
    }

    fn give_up(&mut self) {
        self.state = State::Ended;
        self.waiting = BytesMut::new();
    }

    fn send_head(&mut self, response: http::Response<()>, is_whole: bool) {
        let State::Head(respond) = &mut self.state else {
            debug_assert!(false, "a second head");
            return;
        };
        self.state = match respond.send_response(response, is_whole) {
            Ok(stream) if !is_whole => State::Body(stream),
            // The whole answer, or one for a stream that is gone.
            _ => State::Ended,
        };
    }

    fn finish(&mut self, trailers: Option<HeaderMap>) {
        self.state = match std::mem::replace(&mut self.state, State::Ended) {
            State::Body(stream) => State::Ending(stream, trailers),
            other => other,
        };
        self.push();
    }
}

/// The service's way to one stream, in HTTP/2's framing.
pub struct Sink<'a> {
    pub outgoing: &'a mut Outgoing,
    pub date: &'a [u8; 29],
    /// Whether the connection's output has room.
    pub has_room: bool,
}

impl ResponseSink for Sink<'_> {
    fn respond(&mut self, answer: &ResponseHead<'_>, body: &[u8]) {
        let is_bodiless = is_bodiless(answer.status);
        let length = (!is_bodiless).then_some(body.len());
        let response = response(answer, length, self.date);
        let is_whole = body.is_empty() || is_bodiless || self.outgoing.head_only;
        self.outgoing.send_head(response, is_whole);
        if !is_whole {
            self.outgoing.waiting.extend_from_slice(body);
            self.outgoing.finish(None);
        }
    }

    fn start(&mut self, answer: &ResponseHead<'_>) {
        let response = response(answer, None, self.date);
        self.outgoing.send_head(response, self.outgoing.head_only);
    }

    fn data(&mut self, bytes: &[u8]) {
        if let State::Body(_) = self.outgoing.state {
            self.outgoing.waiting.extend_from_slice(bytes);
            self.outgoing.push();
        }
    }

    fn finish_with(&mut self, trailers: &Fields) {
        let mut text = BytesMut::with_capacity(trailers.lines().len());
        text.put_slice(trailers.lines());
        let mut map = HeaderMap::new();
        append_fields(&mut map, trailers, &text.freeze());
        self.outgoing.finish((!map.is_empty()).then_some(map));
    }

    fn has_room(&self) -> bool {
        self.has_room && self.outgoing.waiting_bytes() < core_limits::OUTPUT_HIGH_BYTES
    }
}

/// An answer's head. All values that it is made of share one buffer.
fn response(
    answer: &ResponseHead<'_>,
    length: Option<usize>,
    date: &[u8; 29],
) -> http::Response<()> {
    let lines = answer.headers.lines();
    let mut digits = itoa::Buffer::new();
    let length = length.map(|length| digits.format(length).as_bytes());
    let mut text = BytesMut::with_capacity(lines.len() + date.len() + digits_most(length));
    text.put_slice(lines);
    text.put_slice(date);
    text.put_slice(length.unwrap_or_default());
    let text = text.freeze();

    let mut response = http::Response::new(());
    // The service's statuses are constants of the catalogue.
    *response.status_mut() = http::StatusCode::from_u16(answer.status)
        .unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
    let map = response.headers_mut();
    map.reserve(answer.headers.spans().count() + 3);
    append(map, DATE, &text, lines.len()..lines.len() + date.len());
    if let Some(content_type) = answer.content_type {
        map.append(CONTENT_TYPE, HeaderValue::from_static(content_type));
    }
    if length.is_some() {
        append(
            map,
            CONTENT_LENGTH,
            &text,
            lines.len() + date.len()..text.len(),
        );
    }
    append_fields(map, answer.headers, &text);
    response
}

fn digits_most(length: Option<&[u8]>) -> usize {
    length.map_or(0, <[u8]>::len)
}

/// Appends all of `fields`, whose lines are the first part of `text`.
fn append_fields(map: &mut HeaderMap, fields: &Fields, text: &Bytes) {
    for (name, span) in fields.spans() {
        // Names are lower-case constants: `Fields::push` insists.
        append(map, HeaderName::from_static(name), text, span);
    }
}

fn append(map: &mut HeaderMap, name: HeaderName, text: &Bytes, span: std::ops::Range<usize>) {
    // `Fields::push` lets no byte pass that a value must not hold.
    if let Ok(value) = HeaderValue::from_maybe_shared(text.slice(span)) {
        map.append(name, value);
    }
}
