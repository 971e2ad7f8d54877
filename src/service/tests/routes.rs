//! The routes that are served at once.

use super::*;
use crate::config::TrustedProxies;

#[test]
fn live_is_always_and_ready_is_not() {
    let mut bench = Bench::new();
    *bench.engine.refusal.lock().unwrap() = Some(Refused::QueueFull {
        retry_after: Duration::from_secs(1),
    });
    for path in ["/livez", "/healthz"] {
        let reply = bench.ask(&Sent::get(path));
        assert_eq!((reply.status, reply.text()), (200, "ok\n"), "{path}");
    }
    let reply = bench.ask(&Sent::get("/readyz"));
    assert_eq!(reply.status, 200);
    assert_eq!(reply.json(), serde_json::json!({"state": "ready"}));

    *bench.engine.state.lock().unwrap() = State::Loading { percent: 40 };
    let reply = bench.ask(&Sent::get("/readyz"));
    assert_eq!(reply.status, 503);
    assert_eq!(
        reply.json(),
        serde_json::json!({"state": "loading", "percent": 40})
    );
    assert_eq!(reply.field("retry-after"), Some("2"));

    *bench.engine.state.lock().unwrap() = State::Stalled { seconds: 31 };
    let reply = bench.ask(&Sent::get("/readyz"));
    assert_eq!(
        (reply.status, &reply.json()["state"]),
        (503, &"stalled".into())
    );
    assert!(reply.text().contains("no progress for 31 s"));

    *bench.engine.state.lock().unwrap() = State::Failed("no such file".into());
    let reply = bench.ask(&Sent::get("/readyz"));
    assert_eq!(reply.status, 503);
    assert_eq!(reply.json()["message"], "no such file");

    *bench.engine.state.lock().unwrap() = State::Ready;
    bench.service.set_draining();
    let reply = bench.ask(&Sent::get("/readyz"));
    assert_eq!(reply.status, 503);
    assert_eq!(reply.json()["state"], "draining");
    assert_eq!(bench.ask(&Sent::get("/livez")).status, 200);
}

#[test]
fn models_are_listed_once_they_are_known() {
    let mut bench = Bench::new();
    *bench.engine.state.lock().unwrap() = State::Loading { percent: 0 };
    let sent = Sent::get("/api/v1/models").key(FULL);
    assert_eq!(bench.ask(&sent).json()["data"], serde_json::json!([]));
    *bench.engine.state.lock().unwrap() = State::Ready;
    let json = bench.ask(&sent).json();
    assert_eq!(json["object"], "list");
    assert_eq!(json["data"][0]["id"], "tiny");
    assert_eq!(json["data"][0]["object"], "model");
    assert_eq!(json["data"][0]["context_length"], 2_048);
}

#[test]
fn languages_and_the_index_are_listed() {
    let mut bench = Bench::new();
    let json = bench.ask(&Sent::get("/api/v1/languages").key(FULL)).json();
    let python = &json["data"][0];
    assert_eq!(
        (python["name"].as_str(), python["extension"].as_str()),
        (Some("python"), Some("py"))
    );
    let reply = bench.ask(&Sent::get("/").key(FULL));
    for row in router::ROUTES {
        assert!(reply.text().contains(row.path), "{}", row.path);
    }
}

#[test]
fn metrics_need_their_scope_or_loopback_and_permission() {
    let mut bench = Bench::new();
    let sent = Sent::get("/metrics");
    assert_eq!(
        bench.ask(&sent.clone().key(NO_SCOPES)).error(),
        "insufficient_scope"
    );
    let reply = bench.ask(&sent.clone().key(FULL));
    assert_eq!(reply.status, 200);
    assert!(
        reply
            .text()
            .contains("autoglmd_tokens_total{kind=\"generated\"} 4711\n")
    );
    let local = PeerAddress::Ip("::ffff:127.0.0.1".parse().unwrap());
    for (public, address, status) in [
        (true, local, 200),
        (true, PeerAddress::Unix, 200),
        (true, bench.peer.address, 401),
        (false, local, 401),
    ] {
        let mut bench = Bench::with(|config| config.metrics.public_on_loopback = public);
        bench.peer = Peer::new(address);
        assert_eq!(bench.ask(&sent).status, status, "{public} {address:?}");
    }
    // A proxy on this machine: its requests come from elsewhere, or it claims so.
    for (proxies, field, client, status) in [
        (&[][..], "x-forwarded-for", "192.0.2.7", 401),
        (&[], "x-forwarded-for", "127.0.0.1", 401),
        (&[], "forwarded", "for=127.0.0.1", 401),
        (&[], "via", "1.1 proxy", 401),
        (&["127.0.0.1"], "x-forwarded-for", "192.0.2.7", 401),
        (&["127.0.0.1"], "x-forwarded-for", "unknown", 401),
        (&["127.0.0.1"], "x-forwarded-for", "::1", 200),
    ] {
        let mut bench = Bench::with(|config| {
            config.metrics.public_on_loopback = true;
            config.server.trusted_proxies = TrustedProxies::parse(proxies).expect("networks");
        });
        bench.peer = Peer::new(local);
        let sent = sent.clone().header(field, client);
        assert_eq!(
            bench.ask(&sent).status,
            status,
            "{proxies:?} {field} {client}"
        );
    }
}

#[test]
fn ids_and_traces_go_through() {
    let mut bench = Bench::new();
    let reply = bench.ask(&Sent::get("/livez").header("X-Request-Id", "abc-1"));
    assert_eq!(reply.field("x-request-id"), Some("abc-1"));
    assert_eq!(reply.field("traceparent"), None);
    let made = bench.ask(&Sent::get("/livez").header("x-request-id", "a b"));
    assert_eq!(made.field("x-request-id").unwrap().len(), 36);
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let reply = bench.ask(&Sent::get("/livez").header("traceparent", parent));
    let continued = reply.field("traceparent").unwrap();
    assert_eq!(continued[..36], parent[..36]);
    assert_ne!(continued[36..52], parent[36..52]);
}

#[test]
fn without_keys_everybody_is_served_at_the_rate_of_an_address() {
    let mut bench = Bench::with(|config| {
        config.auth.enabled = false;
        config.rate_limit.requests_per_minute = 60;
        config.rate_limit.burst = 2;
    });
    let sent = Sent::get("/api/v1/models");
    assert_eq!(bench.ask(&sent).status, 200);
    assert_eq!(bench.ask(&sent.clone().key(UNKNOWN)).status, 200);
    assert_eq!(bench.ask(&sent).error(), "rate_limited");
    bench.advance(1_000);
    let (_, exchange) = bench.send(&Sent {
        headers: Vec::new(),
        ..Sent::generate(r#"{"prompt": "x"}"#)
    });
    assert!(exchange.is_some());
    assert_eq!((bench.job().tenant, bench.job().weight), (0, 1));
}

#[test]
fn a_reload_is_felt_by_the_next_request() {
    let mut bench = Bench::new();
    let mut config = config();
    config.rate_limit.requests_per_minute = 7;
    bench.service.apply(Arc::new(config));
    let reply = bench.ask(&Sent::get("/api/v1/models").key(FULL));
    assert_eq!(reply.field("x-ratelimit-limit-requests"), Some("7"));
}
