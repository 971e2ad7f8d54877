//! Time: a clock that moves while the loop works, and what a turn leaves for the next one.
//!
//! Each reading of the clock is a step later than the one before, so that the step decides how many
//! requests, messages or timers fit into their time.
//!
//! Mutations of the budgets, and the scenario that fails:
//!
//!  * `Http1::receive` does not ask for its time: [`slow_requests_of_one_client_share_a_turn`];
//!  * `Connection::receive` does not ask between two reads: [`reads_of_one_client_share_a_turn`];
//!  * HTTP/2 does not ask, reports the bytes that are left as used up, or forgets that it stopped
//!    early: [`streams_that_one_read_completes_are_handled_in_several_turns`];
//!  * HTTP/2 handles all of its streams' deadlines at once, or drops those that are left:
//!    [`deadlines_of_many_streams_are_handled_in_several_turns`];
//!  * `run_connections` does not ask, or takes a connection out of the queue that it does not pump:
//!    [`connections_without_time_stay_in_order`];
//!  * `pump` does not push an early end to `unfinished`, an edge queues an unfinished connection in
//!    front of the others, or `run_unfinished` does not ask:
//!    [`clients_that_always_have_more_wait_behind_the_others`];
//!  * `is_greedy` that is always false, or that ends with a pump of several steps:
//!    [`clients_that_had_more_stay_behind_the_others`];
//!  * `read_mailbox` does not ask, drops its leftover messages, or sleeps on them:
//!    [`messages_without_time_stay_in_order`],
//!    [`the_loop_does_not_sleep_on_messages_without_time`];
//!  * `resume_batch` is `begin_batch`:
//!    [`resets_in_the_same_read_are_counted_wherever_the_pump_stops`];
//!  * `expire_deadlines` drops the keys for which it has no time:
//!    [`timers_without_time_expire_a_tick_later`].

use std::time::Duration;

use super::streams::{call, field, preface};
use super::{GET, SECOND, Stage, TERSE, Wire, generate, glitches};
use crate::core::glitch::Glitch;
use crate::http::http2::testing::frame;
use crate::limits::{core as core_limits, reactor as limits};
use crate::reactor::close_reason::CloseReason;
use crate::reactor::message::Message;

/// Three steps use up a pump's time.
const PUMP_STEP: Duration = Duration::from_micros(100);

const _: () = {
    let pump = limits::PUMP_TIME_MAX.as_micros();
    assert!(2 * PUMP_STEP.as_micros() < pump && pump < 3 * PUMP_STEP.as_micros());
};

/// One step uses up the time of every phase.
const PHASE_STEP: Duration = Duration::from_millis(16);

impl Stage {
    fn set_step(&mut self, step: Duration) {
        self.daemon.network.borrow_mut().step = step;
    }

    /// Returns what has come to a client, without letting the daemon do more.
    fn arrived(&mut self, wire: usize) -> Vec<u8> {
        self.on(wire, |wire| wire.client_reads(usize::MAX))
    }
}

fn answers(bytes: &[u8]) -> usize {
    String::from_utf8_lossy(bytes).matches("HTTP/1.1 ").count()
}

/// Returns the streams whose heads are in these frames, in order.
fn heads(mut bytes: &[u8]) -> Vec<u32> {
    let mut streams = Vec::new();
    while let Some((header, rest)) = bytes.split_first_chunk::<9>() {
        let length = u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize;
        if header[3] == 1 {
            streams.push(u32::from_be_bytes([
                header[5], header[6], header[7], header[8],
            ]));
        }
        bytes = &rest[length..];
    }
    streams
}

fn get(stream: u32) -> Vec<u8> {
    let block = [
        &[0x82, 0x86][..],
        &field(&[0x04], "/livez"),
        &field(&[0x01], "localhost"),
    ];
    frame(1, 0x5, stream, &block.concat())
}

/// The head of a request whose body does not come.
fn begin(stream: u32) -> Vec<u8> {
    call(stream, "/grpc.health.v1.Health/Check", &[])
}

fn odd(count: u32) -> impl Iterator<Item = u32> {
    (0..count).map(|number| 2 * number + 1)
}

#[test]
fn slow_requests_of_one_client_share_a_turn() {
    let mut stage = Stage::new(|_| {});
    let (greedy, modest) = (stage.connect(), stage.connect());
    stage.settle();
    stage.set_step(PUMP_STEP);
    stage.send(greedy, GET.repeat(20));
    stage.send(modest, GET);
    stage.turn();
    // Four in each of two pumps: the first one is not measured, and three steps follow.
    assert_eq!(answers(&stage.arrived(greedy)), 8);
    assert_eq!(answers(&stage.arrived(modest)), 1);
    assert_eq!(answers(stage.receive(greedy).as_bytes()), 12);
}

/// A body that has all come is read in several turns.
#[test]
fn reads_of_one_client_share_a_turn() {
    let mut stage = Stage::new(|_| {});
    let (greedy, modest) = (stage.connect(), stage.connect());
    stage.settle();
    stage.set_step(PUMP_STEP);
    let head =
        "POST /api/v1/generate HTTP/1.1\r\nhost: localhost\r\ncontent-length: 900000\r\n\r\n";
    stage.send(greedy, [head.as_bytes(), &[b' '; 900_000]].concat());
    stage.send(modest, GET);
    stage.turn();
    let unread = stage.on(greedy, |wire| wire.to_daemon.len());
    // Four reads in each of two pumps.
    assert!(unread >= 900_000 - 8 * limits::SCRATCH_BYTES, "{unread}");
    assert_eq!(answers(&stage.arrived(modest)), 1);
    assert!(stage.receive(greedy).starts_with("HTTP/1.1 400"));
}

/// Ten clients that send more than is read, in each turn, and one that sends a small request now
/// and then: it waits for a pump or two, and not for ten.
#[test]
fn clients_that_always_have_more_wait_behind_the_others() {
    let mut stage = Stage::new(|_| {});
    let greedy: Vec<_> = (0..10).map(|_| stage.connect()).collect();
    let modest = stage.connect();
    stage.settle();
    stage.set_step(PUMP_STEP);
    for &wire in &greedy {
        stage.send(wire, GET.repeat(100));
    }
    // Each has its first pump, in which nothing shows yet that it has more. A turn has no time for
    // ten of these.
    (0..2).for_each(|_| stage.turn());
    for _ in 0..20 {
        for &wire in &greedy {
            stage.send(wire, GET);
        }
        stage.send(modest, GET);
        let before = stage.daemon.network.borrow().clock;
        stage.turn();
        assert_eq!(answers(&stage.arrived(modest)), 1);
        let took = stage.daemon.network.borrow().clock.since(before);
        assert!(took < 5 * limits::PUMP_TIME_MAX, "{took:?}");
    }
    // They take turns: none of them is finished before another has begun.
    let served = greedy.iter().map(|&wire| answers(&stage.arrived(wire)));
    let served: Vec<_> = served.collect();
    let (least, most) = (served.iter().min(), served.iter().max());
    assert!(least > Some(&4) && most < Some(&40), "{served:?}");
    for wire in greedy {
        stage.receive(wire);
    }
    assert!(
        stage
            .daemon
            .network
            .borrow()
            .wires
            .iter()
            .all(|wire| wire.to_daemon.is_empty())
    );
}

/// The same if nothing is left of what the ten have sent when the small request comes: they are
/// known. One that has become modest is served like the others.
#[test]
fn clients_that_had_more_stay_behind_the_others() {
    let mut stage = Stage::new(|_| {});
    let greedy: Vec<_> = (0..10).map(|_| stage.connect()).collect();
    let modest = stage.connect();
    stage.settle();
    stage.set_step(PUMP_STEP);
    for requests in [20, 2, 2, 2] {
        for &wire in &greedy {
            stage.send(wire, GET.repeat(requests));
        }
        stage.send(modest, GET);
        let before = stage.daemon.network.borrow().clock;
        stage.turn();
        assert_eq!(answers(&stage.arrived(modest)), 1);
        let took = stage.daemon.network.borrow().clock.since(before);
        assert!(
            requests == 20 || took < 5 * limits::PUMP_TIME_MAX,
            "{took:?}"
        );
        stage.settle();
        for &wire in &greedy {
            assert_eq!(answers(&stage.arrived(wire)), requests);
        }
    }
    for served in [0, 1] {
        stage.send(greedy[0], GET);
        (1..10).for_each(|other| stage.send(greedy[other], GET.repeat(4)));
        // The first one is in front of the nine from the second time on.
        stage.turn();
        let is_served = answers(&stage.arrived(greedy[0])) == 1;
        assert!(is_served || served == 0);
        stage.settle();
        (0..10).for_each(|wire| drop(stage.arrived(greedy[wire])));
    }
}

#[test]
fn streams_that_one_read_completes_are_handled_in_several_turns() {
    let mut stage = Stage::new(|_| {});
    let (greedy, modest) = (stage.connect(), stage.connect());
    stage.send(greedy, preface());
    stage.settle();
    stage.arrived(greedy);
    stage.set_step(PUMP_STEP);
    let requests: Vec<_> = odd(31).map(get).collect();
    stage.send(greedy, requests.concat());
    stage.send(modest, GET);
    stage.turn();
    let mut handled = heads(&stage.arrived(greedy));
    assert_eq!(handled, odd(8).collect::<Vec<_>>());
    assert_eq!(answers(&stage.arrived(modest)), 1);
    // Bytes behind those that wait do not overtake them.
    stage.send(greedy, get(63));
    stage.settle();
    handled.extend(heads(&stage.arrived(greedy)));
    assert_eq!(handled, odd(32).collect::<Vec<_>>());
}

/// A FIN behind frames that wait is acted on after them.
#[test]
fn a_half_close_behind_streams_that_wait_loses_none_of_them() {
    let mut stage = Stage::new(|_| {});
    let wire = stage.connect();
    stage.set_step(PUMP_STEP);
    let requests: Vec<_> = odd(31).map(get).collect();
    stage.send(wire, [preface(), requests.concat()].concat());
    stage.on(wire, Wire::client_half_closes);
    stage.settle();
    assert_eq!(heads(&stage.arrived(wire)), odd(31).collect::<Vec<_>>());
    assert_eq!(stage.closed(CloseReason::Done), 1);
}

#[test]
fn deadlines_of_many_streams_are_handled_in_several_turns() {
    let mut stage = Stage::new(|config| config.limits.body_timeout = SECOND);
    let wire = stage.connect();
    let requests: Vec<_> = odd(31).map(begin).collect();
    stage.send(wire, [preface(), requests.concat()].concat());
    stage.settle();
    stage.arrived(wire);
    stage.set_step(PUMP_STEP);
    let clock = stage.daemon.network.borrow().clock;
    stage.daemon.network.borrow_mut().clock = clock + 2 * SECOND;
    stage.turn();
    stage.turn();
    let mut ended = heads(&stage.arrived(wire));
    assert!((1..20).contains(&ended.len()), "{ended:?}");
    while ended.len() < 31 {
        let before = ended.len();
        stage.pass(core_limits::WHEEL_TICK);
        ended.extend(heads(&stage.arrived(wire)));
        assert!(ended.len() > before, "{ended:?}");
    }
    assert_eq!(ended, odd(31).collect::<Vec<_>>());
}

#[test]
fn connections_without_time_stay_in_order() {
    let mut stage = Stage::new(|_| {});
    let wires: Vec<_> = (0..20).map(|_| stage.connect()).collect();
    stage.settle();
    stage.set_step(PHASE_STEP);
    for &wire in &wires {
        stage.send(wire, GET);
    }
    let stride = limits::ITEMS_PER_CLOCK_READING as usize;
    let late = stage.connect();
    for served in [stride, 2 * stride] {
        stage.turn();
        // New connections come in although the run queue is not empty.
        assert_eq!(stage.open(), wires.len() + 1);
        for (number, &wire) in wires.iter().enumerate() {
            let waits = stage.on(wire, |wire| wire.to_client.is_empty());
            assert_eq!(waits, number >= served, "{number}");
        }
    }
    for wire in wires.into_iter().chain([late]) {
        if wire == late {
            stage.send(wire, GET);
        }
        assert!(stage.receive(wire).starts_with("HTTP/1.1 200"));
    }
}

#[test]
fn messages_without_time_stay_in_order() {
    let mut stage = Stage::with(1, 100, TERSE, |_| {});
    let wires: Vec<_> = (0..20).map(|_| stage.connect()).collect();
    for &wire in &wires {
        stage.send(wire, generate(false));
    }
    stage.settle();
    stage.set_step(PHASE_STEP);
    let jobs = stage.daemon.engine.wanted();
    let mut steps = 0;
    while stage.daemon.engine.running() > 0 {
        stage.daemon.engine.step(&mut stage.dice);
        steps += 1;
        assert!(steps < 10_000, "the engine does not end its jobs");
    }
    stage.turn();
    let reactor = stage.daemon.reactors[0].reactor.as_ref().expect("it runs");
    let waiting = jobs.iter().filter(|&&job| reactor.awaits(job)).count();
    assert!(
        (8..20).contains(&waiting),
        "{waiting} wait for the next turn"
    );
    for wire in wires {
        assert!(
            stage.receive(wire).starts_with("HTTP/1.1 "),
            "a job's end is lost"
        );
    }
}

/// Messages that queue no connection are work all the same.
#[test]
fn the_loop_does_not_sleep_on_messages_without_time() {
    let mut stage = Stage::new(|_| {});
    stage.settle();
    stage.set_step(PHASE_STEP);
    for _ in 0..20 {
        stage.daemon.tell_all(|| Message::Tls(None));
    }
    stage.daemon.tell_all(|| Message::Drain(SECOND));
    stage.turn();
    assert!(!stage.daemon.has_ended(), "the last message waits");
    stage.settle();
    assert!(stage.daemon.has_ended());
}

/// A stream that one read opens and resets was never meant, even if the pump stops between the two.
#[test]
fn resets_in_the_same_read_are_counted_wherever_the_pump_stops() {
    for step in [Duration::ZERO, PUMP_STEP] {
        let mut stage = Stage::new(|_| {});
        let wire = stage.connect();
        stage.send(wire, preface());
        stage.settle();
        stage.set_step(step);
        let reset = |stream| frame(3, 0, stream, &[0, 0, 0, 8]);
        let streams = odd(20).map(|stream| [get(stream), reset(stream)].concat());
        stage.send(wire, streams.collect::<Vec<_>>().concat());
        stage.settle();
        assert_eq!(glitches(&stage, Glitch::StreamReset), 20, "{step:?}");
    }
}

#[test]
fn timers_without_time_expire_a_tick_later() {
    let mut stage = Stage::new(|config| config.limits.header_timeout = SECOND);
    let wires: Vec<_> = (0..20).map(|_| stage.connect()).collect();
    for &wire in &wires {
        stage.send(wire, &GET[..9]);
    }
    stage.settle();
    stage.set_step(PHASE_STEP);
    let clock = stage.daemon.network.borrow().clock;
    stage.daemon.network.borrow_mut().clock = clock + 2 * SECOND;
    stage.turn();
    stage.turn();
    let late = |stage: &mut Stage, wire| stage.on(wire, |wire| !wire.to_client.is_empty());
    let refused = wires.iter().filter(|&&wire| late(&mut stage, wire)).count();
    assert!((1..20).contains(&refused), "{refused}");
    // Those that are left wait for the wheel's next tick.
    (0..3).for_each(|_| stage.pass(core_limits::WHEEL_TICK));
    for wire in wires {
        assert!(stage.receive(wire).starts_with("HTTP/1.1 408"));
    }
}
