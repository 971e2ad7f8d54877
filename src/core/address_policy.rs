//! The addresses to which the daemon connects on behalf of a client.
//!
//! A client that may name a URL for the daemon to call could name a machine that only the daemon
//! can reach: a service on loopback, a neighbour in a private network, the metadata service of a
//! cloud on 169.254.169.254 (server-side request forgery). So an address must be public, or be in a
//! network that the operator has allowed.
//!
//! Owns the decision about one address. The name that led there does not matter, and must not: a
//! name may resolve to another address the next time. So the decision belongs right before the
//! `connect(2)` to that very address.
//!
//! Invariants:
//!  1. IPv6: only `2000::/3` is public, without the parts of it that lead elsewhere or hold an IPv4
//!     address. A new special block is refused until it is allowed here.
//!  2. An IPv4 address that is mapped into IPv6 is that IPv4 address.
//!
//! Mutations that the tests below catch: `permits` without `to_canonical`, a row taken out of
//! either table.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::network::Network;

/// Which addresses may be connected to.
#[derive(Clone, Debug)]
pub enum AddressPolicy {
    /// All: the operator has named the target.
    Any,
    /// Public ones, and those in these networks.
    PublicAnd(Arc<[Network]>),
}

impl AddressPolicy {
    pub fn permits(&self, address: IpAddr) -> bool {
        match self {
            AddressPolicy::Any => true,
            AddressPolicy::PublicAnd(allowed) => {
                is_public(address) || allowed.iter().any(|network| network.contains(address))
            }
        }
    }
}

/// IPv4 blocks that are not public (the special-purpose registry of RFC 6890, and multicast).
const SPECIAL_V4: [([u8; 4], u32); 15] = [
    // "This network".
    ([0, 0, 0, 0], 8),
    // Private.
    ([10, 0, 0, 0], 8),
    // Between a provider and its customers (RFC 6598); some clouds put services here.
    ([100, 64, 0, 0], 10),
    // Loopback.
    ([127, 0, 0, 0], 8),
    // Link-local, with the metadata services of clouds.
    ([169, 254, 0, 0], 16),
    // Private.
    ([172, 16, 0, 0], 12),
    // Protocol assignments.
    ([192, 0, 0, 0], 24),
    // Documentation.
    ([192, 0, 2, 0], 24),
    // Relays from IPv6, given up (RFC 7526).
    ([192, 88, 99, 0], 24),
    // Private.
    ([192, 168, 0, 0], 16),
    // Benchmarks (RFC 2544).
    ([198, 18, 0, 0], 15),
    // Documentation.
    ([198, 51, 100, 0], 24),
    ([203, 0, 113, 0], 24),
    // Multicast.
    ([224, 0, 0, 0], 4),
    // Reserved, and broadcast.
    ([240, 0, 0, 0], 4),
];

/// Blocks within `2000::/3` that are not public, or whose addresses hold an IPv4 address.
const SPECIAL_V6: [([u16; 2], u32); 4] = [
    // Protocol assignments: Teredo, benchmarks, ORCHID (RFC 2928).
    ([0x2001, 0], 23),
    // Documentation.
    ([0x2001, 0xdb8], 32),
    // 6to4: an IPv4 address in its next 32 bits (RFC 3056).
    ([0x2002, 0], 16),
    // Documentation (RFC 9637).
    ([0x3fff, 0], 20),
];

/// Returns whether an address belongs to the public Internet.
fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => !SPECIAL_V4.iter().any(|&(block, prefix)| {
            let block = Ipv4Addr::from(block).to_bits();
            (address.to_bits() ^ block) >> (32 - prefix) == 0
        }),
        IpAddr::V6(address) => {
            let global = address.to_bits() >> 125 == 1;
            global
                && !SPECIAL_V6.iter().any(|&([first, second], prefix)| {
                    let block = Ipv6Addr::new(first, second, 0, 0, 0, 0, 0, 0).to_bits();
                    (address.to_bits() ^ block) >> (128 - prefix) == 0
                })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn public_alone() -> AddressPolicy {
        AddressPolicy::PublicAnd(Arc::new([]))
    }

    fn address(text: &str) -> IpAddr {
        text.parse().expect(text)
    }

    #[test]
    fn special_addresses_are_refused_in_each_spelling() {
        for text in [
            "0.0.0.0",
            "10.0.0.1",
            "100.64.0.1",
            "127.0.0.1",
            "127.255.255.255",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.8",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.7",
            "203.0.113.7",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::127.0.0.1",
            "::ffff:127.0.0.1",
            "::ffff:10.1.2.3",
            "64:ff9b::7f00:1",
            "64:ff9b:1::1",
            "100::1",
            "2001::1",
            "2001:1ff::1",
            "2001:db8::1",
            "2002:7f00:1::1",
            "3fff::1",
            "5f00::1",
            "fc00::1",
            "fd12:3456::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(!public_alone().permits(address(text)), "{text}");
            assert!(AddressPolicy::Any.permits(address(text)), "{text}");
        }
        for text in [
            "1.1.1.1",
            "9.255.255.255",
            "100.128.0.1",
            "172.32.0.1",
            "198.20.0.1",
            "223.255.255.255",
            "::ffff:8.8.8.8",
            "2001:200::1",
            "2001:4860:4860::8888",
            "2606:4700::1",
            "3ffe::1",
        ] {
            assert!(public_alone().permits(address(text)), "{text}");
        }
    }

    #[test]
    fn an_allowed_network_is_an_exception_and_no_more() {
        let networks = ["10.1.0.0/16", "::1"].map(|text| Network::parse(text).expect(text));
        let policy = AddressPolicy::PublicAnd(Arc::new(networks));
        for text in ["10.1.2.3", "::ffff:10.1.2.3", "::1", "8.8.8.8"] {
            assert!(policy.permits(address(text)), "{text}");
        }
        for text in ["10.2.0.1", "127.0.0.1", "::2", "fe80::1"] {
            assert!(!policy.permits(address(text)), "{text}");
        }
    }

    proptest! {
        /// The standard library knows fewer blocks, so whatever it names is refused here too.
        #[test]
        fn no_address_that_the_library_calls_special_is_public(address: IpAddr) {
            let is_special = match address.to_canonical() {
                IpAddr::V4(v4) => {
                    v4.is_private() || v4.is_loopback() || v4.is_link_local() || v4.is_multicast()
                        || v4.is_broadcast() || v4.is_documentation() || v4.is_unspecified()
                }
                IpAddr::V6(v6) => {
                    v6.is_loopback() || v6.is_unspecified() || v6.is_multicast()
                        || v6.is_unique_local() || v6.is_unicast_link_local()
                }
            };
            prop_assert!(!is_special || !public_alone().permits(address));
        }
    }
}
