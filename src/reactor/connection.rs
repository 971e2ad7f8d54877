//! One connection: a socket, what is on its way in and out, and one pump that moves it along.
//!
//! Owns the socket, the readiness bits, the output queue, the incomplete tail of the input, the
//! deadlines, and the protocol's state. It must never wait, never read a clock, and never touch
//! another connection.
//!
//! ```text
//!             bytes arrive                     answer queued
//!   Open ----------------------> Open ... ---------------------> Closing
//!    |                                                             | output empty: our FIN
//!    | error, reset, hang-up                                       v
//!    +-----------------------------> closed <----------------- Lingering
//!                                            peer's FIN, bound or deadline
//! ```
//!
//! Invariants:
//!  1. One place reads the socket (`receive` and `discard`), one writes it (`write`), one says that
//!     the connection is over (the `Pumped::Closed` that `pump` returns).
//!  2. A direction is tried only while its ready bit is set, and the bit is cleared only by
//!     `WouldBlock` or a short transfer: so no edge is ever lost.
//!  3. Whoever stops early for fairness returns `Pumped::Again`: the bit is still set, no edge will
//!     come, the run queue must.
//!  4. An idle connection holds no buffer: `inbound` and `output` go back to the pool when empty.
//!  5. Idle, header and body deadlines are set once for each request and never moved: neither
//!     dripping bytes nor edges without bytes extend them. None of them runs while it is we who do
//!     not read; nor does the idle one while the answer before is still on its way out.
//!  6. After the peer's FIN no further request begins, and one that it cuts off is over: what was
//!     asked before is answered, and nothing else.
//!  7. Under TLS the same rules hold for the same bits: what is read is ciphertext, all plaintext
//!     of a read is handed on at once, and what was encrypted is output until it is written.

use std::io::{self, IoSlice};

use super::close_reason::CloseReason;
use super::context::{Lent, Turn, Waiting};
use super::http1::Http1;
use super::protocol::Protocol;
use super::system::{Edge, System};
use super::transport::{Arrived, Transport};
use crate::config::Opening;
use crate::core::Moment;
use crate::core::deadlines::{DeadlineKind, Deadlines, Taken, stalls_at};
use crate::core::output::{Level, Marks, OutputQueue};
use crate::core::pool::BufferPool;
use crate::core::readiness::Readiness;
use crate::engine::Event;
use crate::error::{ApiError, ErrorCode};
use crate::limits::core as core_limits;
use crate::limits::reactor as limits;
use crate::offload::CancelReason;
use crate::service::Peer;

pub struct Connection<K> {
    socket: K,
    peer: Peer,
    readiness: Readiness,
    /// A valid key has come, or a job has run.
    is_known: bool,
    phase: Phase,
    deadlines: Deadlines,
    output: OutputQueue,
    /// Bytes that arrived and are not used up: the tail of an incomplete request, or requests that
    /// wait for the one before them. No allocation while empty.
    inbound: Vec<u8>,
    transport: Transport,
    protocol: Protocol,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    /// The last answer is in the output queue; what still arrives is not read as a request.
    Closing,
    /// Our FIN is out. Reading on keeps the kernel from answering late bytes with a reset that
    /// would destroy our answer before the peer has read it (RFC 9112, section 9.6).
    Lingering {
        discarded_bytes: u32,
    },
}

/// Of these, the one that runs is that of what the connection waits for.
const WAITING_DEADLINES: [DeadlineKind; 4] = [
    DeadlineKind::Idle,
    DeadlineKind::Header,
    DeadlineKind::Body,
    DeadlineKind::Request,
];

/// What a connection would do next: asked for by the pump and by the simulation alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wants {
    pub read: bool,
    pub write: bool,
}

/// What a pump leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Pumped {
    /// Nothing more can be done until an edge, a completion or a deadline.
    Waiting,
    /// The budget is used up, not the work.
    Again,
    /// A step of a handshake is next, and this turn's are used up.
    Deferred,
    Closed(CloseReason),
}

impl<K> Connection<K> {
    pub fn new(socket: K, peer: Peer, opening: Opening) -> Connection<K> {
        Connection {
            socket,
            peer,
            readiness: Readiness::new(),
            is_known: false,
            phase: Phase::Open,
            deadlines: Deadlines::new(),
            output: OutputQueue::new(),
            inbound: Vec::new(),
            transport: Transport::new(opening),
            protocol: Protocol::new(),
        }
    }

    pub fn deadlines(&self) -> &Deadlines {
        &self.deadlines
    }

    /// What it would do if the kernel let it: see [`crate::core::readiness`]. The peer's bytes are
    /// wanted while no response is under way that they would have to wait for, and while the peer
    /// takes what it is sent: a client that asks and never reads is thereby not read either.
    pub fn wants(&self, marks: &Marks) -> Wants {
        let read = match self.phase {
            Phase::Open => self.protocol.is_receptive() && self.output.level(marks) < Level::High,
            Phase::Closing => false,
            Phase::Lingering { .. } => true,
        };
        let write = self.has_output();
        Wants { read, write }
    }

    #[cfg(test)]
    pub fn socket(&self) -> &K {
        &self.socket
    }

    #[cfg(test)]
    pub fn output_bytes(&self) -> usize {
        self.output.len()
    }

    #[cfg(test)]
    pub fn is_answering(&self) -> bool {
        self.protocol.is_answering()
    }

    pub fn into_socket(self) -> K {
        self.socket
    }

    /// Between two requests: closing now loses nothing.
    pub fn is_idle(&self) -> bool {
        self.phase == Phase::Open
            && self.inbound.is_empty()
            && !self.has_output()
            && !self.transport.is_handshaking()
            && self.protocol.waiting() == Waiting::Request
    }

    /// Whether it has shown neither a valid key nor a job since it came: where there is no place
    /// for a new connection, it is worth less than all but the idle ones.
    pub fn is_stranger(&self) -> bool {
        !self.is_known
    }

    /// Whether anything waits to be written, encrypted or not yet.
    fn has_output(&self) -> bool {
        !self.output.is_empty() || self.transport.wants_write()
    }

    /// Remembers an edge. No I/O: that is the pump's, in its turn.
    pub fn handle_edge(&mut self, edge: &Edge) {
        if edge.readable {
            self.readiness.handle_readable_edge();
        }
        if edge.writable {
            self.readiness.handle_writable_edge();
        }
        if edge.read_closed {
            self.readiness.handle_read_closed();
        }
        if edge.broken {
            self.readiness.handle_hangup();
        }
    }

    /// Whether this request's job still has somebody who waits for it.
    pub fn awaits(&self, request: u32) -> bool {
        self.protocol.awaits(request)
    }

    /// An engine's event for the request that [`Connection::awaits`] it. Bytes of our own making
    /// raise no edge, so a pump has to follow.
    pub fn handle_event(&mut self, request: u32, event: Event, turn: &mut Turn<'_>) -> Pumped {
        self.protocol.handle_event(
            request,
            event,
            &mut Lent {
                peer: &self.peer,
                output: &mut self.output,
                turn,
            },
        );
        Pumped::Again
    }

    /// One of the deadlines has passed, and the last pump has seen all that came before it. The
    /// pump that follows does what it calls for.
    pub fn handle_deadline(&mut self, kind: DeadlineKind, turn: &mut Turn<'_>) -> Pumped {
        self.deadlines.clear(kind);
        match kind {
            // The handshake's, or HTTP/2's preface's: nobody knows in which protocol to answer, and
            // one who hears the wrong one takes us for broken.
            DeadlineKind::Header
                if self.transport.is_handshaking() || self.protocol.is_undecided() =>
            {
                Pumped::Closed(CloseReason::RequestTimeout)
            }
            DeadlineKind::Header | DeadlineKind::Body => {
                self.protocol.handle_late_request(&mut Lent {
                    peer: &self.peer,
                    output: &mut self.output,
                    turn,
                });
                Pumped::Again
            }
            DeadlineKind::Request => {
                self.protocol.handle_deadline(&mut Lent {
                    peer: &self.peer,
                    output: &mut self.output,
                    turn,
                });
                Pumped::Again
            }
            DeadlineKind::Idle if self.protocol.handle_idle(turn) => Pumped::Again,
            DeadlineKind::Idle => Pumped::Closed(CloseReason::Idle),
            DeadlineKind::WriteStall => Pumped::Closed(CloseReason::WriteTimeout),
            DeadlineKind::Linger => Pumped::Closed(CloseReason::Done),
        }
    }

    /// Ends what the connection still has to do with others: its job is cancelled, its buffers go
    /// home. The caller closes the socket.
    pub fn abandon(&mut self, reason: CloseReason, turn: &mut Turn<'_>) -> Pumped {
        self.protocol.abandon(reason.cancels_as(), turn);
        self.transport.abandon(reason, turn);
        self.output.clear(turn.pool);
        self.release_inbound(turn);
        Pumped::Closed(reason)
    }

    /// Before the socket is closed in good order: TLS says so, if the kernel takes it at once.
    pub fn say_goodbye<S>(&mut self, reason: CloseReason, system: &mut S, pool: &mut BufferPool)
    where
        S: System<Socket = K>,
    {
        let in_good_order = matches!(
            reason,
            CloseReason::Done | CloseReason::Idle | CloseReason::Drain
        );
        let can_write = self.readiness.can_write() && !self.readiness.is_hung_up();
        if in_good_order && can_write && !self.has_output() && self.transport.close(pool) {
            // The connection ends either way.
            let _ = self.write(system, pool);
        }
    }

    /// Forgets what was held back; a buffer that was never taken is not given back.
    fn release_inbound(&mut self, turn: &mut Turn<'_>) {
        if self.inbound.capacity() != 0 {
            turn.pool.give(std::mem::take(&mut self.inbound));
        }
    }

    /// Moves the connection along as far as its budget and the sockets allow: read, protocol,
    /// service, output queue, one write.
    pub fn pump<S>(&mut self, system: &mut S, scratch: &mut [u8], turn: &mut Turn<'_>) -> Pumped
    where
        S: System<Socket = K>,
    {
        let exchanges = self.protocol.exchanges();
        let was_handshaking = self.transport.is_handshaking();
        let was_proxied = self.transport.awaits_proxy();
        match self.advance(system, scratch, turn) {
            Ok(pumped) => {
                let has_shaken_hands = was_handshaking && !self.transport.is_handshaking();
                let is_introduced = was_proxied && !self.transport.awaits_proxy();
                if self.protocol.exchanges() != exchanges || has_shaken_hands || is_introduced {
                    // They were an earlier request's, the handshake's or the proxy's; the present
                    // one has its own.
                    self.clear_waiting_deadlines();
                }
                self.set_deadlines(turn);
                pumped
            }
            Err(reason) => Pumped::Closed(reason),
        }
    }

    fn advance<S>(
        &mut self,
        system: &mut S,
        scratch: &mut [u8],
        turn: &mut Turn<'_>,
    ) -> Result<Pumped, CloseReason>
    where
        S: System<Socket = K>,
    {
        // Both FINs hang up as well. What is unread then is still to be read away: closing over it
        // would reset the connection, and with it our answer.
        if self.readiness.is_hung_up() && !matches!(self.phase, Phase::Lingering { .. }) {
            return Err(CloseReason::Reset);
        }
        if self.transport.refuses(&self.peer, turn) {
            return Err(CloseReason::Reset);
        }
        let mut next = Pumped::Waiting;
        if self.phase == Phase::Open {
            next = self.receive(system, scratch, turn)?;
            self.probe_half_closed_peer(turn);
            self.protocol.poll_output(&mut Lent {
                peer: &self.peer,
                output: &mut self.output,
                turn,
            });
            if self.protocol.is_over() {
                self.phase = Phase::Closing;
            }
        }
        self.flush(system, turn)?;
        if self.phase == Phase::Closing && !self.has_output() && self.transport.close(turn.pool) {
            self.flush(system, turn)?;
        }
        if self.phase == Phase::Closing && !self.has_output() {
            self.begin_lingering(system, turn)?;
        }
        if let Phase::Lingering { .. } = self.phase {
            next = self.discard(system, scratch)?;
        }
        // The write may have made room that `receive` stopped for the lack of.
        let may_go_on =
            (self.wants(&turn.marks).read && self.has_input()) || self.protocol.has_output();
        if next == Pumped::Waiting && self.phase == Phase::Open && may_go_on {
            next = Pumped::Again;
        }
        Ok(next)
    }

    /// Whether there are bytes to look at, here or in the kernel.
    fn has_input(&self) -> bool {
        self.readiness.can_read() || self.holds_unseen_bytes() || self.transport.input_is_over()
    }

    /// Bytes of the next request that were held back by the last one.
    fn holds_unseen_bytes(&self) -> bool {
        !self.inbound.is_empty() && self.protocol.waiting() == Waiting::Request
    }

    /// Reads and handles requests, up to its budget.
    fn receive<S>(
        &mut self,
        system: &mut S,
        scratch: &mut [u8],
        turn: &mut Turn<'_>,
    ) -> Result<Pumped, CloseReason>
    where
        S: System<Socket = K>,
    {
        for _ in 0..limits::READS_PER_TURN_MAX {
            if !self.wants(&turn.marks).read {
                self.protocol.handle_pause(turn.now);
                return Ok(Pumped::Waiting);
            }
            if self.holds_unseen_bytes() {
                self.handle_held_bytes(turn);
            } else if self.transport.input_is_over() {
                return self.handle_end_of_input(turn);
            } else if !self.readiness.can_read() {
                return Ok(Pumped::Waiting);
            } else if *turn.handshake_steps == 0 && self.transport.next_is_dear(turn) {
                return Ok(Pumped::Deferred);
            } else {
                let room = self.transport.read_bytes(scratch);
                match system.read(&self.socket, &mut scratch[..room]) {
                    Ok(0) => return self.handle_end_of_input(turn),
                    Ok(length) => {
                        if length < room {
                            self.readiness.short_read();
                        }
                        self.handle_arrival(scratch, length, turn)?;
                    }
                    Err(error) => self.handle_read_error(&error)?,
                }
            }
            if self.phase != Phase::Open || self.holds_unseen_bytes() {
                // Its share of requests is used up, or its room; `advance` sees what is left.
                return Ok(Pumped::Waiting);
            }
        }
        Ok(Pumped::Again)
    }

    /// `length` bytes have been read, which may be TLS's.
    fn handle_arrival(
        &mut self,
        scratch: &mut [u8],
        length: usize,
        turn: &mut Turn<'_>,
    ) -> Result<(), CloseReason> {
        let arrived = self
            .transport
            .handle_input(scratch, length, &mut self.peer, turn);
        match arrived {
            Arrived::Input { place, is_open } => {
                if is_open {
                    self.protocol
                        .handle_alpn(self.transport.protocol(), turn.now);
                }
                if !place.is_empty() {
                    self.handle_bytes(&mut scratch[place], turn);
                }
            }
            Arrived::Failed => {
                // Neither side can be sure any more of what the other one says.
                let reason = CloseReason::Reset.cancels_as();
                self.protocol.abandon(reason, turn);
                self.output.clear(turn.pool);
                self.release_inbound(turn);
                self.phase = Phase::Closing;
            }
            Arrived::ClearText => {
                let error = ApiError::new(ErrorCode::MalformedHttp, ONLY_TLS);
                Http1::new(turn.now).refuse_connection(
                    error,
                    &mut Lent {
                        peer: &self.peer,
                        output: &mut self.output,
                        turn,
                    },
                );
                self.phase = Phase::Closing;
            }
            Arrived::Unanswerable => return Err(CloseReason::Reset),
        }
        Ok(())
    }

    /// The usual request is used up where it was read; only a tail is copied.
    fn handle_bytes(&mut self, bytes: &mut [u8], turn: &mut Turn<'_>) {
        self.protocol.handle_arrival(
            bytes.len(),
            &mut Lent {
                peer: &self.peer,
                output: &mut self.output,
                turn,
            },
        );
        if !self.inbound.is_empty() {
            self.inbound.extend_from_slice(bytes);
            return self.handle_held_bytes(turn);
        }
        let used = self.protocol.handle_input(
            bytes,
            &mut Lent {
                peer: &self.peer,
                output: &mut self.output,
                turn,
            },
        );
        self.is_known |= used.is_known;
        if used.consumed < used.keep {
            self.inbound = turn.pool.take();
            self.inbound
                .extend_from_slice(&bytes[used.consumed..used.keep]);
        }
    }

    fn handle_held_bytes(&mut self, turn: &mut Turn<'_>) {
        let held = &mut self.inbound;
        let used = self.protocol.handle_input(
            held,
            &mut Lent {
                peer: &self.peer,
                output: &mut self.output,
                turn,
            },
        );
        self.is_known |= used.is_known;
        held.truncate(used.keep);
        held.drain(..used.consumed);
        if held.is_empty() {
            turn.pool.give(std::mem::take(held));
        }
    }

    /// The peer's FIN, between two requests or in the middle of one.
    fn handle_end_of_input(&mut self, turn: &mut Turn<'_>) -> Result<Pumped, CloseReason> {
        self.transport.handle_end_of_input(turn.metrics);
        if self.protocol.handle_end_of_input(turn) {
            return Ok(Pumped::Waiting);
        }
        if self.has_output() {
            // It half-closed after what it had to say, and still waits for our answers. What it
            // did not finish saying holds its places no longer, and is not called late later on.
            self.protocol.abandon(CancelReason::Disconnect, turn);
            self.release_inbound(turn);
            self.phase = Phase::Closing;
            return Ok(Pumped::Waiting);
        }
        Err(if self.inbound.is_empty() {
            CloseReason::Done
        } else {
            CloseReason::Reset
        })
    }

    fn handle_read_error(&mut self, error: &io::Error) -> Result<(), CloseReason> {
        match error.kind() {
            io::ErrorKind::WouldBlock => self.readiness.blocked_read(),
            io::ErrorKind::Interrupted => {}
            _ => return Err(CloseReason::Reset),
        }
        Ok(())
    }

    /// The peer's FIN while its request is being worked on has two meanings that TCP does not tell
    /// apart: "that was all I had to say" and "I am gone". So we say something harmless; a peer
    /// that is gone answers with a reset, and the reset is an edge.
    fn probe_half_closed_peer(&mut self, turn: &mut Turn<'_>) {
        if self.readiness.is_read_closed() {
            self.protocol.probe(&mut Lent {
                peer: &self.peer,
                output: &mut self.output,
                turn,
            });
        }
    }

    /// Writes as much of what waits as the kernel takes.
    fn flush<S>(&mut self, system: &mut S, turn: &mut Turn<'_>) -> Result<(), CloseReason>
    where
        S: System<Socket = K>,
    {
        while self.has_output() && self.readiness.can_write() {
            match self.write(system, turn.pool) {
                // Something waits and cannot be sent: the keys of TLS 1.2 are worn out after some
                // hundred gigabytes, and it has no way to change them.
                Ok(Written { offered: 0, .. }) => return Err(CloseReason::Reset),
                Ok(Written { offered, taken }) => {
                    if taken < offered {
                        self.readiness.blocked_write();
                    }
                    self.handle_taken(taken, turn);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.readiness.blocked_write();
                }
                Err(_) => return Err(CloseReason::Reset),
            }
        }
        match self.output.level(&turn.marks) {
            Level::Low => self.protocol.handle_room(turn),
            Level::Normal | Level::High => {}
            // Credit keeps streams far below this: something produces without asking.
            Level::Hard => return Err(CloseReason::WriteTimeout),
        }
        Ok(())
    }

    /// The peer has taken some of its output: until when does it have to take more?
    fn handle_taken(&mut self, bytes: usize, turn: &Turn<'_>) {
        let kind = DeadlineKind::WriteStall;
        if self.deadlines.is_set(kind) {
            let left = self.output.len();
            let timeout = turn.config.limits.write_timeout;
            let until = self.deadlines.get(kind);
            let at = stalls_at(until, Taken { bytes, left }, turn.now, timeout);
            self.deadlines.set(kind, at);
        }
    }

    /// The one place that writes, with one call: what waits, or what was made of it by TLS.
    fn write<S>(&mut self, system: &mut S, pool: &mut BufferPool) -> io::Result<Written>
    where
        S: System<Socket = K>,
    {
        let queue = self.transport.queue(&mut self.output, pool);
        let mut slices = [IoSlice::new(&[]); core_limits::OUTPUT_SLICES_MAX];
        let count = queue.io_slices(&mut slices);
        let offered = slices[..count].iter().map(|slice| slice.len()).sum();
        if offered == 0 {
            return Ok(Written::default());
        }
        let taken = system.write(&self.socket, &slices[..count])?;
        queue.advance(taken, pool);
        Ok(Written { offered, taken })
    }

    fn begin_lingering<S>(&mut self, system: &mut S, turn: &mut Turn<'_>) -> Result<(), CloseReason>
    where
        S: System<Socket = K>,
    {
        self.release_inbound(turn);
        // ENOTCONN: the peer has reset it already, and there is nothing to linger for.
        system
            .shutdown_write(&self.socket)
            .map_err(|_| CloseReason::Done)?;
        self.phase = Phase::Lingering { discarded_bytes: 0 };
        self.deadlines.clear_all();
        self.deadlines
            .set(DeadlineKind::Linger, turn.now + limits::LINGER_TIMEOUT);
        Ok(())
    }

    /// Reads and forgets until the peer's FIN, within bounds.
    fn discard<S>(&mut self, system: &mut S, scratch: &mut [u8]) -> Result<Pumped, CloseReason>
    where
        S: System<Socket = K>,
    {
        let Phase::Lingering { discarded_bytes } = &mut self.phase else {
            return Ok(Pumped::Waiting);
        };
        for _ in 0..limits::READS_PER_TURN_MAX {
            if !self.readiness.can_read() {
                return Ok(Pumped::Waiting);
            }
            match system.read(&self.socket, scratch) {
                Ok(0) => return Err(CloseReason::Done),
                Ok(length) => {
                    *discarded_bytes = discarded_bytes.saturating_add(length as u32);
                    if *discarded_bytes > limits::LINGER_BYTES_MAX {
                        return Err(CloseReason::Done);
                    }
                    if length < scratch.len() {
                        self.readiness.short_read();
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.readiness.blocked_read();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(CloseReason::Done),
            }
        }
        Ok(Pumped::Again)
    }

    /// Sets the deadlines of the state that the pump has left the connection in.
    fn set_deadlines(&mut self, turn: &Turn<'_>) {
        if self.has_output() {
            let at = turn.now + turn.config.limits.write_timeout;
            self.deadlines.set_if_unset(DeadlineKind::WriteStall, at);
        } else {
            self.deadlines.clear(DeadlineKind::WriteStall);
        }
        match self.running_deadline(turn) {
            None => self.clear_waiting_deadlines(),
            Some((kind, at)) => {
                let at = match self.deadlines.get(kind) {
                    // Absolute, all but the service's own.
                    set if set != Moment::NEVER && kind != DeadlineKind::Request => set,
                    _ => at,
                };
                self.clear_waiting_deadlines();
                self.deadlines.set(kind, at);
            }
        }
    }

    /// Which of [`WAITING_DEADLINES`] runs, and until when if it begins now.
    fn running_deadline(&self, turn: &Turn<'_>) -> Option<(DeadlineKind, Moment)> {
        if self.phase != Phase::Open {
            return None;
        }
        let (now, limits) = (turn.now, &turn.config.limits);
        if self.transport.is_handshaking() || self.transport.awaits_proxy() {
            return Some((DeadlineKind::Header, now + limits.header_timeout));
        }
        match self.protocol.waiting() {
            Waiting::Answer { until } => Some((DeadlineKind::Request, until)),
            _ if !self.wants(&turn.marks).read => None,
            Waiting::Request if self.has_output() => None,
            Waiting::Request => Some((DeadlineKind::Idle, now + limits.idle_timeout)),
            Waiting::Head => Some((DeadlineKind::Header, now + limits.header_timeout)),
            Waiting::Body => Some((DeadlineKind::Body, now + limits.body_timeout)),
        }
    }

    fn clear_waiting_deadlines(&mut self) {
        for kind in WAITING_DEADLINES {
            self.deadlines.clear(kind);
        }
    }
}

/// What one call of `write` did.
#[derive(Default)]
struct Written {
    offered: usize,
    taken: usize,
}

const ONLY_TLS: &str = "only TLS is spoken on this address: use https://";
