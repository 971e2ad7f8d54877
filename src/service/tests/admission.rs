//! The reasons to refuse a head.

use std::net::Ipv4Addr;

use super::*;
use crate::config::{Hosts, TrustedProxies};
use crate::keys::ChangedKey;

#[test]
fn without_a_key_only_the_listed_routes_answer() {
    for row in router::ROUTES {
        let method = match row.verbs {
            Verbs::Read | Verbs::Follow | Verbs::ReadPost | Verbs::ReadDelete => Method::Get,
            Verbs::Post => Method::Post,
        };
        let mut bench = Bench::new();
        let reply = bench.ask(&Sent::get(row.path).method(method));
        if row.access == Access::Public {
            // gRPC does not work over HTTP/1.1.
            let expected = if row.surface == Surface::Grpc {
                505
            } else {
                200
            };
            assert_eq!(reply.status, expected, "{}", row.path);
        } else {
            assert_eq!(reply.error(), "missing_credentials", "{}", row.path);
            assert_eq!(reply.field("www-authenticate"), Some("Bearer"));
        }
        for wrong in [Method::Put, Method::Delete, Method::Patch, Method::Other] {
            let reply = bench.ask(&Sent::get(row.path).method(wrong));
            assert!(
                [401, 405, 501].contains(&reply.status),
                "{} {wrong:?}",
                row.path
            );
        }
    }
}

#[test]
fn each_kind_of_bad_key_has_its_own_error() {
    let mut bench = Bench::new();
    let reply = bench.ask(&Sent::get("/api/v1/models").key(UNKNOWN));
    assert_eq!(reply.error(), "invalid_key");
    assert!(
        reply
            .field("www-authenticate")
            .unwrap()
            .contains("invalid_token")
    );
    assert!(!reply.text().contains(&key(UNKNOWN)));
    let reply = bench.ask(&Sent::get("/api/v1/models").key(REVOKED));
    assert_eq!(reply.error(), "invalid_key");
    let reply = bench.ask(&Sent::get("/api/v1/models").key(EXPIRED));
    assert_eq!(reply.error(), "expired_key");
    assert_eq!(
        (reply.status, reply.field("www-authenticate")),
        (401, Some("Bearer error=\"invalid_token\""))
    );
    let reply = bench.ask(&Sent::generate("{}").key(NO_SCOPES));
    assert_eq!(reply.error(), "insufficient_scope");
    assert!(reply.text().contains("generate"));
    // Any valid key may read these.
    let reply = bench.ask(&Sent::get("/api/v1/models").key(NO_SCOPES));
    assert_eq!(reply.status, 200);
    let reply = bench.ask(&Sent::get("/api/v1/models").header("x-api-key", &key(FULL)));
    assert_eq!(reply.status, 200);
}

#[test]
fn keys_that_change_take_effect_at_once() {
    let mut bench = Bench::new();
    bench
        .service
        .set_keys(Arc::new(KeyRing::new(vec![record(UNKNOWN)])));
    let reply = bench.ask(&Sent::get("/api/v1/models").key(FULL));
    assert_eq!(reply.error(), "invalid_key");
    assert_eq!(
        bench.ask(&Sent::get("/api/v1/models").key(UNKNOWN)).status,
        200
    );
}

#[test]
fn unknown_paths_and_methods() {
    let mut bench = Bench::new();
    for path in ["/nothing", "/livez/", "//", "/api/v1/generate/", "*"] {
        assert_eq!(bench.ask(&Sent::get(path)).error(), "not_found", "{path}");
        assert_eq!(bench.ask(&Sent::get(path).key(FULL)).error(), "not_found");
    }
    let reply = bench.ask(&Sent::get("/api/v1/generate").key(FULL));
    assert_eq!(reply.error(), "method_not_allowed");
    assert_eq!(reply.field("allow"), Some("POST, OPTIONS"));
    let reply = bench.ask(&Sent::get("/livez").method(Method::Post));
    assert_eq!(reply.error(), "method_not_allowed");
    assert_eq!(reply.field("allow"), Some("GET, HEAD, OPTIONS"));
    let reply = bench.ask(&Sent::get("/livez").method(Method::Other));
    assert_eq!(reply.error(), "not_implemented");
    let reply = bench.ask(&Sent::get("/api/v1/generate").method(Method::Options));
    assert_eq!((reply.status, reply.text()), (204, ""));
    assert_eq!(reply.field("allow"), Some("POST, OPTIONS"));
    assert_eq!(
        bench
            .ask(&Sent::get("/nothing").method(Method::Options))
            .error(),
        "not_found"
    );
}

const LOOPBACK: PeerAddress = PeerAddress::Ip(IpAddr::V4(Ipv4Addr::LOCALHOST));

/// A request that may have come from a web page, or not: its target's authority, its fields, and
/// whether it is served without a key if `server.hosts` has `gpu.example`.
type Page = (&'static str, &'static [(&'static str, &'static str)], bool);

const PAGES: &[Page] = &[
    ("", &[("host", "localhost:8080")], true),
    ("", &[("host", "GPU.example:80")], true),
    (
        "",
        &[("host", "127.0.0.1"), ("origin", "http://localhost:3000")],
        true,
    ),
    (
        "",
        &[("host", "localhost"), ("origin", "https://gpu.example")],
        true,
    ),
    ("http://localhost:1", &[("host", "evil.example")], true),
    ("", &[("host", "evil.example")], false),
    ("http://evil.example", &[("host", "localhost")], false),
    (
        "",
        &[("host", "localhost"), ("origin", "http://evil.example")],
        false,
    ),
    (
        "",
        &[("host", "localhost"), ("origin", "http://\u{e9}.example")],
        false,
    ),
    ("", &[("host", "localhost"), ("origin", "null")], false),
    (
        "",
        &[("host", "localhost"), ("sec-fetch-site", "cross-site")],
        false,
    ),
];

fn page(
    path: &str,
    authority: &str,
    fields: &[(&'static str, &str)],
) -> (String, Vec<(&'static str, String)>) {
    let owned = |&(name, value): &(&'static str, &str)| (name, value.to_owned());
    (
        format!("{authority}{path}"),
        fields.iter().map(owned).collect(),
    )
}

/// Mutations: `check_origin` is not called; `check` reads the `Host` field instead of
/// `Request::host`; an origin that is not ASCII passes.
#[test]
fn without_keys_no_web_page_is_served() {
    for (authority, fields, is_served) in PAGES {
        for (path, connected, is_checked) in [
            ("/api/v1/models", LOOPBACK, true),
            ("/metrics", LOOPBACK, true),
            ("/livez", LOOPBACK, false),
            ("/api/v1/models", PeerAddress::Unix, false),
        ] {
            let mut bench = Bench::with(|config| {
                config.auth.enabled = false;
                config.server.hosts = Hosts::parse(&["gpu.example"]).expect("a name");
            });
            bench.peer = Peer::new(connected);
            let (target, headers) = page(path, authority, fields);
            let sent = Sent {
                headers,
                ..Sent::get(&target)
            };
            let status = if *is_served || !is_checked { 200 } else { 403 };
            assert_eq!(
                bench.ask(&sent).status,
                status,
                "{target} {connected:?} {fields:?}"
            );
        }
    }
}

/// Mutations: `check_origin` checks only `auth.enabled`; a key does not help; a reload of
/// `server.hosts` has no effect.
#[test]
fn open_metrics_are_for_no_web_page_either() {
    let config_with = |hosts: &[&str]| {
        let mut config = config();
        config.metrics.public_on_loopback = true;
        config.server.hosts = Hosts::parse(hosts).expect("names");
        Arc::new(config)
    };
    let mut bench = Bench::new();
    bench.peer = Peer::new(LOOPBACK);
    bench.service.apply(config_with(&["gpu.example"]));
    for (authority, fields, is_served) in PAGES {
        let (target, headers) = page("/metrics", authority, fields);
        let sent = Sent {
            headers,
            ..Sent::get(&target)
        };
        let reply = bench.ask(&sent);
        match is_served {
            true => assert_eq!(reply.status, 200, "{target} {fields:?}"),
            false => assert_eq!(reply.error(), "forbidden_origin", "{target} {fields:?}"),
        }
        // A request with a key does not come from a page.
        assert_eq!(
            bench.ask(&sent.clone().key(FULL)).status,
            200,
            "{target} {fields:?}"
        );
        assert_eq!(
            bench.ask(&sent.key(UNKNOWN)).status,
            if *is_served { 200 } else { 401 }
        );
    }
    let sent = Sent::get("/metrics").header("host", "gpu.example");
    assert_eq!(bench.ask(&sent).status, 200);
    bench.service.apply(config_with(&[]));
    assert_eq!(bench.ask(&sent).status, 403);
}

#[test]
fn the_server_as_a_whole_has_options() {
    let mut bench = Bench::new();
    let reply = bench.ask(&Sent::get("*").method(Method::Options));
    assert_eq!((reply.status, reply.text()), (204, ""));
    assert_eq!(
        reply.field("allow"),
        Some("GET, HEAD, POST, DELETE, OPTIONS")
    );
    let reply = bench.ask(&Sent::get("*").method(Method::Get));
    assert_eq!(reply.error(), "not_found");
}

#[test]
fn requests_without_a_key_use_up_their_address_and_not_that_of_valid_keys() {
    let mut bench = Bench::with(|config| config.rate_limit.burst = 2);
    let stranger = Sent::get("/api/v1/models");
    assert_eq!(bench.ask(&stranger).error(), "missing_credentials");
    assert_eq!(bench.ask(&Sent::get("/nothing")).error(), "not_found");
    for sent in [stranger.clone(), Sent::get("/nothing")] {
        let reply = bench.ask(&sent);
        assert_eq!(reply.error(), "rate_limited");
        // 120 per minute: one in half a second.
        assert_eq!(reply.field("retry-after"), Some("1"));
        assert_eq!(reply.field("retry-after-ms"), Some("500"));
        assert_eq!(reply.json()["error"]["retry_after_ms"], 500);
    }
    assert_eq!(bench.ask(&Sent::get("/livez")).status, 200);
    let reply = bench.ask(&Sent::get("/api/v1/models").key(FULL));
    assert_eq!(reply.status, 200);
    // A neighbour with another address, and a peer without one.
    for address in [
        PeerAddress::Ip(IpAddr::from([192, 0, 2, 2])),
        PeerAddress::Unix,
    ] {
        let before = std::mem::replace(&mut bench.peer, Peer::new(address));
        assert_eq!(bench.ask(&stranger).error(), "missing_credentials");
        bench.peer = before;
    }
    bench.advance(500);
    assert_eq!(bench.ask(&stranger).error(), "missing_credentials");
}

/// Mutations that this test catches: `sender` returning the peer; the field trusted from any peer.
#[test]
fn clients_of_a_trusted_proxy_are_limited_one_by_one() {
    let behind = |proxies: &str| {
        let mut bench = Bench::with(|config| {
            config.rate_limit.burst = 1;
            config.server.trusted_proxies = TrustedProxies::parse(&[proxies]).expect("a network");
        });
        bench.peer = Peer::new(PeerAddress::Ip(IpAddr::from([10, 0, 0, 1])));
        bench
    };
    let from = |client: &str| Sent::get("/api/v1/models").header("x-forwarded-for", client);
    let mut bench = behind("10.0.0.0/8");
    for client in ["192.0.2.7", "192.0.2.8", "6.6.6.6, 192.0.2.9"] {
        let error = bench.ask(&from(client)).error();
        assert_eq!(error, "missing_credentials", "{client}");
        assert_eq!(bench.ask(&from(client)).error(), "rate_limited", "{client}");
    }
    // Addresses that the client itself has written change nothing.
    let reply = bench.ask(&from("6.6.6.7, 192.0.2.9"));
    assert_eq!(reply.error(), "rate_limited");
    // An untrusted peer's field is ignored, however often it changes.
    let mut bench = behind("172.16.0.0/12");
    assert_eq!(bench.ask(&from("192.0.2.7")).error(), "missing_credentials");
    assert_eq!(bench.ask(&from("192.0.2.8")).error(), "rate_limited");
}

#[test]
fn a_keys_rate_shows_in_every_answer() {
    let mut bench = Bench::new();
    let sent = Sent::get("/api/v1/models").key(NARROW);
    for remaining in ["3", "2", "1", "0"] {
        let reply = bench.ask(&sent);
        assert_eq!(reply.status, 200);
        assert_eq!(reply.field("x-ratelimit-limit-requests"), Some("4"));
        assert_eq!(
            reply.field("x-ratelimit-remaining-requests"),
            Some(remaining)
        );
    }
    let reply = bench.ask(&sent);
    assert_eq!(reply.error(), "rate_limited");
    assert_eq!(reply.field("x-ratelimit-remaining-requests"), Some("0"));
    assert_eq!(reply.field("x-ratelimit-reset-requests"), Some("1m0s"));
    assert_eq!(reply.field("retry-after"), Some("15"));
    bench.advance(15_000);
    assert_eq!(bench.ask(&sent).status, 200);
    // If limits are off, nothing is bounded and no field reports a bound.
    let mut bench = Bench::with(|config| config.rate_limit.enabled = false);
    for _ in 0..8 {
        let reply = bench.ask(&sent);
        assert_eq!(reply.status, 200);
        assert_eq!(reply.field("x-ratelimit-limit-requests"), None);
    }
}

#[test]
fn media_types_that_are_not_taken_are_named() {
    let mut bench = Bench::new();
    let body = r#"{"prompt": "x"}"#;
    let form = "application/x-www-form-urlencoded";
    let reply = bench.ask(&Sent::generate(body).header("content-type", form));
    assert_eq!(reply.error(), "unsupported_media_type");
    assert!(reply.text().contains("-H 'content-type: application/json'"));
    let reply = bench.ask(&Sent::generate(body).header("content-encoding", "compress"));
    assert_eq!(reply.error(), "unsupported_media_type");
    let reply = bench.ask(&Sent::generate(body).header("accept", "image/png"));
    assert_eq!(reply.error(), "not_acceptable");
    let json = "application/json; charset=utf-8";
    let _ = bench.start(&Sent::generate(body).header("content-type", json));
    let reply = bench.ask(&Sent::get("/livez").header("content-length", "3"));
    assert_eq!(reply.error(), "invalid_request");
    let reply = bench.ask(&Sent::get("/livez").header("content-length", "0"));
    assert_eq!(reply.status, 200);
}

#[test]
fn the_body_limit_is_the_routes() {
    let bench = &mut Bench::new();
    let headers = [httparse::Header {
        name: "authorization",
        value: &format!("Bearer {}", key(FULL)).into_bytes(),
    }];
    for (method, path, expected) in [
        (Method::Post, "/api/v1/generate", config().limits.max_body),
        (Method::Options, "/api/v1/generate", 0),
        (Method::Get, "/livez", 0),
    ] {
        let request = Request {
            method,
            authority: None,
            path,
            query: None,
            version: Version::Http11,
            headers: &headers,
        };
        let admitted = bench
            .service
            .admit(&request, &bench.peer, bench.now)
            .unwrap();
        assert_eq!(admitted.body_limit, expected, "{method:?} {path}");
    }
}

#[test]
fn a_request_that_goes_wrong_after_its_head_keeps_its_id() {
    let mut bench = Bench::new();
    let headers = [httparse::Header {
        name: "x-request-id",
        value: b"mine-1",
    }];
    let request = Request {
        method: Method::Get,
        authority: None,
        path: "/livez",
        query: None,
        version: Version::Http11,
        headers: &headers,
    };
    let admitted = bench
        .service
        .admit(&request, &bench.peer, bench.now)
        .unwrap();
    let error = ApiError::new(ErrorCode::BodyTooLarge, "too large");
    let mut reply = Recording::new();
    bench
        .service
        .refuse(admitted.refuse(error), bench.now, &mut reply);
    assert_eq!(reply.error(), "invalid_request");
    assert!(reply.text().contains("this request must not have a body"));
    assert_eq!(reply.field("x-request-id"), Some("mine-1"));
    let labels = r#"autoglmd_requests_total{route="livez",status="400"}"#;
    assert_eq!(bench.metric(labels).as_deref(), Some("1"));

    let mut reply = Recording::new();
    let error = ApiError::new(ErrorCode::MalformedHttp, "no HTTP");
    let refusal = Refusal::of_peer(error, &bench.peer);
    bench.service.refuse(refusal, bench.now, &mut reply);
    assert_eq!(reply.error(), "malformed_http");
    let labels = r#"autoglmd_requests_total{route="unread",status="400"}"#;
    assert_eq!(bench.metric(labels).as_deref(), Some("1"));
    let labels = r#"autoglmd_errors_total{code="malformed_http"}"#;
    assert_eq!(bench.metric(labels).as_deref(), Some("1"));

    let admitted = bench
        .service
        .admit(&request, &bench.peer, bench.now)
        .unwrap();
    let reason = CancelReason::Disconnect;
    bench.service.abandon_admitted(admitted, reason, bench.now);
    let labels = r#"autoglmd_requests_total{route="livez",status="499"}"#;
    assert_eq!(bench.metric(labels).as_deref(), Some("1"));
}

/// Mutation that this test catches: the request is not taken from the key's bucket.
#[test]
fn an_unknown_path_takes_from_the_rate_of_its_key() {
    let mut bench = Bench::new();
    let sent = Sent::get("/nothing").key(NARROW);
    for _ in 0..4 {
        assert_eq!(bench.ask(&sent).error(), "not_found");
    }
    let reply = bench.ask(&sent);
    assert_eq!(reply.error(), "rate_limited");
    assert_eq!(reply.field("x-ratelimit-remaining-requests"), Some("0"));
    let known = Sent::get("/api/v1/models").key(NARROW);
    assert_eq!(bench.ask(&known).error(), "rate_limited");
    // Neither another key nor a client without a key behind the same address is affected.
    let other = Sent::get("/nothing").key(FULL);
    assert_eq!(bench.ask(&other).error(), "not_found");
    assert_eq!(bench.ask(&Sent::get("/nothing")).error(), "not_found");
}

/// Mutations that this test catches: `OPTIONS` of a known path, or of `*`, is not counted; a key is
/// charged to its address.
#[test]
fn options_take_from_the_rate_of_their_key_or_address() {
    for path in ["*", "/api/v1/generate", "/AutoGLMService/Generate"] {
        let mut bench = Bench::with(|config| config.rate_limit.burst = 2);
        let sent = Sent::get(path).method(Method::Options);
        for asked in [&sent, &sent.clone().key(UNKNOWN)] {
            assert_eq!(bench.ask(asked).status, 204, "{path}");
        }
        for asked in [&sent, &sent.clone().key(UNKNOWN)] {
            assert_eq!(bench.ask(asked).status, 429, "{path}");
        }
        let with_key = sent.clone().key(FULL);
        for expected in [204, 204, 429] {
            assert_eq!(bench.ask(&with_key).status, expected, "{path}");
        }
        let probe = Sent::get("/readyz").method(Method::Options);
        assert_eq!(bench.ask(&probe).status, 204);
    }
}

/// A load balancer takes a server out of service when its probe is refused, and its address may be
/// that of all clients. Mutations that this test catches: probes are counted; other requests of
/// their routes are not.
#[test]
fn probes_are_never_refused_and_other_requests_of_their_routes_are_counted() {
    let mut bench = Bench::with(|config| config.rate_limit.burst = 2);
    let probe = |bench: &mut Bench| {
        for path in ["/livez", "/readyz", "/healthz"] {
            for method in [Method::Get, Method::Head, Method::Options] {
                let reply = bench.ask(&Sent::get(path).method(method));
                assert!([200, 204].contains(&reply.status), "{path} {method:?}");
            }
        }
    };
    probe(&mut bench);
    let post = Sent::get("/livez").method(Method::Post);
    assert_eq!(bench.ask(&post).error(), "method_not_allowed");
    let with_body = Sent::get("/livez").header("content-length", "3");
    assert_eq!(bench.ask(&with_body).error(), "invalid_request");
    assert_eq!(bench.ask(&post).error(), "rate_limited");
    assert_eq!(bench.ask(&with_body).error(), "rate_limited");
    let post = post.key(FULL);
    assert_eq!(bench.ask(&post).error(), "method_not_allowed");
    probe(&mut bench);
}

/// Reactor 0 has read both rings and serves the new key before reactor 1 reads the first. Mutation
/// that this test catches: `KeyRing::changed` makes an account for every change.
#[test]
fn a_reactor_with_a_late_ring_leaves_the_accounts_of_the_others() {
    let new = KeyRecord {
        requests_per_minute: Some(4),
        ..record(UNKNOWN)
    };
    let first = Arc::new(KeyRing::new(vec![record(FULL)]));
    let third = KeyRecord {
        weight: 2,
        ..new.clone()
    };
    let change = |record: KeyRecord| ChangedKey {
        id: record.id.clone(),
        records: vec![record],
    };
    let second = Arc::new(first.changed([change(new)]).unwrap());
    let third = Arc::new(second.changed([change(third)]).unwrap());
    let mut bench = Bench::new();
    let mut late = Service::new(bench.service.desk.parts.clone());
    let sent = Sent::get("/api/v1/models").key(UNKNOWN);
    for ring in [&first, &second] {
        bench.service.set_keys(Arc::clone(ring));
    }
    for _ in 0..4 {
        assert_eq!(bench.ask(&sent).status, 200);
    }
    for ring in [&first, &second, &third] {
        late.set_keys(Arc::clone(ring));
    }
    std::mem::swap(&mut bench.service, &mut late);
    assert_eq!(bench.ask(&sent).status, 429);
}
