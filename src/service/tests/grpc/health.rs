//! Health, checked and watched.

use super::*;
use crate::grpc::messages::health::health_check_response::ServingStatus;
use crate::grpc::messages::health::{HealthCheckRequest, HealthCheckResponse};
use crate::http::compress::testing::code_tables;

const CHECK: &str = "/grpc.health.v1.Health/Check";
const WATCH: &str = "/grpc.health.v1.Health/Watch";

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
    // No rate limit refuses a probe.
    let mut bench = Bench::with(|config| config.rate_limit.burst = 1);
    for (state, expected) in [
        (State::Ready, ServingStatus::Serving),
        (State::Loading { percent: 5 }, ServingStatus::NotServing),
        (State::Stalled { seconds: 40 }, ServingStatus::NotServing),
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
    // An empty message is complete.
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

/// Mutation: `inflate_ratio: Some(100)` for `BodyBound::Bytes` in `message_bounds`.
#[test]
fn nothing_is_inflated_for_a_client_without_a_key() {
    let tables = code_tables(b"\x1f\x8b\x08\0\0\0\0\0\0\x03", 20);
    assert!(tables.len() <= limits::HEALTH_REQUEST_BYTES_MAX);
    let mut body = vec![1];
    body.extend_from_slice(&(tables.len() as u32).to_be_bytes());
    body.extend_from_slice(&tables);
    for path in [CHECK, WATCH] {
        let mut bench = Bench::new();
        let rpc = Rpc::of_bytes(path, body.clone()).header("grpc-encoding", "gzip");
        let reply = rpc.without_key().ask(&mut bench);
        assert_eq!(
            (reply.grpc_status(), &*reply.reason()),
            (12, "not_implemented")
        );
        assert_eq!(reply.field("grpc-accept-encoding"), Some("identity"));
        let inflated = r#"autoglmd_inflated_input_bytes_total{coding="gzip"}"#;
        assert_eq!(bench.metric(inflated).as_deref(), Some("0"));
    }
    // A client whose channel compresses only what shrinks is served: a name does not shrink.
    let reply = Rpc::new(CHECK, &health("AutoGLMService"))
        .header("grpc-encoding", "gzip")
        .ask(&mut Bench::new());
    assert_eq!(reply.grpc_status(), 0);
}

#[test]
fn a_health_request_may_have_a_kilobyte() {
    let most = limits::HEALTH_REQUEST_BYTES_MAX;
    let padded = |bytes: usize| {
        let request = health(&"x".repeat(bytes - 3));
        assert_eq!(request.encoded_len(), bytes);
        Rpc::new(CHECK, &request).without_key()
    };
    assert_eq!(padded(most).ask(&mut Bench::new()).grpc_status(), 5);
    let mut bytes = framed(&health(&"x".repeat(most - 2)), Encoding::Identity);
    bytes.truncate(most);
    let reply = Rpc::of_bytes(CHECK, bytes).ask(&mut Bench::new());
    assert_eq!(
        (reply.grpc_status(), &*reply.reason()),
        (8, "body_too_large")
    );
}

#[test]
fn a_watch_reports_each_change_until_the_drain() {
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

/// A watch needs no key, but occupies a place. Mutation: `expires` is `Moment::NEVER`.
#[test]
fn a_watch_ends_after_some_minutes_with_a_status_to_retry() {
    let mut bench = Bench::new();
    let (mut reply, exchange) = Rpc::new(WATCH, &health("")).without_key().send(&mut bench);
    let mut exchange = exchange.unwrap();
    let started = bench.now;
    let mut flow = Flow::Open;
    while flow == Flow::Open {
        bench.now = exchange.next_deadline();
        let now = bench.now;
        flow = bench
            .service
            .handle_deadline(&mut exchange, now, &mut reply);
    }
    assert_eq!(bench.now, started + limits::JOBLESS_STREAM_AGE_MAX);
    assert_eq!(
        (reply.grpc_status(), &*reply.reason()),
        (14, "stream_expired")
    );
    assert_eq!(
        statuses(&reply),
        [ServingStatus::Serving],
        "nothing had changed"
    );
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
    // One that is abandoned is counted.
    let (_, exchange) = Rpc::new(WATCH, &health("")).send(&mut bench);
    let now = bench.now;
    let reason = CancelReason::Disconnect;
    bench.service.abandon(exchange.unwrap(), reason, now);
    let labels = r#"autoglmd_requests_total{route="grpc_health_watch",status="499"}"#;
    assert_eq!(bench.metric(labels).as_deref(), Some("1"));
}
