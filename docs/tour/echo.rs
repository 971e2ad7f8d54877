//! The smallest reactor: one thread echoes what any number of clients send.
//!
//! ```text
//!   cargo run --no-default-features --example echo
//!   nc 127.0.0.1 7000                                   # in a second terminal
//! ```
//!
//! Three rules carry it, and the daemon keeps the same three:
//!
//!  1. Every socket is non-blocking and is registered once, for both directions, edge-triggered.
//!  2. After an edge, work goes on until the kernel returns `WouldBlock`, because no edge reports
//!     what is left: only a new arrival makes one.
//!  3. Bytes that the kernel does not take now wait in the connection. While they wait, nothing
//!     more is read: a client that does not read its echo is not read either.
//!
//! It has three faults on purpose. The steps after it repair them one at a time: an event can reach
//! the wrong connection (`echo_slots.rs`), one fast client keeps all others waiting
//! (`echo_readiness.rs` prepares what `echo_run_queue.rs` repairs), and a silent client keeps its
//! place for ever (`echo_wheel.rs`).

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use mio::event::Event;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use slab::Slab;

/// The listener's token. A connection's token is the index of its slot.
const LISTENER: Token = Token(usize::MAX);
/// Events taken from the kernel in one turn.
const EVENTS_PER_TURN: usize = 256;
/// The buffer that all connections read into.
const BUFFER_BYTES: usize = 4 * 1024;
/// Connections at once. A new one takes the place of an old one when all places are taken.
const CONNECTIONS_MAX: usize = 1_000;

struct Connection {
    socket: TcpStream,
    /// Bytes that were read and that the kernel has not taken back yet.
    unsent: Vec<u8>,
}

pub struct Reactor {
    poll: Poll,
    events: Events,
    listener: TcpListener,
    connections: Slab<Connection>,
    connections_max: usize,
    /// The slot that is emptied next when all are taken.
    next_victim: usize,
    scratch: Box<[u8]>,
}

impl Reactor {
    pub fn bind(address: SocketAddr, connections_max: usize) -> io::Result<Reactor> {
        let poll = Poll::new()?;
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let source = listener.as_raw_fd();
        poll.registry()
            .register(&mut SourceFd(&source), LISTENER, Interest::READABLE)?;
        Ok(Reactor {
            poll,
            events: Events::with_capacity(EVENTS_PER_TURN),
            listener,
            connections: Slab::new(),
            connections_max,
            next_victim: 0,
            scratch: vec![0; BUFFER_BYTES].into_boxed_slice(),
        })
    }

    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// One turn of the loop: waits for events, as long as it takes or for `wait`, and handles them.
    pub fn turn(&mut self, wait: Option<Duration>) -> io::Result<()> {
        match self.poll.poll(&mut self.events, wait) {
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
            polled => polled?,
        }
        let events = std::mem::replace(&mut self.events, Events::with_capacity(0));
        for event in &events {
            match event.token() {
                LISTENER => self.accept()?,
                Token(index) => self.handle_event(index, event),
            }
        }
        self.events = events;
        Ok(())
    }

    /// Takes connections in until the backlog is empty: no edge reports those that are left in it.
    fn accept(&mut self) -> io::Result<()> {
        loop {
            match self.listener.accept() {
                Ok((socket, _)) => self.insert(socket)?,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if is_transient(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn insert(&mut self, socket: TcpStream) -> io::Result<()> {
        if self.connections.len() == self.connections_max {
            self.close(self.next_victim);
            self.next_victim = (self.next_victim + 1) % self.connections_max;
        }
        let token = Token(self.connections.vacant_key());
        let both = Interest::READABLE | Interest::WRITABLE;
        socket.set_nonblocking(true)?;
        let source = socket.as_raw_fd();
        self.poll
            .registry()
            .register(&mut SourceFd(&source), token, both)?;
        self.connections.insert(Connection {
            socket,
            unsent: Vec::new(),
        });
        Ok(())
    }

    fn handle_event(&mut self, index: usize, event: &Event) {
        let Some(connection) = self.connections.get_mut(index) else {
            return;
        };
        // Gone in both directions: no system call is needed to find that out.
        let is_gone = event.is_read_closed() && event.is_write_closed();
        if is_gone || !connection.pump(&mut self.scratch).unwrap_or(false) {
            self.close(index);
        }
    }

    /// Dropping a socket closes it, and closing it takes it out of epoll's set.
    fn close(&mut self, index: usize) {
        drop(self.connections.remove(index));
    }
}

impl Connection {
    /// Echoes until the kernel says `WouldBlock`. Returns false after the client's last byte.
    fn pump(&mut self, scratch: &mut [u8]) -> io::Result<bool> {
        loop {
            while !self.unsent.is_empty() {
                match self.socket.write(&self.unsent) {
                    Ok(taken) => drop(self.unsent.drain(..taken)),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
                    Err(error) if is_transient(&error) => {}
                    Err(error) => return Err(error),
                }
            }
            match self.socket.read(scratch) {
                Ok(0) => return Ok(false),
                Ok(length) => self.unsent.extend_from_slice(&scratch[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
                Err(error) if is_transient(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Whether the same call may succeed at once.
fn is_transient(error: &io::Error) -> bool {
    let kind = error.kind();
    kind == ErrorKind::Interrupted || kind == ErrorKind::ConnectionAborted
}

pub fn main() -> io::Result<()> {
    let mut reactor = Reactor::bind(([127, 0, 0, 1], 7000).into(), CONNECTIONS_MAX)?;
    println!("echo on {}", reactor.address()?);
    loop {
        reactor.turn(None)?;
    }
}
