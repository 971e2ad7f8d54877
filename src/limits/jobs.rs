//! Bounds of durable jobs.

/// What a job counts in the store beside its request and result: its row and the indexes' entries.
pub const ROW_BYTES: u64 = 512;

/// What an event counts beside its text.
pub const EVENT_BYTES: u64 = 64;

/// How often a job may be lost, by a daemon that was killed or an engine that failed, before it is
/// given up: it may be the cause.
pub const LOST_ATTEMPTS_MAX: u32 = 3;

/// One key's jobs may take a quarter of `jobs.max_size`, as its bodies may of the memory.
pub const KEY_BYTES_DIVISOR: u64 = 4;

/// Keys that a daemon looks at for the next job in a database that it shares. Other daemons may be
/// taking the only jobs of all of them; then this one asks again later.
pub const WAITING_KEYS_MAX: u32 = 64;
