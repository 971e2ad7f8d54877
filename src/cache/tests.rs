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

fn cancelled(reason: CancelReason) -> FailReason {
    FailReason::Cancelled(reason)
}

#[test]
fn equal_jobs_at_once_are_one_generation() {
    let bench = Bench::new();
    let jobs: Vec<Job> = (0..500)
        .map(|request| match request % 2 {
            0 => job("x", request),
            _ => stream("x", request, 32),
        })
        .collect();
    jobs.iter().for_each(|job| bench.submit(job));
    let [inner] = &bench.jobs()[..] else {
        panic!("one generation")
    };
    assert_eq!(
        (inner.key.reactor, inner.cache),
        (FLIGHTS, CacheMode::Bypass)
    );
    bench.token(inner, "a");
    bench.token(inner, "bc");
    bench.set_now(Moment::ZERO + SECOND);
    bench.done(inner, "d");
    for (index, job) in jobs.iter().enumerate() {
        let (text, served) = bench.result(job);
        assert_eq!(text, "abcd");
        assert!(served.is_reproducible);
        match index {
            0 => assert_eq!((served.verdict, served.origin), (Verdict::Miss, None)),
            _ => {
                let latency = served.origin.map(|origin| origin.latency);
                assert_eq!((served.verdict, latency), (Verdict::Joined, Some(SECOND)));
            }
        }
    }
    // Another one finds the result.
    bench.set_now(Moment::ZERO + 3 * SECOND);
    let later = |job: Job| Job {
        submitted: Moment::ZERO + 3 * SECOND,
        ..job
    };
    for job in [later(job("x", 600)), later(stream("x", 601, 1))] {
        bench.submit(&job);
        let (text, served) = bench.result(&job);
        assert_eq!((text.as_str(), served.verdict), ("abcd", Verdict::Hit));
        assert_eq!(served.age, 2 * SECOND);
        assert_eq!(served.origin.map(|origin| origin.id), Some(job.id));
    }
    assert_eq!(bench.jobs().len(), 1);
    // Until it expires.
    bench.submit(&Job {
        submitted: Moment::ZERO + SECOND + TTL,
        ..job("x", 602)
    });
    assert_eq!(bench.jobs().len(), 2);
}

#[test]
fn tenants_do_not_meet() {
    let bench = Bench::new();
    bench.submit(&job("x", 0));
    bench.submit(&Job {
        tenant: 2,
        ..job("x", 1)
    });
    bench.submit(&job("y", 2));
    let jobs = bench.jobs();
    assert_eq!(jobs.len(), 3);
    let tenants = jobs.iter().map(|job| job.tenant);
    assert_eq!(tenants.collect::<Vec<_>>(), [1, 2, 1]);
}

/// Mutation: a stream that is served at the end alone.
#[test]
fn a_stream_gets_what_there_is_and_then_each_token() {
    let bench = Bench::new();
    let (first, late) = (stream("x", 0, 9), stream("x", 1, 9));
    bench.submit(&first);
    let inner = &bench.jobs()[0];
    bench.token(inner, "ab");
    bench.submit(&late);
    bench.token(inner, "c");
    let tokens = |job| {
        let events = bench.events(job).into_iter();
        let text = |event| match event {
            Event::Served(served) => Some(served.verdict.as_str().to_owned()),
            Event::Token { text } => Some(text),
            _ => None,
        };
        events.filter_map(text).collect::<Vec<_>>()
    };
    assert_eq!(tokens(&first), ["miss", "ab", "c"]);
    assert_eq!(tokens(&late), ["joined", "ab", "c"]);
}

#[test]
fn the_job_ends_when_the_last_client_leaves() {
    let bench = Bench::new();
    let (one, other) = (job("x", 0), stream("x", 1, 1));
    bench.submit(&one);
    bench.submit(&other);
    let inner = &bench.jobs()[0];
    bench.leave(&one);
    assert_eq!(
        bench.failure(&one).reason,
        cancelled(CancelReason::Disconnect)
    );
    assert_eq!(inner.ticket.cancelled(), None, "one client waits");
    bench.leave(&other);
    assert_eq!(inner.ticket.cancelled(), Some(CancelReason::Disconnect));
    assert_eq!(*bench.inner.cancelled.lock().unwrap(), [inner.key]);
    assert!(
        bench.events(&other).is_empty(),
        "the engine has not stopped yet"
    );
    // It does not get in the way of the next one.
    let next = job("x", 2);
    bench.submit(&next);
    assert_eq!(bench.jobs().len(), 2);
    bench.fail(inner, cancelled(CancelReason::Disconnect), "");
    assert_eq!(
        bench.failure(&other).reason,
        cancelled(CancelReason::Disconnect)
    );
    bench.done(&bench.jobs()[1], "x");
    assert_eq!(bench.result(&next).0, "x");
    assert!(bench.results.is_empty());
}

#[test]
fn a_slow_reader_holds_an_offset_and_nothing_else() {
    let bench = Bench::new();
    let (slow, fast, whole) = (stream("x", 0, 1), stream("x", 1, 1 << 20), job("x", 2));
    for job in [&slow, &fast, &whole] {
        bench.submit(job);
    }
    let inner = &bench.jobs()[0];
    let text = "é".repeat(2 * limits::PIECE_BYTES_MAX);
    for part in text.as_bytes().chunks(64) {
        bench.token(inner, std::str::from_utf8(part).unwrap());
    }
    assert!(bench.account.held() >= text.len());
    bench.done(inner, "");
    assert_eq!(bench.result(&fast).0, text);
    assert_eq!(bench.result(&whole).0, text);
    let mut got = String::new();
    let mut rounds = 0;
    while !bench.results.is_empty() {
        assert!(bench.account.held() >= text.len());
        for event in bench.events(&slow) {
            if let Event::Token { text } = event {
                got.push_str(&text);
            }
        }
        assert!(slow.ticket.grant(1), "it waits for this");
        bench.cached.handle_credit(slow.key);
        rounds += 1;
        assert!(rounds < 10);
    }
    let (rest, _) = bench.result(&slow);
    assert!(rounds > 0, "the end came with everything");
    assert_eq!(got + &rest, text);
    assert_eq!(bench.account.held(), 0);
    // A hit is played at the reader's pace, too; and it can be cancelled.
    let hit = stream("x", 3, 1);
    bench.submit(&hit);
    assert_eq!(bench.events(&hit).len(), 2);
    assert!(bench.account.held() >= text.len());
    bench.leave(&hit);
    assert_eq!(
        bench.failure(&hit).reason,
        cancelled(CancelReason::Disconnect)
    );
    assert_eq!(bench.account.held(), 0);
}

#[test]
fn a_job_pauses_while_none_of_its_clients_reads() {
    const UNREAD: u32 = limits::FLIGHT_CREDIT_EVENTS;
    let bench = Bench::new();
    let (first, second) = (stream("x", 0, 2), stream("x", 1, 3));
    bench.submit(&first);
    bench.submit(&second);
    let inner = &bench.jobs()[0];
    // Sends as many events as the job has credit for.
    let send = || {
        let mut sent = 0;
        while sent < 1_000 && inner.ticket.take_credit() {
            bench.token(inner, "t");
            sent += 1;
        }
        sent
    };
    assert_eq!(send(), 3 + UNREAD, "as many as the faster one reads");
    // One that reads again is enough, and the engine learns it.
    assert!(first.ticket.grant(1));
    bench.cached.handle_credit(first.key);
    assert_eq!(*bench.inner.credited.lock().unwrap(), [inner.key]);
    assert_eq!(send(), UNREAD);
    // So is one that comes.
    let third = stream("x", 2, 1);
    bench.submit(&third);
    assert_eq!(bench.inner.credited.lock().unwrap().len(), 2);
    assert_eq!(send(), UNREAD);
    // A response in one piece needs all of it, however many streams wait.
    let whole = job("x", 3);
    bench.submit(&whole);
    assert_eq!(bench.inner.credited.lock().unwrap().len(), 3);
    assert_eq!(send(), 1_000);
    bench.done(inner, "");
    let (text, _) = bench.result(&whole);
    assert_eq!(text.len(), 3 + 3 * UNREAD as usize + 1_000);
    // And one that waits for it alone never pauses.
    let other = job("y", 4);
    bench.submit(&other);
    let inner = &bench.jobs()[1];
    assert!((0..1_000).all(|_| inner.ticket.take_credit()));
}

#[test]
fn the_latest_deadline_counts() {
    let bench = Bench::new();
    let until = |seconds: u32| Moment::ZERO + seconds * SECOND;
    let with = |deadline, job| Job { deadline, ..job };
    let first = with(until(10), stream("x", 0, 9));
    let second = with(until(20), job("x", 1));
    bench.submit(&first);
    bench.submit(&second);
    let inner = &bench.jobs()[0];
    bench.token(inner, "ab");
    bench.set_now(until(10));
    assert!(!inner.ticket.expire(inner.deadline, until(10)));
    bench.cached.handle_deadline(first.key);
    let failed = bench.failure(&first);
    let timeout = FailReason::Error(ErrorCode::GenerationTimeout);
    assert_eq!((failed.reason, failed.text.as_str()), (timeout.clone(), ""));
    // The last one's deadline is the job's.
    bench.set_now(until(20));
    bench.cached.handle_deadline(second.key);
    assert_eq!(inner.ticket.cancelled(), None);
    assert_eq!(*bench.inner.overdue.lock().unwrap(), [inner.key]);
    assert!(inner.ticket.expire(inner.deadline, until(20)));
    bench.fail(inner, timeout.clone(), "c");
    let failed = bench.failure(&second);
    assert_eq!((failed.reason, failed.text.as_str()), (timeout, "abc"));
    assert_eq!(failed.usage, Usage::default(), "the first one has paid");
}

/// Mutation: `leave` that reports the job's deadline although it is later.
#[test]
fn a_deadline_that_is_earlier_than_the_jobs_cancels_it() {
    let bench = Bench::new();
    let until = |seconds: u32| Moment::ZERO + seconds * SECOND;
    let short = Job {
        deadline: until(10),
        ..job("x", 0)
    };
    let long = job("x", 1);
    bench.submit(&short);
    bench.submit(&long);
    let inner = &bench.jobs()[0];
    bench.leave(&long);
    bench.set_now(until(10));
    bench.cached.handle_deadline(short.key);
    assert_eq!(inner.ticket.cancelled(), Some(CancelReason::Deadline));
    bench.fail(inner, cancelled(CancelReason::Deadline), "");
    let timeout = FailReason::Error(ErrorCode::GenerationTimeout);
    assert_eq!(bench.failure(&short).reason, timeout);
}

/// Mutation: `join` that does not look at the result of the extension.
#[test]
fn a_job_whose_time_has_ended_is_not_joined() {
    let bench = Bench::new();
    bench.submit(&job("x", 0));
    let inner = &bench.jobs()[0];
    assert!(inner.ticket.expire(inner.deadline, inner.deadline));
    bench.submit(&job("x", 1));
    assert_eq!(bench.jobs().len(), 2);
}

#[test]
fn a_refusal_is_returned_and_leaves_nothing() {
    let bench = Bench::new();
    bench.inner.refusals.lock().unwrap().push(Refused::Loading);
    assert_eq!(bench.cached.submit(job("x", 0)), Err(Refused::Loading));
    assert!(bench.results.is_empty());
    assert!(bench.mailbox.0.lock().unwrap().is_empty());
}

#[test]
fn a_deadline_that_is_too_early_for_the_engine_fails_one_alone() {
    let unmeetable = Refused::DeadlineUnmeetable { estimated: SECOND };
    for (refused, is_retried) in [(unmeetable, true), (Refused::Loading, false)] {
        let bench = Bench::new();
        let follower = Job {
            deadline: Moment::ZERO + 90 * SECOND,
            ..job("x", 1)
        };
        bench.submit_meanwhile(&follower);
        bench.inner.refusals.lock().unwrap().push(refused.clone());
        assert_eq!(bench.cached.submit(job("x", 0)), Err(refused.clone()));
        if is_retried {
            let inner = &bench.jobs()[0];
            assert_eq!(inner.deadline, follower.deadline);
            bench.done(inner, "x");
            assert_eq!(bench.result(&follower).0, "x");
        } else {
            assert_eq!(
                bench.failure(&follower).reason,
                FailReason::Refused(refused)
            );
        }
        assert!(bench.results.is_empty());
    }
}

/// Mutations: a failure that is stored; usage for every follower.
#[test]
fn a_failure_is_every_followers_and_is_not_kept() {
    let bench = Bench::new();
    let (one, other) = (stream("x", 0, 1), job("x", 1));
    bench.submit(&one);
    bench.submit(&other);
    let inner = &bench.jobs()[0];
    bench.token(inner, "a");
    bench.fail(inner, FailReason::Error(ErrorCode::EngineFailed), "b");
    let engine_failed = FailReason::Error(ErrorCode::EngineFailed);
    let (failed, follower) = (bench.failure(&one), bench.failure(&other));
    assert_eq!(
        (failed.reason, failed.text.as_str()),
        (engine_failed.clone(), "b")
    );
    assert_eq!(
        (follower.reason, follower.text.as_str()),
        (engine_failed, "ab")
    );
    assert_eq!((failed.usage, follower.usage), (USAGE, Usage::default()));
    bench.submit(&job("x", 2));
    assert_eq!(bench.jobs().len(), 2);
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

/// Mutations: `ask` that waits for nothing, or that drops the job of a lost level; `finish` that
/// does not share.
#[test]
fn a_result_of_another_daemon_is_used() {
    let one = Bench::with(Some(Arc::default()));
    let first = job("x", 0);
    one.submit(&first);
    assert!(one.jobs().is_empty(), "the shared level is asked first");
    one.shared().respond(None);
    one.done(&one.jobs()[0], "text");
    assert_eq!(one.result(&first).1.verdict, Verdict::Miss);
    let (id, entry) = one.shared().stored.lock().unwrap()[0].clone();
    assert_eq!(id.model, model().fingerprint);

    let other = Bench::with(Some(Arc::default()));
    let (first, follower) = (stream("x", 0, 1), job("x", 1));
    other.submit(&first);
    other.submit(&follower);
    assert_eq!(other.shared().asked.lock().unwrap()[0].0, id);
    other.shared().respond(Some(entry));
    for (job, verdict) in [(&first, Verdict::Shared), (&follower, Verdict::Joined)] {
        let (text, served) = other.result(job);
        assert_eq!((text.as_str(), served.verdict), ("text", verdict));
        assert_eq!(
            served.origin.map(|origin| origin.id),
            Some(GenerationId::FIRST)
        );
    }
    let hit = job("x", 2);
    other.submit(&hit);
    assert_eq!(other.result(&hit).1.verdict, Verdict::Hit);
    assert!(other.jobs().is_empty() && other.results.is_empty());
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

/// Mutations: `decode` with another order of numbers, or without its look at the reason.
#[test]
fn an_entry_is_read_as_it_was_written() {
    let (entry, now) = (entry(), UnixMillis::now());
    let read = |bytes: &[u8]| Entry::decode(bytes, None, (now, Moment::ZERO));
    let mut bytes = entry.encode(now);
    let header = bytes.len() - entry.text.len();
    assert_eq!(read(&bytes).as_ref(), Some(&entry));
    for length in 0..header {
        assert_eq!(read(&bytes[..length]), None, "{length}");
    }
    bytes[0] = 9;
    assert_eq!(read(&bytes), None, "a reason of another version");
}

/// Mutation: an age that is zero for an entry of the future.
#[test]
fn an_entry_of_the_store_from_before_the_clock_was_set_back_is_a_miss() {
    let (entry, made) = (entry(), 7_200_000);
    let bytes = entry.encode(UnixMillis::new(made));
    let age = |now: u64| {
        let now = (UnixMillis::new(now), Moment::ZERO);
        Entry::decode(&bytes, None, now).map(|entry| entry.age_before)
    };
    let second = Duration::from_secs(1);
    assert_eq!(age(made + 1_000), Some(second));
    assert_eq!(
        age(made - 1_000),
        Some(Duration::ZERO),
        "another daemon's clock"
    );
    let skew = limits::ENTRY_SKEW_MAX.as_millis() as u64;
    assert_eq!(age(made - skew), Some(Duration::ZERO));
    assert_eq!(age(made - skew - 1), None);
}

/// Mutations: `entry_of` that goes by the time of day; a rest that is taken for the age.
#[test]
fn a_shared_result_is_as_old_as_redis_has_kept_it_whatever_the_clocks() {
    let made = entry();
    let now = UnixMillis::now().as_u64();
    let two_hours = 7_200_000;
    for clock in [now - two_hours, now, now + two_hours] {
        let bench = Bench::with(Some(Arc::default()));
        let start = Moment::ZERO + Duration::from_secs(100);
        let age = TTL / 10;
        bench.set_now(start);
        let asked = |request| {
            let job = Job {
                submitted: Moment::from_micros(bench.now.load(Ordering::Relaxed)),
                ..job("x", request)
            };
            bench.submit(&job);
            job
        };
        let first = asked(0);
        bench.shared().respond_with(Some(FoundEntry {
            entry: made.encode(UnixMillis::new(clock)),
            rest: Some(TTL - age),
        }));
        let served = bench.result(&first).1;
        assert_eq!((served.verdict, served.age), (Verdict::Shared, age));
        bench.set_now(start + TTL / 2);
        let served = bench.result(&asked(1)).1;
        assert_eq!((served.verdict, served.age), (Verdict::Hit, age + TTL / 2));
        bench.set_now(start + (TTL - age));
        asked(2);
        let asked = bench.shared().asked.lock().unwrap().len();
        assert_eq!(asked, 1, "it has expired here as well");
    }
}

/// `cache.ttl` was longer when the result was put there, or is longer on the daemon that put it.
/// Mutations: `entry_of` that takes a longer rest for no age; one that does not compare the age.
#[test]
fn a_result_behind_memory_that_is_older_than_the_ttl_is_computed_again() {
    let now = UnixMillis::now().as_u64();
    let before = |age: Duration| UnixMillis::new(now - age.as_millis() as u64);
    for (rest, age, is_used) in [
        (Some(2 * TTL), Duration::ZERO, false),
        (Some(TTL + Duration::from_millis(1)), Duration::ZERO, false),
        (Some(TTL), 2 * TTL, true),
        (Some(Duration::ZERO), Duration::ZERO, false),
        (None, TTL, false),
        (None, TTL / 2, true),
    ] {
        let bench = Bench::with(Some(Arc::default()));
        bench.submit(&job("x", 0));
        let entry = entry().encode(before(age));
        let found = FoundEntry { entry, rest };
        bench.shared().respond_with(Some(found));
        assert_eq!(bench.jobs().is_empty(), is_used, "{rest:?}, {age:?}");
    }
}

/// Mutation: `submit` that does not compare the age.
#[test]
fn a_lower_ttl_holds_for_results_in_memory() {
    let bench = Bench::new();
    bench.submit(&job("x", 0));
    bench.done(&bench.jobs()[0], "x");
    let at = |age: Duration, request| Job {
        submitted: Moment::ZERO + age,
        ..job("x", request)
    };
    let moment = Duration::from_micros(1);
    bench.results.apply(&Cache {
        max_size: 64 << 20,
        ttl: TTL / 2,
        ..Cache::default()
    });
    bench.submit(&at(TTL / 2 - moment, 1));
    assert_eq!(bench.jobs().len(), 1, "it is young enough");
    bench.submit(&at(TTL / 2, 2));
    assert_eq!(bench.jobs().len(), 2, "it is computed again");
}

/// A client leaves while the shared level is asked for it and others. Mutation: a late refusal that
/// is delivered to the first request in any case.
#[test]
fn a_request_that_has_left_gets_no_second_end_from_a_late_refusal() {
    let bench = Bench::with(Some(Arc::default()));
    let (first, follower) = (job("x", 0), job("x", 1));
    bench.submit(&first);
    bench.submit(&follower);
    bench.leave(&first);
    bench.inner.refusals.lock().unwrap().push(Refused::Loading);
    bench.shared().respond(None);
    assert_eq!(
        bench.failure(&follower).reason,
        FailReason::Refused(Refused::Loading)
    );
    assert_eq!(bench.events(&first).len(), 1);
    assert!(bench.results.is_empty());
}

/// The engine refuses the first job for its deadline, and then that of the follower with more time.
/// Mutation: `launch` that drops the follower whose job it has tried.
#[test]
fn a_follower_whose_job_is_refused_as_well_gets_its_end() {
    let bench = Bench::new();
    let follower = Job {
        deadline: Moment::ZERO + 90 * SECOND,
        ..job("x", 1)
    };
    bench.submit_meanwhile(&follower);
    let unmeetable = Refused::DeadlineUnmeetable { estimated: SECOND };
    // The last one is the first.
    let refusals = [Refused::Loading, unmeetable.clone()];
    bench.inner.refusals.lock().unwrap().extend(refusals);
    assert_eq!(bench.cached.submit(job("x", 0)), Err(unmeetable));
    assert_eq!(
        bench.failure(&follower).reason,
        FailReason::Refused(Refused::Loading)
    );
    assert!(bench.results.is_empty());
}

/// Mutations: a lost level that fails the request; a refusal that comes late and is dropped.
#[test]
fn a_shared_level_that_is_lost_or_wrong_is_a_miss() {
    let bench = Bench::with(Some(Arc::default()));
    bench.shared().is_lost.store(true, Ordering::Relaxed);
    bench.submit(&job("x", 0));
    assert_eq!(bench.jobs().len(), 1);
    bench.shared().is_lost.store(false, Ordering::Relaxed);
    bench.submit(&job("y", 1));
    bench.shared().respond(Some(b"no entry".to_vec()));
    assert_eq!(bench.jobs().len(), 2);
    bench.inner.refusals.lock().unwrap().push(Refused::Loading);
    let (late, follower) = (job("z", 2), job("z", 3));
    bench.submit(&late);
    bench.submit(&follower);
    bench.shared().respond(None);
    for job in [late, follower] {
        assert_eq!(
            bench.failure(&job).reason,
            FailReason::Refused(Refused::Loading)
        );
    }
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
