//! Connections per client network: who is counted, who is not, and that each count is taken back.

use std::net::IpAddr;

use super::super::proxy_header;
use super::{GET, SECOND, Stage, TERSE, Wire};
use crate::config::{Listen, TrustedProxies};
use crate::limits::core as core_limits;
use crate::reactor::close_reason::CloseReason;
use crate::reactor::message::Message;

impl Stage {
    /// Two reactors with eight places, of which one network has four.
    fn with_networks(adjust: impl FnOnce(&mut crate::config::Config)) -> Stage {
        let mut stage = Stage::with(2, 8, TERSE, adjust);
        stage.settle();
        stage
    }

    /// Connects a client from this address and lets the daemon accept it.
    fn connect_from(&mut self, address: &str) -> usize {
        let address: IpAddr = address.parse().expect("an address");
        self.daemon.network.borrow_mut().addresses = vec![address];
        let wire = self.connect();
        self.settle();
        wire
    }

    fn is_served(&mut self, wire: usize) -> bool {
        self.send(wire, GET);
        self.receive(wire).starts_with("HTTP/1.1 200")
    }

    fn counted(&self) -> usize {
        self.daemon.places.networks().totals().1
    }
}

/// Mutations: `handle_accepted` without `enter`; `network_maximum` that returns the maximum.
#[test]
fn one_network_has_half_of_the_places_and_others_have_the_rest() {
    let mut stage = Stage::with_networks(|_| {});
    let many: Vec<_> = (0..6)
        .map(|number| stage.connect_from(&format!("2001:db8::{number}")))
        .collect();
    let closed: Vec<_> = many.iter().map(|&wire| stage.is_closed(wire)).collect();
    assert_eq!(closed, [false, false, false, false, true, true]);
    assert_eq!(stage.closed(CloseReason::NetworkLimit), 2);
    for number in 1..=2 {
        let other = stage.connect_from(&format!("192.0.2.{number}"));
        assert!(stage.is_served(other), "another network's place");
    }
    // A place of the network is free again when one of its connections has ended.
    stage.on(many[0], Wire::client_resets);
    stage.settle();
    let next = stage.connect_from("2001:db8::ffff");
    assert!(stage.is_served(next));
    assert_eq!(stage.counted(), 6);
    stage.daemon.tell_all(|| Message::Stop);
    stage.settle();
    stage.daemon.check_ended();
}

/// Mutation: `enter` without its exemptions.
#[test]
fn peers_of_this_machine_and_trusted_proxies_are_not_counted() {
    let mut stage = Stage::with_networks(|config| {
        let proxies = TrustedProxies::parse(&["10.0.0.0/8"]);
        config.server.trusted_proxies = proxies.expect("a network");
        config.limits.max_connections_per_network = 1;
    });
    for address in [
        "127.0.0.1",
        "127.0.0.1",
        "::1",
        "::1",
        "10.1.1.1",
        "10.1.1.1",
    ] {
        let wire = stage.connect_from(address);
        assert!(!stage.is_closed(wire), "{address}");
    }
    assert_eq!((stage.counted(), stage.open()), (0, 6));
}

/// Mutation: the transport sets the peer's address without `enter`.
#[test]
fn behind_a_proxy_the_client_in_the_header_is_counted() {
    let mut stage = Stage::with_networks(|config| {
        config.server.listen = vec![Listen::parse("proxy:127.0.0.1:1").expect("an address")];
        config.server.trusted_proxies = TrustedProxies::parse(&["127.0.0.1"]).expect("one");
        config.limits.max_connections_per_network = 2;
    });
    let header = |client| proxy_header([192, 0, 2, client]);
    let wires: Vec<_> = (0..3).map(|_| stage.connect_from("127.0.0.1")).collect();
    assert_eq!(stage.counted(), 0, "no client is named yet");
    let mut answers = Vec::new();
    for &wire in &wires {
        stage.send(wire, [&header(7)[..], GET.as_bytes()].concat());
        answers.push(stage.receive(wire));
    }
    assert!(answers[0].starts_with("HTTP/1.1 200") && answers[1].starts_with("HTTP/1.1 200"));
    assert_eq!(answers[2], "", "closed without a response");
    assert!(stage.is_closed(wires[2]));
    assert_eq!(stage.closed(CloseReason::NetworkLimit), 1);
    let other = stage.connect_from("127.0.0.1");
    stage.send(other, [&header(8)[..], GET.as_bytes()].concat());
    assert!(stage.receive(other).starts_with("HTTP/1.1 200"));
    assert_eq!(stage.counted(), 3);
    wires
        .iter()
        .for_each(|&wire| stage.on(wire, Wire::client_resets));
    stage.settle();
    assert_eq!(stage.counted(), 1);
}

/// A count must go wherever its connection goes, also to another reactor that ends.
///
/// Mutations: `close` or `give_up` without `leave`.
#[test]
fn counts_are_taken_back_on_every_path() {
    let mut stage = Stage::with_networks(|config| {
        config.limits.idle_timeout = SECOND;
        config.limits.max_connections_per_network = 8;
    });
    let idle = stage.connect_from("192.0.2.1");
    assert!(stage.is_served(idle));
    stage.pass(3 * SECOND);
    stage.pass(core_limits::WHEEL_TICK);
    assert!(stage.is_closed(idle));
    assert_eq!(stage.counted(), 0, "a deadline");
    stage.daemon.network.borrow_mut().registration_famine = 1;
    let wire = stage.connect_from("192.0.2.1");
    assert!(stage.is_closed(wire));
    assert_eq!((stage.counted(), stage.open()), (0, 0), "no room in epoll");
    // Accepted by the first reactor for the second one, which ends before it looks.
    let wires = [stage.connect(), stage.connect()];
    let other = stage.daemon.reactors[1].neighbour.mailbox.clone();
    other.post(Message::Stop);
    stage.daemon.turn(0);
    assert_eq!(stage.counted(), 2);
    stage.daemon.tell_all(|| Message::Stop);
    stage.turn();
    assert!(wires.iter().all(|&wire| stage.is_closed(wire)));
    stage.daemon.check_ended();
}

#[test]
fn a_reload_changes_the_limit_for_those_that_come() {
    let mut stage = Stage::with_networks(|_| {});
    let wires: Vec<_> = (0..4).map(|_| stage.connect_from("192.0.2.1")).collect();
    stage.reload(|config| config.limits.max_connections_per_network = 2);
    assert!(
        wires.iter().all(|&wire| !stage.is_closed(wire)),
        "they stay"
    );
    stage.on(wires[0], Wire::client_resets);
    stage.settle();
    let late = stage.connect_from("192.0.2.1");
    assert!(stage.is_closed(late));
    stage.reload(|config| config.limits.max_connections_per_network = 4);
    let late = stage.connect_from("192.0.2.1");
    assert!(stage.is_served(late));
}
