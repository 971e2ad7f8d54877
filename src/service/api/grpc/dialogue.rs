//! What answers of gRPC's other services are made of: one message, or any number and an end.
//!
//! A generation has its own way, in [`crate::service::generation`]; health and reflection share
//! what is here.

use crate::core::Moment;
use crate::error::ApiError;
use crate::grpc::messages::Message;
use crate::http::Reply;

use crate::service::Service;
use crate::service::call::Call;
use crate::service::form;
use crate::service::request_log::Outcome;

impl Service {
    /// Answers with one message, and closes the request.
    pub(in crate::service) fn answer_message(
        &mut self,
        call: &Call,
        message: &impl Message,
        now: Moment,
        reply: &mut dyn Reply,
    ) {
        self.page.begin(call);
        if call.form.is_grpc() {
            self.page.append_message(message, call.answer_encoding());
        }
        let bytes = form::send_answer(&mut self.page, call, reply);
        let status = 200;
        let outcome = Outcome::Answered { status, bytes };
        self.ledger.close(call, outcome, None, now);
    }

    /// Sends one message of several, behind the head if it is the first; gives its bytes.
    pub(in crate::service) fn send_message(
        &mut self,
        call: &Call,
        is_first: bool,
        message: &impl Message,
        reply: &mut dyn Reply,
    ) -> u64 {
        self.page.begin(call);
        if call.form.is_grpc() {
            self.page.append_message(message, call.answer_encoding());
        }
        if is_first {
            form::start(&mut self.page, call, reply);
        }
        reply.data(&self.page.body);
        self.page.body.len() as u64
    }

    /// Ends an answer of any number of messages, and closes the request. `bytes`: 0 where the head
    /// is still to come.
    pub(in crate::service) fn end_dialogue(
        &mut self,
        call: &Call,
        bytes: u64,
        error: Option<&ApiError>,
        now: Moment,
        reply: &mut dyn Reply,
    ) {
        if bytes > 0 {
            form::end(call, error, reply);
        } else {
            self.page.begin(call);
            form::end_without_messages(&mut self.page, call, error, reply);
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
        self.ledger.close(call, outcome, None, now);
    }
}
