//! Records of generations in a store: their outcomes, times and costs.
//!
//! A record holds digests and numbers, and text only if `store.content` is on. Must never name a
//! database.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use crate::core::id::GenerationId;
use crate::store::error::StoreError;
use crate::telemetry::request_id::RequestId;

/// The records of an open store. Each write also counts in the usage of its key and day.
pub trait Generations {
    /// Adds records. One that is there already is left as it is, and not counted again; one of a
    /// key that was erased meanwhile is not added.
    fn add_generations(&mut self, records: &[Box<GenerationRecord>]) -> Result<(), StoreError>;

    /// Returns records of one key, the latest first. With `store.content` one may hold a megabyte,
    /// so they are bounded by their number and by their texts.
    fn find_generations(&self, query: &Query<'_>) -> Result<Vec<GenerationRecord>, StoreError>;

    /// Removes the oldest records that are beyond the bounds, at most `limit` of them, and returns
    /// how many.
    fn trim_generations(&mut self, bounds: &Bounds, limit: u32) -> Result<u32, StoreError>;

    /// Removes at most `limit` records of a key, and returns how many.
    fn erase_generations(&mut self, key_id: &str, limit: u32) -> Result<u32, StoreError>;

    /// Returns the bytes that all data of the store takes.
    fn used_bytes(&self) -> Result<u64, StoreError>;
}

/// A generation that has ended. It was created at the time in its id.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerationRecord {
    pub id: GenerationId,
    /// Empty: the client had no key.
    pub key_id: Arc<str>,
    pub status: Status,
    pub model: Option<Arc<str>>,
    pub language: Option<Cow<'static, str>>,
    pub finish_reason: Option<Cow<'static, str>>,
    /// The code of its error.
    pub error: Option<Cow<'static, str>>,
    /// The verdict of the cache.
    pub cached: Cow<'static, str>,
    pub request_id: RequestId,
    pub prompt_tokens: u32,
    pub cached_tokens: u32,
    pub completion_tokens: u32,
    pub queue: Duration,
    pub prefill: Duration,
    pub decode: Duration,
    /// From the request's head to the end.
    pub latency: Duration,
    /// Of the prompt and, from [`GenerationRecord::seal`] on, of the key's id.
    pub digest: [u8; 32],
    /// With `store.content` alone.
    pub content: Option<Content>,
}

impl GenerationRecord {
    /// Returns the memory that it holds, beside its own structure.
    pub fn bytes(&self) -> usize {
        let content = self.content.as_ref();
        content.map_or(0, |content| content.prompt.len() + content.text.len())
    }

    /// Mixes the key's id into the digest, so that equal prompts of two keys cannot be recognised.
    pub fn seal(&mut self) {
        let mut hasher = blake3::Hasher::new_derive_key(DIGEST_CONTEXT);
        hasher.update(self.key_id.as_bytes());
        hasher.update(&self.digest);
        self.digest = *hasher.finalize().as_bytes();
    }
}

/// Names the digest's purpose, as BLAKE3 asks: it must never change.
const DIGEST_CONTEXT: &str = "autoglmd 2026 digest of a prompt in a generation record";

/// The text of a generation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Content {
    pub prompt: String,
    pub text: String,
}

/// How a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Done,
    Failed,
    /// Its client left.
    Abandoned,
}

impl Status {
    pub const ALL: [Status; 3] = [Status::Done, Status::Failed, Status::Abandoned];

    pub const fn as_str(self) -> &'static str {
        match self {
            Status::Done => "done",
            Status::Failed => "failed",
            Status::Abandoned => "abandoned",
        }
    }

    pub fn parse(word: &str) -> Option<Status> {
        Status::ALL
            .into_iter()
            .find(|status| status.as_str() == word)
    }
}

/// The wish for a page of records.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    pub key_id: &'a str,
    pub status: Option<Status>,
    /// In milliseconds since 1970; 0: all.
    pub since: u64,
    /// Only records before this one; its own id was the last of the previous page.
    pub before: Option<GenerationId>,
    pub limit: u32,
    /// The last record is the one with which their texts reach this size.
    pub bytes_max: usize,
}

/// How much is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Records that were created before this time go, in milliseconds since 1970.
    pub oldest: u64,
    pub records: u64,
}
