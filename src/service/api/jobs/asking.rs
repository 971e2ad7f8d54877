//! A request that waits for the store's reply.

use std::sync::Arc;

use crate::core::Moment;
use crate::error::{ApiError, ErrorCode};
use crate::limits::jobs as limits;
use crate::limits::service as service_limits;
use crate::offload::{CancelReason, JobKey};
use crate::service::api::grpc::dialogue;
use crate::service::call::Call;
use crate::service::desk::{Desk, Flow, Wire};
use crate::service::found::{Found, StoreReply};
use crate::service::request_log::{Outcome, RequestLog};
use crate::service::response::buffer::JSON;

use super::notation::Notation;
use super::work::{JobTask, Work, unavailable};

/// See the file's head.
#[derive(Debug)]
pub struct Asking {
    call: Call,
    /// A store that has not replied by then is not waited for.
    pub deadline: Moment,
}

impl Asking {
    /// Sends the store a task. `None`: the response is complete.
    pub fn begin(
        desk: &mut Desk,
        call: Call,
        key: JobKey,
        work: Work,
        wire: &mut Wire<'_>,
    ) -> Option<Asking> {
        if let Err(error) = submit(desk, &call, key, work) {
            desk.fail(&call, &error, wire);
            return None;
        }
        let patience = wire.now + limits::STORE_PATIENCE;
        let deadline = deadline_of(&call).min(patience);
        Some(Asking { call, deadline })
    }

    pub fn handle_reply(
        &mut self,
        desk: &mut Desk,
        reply: StoreReply,
        wire: &mut Wire<'_>,
    ) -> Flow {
        match reply {
            Ok(Found::Body { body, .. }) if self.call.representation.is_grpc() => {
                dialogue::send_framed(desk, &self.call, body, wire);
            }
            Ok(Found::Body {
                status,
                created,
                body,
            }) => {
                // Compressing a long result takes longer than a reactor may spend on a response.
                if body.len() > service_limits::WRITE_AT_ONCE_BYTES_MAX {
                    self.call.accept_encoding = crate::http::negotiate::AcceptEncoding::NONE;
                }
                let buffer = &mut desk.buffer;
                buffer.begin(&self.call);
                buffer.fields.push("cache-control", "no-store");
                if let Some(id) = created {
                    buffer
                        .fields
                        .push("location", &format!("/api/v1/jobs/{id}"));
                }
                buffer.body = body;
                desk.send(&self.call, status, Some(JSON), wire);
            }
            Ok(Found::Events(_) | Found::Accepted(_) | Found::Progress(_)) => {
                desk.fail(&self.call, &unavailable(), wire)
            }
            Err(error) => desk.fail(&self.call, &error, wire),
        }
        Flow::Finished
    }

    pub fn handle_deadline(&mut self, desk: &mut Desk, wire: &mut Wire<'_>) -> Flow {
        if wire.now < self.deadline {
            return Flow::Open;
        }
        let error = match wire.now < deadline_of(&self.call) {
            true => unavailable(),
            false => late(),
        };
        desk.fail(&self.call, &error, wire);
        Flow::Finished
    }

    pub fn cut_off(&mut self, desk: &mut Desk, wire: &mut Wire<'_>) {
        desk.fail(&self.call, &draining(), wire);
    }

    pub fn abandon(&self, log: &mut RequestLog, reason: CancelReason, now: Moment) {
        let outcome = Outcome::Abandoned { bytes: 0, reason };
        log.close(&self.call, outcome, None, now);
    }
}

/// Sends the store a task for a request.
pub fn submit(desk: &Desk, call: &Call, key: JobKey, work: Work) -> Result<(), ApiError> {
    let parts = &desk.parts;
    let task = JobTask {
        work,
        notation: Notation::of(call),
        key_id: key_id(call),
        key,
        journal: parts.jobs.journal.clone(),
        replies: Some(Arc::clone(&parts.replies)),
        found: None,
        note: None,
    };
    parts
        .requests
        .submit(call.tenant(), Box::new(task))
        .map_err(|_| {
            let message = "too many requests wait for the daemon's store; wait for `Retry-After`";
            ApiError::new(ErrorCode::StoreUnavailable, message)
                .with_retry_after(service_limits::BUSY_RETRY_AFTER)
        })
}

/// Returns the deadline of a call by `grpc-timeout`.
pub fn deadline_of(call: &Call) -> Moment {
    let timeout = call.terms().timeout;
    timeout.map_or(Moment::NEVER, |timeout| call.started + timeout)
}

/// The error of a call whose own deadline has expired.
pub fn late() -> ApiError {
    ApiError::new(ErrorCode::RequestTimeout, "the call's deadline expired")
}

/// The error of a request that the end of a drain cuts off.
pub fn draining() -> ApiError {
    let message = "the daemon is stopping; send the request again, or to another one";
    ApiError::new(ErrorCode::Draining, message).with_retry_after(service_limits::BUSY_RETRY_AFTER)
}

/// Returns the id of the caller's key, to which its jobs belong; empty without one.
fn key_id(call: &Call) -> String {
    let caller = call.caller.as_ref();
    caller.map_or_else(String::new, |caller| caller.record.id.clone())
}
