//! The reactor: the only code that touches sockets, and the only `use mio`.
//!
//! In reading order:
//!
//! * [`system`]: the loop's interface to the kernel, as a trait; [`epoll`]: the kernel behind it;
//! * [`event_loop`]: one turn in ten phases;
//! * [`context`]: the data that a connection is lent for its turn; [`handler`]: the interface
//!   between its protocol and the application;
//! * [`connection`]: its phases, and its end; [`close_reason`]: the reasons for that;
//! * [`endpoint`]: a socket and its readiness; [`channel`]: a client's endpoint and bytes;
//!   [`transport`]: TLS between them, or nothing;
//! * `client_network`: which of them count for their client's network;
//! * [`machine`]: the interface to its protocol; [`protocol`]: chooses the protocol;
//! * [`http1`], [`http2`]: each between its codec and the application;
//! * [`outbound`]: the loop as a client of other servers;
//! * [`message`]: the messages of other threads to the loop;
//! * `simulation`: the same loop over a simulated kernel, in the tests.

pub mod channel;
mod client_network;
pub mod close_reason;
pub mod connection;
pub mod context;
mod date;
mod endpoint;
pub mod epoll;
pub mod event_loop;
pub mod handler;
pub mod http1;
pub mod http2;
pub mod machine;
pub mod message;
pub mod metrics;
pub mod outbound;
pub mod protocol;
#[cfg(test)]
mod simulation;
pub mod system;
mod transport;
