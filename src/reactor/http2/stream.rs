//! One stream as the application sees it: an arriving request, then its exchange, then the rest of
//! its response.
//!
//! ```text
//!              whole, a job runs           response complete
//!   Receiving ─────────────────> Answering ────────────────> Sending ──> gone
//!       └── refused, or complete at once ───────────────────────^
//! ```
//!
//! A request that is taken in pieces is in `Answering` from its head on.

use crate::core::Moment;
use crate::http::http2::head::Head;
use crate::reactor::handler::{Handler, Pending};

/// See the file's head.
pub struct Stream<H: Handler> {
    pub stage: Stage<H>,
    /// The peer has until then to grant window for what waits.
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
    /// lingers: a client that writes takes a reset for a failure, and may not look at the response
    /// that it has got.
    Sending {
        lingers_until: Moment,
    },
}

/// A request whose body is on its way.
pub struct Receiving<H: Handler> {
    pub admitted: H::Admitted,
    pub head: Box<Head>,
    pub body: Vec<u8>,
    /// The body has to be whole by then.
    pub until: Moment,
}

impl<H: Handler> Stage<H> {
    /// Nothing is left but to send what waits.
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

    /// Takes the stage out, to put another one in its place.
    pub fn take_stage(&mut self) -> Stage<H> {
        std::mem::replace(&mut self.stage, Stage::SENDING)
    }

    /// When it has to be looked at, if nothing happens before.
    pub fn next_deadline(&self) -> Moment {
        let until = match &self.stage {
            Stage::Receiving(receiving) => receiving.until,
            Stage::Answering { exchange, .. } => exchange.next_deadline(),
            Stage::Sending { lingers_until } => *lingers_until,
        };
        until.min(self.stalls_at)
    }

    pub fn is_receiving(&self) -> bool {
        matches!(self.stage, Stage::Receiving(_))
    }

    pub fn is_sending(&self) -> bool {
        matches!(self.stage, Stage::Sending { .. })
    }
}
