//! One stream: a request on its way in, then its exchange, then what is left to send.
//!
//! ```text
//!              whole, a job runs           answer complete
//!   Receiving ─────────────────> Answering ───────────────> Sending ──> gone
//!       └── answered or refused at once ──────────────────────^
//! ```
//!
//! A request that is taken in pieces is in `Answering` from its head on.

use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use h2::RecvStream;
use http::request::Parts;

use super::reply::Outgoing;
use crate::core::Moment;
use crate::service::{Admitted, Exchange};

/// See the file's head.
pub struct Stream {
    pub stage: Stage,
    pub outgoing: Outgoing,
    /// The peer has until then to grant window for what waits.
    pub stalls_at: Moment,
    /// The rest of a body that an exchange takes in pieces.
    pub pieces: Option<RecvStream>,
    leftover: Option<Leftover>,
}

/// What still comes of a body that was answered before its end. It is read and forgotten for a
/// while, as HTTP/1 lingers: a client that writes takes a reset for a failure, and may not look at
/// the answer that it has got. Its window is not opened, so no more comes than is granted already.
struct Leftover {
    incoming: RecvStream,
    until: Moment,
}

pub enum Stage {
    Receiving(Box<Receiving>),
    Answering(Box<Exchange>),
    /// The answer is complete. A part of it may wait for window, and the request's body may not
    /// have ended.
    Sending,
}

/// A request whose body is on its way.
pub struct Receiving {
    pub admitted: Admitted,
    pub parts: Parts,
    pub incoming: RecvStream,
    pub body: Body,
    /// The body has to be whole by then.
    pub until: Moment,
}

impl Stream {
    pub fn new(stage: Stage, outgoing: Outgoing) -> Stream {
        Stream {
            stage,
            outgoing,
            stalls_at: Moment::NEVER,
            pieces: None,
            leftover: None,
        }
    }

    /// The answer is there before the end of its body: see [`Leftover`]. After `until` the rest is
    /// refused, which h2 says with NO_ERROR (RFC 9113, section 8.1).
    pub fn linger(&mut self, incoming: RecvStream, until: Moment) {
        if !incoming.is_end_stream() {
            self.leftover = Some(Leftover { incoming, until });
        }
    }

    /// Forgets what has come after the answer.
    pub fn discard(&mut self) {
        let mut context = Context::from_waker(Waker::noop());
        while let Some(leftover) = &mut self.leftover {
            match leftover.incoming.poll_data(&mut context) {
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(Some(Err(_)) | None) => self.leftover = None,
                Poll::Pending => return,
            }
        }
    }

    /// Whatever still comes is not waited for.
    pub fn stop_lingering(&mut self) {
        self.leftover = None;
    }

    /// When it has to be looked at, if nothing happens before.
    pub fn next_deadline(&self) -> Moment {
        let until = match &self.stage {
            Stage::Receiving(receiving) => receiving.until,
            Stage::Answering(exchange) => exchange.next_deadline(),
            Stage::Sending => self.leftover.as_ref().map_or(Moment::NEVER, |it| it.until),
        };
        until.min(self.stalls_at)
    }

    pub fn is_receiving(&self) -> bool {
        matches!(self.stage, Stage::Receiving(_))
    }

    /// Nothing is left to do.
    pub fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Sending) && self.outgoing.has_ended() && self.leftover.is_none()
    }
}

/// What has come of a body: the usual one is a single frame and is not copied.
#[derive(Debug, Default)]
pub struct Body {
    only: Bytes,
    joined: Vec<u8>,
}

impl Body {
    pub fn push(&mut self, piece: Bytes) {
        if self.is_empty() {
            self.only = piece;
            return;
        }
        if self.joined.is_empty() {
            self.joined.extend_from_slice(&self.only);
            self.only = Bytes::new();
        }
        self.joined.extend_from_slice(&piece);
    }

    pub fn as_slice(&self) -> &[u8] {
        match self.joined.is_empty() {
            true => &self.only,
            false => &self.joined,
        }
    }

    pub fn len(&self) -> usize {
        self.as_slice().len()
    }

    pub fn is_empty(&self) -> bool {
        self.as_slice().is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_its_pieces_in_order() {
        let mut body = Body::default();
        assert!(body.is_empty());
        body.push(Bytes::new());
        body.push(Bytes::from_static(b"one"));
        assert_eq!(body.as_slice(), b"one");
        assert!(body.joined.is_empty());
        body.push(Bytes::new());
        body.push(Bytes::from_static(b", two"));
        body.push(Bytes::from_static(b", three"));
        assert_eq!(body.as_slice(), b"one, two, three");
        assert_eq!(body.len(), 15);
    }
}
