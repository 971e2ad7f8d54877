//! One fetch on its way: its step, its deadlines, its memory.
//!
//! Owns the request, and through it the result that is owed. [`super::Outbound`] moves it from step
//! to step.
//!
//! ```text
//!              a place       a name           addresses     connected
//!   Waiting ──> Starting ──> Resolving ──> Dialing ──> Exchanging ──> its result
//!                 ^  │ └─ an address ─────────^           ^   │
//!                 │  └─ a kept connection ────────────────┘   │
//!                 └──────── the kept connection broke: once ──┘
//! ```
//!
//! Invariants:
//!  1. Each step is left by an event, or by the deadline: the whole's, or the step's own.
//!  2. The share is what the request and the connection hold.

use crate::core::buffered::{Account, Claim, Full, Share};
use crate::core::{Key, Moment};
use crate::offload::fetch::{Admitted, Stage};
use crate::offload::resolver::Asked;

use super::dial::Dial;

/// See the file's head.
pub struct Running {
    pub admitted: Box<Admitted>,
    pub step: Step,
    share: Share,
    whole_until: Moment,
    /// Of connecting, or of the first byte; `NEVER` while neither runs.
    step_until: Moment,
    /// The step that it is in; [`Step`] knows whether it waits for a name.
    stage: Stage,
}

pub enum Step {
    /// For a place.
    Waiting,
    /// It has a place, and nothing has been done yet.
    Starting,
    /// The question is withdrawn with it.
    Resolving(#[expect(dead_code, reason = "kept for its drop")] Asked),
    Dialing(Dial),
    /// On this connection.
    Exchanging(Key),
}

impl Running {
    pub fn new(admitted: Box<Admitted>, account: &Account, now: Moment) -> Running {
        Running {
            whole_until: now + admitted.timeouts.whole,
            admitted,
            step: Step::Waiting,
            share: account.share(Claim::Keyed),
            step_until: Moment::NEVER,
            stage: Stage::Wait,
        }
    }

    // ---- getters ----

    pub fn is_waiting(&self) -> bool {
        matches!(self.step, Step::Waiting)
    }

    /// Returns when it must be looked at, if nothing happens before.
    pub fn next_moment(&self) -> Moment {
        let attempt = match &self.step {
            Step::Dialing(dial) => dial.next_at(),
            Step::Waiting | Step::Starting | Step::Resolving(_) | Step::Exchanging(_) => {
                Moment::NEVER
            }
        };
        self.whole_until.min(self.step_until).min(attempt)
    }

    /// Returns the step in which its time has run out.
    pub fn expired(&self, now: Moment) -> Option<Stage> {
        if now < self.whole_until.min(self.step_until) {
            return None;
        }
        Some(match self.step {
            Step::Resolving(_) => Stage::Resolve,
            Step::Waiting | Step::Starting | Step::Dialing(_) | Step::Exchanging(_) => self.stage,
        })
    }

    // ---- events ----

    /// It has its place, and begins to connect.
    pub fn handle_started(&mut self, now: Moment) {
        self.step = Step::Starting;
        self.stage = Stage::Connect;
        self.step_until = now + self.admitted.timeouts.connect;
    }

    /// It is on a connection; the handshake of TLS may still run, within the same time.
    pub fn handle_connected(&mut self, connection: Key) {
        self.step = Step::Exchanging(connection);
    }

    /// The request can be sent from now on.
    pub fn handle_opened(&mut self, now: Moment) {
        self.stage = Stage::FirstByte;
        self.step_until = now + self.admitted.timeouts.first_byte;
    }

    /// A byte of the response has come: only the whole's time is left.
    pub fn handle_first_byte(&mut self) {
        self.stage = Stage::Whole;
        self.step_until = Moment::NEVER;
    }

    /// Counts the memory of its request, and of its connection's buffers.
    pub fn hold(&mut self, buffers: usize) -> Result<(), Full> {
        self.share.resize(self.admitted.bytes() as usize + buffers)
    }
}
