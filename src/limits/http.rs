//! Bounds that all versions of HTTP share.

/// Elements of a request's `Accept` or `Accept-Encoding` that are looked at; a browser sends about
/// eight.
pub const ACCEPT_RANGES_MAX: usize = 64;

/// A chunk or DATA frame of fewer bytes costs more to frame than it carries, and counts as a
/// glitch: a client that writes byte by byte sends such pieces. The last one of a body may be
/// smaller.
pub const BODY_PIECE_BYTES_MIN: u64 = 8;

/// Bytes of one event that a client reads: the last event of a stream repeats the whole program.
pub const EVENT_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Bytes of a URL that a client may name: what browsers and proxies pass on without complaint.
pub const URL_BYTES_MAX: usize = 2_048;

/// A host name's longest text form: RFC 1035, section 2.3.4, less the bytes of the root.
pub const HOST_NAME_BYTES_MAX: usize = 253;

/// Bytes of one label of it.
pub const HOST_LABEL_BYTES_MAX: usize = 63;
