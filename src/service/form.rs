//! In which form a request is answered: JSON, Protobuf or gRPC; and how each says the same.
//!
//! The form is decided by the head, so that a refusal has it too. REST's answer is what `Accept`
//! asks for; where that leaves a choice, the request's own type. What came to a gRPC method, or to
//! an unknown path as `application/grpc`, gets gRPC's status in trailers, also where there is
//! nothing before them: a client of gRPC reads nothing else.

use crate::error::{ApiError, ErrorCode};
use crate::grpc::messages::{Message, autoglm};
use crate::grpc::{self, Encoding, Terms, status, terms};
use crate::http::negotiate::{ContentType, MediaType, choose, content_type};
use crate::http::{Fields, Reply, Request, Version};

use super::call::Call;
use crate::service::admission::router::{BodyBound, Row, Verbs};
use crate::service::api::native::protobuf::response_of;
use crate::service::api::native::selection::AnswerObject;
use crate::service::generation::running::Delta;
use crate::service::response::buffer::{EVENT_STREAM, ErrorBody, JSON, Page, write_json};
use crate::service::response::coding::StreamCoder;
use crate::service::response::headers;

/// What a generation's answer can be, the first being what a client gets that takes anything.
const OFFERS: &[MediaType] = &[MediaType::Json, MediaType::EventStream, MediaType::Protobuf];

/// The same for a client that speaks Protobuf itself.
const PROTOBUF_OFFERS: &[MediaType] =
    &[MediaType::Protobuf, MediaType::Json, MediaType::EventStream];

const PROTOBUF: &str = MediaType::Protobuf.content_type();

/// The media types of a request's body and of the answer that it wants. Read once for each request,
/// and only where a route takes a body.
#[derive(Clone, Copy, Debug)]
pub struct Media {
    pub sent: ContentType,
    /// `None`: nothing that there is.
    pub accepted: Option<MediaType>,
}

impl Default for Media {
    fn default() -> Media {
        Media {
            sent: ContentType::Absent,
            accepted: Some(MediaType::Json),
        }
    }
}

impl Media {
    pub fn of(request: &Request<'_>, row: Option<&Row>) -> Media {
        if row.map(|row| row.verbs) != Some(Verbs::Post) {
            return Media::default();
        }
        let sent = content_type(request);
        let offers = match sent {
            ContentType::Known(MediaType::Protobuf) => PROTOBUF_OFFERS,
            _ => OFFERS,
        };
        let accepted = choose(request, offers);
        Media { sent, accepted }
    }
}

/// See the file's head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    #[default]
    Json,
    Protobuf,
    Grpc(Terms),
}

impl Form {
    /// The terms of gRPC are read later, in [`check_rpc`]: errors in them need a form too.
    pub fn of(request: &Request<'_>, row: Option<&Row>, media: &Media) -> Form {
        match row.map(|row| row.verbs) {
            Some(Verbs::Read) => Form::Json,
            Some(Verbs::Post) if media.accepted == Some(MediaType::Protobuf) => Form::Protobuf,
            Some(Verbs::Post) => Form::Json,
            Some(Verbs::Rpc) | None => {
                match request.version == Version::Http2 && terms::is_grpc(request) {
                    true => Form::Grpc(Terms::default()),
                    false => Form::Json,
                }
            }
        }
    }

    pub const fn is_grpc(self) -> bool {
        matches!(self, Form::Grpc(_))
    }
}

/// Reads what else a gRPC head says.
pub fn check_rpc(call: &mut Call, request: &Request<'_>) -> Result<(), ApiError> {
    if request.version < Version::Http2 {
        let message = "this is a method of gRPC, which needs HTTP/2; over HTTP/1.1 there is \
                       POST /api/v1/generate";
        return Err(ApiError::new(ErrorCode::HttpVersionNotSupported, message));
    }
    if !call.form.is_grpc() {
        let message = "this is a method of gRPC; send `content-type: application/grpc`";
        return Err(ApiError::new(ErrorCode::UnsupportedMediaType, message));
    }
    call.form = Form::Grpc(Terms::of(request)?);
    Ok(())
}

/// What gRPC says of a path at which nothing is served.
pub fn no_method() -> ApiError {
    let message = "no such method is served here; server reflection lists those that are";
    ApiError::new(ErrorCode::NotImplemented, message)
}

/// Sends a whole error answer; gives its body's length.
pub fn send_error(page: &mut Page, call: &Call, error: &ApiError, reply: &mut dyn Reply) -> u64 {
    let http_status = error.code.status();
    match call.form {
        Form::Json => {
            page.begin_error(call, error);
            page.send(http_status, Some(JSON), reply)
        }
        Form::Protobuf => {
            page.begin(call);
            headers::error(&mut page.fields, error, call.row);
            let message = status::status_of(error, call.request_id.as_str());
            append(&mut page.body, &message);
            page.send(http_status, Some(PROTOBUF), reply)
        }
        Form::Grpc(_) => {
            page.begin(call);
            end_without_messages(page, call, Some(error), reply);
            0
        }
    }
}

/// Appends a whole answer to the page's body.
pub fn append_answer(page: &mut Page, form: Form, object: &AnswerObject<'_>) {
    match form {
        Form::Json => write_json(&mut page.body, object),
        Form::Protobuf => append(&mut page.body, &response_of(object)),
        Form::Grpc(terms) => page.append_message(&response_of(object), terms.encoding),
    }
}

/// Sends the whole answer that the page holds; gives its body's length.
pub fn send_answer(page: &mut Page, call: &Call, reply: &mut dyn Reply) -> u64 {
    match call.form {
        Form::Json => page.send(200, Some(JSON), reply),
        Form::Protobuf => page.send(200, Some(PROTOBUF), reply),
        Form::Grpc(_) => {
            start(page, call, reply);
            reply.data(&page.body);
            end(call, None, reply);
            page.body.len() as u64
        }
    }
}

/// Sends the head of an answer that comes in pieces; the page has its fields. Gives the encoder
/// that the pieces go through, if they go through one.
pub fn start(page: &mut Page, call: &Call, reply: &mut dyn Reply) -> Option<Box<StreamCoder>> {
    match call.form {
        Form::Json | Form::Protobuf => page.send_head(200, EVENT_STREAM, reply),
        Form::Grpc(_) => {
            push_encodings(&mut page.fields, call, call.answer_encoding());
            page.send_head(200, grpc::CONTENT_TYPE, reply)
        }
    }
}

/// Appends a piece of the program.
pub fn append_delta(page: &mut Page, form: Form, text: &str) {
    match form {
        Form::Json | Form::Protobuf => page.append_event("delta", &Delta { text }),
        Form::Grpc(terms) => {
            let chunk = autoglm::GenerateChunk {
                text: text.to_owned(),
                response: None,
            };
            page.append_message(&chunk, terms.encoding);
        }
    }
}

/// Appends the last piece: the whole answer once more.
pub fn append_done(page: &mut Page, form: Form, object: &AnswerObject<'_>) {
    match form {
        Form::Json | Form::Protobuf => page.append_event("done", object),
        Form::Grpc(terms) => {
            let chunk = autoglm::GenerateChunk {
                text: String::new(),
                response: Some(response_of(object)),
            };
            page.append_message(&chunk, terms.encoding);
        }
    }
}

/// Appends what ends a stream that went wrong, where that is part of its body.
pub fn append_error(page: &mut Page, call: &Call, error: &ApiError) {
    match call.form {
        Form::Json | Form::Protobuf => page.append_event("error", &ErrorBody::new(error, call)),
        Form::Grpc(_) => {}
    }
}

/// Ends an answer that was begun.
pub fn end(call: &Call, error: Option<&ApiError>, reply: &mut dyn Reply) {
    match call.form {
        Form::Json | Form::Protobuf => reply.finish(),
        Form::Grpc(_) => {
            let mut trailers = Fields::new();
            push_status(&mut trailers, call, error);
            reply.finish_with(&trailers);
        }
    }
}

/// An answer of gRPC without any message: its head is its end. The page has the common fields.
pub fn end_without_messages(
    page: &mut Page,
    call: &Call,
    error: Option<&ApiError>,
    reply: &mut dyn Reply,
) {
    page.body.clear();
    push_encodings(&mut page.fields, call, Encoding::Identity);
    push_status(&mut page.fields, call, error);
    page.send(200, Some(grpc::CONTENT_TYPE), reply);
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
