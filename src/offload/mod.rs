//! The border between the reactors, which never wait, and the threads that do.
//!
//! A [`crate::engine::Job`] goes out through a bounded channel, and its events come back through
//! the reactor's [`mailbox`]. Both carry a [`JobKey`], so a late event finds either the request
//! that it belongs to or none. Beside them, a shared [`Ticket`] carries the two signals that must
//! overtake the queues: cancellation, and credit for token events.
//!
//! Work that takes a processor's time, and not a model's, goes to the [`workers`]: inflating and
//! parsing a long body, rendering and tokenizing a prompt. Their [`fair_queue`] divides their time
//! between the tenants.
//!
//! The other way round, any thread may ask a reactor for a request to another server: a [`fetch`].
//! Names are resolved on threads of their own: [`resolver`]. Where another machine decides how long
//! a place is held, [`shares`] bounds how many one tenant holds.

pub mod fair_queue;
pub mod fetch;
pub mod mailbox;
pub mod metrics;
pub mod resolver;
pub mod shares;
mod sync;
#[cfg(test)]
mod tests;
pub mod ticket;
pub mod workers;

use crate::core::Key;

pub use ticket::{CancelReason, Permit, Ticket};
pub use workers::{Task, Workers};

/// The daemon itself, among the tenants: no key has this number, a hash of its id.
pub const OWN_TENANT: u64 = 0;

/// Names the request that a job's events belong to: its reactor, connection and number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct JobKey {
    /// Index of the reactor, and of its mailbox.
    pub reactor: u16,
    pub connection: Key,
    /// Counts the requests of the connection, so that a late event of the previous request is not
    /// taken for one of the current request.
    pub request: u32,
}

impl JobKey {
    /// Stands for a reactor in the keys of jobs that no request waits for: their events go to a
    /// journal.
    pub const JOURNAL: u16 = u16::MAX;
    /// The same for jobs that several requests may wait for: their events go to the cache.
    pub const FLIGHTS: u16 = JobKey::JOURNAL - 1;
}
