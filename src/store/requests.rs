//! The way to the store from any thread: a bounded queue of tasks, which the store's own thread
//! runs.
//!
//! Owns the waiting tasks, in a [`FairQueue`]. Must never block a caller: a task that finds no
//! place is refused at once.
//!
//! ```text
//!   reactor ── submit ──> [ FairQueue ] ── take ──> run, run, run, one commit ──> finish, ...
//!                │ Full                             (the store's thread)            │
//!                v                                                                  v
//!          the caller's business                                          the owner's mailbox
//! ```
//!
//! # Group commit
//!
//! A commit costs the time of one fsync, which is milliseconds on a disk, however much it commits.
//! So the store's thread takes all tasks that wait, runs them in one transaction, and commits once:
//! the more tasks come, the more share a commit. Each task runs at a savepoint of its own, so that
//! one that fails leaves nothing behind and does not disturb the others. `finish` is called after
//! the commit: a task that gets `Ok` is on the disk.
//!
//! # Invariants
//!
//!  1. A task that was admitted is finished once or dropped once. Never under the lock.
//!  2. After `close` nothing is admitted, but what waits is still run.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::folder::StateFolder;
use super::health::Health;
use super::hits::Hits;
use super::pending::Pending;
use super::records::Records;
use super::task::StoreTask;
use super::upkeep::Upkeep;
use crate::limits::store as limits;
use crate::offload::fair_queue::{Bounds, FairQueue};

/// There is no place left for this tenant, or the store's thread has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// See the file's head.
pub struct Requests {
    state: Mutex<State>,
    came: Condvar,
    records: Records,
    hits: Hits,
    entries: Pending,
    health: Health,
    upkeep: Mutex<Upkeep>,
    folder: StateFolder,
}

struct State {
    queue: FairQueue<Box<dyn StoreTask>>,
    /// Threads that wait to be woken.
    asleep: usize,
    /// Threads that take from here.
    workers: usize,
    is_open: bool,
}

impl Default for Requests {
    fn default() -> Requests {
        Requests::new(Bounds {
            items: limits::WAITING_ROW_TASKS_MAX,
            bytes: limits::WAITING_ROW_TASKS_BYTES_MAX,
            visit_bytes: limits::ROW_TASK_VISIT_BYTES,
            item_bytes_min: limits::ROW_TASK_BYTES_MIN,
        })
    }
}

impl Requests {
    pub fn new(bounds: Bounds) -> Requests {
        Requests {
            state: Mutex::new(State {
                queue: FairQueue::new(bounds),
                asleep: 0,
                workers: 0,
                is_open: true,
            }),
            came: Condvar::new(),
            records: Records::default(),
            hits: Hits::default(),
            entries: Pending::default(),
            health: Health::default(),
            upkeep: Mutex::default(),
            folder: StateFolder::default(),
        }
    }

    /// The records of generations go beside the tasks: no thread waits for them.
    pub fn records(&self) -> &Records {
        &self.records
    }

    /// Requests that the cache has served.
    pub fn hits(&self) -> &Hits {
        &self.hits
    }

    /// Entries of the cache that no request waits for.
    pub fn entries(&self) -> &Pending {
        &self.entries
    }

    /// Counts a thread that takes from here.
    pub fn note_worker(&self) {
        self.lock().workers += 1;
    }

    /// Counts the end of such a thread. Returns whether it was the last one.
    pub fn end_worker(&self) -> bool {
        let mut state = self.lock();
        state.workers -= 1;
        state.workers == 0
    }

    pub fn health(&self) -> &Health {
        &self.health
    }

    pub fn upkeep(&self) -> Upkeep {
        *self.upkeep.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The files in the state folder.
    pub fn folder(&self) -> &StateFolder {
        &self.folder
    }

    /// Changes how much the store keeps.
    pub fn set_upkeep(&self, upkeep: Upkeep) {
        *self.upkeep.lock().unwrap_or_else(PoisonError::into_inner) = upkeep;
    }

    /// Puts a task into its tenant's line.
    pub fn submit(&self, tenant: u64, task: Box<dyn StoreTask>) -> Result<(), Full> {
        let bytes = task.bytes();
        let mut state = self.lock();
        if !state.is_open || !state.queue.admits(tenant, bytes) {
            drop(state);
            task.refuse();
            return Err(Full);
        }
        state.queue.push(tenant, bytes, task);
        let must_wake = state.asleep > 0;
        drop(state);
        if must_wake {
            self.came.notify_one();
        }
        Ok(())
    }

    /// Moves the tasks whose turn it is to `group`, at most as many as one transaction may have.
    /// Waits for `patience` if there is none. Returns `false` if none is left and none will come.
    pub fn take(&self, group: &mut Vec<Box<dyn StoreTask>>, patience: Duration) -> bool {
        let mut state = self.lock();
        if state.is_open && state.queue.waiting() == 0 && !patience.is_zero() {
            state.asleep += 1;
            // An early wake-up only makes the caller look after its other work earlier.
            let woken = self.came.wait_timeout(state, patience);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
            state.asleep -= 1;
        }
        while group.len() < limits::GROUP_TASKS_MAX {
            match state.queue.pop() {
                Some(task) => group.push(task),
                None => break,
            }
        }
        state.is_open || !group.is_empty()
    }

    /// Admits no more tasks. Those that wait are run, and then the threads end.
    pub fn close(&self) {
        self.lock().is_open = false;
        self.came.notify_all();
    }

    /// Returns how many tasks wait.
    pub fn waiting(&self) -> usize {
        self.lock().queue.waiting()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code of a task runs under the lock, and the queue's own does not panic half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
