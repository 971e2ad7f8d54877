//! The form of an entry outside of the daemon's memory: in Redis, and in the store.
//!
//! Must never return bytes that it has not verified: a value that is damaged, that another program
//! has written, or that was stored under another entry's key, is a miss.
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
//! The checksum finds damage, not malice: a program that may write to Redis or to the database may
//! do as it likes.
//!
//! Mutations that tests catch: no comparison of the digest, of the model, of the length or of the
//! checksum (`a_value_is_taken_only_as_it_was_written`).

/// Names an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryId {
    /// The keyed digest of tenant and canonical request.
    pub digest: [u8; 32],
    /// The digest of the model's file.
    pub model: [u8; 32],
    /// The tenant, which the first digest covers.
    pub tenant: u64,
}

const MAGIC: &[u8; 4] = b"AGE1";
const FORMAT: u32 = 1;
pub const HEADER_BYTES: usize = 4 + 4 + 8 + 32 + 32 + 32;
const CHECKSUM_AT: usize = HEADER_BYTES - 32;

/// Returns the value for an entry.
pub fn seal(id: EntryId, entry: &[u8]) -> Vec<u8> {
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
pub fn open(id: EntryId, mut value: Vec<u8>) -> Option<Vec<u8>> {
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
        tenant: 5,
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
