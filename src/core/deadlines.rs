//! The named deadlines of one connection, and why moving them is nearly free.
//!
//! A busy connection sets and clears its deadlines with every request, and moves that for a stalled
//! write with every write. If each deadline were a timer of its own, each of these would cost a
//! removal and an insertion in the timer structure. So there are two levels, and only the lower one
//! is touched often:
//!
//! * **here**, a fixed table with a [`Moment`] for each kind; setting one writes a field;
//! * **in the [wheel](super::wheel)**, one entry for the whole connection, which is only a promise
//!   to look at the table at some moment. The promise may be kept too early, never too late.
//!
//! ```text
//!   deadline moves later    write the field; the wheel is not told
//!   deadline moves earlier  write the field; `wheel_move` says where the entry must go
//!   the entry fires         `expired` -> act;  else `wheel_move` puts it where it belongs now
//! ```
//!
//! A keep-alive connection with a request per millisecond and an idle timeout of a minute thus
//! touches the wheel about once a minute.
//!
//! Header and body deadlines are *absolute*: the owner of this table sets them when the head or the
//! body begins and never again because a byte arrived. Otherwise a client that sends one byte per
//! second would hold its place for ever (the "slowloris" attack).
//!
//! # Invariants
//!
//!  1. `NEVER` means "not set"; a deadline that is not set does not expire.
//!  2. After `wheel_move` was obeyed, the wheel's entry is not later than `earliest`.

use std::time::Duration;

use super::Moment;
use crate::limits::core as limits;

/// The event that must have happened by a deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum DeadlineKind {
    /// The request's head is complete. Absolute from its first byte.
    Header = 0,
    /// The request's body is complete. Absolute from the end of its head.
    Body = 1,
    /// The next request has begun on a connection kept alive.
    Idle = 2,
    /// The peer took enough of its pending bytes: see [`stalls_at`].
    WriteStall = 3,
    /// The service must be called: the request's deadline has passed, or a ping is due.
    Request = 4,
    /// The peer closed its side after we closed ours.
    Linger = 5,
}

impl DeadlineKind {
    pub const ALL: [DeadlineKind; 6] = [
        DeadlineKind::Header,
        DeadlineKind::Body,
        DeadlineKind::Idle,
        DeadlineKind::WriteStall,
        DeadlineKind::Request,
        DeadlineKind::Linger,
    ];
}

/// One moment for each [`DeadlineKind`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deadlines {
    moments: [Moment; DeadlineKind::ALL.len()],
}

impl Default for Deadlines {
    fn default() -> Deadlines {
        Deadlines::new()
    }
}

impl Deadlines {
    pub const fn new() -> Deadlines {
        Deadlines {
            moments: [Moment::NEVER; DeadlineKind::ALL.len()],
        }
    }

    // ---- getters ----

    /// Returns the deadline of this kind; `NEVER` if it is not set.
    pub const fn get(&self, kind: DeadlineKind) -> Moment {
        self.moments[kind as usize]
    }

    pub fn is_set(&self, kind: DeadlineKind) -> bool {
        self.get(kind) != Moment::NEVER
    }

    /// Returns the deadline that passes first. Of equal ones, the first in the order of the kinds.
    pub fn earliest(&self) -> Option<(Moment, DeadlineKind)> {
        DeadlineKind::ALL
            .into_iter()
            .map(|kind| (self.get(kind), kind))
            .min_by_key(|(moment, _)| *moment)
            .filter(|(moment, _)| *moment != Moment::NEVER)
    }

    /// Returns the first deadline that has passed. The caller acts on it, clears or moves it, and
    /// must ask again: several may have passed at once.
    pub fn expired(&self, now: Moment) -> Option<DeadlineKind> {
        let (moment, kind) = self.earliest()?;
        (moment <= now).then_some(kind)
    }

    /// Returns where to move the connection's entry in the wheel, which is now at `scheduled`;
    /// `None` if it may stay. It may stay if it is too early, or if no deadline is set.
    pub fn wheel_move(&self, scheduled: Option<Moment>) -> Option<Moment> {
        let (moment, _) = self.earliest()?;
        match scheduled {
            Some(entry) if entry <= moment => None,
            _ => Some(moment),
        }
    }

    // ---- commands ----

    pub fn set(&mut self, kind: DeadlineKind, at: Moment) {
        self.moments[kind as usize] = at;
    }

    /// Sets an absolute deadline: one that is already set stays.
    pub fn set_if_unset(&mut self, kind: DeadlineKind, at: Moment) {
        if !self.is_set(kind) {
            self.set(kind, at);
        }
    }

    pub fn clear(&mut self, kind: DeadlineKind) {
        self.moments[kind as usize] = Moment::NEVER;
    }

    pub fn clear_all(&mut self) {
        *self = Deadlines::new();
    }
}

/// The bytes that a peer has just taken of an output, and those that are still pending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    pub bytes: usize,
    pub left: usize,
}

/// Returns when a peer counts as stalled. It had until `until`, and has taken some of its output at
/// `now`.
///
/// The first byte has the whole `timeout`. Each byte taken then buys its share of the time in which
/// all pending bytes must be taken, but never more than another `timeout`. So a peer that takes a
/// byte now and then is cut off like one that takes nothing; a slow peer, or a stream that produces
/// little, never is.
pub fn stalls_at(until: Moment, taken: Taken, now: Moment, timeout: Duration) -> Moment {
    let most = now + timeout;
    if until == Moment::NEVER {
        return most;
    }
    let whole = timeout.as_micros() * u128::from(limits::WRITE_TIMEOUTS_PER_OUTPUT_MAX);
    let all = (taken.bytes + taken.left).max(1) as u128;
    let bought = u64::try_from(whole * taken.bytes as u128 / all).unwrap_or(u64::MAX);
    (until + Duration::from_micros(bought)).min(most)
}

/// Every connection holds this table: keep it to eight bytes per kind.
const _: () = assert!(size_of::<Deadlines>() == 8 * DeadlineKind::ALL.len());

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(micros: u64) -> Moment {
        Moment::from_micros(micros)
    }

    #[test]
    fn kinds_index_their_own_moment() {
        let mut deadlines = Deadlines::new();
        for (position, kind) in DeadlineKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, position);
            deadlines.set(kind, at(position as u64));
        }
        for (position, kind) in DeadlineKind::ALL.into_iter().enumerate() {
            assert_eq!(deadlines.get(kind), at(position as u64));
        }
    }

    #[test]
    fn several_deadlines_expire_one_after_the_other() {
        let mut deadlines = Deadlines::new();
        assert_eq!(deadlines.expired(at(u64::MAX - 1)), None);
        deadlines.set(DeadlineKind::Request, at(30));
        deadlines.set(DeadlineKind::WriteStall, at(20));
        assert_eq!(deadlines.expired(at(19)), None);
        assert_eq!(deadlines.expired(at(30)), Some(DeadlineKind::WriteStall));
        deadlines.clear(DeadlineKind::WriteStall);
        assert_eq!(deadlines.expired(at(30)), Some(DeadlineKind::Request));
        deadlines.clear(DeadlineKind::Request);
        assert_eq!(deadlines.earliest(), None);
    }

    #[test]
    fn an_output_is_taken_in_time_or_it_stalls() {
        let (second, timeout) = (1_000_000, Duration::from_secs(30));
        let after = |until, bytes, left, now| {
            stalls_at(until, Taken { bytes, left }, at(now * second), timeout)
        };
        let first = after(Moment::NEVER, 0, 65_536, 0);
        assert_eq!(first, at(30 * second));
        // All of it has 300 s: a hundredth of it buys 3 s, and one byte almost nothing.
        assert_eq!(after(first, 0, 100, 29), first);
        assert_eq!(after(first, 100, 9_900, 29), at(33 * second));
        assert!(after(first, 1, 65_535, 29) < at(30 * second + 5_000));
        // Never beyond the timeout.
        assert_eq!(after(first, 5_000, 5_000, 29), at(59 * second));
    }

    #[test]
    fn nothing_that_is_unset_expires_even_at_the_end_of_time() {
        assert_eq!(Deadlines::new().expired(Moment::NEVER), None);
    }

    #[test]
    fn the_wheel_moves_only_for_earlier_deadlines() {
        let mut deadlines = Deadlines::new();
        assert_eq!(deadlines.wheel_move(None), None);
        deadlines.set(DeadlineKind::Idle, at(100));
        assert_eq!(deadlines.wheel_move(None), Some(at(100)));
        // Later: the entry stays, and the wheel looks once without finding anything.
        deadlines.set(DeadlineKind::Idle, at(200));
        assert_eq!(deadlines.wheel_move(Some(at(100))), None);
        // Earlier: the promise to look in time would be broken.
        deadlines.set(DeadlineKind::Header, at(50));
        assert_eq!(deadlines.wheel_move(Some(at(100))), Some(at(50)));
    }
}
