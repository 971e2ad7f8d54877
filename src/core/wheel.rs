//! A timer wheel: decides when to look at which connection, in constant time for any number of
//! them.
//!
//! # The mechanism
//!
//! Time is cut into ticks of 16 ms. The wheel is a circle of 4,096 buckets, 65 seconds around, and
//! tick `t` belongs to bucket `t mod 4096`. A bucket is a list of the slots that are due in its
//! tick. `cursor` is the first tick that is not finished:
//!
//! ```text
//!     cursor                                       cursor + 4095 = the horizon
//!       |                                               |
//!   [ tick ][ tick ][ tick ][ tick ] . . . . . . . [  tick  ]      (then the circle closes)
//!               |               |                       |
//!               5 <-> 9         2                       7 <-> 1 <-> 4    slots, doubly linked
//! ```
//!
//! The lists are *intrusive*: a slot has at most one entry, so the entries live in one array by
//! slot index, and `previous` and `next` are indices into it. Scheduling, moving and cancelling
//! unlink and link: no allocation, no search, no comparison with other timers. A heap would cost
//! `log n` and its cache misses for an exact order that is not needed here.
//!
//! **Beyond the horizon.** Entries due later than 65 seconds from now wait in the horizon's bucket
//! and are placed again when its turn comes: an idle connection is looked at once a minute. A
//! second level of wheels would save these looks, but cost memory and cascades.
//!
//! **The next expiry** is the first occupied bucket from the cursor on. Each bucket has a bit, and
//! each 64 bits have a bit in a summary word, so two instructions that count zeros find it.
//!
//! **A clock that jumps** (a suspended laptop, a stopped virtual machine) must not make the wheel
//! walk through a million ticks. If a whole circle has passed, the cursor is set to one circle
//! before now: every bucket is due in any case, and is visited once.
//!
//! # Promises
//!
//!  * Never early: no key is returned before its moment.
//!  * At most one tick late, if `expire` is called by then.
//!  * Bounded: a call of `expire` looks at no more than `at_most` entries and reports whether more
//!    are due.
//!
//! # Invariants
//!
//!  1. A slot is in one bucket or in none.
//!  2. An entry's tick lies within `cursor ..= cursor + 4095`. It is the cursor's own tick, or one
//!     that has passed already, or not later than the tick in which its moment will have passed.
//!  3. A bucket's bit is set exactly when its list is not empty; likewise the summary's bits.

use super::{Key, Moment};
use crate::limits::core as limits;

/// The width of a bucket, as moments count.
const TICK_MICROS: u64 = limits::WHEEL_TICK.as_micros() as u64;
const WORD_BITS: usize = u64::BITS as usize;
const WORDS: usize = limits::WHEEL_BUCKETS / WORD_BITS;
/// How far after the cursor an entry can be placed.
const HORIZON_TICKS: u64 = limits::WHEEL_BUCKETS as u64 - 1;
/// Marks the end of a list, and the bucket of an entry that is in none.
const NO_SLOT: u32 = u32::MAX;
const NO_BUCKET: u16 = u16::MAX;

/// See the file's head.
#[derive(Debug)]
pub struct Wheel {
    /// The first tick whose bucket may hold entries.
    cursor: u64,
    /// Indexed by slot; grows with the highest index ever scheduled.
    entries: Vec<Entry>,
    /// The first slot of each bucket's list.
    heads: Box<[u32; limits::WHEEL_BUCKETS]>,
    /// A bit for each bucket that is not empty.
    occupied: [u64; WORDS],
    /// A bit for each word of `occupied` that is not zero.
    summary: u64,
    length: usize,
}

/// The wheel's record of one slot.
#[derive(Clone, Debug)]
struct Entry {
    at: Moment,
    previous: u32,
    next: u32,
    generation: u32,
    bucket: u16,
}

const _: () = assert!(size_of::<Entry>() <= 24);
const _: () = assert!(WORDS == WORD_BITS);
const _: () = assert!(limits::WHEEL_BUCKETS <= NO_BUCKET as usize);

impl Entry {
    const VACANT: Entry = Entry {
        at: Moment::NEVER,
        previous: NO_SLOT,
        next: NO_SLOT,
        generation: 0,
        bucket: NO_BUCKET,
    };

    fn is_linked(&self) -> bool {
        self.bucket != NO_BUCKET
    }
}

impl Wheel {
    pub fn new(now: Moment) -> Wheel {
        Wheel {
            cursor: now.as_micros() / TICK_MICROS,
            entries: Vec::new(),
            heads: Box::new([NO_SLOT; limits::WHEEL_BUCKETS]),
            occupied: [0; WORDS],
            summary: 0,
            length: 0,
        }
    }

    // ---- getters ----

    /// Returns how many entries there are.
    pub fn len(&self) -> usize {
        self.length
    }

    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Returns the moment for which this key is scheduled.
    pub fn scheduled(&self, key: Key) -> Option<Moment> {
        let entry = self.entries.get(key.index as usize)?;
        (entry.is_linked() && entry.generation == key.generation).then_some(entry.at)
    }

    /// Returns when [`Wheel::expire`] should be called next: `None` if there are no entries. A
    /// moment in the past means that more is due now.
    pub fn next_expiry(&self) -> Option<Moment> {
        let tick = self.first_occupied()?;
        Some(Moment::from_micros(tick.saturating_mul(TICK_MICROS)))
    }

    // ---- commands ----

    /// Schedules the key's slot for `at`. Moves the slot's entry if there is one, even an earlier
    /// tenant's. `Moment::NEVER` removes it.
    pub fn schedule(&mut self, key: Key, at: Moment) {
        if at == Moment::NEVER {
            self.unlink(key.index);
            return;
        }
        let index = key.index as usize;
        if index >= self.entries.len() {
            self.entries.resize(index + 1, Entry::VACANT);
        }
        let bucket = self.bucket_for(at);
        if self.entries[index].bucket != bucket {
            self.unlink(key.index);
            self.link(key.index, bucket);
        }
        let entry = &mut self.entries[index];
        entry.at = at;
        entry.generation = key.generation;
    }

    /// Removes the key's entry; an entry of another tenant stays.
    pub fn cancel(&mut self, key: Key) {
        if self.scheduled(key).is_some() {
            self.unlink(key.index);
        }
    }

    /// Appends the keys that are due to `expired` and removes their entries. Looks at no more than
    /// `at_most` entries; returns whether more are due.
    #[must_use = "what is still due needs another call, not a sleep"]
    pub fn expire(&mut self, now: Moment, expired: &mut Vec<Key>, at_most: usize) -> bool {
        let now_tick = now.as_micros() / TICK_MICROS;
        // The clock has passed a whole circle: see the file's head.
        self.cursor = self.cursor.max(now_tick.saturating_sub(HORIZON_TICKS));
        for _ in 0..at_most {
            if !self.seek_due(now_tick) {
                return false;
            }
            let index = self.heads[bucket_of(self.cursor)];
            self.unlink(index);
            let Entry { at, generation, .. } = self.entries[index as usize];
            if at <= now {
                expired.push(Key::new(index, generation));
            } else {
                // The entry waited at the horizon. Its tick is after `now_tick`, hence after the
                // cursor: it does not come back into this bucket.
                self.link(index, self.bucket_for(at));
            }
        }
        self.seek_due(now_tick)
    }

    // ---- helpers ----

    /// Moves the cursor to the first occupied tick up to `now_tick`, or behind `now_tick` if there
    /// is none. Returns whether its tick is occupied.
    fn seek_due(&mut self, now_tick: u64) -> bool {
        if self.cursor > now_tick {
            return false;
        }
        match self.first_occupied() {
            Some(tick) if tick <= now_tick => {
                self.cursor = tick;
                true
            }
            _ => {
                self.cursor = now_tick + 1;
                false
            }
        }
    }

    /// Returns the bucket in which an entry for `at` belongs now.
    fn bucket_for(&self, at: Moment) -> u16 {
        // Rounded up: when this tick has begun, the moment has passed. Never early.
        let tick = at.as_micros().div_ceil(TICK_MICROS);
        let tick = tick.clamp(self.cursor, self.cursor.saturating_add(HORIZON_TICKS));
        bucket_of(tick) as u16
    }

    /// Returns the first tick, from the cursor on, whose bucket is not empty.
    fn first_occupied(&self) -> Option<u64> {
        let start = bucket_of(self.cursor);
        let (word, bit) = (start / WORD_BITS, start % WORD_BITS);
        let rest_of_word = self.occupied[word] & (u64::MAX << bit);
        let bucket = if rest_of_word != 0 {
            word * WORD_BITS + rest_of_word.trailing_zeros() as usize
        } else {
            // The words after this one, around the circle, with this one's lower bits last.
            let turned = self.summary.rotate_right((word as u32 + 1) % u64::BITS);
            if turned == 0 {
                return None;
            }
            let word = (word + 1 + turned.trailing_zeros() as usize) % WORDS;
            word * WORD_BITS + self.occupied[word].trailing_zeros() as usize
        };
        let distance = (bucket + limits::WHEEL_BUCKETS - start) % limits::WHEEL_BUCKETS;
        Some(self.cursor + distance as u64)
    }

    /// Puts a slot that is in no bucket at the head of one.
    fn link(&mut self, index: u32, bucket: u16) {
        let head = &mut self.heads[bucket as usize];
        let next = std::mem::replace(head, index);
        if next != NO_SLOT {
            self.entries[next as usize].previous = index;
        }
        let entry = &mut self.entries[index as usize];
        debug_assert!(!entry.is_linked(), "slot {index} is in a bucket already");
        entry.previous = NO_SLOT;
        entry.next = next;
        entry.bucket = bucket;
        let word = bucket as usize / WORD_BITS;
        self.occupied[word] |= 1 << (bucket as usize % WORD_BITS);
        self.summary |= 1 << word;
        self.length += 1;
    }

    /// Takes a slot out of its bucket, if it is in one.
    fn unlink(&mut self, index: u32) {
        let Some(entry) = self.entries.get_mut(index as usize) else {
            return;
        };
        if !entry.is_linked() {
            return;
        }
        let bucket = std::mem::replace(&mut entry.bucket, NO_BUCKET) as usize;
        let (previous, next) = (entry.previous, entry.next);
        if next != NO_SLOT {
            self.entries[next as usize].previous = previous;
        }
        if previous != NO_SLOT {
            self.entries[previous as usize].next = next;
        } else {
            self.heads[bucket] = next;
        }
        self.length -= 1;
        if self.heads[bucket] == NO_SLOT {
            let word = bucket / WORD_BITS;
            self.occupied[word] &= !(1 << (bucket % WORD_BITS));
            if self.occupied[word] == 0 {
                self.summary &= !(1 << word);
            }
        }
    }

    /// Checks every list: for tests and the simulation. `now` is that of the last `expire`.
    pub fn check_invariants(&self, now: Moment) {
        let now_tick = now.as_micros() / TICK_MICROS;
        let mut linked = 0;
        for bucket in 0..limits::WHEEL_BUCKETS {
            let (word, bit) = (bucket / WORD_BITS, bucket % WORD_BITS);
            let is_occupied = self.occupied[word] >> bit & 1 == 1;
            assert_eq!(
                is_occupied,
                self.heads[bucket] != NO_SLOT,
                "bit of {bucket}"
            );
            assert_eq!(self.summary >> word & 1 == 1, self.occupied[word] != 0);
            let distance =
                (bucket + limits::WHEEL_BUCKETS - bucket_of(self.cursor)) % limits::WHEEL_BUCKETS;
            let tick = self.cursor + distance as u64;
            let (mut previous, mut index) = (NO_SLOT, self.heads[bucket]);
            while index != NO_SLOT {
                let entry = &self.entries[index as usize];
                assert_eq!(entry.bucket as usize, bucket);
                assert_eq!(entry.previous, previous);
                let due = entry.at.as_micros().div_ceil(TICK_MICROS);
                let in_time = tick <= due.max(self.cursor).max(now_tick);
                assert!(in_time, "slot {index} would fire late");
                linked += 1;
                assert!(linked <= self.length, "a list runs in a circle");
                (previous, index) = (index, entry.next);
            }
        }
        assert_eq!(linked, self.length);
        let in_buckets = self.entries.iter().filter(|entry| entry.is_linked());
        assert_eq!(in_buckets.count(), self.length);
    }
}

const fn bucket_of(tick: u64) -> usize {
    (tick % limits::WHEEL_BUCKETS as u64) as usize
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const TICK: u64 = TICK_MICROS;
    const CIRCLE: u64 = TICK * limits::WHEEL_BUCKETS as u64;

    const fn at(micros: u64) -> Moment {
        Moment::from_micros(micros)
    }

    fn expire_all(wheel: &mut Wheel, now: Moment) -> Vec<Key> {
        let mut expired = Vec::new();
        assert!(!wheel.expire(now, &mut expired, usize::MAX));
        wheel.check_invariants(now);
        expired
    }

    #[test]
    fn never_early_and_at_most_a_tick_late() {
        let key = Key::new(0, 1);
        for micros in [
            1,
            TICK - 1,
            TICK,
            TICK + 1,
            10 * TICK + 5,
            CIRCLE - 1,
            CIRCLE,
        ] {
            let mut wheel = Wheel::new(Moment::ZERO);
            wheel.schedule(key, at(micros));
            assert_eq!(expire_all(&mut wheel, at(micros - 1)), []);
            assert_eq!(expire_all(&mut wheel, at(micros + TICK)), [key], "{micros}");
            assert!(wheel.is_empty());
        }
    }

    #[test]
    fn what_has_passed_already_fires_within_a_tick() {
        let mut wheel = Wheel::new(at(100 * TICK));
        let key = Key::new(3, 9);
        assert_eq!(expire_all(&mut wheel, at(100 * TICK)), []);
        wheel.schedule(key, at(5));
        assert!(
            wheel
                .next_expiry()
                .is_some_and(|next| next <= at(101 * TICK))
        );
        assert_eq!(expire_all(&mut wheel, at(101 * TICK)), [key]);
    }

    #[test]
    fn an_entry_of_another_tenant_is_neither_found_nor_cancelled() {
        let mut wheel = Wheel::new(Moment::ZERO);
        let (old, new) = (Key::new(2, 1), Key::new(2, 2));
        wheel.schedule(old, at(TICK));
        wheel.cancel(new);
        assert_eq!(wheel.scheduled(new), None);
        assert_eq!(wheel.scheduled(old), Some(at(TICK)));
        // A slot has one entry: the new tenant's replaces the old one.
        wheel.schedule(new, at(9 * TICK));
        assert_eq!((wheel.len(), wheel.scheduled(old)), (1, None));
        assert_eq!(expire_all(&mut wheel, at(20 * TICK)), [new]);
    }

    #[test]
    fn never_takes_the_entry_out() {
        let mut wheel = Wheel::new(Moment::ZERO);
        let key = Key::new(0, 1);
        wheel.schedule(key, Moment::NEVER);
        wheel.schedule(key, at(TICK));
        wheel.schedule(key, Moment::NEVER);
        assert_eq!((wheel.len(), wheel.next_expiry()), (0, None));
    }

    #[test]
    fn a_call_looks_at_no_more_entries_than_allowed() {
        let mut wheel = Wheel::new(Moment::ZERO);
        for index in 0..10 {
            wheel.schedule(Key::new(index, 1), at(u64::from(index) * TICK));
        }
        let now = at(100 * TICK);
        let mut expired = Vec::new();
        assert!(wheel.expire(now, &mut expired, 4));
        assert_eq!(expired.len(), 4);
        wheel.check_invariants(now);
        assert!(
            wheel.next_expiry().is_some_and(|next| next <= now),
            "no sleep with work left"
        );
        assert!(wheel.expire(now, &mut expired, 4));
        assert!(
            !wheel.expire(now, &mut expired, 2),
            "the last ones were taken"
        );
        assert_eq!(expired.len(), 10);
    }

    #[test]
    fn a_clock_that_jumps_a_year_visits_each_entry_once_or_twice() {
        let year = 365 * 24 * 3_600 * 1_000_000_u64;
        let mut wheel = Wheel::new(Moment::ZERO);
        for index in 0..100 {
            let due = if index % 2 == 0 { 1_000_000 } else { 2 * year };
            wheel.schedule(Key::new(index, 1), at(due + u64::from(index) * TICK));
        }
        let mut expired = Vec::new();
        assert!(!wheel.expire(at(year), &mut expired, 200));
        wheel.check_invariants(at(year));
        assert_eq!((expired.len(), wheel.len()), (50, 50));
        assert!(wheel.next_expiry().is_some_and(|next| next > at(year)));
    }

    #[test]
    fn the_end_of_time_does_not_overflow() {
        let mut wheel = Wheel::new(at(u64::MAX - 2 * TICK));
        wheel.schedule(Key::new(0, 1), at(u64::MAX - 1));
        assert!(wheel.next_expiry().is_some());
        let _ = expire_all(&mut wheel, Moment::NEVER);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Schedule {
            index: u32,
            generation: u32,
            delay: u64,
        },
        Cancel {
            index: u32,
            generation: u32,
        },
        /// The clock advances and due entries are taken out, this many per call.
        Expire {
            delay: u64,
            at_most: usize,
        },
        /// The loop sleeps until the wheel wants to be called.
        Sleep,
    }

    /// Delays at every scale: within a tick, within the circle, and beyond it.
    fn delay() -> impl Strategy<Value = u64> {
        prop_oneof![
            0..3 * TICK,
            0..CIRCLE,
            CIRCLE - TICK..CIRCLE + 2 * TICK,
            0..40 * CIRCLE
        ]
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let slot = || (0_u32..8, 1_u32..3);
        let step = prop_oneof![
            6 => (slot(), delay()).prop_map(|((index, generation), delay)| Step::Schedule {
                index,
                generation,
                delay
            }),
            2 => slot().prop_map(|(index, generation)| Step::Cancel { index, generation }),
            3 => (delay(), 1_usize..5).prop_map(|(delay, at_most)| Step::Expire {
                delay,
                at_most
            }),
            2 => Just(Step::Sleep),
        ];
        prop::collection::vec(step, 0..50)
    }

    /// By slot: the tenant and its moment. All that a wheel must know, kept in a slow structure.
    type Model = BTreeMap<u32, (u32, Moment)>;

    /// Expires until nothing is due, and compares with the model.
    fn check_expiry(wheel: &mut Wheel, model: &mut Model, now: Moment, at_most: usize) {
        let mut expired = Vec::new();
        let mut calls = 0;
        while wheel.expire(now, &mut expired, at_most) {
            wheel.check_invariants(now);
            calls += 1;
            assert!(calls <= 3 * 8, "a call that does nothing");
        }
        for key in expired {
            let (generation, moment) = model.remove(&key.index).expect("scheduled");
            assert_eq!(generation, key.generation);
            assert!(moment <= now, "early");
        }
        for (_, moment) in model.values() {
            assert!(
                moment.as_micros() + TICK > now.as_micros(),
                "more than a tick late"
            );
        }
        wheel.check_invariants(now);
    }

    proptest! {
        #[test]
        fn agrees_with_an_ordered_map(steps in steps(), start in 0..3 * CIRCLE) {
            let mut now = at(start);
            let mut wheel = Wheel::new(now);
            let mut model = Model::new();
            for step in steps {
                match step {
                    Step::Schedule { index, generation, delay } => {
                        let moment = at(now.as_micros() + delay);
                        wheel.schedule(Key::new(index, generation), moment);
                        model.insert(index, (generation, moment));
                    }
                    Step::Cancel { index, generation } => {
                        wheel.cancel(Key::new(index, generation));
                        if model.get(&index).is_some_and(|(tenant, _)| *tenant == generation) {
                            model.remove(&index);
                        }
                    }
                    Step::Expire { delay, at_most } => {
                        now = at(now.as_micros() + delay);
                        check_expiry(&mut wheel, &mut model, now, at_most);
                    }
                    Step::Sleep => {
                        let next = wheel.next_expiry();
                        prop_assert_eq!(next.is_none(), model.is_empty());
                        let earliest = model.values().map(|(_, moment)| *moment).min();
                        if let (Some(next), Some(earliest)) = (next, earliest) {
                            let latest = earliest.max(now).as_micros() + TICK;
                            prop_assert!(next.as_micros() <= latest, "sleeps too long");
                            now = now.max(next);
                        }
                        check_expiry(&mut wheel, &mut model, now, usize::MAX);
                    }
                }
                wheel.check_invariants(now);
                prop_assert_eq!(wheel.len(), model.len());
                for (index, (generation, moment)) in &model {
                    let key = Key::new(*index, *generation);
                    prop_assert_eq!(wheel.scheduled(key), Some(*moment));
                }
            }
        }
    }
}
