//! The reactor: the only code that touches sockets, and the only `use mio`.
//!
//! In reading order:
//!
//! * [`system`]: what the loop asks of the kernel, as a trait; [`epoll`]: the kernel behind it;
//! * [`event_loop`]: one turn in ten phases;
//! * [`context`]: what a connection is lent while it is at work; [`handler`]: what its protocol asks
//!   of the application;
//! * [`connection`]: one socket and its pump; [`close_reason`]: how it may end; [`transport`]: TLS
//!   below it, or nothing;
//! * [`protocol`]: which of the two a connection speaks;
//! * [`http1`], [`http2`]: each between its codec and the service;
//! * [`message`]: what other threads may tell the loop;
//! * `simulation`: the same loop over a kernel made of dice, in the tests.

pub mod close_reason;
pub mod connection;
pub mod context;
mod date;
pub mod epoll;
pub mod event_loop;
pub mod handler;
pub mod http1;
pub mod http2;
pub mod message;
pub mod protocol;
#[cfg(test)]
mod simulation;
pub mod system;
mod transport;
