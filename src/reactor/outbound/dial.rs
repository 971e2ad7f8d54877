//! Which address of a name is tried, and when the next one.
//!
//! Pure: owns the addresses that are left and the attempts that run; it opens no socket. A short
//! form of "Happy Eyeballs" (RFC 8305): the families take turns, beginning with the resolver's
//! first address; the next attempt begins when one has failed, or beside one that has not ended
//! after `limits::ATTEMPT_DELAY`. The first that connects wins. So a broken IPv6 costs a quarter
//! of a second and not the minutes until the kernel gives up.
//!
//! ```text
//!   poll_address ──> the caller connects ──> handle_started ──> ... ──> it wins: the others close
//!        ^                    │ error                            │ error
//!        └── handle_refused <─┘<──────────── handle_failed <─────┘
//! ```
//!
//! Invariants:
//!  1. At most `limits::CONCURRENT_ATTEMPTS_MAX` attempts run, and each address is tried once.
//!  2. While an attempt runs, or an address is left, the dial is not over.
//!
//! Mutations that the tests below catch: no `rotate` in `interleave`
//! (`families_take_turns`), `poll_address` without its look at the time
//! (`the_next_address_waits_for_a_failure_or_for_its_time`).

use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;

use crate::core::{Key, Moment};
use crate::limits::outbound as limits;

/// See the file's head.
pub struct Dial {
    left: VecDeque<IpAddr>,
    attempts: Vec<Key>,
    /// When the next address may be tried beside a running attempt.
    next_at: Moment,
    error: io::ErrorKind,
}

impl Dial {
    /// The addresses in the resolver's order.
    pub fn new(addresses: &[IpAddr]) -> Dial {
        Dial {
            left: interleave(addresses),
            attempts: Vec::new(),
            next_at: Moment::ZERO,
            error: io::ErrorKind::NotConnected,
        }
    }

    // ---- getters ----

    /// Returns the sockets of the running attempts.
    pub fn attempts(&self) -> &[Key] {
        &self.attempts
    }

    /// Returns when another attempt may begin, if nothing happens before.
    pub fn next_at(&self) -> Moment {
        let may_begin =
            !self.left.is_empty() && self.attempts.len() < limits::CONCURRENT_ATTEMPTS_MAX;
        match may_begin {
            true => self.next_at,
            false => Moment::NEVER,
        }
    }

    /// Returns the reason of the last failure, once nothing is left to try.
    pub fn failure(&self) -> Option<io::ErrorKind> {
        (self.left.is_empty() && self.attempts.is_empty()).then_some(self.error)
    }

    // ---- events ----

    /// Returns the address to try now, if it is time for one.
    pub fn poll_address(&mut self, now: Moment) -> Option<IpAddr> {
        let is_time = self.attempts.is_empty() || now >= self.next_at();
        match is_time {
            true => self.left.pop_front(),
            false => None,
        }
    }

    /// The attempt with the last address runs on this socket.
    pub fn handle_started(&mut self, socket: Key, now: Moment) {
        self.attempts.push(socket);
        self.next_at = now + limits::ATTEMPT_DELAY;
        debug_assert!(self.attempts.len() <= limits::CONCURRENT_ATTEMPTS_MAX, "1");
    }

    /// The kernel has refused the last address at once.
    pub fn handle_refused(&mut self, error: io::ErrorKind) {
        self.error = error;
    }

    /// A running attempt has failed: the next one need not wait.
    pub fn handle_failed(&mut self, socket: Key, error: io::ErrorKind) {
        self.attempts.retain(|attempt| *attempt != socket);
        self.next_at = Moment::ZERO;
        self.error = error;
    }
}

/// Lets the families take turns, beginning with that of the first address.
fn interleave(addresses: &[IpAddr]) -> VecDeque<IpAddr> {
    let first_is_v6 = addresses.first().is_some_and(IpAddr::is_ipv6);
    let (own, other): (Vec<IpAddr>, Vec<IpAddr>) = addresses
        .iter()
        .partition(|address| address.is_ipv6() == first_is_v6);
    let mut lines = [own.into_iter(), other.into_iter()];
    let mut mixed = VecDeque::new();
    while mixed.len() < limits::ADDRESSES_MAX {
        let Some(next) = lines[0].next().or_else(|| lines[1].next()) else {
            break;
        };
        mixed.push_back(next);
        lines.rotate_left(1);
    }
    mixed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::key::Kind;

    const V6: [u16; 8] = [0x2001, 0xdb8, 0, 0, 0, 0, 0, 1];

    fn key(index: u32) -> Key {
        Key::new(index, Kind::Outbound.bits() | 1)
    }

    fn v4(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    #[test]
    fn families_take_turns() {
        let v6 = IpAddr::from(V6);
        let mixed = interleave(&[v6, v6, v6, v4(1), v4(2)]);
        assert_eq!(mixed, [v6, v4(1), v6, v4(2), v6]);
        assert_eq!(interleave(&[v4(1), v4(2), v6]), [v4(1), v6, v4(2)]);
        let many: Vec<IpAddr> = (0..100).map(v4).collect();
        assert_eq!(interleave(&many).len(), limits::ADDRESSES_MAX);
    }

    #[test]
    fn the_next_address_waits_for_a_failure_or_for_its_time() {
        let start = Moment::from_micros(1_000_000);
        let mut dial = Dial::new(&[v4(1), v4(2), v4(3), v4(4)]);
        assert_eq!(dial.poll_address(start), Some(v4(1)));
        dial.handle_started(key(1), start);
        assert_eq!(dial.poll_address(start), None);
        let later = start + limits::ATTEMPT_DELAY;
        assert_eq!(dial.next_at(), later);
        assert_eq!(dial.poll_address(later), Some(v4(2)));
        dial.handle_started(key(2), later);
        assert_eq!(dial.next_at(), Moment::NEVER, "two run");
        assert_eq!(dial.poll_address(later + limits::ATTEMPT_DELAY), None);
        dial.handle_failed(key(1), io::ErrorKind::ConnectionRefused);
        assert_eq!(
            dial.poll_address(later),
            Some(v4(3)),
            "a failure leaves a place"
        );
        dial.handle_refused(io::ErrorKind::NetworkUnreachable);
        assert_eq!(dial.poll_address(later), Some(v4(4)));
        dial.handle_started(key(4), later);
        dial.handle_failed(key(2), io::ErrorKind::TimedOut);
        assert_eq!(dial.failure(), None);
        dial.handle_failed(key(4), io::ErrorKind::ConnectionReset);
        assert_eq!(dial.failure(), Some(io::ErrorKind::ConnectionReset));
        assert_eq!(dial.poll_address(later), None);
    }
}
