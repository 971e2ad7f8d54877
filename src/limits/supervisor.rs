//! Bounds of what keeps the daemon running: the supervisor's checks, the service manager, memory
//! that is returned, descriptors.

use std::time::Duration;

// ---- checks ----

/// How often at least the main thread checks the engine, the watchdog and the process's memory. A
/// check takes about 50 us.
pub const TICK: Duration = Duration::from_secs(1);

/// How often it checks whether the model is loaded, so that readiness is announced at once.
pub const LOADING_TICK: Duration = Duration::from_millis(20);

/// How much longer the service manager is asked to wait, repeatedly during a long loading.
pub const LOADING_TIMEOUT_EXTENSION: Duration = Duration::from_secs(30);

/// How soon it sends a notification again for which the service manager had no room.
pub const NOTIFY_RETRY: Duration = Duration::from_millis(100);

/// A reload whose files take longer than this to read is reported: a local disk takes
/// milliseconds.
pub const READING_OVERDUE_AFTER: Duration = Duration::from_secs(10);

/// How long a reload or a drain waits for all reactors to take it before it is reported. A reactor
/// that turns takes it within milliseconds.
pub const HANDLING_TIME_MAX: Duration = Duration::from_secs(1);

/// SIGTERM and SIGINT within this time count as one request to stop, whichever comes first: scripts
/// send both. Two of one kind count as two.
pub const SIGNALS_TOGETHER: Duration = Duration::from_millis(300);

/// An engine that was watched for this many times `engine.stall_timeout` without a sign of life
/// will not recover: the process ends with a failure, so that its manager starts it again.
pub const ENGINE_HUNG_STALLS: u32 = 3;

// ---- memory ----

/// Free memory is returned to the kernel if the process has grown by this since the last time: a
/// fifth of what a daemon without a model holds. Doing it for less would only cost page faults.
pub const MEMORY_RETURN_BYTES_MIN: u64 = 4 * 1024 * 1024;

/// The least time between two such returns.
pub const MEMORY_RETURN_INTERVAL: Duration = Duration::from_secs(5);

/// The account of buffered memory takes the allowed memory divided by this, unless the
/// configuration sets it: the model needs the rest.
pub const BUFFERED_MEMORY_DIVISOR: u64 = 64;

/// It takes at least this: a few bodies of the usual maximum at once.
pub const BUFFERED_BYTES_MIN: usize = 16 * 1024 * 1024;

/// It takes at most this: 48 slow bodies of the usual maximum, or 350 slow readers of streams, are
/// more than a model on one machine serves. Hostile clients cannot make the process grow by more
/// than 64 MiB then.
pub const BUFFERED_BYTES_MAX: usize = 48 * 1024 * 1024;

/// It takes at least this many bodies of the configured maximum.
pub const BUFFERED_BODIES_FACTOR_MIN: usize = 4;

// ---- descriptors ----

/// How often descriptors are counted where the kernel reports their number only by a list (before
/// Linux 6.2): a million of them take seconds.
pub const DESCRIPTORS_LISTED_INTERVAL: Duration = Duration::from_secs(60);

/// Descriptors that are not for connections: standard streams, log, database with its journal,
/// epoll, event and signal descriptors, listeners, the model, and what a worker opens meanwhile.
pub const RESERVED_DESCRIPTORS: usize = 128;

/// The daemon's own connections to other servers may take the descriptors divided by this, up to
/// [`super::outbound::SOCKETS_MAX`]: clients come first.
pub const OUTBOUND_DESCRIPTORS_DIVISOR: usize = 16;

/// Connections of one daemon, whatever the descriptors allow: four million would already take a
/// gigabyte of connection state.
pub const CONNECTIONS_MAX: usize = 4 * 1024 * 1024;
