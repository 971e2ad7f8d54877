//! When a request that follows a job asks the store for more.
//!
//! A wake-up that comes while the store is looking makes one more look. A look that is refused or
//! fails is made again after a pause, and no wake-up or room ends the pause: a store that does not
//! work would be asked as fast as it fails.
//!
//! Invariants:
//!  1. One look is under way at most, and none during a pause.
//!  2. A wake-up is followed by a look that begins after it, as soon as the caller has room.

use crate::core::Moment;
use crate::limits::jobs as limits;

/// See the file's head.
#[derive(Debug)]
pub struct Looks {
    is_under_way: bool,
    /// There may be something that no look has read.
    is_due: bool,
    /// When a look that was refused or has failed is made again.
    pub retry_at: Moment,
}

impl Looks {
    /// A first look is due.
    pub const DUE: Looks = Looks {
        is_under_way: false,
        is_due: true,
        retry_at: Moment::NEVER,
    };

    pub const fn is_under_way(&self) -> bool {
        self.is_under_way
    }

    /// There is, or may be, more to read.
    pub fn want(&mut self) {
        self.is_due = true;
    }

    /// Returns whether to look now. If so, [`Looks::handle_submitted`] must follow.
    pub fn take(&mut self) -> bool {
        let may_look = !self.is_under_way && self.retry_at == Moment::NEVER;
        may_look && std::mem::take(&mut self.is_due)
    }

    /// Handles the queue's decision on a look.
    pub fn handle_submitted(&mut self, is_accepted: bool, now: Moment) {
        match is_accepted {
            true => self.is_under_way = true,
            false => self.retry_later(now),
        }
    }

    /// Handles the end of a look.
    pub fn handle_reply(&mut self) {
        self.is_under_way = false;
    }

    /// Returns whether a pause has ended; it is then over.
    pub fn end_pause(&mut self, now: Moment) -> bool {
        let has_ended = now >= self.retry_at;
        if has_ended {
            self.retry_at = Moment::NEVER;
        }
        has_ended
    }

    pub fn retry_later(&mut self, now: Moment) {
        self.is_due = true;
        self.retry_at = now + limits::BACKOFF_MIN;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mutations: `take` while a look is under way; a wake-up that is forgotten by `handle_reply`.
    #[test]
    fn a_wake_up_during_a_look_makes_one_more() {
        let mut looks = Looks::DUE;
        assert!(looks.take());
        looks.handle_submitted(true, Moment::ZERO);
        looks.want();
        assert!(!looks.take(), "one is under way");
        looks.handle_reply();
        assert!(looks.take());
        assert!(!looks.take(), "nothing has happened since");
    }

    /// Mutations: a refused look that is not due any more; `take` during the pause.
    #[test]
    fn a_refused_look_is_made_after_a_pause() {
        let mut looks = Looks::DUE;
        assert!(looks.take());
        looks.handle_submitted(false, Moment::ZERO);
        let due = Moment::ZERO + limits::BACKOFF_MIN;
        assert_eq!(looks.retry_at, due);
        looks.want();
        assert!(!looks.take(), "the pause has not ended");
        assert!(!looks.end_pause(Moment::ZERO));
        assert!(looks.end_pause(due) && looks.take());
        assert_eq!(looks.retry_at, Moment::NEVER);
    }
}
