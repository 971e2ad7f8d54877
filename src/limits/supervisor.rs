//! Bounds of what keeps the daemon going: the supervisor's looks, the engine's restarts, memory
//! that goes back.

use std::time::Duration;

// ---- the engine's life -------------------------------------------------------------------------

/// An engine that was watched for so many times `engine.stall_timeout` without a sign of life will
/// not go on: the process ends with a failure, so that its manager starts it again.
pub const ENGINE_HUNG_STALLS: u32 = 3;

/// Starts of the engine after a panic, before it is given up and the process ends.
pub const ENGINE_RESTARTS_MOST: u32 = 5;

/// The pause before the first of them; each later one is twice as long. Five take 6 s together.
pub const ENGINE_RESTART_PAUSE: Duration = Duration::from_millis(200);

/// How often that pause looks whether the engine is still wanted.
pub const ENGINE_RESTART_LOOK: Duration = Duration::from_millis(50);

/// After so long without a panic the count of starts begins again.
pub const ENGINE_RESTARTS_FORGOTTEN_AFTER: Duration = Duration::from_secs(600);

// ---- supervisor --------------------------------------------------------------------------------

/// How often at least the main thread looks: at the engine, at the watchdog, at the process's
/// memory. A look takes some 50 us.
pub const SUPERVISOR_TICK: Duration = Duration::from_secs(1);

/// How soon it tries again to tell the service manager what that had no room for.
pub const NOTIFY_RETRY: Duration = Duration::from_millis(100);

/// A reload whose files take longer than this to read is said to: a local disk takes milliseconds.
pub const READING_OVERDUE_AFTER: Duration = Duration::from_secs(10);

/// Bytes of a status that the service manager is told: a line of a screen or two.
pub const NOTIFY_STATUS_BYTES: usize = 512;

/// SIGTERM and SIGINT within this time are one wish, whichever comes first: scripts send both. Two
/// of one kind are two.
pub const SIGNALS_TOGETHER: Duration = Duration::from_millis(300);

/// How often descriptors are counted where the kernel tells their number by a list only (before
/// Linux 6.2): a million of them take seconds.
pub const DESCRIPTORS_LISTED_INTERVAL: Duration = Duration::from_secs(60);

/// Blocks of memory from this size on go back to the kernel when they are freed: glibc's own first
/// value, which it would raise.
pub const LARGE_BLOCK_BYTES: i32 = 128 * 1024;

/// Free memory is given back if the process has grown by this since the last time: a fifth of what
/// a daemon without a model holds, and more would only cost faults.
pub const MEMORY_RETURN_LEAST_BYTES: u64 = 4 * 1024 * 1024;

/// How long it is left alone after that.
pub const MEMORY_RETURN_INTERVAL: Duration = Duration::from_secs(5);

/// How often it looks whether the model is loaded, so that readiness is told at once.
pub const SUPERVISOR_LOADING_TICK: Duration = Duration::from_millis(20);

/// How much longer the service manager is asked to wait, again and again during a long loading.
pub const LOADING_TIMEOUT_EXTENSION: Duration = Duration::from_secs(30);

/// Descriptors that are not for connections: standard streams, log, database with its journal,
/// epoll, event and signal descriptors, listeners, the model, and what a worker opens meanwhile.
pub const RESERVED_DESCRIPTORS: usize = 128;

/// Connections of one daemon at most, whatever the descriptors allow: four million would already
/// take a gigabyte of connection state.
pub const CONNECTIONS_MOST: usize = 4 * 1024 * 1024;
