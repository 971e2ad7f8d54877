//! One job, lists of jobs, and the end of a job by its client.

use crate::error::ApiError;
use crate::http::{Method, Request};
use crate::jobs::{JobId, State};
use crate::limits::jobs as limits;
use crate::service::call::{Call, Incoming};
use crate::service::desk::{Desk, Wire};
use crate::service::excerpt::excerpt;
use crate::service::query::{self, Parameter};

use super::asking::Asking;
use super::work::{Work, job_of, no_job};

/// `GET` and `DELETE /api/v1/jobs/{id}`. `None`: the response is complete.
pub fn one(
    desk: &mut Desk,
    call: Call,
    incoming: &Incoming<'_>,
    wire: &mut Wire<'_>,
) -> Option<Asking> {
    let Some(id) = job_of(&call, incoming.request.path) else {
        desk.fail(&call, &no_job(), wire);
        return None;
    };
    let work = match call.method {
        Method::Delete => cancel(desk, id),
        _ => Work::Show(id),
    };
    Asking::begin(desk, call, incoming.key, work, wire)
}

/// Returns the work that cancels a job now.
pub fn cancel(desk: &Desk, id: JobId) -> Work {
    Work::Cancel {
        id,
        now: (desk.parts.wall_clock)().as_u64(),
        keep_ms: desk.parts.config.jobs.keep.as_millis() as u64,
    }
}

/// `GET /api/v1/jobs`. `None`: the response is complete.
pub fn list(
    desk: &mut Desk,
    call: Call,
    incoming: &Incoming<'_>,
    wire: &mut Wire<'_>,
) -> Option<Asking> {
    match page(incoming.request) {
        Ok(work) => Asking::begin(desk, call, incoming.key, work, wire),
        Err(error) => {
            desk.fail(&call, &error, wire);
            None
        }
    }
}

fn page(request: &Request<'_>) -> Result<Work, ApiError> {
    let (default, most) = (limits::PAGE_JOBS_DEFAULT, limits::PAGE_JOBS_MAX);
    Ok(Work::List {
        state: query::value(request, Parameter::Status)
            .map(state)
            .transpose()?,
        before: query::value(request, Parameter::Cursor)
            .map(cursor)
            .transpose()?,
        limit: query::page_limit(request, default, most)?,
    })
}

fn state(word: &str) -> Result<State, ApiError> {
    State::parse(word).ok_or_else(|| {
        let (word, known) = (excerpt(word), State::ALL.map(State::as_str).join(", "));
        let message = format!("unknown status `{word}`; expected {known}");
        query::invalid(Parameter::Status, message)
    })
}

fn cursor(text: &str) -> Result<JobId, ApiError> {
    JobId::parse(text).ok_or_else(query::no_cursor)
}
