//! The work of requests about jobs on the store's thread, and its reply.
//!
//! A task replies exactly once: with what the store has found, or with an error if the store has
//! failed or its thread has ended. Bodies are written here, after the store was read.

use std::sync::Arc;

use crate::core::buffered::Share;
use crate::error::{ApiError, ErrorCode};
use crate::jobs::{Ending, EventId, EventKind, JobId, JobRecord, JobRequest, NewJob, State};
use crate::limits::jobs as limits;
use crate::limits::service as service_limits;
use crate::offload::JobKey;
use crate::runner::change::{self, Acceptance, Bound, Bounds, Idempotency};
use crate::runner::{Journal, Note};
use crate::service::call::Call;
use crate::service::completion::{self, Completion};
use crate::service::found::{Batch, Found, Progress, StoreReply};
use crate::store::{Store, StoreError, StoreTask};

use super::notation::Notation;
use super::object::write_page;

/// The requests to the store.
pub enum Work {
    Accept(Box<Accept>),
    Show(JobId),
    Cancel {
        id: JobId,
        now: u64,
        keep_ms: u64,
    },
    List {
        state: Option<State>,
        before: Option<JobId>,
        limit: u32,
    },
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
    pub memory: Share,
}

/// See the file's head.
pub struct JobTask {
    pub work: Work,
    /// Of its reply.
    pub notation: Notation,
    /// The id of the caller's key.
    pub key_id: String,
    pub key: JobKey,
    pub journal: Journal,
    /// `None` once it has replied.
    pub replies: Option<Arc<dyn completion::Reply>>,
    /// The result of `run`.
    pub found: Option<StoreReply>,
    /// For the runner, once the result is committed.
    pub note: Option<Note>,
}

impl JobTask {
    fn reply(&mut self, reply: StoreReply) {
        if let Some(replies) = self.replies.take() {
            replies.reply(self.key, Completion::Job(Box::new(reply)));
        }
    }

    fn look(&mut self, store: &mut dyn Store) -> Result<StoreReply, StoreError> {
        let (key_id, notation) = (self.key_id.as_str(), self.notation);
        let shown = |job: &JobRecord| shown(job, notation);
        match &self.work {
            Work::Accept(accepted) => {
                let (reply, is_new) = accept(store, accepted, key_id, notation)?;
                self.note = is_new.then_some(Note::Accepted);
                Ok(reply)
            }
            Work::Show(id) => {
                let job = store.job(*id)?.filter(|job| job.key_id == key_id);
                Ok(job.as_ref().map(shown).ok_or_else(no_job))
            }
            Work::Cancel { id, now, keep_ms } => {
                let job = change::cancel(store, key_id, *id, *now, *keep_ms)?;
                let is_cancelled = job
                    .as_ref()
                    .is_some_and(|job| job.finished_at == Some(*now));
                self.note = is_cancelled.then_some(Note::Cancelled(*id));
                Ok(job.as_ref().map(shown).ok_or_else(no_job))
            }
            Work::List {
                state,
                before,
                limit,
            } => {
                let jobs = store.job_page(key_id, *state, *before, *limit)?;
                let is_full = jobs.len() == *limit as usize;
                let last = jobs
                    .last()
                    .filter(|_| is_full)
                    .map(|job| job.id.to_string());
                let mut body = Vec::new();
                write_page(&mut body, &jobs, last.as_deref());
                Ok(Ok(Found::Body {
                    status: 200,
                    created: None,
                    body,
                }))
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
    fn bytes(&self) -> u32 {
        match &self.work {
            Work::Accept(accepted) => accepted.request.prompt.len() as u32,
            _ => 0,
        }
    }

    fn run(&mut self, store: &mut dyn Store) -> Result<(), StoreError> {
        self.found = Some(self.look(store)?);
        Ok(())
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
}

impl Drop for JobTask {
    fn drop(&mut self) {
        self.reply(Err(unavailable()));
    }
}

fn accept(
    store: &mut dyn Store,
    accepted: &Accept,
    key_id: &str,
    notation: Notation,
) -> Result<(StoreReply, bool), StoreError> {
    let request = accepted.request.to_json();
    let idempotency = accepted.idempotency_key.as_ref().map(|key| Idempotency {
        key: key.to_string(),
        digest: digest(accepted),
        expires_at: accepted.created_at.saturating_add(accepted.idempotency_ms),
    });
    let job = NewJob {
        id: accepted.id,
        key_id: key_id.to_owned(),
        created_at: accepted.created_at,
        expires_at: accepted.expires_at,
        request,
        callback_url: accepted.callback_url.clone(),
    };
    let is_signed = job.callback_url.is_none()
        || !store
            .webhook_secrets(key_id, accepted.created_at / 1_000)?
            .is_empty();
    if !is_signed {
        return Ok((Err(no_secret(key_id)), false));
    }
    let reply = match change::accept(store, &job, &accepted.bounds, idempotency.as_ref())? {
        Acceptance::New => {
            let job = store.job(accepted.id)?;
            let reply = job.as_ref().map(|job| created(job, notation));
            let reply = reply.ok_or_else(no_job);
            return Ok((reply, true));
        }
        Acceptance::Known(job) => Ok(created(&job, notation)),
        Acceptance::Conflict => {
            let message = "another request was sent with this `Idempotency-Key`; use a new key \
                           for each request, and the same one to repeat it";
            Err(ApiError::new(ErrorCode::Conflict, message).with_param("idempotency-key"))
        }
        Acceptance::Full(bound) => Err(full(bound, &accepted.bounds)),
    };
    Ok((reply, false))
}

/// Returns the digest of everything that decides a job. A seed that was drawn differs in a retry.
fn digest(accepted: &Accept) -> [u8; 32] {
    let mut request = accepted.request.clone();
    if request.is_live {
        // A retry has less time left, and `grpc-timeout` says so.
        request.timeout_ms = 0;
    }
    if accepted.is_seed_drawn {
        request.seed = 0;
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update(&[u8::from(accepted.is_seed_drawn)]);
    hasher.update(request.to_json().as_bytes());
    if let Some(url) = &accepted.callback_url {
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
        progress.end = Some((job.life.state, ending));
    }
    Ok(Ok(Found::Progress(Box::new(progress))))
}

fn shown(job: &JobRecord, notation: Notation) -> Found {
    let mut body = Vec::new();
    notation.append_job(&mut body, job);
    Found::Body {
        status: 200,
        created: None,
        body,
    }
}

fn created(job: &JobRecord, notation: Notation) -> Found {
    if notation == Notation::Bare {
        return Found::Accepted(job.id);
    }
    let mut body = Vec::new();
    notation.append_job(&mut body, job);
    Found::Body {
        status: 202,
        created: Some(job.id),
        body,
    }
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

/// The error for a store that fails or takes too long.
pub fn unavailable() -> ApiError {
    let message = "the daemon's store does not respond; send the request again later, with the \
                   same `Idempotency-Key` if it must not run twice";
    ApiError::new(ErrorCode::StoreUnavailable, message)
        .with_retry_after(service_limits::BUSY_RETRY_AFTER)
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

/// Returns the id in a path such as `/api/v1/jobs/{id}`.
pub fn job_of(call: &Call, path: &str) -> Option<JobId> {
    call.row?.parameter(path).and_then(JobId::parse)
}
