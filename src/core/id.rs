//! Ids of the things that the daemon keeps: a UUID of version 7 behind the name of its kind, such
//! as `gen_01890a5d-ac96-774b-bcce-b302099a8057`.
//!
//! Ids of one kind sort by the time of their creation, so a list is paged by them. Unlike a
//! request's id they are always the daemon's own. An id is a name and not a secret: each look-up
//! compares the tenant as well. There is one text for each id.

use std::fmt;
use std::marker::PhantomData;

use super::UnixMillis;

/// The kind of thing that an id names.
pub trait Kind {
    const PREFIX: &'static str;
}

/// One run of the engine for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Generation {}

/// A durable job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Job {}

impl Kind for Generation {
    const PREFIX: &'static str = "gen_";
}

impl Kind for Job {
    const PREFIX: &'static str = "job_";
}

pub type GenerationId = Id<Generation>;
pub type JobId = Id<Job>;

/// Digits before each dash.
const GROUPS: [usize; 5] = [8, 4, 4, 4, 12];

/// The version and the variant (RFC 9562, section 5.7), and the bits that they take of their bytes.
const VERSION: (usize, u8, u8) = (6, 0x70, 0xf0);
const VARIANT: (usize, u8, u8) = (8, 0x80, 0xc0);

/// See the file's head.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id<K>([u8; 16], PhantomData<K>);

impl<K: Kind> Id<K> {
    pub const BYTES: usize = 16;

    /// The least id, for places that need one and name nothing by it.
    pub const FIRST: Id<K> = Id::new(0, [0; 10]);

    /// Makes an id of the time in milliseconds since 1970 and of 10 further bytes.
    pub const fn new(now_ms: u64, tail: [u8; 10]) -> Id<K> {
        let number = (now_ms as u128) << 80 | tail_number(tail);
        let mut bytes = number.to_be_bytes();
        let (at, bits, mask) = VERSION;
        bytes[at] = bytes[at] & !mask | bits;
        let (at, bits, mask) = VARIANT;
        bytes[at] = bytes[at] & !mask | bits;
        Id(bytes, PhantomData)
    }

    pub const fn from_bytes(bytes: [u8; 16]) -> Id<K> {
        Id(bytes, PhantomData)
    }

    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// Reads an id of ours as it is written: in lower case, with its dashes.
    pub fn parse(text: &str) -> Option<Id<K>> {
        let mut rest = text.strip_prefix(K::PREFIX)?;
        let mut bytes = [0; 16];
        let mut next = bytes.iter_mut();
        for (index, digits) in GROUPS.into_iter().enumerate() {
            if index > 0 {
                rest = rest.strip_prefix('-')?;
            }
            let (group, after) = rest.split_at_checked(digits)?;
            // The digits come first: `zip` takes from its first side even when the other has ended.
            for (pair, byte) in group.as_bytes().as_chunks::<2>().0.iter().zip(&mut next) {
                *byte = digit(pair[0])? << 4 | digit(pair[1])?;
            }
            rest = after;
        }
        let is_ours = [VERSION, VARIANT]
            .iter()
            .all(|(at, bits, mask)| bytes[*at] & mask == *bits);
        (rest.is_empty() && is_ours).then_some(Id(bytes, PhantomData))
    }

    /// Returns the id as it is written.
    pub fn text(&self) -> IdText {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = [b'-'; IdText::BYTES];
        let (prefix, rest) = text.split_at_mut(K::PREFIX.len());
        prefix.copy_from_slice(K::PREFIX.as_bytes());
        let mut bytes = self.0.iter();
        let mut at = 0;
        for digits in GROUPS {
            let (pairs, _) = rest[at..at + digits].as_chunks_mut::<2>();
            for (pair, byte) in pairs.iter_mut().zip(bytes.by_ref()) {
                *pair = [byte >> 4, byte & 0xf].map(|digit| DIGITS[usize::from(digit)]);
            }
            at += digits + 1;
        }
        IdText(text)
    }

    /// Returns the time of its creation, as far as its generator's clock was right.
    pub fn unix_millis(&self) -> UnixMillis {
        UnixMillis::new((u128::from_be_bytes(self.0) >> 80) as u64)
    }
}

/// The text of an id, stored in place.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct IdText([u8; IdText::BYTES]);

impl IdText {
    /// A prefix, 32 digits and 4 dashes.
    pub const BYTES: usize = 40;

    pub fn as_str(&self) -> &str {
        // Always ASCII: `Id::text` makes it.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

const fn tail_number(tail: [u8; 10]) -> u128 {
    let mut number = 0;
    let mut at = 0;
    while at < tail.len() {
        number = number << 8 | tail[at] as u128;
        at += 1;
    }
    number
}

fn digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    }
}

impl<K: Kind> fmt::Display for Id<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text().as_str())
    }
}

impl<K: Kind> fmt::Debug for Id<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mutations: `new` without the version; `parse` that takes upper case or ignores a rest.
    #[test]
    fn an_id_has_one_text_and_sorts_by_its_time() {
        let id = JobId::new(0x0189_0a5d_ac96, [0xff; 10]);
        let text = id.to_string();
        assert_eq!(text, "job_01890a5d-ac96-7fff-bfff-ffffffffffff");
        assert_eq!(text, id.text().as_str());
        assert_eq!(JobId::parse(&text), Some(id));
        assert!(id < JobId::new(0x0189_0a5d_ac97, [0; 10]));
        assert_eq!(id.unix_millis(), UnixMillis::new(0x0189_0a5d_ac96));
        assert_eq!(JobId::from_bytes(*id.as_bytes()), id);
        let of_generation = GenerationId::from_bytes(*id.as_bytes()).to_string();
        assert_eq!(of_generation, text.replace("job_", "gen_"));
        let upper = text.to_uppercase();
        let others = [
            "",
            "job_",
            &of_generation,
            "01890a5d-ac96-7fff-bfff-ffffffffffff",
            "job_01890a5dac967fffbfffffffffffffff",
            "job_01890a5d-ac96-7fff-bfff-fffffffffff",
            "job_01890a5d-ac96-7fff-bfff-ffffffffffff0",
            "job_01890a5d-ac96-7fff-bfff-fffffffffffg",
            "job_01890a5-dac96-7fff-bfff-ffffffffffff",
            "job_01890a5d-ac96-7fff-bfff-ffffffffff\u{e9}",
            "job_01890a5d-ac96-4fff-bfff-ffffffffffff",
            "job_01890a5d-ac96-7fff-ffff-ffffffffffff",
            &upper,
        ];
        for other in others {
            assert_eq!(JobId::parse(other), None, "{other}");
        }
    }

    #[test]
    fn the_first_id_is_least_and_ours() {
        let text = "gen_00000000-0000-7000-8000-000000000000";
        assert_eq!(GenerationId::FIRST.text().as_str(), text);
        assert_eq!(GenerationId::parse(text), Some(GenerationId::FIRST));
    }
}
