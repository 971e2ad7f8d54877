//! One socket, and the bytes on their way in and out of it.
//!
//! Owns the socket, what the kernel has said about it, TLS or what stands in its place, the input
//! that is not used up, and the output that is not written. It knows no protocol and no deadline:
//! [`super::connection`] decides when to read, when to write and when to end.
//!
//! ```text
//!              read                        hand over
//!   socket ------------> transport ----> [ inbound ] ----> the protocol
//!          <------------           <---- [ output  ] <----
//!              flush                       lend
//! ```
//!
//! Invariants:
//!  1. One place reads the socket for a protocol (`read`), one reads bytes away (`discard`), and
//!     one writes (`write`). Each is one system call.
//!  2. A direction is tried only while its ready bit is set, and the bit is cleared only by
//!     `WouldBlock` or a short transfer: so no edge is lost.
//!  3. An idle channel holds no buffer: `inbound` and `output` go back to the pool when empty.
//!  4. Under TLS the same rules hold for the same bits: what is read is ciphertext, all plaintext
//!     of a read is handed on at once, and what was encrypted is output until it is written.

use std::io::{self, IoSlice};

use super::close_reason::CloseReason;
use super::context::{Lent, Turn};
use super::machine::Used;
use super::system::{Edge, System};
use super::transport::{Arrived, Transport};
use crate::config::Opening;
use crate::core::output::{Level, Marks, OutputQueue};
use crate::core::pool::BufferPool;
use crate::core::readiness::Readiness;
use crate::limits::core as core_limits;
use crate::service::Peer;

pub struct Channel<K> {
    socket: K,
    peer: Peer,
    /// The peer has sent a valid key, or had a job run.
    is_known: bool,
    readiness: Readiness,
    transport: Transport,
    /// Bytes that arrived and are not used up: the tail of an incomplete request, or requests that
    /// wait for the one before them. No allocation while empty.
    inbound: Vec<u8>,
    output: OutputQueue,
}

/// What one look for input has brought.
pub enum Read {
    /// Nothing until the next edge.
    Blocked,
    /// The next bytes may cost a handshake step, and this turn's are used up.
    Deferred,
    /// The peer's FIN, or TLS's word for it.
    End,
    Arrived(Arrived),
}

impl<K> Channel<K> {
    pub fn new(socket: K, peer: Peer, opening: Opening) -> Channel<K> {
        Channel {
            socket,
            peer,
            is_known: false,
            readiness: Readiness::new(),
            transport: Transport::new(opening),
            inbound: Vec::new(),
            output: OutputQueue::new(),
        }
    }

    // ---- getters ----

    #[cfg(test)]
    pub fn socket(&self) -> &K {
        &self.socket
    }

    pub fn into_socket(self) -> K {
        self.socket
    }

    pub fn transport(&self) -> &Transport {
        &self.transport
    }

    pub fn is_known(&self) -> bool {
        self.is_known
    }

    /// What waits to be written and is not encrypted yet.
    pub fn output(&self) -> &OutputQueue {
        &self.output
    }

    /// Whether anything waits to be written, encrypted or not yet.
    pub fn has_output(&self) -> bool {
        !self.output.is_empty() || self.transport.wants_write()
    }

    /// Whether bytes wait that the protocol did not use up.
    pub fn holds_input(&self) -> bool {
        !self.inbound.is_empty()
    }

    /// Whether a read may bring something, as far as the kernel has said.
    pub fn is_readable(&self) -> bool {
        self.readiness.can_read()
    }

    pub fn is_writable(&self) -> bool {
        self.readiness.can_write()
    }

    /// Whether [`Channel::read`] may bring something: TLS's word for the end does, without a read.
    pub fn has_input(&self) -> bool {
        self.readiness.can_read() || self.transport.input_is_over()
    }

    /// The peer has sent its FIN; bytes before it may still wait to be read.
    pub fn is_read_closed(&self) -> bool {
        self.readiness.is_read_closed()
    }

    pub fn is_hung_up(&self) -> bool {
        self.readiness.is_hung_up()
    }

    /// Whether what was held back for lack of room may be produced.
    pub fn has_drained(&self, marks: &Marks) -> bool {
        self.output.level(marks) == Level::Low
    }

    // ---- lending ----

    /// What a protocol gets to work with.
    pub fn lend<'a, 't>(&'a mut self, turn: &'a mut Turn<'t>) -> Lent<'a, 't> {
        Lent {
            peer: &self.peer,
            output: &mut self.output,
            turn,
        }
    }

    /// The same, with the input that is held.
    pub fn lend_held<'a, 't>(
        &'a mut self,
        turn: &'a mut Turn<'t>,
    ) -> (&'a mut Vec<u8>, Lent<'a, 't>) {
        let lent = Lent {
            peer: &self.peer,
            output: &mut self.output,
            turn,
        };
        (&mut self.inbound, lent)
    }

    // ---- input ----

    /// Remembers an edge. No I/O: that is for the connection's turn.
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

    /// Looks for input: one `read(2)` at most, into the scratch buffer.
    pub fn read<S: System<Socket = K>>(
        &mut self,
        system: &mut S,
        scratch: &mut [u8],
        turn: &mut Turn<'_>,
    ) -> Result<Read, CloseReason> {
        if self.transport.refuses(&self.peer, turn) {
            return Err(CloseReason::Reset);
        }
        if self.transport.input_is_over() {
            return Ok(Read::End);
        }
        if !self.readiness.can_read() {
            return Ok(Read::Blocked);
        }
        if *turn.handshake_steps == 0 && self.transport.next_read_may_handshake(turn) {
            return Ok(Read::Deferred);
        }
        let room = self.transport.read_bytes(scratch);
        match system.read(&self.socket, &mut scratch[..room]) {
            Ok(0) => Ok(Read::End),
            Ok(length) => {
                if length < room {
                    self.readiness.short_read();
                }
                let transport = &mut self.transport;
                let arrived = transport.handle_input(scratch, length, &mut self.peer, turn);
                Ok(Read::Arrived(arrived))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.readiness.blocked_read();
                Ok(Read::Blocked)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                Ok(Read::Arrived(Arrived::NOTHING))
            }
            Err(_) => Err(CloseReason::Reset),
        }
    }

    /// The peer's FIN was read.
    pub fn handle_end_of_input(&mut self, turn: &Turn<'_>) {
        self.transport.handle_end_of_input(turn.metrics);
    }

    /// Remembers that the peer has sent a valid key, or had a job run.
    pub fn note_known(&mut self, is_known: bool) {
        self.is_known |= is_known;
    }

    /// Keeps bytes that were not used up, behind those that are held already.
    pub fn hold(&mut self, bytes: &[u8], pool: &mut BufferPool) {
        if bytes.is_empty() {
            return;
        }
        if self.inbound.is_empty() {
            self.inbound = pool.take();
        }
        self.inbound.extend_from_slice(bytes);
    }

    /// Forgets the part of the held bytes that was used up.
    pub fn release_used(&mut self, used: Used, pool: &mut BufferPool) {
        self.inbound.truncate(used.keep);
        self.inbound.drain(..used.consumed);
        if self.inbound.is_empty() {
            self.release_input(pool);
        }
    }

    /// Forgets what is held. A buffer that was never taken is not given back.
    pub fn release_input(&mut self, pool: &mut BufferPool) {
        if self.inbound.capacity() != 0 {
            pool.give(std::mem::take(&mut self.inbound));
        }
    }

    /// Reads bytes away with one `read(2)`. Returns how many; 0: none until the next edge.
    pub fn discard<S: System<Socket = K>>(
        &mut self,
        system: &mut S,
        scratch: &mut [u8],
    ) -> Result<usize, CloseReason> {
        loop {
            match system.read(&self.socket, scratch) {
                Ok(0) => return Err(CloseReason::Done),
                Ok(length) => {
                    if length < scratch.len() {
                        self.readiness.short_read();
                    }
                    return Ok(length);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.readiness.blocked_read();
                    return Ok(0);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(CloseReason::Done),
            }
        }
    }

    // ---- output ----

    /// Writes as much of what waits as the kernel takes. Returns how many bytes that was.
    pub fn flush<S: System<Socket = K>>(
        &mut self,
        system: &mut S,
        turn: &mut Turn<'_>,
    ) -> Result<usize, CloseReason> {
        let mut total = 0;
        while self.has_output() && self.readiness.can_write() {
            match self.write(system, turn.pool) {
                // Something waits and cannot be sent: the keys of TLS 1.2 are worn out after some
                // hundred gigabytes, and it has no way to change them.
                Ok(Written { offered: 0, .. }) => return Err(CloseReason::Reset),
                Ok(Written { offered, taken }) => {
                    if taken < offered {
                        self.readiness.blocked_write();
                    }
                    total += taken;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.readiness.blocked_write();
                }
                Err(_) => return Err(CloseReason::Reset),
            }
        }
        match self.output.level(&turn.marks) {
            Level::Low | Level::Normal | Level::High => Ok(total),
            // Credit keeps streams far below this: something produces without asking.
            Level::Hard => Err(CloseReason::WriteTimeout),
        }
    }

    /// The one place that writes, with one call: what waits, or what was made of it by TLS.
    fn write<S: System<Socket = K>>(
        &mut self,
        system: &mut S,
        pool: &mut BufferPool,
    ) -> io::Result<Written> {
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

    // ---- the end ----

    /// Queues TLS's last word behind everything else, once. `true`: there is something to write.
    pub fn close_transport(&mut self, pool: &mut BufferPool) -> bool {
        self.transport.close(pool)
    }

    /// Sends our FIN. An error (`ENOTCONN`) says that the peer has reset the connection already.
    pub fn shut_down<S: System<Socket = K>>(&mut self, system: &mut S) -> io::Result<()> {
        system.shutdown_write(&self.socket)
    }

    /// Before the socket is closed in good order: TLS says so, if the kernel takes it at once.
    pub fn say_goodbye<S: System<Socket = K>>(&mut self, system: &mut S, pool: &mut BufferPool) {
        let can_write = self.readiness.can_write() && !self.readiness.is_hung_up();
        if can_write && !self.has_output() && self.transport.close(pool) {
            // The connection ends either way.
            let _ = self.write(system, pool);
        }
    }

    /// Forgets all output.
    pub fn clear_output(&mut self, pool: &mut BufferPool) {
        self.output.clear(pool);
    }

    /// The connection ends: all buffers go back to the pool.
    pub fn abandon(&mut self, reason: CloseReason, turn: &mut Turn<'_>) {
        self.transport.abandon(reason, turn);
        self.output.clear(turn.pool);
        self.release_input(turn.pool);
    }

    /// Invariant 3, after a turn.
    pub fn check_invariants(&self) {
        assert!(!self.inbound.is_empty() || self.inbound.capacity() == 0);
        assert!(!self.output.is_empty() || !self.output.holds_memory());
        self.output.check_invariants();
    }
}

/// What one call of `write` did.
#[derive(Default)]
struct Written {
    offered: usize,
    taken: usize,
}
