//! How one API is read and written: all that tells it apart from the others.
//!
//! A [`Dialect`] reads requests, frames responses and writes errors. For each generation it makes a
//! [`Narrator`], which writes that one response: what the model's text becomes (a program without
//! its fences, or the text as it is), ids, indices, event numbers. Admission and generation know
//! these traits alone, so that a new API is a new folder in [`super::api`] and rows in the router's
//! table.
//!
//! Nothing here may wait, and nothing may be sent but through the sink.

use std::fmt::Debug;
use std::time::Duration;

use crate::config::Config;
use crate::engine::{Defaults, FinishReason, Prompt, Sampling, Usage};
use crate::error::ApiError;
use crate::http::{Request, ResponseSink};

use super::call::Call;
use super::response::buffer::ResponseBuffer;
use super::response::coding::{Coder, StreamCoder};
use super::router::Row;

/// One API: how its requests are read, and how its responses are framed.
pub trait Dialect: Sync {
    /// Checks what a head says of its body and of the response's media type.
    fn check_head(&self, row: &Row, call: &mut Call, request: &Request<'_>)
    -> Result<(), ApiError>;

    /// The error for a path at which nothing is served.
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

    /// Sends a whole response, whose fields and body the buffer holds. Returns the bytes of its
    /// body.
    fn send(&self, buffer: &mut ResponseBuffer, call: &Call, sink: &mut dyn ResponseSink) -> u64;

    /// Sends the head of a response in pieces; the buffer holds its fields. Returns the encoder
    /// that the pieces must go through, if there is one.
    fn start(
        &self,
        buffer: &mut ResponseBuffer,
        call: &Call,
        sink: &mut dyn ResponseSink,
    ) -> Option<Box<StreamCoder>>;

    /// Ends a response that was started, after its last piece.
    fn end(&self, call: &Call, error: Option<&ApiError>, sink: &mut dyn ResponseSink);
}

/// The complete request of a generation, and what reading it takes.
pub struct Received<'a> {
    pub call: &'a Call,
    pub request: &'a Request<'a>,
    pub body: &'a [u8],
    pub config: &'a Config,
    pub coder: &'a Coder,
}

/// A generation as a client asks for it, whichever API it speaks.
#[derive(Debug)]
pub struct Asked {
    pub prompt: Prompt,
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
    /// Whether the response goes out whole or in pieces, and what it looks like.
    pub narrator: Narrator,
}

impl Asked {
    /// Fills in the defaults of the chosen model. Returns the number of tokens to generate at most.
    pub fn complete(&mut self, defaults: Defaults) -> u32 {
        self.sampling.repeat_penalty = self.repeat_penalty.unwrap_or(defaults.repeat_penalty);
        self.max_tokens.unwrap_or(defaults.max_tokens)
    }
}

/// Writes the response of one generation.
#[derive(Debug)]
pub enum Narrator {
    /// At once, when the job is done.
    Whole(Box<dyn Whole>),
    /// While the model writes.
    Pieces(Box<dyn Pieces>),
}

/// Writes a response that is sent at once.
pub trait Whole: Debug {
    /// Appends the body.
    fn write(&self, buffer: &mut ResponseBuffer, call: &Call, generation: &Generation<'_>);

    /// What a client may have of a generation that ran out of time after `text`.
    fn partial(&self, text: &str) -> String;
}

/// Writes a response that is sent in pieces: `push` any number of times, `end_text`, then `done` or
/// `failed`.
pub trait Pieces: Debug {
    /// Appends what the model's next text adds to the response: nothing, where that is not decided
    /// yet.
    fn push(&mut self, buffer: &mut ResponseBuffer, call: &Call, text: &str);

    /// Takes the model's last text. What it adds is appended by `done` or `failed`.
    fn end_text(&mut self, text: &str);

    /// Appends the rest of a response that is complete.
    fn done(&mut self, buffer: &mut ResponseBuffer, call: &Call, generation: &Generation<'_>);

    /// Appends the rest of a response that cannot be completed, after its head was sent.
    fn failed(&mut self, buffer: &mut ResponseBuffer, call: &Call, error: &ApiError);

    /// What a client may have of a generation that ran out of time, all pieces together.
    fn partial(&self) -> String;

    /// Appends what keeps a silent stream alive. `None`: the protocol below has pings of its own.
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
    pub latency: Duration,
}
