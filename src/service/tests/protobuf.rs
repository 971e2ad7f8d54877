//! The same messages as `application/x-protobuf` over REST.

use super::*;
use crate::engine::Prompt;
use crate::grpc::messages::autoglm::{GenerateRequest, GenerateResponse};
use crate::grpc::messages::rpc::{ErrorInfo, Status};
use crate::grpc::messages::{Message, autoglm};

const PROTOBUF: &str = "application/x-protobuf";

/// These messages are ASCII, so they are text.
fn body(request: &GenerateRequest) -> String {
    String::from_utf8(request.encode_to_vec()).unwrap()
}

fn request(prompt: &str) -> GenerateRequest {
    GenerateRequest {
        prompt: prompt.into(),
        ..Default::default()
    }
}

#[test]
fn protobuf_both_ways() {
    for accept in ["*/*", PROTOBUF] {
        let mut bench = Bench::new();
        let body = body(&GenerateRequest {
            language: "py".into(),
            timeout_ms: 100,
            ..request("ab")
        });
        let sent = Sent::generate(&body)
            .header("content-type", PROTOBUF)
            .header("accept", accept);
        let (mut reply, mut exchange) = bench.start(&sent);
        let job = bench.job();
        assert_eq!(job.deadline, bench.now + Duration::from_millis(100));
        assert!(matches!(job.prompt, Prompt::Code { prompt, .. } if prompt == "ab"));
        let flow = bench.event(&mut exchange, done("```\nx\n```"), &mut reply);
        assert_eq!(flow, Flow::Finished);
        assert_eq!((reply.status, reply.content_type), (200, Some(PROTOBUF)));
        let response = GenerateResponse::decode(&*reply.body).unwrap();
        assert_eq!((&*response.code, &*response.text), ("x", "```\nx\n```"));
        assert_eq!(response.finish_reason(), autoglm::FinishReason::Stop);
        assert!(reply.trailers.is_empty());
    }
}

#[test]
fn what_a_message_leaves_open_is_the_model_s_default() {
    for (repeat_penalty, max_tokens) in [(None, None), (Some(1.5), Some(6))] {
        let body = GenerateRequest {
            repeat_penalty,
            max_tokens,
            ..request("x")
        };
        let mut bench = Bench::new();
        let sent = Sent::generate("").header("content-type", PROTOBUF);
        let exchange = bench.start_with_body(&sent, &body.encode_to_vec());
        assert!(exchange.is_some());
        let job = bench.job();
        let expected = repeat_penalty.unwrap_or(DEFAULTS.repeat_penalty);
        assert_eq!(job.sampling.repeat_penalty, expected);
        assert_eq!(job.max_tokens, max_tokens.unwrap_or(DEFAULTS.max_tokens));
    }
}

#[test]
fn the_request_has_its_form_and_the_answer_has_its_own() {
    let mut bench = Bench::new();
    let json = Sent::generate(r#"{"prompt": "x"}"#).header("accept", PROTOBUF);
    let (mut reply, mut exchange) = bench.start(&json);
    assert_eq!(
        bench.event(&mut exchange, done("x"), &mut reply),
        Flow::Finished
    );
    assert_eq!(reply.content_type, Some(PROTOBUF));
    let body = body(&request("x"));
    let sent = Sent::generate(&body).header("content-type", PROTOBUF);
    let (mut reply, mut exchange) = bench.start(&sent.clone().header("accept", "application/json"));
    assert_eq!(
        bench.event(&mut exchange, done("x"), &mut reply),
        Flow::Finished
    );
    assert_eq!(reply.json()["code"], "x");
    let (mut reply, mut exchange) = bench.start(&sent.header("accept", "text/event-stream"));
    assert_eq!(
        bench.event(&mut exchange, done("x"), &mut reply),
        Flow::Finished
    );
    assert_eq!(reply.content_type, Some("text/event-stream"));
}

#[test]
fn fields_choose_members() {
    let mut bench = Bench::new();
    let sent = Sent {
        target: "/api/v1/generate?fields=code,finish_reason",
        ..Sent::generate(r#"{"prompt": "x"}"#)
    };
    let (mut reply, mut exchange) = bench.start(&sent.header("accept", PROTOBUF));
    bench.advance(100);
    assert_eq!(
        bench.event(&mut exchange, done("x"), &mut reply),
        Flow::Finished
    );
    let expected = GenerateResponse {
        code: "x".into(),
        finish_reason: autoglm::FinishReason::Stop.into(),
        ..Default::default()
    };
    assert_eq!(GenerateResponse::decode(&*reply.body), Ok(expected));
}

#[test]
fn errors_are_messages_too() {
    let wrong = body(&GenerateRequest {
        language: "klingon".into(),
        ..request("x")
    });
    let empty = body(&request(""));
    let stream = r#"{"prompt": "x", "stream": true}"#;
    for (content_type, body, status, reason, param) in [
        (
            PROTOBUF,
            wrong.as_str(),
            400,
            "invalid_parameter",
            Some("language"),
        ),
        (PROTOBUF, &empty, 400, "invalid_parameter", Some("prompt")),
        (
            PROTOBUF,
            r#"{"prompt": "x"}"#,
            400,
            "invalid_protobuf",
            None,
        ),
        (
            "application/json",
            stream,
            400,
            "invalid_parameter",
            Some("stream"),
        ),
    ] {
        let mut bench = Bench::new();
        let sent = Sent::generate(body)
            .header("content-type", content_type)
            .header("accept", PROTOBUF);
        let reply = bench.ask(&sent);
        assert_eq!((reply.status, reply.content_type), (status, Some(PROTOBUF)));
        let message = Status::decode(&*reply.body).unwrap();
        let info = ErrorInfo::decode(&*message.details[0].value).unwrap();
        assert_eq!(info.reason, reason);
        assert_eq!(info.metadata.get("param").map(String::as_str), param);
        assert_eq!(reply.field("grpc-status"), None);
    }
    // A refusal by the head alone has the same form.
    let mut bench = Bench::new();
    let stranger = Sent {
        method: Method::Post,
        ..Sent::get("/api/v1/generate")
    };
    let reply = bench.ask(&stranger.header("accept", PROTOBUF));
    assert_eq!((reply.status, reply.content_type), (401, Some(PROTOBUF)));
    assert_eq!(reply.field("www-authenticate"), Some("Bearer"));
}
