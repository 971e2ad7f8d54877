//! Bounds of the configuration itself: what a file may be, and what its values may be. The
//! ranges are wide; they exist to catch a typo (a missing unit, a digit too many) and to keep
//! arithmetic on the values from overflowing.
//!
//! A range holds the values that a key accepts; its name is the key's.

use std::ops::RangeInclusive;

const SECOND_MS: u64 = 1_000;
const HOUR_MS: u64 = 3_600 * SECOND_MS;
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// A configuration file. The longest sensible one has a few kilobytes; the bound keeps
/// `--config /dev/zero` from eating the memory.
pub const FILE_BYTES_MAX: u64 = MIB;

/// Mistakes that are printed; the rest is only counted.
pub const SHOWN_PROBLEMS_MAX: usize = 50;

/// Characters of a source line that are quoted below a mistake: a terminal's width.
pub const EXCERPT_CHARACTERS_MAX: usize = 96;

/// Characters of a wrong value that are quoted inside a message.
pub const QUOTE_CHARACTERS_MAX: usize = 40;

/// A misspelt name longer than this gets no suggestion: the comparison is quadratic.
pub const SUGGESTION_BYTES_MAX: usize = 64;

/// A path or a model's name: PATH_MAX of Linux.
pub const TEXT_BYTES_MAX: usize = 4_096;

/// `sun_path` of `sockaddr_un` has 108 bytes, the last of which is NUL (unix(7)).
pub const UNIX_PATH_BYTES_MAX: usize = 107;

/// A descriptor's name as the service manager accepts it (sd_pid_notify_with_fds(3)).
pub const DESCRIPTOR_NAME_BYTES_MAX: usize = 255;

/// `server.listen`: each address is a descriptor in every reactor's interest list.
pub const ADDRESSES: RangeInclusive<usize> = 1..=64;

/// `server.tls.certificates`: each is a series of its expiry, and one more name to compare with
/// the one that a client asks for.
pub const CERTIFICATE_FILES: RangeInclusive<usize> = 0..=64;

/// `server.tls.client_keys`: compared one after the other, when a request brings no key.
pub const CLIENT_KEYS: RangeInclusive<usize> = 0..=256;

/// `engine.model`: tried one after the other, each perhaps with a download.
pub const MODELS: RangeInclusive<usize> = 1..=16;

/// Sections such as `[models."NAME"]`, of one kind: more than the models that one list may have.
pub const SECTION_NAMES_MAX: usize = 64;

/// `server.trusted_proxies`: compared one after the other, for each request.
pub const TRUSTED_PROXIES: RangeInclusive<usize> = 0..=256;

/// `server.hosts`: compared one after the other, for each request that brings no key.
pub const HOSTS: RangeInclusive<usize> = 0..=64;

/// `server.reactors`: more threads than the cores of any machine of this size gain nothing.
pub const REACTORS: RangeInclusive<u64> = 1..=64;

/// `engine.stall_timeout`: below a second a busy machine would be taken for a hang.
pub const STALL_TIMEOUT_MS: RangeInclusive<u64> = SECOND_MS..=HOUR_MS;

/// `server.drain_timeout`.
pub const DRAIN_TIMEOUT_MS: RangeInclusive<u64> = 0..=HOUR_MS;

/// `server.compress_min`: below 64 bytes every coding grows what it is given.
pub const COMPRESS_MIN_BYTES: RangeInclusive<u64> = 64..=GIB;

/// Keys `*_per_minute` and `burst` of `rate_limit`. The upper end is far above any real limit; it
/// lets the benches drive one key with limits on.
pub const REQUESTS_PER_MINUTE: RangeInclusive<u64> = 1..=100_000_000;

/// `rate_limit.tokens_per_minute`.
pub const TOKENS_PER_MINUTE: RangeInclusive<u64> = 0..=1_000_000_000;

/// `rate_limit.concurrency`.
pub const CONCURRENT_REQUESTS: RangeInclusive<u64> = 0..=65_536;

/// `limits.max_connections` and `limits.max_connections_per_network`: Linux's hard limit for
/// descriptors of a process is `fs.nr_open`, at most 2^30.
pub const CONNECTIONS: RangeInclusive<u64> = 0..=10_000_000;

/// `limits.max_head`.
pub const HEAD_BYTES: RangeInclusive<u64> = KIB..=MIB;

/// `limits.max_uri`.
pub const URI_BYTES: RangeInclusive<u64> = 256..=MIB;

/// `limits.max_headers`: the parser's table lies on the stack and has room for
/// [`super::http1::FIELDS_MAX`] field lines.
pub const FIELDS: RangeInclusive<u64> = 8..=super::http1::FIELDS_MAX as u64;

/// `cache.max_size`: below a mebibyte a shard could not hold one long response.
pub const CACHE_BYTES: RangeInclusive<u64> = MIB..=1024 * GIB;

/// `cache.prefixes`: a model of half a billion parameters takes 12 KiB per token.
pub const CACHE_PREFIXES_BYTES: RangeInclusive<u64> = 0..=16 * 1024 * GIB;

/// `cache.ttl`.
pub const CACHE_TTL_MS: RangeInclusive<u64> = SECOND_MS..=30 * 24 * HOUR_MS;

/// `cache.store_timeout`: below it a healthy disk is late, above it a generation is faster.
pub const CACHE_STORE_TIMEOUT_MS: RangeInclusive<u64> = 10..=60 * SECOND_MS;

/// `cache.second_delete`: a copy takes a millisecond or more, and after a minute none is on its
/// way.
pub const CACHE_SECOND_DELETE_MS: RangeInclusive<u64> = 1..=60 * SECOND_MS;

/// `cache.negative_ttl`: a longer one would outlive most changes that make a prompt fit.
pub const CACHE_NEGATIVE_TTL_MS: RangeInclusive<u64> = 0..=HOUR_MS;

/// `limits.max_body`.
pub const BODY_BYTES: RangeInclusive<u64> = KIB..=GIB;

/// `limits.max_buffered`.
pub const BUFFERED_BYTES: RangeInclusive<u64> = 0..=1024 * GIB;

/// `limits.max_inflate_ratio`: deflate reaches 1,032 and the others a million; text that people
/// wrote stays below 20.
pub const INFLATE_RATIO: RangeInclusive<u64> = 10..=1_000_000;

/// `limits.header_timeout`: shorter than 100 ms cuts off honest clients on a slow path.
pub const HEADER_TIMEOUT_MS: RangeInclusive<u64> = 100..=600 * SECOND_MS;

/// `limits.body_timeout`.
pub const BODY_TIMEOUT_MS: RangeInclusive<u64> = 100..=HOUR_MS;

/// `limits.idle_timeout`.
pub const IDLE_TIMEOUT_MS: RangeInclusive<u64> = 100..=24 * HOUR_MS;

/// `limits.write_timeout`.
pub const WRITE_TIMEOUT_MS: RangeInclusive<u64> = 100..=HOUR_MS;

/// `limits.max_request_timeout` and `limits.default_request_timeout`.
pub const REQUEST_TIMEOUT_MS: RangeInclusive<u64> = 100..=24 * HOUR_MS;

/// `store.pool_size`: a server of PostgreSQL accepts 100 connections by default, of all daemons.
pub const STORE_CONNECTIONS: RangeInclusive<u64> = 1..=64;

/// `store.connect_timeout` and `store.statement_timeout`: below 100 ms a busy server would seem
/// dead; a daemon that ends waits for its last statement this long.
pub const STORE_TIMEOUT_MS: RangeInclusive<u64> = 100..=60 * SECOND_MS;

/// `limits.max_requests_per_connection`.
pub const REQUESTS_PER_CONNECTION: RangeInclusive<u64> = 0..=1_000_000_000;

/// `engine.parallel`: llama.cpp holds at most 256 sequences in a context (`LLAMA_MAX_SEQ`).
pub const SEQUENCES: RangeInclusive<u64> = 1..=256;

/// `engine.threads`: ggml holds at most 512 threads in a pool (`GGML_MAX_N_THREADS`).
pub const THREADS: RangeInclusive<u64> = 0..=512;

/// `engine.context`.
pub const CONTEXT_TOKENS: RangeInclusive<u64> = 0..=1_048_576;

/// `engine.queue`.
pub const ENGINE_QUEUE_JOBS: RangeInclusive<u64> = 1..=65_536;

/// `engine.prompt_budget`. Below 10 ms most of the work of reading the weights is wasted; above
/// 10 s clients take the running streams for dead.
pub const PROMPT_BUDGET_MS: RangeInclusive<u64> = 10..=10_000;

/// `engine.gpu_layers`; 999 means all.
pub const GPU_LAYERS: RangeInclusive<u64> = 0..=9_999;

/// Hosts in `cache.shared.url`: sentinels, or the first nodes of a cluster to ask.
pub const REDIS_HOSTS: RangeInclusive<usize> = 1..=32;

/// `cache.shared.timeout`: a shorter one fails on an honest network; a longer one makes a miss
/// slower than the computation that it was to save.
pub const SHARED_TIMEOUT_MS: RangeInclusive<u64> = 5..=5_000;

/// `rate_limit.lease`, in percent.
pub const LEASE_PERCENT: RangeInclusive<u64> = 1..=100;

/// `jobs.max_queued` and `jobs.max_queued_per_key`: the upper end is a store of some gigabytes.
pub const QUEUED_JOBS: RangeInclusive<u64> = 1..=10_000_000;

/// `jobs.max_size`.
pub const JOBS_BYTES: RangeInclusive<u64> = MIB..=1024 * GIB;

/// `jobs.concurrency`.
pub const RUNNING_JOBS: RangeInclusive<u64> = 1..=1_024;

/// `jobs.max_wait`, `jobs.keep` and `jobs.idempotency_ttl`: up to a year.
pub const JOB_TIMES_MS: RangeInclusive<u64> = SECOND_MS..=365 * 24 * HOUR_MS;

/// `jobs.callback_networks`: compared one after the other, for each connection.
pub const CALLBACK_NETWORK_ITEMS: RangeInclusive<usize> = 0..=256;

/// `jobs.callback_attempts`: with pauses of up to an hour, a hundred attempts take days.
pub const CALLBACK_ATTEMPTS: RangeInclusive<u64> = 1..=100;

/// `jobs.callback_timeout`: a receiver that takes longer should accept first and work later.
pub const CALLBACK_TIMEOUT_MS: RangeInclusive<u64> = 100..=60 * SECOND_MS;

/// `jobs.callback_pause`.
pub const CALLBACK_PAUSE_MS: RangeInclusive<u64> = 100..=HOUR_MS;

/// `jobs.lease`: a shorter one could run out between two renewals.
pub const LEASE_MS: RangeInclusive<u64> = SECOND_MS..=HOUR_MS;

/// `bus.peers`: a few members are enough to find all others.
pub const PEERS: RangeInclusive<usize> = 0..=64;

/// `bus.brokers`: a few of them are enough to find all others.
pub const BROKER_ITEMS: RangeInclusive<usize> = 0..=64;

/// `bus.topic`: Kafka's own bound.
pub const TOPIC_BYTES_MAX: u64 = 249;

/// An hour, so that usage can be read before its records go, to ten years.
pub const RETENTION_MS: RangeInclusive<u64> = HOUR_MS..=87_600 * HOUR_MS;

/// A record takes half a kilobyte without its text, so the most is 500 GB.
pub const KEPT_RECORDS: RangeInclusive<u64> = 0..=1_000_000_000;

/// The least has room for keys and some thousand records.
pub const STORE_BYTES: RangeInclusive<u64> = 16 << 20..=1 << 50;

/// `metrics.push.interval`: a shorter one costs the collector more than it tells.
pub const PUSH_INTERVAL_MS: RangeInclusive<u64> = 100..=HOUR_MS;

/// `metrics.push.timeout`.
pub const PUSH_TIMEOUT_MS: RangeInclusive<u64> = 100..=60 * SECOND_MS;

/// `metrics.push.headers`.
pub const PUSH_HEADER_ITEMS: RangeInclusive<usize> = 0..=32;

/// A name or a value in `metrics.push.headers`: servers accept some 8 KiB of them in all.
pub const PUSH_HEADER_BYTES_MAX: usize = 8 * 1024;

/// `metrics.push.spool`: the least has room for some intervals.
pub const PUSH_SPOOL_BYTES: RangeInclusive<u64> = 64 << 10..=GIB;
