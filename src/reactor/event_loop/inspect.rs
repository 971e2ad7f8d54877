//! The state of a reactor that the simulation checks after each of its turns.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Reactor;
use crate::offload::JobKey;
use crate::reactor::simulation::{SimulatedKernel, StreamBound};

impl Reactor<SimulatedKernel> {
    /// Returns how many connections it owns.
    pub fn live(&self) -> usize {
        self.slots.len()
    }

    /// Returns how many connections it owns, or is about to get.
    pub fn placed(&self) -> usize {
        self.pulse.connections.load(Ordering::Relaxed) as usize
    }

    /// Returns whether the events of this job are still expected.
    pub fn awaits(&self, key: JobKey) -> bool {
        let connection = self.slots.get(key.connection);
        connection.is_some_and(|connection| connection.awaits(key.request))
    }

    /// Returns how many bytes wait for this wire's client, not encrypted yet.
    pub fn output_bytes(&self, wire: usize) -> usize {
        let mut connections = self.slots.iter().map(|(_, connection)| connection);
        let found = connections.find(|connection| connection.socket().0 == wire);
        found.map_or(0, |connection| connection.output_bytes())
    }

    /// Returns how many buffers of the pool are in use.
    pub fn buffers_out(&self) -> u64 {
        self.shared.pool.outstanding()
    }

    /// Returns whether its next turn would not wait.
    pub fn has_work(&mut self) -> bool {
        self.timeout() == Some(Duration::ZERO)
    }

    pub fn check(&self) {
        self.slots.check_invariants();
        self.run_queue.check_invariants();
        self.unfinished.check_invariants();
        self.shared.pool.check_invariants();
        self.shared.buffered.check_invariants();
        let held = self.slots.iter().map(|(_, one)| one.buffered_bytes());
        assert_eq!(
            self.shared.buffered.held(),
            held.sum::<usize>(),
            "a connection's memory was not counted again"
        );
        self.check_outbound();
        let network = self.system.network();
        for (key, connection) in self.slots.iter() {
            let wire = &network.wires[connection.socket().0];
            let waiting = connection.output_bytes();
            if connection.is_answering() {
                let most = StreamBound::SLOW_READER_BYTES;
                assert!(
                    waiting <= most,
                    "{key:?} has {waiting} bytes of output, above its bound"
                );
            }
            let queues = [&self.run_queue, &self.unfinished, &self.deferred];
            let queued = queues.iter().any(|queue| queue.contains(key));
            if queued || wire.has_pending_edge() {
                continue;
            }
            assert!(
                !wire.reset,
                "lost wake-up: {key:?} was reset and is not queued"
            );
            let unread = !wire.to_daemon.is_empty() || wire.client_fin;
            let wants = connection.wants(&self.shared.marks);
            assert!(
                !(wants.read && unread),
                "lost wake-up: {key:?} has unread input and is not queued"
            );
            let room = wire.to_client.len() < wire.capacity;
            assert!(
                !(wants.write && room),
                "lost wake-up: {key:?} has output and is not queued"
            );
        }
    }

    /// The same for the sockets that the reactor has opened itself.
    fn check_outbound(&self) {
        let network = self.system.network();
        for (key, connection) in self.outbound.sockets() {
            let wire = &network.wires[connection.socket().0];
            if self.outbound.is_queued(key) || wire.has_pending_edge() {
                continue;
            }
            if connection.is_dialing() {
                assert!(
                    wire.is_connecting(),
                    "lost wake-up: the handshake of {key:?} has ended and it is not queued"
                );
                continue;
            }
            let unread = !wire.to_daemon.is_empty() || wire.client_fin || wire.reset;
            assert!(
                !unread,
                "lost wake-up: {key:?} has unread input of a server and is not queued"
            );
            let room = wire.to_client.len() < wire.capacity;
            assert!(
                !(connection.has_output() && room),
                "lost wake-up: {key:?} has a request to send and is not queued"
            );
        }
    }

    /// Checks that an ended reactor has nothing left.
    pub fn check_ended(&self) {
        assert_eq!(self.live(), 0);
        assert_eq!(self.outbound.sockets().count(), 0, "sockets to servers");
        assert_eq!(
            self.shared.buffered.held(),
            0,
            "memory of ended connections"
        );
        let counters = self.shared.pool.counters();
        assert_eq!(
            counters.taken, counters.given,
            "buffers were not returned, or returned twice"
        );
    }
}
