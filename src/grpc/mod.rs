//! gRPC without I/O: what it puts into HTTP/2's bodies and fields, and how that is read.
//!
//! [`frame`] is the message prefix and its compression, [`terms`] what a request's head says,
//! [`status`] how an error goes into trailers, [`reflection`] the schema as clients ask for it, and
//! [`messages`] the code made of `src/proto/`. Which methods there are and what they do is the
//! service's business; which bytes carry all of it, the connection's.

pub mod frame;
pub mod messages;
pub mod reflection;
pub mod status;
pub mod terms;

/// The media type of every answer, whatever it is.
pub const CONTENT_TYPE: &str = "application/grpc";

pub use frame::{Bounds, Decoder, Encoding};
pub use terms::Terms;
