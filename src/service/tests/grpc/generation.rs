//! `Generate` and `GenerateStream`.

use std::io::Read;

use super::*;
use crate::engine::{FailReason, Failed, Prompt};
use crate::grpc::messages::autoglm::{self, GenerateChunk, GenerateRequest, GenerateResponse};
use crate::grpc::messages::rpc::RetryInfo;

const GENERATE: &str = "/AutoGLMService/Generate";
const STREAM: &str = "/AutoGLMService/GenerateStream";

const FENCED: &str = "Here:\n```python\nprint(1)\nprint(2)\n```\nDone.";
const CODE: &str = "print(1)\nprint(2)";

fn request(prompt: &str) -> GenerateRequest {
    GenerateRequest {
        prompt: prompt.into(),
        ..Default::default()
    }
}

/// Compresses as small as gzip can.
fn packed(bytes: &[u8]) -> Vec<u8> {
    let mut packed = Vec::new();
    let mut encoder = flate2::read::GzEncoder::new(bytes, flate2::Compression::best());
    encoder.read_to_end(&mut packed).unwrap();
    packed
}

#[test]
fn the_first_two_fields_are_answered_byte_for_byte() {
    let mut bench = Bench::new();
    // prompt = "x", temperature = 0.5, as any client's generated code writes them.
    let body = [0, 0, 0, 0, 8, 0x0a, 1, b'x', 0x15, 0, 0, 0, 0x3f];
    let rpc = Rpc::of_bytes(GENERATE, body.to_vec()).header("x-request-id", "r");
    let (mut reply, exchange) = rpc.send(&mut bench);
    let mut exchange = exchange.unwrap();
    let job = bench.job();
    assert_eq!(job.sampling.temperature, 0.5);
    assert!(matches!(job.prompt, Prompt::Code { prompt, .. } if prompt == "x"));
    assert!(!job.ticket.take_credit(), "an answer in one piece");
    bench.advance(1_500);
    let flow = bench.event(&mut exchange, done("y"), &mut reply);
    assert_eq!(flow, Flow::Finished);
    assert_eq!(reply.body[0], 0);
    let length = u32::from_be_bytes(reply.body[1..5].try_into().unwrap());
    assert_eq!(length as usize, reply.body.len() - 5);
    // text = "y", latency = 1.5; a client skips the fields that it does not know.
    assert_eq!(reply.body[5..13], [0x0a, 1, b'y', 0x15, 0, 0, 0xc0, 0x3f]);
    assert_eq!(reply.trailers, [("grpc-status".into(), "0".into())]);
    let labels = r#"autoglmd_requests_total{route="grpc_generate",status="200"}"#;
    assert_eq!(bench.metric(labels).as_deref(), Some("1"));
}

#[test]
fn a_generation_is_answered_whole() {
    let mut bench = Bench::new();
    let asked = GenerateRequest {
        language: "py".into(),
        top_k: Some(7),
        seed: Some(0),
        stop: vec!["\n\n".into()],
        context: vec![autoglm::ContextFile {
            path: "a.py".into(),
            text: String::new(),
        }],
        ..request("快速排序")
    };
    let rpc = Rpc::new(GENERATE, &asked).header("x-request-id", "r-1");
    let (mut reply, exchange) = rpc.send(&mut bench);
    let job = bench.job();
    assert_eq!((job.sampling.top_k, job.sampling.seed), (7, Some(0)));
    assert_eq!(job.stop, ["\n\n"]);
    bench.advance(250);
    let flow = bench.event(&mut exchange.unwrap(), done(FENCED), &mut reply);
    assert_eq!(flow, Flow::Finished);
    let received = reply.message::<GenerateResponse>();
    let expected = GenerateResponse {
        text: FENCED.into(),
        latency: 0.25,
        code: CODE.into(),
        id: received.id.clone(),
        language: "python".into(),
        model: "tiny".into(),
        finish_reason: autoglm::FinishReason::Stop.into(),
        cached: false,
        usage: Some(autoglm::Usage {
            prompt_tokens: 9,
            completion_tokens: 3,
            total_tokens: 12,
            cached_tokens: 4,
        }),
    };
    assert!(received.id.starts_with("gen_"), "{}", received.id);
    assert_eq!(received, expected);
    assert_eq!(reply.grpc_status(), 0);
    assert_eq!(reply.field("x-request-id"), Some("r-1"));
    assert_eq!(reply.field("grpc-accept-encoding"), Some("identity,gzip"));
    assert_eq!(reply.field("grpc-encoding"), None);
}

#[test]
fn a_stream_sends_pieces_and_then_the_whole() {
    let mut bench = Bench::new();
    let (mut reply, exchange) = Rpc::new(STREAM, &request("x")).send(&mut bench);
    let mut exchange = exchange.unwrap();
    let job = bench.job();
    assert_eq!(exchange.next_deadline(), job.deadline);
    assert_eq!(
        bench.event(&mut exchange, token("Here:\n```python\n"), &mut reply),
        Flow::Open
    );
    assert!(!reply.is_started, "there is nothing to show yet");
    // No ping comes, however long it takes.
    bench.advance(20_000);
    let now = bench.now;
    let flow = bench
        .service
        .handle_deadline(&mut exchange, now, &mut reply);
    assert_eq!((flow, reply.is_started), (Flow::Open, false));
    let flow = bench.event(&mut exchange, token("print(1)\nprint"), &mut reply);
    assert_eq!(flow, Flow::Open);
    assert!(reply.is_started && !reply.is_finished);
    let flow = bench.event(&mut exchange, done("(2)\n```\nDone."), &mut reply);
    assert_eq!(flow, Flow::Finished);
    let chunks: Vec<GenerateChunk> = reply.messages();
    let (last, pieces) = chunks.split_last().unwrap();
    assert!(pieces.len() >= 2);
    assert!(pieces.iter().all(|piece| piece.response.is_none()));
    let code: String = pieces.iter().map(|piece| piece.text.as_str()).collect();
    assert_eq!(code, CODE);
    let response = last.response.as_ref().unwrap();
    assert_eq!((&*last.text, &*response.code), ("", CODE));
    assert_eq!(response.text, FENCED);
    assert_eq!(response.usage.unwrap().total_tokens, 12);
    assert_eq!(reply.grpc_status(), 0);
}

#[test]
fn a_stream_whose_client_does_not_read_gets_no_credit() {
    let mut bench = Bench::new();
    let (mut reply, exchange) = Rpc::new(STREAM, &request("x")).send(&mut bench);
    let mut exchange = exchange.unwrap();
    let ticket = bench.job().ticket;
    while ticket.take_credit() {}
    reply.room = false;
    let flow = bench.event(&mut exchange, token("```\nx\n"), &mut reply);
    assert_eq!(flow, Flow::Open);
    assert!(!ticket.take_credit());
    bench.service.handle_room(&mut exchange);
    assert!(ticket.take_credit());
    let now = bench.now;
    bench
        .service
        .abandon(exchange, CancelReason::Disconnect, now);
    assert!(ticket.cancelled().is_some());
}

#[test]
fn a_stream_that_fails_ends_in_its_status() {
    for is_begun in [false, true] {
        let mut bench = Bench::new();
        let (mut reply, exchange) = Rpc::new(STREAM, &request("x")).send(&mut bench);
        let mut exchange = exchange.unwrap();
        if is_begun {
            let piece = token("```\nx = 1\ny");
            assert_eq!(bench.event(&mut exchange, piece, &mut reply), Flow::Open);
        }
        let failed = Event::Failed(Box::new(Failed {
            reason: FailReason::Error(ErrorCode::EngineFailed),
            message: "100 % é".into(),
            text: String::new(),
            usage: USAGE,
            timings: TIMINGS,
        }));
        let flow = bench.event(&mut exchange, failed, &mut reply);
        assert_eq!(flow, Flow::Finished);
        assert_eq!(reply.reason(), "engine_failed");
        assert_eq!(reply.grpc_status(), 13);
        assert_eq!(reply.ending("grpc-message"), Some("100 %25 %C3%A9"));
        assert_eq!(!reply.body.is_empty(), is_begun);
        let errors = r#"autoglmd_errors_total{code="engine_failed"}"#;
        assert_eq!(bench.metric(errors).as_deref(), Some("1"));
    }
}

#[test]
fn a_deadline_brings_what_was_written() {
    let mut bench = Bench::new();
    let rpc = Rpc::new(GENERATE, &request("x")).header("grpc-timeout", "200m");
    let (mut reply, exchange) = rpc.send(&mut bench);
    let mut exchange = exchange.unwrap();
    assert_eq!(bench.job().deadline, bench.now + Duration::from_millis(200));
    let failed = Event::Failed(Box::new(Failed {
        reason: FailReason::Error(ErrorCode::GenerationTimeout),
        message: "late".into(),
        text: "```\nx = 1\n".into(),
        usage: USAGE,
        timings: TIMINGS,
    }));
    assert_eq!(
        bench.event(&mut exchange, failed, &mut reply),
        Flow::Finished
    );
    assert_eq!(reply.reason(), "generation_timeout");
    assert_eq!(reply.grpc_status(), 4);
    let info = ErrorInfo::decode(&*reply.details().details[0].value).unwrap();
    assert_eq!(info.metadata["partial"], "x = 1");
}

#[test]
fn of_two_deadlines_the_smaller_counts() {
    for (header, field, expected) in [
        (None, 0, 30_000),
        (Some("60S"), 0, 60_000),
        (Some("60S"), 100, 100),
        (Some("50m"), 100, 50),
        (None, 100, 100),
        (Some("99999999H"), 0, 600_000),
    ] {
        let mut bench = Bench::new();
        let limits = bench.service.desk.parts.config.limits.clone();
        let expected = match expected {
            30_000 => limits.default_request_timeout,
            600_000 => limits.max_request_timeout,
            milliseconds => Duration::from_millis(milliseconds),
        };
        let asked = GenerateRequest {
            timeout_ms: field,
            ..request("x")
        };
        let mut rpc = Rpc::new(GENERATE, &asked);
        if let Some(header) = header {
            rpc = rpc.header("grpc-timeout", header);
        }
        let (_, exchange) = rpc.send(&mut bench);
        assert!(exchange.is_some());
        assert_eq!(
            bench.job().deadline,
            bench.now + expected,
            "{header:?} {field}"
        );
    }
}

#[test]
fn gzip_comes_and_goes() {
    let mut bench = Bench::new();
    let asked = request(&"sort ".repeat(1_000));
    let body = framed(&asked, Encoding::Gzip);
    assert_eq!(body[0], 1);
    let rpc = Rpc::of_bytes(GENERATE, body).header("grpc-encoding", "gzip");
    let (mut reply, exchange) = rpc.send(&mut bench);
    let text = "x = 1\n".repeat(1_000);
    let flow = bench.event(&mut exchange.unwrap(), done(&text), &mut reply);
    assert_eq!(flow, Flow::Finished);
    assert_eq!(reply.field("grpc-encoding"), Some("gzip"));
    assert_eq!(reply.body[0], 1);
    assert!(reply.body.len() < text.len() / 2);
    assert_eq!(reply.message::<GenerateResponse>().text, text);
    let counted = |name: &str| {
        let name = format!(r#"autoglmd_{name}_bytes_total{{coding="gzip"}}"#);
        bench.metric(&name).unwrap().parse::<usize>().unwrap()
    };
    assert_eq!(counted("inflated_input"), rpc.body.len());
    assert_eq!(counted("inflated_output"), asked.encoded_len());
    assert!(counted("compressed_input") > text.len());
    assert_eq!(counted("compressed_output"), reply.body.len());
}

#[test]
fn what_is_wrong_with_a_call_is_said_in_its_status() {
    let good = Rpc::new(GENERATE, &request("x"));
    let of_bytes = |bytes: &[u8]| Rpc::of_bytes(GENERATE, bytes.to_vec());
    let of = |asked| Rpc::new(GENERATE, &asked);
    let unauthorized = good.clone().without_key();
    let twice = [good.body.clone(), good.body.clone()].concat();
    let timeout = |timeout_ms| GenerateRequest {
        timeout_ms,
        ..request("x")
    };
    let temperature = |temperature| GenerateRequest {
        temperature,
        ..request("x")
    };
    let bomb = {
        let packed = packed(&[0; 900_000]);
        let length = (packed.len() as u32).to_be_bytes();
        [&[1], &length[..], &packed].concat()
    };
    for (rpc, status, reason) in [
        (unauthorized, 16, "missing_credentials"),
        (
            good.clone().header("authorization", "Bearer x"),
            16,
            "invalid_key",
        ),
        (of_bytes(&[]), 13, "malformed_grpc"),
        (of_bytes(&[0, 0, 0]), 13, "malformed_grpc"),
        (of_bytes(&twice), 13, "malformed_grpc"),
        (of_bytes(&[1, 0, 0, 0, 0]), 13, "malformed_grpc"),
        (of_bytes(&[0, 0xff, 0xff, 0xff, 0xff]), 8, "body_too_large"),
        (of_bytes(&[0, 0, 0, 0, 1, 0xff]), 3, "invalid_protobuf"),
        (of(request("")), 3, "invalid_parameter"),
        (of(request(" ")), 3, "invalid_parameter"),
        (of(temperature(2.5)), 3, "invalid_parameter"),
        (of(temperature(f32::NAN)), 3, "invalid_parameter"),
        (of(timeout(u32::MAX)), 3, "invalid_parameter"),
        (of_bytes(&vec![0; 2 << 20]), 8, "body_too_large"),
        (
            good.clone().header("grpc-timeout", "1"),
            13,
            "malformed_grpc",
        ),
        (
            good.clone().header("grpc-encoding", "br"),
            12,
            "not_implemented",
        ),
        (
            good.clone().header("content-type", "application/grpc+json"),
            3,
            "unsupported_media_type",
        ),
        (
            Rpc::of_bytes("/AutoGLMService/No", vec![]),
            12,
            "not_implemented",
        ),
        (
            Rpc::of_bytes("/no.Such/Service", vec![]),
            12,
            "not_implemented",
        ),
        (
            Rpc::of_bytes(GENERATE, bomb).header("grpc-encoding", "gzip"),
            8,
            "body_too_large",
        ),
    ] {
        let mut bench = Bench::new();
        let reply = rpc.ask(&mut bench);
        assert_eq!(reply.reason(), reason, "{:?}", rpc.headers);
        assert_eq!(reply.grpc_status(), status, "{reason}");
        assert!(reply.body.is_empty());
        let errors = format!(r#"autoglmd_errors_total{{code="{reason}"}}"#);
        assert_eq!(bench.metric(&errors).as_deref(), Some("1"));
    }
}

#[test]
fn a_full_queue_returns_when_to_retry() {
    let mut bench = Bench::new();
    let retry_after = Duration::from_millis(1_500);
    *bench.engine.refusal.lock().unwrap() = Some(Refused::QueueFull { retry_after });
    let reply = Rpc::new(GENERATE, &request("x")).ask(&mut bench);
    assert_eq!((reply.grpc_status(), &*reply.reason()), (14, "queue_full"));
    assert_eq!(reply.field("grpc-retry-pushback-ms"), Some("1500"));
    let details = reply.details().details;
    let names: Vec<_> = details.iter().map(|any| any.type_url.as_str()).collect();
    assert_eq!(
        names,
        [
            "type.googleapis.com/google.rpc.ErrorInfo",
            "type.googleapis.com/google.rpc.RetryInfo"
        ]
    );
    let retry = RetryInfo::decode(&*details[1].value).unwrap();
    assert_eq!(retry.retry_delay.unwrap().nanos, 500_000_000);
    // The counted status is the one that REST would have sent.
    let labels = r#"autoglmd_requests_total{route="grpc_generate",status="503"}"#;
    assert_eq!(bench.metric(labels).as_deref(), Some("1"));
}

#[test]
fn rates_and_places_are_those_of_the_key() {
    let mut bench = Bench::new();
    let narrow = format!("Bearer {}", key(NARROW));
    let asked = GenerateRequest {
        max_tokens: Some(10),
        ..request("x")
    };
    let rpc = Rpc::new(GENERATE, &asked).header("authorization", &narrow);
    let (_, running) = rpc.send(&mut bench);
    assert!(running.is_some());
    assert_eq!(rpc.ask(&mut bench).reason(), "too_many_concurrent");
    for _ in 0..2 {
        rpc.ask(&mut bench);
    }
    let reply = rpc.ask(&mut bench);
    assert_eq!(reply.reason(), "rate_limited");
    assert_eq!(reply.field("x-ratelimit-remaining-requests"), Some("0"));
    let scoped = format!("Bearer {}", key(NO_SCOPES));
    let reply = rpc.header("authorization", &scoped).ask(&mut bench);
    assert_eq!(
        (reply.grpc_status(), &*reply.reason()),
        (7, "insufficient_scope")
    );
}

#[test]
fn what_is_not_grpc_gets_an_answer_of_http() {
    let mut bench = Bench::new();
    let good = Rpc::new(GENERATE, &request("x"));
    let old = Rpc {
        version: Version::Http11,
        ..good.clone()
    };
    let reply = old.ask(&mut bench);
    assert_eq!(reply.error(), "http_version_not_supported");
    assert!(reply.text().contains("HTTP/2"));
    for content_type in ["application/json", "application/grpc-web+proto"] {
        let reply = good
            .clone()
            .header("content-type", content_type)
            .ask(&mut bench);
        assert_eq!(reply.error(), "unsupported_media_type");
    }
    let get = bench.ask(&Sent::get(GENERATE).key(FULL));
    assert_eq!(get.error(), "method_not_allowed");
    assert_eq!(get.field("allow"), Some("POST, OPTIONS"));
}
