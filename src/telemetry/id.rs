//! Makes the ids of the things that the daemon keeps.
//!
//! Owns one generator per reactor; an id costs no system call, no lock and no allocation.
//!
//! Invariants:
//!  1. The ids of one generator increase, whatever the wall clock does: one that is set back, or
//!     that stands still for a whole turn of the loop, changes only how long the time in the ids
//!     runs ahead of it.
//!  2. Ids of different generators differ by 62 random bits, and sort by time up to the difference
//!     of their clocks.
//!
//! Mutations that the tests below catch: `last_ms` taken from the clock although that was set back,
//! a counter that is drawn for each id, a counter that overflows into the version.

use crate::core::UnixMillis;
use crate::core::id::{Id, Kind};
use crate::telemetry::random::SplitMix64;

/// Creates ids. Each reactor has its own.
#[derive(Clone, Debug)]
pub struct Ids {
    random: SplitMix64,
    /// The time in the last id.
    last_ms: u64,
    /// The counter in the last id, which distinguishes and orders those of one millisecond.
    counter: u16,
}

impl Ids {
    pub const fn new(random: SplitMix64) -> Ids {
        Ids {
            random,
            last_ms: 0,
            counter: 0,
        }
    }

    /// Creates an id that is greater than the last one. Its 12 bits behind the version are a
    /// counter that begins anywhere in the lower quarter (RFC 9562, section 6.2, method 1).
    pub fn make<K: Kind>(&mut self, now: UnixMillis) -> Id<K> {
        const COUNTER_MAX: u16 = 0xfff;
        let (high, low) = (self.random.draw(), self.random.draw());
        let now_ms = now.as_u64();
        if now_ms > self.last_ms {
            self.last_ms = now_ms;
            self.counter = high as u16 & COUNTER_MAX >> 2;
        } else if self.counter < COUNTER_MAX {
            self.counter += 1;
        } else {
            self.last_ms += 1;
            self.counter = 0;
        }
        let mut tail = [0; 10];
        tail[..2].copy_from_slice(&self.counter.to_be_bytes());
        tail[2..].copy_from_slice(&low.to_be_bytes());
        Id::new(self.last_ms, tail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::id::GenerationId;

    const NOW: u64 = 1_700_000_000_000;

    fn ids() -> Ids {
        Ids::new(SplitMix64::new(1, 2))
    }

    fn make(ids: &mut Ids, now_ms: u64) -> String {
        let id: GenerationId = ids.make(UnixMillis::new(now_ms));
        assert!(id.unix_millis().as_u64() >= now_ms);
        assert_eq!(GenerationId::parse(id.text().as_str()), Some(id));
        id.to_string()
    }

    #[test]
    fn ids_increase_within_a_millisecond_beyond_its_counter_and_when_the_clock_is_set_back() {
        let mut ids = ids();
        let mut previous = String::new();
        let still = std::iter::repeat_n(NOW, 10_000);
        for now in still.chain([NOW + 9, NOW + 8, 0, NOW - 1_000, NOW + 10, NOW + 500]) {
            let id = make(&mut ids, now);
            assert!(previous < id, "{previous} {id}");
            previous = id;
        }
        assert!(previous.starts_with("gen_018bcfe5-69f4-7"), "{previous}");
    }

    #[test]
    fn the_same_seed_makes_the_same_ids_and_another_one_others() {
        let first = make(&mut ids(), NOW);
        assert_eq!(first, make(&mut ids(), NOW));
        let mut others = Ids::new(SplitMix64::new(1, 3));
        assert_ne!(first[24..], make(&mut others, NOW)[24..]);
    }
}
