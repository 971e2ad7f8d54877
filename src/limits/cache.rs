//! Bounds of the cache.

/// Items in a block of a table that grows without moving: 64 entries of an LRU are 6 KiB, so a
/// table has at most that much room it does not use. A power of two.
pub const TABLE_BLOCK_ITEMS: usize = 64;

/// Bytes that a tenant costs beside its entries: its row, its place in the order of sizes (a B-tree
/// whose nodes are two thirds full) and its link in the index.
pub const TENANT_BYTES: usize = 96;

/// Parts of a table that reactors share, each with a lock. A lock is held for less than a
/// microsecond, so that with eight reactors two meet in one part at less than one request in ten.
pub const SHARDS: usize = 16;

const _: () = assert!(TABLE_BLOCK_ITEMS.is_power_of_two());

/// Bytes of an entry in the level that daemons share: a response of 250,000 tokens. Longer ones
/// stay in the memory of the daemon that has computed them.
pub const SHARED_ENTRY_BYTES_MAX: usize = 1 << 20;
