//! Finished responses, for requests that come again.
//!
//! The first of two levels of the cache. Reading a body, checking it and writing the response are
//! most of what a request costs beside the model's work, so this level finds a response before the
//! body is read, by a digest of everything that decides it. The level behind it is an engine in
//! front of engines: it knows when two requests that are written differently are the same.
//!
//! Owns the entries, which all reactors share, and the digest. Must never let a response reach
//! another key than the one whose request computed it.
//!
//! # Whether a response still holds
//!
//! * The digest has the id of the key, the route, the representation, `fields`, and the body as it
//!   came. Its key is derived from a secret of this process, the whole configuration in force and
//!   the model: after a reload that changes anything, or with another model, no entry is found.
//! * The state of the key (revoked, expired, its rate) is not in it: admission has checked that
//!   before, for a hit as for every other request.
//! * A request with `cache: refresh` makes the tenant's earlier responses stale, and a purge those
//!   of a tenant or of all. Entries are not searched for that: each has the *epochs* of its tenant
//!   and of all tenants at the time of its look-up, and is not found once one of them has moved on.
//!   A response that was being computed meanwhile was looked up before, so it is stale as well.
//!   Tenants share a table of epochs: a refresh also makes those of one tenant in
//!   [`limits::EPOCH_BUCKETS`] miss once.
//!
//! Invariants:
//!  1. All entries and their tables are below the bound, at any time, and a tenant cannot remove
//!     the entries of another one that has less than an equal share ([`crate::cache::lru`]).
//!  2. No lock is held while a body is copied, compressed or freed.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use memchr::memmem::Finder;

use crate::cache::lru::{Item, Lru};
use crate::cache::metrics::{CacheSeries, Figures, Level, Verdicts};
use crate::cache::shards::{Shards, part};
use crate::config::{Cache, Config};
use crate::core::Moment;
use crate::engine::ModelInfo;
use crate::error::ApiError;
use crate::http::negotiate::{ContentType, MediaType};
use crate::limits::cache as limits;
use crate::service::call::Call;
use crate::service::representation::{Media, Representation};

use super::stored_body::StoredBody;

pub type Digest = [u8; 32];

/// The responses of all reactors.
pub struct Responses {
    shards: Shards<Digest, Arc<Stored>>,
    secret: [u8; 32],
    /// By tenant, several of which may share one.
    tenant_epochs: Box<[AtomicU32]>,
    epoch_of_all: AtomicU32,
    evicted: AtomicU64,
}

/// An entry.
#[derive(Debug)]
pub struct Stored {
    digest: Digest,
    epochs: Epochs,
    stored: Moment,
    /// The age of its result then. Not the moment at which that was complete: it may lie before the
    /// beginning of this process, and of all moments.
    age_before: Duration,
    pub content: Content,
}

#[derive(Debug)]
pub enum Content {
    Whole(StoredBody),
    /// A refusal that will recur.
    Refused(ApiError),
}

/// A request whose response was not found. It is stored under the same digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Miss {
    digest: Digest,
    tenant: u64,
    epochs: Epochs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Epochs {
    of_all: u32,
    of_tenant: u32,
}

/// One reactor's tools for this level.
#[derive(Debug)]
pub struct Lookup {
    /// For the configuration in force, once the model is known.
    pub key: Option<[u8; 32]>,
    pub verdicts: Verdicts,
    bypass: Finder<'static>,
}

impl Lookup {
    pub fn new(series: &CacheSeries) -> Lookup {
        Lookup {
            key: None,
            verdicts: Verdicts::of(series, Level::Response),
            bypass: Finder::new(b"\"bypass\""),
        }
    }

    /// Returns whether a JSON body may ask for no cache. Twenty times as cheap as a digest.
    pub fn asks_for_bypass(&self, body: &[u8]) -> bool {
        self.bypass.find(body).is_some()
    }
}

impl fmt::Debug for Responses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Responses").finish_non_exhaustive()
    }
}

impl Responses {
    /// `secret` must be random, and known to no client.
    pub fn new(secret: [u8; 32], config: &Cache) -> Responses {
        Responses {
            shards: Shards::new(bound(config)),
            secret,
            tenant_epochs: (0..limits::EPOCH_BUCKETS)
                .map(|_| AtomicU32::new(0))
                .collect(),
            epoch_of_all: AtomicU32::new(0),
            evicted: AtomicU64::new(0),
        }
    }

    /// Returns the key of digests for this configuration and model.
    pub fn digest_key(&self, config: &Config, model: &ModelInfo) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_keyed(&self.secret);
        // Complete, and the same on every reactor.
        hasher.update(format!("{config:?}\n{model:?}").as_bytes());
        *hasher.finalize().as_bytes()
    }

    /// Finds the response to a request.
    pub fn find(&self, digest: Digest, tenant: u64, now: Moment) -> Result<Arc<Stored>, Miss> {
        let epochs = self.epochs(tenant);
        let found = self.shards.of(&digest).get(&digest, now).cloned();
        let miss = Miss {
            digest,
            tenant,
            epochs,
        };
        found.filter(|stored| stored.epochs == epochs).ok_or(miss)
    }

    /// Stores the response to a request. Its result has this age, and expires at that of `ttl` or
    /// somewhat earlier.
    pub fn insert(&self, miss: &Miss, content: Content, age: Duration, ttl: Duration, now: Moment) {
        let stored = Arc::new(Stored {
            digest: miss.digest,
            epochs: miss.epochs,
            stored: now,
            age_before: age,
            content,
        });
        let item = Item {
            tenant: miss.tenant,
            bytes: stored.bytes(),
            value: stored,
            expires: now + jittered(ttl, &miss.digest).saturating_sub(age),
        };
        let mut removed = Vec::new();
        let mut shard = self.shards.of(&miss.digest);
        // An item that would fill a shard alone is not stored.
        let result = shard.insert(miss.digest, item, now, &mut removed);
        drop(shard);
        let evicted = removed.iter().filter(|(digest, _)| *digest != miss.digest);
        self.count_evicted(evicted.count());
        drop(result);
    }

    /// Counts a variant that was just made of a stored body.
    pub fn resize(&self, stored: &Stored, now: Moment) {
        let mut removed = Vec::new();
        let mut shard = self.shards.of(&stored.digest);
        shard.resize(&stored.digest, stored.bytes(), now, &mut removed);
        drop(shard);
        self.count_evicted(removed.len());
    }

    /// Makes the responses of a tenant stale.
    pub fn forget(&self, tenant: u64) {
        self.tenant_epoch(tenant).fetch_add(1, Ordering::AcqRel);
    }

    /// Makes all responses stale, or those of one tenant. [`Responses::release`] frees them.
    pub fn purge(&self, tenant: Option<u64>) {
        match tenant {
            Some(tenant) => self.forget(tenant),
            None => _ = self.epoch_of_all.fetch_add(1, Ordering::AcqRel),
        }
    }

    /// Frees the memory of purged responses. Takes milliseconds, so no reactor calls it.
    pub fn release(&self, tenant: Option<u64>) {
        for shard in 0..limits::SHARDS {
            match tenant {
                None => drop(self.take_all(shard)),
                Some(tenant) => {
                    let mut removed = Vec::new();
                    self.shards.at(shard).remove_tenant(tenant, &mut removed);
                }
            }
        }
    }

    /// Sets the bound that the configuration has. In steps, because a reactor may wait for a shard.
    pub fn apply(&self, config: &Cache, now: Moment) {
        let bound = part(bound(config));
        for index in 0..limits::SHARDS {
            loop {
                let mut removed = Vec::new();
                let mut shard = self.shards.at(index);
                let step = shard.bytes().saturating_sub(limits::SHRINK_STEP_BYTES);
                shard.set_max_bytes(step.max(bound), now, &mut removed);
                drop(shard);
                self.count_evicted(removed.len());
                if step <= bound {
                    break;
                }
            }
        }
    }

    pub fn figures(&self) -> Figures {
        let mut figures = Figures {
            evicted: self.evicted.load(Ordering::Relaxed),
            ..Figures::default()
        };
        for shard in self.shards.each() {
            figures.entries += shard.len();
            figures.bytes += shard.bytes();
            figures.max_bytes += shard.max_bytes();
        }
        figures
    }

    /// A function, so that the lock ends with it.
    fn take_all(&self, shard: usize) -> Lru<Digest, Arc<Stored>> {
        self.shards.at(shard).take_all()
    }

    fn count_evicted(&self, count: usize) {
        if count > 0 {
            self.evicted.fetch_add(count as u64, Ordering::Relaxed);
        }
    }

    fn epochs(&self, tenant: u64) -> Epochs {
        Epochs {
            of_all: self.epoch_of_all.load(Ordering::Acquire),
            of_tenant: self.tenant_epoch(tenant).load(Ordering::Acquire),
        }
    }

    /// A tenant's number is a part of a hash, so its lower bits spread.
    fn tenant_epoch(&self, tenant: u64) -> &AtomicU32 {
        &self.tenant_epochs[tenant as usize % limits::EPOCH_BUCKETS]
    }
}

impl Stored {
    /// Returns the age of its result.
    pub fn age(&self, now: Moment) -> Duration {
        now.since(self.stored) + self.age_before
    }

    /// Returns the memory that it takes, with the two counters of its `Arc`.
    fn bytes(&self) -> usize {
        let own = 2 * size_of::<usize>() + size_of::<Stored>() + limits::BLOCK_BYTES;
        let block = |bytes: usize| bytes + limits::BLOCK_BYTES;
        own + match &self.content {
            Content::Whole(body) => body.blocks().map(block).sum(),
            Content::Refused(error) => {
                let param = error.param.as_deref().map_or(0, |param| block(param.len()));
                block(error.message.len()) + param
            }
        }
    }
}

/// Returns the bound of this level.
fn bound(config: &Cache) -> usize {
    match config.enabled {
        true => config.max_size / limits::LEVEL_SIZE_DIVISOR,
        false => 0,
    }
}

/// Takes up to a tenth off a TTL, so that entries which were stored together do not expire
/// together. The digest decides, which is as random as a die and the same in each run of a seed.
fn jittered(ttl: Duration, digest: &Digest) -> Duration {
    let die = u32::from(u16::from_le_bytes([digest[0], digest[1]]));
    ttl - ttl / limits::TTL_JITTER_DIVISOR * die / (u32::from(u16::MAX) + 1)
}

/// Returns the digest of everything that decides the response to a request. Each part has a fixed
/// length, or its length before it.
pub fn digest(key: &[u8; 32], call: &Call, fields: Option<&str>, body: &[u8]) -> Digest {
    // Without `..`: each fact about a request is in the digest, or named here.
    let Call {
        row: _,
        media: Media { sent, accepted },
        representation,
        body_coding,
        caller,
        // The stored body has a variant for each coding.
        accept_encoding: _,
        // Such a request goes another way.
        idempotency_key: _,
        // These are of one request alone. Its route is looked up by method and path.
        request_id: _,
        method: _,
        path: _,
        started: _,
        peer: _,
        user_agent: _,
        trace: _,
        requests: _,
        tokens: _,
        reuse: _,
    } = call;
    let mut facts = [0; 24];
    facts[0] = call.route() as u8;
    facts[1] = match representation {
        Representation::Json => 0,
        Representation::Protobuf => 1,
        Representation::Grpc(terms) => 2 + terms.encoding as u8,
    };
    facts[2] = match *sent {
        ContentType::Absent => 0,
        ContentType::Unsupported => 1,
        ContentType::Known(media) => 2 + media as u8,
    };
    facts[3] = media_fact(*accepted);
    facts[4] = body_coding.map_or(0, |coding| 1 + coding as u8);
    facts[5] = u8::from(fields.is_some());
    facts[6] = u8::from(caller.is_some());
    let fields = fields.unwrap_or_default();
    let key_id = caller.as_ref().map_or("", |caller| &caller.record.id);
    facts[8..16].copy_from_slice(&(fields.len() as u64).to_le_bytes());
    facts[16..24].copy_from_slice(&(key_id.len() as u64).to_le_bytes());
    let mut hasher = blake3::Hasher::new_keyed(key);
    hasher.update(&facts);
    hasher.update(fields.as_bytes());
    hasher.update(key_id.as_bytes());
    hasher.update(body);
    *hasher.finalize().as_bytes()
}

fn media_fact(media: Option<MediaType>) -> u8 {
    media.map_or(0, |media| 1 + media as u8)
}
