//! Flights: requests that wait for one job, and clients that leave it.
//!
//! Mutations that these scenarios and the seeds catch: a last client that leaves without
//! `Ticket::cancel` (`a_job_runs_for_its_clients_and_ends_with_the_last`), a follower that stays in
//! its flight when its client has left (the same, and any seed of a world with a cache), a
//! `handle_credit` that does nothing (`a_slow_reader_of_a_flight_gets_all_of_it`), and
//! `handle_deadline` that does nothing (`a_deadline_ends_one_request_alone`).

use super::{LOUD, SECOND, Stage, Wire, generate};
use crate::reactor::simulation::engine::Verbosity;

/// Two lines each, and no failures.
const SHORT: Verbosity = Verbosity {
    program_lines_least: 2,
    program_lines_most: 2,
    token_lines_most: 1,
    fails_one_in: u64::MAX,
};

/// Programs of 20 KiB.
const LONG: Verbosity = Verbosity {
    program_lines_least: 2_000,
    program_lines_most: 2_000,
    token_lines_most: 100,
    fails_one_in: u64::MAX,
};

/// Programs of 180 KiB, in more pieces than may be under way.
const LONGER: Verbosity = Verbosity {
    program_lines_least: 20_000,
    program_lines_most: 20_000,
    ..LONG
};

fn stage(reactors: usize, verbosity: Verbosity) -> Stage {
    Stage::with(reactors, 100, verbosity, |config| {
        config.cache.enabled = true
    })
}

#[test]
fn equal_requests_on_all_reactors_are_one_job() {
    let mut stage = stage(3, SHORT);
    let wires: Vec<_> = (0..30).map(|_| stage.connect()).collect();
    for (index, wire) in wires.iter().enumerate() {
        stage.send(*wire, generate(index % 2 == 0));
    }
    stage.settle();
    assert_eq!(stage.daemon.engine.totals(), (1, 0));
    stage.generate();
    assert_eq!(stage.daemon.engine.totals(), (1, 1));
    for wire in wires {
        let response = stage.receive_all(wire);
        assert!(response.contains("print(1)\\nprint(1)"), "{response}");
    }
    // The next one finds the result.
    let wire = stage.connect();
    stage.send(wire, generate(true));
    let response = stage.receive_all(wire);
    assert!(response.contains("x-cache: hit\r\n"), "{response}");
    assert_eq!(stage.daemon.engine.totals(), (1, 1));
}

#[test]
fn a_job_runs_for_its_clients_and_ends_with_the_last() {
    let mut stage = stage(2, LOUD);
    let wires: Vec<_> = (0..4).map(|_| stage.connect()).collect();
    for (index, wire) in wires.iter().enumerate() {
        stage.send(*wire, generate(index % 2 == 0));
    }
    stage.settle();
    for (index, wire) in wires.into_iter().enumerate() {
        assert_eq!(stage.daemon.engine.wanted().len(), 1, "before {index}");
        stage.on(wire, Wire::client_resets);
        stage.settle();
    }
    assert!(stage.daemon.engine.wanted().is_empty());
    // The next one does not join a job that ends.
    let wire = stage.connect();
    stage.send(wire, generate(true));
    stage.settle();
    assert_eq!(stage.daemon.engine.wanted().len(), 1);
}

#[test]
fn a_slow_reader_of_a_flight_gets_all_of_it() {
    let mut stage = stage(1, LONG);
    let (slow, fast) = (stage.connect_slowly(500), stage.connect());
    for wire in [slow, fast] {
        stage.send(wire, generate(true));
    }
    stage.settle();
    stage.generate();
    assert_eq!(
        stage.daemon.engine.running(),
        0,
        "it does not wait for the slow one"
    );
    assert!(stage.receive(fast).contains("event: done"));
    let response = stage.receive_all(slow);
    assert!(response.contains("event: done"));
    let deltas = response.matches("event: delta").count();
    assert!(deltas > 10, "{deltas} pieces");
    stage.on(slow, Wire::client_resets);
    stage.settle();
    assert!(stage.daemon.results.is_empty());
}

/// Mutation: a flight with credit for all events of its job.
#[test]
fn a_job_waits_for_its_only_reader() {
    let mut stage = stage(1, LONGER);
    let wire = stage.connect_slowly(500);
    stage.send(wire, generate(true));
    stage.settle();
    (0..20).for_each(|_| stage.generate());
    assert_eq!(stage.daemon.engine.running(), 1, "it waits");
    let mut response = String::new();
    for _ in 0..100 {
        response += &stage.receive_all(wire);
        stage.generate();
    }
    assert_eq!(stage.daemon.engine.running(), 0);
    assert!(response.contains("event: done"), "{} bytes", response.len());
}

#[test]
fn a_deadline_ends_one_request_alone() {
    let mut stage = stage(1, LOUD);
    let with_timeout = |timeout: u64| {
        let body = format!(r#"{{"prompt":"sort","timeout":{timeout}}}"#);
        let length = body.len();
        format!(
            "POST /api/v1/generate HTTP/1.1\r\nhost: localhost\r\n\
             content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        )
    };
    let (short, long) = (stage.connect(), stage.connect());
    stage.send(short, with_timeout(1_000));
    stage.send(long, with_timeout(30_000));
    stage.settle();
    (0..3).for_each(|_| stage.pass(SECOND / 2));
    let response = stage.receive_all(short);
    assert!(response.starts_with("HTTP/1.1 504"), "{response}");
    assert_eq!(stage.daemon.engine.wanted().len(), 1, "the other one waits");
    stage.on(long, Wire::client_resets);
    stage.settle();
    assert!(stage.daemon.engine.wanted().is_empty());
}
