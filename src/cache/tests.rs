//! The engine in front of an engine, with an engine behind it whose every event the test writes.
//!
//! Mutations that these tests catch:
//!
//!  * a joiner that begins a flight, or a leader that does not open its own
//!    (`equal_jobs_at_once_are_one_generation`);
//!  * a digest without the tenant (`tenants_do_not_meet`);
//!  * a last client whose job is not cancelled, whose terminal event comes before the job's, or
//!    whose flight stays open (`the_job_ends_when_the_last_client_leaves`);
//!  * `extend` that is not called (`the_latest_deadline_counts`);
//!  * a refusal that fails those with more time
//!    (`a_deadline_that_is_too_early_for_the_engine_fails_one_alone`);
//!  * `finish` without replays, or a replay without its account
//!    (`a_slow_reader_holds_an_offset_and_nothing_else`);
//!  * a flight with credit for all events, or whose credit comes back although no client reads, or
//!    never; a whole response that waits for a stream; no `handle_credit` of the engine behind
//!    (`a_job_pauses_while_none_of_its_clients_reads`);
//!  * `close` that leaves the flight open, a seat that is not moved after a removal, an offset that
//!    does not advance, a thread that delivers although another one does, or that does not look
//!    again at its end, an end that is not posted (`any_schedule`).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::cached::Cached;
use super::entry::Entry;
use super::metrics::{CacheSeries, Level, Verdicts};
use super::results::{Levels, Results};
use super::shared::{EntryId, FoundEntry, SharedLevel, Sink};
use super::stored::StoreLevel;
use super::table::FLIGHTS;
use crate::config::Cache;
use crate::core::buffered::Account;
use crate::core::{Key, Moment, UnixMillis};
use crate::engine::echo::Echo;
use crate::engine::{
    CacheMode, Class, Defaults, Deliver, Done, Engine, Event, FailReason, Failed, FinishReason,
    Gauges, GenerationId, Job, ModelInfo, Origin, Prompt, Refused, Sampling, Served, State,
    Timings, Usage, Verdict,
};
use crate::error::ErrorCode;
use crate::limits::cache as limits;
use crate::offload::{CancelReason, JobKey, Ticket};
use crate::telemetry::metrics::Metrics;

mod any_schedule;
mod flights;
mod levels;
mod preload;
mod stored;

const SECOND: Duration = Duration::from_secs(1);
const TTL: Duration = Duration::from_secs(100);

const USAGE: Usage = Usage {
    prompt_tokens: 5,
    cached_tokens: 2,
    completion_tokens: 3,
};

pub fn model() -> ModelInfo {
    ModelInfo {
        id: "tiny".into(),
        engine: "llama",
        description: String::new(),
        context_length: 100,
        fingerprint: [7; 32],
        created: 0,
        defaults: Defaults::default(),
    }
}

/// A greedy job of tenant 1 with a minute; the number names its request.
pub fn job(prompt: &str, request: u32) -> Job {
    Job {
        key: JobKey {
            reactor: 0,
            connection: Key::new(1, 1),
            request,
        },
        id: GenerationId::FIRST,
        tenant: 1,
        class: Class::Live,
        weight: 1,
        prompt: Prompt::Raw(prompt.to_owned()),
        sampling: Sampling::default(),
        max_tokens: 10,
        stop: Vec::new(),
        deadline: Moment::ZERO + 60 * SECOND,
        submitted: Moment::ZERO,
        cache: CacheMode::Use,
        ticket: Arc::new(Ticket::new(0)),
    }
}

fn stream(prompt: &str, request: u32, credit: u32) -> Job {
    Job {
        ticket: Arc::new(Ticket::new(credit)),
        ..job(prompt, request)
    }
}

/// The end of a job, with the last part of its text.
fn done(text: &str) -> Event {
    Event::Done(Box::new(Done {
        text: text.to_owned(),
        finish_reason: FinishReason::Stop,
        usage: USAGE,
        timings: Timings::default(),
        served: Served::default(),
    }))
}

/// Called in the middle of a submission or of a delivery.
type Hook = Box<dyn FnOnce() + Send>;

/// Completes no job by itself.
#[derive(Default)]
struct Scripted {
    jobs: Mutex<Vec<Job>>,
    refusals: Mutex<Vec<Refused>>,
    hook: Mutex<Option<Hook>>,
    cancelled: Mutex<Vec<JobKey>>,
    credited: Mutex<Vec<JobKey>>,
    overdue: Mutex<Vec<JobKey>>,
}

impl Engine for Scripted {
    fn submit(&self, job: Job) -> Result<(), Refused> {
        if let Some(hook) = self.hook.lock().unwrap().take() {
            hook();
        }
        if let Some(refused) = self.refusals.lock().unwrap().pop() {
            return Err(refused);
        }
        self.jobs.lock().unwrap().push(job);
        Ok(())
    }

    fn cancel(&self, key: JobKey) {
        self.cancelled.lock().unwrap().push(key);
    }

    fn handle_credit(&self, key: JobKey) {
        self.credited.lock().unwrap().push(key);
    }

    fn handle_deadline(&self, key: JobKey) {
        self.overdue.lock().unwrap().push(key);
    }

    fn state(&self) -> State {
        State::Ready
    }

    fn model(&self) -> Option<ModelInfo> {
        Some(model())
    }

    fn gauges(&self) -> Gauges {
        Gauges::default()
    }

    fn drain(&self) {}
}

/// The second part is what another thread does before the next events arrive.
#[derive(Default)]
struct Mailbox(Mutex<Vec<(JobKey, Event)>>, Mutex<Option<Hook>>);

impl Deliver for Mailbox {
    fn deliver(&self, events: &mut Vec<(JobKey, Event)>) {
        let hook = self.1.lock().unwrap().take();
        hook.into_iter().for_each(|hook| hook());
        self.0.lock().unwrap().append(events);
    }
}

struct Bench {
    cached: Arc<Cached>,
    results: Arc<Results>,
    inner: Arc<Scripted>,
    mailbox: Arc<Mailbox>,
    account: Account,
    now: Arc<AtomicU64>,
    shared: Option<Arc<Elsewhere>>,
}

/// A shared level that responds when the test wants it.
#[derive(Default)]
struct Elsewhere {
    is_lost: AtomicBool,
    asked: Mutex<Vec<(EntryId, Sink)>>,
    stored: Mutex<Vec<(EntryId, Vec<u8>)>>,
}

impl SharedLevel for Elsewhere {
    fn get(&self, id: EntryId, _: Moment, sink: Sink) -> bool {
        let is_there = !self.is_lost.load(Ordering::Relaxed);
        if is_there {
            self.asked.lock().unwrap().push((id, sink));
        }
        is_there
    }

    fn put(&self, id: EntryId, entry: &[u8], _: Duration) {
        self.stored.lock().unwrap().push((id, entry.to_vec()));
    }

    fn delete(&self, _: Option<u64>) {}
}

impl Elsewhere {
    fn respond(&self, entry: Option<Vec<u8>>) {
        self.respond_with(entry.map(|entry| FoundEntry { entry, rest: None }));
    }

    fn respond_with(&self, found: Option<FoundEntry>) {
        let (_, sink) = self.asked.lock().unwrap().pop().expect("it was asked");
        sink(found);
    }
}

fn results(
    mailbox: &Arc<Mailbox>,
    account: &Account,
    now: &Arc<AtomicU64>,
    (shared, stored): (Option<Arc<dyn SharedLevel>>, Option<StoreLevel>),
) -> Arc<Results> {
    let config = Cache {
        max_size: 64 << 20,
        ttl: TTL,
        ..Cache::default()
    };
    let metrics = Metrics::new("tiny");
    let verdicts = Verdicts::of(&metrics.series::<CacheSeries>(), Level::Generation);
    let now = Arc::clone(now);
    let clock = move || Moment::from_micros(now.load(Ordering::Relaxed));
    let (mailbox, account) = (mailbox.clone(), account.clone());
    let clock = Box::new(clock);
    let levels = Levels {
        verdicts,
        shared,
        stored,
    };
    Arc::new(Results::new(mailbox, account, &config, levels, clock))
}

impl Bench {
    fn new() -> Bench {
        Bench::with(None)
    }

    fn with(shared: Option<Arc<Elsewhere>>) -> Bench {
        Bench::of(shared, None)
    }

    fn of(shared: Option<Arc<Elsewhere>>, stored: Option<StoreLevel>) -> Bench {
        let (mailbox, account) = (Arc::new(Mailbox::default()), Account::new(1 << 30));
        let (now, inner) = (Arc::default(), Arc::new(Scripted::default()));
        let level = shared.clone().map(|level| level as Arc<dyn SharedLevel>);
        let results = results(&mailbox, &account, &now, (level, stored));
        Bench {
            cached: Arc::new(Cached::new(results.clone(), inner.clone())),
            results,
            inner,
            mailbox,
            account,
            now,
            shared,
        }
    }

    fn shared(&self) -> &Elsewhere {
        self.shared.as_ref().expect("a shared level")
    }

    fn submit(&self, job: &Job) {
        self.cached.submit(job.clone()).expect("it is admitted");
    }

    /// Submits a job in the middle of the next submission to the engine behind.
    fn submit_meanwhile(&self, job: &Job) {
        let (cached, job) = (self.cached.clone(), job.clone());
        let hook = move || cached.submit(job).expect("it is admitted");
        *self.inner.hook.lock().unwrap() = Some(Box::new(hook));
    }

    /// Returns the jobs that the engine behind has got.
    fn jobs(&self) -> Vec<Job> {
        self.inner.jobs.lock().unwrap().clone()
    }

    fn set_now(&self, now: Moment) {
        self.now.store(now.as_micros(), Ordering::Relaxed);
    }

    fn token(&self, job: &Job, text: &str) {
        let text = text.to_owned();
        self.results.deliver_one(job.key, Event::Token { text });
    }

    fn done(&self, job: &Job, text: &str) {
        self.results.deliver_one(job.key, done(text));
    }

    fn fail(&self, job: &Job, reason: FailReason, text: &str) {
        let failed = Failed {
            reason,
            message: "why".to_owned(),
            text: text.to_owned(),
            usage: USAGE,
            timings: Timings::default(),
        };
        self.results
            .deliver_one(job.key, Event::Failed(Box::new(failed)));
    }

    /// Takes the events of a request.
    fn events(&self, job: &Job) -> Vec<Event> {
        let mut all = self.mailbox.0.lock().unwrap();
        let (mine, others) = all.drain(..).partition(|(key, _)| *key == job.key);
        *all = others;
        let mine: Vec<(JobKey, Event)> = mine;
        mine.into_iter().map(|(_, event)| event).collect()
    }

    /// Takes the text and the source of a request that is done.
    fn result(&self, job: &Job) -> (String, Served) {
        let (mut text, mut served) = (String::new(), None);
        for event in self.events(job) {
            assert!(served.is_none(), "nothing follows the end");
            match event {
                Event::Served(_) => assert!(text.is_empty()),
                Event::Token { text: more } => text.push_str(&more),
                Event::Done(done) => {
                    text.push_str(&done.text);
                    served = Some(done.served);
                }
                Event::Failed(failed) => panic!("{failed:?}"),
            }
        }
        (text, served.expect("an end"))
    }

    fn failure(&self, job: &Job) -> Failed {
        match self.events(job).pop() {
            Some(Event::Failed(failed)) => *failed,
            other => panic!("{other:?}"),
        }
    }

    fn leave(&self, job: &Job) {
        job.ticket.cancel(CancelReason::Disconnect);
        self.cached.cancel(job.key);
    }
}

fn entry() -> Entry {
    Entry {
        text: "text".into(),
        finish_reason: FinishReason::Length,
        usage: USAGE,
        origin: Origin {
            id: GenerationId::FIRST,
            latency: Duration::from_micros(1_234_567),
        },
        completed: Moment::ZERO,
        age_before: Duration::ZERO,
    }
}

fn cancelled(reason: CancelReason) -> FailReason {
    FailReason::Cancelled(reason)
}

/// Mutations: `refresh` that finds the entry, or that does not replace it; `bypass` with a digest.
#[test]
fn the_clients_wish_is_honoured() {
    let bench = Bench::new();
    let with = |cache, job| Job { cache, ..job };
    bench.submit(&job("x", 0));
    bench.done(&bench.jobs()[0], "old");
    let refreshed = with(CacheMode::Refresh, job("x", 1));
    bench.submit(&refreshed);
    bench.done(&bench.jobs()[1], "new");
    assert_eq!(bench.result(&refreshed).0, "new");
    let hit = job("x", 2);
    bench.submit(&hit);
    assert_eq!(bench.result(&hit).0, "new");
    let bypassed = with(CacheMode::Bypass, job("x", 3));
    let mut drawn = job("x", 4);
    drawn.sampling.temperature = 1.0;
    for job in [bypassed, drawn] {
        bench.submit(&job);
        let inner = bench.jobs().pop().unwrap();
        assert_eq!((inner.key, inner.cache), (job.key, job.cache));
        assert!(Arc::ptr_eq(&inner.ticket, &job.ticket));
        bench.leave(&job);
        assert_eq!(bench.inner.cancelled.lock().unwrap().pop(), Some(job.key));
        bench.done(&inner, "own");
        let (text, served) = bench.result(&job);
        assert_eq!((text.as_str(), served), ("own", Served::default()));
    }
}

/// Mutation: `end` that counts all that was removed.
#[test]
fn a_result_that_replaces_its_own_predecessor_evicts_nothing() {
    let bench = Bench::new();
    let evicted = || bench.cached.gauges().kept.evicted;
    let compute = |job: Job, now: Moment, text: &str| {
        bench.set_now(now);
        bench.submit(&Job {
            submitted: now,
            deadline: now + 60 * SECOND,
            ..job
        });
        bench.done(&bench.jobs().pop().unwrap(), text);
    };
    let refresh = Job {
        cache: CacheMode::Refresh,
        ..job("x", 1)
    };
    let late = Moment::ZERO + 2 * TTL;
    compute(job("x", 0), Moment::ZERO, "x");
    compute(refresh, Moment::ZERO, "x");
    compute(job("x", 2), late, "x");
    assert_eq!(bench.jobs().len(), 3, "each was computed");
    assert_eq!((bench.cached.gauges().kept.results, evicted()), (1, 0));
    // More than all shards hold.
    let text = "x".repeat(1 << 18);
    for request in 3..100 {
        compute(job(&request.to_string(), request), late, &text);
    }
    assert!(evicted() > 0);
}

/// Mutations: `is_forgotten` that is never true, or that does not mind the tenant;
/// `free_forgotten` that frees nothing.
#[test]
fn what_is_forgotten_is_computed_again() {
    let bench = Bench::new();
    let at = |seconds: u32, tenant, job| Job {
        submitted: Moment::ZERO + seconds * SECOND,
        tenant,
        ..job
    };
    let computed = |jobs: [Job; 2]| {
        let before = bench.jobs().len();
        jobs.iter().for_each(|job| bench.submit(job));
        let new = bench.jobs().split_off(before);
        new.iter().for_each(|job| bench.done(job, "x"));
        new.iter().map(|job| job.tenant).collect::<Vec<u64>>()
    };
    bench.set_now(Moment::ZERO + SECOND);
    assert_eq!(
        computed([at(1, 1, job("x", 0)), at(1, 2, job("x", 1))]),
        [1, 2]
    );
    assert!(computed([at(1, 1, job("x", 2)), at(1, 2, job("x", 3))]).is_empty());
    bench.set_now(Moment::ZERO + 2 * SECOND);
    bench.cached.forget(Some(1));
    bench.set_now(Moment::ZERO + 3 * SECOND);
    assert_eq!(
        computed([at(3, 1, job("x", 4)), at(3, 2, job("x", 5))]),
        [1]
    );
    bench.cached.forget(None);
    assert_eq!(bench.cached.gauges().kept.results, 2);
    bench.cached.free_forgotten(Some(1));
    assert_eq!(bench.cached.gauges().kept.results, 1);
    bench.cached.free_forgotten(None);
    assert_eq!(bench.cached.gauges().kept.results, 0);
    bench.set_now(Moment::ZERO + 4 * SECOND);
    assert_eq!(
        computed([at(4, 1, job("x", 6)), at(4, 2, job("x", 7))]),
        [1, 2]
    );
}

/// A key is erased, or a purge comes, while a generation runs.
///
/// Mutations: `finish` that keeps the entry in memory, or that shares it.
#[test]
fn what_was_asked_for_before_a_purge_is_not_kept_after_it() {
    let bench = Bench::with(Some(Arc::default()));
    let at = |seconds: u32, tenant, request| Job {
        submitted: Moment::ZERO + seconds * SECOND,
        tenant,
        ..job("x", request)
    };
    bench.set_now(Moment::ZERO + SECOND);
    for first in [at(1, 1, 0), at(1, 2, 1)] {
        bench.submit(&first);
        bench.shared().respond(None);
    }
    bench.set_now(Moment::ZERO + 2 * SECOND);
    bench.cached.forget(Some(1));
    bench.set_now(Moment::ZERO + 3 * SECOND);
    for (job, request) in bench.jobs().iter().zip([at(1, 1, 0), at(1, 2, 1)]) {
        bench.done(job, "text");
        assert_eq!(bench.result(&request).0, "text");
    }
    let shared = bench.shared().stored.lock().unwrap();
    let tenants: Vec<u64> = shared.iter().map(|(id, _)| id.tenant).collect();
    assert_eq!(tenants, [2]);
    assert_eq!(bench.cached.gauges().kept.results, 1);
}

/// Mutations: `apply` that leaves the bound, or the switch.
#[test]
fn a_reload_empties_a_cache_that_is_switched_off() {
    let bench = Bench::new();
    bench.submit(&job("x", 0));
    bench.done(&bench.jobs()[0], "x");
    let mut config = Cache::default();
    assert_eq!(bench.cached.gauges().kept.results, 1);
    config.enabled = false;
    bench.results.apply(&config);
    let kept = bench.cached.gauges().kept;
    assert_eq!((kept.results, kept.max_bytes), (0, 0));
    let passed = job("x", 1);
    bench.submit(&passed);
    assert_eq!(bench.jobs()[1].key, passed.key);
    config.enabled = true;
    bench.results.apply(&config);
    bench.submit(&job("x", 2));
    assert_eq!(bench.jobs()[2].key.reactor, FLIGHTS);
}

/// Mutation: `join` without its look at the classes.
#[test]
fn a_live_request_does_not_wait_behind_background_work() {
    let bench = Bench::new();
    let background = |request| Job {
        class: Class::Background,
        ..job("x", request)
    };
    bench.submit(&background(0));
    bench.submit(&background(1));
    assert_eq!(bench.jobs().len(), 1);
    bench.submit(&job("x", 2));
    assert_eq!(bench.jobs().len(), 2);
    bench.submit(&background(3));
    bench.submit(&job("x", 4));
    assert_eq!(bench.jobs().len(), 2);
    bench.jobs().iter().for_each(|job| bench.done(job, "x"));
    (0..5).for_each(|request| assert_eq!(bench.result(&job("x", request)).0, "x"));
    assert!(bench.results.is_empty());
}

/// Echo completes a job within `submit`. Mutation: a lock that is held across that call hangs here.
#[test]
fn an_engine_may_complete_a_job_at_once() {
    let (mailbox, account) = (Arc::new(Mailbox::default()), Account::new(1 << 30));
    let results = results(&mailbox, &account, &Arc::default(), (None, None));
    let cached = Cached::new(results.clone(), Echo::new(results.clone()));
    let verdicts = [0, 1].map(|request| {
        let job = stream("x", request, 32);
        cached.submit(job.clone()).unwrap();
        let events: Vec<_> = mailbox.0.lock().unwrap().drain(..).collect();
        assert!(events.iter().all(|(key, _)| *key == job.key));
        match &events.last().unwrap().1 {
            Event::Done(done) => done.served.verdict,
            other => panic!("{other:?}"),
        }
    });
    assert_eq!(verdicts, [Verdict::Miss, Verdict::Hit]);
    assert!(results.is_empty());
    cached.drain();
    assert_eq!(cached.submit(job("x", 2)), Err(Refused::Draining));
}
