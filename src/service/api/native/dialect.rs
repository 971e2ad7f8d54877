//! The native API's dialect: REST, in JSON or in Protobuf.

use std::sync::Arc;

use crate::error::{ApiError, ErrorCode};
use crate::grpc::status;
use crate::http::negotiate::{ContentType, MediaType};
use crate::http::{Method, Request, ResponseSink};
use crate::service::call::Call;
use crate::service::dialect::{Asked, Dialect, Narrator, Received};
use crate::service::representation::{Form, Representation};
use crate::service::response::buffer::{EVENT_STREAM, JSON, ResponseBuffer};
use crate::service::response::coding::StreamCoder;
use crate::service::response::headers;
use crate::service::response::json::write_json;
use crate::service::router::{Route, Row};

use super::bounds::{check_callback_url, of_jobs};
use super::error::ErrorBody;
use super::narrator::{Events, Object, Shape, append};
use super::protobuf::{no_stream, read_request};
use super::request::GenerateRequest;
use super::selection::Selection;

const PROTOBUF: &str = MediaType::Protobuf.content_type();

/// See the file's head.
pub struct Native;

impl Dialect for Native {
    fn check_head(
        &self,
        row: &Row,
        call: &mut Call,
        request: &Request<'_>,
    ) -> Result<(), ApiError> {
        debug_assert!(row.verbs.include(request.method), "it was checked before");
        match request.method {
            Method::Post => check_media_types(call),
            _ => check_no_body(request),
        }
    }

    fn not_found(&self) -> ApiError {
        let message = "nothing is served at this path; `GET /` lists the paths";
        ApiError::new(ErrorCode::NotFound, message)
    }

    fn read(&self, received: &Received<'_>) -> Result<Asked, ApiError> {
        let form = received.form;
        let for_job;
        let limits = match form.row.map(|row| row.route) {
            Some(Route::Jobs) => {
                for_job = of_jobs(received.limits);
                &for_job
            }
            _ => received.limits,
        };
        let asked = match form.media.sent {
            ContentType::Known(MediaType::Protobuf) => read_request(received.body, None, limits)?,
            _ => GenerateRequest::parse(received.body, limits)?,
        };
        check_callback_url(asked.callback_url.as_deref(), form.row)?;
        let shape = Shape {
            selection: Selection::parse(received.fields)?,
            language: asked.language_name(),
        };
        let narrator = if wants_stream(&asked, form)? {
            Narrator::Pieces(Box::new(Events::new(shape)))
        } else {
            // Allocates per request: the dialect is chosen at run time and outlives the request.
            Narrator::Whole(Arc::new(Object(shape)))
        };
        Ok(asked.narrated_by(narrator))
    }

    fn send_error(
        &self,
        buffer: &mut ResponseBuffer,
        call: &Call,
        error: &ApiError,
        sink: &mut dyn ResponseSink,
    ) -> u64 {
        buffer.begin(call);
        headers::error(&mut buffer.fields, error, call.row);
        let content_type = match call.representation {
            Representation::Protobuf => {
                let message = status::status_of(error, call.request_id.as_str());
                append(&mut buffer.body, &message);
                PROTOBUF
            }
            _ => {
                write_json(&mut buffer.body, &ErrorBody::new(error, call));
                JSON
            }
        };
        buffer.send(error.code.status(), Some(content_type), sink)
    }

    fn send(&self, buffer: &mut ResponseBuffer, call: &Call, sink: &mut dyn ResponseSink) -> u64 {
        let content_type = self.content_type(call.form());
        buffer.send(200, Some(content_type), sink)
    }

    fn content_type(&self, form: Form) -> &'static str {
        match form.representation {
            Representation::Protobuf => PROTOBUF,
            _ => JSON,
        }
    }

    fn start(
        &self,
        buffer: &mut ResponseBuffer,
        _call: &Call,
        sink: &mut dyn ResponseSink,
    ) -> Option<Box<StreamCoder>> {
        buffer.send_head(200, EVENT_STREAM, sink)
    }

    fn end(&self, _call: &Call, _error: Option<&ApiError>, sink: &mut dyn ResponseSink) {
        sink.finish();
    }
}

/// Decides whether to stream: by the body's `stream`, or if it is absent by `Accept`. Clients of
/// the OpenAI API send `stream: true` with `Accept: application/json`, so the two cannot be
/// required to agree.
fn wants_stream(asked: &GenerateRequest, form: Form) -> Result<bool, ApiError> {
    match (form.representation, asked.stream) {
        (Representation::Protobuf, Some(true)) => Err(no_stream()),
        (_, Some(stream)) => Ok(stream),
        (_, None) => Ok(form.media.accepted == Some(MediaType::EventStream)),
    }
}

fn check_media_types(call: &Call) -> Result<(), ApiError> {
    match call.media.sent {
        ContentType::Absent | ContentType::Known(MediaType::Json | MediaType::Protobuf) => {}
        ContentType::Known(_) | ContentType::Unsupported => {
            let message = "the body must be JSON in UTF-8, or application/x-protobuf; with curl, \
                           add -H 'content-type: application/json'";
            return Err(ApiError::new(ErrorCode::UnsupportedMediaType, message));
        }
    }
    if call.media.accepted.is_none() {
        let message = "`Accept` allows none of application/json, text/event-stream and \
                       application/x-protobuf";
        return Err(ApiError::new(ErrorCode::NotAcceptable, message));
    }
    Ok(())
}

/// Refuses a body where the route takes none, because the client has misunderstood something. A
/// chunked body may turn out to be empty, which counts as no body (RFC 9112, section 6.3): the
/// limit of 0 bytes refuses the others.
fn check_no_body(request: &Request<'_>) -> Result<(), ApiError> {
    let length = request.header("content-length").map_or("0", str::trim);
    if length.bytes().all(|digit| digit == b'0') {
        return Ok(());
    }
    let message = "this request must not have a body";
    Err(ApiError::new(ErrorCode::InvalidRequest, message))
}
