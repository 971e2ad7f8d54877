//! The header of the PROXY protocol, version 2, from bytes to the address that it names.
//!
//! A proxy that forwards connections instead of requests sends it before everything else: before a
//! TLS hello, and before HTTP in clear text (haproxy.org, "The PROXY protocol", section 2.2).
//!
//! ```text
//!   12 bytes   1            1                 2         length bytes
//!   signature  2 | command  family | socket   length    addresses, then extensions (TLVs)
//! ```
//!
//! Owns the bytes of the fixed part and of the addresses that have come so far. Extensions are
//! skipped and never kept: a checksum, a TLS version or a namespace do not concern the client's
//! address. Must never decide which peers to trust: the caller uses it only for connections from
//! trusted peers.
//!
//! Invariants:
//!  1. At most [`HEAD_BYTES`] bytes are kept, and at most `limits::PROXY_HEADER_BYTES_MAX` are
//!     taken, whatever length the header claims.
//!  2. The first byte that cannot belong to a header is refused when it comes: a client that speaks
//!     HTTP at once does not wait for a timeout.
//!  3. It does not matter how the header was cut into pieces.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::limits::core as limits;

/// Section 2.2: no protocol that could be confused with this one accepts it as valid.
pub const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// The start of a version 1 header, which is a line of text.
const VERSION_1: &[u8] = b"PROXY ";

const FIXED_BYTES: usize = 16;

/// The longest addresses that are read: two of IPv6 with their ports.
const ADDRESSES_BYTES: usize = 36;

const HEAD_BYTES: usize = FIXED_BYTES + ADDRESSES_BYTES;

/// Section 2.2: two paths of 108 bytes.
const UNIX_ADDRESSES_BYTES: u16 = 216;

/// Where a connection comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The client of the proxy.
    Address(IpAddr),
    /// A client on a Unix socket of the proxy: it is on the proxy's machine.
    Unix,
    /// The proxy itself (a health check), or a client whose address it does not report.
    Sender,
}

/// Why these bytes are not a PROXY header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Something else came first, such as a request.
    Missing,
    Version1,
    TooLong,
    Malformed,
}

impl Refused {
    /// Returns the label of the metric.
    pub const fn as_str(self) -> &'static str {
        match self {
            Refused::Missing => "missing",
            Refused::Version1 => "version_1",
            Refused::TooLong => "too_long",
            Refused::Malformed => "malformed",
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::Missing => f.write_str(
                "it does not begin with a PROXY protocol header; add send-proxy-v2 to the proxy's \
                 server line (and check-send-proxy to its checks), or remove \"proxy:\" from the \
                 address",
            ),
            Refused::Version1 => f.write_str(
                "its PROXY protocol header has version 1, but only version 2 is accepted; replace \
                 send-proxy by send-proxy-v2",
            ),
            Refused::TooLong => write!(
                f,
                "its PROXY protocol header is longer than {} bytes",
                limits::PROXY_HEADER_BYTES_MAX
            ),
            Refused::Malformed => f.write_str("its PROXY protocol header is malformed"),
        }
    }
}

/// Reads one header. Must not be used again once it is done.
#[derive(Debug)]
pub struct ProxyHeader {
    head: [u8; HEAD_BYTES],
    /// The number of bytes taken, of which the first [`HEAD_BYTES`] are in `head`.
    taken: usize,
}

impl Default for ProxyHeader {
    fn default() -> ProxyHeader {
        ProxyHeader::new()
    }
}

impl ProxyHeader {
    pub const fn new() -> ProxyHeader {
        ProxyHeader {
            head: [0; HEAD_BYTES],
            taken: 0,
        }
    }

    /// Takes bytes in the order in which they came. Returns `Some` when the header ends: after how
    /// many of `bytes`, and where the connection comes from.
    pub fn handle_input(&mut self, bytes: &[u8]) -> Result<Option<(usize, Origin)>, Refused> {
        let mut used = 0;
        loop {
            let wanted = self.wanted()?;
            if self.taken == wanted && self.taken > FIXED_BYTES - 1 {
                return Ok(Some((used, self.origin()?)));
            }
            let piece = &bytes[used..bytes.len().min(used + wanted - self.taken)];
            if piece.is_empty() {
                return Ok(None);
            }
            if self.taken < HEAD_BYTES {
                let room = &mut self.head[self.taken..];
                let kept = piece.len().min(room.len());
                room[..kept].copy_from_slice(&piece[..kept]);
            }
            self.taken += piece.len();
            used += piece.len();
        }
    }

    /// Returns how far the header is known to reach. Never less than what was taken.
    fn wanted(&self) -> Result<usize, Refused> {
        let seen = &self.head[..self.taken.min(SIGNATURE.len())];
        if !SIGNATURE.starts_with(seen) {
            let is_text = self.head[..self.taken.min(VERSION_1.len())]
                == VERSION_1[..self.taken.min(VERSION_1.len())];
            return Err(match is_text {
                true if self.taken < VERSION_1.len() => return Ok(VERSION_1.len()),
                true => Refused::Version1,
                false => Refused::Missing,
            });
        }
        if self.taken < FIXED_BYTES {
            return Ok(FIXED_BYTES);
        }
        let wanted = FIXED_BYTES + usize::from(self.length());
        match wanted > limits::PROXY_HEADER_BYTES_MAX {
            true => Err(Refused::TooLong),
            false => Ok(wanted),
        }
    }

    fn length(&self) -> u16 {
        u16::from_be_bytes([self.head[14], self.head[15]])
    }

    /// Reads the complete header.
    fn origin(&self) -> Result<Origin, Refused> {
        let (command, family, length) = (self.head[12], self.head[13], self.length());
        match command {
            // A connection that the proxy made for itself: its addresses do not matter.
            0x20 => return Ok(Origin::Sender),
            0x21 => {}
            _ => return Err(Refused::Malformed),
        }
        let addresses = &self.head[FIXED_BYTES..];
        // The low half is the kind of socket; the address of streams and datagrams is read alike.
        match (family >> 4, family & 0x0f, length) {
            (0, 0, _) => Ok(Origin::Sender),
            (1, 1 | 2, 12..) => {
                let [a, b, c, d] = [addresses[0], addresses[1], addresses[2], addresses[3]];
                Ok(Origin::Address(Ipv4Addr::new(a, b, c, d).into()))
            }
            (2, 1 | 2, 36..) => {
                let mut octets = [0; 16];
                octets.copy_from_slice(&addresses[..16]);
                let address = IpAddr::from(Ipv6Addr::from(octets));
                Ok(Origin::Address(address.to_canonical()))
            }
            (3, 1 | 2, UNIX_ADDRESSES_BYTES..) => Ok(Origin::Unix),
            _ => Err(Refused::Malformed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
        let length = (block.len() as u16).to_be_bytes();
        [&SIGNATURE[..], &[command, family], &length, block].concat()
    }

    fn read(bytes: &[u8]) -> Result<Option<(usize, Origin)>, Refused> {
        ProxyHeader::new().handle_input(bytes)
    }

    const V4: [u8; 12] = [192, 0, 2, 7, 10, 0, 0, 1, 0x1f, 0x90, 0, 80];

    fn v6() -> Vec<u8> {
        let client: Ipv6Addr = "2001:db8::7".parse().unwrap();
        let server: Ipv6Addr = "2001:db8::1".parse().unwrap();
        [&client.octets()[..], &server.octets(), &[0, 1, 0, 2]].concat()
    }

    #[test]
    fn addresses_are_read_and_extensions_passed_over() {
        let address = |text: &str| Origin::Address(text.parse().unwrap());
        let mut v4_with_extensions = V4.to_vec();
        v4_with_extensions.extend([4; 300]);
        let mapped = [
            &"::ffff:10.0.0.9".parse::<Ipv6Addr>().unwrap().octets()[..],
            &[0; 20],
        ];
        for (bytes, origin) in [
            (header(0x21, 0x11, &V4), address("192.0.2.7")),
            (header(0x21, 0x12, &V4), address("192.0.2.7")),
            (
                header(0x21, 0x11, &v4_with_extensions),
                address("192.0.2.7"),
            ),
            (header(0x21, 0x21, &v6()), address("2001:db8::7")),
            (header(0x21, 0x21, &mapped.concat()), address("10.0.0.9")),
            (header(0x21, 0x31, &[0; 216]), Origin::Unix),
            (header(0x21, 0x00, &[]), Origin::Sender),
            (header(0x21, 0x00, &[9; 40]), Origin::Sender),
            (header(0x20, 0x11, &V4), Origin::Sender),
            (header(0x20, 0xff, &[1, 2, 3]), Origin::Sender),
        ] {
            let with_more = [&bytes[..], b"GET / HTTP/1.1"].concat();
            assert_eq!(
                read(&with_more),
                Ok(Some((bytes.len(), origin))),
                "{bytes:?}"
            );
        }
    }

    #[test]
    fn what_is_not_a_header_is_refused_at_its_first_wrong_byte() {
        for (bytes, refused) in [
            (b"GET / HTTP/1.1\r\n".to_vec(), Refused::Missing),
            (b"P".to_vec(), Refused::Missing),
            (b"\x16\x03\x01".to_vec(), Refused::Missing),
            (b"\r\n\r\n\0\r\nQUIX".to_vec(), Refused::Missing),
            (b"PRI * HTTP/2.0".to_vec(), Refused::Missing),
            (
                b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n".to_vec(),
                Refused::Version1,
            ),
            (header(0x11, 0x11, &V4), Refused::Malformed),
            (header(0x22, 0x11, &V4), Refused::Malformed),
            (header(0x21, 0x11, &V4[..11]), Refused::Malformed),
            (header(0x21, 0x21, &V4), Refused::Malformed),
            (header(0x21, 0x31, &[0; 215]), Refused::Malformed),
            (header(0x21, 0x41, &V4), Refused::Malformed),
            (header(0x21, 0x13, &V4), Refused::Malformed),
            (header(0x21, 0x01, &V4), Refused::Malformed),
            (
                header(0x21, 0x11, &[0; u16::MAX as usize]),
                Refused::TooLong,
            ),
        ] {
            let result = read(&bytes);
            match bytes == b"P" {
                true => assert_eq!(result, Ok(None), "it may become version 1"),
                false => assert_eq!(result, Err(refused), "{bytes:?}"),
            }
        }
        // The claim alone is refused: its bytes are not waited for.
        let claim = [&SIGNATURE[..], &[0x21, 0x11, 0xff, 0xff]].concat();
        assert_eq!(read(&claim), Err(Refused::TooLong));
    }

    #[test]
    fn the_bound_is_met_exactly() {
        let longest = limits::PROXY_HEADER_BYTES_MAX - FIXED_BYTES;
        let fits = header(0x20, 0, &vec![0; longest]);
        assert_eq!(read(&fits), Ok(Some((fits.len(), Origin::Sender))));
        let exceeds = header(0x20, 0, &vec![0; longest + 1]);
        assert_eq!(read(&exceeds), Err(Refused::TooLong));
    }

    proptest! {
        /// Invariant 3. Mutations that this test catches: `taken` not advanced by whole pieces;
        /// `used` counted from the header's beginning.
        #[test]
        fn pieces_do_not_matter(block in proptest::collection::vec(any::<u8>(), 0..300),
                                command in 0x1f_u8..0x23, family in 0_u8..0x33,
                                spoil in proptest::option::of((0_usize..20, any::<u8>())),
                                cuts in proptest::collection::vec(1_usize..60, 1..40)) {
            let mut bytes = header(command, family, &block);
            bytes.extend(b"and the rest");
            if let Some((at, value)) = spoil {
                bytes[at] = value;
            }
            let whole = read(&bytes);
            let mut pieces = ProxyHeader::new();
            let (mut start, mut result) = (0, Ok(None));
            for cut in cuts.into_iter().chain([bytes.len()]) {
                let end = bytes.len().min(start + cut);
                result = pieces.handle_input(&bytes[start..end]);
                prop_assert!(pieces.taken <= limits::PROXY_HEADER_BYTES_MAX);
                if result != Ok(None) {
                    break;
                }
                start = end;
            }
            let result = result.map(|done| done.map(|(used, origin)| (start + used, origin)));
            prop_assert_eq!(result, whole);
        }

        #[test]
        fn any_bytes_are_taken_or_refused(bytes: Vec<u8>) {
            let _ = read(&bytes);
            let _ = read(&[&SIGNATURE[..], &bytes].concat());
        }
    }
}
