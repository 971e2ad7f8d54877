//! gRPC without I/O: what it puts into HTTP/2's bodies and fields, and how to read it.
//!
//! [`frame`] reads and writes the message prefix and its compression, [`terms`] reads a request's
//! head, [`status`] writes an error into trailers, [`reflection`] serves the schema, and
//! [`messages`] holds the code generated from `src/proto/`. The service knows the methods and what
//! they do; the connection carries the bytes.

pub mod frame;
pub mod messages;
pub mod reflection;
pub mod status;
pub mod terms;

pub use frame::{Bounds, Decoder, Encoding};
pub use terms::{CONTENT_TYPE, Terms};
