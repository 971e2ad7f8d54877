//! Generational slots: they hold the values that events, timers and completions name by [`Key`].
//!
//! # Why an index is not enough
//!
//! `epoll_wait(2)` hands over a batch of events that were collected before any of them is handled.
//! Suppose that the first event of a batch closes connection 7, and a new connection is put into
//! slot 7 at once. The batch may still hold an event of the old connection, and a bare index does
//! not distinguish the two (epoll(7), "if you use an event cache"). Timers, and completions of
//! other threads, come even later. Two rules solve this:
//!
//! * **Generations.** Each slot counts its tenants. A [`Key`] carries the count, and a key of an
//!   earlier tenant finds nothing.
//! * **Reaping.** A value that leaves is *retired*: it is taken out and its key is dead, but its
//!   slot stays closed until [`Slots::reap`], which the loop calls once, after the whole batch. So
//!   no slot changes tenants within a turn. Even a bug that forgets the generation then does not
//!   leak one client's bytes to another at once.
//!
//! ```text
//!             insert                retire                 reap
//!   vacant ----------->  live  ------------->  retired  ----------->  vacant
//!    (g)                 (g)                    (g + 1)               (g + 1)
//! ```
//!
//! # Invariants
//!
//!  1. A key resolves to the value that it was made for, or to nothing.
//!  2. Generation 0 is never used: `Key { index, generation: 0 }` is free for tokens that are not
//!     slots (listeners, the waker), and 0 can stand for "none" in tables beside this one.
//!  3. Live and retired slots together never exceed the capacity given at construction.
//!  4. Generations outlive their tenants: they are kept beside the slab, four bytes per slot.
//!
//!  5. All generations of one table carry the bits of its [`Kind`], so a key of another kind finds
//!     nothing.
//!
//! A generation wraps after 2^30 - 1 tenants of one slot. A stale key would have to be kept for
//! that long (three hours at 100,000 connections per second, all through one slot) to be mistaken
//! for a live one.

use std::ops::Range;

use slab::Slab;

use super::Key;
use super::key::Kind;

/// Values that are named by [`Key`]; see the file's head.
///
/// Memory grows with the highest number of values that were ever live at once, not with the
/// capacity: the slab doubles, and the kernel maps pages of its tail only when they are touched.
#[derive(Debug)]
pub struct Slots<T> {
    /// `None` is a retired slot: closed, with its value taken out.
    slab: Slab<Option<T>>,
    /// The generation of each slot's tenant, or of its next one.
    generations: Vec<u32>,
    /// Slots that wait for [`Slots::reap`].
    retired: Vec<u32>,
    capacity: usize,
    kind: Kind,
}

impl<T> Slots<T> {
    /// Creates room for at most `capacity` values of this kind at once.
    pub fn new(kind: Kind, capacity: usize) -> Slots<T> {
        assert!(
            capacity <= u32::MAX as usize,
            "a key's index has 32 bits: {capacity} slots are too many"
        );
        Slots {
            slab: Slab::new(),
            generations: Vec::new(),
            retired: Vec::new(),
            capacity,
            kind,
        }
    }

    // ---- getters ----

    /// Returns how many values are live.
    pub fn len(&self) -> usize {
        self.slab.len() - self.retired.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn get(&self, key: Key) -> Option<&T> {
        if !self.is_current(key) {
            return None;
        }
        self.slab.get(key.index as usize)?.as_ref()
    }

    pub fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        if !self.is_current(key) {
            return None;
        }
        self.slab.get_mut(key.index as usize)?.as_mut()
    }

    /// Returns the key that the next [`Slots::insert`] will use, so that a socket can be registered
    /// under it first. `None` when every slot is taken or waits to be reaped.
    pub fn vacant_key(&self) -> Option<Key> {
        if self.slab.len() >= self.capacity {
            return None;
        }
        let index = self.slab.vacant_key();
        let generation = self.generations.get(index).copied();
        Some(Key::new(
            index as u32,
            generation.unwrap_or(first_generation(self.kind)),
        ))
    }

    /// Yields all live values with their keys, in the order of their slots.
    pub fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        let generations = &self.generations;
        self.slab.iter().filter_map(move |(index, value)| {
            let key = Key::new(index as u32, generations[index]);
            Some((key, value.as_ref()?))
        })
    }

    /// Returns how many slots have ever had a tenant: the end of a walk over all of them.
    pub fn extent(&self) -> u32 {
        self.generations.len() as u32
    }

    /// Yields the keys of the live values in a range of slots. The cost is that of the range and
    /// not that of all slots.
    pub fn keys_in(&self, slots: Range<u32>) -> impl Iterator<Item = Key> {
        slots.filter_map(|index| {
            let key = Key::new(index, *self.generations.get(index as usize)?);
            self.get(key).map(|_| key)
        })
    }

    // ---- commands ----

    /// Puts a value into the slot that [`Slots::vacant_key`] names.
    ///
    /// # Panics
    ///
    /// If there is no such slot. The caller must ask `vacant_key` first: reaching this panic is a
    /// bug of the caller and never a peer's doing.
    pub fn insert(&mut self, value: T) -> Key {
        let key = self.vacant_key().expect("the caller saw a vacant key");
        if key.index as usize == self.generations.len() {
            self.generations.push(first_generation(self.kind));
        }
        let index = self.slab.insert(Some(value));
        debug_assert_eq!(index, key.index as usize);
        self.check_slot(key.index);
        key
    }

    /// Takes a value out. Its key is dead from here on; its slot stays closed until
    /// [`Slots::reap`].
    pub fn retire(&mut self, key: Key) -> Option<T> {
        if !self.is_current(key) {
            return None;
        }
        let value = self.slab.get_mut(key.index as usize)?.take()?;
        self.generations[key.index as usize] = next_generation(self.kind, key.generation);
        self.retired.push(key.index);
        self.check_slot(key.index);
        Some(value)
    }

    /// Opens the slots of all retired values again. The loop calls this once per turn, after the
    /// last event of the batch.
    pub fn reap(&mut self) {
        for index in self.retired.drain(..) {
            let value = self.slab.remove(index as usize);
            debug_assert!(
                value.is_none(),
                "slot {index} was retired and holds a value"
            );
        }
    }

    // ---- helpers ----

    /// Returns whether the key's generation is the present one of its slot.
    fn is_current(&self, key: Key) -> bool {
        self.generations.get(key.index as usize) == Some(&key.generation)
    }

    fn check_slot(&self, index: u32) {
        debug_assert_ne!(
            self.generations[index as usize], 0,
            "generation 0 is in use"
        );
        debug_assert!(self.slab.len() <= self.capacity);
        debug_assert!(self.retired.len() <= self.slab.len());
    }

    /// Checks every slot: for tests and the simulation.
    pub fn check_invariants(&self) {
        assert!(self.slab.len() <= self.capacity);
        assert!(self.slab.capacity() == 0 || self.generations.len() >= self.slab.len());
        let kinds = self.generations.iter().map(|one| Key::new(0, *one).kind());
        assert!(kinds.into_iter().all(|kind| kind == self.kind));
        assert!(self.generations.iter().all(|generation| *generation != 0));
        let closed = self.slab.iter().filter(|(_, value)| value.is_none());
        assert_eq!(closed.count(), self.retired.len());
    }
}

/// Returns the generation of each slot's first tenant.
const fn first_generation(kind: Kind) -> u32 {
    kind.bits() | 1
}

/// Wraps around within the kind's generations and skips zero, which no tenant has.
const fn next_generation(kind: Kind, generation: u32) -> u32 {
    let count = generation.wrapping_add(1) & ((1 << Kind::GENERATION_BITS) - 1);
    match count {
        0 => first_generation(kind),
        _ => kind.bits() | count,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_retired_slot_stays_closed_until_it_is_reaped() {
        let mut slots = Slots::new(Kind::Client, 1);
        let first = slots.insert("first");
        assert_eq!(slots.vacant_key(), None, "full");
        assert_eq!(slots.retire(first), Some("first"));
        assert_eq!((slots.len(), slots.get(first)), (0, None));
        assert_eq!(slots.vacant_key(), None, "not reaped");
        assert_eq!(slots.retire(first), None);
        slots.reap();
        let promised = slots.vacant_key();
        let second = slots.insert("second");
        assert_eq!(promised, Some(second));
        assert_eq!(second.index, first.index);
        assert_ne!(second.generation, first.generation);
        assert_eq!(slots.get(first), None);
        slots.check_invariants();
    }

    #[test]
    fn generations_wrap_around_and_skip_zero() {
        for kind in [Kind::Client, Kind::Outbound] {
            let mut slots = Slots::new(kind, 1);
            let key = slots.insert(());
            slots.retire(key);
            slots.reap();
            let highest = kind.bits() | ((1 << Kind::GENERATION_BITS) - 1);
            slots.generations[0] = highest;
            let last = slots.insert(());
            assert_eq!(last.generation, highest);
            slots.retire(last);
            slots.reap();
            assert_eq!(slots.insert(()).generation, first_generation(kind));
            slots.check_invariants();
        }
    }

    #[test]
    fn generation_zero_resolves_to_nothing() {
        let mut slots = Slots::new(Kind::Client, 4);
        assert_eq!(slots.get(Key::new(0, 0)), None);
        slots.insert(7);
        assert_eq!(slots.get(Key::new(0, 0)), None);
        assert_eq!(slots.get(Key::new(3, 1)), None);
        assert_eq!(slots.retire(Key::new(9, 1)), None);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert,
        /// Any key that was ever returned, including stale ones.
        Retire(prop::sample::Index),
        Reap,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => Just(Step::Insert),
            3 => any::<prop::sample::Index>().prop_map(Step::Retire),
            2 => Just(Step::Reap),
        ];
        prop::collection::vec(step, 0..60)
    }

    proptest! {
        /// Each value is its own serial number: a key finds its own value or nothing.
        #[test]
        fn no_key_ever_finds_another_tenant(steps in steps(), capacity in 1_usize..6) {
            let mut slots = Slots::new(Kind::Client, capacity);
            let mut given: Vec<Key> = Vec::new();
            let mut live: HashMap<Key, usize> = HashMap::new();
            let mut unreaped = 0;
            for step in steps {
                match step {
                    Step::Insert => {
                        let vacant = slots.vacant_key();
                        prop_assert_eq!(vacant.is_some(), live.len() + unreaped < capacity);
                        if let Some(promised) = vacant {
                            let serial = given.len();
                            let key = slots.insert(serial);
                            prop_assert_eq!(key, promised);
                            prop_assert!(!given.contains(&key), "a key was given out twice");
                            given.push(key);
                            live.insert(key, serial);
                        }
                    }
                    Step::Retire(which) if !given.is_empty() => {
                        let key = *which.get(&given);
                        let expected = live.remove(&key);
                        unreaped += usize::from(expected.is_some());
                        prop_assert_eq!(slots.retire(key), expected);
                    }
                    Step::Retire(_) => {}
                    Step::Reap => {
                        slots.reap();
                        unreaped = 0;
                    }
                }
                slots.check_invariants();
                prop_assert_eq!(slots.len(), live.len());
                for key in &given {
                    prop_assert_eq!(slots.get(*key), live.get(key));
                }
                let listed = slots.iter().map(|(key, serial)| (key, *serial));
                prop_assert_eq!(&listed.collect::<HashMap<_, _>>(), &live);
                let (half, all) = (slots.extent() / 2, slots.extent());
                let walked = slots.keys_in(0..half).chain(slots.keys_in(half..all));
                let listed = slots.iter().map(|(key, _)| key);
                prop_assert_eq!(walked.collect::<Vec<_>>(), listed.collect::<Vec<_>>());
            }
        }
    }
}
