//! The reactor's own requests to other servers: a client in the same loop, non-blocking throughout.
//!
//! Owns the reactor's fetches and the sockets that it opens for them: slots, run queue, wheel and
//! kept connections, apart from those of clients. It knows HTTP and TLS, and nothing of what is
//! fetched. In reading order:
//!
//! * [`fetch`]: one fetch, its step and its deadlines;
//! * [`dial`]: which address is tried, and when the next one;
//! * [`connection`]: one socket, and the exchange on it;
//! * [`kept`]: the connections that wait for another request to their origin;
//! * [`connecting`]: from the addresses of a name to a connection;
//! * here: from each event to the next step.
//!
//! # How a connection is made without waiting
//!
//! ```text
//!   mailbox: Begin ──> a place? ──> a kept connection? ──> its name resolved, on another thread
//!                       (fair)            │ yes                     │ mailbox: the addresses
//!                                         │                         v
//!                                         │       each permitted? connect(2): EINPROGRESS
//!                                         │                         │ edge: writable
//!                                         v                         v
//!                                   the request  <── TLS <── SO_ERROR is 0: connected
//!                                         │
//!                                         v
//!                                   the response ──> its sink ──> the connection is kept
//! ```
//!
//! `connect(2)` on a non-blocking socket returns at once and means nothing yet. The kernel reports
//! the end of TCP's handshake, good or bad, as an edge for writing; which, `SO_ERROR` reports. The
//! address is checked right before that call and nowhere else, so a name that resolves to another
//! address at each question gains nothing.
//!
//! # Bounds
//!
//! The reactor opens at most `sockets_most` sockets, its share of the daemon's descriptors. Half as
//! many fetches are active, since each may have two attempts; the others wait, fair between
//! tenants, each within its own deadline. A server that is silent holds a place for as long, so a
//! tenant has its share of the places ([`Shares`]), and the daemon's own requests have one.
//! Kept connections are closed when a socket is wanted.
//!
//! # The end
//!
//! A drain does not concern fetches: a running request may depend on one. When the reactor ends,
//! each fetch that is left gets [`FetchError::Ended`].
//!
//! # Invariants
//!
//!  1. Each fetch has one result: it leaves `fetches` only through `finish`.
//!  2. A socket that serves a fetch is named by that fetch's step, and the other way round. Any
//!     other socket is kept.
//!  3. A connection that can go on without the kernel's help is in the run queue.
//!  4. A fetch has an entry in the wheel that is not later than its next moment. Nothing else has
//!     one: a timer of a fetch that has ended would wake the reactor for nothing.
//!  5. Each fetch that is not waiting has a place, and there are half of `sockets_most`.
//!
//! `check_invariants` checks 2 to 5 after each turn, in every debug build.

mod connecting;
pub mod connection;
mod dial;
mod fetch;
mod kept;
mod lent;
pub mod metrics;

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use connection::{Connection, Event};
use fetch::{Running, Step};
use kept::Kept;
pub use lent::Lent;
use metrics::OutboundSeries;

use super::message::Message;
use super::system::{Edge, System};
use crate::core::budget::Phase;
use crate::core::key::Kind;
use crate::core::run_queue::RunQueue;
use crate::core::slots::Slots;
use crate::core::wheel::Wheel;
use crate::core::{Key, Moment};
use crate::http::http1::response_reader::WholeResponse;
use crate::http::origin::Host;
use crate::limits::outbound as limits;
use crate::limits::reactor as reactor_limits;
use crate::offload::OWN_TENANT;
use crate::offload::fair_queue::{Bounds, FairQueue};
use crate::offload::fetch::{Admitted, FetchError, FetchId, Order, Response};
use crate::offload::mailbox::Sender;
use crate::offload::resolver::{Addresses, Resolver};
use crate::offload::shares::Shares;
use crate::tls::Connector;

/// The things that the outbound sides of all reactors share.
#[derive(Clone)]
pub struct Parts {
    pub resolver: Resolver,
    pub connector: Arc<Connector>,
    /// Sockets of one reactor.
    pub sockets_most: usize,
}

/// See the file's head.
pub struct Outbound<S: System> {
    parts: Parts,
    /// The reactor's own, for the resolver's results.
    mailbox: Sender<Message<S::Socket>>,
    metrics: Arc<OutboundSeries>,
    fetches: Slots<Running>,
    by_id: HashMap<FetchId, Key>,
    /// Fetches that wait for a place. Some may have ended meanwhile.
    waiting: FairQueue<Key>,
    /// Held by the active ones.
    places: Shares,
    sockets: Slots<Connection<S::Socket>>,
    kept: Kept,
    /// Sockets with work.
    run_queue: RunQueue,
    /// Of the fetches.
    wheel: Wheel,
    expired: Vec<Key>,
}

impl<S: System> Outbound<S> {
    pub fn new(
        parts: Parts,
        mailbox: Sender<Message<S::Socket>>,
        metrics: Arc<OutboundSeries>,
        now: Moment,
    ) -> Outbound<S> {
        Outbound {
            mailbox,
            metrics,
            // Twice, because a slot that is given up is free only in the next turn.
            fetches: Slots::new(Kind::Outbound, 2 * limits::FETCHES_MAX),
            by_id: HashMap::new(),
            waiting: FairQueue::new(Bounds {
                items: 2 * limits::FETCHES_MAX,
                bytes: 2 * limits::FETCH_BYTES_MAX,
                visit_bytes: limits::FETCH_VISIT_BYTES,
                item_bytes_min: limits::FETCH_BYTES_MIN,
            }),
            places: Shares::new(
                parts.sockets_most / limits::CONCURRENT_ATTEMPTS_MAX,
                OWN_TENANT,
            ),
            sockets: Slots::new(Kind::Outbound, 2 * parts.sockets_most),
            parts,
            kept: Kept::default(),
            run_queue: RunQueue::new(),
            wheel: Wheel::new(now),
            expired: Vec::new(),
        }
    }

    // ---- getters ----

    /// Returns whether the next turn must not wait.
    pub fn has_work(&self) -> bool {
        !self.run_queue.is_empty()
    }

    /// Returns when [`Outbound::expire`] should be called next.
    pub fn next_expiry(&self) -> Option<Moment> {
        let kept = self.kept.oldest().and_then(|key| self.kept_until(key));
        [self.wheel.next_expiry(), kept].into_iter().flatten().min()
    }

    fn kept_until(&self, key: Key) -> Option<Moment> {
        let since = self.sockets.get(key)?.kept_since()?;
        Some(since + limits::KEPT_TIMEOUT)
    }

    #[cfg(test)]
    pub fn sockets(&self) -> impl Iterator<Item = (Key, &Connection<S::Socket>)> {
        self.sockets.iter()
    }

    #[cfg(test)]
    pub fn is_queued(&self, key: Key) -> bool {
        self.run_queue.contains(key)
    }

    // ---- events ----

    /// Records an edge and queues its connection. Returns `false` if that connection is gone.
    pub fn handle_edge(&mut self, key: Key, edge: &Edge) -> bool {
        let Some(connection) = self.sockets.get_mut(key) else {
            return false;
        };
        connection.handle_edge(edge);
        self.run_queue.push(key);
        true
    }

    pub fn handle_order(&mut self, order: Order, lent: &mut Lent<'_, S>) {
        match order {
            Order::Begin(admitted) => self.begin(admitted, lent),
            Order::Cancel(id) => {
                if let Some(&key) = self.by_id.get(&id) {
                    self.finish(key, Err(FetchError::Cancelled), lent);
                }
            }
        }
        self.start_waiting(lent);
    }

    /// The resolver is done; no address means that it found none. A fetch waits for it until it
    /// ends, so one that is left waits still.
    pub fn handle_addresses(&mut self, key: Key, found: Addresses, lent: &mut Lent<'_, S>) {
        self.dial(key, &found, lent);
        self.start_waiting(lent);
    }

    // ---- commands ----

    /// Pumps the connections that have work.
    pub fn run(&mut self, lent: &mut Lent<'_, S>) {
        if self.run_queue.is_empty() {
            return;
        }
        let until = lent.system.now() + reactor_limits::PUMP_TIME_MAX;
        let phase = &mut Phase::new(until, 1);
        self.run_queue.take_turn();
        while let Some(key) = self.run_queue.pop() {
            self.pump(key, lent);
            if phase.is_spent(|| lent.system.now()) {
                break;
            }
        }
        self.start_waiting(lent);
    }

    /// Ends what has taken too long, and goes on with what waited for its time.
    pub fn expire(&mut self, lent: &mut Lent<'_, S>) {
        while let Some(key) = self.kept.oldest()
            && self.kept_until(key).is_none_or(|until| until <= lent.now)
        {
            self.close(key, lent);
        }
        let mut expired = std::mem::take(&mut self.expired);
        // Entries beyond the bound make the next turn's wait zero.
        let most = reactor_limits::TIMERS_PER_TURN_MAX;
        let _more = self.wheel.expire(lent.now, &mut expired, most);
        for key in expired.drain(..) {
            let Some(fetch) = self.fetches.get(key) else {
                continue;
            };
            match fetch.expired(lent.now) {
                Some(stage) => {
                    let late = self.late_response(key);
                    self.finish(key, late.ok_or(FetchError::TimedOut(stage)), lent);
                }
                None => self.try_addresses(key, lent),
            }
        }
        self.expired = expired;
        self.start_waiting(lent);
    }

    /// Opens the slots of fetches and sockets that ended in this turn.
    pub fn reap(&mut self) {
        self.fetches.reap();
        self.sockets.reap();
    }

    /// Ends everything: the reactor ends.
    pub fn end(&mut self, lent: &mut Lent<'_, S>) {
        for key in self
            .fetches
            .keys_in(0..self.fetches.extent())
            .collect::<Vec<_>>()
        {
            self.finish(key, Err(FetchError::Ended), lent);
        }
        for key in self
            .sockets
            .keys_in(0..self.sockets.extent())
            .collect::<Vec<_>>()
        {
            self.close(key, lent);
        }
    }

    // ---- from step to step ----

    fn begin(&mut self, admitted: Box<Admitted>, lent: &mut Lent<'_, S>) {
        let (id, tenant, bytes) = (admitted.id, admitted.tenant, admitted.bytes());
        if self.fetches.vacant_key().is_none() || !self.waiting.admits(tenant, bytes) {
            // Fetches that were submitted and cancelled in one turn, by the thousand.
            return self.deliver(*admitted, Err(FetchError::Busy));
        }
        let mut fetch = Running::new(admitted, lent.account, lent.now);
        if fetch.hold(0).is_err() {
            return self.deliver(*fetch.admitted, Err(FetchError::BuffersFull));
        }
        let key = self.fetches.insert(fetch);
        self.by_id.insert(id, key);
        self.waiting.push(tenant, bytes, key);
        self.schedule(key);
    }

    /// Starts fetches that wait, as long as there are places.
    fn start_waiting(&mut self, lent: &mut Lent<'_, S>) {
        while let Some((tenant, key)) = self.waiting.pop_of(|tenant| self.places.admits(tenant)) {
            if let Some(fetch) = self.fetches.get_mut(key) {
                debug_assert!(fetch.is_waiting(), "a fetch waits once");
                fetch.handle_started(lent.now);
                self.places.take(tenant);
                self.start(key, lent);
            }
        }
    }

    /// Finds a connection for a fetch: a kept one, or one that is to be made.
    fn start(&mut self, key: Key, lent: &mut Lent<'_, S>) {
        let Some(fetch) = self.fetches.get(key) else {
            return;
        };
        let origin = fetch.admitted.origin.clone();
        while let Some(socket) = self.kept.take(&origin) {
            if self.is_usable(socket, key, lent) {
                self.metrics.reused.inc();
                return self.exchange(key, socket, lent);
            }
            self.close(socket, lent);
        }
        self.start_new(key, lent);
    }

    /// Begins to make a connection for a fetch.
    fn start_new(&mut self, key: Key, lent: &mut Lent<'_, S>) {
        let Some(fetch) = self.fetches.get(key) else {
            return;
        };
        match fetch.admitted.origin.host.clone() {
            Host::Address(address) => self.dial(key, &[address], lent),
            Host::Name(name) => self.resolve(key, &name, lent),
        }
    }

    /// Returns whether a kept connection still lives, and may be used by this fetch.
    fn is_usable(&mut self, socket: Key, fetch: Key, lent: &mut Lent<'_, S>) -> bool {
        let (Some(connection), Some(fetch)) =
            (self.sockets.get_mut(socket), self.fetches.get(fetch))
        else {
            return false;
        };
        let policy = &fetch.admitted.policy;
        policy.permits(connection.address().ip())
            && matches!(isolated(|| connection.pump(lent)), Event::Waiting)
    }

    fn resolve(&mut self, key: Key, name: &str, lent: &mut Lent<'_, S>) {
        let Some(fetch) = self.fetches.get_mut(key) else {
            return;
        };
        let mailbox = self.mailbox.clone();
        let asked = self
            .parts
            .resolver
            .ask(fetch.admitted.tenant, name, move |found| {
                mailbox.post(Message::Resolved(key, found));
            });
        match asked {
            Some(asked) => {
                fetch.step = Step::Resolving(asked);
                self.schedule(key);
            }
            None => self.finish(key, Err(FetchError::Busy), lent),
        }
    }

    /// Puts a fetch on a connection, new or kept.
    fn exchange(&mut self, key: Key, socket: Key, lent: &mut Lent<'_, S>) {
        let (Some(fetch), Some(connection)) =
            (self.fetches.get_mut(key), self.sockets.get_mut(socket))
        else {
            return;
        };
        fetch.handle_connected(socket);
        let is_new = connection.is_dialing();
        let admitted = &fetch.admitted;
        if is_new && let Err(error) = connection.begin_tls(&self.parts.connector, lent.pool) {
            return self.finish(key, Err(error), lent);
        }
        connection.begin_exchange(key, &admitted.request, admitted.bounds, lent.pool);
        if connection.is_open() {
            fetch.handle_opened(lent.now);
        }
        self.schedule(key);
        self.run_queue.push(socket);
    }

    fn pump(&mut self, key: Key, lent: &mut Lent<'_, S>) {
        let Some(connection) = self.sockets.get_mut(key) else {
            return;
        };
        if connection.is_dialing() {
            if let Some(fetch) = connection.fetch() {
                self.handle_attempt(key, fetch, lent);
            }
            return;
        }
        let event = isolated(|| connection.pump(lent));
        let (fetch, buffers) = (connection.fetch(), connection.buffered_bytes());
        let has_begun = connection.has_begun();
        if matches!(event, Event::Again | Event::Opened) {
            self.run_queue.push(key);
        }
        let Some(fetch) = fetch else {
            // A kept connection has nothing to do but to end.
            if !matches!(event, Event::Waiting | Event::Again) {
                self.close(key, lent);
            }
            return;
        };
        match event {
            Event::Waiting | Event::Again | Event::Opened => {
                let Some(running) = self.fetches.get_mut(fetch) else {
                    return;
                };
                if running.hold(buffers).is_err() {
                    return self.finish(fetch, Err(FetchError::BuffersFull), lent);
                }
                match event {
                    Event::Opened => running.handle_opened(lent.now),
                    _ if has_begun => running.handle_first_byte(),
                    _ => {}
                }
                self.schedule(fetch);
            }
            Event::Response(response, may_keep) => {
                self.handle_response(key, fetch, *response, may_keep, lent);
            }
            Event::Failed(error) => self.handle_failure(key, fetch, error, lent),
            Event::Closed => self.finish(fetch, Err(FetchError::Broken), lent),
        }
    }

    fn handle_response(
        &mut self,
        socket: Key,
        fetch: Key,
        whole: WholeResponse,
        may_keep: bool,
        lent: &mut Lent<'_, S>,
    ) {
        if may_keep && let Some(connection) = self.sockets.get_mut(socket) {
            connection.keep(lent.now);
            let crowded = self.kept.push(connection.origin(), socket, lent.now);
            // Bytes that came with the response's last ones.
            self.run_queue.push(socket);
            if let Some(oldest) = crowded {
                self.close(oldest, lent);
            }
        }
        self.finish(fetch, Ok(whole.into()), lent);
    }

    /// Returns the response of a fetch whose time has passed, if its status has come and is enough.
    fn late_response(&mut self, key: Key) -> Option<Response> {
        let Step::Exchanging(socket) = self.fetches.get(key)?.step else {
            return None;
        };
        self.sockets.get_mut(socket)?.take_status().map(Into::into)
    }

    /// A connection broke. If it was a kept one that its server was about to close, the request
    /// goes over a new one (RFC 9112, section 9.3.1): once, since that one is not kept.
    fn handle_failure(
        &mut self,
        socket: Key,
        fetch: Key,
        error: FetchError,
        lent: &mut Lent<'_, S>,
    ) {
        let (Some(running), Some(connection)) =
            (self.fetches.get_mut(fetch), self.sockets.get(socket))
        else {
            return;
        };
        let may_retry = error == FetchError::Broken
            && connection.may_retry(running.admitted.request.is_idempotent);
        if !may_retry {
            return self.finish(fetch, Err(error), lent);
        }
        running.handle_started(lent.now);
        self.metrics.retried.inc();
        self.close(socket, lent);
        self.start_new(fetch, lent);
    }

    // ---- ends ----

    /// The one place where a fetch ends: its sockets close, unless one is kept by now.
    fn finish(&mut self, key: Key, result: Result<Response, FetchError>, lent: &mut Lent<'_, S>) {
        let Some(fetch) = self.fetches.retire(key) else {
            return;
        };
        self.by_id.remove(&fetch.admitted.id);
        self.wheel.cancel(key);
        if !fetch.is_waiting() {
            self.places.give_back(fetch.admitted.tenant);
        }
        match &fetch.step {
            Step::Waiting | Step::Starting | Step::Resolving(_) => {}
            Step::Dialing(dial) => {
                dial.attempts()
                    .iter()
                    .for_each(|attempt| self.close(*attempt, lent));
            }
            Step::Exchanging(socket) => {
                let connection = self.sockets.get(*socket);
                if connection.is_some_and(|connection| connection.fetch() == Some(key)) {
                    self.close(*socket, lent);
                }
            }
        }
        self.deliver(*fetch.admitted, result);
    }

    fn deliver(&mut self, admitted: Admitted, result: Result<Response, FetchError>) {
        let outcome = match &result {
            Ok(_) => "response",
            Err(error) => error.as_str(),
        };
        self.metrics.fetches.get(outcome).inc();
        // The sink is the application's: a bug in it must cost this fetch alone.
        let sink = catch_unwind(AssertUnwindSafe(|| admitted.finish(result)));
        if sink.is_err() {
            log::error!("a bug: the receiver of a fetch's result panicked");
        }
    }

    /// The one place where a socket closes.
    fn close(&mut self, key: Key, lent: &mut Lent<'_, S>) {
        let Some(connection) = self.sockets.retire(key) else {
            return;
        };
        self.kept.remove(connection.origin(), key);
        let socket = connection.close(lent.system, lent.pool);
        lent.system.close(socket);
        self.metrics.sockets.dec();
    }

    /// Brings a fetch's entry in the wheel up to date.
    fn schedule(&mut self, key: Key) {
        if let Some(fetch) = self.fetches.get(key) {
            self.wheel.schedule(key, fetch.next_moment());
        }
    }

    #[cfg(debug_assertions)]
    pub fn check_invariants(&self) {
        let mut active = 0;
        for (key, fetch) in self.fetches.iter() {
            active += usize::from(!fetch.is_waiting());
            let entry = self.wheel.scheduled(key).unwrap_or(Moment::NEVER);
            assert!(
                entry <= fetch.next_moment(),
                "4: the deadline of {key:?} is lost"
            );
            let serves = |socket: Key| {
                let connection = self.sockets.get(socket);
                connection.is_some_and(|connection| connection.fetch() == Some(key))
            };
            match &fetch.step {
                Step::Waiting | Step::Starting | Step::Resolving(_) => {}
                Step::Dialing(dial) => assert!(dial.attempts().iter().all(|it| serves(*it)), "2"),
                Step::Exchanging(socket) => assert!(serves(*socket), "2"),
            }
        }
        assert!(self.wheel.len() <= self.fetches.len(), "4: a timer is left");
        assert_eq!(active, self.places.taken(), "5");
        assert_eq!(self.by_id.len(), self.fetches.len(), "1");
        assert!(self.sockets.len() <= self.parts.sockets_most);
        let mut kept = 0;
        for (key, connection) in self.sockets.iter() {
            assert!(
                self.run_queue.contains(key) || !connection.can_go_on(),
                "3: lost wake-up: {key:?} can go on and is not queued"
            );
            match connection.fetch() {
                None => kept += 1,
                Some(fetch) => assert!(self.fetches.get(fetch).is_some(), "2: {key:?} serves none"),
            }
        }
        assert_eq!(kept, self.kept.len(), "2");
        self.kept.check_invariants();
    }
}

/// Runs the handling of one connection: a bug in it costs the fetch on it, and no other.
fn isolated(work: impl FnOnce() -> Event) -> Event {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        log::error!("a bug: the handling of an outbound connection panicked; it is closed");
        Event::Failed(FetchError::Bug)
    })
}
