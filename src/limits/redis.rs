//! Bounds of the connection to Redis.

use std::time::Duration;

/// Requests that wait for the connection's thread: at 100,000 per second they take 40 ms. Later
/// ones are refused at once, which a cache calls a miss.
pub const WAITING_REQUESTS_MAX: usize = 4_096;

/// Bytes of commands that wait for the thread: entries that were computed just now.
pub const WAITING_COMMAND_BYTES_MAX: usize = 16 << 20;

/// Requests in one pipeline. More of them gain nothing: a round trip is then a thousandth of
/// their work.
pub const BATCH_REQUESTS_MAX: usize = 256;

/// Bytes of commands in one pipeline, beyond the first: what a network of 1 Gbit/s carries in
/// 10 ms.
pub const BATCH_BYTES_MAX: usize = 1 << 20;

/// The first pause after a failure. Each further failure doubles it.
pub const RETRY_PAUSE_MIN: Duration = Duration::from_millis(50);

/// The longest pause: so long after Redis is back it is used again at the latest.
pub const RETRY_PAUSE_MAX: Duration = Duration::from_secs(2);

/// A connection that has been idle for this long is checked with a PING, so that its loss is seen
/// before a request pays for it.
pub const IDLE_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Nodes of a cluster: Redis itself recommends no more than a thousand.
pub const CLUSTER_NODES_MAX: usize = 1_000;

/// Slots of a cluster.
pub const CLUSTER_SLOTS: usize = 16_384;

/// Keys that Redis looks at in one step of a purge: a millisecond of its time.
pub const SWEEP_STEP_KEYS: u32 = 500;

/// Time for one step of a command that deletes keys; nothing else waits for it.
pub const COMMAND_TIMEOUT: Duration = Duration::from_secs(5);

/// Bytes of the password's file.
pub const PASSWORD_BYTES_MAX: u64 = 4_096;

/// Bytes of the file with the authorities of Redis's certificate: all those of a system fit.
pub const AUTHORITY_BYTES_MAX: u64 = 1 << 20;
