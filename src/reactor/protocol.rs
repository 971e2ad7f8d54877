//! What a connection speaks, and how that is found out.
//!
//! A connection begins undecided and listens: the first bytes tell (`http::sniff`). Until then it
//! is idle or waits for a head, with the deadlines that go with it, like one of HTTP/1, but is not
//! answered when they pass. Both protocols take the same inputs and give the same outputs; this is
//! where a call finds its own.

use super::context::{Lent, Turn, Used, Waiting};
use super::http1::Http1;
use super::http2::Http2;
use crate::core::Moment;
use crate::engine::Event;
use crate::http::sniff::{Sniffed, sniff};
use crate::offload::CancelReason;

pub enum Protocol {
    /// Too little has come to tell: nothing, or a beginning of HTTP/2's preface. There is no
    /// language to answer in: what ends here ends without a word.
    Undecided {
        has_begun: bool,
    },
    Http1(Http1),
    Http2(Box<Http2>),
}

impl Default for Protocol {
    fn default() -> Protocol {
        Protocol::new()
    }
}

impl Protocol {
    pub const fn new() -> Protocol {
        Protocol::Undecided { has_begun: false }
    }

    // ---- getters ----

    pub fn waiting(&self) -> Waiting {
        match self {
            Protocol::Undecided {
                has_begun: true, ..
            } => Waiting::Head,
            Protocol::Undecided { .. } => Waiting::Request,
            Protocol::Http1(http1) => http1.waiting(),
            Protocol::Http2(http2) => http2.waiting(),
        }
    }

    /// How many requests have been answered, or refused.
    pub fn exchanges(&self) -> u32 {
        match self {
            Protocol::Undecided { .. } => 0,
            Protocol::Http1(http1) => http1.exchanges(),
            Protocol::Http2(http2) => http2.exchanges(),
        }
    }

    /// Whether bytes may be handed in.
    pub fn is_receptive(&self) -> bool {
        match self {
            Protocol::Undecided { .. } => true,
            Protocol::Http1(http1) => http1.is_receptive(),
            Protocol::Http2(http2) => http2.is_receptive(),
        }
    }

    /// Too few bytes have come to tell HTTP/1 from HTTP/2.
    pub fn is_undecided(&self) -> bool {
        matches!(self, Protocol::Undecided { .. })
    }

    pub fn is_over(&self) -> bool {
        match self {
            Protocol::Undecided { .. } => false,
            Protocol::Http1(http1) => http1.is_over(),
            Protocol::Http2(http2) => http2.is_over(),
        }
    }

    /// Whether this request's job still has somebody who waits for it.
    pub fn awaits(&self, request: u32) -> bool {
        match self {
            Protocol::Undecided { .. } => false,
            Protocol::Http1(http1) => http1.awaits(request),
            Protocol::Http2(http2) => http2.awaits(request),
        }
    }

    #[cfg(test)]
    pub fn is_answering(&self) -> bool {
        match self {
            Protocol::Undecided { .. } => false,
            Protocol::Http1(http1) => matches!(http1.waiting(), Waiting::Answer { .. }),
            Protocol::Http2(http2) => http2.is_answering(),
        }
    }

    // ---- handle ----

    /// The handshake has agreed on a protocol (RFC 7301); `None` leaves it to the first bytes.
    pub fn handle_alpn(&mut self, agreed: Option<&[u8]>, now: Moment) {
        match agreed {
            Some(b"h2") => *self = Protocol::Http2(Box::new(Http2::new(now))),
            Some(b"http/1.1") => *self = Protocol::Http1(Http1::new(now)),
            _ => {}
        }
    }

    /// `count` bytes have come, which [`Protocol::handle_input`] is given next.
    pub fn handle_arrival(&mut self, count: usize, lent: &mut Lent<'_, '_>) {
        // HTTP/2's bodies have their deadlines, and a frame or a preface that drips has its own.
        if let Protocol::Http1(http1) = self {
            http1.handle_arrival(count, lent);
        }
    }

    /// Nothing is read until `now`: that nothing comes is not the peer's fault.
    pub fn handle_pause(&mut self, now: Moment) {
        if let Protocol::Http1(http1) = self {
            http1.handle_pause(now);
        }
    }

    /// Takes in `input`, which starts with the first byte that was not used up before.
    pub fn handle_input(&mut self, input: &mut [u8], lent: &mut Lent<'_, '_>) -> Used {
        if let Protocol::Undecided { has_begun } = self {
            match sniff(input) {
                Sniffed::Undecided => {
                    *has_begun = !input.is_empty();
                    return Used {
                        consumed: 0,
                        keep: input.len(),
                        is_known: false,
                    };
                }
                Sniffed::Http2 => *self = Protocol::Http2(Box::new(Http2::new(lent.turn.now))),
                // What is neither is refused by HTTP/1, which says why.
                Sniffed::Http1 | Sniffed::Tls => {
                    self.http1(lent.turn.now).handle_arrival(input.len(), lent);
                }
            }
        }
        match self {
            Protocol::Http2(http2) => {
                http2.handle_input(input, lent);
                Used {
                    consumed: input.len(),
                    keep: input.len(),
                    is_known: http2.is_known(),
                }
            }
            Protocol::Undecided { .. } | Protocol::Http1(_) => {
                let http1 = self.http1(lent.turn.now);
                http1.handle_input(input, lent)
            }
        }
    }

    /// HTTP/1 from now on, where nothing else is decided.
    fn http1(&mut self, now: Moment) -> &mut Http1 {
        if !matches!(self, Protocol::Http1(_)) {
            *self = Protocol::Http1(Http1::new(now));
        }
        match self {
            Protocol::Http1(http1) => http1,
            // It has just been made.
            Protocol::Undecided { .. } | Protocol::Http2(_) => unreachable!(),
        }
    }

    /// An engine's event for the request that [`Protocol::awaits`] it.
    pub fn handle_event(&mut self, request: u32, event: Event, lent: &mut Lent<'_, '_>) {
        match self {
            Protocol::Undecided { .. } => {}
            Protocol::Http1(http1) => http1.handle_event(event, lent),
            Protocol::Http2(http2) => http2.handle_event(request, event, lent),
        }
    }

    /// The moment of [`Waiting::Answer`] has come.
    pub fn handle_deadline(&mut self, lent: &mut Lent<'_, '_>) {
        match self {
            Protocol::Undecided { .. } => {}
            Protocol::Http1(http1) => http1.handle_deadline(lent),
            Protocol::Http2(http2) => http2.handle_deadline(lent),
        }
    }

    /// A head or a body that is on its way in has taken too long.
    pub fn handle_late_request(&mut self, lent: &mut Lent<'_, '_>) {
        let waiting = self.waiting();
        if let Protocol::Http1(http1) = self {
            http1.handle_late_request(waiting, lent);
        }
    }

    /// The connection was idle for its time. `true`: it still has something to say.
    pub fn handle_idle(&mut self, turn: &mut Turn<'_>) -> bool {
        match self {
            Protocol::Undecided { .. } | Protocol::Http1(_) => false,
            Protocol::Http2(http2) => {
                http2.handle_idle(turn);
                true
            }
        }
    }

    /// The output queue has drained: what was held back for the lack of room may come.
    pub fn handle_room(&mut self, turn: &mut Turn<'_>) {
        match self {
            Protocol::Undecided { .. } => {}
            Protocol::Http1(http1) => http1.handle_room(turn),
            Protocol::Http2(http2) => http2.handle_room(),
        }
    }

    /// The peer's FIN. `true`: it may still wait for answers, and the connection goes on for them.
    pub fn handle_end_of_input(&mut self, turn: &mut Turn<'_>) -> bool {
        match self {
            Protocol::Undecided { .. } | Protocol::Http1(_) => false,
            Protocol::Http2(http2) => {
                http2.handle_end_of_input(turn);
                true
            }
        }
    }

    // ---- commands ----

    /// Says something that a waiting client takes and a dead one's kernel answers with a reset.
    pub fn probe(&mut self, lent: &mut Lent<'_, '_>) {
        match self {
            Protocol::Undecided { .. } => {}
            Protocol::Http1(http1) => http1.probe(lent),
            Protocol::Http2(http2) => http2.probe(),
        }
    }

    /// The connection ends: nobody waits for the answer any more.
    pub fn abandon(&mut self, reason: CancelReason, turn: &mut Turn<'_>) {
        match self {
            Protocol::Undecided { .. } => {}
            Protocol::Http1(http1) => http1.abandon(reason, turn),
            Protocol::Http2(http2) => http2.abandon(reason, turn),
        }
    }

    // ---- poll ----

    /// Queues what the calls before have brought, where that is not done yet.
    pub fn poll_output(&mut self, lent: &mut Lent<'_, '_>) {
        if let Protocol::Http2(http2) = self {
            http2.poll_output(lent);
        }
    }

    /// Whether [`Protocol::poll_output`] would find something to do.
    pub fn has_output(&self) -> bool {
        matches!(self, Protocol::Http2(http2) if http2.has_work())
    }
}
