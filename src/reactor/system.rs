//! The seam between the loop and the kernel: every system call that the loop makes, as a trait.
//!
//! The loop is written once, against [`System`]. [`super::epoll::Epoll`] is the kernel; the
//! simulator in `simulation` is its fault-injecting twin, which makes short reads, resets and a
//! full descriptor table as often as a test wants them. Nothing else in the crate may touch a
//! socket.
//!
//! The contract that both sides keep, epoll(7)'s edge-triggered one:
//!
//!  1. A socket is registered once, for both directions, and never again.
//!  2. An event says that a direction *became* ready. There is no second event until a call has
//!     answered `WouldBlock` (or, for a stream socket, a read or write was cut short) and the
//!     direction became ready anew.
//!  3. An event may be spurious, and it may carry the key of a connection that is gone.

use std::io::{self, IoSlice};
use std::time::Duration;

use crate::core::{Key, Moment};
use crate::service::Peer;

/// What a notification is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Somebody posted to this reactor's mailbox.
    Doorbell,
    /// A connection may wait in the backlog of the listener with this index.
    Listener(usize),
    Connection(Key),
}

/// One edge: `source` became ready in some way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edge {
    pub source: Source,
    pub readable: bool,
    pub writable: bool,
    /// The peer has sent its FIN (`EPOLLRDHUP`): after what is buffered, a read gives 0.
    pub read_closed: bool,
    /// Both directions are gone (`EPOLLHUP` or `EPOLLERR`): the next call says why.
    pub broken: bool,
}

/// Everything that the loop asks of the outside world. No method but `poll` waits.
pub trait System {
    type Socket;

    /// Appends the edges of at most `timeout` of waiting; `None` waits without a bound. An
    /// interrupted wait is an empty batch, not an error.
    fn poll(&mut self, edges: &mut Vec<Edge>, timeout: Option<Duration>) -> io::Result<()>;

    /// Reads the monotonic clock.
    fn now(&mut self) -> Moment;

    /// Takes one connection out of a listener's backlog, non-blocking and close-on-exec.
    fn accept(&mut self, listener: usize) -> io::Result<(Self::Socket, Peer)>;

    /// Whether somebody stands in a listener's backlog at this moment: a level, not an edge. `true`
    /// where the kernel would not say.
    fn has_waiting(&mut self, listener: usize) -> bool;

    /// How many listeners there are.
    fn listeners(&self) -> usize;

    /// Stops listening: what is in the backlogs is refused by the kernel.
    fn close_listeners(&mut self);

    /// Registers a socket for both directions under `key`, once.
    fn register(&mut self, socket: &Self::Socket, key: Key) -> io::Result<()>;

    fn read(&mut self, socket: &Self::Socket, buffer: &mut [u8]) -> io::Result<usize>;

    fn write(&mut self, socket: &Self::Socket, slices: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Sends our FIN; the peer can still be read.
    fn shutdown_write(&mut self, socket: &Self::Socket) -> io::Result<()>;

    /// Closes the socket; edges that are already on their way carry a stale key from now on.
    fn close(&mut self, socket: Self::Socket);
}
