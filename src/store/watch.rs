//! The thread that watches the key store, so that no reactor ever waits for a disk.
//!
//! Owns the daemon's connection to the store. Must never block a caller:
//! [`StoreWatcher::refresh`] and [`Looks::ask`] leave a note and return.
//!
//! It sleeps in a channel's receive with a timeout. The cause of waking decides what it does:
//!
//! | woken by          | meaning                | what it does                         |
//! | ----------------- | ---------------------- | ------------------------------------ |
//! | timeout           | a second has passed    | reads the keys that have changed     |
//! | a look            | another daemon's word  | reads the keys that have changed     |
//! | a note            | a refresh, as on HUP   | opens the store again, reads all     |
//! | the channel's end | the handle was dropped | ends                                 |
//!
//! Reactors take up a new ring when they read their mailbox, and drop the old one. The last to drop
//! it frees it, which takes long for a large ring. So this thread keeps each old ring until no
//! reactor has it any more, and frees it itself.
//!
//! Invariants:
//!  1. `on_change` is called only with a ring that differs from the previous one.
//!  2. The version is read before the ring, never after: a change that falls between the two is
//!     read now and once more a second later, instead of being missed.
//!  3. A store that cannot be read leaves the last good ring in force, and is logged once, not once
//!     per look. It is opened again after growing pauses with a random part, so that daemons that
//!     lost the same server do not come back to it at the same moment.
//!  4. Dropping the handle ends the thread and waits for that.
//!  5. A removed database is not created again: its place is for the one that an operator puts
//!     there.
//!  6. While the thread runs, no ring that it has passed on is freed by another thread.
//!  7. A mark belongs to an open store: after opening it again, all keys are read.
//!
//! Mutations that tests catch: `reopen` with `SqliteStore::open`
//! (`a_removed_database_is_not_made_again_...`), `publish` without `retired`
//! (`a_replaced_ring_is_freed_by_this_thread`), `reopen` that keeps its mark
//! (`a_refresh_reads_all_keys_...`).

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded, select};

use super::error::StoreError;
use super::interface::Store;
use super::interface::keys::{Mark, ReadKeys};
use crate::keys::KeyRing;
use crate::limits::store as limits;
use crate::os::process::give_way;

/// The handle. Dropping it stops the thread.
#[derive(Debug)]
pub struct StoreWatcher {
    /// `None` only while it is being dropped.
    notes: Option<Sender<()>>,
    looks: Looks,
    thread: Option<JoinHandle<()>>,
}

/// Asks the thread to look for changes now. Several may be kept; after the thread's end they do
/// nothing.
#[derive(Clone, Debug)]
pub struct Looks(Sender<()>);

impl Looks {
    /// Requests a look, and returns at once. Another process must have committed its change before.
    pub fn ask(&self) {
        // Full means that a look is due anyway.
        let _ = self.0.try_send(());
    }
}

impl StoreWatcher {
    /// Reads the ring here, so that a failure is returned to the caller, and watches the store from
    /// a thread. Returns the present ring; `on_change` gets later ones, on that thread. `reopen`
    /// must not create a store.
    pub fn start(
        store: Box<dyn Store>,
        reopen: impl FnMut() -> Result<Box<dyn Store>, StoreError> + Send + 'static,
        on_change: impl FnMut(Arc<KeyRing>) + Send + 'static,
    ) -> Result<(StoreWatcher, Arc<KeyRing>), StoreError> {
        StoreWatcher::start_with(store, reopen, on_change, limits::WATCH_INTERVAL)
    }

    /// `interval`: the time between two looks that nothing asks for.
    fn start_with(
        store: Box<dyn Store>,
        reopen: impl FnMut() -> Result<Box<dyn Store>, StoreError> + Send + 'static,
        on_change: impl FnMut(Arc<KeyRing>) + Send + 'static,
        interval: Duration,
    ) -> Result<(StoreWatcher, Arc<KeyRing>), StoreError> {
        let version = store.version()?;
        let reading = store.read(None)?;
        let ring = Arc::new(after(&KeyRing::default(), reading.keys).unwrap_or_default());
        // One place is enough: a second note before the first was read would add nothing.
        let (notes, inbox) = bounded(1);
        let (looks, asked) = bounded(1);
        let looks = Looks(looks);
        let watch = Watch {
            store,
            reopen,
            version,
            mark: reading.mark,
            ring: Arc::clone(&ring),
            retired: Vec::new(),
            health: Health::Good,
            on_change,
            interval,
            asked,
            _looks: looks.clone(),
        };
        let thread = thread::Builder::new()
            .name("store".into())
            .spawn(move || {
                give_way();
                watch.run(&inbox);
            })
            .map_err(StoreError::Thread)?;
        let watcher = StoreWatcher {
            notes: Some(notes),
            looks,
            thread: Some(thread),
        };
        Ok((watcher, ring))
    }

    /// Returns a way to ask for looks.
    pub fn looks(&self) -> Looks {
        self.looks.clone()
    }

    /// Requests a fresh reading, and returns at once.
    pub fn refresh(&self) {
        if let Some(notes) = &self.notes {
            // Full means that a refresh is due anyway; disconnected, that the thread has ended.
            let _ = notes.try_send(());
        }
    }
}

impl Drop for StoreWatcher {
    fn drop(&mut self) {
        drop(self.notes.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the store's thread has panicked");
        }
    }
}

/// The state of the thread.
struct Watch<R, F> {
    store: Box<dyn Store>,
    reopen: R,
    version: i64,
    mark: Option<Mark>,
    ring: Arc<KeyRing>,
    /// Replaced rings that a reactor may still have.
    retired: Vec<Arc<KeyRing>>,
    health: Health,
    on_change: F,
    /// The time between two looks, while the store can be read.
    interval: Duration,
    asked: Receiver<()>,
    /// Keeps `asked` connected.
    _looks: Looks,
}

/// Returns the ring after a reading; `None` if nothing has changed.
fn after(ring: &KeyRing, keys: ReadKeys) -> Option<KeyRing> {
    match keys {
        ReadKeys::All(records) => ring.replaced(records),
        ReadKeys::Changed(keys) => ring.changed(keys),
    }
}

enum Health {
    Good,
    /// The last reading failed, and that was logged.
    Failing {
        pause: Duration,
    },
}

impl<R, F> Watch<R, F>
where
    R: FnMut() -> Result<Box<dyn Store>, StoreError>,
    F: FnMut(Arc<KeyRing>),
{
    fn run(mut self, inbox: &Receiver<()>) {
        loop {
            let read = select! {
                recv(inbox) -> note => match note {
                    Ok(()) => self.reopen(),
                    Err(_) => return,
                },
                recv(self.asked) -> _ => self.look(),
                default(self.pause()) => self.look(),
            };
            self.note_health(read);
            self.free_retired();
        }
    }

    /// Returns the time until the next look.
    fn pause(&self) -> Duration {
        match self.health {
            Health::Good => self.interval,
            // Without random bytes the pauses are only more alike.
            Health::Failing { pause } => shortened(pause, getrandom::u32().unwrap_or(0)),
        }
    }

    /// Checks the database: cheap unless something changed.
    fn look(&mut self) -> Result<(), StoreError> {
        if self.store.is_replaced() || matches!(self.health, Health::Failing { .. }) {
            return self.reopen();
        }
        let version = self.store.version()?;
        if version == self.version {
            return Ok(());
        }
        self.read(version)
    }

    fn reopen(&mut self) -> Result<(), StoreError> {
        self.store = (self.reopen)()?;
        self.mark = None;
        let version = self.store.version()?;
        self.read(version)
    }

    fn read(&mut self, version: i64) -> Result<(), StoreError> {
        let reading = self.store.read(self.mark)?;
        self.version = version;
        self.mark = reading.mark;
        if let Some(ring) = after(&self.ring, reading.keys) {
            self.publish(ring);
        }
        Ok(())
    }

    fn publish(&mut self, ring: KeyRing) {
        let old = std::mem::replace(&mut self.ring, Arc::new(ring));
        self.retired.push(old);
        (self.on_change)(Arc::clone(&self.ring));
    }

    /// Frees the old rings that are nowhere else. A count of one stays one: only a holder could
    /// make another.
    fn free_retired(&mut self) {
        self.retired.retain(|ring| Arc::strong_count(ring) > 1);
    }

    fn note_health(&mut self, read: Result<(), StoreError>) {
        match (read, &mut self.health) {
            (Ok(()), Health::Good) => {}
            (Err(_), Health::Failing { pause }) => {
                *pause = (*pause * 2).min(limits::REOPEN_PAUSE_MAX);
            }
            (Ok(()), Health::Failing { .. }) => {
                log::info!("the key store is readable again");
                self.health = Health::Good;
            }
            (Err(error), Health::Good) => {
                log::warn!("cannot read the key store: {error}; the keys stay as they are");
                self.health = Health::Failing {
                    pause: limits::WATCH_INTERVAL,
                };
            }
        }
    }
}

/// Returns between half and all of a pause.
pub(super) fn shortened(pause: Duration, random: u32) -> Duration {
    let half = pause / 2;
    half + half.mul_f64(f64::from(random) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::keys::Scopes;
    use crate::store::interface::keys::{Keys, NewKey};
    use crate::store::sqlite::{DATABASE_FILE, SqliteStore};

    /// Far above the expected time; reached only by a failure.
    const PATIENCE: Duration = Duration::from_secs(30);

    fn new_key() -> NewKey {
        NewKey {
            scopes: Scopes::GENERATE,
            ..NewKey::default()
        }
    }

    fn start(path: &Path) -> (StoreWatcher, Arc<KeyRing>, Receiver<Arc<KeyRing>>) {
        start_with(path, limits::WATCH_INTERVAL)
    }

    fn start_with(
        path: &Path,
        interval: Duration,
    ) -> (StoreWatcher, Arc<KeyRing>, Receiver<Arc<KeyRing>>) {
        let (changes, inbox) = crossbeam_channel::unbounded();
        let store = Box::new(SqliteStore::open(path).unwrap());
        let path = path.to_owned();
        let reopen = move || {
            SqliteStore::open_existing(&path).map(|store| Box::new(store) as Box<dyn Store>)
        };
        let on_change = move |ring| changes.send(ring).unwrap();
        let started = StoreWatcher::start_with(store, reopen, on_change, interval);
        let (watcher, ring) = started.unwrap();
        (watcher, ring, inbox)
    }

    #[test]
    fn another_connection_s_change_arrives_without_being_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(DATABASE_FILE);
        let (watcher, first, changes) = start(&path);
        assert!(first.is_empty());
        let mut other = SqliteStore::open(&path).unwrap();
        let (record, secret) = other.create(&new_key(), 1).unwrap();
        let ring = changes.recv_timeout(PATIENCE).unwrap();
        assert_eq!(ring.find(secret.reveal()).unwrap().record.id, record.id);
        other.revoke(&record.id, 2).unwrap();
        let ring = changes.recv_timeout(PATIENCE).unwrap();
        assert!(ring.find(secret.reveal()).unwrap().record.revoked);
        drop(watcher);
        assert!(
            changes.try_recv().is_err(),
            "a ring came that nothing had changed"
        );
    }

    /// Polling finds none of the changes: the thread does not look by itself.
    ///
    /// Mutation: `run` that does not receive from `asked`.
    #[test]
    fn a_change_is_read_when_a_look_is_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(DATABASE_FILE);
        let (watcher, _, changes) = start_with(&path, Duration::MAX);
        let (looks, mut other) = (watcher.looks(), SqliteStore::open(&path).unwrap());
        for now in 0..20 {
            let (_, secret) = other.create(&new_key(), now).unwrap();
            looks.ask();
            let ring = changes.recv_timeout(PATIENCE).unwrap();
            assert!(ring.find(secret.reveal()).is_some());
        }
        drop(watcher);
        looks.ask();
    }

    #[test]
    fn a_refresh_finds_a_store_that_took_the_place_of_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(DATABASE_FILE);
        let (watcher, _, changes) = start(&path);
        let backup = folder.path().join("backup/keys.db");
        let mut other = SqliteStore::open(&backup).unwrap();
        let (_, secret) = other.create(&new_key(), 1).unwrap();
        // Closing the last connection folds the log into the file, which can then be moved.
        drop(other);
        for log in ["autoglmd.db-wal", "autoglmd.db-shm"] {
            std::fs::remove_file(folder.path().join(log)).unwrap();
        }
        std::fs::rename(&backup, &path).unwrap();
        watcher.refresh();
        let ring = changes.recv_timeout(PATIENCE).unwrap();
        assert!(ring.find(secret.reveal()).is_some());
    }

    #[test]
    fn an_unreadable_store_keeps_the_ring_and_is_taken_up_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(DATABASE_FILE);
        let (watcher, _, changes) = start(&path);
        let aside = folder.path().join("aside.db");
        std::fs::rename(&path, &aside).unwrap();
        std::fs::create_dir(&path).unwrap();
        watcher.refresh();
        std::fs::remove_dir(&path).unwrap();
        let mut other = SqliteStore::open(&path).unwrap();
        let (_, secret) = other.create(&new_key(), 1).unwrap();
        // Whichever of these the thread meets first, it ends at the new file's ring.
        watcher.refresh();
        let ring = changes.recv_timeout(PATIENCE).unwrap();
        assert!(ring.find(secret.reveal()).is_some());
    }

    /// A regression test: an operator who restored a backup by `rm` and `cp` got a new, empty
    /// database, whose log then did not fit the file that was copied over it.
    #[test]
    fn a_removed_database_is_not_made_again_and_its_successor_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(DATABASE_FILE);
        let (watcher, _, _changes) = start(&path);
        let backup = folder.path().join("backup.db");
        let mut other = SqliteStore::open(&backup).unwrap();
        let (_, secret) = other.create(&new_key(), 1).unwrap();
        drop(other);
        for log in ["", "-wal", "-shm"] {
            let file = folder.path().join(format!("{DATABASE_FILE}{log}"));
            std::fs::remove_file(file).unwrap();
        }
        // The note is read before the thread ends.
        watcher.refresh();
        drop(watcher);
        assert!(!path.exists());
        // The first moment of a copy.
        std::fs::write(&path, "").unwrap();
        assert!(SqliteStore::open_existing(&path).is_err());
        assert_eq!(
            path.metadata().unwrap().len(),
            0,
            "nothing is written to it"
        );
        std::fs::copy(&backup, &path).unwrap();
        let ring = SqliteStore::open_existing(&path).unwrap().ring().unwrap();
        assert!(ring.find(secret.reveal()).is_some());
    }

    #[test]
    fn dropping_the_handle_ends_the_thread_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let (watcher, _, changes) = start(&folder.path().join(DATABASE_FILE));
        drop(watcher);
        // The thread owned the sender: its end is the channel's end.
        assert_eq!(
            changes.try_recv().err(),
            Some(crossbeam_channel::TryRecvError::Disconnected)
        );
    }

    type Reopen = Box<dyn FnMut() -> Result<Box<dyn Store>, StoreError>>;
    type OnChange = Box<dyn FnMut(Arc<KeyRing>)>;

    /// The state of the thread, on the test's own.
    fn watch(path: &Path) -> (Watch<Reopen, OnChange>, Receiver<Arc<KeyRing>>) {
        let (changes, inbox) = crossbeam_channel::unbounded();
        let store = SqliteStore::open(path).unwrap();
        let path = path.to_owned();
        let reading = store.read(None).unwrap();
        let reopen: Reopen = Box::new(move || Ok(Box::new(SqliteStore::open_existing(&path)?)));
        let on_change: OnChange = Box::new(move |ring| changes.send(ring).unwrap());
        let (looks, asked) = bounded(1);
        let watch = Watch {
            version: store.version().unwrap(),
            mark: reading.mark,
            ring: Arc::new(store.ring().unwrap()),
            retired: Vec::new(),
            store: Box::new(store),
            reopen,
            health: Health::Good,
            on_change,
            interval: limits::WATCH_INTERVAL,
            asked,
            _looks: Looks(looks),
        };
        (watch, inbox)
    }

    /// The test is the reactors, and drops their rings.
    #[test]
    fn a_replaced_ring_is_freed_by_this_thread() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(DATABASE_FILE);
        let (mut watch, inbox) = watch(&path);
        let mut other = SqliteStore::open(&path).unwrap();
        let mut rings = vec![Arc::clone(&watch.ring)];
        for time in 1..4 {
            other.create(&new_key(), time).unwrap();
            watch.look().unwrap();
            rings.push(inbox.try_recv().unwrap());
        }
        // One reactor is late, and still reads the third of four.
        let (late, weak) = (Arc::clone(&rings[2]), rings.iter().map(Arc::downgrade));
        let weak: Vec<_> = weak.collect();
        drop(rings);
        assert!(
            weak.iter().all(|ring| ring.strong_count() >= 1),
            "a reactor freed one"
        );
        watch.free_retired();
        let counts: Vec<_> = weak.iter().map(std::sync::Weak::strong_count).collect();
        assert_eq!(counts, [0, 0, 2, 1]);
        drop(late);
        assert_eq!(weak[2].strong_count(), 1, "the late reactor freed it");
        watch.free_retired();
        assert_eq!(weak[2].strong_count(), 0);
    }

    /// A program that switches the triggers off leaves no history; a refresh does not rely on one.
    #[test]
    fn a_refresh_reads_all_keys_whatever_the_history_contains() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(DATABASE_FILE);
        let mut other = SqliteStore::open(&path).unwrap();
        let (record, secret) = other.create(&new_key(), 1).unwrap();
        let (mut watch, inbox) = watch(&path);
        let raw = rusqlite::Connection::open(&path).unwrap();
        raw.execute_batch("DROP TRIGGER key_updated").unwrap();
        other.revoke(&record.id, 2).unwrap();
        watch.look().unwrap();
        assert!(
            inbox.try_recv().is_err(),
            "the test is wrong: it was noticed"
        );
        watch.reopen().unwrap();
        let ring = inbox.try_recv().unwrap();
        assert!(ring.find(secret.reveal()).unwrap().record.revoked);
    }

    /// Mutations that this test catches: a pause that does not grow, or does not end.
    #[test]
    fn pauses_grow_up_to_a_bound_and_have_a_random_part() {
        let folder = tempfile::tempdir().unwrap();
        let (mut watch, _inbox) = watch(&folder.path().join(DATABASE_FILE));
        assert_eq!(watch.pause(), limits::WATCH_INTERVAL);
        let mut longest = Vec::new();
        for _ in 0..8 {
            watch.note_health(Err(StoreError::UnknownKey(String::new())));
            let Health::Failing { pause } = watch.health else {
                panic!("it fails");
            };
            assert!(watch.pause() >= pause / 2 && watch.pause() <= pause);
            longest.push(pause);
        }
        assert!(longest[1] == longest[0] * 2 && longest[7] == limits::REOPEN_PAUSE_MAX);
        watch.note_health(Ok(()));
        assert_eq!(watch.pause(), limits::WATCH_INTERVAL);
        let whole = Duration::from_secs(4);
        for (random, shown) in [(0, 2), (u32::MAX / 2, 3), (u32::MAX, 4)] {
            let found = shortened(whole, random);
            assert!(found.abs_diff(Duration::from_secs(shown)) < Duration::from_millis(1));
        }
    }
}
