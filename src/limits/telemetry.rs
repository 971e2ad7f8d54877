//! Bounds of the log, the access lines and the histograms.

use std::time::Duration;

// ---- log ----

/// Bytes of one log line, unescaped: message and fields. A longer one is cut. Large enough for a
/// path or a panic's message, and with all escapes within the journal's datagram (208 KiB).
pub const LOG_LINE_BYTES_MAX: usize = 16 * 1024;

/// The room that most lines need, so that they are made in one allocation.
pub const LOG_LINE_BYTES_TYPICAL: usize = 512;

/// Bytes of lines that wait for the log's thread. Its output may hold it up for as long as it takes
/// 15,000 requests to end.
pub const LOG_QUEUE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Commands (reopen, flush) that wait for the log's thread; they come from people.
pub const LOG_QUEUE_COMMANDS_MAX: usize = 16;

/// Bytes of lines for which a lingering thread is woken: 200 access lines share the system calls
/// that wake it and write them, and the bytes are still in the processor's cache. A pipe holds as
/// much.
pub const LOG_BATCH_BYTES: usize = 64 * 1024;

/// Bytes that each of the queue's two buffers begins with, and keeps after a burst.
pub const LOG_KEPT_BYTES: usize = 2 * LOG_BATCH_BYTES;

/// The same for the ends of lines, which are rarely shorter than 64 bytes.
pub const LOG_KEPT_LINES: usize = LOG_KEPT_BYTES / 64;

/// How long the log's thread waits between two batches. A reader does not notice 20 ms, and fifty
/// wake-ups per second cost nothing.
pub const LOG_LINGER: Duration = Duration::from_millis(20);

/// How long the log's thread waits after a failed write: a full disk is not worth a busy loop.
pub const LOG_RETRY_INTERVAL: Duration = Duration::from_millis(250);

/// How long the end of the daemon waits for its last lines.
pub const LOG_FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

// ---- access lines ----

/// Bytes of a client's path or `User-Agent` in an access line: enough to recognise them, and small
/// enough that no request writes more to the disk than it sent.
pub const ACCESS_TEXT_BYTES_MAX: usize = 256;

/// Bytes of a client's `x-request-id`; a longer one is replaced. Two UUIDs or a trace header fit.
pub const REQUEST_ID_BYTES_MAX: usize = 128;

// ---- histograms ----

// All bounds that OpenTelemetry's conventions advise for a metric are among its own.

/// Bounds of `autoglmd_request_duration_seconds`, in microseconds. From half a millisecond (health,
/// refusals and the echo engine; their spread below it belongs to the loop's own histogram) to ten
/// minutes, the longest request: two to four bounds per decade distinguish durations that differ
/// by a factor of two to 2.5.
pub const REQUEST_DURATION_BUCKETS_MICROS: &[u64] = &[
    500,
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    75_000,
    100_000,
    250_000,
    500_000,
    750_000,
    1_000_000,
    2_500_000,
    5_000_000,
    7_500_000,
    10_000_000,
    30_000_000,
    60_000_000,
    120_000_000,
    300_000_000,
    600_000_000,
];

/// Bounds of `autoglmd_time_to_first_token_seconds`. A cached prompt takes a few milliseconds; a
/// token that takes more than a minute has waited in the queue, and how long no longer matters.
pub const TIME_TO_FIRST_TOKEN_BUCKETS_MICROS: &[u64] = &[
    1_000, 2_500, 5_000, 10_000, 20_000, 25_000, 40_000, 50_000, 60_000, 80_000, 100_000, 250_000,
    500_000, 750_000, 1_000_000, 2_500_000, 5_000_000, 7_500_000, 10_000_000, 30_000_000,
    60_000_000,
];

/// Bounds of `autoglmd_time_per_output_token_seconds`. From a small model on a fast machine (1,000
/// tokens per second) to slower than a person reads (1 per second); finest between 5 and 100 ms,
/// where a response turns from faster to slower than its reader.
pub const TIME_PER_OUTPUT_TOKEN_BUCKETS_MICROS: &[u64] = &[
    1_000, 2_500, 5_000, 7_500, 10_000, 15_000, 20_000, 25_000, 30_000, 40_000, 50_000, 75_000,
    100_000, 150_000, 200_000, 250_000, 300_000, 400_000, 500_000, 750_000, 1_000_000, 2_500_000,
];

/// Bounds of `autoglmd_loop_turn_seconds`. A turn with one request takes about 10 us; one of 10
/// ms delays all connections visibly, and one of a second is a bug.
pub const LOOP_TURN_BUCKETS_MICROS: &[u64] = &[
    10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 1_000_000,
];

// ---- pushed metrics ----

/// Points in one request to a collector. A daemon has some 400; a collector takes 4 MiB by default,
/// and a point takes up to a kilobyte before compression.
pub const PUSH_BATCH_POINTS_MAX: usize = 1_000;

/// The wait after a first failure; a half of it is random.
pub const PUSH_RETRY_DELAY_MIN: Duration = Duration::from_secs(1);

/// The longest wait of the daemon's own choice. Together with the spool it decides how soon a
/// collector that came back has the course of its absence.
pub const PUSH_RETRY_DELAY_MAX: Duration = Duration::from_secs(60);

/// The longest wait that a collector's `Retry-After` causes: a wrong date must not end the pushes.
pub const PUSH_RETRY_AFTER_MAX: Duration = Duration::from_secs(600);

/// How long the beginning of a drain waits for the last push. A collector nearby responds in
/// milliseconds.
pub const PUSH_DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// At most one line per minute about failed pushes.
pub const PUSH_LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Bytes of the head and of the body of a collector's response, each: it says little.
pub const PUSH_RESPONSE_BYTES_MAX: usize = 16 * 1024;

/// Bytes of a file with the collector's token, or with the value of a header.
pub const PUSH_SECRET_BYTES_MAX: u64 = 8 * 1024;

/// The stack of the thread that pushes: it encodes and compresses.
pub const PUSH_STACK_BYTES: usize = 512 * 1024;

/// Characters of a collector's own words in a line of the log.
pub const PUSH_TEXT_CHARACTERS_MAX: usize = 200;
