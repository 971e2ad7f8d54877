//! The readiness of one socket as the kernel has reported it: a bit for each direction.
//!
//! # Edges are not levels
//!
//! mio registers sockets with `EPOLLET`: epoll(7) then reports that something *changed*, once, and
//! not that something *is so*. This has two consequences, and every lost wake-up comes from
//! forgetting one of them:
//!
//! * a reader that stops before `EAGAIN` must remember that there is more: no event will report it;
//! * a reader that does not want to read now must remember an edge that comes meanwhile.
//!
//! So the event is not the state. The state is here, and events only feed it:
//!
//! ```text
//!                      an edge, or a new socket
//!    +-----------+  -------------------------->  +-----------+
//!    | not ready |                               |   ready   |   a read or write may be tried
//!    +-----------+  <--------------------------  +-----------+
//!                      EAGAIN, or a transfer
//!                      that was cut short
//! ```
//!
//! # Ready is stored, wanted is computed
//!
//! *Ready* is stored because the kernel reports it once. *Wanted* is not stored: whether a
//! connection wants to read or to write follows from its phase, its protocol and its output, and
//! can be computed at any time (`Connection::wants` in `reactor/connection.rs`). A second copy,
//! kept in a bit here, could only disagree with it. HAProxy's `fd.c` does keep such a bit,
//! *active*, beside *ready*: its poller serves many kinds of owners and cannot ask them.
//!
//! So a connection that stops reading, because a response is under way or because its output is
//! full, changes nothing here and makes no system call. Edges that come meanwhile set their bit,
//! and once reading is wanted again the bit is there. Nothing here ever calls `epoll_ctl(2)`: each
//! socket is registered once, for both directions.
//!
//! # The short read
//!
//! epoll(7) allows a stream's reader to take "fewer bytes than asked for" as the sign that the
//! buffer is empty, which saves the `read` that would return `EAGAIN`. One trap: when the peer's
//! FIN is already behind those bytes, its edge has been reported *with* them, and there will be no
//! other. Once a FIN or a hang-up has been reported, only a `read` of 0, an error or a true
//! `EAGAIN` counts.
//!
//! # Invariants
//!
//!  1. Edges alone set a ready bit; the result of a system call alone clears it.
//!  2. After a FIN or a hang-up was reported, a short read does not clear the bit for reading.
//!  3. A hang-up makes both directions ready: the next call finds out what happened, at once.
//!
//! Mutations that tests catch: `short_read` without its condition
//! (`a_short_read_after_a_fin_is_not_the_end`), `handle_read_closed` that does not make reading
//! ready (`no_readiness_is_lost`).

/// See the file's head.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Readiness(u8);

const READ_READY: u8 = 1 << 0;
const WRITE_READY: u8 = 1 << 1;
/// The peer sends no more: `EPOLLRDHUP`.
const READ_CLOSED: u8 = 1 << 2;
/// Both directions are gone, or an error is pending: `EPOLLHUP`, `EPOLLERR`.
const HUNG_UP: u8 = 1 << 3;

impl Default for Readiness {
    fn default() -> Readiness {
        Readiness::new()
    }
}

impl Readiness {
    /// A socket that was just accepted. Both directions count as ready: bytes may have come before
    /// the registration, and trying costs one `EAGAIN` at most.
    pub const fn new() -> Readiness {
        Readiness(READ_READY | WRITE_READY)
    }

    // ---- getters ----

    /// Returns whether a `read` may be tried.
    pub const fn can_read(self) -> bool {
        self.0 & READ_READY != 0
    }

    /// Returns whether a `write` may be tried.
    pub const fn can_write(self) -> bool {
        self.0 & WRITE_READY != 0
    }

    /// Returns whether the peer has announced the end of its bytes; some may still wait to be read.
    pub const fn is_read_closed(self) -> bool {
        self.0 & (READ_CLOSED | HUNG_UP) != 0
    }

    /// Returns whether the connection is gone in both directions, or carries an error.
    pub const fn is_hung_up(self) -> bool {
        self.0 & HUNG_UP != 0
    }

    // ---- what the kernel reports: edges ----

    pub const fn handle_readable_edge(&mut self) {
        self.0 |= READ_READY;
    }

    pub const fn handle_writable_edge(&mut self) {
        self.0 |= WRITE_READY;
    }

    /// The peer has shut down its sending side (`EPOLLRDHUP`). It may still read our response.
    pub const fn handle_read_closed(&mut self) {
        self.0 |= READ_CLOSED | READ_READY;
    }

    /// Both directions are closed, or an error is pending (`EPOLLHUP`, `EPOLLERR`).
    pub const fn handle_hangup(&mut self) {
        self.0 |= HUNG_UP | READ_READY | WRITE_READY;
    }

    // ---- what the system calls returned ----

    /// `read` returned `EAGAIN`.
    pub const fn blocked_read(&mut self) {
        self.0 &= !READ_READY;
    }

    /// `read` returned fewer bytes than there was room for.
    pub const fn short_read(&mut self) {
        if !self.is_read_closed() {
            self.0 &= !READ_READY;
        }
    }

    /// `write` returned `EAGAIN`, or took fewer bytes than it was given: the socket's buffer is
    /// full, and the kernel will report when there is room again.
    pub const fn blocked_write(&mut self) {
        self.0 &= !WRITE_READY;
    }
}

impl std::fmt::Debug for Readiness {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const NAMES: [(u8, &str); 4] = [
            (READ_READY, "read_ready"),
            (WRITE_READY, "write_ready"),
            (READ_CLOSED, "read_closed"),
            (HUNG_UP, "hung_up"),
        ];
        let set = NAMES.iter().filter(|(bit, _)| self.0 & bit != 0);
        formatter.write_str("Readiness")?;
        formatter
            .debug_set()
            .entries(set.map(|(_, name)| name))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_short_read_after_a_fin_is_not_the_end() {
        let mut readiness = Readiness::new();
        readiness.short_read();
        assert!(!readiness.can_read());
        readiness.handle_read_closed();
        readiness.short_read();
        assert!(readiness.can_read(), "the read of 0 is still to come");
        readiness.blocked_read();
        assert!(!readiness.can_read());
    }

    #[test]
    fn a_half_closed_peer_can_still_be_written_to() {
        let mut readiness = Readiness::new();
        readiness.blocked_write();
        readiness.handle_read_closed();
        assert!(readiness.is_read_closed() && !readiness.is_hung_up());
        assert!(!readiness.can_write());
        readiness.handle_hangup();
        assert!(readiness.is_hung_up() && readiness.can_write());
    }

    /// A socket as an edge-triggered kernel sees it.
    #[derive(Default)]
    struct Kernel {
        received: usize,
        is_finished: bool,
        room: usize,
        readable_edge: bool,
        closed_edge: bool,
        writable_edge: bool,
    }

    #[derive(Clone, Debug)]
    enum Step {
        Arrive(usize),
        Finish,
        PeerReads(usize),
        /// The loop polls: the edges so far are handled.
        Poll,
        Read(usize),
        Write(usize),
    }

    impl Kernel {
        fn step(&mut self, step: &Step, readiness: &mut Readiness) {
            match *step {
                Step::Arrive(bytes) if !self.is_finished => {
                    self.received += bytes;
                    self.readable_edge = true;
                }
                Step::Arrive(_) => {}
                Step::Finish => {
                    self.closed_edge |= !self.is_finished;
                    self.is_finished = true;
                }
                Step::PeerReads(bytes) => {
                    // The kernel reports room only where a writer has met a full buffer.
                    self.writable_edge |= self.room == 0;
                    self.room += bytes;
                }
                Step::Poll => self.report(readiness),
                Step::Read(room) if readiness.can_read() => self.read(room, readiness),
                Step::Write(bytes) if readiness.can_write() => {
                    let taken = bytes.min(self.room);
                    self.room -= taken;
                    if taken < bytes {
                        readiness.blocked_write();
                    }
                }
                // Not tried: the next edge sets the bit.
                Step::Read(_) | Step::Write(_) => {}
            }
        }

        fn report(&mut self, readiness: &mut Readiness) {
            if std::mem::take(&mut self.readable_edge) {
                readiness.handle_readable_edge();
            }
            if std::mem::take(&mut self.closed_edge) {
                readiness.handle_read_closed();
            }
            if std::mem::take(&mut self.writable_edge) {
                readiness.handle_writable_edge();
            }
        }

        fn read(&mut self, room: usize, readiness: &mut Readiness) {
            let taken = room.min(self.received);
            self.received -= taken;
            match taken {
                0 if self.is_finished => {} // a read of 0: the end, seen
                0 => readiness.blocked_read(),
                _ if taken < room => readiness.short_read(),
                _ => {}
            }
        }
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (1_usize..9).prop_map(Step::Arrive),
            1 => Just(Step::Finish),
            3 => (1_usize..9).prop_map(Step::PeerReads),
            4 => Just(Step::Poll),
            6 => (1_usize..9).prop_map(Step::Read),
            5 => (1_usize..9).prop_map(Step::Write),
        ];
        prop::collection::vec(step, 0..80)
    }

    proptest! {
        /// No lost wake-up: what can be done is either known here or has an edge coming. A step
        /// that does not read is a connection that does not want to.
        #[test]
        fn no_readiness_is_lost(steps in steps()) {
            let mut kernel = Kernel::default();
            let mut readiness = Readiness::new();
            for step in steps {
                kernel.step(&step, &mut readiness);
                let is_read_announced = kernel.readable_edge || kernel.closed_edge;
                if kernel.received > 0 || kernel.is_finished {
                    prop_assert!(readiness.can_read() || is_read_announced, "after {:?}", step);
                }
                if kernel.room > 0 {
                    let is_known = readiness.can_write() || kernel.writable_edge;
                    prop_assert!(is_known, "after {:?}", step);
                }
            }
        }
    }
}
