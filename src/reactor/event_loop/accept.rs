//! Phase 8: which connections come in, which ones are closed to make room, and which reactor gets a
//! new one.
//!
//! Owns no state: the budget and the ready bits are the accept gate's, the places the daemon's, the
//! two lists of connections that may be closed the event loop's. Every reactor accepts, from the
//! same listeners. None must ever wait for another one, so they only post messages.
//!
//! ```text
//!   accept ──> place ──> the reactor with the fewest connections: itself, or Message::Adopt
//!     │
//!     │ all places are taken, or descriptors ran out
//!     v
//!   make_room ──> the connection that is worth least, of all reactors:
//!                 1 the longest idle    2 the oldest stranger, at a pace
//!                 its own are closed, another reactor's by Message::MakeRoom
//! ```
//!
//! # Oldest first, over all reactors
//!
//! Each reactor publishes the age of its oldest connection of either kind at the end of each turn.
//! The reactor that needs a place compares them, and closes or asks for those that are at least as
//! old as the oldest of every other reactor. So the order is exact, up to one step of
//! [`Since`](crate::core::idle_list::Since) (66 ms) and one turn. There are two exceptions. A
//! reactor that is held up, or has not answered within `FULL_GATE_RETRY`, is passed over: a new
//! connection does not wait for it. And two reactors that need places at the same time may ask the
//! same one, which then closes one connection more, if a client still waits.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::{Neighbour, Pulse, Reactor};
use crate::config::Opening;
use crate::core::idle_list::{IdleList, Since};
use crate::limits::core as core_limits;
use crate::limits::reactor as limits;
use crate::reactor::client_network;
use crate::reactor::close_reason::CloseReason;
use crate::reactor::connection::Connection;
use crate::reactor::message::{Message, RoomRequest, Worth};
use crate::reactor::system::System;
use crate::service::Peer;

/// The reactor whose oldest connection of a kind is the oldest of all.
struct Oldest {
    reactor: usize,
    since: Since,
    /// The age of the oldest one in any other reactor.
    horizon: Since,
}

impl<S: System> Reactor<S> {
    pub(super) fn accept_connections(&mut self) {
        self.gate.begin_turn();
        if self.gate.is_full() && self.confirm_backlog() {
            self.make_room(self.shared.places.excess());
        }
        while let Some(listener) = self.gate.poll_listener(self.shared.now) {
            match self.system.accept(listener) {
                Ok((socket, peer)) => self.handle_accepted(listener, socket, peer),
                Err(error) => self.handle_accept_error(listener, &error),
            }
        }
        if self.shared.draining && !self.gate.may_have_waiting() {
            // Connections that were in the backlog when the drain began are in; the kernel refuses
            // later ones, or they wait with the service manager for our successor.
            self.stop_listening();
        }
    }

    fn handle_accepted(&mut self, listener: usize, socket: S::Socket, mut peer: Peer) {
        let shared = &self.shared;
        shared.metrics.connections_accepted.inc();
        shared.metrics.connections.inc();
        let opening = self.openings.get(listener).copied();
        let opening = opening.unwrap_or(Opening::PLAIN);
        // Behind a proxy the header names the client.
        let is_welcome = opening.proxied
            || client_network::enter(&mut peer, &shared.places, &shared.config, shared.now);
        if !is_welcome {
            self.pulse.connections.fetch_add(1, Ordering::Relaxed);
            self.system.close(socket);
            return self.count_closed(CloseReason::NetworkLimit);
        }
        self.place(socket, peer, opening);
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

    /// Takes a connection as its own; it was counted when it was placed.
    pub(super) fn adopt(&mut self, socket: S::Socket, peer: Peer, opening: Opening) {
        let Some(key) = self.slots.vacant_key() else {
            return self.give_up(socket, &peer, "no slot is free");
        };
        if let Err(error) = self.system.register(&socket, key) {
            return self.give_up(socket, &peer, &error.to_string());
        }
        let connection = Connection::new(socket, peer, opening);
        let inserted = self.slots.insert(connection);
        debug_assert_eq!(inserted, key);
        // Bytes may have come before the registration, so the first pump reads without an edge.
        self.run_queue.push(key);
    }

    fn give_up(&mut self, socket: S::Socket, peer: &Peer, why: &str) {
        log::warn!("closed a connection before its first request: {why}");
        client_network::leave(peer, &self.shared.places);
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

    // ---- making room ----

    /// Makes room for new connections by ending those that are worth least: first the idle ones of
    /// any reactor, the longest idle first; then those that have neither a job nor a key, the
    /// oldest first. Those of another reactor are its own to end, and it is asked by message.
    fn make_room(&mut self, wanted: usize) {
        let own = usize::from(self.shared.reactor);
        let mut left = wanted.min(limits::IDLE_CONNECTIONS_PER_TURN_MAX);
        // An unanswered request is about to make room, so nothing else is closed meanwhile.
        while left > 0 && self.asks_at <= self.shared.now {
            let Some((worth, oldest)) = self.worth_least() else {
                return;
            };
            if oldest.reactor == own {
                left -= self.end_oldest(worth, left, oldest.horizon);
            } else {
                self.ask_for_room(oldest.reactor, worth, left, oldest.horizon);
            }
        }
    }

    fn worth_least(&self) -> Option<(Worth, Oldest)> {
        let idle = self.oldest(&self.idle, |pulse| &pulse.idle_since);
        let idle = idle.map(|oldest| (Worth::Idle, oldest));
        idle.or_else(|| {
            if !self.shared.places.may_evict(self.shared.now) {
                return None;
            }
            let stranger = self.oldest(&self.strangers, |pulse| &pulse.stranger_since);
            stranger.map(|oldest| (Worth::Stranger, oldest))
        })
    }

    /// Finds the oldest connection of a kind, of all reactors that can be expected to answer.
    fn oldest(&self, own: &IdleList, published: fn(&Pulse) -> &AtomicU32) -> Option<Oldest> {
        let mut oldest = Oldest {
            reactor: usize::from(self.shared.reactor),
            since: own.oldest_since(),
            horizon: Since::NEVER,
        };
        for (index, other) in self.neighbours.iter().enumerate() {
            let is_own = index == usize::from(self.shared.reactor);
            if is_own || self.is_asked[index] || other.pulse.is_held_up(self.shared.now) {
                continue;
            }
            let since = Since::from_bits(published(&other.pulse).load(Ordering::Relaxed));
            if since < oldest.since {
                (oldest.reactor, oldest.horizon) = (index, oldest.since);
                oldest.since = since;
            } else {
                oldest.horizon = oldest.horizon.min(since);
            }
        }
        (oldest.since < Since::NEVER).then_some(oldest)
    }

    /// Posts a request for room. A reactor that has ended is not asked again.
    fn ask_for_room(&mut self, reactor: usize, worth: Worth, wanted: usize, horizon: Since) {
        self.is_asked[reactor] = true;
        let request = RoomRequest {
            asker: self.shared.reactor,
            worth,
            wanted,
            horizon,
        };
        let mailbox = &self.neighbours[reactor].mailbox;
        if mailbox.offer(Message::MakeRoom(request)).is_ok() {
            self.asks_at = self.shared.now + core_limits::FULL_GATE_RETRY;
        }
    }

    /// Makes room because another reactor has asked for it, unless the client has been let in
    /// meanwhile.
    pub(super) fn make_room_for_another(&mut self, request: RoomRequest) {
        let may_close = match request.worth {
            Worth::Idle => true,
            Worth::Stranger => self.shared.places.may_evict(self.shared.now),
        };
        if may_close && self.has_waiting() {
            self.end_oldest(request.worth, request.wanted, request.horizon);
        }
        if let Some(asker) = self.neighbours.get(usize::from(request.asker)) {
            // A reactor that has ended has no use for it.
            let _ = asker.mailbox.offer(Message::RoomMade(self.shared.reactor));
        }
    }

    /// Returns whether a client waits with a listener, or there is none any more to ask.
    fn has_waiting(&mut self) -> bool {
        let count = self.system.listeners();
        count == 0 || (0..count).any(|listener| self.system.has_waiting(listener))
    }

    /// The message has woken this reactor, and phase 8 follows.
    pub(super) fn handle_room_made(&mut self, reactor: u16) {
        self.is_asked[usize::from(reactor)] = false;
        self.asks_at = self.shared.now;
    }

    /// Ends the oldest connections of a kind, down to those that are younger than the horizon, at
    /// least one and at most `wanted`. Returns how many.
    fn end_oldest(&mut self, worth: Worth, wanted: usize, horizon: Since) -> usize {
        let pause = self.eviction_pause();
        let mut ended = 0;
        while ended < wanted {
            let (list, reason) = match worth {
                Worth::Idle => (&self.idle, CloseReason::Idle),
                Worth::Stranger => (&self.strangers, CloseReason::Evicted),
            };
            let is_next = ended == 0 || list.oldest_since() <= horizon;
            let Some(key) = list.oldest().filter(|_| is_next) else {
                break;
            };
            self.close(key, reason);
            ended += 1;
        }
        if worth == Worth::Stranger {
            let until = self.shared.now + pause * ended as u32;
            self.shared.places.put_off_evictions(until);
        }
        ended
    }

    /// Returns the time from one eviction to the next that leaves each stranger of the daemon, on
    /// average, the time that a handshake takes.
    fn eviction_pause(&self) -> Duration {
        let own = usize::from(self.shared.reactor);
        let others = self.neighbours.iter().enumerate();
        let others = others.filter(|(index, _)| *index != own);
        let others = others.map(|(_, other)| other.pulse.strangers.load(Ordering::Relaxed));
        let all = self.strangers.len() as u32 + others.sum::<u32>();
        limits::EVICTION_PATIENCE / all.max(1)
    }

    // ---- placing ----

    /// Places a new connection in the reactor that has the fewest, unless that one is held up or
    /// has ended; then in this one. A busy reactor is not woken for a new connection in the first
    /// place, and must not get one by message either.
    fn place(&mut self, socket: S::Socket, peer: Peer, opening: Opening) {
        let message = Message::Adopt(socket, peer, opening);
        let refused = match self.less_loaded() {
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

    /// Returns the reactor with the fewest connections, if it has fewer than this one and takes new
    /// ones soon.
    fn less_loaded(&self) -> Option<&Neighbour<S::Socket>> {
        let own = load(&self.pulse);
        let now = self.shared.now;
        let lighter = self
            .neighbours
            .iter()
            .filter(|other| load(&other.pulse) < own && !other.pulse.is_held_up(now));
        lighter.min_by_key(|other| load(&other.pulse))
    }
}

fn load(pulse: &Pulse) -> u32 {
    pulse.connections.load(Ordering::Relaxed)
}
