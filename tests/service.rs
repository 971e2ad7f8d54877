//! Requests and their effects from the client's side, with the echo engine: errors, responses, ids
//! and numbers.

mod common;

use serde_json::{Value, json};

use common::http2::frame::{flag, headers};
use common::http2::hpack::fields;
use common::http2::{Peer, Target};
use common::{Daemon, Options, request};

fn shared() -> &'static Daemon {
    Daemon::shared(Options::echo)
}

// ---- the format of /metrics ------------------------------------------------------------------

/// The `Accept` of Prometheus 2.50.
const PROMETHEUS: &str = "application/openmetrics-text;version=1.0.0,\
    application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";

/// Mutations: `exposition` offers OpenMetrics first to every client; it checks only the name.
#[test]
fn metrics_are_in_the_format_that_is_asked_for() {
    let daemon = shared();
    for (accept, is_open) in [
        (None, false),
        (Some("*/*"), false),
        (Some("text/plain;version=0.0.4"), false),
        (
            Some("text/plain, application/openmetrics-text;q=0.9"),
            false,
        ),
        (Some("application/openmetrics-text;q=0, */*"), false),
        (Some("image/png"), false),
        (Some("text/plain, application/openmetrics-text"), true),
        (Some("application/openmetrics-text;version=1.0.0"), true),
        (Some(PROMETHEUS), true),
    ] {
        let fields: Vec<_> = accept
            .map(|accept| ("accept", accept))
            .into_iter()
            .collect();
        let head = daemon.request_with("GET", "/metrics", &fields, b"");
        let answer = daemon.exchange(&head).expect(200);
        let content_type = match is_open {
            true => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            false => "text/plain; version=0.0.4; charset=utf-8",
        };
        assert_eq!(
            answer.field("content-type"),
            Some(content_type),
            "{accept:?}"
        );
        let text = answer.text();
        assert_eq!(text.ends_with("# EOF\n"), is_open, "{accept:?}");
        let counter = match is_open {
            true => "# TYPE autoglmd_wakeups counter\nautoglmd_wakeups_total ",
            false => "# TYPE autoglmd_wakeups_total counter\nautoglmd_wakeups_total ",
        };
        assert!(text.contains(counter), "{accept:?}: {text}");
        let has_info = text.lines().any(|line| line.ends_with(" info"));
        assert_eq!(has_info, is_open, "{accept:?}");
    }
}

// ---- errors ----------------------------------------------------------------------------------

/// A body, and the status, code and field of its refusal.
const REFUSED: &[(&str, u16, &str, Option<&str>)] = &[
    ("", 400, "invalid_json", None),
    ("{", 400, "invalid_json", None),
    (r#"{"prompt": "a",}"#, 400, "invalid_json", None),
    ("\"a\"", 400, "invalid_request", None),
    (r#"{}"#, 400, "invalid_parameter", Some("prompt")),
    (r#"{"prompt": 1}"#, 400, "invalid_parameter", Some("prompt")),
    (
        r#"{"prompt": ""}"#,
        400,
        "invalid_parameter",
        Some("prompt"),
    ),
    (
        r#"{"prompt": "a", "language": "klingon"}"#,
        400,
        "invalid_parameter",
        Some("language"),
    ),
    (
        r#"{"prompt": "a", "timeout": 0}"#,
        400,
        "invalid_parameter",
        Some("timeout"),
    ),
    (
        r#"{"prompt": "a", "timeout": "1s"}"#,
        400,
        "invalid_parameter",
        Some("timeout"),
    ),
    (
        r#"{"prompt": "a", "temperature": 3}"#,
        400,
        "invalid_parameter",
        Some("temperature"),
    ),
    (
        r#"{"prompt": "a", "top_p": 0}"#,
        400,
        "invalid_parameter",
        Some("top_p"),
    ),
    (
        r#"{"prompt": "a", "max_tokens": 0}"#,
        400,
        "invalid_parameter",
        Some("max_tokens"),
    ),
    (
        r#"{"prompt": "a", "stream": "yes"}"#,
        400,
        "invalid_parameter",
        Some("stream"),
    ),
    (
        r#"{"prompt": "a", "promt": "b"}"#,
        400,
        "invalid_parameter",
        Some("promt"),
    ),
    (
        r#"{"prompt": "a", "model": "gpt-9"}"#,
        404,
        "model_not_found",
        Some("model"),
    ),
];

#[test]
fn errors_have_one_shape_and_name_what_is_wrong() {
    let daemon = shared();
    for &(body, status, code, param) in REFUSED {
        let answer = daemon.exchange(&daemon.request_with(
            "POST",
            "/api/v1/generate",
            &[
                ("content-type", "application/json"),
                ("x-request-id", "the-id"),
            ],
            body.as_bytes(),
        ));
        let answer = answer.expect_error(status, code);
        let error = &answer.json()["error"];
        assert!(
            error["message"]
                .as_str()
                .is_some_and(|text| text.len() > 10),
            "{answer}"
        );
        assert!(error["type"].is_string(), "{answer}");
        assert_eq!(error["param"].as_str(), param, "{body}: {answer}");
        assert_eq!(error["request_id"], "the-id");
        assert!(
            answer
                .field("content-type")
                .is_some_and(|is| is.starts_with("application/json"))
        );
    }
}

#[test]
fn method_media_type_and_path_are_refused_by_their_own_words() {
    let daemon = shared();
    let answer = daemon.exchange(&daemon.request("GET", "/api/v1/generate", b""));
    let answer = answer.expect_error(405, "method_not_allowed");
    assert!(
        answer
            .field("allow")
            .is_some_and(|methods| methods.contains("POST")),
        "{answer}"
    );
    daemon
        .get("/api/v1/generation")
        .expect_error(404, "not_found");

    let authorization = daemon.authorization();
    let body = br#"{"prompt": "hello"}"#;
    let post = |name: &str, value: &str| {
        let fields = [("authorization", authorization.as_str()), (name, value)];
        daemon.exchange(&request("POST", "/api/v1/generate", &fields, body))
    };
    post("content-type", "text/csv").expect_error(415, "unsupported_media_type");
    post("content-encoding", "compress").expect_error(415, "unsupported_media_type");
    post("accept", "image/png").expect_error(406, "not_acceptable");
    post("content-type", "application/json; charset=utf-8").expect(200);
    post("accept", "text/html, */*;q=0.1").expect(200);
}

/// Requests whose query has something that no route would read as it is meant: the parameter that
/// the error names, and a word of its message.
const MISUNDERSTOOD: &[(&str, &str, &str, &str)] = &[
    (
        "GET",
        "/api/v1/generations?statu=failed",
        "statu",
        "status, since, cursor, limit",
    ),
    ("GET", "/api/v1/jobs?state=queued", "state", "status"),
    (
        "GET",
        "/api/v1/jobs?limit=5&limit=6",
        "limit",
        "given twice",
    ),
    ("GET", "/api/v1/jobs?status=", "status", "has no value"),
    ("POST", "/api/v1/jobs?fields=id", "fields", "no parameters"),
    ("POST", "/api/v1/generate?field=id", "field", "fields"),
    (
        "GET",
        "/api/v1/admin/cache?key=key_1",
        "key",
        "no parameters",
    ),
    ("DELETE", "/api/v1/admin/cache?kye=key_1", "kye", "key"),
    ("DELETE", "/api/v1/admin/cache?key=a b", "key", "not the id"),
    ("DELETE", "/api/v1/admin/cache?key=ci", "key", "not the id"),
    ("GET", "/api/v1/models?all", "all", "no parameters"),
    ("GET", "/api/v1/languages?q=r", "q", "no parameters"),
    ("GET", "/metrics?name[]=up", "name[]", "no parameters"),
    ("GET", "/readyz?verbose", "verbose", "no parameters"),
    ("GET", "/?page=2", "page", "no parameters"),
];

/// Mutations: `check_fields` without `query::check`; `known` with a parameter too many.
#[test]
fn a_query_that_would_be_ignored_is_refused_over_both_protocols() {
    let daemon = shared();
    let authorization = daemon.authorization();
    let mut peer = Peer::open(&Target::of(daemon)).expect("HTTP/2");
    for (index, (method, path, param, word)) in MISUNDERSTOOD.iter().enumerate() {
        let path = &path.replace(' ', "%20");
        let answer = daemon.exchange(&daemon.request(method, path, b""));
        let stream = 2 * index as u32 + 1;
        let block = fields(&[
            (":method", *method),
            (":scheme", "http"),
            (":path", path),
            (":authority", "localhost"),
            ("authorization", &authorization),
        ]);
        peer.send(headers(stream, &block, flag::END_STREAM));
        let over_http2 = peer.answer_of(stream, 400).expect(path);
        let over_http1 = answer.expect_error(400, "invalid_parameter").json();
        for error in [
            over_http1,
            serde_json::from_slice(&over_http2.body).unwrap(),
        ] {
            let error = &error["error"];
            assert_eq!(error["param"], *param, "{method} {path}: {error}");
            let message = error["message"].as_str().unwrap_or_default();
            assert!(message.contains(word), "{method} {path}: {message}");
        }
    }
    // A browser asks by the whole URL of the request to come.
    let options = daemon.request("OPTIONS", "/api/v1/jobs?statu=1", b"");
    daemon.exchange(&options).expect(204);
}

/// A method of gRPC has no query at all.
#[test]
fn a_query_of_a_grpc_method_is_refused_in_its_trailers() {
    let daemon = shared();
    let mut peer = Peer::open(&Target::of(daemon)).expect("HTTP/2");
    let block = fields(&[
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/AutoGLMService/Generate?fields=code"),
        (":authority", "localhost"),
        ("authorization", &daemon.authorization()),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ]);
    peer.send(headers(1, &block, flag::END_STREAM));
    let answer = peer.answer_of(1, 200).expect("trailers");
    assert_eq!(answer.field("grpc-status"), Some("3"), "{answer:?}");
    let message = answer.field("grpc-message").unwrap_or_default();
    assert!(message.contains("`fields`"), "{message}");
}

#[test]
fn deeply_nested_body_is_refused_without_harm() {
    let daemon = shared();
    let nested = format!(r#"{{"prompt": {}"#, "[".repeat(100_000));
    let answer = daemon.exchange(&daemon.request("POST", "/api/v1/generate", nested.as_bytes()));
    assert_eq!(answer.status(), 400, "{answer}");
    daemon.generate(&json!({"prompt": "hello"})).expect(200);
}

#[test]
fn unknown_language_is_answered_with_the_list() {
    let daemon = shared();
    let answer = daemon.generate(&json!({"prompt": "a", "language": "klingon"}));
    let message = answer.json()["error"]["message"].to_string();
    for known in ["python", "rust", "javascript"] {
        assert!(message.contains(known), "{message}");
    }
}

// ---- responses -------------------------------------------------------------------------------

#[test]
fn response_has_the_documented_members_and_names_the_echo_engine() {
    let daemon = shared();
    let answer = daemon
        .generate(&json!({"prompt": "hello", "language": "python"}))
        .expect(200);
    let body = answer.json();
    assert!(body["id"].is_string() && body["code"].is_string() && body["text"].is_string());
    assert_eq!(body["language"], "python");
    assert_eq!(body["cached"], false);
    assert!(
        body["model"]
            .as_str()
            .is_some_and(|model| model.contains("echo")),
        "{answer}"
    );
    assert!(
        matches!(body["finish_reason"].as_str(), Some("stop" | "length")),
        "{answer}"
    );
    let usage = &body["usage"];
    let tokens = |name: &str| {
        usage[name]
            .as_u64()
            .unwrap_or_else(|| panic!("{name}: {answer}"))
    };
    assert_eq!(
        tokens("total_tokens"),
        tokens("prompt_tokens") + tokens("completion_tokens")
    );
    assert!(body["latency_ms"].is_number());

    let only = daemon.request(
        "POST",
        "/api/v1/generate?fields=code,usage",
        br#"{"prompt": "a"}"#,
    );
    let body = daemon.exchange(&only).expect(200).json();
    let Value::Object(members) = body else {
        panic!("an object, not {body}")
    };
    assert_eq!(members.keys().collect::<Vec<_>>(), ["code", "usage"]);
}

#[test]
fn accept_asks_for_a_stream_as_the_body_does() {
    let daemon = shared();
    let body = br#"{"prompt": "hello"}"#;
    let fields = [("accept", "text/event-stream")];
    let mut connection = daemon.connect();
    connection.send(&daemon.request_with("POST", "/api/v1/generate", &fields, body));
    assert_eq!(connection.head().expect("a head").status, 200);
    let events = connection.events().all();
    assert_eq!(events.last().map(|event| event.name.as_str()), Some("done"));
}

#[test]
fn request_id_is_honoured_or_made_and_never_breaks_the_answer() {
    let daemon = shared();
    let with_id = |id: &str| {
        daemon
            .exchange(&request("GET", "/livez", &[("x-request-id", id)], b""))
            .expect(200)
    };
    let own = with_id("client-7.A_b");
    assert_eq!(own.field("x-request-id"), Some("client-7.A_b"));
    let made: Vec<String> = (0..3)
        .map(|_| {
            let answer = daemon.exchange(&request("GET", "/livez", &[], b""));
            answer
                .field("x-request-id")
                .expect("an id is made")
                .to_owned()
        })
        .collect();
    assert!(made[0] != made[1] && made[1] != made[2], "{made:?}");
    let endless = "x".repeat(2_000);
    let answer = with_id(&endless);
    assert_ne!(
        answer.field("x-request-id"),
        Some(endless.as_str()),
        "an id has a bound"
    );
}

#[test]
fn server_timing_names_the_phases() {
    let daemon = shared();
    let answer = daemon.generate(&json!({"prompt": "hello"})).expect(200);
    let timing = answer
        .field("server-timing")
        .expect("a server-timing field");
    for phase in ["auth", "queue", "prefill", "decode"] {
        let found = timing
            .split(',')
            .any(|part| part.trim().starts_with(&format!("{phase};dur=")));
        assert!(found, "{phase} is not in {timing:?}");
    }
}

#[test]
fn languages_and_models_are_listed() {
    let daemon = shared();
    let languages = daemon
        .get("/api/v1/languages")
        .expect(200)
        .json()
        .to_string();
    for language in ["python", "javascript", "rust", "go", "java"] {
        assert!(
            languages.contains(&format!("\"{language}\"")),
            "{languages}"
        );
    }
    let models = daemon.get("/api/v1/models").expect(200).json().to_string();
    assert!(models.contains("echo"), "{models}");
}

#[test]
fn alias_of_a_language_is_answered_by_its_name() {
    let daemon = shared();
    for (alias, name) in [
        ("py", "python"),
        ("JS", "javascript"),
        ("C++", "cpp"),
        ("golang", "go"),
    ] {
        let answer = daemon
            .generate(&json!({"prompt": "hello", "language": alias}))
            .expect(200);
        assert_eq!(answer.json()["language"], name);
    }
}

// ---- numbers ---------------------------------------------------------------------------------

#[test]
fn metrics_have_the_fixed_names_and_count() {
    let daemon = Daemon::echo();
    for _ in 0..3 {
        daemon.generate(&json!({"prompt": "hello"})).expect(200);
    }
    daemon.generate(&json!({"prompt": 1})).expect(400);
    daemon.exchange(&request("GET", "/nothing", &[], b""));
    let metrics = daemon.metrics();
    let generated = |status| {
        metrics.sum(
            "autoglmd_requests_total",
            &[("route", "generate"), ("status", status)],
        )
    };
    assert_eq!((generated("200"), generated("400")), (3.0, 1.0));
    assert_eq!(
        metrics.sum("autoglmd_errors_total", &[("code", "invalid_parameter")]),
        1.0
    );
    assert!(metrics.value("autoglmd_connections") >= 1.0);
    let durations = metrics.sum(
        "autoglmd_request_duration_seconds_count",
        &[("route", "generate")],
    );
    assert_eq!(durations, 4.0);
    for name in [
        "autoglmd_time_to_first_token_seconds_count",
        "autoglmd_engine_sequences_running",
        "autoglmd_engine_queue_depth",
        "autoglmd_tokens_total",
        "autoglmd_cancelled_total",
        "autoglmd_log_dropped_total",
        "autoglmd_loop_turn_seconds_count",
        "autoglmd_wakeups_total",
    ] {
        assert!(metrics.has(name), "/metrics lacks {name}");
    }
}

#[test]
fn labels_of_metrics_do_not_grow_with_what_clients_send() {
    let daemon = Daemon::echo();
    let lines = |daemon: &Daemon| daemon.get("/metrics").expect(200).text().lines().count();
    let warm_up = |daemon: &Daemon, name: &str| {
        daemon.exchange(&request("GET", &format!("/{name}"), &[], b""));
        daemon.exchange(&daemon.request(name, "/livez", b""));
    };
    warm_up(&daemon, "FIRST");
    lines(&daemon);
    let before = lines(&daemon);
    for number in 0..50 {
        warm_up(&daemon, &format!("OTHER{number}"));
    }
    assert_eq!(lines(&daemon), before);
}

#[test]
fn request_leaves_one_access_line_with_its_id_and_without_its_key() {
    let daemon = Daemon::echo();
    let bytes = daemon.request_with(
        "POST",
        "/api/v1/generate",
        &[("x-request-id", "find-me-again")],
        br#"{"prompt": "a secret wish"}"#,
    );
    daemon.exchange(&bytes).expect(200);
    let line = daemon.wait_for_log(0, "find-me-again");
    assert!(
        line.contains("200") && line.contains("/api/v1/generate"),
        "{line}"
    );
    let log = daemon.log_lines().join("\n");
    assert!(
        !log.contains("a secret wish"),
        "prompts do not belong into the log"
    );
}
