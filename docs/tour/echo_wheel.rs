//! Step 4: a timer wheel. A client that says nothing for a minute loses its place.
//!
//! One timer for each of ten thousand connections, moved later with every byte: a heap would sort
//! them again each time. A wheel does not sort. Time is cut into ticks, the ticks lie on a circle
//! of buckets, and a connection has one entry in the bucket of the tick in which it is to be looked
//! at. To move a deadline later is to write a field of the connection. The entry stays where it is,
//! fires early, finds the later deadline, and goes into that one's bucket.
//!
//! So a silent connection costs one entry, and a busy one costs a look each time its entry fires.
//! The daemon's version is `src/core/wheel.rs`, and `src/core/deadlines.rs` holds six deadlines in
//! front of the one entry.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use mio::event::Event;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use slab::Slab;

/// The listener's token. No slot's first tenant has generation 0, so no connection has it.
const LISTENER: Token = Token(0);
/// Events taken from the kernel in one turn.
const EVENTS_PER_TURN: usize = 256;
/// The buffer that all connections read into.
pub const BUFFER_BYTES: usize = 4 * 1024;
/// Reads of one connection in one turn.
pub const READS_PER_TURN: usize = 4;
/// Connections at once. A new one takes the place of an old one when all places are taken.
const CONNECTIONS_MAX: usize = 1_000;

/// A connection that is silent for this long is closed.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// The width of a bucket: how late a timer may fire.
pub const TICK: Duration = Duration::from_millis(250);
/// Buckets in the circle, 64 s of them: more than the longest deadline.
const BUCKETS: usize = 256;

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

/// What the kernel has reported and has not taken back.
struct Readiness {
    read: bool,
    write: bool,
    /// The client has sent its FIN, or is gone.
    read_closed: bool,
}

impl Readiness {
    /// A new socket: to try costs one `WouldBlock` at most.
    const NEW: Readiness = Readiness {
        read: true,
        write: true,
        read_closed: false,
    };

    fn handle_edge(&mut self, event: &Event) {
        self.read |= event.is_readable() || event.is_read_closed();
        self.write |= event.is_writable() || event.is_write_closed();
        self.read_closed |= event.is_read_closed();
    }

    fn handle_short_read(&mut self) {
        self.read = self.read_closed;
    }
}

/// When to look at which connection.
struct Wheel {
    start: Instant,
    /// The first tick whose bucket may hold entries that are due.
    cursor: usize,
    buckets: Vec<Vec<Key>>,
}

impl Wheel {
    fn new(start: Instant) -> Wheel {
        Wheel {
            start,
            cursor: 0,
            buckets: vec![Vec::new(); BUCKETS],
        }
    }

    /// Ticks that are over by then.
    fn ticks(&self, at: Instant) -> usize {
        (at.saturating_duration_since(self.start).as_millis() / TICK.as_millis()) as usize
    }

    fn schedule(&mut self, key: Key, at: Instant) {
        // One more: when this tick begins, the moment has passed. Never early.
        let tick = self.ticks(at) + 1;
        let tick = tick.clamp(self.cursor, self.cursor + BUCKETS - 1);
        self.buckets[tick % BUCKETS].push(key);
    }

    /// The moment at which [`Wheel::expire`] has something to do.
    fn next_expiry(&self) -> Option<Instant> {
        let mut ticks = self.cursor..self.cursor + BUCKETS;
        let tick = ticks.find(|tick| !self.buckets[tick % BUCKETS].is_empty())?;
        Some(self.start + TICK * tick as u32)
    }

    /// Takes out all entries whose tick has begun.
    fn expire(&mut self, now: Instant) -> Vec<Key> {
        let mut due = Vec::new();
        let end = self.ticks(now) + 1;
        // After a circle every bucket was visited, however far the clock has jumped.
        for tick in self.cursor..end.min(self.cursor + BUCKETS) {
            due.append(&mut self.buckets[tick % BUCKETS]);
        }
        self.cursor = self.cursor.max(end);
        due
    }
}

struct Connection {
    socket: TcpStream,
    readiness: Readiness,
    /// Bytes that were read and that the kernel has not taken back yet.
    unsent: Vec<u8>,
    /// It is in the run queue, once.
    is_queued: bool,
    /// Moved later with each turn that the connection uses.
    idle_until: Instant,
}

/// What a pump leaves behind.
enum Pumped {
    /// Nothing more can be done until an edge comes.
    Waiting,
    /// The share of this turn is used up, and the work is not.
    Again,
    /// The client's last byte is echoed.
    Over,
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
    /// Connections that have work, first in, first out.
    run_queue: VecDeque<Key>,
    wheel: Wheel,
    /// The clock is read once per turn.
    now: Instant,
    /// Events that came for a connection that was gone.
    pub stale_events: u64,
}

impl Reactor {
    pub fn bind(address: SocketAddr, connections_max: usize) -> io::Result<Reactor> {
        let (poll, now) = (Poll::new()?, Instant::now());
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
            run_queue: VecDeque::new(),
            wheel: Wheel::new(now),
            now,
            stale_events: 0,
        })
    }

    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// One turn of the loop: waits for events, remembers them, then does the work.
    pub fn turn(&mut self, wait: Option<Duration>) -> io::Result<()> {
        let timeout = self.timeout(wait);
        match self.poll.poll(&mut self.events, timeout) {
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
            polled => polled?,
        }
        self.now = Instant::now();
        let events = std::mem::replace(&mut self.events, Events::with_capacity(0));
        for event in &events {
            match event.token() {
                LISTENER => self.accept()?,
                token => self.mark(Key::of(token), event),
            }
        }
        self.events = events;
        // A snapshot: a connection that is queued during this turn waits for the next one.
        for _ in 0..self.run_queue.len() {
            if let Some(key) = self.run_queue.pop_front() {
                self.pump(key);
            }
        }
        // After the run queue: bytes that came in time count, however late the loop looks.
        self.expire(self.now);
        Ok(())
    }

    /// How long the kernel may let the loop sleep.
    fn timeout(&self, wait: Option<Duration>) -> Option<Duration> {
        if !self.run_queue.is_empty() {
            // Queued work makes no edge: the loop would sleep on bytes that are here.
            return Some(Duration::ZERO);
        }
        let now = Instant::now();
        let next = self.wheel.next_expiry();
        let next = next.map(|at| at.saturating_duration_since(now));
        [wait, next].into_iter().flatten().min()
    }

    /// Looks at the connections whose entries have fired.
    pub fn expire(&mut self, now: Instant) {
        for key in self.wheel.expire(now) {
            match self.connections.get_mut(key).map(|found| found.idle_until) {
                Some(until) if until <= now => self.close(key),
                // The deadline has moved since the entry was made.
                Some(until) => self.wheel.schedule(key, until),
                // The connection is gone, and its entry goes now.
                None => {}
            }
        }
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
        let key = self.connections.vacant_key();
        let both = Interest::READABLE | Interest::WRITABLE;
        socket.set_nonblocking(true)?;
        let source = socket.as_raw_fd();
        self.poll
            .registry()
            .register(&mut SourceFd(&source), key.token(), both)?;
        self.connections.slab.insert(Connection {
            socket,
            readiness: Readiness::NEW,
            unsent: Vec::new(),
            is_queued: false,
            idle_until: self.now + IDLE_TIMEOUT,
        });
        self.wheel.schedule(key, self.now + IDLE_TIMEOUT);
        Ok(())
    }

    /// No work is done here.
    fn mark(&mut self, key: Key, event: &Event) {
        let Some(connection) = self.connections.get_mut(key) else {
            self.stale_events += 1;
            return;
        };
        connection.readiness.handle_edge(event);
        self.enqueue(key);
    }

    fn enqueue(&mut self, key: Key) {
        if let Some(connection) = self.connections.get_mut(key)
            && !std::mem::replace(&mut connection.is_queued, true)
        {
            self.run_queue.push_back(key);
        }
    }

    fn pump(&mut self, key: Key) {
        let Some(connection) = self.connections.get_mut(key) else {
            return;
        };
        connection.is_queued = false;
        connection.idle_until = self.now + IDLE_TIMEOUT;
        match connection.pump(&mut self.scratch) {
            Ok(Pumped::Waiting) => {}
            Ok(Pumped::Again) => self.enqueue(key),
            Ok(Pumped::Over) | Err(_) => self.close(key),
        }
    }

    /// Dropping a socket closes it, and closing it takes it out of epoll's set.
    fn close(&mut self, key: Key) {
        drop(self.connections.remove(key));
    }
}

impl Connection {
    /// Echoes while both directions are ready, within its share of the turn.
    fn pump(&mut self, scratch: &mut [u8]) -> io::Result<Pumped> {
        for _ in 0..READS_PER_TURN {
            while !self.unsent.is_empty() {
                if !self.readiness.write {
                    return Ok(Pumped::Waiting);
                }
                match self.socket.write(&self.unsent) {
                    Ok(taken) => {
                        self.readiness.write = taken == self.unsent.len();
                        self.unsent.drain(..taken);
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        self.readiness.write = false;
                    }
                    Err(error) if is_transient(&error) => {}
                    Err(error) => return Err(error),
                }
            }
            if !self.readiness.read {
                return Ok(Pumped::Waiting);
            }
            match self.socket.read(scratch) {
                Ok(0) => return Ok(Pumped::Over),
                Ok(length) => {
                    if length < scratch.len() {
                        self.readiness.handle_short_read();
                    }
                    self.unsent.extend_from_slice(&scratch[..length]);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.readiness.read = false;
                }
                Err(error) if is_transient(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Pumped::Again)
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
