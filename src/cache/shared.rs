//! The level that several daemons share: entries in Redis.
//!
//! Owns the form of a value and its check. Must never block a caller, and never returns bytes
//! that it has not verified: a value that is damaged, that another program has written, or that
//! was stored under another entry's key, is a miss.
//!
//! A value is a header of 112 bytes and the entry:
//!
//! | bytes | meaning |
//! | --- | --- |
//! | 4 | magic, `AGE1` |
//! | 4 | the format's version, little endian |
//! | 8 | the entry's length, little endian |
//! | 32 | the model's digest |
//! | 32 | the entry's own digest, which is its key |
//! | 32 | BLAKE3 of everything before it, and of the entry |
//!
//! The checksum finds damage, not malice: a program that may write to Redis may do as it likes, so
//! Redis must be reachable for the daemons alone.
//!
//! Mutations that tests catch: no comparison of the digest, of the model, of the length or of the
//! checksum (`a_value_is_taken_only_as_it_was_written`), and no bound on what is read
//! (`a_value_that_is_too_long_...` in `tests/redis.rs`).

use std::sync::Arc;
use std::time::Duration;

use crate::core::Moment;
use crate::limits::cache as limits;
use crate::redis::{Handle, Reply, Request};

/// Names an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryId {
    /// The keyed digest of tenant and canonical request.
    pub digest: [u8; 32],
    /// The digest of the model's file.
    pub model: [u8; 32],
}

/// Receives an entry, or `None` for a miss, on another thread: it must be quick.
pub type Sink = Box<dyn FnOnce(Option<Vec<u8>>) + Send>;

/// A level behind the daemon's own memory.
pub trait SharedLevel: Send + Sync {
    /// Looks an entry up. `true`: `sink` will be called once, on another thread; for a request that
    /// has not been sent by the deadline, with `None`. `false`: it is a miss, and `sink` is
    /// dropped.
    fn get(&self, id: EntryId, deadline: Moment, sink: Sink) -> bool;

    /// Stores an entry, if the level has room for it now.
    fn put(&self, id: EntryId, entry: &[u8], ttl: Duration);

    /// Removes an entry, if the level is there.
    fn remove(&self, digest: &[u8; 32]);
}

crate::families! {
    /// Look-ups in the level that daemons share.
    pub struct SharedSeries {
        /// Look-ups in the shared level.
        lookups: Counter = "cache_shared_lookups" [ verdict: Verdict ],
            "autoglmd.cache.shared.lookup";
    }
}

/// How a look-up ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Hit,
    Miss,
    /// A value was there and was not taken: damaged, or not ours.
    Foreign,
    /// Redis is lost, or its queue is full.
    Lost,
}

impl Verdict {
    const ALL: [Verdict; 4] = [Verdict::Hit, Verdict::Miss, Verdict::Foreign, Verdict::Lost];

    const fn as_str(self) -> &'static str {
        match self {
            Verdict::Hit => "hit",
            Verdict::Miss => "miss",
            Verdict::Foreign => "foreign",
            Verdict::Lost => "lost",
        }
    }
}

crate::label!(Verdict, as_str, Verdict::ALL, 0);

/// Entries in Redis.
pub struct RedisLevel {
    redis: Handle,
    series: Arc<SharedSeries>,
}

impl RedisLevel {
    pub fn new(redis: Handle, series: Arc<SharedSeries>) -> RedisLevel {
        RedisLevel { redis, series }
    }
}

impl SharedLevel for RedisLevel {
    fn get(&self, id: EntryId, deadline: Moment, sink: Sink) -> bool {
        let key = key_of(&id.digest);
        // GETRANGE in place of GET bounds what another program's value can make us read.
        let last = (HEADER_BYTES + limits::SHARED_ENTRY_BYTES_MAX).to_string();
        let words = [b"GETRANGE", key.as_bytes(), b"0", last.as_bytes()];
        let series = Arc::clone(&self.series);
        let request = Request::new(&key, &words, deadline, move |reply| {
            let (verdict, entry) = judge(reply, id);
            series.lookups.get(verdict).inc();
            sink(entry);
        });
        let accepted = self.redis.submit(request).is_ok();
        if !accepted {
            self.series.lookups.get(Verdict::Lost).inc();
        }
        accepted
    }

    fn put(&self, id: EntryId, entry: &[u8], ttl: Duration) {
        let milliseconds = ttl.as_millis();
        if entry.len() > limits::SHARED_ENTRY_BYTES_MAX || milliseconds == 0 {
            return;
        }
        let (key, value) = (key_of(&id.digest), seal(id, entry));
        let ttl = milliseconds.to_string();
        let words = [b"SET", key.as_bytes(), &value, b"PX", ttl.as_bytes()];
        let request = Request::new(&key, &words, Moment::NEVER, drop);
        // A refused one is counted by the queue; the entry stays in this daemon's memory.
        let _ = self.redis.submit(request);
    }

    fn remove(&self, digest: &[u8; 32]) {
        let key = key_of(digest);
        let request = Request::new(&key, &[b"DEL", key.as_bytes()], Moment::NEVER, drop);
        let _ = self.redis.submit(request);
    }
}

fn key_of(digest: &[u8; 32]) -> String {
    format!("autoglmd:entry:{}", blake3::Hash::from(*digest).to_hex())
}

fn judge(reply: Reply, id: EntryId) -> (Verdict, Option<Vec<u8>>) {
    match reply {
        // GETRANGE returns an empty text for a key that is not there.
        Reply::Bytes(value) if value.is_empty() => (Verdict::Miss, None),
        Reply::Bytes(value) => match open(id, value) {
            Some(entry) => (Verdict::Hit, Some(entry)),
            None => (Verdict::Foreign, None),
        },
        Reply::Nothing => (Verdict::Miss, None),
        Reply::Number(_) => (Verdict::Foreign, None),
        Reply::Failed => (Verdict::Lost, None),
    }
}

const MAGIC: &[u8; 4] = b"AGE1";
const FORMAT: u32 = 1;
const HEADER_BYTES: usize = 4 + 4 + 8 + 32 + 32 + 32;
const CHECKSUM_AT: usize = HEADER_BYTES - 32;

/// Returns the value for an entry.
fn seal(id: EntryId, entry: &[u8]) -> Vec<u8> {
    let mut value = Vec::with_capacity(HEADER_BYTES + entry.len());
    value.extend_from_slice(MAGIC);
    value.extend_from_slice(&FORMAT.to_le_bytes());
    value.extend_from_slice(&(entry.len() as u64).to_le_bytes());
    value.extend_from_slice(&id.model);
    value.extend_from_slice(&id.digest);
    value.extend_from_slice(&checksum(&value, entry));
    value.extend_from_slice(entry);
    value
}

/// Returns the entry of a value, if it is exactly what [`seal`] has made for this name.
fn open(id: EntryId, mut value: Vec<u8>) -> Option<Vec<u8>> {
    let (header, entry) = value.split_at_checked(HEADER_BYTES)?;
    let (head, sum) = header.split_at(CHECKSUM_AT);
    let is_ours = head[..4] == MAGIC[..]
        && head[4..8] == FORMAT.to_le_bytes()
        && head[8..16] == (entry.len() as u64).to_le_bytes()
        && head[16..48] == id.model
        && head[48..80] == id.digest
        && sum == checksum(head, entry);
    if !is_ours {
        return None;
    }
    value.drain(..HEADER_BYTES);
    Some(value)
}

fn checksum(head: &[u8], entry: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(head).update(entry);
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ID: EntryId = EntryId {
        digest: [7; 32],
        model: [9; 32],
    };

    #[test]
    fn a_value_is_taken_only_as_it_was_written() {
        let value = seal(ID, b"entry");
        assert_eq!(open(ID, value.clone()).as_deref(), Some(&b"entry"[..]));
        let other = EntryId {
            digest: [8; 32],
            ..ID
        };
        assert_eq!(open(other, value.clone()), None, "under another key");
        let other = EntryId {
            model: [8; 32],
            ..ID
        };
        assert_eq!(open(other, value.clone()), None, "of another model");
        // With a checksum that fits: each field is compared for itself.
        for (at, what) in [
            (0, "magic"),
            (4, "version"),
            (8, "length"),
            (16, "model"),
            (48, "key"),
        ] {
            let mut value = value.clone();
            value[at] ^= 1;
            let sum = checksum(&value[..CHECKSUM_AT], b"entry");
            value[CHECKSUM_AT..HEADER_BYTES].copy_from_slice(&sum);
            assert_eq!(open(ID, value), None, "{what}");
        }
        assert_eq!(open(ID, b"a stranger's text".to_vec()), None);
    }

    #[test]
    fn replies_are_misses_unless_they_are_entries() {
        assert_eq!(judge(Reply::Bytes(Vec::new()), ID), (Verdict::Miss, None));
        assert_eq!(judge(Reply::Bytes(vec![1]), ID), (Verdict::Foreign, None));
        assert_eq!(judge(Reply::Number(1), ID), (Verdict::Foreign, None));
        assert_eq!(judge(Reply::Failed, ID), (Verdict::Lost, None));
        let (verdict, entry) = judge(Reply::Bytes(seal(ID, b"x")), ID);
        assert_eq!((verdict, entry), (Verdict::Hit, Some(b"x".to_vec())));
    }

    proptest! {
        #[test]
        fn one_wrong_bit_or_a_cut_makes_a_miss(
            entry in prop::collection::vec(any::<u8>(), 0..200),
            at: prop::sample::Index,
            bit in 0_u8..8,
        ) {
            let value = seal(ID, &entry);
            let mut wrong = value.clone();
            wrong[at.index(value.len())] ^= 1 << bit;
            prop_assert_eq!(open(ID, wrong), None);
            let cut = value[..at.index(value.len())].to_vec();
            prop_assert_eq!(open(ID, cut), None);
            prop_assert_eq!(open(ID, value), Some(entry));
        }
    }
}
