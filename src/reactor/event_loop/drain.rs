//! The drain: what it does to every connection, some hundred per turn.
//!
//! Owns no state: `core::drain` has the states and the walk. Between two steps of a walk the loop
//! does everything else: tokens, timers and new connections wait for a step and not for the walk.
//!
//! ```text
//!   begin_drain ──> walk_connections: each gets a pump; idle ones are closed after theirs
//!                        │
//!                        │ patience has ended, or a second signal
//!                        v
//!                   cut_off_connections: each gets its error, a FIN, and is closed ──> end
//! ```

use std::ops::ControlFlow;
use std::time::Duration;

use super::{Reactor, isolated};
use crate::core::budget::Phase;
use crate::core::{Key, Moment};
use crate::limits::reactor as limits;
use crate::reactor::close_reason::CloseReason;
use crate::reactor::connection::Pumped;
use crate::reactor::system::System;

impl<S: System> Reactor<S> {
    /// Accepts no new work; running requests may end.
    pub(super) fn begin_drain(&mut self, patience: Duration) {
        if !self.drain.is_running() {
            return;
        }
        self.drain.handle_terminate(self.shared.now, patience);
        self.shared.draining = true;
        self.shared.handler.set_draining();
        // Connections in the backlog are let in, even if their edge is still to come.
        (0..self.system.listeners()).for_each(|listener| self.gate.handle_ready(listener));
    }

    /// Queues the next connections of the walk for a pump. Idle ones are closed after theirs, for a
    /// request may have come in this very batch; those of HTTP/2 send their peer a GOAWAY.
    ///
    /// Fewer are queued while much other work is: it would wait behind them.
    pub(super) fn walk_connections(&mut self) {
        if self.drain.is_stopping() {
            return;
        }
        let queued = u32::try_from(self.run_queue.len()).unwrap_or(u32::MAX);
        let most = limits::DRAINED_CONNECTIONS_PER_TURN_MAX.saturating_sub(queued);
        let most = most.max(limits::DRAINED_CONNECTIONS_PER_TURN_MIN);
        let slots = self.drain.poll_slots(self.slots.extent(), most);
        for key in self.slots.keys_in(slots) {
            if !self.unfinished.contains(key) {
                self.run_queue.push(key);
            }
        }
    }

    /// Cuts off the next connections. `Break`: none is left, and the reactor has ended.
    pub(super) fn cut_off_connections(&mut self, now: Moment) -> ControlFlow<()> {
        self.stop_listening();
        let until = now + limits::CUT_OFF_TIME_MAX;
        let mut phase = Phase::new(until, limits::ITEMS_PER_CLOCK_READING);
        let most = limits::DRAINED_CONNECTIONS_PER_TURN_MAX;
        let slots = self.drain.poll_slots(self.slots.extent(), most);
        for key in self.slots.keys_in(slots).collect::<Vec<_>>() {
            self.cut_off(key);
            if phase.is_spent(|| self.system.now()) {
                // The walk comes to the others again.
                break;
            }
        }
        if !self.slots.is_empty() {
            return ControlFlow::Continue(());
        }
        self.end();
        ControlFlow::Break(())
    }

    fn cut_off(&mut self, key: Key) {
        let Some(connection) = self.slots.get_mut(key) else {
            return;
        };
        let (system, scratch) = (&mut self.system, &mut self.scratch);
        let turn = &mut self.shared.turn(key);
        if let Pumped::Closed(reason) = isolated(|| connection.cut_off(system, scratch, turn)) {
            self.close(key, reason);
        }
    }

    /// The last act of a reactor.
    fn end(&mut self) {
        let mut messages = Vec::from(std::mem::take(&mut self.unread));
        self.mailbox.close(&mut messages);
        for message in messages {
            // Sockets that came too late get a slot, if only to be closed like all others.
            self.handle_message(message);
        }
        let late: Vec<Key> = self.slots.keys_in(0..self.slots.extent()).collect();
        for key in late {
            self.close(key, CloseReason::Drain);
        }
        self.end_outbound();
    }
}
