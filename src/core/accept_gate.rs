//! Which connections come in: accepting within a budget, up to a maximum, and through errors.
//!
//! # Why accepting needs a state of its own
//!
//! A listening socket is registered edge-triggered like all others: one edge reports that
//! connections wait, and no edge reports the ones that were left; only a new arrival makes another.
//! A loop that stops before `accept4(2)` has returned `EAGAIN`, for fairness, at the maximum, or
//! because descriptors ran out, must remember that connections still wait. The classic failure is
//! `EMFILE`: the connection stays in the backlog, a level-triggered loop spins on it at full speed,
//! and an edge-triggered one does not look again before the next client comes. Here each listener
//! has a *ready* bit of our own, and [`AcceptGate::wake_at`] returns when the loop must come back
//! by itself.
//!
//! # Results of `accept`
//!
//! accept(2), "Error handling": Linux reports network errors that are pending on the *new* socket
//! as the error of `accept`; they do not concern the listener, and the next connection may be good.
//!
//! | result | what the gate does |
//! | --- | --- |
//! | a connection | nothing: the place that it took stays taken |
//! | `EAGAIN` | clears the ready bit: the backlog is empty, an edge will come |
//! | `ECONNABORTED`, `EINTR`, `EPERM`, network errors | nothing: the next call may succeed |
//! | `EMFILE`, `ENFILE`, `ENOBUFS`, `ENOMEM` | pauses for `ACCEPT_PAUSE`, even if others close |
//! | anything else | pauses: an unknown error must not become a busy loop |
//!
//! All of it is within the turn's budget, and the ready bit stays set when the budget is spent.
//!
//! Out of descriptors, the event loop closes idle connections to make room, if the backlog really
//! holds one: the kernel reserves the descriptor first, so `EMFILE` comes with an empty backlog
//! too.
//!
//! # Several gates
//!
//! Each reactor has a gate of its own. Their listeners are the same, and so are their
//! [`Places`]: a gate takes a place before each `accept`, and gives it back if no connection came.
//! So the maximum is the daemon's, and the gates are all full or all open.
//!
//! Each place that becomes free is given away at once: a gate that waited for a tenth of them would
//! leave that tenth empty for as long as all others are busy. Room is made by batches all the same:
//! where idle connections can be closed for new ones, [`Places::excess`] asks for a tenth. A place
//! that becomes free in another reactor makes no edge, so a full gate with a connection in its
//! backlog looks again by time ([`AcceptGate::wake_at`]).
//!
//! The maximum is fixed at the start: slots and descriptors are sized by it, so a reload that
//! changes it asks for a restart.
//!
//! Mutation that a test catches: `poll_listener` that leaves a tenth of the places free
//! (`closes_at_the_maximum_and_reopens_with_the_first_free_place`).
//!
//! # Call order in a turn
//!
//! ```text
//!   gate.begin_turn();
//!   while let Some(listener) = gate.poll_listener(now) {
//!       match accept(listener) {
//!           Ok(socket) => (),
//!           Err(error) => gate.handle_error(listener, error.kind(), error.raw_os_error(), now),
//!       }
//!   }
//! ```
//!
//! A full gate does not call `accept`, so its ready bits may be stale: the last connection that
//! came in may have been the last one in the backlog. Before an established connection is closed
//! for a new one, the owner of the listeners asks the kernel whether there is one
//! ([`AcceptGate::ready_listeners`], [`AcceptGate::handle_backlog_empty`]).
//!
//! # Invariants
//!
//!  1. A listener's ready bit is set by its edge and cleared when its backlog is found empty.
//!  2. `poll_listener` names at most `limits::ACCEPTS_PER_TURN_MAX` listeners between two
//!     `begin_turn`.
//!  3. A listener that `poll_listener` names comes with a place.

use std::io::ErrorKind;
use std::sync::Arc;

use super::Moment;
use super::places::Places;
use crate::limits::core as limits;

/// See the file's head. One for all listeners: descriptors and memory are the process's.
#[derive(Debug)]
pub struct AcceptGate {
    places: Arc<Places>,
    /// The daemon stops: no connection is let in any more.
    is_shut: bool,
    /// A bit for each listener whose backlog may hold a connection.
    ready: u64,
    /// The listener to begin with, so that a busy one does not starve its neighbours.
    next_listener: u32,
    /// How many accepts are left in this turn.
    budget: u32,
    /// No accept before this moment.
    paused_until: Moment,
}

const _: () = assert!(limits::LISTENERS_MAX <= u64::BITS as usize);

/// The meaning of an error of `accept` for the next call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    /// The backlog is empty.
    Empty,
    /// The error was the new connection's: the next call may succeed.
    NextMaySucceed,
    /// Out of descriptors or memory, or something unknown.
    Exhausted,
}

impl AcceptGate {
    pub fn new(places: Arc<Places>) -> AcceptGate {
        AcceptGate {
            places,
            is_shut: false,
            ready: 0,
            next_listener: 0,
            budget: limits::ACCEPTS_PER_TURN_MAX,
            paused_until: Moment::ZERO,
        }
    }

    // ---- getters ----

    /// Returns whether the maximum is reached: the connections that are worth least should be
    /// closed.
    pub fn is_full(&self) -> bool {
        !self.is_shut && self.places.are_all_taken()
    }

    /// Returns whether a backlog may hold a connection that we would let in, now or later.
    pub fn may_have_waiting(&self) -> bool {
        self.ready != 0 && !self.is_shut
    }

    /// Yields the listeners whose backlogs may hold a connection, in no order that matters.
    pub fn ready_listeners(&self) -> impl Iterator<Item = usize> + use<> {
        let ready = self.ready;
        (0..limits::LISTENERS_MAX).filter(move |listener| ready >> listener & 1 == 1)
    }

    /// Returns when accepting goes on without a further edge: `None` if only an edge can change
    /// anything, a moment in the past if there is work now.
    pub fn wake_at(&self, now: Moment) -> Option<Moment> {
        // Asked once: another reactor may free a place between two questions.
        let resumes_at = match self.places.are_all_taken() {
            true => now + limits::FULL_GATE_RETRY,
            false => self.paused_until,
        };
        self.may_have_waiting().then_some(resumes_at)
    }

    // ---- handle: what happened ----

    /// Handles the listener's edge: a connection waits in its backlog.
    pub fn handle_ready(&mut self, listener: usize) {
        debug_assert!(listener < limits::LISTENERS_MAX);
        self.ready |= 1 << listener;
    }

    /// Records that the listener's backlog was found empty: its next connection makes an edge.
    pub fn handle_backlog_empty(&mut self, listener: usize) {
        debug_assert!(listener < limits::LISTENERS_MAX);
        self.ready &= !(1 << listener);
    }

    /// Handles an error of `accept`: the place is free again. Returns whether accepting pauses, for
    /// lack of descriptors or memory.
    pub fn handle_error(
        &mut self,
        listener: usize,
        kind: ErrorKind,
        raw_os_error: Option<i32>,
        now: Moment,
    ) -> bool {
        self.places.give_back();
        let meaning = meaning_of(kind, raw_os_error);
        match meaning {
            Meaning::Empty => self.handle_backlog_empty(listener),
            Meaning::NextMaySucceed => {}
            Meaning::Exhausted => {
                self.paused_until = now + limits::ACCEPT_PAUSE;
            }
        }
        meaning == Meaning::Exhausted
    }

    // ---- commands ----

    /// Begins a turn of the loop: the budget is whole again.
    pub fn begin_turn(&mut self) {
        self.budget = limits::ACCEPTS_PER_TURN_MAX;
    }

    /// Lets no connection in any more.
    pub fn shut(&mut self) {
        self.is_shut = true;
    }

    // ---- poll ----

    /// Returns the listener to accept from next, and takes a place for its connection; `None` if no
    /// connection waits, or none may come in now.
    pub fn poll_listener(&mut self, now: Moment) -> Option<usize> {
        let is_open = !self.is_shut && now >= self.paused_until;
        if !is_open || self.ready == 0 || self.budget == 0 || !self.places.take() {
            return None;
        }
        self.budget -= 1;
        let turned = self.ready.rotate_right(self.next_listener);
        let listener = (turned.trailing_zeros() + self.next_listener) % u64::BITS;
        self.next_listener = (listener + 1) % u64::BITS;
        Some(listener as usize)
    }
}

fn meaning_of(kind: ErrorKind, raw_os_error: Option<i32>) -> Meaning {
    match kind {
        ErrorKind::WouldBlock => Meaning::Empty,
        ErrorKind::Interrupted | ErrorKind::ConnectionAborted => Meaning::NextMaySucceed,
        _ => match raw_os_error {
            Some(code) if errno::OF_THE_NEW_SOCKET.contains(&code) => Meaning::NextMaySucceed,
            _ => Meaning::Exhausted,
        },
    }
}

/// Linux's numbers of the errors that `std::io::ErrorKind` has no name for. They are the same on
/// every architecture the daemon runs on; `core` does without libc.
mod errno {
    pub const EPERM: i32 = 1;
    pub const ENONET: i32 = 64;
    pub const EPROTO: i32 = 71;
    pub const ENOPROTOOPT: i32 = 92;
    pub const EOPNOTSUPP: i32 = 95;
    pub const ENETDOWN: i32 = 100;
    pub const ENETUNREACH: i32 = 101;
    pub const ETIMEDOUT: i32 = 110;
    pub const EHOSTDOWN: i32 = 112;
    pub const EHOSTUNREACH: i32 = 113;

    /// accept(2): errors that were pending on the connection that is being accepted, and `EPERM`,
    /// with which a firewall forbids that connection.
    pub const OF_THE_NEW_SOCKET: [i32; 10] = [
        EPERM,
        ENONET,
        EPROTO,
        ENOPROTOOPT,
        EOPNOTSUPP,
        ENETDOWN,
        ENETUNREACH,
        ETIMEDOUT,
        EHOSTDOWN,
        EHOSTUNREACH,
    ];
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Moment = Moment::from_micros(1_000_000);
    const EMFILE: i32 = 24;

    fn gate(maximum: usize) -> AcceptGate {
        AcceptGate::new(Arc::new(Places::new(maximum)))
    }

    /// Accepts `count` connections, in as many turns as it takes.
    fn fill(gate: &mut AcceptGate, count: usize) {
        gate.handle_ready(0);
        for _ in 0..count {
            gate.begin_turn();
            assert_eq!(gate.poll_listener(NOW), Some(0));
        }
    }

    #[test]
    fn closes_at_the_maximum_and_reopens_with_the_first_free_place() {
        let mut gate = gate(20);
        fill(&mut gate, 19);
        assert!(!gate.is_full());
        fill(&mut gate, 1);
        assert!(gate.is_full());
        assert_eq!(gate.places.excess(), 2);
        assert_eq!(gate.poll_listener(NOW), None);
        // The edge was seen before the gate closed; there will be no second one.
        assert_eq!(gate.wake_at(NOW), Some(NOW + limits::FULL_GATE_RETRY));
        gate.places.give_back();
        assert_eq!(gate.wake_at(NOW), Some(Moment::ZERO));
        gate.begin_turn();
        assert_eq!(gate.poll_listener(NOW), Some(0));
        assert!(gate.is_full());
    }

    #[test]
    fn gates_share_their_places() {
        let mut first = gate(2);
        let mut second = AcceptGate::new(first.places.clone());
        fill(&mut first, 1);
        fill(&mut second, 1);
        assert!(first.is_full() && second.is_full());
        assert_eq!(second.poll_listener(NOW), None);
        first.places.give_back();
        assert_eq!(second.poll_listener(NOW), Some(0));
    }

    #[test]
    fn a_stale_ready_bit_is_cleared_and_set_again_by_the_next_edge() {
        let mut gate = gate(1);
        gate.handle_ready(3);
        fill(&mut gate, 1);
        assert_eq!(gate.ready_listeners().collect::<Vec<_>>(), [0, 3]);
        gate.ready_listeners()
            .for_each(|listener| gate.handle_backlog_empty(listener));
        assert!(gate.is_full() && !gate.may_have_waiting());
        assert_eq!(gate.wake_at(NOW), None);
        gate.handle_ready(3);
        assert!(gate.may_have_waiting());
    }

    #[test]
    fn a_maximum_of_one_reopens() {
        let mut gate = gate(1);
        fill(&mut gate, 1);
        assert!(gate.is_full());
        gate.places.give_back();
        assert!(!gate.is_full());
    }

    #[test]
    fn out_of_descriptors_pauses_and_comes_back_without_an_edge() {
        let mut gate = gate(10);
        gate.handle_ready(0);
        assert_eq!(gate.poll_listener(NOW), Some(0));
        assert!(gate.handle_error(0, ErrorKind::Other, Some(EMFILE), NOW));
        assert_eq!(gate.places.taken(), 0, "no connection came");
        let until = gate.paused_until;
        assert!(until > NOW);
        assert_eq!(gate.poll_listener(NOW), None);
        assert_eq!(gate.wake_at(NOW), Some(until));
        assert_eq!(gate.poll_listener(until), Some(0));
    }

    #[test]
    fn an_empty_backlog_waits_for_the_next_edge() {
        let mut gate = gate(10);
        gate.handle_ready(0);
        assert_eq!(gate.poll_listener(NOW), Some(0));
        assert!(!gate.handle_error(0, ErrorKind::WouldBlock, Some(11), NOW));
        assert_eq!((gate.poll_listener(NOW), gate.wake_at(NOW)), (None, None));
        gate.handle_ready(0);
        assert_eq!(gate.poll_listener(NOW), Some(0));
    }

    #[test]
    fn the_budget_bounds_a_turn_whatever_accept_answers() {
        let mut gate = gate(usize::MAX / 100);
        gate.handle_ready(0);
        gate.begin_turn();
        let mut calls = 0;
        while gate.poll_listener(NOW).is_some() {
            calls += 1;
            if calls % 2 == 1 {
                assert!(!gate.handle_error(0, ErrorKind::ConnectionAborted, Some(103), NOW));
            }
        }
        assert_eq!(calls, limits::ACCEPTS_PER_TURN_MAX);
        assert_eq!(gate.places.taken() as u32, calls / 2);
        let wakes_at = gate.wake_at(NOW);
        assert_eq!(wakes_at, Some(Moment::ZERO), "connections still wait");
    }

    #[test]
    fn listeners_take_turns() {
        let mut gate = gate(100);
        for listener in [0, 5, 63] {
            gate.handle_ready(listener);
        }
        let order: Vec<_> = (0..4).map(|_| gate.poll_listener(NOW)).collect();
        assert_eq!(order, [Some(0), Some(5), Some(63), Some(0)]);
        gate.handle_error(5, ErrorKind::WouldBlock, None, NOW);
        assert_eq!(gate.poll_listener(NOW), Some(63));
    }

    #[test]
    fn errors_of_the_new_socket_are_not_the_listeners() {
        for code in errno::OF_THE_NEW_SOCKET {
            let kind = std::io::Error::from_raw_os_error(code).kind();
            let meaning = meaning_of(kind, Some(code));
            assert_eq!(meaning, Meaning::NextMaySucceed, "{code}");
        }
        // ENOMEM, ENFILE, EMFILE, ENOBUFS; EBADF and EINVAL for "anything else".
        for code in [12, 23, EMFILE, 105, 9, 22] {
            let kind = std::io::Error::from_raw_os_error(code).kind();
            let meaning = meaning_of(kind, Some(code));
            assert_eq!(meaning, Meaning::Exhausted, "{code}");
        }
    }

    #[test]
    fn a_shut_gate_stays_shut() {
        let mut gate = gate(1);
        fill(&mut gate, 1);
        gate.shut();
        gate.begin_turn();
        gate.places.give_back();
        assert!(!gate.is_full());
        assert_eq!((gate.poll_listener(NOW), gate.wake_at(NOW)), (None, None));
        // An edge that was on its way while the listener closed.
        gate.handle_ready(0);
        assert!(!gate.may_have_waiting());
    }
}
