//! The connections that have nothing to do, the longest idle first.
//!
//! When there is no place for a new connection, the daemon closes the one that has been silent for
//! longest, as nginx does: a client that connects now wants something now. Idleness starts and ends
//! with every request, so both must be very cheap: a doubly linked list whose links lie in an array
//! beside the slots, 12 bytes each, and no allocation except when the array grows.
//!
//! Invariants:
//!  1. A slot is in the list at most once, under the generation that was pushed.
//!  2. From front to back, the time since `push` never grows.

use super::Key;

const NOWHERE: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Link {
    previous: u32,
    next: u32,
    /// The generation of the pushed key. 0, which no key has, if the slot is not in the list.
    generation: u32,
}

const ABSENT: Link = Link {
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

    /// Records that `key` is idle from now on, even if it was idle before.
    pub fn push(&mut self, key: Key) {
        self.remove_index(key.index);
        let index = key.index as usize;
        if self.links.len() <= index {
            self.links.resize(index + 1, ABSENT);
        }
        self.links[index] = Link {
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

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn is_a_queue_from_which_anything_can_be_taken(
            steps in prop::collection::vec((any::<bool>(), 0u32..12, 1u32..3), 0..200),
        ) {
            let mut list = IdleList::new();
            let mut model: VecDeque<Key> = VecDeque::new();
            for (pushes, index, generation) in steps {
                let key = Key::new(index, generation);
                if pushes {
                    list.push(key);
                    model.retain(|other| other.index != index);
                    model.push_back(key);
                } else {
                    list.remove(key);
                    model.retain(|other| *other != key);
                }
                prop_assert_eq!(list.contains(key), model.contains(&key));
                prop_assert_eq!(list.oldest(), model.front().copied());
                prop_assert_eq!(list.len(), model.len());
            }
            while let Some(key) = model.pop_front() {
                prop_assert_eq!(list.oldest(), Some(key));
                list.remove(key);
            }
            prop_assert!(list.is_empty());
        }
    }
}
