//! Notices steps of the wall clock beside the monotonic one.
//!
//! Owns their difference at the last look. Pure: both times are arguments. The wall clock steps if
//! it is set, and if it goes on while the machine is suspended and the monotonic one does not.

use std::time::Duration;

use crate::core::{Moment, UnixMillis};
use crate::limits::jobs as limits;

/// See the file's head.
#[derive(Clone, Copy, Debug)]
pub struct ClockSteps {
    /// The wall clock less the monotonic one, in milliseconds, wrapping.
    offset_ms: u64,
}

impl ClockSteps {
    pub fn new(wall: UnixMillis, now: Moment) -> ClockSteps {
        ClockSteps {
            offset_ms: wall.as_u64().wrapping_sub(now.as_millis()),
        }
    }

    /// Returns by how many milliseconds the wall clock has jumped since the last step, if that is
    /// [`CLOCK_STEP_MIN`](limits::CLOCK_STEP_MIN) or more.
    pub fn look(&mut self, wall: UnixMillis, now: Moment) -> Option<i64> {
        let found = ClockSteps::new(wall, now);
        // Two wrapping readings: the shorter way around is the step.
        let step = found.offset_ms.wrapping_sub(self.offset_ms) as i64;
        if Duration::from_millis(step.unsigned_abs()) < limits::CLOCK_STEP_MIN {
            return None;
        }
        *self = found;
        Some(step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mutations: a bound that is not asked; a difference that is not remembered.
    #[test]
    fn a_step_is_noticed_once_in_either_direction() {
        let at = |seconds: u64| Moment::from_micros(seconds * 1_000_000);
        let wall = |seconds: u64| UnixMillis::new(seconds * 1_000);
        let mut steps = ClockSteps::new(wall(5), at(10));
        assert_eq!(steps.look(wall(25), at(30)), None);
        assert_eq!(steps.look(UnixMillis::new(25_999), at(30)), None);
        assert_eq!(steps.look(wall(90), at(30)), Some(65_000));
        assert_eq!(steps.look(wall(91), at(31)), None);
        assert_eq!(steps.look(wall(1), at(32)), Some(-91_000));
    }
}
