//! The daemon as a client: how connections are made, kept, given up, and refused.

use std::io;
use std::time::Duration;

use super::super::fetches::{Results, fetch};
use super::super::secure::Line;
use super::super::servers::{SOCKETS_MOST, Servers};
use super::{SECOND, Stage, Wire};
use bytes::Bytes;

use crate::core::address_policy::AddressPolicy;
use crate::http::Method;
use crate::http::http1::response::BadResponse;
use crate::limits::outbound as limits;
use crate::limits::reactor as reactor_limits;
use crate::limits::tls as tls_limits;
use crate::offload::OWN_TENANT;
use crate::offload::fetch::{Fetch, FetchError, FetchId, FetchSink, Response, Stage as Step};
use crate::reactor::message::Message;
use crate::tls::testing;

/// A daemon with the servers of the simulated network.
struct Calls {
    stage: Stage,
    servers: Servers,
    results: Results,
    next: u64,
}

impl Calls {
    fn new() -> Calls {
        Calls {
            stage: Stage::new(|_| {}),
            servers: Servers::default(),
            results: Results::default(),
            next: 0,
        }
    }

    fn submit(&mut self, url: &str) -> u64 {
        self.submit_with(url, |_| {}).0
    }

    fn submit_with(&mut self, url: &str, adjust: impl FnOnce(&mut Fetch)) -> (u64, FetchId) {
        let number = self.next;
        self.next += 1;
        let mut fetch = fetch(number, url, &self.results);
        adjust(&mut fetch);
        let id = self.stage.daemon.fetcher.submit(fetch);
        (number, id.unwrap_or_else(|_| panic!("there is room")))
    }

    /// Submits a fetch whose server is the test: the connection is up. Returns its number and its
    /// wire.
    fn dial(&mut self, url: &str, adjust: impl FnOnce(&mut Fetch)) -> (u64, usize) {
        let (number, _) = self.submit_with(url, adjust);
        (number, self.let_connect())
    }

    /// Lets the last fetch find its server, which accepts the connection. Returns the wire.
    fn let_connect(&mut self) -> usize {
        self.stage.settle();
        self.stage.daemon.resolvers.run_all();
        self.stage.settle();
        let wire = self.wire(self.dialled() - 1);
        self.stage.on(wire, Wire::server_accepts);
        self.stage.settle();
        wire
    }

    /// The same with TLS. The server has the first message of the handshake; its own are in the
    /// line and not sent.
    fn dial_tls(&mut self, adjust: impl FnOnce(&mut Fetch)) -> (u64, usize, Line) {
        let (number, wire) = self.dial("https://localhost/", adjust);
        let mut line = Line::server(testing::server());
        let hello = self.stage.on(wire, |wire| wire.client_reads(usize::MAX));
        assert_eq!(line.hear(&hello), b"");
        (number, wire, line)
    }

    /// Lets reactors, resolver and servers act until nothing more happens.
    fn settle(&mut self) {
        for _ in 0..200 {
            self.stage.settle();
            let has_resolved = self.stage.daemon.resolvers.run_all();
            self.servers
                .step(&mut self.stage.daemon.network.borrow_mut());
            if !has_resolved && !self.stage.daemon.network.borrow().has_pending_events() {
                return;
            }
        }
        panic!("no end");
    }

    fn pass(&mut self, time: Duration) {
        self.stage.pass(time);
        self.settle();
    }

    /// Submits, and returns the result.
    fn call(&mut self, url: &str) -> Result<u16, FetchError> {
        let number = self.submit(url);
        self.settle();
        self.result(number).expect("a result")
    }

    fn result(&self, number: u64) -> Option<Result<u16, FetchError>> {
        let results = self.results.lock().expect("one thread");
        let found = results.get(&number)?;
        assert_eq!(found.len(), 1);
        Some(
            found[0]
                .as_ref()
                .map(|response| response.status)
                .map_err(FetchError::clone),
        )
    }

    /// Returns whether it has a response, of whichever status the server has chosen.
    fn is_served(&self, number: u64) -> bool {
        self.result(number).is_some_and(|result| result.is_ok())
    }

    /// Returns how many connections the daemon has opened.
    fn dialled(&self) -> usize {
        self.stage.daemon.network.borrow().dialled.len()
    }

    /// Returns the wire of the connection that it opened as the `nth`.
    fn wire(&self, nth: usize) -> usize {
        self.stage.daemon.network.borrow().dialled[nth].0
    }

    fn is_open(&mut self, nth: usize) -> bool {
        let wire = self.wire(nth);
        self.stage.on(wire, |wire| !wire.closed)
    }
}

/// Mutations: `keep` without `Kept::push`; `next_expiry` without the kept ones.
#[test]
fn a_kept_connection_serves_the_next_request_and_ends_with_its_time() {
    let mut calls = Calls::new();
    for _ in 0..3 {
        assert!(calls.call("http://good.test/").is_ok());
    }
    assert!(calls.call("https://localhost/").is_ok());
    assert!(calls.call("https://localhost/").is_ok());
    assert_eq!(calls.dialled(), 2, "one for each origin");
    calls.pass(limits::KEPT_TIMEOUT / 2);
    assert!(calls.is_open(0) && calls.is_open(1));
    calls.pass(limits::KEPT_TIMEOUT);
    assert!(!calls.is_open(0) && !calls.is_open(1));
    assert!(calls.call("http://closing.test/").is_ok());
    assert!(!calls.is_open(2), "its server keeps none");
}

/// Mutation: `handle_failed` that leaves `next_at` as it is.
#[test]
fn a_refused_address_leads_to_the_next_one_at_once() {
    let mut calls = Calls::new();
    assert!(calls.call("http://second.test/").is_ok());
    assert_eq!(calls.dialled(), 2);
    let refused = calls.call("http://refusing.test/");
    let reason = io::ErrorKind::ConnectionRefused;
    assert_eq!(refused, Err(FetchError::Unreachable(reason)));
}

/// Mutations: `next_moment` without the attempt; a winner that leaves the other attempt open.
#[test]
fn a_silent_address_costs_a_quarter_of_a_second() {
    let mut calls = Calls::new();
    let number = calls.submit("http://families.test/");
    calls.settle();
    assert_eq!((calls.dialled(), calls.result(number)), (1, None));
    calls.pass(limits::ATTEMPT_DELAY + Duration::from_millis(16));
    assert_eq!(calls.result(number), Some(Ok(200)));
    assert!(!calls.is_open(0), "the attempt that lost is closed");
}

/// Mutation: `Ok(false)` of `is_connected` taken for a connection (`docs/tour`, stop 16).
#[test]
fn a_spurious_edge_is_not_a_connection() {
    let mut calls = Calls::new();
    let number = calls.submit("http://silent.test/");
    calls.settle();
    let wire = calls.wire(0);
    calls.stage.on(wire, Wire::raise_spurious_edge);
    calls.settle();
    assert_eq!(calls.result(number), None);
    calls.stage.on(wire, Wire::server_accepts);
    calls.stage.settle();
    let sent = calls.stage.on(wire, |wire| wire.client_reads(4));
    assert_eq!(sent, b"POST");
}

/// Mutations: `handle_opened` without its time; `expired` without the step's, or without the
/// whole's; a stage that is not moved on.
#[test]
fn a_deadline_names_the_step_in_which_it_has_passed() {
    for (url, step) in [
        ("http://good.test/", Step::Resolve),
        ("http://silent.test/", Step::Connect),
        // Its handshake with TCP ends, and that of TLS does not.
        ("https://silent.test/", Step::Connect),
        ("http://mute.test/", Step::FirstByte),
        // The head has come.
        ("http://mute.test/", Step::Whole),
    ] {
        for is_whole in [true, false] {
            let mut calls = Calls::new();
            let (number, _) = calls.submit_with(url, |fetch| {
                let timeouts = &mut fetch.timeouts;
                match step {
                    _ if is_whole => timeouts.whole = SECOND,
                    Step::Resolve | Step::Connect => timeouts.connect = SECOND,
                    Step::FirstByte => timeouts.first_byte = SECOND,
                    Step::Wait | Step::Whole => timeouts.whole = SECOND,
                }
            });
            match step {
                // The resolver's threads do not get to it.
                Step::Resolve => calls.stage.settle(),
                _ => calls.settle(),
            }
            if url.starts_with("https") {
                let wire = calls.wire(0);
                calls.stage.on(wire, Wire::server_accepts);
                calls.stage.settle();
            }
            if step == Step::Whole {
                let head = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nhi";
                let wire = calls.wire(0);
                calls.stage.on(wire, |wire| wire.client_sends(head));
                calls.stage.settle();
            }
            calls.stage.pass(SECOND / 2);
            assert_eq!(calls.result(number), None);
            calls.stage.pass(SECOND);
            let expected = Some(Err(FetchError::TimedOut(step)));
            assert_eq!(calls.result(number), expected, "{url} {is_whole}");
            assert!(calls.dialled() == 0 || !calls.is_open(0));
        }
    }
}

/// Mutations: `late_response` that is always `None`; `ended` without its look at the status.
#[test]
fn a_status_may_be_enough_whatever_becomes_of_the_body() {
    for status_is_enough in [true, false] {
        for (sent, then, error) in [
            (
                "content-length: 9\r\n\r\nslow",
                None,
                FetchError::TimedOut(Step::Whole),
            ),
            (
                "content-length: 9\r\n\r\ncut",
                Some(Wire::client_half_closes as fn(&mut Wire)),
                FetchError::Broken,
            ),
            (
                "content-length: 9\r\n\r\nreset",
                Some(Wire::client_resets as fn(&mut Wire)),
                FetchError::Broken,
            ),
            (
                "content-length: 9000\r\n\r\n",
                None,
                FetchError::Response(BadResponse::TooLarge),
            ),
        ] {
            let mut calls = Calls::new();
            let (number, _) = calls.submit_with("http://mute.test/", |fetch| {
                fetch.bounds.status_is_enough = status_is_enough;
                fetch.timeouts.whole = SECOND;
            });
            calls.settle();
            let wire = calls.wire(0);
            let sent = format!("HTTP/1.1 202 Yes\r\n{sent}");
            calls
                .stage
                .on(wire, |wire| wire.client_sends(sent.as_bytes()));
            calls.stage.settle();
            if let Some(then) = then {
                calls.stage.on(wire, then);
                calls.stage.settle();
            }
            calls.stage.pass(2 * SECOND);
            let expected = match status_is_enough {
                true => Ok(202),
                false => Err(error),
            };
            assert_eq!(calls.result(number), Some(expected), "{sent}");
            assert!(!calls.is_open(0), "it is not kept");
        }
    }
}

/// Mutation: `dial` without its filter, and `connect` without its look.
#[test]
fn an_address_that_is_not_public_is_never_connected_to() {
    let mut calls = Calls::new();
    for url in [
        "http://private.test/",
        "http://127.0.0.1/",
        "http://169.254.169.254/latest/",
        "http://[::1]:8080/",
        "http://[::ffff:10.0.0.1]/",
    ] {
        assert_eq!(calls.call(url), Err(FetchError::Forbidden), "{url}");
    }
    assert_eq!(
        calls.call("http://unknown.test/"),
        Err(FetchError::Unresolved)
    );
    assert_eq!(calls.dialled(), 0);
}

/// Mutations: `may_retry` that is always false, or always true.
#[test]
fn a_request_that_met_a_closing_connection_is_sent_again_if_that_is_safe() {
    for (is_idempotent, expected) in [(true, Ok(200)), (false, Err(FetchError::Broken))] {
        let mut calls = Calls::new();
        assert!(calls.call("http://good.test/").is_ok());
        let (number, _) = calls.submit_with("http://good.test/", |fetch| {
            fetch.request.is_idempotent = is_idempotent;
        });
        // The request is on its way, and so is the server's FIN.
        calls.stage.settle();
        let wire = calls.wire(0);
        calls.stage.on(wire, Wire::client_half_closes);
        calls.settle();
        assert_eq!(calls.result(number), Some(expected));
    }
    // A connection that is known to be closed is not used at all.
    let mut calls = Calls::new();
    assert!(calls.call("http://good.test/").is_ok());
    let wire = calls.wire(0);
    calls.stage.on(wire, Wire::client_half_closes);
    let (number, _) = calls.submit_with("http://good.test/", |fetch| {
        fetch.request.is_idempotent = false;
    });
    calls.settle();
    assert_eq!((calls.result(number), calls.dialled()), (Some(Ok(200)), 2));
}

/// Mutations: `is_begun` that is always true, or true after a write that takes nothing.
#[test]
fn a_request_of_which_nothing_was_written_is_sent_again_in_any_case() {
    for (capacity, expected) in [(0, Ok(200)), (1, Err(FetchError::Broken))] {
        let mut calls = Calls::new();
        assert!(calls.call("http://good.test/").is_ok());
        let wire = calls.wire(0);
        calls.stage.on(wire, |wire| wire.capacity = capacity);
        let (number, _) = calls.submit_with("http://good.test/", |fetch| {
            fetch.request.is_idempotent = false;
        });
        calls.stage.settle();
        let written = calls.stage.on(wire, |wire| wire.to_client.len());
        assert_eq!(written, capacity);
        calls.stage.on(wire, Wire::client_half_closes);
        calls.settle();
        assert_eq!(calls.result(number), Some(expected));
    }
}

/// Mutation: `handle_failure` that calls `start`.
#[test]
fn a_request_is_sent_again_over_a_new_connection() {
    let mut calls = Calls::new();
    let numbers = [1, 2].map(|tenant| {
        let submitted = calls.submit_with("http://good.test/", |fetch| fetch.tenant = tenant);
        submitted.0
    });
    calls.settle();
    assert!(numbers.iter().all(|number| calls.is_served(*number)));
    assert_eq!(calls.dialled(), 2);
    assert!(calls.is_open(0) && calls.is_open(1), "both are kept");
    let number = calls.submit("http://good.test/");
    calls.stage.settle();
    let has_request = |wire: &mut Wire| !wire.to_client.is_empty();
    let wires = [0, 1].map(|nth| calls.wire(nth));
    let used = wires.map(|wire| calls.stage.on(wire, has_request));
    assert!(used[0] != used[1], "one of them serves it");
    let wire = wires[usize::from(used[1])];
    calls.stage.on(wire, Wire::client_half_closes);
    calls.settle();
    assert!(calls.is_served(number));
    assert_eq!(calls.dialled(), 3);
    let series = &calls.stage.daemon.fetched;
    assert_eq!((series.reused.get(), series.retried.get()), (1, 1));
}

/// Mutation: `is_usable` without its look at the address.
#[test]
fn a_kept_connection_serves_no_fetch_that_must_not_connect_to_its_address() {
    let mut calls = Calls::new();
    // Its manner is a good server's.
    let url = "http://127.0.0.7/";
    for (policy, expected) in [
        (AddressPolicy::Any, Ok(200)),
        (
            AddressPolicy::PublicAnd([].into()),
            Err(FetchError::Forbidden),
        ),
    ] {
        let (number, _) = calls.submit_with(url, |fetch| fetch.policy = policy);
        calls.settle();
        assert_eq!(calls.result(number), Some(expected));
    }
    assert_eq!(calls.dialled(), 1);
    assert_eq!(calls.stage.daemon.fetched.reused.get(), 0);
}

/// Mutation: `connect` that leaves a socket open for which epoll has no room.
#[test]
fn a_socket_that_cannot_be_registered_is_closed_and_the_next_address_tried() {
    let mut calls = Calls::new();
    calls.stage.daemon.network.borrow_mut().registration_famine = 1;
    let reason = io::Error::from_raw_os_error(libc::ENOSPC).kind();
    let expected = Err(FetchError::Unreachable(reason));
    assert_eq!(calls.call("http://good.test/"), expected);
    assert!(!calls.is_open(0));
    calls.stage.daemon.network.borrow_mut().registration_famine = 1;
    assert!(calls.call("http://families.test/").is_ok());
    assert!(!calls.is_open(1));
    assert_eq!(calls.stage.daemon.fetched.sockets.get(), 1, "the kept one");
}

/// Invariant 4 of a connection. Mutations: `may_be_cut` that is always false, or always true;
/// `receive` without its look at close_notify.
#[test]
fn a_body_without_a_length_ends_under_tls_with_close_notify_alone() {
    for (has_close_notify, has_fin, expected) in [
        (true, false, Some(Ok(200))),
        (true, true, Some(Ok(200))),
        (false, true, Some(Err(FetchError::Broken))),
        (false, false, None),
    ] {
        let mut calls = Calls::new();
        let (number, wire, mut line) = calls.dial_tls(|_| {});
        let request = calls.stage.talk(wire, &mut line);
        assert!(request.starts_with("POST /0 HTTP/1.1\r\n"), "{request}");
        line.say(b"HTTP/1.1 200 OK\r\n\r\npay nobody");
        calls.stage.talk(wire, &mut line);
        assert_eq!(calls.result(number), None);
        if has_close_notify {
            line.say_goodbye();
            calls.stage.on(wire, |wire| line.send(wire, usize::MAX));
        }
        if has_fin {
            calls.stage.on(wire, Wire::client_half_closes);
        }
        calls.stage.settle();
        assert_eq!(calls.result(number), expected);
        assert_eq!(calls.is_open(0), expected.is_none());
    }
    // Without TLS, a FIN is all there is.
    let mut calls = Calls::new();
    let (number, wire) = calls.dial("http://mute.test/", |_| {});
    let response = b"HTTP/1.1 200 OK\r\n\r\npay nobody";
    calls.stage.on(wire, |wire| wire.client_sends(response));
    calls.stage.on(wire, Wire::client_half_closes);
    calls.stage.settle();
    assert_eq!(calls.result(number), Some(Ok(200)));
}

/// Mutations: `receive` that takes no steps of handshakes, or starts one without a step left, or
/// lets open connections wait for one as well.
#[test]
fn handshakes_with_servers_are_worked_off_a_few_a_turn() {
    let mut calls = Calls::new();
    let steps = reactor_limits::HANDSHAKE_STEPS_PER_TURN_MAX as usize;
    // As many as there are places, apart from the daemon's own.
    let mut dialled: Vec<_> = (0..steps + 1)
        .map(|tenant| calls.dial_tls(|fetch| fetch.tenant = 1 + tenant as u64))
        .collect();
    let (own, open) = calls.dial("http://mute.test/", |fetch| fetch.tenant = OWN_TENANT);
    for (_, wire, line) in &mut dialled {
        calls.stage.on(*wire, |wire| line.send(wire, usize::MAX));
    }
    let response = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    calls.stage.on(open, |wire| wire.client_sends(response));
    let ended = |calls: &mut Calls| {
        calls.stage.turn();
        let wires = dialled.iter().map(|dialled| dialled.1);
        let has_request = |wire: &mut Wire| !wire.to_client.is_empty();
        let wires = wires.filter(|wire| calls.stage.on(*wire, has_request));
        wires.count()
    };
    assert_eq!(ended(&mut calls), steps);
    assert_eq!(calls.result(own), Some(Ok(200)), "it needs no step");
    assert_eq!(ended(&mut calls), steps + 1);
}

/// Invariants 2 and 3 of a connection. Mutations: `take_response` without its look at the buffers;
/// `handle_bytes` without the one at TLS's; `receive` without its look at close_notify.
#[test]
fn a_connection_with_bytes_left_in_it_is_not_kept() {
    const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    type Act = fn(&mut Line);
    let nothing: Act = |_| {};
    let half_a_record: Act = |line| line.say_nonsense(&[23, 3, 3, 1, 0, 7]);
    for (index, (with, behind, is_kept)) in [
        (nothing, nothing, true),
        (half_a_record, nothing, false),
        (nothing, half_a_record, false),
        (Line::say_goodbye, nothing, false),
        (nothing, Line::say_goodbye, false),
    ]
    .into_iter()
    .enumerate()
    {
        let mut calls = Calls::new();
        let (number, wire, mut line) = calls.dial_tls(|_| {});
        calls.stage.talk(wire, &mut line);
        line.say(OK);
        with(&mut line);
        calls.stage.talk(wire, &mut line);
        assert_eq!(calls.result(number), Some(Ok(200)), "{index}");
        behind(&mut line);
        calls.stage.talk(wire, &mut line);
        assert_eq!(calls.is_open(0), is_kept, "{index}");
    }
    // A response that came before all of the request was written.
    let mut calls = Calls::new();
    let (number, _) = calls.submit_with("http://mute.test/", |_| {});
    calls.stage.settle();
    calls.stage.daemon.resolvers.run_all();
    calls.stage.settle();
    let wire = calls.wire(0);
    calls.stage.on(wire, |wire| wire.capacity = 9);
    calls.stage.on(wire, Wire::server_accepts);
    calls.stage.settle();
    calls.stage.on(wire, |wire| wire.client_sends(OK));
    calls.stage.settle();
    assert_eq!(calls.result(number), Some(Ok(200)));
    assert!(!calls.is_open(0));
}

/// A message of TLS without plaintext is not a response. Mutations: `pump` without the look at
/// what reading has caused; a kept connection that each message of TLS ends.
#[test]
fn a_server_may_ask_for_another_hello_and_for_new_keys() {
    let mut calls = Calls::new();
    let (number, wire) = calls.dial("https://localhost/", |_| {});
    let mut line = Line::server(testing::asking_server());
    for number in [number, number + 1] {
        let request = calls.stage.talk(wire, &mut line);
        assert!(
            request.starts_with(&format!("POST /{number} ")),
            "{request}"
        );
        line.say_new_keys();
        calls.stage.talk(wire, &mut line);
        assert_eq!(calls.result(number), None);
        line.say(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
        line.say_new_keys();
        calls.stage.talk(wire, &mut line);
        assert_eq!(calls.result(number), Some(Ok(200)));
        line.say_new_keys();
        calls.stage.talk(wire, &mut line);
        assert_eq!(calls.submit("https://localhost/"), number + 1);
    }
    assert_eq!(calls.dialled(), 1);
}

/// Mutation: a kept connection whose bytes are not looked at.
#[test]
fn bytes_that_nothing_asked_for_end_a_kept_connection() {
    let mut calls = Calls::new();
    assert!(calls.call("http://good.test/").is_ok());
    let wire = calls.wire(0);
    let forged = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nforged";
    calls.stage.on(wire, |wire| wire.client_sends(forged));
    assert!(calls.call("http://good.test/").is_ok());
    assert_eq!(calls.dialled(), 2);
    let results = calls.results.lock().expect("one thread");
    let response = results[&1][0].as_ref().expect("a response");
    assert_eq!(response.body, b"/1");
}

/// Mutations: `take_response` that keeps a connection with bytes left over, or one whose server has
/// not promised to keep it; `take_status` that takes the reader in any case, so that a byte of the
/// response is forgotten (`may_retry`).
#[test]
fn a_connection_is_kept_or_given_up_by_the_response_on_it() {
    let ok = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n";
    for (response, is_kept) in [
        (format!("{ok}\r\n"), true),
        (format!("{ok}\r\n{ok}\r\n"), false),
        (format!("{ok}connection: close\r\n\r\n"), false),
    ] {
        let mut calls = Calls::new();
        let number = calls.submit("http://mute.test/");
        calls.settle();
        let wire = calls.wire(0);
        calls
            .stage
            .on(wire, |wire| wire.client_sends(response.as_bytes()));
        calls.settle();
        assert_eq!(calls.result(number), Some(Ok(200)), "{response}");
        assert_eq!(calls.is_open(0), is_kept, "{response}");
        if !is_kept {
            continue;
        }
        // The next one goes over it, and its response is cut off: the server has acted on it.
        let number = calls.submit("http://mute.test/");
        calls.settle();
        calls
            .stage
            .on(wire, |wire| wire.client_sends(b"HTTP/1.1 20"));
        calls.stage.settle();
        calls.stage.on(wire, Wire::client_half_closes);
        calls.settle();
        assert_eq!(calls.result(number), Some(Err(FetchError::Broken)));
        assert_eq!(calls.dialled(), 1, "it is not sent again");
    }
}

/// Mutation: `content-length` without a body.
#[test]
fn a_request_without_a_body_announces_none() {
    let mut calls = Calls::new();
    for (method, expected) in [(Method::Get, false), (Method::Post, true)] {
        let (_, id) = calls.submit_with("http://mute.test/", |fetch| {
            fetch.request.method = method;
            fetch.request.body = Bytes::new();
        });
        // The server must not read it.
        let wire = calls.let_connect();
        let sent = calls.stage.on(wire, |wire| wire.client_reads(1_000));
        let head = String::from_utf8_lossy(&sent).into_owned();
        assert_eq!(head.contains("content-length: 0"), expected, "{head}");
        calls.stage.daemon.fetcher.cancel(id);
        calls.settle();
    }
}

#[test]
fn nonsense_and_a_cut_off_response_are_errors() {
    let mut calls = Calls::new();
    let nonsense = calls
        .call("http://nonsense.test/")
        .map_err(|error| error.as_str());
    assert_eq!(nonsense, Err("bad_response"));
    let nonsense = calls
        .call("https://nonsense.test/")
        .map_err(|error| error.as_str());
    assert_eq!(nonsense, Err("tls_failed"));
    // The certificate is for another name.
    let other = calls
        .call("https://good.test/")
        .map_err(|error| error.as_str());
    assert_eq!(other, Err("tls_failed"));
}

#[test]
fn a_cancelled_fetch_closes_its_connection_within_the_turn() {
    let mut calls = Calls::new();
    let (number, id) = calls.submit_with("http://mute.test/", |_| {});
    calls.settle();
    assert!(calls.is_open(0));
    calls.stage.daemon.fetcher.cancel(id);
    calls.stage.turn();
    assert!(!calls.is_open(0));
    assert_eq!(calls.result(number), Some(Err(FetchError::Cancelled)));
    calls.stage.daemon.fetcher.cancel(id);
    calls.settle();
    assert_eq!(calls.stage.daemon.fetcher.pending(), 0);
}

/// Mutations: `start_waiting` that asks for no place; `waiting` as one line for all tenants;
/// `finish` that gives no place back; no place for the daemon's own.
#[test]
fn fetches_beyond_the_places_wait_and_tenants_take_turns() {
    let mut calls = Calls::new();
    let mut submit = |tenant, url| calls.submit_with(url, |fetch| fetch.tenant = tenant);
    let many: Vec<_> = (0..20).map(|_| submit(1, "http://mute.test/")).collect();
    let (_, silent) = submit(2, "http://mute.test/");
    let (second, _) = submit(2, "http://good.test/");
    calls.settle();
    // Of four places one is the daemon's, and one tenant gets two of three.
    assert_eq!(calls.dialled(), 3);
    let (newcomer, _) = calls.submit_with("http://good.test/", |fetch| fetch.tenant = 3);
    calls.settle();
    assert_eq!((calls.result(newcomer), calls.dialled()), (None, 3));
    let (own, _) = calls.submit_with("http://closing.test/", |fetch| fetch.tenant = OWN_TENANT);
    calls.settle();
    assert!(calls.is_served(own));
    calls.stage.daemon.fetcher.cancel(many[0].1);
    calls.settle();
    assert!(calls.is_served(newcomer));
    assert_eq!(calls.result(second), None, "its tenant has another one");
    calls.stage.daemon.fetcher.cancel(silent);
    calls.settle();
    assert!(calls.is_served(second));
    // One that waits has a deadline as well.
    let (late, _) = calls.submit_with("http://good.test/", |fetch| {
        fetch.tenant = 1;
        fetch.timeouts.whole = SECOND;
    });
    calls.settle();
    calls.pass(2 * SECOND);
    let expected = Err(FetchError::TimedOut(Step::Wait));
    assert_eq!(calls.result(late), Some(expected));
    assert_eq!(calls.stage.daemon.fetcher.pending(), many.len() - 1);
}

/// Mutations: `start_waiting` left out, where a fetch ends by its response, by its time, or without
/// an address.
#[test]
fn a_fetch_that_ends_in_any_way_leaves_its_place_to_the_next() {
    for url in [
        "http://good.test/",
        "http://mute.test/",
        "http://unknown.test/",
    ] {
        let mut calls = Calls::new();
        // One tenant has two places.
        let numbers = [(); 5].map(|()| {
            let submitted = calls.submit_with(url, |fetch| {
                fetch.tenant = 1;
                fetch.timeouts.first_byte = SECOND;
            });
            submitted.0
        });
        calls.settle();
        (0..3).for_each(|_| calls.pass(2 * SECOND));
        assert!(
            numbers.iter().all(|number| calls.result(*number).is_some()),
            "{url}"
        );
    }
}

/// Mutation: `begin` that does not ask whether the queue has room.
#[test]
fn fetches_that_were_cancelled_while_they_waited_do_not_pile_up() {
    let mut calls = Calls::new();
    let submit = |calls: &mut Calls, tenant| {
        calls.submit_with("http://mute.test/", |fetch| fetch.tenant = tenant)
    };
    // The places of this tenant are taken, so its queue does not move.
    for _ in 0..2 {
        submit(&mut calls, 1);
    }
    calls.settle();
    let rounds = limits::FETCHES_MAX / 100 + 1;
    let mut last = 0;
    for _ in 0..rounds {
        let cancelled = [(); 100].map(|()| submit(&mut calls, 1));
        for (number, id) in cancelled {
            calls.stage.daemon.fetcher.cancel(id);
            last = number;
        }
        calls.stage.settle();
    }
    assert_eq!(calls.result(last), Some(Err(FetchError::Busy)));
    let (other, _) = calls.submit_with("http://good.test/", |fetch| fetch.tenant = 2);
    calls.settle();
    assert!(calls.is_served(other));
}

/// Mutations: `run` without its time; a bound of reads that is never reached; `Opened` that does
/// not queue its connection.
#[test]
fn a_turn_has_a_part_of_a_long_response_and_of_many_short_ones() {
    const LENGTH: usize = 1 << 20;
    let mut calls = Calls::new();
    // A server may send before the client's part of the handshake, of its last flight.
    let mut config = (*testing::server()).clone();
    config.send_half_rtt_data = true;
    let (number, wire) = calls.dial("https://localhost/", |fetch| {
        fetch.bounds.body_bytes = LENGTH;
    });
    let mut line = Line::server(config.into());
    let hello = calls.stage.on(wire, |wire| wire.client_reads(usize::MAX));
    line.hear(&hello);
    line.say(format!("HTTP/1.1 200 OK\r\ncontent-length: {LENGTH}\r\n\r\n").as_bytes());
    line.say(&vec![b'x'; LENGTH]);
    calls.stage.on(wire, |wire| line.send(wire, usize::MAX));
    calls.stage.turn();
    let left = calls.stage.on(wire, |wire| wire.to_daemon.len());
    let most = reactor_limits::READS_PER_PUMP_MAX * tls_limits::READ_BYTES_MAX;
    assert!(left > 0 && left + most > LENGTH, "{left}");
    calls.stage.settle();
    assert_eq!(calls.result(number), Some(Ok(200)));
    // Each reading of the clock takes as long as a pump may.
    let mut calls = Calls::new();
    let dialled =
        [1, 2, 3].map(|tenant| calls.dial("http://mute.test/", |fetch| fetch.tenant = tenant));
    for (_, wire) in dialled {
        let ok = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
        calls.stage.on(wire, |wire| wire.client_sends(ok));
    }
    calls.stage.daemon.network.borrow_mut().step = reactor_limits::PUMP_TIME_MAX;
    for served in 1..=3 {
        calls.stage.turn();
        let results = dialled
            .iter()
            .filter(|(number, _)| calls.is_served(*number));
        assert_eq!(results.count(), served);
    }
}

/// Mutations: `pump` that lets the time of connecting go on behind TLS's handshake;
/// `handle_failure` without `handle_started`.
#[test]
fn each_step_of_a_fetch_has_its_own_time() {
    let times = |fetch: &mut Fetch| {
        fetch.timeouts.connect = SECOND;
        fetch.timeouts.first_byte = 10 * SECOND;
    };
    let mut calls = Calls::new();
    let (number, wire, mut line) = calls.dial_tls(times);
    calls.stage.talk(wire, &mut line);
    calls.stage.pass(5 * SECOND);
    assert_eq!(calls.result(number), None);
    calls.stage.pass(6 * SECOND);
    let expected = Err(FetchError::TimedOut(Step::FirstByte));
    assert_eq!(calls.result(number), Some(expected));
    // A request that is sent again begins with a connection that does not come about.
    let mut calls = Calls::new();
    assert!(calls.call("http://8.0.0.0/").is_ok());
    let (number, _) = calls.submit_with("http://8.0.0.0/", times);
    calls.stage.settle();
    let wire = calls.wire(0);
    calls.stage.on(wire, Wire::client_half_closes);
    calls.stage.settle();
    assert_eq!(calls.dialled(), 2);
    calls.stage.pass(2 * SECOND);
    let expected = Err(FetchError::TimedOut(Step::Connect));
    assert_eq!(calls.result(number), Some(expected));
}

/// Mutation: `handle_failure` that sends a request again after any failure.
#[test]
fn broken_records_are_alerted_and_nothing_is_sent_again() {
    let mut calls = Calls::new();
    let (number, wire, mut line) = calls.dial_tls(|_| {});
    calls.stage.talk(wire, &mut line);
    line.say(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
    calls.stage.talk(wire, &mut line);
    assert_eq!(calls.result(number), Some(Ok(200)));
    let number = calls.submit("https://localhost/");
    calls.stage.talk(wire, &mut line);
    line.say_nonsense(&[23, 3, 3, 0, 20]);
    line.say_nonsense(&[7; 20]);
    calls.stage.talk(wire, &mut line);
    let result = calls.result(number).expect("a result");
    assert_eq!(result.map_err(|error| error.as_str()), Err("tls_failed"));
    assert_eq!(calls.dialled(), 1);
    let expected = rustls::AlertDescription::BadRecordMac;
    assert_eq!(line.refused, Some(rustls::Error::AlertReceived(expected)));
}

/// Mutations: `close` without close_notify, or with a write that the kernel has not asked for.
#[test]
fn the_end_of_a_connection_is_told_to_its_server_if_there_is_room() {
    for capacity in [usize::MAX, 0] {
        let mut calls = Calls::new();
        let (number, wire, mut line) = calls.dial_tls(|_| {});
        calls.stage.talk(wire, &mut line);
        line.say(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
        calls.stage.talk(wire, &mut line);
        assert_eq!(calls.result(number), Some(Ok(200)));
        calls.stage.on(wire, |wire| wire.capacity = capacity);
        let (_, id) = calls.submit_with("https://localhost/", |_| {});
        calls.stage.settle();
        calls.stage.daemon.fetcher.cancel(id);
        calls.stage.settle();
        assert!(!calls.is_open(0));
        let bytes = calls.stage.on(wire, |wire| wire.client_reads(usize::MAX));
        line.hear(&bytes);
        assert_eq!(line.has_ended, capacity > 0);
    }
}

/// Mutations: `isolated` and `deliver` that let a panic pass.
#[test]
fn a_bug_costs_its_own_fetch_alone() {
    struct Cursed;
    impl FetchSink for Cursed {
        fn finish(self: Box<Self>, _: Result<Response, FetchError>) {
            panic!("as the test wants it");
        }
    }
    let mut calls = Calls::new();
    calls.submit_with("http://good.test/", |fetch| fetch.sink = Box::new(Cursed));
    let (number, wire) = calls.dial("http://mute.test/", |fetch| fetch.tenant = 2);
    let reactor = calls.stage.daemon.reactors[0].reactor.as_mut();
    reactor.expect("it runs").system.cursed_wire = Some(wire);
    calls.stage.on(wire, |wire| wire.client_sends(b"HTTP/1.1 "));
    calls.settle();
    assert_eq!(calls.result(number), Some(Err(FetchError::Bug)));
    assert!(calls.call("http://good.test/").is_ok());
    let series = &calls.stage.daemon.fetched.fetches;
    let counts = ["response", "bug"].map(|outcome| series.get(outcome).get());
    assert_eq!(counts, [2, 1]);
    assert_eq!(calls.stage.daemon.fetcher.pending(), 0);
}

/// Mutation: `connect` that closes no kept connection while all sockets are in use.
#[test]
fn kept_connections_make_room_for_others() {
    let mut calls = Calls::new();
    for url in ["http://good.test/", "http://8.0.0.0/"] {
        for tenant in [1, 2, 3, OWN_TENANT] {
            calls.submit_with(url, |fetch| fetch.tenant = tenant);
        }
        calls.settle();
    }
    assert_eq!(calls.dialled(), SOCKETS_MOST);
    assert!(calls.call("http://localhost/").is_ok());
    let open = (0..=SOCKETS_MOST).filter(|nth| calls.is_open(*nth));
    assert_eq!(
        open.collect::<Vec<_>>(),
        (1..=SOCKETS_MOST).collect::<Vec<_>>()
    );
}

/// Mutation: the response to HEAD read as one with a body.
#[test]
fn a_response_to_head_has_no_body() {
    let mut calls = Calls::new();
    let (number, wire) = calls.dial("http://mute.test/", |fetch| {
        fetch.request.method = Method::Head;
        fetch.request.body = Bytes::new();
    });
    let response = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n";
    calls.stage.on(wire, |wire| wire.client_sends(response));
    calls.stage.settle();
    assert_eq!(calls.result(number), Some(Ok(200)));
    assert!(calls.is_open(0), "it is kept");
}

/// Mutation: `hold` that ignores its share.
#[test]
fn a_fetch_is_refused_while_the_memory_for_buffers_is_used_up() {
    let mut calls = Calls::new();
    calls.stage.daemon.buffered.set_bound(100);
    assert_eq!(
        calls.call("http://good.test/"),
        Err(FetchError::BuffersFull)
    );
    assert_eq!(calls.dialled(), 0, "it does not begin");
    // The request has room, and what comes back has none.
    calls.stage.daemon.buffered.set_bound(1_200);
    let number = calls.submit("http://mute.test/");
    calls.settle();
    let wire = calls.wire(0);
    let head = format!("HTTP/1.1 200 OK\r\nx: {}", "x".repeat(500));
    calls
        .stage
        .on(wire, |wire| wire.client_sends(head.as_bytes()));
    calls.settle();
    assert_eq!(calls.result(number), Some(Err(FetchError::BuffersFull)));
    calls.stage.daemon.buffered.set_bound(1 << 20);
    assert!(calls.call("http://good.test/").is_ok());
}

/// Mutations: `end` without its fetches, or without the sockets.
#[test]
fn at_the_end_each_fetch_gets_its_result_and_nothing_is_left() {
    let mut calls = Calls::new();
    assert!(calls.call("http://good.test/").is_ok());
    let urls = [
        "http://mute.test/",
        "http://silent.test/",
        "http://good.test/",
    ];
    let numbers = urls.map(|url| calls.submit(url));
    calls.stage.turn();
    calls.stage.daemon.tell_all(|| Message::Stop);
    calls.settle();
    assert!(calls.stage.daemon.has_ended());
    let late = calls.submit("http://good.test/");
    for number in numbers.into_iter().take(2).chain([late]) {
        assert_eq!(
            calls.result(number),
            Some(Err(FetchError::Ended)),
            "{number}"
        );
    }
    calls.stage.daemon.resolvers.end();
    calls.stage.daemon.check_ended();
}
