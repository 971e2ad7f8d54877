//! The border between the reactors, which never wait, and the threads that do.
//!
//! Out goes a [`crate::engine::Job`] through a bounded channel; back come events through the
//! reactor's [`mailbox`]. Both carry a [`JobKey`], so that what comes back late finds nobody
//! rather than somebody else. Beside them a shared [`Ticket`] carries the two signals that must
//! overtake the queues: cancellation, and credit for token events.

pub mod mailbox;
mod sync;
pub mod ticket;

use crate::core::Key;

pub use ticket::{CancelReason, Permit, Ticket};

/// Whom a job's events belong to: one request on one connection of one reactor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct JobKey {
    /// Index of the reactor, and of its mailbox.
    pub reactor: u16,
    pub connection: Key,
    /// Counts the requests of the connection; tells a late event of the last from one of this.
    pub request: u32,
}
