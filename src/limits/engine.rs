//! Bounds of the engine: prompts, contexts, model files, the proof of a model, restarts.

use std::time::Duration;

// ---- prompts and what is generated ----

/// Bytes that a prompt token has on average at the least: about what the tokenizers of the field
/// make of English and code. Estimates of a prompt's tokens divide by it: the reservation against a
/// rate limit, the wait for a place, and the echo engine's count. Chinese text and dense code have
/// fewer bytes per token; a reservation is settled with the true count when the job has ended.
pub const BYTES_PER_TOKEN: usize = 4;

/// Tokens to generate if the request sets no maximum: some hundred lines of code. A small model
/// that has found no end by then will not find one.
pub const GENERATED_TOKENS_DEFAULT: u32 = 1_024;

/// Tokens that a request may ask for; the engine clips it to the room in its context.
pub const GENERATED_TOKENS_MAX: u32 = 1_000_000;

/// The context that the echo engine claims to have: more than any body may hold.
pub const ECHO_CONTEXT_TOKENS: u32 = 1 << 20;

/// The last tokens that repetition penalties look at: llama.cpp's default.
pub const PENALTY_WINDOW_TOKENS: i32 = 64;

// ---- context and batches ----

/// The KV cache takes free memory divided by this, unless the configuration sets its size.
pub const CONTEXT_MEMORY_DIVISOR: u64 = 4;

/// Less context than this is of no use for a program and its prompt.
pub const CONTEXT_TOKENS_MIN: u32 = 512;

/// More context is given when it is asked for.
pub const CONTEXT_TOKENS_DEFAULT: u32 = 2048;

/// llama.cpp pads contexts to multiples of this.
pub const CONTEXT_STEP_TOKENS: u32 = 256;

/// Tokens in one batch of prompts.
pub const PREFILL_BATCH_TOKENS_MAX: u32 = 512;

/// Prompt tokens of a step as long as no speed was measured.
pub const PROMPT_STEP_TOKENS_TYPICAL: usize = 64;

/// Beside outputs a step reads prompts for at most this many times as long as it has computed
/// outputs. A stream beside long prompts then has a third of its speed, and the prompts two thirds
/// of the engine.
pub const PROMPT_TIME_FACTOR_MAX: u32 = 2;

/// A step reads at least this many, however slow the machine is: reading the weights for fewer
/// costs as much.
pub const PROMPT_STEP_TOKENS_MIN: usize = 8;

/// A step of fewer tokens reads one prompt. llama.cpp computes pieces of several sequences in
/// passes of as many tokens for each, and a pass of few tokens costs nearly what one of many does.
pub const PROMPT_STEP_DIVIDED_TOKENS_MIN: usize = 64;

/// Weight of a batch of full size in the measured cost of a prompt token. It is high, so that the
/// budget holds again a few steps after the machine got other work.
pub const PROMPT_COST_WEIGHT: f64 = 0.5;

/// The share of the prompt tokens that all prompts get in turn; the rest goes to the shortest.
pub const PROMPT_TURN_DIVISOR: usize = 4;

/// The piece of a prompt that is read at once in reproducible mode. It depends on no measurement.
pub const REPRODUCIBLE_PIECE_TOKENS: usize = 64;

/// Computed states of the daemon's own prompts: one per language, some 20 tokens each; 1 MiB per
/// language for a model of 7 billion parameters.
pub const PREFIX_STATES_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Live jobs that may wait above `engine.queue` until the engine's thread has made room for them:
/// as many as come from other tenants during a step of a quarter of a second at 250 per second.
pub const QUEUE_SLACK_JOBS: u32 = 64;

// ---- sharing the engine ----

/// Tokens after which a job yields its sequence to a tenant that waits and has had less: some
/// twenty lines of code, and a copy of a sequence takes about as long as one of them.
pub const SEAT_SHARE_TOKENS: u32 = 256;

/// Time after which it does so: with many sequences on a slow machine a stream makes few tokens.
pub const SEAT_SHARE_TIME: Duration = Duration::from_secs(4);

/// A job keeps a sequence for at least this long, even if its tenant has others and another tenant
/// has none: moving a job costs some 20 ms.
pub const SEAT_LENT_TIME_MIN: Duration = Duration::from_millis(100);

/// Jobs that yield in one step: at some 20 ms each they do not double the time of a step.
pub const YIELDED_JOBS_PER_STEP_MAX: usize = 4;

/// Jobs that have yielded and wait to go on, and as many paused streams beside them. Above it jobs
/// keep their sequences until they end.
pub const YIELDED_JOBS_MAX: usize = 256;

/// Copies of the sequences of jobs that have yielded: ten of 2,048 tokens for a model of half a
/// billion parameters. A job without a copy reads its tokens again.
pub const SAVED_STATES_BYTES_MAX: usize = 256 * 1024 * 1024;

/// Tenants at rest whose use of the engine is remembered.
pub const RESTING_LINES_MAX: usize = 4_096;

/// Waiting jobs that are checked for their end in one step, in turn: all of a queue of the default
/// size. A check takes some 20 ns, so a queue of 65,536 costs no more.
pub const SWEPT_JOBS_PER_STEP_MAX: usize = 256;

/// Background jobs that have waited this long go before live ones, one at a time.
pub const BACKGROUND_PATIENCE: Duration = Duration::from_secs(10);

/// A stream without credit for this long pauses. A client that still reads drains its connection's
/// buffers much faster.
pub const CREDIT_PATIENCE: Duration = Duration::from_secs(3);

/// How often an engine that has only paused streams looks for credit: credit is a counter, and
/// granting it wakes no thread.
pub const CREDIT_POLL_INTERVAL: Duration = Duration::from_millis(20);

// ---- measured speed ----

/// When a client may come back to a full queue as long as no speed was measured.
pub const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Jobs that must have ended before estimates from measured speed may refuse one.
pub const SPEED_CONFIDENT_JOBS_MIN: u32 = 8;

/// Weight of the newest sample in the averages of speed: the last 16 or so count.
pub const SPEED_SAMPLE_WEIGHT: f64 = 1.0 / 16.0;

/// A batch of prompts with at least this many tokens counts as a whole sample: in smaller ones the
/// fixed cost of a batch shows.
pub const SPEED_FULL_SAMPLE_TOKENS_MIN: usize = 64;

/// A sample counts as at most this many times the average: batches differ by a factor of two or
/// three, and a larger sample measured something other than computing.
pub const SPEED_OUTLIER_FACTOR_MAX: f64 = 4.0;

/// A speed whose last sample is older than this is unknown: if a wrong estimate refuses every job,
/// it does so for a minute at most.
pub const SPEED_STALE_AFTER: Duration = Duration::from_secs(60);

// ---- what crosses the border to llama.cpp ----

/// The text of one token. The longest in the field's vocabularies are runs of 128 blanks.
pub const TOKEN_TEXT_BYTES_MAX: usize = 256;

/// Bytes read of one value of a GGUF file's metadata: names, of which the longest have 100.
pub const METADATA_TEXT_BYTES_MAX: usize = 1024;

/// Bytes kept of an exception's message: llama.cpp's longest name a tensor and two shapes.
pub const EXCEPTION_CAUSE_BYTES_MAX: usize = 512;

/// Text that is tokenized in one call. Where llama.cpp has no code of its own for a model's
/// pre-tokenizer it runs `std::regex`, which recurses once for each character of a match, and a
/// match may be as long as the text. Together with [`TOKENIZER_STACK_BYTES`] this leaves 4 KiB of
/// stack for each byte; the hungriest pre-tokenizer was measured at less than a quarter of that.
pub const TOKENIZER_PIECE_BYTES_MAX: usize = 4 * 1024;

/// The stack of the thread that tokenizes pieces. It takes memory only as far as it is touched.
pub const TOKENIZER_STACK_BYTES: usize = 16 * 1024 * 1024;

/// A text this short needs no stack of its own: 4 KiB for each byte are within the 2 MiB that any
/// thread has, with as much left for its caller.
pub const TOKENIZER_SHORT_TEXT_BYTES_MAX: usize = 256;

/// A model's chat template: the longest of the field have 20 KiB.
pub const TEMPLATE_BYTES_MAX: usize = 256 * 1024;

/// Instructions that rendering a template may take: about 1,000 messages of a complex template.
pub const TEMPLATE_INSTRUCTIONS_MAX: u64 = 1_000_000;

// ---- model files ----

/// Entries of a GGUF file's metadata, and tensors: the field's largest files have 70 and 3,000.
pub const GGUF_ENTRIES_MAX: u64 = 65_536;

/// Items of an array in a GGUF file: the largest vocabularies have 262,144 words.
pub const GGUF_ITEMS_MAX: u64 = 16 * 1024 * 1024;

/// A name, or a text that is looked at, in a GGUF file: templates are the longest.
pub const GGUF_TEXT_BYTES_MAX: u64 = 1024 * 1024;

/// Layers that llama.cpp has room for (`LLAMA_MAX_LAYERS`).
pub const GGUF_LAYERS_MAX: i128 = 512;

// ---- the proof of a model ----

/// Context of the two sequences that a model is proved with: room for a short prompt.
pub const PROOF_CONTEXT_TOKENS: u32 = 256;

/// Tokens of the prompt that a model is proved with: templates put 30 to 60 around a word.
pub const PROOF_PROMPT_TOKENS_MAX: u32 = 32;

/// Processor time that a proof may take, beside a second for each [`PROOF_BYTES_PER_CPU_SECOND`]
/// bytes of the file.
pub const PROOF_CPU_TIME: Duration = Duration::from_secs(600);

/// Bytes of the file that a proof gets one more second for: weights are read, some are put into
/// another order, and 34 tokens are computed.
pub const PROOF_BYTES_PER_CPU_SECOND: u64 = 16 * 1024 * 1024;

/// How often a daemon that waits for a proof checks whether the model is still wanted.
pub const PROOF_POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Bytes kept of a proof's last output: some lines of llama.cpp and a panic's message.
pub const PROOF_LAST_WORDS_BYTES_MAX: usize = 16 * 1024;

/// Bytes of the line that reports to an operator how a proof ended.
pub const PROOF_CAUSE_BYTES_MAX: usize = 1024;

// ---- restarts and the end ----

/// Restarts of the engine after a panic; after the last one the process ends.
pub const RESTARTS_MAX: u32 = 5;

/// The pause before the first restart; each later one is twice as long. Five take 6 s together.
pub const RESTART_PAUSE: Duration = Duration::from_millis(200);

/// How often the engine checks during that pause whether it is still wanted.
pub const RESTART_POLL_INTERVAL: Duration = Duration::from_millis(50);

/// After this long without a panic the count of restarts begins again.
pub const RESTARTS_FORGOTTEN_AFTER: Duration = Duration::from_secs(600);

/// How long an engine that stops while its model is being loaded waits for its thread: a download
/// stops at the next bytes, llama.cpp's loading at the next tensor, and a thread that takes longer
/// hangs.
pub const LOADING_STOP_PATIENCE: Duration = Duration::from_secs(2);

/// How long an engine that stops waits for prompts that are being prepared: ten times as long as
/// the largest prompt of the default body takes.
pub const PREPARING_STOP_PATIENCE: Duration = Duration::from_secs(2);
