//! The message border between the daemon and the engines that generate text.
//!
//! A [`Job`] goes in through [`Engine::submit`], which never blocks. Its [`Event`]s come back
//! through the mailbox of the reactor that sent it: as many `Token`s as the ticket's credit allows,
//! then exactly one terminal event, `Done` or `Failed`, for every admitted job, even a cancelled
//! one. [`Engine::cancel`] is called for each job whose ticket was cancelled. Nothing here assumes
//! that the engine is a thread: jobs and events are plain data, so it can as well be a child
//! process or another machine.
//!
//! * [`echo`] returns a fixed program at once, for measuring the daemon itself.
//! * `llama` runs GGUF models in process through llama.cpp, with continuous batching.
//! * [`prefixes`] keeps what it has computed on disk.

mod border;
pub mod code;
pub mod echo;
mod epilogue;
pub mod family;
pub mod language;
#[cfg(feature = "llama")]
pub mod llama;
pub mod metrics;
pub mod prefixes;
pub mod prompt;

pub use border::{
    CacheMode, Class, ContextFile, Defaults, Deliver, Done, Engine, Event, FailReason, Failed,
    FinishReason, Gauges, GenerationId, Job, Kept, Message, ModelInfo, Origin, Prompt, Refused,
    Sampling, Served, State, Timings, Usage, Verdict,
};

/// Writes a GGUF model to another file with its weights as `q8_0`. Takes about a second per 100 MB
/// and all cores; the caller's thread waits. The error is for people.
#[cfg(feature = "llama")]
pub use llama::optimize;

#[cfg(not(feature = "llama"))]
pub fn optimize(_: &std::path::Path, _: &std::path::Path) -> Result<(), String> {
    Err("llama.cpp is not compiled in: build with the feature `llama`".to_owned())
}
