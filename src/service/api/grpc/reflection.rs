//! Server reflection: a stream of questions about the schema.
//!
//! A client keeps the stream open, asks, reads, and asks again, so a response must not wait for the
//! stream's end. Must never send faster than the client reads: a question that finds no room in the
//! output waits undecoded, and the bytes of waiting questions are bounded.

use crate::core::Moment;
use crate::error::{ApiError, ErrorCode};
use crate::grpc::messages::decode;
use crate::grpc::{Decoder, reflection};
use crate::limits::service as limits;
use crate::offload::CancelReason;
use crate::service::call::Call;
use crate::service::desk::{Desk, Flow, Wire};
use crate::service::inflation::message_bounds;
use crate::service::request_log::{Outcome, RequestLog};

use super::dialogue;
use super::health::expired;

/// A client that asks.
#[derive(Debug)]
pub struct Dialogue {
    call: Call,
    questions: Decoder,
    /// How many requests there were.
    count: u32,
    /// The client has ended its side.
    is_over: bool,
    /// When to check again: soon if questions wait for room in the output, otherwise at an
    /// interval, because a drain is not announced to a reactor's exchanges.
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

    /// Returns the memory of questions that wait.
    pub fn buffered_bytes(&self) -> usize {
        self.questions.buffered_bytes()
    }

    pub fn abandon(&self, log: &mut RequestLog, reason: CancelReason, now: Moment) {
        let bytes = self.bytes;
        log.close(&self.call, Outcome::Abandoned { bytes, reason }, None, now);
    }
}

/// Begins a dialogue, before any question.
pub fn open(desk: &Desk, call: Call, now: Moment) -> Dialogue {
    let terms = call.terms();
    let own = terms.timeout;
    let own = own.filter(|timeout| *timeout < limits::JOBLESS_STREAM_AGE_MAX);
    let bounds = message_bounds(&desk.parts.config.limits, call.row);
    Dialogue {
        questions: Decoder::new(terms.encoding, bounds),
        count: 0,
        is_over: false,
        look_at: now + limits::HEALTH_WATCH_INTERVAL,
        ends: call.started + own.unwrap_or(limits::JOBLESS_STREAM_AGE_MAX),
        has_own_deadline: own.is_some(),
        bytes: 0,
        call,
    }
}

/// Takes the next piece of the questions. An empty piece may be the last.
pub fn handle_data(
    desk: &mut Desk,
    dialogue: &mut Dialogue,
    data: &[u8],
    is_end: bool,
    wire: &mut Wire<'_>,
) -> Flow {
    dialogue.is_over |= is_end;
    let waiting = dialogue.questions.pending_bytes() + data.len();
    if waiting > limits::REFLECTION_PENDING_BYTES_MAX && !wire.sink.has_room() {
        let message = "too many questions are pending; read the responses";
        let error = ApiError::new(ErrorCode::BodyTooLarge, message);
        return finish(desk, dialogue, Some(&error), wire);
    }
    dialogue.questions.handle_data(data);
    respond(desk, dialogue, wire)
}

/// Must be called at [`Dialogue::next_deadline`].
pub fn handle_deadline(desk: &mut Desk, dialogue: &mut Dialogue, wire: &mut Wire<'_>) -> Flow {
    if wire.now >= dialogue.ends {
        let error = if dialogue.has_own_deadline {
            ApiError::new(
                ErrorCode::RequestTimeout,
                "the deadline of the stream expired",
            )
        } else {
            expired()
        };
        return finish(desk, dialogue, Some(&error), wire);
    }
    if wire.now < dialogue.look_at {
        return Flow::Open;
    }
    let flow = respond(desk, dialogue, wire);
    if flow == Flow::Open && desk.is_draining && wire.sink.has_room() {
        return finish(desk, dialogue, Some(&draining()), wire);
    }
    flow
}

/// Ends the dialogue because the daemon ends.
pub fn cut_off(desk: &mut Desk, dialogue: &Dialogue, wire: &mut Wire<'_>) {
    dialogue::end(
        desk,
        &dialogue.call,
        dialogue.bytes,
        Some(&draining()),
        wire,
    );
}

fn draining() -> ApiError {
    let message = "the daemon is stopping; use another one";
    ApiError::new(ErrorCode::Draining, message)
}

/// Responds to the questions that are complete, for as long as there is room.
fn respond(desk: &mut Desk, dialogue: &mut Dialogue, wire: &mut Wire<'_>) -> Flow {
    dialogue.look_at = wire.now + limits::HEALTH_WATCH_INTERVAL;
    loop {
        if !wire.sink.has_room() {
            dialogue.look_at = wire.now + limits::REFLECTION_RETRY;
            return Flow::Open;
        }
        match respond_once(desk, dialogue, wire) {
            Ok(true) => {}
            Ok(false) if !dialogue.is_over => return Flow::Open,
            Ok(false) => {
                let error = dialogue.questions.finish().err();
                return finish(desk, dialogue, error.as_ref(), wire);
            }
            Err(error) => return finish(desk, dialogue, Some(&error), wire),
        }
    }
}

/// Responds to the next question. Returns whether there was one.
fn respond_once(
    desk: &mut Desk,
    dialogue: &mut Dialogue,
    wire: &mut Wire<'_>,
) -> Result<bool, ApiError> {
    let Some(bytes) = dialogue.questions.poll_message()? else {
        return Ok(false);
    };
    dialogue.count += 1;
    if dialogue.count > limits::REFLECTION_QUESTIONS_MAX {
        let most = limits::REFLECTION_QUESTIONS_MAX;
        let message = format!("the stream reached its limit of {most} questions; open a new one");
        return Err(ApiError::new(ErrorCode::BodyTooLarge, message));
    }
    let response = reflection::answer(decode(&bytes, "ServerReflectionRequest")?);
    let is_first = dialogue.bytes == 0;
    dialogue.bytes += dialogue::send_message(desk, &dialogue.call, is_first, &response, wire);
    Ok(true)
}

fn finish(
    desk: &mut Desk,
    dialogue: &Dialogue,
    error: Option<&ApiError>,
    wire: &mut Wire<'_>,
) -> Flow {
    dialogue::end(desk, &dialogue.call, dialogue.bytes, error, wire);
    Flow::Finished
}
