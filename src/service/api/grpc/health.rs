//! gRPC's health checks: the state of `/readyz`, asked for once or watched.
//!
//! A watch is an exchange without a job. It checks the engine at an interval, because a reactor is
//! not notified when a model is loaded, and sends a message when the state has changed. A drain
//! ends it, so that the client watches another daemon. So does its age: a watch needs no key, and
//! occupies a connection's place.

use crate::core::Moment;
use crate::engine::State;
use crate::error::{ApiError, ErrorCode};
use crate::grpc::messages::decode;
use crate::grpc::messages::health::health_check_response::ServingStatus;
use crate::grpc::messages::health::{HealthCheckRequest, HealthCheckResponse};
use crate::limits::service as limits;
use crate::offload::CancelReason;
use crate::service::call::Call;
use crate::service::desk::{Desk, Flow, Wire};
use crate::service::excerpt::excerpt;
use crate::service::inflation::message_bounds;
use crate::service::request_log::{Outcome, RequestLog};

use super::dialogue;

/// The services whose state may be asked for: the daemon as a whole, and its own services, which
/// have the same state.
const SERVICES: &[&str] = &["", "AutoGLMService", "AutoGLMJobService"];

/// A client that watches.
#[derive(Debug)]
pub struct Watch {
    call: Call,
    is_known: bool,
    /// The status that was sent last.
    sent: Option<ServingStatus>,
    look_at: Moment,
    /// The client's own deadline, if that is before `expires`.
    ends: Moment,
    /// The longest time that a watch may last.
    expires: Moment,
    bytes: u64,
}

impl Watch {
    pub fn next_deadline(&self) -> Moment {
        self.look_at.min(self.ends).min(self.expires)
    }

    pub fn abandon(&self, log: &mut RequestLog, reason: CancelReason, now: Moment) {
        let bytes = self.bytes;
        log.close(&self.call, Outcome::Abandoned { bytes, reason }, None, now);
    }
}

/// `Check`: responds with the present state.
pub fn check(desk: &mut Desk, call: &Call, body: &[u8], wire: &mut Wire<'_>) {
    match read_request(desk, call, body) {
        Ok(asked) if SERVICES.contains(&&*asked.service) => {
            let status = serving_status(desk);
            dialogue::send_only(desk, call, &response(status), wire);
        }
        Ok(asked) => {
            let message = format!("unknown service `{}`", excerpt(&asked.service));
            desk.fail(call, &ApiError::new(ErrorCode::NotFound, message), wire);
        }
        Err(error) => desk.fail(call, &error, wire),
    }
}

/// `Watch`: sends the present state, and each change of it. `None`: the response is complete.
pub fn watch(desk: &mut Desk, call: Call, body: &[u8], wire: &mut Wire<'_>) -> Option<Watch> {
    let asked = match read_request(desk, &call, body) {
        Ok(asked) => asked,
        Err(error) => {
            desk.fail(&call, &error, wire);
            return None;
        }
    };
    let timeout = call.terms().timeout;
    let mut watch = Watch {
        is_known: SERVICES.contains(&&*asked.service),
        sent: None,
        look_at: wire.now,
        ends: timeout.map_or(Moment::NEVER, |timeout| call.started + timeout),
        expires: call.started + limits::JOBLESS_STREAM_AGE_MAX,
        bytes: 0,
        call,
    };
    match handle_deadline(desk, &mut watch, wire) {
        Flow::Open => Some(watch),
        Flow::Finished => None,
    }
}

/// Sends the state if it has changed. Must be called at [`Watch::next_deadline`].
pub fn handle_deadline(desk: &mut Desk, watch: &mut Watch, wire: &mut Wire<'_>) -> Flow {
    let (is_over, has_expired) = (wire.now >= watch.ends, wire.now >= watch.expires);
    if wire.now >= watch.look_at || is_over || has_expired {
        watch.look_at = wire.now + limits::HEALTH_WATCH_INTERVAL;
        let status = if watch.is_known {
            serving_status(desk)
        } else {
            // By the protocol the watch goes on: the service may come.
            ServingStatus::ServiceUnknown
        };
        if watch.sent != Some(status) && wire.sink.has_room() {
            send_status(desk, watch, status, wire);
        }
    }
    let error = if desk.is_draining {
        draining()
    } else if is_over {
        ApiError::new(
            ErrorCode::RequestTimeout,
            "the deadline of the watch expired",
        )
    } else if has_expired {
        expired()
    } else {
        return Flow::Open;
    };
    dialogue::end(desk, &watch.call, watch.bytes, Some(&error), wire);
    Flow::Finished
}

/// Ends the watch because the daemon ends.
pub fn cut_off(desk: &mut Desk, watch: &mut Watch, wire: &mut Wire<'_>) {
    dialogue::end(desk, &watch.call, watch.bytes, Some(&draining()), wire);
}

fn send_status(desk: &mut Desk, watch: &mut Watch, status: ServingStatus, wire: &mut Wire<'_>) {
    watch.sent = Some(status);
    let is_first = watch.bytes == 0;
    watch.bytes += dialogue::send_message(desk, &watch.call, is_first, &response(status), wire);
}

fn serving_status(desk: &Desk) -> ServingStatus {
    match desk.parts.engine.state() {
        State::Ready if !desk.is_draining => ServingStatus::Serving,
        _ => ServingStatus::NotServing,
    }
}

fn read_request(desk: &Desk, call: &Call, body: &[u8]) -> Result<HealthCheckRequest, ApiError> {
    let bounds = message_bounds(&desk.parts.config.limits, call.row);
    let encoding = call.terms().encoding;
    let message = desk.inflater.only_message(body, encoding, bounds)?;
    decode(&message, "grpc.health.v1.HealthCheckRequest")
}

fn draining() -> ApiError {
    let message = "the daemon is stopping; watch another one";
    ApiError::new(ErrorCode::Draining, message)
}

/// The error of a stream that was open for as long as allowed.
pub fn expired() -> ApiError {
    let seconds = limits::JOBLESS_STREAM_AGE_MAX.as_secs();
    let message = format!("the stream reached its limit of {seconds} s; open a new one");
    ApiError::new(ErrorCode::StreamExpired, message)
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse {
        status: status.into(),
    }
}
