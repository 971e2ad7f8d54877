//! Runs in which nothing is left to the dice: one for each way in which a loop may fail.

use std::sync::Arc;
use std::time::Duration;

use super::engine::{CHATTY, TERSE};
use super::system::{Network, Wire};
use super::{Dice, House, Verbosity};
use crate::config::Config;
use crate::limits::REQUESTS_PER_READ;
use crate::offload::CancelReason;
use crate::reactor::connection::CloseReason;
use crate::reactor::message::Message;

const GET: &str = "GET /livez HTTP/1.1\r\nhost: x\r\n\r\n";

/// A house whose clients are the test itself.
struct Stage {
    house: House,
    dice: Dice,
}

impl Stage {
    fn new(adjust: impl FnOnce(&mut Config)) -> Stage {
        Stage::with(1, 100, TERSE, adjust)
    }

    fn with(
        reactors: usize,
        max_connections: usize,
        verbosity: Verbosity,
        adjust: impl FnOnce(&mut Config),
    ) -> Stage {
        let mut config = Config::default();
        config.auth.enabled = false;
        config.rate_limit.enabled = false;
        adjust(&mut config);
        let network = Network::new(1);
        network.borrow_mut().calm = true;
        let config = Arc::new(config);
        Stage {
            house: House::new(network, reactors, max_connections, &config, verbosity),
            dice: Dice::new(1),
        }
    }

    /// Turns until every reactor would sleep.
    fn settle(&mut self) {
        for _ in 0..1_000 {
            let mut works = self.house.network.borrow().has_pending_events();
            for member in &mut self.house.reactors {
                works |= member.reactor.as_mut().is_some_and(|one| one.has_work());
            }
            if !works {
                return;
            }
            self.turn();
        }
        panic!("a busy loop: {}", self.house.describe());
    }

    /// One turn of each.
    fn turn(&mut self) {
        (0..self.house.reactors.len()).for_each(|index| self.house.turn(index));
    }

    fn pass(&mut self, time: Duration) {
        let clock = self.house.network.borrow().clock;
        self.house.network.borrow_mut().clock = clock + time;
        self.turn();
        self.settle();
    }

    /// The engine says all that it can, and the reactors hear it.
    fn generate(&mut self) {
        for _ in 0..200 {
            self.house.engine.step(&mut self.dice);
        }
        self.settle();
    }

    fn connect_slowly(&mut self, capacity: usize) -> usize {
        let wire = self.house.network.borrow_mut().connect(capacity);
        wire.expect("the daemon listens")
    }

    fn connect(&mut self) -> usize {
        self.connect_slowly(usize::MAX)
    }

    fn on<T>(&mut self, wire: usize, act: impl FnOnce(&mut Wire) -> T) -> T {
        act(&mut self.house.network.borrow_mut().wires[wire])
    }

    fn send(&mut self, wire: usize, bytes: impl AsRef<[u8]>) {
        self.on(wire, |wire| wire.client_sends(bytes.as_ref()));
    }

    /// What has come so far, after the daemon did what it could.
    fn receive(&mut self, wire: usize) -> String {
        self.settle();
        let bytes = self.on(wire, |wire| wire.client_reads(usize::MAX));
        String::from_utf8(bytes).expect("answers are UTF-8")
    }

    /// All that comes to one who reads on.
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

    fn is_closed(&mut self, wire: usize) -> bool {
        self.on(wire, |wire| wire.closed)
    }

    fn closed(&self, reason: CloseReason) -> u64 {
        self.house.closed[reason as usize].get()
    }

    /// Wires that somebody has accepted and nobody has closed.
    fn open(&self) -> usize {
        self.house.metrics.connections.get() as usize
    }
}

fn generate(stream: bool) -> String {
    let body = format!(r#"{{"prompt":"sort","language":"python","stream":{stream}}}"#);
    let length = body.len();
    format!(
        "POST /api/v1/generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
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
        "POST /api/v1/generate HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\
         expect: 100-continue\r\n\r\n{length:x}\r\n{body}\r\n0\r\n\r\n"
    );
    for count in 28..36 {
        let mut stage = Stage::new(|_| {});
        let wire = stage.connect();
        stage.send(wire, GET.repeat(count) + &chunked);
        let answers = stage.receive(wire);
        assert_eq!(answers.matches("HTTP/1.1 200").count(), count);
        assert_eq!(stage.house.engine.running(), 1, "behind {count}");
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
    let share = 2 * REQUESTS_PER_READ;
    assert_eq!(answers.matches("HTTP/1.1 200").count(), share);
    assert!(stage.on(modest, |wire| !wire.to_client.is_empty()));
    let rest = 500 - share;
    assert_eq!(stage.receive(greedy).matches("HTTP/1.1 200").count(), rest);
}

#[test]
fn a_burst_of_large_answers_waits_for_room() {
    let mut stage = Stage::new(|config| config.metrics.public_on_loopback = true);
    let wire = stage.connect_slowly(1_000);
    let request = "GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n";
    stage.send(wire, request.repeat(500));
    let answers = stage.receive_all(wire);
    assert_eq!(answers.matches("HTTP/1.1 200").count(), 500);
    assert!(!stage.is_closed(wire));
}

// ---- deadlines ----

#[test]
fn edges_without_bytes_do_not_keep_an_idle_connection() {
    let mut stage = Stage::new(|config| config.limits.idle_timeout = 10 * SECOND);
    let wire = stage.connect();
    stage.send(wire, GET);
    stage.receive(wire);
    for _ in 0..9 {
        stage.on(wire, Wire::raise_spurious_edge);
        stage.pass(SECOND);
    }
    assert!(!stage.is_closed(wire));
    stage.pass(2 * SECOND);
    assert!(stage.is_closed(wire));
    assert_eq!(stage.closed(CloseReason::Idle), 1);
}

#[test]
fn a_request_moves_the_idle_deadline() {
    let mut stage = Stage::new(|config| config.limits.idle_timeout = 10 * SECOND);
    let wire = stage.connect();
    for _ in 0..9 {
        stage.send(wire, GET);
        assert!(stage.receive(wire).starts_with("HTTP/1.1 200"));
        stage.pass(9 * SECOND);
    }
    assert!(!stage.is_closed(wire));
}

#[test]
fn a_request_at_the_last_moment_is_served() {
    let mut stage = Stage::new(|config| config.limits.idle_timeout = 10 * SECOND);
    let wire = stage.connect();
    stage.settle();
    stage.send(wire, GET);
    stage.pass(20 * SECOND);
    assert!(stage.receive(wire).starts_with("HTTP/1.1 200"));
}

#[test]
fn a_slow_reader_that_makes_progress_gets_its_whole_answer() {
    for half_closes in [false, true] {
        let mut stage = Stage::new(|config| {
            config.limits.idle_timeout = SECOND;
            config.limits.write_timeout = 10 * SECOND;
        });
        let wire = stage.connect_slowly(10);
        stage.send(wire, GET);
        if half_closes {
            stage.on(wire, Wire::client_half_closes);
        }
        let mut answer = String::new();
        while !stage.on(wire, |wire| wire.is_over()) {
            answer.push_str(&stage.receive(wire));
            stage.pass(3 * SECOND);
        }
        assert!(answer.ends_with("\r\n\r\nok\n"), "{answer:?}");
    }
}

#[test]
fn each_head_of_a_steady_pipeline_has_a_deadline_of_its_own() {
    let mut stage = Stage::new(|config| config.limits.header_timeout = 10 * SECOND);
    let wire = stage.connect();
    let (first, second) = GET.split_at(9);
    stage.send(wire, first);
    for _ in 0..30 {
        stage.send(wire, [second, first].concat());
        assert!(stage.receive(wire).starts_with("HTTP/1.1 200"));
        stage.pass(SECOND);
    }
    // And that one is absolute.
    for _ in 0..10 {
        stage.send(wire, "z");
        stage.pass(SECOND);
    }
    let answer = stage.receive(wire);
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer:?}");
}

#[test]
fn a_deadline_of_a_request_that_has_come_is_none_of_the_next_state() {
    // The head came slowly; then the client said that this was all. Its answer is read slowly too.
    let mut stage = Stage::new(|config| config.limits.header_timeout = 10 * SECOND);
    let wire = stage.connect_slowly(10);
    stage.send(wire, &GET[..9]);
    stage.pass(5 * SECOND);
    stage.send(wire, &GET[9..]);
    stage.on(wire, Wire::client_half_closes);
    stage.pass(20 * SECOND);
    let answer = stage.receive_all(wire);
    assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
}

// ---- ends ----

#[test]
fn answers_are_sent_before_the_end_of_input_is_acted_on() {
    let mut stage = Stage::new(|_| {});
    let wire = stage.connect_slowly(10);
    stage.send(wire, [GET, &GET[..9]].concat());
    stage.on(wire, Wire::client_half_closes);
    let answer = stage.receive_all(wire);
    assert!(answer.ends_with("\r\n\r\nok\n"), "{answer:?}");
}

#[test]
fn a_refusal_survives_what_the_client_was_still_sending() {
    let mut stage = Stage::new(|_| {});
    let wire = stage.connect();
    stage.send(wire, "GET / HTTP/1.1\r\nhost : x\r\n\r\n");
    stage.settle();
    stage.send(wire, vec![b'x'; 500_000]);
    // Both directions are closed now, which epoll reports as a hang-up.
    stage.on(wire, Wire::client_half_closes);
    assert!(stage.receive(wire).starts_with("HTTP/1.1 400"));
    assert!(stage.is_closed(wire));
    assert!(!stage.on(wire, |wire| wire.reset));
}

#[test]
fn a_half_closed_client_that_waits_is_told_from_one_that_is_gone() {
    let mut stage = Stage::new(|_| {});
    let (waiting, gone) = (stage.connect(), stage.connect());
    for wire in [waiting, gone] {
        stage.send(wire, generate(false));
        stage.on(wire, Wire::client_half_closes);
        assert_eq!(stage.receive(wire), "HTTP/1.1 100 Continue\r\n\r\n");
    }
    assert_eq!(stage.house.engine.wanted().len(), 2);
    stage.on(gone, Wire::client_resets);
    stage.settle();
    assert_eq!(stage.house.engine.wanted().len(), 1);
    stage.generate();
    let answer = stage.receive(waiting);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let disconnected = stage.house.metrics.cancelled(CancelReason::Disconnect);
    assert_eq!(disconnected.get(), 1);
}

#[test]
fn a_stream_without_a_reader_stops_its_job_and_goes_on_with_one() {
    let loud = Verbosity {
        program_lines_least: CHATTY.program_lines_most,
        fails_one_in: u64::MAX,
        ..CHATTY
    };
    let mut stage = Stage::with(1, 100, loud, |_| {});
    let wire = stage.connect_slowly(1_000);
    stage.send(wire, generate(true));
    stage.settle();
    // The house checks that what piles up is bounded, and the job that it does not end.
    (0..20).for_each(|_| stage.generate());
    assert_eq!(stage.house.engine.running(), 1);
    let mut answer = String::new();
    while stage.house.engine.running() > 0 {
        answer.push_str(&stage.receive_all(wire));
        stage.generate();
    }
    answer.push_str(&stage.receive_all(wire));
    assert!(answer.contains("event: done"));
}

#[test]
fn a_bug_in_one_connection_costs_that_one_alone() {
    let mut stage = Stage::new(|_| {});
    let (cursed, healthy) = (stage.connect(), stage.connect());
    stage.house.panics_expected = 1;
    let reactor = stage.house.reactors[0].reactor.as_mut();
    reactor.expect("it runs").system.cursed_wire = Some(cursed);
    stage.send(cursed, GET);
    stage.send(healthy, GET);
    assert!(stage.receive(healthy).starts_with("HTTP/1.1 200"));
    assert!(stage.is_closed(cursed) && !stage.is_closed(healthy));
    assert_eq!(stage.closed(CloseReason::Panic), 1);
}

// ---- coming in ----

#[test]
fn whoever_waits_at_a_full_gate_gets_the_place_of_the_longest_idle_at_once() {
    let mut stage = Stage::with(1, 20, TERSE, |_| {});
    let idle: Vec<_> = (0..19).map(|_| stage.connect()).collect();
    stage.settle();
    stage.pass(SECOND);
    // The second has been heard since, the first has not.
    stage.on(idle[0], Wire::raise_spurious_edge);
    stage.send(idle[1], GET);
    stage.settle();
    for late in [stage.connect(), stage.connect()] {
        stage.send(late, GET);
        assert!(stage.receive(late).starts_with("HTTP/1.1 200"), "no wait");
    }
    let closed: Vec<_> = idle.iter().filter(|&&one| stage.is_closed(one)).collect();
    assert_eq!(closed, [&idle[0], &idle[2]], "a tenth, and no more");
}

#[test]
fn a_full_house_without_idlers_lets_somebody_in_when_a_place_is_free() {
    let mut stage = Stage::with(2, 2, TERSE, |_| {});
    let busy: Vec<_> = (0..2).map(|_| stage.connect()).collect();
    for &wire in &busy {
        stage.send(wire, generate(false));
    }
    stage.settle();
    let late = stage.connect();
    stage.send(late, GET);
    stage.settle();
    assert_eq!(stage.open(), 2);
    busy.iter()
        .for_each(|&wire| stage.on(wire, Wire::client_resets));
    stage.settle();
    // A place in another reactor makes no edge here: time tells.
    stage.pass(SECOND);
    assert!(stage.receive(late).starts_with("HTTP/1.1 200"));
}

#[test]
fn descriptors_that_run_out_pause_accepting_without_a_busy_loop() {
    let mut stage = Stage::new(|_| {});
    stage.house.network.borrow_mut().descriptor_famine = 3;
    let wire = stage.connect();
    stage.send(wire, GET);
    stage.settle();
    for _ in 0..3 {
        assert_eq!(stage.open(), 0);
        stage.pass(SECOND);
    }
    assert!(stage.receive(wire).starts_with("HTTP/1.1 200"));
    assert_eq!(stage.house.metrics.accept_paused.get(), 3);
}

// ---- going ----

#[test]
fn whoever_has_come_when_the_drain_begins_is_served() {
    let mut stage = Stage::new(|_| {});
    let idle = stage.connect();
    let old = stage.connect();
    stage.settle();
    // In one batch: a request on a connection that was idle, a connection whose edge is still to
    // come, and the order to drain.
    stage.send(old, GET);
    let new = stage.connect();
    stage.send(new, GET);
    stage.house.network.borrow_mut().hide_listener_edge();
    stage.house.tell_all(|| Message::Drain(100 * SECOND));
    for wire in [old, new] {
        let answer = stage.receive(wire);
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer:?}");
        assert!(answer.contains("connection: close"), "{answer:?}");
    }
    assert!(stage.is_closed(idle));
    assert_eq!(stage.house.network.borrow_mut().connect(1), None);
    for wire in [old, new] {
        stage.on(wire, Wire::client_half_closes);
    }
    stage.settle();
    assert!(stage.house.has_ended());
    stage.house.check_ended();
}

#[test]
fn a_connection_is_not_given_to_a_reactor_that_has_ended() {
    let mut stage = Stage::with(2, 100, TERSE, |_| {});
    stage.house.reactors[1]
        .neighbour
        .mailbox
        .post(Message::Drain(SECOND));
    stage.settle();
    assert!(stage.house.reactors[1].reactor.is_none());
    for _ in 0..3 {
        let wire = stage.connect();
        stage.send(wire, GET);
        assert!(stage.receive(wire).starts_with("HTTP/1.1 200"));
    }
}

#[test]
fn a_draining_reactor_waits_for_a_connection_that_is_on_its_way_to_it() {
    let mut stage = Stage::with(2, 100, TERSE, |_| {});
    let first = stage.connect();
    stage.house.turn(0);
    let second = stage.connect();
    stage.send(second, GET);
    // Accepted by the one for the other, which hears of the drain first.
    let other = stage.house.reactors[1].neighbour.mailbox.clone();
    other.post(Message::Drain(100 * SECOND));
    stage.house.turn(0);
    assert_eq!(stage.open(), 2);
    stage.house.turn(1);
    assert!(stage.receive(second).starts_with("HTTP/1.1 200"));
    assert!(!stage.is_closed(first));
}

#[test]
fn a_stop_closes_even_what_lies_in_the_mailbox() {
    let mut stage = Stage::with(2, 100, TERSE, |_| {});
    let wires = [stage.connect(), stage.connect()];
    let other = stage.house.reactors[1].neighbour.mailbox.clone();
    other.post(Message::Stop);
    stage.house.turn(0);
    assert_eq!(stage.open(), 2);
    stage.house.tell_all(|| Message::Stop);
    stage.turn();
    assert!(stage.house.has_ended());
    stage.house.check_ended();
    assert!(wires.iter().all(|&wire| stage.is_closed(wire)));
}

#[test]
fn a_lowered_number_of_requests_ends_connections_that_are_beyond_it() {
    let mut stage = Stage::new(|_| {});
    let wire = stage.connect();
    stage.send(wire, GET.repeat(5));
    assert!(!stage.receive(wire).contains("connection: close"));
    let mut config = Config::default();
    config.auth.enabled = false;
    config.limits.max_requests_per_connection = 3;
    let config = Arc::new(config);
    stage.house.tell_all(|| Message::Apply(config.clone()));
    stage.send(wire, GET);
    assert!(stage.receive(wire).contains("connection: close"));
}

// ---- oddities ----

fn glitches(stage: &Stage, kind: &'static str) -> u64 {
    stage.house.metrics.glitches(kind).get()
}

#[test]
fn a_body_in_crumbs_is_refused_and_a_few_crumbs_are_not() {
    let head = "POST /api/v1/generate HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n";
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
    assert_eq!(stage.house.engine.running(), 1);
    assert!(!stage.is_closed(slices));
    assert!(glitches(&stage, "tiny_data") > 500);
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
    assert_eq!(glitches(&stage, "ignored_bytes"), 501);
}

#[test]
fn a_body_that_drips_is_refused_before_a_patient_deadline() {
    let hour = 3_600 * SECOND;
    let mut stage = Stage::new(|config| config.limits.body_timeout = hour);
    let (dripping, slow) = (stage.connect(), stage.connect());
    let head = "POST /api/v1/generate HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n";
    stage.send(dripping, head);
    stage.send(slow, head);
    for _ in 0..21 {
        stage.send(dripping, "x");
        stage.send(slow, "x".repeat(300));
        stage.pass(SECOND);
    }
    assert!(stage.receive(dripping).starts_with("HTTP/1.1 408"));
    assert_eq!(stage.receive(slow), "");
    assert_eq!(glitches(&stage, "drip"), 4);
}

#[test]
fn silence_between_two_requests_is_no_drip() {
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
    assert_eq!(glitches(&stage, "drip"), 0);
}
