//! One job, lists of jobs, and the end of a job by its client.

use crate::error::ApiError;
use crate::http::{Method, Request};
use crate::jobs::{JobId, State};
use crate::limits::jobs as limits;
use crate::service::call::Call;
use crate::service::desk::Desk;
use crate::service::excerpt::excerpt;
use crate::service::query::{self, Parameter};

use super::question::{JobQuestion, Wish};
use super::work::no_job;

/// `GET` and `DELETE /api/v1/jobs/{id}`.
pub fn one(desk: &Desk, call: &Call, request: &Request<'_>) -> Result<JobQuestion, ApiError> {
    let id = job_of(call, request.path).ok_or_else(no_job)?;
    let wish = match call.method {
        Method::Delete => cancel(desk, id),
        _ => Wish::Show(id),
    };
    Ok(JobQuestion::new(desk, call, wish))
}

/// Returns the id in a path such as `/api/v1/jobs/{id}`.
pub fn job_of(call: &Call, path: &str) -> Option<JobId> {
    call.row?.parameter(path).and_then(JobId::parse)
}

/// Returns the wish that a job ends now.
pub fn cancel(desk: &Desk, id: JobId) -> Wish {
    Wish::Cancel {
        id,
        now: (desk.parts.wall_clock)().as_u64(),
        keep_ms: desk.parts.config.jobs.keep.as_millis() as u64,
    }
}

/// `GET /api/v1/jobs`.
pub fn list(desk: &Desk, call: &Call, request: &Request<'_>) -> Result<JobQuestion, ApiError> {
    let (default, most) = (limits::PAGE_JOBS_DEFAULT, limits::PAGE_JOBS_MAX);
    let wish = Wish::List {
        state: query::value(request, Parameter::Status)
            .map(state)
            .transpose()?,
        before: query::value(request, Parameter::Cursor)
            .map(cursor)
            .transpose()?,
        limit: query::page_limit(request, default, most)?,
    };
    Ok(JobQuestion::new(desk, call, wish))
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
