//! Limits how often each address may send requests without a valid key.
//!
//! Owns the buckets of addresses, which all reactors share; [`crate::core::bucket`] has their
//! arithmetic. A key's own buckets are in its account ([`crate::keys::Account`]); those of several
//! daemons are counted together by [`Leases`].
//!
//! Invariant: memory is bounded. Addresses come from strangers, so they share a table of fixed
//! size: an address is hashed, with a secret seed, to one of its buckets. Two addresses in the same
//! bucket share its rate. The seed makes that an accident that an attacker cannot cause, and it
//! costs little: only requests *without* a valid key use this table.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;

use crate::core::bucket::Bucket;
use crate::core::network::client_network;
use crate::leases::Leases;
use crate::limits::service as limits;

/// The buckets of all addresses, and the way to the common count of keys.
#[derive(Debug)]
pub struct Limiter {
    addresses: Box<[Bucket]>,
    seed: RandomState,
    /// The count of keys' units over all daemons.
    pub leases: Leases,
}

impl Limiter {
    /// Makes the limiter of a daemon, which counts alone with [`Leases::default`].
    pub fn new(leases: Leases) -> Limiter {
        Limiter {
            addresses: (0..limits::ADDRESS_BUCKETS)
                .map(|_| Bucket::default())
                .collect(),
            seed: RandomState::new(),
            leases,
        }
    }

    /// Returns the bucket that an address shares with few or no others.
    pub fn address(&self, address: IpAddr) -> &Bucket {
        let hash = self.seed.hash_one(client_network(address));
        &self.addresses[hash as usize % limits::ADDRESS_BUCKETS]
    }
}

impl Default for Limiter {
    fn default() -> Limiter {
        Limiter::new(Leases::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_customer_has_one_bucket_and_mapped_addresses_are_ipv4() {
        let network = |text: &str| client_network(text.parse().unwrap());
        assert_eq!(network("2001:db8::1"), network("2001:db8::ffff:1:2"));
        assert_ne!(network("2001:db8::1"), network("2001:db8:0:1::1"));
        assert_eq!(network("::ffff:192.0.2.1"), network("192.0.2.1"));
        assert_ne!(network("192.0.2.1"), network("192.0.2.2"));
    }
}
