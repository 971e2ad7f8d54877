//! The routes that respond at once, however busy the engine is: probes, metrics, listings.
//!
//! Must never wait: the engine keeps the numbers that are shown here ready.

use serde::Serialize;

use crate::engine::State;
use crate::engine::language::LANGUAGES;
use crate::http::Request;
use crate::http::negotiate::{MediaType, choose, names};
use crate::limits::service as limits;
use crate::service::call::Call;
use crate::service::copied::Owners;
use crate::service::desk::{Desk, Wire};
use crate::service::request_log::Outcome;
use crate::service::response::buffer::{JSON, PLAIN_TEXT};
use crate::service::response::json::write_json;
use crate::service::response::static_body::StaticBodies;
use crate::service::router::{ROUTES, Surface, Verbs};
use crate::telemetry::exposition::Exposition;

/// Responds with 200 for as long as this line is reached: the loop turns.
pub fn live(desk: &mut Desk, call: &Call, wire: &mut Wire<'_>) {
    desk.buffer.begin(call);
    desk.buffer.body.extend_from_slice(b"ok\n");
    desk.send(call, 200, Some(PLAIN_TEXT), wire);
}

/// Responds whether a generation would be accepted.
pub fn ready(desk: &mut Desk, call: &Call, wire: &mut Wire<'_>) {
    let state = desk.parts.engine.state();
    let silence;
    let readiness = match &state {
        _ if desk.is_draining => Readiness::of("draining"),
        State::Ready => Readiness {
            message: desk.parts.limiter.leases.problem(),
            ..Readiness::of("ready")
        },
        State::Loading { percent } => Readiness {
            percent: Some(*percent),
            ..Readiness::of("loading")
        },
        State::Stalled { seconds } => {
            silence = format!("the engine has made no progress for {seconds} s");
            Readiness {
                message: Some(&silence),
                ..Readiness::of("stalled")
            }
        }
        State::Failed(message) => Readiness {
            message: Some(message),
            ..Readiness::of("failed")
        },
    };
    let problem = desk.parts.requests.health().problem();
    let readiness = Readiness {
        store: problem.as_deref(),
        ..readiness
    };
    let is_ready = readiness.state == "ready";
    let buffer = &mut desk.buffer;
    buffer.begin(call);
    buffer.fields.push("cache-control", "no-store");
    if !is_ready {
        let seconds = limits::LOADING_RETRY_AFTER.as_secs();
        buffer.fields.push_number("retry-after", seconds);
    }
    write_json(&mut buffer.body, &readiness);
    let status = if is_ready { 200 } else { 503 };
    desk.send(call, status, Some(JSON), wire);
}

/// Responds with the metrics, in the text format that the scraper asks for. They are never cached,
/// so `Vary` need not name `Accept`.
pub fn metrics(desk: &mut Desk, call: &Call, request: &Request<'_>, wire: &mut Wire<'_>) {
    let metrics = &desk.parts.metrics;
    desk.copied.update(&Owners {
        engine: &*desk.parts.engine,
        buffered: &desk.parts.buffered,
        workers: &desk.parts.workers,
        responses: &desk.parts.responses,
        requests: &desk.parts.requests,
    });
    let exposition = exposition(request);
    let text = metrics.expose(exposition);
    desk.buffer.begin(call);
    desk.buffer.fields.push("cache-control", "no-store");
    desk.buffer.body.extend_from_slice(text.as_bytes());
    desk.send(call, 200, Some(exposition.content_type()), wire);
}

/// Responds with the loaded model, with the OpenAI API's members and a few more.
pub fn models(desk: &mut Desk, call: &Call, wire: &mut Wire<'_>) {
    let model = desk.model().cloned();
    let data = model.iter().map(|model| ModelObject {
        id: &model.id,
        object: "model",
        created: model.created,
        owned_by: "autoglmd",
        engine: model.engine,
        description: &model.description,
        context_length: model.context_length,
    });
    let list = List {
        object: "list",
        data: data.collect(),
    };
    desk.buffer.begin(call);
    write_json(&mut desk.buffer.body, &list);
    desk.send(call, 200, Some(JSON), wire);
}

/// Responds with the languages that programs can be written in.
pub fn languages(desk: &mut Desk, bodies: &mut StaticBodies, call: &Call, wire: &mut Wire<'_>) {
    send_static(desk, bodies, call, (JSON, write_languages), wire);
}

/// Responds with the list of routes, for people.
pub fn index(desk: &mut Desk, bodies: &mut StaticBodies, call: &Call, wire: &mut Wire<'_>) {
    send_static(desk, bodies, call, (PLAIN_TEXT, write_index), wire);
}

/// Responds with the methods that a path allows (RFC 9110, section 9.3.7).
pub fn options(desk: &mut Desk, call: &Call, wire: &mut Wire<'_>) {
    desk.buffer.begin(call);
    let allow = call.row.map_or(ALLOWED_SOMEWHERE, |row| row.verbs.allow());
    desk.buffer.fields.push("allow", allow);
    desk.send(call, 204, None, wire);
}

/// Sends a response that never changes, and closes the request.
fn send_static(
    desk: &mut Desk,
    bodies: &mut StaticBodies,
    call: &Call,
    (content_type, make): (&'static str, fn(&mut Vec<u8>)),
    wire: &mut Wire<'_>,
) {
    desk.buffer.begin(call);
    let Some(body) = bodies.of(call.route(), make) else {
        make(&mut desk.buffer.body);
        return desk.send(call, 200, Some(content_type), wire);
    };
    let bytes = desk.buffer.send_static(content_type, body, wire.sink);
    let outcome = Outcome::Completed { status: 200, bytes };
    desk.log.close(call, outcome, None, wire.now);
}

/// Chooses OpenMetrics for scrapers that name it and rank it at least as high as plain text. All
/// others get 0.0.4, which every scraper can read, even those whose `Accept` allows neither.
fn exposition(request: &Request<'_>) -> Exposition {
    let offers = if names(request, MediaType::OpenMetrics) {
        [MediaType::OpenMetrics, MediaType::PlainText]
    } else {
        [MediaType::PlainText, MediaType::OpenMetrics]
    };
    match choose(request, &offers) {
        Some(MediaType::OpenMetrics) => Exposition::OpenMetrics,
        _ => Exposition::Classic,
    }
}

/// The methods that some path allows: the response to `OPTIONS *`.
const ALLOWED_SOMEWHERE: &str = "GET, HEAD, POST, DELETE, OPTIONS";

fn write_languages(out: &mut Vec<u8>) {
    let data = LANGUAGES.iter().map(|language| LanguageObject {
        name: language.name,
        title: language.title,
        aliases: language.aliases,
        extension: language.extension,
    });
    let list = List {
        object: "list",
        data: data.collect(),
    };
    write_json(out, &list);
}

fn write_index(out: &mut Vec<u8>) {
    let version = env!("CARGO_PKG_VERSION");
    out.extend_from_slice(format!("autoglmd {version}\n\n").as_bytes());
    for row in ROUTES {
        let method = match (row.surface, row.verbs) {
            (Surface::Grpc, _) => "gRPC",
            (_, Verbs::Read | Verbs::Follow | Verbs::ReadPost | Verbs::ReadDelete) => "GET",
            (_, Verbs::Post) => "POST",
        };
        let line = format!("{method:<5} {:<24} {}\n", row.path, row.summary);
        out.extend_from_slice(line.as_bytes());
    }
}

#[derive(Serialize)]
struct Readiness<'a> {
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    percent: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'a str>,
    /// The store's problem. Requests are served all the same, so the state does not change.
    #[serde(skip_serializing_if = "Option::is_none")]
    store: Option<&'a str>,
}

impl Readiness<'_> {
    const fn of(state: &'static str) -> Readiness<'static> {
        Readiness {
            state,
            percent: None,
            message: None,
            store: None,
        }
    }
}

#[derive(Serialize)]
struct List<T> {
    object: &'static str,
    data: Vec<T>,
}

#[derive(Serialize)]
struct ModelObject<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    engine: &'static str,
    description: &'a str,
    context_length: u32,
}

#[derive(Serialize)]
struct LanguageObject {
    name: &'static str,
    title: &'static str,
    aliases: &'static [&'static str],
    extension: &'static str,
}
