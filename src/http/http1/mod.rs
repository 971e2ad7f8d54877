//! HTTP/1.1 (RFC 9112) as a codec: it owns the meaning of bytes and nothing else.
//!
//! It never touches a socket, a thread or a clock; it never waits, and it never guesses. A message
//! that two readers could cut at different places is how requests are smuggled past a proxy. So
//! anything ambiguous is refused, and the connection that sent it is closed.
//!
//! ```text
//!                     input: one contiguous buffer, the request's first byte at 0
//!                     +--------------------------------------------------------+
//!                     | head              | body            | next request ... |
//!                     +--------------------------------------------------------+
//!                         |                   |
//!   Reception::poll   HeadScanner         Content-Length: waits, or
//!        |            finds its end       chunked::Decoder: decodes in place
//!        v                |                   |
//!   Progress::Head ----- HeadSpan::parse -> Head { request, framing, keep_alive, .. }
//!        |                                    |
//!   the service admits: Reception::accept(head, body_limit)
//!        |
//!        v
//!   Progress::Complete(Message) -> service responds -> encode::response_head, chunk, last_chunk
//! ```
//!
//! Reading order: [`reception`] drives the others; [`scanner`] finds the head's end; [`head`] and
//! [`target`] read it; [`framing`] decides where the body ends; [`chunked`] decodes it; [`encode`]
//! writes responses. The rest is for clients: [`request`] writes the head of a request,
//! [`response`] reads the head of a response, and [`response_reader`] a whole one.

pub mod chunked;
pub mod encode;
pub mod framing;
pub mod head;
pub mod reception;
pub mod request;
pub mod response;
pub mod response_reader;
mod rules;
pub mod scanner;
pub mod target;

pub use framing::Framing;
pub use head::{Head, Storage};
pub use reception::{Accepted, HeadSpan, Message, Progress, Reception, Stage};
use rules::byte_table;
pub use rules::{Bounds, Malformed};
pub(crate) use rules::{is_token_byte, is_value_byte};
