//! The reactor: the only code that touches sockets, and the only `use mio`.
//!
//! In reading order:
//!
//! * [`system`]: what the loop asks of the kernel, as a trait; [`epoll`]: the kernel behind it;
//! * [`event_loop`]: one turn in ten phases;
//! * [`context`]: what a connection is lent while it is at work; [`handler`]: what its protocol
//!   asks of the application;
//! * [`connection`]: what is done in which phase, and when it ends; [`close_reason`]: how it may
//!   end;
//! * [`channel`]: its socket and bytes; [`transport`]: TLS between them, or nothing;
//! * [`machine`]: what a connection asks of its protocol; [`protocol`]: which one it speaks;
//! * [`http1`], [`http2`]: each between its codec and the application;
//! * [`message`]: what other threads may tell the loop;
//! * `simulation`: the same loop over a kernel made of dice, in the tests.

pub mod channel;
pub mod close_reason;
pub mod connection;
pub mod context;
mod date;
pub mod epoll;
pub mod event_loop;
pub mod handler;
pub mod http1;
pub mod http2;
pub mod machine;
pub mod message;
pub mod protocol;
#[cfg(test)]
mod simulation;
pub mod system;
mod transport;
