//! Writes the response to one request.
//!
//! Owns the decisions made once per response (which version, with a body or without, the last of
//! its connection or not) and how far the response has come. [`Sink`] is the service's way to the
//! output queue: the service decides what to send, this file how to send it.
//!
//! ```text
//!   Nothing ── probe ──> Probed ── respond ──────────────────> Complete
//!      └── respond or start ──>  (as from Probed)                 ^
//!   Probed ── start ──> Streaming ── data ──> Streaming ── finish ┘
//! ```
//!
//! Invariant: a response's head is written once, and nothing after `Complete`.

use crate::core::output::{Level, Marks, OutputQueue};
use crate::core::pool::BufferPool;
use crate::http::http1::Head;
use crate::http::http1::encode::{self, BodyFraming};
use crate::http::{Fields, Method, ResponseHead, ResponseSink, Version};
use crate::reactor::context::{Lent, Turn};

/// See the file's head.
#[derive(Clone, Copy, Debug)]
pub struct Framing {
    version: Version,
    /// The response to HEAD has no body (RFC 9110, section 9.3.2).
    head_only: bool,
    /// The connection ends after it.
    pub last: bool,
    progress: Progress,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    Nothing,
    /// Only an interim response has been sent.
    Probed,
    /// The head is sent. Not `chunked`: for a client of HTTP/1.0, whose body ends with the
    /// connection.
    Streaming {
        chunked: bool,
    },
    Complete,
}

impl Default for Framing {
    /// For a request whose head could not be read.
    fn default() -> Framing {
        Framing {
            version: Version::Http11,
            head_only: false,
            last: false,
            progress: Progress::Nothing,
        }
    }
}

impl Framing {
    pub fn of(head: &Head<'_>, last: bool) -> Framing {
        Framing {
            version: head.request.version,
            head_only: head.request.method == Method::Head,
            last,
            progress: Progress::Nothing,
        }
    }

    pub fn has_not_begun(&self) -> bool {
        self.progress == Progress::Nothing
    }

    pub fn is_complete(&self) -> bool {
        self.progress == Progress::Complete
    }

    /// Writes an interim response, if the response has not begun and the client knows interim
    /// responses. Once the response flows, it probes by itself.
    pub fn probe(&mut self, output: &mut OutputQueue, pool: &mut BufferPool) {
        if self.progress == Progress::Nothing && self.version >= Version::Http11 {
            output.tail(pool).extend_from_slice(encode::CONTINUE);
            self.progress = Progress::Probed;
        }
    }

    /// Returns the sink for the response, and the handler that is to send it there.
    pub fn sink<'a, H>(&'a mut self, lent: &'a mut Lent<'_, '_, H>) -> (&'a mut H, Sink<'a>) {
        let Turn {
            handler,
            pool,
            marks,
            date,
            ..
        } = &mut *lent.turn;
        (
            handler,
            Sink {
                framing: self,
                output: lent.output,
                pool,
                marks: *marks,
                date,
            },
        )
    }
}

/// The service's way to the output queue, in HTTP/1.1's framing.
pub struct Sink<'a> {
    framing: &'a mut Framing,
    output: &'a mut OutputQueue,
    pool: &'a mut BufferPool,
    marks: Marks,
    date: &'a [u8; 29],
}

impl Sink<'_> {
    fn write_head(&mut self, answer: &ResponseHead<'_>, body: BodyFraming) {
        let Framing { version, last, .. } = *self.framing;
        let out = self.output.tail(self.pool);
        encode::response_head(out, answer, body, version, !last, self.date);
    }
}

impl ResponseSink for Sink<'_> {
    fn respond(&mut self, answer: &ResponseHead<'_>, body: &[u8]) {
        self.write_head(answer, BodyFraming::Length(body.len() as u64));
        if !self.framing.head_only && !encode::is_bodiless(answer.status) {
            self.output.tail(self.pool).extend_from_slice(body);
        }
        self.framing.progress = Progress::Complete;
    }

    fn start(&mut self, answer: &ResponseHead<'_>) {
        let body = BodyFraming::stream(self.framing.version);
        self.framing.last |= body == BodyFraming::UntilClose;
        self.write_head(answer, body);
        self.framing.progress = Progress::Streaming {
            chunked: body == BodyFraming::Chunked,
        };
    }

    fn data(&mut self, bytes: &[u8]) {
        if self.framing.head_only || bytes.is_empty() {
            return;
        }
        let tail = self.output.tail(self.pool);
        match self.framing.progress {
            Progress::Streaming { chunked: true } => encode::chunk(tail, bytes),
            _ => tail.extend_from_slice(bytes),
        }
    }

    /// A response without chunks has no trailers either, and the client must do without them.
    fn finish_with(&mut self, trailers: &Fields) {
        let chunked = self.framing.progress == Progress::Streaming { chunked: true };
        if chunked && !self.framing.head_only {
            encode::last_chunk(self.output.tail(self.pool), trailers);
        }
        self.framing.progress = Progress::Complete;
    }

    fn has_room(&self) -> bool {
        self.output.level(&self.marks) < Level::High
    }
}
