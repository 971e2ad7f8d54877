//! Networks of IP addresses: in CIDR notation (RFC 4632), for the peers that are trusted proxies,
//! and those that count as one client.
//!
//! Invariants:
//!  1. A network depends on its address and prefix alone, not on the spelling: `10.1.2.3/8` is
//!     `10.0.0.0/8`, and an IPv4 address that is written or arrives as IPv6 (`::ffff:10.0.0.1`) is
//!     the IPv4 address.
//!  2. An address of one family is in no network of the other.

use std::fmt;
use std::net::IpAddr;

/// Returns the network that counts as one client. The owner of one IPv6 address has its whole /64,
/// so all of that is one; an IPv4 address is one by itself, and so is one that is mapped into IPv6.
pub fn client_network(address: IpAddr) -> u128 {
    match address.to_canonical() {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits() >> 64 << 64,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// The bits beyond the prefix are zero.
    address: IpAddr,
    prefix_bits: u8,
}

impl Network {
    /// Parses `10.0.0.0/8`, `2001:db8::/32`, or a single address as a network of one.
    pub fn parse(text: &str) -> Option<Network> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let written: IpAddr = address.parse().ok()?;
        let written_bits = bits(written);
        let prefix_bits = match prefix {
            None => written_bits,
            // `parse` would accept `+8` too, and `08` is ambiguous.
            Some(digits) if digits.is_empty() || digits.len() > 3 => return None,
            Some(digits) if digits.len() > 1 && digits.starts_with('0') => return None,
            Some(digits) if !digits.bytes().all(|byte| byte.is_ascii_digit()) => return None,
            Some(digits) => digits.parse().ok().filter(|bits| *bits <= written_bits)?,
        };
        let address = written.to_canonical();
        let hidden_bits = written_bits - bits(address);
        match prefix_bits.checked_sub(hidden_bits) {
            Some(prefix_bits) => Some(Network::new(address, prefix_bits)),
            // A prefix that is shorter than `::ffff:` reaches beyond IPv4.
            None => Some(Network::new(written, prefix_bits)),
        }
    }

    fn new(address: IpAddr, prefix_bits: u8) -> Network {
        Network {
            address: masked(address, prefix_bits),
            prefix_bits,
        }
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        bits(address) == bits(self.address) && masked(address, self.prefix_bits) == self.address
    }

    /// Returns whether the network contains every address of its family.
    pub fn is_everything(&self) -> bool {
        self.prefix_bits == 0
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.prefix_bits == bits(self.address) {
            true => write!(f, "{}", self.address),
            false => write!(f, "{}/{}", self.address, self.prefix_bits),
        }
    }
}

const fn bits(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

fn masked(address: IpAddr, prefix_bits: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix_bits));
            IpAddr::V4((address.to_bits() & mask.unwrap_or(0)).into())
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix_bits));
            IpAddr::V6((address.to_bits() & mask.unwrap_or(0)).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn network(text: &str) -> Network {
        Network::parse(text).expect(text)
    }

    #[test]
    fn networks_are_read_and_written() {
        for (text, shown) in [
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("192.0.2.1", "192.0.2.1"),
            ("192.0.2.1/32", "192.0.2.1"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("2001:db8::1/32", "2001:db8::/32"),
            ("::1", "::1"),
            ("::/0", "::/0"),
            ("::ffff:10.0.0.1", "10.0.0.1"),
            ("::ffff:10.1.0.1/104", "10.0.0.0/8"),
            ("::ffff:10.0.0.1/90", "::ffc0:0:0/90"),
        ] {
            assert_eq!(network(text).to_string(), shown);
            assert_eq!(network(shown), network(text));
        }
        for text in [
            "",
            "/8",
            "10.0.0.0/",
            "10.0.0.0/33",
            "10.0.0.0/+8",
            "10.0.0.0/08",
            "10.0.0.0/8/8",
            "10.0.0/8",
            "::/129",
            "::/1000",
            "localhost",
            "10.0.0.1:80",
            "[::1]",
        ] {
            assert_eq!(Network::parse(text), None, "{text}");
        }
    }

    /// A mutation that this test catches: `contains` without `to_canonical`.
    #[test]
    fn an_address_is_in_the_networks_of_its_family() {
        let inside = |text: &str, address: &str| {
            network(text).contains(address.parse().expect("an address"))
        };
        assert!(inside("10.0.0.0/8", "10.255.0.1"));
        assert!(inside("10.0.0.0/8", "::ffff:10.255.0.1"));
        assert!(!inside("10.0.0.0/8", "11.0.0.0"));
        assert!(inside("192.0.2.1", "192.0.2.1"));
        assert!(!inside("192.0.2.1", "192.0.2.2"));
        assert!(inside("0.0.0.0/0", "255.255.255.255"));
        assert!(!inside("0.0.0.0/0", "::1"));
        assert!(inside("::/0", "2001:db8::1"));
        assert!(!inside("::/0", "127.0.0.1"));
        assert!(network("::/0").is_everything() && !network("10.0.0.0/8").is_everything());
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_back(address: IpAddr, prefix: u8) {
            let prefix_bits = prefix % (bits(address) + 1);
            let parsed = network(&format!("{address}/{prefix_bits}"));
            prop_assert_eq!(network(&parsed.to_string()), parsed);
            prop_assert!(parsed.contains(address) || address.to_canonical() != address);
        }

        #[test]
        fn any_text_is_read_or_refused(text: String) {
            let _ = Network::parse(&text);
        }
    }
}
