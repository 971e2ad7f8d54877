//! Chooses which of a connection's deadlines run.
//!
//! Owns no state: after each pump it derives the running deadlines ([`crate::core::deadlines`])
//! from the phase, the transport and the state of the protocol.
//!
//! | the connection waits for | running deadline |
//! | --- | --- |
//! | a proxy's header, a handshake | `Header` |
//! | the first byte of a request, with all output written | `Idle` |
//! | the rest of a head; of a body | `Header`; `Body` |
//! | the engine | `Request`, at the moment that the protocol names |
//! | the peer, to take output | `WriteStall`, beside any of the others |
//! | the peer's FIN, after ours | `Linger`, alone |
//!
//! None of the first three runs while the connection does not want to read: the peer cannot be late
//! with bytes that we would not take.

use super::{Connection, Phase, WAITING};
use crate::core::Moment;
use crate::core::deadlines::DeadlineKind;
use crate::reactor::context::Turn;
use crate::reactor::machine::{Machine, Waiting};

impl<K> Connection<K> {
    /// Sets the deadlines for the state in which the pump has left the connection.
    pub(super) fn set_deadlines(&mut self, turn: &Turn<'_>) {
        if self.channel.has_output() {
            let at = turn.now + turn.config.limits.write_timeout;
            self.deadlines.set_if_unset(DeadlineKind::WriteStall, at);
        } else {
            self.deadlines.clear(DeadlineKind::WriteStall);
        }
        match self.running_deadline(turn) {
            None => self.clear_waiting_deadlines(),
            Some((kind, at)) => {
                let at = match self.deadlines.get(kind) {
                    // Absolute, except for the application's own.
                    set if set != Moment::NEVER && kind != DeadlineKind::Request => set,
                    _ => at,
                };
                self.clear_waiting_deadlines();
                self.deadlines.set(kind, at);
            }
        }
    }

    /// Returns which of [`WAITING`] runs, and until when if it begins now.
    fn running_deadline(&self, turn: &Turn<'_>) -> Option<(DeadlineKind, Moment)> {
        if self.phase != Phase::Open {
            return None;
        }
        let (now, limits) = (turn.now, &turn.config.limits);
        if self.opening() != (false, false) {
            return Some((DeadlineKind::Header, now + limits.header_timeout));
        }
        match self.protocol.waiting() {
            Waiting::Response { until } => Some((DeadlineKind::Request, until)),
            _ if !self.wants_to_read(&turn.marks) => None,
            Waiting::Request if self.channel.has_output() => None,
            Waiting::Request => Some((DeadlineKind::Idle, now + limits.idle_timeout)),
            Waiting::Head => Some((DeadlineKind::Header, now + limits.header_timeout)),
            Waiting::Body => Some((DeadlineKind::Body, now + limits.body_timeout)),
            Waiting::Over => None,
        }
    }

    pub(super) fn clear_waiting_deadlines(&mut self) {
        for kind in WAITING {
            self.deadlines.clear(kind);
        }
    }
}
