//! Bounds of the event loop: what one turn may cost, and how connections come and go.

use std::time::Duration;

// ---- one turn ----

/// Edges taken from the kernel per turn. More are handled later, not lost; at about 10 us each, a
/// turn stays below 3 ms. Responses are made and written in the same turn: they must find their
/// buffers in the pool, and still be in the processor's cache.
pub const EVENTS_PER_TURN_MAX: usize = 256;

const _: () = assert!(
    EVENTS_PER_TURN_MAX * super::core::POOL_BUFFER_BYTES <= super::core::POOL_RETAINED_BYTES_MAX
);

/// The buffer that every connection of a reactor reads into: a whole usual request, and a quarter
/// of a socket's receive buffer, at one `read`.
pub const SCRATCH_BYTES: usize = 64 * 1024;

/// Reads of one connection per pump: a megabyte of body leaves the others their share. A turn pumps
/// a connection at most twice, once in each round.
pub const READS_PER_PUMP_MAX: usize = 16;

/// Pipelined requests that are handled between two looks at the other connections.
pub const REQUESTS_PER_READ_MAX: usize = 32;

/// How long a connection's pump may go on with further requests, frames and streams: the others
/// wait for it. It is asked between two of them, so one step more may follow, and what follows the
/// budget waits for the next pump. Some thirty usual requests fit, or a megabyte that is only
/// copied. A client that sends more is greedy, and waits for all others.
pub const PUMP_TIME_MAX: Duration = Duration::from_micros(250);

/// When phase 5 ends, counted from the turn's beginning: messages that are left wait, in order, for
/// the next turn. A message takes some microseconds, the last one of a long response more.
pub const MESSAGES_TIME_MAX: Duration = Duration::from_millis(5);

/// When phase 6 ends, counted likewise: connections that are left stay in the run queue, in order.
/// Timers, new connections and the drain wait for no more than this.
pub const ROUNDS_TIME_MAX: Duration = Duration::from_millis(10);

/// When phase 7 ends, counted likewise: deadlines that are left expire a tick
/// of the wheel later.
pub const TIMERS_TIME_MAX: Duration = Duration::from_millis(15);

const _: () = {
    assert!(PUMP_TIME_MAX.as_nanos() < MESSAGES_TIME_MAX.as_nanos());
    assert!(MESSAGES_TIME_MAX.as_nanos() < ROUNDS_TIME_MAX.as_nanos());
    assert!(ROUNDS_TIME_MAX.as_nanos() < TIMERS_TIME_MAX.as_nanos());
};

/// Pumps, messages or timers between two readings of the clock. A reading takes about 25 ns, which
/// is nothing beside eight pumps; a pump that has used all of its own time is noticed at once.
pub const ITEMS_PER_CLOCK_READING: u32 = 8;

/// Timers that fire per turn; the rest fire in the next, which follows at once.
pub const TIMERS_PER_TURN_MAX: usize = 1024;

/// Steps of handshakes (a key agreement, a signature) per turn. Each takes from 0.1 ms (ECDSA) to
/// 1 ms (RSA), so a request waits at most two milliseconds for handshakes. The other handshakes
/// wait for the next turn, which follows at once: a turn costs a hundredth of such a step.
pub const HANDSHAKE_STEPS_PER_TURN_MAX: u32 = 2;

// ---- one connection ----

/// Bytes that a connection may take in the slab. An idle one of HTTP/1 in clear text owns no other
/// memory; HTTP/2 and TLS add one allocation each for their state.
pub const CONNECTION_BYTES_MAX: usize = 256;

/// How long a peer may take to close after we did: several round trips round the world.
pub const LINGER_TIMEOUT: Duration = Duration::from_secs(2);

/// Bytes that are read and discarded after our FIN.
pub const LINGER_BYTES_MAX: u32 = 1024 * 1024;

// ---- the drain ----

/// Connections that a drain comes to in one turn, at its beginning and at its end. A pump of an
/// idle one takes about 14 us, so a turn grows by less than 4 ms, and a million connections take a
/// few thousand turns.
pub const DRAINED_CONNECTIONS_PER_TURN_MAX: u32 = 256;

/// The same while the run queue is full of other work: few, but never none.
pub const DRAINED_CONNECTIONS_PER_TURN_MIN: u32 = 8;

/// How long a turn cuts off connections at the end of a drain. Each may have
/// [`super::http2::STREAMS_MAX`] streams that get an error.
pub const CUT_OFF_TIME_MAX: Duration = Duration::from_millis(10);

/// Reads after our FIN on a connection that is cut off, so that bytes which have already come cause
/// no reset: a reset would destroy the last event before its client has read it.
pub const CUT_OFF_READS_MAX: usize = 4;

// ---- accepting ----

/// The log mentions at most this often that accepting pauses.
pub const ACCEPT_PAUSE_LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Idle connections closed per turn to make room, as many as nginx closes.
pub const IDLE_CONNECTIONS_PER_TURN_MAX: usize = 32;

const _: () = assert!(EVENTS_PER_TURN_MAX > IDLE_CONNECTIONS_PER_TURN_MAX);

/// A reactor whose turn has lasted this long is held up: no new connection is handed to it, and no
/// other reactor waits for it to make room. A turn with its 256 edges takes about as long.
pub const HELD_UP_AFTER: Duration = Duration::from_millis(2);

/// How long a connection that has neither a job nor a key keeps its place at least, on average,
/// while others wait for it. Evictions are paced so that all of them together take this long to be
/// replaced: a handshake across the world takes 600 ms, and in a flood of new connections none
/// would complete if each were evicted by the next.
pub const EVICTION_PATIENCE: Duration = Duration::from_secs(1);

/// A reactor warns at most this often of connections that were refused for a proxy's mistake.
pub const PROXY_WARNING_INTERVAL: Duration = Duration::from_secs(60);
