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

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use super::entry::Entry;
use super::flight::{Flight, Follower, served};
use super::key::{Digest, digest};
use super::metrics::Verdicts;
use super::shards::part;
use super::table::{FLIGHTS, Finished, Left, Next, Pinned, Table};
use crate::config::Cache;
use crate::core::Moment;
use crate::core::buffered::{Account, Claim};
use crate::engine::{
    CacheMode, Deliver, Done, Engine, Event, FailReason, Failed, Gauges, Job, Kept, ModelInfo,
    Refused, State, Timings, Usage, Verdict,
};
use crate::error::ErrorCode;
use crate::limits::cache as limits;
use crate::offload::{CancelReason, JobKey};

/// The results of all requests, running and finished.
pub struct Results {
    shards: Box<[Mutex<Table>]>,
    outer: Arc<dyn Deliver>,
    /// The account of a running flight's text.
    buffered: Account,
    clock: Clock,
    is_enabled: AtomicBool,
    /// In milliseconds.
    ttl: AtomicU64,
    /// Entries that were complete by then are forgotten; in microseconds. By tenant, several of
    /// which may share one, and for all.
    forgotten: Box<[AtomicU64]>,
    forgotten_of_all: AtomicU64,
    evicted: AtomicU64,
    verdicts: Verdicts,
}

/// Returns the present moment.
pub type Clock = Box<dyn Fn() -> Moment + Send + Sync>;

/// See the file's head.
pub struct Cached {
    results: Arc<Results>,
    inner: Arc<dyn Engine>,
    /// Once it is known; it never changes.
    model: OnceLock<ModelInfo>,
    is_draining: AtomicBool,
}

impl Cached {
    /// `inner` must deliver its events to `results`.
    pub fn new(results: Arc<Results>, inner: Arc<dyn Engine>) -> Cached {
        Cached {
            results,
            inner,
            model: OnceLock::new(),
            is_draining: AtomicBool::new(false),
        }
    }

    /// Returns the digest of a job whose result may be another one's.
    fn digest_of(&self, job: &Job) -> Option<Digest> {
        // Relaxed: a switch, which publishes no other data.
        let is_enabled = self.results.is_enabled.load(Ordering::Relaxed);
        if job.cache == CacheMode::Bypass || !is_enabled {
            return None;
        }
        let model = match self.model.get() {
            Some(model) => model,
            None => {
                let model = self.inner.model()?;
                self.model.get_or_init(|| model)
            }
        };
        digest(job, model)
    }

    /// Submits the job of a new flight, and if its deadline is too early for the engine, that of
    /// another follower. Returns the engine's refusal of the first one.
    fn launch(&self, digest: Digest, flight: JobKey, mut job: Job) -> Result<(), Refused> {
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
            let next = self
                .results
                .shard(&digest)
                .handle_refused(flight, first, &refused);
            if result.is_ok() {
                result = Err(refused.clone());
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
}

impl Engine for Cached {
    fn submit(&self, job: Job) -> Result<(), Refused> {
        if self.is_draining.load(Ordering::Relaxed) {
            return Err(Refused::Draining);
        }
        let verdicts = &self.results.verdicts;
        let Some(digest) = self.digest_of(&job) else {
            verdicts.count(Verdict::Bypass);
            return self.inner.submit(job);
        };
        let now = job.submitted;
        let mut table = self.results.shard(&digest);
        if job.cache == CacheMode::Use
            && let Some(entry) = table.find(&digest, now)
            && !self.results.is_forgotten(&entry, job.tenant)
        {
            drop(table);
            verdicts.count(Verdict::Hit);
            self.results.play(digest, &job, entry, now);
            return Ok(());
        }
        let mut events = Vec::new();
        // Allocates for a request that is computed or joins: a flight may keep the job.
        let job = match table.join(&digest, Box::new(job), &mut events) {
            Ok(()) => {
                drop(table);
                verdicts.count(Verdict::Joined);
                self.results.outer.deliver(&mut events);
                return Ok(());
            }
            Err(job) => job,
        };
        let share = self.results.buffered.share(Claim::Keyed);
        let flight = table.begin(digest, &job, share);
        drop(table);
        verdicts.count(Verdict::Miss);
        self.launch(digest, flight, *job)
    }

    fn cancel(&self, key: JobKey) {
        if !self.leave(key, false) {
            self.inner.cancel(key);
        }
    }

    fn handle_credit(&self, key: JobKey) {
        if !self.results.serve(key) {
            self.inner.handle_credit(key);
        }
    }

    fn handle_deadline(&self, key: JobKey) {
        if !self.leave(key, true) {
            self.inner.handle_deadline(key);
        }
    }

    fn state(&self) -> State {
        self.inner.state()
    }

    fn model(&self) -> Option<ModelInfo> {
        self.inner.model()
    }

    fn gauges(&self) -> Gauges {
        Gauges {
            kept: self.results.kept(),
            ..self.inner.gauges()
        }
    }

    fn forget(&self, tenant: Option<u64>) {
        self.results.forget(tenant);
        self.inner.forget(tenant);
    }

    fn free_forgotten(&self, tenant: Option<u64>) {
        self.results.free_forgotten(tenant);
        self.inner.free_forgotten(tenant);
    }

    fn drain(&self) {
        self.is_draining.store(true, Ordering::Relaxed);
        self.inner.drain();
    }
}

impl Cached {
    /// Lets a follower leave. Returns whether it was one.
    fn leave(&self, key: JobKey, is_overdue: bool) -> bool {
        match self.results.leave(key, is_overdue) {
            Left::Unknown => return false,
            Left::Stays => {}
            Left::Last(job) => self.inner.cancel(job),
            Left::Overdue(job) => self.inner.handle_deadline(job),
            Left::Gone(follower, text) => {
                let failed = Failed {
                    text,
                    ..failed(FailReason::Error(ErrorCode::EngineFailed))
                };
                self.results
                    .outer
                    .deliver_one(key, failed_for(failed, &follower));
            }
        }
        true
    }
}

impl Results {
    /// Results for the destination `outer`, whose running text `buffered` counts.
    pub fn new(
        outer: Arc<dyn Deliver>,
        buffered: Account,
        config: &Cache,
        verdicts: Verdicts,
        clock: Clock,
    ) -> Results {
        let bytes = part(bound(config));
        let shard = |index| Mutex::new(Table::new(index, bytes));
        Results {
            shards: (0..limits::SHARDS as u32).map(shard).collect(),
            outer,
            buffered,
            clock,
            is_enabled: AtomicBool::new(config.enabled),
            ttl: AtomicU64::new(config.ttl.as_millis() as u64),
            forgotten: (0..limits::EPOCH_BUCKETS)
                .map(|_| AtomicU64::new(0))
                .collect(),
            forgotten_of_all: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
            verdicts,
        }
    }

    /// Puts the settings of a reload in force. A lower bound is reached in steps, because a reactor
    /// may wait for a shard.
    pub fn apply(&self, config: &Cache) {
        self.is_enabled.store(config.enabled, Ordering::Relaxed);
        self.ttl
            .store(config.ttl.as_millis() as u64, Ordering::Relaxed);
        let (now, bound) = ((self.clock)(), part(bound(config)));
        for shard in &self.shards {
            loop {
                let mut removed = Vec::new();
                let mut table = lock(shard);
                let step = table.entries.bytes();
                let step = step.saturating_sub(limits::SHRINK_STEP_BYTES);
                table
                    .entries
                    .set_max_bytes(step.max(bound), now, &mut removed);
                drop(table);
                self.count_evicted(removed.len());
                if step <= bound {
                    break;
                }
            }
        }
    }

    fn count_evicted(&self, count: usize) {
        // Relaxed: a total, which publishes no other data.
        self.evicted.fetch_add(count as u64, Ordering::Relaxed);
    }

    fn kept(&self) -> Kept {
        let mut kept = Kept {
            evicted: self.evicted.load(Ordering::Relaxed),
            ..Kept::default()
        };
        for shard in &self.shards {
            let table = lock(shard);
            kept.results += table.entries.len();
            kept.bytes += table.entries.bytes();
            kept.max_bytes += table.entries.max_bytes();
        }
        kept
    }

    /// A tenant's number is a part of a hash, so its lower bits spread.
    fn forgotten_of(&self, tenant: u64) -> &AtomicU64 {
        &self.forgotten[tenant as usize % limits::EPOCH_BUCKETS]
    }

    fn forget(&self, tenant: Option<u64>) {
        let forgotten = tenant.map_or(&self.forgotten_of_all, |tenant| self.forgotten_of(tenant));
        forgotten.fetch_max((self.clock)().as_micros(), Ordering::AcqRel);
    }

    fn is_forgotten(&self, entry: &Entry, tenant: u64) -> bool {
        let of_all = self.forgotten_of_all.load(Ordering::Acquire);
        let of_tenant = self.forgotten_of(tenant).load(Ordering::Acquire);
        let until = of_all.max(of_tenant);
        until > 0 && entry.completed.as_micros() <= until
    }

    fn free_forgotten(&self, tenant: Option<u64>) {
        for shard in &self.shards {
            let mut removed = Vec::new();
            // Dropped after the lock.
            let _all = {
                let mut table = lock(shard);
                match tenant {
                    Some(tenant) => {
                        table.entries.remove_tenant(tenant, &mut removed);
                        None
                    }
                    None => Some(table.entries.take_all()),
                }
            };
        }
    }

    /// The digest is a hash already. Clients cannot aim at one shard for less than it costs them to
    /// fill it in any case.
    fn shard(&self, digest: &Digest) -> MutexGuard<'_, Table> {
        lock(&self.shards[digest[0] as usize % limits::SHARDS])
    }

    fn shard_of(&self, flight: JobKey) -> MutexGuard<'_, Table> {
        lock(&self.shards[flight.request as usize % limits::SHARDS])
    }

    fn ttl(&self) -> Duration {
        Duration::from_millis(self.ttl.load(Ordering::Relaxed))
    }

    /// Plays an entry to a request.
    fn play(&self, digest: Digest, job: &Job, entry: Arc<Entry>, now: Moment) {
        let mut follower = Follower::new(job, Verdict::Hit);
        let served = entry.served(Verdict::Hit, now);
        let mut events = Vec::new();
        if follower.is_streamed() {
            follower.serve(&entry.text, served, usize::MAX, &mut events);
        }
        let rest = entry.text.len() - follower.offset;
        if !follower.is_streamed() || rest <= limits::PIECE_BYTES_MAX {
            events.push((job.key, entry.done(follower.offset, served)));
        } else {
            // Before the delivery: after it the client may return credit.
            let mut share = self.buffered.share(Claim::Keyed);
            share.set(entry.text.len());
            let pinned = Arc::new(Pinned {
                entry,
                _share: share,
            });
            self.shard(&digest).insert_replay(follower, pinned);
        }
        self.outer.deliver(&mut events);
    }

    /// Sends a follower what its credit allows. Returns whether it is one.
    fn serve(&self, key: JobKey) -> bool {
        let (now, mut events) = ((self.clock)(), Vec::new());
        let mut shards = self.shards.iter();
        let is_here = shards.any(|shard| lock(shard).serve(key, now, &mut events));
        self.outer.deliver(&mut events);
        is_here
    }

    fn leave(&self, key: JobKey, is_overdue: bool) -> Left {
        let now = (self.clock)();
        let left = self.shards.iter().map(|shard| {
            let mut table = lock(shard);
            table.leave(key, is_overdue, now)
        });
        let mut known = left.filter(|left| !matches!(left, Left::Unknown));
        known.next().unwrap_or(Left::Unknown)
    }

    fn refuse(&self, followers: Vec<Follower>, refused: &Refused) {
        let fail = |follower: Follower| {
            let failed = failed(FailReason::Refused(refused.clone()));
            (follower.key, failed_for(failed, &follower))
        };
        let mut events = followers.into_iter().map(fail).collect();
        self.outer.deliver(&mut events);
    }

    /// Handles an event of a flight's job; appends those of its followers.
    fn handle(&self, job: JobKey, event: Event, now: Moment, events: &mut Vec<(JobKey, Event)>) {
        match event {
            // The engine behind has a cache of its own; its followers see this one's verdict.
            Event::Served(_) => {}
            Event::Token { text } => self.shard_of(job).push(job, &text, events),
            Event::Done(done) => {
                let finished = self.shard_of(job).finish(job, &done, self.ttl(), now);
                if let Some(finished) = finished {
                    self.end(job, &done, finished, now, events);
                }
            }
            Event::Failed(failed) => {
                let closed = self.shard_of(job).close(job);
                if let Some((flight, followers)) = closed {
                    fail(flight, followers, &failed, events);
                }
            }
        }
    }

    fn end(
        &self,
        job: JobKey,
        done: &Done,
        finished: Finished,
        now: Moment,
        events: &mut Vec<(JobKey, Event)>,
    ) {
        let Finished {
            entry,
            followers,
            lagging,
            removed,
        } = finished;
        for follower in followers {
            let event = match follower.verdict {
                Verdict::Miss => Event::Done(Box::new(Done {
                    text: entry.text[follower.offset..].to_owned(),
                    finish_reason: done.finish_reason,
                    usage: done.usage,
                    timings: done.timings,
                    served: served(Verdict::Miss, entry.origin),
                })),
                verdict => entry.done(follower.offset, entry.served(verdict, now)),
            };
            events.push((follower.key, event));
        }
        for key in lagging {
            self.shard_of(job).serve(key, now, events);
        }
        self.count_evicted(removed.len());
        drop(removed);
    }
}

#[cfg(test)]
impl Results {
    pub fn is_empty(&self) -> bool {
        self.shards.iter().all(|shard| lock(shard).is_empty())
    }

    /// Returns the requests that wait for a job; `None`: it is not a flight's.
    pub fn waiting(&self, job: JobKey) -> Option<Vec<JobKey>> {
        let is_flight = job.reactor == FLIGHTS;
        is_flight.then(|| self.shard_of(job).followers(job))
    }

    pub fn check_invariants(&self) {
        self.shards
            .iter()
            .for_each(|shard| lock(shard).check_invariants());
    }
}

impl Deliver for Results {
    fn deliver(&self, events: &mut Vec<(JobKey, Event)>) {
        if events.iter().all(|(key, _)| key.reactor != FLIGHTS) {
            return self.outer.deliver(events);
        }
        let (now, mut out) = ((self.clock)(), Vec::new());
        for (key, event) in events.drain(..) {
            match key.reactor {
                FLIGHTS => self.handle(key, event, now, &mut out),
                _ => out.push((key, event)),
            }
        }
        self.outer.deliver(&mut out);
    }
}

/// Fails all followers of a flight.
fn fail(
    flight: Flight,
    followers: Vec<Follower>,
    failed: &Failed,
    events: &mut Vec<(JobKey, Event)>,
) {
    let text = flight.text + &failed.text;
    for follower in followers {
        let failed = Failed {
            reason: failed.reason.clone(),
            message: failed.message.clone(),
            text: text[follower.offset..].to_owned(),
            // One of them pays.
            usage: match follower.verdict {
                Verdict::Miss => failed.usage,
                _ => Usage::default(),
            },
            timings: failed.timings,
        };
        events.push((follower.key, failed_for(failed, &follower)));
    }
}

/// Returns the failure of a job that has cost nothing.
fn failed(reason: FailReason) -> Failed {
    Failed {
        reason,
        message: String::new(),
        text: String::new(),
        usage: Usage::default(),
        timings: Timings::default(),
    }
}

/// Returns the failure of a follower. One that has left for a reason of its own gets that one.
fn failed_for(failed: Failed, follower: &Follower) -> Event {
    let (reason, message) = match follower.left {
        None => (failed.reason, failed.message),
        Some(CancelReason::Deadline) => (
            FailReason::Error(ErrorCode::GenerationTimeout),
            "the request timed out; raise `timeout` or lower `max_tokens`".to_owned(),
        ),
        Some(reason) => {
            let message = "the request was cancelled".to_owned();
            (FailReason::Cancelled(reason), message)
        }
    };
    Event::Failed(Box::new(Failed {
        reason,
        message,
        ..failed
    }))
}

/// Returns the bound of this level.
fn bound(config: &Cache) -> usize {
    match config.enabled {
        true => config.max_size / limits::LEVEL_SIZE_DIVISOR,
        false => 0,
    }
}

/// No call leaves a table half changed.
fn lock(shard: &Mutex<Table>) -> MutexGuard<'_, Table> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}
