//! What a connection asks of the protocol that it speaks, whichever that is.
//!
//! A protocol is a state machine without a socket and without a clock: bytes, events and the time
//! go in, bytes of responses come out into the connection's output queue. [`super::http1`],
//! [`super::http2`] and the listening that comes before both ([`super::protocol`]) implement this
//! one trait, and the connection knows nothing else of them.
//!
//! The connection calls it like this:
//!
//! ```text
//!   a pump          while takes_input: handle_input, or handle_end_of_input
//!                   poll                    queue what is due; the connection writes it
//!   an event        awaits, handle_event    a pump follows
//!   a deadline      waiting, handle_deadline
//!   the end         abandon
//! ```

use std::time::Duration;

use super::close_reason::CloseReason;
use super::context::{Lent, Turn};
use super::handler::Handler;
use crate::core::Moment;
use crate::core::deadlines::DeadlineKind;
use crate::engine::Event;
use crate::error::{ApiError, ErrorCode};
use crate::offload::CancelReason;
use crate::service::Service;

/// See the file's head.
pub trait Machine<H: Handler = Service> {
    // ---- getters ----

    /// What it waits for; which deadline runs depends on it.
    fn waiting(&self) -> Waiting;

    /// Whether bytes may be handed in.
    fn takes_input(&self) -> bool;

    /// How many requests have ended. A deadline that was set before this number changed belongs to
    /// an earlier request.
    fn exchanges(&self) -> u32;

    /// Whether an event of this request's job is expected, if only its end.
    fn awaits(&self, request: u32) -> bool;

    // ---- handle ----

    /// Takes in bytes, the first of which is the first that was not used up before. What remains is
    /// handed in again: with more bytes behind it, or after the response that it has to wait for.
    fn handle_input(&mut self, input: Input<'_>, lent: &mut Lent<'_, '_, H>) -> Used;

    /// The peer's FIN. Requests that it cuts off are over; responses to complete ones may still be
    /// sent. [`Waiting::Over`] afterwards: nothing is left to be done.
    fn handle_end_of_input(&mut self, lent: &mut Lent<'_, '_, H>);

    /// An engine's event for the request that [`Machine::awaits`] it.
    fn handle_event(&mut self, request: u32, event: Event, lent: &mut Lent<'_, '_, H>);

    /// The deadline of what it waits for has passed. `Some`: the connection closes at once, and
    /// without a word, since none would be understood.
    fn handle_deadline(
        &mut self,
        kind: DeadlineKind,
        lent: &mut Lent<'_, '_, H>,
    ) -> Option<CloseReason>;

    // ---- commands ----

    /// Queues something that a waiting client ignores, and that the kernel of one that is gone
    /// answers with a reset.
    fn probe(&mut self, lent: &mut Lent<'_, '_, H>);

    /// The connection ends: no response is waited for any more.
    fn abandon(&mut self, reason: CancelReason, turn: &mut Turn<'_, H>);

    // ---- poll ----

    /// Queues what the calls before have brought, and grants what room allows. Called once a pump,
    /// before the connection writes. `true`: it must be called again, without waiting for anything.
    fn poll(&mut self, lent: &mut Lent<'_, '_, H>) -> bool;
}

/// What a protocol waits for.
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

/// Bytes that a protocol is given.
pub struct Input<'a> {
    pub bytes: &'a mut [u8],
    /// How many of them, at the end, are handed in for the first time.
    pub fresh: usize,
}

/// What has become of an [`Input`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// Up to here the bytes are used up.
    pub consumed: usize,
    /// From here on they are used up too, being decoded: `consumed..keep` is what remains.
    pub keep: usize,
    /// A valid key has come, or a job runs.
    pub is_known: bool,
}

/// The error for a part of a request that was not complete in time.
pub fn late(part: &str, limit: Duration) -> ApiError {
    let limit = limit.as_secs_f32();
    let message = format!("the request's {part} was not complete within {limit} s");
    ApiError::new(ErrorCode::RequestTimeout, message)
}
