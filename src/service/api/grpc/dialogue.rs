//! The responses of gRPC's other services: one message, or any number and an end.
//!
//! A generation has its own code, in [`crate::service::generation`]; health and reflection share
//! this file.

use crate::core::Moment;
use crate::error::ApiError;
use crate::grpc::messages::Message;
use crate::http::ResponseSink;

use crate::service::Service;
use crate::service::call::Call;
use crate::service::render;
use crate::service::request_log::Outcome;

impl Service {
    /// Responds with one message, and closes the request.
    pub(in crate::service) fn answer_message(
        &mut self,
        call: &Call,
        message: &impl Message,
        now: Moment,
        reply: &mut dyn ResponseSink,
    ) {
        self.buffer.begin(call);
        if call.representation.is_grpc() {
            self.buffer.append_message(message, call.answer_encoding());
        }
        let bytes = render::send_answer(&mut self.buffer, call, reply);
        let status = 200;
        let outcome = Outcome::Answered { status, bytes };
        self.log.close(call, outcome, None, now);
    }

    /// Sends one message of several, after the head if it is the first; returns its bytes.
    pub(in crate::service) fn send_message(
        &mut self,
        call: &Call,
        is_first: bool,
        message: &impl Message,
        reply: &mut dyn ResponseSink,
    ) -> u64 {
        self.buffer.begin(call);
        if call.representation.is_grpc() {
            self.buffer.append_message(message, call.answer_encoding());
        }
        if is_first {
            render::start(&mut self.buffer, call, reply);
        }
        reply.data(&self.buffer.body);
        self.buffer.body.len() as u64
    }

    /// Ends a response of any number of messages, and closes the request. `bytes` is 0 if the head
    /// has not been sent yet.
    pub(in crate::service) fn end_dialogue(
        &mut self,
        call: &Call,
        bytes: u64,
        error: Option<&ApiError>,
        now: Moment,
        reply: &mut dyn ResponseSink,
    ) {
        if bytes > 0 {
            render::end(call, error, reply);
        } else {
            self.buffer.begin(call);
            render::end_without_messages(&mut self.buffer, call, error, reply);
        }
        let outcome = match error {
            None => Outcome::Answered { status: 200, bytes },
            Some(error) => Outcome::Failed {
                // As in `fail`: if nothing was sent before, the status is that of the same error
                // over REST.
                status: if bytes > 0 { 200 } else { error.code.status() },
                bytes,
                code: error.code,
            },
        };
        self.log.close(call, outcome, None, now);
    }
}
