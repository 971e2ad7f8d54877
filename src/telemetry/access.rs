//! The access line: the result of one request in one structured log line.
//!
//! Goes through the same bounded queue as every other line, with target `access` and level info.
//! Strings from the client are escaped where the line is formatted, so they cannot forge a line or
//! a field.

use std::net::IpAddr;
use std::time::Duration;

use log::Level;

use super::line::{Kind, Line, cut};
use super::log::access_logger;
use crate::limits::telemetry as limits;

/// The target of access lines.
pub const TARGET: &str = "access";

/// The facts about a request once its response is complete or abandoned.
#[derive(Clone, Copy, Debug)]
pub struct Access<'a> {
    pub request_id: &'a str,
    pub method: &'a str,
    /// Without its query, which may contain secrets.
    pub path: &'a str,
    /// The router's name for the route, the same as in the metrics.
    pub route: &'static str,
    /// As it was sent, or would have been.
    pub status: u16,
    /// Bytes of the response's content that were queued for the client.
    pub bytes: u64,
    /// From the request's first byte to the response's last.
    pub duration: Duration,
    /// `None`: a Unix socket.
    pub peer: Option<IpAddr>,
    /// The key's public id, never the key.
    pub key_id: Option<&'a str>,
    pub error: Option<&'a str>,
    pub user_agent: Option<&'a str>,
    /// The trace that the request belongs to, as 32 hexadecimal digits.
    pub trace_id: Option<&'a str>,
    pub figures: Option<Figures>,
}

/// The engine's work for a request, in figures.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figures {
    pub prompt_tokens: u32,
    pub cached_tokens: u32,
    pub completion_tokens: u32,
    pub queue: Duration,
    pub time_to_first_token: Option<Duration>,
}

impl Access<'_> {
    /// Queues the line, unless access lines are switched off or no logger is installed.
    pub fn log(&self) {
        if let Some(logger) = access_logger() {
            logger.queue(self.line());
        }
    }

    fn line(&self) -> Line {
        let method = self.method;
        let status = self.status;
        // The path is in the line twice, and the fields after it must have room.
        let path = cut(self.path, limits::ACCESS_TEXT_BYTES_MAX);
        let milliseconds = Milliseconds(self.duration);
        let message = format_args!("{method} {path} {status} {milliseconds}ms");
        let mut line = Line::new(Level::Info, TARGET, message);
        line.field(Kind::Text, "request_id", self.request_id);
        line.field(Kind::StatedText, "method", method);
        line.field(Kind::StatedText, "path", path);
        line.field(Kind::StatedRaw, "status", status);
        line.field(Kind::StatedRaw, "duration_ms", milliseconds);
        line.field(Kind::Text, "route", self.route);
        line.field(Kind::Raw, "bytes", self.bytes);
        match self.peer {
            Some(address) => line.field(Kind::Text, "peer", address),
            None => line.field(Kind::Text, "peer", "unix"),
        }
        for (name, value) in [
            ("key_id", self.key_id),
            ("error", self.error),
            ("trace_id", self.trace_id),
        ] {
            if let Some(value) = value {
                line.field(Kind::Text, name, value);
            }
        }
        if let Some(figures) = &self.figures {
            figures.append(&mut line);
        }
        // Last: it is long, and the first to be cut.
        if let Some(user_agent) = self.user_agent {
            line.field(
                Kind::Text,
                "user_agent",
                cut(user_agent, limits::ACCESS_TEXT_BYTES_MAX),
            );
        }
        line
    }
}

impl Figures {
    fn append(&self, line: &mut Line) {
        line.field(Kind::Raw, "prompt_tokens", self.prompt_tokens);
        line.field(Kind::Raw, "cached_tokens", self.cached_tokens);
        line.field(Kind::Raw, "completion_tokens", self.completion_tokens);
        line.field(Kind::Raw, "queue_ms", Milliseconds(self.queue));
        if let Some(duration) = self.time_to_first_token {
            line.field(Kind::Raw, "time_to_first_token_ms", Milliseconds(duration));
        }
    }
}

/// Milliseconds with three decimals: the daemon's own time is below one millisecond.
#[derive(Clone, Copy)]
struct Milliseconds(Duration);

impl std::fmt::Display for Milliseconds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let microseconds = self.0.as_micros();
        write!(f, "{}.{:03}", microseconds / 1_000, microseconds % 1_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::LogFormat;
    use crate::telemetry::format::Formatter;

    fn access() -> Access<'static> {
        Access {
            request_id: "0196",
            method: "POST",
            path: "/api/v1/generate",
            route: "generate",
            status: 503,
            bytes: 120,
            duration: Duration::from_micros(12_345),
            peer: Some(IpAddr::from([127, 0, 0, 1])),
            key_id: Some("k_1"),
            error: Some("queue_full"),
            user_agent: Some("curl/8.0\n{\"level\":\"error\"}\x1b[31m status=200"),
            trace_id: None,
            figures: Some(Figures {
                prompt_tokens: 10,
                cached_tokens: 4,
                completion_tokens: 0,
                queue: Duration::from_micros(7),
                time_to_first_token: None,
            }),
        }
    }

    fn formatted(access: &Access<'_>, format: LogFormat) -> String {
        let mut out = Vec::new();
        Formatter::new(format).append(&access.line(), &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn json_has_every_member_with_its_type() {
        let text = formatted(&access(), LogFormat::Json);
        let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
        value.as_object_mut().unwrap().remove("time");
        assert_eq!(
            value,
            serde_json::json!({
                "level": "info", "target": "access",
                "message": "POST /api/v1/generate 503 12.345ms",
                "request_id": "0196", "method": "POST", "path": "/api/v1/generate",
                "status": 503, "duration_ms": 12.345, "route": "generate", "bytes": 120,
                "peer": "127.0.0.1", "key_id": "k_1", "error": "queue_full",
                "prompt_tokens": 10, "cached_tokens": 4, "completion_tokens": 0,
                "queue_ms": 0.007,
                "user_agent": "curl/8.0\n{\"level\":\"error\"}\u{1b}[31m status=200",
            })
        );
    }

    #[test]
    fn a_client_cannot_forge_a_line_or_a_field() {
        let text = formatted(&access(), LogFormat::Text);
        let (_, rest) = text.split_once(' ').unwrap();
        assert_eq!(
            rest,
            "INFO  access: POST /api/v1/generate 503 12.345ms request_id=0196 route=generate \
             bytes=120 peer=127.0.0.1 key_id=k_1 error=queue_full prompt_tokens=10 \
             cached_tokens=4 completion_tokens=0 queue_ms=0.007 \
             user_agent=\"curl/8.0\\n{\\\"level\\\":\\\"error\\\"}\\u{1b}[31m status=200\"\n"
        );
        let hostile = Access {
            path: "/\r\n2026-01-01T00:00:00.000Z INFO  access: GET / 200",
            peer: None,
            ..access()
        };
        for format in [LogFormat::Text, LogFormat::Json] {
            let text = formatted(&hostile, format);
            assert_eq!(text.matches(['\n', '\r']).count(), 1, "{text:?}");
        }
        let entry = formatted(&hostile, LogFormat::Journald);
        assert!(entry.contains("\nPEER=unix\n"));
        assert!(
            !entry.contains("\nPATH="),
            "its line feed needs the form with a length"
        );
    }

    #[test]
    fn a_long_path_leaves_room_for_the_rest() {
        let path = "/".repeat(limits::LOG_LINE_BYTES_MAX * 2);
        let text = formatted(
            &Access {
                path: &path,
                ..access()
            },
            LogFormat::Json,
        );
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["status"], 503);
        assert_eq!(value["error"], "queue_full");
    }
}
