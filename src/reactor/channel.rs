//! One socket, and the bytes on their way in and out of it.
//!
//! Owns the endpoint, TLS or its absence, the unused input and the unwritten output. It knows no
//! protocol and no deadline: [`super::connection`] decides when to read, when to write and when to
//! end.
//!
//! ```text
//!              read                        hand over
//!   endpoint ----------> transport ----> [ inbound ] ----> the protocol
//!            <----------           <---- [ output  ] <----
//!              flush                       lend
//! ```
//!
//! Invariants:
//!  1. One place reads for a protocol (`read`), one reads bytes and drops them (`discard`), and one
//!     writes (`write`). Each is one system call, made by the endpoint.
//!  2. A direction is tried only while its ready bit is set.
//!  3. An idle channel holds no buffer: `inbound` and `output` return to the pool when empty.
//!  4. Under TLS the same rules hold for the same bits: the socket's bytes are ciphertext, all
//!     plaintext of a read is passed on at once, and encrypted bytes count as output until they are
//!     written.

use std::io;

use super::close_reason::CloseReason;
use super::context::{Lent, Turn};
use super::endpoint::{Endpoint, Received, Written};
use super::machine::Used;
use super::metrics::Part;
use super::system::{Edge, System};
use super::transport::{Arrived, Transport};
use crate::config::Opening;
use crate::core::budget::Use;
use crate::core::buffered::Claim;
use crate::core::output::{Level, Marks, OutputQueue};
use crate::core::pool::BufferPool;
use crate::service::Peer;

pub struct Channel<K> {
    endpoint: Endpoint<K>,
    peer: Peer,
    transport: Transport,
    /// Bytes that arrived and are not used up: the tail of an incomplete request, or requests that
    /// wait for the previous one. No allocation while empty.
    inbound: Vec<u8>,
    output: OutputQueue,
}

/// The result of one attempt to read.
pub enum Read {
    /// No input until the next edge.
    Blocked,
    /// The next bytes may cost a handshake step, and this turn's are used up.
    Deferred,
    /// The peer's FIN, or TLS's close_notify.
    End,
    Arrived(Arrived),
}

impl<K> Channel<K> {
    pub fn new(socket: K, peer: Peer, opening: Opening) -> Channel<K> {
        Channel {
            endpoint: Endpoint::new(socket),
            peer,
            transport: Transport::new(opening),
            inbound: Vec::new(),
            output: OutputQueue::new(),
        }
    }

    // ---- getters ----

    #[cfg(test)]
    pub fn socket(&self) -> &K {
        self.endpoint.socket()
    }

    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    pub fn into_socket(self) -> K {
        self.endpoint.into_socket()
    }

    pub fn transport(&self) -> &Transport {
        &self.transport
    }

    pub const fn is_greedy(&self) -> bool {
        self.peer.is_greedy
    }

    pub const fn is_held_back(&self) -> bool {
        self.peer.is_held_back
    }

    pub fn is_known(&self) -> bool {
        self.peer.is_known
    }

    /// Returns the output that has not been encrypted yet.
    pub fn output(&self) -> &OutputQueue {
        &self.output
    }

    /// Returns whether anything waits to be written, encrypted or not.
    pub fn has_output(&self) -> bool {
        !self.output.is_empty() || self.transport.wants_write()
    }

    /// Returns the memory of its input and its output.
    pub fn buffered_bytes(&self) -> usize {
        let queues = self.inbound.capacity() + self.output.memory_bytes();
        queues + self.transport.buffered_bytes()
    }

    /// Returns whether it holds bytes that the protocol has not used up.
    pub fn holds_input(&self) -> bool {
        !self.inbound.is_empty()
    }

    /// Returns whether a read may return something, as far as the kernel has reported.
    pub fn is_readable(&self) -> bool {
        self.endpoint.readiness().can_read()
    }

    pub fn is_writable(&self) -> bool {
        self.endpoint.readiness().can_write()
    }

    /// Returns whether [`Channel::read`] may return something: a close_notify does so without a
    /// read.
    pub fn has_input(&self) -> bool {
        self.endpoint.readiness().can_read() || self.transport.input_is_over()
    }

    /// Returns whether the peer has sent its FIN; bytes before it may still wait to be read.
    pub fn is_read_closed(&self) -> bool {
        self.endpoint.readiness().is_read_closed()
    }

    pub fn is_hung_up(&self) -> bool {
        self.endpoint.readiness().is_hung_up()
    }

    /// Returns whether output that was held back for lack of room may now be produced.
    pub fn has_drained(&self, marks: &Marks) -> bool {
        self.output.level(marks) == Level::Low
    }

    // ---- lending ----

    /// Lends a protocol what it needs.
    pub fn lend<'a, 't>(&'a mut self, turn: &'a mut Turn<'t>) -> Lent<'a, 't> {
        Lent {
            peer: &self.peer,
            output: &mut self.output,
            turn,
        }
    }

    /// Like `lend`, with the held input.
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

    /// Records an edge. No I/O: that is for the connection's turn.
    pub fn handle_edge(&mut self, edge: &Edge) {
        self.endpoint.handle_edge(edge);
    }

    /// Tries to read: one `read(2)` at most, into the scratch buffer.
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
        if !self.endpoint.readiness().can_read() {
            return Ok(Read::Blocked);
        }
        if *turn.handshake_steps == 0 && self.transport.next_read_may_handshake(turn) {
            return Ok(Read::Deferred);
        }
        let room = self.transport.read_bytes(scratch);
        match self.endpoint.read(system, &mut scratch[..room]) {
            Ok(Received::End) => Ok(Read::End),
            Ok(Received::Bytes(length)) => {
                let transport = &mut self.transport;
                let arrived = transport.handle_input(scratch, length, &mut self.peer, turn);
                match self.transport.is_within_record() && !self.may_wait(turn) {
                    true => Err(CloseReason::Evicted),
                    false => Ok(Read::Arrived(arrived)),
                }
            }
            Ok(Received::Blocked) => Ok(Read::Blocked),
            Ok(Received::Interrupted) => Ok(Read::Arrived(Arrived::NOTHING)),
            Err(_) => Err(CloseReason::Reset),
        }
    }

    /// Returns whether the beginning of a TLS record may wait for its rest. A client's first
    /// message often comes in two pieces, before it can show a key, and has as much room as a key.
    fn may_wait(&self, turn: &mut Turn<'_>) -> bool {
        let claim = Claim::of(self.transport.is_handshaking());
        self.peer.is_known || turn.admits(claim, Part::Frame)
    }

    /// Handles the peer's FIN.
    pub fn handle_end_of_input(&mut self, turn: &Turn<'_>) {
        self.transport.handle_end_of_input(turn.metrics);
    }

    /// Records whether the peer has sent a valid key, or had a job run.
    pub fn note_known(&mut self, is_known: bool) {
        self.peer.is_known |= is_known;
    }

    /// Records how much of its time the connection's pump has used.
    pub const fn note_used(&mut self, used: Use) {
        match used {
            Use::OneStep => self.peer.is_greedy = false,
            // One that leaves a little of its time is as greedy as before.
            Use::Steps => {}
            Use::All => self.peer.is_greedy = true,
        }
    }

    /// Records whether it is read although its output waits.
    pub const fn hold_back(&mut self, is_held_back: bool) {
        self.peer.is_held_back = is_held_back;
    }

    /// Keeps unused bytes, after those that are held already.
    pub fn hold(&mut self, bytes: &[u8], pool: &mut BufferPool) {
        if bytes.is_empty() {
            return;
        }
        if self.inbound.is_empty() {
            self.inbound = pool.take();
        }
        self.inbound.extend_from_slice(bytes);
    }

    /// Drops the held bytes that were used up.
    pub fn release_used(&mut self, used: Used, pool: &mut BufferPool) {
        self.inbound.truncate(used.keep);
        self.inbound.drain(..used.consumed);
        if self.inbound.is_empty() {
            self.release_input(pool);
        }
    }

    /// Drops the held bytes. A buffer that was never taken is not returned.
    pub fn release_input(&mut self, pool: &mut BufferPool) {
        if self.inbound.capacity() != 0 {
            pool.give(std::mem::take(&mut self.inbound));
        }
    }

    /// Reads bytes with one `read(2)` and drops them. Returns how many; 0 if none come until the
    /// next edge.
    pub fn discard<S: System<Socket = K>>(
        &mut self,
        system: &mut S,
        scratch: &mut [u8],
    ) -> Result<usize, CloseReason> {
        loop {
            match self.endpoint.read(system, scratch) {
                Ok(Received::Bytes(length)) => return Ok(length),
                Ok(Received::Blocked) => return Ok(0),
                Ok(Received::Interrupted) => {}
                Ok(Received::End) | Err(_) => return Err(CloseReason::Done),
            }
        }
    }

    // ---- output ----

    /// Writes as much of the output as the kernel takes. Returns how many bytes that was.
    pub fn flush<S: System<Socket = K>>(
        &mut self,
        system: &mut S,
        turn: &mut Turn<'_>,
    ) -> Result<usize, CloseReason> {
        let mut total = 0;
        while self.has_output() && self.endpoint.readiness().can_write() {
            match self.write(system, turn.pool) {
                // Output waits that cannot be sent: the keys of TLS 1.2 are worn out after some
                // hundred gigabytes, and it cannot change them.
                Ok(Written { offered: 0, .. }) => return Err(CloseReason::Reset),
                Ok(Written { taken, .. }) => total += taken,
                Err(_) => return Err(CloseReason::Reset),
            }
        }
        match self.output.level(&turn.marks) {
            Level::Low | Level::Normal | Level::High => Ok(total),
            // Credit keeps streams far below this: a producer ignores it.
            Level::Hard => Err(CloseReason::WriteTimeout),
        }
    }

    /// The one place that writes, with one call: the output itself, or its ciphertext.
    fn write<S: System<Socket = K>>(
        &mut self,
        system: &mut S,
        pool: &mut BufferPool,
    ) -> io::Result<Written> {
        let queue = self.transport.queue(&mut self.output, pool);
        self.endpoint.write(system, queue, pool)
    }

    // ---- the end ----

    /// Queues TLS's close_notify after everything else, once. Returns whether there is something to
    /// write.
    pub fn close_transport(&mut self, pool: &mut BufferPool) -> bool {
        self.transport.close(pool)
    }

    /// Sends our FIN. An error (`ENOTCONN`) means that the peer has already reset the connection.
    pub fn shut_down<S: System<Socket = K>>(&mut self, system: &mut S) -> io::Result<()> {
        system.shutdown_write(self.endpoint.socket())
    }

    /// Sends TLS's close_notify before the socket is closed, if the kernel takes it at once.
    pub fn say_goodbye<S: System<Socket = K>>(&mut self, system: &mut S, pool: &mut BufferPool) {
        let can_write =
            self.endpoint.readiness().can_write() && !self.endpoint.readiness().is_hung_up();
        if can_write && !self.has_output() && self.transport.close(pool) {
            // The connection ends either way.
            let _ = self.write(system, pool);
        }
    }

    /// Drops all output.
    pub fn clear_output(&mut self, pool: &mut BufferPool) {
        self.output.clear(pool);
    }

    /// Ends the channel: all buffers return to the pool.
    pub fn abandon(&mut self, reason: CloseReason, turn: &mut Turn<'_>) {
        self.transport.abandon(reason, turn);
        self.output.clear(turn.pool);
        self.release_input(turn.pool);
    }

    /// Checks invariant 3, after a turn.
    pub fn check_invariants(&self) {
        assert!(!self.inbound.is_empty() || self.inbound.capacity() == 0);
        assert!(!self.output.is_empty() || !self.output.holds_memory());
        self.output.check_invariants();
    }
}
