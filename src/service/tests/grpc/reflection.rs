//! Reflection, request by request.

use super::*;
use crate::grpc::messages::reflection::server_reflection_request::MessageRequest;
use crate::grpc::messages::reflection::server_reflection_response::MessageResponse;
use crate::grpc::messages::reflection::{ServerReflectionRequest, ServerReflectionResponse};

const REFLECTION: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
const REFLECTION_ALPHA: &str = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo";

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
            Some(MessageResponse::ListServicesResponse(list)) if list.service.len() == 5
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
    // A stream does not last for ever, whether its client keeps asking or is silent; a drain ends
    // it at once.
    for (drains, deadline, status) in [(false, "1H", 14), (false, "2M", 4), (true, "1H", 14)] {
        let mut bench = Bench::new();
        let rpc = Rpc::of_bytes(REFLECTION, vec![]).header("grpc-timeout", deadline);
        let (mut reply, mut exchange) = rpc.open(&mut bench);
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
            if flow == Flow::Open {
                flow = bench.data(&mut exchange, &list, false, &mut reply);
            }
        }
        assert_eq!(reply.grpc_status(), status);
        assert!(bench.now <= started + limits::JOBLESS_STREAM_AGE_MAX);
    }
}
