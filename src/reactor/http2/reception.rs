//! Receives requests: a head, then its body, piece by piece.

use std::borrow::Cow;

use super::stream::{Receiving, Stage, Stream};
use super::{Http2, writer};
use crate::core::Moment;
use crate::core::buffered::Claim;
use crate::error::ErrorCode;
use crate::http::Method;
use crate::http::http1::Malformed;
use crate::http::http2::connection::Event;
use crate::http::http2::frame::Reason;
use crate::http::http2::head::{self, Head};
use crate::limits::http2 as http2_limits;
use crate::limits::reactor as limits;
use crate::offload::{CancelReason, JobKey};
use crate::reactor::context::{Lent, Turn};
use crate::reactor::handler::{Admission, Handler, Pending};
use crate::reactor::metrics::Part;
use crate::service::{Flow, Intake, buffers_full};

impl<H: Handler> Http2<H> {
    /// Does the rest of the work for a frame. Returns whether that may have been much: a request
    /// was handled, or a piece of one.
    pub(super) fn handle_frame_event(
        &mut self,
        event: Event<'_>,
        lent: &mut Lent<'_, '_, H>,
    ) -> bool {
        match event {
            Event::Nothing => false,
            Event::Request {
                stream,
                head,
                has_body,
            } => {
                self.handle_head(stream, head, has_body, lent);
                !has_body
            }
            Event::Data {
                stream,
                bytes,
                is_end,
            } => {
                self.handle_data(stream, bytes, is_end, lent);
                let stream = self.streams.get(&stream);
                is_end || stream.is_some_and(|it| !it.is_receiving())
            }
            Event::Reset { stream } => {
                self.abandon_stream(stream, CancelReason::Disconnect, lent.turn);
                true
            }
        }
    }

    /// Handles the head of a request: decides whether its body may come.
    fn handle_head(
        &mut self,
        id: u32,
        head: Box<Head>,
        has_body: bool,
        lent: &mut Lent<'_, '_, H>,
    ) {
        if self.streams.len() + self.orphans.len() >= http2_limits::STREAMS_MAX as usize {
            // RFC 9113, section 8.7: nothing of it was processed, so it can be sent again.
            return self.connection.reset(id, Reason::REFUSED_STREAM);
        }
        let admitted = match admit(&head, lent) {
            Ok((admitted, expects_continue)) => {
                self.is_known |= admitted.has_key();
                if expects_continue && has_body {
                    self.connection.send_continue(id);
                }
                admitted
            }
            Err(refusal) => {
                self.streams.insert(id, Stream::new(Stage::SENDING));
                return self.refuse(id, refusal, lent);
            }
        };
        if admitted.intake() == Intake::Pieces {
            let exchange = lent.turn.handler.open(admitted, lent.turn.now);
            let stage = Stage::Answering {
                exchange,
                takes_pieces: true,
            };
            self.streams.insert(id, Stream::new(stage));
            if !has_body {
                self.handle_data(id, b"", true, lent);
            }
            return;
        }
        let receiving = Receiving {
            admitted,
            head,
            body: Vec::new(),
            until: lent.turn.now + lent.turn.config.limits.body_timeout,
        };
        if has_body {
            let stage = Stage::Receiving(Box::new(receiving));
            self.streams.insert(id, Stream::new(stage));
        } else {
            self.streams.insert(id, Stream::new(Stage::SENDING));
            self.handle_whole(id, receiving, b"", lent);
        }
    }

    /// Handles a piece of a body.
    fn handle_data(&mut self, id: u32, piece: &[u8], is_end: bool, lent: &mut Lent<'_, '_, H>) {
        let elsewhere = self.body_bytes();
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        match &mut stream.stage {
            Stage::Receiving(receiving) => {
                if let Err(malformed) = receiving.check(piece.len(), elsewhere) {
                    return self.refuse_body(id, malformed, lent);
                }
                if !is_end {
                    let bytes = receiving.body.len() + piece.len();
                    if !lent.turn.admits_body(&mut receiving.admitted, bytes) {
                        return self.refuse_for_memory(id, lent);
                    }
                    return receiving.body.extend_from_slice(piece);
                }
                if let Stage::Receiving(receiving) = stream.take_stage() {
                    self.handle_whole(id, *receiving, piece, lent);
                }
            }
            Stage::Answering {
                exchange,
                takes_pieces,
            } if *takes_pieces => {
                let now = lent.turn.now;
                let (handler, mut sink) = writer(&mut self.connection, id, lent);
                let flow = handler.handle_data(exchange, piece, is_end, now, &mut sink);
                *takes_pieces = !is_end;
                if flow == Flow::Finished {
                    self.finish(id, lent.turn);
                }
            }
            Stage::Answering { .. } | Stage::Sending { .. } => self.settle(id),
        }
    }

    /// Handles a complete request; `last` is the rest of its body. The usual body is one frame, and
    /// is not copied.
    fn handle_whole(
        &mut self,
        id: u32,
        receiving: Receiving<H>,
        last: &[u8],
        lent: &mut Lent<'_, '_, H>,
    ) {
        let Receiving {
            admitted,
            head,
            mut body,
            ..
        } = receiving;
        let body = if body.is_empty() {
            Cow::Borrowed(last)
        } else {
            body.extend_from_slice(last);
            Cow::Owned(body)
        };
        let key = JobKey {
            reactor: lent.turn.reactor,
            connection: lent.turn.key,
            request: id,
        };
        let fields = head.fields();
        let request = head.request(&fields);
        let now = lent.turn.now;
        let (handler, mut sink) = writer(&mut self.connection, id, lent);
        let exchange = handler.handle(admitted, &request, body, key, now, &mut sink);
        drop(fields);
        self.connection.recycle(*head);
        if let (Some(exchange), Some(stream)) = (exchange, self.streams.get_mut(&id)) {
            self.is_known |= exchange.has_job();
            stream.stage = Stage::Answering {
                exchange,
                takes_pieces: false,
            };
        }
        self.settle(id);
    }

    fn refuse_body(&mut self, id: u32, malformed: Malformed, lent: &mut Lent<'_, '_, H>) {
        if let Some(stream) = self.streams.get_mut(&id)
            && let Stage::Receiving(receiving) = stream.take_stage()
        {
            let refusal = H::refusal(receiving.admitted, malformed.into());
            self.refuse(id, refusal, lent);
        }
    }

    /// If there is no memory, gives up what has only begun: requests whose body has not, and the
    /// frame or the head of a peer that has shown no key.
    pub(super) fn give_up_beginnings(&mut self, lent: &mut Lent<'_, '_, H>) {
        if lent.turn.buffered.admits(Claim::Anonymous) {
            return;
        }
        let begun = self.streams.iter().filter_map(|(&id, stream)| {
            let Stage::Receiving(receiving) = &stream.stage else {
                return None;
            };
            let claim = Claim::of(receiving.admitted.has_key());
            receiving.body.is_empty().then_some((id, claim))
        });
        for (id, claim) in begun.collect::<Vec<_>>() {
            if !lent.turn.admits(claim, Part::Body) {
                self.refuse_for_memory(id, lent);
            }
        }
        let part = match self.connection.is_within_block() {
            true => Part::Head,
            false => Part::Frame,
        };
        let is_within = part == Part::Head || self.reader.is_within();
        if is_within && !self.is_known && !lent.turn.admits(Claim::Anonymous, part) {
            let reason = Reason::ENHANCE_YOUR_CALM;
            self.shut_down(reason, CancelReason::Disconnect, lent.turn);
        }
    }

    fn refuse_for_memory(&mut self, id: u32, lent: &mut Lent<'_, '_, H>) {
        if let Some(stream) = self.streams.get_mut(&id)
            && let Stage::Receiving(receiving) = stream.take_stage()
        {
            let refusal = H::refusal(receiving.admitted, buffers_full());
            self.refuse(id, refusal, lent);
        }
    }

    /// Sends a refusal. Reads the rest of the body for a while.
    pub(super) fn refuse(&mut self, id: u32, refusal: H::Refusal, lent: &mut Lent<'_, '_, H>) {
        let now = lent.turn.now;
        let (handler, mut sink) = writer(&mut self.connection, id, lent);
        handler.refuse(refusal, now, &mut sink);
        self.finish(id, lent.turn);
    }

    /// Handles the end of a response. If the request is incomplete, reads the rest of it for a
    /// while.
    pub(super) fn finish(&mut self, id: u32, turn: &Turn<'_, H>) {
        let lingers_until = match self.connection.ignore_body(id) {
            true => turn.now + limits::LINGER_TIMEOUT,
            false => Moment::NEVER,
        };
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.stage = Stage::Sending { lingers_until };
        }
        self.settle(id);
    }

    /// Returns the bytes of all incomplete bodies.
    fn body_bytes(&self) -> usize {
        let streams = self.streams.values();
        let bytes = streams.map(|stream| match &stream.stage {
            Stage::Receiving(receiving) => receiving.body.len(),
            Stage::Answering { .. } | Stage::Sending { .. } => 0,
        });
        bytes.sum()
    }
}

/// Admits a request by its head. The flag is true if the client waits for `100 Continue`.
fn admit<H: Handler>(
    head: &Head,
    lent: &mut Lent<'_, '_, H>,
) -> Result<(H::Admitted, bool), H::Refusal> {
    let Lent { peer, turn, .. } = lent;
    let announced = head::check(head, turn.bounds)
        .map_err(|malformed| H::refusal_of_peer(peer, malformed.into()))?;
    let fields = head.fields();
    let request = head.request(&fields);
    let admitted = turn.handler.admit(&request, peer, turn.now)?;
    let limit = admitted.body_limit() as u64;
    match announced.length {
        Some(length) if length > limit && request.method == Method::Post => {
            Err(H::refusal(admitted, BODY_TOO_LARGE.into()))
        }
        _ => Ok((admitted, announced.expects_continue)),
    }
}

impl<H: Handler> Receiving<H> {
    /// Checks whether `bytes` more may come, while all bodies of the connection hold `elsewhere`
    /// bytes.
    fn check(&self, bytes: usize, elsewhere: usize) -> Result<(), Malformed> {
        let limit = self.admitted.body_limit();
        if self.body.len() + bytes > limit {
            return Err(match limit {
                0 => NO_BODY,
                _ => BODY_TOO_LARGE,
            });
        }
        match elsewhere + bytes > http2_limits::BODIES_BYTES_MAX {
            true => Err(BODIES_TOO_LARGE),
            false => Ok(()),
        }
    }
}

const BODY_TOO_LARGE: Malformed = Malformed::new(
    ErrorCode::BodyTooLarge,
    "the body is larger than limits.max_body",
);

const BODIES_TOO_LARGE: Malformed = Malformed::new(
    ErrorCode::TooManyConcurrent,
    "the bodies being received on this connection are larger than 32 MiB together; send fewer at \
     once",
);

const NO_BODY: Malformed = Malformed::new(
    ErrorCode::InvalidRequest,
    "this request must not have a body",
);
