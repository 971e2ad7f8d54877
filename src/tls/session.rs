//! One connection's TLS: ciphertext in, plaintext out, and the other way round.
//!
//! Owns rustls' state of the connection and the queue of ciphertext that waits to be written. It
//! knows no socket and no clock.
//!
//! ```text
//!   Handshaking ----- done ----> Open ---- close_notify of the peer ----> input is over
//!       |                         |                                          |
//!       +---- alert ---> Failed <-+                  ours: nothing is written after it
//! ```
//!
//! Order of calls: [`Session::handle_input`] with each piece that was read; then, as long as the
//! socket takes it, [`Session::handle_output`] and [`Session::write_to`].
//!
//! Invariants:
//!  1. `handle_input` leaves no plaintext behind: what was decrypted has been handed out, so all
//!     that waits inside is the beginning of a record.
//!  2. The ciphertext queue is bounded: `limits::TLS_CIPHERTEXT_BYTES` of records with payload, and
//!     what a handshake or an alert adds, which the peer cannot ask for without end.
//!  3. An idle session holds rustls' own state and its smallest input buffer, no other.

use std::io::{self, IoSlice, Read, Write};

use rustls::{HandshakeKind, ProtocolVersion, ServerConnection};

use super::Acceptor;
use super::files;
use crate::config::ClientIdentity;
use crate::limits;

pub struct Session {
    tls: ServerConnection,
    stage: Stage,
    /// The peer has said that nothing more will come.
    input_is_over: bool,
    said_goodbye: bool,
    /// What is left to write of an alert that is ours and not rustls'.
    alert: &'static [u8],
}

/// RFC 8446, section 6: a fatal `decode_error` in a record without encryption. rustls ends some
/// handshakes whose framing is nonsense without a word, and a silent end looks like a broken
/// network.
const DECODE_ERROR: &[u8] = &[21, 3, 3, 0, 2, 2, 50];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Handshaking,
    Open,
    /// Its alert is in the queue, and no plaintext goes in or out any more.
    Failed,
}

/// What a piece of ciphertext has brought.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// Bytes of plaintext, from the beginning of the buffer.
    pub plaintext: usize,
    /// The handshake has ended well, with this piece.
    pub handshake: Option<Handshake>,
    /// Something dear was done: a key was agreed on, a signature made.
    pub worked: bool,
}

/// How a handshake has ended.
#[derive(Debug, PartialEq, Eq)]
pub struct Handshake {
    pub version: &'static str,
    pub resumed: bool,
    pub client: Option<ClientIdentity>,
}

/// The peer broke the protocol, or cannot be trusted; an alert waits to be written.
#[derive(Debug)]
pub struct Failed {
    pub error: rustls::Error,
    /// Before the handshake had ended.
    pub in_handshake: bool,
}

impl Session {
    pub fn new(acceptor: &Acceptor) -> Result<Box<Session>, rustls::Error> {
        let mut tls = ServerConnection::new(acceptor.config())?;
        tls.set_buffer_limit(Some(limits::TLS_CIPHERTEXT_BYTES));
        Ok(Box::new(Session {
            tls,
            stage: Stage::Handshaking,
            input_is_over: false,
            said_goodbye: false,
            alert: &[],
        }))
    }

    // ---- getters ----

    pub fn is_handshaking(&self) -> bool {
        self.stage == Stage::Handshaking
    }

    pub fn is_open(&self) -> bool {
        self.stage == Stage::Open
    }

    /// The peer has closed its side in good order.
    pub fn input_is_over(&self) -> bool {
        self.input_is_over
    }

    /// Whether ciphertext waits to be written.
    pub fn wants_write(&self) -> bool {
        self.tls.wants_write() || !self.alert.is_empty()
    }

    /// What was agreed on by ALPN.
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

    /// Takes in what was read. `plaintext` must have room for it and for one record more.
    pub fn handle_input(
        &mut self,
        mut ciphertext: &[u8],
        plaintext: &mut [u8],
    ) -> Result<Received, Failed> {
        let mut received = Received::default();
        while !ciphertext.is_empty() && !self.input_is_over && self.stage != Stage::Failed {
            // rustls reads 4 KiB at a time, and more only to join the parts of a record.
            let read = self.tls.read_tls(&mut ciphertext);
            let state = match read {
                Ok(_) => self.tls.process_new_packets(),
                Err(error) => Err(rustls::Error::General(error.to_string())),
            };
            let state = state.map_err(|error| self.fail(error))?;
            received.worked |= self.is_handshaking() && self.tls.wants_write();
            if self.is_handshaking() && !self.tls.is_handshaking() {
                self.stage = Stage::Open;
                received.worked = true;
                received.handshake = Some(self.handshake());
            }
            let length = state.plaintext_bytes_to_read();
            let place = plaintext.get_mut(received.plaintext..received.plaintext + length);
            let taken = place.map_or(Err(io::ErrorKind::OutOfMemory.into()), |place| {
                self.tls.reader().read_exact(place)
            });
            if let Err(error) = taken {
                // Not for want of room, which is the caller's promise.
                debug_assert!(false, "plaintext that cannot be taken: {error}");
                return Err(self.fail(rustls::Error::General(error.to_string())));
            }
            received.plaintext += length;
            self.input_is_over |= state.peer_has_closed();
        }
        self.release();
        Ok(received)
    }

    fn fail(&mut self, error: rustls::Error) -> Failed {
        let in_handshake = self.is_handshaking();
        self.stage = Stage::Failed;
        if !self.tls.wants_write() && self.tls.protocol_version().is_none() {
            self.alert = DECODE_ERROR;
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
            client: certificates.and_then(|chain| files::identity(chain.first()?)),
        }
    }

    /// rustls shrinks its input buffer when it is about to read and nothing waits in it; so it is
    /// made to read, and gets nothing. Without this a session would keep a whole record's room
    /// until it is spoken to again.
    fn release(&mut self) {
        struct Nothing;
        impl Read for Nothing {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::ErrorKind::WouldBlock.into())
            }
        }
        let _ = self.tls.read_tls(&mut Nothing);
    }

    // ---- output ----

    /// Encrypts as much of `plaintext` as the queue has room for. Returns how much that was.
    pub fn handle_output(&mut self, plaintext: &[IoSlice<'_>]) -> usize {
        if self.stage != Stage::Open || self.said_goodbye {
            return 0;
        }
        // It fails only after the session has failed.
        self.tls.writer().write_vectored(plaintext).unwrap_or(0)
    }

    /// Queues the last word (RFC 8446, section 6.1), once. `true`: there is now something to write.
    pub fn close(&mut self) -> bool {
        if self.said_goodbye || self.stage == Stage::Failed {
            return false;
        }
        self.said_goodbye = true;
        self.tls.send_close_notify();
        self.tls.wants_write()
    }

    /// Writes from the front of the queue, with one call of `writer`.
    pub fn write_to(&mut self, writer: &mut dyn Write) -> io::Result<usize> {
        if self.tls.wants_write() {
            return self.tls.write_tls(writer);
        }
        if self.alert.is_empty() {
            return Ok(0);
        }
        let written = writer.write(self.alert)?;
        self.alert = &self.alert[written..];
        Ok(written)
    }
}
