//! The invariants of a connection that it can check itself, after each call of a debug build.

use super::{Connection, Phase, Pumped, WAITING};
use crate::core::deadlines::DeadlineKind;
use crate::core::output::Marks;
use crate::reactor::machine::{Machine, Waiting};

impl<K> Connection<K> {
    pub(super) fn debug_check(&self) {
        if cfg!(debug_assertions) {
            self.check_invariants();
        }
    }

    /// Checks invariants 4 and 6, at any time.
    pub fn check_invariants(&self) {
        let running = WAITING.map(|kind| self.deadlines.is_set(kind));
        let running = running.into_iter().filter(|is_set| *is_set).count();
        assert!(running <= 1, "{:?}", self.deadlines);
        if let Phase::Lingering { .. } = self.phase {
            assert!(!self.channel.holds_input() && !self.channel.has_output());
            assert_eq!(running, 0);
        }
    }

    /// Checks invariants 2, 4 and 7, and those of the channel, after a pump.
    pub(super) fn check_rest(&self, pumped: Pumped, marks: &Marks) {
        self.channel.check_invariants();
        let stalls = self.deadlines.is_set(DeadlineKind::WriteStall);
        assert_eq!(stalls, self.channel.has_output());
        assert!(!self.channel.is_held_back() || stalls || self.phase != Phase::Open);
        assert!(self.phase != Phase::Open || self.protocol.waiting() != Waiting::Over);
        assert!(
            pumped != Pumped::Waiting || !self.can_go_on(marks),
            "a connection waits that could go on"
        );
    }

    /// Returns whether it could go on without an edge, a completion or a deadline.
    pub fn can_go_on(&self, marks: &Marks) -> bool {
        let wants = self.wants(marks);
        let has_input = match self.phase {
            Phase::Open | Phase::Closing => self.has_input(),
            Phase::Lingering { .. } => self.channel.is_readable(),
        };
        (wants.read && has_input) || (wants.write && self.channel.is_writable())
    }
}
