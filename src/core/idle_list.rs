//! The connections that have nothing to do, the longest idle first.
//!
//! When there is no place for a new connection, the daemon closes the one that has been silent for
//! longest, as nginx does: a client that connects now wants something now. Idleness starts and ends
//! with every request, so both must be very cheap: a doubly linked list whose links lie in an array
//! beside the slots, 16 bytes each, and no allocation except when the array grows.
//!
//! Each entry has the time since which it is in the list, so that several reactors can compare
//! their oldest ones.
//!
//! Invariants:
//!  1. A slot is in the list at most once, under the generation that was pushed.
//!  2. From front to back, the time since `push` never grows.

use super::{Key, Moment};

const NOWHERE: u32 = u32::MAX;

/// When a connection joined a list, in steps of 65.536 ms since the process began: four bytes last
/// eight years.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Since(u32);

impl Since {
    /// Later than every other: of an empty list.
    pub const NEVER: Since = Since(u32::MAX);

    pub const fn of(moment: Moment) -> Since {
        let steps = moment.as_micros() >> 16;
        match steps < u32::MAX as u64 {
            true => Since(steps as u32),
            false => Since(u32::MAX - 1),
        }
    }

    pub const fn from_bits(bits: u32) -> Since {
        Since(bits)
    }

    pub const fn to_bits(self) -> u32 {
        self.0
    }
}

#[derive(Clone, Copy)]
struct Link {
    since: Since,
    previous: u32,
    next: u32,
    /// The generation of the pushed key. 0, which no key has, if the slot is not in the list.
    generation: u32,
}

const ABSENT: Link = Link {
    since: Since::NEVER,
    previous: NOWHERE,
    next: NOWHERE,
    generation: 0,
};

/// See the file's head.
pub struct IdleList {
    links: Vec<Link>,
    front: u32,
    back: u32,
    len: usize,
}

impl Default for IdleList {
    fn default() -> IdleList {
        IdleList::new()
    }
}

impl IdleList {
    pub const fn new() -> IdleList {
        IdleList {
            links: Vec::new(),
            front: NOWHERE,
            back: NOWHERE,
            len: 0,
        }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn contains(&self, key: Key) -> bool {
        let link = self.links.get(key.index as usize);
        link.is_some_and(|link| link.generation == key.generation)
    }

    /// Returns the connection that has been idle for longest.
    pub fn oldest(&self) -> Option<Key> {
        let link = self.links.get(self.front as usize)?;
        Some(Key::new(self.front, link.generation))
    }

    /// Returns since when the oldest one is in the list; [`Since::NEVER`] if there is none.
    pub fn oldest_since(&self) -> Since {
        let link = self.links.get(self.front as usize);
        link.map_or(Since::NEVER, |link| link.since)
    }

    /// Records that `key` is idle from now on, even if it was idle before.
    pub fn push(&mut self, key: Key, now: Moment) {
        self.remove_index(key.index);
        let index = key.index as usize;
        if self.links.len() <= index {
            self.links.resize(index + 1, ABSENT);
        }
        self.links[index] = Link {
            since: Since::of(now),
            previous: self.back,
            next: NOWHERE,
            generation: key.generation,
        };
        match self.links.get_mut(self.back as usize) {
            Some(last) => last.next = key.index,
            None => self.front = key.index,
        }
        self.back = key.index;
        self.len += 1;
    }

    /// Records that `key` is busy or gone. Does nothing if it is not in the list.
    pub fn remove(&mut self, key: Key) {
        if self.contains(key) {
            self.remove_index(key.index);
        }
    }

    fn remove_index(&mut self, index: u32) {
        let Some(slot) = self.links.get_mut(index as usize) else {
            return;
        };
        let link = std::mem::replace(slot, ABSENT);
        if link.generation == 0 {
            return;
        }
        match self.links.get_mut(link.previous as usize) {
            Some(previous) => previous.next = link.next,
            None => self.front = link.next,
        }
        match self.links.get_mut(link.next as usize) {
            Some(next) => next.previous = link.previous,
            None => self.back = link.previous,
        }
        self.len -= 1;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn is_a_queue_from_which_anything_can_be_taken(
            steps in prop::collection::vec((any::<bool>(), 0u32..12, 1u32..3), 0..200),
        ) {
            let mut list = IdleList::new();
            let mut model: VecDeque<(Key, Since)> = VecDeque::new();
            let mut now = Moment::ZERO;
            for (pushes, index, generation) in steps {
                let key = Key::new(index, generation);
                now = now + Duration::from_millis(40);
                if pushes {
                    list.push(key, now);
                    model.retain(|(other, _)| other.index != index);
                    model.push_back((key, Since::of(now)));
                } else {
                    list.remove(key);
                    model.retain(|(other, _)| *other != key);
                }
                prop_assert_eq!(list.contains(key), model.iter().any(|(one, _)| *one == key));
                let oldest = model.front().copied();
                prop_assert_eq!(list.oldest(), oldest.map(|(key, _)| key));
                let since = oldest.map_or(Since::NEVER, |(_, since)| since);
                prop_assert_eq!(list.oldest_since(), since);
                prop_assert_eq!(list.len(), model.len());
            }
            while let Some((key, _)) = model.pop_front() {
                prop_assert_eq!(list.oldest(), Some(key));
                list.remove(key);
            }
            prop_assert!(list.is_empty());
        }
    }
}
