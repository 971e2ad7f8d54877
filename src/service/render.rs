//! How a response is written in each representation.

use serde::Serialize;

use crate::error::{ApiError, ErrorCode};
use crate::grpc::messages::{Message, autoglm};
use crate::grpc::{self, Encoding, Terms, status};
use crate::http::negotiate::MediaType;
use crate::http::{Fields, Request, ResponseSink, Version};

use super::admission::router::BodyBound;
use super::api::native::protobuf::response_of;
use super::api::native::selection::AnswerObject;
use super::call::Call;
use super::representation::Representation;
use super::response::buffer::{EVENT_STREAM, JSON, ResponseBuffer};
use super::response::coding::StreamCoder;
use super::response::headers;
use super::response::json::write_json;

const PROTOBUF: &str = MediaType::Protobuf.content_type();

/// Reads what else a gRPC head says.
pub fn check_rpc(call: &mut Call, request: &Request<'_>) -> Result<(), ApiError> {
    if request.version < Version::Http2 {
        let message = "this is a method of gRPC, which needs HTTP/2; over HTTP/1.1 there is \
                       POST /api/v1/generate";
        return Err(ApiError::new(ErrorCode::HttpVersionNotSupported, message));
    }
    if !call.representation.is_grpc() {
        let message = "this is a method of gRPC; send `content-type: application/grpc`";
        return Err(ApiError::new(ErrorCode::UnsupportedMediaType, message));
    }
    call.representation = Representation::Grpc(Terms::of(request)?);
    Ok(())
}

/// What gRPC says of a path at which nothing is served.
pub fn no_method() -> ApiError {
    let message = "no such method is served here; server reflection lists those that are";
    ApiError::new(ErrorCode::NotImplemented, message)
}

/// Sends a whole error answer; gives its body's length.
pub fn send_error(
    buffer: &mut ResponseBuffer,
    call: &Call,
    error: &ApiError,
    reply: &mut dyn ResponseSink,
) -> u64 {
    let http_status = error.code.status();
    match call.representation {
        Representation::Json => {
            buffer.begin(call);
            headers::error(&mut buffer.fields, error, call.row);
            write_json(&mut buffer.body, &ErrorBody::new(error, call));
            buffer.send(http_status, Some(JSON), reply)
        }
        Representation::Protobuf => {
            buffer.begin(call);
            headers::error(&mut buffer.fields, error, call.row);
            let message = status::status_of(error, call.request_id.as_str());
            append(&mut buffer.body, &message);
            buffer.send(http_status, Some(PROTOBUF), reply)
        }
        Representation::Grpc(_) => {
            buffer.begin(call);
            end_without_messages(buffer, call, Some(error), reply);
            0
        }
    }
}

/// Appends a whole answer to the buffer's body.
pub fn append_answer(
    buffer: &mut ResponseBuffer,
    representation: Representation,
    object: &AnswerObject<'_>,
) {
    match representation {
        Representation::Json => write_json(&mut buffer.body, object),
        Representation::Protobuf => append(&mut buffer.body, &response_of(object)),
        Representation::Grpc(terms) => buffer.append_message(&response_of(object), terms.encoding),
    }
}

/// Sends the whole answer that the buffer holds; gives its body's length.
pub fn send_answer(buffer: &mut ResponseBuffer, call: &Call, reply: &mut dyn ResponseSink) -> u64 {
    match call.representation {
        Representation::Json => buffer.send(200, Some(JSON), reply),
        Representation::Protobuf => buffer.send(200, Some(PROTOBUF), reply),
        Representation::Grpc(_) => {
            start(buffer, call, reply);
            reply.data(&buffer.body);
            end(call, None, reply);
            buffer.body.len() as u64
        }
    }
}

/// Sends the head of an answer that comes in pieces; the buffer has its fields. Gives the encoder
/// that the pieces go through, if they go through one.
pub fn start(
    buffer: &mut ResponseBuffer,
    call: &Call,
    reply: &mut dyn ResponseSink,
) -> Option<Box<StreamCoder>> {
    match call.representation {
        Representation::Json | Representation::Protobuf => {
            buffer.send_head(200, EVENT_STREAM, reply)
        }
        Representation::Grpc(_) => {
            push_encodings(&mut buffer.fields, call, call.answer_encoding());
            buffer.send_head(200, grpc::CONTENT_TYPE, reply)
        }
    }
}

/// Appends a piece of the program.
pub fn append_delta(buffer: &mut ResponseBuffer, representation: Representation, text: &str) {
    match representation {
        Representation::Json | Representation::Protobuf => {
            buffer.append_event("delta", &Delta { text })
        }
        Representation::Grpc(terms) => {
            let chunk = autoglm::GenerateChunk {
                text: text.to_owned(),
                response: None,
            };
            buffer.append_message(&chunk, terms.encoding);
        }
    }
}

/// Appends the last piece: the whole answer once more.
pub fn append_done(
    buffer: &mut ResponseBuffer,
    representation: Representation,
    object: &AnswerObject<'_>,
) {
    match representation {
        Representation::Json | Representation::Protobuf => buffer.append_event("done", object),
        Representation::Grpc(terms) => {
            let chunk = autoglm::GenerateChunk {
                text: String::new(),
                response: Some(response_of(object)),
            };
            buffer.append_message(&chunk, terms.encoding);
        }
    }
}

/// Appends what ends a stream that went wrong, where that is part of its body.
pub fn append_error(buffer: &mut ResponseBuffer, call: &Call, error: &ApiError) {
    match call.representation {
        Representation::Json | Representation::Protobuf => {
            buffer.append_event("error", &ErrorBody::new(error, call))
        }
        Representation::Grpc(_) => {}
    }
}

/// Ends an answer that was begun.
pub fn end(call: &Call, error: Option<&ApiError>, reply: &mut dyn ResponseSink) {
    match call.representation {
        Representation::Json | Representation::Protobuf => reply.finish(),
        Representation::Grpc(_) => {
            let mut trailers = Fields::new();
            push_status(&mut trailers, call, error);
            reply.finish_with(&trailers);
        }
    }
}

/// An answer of gRPC without any message: its head is its end. The buffer has the common fields.
pub fn end_without_messages(
    buffer: &mut ResponseBuffer,
    call: &Call,
    error: Option<&ApiError>,
    reply: &mut dyn ResponseSink,
) {
    buffer.body.clear();
    push_encodings(&mut buffer.fields, call, Encoding::Identity);
    push_status(&mut buffer.fields, call, error);
    buffer.send(200, Some(grpc::CONTENT_TYPE), reply);
}

fn push_status(fields: &mut Fields, call: &Call, error: Option<&ApiError>) {
    match error {
        None => status::push_ok(fields),
        Some(error) => status::push_error(fields, error, call.request_id.as_str()),
    }
}

fn push_encodings(fields: &mut Fields, call: &Call, encoding: Encoding) {
    if encoding != Encoding::Identity {
        fields.push("grpc-encoding", encoding.name());
    }
    let accepted = match call.row.map(|row| row.body) {
        Some(BodyBound::Bytes(_) | BodyBound::None) => "identity",
        Some(BodyBound::MaxBody) | None => "identity,gzip",
    };
    fields.push("grpc-accept-encoding", accepted);
}

fn append(body: &mut Vec<u8>, message: &impl Message) {
    let encoded = message.encode(body);
    // A vector grows as needed.
    debug_assert!(encoded.is_ok());
}

#[derive(Serialize)]
struct Delta<'a> {
    text: &'a str,
}

/// The one form that all errors have.
#[derive(Serialize)]
pub struct ErrorBody<'a> {
    error: ErrorObject<'a>,
}

impl<'a> ErrorBody<'a> {
    pub fn new(error: &'a ApiError, call: &'a Call) -> ErrorBody<'a> {
        let error = ErrorObject {
            message: &error.message,
            r#type: error.code.family().as_str(),
            param: error.param.as_deref(),
            code: error.code.as_str(),
            request_id: call.request_id.as_str(),
            retry_after_ms: error.retry_after_ms,
            partial: error.partial.as_deref(),
        };
        ErrorBody { error }
    }
}

#[derive(Serialize)]
struct ErrorObject<'a> {
    message: &'a str,
    r#type: &'static str,
    param: Option<&'a str>,
    code: &'static str,
    request_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    partial: Option<&'a str>,
}
