//! An HTTP/2 client of raw frames, for tests that speak the protocol rightly and wrongly.
//!
//! * [`frame`] is one frame, every bit of which is the test's choice.
//! * [`hpack`] encodes header blocks, rightly and wrongly, and decodes those of responses.
//! * [`Peer`] is one connection over a blocking socket; `expect` has the waits for it.
//! * [`Target`] is a server, with requests that are known to be good there.
//!
//! A test returns an [`Outcome`] instead of panicking, so that a suite can run all of its cases and
//! list those that failed. Whatever a case is about, the peer also checks the server's own frames:
//! their sizes, their streams, the order of a header block, the flow-control windows, the
//! compression.

mod expect;
pub mod frame;
pub mod hpack;
mod peer;

use std::net::SocketAddr;
use std::time::Duration;

pub use peer::{Answer, Peer};

use self::hpack::{fields, indexed, literal_name};
use super::{Daemon, PATIENCE};

/// The result of a case; the error describes what came instead.
pub type Outcome<T = ()> = Result<T, String>;

/// Fails with the message unless the condition holds.
pub fn ensure(holds: bool, message: impl FnOnce() -> String) -> Outcome {
    if holds { Ok(()) } else { Err(message()) }
}

/// A server, and requests that it serves well.
#[derive(Clone, Debug)]
pub struct Target {
    pub address: SocketAddr,
    /// Served to every client, at once.
    pub small: String,
    /// A response of more than 100 bytes.
    pub page: String,
    /// A path that accepts a body.
    pub post: String,
    pub body: Vec<u8>,
    pub authorization: String,
    /// Whether it is our own daemon, which must do more than the RFC requires.
    pub is_ours: bool,
    /// A bound for anything that must happen, however busy the machine is.
    pub patience: Duration,
}

/// Indices of the static table for requests.
pub mod index {
    pub const AUTHORITY: u64 = 1;
    pub const METHOD_GET: u64 = 2;
    pub const METHOD_POST: u64 = 3;
    pub const PATH: u64 = 4;
    pub const SCHEME_HTTP: u64 = 6;
}

impl Target {
    pub fn of(daemon: &Daemon) -> Target {
        Target {
            address: daemon.address(),
            small: "/livez".to_owned(),
            page: "/api/v1/languages".to_owned(),
            post: "/api/v1/generate".to_owned(),
            body: br#"{"prompt": "hello", "language": "python"}"#.to_vec(),
            authorization: daemon.authorization(),
            is_ours: true,
            patience: PATIENCE,
        }
    }

    /// Another server, for comparison. It must serve `/` and `/page`.
    pub fn other(address: SocketAddr) -> Target {
        Target {
            address,
            small: "/".to_owned(),
            page: "/page".to_owned(),
            post: "/".to_owned(),
            body: b"hello, whoever you are".to_vec(),
            authorization: String::new(),
            is_ours: false,
            patience: Duration::from_secs(3),
        }
    }

    /// Returns the block of a GET of this path.
    pub fn get_of(&self, path: &str) -> Vec<u8> {
        [
            indexed(index::METHOD_GET),
            indexed(index::SCHEME_HTTP),
            literal_name(index::PATH, path),
            literal_name(index::AUTHORITY, "localhost"),
        ]
        .concat()
    }

    /// Returns a good GET.
    pub fn get(&self) -> Vec<u8> {
        self.get_of(&self.small)
    }

    /// Returns a good GET with more fields.
    pub fn get_with(&self, more: &[(&str, &str)]) -> Vec<u8> {
        [self.get(), fields(more)].concat()
    }

    /// Returns a GET whose response is a page.
    pub fn get_page(&self) -> Vec<u8> {
        let authorization = ("authorization", self.authorization.as_str());
        [self.get_of(&self.page), fields(&[authorization])].concat()
    }

    /// Returns a good POST, whose body must follow.
    pub fn post(&self) -> Vec<u8> {
        self.post_with(&[])
    }

    /// Returns a good POST with more fields.
    pub fn post_with(&self, more: &[(&str, &str)]) -> Vec<u8> {
        [
            indexed(index::METHOD_POST),
            indexed(index::SCHEME_HTTP),
            literal_name(index::PATH, &self.post),
            literal_name(index::AUTHORITY, "localhost"),
            fields(&[
                ("authorization", self.authorization.as_str()),
                ("content-type", "application/json"),
            ]),
            fields(more),
        ]
        .concat()
    }
}
