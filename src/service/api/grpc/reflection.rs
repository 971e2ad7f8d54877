//! Server reflection: a stream of requests, each served as soon as it comes.
//!
//! A client keeps the stream open, asks, reads, and asks again, so no response may wait for the
//! end. Must never send faster than the client reads: if a response finds no room, its request
//! waits, up to a bounded number of bytes.

use crate::core::Moment;
use crate::error::{ApiError, ErrorCode};
use crate::grpc::messages::decode;
use crate::grpc::{Decoder, Encoding, reflection};
use crate::http::ResponseSink;
use crate::limits::service as limits;
use crate::offload::CancelReason;

use super::health::expired;
use crate::service::call::{Admitted, Call};
use crate::service::representation::Representation;
use crate::service::request_log::Outcome;
use crate::service::response::coding::message_bounds;
use crate::service::{Exchange, Flow, Service};

/// A client that asks.
#[derive(Debug)]
pub struct Dialogue {
    call: Call,
    questions: Decoder,
    /// How many requests there were.
    count: u32,
    /// The client has ended its side.
    is_over: bool,
    /// When to check again: soon if requests wait for room in the output, otherwise at an interval,
    /// because a drain is not announced.
    look_at: Moment,
    /// The client's own deadline, or the longest time that a stream may last.
    ends: Moment,
    /// Whether `ends` is the client's.
    has_own_deadline: bool,
    bytes: u64,
}

impl Dialogue {
    pub fn next_deadline(&self) -> Moment {
        self.look_at.min(self.ends)
    }
}

impl Service {
    /// Returns the exchange of an admitted request of
    /// [`Intake::Pieces`](crate::service::Intake::Pieces), before any of its body.
    pub fn open(&mut self, admitted: Admitted, now: Moment) -> Box<Exchange> {
        let call = admitted.call;
        let (encoding, timeout) = match call.representation {
            Representation::Grpc(terms) => (terms.encoding, terms.timeout),
            Representation::Json | Representation::Protobuf => (Encoding::Identity, None),
        };
        let own = timeout.filter(|timeout| *timeout < limits::JOBLESS_STREAM_AGE_MAX);
        let bounds = message_bounds(&self.parts.config, call.row);
        let dialogue = Dialogue {
            questions: Decoder::new(encoding, bounds),
            count: 0,
            is_over: false,
            look_at: now + limits::HEALTH_WATCH_INTERVAL,
            ends: call.started + own.unwrap_or(limits::JOBLESS_STREAM_AGE_MAX),
            has_own_deadline: own.is_some(),
            bytes: 0,
            call,
        };
        Box::new(Exchange::Reflection(dialogue))
    }

    /// Takes the next piece of a body that comes in pieces, and whether it is the last. An empty
    /// piece may be the last.
    pub fn handle_data(
        &mut self,
        exchange: &mut Exchange,
        data: &[u8],
        is_end: bool,
        now: Moment,
        reply: &mut dyn ResponseSink,
    ) -> Flow {
        let Exchange::Reflection(dialogue) = exchange else {
            debug_assert!(false, "this exchange has its body already");
            return Flow::Open;
        };
        dialogue.is_over |= is_end;
        let waiting = dialogue.questions.pending_bytes() + data.len();
        if waiting > limits::REFLECTION_PENDING_BYTES_MAX && !reply.has_room() {
            let message = "too many questions wait for their answers to be read";
            let error = ApiError::new(ErrorCode::BodyTooLarge, message);
            return self.end_reflection(dialogue, Some(&error), now, reply);
        }
        dialogue.questions.handle_data(data);
        self.answer_questions(dialogue, now, reply)
    }

    /// Must be called at `next_deadline`.
    pub(in crate::service) fn look_at_questions(
        &mut self,
        dialogue: &mut Dialogue,
        now: Moment,
        reply: &mut dyn ResponseSink,
    ) -> Flow {
        if now >= dialogue.ends {
            let error = match dialogue.has_own_deadline {
                true => ApiError::new(ErrorCode::RequestTimeout, "the stream's deadline passed"),
                false => expired(),
            };
            return self.end_reflection(dialogue, Some(&error), now, reply);
        }
        if now < dialogue.look_at {
            return Flow::Open;
        }
        let flow = self.answer_questions(dialogue, now, reply);
        if flow == Flow::Open && self.is_draining && reply.has_room() {
            let message = "the daemon is about to stop; ask another one";
            let error = ApiError::new(ErrorCode::Draining, message);
            return self.end_reflection(dialogue, Some(&error), now, reply);
        }
        flow
    }

    pub(in crate::service) fn abandon_dialogue(
        &mut self,
        dialogue: &Dialogue,
        reason: CancelReason,
        now: Moment,
    ) {
        let bytes = dialogue.bytes;
        let outcome = Outcome::Abandoned { bytes, reason };
        self.log.close(&dialogue.call, outcome, None, now);
    }

    fn answer_questions(
        &mut self,
        dialogue: &mut Dialogue,
        now: Moment,
        reply: &mut dyn ResponseSink,
    ) -> Flow {
        dialogue.look_at = now + limits::HEALTH_WATCH_INTERVAL;
        loop {
            if !reply.has_room() {
                dialogue.look_at = now + limits::REFLECTION_RETRY;
                return Flow::Open;
            }
            match self.answer_question(dialogue, reply) {
                Ok(true) => {}
                Ok(false) if !dialogue.is_over => return Flow::Open,
                Ok(false) => {
                    let error = dialogue.questions.finish().err();
                    return self.end_reflection(dialogue, error.as_ref(), now, reply);
                }
                Err(error) => return self.end_reflection(dialogue, Some(&error), now, reply),
            }
        }
    }

    /// Serves the next request. Returns whether there was one.
    fn answer_question(
        &mut self,
        dialogue: &mut Dialogue,
        reply: &mut dyn ResponseSink,
    ) -> Result<bool, ApiError> {
        let Some(bytes) = dialogue.questions.poll_message()? else {
            return Ok(false);
        };
        dialogue.count += 1;
        if dialogue.count > limits::REFLECTION_QUESTIONS_MAX {
            let most = limits::REFLECTION_QUESTIONS_MAX;
            let message = format!("a stream may ask {most} questions; open another one");
            return Err(ApiError::new(ErrorCode::BodyTooLarge, message));
        }
        let asked = decode(&bytes, "ServerReflectionRequest")?;
        let answer = reflection::answer(asked);
        let is_first = dialogue.bytes == 0;
        dialogue.bytes += self.send_message(&dialogue.call, is_first, &answer, reply);
        Ok(true)
    }

    fn end_reflection(
        &mut self,
        dialogue: &Dialogue,
        error: Option<&ApiError>,
        now: Moment,
        reply: &mut dyn ResponseSink,
    ) -> Flow {
        self.end_dialogue(&dialogue.call, dialogue.bytes, error, now, reply);
        Flow::Finished
    }
}
