//! One socket with its readiness: the two system calls that move bytes, and what they reveal.
//!
//! Owns the socket and the bits that edges set and calls clear. It knows neither TLS nor a
//! protocol, nor which side opened the connection: a client's [`super::channel`] and a connection
//! of the daemon's own ([`super::outbound`]) are built on it.
//!
//! Invariants:
//!  1. One place reads the socket ([`Endpoint::read`]) and one writes it ([`Endpoint::write`]).
//!     Each is one system call.
//!  2. Only `WouldBlock`, or a short transfer, clears a ready bit: so no edge is lost.

use std::io::{self, IoSlice};

use super::system::{Edge, System};
use crate::core::output::OutputQueue;
use crate::core::pool::BufferPool;
use crate::core::readiness::Readiness;
use crate::limits::core as core_limits;

pub struct Endpoint<K> {
    socket: K,
    readiness: Readiness,
}

/// The result of one `read(2)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// This many bytes, at the front of the buffer.
    Bytes(usize),
    /// The peer's FIN.
    End,
    /// No input until the next edge.
    Blocked,
    /// A signal came first: nothing was read, and nothing is known.
    Interrupted,
}

/// The result of one `write(2)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    pub offered: usize,
    pub taken: usize,
}

impl<K> Endpoint<K> {
    pub fn new(socket: K) -> Endpoint<K> {
        Endpoint {
            socket,
            readiness: Readiness::new(),
        }
    }

    // ---- getters ----

    pub fn socket(&self) -> &K {
        &self.socket
    }

    pub fn into_socket(self) -> K {
        self.socket
    }

    pub fn readiness(&self) -> Readiness {
        self.readiness
    }

    // ---- events ----

    /// Records an edge. No I/O: that is for the connection's turn.
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

    // ---- commands ----

    /// Reads once into `buffer`. The caller asks only while reading is ready.
    pub fn read<S: System<Socket = K>>(
        &mut self,
        system: &mut S,
        buffer: &mut [u8],
    ) -> io::Result<Received> {
        match system.read(&self.socket, buffer) {
            Ok(0) => Ok(Received::End),
            Ok(length) => {
                if length < buffer.len() {
                    self.readiness.short_read();
                }
                Ok(Received::Bytes(length))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.readiness.blocked_read();
                Ok(Received::Blocked)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(Received::Interrupted),
            Err(error) => Err(error),
        }
    }

    /// Writes once from the front of `queue`. The caller asks only while writing is ready.
    pub fn write<S: System<Socket = K>>(
        &mut self,
        system: &mut S,
        queue: &mut OutputQueue,
        pool: &mut BufferPool,
    ) -> io::Result<Written> {
        debug_assert!(self.readiness.can_write(), "a write before its edge");
        let mut slices = [IoSlice::new(&[]); core_limits::OUTPUT_SLICES_MAX];
        let count = queue.io_slices(&mut slices);
        let offered = slices[..count].iter().map(|slice| slice.len()).sum();
        if offered == 0 {
            return Ok(Written::default());
        }
        let taken = match system.write(&self.socket, &slices[..count]) {
            Ok(taken) => taken,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                return Ok(Written { offered, taken: 0 });
            }
            Err(error) => return Err(error),
        };
        if taken < offered {
            self.readiness.blocked_write();
        }
        queue.advance(taken, pool);
        Ok(Written { offered, taken })
    }
}
