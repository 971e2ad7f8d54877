//! Bounds of the prefixes on disk (`cache.prefixes`).

use std::time::Duration;

/// A copy must save at least this many tokens. Two cores read 256 tokens of a model of half a
/// billion parameters in about two seconds; a copy of them is 3 MiB, and is loaded in some ten
/// milliseconds.
pub const TOKENS_MIN: usize = 256;

/// Memory for all copies that wait to be written, are being written, or were read and wait for the
/// engine. 2,000 tokens of the default model take 23.4 MiB, so this is five of them. A larger
/// sequence is not kept.
pub const COPIES_BYTES_MAX: usize = 128 * 1024 * 1024;

/// Copies that may wait to be written, whatever their size.
pub const WAITING_FILES_MAX: usize = 64;

/// Time of a step for copies of prefixes, into the engine and out of it: all streams wait for them.
/// A fifth of the default `engine.prompt_budget`, and about two sequences of 2,000 tokens of the
/// default model. A sequence that would take longer by itself is not copied.
pub const COPY_TIME_MAX: Duration = Duration::from_millis(50);

/// Copies that are taken in one step, as long as their cost is not known.
pub const COPIED_SEQUENCES_PER_STEP_MAX: usize = 2;

/// Files that may wait to be read: one for each sequence.
pub const LOADED_FILES_MAX: usize = 256;

/// A job whose prefix has not come from the disk by then reads its prompt itself.
pub const LOAD_PATIENCE: Duration = Duration::from_secs(2);

/// How often the reading thread looks whether there is room for a state.
pub const ROOM_POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Bytes that are read or written at once. Between two pieces a thread looks whether the rest is
/// still wanted.
pub const PIECE_BYTES: usize = 1024 * 1024;

/// Bytes per second that are written while the daemon serves: below what any disk of the last
/// twenty years writes in sequence, so that the store's commits are not held up for long.
pub const WRITTEN_BYTES_PER_SECOND: u64 = 64 * 1024 * 1024;

/// Bytes that may be written at once after a quiet time, half of them for one tenant: ten sequences
/// of 2,000 tokens of the default model.
pub const WRITTEN_BURST_BYTES: u64 = 256 * 1024 * 1024;

/// Bytes that may be written per minute in the long run, half of them for one tenant: 2 MiB per
/// second, 62 TB in a year. Solid-state disks of 1 TB endure 600 TB.
pub const WRITTEN_BYTES_PER_MINUTE: u64 = 120 * 1024 * 1024;

/// Keys whose writes are counted apart. More than that write within those minutes only if their
/// sequences have few bytes.
pub const WRITING_KEYS_MAX: usize = 256;

/// A sequence that no job has used for this long is written while the daemon serves, so that the
/// end has little to write: a conversation that goes on at once is written only when it rests.
pub const KEPT_AFTER: Duration = Duration::from_secs(10);

/// When such a sequence is looked at again, if there was no room for it.
pub const KEEP_RETRY_PAUSE: Duration = Duration::from_secs(10);

/// Time for all copies of a daemon that ends, at the disk's own speed, if `server.drain_timeout`
/// leaves as much: most were written while the daemon ran.
pub const DRAIN_TIME_MAX: Duration = Duration::from_secs(2);

/// How often the end of the daemon looks for a second signal meanwhile.
pub const END_POLL_INTERVAL: Duration = Duration::from_millis(20);

/// How long the end of an engine, and the next start, wait for threads that hang in the disk.
pub const STOP_PATIENCE: Duration = Duration::from_secs(1);

/// After a write that failed, no copy is taken for this long: a full disk stays full for a while,
/// and a copy costs the engine some milliseconds.
pub const WRITE_RETRY_PAUSE: Duration = Duration::from_secs(10);

/// How often a failure of the disk is logged.
pub const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Files in the folder. Their tokens are kept in memory, 4 bytes each, and compared with a prompt
/// in some microseconds per file.
pub const FILES_MAX: usize = 4_096;

/// Keys whose purges are kept apart while the folder is not read, such as while the model is
/// fetched. More purge the files of all.
pub const PURGED_KEYS_MAX: usize = 64;

/// Tokens of one file: the longest contexts of the field.
pub const TOKENS_MAX: usize = 1 << 20;

/// Files of the daemon's own words: more than there are languages. Their bytes are bounded by a
/// share of `store.max_size`; those of the default model have 240 KiB per language.
pub const OWN_FILES_MAX: usize = 64;

/// The text in a file's head that names model and settings: about 400 bytes.
pub const ORIGIN_BYTES_MAX: usize = 4_096;
