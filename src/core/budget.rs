//! How long a piece of work may go on while others wait: asked between its steps, never within one.
//!
//! A count of steps bounds time only if each step is short, and what a step costs is up to a
//! client: a request may be a line, or a megabyte that has to be inflated. So a loop over the
//! things that one client has sent asks a clock, and so does each phase of a turn.
//!
//! ```text
//!   step, step, step ... is_spent? no, step, is_spent? no, step, is_spent? yes: the rest is kept
//! ```
//!
//! The reading of the clock is what asking costs. Two types keep it small:
//!
//!  * [`Budget`] is for work that mostly consists of one step. Its time begins with the first time
//!    that it is asked, so it costs nothing until a second step is to follow the first. The first
//!    step is not measured: it has ended, and could not have been divided.
//!  * [`Phase`] is for many small pieces of work. Its end is known from the beginning, and it reads
//!    the clock once for a number of pieces.
//!
//! # Invariants
//!
//!  1. Work makes progress: both are asked after a step, and so a step has been done even if the
//!     time was over before.
//!  2. A budget that is spent stays spent, whatever the clock reports.

use std::time::Duration;

use super::Moment;

/// A way to read the clock, for owners of budgets.
pub type Clock = dyn Fn() -> Moment;

/// The time of one piece of work; see the file's head.
pub struct Budget<'c> {
    clock: &'c (dyn Fn() -> Moment + 'c),
    time: Duration,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It has not been asked.
    Whole,
    Begun {
        until: Moment,
    },
    Spent,
}

/// How much of a budget has been used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// At most one step was done.
    OneStep,
    /// Several steps, within the time.
    Steps,
    /// All of it.
    All,
}

impl<'c> Budget<'c> {
    pub const fn new(time: Duration, clock: &'c (dyn Fn() -> Moment + 'c)) -> Budget<'c> {
        Budget {
            clock,
            time,
            state: State::Whole,
        }
    }

    /// Returns how much of it has been used. Reads no clock.
    pub const fn used(&self) -> Use {
        match self.state {
            State::Whole => Use::OneStep,
            State::Begun { .. } => Use::Steps,
            State::Spent => Use::All,
        }
    }

    /// Must be asked after a step, and only if another one is to follow. Returns whether that one
    /// must wait for another turn.
    pub fn is_spent(&mut self) -> bool {
        self.state = match self.state {
            State::Whole => State::Begun {
                until: (self.clock)() + self.time,
            },
            State::Begun { until } if (self.clock)() >= until => State::Spent,
            other => other,
        };
        self.state == State::Spent
    }
}

/// The time of a phase of many small pieces; see the file's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Phase {
    until: Moment,
    /// Pieces between two readings of the clock.
    stride: u32,
    /// Pieces until the next reading.
    left: u32,
    is_spent: bool,
}

impl Phase {
    /// Begins a phase that ends at `until` and looks at the clock after each `stride` pieces.
    pub const fn new(until: Moment, stride: u32) -> Phase {
        Phase {
            until,
            stride,
            left: stride,
            is_spent: false,
        }
    }

    /// Records that a piece took all of its own time: the next question reads the clock.
    pub const fn handle_long_piece(&mut self) {
        self.left = 1;
    }

    /// Must be asked after each piece. Returns whether the rest must wait for another turn.
    pub fn is_spent(&mut self, clock: impl FnOnce() -> Moment) -> bool {
        self.left -= 1;
        if self.left == 0 {
            self.left = self.stride;
            self.is_spent = self.is_spent || clock() >= self.until;
        }
        self.is_spent
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);
    const START: Moment = Moment::from_micros(5_000_000);

    /// A clock that is `step` later at each reading, and counts them.
    struct Steps {
        now: Cell<Moment>,
        readings: Cell<u32>,
    }

    impl Steps {
        fn new() -> Steps {
            Steps {
                now: Cell::new(START),
                readings: Cell::new(0),
            }
        }

        fn read(&self, step: Duration) -> Moment {
            self.readings.set(self.readings.get() + 1);
            self.now.replace(self.now.get() + step)
        }
    }

    /// Mutation: the time begins when the budget is made, so the first question reads nothing.
    #[test]
    fn the_first_question_begins_the_time_and_a_later_one_ends_it() {
        let steps = Steps::new();
        let clock = || steps.read(MILLISECOND / 2);
        let mut budget = Budget::new(MILLISECOND, &clock);
        assert_eq!(steps.readings.get(), 0, "a single step reads no clock");
        assert_eq!(budget.used(), Use::OneStep);
        assert!(!budget.is_spent());
        assert_eq!(budget.used(), Use::Steps);
        let mut answers = vec![false];
        answers.extend((0..4).map(|_| budget.is_spent()));
        assert_eq!(budget.used(), Use::All);
        assert_eq!(answers, [false, false, true, true, true]);
        assert_eq!(steps.readings.get(), 3, "a spent budget reads no clock");
    }

    /// Mutation: the clock is read for each piece.
    #[test]
    fn a_phase_reads_the_clock_once_for_its_stride() {
        let steps = Steps::new();
        let mut phase = Phase::new(START + MILLISECOND, 8);
        let pieces = (1..).find(|_| phase.is_spent(|| steps.read(MILLISECOND)));
        assert_eq!(pieces, Some(16));
        assert_eq!(steps.readings.get(), 2);
        assert!(phase.is_spent(|| START), "a clock does not go back");
    }

    /// Mutation: `handle_long_piece` does nothing.
    #[test]
    fn a_long_piece_is_noticed_at_once() {
        let steps = Steps::new();
        let mut phase = Phase::new(START, 8);
        phase.handle_long_piece();
        assert!(phase.is_spent(|| steps.read(MILLISECOND)));
    }
}
