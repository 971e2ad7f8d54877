//! Room for new connections with several reactors: who accepts, who gets them, and whose
//! connections make room.

use std::sync::atomic::Ordering;

use super::streams::{preface, watch};
use super::{GET, SECOND, Stage, TERSE, generate};
use crate::limits::core as core_limits;
use crate::limits::reactor as limits;
use crate::reactor::close_reason::CloseReason;

/// Two reactors with room for this many connections.
const ROOM: usize = 20;

impl Stage {
    fn crowded() -> Stage {
        let mut stage = Stage::with(2, ROOM, TERSE, |config| {
            config.limits.header_timeout = 3_600 * SECOND;
            config.limits.idle_timeout = 3_600 * SECOND;
        });
        stage.settle();
        stage
    }

    /// Connects a client whose connection the given reactor accepts.
    fn connect_by(&mut self, reactor: usize) -> usize {
        self.daemon.network.borrow_mut().sleeper = reactor;
        self.connect()
    }

    /// Makes a reactor look as if its present turn had begun this long ago. The test must not run
    /// its turns meanwhile.
    fn hold_up(&mut self, reactor: usize) {
        let now = self.daemon.network.borrow().clock.as_micros();
        let began = now - limits::HELD_UP_AFTER.as_micros() as u64;
        let pulse = &self.daemon.reactors[reactor].neighbour.pulse;
        pulse.turn_began_micros.store(began, Ordering::Relaxed);
    }

    /// Runs turns of one reactor alone until it would sleep.
    fn settle_one(&mut self, reactor: usize) {
        for _ in 0..100 {
            self.daemon.turn(reactor);
        }
    }

    fn of_reactor(&self, reactor: usize) -> usize {
        let reactor = &self.daemon.reactors[reactor].reactor;
        reactor.as_ref().map_or(0, |reactor| reactor.live())
    }
}

/// The fault of a daemon whose first reactor alone accepts: ten watches there, ten idle connections
/// in the second reactor, and no newcomer was served.
///
/// Mutation: `oldest` without the reactors' published ages.
#[test]
fn a_newcomer_is_served_whichever_reactor_has_the_idle_connections_and_whichever_accepts() {
    for idle_in in [0, 1] {
        for acceptor in [0, 1] {
            let mut stage = Stage::crowded();
            let mut idle = Vec::new();
            for number in 0..ROOM {
                // They are placed in turn.
                let wire = stage.connect_by(0);
                stage.settle();
                if number % 2 == idle_in {
                    stage.send(wire, GET);
                    idle.push(wire);
                } else {
                    stage.send(wire, [preface(), watch(1)].concat());
                }
                stage.settle();
            }
            assert_eq!((stage.of_reactor(0), stage.of_reactor(1)), (10, 10));
            let late = stage.connect_by(acceptor);
            stage.send(late, GET);
            let answer = stage.receive(late);
            assert!(answer.starts_with("HTTP/1.1 200"), "{idle_in}, {acceptor}");
            assert!(stage.is_closed(idle[0]), "the longest idle one");
            assert_eq!(stage.closed(CloseReason::Idle), 2, "a tenth");
            assert_eq!(stage.closed(CloseReason::Evicted), 0);
        }
    }
}

/// Mutations: `end_oldest` without the horizon; `oldest` that takes the youngest; `worth_least`
/// that prefers strangers.
#[test]
fn strangers_of_all_reactors_go_in_the_order_of_their_age() {
    let mut stage = Stage::crowded();
    let mut strangers = Vec::new();
    for _ in 0..ROOM {
        let wire = stage.connect_by(0);
        stage.send(wire, &GET[..20]);
        stage.settle();
        strangers.push(wire);
        // Longer than the step of the published ages.
        stage.pass(SECOND / 10);
    }
    for count in 1..=ROOM / 2 {
        // The reactors take turns in meeting the full gate.
        let late = stage.connect_by(count % 2);
        stage.send(late, generate(true));
        stage.settle();
        stage.pass(SECOND);
        assert!(!stage.is_closed(late), "the {count}th is in");
        let evicted = stage.closed(CloseReason::Evicted) as usize;
        assert!(evicted >= count, "{evicted}");
        for (number, &wire) in strangers.iter().enumerate() {
            assert_eq!(
                stage.is_closed(wire),
                number < evicted,
                "{number} of {evicted}"
            );
        }
    }
}

/// Mutation: `less_loaded` without `is_held_up`.
#[test]
fn a_reactor_that_is_held_up_gets_no_new_connection() {
    let mut stage = Stage::crowded();
    stage.hold_up(1);
    for _ in 0..4 {
        let wire = stage.connect_by(0);
        stage.send(wire, GET);
        stage.settle_one(0);
        assert!(stage.on(wire, |wire| !wire.to_client.is_empty()), "served");
    }
    assert_eq!(stage.of_reactor(0), 4);
    // Its turn ends: it gets the next four.
    stage.turn();
    for _ in 0..4 {
        stage.connect_by(0);
        stage.settle();
    }
    assert_eq!((stage.of_reactor(0), stage.of_reactor(1)), (4, 4));
}

/// A full daemon whose oldest idle connection is the second reactor's, and a client that waits with
/// the first one.
fn wait_for_the_second_reactor() -> (Stage, Vec<usize>, usize) {
    let mut stage = Stage::crowded();
    let mut idle = Vec::new();
    for number in 0..ROOM {
        let wire = stage.connect_by(0);
        stage.settle();
        idle.push(wire);
        if number % 2 == 0 {
            stage.send(wire, GET);
            stage.settle();
        }
    }
    // Those of the first reactor are younger.
    stage.pass(SECOND);
    for &wire in idle.iter().step_by(2) {
        stage.send(wire, GET);
    }
    stage.settle();
    let late = stage.connect_by(0);
    stage.send(late, GET);
    (stage, idle, late)
}

/// Mutation: `oldest` without `is_held_up`.
#[test]
fn a_newcomer_does_not_wait_for_a_reactor_that_is_held_up() {
    let (mut stage, idle, late) = wait_for_the_second_reactor();
    stage.hold_up(1);
    stage.settle_one(0);
    assert!(stage.on(late, |wire| !wire.to_client.is_empty()), "served");
    assert!(stage.is_closed(idle[0]) && !stage.is_closed(idle[1]));
}

/// Mutations: `is_asked` is not looked at; `asks_at` is not set, so that the first reactor closes
/// its own connection before the other one could answer.
#[test]
fn a_newcomer_waits_for_an_answer_only_so_long() {
    let (mut stage, idle, late) = wait_for_the_second_reactor();
    stage.settle_one(0);
    assert!(!stage.is_closed(idle[0]), "the second reactor was asked");
    let clock = stage.daemon.network.borrow().clock;
    stage.daemon.network.borrow_mut().clock = clock + core_limits::FULL_GATE_RETRY;
    stage.settle_one(0);
    assert!(stage.on(late, |wire| !wire.to_client.is_empty()), "served");
    assert!(stage.is_closed(idle[0]) && !stage.is_closed(idle[1]));
    // The request arrives late: no client waits any more, so it closes no further connection.
    let closed = stage.closed(CloseReason::Idle);
    stage.settle();
    assert_eq!(stage.closed(CloseReason::Idle), closed);
    assert!(!stage.is_closed(idle[1]));
}

/// Mutation: `handle_room_made` that leaves `asks_at` where it is.
#[test]
fn newcomers_behind_the_first_do_not_wait_for_the_clock() {
    let (mut stage, _, first) = wait_for_the_second_reactor();
    // A request makes room for two.
    let newcomers = [first, stage.connect_by(0), stage.connect_by(0)];
    for &wire in &newcomers[1..] {
        stage.send(wire, GET);
    }
    stage.settle();
    for wire in newcomers {
        assert!(stage.on(wire, |wire| !wire.to_client.is_empty()), "served");
    }
}

/// Mutation: `make_room_for_another` that does not look at the pace.
#[test]
fn a_request_for_room_that_comes_late_keeps_the_pace_of_evictions() {
    let mut stage = Stage::crowded();
    for _ in 0..ROOM {
        let wire = stage.connect_by(0);
        stage.send(wire, &GET[..20]);
        stage.settle();
        stage.pass(SECOND / 10);
    }
    // The oldest stranger is the first reactor's.
    stage.connect_by(1);
    stage.settle_one(1);
    // As if a third reactor had evicted one before the request is read.
    let clock = stage.daemon.network.borrow().clock;
    stage
        .daemon
        .places
        .put_off_evictions(clock + 3_600 * SECOND);
    stage.settle();
    assert_eq!(stage.closed(CloseReason::Evicted), 0);
}

/// Each reactor must see the places that the other one has taken.
///
/// Mutation: `Places::take` that looks at no maximum.
#[test]
fn two_reactors_that_accept_at_once_share_the_last_place() {
    let mut stage = Stage::crowded();
    for number in 0..ROOM - 1 {
        let wire = stage.connect_by(number % 2);
        stage.send(wire, generate(true));
        stage.settle();
    }
    let pair = [stage.connect_by(0), stage.connect_by(1)];
    for wire in pair {
        stage.send(wire, generate(true));
    }
    stage.settle();
    assert_eq!(stage.open(), ROOM, "one of the two waits");
    let busy = stage.daemon.engine.wanted().len();
    assert_eq!(busy, ROOM);
    let first = stage.on(pair[0], |wire| wire.to_daemon.is_empty());
    let second = stage.on(pair[1], |wire| wire.to_daemon.is_empty());
    assert!(first != second);
}
