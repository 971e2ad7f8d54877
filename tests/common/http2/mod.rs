//! An HTTP/2 client of raw frames, for tests that speak the protocol rightly and wrongly.
//!
//! * [`frame`] is one frame, every bit of which is the test's choice.
//! * [`hpack`] encodes header blocks, rightly and wrongly, and decodes the answers'.
//! * [`Peer`] is one connection over a blocking socket; `expect` is what may be waited for on it.
//! * [`Target`] is whom it speaks to, and requests that are known to be good there.
//!
//! What a test expects comes as an [`Outcome`], not as a panic, so that a suite can run all of its
//! cases and list those that failed. Whatever a case is about, the peer also checks the server's
//! own frames: their sizes, their streams, the order of a header block, the flow-control windows,
//! the compression.

mod expect;
pub mod frame;
pub mod hpack;
mod peer;

use std::net::SocketAddr;
use std::time::Duration;

pub use peer::{Answer, Peer};

use self::hpack::{fields, indexed, literal_name};
use super::{Daemon, PATIENCE};

/// What a case came to; the error says what was got instead.
pub type Outcome<T = ()> = Result<T, String>;

/// Fails with the message unless the condition holds.
pub fn ensure(holds: bool, message: impl FnOnce() -> String) -> Outcome {
    if holds { Ok(()) } else { Err(message()) }
}

/// A server, and requests that it answers well.
#[derive(Clone, Debug)]
pub struct Target {
    pub address: SocketAddr,
    /// Answered to everybody, at once.
    pub small: String,
    /// An answer of more than 100 bytes.
    pub page: String,
    /// Where a body may be sent to.
    pub post: String,
    pub body: Vec<u8>,
    pub authorization: String,
    /// Whether it is our own daemon, of which more is expected than the RFC asks.
    pub is_ours: bool,
    /// How long anything may take that must happen, however busy the machine is.
    pub patience: Duration,
}

/// Indices of the static table that requests need.
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

    /// Another server, for comparison. It has to answer `/` and `/page`.
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

    /// The block of a GET of this path.
    pub fn get_of(&self, path: &str) -> Vec<u8> {
        [
            indexed(index::METHOD_GET),
            indexed(index::SCHEME_HTTP),
            literal_name(index::PATH, path),
            literal_name(index::AUTHORITY, "localhost"),
        ]
        .concat()
    }

    /// A good GET.
    pub fn get(&self) -> Vec<u8> {
        self.get_of(&self.small)
    }

    /// A good GET with more fields.
    pub fn get_with(&self, more: &[(&str, &str)]) -> Vec<u8> {
        [self.get(), fields(more)].concat()
    }

    /// A GET that is answered with a page.
    pub fn get_page(&self) -> Vec<u8> {
        let authorization = ("authorization", self.authorization.as_str());
        [self.get_of(&self.page), fields(&[authorization])].concat()
    }

    /// A good POST, whose body is to follow.
    pub fn post(&self) -> Vec<u8> {
        self.post_with(&[])
    }

    /// A good POST with more fields.
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
