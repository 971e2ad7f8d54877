//! Bounds of requests, and of what the service keeps for them.

use std::time::Duration;

// ---- admission ----

/// Buckets that addresses without a key share: 256 KiB for the whole daemon, of which the kernel
/// provides only the touched pages. At 1,000 such addresses one in 33 shares a bucket.
pub const ADDRESS_BUCKETS: usize = 32_768;

/// Addresses of a `Forwarded` or `X-Forwarded-For` field that are followed from the right. Chains
/// of proxies have two or three.
pub const FORWARDED_HOPS_MAX: u32 = 32;

// ---- request bodies ----

/// Members of a JSON object in a body. The largest form has 20; the search for duplicates is
/// quadratic, and 64 members make that some 2,000 comparisons.
pub const JSON_MEMBERS_MAX: usize = 64;

/// Members that a body usually has: its list starts with room for them.
pub const JSON_MEMBERS_TYPICAL: usize = 8;

/// A field's name that is longer than this is not compared with the known ones. The longest of
/// them has 17 bytes, so a typo of one is far shorter; the comparison of a name of 1 MiB takes
/// 190 ms.
pub const SUGGESTION_NAME_BYTES_MAX: usize = 64;

/// Bytes of a client's own text that an error message repeats: enough to recognise it.
pub const EXCERPT_BYTES_MAX: usize = 64;

/// Bytes of a model's or a language's name in a request.
pub const NAME_BYTES_MAX: usize = 256;

/// Bytes of a prompt: four times what fits into a context of 32,768 tokens of Chinese text, so
/// that the model's own bound is the one that a user meets.
pub const PROMPT_BYTES_MAX: usize = 512 * 1024;

/// Files of context in one request.
pub const CONTEXT_FILES_MAX: usize = 64;

/// Bytes of a context file's path: Linux's own bound, `PATH_MAX`.
pub const CONTEXT_PATH_BYTES_MAX: usize = 4_096;

/// Stop strings in one request. Each is searched for in every piece of the generated text. The
/// OpenAI API takes 4.
pub const STOP_STRINGS_MAX: usize = 16;

/// Bytes of a stop string: that much text is held back in case the string begins there.
pub const STOP_STRING_BYTES_MAX: usize = 256;

/// A body that can become no longer than this is read by the reactor itself; a worker reads all
/// others. The worst body of this size takes half a millisecond, and one goes to a worker and back
/// in 50 us.
pub const READ_AT_ONCE_BYTES_MAX: usize = 64 * 1024;

/// The same for a compressed body as it came: the worst one takes 280 ns for each byte.
pub const INFLATE_AT_ONCE_BYTES_MAX: usize = 1_024;

/// How much larger than its compressed form a text usually is: the work that a compressed body
/// stands for before its size is known.
pub const INFLATION_FACTOR_TYPICAL: usize = 8;

// ---- generations ----

/// Token events that a stream's job may have under way: enough to fill the time between two turns
/// of a busy loop, and a few hundred bytes for a client that does not read.
pub const CREDIT_EVENTS: u32 = 32;

/// A stream that has sent nothing for this long sends a comment: well below the 30 to 60 s after
/// which proxies and phone networks take a silent connection for a dead one.
pub const PING_INTERVAL: Duration = Duration::from_secs(15);

/// How long after a request's deadline its engine may take to report it. The engine looks at
/// deadlines once per step, and the longest step is a chunk of a prompt.
pub const ENGINE_GRACE: Duration = Duration::from_secs(2);

/// How long a refused client is asked to wait if nothing better is known: the shortest time that
/// `Retry-After` can express.
pub const BUSY_RETRY_AFTER: Duration = Duration::from_secs(1);

/// The same while a model is being loaded, which takes seconds.
pub const LOADING_RETRY_AFTER: Duration = Duration::from_secs(2);

// ---- responses ----

/// Text of a generation whose response the reactor writes itself: with gzip it takes 0.9 ms. A
/// worker writes longer ones, or the last event of a longer stream.
pub const WRITE_AT_ONCE_BYTES_MAX: usize = 16 * 1024;

/// Bytes that a reactor compresses at once, 28 ns each with gzip. A longer body that no worker has
/// written, such as the metrics, is sent as it is.
pub const CODE_AT_ONCE_BYTES_MAX: usize = 32 * 1024;

/// How soon a response that found no place at the workers is tried again.
pub const WORKER_RETRY: Duration = Duration::from_millis(20);

/// How long a request waits for the store: as long as another process may hold its lock, and the
/// group before it as well.
pub const STORE_TIME_MAX: Duration = Duration::from_secs(10);

/// How long a response may take to be written: the pool is seldom a second behind.
pub const WRITING_TIME_MAX: Duration = Duration::from_secs(30);

/// Bytes of a response's buffer that a reactor keeps for the next one.
pub const RESPONSE_BUFFER_KEPT_BYTES_MAX: usize = 256 * 1_024;

/// Bytes of a body that is kept in coded forms; a larger one is compressed for each request.
pub const STATIC_BODY_BYTES_MAX: usize = 64 * 1024;

/// Streams of one reactor that may hold an encoder; later ones are sent uncompressed. As many as an
/// engine can decode together (llama.cpp's `LLAMA_MAX_SEQ`); 256 of 305 KiB are 76 MiB.
pub const COMPRESSED_STREAMS_MAX: u32 = 256;

// ---- streams of gRPC without a job ----

/// How long a stream of gRPC may stay open that is not a generation: a watch of health, a dialogue
/// about the schema. Their clients open another one (a watch reconnects by protocol), so that its
/// place becomes free for others, and the streams move on to other daemons behind a balancer.
pub const JOBLESS_STREAM_AGE_MAX: Duration = Duration::from_secs(300);

/// Bytes of the message that asks about a job over gRPC: its id, and the id of an event.
pub const JOB_QUESTION_BYTES_MAX: usize = 1_024;

/// Bytes of the message that asks for a service's health: its name. It needs no key.
pub const HEALTH_REQUEST_BYTES_MAX: usize = 1_024;

/// The interval between two looks at the state of watched services.
pub const HEALTH_WATCH_INTERVAL: Duration = Duration::from_millis(500);

/// Questions in one reflection stream. A client that asks for every symbol asks about fifty.
pub const REFLECTION_QUESTIONS_MAX: u32 = 1_024;

/// Bytes of a question: a symbol's or a file's name.
pub const REFLECTION_QUESTION_BYTES_MAX: usize = 4 * 1_024;

/// Bytes of questions that wait for room in the output.
pub const REFLECTION_PENDING_BYTES_MAX: usize = 64 * 1_024;

const _: () = assert!(REFLECTION_QUESTION_BYTES_MAX < REFLECTION_PENDING_BYTES_MAX);

/// How soon a reflection stream whose output was full looks again.
pub const REFLECTION_RETRY: Duration = Duration::from_millis(50);
