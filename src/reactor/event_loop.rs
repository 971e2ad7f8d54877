//! The loop: one thread, one epoll instance, ten phases per turn.
//!
//! Owns every connection of its thread and everything that they share: slots, wheel, run queue,
//! buffers, the service. It waits in phase 2 and nowhere else. Connections act in phases 5 to 7; a
//! connection that is closed in any phase may still write TLS's goodbye.
//!
//! ```text
//!   1 timeout   0 if a connection is queued or deferred or a message waits, else until the next
//!               timer
//!   2 poll      the only wait
//!   3 now       the clock is read, and every phase below uses this time; connections whose next
//!               handshake step was put off are queued, in front of those with new edges
//!   4 mark      edges set readiness bits and queue their connection: no I/O
//!   5 mailbox   completions and orders of other threads
//!   6 run       two rounds of the run queue, in which each queued connection pumps once, within
//!               its budget. After each pump of the first round, the mailbox again: its events are
//!               handled while the connection is warm in the cache, and written in round two. In a
//!               drain, some more connections are queued before. Behind the rounds, the greedy
//!               connections, for about as long as one pump
//!   7 wheel     deadlines that have passed: after 6, so that a request that arrived in time is not
//!               late because we looked late
//!   8 accept    after 6 and 7, so that places that became free count
//!   9 reap      closed slots become free: not before, for phase 4 to 8 may still name them
//!  10 observe   gauges, heartbeat, drain; the clock is read again, to measure the turn
//! ```
//!
//! Phases 5 to 7 end when their time is used up (`core::budget`): what is left stays queued, in
//! order, and the next turn comes at once. So each phase, and the kernel, gets its turn whatever
//! the clients of another one do.
//!
//! Invariants, and where each is checked after a turn:
//!  1. A connection that can go on without the kernel's help is in the run queue, among the
//!     unfinished (its last pump stopped early), or among the deferred. `check_invariants`, in
//!     every debug build; the simulation also compares with what its kernel holds.
//!  2. A connection with a deadline has an entry in the wheel that is not later than it.
//!     `check_invariants`.
//!  3. accepted = placed + closed, over all reactors. The simulation, which sees them all.
//!  4. A slot is not used again within the turn that closed its connection. By construction: only
//!     `reap` frees slots, and `core::slots` tests it.

mod accept;
#[cfg(debug_assertions)]
mod check;
mod drain;
mod fetches;
#[cfg(test)]
mod inspect;
mod pulse;

pub use pulse::{Neighbour, Pulse};

use std::collections::VecDeque;
use std::io;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::client_network;
use super::close_reason::CloseReason;
use super::connection::{Connection, Pumped};
use super::context::Resources;
use super::message::Message;
use super::outbound::{self, Outbound};
use super::system::{Edge, Source, System};
use crate::config::{Config, Opening};
use crate::core::accept_gate::AcceptGate;
use crate::core::budget::Phase;
use crate::core::buffered::Tally;
use crate::core::deadlines::DeadlineKind;
use crate::core::drain::{Drain, StopReason};
use crate::core::idle_list::IdleList;
use crate::core::key::Kind;
use crate::core::places::Places;
use crate::core::run_queue::RunQueue;
use crate::core::slots::Slots;
use crate::core::wheel::Wheel;
use crate::core::{Key, Moment};
use crate::limits::reactor as limits;
use crate::offload::JobKey;
use crate::offload::mailbox::{Receiver, Sender};
use crate::service::{Completion, Service};
use crate::telemetry::metrics::{Counter, Metrics};
use crate::tls::Acceptor;

/// The parts of a reactor.
pub struct Parts<S: System> {
    pub index: u16,
    pub system: S,
    pub service: Service,
    pub config: Arc<Config>,
    pub tls: Option<Arc<Acceptor>>,
    /// By listener.
    pub openings: Vec<Opening>,
    pub metrics: Metrics,
    pub mailbox: Receiver<Message<S::Socket>>,
    /// The other end of its own mailbox.
    pub own_mailbox: Sender<Message<S::Socket>>,
    pub pulse: Arc<Pulse>,
    /// All reactors by index, including this one.
    pub neighbours: Vec<Neighbour<S::Socket>>,
    /// The places of the whole daemon.
    pub places: Arc<Places>,
    pub outbound: outbound::Parts,
    /// It wakes up at least this often, for the watchdog.
    pub heartbeat: Option<Duration>,
}

pub struct Reactor<S: System> {
    pub(super) system: S,
    pub(super) slots: Slots<Connection<S::Socket>>,
    gate: AcceptGate,
    /// Pauses in accepting are not logged again before this moment: they may come ten times per
    /// second.
    pause_told_until: Moment,
    shared: Resources,
    /// By [`CloseReason`].
    closed: [Counter; CloseReason::ALL.len()],
    wheel: Wheel,
    run_queue: RunQueue,
    /// Connections that had more to do than their last pump had time for, and what comes for those
    /// of which that is known: behind all others.
    unfinished: RunQueue,
    /// Connections that need a handshake step and found none left; the first of them go first in
    /// the next turn.
    deferred: RunQueue,
    openings: Vec<Opening>,
    /// The connections that this reactor opens itself.
    outbound: Outbound<S>,
    idle: IdleList,
    /// Connections that are not idle and have neither a job nor a key, the oldest first.
    strangers: IdleList,
    /// Another reactor has been asked to make room; nothing else is done for it before this moment.
    asks_at: Moment,
    /// By reactor: it has not answered yet.
    is_asked: Vec<bool>,
    mailbox: Receiver<Message<S::Socket>>,
    neighbours: Vec<Neighbour<S::Socket>>,
    pulse: Arc<Pulse>,
    drain: Drain,
    heartbeat: Option<Duration>,
    /// Every connection reads into this first, and keeps nothing in it.
    scratch: Box<[u8]>,
    edges: Vec<Edge>,
    /// The mailbox's next batch, as it was taken.
    messages: Vec<Message<S::Socket>>,
    /// Messages for which there was no time: older than all others.
    unread: VecDeque<Message<S::Socket>>,
    expired: Vec<Key>,
}

impl<S: System> Reactor<S> {
    pub fn new(mut parts: Parts<S>) -> Reactor<S> {
        let now = parts.system.now();
        let buffered = Tally::new(parts.service.buffered().clone());
        let mut shared = Resources::new(
            parts.index,
            now,
            parts.service,
            parts.config,
            parts.metrics.series(),
        );
        shared.tls = parts.tls;
        shared.set_clock(parts.system.clock());
        shared.buffered = buffered;
        shared.places = parts.places.clone();
        let mut gate = AcceptGate::new(parts.places.clone());
        // Clients may have connected before the listeners were registered.
        (0..parts.system.listeners()).for_each(|listener| gate.handle_ready(listener));
        Reactor {
            // The gate bounds the connections. There are twice as many slots, because in one turn
            // all connections may close and as many may come, and a closed slot is free only in the
            // next turn.
            slots: Slots::new(Kind::Client, 2 * parts.places.maximum()),
            gate,
            pause_told_until: now,
            closed: CloseReason::ALL.map(|reason| shared.metrics.closed.get(reason)),
            shared,
            wheel: Wheel::new(now),
            run_queue: RunQueue::new(),
            unfinished: RunQueue::new(),
            deferred: RunQueue::new(),
            openings: parts.openings,
            outbound: Outbound::new(
                parts.outbound,
                parts.own_mailbox,
                parts.metrics.series(),
                now,
            ),
            idle: IdleList::new(),
            strangers: IdleList::new(),
            asks_at: now,
            is_asked: vec![false; parts.neighbours.len()],
            mailbox: parts.mailbox,
            neighbours: parts.neighbours,
            pulse: parts.pulse,
            drain: Drain::new(),
            heartbeat: parts.heartbeat,
            scratch: vec![0; limits::SCRATCH_BYTES].into_boxed_slice(),
            edges: Vec::with_capacity(limits::EVENTS_PER_TURN_MAX),
            messages: Vec::new(),
            unread: VecDeque::new(),
            expired: Vec::new(),
            system: parts.system,
        }
    }

    /// Turns until the daemon is drained or must stop. An error is epoll's own, and final.
    pub fn run(&mut self) -> io::Result<()> {
        while self.turn()?.is_continue() {}
        Ok(())
    }

    /// Runs one turn of the loop; see the file's head. `Break`: drained or stopped, and no
    /// connection is left.
    pub fn turn(&mut self) -> io::Result<ControlFlow<()>> {
        let timeout = self.timeout();
        self.system.poll(&mut self.edges, timeout)?;
        self.shared.now = self.system.now();
        self.pulse.begin_turn(self.shared.now);
        self.resume_handshakes();
        self.mark_edges();
        self.read_mailbox(&mut self.phase(limits::MESSAGES_TIME_MAX));
        self.walk_connections();
        self.run_connections();
        self.expire_deadlines();
        self.accept_connections();
        self.slots.reap();
        self.outbound.reap();
        Ok(self.observe())
    }

    /// Returns the time of a phase that ends so long after the turn's beginning.
    fn phase(&self, time: Duration) -> Phase {
        Phase::new(self.shared.now + time, limits::ITEMS_PER_CLOCK_READING)
    }

    /// Phase 1: returns how long the kernel may let the thread sleep.
    fn timeout(&mut self) -> Option<Duration> {
        let has_work =
            !self.run_queue.is_empty() || !self.unfinished.is_empty() || !self.deferred.is_empty();
        let drains = self.drain.is_walking(self.slots.extent());
        let has_work = has_work || self.outbound.has_work();
        if has_work || drains || !self.unread.is_empty() || !self.mailbox.sleep() {
            return Some(Duration::ZERO);
        }
        let now = self.shared.now;
        let next_timer = [
            self.wheel.next_expiry(),
            self.outbound.next_expiry(),
            self.gate.wake_at(now),
            self.drain.deadline(),
            self.heartbeat.map(|heartbeat| now + heartbeat),
        ];
        next_timer
            .into_iter()
            .flatten()
            .min()
            .map(|at| at.since(now))
    }

    /// Phase 3: a new turn has new handshake steps. Connections that waited for one are queued in
    /// front of those with new edges, so a flood of handshakes delays others and starves none.
    fn resume_handshakes(&mut self) {
        self.shared.handshake_steps = limits::HANDSHAKE_STEPS_PER_TURN_MAX;
        self.deferred.take_turn();
        // One may be closed by now, and its slot's next tenant be queued: the old key would take
        // the new one's place.
        let waiting = std::iter::from_fn(|| self.deferred.pop());
        let open = waiting.filter(|&key| self.slots.get(key).is_some());
        for key in open.take(limits::HANDSHAKE_STEPS_PER_TURN_MAX as usize) {
            self.run_queue.push(key);
        }
    }

    /// Phase 4: records each edge and queues its connection.
    fn mark_edges(&mut self) {
        for edge in self.edges.drain(..) {
            match edge.source {
                Source::Doorbell => {
                    self.shared.metrics.wakeups.inc();
                }
                Source::Listener(index) => self.gate.handle_ready(index),
                Source::Client(key) => match self.slots.get_mut(key) {
                    Some(connection) => {
                        connection.handle_edge(&edge);
                        if connection.is_greedy() {
                            self.unfinished.push(key);
                        } else if !self.unfinished.contains(key) {
                            self.run_queue.push(key);
                        }
                    }
                    None => {
                        self.shared.metrics.stale_events.inc();
                    }
                },
                Source::Outbound(key) => {
                    if !self.outbound.handle_edge(key, &edge) {
                        self.shared.metrics.stale_events.inc();
                    }
                }
            }
        }
    }

    /// Phase 5: takes the whole batch at once, and handles as much of it as there is time for. No
    /// bell rings from here to the next phase 1, which does not let the thread sleep while messages
    /// wait.
    fn read_mailbox(&mut self, phase: &mut Phase) {
        while let Some(message) = self.unread.pop_front() {
            self.handle_message(message);
            if phase.is_spent(|| self.system.now()) {
                // The mailbox keeps what has come since.
                return;
            }
        }
        self.mailbox.take(&mut self.messages);
        if self.messages.is_empty() {
            return;
        }
        let mut messages = std::mem::take(&mut self.messages);
        let mut batch = messages.drain(..);
        for message in batch.by_ref() {
            self.handle_message(message);
            if phase.is_spent(|| self.system.now()) {
                break;
            }
        }
        self.unread.extend(batch);
        self.messages = messages;
    }

    fn handle_message(&mut self, message: Message<S::Socket>) {
        match message {
            Message::Engine(key, event) => self.handle_event(key, Completion::Event(event)),
            Message::Worker(key, completion) => self.handle_event(key, completion),
            Message::Fetch(order) => self.handle_order(order),
            Message::Resolved(key, found) => self.handle_addresses(key, found),
            Message::Adopt(socket, peer, opening) => self.adopt(socket, peer, opening),
            Message::MakeRoom(request) => self.make_room_for_another(request),
            Message::RoomMade(reactor) => self.handle_room_made(reactor),
            Message::Apply(config) => self.apply(config),
            Message::Tls(acceptor) => self.shared.tls = acceptor,
            Message::Keys(keys) => self.shared.handler.set_keys(keys),
            Message::Drain(patience) => self.begin_drain(patience),
            Message::Stop => {
                self.begin_drain(Duration::ZERO);
                self.drain.handle_stop();
            }
            Message::Handled(receipt) => drop(receipt),
        }
    }

    fn handle_event(&mut self, job: JobKey, completion: Completion) {
        let key = job.connection;
        let connection = self.slots.get_mut(key);
        let Some(connection) = connection.filter(|one| one.awaits(job.request)) else {
            self.shared.metrics.stale_completions.inc();
            return;
        };
        let turn = &mut self.shared.turn(key);
        let pumped = isolated(|| connection.handle_event(job.request, completion, turn));
        if let Pumped::Closed(reason) = pumped {
            return self.close(key, reason);
        }
        // A pump follows in any case, and then `reschedule`. Only memory is counted at once: many
        // events may come before the pump.
        self.shared.buffered.set(key, connection.buffered_bytes());
        self.enqueue(key);
    }

    fn apply(&mut self, config: Arc<Config>) {
        self.shared.handler.apply(config.clone());
        self.shared.apply(config);
    }

    /// Phase 6. The first round takes in requests. The same pump writes a response that is complete
    /// at once; events that the mailbox brings meanwhile queue their connection for the second
    /// round, which writes them. So a quick engine needs no turn of its own, and the responses of a
    /// turn are written one right after the other: a peer with many connections (such as a proxy)
    /// is woken once for all of them and not once for each.
    ///
    /// A connection whose pump stops early, for its time or its counts, goes on behind the others,
    /// in this turn if there is time. One that has used up a pump's time stays behind the others
    /// until a pump of a single step is enough for it: otherwise each client of a flood would have
    /// a whole pump in front of the others as often as its socket was empty for a moment.
    /// Connections that are queued during the second round wait for the next turn. If the rounds'
    /// time ends early, the connections that are left stay in front of those that come later.
    fn run_connections(&mut self) {
        self.run_rounds();
        self.run_unfinished();
        self.run_outbound();
    }

    fn run_rounds(&mut self) {
        let phase = &mut self.phase(limits::ROUNDS_TIME_MAX);
        for reads_mailbox in [true, false] {
            self.run_queue.take_turn();
            while let Some(key) = self.run_queue.pop() {
                self.pump(key, phase);
                if phase.is_spent(|| self.system.now()) {
                    return;
                }
                if reads_mailbox {
                    self.read_mailbox(phase);
                }
            }
        }
    }

    /// Pumps greedy connections: for about as long as one of them may take, and at least one,
    /// however busy the loop is. In front of the others they would hold up each small request by a
    /// pump for each client that always has more.
    fn run_unfinished(&mut self) {
        if self.unfinished.is_empty() {
            return;
        }
        let phase = &mut Phase::new(self.system.now() + limits::PUMP_TIME_MAX, 1);
        self.unfinished.take_turn();
        while let Some(key) = self.unfinished.pop() {
            self.pump(key, phase);
            if phase.is_spent(|| self.system.now()) {
                return;
            }
        }
    }

    /// Phase 7: an entry that fires may be early, because deadlines move without moving the wheel's
    /// entry. The consequences of an expired deadline follow in the next turn, which comes at once.
    fn expire_deadlines(&mut self) {
        self.expire_outbound();
        let now = self.shared.now;
        let mut expired = std::mem::take(&mut self.expired);
        // Entries beyond the bound make the next turn's wait zero.
        let _more = self
            .wheel
            .expire(now, &mut expired, limits::TIMERS_PER_TURN_MAX);
        if expired.is_empty() {
            self.expired = expired;
            return;
        }
        let mut phase = self.phase(limits::TIMERS_TIME_MAX);
        let mut batch = expired.drain(..);
        for key in batch.by_ref() {
            let Some(connection) = self.slots.get_mut(key) else {
                continue;
            };
            let mut pumped = Pumped::Waiting;
            while let Some(kind) = connection.deadlines().expired(now) {
                let turn = &mut self.shared.turn(key);
                pumped = isolated(|| connection.handle_deadline(kind, turn));
                if let Pumped::Closed(_) = pumped {
                    break;
                }
            }
            self.reschedule(key, pumped);
            if phase.is_spent(|| self.system.now()) {
                break;
            }
        }
        for key in batch {
            let connection = self.slots.get(key);
            if let Some((at, _)) = connection.and_then(|it| it.deadlines().earliest()) {
                // If it has passed, the wheel's next tick comes back to it.
                self.wheel.schedule(key, at);
            }
        }
        self.expired = expired;
    }

    fn pump(&mut self, key: Key, phase: &mut Phase) {
        let Some(connection) = self.slots.get_mut(key) else {
            return;
        };
        let (system, scratch) = (&mut self.system, &mut self.scratch);
        let turn = &mut self.shared.turn(key);
        let idle_until = connection.deadlines().get(DeadlineKind::Idle);
        let pumped = isolated(|| connection.pump(system, scratch, turn));
        if pumped == Pumped::Again {
            phase.handle_long_piece();
            self.unfinished.push(key);
        }
        if connection.deadlines().get(DeadlineKind::Idle) != idle_until {
            // It did something. A connection is not less idle for an edge that brought nothing.
            self.idle.remove(key);
        }
        self.reschedule(key, pumped);
    }

    /// Follows anything that was done to a connection: closes it, or brings its memory in the tally
    /// and its entries in run queue, wheel and idle list up to date.
    fn reschedule(&mut self, key: Key, pumped: Pumped) {
        if let Pumped::Closed(reason) = pumped {
            return self.close(key, reason);
        }
        let Some(connection) = self.slots.get_mut(key) else {
            return;
        };
        self.shared.buffered.set(key, connection.buffered_bytes());
        if connection.is_idle() {
            if self.shared.draining {
                return self.close(key, CloseReason::Drain);
            }
            self.strangers.remove(key);
            if !self.idle.contains(key) {
                self.idle.push(key, self.shared.now);
            }
        } else {
            self.idle.remove(key);
            match connection.is_stranger() {
                true if !self.strangers.contains(key) => {
                    self.strangers.push(key, self.shared.now);
                }
                true => {}
                false => self.strangers.remove(key),
            }
        }
        if let Some(at) = connection.deadlines().wheel_move(self.wheel.scheduled(key)) {
            self.wheel.schedule(key, at);
        }
        match pumped {
            Pumped::Again => self.enqueue(key),
            Pumped::Deferred => {
                self.shared.metrics.tls_handshakes_deferred.inc();
                self.deferred.push(key);
            }
            Pumped::Waiting | Pumped::Closed(_) => {}
        }
    }

    /// Queues a connection for its next pump. An unfinished one keeps its place behind the others,
    /// whatever else happens to it.
    fn enqueue(&mut self, key: Key) {
        if !self.unfinished.contains(key) {
            self.run_queue.push(key);
        }
    }

    /// The one place where a connection ends.
    fn close(&mut self, key: Key, reason: CloseReason) {
        let Some(mut connection) = self.slots.retire(key) else {
            return;
        };
        let (turn, system) = (&mut self.shared.turn(key), &mut self.system);
        let _ = isolated(|| {
            connection.say_goodbye(reason, system, turn.pool);
            connection.abandon(reason, turn)
        });
        self.shared.buffered.set(key, 0);
        client_network::leave(connection.peer(), &self.shared.places);
        self.system.close(connection.into_socket());
        self.wheel.cancel(key);
        self.idle.remove(key);
        self.strangers.remove(key);
        self.count_closed(reason);
    }

    fn count_closed(&self, reason: CloseReason) {
        self.pulse.connections.fetch_sub(1, Ordering::Relaxed);
        self.shared.places.give_back();
        self.closed[reason as usize].inc();
        self.shared.metrics.connections.dec();
    }

    /// Phase 10.
    fn observe(&mut self) -> ControlFlow<()> {
        let now = self.system.now();
        self.shared
            .metrics
            .loop_turn
            .observe(now.since(self.shared.now));
        self.pulse.end_turn(now, &self.idle, &self.strangers);
        #[cfg(debug_assertions)]
        self.check_invariants();
        // Connections on their way to us count: a neighbour may have accepted them for us.
        let placed = self.pulse.connections.load(Ordering::Relaxed) as usize;
        let open = placed + usize::from(self.gate.may_have_waiting());
        if let Some(StopReason::PatienceOver) = self.drain.poll(now, open) {
            log::warn!("the drain timeout expired; closing {open} open connections");
        }
        match self.drain.is_stopping() {
            true => self.cut_off_connections(now),
            false => ControlFlow::Continue(()),
        }
    }
}

/// Runs the handling of one connection. A bug in it costs this connection, whose client may have
/// sent something that no test sends, and none of the thousands beside it.
///
/// The shared state stays usable after a panic: the service begins each response with an empty
/// buffer, metrics are atomics, and the pool allocates a buffer that was lost.
fn isolated(work: impl FnOnce() -> Pumped) -> Pumped {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        log::error!("a bug: the handling of a connection panicked; the connection is closed");
        Pumped::Closed(CloseReason::Panic)
    })
}

// Not a wish: with 15,000 idle connections every 64 bytes here are a megabyte.
const _: () = assert!(size_of::<Connection<socket2::Socket>>() <= limits::CONNECTION_BYTES_MAX);
