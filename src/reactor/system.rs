//! The seam between the loop and the kernel: every system call that the loop makes, as a trait.
//!
//! The loop is written once, against [`System`]. [`super::epoll::Epoll`] is the kernel; the
//! simulator in `simulation` is its fault-injecting twin, which produces short writes, late edges,
//! resets and a full descriptor table as often as a test wants them. Nothing else in the crate may
//! touch a socket.
//!
//! Both sides keep epoll(7)'s edge-triggered contract:
//!
//!  1. A socket is registered once, for both directions, and never again.
//!  2. An event means that a direction *became* ready, or that more has arrived. No event reports
//!     what was left over: after it only a new arrival, or room in a buffer that was full, makes
//!     another. So a direction counts as ready until a call has returned `WouldBlock` (or, for a
//!     stream socket, a read or write was cut short).
//!  3. An event may be spurious, and it may carry the key of a connection that is gone.
//!
//! `connect(2)` keeps it too. A non-blocking socket reports `EINPROGRESS` and is registered then;
//! the handshake's end, good or bad, is an edge for writing. Which of the two it was, `SO_ERROR`
//! reports and not the edge ([`System::is_connected`]).

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use crate::core::budget::Clock;
use crate::core::{Key, Moment};
use crate::service::Peer;

/// The source of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A message was posted to this reactor's mailbox.
    Doorbell,
    /// A connection may wait in the backlog of the listener with this index.
    Listener(usize),
    /// A client's connection.
    Client(Key),
    /// A connection that this reactor opened.
    Outbound(Key),
}

/// One edge: `source` became ready in some way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edge {
    pub source: Source,
    pub readable: bool,
    pub writable: bool,
    /// The peer has sent its FIN (`EPOLLRDHUP`): after the buffered bytes, a read returns 0.
    pub read_closed: bool,
    /// Both directions are gone (`EPOLLHUP` or `EPOLLERR`): the next call returns the reason.
    pub broken: bool,
}

/// The loop's interface to the outside world. Only `poll` waits.
pub trait System {
    type Socket: Send + 'static;

    /// Waits for at most `timeout`, or without a bound for `None`, and appends the edges. An
    /// interrupted wait is an empty batch, not an error.
    fn poll(&mut self, edges: &mut Vec<Edge>, timeout: Option<Duration>) -> io::Result<()>;

    /// Reads the monotonic clock.
    fn now(&mut self) -> Moment;

    /// Returns the same clock, for the budgets of code that knows no system.
    fn clock(&self) -> Rc<Clock>;

    /// Takes one connection out of a listener's backlog, non-blocking and close-on-exec.
    fn accept(&mut self, listener: usize) -> io::Result<(Self::Socket, Peer)>;

    /// Returns whether a connection is in a listener's backlog now: a level, not an edge. `true` if
    /// the kernel does not report it.
    fn has_waiting(&mut self, listener: usize) -> bool;

    /// Returns how many listeners there are.
    fn listeners(&self) -> usize;

    /// Stops listening: the kernel refuses the connections in the backlogs.
    fn close_listeners(&mut self);

    /// Registers a socket for both directions under `key`, once.
    fn register(&mut self, socket: &Self::Socket, key: Key) -> io::Result<()>;

    /// Begins to connect, non-blocking and close-on-exec, and does not wait for the result: see
    /// [`System::is_connected`]. An error is one that the kernel knows at once, such as a network
    /// that no route leads to.
    fn connect(&mut self, address: SocketAddr) -> io::Result<Self::Socket>;

    /// Returns whether a socket that was connecting is connected; `false` after a spurious edge.
    /// The error is that of the attempt, which has ended.
    fn is_connected(&mut self, socket: &Self::Socket) -> io::Result<bool>;

    fn read(&mut self, socket: &Self::Socket, buffer: &mut [u8]) -> io::Result<usize>;

    fn write(&mut self, socket: &Self::Socket, slices: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Sends our FIN; the peer's bytes can still be read.
    fn shutdown_write(&mut self, socket: &Self::Socket) -> io::Result<()>;

    /// Closes the socket; edges that are already on their way carry a stale key from now on.
    fn close(&mut self, socket: Self::Socket);
}
