//! Bounds of the database.

use std::time::Duration;

/// Entries of the history of changed keys: 10,000 creations or revocations between two looks of a
/// daemon. After more of them it reads all keys, which takes seconds for a million. An entry is
/// 40 bytes.
pub const HISTORY_ENTRIES: u32 = 10_000;

/// Problems of each kind that a check of the database names: the first ones show what is wrong.
pub const EXAMINED_PROBLEMS_MAX: u32 = 20;

/// How long a statement waits for another process's lock: a commit takes milliseconds, so after
/// this long the other process hangs.
pub const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// How often, and with which pause, the switch to write-ahead logging is tried; together as long
/// as the wait for a lock.
pub const WAL_ATTEMPTS_MAX: u32 = 250;

/// The pause between two of them.
pub const WAL_PAUSE: Duration = Duration::from_millis(20);

/// How often the store is asked whether another process changed it. A revoked key is refused
/// within this time and one reading of the key ring; asking costs one look at shared memory.
pub const WATCH_INTERVAL: Duration = Duration::from_secs(1);
