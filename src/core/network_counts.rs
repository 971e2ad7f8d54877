//! How many connections each client network has, in the whole daemon.
//!
//! Owns the table that all reactors share. The counts are exact. A network without a connection has
//! no entry, so there are at most as many entries as connections.
//!
//! The table is cut into shards with a lock each. A reactor holds one for a look-up and an
//! addition, once for a connection that comes and once when it ends. Two reactors meet in the same
//! shard by one chance in 256. A secret seed chooses the shard, so a client cannot choose its
//! neighbours.
//!
//! Invariants:
//!  1. The count of a network is the number of `enter` that returned true, less those of `leave`.
//!  2. No count exceeds the `most` of the call that raised it.
//!
//! Mutations that tests catch: `leave` that keeps an entry of zero (`a_network_that_has_left_...`),
//! `enter` that compares with `<=` (`no_more_than_the_limit_...`). The simulation checks that the
//! table is empty in the end.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::network::client_network;
use crate::limits::core as limits;

type Shard = HashMap<u128, u32>;

/// See the file's head.
#[derive(Debug)]
pub struct NetworkCounts {
    shards: Box<[Mutex<Shard>]>,
    seed: RandomState,
}

impl Default for NetworkCounts {
    fn default() -> NetworkCounts {
        NetworkCounts::new()
    }
}

impl NetworkCounts {
    pub fn new() -> NetworkCounts {
        NetworkCounts {
            shards: (0..limits::NETWORK_SHARDS)
                .map(|_| Mutex::default())
                .collect(),
            seed: RandomState::new(),
        }
    }

    /// Counts a connection from this address. `false`: its network has `most` already, and nothing
    /// is counted.
    pub fn enter(&self, address: IpAddr, most: usize) -> bool {
        let network = client_network(address);
        let mut shard = self.shard(network);
        let count = shard.entry(network).or_insert(0);
        let is_in = (*count as usize) < most;
        if is_in {
            *count += 1;
        } else if *count == 0 {
            forget(network, &mut shard);
        }
        is_in
    }

    /// A connection from this address, which was counted, has ended.
    pub fn leave(&self, address: IpAddr) {
        let network = client_network(address);
        let mut shard = self.shard(network);
        let Some(count) = shard.get_mut(&network) else {
            debug_assert!(false, "a connection leaves that was not counted");
            return;
        };
        *count -= 1;
        if *count == 0 {
            forget(network, &mut shard);
        }
    }

    /// Returns how many networks have a connection, and how many connections those are.
    pub fn totals(&self) -> (usize, usize) {
        let mut totals = (0, 0);
        for shard in &self.shards {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            totals.0 += shard.len();
            totals.1 += shard.values().map(|count| *count as usize).sum::<usize>();
        }
        totals
    }

    fn shard(&self, network: u128) -> MutexGuard<'_, Shard> {
        let index = self.seed.hash_one(network) as usize % self.shards.len();
        let shard = self.shards[index].lock();
        // No call can leave a shard half changed.
        shard.unwrap_or_else(PoisonError::into_inner)
    }
}

/// Drops a network without connections. After a flood from many networks the memory is free again.
fn forget(network: u128, shard: &mut Shard) {
    shard.remove(&network);
    if shard.is_empty() {
        *shard = Shard::new();
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn no_more_than_the_limit_come_from_one_network() {
        let counts = NetworkCounts::new();
        let (first, second) = (address("192.0.2.1"), address("192.0.2.2"));
        assert!(counts.enter(first, 2) && counts.enter(first, 2));
        assert!(!counts.enter(first, 2));
        assert!(counts.enter(second, 2), "an IPv4 address is a network");
        assert!(counts.enter(first, 3), "the limit was raised");
        assert!(!counts.enter(first, 2), "and lowered");
        counts.leave(first);
        counts.leave(first);
        assert!(counts.enter(first, 2));
        assert_eq!(counts.totals(), (2, 3));
    }

    #[test]
    fn the_addresses_of_an_ipv6_subscriber_are_one_network() {
        let counts = NetworkCounts::new();
        assert!(counts.enter(address("2001:db8:0:1::1"), 1));
        assert!(!counts.enter(address("2001:db8:0:1:ffff::2"), 1));
        assert!(counts.enter(address("2001:db8:0:2::1"), 1));
        assert!(counts.enter(address("::ffff:192.0.2.1"), 1));
        assert!(!counts.enter(address("192.0.2.1"), 1), "the same address");
        counts.leave(address("2001:db8:0:1::3"));
        assert!(counts.enter(address("2001:db8:0:1::4"), 1));
    }

    #[test]
    fn a_network_that_has_left_leaves_no_entry() {
        let counts = NetworkCounts::new();
        for number in 0..=255 {
            assert!(counts.enter(IpAddr::from([192, 0, 2, number]), 1));
        }
        assert_eq!(counts.totals(), (256, 256));
        for number in 0..=255 {
            counts.leave(IpAddr::from([192, 0, 2, number]));
        }
        assert!(!counts.enter(address("192.0.2.1"), 0));
        assert_eq!(counts.totals(), (0, 0));
        let kept = counts
            .shards
            .iter()
            .map(|shard| shard.lock().unwrap().capacity());
        assert_eq!(kept.sum::<usize>(), 0);
    }

    #[test]
    fn reactors_count_together() {
        let counts = NetworkCounts::new();
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1_000 {
                        if counts.enter(address("192.0.2.1"), 2) {
                            counts.leave(address("192.0.2.1"));
                        }
                    }
                });
            }
        });
        assert_eq!(counts.totals(), (0, 0));
    }
}
