//! A finished generation, for requests that are equal to the one that computed it.
//!
//! Owns the text and the facts that every response shows. Knows no form of a response: it is played
//! as the events of a job, whole or in pieces, and the new request's own narrator writes them.

use std::time::Duration;

use crate::core::Moment;
use crate::engine::{Done, Event, FinishReason, Origin, Served, Timings, Usage, Verdict};
use crate::limits::cache as limits;

/// See the file's head.
#[derive(Debug, PartialEq)]
pub struct Entry {
    pub text: Box<str>,
    pub finish_reason: FinishReason,
    pub usage: Usage,
    pub origin: Origin,
    /// When the text was complete.
    pub completed: Moment,
}

impl Entry {
    /// Returns the memory that it takes, with the two counters of its `Arc`.
    pub fn bytes(&self) -> usize {
        let own = 2 * size_of::<usize>() + size_of::<Entry>() + limits::BLOCK_BYTES;
        own + self.text.len() + limits::BLOCK_BYTES
    }

    /// Returns the source of a response to another request.
    pub fn served(&self, verdict: Verdict, now: Moment) -> Served {
        Served {
            verdict,
            age: now.since(self.completed),
            is_reproducible: true,
            origin: Some(self.origin),
        }
    }

    /// Returns the end of a job for which nothing was computed, and that has had the first `offset`
    /// bytes.
    pub fn done(&self, offset: usize, served: Served) -> Event {
        Event::Done(Box::new(Done {
            text: self.text[offset..].to_owned(),
            finish_reason: self.finish_reason,
            usage: self.usage,
            timings: Timings::default(),
            served,
        }))
    }
}

/// Takes up to a tenth off a TTL, so that entries which were stored together do not expire
/// together. The digest decides, which is as random as a die and the same in each run of a seed.
pub fn jittered(ttl: Duration, digest: &[u8; 32]) -> Duration {
    let die = u32::from(u16::from_le_bytes([digest[2], digest[3]]));
    ttl - ttl / limits::TTL_JITTER_DIVISOR * die / (u32::from(u16::MAX) + 1)
}
