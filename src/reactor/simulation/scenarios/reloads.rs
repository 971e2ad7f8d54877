//! Reloads: the effects of a new configuration on a request that is arriving.

use super::{GET, SECOND, Stage, Wire, generate};

#[test]
fn a_lowered_number_of_requests_ends_connections_that_are_beyond_it() {
    let mut stage = Stage::new(|_| {});
    let wire = stage.connect();
    stage.send(wire, GET.repeat(5));
    assert!(!stage.receive(wire).contains("connection: close"));
    stage.reload(|config| config.limits.max_requests_per_connection = 3);
    stage.send(wire, GET);
    assert!(stage.receive(wire).contains("connection: close"));
}

#[test]
fn a_reload_in_the_middle_of_a_head_loses_no_byte_of_it() {
    let request = generate(false);
    for cut in 1..request.len() {
        let mut stage = Stage::new(|_| {});
        let wire = stage.connect();
        stage.send(wire, &request[..cut]);
        stage.settle();
        stage.reload(|config| config.limits.max_head = 1_000);
        stage.send(wire, &request[cut..]);
        stage.settle();
        stage.generate();
        let answer = stage.receive(wire);
        assert!(answer.starts_with("HTTP/1.1 200"), "cut at {cut}: {answer}");
    }
}

#[test]
fn a_head_that_has_outgrown_a_lowered_bound_is_refused_at_its_next_byte() {
    for length in [100, 900] {
        let mut stage = Stage::new(|_| {});
        let wire = stage.connect();
        let field = format!(
            "GET / HTTP/1.1\r\nhost: localhost\r\nx: {}",
            "y".repeat(length)
        );
        stage.send(wire, &field);
        stage.settle();
        stage.reload(|config| config.limits.max_head = 64);
        assert_eq!(stage.receive(wire), "");
        stage.send(wire, "y");
        let answer = stage.receive(wire);
        assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
        assert!(answer.contains("headers_too_large"), "{answer}");
        stage.on(wire, Wire::client_half_closes);
        stage.settle();
        assert!(stage.is_closed_in_good_order(wire));
    }
}

#[test]
fn a_deadline_that_runs_is_not_moved_by_a_reload() {
    for other in [SECOND, 1_000 * SECOND] {
        let mut stage = Stage::new(|config| config.limits.header_timeout = 10 * SECOND);
        let wire = stage.connect();
        stage.send(wire, &GET[..9]);
        stage.settle();
        stage.reload(|config| config.limits.header_timeout = other);
        stage.pass(9 * SECOND);
        assert_eq!(stage.receive(wire), "");
        stage.pass(2 * SECOND);
        assert!(stage.receive(wire).starts_with("HTTP/1.1 408"));
    }
}

#[test]
fn a_body_is_bounded_by_what_was_in_force_when_its_head_came() {
    let request = generate(false);
    let cut = request.len() - 1;
    for lowered in [false, true] {
        let mut stage = Stage::new(|config| {
            config.limits.max_body = if lowered { 1_000 } else { 10 };
        });
        let wire = stage.connect();
        stage.send(wire, &request[..cut]);
        stage.settle();
        stage.reload(|config| config.limits.max_body = if lowered { 10 } else { 1_000 });
        stage.send(wire, &request[cut..]);
        stage.settle();
        stage.generate();
        let answer = stage.receive(wire);
        let status = if lowered {
            "HTTP/1.1 200"
        } else {
            "HTTP/1.1 413"
        };
        assert!(answer.starts_with(status), "{answer}");
    }
}

#[test]
fn keys_are_asked_for_by_what_is_in_force_when_the_head_is_whole() {
    let request = generate(false);
    let body = request.len() - 5;
    for (cut, status) in [(9, "HTTP/1.1 401"), (body, "HTTP/1.1 200")] {
        let mut stage = Stage::new(|_| {});
        let wire = stage.connect();
        stage.send(wire, &request[..cut]);
        stage.settle();
        stage.reload(|config| config.auth.enabled = true);
        stage.send(wire, &request[cut..]);
        stage.settle();
        stage.generate();
        let answer = stage.receive(wire);
        assert!(answer.starts_with(status), "{cut}: {answer}");
    }
}
