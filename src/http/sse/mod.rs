//! Server-sent events (HTML Living Standard, section 9.2), as bytes.
//!
//! [`mod@write`] makes the lines of an event, [`read`] turns a stream back into events. Neither
//! waits, and neither knows a socket.

pub mod read;
pub mod write;

pub use read::{BadStream, Event, Reader};
pub use write::{comment, event};
