//! The store's own thread: takes tasks from [`Requests`], and runs them in groups.
//!
//! Owns a connection of its own to the store. It is a neighbour of [`watch`] and not a part of it:
//! that one may read a million keys for seconds, while a client waits here for its row.
//!
//! Invariants:
//!  1. Each task of a group is finished after its transaction has ended: with `Ok` only if that was
//!     committed and the task itself did not fail.
//!  2. A store that cannot be opened, or whose transaction was lost, fails the tasks of this group
//!     and nothing else: the next group opens it again.
//!  3. A record is written once or counted once as dropped, and hits of the cache are added once:
//!     those of a lost group are kept for the next.
//!  4. Dropping the handle runs what still waits, ends the thread, and waits for that.
//!  5. A transaction that the server has ended for another one's sake is run again.
//!  6. The new jobs of a group are accepted together, each with its own outcome. One that cannot be
//!     written fails alone.
//!  7. Tasks are taken before each group: records and entries that come without a pause keep none
//!     of them waiting.
//!
//! Mutations that `worker/tests.rs` catches: a commit for each task
//! (`all_waiting_tasks_share_one_commit`), no savepoint (`a_task_that_fails_leaves_nothing_...`),
//! `finish` before the commit (`a_finished_task_is_seen_by_another_connection`), a lost transaction
//! that is committed as far as it goes (`a_lost_transaction_fails_...`), a panic that is
//! passed on (`a_task_that_panics_...`), `accept` without its way out
//! (`a_job_that_cannot_be_written_...`), hits that are dropped with a lost group or added again
//! after one that was committed, an `end` that takes none (`hits_survive_a_lost_group_...`), a
//! `run` that takes tasks once nothing else waits (`a_task_is_run_while_...`).
//!
//! [`watch`]: super::watch

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use self::group::{Beside, Group, GroupBounds};
use super::behind;
use super::error::{Fault, StoreError};
use super::interface::Store;
use super::interface::usage::day_of;
use super::requests::Requests;
use super::task::StoreTask;
use super::watch::shortened;
use crate::core::UnixMillis;
use crate::limits::store as limits;
use crate::os::process::give_way;

mod group;

/// The handle. Dropping it stops the thread.
pub struct StoreWorker {
    requests: Arc<Requests>,
    thread: Option<JoinHandle<()>>,
}

impl StoreWorker {
    /// Starts the thread. `open` opens the store, now and after each failure; it must not create
    /// one.
    pub fn start(
        requests: Arc<Requests>,
        open: impl FnMut() -> Result<Box<dyn Store>, StoreError> + Send + 'static,
    ) -> Result<StoreWorker, StoreError> {
        StoreWorker::start_with(requests, open, limits::GROUP_TIME_MAX)
    }

    /// `group_time`: how long a transaction goes on taking tasks.
    pub(super) fn start_with(
        requests: Arc<Requests>,
        open: impl FnMut() -> Result<Box<dyn Store>, StoreError> + Send + 'static,
        group_time: Duration,
    ) -> Result<StoreWorker, StoreError> {
        let worker = Worker::new(Arc::clone(&requests), open, group_time);
        requests.note_worker();
        let thread = thread::Builder::new()
            .name("store-requests".into())
            .spawn(move || {
                give_way();
                worker.run();
            })
            .map_err(StoreError::Thread)?;
        Ok(StoreWorker {
            requests,
            thread: Some(thread),
        })
    }
}

impl Drop for StoreWorker {
    fn drop(&mut self) {
        self.requests.close();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the thread of the store's requests has panicked");
        }
    }
}

/// The state of the thread.
struct Worker<O> {
    requests: Arc<Requests>,
    open: O,
    /// `None` until it is needed, and after a failure.
    store: Option<Box<dyn Store>>,
    beside: Beside,
    /// When hits of the cache are taken again.
    take_hits: Instant,
    /// When a store that does not work is tried again without a task.
    retry: Instant,
    trim: Instant,
    /// About how many bytes were written since then.
    written: u64,
    /// Groups that were lost in a row to another process's lock.
    busy: u32,
    /// Whether the store fails because it is full.
    is_full: bool,
    dropped: Dropped,
    group_time: Duration,
}

impl<O: FnMut() -> Result<Box<dyn Store>, StoreError>> Worker<O> {
    fn new(requests: Arc<Requests>, open: O, group_time: Duration) -> Worker<O> {
        let now = Instant::now();
        Worker {
            requests,
            open,
            store: None,
            beside: Beside::default(),
            take_hits: now,
            retry: now,
            trim: now,
            written: 0,
            busy: 0,
            is_full: false,
            dropped: Dropped {
                logged: 0,
                since: now,
            },
            group_time,
        }
    }

    fn run(mut self) {
        let mut taken = Vec::new();
        let mut patience = limits::IDLE_INTERVAL;
        while self.requests.take(&mut taken, patience) {
            self.take_others(&mut taken);
            let is_due = !taken.is_empty() || self.is_group_due(Instant::now());
            if is_due {
                self.run_group(&mut taken);
            }
            self.look_after(Instant::now());
            // Records and entries may come without a pause, so tasks are looked for between any two
            // groups: a flood of the others must not keep them waiting.
            patience = match is_due {
                true => Duration::ZERO,
                false => limits::IDLE_INTERVAL,
            };
        }
        self.end();
    }

    fn look_after(&mut self, now: Instant) {
        self.trim_if_due(now);
        self.requests.folder().measure_if_due(now);
        let dropped = self.requests.records().dropped();
        self.dropped.log(dropped, now);
    }

    /// Writes the records, hits and entries that are left, as long as the store works. Those that
    /// still wait then are lost if this is the last thread; otherwise another one may write them.
    fn end(mut self) {
        let mut taken = Vec::new();
        self.busy = limits::BUSY_GROUP_ATTEMPTS_MAX;
        loop {
            self.take_records();
            self.take_hits();
            behind::take(&self.requests, &mut taken);
            let is_all = self.beside.is_empty() && taken.is_empty();
            if is_all || !self.run_group(&mut taken) {
                break;
            }
        }
        let (mut lost, mut entries) = (self.beside.records.len(), 0);
        if self.requests.end_worker() {
            lost += self.requests.records().waiting();
            entries = self.requests.entries().waiting();
        }
        if entries > 0 {
            log::warn!("{entries} entries of the cache are lost: the store does not work");
        }
        if lost > 0 {
            self.requests.records().count_lost(lost);
            log::warn!("{lost} generation records are lost: the store does not work");
        }
        let uncounted: u64 = self.beside.hits.values().sum();
        if uncounted > 0 {
            log::warn!("{uncounted} hits of the cache are not counted: the store does not work");
        }
    }

    fn take_records(&mut self) {
        let upkeep = self.requests.upkeep();
        let most = upkeep.transaction_records(limits::GROUP_RECORDS_MAX);
        let text = usize::try_from(upkeep.transaction_bytes() / 4).unwrap_or(usize::MAX);
        let bytes_max = text.min(limits::GROUP_RECORDS_BYTES_MAX);
        let records = self.requests.records();
        records.take(&mut self.beside.records, most, bytes_max);
    }

    /// Takes the hits of the cache, as those of today. Returns whether none is left.
    fn take_hits(&mut self) -> bool {
        let upkeep = self.requests.upkeep();
        let most = upkeep.transaction_records(limits::GROUP_HIT_KEYS_MAX);
        let day = day_of(UnixMillis::now());
        let hits = &mut self.beside.hits;
        hits.len() < most && self.requests.hits().take(hits, day, most)
    }

    /// Takes the records, hits and entries that go with the next group. Entries wait for a store
    /// that works.
    fn take_others(&mut self, taken: &mut Vec<Box<dyn StoreTask>>) {
        self.take_records();
        let now = Instant::now();
        if now >= self.take_hits && self.take_hits() {
            self.take_hits = now + limits::HITS_INTERVAL;
        }
        if !self.requests.health().is_failing() {
            behind::take(&self.requests, taken);
        }
    }

    /// Returns whether a group is due although no task waits: for records, or to see whether the
    /// store works again.
    fn is_group_due(&self, now: Instant) -> bool {
        match self.requests.health().problem() {
            None => !self.beside.is_empty(),
            Some(_) => now >= self.retry,
        }
    }

    /// Runs tasks in one transaction, all of them or as many as fit into the time of a group.
    /// Returns whether it was committed.
    fn run_group(&mut self, taken: &mut Vec<Box<dyn StoreTask>>) -> bool {
        let mut group = Group::default();
        let bounds = GroupBounds {
            time: self.group_time,
            upkeep: self.requests.upkeep(),
        };
        let beside = std::mem::take(&mut self.beside);
        let committed = match self.ready_store() {
            Ok(store) => group.run(&mut **store, &beside, taken, &bounds),
            Err(error) => {
                group.take_all(taken);
                Err(error)
            }
        };
        match &committed {
            Ok(()) => {
                self.requests.health().note_success(beside.records.len());
                (self.busy, self.is_full) = (0, false);
                self.written = self.written.saturating_add(group.written);
            }
            Err(error) => {
                self.beside = beside;
                self.note_failure(error);
                if error.is(Fault::Busy) && self.busy < limits::BUSY_GROUP_ATTEMPTS_MAX {
                    group.give_back(taken);
                    self.await_lock();
                    return false;
                }
            }
        }
        group.finish(committed.as_ref().map(|_| ()));
        committed.is_ok()
    }

    fn ready_store(&mut self) -> Result<&mut Box<dyn Store>, StoreError> {
        let open = match self.store.take() {
            Some(store) if !store.is_replaced() => store,
            _ => (self.open)()?,
        };
        Ok(self.store.insert(open))
    }

    fn note_failure(&mut self, error: &StoreError) {
        self.store = None;
        self.retry = Instant::now() + limits::STORE_RETRY_INTERVAL;
        self.is_full = error.is(Fault::Full);
        let health = self.requests.health();
        health.note_failure(match error.way_out().filter(|_| self.is_full) {
            Some(way_out) => format!("{error}; {way_out}"),
            None => error.to_string(),
        });
    }

    /// Waits before a group is run again that was lost to another process's lock. The attempt has
    /// waited itself, unless it met a process that would wait for it in turn.
    fn await_lock(&mut self) {
        let pause = limits::BUSY_PAUSE_MIN * 2u32.pow(self.busy);
        self.busy += 1;
        thread::sleep(shortened(pause, getrandom::u32().unwrap_or(0)));
    }

    /// Removes some of the records that are too many. The next step follows at once if there may be
    /// more, but behind the tasks that came meanwhile.
    fn trim_if_due(&mut self, now: Instant) {
        let upkeep = self.requests.upkeep();
        let is_due = now >= self.trim || self.written >= upkeep.transaction_bytes() / 2;
        // A full store may work again after it.
        let may_work = !self.requests.health().is_failing() || self.is_full;
        if !is_due || !may_work {
            return;
        }
        let trimmed = self
            .ready_store()
            .and_then(|store| upkeep.trim(&mut **store, UnixMillis::now()));
        match trimmed {
            Ok(trimmed) => {
                let health = self.requests.health();
                health.note_removed(trimmed.removed);
                health.set_used_bytes(trimmed.used_bytes, upkeep.shares.records_yield_at());
                self.written = 0;
                self.trim = match trimmed.removed == 0 && trimmed.entries == 0 {
                    true => now + limits::TRIM_INTERVAL,
                    false => now,
                };
            }
            Err(error) => {
                self.trim = now + limits::STORE_RETRY_INTERVAL;
                self.note_failure(&error);
            }
        }
    }
}

/// Logs dropped records, once for all of a minute.
struct Dropped {
    /// How many of them are in the log.
    logged: u64,
    since: Instant,
}

impl Dropped {
    fn log(&mut self, dropped: u64, now: Instant) {
        if dropped > self.logged && now >= self.since {
            let new = dropped - self.logged;
            log::warn!("{new} generation records were dropped: the store's queue is full");
            self.logged = dropped;
            self.since = now + limits::DROPPED_RECORDS_LOG_INTERVAL;
        }
    }
}

#[cfg(test)]
mod pressure;
#[cfg(test)]
mod tests;
