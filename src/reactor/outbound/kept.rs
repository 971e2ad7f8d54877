//! The connections that are kept for the next request to their origin.
//!
//! Owns the order in which they are used and given up; the sockets are in the table of all. Pure:
//! keys go in and come out. The newest of an origin is used first, since it is the one that its
//! server will close last; the oldest of all is given up first.
//!
//! Invariants:
//!  1. A key is in the line of its origin exactly while it is in the list of ages.
//!  2. A line holds at most `limits::KEPT_CONNECTIONS_PER_ORIGIN_MAX` keys, and an empty line is
//!     dropped.
//!
//! Mutation that the test below catches: `take` of the front.

use std::collections::{HashMap, VecDeque};

use crate::core::idle_list::IdleList;
use crate::core::{Key, Moment};
use crate::http::origin::Origin;
use crate::limits::outbound as limits;

/// See the file's head.
#[derive(Default)]
pub struct Kept {
    /// By origin, the oldest first.
    lines: HashMap<Origin, VecDeque<Key>>,
    ages: IdleList,
}

impl Kept {
    #[cfg(any(test, debug_assertions))]
    pub fn len(&self) -> usize {
        self.ages.len()
    }

    /// Returns the one that has been kept for longest.
    pub fn oldest(&self) -> Option<Key> {
        self.ages.oldest()
    }

    /// Keeps a connection. Returns the one that has to be closed for it.
    #[must_use]
    pub fn push(&mut self, origin: &Origin, key: Key, now: Moment) -> Option<Key> {
        let line = self.lines.entry(origin.clone()).or_default();
        line.push_back(key);
        self.ages.push(key, now);
        match line.len() > limits::KEPT_CONNECTIONS_PER_ORIGIN_MAX {
            true => line.pop_front().inspect(|oldest| self.ages.remove(*oldest)),
            false => None,
        }
    }

    /// Removes the newest connection to an origin, to use it.
    pub fn take(&mut self, origin: &Origin) -> Option<Key> {
        let key = *self.lines.get(origin)?.back()?;
        self.remove(origin, key);
        Some(key)
    }

    /// Removes a connection that has ended, if it is kept.
    pub fn remove(&mut self, origin: &Origin, key: Key) {
        self.ages.remove(key);
        if let Some(line) = self.lines.get_mut(origin) {
            line.retain(|kept| *kept != key);
            if line.is_empty() {
                self.lines.remove(origin);
            }
        }
    }

    #[cfg(any(test, debug_assertions))]
    pub fn check_invariants(&self) {
        let lines = self.lines.values();
        assert!(lines.clone().all(|line| {
            (1..=limits::KEPT_CONNECTIONS_PER_ORIGIN_MAX).contains(&line.len())
                && line.iter().all(|key| self.ages.contains(*key))
        }));
        assert_eq!(lines.map(VecDeque::len).sum::<usize>(), self.ages.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::key::Kind;

    #[test]
    fn the_newest_is_used_and_the_oldest_given_up() {
        let key = |index| Key::new(index, Kind::Outbound.bits() | 1);
        let origin = |url| Origin::parse(url).expect(url).0;
        let (one, other) = (origin("http://one/"), origin("http://other/"));
        let now = Moment::from_micros(1_000_000);
        let mut kept = Kept::default();
        assert_eq!(kept.push(&other, key(9), now), None);
        for index in 0..limits::KEPT_CONNECTIONS_PER_ORIGIN_MAX as u32 {
            assert_eq!(kept.push(&one, key(index), now), None);
        }
        assert_eq!(
            kept.push(&one, key(7), now),
            Some(key(0)),
            "the line is full"
        );
        kept.check_invariants();
        assert_eq!(kept.oldest(), Some(key(9)));
        assert_eq!(kept.take(&one), Some(key(7)));
        kept.remove(&one, key(1));
        kept.remove(&one, key(1));
        assert_eq!(kept.take(&one), Some(key(3)));
        kept.check_invariants();
        assert_eq!(kept.take(&origin("https://one/")), None);
        assert_eq!((kept.take(&other), kept.len()), (Some(key(9)), 1));
    }
}
