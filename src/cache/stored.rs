//! The level in the daemon's own store, behind memory: entries that survive a restart.
//!
//! Owns the way of entries to the store's thread and back, by the policy of the configuration. Must
//! never block a caller, and never make a request wait longer than a bound: a store that fails is a
//! miss at once, and one that is slow is a miss after `cache.store_timeout`.
//!
//! | policy | a miss in memory | a new result |
//! | --- | --- | --- |
//! | cache-aside | is computed | is written beside its response, once |
//! | read-through | is looked up here | is written beside its response, once |
//! | write-through | is looked up here | is written before its response ends |
//! | write-behind | is looked up here | waits in a bounded queue, and is written in groups |
//!
//! Invariants:
//!  1. The caller of an accepted look-up hears of it, whatever becomes of the store's thread.
//!  2. While one look-up or write is overdue, no request waits for another one: a store that stands
//!     still delays the requests of one moment, not each one that follows.
//!  3. An entry that was purged after it was complete is not written, or is deleted again: the
//!     store has several threads, and a purge's delete does not see a write under way. So each
//!     write looks once more when it is committed. A purge is noted before its delete is submitted,
//!     so one of the two sees the other.
//!
//! Mutations that tests catch are listed in `tests/policies.rs` and beside the tests below.

use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::sealed::{EntryId, HEADER_BYTES, open};
use super::shared::Verdict;
use super::timer::Timer;
use crate::config::{Cache, CachePolicy};
use crate::core::{Moment, UnixMillis};
use crate::limits::cache as limits;
use crate::store::interface::entries::EntryRow;
use crate::store::pending::{EntryWrite, Written};
use crate::store::{Requests, Store, StoreError, StoreTask};

crate::families! {
    /// Entries of the cache in the store.
    pub struct StoredSeries {
        /// Look-ups of entries in the store.
        lookups: Counter = "cache_store_lookups" [ verdict: Verdict ],
            "autoglmd.cache.store.lookup";
        /// Look-ups that were given up because the store was slow.
        late: Counter = "cache_store_late", "autoglmd.cache.store.late";
        /// Writes of entries to the store.
        writes: Counter = "cache_store_writes" [ outcome: Written ], "autoglmd.cache.store.write";
        /// Responses that ended without their entry, although the policy is write-through.
        unconfirmed: Counter = "cache_store_unconfirmed", "autoglmd.cache.store.unconfirmed";
    }
}

crate::label!(Written, as_str, Written::ALL, 0);

/// See the file's head.
pub struct StoreLevel {
    requests: Arc<Requests>,
    policy: CachePolicy,
    timeout: Duration,
    series: Arc<StoredSeries>,
    timer: Timer,
    overdue: Arc<AtomicUsize>,
}

/// A result on its way to the store.
pub struct Kept {
    pub row: EntryRow,
    /// Returns whether it was not purged meanwhile.
    pub is_wanted: Arc<dyn Fn() -> bool + Send + Sync>,
}

impl StoreLevel {
    pub fn new(
        requests: Arc<Requests>,
        config: &Cache,
        series: Arc<StoredSeries>,
        timer: Timer,
    ) -> StoreLevel {
        StoreLevel {
            requests,
            policy: config.policy,
            timeout: config.store_timeout,
            series,
            timer,
            overdue: Arc::default(),
        }
    }

    /// Returns whether a response ends only once its entry is written.
    pub fn writes_first(&self) -> bool {
        self.policy == CachePolicy::WriteThrough
    }

    /// Looks an entry up. `true`: `found` will be called on another thread, with `None` if the
    /// store is slow, and then perhaps once more. `false`: it is a miss.
    pub fn get(&self, id: EntryId, found: Found) -> bool {
        if self.policy == CachePolicy::CacheAside {
            return false;
        }
        let watch = Watch::new(&self.overdue);
        let task = Find {
            id,
            row: None,
            found: Arc::clone(&found),
            watch: Arc::clone(&watch),
            series: Arc::clone(&self.series),
        };
        let (late, series) = (Arc::clone(&watch), Arc::clone(&self.series));
        let watched = move || {
            if late.end_patience() {
                series.late.inc();
                found(None);
            }
        };
        let accepted = !self.is_out_of_order()
            && self.timer.at(Moment::now() + self.timeout, watched)
            && self.requests.submit(id.tenant, Box::new(task)).is_ok();
        if !accepted {
            self.series.lookups.get(Verdict::Lost).inc();
            watch.answer();
        }
        accepted
    }

    fn is_out_of_order(&self) -> bool {
        self.overdue.load(Ordering::Relaxed) > 0 || self.requests.health().is_failing()
    }

    /// Writes an entry beside its response, or behind it.
    pub fn put(&self, kept: Kept) {
        let series = Arc::clone(&self.series);
        let report = move |written| _ = series.writes.get(written).inc();
        self.write(kept, report);
    }

    /// Writes an entry, then lets its response end: `conclude` is called once, at the latest after
    /// [`limits::STORE_WRITE_FACTOR`] timeouts, perhaps on this thread.
    pub fn put_first(&self, kept: Kept, conclude: impl FnOnce() + Send + 'static) {
        let held = Arc::new(Held(Mutex::new(Some(Box::new(conclude)))));
        let watch = Watch::new(&self.overdue);
        let late = (
            Arc::clone(&watch),
            Arc::clone(&held),
            Arc::clone(&self.series),
        );
        let watched = move || {
            let (watch, held, series) = late;
            if watch.end_patience() {
                series.unconfirmed.inc();
                held.conclude();
            }
        };
        let is_watched = !self.is_out_of_order()
            && !is_too_long(&kept)
            && self.timer.at(
                Moment::now() + self.timeout * limits::STORE_WRITE_FACTOR,
                watched,
            );
        if !is_watched {
            self.series.unconfirmed.inc();
            watch.answer();
            held.conclude();
        }
        let series = Arc::clone(&self.series);
        self.write(kept, move |written| {
            series.writes.get(written).inc();
            if watch.answer() && written != Written::Stored {
                series.unconfirmed.inc();
            }
            held.conclude();
        });
    }

    /// Deletes the entries of a tenant, or all, step by step and behind other tasks. A store that
    /// does not work is tried again for a while.
    pub fn delete(&self, tenant: Option<u64>) {
        Erase::new(Target::Tenant(tenant), &self.requests, &self.timer).submit();
    }

    /// A longer entry stays in memory, and nothing is reported.
    fn write(&self, kept: Kept, report: impl FnOnce(Written) + Send + 'static) {
        if is_too_long(&kept) {
            return;
        }
        let Kept { row, is_wanted } = kept;
        let (digest, tenant, created_at) = (row.digest, row.tenant, row.created_at);
        let may_stay = Arc::clone(&is_wanted);
        // Weak: the write may wait in the queue of these requests.
        let (requests, timer) = (Arc::downgrade(&self.requests), self.timer.clone());
        let report = move |written| {
            if written == Written::Stored
                && !may_stay()
                && let Some(requests) = requests.upgrade()
            {
                let entry = Target::Entry {
                    digest,
                    tenant,
                    created_at,
                };
                Erase::new(entry, &requests, &timer).submit();
            }
            report(written);
        };
        let write = EntryWrite::new(row, move || is_wanted(), report);
        match self.policy {
            CachePolicy::WriteBehind => self.requests.entries().push(write),
            // One that is refused is reported; the entry stays in memory.
            _ => _ = self.requests.submit(tenant, Box::new(write)),
        }
    }
}

fn is_too_long(kept: &Kept) -> bool {
    kept.row.value.len() > HEADER_BYTES + limits::SHARED_ENTRY_BYTES_MAX
}

/// Receives an entry, or `None` for a miss, on another thread: it must be quick. Perhaps called
/// twice.
pub type Found = Arc<dyn Fn(Option<Vec<u8>>) + Send + Sync>;

/// The end of a response, which happens once.
struct Held(Mutex<Option<Box<dyn FnOnce() + Send>>>);

impl Held {
    fn conclude(&self) {
        // Called without the lock: the end of a response reaches mailboxes.
        let conclude = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(conclude) = conclude {
            conclude();
        }
    }
}

/// Sees to it that a task of the store counts as overdue from the end of its patience until it has
/// ended.
struct Watch {
    state: AtomicU8,
    overdue: Arc<AtomicUsize>,
}

const WAITING: u8 = 0;
const ANSWERED: u8 = 1;
const OVERDUE: u8 = 2;

impl Watch {
    fn new(overdue: &Arc<AtomicUsize>) -> Arc<Watch> {
        Arc::new(Watch {
            state: AtomicU8::new(WAITING),
            overdue: Arc::clone(overdue),
        })
    }

    /// Returns whether the task has not ended yet.
    fn end_patience(&self) -> bool {
        // Before the state: an answer takes it back at once.
        self.overdue.fetch_add(1, Ordering::Relaxed);
        let is_late = self
            .state
            .compare_exchange(WAITING, OVERDUE, Ordering::AcqRel, Ordering::Acquire)
            .is_ok();
        if !is_late {
            self.overdue.fetch_sub(1, Ordering::Relaxed);
        }
        is_late
    }

    /// Notes that the task has ended. Returns whether it did so in time, and for the first time.
    fn answer(&self) -> bool {
        match self.state.swap(ANSWERED, Ordering::AcqRel) {
            WAITING => true,
            OVERDUE => {
                self.overdue.fetch_sub(1, Ordering::Relaxed);
                false
            }
            _ => false,
        }
    }
}

/// A task that is dropped is not overdue any more.
impl Drop for Watch {
    fn drop(&mut self) {
        if *self.state.get_mut() == OVERDUE {
            self.overdue.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Looks an entry up.
struct Find {
    id: EntryId,
    row: Option<EntryRow>,
    found: Found,
    watch: Arc<Watch>,
    series: Arc<StoredSeries>,
}

impl StoreTask for Find {
    fn run(&mut self, store: &mut dyn Store) -> Result<(), StoreError> {
        self.row = store.find_entry(&self.id.digest, UnixMillis::now().as_u64())?;
        Ok(())
    }

    fn finish(mut self: Box<Self>, result: Result<(), &StoreError>) {
        let row = self.row.take();
        let (verdict, entry) = match (result, row) {
            (Err(_), _) => (Verdict::Lost, None),
            (Ok(()), None) => (Verdict::Miss, None),
            (Ok(()), Some(row)) => match open(self.id, row.value) {
                Some(entry) => (Verdict::Hit, Some(entry)),
                None => (Verdict::Foreign, None),
            },
        };
        self.series.lookups.get(verdict).inc();
        self.watch.answer();
        (self.found)(entry);
    }
}

/// The entries that are deleted.
#[derive(Clone, Copy)]
enum Target {
    /// Those of a tenant, or all.
    Tenant(Option<u64>),
    /// One, or an older one of its name.
    Entry {
        digest: [u8; 32],
        tenant: u64,
        created_at: u64,
    },
}

/// How a step of a delete has left its entries.
enum Rest {
    None,
    /// The step has reached its bound.
    More,
    /// Another transaction has the entry.
    Locked,
}

/// Deletes entries.
struct Erase {
    target: Target,
    /// After the last step.
    rest: Rest,
    /// Those that failed.
    attempts: u32,
    requests: Arc<Requests>,
    timer: Timer,
}

impl Erase {
    fn new(target: Target, requests: &Arc<Requests>, timer: &Timer) -> Erase {
        Erase {
            target,
            rest: Rest::None,
            attempts: 0,
            requests: Arc::clone(requests),
            timer: timer.clone(),
        }
    }

    fn submit(self) {
        let requests = Arc::clone(&self.requests);
        let tenant = match self.target {
            Target::Tenant(tenant) => tenant.unwrap_or(0),
            Target::Entry { tenant, .. } => tenant,
        };
        // In the line of its tenant, so behind the writes that came before. A refused one tries
        // again.
        let _ = requests.submit(tenant, Box::new(self));
    }

    fn try_again(mut self) {
        self.attempts += 1;
        if self.attempts < limits::ERASE_ATTEMPTS_MAX {
            let timer = self.timer.clone();
            timer.at(Moment::now() + limits::ERASE_PAUSE, move || self.submit());
        }
    }
}

impl StoreTask for Erase {
    fn refuse(self: Box<Self>) {
        self.try_again();
    }

    fn run(&mut self, store: &mut dyn Store) -> Result<(), StoreError> {
        let most = limits::ERASED_ENTRIES_MAX;
        self.rest = match &self.target {
            Target::Tenant(tenant) => match store.erase_entries(*tenant, most)? == most {
                true => Rest::More,
                false => Rest::None,
            },
            Target::Entry {
                digest, created_at, ..
            } => match store.erase_entry(digest, *created_at)? {
                true => Rest::None,
                false => Rest::Locked,
            },
        };
        Ok(())
    }

    fn finish(self: Box<Self>, result: Result<(), &StoreError>) {
        match (result, &self.rest) {
            (Ok(()), Rest::None) => {}
            (Ok(()), Rest::More) => self.submit(),
            (Ok(()), Rest::Locked) | (Err(_), _) => self.try_again(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mutations: `answer` that leaves the count, `end_patience` that counts an answered task.
    #[test]
    fn a_task_is_overdue_from_the_end_of_its_patience_until_it_ends() {
        let overdue = Arc::new(AtomicUsize::new(0));
        let count = || overdue.load(Ordering::Relaxed);
        let in_time = Watch::new(&overdue);
        assert!(in_time.answer());
        assert!(!in_time.end_patience());
        assert_eq!(count(), 0);
        let late = Watch::new(&overdue);
        assert!(late.end_patience());
        assert_eq!(count(), 1);
        assert!(!late.answer());
        assert_eq!(count(), 0);
        let lost = Watch::new(&overdue);
        assert!(lost.end_patience());
        drop(lost);
        assert_eq!(count(), 0);
    }
}
