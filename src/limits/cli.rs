//! Bounds of the commands: what the client of `autoglmd generate` reads and waits for.

use std::time::Duration;

/// Standard input of a program that a user runs.
pub const PROGRAM_INPUT_BYTES_MAX: u64 = 16 << 20;

// ---- the client ----

/// Bytes of a response's head that the client reads; the daemon's own heads have some 500.
pub const CLIENT_HEAD_BYTES_MAX: usize = 64 * 1024;

/// Bytes that the client reads at a time. An event of a stream has a hundred.
pub const CLIENT_BUFFER_BYTES: usize = 16 * 1024;

/// Bytes of a response that is not a stream.
pub const CLIENT_RESPONSE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Bytes of a prompt from stdin. The daemon's own bound is lower unless it was raised.
pub const CLIENT_PROMPT_BYTES_MAX: u64 = 32 * 1024 * 1024;

/// Bytes of a key: ours have 47, a gateway's own may be longer.
pub const CLIENT_KEY_BYTES_MAX: usize = 4096;

/// How long a daemon may take to accept the connection.
pub const CLIENT_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the client waits beyond a request's `--timeout`: the daemon responds in time with what
/// it has, and the client must still read that response.
pub const CLIENT_GRACE: Duration = Duration::from_secs(10);

/// How long the client waits for a silent daemon without `--timeout`: longer than any request may
/// take by default (`limits.max_request_timeout`).
pub const CLIENT_PATIENCE: Duration = Duration::from_secs(11 * 60);
