//! The interface between a connection and its protocol.
//!
//! A protocol is a state machine without a socket and without a clock: bytes, events and the time
//! go in, and bytes of responses go out into the connection's output queue. [`super::http1`],
//! [`super::http2`] and the detection that comes before both ([`super::protocol`]) implement this
//! one trait, and the connection knows nothing else about them.
//!
//! The connection calls it like this:
//!
//! ```text
//!   a pump          while takes_input: handle_input, or handle_end_of_input
//!                   poll                    queue what is due; the connection writes it
//!   an event        awaits, handle_event    a pump follows
//!   a deadline      waiting, handle_deadline
//!   the end         abandon, or cut_off before it at the end of a drain
//! ```

use std::time::Duration;

use super::close_reason::CloseReason;
use super::context::{Lent, Turn};
use super::handler::Handler;
use crate::core::Moment;
use crate::core::deadlines::DeadlineKind;
use crate::error::{ApiError, ErrorCode};
use crate::limits::service as service_limits;
use crate::offload::CancelReason;
use crate::service::{Completion, Service};

/// See the file's head.
pub trait Machine<H: Handler = Service> {
    // ---- getters ----

    /// Returns what it waits for, which decides the deadline that runs.
    fn waiting(&self) -> Waiting;

    /// Returns whether bytes may be passed in.
    fn takes_input(&self) -> bool;

    /// Returns whether it stopped between two requests or frames although it had more bytes: its
    /// time was over, or the output had no room. The bytes that it left need nothing but another
    /// call.
    fn has_stopped_early(&self) -> bool;

    /// Returns how many requests have ended. A deadline that was set before this number changed
    /// belongs to an earlier request.
    fn exchanges(&self) -> u32;

    /// Returns whether an event of this request's job is expected, even if only its end.
    fn awaits(&self, request: u32) -> bool;

    /// Returns the memory that it holds for its peer, beside the connection's input and output.
    fn buffered_bytes(&self) -> usize;

    // ---- handle ----

    /// Takes bytes, the first of which is the first that was not used up before. The rest is passed
    /// in again: with more bytes after it, after the response that it must wait for, or in the next
    /// pump ([`Machine::has_stopped_early`]).
    fn handle_input(&mut self, input: Input<'_>, lent: &mut Lent<'_, '_, H>) -> Used;

    /// Handles the peer's FIN. Requests that it cuts off are dropped; responses to complete ones
    /// may still be sent. If [`Waiting::Over`] follows, nothing is left to do.
    fn handle_end_of_input(&mut self, lent: &mut Lent<'_, '_, H>);

    /// Handles a message of the engine or a worker for a request that [`Machine::awaits`] it.
    fn handle_event(&mut self, request: u32, completion: Completion, lent: &mut Lent<'_, '_, H>);

    /// Handles a passed deadline of what it waits for. `Some`: the connection closes at once,
    /// without a response, because the peer would understand none.
    fn handle_deadline(
        &mut self,
        kind: DeadlineKind,
        lent: &mut Lent<'_, '_, H>,
    ) -> Option<CloseReason>;

    // ---- commands ----

    /// Queues bytes that a waiting client ignores, and that a vanished client's kernel rejects with
    /// a reset.
    fn probe(&mut self, lent: &mut Lent<'_, '_, H>);

    /// Queues the error `draining` as the end of every response that is not complete: the daemon
    /// ends now. Requests of which not even a head has begun get none.
    fn cut_off(&mut self, lent: &mut Lent<'_, '_, H>);

    /// Ends the connection: no response is wanted any more.
    fn abandon(&mut self, reason: CancelReason, turn: &mut Turn<'_, H>);

    // ---- poll ----

    /// Queues the results of the calls before, and grants credit as room allows. Called once per
    /// pump, before the connection writes. Returns whether it must be called again, without waiting
    /// for anything.
    fn poll(&mut self, lent: &mut Lent<'_, '_, H>) -> bool;
}

/// The event that a protocol waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// The first byte of the next request.
    Request,
    /// The rest of a head.
    Head,
    /// The rest of a body.
    Body,
    /// The engine; [`Machine::handle_deadline`] is due at `until`.
    Response { until: Moment },
    /// Nothing: the last response is in the output queue.
    Over,
}

/// Bytes for a protocol.
pub struct Input<'a> {
    pub bytes: &'a mut [u8],
    /// How many of them, at the end, are handed in for the first time.
    pub fresh: usize,
}

/// The result for an [`Input`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// The bytes before this position are used up.
    pub consumed: usize,
    /// The bytes from here on are used up too, because they are decoded: `consumed..keep` remains.
    pub keep: usize,
    /// A valid key has come, or a job runs.
    pub is_known: bool,
}

/// The error for a request that the end of a drain finds half received.
pub fn cut_off() -> ApiError {
    let message = "the daemon has stopped before the request was complete; send it again";
    ApiError::new(ErrorCode::Draining, message).with_retry_after(service_limits::BUSY_RETRY_AFTER)
}

/// The error for a part of a request that was not complete in time.
pub fn late(part: &str, limit: Duration) -> ApiError {
    let limit = limit.as_secs_f32();
    let message = format!("the request's {part} was not complete within {limit} s");
    ApiError::new(ErrorCode::RequestTimeout, message)
}
