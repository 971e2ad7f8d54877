//! A simulated kernel: sockets with epoll(7)'s edge-triggered rules, using all of its freedoms.
//!
//! Events that a real kernel may cause but seldom does happen here all the time: writes are cut
//! short, edges are late or spurious, descriptors run out, the clock leaps. Events that it never
//! causes must not happen here either:
//!
//!  1. A readable edge comes with each arrival, a writable one when a full buffer gets room, and
//!     both once at registration if they hold then. No other edge may be relied on.
//!  2. A read returns less than is there only in the way that epoll(7) allows: if the offered
//!     buffer was full. So "fewer bytes than asked for" means "empty".
//!  3. Bytes arrive in order, each once, FIN after them; a reset destroys unread bytes.
//!  4. Closing a socket that holds unread bytes resets it, and so do bytes that come after a close
//!     (RFC 2525, section 2.17): the client loses the unread part of its response.
//!
//! A connection of the daemon's own is a wire too. It begins in its handshake, in which nothing may
//! be read or written, and no edge comes until the simulated server accepts or the attempt fails.
//! "Client" is the other end of such a wire as well.
//!
//! There is one network; each reactor has its own kernel, with its own interest list, and sees the
//! edges of the sockets that it registered. All of them watch the one listener with
//! `EPOLLEXCLUSIVE`: a connection's edge comes to one kernel, and perhaps to others. The backlog is
//! refused when the last kernel has closed the listener.

use std::cell::{RefCell, RefMut};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::Dice;
use crate::core::budget::Clock;
use crate::core::key::Kind;
use crate::core::{Key, Moment};
use crate::offload::mailbox::Doorbell;
use crate::os::process::thread_cpu_time;
use crate::reactor::system::{Edge, Source, System};
use crate::service::{Peer, PeerAddress};

/// The index of a [`Wire`].
#[derive(Debug, PartialEq, Eq)]
pub struct Socket(pub usize);

/// One TCP connection, seen from both ends.
#[derive(Debug, Default)]
pub struct Wire {
    /// The kernel with which it is registered, and its key.
    registered: Option<(usize, Key)>,
    /// Bytes that the client has sent and the daemon has not read.
    pub to_daemon: VecDeque<u8>,
    /// Bytes that the daemon has sent and the client has not read.
    pub to_client: VecDeque<u8>,
    /// How many bytes `to_client` can hold.
    pub capacity: usize,
    /// The client sends no more.
    pub client_fin: bool,
    pub daemon_fin: bool,
    /// The client is gone: nothing arrives any more, in either direction.
    pub reset: bool,
    /// The daemon has closed its end.
    pub closed: bool,
    /// The daemon met a full buffer and waits for room.
    write_blocked: bool,
    /// The handshake of a connection that the daemon opens.
    link: Link,
    pending: Option<Edge>,
}

/// The state of a connection's handshake.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Link {
    #[default]
    Up,
    /// The daemon has sent its SYN.
    Connecting,
    /// The attempt failed with this `errno`, which the daemon has not read yet.
    Failed(i32),
}

impl Wire {
    /// Returns whether the daemon will get an edge of this wire without doing anything.
    pub fn has_pending_edge(&self) -> bool {
        self.pending.is_some()
    }

    fn raise(&mut self, change: impl FnOnce(&mut Edge)) {
        let Some((_, key)) = self.registered else {
            return;
        };
        change(self.pending.get_or_insert(edge_of(source_of(key))));
    }

    /// Returns whether nothing more will come to the client.
    pub fn is_over(&self) -> bool {
        (self.closed || self.daemon_fin || self.reset) && self.to_client.is_empty()
    }

    /// Raises an edge without news, as the kernel may do at any time.
    pub fn raise_spurious_edge(&mut self) {
        self.raise(|edge| (edge.readable, edge.writable) = (true, true));
    }

    // ---- the client's side ----

    pub fn client_sends(&mut self, bytes: &[u8]) {
        if self.closed {
            self.daemon_resets();
        } else if !self.reset {
            self.to_daemon.extend(bytes);
            self.raise(|edge| edge.readable = true);
        }
    }

    pub fn client_reads(&mut self, at_most: usize) -> Vec<u8> {
        let count = at_most.min(self.to_client.len());
        let bytes = self.to_client.drain(..count).collect();
        if count > 0 && std::mem::take(&mut self.write_blocked) {
            self.raise(|edge| edge.writable = true);
        }
        bytes
    }

    pub fn client_half_closes(&mut self) {
        self.client_fin = true;
        let both = self.daemon_fin;
        self.raise(|edge| {
            edge.readable = true;
            edge.read_closed = true;
            edge.broken |= both;
        });
    }

    pub fn client_resets(&mut self) {
        self.reset = true;
        self.to_daemon.clear();
        self.to_client.clear();
        self.raise(|edge| {
            (edge.readable, edge.writable) = (true, true);
            (edge.read_closed, edge.broken) = (true, true);
        });
    }

    // ---- the side of a server that the daemon connects to ----

    /// Returns whether the daemon's handshake still runs.
    pub fn is_connecting(&self) -> bool {
        self.link == Link::Connecting
    }

    /// The server accepts. The edge is for writing alone, as from the kernel.
    pub fn server_accepts(&mut self) {
        self.link = Link::Up;
        self.raise(|edge| edge.writable = true);
    }

    /// The attempt fails: a reset answered the SYN, or nothing did.
    pub fn server_fails(&mut self, errno: i32) {
        self.link = Link::Failed(errno);
        self.raise(|edge| {
            (edge.readable, edge.writable) = (true, true);
            (edge.read_closed, edge.broken) = (true, true);
        });
    }

    /// Resets the connection from the daemon's side: the client's kernel drops its unread bytes
    /// with it.
    fn daemon_resets(&mut self) {
        self.reset = true;
        self.to_client.clear();
    }
}

/// Measures the steps of the loop, from one reading of the clock to the next: budgets read it after
/// each request, frame and message. In the thread's CPU time, whatever the simulated clock shows.
#[derive(Default)]
pub struct Stopwatch {
    pub is_on: bool,
    since: Duration,
    pub longest: Duration,
}

impl Stopwatch {
    /// A turn begins.
    pub fn begin(&mut self) {
        if self.is_on {
            self.since = thread_cpu_time();
        }
    }

    /// A step has ended, and the next one begins.
    pub fn lap(&mut self) {
        if self.is_on {
            self.longest = self.longest.max(thread_cpu_time() - self.since);
            self.since = thread_cpu_time();
        }
    }
}

/// The state that all kernels share: the wires, the clock, and the one listener with its backlog.
pub struct Network {
    pub dice: Dice,
    pub clock: Moment,
    /// Decides how long the reactors' work takes. Dice of its own, so that a clock that is read
    /// once more changes nothing else.
    pace: Dice,
    /// How much later it is at each reading of a calm network's clock: the time of one step.
    pub step: Duration,
    pub stopwatch: Stopwatch,
    pub wires: Vec<Wire>,
    /// Wires that have not been accepted yet.
    pub backlog: VecDeque<usize>,
    /// By kernel: whether it watches the listener, and whether an edge of it is to come.
    listening: Vec<bool>,
    listener_edges: Vec<bool>,
    /// The kernel that sleeps, so that the listener's edges come to it, if the network is calm.
    pub sleeper: usize,
    /// While positive, accept fails for lack of descriptors and counts it down.
    pub descriptor_famine: u32,
    /// While positive, epoll has no room for another socket and counts it down.
    pub registration_famine: u32,
    /// Whether accept reserves a descriptor before it looks at the backlog, as on Linux, and so
    /// fails although no connection waits. Random worlds do without: the tour names their seeds.
    pub reserves_first: bool,
    /// The addresses that clients come from, in turn.
    pub addresses: Vec<IpAddr>,
    /// The first bytes on every connection: a proxy's header, or nothing.
    pub introduction: Vec<u8>,
    /// Waits last microseconds, not milliseconds, so that no client seems to drip.
    pub is_slow: bool,
    /// Only the test causes events: no interrupted calls, no late or spurious edges, and no time
    /// passes.
    pub calm: bool,
    bells: Vec<Arc<AtomicBool>>,
    /// The connections that the daemon opens, with the address of each, in order.
    pub dialled: Vec<(usize, SocketAddr)>,
}

impl Network {
    pub fn new(seed: u64) -> Rc<RefCell<Network>> {
        Rc::new(RefCell::new(Network {
            dice: Dice::new(seed),
            clock: Moment::from_micros(1_000_000),
            pace: Dice::new(!seed),
            step: Duration::ZERO,
            stopwatch: Stopwatch::default(),
            wires: Vec::new(),
            backlog: VecDeque::new(),
            listening: Vec::new(),
            listener_edges: Vec::new(),
            sleeper: 0,
            descriptor_famine: 0,
            registration_famine: 0,
            reserves_first: false,
            addresses: vec![[127, 0, 0, 1].into()],
            introduction: Vec::new(),
            is_slow: false,
            calm: false,
            bells: Vec::new(),
            dialled: Vec::new(),
        }))
    }

    /// Connects a client; returns its wire's index, or `None` without a listener. `capacity` is how
    /// many bytes of a response the kernels on the way hold.
    pub fn connect(&mut self, capacity: usize) -> Option<usize> {
        if !self.listening.contains(&true) {
            return None;
        }
        self.wires.push(Wire {
            capacity,
            ..Wire::default()
        });
        let wire = self.wires.len() - 1;
        if !self.introduction.is_empty() {
            self.wires[wire].client_sends(&self.introduction);
        }
        // The edge is that of the backlog becoming non-empty; more may come, or not.
        if self.backlog.is_empty() || self.dice.one_in(2) {
            self.raise_listener_edge();
        }
        self.backlog.push_back(wire);
        Some(wire)
    }

    /// Wakes one of the kernels that watch the listener. Others may be awake, and see the edge too.
    fn raise_listener_edge(&mut self) {
        let watching = (0..self.listening.len()).filter(|&kernel| self.listening[kernel]);
        let watching: Vec<usize> = watching.collect();
        if self.calm || watching.len() == 1 {
            let sleeps = watching.contains(&self.sleeper);
            let woken = if sleeps { self.sleeper } else { watching[0] };
            self.listener_edges[woken] = true;
            return;
        }
        let woken = self.dice.below(watching.len() as u64) as usize;
        for (number, &kernel) in watching.iter().enumerate() {
            self.listener_edges[kernel] |= number == woken || self.dice.one_in(8);
        }
    }

    /// Returns whether a reactor will be woken without anything further happening.
    pub fn has_pending_events(&self) -> bool {
        self.listener_edges.contains(&true)
            || self.bells.iter().any(|bell| bell.load(Ordering::Relaxed))
            || self
                .wires
                .iter()
                .any(|wire| !wire.closed && wire.has_pending_edge())
    }

    /// Delays the edge of a waiting connection.
    pub fn hide_listener_edge(&mut self) {
        self.listener_edges.fill(false);
    }

    /// Reads the clock for a reactor at work. Since the last reading some time has passed: mostly
    /// a few microseconds, often more than a pump may take, and sometimes the machine stood still.
    fn read_clock(&mut self) -> Moment {
        self.stopwatch.lap();
        let passed = match self.pace.below(64) {
            _ if self.calm => self.step,
            // No client may seem to drip, and there are some ten thousand readings.
            0 if self.is_slow => Duration::from_micros(self.pace.below(3_000)),
            0 => Duration::from_millis(self.pace.below(20_000)),
            1..16 if !self.is_slow => Duration::from_micros(self.pace.below(4_000)),
            _ => Duration::from_micros(self.pace.below(20)),
        };
        self.clock = self.clock + passed;
        self.clock
    }

    /// Lets the dice decide unless the network is calm.
    fn mishap(&mut self, one_in: u64) -> bool {
        !self.calm && self.dice.one_in(one_in)
    }

    fn wire(&mut self, socket: &Socket) -> &mut Wire {
        let wire = &mut self.wires[socket.0];
        assert!(!wire.closed, "a closed socket is used");
        wire
    }
}

/// One reactor's view of the network; see the file's head.
pub struct SimulatedKernel {
    index: usize,
    network: Rc<RefCell<Network>>,
    bell: Arc<AtomicBool>,
    /// Makes the handling of this wire panic, as a bug would.
    pub cursed_wire: Option<usize>,
}

impl SimulatedKernel {
    /// Creates a kernel, which watches the listener.
    pub fn new(network: &Rc<RefCell<Network>>) -> SimulatedKernel {
        let bell = Arc::new(AtomicBool::new(false));
        let mut shared = network.borrow_mut();
        shared.bells.push(bell.clone());
        shared.listening.push(true);
        shared.listener_edges.push(false);
        SimulatedKernel {
            index: shared.bells.len() - 1,
            network: network.clone(),
            bell,
            cursed_wire: None,
        }
    }

    pub fn doorbell(&self) -> Box<dyn Doorbell> {
        Box::new(Bell(self.bell.clone()))
    }

    pub fn network(&self) -> RefMut<'_, Network> {
        self.network.borrow_mut()
    }

    fn has_listener(&self) -> bool {
        self.network.borrow().listening[self.index]
    }
}

struct Bell(Arc<AtomicBool>);

impl Doorbell for Bell {
    fn ring(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl System for SimulatedKernel {
    type Socket = Socket;

    fn poll(&mut self, edges: &mut Vec<Edge>, timeout: Option<Duration>) -> io::Result<()> {
        let network = &mut *self.network.borrow_mut();
        if !network.calm {
            network.clock = network.clock + Duration::from_micros(network.dice.below(50));
        }
        let silent = !network.has_pending_events();
        if network.listener_edges[self.index] && !network.mishap(4) {
            network.listener_edges[self.index] = false;
            edges.push(edge_of(Source::Listener(0)));
        }
        if self.bell.swap(false, Ordering::Relaxed) {
            edges.push(edge_of(Source::Doorbell));
        }
        for wire in 0..network.wires.len() {
            let is_mine =
                matches!(network.wires[wire].registered, Some((mine, _)) if mine == self.index);
            // An edge may be late: other turns come between the arrival and its edge.
            if is_mine && network.wires[wire].has_pending_edge() && !network.mishap(4) {
                edges.extend(network.wires[wire].pending.take());
            }
        }
        if silent && !network.calm {
            // Waits to the end, or until an unrelated event ends the wait.
            let steps = 1 << network.dice.below(12);
            let patience = match network.is_slow {
                true => Duration::from_micros(steps),
                false => Duration::from_millis(steps),
            };
            let waited = timeout.map_or(patience, |timeout| timeout.min(patience));
            network.clock = network.clock + waited;
        }
        if network.mishap(40) && !network.wires.is_empty() {
            let wire = network.dice.below(network.wires.len() as u64) as usize;
            if let Some((index, key)) = network.wires[wire].registered
                && index == self.index
            {
                // Spurious, or stale, perhaps for a connection that is gone.
                edges.push(edge_of(source_of(key)));
            }
        }
        Ok(())
    }

    fn now(&mut self) -> Moment {
        self.network.borrow_mut().read_clock()
    }

    fn clock(&self) -> Rc<Clock> {
        let network = self.network.clone();
        Rc::new(move || network.borrow_mut().read_clock())
    }

    fn accept(&mut self, _listener: usize) -> io::Result<(Socket, Peer)> {
        let network = &mut *self.network.borrow_mut();
        assert!(network.listening[self.index], "accept without a listener");
        if network.backlog.is_empty() && !network.reserves_first {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if network.descriptor_famine > 0 {
            network.descriptor_famine -= 1;
            return Err(io::Error::from_raw_os_error(libc::EMFILE));
        }
        if network.backlog.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if network.mishap(20) {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        let wire = network
            .backlog
            .pop_front()
            .ok_or(io::ErrorKind::WouldBlock)?;
        let address = network.addresses[wire % network.addresses.len()];
        let address = PeerAddress::Ip(address);
        Ok((Socket(wire), Peer::new(address)))
    }

    fn has_waiting(&mut self, _listener: usize) -> bool {
        !self.network.borrow().backlog.is_empty()
    }

    fn listeners(&self) -> usize {
        usize::from(self.has_listener())
    }

    fn close_listeners(&mut self) {
        if !self.has_listener() {
            return;
        }
        let network = &mut *self.network.borrow_mut();
        network.listening[self.index] = false;
        network.listener_edges[self.index] = false;
        if network.listening.contains(&true) {
            return;
        }
        for wire in network.backlog.drain(..) {
            network.wires[wire].daemon_resets();
            network.wires[wire].closed = true;
        }
    }

    fn register(&mut self, socket: &Socket, key: Key) -> io::Result<()> {
        let mut network = self.network.borrow_mut();
        if network.registration_famine > 0 {
            network.registration_famine -= 1;
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        let wire = network.wire(socket);
        assert!(
            wire.registered.is_none(),
            "a socket is registered more than once"
        );
        wire.registered = Some((self.index, key));
        let (readable, closed) = (!wire.to_daemon.is_empty(), wire.client_fin || wire.reset);
        let broken = wire.reset;
        if wire.link == Link::Connecting {
            // epoll(7) reports nothing about a handshake that runs.
            return Ok(());
        }
        wire.raise(|edge| {
            edge.writable = true;
            edge.readable = readable || closed;
            edge.read_closed = closed;
            edge.broken = broken;
        });
        Ok(())
    }

    fn connect(&mut self, address: SocketAddr) -> io::Result<Socket> {
        let network = &mut *self.network.borrow_mut();
        if network.mishap(20) {
            return Err(io::Error::from_raw_os_error(libc::ENETUNREACH));
        }
        let capacity = match network.calm {
            true => 1 << 16,
            false => 1 << network.dice.below(17),
        };
        network.wires.push(Wire {
            capacity,
            link: Link::Connecting,
            ..Wire::default()
        });
        let wire = network.wires.len() - 1;
        network.dialled.push((wire, address));
        Ok(Socket(wire))
    }

    fn is_connected(&mut self, socket: &Socket) -> io::Result<bool> {
        let mut network = self.network.borrow_mut();
        let wire = network.wire(socket);
        match wire.link {
            Link::Connecting => Ok(false),
            // A connection that was reset since has no peer, and its error.
            Link::Up if wire.reset => Err(io::ErrorKind::ConnectionReset.into()),
            Link::Up => Ok(true),
            Link::Failed(errno) => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    fn read(&mut self, socket: &Socket, buffer: &mut [u8]) -> io::Result<usize> {
        assert_ne!(self.cursed_wire, Some(socket.0), "the curse");
        let mut network = self.network.borrow_mut();
        if network.mishap(30) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let wire = network.wire(socket);
        assert_eq!(wire.link, Link::Up, "a read before the handshake's end");
        if wire.reset {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        if wire.to_daemon.is_empty() {
            return match wire.client_fin {
                true => Ok(0),
                false => Err(io::ErrorKind::WouldBlock.into()),
            };
        }
        let count = buffer.len().min(wire.to_daemon.len());
        for (slot, byte) in buffer.iter_mut().zip(wire.to_daemon.drain(..count)) {
            *slot = byte;
        }
        Ok(count)
    }

    fn write(&mut self, socket: &Socket, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        assert!(
            slices.iter().any(|slice| !slice.is_empty()),
            "a write of nothing"
        );
        let mut network = self.network.borrow_mut();
        if network.mishap(30) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let wire = network.wire(socket);
        assert!(!wire.daemon_fin, "a write after our FIN");
        assert_eq!(wire.link, Link::Up, "a write before the handshake's end");
        if wire.reset {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let offered: usize = slices.iter().map(|slice| slice.len()).sum();
        let room = wire.capacity.saturating_sub(wire.to_client.len());
        if room < offered {
            wire.write_blocked = true;
        }
        if room == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let bytes = slices.iter().flat_map(|slice| slice.iter().copied());
        wire.to_client.extend(bytes.take(room));
        Ok(room.min(offered))
    }

    fn shutdown_write(&mut self, socket: &Socket) -> io::Result<()> {
        let mut network = self.network.borrow_mut();
        let wire = network.wire(socket);
        if wire.reset {
            return Err(io::ErrorKind::NotConnected.into());
        }
        wire.daemon_fin = true;
        if wire.client_fin {
            wire.raise(|edge| edge.broken = true);
        }
        Ok(())
    }

    fn close(&mut self, socket: Socket) {
        let mut network = self.network.borrow_mut();
        let wire = network.wire(&socket);
        wire.closed = true;
        if !wire.to_daemon.is_empty() {
            wire.daemon_resets();
        }
    }
}

fn source_of(key: Key) -> Source {
    match key.kind() {
        Kind::Client => Source::Client(key),
        Kind::Outbound => Source::Outbound(key),
    }
}

fn edge_of(source: Source) -> Edge {
    Edge {
        source,
        readable: false,
        writable: false,
        read_closed: false,
        broken: false,
    }
}
