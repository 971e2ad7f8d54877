//! The state that a request shares with its job: a flag to stop, credit for token events, and more
//! time than the job was submitted with.
//!
//! Owns three atomics and, for a key whose concurrency is bounded, one [`Permit`]. The request and
//! the job each hold the ticket by `Arc`; neither ever waits on it.
//!
//! Invariants:
//!  1. `cancelled` moves from 0 to one reason and never back: the first reason wins.
//!  2. Only the reactor grants credit and only the engine takes it, so an event sent on credit has
//!     room in the reactor's accounts until it is delivered.
//!  3. A terminal event (done, failed) needs no credit: exactly one follows every admitted job.
//!  4. After a take of credit that found none, the next grant reports it, exactly once: an engine
//!     that does not poll learns from it that it may go on.
//!  5. A job's time is extended or has expired, never both in this order: an extension that comes
//!     too late is refused.
//!  6. A permit is released when the last holder drops the ticket, which is when the job has really
//!     ended: a client that hangs up does not get its place back before the engine has stopped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};

use crate::core::Moment;

/// The value of `credit` after a take that found none.
const STARVED: u32 = u32::MAX;

/// The value of `extended` once the job's time has ended.
const EXPIRED: u64 = u64::MAX;

/// Why the result of a job is no longer wanted. The word is the label of
/// `autoglmd_cancelled_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum CancelReason {
    /// The client closed or reset its connection or stream.
    Disconnect = 1,
    /// The request's deadline passed.
    Deadline = 2,
    /// The daemon stops, and the time for draining has passed.
    Drain = 3,
    /// The client read too slowly for too long.
    SlowReader = 4,
}

impl CancelReason {
    pub const ALL: [CancelReason; 4] = [
        CancelReason::Disconnect,
        CancelReason::Deadline,
        CancelReason::Drain,
        CancelReason::SlowReader,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            CancelReason::Disconnect => "disconnect",
            CancelReason::Deadline => "deadline",
            CancelReason::Drain => "drain",
            CancelReason::SlowReader => "slow_reader",
        }
    }
}

/// Shared by one request (reactor side) and its job (engine side).
#[derive(Debug)]
pub struct Ticket {
    cancelled: AtomicU8,
    /// Or [`STARVED`].
    credit: AtomicU32,
    /// Microseconds of a moment that may be later than the job's own deadline, or [`EXPIRED`].
    extended: AtomicU64,
    is_streamed: AtomicBool,
    /// Held for its `Drop` alone.
    _permit: Option<Permit>,
}

impl Ticket {
    /// `credit` is how many token events may be under way at once: 0 if the response is sent whole.
    pub fn new(credit: u32) -> Ticket {
        Ticket {
            cancelled: AtomicU8::new(0),
            credit: AtomicU32::new(credit),
            extended: AtomicU64::new(0),
            is_streamed: AtomicBool::new(credit > 0),
            _permit: None,
        }
    }

    /// Like `new`, but the place that `permit` counts stays taken for as long as the ticket lives.
    pub fn with_permit(credit: u32, permit: Permit) -> Ticket {
        Ticket {
            _permit: Some(permit),
            ..Ticket::new(credit)
        }
    }

    /// Called by the reactor when the result is no longer wanted. Only the first reason counts.
    pub fn cancel(&self, reason: CancelReason) {
        // Relaxed: the flag carries no data that the engine reads after seeing it.
        let _ =
            self.cancelled
                .compare_exchange(0, reason as u8, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Called by the engine before every decode step and inside prompt processing.
    pub fn cancelled(&self) -> Option<CancelReason> {
        let reason = self.cancelled.load(Ordering::Relaxed);
        CancelReason::ALL
            .into_iter()
            .find(|known| *known as u8 == reason)
    }

    /// Returns whether token events are sent at all: then lack of credit means that the client does
    /// not read.
    pub fn is_streamed(&self) -> bool {
        // Relaxed: it is set before the engine gets the ticket, through a queue.
        self.is_streamed.load(Ordering::Relaxed)
    }

    /// Called by the reactor before the job is submitted, once it is known that the response is a
    /// stream: grants its first credit.
    pub fn begin_stream(&self, credit: u32) {
        self.is_streamed.store(true, Ordering::Relaxed);
        // No engine has looked for credit yet.
        let _ = self.grant(credit);
    }

    /// Called by the reactor for `events` delivered token events: when they are queued, if the
    /// output has room for more, and otherwise when it has drained. Returns whether the engine has
    /// found none since the last grant.
    #[must_use]
    pub fn grant(&self, events: u32) -> bool {
        // Relaxed, here and in `take_credit`: the engine takes a lock before it acts on the result.
        let before = self
            .credit
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |credit| {
                let is_starved = credit == STARVED;
                (events > 0).then(|| if is_starved { events } else { credit + events })
            });
        before == Ok(STARVED)
    }

    /// Called by the engine: takes credit for one token event. If there is none, returns false, and
    /// the engine must merge tokens and wait.
    #[must_use]
    pub fn take_credit(&self) -> bool {
        let before = self
            .credit
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |credit| {
                (credit != STARVED).then(|| credit.checked_sub(1).unwrap_or(STARVED))
            });
        before.is_ok_and(|credit| credit > 0)
    }

    /// Returns the credit that is left.
    #[cfg(test)]
    pub fn credit(&self) -> u32 {
        match self.credit.load(Ordering::Relaxed) {
            STARVED => 0,
            credit => credit,
        }
    }

    /// Moves the end of the job's time to then, if that is later. Returns false if its time has
    /// ended: the job ends, and there is no way back.
    #[must_use]
    pub fn extend(&self, until: Moment) -> bool {
        let until = until.as_micros().min(EXPIRED - 1);
        self.extended
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |extended| {
                (extended != EXPIRED).then(|| extended.max(until))
            })
            .is_ok()
    }

    /// Called by the engine: returns whether the time of a job with this deadline has ended. Once
    /// it has, that does not change.
    #[must_use]
    pub fn expire(&self, deadline: Moment, now: Moment) -> bool {
        if now < deadline {
            return false;
        }
        let before = self
            .extended
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |extended| {
                (extended <= now.as_micros()).then_some(EXPIRED)
            });
        before.is_ok() || before == Err(EXPIRED)
    }
}

/// One of a bounded number of places: of a key's requests at once, of the engine's queue, of
/// compressed streams. Dropping it frees the place.
#[derive(Debug)]
pub struct Permit(Arc<AtomicU32>);

impl Permit {
    /// Takes a place if fewer than `bound` are taken. A `bound` of 0 means no bound.
    pub fn try_take(taken: &Arc<AtomicU32>, bound: u32) -> Option<Permit> {
        // Checking and raising are one atomic step: two threads cannot both take the last place.
        taken
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
                (bound == 0 || count < bound).then(|| count.saturating_add(1))
            })
            .ok()?;
        Some(Permit(Arc::clone(taken)))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_reason_to_cancel_wins() {
        let ticket = Ticket::new(0);
        assert_eq!(ticket.cancelled(), None);
        ticket.cancel(CancelReason::Deadline);
        ticket.cancel(CancelReason::Disconnect);
        assert_eq!(ticket.cancelled(), Some(CancelReason::Deadline));
    }

    #[test]
    fn credit_is_taken_once_for_each_grant() {
        let ticket = Ticket::new(1);
        assert!(ticket.take_credit());
        assert!(!ticket.take_credit());
        let _ = ticket.grant(2);
        assert!(ticket.take_credit());
        assert!(ticket.take_credit());
        assert!(!ticket.take_credit());
    }

    /// Mutations: `take_credit` that leaves a zero; `grant` that keeps [`STARVED`], or that takes a
    /// grant of nothing for one.
    #[test]
    fn a_grant_tells_whether_the_engine_has_found_none() {
        let ticket = Ticket::new(0);
        assert!(!ticket.grant(1), "no take has found none");
        assert!(ticket.take_credit());
        assert!(!ticket.take_credit());
        assert!(!ticket.take_credit(), "twice is the same as once");
        assert!(!ticket.grant(0), "there is still none");
        assert!(ticket.grant(1));
        assert!(!ticket.grant(1), "it has been told");
        assert!(ticket.take_credit() && ticket.take_credit());
    }

    /// Mutations: `expire` without its mark, or that does not look at the extension; `extend` that
    /// shortens.
    #[test]
    fn time_is_extended_until_it_has_ended() {
        let second = |second: u64| Moment::from_micros(second * 1_000_000);
        let ticket = Ticket::new(0);
        assert!(!ticket.expire(second(5), second(4)));
        assert!(ticket.extend(second(9)) && ticket.extend(second(7)));
        assert!(!ticket.expire(second(5), second(8)));
        assert!(ticket.expire(second(5), second(9)));
        assert!(ticket.expire(second(5), second(9)), "it stays so");
        assert!(!ticket.extend(second(20)));
        assert!(ticket.expire(second(5), second(10)));
        let without = Ticket::new(0);
        assert!(without.expire(second(5), second(5)));
    }

    #[test]
    fn a_place_is_free_again_when_the_last_holder_of_the_ticket_lets_go() {
        let taken = Arc::new(AtomicU32::new(0));
        let permit = Permit::try_take(&taken, 1).unwrap();
        let ticket = Arc::new(Ticket::with_permit(0, permit));
        let held_by_engine = Arc::clone(&ticket);
        assert!(Permit::try_take(&taken, 1).is_none());
        drop(ticket);
        assert!(Permit::try_take(&taken, 1).is_none());
        drop(held_by_engine);
        assert!(Permit::try_take(&taken, 1).is_some());
        assert_eq!(taken.load(Ordering::Relaxed), 0);
    }
}
