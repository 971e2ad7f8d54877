//! Decides which running job yields its sequence to a line that waits for one. Pure.
//!
//! A job yields for one of these reasons, tried in this order:
//!
//! ```text
//!   paused      its client has stopped reading: any waiting job may have the sequence
//!   background  a live line waits, and no client waits for this job
//!   lent        its line has other sequences, and the waiting line has none
//!   spent       it has held the sequence for long, and its line is ahead of the waiting line
//! ```
//!
//! Except for `paused`, a line yields only to a line on a lower level ([`super::queue`]), so that
//! sequences follow the weights. Because a tenant may hold all sequences while no other tenant
//! waits, no sequence idles; because it gives up the last one at once, the next tenant does not
//! wait for it.

use std::time::Duration;

use super::queue::{Level, Line};
use crate::engine::Class;
use crate::limits::engine as limits;

/// A sequence with a running job.
#[derive(Clone, Copy, Debug)]
pub struct Seat {
    pub index: usize,
    pub line: Line,
    /// The level of its line.
    pub level: Level,
    /// How many sequences its line has.
    pub seats: u32,
    /// How long the job has had the sequence, and the tokens that were computed for it since.
    pub held: Duration,
    pub tokens: u32,
    /// Tokens to compute again if the job yields: 0 if the sequence can be saved, `u32::MAX` if the
    /// job must keep it.
    pub lost: u32,
    pub is_paused: bool,
    /// A background job that has waited too long keeps its sequence for its share of it.
    pub is_aged: bool,
}

/// How long a job may keep a sequence while others wait.
#[derive(Clone, Copy, Debug)]
pub struct Share {
    pub tokens: u32,
    pub time: Duration,
}

impl Default for Share {
    fn default() -> Share {
        Share {
            tokens: limits::SEAT_SHARE_TOKENS,
            time: limits::SEAT_SHARE_TIME,
        }
    }
}

/// A line that waits for a sequence.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    pub line: Line,
    pub level: Level,
    pub seats: u32,
    /// A background line that has waited too long counts as live.
    pub is_aged: bool,
}

/// Returns the sequence that a candidate may have.
pub fn victim(running: &[Seat], candidate: Candidate, share: Share) -> Option<usize> {
    let paused = running
        .iter()
        .filter(|seat| seat.is_paused && seat.lost < u32::MAX);
    if let Some(seat) = paused.max_by_key(|seat| seat.held) {
        return Some(seat.index);
    }
    let (class, is_live) = (candidate.line.class, candidate.line.class == Class::Live);
    // A job has to get somewhere between two moves, which cost time.
    let has_moved =
        |seat: &&Seat| seat.tokens > seat.lost && seat.held >= limits::SEAT_LENT_TIME_MIN;
    let is_spent = |seat: &&Seat| {
        seat.tokens > seat.lost && (seat.tokens >= share.tokens || seat.held >= share.time)
    };
    if is_live {
        let background = running.iter().filter(|seat| seat.line.class != class);
        let can_yield = background.filter(|seat| match seat.is_aged {
            true => is_spent(seat),
            false => has_moved(seat),
        });
        if let Some(seat) = furthest(can_yield) {
            return Some(seat.index);
        }
    }
    if candidate.is_aged {
        return furthest(running.iter().filter(is_spent)).map(|seat| seat.index);
    }
    let ahead = |seat: &&Seat| {
        seat.line.class == class && seat.line != candidate.line && seat.level > candidate.level
    };
    let lent = |seat: &&Seat| candidate.seats == 0 && seat.seats > 1 && has_moved(seat);
    let of_lent = running.iter().filter(|seat| ahead(seat) && lent(seat));
    let of_spent = running.iter().filter(|seat| ahead(seat) && is_spent(seat));
    furthest(of_lent)
        .or_else(|| furthest(of_spent))
        .map(|seat| seat.index)
}

/// Chooses the line that is furthest ahead, and of its sequences the one held longest.
fn furthest<'a>(seats: impl Iterator<Item = &'a Seat>) -> Option<&'a Seat> {
    seats.max_by_key(|seat| (seat.level, seat.held))
}

/// Mutations that these tests catch: a reason left out; `ahead` that is always true; a lent
/// sequence taken for a line that has one; a job without a copy that yields at once; another
/// class's job taken for a background line.
#[cfg(test)]
mod tests {
    use super::*;

    const SHARE: Share = Share {
        tokens: 10,
        time: Duration::from_secs(10),
    };

    const fn line(tenant: u64) -> Line {
        let class = Class::Live;
        Line { class, tenant }
    }

    /// A sequence that its job has had for a second.
    fn seat(index: usize, tenant: u64, level: Level, seats: u32, tokens: u32) -> Seat {
        Seat {
            index,
            line: line(tenant),
            level,
            seats,
            held: Duration::from_secs(1),
            tokens,
            lost: 0,
            is_paused: false,
            is_aged: false,
        }
    }

    fn candidate(tenant: u64, level: Level, seats: u32) -> Candidate {
        Candidate {
            line: line(tenant),
            level,
            seats,
            is_aged: false,
        }
    }

    #[test]
    fn a_line_without_a_sequence_gets_one_of_those_that_are_lent() {
        let running = [
            seat(0, 1, 50, 2, 5),
            seat(1, 1, 50, 2, 5),
            seat(2, 2, 90, 1, 5),
        ];
        assert_eq!(victim(&running, candidate(3, 10, 0), SHARE), Some(1));
        // A line with a sequence waits until a share is spent, and so does one that had more.
        assert_eq!(victim(&running, candidate(3, 10, 1), SHARE), None);
        assert_eq!(victim(&running, candidate(3, 60, 0), SHARE), None);
        let just_begun = running.map(|seat| Seat {
            held: Duration::from_millis(1),
            ..seat
        });
        assert_eq!(victim(&just_begun, candidate(3, 10, 0), SHARE), None);
    }

    #[test]
    fn a_spent_share_goes_to_a_line_that_had_less() {
        let running = [
            seat(0, 1, 50, 1, 10),
            seat(1, 2, 90, 1, 9),
            seat(2, 3, 70, 1, 12),
        ];
        assert_eq!(victim(&running, candidate(4, 60, 0), SHARE), Some(2));
        assert_eq!(victim(&running, candidate(4, 70, 0), SHARE), None);
        assert_eq!(
            victim(&running, candidate(3, 10, 0), SHARE),
            Some(0),
            "not its own"
        );
        // Of one line, the sequence that is held longest.
        let mut equal = [seat(0, 1, 50, 2, 10), seat(1, 1, 50, 2, 10)];
        equal[0].held = Duration::from_secs(2);
        assert_eq!(victim(&equal, candidate(4, 10, 1), SHARE), Some(0));
        let late = running.map(|seat| Seat {
            held: SHARE.time,
            ..seat
        });
        assert_eq!(victim(&late, candidate(4, 60, 0), SHARE), Some(1));
    }

    #[test]
    fn a_job_without_a_copy_first_earns_what_it_loses() {
        let lost = |lost| {
            [Seat {
                lost,
                ..seat(0, 1, 50, 2, 20)
            }]
        };
        assert_eq!(victim(&lost(19), candidate(3, 10, 0), SHARE), Some(0));
        assert_eq!(victim(&lost(20), candidate(3, 10, 0), SHARE), None);
        assert_eq!(victim(&lost(u32::MAX), candidate(3, 10, 0), SHARE), None);
    }

    #[test]
    fn any_job_may_have_the_sequence_of_a_paused_one() {
        let mut running = [seat(0, 1, 50, 1, 0), seat(1, 2, 10, 1, 0)];
        running[1].is_paused = true;
        for tenant in [2, 3] {
            assert_eq!(victim(&running, candidate(tenant, 99, 1), SHARE), Some(1));
        }
        // Of several, the one that has held its sequence longest.
        running[0].is_paused = true;
        running[0].held = Duration::from_secs(2);
        assert_eq!(victim(&running, candidate(3, 99, 1), SHARE), Some(0));
        running[0].is_paused = false;
        running[1].lost = u32::MAX;
        assert_eq!(victim(&running, candidate(3, 99, 1), SHARE), None);
    }

    #[test]
    fn background_jobs_yield_to_live_ones_and_have_their_share_when_they_are_late() {
        let background = Line {
            class: Class::Background,
            tenant: 1,
        };
        let mut running = [seat(0, 1, 50, 2, 5), seat(1, 2, 90, 1, 10)];
        let mut waiting = Candidate {
            line: background,
            ..candidate(1, 0, 0)
        };
        assert_eq!(victim(&running, waiting, SHARE), None);
        waiting.is_aged = true;
        assert_eq!(victim(&running, waiting, SHARE), Some(1));
        running[0].line = background;
        assert_eq!(victim(&running, candidate(3, 99, 3), SHARE), Some(0));
        running[0].is_aged = true;
        assert_eq!(victim(&running, candidate(3, 99, 3), SHARE), None);
        running[0].tokens = 10;
        assert_eq!(victim(&running, candidate(3, 99, 3), SHARE), Some(0));
    }
}
