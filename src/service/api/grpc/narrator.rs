//! How gRPC writes the response of a generation: one message, or a stream of chunks.

use crate::engine::code::extract;
use crate::error::ApiError;
use crate::grpc::messages::autoglm::GenerateChunk;
use crate::service::api::native::code::CodeStream;
use crate::service::api::native::narrator::Shape;
use crate::service::api::native::protobuf::response_of;
use crate::service::call::Call;
use crate::service::dialect::{Generation, Pieces, Whole};
use crate::service::representation::Form;
use crate::service::response::buffer::ResponseBuffer;

/// The response of `Generate`.
#[derive(Debug)]
pub struct OneMessage(pub Shape);

impl Whole for OneMessage {
    fn write(&self, buffer: &mut ResponseBuffer, form: Form, generation: &Generation<'_>) {
        let code = extract(generation.text, self.0.language);
        let object = self.0.object(&code, generation);
        buffer.append_message(&response_of(&object), form.response_encoding());
    }

    fn partial(&self, text: &str) -> String {
        extract(text, self.0.language).into_owned()
    }
}

/// The response of `GenerateStream`: the program in chunks, then the whole response once more. An
/// error is in the trailers, not in a chunk.
#[derive(Debug)]
pub struct Chunks {
    shape: Shape,
    code: CodeStream,
}

impl Chunks {
    pub fn new(shape: Shape) -> Chunks {
        Chunks {
            shape,
            code: CodeStream::new(shape.language),
        }
    }

    fn append_code(&mut self, buffer: &mut ResponseBuffer, form: Form) {
        let text = self.code.take();
        if !text.is_empty() {
            let chunk = GenerateChunk {
                text: text.to_owned(),
                response: None,
            };
            buffer.append_message(&chunk, form.response_encoding());
        }
    }
}

impl Pieces for Chunks {
    fn push(&mut self, buffer: &mut ResponseBuffer, call: &Call, text: &str) {
        self.code.push(text);
        self.append_code(buffer, call.form());
    }

    fn push_code(&mut self, buffer: &mut ResponseBuffer, call: &Call, code: &str) {
        self.code.push_code(code);
        self.append_code(buffer, call.form());
    }

    fn end_code(&mut self, code: &str) {
        self.code.push_code(code);
    }

    fn end_text(&mut self, text: &str) {
        self.code.end(text);
    }

    fn done(&mut self, buffer: &mut ResponseBuffer, form: Form, generation: &Generation<'_>) {
        self.append_code(buffer, form);
        let object = self.shape.object(self.code.as_str(), generation);
        let chunk = GenerateChunk {
            text: String::new(),
            response: Some(response_of(&object)),
        };
        buffer.append_message(&chunk, form.response_encoding());
    }

    fn failed(&mut self, buffer: &mut ResponseBuffer, call: &Call, _error: &ApiError) {
        self.append_code(buffer, call.form());
    }

    fn failing(&self) -> Box<dyn Pieces> {
        Box::new(Chunks::new(self.shape))
    }

    fn partial(&self) -> String {
        self.code.as_str().to_owned()
    }

    /// HTTP/2 has its own pings.
    fn ping(&self) -> Option<fn(&mut Vec<u8>)> {
        None
    }
}
