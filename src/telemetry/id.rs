//! Ids of the things that the daemon keeps: `gen_` or `job_`, and a UUID of version 7.
//!
//! Owns one generator per reactor; an id costs no system call, no lock and no allocation. Unlike a
//! request's id, these are always the daemon's own, so they can be the key of a row and a place in
//! a list.
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

use std::fmt;

use uuid::Builder;

use crate::core::UnixMillis;
use crate::telemetry::random::SplitMix64;

/// The kind of thing that an id names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdKind {
    Generation,
}

impl IdKind {
    const fn prefix(self) -> &'static [u8; 4] {
        match self {
            IdKind::Generation => b"gen_",
        }
    }
}

/// The characters of an id: its prefix, and a UUID with hyphens.
const LENGTH: usize = 40;

/// An id in its text form, stored in place.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Id([u8; LENGTH]);

impl Id {
    /// The least id of a generation, for places that need one and name nothing by it.
    pub const FIRST: Id = Id(*b"gen_00000000-0000-7000-8000-000000000000");

    /// Reads an id of ours of this kind: only the form that [`Ids::make`] writes.
    pub fn parse(kind: IdKind, text: &[u8]) -> Option<Id> {
        let text: [u8; LENGTH] = text.try_into().ok()?;
        let digits = text.strip_prefix(kind.prefix())?;
        let is_right = digits.iter().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => *byte == b'-',
            14 => *byte == b'7',
            _ => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
        });
        is_right.then_some(Id(text))
    }

    /// Returns the time of its creation, as far as its generator's clock was right.
    pub fn unix_millis(&self) -> UnixMillis {
        let text = self.as_str();
        let digits = text.get(4..12).zip(text.get(13..17));
        let number = digits.and_then(|(high, low)| {
            let high = u64::from_str_radix(high, 16).ok()?;
            Some(high << 16 | u64::from_str_radix(low, 16).ok()?)
        });
        UnixMillis::new(number.unwrap_or(0))
    }

    pub fn as_str(&self) -> &str {
        // Always ASCII: both functions that make one see to it.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

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
    pub fn make(&mut self, kind: IdKind, now: UnixMillis) -> Id {
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
        let uuid = Builder::from_unix_timestamp_millis(self.last_ms, &tail).into_uuid();
        let mut text = [0; LENGTH];
        let (prefix, digits) = text.split_at_mut(kind.prefix().len());
        prefix.copy_from_slice(kind.prefix());
        uuid.hyphenated().encode_lower(digits);
        Id(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_700_000_000_000;

    fn ids() -> Ids {
        Ids::new(SplitMix64::new(1, 2))
    }

    fn make(ids: &mut Ids, now_ms: u64) -> String {
        let id = ids.make(IdKind::Generation, UnixMillis::new(now_ms));
        assert!(id.unix_millis().as_u64() >= now_ms);
        assert_eq!(
            Id::parse(IdKind::Generation, id.as_str().as_bytes()),
            Some(id)
        );
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

    #[test]
    fn only_the_form_of_our_own_ids_is_read() {
        let id = make(&mut ids(), NOW);
        let bytes = id.as_bytes();
        for wrong in [
            &bytes[1..],
            &[bytes, b"0"].concat(),
            &id.to_uppercase().into_bytes(),
            &id.replace('-', "0").into_bytes(),
            &id.replace("gen_", "key_").into_bytes(),
            &id.replace("-7", "-4").into_bytes(),
            b"",
        ] {
            assert_eq!(Id::parse(IdKind::Generation, wrong), None, "{wrong:?}");
        }
    }
}
