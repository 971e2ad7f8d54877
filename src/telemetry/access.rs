//! The access line: the result of one request in one structured log line.
//!
//! Goes through the same bounded queue as every other line, with target `access` and level info.
//! Strings from the client are escaped where the line is formatted, so they cannot forge a line or
//! a field.
//!
//! A line is formatted by the reactor, in a buffer that it keeps, and copied into the queue. At
//! full load there is one for each request, so nothing here allocates, and numbers and addresses
//! are written without the machinery of `std::fmt`, which costs more than they do.
//!
//! Mutation: a buffer that is made for each line (`an_access_line_allocates_nothing`).

use std::fmt::{self, Write};
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use log::Level;

use super::format::{Formatter, three_digits};
use super::line::{Head, Kind, Line, cut};
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

/// Where one reactor makes its access lines.
#[derive(Debug, Default)]
pub struct AccessLines {
    /// Made with the first line: the logger decides about the format.
    formatter: Option<Formatter>,
    buffer: Vec<u8>,
}

impl AccessLines {
    /// Queues a line, unless access lines are switched off or no logger is installed.
    pub fn add(&mut self, access: &Access<'_>) {
        let Some(logger) = access_logger() else {
            return;
        };
        let new = || Formatter::new(logger.format());
        let formatter = self.formatter.get_or_insert_with(new);
        self.buffer.clear();
        // Once: lines differ by some digits, and the first ones may be the shortest.
        self.buffer.reserve(limits::LOG_LINE_BYTES_TYPICAL);
        access.append(formatter, SystemTime::now(), &mut self.buffer);
        logger.queue(&self.buffer);
    }
}

impl Access<'_> {
    fn append(&self, formatter: &mut Formatter, time: SystemTime, out: &mut Vec<u8>) {
        let (mut status, mut bytes) = (itoa::Buffer::new(), itoa::Buffer::new());
        let status = status.format(self.status);
        // The path is in the line twice, and the fields after it must have room.
        let path = cut(self.path, limits::ACCESS_TEXT_BYTES_MAX);
        let duration = milliseconds(self.duration);
        let head = Head {
            time,
            level: Level::Info,
            target: TARGET,
            place: None,
        };
        let mut line = Line::begin(formatter, &head, out);
        line.message_of(&[
            self.method,
            " ",
            path,
            " ",
            status,
            " ",
            duration.as_str(),
            "ms",
        ]);
        line.field(Kind::Text, "request_id", self.request_id);
        line.field(Kind::StatedText, "method", self.method);
        line.field(Kind::StatedText, "path", path);
        line.field(Kind::StatedRaw, "status", status);
        line.field(Kind::StatedRaw, "duration_ms", duration.as_str());
        line.field(Kind::Text, "route", self.route);
        line.field(Kind::Raw, "bytes", bytes.format(self.bytes));
        let peer = self.peer.map(address);
        let peer = peer.as_ref().map_or("unix", Short::as_str);
        line.field(Kind::Text, "peer", peer);
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
            let user_agent = cut(user_agent, limits::ACCESS_TEXT_BYTES_MAX);
            line.field(Kind::Text, "user_agent", user_agent);
        }
        line.end();
    }
}

impl Figures {
    fn append(&self, line: &mut Line<'_>) {
        for (name, number) in [
            ("prompt_tokens", self.prompt_tokens),
            ("cached_tokens", self.cached_tokens),
            ("completion_tokens", self.completion_tokens),
        ] {
            line.field(Kind::Raw, name, itoa::Buffer::new().format(number));
        }
        line.field(Kind::Raw, "queue_ms", milliseconds(self.queue).as_str());
        if let Some(duration) = self.time_to_first_token {
            let duration = milliseconds(duration);
            line.field(Kind::Raw, "time_to_first_token_ms", duration.as_str());
        }
    }
}

// ---- numbers and addresses ----------------------------------------------------------------------

/// A short text on the stack.
struct Short {
    bytes: [u8; Short::BYTES_MAX],
    length: usize,
}

impl Short {
    /// An address of IPv6 takes up to 39 characters, a duration up to 24.
    const BYTES_MAX: usize = 48;

    const fn new() -> Short {
        Short {
            bytes: [0; Short::BYTES_MAX],
            length: 0,
        }
    }

    /// Appends what fits; all that this file writes does.
    fn push(&mut self, text: &[u8]) {
        let room = &mut self.bytes[self.length..];
        let fitting = text.len().min(room.len());
        room[..fitting].copy_from_slice(&text[..fitting]);
        self.length += fitting;
    }

    fn push_number(&mut self, number: u64) {
        self.push(itoa::Buffer::new().format(number).as_bytes());
    }

    /// The bytes are ASCII.
    fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.length]).unwrap_or("?")
    }
}

impl Write for Short {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.push(text.as_bytes());
        Ok(())
    }
}

/// Milliseconds with three decimals: the daemon's own time is below one millisecond.
fn milliseconds(duration: Duration) -> Short {
    let microseconds = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    let mut text = Short::new();
    text.push_number(microseconds / 1_000);
    text.push(b".");
    text.push(&three_digits((microseconds % 1_000) as u32));
    text
}

fn address(address: IpAddr) -> Short {
    let mut text = Short::new();
    match address {
        IpAddr::V4(address) => {
            let [first, rest @ ..] = address.octets();
            text.push_number(first.into());
            for octet in rest {
                text.push(b".");
                text.push_number(octet.into());
            }
        }
        // Writing to it does not fail.
        IpAddr::V6(address) => _ = write!(text, "{address}"),
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::LogFormat;

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
        access.append(&mut Formatter::new(format), SystemTime::now(), &mut out);
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
    #[test]
    fn numbers_and_addresses_are_those_of_the_standard_library() {
        for micros in [0, 7, 999, 1_000, 12_345, 60_000_000, u64::MAX] {
            let text = milliseconds(Duration::from_micros(micros));
            let expected = format!("{}.{:03}", micros / 1_000, micros % 1_000);
            assert_eq!(text.as_str(), expected);
        }
        assert!(milliseconds(Duration::MAX).as_str().ends_with(".615"));
        for text in [
            "0.0.0.0",
            "127.0.0.1",
            "203.0.113.255",
            "::",
            "::ffff:203.0.113.255",
            "2001:db8:1111:2222:3333:4444:5555:6666",
        ] {
            assert_eq!(address(text.parse().unwrap()).as_str(), text);
        }
    }
}
