//! Content codings of responses, streams and bodies.

use super::*;
use crate::http::compress::Coding;
use crate::http::compress::decode::{Bound, Decoder, decode_body};
use crate::http::compress::encode::{Encoder, Step};
use crate::http::compress::testing::code_tables;
use crate::limits::service as limits;

const LANGUAGES: &str = "/api/v1/languages";

fn wide() -> Bound {
    Bound::of(usize::MAX, 1 << 24, u32::MAX)
}

fn coding_of(reply: &Recording) -> Option<Coding> {
    reply.field("content-encoding").and_then(Coding::parse)
}

/// Decodes the body by its own fields.
pub fn plain(reply: &Recording) -> Vec<u8> {
    let Some(coding) = coding_of(reply) else {
        return reply.body.clone();
    };
    let mut out = Vec::new();
    decode_body(coding, &reply.body, wide(), &mut out).unwrap();
    out
}

fn coded(coding: Coding, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut encoder = Encoder::stream(coding).unwrap();
    encoder.encode(body, Step::Finish, &mut out).unwrap();
    out
}

fn number(bench: &Bench, series: &str) -> f64 {
    let text = bench.metric(series);
    text.unwrap_or_else(|| panic!("no {series}"))
        .parse()
        .unwrap()
}

/// Returns a whole response of some kilobytes.
fn long_answer(bench: &mut Bench, sent: &Sent<'_>) -> Recording {
    let (mut reply, mut exchange) = bench.start(sent);
    let text = "def one(self, argument):\n    return self.two(argument)\n".repeat(60);
    let flow = bench.event(&mut exchange, done(&text), &mut reply);
    assert_eq!(flow, Flow::Finished);
    reply
}

#[test]
fn long_answers_are_compressed_as_the_client_asks() {
    let sent = Sent::generate(r#"{"prompt": "x"}"#);
    for (accepted, expected) in [
        ("gzip, deflate", Some(Coding::Gzip)),
        ("gzip, deflate, br, zstd", Some(Coding::Zstd)),
        ("br", Some(Coding::Brotli)),
        ("gzip;q=0.5, br", Some(Coding::Brotli)),
        ("identity", None),
        ("deflate", None),
        ("gzip;q=0", None),
    ] {
        let mut bench = Bench::new();
        let sent = sent.clone().header("accept-encoding", accepted);
        let reply = long_answer(&mut bench, &sent);
        assert_eq!((reply.status, coding_of(&reply)), (200, expected));
        assert_eq!(reply.field("vary"), Some("Accept-Encoding"), "{accepted}");
        let body = plain(&reply);
        let json: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert!(json["code"].as_str().unwrap().len() > 3_000);
        let Some(coding) = expected else { continue };
        assert!(reply.body.len() * 3 < body.len());
        let label = coding.name();
        let series = |name: &str| format!("autoglmd_{name}{{coding=\"{label}\"}}");
        let bytes_in = number(&bench, &series("compressed_input_bytes_total"));
        let bytes_out = number(&bench, &series("compressed_output_bytes_total"));
        assert_eq!(
            (bytes_in, bytes_out),
            (body.len() as f64, reply.body.len() as f64)
        );
        assert!(number(&bench, &series("compression_cpu_seconds_total")) > 0.0);
    }
    let mut bench = Bench::new();
    let reply = long_answer(&mut bench, &sent);
    assert_eq!(
        (coding_of(&reply), reply.field("vary")),
        (None, Some("Accept-Encoding"))
    );
}

#[test]
fn small_answers_and_those_of_a_daemon_that_does_not_compress_are_left_alone() {
    let all = "zstd, gzip, br";
    let mut bench = Bench::new();
    for path in ["/livez", "/readyz", "/api/v1/models"] {
        let reply = bench.ask(&Sent::get(path).key(FULL).header("accept-encoding", all));
        assert_eq!((reply.status, coding_of(&reply)), (200, None), "{path}");
        assert_eq!(reply.field("vary"), None, "{path}");
    }
    let error = bench.ask(&Sent::generate("{}").header("accept-encoding", all));
    assert_eq!(
        (error.error().as_str(), coding_of(&error)),
        ("invalid_parameter", None)
    );
    let options = Sent::get(LANGUAGES).method(Method::Options).key(FULL);
    let reply = bench.ask(&options.header("accept-encoding", all));
    assert_eq!(
        (reply.status, coding_of(&reply), reply.body.len()),
        (204, None, 0)
    );

    let mut bench = Bench::with(|config| config.server.compress = false);
    let sent = Sent::generate(r#"{"prompt": "x"}"#).header("accept-encoding", all);
    let reply = long_answer(&mut bench, &sent);
    assert_eq!((coding_of(&reply), reply.field("vary")), (None, None));
    let refusing = sent.clone().header("accept-encoding", "gzip, identity;q=0");
    assert_eq!(bench.ask(&refusing).error(), "not_acceptable");
    // A reload allows it again, with a higher bound.
    let mut config = config();
    config.server.compress_min = 1 << 20;
    bench.service.apply(Arc::new(config));
    assert_eq!(coding_of(&long_answer(&mut bench, &sent)), None);
    bench.service.apply(Arc::new(Config::default()));
    assert_eq!(
        coding_of(&long_answer(&mut bench, &sent)),
        Some(Coding::Zstd)
    );
}

#[test]
fn a_client_that_refuses_plain_answers_gets_none() {
    let mut bench = Bench::new();
    let sent = Sent::get("/metrics").header("accept-encoding", "br, identity;q=0");
    let sent = sent.key(FULL);
    let reply = bench.ask(&sent);
    assert_eq!(
        (reply.status, coding_of(&reply)),
        (200, Some(Coding::Brotli))
    );
    assert!(plain(&reply).starts_with(b"# HELP"));
    for accepted in ["identity;q=0", "*;q=0", "compress, *;q=0"] {
        let reply = bench.ask(&sent.clone().header("accept-encoding", accepted));
        assert_eq!(reply.error(), "not_acceptable", "{accepted}");
    }
}

/// A fresh encoder takes longer than everything else about a request, and a client without a key
/// could ask for one 500 times in a read. Mutation: the field is read in `begin_call`.
#[test]
fn nothing_is_compressed_for_a_client_without_a_key() {
    let mut bench = Bench::new();
    for sent in [
        Sent::get("/livez"),
        Sent::get("/readyz").method(Method::Post),
        Sent::get("/nothing"),
        Sent::get("/metrics"),
        Sent::get("/api/v1/models").key(UNKNOWN),
    ] {
        let accepted = "br, gzip, zstd, identity;q=0";
        let reply = bench.ask(&sent.header("accept-encoding", accepted));
        assert_eq!(coding_of(&reply), None, "{}", reply.text());
    }
    let made = bench.metric(r#"autoglmd_compressed_input_bytes_total{coding="br"}"#);
    assert_eq!(made.as_deref(), Some("0"));
}

#[test]
fn what_would_grow_goes_out_plain() {
    let mut bench = Bench::with(|config| config.server.compress_min = 16);
    let mut sent = Sent::generate(r#"{"prompt": "x"}"#);
    sent.target = "/api/v1/generate?fields=id";
    let reply = long_answer(&mut bench, &sent.header("accept-encoding", "gzip"));
    assert!(
        reply.body.len() >= 16 && coding_of(&reply).is_none(),
        "{}",
        reply.text()
    );
    assert_eq!(reply.field("vary"), Some("Accept-Encoding"));
    let grew = r#"autoglmd_compression_skipped_total{reason="grew"}"#;
    assert_eq!(number(&bench, grew), 1.0);
}

#[test]
fn head_has_the_fields_that_get_has() {
    let mut bench = Bench::new();
    for path in [LANGUAGES, "/metrics"] {
        let sent = Sent::get(path).key(FULL).header("accept-encoding", "gzip");
        let get = bench.ask(&sent);
        let head = bench.ask(&sent.method(Method::Head));
        for name in ["content-encoding", "vary"] {
            assert!(get.field(name).is_some(), "{path} {name}");
            assert_eq!(get.field(name), head.field(name), "{path} {name}");
        }
    }
}

#[test]
fn constant_answers_are_compressed_once() {
    let mut bench = Bench::new();
    let expected = bench.ask(&Sent::get(LANGUAGES).key(FULL)).body;
    let cpu = r#"autoglmd_compression_cpu_seconds_total{coding="br"}"#;
    let sent = Sent::get(LANGUAGES).key(FULL);
    let sent = sent.header("accept-encoding", "gzip, deflate, br, zstd");
    let mut seconds = Vec::new();
    for _ in 0..3 {
        let reply = bench.ask(&sent);
        assert_eq!(coding_of(&reply), Some(Coding::Brotli), "the smallest form");
        assert_eq!(plain(&reply), expected);
        seconds.push(number(&bench, cpu));
    }
    assert!(seconds[0] > 0.0 && seconds[0] == seconds[2], "{seconds:?}");
    let bytes = r#"autoglmd_compressed_input_bytes_total{coding="br"}"#;
    assert_eq!(number(&bench, bytes), 3.0 * expected.len() as f64);
    let reply = bench.ask(&sent.clone().header("accept-encoding", "gzip"));
    assert_eq!(
        (coding_of(&reply), plain(&reply)),
        (Some(Coding::Gzip), expected)
    );
    let reply = bench.ask(&Sent::get("/").key(FULL).header("accept-encoding", "*"));
    assert_eq!(reply.content_type, Some("text/plain; charset=utf-8"));
    assert!(
        String::from_utf8(plain(&reply))
            .unwrap()
            .contains(LANGUAGES)
    );
}

#[test]
fn each_event_of_a_stream_can_be_read_when_it_was_sent() {
    for (accepted, coding) in [
        ("zstd", Coding::Zstd),
        ("gzip", Coding::Gzip),
        ("br", Coding::Brotli),
    ] {
        let mut bench = Bench::new();
        let sent = Sent::generate(r#"{"prompt": "x", "stream": true}"#);
        let (mut reply, mut exchange) = bench.start(&sent.header("accept-encoding", accepted));
        let mut decoder = Decoder::new(coding, wide()).unwrap();
        let (mut seen, mut decoded) = (Vec::new(), 0);
        let mut read = |reply: &Recording, seen: &mut Vec<u8>| {
            decoder.decode(&reply.body[decoded..], seen).unwrap();
            decoded = reply.body.len();
        };
        bench.now = exchange.next_deadline();
        let now = bench.now;
        let _ = bench
            .service
            .handle_deadline(&mut exchange, now, &mut reply);
        read(&reply, &mut seen);
        assert_eq!(seen, b": ping\n\n");
        assert_eq!(coding_of(&reply), Some(coding));
        assert_eq!(reply.field("vary"), Some("Accept-Encoding"));
        assert_eq!(number(&bench, "autoglmd_compressed_streams"), 1.0);
        for piece in ["```\nalpha\n", "beta\n", "gamma\n"] {
            seen.clear();
            let _ = bench.event(&mut exchange, token(piece), &mut reply);
            read(&reply, &mut seen);
            let event = String::from_utf8(seen.clone()).unwrap();
            assert!(
                event.starts_with("event: delta\n") && event.ends_with("\n\n"),
                "{event}"
            );
        }
        seen.clear();
        let flow = bench.event(&mut exchange, done("delta\n```"), &mut reply);
        assert_eq!((flow, reply.is_finished), (Flow::Finished, true));
        read(&reply, &mut seen);
        assert!(String::from_utf8(seen).unwrap().contains("event: done\n"));
        drop(exchange);
        assert_eq!(number(&bench, "autoglmd_compressed_streams"), 0.0);
        let whole = String::from_utf8(plain(&reply)).unwrap();
        assert!(whole.contains("beta") && whole.ends_with("\n\n"), "{whole}");
    }
}

#[test]
fn a_stream_that_fails_ends_its_coding_too() {
    let mut bench = Bench::new();
    let sent =
        Sent::generate(r#"{"prompt": "x", "stream": true}"#).header("accept-encoding", "gzip");
    let (mut reply, mut exchange) = bench.start(&sent);
    let _ = bench.event(&mut exchange, token("```\none\ntwo\n"), &mut reply);
    let failed = crate::engine::Failed {
        reason: crate::engine::FailReason::Error(ErrorCode::EngineFailed),
        message: "why".into(),
        text: String::new(),
        usage: USAGE,
        timings: TIMINGS,
    };
    let _ = bench.event(&mut exchange, Event::Failed(Box::new(failed)), &mut reply);
    let whole = String::from_utf8(plain(&reply)).unwrap();
    assert!(whole.contains("event: error\n"), "{whole}");
}

#[test]
fn streams_beyond_the_encoders_go_out_plain() {
    let mut bench = Bench::with(|config| config.rate_limit.enabled = false);
    let sent =
        Sent::generate(r#"{"prompt": "x", "stream": true}"#).header("accept-encoding", "zstd");
    let mut flowing = Vec::new();
    for number in 0..=limits::COMPRESSED_STREAMS_MAX {
        let (mut reply, mut exchange) = bench.start(&sent);
        let _ = bench.event(&mut exchange, token("```\none\ntwo\n"), &mut reply);
        let is_last = number == limits::COMPRESSED_STREAMS_MAX;
        assert_eq!(coding_of(&reply).is_none(), is_last, "{number}");
        assert_eq!(reply.field("vary"), Some("Accept-Encoding"));
        flowing.push(exchange);
    }
    let busy = r#"autoglmd_compression_skipped_total{reason="busy"}"#;
    assert_eq!(number(&bench, busy), 1.0);
    flowing.clear();
    let (mut reply, mut exchange) = bench.start(&sent);
    let _ = bench.event(&mut exchange, token("```\none\ntwo\n"), &mut reply);
    assert_eq!(
        coding_of(&reply),
        Some(Coding::Zstd),
        "a place is free again"
    );
}

#[test]
fn bodies_are_inflated() {
    let body = br#"{"prompt": "a compressed wish, a compressed wish, a compressed wish"}"#;
    for coding in Coding::ALL {
        let mut bench = Bench::new();
        let bytes = coded(coding, body);
        let sent = Sent::generate("").header("content-encoding", coding.name());
        let exchange = bench.start_with_body(&sent, &bytes);
        assert!(exchange.is_some(), "{coding:?}");
        let crate::engine::Prompt::Code { prompt, .. } = bench.job().prompt else {
            panic!("a prompt");
        };
        assert!(prompt.starts_with("a compressed wish"));
        let label = coding.name();
        let series = |name: &str| format!("autoglmd_{name}{{coding=\"{label}\"}}");
        let bytes_in = number(&bench, &series("inflated_input_bytes_total"));
        let bytes_out = number(&bench, &series("inflated_output_bytes_total"));
        assert_eq!(
            (bytes_in, bytes_out),
            (bytes.len() as f64, body.len() as f64)
        );
        assert!(number(&bench, &series("inflation_cpu_seconds_total")) > 0.0);
    }
    let mut bench = Bench::new();
    let sent = Sent::generate("").header("content-encoding", "identity");
    assert!(bench.start_with_body(&sent, body).is_some());
}

/// The inner body is bounded by what the outer one inflates to, so with two codings 10 KB could
/// cost the time of a mebibyte. Mutation: `Several` is never returned.
#[test]
fn a_body_that_was_coded_twice_is_refused_unread() {
    let tables = code_tables(b"\x1f\x8b\x08\0\0\0\0\0\0\x03", 31_000);
    let twice = coded(Coding::Gzip, &tables);
    assert!(twice.len() < 20_000, "{}", twice.len());
    for (codings, words) in [
        ("gzip, gzip", "more than one coding"),
        ("br, gzip", "more than one coding"),
        ("compress, gzip", "unknown coding"),
    ] {
        let mut bench = Bench::new();
        let sent = Sent::generate("").header("content-encoding", codings);
        let reply = bench.refused_body(&sent, &twice);
        assert_eq!(reply.error(), "unsupported_media_type");
        assert!(reply.text().contains(words), "{}", reply.text());
        assert_eq!(
            reply.field("accept-encoding"),
            Some("gzip, deflate, br, zstd")
        );
        let series = "autoglmd_inflated_input_bytes_total{coding=\"gzip\"}";
        assert_eq!(number(&bench, series), 0.0);
    }
}

#[test]
fn bodies_that_cannot_be_inflated_are_refused_by_their_limit() {
    let body = [br#"{"prompt": ""#, &[b' '; 200_000][..], br#"x"}"#].concat();
    let zstd_window = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 14 << 3, 0x09, 0, 0, b'x'];
    let gzip = coded(Coding::Gzip, &body);
    for (coding, bytes, code, names, reason) in [
        (
            "gzip",
            &gzip[..],
            "body_too_large",
            "limits.max_inflate_ratio",
            "ratio",
        ),
        ("zstd", &zstd_window, "body_too_large", "8 MiB", "window"),
        (
            "gzip",
            b"{}",
            "invalid_request",
            "not valid gzip",
            "malformed",
        ),
        ("br", &gzip, "invalid_request", "not valid br", "malformed"),
        (
            "gzip",
            &gzip[..20],
            "invalid_request",
            "ends early",
            "truncated",
        ),
        ("deflate", b"", "invalid_request", "ends early", "truncated"),
    ] {
        let mut bench = Bench::new();
        let sent = Sent::generate("").header("content-encoding", coding);
        let reply = bench.refused_body(&sent, bytes);
        assert_eq!(reply.error(), code, "{coding}");
        let error = &reply.json()["error"];
        assert_eq!(error["param"], "content-encoding");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(names), "{message}");
        let series = format!("autoglmd_inflation_refused_total{{reason=\"{reason}\"}}");
        assert_eq!(number(&bench, &series), 1.0, "{series}");
        assert_eq!(reply.field("accept-encoding"), None);
    }
    let mut bench = Bench::with(|config| {
        config.limits.max_body = 100_000;
        config.limits.max_inflate_ratio = 1_000_000;
    });
    let sent = Sent::generate("").header("content-encoding", "gzip");
    let reply = bench.refused_body(&sent, &gzip);
    assert_eq!(reply.error(), "body_too_large");
    assert!(reply.text().contains("limits.max_body"), "{}", reply.text());
    let series = r#"autoglmd_inflation_refused_total{reason="size"}"#;
    assert_eq!(number(&bench, series), 1.0);
}

/// RFC 9110, sections 12.5.3 and 15.5.16: such a 415 lists the codings, and no other one does.
#[test]
fn unknown_codings_are_refused_with_the_list() {
    let mut bench = Bench::new();
    for coding in ["compress", "gzip, gzip, gzip", "gzip;q=1"] {
        let reply = bench.ask(&Sent::generate("x").header("content-encoding", coding));
        assert_eq!(reply.error(), "unsupported_media_type", "{coding}");
        assert_eq!(
            reply.field("accept-encoding"),
            Some("gzip, deflate, br, zstd")
        );
    }
    let reply = bench.ask(&Sent::generate("x").header("content-type", "text/csv"));
    assert_eq!(reply.error(), "unsupported_media_type");
    assert_eq!(reply.field("accept-encoding"), None);
}

#[test]
fn fields_choose_the_members_of_a_streams_end_too() {
    let mut bench = Bench::new();
    let mut sent = Sent::generate(r#"{"prompt": "x", "stream": true}"#);
    sent.target = "/api/v1/generate?fields=finish_reason,usage";
    let (mut reply, mut exchange) = bench.start(&sent);
    let _ = bench.event(&mut exchange, token("```\none\ntwo\n"), &mut reply);
    let _ = bench.event(&mut exchange, done("three\n```"), &mut reply);
    let text = reply.text();
    assert!(text.contains("event: delta\ndata: {\"text\":"), "{text}");
    let (_, end) = text.split_once("event: done\ndata: ").unwrap();
    let end: serde_json::Value = serde_json::from_str(end).unwrap();
    let names: Vec<_> = end.as_object().unwrap().keys().collect();
    assert_eq!(names, ["finish_reason", "usage"]);
}
