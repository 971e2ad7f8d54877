//! HTTP/2 (RFC 9113) without I/O: bytes in, events and bytes out.
//!
//! ```text
//!   bytes ──> FrameReader ──> Connection ──> Event: a request, a piece of its body, its end
//!   bytes <────────────────── Connection <── respond, send, finish, reset
//!                              |      |
//!                           Stream  Decoder, encode (hpack)
//! ```
//!
//! In reading order: [`frame`] (cuts the peer's bytes into frames, and writes ours), [`window`]
//! (flow control), [`hpack`] (the coding of fields), [`head`] (a request in the form that the
//! service knows), [`stream`] and [`connection`] (the protocol's state, and the effect of each
//! frame on it).
//!
//! `docs/architecture.md` explains why this is the project's own code and not the `h2` crate.

pub mod connection;
pub mod frame;
pub mod head;
pub mod hpack;
pub mod stream;
#[cfg(test)]
pub mod testing;
pub mod window;
