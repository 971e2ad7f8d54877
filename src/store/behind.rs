//! The writes of the queue of [`super::pending`], as tasks of a group.
//!
//! A write whose group was lost comes back to the queue; one that fails by itself does not, so that
//! it cannot fail for ever.
//!
//! Mutations that the tests below and `tests/policies.rs` catch: a lost group that loses its
//! entries or their order, a `lose` or `finish` that asks whether the store works
//! (`a_lost_group_...`), a write that is not wanted any more (`an_unwanted_...`).

use std::sync::Arc;

use super::error::StoreError;
use super::interface::Store;
use super::pending::{EntryWrite, Written};
use super::requests::Requests;
use super::task::StoreTask;

/// Moves waiting writes to a group.
pub fn take(requests: &Arc<Requests>, group: &mut Vec<Box<dyn StoreTask>>) {
    let mut taken = Vec::new();
    requests.entries().take(&mut taken);
    group.extend(taken.into_iter().map(|write| {
        let task = PendingWrite {
            write: Some(write),
            requests: Arc::clone(requests),
        };
        Box::new(task) as Box<dyn StoreTask>
    }));
}

/// A write of the queue, in a group.
struct PendingWrite {
    /// `None` once it has ended.
    write: Option<EntryWrite>,
    requests: Arc<Requests>,
}

impl StoreTask for PendingWrite {
    fn is_wanted(&self) -> bool {
        self.write.as_ref().is_some_and(StoreTask::is_wanted)
    }

    fn run(&mut self, store: &mut dyn Store) -> Result<(), StoreError> {
        self.write
            .as_ref()
            .map_or(Ok(()), |write| write.write(store))
    }

    fn finish(mut self: Box<Self>, result: Result<(), &StoreError>) {
        let Some(mut write) = self.write.take() else {
            return;
        };
        write.report(match result {
            Ok(()) => Written::Stored,
            Err(_) => Written::Failed,
        });
    }

    /// Whether the store works says nothing here: another thread may have committed since.
    fn lose(mut self: Box<Self>, _: &StoreError) {
        if let Some(write) = self.write.take() {
            self.requests.entries().put_back(write);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::store as limits;
    use crate::store::interface::entries::Entries as _;
    use crate::store::interface::entries::EntryRow;
    use crate::store::sqlite::SqliteStore;
    use std::sync::mpsc::{Receiver, Sender, channel};

    type Reports = (Sender<(u8, Written)>, Receiver<(u8, Written)>);

    fn write(number: u8, bytes: usize, reports: &Reports) -> EntryWrite {
        write_if(true, number, bytes, reports)
    }

    fn write_if(is_wanted: bool, number: u8, bytes: usize, reports: &Reports) -> EntryWrite {
        let row = EntryRow {
            digest: [number; 32],
            tenant: 1,
            created_at: 1,
            expires_at: u64::MAX,
            value: vec![number; bytes],
        };
        let sender = reports.0.clone();
        EntryWrite::new(
            row,
            move || is_wanted,
            move |written| {
                sender.send((number, written)).unwrap();
            },
        )
    }

    fn taken(requests: &Arc<Requests>) -> Vec<Box<dyn StoreTask>> {
        let mut group = Vec::new();
        take(requests, &mut group);
        group
    }

    #[test]
    fn the_oldest_entries_make_room() {
        let (requests, reports) = (Arc::new(Requests::default()), channel());
        let third = limits::PENDING_ENTRIES_BYTES_MAX / 3;
        for number in 0..4 {
            requests.entries().push(write(number, third, &reports));
        }
        assert_eq!(reports.1.try_recv(), Ok((0, Written::Dropped)));
        assert_eq!(reports.1.try_recv(), Ok((1, Written::Dropped)));
        assert_eq!(requests.entries().waiting(), 2);
        for _ in 0..limits::PENDING_ENTRIES_MAX {
            requests.entries().push(write(9, 1, &reports));
        }
        assert_eq!(requests.entries().waiting(), limits::PENDING_ENTRIES_MAX);
        assert_eq!(taken(&requests).len(), limits::GROUP_ENTRIES_MAX);
        drop(requests);
        let ends = reports.1.try_iter().count();
        assert_eq!(ends, limits::PENDING_ENTRIES_MAX + 2, "each once");
    }

    #[test]
    fn a_lost_group_keeps_its_entries_and_a_failed_one_does_not() {
        let (requests, reports) = (Arc::new(Requests::default()), channel());
        requests.entries().push(write(1, 10, &reports));
        requests.entries().push(write(2, 10, &reports));
        for task in taken(&requests) {
            task.lose(&StoreError::Panicked);
        }
        assert_eq!(requests.entries().waiting(), 2);
        // The group of another thread may be lost at this time.
        requests.health().note_failure("the test's".to_owned());
        for task in taken(&requests) {
            task.finish(Err(&StoreError::Panicked));
        }
        assert_eq!(requests.entries().waiting(), 0);
        let mut ends: Vec<_> = reports.1.try_iter().collect();
        ends.sort_by_key(|end| end.0);
        assert_eq!(ends, [(1, Written::Failed), (2, Written::Failed)]);
    }

    /// Mutations: `put_back` as the oldest of all, or as the latest.
    #[test]
    fn a_lost_group_comes_back_in_its_place() {
        let (requests, reports) = (Arc::new(Requests::default()), channel());
        let push = |number| requests.entries().push(write(number, 10, &reports));
        (1..=3).for_each(push);
        let lost = taken(&requests);
        push(4);
        for task in lost {
            task.lose(&StoreError::Panicked);
        }
        for task in taken(&requests) {
            task.finish(Ok(()));
        }
        let ends: Vec<_> = reports.1.try_iter().collect();
        assert_eq!(ends, [1, 2, 3, 4].map(|number| (number, Written::Stored)));
    }

    #[test]
    fn an_unwanted_write_is_not_made() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = SqliteStore::open_in(folder.path()).unwrap();
        let (requests, reports) = (Arc::new(Requests::default()), channel());
        requests.entries().push(write_if(false, 1, 10, &reports));
        requests.entries().push(write(2, 10, &reports));
        for mut task in taken(&requests) {
            if task.is_wanted() {
                task.run(&mut store).unwrap();
                task.finish(Ok(()));
            }
        }
        assert!(store.find_entry(&[1; 32], 1).unwrap().is_none());
        assert!(store.find_entry(&[2; 32], 1).unwrap().is_some());
        let ends: Vec<_> = reports.1.try_iter().collect();
        assert_eq!(ends, [(1, Written::Dropped), (2, Written::Stored)]);
    }
}
