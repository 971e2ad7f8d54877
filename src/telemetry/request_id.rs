//! Names for requests: an id of our own, a client's checked one, and the trace they belong to.
//!
//! Owns one generator per reactor; an id costs no system call, no lock
//! and no allocation. Ids help to find things, not to guard them: they are random enough to be
//! unique, but not unpredictable.
//!
//! Invariants:
//!  1. An id is 1 to `limits::REQUEST_ID_BYTES_MAX` visible ASCII characters, so it can be put into
//!     a header as it is. A client's id may contain quotes: JSON escapes it like any other text.
//!  2. A malformed `traceparent` is ignored and never repaired (W3C Trace Context, section 3.2).

use std::fmt;

use uuid::Builder;

use crate::core::{Moment, UnixMillis};
use crate::limits::telemetry as limits;
use crate::telemetry::random::SplitMix64;

/// A request's id, stored in place: no allocation.
#[derive(Clone, Copy)]
pub struct RequestId {
    length: u8,
    bytes: [u8; limits::REQUEST_ID_BYTES_MAX],
}

const _: () = assert!(limits::REQUEST_ID_BYTES_MAX <= u8::MAX as usize);

impl RequestId {
    /// Returns a client's id if it is usable: visible ASCII, bounded.
    pub fn from_client(value: &[u8]) -> Option<RequestId> {
        let visible = value.iter().all(u8::is_ascii_graphic);
        let fits = (1..=limits::REQUEST_ID_BYTES_MAX).contains(&value.len());
        (visible && fits).then(|| RequestId::from_ascii(value))
    }

    pub fn as_str(&self) -> &str {
        // Always ASCII, by invariant 1.
        std::str::from_utf8(&self.bytes[..self.length as usize]).unwrap_or_default()
    }

    /// `ascii` must fit: both callers have checked it or created it so.
    fn from_ascii(ascii: &[u8]) -> RequestId {
        let mut bytes = [0; limits::REQUEST_ID_BYTES_MAX];
        bytes[..ascii.len()].copy_from_slice(ascii);
        RequestId {
            length: ascii.len() as u8,
            bytes,
        }
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl PartialEq for RequestId {
    fn eq(&self, other: &RequestId) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for RequestId {}

/// Creates ids. Each thread that needs ids has its own.
#[derive(Clone, Debug)]
pub struct RequestIds {
    random: SplitMix64,
    /// The wall clock's milliseconds at `Moment::ZERO`.
    epoch_ms: u64,
}

impl RequestIds {
    /// `now`: the same moment on both clocks.
    pub fn new(random: SplitMix64, now: (UnixMillis, Moment)) -> RequestIds {
        RequestIds {
            random,
            epoch_ms: now.0.as_u64().saturating_sub(now.1.as_millis()),
        }
    }

    /// Creates a UUID of version 7 (RFC 9562, section 5.7): ids sort by the time of their creation.
    pub fn make(&mut self, now: Moment) -> RequestId {
        let unix_ms = self.epoch_ms.saturating_add(now.as_millis()) & 0xffff_ffff_ffff;
        let mut tail = [0; 10];
        tail[..2].copy_from_slice(&(self.random.draw() as u16).to_be_bytes());
        tail[2..].copy_from_slice(&self.random.draw().to_be_bytes());
        let uuid = Builder::from_unix_timestamp_millis(unix_ms, &tail).into_uuid();
        let mut text = [0; 36];
        uuid.hyphenated().encode_lower(&mut text);
        RequestId::from_ascii(&text)
    }

    /// Returns the client's id if it is usable, otherwise a new one.
    pub fn accept_or_make(&mut self, header: Option<&[u8]>, now: Moment) -> RequestId {
        let accepted = header.and_then(RequestId::from_client);
        accepted.unwrap_or_else(|| self.make(now))
    }

    /// Returns our span of a client's trace, or the first span of a new trace.
    pub fn continue_trace(&mut self, traceparent: Option<&[u8]>) -> TraceContext {
        let span_id = self.nonzero().to_be_bytes();
        let parent = traceparent.and_then(TraceContext::parse);
        parent.map_or_else(
            || {
                let trace_id = u128::from(self.nonzero()) << 64 | u128::from(self.random.draw());
                TraceContext {
                    trace_id: trace_id.to_be_bytes(),
                    span_id,
                    // Level 2's flag for random trace ids is not set: the generator is a plain one.
                    flags: 0,
                }
            },
            |parent| TraceContext { span_id, ..parent },
        )
    }

    /// Ids of traces and spans must not be all zeros.
    fn nonzero(&mut self) -> u64 {
        self.random.draw().max(1)
    }
}

/// The place of a request in a distributed trace: the `traceparent` header (W3C Trace Context).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    pub trace_id: [u8; 16],
    /// The caller's span when parsed; ours once continued.
    pub span_id: [u8; 8],
    pub flags: u8,
}

impl TraceContext {
    /// Bit 0: the caller records this trace.
    const SAMPLED: u8 = 1;

    /// Bytes of version 00, `00-<32>-<16>-<2>`.
    const LENGTH: usize = 55;

    pub fn parse(header: &[u8]) -> Option<TraceContext> {
        let (head, rest) = header.split_at_checked(TraceContext::LENGTH)?;
        let [version] = bytes(&head[0..2])?;
        let dashes = [2, 35, 52].iter().all(|at| head[*at] == b'-');
        // A later version may go on after a dash; version 00 may not, and ff is invalid.
        let end = match version {
            0 => rest.is_empty(),
            0xff => false,
            _ => rest.is_empty() || rest[0] == b'-',
        };
        let context = TraceContext {
            trace_id: bytes(&head[3..35])?,
            span_id: bytes(&head[36..52])?,
            flags: bytes::<1>(&head[53..55])?[0],
        };
        let valid = context.trace_id != [0; 16] && context.span_id != [0; 8];
        (dashes && end && valid).then_some(context)
    }

    #[cfg(test)]
    const fn is_sampled(&self) -> bool {
        self.flags & TraceContext::SAMPLED != 0
    }

    /// Returns the header for a request of ours, or for the response, with only the flags that we
    /// know.
    pub fn header(&self) -> [u8; 55] {
        let mut header = *b"00-00000000000000000000000000000000-0000000000000000-00";
        hexadecimal(&self.trace_id, &mut header[3..35]);
        hexadecimal(&self.span_id, &mut header[36..52]);
        hexadecimal(&[self.flags & TraceContext::SAMPLED], &mut header[53..55]);
        header
    }

    /// Returns 32 hexadecimal digits, for the log.
    pub fn trace_id_digits(&self) -> [u8; 32] {
        let mut digits = [0; 32];
        hexadecimal(&self.trace_id, &mut digits);
        digits
    }
}

/// Writes two lower-case digits for each of `bytes`; `digits` is twice as long.
fn hexadecimal(bytes: &[u8], digits: &mut [u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (byte, pair) in bytes.iter().zip(digits.as_chunks_mut::<2>().0) {
        *pair = [
            DIGITS[usize::from(byte >> 4)],
            DIGITS[usize::from(byte & 15)],
        ];
    }
}

/// Reads `N` bytes from `2 N` lower-case digits; upper case is invalid in `traceparent`.
fn bytes<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    for (byte, [high, low]) in bytes.iter_mut().zip(digits.as_chunks::<2>().0) {
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn seeded(state: u64, stream: u64, epoch_ms: u64) -> RequestIds {
        let now = (UnixMillis::new(epoch_ms), Moment::ZERO);
        RequestIds::new(SplitMix64::new(state, stream), now)
    }

    const PARENT: &[u8] = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn ids_are_uuids_that_sort_by_time_and_do_not_repeat() {
        let mut ids = seeded(1, 2, 1_700_000_000_000);
        let mut seen = HashSet::new();
        let mut previous = String::new();
        for millisecond in 0..5_000 {
            let id = ids.make(Moment::from_micros(millisecond * 1_000));
            let text = id.as_str();
            assert_eq!(text.len(), 36);
            assert_eq!(text.as_bytes()[14], b'7');
            assert!(matches!(text.as_bytes()[19], b'8' | b'9' | b'a' | b'b'));
            assert!(previous.as_str() < text, "{previous} {text}");
            assert!(RequestId::from_client(text.as_bytes()) == Some(id));
            previous = text.to_owned();
            assert!(seen.insert(previous.clone()));
        }
        assert!(previous.starts_with("018bcfe5-7b87-7"), "{previous}");
    }

    #[test]
    fn generators_of_two_threads_differ() {
        let now = Moment::from_micros(1);
        let (mut one, mut two) = (seeded(5, 1, 0), seeded(6, 1, 0));
        assert_ne!(one.make(now), two.make(now));
        // The sequences differ even if they reach the same state.
        let mut one = seeded(5, 1, 0);
        let mut two = seeded(5, 2, 0);
        assert_ne!(one.make(now), two.make(now));
    }

    #[test]
    fn a_clients_id_is_taken_only_if_it_is_short_and_visible() {
        let mut ids = seeded(1, 2, 0);
        let longest = [b'x'; limits::REQUEST_ID_BYTES_MAX];
        for good in [b"a".as_slice(), b"req-42_\"{}", &longest] {
            let id = ids.accept_or_make(Some(good), Moment::ZERO);
            assert_eq!(id.as_str().as_bytes(), good);
        }
        let too_long = [b'x'; limits::REQUEST_ID_BYTES_MAX + 1];
        for bad in [
            b"".as_slice(),
            b"a b",
            b"a\nb",
            b"\x7f",
            "快".as_bytes(),
            b"\0",
            &too_long,
        ] {
            let id = ids.accept_or_make(Some(bad), Moment::ZERO);
            assert_eq!(id.as_str().len(), 36, "{bad:?}");
        }
        assert_eq!(ids.accept_or_make(None, Moment::ZERO).as_str().len(), 36);
    }

    #[test]
    fn a_trace_is_continued_with_a_span_of_our_own() {
        let mut ids = seeded(1, 2, 0);
        let parent = TraceContext::parse(PARENT).unwrap();
        assert!(parent.is_sampled());
        assert_eq!(parent.header(), PARENT);
        assert_eq!(
            &parent.trace_id_digits(),
            b"4bf92f3577b34da6a3ce929d0e0e4736"
        );
        let child = ids.continue_trace(Some(PARENT));
        assert_eq!(child.trace_id, parent.trace_id);
        assert_ne!(child.span_id, parent.span_id);
        assert!(child.is_sampled());
        assert_eq!(TraceContext::parse(&child.header()), Some(child));

        let own = ids.continue_trace(Some(b"nonsense"));
        assert_ne!(own.trace_id, parent.trace_id);
        assert!(!own.is_sampled());
        assert_eq!(TraceContext::parse(&own.header()), Some(own));
    }

    #[test]
    fn a_malformed_traceparent_is_ignored() {
        for at in 0..PARENT.len() {
            let mut broken = PARENT.to_vec();
            broken[at] = b'G';
            assert_eq!(TraceContext::parse(&broken), None, "byte {at}");
            assert_eq!(TraceContext::parse(&PARENT[..at]), None, "{at} bytes");
        }
        let upper = PARENT.to_ascii_uppercase();
        let extended = [PARENT, b"-more"].concat();
        for bad in [
            upper.as_slice(),
            &extended,
            b"ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            b"00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            b"00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            b"01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01x",
        ] {
            assert_eq!(TraceContext::parse(bad), None);
        }
        let later = b"01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-09-more";
        let context = TraceContext::parse(later).unwrap();
        assert!(
            context.header().ends_with(b"-01"),
            "unknown flags are not passed on"
        );
    }
}
