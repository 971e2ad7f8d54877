//! The layer between a socket and its protocol: nothing, or TLS.
//!
//! Owns the decision, made by the first byte (`http::sniff`) and the listener's rule, and the glue
//! to `tls::Session`: the parts of the scratch buffer, and what is counted. It touches no socket:
//! the channel reads and writes for it.
//!
//! ```text
//!                     22, and there are certificates
//!   Undecided(rule) ------------------------------------> Tls(session)
//!         ^
//!         | the header is complete: the peer is the client that it names
//!   Proxied(header, rule) ---- anything else, or a peer that is not trusted: a close
//!
//!   Undecided(rule)
//!         |
//!         +---- any other byte, where clear text is spoken ----> Clear
//!         +---- the wrong one for this listener: a 400, or a close
//! ```
//!
//! Invariants:
//!  1. A decision is final.
//!  2. Every handshake is counted once, by its end: in `handle_input` if input ended it, in
//!     `abandon` if its connection ended first.
//!  3. Input that costs a handshake step is taken only while the turn's steps last; see
//!     [`Transport::next_read_may_handshake`].

use std::ops::Range;
use std::sync::Arc;

use super::client_network;
use super::close_reason::CloseReason;
use super::context::Turn;
use super::metrics::{HandshakeOutcome, ReactorSeries, TlsRefusal};
use crate::config::{Opening, Security};
use crate::core::output::OutputQueue;
use crate::core::pool::BufferPool;
use crate::core::proxy_header::{Origin, ProxyHeader, Refused};
use crate::http::sniff::{Sniffed, sniff};
use crate::limits::reactor as limits;
use crate::limits::tls as tls_limits;
use crate::service::{Peer, PeerAddress};
use crate::tls::{Failed, Handshake, Session};

pub enum Transport {
    /// A header of the PROXY protocol comes first, and then whatever the listener's rule allows.
    Proxied(Box<ProxyHeader>, Security),
    /// No byte has come. The listener's rule decides what may come.
    Undecided(Security),
    Clear,
    Tls(Box<Session>),
}

/// The result of bytes that were read.
pub enum Arrived {
    /// Their plaintext is in this part of the scratch buffer; it may be empty.
    Input {
        place: Range<usize>,
        /// The handshake has ended with them.
        is_open: bool,
    },
    /// The TLS session has failed. Its alert is in the queue; nothing else must be sent.
    Failed,
    /// Clear text on a listener for TLS alone.
    ClearText,
    /// TLS on a listener without it, or no header where a proxy must send one: the sender would
    /// understand no response.
    Unanswerable,
    /// The client that a proxy has named has too many connections.
    Crowded,
}

impl Arrived {
    pub const NOTHING: Arrived = Arrived::Input {
        place: 0..0,
        is_open: false,
    };
}

impl Transport {
    pub fn new(opening: Opening) -> Transport {
        match opening.proxied {
            true => Transport::Proxied(Box::default(), opening.security),
            false => Transport::Undecided(opening.security),
        }
    }

    // ---- getters ----

    pub fn is_handshaking(&self) -> bool {
        matches!(self, Transport::Tls(session) if session.is_handshaking())
    }

    /// Returns whether a proxy's header is still incomplete.
    pub fn awaits_proxy(&self) -> bool {
        matches!(self, Transport::Proxied(..))
    }

    /// Returns whether this peer's header is not trusted, and counts it. Called before a byte of it
    /// is read.
    pub fn refuses(&self, peer: &Peer, turn: &mut Turn<'_>) -> bool {
        if !self.awaits_proxy() {
            return false;
        }
        let is_trusted = match peer.address {
            PeerAddress::Ip(address) => turn.config.server.trusted_proxies.contains(address),
            // The mode of the socket's file decides who may connect.
            PeerAddress::Unix => true,
        };
        if !is_trusted {
            let why = "it is not in server.trusted_proxies";
            note_refused_proxy("untrusted", &why, peer, turn);
        }
        !is_trusted
    }

    /// Returns whether the next read may cost a handshake step.
    pub fn next_read_may_handshake(&self, turn: &Turn<'_>) -> bool {
        match self {
            Transport::Undecided(security) | Transport::Proxied(_, security) => {
                *security != Security::Clear && turn.tls.is_some()
            }
            Transport::Clear => false,
            Transport::Tls(session) => session.is_handshaking(),
        }
    }

    /// Returns how much of the scratch buffer to read into: under TLS, or if TLS is still possible,
    /// the rest is for the plaintext.
    pub fn read_bytes(&self, scratch: &[u8]) -> usize {
        match self {
            Transport::Clear | Transport::Undecided(Security::Clear) => scratch.len(),
            Transport::Proxied(..) | Transport::Undecided(_) | Transport::Tls(_) => {
                tls_limits::READ_BYTES_MAX
            }
        }
    }

    /// Returns whether the peer has announced the end of its input by close_notify.
    pub fn input_is_over(&self) -> bool {
        matches!(self, Transport::Tls(session) if session.input_is_over())
    }

    /// Returns whether ciphertext waits to be written.
    pub fn wants_write(&self) -> bool {
        matches!(self, Transport::Tls(session) if !session.queue().is_empty())
    }

    /// Returns the memory of its buffers.
    pub fn buffered_bytes(&self) -> usize {
        match self {
            Transport::Tls(session) => session.buffered_bytes(),
            Transport::Proxied(..) | Transport::Undecided(_) | Transport::Clear => 0,
        }
    }

    /// Returns whether the beginning of a record waits for its rest.
    pub fn is_within_record(&self) -> bool {
        matches!(self, Transport::Tls(session) if session.is_within_record())
    }

    /// Returns the protocol that the handshake has agreed on.
    pub fn protocol(&self) -> Option<&[u8]> {
        match self {
            Transport::Tls(session) => session.protocol(),
            Transport::Proxied(..) | Transport::Undecided(_) | Transport::Clear => None,
        }
    }

    // ---- input ----

    /// Takes the first `length` bytes of the scratch buffer.
    pub fn handle_input(
        &mut self,
        scratch: &mut [u8],
        mut length: usize,
        peer: &mut Peer,
        turn: &mut Turn<'_>,
    ) -> Arrived {
        if let Transport::Proxied(header, security) = self {
            let security = *security;
            match header.handle_input(&scratch[..length]) {
                Ok(None) => return Arrived::NOTHING,
                Ok(Some((used, origin))) => {
                    match origin {
                        Origin::Address(address) => peer.address = PeerAddress::Ip(address),
                        Origin::Unix => peer.address = PeerAddress::Unix,
                        Origin::Sender => {}
                    }
                    if !client_network::enter(peer, turn.places, turn.config, turn.now) {
                        return Arrived::Crowded;
                    }
                    *self = Transport::Undecided(security);
                    scratch.copy_within(used..length, 0);
                    length -= used;
                }
                Err(refused) => {
                    note_refused_proxy(Refused::as_str(refused), &refused, peer, turn);
                    return Arrived::Unanswerable;
                }
            }
            if length == 0 {
                return Arrived::NOTHING;
            }
        }
        if let Transport::Undecided(security) = *self
            && let Some(refused) = self.decide(security, &scratch[..length], turn)
        {
            return refused;
        }
        let Transport::Tls(session) = self else {
            return Arrived::Input {
                place: 0..length,
                is_open: false,
            };
        };
        let (ciphertext, plaintext) = scratch.split_at_mut(tls_limits::READ_BYTES_MAX);
        match session.handle_input(&mut ciphertext[..length], plaintext, turn.pool) {
            Ok(received) => {
                if received.worked {
                    *turn.handshake_steps = turn.handshake_steps.saturating_sub(1);
                }
                let is_open = received.handshake.is_some();
                if let Some(handshake) = received.handshake {
                    note_handshake(handshake, peer, turn.metrics);
                }
                let start = tls_limits::READ_BYTES_MAX;
                let place = start..start + received.plaintext;
                Arrived::Input { place, is_open }
            }
            Err(failed) => {
                note_failure(session, &failed, peer, turn.metrics);
                Arrived::Failed
            }
        }
    }

    /// Decides by the first bytes. `Some`: they are not allowed here.
    fn decide(&mut self, security: Security, first: &[u8], turn: &Turn<'_>) -> Option<Arrived> {
        let is_tls = sniff(first) == Sniffed::Tls;
        *self = match (is_tls, security, turn.tls) {
            (true, Security::Sniffed | Security::Tls, Some(acceptor)) => {
                match Session::new(acceptor) {
                    Ok(session) => Transport::Tls(session),
                    Err(error) => {
                        log::error!("cannot create a TLS session: {error}");
                        return Some(Arrived::Unanswerable);
                    }
                }
            }
            (true, _, _) => {
                turn.metrics.tls_refused.get(TlsRefusal::TlsOnClear).inc();
                return Some(Arrived::Unanswerable);
            }
            (false, Security::Tls, _) => {
                turn.metrics.tls_refused.get(TlsRefusal::ClearOnTls).inc();
                return Some(Arrived::ClearText);
            }
            (false, Security::Sniffed | Security::Clear, _) => Transport::Clear,
        };
        None
    }

    /// Handles the peer's FIN. In TLS, without a close_notify before it, an attacker in between may
    /// have cut off bytes. That loses no request: each announces its own length.
    pub fn handle_end_of_input(&mut self, metrics: &ReactorSeries) {
        if let Transport::Tls(session) = self
            && session.is_open()
            && !session.input_is_over()
        {
            metrics.tls_truncated.inc();
        }
    }

    // ---- output ----

    /// Queues TLS's close_notify, once. Returns whether there is something to write now.
    pub fn close(&mut self, pool: &mut BufferPool) -> bool {
        match self {
            Transport::Tls(session) => session.close(pool),
            Transport::Proxied(..) | Transport::Undecided(_) | Transport::Clear => false,
        }
    }

    /// Returns what to write next. Under TLS, it first encrypts as much of `output` as there is
    /// room for.
    pub fn queue<'a>(
        &'a mut self,
        output: &'a mut OutputQueue,
        pool: &mut BufferPool,
    ) -> &'a mut OutputQueue {
        match self {
            Transport::Tls(session) => session.encrypt(output, pool),
            Transport::Proxied(..) | Transport::Undecided(_) | Transport::Clear => output,
        }
    }

    /// Ends the transport: its buffers return to the pool, and an unfinished handshake counts as
    /// failed.
    pub fn abandon(&mut self, reason: CloseReason, turn: &mut Turn<'_>) {
        let Transport::Tls(session) = self else {
            return;
        };
        session.release(turn.pool);
        if session.is_handshaking() {
            let outcome = match reason {
                CloseReason::RequestTimeout => HandshakeOutcome::Timeout,
                _ => HandshakeOutcome::Abandoned,
            };
            let handshakes = turn
                .metrics
                .tls_handshakes
                .get((outcome, session.version()));
            handshakes.inc();
        }
    }
}

/// Counts a connection that was refused because of its proxy, and warns once in a while: a
/// misconfigured load balancer makes thousands of them.
fn note_refused_proxy(
    reason: &'static str,
    why: &dyn std::fmt::Display,
    peer: &Peer,
    turn: &mut Turn<'_>,
) {
    turn.metrics.proxy_refused.get(reason).inc();
    if turn.now >= *turn.proxy_warned_until {
        *turn.proxy_warned_until = turn.now + limits::PROXY_WARNING_INTERVAL;
        let address = peer.address;
        log::warn!(
            "closed a connection from {address}: {why} (counted in autoglmd_proxy_refused_total)"
        );
    }
}

fn note_handshake(handshake: Handshake, peer: &mut Peer, metrics: &ReactorSeries) {
    let outcome = match handshake.resumed {
        true => HandshakeOutcome::Resumed,
        false => HandshakeOutcome::Full,
    };
    metrics
        .tls_handshakes
        .get((outcome, handshake.version))
        .inc();
    peer.client = handshake.client.map(Arc::new);
}

fn note_failure(session: &Session, failed: &Failed, peer: &Peer, metrics: &ReactorSeries) {
    match failed.in_handshake {
        true => {
            let label = (HandshakeOutcome::Failed, session.version());
            metrics.tls_handshakes.get(label).inc()
        }
        false => metrics.tls_broken.inc(),
    };
    // Scanners cause it all day long, so it is logged only at debug level.
    log::debug!("TLS with {:?} failed: {}", peer.address, failed.error);
}
