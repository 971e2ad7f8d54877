//! An API of another kind: text as it is, prompts without a template, errors of another shape.
//!
//! It shows what an API can choose behind [`Dialect`], while admission and generation stay as they
//! are. Mutations that this test catches: `generation` extracts code from the text; `Stream::ping`
//! appends the native ping; `Desk::fail` writes the native error.

use std::sync::Arc;

use super::*;
use crate::engine::{CacheMode, FailReason, Failed, Prompt, Sampling};
use crate::http::ResponseSink;
use crate::service::call::Call;
use crate::service::desk::Desk;
use crate::service::dialect::{Asked, Dialect, Generation, Narrator, Pieces, Received, Whole};
use crate::service::representation::Form;
use crate::service::response::buffer::ResponseBuffer;
use crate::service::response::coding::StreamCoder;
use crate::service::router::Row;

const FENCED: &str = "Here:\n```python\nprint(1)\n```\n";

#[derive(Debug)]
struct Plain;

impl Dialect for Plain {
    fn check_head(&self, _: &Row, _: &mut Call, _: &Request<'_>) -> Result<(), ApiError> {
        Ok(())
    }

    fn not_found(&self) -> ApiError {
        ApiError::new(ErrorCode::NotFound, "try elsewhere")
    }

    /// The body is the prompt; `?fields=stream` asks for a response in pieces.
    fn read(&self, received: &Received<'_>) -> Result<Asked, ApiError> {
        let prompt = std::str::from_utf8(received.body)
            .map_err(|_| ApiError::new(ErrorCode::InvalidRequest, "not text"))?;
        let narrator = match received.fields {
            Some("stream") => Narrator::Pieces(Box::new(Numbered(0))),
            _ => Narrator::Whole(Arc::new(Plain)),
        };
        Ok(Asked {
            digest: [0; 32],
            cache: CacheMode::Use,
            callback_url: None,
            prompt: Prompt::Raw(prompt.to_owned()),
            model: None,
            timeout: Duration::from_secs(60),
            sampling: Sampling::default(),
            repeat_penalty: None,
            max_tokens: Some(5),
            stop: Vec::new(),
            narrator,
        })
    }

    fn send_error(
        &self,
        buffer: &mut ResponseBuffer,
        call: &Call,
        error: &ApiError,
        sink: &mut dyn ResponseSink,
    ) -> u64 {
        buffer.begin(call);
        append(buffer, &format!("error: {}", error.message));
        buffer.send(error.code.status(), Some("text/plain"), sink)
    }

    fn content_type(&self, _: Form) -> &'static str {
        "text/plain"
    }

    fn send(&self, buffer: &mut ResponseBuffer, _: &Call, sink: &mut dyn ResponseSink) -> u64 {
        buffer.send(200, Some("text/plain"), sink)
    }

    fn start(
        &self,
        buffer: &mut ResponseBuffer,
        _: &Call,
        sink: &mut dyn ResponseSink,
    ) -> Option<Box<StreamCoder>> {
        buffer.send_head(200, "text/plain", sink)
    }

    fn end(&self, _: &Call, _: Option<&ApiError>, sink: &mut dyn ResponseSink) {
        sink.finish();
    }
}

impl Whole for Plain {
    fn write(&self, buffer: &mut ResponseBuffer, _: Form, generation: &Generation<'_>) {
        append(buffer, generation.text);
    }

    fn partial(&self, text: &str) -> String {
        text.to_owned()
    }
}

/// Numbers its pieces, as some APIs number their events.
#[derive(Debug)]
struct Numbered(u32);

impl Numbered {
    fn line(&mut self, buffer: &mut ResponseBuffer, text: &str) {
        append(buffer, &format!("{} {text}|", self.0));
        self.0 += 1;
    }
}

impl Pieces for Numbered {
    fn push(&mut self, buffer: &mut ResponseBuffer, _: &Call, text: &str) {
        self.line(buffer, text);
    }

    fn push_code(&mut self, buffer: &mut ResponseBuffer, _: &Call, code: &str) {
        self.line(buffer, code);
    }

    fn end_code(&mut self, _code: &str) {}

    fn end_text(&mut self, _text: &str) {}

    fn done(&mut self, buffer: &mut ResponseBuffer, _: Form, generation: &Generation<'_>) {
        let tokens = generation.usage.completion_tokens;
        self.line(buffer, &format!("done after {tokens}"));
    }

    fn failed(&mut self, buffer: &mut ResponseBuffer, _: &Call, error: &ApiError) {
        self.line(buffer, error.code.as_str());
    }

    fn failing(&self) -> Box<dyn Pieces> {
        Box::new(Numbered(self.0))
    }

    fn partial(&self) -> String {
        String::new()
    }

    fn ping(&self) -> Option<fn(&mut Vec<u8>)> {
        Some(|body| body.extend_from_slice(b"still here|"))
    }
}

fn append(buffer: &mut ResponseBuffer, text: &str) {
    buffer.body.extend_from_slice(text.as_bytes());
}

fn bench() -> Bench {
    let mut bench = Bench::new();
    let parts = bench.service.desk.parts.clone();
    bench.service.desk = Desk::new(parts, |_| &Plain);
    bench
}

fn sent<'a>(target: &'a str, body: &'a str) -> Sent<'a> {
    Sent {
        target,
        ..Sent::generate(body)
    }
}

#[test]
fn an_api_of_raw_text_needs_no_other_admission_and_no_other_generation() {
    let mut bench = bench();
    let (mut reply, mut exchange) = bench.start(&sent("/api/v1/generate", "once upon"));
    assert!(matches!(bench.job().prompt, Prompt::Raw(text) if text == "once upon"));
    assert_eq!(bench.job().max_tokens, 5);
    let flow = bench.event(&mut exchange, done(FENCED), &mut reply);
    assert_eq!((flow, reply.text()), (Flow::Finished, FENCED));

    let (mut reply, mut exchange) = bench.start(&sent("/api/v1/generate?fields=stream", "once"));
    assert!(bench.job().ticket.take_credit());
    assert_eq!(
        bench.event(&mut exchange, token("```"), &mut reply),
        Flow::Open
    );
    bench.now = exchange.next_deadline();
    let flow = bench
        .service
        .handle_deadline(&mut exchange, bench.now, &mut reply);
    assert_eq!(flow, Flow::Open);
    assert_eq!(
        bench.event(&mut exchange, done(""), &mut reply),
        Flow::Finished
    );
    assert_eq!(reply.text(), "0 ```|still here|1 done after 3|");
}

#[test]
fn an_api_has_errors_of_its_own_shape() {
    let mut bench = bench();
    let reply = bench.ask(&Sent::get("/nowhere").key(FULL));
    assert_eq!((reply.status, reply.text()), (404, "error: try elsewhere"));
    let missing = Sent {
        headers: Vec::new(),
        ..sent("/api/v1/generate", "x")
    };
    let reply = bench.ask(&missing);
    assert_eq!(reply.status, 401);
    assert!(reply.text().starts_with("error: no key was sent"));

    let (mut reply, mut exchange) = bench.start(&sent("/api/v1/generate?fields=stream", "x"));
    assert_eq!(
        bench.event(&mut exchange, token("a"), &mut reply),
        Flow::Open
    );
    let failed = Event::Failed(Box::new(Failed {
        reason: FailReason::Error(ErrorCode::EngineFailed),
        message: "why".into(),
        text: String::new(),
        usage: USAGE,
        timings: TIMINGS,
    }));
    assert_eq!(
        bench.event(&mut exchange, failed, &mut reply),
        Flow::Finished
    );
    assert_eq!(reply.text(), "0 a|1 engine_failed|");
}
