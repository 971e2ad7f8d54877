//! The interface of one API: everything in which it differs from the others.
//!
//! A [`Dialect`] reads requests, frames responses and writes errors. For each generation it creates
//! a [`Narrator`], which writes that one response: it turns the model's text into the API's form (a
//! program without its fences, or the text as it is) and adds ids, indices and event numbers.
//! Admission and generation know only these two traits, so a new API is a new folder in
//! [`super::api`] and rows in the router's table.
//!
//! Nothing here may wait, and everything must be sent through the sink.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use crate::config::Limits;
use crate::engine::{CacheMode, Defaults, FinishReason, Prompt, Sampling, Usage};
use crate::error::ApiError;
use crate::http::{Request, ResponseSink};

use super::call::Call;
use super::inflation::Inflater;
use super::representation::Form;
use super::response::buffer::ResponseBuffer;
use super::response::coding::StreamCoder;
use super::router::Row;

/// One API: how its requests are read, and how its responses are framed.
pub trait Dialect: Sync {
    /// Checks a head's fields about its body and the response's media type.
    fn check_head(&self, row: &Row, call: &mut Call, request: &Request<'_>)
    -> Result<(), ApiError>;

    /// Returns the error for a path at which nothing is served.
    fn not_found(&self) -> ApiError;

    /// Reads the request of a generation.
    fn read(&self, received: &Received<'_>) -> Result<Asked, ApiError>;

    /// Sends a whole error response. Returns the bytes of its body.
    fn send_error(
        &self,
        buffer: &mut ResponseBuffer,
        call: &Call,
        error: &ApiError,
        sink: &mut dyn ResponseSink,
    ) -> u64;

    /// Sends the buffer's fields and body as a whole response. Returns the bytes of its body.
    fn send(&self, buffer: &mut ResponseBuffer, call: &Call, sink: &mut dyn ResponseSink) -> u64;

    /// Returns the media type of a whole response.
    fn content_type(&self, form: Form) -> &'static str;

    /// Sends the head of a response in pieces; the buffer holds its fields. Returns the encoder
    /// that the pieces must go through, if there is one.
    fn start(
        &self,
        buffer: &mut ResponseBuffer,
        call: &Call,
        sink: &mut dyn ResponseSink,
    ) -> Option<Box<StreamCoder>>;

    /// Ends a response that has begun, after its last piece.
    fn end(&self, call: &Call, error: Option<&ApiError>, sink: &mut dyn ResponseSink);
}

/// The complete request of a generation, and the inputs for reading it.
pub struct Received<'a> {
    pub form: Form,
    /// The value of `?fields=`.
    pub fields: Option<&'a str>,
    pub body: &'a [u8],
    pub limits: &'a Limits,
    pub inflater: &'a Inflater,
}

/// A generation as a client asks for it, whichever API it speaks.
#[derive(Debug)]
pub struct Asked {
    pub prompt: Prompt,
    /// Of the prompt, for its record; all zeros if there are no records.
    pub digest: [u8; 32],
    /// `None`: the loaded model, whichever it is.
    pub model: Option<String>,
    pub timeout: Duration,
    /// All of it except `repeat_penalty`, whose default depends on the model.
    pub sampling: Sampling,
    /// `None`: the model's default.
    pub repeat_penalty: Option<f32>,
    /// `None`: the model's default.
    pub max_tokens: Option<u32>,
    pub stop: Vec<String>,
    pub cache: CacheMode,
    /// Where the end of a durable job is reported.
    pub callback_url: Option<String>,
    /// Whether the response is sent whole or in pieces, and its form.
    pub narrator: Narrator,
}

impl Asked {
    /// Fills in the defaults of the chosen model. Returns the maximum number of tokens to generate.
    pub fn complete(&mut self, defaults: Defaults) -> u32 {
        self.sampling.repeat_penalty = self.repeat_penalty.unwrap_or(defaults.repeat_penalty);
        self.max_tokens.unwrap_or(defaults.max_tokens)
    }
}

/// Writes the response of one generation.
#[derive(Debug)]
pub enum Narrator {
    /// At once, when the job is done.
    Whole(Arc<dyn Whole>),
    /// While the model writes.
    Pieces(Box<dyn Pieces>),
}

/// Writes a response that is sent at once.
pub trait Whole: Debug + Send + Sync {
    /// Appends the body.
    fn write(&self, buffer: &mut ResponseBuffer, form: Form, generation: &Generation<'_>);

    /// Returns the part that a client may get of a generation whose deadline passed after `text`.
    fn partial(&self, text: &str) -> String;
}

/// Writes a response that is sent in pieces: `push` any number of times, `end_text`, then `done` or
/// `failed`.
pub trait Pieces: Debug + Send {
    /// Appends the addition of the model's next text to the response: nothing if that is not
    /// decided yet.
    fn push(&mut self, buffer: &mut ResponseBuffer, call: &Call, text: &str);

    /// Appends the next part of a program that was taken out of the text before.
    fn push_code(&mut self, buffer: &mut ResponseBuffer, call: &Call, code: &str);

    /// Takes the rest of such a program. `done` appends it.
    fn end_code(&mut self, code: &str);

    /// Takes the model's last text. `done` or `failed` appends its addition.
    fn end_text(&mut self, text: &str);

    /// Appends the rest of a response that is complete. Called by a worker if the text is long.
    fn done(&mut self, buffer: &mut ResponseBuffer, form: Form, generation: &Generation<'_>);

    /// Appends the rest of a response that cannot be completed, after its head was sent.
    fn failed(&mut self, buffer: &mut ResponseBuffer, call: &Call, error: &ApiError);

    /// Returns a narrator of the same response that has nothing left to append but an error: this
    /// one goes to a worker, and may not come back in time.
    fn failing(&self) -> Box<dyn Pieces>;

    /// Returns the part that a client may get of a generation whose deadline passed, all pieces
    /// together.
    fn partial(&self) -> String;

    /// Returns the function that appends a ping. `None`: the protocol below has its own pings.
    fn ping(&self) -> Option<fn(&mut Vec<u8>)>;
}

/// A complete generation.
pub struct Generation<'a> {
    pub id: &'a str,
    /// All that the model wrote.
    pub text: &'a str,
    pub model: Option<&'a str>,
    pub finish_reason: FinishReason,
    pub usage: Usage,
    /// Whether another generation computed it; `id` and `latency` are then of that one.
    pub is_cached: bool,
    pub latency: Duration,
}
