//! All API keys at one moment, and how the next moment's ring is made of it.
//!
//! Owns the three indexes of keys: by hash, by id and by name. Must never be changed while a
//! reactor can see it: reactors read a ring without a lock.
//!
//! A change makes a new ring. Each index is divided into [`limits::RING_SHARDS`] shards, and the
//! new ring shares every shard that the change does not touch: it copies one shard of each index,
//! which are 800 pointers of 200,000. So a change costs little however many keys there are, and
//! dropping the old ring frees little: the replaced shards. Plain maps of `std` do for that; a
//! persistent tree would copy less, but its look-up, which each request pays, would take longer.
//!
//! A key's [`Account`] is in the ring, beside its record. A new ring takes the accounts of its
//! predecessor over, so a key has one account for as long as it exists, whichever of the rings a
//! reactor reads, and nothing has to be looked for when a key is gone: the last ring, or the last
//! request, that knows the account drops it.
//!
//! Invariants:
//!  1. A ring never changes.
//!  2. Each hash in a ring names one holder. Several holders may have one id: after a rotation the
//!     old secret stays valid, for a while, beside the new one.
//!  3. All holders of one id share one account, in a ring and from each ring to the next.
//!  4. A shard that a change does not touch is shared with the ring before.
//!  5. A record found by an old secret expires no later than that secret does.
//!
//! Mutations that the tests below catch: `Account::new` for every change (`a_key_keeps_its_...`),
//! an index that `changed` leaves out (`a_ring_agrees_with_one_that_is_made_of_the_same_records`),
//! `of_id` that returns one holder only (the same test), shards that are copied although nothing in
//! them changes (`a_change_copies_one_shard_of_each_index`).

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::account::Account;
use super::record::KeyRecord;
use super::secret::{KEY_PREFIX, hash};
use crate::limits::keys as limits;

/// A key as the ring has it, once for each of its secrets.
#[derive(Debug)]
pub struct Holder {
    pub record: KeyRecord,
    pub account: Arc<Account>,
}

#[cfg(test)]
impl Holder {
    /// A key with this id and nothing special.
    pub fn of(id: &str) -> Arc<Holder> {
        let record = KeyRecord {
            id: id.to_owned(),
            name: String::new(),
            hash: hash(id),
            scopes: super::record::Scopes::GENERATE,
            created_at: 0,
            expires_at: None,
            requests_per_minute: None,
            tokens_per_minute: None,
            concurrency: None,
            weight: 1,
            revoked: false,
        };
        let account = Arc::new(Account::new(id));
        Arc::new(Holder { record, account })
    }
}

/// All keys at one moment, including revoked ones. Cheap to share and to clone, and never changed.
#[derive(Clone, Debug, Default)]
pub struct KeyRing {
    /// A shard is named by the first byte of the hash.
    by_hash: Shards<HashMap<[u8; 32], Arc<Holder>>>,
    by_id: Shards<Sorted>,
    /// Holders without a name are missing here.
    by_name: Shards<Sorted>,
    /// The tenants of the keys that the ring before had, and this one has not.
    gone: Arc<[u64]>,
}

/// Holders in the order of a text of theirs, and those with the same text by their worth, the best
/// one last.
type Sorted = Vec<Arc<Holder>>;

/// A key that was created, changed or deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangedKey {
    pub id: String,
    /// Its records now, one for each secret; none if the key is gone.
    pub records: Vec<KeyRecord>,
}

impl KeyRing {
    pub fn new(records: Vec<KeyRecord>) -> KeyRing {
        let empty = KeyRing::default();
        empty.replaced(records).unwrap_or(empty)
    }

    /// Returns the ring of these records alone, with the accounts that this ring has for them;
    /// `None` if it would be the same ring.
    pub fn replaced(&self, records: Vec<KeyRecord>) -> Option<KeyRing> {
        let mut keys: HashMap<String, Vec<KeyRecord>> = HashMap::new();
        for holder in self.by_id.iter().flatten() {
            if !keys.contains_key(&holder.record.id) {
                keys.insert(holder.record.id.clone(), Vec::new());
            }
        }
        for record in records {
            match keys.get_mut(&record.id) {
                Some(others) => others.push(record),
                None => _ = keys.insert(record.id.clone(), vec![record]),
            }
        }
        let keys = keys.into_iter();
        self.changed(keys.map(|(id, records)| ChangedKey { id, records }))
    }

    /// Returns the ring after these changes; `None` if they change nothing. Each key must be named
    /// once.
    pub fn changed(&self, keys: impl IntoIterator<Item = ChangedKey>) -> Option<KeyRing> {
        let (mut gone, mut added) = (Sorted::new(), Sorted::new());
        let mut tenants = Vec::new();
        for ChangedKey { id, records } in keys {
            let before = self.of_id(&id);
            if is_same(before, &records) {
                continue;
            }
            let account = match before.first() {
                Some(holder) => Arc::clone(&holder.account),
                None => Arc::new(Account::new(&id)),
            };
            if records.is_empty() {
                tenants.push(account.tenant);
            }
            gone.extend(before.iter().cloned());
            added.extend(records.into_iter().map(|record| {
                let account = Arc::clone(&account);
                Arc::new(Holder { record, account })
            }));
        }
        if gone.is_empty() && added.is_empty() {
            return None;
        }
        let mut ring = self.clone();
        ring.gone = tenants.into();
        for holder in &gone {
            ring.by_hash.of_hash_mut(holder).remove(&holder.record.hash);
        }
        for holder in &added {
            let shard = ring.by_hash.of_hash_mut(holder);
            shard.insert(holder.record.hash, Arc::clone(holder));
        }
        ring.by_id.exchange(&gone, &added, id_of);
        ring.by_name.exchange(&gone, &added, name_of);
        #[cfg(debug_assertions)]
        ring.check_invariants(&added);
        Some(ring)
    }

    /// Returns the holder of this secret, whatever its standing: the caller distinguishes a revoked
    /// key from an unknown one, and counts them separately.
    pub fn find(&self, presented: &str) -> Option<&Arc<Holder>> {
        // The shape of a key is public, so refusing another shape early reveals nothing, and it
        // bounds the bytes that a stranger can make us hash.
        if presented.len() != limits::TEXT_BYTES || !presented.starts_with(KEY_PREFIX) {
            return None;
        }
        let hash = hash(presented);
        let holder = self.by_hash.of(hash[0]).get(&hash)?;
        // The comparison of blake3's own type takes constant time.
        let is_same = blake3::Hash::from(holder.record.hash) == blake3::Hash::from(hash);
        is_same.then_some(holder)
    }

    /// Returns the key with this id or, if there is none, with this name; of several secrets or
    /// namesakes the one that is valid for longest. For clients that are known by other means than
    /// the secret.
    pub fn find_named(&self, id_or_name: &str) -> Option<&Arc<Holder>> {
        let named = self.of_id(id_or_name).last();
        named.or_else(|| self.by_name.named(id_or_name, name_of).last())
    }

    /// Returns how many secrets there are, including revoked and expired ones.
    pub fn len(&self) -> usize {
        self.by_hash.iter().map(HashMap::len).sum()
    }

    /// Returns the tenants of the keys that the ring before had, and this one has not.
    pub fn gone(&self) -> &[u64] {
        &self.gone
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the holders of a key, one for each secret.
    fn of_id(&self, id: &str) -> &[Arc<Holder>] {
        self.by_id.named(id, id_of)
    }

    /// Checks the holders that a change has added; all would take too long.
    #[cfg(debug_assertions)]
    fn check_invariants(&self, added: &[Arc<Holder>]) {
        for holder in added {
            let record = &holder.record;
            let found = self.by_hash.of(record.hash[0]).get(&record.hash);
            assert!(found.is_some_and(|found| Arc::ptr_eq(found, holder)));
            let siblings = self.of_id(&record.id);
            assert!(siblings.iter().any(|one| Arc::ptr_eq(one, holder)));
            let is_shared = |one: &Arc<Holder>| Arc::ptr_eq(&one.account, &holder.account);
            assert!(siblings.iter().all(is_shared));
        }
    }
}

fn is_same(holders: &[Arc<Holder>], records: &[KeyRecord]) -> bool {
    let is_held = |record: &KeyRecord| holders.iter().any(|holder| holder.record == *record);
    holders.len() == records.len() && records.iter().all(is_held)
}

fn id_of(holder: &Holder) -> &str {
    &holder.record.id
}

fn name_of(holder: &Holder) -> &str {
    &holder.record.name
}

/// Of two with the same text the better one is greater.
fn compare_worth(one: &Holder, other: &Holder) -> Ordering {
    let worth = |holder: &Holder| {
        let record = &holder.record;
        let end = record.expires_at.unwrap_or(u64::MAX);
        (!record.revoked, end, record.created_at, record.hash)
    };
    worth(one).cmp(&worth(other))
}

/// One index in shards, of which two rings share those that are the same.
#[derive(Clone, Debug)]
struct Shards<T>(Box<[Arc<T>; limits::RING_SHARDS]>);

impl<T: Default> Default for Shards<T> {
    fn default() -> Shards<T> {
        let empty = Arc::default();
        Shards(Box::new(std::array::from_fn(|_| Arc::clone(&empty))))
    }
}

impl<T> Shards<T> {
    fn of(&self, shard: u8) -> &T {
        &self.0[usize::from(shard)]
    }

    fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(Arc::as_ref)
    }
}

impl Shards<HashMap<[u8; 32], Arc<Holder>>> {
    /// Copies the shard if another ring has it, too.
    fn of_hash_mut(&mut self, holder: &Holder) -> &mut HashMap<[u8; 32], Arc<Holder>> {
        Arc::make_mut(&mut self.0[usize::from(holder.record.hash[0])])
    }
}

impl Shards<Sorted> {
    /// Returns the holders with this text, the best one last.
    fn named(&self, text: &str, text_of: fn(&Holder) -> &str) -> &[Arc<Holder>] {
        let holders = self.of(shard_of(text));
        let start = holders.partition_point(|holder| text_of(holder) < text);
        let rest = &holders[start..];
        &rest[..rest.partition_point(|holder| text_of(holder) == text)]
    }

    /// Removes the holders that are `gone`, and enters those that are `added`. Holders without a
    /// text are not entered.
    fn exchange(&mut self, gone: &Sorted, added: &Sorted, text_of: fn(&Holder) -> &str) {
        let mut touched: BTreeMap<u8, Sorted> = BTreeMap::new();
        let with_text = |holder: &&Arc<Holder>| !text_of(holder).is_empty();
        for holder in gone.iter().filter(with_text) {
            touched.entry(shard_of(text_of(holder))).or_default();
        }
        for holder in added.iter().filter(with_text) {
            let shard = touched.entry(shard_of(text_of(holder))).or_default();
            shard.push(Arc::clone(holder));
        }
        let gone: HashSet<*const Holder> = gone.iter().map(Arc::as_ptr).collect();
        for (shard, added) in touched {
            let holders = Arc::make_mut(&mut self.0[usize::from(shard)]);
            holders.retain(|holder| !gone.contains(&Arc::as_ptr(holder)));
            holders.extend(added);
            // Two sorted runs, which a stable sort merges.
            holders.sort_by(|one, other| {
                let texts = text_of(one).cmp(text_of(other));
                texts.then_with(|| compare_worth(one, other))
            });
        }
    }
}

/// The shard of a text must be the same in every ring, so it has no seed of the process: an
/// administrator chooses the texts.
fn shard_of(text: &str) -> u8 {
    hash(text)[0]
}

#[cfg(test)]
mod tests;
