//! The message border between the daemon and whatever writes the answers.
//!
//! A [`Job`] goes in through [`Engine::submit`], which never blocks. Its [`Event`]s come back
//! through the mailbox of the reactor that sent it: any number of `Token`s, as far as the
//! ticket's credit reaches, then exactly one terminal event, `Done` or `Failed`, for every job that
//! was admitted, cancelled ones included. Nothing here assumes that the engine is a thread: job
//! and events are plain data, so it can as well be a child process or another machine.
//!
//! * [`echo`] answers at once with a fixed program, for measuring the daemon itself.
//! * `llama` runs GGUF models in process through llama.cpp, with continuous batching.

pub mod code;
pub mod echo;
mod epilogue;
pub mod family;
#[cfg(feature = "llama")]
pub mod llama;
pub mod prompt;

use std::sync::Arc;
use std::time::Duration;

use crate::core::Moment;
use crate::error::ErrorCode;
use crate::offload::{CancelReason, JobKey, Ticket};

/// Writes a GGUF model to another file with its weights as `q8_0`. Takes about a second for each
/// 100 MB and all cores; the caller's thread waits. The error is for people.
#[cfg(feature = "llama")]
pub use llama::optimize;

#[cfg(not(feature = "llama"))]
pub fn optimize(_: &std::path::Path, _: &std::path::Path) -> Result<(), String> {
    Err("llama.cpp is not compiled in: build with the feature `llama`".to_owned())
}

/// One request for an answer, complete in itself.
#[derive(Clone, Debug)]
pub struct Job {
    pub key: JobKey,
    /// Whose conversation this is: a computed prefix is shared within one tenant only.
    pub tenant: u64,
    pub prompt: Prompt,
    pub sampling: Sampling,
    /// Tokens to generate at most; the engine clips it to the room its context has.
    pub max_tokens: u32,
    /// Generation ends before the first of these strings; none of them is part of the answer.
    pub stop: Vec<String>,
    /// When the whole request, queueing and prompt included, is over.
    pub deadline: Moment,
    pub submitted: Moment,
    pub ticket: Arc<Ticket>,
}

/// What the model shall continue, before any template is applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// A program is wanted; the engine adds the system prompt that suits its model.
    Code {
        language: Option<&'static str>,
        prompt: String,
        context: Vec<ContextFile>,
    },
    /// A conversation, put through the model's own chat template as it is.
    Chat(Vec<Message>),
    /// Text that the model continues, through no template.
    Raw(String),
}

impl Prompt {
    /// The bytes of what the request brought.
    pub fn bytes(&self) -> usize {
        match self {
            Prompt::Code {
                prompt, context, ..
            } => prompt.len() + context.iter().map(ContextFile::bytes).sum::<usize>(),
            Prompt::Chat(messages) => messages.iter().map(|message| message.content.len()).sum(),
            Prompt::Raw(text) => text.len(),
        }
    }
}

/// A file that the model shall see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContextFile {
    pub path: String,
    pub text: String,
}

impl ContextFile {
    fn bytes(&self) -> usize {
        self.path.len() + self.text.len()
    }
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    pub content: String,
}

/// How the next token is chosen. The fields' meanings and defaults are llama.cpp's.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// 0 is greedy. At most 2.
    pub temperature: f32,
    /// In (0, 1]; 1 switches it off.
    pub top_p: f32,
    /// 0 switches it off.
    pub top_k: u32,
    /// In [0, 1]; 0 switches it off.
    pub min_p: f32,
    /// The same seed, prompt and model give the same answer; `None` draws one.
    pub seed: Option<i64>,
    /// In [-2, 2], as in the OpenAI API; 0 switches it off.
    pub frequency_penalty: f32,
    /// In [-2, 2], as in the OpenAI API; 0 switches it off.
    pub presence_penalty: f32,
    /// In (0, 2]; 1 switches it off.
    pub repeat_penalty: f32,
}

impl Default for Sampling {
    fn default() -> Sampling {
        Sampling {
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            seed: None,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            repeat_penalty: 1.0,
        }
    }
}

/// What an engine tells about a job.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A piece of the answer: one token's text, or several merged for want of credit. Always
    /// whole UTF-8 characters, never part of a stop string.
    Token { text: String },
    /// The answer is complete.
    Done(Box<Done>),
    /// There will be no (more) answer.
    Failed(Box<Failed>),
}

impl Event {
    /// Whether this is the one event that ends its job.
    pub fn is_terminal(&self) -> bool {
        !matches!(self, Event::Token { .. })
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Done {
    /// The text that no `Token` event has carried yet: all of it where credit was 0.
    pub text: String,
    pub finish_reason: FinishReason,
    pub usage: Usage,
    pub timings: Timings,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Failed {
    pub reason: FailReason,
    /// For people: what failed and the way out.
    pub message: String,
    /// What was generated until then and no `Token` event has carried yet.
    pub text: String,
    pub usage: Usage,
    pub timings: Timings,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailReason {
    /// The ticket was cancelled; nobody reads this but the counters.
    Cancelled(CancelReason),
    /// An error of the catalogue, such as `generation_timeout` or `context_length_exceeded`.
    Error(ErrorCode),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended its answer, or a stop string was met.
    Stop,
    /// `max_tokens` or the context's end was reached.
    Length,
}

impl FinishReason {
    /// The OpenAI API's word.
    pub const fn as_str(self) -> &'static str {
        match self {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
        }
    }
}

/// Tokens spent on one job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub prompt_tokens: u32,
    /// How many of `prompt_tokens` were found computed already.
    pub cached_tokens: u32,
    pub completion_tokens: u32,
}

/// Where one job's time went. The parts of `Server-Timing`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// From `submitted` to the first prompt token's computation.
    pub queue: Duration,
    /// Computing the prompt, up to the first generated token.
    pub prefill: Duration,
    /// From the first generated token to the last.
    pub decode: Duration,
}

/// Why a job was not admitted. It comes back at once, on the caller's stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The queue is at its bound; the wait is computed from measured speed.
    QueueFull { retry_after: Duration },
    /// By measured speed the first token would come later than the deadline.
    DeadlineUnmeetable { estimated: Duration },
    /// The model is being loaded.
    Loading,
    /// The engine could not be started, or has ended; the text says why.
    Unavailable(String),
    /// The engine is draining.
    Draining,
}

/// Whether an engine can answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// 0 to 100.
    Loading {
        percent: u8,
    },
    Ready,
    /// A step does not end: for so long there was no sign of life.
    Stalled {
        seconds: u64,
    },
    Failed(String),
}

/// What a model is, for `/api/v1/models` and for the `model` member of an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelInfo {
    pub id: String,
    /// What made the answers: `llama` or `echo`.
    pub engine: &'static str,
    /// The model's own description, such as `llama 135M Q4_1`.
    pub description: String,
    /// Context of one sequence, in tokens.
    pub context_length: u32,
    /// When the model was loaded, in seconds since 1970.
    pub created: u64,
    pub defaults: Defaults,
}

/// What a request for a program gets for the parameters that it leaves open: they depend on the
/// model, so they are known when that is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Defaults {
    pub repeat_penalty: f32,
    pub max_tokens: u32,
}

impl Default for Defaults {
    fn default() -> Defaults {
        family::NEUTRAL.defaults()
    }
}

/// Numbers for `/metrics`, read at each scrape.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Gauges {
    pub sequences_running: u32,
    pub queue_depth: u32,
    /// Totals since the start.
    pub prompt_tokens: u64,
    pub prompt_cached_tokens: u64,
    pub generated_tokens: u64,
    pub decode_steps: u64,
    /// Cells of the KV cache that hold a token, and all of them.
    pub kv_used: u64,
    pub kv_size: u64,
    /// Signs of life: steps, and parts of steps. They stand still while the engine is at rest.
    pub beats: u64,
    /// How long there was none although there is work; zero at rest.
    pub silence: Duration,
    /// Starts of the engine after a panic.
    pub restarts: u64,
}

impl Gauges {
    /// What only grows, and the rest at zero: where an engine that starts again goes on from.
    pub fn totals(self) -> Gauges {
        Gauges {
            prompt_tokens: self.prompt_tokens,
            prompt_cached_tokens: self.prompt_cached_tokens,
            generated_tokens: self.generated_tokens,
            decode_steps: self.decode_steps,
            kv_size: self.kv_size,
            ..Gauges::default()
        }
    }
}

/// Something that turns jobs into answers. All methods return at once and may be called from
/// any thread.
pub trait Engine: Send + Sync {
    /// Admits a job, or says why not. After `Ok`, exactly one terminal event will follow.
    fn submit(&self, job: Job) -> Result<(), Refused>;

    fn state(&self) -> State;

    /// The model, as soon as it is known.
    fn model(&self) -> Option<ModelInfo>;

    fn gauges(&self) -> Gauges;

    /// Admits nothing more and ends once all admitted jobs have had their terminal event.
    fn drain(&self);
}

/// Where an engine delivers events: the mailboxes of all reactors.
pub trait Deliver: Send + Sync {
    /// Delivers all of `events` and leaves it empty. One call wakes each reactor at most once, so
    /// an engine collects what one step brings. Never blocks.
    fn deliver(&self, events: &mut Vec<(JobKey, Event)>);

    /// Delivers an event that comes alone.
    fn deliver_one(&self, key: JobKey, event: Event) {
        self.deliver(&mut vec![(key, event)]);
    }
}
