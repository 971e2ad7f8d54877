//! A finished generation, for requests that are equal to the one that computed it.
//!
//! Owns the text and the facts that every response shows, and their form in the level that daemons
//! share. Knows no form of a response: it is played as the events of a job, whole or in pieces, and
//! the new request's own narrator writes them.

use std::time::Duration;

use crate::core::id::IdText;
use crate::core::{Moment, UnixMillis};
use crate::engine::{
    Done, Event, FinishReason, GenerationId, Origin, Served, Timings, Usage, Verdict,
};
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
    /// Its age at the beginning of this process, if it was complete before: then `completed` is the
    /// beginning.
    pub age_before: Duration,
}

impl Entry {
    /// Returns the memory that it takes, with the two counters of its `Arc`.
    pub fn bytes(&self) -> usize {
        let own = 2 * size_of::<usize>() + size_of::<Entry>() + limits::BLOCK_BYTES;
        own + self.text.len() + limits::BLOCK_BYTES
    }

    /// Returns the form that other daemons read: numbers in little endian, the id, and the text.
    /// The shared level adds a version and a checksum.
    pub fn encode(&self, completed: UnixMillis) -> Vec<u8> {
        let usage = &self.usage;
        let mut bytes = vec![self.finish_reason as u8];
        for number in [
            usage.prompt_tokens,
            usage.cached_tokens,
            usage.completion_tokens,
        ] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        let latency = self.origin.latency.as_micros() as u64;
        for number in [latency, completed.as_u64()] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(self.origin.id.text().as_str().as_bytes());
        bytes.extend_from_slice(self.text.as_bytes());
        bytes
    }

    /// Reads that form. `None`: it is not one, or its age is unknown. `age`: how old it is, where
    /// that is known better than by the time of day.
    pub fn decode(bytes: &[u8], age: Option<Duration>, now: (UnixMillis, Moment)) -> Option<Entry> {
        let (finish_reason, rest) = bytes.split_first()?;
        let (usage, rest) = rest.split_first_chunk::<12>()?;
        let (times, rest) = rest.split_first_chunk::<16>()?;
        let (id, text) = rest.split_at_checked(IdText::BYTES)?;
        let number = |at: usize| Some(u32::from_le_bytes(usage[at..].first_chunk().copied()?));
        let time = |at: usize| Some(u64::from_le_bytes(times[at..].first_chunk().copied()?));
        let age = match age {
            Some(age) => age,
            None => age_by_clock(time(8)?, now.0)?,
        };
        let process_age = now.1.since(Moment::ZERO);
        Some(Entry {
            text: std::str::from_utf8(text).ok()?.into(),
            finish_reason: match finish_reason {
                0 => FinishReason::Stop,
                1 => FinishReason::Length,
                _ => return None,
            },
            usage: Usage {
                prompt_tokens: number(0)?,
                cached_tokens: number(4)?,
                completion_tokens: number(8)?,
            },
            origin: Origin {
                id: GenerationId::parse(std::str::from_utf8(id).ok()?)?,
                latency: Duration::from_micros(time(0)?),
            },
            completed: Moment::ZERO + process_age.saturating_sub(age),
            age_before: age.saturating_sub(process_age),
        })
    }

    pub fn age(&self, now: Moment) -> Duration {
        now.since(self.completed) + self.age_before
    }

    /// Returns the source of a response to another request.
    pub fn served(&self, verdict: Verdict, now: Moment) -> Served {
        Served {
            verdict,
            age: self.age(now),
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

/// Returns an entry's age by the time of day. `None`: the clock was set back since, so that an
/// entry from before looks new for as long, and again for its TTL.
fn age_by_clock(completed_ms: u64, now: UnixMillis) -> Option<Duration> {
    let now_ms = now.as_u64();
    let is_past = completed_ms <= now_ms.saturating_add(limits::ENTRY_SKEW_MAX.as_millis() as u64);
    is_past.then(|| Duration::from_millis(now_ms.saturating_sub(completed_ms)))
}

/// Takes up to a tenth off a TTL, so that entries which were stored together do not expire
/// together. The digest decides, which is as random as a die and the same in each run of a seed.
pub fn jittered(ttl: Duration, digest: &[u8; 32]) -> Duration {
    let die = u32::from(u16::from_le_bytes([digest[2], digest[3]]));
    ttl - ttl / limits::TTL_JITTER_DIVISOR * die / (u32::from(u16::MAX) + 1)
}
