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
//! | a connection | counts it; closes at the maximum |
//! | `EAGAIN` | clears the ready bit: the backlog is empty, an edge will come |
//! | `ECONNABORTED`, `EINTR`, `EPERM`, network errors | nothing: the next call may succeed |
//! | `EMFILE`, `ENFILE`, `ENOBUFS`, `ENOMEM` | pauses for `ACCEPT_PAUSE`, whatever closes meanwhile
//! |
//! | anything else | pauses: an unknown error must not become a busy loop |
//!
//! All of it is within the turn's budget, and the ready bit stays set when the budget is spent.
//!
//! Out of descriptors, the event loop closes idle connections to make room, if the backlog really
//! holds one: the kernel reserves the descriptor first, so `EMFILE` comes with an empty backlog
//! too.
//!
//! # States
//!
//! ```text
//!            live = maximum               shut
//!   Open  -------------------->  Full  ---------->  Shut
//!    |   <--------------------                        ^
//!    |     live < maximum                             |
//!    '------------------------------------------------'
//!                          shut
//! ```
//!
//! Each place that becomes free is given away at once: a gate that waited for a tenth of them would
//! leave that tenth empty for as long as all others are busy. Room is made by batches all the same:
//! where idle connections can be closed for new ones, [`AcceptGate::excess`] asks for a tenth.
//!
//! The maximum is fixed at the start: slots and descriptors are sized by it, so a reload that
//! changes it asks for a restart.
//!
//! Mutation that a test catches: `begin_turn` that reopens at nine tenths
//! (`closes_at_the_maximum_and_reopens_with_the_first_free_place`).
//!
//! # Call order in a turn
//!
//! ```text
//!   gate.begin_turn(connections);
//!   while let Some(listener) = gate.poll_listener(now) {
//!       match accept(listener) {
//!           Ok(socket) => gate.handle_accepted(),
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
//!  3. `live` is the number in the last `begin_turn`, plus what was accepted since.

use std::io::ErrorKind;

use super::Moment;
use crate::limits::core as limits;

/// See the file's head. One for all listeners: descriptors and memory are the process's.
#[derive(Clone, Debug)]
pub struct AcceptGate {
    admission: Admission,
    live: usize,
    maximum: usize,
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

/// Whether connections are let in at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Admission {
    Open,
    /// The maximum is reached; open again with the first place that becomes free.
    Full,
    /// The daemon stops: never again.
    Shut,
}

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
    /// Creates a gate for at most `maximum` connections at once; never less than one.
    pub fn new(maximum: usize) -> AcceptGate {
        AcceptGate {
            admission: Admission::Open,
            live: 0,
            maximum: maximum.max(1),
            ready: 0,
            next_listener: 0,
            budget: limits::ACCEPTS_PER_TURN_MAX,
            paused_until: Moment::ZERO,
        }
    }

    // ---- getters ----

    /// Returns whether the maximum is reached: the oldest idle connections should be closed.
    pub fn is_full(&self) -> bool {
        self.admission == Admission::Full
    }

    /// Returns whether a backlog may hold a connection that we would let in, now or later.
    pub fn may_have_waiting(&self) -> bool {
        self.ready != 0 && self.admission != Admission::Shut
    }

    /// Returns how many idle connections to close at a full gate, so that new ones find room for a
    /// while.
    pub fn excess(&self) -> usize {
        match self.admission {
            Admission::Full => self.live.saturating_sub(self.relieved()).max(1),
            Admission::Open | Admission::Shut => 0,
        }
    }

    /// Yields the listeners whose backlogs may hold a connection, in no order that matters.
    pub fn ready_listeners(&self) -> impl Iterator<Item = usize> + use<> {
        let ready = self.ready;
        (0..limits::LISTENERS_MAX).filter(move |listener| ready >> listener & 1 == 1)
    }

    /// Returns when accepting goes on without a further edge: `None` if only an edge or a closed
    /// connection can change anything, a moment in the past if there is work now.
    pub fn wake_at(&self) -> Option<Moment> {
        (self.ready != 0 && self.admission == Admission::Open).then_some(self.paused_until)
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

    /// Counts a connection that `accept` returned.
    pub fn handle_accepted(&mut self) {
        self.live += 1;
        if self.live >= self.maximum && self.admission == Admission::Open {
            self.admission = Admission::Full;
        }
    }

    /// Records that a connection was closed to make room: its place can be taken in this very turn.
    pub fn handle_place_freed(&mut self) {
        self.live = self.live.saturating_sub(1);
        if self.admission == Admission::Full && self.live < self.maximum {
            self.admission = Admission::Open;
        }
    }

    /// Handles an error of `accept`. Returns whether accepting pauses, for lack of descriptors or
    /// memory.
    pub fn handle_error(
        &mut self,
        listener: usize,
        kind: ErrorKind,
        raw_os_error: Option<i32>,
        now: Moment,
    ) -> bool {
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

    /// Begins a turn of the loop with this many open connections: the budget is whole again. The
    /// count is an argument, because connections also end in other reactors.
    pub fn begin_turn(&mut self, live: usize) {
        self.budget = limits::ACCEPTS_PER_TURN_MAX;
        self.live = live;
        self.admission = match self.admission {
            Admission::Open if live >= self.maximum => Admission::Full,
            Admission::Full if live < self.maximum => Admission::Open,
            unchanged => unchanged,
        };
    }

    /// Lets no connection in any more.
    pub fn shut(&mut self) {
        self.admission = Admission::Shut;
    }

    // ---- poll ----

    /// Returns the listener to accept from next; `None` if no connection waits, or none may come in
    /// now.
    pub fn poll_listener(&mut self, now: Moment) -> Option<usize> {
        let is_open = self.admission == Admission::Open && now >= self.paused_until;
        if !is_open || self.ready == 0 || self.budget == 0 {
            return None;
        }
        self.budget -= 1;
        let turned = self.ready.rotate_right(self.next_listener);
        let listener = (turned.trailing_zeros() + self.next_listener) % u64::BITS;
        self.next_listener = (listener + 1) % u64::BITS;
        Some(listener as usize)
    }

    // ---- helpers ----

    /// Returns how many connections are left when idle ones have made room.
    fn relieved(&self) -> usize {
        (self.maximum * limits::GATE_RELIEF_PERCENT / 100).min(self.maximum - 1)
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

    /// Accepts `count` connections, in as many turns as it takes.
    fn fill(gate: &mut AcceptGate, count: usize) {
        gate.handle_ready(0);
        for _ in 0..count {
            gate.begin_turn(gate.live);
            assert_eq!(gate.poll_listener(NOW), Some(0));
            gate.handle_accepted();
        }
    }

    #[test]
    fn closes_at_the_maximum_and_reopens_with_the_first_free_place() {
        let mut gate = AcceptGate::new(20);
        fill(&mut gate, 19);
        assert_eq!(gate.admission, Admission::Open);
        fill(&mut gate, 1);
        assert!(gate.is_full());
        assert_eq!(gate.excess(), 2);
        assert_eq!(gate.poll_listener(NOW), None);
        assert_eq!(gate.wake_at(), None);
        gate.begin_turn(gate.live);
        assert!(gate.is_full());
        gate.begin_turn(gate.live - 1);
        // The edge was seen before the gate closed; there will be no second one.
        assert_eq!(gate.admission, Admission::Open);
        assert_eq!(gate.wake_at(), Some(Moment::ZERO));
        gate.begin_turn(gate.live);
        assert_eq!(gate.poll_listener(NOW), Some(0));
    }

    #[test]
    fn a_place_that_was_freed_for_a_waiting_connection_is_given_away_at_once() {
        let mut gate = AcceptGate::new(20);
        fill(&mut gate, 20);
        gate.handle_place_freed();
        assert_eq!(gate.wake_at(), Some(Moment::ZERO));
        gate.begin_turn(19);
        assert_eq!(gate.poll_listener(NOW), Some(0));
        gate.handle_accepted();
        assert!(gate.is_full());
        gate.shut();
        gate.handle_place_freed();
        assert_eq!(gate.admission, Admission::Shut);
    }

    #[test]
    fn a_stale_ready_bit_is_cleared_and_set_again_by_the_next_edge() {
        let mut gate = AcceptGate::new(1);
        gate.handle_ready(3);
        fill(&mut gate, 1);
        assert_eq!(gate.ready_listeners().collect::<Vec<_>>(), [0, 3]);
        gate.ready_listeners()
            .for_each(|listener| gate.handle_backlog_empty(listener));
        assert!(gate.is_full() && !gate.may_have_waiting());
        gate.handle_ready(3);
        assert!(gate.may_have_waiting());
    }

    #[test]
    fn a_maximum_of_one_reopens() {
        let mut gate = AcceptGate::new(1);
        fill(&mut gate, 1);
        assert!(gate.is_full());
        gate.begin_turn(gate.live - 1);
        assert_eq!(gate.admission, Admission::Open);
    }

    #[test]
    fn out_of_descriptors_pauses_and_comes_back_without_an_edge() {
        let mut gate = AcceptGate::new(10);
        gate.handle_ready(0);
        assert_eq!(gate.poll_listener(NOW), Some(0));
        assert!(gate.handle_error(0, ErrorKind::Other, Some(EMFILE), NOW));
        let until = gate.paused_until;
        assert!(until > NOW);
        assert_eq!(gate.poll_listener(NOW), None);
        assert_eq!(gate.wake_at(), Some(until));
        assert_eq!(gate.poll_listener(until), Some(0));
    }

    #[test]
    fn an_empty_backlog_waits_for_the_next_edge() {
        let mut gate = AcceptGate::new(10);
        gate.handle_ready(0);
        assert!(!gate.handle_error(0, ErrorKind::WouldBlock, Some(11), NOW));
        assert_eq!((gate.poll_listener(NOW), gate.wake_at()), (None, None));
        gate.handle_ready(0);
        assert_eq!(gate.poll_listener(NOW), Some(0));
    }

    #[test]
    fn the_budget_bounds_a_turn_whatever_accept_answers() {
        let mut gate = AcceptGate::new(usize::MAX / 100);
        gate.handle_ready(0);
        gate.begin_turn(gate.live);
        let mut calls = 0;
        while gate.poll_listener(NOW).is_some() {
            calls += 1;
            if calls % 2 == 0 {
                gate.handle_accepted();
            } else {
                assert!(!gate.handle_error(0, ErrorKind::ConnectionAborted, Some(103), NOW));
            }
        }
        assert_eq!(calls, limits::ACCEPTS_PER_TURN_MAX);
        assert_eq!(gate.wake_at(), Some(Moment::ZERO), "connections still wait");
    }

    #[test]
    fn listeners_take_turns() {
        let mut gate = AcceptGate::new(100);
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
        let mut gate = AcceptGate::new(1);
        fill(&mut gate, 1);
        gate.shut();
        gate.begin_turn(gate.live - 1);
        assert_eq!(gate.admission, Admission::Shut);
        assert_eq!((gate.poll_listener(NOW), gate.wake_at()), (None, None));
        // An edge that was on its way while the listener closed.
        gate.handle_ready(0);
        assert!(!gate.may_have_waiting());
    }
}
