//! The runner's thread over a real store, with an engine that keeps its jobs and a clock of the
//! test's own.
//!
//! Mutations that these tests catch, each a line left out unless it says more: in `handle_note` the
//! claim after `Accepted`, in `handle_cancelled` any of its lines, in `handle_claimed` the
//! `retain`, in `drain` and in a fenced `handle_saved` the order to the engine, `count_end`,
//! `set_totals`, any `wake` and any `look` for callbacks; a record that is sent for an attempt that
//! ends no job; `is_over` that ignores a claim under way; `handle_claimed` that starts a job during
//! a drain; `claim` that asks neither whether the engine is ready nor whether jobs are enabled; a
//! refusal without its pause; a wait that each attempt observes; a lease that is not renewed;
//! `look` that asks for jobs that run here; `has_more` that waits for the next sweep; a store that
//! is asked during its pause.

use std::cell::Cell;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crossbeam_channel::Receiver;

use super::*;
use crate::engine::{
    Done as Generated, FinishReason, Gauges, Job, Refused, Served, Timings, Usage,
};
use crate::jobs::{self, JobRequest, NewJob};
use crate::keys::Holder;
use crate::offload::{CancelReason, JobKey};
use crate::runner::callbacks::CallbackNote;
use crate::runner::metrics::{Outcome, Unfinished};
use crate::runner::{Follower, Wake, change};
use crate::store::tests::OneJob as _;
use crate::store::{Fault, Jobs as _, SqliteStore, StoreError};
use crate::telemetry::metrics::Metrics;

thread_local! {
    /// Milliseconds since 1970. Each test has a thread of its own.
    static WALL_MS: Cell<u64> = const { Cell::new(0) };
}

fn wall_clock() -> UnixMillis {
    UnixMillis::new(WALL_MS.get())
}

const SECOND: Duration = Duration::from_secs(1);

/// An engine that does nothing by itself.
#[derive(Default)]
struct Desk {
    jobs: Mutex<Vec<Job>>,
    /// Orders, each with the serial number of its attempt.
    orders: Mutex<Vec<(&'static str, u32)>>,
    is_loading: Mutex<bool>,
    refuses: Mutex<bool>,
}

impl Desk {
    fn order(&self, order: &'static str, key: JobKey) {
        self.orders.lock().unwrap().push((order, key.request));
    }
}

impl Engine for Desk {
    fn submit(&self, job: Job) -> Result<(), Refused> {
        if *self.refuses.lock().unwrap() {
            self.order("refused", job.key);
            return Err(Refused::Loading);
        }
        self.jobs.lock().unwrap().push(job);
        Ok(())
    }

    fn cancel(&self, key: JobKey) {
        self.order("cancel", key);
    }

    fn handle_credit(&self, key: JobKey) {
        self.order("credit", key);
    }

    fn handle_deadline(&self, key: JobKey) {
        self.order("deadline", key);
    }

    fn state(&self) -> State {
        match *self.is_loading.lock().unwrap() {
            true => State::Loading { percent: 1 },
            false => State::Ready,
        }
    }

    fn model(&self) -> Option<ModelInfo> {
        None
    }

    fn gauges(&self) -> Gauges {
        Gauges::default()
    }

    fn drain(&self) {}
}

#[derive(Default)]
struct Woken(Mutex<usize>);

impl Wake for Woken {
    fn wake(&self, _: JobKey) {
        *self.0.lock().unwrap() += 1;
    }
}

struct Bench {
    thread: Thread,
    engine: Arc<Desk>,
    requests: Arc<Requests>,
    store: SqliteStore,
    store_fails: bool,
    /// It commits, but no reply comes.
    store_loses_replies: bool,
    /// Tasks that the store has got.
    tasks: usize,
    notes: Receiver<Note>,
    callbacks: Receiver<CallbackNote>,
    /// Of the jobs that are accepted.
    callback_url: Option<String>,
    key_id: String,
    series: Arc<RunnerSeries>,
    metrics: Metrics,
    followers: Arc<Followers>,
    woken: Arc<Woken>,
    now: Moment,
    is_over: bool,
    _folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Bench {
        WALL_MS.set(1_000_000);
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.auth.enabled = false;
        config.jobs.concurrency = 2;
        config.jobs.lease = 30 * SECOND;
        let metrics = Metrics::new("test");
        let (engine, requests) = (Arc::new(Desk::default()), Arc::<Requests>::default());
        let (journal, notes) = Journal::new();
        let (callbacks, looks) = Callbacks::new();
        let woken = Arc::new(Woken::default());
        let followers = Arc::new(Followers::new(woken.clone()));
        let series = metrics.series::<RunnerSeries>();
        let now = Moment::from_micros(1_000_000);
        let parts = Parts {
            engine: engine.clone(),
            requests: requests.clone(),
            followers: followers.clone(),
            journal,
            callbacks,
            series: series.clone(),
            config: Arc::new(config),
            keys: Arc::new(KeyRing::new(Vec::new())),
            leases: Leases::default(),
            wall_clock,
            seed: 1,
        };
        Bench {
            thread: Thread::new(parts, now),
            engine,
            requests,
            store: SqliteStore::open_in(folder.path()).unwrap(),
            store_fails: false,
            store_loses_replies: false,
            tasks: 0,
            notes,
            callbacks: looks,
            callback_url: None,
            key_id: String::new(),
            series,
            metrics,
            followers,
            woken,
            now,
            is_over: false,
            _folder: folder,
        }
    }

    /// Changes the configuration, as a reload does.
    fn reload(&mut self, change: impl FnOnce(&mut Config)) {
        let mut config = Config::clone(&self.thread.parts.config);
        change(&mut config);
        self.note(Note::Apply(Arc::new(config)));
    }

    fn accept(&mut self, number: u8) -> JobId {
        self.accept_until(number, 1_000 * SECOND)
    }

    /// It expires after this time.
    fn accept_until(&mut self, number: u8, time: Duration) -> JobId {
        let id = JobId::new(number.into(), [number; 10]);
        let request = JobRequest {
            prompt: "greet".to_owned(),
            timeout_ms: 60_000,
            ..JobRequest::default()
        };
        let job = NewJob {
            id,
            key_id: self.key_id.clone(),
            created_at: WALL_MS.get(),
            expires_at: WALL_MS.get() + time.as_millis() as u64,
            request: request.to_json(),
            callback_url: self.callback_url.clone(),
            idempotency: None,
        };
        self.store.insert_job(&job).unwrap();
        id
    }

    /// Accepts a job and lets it begin.
    fn run(&mut self, number: u8) -> JobId {
        let id = self.accept(number);
        self.note(Note::Accepted(None));
        self.settle();
        id
    }

    /// Accepts a job whose client waits, and lets the runner act.
    fn call(&mut self, number: u8) -> JobId {
        let id = self.accept(number);
        self.note(Note::Accepted(Some(Called { id, tenant: 1 })));
        self.settle();
        id
    }

    fn note(&mut self, note: Note) {
        self.thread.handle_note(note, self.now);
    }

    fn event(&mut self, serial: u32, event: Event) {
        self.note(Note::Events(vec![(serial, event)]));
    }

    fn token(&mut self, serial: u32, text: &str) {
        let text = text.to_owned();
        self.event(serial, Event::Token { text });
    }

    fn done(&mut self, serial: u32) {
        let done = Generated {
            text: "```python\nx\n```".to_owned(),
            finish_reason: FinishReason::Stop,
            usage: Usage::default(),
            timings: Timings::default(),
            served: Served::default(),
        };
        self.event(serial, Event::Done(Box::new(done)));
    }

    /// Lets the store deal with the tasks that wait. Returns whether there were any.
    fn let_store_act(&mut self) -> bool {
        let mut group = Vec::new();
        if self.requests.waiting() > 0 {
            self.requests.take(&mut group, Duration::ZERO);
        }
        let any = !group.is_empty();
        self.tasks += group.len();
        for mut task in group {
            if self.store_fails {
                task.finish(Err(&failure(Fault::Other)));
                continue;
            }
            let result = task.run(&mut self.store);
            match self.store_loses_replies {
                true => task.lose(&failure(Fault::Unreachable)),
                false => task.finish(result.as_ref().copied()),
            }
        }
        any
    }

    /// Lets the thread and the store act until nothing more happens at this moment.
    fn settle(&mut self) {
        for _ in 0..100 {
            self.is_over = !self.thread.work(self.now);
            let has_acted = self.let_store_act();
            let notes: Vec<Note> = self.notes.try_iter().collect();
            let is_quiet = notes.is_empty();
            notes.into_iter().for_each(|note| self.note(note));
            if is_quiet && !has_acted {
                return;
            }
        }
        panic!("no end");
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
        WALL_MS.set(WALL_MS.get() + time.as_millis() as u64);
        self.settle();
    }

    fn orders(&self) -> Vec<(&'static str, u32)> {
        std::mem::take(&mut *self.engine.orders.lock().unwrap())
    }

    fn submitted(&self) -> usize {
        self.engine.jobs.lock().unwrap().len()
    }

    fn ticket(&self, nth: usize) -> Arc<crate::offload::Ticket> {
        self.engine.jobs.lock().unwrap()[nth].ticket.clone()
    }

    fn life(&mut self, id: JobId) -> jobs::Life {
        self.store.job_life(id).unwrap().unwrap()
    }

    fn state(&mut self, id: JobId) -> jobs::State {
        self.life(id).state
    }

    fn follow(&self, id: JobId) -> Follower {
        let key = JobKey {
            reactor: 0,
            ..Journal::key(0)
        };
        self.followers.register(id, 0, key).unwrap()
    }

    /// Returns whether the follower was woken since the last time.
    fn was_woken(&self, follower: &Follower) -> bool {
        follower.look();
        std::mem::take(&mut *self.woken.0.lock().unwrap()) > 0
    }

    /// Returns whether callbacks were looked for since the last time.
    fn has_looked(&self) -> bool {
        let notes = self.callbacks.try_iter();
        notes
            .filter(|note| matches!(note, CallbackNote::Look))
            .count()
            > 0
    }

    /// Returns the number of records since the last time.
    fn records(&self) -> usize {
        let mut taken = Vec::new();
        self.requests.records().take(&mut taken, 100, usize::MAX);
        taken.len()
    }

    /// Returns the program that followers of a job have read.
    fn program(&mut self, id: JobId) -> String {
        let after = jobs::EventId::BEGINNING;
        let events = self.store.job_events(id, after, usize::MAX).unwrap();
        events.iter().map(|event| event.text.as_str()).collect()
    }

    fn ended(&self, outcome: Outcome) -> u64 {
        self.series.attempts.get(outcome).get()
    }

    fn metric(&self, name: &str) -> String {
        let mut text = String::new();
        self.metrics.encode(&mut text);
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_default().trim().to_owned()
    }
}

fn failure(fault: Fault) -> StoreError {
    StoreError::Database {
        place: "the test".to_owned(),
        fault,
        reason: "as the test wants it".to_owned(),
    }
}

#[test]
fn a_job_runs_and_its_end_is_counted_recorded_and_reported() {
    let mut bench = Bench::new();
    bench.settle();
    bench.callback_url = Some("https://example.com/".to_owned());
    let id = bench.accept(1);
    let follower = bench.follow(id);
    bench.was_woken(&follower);
    bench.note(Note::Accepted(None));
    bench.settle();
    assert_eq!((bench.submitted(), bench.records()), (1, 0));
    assert!(bench.was_woken(&follower), "its first event");
    assert_eq!(bench.state(id), jobs::State::Running);
    bench.pass(SECOND);
    assert_eq!(bench.series.jobs.get(Unfinished::Running).get(), 1);
    assert!(
        !bench.was_woken(&follower),
        "it runs here, and nothing is new"
    );
    bench.token(0, "```python\nx\n");
    bench.pass(SECOND);
    assert!(bench.was_woken(&follower));
    bench.has_looked();
    bench.done(0);
    bench.settle();
    assert_eq!(bench.state(id), jobs::State::Completed);
    assert!(bench.was_woken(&follower) && bench.has_looked());
    assert_eq!((bench.ended(Outcome::Completed), bench.records()), (1, 1));
    bench.pass(SECOND);
    assert_eq!(bench.series.jobs.get(Unfinished::Running).get(), 0);
    assert_eq!(bench.metric("autoglmd_job_wait_seconds_count"), "1");
}

/// Mutations: a called job in a place of the others; the end of a called job that keeps its place,
/// or frees one of the others.
#[test]
fn a_job_whose_client_waits_has_a_place_beside_those_of_others() {
    const MOST: u8 = (limits::CALLED_ATTEMPTS_MAX / 2) as u8;
    let mut bench = Bench::new();
    bench.run(1);
    bench.run(2);
    let waiting = bench.run(3);
    assert_eq!(bench.submitted(), 2);
    let called = bench.call(4);
    assert_eq!(bench.submitted(), 3);
    bench.done(2);
    bench.pass(SECOND);
    assert_eq!(bench.state(called), jobs::State::Completed);
    assert_eq!(bench.state(waiting), jobs::State::Queued);
    // Serial numbers from 3 on.
    let others: Vec<JobId> = (0..=MOST).map(|number| bench.call(5 + number)).collect();
    assert_eq!(bench.submitted(), 3 + usize::from(MOST));
    change::cancel(&mut bench.store, "", others[0], 1, 1_000).unwrap();
    bench.note(Note::Cancelled(others[0]));
    bench.pass(SECOND);
    assert_eq!(bench.submitted(), 4 + usize::from(MOST));
    assert_eq!(bench.state(waiting), jobs::State::Queued);
    bench.done(0);
    bench.pass(SECOND);
    assert_eq!(bench.state(waiting), jobs::State::Running);
}

/// Mutations: a claim that fails and loses the job or its place; a place that is kept for a job
/// that another daemon has.
#[test]
fn the_place_of_a_called_job_comes_back_if_it_is_not_claimed() {
    const MOST: u8 = (limits::CALLED_ATTEMPTS_MAX / 2) as u8;
    let mut bench = Bench::new();
    bench.reload(|config| config.jobs.concurrency = 1);
    bench.run(1);
    for number in 0..2 * MOST {
        let id = bench.accept(2 + number);
        let other = [Called { id, tenant: 1 }].map(|called| called.id);
        change::claim(&mut bench.store, &other, 0, 1, u64::MAX).unwrap();
        bench.note(Note::Accepted(Some(Called { id, tenant: 1 })));
        bench.settle();
    }
    assert_eq!(bench.submitted(), 1);
    bench.store_fails = true;
    let id = bench.call(200);
    for _ in 0..2 * MOST {
        bench.pass(limits::BACKOFF_MAX);
    }
    bench.store_fails = false;
    assert_eq!(bench.state(id), jobs::State::Queued);
    bench.pass(limits::BACKOFF_MAX);
    assert_eq!(bench.state(id), jobs::State::Running);
}

/// Another daemon has accepted the job, with a key that this one has not heard of.
///
/// Mutations: a job that fails at once, or that waits for ever.
#[test]
fn a_job_waits_for_a_key_that_was_just_created() {
    let mut bench = Bench::new();
    bench.reload(|config| config.auth.enabled = true);
    let record = Holder::of("key_1").record.clone();
    bench.key_id = record.id.clone();
    let id = bench.run(1);
    assert_eq!(
        (bench.state(id), bench.submitted()),
        (jobs::State::Queued, 0)
    );
    bench.pass(SECOND / 2);
    bench.note(Note::Keys(Arc::new(KeyRing::new(vec![record]))));
    bench.pass(2 * SECOND);
    assert_eq!(
        (bench.state(id), bench.submitted()),
        (jobs::State::Running, 1)
    );
    bench.key_id = "key_2".to_owned();
    let id = bench.run(2);
    assert_eq!(bench.state(id), jobs::State::Queued);
    bench.pass(limits::KEY_NEWS_MAX);
    bench.pass(2 * SECOND);
    assert_eq!(bench.state(id), jobs::State::Failed);
}

/// Mutation: `report_end` that always looks.
#[test]
fn the_end_of_a_job_without_a_callback_is_no_occasion_to_look() {
    let mut bench = Bench::new();
    let id = bench.run(1);
    bench.has_looked();
    bench.done(0);
    bench.settle();
    assert_eq!(bench.state(id), jobs::State::Completed);
    assert!(!bench.has_looked());
}

#[test]
fn a_cancelled_job_stops_the_engine_at_once() {
    let mut bench = Bench::new();
    let id = bench.run(1);
    let follower = bench.follow(id);
    bench.was_woken(&follower);
    bench.has_looked();
    change::cancel(&mut bench.store, "", id, 1, 1_000).unwrap();
    bench.note(Note::Cancelled(id));
    assert_eq!(bench.orders(), [("cancel", 0)]);
    assert_eq!(bench.ticket(0).cancelled(), Some(CancelReason::Disconnect));
    assert!(bench.was_woken(&follower) && bench.has_looked());
    assert_eq!(bench.records(), 1);
    // Its events are late, and its place is free.
    bench.done(0);
    bench.run(2);
    bench.run(3);
    assert_eq!(bench.submitted(), 3);
    assert_eq!(bench.state(id), jobs::State::Cancelled);
}

/// With several threads of the store, the later commit may be reported first.
///
/// Mutation: the `retain` behind `settle`, which keeps the place of a called job.
#[test]
fn a_cancel_that_overtakes_the_claim_of_its_job_stops_it_as_well() {
    const MOST: u8 = (limits::CALLED_ATTEMPTS_MAX / 2) as u8;
    let mut bench = Bench::new();
    bench.settle();
    for is_called in [false, true] {
        let id = bench.accept(u8::from(is_called));
        let called = is_called.then_some(Called { id, tenant: 1 });
        bench.note(Note::Accepted(called));
        assert!(bench.thread.work(bench.now) && bench.let_store_act());
        assert_eq!(bench.state(id), jobs::State::Running);
        // The result of the claim waits among the notes.
        change::cancel(&mut bench.store, "", id, 1, 1_000).unwrap();
        bench.note(Note::Cancelled(id));
        bench.settle();
        assert_eq!(bench.submitted(), 0);
        assert!(bench.orders().is_empty() && bench.records() == 0);
        assert_eq!(bench.state(id), jobs::State::Cancelled);
    }
    // Their places are free.
    (0..MOST).for_each(|number| _ = bench.call(2 + number));
    bench.run(100);
    bench.run(101);
    assert_eq!(bench.submitted(), 2 + usize::from(MOST));
}

#[test]
fn a_fenced_attempt_stops_and_leaves_no_trace() {
    let mut bench = Bench::new();
    let id = bench.run(1);
    // Another daemon takes the job, as after the end of its lease.
    let late = WALL_MS.get() + 60_000;
    change::sweep(&mut bench.store, late, 1_000, 9).unwrap();
    change::claim(&mut bench.store, &[], 9, late, late + 60_000).unwrap();
    bench.token(0, "```python\nx\n");
    bench.pass(SECOND);
    assert_eq!(bench.orders(), [("cancel", 0)]);
    assert_eq!(bench.ticket(0).cancelled(), Some(CancelReason::Disconnect));
    bench.done(0);
    bench.pass(SECOND);
    assert_eq!(bench.life(id).attempt, 2);
    assert_eq!(bench.state(id), jobs::State::Running);
    assert_eq!((bench.ended(Outcome::Completed), bench.records()), (0, 0));
}

/// Of jobs that run elsewhere.
#[test]
fn a_follower_is_woken_by_each_change_of_another_daemon() {
    let mut bench = Bench::new();
    bench.reload(|config| config.jobs.enabled = false);
    let id = bench.accept(1);
    let follower = bench.follow(id);
    bench.pass(SECOND);
    assert!(bench.was_woken(&follower), "it was never looked at");
    bench.pass(SECOND);
    assert!(!bench.was_woken(&follower));
    let lease = WALL_MS.get() + 60_000;
    change::claim(&mut bench.store, &[], 9, WALL_MS.get(), lease).unwrap();
    bench.pass(SECOND);
    assert!(bench.was_woken(&follower));
    assert_eq!(bench.thread.elsewhere.seen(), 1);
    drop(follower);
    bench.pass(SECOND);
    assert_eq!(bench.thread.elsewhere.seen(), 0, "it is not followed");
}

#[test]
fn nothing_is_claimed_that_cannot_run() {
    let mut bench = Bench::new();
    *bench.engine.is_loading.lock().unwrap() = true;
    let id = bench.run(1);
    bench.pass(SECOND);
    assert_eq!(bench.state(id), jobs::State::Queued);
    *bench.engine.is_loading.lock().unwrap() = false;
    bench.reload(|config| config.jobs.enabled = false);
    bench.pass(SECOND);
    assert_eq!(bench.state(id), jobs::State::Queued);
    bench.reload(|config| config.jobs.enabled = true);
    bench.pass(SECOND);
    assert_eq!(bench.state(id), jobs::State::Running);
}

#[test]
fn an_engine_that_refuses_all_jobs_is_asked_after_pauses_that_grow() {
    let mut bench = Bench::new();
    *bench.engine.refuses.lock().unwrap() = true;
    let id = bench.run(1);
    assert_eq!(bench.orders().len(), 1);
    // Another occasion does not end the pause.
    bench.note(Note::Accepted(None));
    bench.settle();
    assert!(bench.orders().is_empty());
    let mut pauses = Vec::new();
    for _ in 0..60 {
        bench.pass(SECOND / 10);
        pauses.push(bench.orders().len());
    }
    let asked: usize = pauses.iter().sum();
    assert_eq!(asked, 2, "after one second and two more: {pauses:?}");
    assert_eq!(bench.ended(Outcome::Released), 3);
    *bench.engine.refuses.lock().unwrap() = false;
    bench.pass(5 * SECOND);
    assert_eq!(bench.submitted(), 1);
    assert_eq!((bench.life(id).attempt, bench.records()), (4, 0));
    assert_eq!(bench.metric("autoglmd_job_wait_seconds_count"), "1");
    // After a success the pauses are short again.
    bench.done(3);
    *bench.engine.refuses.lock().unwrap() = true;
    bench.run(2);
    assert_eq!(bench.orders().len(), 1);
    bench.pass(SECOND);
    assert_eq!(bench.orders().len(), 1);
}

#[test]
fn a_lease_is_renewed_although_nothing_is_written() {
    let mut bench = Bench::new();
    let id = bench.run(1);
    let first = bench.life(id).lease_until;
    assert_eq!(first, WALL_MS.get() + 30_000);
    bench.pass(9 * SECOND);
    assert_eq!(bench.life(id).lease_until, first, "a third has not passed");
    bench.pass(SECOND);
    let second = bench.life(id).lease_until;
    assert_eq!(second, first + 10_000);
    bench.pass(9 * SECOND);
    assert_eq!(bench.life(id).lease_until, second, "it is renewed once");
    bench.pass(SECOND);
    assert_eq!(bench.life(id).lease_until, second + 10_000);
}

#[test]
fn the_engine_is_reminded_of_a_deadline_once() {
    let mut bench = Bench::new();
    bench.run(1);
    bench.pass(59 * SECOND);
    assert!(bench.orders().is_empty());
    bench.pass(SECOND);
    bench.pass(SECOND);
    assert_eq!(bench.orders(), [("deadline", 0)]);
}

#[test]
fn an_engine_that_waits_for_credit_is_called() {
    let mut bench = Bench::new();
    bench.run(1);
    let ticket = bench.ticket(0);
    while ticket.take_credit() {}
    bench.token(0, "```python\nx\n");
    assert_eq!(bench.orders(), [("credit", 0)]);
    while ticket.take_credit() {}
    // Too much is unsaved, so the credit comes with the save.
    let text = "x".repeat(limits::UNSAVED_BYTES_MAX);
    bench.token(0, &format!("{text}\n"));
    assert!(bench.orders().is_empty());
    bench.pass(SECOND);
    assert_eq!(bench.orders(), [("credit", 0)]);
}

#[test]
fn a_drain_gives_back_what_runs() {
    let mut bench = Bench::new();
    let id = bench.run(1);
    bench.note(Note::Drain);
    assert_eq!(bench.orders(), [("cancel", 0)]);
    assert_eq!(bench.ticket(0).cancelled(), Some(CancelReason::Drain));
    bench.settle();
    assert!(bench.is_over);
    assert_eq!(bench.state(id), jobs::State::Queued);
    assert_eq!((bench.ended(Outcome::Released), bench.records()), (1, 0));
}

#[test]
fn a_drain_waits_for_a_claim_and_begins_none_of_its_jobs() {
    let mut bench = Bench::new();
    bench.settle();
    let id = bench.accept(1);
    bench.note(Note::Accepted(None));
    assert!(bench.thread.work(bench.now));
    bench.note(Note::Drain);
    assert!(bench.thread.work(bench.now), "a claim is under way");
    bench.settle();
    assert!(bench.is_over);
    assert_eq!(
        (bench.submitted(), bench.state(id)),
        (0, jobs::State::Queued)
    );
}

#[test]
fn while_the_store_fails_all_waits_and_nothing_is_lost() {
    let mut bench = Bench::new();
    let id = bench.run(1);
    bench.token(0, "```python\nx = 1\n");
    bench.store_fails = true;
    bench.pass(SECOND);
    bench.done(0);
    let tasks = bench.tasks;
    bench.settle();
    assert_eq!(bench.tasks, tasks, "it is left alone");
    for _ in 0..4 {
        bench.pass(8 * SECOND);
    }
    assert_eq!(bench.state(id), jobs::State::Running);
    bench.store_fails = false;
    bench.pass(30 * SECOND);
    assert_eq!(bench.state(id), jobs::State::Completed);
    let program = bench.program(id);
    assert!(program.starts_with("x = 1"), "{program}");
}

/// A commit whose reply is lost has been made nevertheless. The text is saved again, for as long as
/// that lasts, with newer text behind it.
#[test]
fn a_part_whose_reply_is_lost_is_in_the_history_once() {
    let mut bench = Bench::new();
    let id = bench.run(1);
    bench.store_loses_replies = true;
    bench.token(0, "```python\nx = 1\n");
    bench.pass(SECOND);
    bench.token(0, "y = 2\n");
    for _ in 0..3 {
        bench.pass(8 * SECOND);
    }
    bench.store_loses_replies = false;
    bench.token(0, "z = 3\n");
    bench.pass(30 * SECOND);
    // The extractor keeps the last line break back.
    assert_eq!(bench.program(id), "x = 1\ny = 2\nz = 3");
    assert_eq!(bench.state(id), jobs::State::Running);
}

/// Mutation: an end that is there already and is taken for one of another run.
#[test]
fn an_end_whose_reply_is_lost_is_counted_recorded_and_reported_once() {
    let mut bench = Bench::new();
    bench.callback_url = Some("https://example.com/".to_owned());
    let id = bench.run(1);
    bench.store_loses_replies = true;
    bench.done(0);
    bench.settle();
    assert_eq!(bench.state(id), jobs::State::Completed);
    assert_eq!((bench.ended(Outcome::Completed), bench.records()), (0, 0));
    bench.has_looked();
    bench.store_loses_replies = false;
    bench.pass(30 * SECOND);
    assert_eq!((bench.ended(Outcome::Completed), bench.records()), (1, 1));
    assert!(bench.has_looked() && bench.orders().is_empty());
    assert_eq!(bench.program(id).trim_end(), "x");
    // A drain, whose attempt waits again.
    let parked = bench.run(2);
    bench.store_loses_replies = true;
    bench.note(Note::Drain);
    bench.settle();
    bench.store_loses_replies = false;
    bench.pass(SECOND);
    assert_eq!((bench.ended(Outcome::Released), bench.is_over), (1, true));
    assert_eq!(bench.state(parked), jobs::State::Queued);
}

#[test]
fn a_sweep_reports_what_it_has_changed_and_goes_on_if_there_is_more() {
    let mut bench = Bench::new();
    bench.reload(|config| config.jobs.enabled = false);
    let most = limits::SWEPT_JOBS_MAX as usize + 1;
    let ids: Vec<JobId> = (0..most)
        .map(|number| bench.accept_until(number as u8, 50 * SECOND))
        .collect();
    let follower = bench.follow(ids[0]);
    bench.pass(SECOND);
    bench.was_woken(&follower);
    bench.has_looked();
    let queued = bench.series.jobs.get(Unfinished::Queued).get();
    assert_eq!(queued, most as i64);
    assert!(bench.series.bytes.get() > queued, "each has a request");
    // All of them have waited for too long.
    bench.pass(100 * SECOND);
    assert!(bench.was_woken(&follower) && bench.has_looked());
    for id in ids {
        assert_eq!(bench.state(id), jobs::State::Expired);
    }
    assert_eq!(bench.series.jobs.get(Unfinished::Queued).get(), 0);
}
