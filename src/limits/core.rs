//! Bounds of the reactor's building blocks: timer wheel, buffers, output, account of buffered
//! memory, accept gate, glitches, shared buckets.

use std::time::Duration;

// ---- timer wheel ----

/// The width of one bucket, which is how late a timer may fire. 16 ms is far below every timeout
/// of the daemon, and far above the cost of looking at a bucket.
pub const WHEEL_TICK: Duration = Duration::from_millis(16);

/// Buckets in the wheel's circle, 65 s of them: header and body deadlines fit in, so that only
/// long keep-alives are looked at more than once. 4,096 list heads are 16 KiB.
pub const WHEEL_BUCKETS: usize = 4_096;

// The bitmap of occupied buckets is one word of 64 words of 64 bits.
const _: () = assert!(WHEEL_BUCKETS == 64 * 64);

// ---- buffers and output ----

/// A pooled buffer: a response with a page or two of code, or a large request head, fits in.
pub const POOL_BUFFER_BYTES: usize = 8 * 1024;

/// A buffer that grew to at most this many times its class is kept; a larger one is freed.
pub const POOL_GROWTH_FACTOR_MAX: usize = 4;

/// Bytes that the pool of one reactor keeps for later. Most responses leave in the turn in which
/// they were made, so a few buffers serve thousands of connections.
pub const POOL_RETAINED_BYTES_MAX: usize = 2 * 1024 * 1024;

/// Pieces up to this length are copied, longer ones are queued by reference. Here the two cost
/// about the same: a copy of 2 KiB, or a chain, one more `iovec` and a reference count.
pub const OUTPUT_COPY_BYTES_MAX: usize = 2 * 1024;

/// The room that an encoder finds in the tail without making it grow.
pub const OUTPUT_TAIL_ROOM_BYTES: usize = 2 * 1024;

/// Slices handed to one `writev(2)`. The kernel takes 1,024 (`IOV_MAX`); 16 of more than 2 KiB each
/// fill a socket's buffer, and they lie on the stack.
pub const OUTPUT_SLICES_MAX: usize = 16;

/// The low mark: below it, production for a slow peer resumes. About what a socket's buffer takes
/// at once.
pub const OUTPUT_LOW_BYTES: usize = 16 * 1024;

/// The high mark: above it, nothing more is produced for the peer.
pub const OUTPUT_HIGH_BYTES: usize = 64 * 1024;

/// Above this, beside one whole response, the connection is closed: a producer has ignored the
/// high mark.
pub const OUTPUT_BYTES_MAX: usize = 4 * 1024 * 1024;

const _: () = assert!(OUTPUT_LOW_BYTES < OUTPUT_HIGH_BYTES && OUTPUT_HIGH_BYTES < OUTPUT_BYTES_MAX);
// A small piece never makes a tail grow, and a fresh buffer is never too small to be a tail.
const _: () = assert!(OUTPUT_COPY_BYTES_MAX <= OUTPUT_TAIL_ROOM_BYTES);
const _: () = assert!(2 * OUTPUT_TAIL_ROOM_BYTES <= POOL_BUFFER_BYTES);
const _: () = assert!(POOL_BUFFER_BYTES * POOL_GROWTH_FACTOR_MAX <= POOL_RETAINED_BYTES_MAX);

/// A peer must take all that waits for it within this many write timeouts, at a steady pace: a
/// client that takes a byte every half minute would hold 64 KiB for next to nothing. With the
/// default timeout of 30 s that is 218 bytes per second of an output at its high mark, less than a
/// modem of 1990, and less still of a smaller one.
pub const WRITE_TIMEOUTS_PER_OUTPUT_MAX: u32 = 10;

// ---- the account of buffered memory ----

/// Bytes by which a reactor's connections may differ from what the account of the whole daemon
/// knows: eight buffers of the pool, so that a reactor touches the shared number once for many
/// requests, and 64 reactors hide 4 MiB at most.
pub const BUFFERED_STEP_BYTES: usize = 64 * 1024;

/// Requests without a key are refused from this part of the bound on. The rest serves holders of
/// keys while strangers hold their part.
pub const BUFFERED_ANONYMOUS_PERCENT: usize = 75;

/// The incomplete bodies of one key may have this part of the bound; one body of the configured
/// maximum always fits. So four floods with different keys are needed to hold up all others.
pub const BUFFERED_KEY_PERCENT: usize = 25;

const _: () = assert!(BUFFERED_STEP_BYTES >= POOL_BUFFER_BYTES);
const _: () = assert!(BUFFERED_ANONYMOUS_PERCENT <= 100);

// ---- accepting ----

/// Calls of `accept4(2)` per turn. At about 5 us each (the call, a slot, a registration) they make
/// all other connections wait a third of a millisecond.
pub const ACCEPTS_PER_TURN_MAX: u32 = 64;

/// How long accepting pauses after it ran out of descriptors or memory: often enough to be back
/// well within a second, and ten calls per second cost nothing.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// At a full gate, idle connections are closed down to this part of the maximum.
pub const GATE_RELIEF_PERCENT: usize = 90;

/// How soon a full gate looks again whether a place has become free, and how long one reactor waits
/// for another one to make room before it passes it over.
pub const FULL_GATE_RETRY: Duration = Duration::from_millis(50);

/// Parts of the table of client networks, each with a lock of its own. With a million connections
/// each has at most some 4,000 entries, and growing by doubling copies them within 0.1 ms.
pub const NETWORK_SHARDS: usize = 256;

/// The log mentions at most this often that a client network has too many connections.
pub const NETWORK_WARNING_INTERVAL: Duration = Duration::from_secs(60);

/// Listening sockets of one process: one bit each in the gate.
pub const LISTENERS_MAX: usize = 64;

const _: () = assert!(GATE_RELIEF_PERCENT < 100);

/// Bytes of a PROXY protocol header, extensions included. The specification asks for room for 536;
/// a proxy that adds the client's certificate sends one or two thousand.
pub const PROXY_HEADER_BYTES_MAX: usize = 4_096;

// ---- glitches and slow transfers ----

/// Points that a connection may have on its account; see `core::glitch`.
pub const GLITCH_POINTS_MAX: u32 = 500;

/// Points forgiven per second: no honest client keeps sending 25 empty frames or pings per second.
pub const GLITCH_LEAK_POINTS_PER_SECOND: u32 = 25;

/// A head or body that arrives more slowly than this is held back on purpose: a modem of 1990 sends
/// 240 bytes per second.
pub const TRANSFER_BYTES_PER_SECOND_MIN: u32 = 240;

/// The window over which the rate is measured: longer than a retransmission or two.
pub const TRANSFER_RATE_WINDOW: Duration = Duration::from_secs(5);

// The account is kept in thousandths in 32 bits.
const _: () = assert!(GLITCH_POINTS_MAX <= u32::MAX / 1_000 / 2);
const _: () = assert!(
    TRANSFER_BYTES_PER_SECOND_MIN as u128 * TRANSFER_RATE_WINDOW.as_millis() <= u32::MAX as u128
);

// ---- shared buckets ----

/// How long a request is asked to wait whose daemon has taken a whole lease that the common count
/// has not confirmed: longer than a round trip.
pub const LEASE_RETRY: Duration = Duration::from_millis(20);

/// How many bursts may be missing in a shared bucket: a debt of leases and of long outputs. More
/// would only come from a clock that has jumped.
pub const LEASE_DEBT_FACTOR_MAX: u32 = 10;
