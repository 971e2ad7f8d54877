//! Bounds of HTTP/1: heads, fields, chunked bodies.

/// Bytes of a request head that are accepted by default: twice what browsers and proxies send at
/// their worst, and Node's default.
pub const HEAD_BYTES_DEFAULT: usize = 16 * 1024;

/// No configuration raises the bound on a head above this: positions in a head fit 32 bits, and no
/// honest client sends a mebibyte of fields.
pub const HEAD_BYTES_MAX: usize = 1024 * 1024;

/// Bytes of a request target: nginx's line bound, and the least that RFC 9112 (section 3)
/// recommends.
pub const URI_BYTES_DEFAULT: usize = 8 * 1024;

/// Field lines of a request if the configuration sets no number: Apache's default.
pub const FIELDS_DEFAULT: usize = 100;

/// Field lines that a parser's storage on the stack holds (32 bytes each, left uninitialised).
pub const FIELDS_MAX: usize = 128;

/// Field lines of a response's head that a client of the daemon reads.
pub const RESPONSE_FIELDS_MAX: usize = 100;

/// Interim responses before the final one. Servers send one or two (100, 103).
pub const INTERIM_RESPONSES_MAX: u32 = 8;

/// Bytes of a method token. The longest registered one (`UPDATEREDIRECTREF`) has 17.
pub const METHOD_BYTES_MAX: usize = 32;

/// Hexadecimal digits of a chunk's size, leading zeros included: 64 bits, so no overflow exists.
pub const CHUNK_SIZE_DIGITS_MAX: u8 = 16;

/// Bytes of chunk extensions in one body, all chunks together. Common clients send none; without a
/// bound, a body of one-byte chunks makes the server read kilobytes for each byte that it may keep.
pub const CHUNK_EXTENSION_BYTES_MAX: u16 = 4 * 1024;

/// Bytes of a chunked body's trailer section, which is checked and thrown away.
pub const TRAILER_BYTES_MAX: u16 = 8 * 1024;

const _: () = {
    assert!(HEAD_BYTES_DEFAULT <= HEAD_BYTES_MAX);
    assert!(HEAD_BYTES_MAX < u32::MAX as usize);
    assert!(URI_BYTES_DEFAULT < HEAD_BYTES_DEFAULT);
    assert!(FIELDS_DEFAULT <= FIELDS_MAX);
    assert!(CHUNK_SIZE_DIGITS_MAX <= 16);
};
