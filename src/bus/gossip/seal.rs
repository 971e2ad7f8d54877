//! Datagrams that only holders of the secret can make, and that count once.
//!
//! Owns their form, and the memory of those that have arrived. Pure: the wall clock is an argument.
//!
//! | bytes | meaning |
//! | --- | --- |
//! | 4 | magic, `AGG1` |
//! | 8 | session: a random number of the sending process, little endian |
//! | 8 | counter: rises with each datagram of the session |
//! | 8 | the sender's wall clock, in milliseconds since 1970 |
//! | ... | payload |
//! | 32 | BLAKE3 of everything before it, with a key derived from the secret |
//!
//! A datagram is taken once: for each session the highest counter and the 64 before it are
//! remembered. A session is forgotten only when its datagrams would be too old to be taken anyway.
//! The payload is not encrypted: notices and addresses need not be secret.
//!
//! Invariants:
//!  1. Nothing of a datagram is used before its checksum is right; the comparison takes constant
//!     time.
//!  2. Only holders of the secret make sessions, and those are bounded.
//!
//! Mutations that the tests below catch: no comparison of the time, no memory of counters, a window
//! that accepts what is behind it, a checksum without the header, no look at the magic, a session
//! that is forgotten while one of its datagrams could be taken.

use std::collections::HashMap;

use crate::limits::bus as limits;

const MAGIC: &[u8; 4] = b"AGG1";
const HEADER_BYTES: usize = 4 + 8 + 8 + 8;
const SUM_BYTES: usize = 32;

/// Bytes that a datagram has beside its payload.
pub const OVERHEAD_BYTES: usize = HEADER_BYTES + SUM_BYTES;

const _: () =
    assert!(OVERHEAD_BYTES + limits::GOSSIP_PAYLOAD_BYTES_MAX == limits::DATAGRAM_BYTES_MAX);

/// Separates this use of the secret from any other.
const CONTEXT: &str = "autoglmd 2026 gossip datagrams";

/// The key of a cluster.
#[derive(Clone)]
pub struct SealKey([u8; 32]);

impl SealKey {
    /// Derives the key from the secret's text.
    pub fn new(secret: &[u8]) -> SealKey {
        SealKey(blake3::derive_key(CONTEXT, secret))
    }
}

/// Makes datagrams.
pub struct Sealer {
    key: SealKey,
    session: u64,
    counter: u64,
}

impl Sealer {
    /// `session`: a random number, another one for each process.
    pub fn new(key: SealKey, session: u64) -> Sealer {
        Sealer {
            key,
            session,
            counter: 0,
        }
    }

    pub fn seal(&mut self, payload: &[u8], now_ms: u64) -> Vec<u8> {
        self.counter += 1;
        let mut datagram = Vec::with_capacity(OVERHEAD_BYTES + payload.len());
        datagram.extend_from_slice(MAGIC);
        for number in [self.session, self.counter, now_ms] {
            datagram.extend_from_slice(&number.to_le_bytes());
        }
        datagram.extend_from_slice(payload);
        let sum = blake3::keyed_hash(&self.key.0, &datagram);
        datagram.extend_from_slice(sum.as_bytes());
        datagram
    }
}

/// The datagrams of one session that have arrived.
struct Session {
    highest: u64,
    /// Bit `n`: the datagram `highest - n` has arrived.
    window: u64,
    heard_ms: u64,
}

/// Takes datagrams.
pub struct Opener {
    key: SealKey,
    sessions: HashMap<u64, Session>,
}

impl Opener {
    pub fn new(key: SealKey) -> Opener {
        Opener {
            key,
            sessions: HashMap::new(),
        }
    }

    /// Returns the payload of a datagram that is genuine, recent and new.
    pub fn open<'a>(&mut self, datagram: &'a [u8], now_ms: u64) -> Option<&'a [u8]> {
        let end = datagram.len().checked_sub(SUM_BYTES)?;
        let (signed, sum) = datagram.split_at(end);
        let sum = <[u8; SUM_BYTES]>::try_from(sum).ok()?;
        // The comparison of blake3's own type takes constant time.
        if blake3::keyed_hash(&self.key.0, signed) != blake3::Hash::from(sum) {
            return None;
        }
        let rest = signed.strip_prefix(MAGIC)?;
        let (numbers, payload) = rest.split_at_checked(HEADER_BYTES - MAGIC.len())?;
        let mut numbers = numbers.chunks_exact(8).map(|bytes| {
            let bytes = <[u8; 8]>::try_from(bytes).unwrap_or_default();
            u64::from_le_bytes(bytes)
        });
        let (session, counter, sent_ms) = (numbers.next()?, numbers.next()?, numbers.next()?);
        let window = limits::CLOCK_SKEW_MAX.as_millis() as u64;
        if sent_ms.abs_diff(now_ms) > window || !self.is_new(session, counter, now_ms) {
            return None;
        }
        Some(payload)
    }

    fn is_new(&mut self, id: u64, counter: u64, now_ms: u64) -> bool {
        if !self.sessions.contains_key(&id) && self.sessions.len() >= limits::SESSIONS_MAX {
            // Twice: a datagram may be from the future by as much.
            let kept_for = 2 * limits::CLOCK_SKEW_MAX.as_millis() as u64;
            self.sessions
                .retain(|_, session| now_ms.saturating_sub(session.heard_ms) <= kept_for);
            if self.sessions.len() >= limits::SESSIONS_MAX {
                return false;
            }
        }
        let session = self.sessions.entry(id).or_insert(Session {
            highest: 0,
            window: 0,
            heard_ms: now_ms,
        });
        let is_new = match counter.checked_sub(session.highest) {
            Some(0) => false,
            Some(ahead) => {
                session.window = match ahead {
                    1..=63 => session.window << ahead | 1,
                    _ => 1,
                };
                session.highest = counter;
                true
            }
            None => {
                let behind = session.highest - counter;
                let bit = 1_u64.checked_shl(behind.try_into().unwrap_or(u32::MAX));
                let is_new = bit.is_some_and(|bit| session.window & bit == 0);
                session.window |= bit.unwrap_or(0);
                is_new
            }
        };
        if is_new {
            session.heard_ms = session.heard_ms.max(now_ms);
        }
        is_new
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: u64 = 1_800_000_000_000;

    fn pair() -> (Sealer, Opener) {
        let key = SealKey::new(b"a secret of the cluster");
        (Sealer::new(key.clone(), 7), Opener::new(key))
    }

    #[test]
    fn a_datagram_is_taken_once_and_in_its_time() {
        let (mut sealer, mut opener) = pair();
        let datagram = sealer.seal(b"payload", NOW);
        assert_eq!(opener.open(&datagram, NOW), Some(&b"payload"[..]));
        assert_eq!(opener.open(&datagram, NOW), None, "again");
        let skew = limits::CLOCK_SKEW_MAX.as_millis() as u64;
        for (at, is_taken) in [
            (NOW + skew, true),
            (NOW + skew + 1, false),
            (NOW - skew, true),
            (NOW - skew - 1, false),
        ] {
            let datagram = sealer.seal(b"", NOW);
            assert_eq!(opener.open(&datagram, at).is_some(), is_taken, "{at}");
        }
    }

    #[test]
    fn another_secret_is_refused() {
        let (_, mut opener) = pair();
        let mut stranger = Sealer::new(SealKey::new(b"another"), 7);
        assert_eq!(opener.open(&stranger.seal(b"payload", NOW), NOW), None);
    }

    /// A later version has another magic, and the same secret.
    #[test]
    fn another_form_is_refused() {
        let (mut sealer, mut opener) = pair();
        let datagram = sealer.seal(b"payload", NOW);
        let mut other = datagram[..datagram.len() - SUM_BYTES].to_vec();
        other[3] += 1;
        let sum = blake3::keyed_hash(&sealer.key.0, &other);
        other.extend_from_slice(sum.as_bytes());
        assert_eq!(opener.open(&other, NOW), None);
        assert_eq!(opener.open(&datagram, NOW), Some(&b"payload"[..]));
    }

    #[test]
    fn late_datagrams_are_taken_within_the_window_and_no_later() {
        let (mut sealer, mut opener) = pair();
        let sent: Vec<Vec<u8>> = (0..100).map(|_| sealer.seal(b"", NOW)).collect();
        assert!(opener.open(&sent[99], NOW).is_some());
        let taken = (0..99).filter(|index| opener.open(&sent[*index], NOW).is_some());
        assert_eq!(
            taken.collect::<Vec<usize>>(),
            (36..99).collect::<Vec<usize>>()
        );
        assert!(
            sent.iter()
                .all(|datagram| opener.open(datagram, NOW).is_none())
        );
    }

    /// Mutation: a window that forgets the datagram at its far end when the next one comes.
    #[test]
    fn a_gap_forgets_no_datagram_that_could_be_taken() {
        for gap in 1..70 {
            let (mut sealer, mut opener) = pair();
            let sent: Vec<Vec<u8>> = (0..=gap).map(|_| sealer.seal(b"", NOW)).collect();
            assert!(opener.open(&sent[0], NOW).is_some());
            assert!(opener.open(&sent[gap], NOW).is_some());
            assert!(opener.open(&sent[0], NOW).is_none(), "a gap of {gap}");
        }
    }

    #[test]
    fn sessions_are_bounded_and_old_ones_make_room() {
        let key = SealKey::new(b"a secret of the cluster");
        let mut opener = Opener::new(key.clone());
        let datagram = |session, at| Sealer::new(key.clone(), session).seal(b"", at);
        for session in 0..limits::SESSIONS_MAX as u64 {
            assert!(opener.open(&datagram(session, NOW), NOW).is_some());
        }
        let more = limits::SESSIONS_MAX as u64;
        assert!(opener.open(&datagram(more, NOW), NOW).is_none());
        let later = NOW + 3 * limits::CLOCK_SKEW_MAX.as_millis() as u64;
        assert!(opener.open(&datagram(more, later), later).is_some());
        assert_eq!(opener.sessions.len(), 1);
    }

    /// The last datagram of a session is from a clock that is as far ahead as it may be.
    #[test]
    fn a_session_is_remembered_while_its_datagrams_could_be_taken() {
        let key = SealKey::new(b"a secret of the cluster");
        let mut opener = Opener::new(key.clone());
        let mut first = Sealer::new(key.clone(), 0);
        let skew = limits::CLOCK_SKEW_MAX.as_millis() as u64;
        assert!(opener.open(&first.seal(b"", NOW), NOW).is_some());
        let heard = NOW + skew;
        let last = first.seal(b"", heard + skew);
        assert!(opener.open(&last, heard).is_some());
        let mut open = |session, at| {
            let datagram = Sealer::new(key.clone(), session).seal(b"", at);
            opener.open(&datagram, at).is_some()
        };
        for session in 1..limits::SESSIONS_MAX as u64 {
            assert!(open(session, heard));
        }
        let end = heard + 2 * skew;
        assert!(!open(limits::SESSIONS_MAX as u64, end), "there is no room");
        assert_eq!(opener.open(&last, end), None, "again");
        assert_eq!(opener.open(&last, end + 1), None, "too late");
    }

    proptest! {
        #[test]
        fn one_wrong_bit_or_a_cut_is_refused(
            payload in prop::collection::vec(any::<u8>(), 0..100),
            at: prop::sample::Index,
            bit in 0_u8..8,
        ) {
            let (mut sealer, mut opener) = pair();
            let datagram = sealer.seal(&payload, NOW);
            let mut wrong = datagram.clone();
            wrong[at.index(datagram.len())] ^= 1 << bit;
            prop_assert_eq!(opener.open(&wrong, NOW), None);
            prop_assert_eq!(opener.open(&datagram[..at.index(datagram.len())], NOW), None);
            prop_assert_eq!(opener.open(&datagram, NOW), Some(&payload[..]));
        }

        /// Each datagram at most once, in any order and however often.
        #[test]
        fn no_order_makes_one_count_twice(order in prop::collection::vec(0_usize..150, 1..400)) {
            let (mut sealer, mut opener) = pair();
            let sent: Vec<Vec<u8>> = (0..150).map(|_| sealer.seal(b"", NOW)).collect();
            let mut taken = std::collections::HashSet::new();
            for index in order {
                if opener.open(&sent[index], NOW).is_some() {
                    prop_assert!(taken.insert(index), "{index} twice");
                }
            }
        }
    }
}
