//! Responses of gRPC's other services: one message, or any number of messages and an end.
//!
//! A generation has its own code, in [`crate::service::generation`]; health, reflection and jobs
//! share this file.

use crate::error::ApiError;
use crate::grpc::messages::Message;
use crate::service::call::Call;
use crate::service::desk::{Desk, Wire};
use crate::service::dialect::Dialect;
use crate::service::request_log::Outcome;

use super::dialect::{Grpc, end_without_messages};

/// Responds with one message, and closes the request.
pub fn send_only(desk: &mut Desk, call: &Call, message: &impl Message, wire: &mut Wire<'_>) {
    let buffer = &mut desk.buffer;
    buffer.begin(call);
    buffer.append_message(message, call.response_encoding());
    let bytes = Grpc.send(&mut desk.buffer, call, wire.sink);
    let outcome = Outcome::Completed { status: 200, bytes };
    desk.log.close(call, outcome, None, wire.now);
}

/// Sends one message of several, after the head if it is the first. Returns its bytes.
pub fn send_message(
    desk: &mut Desk,
    call: &Call,
    is_first: bool,
    message: &impl Message,
    wire: &mut Wire<'_>,
) -> u64 {
    let buffer = &mut desk.buffer;
    buffer.begin(call);
    buffer.append_message(message, call.response_encoding());
    if is_first {
        Grpc.start(buffer, call, wire.sink);
    }
    wire.sink.data(&buffer.body);
    buffer.body.len() as u64
}

/// Ends a response of any number of messages, and closes the request. `bytes` is 0 if the head has
/// not been sent yet.
pub fn end(
    desk: &mut Desk,
    call: &Call,
    bytes: u64,
    error: Option<&ApiError>,
    wire: &mut Wire<'_>,
) {
    if bytes > 0 {
        Grpc.end(call, error, wire.sink);
    } else {
        end_without_messages(&mut desk.buffer, call, error, wire.sink);
    }
    let outcome = match error {
        None => Outcome::Completed { status: 200, bytes },
        Some(error) => Outcome::Failed {
            // As in `Desk::fail`: an error before the first message has the status that it has over
            // REST.
            status: if bytes > 0 { 200 } else { error.code.status() },
            bytes,
            code: error.code,
        },
    };
    desk.log.close(call, outcome, None, wire.now);
}
