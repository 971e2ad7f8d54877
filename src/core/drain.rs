//! How the daemon stops: politely, within a time, or at once.
//!
//! ```text
//!              terminate                    no connection left (Drained)
//!   Running  ------------>  Draining  ---------------------------------->  Stopping
//!      |                     |   |        patience is over (PatienceOver)      ^  ^
//!      |                     |   '---------------------------------------------'  |
//!      |                     |               stop (Forced)                        |
//!      |                     '----------------------------------------------------'
//! ```
//!
//! While draining, no new connection is accepted, idle connections are closed, and running requests
//! get responses with `connection: close`. Connections that are still open when the patience ends
//! are cut off: their requests get an error, their jobs are cancelled and their sockets closed.
//!
//! Both ends of a drain concern every connection, and there may be a million of them. So each is a
//! walk over the slots, some hundred in a turn of the loop ([`Drain::poll_slots`]), between which
//! the loop does all of its other work. The first walk comes to every slot once. The second one
//! begins again at its end, because connections that were on their way may come while it goes on.
//!
//! # Invariants
//!
//!  1. States only move forward.
//!  2. Draining ends: `deadline` is always a moment that will be reached.
//!  3. A walk comes to every slot that has a tenant when it begins, unless the next walk begins
//!     before.

use std::ops::Range;
use std::time::Duration;

use super::Moment;

/// See the file's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drain {
    state: DrainState,
    /// Where the present walk goes on.
    next_slot: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DrainState {
    Running,
    Draining { until: Moment },
    Stopping(StopReason),
}

/// Why the draining ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// Every connection has closed.
    Drained,
    /// Some connections were still open when the patience ended.
    PatienceOver,
    /// A second signal: its sender does not want to wait.
    Forced,
}

impl Default for Drain {
    fn default() -> Drain {
        Drain::new()
    }
}

impl Drain {
    pub const fn new() -> Drain {
        Drain {
            state: DrainState::Running,
            next_slot: 0,
        }
    }

    // ---- getters ----

    /// Returns whether a walk has slots left; `slots` is the number of all.
    pub fn is_walking(&self, slots: u32) -> bool {
        match self.state {
            DrainState::Running => false,
            DrainState::Draining { .. } => self.next_slot < slots,
            DrainState::Stopping(_) => slots > 0,
        }
    }

    pub fn is_running(&self) -> bool {
        self.state == DrainState::Running
    }

    /// Returns whether the loop must end after this turn.
    pub fn is_stopping(&self) -> bool {
        matches!(self.state, DrainState::Stopping(_))
    }

    /// Returns when [`Drain::poll`] must be called at the latest.
    pub fn deadline(&self) -> Option<Moment> {
        match self.state {
            DrainState::Draining { until } => Some(until),
            DrainState::Running | DrainState::Stopping(_) => None,
        }
    }

    // ---- handle ----

    /// The first SIGTERM or SIGINT, or an administrator's request: begins the drain.
    pub fn handle_terminate(&mut self, now: Moment, patience: Duration) {
        if self.is_running() {
            // NEVER would make the drain endless.
            let until = (now + patience).min(Moment::from_micros(u64::MAX - 1));
            self.state = DrainState::Draining { until };
        }
    }

    /// A second signal: ends the drain, or the daemon without one.
    pub fn handle_stop(&mut self) {
        if !self.is_stopping() {
            self.stop(StopReason::Forced);
        }
    }

    // ---- poll ----

    /// Must be called at the end of each turn with the number of open connections. Returns the
    /// reason, once, when draining ends.
    pub fn poll(&mut self, now: Moment, connections: usize) -> Option<StopReason> {
        let DrainState::Draining { until } = self.state else {
            return None;
        };
        let reason = if connections == 0 {
            StopReason::Drained
        } else if now >= until {
            StopReason::PatienceOver
        } else {
            return None;
        };
        self.stop(reason);
        Some(reason)
    }

    /// Returns the next slots of the walk: at most `most`, of `slots` in all.
    pub fn poll_slots(&mut self, slots: u32, most: u32) -> Range<u32> {
        if !self.is_walking(slots) {
            return 0..0;
        }
        let start = match self.next_slot {
            next if next < slots => next,
            _ => 0,
        };
        self.next_slot = slots.min(start + most);
        start..self.next_slot
    }

    // ---- helpers ----

    fn stop(&mut self, reason: StopReason) {
        self.state = DrainState::Stopping(reason);
        self.next_slot = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Moment = Moment::from_micros(5_000_000);
    const PATIENCE: Duration = Duration::from_secs(10);

    fn draining() -> Drain {
        let mut drain = Drain::new();
        drain.handle_terminate(NOW, PATIENCE);
        drain
    }

    #[test]
    fn a_running_daemon_without_connections_does_not_stop() {
        let mut drain = Drain::new();
        assert_eq!(drain.poll(NOW, 0), None);
        assert!(drain.is_running());
        assert_eq!(drain.deadline(), None);
    }

    #[test]
    fn stops_with_the_last_connection() {
        let mut drain = draining();
        assert_eq!(drain.deadline(), Some(NOW + PATIENCE));
        assert_eq!(drain.poll(NOW, 1), None);
        assert_eq!(drain.poll(NOW, 0), Some(StopReason::Drained));
        assert_eq!(drain.poll(NOW, 0), None, "told once");
        assert!(drain.is_stopping());
    }

    #[test]
    fn stops_when_patience_is_over() {
        let mut drain = draining();
        let just_before = NOW + (PATIENCE - Duration::from_micros(1));
        assert_eq!(drain.poll(just_before, 7), None);
        assert_eq!(
            drain.poll(NOW + PATIENCE, 7),
            Some(StopReason::PatienceOver)
        );
    }

    #[test]
    fn a_second_signal_ends_at_once_and_a_third_changes_nothing() {
        let mut drain = draining();
        drain.handle_stop();
        assert_eq!(drain.state, DrainState::Stopping(StopReason::Forced));
        drain.handle_terminate(NOW, PATIENCE);
        drain.handle_stop();
        assert_eq!(drain.state, DrainState::Stopping(StopReason::Forced));
        assert_eq!(drain.poll(NOW, 0), None);
    }

    /// Mutations: the second walk goes on where the first one stopped, or ends at the last slot.
    #[test]
    fn each_walk_comes_to_every_slot_and_the_second_one_again() {
        let mut drain = Drain::new();
        assert_eq!(drain.poll_slots(5, 2), 0..0);
        drain.handle_terminate(NOW, PATIENCE);
        assert_eq!(
            [drain.poll_slots(5, 2), drain.poll_slots(5, 2)],
            [0..2, 2..4]
        );
        // A slot that is new since then is walked too.
        assert_eq!(drain.poll_slots(6, 9), 4..6);
        assert!(!drain.is_walking(6));
        assert_eq!(drain.poll_slots(6, 9), 0..0);
        drain.handle_stop();
        assert_eq!(drain.poll_slots(6, 4), 0..4);
        assert_eq!(drain.poll_slots(6, 4), 4..6);
        assert_eq!(drain.poll_slots(6, 4), 0..4);
        assert!(drain.is_walking(6));
    }

    #[test]
    fn endless_patience_is_not_an_unset_deadline() {
        let mut drain = Drain::new();
        drain.handle_terminate(NOW, Duration::MAX);
        assert!(drain.deadline().is_some_and(|until| until < Moment::NEVER));
    }
}
