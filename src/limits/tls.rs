//! Bounds of TLS.

use std::time::Duration;

use super::SCRATCH_BYTES;

/// Ciphertext of answers that waits for one peer: what a socket's buffer takes at once, twice. More
/// would only be encrypted earlier, and not sent earlier.
pub const TLS_CIPHERTEXT_BYTES: usize = 32 * 1024;

/// Plaintext in one record at most (RFC 8446, section 5.1).
pub const TLS_PLAINTEXT_BYTES: usize = 16 * 1024;

/// What a record adds to its plaintext: header, explicit nonce of TLS 1.2, content type of 1.3,
/// tag; an alert's two bytes fit in as well.
pub const TLS_OVERHEAD_BYTES: usize = 5 + 8 + 1 + 16 + 10;

/// Ciphertext that waits for the rest of its record or message. A handshake's message may have 64
/// KiB, as in rustls: a chain of several certificates with RSA keys has 10.
pub const TLS_PARTIAL_BYTES: usize = 64 * 1024;
const _: () = assert!(TLS_RECORD_BYTES <= TLS_PARTIAL_BYTES);

/// The longest record on the wire: 16 KiB, what a cipher may add, and the header (RFC 5246, section
/// 6.2.3).
pub const TLS_RECORD_BYTES: usize = 16 * 1024 + 2_048 + 5;

/// Ciphertext that is read at a time. The rest of the scratch buffer takes its plaintext, with that
/// of a record whose beginning came earlier.
pub const TLS_READ_BYTES: usize = 22 * 1024;
const _: () = assert!(2 * TLS_READ_BYTES + TLS_RECORD_BYTES <= SCRATCH_BYTES);

/// Steps of handshakes (a key agreed on, a signature made) in one turn. Each takes from 0.1 ms
/// (ECDSA) to 1 ms (RSA), so whoever streams waits at most some milliseconds for whoever connects;
/// the rest wait for the next turn, which comes at once.
pub const HANDSHAKE_STEPS_PER_TURN: u32 = 8;

/// TLS 1.2 sessions that are kept for clients that take no tickets: some 200 bytes each. The
/// field's clients take tickets, so most entries are those of scanners.
pub const TLS_SESSIONS_KEPT: usize = 4_096;

/// Tickets sent after a TLS 1.3 handshake: enough for one connection after the other, and a client
/// that resumes gets another one. Each costs 200 bytes and an encryption.
pub const TLS_TICKETS_PER_HANDSHAKE: usize = 1;

/// Names of a client's certificate that are kept: of the field's certificates, those of machines
/// have one to three.
pub const CLIENT_NAMES_MOST: usize = 32;

/// So long before its end a certificate is warned of.
pub const CERTIFICATE_WARNING: Duration = Duration::from_secs(30 * 24 * 3_600);

/// How often the certificates' ends are looked at.
pub const CERTIFICATE_CHECK_INTERVAL: Duration = Duration::from_secs(24 * 3_600);
