//! One connection: a [`Channel`], the protocol on it, and one pump that advances both.
//!
//! Owns the phase, the deadlines and the protocol's state; the channel owns the socket and the
//! bytes. Must never wait, never read a clock, and never touch another connection.
//!
//! ```text
//!             bytes arrive                   response queued
//!   Open ----------------------> Open ... ---------------------> Closing
//!    |                                                             | output empty: our FIN
//!    | error, reset, hang-up                                       v
//!    +-----------------------------> closed <----------------- Lingering
//!                                            peer's FIN, bound or deadline
//! ```
//!
//! Invariants; `check_invariants` checks what can be seen of them after each call in debug builds:
//!  1. A connection never closes itself: `pump`, `handle_deadline` and `abandon` return
//!     `Pumped::Closed`, and the event loop closes it. It may also be closed from outside: idle or
//!     unknown connections to make room, all of them at the end of a drain, one whose handling
//!     panicked.
//!  2. A pump that stops early, for fairness, returns `Pumped::Again`: the ready bit is still set
//!     and no edge will come, so the connection must go to the run queue.
//!  3. The deadlines for idleness, head and body are set once per request and never moved: neither
//!     dripping bytes nor edges without bytes extend them. None of them runs while we have paused
//!     reading; the idle one also waits until the previous response has been written.
//!  4. At most one of these and the request's deadline runs; that of a stalled write runs exactly
//!     while there is output.
//!  5. After the peer's FIN no further request begins, and a request that it cuts off is dropped;
//!     only responses to complete requests are sent.
//!  6. A lingering connection holds no input and no output, and has only its own deadline.
//!  7. A connection that is held back has output, so an edge or its write's deadline will come.

mod check;
mod deadlines;
mod end;

use super::channel::{Channel, Read};
use super::close_reason::CloseReason;
use super::context::Turn;
use super::http1::Http1;
use super::machine::{Input, Machine, Waiting};
use super::protocol::Protocol;
use super::system::{Edge, System};
use super::transport::Arrived;
use crate::config::Opening;
use crate::core::buffered::Claim;
use crate::core::deadlines::{DeadlineKind, Deadlines, Taken, stalls_at};
use crate::core::output::{Level, Marks};
use crate::error::{ApiError, ErrorCode};
use crate::limits::reactor as limits;
use crate::service::{Completion, Peer};

pub struct Connection<K> {
    channel: Channel<K>,
    phase: Phase,
    deadlines: Deadlines,
    protocol: Protocol,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    /// The last response is in the output queue; later input is not read as a request.
    Closing,
    /// Our FIN is sent. Reading on keeps the kernel from sending a reset for late bytes, which
    /// would destroy our response before the peer has read it (RFC 9112, section 9.6).
    Lingering {
        discarded_bytes: u32,
    },
}

/// At most one of these runs at a time: see [`deadlines`].
const WAITING: [DeadlineKind; 4] = [
    DeadlineKind::Idle,
    DeadlineKind::Header,
    DeadlineKind::Body,
    DeadlineKind::Request,
];

/// The directions in which a connection would go on if the kernel let it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wants {
    pub read: bool,
    pub write: bool,
}

/// The result of a pump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Pumped {
    /// Nothing more can be done until an edge, a completion or a deadline.
    Waiting,
    /// The budget is used up, but not the work.
    Again,
    /// A handshake step is next, and this turn's are used up.
    Deferred,
    Closed(CloseReason),
}

impl<K> Connection<K> {
    pub fn new(socket: K, peer: Peer, opening: Opening) -> Connection<K> {
        Connection {
            channel: Channel::new(socket, peer, opening),
            phase: Phase::Open,
            deadlines: Deadlines::new(),
            protocol: Protocol::default(),
        }
    }

    // ---- getters ----

    pub fn deadlines(&self) -> &Deadlines {
        &self.deadlines
    }

    /// Returns the directions in which it would go on if the kernel let it: see
    /// [`crate::core::readiness`]. The peer's bytes are wanted while they need not wait for a
    /// running response, and while the peer takes its output: a client that sends requests and
    /// never reads is not read either.
    pub fn wants(&self, marks: &Marks) -> Wants {
        Wants {
            read: self.wants_to_read(marks),
            write: self.channel.has_output(),
        }
    }

    /// Returns whether the peer's bytes are wanted: the first half of [`Connection::wants`], which
    /// a pump asks for several times.
    fn wants_to_read(&self, marks: &Marks) -> bool {
        match self.phase {
            Phase::Open => {
                !self.channel.is_held_back()
                    && self.protocol.takes_input()
                    && self.channel.output().level(marks) < Level::High
            }
            Phase::Closing => false,
            Phase::Lingering { .. } => true,
        }
    }

    #[cfg(test)]
    pub fn socket(&self) -> &K {
        self.channel.socket()
    }

    #[cfg(test)]
    pub fn output_bytes(&self) -> usize {
        self.channel.output().len()
    }

    #[cfg(test)]
    pub fn is_answering(&self) -> bool {
        self.protocol.is_answering()
    }

    pub fn peer(&self) -> &Peer {
        self.channel.peer()
    }

    pub fn into_socket(self) -> K {
        self.channel.into_socket()
    }

    /// Returns whether it is between two requests: closing it now loses nothing.
    pub fn is_idle(&self) -> bool {
        self.phase == Phase::Open
            && !self.channel.holds_input()
            && !self.channel.has_output()
            && !self.channel.transport().is_handshaking()
            && self.protocol.waiting() == Waiting::Request
    }

    /// Returns whether it has shown neither a valid key nor a job since it came: if there is no
    /// place for a new connection, it is worth less than all except the idle ones.
    pub fn is_stranger(&self) -> bool {
        !self.channel.is_known()
    }

    /// Returns whether its pumps are long, so that those of other connections must come first.
    pub fn is_greedy(&self) -> bool {
        self.channel.is_greedy()
    }

    /// Returns whether an event of this request's job is expected.
    pub fn awaits(&self, request: u32) -> bool {
        self.protocol.awaits(request)
    }

    /// Returns the memory that it holds because its peer has not sent or not read everything.
    pub fn buffered_bytes(&self) -> usize {
        self.channel.buffered_bytes() + self.protocol.buffered_bytes()
    }

    /// Returns whether there are bytes to read, here or in the kernel.
    fn has_input(&self) -> bool {
        self.channel.has_input() || self.holds_unseen_bytes()
    }

    /// Returns whether it holds bytes that had to wait for the last request, or for their time.
    fn holds_unseen_bytes(&self) -> bool {
        self.channel.holds_input() && self.protocol.has_stopped_early()
    }

    // ---- what happened ----

    /// Records an edge. The pump does the I/O.
    pub fn handle_edge(&mut self, edge: &Edge) {
        self.channel.handle_edge(edge);
    }

    /// Handles a message of the engine or a worker for the request that [`Connection::awaits`] it.
    /// Our own bytes raise no edge, so a pump must follow.
    pub fn handle_event(
        &mut self,
        request: u32,
        completion: Completion,
        turn: &mut Turn<'_>,
    ) -> Pumped {
        let lent = &mut self.channel.lend(turn);
        self.protocol.handle_event(request, completion, lent);
        self.debug_check();
        Pumped::Again
    }

    /// Handles a passed deadline; the last pump has seen all input before it. The pump that follows
    /// does the consequences.
    pub fn handle_deadline(&mut self, kind: DeadlineKind, turn: &mut Turn<'_>) -> Pumped {
        self.deadlines.clear(kind);
        let end = match kind {
            DeadlineKind::WriteStall => Some(CloseReason::WriteTimeout),
            DeadlineKind::Linger => Some(CloseReason::Done),
            // Before the end of the handshake no response can be sent.
            DeadlineKind::Header if self.channel.transport().is_handshaking() => {
                Some(CloseReason::RequestTimeout)
            }
            DeadlineKind::Header
            | DeadlineKind::Body
            | DeadlineKind::Request
            | DeadlineKind::Idle => {
                let lent = &mut self.channel.lend(turn);
                self.protocol.handle_deadline(kind, lent)
            }
        };
        self.debug_check();
        end.map_or(Pumped::Again, Pumped::Closed)
    }

    /// Ends the connection's dealings with others: its job is cancelled, its buffers return to the
    /// pool. The caller closes the socket.
    pub fn abandon(&mut self, reason: CloseReason, turn: &mut Turn<'_>) -> Pumped {
        self.protocol.abandon(reason.cancels_as(), turn);
        self.channel.abandon(reason, turn);
        Pumped::Closed(reason)
    }

    // ---- the pump ----

    /// Advances the connection as far as its budget and the socket allow: read, protocol,
    /// application, output queue, write.
    pub fn pump<S: System<Socket = K>>(
        &mut self,
        system: &mut S,
        scratch: &mut [u8],
        turn: &mut Turn<'_>,
    ) -> Pumped {
        let exchanges = self.protocol.exchanges();
        let (was_proxied, was_handshaking) = self.opening();
        let advanced = self.advance(system, scratch, turn);
        self.channel.note_used(turn.budget.used());
        match advanced {
            Ok(pumped) => {
                let (is_proxied, is_handshaking) = self.opening();
                let is_introduced = was_proxied && !is_proxied;
                let has_shaken_hands = was_handshaking && !is_handshaking;
                if self.protocol.exchanges() != exchanges || has_shaken_hands || is_introduced {
                    // They belonged to an earlier request, the handshake or the proxy; the present
                    // request has its own.
                    self.clear_waiting_deadlines();
                }
                self.set_deadlines(turn);
                self.debug_check();
                if cfg!(debug_assertions) {
                    self.check_rest(pumped, &turn.marks);
                }
                pumped
            }
            Err(reason) => Pumped::Closed(reason),
        }
    }

    /// Returns whether a proxy's header is still incomplete, and whether a handshake is.
    fn opening(&self) -> (bool, bool) {
        let transport = self.channel.transport();
        (transport.awaits_proxy(), transport.is_handshaking())
    }

    /// Each phase does what it can. A phase that has ended hands over to the next in the same pump.
    fn advance<S: System<Socket = K>>(
        &mut self,
        system: &mut S,
        scratch: &mut [u8],
        turn: &mut Turn<'_>,
    ) -> Result<Pumped, CloseReason> {
        loop {
            let rested = match self.phase {
                Phase::Open => self.serve(system, scratch, turn)?,
                Phase::Closing => self.finish(system, turn)?,
                Phase::Lingering { .. } => Some(self.discard(system, scratch)?),
            };
            if let Some(pumped) = rested {
                return Ok(pumped);
            }
        }
    }

    /// Phase `Open`. `None`: the last response is in the output queue.
    fn serve<S: System<Socket = K>>(
        &mut self,
        system: &mut S,
        scratch: &mut [u8],
        turn: &mut Turn<'_>,
    ) -> Result<Option<Pumped>, CloseReason> {
        self.check_not_broken()?;
        // Output that the last pump left; not that of an event since, which no write has met.
        let has_waited = self.deadlines.is_set(DeadlineKind::WriteStall);
        if has_waited {
            self.hold_back(has_waited, turn)?;
        }
        let next = self.receive(system, scratch, turn)?;
        let must_poll_again = self.poll(turn);
        if self.protocol.waiting() == Waiting::Over {
            self.channel.release_input(turn.pool);
            self.phase = Phase::Closing;
            return Ok(None);
        }
        let had_room = self.channel.has_drained(&turn.marks);
        self.flush(system, turn)?;
        if self.channel.has_output() || has_waited {
            self.hold_back(has_waited, turn)?;
        }
        // The write may have made the room for which reading or producing had stopped.
        let may_produce = must_poll_again || !had_room && self.channel.has_drained(&turn.marks);
        let may_read = self.wants_to_read(&turn.marks) && self.has_input();
        Ok(Some(match next {
            Pumped::Waiting if may_produce || may_read => Pumped::Again,
            _ => next,
        }))
    }

    /// Phase `Closing`. `None`: everything is written, and our FIN after it.
    fn finish<S: System<Socket = K>>(
        &mut self,
        system: &mut S,
        turn: &mut Turn<'_>,
    ) -> Result<Option<Pumped>, CloseReason> {
        self.check_not_broken()?;
        self.flush(system, turn)?;
        if !self.channel.has_output() && self.channel.close_transport(turn.pool) {
            self.flush(system, turn)?;
        }
        if self.channel.has_output() {
            return Ok(Some(Pumped::Waiting));
        }
        // An error means that the peer has reset the connection, and there is no reason to linger.
        self.channel
            .shut_down(system)
            .map_err(|_| CloseReason::Done)?;
        self.phase = Phase::Lingering { discarded_bytes: 0 };
        self.deadlines.clear_all();
        self.deadlines
            .set(DeadlineKind::Linger, turn.now + limits::LINGER_TIMEOUT);
        Ok(None)
    }

    /// Phase `Lingering`: reads and drops bytes until the peer's FIN, within bounds.
    fn discard<S: System<Socket = K>>(
        &mut self,
        system: &mut S,
        scratch: &mut [u8],
    ) -> Result<Pumped, CloseReason> {
        let Phase::Lingering { discarded_bytes } = &mut self.phase else {
            return Ok(Pumped::Waiting);
        };
        for _ in 0..limits::READS_PER_PUMP_MAX {
            if !self.channel.is_readable() {
                return Ok(Pumped::Waiting);
            }
            let count = self.channel.discard(system, scratch)?;
            *discarded_bytes = discarded_bytes.saturating_add(count as u32);
            if *discarded_bytes > limits::LINGER_BYTES_MAX {
                return Err(CloseReason::Done);
            }
        }
        Ok(Pumped::Again)
    }

    /// Returns an error if both directions are gone, or an error is pending: queued output will not
    /// arrive. A lingering connection reads on, because two FINs look like a hang-up as well, and
    /// closing with unread bytes would reset the connection and destroy our response.
    fn check_not_broken(&self) -> Result<(), CloseReason> {
        match self.channel.is_hung_up() {
            true => Err(CloseReason::Reset),
            false => Ok(()),
        }
    }

    // ---- input ----

    /// Reads and handles requests, within its counts and its time.
    fn receive<S: System<Socket = K>>(
        &mut self,
        system: &mut S,
        scratch: &mut [u8],
        turn: &mut Turn<'_>,
    ) -> Result<Pumped, CloseReason> {
        for _ in 0..limits::READS_PER_PUMP_MAX {
            if !self.wants_to_read(&turn.marks) {
                return Ok(Pumped::Waiting);
            }
            if self.holds_unseen_bytes() {
                self.handle_held_bytes(0, turn);
            } else {
                match self.channel.read(system, scratch, turn)? {
                    Read::Blocked => return Ok(Pumped::Waiting),
                    Read::Deferred => return Ok(Pumped::Deferred),
                    Read::End => {
                        self.handle_end_of_input(turn)?;
                        return Ok(Pumped::Waiting);
                    }
                    Read::Arrived(arrived) => self.handle_arrival(arrived, scratch, turn)?,
                }
            }
            if self.holds_unseen_bytes() {
                // Its share of requests is used up, its time or its room; `serve` sees the rest.
                return Ok(Pumped::Waiting);
            }
            if self.channel.has_input() && turn.budget.is_spent() {
                break;
            }
        }
        Ok(Pumped::Again)
    }

    /// Handles bytes that were read, which may be TLS's.
    fn handle_arrival(
        &mut self,
        arrived: Arrived,
        scratch: &mut [u8],
        turn: &mut Turn<'_>,
    ) -> Result<(), CloseReason> {
        match arrived {
            Arrived::Input { place, is_open } => {
                if is_open {
                    let agreed = self.channel.transport().protocol();
                    self.protocol.handle_alpn(agreed, turn.now);
                }
                if !place.is_empty() {
                    self.handle_bytes(&mut scratch[place], turn);
                }
            }
            Arrived::Failed => {
                // Neither side can be sure of the other's state any more.
                let reason = CloseReason::Reset.cancels_as();
                self.protocol.abandon(reason, turn);
                self.channel.clear_output(turn.pool);
            }
            Arrived::ClearText => {
                let error = ApiError::new(ErrorCode::MalformedHttp, ONLY_TLS);
                Http1::refuse_connection(error, &mut self.channel.lend(turn));
                self.protocol.abandon(CloseReason::Reset.cancels_as(), turn);
            }
            Arrived::Unanswerable => return Err(CloseReason::Reset),
            Arrived::Crowded => return Err(CloseReason::NetworkLimit),
        }
        Ok(())
    }

    /// Passes bytes to the protocol. Usually all are used up where they were read; only a tail is
    /// copied.
    fn handle_bytes(&mut self, bytes: &mut [u8], turn: &mut Turn<'_>) {
        let fresh = bytes.len();
        if self.channel.holds_input() {
            self.channel.hold(bytes, turn.pool);
            return self.handle_held_bytes(fresh, turn);
        }
        let lent = &mut self.channel.lend(turn);
        let used = self.protocol.handle_input(Input { bytes, fresh }, lent);
        self.channel.note_known(used.is_known);
        if used.consumed < used.keep {
            self.channel
                .hold(&bytes[used.consumed..used.keep], turn.pool);
        }
    }

    fn handle_held_bytes(&mut self, fresh: usize, turn: &mut Turn<'_>) {
        let (bytes, mut lent) = self.channel.lend_held(turn);
        let used = self
            .protocol
            .handle_input(Input { bytes, fresh }, &mut lent);
        self.channel.note_known(used.is_known);
        self.channel.release_used(used, turn.pool);
    }

    /// Handles the peer's FIN, between two requests or in the middle of one. A peer that
    /// half-closed after its requests still waits for its responses.
    fn handle_end_of_input(&mut self, turn: &mut Turn<'_>) -> Result<(), CloseReason> {
        self.channel.handle_end_of_input(turn);
        self.protocol
            .handle_end_of_input(&mut self.channel.lend(turn));
        let is_over = self.protocol.waiting() == Waiting::Over;
        match self.channel.holds_input() {
            _ if !is_over || self.channel.has_output() => Ok(()),
            true => Err(CloseReason::Reset),
            false => Err(CloseReason::Done),
        }
    }

    // ---- output ----

    /// Lets the protocol queue its output. Returns whether it must be polled again.
    fn poll(&mut self, turn: &mut Turn<'_>) -> bool {
        let is_read_closed = self.channel.is_read_closed();
        let lent = &mut self.channel.lend(turn);
        if is_read_closed {
            // The peer's FIN while its request is being served has two meanings that TCP does not
            // distinguish: "that was my last request" and "I am gone". So we send harmless bytes; a
            // vanished peer's kernel rejects them with a reset, and the reset is an edge.
            self.protocol.probe(lent);
        }
        self.protocol.poll(lent)
    }

    /// Writes as much as the kernel takes, and sets the time until which the peer must take more.
    fn flush<S: System<Socket = K>>(
        &mut self,
        system: &mut S,
        turn: &mut Turn<'_>,
    ) -> Result<(), CloseReason> {
        let bytes = self.channel.flush(system, turn)?;
        let kind = DeadlineKind::WriteStall;
        if bytes > 0 && self.deadlines.is_set(kind) {
            let left = self.channel.output().len();
            let timeout = turn.config.limits.write_timeout;
            let until = self.deadlines.get(kind);
            let at = stalls_at(until, Taken { bytes, left }, turn.now, timeout);
            self.deadlines.set(kind, at);
        }
        Ok(())
    }

    /// Decides whether to read on while output waits. With all memory in use, a client that reads
    /// nothing gets no further request served: ten thousand of them would hold 64 KiB each. A
    /// writable edge brings the next pump, which decides again. At the bound, a stranger's
    /// connection ends as soon as its output has to wait; output that has waited before may stay.
    fn hold_back(&mut self, has_waited: bool, turn: &mut Turn<'_>) -> Result<(), CloseReason> {
        let claim = Claim::of(!self.is_stranger());
        let is_held_back = self.channel.has_output() && !turn.buffered.admits(claim);
        if is_held_back && !self.channel.is_held_back() {
            turn.metrics.held_back.get(claim).inc();
        }
        self.channel.hold_back(is_held_back);
        let is_new = is_held_back && !has_waited && self.is_stranger();
        match is_new && !turn.buffered.admits(Claim::Keyed) {
            true => Err(CloseReason::Evicted),
            false => Ok(()),
        }
    }
}

const ONLY_TLS: &str = "this address accepts only TLS; use https://";
