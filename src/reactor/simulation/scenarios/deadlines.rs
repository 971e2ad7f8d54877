//! Time: which deadline runs when, what moves it, and input that comes at the last moment.

use super::{GET, LOUD, SECOND, Stage, Wire, generate};
use crate::offload::CancelReason;
use crate::reactor::close_reason::CloseReason;

/// Mutation: each write clears the write deadline, as if any byte were enough.
#[test]
fn an_output_that_is_taken_byte_by_byte_stalls_and_a_slow_one_does_not() {
    let request = "GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n";
    // Bytes that are read every 20 s, and how long the connection lasts.
    for (bytes, lasts) in [(1, 2), (100, 2), (6_000, 30)] {
        let mut stage = Stage::new(|config| config.limits.write_timeout = 30 * SECOND);
        let wire = stage.connect_slowly(1_000);
        stage.send(wire, request.repeat(30));
        stage.settle();
        for _ in 0..lasts {
            assert!(!stage.is_closed(wire), "{bytes} bytes");
            let mut left = bytes;
            while left > 0 {
                left -= stage.on(wire, |wire| wire.client_reads(left)).len();
                stage.settle();
            }
            stage.pass(20 * SECOND);
        }
        assert_eq!(stage.is_closed(wire), bytes < 6_000, "{bytes} bytes");
    }
}

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
fn what_may_become_a_preface_is_not_answered_in_the_wrong_protocol() {
    let mut stage = Stage::new(|config| config.limits.header_timeout = 10 * SECOND);
    for (begun, is_answered) in [
        ("P", false),
        ("PRI * HTTP/2.0\r\n\r\nSM", false),
        ("PO", true),
    ] {
        let wire = stage.connect();
        stage.send(wire, begun);
        stage.settle();
        stage.pass(11 * SECOND);
        let answer = stage.receive(wire);
        assert_eq!(answer.starts_with("HTTP/1.1 408"), is_answered, "{begun:?}");
        assert_eq!(answer.is_empty(), !is_answered, "{begun:?}");
        stage.on(wire, Wire::client_half_closes);
        stage.settle();
        assert!(stage.is_closed(wire), "{begun:?}");
    }
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
    // The head came slowly; then the client half-closed. Its response is read slowly too.
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

// ---- the last moment: input in time counts, even if the loop looks at it late ----

/// A daemon in which everything that a peer must do takes ten seconds at most.
fn impatient() -> Stage {
    Stage::new(|config| {
        let limits = &mut config.limits;
        limits.header_timeout = 10 * SECOND;
        limits.body_timeout = 10 * SECOND;
        limits.write_timeout = 10 * SECOND;
    })
}

#[test]
fn the_byte_that_completes_a_request_may_be_found_in_the_turn_of_its_deadline() {
    let request = generate(false);
    let head = request.find("\r\n\r\n").expect("a head ends") + 4;
    // In the middle of the head, at its end, in the middle of the body, before its last byte.
    for cut in [9, head, head + 5, request.len() - 1] {
        let mut stage = impatient();
        let wire = stage.connect();
        stage.send(wire, &request[..cut]);
        stage.settle();
        stage.send(wire, &request[cut..]);
        stage.pass(11 * SECOND);
        stage.generate();
        let answer = stage.receive(wire);
        assert!(answer.starts_with("HTTP/1.1 200"), "cut at {cut}: {answer}");
    }
}

#[test]
fn a_byte_that_completes_nothing_does_not_move_the_deadline_in_its_turn() {
    for (cut, what) in [(9, "head"), (generate(false).len() - 5, "body")] {
        let mut stage = impatient();
        let wire = stage.connect();
        stage.send(wire, &generate(false)[..cut]);
        stage.settle();
        stage.send(wire, &generate(false)[cut..=cut]);
        stage.pass(11 * SECOND);
        let answer = stage.receive(wire);
        assert!(answer.starts_with("HTTP/1.1 408"), "{what}: {answer}");
        assert!(answer.contains(what), "{answer}");
    }
}

#[test]
fn a_reader_that_made_room_at_the_last_moment_gets_the_rest() {
    let mut stage = impatient();
    let wire = stage.connect_slowly(10);
    stage.send(wire, GET);
    stage.settle();
    let mut answer = stage.on(wire, |wire| wire.client_reads(10));
    stage.pass(11 * SECOND);
    answer.extend(stage.receive_all(wire).into_bytes());
    let answer = String::from_utf8(answer).expect("answers are UTF-8");
    assert!(answer.ends_with("\r\n\r\nok\n"), "{answer:?}");
    assert_eq!(stage.closed(CloseReason::WriteTimeout), 0);
}

#[test]
fn a_half_close_in_the_turn_of_the_heads_deadline_is_not_a_late_head() {
    for capacity in [10, usize::MAX] {
        let mut stage = impatient();
        let wire = stage.connect_slowly(capacity);
        stage.send(wire, [GET, &GET[..9]].concat());
        stage.settle();
        stage.on(wire, Wire::client_half_closes);
        // The same turn sees the end of the input and the deadline of a request that will never be
        // complete.
        stage.pass(11 * SECOND);
        let answer = stage.receive_all(wire);
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
        assert!(stage.is_closed_in_good_order(wire));
    }
}

#[test]
fn an_answer_in_the_turn_of_the_requests_deadline_is_given() {
    let mut stage = Stage::new(|config| config.limits.default_request_timeout = 10 * SECOND);
    let wire = stage.connect();
    stage.send(wire, generate(false));
    stage.settle();
    // The end of the job is in the mailbox, and its deadline has passed.
    for _ in 0..200 {
        stage.daemon.engine.step(&mut stage.dice);
    }
    stage.pass(11 * SECOND);
    let answer = stage.receive(wire);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

// ---- peers that do not read ----

#[test]
fn a_stalled_reader_is_closed_whether_it_half_closed_or_not() {
    for half_closes in [false, true] {
        let mut stage = impatient();
        let wire = stage.connect_slowly(10);
        stage.send(wire, GET);
        if half_closes {
            stage.on(wire, Wire::client_half_closes);
        }
        stage.settle();
        stage.pass(9 * SECOND);
        assert!(!stage.is_closed(wire));
        stage.pass(2 * SECOND);
        assert!(stage.is_closed(wire));
        assert_eq!(stage.closed(CloseReason::WriteTimeout), 1);
    }
}

#[test]
fn a_stalled_reader_of_a_stream_costs_its_job() {
    for half_closes in [false, true] {
        let mut stage = Stage::with(1, 100, LOUD, |config| {
            config.limits.write_timeout = 10 * SECOND;
        });
        let wire = stage.connect_slowly(10);
        stage.send(wire, generate(true));
        stage.settle();
        stage.generate();
        if half_closes {
            stage.on(wire, Wire::client_half_closes);
        }
        stage.pass(11 * SECOND);
        assert!(stage.is_closed(wire), "half-closed: {half_closes}");
        assert_eq!(stage.closed(CloseReason::WriteTimeout), 1);
        let cancelled = stage.daemon.served.cancelled.get(CancelReason::SlowReader);
        assert_eq!(cancelled.get(), 1);
        assert!(stage.daemon.engine.wanted().is_empty());
    }
}

#[test]
fn a_client_that_does_not_close_after_its_last_answer_is_not_waited_for_long() {
    let mut stage = Stage::new(|_| {});
    let wire = stage.connect();
    stage.send(wire, "GET /livez HTTP/1.0\r\n\r\n");
    assert!(stage.receive(wire).starts_with("HTTP/1.1 200"));
    assert!(stage.on(wire, |wire| wire.daemon_fin) && !stage.is_closed(wire));
    stage.pass(3 * SECOND);
    assert!(stage.is_closed_in_good_order(wire));
    assert_eq!(stage.closed(CloseReason::Done), 1);
}
