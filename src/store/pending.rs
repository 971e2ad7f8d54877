//! Entries of the cache on their way to the store.
//!
//! Owns the write of one entry, as a task, and the queue of those that no request waits for
//! (`cache.policy = "write-behind"`). The store's thread looks here several times in a second and
//! before each group, so a push wakes no thread. While the store does not work, entries wait here;
//! one that finds no place takes that of the oldest, which is dropped and counted.
//!
//! Invariants:
//!  1. Each write is reported once, also one that is dropped.
//!  2. The queue has at most `PENDING_ENTRIES_MAX` entries and `PENDING_ENTRIES_BYTES_MAX` of them.
//!  3. The entries are in the order in which they came, those of a lost group as well: so a kill
//!     loses the latest, and so does a full queue the oldest.
//!
//! Mutations that tests of [`super::behind`] catch: a queue without its bounds
//! (`the_oldest_entries_make_room`), writes of a lost group in another order
//! (`a_lost_group_comes_back_in_its_place`).

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::error::StoreError;
use super::interface::Store;
use super::interface::entries::EntryRow;
use super::task::StoreTask;
use crate::core::UnixMillis;
use crate::limits::store as limits;

/// How a write ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// It survives a power cut.
    Stored,
    /// The store did not work.
    Failed,
    /// The store's queue had no place.
    Refused,
    /// Its entry was purged meanwhile, or made room for others.
    Dropped,
}

impl Written {
    pub const ALL: [Written; 4] = [
        Written::Stored,
        Written::Failed,
        Written::Refused,
        Written::Dropped,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Written::Stored => "stored",
            Written::Failed => "failed",
            Written::Refused => "refused",
            Written::Dropped => "dropped",
        }
    }
}

/// Receives the end of a write, on any thread: it must be quick.
pub type Report = Box<dyn FnOnce(Written) + Send>;

/// The write of one entry.
pub struct EntryWrite {
    row: EntryRow,
    is_wanted: Box<dyn Fn() -> bool + Send>,
    report: Option<Report>,
    /// Its place among all that the queue has had.
    number: u64,
}

impl EntryWrite {
    pub fn new(
        row: EntryRow,
        is_wanted: impl Fn() -> bool + Send + 'static,
        report: impl FnOnce(Written) + Send + 'static,
    ) -> EntryWrite {
        EntryWrite {
            row,
            is_wanted: Box::new(is_wanted),
            report: Some(Box::new(report)),
            number: 0,
        }
    }

    pub fn report(&mut self, written: Written) {
        if let Some(report) = self.report.take() {
            report(written);
        }
    }

    fn size(&self) -> usize {
        self.row.bytes() as usize
    }

    pub fn write(&self, store: &mut dyn Store) -> Result<(), StoreError> {
        store.put_entry(&self.row, UnixMillis::now().as_u64())
    }
}

impl Drop for EntryWrite {
    fn drop(&mut self) {
        self.report(Written::Dropped);
    }
}

impl StoreTask for EntryWrite {
    fn is_wanted(&self) -> bool {
        (self.is_wanted)()
    }

    fn bytes(&self) -> u32 {
        u32::try_from(self.size()).unwrap_or(u32::MAX)
    }

    fn refuse(mut self: Box<Self>) {
        self.report(Written::Refused);
    }

    fn run(&mut self, store: &mut dyn Store) -> Result<(), StoreError> {
        self.write(store)
    }

    fn finish(mut self: Box<Self>, result: Result<(), &StoreError>) {
        self.report(match result {
            Ok(()) => Written::Stored,
            Err(_) => Written::Failed,
        });
    }
}

/// The queue: see the file's head.
#[derive(Default)]
pub struct Pending(Mutex<State>);

#[derive(Default)]
struct State {
    /// By their numbers.
    entries: VecDeque<EntryWrite>,
    bytes: usize,
    last: u64,
}

impl Pending {
    /// Enters a write, in the place of the oldest ones if no other is free.
    pub fn push(&self, mut write: EntryWrite) {
        let mut state = self.lock();
        state.last += 1;
        write.number = state.last;
        let dropped = state.enter(write);
        drop(state);
        // Reported without the lock.
        drop(dropped);
    }

    /// Enters a write again, in the place that it had.
    pub fn put_back(&self, write: EntryWrite) {
        let mut state = self.lock();
        let dropped = state.enter(write);
        drop(state);
        drop(dropped);
    }

    /// Moves the oldest writes to `taken`, as many as one group may have.
    pub fn take(&self, taken: &mut Vec<EntryWrite>) {
        let mut state = self.lock();
        while taken.len() < limits::GROUP_ENTRIES_MAX {
            let Some(write) = state.pop() else {
                return;
            };
            taken.push(write);
        }
    }

    /// Returns how many writes wait.
    pub fn waiting(&self) -> usize {
        self.lock().entries.len()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No write is run, reported or dropped under the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn pop(&mut self) -> Option<EntryWrite> {
        let write = self.entries.pop_front()?;
        self.bytes -= write.size();
        Some(write)
    }

    /// Enters a write, and returns those that had to make room.
    fn enter(&mut self, write: EntryWrite) -> Vec<EntryWrite> {
        self.bytes += write.size();
        let is_before = |waiting: &EntryWrite| waiting.number < write.number;
        let place = self.entries.partition_point(is_before);
        self.entries.insert(place, write);
        let mut dropped = Vec::new();
        while self.entries.len() > limits::PENDING_ENTRIES_MAX
            || self.bytes > limits::PENDING_ENTRIES_BYTES_MAX
        {
            let Some(oldest) = self.pop() else {
                break;
            };
            dropped.push(oldest);
        }
        dropped
    }
}
