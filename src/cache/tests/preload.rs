//! Preloading, with a store whose tasks the test runs, and a timer whose acts it does.

use super::stored::Disk;
use super::*;
use crate::cache::preload::{Kind, Preload, PreloadSeries};
use crate::config::CachePolicy;
use crate::store::StoreError;
use crate::store::interface::entries::Entries as _;

/// An engine that computes nothing, in a state of the test's.
struct Idle {
    state: Mutex<State>,
    model: Mutex<Option<ModelInfo>>,
    gauges: Mutex<Gauges>,
    jobs: Mutex<Vec<Job>>,
}

impl Engine for Idle {
    fn submit(&self, job: Job) -> Result<(), Refused> {
        self.jobs.lock().unwrap().push(job);
        Ok(())
    }

    fn cancel(&self, _: JobKey) {}

    fn handle_credit(&self, _: JobKey) {}

    fn handle_deadline(&self, _: JobKey) {}

    fn state(&self) -> State {
        self.state.lock().unwrap().clone()
    }

    fn model(&self) -> Option<ModelInfo> {
        self.model.lock().unwrap().clone()
    }

    fn gauges(&self) -> Gauges {
        *self.gauges.lock().unwrap()
    }

    fn drain(&self) {}
}

/// A daemon that has just started, with the entries of the one before it.
struct Start {
    disk: Disk,
    bench: Bench,
    engine: Arc<Idle>,
    series: Arc<PreloadSeries>,
}

type Change = fn(&Start);

fn asked(request: u32) -> Job {
    job(&format!("program {request}"), request)
}

impl Start {
    fn with(entries: u32) -> Start {
        let mut disk = Disk::new();
        let (before, _) = disk.daemon(CachePolicy::CacheAside, None);
        for request in 0..entries {
            disk.compute(&before, &asked(request), "text");
        }
        let (bench, _) = disk.daemon(CachePolicy::CacheAside, None);
        Start {
            disk,
            bench,
            engine: Arc::new(Idle {
                state: Mutex::new(State::Ready),
                model: Mutex::new(Some(model())),
                gauges: Mutex::default(),
                jobs: Mutex::default(),
            }),
            series: Metrics::new("tiny").series(),
        }
    }

    fn begin(&self, has_entries: bool) {
        let preload = Preload::new(
            Arc::clone(&self.bench.results),
            Arc::clone(&self.engine) as _,
            self.disk.timer.clone(),
            Arc::clone(&self.disk.requests),
            Arc::clone(&self.series),
            has_entries,
        );
        preload.begin();
    }

    /// Takes steps, and reads their pages, as long as there are more. Returns how many pages.
    fn run(&mut self) -> usize {
        let mut pages = 0;
        for _ in 0..100 {
            if self.disk.acts.do_next().is_none() {
                return pages;
            }
            pages += self.disk.run();
        }
        panic!("preloading does not end");
    }

    fn count(&self, kind: Kind) -> u64 {
        self.series.preloaded.get(kind).get()
    }

    fn prompts(&self) -> usize {
        self.engine.jobs.lock().unwrap().len()
    }
}

/// More entries than a page has.
///
/// Mutations: a single page, or one page again and again; the first entry of a page as the place of
/// the next one; entries that are counted and not stored; a model that is not known to the results.
#[test]
fn all_entries_come_page_by_page_and_then_each_prompt() {
    const ENTRIES: u32 = limits::PRELOADED_PAGE_ENTRIES + 6;
    let mut start = Start::with(ENTRIES);
    start.begin(true);
    // A whole one, the rest, and one without entries.
    assert_eq!(start.run(), 3);
    assert_eq!(start.count(Kind::Entry), u64::from(ENTRIES));
    for request in 0..ENTRIES {
        let asked = asked(request);
        start.bench.submit(&asked);
        assert_eq!(start.bench.result(&asked).1.verdict, Verdict::Hit);
    }
    let prompts = 1 + limits::PRELOADED_LANGUAGES_MAX;
    assert_eq!(start.count(Kind::Prompt), prompts as u64);
    let jobs = start.engine.jobs.lock().unwrap();
    assert_eq!(jobs.len(), prompts);
    for job in jobs.iter() {
        // It gives way to each client, and its only token reaches no client.
        assert_eq!(
            (job.class, job.cache),
            (Class::Background, CacheMode::Bypass)
        );
        assert_eq!((job.max_tokens, job.tenant), (1, 0));
        assert_eq!(job.key.reactor, FLIGHTS);
        let time = job.deadline.since(job.submitted);
        assert_eq!(time, limits::PRELOAD_TIME);
    }
    drop(jobs);
    let last = start.engine.jobs.lock().unwrap()[0].clone();
    start.bench.done(&last, "x");
    assert!(start.bench.mailbox.0.lock().unwrap().is_empty());
}

/// Mutations: each part of `is_busy` that is left out; a step that is not taken later.
#[test]
fn steps_wait_for_an_idle_engine_and_a_store_that_works() {
    let mut start = Start::with(1);
    start.begin(true);
    let busy: [(&str, Change); 5] = [
        ("loading", |start| {
            *start.engine.state.lock().unwrap() = State::Loading { percent: 50 };
        }),
        ("without a model", |start| {
            *start.engine.model.lock().unwrap() = None;
        }),
        ("computing", |start| {
            start.engine.gauges.lock().unwrap().sequences_running = 1;
        }),
        ("with a queue", |start| {
            start.engine.gauges.lock().unwrap().queue_depth = 1;
        }),
        ("with a store that fails", |start| {
            let health = start.disk.requests.health();
            health.note_failure("the test's".to_owned());
        }),
    ];
    for (what, make_busy) in busy {
        make_busy(&start);
        assert!(start.disk.acts.do_next().is_some(), "{what}");
        assert!(start.disk.take().is_empty(), "{what}");
        *start.engine.state.lock().unwrap() = State::Ready;
        *start.engine.model.lock().unwrap() = Some(model());
        *start.engine.gauges.lock().unwrap() = Gauges::default();
        start.disk.requests.health().note_success(0);
    }
    let before = Moment::now();
    start.engine.gauges.lock().unwrap().queue_depth = 1;
    assert!(start.disk.acts.do_next().is_some());
    let at = start.disk.acts.do_next();
    assert!(at >= Some(before + limits::PRELOAD_PAUSE), "it rests");
    *start.engine.gauges.lock().unwrap() = Gauges::default();
    start.run();
    assert_eq!((start.count(Kind::Entry), start.prompts()), (1, 13));
}

/// Mutation: an engine that has failed and is looked at again.
#[test]
fn preloading_ends_with_an_engine_that_has_failed() {
    let start = Start::with(1);
    *start.engine.state.lock().unwrap() = State::Failed("the test's".to_owned());
    start.begin(true);
    assert!(start.disk.acts.do_next().is_some());
    assert!(start.disk.acts.do_next().is_none());
    assert!(start.disk.take().is_empty());
}

/// Mutations: a page that fails, or finds no place, as the last one.
#[test]
fn a_page_that_was_not_read_is_read_later() {
    let mut start = Start::with(1);
    start.begin(true);
    for _ in 0..3 {
        assert!(start.disk.acts.do_next().is_some());
        for page in start.disk.take() {
            page.finish(Err(&StoreError::Panicked));
        }
    }
    start.run();
    assert_eq!(start.count(Kind::Entry), 1);

    let start = Start::with(1);
    start.disk.requests.close();
    start.begin(true);
    for _ in 0..3 {
        assert!(start.disk.acts.do_next().is_some(), "it tries again");
    }
}

/// Mutation: pages that are read although the last one had no room.
#[test]
fn a_page_without_room_is_the_last_one() {
    let mut start = Start::with(limits::PRELOADED_PAGE_ENTRIES + 6);
    let config = Cache {
        max_size: 2 * limits::SHARDS * 100,
        ..Cache::default()
    };
    start.bench.results.apply(&config);
    start.begin(true);
    assert_eq!(start.run(), 1);
    assert_eq!((start.count(Kind::Entry), start.prompts()), (0, 13));
}

/// Mutation: entries that remove others.
#[test]
fn entries_without_room_are_left_out() {
    let mut start = Start::with(limits::PRELOADED_PAGE_ENTRIES + 6);
    let config = Cache {
        // Enough for the tables of some shards, and for no entry beside another one.
        max_size: 2 * limits::SHARDS * 1_000,
        ttl: TTL,
        ..Cache::default()
    };
    start.bench.results.apply(&config);
    let own = job("a client's", 1_000);
    start.disk.compute(&start.bench, &own, &"x".repeat(300));
    let before = start.bench.cached.gauges().kept;
    assert_eq!(before.results, 1);
    start.begin(true);
    start.run();
    let kept = start.bench.cached.gauges().kept;
    let entries = start.count(Kind::Entry);
    assert_eq!(kept.results as u64, 1 + entries);
    assert_eq!(kept.evicted, 0);
    assert!(entries < limits::PRELOADED_PAGE_ENTRIES.into(), "{entries}");
    let again = job("a client's", 1_001);
    start.bench.submit(&again);
    assert_eq!(start.bench.result(&again).1.verdict, Verdict::Hit);
    assert_eq!(start.prompts(), 13);
}

/// Mutations: `preload` that does not look at the switch, at purges, or at an entry that is there.
#[test]
fn entries_that_are_not_wanted_are_left_out() {
    let disable = |start: &mut Start| {
        let config = Cache {
            enabled: false,
            ..Cache::default()
        };
        start.bench.results.apply(&config);
    };
    let purge = |start: &mut Start| {
        start.bench.set_now(Moment::now() + SECOND);
        start.bench.cached.forget(Some(1));
    };
    let replace = |start: &mut Start| {
        start.disk.compute(&start.bench, &asked(0), "newer");
    };
    let damage = |start: &mut Start| {
        let mut row = start.disk.rows().remove(0);
        row.value.pop();
        row.created_at += 1;
        start
            .disk
            .store
            .put_entry(&row, row.created_at)
            .expect("the store works");
    };
    let changes: [&dyn Fn(&mut Start); 4] = [&disable, &purge, &replace, &damage];
    for (number, change) in changes.into_iter().enumerate() {
        let mut start = Start::with(1);
        change(&mut start);
        start.begin(true);
        start.run();
        assert_eq!(start.count(Kind::Entry), 0, "change {number}");
        assert_eq!(start.prompts(), 13, "change {number}");
    }
}

/// Mutation: prompts without pauses between them.
#[test]
fn there_is_a_pause_behind_each_prompt() {
    let start = Start::with(0);
    start.begin(false);
    let mut earliest = Moment::ZERO;
    for number in 1..=13 {
        let before = Moment::now();
        let at = start.disk.acts.do_next();
        assert!(at >= Some(earliest), "the pause before prompt {number}");
        assert_eq!(start.prompts(), number);
        earliest = before + limits::PRELOAD_PAUSE;
    }
}

/// Mutations: prompts for an engine without a model; entries of a store that keeps none.
#[test]
fn what_is_not_there_is_not_preloaded() {
    let mut start = Start::with(1);
    start.begin(false);
    assert_eq!(start.run(), 0);
    assert_eq!((start.count(Kind::Entry), start.prompts()), (0, 13));

    let mut start = Start::with(1);
    let model = ModelInfo {
        fingerprint: [0; 32],
        ..model()
    };
    *start.engine.model.lock().unwrap() = Some(model);
    start.begin(false);
    start.run();
    assert_eq!((start.count(Kind::Entry), start.prompts()), (0, 0));
}
