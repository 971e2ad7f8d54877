//! gRPC's dialect: messages after prefixes, and the status in trailers.

use std::sync::Arc;

use crate::error::{ApiError, ErrorCode};
use crate::grpc::{self, Encoding, Terms, status};
use crate::http::{Fields, Request, ResponseSink, Version};
use crate::service::api::native::bounds::{check_callback_url, of_jobs};
use crate::service::api::native::narrator::Shape;
use crate::service::api::native::protobuf::read_request;
use crate::service::api::native::selection::Selection;
use crate::service::call::Call;
use crate::service::dialect::{Asked, Dialect, Narrator, Received};
use crate::service::inflation::message_bounds;
use crate::service::representation::{Form, Representation};
use crate::service::response::buffer::ResponseBuffer;
use crate::service::response::coding::StreamCoder;
use crate::service::router::{BodyBound, Route, Row};

use super::narrator::{Chunks, OneMessage};

/// See the file's head.
pub struct Grpc;

impl Dialect for Grpc {
    fn check_head(
        &self,
        _row: &Row,
        call: &mut Call,
        request: &Request<'_>,
    ) -> Result<(), ApiError> {
        if request.version < Version::Http2 {
            let message = "gRPC methods need HTTP/2; over HTTP/1.1 use POST /api/v1/generate";
            return Err(ApiError::new(ErrorCode::HttpVersionNotSupported, message));
        }
        if !call.representation.is_grpc() {
            let message = "this path is a gRPC method; send `content-type: application/grpc`";
            return Err(ApiError::new(ErrorCode::UnsupportedMediaType, message));
        }
        call.representation = Representation::Grpc(Terms::of(request)?);
        Ok(())
    }

    fn not_found(&self) -> ApiError {
        let message = "unknown method; server reflection lists the methods";
        ApiError::new(ErrorCode::NotImplemented, message)
    }

    fn read(&self, received: &Received<'_>) -> Result<Asked, ApiError> {
        let Received {
            form,
            body,
            limits,
            inflater,
            ..
        } = *received;
        let terms = form.representation.terms();
        let bounds = message_bounds(limits, form.row);
        let message = inflater.only_message(body, terms.encoding, bounds)?;
        let asked = match form.row.map(|row| row.route) {
            // The call ends with the job's acceptance: its deadline is not the generation's.
            Some(Route::RpcSubmitJob) => read_request(&message, None, &of_jobs(limits))?,
            _ => read_request(&message, terms.timeout, limits)?,
        };
        check_callback_url(asked.callback_url.as_deref(), form.row)?;
        let shape = Shape {
            selection: Selection::ALL,
            language: asked.language_name(),
        };
        // The method's name decides.
        let narrator = match form.row.map(|row| row.route) {
            Some(Route::RpcGenerateStream) => Narrator::Pieces(Box::new(Chunks::new(shape))),
            _ => Narrator::Whole(Arc::new(OneMessage(shape))),
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
        end_without_messages(buffer, call, Some(error), sink);
        0
    }

    fn send(&self, buffer: &mut ResponseBuffer, call: &Call, sink: &mut dyn ResponseSink) -> u64 {
        self.start(buffer, call, sink);
        sink.data(&buffer.body);
        self.end(call, None, sink);
        buffer.body.len() as u64
    }

    fn content_type(&self, _: Form) -> &'static str {
        grpc::CONTENT_TYPE
    }

    fn start(
        &self,
        buffer: &mut ResponseBuffer,
        call: &Call,
        sink: &mut dyn ResponseSink,
    ) -> Option<Box<StreamCoder>> {
        push_encodings(&mut buffer.fields, call, call.response_encoding());
        buffer.send_head(200, grpc::CONTENT_TYPE, sink)
    }

    fn end(&self, call: &Call, error: Option<&ApiError>, sink: &mut dyn ResponseSink) {
        let mut trailers = Fields::new();
        push_status(&mut trailers, call, error);
        sink.finish_with(&trailers);
    }
}

/// Sends a response without any message: its head is its end.
pub fn end_without_messages(
    buffer: &mut ResponseBuffer,
    call: &Call,
    error: Option<&ApiError>,
    sink: &mut dyn ResponseSink,
) {
    buffer.begin(call);
    push_encodings(&mut buffer.fields, call, Encoding::Identity);
    push_status(&mut buffer.fields, call, error);
    buffer.send(200, Some(grpc::CONTENT_TYPE), sink);
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
