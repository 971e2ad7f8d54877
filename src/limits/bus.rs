//! Bounds of the notices between daemons.

use std::time::Duration;

/// Bytes of a notice: a word, and an id or a digest in hex.
pub const NOTICE_BYTES_MAX: usize = 128;

/// How long a subscribed connection may be silent before its server is asked for a sign of life.
pub const SILENCE_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// How often the thread of a bus looks whether it should end.
pub const END_CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// How often a command tries to reach a server, each time another sentinel or node.
pub const PUBLISH_ATTEMPTS: u32 = 3;
