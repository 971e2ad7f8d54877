//! Worlds with durable jobs: the real service and the real runner over the simulated kernel, a
//! simulated engine, and a store that is slow, fails, or loses the reply to a commit when the dice
//! say so.
//!
//! Clients submit jobs, follow them, leave in the middle, resume behind the last event that they
//! have, and cancel. In the end, after everything has settled or a drain has cut it short:
//!
//!  * each accepted job is in the store; each that has ended has exactly one last event, and it is
//!    the last;
//!  * each follower saw the events of its job in order, each once, without a gap, over all of its
//!    connections; with a store that works again, all of them to the end;
//!  * the deltas of a completed job are its program, each once, although parts are saved again;
//!  * no job is lost, although the time of day is set forward and back by hours, unless the engine
//!    fails, or the reply to a claim is lost;
//!  * nothing is left: no follower, no task, no attempt, no buffered byte, one terminal event for
//!    each job of the engine.
//!
//! Mutations that the first seeds catch: `handle_batch` of `service/api/jobs/follow.rs` that leaves
//! `after` where it is; `handle_done` of `runner/thread.rs` without `give_back`; `work` without
//! `heed_clock`; `write` of `runner/changes.rs` that appends a part again.

use std::cell::Cell;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::engine::Verbosity;
use super::system::{Network, Wire};
use super::{Daemon, Dice, Message, TURNS_MOST, config, seeds};
use crate::core::UnixMillis;
use crate::engine::code::Extractor;
use crate::jobs::{Ending, EventId, EventKind, JobEvent, JobId, JobRecord};
use crate::keys::KeyRing;
use crate::runner::{Callbacks, Note, RunnerSeries, Thread, thread};
use crate::store::{Fault, Jobs as _, SqliteStore, StoreError};
use crate::telemetry::metrics::Metrics;

thread_local! {
    /// Milliseconds since 1970, of the world that this thread runs.
    static WALL_MS: Cell<u64> = const { Cell::new(0) };
}

/// The wall clock of a simulated daemon.
pub fn wall_clock() -> UnixMillis {
    UnixMillis::new(WALL_MS.get())
}

const VERBOSITY: Verbosity = Verbosity {
    program_lines_least: 1,
    program_lines_most: 200,
    token_lines_most: 8,
    fails_one_in: 300,
};

/// How far the time of day is set: less than the time after which a job expires.
const CLOCK_MS_MOST: u64 = 2 * 3_600_000;

/// Clients of a world.
const CROWD_MOST: u64 = 24;

/// What a client asks for, on a connection of its own.
enum Wish {
    Submit,
    Cancel,
    /// It gives up once in this many steps.
    Follow(JobId, Option<u64>),
}

struct Visitor {
    wire: usize,
    wish: Wish,
    received: Vec<u8>,
    /// How much of `received` was understood.
    read: usize,
}

/// All that the followers of a job have seen: each continues where the one before has left.
#[derive(Default)]
struct History {
    last: EventId,
    is_over: bool,
    is_followed: bool,
}

struct World {
    daemon: Daemon,
    dice: Dice,
    store: SqliteStore,
    _folder: tempfile::TempDir,
    runner: Option<Thread>,
    visitors: Vec<Visitor>,
    came: u64,
    /// How often a follower has begun behind an event.
    resumed: u64,
    accepted: Vec<JobId>,
    seen: HashMap<JobId, History>,
    /// One in this many groups of tasks fails.
    store_fails_one_in: u64,
    /// One in this many is committed, and reported as lost.
    reply_is_lost_one_in: u64,
    engine_fails: bool,
    /// How far the time of day is ahead of that of the start and the time since.
    ahead_ms: u64,
}

impl World {
    fn new(seed: u64) -> World {
        let mut dice = Dice::new(seed);
        WALL_MS.set(1_000_000_000);
        let mut config = config(true, false, false, &mut dice);
        config.cache.enabled = false;
        config.jobs.concurrency = 1 + dice.below(3) as u32;
        let config = Arc::new(config);
        let network = Network::new(dice.next());
        network.borrow_mut().is_slow = true;
        let reactors = 1 + dice.below(3) as usize;
        let engine_fails = dice.one_in(2);
        let fails_one_in = match engine_fails {
            true => VERBOSITY.fails_one_in,
            false => u64::MAX,
        };
        let verbosity = Verbosity {
            fails_one_in,
            ..VERBOSITY
        };
        let daemon = Daemon::new(network, reactors, 1_000, &config, verbosity);
        let folder = tempfile::tempdir().expect("a folder");
        let parts = thread::Parts {
            engine: daemon.engine.clone(),
            requests: daemon.requests.clone(),
            followers: daemon.jobs.followers.clone(),
            journal: daemon.jobs.journal.clone(),
            series: Metrics::new("simulated").series::<RunnerSeries>(),
            // No job here has a callback.
            callbacks: Callbacks::new().0,
            config,
            keys: Arc::new(KeyRing::new(Vec::new())),
            leases: Default::default(),
            wall_clock,
            seed,
        };
        let now = daemon.network.borrow().clock;
        World {
            store: SqliteStore::open_in(folder.path()).expect("a database"),
            _folder: folder,
            runner: Some(Thread::new(parts, now)),
            daemon,
            visitors: Vec::new(),
            came: 0,
            resumed: 0,
            accepted: Vec::new(),
            seen: HashMap::new(),
            store_fails_one_in: [u64::MAX, 4, 20][dice.below(3) as usize],
            reply_is_lost_one_in: [u64::MAX, 4, 20][dice.below(3) as usize],
            engine_fails,
            ahead_ms: 0,
            dice,
        }
    }

    fn run(&mut self) {
        let crowd = 2 + self.dice.below(CROWD_MOST);
        let is_cut_short = self.dice.one_in(4);
        for turn in 0.. {
            assert!(turn < TURNS_MOST, "no end: {}", self.describe());
            self.step(crowd);
            if self.came == crowd && (is_cut_short || self.has_settled()) {
                break;
            }
        }
        self.end();
        self.check(!is_cut_short);
    }

    /// Returns whether all clients have left and all jobs have ended.
    fn has_settled(&mut self) -> bool {
        let totals = self.store.job_totals(None).expect("it is read");
        let is_seen = |id| self.seen.get(id).is_some_and(|history| history.is_over);
        let all_seen = self.accepted.iter().all(is_seen);
        self.visitors.is_empty() && totals.unfinished() == 0 && all_seen
    }

    fn step(&mut self, crowd: u64) {
        let passed = match self.dice.one_in(50) {
            true => self.dice.below(3_000),
            false => self.dice.below(20),
        };
        self.pass(passed);
        if self.dice.one_in(200) {
            self.set_time_of_day();
        }
        if self.came < crowd && self.dice.one_in(4) {
            self.came += 1;
            let wish = match self.accepted.is_empty() || self.dice.one_in(2) {
                true => Wish::Submit,
                false => Wish::Cancel,
            };
            self.visit(wish);
        }
        self.follow_again();
        self.let_visitors_act();
        self.let_others_act();
    }

    fn pass(&mut self, milliseconds: u64) {
        WALL_MS.set(WALL_MS.get() + milliseconds);
        let network = &mut *self.daemon.network.borrow_mut();
        network.clock = network.clock + Duration::from_millis(milliseconds);
    }

    /// Sets the wall clock forward or back, as an operator or a machine that was suspended does.
    fn set_time_of_day(&mut self) {
        let ahead_ms = self.dice.below(CLOCK_MS_MOST);
        WALL_MS.set(WALL_MS.get() - self.ahead_ms + ahead_ms);
        self.ahead_ms = ahead_ms;
    }

    /// Each accepted job has a follower until its end was seen.
    fn follow_again(&mut self) {
        for id in self.accepted.clone() {
            let history = self.seen.entry(id).or_default();
            if !history.is_over && !history.is_followed && self.dice.one_in(3) {
                history.is_followed = true;
                let leaves_one_in = self.dice.one_in(2).then_some(8);
                self.visit(Wish::Follow(id, leaves_one_in));
            }
        }
    }

    fn visit(&mut self, wish: Wish) {
        // HTTP/1.0: the response ends with its connection.
        let text = match &wish {
            Wish::Submit => {
                let body = r#"{"prompt":"sort","language":"python"}"#;
                let length = body.len();
                format!(
                    "POST /api/v1/jobs HTTP/1.0\r\ncontent-type: application/json\r\n\
                     content-length: {length}\r\n\r\n{body}"
                )
            }
            Wish::Cancel => {
                let id = self.accepted[self.dice.below(self.accepted.len() as u64) as usize];
                format!("DELETE /api/v1/jobs/{id} HTTP/1.0\r\n\r\n")
            }
            Wish::Follow(id, _) => {
                let after = match self.seen[id].last {
                    EventId::BEGINNING => String::new(),
                    last => {
                        self.resumed += 1;
                        format!("last-event-id: {last}\r\n")
                    }
                };
                format!("GET /api/v1/jobs/{id}/events HTTP/1.0\r\n{after}\r\n")
            }
        };
        let network = &mut *self.daemon.network.borrow_mut();
        let capacity = 1 << (6 + self.dice.below(12));
        if let Some(wire) = network.connect(capacity) {
            network.wires[wire].client_sends(text.as_bytes());
            self.visitors.push(Visitor {
                wire,
                wish,
                received: Vec::new(),
                read: 0,
            });
        } else if let Wish::Follow(id, _) = wish {
            self.seen.entry(id).or_default().is_followed = false;
        }
    }

    fn let_visitors_act(&mut self) {
        for mut visitor in std::mem::take(&mut self.visitors) {
            let stays = self.visitor_acts(&mut visitor);
            if stays {
                self.visitors.push(visitor);
            } else if let Wish::Follow(id, _) = visitor.wish {
                self.seen.entry(id).or_default().is_followed = false;
            }
        }
    }

    /// Returns whether the client stays.
    fn visitor_acts(&mut self, visitor: &mut Visitor) -> bool {
        let at_most = self.dice.below(4_096) as usize;
        let network = self.daemon.network.clone();
        let wires = &mut network.borrow_mut().wires;
        let wire: &mut Wire = &mut wires[visitor.wire];
        visitor.received.extend(wire.client_reads(at_most));
        if let Wish::Follow(id, leaves_one_in) = visitor.wish {
            self.read_events(visitor, id);
            if leaves_one_in.is_some_and(|count| self.dice.one_in(count)) {
                wire.client_resets();
                return false;
            }
        }
        if !wire.is_over() {
            return true;
        }
        if !wire.client_fin {
            wire.client_half_closes();
        }
        if matches!(visitor.wish, Wish::Submit) {
            self.accepted.extend(accepted(&visitor.received));
        }
        false
    }

    /// Checks each event that has come whole.
    fn read_events(&mut self, visitor: &mut Visitor, id: JobId) {
        let history = self.seen.entry(id).or_default();
        while let Some(end) = find(&visitor.received[visitor.read..], b"\n\n") {
            let block = &visitor.received[visitor.read..visitor.read + end];
            visitor.read += end + 2;
            let block = String::from_utf8_lossy(block);
            let field = |name| block.lines().find_map(|line| line.strip_prefix(name));
            let (Some(event), Some(kind)) = (field("id: "), field("event: ")) else {
                continue;
            };
            let event = EventId::parse(event).expect("an id of an event");
            let kind = EventKind::parse(kind).expect("a kind of event");
            check_next(history.last, event);
            assert!(!history.is_over, "{kind:?} comes after the end of {id}");
            history.last = event;
            history.is_over = kind.is_last();
        }
    }

    fn let_others_act(&mut self) {
        self.daemon.set_clock();
        self.daemon.workers.step(&mut self.dice);
        for _ in 0..self.dice.below(4) {
            self.daemon.engine.step(&mut self.dice);
        }
        if self.dice.one_in(3) {
            self.let_store_act();
        }
        if !self.dice.one_in(3) {
            self.let_runner_act();
        }
        for index in 0..self.daemon.reactors.len() {
            if !self.dice.one_in(4) {
                self.daemon.turn(index);
            }
        }
    }

    /// A group of tasks is committed, or fails and leaves nothing, or is committed and reported as
    /// lost.
    fn let_store_act(&mut self) {
        let mut group = Vec::new();
        if self.daemon.requests.waiting() > 0 {
            self.daemon.requests.take(&mut group, Duration::ZERO);
        }
        let fails = self.dice.one_in(self.store_fails_one_in);
        let is_reply_lost = self.dice.one_in(self.reply_is_lost_one_in);
        for mut task in group {
            if fails {
                task.lose(&failure());
                continue;
            }
            let result = task.run(&mut self.store);
            match is_reply_lost {
                true => task.lose(&failure()),
                false => task.finish(result.as_ref().copied()),
            }
        }
    }

    fn let_runner_act(&mut self) {
        let now = self.daemon.network.borrow().clock;
        let Some(runner) = &mut self.runner else {
            return;
        };
        for note in self.daemon.notes.try_iter() {
            runner.handle_note(note, now);
        }
        if !runner.work(now) {
            self.runner = None;
        }
    }

    /// Drains the daemon; it must end and owe nothing.
    fn end(&mut self) {
        self.daemon.jobs.journal.note(Note::Drain);
        let patience = Duration::from_secs(1 + self.dice.below(20));
        self.daemon.tell_all(|| Message::Drain(patience));
        for turn in 0.. {
            assert!(turn < TURNS_MOST, "no end: {}", self.describe());
            if self.daemon.has_ended() && self.runner.is_none() {
                break;
            }
            let passed = self.dice.below(100);
            self.pass(passed);
            self.let_visitors_act();
            self.let_others_act();
        }
        while self.daemon.requests.waiting() > 0 {
            self.let_store_act();
        }
        for _ in 0..TURNS_MOST {
            self.daemon.engine.step(&mut self.dice);
            if self.daemon.engine.running() == 0 {
                break;
            }
        }
        self.daemon.workers.end();
        self.daemon.resolvers.end();
        self.daemon.check_ended();
        assert_eq!(
            self.daemon.jobs.followers.jobs_after(None, 1),
            [],
            "a follower is left"
        );
    }

    fn check(&mut self, all_have_ended: bool) {
        for id in &self.accepted {
            let job = self.store.job(*id).expect("it is read");
            let job = job.unwrap_or_else(|| panic!("{id} was accepted and is lost"));
            let events = self.store.job_events(*id, EventId::BEGINNING, usize::MAX);
            let events = events.expect("they are read");
            let mut last = EventId::BEGINNING;
            for event in &events {
                check_next(last, event.id);
                last = event.id;
            }
            let ends = events.iter().filter(|event| event.kind.is_last()).count();
            let is_finished = job.life.state.is_finished();
            assert_eq!(ends, usize::from(is_finished), "{id}: {events:?}");
            let may_be_lost = self.engine_fails || self.reply_is_lost_one_in < u64::MAX;
            assert!(may_be_lost || job.life.lost == 0, "{id} was lost");
            if is_finished {
                assert!(events.last().is_some_and(|event| event.kind.is_last()));
            }
            check_program(&job, &events);
            if all_have_ended {
                assert!(is_finished && self.seen[id].is_over, "{id}");
                assert_eq!(self.seen[id].last, last, "{id}");
            }
        }
    }

    fn describe(&self) -> String {
        let followed = self.seen.values().filter(|history| history.is_over);
        format!(
            "{}, {} jobs accepted, {} seen to the end, {} clients, {} tasks, a runner: {}",
            self.daemon.describe(),
            self.accepted.len(),
            followed.count(),
            self.visitors.len(),
            self.daemon.requests.waiting(),
            self.runner.is_some(),
        )
    }
}

/// Events follow one another without a gap: the next one of the attempt, or the first of a later.
fn check_next(last: EventId, next: EventId) {
    let is_next = next.attempt == last.attempt && next.sequence == last.sequence + 1;
    let is_first = next.attempt > last.attempt && next.sequence == 0;
    assert!(is_next || is_first, "{next} comes after {last}");
}

/// The deltas of the attempt that has completed a job are the program in its text.
fn check_program(job: &JobRecord, events: &[JobEvent]) {
    let ending = job.ending.as_deref().and_then(Ending::parse);
    let Some(Ending::Completed(completion)) = ending else {
        return;
    };
    let mut extractor = Extractor::new(completion.language.as_deref());
    let mut program = String::new();
    extractor.push(&completion.text, &mut program);
    program.push_str(&extractor.finish());
    let own = events
        .iter()
        .filter(|event| event.id.attempt == job.life.attempt);
    let deltas: String = own.map(|event| event.text.as_str()).collect();
    assert!(
        !program.is_empty() && deltas == program,
        "{}: {deltas:?} is not {program:?}",
        job.id
    );
}

/// Returns the id of the job that a response reports as accepted.
fn accepted(response: &[u8]) -> Option<JobId> {
    let text = String::from_utf8_lossy(response);
    let is_accepted = text.starts_with("HTTP/1.1 202 ");
    let rest = text.split_once("\"id\":\"")?.1;
    let id = rest.split_once('"')?.0;
    is_accepted.then(|| JobId::parse(id).expect("an id of a job"))
}

fn find(bytes: &[u8], pattern: &[u8]) -> Option<usize> {
    bytes
        .windows(pattern.len())
        .position(|window| window == pattern)
}

fn failure() -> StoreError {
    StoreError::Database {
        place: "the simulation".to_owned(),
        fault: Fault::Other,
        reason: "the dice".to_owned(),
    }
}

/// Runs a world. Returns how many jobs were accepted, and how many times a client resumed.
fn simulate(seed: u64) -> (u64, u64) {
    let mut world = World::new(seed);
    let run = catch_unwind(AssertUnwindSafe(|| {
        world.run();
        (world.accepted.len() as u64, world.resumed)
    }));
    run.unwrap_or_else(|panic| {
        eprintln!("{}", world.describe());
        eprintln!("replay with AUTOGLMD_SIM_SEED={seed}");
        resume_unwind(panic)
    })
}

#[test]
fn every_seed_of_jobs_keeps_the_invariants() {
    let asked = seeds::asked_for();
    // A world with a database takes several times as long as one without.
    let seeds = asked.start..asked.start + (asked.end - asked.start).div_ceil(4);
    let is_whole = seeds.end - seeds.start >= 64;
    let (accepted, resumed) = (AtomicU64::new(0), AtomicU64::new(0));
    seeds::try_all(seeds, |seed| {
        let totals = simulate(seed);
        accepted.fetch_add(totals.0, Ordering::Relaxed);
        resumed.fetch_add(totals.1, Ordering::Relaxed);
    });
    let totals = (accepted.into_inner(), resumed.into_inner());
    assert!(
        totals.0 > 100 && totals.1 > 50 || !is_whole,
        "too little has happened: {totals:?}"
    );
}
