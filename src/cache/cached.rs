//! An engine in front of an engine: equal requests are computed once.
//!
//! Owns the shards of flights and entries, and the way of events through them. All reactors submit
//! jobs to it, and the engine behind it delivers to it, on any thread. Must never block: a shard's
//! lock is held for look-ups and edits of lists, and for copies of a bounded number of bytes; the
//! engine behind and the mailboxes are called without it.
//!
//! ```text
//!   reactors ── submit ──> Cached ── a flight's job ──> the engine behind
//!      ^                     │ hit, joined                    │
//!      └──── mailboxes <── Results (a Deliver) <── events ────┘
//! ```
//!
//! A job that has no digest, or that bypasses the cache, goes through with its own key and its own
//! ticket, and its events pass by: it costs what it cost before.
//!
//! Invariants:
//!  1. Each admitted job gets exactly one terminal event, whether it computed, followed or found
//!     its result, and whatever becomes of its flight.
//!  2. Results never cross tenants: the tenant is in the digest.
//!  3. A flight's job is submitted once, and counts once for its tenant's share of the engine and
//!     for the bounds of the queue.
//!
//! Mutations that the tests catch are listed in `tests.rs`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::entry::Entry;
use super::flight::Follower;
use super::key::{Digest, digest};
use super::results::Results;
use super::shared::FoundEntry;
use super::table::{Credited, Left, Next};
use crate::core::UnixMillis;
use crate::core::buffered::Claim;
use crate::engine::{CacheMode, Engine, Gauges, Job, ModelInfo, Refused, State, Verdict};
use crate::limits::cache as limits;
use crate::offload::JobKey;

/// See the file's head.
pub struct Cached {
    core: Arc<Core>,
    is_draining: AtomicBool,
}

/// The parts that a look-up in the shared level needs when it returns.
struct Core {
    results: Arc<Results>,
    inner: Arc<dyn Engine>,
}

impl Cached {
    /// `inner` must deliver its events to `results`.
    pub fn new(results: Arc<Results>, inner: Arc<dyn Engine>) -> Cached {
        // The first one stays; there is one engine for the results.
        let _ = results.own.set(Arc::downgrade(&results));
        Cached {
            core: Arc::new(Core { results, inner }),
            is_draining: AtomicBool::new(false),
        }
    }
}

impl Core {
    /// Returns the digest of a job whose result may be another one's.
    fn digest_of(&self, job: &Job) -> Option<Digest> {
        // Relaxed: a switch, which publishes no other data.
        let is_enabled = self.results.is_enabled.load(Ordering::Relaxed);
        if job.cache == CacheMode::Bypass || !is_enabled {
            return None;
        }
        let known = &self.results.model;
        let model = match known.get() {
            Some(model) => model,
            None => {
                let model = self.inner.model()?;
                known.get_or_init(|| model)
            }
        };
        digest(job, model)
    }

    /// Submits the job of a new flight, and if its deadline is too early for the engine, that of
    /// another follower. Returns the engine's refusal of the first one.
    fn launch(&self, digest: Digest, flight: JobKey, mut job: Job) -> Result<(), NotLaunched> {
        self.results.verdicts.count(Verdict::Miss);
        let mut result = Ok(());
        loop {
            let first = job.key;
            let ticket = {
                let mut table = self.results.shard(&digest);
                // Only its own terminal event ends a flight, and the job is not admitted yet.
                let Some(flight) = table.flight(flight) else {
                    return result;
                };
                Arc::clone(&flight.ticket)
            };
            let inner = Job {
                key: flight,
                ticket,
                cache: CacheMode::Bypass,
                ..job
            };
            let Err(refused) = self.inner.submit(inner) else {
                self.results.shard(&digest).handle_launched(flight);
                return result;
            };
            let (gone, next) = self
                .results
                .shard(&digest)
                .handle_refused(flight, first, &refused);
            if result.is_ok() {
                let refused = refused.clone();
                result = Err(NotLaunched { refused, gone });
            } else {
                // It was admitted when it joined.
                self.results.refuse(gone.into_iter().collect(), &refused);
            }
            match next {
                Next::Retry(next) => job = *next,
                Next::Over(followers) => {
                    self.results.refuse(followers, &refused);
                    return result;
                }
            }
        }
    }

    /// Asks the levels behind memory for the result of a new flight, one after the other. Returns
    /// the job if none is there; otherwise the flight ends or is launched when they have responded.
    fn ask(self: &Arc<Core>, digest: Digest, flight: JobKey, job: Box<Job>) -> Option<Box<Job>> {
        let job = self.ask_shared(digest, flight, job)?;
        self.ask_stored(digest, flight, job)
    }

    fn ask_shared(
        self: &Arc<Core>,
        digest: Digest,
        flight: JobKey,
        job: Box<Job>,
    ) -> Option<Box<Job>> {
        let (Some(shared), Some(id)) =
            (&self.results.shared, self.results.id_of(digest, job.tenant))
        else {
            return Some(job);
        };
        let deadline = job.deadline.min(job.submitted + limits::SHARED_PATIENCE);
        // The flight keeps the job: a level that is lost drops the sink and all that it owns.
        self.results.shard(&digest).flight(flight)?.asking = Some(job);
        let core = Arc::clone(self);
        let sink = move |found: Option<FoundEntry>| core.handle_shared(digest, flight, found);
        match shared.get(id, deadline, Box::new(sink)) {
            true => None,
            false => self.take_asking(&digest, flight),
        }
    }

    fn ask_stored(
        self: &Arc<Core>,
        digest: Digest,
        flight: JobKey,
        job: Box<Job>,
    ) -> Option<Box<Job>> {
        let (Some(stored), Some(id)) =
            (&self.results.stored, self.results.id_of(digest, job.tenant))
        else {
            return Some(job);
        };
        self.results.shard(&digest).flight(flight)?.asking = Some(job);
        let core = Arc::clone(self);
        let found = move |bytes: Option<Vec<u8>>| core.handle_stored(digest, flight, bytes);
        match stored.get(id, Arc::new(found)) {
            true => None,
            false => self.take_asking(&digest, flight),
        }
    }

    /// The first response of a level takes the job; a later one finds none.
    fn take_asking(&self, digest: &Digest, flight: JobKey) -> Option<Box<Job>> {
        self.results.shard(digest).flight(flight)?.asking.take()
    }

    /// Handles the shared level's response, on its thread.
    fn handle_shared(self: &Arc<Core>, digest: Digest, flight: JobKey, found: Option<FoundEntry>) {
        let Some(job) = self.take_asking(&digest, flight) else {
            return;
        };
        if let Some(entry) = found.and_then(|found| self.entry_of(found, job.tenant)) {
            self.results.verdicts.count(Verdict::Shared);
            self.results.end_found(flight, entry, Verdict::Shared);
        } else if let Some(job) = self.ask_stored(digest, flight, job) {
            self.launch_later(digest, flight, *job);
        }
    }

    /// Handles the store's response, on its thread, or the end of the patience with it.
    fn handle_stored(&self, digest: Digest, flight: JobKey, bytes: Option<Vec<u8>>) {
        let Some(job) = self.take_asking(&digest, flight) else {
            return;
        };
        let found = bytes.map(|entry| FoundEntry { entry, rest: None });
        let Some(entry) = found.and_then(|found| self.entry_of(found, job.tenant)) else {
            return self.launch_later(digest, flight, *job);
        };
        self.results.verdicts.count(Verdict::Hit);
        if let Some(id) = self.results.id_of(digest, job.tenant) {
            self.results.share(id, &entry);
        }
        self.results.end_found(flight, entry, Verdict::Hit);
    }

    fn entry_of(&self, found: FoundEntry, tenant: u64) -> Option<Entry> {
        let now = (UnixMillis::now(), (self.results.clock)());
        // Each result is put there for `cache.ttl`, less its age then. One that has more time left
        // was put there for a longer one, so its age is unknown.
        let age = match found.rest {
            Some(rest) => Some(self.results.ttl().checked_sub(rest)?),
            None => None,
        };
        let entry = Entry::decode(&found.entry, age, now)?;
        self.results
            .is_valid(&entry, tenant, now.1)
            .then_some(entry)
    }

    /// Launches a flight whose request was admitted before. One that has left meanwhile has had its
    /// end.
    fn launch_later(&self, digest: Digest, flight: JobKey, job: Job) {
        if let Err(NotLaunched { refused, gone }) = self.launch(digest, flight, job) {
            self.results.refuse(gone.into_iter().collect(), &refused);
        }
    }
}

/// The engine's refusal of a flight's first job.
struct NotLaunched {
    refused: Refused,
    /// The request whose job it was, if it still waited.
    gone: Option<Follower>,
}

impl Engine for Cached {
    fn submit(&self, job: Job) -> Result<(), Refused> {
        if self.is_draining.load(Ordering::Relaxed) {
            return Err(Refused::Draining);
        }
        let core = &self.core;
        let verdicts = &core.results.verdicts;
        let Some(digest) = core.digest_of(&job) else {
            verdicts.count(Verdict::Bypass);
            return core.inner.submit(job);
        };
        let now = job.submitted;
        let mut table = core.results.shard(&digest);
        if job.cache == CacheMode::Use
            && let Some(entry) = table.find(&digest, now)
            && core.results.is_valid(&entry, job.tenant, now)
        {
            drop(table);
            verdicts.count(Verdict::Hit);
            self.core.results.play(digest, &job, entry, now);
            return Ok(());
        }
        // Allocates for a request that is computed or joins: a flight may keep the job.
        let job = match table.join(&digest, Box::new(job)) {
            Ok(resumed) => {
                drop(table);
                verdicts.count(Verdict::Joined);
                self.core.results.deliver_posted(&digest);
                if let Some(flight) = resumed {
                    core.inner.handle_credit(flight);
                }
                return Ok(());
            }
            Err(job) => job,
        };
        let share = self.core.results.buffered.share(Claim::Keyed);
        let flight = table.begin(digest, &job, share);
        drop(table);
        let job = match job.cache {
            CacheMode::Use => core.ask(digest, flight, job),
            _ => Some(job),
        };
        let launched = job.map_or(Ok(()), |job| core.launch(digest, flight, *job));
        // Its refusal is its end, which the caller reports.
        launched.map_err(|not| not.refused)
    }

    fn cancel(&self, key: JobKey) {
        if !self.leave(key, false) {
            self.core.inner.cancel(key);
        }
    }

    fn handle_credit(&self, key: JobKey) {
        match self.core.results.serve(key) {
            Credited::Unknown => self.core.inner.handle_credit(key),
            Credited::Served => {}
            Credited::Resumed(flight) => self.core.inner.handle_credit(flight),
        }
    }

    fn handle_deadline(&self, key: JobKey) {
        if !self.leave(key, true) {
            self.core.inner.handle_deadline(key);
        }
    }

    fn state(&self) -> State {
        self.core.inner.state()
    }

    fn model(&self) -> Option<ModelInfo> {
        self.core.inner.model()
    }

    fn gauges(&self) -> Gauges {
        Gauges {
            kept: self.core.results.kept(),
            ..self.core.inner.gauges()
        }
    }

    fn forget(&self, tenant: Option<u64>) {
        self.core.results.forget(tenant);
        self.core.inner.forget(tenant);
    }

    fn delete_behind(&self, tenant: Option<u64>, is_ours: bool) {
        self.core.results.delete_behind(tenant, is_ours);
        self.core.inner.delete_behind(tenant, is_ours);
    }

    fn free_forgotten(&self, tenant: Option<u64>) {
        self.core.results.free_forgotten(tenant);
        self.core.inner.free_forgotten(tenant);
    }

    fn await_end(&self, patience: Duration) -> bool {
        self.core.inner.await_end(patience)
    }

    fn end(&self) {
        self.core.inner.end();
    }

    fn drain(&self) {
        self.is_draining.store(true, Ordering::Relaxed);
        self.core.inner.drain();
    }
}

impl Cached {
    /// Lets a follower leave. Returns whether it was one.
    fn leave(&self, key: JobKey, is_overdue: bool) -> bool {
        match self.core.results.leave(key, is_overdue) {
            Left::Unknown => return false,
            Left::Gone | Left::Stays => {}
            Left::Last(job) => self.core.inner.cancel(job),
            Left::Overdue(job) => self.core.inner.handle_deadline(job),
        }
        true
    }
}
