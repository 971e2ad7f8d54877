//! All results, running and finished, and the way of events to those that wait for them.
//!
//! Owns the shards of flights and entries. The engine behind delivers its events here, on any
//! thread; those of a flight's job become events of its followers, and all others pass by. A
//! shard's lock is held for look-ups, edits of lists and copies of a bounded number of bytes, never
//! across a call of an engine, of a mailbox or of the shared level.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use super::entry::Entry;
use super::flight::{Flight, Follower, served};
use super::key::Digest;
use super::metrics::Verdicts;
use super::shards::part;
use super::shared::{EntryId, SharedLevel};
use super::table::{FLIGHTS, Finished, Left, Pinned, Table};
use crate::config::Cache;
use crate::core::buffered::Account;
use crate::core::buffered::Claim;
use crate::core::{Moment, UnixMillis};
use crate::engine::{
    Deliver, Done, Event, FailReason, Failed, Job, Kept, ModelInfo, Refused, Timings, Usage,
    Verdict,
};
use crate::error::ErrorCode;
use crate::limits::cache as limits;
use crate::offload::{CancelReason, JobKey};

/// The results of all requests, running and finished.
pub struct Results {
    shards: Box<[Mutex<Table>]>,
    pub outer: Arc<dyn Deliver>,
    /// The account of a running flight's text.
    pub buffered: Account,
    pub clock: Clock,
    pub is_enabled: AtomicBool,
    /// In milliseconds.
    ttl: AtomicU64,
    /// Entries that were complete by then are forgotten; in microseconds. By tenant, several of
    /// which may share one, and for all.
    forgotten: Box<[AtomicU64]>,
    forgotten_of_all: AtomicU64,
    evicted: AtomicU64,
    pub verdicts: Verdicts,
    /// The level that daemons share.
    pub shared: Option<Arc<dyn SharedLevel>>,
    /// Once it is known; it never changes.
    pub model: OnceLock<ModelInfo>,
}

/// Returns the present moment.
pub type Clock = Box<dyn Fn() -> Moment + Send + Sync>;

impl Results {
    /// Results for the destination `outer`, whose running text `buffered` counts.
    pub fn new(
        outer: Arc<dyn Deliver>,
        buffered: Account,
        config: &Cache,
        (verdicts, shared): (Verdicts, Option<Arc<dyn SharedLevel>>),
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
            shared,
            model: OnceLock::new(),
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

    pub fn kept(&self) -> Kept {
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

    pub fn forget(&self, tenant: Option<u64>) {
        let forgotten = tenant.map_or(&self.forgotten_of_all, |tenant| self.forgotten_of(tenant));
        forgotten.fetch_max((self.clock)().as_micros(), Ordering::AcqRel);
    }

    pub fn is_forgotten(&self, entry: &Entry, tenant: u64) -> bool {
        let of_all = self.forgotten_of_all.load(Ordering::Acquire);
        let of_tenant = self.forgotten_of(tenant).load(Ordering::Acquire);
        let until = of_all.max(of_tenant);
        until > 0 && entry.completed.as_micros() <= until
    }

    pub fn free_forgotten(&self, tenant: Option<u64>) {
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
    pub fn shard(&self, digest: &Digest) -> MutexGuard<'_, Table> {
        lock(&self.shards[digest[0] as usize % limits::SHARDS])
    }

    fn shard_of(&self, flight: JobKey) -> MutexGuard<'_, Table> {
        lock(&self.shards[flight.request as usize % limits::SHARDS])
    }

    fn ttl(&self) -> Duration {
        Duration::from_millis(self.ttl.load(Ordering::Relaxed))
    }

    /// Plays an entry to a request.
    pub fn play(&self, digest: Digest, job: &Job, entry: Arc<Entry>, now: Moment) {
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
    pub fn serve(&self, key: JobKey) -> bool {
        let (now, mut events) = ((self.clock)(), Vec::new());
        let mut shards = self.shards.iter();
        let is_here = shards.any(|shard| lock(shard).serve(key, now, &mut events));
        self.outer.deliver(&mut events);
        is_here
    }

    pub fn leave(&self, key: JobKey, is_overdue: bool) -> Left {
        let now = (self.clock)();
        let left = self.shards.iter().map(|shard| {
            let mut table = lock(shard);
            table.leave(key, is_overdue, now)
        });
        let mut known = left.filter(|left| !matches!(left, Left::Unknown));
        known.next().unwrap_or(Left::Unknown)
    }

    pub fn refuse(&self, followers: Vec<Follower>, refused: &Refused) {
        let fail = |follower: Follower| {
            let failed = failed(FailReason::Refused(refused.clone()));
            (follower.key, failed_for(failed, follower.left))
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
                    self.share(&finished);
                    self.end(job, Some(&done), finished, now, events);
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

    /// Stores a new result in the level that daemons share.
    fn share(&self, finished: &Finished) {
        if let (Some(shared), Some(model)) = (&self.shared, self.model.get()) {
            let id = EntryId {
                digest: finished.digest,
                model: model.fingerprint,
            };
            let bytes = finished.entry.encode(UnixMillis::now());
            shared.put(id, &bytes, self.ttl());
        }
    }

    /// Ends a flight with the result of another daemon. Returns whether the flight was there.
    pub fn end_shared(&self, job: JobKey, entry: Entry) -> bool {
        let now = (self.clock)();
        let finished = self
            .shard_of(job)
            .finish_shared(job, entry, self.ttl(), now);
        let Some(finished) = finished else {
            return false;
        };
        let mut events = Vec::new();
        self.end(job, None, finished, now, &mut events);
        self.outer.deliver(&mut events);
        true
    }

    /// `done` is the end of the job, if one was computed.
    fn end(
        &self,
        job: JobKey,
        done: Option<&Done>,
        finished: Finished,
        now: Moment,
        events: &mut Vec<(JobKey, Event)>,
    ) {
        let Finished {
            digest: _,
            entry,
            followers,
            lagging,
            removed,
        } = finished;
        for follower in followers {
            let event = match (follower.verdict, done) {
                (Verdict::Miss, Some(done)) => Event::Done(Box::new(Done {
                    text: entry.text[follower.offset..].to_owned(),
                    finish_reason: done.finish_reason,
                    usage: done.usage,
                    timings: done.timings,
                    served: served(Verdict::Miss, entry.origin),
                })),
                (verdict, _) => entry.done(follower.offset, entry.served(verdict, now)),
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
        events.push((follower.key, failed_for(failed, follower.left)));
    }
}

/// Returns the failure of a job that has cost nothing.
pub fn failed(reason: FailReason) -> Failed {
    Failed {
        reason,
        message: String::new(),
        text: String::new(),
        usage: Usage::default(),
        timings: Timings::default(),
    }
}

/// Returns the failure of a follower. One that has left for a reason of its own gets that one.
pub fn failed_for(failed: Failed, left: Option<CancelReason>) -> Event {
    let (reason, message) = match left {
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
