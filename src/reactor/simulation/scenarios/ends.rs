//! Ends: half-closes, resets and bugs, at each stage of a request.

use super::{GET, LOUD, Stage, Wire, generate};
use crate::limits::core as core_limits;
use crate::offload::CancelReason;
use crate::reactor::close_reason::CloseReason;
use crate::reactor::simulation::StreamBound;

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
fn a_half_closed_client_that_waits_is_distinguished_from_one_that_is_gone() {
    let mut stage = Stage::new(|_| {});
    let (waiting, gone) = (stage.connect(), stage.connect());
    for wire in [waiting, gone] {
        stage.send(wire, generate(false));
        stage.on(wire, Wire::client_half_closes);
        assert_eq!(stage.receive(wire), "HTTP/1.1 100 Continue\r\n\r\n");
    }
    assert_eq!(stage.daemon.engine.wanted().len(), 2);
    stage.on(gone, Wire::client_resets);
    stage.settle();
    assert_eq!(stage.daemon.engine.wanted().len(), 1);
    stage.generate();
    let answer = stage.receive(waiting);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let disconnected = stage.daemon.served.cancelled.get(CancelReason::Disconnect);
    assert_eq!(disconnected.get(), 1);
}

#[test]
fn a_stream_without_a_reader_stops_its_job_and_goes_on_with_one() {
    let mut stage = Stage::with(1, 100, LOUD, |_| {});
    let wire = stage.connect_slowly(1_000);
    stage.send(wire, generate(true));
    stage.settle();
    // The daemon's check sees that the pending bytes are bounded; the job must not end.
    (0..20).for_each(|_| stage.generate());
    assert_eq!(stage.daemon.engine.running(), 1);
    let mut answer = String::new();
    while stage.daemon.engine.running() > 0 {
        answer.push_str(&stage.receive_all(wire));
        stage.generate();
    }
    answer.push_str(&stage.receive_all(wire));
    assert!(answer.contains("event: done"));
}

/// Mutation: credit that `handle_token` grants even without room.
#[test]
fn a_slow_reader_costs_its_bound_and_no_more() {
    let mut stage = Stage::with(1, 100, LOUD, |_| {});
    let wire = stage.connect_slowly(1_000);
    stage.send(wire, generate(true));
    stage.settle();
    let mut most = 0;
    for _ in 0..20 {
        stage.generate();
        let reactor = stage.daemon.reactors[0].reactor.as_ref().expect("it runs");
        most = most.max(reactor.output_bytes(wire));
    }
    assert!(
        most > core_limits::OUTPUT_HIGH_BYTES,
        "{most} bytes are no slow reader's"
    );
    assert!(most <= StreamBound::SLOW_READER_BYTES, "{most} bytes");
}

#[test]
fn a_bug_in_one_connection_costs_that_one_alone() {
    let mut stage = Stage::new(|_| {});
    let (cursed, healthy) = (stage.connect(), stage.connect());
    stage.daemon.panics_expected = 1;
    let reactor = stage.daemon.reactors[0].reactor.as_mut();
    reactor.expect("it runs").system.cursed_wire = Some(cursed);
    stage.send(cursed, GET);
    stage.send(healthy, GET);
    assert!(stage.receive(healthy).starts_with("HTTP/1.1 200"));
    assert!(stage.is_closed(cursed) && !stage.is_closed(healthy));
    assert_eq!(stage.closed(CloseReason::Panic), 1);
}

// ---- half-closes ----

/// Whether the peer's FIN is seen in the turn of its last bytes, or in a later one.
const SEEN_LATER: [bool; 2] = [false, true];

/// Responses of at most ten bytes at a time, or all at once.
const CAPACITIES: [usize; 2] = [10, usize::MAX];

#[test]
fn a_request_that_was_cut_off_behind_a_whole_one_gets_no_answer_and_costs_none() {
    let cut_off = generate(false);
    for length in 0..cut_off.len() {
        for (later, capacity) in SEEN_LATER.iter().zip(CAPACITIES) {
            let mut stage = Stage::new(|_| {});
            let wire = stage.connect_slowly(capacity);
            stage.send(wire, [GET, &cut_off[..length]].concat());
            if *later {
                stage.settle();
            }
            stage.on(wire, Wire::client_half_closes);
            let answer = stage.receive_all(wire);
            assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{length}: {answer}");
            assert!(answer.ends_with("\r\n\r\nok\n"), "{length}: {answer}");
            assert!(stage.is_closed_in_good_order(wire), "{length}");
            assert_eq!(stage.daemon.engine.totals(), (0, 0));
        }
    }
}

#[test]
fn a_request_that_was_cut_off_ends_the_connection_at_once() {
    let cut_off = generate(false);
    for length in 0..cut_off.len() {
        for later in SEEN_LATER {
            let mut stage = Stage::new(|_| {});
            let wire = stage.connect();
            stage.send(wire, &cut_off[..length]);
            if later {
                stage.settle();
            }
            stage.on(wire, Wire::client_half_closes);
            assert_eq!(stage.receive_all(wire), "", "{length}");
            assert!(stage.is_closed_in_good_order(wire), "{length}");
            let reason = match length {
                0 => CloseReason::Done,
                _ => CloseReason::Reset,
            };
            assert_eq!(stage.closed(reason), 1, "{length}");
        }
    }
}

#[test]
fn a_request_that_was_cut_off_is_over_before_the_answers_in_front_of_it_are_read() {
    let mut stage = Stage::new(|_| {});
    let wire = stage.connect_slowly(10);
    let cut_off = generate(false);
    stage.send(wire, [GET, &cut_off[..cut_off.len() - 1]].concat());
    stage.settle();
    let served = stage.daemon.served.clone();
    let disconnected = served.cancelled.get(CancelReason::Disconnect);
    assert_eq!(disconnected.get(), 0);
    stage.on(wire, Wire::client_half_closes);
    stage.settle();
    assert!(!stage.is_closed(wire), "an answer is still to be read");
    assert_eq!(disconnected.get(), 1);
}

#[test]
fn a_client_may_leave_after_100_continue() {
    let head = "POST /api/v1/generate HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue\r\n\
                content-length: 20\r\n\r\n";
    for later in SEEN_LATER {
        let mut stage = Stage::new(|_| {});
        let wire = stage.connect();
        stage.send(wire, head);
        if later {
            stage.settle();
        }
        stage.on(wire, Wire::client_half_closes);
        assert_eq!(stage.receive_all(wire), "HTTP/1.1 100 Continue\r\n\r\n");
        assert!(stage.is_closed_in_good_order(wire));
    }
}

#[test]
fn a_burst_and_a_half_close_get_every_answer() {
    for capacity in [1_000, usize::MAX] {
        for later in SEEN_LATER {
            let mut stage = Stage::new(|_| {});
            let wire = stage.connect_slowly(capacity);
            let (before, after) = (GET.repeat(100), GET.repeat(50));
            stage.send(wire, [before, generate(false), after].concat());
            if later {
                stage.settle();
            }
            stage.on(wire, Wire::client_half_closes);
            let mut answers = stage.receive_all(wire);
            stage.generate();
            answers.push_str(&stage.receive_all(wire));
            assert_eq!(answers.matches("HTTP/1.1 200").count(), 151);
            assert!(answers.ends_with("\r\n\r\nok\n"));
            assert!(stage.is_closed_in_good_order(wire));
            assert_eq!(stage.closed(CloseReason::Done), 1);
        }
    }
}

#[test]
fn a_half_close_while_a_stream_flows_lets_it_flow_to_its_end() {
    for capacity in [100, usize::MAX] {
        for turns_before in [0, 1, 5] {
            let mut stage = Stage::new(|_| {});
            let wire = stage.connect_slowly(capacity);
            // After it half a request, whose rest will not come.
            stage.send(wire, generate(true) + &GET[..9]);
            stage.settle();
            for _ in 0..turns_before {
                stage.daemon.engine.step(&mut stage.dice);
                stage.turn();
            }
            stage.on(wire, Wire::client_half_closes);
            let mut answer = String::new();
            for _ in 0..20 {
                stage.generate();
                answer.push_str(&stage.receive_all(wire));
            }
            assert_eq!(answer.matches("HTTP/1.1 200").count(), 1);
            assert!(answer.contains("event: done"), "{answer}");
            assert!(answer.ends_with("\r\n0\r\n\r\n"), "{answer}");
            assert!(stage.is_closed_in_good_order(wire));
        }
    }
}

// ---- resets ----

/// How far the client and the engine are when the reset comes.
struct Moment {
    name: &'static str,
    sent: String,
    capacity: usize,
    /// The engine has begun to generate.
    generates: bool,
    /// The responses have been read.
    reads: bool,
}

fn moments() -> Vec<Moment> {
    let moment = |name, sent: &str| Moment {
        name,
        sent: sent.to_owned(),
        capacity: usize::MAX,
        generates: false,
        reads: false,
    };
    let request = generate(false);
    vec![
        moment("nothing was sent", ""),
        moment("in a head", &request[..9]),
        moment("in a body", &request[..request.len() - 1]),
        moment("behind a pipelined request", &[GET, &GET[..9]].concat()),
        moment("while the engine works", &request),
        moment(
            "with a request that waits",
            &[request.as_str(), GET].concat(),
        ),
        Moment {
            generates: true,
            ..moment("while a stream flows", &generate(true))
        },
        Moment {
            generates: true,
            capacity: 10,
            ..moment("while a stream stands still", &generate(true))
        },
        Moment {
            capacity: 10,
            ..moment("with an answer on its way", GET)
        },
        Moment {
            capacity: 10,
            ..moment("with the last answer on its way", "GET / HTTP/1.1\r\n\r\n")
        },
        Moment {
            reads: true,
            ..moment("between two requests", GET)
        },
        Moment {
            reads: true,
            ..moment("after the daemon's FIN", "GET / HTTP/1.1\r\n\r\n")
        },
    ]
}

#[test]
fn a_reset_ends_everything_at_once_whenever_it_comes() {
    for moment in moments() {
        for half_closed_before in [false, true] {
            let mut stage = Stage::with(1, 100, LOUD, |_| {});
            let wire = stage.connect_slowly(moment.capacity);
            stage.send(wire, &moment.sent);
            stage.settle();
            if moment.generates {
                (0..5).for_each(|_| stage.daemon.engine.step(&mut stage.dice));
                stage.settle();
            }
            if moment.reads {
                stage.receive(wire);
            }
            if half_closed_before {
                stage.on(wire, Wire::client_half_closes);
            }
            // The daemon's check sees that no cancelled job keeps running.
            stage.on(wire, Wire::client_resets);
            stage.settle();
            assert!(stage.is_closed(wire), "{}", moment.name);
            assert_eq!(stage.open(), 0, "{}", moment.name);
            stage.daemon.tell_all(|| super::Message::Stop);
            stage.settle();
            stage.generate();
            stage.daemon.check_ended();
        }
    }
}
