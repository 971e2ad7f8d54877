//! Limits how much each key, and each address without one, may ask for.
//!
//! Owns the buckets that all reactors share; [`crate::core::bucket`] has their arithmetic.
//!
//! Invariant: memory is bounded. An administrator creates the keys, and accounts of deleted keys
//! are dropped. Addresses come from strangers, so they share a table of fixed size: an address is
//! hashed, with a secret seed, to one of its buckets. Two addresses in the same bucket share its
//! rate. The seed makes that an accident that an attacker cannot cause, and it costs little: only
//! requests *without* a valid key use this table.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex, PoisonError};

use crate::core::bucket::Bucket;
use crate::keys::KeyRing;
use crate::limits::service as limits;

/// Every bucket of the daemon, shared by all reactors.
#[derive(Debug)]
pub struct Limiter {
    accounts: Mutex<HashMap<String, Arc<Account>>>,
    addresses: Box<[Bucket]>,
    seed: RandomState,
}

/// The use of one key.
#[derive(Debug)]
pub struct Account {
    /// Derived from the key's id: the same after a rotation, and in every process.
    pub tenant: u64,
    pub requests: Bucket,
    pub tokens: Bucket,
    /// Running requests, counted by [`crate::offload::Permit`]s.
    pub running: Arc<AtomicU32>,
}

impl Limiter {
    pub fn new() -> Limiter {
        Limiter {
            accounts: Mutex::default(),
            addresses: (0..limits::ADDRESS_BUCKETS)
                .map(|_| Bucket::default())
                .collect(),
            seed: RandomState::new(),
        }
    }

    /// Returns the account of a key. A reactor keeps it, so that this lock is not on the hot path.
    pub fn account(&self, key_id: &str) -> Arc<Account> {
        let mut accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(account) = accounts.get(key_id) {
            return Arc::clone(account);
        }
        let account = Arc::new(Account::new(key_id));
        accounts.insert(key_id.to_owned(), Arc::clone(&account));
        account
    }

    /// Drops the accounts of keys that are not in the ring. Must be called only by the one thread
    /// that reads rings, in their order. Reactors take up rings at different times, and a late one
    /// would drop the account of a new key that another reactor serves already. That key would then
    /// have two accounts, and twice its rate.
    ///
    /// A reactor with an older ring may ask for the account of a deleted key. Such an account stays
    /// until the keys change again.
    pub fn keep(&self, keys: &KeyRing) {
        let known: HashSet<&str> = keys.records().map(|record| record.id.as_str()).collect();
        let mut accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        accounts.retain(|id, _| known.contains(id.as_str()));
    }

    /// Returns the bucket that an address shares with few or no others.
    pub fn address(&self, address: IpAddr) -> &Bucket {
        let hash = self.seed.hash_one(network_of(address));
        &self.addresses[hash as usize % limits::ADDRESS_BUCKETS]
    }
}

impl Default for Limiter {
    fn default() -> Limiter {
        Limiter::new()
    }
}

impl Account {
    fn new(key_id: &str) -> Account {
        let hash = blake3::hash(key_id.as_bytes());
        let mut tenant = [0; 8];
        tenant.copy_from_slice(&hash.as_bytes()[..8]);
        Account {
            tenant: u64::from_le_bytes(tenant),
            requests: Bucket::default(),
            tokens: Bucket::default(),
            running: Arc::default(),
        }
    }
}

/// The owner of one IPv6 address has its whole /64, so all of that counts as one client. An IPv4
/// address mapped into IPv6 counts as IPv4.
fn network_of(address: IpAddr) -> u128 {
    match address.to_canonical() {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits() >> 64 << 64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{KeyRecord, Scopes};

    fn record() -> KeyRecord {
        KeyRecord {
            id: String::new(),
            name: String::new(),
            hash: [0; 32],
            scopes: Scopes::ALL,
            created_at: 0,
            expires_at: None,
            requests_per_minute: None,
            tokens_per_minute: None,
            concurrency: None,
            weight: 1,
            revoked: false,
        }
    }

    #[test]
    fn an_ipv6_customer_has_one_bucket_and_mapped_addresses_are_ipv4() {
        let network = |text: &str| network_of(text.parse().unwrap());
        assert_eq!(network("2001:db8::1"), network("2001:db8::ffff:1:2"));
        assert_ne!(network("2001:db8::1"), network("2001:db8:0:1::1"));
        assert_eq!(network("::ffff:192.0.2.1"), network("192.0.2.1"));
        assert_ne!(network("192.0.2.1"), network("192.0.2.2"));
    }

    #[test]
    fn accounts_are_shared_until_their_key_is_gone() {
        let limiter = Limiter::new();
        let account = limiter.account("key_1");
        assert!(Arc::ptr_eq(&account, &limiter.account("key_1")));
        assert_ne!(account.tenant, limiter.account("key_2").tenant);
        let other = KeyRecord {
            id: "key_2".to_owned(),
            ..record()
        };
        limiter.keep(&KeyRing::new(vec![other]));
        assert!(!Arc::ptr_eq(&account, &limiter.account("key_1")));
        assert_eq!(account.tenant, limiter.account("key_1").tenant);
    }
}
