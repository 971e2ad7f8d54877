//! Phase 8: which connections come in, which ones are closed to make room, and which reactor gets a
//! new one.
//!
//! Owns no state: the budget and the maximum are the accept gate's, the two lists of connections
//! that may be closed are the event loop's. The first reactor accepts for all; it must never wait
//! for another one, so it only posts messages.
//!
//! ```text
//!   accept ──> place ──> the reactor with the fewest connections: itself, or Message::Adopt
//!     │
//!     │ the gate is full, or descriptors ran out
//!     v
//!   make_room   1 idle connections of its own      2 Message::MakeRoom to reactors with idle ones
//!               3 strangers of its own, at a pace  4 Message::MakeRoom to reactors with strangers
//! ```

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

use super::{Neighbour, Pulse, Reactor};
use crate::config::Opening;
use crate::core::Moment;
use crate::limits::reactor as limits;
use crate::reactor::close_reason::CloseReason;
use crate::reactor::connection::Connection;
use crate::reactor::message::Message;
use crate::reactor::system::System;
use crate::service::Peer;

impl<S: System> Reactor<S> {
    pub(super) fn accept_connections(&mut self) {
        self.gate.begin_turn(self.total_connections());
        if self.gate.is_full() && self.confirm_backlog() {
            self.make_room(self.gate.excess());
        }
        while let Some(listener) = self.gate.poll_listener(self.shared.now) {
            match self.system.accept(listener) {
                Ok((socket, peer)) => {
                    self.gate.handle_accepted();
                    self.shared.metrics.connections_accepted.inc();
                    self.shared.metrics.connections.inc();
                    let opening = self.openings.get(listener).copied();
                    self.place(socket, peer, opening.unwrap_or(Opening::PLAIN));
                }
                Err(error) => self.handle_accept_error(listener, &error),
            }
        }
        if self.shared.draining && !self.gate.may_have_waiting() {
            // Connections that were in the backlog when the drain began are in; the kernel refuses
            // later ones, or they wait with the service manager for our successor.
            self.stop_listening();
        }
    }

    /// Asks the kernel whether a connection really waits. A full gate accepts none, so its
    /// knowledge of the backlogs is as old as its last accept. No established connection may be
    /// closed for a new one that is not there, least of all the one that has just been accepted and
    /// had no time to send a byte.
    fn confirm_backlog(&mut self) -> bool {
        let gate = &mut self.gate;
        for listener in gate.ready_listeners() {
            if !self.system.has_waiting(listener) {
                gate.handle_backlog_empty(listener);
            }
        }
        gate.may_have_waiting()
    }

    pub(super) fn stop_listening(&mut self) {
        self.gate.shut();
        self.system.close_listeners();
    }

    /// Places become free in other reactors too, and their closing makes no edge here: a full gate
    /// with a connection in the backlog is tried again by time.
    pub(super) fn retry_full_gate_at(&self) -> Option<Moment> {
        let waits = self.gate.is_full() && self.gate.may_have_waiting();
        waits.then(|| self.shared.now + limits::FULL_GATE_RETRY)
    }

    /// Takes a connection as its own; it was counted when it was placed.
    pub(super) fn adopt(&mut self, socket: S::Socket, peer: Peer, opening: Opening) {
        let Some(key) = self.slots.vacant_key() else {
            return self.give_up(socket, "no slot is free");
        };
        if let Err(error) = self.system.register(&socket, key) {
            return self.give_up(socket, &error.to_string());
        }
        let connection = Connection::new(socket, peer, opening);
        let inserted = self.slots.insert(connection);
        debug_assert_eq!(inserted, key);
        // Bytes may have come before the registration, so the first pump reads without an edge.
        self.run_queue.push(key);
    }

    fn give_up(&mut self, socket: S::Socket, why: &str) {
        log::warn!("closed a connection before its first request: {why}");
        self.system.close(socket);
        self.count_closed(CloseReason::Reset);
    }

    fn handle_accept_error(&mut self, listener: usize, error: &io::Error) {
        let code = error.raw_os_error();
        let now = self.shared.now;
        let pauses = self.gate.handle_error(listener, error.kind(), code, now);
        if pauses {
            self.shared.metrics.accept_paused.inc();
            if self.pause_told_until <= now {
                log::warn!("accept paused: {error}");
                self.pause_told_until = now + limits::ACCEPT_PAUSE_LOG_INTERVAL;
            }
            // The kernel reserves a descriptor before it looks at the backlog, which may be empty.
            if self.confirm_backlog() {
                self.make_room(limits::IDLE_CONNECTIONS_PER_TURN_MAX);
            }
        }
    }

    fn total_connections(&self) -> usize {
        self.neighbours.iter().map(load).sum()
    }

    /// Makes room for new connections by ending those that are worth least: first the idle ones of
    /// any reactor, the longest idle first; then those that have neither a job nor a key, the
    /// oldest first. Those of another reactor are its own to end, and it is asked by message.
    fn make_room(&mut self, wanted: usize) {
        let wanted = wanted.min(limits::IDLE_CONNECTIONS_PER_TURN_MAX);
        let mut left = wanted - self.close_oldest_idle(wanted);
        left -= self.ask_for_room(left, |pulse| &pulse.idle);
        left -= self.evict_strangers(left);
        self.ask_for_room(left, |pulse| &pulse.strangers);
    }

    /// Makes room because another reactor has no place for a new connection.
    pub(super) fn make_room_for_others(&mut self, wanted: usize) {
        let closed = self.close_oldest_idle(wanted);
        let evicted = self.evict_strangers(wanted - closed);
        if closed + evicted > 0
            && let Some(acceptor) = self.neighbours.first()
        {
            // A reactor that has ended has no use for it.
            let _ = acceptor.mailbox.offer(Message::RoomMade);
        }
    }

    /// Asks the reactors that have connections of a kind to close some; returns how many they will
    /// close. Nothing is asked again before the last message can have had its effect.
    fn ask_for_room(&mut self, wanted: usize, kind: fn(&Pulse) -> &AtomicU32) -> usize {
        let own = usize::from(self.shared.reactor);
        let may_ask = self.shared.now >= self.asks_at;
        let mut left = wanted;
        for (index, other) in self.neighbours.iter().enumerate() {
            let count = kind(&other.pulse).load(Ordering::Relaxed) as usize;
            let share = count.min(left);
            if index == own || share == 0 {
                continue;
            }
            if may_ask && other.mailbox.offer(Message::MakeRoom(share)).is_err() {
                continue;
            }
            left -= share;
            self.asks_at = self.asks_at.max(self.shared.now + limits::FULL_GATE_RETRY);
        }
        wanted - left
    }

    fn close_oldest_idle(&mut self, wanted: usize) -> usize {
        let mut closed = 0;
        while closed < wanted
            && let Some(key) = self.idle.oldest()
        {
            self.close(key, CloseReason::Idle);
            self.gate.handle_place_freed();
            closed += 1;
        }
        closed
    }

    /// Evicts at a pace that leaves each of them, on average, the time that a handshake takes.
    fn evict_strangers(&mut self, wanted: usize) -> usize {
        let now = self.shared.now;
        if self.evicts_at > now {
            return 0;
        }
        let pause = limits::EVICTION_PATIENCE / self.strangers.len().max(1) as u32;
        let mut evicted = 0;
        while evicted < wanted
            && let Some(key) = self.strangers.oldest()
        {
            self.close(key, CloseReason::Evicted);
            self.gate.handle_place_freed();
            evicted += 1;
        }
        self.evicts_at = now + pause * evicted as u32;
        evicted
    }

    /// Places a new connection in the reactor that has the fewest; keeps it if that one has ended.
    fn place(&mut self, socket: S::Socket, peer: Peer, opening: Opening) {
        let own = usize::from(self.shared.reactor);
        let least = (0..self.neighbours.len()).min_by_key(|&index| load(&self.neighbours[index]));
        let chosen = least.filter(|&index| index != own);
        let message = Message::Adopt(socket, peer, opening);
        let refused = match chosen.map(|index| &self.neighbours[index]) {
            None => Err(message),
            Some(other) => {
                // Counted before it is posted: a reactor that drains does not end while a socket is
                // on its way to it.
                other.pulse.connections.fetch_add(1, Ordering::Relaxed);
                other.mailbox.offer(message).inspect_err(|_| {
                    other.pulse.connections.fetch_sub(1, Ordering::Relaxed);
                })
            }
        };
        if let Err(Message::Adopt(socket, peer, opening)) = refused {
            self.pulse.connections.fetch_add(1, Ordering::Relaxed);
            self.adopt(socket, peer, opening);
        }
    }
}

fn load<K>(other: &Neighbour<K>) -> usize {
    other.pulse.connections.load(Ordering::Relaxed) as usize
}
