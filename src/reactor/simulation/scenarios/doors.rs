//! Doors: which connections come in, what happens without room, and what a drain still serves.

use super::streams::{preface, watch};
use super::{GET, SECOND, Stage, TERSE, Wire, generate};
use crate::limits::reactor as limits;
use crate::reactor::close_reason::CloseReason;
use crate::reactor::message::Message;

// ---- coming in ----

#[test]
fn a_waiting_connection_gets_the_place_of_the_longest_idle_one_at_once() {
    let mut stage = Stage::with(1, 20, TERSE, |_| {});
    let idle: Vec<_> = (0..19).map(|_| stage.connect()).collect();
    stage.settle();
    stage.pass(SECOND);
    // The second has been active since, the first has not.
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

/// Mutation: `make_room` without its bound.
#[test]
fn a_turn_closes_a_bounded_number_of_idle_connections() {
    let mut stage = Stage::with(1, 400, TERSE, |_| {});
    (0..400).for_each(|_| {
        stage.connect();
    });
    stage.settle();
    assert_eq!(stage.open(), 400);
    let late = stage.connect();
    stage.send(late, GET);
    assert!(stage.receive(late).starts_with("HTTP/1.1 200"));
    let closed = stage.closed(CloseReason::Idle) as usize;
    assert_eq!(closed, limits::IDLE_CONNECTIONS_PER_TURN_MAX);
}

#[test]
fn idle_connections_are_not_evicted_unless_a_client_waits() {
    // One place: its connection waits, sends its request late, and is alone.
    let mut stage = Stage::with(1, 1, TERSE, |_| {});
    let only = stage.connect();
    stage.settle();
    stage.pass(SECOND);
    stage.send(only, GET);
    assert!(stage.receive(only).starts_with("HTTP/1.1 200"));
    // Now a connection really waits: it gets the place.
    let next = stage.connect();
    stage.send(next, GET);
    assert!(stage.receive(next).starts_with("HTTP/1.1 200"));
    assert!(stage.is_closed(only));
    // No timer runs to look for a connection that does not wait.
    assert!(!stage.is_closed(next));
}

#[test]
fn a_full_daemon_without_idle_connections_accepts_when_a_place_is_free() {
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
    // A place in another reactor makes no edge here: a timer finds it.
    stage.pass(SECOND);
    assert!(stage.receive(late).starts_with("HTTP/1.1 200"));
}

#[test]
fn descriptors_that_run_out_pause_accepting_without_a_busy_loop() {
    let mut stage = Stage::new(|_| {});
    stage.daemon.network.borrow_mut().descriptor_famine = 3;
    let wire = stage.connect();
    stage.send(wire, GET);
    stage.settle();
    for _ in 0..3 {
        assert_eq!(stage.open(), 0);
        stage.pass(SECOND);
    }
    assert!(stage.receive(wire).starts_with("HTTP/1.1 200"));
    assert_eq!(stage.daemon.metrics.accept_paused.get(), 3);
}

/// `accept4` reserves a descriptor before it looks at the backlog, so it fails with `EMFILE` where
/// no connection waits too.
///
/// Mutation that this catches: `handle_accept_error` without `confirm_backlog`.
#[test]
fn descriptors_that_run_out_close_no_connection_while_none_waits() {
    let mut stage = Stage::new(|_| {});
    let idle = stage.connect();
    stage.send(idle, GET);
    stage.settle();
    assert!(stage.receive(idle).starts_with("HTTP/1.1 200"));
    stage.connect();
    {
        let network = &mut *stage.daemon.network.borrow_mut();
        // Another process with the same listener was faster.
        network.backlog.clear();
        network.descriptor_famine = 1;
        network.reserves_first = true;
    }
    stage.settle();
    assert_eq!(stage.daemon.metrics.accept_paused.get(), 1);
    assert!(!stage.is_closed(idle), "no client needs its place");
    stage.send(idle, GET);
    stage.settle();
    assert!(stage.receive(idle).starts_with("HTTP/1.1 200"));
}

/// Mutation: `handle_accept_error` that makes no room.
#[test]
fn descriptors_that_run_out_cost_the_idle_if_a_client_waits() {
    let mut stage = Stage::new(|_| {});
    let idle = stage.connect();
    stage.send(idle, GET);
    assert!(stage.receive(idle).starts_with("HTTP/1.1 200"));
    stage.daemon.network.borrow_mut().descriptor_famine = 1;
    let late = stage.connect();
    stage.send(late, GET);
    stage.settle();
    assert!(
        stage.is_closed(idle),
        "the waiting one needs its descriptor"
    );
    stage.pass(SECOND);
    assert!(stage.receive(late).starts_with("HTTP/1.1 200"));
}

/// Connections that hold a place without use: a watch, half a head, half a body.
fn strangers(stage: &mut Stage, count: usize) -> Vec<usize> {
    let request = generate(false);
    let half_a_body = &request[..request.len() - 9];
    let wires: Vec<_> = (0..count).map(|_| stage.connect()).collect();
    for (number, &wire) in wires.iter().enumerate() {
        match number % 3 {
            0 => stage.send(wire, [preface(), watch(1)].concat()),
            1 => stage.send(wire, &GET[..20]),
            _ => stage.send(wire, half_a_body),
        }
        stage.settle();
    }
    wires
}

/// Mutations: strangers are not listed in `settle`; `is_known` is not set for a job.
#[test]
fn strangers_make_room_after_the_idle_and_the_oldest_first() {
    let mut stage = Stage::with(1, 20, TERSE, |config| {
        config.limits.header_timeout = 3_600 * SECOND;
        config.limits.body_timeout = 3_600 * SECOND;
    });
    let worker = stage.connect();
    stage.send(worker, generate(true));
    stage.settle();
    let strangers = strangers(&mut stage, 17);
    let idle = [stage.connect(), stage.connect()];
    stage.settle();
    let mut newcomers = Vec::new();
    for _ in 0..2 {
        newcomers.push(stage.connect());
        stage.send(newcomers[newcomers.len() - 1], generate(true));
        stage.settle();
    }
    assert!(idle.iter().all(|&wire| stage.is_closed(wire)));
    assert_eq!(stage.closed(CloseReason::Evicted), 0, "the idle come first");
    // From now on none is idle, and each new connection brings a job and stays.
    for count in 1..=16 {
        let late = stage.connect();
        stage.send(late, generate(true));
        stage.settle();
        stage.pass(SECOND);
        assert!(!stage.is_closed(late), "the {count}th is in");
        newcomers.push(late);
    }
    let evicted = stage.closed(CloseReason::Evicted) as usize;
    assert!(evicted >= 16, "{evicted}");
    for (number, &wire) in strangers.iter().enumerate() {
        assert_eq!(stage.is_closed(wire), number < evicted, "the oldest first");
    }
    assert!(!stage.is_closed(worker));
    assert!(newcomers.iter().all(|&wire| !stage.is_closed(wire)));
    assert_eq!(stage.daemon.engine.running(), 19);
}

/// A flood of useless new connections must leave each of them time for a handshake, and the flood
/// of two reactors must not slow down evictions. Mutations: no pace; a pace by the strangers of one
/// reactor.
#[test]
fn evictions_are_paced() {
    for reactors in [1, 2] {
        let mut stage = Stage::with(reactors, 20, TERSE, |_| {});
        strangers(&mut stage, 20);
        let flood: Vec<_> = (0..60).map(|_| stage.connect()).collect();
        for &wire in &flood {
            stage.send(wire, &GET[..20]);
        }
        stage.settle();
        if reactors == 1 {
            assert_eq!(stage.closed(CloseReason::Evicted), 2, "a tenth at once");
        }
        for _ in 0..10 {
            stage.pass(limits::EVICTION_PATIENCE / 10);
        }
        let evicted = stage.closed(CloseReason::Evicted);
        assert!(
            (15..=25).contains(&evicted),
            "{evicted} in one time of patience, {reactors} reactors"
        );
    }
}

/// The least valuable connection may be another reactor's. Mutation: `ask_for_room` returns at
/// once.
#[test]
fn strangers_and_idlers_of_another_reactor_make_room_too() {
    for is_idle in [false, true] {
        let mut stage = Stage::with(2, 8, TERSE, |_| {});
        let mut others = Vec::new();
        for number in 0..8 {
            let wire = stage.connect();
            // They are placed in turn: the first reactor's have jobs.
            match (number % 2, is_idle) {
                (0, _) => stage.send(wire, generate(true)),
                (_, true) => others.push(wire),
                (_, false) => {
                    stage.send(wire, [preface(), watch(1)].concat());
                    others.push(wire);
                }
            }
            stage.settle();
        }
        assert_eq!(stage.daemon.engine.running(), 4);
        let late = stage.connect();
        stage.send(late, GET);
        let answer = stage.receive(late);
        assert!(answer.starts_with("HTTP/1.1 200"), "{is_idle}: {answer:?}");
        assert_eq!(stage.daemon.engine.running(), 4);
        assert!(others.iter().any(|&wire| stage.is_closed(wire)));
    }
}

// ---- going ----

#[test]
fn connections_that_came_before_the_drain_are_served() {
    let mut stage = Stage::new(|_| {});
    let idle = stage.connect();
    let old = stage.connect();
    stage.settle();
    // In one batch: a request on a connection that was idle, a connection whose edge is still to
    // come, and the order to drain.
    stage.send(old, GET);
    let new = stage.connect();
    stage.send(new, GET);
    stage.daemon.network.borrow_mut().hide_listener_edge();
    stage.daemon.tell_all(|| Message::Drain(100 * SECOND));
    for wire in [old, new] {
        let answer = stage.receive(wire);
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer:?}");
        assert!(answer.contains("connection: close"), "{answer:?}");
    }
    assert!(stage.is_closed(idle));
    assert_eq!(stage.daemon.network.borrow_mut().connect(1), None);
    for wire in [old, new] {
        stage.on(wire, Wire::client_half_closes);
    }
    stage.settle();
    assert!(stage.daemon.has_ended());
    stage.daemon.check_ended();
}

#[test]
fn a_connection_is_not_given_to_a_reactor_that_has_ended() {
    let mut stage = Stage::with(2, 100, TERSE, |_| {});
    stage.daemon.reactors[1]
        .neighbour
        .mailbox
        .post(Message::Drain(SECOND));
    stage.settle();
    assert!(stage.daemon.reactors[1].reactor.is_none());
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
    stage.daemon.turn(0);
    let second = stage.connect();
    stage.send(second, GET);
    // Accepted by one reactor for the other, which gets the drain first.
    let other = stage.daemon.reactors[1].neighbour.mailbox.clone();
    other.post(Message::Drain(100 * SECOND));
    stage.daemon.turn(0);
    assert_eq!(stage.open(), 2);
    stage.daemon.turn(1);
    assert!(stage.receive(second).starts_with("HTTP/1.1 200"));
    assert!(!stage.is_closed(first));
}

#[test]
fn a_stop_closes_even_what_lies_in_the_mailbox() {
    let mut stage = Stage::with(2, 100, TERSE, |_| {});
    let wires = [stage.connect(), stage.connect()];
    let other = stage.daemon.reactors[1].neighbour.mailbox.clone();
    other.post(Message::Stop);
    stage.daemon.turn(0);
    assert_eq!(stage.open(), 2);
    stage.daemon.tell_all(|| Message::Stop);
    stage.turn();
    assert!(stage.daemon.has_ended());
    stage.daemon.check_ended();
    assert!(wires.iter().all(|&wire| stage.is_closed(wire)));
}

#[test]
fn a_drain_without_descriptors_serves_waiting_connections_once_there_are_some() {
    let mut stage = Stage::new(|_| {});
    stage.daemon.network.borrow_mut().descriptor_famine = 3;
    let wire = stage.connect();
    stage.send(wire, GET);
    stage.daemon.tell_all(|| Message::Drain(100 * SECOND));
    for _ in 0..3 {
        stage.settle();
        assert!(
            !stage.daemon.has_ended(),
            "a connection still waits in the backlog"
        );
        stage.pass(SECOND);
    }
    let answer = stage.receive(wire);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer:?}");
    stage.on(wire, Wire::client_half_closes);
    stage.settle();
    assert!(stage.daemon.has_ended());
    stage.daemon.check_ended();
}

#[test]
fn a_drain_whose_descriptors_never_come_back_ends_all_the_same() {
    let mut stage = Stage::new(|_| {});
    stage.daemon.network.borrow_mut().descriptor_famine = u32::MAX;
    let wire = stage.connect();
    stage.send(wire, GET);
    stage.daemon.tell_all(|| Message::Drain(10 * SECOND));
    stage.settle();
    stage.pass(9 * SECOND);
    assert!(!stage.daemon.has_ended());
    stage.pass(2 * SECOND);
    assert!(stage.daemon.has_ended());
    assert!(
        stage.is_closed(wire),
        "the kernel refuses connections that were not accepted"
    );
    stage.daemon.check_ended();
}

#[test]
fn a_connection_that_comes_to_a_draining_reactor_is_served_once_or_closed() {
    let (get, half) = (GET.to_owned(), GET[..9].to_owned());
    // The bytes that it has sent when it is adopted, and those that it sends afterwards.
    for (before, after) in [(get, ""), (half, &GET[9..]), (String::new(), "")] {
        for drains_first in [false, true] {
            let mut stage = Stage::with(2, 100, TERSE, |_| {});
            let first = stage.connect();
            stage.daemon.turn(0);
            let second = stage.connect();
            stage.send(second, &before);
            let mailbox = stage.daemon.reactors[1].neighbour.mailbox.clone();
            let drain = || mailbox.post(Message::Drain(100 * SECOND));
            // Adopting and draining in one batch, in either order.
            if drains_first {
                drain();
            }
            stage.daemon.turn(0);
            if !drains_first {
                drain();
            }
            stage.daemon.turn(1);
            if !after.is_empty() {
                stage.send(second, after);
            }
            let answer = stage.receive(second);
            assert!(!stage.is_closed(first), "it is the other's");
            match before.is_empty() {
                true => assert_eq!(answer, ""),
                false => {
                    assert!(answer.starts_with("HTTP/1.1 200"), "{answer:?}");
                    assert!(answer.contains("connection: close"), "{answer:?}");
                    stage.on(second, Wire::client_half_closes);
                    stage.settle();
                }
            }
            assert!(stage.is_closed_in_good_order(second));
            assert!(stage.daemon.reactors[1].reactor.is_none());
        }
    }
}

#[test]
fn a_drain_that_ends_in_a_stream_cuts_it_off_and_cancels_its_job() {
    let mut stage = Stage::new(|_| {});
    let wire = stage.connect();
    stage.send(wire, generate(true));
    stage.settle();
    stage.daemon.tell_all(|| Message::Drain(10 * SECOND));
    stage.settle();
    assert_eq!(stage.daemon.engine.wanted().len(), 1, "it may end");
    stage.pass(11 * SECOND);
    assert!(stage.daemon.has_ended() && stage.is_closed(wire));
    assert_eq!(stage.closed(CloseReason::Drain), 1);
    assert!(stage.daemon.engine.wanted().is_empty());
    stage.generate();
    stage.daemon.check_ended();
}
