//! A job in Protobuf, and its events.
//!
//! Plain functions of a record: the store's thread calls them.

use crate::grpc::messages::autoglm;
use crate::jobs::{Callback, CallbackState, Ending, EventKind, JobEvent, JobRecord, State};
use crate::service::api::native::protobuf::response_of;

use super::object::{family_of, with_object};

/// Returns a job as a message.
pub fn job_message(job: &JobRecord) -> autoglm::Job {
    let (result, error) = match job.ending.as_deref().and_then(Ending::parse) {
        Some(Ending::Completed(completion)) => (Some(with_object(&completion, response_of)), None),
        Some(Ending::Failed(failure)) => {
            let error = autoglm::JobError {
                r#type: family_of(&failure).to_owned(),
                message: failure.message,
                code: failure.code,
            };
            (None, Some(error))
        }
        None => (None, None),
    };
    autoglm::Job {
        id: job.id.to_string(),
        status: status_of(job.life.state).into(),
        attempts: job.life.attempt,
        created_at_ms: job.created_at,
        started_at_ms: job.started_at,
        finished_at_ms: job.finished_at,
        expires_at_ms: job.expires_at,
        result,
        error,
        callback: job
            .callback_url
            .as_ref()
            .map(|url| callback_message(url, job.callback.as_ref())),
    }
}

/// `None`: the job has not ended.
fn callback_message(url: &str, callback: Option<&Callback>) -> autoglm::JobCallback {
    let status = match callback.map(|callback| callback.state) {
        None => autoglm::JobCallbackStatus::Waiting,
        Some(CallbackState::Pending) => autoglm::JobCallbackStatus::Pending,
        Some(CallbackState::Delivered) => autoglm::JobCallbackStatus::Delivered,
        Some(CallbackState::Failed) => autoglm::JobCallbackStatus::Failed,
    };
    autoglm::JobCallback {
        url: url.to_owned(),
        status: status.into(),
        attempts: callback.map_or(0, |callback| callback.attempts),
        next_attempt_at_ms: callback.and_then(Callback::next_attempt_at),
        error: callback
            .and_then(|callback| callback.error.clone())
            .unwrap_or_default(),
    }
}

/// Returns an event as a message. The last one holds the job as it ended.
pub fn event_message(event: &JobEvent, job: &JobRecord) -> autoglm::JobEvent {
    autoglm::JobEvent {
        id: event.id.to_string(),
        kind: kind_of(event.kind).into(),
        text: event.text.clone(),
        job: event.kind.is_last().then(|| job_message(job)),
    }
}

const fn status_of(state: State) -> autoglm::JobStatus {
    match state {
        State::Queued => autoglm::JobStatus::Queued,
        State::Running => autoglm::JobStatus::Running,
        State::Completed => autoglm::JobStatus::Completed,
        State::Failed => autoglm::JobStatus::Failed,
        State::Cancelled => autoglm::JobStatus::Cancelled,
        State::Expired => autoglm::JobStatus::Expired,
    }
}

const fn kind_of(kind: EventKind) -> autoglm::JobEventKind {
    match kind {
        EventKind::Started => autoglm::JobEventKind::Started,
        EventKind::Reset => autoglm::JobEventKind::Reset,
        EventKind::Delta => autoglm::JobEventKind::Delta,
        EventKind::Done => autoglm::JobEventKind::Done,
        EventKind::Error => autoglm::JobEventKind::Error,
        EventKind::Cancelled => autoglm::JobEventKind::Cancelled,
        EventKind::Expired => autoglm::JobEventKind::Expired,
    }
}
