//! Bounds of the daemon's own requests to other servers.

use std::time::Duration;

// ---- all of them ----

/// Fetches that may wait or run in the whole daemon. One tenant alone gets half of them, two get a
/// third each, and so on.
pub const FETCHES_MAX: usize = 1_024;

/// Bytes of the requests of all these fetches. A callback carries a job's result, of a few
/// kilobytes.
pub const FETCH_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// The least that a fetch counts, for its place in the tables.
pub const FETCH_BYTES_MIN: u32 = 1_024;

/// The bytes of a tenant's fetches that start in one visit, if others wait.
pub const FETCH_VISIT_BYTES: u64 = 16 * 1024;

/// Sockets of the daemon's own, over all reactors: a share of the descriptors, beside those of
/// clients. Half of them carry a fetch; the rest is for second attempts and kept connections.
pub const SOCKETS_MAX: usize = 256;

/// The least for one reactor, however many there are: four fetches with two attempts each, of which
/// one is the daemon's own and two are of one key.
pub const SOCKETS_PER_REACTOR_MIN: usize = 8;

// ---- one fetch ----

/// Addresses of one name that are tried. A name with more is served by any of the first ones.
pub const ADDRESSES_MAX: usize = 8;

/// How long the attempt with one address goes on before the next begins beside it (RFC 8305,
/// section 5, "Connection Attempt Delay").
pub const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// Attempts of one fetch that run at the same time.
pub const CONCURRENT_ATTEMPTS_MAX: usize = 2;

// ---- kept connections ----

/// How long a connection is kept for the next request to its origin. Servers close theirs after 5
/// (Node, Apache) to 75 s (nginx); a shorter time loses fewer requests to a connection that the
/// server is about to close.
pub const KEPT_TIMEOUT: Duration = Duration::from_secs(15);

/// Connections that are kept for one origin: a burst to one server leaves a few, and the places of
/// the others.
pub const KEPT_CONNECTIONS_PER_ORIGIN_MAX: usize = 4;

// ---- names ----

/// Threads that resolve names. `getaddrinfo(3)` waits for seconds if a name server is silent. One
/// of them is kept for the daemon's own questions; of the others one key gets four, a second one
/// two and a third one the last (`offload::shares`). A thread that waits costs its stack's pages.
pub const RESOLVER_THREADS: usize = 8;

/// How often the C library asks each name server about a name, in `RES_OPTIONS` (resolv.conf(5))
/// unless the environment has other options. With a second for each question, a look-up holds its
/// thread for 3 s if the machine's only name server is silent and for 9 s if it has three, and for
/// twice that if there is a search list. Its own defaults are 10 and 28 s.
pub const LOOK_UP_ATTEMPTS_MAX: u32 = 3;

/// How long it waits for each response.
pub const LOOK_UP_TIMEOUT: Duration = Duration::from_secs(1);

/// The stack of each: what glibc's resolver and its plug-ins need, several times over.
pub const RESOLVER_STACK_BYTES: usize = 1024 * 1024;

/// Names that may wait for a thread. They count one byte each, so that the queue is fair by names.
pub const WAITING_NAMES_MAX: usize = 256;

const _: () = {
    assert!(
        RESOLVER_THREADS > 2,
        "one is the daemon's own, one for a newcomer"
    );
    assert!(
        CONCURRENT_ATTEMPTS_MAX == 2,
        "half of the sockets carry fetches"
    );
    assert!(SOCKETS_PER_REACTOR_MIN >= 4 * CONCURRENT_ATTEMPTS_MAX);
    assert!(KEPT_CONNECTIONS_PER_ORIGIN_MAX <= SOCKETS_PER_REACTOR_MIN);
};
