//! Bounds of the cache.

use std::time::Duration;

/// Items in a block of a table that grows without moving: 64 entries of an LRU are 6 KiB, so a
/// table has at most that much room it does not use. A power of two.
pub const TABLE_BLOCK_ITEMS: usize = 64;

/// Bytes that a tenant costs beside its entries: its row, its place in the order of sizes (a B-tree
/// whose nodes are two thirds full) and its link in the index.
pub const TENANT_BYTES: usize = 96;

/// Parts of a table that reactors share, each with a lock. A lock is held for less than a
/// microsecond, so that with eight reactors two meet in one part at less than one request in ten.
pub const SHARDS: usize = 16;

/// Bytes that a block of the allocator costs beside its contents: a header, and rounding.
pub const BLOCK_BYTES: usize = 16;

/// An entry expires up to this part of its TTL earlier than others.
pub const TTL_JITTER_DIVISOR: u32 = 10;

/// Token events of a running generation that none of its clients has taken: as many as a client may
/// have under way itself. Beyond them the engine merges tokens, and then pauses.
pub const FLIGHT_CREDIT_EVENTS: u32 = 32;

/// The same of a generation that a client wants in one piece: all of them, because it waits for no
/// client. Far above `engine::GENERATED_TOKENS_MAX`.
pub const FLIGHT_WHOLE_EVENTS: u32 = 1 << 30;

/// Bytes of one token event of a stream that catches up: a typical program is one or two of them.
pub const PIECE_BYTES_MAX: usize = 1024;

/// Streams that are sent a piece when a generation has written a token: the engine's thread makes
/// the copies, and has 0.2 ms for them.
pub const TURN_STREAMS_MAX: usize = 512;

/// Bytes of all pieces of such a turn.
pub const TURN_BYTES_MAX: usize = 256 * 1024;

/// Levels that share `cache.max_size` in equal parts: finished responses, and results of engines.
pub const LEVEL_SIZE_DIVISOR: usize = 2;

/// A body that is longer is not looked up before it is read: a digest of this much takes 30 us.
/// Workers read longer ones, and the second level finds those.
pub const REQUEST_BYTES_MAX: usize = 64 * 1024;

/// Counters by which a tenant's entries become stale. Of a thousand tenants that are active at
/// once, one in four shares a counter.
pub const EPOCH_BUCKETS: usize = 4_096;

/// A lower bound is reached in steps of this size, each of which holds a lock: a few hundred
/// entries, 50 us.
pub const SHRINK_STEP_BYTES: usize = 256 * 1024;

const _: () = assert!(TABLE_BLOCK_ITEMS.is_power_of_two());

/// Time within which the shared level must have been asked; a generation does not wait longer for
/// it. Far above a healthy Redis, and far below any generation.
pub const SHARED_PATIENCE: Duration = Duration::from_millis(100);

/// How many times `cache.store_timeout` the end of a response waits for its entry, with
/// `cache.policy = "write-through"`: its user prefers to wait.
pub const STORE_WRITE_FACTOR: u32 = 10;

/// API keys whose entries one walk through Redis deletes: 50 KiB of memory. Of more than these, all
/// entries are deleted.
pub const SWEPT_KEYS_MAX: usize = 1_024;

/// Entries that one task of a purge deletes in the store: some milliseconds, in which other tasks
/// wait.
pub const ERASED_ENTRIES_MAX: u32 = 500;

/// How often a purge is tried in a store that does not work, and after which pause: a minute
/// together. Later entries are left to expire.
pub const ERASE_ATTEMPTS_MAX: u32 = 60;

/// The pause between two of them.
pub const ERASE_PAUSE: Duration = Duration::from_secs(1);

/// Acts that may wait for their time: a watch for each look-up of a second.
pub const TIMED_ACTS_MAX: usize = 8_192;

/// Time after which preloading ends, from the loading of the model on: the first clients have come
/// by then, and bring what they need.
pub const PRELOAD_TIME: Duration = Duration::from_secs(30);

/// How long preloading rests while there is other work, and between two prompts.
pub const PRELOAD_PAUSE: Duration = Duration::from_millis(50);

/// Entries that preloading reads at once: they are in memory twice for a moment, and a task of the
/// store takes some milliseconds.
pub const PRELOADED_PAGE_ENTRIES: u32 = 64;

/// Languages whose prompts are preloaded, in the order of their table: the most common ones, for
/// which the engine has room.
pub const PRELOADED_LANGUAGES_MAX: usize = 12;

/// How long the timer rests while no act waits.
pub const TIMER_REST: Duration = Duration::from_secs(60);

/// How far the clocks of daemons that share a store may differ: an entry that is from
/// further in the future was made before this machine's clock was set back.
pub const ENTRY_SKEW_MAX: Duration = Duration::from_secs(30);

/// Bytes of an entry in the level that daemons share: a response of 250,000 tokens. Longer ones
/// stay in the memory of the daemon that has computed them.
pub const SHARED_ENTRY_BYTES_MAX: usize = 1 << 20;

/// Keys that may be removed at once before all results are forgotten instead of theirs: forgetting
/// takes a microsecond on the reactor, and memory of a tenant takes milliseconds of a worker.
pub const FORGOTTEN_KEYS_MAX: usize = 64;
