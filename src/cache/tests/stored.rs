//! The level in the store, with a store whose tasks the test runs, and a timer whose acts it does.
//!
//! Mutations that these tests catch are listed at each of them.

use std::collections::BTreeSet;

use super::*;
use crate::cache::entry::jittered;
use crate::cache::stored::StoredSeries;
use crate::cache::timer::{Acts, Timer};
use crate::config::CachePolicy;
use crate::store::interface::entries::{Entries as _, EntryRow};
use crate::store::pending::Written;
use crate::store::sqlite::SqliteStore;
use crate::store::{Requests, StoreError, StoreTask};

const POLICIES: [CachePolicy; 4] = [
    CachePolicy::CacheAside,
    CachePolicy::ReadThrough,
    CachePolicy::WriteThrough,
    CachePolicy::WriteBehind,
];

/// A store without its thread, and a timer without its.
pub struct Disk {
    pub requests: Arc<Requests>,
    pub timer: Timer,
    pub acts: Acts,
    pub store: SqliteStore,
    _folder: tempfile::TempDir,
}

impl Disk {
    pub fn new() -> Disk {
        let folder = tempfile::tempdir().expect("a folder");
        let (timer, acts) = Acts::of_timer();
        Disk {
            requests: Arc::default(),
            timer,
            acts,
            store: SqliteStore::open_in(folder.path()).expect("a store"),
            _folder: folder,
        }
    }

    /// Takes all tasks that wait, and the entries that no request waits for.
    pub fn take(&self) -> Vec<Box<dyn StoreTask>> {
        let (mut tasks, mut writes) = (Vec::new(), Vec::new());
        self.requests.take(&mut tasks, Duration::ZERO);
        self.requests.entries().take(&mut writes);
        tasks.extend(writes.into_iter().map(|write| Box::new(write) as _));
        tasks
    }

    /// Runs all tasks that wait and are wanted. Returns how many.
    pub fn run(&mut self) -> usize {
        let tasks = self.take().into_iter().filter(|task| task.is_wanted());
        let tasks: Vec<_> = tasks.collect();
        let count = tasks.len();
        for mut task in tasks {
            let result = task.run(&mut self.store);
            task.finish(result.as_ref().copied());
        }
        count
    }

    pub fn rows(&mut self) -> Vec<EntryRow> {
        let found = self.store.most_used_entries(0, None, 1_000);
        let rows = found.expect("the store works").into_iter();
        rows.map(|(_, row)| row).collect()
    }

    /// Returns a daemon with this store, and its series.
    pub fn daemon(
        &self,
        policy: CachePolicy,
        shared: Option<Arc<Elsewhere>>,
    ) -> (Bench, Arc<StoredSeries>) {
        let series: Arc<StoredSeries> = Metrics::new("tiny").series();
        let config = Cache {
            policy,
            store_timeout: SECOND,
            ..Cache::default()
        };
        let (requests, timer) = (Arc::clone(&self.requests), self.timer.clone());
        let level = StoreLevel::new(requests, &config, Arc::clone(&series), timer);
        (Bench::of(shared, Some(level)), series)
    }

    /// Has a daemon compute a result, which is written if it may be.
    pub fn compute(&mut self, bench: &Bench, job: &Job, text: &str) {
        bench.submit(job);
        self.run();
        let inner = bench.jobs().pop().expect("it is computed");
        bench.done(&inner, text);
        self.run();
        assert_eq!(bench.result(job).0, text);
    }
}

/// Mutations: `write` or `put_first` without its look at the length; a bound that is one off.
#[test]
fn a_result_that_is_too_long_stays_in_memory_with_any_policy() {
    let encoded = entry().encode(UnixMillis::now());
    let longest = limits::SHARED_ENTRY_BYTES_MAX - (encoded.len() - entry().text.len());
    for policy in POLICIES {
        let mut disk = Disk::new();
        let (bench, series) = disk.daemon(policy, None);
        for (request, excess) in (0..).zip([0, 1]) {
            let prompt = format!("program {excess}");
            let text = "x".repeat(longest + excess);
            disk.compute(&bench, &job(&prompt, request), &text);
            assert_eq!(disk.rows().len(), 1, "{excess} too long");
            let again = job(&prompt, 10 + request);
            bench.submit(&again);
            assert_eq!(bench.result(&again).1.verdict, Verdict::Hit);
        }
        let unconfirmed = u64::from(policy == CachePolicy::WriteThrough);
        assert_eq!(series.unconfirmed.get(), unconfirmed);
    }
}

/// Mutations: a TTL without its jitter, in memory or in the store.
#[test]
fn entries_that_were_made_together_do_not_expire_together() {
    let mut disk = Disk::new();
    let (bench, _) = disk.daemon(CachePolicy::CacheAside, None);
    let asked = |request: u32| job(&format!("program {request}"), request);
    for request in 0..50 {
        disk.compute(&bench, &asked(request), "text");
    }
    let ttl = TTL.as_millis() as u64;
    let ttls = disk.rows().into_iter();
    let ttls: BTreeSet<u64> = ttls.map(|row| row.expires_at - row.created_at).collect();
    assert!(ttls.len() > 25, "{ttls:?}");
    let is_near = |one: &u64| (ttl - ttl / 10..=ttl).contains(one);
    assert!(ttls.iter().all(is_near), "{ttls:?}");
    let hits_after = |time: Duration| {
        let before = bench.jobs().len();
        for request in 0..50 {
            bench.submit(&Job {
                submitted: Moment::ZERO + time,
                ..asked(request)
            });
        }
        50 - (bench.jobs().len() - before)
    };
    let moment = Duration::from_micros(1);
    assert_eq!(hits_after(TTL * 9 / 10 - moment), 50);
    let some = hits_after(TTL * 95 / 100);
    assert!((10..=40).contains(&some), "{some}");
}

/// Mutations: no jitter; one that lengthens; one of more than a tenth.
#[test]
fn the_digest_takes_up_to_a_tenth_off_a_ttl() {
    let of = |die: u16| {
        let mut digest = [7; 32];
        digest[2..4].copy_from_slice(&die.to_le_bytes());
        jittered(TTL, &digest)
    };
    assert_eq!(of(0), TTL);
    assert_eq!(of(1 << 15), TTL * 95 / 100);
    let least = of(u16::MAX);
    assert!(least > TTL * 9 / 10 && least < TTL * 91 / 100, "{least:?}");
}

/// Mutations: a write that does not look whether its entry was purged; `preview` that does not.
#[test]
fn what_was_purged_is_not_written_with_any_policy() {
    for policy in POLICIES {
        let mut disk = Disk::new();
        let (bench, series) = disk.daemon(policy, None);
        let at = |seconds: u32, job: Job| {
            bench.set_now(Moment::ZERO + seconds * SECOND);
            Job {
                submitted: Moment::ZERO + seconds * SECOND,
                ..job
            }
        };
        let asked = at(1, job("while it is computed", 0));
        bench.submit(&asked);
        disk.run();
        at(2, job("", 0));
        bench.cached.forget(Some(1));
        at(3, job("", 0));
        bench.done(&bench.jobs()[0], "text");
        assert_eq!(bench.result(&asked).0, "text");
        assert!(disk.take().is_empty(), "{policy:?}");

        let asked = at(4, job("while its write waits", 1));
        bench.submit(&asked);
        disk.run();
        bench.done(&bench.jobs()[1], "text");
        bench.cached.forget(Some(1));
        assert_eq!(disk.run(), 0, "{policy:?}");
        assert_eq!(bench.result(&asked).0, "text");
        assert_eq!(series.writes.get(Written::Dropped).get(), 1);

        let asked = at(5, job("afterwards", 2));
        disk.compute(&bench, &asked, "text");
        assert_eq!(disk.rows().len(), 1, "{policy:?}");
    }
}

/// The store has several threads: the purge's delete ends on one of them while another one has not
/// committed the write. An equal request is computed after the purge.
///
/// Mutations: a write that is not looked at again once it is committed; a delete of newer entries;
/// one that is not tried again.
#[test]
fn what_was_purged_while_its_write_ran_is_deleted_again() {
    for policy in POLICIES {
        let mut disk = Disk::new();
        let (bench, series) = disk.daemon(policy, None);
        bench.set_now(Moment::ZERO + SECOND);
        for request in 0..2 {
            let asked = Job {
                submitted: Moment::ZERO + SECOND,
                ..job(&format!("program {request}"), request)
            };
            bench.submit(&asked);
        }
        disk.run();
        bench.jobs().iter().for_each(|job| bench.done(job, "text"));
        let mut writes = disk.take();
        assert_eq!(writes.len(), 2, "{policy:?}");
        assert!(writes.iter().all(|write| write.is_wanted()));
        bench.cached.forget(Some(1));
        for write in &mut writes {
            write.run(&mut disk.store).expect("the store works");
        }
        let mut newer = disk.rows().remove(0);
        newer.created_at += 1;
        disk.store.put_entry(&newer, 1).expect("the store works");
        for write in writes {
            write.finish(Ok(()));
        }
        assert_eq!(series.writes.get(Written::Stored).get(), 2);
        // The store fails meanwhile.
        for task in disk.take() {
            task.finish(Err(&StoreError::Panicked));
        }
        while disk.acts.do_next().is_some() {}
        disk.run();
        assert_eq!(disk.rows(), [newer], "{policy:?}");
    }
}

/// Mutations: a result of the store that is not shared; one that is a miss.
#[test]
fn a_result_of_the_store_is_sent_and_shared() {
    let mut disk = Disk::new();
    let (before, _) = disk.daemon(CachePolicy::ReadThrough, None);
    disk.compute(&before, &job("x", 0), "text");
    let (after, _) = disk.daemon(CachePolicy::ReadThrough, Some(Arc::default()));
    let asked = job("x", 1);
    after.submit(&asked);
    assert!(disk.take().is_empty(), "the shared level is asked first");
    after.shared().respond(None);
    assert_eq!(disk.run(), 1);
    let (text, served) = after.result(&asked);
    assert_eq!((text.as_str(), served.verdict), ("text", Verdict::Hit));
    assert_eq!(after.shared().stored.lock().unwrap().len(), 1);
    assert!(after.jobs().is_empty());
}

/// Mutations: no end of the patience; a look-up while another one is overdue; a late row that
/// launches the job once more; a row in time that counts as late.
#[test]
fn a_slow_look_up_is_a_miss_and_the_next_ones_do_not_wait() {
    let mut disk = Disk::new();
    let (bench, series) = disk.daemon(CachePolicy::ReadThrough, None);
    let start = Moment::now();
    bench.submit(&job("x", 0));
    assert!(bench.jobs().is_empty(), "it is looked up");
    let patience = disk.acts.do_next().map(|at| at.since(start));
    assert!(patience >= Some(SECOND), "{patience:?}");
    assert_eq!((bench.jobs().len(), series.late.get()), (1, 1));
    bench.submit(&job("y", 1));
    assert_eq!(bench.jobs().len(), 2, "it is computed at once");
    assert_eq!(disk.run(), 1);
    assert_eq!(bench.jobs().len(), 2);
    bench.submit(&job("z", 2));
    assert_eq!((bench.jobs().len(), disk.run()), (2, 1));
    assert_eq!(bench.jobs().len(), 3, "it was a miss");
    while disk.acts.do_next().is_some() {}
    assert_eq!(series.late.get(), 1, "that one was in time");
}

/// Mutations: a response that waits for its write without end; a wait of a single timeout; a wait
/// behind an overdue write; a late write that ends the response, or is counted, once more.
#[test]
fn a_slow_write_ends_its_response_after_a_while() {
    let mut disk = Disk::new();
    let (bench, series) = disk.daemon(CachePolicy::WriteThrough, None);
    let asked = job("x", 0);
    bench.submit(&asked);
    disk.run();
    while disk.acts.do_next().is_some() {}
    let start = Moment::now();
    bench.done(&bench.jobs()[0], "text");
    assert!(bench.events(&asked).is_empty(), "it waits for its write");
    let patience = disk.acts.do_next().map(|at| at.since(start));
    let least = SECOND * limits::STORE_WRITE_FACTOR;
    assert!(patience >= Some(least), "{patience:?}");
    assert_eq!(bench.result(&asked).0, "text");
    assert_eq!(series.unconfirmed.get(), 1);

    let next = job("y", 1);
    bench.submit(&next);
    bench.done(&bench.jobs()[1], "text");
    assert_eq!(
        bench.result(&next).0,
        "text",
        "it does not wait behind that"
    );
    assert_eq!(series.unconfirmed.get(), 2);
    for task in disk.take() {
        task.finish(Err(&StoreError::Panicked));
    }
    assert_eq!(series.writes.get(Written::Failed).get(), 2);
    for asked in [asked, next] {
        assert!(bench.events(&asked).is_empty());
    }
    assert_eq!(series.unconfirmed.get(), 2);
}

/// Mutations: a purge of one step; one that is not tried again, or without end.
#[test]
fn a_purge_deletes_step_by_step_and_is_tried_again() {
    let mut disk = Disk::new();
    let (bench, _) = disk.daemon(CachePolicy::CacheAside, None);
    for number in 0..limits::ERASED_ENTRIES_MAX + 1 {
        let mut row = EntryRow {
            digest: [7; 32],
            tenant: 1,
            created_at: 1,
            expires_at: u64::MAX >> 1,
            value: vec![7],
        };
        row.digest[..4].copy_from_slice(&number.to_le_bytes());
        disk.store.put_entry(&row, 1).expect("the store works");
    }
    bench.cached.delete_behind(Some(1), true);
    let steps = (0..9).take_while(|_| disk.run() > 0).count();
    assert_eq!((steps, disk.rows().len()), (2, 0));

    bench.cached.delete_behind(None, true);
    let mut attempts = 0;
    loop {
        for task in disk.take() {
            attempts += 1;
            task.finish(Err(&StoreError::Panicked));
        }
        if disk.acts.do_next().is_none() {
            break;
        }
    }
    assert_eq!(attempts, limits::ERASE_ATTEMPTS_MAX);
}
