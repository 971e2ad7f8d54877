//! Bounds of the mailboxes between other threads and a reactor, and of the workers.

/// Items for which a mailbox keeps its buffers after a burst: more than one engine step brings.
pub const MAILBOX_KEPT_ITEMS_MAX: usize = 1_024;

// ---- workers ----

/// Threads that do the work a reactor must not do itself. One would make a small task wait for the
/// largest one (280 ms for a mebibyte that a client made to be slow); more than a few would take
/// cores from a model that is being computed on all of them.
pub const WORKER_THREADS_MIN: usize = 2;

/// See [`WORKER_THREADS_MIN`].
pub const WORKER_THREADS_MAX: usize = 4;

/// The stack of each of these threads: the 16 MiB that tokenizing needs, and one for everything
/// else. It takes memory only as far as it is touched.
pub const WORKER_STACK_BYTES: usize = 17 * 1024 * 1024;

/// Tasks that may wait, of all tenants: two for each place in the queue of an engine, and as many
/// again for bodies. A single tenant gets half of them.
pub const WAITING_TASKS_MAX: usize = 1_024;

/// Bytes that all waiting tasks may declare. 64 bodies of the default `limits.max_body`: at 10 ms
/// for each, a worker is a second behind.
pub const WAITING_TASKS_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// The bytes that a tenant's tasks may have in one visit, if others wait: the share after which it
/// is their turn. About a millisecond of inflating, parsing or tokenizing.
pub const WORKER_VISIT_BYTES: u64 = 64 * 1024;

/// The least that a task counts: a task of no bytes takes time too.
pub const TASK_BYTES_MIN: u32 = 1_024;
