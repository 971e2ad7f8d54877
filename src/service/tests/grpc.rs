//! gRPC over the service: requests as an HTTP/2 connection would hand them in.

use std::io::Read;

use super::*;
use crate::engine::{FailReason, Failed, Prompt};
use crate::grpc::frame::{self, Decoder, Encoding};
use crate::grpc::messages::autoglm::{GenerateChunk, GenerateRequest, GenerateResponse};
use crate::grpc::messages::health::health_check_response::ServingStatus;
use crate::grpc::messages::health::{HealthCheckRequest, HealthCheckResponse};
use crate::grpc::messages::reflection::server_reflection_request::MessageRequest;
use crate::grpc::messages::reflection::server_reflection_response::MessageResponse;
use crate::grpc::messages::reflection::{ServerReflectionRequest, ServerReflectionResponse};
use crate::grpc::messages::rpc::{ErrorInfo, RetryInfo, Status};
use crate::grpc::messages::{Message, autoglm};

const GENERATE: &str = "/AutoGLMService/Generate";
const STREAM: &str = "/AutoGLMService/GenerateStream";
const CHECK: &str = "/grpc.health.v1.Health/Check";
const WATCH: &str = "/grpc.health.v1.Health/Watch";
const REFLECTION: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
const REFLECTION_ALPHA: &str = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo";

const FENCED: &str = "Here:\n```python\nprint(1)\nprint(2)\n```\nDone.";
const CODE: &str = "print(1)\nprint(2)";

/// A call of a method with the full key.
#[derive(Clone)]
struct Rpc<'a> {
    path: &'a str,
    version: Version,
    headers: Vec<(&'a str, String)>,
    body: Vec<u8>,
}

impl<'a> Rpc<'a> {
    fn new(path: &'a str, message: &impl Message) -> Rpc<'a> {
        Rpc::of_bytes(path, framed(message, Encoding::Identity))
    }

    fn of_bytes(path: &'a str, body: Vec<u8>) -> Rpc<'a> {
        let authorization = format!("Bearer {}", key(FULL));
        Rpc {
            path,
            version: Version::Http2,
            headers: vec![
                ("content-type", "application/grpc".into()),
                ("authorization", authorization),
            ],
            body,
        }
    }

    fn header(mut self, name: &'a str, value: &str) -> Rpc<'a> {
        self.headers.retain(|(known, _)| *known != name);
        self.headers.push((name, value.to_owned()));
        self
    }

    fn without_key(mut self) -> Rpc<'a> {
        self.headers.retain(|(name, _)| *name != "authorization");
        self
    }

    /// Admits or refuses it.
    fn admit(
        &self,
        bench: &mut Bench,
        reply: &mut Recording,
        then: impl FnOnce(&mut Bench, Admitted, &Request<'_>, &mut Recording) -> Option<Box<Exchange>>,
    ) -> Option<Box<Exchange>> {
        let headers: Vec<_> = self
            .headers
            .iter()
            .map(|(name, value)| httparse::Header {
                name,
                value: value.as_bytes(),
            })
            .collect();
        let request = Request {
            method: Method::Post,
            path: self.path,
            query: None,
            version: self.version,
            headers: &headers,
        };
        match bench.service.admit(&request, &bench.peer, bench.now) {
            Ok(admitted) => then(bench, admitted, &request, reply),
            Err(refusal) => {
                bench.service.refuse(refusal, bench.now, reply);
                None
            }
        }
    }

    fn send(&self, bench: &mut Bench) -> (Recording, Option<Box<Exchange>>) {
        let mut reply = Recording::new();
        let exchange = self.admit(bench, &mut reply, |bench, admitted, request, reply| {
            let now = bench.now;
            if self.body.len() > admitted.body_limit {
                let error = ApiError::new(ErrorCode::BodyTooLarge, "the body is too large");
                bench.service.refuse(admitted.refuse(error), now, reply);
                return None;
            }
            let job_key = JobKey {
                reactor: 0,
                connection: Key::new(0, 0),
                request: bench.requests.fetch_add(1, Ordering::Relaxed),
            };
            let service = &mut bench.service;
            service.handle(admitted, request, &self.body, job_key, now, reply)
        });
        assert_eq!(reply.is_finished, exchange.is_none());
        (reply, exchange)
    }

    fn ask(&self, bench: &mut Bench) -> Recording {
        let (reply, exchange) = self.send(bench);
        assert!(exchange.is_none());
        reply
    }

    /// Opens a stream of pieces.
    fn open(&self, bench: &mut Bench) -> (Recording, Box<Exchange>) {
        let mut reply = Recording::new();
        let exchange = self.admit(bench, &mut reply, |bench, admitted, _, _| {
            assert_eq!(admitted.intake, Intake::Pieces);
            Some(bench.service.open(admitted, bench.now))
        });
        (reply, exchange.expect("it is admitted"))
    }
}

fn framed(message: &impl Message, encoding: Encoding) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::append(&mut bytes, message, encoding);
    bytes
}

/// As small as gzip makes it.
fn packed(bytes: &[u8]) -> Vec<u8> {
    let mut packed = Vec::new();
    let mut encoder = flate2::read::GzEncoder::new(bytes, flate2::Compression::best());
    encoder.read_to_end(&mut packed).unwrap();
    packed
}

fn request(prompt: &str) -> GenerateRequest {
    GenerateRequest {
        prompt: prompt.into(),
        ..Default::default()
    }
}

impl Recording {
    fn messages<M: Message + Default>(&self) -> Vec<M> {
        assert_eq!(self.status, 200);
        assert_eq!(self.content_type, Some("application/grpc"));
        let encoding = match self.field("grpc-encoding") {
            Some("gzip") => Encoding::Gzip,
            _ => Encoding::Identity,
        };
        let mut decoder = Decoder::new(encoding, 1 << 20);
        decoder.handle_data(&self.body);
        let mut messages = Vec::new();
        while let Some(message) = decoder.poll_message().unwrap() {
            messages.push(M::decode(&*message).unwrap());
        }
        decoder.finish().unwrap();
        messages
    }

    fn message<M: Message + Default>(&self) -> M {
        let mut messages = self.messages();
        assert_eq!(messages.len(), 1);
        messages.remove(0)
    }

    /// `grpc-status`, which stands behind the messages or, without any, in the head.
    #[track_caller]
    fn grpc_status(&self) -> u8 {
        assert!(self.is_finished);
        assert_eq!(self.status, 200);
        assert_eq!(self.content_type, Some("application/grpc"));
        self.ending("grpc-status").unwrap().parse().unwrap()
    }

    fn ending(&self, name: &str) -> Option<&str> {
        if self.body.is_empty() {
            assert!(self.trailers.is_empty());
            return self.field(name);
        }
        assert!(self.field(name).is_none());
        let found = self.trailers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    /// The error's reason, after checking that all its parts agree.
    #[track_caller]
    fn reason(&self) -> String {
        let status = self.details();
        assert_eq!(status.code, i32::from(self.grpc_status()));
        assert!(!self.ending("grpc-message").unwrap().is_empty());
        let info = ErrorInfo::decode(&*status.details[0].value).unwrap();
        assert_eq!(info.domain, "autoglmd");
        assert_eq!(
            Some(info.metadata["request_id"].as_str()),
            self.field("x-request-id")
        );
        let known = ErrorCode::ALL
            .iter()
            .find(|code| code.as_str() == info.reason);
        assert_eq!(known.unwrap().grpc_status(), self.grpc_status());
        info.reason
    }

    fn details(&self) -> Status {
        let text = self.ending("grpc-status-details-bin").unwrap();
        Status::decode(&*from_base64(text)).unwrap()
    }
}

fn from_base64(text: &str) -> Vec<u8> {
    const DIGITS: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut bits = 0u32;
    let mut count = 0;
    let mut bytes = Vec::new();
    for digit in text.chars() {
        bits = bits << 6 | DIGITS.find(digit).unwrap() as u32;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    bytes
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
    // text = "y", latency = 1.5; what follows is skipped by who does not know it.
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
    let expected = GenerateResponse {
        text: FENCED.into(),
        latency: 0.25,
        code: CODE.into(),
        id: "r-1".into(),
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
    assert_eq!(reply.message::<GenerateResponse>(), expected);
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
    assert_eq!(
        exchange.next_deadline(),
        job.deadline + limits::ENGINE_GRACE
    );
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
        let limits = bench.service.parts.config.limits.clone();
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
fn a_full_queue_says_when_to_come_back() {
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
    // What is counted is what REST would have answered.
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

fn health(service: &str) -> HealthCheckRequest {
    HealthCheckRequest {
        service: service.into(),
    }
}

fn statuses(reply: &Recording) -> Vec<ServingStatus> {
    let messages = reply.messages::<HealthCheckResponse>();
    messages.iter().map(HealthCheckResponse::status).collect()
}

#[test]
fn health_is_public_and_follows_readiness() {
    let mut bench = Bench::new();
    for (state, expected) in [
        (State::Ready, ServingStatus::Serving),
        (State::Loading { percent: 5 }, ServingStatus::NotServing),
        (State::Failed("no".into()), ServingStatus::NotServing),
    ] {
        *bench.engine.state.lock().unwrap() = state;
        for service in ["", "AutoGLMService"] {
            let reply = Rpc::new(CHECK, &health(service))
                .without_key()
                .ask(&mut bench);
            assert_eq!(statuses(&reply), [expected]);
            assert_eq!(reply.grpc_status(), 0);
        }
    }
    // An empty message is a whole one.
    let empty = Rpc::of_bytes(CHECK, vec![0; 5]).ask(&mut bench);
    assert_eq!(empty.grpc_status(), 0);
    let unknown = Rpc::new(CHECK, &health("other")).ask(&mut bench);
    assert_eq!(
        (unknown.grpc_status(), &*unknown.reason()),
        (5, "not_found")
    );
    assert_eq!(
        Rpc::of_bytes(CHECK, vec![]).ask(&mut bench).grpc_status(),
        13
    );
}

#[test]
fn a_watch_tells_each_change_until_the_drain() {
    let mut bench = Bench::new();
    *bench.engine.state.lock().unwrap() = State::Loading { percent: 0 };
    let (mut reply, exchange) = Rpc::new(WATCH, &health("")).without_key().send(&mut bench);
    let mut exchange = exchange.unwrap();
    assert_eq!(statuses(&reply), [ServingStatus::NotServing]);
    let look = |bench: &mut Bench, exchange: &mut Exchange, reply: &mut Recording| {
        bench.now = exchange.next_deadline();
        let now = bench.now;
        bench.service.handle_deadline(exchange, now, reply)
    };
    assert_eq!(look(&mut bench, &mut exchange, &mut reply), Flow::Open);
    assert_eq!(statuses(&reply).len(), 1, "nothing has changed");
    *bench.engine.state.lock().unwrap() = State::Ready;
    reply.room = false;
    assert_eq!(look(&mut bench, &mut exchange, &mut reply), Flow::Open);
    assert_eq!(statuses(&reply).len(), 1, "there is no room");
    reply.room = true;
    assert_eq!(look(&mut bench, &mut exchange, &mut reply), Flow::Open);
    assert_eq!(statuses(&reply)[1..], [ServingStatus::Serving]);
    bench.service.set_draining();
    assert_eq!(look(&mut bench, &mut exchange, &mut reply), Flow::Finished);
    assert_eq!(statuses(&reply)[2..], [ServingStatus::NotServing]);
    assert_eq!((reply.grpc_status(), &*reply.reason()), (14, "draining"));
}

#[test]
fn a_watch_of_an_unknown_service_waits_for_it_and_keeps_its_deadline() {
    let mut bench = Bench::new();
    let rpc = Rpc::new(WATCH, &health("other")).header("grpc-timeout", "100m");
    let (mut reply, exchange) = rpc.send(&mut bench);
    let mut exchange = exchange.unwrap();
    assert_eq!(statuses(&reply), [ServingStatus::ServiceUnknown]);
    bench.advance(100);
    assert_eq!(exchange.next_deadline(), bench.now);
    let now = bench.now;
    let flow = bench
        .service
        .handle_deadline(&mut exchange, now, &mut reply);
    assert_eq!((flow, reply.grpc_status()), (Flow::Finished, 4));
    // One that is given up is counted.
    let (_, exchange) = Rpc::new(WATCH, &health("")).send(&mut bench);
    let now = bench.now;
    let reason = CancelReason::Disconnect;
    bench.service.abandon(exchange.unwrap(), reason, now);
    let labels = r#"autoglmd_requests_total{route="grpc_health_watch",status="499"}"#;
    assert_eq!(bench.metric(labels).as_deref(), Some("1"));
}

fn question(question: MessageRequest) -> Vec<u8> {
    let asked = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(question),
    };
    framed(&asked, Encoding::Identity)
}

impl Bench {
    fn data(
        &mut self,
        exchange: &mut Exchange,
        data: &[u8],
        is_end: bool,
        reply: &mut Recording,
    ) -> Flow {
        let now = self.now;
        self.service.handle_data(exchange, data, is_end, now, reply)
    }
}

#[test]
fn reflection_answers_each_question_before_the_next() {
    for path in [REFLECTION, REFLECTION_ALPHA] {
        let mut bench = Bench::new();
        let (mut reply, mut exchange) = Rpc::of_bytes(path, vec![]).open(&mut bench);
        let list = question(MessageRequest::ListServices(String::new()));
        let (start, rest) = list.split_at(3);
        assert_eq!(
            bench.data(&mut exchange, start, false, &mut reply),
            Flow::Open
        );
        assert!(!reply.is_started);
        assert_eq!(
            bench.data(&mut exchange, rest, false, &mut reply),
            Flow::Open
        );
        let answer: ServerReflectionResponse = reply.message();
        assert!(matches!(
            answer.message_response,
            Some(MessageResponse::ListServicesResponse(list)) if list.service.len() == 4
        ));
        // Two in one piece, the second of which is the last.
        let symbol = question(MessageRequest::FileContainingSymbol(
            "AutoGLMService".into(),
        ));
        let both = symbol.repeat(2);
        assert_eq!(
            bench.data(&mut exchange, &both, false, &mut reply),
            Flow::Open
        );
        assert_eq!(
            bench.data(&mut exchange, &[], true, &mut reply),
            Flow::Finished
        );
        assert_eq!(reply.messages::<ServerReflectionResponse>().len(), 3);
        assert_eq!(reply.grpc_status(), 0);
    }
}

#[test]
fn reflection_needs_a_key_and_may_end_before_it_begins() {
    let mut bench = Bench::new();
    let stranger = Rpc::of_bytes(REFLECTION, vec![]).without_key();
    assert_eq!(stranger.ask(&mut bench).reason(), "missing_credentials");
    let (mut reply, mut exchange) = Rpc::of_bytes(REFLECTION, vec![]).open(&mut bench);
    assert_eq!(
        bench.data(&mut exchange, &[], true, &mut reply),
        Flow::Finished
    );
    assert_eq!((reply.grpc_status(), reply.body.len()), (0, 0));
    // A whole body is as good as its pieces.
    let list = question(MessageRequest::ListServices(String::new()));
    let reply = Rpc::of_bytes(REFLECTION, list).ask(&mut bench);
    assert_eq!(reply.messages::<ServerReflectionResponse>().len(), 1);
}

#[test]
fn reflection_waits_for_a_client_that_does_not_read() {
    let mut bench = Bench::new();
    let (mut reply, mut exchange) = Rpc::of_bytes(REFLECTION, vec![]).open(&mut bench);
    let list = question(MessageRequest::ListServices(String::new()));
    reply.room = false;
    assert_eq!(
        bench.data(&mut exchange, &list, false, &mut reply),
        Flow::Open
    );
    assert!(!reply.is_started);
    assert_eq!(
        exchange.next_deadline(),
        bench.now + limits::REFLECTION_RETRY
    );
    reply.room = true;
    bench.now = exchange.next_deadline();
    let now = bench.now;
    let flow = bench
        .service
        .handle_deadline(&mut exchange, now, &mut reply);
    assert_eq!(flow, Flow::Open);
    assert_eq!(reply.messages::<ServerReflectionResponse>().len(), 1);
    reply.room = false;
    let many = list.repeat(limits::REFLECTION_PENDING_BYTES_MAX / list.len() + 1);
    assert_eq!(
        bench.data(&mut exchange, &many, false, &mut reply),
        Flow::Finished
    );
    assert_eq!(reply.grpc_status(), 8);
}

#[test]
fn reflection_is_bounded() {
    let list = question(MessageRequest::ListServices(String::new()));
    let many = list.repeat(limits::REFLECTION_QUESTIONS_MAX as usize + 1);
    for (data, is_end, status) in [
        (&many[..], false, 8),
        (&[0, 0, 1, 0, 0], false, 8),
        (&[2], false, 13),
        (&list[..3], true, 13),
        (&[0, 0, 0, 0, 1, 0xff], false, 3),
    ] {
        let mut bench = Bench::new();
        let (mut reply, mut exchange) = Rpc::of_bytes(REFLECTION, vec![]).open(&mut bench);
        let flow = bench.data(&mut exchange, data, is_end, &mut reply);
        assert_eq!((flow, reply.grpc_status()), (Flow::Finished, status));
    }
    // Who falls silent is let go, and so is everybody at a drain.
    for (drains, status) in [(false, 4), (true, 14)] {
        let mut bench = Bench::new();
        let (mut reply, mut exchange) = Rpc::of_bytes(REFLECTION, vec![]).open(&mut bench);
        let started = bench.now;
        if drains {
            bench.service.set_draining();
        }
        let mut flow = Flow::Open;
        while flow == Flow::Open {
            bench.now = exchange.next_deadline();
            let now = bench.now;
            flow = bench
                .service
                .handle_deadline(&mut exchange, now, &mut reply);
        }
        assert_eq!(reply.grpc_status(), status);
        assert!(bench.now <= started + limits::REFLECTION_IDLE);
    }
}
