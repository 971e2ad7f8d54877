//! All API keys at one moment.
//!
//! Owns the maps in which a key is found. Must never be changed once a reactor can see it.
//!
//! Invariants:
//!  1. A ring never changes; a change in the store makes a new ring.
//!  2. Each hash in a ring names one record. Several hashes may name records of one `id`: after a
//!     rotation the old secret stays valid, for a while, beside the new one.
//!  3. A record found by an old secret expires no later than that secret does.

use std::collections::HashMap;
use std::sync::Arc;

use super::record::KeyRecord;
use super::secret::{KEY_PREFIX, hash};
use crate::limits::keys as limits;

/// All keys at one moment, including revoked ones. Cheap to share, and never changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct KeyRing {
    by_hash: HashMap<[u8; 32], Arc<KeyRecord>>,
    by_id: HashMap<String, Arc<KeyRecord>>,
    by_name: HashMap<String, Arc<KeyRecord>>,
}

impl KeyRing {
    pub fn new(records: Vec<KeyRecord>) -> KeyRing {
        let mut ring = KeyRing::default();
        for record in records.into_iter().map(Arc::new) {
            prefer(&mut ring.by_id, &record.id, &record);
            if !record.name.is_empty() {
                prefer(&mut ring.by_name, &record.name, &record);
            }
            ring.by_hash.insert(record.hash, record);
        }
        ring
    }

    /// Returns the key with this id or, if there is none, with this name; of several secrets or
    /// namesakes the one that is valid for longest. For clients that are known by other means than
    /// the secret.
    pub fn find_named(&self, id_or_name: &str) -> Option<&Arc<KeyRecord>> {
        let named = self.by_id.get(id_or_name);
        named.or_else(|| self.by_name.get(id_or_name))
    }

    /// Returns the record of the key with this text, whatever its standing: the caller
    /// distinguishes a revoked key from an unknown one, and counts them separately.
    pub fn find(&self, presented: &str) -> Option<&Arc<KeyRecord>> {
        // The shape of a key is public, so refusing another shape early reveals nothing, and it
        // bounds the bytes that a stranger can make us hash.
        if presented.len() != limits::TEXT_BYTES || !presented.starts_with(KEY_PREFIX) {
            return None;
        }
        let hash = hash(presented);
        let record = self.by_hash.get(&hash)?;
        // The comparison of blake3's own type takes constant time.
        let is_same = blake3::Hash::from(record.hash) == blake3::Hash::from(hash);
        is_same.then_some(record)
    }

    /// Returns how many secrets there are, including revoked and expired ones.
    pub fn len(&self) -> usize {
        self.by_hash.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_hash.is_empty()
    }

    pub fn records(&self) -> impl Iterator<Item = &Arc<KeyRecord>> {
        self.by_hash.values()
    }
}

/// Enters a record under a name, unless a better one is there.
fn prefer(known: &mut HashMap<String, Arc<KeyRecord>>, name: &str, record: &Arc<KeyRecord>) {
    let worth = |record: &KeyRecord| {
        let end = record.expires_at.unwrap_or(u64::MAX);
        (!record.revoked, end, record.created_at, record.hash)
    };
    let is_better = |other: &Arc<KeyRecord>| worth(record) > worth(other);
    if known.get(name).is_none_or(is_better) {
        known.insert(name.to_owned(), Arc::clone(record));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{Scopes, Secret, Standing};

    fn record(secret: &Secret) -> KeyRecord {
        KeyRecord {
            id: "key_000000000000".into(),
            name: "test".into(),
            hash: secret.hash(),
            scopes: Scopes::GENERATE,
            created_at: 100,
            expires_at: None,
            requests_per_minute: None,
            tokens_per_minute: None,
            concurrency: None,
            weight: limits::WEIGHT_DEFAULT,
            revoked: false,
        }
    }

    #[test]
    fn a_ring_finds_its_keys_and_no_others() {
        let (mine, other) = (Secret::from_bytes(&[1; 32]), Secret::from_bytes(&[2; 32]));
        let ring = KeyRing::new(vec![record(&mine)]);
        assert_eq!(ring.find(mine.reveal()).unwrap().name, "test");
        assert_eq!(ring.find(other.reveal()), None);
        assert_eq!(ring.find(""), None);
        assert_eq!(ring.find(&mine.reveal()[..limits::TEXT_BYTES - 1]), None);
        assert_eq!(ring.find(&format!("{}A", mine.reveal())), None);
        // The last character carries only four bits of the key: a text that decodes to the same
        // bytes is still another text.
        let mut altered = mine.reveal().to_owned();
        let last = altered.pop().unwrap();
        altered.push(if last == 'E' { 'F' } else { 'E' });
        assert_eq!(ring.find(&altered), None);
    }

    #[test]
    fn a_key_is_found_by_id_before_name_and_the_best_of_several() {
        let make = |seed: u8, id: &str, name: &str, expires_at| KeyRecord {
            id: id.into(),
            name: name.into(),
            expires_at,
            ..record(&Secret::from_bytes(&[seed; 32]))
        };
        let mut revoked = make(4, "key_c", "phones", None);
        revoked.revoked = true;
        let ring = KeyRing::new(vec![
            make(1, "key_a", "phones", Some(50)),
            make(2, "key_a", "phones", Some(90)),
            make(3, "key_b", "key_a", None),
            revoked,
        ]);
        let found = |name: &str| ring.find_named(name).map(|one| (one.hash, one.expires_at));
        let second = Secret::from_bytes(&[2; 32]).hash();
        assert_eq!(
            found("key_a"),
            Some((second, Some(90))),
            "an id, not a name"
        );
        assert_eq!(
            found("phones"),
            Some((second, Some(90))),
            "not the revoked one"
        );
        assert_eq!(
            found("key_c").map(|(_, end)| end),
            Some(None),
            "it has no other"
        );
        assert_eq!((found(""), found("nobody")), (None, None));
    }

    #[test]
    fn a_revoked_key_is_found_so_that_it_is_not_called_unknown() {
        let secret = Secret::from_bytes(&[3; 32]);
        let mut revoked = record(&secret);
        revoked.revoked = true;
        revoked.expires_at = Some(1);
        let ring = KeyRing::new(vec![revoked]);
        let found = ring.find(secret.reveal()).unwrap();
        assert_eq!(found.standing(50), Standing::Revoked);
    }
}
