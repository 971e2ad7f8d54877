//! A job in JSON, and its events.
//!
//! Plain functions of a record: the store's thread calls them.

use std::borrow::Cow;
use std::time::Duration;

use crate::engine::code::extract;
use crate::engine::language::language;
use crate::engine::{FinishReason, Usage};
use crate::error::ErrorCode;
use crate::http::sse;
use crate::jobs::{
    Callback, Completion, Ending, EventKind, Failure, JobEvent, JobRecord, JobSummary,
};
use crate::service::api::native::selection::{GenerationObject, Selection};
use crate::service::dialect::Generation;
use crate::service::response::json::{Object, WriteJson, push_number, push_text};

/// Appends a job.
pub fn write_job(out: &mut Vec<u8>, job: &JobRecord) {
    let mut object = Object::begin(out);
    push_text(object.member("id"), &job.id.to_string());
    write_state(&mut object, &summary(job));
    match job.ending.as_deref().and_then(Ending::parse) {
        Some(Ending::Completed(completion)) => {
            write_completion(object.member("result"), &completion);
        }
        Some(Ending::Failed(failure)) => write_failure(object.member("error"), &failure),
        None => {}
    }
    if let Some(url) = &job.callback_url {
        write_callback(object.member("callback"), url, job.callback.as_ref());
    }
    object.end();
}

/// Returns what the callback of a job sends: the job as a client reads it, without the state of the
/// callback itself.
pub fn callback_body(job: &JobRecord) -> Vec<u8> {
    let mut out = Vec::new();
    let mut object = Object::begin(&mut out);
    let kind = format!("job.{}", job.life.state.as_str());
    push_text(object.member("type"), &kind);
    let ended = i64::try_from(job.finished_at.unwrap_or_default()).unwrap_or(i64::MAX);
    let ended = jiff::Timestamp::from_millisecond(ended).unwrap_or(jiff::Timestamp::MAX);
    push_text(object.member("timestamp"), &ended.to_string());
    let shown = JobRecord {
        callback_url: None,
        ..job.clone()
    };
    write_job(object.member("data"), &shown);
    object.end();
    out
}

fn write_callback(out: &mut Vec<u8>, url: &str, callback: Option<&Callback>) {
    let mut object = Object::begin(out);
    push_text(object.member("url"), url);
    let status = callback.map_or("waiting", |callback| callback.state.as_str());
    push_text(object.member("status"), status);
    let attempts = callback.map_or(0, |callback| callback.attempts);
    push_number(object.member("attempts"), attempts.into());
    let next = object.member("next_attempt_at");
    match callback.and_then(Callback::next_attempt_at) {
        Some(time) => push_number(next, time),
        None => next.extend_from_slice(b"null"),
    }
    let error = object.member("error");
    match callback.and_then(|callback| callback.error.as_deref()) {
        Some(why) => push_text(error, why),
        None => error.extend_from_slice(b"null"),
    }
    object.end();
}

/// Appends a list of jobs; `next` is the cursor of the next page.
pub fn write_page(out: &mut Vec<u8>, jobs: &[JobSummary], next: Option<&str>) {
    let mut page = Object::begin(out);
    push_text(page.member("object"), "list");
    let out = page.member("data");
    out.push(b'[');
    for (index, job) in jobs.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        let mut object = Object::begin(out);
        push_text(object.member("id"), &job.id.to_string());
        write_state(&mut object, job);
        object.end();
    }
    out.push(b']');
    let out = page.member("next_cursor");
    match next {
        Some(next) => push_text(out, next),
        None => out.extend_from_slice(b"null"),
    }
    page.end();
}

fn summary(job: &JobRecord) -> JobSummary {
    JobSummary {
        id: job.id,
        state: job.life.state,
        attempt: job.life.attempt,
        created_at: job.created_at,
        started_at: job.started_at,
        finished_at: job.finished_at,
        expires_at: job.expires_at,
    }
}

fn write_state(object: &mut Object<'_>, job: &JobSummary) {
    push_text(object.member("status"), job.state.as_str());
    push_number(object.member("attempts"), job.attempt.into());
    push_number(object.member("created_at"), job.created_at);
    for (name, time) in [
        ("started_at", job.started_at),
        ("finished_at", job.finished_at),
    ] {
        let out = object.member(name);
        match time {
            Some(time) => push_number(out, time),
            None => out.extend_from_slice(b"null"),
        }
    }
    push_number(object.member("expires_at"), job.expires_at);
}

/// Appends the object that `POST /api/v1/generate` would have sent.
fn write_completion(out: &mut Vec<u8>, completion: &Completion) {
    with_object(completion, |object| object.write_json(out));
}

/// Lends a completion as the object that a generation's response is written from.
pub fn with_object<T>(completion: &Completion, then: impl FnOnce(&GenerationObject<'_>) -> T) -> T {
    let language = completion.language.as_deref().and_then(language);
    let language = language.map(|language| language.name);
    let code: Cow<'_, str> = extract(&completion.text, language);
    let generation = Generation {
        id: &completion.id,
        text: &completion.text,
        model: completion.model.as_deref(),
        finish_reason: finish_reason(completion),
        usage: usage(completion),
        is_cached: completion.cached,
        latency: Duration::from_millis(completion.latency_ms),
    };
    then(&GenerationObject {
        selection: Selection::ALL,
        language,
        code: &code,
        generation: &generation,
    })
}

pub fn finish_reason(completion: &Completion) -> FinishReason {
    match completion.finish_reason.as_str() {
        "length" => FinishReason::Length,
        _ => FinishReason::Stop,
    }
}

pub const fn usage(completion: &Completion) -> Usage {
    Usage {
        prompt_tokens: completion.prompt_tokens,
        cached_tokens: completion.cached_tokens,
        completion_tokens: completion.completion_tokens,
    }
}

/// Returns the word for the family of a failure's code.
pub fn family_of(failure: &Failure) -> &'static str {
    let known = ErrorCode::ALL.iter();
    let known = known.copied().find(|code| code.as_str() == failure.code);
    // A code that a later version has written is of an unknown family: the daemon's own.
    known.unwrap_or(ErrorCode::Internal).family().as_str()
}

fn write_failure(out: &mut Vec<u8>, failure: &Failure) {
    let mut object = Object::begin(out);
    push_text(object.member("message"), &failure.message);
    push_text(object.member("type"), family_of(failure));
    push_text(object.member("code"), &failure.code);
    object.end();
}

/// Appends an event as the client gets it. The data of the last one is read from the job.
pub fn write_event(out: &mut Vec<u8>, event: &JobEvent, job: &JobRecord) {
    let mut data = Vec::new();
    match event.kind {
        EventKind::Started | EventKind::Reset => {
            let mut object = Object::begin(&mut data);
            push_text(object.member("id"), &job.id.to_string());
            push_number(object.member("attempt"), event.id.attempt.into());
            object.end();
        }
        EventKind::Delta => {
            let mut object = Object::begin(&mut data);
            push_text(object.member("text"), &event.text);
            object.end();
        }
        EventKind::Done | EventKind::Error | EventKind::Cancelled | EventKind::Expired => {
            match job.ending.as_deref().and_then(Ending::parse) {
                Some(Ending::Completed(completion)) => write_completion(&mut data, &completion),
                Some(Ending::Failed(failure)) => {
                    let mut object = Object::begin(&mut data);
                    write_failure(object.member("error"), &failure);
                    object.end();
                }
                None => write_job(&mut data, job),
            }
        }
    }
    // JSON is UTF-8, and without white space it is one line.
    let data = std::str::from_utf8(&data).unwrap_or_default();
    sse::event(out, event.kind.as_str(), Some(&event.id.to_string()), data);
}
