//! One response while it is being built, and the JSON forms that responses share.
//!
//! Owns the buffers that a reactor fills again and again: a response allocates only if it is larger
//! than every one before it.

use std::time::Duration;

use crate::engine::Timings;
use crate::grpc::Encoding;
use crate::grpc::messages::Message;
use crate::http::compress::encode::Step;
use crate::http::negotiate::AcceptEncoding;
use crate::http::{Fields, ResponseHead, ResponseSink, sse};
use crate::limits::service as limits;

use super::coding::{Coder, StreamCoder};
use super::headers;
use super::json::{WriteJson, write_json};
use super::static_body::StaticBody;
use super::stored_body::StoredBody;
use crate::service::call::Call;

pub const JSON: &str = "application/json";
pub const PLAIN_TEXT: &str = "text/plain; charset=utf-8";
pub const EVENT_STREAM: &str = "text/event-stream";

/// Call order: `begin`, then fields and body, then `send`, or `send_head` for a stream.
#[derive(Debug)]
pub struct ResponseBuffer {
    pub fields: Fields,
    pub body: Vec<u8>,
    /// Scratch space for values that are built from parts.
    text: String,
    /// For the data of an event.
    json: Vec<u8>,
    /// The codings that this client accepts.
    accepted: AcceptEncoding,
    /// The body has its coding, and the fields name it.
    is_coded: bool,
    pub coder: Coder,
}

/// A response as it is sent.
#[derive(Debug)]
pub struct Written {
    pub body: Vec<u8>,
    /// Those that its coding needs.
    pub fields: Fields,
}

impl ResponseBuffer {
    pub fn new(coder: Coder) -> ResponseBuffer {
        ResponseBuffer {
            fields: Fields::new(),
            body: Vec::new(),
            text: String::new(),
            json: Vec::new(),
            accepted: AcceptEncoding::NONE,
            is_coded: false,
            coder,
        }
    }

    /// Writes the fields of a response to `call`; the body stays as it is.
    pub fn begin_fields(&mut self, call: &Call) {
        self.fields.clear();
        self.is_coded = false;
        self.accepted = call.accept_encoding;
        headers::identity(&mut self.fields, call, &mut self.text);
    }

    /// Begins an empty response to `call`.
    pub fn begin(&mut self, call: &Call) {
        self.begin_fields(call);
        self.body.clear();
        // One long response must not cost memory for ever.
        self.body.shrink_to(limits::RESPONSE_BUFFER_KEPT_BYTES_MAX);
    }

    /// Begins a response whose body another buffer has made, with the fields for its coding.
    pub fn begin_written(&mut self, call: &Call, body: Vec<u8>, fields: &Fields) {
        self.begin(call);
        self.body = body;
        self.is_coded = true;
        for (name, value) in fields.iter() {
            self.fields
                .push(name, std::str::from_utf8(value).unwrap_or_default());
        }
    }

    /// Begins a response whose body was stored, in the coding that suits the client. Returns
    /// whether a coding of it was made and kept.
    pub fn begin_stored(&mut self, call: &Call, content_type: &str, body: &StoredBody) -> bool {
        self.begin(call);
        let (accepted, fields) = (self.accepted, &mut self.fields);
        // A body for a client that refuses plain ones is coded when it is sent.
        self.is_coded = !accepted.refuses_identity();
        let (coded, has_grown) = match self.is_coded {
            true => self.coder.code_stored(accepted, content_type, body, fields),
            false => (body.plain(), false),
        };
        self.body.extend_from_slice(coded);
        has_grown
    }

    /// Returns the body, compressed if the client asked for it and it is worth it, for
    /// [`ResponseBuffer::begin_written`] of another buffer.
    pub fn into_written(mut self, accepted: AcceptEncoding, content_type: &str) -> Written {
        let (fields, length) = (&mut self.fields, self.body.len());
        let coded = self
            .coder
            .code(accepted, Some(content_type), &self.body, fields);
        let body = match coded.len() < length || accepted.refuses_identity() {
            true => coded.to_vec(),
            false => self.body,
        };
        Written {
            body,
            fields: self.fields,
        }
    }

    /// Returns the body as the last piece of a stream, through its encoder if it has one.
    pub fn into_last_piece(mut self, coder: Option<&mut StreamCoder>) -> Written {
        let body = match coder {
            Some(coder) => self
                .coder
                .code_piece(coder, &self.body, Step::Finish)
                .to_vec(),
            None => self.body,
        };
        Written {
            body,
            fields: self.fields,
        }
    }

    /// Adds `Server-Timing`.
    pub fn push_server_timing(
        &mut self,
        auth: Duration,
        timings: Option<&Timings>,
        total: Duration,
    ) {
        headers::server_timing(&mut self.fields, auth, timings, total, &mut self.text);
    }

    /// Appends a server-sent event to the body.
    pub fn append_event(&mut self, name: &str, value: &impl WriteJson) {
        self.json.clear();
        self.json.shrink_to(limits::RESPONSE_BUFFER_KEPT_BYTES_MAX);
        write_json(&mut self.json, value);
        // JSON is UTF-8, and without white space it is one line.
        let data = std::str::from_utf8(&self.json).unwrap_or_default();
        sse::event(&mut self.body, name, None, data);
    }

    /// Appends a gRPC message to the body.
    pub fn append_message(&mut self, message: &impl Message, encoding: Encoding) {
        self.coder.append_message(&mut self.body, message, encoding);
    }

    /// Sends head and body, compressed if the client asked for it and it is worth it; returns the
    /// length of the sent body.
    pub fn send(
        &mut self,
        status: u16,
        content_type: Option<&'static str>,
        sink: &mut dyn ResponseSink,
    ) -> u64 {
        let (accepted, fields) = (self.accepted, &mut self.fields);
        let body = match self.is_coded {
            true => &self.body,
            false => self
                .coder
                .code_quickly(accepted, content_type, &self.body, fields),
        };
        let head = ResponseHead {
            status,
            content_type,
            headers: fields,
        };
        sink.respond(&head, body);
        body.len() as u64
    }

    /// Sends the head and a static body, in the coding that suits the client.
    pub fn send_static(
        &mut self,
        content_type: &'static str,
        body: &mut StaticBody,
        sink: &mut dyn ResponseSink,
    ) -> u64 {
        let (accepted, fields) = (self.accepted, &mut self.fields);
        let body = self.coder.code_static(accepted, content_type, body, fields);
        let head = ResponseHead {
            status: 200,
            content_type: Some(content_type),
            headers: fields,
        };
        sink.respond(&head, body);
        body.len() as u64
    }

    /// Sends the head of a response whose body follows in pieces; returns the encoder for the
    /// pieces.
    pub fn send_head(
        &mut self,
        status: u16,
        content_type: &'static str,
        sink: &mut dyn ResponseSink,
    ) -> Option<Box<StreamCoder>> {
        let fields = &mut self.fields;
        let coder = self.coder.begin_stream(self.accepted, content_type, fields);
        sink.start(&ResponseHead {
            status,
            content_type: Some(content_type),
            headers: fields,
        });
        coder
    }

    /// Sends the body as the next piece of a stream; returns the length of the sent piece.
    pub fn send_piece(
        &mut self,
        coder: Option<&mut StreamCoder>,
        step: Step,
        sink: &mut dyn ResponseSink,
    ) -> u64 {
        let piece = match coder {
            Some(coder) => self.coder.code_piece(coder, &self.body, step),
            None => &self.body,
        };
        if !piece.is_empty() {
            sink.data(piece);
        }
        piece.len() as u64
    }
}
