//! Runs without chance: one for each way in which a loop may fail.
//!
//! This file has the stage that all of them use, and the scenarios of budgets and glitches; the
//! files beside it are about memory, costs, time, ends, doors, keys, client networks, reloads,
//! proxies, room for new connections, and HTTP/2's streams.

mod buffers;
mod costs;
mod deadlines;
mod doors;
mod drains;
mod ends;
mod fetches;
mod flights;
mod keys;
mod networks;
mod proxies;
mod reloads;
mod rooms;
mod streams;
mod turns;

use std::sync::Arc;
use std::time::Duration;

use super::engine::{CHATTY, TERSE};
use super::system::{Network, Wire};
use super::{Daemon, Dice, Verbosity};
use crate::config::Config;
use crate::core::glitch::Glitch;
use crate::limits::reactor as limits;
use crate::reactor::close_reason::CloseReason;
use crate::reactor::message::Message;

pub const GET: &str = "GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n";

/// A daemon whose clients are the test itself.
pub struct Stage {
    pub daemon: Daemon,
    dice: Dice,
    /// The test runs the workers' tasks itself.
    are_workers_slow: bool,
}

impl Stage {
    pub fn new(adjust: impl FnOnce(&mut Config)) -> Stage {
        Stage::with(1, 100, TERSE, adjust)
    }

    fn with(
        reactors: usize,
        max_connections: usize,
        verbosity: Verbosity,
        adjust: impl FnOnce(&mut Config),
    ) -> Stage {
        let config = Arc::new(configuration(adjust));
        let network = Network::new(1);
        network.borrow_mut().calm = true;
        Stage {
            daemon: Daemon::new(network, reactors, max_connections, &config, verbosity),
            dice: Dice::new(1),
            are_workers_slow: false,
        }
    }

    /// Runs turns until every reactor would sleep.
    pub fn settle(&mut self) {
        for _ in 0..1_000 {
            let mut works = self.daemon.network.borrow().has_pending_events();
            works |= !self.are_workers_slow && self.daemon.workers.run_all();
            for member in &mut self.daemon.reactors {
                works |= member.reactor.as_mut().is_some_and(|one| one.has_work());
            }
            if !works {
                return;
            }
            self.turn();
        }
        panic!("a busy loop: {}", self.daemon.describe());
    }

    /// Runs one turn of each.
    pub fn turn(&mut self) {
        (0..self.daemon.reactors.len()).for_each(|index| self.daemon.turn(index));
    }

    pub fn pass(&mut self, time: Duration) {
        let clock = self.daemon.network.borrow().clock;
        self.daemon.network.borrow_mut().clock = clock + time;
        self.turn();
        self.settle();
    }

    /// Sends all reactors a configuration, as after SIGHUP.
    fn reload(&mut self, adjust: impl FnOnce(&mut Config)) {
        let config = Arc::new(configuration(adjust));
        self.daemon.tell_all(|| Message::Apply(config.clone()));
        self.settle();
    }

    /// Lets the engine generate all that it can, and the reactors handle it.
    fn generate(&mut self) {
        for _ in 0..200 {
            self.daemon.engine.step(&mut self.dice);
        }
        self.settle();
    }

    fn connect_slowly(&mut self, capacity: usize) -> usize {
        let wire = self.daemon.network.borrow_mut().connect(capacity);
        wire.expect("the daemon listens")
    }

    pub fn connect(&mut self) -> usize {
        self.connect_slowly(usize::MAX)
    }

    pub fn on<T>(&mut self, wire: usize, act: impl FnOnce(&mut Wire) -> T) -> T {
        act(&mut self.daemon.network.borrow_mut().wires[wire])
    }

    pub fn send(&mut self, wire: usize, bytes: impl AsRef<[u8]>) {
        self.on(wire, |wire| wire.client_sends(bytes.as_ref()));
    }

    /// Returns what has come so far, after the daemon did what it could.
    fn receive(&mut self, wire: usize) -> String {
        self.settle();
        let bytes = self.on(wire, |wire| wire.client_reads(usize::MAX));
        String::from_utf8(bytes).expect("answers are UTF-8")
    }

    /// Returns all that comes to a client that reads on.
    fn receive_all(&mut self, wire: usize) -> String {
        let mut text = String::new();
        loop {
            let more = self.receive(wire);
            if more.is_empty() {
                return text;
            }
            text.push_str(&more);
        }
    }

    pub fn output_bytes(&self, wire: usize) -> usize {
        let live = self.daemon.reactors.iter();
        let live = live.filter_map(|member| member.reactor.as_ref());
        live.map(|reactor| reactor.output_bytes(wire)).sum()
    }

    pub fn buffers_out(&self) -> u64 {
        let live = self.daemon.reactors.iter();
        let live = live.filter_map(|member| member.reactor.as_ref());
        live.map(|reactor| reactor.buffers_out()).sum()
    }

    pub fn is_closed(&mut self, wire: usize) -> bool {
        self.on(wire, |wire| wire.closed)
    }

    /// Returns whether the daemon has closed it and left nothing unread, so that no reset destroyed
    /// a response.
    fn is_closed_in_good_order(&mut self, wire: usize) -> bool {
        self.on(wire, |wire| wire.closed && !wire.reset)
    }

    fn closed(&self, reason: CloseReason) -> u64 {
        self.daemon.closed[reason as usize].get()
    }

    /// Returns how many wires are accepted and not closed.
    fn open(&self) -> usize {
        self.daemon.metrics.connections.get() as usize
    }
}

fn configuration(adjust: impl FnOnce(&mut Config)) -> Config {
    let mut config = Config::default();
    config.auth.enabled = false;
    config.rate_limit.enabled = false;
    config.cache.enabled = false;
    adjust(&mut config);
    config
}

/// Programs that do not end within a test.
const LOUD: Verbosity = Verbosity {
    program_lines_least: CHATTY.program_lines_most,
    fails_one_in: u64::MAX,
    ..CHATTY
};

fn generate(stream: bool) -> String {
    let body = format!(r#"{{"prompt":"sort","language":"python","stream":{stream}}}"#);
    let length = body.len();
    format!(
        "POST /api/v1/generate HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n\r\n{body}"
    )
}

const SECOND: Duration = Duration::from_secs(1);

// ---- budgets ----

#[test]
fn a_burst_is_answered_to_its_end_wherever_the_budget_cuts_it() {
    let body = r#"{"prompt":"x"}"#;
    let length = body.len();
    let chunked = format!(
        "POST /api/v1/generate HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\
         expect: 100-continue\r\n\r\n{length:x}\r\n{body}\r\n0\r\n\r\n"
    );
    for count in 28..36 {
        let mut stage = Stage::new(|_| {});
        let wire = stage.connect();
        stage.send(wire, GET.repeat(count) + &chunked);
        let answers = stage.receive(wire);
        assert_eq!(answers.matches("HTTP/1.1 200").count(), count);
        assert_eq!(stage.daemon.engine.running(), 1, "behind {count}");
    }
}

#[test]
fn a_burst_does_not_hold_up_the_others() {
    let mut stage = Stage::new(|_| {});
    let (greedy, modest) = (stage.connect(), stage.connect());
    stage.settle();
    stage.send(greedy, GET.repeat(500));
    stage.send(modest, GET);
    stage.turn();
    let answers = stage.on(greedy, |wire| wire.client_reads(usize::MAX));
    let answers = String::from_utf8(answers).expect("answers are UTF-8");
    // A share in each of the turn's two rounds.
    let share = 2 * limits::REQUESTS_PER_READ_MAX;
    assert_eq!(answers.matches("HTTP/1.1 200").count(), share);
    assert!(stage.on(modest, |wire| !wire.to_client.is_empty()));
    let rest = 500 - share;
    assert_eq!(stage.receive(greedy).matches("HTTP/1.1 200").count(), rest);
}

#[test]
fn a_burst_of_large_answers_waits_for_room() {
    let mut stage = Stage::new(|config| config.metrics.public_on_loopback = true);
    let wire = stage.connect_slowly(1_000);
    let request = "GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n";
    stage.send(wire, request.repeat(500));
    let answers = stage.receive_all(wire);
    assert_eq!(answers.matches("HTTP/1.1 200").count(), 500);
    assert!(!stage.is_closed(wire));
}

// ---- glitches ----

fn glitches(stage: &Stage, kind: Glitch) -> u64 {
    stage.daemon.metrics.glitches.get(kind).get()
}

#[test]
fn a_body_in_crumbs_is_refused_and_a_few_crumbs_are_not() {
    let head =
        "POST /api/v1/generate HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n";
    let text = format!(r#"{{"prompt":"{}"}}"#, "x".repeat(2_000));
    let in_chunks_of = |size: usize| {
        let chunks = text.as_bytes().chunks(size).map(|chunk| {
            let chunk = std::str::from_utf8(chunk).expect("ASCII");
            format!("{size:x}\r\n{chunk}\r\n", size = chunk.len())
        });
        format!("{head}{}0\r\n\r\n", chunks.collect::<String>())
    };
    let mut stage = Stage::new(|_| {});
    let (crumbs, slices) = (stage.connect(), stage.connect());
    stage.send(slices, in_chunks_of(8));
    stage.send(crumbs, in_chunks_of(1));
    assert!(stage.receive(crumbs).starts_with("HTTP/1.1 400"));
    assert_eq!(stage.daemon.engine.running(), 1);
    assert!(!stage.is_closed(slices));
    assert!(glitches(&stage, Glitch::TinyData) > 500);
}

#[test]
fn empty_lines_between_requests_are_ignored_but_not_for_ever() {
    let mut stage = Stage::new(|_| {});
    let wire = stage.connect();
    let mut answers = String::new();
    for _ in 0..60 {
        stage.send(wire, ["\r\n", GET].concat().repeat(10));
        answers.push_str(&stage.receive(wire));
    }
    assert_eq!(answers.matches("HTTP/1.1 200").count(), 500);
    assert_eq!(answers.matches("HTTP/1.1 400").count(), 1);
    assert_eq!(glitches(&stage, Glitch::IgnoredBytes), 501);
}

#[test]
fn a_body_that_drips_is_refused_before_a_patient_deadline() {
    let hour = 3_600 * SECOND;
    let mut stage = Stage::new(|config| config.limits.body_timeout = hour);
    let (dripping, slow) = (stage.connect(), stage.connect());
    let head =
        "POST /api/v1/generate HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100000\r\n\r\n";
    stage.send(dripping, head);
    stage.send(slow, head);
    for _ in 0..21 {
        stage.send(dripping, "x");
        stage.send(slow, "x".repeat(300));
        stage.pass(SECOND);
    }
    assert!(stage.receive(dripping).starts_with("HTTP/1.1 408"));
    assert_eq!(stage.receive(slow), "");
    assert_eq!(glitches(&stage, Glitch::Drip), 4);
}

#[test]
fn a_stall_in_a_body_does_not_make_its_last_small_chunk_one_too_many() {
    let mut stage = Stage::new(|config| config.limits.body_timeout = 3_600 * SECOND);
    let wire = stage.connect();
    stage.send(
        wire,
        "POST /api/v1/generate HTTP/1.1\r\nhost: localhost\r\n",
    );
    stage.send(
        wire,
        "transfer-encoding: chunked\r\n\r\nb\r\n{\"prompt\":\"\r\n",
    );
    stage.settle();
    stage.pass(14 * SECOND);
    stage.send(wire, "3\r\nx\"}\r\n0\r\n\r\n");
    assert_eq!(stage.receive(wire), "");
    assert_eq!(stage.daemon.engine.running(), 1);
}

#[test]
fn silence_between_two_requests_is_not_a_drip() {
    let mut stage = Stage::new(|config| config.limits.idle_timeout = 3_600 * SECOND);
    let wire = stage.connect();
    for _ in 0..10 {
        let (front, back) = GET.split_at(9);
        stage.send(wire, front);
        stage.settle();
        stage.send(wire, back);
        assert!(stage.receive(wire).starts_with("HTTP/1.1 200"));
        stage.pass(600 * SECOND);
    }
    assert_eq!(glitches(&stage, Glitch::Drip), 0);
}
