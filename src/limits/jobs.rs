//! Bounds of durable jobs.

use std::time::Duration;

/// The bytes that a job counts beside its request and result: its row and the indexes' entries.
pub const ROW_BYTES: u64 = 512;

/// The bytes that a callback counts beside its URL: its row, with the reason of a failure.
pub const CALLBACK_ROW_BYTES: u64 = 384;

/// The bytes that an `Idempotency-Key` counts beside its text: its row and the indexes' entries.
pub const IDEMPOTENCY_ROW_BYTES: u64 = 192;

/// How often the text of the key counts: the row and both indexes have it, and the pages of the row
/// are partly empty, because the keys come in no order.
pub const IDEMPOTENCY_KEY_FACTOR: u64 = 4;

/// The bytes that an event counts beside its text.
pub const EVENT_BYTES: u64 = 64;

/// How often a job may be lost, by a daemon that was killed or an engine that failed, before it is
/// given up: it may be the cause.
pub const LOST_ATTEMPTS_MAX: u32 = 3;

/// One key's jobs may take a quarter of `jobs.max_size`, as its bodies may of the memory.
pub const KEY_BYTES_DIVISOR: u64 = 4;

/// Keys that a daemon looks at for the next job in a database that it shares. Other daemons may be
/// taking the only jobs of all of them; then this one asks again later.
pub const WAITING_KEYS_MAX: u32 = 64;

/// How long an attempt collects output before that is saved. With the time of a commit, a client
/// that follows a job sees each piece within half a second.
pub const SAVE_INTERVAL: Duration = Duration::from_millis(250);

/// Output of an attempt that is not saved: beyond it, which happens only while the store fails, the
/// engine gets no credit and waits.
pub const UNSAVED_BYTES_MAX: usize = 64 * 1024;

/// How often the store is asked for waiting jobs without an occasion: for those that another daemon
/// has accepted, or that were put off.
pub const CLAIM_INTERVAL: Duration = Duration::from_secs(1);

/// Attempts of jobs whose clients wait, beside those of `jobs.concurrency`; one key has half of
/// them. The engine's queue decides which of them compute.
pub const CALLED_ATTEMPTS_MAX: usize = 64;

/// Jobs whose clients wait for such a place.
pub const CALLED_JOBS_MAX: usize = 512;

/// Those of one key.
pub const CALLED_JOBS_PER_KEY_MAX: usize = 64;

/// Cancelled jobs that a claim under way remembers: far more than end between its commit and the
/// news of it.
pub const CANCELLED_JOBS_MAX: usize = 256;

/// How often lost, overdue and old jobs are looked for.
pub const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// A difference between the wall clock and the monotonic one that counts as a step. A clock that is
/// only adjusted drifts by half a millisecond per second.
pub const CLOCK_STEP_MIN: Duration = Duration::from_secs(1);

/// Jobs of each kind that one sweep changes: some milliseconds of the store.
pub const SWEPT_JOBS_MAX: u32 = 100;

/// How often jobs that are followed here and run elsewhere are looked at.
pub const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// Jobs that one look takes: some milliseconds of the store. If more are followed, looks take
/// turns.
pub const LOOKED_JOBS_MAX: usize = 512;

/// How old a job may be whose key this daemon does not know yet. Keys are polled each second, with
/// a store that was lost as well; the rest is for clocks that differ.
pub const KEY_NEWS_MAX: Duration = Duration::from_secs(30);

/// The pause after the engine has refused a job, or the store a task. It doubles with each failure
/// after a pause.
pub const BACKOFF_MIN: Duration = Duration::from_secs(1);

/// The longest such pause.
pub const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// How long the end of the daemon waits until running jobs are given back. A lease that is not
/// given back runs out by itself.
pub const PARK_PATIENCE: Duration = Duration::from_secs(5);

/// Notes that the runner's thread reads before it looks at its own work again.
pub const NOTE_ITEMS_PER_TURN_MAX: usize = 256;

/// Requests that follow one job on one daemon: more than any user interface opens.
pub const FOLLOWING_REQUESTS_PER_JOB_MAX: usize = 16;

/// Requests of one key that follow jobs on one daemon. Each costs a reading of the store for each
/// save of its job.
pub const FOLLOWING_REQUESTS_PER_KEY_MAX: usize = 64;

/// How long a stream that follows a job may last: its client opens another one from the last event
/// on, so that streams move on to other daemons behind a balancer.
pub const FOLLOWING_AGE_MAX: Duration = Duration::from_secs(3_600);

/// Events that one look at the store reads for a follower. They are written at once, so this is
/// what a follower that just had room may put beyond the high mark; a single longer event goes
/// alone.
pub const FOLLOWED_BYTES: usize = 32 * 1024;

/// Jobs in one page of a list.
pub const PAGE_JOBS_DEFAULT: u32 = 20;

/// The most that a client may ask for: 20 KB.
pub const PAGE_JOBS_MAX: u32 = 100;

/// `Idempotency-Key`: a UUID has 36 characters, and the field's draft shows no longer ones.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 255;

/// Callbacks that one daemon sends at once, or whose results wait for the store: far fewer than
/// there may be fetches.
pub const CALLBACK_REQUESTS_MAX: u32 = 64;

/// Callbacks of one key that one daemon sends at once: a receiver that is slow holds up its own
/// key's alone.
pub const CALLBACK_REQUESTS_PER_KEY_MAX: u32 = 8;

/// Those of them that receivers may hold for a short time alone, so that a callback begins soon
/// however many receivers are silent.
pub const CALLBACK_QUICK_REQUESTS: u32 = 8;

/// How long they may: a receiver that works has responded by then, also after a handshake of TLS
/// around the world.
pub const CALLBACK_QUICK_TIME: Duration = Duration::from_secs(1);

/// Keys that are remembered because their receivers were slower than that: 50 bytes each.
pub const CALLBACK_SLOW_KEYS_MAX: usize = 1_024;

/// Keys that one claim of callbacks looks at: two look-ups each, some milliseconds together. The
/// next claim continues behind them.
pub const CALLBACK_KEYS_MAX: u32 = 64;

/// How often the store is asked for callbacks without an occasion: for those whose pause has ended,
/// and those of jobs that other daemons have ended.
pub const CALLBACK_LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// The longest pause between two attempts of a callback, also for a receiver that asks for more.
pub const CALLBACK_PAUSE_MAX: Duration = Duration::from_secs(3_600);

/// Bytes of the head of a receiver's response; servers accept as much themselves.
pub const CALLBACK_HEAD_BYTES_MAX: usize = 16 * 1024;

/// Bytes of its body, which nothing reads: an error page.
pub const CALLBACK_BODY_BYTES_MAX: usize = 64 * 1024;

/// Characters of the reason why an attempt has failed.
pub const CALLBACK_REASON_CHARACTERS_MAX: usize = 200;
