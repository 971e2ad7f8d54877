//! The kernel as the loop's [`System`]: epoll through mio, sockets through socket2.
//!
//! Owns the epoll instance, and a share in the listeners: all reactors watch the same ones, and the
//! kernel wakes one of them for each connection. It only translates and takes no decisions, which
//! is why the simulation can replace it.

use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use socket2::Socket;

use super::system::{Edge, Source, System};
use crate::core::budget::Clock;
use crate::core::key::Kind;
use crate::core::{Key, Moment};
use crate::limits::reactor as limits;
use crate::offload::mailbox::Doorbell;
use crate::os::epoll::add_exclusive;
use crate::os::socket;
use crate::service::{Peer, PeerAddress};

/// A connection never has generation 0, so its tokens are free for other sources.
const DOORBELL: Token = Token(0);

/// epoll(7) through mio.
pub struct Epoll {
    poll: Poll,
    events: Events,
    listeners: Vec<Arc<Socket>>,
}

impl Epoll {
    /// The listeners are shared with the other reactors, and with the supervisor, which owns them.
    pub fn new(listeners: Vec<Arc<Socket>>) -> io::Result<Epoll> {
        let poll = Poll::new()?;
        for (index, listener) in listeners.iter().enumerate() {
            add_exclusive(&poll, &**listener, 1 + index)?;
        }
        let events = Events::with_capacity(limits::EVENTS_PER_TURN_MAX);
        Ok(Epoll {
            poll,
            events,
            listeners,
        })
    }

    /// Returns the bell for other threads: an eventfd(2) in the same epoll set.
    pub fn doorbell(&self) -> io::Result<Box<dyn Doorbell>> {
        Ok(Box::new(EventfdBell(Waker::new(
            self.poll.registry(),
            DOORBELL,
        )?)))
    }
}

struct EventfdBell(Waker);

impl Doorbell for EventfdBell {
    fn ring(&self) {
        // An eventfd's write fails only when its counter overflows, and mio resets it then.
        if let Err(error) = self.0.wake() {
            log::error!("cannot wake a reactor: {error}");
        }
    }
}

impl System for Epoll {
    type Socket = Socket;

    fn poll(&mut self, edges: &mut Vec<Edge>, timeout: Option<Duration>) -> io::Result<()> {
        match self.poll.poll(&mut self.events, timeout) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            other => other?,
        }
        edges.extend(self.events.iter().map(|event| Edge {
            source: source_of(event.token()),
            readable: event.is_readable(),
            writable: event.is_writable(),
            read_closed: event.is_read_closed(),
            broken: event.is_error() || (event.is_read_closed() && event.is_write_closed()),
        }));
        Ok(())
    }

    fn now(&mut self) -> Moment {
        Moment::now()
    }

    fn clock(&self) -> Rc<Clock> {
        Rc::new(Moment::now)
    }

    fn accept(&mut self, listener: usize) -> io::Result<(Socket, Peer)> {
        let (socket, address) = socket::accept(&self.listeners[listener])?;
        let address = match address.as_socket() {
            Some(address) => PeerAddress::Ip(address.ip().to_canonical()),
            None => PeerAddress::Unix,
        };
        Ok((socket, Peer::new(address)))
    }

    fn has_waiting(&mut self, listener: usize) -> bool {
        socket::has_waiting(&self.listeners[listener])
    }

    fn listeners(&self) -> usize {
        self.listeners.len()
    }

    fn close_listeners(&mut self) {
        for listener in self.listeners.drain(..) {
            // Deregistering a registered descriptor does not fail. If it did, the token would name
            // a listener that no longer exists, which the loop ignores.
            let _ = self
                .poll
                .registry()
                .deregister(&mut SourceFd(&listener.as_raw_fd()));
        }
    }

    fn register(&mut self, socket: &Socket, key: Key) -> io::Result<()> {
        self.poll.registry().register(
            &mut SourceFd(&socket.as_raw_fd()),
            Token(key.to_u64() as usize),
            Interest::READABLE | Interest::WRITABLE,
        )
    }

    fn connect(&mut self, address: SocketAddr) -> io::Result<Socket> {
        socket::connect(address)
    }

    fn is_connected(&mut self, socket: &Socket) -> io::Result<bool> {
        socket::is_connected(socket)
    }

    fn read(&mut self, socket: &Socket, buffer: &mut [u8]) -> io::Result<usize> {
        let mut socket = socket;
        socket.read(buffer)
    }

    fn write(&mut self, socket: &Socket, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut socket = socket;
        match slices {
            [single] => socket.write(single),
            several => socket.write_vectored(several),
        }
    }

    fn shutdown_write(&mut self, socket: &Socket) -> io::Result<()> {
        socket.shutdown(Shutdown::Write)
    }

    fn close(&mut self, socket: Socket) {
        // close(2) removes the descriptor from the epoll set, because it is never duplicated.
        drop(socket);
    }
}

fn source_of(token: Token) -> Source {
    let key = Key::from_u64(token.0 as u64);
    match (key.generation, key.index) {
        (0, 0) => Source::Doorbell,
        (0, listener) => Source::Listener(listener as usize - 1),
        _ if key.kind() == Kind::Outbound => Source::Outbound(key),
        _ => Source::Client(key),
    }
}
