//! How requests come in: a head from h2, then its body, frame by frame.

use std::task::{Poll, Waker};

use bytes::Bytes;
use h2::Reason;
use http::request::Parts;

use super::reply::Outgoing;
use super::stream::{Body, Receiving, Stage, Stream};
use super::{Http2, refuse, writer};
use crate::error::ErrorCode;
use crate::http::Method;
use crate::http::http1::Malformed;
use crate::http::http2::{Incoming, head};
use crate::limits::http2 as http2_limits;
use crate::limits::reactor as limits;
use crate::offload::{CancelReason, JobKey};
use crate::reactor::context::{Lent, Turn};
use crate::service::{Admitted, Flow, Intake, Peer, Refusal};

/// How far a body has come.
enum Arrival {
    Partial,
    Whole,
    Gone,
    Refused(Malformed),
}

impl Http2 {
    /// A request's head is there: may its body come?
    pub(super) fn handle_request(&mut self, incoming: Incoming, lent: &mut Lent<'_, '_>) {
        let Incoming {
            request,
            mut respond,
        } = incoming;
        let id = respond.stream_id().as_u32();
        let (parts, incoming) = request.into_parts();
        if !head::is_well_formed(&parts) {
            return respond.send_reset(Reason::PROTOCOL_ERROR);
        }
        if self.streams.len() + self.orphans.len() >= http2_limits::STREAMS_MAX as usize {
            // RFC 9113, section 8.7: nothing of it was processed, and it can be sent again.
            return respond.send_reset(Reason::REFUSED_STREAM);
        }
        let head_only = parts.method == http::Method::HEAD;
        let mut outgoing = Outgoing::new(respond, head_only);
        let admitted = match admit(&parts, lent.peer, lent.turn) {
            Ok((admitted, expects_continue)) => {
                self.is_known |= admitted.has_key();
                if expects_continue && !incoming.is_end_stream() {
                    outgoing.send_continue();
                }
                admitted
            }
            Err(refusal) => {
                refuse(&mut outgoing, refusal, lent);
                let mut stream = Stream::new(Stage::Sending, outgoing);
                stream.linger(incoming, lent.turn.now + limits::LINGER_TIMEOUT);
                return self.insert(id, stream);
            }
        };
        if admitted.intake == Intake::Pieces {
            let exchange = lent.turn.handler.open(admitted, lent.turn.now);
            let mut stream = Stream::new(Stage::Answering(exchange), outgoing);
            stream.pieces = Some(incoming);
            self.insert(id, stream);
            return self.receive_pieces(id, lent);
        }
        let receiving = Box::new(Receiving {
            admitted,
            parts,
            incoming,
            body: Body::default(),
            until: lent.turn.now + lent.turn.config.limits.body_timeout,
        });
        self.insert(id, Stream::new(Stage::Receiving(receiving), outgoing));
        self.receive(id, lent);
    }

    fn insert(&mut self, id: u32, stream: Stream) {
        self.streams.insert(id, stream);
        self.drop_if_over(id);
    }

    /// Takes in what has come of a body; the request is handled when it is whole.
    pub(super) fn receive(&mut self, id: u32, lent: &mut Lent<'_, '_>) {
        let elsewhere = self.body_bytes();
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        let Stage::Receiving(receiving) = &mut stream.stage else {
            return;
        };
        match receiving.poll(elsewhere) {
            Arrival::Partial => {}
            Arrival::Gone => self.abandon_stream(id, CancelReason::Disconnect, lent.turn),
            Arrival::Whole if self.meter.has_malformed_trailers(id) => {
                self.reset_malformed(id, lent.turn);
            }
            Arrival::Whole => self.handle_whole(id, lent),
            Arrival::Refused(malformed) => {
                let stage = std::mem::replace(&mut stream.stage, Stage::Sending);
                if let Stage::Receiving(receiving) = stage {
                    let refusal = receiving.admitted.refuse(malformed.into());
                    refuse(&mut stream.outgoing, refusal, lent);
                    let until = lent.turn.now + limits::LINGER_TIMEOUT;
                    stream.linger(receiving.incoming, until);
                }
                self.drop_if_over(id);
            }
        }
    }

    /// Hands on what has come of a body that its exchange takes in pieces.
    pub(super) fn receive_pieces(&mut self, id: u32, lent: &mut Lent<'_, '_>) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        let mut waker = std::task::Context::from_waker(Waker::noop());
        while let (Stage::Answering(exchange), Some(pieces)) =
            (&mut stream.stage, &mut stream.pieces)
        {
            let (piece, is_end) = match pieces.poll_data(&mut waker) {
                Poll::Ready(Some(Ok(piece))) => (piece, false),
                Poll::Ready(None) if self.meter.has_malformed_trailers(id) => {
                    return self.reset_malformed(id, lent.turn);
                }
                // The end may be that of trailers, which are not read.
                Poll::Ready(None) => (Bytes::new(), true),
                Poll::Ready(Some(Err(_))) => {
                    return self.abandon_stream(id, CancelReason::Disconnect, lent.turn);
                }
                Poll::Pending => break,
            };
            // Fails only where more is given back than came.
            let _ = pieces.flow_control().release_capacity(piece.len());
            let now = lent.turn.now;
            let (service, mut reply) = writer(&mut stream.outgoing, lent);
            let flow = service.handle_data(exchange, &piece, is_end, now, &mut reply);
            if flow == Flow::Finished {
                stream.stage = Stage::Sending;
            }
            if is_end || flow == Flow::Finished {
                stream.pieces = None;
            }
        }
        self.drop_if_over(id);
    }

    fn handle_whole(&mut self, id: u32, lent: &mut Lent<'_, '_>) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        let stage = std::mem::replace(&mut stream.stage, Stage::Sending);
        let Stage::Receiving(receiving) = stage else {
            debug_assert!(false, "a request is complete but was not received");
            return;
        };
        let Receiving {
            admitted,
            parts,
            body,
            ..
        } = *receiving;
        let key = JobKey {
            reactor: lent.turn.reactor,
            connection: lent.turn.key,
            request: id,
        };
        let fields = head::fields(&parts);
        let request = head::request(&parts, &fields);
        let now = lent.turn.now;
        let (service, mut reply) = writer(&mut stream.outgoing, lent);
        let body = body.as_slice();
        if let Some(exchange) = service.handle(admitted, &request, body, key, now, &mut reply) {
            self.is_known |= exchange.has_job();
            stream.stage = Stage::Answering(exchange);
        }
        self.drop_if_over(id);
    }

    /// Bytes of bodies that are on their way in, and not whole.
    fn body_bytes(&self) -> usize {
        let streams = self.streams.values();
        let bytes = streams.map(|stream| match &stream.stage {
            Stage::Receiving(receiving) => receiving.body.len(),
            Stage::Answering(_) | Stage::Sending => 0,
        });
        bytes.sum()
    }
}

/// Admits a request by its head. The flag says whether `100 Continue` is waited for.
fn admit(parts: &Parts, peer: &Peer, turn: &mut Turn<'_>) -> Result<(Admitted, bool), Refusal> {
    let announced = head::check(parts, turn.bounds)
        .map_err(|malformed| Refusal::of_peer(malformed.into(), peer))?;
    let fields = head::fields(parts);
    let request = head::request(parts, &fields);
    let admitted = turn.handler.admit(&request, peer, turn.now)?;
    let limit = admitted.body_limit as u64;
    match announced.length {
        Some(length) if length > limit && request.method == Method::Post => {
            Err(admitted.refuse(BODY_TOO_LARGE.into()))
        }
        _ => Ok((admitted, announced.expects_continue)),
    }
}

impl Receiving {
    /// Takes in frames, while `elsewhere` bytes wait in all bodies of the connection.
    fn poll(&mut self, mut elsewhere: usize) -> Arrival {
        let mut context = std::task::Context::from_waker(Waker::noop());
        loop {
            let piece = match self.incoming.poll_data(&mut context) {
                Poll::Ready(Some(Ok(piece))) => piece,
                Poll::Ready(Some(Err(_))) => return Arrival::Gone,
                Poll::Ready(None) => break,
                Poll::Pending => return Arrival::Partial,
            };
            // Fails only where more is given back than came.
            let _ = self.incoming.flow_control().release_capacity(piece.len());
            elsewhere += piece.len();
            if self.body.len() + piece.len() > self.admitted.body_limit {
                return Arrival::Refused(match self.admitted.body_limit {
                    0 => NO_BODY,
                    _ => BODY_TOO_LARGE,
                });
            }
            if elsewhere > http2_limits::BODIES_BYTES_MAX {
                return Arrival::Refused(BODIES_TOO_LARGE);
            }
            self.body.push(piece);
        }
        // The end may be that of trailers, which are read and not used.
        match self.incoming.poll_trailers(&mut context) {
            Poll::Ready(Ok(_)) => Arrival::Whole,
            Poll::Ready(Err(_)) => Arrival::Gone,
            Poll::Pending => Arrival::Partial,
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
