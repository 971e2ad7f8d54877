//! Tests the thread over a backend that panics or hangs when a prompt asks for it.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver as Inbox, Sender as Outbox};
use std::sync::{Mutex, OnceLock};

use crossbeam_channel::RecvTimeoutError;

use super::super::backend::{Batch, DecodeError, Prepare, PrepareError, Prepared, Token};
use super::super::intake::Exit;
use super::super::owed::Owed;
use super::super::{Handle, start_with};
use super::*;
use crate::core::Key;
use crate::engine::{
    CacheMode, Class, Defaults, Engine, Event, FailReason, GenerationId, Job, ModelInfo, Prompt,
    Refused, Sampling, State,
};
use crate::error::ErrorCode;
use crate::limits::engine as limits;
use crate::offload::{CancelReason, JobKey, Ticket, Workers};

/// Far above the expected time; reached only by a failure.
const PATIENCE: Duration = Duration::from_secs(60);
/// Prompts that make decoding panic or hang; their numbers are their first token.
const PANIC: &str = "panic";
const HANG: &str = "hang";
/// Prompts that the preparer panics at, or refuses.
const BREAK: &str = "break";
const REFUSE: &str = "refuse";
const CONTEXT: usize = 64;

#[test]
fn panic_fails_its_job_and_the_next_one_is_answered_by_a_new_engine() {
    let mut host = Host::start();
    host.submit("before").expect("it is at rest");
    assert!(matches!(host.next_end(), Event::Done(_)));
    let before = host.engine.gauges();
    host.submit(PANIC).expect("it is at rest");
    let Event::Failed(failed) = host.next_end() else {
        panic!("a job whose engine has panicked was answered");
    };
    assert_eq!(failed.reason, FailReason::Error(ErrorCode::EngineFailed));
    host.wait_for("the second engine", |host| {
        host.engine.gauges().restarts == 1 && host.engine.state() == State::Ready
    });
    assert_eq!(host.loads.load(Ordering::Relaxed), 2);
    host.submit("after").expect("it is at rest again");
    assert!(matches!(host.next_end(), Event::Done(_)));
    let after = host.engine.gauges();
    assert!(
        after.generated_tokens > before.generated_tokens,
        "{after:?}"
    );
    assert_eq!(after.queue_depth, 0);
}

/// A regression test: freeing the model takes time, and until then the engine seemed to be ready.
#[test]
fn client_of_a_failed_job_never_finds_a_ready_engine() {
    let mut host = Host::start();
    host.submit("before").expect("it is at rest");
    let (end, state) = host.next_end_and_state();
    assert!(matches!(end, Event::Done(_)));
    assert_eq!(state, State::Ready);
    host.submit(PANIC).expect("it is at rest");
    let (end, state) = host.next_end_and_state();
    assert!(matches!(end, Event::Failed(_)));
    assert_eq!(state, State::Loading { percent: 0 });
}

#[test]
fn engine_that_panics_again_and_again_is_given_up_after_longer_and_longer_pauses() {
    let mut restarts = Restarts::default();
    let start = Instant::now();
    let pauses: Vec<_> = std::iter::from_fn(|| restarts.next(start)).collect();
    let expected = (0..limits::RESTARTS_MAX).map(|count| limits::RESTART_PAUSE * 2_u32.pow(count));
    assert_eq!(pauses, expected.collect::<Vec<_>>());
    // One panic per day does not make a series.
    let later = start + limits::RESTARTS_FORGOTTEN_AFTER;
    assert_eq!(restarts.next(later), Some(limits::RESTART_PAUSE));

    // The second load fails: it is tried as often as allowed, and then reported.
    let host = Host::start_with_loads(1);
    host.submit(PANIC).expect("it is at rest");
    host.wait_for("the end", |host| {
        matches!(host.engine.state(), State::Failed(_))
    });
    let loads = host.loads.load(Ordering::Relaxed);
    assert_eq!(loads, 1 + limits::RESTARTS_MAX);
    let refused = host.submit("later").unwrap_err();
    assert!(matches!(refused, Refused::Unavailable(_)), "{refused:?}");
}

/// A regression test: the job used to wait for its request's deadline, and two seconds more.
#[test]
fn job_left_in_the_channel_gets_its_terminal_event() {
    let mut host = Host::start_with_loads(1);
    host.submit(PANIC).expect("it is at rest");
    assert!(matches!(host.next_end(), Event::Failed(_)));
    // As if the panic came between reading the state and sending.
    let send_late = |host: &Host| {
        let job = host.job("late", PATIENCE);
        let owed = Owed::new(job, None, host.engine.deliver.clone());
        let prepared = Ok(Prepared::default());
        let sent = host
            .exit()
            .sender
            .try_send(Box::new(Arrival { owed, prepared }));
        assert!(sent.is_ok(), "there is room");
    };
    host.wait_for("the pause", |host| host.engine.gauges().restarts > 0);
    send_late(&host);
    assert!(matches!(host.next_end(), Event::Failed(_)), "by the thread");
    host.wait_for("the end", |host| host.engine.shared.life() == Life::Over);
    send_late(&host);
    let exit = host.exit();
    drop_jobs_if_over(&exit.shared, &exit.left);
    assert!(matches!(host.next_end(), Event::Failed(_)), "by its sender");
}

#[test]
fn hang_is_seen_from_outside_and_ends_with_the_step() {
    let mut host = Host::start();
    assert_eq!(host.engine.gauges().silence, Duration::ZERO, "at rest");
    host.submit(HANG).expect("it is at rest");
    let () = host.hanging.recv_timeout(PATIENCE).expect("it hangs");
    let beats = host.engine.gauges().beats;
    let shared = host.engine.shared.clone();
    let later = Moment::now() + settings().stall_timeout;
    let state = shared.state(later);
    assert!(
        matches!(state, State::Stalled { seconds } if seconds >= 30),
        "{state:?}"
    );
    let gauges = shared.gauges(later);
    assert_eq!(gauges.beats, beats, "nothing has happened");
    assert!(gauges.silence >= settings().stall_timeout);
    host.release.send(()).expect("it waits");
    assert!(matches!(host.next_end(), Event::Done(_)));
    host.wait_for_rest();
    let late = Moment::now() + Duration::from_secs(3_600);
    assert_eq!(
        shared.state(late),
        State::Ready,
        "an hour of rest does not make a hang"
    );
}

/// A regression test: one long stall of a small batch led to an estimate that refused every prompt
/// for ever.
#[test]
fn engine_at_rest_takes_any_job_whatever_it_has_measured() {
    let mut host = Host::start();
    host.poison(1);
    let job = host.job(&"x".repeat(100), Duration::from_secs(10));
    assert!(
        host.engine.shared.time_to_first_token(&job, 2).is_none(),
        "at rest"
    );
    host.send(job).expect("it is at rest");
    assert!(matches!(host.next_end(), Event::Done(_)));

    // Beside a running job the estimate counts, but only for what has to be computed.
    host.poison(2);
    let job = host.job(&"x".repeat(100), Duration::from_secs(10));
    let refused = host.engine.submit(job.clone()).unwrap_err();
    assert!(
        matches!(refused, Refused::DeadlineUnmeetable { .. }),
        "{refused:?}"
    );
    host.engine.shared.published().held = vec![(job.tenant + 1, 25)];
    assert!(host.engine.submit(job.clone()).is_err(), "another tenant's");
    host.engine.shared.published().held = vec![(job.tenant, 25)];
    host.send(job).expect("all of it may be cached");
    assert!(matches!(host.next_end(), Event::Done(_)));
}

/// A job of another tenant, above the bound.
#[test]
fn full_queue_makes_room_for_a_tenant_that_has_few() {
    let mut host = Host::start();
    host.submit(HANG).expect("it is at rest");
    let () = host.hanging.recv_timeout(PATIENCE).expect("it hangs");
    let queue = settings().queue;
    (0..queue).for_each(|_| host.submit("flood").expect("there is room"));
    let refused = host.submit("flood").unwrap_err();
    assert!(matches!(refused, Refused::QueueFull { .. }), "{refused:?}");
    let tenant = 2;
    let other = |host: &Host| Job {
        tenant,
        ..host.job("other", PATIENCE)
    };
    host.send(other(&host)).expect("its tenant has none");
    host.release.send(()).expect("it waits");
    let mut crowded_out = 0;
    for _ in 0..queue + 2 {
        if let Event::Failed(failed) = host.next_end() {
            let reason = failed.reason;
            assert!(
                matches!(reason, FailReason::CrowdedOut { .. }),
                "{reason:?}"
            );
            crowded_out += 1;
        }
    }
    assert_eq!(crowded_out, 1);
    assert_eq!(host.engine.gauges().queue_depth, 0);

    // While the flood is still being prepared, the tenant with few makes no room for it.
    host.submit(HANG).expect("it is at rest");
    let () = host.hanging.recv_timeout(PATIENCE).expect("it hangs");
    let flood: Vec<_> = (0..queue).map(|_| host.job("flood", PATIENCE)).collect();
    flood
        .into_iter()
        .for_each(|job| host.engine.submit(job).expect("there is room"));
    host.engine
        .submit(other(&host))
        .expect("its tenant has none");
    // The other tenant's task is the last one of all, and is done first.
    let mut tasks: Vec<_> = std::iter::from_fn(|| host.workers.take_one()).collect();
    tasks.pop().expect("nine tasks").run();
    host.release.send(()).expect("it waits");
    for _ in 0..2 {
        assert!(matches!(host.next_end(), Event::Done(_)), "a job made room");
    }
    tasks.into_iter().for_each(|task| task.run());
    for _ in 0..queue {
        assert!(
            matches!(host.next_end(), Event::Done(_)),
            "there is room now"
        );
    }
}

// ---- preparing --------------------------------------------------------------------------------

#[test]
fn job_whose_client_has_left_is_not_prepared() {
    let mut host = Host::start();
    let job = host.job(REFUSE, PATIENCE);
    host.engine.submit(job.clone()).expect("it is at rest");
    job.ticket.cancel(CancelReason::Disconnect);
    assert!(host.workers.run_one());
    let Event::Failed(failed) = host.next_end() else {
        panic!("a job without a client was answered");
    };
    let reason = FailReason::Cancelled(CancelReason::Disconnect);
    assert_eq!(
        failed.reason, reason,
        "a preparation would say something else"
    );
    assert_eq!(host.engine.gauges().queue_depth, 0);

    host.engine
        .submit(host.job(REFUSE, Duration::ZERO))
        .expect("the worker looks at deadlines");
    assert!(host.workers.run_one());
    let Event::Failed(failed) = host.next_end() else {
        panic!("a late job was answered");
    };
    assert_eq!(
        failed.reason,
        FailReason::Error(ErrorCode::GenerationTimeout)
    );
}

#[test]
fn panic_in_a_preparation_fails_its_job_and_nothing_else() {
    let mut host = Host::start();
    host.submit(BREAK).expect("it is at rest");
    let (end, state) = host.next_end_and_state();
    let Event::Failed(failed) = end else {
        panic!("a job without a prompt was answered");
    };
    assert_eq!(failed.reason, FailReason::Error(ErrorCode::EngineFailed));
    assert_eq!(state, State::Ready);
    host.submit("after").expect("it is at rest");
    assert!(matches!(host.next_end(), Event::Done(_)));
    let gauges = host.engine.gauges();
    assert_eq!((gauges.restarts, gauges.queue_depth), (0, 0));
}

#[test]
fn drain_waits_for_jobs_that_are_being_prepared() {
    let mut host = Host::start();
    host.engine
        .submit(host.job("last", PATIENCE))
        .expect("it is at rest");
    host.engine.drain();
    // The thread takes the second order only after it has looked at everything and stayed.
    for _ in 0..2 {
        host.wait_for("a look at the state", |host| {
            host.engine.shared.wakes().is_empty()
        });
        host.engine.shared.wake();
    }
    let refused = host.engine.submit(host.job("late", PATIENCE)).unwrap_err();
    assert_eq!(refused, Refused::Draining);
    assert!(host.workers.run_one());
    assert!(matches!(host.next_end(), Event::Done(_)));
    assert_eq!(
        host.engine.ended.recv_timeout(PATIENCE),
        Err(RecvTimeoutError::Disconnected)
    );

    // The last job never comes to the thread, which has to learn that, too.
    let mut host = Host::start();
    let job = host.job("last", PATIENCE);
    host.engine.submit(job.clone()).expect("it is at rest");
    host.engine.drain();
    host.wait_for("a look at the state", |host| {
        host.engine.shared.wakes().is_empty()
    });
    job.ticket.cancel(CancelReason::Disconnect);
    assert!(host.workers.run_one());
    assert!(matches!(host.next_end(), Event::Failed(_)));
    assert_eq!(
        host.engine.ended.recv_timeout(PATIENCE),
        Err(RecvTimeoutError::Disconnected)
    );
}

#[test]
fn full_pool_refuses_without_an_event() {
    let host = Host::start();
    host.workers.close();
    let refused = host.submit("too many").unwrap_err();
    assert!(matches!(refused, Refused::QueueFull { .. }), "{refused:?}");
    assert!(host.ends.try_recv().is_err(), "a refusal and an event");
    assert_eq!(host.engine.gauges().queue_depth, 0);
    let under_way = host.engine.shared.under_way.load(Ordering::SeqCst);
    assert_eq!(under_way, 0, "a drain would wait for ever");
}

#[test]
fn prompt_that_can_never_fit_is_refused_before_it_waits() {
    let host = Host::start();
    let refused = host.submit(&"x".repeat(Clerk.bytes_max() + 1)).unwrap_err();
    let context_length = CONTEXT as u32;
    assert_eq!(refused, Refused::TooLong { context_length });
    assert!(!host.workers.run_one(), "no worker has seen it");
}

#[test]
fn end_of_the_engine_cancels_what_waits_for_a_worker() {
    let host = Host::start();
    host.engine
        .submit(host.job("waits", PATIENCE))
        .expect("it is at rest");
    let Host {
        engine,
        ends,
        workers,
        ..
    } = host;
    let shared = engine.shared.clone();
    let dropping = thread::spawn(move || drop(engine));
    while shared.life() < Life::Ending {
        thread::yield_now();
    }
    assert!(workers.run_one());
    dropping
        .join()
        .expect("it waits for the worker, and no longer");
    let (end, _) = ends.recv_timeout(PATIENCE).expect("a terminal event");
    let Event::Failed(failed) = end else {
        panic!("a job without an engine was answered");
    };
    assert_eq!(failed.reason, FailReason::Cancelled(CancelReason::Drain));
}

// ---- the host and its back end -----------------------------------------------------------------

struct Host {
    engine: Handle,
    /// Without threads: the test runs the tasks.
    workers: Arc<Workers>,
    /// Each terminal event, and the state when it was delivered.
    ends: Inbox<(Event, State)>,
    loads: Arc<AtomicU32>,
    hanging: Inbox<()>,
    release: Outbox<()>,
}

impl Host {
    fn start() -> Host {
        Host::start_with_loads(u32::MAX)
    }

    /// Loading succeeds this many times.
    fn start_with_loads(most: u32) -> Host {
        let (ends_out, ends) = mpsc::channel();
        let (hangs, hanging) = mpsc::channel();
        let (release, released) = mpsc::channel();
        let (loads, released) = (Arc::new(AtomicU32::new(0)), Arc::new(Mutex::new(released)));
        let counted = loads.clone();
        let load = move |_: &Obtained, _: &Settings, shared: &Shared| {
            if counted.fetch_add(1, Ordering::Relaxed) >= most {
                return Err("the file is gone".to_owned());
            }
            let _ = shared.model.set(model());
            Ok(Puppet {
                tokens: Vec::new(),
                hangs: hangs.clone(),
                released: released.clone(),
            })
        };
        let obtain: Obtain = Box::new(|_| Ok(Obtained::default()));
        let deliver = Arc::new(Ends {
            out: Mutex::new(ends_out),
            shared: OnceLock::new(),
        });
        let (workers, fault) = (Arc::new(Workers::default()), Fault::default());
        let engine = start_with(
            settings(),
            obtain,
            load,
            deliver.clone(),
            workers.clone(),
            fault,
        )
        .expect("a thread can be started");
        // No job has been submitted, so no event has come.
        let _ = deliver.shared.set(engine.shared.clone());
        let host = Host {
            engine,
            workers,
            ends,
            loads,
            hanging,
            release,
        };
        host.wait_for("the first engine", |host| {
            host.engine.state() == State::Ready
        });
        host
    }

    fn submit(&self, prompt: &str) -> Result<(), Refused> {
        self.send(self.job(prompt, PATIENCE))
    }

    /// Submits a job and prepares it.
    fn send(&self, job: Job) -> Result<(), Refused> {
        self.engine.submit(job)?;
        assert!(self.workers.run_one(), "the job");
        Ok(())
    }

    fn exit(&self) -> &Exit {
        &self
            .engine
            .intake
            .as_ref()
            .expect("it is not being dropped")
            .exit
    }

    fn job(&self, prompt: &str, time: Duration) -> Job {
        Job {
            key: JobKey {
                reactor: 0,
                connection: Key::new(0, 0),
                request: 0,
            },
            id: GenerationId::FIRST,
            tenant: 1,
            class: Class::Live,
            weight: 1,
            prompt: Prompt::Raw(prompt.to_owned()),
            sampling: Sampling::default(),
            max_tokens: 3,
            stop: Vec::new(),
            deadline: Moment::now() + time,
            submitted: Moment::now(),
            cache: CacheMode::Bypass,
            ticket: Arc::new(Ticket::new(0)),
        }
    }

    fn next_end(&mut self) -> Event {
        self.next_end_and_state().0
    }

    fn next_end_and_state(&mut self) -> (Event, State) {
        self.ends.recv_timeout(PATIENCE).expect("a terminal event")
    }

    fn wait_for(&self, what: &str, mut is_so: impl FnMut(&Host) -> bool) {
        let give_up = Instant::now() + PATIENCE;
        while !is_so(self) {
            assert!(Instant::now() < give_up, "never came: {what}");
            thread::yield_now();
        }
    }

    /// An hour after a beat the silence is zero only at rest. At work, it is also zero within the
    /// microsecond of a beat.
    fn wait_for_rest(&self) {
        self.wait_for("rest", |host| {
            let later = Moment::now() + Duration::from_secs(3_600);
            host.engine.shared.gauges(later).silence.is_zero()
        });
    }

    /// Publishes a speed of ten seconds per token, with `jobs - 1` jobs running.
    fn poison(&self, jobs: u32) {
        self.wait_for_rest();
        let mut published = self.engine.shared.published();
        let now = Moment::now();
        let speed = &mut published.speed;
        *speed = Default::default();
        speed.handle_prompt_batch(100, Duration::from_secs(1_000), now);
        speed.handle_answer_batch(1, Duration::from_millis(1), now);
        (0..limits::SPEED_CONFIDENT_JOBS_MIN).for_each(|_| speed.handle_job(1, 1, now));
        published.held.clear();
        published.gauges.sequences_running = jobs - 1;
    }
}

struct Ends {
    out: Mutex<Outbox<(Event, State)>>,
    shared: OnceLock<Arc<Shared>>,
}

impl Deliver for Ends {
    fn deliver(&self, events: &mut Vec<(JobKey, Event)>) {
        let out = self.out.lock().expect("no holder panics");
        let shared = self.shared.get().expect("set before the first job");
        for (_, event) in events.drain(..).filter(|(_, event)| event.is_terminal()) {
            // At the end of a test the host may be gone.
            let _ = out.send((event, shared.state(Moment::now())));
        }
    }
}

fn settings() -> Settings {
    Settings {
        family: None,
        id: "puppet".into(),
        parallel: 2,
        threads: 1,
        context: 0,
        kv_type: None,
        queue: 8,
        prompt_budget: Duration::from_millis(250),
        is_reproducible: false,
        gpu_layers: 0,
        stall_timeout: Duration::from_secs(30),
        prefixes: None,
        own_words: None,
    }
}

fn model() -> ModelInfo {
    ModelInfo {
        defaults: Defaults::default(),
        id: "puppet".into(),
        engine: "llama",
        description: String::new(),
        context_length: CONTEXT as u32,
        fingerprint: [0; 32],
        created: 0,
    }
}

/// Two sequences; every output is three times the letter `x`.
struct Puppet {
    tokens: Vec<Vec<Token>>,
    hangs: Outbox<()>,
    released: Arc<Mutex<Inbox<()>>>,
}

const PANIC_TOKEN: Token = 1;
const HANG_TOKEN: Token = 2;
const LETTER: Token = b'x' as Token;

impl Puppet {
    fn sequence(&mut self, index: usize) -> &mut Vec<Token> {
        let length = self.tokens.len().max(index + 1);
        self.tokens.resize(length, Vec::new());
        &mut self.tokens[index]
    }
}

/// Prepares the prompts of the puppet.
#[derive(Debug)]
struct Clerk;

impl Prepare for Clerk {
    fn bytes_max(&self) -> usize {
        2 * CONTEXT
    }

    fn prepare(&self, prompt: &Prompt) -> Result<Prepared, PrepareError> {
        let Prompt::Raw(text) = prompt else {
            unreachable!("the host sends nothing else");
        };
        let first = match text.as_str() {
            PANIC => PANIC_TOKEN,
            HANG => HANG_TOKEN,
            BREAK => panic!("the prompt says so"),
            REFUSE => return Err(PrepareError::Template("no".to_owned())),
            _ => LETTER,
        };
        Ok(Prepared {
            tokens: vec![first, LETTER],
            ..Prepared::default()
        })
    }
}

impl Backend for Puppet {
    type Sampler = ();

    fn now(&self) -> Moment {
        Moment::now()
    }

    fn sequences(&self) -> usize {
        2
    }

    fn context_length(&self) -> usize {
        CONTEXT
    }

    fn batch_limit(&self) -> usize {
        32
    }

    fn preparer(&self) -> Arc<dyn Prepare> {
        Arc::new(Clerk)
    }

    fn sampler(&self, _: &Sampling, _: &[Token]) {}

    fn decode(
        &mut self,
        batch: &Batch,
        _: &(dyn Fn(Moment) -> bool + Sync),
    ) -> Result<(), DecodeError> {
        for entry in batch.entries() {
            match entry.token {
                PANIC_TOKEN => panic!("the prompt says so"),
                HANG_TOKEN => {
                    self.hangs.send(()).expect("the host waits for it");
                    let released = self.released.lock().expect("no holder panics");
                    released.recv_timeout(PATIENCE).expect("the host ends it");
                }
                _ => {}
            }
            self.sequence(entry.sequence).push(entry.token);
        }
        Ok(())
    }

    fn sample(&mut self, _: usize, (): &mut ()) -> Option<Token> {
        Some(LETTER)
    }

    fn is_end(&self, _: Token) -> bool {
        false
    }

    fn append_piece(&self, token: Token, bytes: &mut Vec<u8>) {
        bytes.push(token as u8);
    }

    fn length(&self, sequence: usize) -> usize {
        self.tokens.get(sequence).map_or(0, Vec::len)
    }

    fn truncate(&mut self, sequence: usize, length: usize) {
        self.sequence(sequence).truncate(length);
    }

    fn save(&mut self, _: usize) -> Option<Vec<u8>> {
        None
    }

    fn restore(&mut self, _: usize, _: &[u8], _: usize) -> bool {
        false
    }
}
