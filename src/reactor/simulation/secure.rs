//! TLS in the simulation: the side of the daemon's peers, and scenarios about TLS alone.
//!
//! rustls takes its randomness from the kernel and not from our dice. The dice and the checks see
//! only lengths, and those do not depend on it: Ed25519 signatures always have 64 bytes, and no
//! client resumes a session. So a seed replays.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::sync::Arc;

use rustls::{
    ClientConnection, Connection, ServerConfig, ServerConnection, SupportedProtocolVersion,
};

use super::Dice;
use super::system::Wire;
use crate::tls::testing::client;

/// The other end of a TLS connection of the daemon's, above a [`Wire`].
pub struct Line {
    tls: Box<Connection>,
    /// Ciphertext that has not been sent yet.
    unsent: VecDeque<u8>,
    /// Why the daemon has refused to go on, once it has.
    pub refused: Option<rustls::Error>,
    /// Whether its close_notify has come.
    pub has_ended: bool,
}

impl Line {
    /// Creates a client's end.
    pub fn new(version: &'static SupportedProtocolVersion) -> Line {
        let config = client(version);
        let name = "localhost".try_into().expect("a name");
        let tls = ClientConnection::new(config, name).expect("a configuration");
        Line::of(tls.into())
    }

    /// Creates the end of a server that the daemon connects to.
    pub fn server(config: Arc<ServerConfig>) -> Line {
        let tls = ServerConnection::new(config).expect("a configuration");
        Line::of(tls.into())
    }

    fn of(tls: Connection) -> Line {
        let mut line = Line {
            tls: Box::new(tls),
            unsent: VecDeque::new(),
            refused: None,
            has_ended: false,
        };
        line.tls.set_buffer_limit(None);
        line.collect();
        line
    }

    /// Returns one of either version, as the dice decide.
    pub fn random(dice: &mut Dice) -> Line {
        Line::new(match dice.one_in(2) {
            true => &rustls::version::TLS12,
            false => &rustls::version::TLS13,
        })
    }

    /// Returns whether the socket's half may be closed without cutting off sent data.
    pub fn is_flushed(&self) -> bool {
        !self.tls.is_handshaking() && self.unsent.is_empty()
    }

    pub fn say(&mut self, bytes: &[u8]) {
        self.tls.writer().write_all(bytes).expect("it is kept");
        self.collect();
    }

    pub fn say_goodbye(&mut self) {
        self.tls.send_close_notify();
        self.collect();
    }

    /// Changes the keys, and asks the daemon to do the same (RFC 8446, section 4.6.3).
    pub fn say_new_keys(&mut self) {
        self.tls.refresh_traffic_keys().expect("TLS 1.3");
        self.collect();
    }

    /// Sends meaningless bytes below TLS.
    pub fn say_nonsense(&mut self, bytes: &[u8]) {
        self.unsent.extend(bytes);
    }

    /// Takes ciphertext; returns its plaintext.
    pub fn hear(&mut self, mut ciphertext: &[u8]) -> Vec<u8> {
        let mut plaintext = Vec::new();
        while !ciphertext.is_empty() && self.refused.is_none() {
            let read = self.tls.read_tls(&mut ciphertext).expect("there is room");
            match self.tls.process_new_packets() {
                Ok(state) => self.has_ended |= state.peer_has_closed(),
                Err(error) => self.refused = Some(error),
            }
            // `WouldBlock` ends it, or the daemon's close_notify.
            let _ = self.tls.reader().read_to_end(&mut plaintext);
            if read == 0 {
                break;
            }
        }
        self.collect();
        plaintext
    }

    /// Sends a piece of the pending bytes, cut anywhere.
    pub fn send(&mut self, wire: &mut Wire, at_most: usize) {
        let count = at_most.min(self.unsent.len());
        let bytes: Vec<u8> = self.unsent.drain(..count).collect();
        if !bytes.is_empty() {
            wire.client_sends(&bytes);
        }
    }

    fn collect(&mut self) {
        while self.tls.wants_write() {
            self.tls
                .write_tls(&mut self.unsent)
                .expect("a queue takes all");
        }
    }
}

#[cfg(test)]
mod scenarios {
    use std::time::Duration;

    use super::*;
    use crate::limits::core as core_limits;
    use crate::limits::reactor as limits;
    use crate::reactor::metrics::HandshakeOutcome;
    use crate::reactor::simulation::scenarios::{GET, Stage};
    use crate::reactor::simulation::system::Wire;

    const STEPS: usize = limits::HANDSHAKE_STEPS_PER_TURN_MAX as usize;

    impl Stage {
        /// Passes bytes in both directions until both sides are silent; returns the plaintext.
        pub fn talk(&mut self, wire: usize, line: &mut Line) -> String {
            let mut text = String::new();
            loop {
                self.on(wire, |wire| line.send(wire, usize::MAX));
                self.settle();
                let bytes = self.on(wire, |wire| wire.client_reads(usize::MAX));
                if bytes.is_empty() {
                    return text;
                }
                let heard = line.hear(&bytes);
                text.push_str(&String::from_utf8(heard).expect("answers are UTF-8"));
            }
        }

        fn count(&mut self, wires: &[usize], holds: impl Fn(&Wire) -> bool) -> usize {
            let network = self.daemon.network.borrow();
            let wires = wires.iter().map(|&wire| &network.wires[wire]);
            wires.filter(|wire| holds(wire)).count()
        }
    }

    #[test]
    fn both_versions_are_served_and_hold_no_buffer_while_idle() {
        for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
            let mut stage = Stage::new(|_| {});
            let (wire, mut line) = (stage.connect(), Line::new(version));
            for _ in 0..3 {
                line.say(GET.as_bytes());
                let text = stage.talk(wire, &mut line);
                assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
                assert_eq!(stage.buffers_out(), 0);
            }
            // A close_notify alone, without a FIN, ends the connection.
            line.say_goodbye();
            stage.talk(wire, &mut line);
            assert!(stage.is_closed(wire));
        }
    }

    /// The close_notify came with the last request, whose response filled the queue: the kernel
    /// will report nothing more that could be a reason to look.
    #[test]
    fn a_close_notify_behind_a_response_that_fills_the_queue_is_seen() {
        let mut stage = Stage::new(|_| {});
        let (wire, mut line) = (stage.connect(), Line::new(&rustls::version::TLS13));
        line.say(GET.as_bytes());
        stage.talk(wire, &mut line);
        stage.on(wire, |wire| wire.capacity = 1);
        let mut answer = 0;
        while stage.output_bytes(wire) + answer < core_limits::OUTPUT_HIGH_BYTES {
            let before = stage.output_bytes(wire);
            line.say(GET.as_bytes());
            stage.on(wire, |wire| line.send(wire, usize::MAX));
            stage.settle();
            answer = answer.max(stage.output_bytes(wire).saturating_sub(before));
        }
        line.say(GET.as_bytes());
        line.say_goodbye();
        stage.on(wire, |wire| line.send(wire, usize::MAX));
        stage.settle();
        assert!(stage.output_bytes(wire) >= core_limits::OUTPUT_HIGH_BYTES);
        stage.on(wire, |wire| wire.capacity = usize::MAX);
        stage.talk(wire, &mut line);
        assert!(stage.on(wire, |wire| wire.is_over()));
    }

    #[test]
    fn a_flood_of_handshakes_is_worked_off_a_few_a_turn_in_the_order_of_arrival() {
        let mut stage = Stage::new(|_| {});
        let open = stage.connect();
        let flood: Vec<_> = (0..5 * STEPS).map(|_| stage.connect()).collect();
        stage.settle();
        for &wire in &flood {
            let mut line = Line::new(&rustls::version::TLS13);
            stage.on(wire, |wire| line.send(wire, usize::MAX));
        }
        let answered = |wire: &Wire| !wire.to_client.is_empty();
        for turn in 1..=5 {
            // Connections that come later than the flood wait behind it; established ones are not
            // delayed.
            stage.send(open, GET);
            stage.turn();
            let text = stage.on(open, |wire| wire.client_reads(usize::MAX));
            assert!(text.starts_with(b"HTTP/1.1 200 "), "in turn {turn}");
            assert_eq!(stage.count(&flood, answered), turn * STEPS);
            assert_eq!(stage.count(&flood[..turn * STEPS], answered), turn * STEPS);
        }
        assert!(stage.daemon.metrics.tls_handshakes_deferred.get() > 0);
        // Cheap input does not count as a step: dripping bytes do not wait.
        let mut line = Line::new(&rustls::version::TLS13);
        let dripping: Vec<_> = (0..3 * STEPS).map(|_| stage.connect()).collect();
        stage.settle();
        for &wire in &dripping {
            stage.on(wire, |wire| line.send(wire, 1));
        }
        stage.turn();
        let unread = |wire: &Wire| !wire.to_daemon.is_empty();
        assert_eq!(stage.count(&dripping, unread), 0);
    }

    /// Two clients of a flood leave while their handshakes are put off. The next tenant of a slot
    /// is still queued behind others, its edge seen, in the turn in which the old one would have
    /// gone on.
    #[test]
    fn a_handshake_that_was_put_off_does_not_displace_the_next_tenant_of_its_slot() {
        const PUMPS: usize = limits::ITEMS_PER_CLOCK_READING as usize;
        let mut stage = Stage::new(|_| {});
        let busy: Vec<_> = (0..3 * PUMPS).map(|_| stage.connect()).collect();
        let flood: Vec<_> = (0..5 * STEPS).map(|_| stage.connect()).collect();
        stage.settle();
        for &wire in &flood {
            let mut line = Line::new(&rustls::version::TLS13);
            stage.on(wire, |wire| line.send(wire, usize::MAX));
        }
        stage.turn();
        for &wire in &flood[4 * STEPS..] {
            stage.on(wire, Wire::client_resets);
        }
        stage.turn();
        // From here on a turn's rounds end at their first reading of the clock.
        stage.daemon.network.borrow_mut().step = limits::ROUNDS_TIME_MAX;
        for &wire in &busy {
            stage.send(wire, GET);
        }
        let client = stage.connect();
        stage.send(client, GET);
        for _ in 0..3 {
            stage.turn();
        }
        stage.daemon.network.borrow_mut().step = Duration::ZERO;
        stage.settle();
        let text = stage.on(client, |wire| wire.client_reads(usize::MAX));
        assert!(text.starts_with(b"HTTP/1.1 200 "));
    }

    #[test]
    fn a_handshake_ends_in_time_however_its_bytes_drip() {
        let patience = Duration::from_secs(5);
        let mut stage = Stage::new(|config| {
            config.limits.header_timeout = patience;
            config.limits.idle_timeout = 10 * patience;
        });
        let wire = stage.connect();
        stage.settle();
        // Before its first byte the connection counts as idle.
        stage.pass(2 * patience);
        let mut line = Line::new(&rustls::version::TLS13);
        for _ in 0..4 {
            assert!(!stage.is_closed(wire));
            stage.on(wire, |wire| line.send(wire, 1));
            stage.pass(patience / 4);
        }
        // The first byte was read when a quarter had passed.
        stage.pass(patience / 2);
        assert!(stage.is_closed(wire));
        let timeouts = stage
            .daemon
            .metrics
            .tls_handshakes
            .get((HandshakeOutcome::Timeout, "none"));
        assert_eq!(timeouts.get(), 1);
    }

    #[test]
    fn nonsense_in_an_open_session_gets_an_alert_and_stops_its_work() {
        let mut stage = Stage::new(|_| {});
        let (wire, mut line) = (stage.connect(), Line::new(&rustls::version::TLS13));
        line.say(GET.as_bytes());
        stage.talk(wire, &mut line);
        line.say_nonsense(&[23, 3, 3, 0, 20]);
        line.say_nonsense(&[7; 20]);
        stage.talk(wire, &mut line);
        let expected = rustls::AlertDescription::BadRecordMac;
        assert_eq!(line.refused, Some(rustls::Error::AlertReceived(expected)));
        stage.on(wire, Wire::client_half_closes);
        stage.settle();
        assert!(stage.is_closed(wire));
        assert_eq!(stage.daemon.metrics.tls_broken.get(), 1);
    }
}
