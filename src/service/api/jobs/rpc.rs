//! `GetJob`, `CancelJob` and `WatchJob`: what the paths of REST name is in a message here.

use crate::error::{ApiError, ErrorCode};
use crate::grpc::messages::autoglm::{CancelJobRequest, GetJobRequest, WatchJobRequest};
use crate::grpc::messages::{Message, decode};
use crate::jobs::{EventId, JobId};
use crate::service::call::{Call, Incoming};
use crate::service::desk::{Desk, Wire};
use crate::service::inflation::message_bounds;
use crate::service::router::Route;

use super::follow::{self, Following, Place};
use super::look::cancel;
use super::question::{JobQuestion, Wish};
use super::work::no_job;

/// `GetJob` and `CancelJob`.
pub fn one(desk: &Desk, call: &Call, body: &[u8]) -> Result<JobQuestion, ApiError> {
    let is_cancel = call.route() == Route::RpcCancelJob;
    let id = match is_cancel {
        true => read::<CancelJobRequest>(desk, call, body, "CancelJobRequest")?.id,
        false => read::<GetJobRequest>(desk, call, body, "GetJobRequest")?.id,
    };
    let id = JobId::parse(&id).ok_or_else(no_job)?;
    let wish = match is_cancel {
        true => cancel(desk, id),
        false => Wish::Show(id),
    };
    Ok(JobQuestion::new(desk, call, wish))
}

/// `WatchJob`. `None`: the response is complete.
pub fn watch(
    desk: &mut Desk,
    call: Call,
    incoming: &Incoming<'_>,
    wire: &mut Wire<'_>,
) -> Option<Following> {
    let place = read(desk, &call, &incoming.body, "WatchJobRequest").and_then(place_of);
    follow::begin(desk, call, incoming.key, place, wire)
}

fn place_of(asked: WatchJobRequest) -> Result<Place, ApiError> {
    let id = JobId::parse(&asked.id).ok_or_else(no_job)?;
    let after = match asked.after.as_str() {
        "" => EventId::BEGINNING,
        text => EventId::parse(text).ok_or_else(|| {
            let message = "`after` must be the id of an event of this job, such as `1.7`";
            ApiError::new(ErrorCode::InvalidParameter, message).with_param("after")
        })?,
    };
    Ok((id, after))
}

fn read<M: Message + Default>(
    desk: &Desk,
    call: &Call,
    body: &[u8],
    name: &str,
) -> Result<M, ApiError> {
    let bounds = message_bounds(&desk.parts.config.limits, call.row);
    let encoding = call.terms().encoding;
    let message = desk.inflater.only_message(body, encoding, bounds)?;
    decode(&message, name)
}
