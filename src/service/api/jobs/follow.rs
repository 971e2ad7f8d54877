//! `GET /api/v1/jobs/{id}/events`: a client follows a job.
//!
//! ```text
//!             register, first look
//!                     v
//!   Looking ── events ──> sent ── has more, and room ──> Looking
//!      ^                    │ nothing more
//!      │                    v
//!      └──── woken ────── Idle ──── ping, age
//! ```
//!
//! The client's place in the job's history is all that is kept for it: it resumes by
//! `Last-Event-ID`, on any daemon that shares the store. An event that the job does not have is
//! refused. A client that has the last event of a finished job gets 204. A client that reads slowly
//! makes its own next look later and costs no memory. [`Looks`] has the rules of when the next one
//! is made.
//!
//! Over gRPC the events are messages, `after` is in the request, and an error is in the trailers.
//! Everything else is the same, also its cost and bounds.

use crate::core::Moment;
use crate::error::{ApiError, ErrorCode};
use crate::http::compress::encode::Step;
use crate::http::negotiate::AcceptEncoding;
use crate::http::{Request, sse};
use crate::jobs::{EventId, JobId};
use crate::limits::jobs as limits;
use crate::limits::service as service_limits;
use crate::offload::{CancelReason, JobKey};
use crate::runner::{Crowded, Follower};
use crate::service::api::grpc::dialect::{Grpc, end_without_messages};
use crate::service::api::grpc::health::expired;
use crate::service::api::native::error::ErrorBody;
use crate::service::asking::{deadline_of, draining, has_room, late};
use crate::service::call::{Call, Incoming, buffers_full};
use crate::service::desk::{Desk, Flow, Wire};
use crate::service::dialect::Dialect;
use crate::service::found::{Batch, Found, StoreReply};
use crate::service::request_log::{Outcome, RequestLog};
use crate::service::response::buffer::EVENT_STREAM;

use super::look::job_of;
use super::looks::Looks;
use super::work::{Work, no_job, submit};

/// See the file's head.
#[derive(Debug)]
pub struct Following {
    call: Call,
    key: JobKey,
    id: JobId,
    follower: Follower,
    /// The last event that was sent.
    after: EventId,
    looks: Looks,
    /// Whether the head has been sent.
    is_flowing: bool,
    silent_since: Moment,
    /// The client opens another stream then.
    expires: Moment,
    /// The call's own deadline, over gRPC.
    ends: Moment,
    bytes: u64,
}

/// `GET /api/v1/jobs/{id}/events`. `None`: the response is complete.
pub fn follow(
    desk: &mut Desk,
    call: Call,
    incoming: &Incoming<'_>,
    wire: &mut Wire<'_>,
) -> Option<Following> {
    let place = place_of(&call, incoming);
    begin(desk, call, incoming.key, place, wire)
}

fn place_of(call: &Call, incoming: &Incoming<'_>) -> Result<Place, ApiError> {
    let request = incoming.request;
    let id = job_of(call, request.path).ok_or_else(no_job)?;
    Ok((id, last_event_id(request)?))
}

/// Reads `Last-Event-ID`. The store checks later whether the job has this event.
fn last_event_id(request: &Request<'_>) -> Result<EventId, ApiError> {
    let fields = request.headers.iter();
    let mut fields = fields.filter(|field| field.name.eq_ignore_ascii_case("last-event-id"));
    let text = match fields.next() {
        None => return Ok(EventId::BEGINNING),
        Some(field) => std::str::from_utf8(field.value).unwrap_or("?"),
    };
    let after = match text {
        "" => Some(EventId::BEGINNING),
        text => EventId::parse(text),
    };
    after.filter(|_| fields.next().is_none()).ok_or_else(|| {
        let message = "`Last-Event-ID` must be one id of an event of this job, such as `1.7`; \
                       leave it out for all events";
        ApiError::new(ErrorCode::InvalidParameter, message).with_param("last-event-id")
    })
}

/// A job, and the last event that its follower has.
pub type Place = (JobId, EventId);

/// Begins to follow. `None`: the response is complete.
pub fn begin(
    desk: &mut Desk,
    call: Call,
    key: JobKey,
    place: Result<Place, ApiError>,
    wire: &mut Wire<'_>,
) -> Option<Following> {
    let registered = place.and_then(|(id, after)| {
        if !has_room(desk, &call) {
            return Err(buffers_full());
        }
        let follower = register(desk, &call, id, key)?;
        Ok((id, after, follower))
    });
    match registered {
        Ok((id, after, follower)) => {
            let age_max = match call.representation.is_grpc() {
                // It has no pings that would show that its client has gone.
                true => service_limits::JOBLESS_STREAM_AGE_MAX,
                false => limits::FOLLOWING_AGE_MAX,
            };
            let mut following = Following {
                ends: deadline_of(&call),
                call: Call {
                    // Each event would need a flush of its own, for a few bytes.
                    accept_encoding: AcceptEncoding::NONE,
                    ..call
                },
                key,
                id,
                follower,
                after,
                looks: Looks::DUE,
                is_flowing: false,
                silent_since: wire.now,
                expires: wire.now + age_max,
                bytes: 0,
            };
            following.look(desk, wire.now);
            Some(following)
        }
        Err(error) => {
            desk.fail(&call, &error, wire);
            None
        }
    }
}

/// Registers a follower of a job, if there are not too many.
pub fn register(desk: &Desk, call: &Call, id: JobId, key: JobKey) -> Result<Follower, ApiError> {
    if desk.is_draining {
        return Err(draining());
    }
    let registered = desk.parts.jobs.followers.register(id, call.tenant(), key);
    registered.map_err(|crowded| {
        let message = match crowded {
            Crowded::Job => format!(
                "{} requests already follow this job on this daemon, which is the limit",
                limits::FOLLOWING_REQUESTS_PER_JOB_MAX
            ),
            Crowded::Tenant => format!(
                "{} requests of this key already follow jobs on this daemon, which is the limit",
                limits::FOLLOWING_REQUESTS_PER_KEY_MAX
            ),
        };
        ApiError::new(ErrorCode::TooManyConcurrent, message)
            .with_retry_after(service_limits::BUSY_RETRY_AFTER)
    })
}

impl Following {
    pub fn next_deadline(&self) -> Moment {
        let ping = self.silent_since + service_limits::PING_INTERVAL;
        let end = self.expires.min(self.ends);
        end.min(ping).min(self.looks.retry_at)
    }

    pub fn handle_reply(
        &mut self,
        desk: &mut Desk,
        reply: StoreReply,
        wire: &mut Wire<'_>,
    ) -> Flow {
        self.looks.handle_reply();
        match reply {
            Ok(Found::Events(batch)) => self.handle_batch(desk, batch, wire),
            Ok(Found::Accepted(_) | Found::Progress(_)) => Flow::Open,
            Err(error) if !self.is_flowing => {
                desk.fail(&self.call, &error, wire);
                Flow::Finished
            }
            // Deleted meanwhile: its time has passed.
            Err(error) if error.code == ErrorCode::NotFound => {
                self.finish(desk, Some(&error), wire);
                Flow::Finished
            }
            Err(_) => {
                self.looks.retry_later(wire.now);
                Flow::Open
            }
        }
    }

    fn handle_batch(&mut self, desk: &mut Desk, batch: Batch, wire: &mut Wire<'_>) -> Flow {
        self.after = batch.last;
        if batch.has_more {
            self.looks.want();
        }
        if batch.is_end && batch.body.is_empty() && !self.is_flowing {
            match self.is_grpc() {
                true => self.finish(desk, None, wire),
                false => self.send_nothing(desk, wire),
            }
            return Flow::Finished;
        }
        desk.buffer.body.clear();
        desk.buffer.body.extend_from_slice(&batch.body);
        self.send(desk, wire);
        if batch.is_end {
            self.finish(desk, None, wire);
            return Flow::Finished;
        }
        if wire.sink.has_room() {
            self.look(desk, wire.now);
        }
        Flow::Open
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
        let now = wire.now;
        if now >= self.ends {
            self.finish(desk, Some(&late()), wire);
            return Flow::Finished;
        }
        if now >= self.expires && !self.looks.is_under_way() {
            // Without an error a gRPC client would take the end for the job's.
            let error = self.is_grpc().then(expired);
            self.finish(desk, error.as_ref(), wire);
            return Flow::Finished;
        }
        if self.looks.end_pause(now) {
            self.look(desk, now);
        }
        if now >= self.silent_since + service_limits::PING_INTERVAL {
            self.silent_since = now;
            // A full output shows by itself that the connection is alive.
            if self.is_flowing && !self.is_grpc() && wire.sink.has_room() {
                desk.buffer.body.clear();
                sse::comment(&mut desk.buffer.body, "ping");
                self.send(desk, wire);
            }
        }
        Flow::Open
    }

    /// Ends the stream: the daemon ends. The client resumes on another one.
    pub fn cut_off(&mut self, desk: &mut Desk, wire: &mut Wire<'_>) {
        let error = draining();
        match self.is_flowing {
            true => self.finish(desk, Some(&error), wire),
            false => desk.fail(&self.call, &error, wire),
        }
    }

    pub fn abandon(&self, log: &mut RequestLog, reason: CancelReason, now: Moment) {
        let bytes = self.bytes;
        log.close(&self.call, Outcome::Abandoned { bytes, reason }, None, now);
    }

    /// Asks the store for the next events, if there may be some.
    fn look(&mut self, desk: &Desk, now: Moment) {
        if !self.looks.take() {
            return;
        }
        self.follower.look();
        let work = Work::Events {
            id: self.id,
            after: self.after,
            is_first: !self.is_flowing,
        };
        let submitted = submit(desk, &self.call, self.key, work, None);
        self.looks.handle_submitted(submitted.is_ok(), now);
    }

    /// Sends the buffer's body, after the head if that has not been sent yet.
    fn send(&mut self, desk: &mut Desk, wire: &mut Wire<'_>) {
        let is_first = !std::mem::replace(&mut self.is_flowing, true);
        if self.is_grpc() {
            self.send_messages(desk, is_first, wire);
            return;
        }
        if is_first {
            let buffer = &mut desk.buffer;
            buffer.begin_fields(&self.call);
            buffer.fields.push("cache-control", "no-store");
            // nginx holds responses back to fill its buffers, unless this field forbids it.
            buffer.fields.push("x-accel-buffering", "no");
            buffer.send_head(200, EVENT_STREAM, wire.sink);
        }
        if !desk.buffer.body.is_empty() {
            self.silent_since = wire.now;
            self.bytes += desk.buffer.send_piece(None, Step::Flush, wire.sink);
        }
    }

    /// Responds that no event is left. A browser follows again when a stream ends, whatever its
    /// last event was; after 204 it stops (HTML, section 9.2.3).
    fn send_nothing(&self, desk: &mut Desk, wire: &mut Wire<'_>) {
        desk.buffer.begin(&self.call);
        desk.buffer.fields.push("cache-control", "no-store");
        desk.send(&self.call, 204, None, wire);
    }

    fn send_messages(&mut self, desk: &mut Desk, is_first: bool, wire: &mut Wire<'_>) {
        let buffer = &mut desk.buffer;
        if is_first {
            buffer.begin_fields(&self.call);
            Grpc.start(buffer, &self.call, wire.sink);
        }
        if !buffer.body.is_empty() {
            wire.sink.data(&buffer.body);
            self.bytes += buffer.body.len() as u64;
        }
    }

    fn is_grpc(&self) -> bool {
        self.call.representation.is_grpc()
    }

    fn finish(&mut self, desk: &mut Desk, error: Option<&ApiError>, wire: &mut Wire<'_>) {
        let status = match error {
            // As in `Desk::fail`: the status that the error has over REST.
            Some(error) if !self.is_flowing => error.code.status(),
            _ => 200,
        };
        match (self.is_grpc(), self.is_flowing) {
            (true, true) => Grpc.end(&self.call, error, wire.sink),
            (true, false) => {
                end_without_messages(&mut desk.buffer, &self.call, error, wire.sink);
            }
            (false, _) => self.finish_events(desk, error, wire),
        }
        let bytes = self.bytes;
        let outcome = match error {
            None => Outcome::Completed { status, bytes },
            Some(error) => Outcome::Failed {
                status,
                bytes,
                code: error.code,
            },
        };
        desk.log.close(&self.call, outcome, None, wire.now);
    }

    fn finish_events(&mut self, desk: &mut Desk, error: Option<&ApiError>, wire: &mut Wire<'_>) {
        if let Some(error) = error {
            desk.buffer.body.clear();
            desk.buffer
                .append_event("error", &ErrorBody::new(error, &self.call));
            self.send(desk, wire);
        }
        wire.sink.finish();
    }
}
