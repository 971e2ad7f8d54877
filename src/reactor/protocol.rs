//! Chooses the protocol of a connection.
//!
//! A connection begins undecided and listens: TLS may have agreed on a protocol, otherwise the
//! first bytes decide (`http::sniff`). Until then it is idle or waits for a head, with the same
//! deadlines as HTTP/1. But when they pass it sends no response, because no protocol is known yet.
//!
//! ```text
//!   Undecided ── ALPN, or the first bytes ──> Http1
//!                                         └─> Http2
//! ```
//!
//! Invariant: a decision is final.

use super::close_reason::CloseReason;
use super::context::{Lent, Turn};
use super::http1::Http1;
use super::http2::Http2;
use super::machine::{Input, Machine, Used, Waiting};
use crate::core::Moment;
use crate::core::deadlines::DeadlineKind;
use crate::http::sniff::{Sniffed, sniff};
use crate::offload::CancelReason;
use crate::service::Completion;

pub enum Protocol {
    Undecided(Undecided),
    Http1(Http1),
    Http2(Box<Http2>),
}

/// Too few bytes have come to decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Undecided {
    Silent,
    /// A beginning of HTTP/2's preface has come.
    Begun,
    Over,
}

/// Calls the machine of the chosen protocol.
macro_rules! with_machine {
    ($protocol:expr, $machine:ident => $call:expr) => {
        match $protocol {
            Protocol::Undecided($machine) => $call,
            Protocol::Http1($machine) => $call,
            Protocol::Http2($machine) => $call,
        }
    };
}

impl Default for Protocol {
    fn default() -> Protocol {
        Protocol::Undecided(Undecided::Silent)
    }
}

impl Protocol {
    /// Takes the protocol agreed on in the handshake (RFC 7301); `None` leaves it to the first
    /// bytes.
    pub fn handle_alpn(&mut self, agreed: Option<&[u8]>, now: Moment) {
        match agreed {
            Some(b"h2") => *self = Protocol::Http2(Box::new(Http2::new(now))),
            Some(b"http/1.1") => *self = Protocol::Http1(Http1::new(now)),
            _ => {}
        }
    }

    #[cfg(test)]
    pub fn is_answering(&self) -> bool {
        match self {
            Protocol::Undecided(_) => false,
            Protocol::Http1(http1) => matches!(http1.waiting(), Waiting::Response { .. }),
            Protocol::Http2(http2) => http2.is_answering(),
        }
    }
}

impl Machine for Protocol {
    fn waiting(&self) -> Waiting {
        with_machine!(self, machine => machine.waiting())
    }

    fn takes_input(&self) -> bool {
        with_machine!(self, machine => machine.takes_input())
    }

    fn has_stopped_early(&self) -> bool {
        with_machine!(self, machine => machine.has_stopped_early())
    }

    fn exchanges(&self) -> u32 {
        with_machine!(self, machine => machine.exchanges())
    }

    fn awaits(&self, request: u32) -> bool {
        with_machine!(self, machine => machine.awaits(request))
    }

    fn buffered_bytes(&self) -> usize {
        with_machine!(self, machine => machine.buffered_bytes())
    }

    /// Decides by the first bytes, which are then passed to the chosen protocol.
    fn handle_input(&mut self, mut input: Input<'_>, lent: &mut Lent<'_, '_>) -> Used {
        if let Protocol::Undecided(_) = self {
            let now = lent.turn.now;
            match sniff(input.bytes) {
                Sniffed::Undecided => {}
                Sniffed::Http2 => *self = Protocol::Http2(Box::new(Http2::new(now))),
                // If it is neither, HTTP/1 refuses it with the reason.
                Sniffed::Http1 | Sniffed::Tls => *self = Protocol::Http1(Http1::new(now)),
            }
            input.fresh = input.bytes.len();
        }
        with_machine!(self, machine => machine.handle_input(input, lent))
    }

    fn handle_end_of_input(&mut self, lent: &mut Lent<'_, '_>) {
        with_machine!(self, machine => machine.handle_end_of_input(lent));
    }

    fn handle_event(&mut self, request: u32, completion: Completion, lent: &mut Lent<'_, '_>) {
        with_machine!(self, machine => machine.handle_event(request, completion, lent));
    }

    fn handle_deadline(
        &mut self,
        kind: DeadlineKind,
        lent: &mut Lent<'_, '_>,
    ) -> Option<CloseReason> {
        with_machine!(self, machine => machine.handle_deadline(kind, lent))
    }

    fn probe(&mut self, lent: &mut Lent<'_, '_>) {
        with_machine!(self, machine => machine.probe(lent));
    }

    fn cut_off(&mut self, lent: &mut Lent<'_, '_>) {
        with_machine!(self, machine => machine.cut_off(lent));
    }

    fn abandon(&mut self, reason: CancelReason, turn: &mut Turn<'_>) {
        with_machine!(self, machine => machine.abandon(reason, turn));
    }

    fn poll(&mut self, lent: &mut Lent<'_, '_>) -> bool {
        with_machine!(self, machine => machine.poll(lent))
    }
}

impl Machine for Undecided {
    fn waiting(&self) -> Waiting {
        match self {
            Undecided::Silent => Waiting::Request,
            Undecided::Begun => Waiting::Head,
            Undecided::Over => Waiting::Over,
        }
    }

    fn takes_input(&self) -> bool {
        *self != Undecided::Over
    }

    fn has_stopped_early(&self) -> bool {
        false
    }

    fn exchanges(&self) -> u32 {
        0
    }

    fn awaits(&self, _: u32) -> bool {
        false
    }

    fn buffered_bytes(&self) -> usize {
        0
    }

    fn handle_input(&mut self, input: Input<'_>, _: &mut Lent<'_, '_>) -> Used {
        if !input.bytes.is_empty() {
            *self = Undecided::Begun;
        }
        Used {
            consumed: 0,
            keep: input.bytes.len(),
            is_known: false,
        }
    }

    fn handle_end_of_input(&mut self, _: &mut Lent<'_, '_>) {
        *self = Undecided::Over;
    }

    fn handle_event(&mut self, _: u32, _: Completion, _: &mut Lent<'_, '_>) {}

    fn handle_deadline(&mut self, kind: DeadlineKind, _: &mut Lent<'_, '_>) -> Option<CloseReason> {
        match kind {
            DeadlineKind::Idle => Some(CloseReason::Idle),
            _ => Some(CloseReason::RequestTimeout),
        }
    }

    fn probe(&mut self, _: &mut Lent<'_, '_>) {}

    fn cut_off(&mut self, _: &mut Lent<'_, '_>) {
        *self = Undecided::Over;
    }

    fn abandon(&mut self, _: CancelReason, _: &mut Turn<'_>) {
        *self = Undecided::Over;
    }

    fn poll(&mut self, _: &mut Lent<'_, '_>) -> bool {
        false
    }
}
