//! The work of followers of jobs on the store's thread, and its reply.
//!
//! A task replies exactly once: with what the store has found, or with an error if the store has
//! failed or its thread has ended. Events are written here, after the store was read. The other
//! requests about jobs are questions (`question.rs`); both ways of accepting a job share
//! [`accept`].

use std::sync::Arc;

use crate::core::buffered::Share;
use crate::error::{ApiError, ErrorCode};
use crate::jobs::{
    Acceptance, Bound, Bounds, Candidate, Ending, EventId, EventKind, Idempotency, JobId,
    JobRecord, JobRequest, NewJob,
};
use crate::keys::tenant_of;
use crate::limits::jobs as limits;
use crate::limits::service as service_limits;
use crate::offload::{JobKey, Ticket};
use crate::runner::calls::Called;
use crate::runner::{Journal, Note};
use crate::service::asking::{crowded, is_wanted, unavailable};
use crate::service::call::Call;
use crate::service::completion::{self, Completion};
use crate::service::desk::Desk;
use crate::service::found::{Batch, Found, Progress, StoreReply};
use crate::store::{Store, StoreError, StoreTask, accepting};

use super::notation::Notation;
use super::object::with_object;

/// The requests to the store.
pub enum Work {
    /// For a kept generation.
    Accept(Box<Accept>),
    Events {
        id: JobId,
        after: EventId,
        /// Whether `after` is the client's word, which may be wrong.
        is_first: bool,
    },
    /// For a kept generation.
    Progress {
        id: JobId,
        after: EventId,
        wants_code: bool,
    },
}

/// A job that is to be accepted.
pub struct Accept {
    pub id: JobId,
    pub request: JobRequest,
    pub callback_url: Option<String>,
    /// Whether the request has no seed of its own, so that a retry may have got another one.
    pub is_seed_drawn: bool,
    pub created_at: u64,
    pub expires_at: u64,
    pub bounds: Bounds,
    pub idempotency_key: Option<Box<str>>,
    pub idempotency_ms: u64,
    /// The memory of the request.
    pub _memory: Share,
    /// What the store accepts, while it does so.
    pub candidate: Option<Box<Candidate>>,
}

/// A job that was accepted.
pub struct Accepted {
    pub job: JobRecord,
    /// Not by an earlier request with the same key of idempotency.
    pub is_new: bool,
}

/// See the file's head.
struct JobTask {
    work: Work,
    /// Of its reply.
    notation: Notation,
    /// The id of the caller's key.
    key_id: String,
    key: JobKey,
    /// Of a request whose client may get an error while the work still waits.
    ticket: Option<Arc<Ticket>>,
    journal: Journal,
    /// `None` once it has replied.
    replies: Option<Arc<dyn completion::Reply>>,
    /// The result of `run`.
    found: Option<StoreReply>,
    /// For the runner, once the result is committed.
    note: Option<Note>,
}

/// Sends the store a task for a request. A ticket that is cancelled takes it back.
pub fn submit(
    desk: &Desk,
    call: &Call,
    key: JobKey,
    work: Work,
    ticket: Option<&Arc<Ticket>>,
) -> Result<(), ApiError> {
    let parts = &desk.parts;
    let task = JobTask {
        work,
        notation: Notation::of(call),
        key_id: key_id(call),
        key,
        ticket: ticket.cloned(),
        journal: parts.jobs.journal.clone(),
        replies: Some(Arc::clone(&parts.replies)),
        found: None,
        note: None,
    };
    let submitted = parts.requests.submit(call.tenant(), Box::new(task));
    submitted.map_err(|_| crowded())
}

/// Returns the id of the caller's key; empty without one.
pub fn key_id(call: &Call) -> String {
    let caller = call.caller.as_ref();
    caller.map_or(String::new(), |caller| caller.record.id.clone())
}

impl JobTask {
    fn reply(&mut self, reply: StoreReply) {
        if let Some(replies) = self.replies.take() {
            replies.reply(self.key, Completion::Job(Box::new(reply)));
        }
    }

    fn look(&mut self, store: &mut dyn Store) -> Result<StoreReply, StoreError> {
        let (key_id, notation) = (self.key_id.as_str(), self.notation);
        match &mut self.work {
            Work::Accept(asked) => {
                let accepted = accept(store, asked, key_id)?;
                let is_new = accepted.as_ref().is_ok_and(|accepted| accepted.is_new);
                self.note = is_new.then(|| asked.note(key_id));
                Ok(accepted.map(|accepted| Found::Accepted(accepted.job.id)))
            }
            Work::Progress {
                id,
                after,
                wants_code,
            } => progress(store, (*id, *after), *wants_code, key_id),
            Work::Events {
                id,
                after,
                is_first,
            } => events(store, (*id, *after), *is_first, key_id, notation),
        }
    }
}

impl StoreTask for JobTask {
    fn is_wanted(&self) -> bool {
        let mut tickets = self.ticket.iter();
        tickets.all(|ticket| is_wanted(ticket, true))
    }

    fn bytes(&self) -> u32 {
        match &self.work {
            Work::Accept(asked) => asked.bytes(),
            _ => 0,
        }
    }

    fn run(&mut self, store: &mut dyn Store) -> Result<(), StoreError> {
        self.found = Some(self.look(store)?);
        Ok(())
    }

    fn accepts_job(&self) -> bool {
        matches!(self.work, Work::Accept(_))
    }

    fn candidate(&mut self) -> Option<&Candidate> {
        match &mut self.work {
            Work::Accept(asked) => Some(asked.candidate(&self.key_id)),
            _ => None,
        }
    }

    fn take_outcome(&mut self, outcome: Acceptance) {
        if let Work::Accept(asked) = &mut self.work {
            let accepted = asked.conclude(outcome, &self.key_id);
            let is_new = accepted.as_ref().is_ok_and(|accepted| accepted.is_new);
            self.note = is_new.then(|| asked.note(&self.key_id));
            self.found = Some(accepted.map(|accepted| Found::Accepted(accepted.job.id)));
        }
    }

    fn finish(mut self: Box<Self>, result: Result<(), &StoreError>) {
        let found = self.found.take();
        match (result, found) {
            (Ok(()), Some(found)) => {
                if let Some(note) = self.note.take() {
                    self.journal.note(note);
                }
                self.reply(found);
            }
            _ => self.reply(Err(unavailable())),
        }
    }

    fn refuse(mut self: Box<Self>) {
        self.replies = None;
    }
}

impl Drop for JobTask {
    fn drop(&mut self) {
        self.reply(Err(unavailable()));
    }
}

/// Adds a job to the store, or finds the one that an earlier request has added.
pub fn accept(
    store: &mut dyn Store,
    asked: &mut Accept,
    key_id: &str,
) -> Result<Result<Accepted, ApiError>, StoreError> {
    let outcome = accepting::accept(store, &[asked.candidate(key_id)])?.pop();
    let outcome = outcome.ok_or_else(unavailable);
    Ok(outcome.and_then(|outcome| asked.conclude(outcome, key_id)))
}

impl Accept {
    /// Returns what it counts in the store's queue and in a transaction.
    pub fn bytes(&self) -> u32 {
        u32::try_from(self.request.bytes()).unwrap_or(u32::MAX)
    }

    /// Returns the job as the store accepts it.
    pub fn candidate(&mut self, key_id: &str) -> &Candidate {
        let candidate = match self.candidate.take() {
            Some(candidate) => candidate,
            None => Box::new(self.make_candidate(key_id)),
        };
        self.candidate.insert(candidate)
    }

    fn make_candidate(&self, key_id: &str) -> Candidate {
        let idempotency = self.idempotency_key.as_ref().map(|key| Idempotency {
            key: key.to_string(),
            digest: digest(self),
            expires_at: self.created_at.saturating_add(self.idempotency_ms),
        });
        Candidate {
            job: NewJob {
                id: self.id,
                key_id: key_id.to_owned(),
                created_at: self.created_at,
                expires_at: self.expires_at,
                request: self.request.to_json(),
                callback_url: self.callback_url.clone(),
                idempotency,
            },
            bounds: self.bounds,
        }
    }

    /// Returns the note for the runner once the job is durable.
    pub fn note(&self, key_id: &str) -> Note {
        let called = Called {
            id: self.id,
            tenant: tenant_of(key_id),
        };
        Note::Accepted(self.request.is_live.then_some(called))
    }

    /// Turns the store's outcome into the client's.
    pub fn conclude(&mut self, outcome: Acceptance, key_id: &str) -> Result<Accepted, ApiError> {
        self.candidate = None;
        let is_new = matches!(outcome, Acceptance::New(_));
        match outcome {
            Acceptance::New(job) | Acceptance::Known(job) => Ok(Accepted { job: *job, is_new }),
            Acceptance::Conflict => {
                let message = "another request was sent with this `Idempotency-Key`; use a new \
                               key for each request, and the same one to repeat it";
                Err(ApiError::new(ErrorCode::Conflict, message).with_param("idempotency-key"))
            }
            Acceptance::Unsigned => Err(no_secret(key_id)),
            Acceptance::Full(bound) => Err(full(bound, &self.bounds)),
        }
    }
}

/// Returns the digest of everything that decides a job. A seed that was drawn differs in a retry.
fn digest(asked: &Accept) -> [u8; 32] {
    let mut request = asked.request.clone();
    if request.is_live {
        // A retry has less time left, and `grpc-timeout` says so.
        request.timeout_ms = 0;
    }
    if asked.is_seed_drawn {
        request.seed = 0;
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update(&[u8::from(asked.is_seed_drawn)]);
    hasher.update(request.to_json().as_bytes());
    if let Some(url) = &asked.callback_url {
        // A byte that no JSON text ends with.
        hasher.update(b"\0");
        hasher.update(url.as_bytes());
    }
    *hasher.finalize().as_bytes()
}

fn events(
    store: &mut dyn Store,
    (id, after): (JobId, EventId),
    is_first: bool,
    key_id: &str,
    notation: Notation,
) -> Result<StoreReply, StoreError> {
    let Some(job) = store.job(id)?.filter(|job| job.key_id == key_id) else {
        return Ok(Err(no_job()));
    };
    let last = job.life.last_event();
    let is_checked = is_first && after != EventId::BEGINNING;
    let from = match is_checked {
        true => after.predecessor(),
        false => after,
    };
    let events = store.job_events(id, from, limits::FOLLOWED_BYTES)?;
    let mut events = events.iter();
    if is_checked && events.next().map(|event| event.id) != Some(after) {
        return Ok(Err(no_event(after, last, notation)));
    }
    let mut batch = Batch {
        last: after,
        ..Batch::default()
    };
    for event in events {
        notation.append_event(&mut batch.body, event, &job);
        batch.last = event.id;
    }
    batch.is_end = job.life.state.is_finished() && batch.last == last;
    batch.has_more = batch.last < last;
    Ok(Ok(Found::Events(batch)))
}

/// The error for a place in the job's history that it does not have.
fn no_event(after: EventId, last: EventId, notation: Notation) -> ApiError {
    let (param, name) = match notation {
        Notation::Grpc => ("after", "after"),
        Notation::Json | Notation::Bare => ("last-event-id", "Last-Event-ID"),
    };
    let known = match last {
        EventId::BEGINNING => "it has none yet".to_owned(),
        last => format!("its last one is {last}"),
    };
    let message = format!(
        "this job has no event {after}; {known}. Send the id of an event that you have got, or no \
         `{name}` for all events"
    );
    ApiError::new(ErrorCode::InvalidParameter, message).with_param(param)
}

fn progress(
    store: &mut dyn Store,
    (id, after): (JobId, EventId),
    wants_code: bool,
    key_id: &str,
) -> Result<StoreReply, StoreError> {
    let Some(job) = store.job(id)?.filter(|job| job.key_id == key_id) else {
        return Ok(Err(no_job()));
    };
    let mut progress = Progress {
        last: after,
        ..Progress::default()
    };
    if wants_code {
        for event in store.job_events(id, after, limits::FOLLOWED_BYTES)? {
            progress.last = event.id;
            match event.kind {
                EventKind::Reset => {
                    progress.is_reset = true;
                    progress.code.clear();
                }
                EventKind::Delta => progress.code.push_str(&event.text),
                _ => {}
            }
        }
        progress.has_more = progress.last < job.life.last_event();
    }
    if job.life.state.is_finished() && !progress.has_more {
        let ending = job.ending.as_deref().and_then(Ending::parse);
        if let Some(Ending::Completed(completion)) = &ending
            && wants_code
        {
            progress.whole = with_object(completion, |object| object.code.to_owned());
        }
        progress.end = Some((job.life.state, ending));
    }
    Ok(Ok(Found::Progress(Box::new(progress))))
}

/// The error for a job that the caller's key does not have.
pub fn no_job() -> ApiError {
    let message = "this key has no such job; finished jobs are deleted after `jobs.keep`";
    ApiError::new(ErrorCode::NotFound, message)
}

/// The error for a callback that could not be signed.
fn no_secret(key_id: &str) -> ApiError {
    let message = match key_id {
        "" => "callbacks are signed with a secret of the key; send the request with a key".into(),
        id => format!(
            "callbacks are signed, and this key has no secret for them; make one with `autoglmd \
             key webhook-secret {id}` where the daemon runs"
        ),
    };
    ApiError::new(ErrorCode::InvalidParameter, message).with_param("callback_url")
}

fn full(bound: Bound, bounds: &Bounds) -> ApiError {
    let (code, message) = match bound {
        Bound::JobsOfKey => (
            ErrorCode::TooManyConcurrent,
            format!(
                "this key already has {} unfinished jobs (`jobs.max_queued_per_key`); wait for \
                 one to end, or cancel one",
                bounds.jobs_of_key
            ),
        ),
        Bound::BytesOfKey => (
            ErrorCode::TooManyConcurrent,
            format!(
                "the jobs of this key already take {} bytes, which is all that one key may have \
                 of `jobs.max_size`; wait until finished ones are deleted",
                bounds.bytes / limits::KEY_BYTES_DIVISOR
            ),
        ),
        Bound::Jobs => (
            ErrorCode::QueueFull,
            format!(
                "{} jobs are unfinished, as many as `jobs.max_queued` allows",
                bounds.jobs
            ),
        ),
        Bound::Bytes => (
            ErrorCode::QueueFull,
            format!(
                "all jobs together take {} bytes, as many as `jobs.max_size` allows",
                bounds.bytes
            ),
        ),
    };
    ApiError::new(code, message).with_retry_after(service_limits::BUSY_RETRY_AFTER)
}
