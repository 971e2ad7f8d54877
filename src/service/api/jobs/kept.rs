//! `Idempotency-Key` on a generation: it becomes a durable job, which its request follows.
//!
//! ```text
//!   Accepting ── id ──> Waiting <── woken, room, pause over ──┐
//!                          │ look: new code, the end         │
//!                          ├── not the end ──────────────────┘
//!                          └── the end ──> the response, in this request's representation;
//!                                          a worker writes a long one ([`writing`])
//! ```
//!
//! So the generation outlives its client and the daemon, and a retry joins it or gets its result,
//! on any daemon that shares the store, in whichever representation it asks for. A flight of the
//! cache could not serve here: it lives in one process, and only for reproducible requests.
//!
//! A stream sends the job's code as it is saved. A job that begins again writes the same code, as
//! its seed is fixed; the part that was sent is skipped. If its result is another one after all,
//! the stream ends in an error. Such a stream is not compressed, like the events of a job: the
//! store may have its code in pieces that are too long to compress them here.
//!
//! Invariants:
//!  1. One task of the store is under way at most ([`Looks`]).
//!  2. The code that a stream has sent is a beginning of the code that its end shows.

use std::sync::Arc;
use std::time::Duration;

use crate::core::Moment;
use crate::engine::{GenerationId, Origin, Served, Verdict};
use crate::error::{ApiError, ErrorCode};
use crate::grpc::{Encoding, Terms};
use crate::http::negotiate::AcceptEncoding;
use crate::jobs::{Completion, Ending, EventId, Failure, JobId, State};
use crate::limits::service as service_limits;
use crate::offload::{CancelReason, JobKey, Ticket};
use crate::runner::Follower;
use crate::service::asking::{draining, unavailable};
use crate::service::call::Call;
use crate::service::desk::{Desk, Flow, Wire};
use crate::service::dialect::{Generation, Narrator};
use crate::service::found::{Found, Progress, StoreReply};
use crate::service::generation::running::{Delivery, Running, Stage};
use crate::service::generation::writing::{self, Ended, Part, Writing};
use crate::service::representation::Representation;
use crate::service::request_log::{Outcome, RequestLog};

use super::follow::register;
use super::looks::Looks;
use super::object::{finish_reason, usage, with_object};
use super::work::{Work, no_job, submit};

/// See the file's head.
#[derive(Debug)]
pub struct Kept {
    call: Call,
    key: JobKey,
    /// Has the place among its key's concurrent requests, which its client holds while it waits. It
    /// is cancelled when the client gets an error: a job that was not accepted by then never is.
    ticket: Arc<Ticket>,
    delivery: Delivery,
    /// The client does not wait longer.
    deadline: Moment,
    /// `None`: the job is being accepted.
    job: Option<(JobId, Follower)>,
    /// The last event that was read.
    after: EventId,
    /// Bytes of code that the present attempt has saved, as far as they were read.
    written_bytes: usize,
    /// Bytes of code that were sent.
    sent_bytes: usize,
    looks: Looks,
    /// When a job must have been accepted.
    accepted_by: Moment,
    /// A worker writes the response.
    writing: Option<Box<Writing>>,
}

/// The parts of a request that becomes a kept generation.
pub struct Start {
    pub key: JobKey,
    pub ticket: Arc<Ticket>,
    pub narrator: Narrator,
    pub deadline: Moment,
}

/// Sends the job to the store. `None`: the response is complete.
pub fn begin(
    desk: &mut Desk,
    call: Call,
    start: Start,
    work: Work,
    wire: &mut Wire<'_>,
) -> Option<Kept> {
    if let Err(error) = submit(desk, &call, start.key, work, Some(&start.ticket)) {
        desk.fail(&call, &error, wire);
        return None;
    }
    let delivery = Delivery::new(start.narrator, wire.now);
    Some(Kept {
        call: match &delivery {
            Delivery::Stream(_) => uncompressed(call),
            Delivery::Whole(_) | Delivery::AtWorker => call,
        },
        key: start.key,
        ticket: start.ticket,
        delivery,
        deadline: start.deadline,
        job: None,
        after: EventId::BEGINNING,
        written_bytes: 0,
        sent_bytes: 0,
        looks: Looks::DUE,
        accepted_by: wire.now + service_limits::STORE_TIME_MAX,
        writing: None,
    })
}

fn uncompressed(call: Call) -> Call {
    let representation = match call.representation {
        Representation::Grpc(terms) => Representation::Grpc(Terms {
            encoding: Encoding::Identity,
            ..terms
        }),
        other => other,
    };
    Call {
        accept_encoding: AcceptEncoding::NONE,
        representation,
        ..call
    }
}

impl Kept {
    pub fn next_deadline(&self) -> Moment {
        let due = self.deadline.min(self.accepted_by).min(self.looks.retry_at);
        match &self.delivery {
            Delivery::Stream(stream) => due.min(stream.ping_due()),
            Delivery::Whole(_) | Delivery::AtWorker => due,
        }
    }

    /// Returns the code that a stream keeps to show it at its end.
    pub const fn buffered_bytes(&self) -> usize {
        self.sent_bytes
    }

    pub fn handle_reply(
        &mut self,
        desk: &mut Desk,
        reply: StoreReply,
        wire: &mut Wire<'_>,
    ) -> Flow {
        self.looks.handle_reply();
        self.accepted_by = Moment::NEVER;
        match reply {
            Ok(Found::Accepted(id)) => match register(desk, &self.call, id, self.key) {
                Ok(follower) => {
                    self.job = Some((id, follower));
                    self.look(desk, wire.now);
                    Flow::Open
                }
                Err(error) => self.fail(desk, &error, wire),
            },
            Ok(Found::Progress(progress)) => self.handle_progress(desk, *progress, wire),
            Ok(Found::Events(_)) => Flow::Open,
            Err(error) if self.job.is_none() || error.code == ErrorCode::NotFound => {
                self.fail(desk, &error, wire)
            }
            Err(_) => {
                self.looks.retry_later(wire.now);
                Flow::Open
            }
        }
    }

    fn handle_progress(
        &mut self,
        desk: &mut Desk,
        progress: Progress,
        wire: &mut Wire<'_>,
    ) -> Flow {
        self.after = progress.last;
        if progress.has_more {
            self.looks.want();
        }
        if progress.is_reset {
            self.written_bytes = 0;
        }
        if !matches!(progress.end, Some((_, Some(Ending::Completed(_))))) {
            self.send_code(desk, &progress.code, wire);
        }
        match progress.end {
            Some((_, Some(Ending::Completed(completion)))) => {
                self.complete(desk, completion, &progress.whole, wire)
            }
            Some((_, Some(Ending::Failed(failure)))) => self.fail(desk, &error_of(failure), wire),
            Some((state, None)) => self.fail(desk, &unfinished(state), wire),
            None => {
                if wire.sink.has_room() {
                    self.look(desk, wire.now);
                }
                Flow::Open
            }
        }
    }

    /// Sends the part of an attempt's next code that has not been sent.
    fn send_code(&mut self, desk: &mut Desk, code: &str, wire: &mut Wire<'_>) {
        let skipped = self.sent_bytes.saturating_sub(self.written_bytes);
        self.written_bytes += code.len();
        // Another code than before may have no boundary there: its end will show that.
        let rest = code.get(skipped..).unwrap_or_default();
        if let Delivery::Stream(stream) = &mut self.delivery
            && !rest.is_empty()
        {
            self.sent_bytes += rest.len();
            stream.push_code(desk, &self.call, rest, wire);
        }
    }

    /// Ends the response. A stream gets the rest of the code, `whole`, before its last event.
    fn complete(
        &mut self,
        desk: &mut Desk,
        completion: Completion,
        whole: &str,
        wire: &mut Wire<'_>,
    ) -> Flow {
        let mut rest = "";
        if let Delivery::Stream(stream) = &self.delivery {
            let sent = stream.pieces.partial();
            if !whole.starts_with(sent.trim_end()) {
                return self.fail(desk, &differs(), wire);
            }
            rest = whole.get(sent.len()..).unwrap_or_default();
            self.written_bytes = sent.len();
        }
        if completion.text.len() > service_limits::WRITE_AT_ONCE_BYTES_MAX {
            self.begin_writing(desk, completion, rest, wire);
            return Flow::Open;
        }
        self.send_code(desk, rest, wire);
        let bytes = with_object(&completion, |object| {
            self.send(desk, object.generation, wire)
        });
        let outcome = Outcome::Completed { status: 200, bytes };
        desk.log.close(&self.call, outcome, None, wire.now);
        Flow::Finished
    }

    /// Has a worker write the response, or the rest of a stream.
    fn begin_writing(
        &mut self,
        desk: &mut Desk,
        completion: Completion,
        rest: &str,
        wire: &mut Wire<'_>,
    ) {
        let part = match std::mem::replace(&mut self.delivery, Delivery::AtWorker) {
            Delivery::Whole(whole) => Part::Whole(whole),
            Delivery::Stream(mut stream) => {
                stream.pieces.end_code(rest);
                Part::Ending(stream.into_ending(desk, &self.call, wire))
            }
            Delivery::AtWorker => return,
        };
        let latency = Duration::from_millis(completion.latency_ms);
        let id = GenerationId::parse(&completion.id).unwrap_or(GenerationId::FIRST);
        let ended = Ended {
            id,
            ticket: Arc::clone(&self.ticket),
            key: self.key,
            deadline: wire.now + service_limits::WRITING_TIME_MAX,
            auth: Duration::ZERO,
            timings: None,
            figures: None,
            finish_reason: finish_reason(&completion),
            usage: usage(&completion),
            served: Served {
                verdict: match completion.cached {
                    true => Verdict::Hit,
                    false => Verdict::Miss,
                },
                origin: Some(Origin { id, latency }),
                ..Served::default()
            },
            model: completion.model.map(Arc::from),
        };
        let writing = writing::begin(desk, &self.call, part, completion.text, ended, wire.now);
        self.writing = Some(Box::new(writing));
    }

    /// Returns the request as one whose response a worker writes. `None`: none does.
    pub fn take_running(&mut self, now: Moment) -> Option<Running> {
        let writing = self.writing.take()?;
        let rest = Call::unread(self.call.request_id, self.call.peer, now);
        Some(Running {
            call: std::mem::replace(&mut self.call, rest),
            stage: Stage::Writing(writing),
        })
    }

    /// Sends the whole response, or the end of a stream. Returns the bytes of content.
    fn send(&mut self, desk: &mut Desk, generation: &Generation<'_>, wire: &mut Wire<'_>) -> u64 {
        let (call, form) = (&self.call, self.call.form());
        let dialect = desk.dialect(call.surface());
        let buffer = &mut desk.buffer;
        match &mut self.delivery {
            Delivery::Whole(whole) => {
                buffer.begin(call);
                whole.write(buffer, form, generation);
                buffer.fields.push("cache-control", "no-store");
                dialect.send(buffer, call, wire.sink)
            }
            Delivery::Stream(stream) => {
                buffer.body.clear();
                stream.pieces.done(buffer, form, generation);
                stream.finish(desk, call, None, wire)
            }
            Delivery::AtWorker => 0,
        }
    }

    /// Ends the response with an error.
    fn fail(&mut self, desk: &mut Desk, error: &ApiError, wire: &mut Wire<'_>) -> Flow {
        self.ticket.cancel(CancelReason::Deadline);
        match &mut self.delivery {
            Delivery::Stream(stream) if stream.is_flowing() => {
                let buffer = &mut desk.buffer;
                buffer.body.clear();
                stream.pieces.failed(buffer, &self.call, error);
                let outcome = Outcome::Failed {
                    status: 200,
                    bytes: stream.finish(desk, &self.call, Some(error), wire),
                    code: error.code,
                };
                desk.log.close(&self.call, outcome, None, wire.now);
            }
            _ => desk.fail(&self.call, error, wire),
        }
        Flow::Finished
    }

    pub fn handle_moved(&mut self, desk: &mut Desk, wire: &mut Wire<'_>) {
        self.looks.want();
        if wire.sink.has_room() {
            self.look(desk, wire.now);
        }
    }

    pub fn handle_room(&mut self, desk: &mut Desk) {
        // A look that is refused is tried again at the next deadline, which then has passed.
        self.look(desk, Moment::ZERO);
    }

    pub fn handle_deadline(&mut self, desk: &mut Desk, wire: &mut Wire<'_>) -> Flow {
        if self.job.is_none() && wire.now >= self.accepted_by.min(self.deadline) {
            return self.fail(desk, &unavailable(), wire);
        }
        if wire.now >= self.deadline {
            return self.fail(desk, &late(), wire);
        }
        if self.looks.end_pause(wire.now) {
            self.look(desk, wire.now);
        }
        if let Delivery::Stream(stream) = &mut self.delivery {
            stream.ping(desk, &self.call, wire);
        }
        Flow::Open
    }

    /// Ends the response: the daemon ends. The job goes on in the next process.
    pub fn cut_off(&mut self, desk: &mut Desk, wire: &mut Wire<'_>) {
        let _finished = self.fail(desk, &draining(), wire);
    }

    /// The client left; the job goes on.
    pub fn abandon(&self, log: &mut RequestLog, reason: CancelReason, now: Moment) {
        let bytes = self.delivery.bytes();
        log.close(&self.call, Outcome::Abandoned { bytes, reason }, None, now);
    }

    /// Asks the store how far the job is, if that may have changed.
    fn look(&mut self, desk: &Desk, now: Moment) {
        let Some((id, follower)) = &self.job else {
            return;
        };
        if !self.looks.take() {
            return;
        }
        follower.look();
        let work = Work::Progress {
            id: *id,
            after: self.after,
            wants_code: matches!(self.delivery, Delivery::Stream(_)),
        };
        let submitted = submit(desk, &self.call, self.key, work, None);
        self.looks.handle_submitted(submitted.is_ok(), now);
    }
}

/// Returns the error of a job that failed. A code of a later version becomes the daemon's own.
fn error_of(failure: Failure) -> ApiError {
    let known = ErrorCode::ALL.iter();
    let known = known.copied().find(|code| code.as_str() == failure.code);
    ApiError::new(known.unwrap_or(ErrorCode::Internal), failure.message)
}

/// Returns the error of a job that ended without a result.
fn unfinished(state: State) -> ApiError {
    match state {
        State::Cancelled => {
            let message = "the generation of this `Idempotency-Key` was cancelled; use a new key";
            ApiError::new(ErrorCode::Conflict, message).with_param("idempotency-key")
        }
        State::Expired => {
            let message = "the generation could not begin within its `timeout`; use a new \
                           `Idempotency-Key` to try again";
            ApiError::new(ErrorCode::GenerationTimeout, message)
        }
        _ => no_job(),
    }
}

fn late() -> ApiError {
    let message = "the generation was not complete in time, and goes on; repeat the request with \
                   the same `Idempotency-Key`";
    ApiError::new(ErrorCode::GenerationTimeout, message)
        .with_retry_after(service_limits::BUSY_RETRY_AFTER)
}

fn differs() -> ApiError {
    let message = "the generation began again, and its result differs from what was sent; repeat \
                   the request with the same `Idempotency-Key`";
    ApiError::new(ErrorCode::EngineFailed, message)
}
