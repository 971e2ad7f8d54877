//! Tests of the thread alone: what waits for it before it starts is what one group has.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use super::*;
use crate::jobs::JobId;
use crate::store::interface::entries::EntryRow;
use crate::store::interface::keys::{Keys, NewKey};
use crate::store::interface::usage::Usage as _;
use crate::store::pending::{EntryWrite, Written};
use crate::store::requests::Full;
use crate::store::sqlite::{DATABASE_FILE, SqliteStore};
use crate::store::tests::accept_task;

/// A task's work in the store.
pub type Act = Box<dyn FnMut(&mut dyn Store) -> Result<(), StoreError> + Send>;

/// Reports its result and the number of keys that another connection sees then.
pub struct Probe {
    pub act: Act,
    pub is_wanted: Arc<AtomicBool>,
    pub bytes: u32,
    pub path: PathBuf,
    pub results: Sender<(Result<(), String>, usize)>,
}

impl StoreTask for Probe {
    fn is_wanted(&self) -> bool {
        self.is_wanted.load(Ordering::Relaxed)
    }

    fn bytes(&self) -> u32 {
        self.bytes
    }

    fn run(&mut self, store: &mut dyn Store) -> Result<(), StoreError> {
        (self.act)(store)
    }

    fn finish(self: Box<Self>, result: Result<(), &StoreError>) {
        let result = result.map_err(ToString::to_string);
        self.results.send((result, keys_in(&self.path))).unwrap();
    }
}

fn keys_in(path: &Path) -> usize {
    SqliteStore::open(path).unwrap().list().unwrap().len()
}

pub fn create(store: &mut dyn Store) -> Result<(), StoreError> {
    store.create(&NewKey::default(), 1).map(|_| ())
}

/// A store without its thread: tasks wait until `start`.
pub struct Bench {
    _folder: tempfile::TempDir,
    pub path: PathBuf,
    pub requests: Arc<Requests>,
    results: Receiver<(Result<(), String>, usize)>,
    sender: Sender<(Result<(), String>, usize)>,
}

impl Bench {
    pub fn new() -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(DATABASE_FILE);
        SqliteStore::open(&path).unwrap();
        let (sender, results) = channel();
        Bench {
            _folder: folder,
            path,
            requests: Arc::default(),
            results,
            sender,
        }
    }

    pub fn submit(
        &self,
        act: impl FnMut(&mut dyn Store) -> Result<(), StoreError> + Send + 'static,
    ) {
        let probe = self.probe(act);
        self.requests.submit(1, Box::new(probe)).unwrap();
    }

    pub fn probe(
        &self,
        act: impl FnMut(&mut dyn Store) -> Result<(), StoreError> + Send + 'static,
    ) -> Probe {
        Probe {
            act: Box::new(act),
            is_wanted: Arc::new(AtomicBool::new(true)),
            bytes: 0,
            path: self.path.clone(),
            results: self.sender.clone(),
        }
    }

    fn start(&self) -> StoreWorker {
        let path = self.path.clone();
        let open = move || SqliteStore::open_existing(&path).map(|store| Box::new(store) as _);
        // A busy machine must not cut a group in two.
        StoreWorker::start_with(Arc::clone(&self.requests), open, Duration::MAX).unwrap()
    }

    pub fn results(&self, count: usize) -> Vec<(Result<(), String>, usize)> {
        let next = || self.results.recv_timeout(Duration::from_secs(30)).unwrap();
        (0..count).map(|_| next()).collect()
    }
}

#[test]
fn all_waiting_tasks_share_one_commit() {
    let bench = Bench::new();
    for _ in 0..20 {
        bench.submit(create);
    }
    let worker = bench.start();
    let results = bench.results(20);
    // The first one already sees what the last one has written.
    assert!(results.iter().all(|result| *result == (Ok(()), 20)));
    drop(worker);
}

#[test]
fn a_task_that_fails_leaves_nothing_and_does_not_disturb_the_others() {
    let bench = Bench::new();
    bench.submit(create);
    bench.submit(|store| {
        create(store)?;
        Err(StoreError::UnknownKey("key_x".into()))
    });
    bench.submit(create);
    let _worker = bench.start();
    let results = bench.results(3);
    assert_eq!((&results[0], &results[2]), (&(Ok(()), 2), &(Ok(()), 2)));
    assert!(results[1].0.as_ref().unwrap_err().contains("key_x"));
}

#[test]
fn a_job_that_cannot_be_written_fails_alone() {
    let bench = Bench::new();
    let (sender, results) = channel();
    // An id is used once.
    for number in [1, 2, 1, 3] {
        let task = accept_task(number, "key_a", &sender);
        bench.requests.submit(1, Box::new(task)).unwrap();
    }
    bench.submit(create);
    let _worker = bench.start();
    assert_eq!(bench.results(1), [(Ok(()), 1)]);
    let next = || results.recv_timeout(Duration::from_secs(30)).unwrap();
    let ends: Vec<_> = (0..4).map(|_| next()).collect();
    let ids: Vec<JobId> = ends.iter().map(|(id, _)| *id).collect();
    assert_eq!(ids, [1, 2, 1, 3].map(|number| JobId::new(number, [7; 10])));
    let accepted: Vec<bool> = ends.iter().map(|(_, end)| end.is_ok()).collect();
    assert_eq!(accepted, [true, true, false, true]);
}

#[test]
fn a_task_that_panics_fails_alone() {
    let bench = Bench::new();
    bench.submit(|store| {
        create(store)?;
        panic!("the test expects this panic");
    });
    bench.submit(create);
    let _worker = bench.start();
    let results = bench.results(2);
    assert!(results[0].0.is_err());
    assert_eq!(results[1], (Ok(()), 1));
}

#[test]
fn a_finished_task_is_seen_by_another_connection() {
    let bench = Bench::new();
    let _worker = bench.start();
    for keys in 1..4 {
        bench.submit(create);
        assert_eq!(bench.results(1), [(Ok(()), keys)]);
    }
}

#[test]
fn a_lost_transaction_fails_every_task_and_the_next_group_works() {
    let bench = Bench::new();
    bench.submit(create);
    bench.submit(|store| {
        store.roll_back();
        Err(StoreError::UnknownKey("lost".into()))
    });
    bench.submit(create);
    let _worker = bench.start();
    for (result, keys) in bench.results(3) {
        assert!(result.unwrap_err().contains("lost"));
        assert_eq!(keys, 0);
    }
    bench.submit(create);
    assert_eq!(bench.results(1), [(Ok(()), 1)]);
}

#[test]
fn what_waits_at_the_end_is_run_and_later_tasks_are_refused() {
    let bench = Bench::new();
    for _ in 0..limits::GROUP_TASKS_MAX + 1 {
        bench.submit(|_| Ok(()));
    }
    drop(bench.start());
    bench.results(limits::GROUP_TASKS_MAX + 1);
    let probe = bench.probe(create);
    assert_eq!(bench.requests.submit(1, Box::new(probe)), Err(Full));
}

/// Mutation: `ready_store` that does not open a store that has failed.
#[test]
fn a_store_that_cannot_be_opened_fails_its_tasks_and_is_tried_again() {
    let bench = Bench::new();
    let elsewhere = bench.path.with_extension("elsewhere");
    std::fs::rename(&bench.path, &elsewhere).unwrap();
    let mut tries = 0;
    let path = bench.path.clone();
    let open = move || {
        tries += 1;
        if tries == 2 {
            std::fs::rename(&elsewhere, &path).unwrap();
        }
        SqliteStore::open_existing(&path).map(|store| Box::new(store) as _)
    };
    let (sender, results) = channel();
    let submit = || bench.requests.submit(1, Box::new(Note(sender.clone())));
    let next = || results.recv_timeout(Duration::from_secs(30)).unwrap();
    // The thread also opens the store for its own work, so it must find the first task at once.
    submit().unwrap();
    let worker = StoreWorker::start(Arc::clone(&bench.requests), open);
    let first = next();
    submit().unwrap();
    assert_eq!([first, next()], [false, true]);
    drop(worker);
}

#[test]
fn hits_survive_a_lost_group_and_the_end() {
    let bench = Bench::new();
    let (path, mut tries) = (bench.path.clone(), 0);
    let open = move || {
        tries += 1;
        match tries {
            1 => Err(StoreError::UnknownKey("lost".into())),
            _ => SqliteStore::open_existing(&path).map(|store| Box::new(store) as _),
        }
    };
    let count = |times| (0..times).for_each(|_| bench.requests.hits().count(None));
    count(3);
    let (sender, ends) = channel();
    let submit = || {
        let task = Box::new(Note(sender.clone()));
        bench.requests.submit(1, task).unwrap();
        ends.recv_timeout(Duration::from_secs(30)).unwrap()
    };
    let worker = StoreWorker::start(Arc::clone(&bench.requests), open).unwrap();
    while !submit() {}
    submit();
    count(4);
    drop(worker);
    let store = SqliteStore::open(&bench.path).unwrap();
    let rows = store.usage(None, &(0..=u32::MAX)).unwrap();
    let hits: u64 = rows.iter().map(|row| row.hits).sum();
    assert_eq!(hits, 7, "{rows:?}");
}

/// Mutations: `end` without the entries that wait for no request, or with one group of them.
#[test]
fn entries_that_wait_at_the_end_are_written() {
    const ENTRIES: usize = 2 * limits::GROUP_ENTRIES_MAX + 1;
    let bench = Bench::new();
    let (sender, ends) = channel();
    for number in 0..ENTRIES {
        let mut digest = [7; 32];
        digest[..8].copy_from_slice(&number.to_le_bytes());
        let row = EntryRow {
            digest,
            tenant: 1,
            created_at: 1,
            expires_at: u64::MAX >> 1,
            value: vec![7],
        };
        let sender = sender.clone();
        let report = move |written| _ = sender.send(written);
        let write = EntryWrite::new(row, || true, report);
        bench.requests.entries().push(write);
    }
    // The thread finds that it is to end, before it has looked for entries.
    bench.requests.close();
    drop(bench.start());
    let stored = ends.try_iter().filter(|end| *end == Written::Stored);
    assert_eq!(stored.count(), ENTRIES);
}

/// Pushes an entry whose end pushes the next one, until `is_over`.
fn push_entries_without_a_pause(requests: &Arc<Requests>, is_over: &Arc<AtomicBool>) {
    let row = EntryRow {
        digest: [7; 32],
        tenant: 1,
        created_at: 1,
        expires_at: u64::MAX >> 1,
        value: vec![7],
    };
    let (next, ends) = (Arc::clone(requests), Arc::clone(is_over));
    let report = move |_| {
        if !ends.load(Ordering::Relaxed) {
            push_entries_without_a_pause(&next, &ends);
        }
    };
    let write = EntryWrite::new(row, || true, report);
    requests.entries().push(write);
}

/// Mutation: a `run` that takes tasks once no record and no entry waits.
#[test]
fn a_task_is_run_while_entries_come_without_a_pause() {
    let bench = Bench::new();
    let is_over = Arc::new(AtomicBool::new(false));
    push_entries_without_a_pause(&bench.requests, &is_over);
    let _worker = bench.start();
    // Each waits until the one before has ended, so all but the first meet the entries.
    let ran = (0..3).all(|_| {
        bench.submit(|_| Ok(()));
        let result = bench.results.recv_timeout(Duration::from_secs(30));
        result.is_ok_and(|(result, _)| result.is_ok())
    });
    is_over.store(true, Ordering::Relaxed);
    assert!(ran);
}

struct Note(Sender<bool>);

impl StoreTask for Note {
    fn run(&mut self, _: &mut dyn Store) -> Result<(), StoreError> {
        Ok(())
    }

    fn finish(self: Box<Self>, result: Result<(), &StoreError>) {
        self.0.send(result.is_ok()).unwrap();
    }
}
