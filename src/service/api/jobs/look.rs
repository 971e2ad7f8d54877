//! One job, lists of jobs, and the end of a job by its client.

use crate::error::{ApiError, ErrorCode};
use crate::http::{Method, Request};
use crate::jobs::{JobId, State};
use crate::limits::jobs as limits;
use crate::service::call::{Call, Incoming};
use crate::service::desk::{Desk, Wire};
use crate::service::excerpt::excerpt;

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
    let wrong = |name: &str, message: String| {
        Err(ApiError::new(ErrorCode::InvalidParameter, message).with_param(name))
    };
    let state = match request.query_value("status") {
        None => None,
        Some(word) => match State::parse(word) {
            Some(state) => Some(state),
            None => {
                let known = State::ALL.map(State::as_str).join(", ");
                let message = format!("unknown status `{}`; expected {known}", excerpt(word));
                return wrong("status", message);
            }
        },
    };
    let before = match request.query_value("cursor") {
        None => None,
        Some(cursor) => match JobId::parse(cursor) {
            Some(id) => Some(id),
            None => {
                let message = "`cursor` is not the `next_cursor` of an earlier page".to_owned();
                return wrong("cursor", message);
            }
        },
    };
    let most = limits::PAGE_JOBS_MAX;
    let limit = match request.query_value("limit") {
        None => limits::PAGE_JOBS_DEFAULT,
        Some(number) => match number.parse() {
            Ok(limit) if (1..=most).contains(&limit) => limit,
            _ => return wrong("limit", format!("`limit` must be from 1 to {most}")),
        },
    };
    Ok(Work::List {
        state,
        before,
        limit,
    })
}
