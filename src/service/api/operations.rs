//! The routes that are served at once, however busy the engine is.
//!
//! Nothing here waits: the engine keeps the numbers ready.

use serde::Serialize;

use crate::core::Moment;
use crate::engine::State;
use crate::engine::prompt::LANGUAGES;
use crate::http::negotiate::{MediaType, choose, names};
use crate::http::{Request, ResponseSink};
use crate::limits::service as limits;
use crate::telemetry::exposition::Exposition;

use crate::service::Service;
use crate::service::admission::router::{ROUTES, Verbs};
use crate::service::call::Call;
use crate::service::request_log::Outcome;
use crate::service::response::buffer::{JSON, PLAIN_TEXT};
use crate::service::response::json::write_json;

impl Service {
    /// Responds with 200 for as long as this line is reached: the loop turns.
    pub(in crate::service) fn live(
        &mut self,
        call: &Call,
        now: Moment,
        reply: &mut dyn ResponseSink,
    ) {
        self.buffer.begin(call);
        self.buffer.body.extend_from_slice(b"ok\n");
        self.send(call, 200, Some(PLAIN_TEXT), now, reply);
    }

    /// Responds whether a generation would be accepted.
    pub(in crate::service) fn ready(
        &mut self,
        call: &Call,
        now: Moment,
        reply: &mut dyn ResponseSink,
    ) {
        let state = self.parts.engine.state();
        let silence;
        let readiness = match &state {
            _ if self.is_draining => Readiness::of("draining"),
            State::Ready => Readiness::of("ready"),
            State::Loading { percent } => Readiness {
                percent: Some(*percent),
                ..Readiness::of("loading")
            },
            State::Stalled { seconds } => {
                silence = format!("the engine has made no step for {seconds} s");
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
        let is_ready = readiness.state == "ready";
        self.buffer.begin(call);
        self.buffer.fields.push("cache-control", "no-store");
        if !is_ready {
            let seconds = limits::LOADING_RETRY_AFTER.as_secs();
            self.buffer.fields.push_number("retry-after", seconds);
        }
        write_json(&mut self.buffer.body, &readiness);
        let status = if is_ready { 200 } else { 503 };
        self.send(call, status, Some(JSON), now, reply);
    }

    /// Responds with the numbers, in the text format that the scraper asks for. They are never
    /// cached, so `Vary` need not name `Accept`.
    pub(in crate::service) fn show_metrics(
        &mut self,
        call: &Call,
        request: &Request<'_>,
        now: Moment,
        reply: &mut dyn ResponseSink,
    ) {
        let numbers = self.log.metrics();
        numbers.update_engine(&self.parts.engine.gauges());
        let exposition = exposition(request);
        let text = numbers.expose(exposition);
        self.buffer.begin(call);
        self.buffer.fields.push("cache-control", "no-store");
        self.buffer.body.extend_from_slice(text.as_bytes());
        self.send(call, 200, Some(exposition.content_type()), now, reply);
    }

    /// Responds with the model, in the OpenAI API's form and with further properties.
    pub(in crate::service) fn models(
        &mut self,
        call: &Call,
        now: Moment,
        reply: &mut dyn ResponseSink,
    ) {
        let model = self.model().cloned();
        let data = model.iter().map(|model| ModelObject {
            id: &model.id,
            object: "model",
            created: model.created,
            owned_by: "autoglmd",
            engine: model.engine,
            description: &model.description,
            context_length: model.context_length,
        });
        let data = data.collect();
        self.buffer.begin(call);
        write_json(
            &mut self.buffer.body,
            &List {
                object: "list",
                data,
            },
        );
        self.send(call, 200, Some(JSON), now, reply);
    }

    pub(in crate::service) fn languages(
        &mut self,
        call: &Call,
        now: Moment,
        reply: &mut dyn ResponseSink,
    ) {
        let make = |out: &mut Vec<u8>| {
            let data = LANGUAGES.iter().map(|language| LanguageObject {
                name: language.name,
                title: language.title,
                aliases: language.aliases,
                extension: language.extension,
            });
            let data = data.collect();
            let object = "list";
            write_json(out, &List { object, data });
        };
        self.send_constant(call, JSON, make, now, reply);
    }

    /// Responds with the list of routes, for people.
    pub(in crate::service) fn index(
        &mut self,
        call: &Call,
        now: Moment,
        reply: &mut dyn ResponseSink,
    ) {
        self.send_constant(call, PLAIN_TEXT, write_index, now, reply);
    }

    /// Responds with the methods that a path allows (RFC 9110, section 9.3.7).
    pub(in crate::service) fn options(
        &mut self,
        call: &Call,
        now: Moment,
        reply: &mut dyn ResponseSink,
    ) {
        self.buffer.begin(call);
        let allow = call.row.map_or(ALLOWED_SOMEWHERE, |row| row.verbs.allow());
        self.buffer.fields.push("allow", allow);
        self.send(call, 204, None, now, reply);
    }

    /// Sends a response that never changes, and closes the request.
    fn send_constant(
        &mut self,
        call: &Call,
        content_type: &'static str,
        make: fn(&mut Vec<u8>),
        now: Moment,
        reply: &mut dyn ResponseSink,
    ) {
        self.buffer.begin(call);
        let Some(kept) = self.static_bodies.of(call.route(), make) else {
            make(&mut self.buffer.body);
            return self.send(call, 200, Some(content_type), now, reply);
        };
        let bytes = self.buffer.send_static(content_type, kept, reply);
        let outcome = Outcome::Answered { status: 200, bytes };
        self.log.close(call, outcome, None, now);
    }

    /// Sends the buffer's response, and closes the request.
    fn send(
        &mut self,
        call: &Call,
        status: u16,
        content_type: Option<&'static str>,
        now: Moment,
        reply: &mut dyn ResponseSink,
    ) {
        let bytes = self.buffer.send(status, content_type, reply);
        let outcome = Outcome::Answered { status, bytes };
        self.log.close(call, outcome, None, now);
    }
}

/// Chooses OpenMetrics for scrapers that name it and rank it at least as high as plain text. All
/// others get 0.0.4, which every scraper can read, even those whose `Accept` allows neither.
fn exposition(request: &Request<'_>) -> Exposition {
    let offers = match names(request, MediaType::OpenMetrics) {
        true => [MediaType::OpenMetrics, MediaType::PlainText],
        false => [MediaType::PlainText, MediaType::OpenMetrics],
    };
    match choose(request, &offers) {
        Some(MediaType::OpenMetrics) => Exposition::OpenMetrics,
        _ => Exposition::Classic,
    }
}

/// The methods that some path allows: the response to `OPTIONS *`.
const ALLOWED_SOMEWHERE: &str = "GET, HEAD, POST, OPTIONS";

fn write_index(out: &mut Vec<u8>) {
    let version = env!("CARGO_PKG_VERSION");
    out.extend_from_slice(format!("autoglmd {version}\n\n").as_bytes());
    for row in ROUTES {
        let method = match row.verbs {
            Verbs::Read => "GET",
            Verbs::Post => "POST",
            Verbs::Rpc => "gRPC",
        };
        let line = format!("{method:<5} {:<18} {}\n", row.path, row.summary);
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
}

impl Readiness<'_> {
    const fn of(state: &'static str) -> Readiness<'static> {
        Readiness {
            state,
            percent: None,
            message: None,
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
