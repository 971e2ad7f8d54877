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
//!
//! Mutation that a test of [`super::behind`] catches: a queue without its bounds
//! (`the_oldest_entries_make_room`).

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
    entries: VecDeque<EntryWrite>,
    bytes: usize,
}

impl Pending {
    /// Enters a write, in the place of the oldest ones if no other is free.
    pub fn push(&self, write: EntryWrite) {
        let mut dropped = Vec::new();
        let mut state = self.lock();
        state.bytes += write.size();
        state.entries.push_back(write);
        state.make_room(&mut dropped);
        drop(state);
        // Reported without the lock.
        drop(dropped);
    }

    /// Enters a write again, as the oldest one.
    pub fn put_back(&self, write: EntryWrite) {
        let mut dropped = Vec::new();
        let mut state = self.lock();
        state.bytes += write.size();
        state.entries.push_front(write);
        state.make_room(&mut dropped);
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

    fn make_room(&mut self, dropped: &mut Vec<EntryWrite>) {
        while self.entries.len() > limits::PENDING_ENTRIES_MAX
            || self.bytes > limits::PENDING_ENTRIES_BYTES_MAX
        {
            let Some(oldest) = self.pop() else {
                return;
            };
            dropped.push(oldest);
        }
    }
}
