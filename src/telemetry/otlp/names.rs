//! The names that a collector sees: OpenTelemetry's semantic conventions where they exist, names in
//! their style where they do not.
//!
//! Owns the translation. The name of a module's series stands in that module's own table
//! ([`Row::otel`]); the numbers that are copied from others (the kernel's, the log's) have no such
//! row and are named here. Values of attributes are the labels' values, closed sets.
//!
//! `gen_ai.server.request.duration` has no series of its own: it is the part of
//! `http.server.request.duration` that belongs to generation routes. `gen_ai.client.token.usage`
//! is a client's histogram, which a server that counts tokens in total cannot give: tokens are
//! `autoglmd.engine.token.usage`.

use std::borrow::Cow;

use super::message::{Any, AnyValue, KeyValue};
use super::text::{Family, Kind, Labels};
use crate::telemetry::metrics::Row;

/// How a family appears to the collector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    pub name: Cow<'static, str>,
    pub unit: &'static str,
    /// Whether the values of several daemons may be added: a gauge becomes a sum that may fall.
    pub is_sum: bool,
}

/// Names and units of the numbers that are copied from others.
const COPIED: &[(&str, &str, &str, bool)] = &[
    (
        "process_resident_memory_bytes",
        "process.memory.usage",
        "By",
        true,
    ),
    (
        "process_virtual_memory_bytes",
        "process.memory.virtual",
        "By",
        true,
    ),
    (
        "process_open_fds",
        "process.unix.file_descriptor.count",
        "{file_descriptor}",
        true,
    ),
    ("process_threads", "process.thread.count", "{thread}", true),
    ("process_cpu_seconds", "process.cpu.time", "s", true),
    (
        "process_start_time_seconds",
        "autoglmd.process.start_time",
        "s",
        false,
    ),
    (
        "autoglmd_log_dropped",
        "autoglmd.log.dropped",
        "{line}",
        false,
    ),
    (
        "autoglmd_log_write_errors",
        "autoglmd.log.write_error",
        "{error}",
        false,
    ),
];

/// The routes of requests that generate, as values of the label `route`.
const GENERATION_ROUTES: &[&str] = &["generate", "grpc_generate", "grpc_generate_stream"];

pub const REQUEST_DURATION: &str = "http.server.request.duration";
pub const GENERATION_DURATION: &str = "gen_ai.server.request.duration";

/// Names a family. `rows` are the tables of all modules.
pub fn name(family: &Family, rows: &[&'static Row]) -> Name {
    let copied = COPIED.iter().find(|(name, ..)| *name == family.name);
    if let Some((_, name, unit, is_sum)) = copied {
        return Name {
            name: (*name).into(),
            unit,
            is_sum: *is_sum,
        };
    }
    let own = family.name.strip_prefix("autoglmd_");
    let row = rows.iter().find(|row| Some(row.name) == own);
    let name = match row {
        Some(row) => row.otel.into(),
        None => format!("autoglmd.{}", own.unwrap_or(&family.name)).into(),
    };
    Name {
        name,
        unit: unit(family),
        is_sum: false,
    }
}

/// Returns the unit as UCUM writes it. Counts have none.
fn unit(family: &Family) -> &'static str {
    let name = &family.name;
    match () {
        () if family.kind == Kind::Histogram || name.ends_with("_seconds") => "s",
        () if name.ends_with("_bytes") => "By",
        () => "",
    }
}

/// Returns whether a series belongs to [`GENERATION_DURATION`] as well.
pub fn is_generation(labels: &Labels) -> bool {
    let route = labels.get("route");
    route.is_some_and(|route| GENERATION_ROUTES.contains(&route.as_str()))
}

/// A route's label, and its path as a template such as `/api/v1/jobs/{id}`.
pub type Template = (&'static str, &'static str);

/// Returns the attributes of a point of the metric `name`.
pub fn attributes(name: &str, labels: &Labels, routes: &[Template]) -> Vec<KeyValue> {
    let is_http = name.contains("http.server.");
    let mut attributes = Vec::with_capacity(labels.len() + 2);
    for (label, value) in labels {
        attributes.push(attribute(label, value));
        let mut routes = routes.iter().filter(|_| is_http && label == "route");
        if let Some((_, template)) = routes.find(|(route, _)| route == value) {
            attributes.push(text("http.route", template));
        }
    }
    if name.starts_with("gen_ai.") {
        attributes.push(text("gen_ai.operation.name", "text_completion"));
        attributes.push(text("gen_ai.provider.name", "autoglmd"));
    }
    attributes
}

fn attribute(label: &str, value: &str) -> KeyValue {
    match (label, value.parse()) {
        ("status", Ok(status)) => KeyValue {
            key: "http.response.status_code".to_owned(),
            value: Some(AnyValue {
                value: Some(Any::Int(status)),
            }),
        },
        ("code", _) => text("error.type", value),
        ("model", _) => text("gen_ai.request.model", value),
        _ => text(&format!("autoglmd.{label}"), value),
    }
}

/// Returns an attribute that is a text.
pub fn text(key: &str, value: &str) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue {
            value: Some(Any::Text(value.to_owned())),
        }),
    }
}

#[cfg(test)]
mod tests {
    use crate::limits::telemetry as limits;

    /// The bounds that the conventions advise, in milliseconds.
    ///
    /// Mutation: a bound of the conventions left out of `limits`.
    #[test]
    fn the_advised_bounds_are_among_ours() {
        for (ours, advised) in [
            (
                limits::REQUEST_DURATION_BUCKETS_MICROS,
                &[
                    5, 10, 25, 50, 75, 100, 250, 500, 750, 1_000, 2_500, 5_000, 7_500, 10_000,
                ][..],
            ),
            (
                limits::TIME_TO_FIRST_TOKEN_BUCKETS_MICROS,
                &[
                    1, 5, 10, 20, 40, 60, 80, 100, 250, 500, 750, 1_000, 2_500, 5_000, 7_500,
                    10_000,
                ],
            ),
            (
                limits::TIME_PER_OUTPUT_TOKEN_BUCKETS_MICROS,
                &[
                    10, 25, 50, 75, 100, 150, 200, 300, 400, 500, 750, 1_000, 2_500,
                ],
            ),
        ] {
            assert!(ours.is_sorted());
            for millis in advised {
                assert!(ours.contains(&(millis * 1_000)), "{millis} ms");
            }
        }
    }
}
