//! One connection's TLS: ciphertext in, plaintext out, and the other way round. The same for a
//! client's connection and for one of the daemon's own; [`Side`] is the difference.
//!
//! Owns rustls' state of the connection, the beginning of an incomplete record, and the queue of
//! ciphertext that waits to be written. It knows no socket and no clock.
//!
//! ```text
//!   Handshaking ----- done ----> Open { read, write }
//!       |                          |      |     |
//!       |                          |      |     our close_notify: nothing is written after it
//!       |                          |      close_notify of the peer: its input is over
//!       +---- alert ---> Failed <--+
//! ```
//!
//! Call order: [`Session::handle_input`] with each piece that was read; then, as long as the socket
//! takes it, [`Session::handle_output`], and the contents of [`Session::queue`] are written.
//!
//! Invariants:
//!  1. `handle_input` leaves no plaintext behind: all decrypted bytes have been passed on, so only
//!     the beginning of a record, or of a handshake message, waits inside.
//!  2. Both queues are bounded: `limits::PARTIAL_BYTES_MAX` of input;
//!     `limits::CIPHERTEXT_BYTES_MAX` of output, and one record more. Handshake messages and alerts
//!     come on top, and the peer can cause only a few of them.
//!  3. An idle session holds rustls' own state and no buffer.
//!  4. After the peer's close_notify no input is kept.
//!
//! [`Session::check_invariants`] checks 2 to 4 under debug assertions, after each public change.
//!
//! Mutations that the tests catch: `partial` not cleared after close_notify
//! (`a_session_runs_from_hello_to_goodbye`), a buffer kept while empty (`pieces_do_not_matter`), no
//! bound in `handle_output` (`what_waits_to_be_written_is_bounded`).
//!
//! # Why rustls' unbuffered interface
//!
//! `ServerConnection` keeps 4 KiB for its next read, for ever: half of what an idle connection
//! would cost. `UnbufferedServerConnection` works on its caller's bytes, which here are the
//! reactor's scratch buffer. rustls' next version replaces it by a buffered one whose input buffer
//! belongs to its caller (rustls #2905, #2940). That is the same under another name, and only this
//! file will change.

use std::io::IoSlice;

use bytes::Bytes;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus, WriteTraffic,
};
use rustls::{Error, HandshakeKind, ProtocolVersion};

use super::Acceptor;
use super::files;
use super::side::Side;
use crate::config::ClientIdentity;
use crate::core::output::OutputQueue;
use crate::core::pool::BufferPool;
use crate::limits::core as core_limits;
use crate::limits::tls as limits;

pub struct Session<S = UnbufferedServerConnection> {
    tls: S,
    stage: Stage,
    /// Ciphertext that cannot be decrypted yet: an incomplete record. No allocation while empty.
    partial: Vec<u8>,
    queue: OutputQueue,
}

/// RFC 8446, section 6: a fatal `decode_error` in a record without encryption. rustls ends some
/// handshakes with invalid framing without an alert, and a silent end looks like a broken network.
const DECODE_ERROR: &[u8] = &[21, 3, 3, 0, 2, 2, 50];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// `read` is closed if the peer gives up before the end of the handshake.
    Handshaking {
        read: Direction,
    },
    Open {
        read: Direction,
        write: Direction,
    },
    /// Its alert is in the queue, and no plaintext goes in or out any more.
    Failed {
        read: Direction,
    },
}

/// One direction of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Open,
    /// close_notify was the last word: the peer's, or ours.
    Closed,
}

impl Stage {
    fn read(&mut self) -> &mut Direction {
        match self {
            Stage::Handshaking { read } | Stage::Open { read, .. } | Stage::Failed { read } => read,
        }
    }
}

/// The result of a piece of ciphertext.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// Bytes of plaintext, from the beginning of the buffer.
    pub plaintext: usize,
    /// The handshake that has succeeded with this piece.
    pub handshake: Option<Handshake>,
    /// Whether expensive work was done: a key was agreed on, a signature made.
    pub worked: bool,
}

/// The result of a handshake.
#[derive(Debug, PartialEq, Eq)]
pub struct Handshake {
    pub version: &'static str,
    pub resumed: bool,
    pub client: Option<ClientIdentity>,
}

/// The peer broke the protocol, or cannot be trusted; an alert waits to be written.
#[derive(Debug)]
pub struct Failed {
    pub error: Error,
    /// Whether it was before the end of the handshake.
    pub in_handshake: bool,
}

impl Session {
    /// Creates the server's side of a session.
    pub fn new(acceptor: &Acceptor) -> Result<Box<Session>, Error> {
        let tls = UnbufferedServerConnection::new(acceptor.config())?;
        Ok(Box::new(Session::of(tls)))
    }
}

impl<S: Side> Session<S> {
    pub(super) fn of(tls: S) -> Session<S> {
        let read = Direction::Open;
        Session {
            tls,
            stage: Stage::Handshaking { read },
            partial: Vec::new(),
            queue: OutputQueue::new(),
        }
    }

    // ---- getters ----

    pub fn is_handshaking(&self) -> bool {
        matches!(self.stage, Stage::Handshaking { .. })
    }

    pub fn is_open(&self) -> bool {
        matches!(self.stage, Stage::Open { .. })
    }

    /// Returns whether the peer has sent its close_notify.
    pub fn input_is_over(&self) -> bool {
        let mut stage = self.stage;
        *stage.read() == Direction::Closed
    }

    /// Returns whether plaintext can still be encrypted.
    fn can_write(&self) -> bool {
        matches!(
            self.stage,
            Stage::Open {
                write: Direction::Open,
                ..
            }
        )
    }

    /// Returns the ciphertext that waits to be written.
    pub fn queue(&self) -> &OutputQueue {
        &self.queue
    }

    /// Returns the same for writing it.
    pub fn queue_mut(&mut self) -> &mut OutputQueue {
        &mut self.queue
    }

    /// Returns the protocol that ALPN has agreed on.
    pub fn protocol(&self) -> Option<&[u8]> {
        self.tls.alpn_protocol()
    }

    pub fn version(&self) -> &'static str {
        match self.tls.protocol_version() {
            Some(ProtocolVersion::TLSv1_2) => "1.2",
            Some(ProtocolVersion::TLSv1_3) => "1.3",
            _ => "none",
        }
    }

    // ---- input ----

    /// Takes bytes that were read. `plaintext` must have room for them and for one record more.
    pub fn handle_input(
        &mut self,
        ciphertext: &mut [u8],
        plaintext: &mut [u8],
        pool: &mut BufferPool,
    ) -> Result<Received, Failed> {
        let mut received = Received::default();
        let mut partial = std::mem::take(&mut self.partial);
        let result = if partial.is_empty() {
            // Usually records are whole, and are decrypted where they were read.
            let result = self.process(ciphertext, plaintext, &mut received, pool);
            if let Ok(used) = result
                && used < ciphertext.len()
            {
                partial = pool.take();
                partial.extend_from_slice(&ciphertext[used..]);
            }
            result
        } else {
            partial.extend_from_slice(ciphertext);
            let result = self.process(&mut partial, plaintext, &mut received, pool);
            partial.drain(..result.as_ref().map_or(partial.len(), |used| *used));
            result
        };
        let too_much = partial.len() > limits::PARTIAL_BYTES_MAX;
        if self.input_is_over() || too_much {
            partial.clear();
        }
        match partial.is_empty() {
            true if partial.capacity() != 0 => pool.give(partial),
            _ => self.partial = partial,
        }
        let result = match result {
            Ok(_) if too_much => Err(Error::General("a message without end".to_owned())),
            result => result,
        };
        let result = match result {
            Ok(_) => Ok(received),
            Err(error) => Err(self.fail(error, pool)),
        };
        self.check_invariants();
        result
    }

    /// Processes all whole records; returns how many bytes are used up.
    fn process(
        &mut self,
        ciphertext: &mut [u8],
        plaintext: &mut [u8],
        received: &mut Received,
        pool: &mut BufferPool,
    ) -> Result<usize, Error> {
        if self.is_handshaking() {
            S::prepare(ciphertext);
        }
        let mut used = 0;
        loop {
            let status = self.tls.process(&mut ciphertext[used..]);
            let UnbufferedStatus { discard, state } = status;
            used += discard;
            match state? {
                ConnectionState::ReadTraffic(mut records) => {
                    while let Some(record) = records.next_record() {
                        let record = record?;
                        let start = received.plaintext;
                        received.plaintext += record.payload.len();
                        // The caller has promised the room; a bug must not become a panic.
                        plaintext
                            .get_mut(start..received.plaintext)
                            .ok_or_else(|| Error::General("no room for plaintext".to_owned()))?
                            .copy_from_slice(record.payload);
                        used += record.discard;
                    }
                }
                ConnectionState::EncodeTlsData(message) => {
                    received.worked |= matches!(self.stage, Stage::Handshaking { .. });
                    encode(message, &mut self.queue, pool);
                }
                ConnectionState::TransmitTlsData(queued) => queued.done(),
                ConnectionState::PeerClosed => *self.stage.read() = Direction::Closed,
                // Early data is not offered, so clients that rustls accepts do not send it.
                ConnectionState::BlockedHandshake
                | ConnectionState::WriteTraffic(_)
                | ConnectionState::Closed
                | ConnectionState::ReadEarlyData(_)
                | _ => break,
            }
        }
        if let Stage::Handshaking { read } = self.stage
            && !self.tls.is_handshaking()
        {
            let write = Direction::Open;
            self.stage = Stage::Open { read, write };
            received.worked = true;
            received.handshake = Some(self.handshake());
        }
        Ok(used)
    }

    fn fail(&mut self, error: Error, pool: &mut BufferPool) -> Failed {
        let in_handshake = self.is_handshaking();
        let read = *self.stage.read();
        self.stage = Stage::Failed { read };
        let waited = self.queue.len();
        // Only while a message waits: any other call would read input that is gone.
        while self.tls.wants_write() {
            match self.tls.process(&mut []).state {
                Ok(ConnectionState::EncodeTlsData(alert)) => {
                    encode(alert, &mut self.queue, pool);
                }
                // Plaintext before the error, which is dropped.
                Ok(ConnectionState::ReadTraffic(mut records)) => {
                    while records.next_record().is_some() {}
                }
                _ => break,
            }
        }
        if self.queue.len() == waited && self.tls.protocol_version().is_none() {
            self.queue
                .push_bytes(Bytes::from_static(DECODE_ERROR), pool);
        }
        Failed {
            error,
            in_handshake,
        }
    }

    fn handshake(&self) -> Handshake {
        let certificates = self.tls.peer_certificates();
        Handshake {
            version: self.version(),
            resumed: self.tls.handshake_kind() == Some(HandshakeKind::Resumed),
            client: match S::IDENTIFIES_ITS_PEER {
                true => certificates.and_then(|chain| files::identity(chain.first()?)),
                false => None,
            },
        }
    }

    // ---- output ----

    /// Encrypts as much of `plaintext` as the queue has room for. Returns how much that was.
    pub fn handle_output(&mut self, plaintext: &[IoSlice<'_>], pool: &mut BufferPool) -> usize {
        if !self.can_write() {
            return 0;
        }
        let waited = self.queue.len();
        let taken = self.write_traffic(pool, |traffic, queue, pool| {
            let mut taken = 0;
            for mut slice in plaintext.iter().map(|slice| &slice[..]) {
                while !slice.is_empty() && queue.len() < limits::CIPHERTEXT_BYTES_MAX {
                    let length = slice.len().min(limits::RECORD_PLAINTEXT_BYTES_MAX);
                    let (record, rest) = slice.split_at(length);
                    let made = seal(record.len(), queue, pool, |out| {
                        traffic.encrypt(record, out)
                    });
                    if !made {
                        return taken;
                    }
                    taken += length;
                    slice = rest;
                }
            }
            taken
        });
        // Invariant 2: this is the only place where the queue grows by the caller's will.
        debug_assert!(
            self.queue.len() <= waited.max(limits::CIPHERTEXT_BYTES_MAX) + limits::RECORD_BYTES_MAX,
            "the queue has no bound"
        );
        self.check_invariants();
        taken.unwrap_or(0)
    }

    /// Encrypts as much of `output` as there is room for. Returns what to write next.
    pub fn encrypt(&mut self, output: &mut OutputQueue, pool: &mut BufferPool) -> &mut OutputQueue {
        while !output.is_empty() {
            let mut slices = [IoSlice::new(&[]); core_limits::OUTPUT_SLICES_MAX];
            let count = output.io_slices(&mut slices);
            let taken = self.handle_output(&slices[..count], pool);
            if taken == 0 {
                break;
            }
            output.advance(taken, pool);
        }
        &mut self.queue
    }

    /// Queues close_notify (RFC 8446, section 6.1), once. Returns whether there is something to
    /// write now.
    pub fn close(&mut self, pool: &mut BufferPool) -> bool {
        let Stage::Open {
            read,
            write: Direction::Open,
        } = self.stage
        else {
            return false;
        };
        let write = Direction::Closed;
        self.stage = Stage::Open { read, write };
        let queued = self.write_traffic(pool, |traffic, queue, pool| {
            seal(0, queue, pool, |out| traffic.queue_close_notify(out))
        });
        self.check_invariants();
        queued == Some(true)
    }

    /// Returns the memory of its buffers.
    pub fn buffered_bytes(&self) -> usize {
        self.partial.capacity() + self.queue.memory_bytes()
    }

    /// Returns whether the beginning of a record waits for its rest.
    pub fn is_within_record(&self) -> bool {
        !self.partial.is_empty()
    }

    /// Returns all buffers to the pool.
    pub fn release(&mut self, pool: &mut BufferPool) {
        self.queue.clear(pool);
        if self.partial.capacity() != 0 {
            pool.give(std::mem::take(&mut self.partial));
        }
        self.check_invariants();
    }

    /// Checks invariants 2 to 4 in debug builds; see the head of this file.
    fn check_invariants(&self) {
        debug_assert!(
            self.partial.len() <= limits::PARTIAL_BYTES_MAX,
            "2: {} bytes wait for the rest of a record",
            self.partial.len()
        );
        debug_assert!(
            !self.partial.is_empty() || self.partial.capacity() == 0,
            "3: an empty buffer is kept"
        );
        debug_assert!(
            !self.queue.is_empty() || !self.queue.holds_memory(),
            "3: an empty queue keeps its memory"
        );
        debug_assert!(
            !self.input_is_over() || self.partial.is_empty(),
            "4: input is kept after close_notify"
        );
    }

    /// Lets `act` encrypt; `None` if the session does not write any more.
    fn write_traffic<T>(
        &mut self,
        pool: &mut BufferPool,
        act: impl FnOnce(&mut WriteTraffic<'_, S::Data>, &mut OutputQueue, &mut BufferPool) -> T,
    ) -> Option<T> {
        loop {
            // The same bytes as when they came: rustls remembers its position in them.
            match self.tls.process(&mut self.partial).state {
                Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                    return Some(act(&mut traffic, &mut self.queue, pool));
                }
                Ok(ConnectionState::EncodeTlsData(message)) => {
                    encode(message, &mut self.queue, pool);
                }
                Ok(ConnectionState::TransmitTlsData(queued)) => queued.done(),
                Ok(ConnectionState::PeerClosed) => *self.stage.read() = Direction::Closed,
                _ => return None,
            }
        }
    }
}

/// Queues a message of rustls' own: one of the handshake, or an alert.
fn encode<Data>(
    mut message: EncodeTlsData<'_, Data>,
    queue: &mut OutputQueue,
    pool: &mut BufferPool,
) {
    let Err(EncodeError::InsufficientSize(wanted)) = message.encode(&mut []) else {
        return;
    };
    let tail = queue.tail(pool);
    let start = tail.len();
    tail.resize(start + wanted.required_size, 0);
    let written = message.encode(&mut tail[start..]);
    tail.truncate(start + written.unwrap_or(0));
}

/// Queues one record. Returns `false` if that is impossible because the keys are worn out.
fn seal(
    payload: usize,
    queue: &mut OutputQueue,
    pool: &mut BufferPool,
    mut make: impl FnMut(&mut [u8]) -> Result<usize, EncryptError>,
) -> bool {
    let mut room = payload + limits::RECORD_OVERHEAD_BYTES_MAX;
    loop {
        let is_small = room <= core_limits::OUTPUT_TAIL_ROOM_BYTES;
        let mut own = Vec::new();
        let (place, start) = match is_small {
            true => (queue.tail(pool), None),
            false => (&mut own, Some(0)),
        };
        let start = start.unwrap_or(place.len());
        place.resize(start + room, 0);
        let made = make(&mut place[start..]);
        place.truncate(start + made.as_ref().map_or(0, |written| *written));
        if !own.is_empty() {
            queue.push_bytes(Bytes::from(own), pool);
        }
        match made {
            Ok(_) => return true,
            // A message of rustls' own goes before it; there is one at most.
            Err(EncryptError::InsufficientSize(wanted)) if wanted.required_size > room => {
                room = wanted.required_size;
            }
            Err(_) => {
                queue.release(pool);
                return false;
            }
        }
    }
}

#[cfg(test)]
mod tests;
