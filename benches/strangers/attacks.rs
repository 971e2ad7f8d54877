//! The attacks: each opens one connection and does its worst until the daemon ends it.
//!
//! An attack is what one of the ten connections does. None of them breaks a protocol so badly that
//! the daemon closes the connection at the first byte, because that would cost the daemon little:
//! most stay within every bound that a client can know, and the others connect again at once.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use rustls::{ClientConfig, ClientConnection};

use crate::code_tables::code_tables;
use crate::common::http2::frame::{
    PREFACE, data, flag, headers, reset, settings, settings_ack, window_update,
};
use crate::common::http2::hpack::{fields, huffman_raw, indexed, literal_indexed, literal_name};
use crate::common::http2::index;
use crate::common::request;
use crate::line::Line;

/// A daemon's bounds, by default: what the attacks stay within.
const BODY_BYTES: usize = 1 << 20;
const HEAD_BYTES: usize = 16 * 1024;
const HEALTH_BYTES: usize = 1_024;
const QUESTION_BYTES: usize = 4 * 1_024;
const STREAMS: u32 = 128;
const FRAME_BYTES: usize = 16 * 1024;

/// Streams that a connection may reset at once before its account of glitches is full.
const RESETS: u32 = 99;

/// Streams whose bodies of a mebibyte a connection may hold: 32 MiB, less one for what is on its
/// way.
const BODIES: u32 = 31;

/// An attacker: one process, which has one connection at a time.
pub struct Attacker {
    pub address: SocketAddr,
    pub tls: Option<Arc<ClientConfig>>,
    /// Of the daemon's certificate, for handshakes beside connections in clear text.
    pub any_tls: Arc<ClientConfig>,
    pub key: String,
}

pub struct Attack {
    pub name: &'static str,
    /// Whether it needs a key.
    pub is_keyed: bool,
    pub run: fn(&Attacker) -> io::Result<()>,
}

const fn stranger(name: &'static str, run: fn(&Attacker) -> io::Result<()>) -> Attack {
    Attack {
        name,
        is_keyed: false,
        run,
    }
}

const fn customer(name: &'static str, run: fn(&Attacker) -> io::Result<()>) -> Attack {
    Attack {
        name,
        is_keyed: true,
        run,
    }
}

pub const ATTACKS: [Attack; 20] = [
    stranger("heads that drip", dripping_heads),
    stranger("large heads", large_heads),
    stranger("bodies without a key", refused_bodies),
    stranger("bodies in small chunks", small_chunks),
    stranger("health checks in small frames", health_checks),
    stranger("watches of health", watches),
    stranger("streams opened and reset", resets),
    stranger("fields that grow", growing_fields),
    stranger("handshakes", hellos),
    stranger("connections", connections),
    customer("listings", listings),
    customer("gzip code tables", gzip_tables),
    customer("gzip of long JSON", gzip_json),
    customer("a million numbers", numbers),
    customer("a long name", long_name),
    customer("long prompts", long_prompts),
    customer("bodies completed at once", bodies_at_once),
    customer("bodies held back", bodies_held_back),
    customer("generations given up", generations_given_up),
    customer("questions about the schema", questions),
];

// ---- without a key -----------------------------------------------------------------------------

fn dripping_heads(attacker: &Attacker) -> io::Result<()> {
    let mut line = attacker.http1()?;
    let head = request("GET", "/readyz", &filling_fields(), b"");
    for piece in head.chunks(24) {
        line.send(piece)?;
        line.rest(Duration::from_millis(90))?;
    }
    Ok(())
}

fn large_heads(attacker: &Attacker) -> io::Result<()> {
    attacker.flood(&request("GET", "/readyz", &filling_fields(), b""))
}

fn refused_bodies(attacker: &Attacker) -> io::Result<()> {
    attacker.flood(&request(
        "POST",
        "/api/v1/generate",
        &[JSON],
        &vec![b' '; BODY_BYTES],
    ))
}

fn small_chunks(attacker: &Attacker) -> io::Result<()> {
    let mut bytes = b"POST /api/v1/generate HTTP/1.1\r\nhost: localhost\r\n\
        content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
        .to_vec();
    bytes.extend(b"8\r\n        \r\n".repeat(BODY_BYTES / 8));
    bytes.extend(b"0\r\n\r\n");
    attacker.flood(&bytes)
}

fn health_checks(attacker: &Attacker) -> io::Result<()> {
    let block = attacker.post("/grpc.health.v1.Health/Check", GRPC);
    // A name that is as long as a name may be.
    let name = [&[0x0a, 0xf8, 0x07][..], &[b'x'; HEALTH_BYTES - 8]].concat();
    let mut message = vec![0, 0, 0, (name.len() >> 8) as u8, name.len() as u8];
    message.extend(name);
    attacker.flood_streams(|stream, bytes| {
        bytes.extend(headers(stream, &block, 0).encode());
        let (pieces, last) = message.split_at(message.len() - 8);
        for piece in pieces.chunks(8) {
            bytes.extend(data(stream, piece, 0).encode());
        }
        bytes.extend(data(stream, last, flag::END_STREAM).encode());
    })
}

fn watches(attacker: &Attacker) -> io::Result<()> {
    let mut line = attacker.http2()?;
    let block = attacker.post("/grpc.health.v1.Health/Watch", GRPC);
    let mut bytes = Vec::new();
    for stream in (1..).step_by(2).take(STREAMS as usize) {
        bytes.extend(headers(stream, &block, 0).encode());
        bytes.extend(data(stream, &[0, 0, 0, 0, 0], flag::END_STREAM).encode());
    }
    line.round(&bytes)?;
    let streams = (1..).step_by(2).take(RESETS as usize);
    let resets = streams.map(|stream: u32| reset(stream, 8).encode());
    line.round(&resets.collect::<Vec<_>>().concat())?;
    line.abort();
    Ok(())
}

fn resets(attacker: &Attacker) -> io::Result<()> {
    let block = attacker.post("/api/v1/generate", &[JSON]);
    let mut bytes = Vec::new();
    for stream in (1..).step_by(2).take(RESETS as usize) {
        bytes.extend(headers(stream, &block, 0).encode());
        bytes.extend(reset(stream, 8).encode());
    }
    let mut line = attacker.http2()?;
    line.round(&bytes)?;
    line.abort();
    Ok(())
}

/// One field of the table's size, which each stream names sixty times with a byte each; and a list
/// in the longest codes, which takes the most steps for its bytes.
fn growing_fields(attacker: &Attacker) -> io::Result<()> {
    let mut line = attacker.http2()?;
    let get = attacker.get("/livez");
    let entry = [get.clone(), literal_indexed("x", vec![b'v'; 4_000])].concat();
    line.round(&headers(1, &entry, flag::END_STREAM).encode())?;
    let named = [get.clone(), indexed(62).repeat(60)].concat();
    // Thirty bits each of the longest codes there are (RFC 7541, appendix B: 10, 13, 22).
    let longest = huffman_raw(&[0xff, 0xff, 0xff, 0xf3].repeat(3_000));
    let coded = [get, vec![0], vec![1, b'y'], longest].concat();
    attacker.flood_streams_on(&mut line, 3, |stream, bytes| {
        let block = match stream % 4 {
            1 => &coded,
            _ => &named,
        };
        bytes.extend(headers(stream, block, flag::END_STREAM).encode());
    })
}

/// The first message of a handshake, made once: it costs the daemon a key agreement and a signature,
/// and this end nothing.
fn hellos(attacker: &Attacker) -> io::Result<()> {
    let name = "localhost".try_into().expect("a name");
    let config = attacker.any_tls.clone();
    let mut client = ClientConnection::new(config, name).expect("a configuration");
    let mut hello = Vec::new();
    client.write_tls(&mut hello)?;
    loop {
        let mut line = Line::open(attacker.address, None, "")?;
        line.send(&hello)?;
        // The daemon's part of the handshake has come when anything has.
        line.rest(Duration::from_millis(1))?;
        line.abort();
    }
}

fn connections(attacker: &Attacker) -> io::Result<()> {
    loop {
        attacker.http1()?.abort();
    }
}

// ---- with a key --------------------------------------------------------------------------------

fn listings(attacker: &Attacker) -> io::Result<()> {
    let authorization = attacker.authorization();
    let field = ("authorization", authorization.as_str());
    let mut bytes = Vec::new();
    for coding in ["gzip", "br", "zstd", "identity"] {
        for path in ["/api/v1/languages", "/api/v1/models", "/"] {
            bytes.extend(request(
                "GET",
                path,
                &[field, ("accept-encoding", coding)],
                b"",
            ));
        }
    }
    attacker.flood(&bytes.repeat(8))
}

fn gzip_tables(attacker: &Attacker) -> io::Result<()> {
    let head = b"\x1f\x8b\x08\0\0\0\0\0\0\x03";
    let mut tables = code_tables(head, BODY_BYTES / 33);
    tables.truncate(BODY_BYTES);
    attacker.flood_bodies(&tables, Some("gzip"))
}

fn gzip_json(attacker: &Attacker) -> io::Result<()> {
    // About fifty times smaller: well below the ratio of a bomb.
    let mut prompt = Vec::new();
    while prompt.len() < BODY_BYTES / 2 - 4_096 {
        prompt.extend_from_slice(b"a function that sorts a list of numbers, ");
        prompt.extend_from_slice(format!("{:x} ", prompt.len()).as_bytes());
    }
    let text = String::from_utf8(prompt).expect("ASCII");
    let json = format!(r#"{{"prompt": "{text}", "language": "python"}}"#);
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(json.as_bytes())?;
    attacker.flood_bodies(&encoder.finish()?, Some("gzip"))
}

fn numbers(attacker: &Attacker) -> io::Result<()> {
    let list = "0,".repeat(BODY_BYTES / 2 - 64);
    let body = format!(r#"{{"prompt": "sort", "unknown": [{list}0]}}"#);
    attacker.flood_bodies(body.as_bytes(), None)
}

fn long_name(attacker: &Attacker) -> io::Result<()> {
    let name = r"\u0070rompt".repeat(BODY_BYTES / 11 - 64);
    let body = format!(r#"{{"prompt": "sort", "{name}": 1}}"#);
    attacker.flood_bodies(body.as_bytes(), None)
}

fn long_prompts(attacker: &Attacker) -> io::Result<()> {
    let body = format!(r#"{{"prompt": "{}"}}"#, r#"\n\"sort\""#.repeat(50_000));
    attacker.flood_bodies(body.as_bytes(), None)
}

fn bodies_at_once(attacker: &Attacker) -> io::Result<()> {
    let list = "0,".repeat(BODY_BYTES / 2 - 64);
    let body = format!(r#"{{"prompt": "sort", "unknown": [{list}0]}}"#);
    let mut line = attacker.http2()?;
    for round in 0.. {
        let first = 1 + 2 * BODIES * round;
        attacker.fill_streams(&mut line, first, &body.as_bytes()[..body.len() - 1])?;
        let streams = (first..).step_by(2).take(BODIES as usize);
        let ends = streams.map(|stream| data(stream, b"}", flag::END_STREAM).encode());
        line.round(&ends.collect::<Vec<_>>().concat())?;
    }
    Ok(())
}

fn bodies_held_back(attacker: &Attacker) -> io::Result<()> {
    let mut line = attacker.http2()?;
    attacker.fill_streams(&mut line, 1, &vec![b' '; BODY_BYTES - 1])?;
    line.rest(Duration::from_secs(120))
}

fn generations_given_up(attacker: &Attacker) -> io::Result<()> {
    let block = attacker.post("/api/v1/generate", &[JSON]);
    let body = br#"{"prompt": "sort", "language": "python", "stream": true}"#;
    let mut bytes = Vec::new();
    for stream in (1..).step_by(2).take(RESETS as usize) {
        bytes.extend(headers(stream, &block, 0).encode());
        bytes.extend(data(stream, body, flag::END_STREAM).encode());
        bytes.extend(reset(stream, 8).encode());
    }
    let mut line = attacker.http2()?;
    line.round(&bytes)?;
    line.abort();
    Ok(())
}

/// Each question names a symbol, and each response has the whole file that defines it.
fn questions(attacker: &Attacker) -> io::Result<()> {
    let path = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
    let block = attacker.post(path, GRPC);
    let symbol = b"AutoGLMService";
    let question = [&[0x22, symbol.len() as u8][..], symbol].concat();
    let mut message = vec![0, 0, 0, 0, question.len() as u8];
    message.extend(question);
    let questions = message.repeat(QUESTION_BYTES / message.len());
    attacker.flood_streams(|stream, bytes| {
        bytes.extend(headers(stream, &block, 0).encode());
        bytes.extend(data(stream, &questions, flag::END_STREAM).encode());
    })
}

// ---- helpers -----------------------------------------------------------------------------------

const JSON: (&str, &str) = ("content-type", "application/json");
const GRPC: &[(&str, &str)] = &[("content-type", "application/grpc"), ("te", "trailers")];

/// Fields that fill a head to its bound, in number and in bytes.
fn filling_fields() -> Vec<(&'static str, &'static str)> {
    const VALUE: &str = match str::from_utf8(&[b'v'; (HEAD_BYTES - 256) / 98 - 12]) {
        Ok(text) => text,
        Err(_) => panic!("ASCII"),
    };
    vec![("x-filling", VALUE); 98]
}

impl Attacker {
    fn http1(&self) -> io::Result<Line> {
        Line::open(self.address, self.tls.as_ref(), "http/1.1")
    }

    /// Opens a connection of HTTP/2 whose windows never close.
    fn http2(&self) -> io::Result<Line> {
        let mut line = Line::open(self.address, self.tls.as_ref(), "h2")?;
        let opening = [
            PREFACE.to_vec(),
            settings(&[(4, (1 << 31) - 1)]).encode(),
            window_update(0, (1 << 30) - 1).encode(),
            settings_ack().encode(),
        ];
        line.send(&opening.concat())?;
        Ok(line)
    }

    fn authorization(&self) -> String {
        format!("Bearer {}", self.key)
    }

    /// Sends the same bytes again and again.
    fn flood(&self, bytes: &[u8]) -> io::Result<()> {
        let mut line = self.http1()?;
        loop {
            line.send(bytes)?;
        }
    }

    fn flood_bodies(&self, body: &[u8], coding: Option<&str>) -> io::Result<()> {
        let authorization = self.authorization();
        let mut list = vec![("authorization", authorization.as_str()), JSON];
        list.extend(coding.map(|coding| ("content-encoding", coding)));
        self.flood(&request("POST", "/api/v1/generate", &list, body))
    }

    /// Opens streams by the hundred for as long as the daemon allows it.
    fn flood_streams(&self, stream: impl Fn(u32, &mut Vec<u8>)) -> io::Result<()> {
        let mut line = self.http2()?;
        self.flood_streams_on(&mut line, 1, stream)
    }

    fn flood_streams_on(
        &self,
        line: &mut Line,
        first: u32,
        stream: impl Fn(u32, &mut Vec<u8>),
    ) -> io::Result<()> {
        let mut bytes = Vec::new();
        for (number, id) in (first..).step_by(2).enumerate() {
            stream(id, &mut bytes);
            if number % 100 == 99 {
                line.round(&bytes)?;
                bytes.clear();
            }
        }
        Ok(())
    }

    /// Opens [`BODIES`] streams and sends this much of each body, as fast as the windows allow: a
    /// connection's window has room for 15 streams' windows.
    fn fill_streams(&self, line: &mut Line, first: u32, body: &[u8]) -> io::Result<()> {
        let block = self.post("/api/v1/generate", &[JSON]);
        let streams: Vec<u32> = (first..).step_by(2).take(BODIES as usize).collect();
        let opened = streams.iter().map(|&id| headers(id, &block, 0).encode());
        line.round(&opened.collect::<Vec<_>>().concat())?;
        for piece in body.chunks(3 * FRAME_BYTES) {
            for group in streams.chunks(15) {
                let mut bytes = Vec::new();
                for &id in group {
                    for part in piece.chunks(FRAME_BYTES) {
                        bytes.extend(data(id, part, 0).encode());
                    }
                }
                line.round(&bytes)?;
            }
        }
        Ok(())
    }

    fn get(&self, path: &str) -> Vec<u8> {
        [indexed(index::METHOD_GET), self.target(path)].concat()
    }

    fn post(&self, path: &str, more: &[(&str, &str)]) -> Vec<u8> {
        [indexed(index::METHOD_POST), self.target(path), fields(more)].concat()
    }

    fn target(&self, path: &str) -> Vec<u8> {
        let scheme = index::SCHEME_HTTP + u64::from(self.tls.is_some());
        let mut block = [
            indexed(scheme),
            literal_name(index::PATH, path),
            literal_name(index::AUTHORITY, "localhost"),
        ]
        .concat();
        if !self.key.is_empty() {
            block.extend(fields(&[("authorization", &self.authorization())]));
        }
        block
    }
}
