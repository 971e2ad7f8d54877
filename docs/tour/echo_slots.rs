//! Step 1: slots with generations. An event for a connection that is gone reaches no other one.
//!
//! `epoll_wait` returns a batch, collected before the first event of it is handled. If handling one
//! event closes a connection and gives its slot to a new one, the batch may still hold an event of
//! the old connection, and its token names the slot. In `echo.rs` a hang-up of the old client then
//! closed the new client's connection.
//!
//! Here each slot counts its tenants, and the token carries the count: `generation << 32 | index`.
//! A token of an earlier tenant finds nothing. The daemon's version is `src/core/slots.rs`.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use mio::event::Event;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use slab::Slab;

/// The listener's token. No slot's first tenant has generation 0, so no connection has it.
const LISTENER: Token = Token(0);
/// Events taken from the kernel in one turn.
const EVENTS_PER_TURN: usize = 256;
/// The buffer that all connections read into.
const BUFFER_BYTES: usize = 4 * 1024;
/// Connections at once. A new one takes the place of an old one when all places are taken.
const CONNECTIONS_MAX: usize = 1_000;

/// Names one connection for as long as it lives, and nothing afterwards.
#[derive(Clone, Copy)]
struct Key {
    index: usize,
    generation: u32,
}

impl Key {
    fn token(self) -> Token {
        Token((self.generation as usize) << 32 | self.index)
    }

    fn of(token: Token) -> Key {
        Key {
            index: token.0 & u32::MAX as usize,
            generation: (token.0 >> 32) as u32,
        }
    }
}

/// A slab whose slots count their tenants.
struct Slots {
    slab: Slab<Connection>,
    /// By index: the generation of the tenant, or of the next one.
    generations: Vec<u32>,
}

impl Slots {
    fn vacant_key(&mut self) -> Key {
        let index = self.slab.vacant_key();
        if index == self.generations.len() {
            self.generations.push(1);
        }
        self.tenant(index)
    }

    fn tenant(&self, index: usize) -> Key {
        let generation = self.generations[index];
        Key { index, generation }
    }

    fn get_mut(&mut self, key: Key) -> Option<&mut Connection> {
        let is_current = self.generations.get(key.index) == Some(&key.generation);
        is_current.then(|| self.slab.get_mut(key.index)).flatten()
    }

    fn remove(&mut self, key: Key) -> Connection {
        // 0 is left out when the count wraps: it is the listener's.
        self.generations[key.index] = key.generation.wrapping_add(1).max(1);
        self.slab.remove(key.index)
    }
}

struct Connection {
    socket: TcpStream,
    /// Bytes that were read and that the kernel has not taken back yet.
    unsent: Vec<u8>,
}

pub struct Reactor {
    poll: Poll,
    events: Events,
    listener: TcpListener,
    connections: Slots,
    connections_max: usize,
    /// The slot that is emptied next when all are taken.
    next_victim: usize,
    scratch: Box<[u8]>,
    /// Events that came for a connection that was gone.
    pub stale_events: u64,
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
            connections: Slots {
                slab: Slab::new(),
                generations: Vec::new(),
            },
            connections_max,
            next_victim: 0,
            scratch: vec![0; BUFFER_BYTES].into_boxed_slice(),
            stale_events: 0,
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
                token => self.handle_event(Key::of(token), event),
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
        if self.connections.slab.len() == self.connections_max {
            self.close(self.connections.tenant(self.next_victim));
            self.next_victim = (self.next_victim + 1) % self.connections_max;
        }
        let token = self.connections.vacant_key().token();
        let both = Interest::READABLE | Interest::WRITABLE;
        socket.set_nonblocking(true)?;
        let source = socket.as_raw_fd();
        self.poll
            .registry()
            .register(&mut SourceFd(&source), token, both)?;
        self.connections.slab.insert(Connection {
            socket,
            unsent: Vec::new(),
        });
        Ok(())
    }

    fn handle_event(&mut self, key: Key, event: &Event) {
        let Some(connection) = self.connections.get_mut(key) else {
            self.stale_events += 1;
            return;
        };
        // Gone in both directions: no system call is needed to find that out.
        let is_gone = event.is_read_closed() && event.is_write_closed();
        if is_gone || !connection.pump(&mut self.scratch).unwrap_or(false) {
            self.close(key);
        }
    }

    /// Dropping a socket closes it, and closing it takes it out of epoll's set.
    fn close(&mut self, key: Key) {
        drop(self.connections.remove(key));
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
