//! gRPC's health checks: the state of `/readyz`, asked once or watched.
//!
//! A watch is an exchange without a job. It checks the engine at an interval, because a reactor is
//! not notified when a model is loaded, and sends a message when the state has changed. A drain
//! ends it: the client should watch another daemon. Its age ends it too: a watch needs no key, and
//! occupies a place.

use crate::core::Moment;
use crate::engine::State;
use crate::error::{ApiError, ErrorCode};
use crate::grpc::messages::decode;
use crate::grpc::messages::health::health_check_response::ServingStatus;
use crate::grpc::messages::health::{HealthCheckRequest, HealthCheckResponse};
use crate::http::ResponseSink;
use crate::limits::service as limits;
use crate::offload::CancelReason;

use crate::service::api::native::body::excerpt;
use crate::service::call::Call;
use crate::service::representation::Representation;
use crate::service::request_log::Outcome;
use crate::service::{Exchange, Flow, Service};

/// Services whose state may be asked for: the daemon as a whole, and its service, which is the
/// same.
const SERVICES: &[&str] = &["", "AutoGLMService"];

/// A client that watches.
#[derive(Debug)]
pub struct Watch {
    call: Call,
    is_known: bool,
    /// The state that the client got last.
    told: Option<ServingStatus>,
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
}

impl Service {
    pub(in crate::service) fn check_health(
        &mut self,
        call: &Call,
        body: &[u8],
        now: Moment,
        reply: &mut dyn ResponseSink,
    ) {
        match self.read_health_request(call, body) {
            Ok(asked) if SERVICES.contains(&&*asked.service) => {
                let status = self.serving_status();
                self.answer_message(call, &response(status), now, reply);
            }
            Ok(asked) => {
                let message = format!("no service `{}` is served here", excerpt(&asked.service));
                let error = ApiError::new(ErrorCode::NotFound, message);
                self.fail(call, &error, None, now, reply);
            }
            Err(error) => self.fail(call, &error, None, now, reply),
        }
    }

    pub(in crate::service) fn watch_health(
        &mut self,
        call: Call,
        body: &[u8],
        now: Moment,
        reply: &mut dyn ResponseSink,
    ) -> Option<Box<Exchange>> {
        let asked = match self.read_health_request(&call, body) {
            Ok(asked) => asked,
            Err(error) => {
                self.fail(&call, &error, None, now, reply);
                return None;
            }
        };
        let timeout = match call.representation {
            Representation::Grpc(terms) => terms.timeout,
            Representation::Json | Representation::Protobuf => None,
        };
        let mut watch = Watch {
            is_known: SERVICES.contains(&&*asked.service),
            told: None,
            look_at: now,
            ends: timeout.map_or(Moment::NEVER, |timeout| call.started + timeout),
            expires: call.started + limits::JOBLESS_STREAM_AGE_MAX,
            bytes: 0,
            call,
        };
        match self.look_at_health(&mut watch, now, reply) {
            Flow::Open => Some(Box::new(Exchange::HealthWatch(watch))),
            Flow::Finished => None,
        }
    }

    /// Sends a watcher the change, if there is one. Must be called at `next_deadline`.
    pub(in crate::service) fn look_at_health(
        &mut self,
        watch: &mut Watch,
        now: Moment,
        reply: &mut dyn ResponseSink,
    ) -> Flow {
        let (is_over, has_expired) = (now >= watch.ends, now >= watch.expires);
        if now >= watch.look_at || is_over || has_expired {
            watch.look_at = now + limits::HEALTH_WATCH_INTERVAL;
            let status = match watch.is_known {
                true => self.serving_status(),
                // By the protocol the watch goes on: the service may come.
                false => ServingStatus::ServiceUnknown,
            };
            if watch.told != Some(status) && reply.has_room() {
                self.tell(watch, status, reply);
            }
        }
        let error = if self.is_draining {
            let message = "the daemon is about to stop; watch another one";
            ApiError::new(ErrorCode::Draining, message)
        } else if is_over {
            ApiError::new(ErrorCode::RequestTimeout, "the watch's own deadline passed")
        } else if has_expired {
            expired()
        } else {
            return Flow::Open;
        };
        self.end_dialogue(&watch.call, watch.bytes, Some(&error), now, reply);
        Flow::Finished
    }

    pub(in crate::service) fn abandon_watch(
        &mut self,
        watch: &Watch,
        reason: CancelReason,
        now: Moment,
    ) {
        let bytes = watch.bytes;
        let outcome = Outcome::Abandoned { bytes, reason };
        self.log.close(&watch.call, outcome, None, now);
    }

    fn tell(&mut self, watch: &mut Watch, status: ServingStatus, reply: &mut dyn ResponseSink) {
        watch.told = Some(status);
        watch.bytes += self.send_message(&watch.call, watch.bytes == 0, &response(status), reply);
    }

    fn serving_status(&self) -> ServingStatus {
        match self.parts.engine.state() {
            State::Ready if !self.is_draining => ServingStatus::Serving,
            _ => ServingStatus::NotServing,
        }
    }

    fn read_health_request(
        &self,
        call: &Call,
        body: &[u8],
    ) -> Result<HealthCheckRequest, ApiError> {
        let message = self.only_message(call, body)?;
        decode(&message, "grpc.health.v1.HealthCheckRequest")
    }
}

/// The error of a stream that was open for as long as allowed.
pub fn expired() -> ApiError {
    let seconds = limits::JOBLESS_STREAM_AGE_MAX.as_secs();
    let message = format!("a stream like this may stay open for {seconds} s; open another one");
    ApiError::new(ErrorCode::StreamExpired, message)
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse {
        status: status.into(),
    }
}
