//! What answers of gRPC's other services are made of: one message, or any number and an end.
//!
//! A generation has its own way, in [`crate::service::generation`]; health and reflection share
//! what is here.

use crate::core::Moment;
use crate::error::ApiError;
use crate::grpc::messages::Message;
use crate::http::ResponseSink;

use crate::service::Service;
use crate::service::call::Call;
use crate::service::render;
use crate::service::request_log::Outcome;

impl Service {
    /// Answers with one message, and closes the request.
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

    /// Sends one message of several, behind the head if it is the first; gives its bytes.
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

    /// Ends an answer of any number of messages, and closes the request. `bytes`: 0 where the head
    /// is still to come.
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
                // As in `fail`: what nothing was sent before has the status that it has elsewhere.
                status: if bytes > 0 { 200 } else { error.code.status() },
                bytes,
                code: error.code,
            },
        };
        self.log.close(call, outcome, None, now);
    }
}
