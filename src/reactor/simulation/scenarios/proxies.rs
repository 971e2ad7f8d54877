//! Proxies that forward connections: which header is trusted, and what a header may cost.
//!
//! Mutations that these scenarios catch: `refuses` without checking the peer; the header's deadline
//! left out of `running_deadline`; the bytes after the header dropped.

use std::time::Duration;

use super::{GET, SECOND, Stage};
use crate::config::{Config, Listen, TrustedProxies};
use crate::reactor::close_reason::CloseReason;
use crate::reactor::simulation::proxy_header;

fn behind(proxies: &str) -> impl Fn(&mut Config) {
    move |config| {
        config.server.listen = vec![Listen::parse("proxy:127.0.0.1:1").expect("an address")];
        config.server.trusted_proxies = TrustedProxies::parse(&[proxies]).expect("a network");
        config.limits.header_timeout = Duration::from_secs(10);
    }
}

fn stage() -> Stage {
    Stage::new(behind("127.0.0.0/8"))
}

fn refused(stage: &Stage, reason: &'static str) -> u64 {
    stage.daemon.metrics.proxy_refused.get(reason).get()
}

#[test]
fn a_request_may_come_with_the_header_or_behind_it_in_pieces() {
    let mut stage = stage();
    let together = stage.connect();
    let bytes = [&proxy_header([192, 0, 2, 7]), GET.as_bytes()].concat();
    stage.send(together, &bytes);
    assert!(stage.receive(together).starts_with("HTTP/1.1 200"));
    // The next request of the connection needs none.
    stage.send(together, GET);
    assert!(stage.receive(together).starts_with("HTTP/1.1 200"));
    let pieces = stage.connect();
    for byte in &bytes {
        stage.settle();
        stage.send(pieces, [*byte]);
    }
    assert!(stage.receive(pieces).starts_with("HTTP/1.1 200"));
}

#[test]
fn an_untrusted_peer_is_closed_before_its_first_byte_is_read() {
    let mut stage = Stage::new(behind("10.0.0.0/8"));
    let (silent, loud) = (stage.connect(), stage.connect());
    stage.send(
        loud,
        [&proxy_header([192, 0, 2, 7]), GET.as_bytes()].concat(),
    );
    assert_eq!(stage.receive(loud), "");
    assert!(stage.is_closed(silent) && stage.is_closed(loud));
    assert_eq!(refused(&stage, "untrusted"), 2);
    // A reload that names the peer lets it in.
    stage.reload(behind("127.0.0.1"));
    let wire = stage.connect();
    stage.send(
        wire,
        [&proxy_header([192, 0, 2, 7]), GET.as_bytes()].concat(),
    );
    assert!(stage.receive(wire).starts_with("HTTP/1.1 200"));
    // One that leaves it out closes connections whose header is still to come.
    let waits = stage.connect();
    stage.settle();
    stage.reload(behind("10.0.0.0/8"));
    stage.send(waits, [13]);
    stage.settle();
    assert!(stage.is_closed(waits));
}

#[test]
fn what_is_not_a_header_is_closed_without_a_word() {
    let mut stage = stage();
    let mut claim = proxy_header([192, 0, 2, 7]);
    claim[14..16].copy_from_slice(&[0xff, 0xff]);
    let mut family = proxy_header([192, 0, 2, 7]);
    family[13] = 0x77;
    for (bytes, reason) in [
        (GET.as_bytes(), "missing"),
        (b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n", "version_1"),
        (&claim, "too_long"),
        (&family, "malformed"),
    ] {
        let wire = stage.connect();
        stage.send(wire, bytes);
        assert_eq!(stage.receive(wire), "", "{reason}");
        assert!(stage.is_closed(wire), "{reason}");
        assert_eq!(refused(&stage, reason), 1, "{reason}");
    }
}

#[test]
fn a_header_that_drips_has_its_deadline_and_the_request_behind_it_another() {
    let mut stage = stage();
    let bytes = [&proxy_header([192, 0, 2, 7]), GET.as_bytes()].concat();
    let (silent, drips, late) = (stage.connect(), stage.connect(), stage.connect());
    stage.settle();
    for byte in &bytes[..9] {
        stage.pass(SECOND);
        stage.send(drips, [*byte]);
    }
    // Nine seconds for the header; the request's ten begin with its own first byte.
    stage.send(late, &bytes[..40]);
    stage.pass(2 * SECOND);
    assert!(stage.is_closed(silent) && stage.is_closed(drips));
    let timeouts = &stage.daemon.closed[CloseReason::RequestTimeout as usize];
    assert_eq!(timeouts.get(), 2);
    assert!(!stage.is_closed(late));
    stage.pass(7 * SECOND);
    stage.send(late, &bytes[40..]);
    assert!(stage.receive(late).starts_with("HTTP/1.1 200"));
}

#[test]
fn a_health_check_that_only_connects_counts_as_done() {
    let mut stage = stage();
    let wire = stage.connect();
    stage.settle();
    stage.on(wire, super::Wire::client_half_closes);
    stage.settle();
    assert!(stage.is_closed(wire));
    let done = &stage.daemon.closed[CloseReason::Done as usize];
    assert_eq!(done.get(), 1);
}
