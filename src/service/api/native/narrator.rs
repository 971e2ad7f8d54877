//! Writes the native API's response of a generation: one object, or server-sent events.

use serde::Serialize;

use crate::engine::code::extract;
use crate::error::ApiError;
use crate::grpc::messages::Message;
use crate::http::sse;
use crate::service::call::Call;
use crate::service::dialect::{Generation, Pieces, Whole};
use crate::service::representation::{Form, Representation};
use crate::service::response::buffer::ResponseBuffer;
use crate::service::response::json::write_json;

use super::code::CodeStream;
use super::error::ErrorBody;
use super::protobuf::response_of;
use super::selection::{GenerationObject, Selection};

/// The form of one response.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub selection: Selection,
    pub language: Option<&'static str>,
}

impl Shape {
    /// Returns the selected members of a generation whose program is `code`.
    pub fn object<'a>(
        &self,
        code: &'a str,
        generation: &'a Generation<'a>,
    ) -> GenerationObject<'a> {
        GenerationObject {
            selection: self.selection,
            language: self.language,
            code,
            generation,
        }
    }
}

/// One object, in JSON or in Protobuf.
#[derive(Debug)]
pub struct Object(pub Shape);

impl Whole for Object {
    fn write(&self, buffer: &mut ResponseBuffer, form: Form, generation: &Generation<'_>) {
        let code = extract(generation.text, self.0.language);
        let object = self.0.object(&code, generation);
        match form.representation {
            Representation::Protobuf => append(&mut buffer.body, &response_of(&object)),
            _ => write_json(&mut buffer.body, &object),
        }
    }

    fn partial(&self, text: &str) -> String {
        extract(text, self.0.language).into_owned()
    }
}

/// Events: any number of `delta`, then `done` or `error`.
#[derive(Debug)]
pub struct Events {
    shape: Shape,
    code: CodeStream,
}

impl Events {
    pub fn new(shape: Shape) -> Events {
        Events {
            shape,
            code: CodeStream::new(shape.language),
        }
    }

    fn append_delta(&mut self, buffer: &mut ResponseBuffer) {
        let text = self.code.take();
        if !text.is_empty() {
            buffer.append_event("delta", &Delta { text });
        }
    }
}

impl Pieces for Events {
    fn push(&mut self, buffer: &mut ResponseBuffer, _call: &Call, text: &str) {
        self.code.push(text);
        self.append_delta(buffer);
    }

    fn push_code(&mut self, buffer: &mut ResponseBuffer, _call: &Call, code: &str) {
        self.code.push_code(code);
        self.append_delta(buffer);
    }

    fn end_code(&mut self, code: &str) {
        self.code.push_code(code);
    }

    fn end_text(&mut self, text: &str) {
        self.code.end(text);
    }

    fn done(&mut self, buffer: &mut ResponseBuffer, _form: Form, generation: &Generation<'_>) {
        self.append_delta(buffer);
        let object = self.shape.object(self.code.as_str(), generation);
        buffer.append_event("done", &object);
    }

    fn failed(&mut self, buffer: &mut ResponseBuffer, call: &Call, error: &ApiError) {
        self.append_delta(buffer);
        buffer.append_event("error", &ErrorBody::new(error, call));
    }

    fn failing(&self) -> Box<dyn Pieces> {
        Box::new(Events::new(self.shape))
    }

    fn partial(&self) -> String {
        self.code.as_str().to_owned()
    }

    fn ping(&self) -> Option<fn(&mut Vec<u8>)> {
        Some(|body| sse::comment(body, "ping"))
    }
}

#[derive(Serialize)]
struct Delta<'a> {
    text: &'a str,
}

/// Appends a message as it is.
pub fn append(body: &mut Vec<u8>, message: &impl Message) {
    let encoded = message.encode(body);
    // A vector grows as needed.
    debug_assert!(encoded.is_ok());
}
