//! Bounds of TLS: records, buffers, sessions, certificates.

use std::time::Duration;

// ---- records and buffers ----

/// Ciphertext of responses that waits for one peer: twice what a socket's buffer takes at once.
/// A larger queue would encrypt earlier without sending earlier.
pub const CIPHERTEXT_BYTES_MAX: usize = 32 * 1024;

/// Plaintext in one record (RFC 8446, section 5.1).
pub const RECORD_PLAINTEXT_BYTES_MAX: usize = 16 * 1024;

/// Bytes that a record adds to its plaintext: header, explicit nonce of TLS 1.2, content type of
/// 1.3, tag; an alert's two bytes fit in as well.
pub const RECORD_OVERHEAD_BYTES_MAX: usize = 5 + 8 + 1 + 16 + 10;

/// The longest record on the wire: 16 KiB, what a cipher may add, and the header (RFC 5246, section
/// 6.2.3).
pub const RECORD_BYTES_MAX: usize = 16 * 1024 + 2_048 + 5;

/// Ciphertext that waits for the rest of its record or message. A handshake's message may have 64
/// KiB, as in rustls: a chain of several certificates with RSA keys has 10.
pub const PARTIAL_BYTES_MAX: usize = 64 * 1024;

const _: () = assert!(RECORD_BYTES_MAX <= PARTIAL_BYTES_MAX);

/// Ciphertext that is read at a time. The rest of the scratch buffer takes its plaintext, with that
/// of a record whose beginning arrived earlier.
pub const READ_BYTES_MAX: usize = 22 * 1024;

const _: () = assert!(2 * READ_BYTES_MAX + RECORD_BYTES_MAX <= super::reactor::SCRATCH_BYTES);

// ---- sessions ----

/// TLS 1.2 sessions that are kept for clients that take no tickets: some 200 bytes each. The
/// field's clients take tickets, so most entries are those of scanners.
pub const KEPT_SESSIONS_MAX: usize = 4_096;

/// Tickets sent after a TLS 1.3 handshake: enough for one connection after the other, and a client
/// that resumes gets another one. Each costs 200 bytes and an encryption.
pub const TICKETS_PER_HANDSHAKE: usize = 1;

// ---- certificates ----

/// Names of a client's certificate that are kept. Certificates of machines usually have one to
/// three.
pub const CLIENT_NAMES_MAX: usize = 32;

/// Bytes read of a file of certificates; a system's whole bundle has 200 to 300 KiB.
pub const CERTIFICATES_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// How long before a certificate's end the log starts to warn.
pub const CERTIFICATE_WARNING_PERIOD: Duration = Duration::from_secs(30 * 24 * 3_600);

/// How often the certificates' ends are looked at.
pub const CERTIFICATE_CHECK_INTERVAL: Duration = Duration::from_secs(24 * 3_600);
