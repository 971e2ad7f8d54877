//! A running generation: from its job's events to an answer's last byte.
//!
//! Owns the [`Exchange`], of which a generation is the usual kind. Must never wait: what it needs
//! to know later comes as an event, a deadline or room in the output.
//!
//! States of an answer:
//!
//! ```text
//!   Whole ───────────── Done, Failed, deadline ───────> one answer, Finished
//!   Stream: silent ──── Failed, deadline ─────────────> one error answer, Finished
//!              │ first code or ping: the head is sent
//!              v
//!           flowing ─── Token, ping ──> flowing
//!              └─────── Done, Failed, deadline ───────> last event, Finished
//! ```
//!
//! A stream stays silent until there is something to show, so that a job which fails before that
//! gets its true status instead of an error after a 200.
//!
//! Invariants:
//!  1. Each exchange ends in one terminal answer or in [`Service::abandon`], and is closed in the
//!     request log exactly there.
//!  2. At most `limits::CREDIT_EVENTS` token events are granted, under way or held back: an event
//!     that finds no room in the output keeps its credit until [`Service::handle_room`].
//!  3. What is kept of an answer is bounded by the engine's context, which is finite.

use std::sync::Arc;
use std::time::Duration;

use crate::core::Moment;
use crate::engine::code::{Extractor, extract};
use crate::engine::{Done, Event, FailReason, Failed, ModelInfo, Timings, Usage};
use crate::error::{ApiError, ErrorCode, Family};
use crate::http::compress::encode::Step;
use crate::http::{ResponseSink, sse};
use crate::limits::service as limits;
use crate::offload::{CancelReason, Ticket};
use crate::telemetry::access::Generation;

use crate::service::admission::rate_limit::Rate;
use crate::service::api::grpc::health::Watch;
use crate::service::api::grpc::reflection::Dialogue;
use crate::service::api::native::selection::{AnswerObject, Selection};
use crate::service::call::Call;
use crate::service::render;
use crate::service::representation::Representation;
use crate::service::request_log::Outcome;
use crate::service::response::buffer::ResponseBuffer;
use crate::service::response::coding::StreamCoder;
use crate::service::{Flow, Service};

/// A request whose answer is not complete yet.
#[derive(Debug)]
pub enum Exchange {
    Generation(Running),
    /// Without a job: a client that watches the daemon's health.
    HealthWatch(Watch),
    /// Without a job: a client that asks about the schema.
    Reflection(Dialogue),
}

/// A request whose job runs.
#[derive(Debug)]
pub struct Running {
    pub call: Call,
    pub work: Work,
}

/// What an exchange knows of its job.
#[derive(Debug)]
pub struct Work {
    pub ticket: Arc<Ticket>,
    pub delivery: Delivery,
    /// All that the model has written and an event has brought.
    pub text: String,
    pub language: Option<&'static str>,
    pub selection: Selection,
    pub reserved: Option<Reserved>,
    pub submitted: Moment,
    /// The engine ends the job at the request's own deadline; this one, a grace later, is for an
    /// engine that does not.
    pub deadline: Moment,
    /// From the head to the first token's arrival.
    pub time_to_first_token: Option<Duration>,
}

/// How the answer goes out.
#[derive(Debug)]
pub enum Delivery {
    Whole,
    Stream(Box<Stream>),
}

#[derive(Debug)]
pub struct Stream {
    extractor: Extractor,
    /// All the code that the client was sent.
    code: String,
    /// Whether the head is sent.
    is_flowing: bool,
    /// When the last bytes were sent; a ping is due an interval later.
    silent_since: Moment,
    /// Credit of delivered events that found the output full.
    held_credit: u32,
    /// Bytes of content that were sent, in the coding in which they were.
    bytes: u64,
    /// Once it flows, of a client that takes a coding.
    coder: Option<Box<StreamCoder>>,
}

/// Tokens taken out of a key's bucket in advance.
#[derive(Clone, Copy, Debug)]
pub struct Reserved {
    pub rate: Rate,
    pub tokens: u32,
}

impl Exchange {
    /// Whether a job runs for it, whose terminal event will come in any case.
    pub const fn has_job(&self) -> bool {
        matches!(self, Exchange::Generation(_))
    }

    /// When [`Service::handle_deadline`] wants to be called, if nothing happens before. It moves
    /// with every event, so it is read again after each call.
    pub fn next_deadline(&self) -> Moment {
        match self {
            Exchange::Generation(running) => running.next_deadline(),
            Exchange::HealthWatch(watch) => watch.next_deadline(),
            Exchange::Reflection(dialogue) => dialogue.next_deadline(),
        }
    }
}

impl Running {
    fn next_deadline(&self) -> Moment {
        match &self.work.delivery {
            Delivery::Stream(stream) if !self.call.representation.is_grpc() => {
                self.work.deadline.min(stream.ping_due())
            }
            _ => self.work.deadline,
        }
    }
}

impl Service {
    /// What the engine tells about a running exchange.
    pub fn handle_event(
        &mut self,
        exchange: &mut Exchange,
        event: Event,
        now: Moment,
        reply: &mut dyn ResponseSink,
    ) -> Flow {
        let Exchange::Generation(running) = exchange else {
            // Of an earlier request's job; the caller's own check is stricter.
            return Flow::Open;
        };
        match event {
            Event::Token { text } => {
                self.handle_token(running, &text, now, reply);
                Flow::Open
            }
            Event::Done(done) => {
                self.handle_done(running, *done, now, reply);
                Flow::Finished
            }
            Event::Failed(failed) => {
                self.handle_failed(running, *failed, now, reply);
                Flow::Finished
            }
        }
    }

    /// `exchange.next_deadline()` has passed: a ping is due, or the engine is stuck. Nothing
    /// happens where it has not.
    pub fn handle_deadline(
        &mut self,
        exchange: &mut Exchange,
        now: Moment,
        reply: &mut dyn ResponseSink,
    ) -> Flow {
        let running = match exchange {
            Exchange::Generation(running) => running,
            Exchange::HealthWatch(watch) => return self.look_at_health(watch, now, reply),
            Exchange::Reflection(dialogue) => return self.look_at_questions(dialogue, now, reply),
        };
        let Running { call, work } = running;
        if now >= work.deadline {
            work.ticket.cancel(CancelReason::Deadline);
            // The reservation stays taken, as in `abandon`: the engine has worked for this job and
            // has not said how much.
            work.reserved = None;
            let failed = Failed {
                reason: FailReason::Error(ErrorCode::GenerationTimeout),
                message: "the engine did not end the request in time".to_owned(),
                text: String::new(),
                usage: Usage::default(),
                timings: Timings::default(),
            };
            self.handle_failed(running, failed, now, reply);
            return Flow::Finished;
        }
        if let Delivery::Stream(stream) = &mut work.delivery
            && !call.representation.is_grpc()
            && now >= stream.ping_due()
        {
            // A full output shows by itself that the connection lives.
            if reply.has_room() {
                self.buffer.body.clear();
                sse::comment(&mut self.buffer.body, "ping");
                stream.send(&mut self.buffer, call, Step::Flush, now, reply);
            } else {
                stream.silent_since = now;
            }
        }
        Flow::Open
    }

    /// The output queue fell below its low mark: grants the credit that was held back.
    pub fn handle_room(&mut self, exchange: &mut Exchange) {
        if let Exchange::Generation(Running { work, .. }) = exchange
            && let Delivery::Stream(stream) = &mut work.delivery
            && stream.held_credit > 0
        {
            work.ticket.grant(stream.held_credit);
            stream.held_credit = 0;
        }
    }

    /// The client left, or the drain's patience ended: stops the job.
    ///
    /// The reservation of tokens stays taken: how much the job has cost is never learnt here, and
    /// whoever hangs up must not get for nothing what others pay for.
    pub fn abandon(&mut self, exchange: Box<Exchange>, reason: CancelReason, now: Moment) {
        let Running { call, work } = match *exchange {
            Exchange::Generation(running) => running,
            Exchange::HealthWatch(watch) => return self.abandon_watch(&watch, reason, now),
            Exchange::Reflection(dialogue) => {
                return self.abandon_dialogue(&dialogue, reason, now);
            }
        };
        work.ticket.cancel(reason);
        let bytes = work.bytes_sent();
        let outcome = Outcome::Abandoned { bytes, reason };
        self.log.close(&call, outcome, None, now);
    }

    fn handle_token(
        &mut self,
        running: &mut Running,
        text: &str,
        now: Moment,
        reply: &mut dyn ResponseSink,
    ) {
        let Running { call, work } = running;
        work.text.push_str(text);
        // An answer in one piece has no credit, so the engine sends no such event for it.
        let Delivery::Stream(stream) = &mut work.delivery else {
            return;
        };
        if work.time_to_first_token.is_none() {
            let duration = now.since(call.started);
            work.time_to_first_token = Some(duration);
            self.log.metrics().time_to_first_token.observe(duration);
        }
        let code = stream.extractor.push(text);
        if !code.is_empty() {
            self.buffer.body.clear();
            stream.append_delta(&mut self.buffer, call.representation, &code);
            stream.send(&mut self.buffer, call, Step::Flush, now, reply);
        }
        if reply.has_room() {
            work.ticket.grant(1);
        } else {
            stream.held_credit += 1;
        }
    }

    fn handle_done(
        &mut self,
        running: &mut Running,
        mut done: Done,
        now: Moment,
        reply: &mut dyn ResponseSink,
    ) {
        let Running { call, work } = running;
        let usage = done.usage;
        work.settle(call, &usage, now);
        let first_token = self.observe_speed(call, work, &usage, &done.timings);
        let bytes = match &mut work.delivery {
            Delivery::Whole => {
                work.append_text(std::mem::take(&mut done.text));
                let code = extract(&work.text, work.language);
                let object = work.answer(call, &code, &done, self.model.as_ref(), now);
                self.buffer.begin(call);
                render::append_answer(&mut self.buffer, call.representation, &object);
                let (auth, total) = (work.submitted - call.started, now - call.started);
                self.buffer
                    .push_server_timing(auth, Some(&done.timings), total);
                self.buffer.fields.push("cache-control", "no-store");
                render::send_answer(&mut self.buffer, call, reply)
            }
            Delivery::Stream(stream) => {
                let rest = stream.end(&done.text);
                self.buffer.body.clear();
                stream.append_delta(&mut self.buffer, call.representation, &rest);
                work.text.push_str(&done.text);
                let code = std::mem::take(&mut stream.code);
                let object = work.answer(call, &code, &done, self.model.as_ref(), now);
                render::append_done(&mut self.buffer, call.representation, &object);
                work.finish_stream(&mut self.buffer, call, None, now, reply)
            }
        };
        let status = 200;
        let outcome = Outcome::Answered { status, bytes };
        let generation = generation(&usage, &done.timings, first_token);
        self.log.close(call, outcome, Some(generation), now);
    }

    fn handle_failed(
        &mut self,
        running: &mut Running,
        failed: Failed,
        now: Moment,
        reply: &mut dyn ResponseSink,
    ) {
        let Running { call, work } = running;
        work.settle(call, &failed.usage, now);
        let mut error = failure(&failed);
        match (failed.reason, error.code) {
            (FailReason::Cancelled(reason), _) => self.log.metrics().cancelled(reason).inc(),
            (_, ErrorCode::GenerationTimeout) => {
                self.log.metrics().cancelled(CancelReason::Deadline).inc()
            }
            _ => 0,
        };
        let rest = match &mut work.delivery {
            Delivery::Whole => String::new(),
            Delivery::Stream(stream) => stream.end(&failed.text),
        };
        work.text.push_str(&failed.text);
        let generation = generation(&failed.usage, &failed.timings, work.time_to_first_token);
        if error.code == ErrorCode::GenerationTimeout {
            error.partial = Some(work.partial_code(&rest));
        }
        match &mut work.delivery {
            Delivery::Stream(stream) if stream.is_flowing => {
                self.buffer.body.clear();
                stream.append_delta(&mut self.buffer, call.representation, &rest);
                render::append_error(&mut self.buffer, call, &error);
                let bytes = work.finish_stream(&mut self.buffer, call, Some(&error), now, reply);
                let (status, code) = (200, error.code);
                let outcome = Outcome::Failed {
                    status,
                    bytes,
                    code,
                };
                self.log.close(call, outcome, Some(generation), now);
            }
            _ => self.fail(call, &error, Some(generation), now, reply),
        }
    }

    /// Records how fast the answer was; gives the time to its first token.
    fn observe_speed(
        &self,
        call: &Call,
        work: &mut Work,
        usage: &Usage,
        timings: &Timings,
    ) -> Option<Duration> {
        let metrics = self.log.metrics();
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
}

impl Work {
    /// An answer in one piece comes in one event, whose text is kept as it is.
    fn append_text(&mut self, text: String) {
        if self.text.is_empty() {
            self.text = text;
        } else {
            self.text.push_str(&text);
        }
    }

    fn bytes_sent(&self) -> u64 {
        match &self.delivery {
            Delivery::Whole => 0,
            Delivery::Stream(stream) => stream.bytes,
        }
    }

    fn settle(&self, call: &Call, usage: &Usage, now: Moment) {
        if let Some(reserved) = &self.reserved {
            let used = usage.prompt_tokens.saturating_add(usage.completion_tokens);
            reserved.settle(call, used, now);
        }
    }

    /// The program as far as it was written; `rest` is what a stream has not sent of it yet.
    fn partial_code(&self, rest: &str) -> String {
        match &self.delivery {
            Delivery::Whole => extract(&self.text, self.language).into_owned(),
            Delivery::Stream(stream) => [stream.code.as_str(), rest].concat(),
        }
    }

    fn answer<'a>(
        &'a self,
        call: &'a Call,
        code: &'a str,
        done: &Done,
        model: Option<&'a ModelInfo>,
        now: Moment,
    ) -> AnswerObject<'a> {
        AnswerObject {
            selection: self.selection,
            id: call.request_id.as_str(),
            code,
            language: self.language,
            text: &self.text,
            model: model.map(|model| model.id.as_str()),
            finish_reason: done.finish_reason,
            usage: done.usage,
            latency: now - call.started,
        }
    }

    /// Sends the stream's last piece from the buffer. Returns the bytes of the whole stream.
    fn finish_stream(
        &mut self,
        buffer: &mut ResponseBuffer,
        call: &Call,
        error: Option<&ApiError>,
        now: Moment,
        reply: &mut dyn ResponseSink,
    ) -> u64 {
        if let Delivery::Stream(stream) = &mut self.delivery {
            // An error of gRPC is no part of the body; an encoder has an end of its own.
            if !buffer.body.is_empty() || stream.coder.is_some() {
                stream.send(buffer, call, Step::Finish, now, reply);
            }
            render::end(call, error, reply);
        }
        self.bytes_sent()
    }
}

impl Stream {
    pub fn new(language: Option<&str>, now: Moment) -> Stream {
        Stream {
            extractor: Extractor::new(language),
            code: String::new(),
            is_flowing: false,
            silent_since: now,
            held_credit: 0,
            bytes: 0,
            coder: None,
        }
    }

    fn ping_due(&self) -> Moment {
        self.silent_since + limits::PING_INTERVAL
    }

    /// The last piece of text has come: gives the code that was still held back.
    fn end(&mut self, text: &str) -> String {
        let mut rest = self.extractor.push(text);
        // Ending takes the extractor apart; an unused one takes its place.
        let extractor = std::mem::replace(&mut self.extractor, Extractor::new(None));
        rest.push_str(&extractor.finish());
        rest
    }

    fn append_delta(
        &mut self,
        buffer: &mut ResponseBuffer,
        representation: Representation,
        code: &str,
    ) {
        if !code.is_empty() {
            render::append_delta(buffer, representation, code);
            self.code.push_str(code);
        }
    }

    /// Sends what the buffer holds, after the head if that is still to come.
    fn send(
        &mut self,
        buffer: &mut ResponseBuffer,
        call: &Call,
        step: Step,
        now: Moment,
        reply: &mut dyn ResponseSink,
    ) {
        if !self.is_flowing {
            self.is_flowing = true;
            buffer.begin_fields(call);
            buffer.fields.push("cache-control", "no-store");
            // nginx holds answers back to fill its buffers, unless told so.
            buffer.fields.push("x-accel-buffering", "no");
            self.coder = render::start(buffer, call, reply);
        }
        self.bytes += buffer.send_piece(self.coder.as_deref_mut(), step, reply);
        self.silent_since = now;
    }
}

impl Reserved {
    /// Replaces the reservation by what was used.
    pub fn settle(&self, call: &Call, used: u32, now: Moment) {
        if let Some(caller) = &call.caller {
            let bucket = &caller.account.tokens;
            bucket.settle(self.rate, self.tokens, used, now);
        }
    }
}

/// A failed job in the catalogue's words.
fn failure(failed: &Failed) -> ApiError {
    let code = match failed.reason {
        FailReason::Error(code) => code,
        FailReason::Cancelled(CancelReason::Deadline) => ErrorCode::GenerationTimeout,
        FailReason::Cancelled(CancelReason::Drain) => ErrorCode::Draining,
        // Whoever cancels for these reasons has let go of the exchange before.
        FailReason::Cancelled(_) => ErrorCode::EngineFailed,
    };
    let error = ApiError::new(code, failed.message.as_str());
    match code.family() {
        Family::Overloaded | Family::Timeout | Family::Server => {
            error.with_retry_after(limits::BUSY_RETRY_AFTER)
        }
        _ => error,
    }
}

fn generation(usage: &Usage, timings: &Timings, first_token: Option<Duration>) -> Generation {
    Generation {
        prompt_tokens: usage.prompt_tokens,
        cached_tokens: usage.cached_tokens,
        completion_tokens: usage.completion_tokens,
        queue: timings.queue,
        time_to_first_token: first_token,
    }
}
