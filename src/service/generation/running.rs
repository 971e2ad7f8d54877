//! A running generation: from its complete body to the last byte of its response.
//!
//! Must never wait: later facts come as a message of a worker, an event, a deadline or room in the
//! output.
//!
//! A long body is read by a worker first (`Reading`), all others are `Working` at once. States of a
//! response from there on:
//!
//! ```text
//!   Whole ───────────── Done, Failed, deadline ───────> one response, Finished
//!   Stream: silent ──── Failed, deadline ─────────────> one error response, Finished
//!              │ first code or ping: the head is sent
//!              v
//!           flowing ─── Token, ping ──> flowing
//!              └─────── Done, Failed, deadline ───────> last event, Finished
//! ```
//!
//! A stream stays silent until there is something to show, so that a job that fails before that
//! gets its true status instead of an error after a 200.
//!
//! Invariants:
//!  1. Each generation ends in one terminal response or in [`abandon`], and is closed in the log
//!     exactly there.
//!  2. At most `limits::CREDIT_EVENTS` token events are granted, under way or held back: an event
//!     that finds no room in the output keeps its credit until [`handle_room`].
//!  3. The kept part of a response is bounded by the engine's context, which is finite.

use std::sync::Arc;
use std::time::Duration;

use crate::core::Moment;
use crate::core::buffered::Share;
use crate::engine::{Done, Event, FailReason, Failed, GenerationId, Served, Timings, Usage};
use crate::error::{ApiError, ErrorCode};
use crate::limits::service as limits;
use crate::offload::{CancelReason, JobKey, Ticket};
use crate::service::call::Call;
use crate::service::desk::{Desk, Flow, Wire};
use crate::service::dialect::{Generation, Narrator, Whole};
use crate::service::request_log::{Outcome, RequestLog};
use crate::service::response::buffer::Written;

use super::cached::{self, Keeping};
use super::failure::{cancel_reason, failure};
use super::reading::Reading;
use super::recording::{Recording, figures};
use super::reservation::Reserved;
use super::stream::Stream;
use super::writing::{self, Ended, Part, Writing};

/// A request that is complete, and whose response is not.
#[derive(Debug)]
pub struct Running {
    pub call: Call,
    pub stage: Stage,
}

#[derive(Debug)]
// Its exchange is boxed as a whole, and nearly all requests are in the largest stage.
#[allow(clippy::large_enum_variant)]
pub enum Stage {
    /// A worker reads its body.
    Reading(Reading),
    /// Its job runs.
    Working(Work),
    /// A worker writes its response.
    Writing(Box<Writing>),
}

/// The facts about a generation's job.
#[derive(Debug)]
pub struct Work {
    /// Of the generation, in the response and in its record.
    pub id: GenerationId,
    pub ticket: Arc<Ticket>,
    pub key: JobKey,
    pub delivery: Delivery,
    /// All text that the model has written and events have delivered.
    pub text: String,
    pub reserved: Option<Reserved>,
    pub submitted: Moment,
    /// The engine ends the job then. A grace period later the service does, for an engine that does
    /// not.
    pub deadline: Moment,
    /// Whether the deadline has passed, and the engine was told so.
    pub is_overdue: bool,
    /// From the head to the first token's arrival.
    pub time_to_first_token: Option<Duration>,
    /// The source of the result, as far as it is known.
    pub served: Served,
    /// What becomes of the response.
    pub keeping: Keeping,
    pub recording: Recording,
    /// The memory of its prompt, which may wait in the engine's queue.
    pub _memory: Share,
}

/// How the response is sent.
#[derive(Debug)]
pub enum Delivery {
    Whole(Arc<dyn Whole>),
    Stream(Stream),
    /// A worker has what writes the rest.
    AtWorker,
}

impl Delivery {
    pub fn new(narrator: Narrator, now: Moment) -> Delivery {
        match narrator {
            Narrator::Whole(whole) => Delivery::Whole(whole),
            Narrator::Pieces(pieces) => Delivery::Stream(Stream::new(pieces, now)),
        }
    }

    /// Returns the bytes of content that were sent.
    pub const fn bytes(&self) -> u64 {
        match self {
            Delivery::Whole(_) | Delivery::AtWorker => 0,
            Delivery::Stream(stream) => stream.bytes(),
        }
    }

    /// Returns how many token events the engine may send before any of them is delivered. A
    /// response in one piece comes in one terminal event, which needs no credit.
    pub const fn credit(&self) -> u32 {
        match self {
            Delivery::Whole(_) | Delivery::AtWorker => 0,
            Delivery::Stream(_) => limits::CREDIT_EVENTS,
        }
    }
}

impl Running {
    /// Returns the memory that it holds. A body at a worker has a share of its own.
    pub fn buffered_bytes(&self) -> usize {
        match &self.stage {
            Stage::Reading(_) => 0,
            Stage::Working(work) => work.text.capacity(),
            Stage::Writing(writing) => writing.bytes,
        }
    }

    pub fn next_deadline(&self) -> Moment {
        let work = match &self.stage {
            Stage::Reading(reading) => return reading.deadline,
            Stage::Writing(writing) => return writing.next_deadline(),
            Stage::Working(work) => work,
        };
        match &work.delivery {
            Delivery::Whole(_) | Delivery::AtWorker => work.due(),
            Delivery::Stream(stream) => work.due().min(stream.ping_due()),
        }
    }
}

/// Handles an event of the engine.
pub fn handle_event(
    desk: &mut Desk,
    running: &mut Running,
    event: Event,
    wire: &mut Wire<'_>,
) -> Flow {
    let Running { call, stage } = running;
    match stage {
        Stage::Working(work) if is_long(work, &event) => {
            if let Some(writing) = begin_writing(desk, call, work, event, wire) {
                *stage = Stage::Writing(Box::new(writing));
            }
            Flow::Open
        }
        Stage::Working(work) => handle_work_event(desk, call, work, event, wire),
        // It has no job yet, or none any more.
        Stage::Reading(_) | Stage::Writing(_) => Flow::Open,
    }
}

/// Sends the response that a worker has written; `None` if its task was lost.
pub fn finish_writing(
    desk: &mut Desk,
    running: &mut Running,
    written: Option<Box<Written>>,
    wire: &mut Wire<'_>,
) -> Flow {
    let Running { call, stage } = running;
    let Stage::Writing(writing) = stage else {
        debug_assert!(false, "nothing was to be written");
        return Flow::Open;
    };
    writing::finish(desk, call, writing, written, wire);
    Flow::Finished
}

/// Returns whether the response takes a worker: its last event repeats a long text.
fn is_long(work: &Work, event: &Event) -> bool {
    match event {
        Event::Done(done) => work.text.len() + done.text.len() > limits::WRITE_AT_ONCE_BYTES_MAX,
        _ => false,
    }
}

/// Sends the text of a complete response to a worker. `None`: it is not complete.
fn begin_writing(
    desk: &mut Desk,
    call: &mut Call,
    work: &mut Work,
    event: Event,
    wire: &mut Wire<'_>,
) -> Option<Writing> {
    let Event::Done(mut done) = event else {
        return None;
    };
    // Before the head of a stream, which may be sent only now.
    work.note_source(call, done.served);
    let part = match std::mem::replace(&mut work.delivery, Delivery::AtWorker) {
        Delivery::Whole(whole) => Part::Whole(whole),
        Delivery::Stream(mut stream) => {
            stream.pieces.end_text(&done.text);
            Part::Ending(stream.into_ending(desk, call, wire))
        }
        Delivery::AtWorker => return None,
    };
    let now = wire.now;
    cached::count(desk, call, work.keeping);
    work.recording.done(desk, call, &done, &work.text, now);
    work.reconcile(call, &done.usage, now);
    let first_token = observe_speed(&desk.log, call, work, &done);
    append_text(&mut work.text, std::mem::take(&mut done.text));
    let ended = Ended {
        id: work.id,
        ticket: Arc::clone(&work.ticket),
        key: work.key,
        deadline: now + limits::WRITING_TIME_MAX,
        auth: work.submitted - call.started,
        figures: Some(figures(&done.usage, &done.timings, first_token)),
        timings: Some(done.timings),
        model: desk.model().map(|model| Arc::clone(&model.id)),
        finish_reason: done.finish_reason,
        usage: done.usage,
        served: done.served,
    };
    let text = std::mem::take(&mut work.text);
    Some(writing::begin(desk, call, part, text, ended, now))
}

fn handle_work_event(
    desk: &mut Desk,
    call: &mut Call,
    work: &mut Work,
    event: Event,
    wire: &mut Wire<'_>,
) -> Flow {
    match event {
        Event::Served(served) => {
            work.note_source(call, *served);
            Flow::Open
        }
        Event::Token { text } => {
            handle_token(desk, call, work, &text, wire);
            Flow::Open
        }
        Event::Done(done) => {
            work.note_source(call, done.served);
            handle_done(desk, call, work, *done, wire);
            Flow::Finished
        }
        Event::Failed(failed) => {
            handle_failed(desk, call, work, &failed, wire);
            Flow::Finished
        }
    }
}

/// Handles a passed [`Running::next_deadline`]: a ping is due, or the worker or the engine is
/// stuck. Does nothing if it has not passed.
pub fn handle_deadline(desk: &mut Desk, running: &mut Running, wire: &mut Wire<'_>) -> Flow {
    let Running { call, stage } = running;
    match stage {
        Stage::Reading(reading) if wire.now < reading.deadline => Flow::Open,
        Stage::Reading(reading) => {
            reading.ticket.cancel(CancelReason::Deadline);
            let message = "the body was not read in time; send it again later";
            let error = ApiError::new(ErrorCode::GenerationTimeout, message)
                .with_retry_after(limits::BUSY_RETRY_AFTER);
            desk.log
                .metrics()
                .cancelled
                .get(CancelReason::Deadline)
                .inc();
            desk.fail(call, &error, wire);
            Flow::Finished
        }
        Stage::Working(work) => handle_work_deadline(desk, call, work, wire),
        Stage::Writing(writing) => writing::handle_deadline(desk, call, writing, wire),
    }
}

fn handle_work_deadline(
    desk: &mut Desk,
    call: &Call,
    work: &mut Work,
    wire: &mut Wire<'_>,
) -> Flow {
    if wire.now < work.due() {
        if let Delivery::Stream(stream) = &mut work.delivery {
            stream.ping(desk, call, wire);
        }
        return Flow::Open;
    }
    if !work.is_overdue {
        work.is_overdue = true;
        desk.parts.engine.handle_deadline(work.key);
        return Flow::Open;
    }
    work.cancel(desk, CancelReason::Deadline);
    // The reservation stays taken, as in `abandon`: the engine has worked for this job and has not
    // reported how much.
    work.reserved = None;
    let failed = Failed {
        reason: FailReason::Error(ErrorCode::GenerationTimeout),
        message: "the engine did not end the request in time".to_owned(),
        text: String::new(),
        usage: Usage::default(),
        timings: Timings::default(),
    };
    handle_failed(desk, call, work, &failed, wire);
    Flow::Finished
}

/// Handles an output queue below its low mark: grants the credit that was held back.
pub fn handle_room(desk: &Desk, running: &mut Running) {
    if let Stage::Working(work) = &mut running.stage
        && let Delivery::Stream(stream) = &mut work.delivery
        && stream.release_credit(&work.ticket)
    {
        desk.parts.engine.handle_credit(work.key);
    }
}

/// Ends the response with the error `draining`, and stops the job: the drain's patience has ended.
/// The reservation stays taken, as in [`abandon`].
pub fn cut_off(desk: &mut Desk, running: &mut Running, wire: &mut Wire<'_>) {
    let Running { call, stage } = running;
    let work = match stage {
        Stage::Working(work) => work,
        Stage::Reading(reading) => {
            reading.ticket.cancel(CancelReason::Drain);
            desk.log.metrics().cancelled.get(CancelReason::Drain).inc();
            let error = ApiError::new(ErrorCode::Draining, CUT_OFF)
                .with_retry_after(limits::BUSY_RETRY_AFTER);
            return desk.fail(call, &error, wire);
        }
        Stage::Writing(writing) => {
            let error = ApiError::new(ErrorCode::Draining, CUT_OFF)
                .with_retry_after(limits::BUSY_RETRY_AFTER);
            return writing::fail(desk, call, writing, CancelReason::Drain, &error, wire);
        }
    };
    work.cancel(desk, CancelReason::Drain);
    work.reserved = None;
    let failed = Failed {
        reason: FailReason::Cancelled(CancelReason::Drain),
        message: CUT_OFF.to_owned(),
        text: String::new(),
        usage: Usage::default(),
        timings: Timings::default(),
    };
    handle_failed(desk, call, work, &failed, wire);
}

const CUT_OFF: &str = "the daemon has stopped before the response was complete";

/// Stops the job: the client left.
///
/// The reservation of tokens stays taken: the cost of the job is never known here, and a client
/// must not get work for free by hanging up.
pub fn abandon(desk: &mut Desk, running: Running, reason: CancelReason, now: Moment) {
    let Running { call, mut stage } = running;
    let mut bytes = 0;
    match &mut stage {
        Stage::Reading(reading) => reading.ticket.cancel(reason),
        Stage::Writing(writing) => {
            bytes = writing.sent();
            writing.ticket.cancel(reason);
        }
        Stage::Working(work) => {
            bytes = work.delivery.bytes();
            work.cancel(desk, reason);
            let (recording, served) = (&mut work.recording, &work.served);
            recording.abandoned(desk, &call, served, &work.text, now);
        }
    }
    let outcome = Outcome::Abandoned { bytes, reason };
    desk.log.close(&call, outcome, None, now);
}

fn handle_token(desk: &mut Desk, call: &Call, work: &mut Work, text: &str, wire: &mut Wire<'_>) {
    work.text.push_str(text);
    // A response in one piece has no credit, so the engine sends no such event for it.
    let Delivery::Stream(stream) = &mut work.delivery else {
        return;
    };
    if work.time_to_first_token.is_none() {
        let duration = wire.now.since(call.started);
        work.time_to_first_token = Some(duration);
        desk.log.metrics().time_to_first_token.observe(duration);
    }
    stream.push(desk, call, text, wire);
    if stream.return_credit(&work.ticket, wire) {
        desk.parts.engine.handle_credit(work.key);
    }
}

fn handle_done(desk: &mut Desk, call: &Call, work: &mut Work, done: Done, wire: &mut Wire<'_>) {
    work.recording.done(desk, call, &done, &work.text, wire.now);
    work.reconcile(call, &done.usage, wire.now);
    cached::count(desk, call, work.keeping);
    let first_token = observe_speed(&desk.log, call, work, &done);
    let figures = figures(&done.usage, &done.timings, first_token);
    let bytes = send_done(desk, call, work, done, wire);
    let outcome = Outcome::Completed { status: 200, bytes };
    desk.log.close(call, outcome, Some(figures), wire.now);
}

/// Sends the whole response, or the end of a stream. Returns the bytes of content.
fn send_done(
    desk: &mut Desk,
    call: &Call,
    work: &mut Work,
    mut done: Done,
    wire: &mut Wire<'_>,
) -> u64 {
    if let Delivery::Stream(stream) = &mut work.delivery {
        stream.pieces.end_text(&done.text);
    }
    append_text(&mut work.text, std::mem::take(&mut done.text));
    let latency = wire.now - call.started;
    let origin = done.served.origin;
    let id = origin.as_ref().map_or(work.id, |origin| origin.id).text();
    let generation = Generation {
        id: id.as_str(),
        text: &work.text,
        model: desk.model.as_ref().map(|model| &*model.id),
        finish_reason: done.finish_reason,
        usage: done.usage,
        is_cached: done.served.verdict.is_cached(),
        latency: origin.map_or(latency, |origin| origin.latency),
    };
    let dialect = desk.dialect(call.surface());
    let buffer = &mut desk.buffer;
    match &mut work.delivery {
        Delivery::Whole(whole) => {
            buffer.begin(call);
            whole.write(buffer, call.form(), &generation);
            let auth = work.submitted - call.started;
            buffer.push_server_timing(auth, Some(&done.timings), latency);
            buffer.fields.push("cache-control", "no-store");
            let bytes = dialect.send(buffer, call, wire.sink);
            let response = (&**whole, &generation);
            let tools = (&desk.parts, buffer);
            cached::keep(tools, call, work.keeping, response, &work.served, wire.now);
            bytes
        }
        Delivery::Stream(stream) => {
            buffer.body.clear();
            stream.pieces.done(buffer, call.form(), &generation);
            stream.finish(desk, call, None, wire)
        }
        Delivery::AtWorker => 0,
    }
}

fn handle_failed(
    desk: &mut Desk,
    call: &Call,
    work: &mut Work,
    failed: &Failed,
    wire: &mut Wire<'_>,
) {
    work.reconcile(call, &failed.usage, wire.now);
    let mut error = failure(failed);
    cached::keep_refusal(desk, work.keeping, &error, wire.now);
    cached::count(desk, call, work.keeping);
    let (recording, text) = (&mut work.recording, &work.text);
    recording.failed(desk, call, (failed, error.code), text, wire.now);
    if let Some(reason) = cancel_reason(&failed.reason, error.code) {
        desk.log.metrics().cancelled.get(reason).inc();
    }
    if let Delivery::Stream(stream) = &mut work.delivery {
        stream.pieces.end_text(&failed.text);
    }
    work.text.push_str(&failed.text);
    if error.code == ErrorCode::GenerationTimeout && work.may_repeat_text(call) {
        error = error.with_partial(work.partial());
    }
    let figures = figures(&failed.usage, &failed.timings, work.time_to_first_token);
    match &mut work.delivery {
        Delivery::Stream(stream) if stream.is_flowing() => {
            let buffer = &mut desk.buffer;
            buffer.body.clear();
            stream.pieces.failed(buffer, call, &error);
            let outcome = Outcome::Failed {
                status: 200,
                bytes: stream.finish(desk, call, Some(&error), wire),
                code: error.code,
            };
            desk.log.close(call, outcome, Some(figures), wire.now);
        }
        _ => desk.fail_generation(call, &error, Some(figures), wire),
    }
}

/// Records how fast the response was. Returns the time to its first token.
fn observe_speed(log: &RequestLog, call: &Call, work: &mut Work, done: &Done) -> Option<Duration> {
    // A result of another job says nothing about the engine's speed.
    if work.served.verdict.is_cached() {
        return work.time_to_first_token;
    }
    let (metrics, usage, timings) = (log.metrics(), &done.usage, &done.timings);
    if work.time_to_first_token.is_none() && usage.completion_tokens > 0 {
        let before = work.submitted - call.started;
        let duration = before + timings.queue + timings.prefill;
        metrics.time_to_first_token.observe(duration);
        work.time_to_first_token = Some(duration);
    }
    if usage.completion_tokens > 1 {
        let each = timings.decode / (usage.completion_tokens - 1);
        metrics.time_per_output_token.observe(each);
    }
    work.time_to_first_token
}

impl Work {
    fn note_source(&mut self, call: &mut Call, served: Served) {
        self.served = served;
        cached::note_source(call, self.keeping, &self.served);
    }

    /// Returns when the engine or, after its grace, the service ends the job.
    fn due(&self) -> Moment {
        match self.is_overdue {
            true => self.deadline + limits::ENGINE_GRACE,
            false => self.deadline,
        }
    }

    fn cancel(&self, desk: &Desk, reason: CancelReason) {
        self.ticket.cancel(reason);
        desk.parts.engine.cancel(self.key);
    }

    /// Charges the key for the tokens. A result that was computed for another request is free.
    fn reconcile(&self, call: &Call, usage: &Usage, now: Moment) {
        if let Some(reserved) = &self.reserved {
            let used = match self.served.verdict.is_cached() {
                true => 0,
                false => usage.prompt_tokens.saturating_add(usage.completion_tokens),
            };
            reserved.reconcile(call, used, now);
        }
    }

    /// Returns whether an error may repeat the text. Compressing a long one takes milliseconds, so
    /// a stream's client, which has the text already, does not get it again, and neither does a
    /// client that accepts nothing uncompressed.
    fn may_repeat_text(&self, call: &Call) -> bool {
        let is_delivered = match &self.delivery {
            Delivery::Stream(stream) => stream.is_flowing(),
            Delivery::Whole(_) | Delivery::AtWorker => false,
        };
        let is_coded = is_delivered || call.accept_encoding.refuses_identity();
        !is_coded || self.text.len() <= limits::WRITE_AT_ONCE_BYTES_MAX
    }

    /// Returns the part of the response that a client may get so far.
    fn partial(&self) -> String {
        match &self.delivery {
            Delivery::Whole(whole) => whole.partial(&self.text),
            Delivery::Stream(stream) => stream.pieces.partial(),
            Delivery::AtWorker => String::new(),
        }
    }
}

/// Appends the last text. A response in one piece comes in one event, whose text is kept as it is.
fn append_text(text: &mut String, last: String) {
    if text.is_empty() {
        *text = last;
    } else {
        text.push_str(&last);
    }
}
