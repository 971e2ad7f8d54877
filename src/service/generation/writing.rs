//! The end of a long response, which a worker builds and compresses: a response in one piece, or
//! the last piece of a stream.
//!
//! Extracting the program from 200 KB, escaping both and compressing them takes 10 ms. The reactor
//! only copies the result into the output. The pieces of a stream are short, except for the last,
//! which repeats the program. The stream's narrator and its encoder go with it to the worker, and
//! end there: nothing of the stream is written afterwards.
//!
//! Owns the facts about the response that the reactor needs when it comes back, and the task of the
//! worker. If the pool has no place, the task waits here and is tried again: the generation has
//! cost too much to refuse it now.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::config::Config;
use crate::core::Moment;
use crate::core::buffered::Account;
use crate::engine::{FinishReason, GenerationId, Served, Timings, Usage};
use crate::error::{ApiError, ErrorCode};
use crate::http::compress::encode::Step;
use crate::http::negotiate::AcceptEncoding;
use crate::limits::service as limits;
use crate::offload::{CancelReason, JobKey, Task, Ticket, workers};
use crate::service::call::Call;
use crate::service::completion::{Completion, Reply};
use crate::service::desk::{Desk, Flow, Wire};
use crate::service::dialect::{Generation, Pieces, Whole};
use crate::service::representation::Form;
use crate::service::request_log::Outcome;
use crate::service::response::buffer::{ResponseBuffer, Written};
use crate::service::response::coding::Coder;
use crate::service::response::compression::CompressionSeries;
use crate::telemetry::access::Figures;

use super::stream::Ending;

/// A response at a worker.
#[derive(Debug)]
pub struct Writing {
    pub ticket: Arc<Ticket>,
    /// The pool was full: the task is tried again at the given time.
    waiting: Option<(Box<WriteTask>, Moment)>,
    /// Memory of the text and of the response.
    pub bytes: usize,
    deadline: Moment,
    /// From the head to the job.
    auth: Duration,
    /// `None`: those of a durable job belong to its attempt.
    timings: Option<Timings>,
    figures: Option<Figures>,
    latency: Duration,
    stream: Option<Flowing>,
}

/// The facts about a stream whose last piece is at a worker.
#[derive(Debug)]
struct Flowing {
    /// Bytes of content that were sent before.
    sent: u64,
    /// `None`: the encoder is with the worker.
    failing: Option<Box<dyn Pieces>>,
}

/// What the worker writes.
pub enum Part {
    /// All of it.
    Whole(Arc<dyn Whole>),
    /// The last piece; everything before it is sent.
    Ending(Ending),
}

/// The facts about a job that has ended, beside its text.
pub struct Ended {
    pub id: GenerationId,
    pub ticket: Arc<Ticket>,
    pub key: JobKey,
    pub deadline: Moment,
    pub auth: Duration,
    pub timings: Option<Timings>,
    pub figures: Option<Figures>,
    pub model: Option<Arc<str>>,
    pub finish_reason: FinishReason,
    pub usage: Usage,
    pub served: Served,
}

/// Sends the response to the workers.
pub fn begin(
    desk: &mut Desk,
    call: &Call,
    part: Part,
    text: String,
    ended: Ended,
    now: Moment,
) -> Writing {
    let stream = match &part {
        Part::Whole(_) => None,
        Part::Ending(ending) => Some(Flowing {
            sent: ending.sent,
            failing: ending.coder.is_none().then(|| ending.pieces.failing()),
        }),
    };
    let form = call.form();
    let latency = now - call.started;
    let origin = ended.served.origin;
    let task = WriteTask {
        part,
        id: origin.map_or(ended.id, |origin| origin.id),
        text,
        model: ended.model,
        finish_reason: ended.finish_reason,
        usage: ended.usage,
        is_cached: ended.served.verdict.is_cached(),
        latency: origin.map_or(latency, |origin| origin.latency),
        form,
        content_type: desk.dialect(call.surface()).content_type(form),
        accepted: call.accept_encoding,
        config: Arc::clone(&desk.parts.config),
        series: desk.parts.metrics.series(),
        buffered: desk.parts.buffered.clone(),
        key: ended.key,
        ticket: Arc::clone(&ended.ticket),
        replies: Some(Arc::clone(&desk.parts.replies)),
    };
    let mut writing = Writing {
        ticket: ended.ticket,
        // The text, the program in it, and both once more in the response.
        bytes: 4 * task.text.len(),
        waiting: Some((Box::new(task), now)),
        deadline: ended.deadline,
        auth: ended.auth,
        timings: ended.timings,
        figures: ended.figures,
        latency,
        stream,
    };
    writing.submit(desk, call, now);
    writing
}

impl Writing {
    /// Returns the bytes of content that were sent.
    pub fn sent(&self) -> u64 {
        self.stream.as_ref().map_or(0, |stream| stream.sent)
    }

    pub fn next_deadline(&self) -> Moment {
        let retry = self.waiting.as_ref().map(|(_, retry)| *retry);
        retry.unwrap_or(self.deadline).min(self.deadline)
    }

    fn submit(&mut self, desk: &Desk, call: &Call, now: Moment) {
        let Some((task, _)) = self.waiting.take() else {
            return;
        };
        let bytes = u32::try_from(self.bytes).unwrap_or(u32::MAX);
        let submitted = desk.parts.workers.submit(call.tenant(), bytes, *task);
        if let Err(workers::Full(task)) = submitted {
            self.waiting = Some((Box::new(task), now + limits::WORKER_RETRY));
        }
    }
}

/// Handles a passed [`Writing::next_deadline`].
pub fn handle_deadline(
    desk: &mut Desk,
    call: &Call,
    writing: &mut Writing,
    wire: &mut Wire<'_>,
) -> Flow {
    if wire.now < writing.deadline {
        if wire.now >= writing.next_deadline() {
            writing.submit(desk, call, wire.now);
        }
        return Flow::Open;
    }
    let message = "the response was not written in time";
    let error = ApiError::new(ErrorCode::GenerationTimeout, message);
    fail(desk, call, writing, CancelReason::Deadline, &error, wire);
    Flow::Finished
}

/// Ends the response with an error.
pub fn fail(
    desk: &mut Desk,
    call: &Call,
    writing: &mut Writing,
    reason: CancelReason,
    error: &ApiError,
    wire: &mut Wire<'_>,
) {
    writing.ticket.cancel(reason);
    desk.log.metrics().cancelled.get(reason).inc();
    respond_with_error(desk, call, writing, error, wire);
}

/// Sends the error. A stream gets it as its last piece. If its encoder is with a worker there is no
/// such piece, and the coded bytes end early: the client finds that they are incomplete.
fn respond_with_error(
    desk: &mut Desk,
    call: &Call,
    writing: &mut Writing,
    error: &ApiError,
    wire: &mut Wire<'_>,
) {
    let Some(stream) = &mut writing.stream else {
        return desk.fail_generation(call, error, writing.figures, wire);
    };
    let mut bytes = stream.sent;
    let buffer = &mut desk.buffer;
    buffer.body.clear();
    if let Some((mut task, _)) = writing.waiting.take() {
        task.replies = None;
        if let Part::Ending(ending) = &mut task.part {
            ending.pieces.failed(buffer, call, error);
            bytes += buffer.send_piece(ending.coder.as_deref_mut(), Step::Finish, wire.sink);
        }
    } else if let Some(failing) = &mut stream.failing {
        failing.failed(buffer, call, error);
        bytes += buffer.send_piece(None, Step::Finish, wire.sink);
    }
    desk.dialect(call.surface())
        .end(call, Some(error), wire.sink);
    let outcome = Outcome::Failed {
        status: 200,
        bytes,
        code: error.code,
    };
    desk.log.close(call, outcome, writing.figures, wire.now);
}

/// Sends what a worker has written. `None`: the task was lost.
pub fn finish(
    desk: &mut Desk,
    call: &Call,
    writing: &mut Writing,
    written: Option<Box<Written>>,
    wire: &mut Wire<'_>,
) {
    let Some(written) = written else {
        let message = "the response could not be written because of a fault of the daemon";
        let error = ApiError::new(ErrorCode::Internal, message);
        return respond_with_error(desk, call, writing, &error, wire);
    };
    let dialect = desk.dialect(call.surface());
    let buffer = &mut desk.buffer;
    let bytes = match &writing.stream {
        None => {
            buffer.begin_written(call, written.body, &written.fields);
            if let Some(timings) = &writing.timings {
                buffer.push_server_timing(writing.auth, Some(timings), writing.latency);
            }
            buffer.fields.push("cache-control", "no-store");
            dialect.send(buffer, call, wire.sink)
        }
        Some(stream) => {
            if !written.body.is_empty() {
                wire.sink.data(&written.body);
            }
            dialect.end(call, None, wire.sink);
            stream.sent + written.body.len() as u64
        }
    };
    let outcome = Outcome::Completed { status: 200, bytes };
    desk.log.close(call, outcome, writing.figures, wire.now);
}

/// A response at a worker.
struct WriteTask {
    part: Part,
    id: GenerationId,
    text: String,
    model: Option<Arc<str>>,
    finish_reason: FinishReason,
    usage: Usage,
    is_cached: bool,
    latency: Duration,
    form: Form,
    content_type: &'static str,
    accepted: AcceptEncoding,
    config: Arc<Config>,
    series: Arc<CompressionSeries>,
    buffered: Account,
    key: JobKey,
    ticket: Arc<Ticket>,
    /// `None` once it has replied.
    replies: Option<Arc<dyn Reply>>,
}

impl fmt::Debug for WriteTask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriteTask").finish_non_exhaustive()
    }
}

impl WriteTask {
    fn write(&mut self) -> Written {
        let coder = Coder::new(&self.config, self.series.clone(), self.buffered.clone());
        let mut buffer = ResponseBuffer::new(coder);
        let id = self.id.text();
        let generation = Generation {
            id: id.as_str(),
            text: &self.text,
            model: self.model.as_deref(),
            finish_reason: self.finish_reason,
            usage: self.usage,
            is_cached: self.is_cached,
            latency: self.latency,
        };
        match &mut self.part {
            Part::Whole(whole) => {
                whole.write(&mut buffer, self.form, &generation);
                buffer.into_written(self.accepted, self.content_type)
            }
            Part::Ending(ending) => {
                ending.pieces.done(&mut buffer, self.form, &generation);
                buffer.into_last_piece(ending.coder.as_deref_mut())
            }
        }
    }

    fn reply(&mut self, written: Option<Written>) {
        if let Some(replies) = self.replies.take() {
            replies.reply(self.key, Completion::Written(written.map(Box::new)));
        }
    }
}

impl Task for WriteTask {
    fn is_wanted(&self) -> bool {
        self.ticket.cancelled().is_none()
    }

    fn run(mut self: Box<WriteTask>) {
        let written = self.write();
        self.reply(Some(written));
    }
}

impl Drop for WriteTask {
    fn drop(&mut self) {
        self.reply(None);
    }
}
