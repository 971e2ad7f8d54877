//! All results, running and finished, and the way of events to those that wait for them.
//!
//! Owns the shards of flights and entries. The engine behind delivers its events here, on any
//! thread; those of a flight's job become events of its followers, and all others pass by. A
//! shard's lock is held for look-ups, edits of lists and copies of a bounded number of bytes, never
//! across a call of an engine, of a mailbox or of the shared level. A follower's events go through
//! its shard's outbox, because several threads make them ([`super::table`]).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use super::entry::{Entry, jittered};
use super::flight::{Flight, Follower, failed, failed_for, served};
use super::forgotten::Forgotten;
use super::key::Digest;
use super::metrics::Verdicts;
use super::sealed::{EntryId, seal};
use super::shards::part;
use super::shared::SharedLevel;
use super::stored::{Kept as KeptEntry, StoreLevel};
use super::table::{Credited, FLIGHTS, Finished, Left, Pinned, Table};
use crate::config::Cache;
use crate::core::buffered::Account;
use crate::core::buffered::Claim;
use crate::core::{Moment, UnixMillis};
use crate::engine::{
    Deliver, Done, Event, FailReason, Failed, Job, Kept, ModelInfo, Refused, Usage, Verdict,
};
use crate::limits::cache as limits;
use crate::offload::JobKey;
use crate::store::interface::entries::EntryRow;

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
    forgotten: Arc<Forgotten>,
    evicted: AtomicU64,
    pub verdicts: Verdicts,
    /// The level that daemons share.
    pub shared: Option<Arc<dyn SharedLevel>>,
    /// The level in the store.
    pub stored: Option<StoreLevel>,
    /// For acts of other threads; set by the engine that has it.
    pub own: OnceLock<Weak<Results>>,
    /// Once it is known; it never changes.
    pub model: OnceLock<ModelInfo>,
}

/// The levels behind memory, and the counters of this one.
pub struct Levels {
    pub verdicts: Verdicts,
    pub shared: Option<Arc<dyn SharedLevel>>,
    pub stored: Option<StoreLevel>,
}

/// Returns the present moment.
pub type Clock = Box<dyn Fn() -> Moment + Send + Sync>;

impl Results {
    /// Results for the destination `outer`, whose running text `buffered` counts.
    pub fn new(
        outer: Arc<dyn Deliver>,
        buffered: Account,
        config: &Cache,
        levels: Levels,
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
            forgotten: Arc::default(),
            evicted: AtomicU64::new(0),
            verdicts: levels.verdicts,
            shared: levels.shared,
            stored: levels.stored,
            own: OnceLock::new(),
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

    pub fn forget(&self, tenant: Option<u64>) {
        self.forgotten.note(tenant, (self.clock)());
    }

    /// Deletes the entries of a tenant, or all, behind memory; `is_ours`: also those that daemons
    /// share.
    pub fn delete_behind(&self, tenant: Option<u64>, is_ours: bool) {
        if let Some(shared) = self.shared.as_ref().filter(|_| is_ours) {
            shared.delete(tenant);
        }
        if let Some(stored) = &self.stored {
            stored.delete(tenant);
        }
    }

    /// Returns whether an entry may be used: it was not purged, and is younger than `cache.ttl`.
    /// Its own end is that of the TTL in force when it was stored, which may have been longer.
    pub fn is_valid(&self, entry: &Entry, tenant: u64, now: Moment) -> bool {
        !self.is_forgotten(entry, tenant) && entry.age(now) < self.ttl()
    }

    fn is_forgotten(&self, entry: &Entry, tenant: u64) -> bool {
        self.forgotten.covers(tenant, entry.completed)
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
        lock(&self.shards[index_in(digest)])
    }

    fn shard_of(&self, flight: JobKey) -> MutexGuard<'_, Table> {
        lock(&self.shards[index_of(flight)])
    }

    /// Delivers what a shard's outbox has.
    pub fn deliver_posted(&self, digest: &Digest) {
        self.deliver_with(1 << index_in(digest), &mut Vec::new());
    }

    /// Delivers these events and what the outboxes of these shards have, a bit for each shard, in
    /// one call, and then the events that other threads have posted to them meanwhile.
    fn deliver_with(&self, mut shards: Shards, events: &mut Vec<(JobKey, Event)>) {
        loop {
            let mut begun = 0;
            for index in indexes(shards) {
                if lock(&self.shards[index]).begin_delivery(events) {
                    begun |= 1 << index;
                }
            }
            if events.is_empty() {
                return;
            }
            self.outer.deliver(events);
            shards = 0;
            for index in indexes(begun) {
                if lock(&self.shards[index]).end_delivery() {
                    shards |= 1 << index;
                }
            }
        }
    }

    pub fn ttl(&self) -> Duration {
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
            // No table has it, so no other thread has an event for it.
            events.push((job.key, entry.done(follower.offset, served)));
            return self.outer.deliver(&mut events);
        }
        let mut share = self.buffered.share(Claim::Keyed);
        share.set(entry.text.len());
        let pinned = Arc::new(Pinned {
            entry,
            _share: share,
        });
        let mut table = self.shard(&digest);
        table.insert_replay(follower, pinned);
        table.post(&mut events);
        drop(table);
        self.deliver_posted(&digest);
    }

    /// Sends a follower what its credit allows.
    pub fn serve(&self, key: JobKey) -> Credited {
        let now = (self.clock)();
        for (index, shard) in self.shards.iter().enumerate() {
            let credited = lock(shard).serve(key, now);
            if credited != Credited::Unknown {
                self.deliver_with(1 << index, &mut Vec::new());
                return credited;
            }
        }
        Credited::Unknown
    }

    /// Lets a follower leave. One that waits for no job any more gets its terminal event.
    pub fn leave(&self, key: JobKey, is_overdue: bool) -> Left {
        let now = (self.clock)();
        for (index, shard) in self.shards.iter().enumerate() {
            let left = lock(shard).leave(key, is_overdue, now);
            match left {
                Left::Unknown => continue,
                Left::Gone => self.deliver_with(1 << index, &mut Vec::new()),
                Left::Last(_) | Left::Overdue(_) | Left::Stays => {}
            }
            return left;
        }
        Left::Unknown
    }

    pub fn refuse(&self, followers: Vec<Follower>, refused: &Refused) {
        let fail = |follower: Follower| {
            let failed = failed(FailReason::Refused(refused.clone()));
            (follower.key, failed_for(failed, follower.left))
        };
        let mut events = followers.into_iter().map(fail).collect();
        self.outer.deliver(&mut events);
    }

    /// Handles an event of a flight's job: posts those of its followers.
    fn handle(&self, job: JobKey, event: Event, now: Moment) {
        match event {
            // The engine behind has a cache of its own; its followers see this one's verdict.
            Event::Served(_) => {}
            Event::Token { text } => self.shard_of(job).push(job, &text),
            Event::Done(done) => self.finish(job, &done, now),
            Event::Failed(failed) => {
                let closed = self.shard_of(job).close(job);
                if let Some((flight, followers)) = closed {
                    let mut events = failures(flight, followers, &failed);
                    self.shard_of(job).post(&mut events);
                }
            }
        }
    }

    /// Handles the complete result of a flight.
    fn finish(&self, job: JobKey, done: &Done, now: Moment) {
        let finished = self
            .shard_of(job)
            .finish(job, done, self.ttl(), now, &self.forgotten);
        let Some(finished) = finished else {
            return;
        };
        if finished.is_kept
            && let Some(id) = self.id_of(finished.digest, finished.tenant)
        {
            self.share(id, &finished.entry);
            if let Some(stored) = self.stored.as_ref().filter(|stored| !stored.writes_first()) {
                stored.put(self.kept_entry(id, &finished.entry));
            }
        }
        self.end(job, Some(done), finished, now);
    }

    /// Has the store keep the result of a flight, which ends then.
    fn finish_after_store(&self, job: JobKey, done: Box<Done>) {
        let now = (self.clock)();
        let preview = self.shard_of(job).preview(job, &done, now, &self.forgotten);
        let kept = preview.and_then(|(digest, tenant, entry)| {
            let id = self.id_of(digest, tenant)?;
            Some(self.kept_entry(id, &entry))
        });
        let own = self.own.get().and_then(Weak::upgrade);
        let (Some(stored), Some(kept), Some(own)) = (&self.stored, kept, own) else {
            return self.conclude(job, &done);
        };
        stored.put_first(kept, move || own.conclude(job, &done));
    }

    fn conclude(&self, job: JobKey, done: &Done) {
        self.finish(job, done, (self.clock)());
        self.deliver_with(1 << index_of(job), &mut Vec::new());
    }

    /// Returns the name of an entry, once the model is known.
    pub fn id_of(&self, digest: Digest, tenant: u64) -> Option<EntryId> {
        let model = self.model.get()?.fingerprint;
        Some(EntryId {
            digest,
            model,
            tenant,
        })
    }

    /// Stores an entry in the level that daemons share, for the rest of its time.
    pub fn share(&self, id: EntryId, entry: &Entry) {
        let Some(shared) = &self.shared else {
            return;
        };
        let age = entry.age((self.clock)());
        let rest = self.ttl().saturating_sub(age);
        shared.put(id, &entry.encode(completed_before(age)), rest);
    }

    fn kept_entry(&self, id: EntryId, entry: &Entry) -> KeptEntry {
        let completed = completed_before(entry.age((self.clock)()));
        let ttl = jittered(self.ttl(), &id.digest);
        let (forgotten, moment) = (Arc::clone(&self.forgotten), entry.completed);
        KeptEntry {
            row: EntryRow {
                digest: id.digest,
                tenant: id.tenant,
                created_at: completed.as_u64(),
                expires_at: completed.as_u64().saturating_add(ttl.as_millis() as u64),
                value: seal(id, &entry.encode(completed)),
            },
            is_wanted: Arc::new(move || !forgotten.covers(id.tenant, moment)),
        }
    }

    /// Stores an entry that no request has asked for. Returns whether it had room.
    pub fn preload(&self, digest: Digest, tenant: u64, entry: Entry) -> bool {
        // A cache that is switched off has no room.
        if self.is_forgotten(&entry, tenant) {
            return false;
        }
        let (ttl, now) = (self.ttl(), (self.clock)());
        self.shard(&digest).preload(digest, tenant, entry, ttl, now)
    }

    /// Ends a flight with a result that was found behind memory. Returns whether the flight was
    /// there.
    pub fn end_found(&self, job: JobKey, entry: Entry, verdict: Verdict) -> bool {
        let now = (self.clock)();
        let finished = self
            .shard_of(job)
            .finish_found(job, entry, verdict, self.ttl(), now);
        let Some(finished) = finished else {
            return false;
        };
        self.end(job, None, finished, now);
        self.deliver_with(1 << index_of(job), &mut Vec::new());
        true
    }

    /// Posts the ends of a flight's followers. `done` is the end of the job, if one was computed.
    fn end(&self, job: JobKey, done: Option<&Done>, finished: Finished, now: Moment) {
        let Finished {
            digest,
            tenant: _,
            entry,
            is_kept: _,
            followers,
            lagging,
            removed,
        } = finished;
        let end_of = |follower: Follower| {
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
            (follower.key, event)
        };
        // They are in no table any more, so no other thread posts an event of theirs.
        let mut events = followers.into_iter().map(end_of).collect();
        let mut table = self.shard_of(job);
        table.post(&mut events);
        for key in lagging {
            // A replay, which has no job.
            let _ = table.serve(key, now);
        }
        drop(table);
        // The earlier result of the same request has not made room for another one.
        let evicted = removed.iter().filter(|(removed, _)| *removed != digest);
        self.count_evicted(evicted.count());
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
        let writes_first = self.stored.as_ref().is_some_and(StoreLevel::writes_first);
        let mut shards = 0;
        for (key, event) in events.drain(..) {
            if key.reactor != FLIGHTS {
                out.push((key, event));
                continue;
            }
            shards |= 1 << index_of(key);
            match event {
                Event::Done(done) if writes_first => self.finish_after_store(key, done),
                event => self.handle(key, event, now),
            }
        }
        self.deliver_with(shards, &mut out);
    }
}

/// Returns the failures of all followers of a flight.
fn failures(flight: Flight, followers: Vec<Follower>, failed: &Failed) -> Vec<(JobKey, Event)> {
    let text = flight.text + &failed.text;
    let fail = |follower: Follower| {
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
        (follower.key, failed_for(failed, follower.left))
    };
    followers.into_iter().map(fail).collect()
}

/// Returns the time of day at this age.
fn completed_before(age: Duration) -> UnixMillis {
    let now = UnixMillis::now().as_u64();
    UnixMillis::new(now.saturating_sub(age.as_millis() as u64))
}

/// Returns the bound of this level.
fn bound(config: &Cache) -> usize {
    match config.enabled {
        true => config.max_size / limits::LEVEL_SIZE_DIVISOR,
        false => 0,
    }
}

/// Shards, a bit for each.
type Shards = u32;

const _: () = assert!(limits::SHARDS <= Shards::BITS as usize);

fn indexes(shards: Shards) -> impl Iterator<Item = usize> {
    (0..limits::SHARDS).filter(move |index| shards & 1 << index != 0)
}

fn index_in(digest: &Digest) -> usize {
    digest[0] as usize % limits::SHARDS
}

/// Returns the index of the shard that has a flight.
fn index_of(flight: JobKey) -> usize {
    flight.request as usize % limits::SHARDS
}

/// No call leaves a table half changed.
fn lock(shard: &Mutex<Table>) -> MutexGuard<'_, Table> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}
