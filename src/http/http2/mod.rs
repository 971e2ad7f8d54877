//! HTTP/2 (RFC 9113) without I/O: bytes in, events and bytes out.
//!
//! ```text
//!   bytes ──> FrameReader ──> Connection ──> Event: a request, a piece of its body, its end
//!   bytes <────────────────── Connection <── respond, send, finish, reset
//!                              |      |
//!                           Stream  Decoder, encode (hpack)
//! ```
//!
//! In reading order: [`frame`] (what the peer's bytes are), [`window`] (flow control), [`hpack`]
//! (how fields are written), [`head`] (a request as the service sees it), [`stream`] and
//! [`connection`] (the protocol's state, and what each frame does to it).
//!
//! `docs/architecture.md` tells why this is the project's own code and not the `h2` crate.

pub mod connection;
pub mod frame;
pub mod head;
pub mod hpack;
pub mod stream;
#[cfg(test)]
pub mod testing;
pub mod window;
