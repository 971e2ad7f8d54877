//! Bounds of what the daemon asks of the kernel and of the service manager.

use std::time::Duration;

// ---- sockets ----

/// Connections that may wait to be accepted; `net.core.somaxconn` may allow more. The backlog must
/// hold the connections that arrive while one turn of the loop is busy.
pub const BACKLOG_CONNECTIONS_MIN: i32 = 4096;

/// Mode of a Unix socket's file: connecting takes the right to write, which others do not have.
pub const UNIX_SOCKET_MODE: u32 = 0o660;

/// Silence after which the kernel asks whether a peer still lives. Below the 350 s after which the
/// usual cloud balancers forget a connection, and above every timer of the daemon.
pub const KEEPALIVE_IDLE: Duration = Duration::from_secs(120);

/// The time between two such probes.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// Lost probes after which the connection is dead: a minute.
pub const KEEPALIVE_PROBES_MAX: u32 = 4;

/// Sockets that a service manager may pass. A larger number means a broken environment.
pub const INHERITED_DESCRIPTORS_MAX: i32 = 64;

// ---- files ----

/// How long a file that is not a regular one (a FIFO, a terminal) may take to be read. The daemon
/// reads such a file at the start and at a reload, and a writer that exists writes a configuration
/// at once.
pub const STREAM_FILE_TIMEOUT: Duration = Duration::from_secs(2);

/// Symbolic links on the way to a watched file: the kernel's own bound (path_resolution(7)).
pub const WATCH_LINKS_MAX: usize = 40;

// ---- process ----

/// Bytes of a status for the service manager: a line of a screen or two.
pub const NOTIFY_STATUS_BYTES_MAX: usize = 512;

/// What a thread whose owner can wait adds to its niceness (nice(2)). Each step makes its share of
/// a core a fifth smaller, so beside a busy reactor it keeps a tenth of a core that both want. A
/// kernel with a tick of 4 ms lets threads of the same niceness run for a tick or more each, and a
/// reactor waited as long for each of them.
pub const YIELDING_NICENESS_LEVEL: i32 = 10;

/// The time after which a signal interrupts work beside a reactor. With [`SLICE_TIME_MIN`], a
/// thread offers its core after 0.15 to 0.45 ms, so a reactor waits for a tenth of a tick. A signal
/// takes 10 us, most of them to wake the thread that reads signals as events.
pub const SLICE_INTERVAL: Duration = Duration::from_micros(300);

/// A thread that has run for less since it has last offered its core goes on. Half of the interval,
/// so that each signal counts while the thread has the core to itself, and one that came while it
/// waited for the core does not.
pub const SLICE_TIME_MIN: Duration = Duration::from_micros(150);

/// Blocks of memory of at least this size return to the kernel when they are freed. This is
/// glibc's initial threshold, which glibc would raise by itself.
pub const LARGE_BLOCK_BYTES_MIN: i32 = 128 * 1024;
