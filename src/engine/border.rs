//! The types that cross the border between the daemon and an engine.
//!
//! Jobs and events are plain data. Knows no engine, no template and no model.

use std::sync::Arc;
use std::time::Duration;

use super::prefixes;
use crate::core::Moment;
use crate::error::ErrorCode;
use crate::offload::{CancelReason, JobKey, Ticket};

/// One request for generated text, complete in itself.
#[derive(Clone, Debug)]
pub struct Job {
    pub key: JobKey,
    /// The id of the generation, for the case that later requests get its result.
    pub id: GenerationId,
    /// The owner of this conversation: a computed prefix is shared only within one tenant, and the
    /// engine's work is divided between tenants.
    pub tenant: u64,
    pub class: Class,
    /// The tenant's share of the engine beside other tenants: one of weight 3 gets three times as
    /// much as one of weight 1. At least 1.
    pub weight: u16,
    pub prompt: Prompt,
    pub sampling: Sampling,
    /// Maximum number of tokens to generate; the engine clips it to the room in its context.
    pub max_tokens: u32,
    /// Generation ends before the first of these strings; none of them is part of the output.
    pub stop: Vec<String>,
    /// When the whole request, including queueing and prompt, expires. The ticket may extend it.
    pub deadline: Moment,
    pub submitted: Moment,
    pub cache: CacheMode,
    pub ticket: Arc<Ticket>,
}

/// Names a generation in its response and, if the response is used again, in those later ones.
pub use crate::core::id::GenerationId;

/// The client's wish for a cache of results.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheMode {
    /// A result that was computed for an equal request may be used.
    #[default]
    Use,
    /// The result is computed, and used for later requests.
    Refresh,
    /// The result is computed and not kept.
    Bypass,
}

/// The text that the model is to continue, before any template is applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// A request for a program; the engine adds the system prompt that suits its model.
    Code {
        language: Option<&'static str>,
        prompt: String,
        context: Vec<ContextFile>,
    },
    /// A conversation, rendered with the model's own chat template.
    Chat(Vec<Message>),
    /// Text that the model continues, without a template.
    Raw(String),
}

/// The purpose of a job. It decides how the engine may treat the job when there is too much work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// A client waits for the result.
    #[default]
    Live,
    /// No client waits: the job is kept on disk and runs when there is room. Once admitted it is
    /// never refused to make room for another.
    Background,
}

impl Prompt {
    /// Passes on all text that came from the request, in order.
    pub fn visit(&self, mut visit: impl FnMut(&str)) {
        match self {
            Prompt::Code {
                prompt, context, ..
            } => {
                visit(prompt);
                for file in context {
                    visit(&file.path);
                    visit(&file.text);
                }
            }
            Prompt::Chat(messages) => {
                for message in messages {
                    visit(&message.role);
                    visit(&message.content);
                }
            }
            Prompt::Raw(text) => visit(text),
        }
    }

    /// Returns that text, with a line end behind each piece.
    pub fn text(&self) -> String {
        let mut text = String::new();
        self.visit(|piece| {
            text.push_str(piece);
            text.push('\n');
        });
        text
    }

    /// Returns a digest of that text: of the length and the bytes of each piece.
    pub fn digest(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        self.visit(|piece| {
            hasher.update(&(piece.len() as u64).to_le_bytes());
            hasher.update(piece.as_bytes());
        });
        *hasher.finalize().as_bytes()
    }

    /// Returns the number of bytes that came from the request.
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

/// A file that the model is to see.
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
    /// The same seed, prompt and model produce the same output; `None` draws one.
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

/// An engine's report about a job.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The source of a stream's output, before its first token. Only an engine that reuses results
    /// sends it; without it the verdict is [`Verdict::Bypass`]. Takes no credit.
    Served(Box<Served>),
    /// A piece of the output: one token's text, or several merged for lack of credit. Always whole
    /// UTF-8 characters, never part of a stop string.
    Token { text: String },
    /// The output is complete.
    Done(Box<Done>),
    /// The job ended without a complete output.
    Failed(Box<Failed>),
}

impl Event {
    /// Returns whether this is the one event that ends its job.
    pub fn is_terminal(&self) -> bool {
        matches!(self, Event::Done(_) | Event::Failed(_))
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Done {
    /// The text that no `Token` event has carried yet: all of it if credit was 0.
    pub text: String,
    pub finish_reason: FinishReason,
    /// Of the computation, even if it was made for another request.
    pub usage: Usage,
    /// Of this job: zero if nothing was computed for it.
    pub timings: Timings,
    pub served: Served,
}

/// The source of a result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Served {
    pub verdict: Verdict,
    /// The time since the result was complete.
    pub age: Duration,
    /// Whether an equal request may get this result: nothing in it was left to chance.
    pub is_reproducible: bool,
    /// The generation that computed the result; `None`: this one.
    pub origin: Option<Origin>,
}

/// An earlier generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    pub id: GenerationId,
    /// From its submission to its end.
    pub latency: Duration,
}

/// The verdict of a cache of results on a job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verdict {
    /// The result was computed for this job, and kept.
    Miss,
    /// The result was there.
    Hit,
    /// The result was in the cache that several daemons share.
    Shared,
    /// An equal job was running, and its result is this job's as well.
    Joined,
    /// The cache was not asked, or there is none.
    #[default]
    Bypass,
}

impl Verdict {
    pub const ALL: [Verdict; 5] = [
        Verdict::Miss,
        Verdict::Hit,
        Verdict::Shared,
        Verdict::Joined,
        Verdict::Bypass,
    ];

    /// Returns the value of the field `x-cache`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Verdict::Miss => "miss",
            Verdict::Hit => "hit",
            Verdict::Shared => "shared",
            Verdict::Joined => "joined",
            Verdict::Bypass => "bypass",
        }
    }

    /// Returns whether the result was computed for another job.
    pub const fn is_cached(self) -> bool {
        matches!(self, Verdict::Hit | Verdict::Shared | Verdict::Joined)
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Failed {
    pub reason: FailReason,
    /// For people: what failed and the way out.
    pub message: String,
    /// Text that was generated until then and that no `Token` event has carried yet.
    pub text: String,
    pub usage: Usage,
    pub timings: Timings,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FailReason {
    /// The ticket was cancelled; only the counters use this.
    Cancelled(CancelReason),
    /// An error of the catalogue, such as `generation_timeout` or `context_length_exceeded`.
    Error(ErrorCode),
    /// The queue was full, and this job was the newest of the tenant with the most waiting jobs, so
    /// its place went to another tenant.
    CrowdedOut { retry_after: Duration },
    /// An engine behind the one that admitted the job has refused it.
    Refused(Refused),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended its output, or a stop string was met.
    Stop,
    /// `max_tokens` or the end of the context was reached.
    Length,
}

impl FinishReason {
    /// Returns the OpenAI API's word.
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
    /// How many of `prompt_tokens` were already computed.
    pub cached_tokens: u32,
    pub completion_tokens: u32,
}

/// How long the parts of one job took, for `Server-Timing`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// From `submitted` to the first prompt token's computation.
    pub queue: Duration,
    /// Computing the prompt, up to the first generated token.
    pub prefill: Duration,
    /// From the first generated token to the last.
    pub decode: Duration,
}

/// Why a job was not admitted. Returned at once, on the caller's stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The queue is at its bound; the wait is computed from measured speed.
    QueueFull { retry_after: Duration },
    /// The prompt has more bytes than any prompt that fits the model's context.
    TooLong { context_length: u32 },
    /// By measured speed the first token would come later than the deadline.
    DeadlineUnmeetable { estimated: Duration },
    /// The model is being loaded.
    Loading,
    /// The engine could not be started, or has stopped, for this reason.
    Unavailable(String),
    /// The engine is draining.
    Draining,
}

/// Whether an engine can take jobs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// 0 to 100.
    Loading {
        percent: u8,
    },
    Ready,
    /// A step does not end: this long there was no sign of life.
    Stalled {
        seconds: u64,
    },
    Failed(String),
}

/// A description of a model, for `/api/v1/models` and for the `model` member of a response.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelInfo {
    /// Shared, because each record of a generation names the model.
    pub id: Arc<str>,
    /// The engine: `llama` or `echo`.
    pub engine: &'static str,
    /// The model's own description, such as `llama 135M Q4_1`.
    pub description: String,
    /// Context of one sequence, in tokens.
    pub context_length: u32,
    /// A digest of everything about the model that decides its output: its file, its family's
    /// wording, its settings. Zero for an engine without a model.
    pub fingerprint: [u8; 32],
    /// When the model was loaded, in seconds since 1970.
    pub created: u64,
    pub defaults: Defaults,
}

/// Values for parameters that a request for a program leaves open. They depend on the model, so
/// they are known once the model is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Defaults {
    pub repeat_penalty: f32,
    pub max_tokens: u32,
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
    /// Cells of the KV cache that hold a token, and the number of all cells.
    pub kv_used: u64,
    pub kv_size: u64,
    /// Signs of life: steps, and parts of steps. They do not change while the engine is at rest.
    pub beats: u64,
    /// Time without a sign of life although there is work; zero at rest.
    pub silence: Duration,
    /// How often the engine was restarted after a panic.
    pub restarts: u64,
    pub kept: Kept,
    /// Computed prefixes on disk.
    pub prefixes: prefixes::Figures,
}

/// The results that an engine keeps for later jobs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    pub results: usize,
    pub bytes: usize,
    pub max_bytes: usize,
    /// Results that made room for others, since the start.
    pub evicted: u64,
}

impl Gauges {
    /// Returns the totals, with all else at zero: a restarted engine continues from these.
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

/// Turns jobs into generated text. All methods return at once and may be called from any thread.
pub trait Engine: Send + Sync {
    /// Admits a job, or returns why not. After `Ok`, exactly one terminal event will follow.
    fn submit(&self, job: Job) -> Result<(), Refused>;

    /// Reports that the ticket of an admitted job was cancelled. An engine that looks at the
    /// ticket by itself does nothing here.
    fn cancel(&self, _key: JobKey) {}

    /// Reports that a ticket has got credit after the engine had found none. An engine that looks
    /// again by itself does nothing here.
    fn handle_credit(&self, _key: JobKey) {}

    /// Reports that the deadline of an admitted job has passed. An engine that looks at the clock
    /// by itself does nothing here.
    fn handle_deadline(&self, _key: JobKey) {}

    /// Never uses a result again that was kept for a tenant, or for any. Takes effect at once.
    fn forget(&self, _tenant: Option<u64>) {}

    /// Deletes what is kept for a tenant, or for any, outside of memory: in this daemon's store
    /// and, if the purge `is_ours`, where daemons share results. Returns at once.
    fn delete_behind(&self, _tenant: Option<u64>, _is_ours: bool) {}

    /// Frees the memory of forgotten results. Takes milliseconds, so no reactor calls it.
    fn free_forgotten(&self, _tenant: Option<u64>) {}

    fn state(&self) -> State;

    /// Returns the model, as soon as it is known.
    fn model(&self) -> Option<ModelInfo>;

    fn gauges(&self) -> Gauges;

    /// Admits no more jobs, and ends once all admitted jobs have had their terminal event.
    fn drain(&self);

    /// Waits up to `patience` for the end of an engine that keeps what it has computed. Returns
    /// whether there is nothing left to wait for. Called after [`Engine::drain`], by no reactor.
    fn await_end(&self, _patience: Duration) -> bool {
        true
    }

    /// Keeps nothing more, and ends.
    fn end(&self) {}
}

/// The destination of an engine's events: the mailboxes of all reactors.
pub trait Deliver: Send + Sync {
    /// Delivers all of `events` and leaves it empty. One call wakes each reactor at most once, so
    /// an engine should collect the events of one step. Never blocks.
    fn deliver(&self, events: &mut Vec<(JobKey, Event)>);

    /// Delivers a single event.
    fn deliver_one(&self, key: JobKey, event: Event) {
        self.deliver(&mut vec![(key, event)]);
    }
}
