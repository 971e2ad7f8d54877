//! One stream as the application sees it: an arriving request, then its exchange, then the rest of
//! its response.
//!
//! ```text
//!              whole, a job runs           response complete
//!   Receiving ─────────────────> Answering ────────────────> Sending ──> gone
//!       └── refused, or complete at once ───────────────────────^
//! ```
//!
//! A request whose body is taken in pieces is in `Answering` from its head on.

use crate::core::Moment;
use crate::http::http2::head::Head;
use crate::reactor::handler::{Handler, Pending};

/// See the file's head.
pub struct Stream<H: Handler> {
    pub stage: Stage<H>,
    /// The peer must grant window for the waiting bytes by then.
    pub stalls_at: Moment,
}

pub enum Stage<H: Handler> {
    Receiving(Box<Receiving<H>>),
    Answering {
        exchange: Box<H::Exchange>,
        /// The body's pieces go to the exchange as they come.
        takes_pieces: bool,
    },
    /// The response is complete. A part of it may wait for window, and the request's body may not
    /// have ended. The rest of a body is read and forgotten until the given moment, as HTTP/1
    /// lingers: a client that is still writing treats a reset as a failure, and may not look at the
    /// response that it has got.
    Sending {
        lingers_until: Moment,
    },
}

/// A request whose body is on its way.
pub struct Receiving<H: Handler> {
    pub admitted: H::Admitted,
    pub head: Box<Head>,
    pub body: Vec<u8>,
    /// The body must be complete by then.
    pub until: Moment,
}

impl<H: Handler> Stage<H> {
    /// Only waiting bytes are left to send.
    pub const SENDING: Stage<H> = Stage::Sending {
        lingers_until: Moment::NEVER,
    };
}

impl<H: Handler> Stream<H> {
    pub fn new(stage: Stage<H>) -> Stream<H> {
        Stream {
            stage,
            stalls_at: Moment::NEVER,
        }
    }

    /// Takes the stage out, so that another one can take its place.
    pub fn take_stage(&mut self) -> Stage<H> {
        std::mem::replace(&mut self.stage, Stage::SENDING)
    }

    /// Returns the moment at which the stream must be looked at if nothing happens before.
    pub fn next_deadline(&self) -> Moment {
        let until = match &self.stage {
            Stage::Receiving(receiving) => receiving.until,
            Stage::Answering { exchange, .. } => exchange.next_deadline(),
            Stage::Sending { lingers_until } => *lingers_until,
        };
        until.min(self.stalls_at)
    }

    /// Returns the memory that it holds until its response is complete.
    pub fn buffered_bytes(&self) -> usize {
        match &self.stage {
            Stage::Receiving(receiving) => {
                receiving.head.memory_bytes() + receiving.body.capacity()
            }
            Stage::Answering { exchange, .. } => exchange.buffered_bytes(),
            Stage::Sending { .. } => 0,
        }
    }

    pub fn is_receiving(&self) -> bool {
        matches!(self.stage, Stage::Receiving(_))
    }

    pub fn is_sending(&self) -> bool {
        matches!(self.stage, Stage::Sending { .. })
    }
}
