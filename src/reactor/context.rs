//! The data that a reactor lends a connection, and that a connection lends its protocol.
//!
//! [`super::connection`], [`super::transport`] and the protocols share these types, so that none of
//! them has to import another one. The event loop owns [`Resources`]; what it lends is valid for
//! one call, and none of it may be kept.

use std::rc::Rc;
use std::sync::Arc;

use super::date::DateCache;
use super::handler::Admission;
use super::metrics::{Part, ReactorSeries};
use crate::config::Config;
use crate::core::budget::{Budget, Clock};
use crate::core::buffered::{Account, Claim, Tally};
use crate::core::output::{Marks, OutputQueue};
use crate::core::places::Places;
use crate::core::pool::BufferPool;
use crate::core::{Key, Moment};
use crate::http::http1::Bounds;
use crate::limits::reactor as limits;
use crate::service::{Peer, Service};
use crate::tls::Acceptor;

/// A connection lends this to its protocol for one call.
pub struct Lent<'a, 't, H = Service> {
    pub peer: &'a Peer,
    pub output: &'a mut OutputQueue,
    pub turn: &'a mut Turn<'t, H>,
}

/// A reactor lends this to a connection for its turn: the time, and everything that the reactor's
/// connections share.
pub struct Turn<'t, H = Service> {
    /// When the turn began: the time of all its decisions, however long it takes.
    pub now: Moment,
    /// The time of this call. Asked after a request, a frame or a stream, if another one is to
    /// follow; when it is spent, the rest waits for the connection's next pump.
    pub budget: Budget<'t>,
    /// The connection's own key.
    pub key: Key,
    /// The reactor's index.
    pub reactor: u16,
    pub handler: &'t mut H,
    pub pool: &'t mut BufferPool,
    /// The memory of this reactor's connections.
    pub buffered: &'t Tally,
    pub config: &'t Config,
    pub bounds: &'t Bounds,
    pub marks: Marks,
    /// The `Date` field's value (RFC 9110, section 6.6.1).
    pub date: &'t [u8; 29],
    /// The daemon stops: every response is the last one of its connection.
    pub draining: bool,
    /// Creates TLS sessions; `None` without a certificate.
    pub tls: Option<&'t Arc<Acceptor>>,
    /// Remaining handshake steps in this turn of the loop.
    pub handshake_steps: &'t mut u32,
    /// Errors of proxies are not logged again before this moment.
    pub proxy_warned_until: &'t mut Moment,
    /// The places of the whole daemon, and who has them.
    pub places: &'t Places,
    pub metrics: &'t ReactorSeries,
}

impl<H> Turn<'_, H> {
    /// Returns whether memory may be held for the rest of a request. If not, counts the refusal and
    /// returns the pool's free buffers to the allocator.
    pub fn admits(&mut self, claim: Claim, part: Part) -> bool {
        let is_admitted = self.buffered.admits(claim);
        if !is_admitted {
            self.note_refused(claim, part);
        }
        is_admitted
    }

    /// The same for the body of an admitted request, of which `bytes` have come: one key may hold a
    /// part of all memory, and in any case one request of the largest kind.
    pub fn admits_body(&mut self, admitted: &mut impl Admission, bytes: usize) -> bool {
        let claim = Claim::of(admitted.has_key());
        if !self.admits(claim, Part::Body) {
            return false;
        }
        let limits = &self.config.limits;
        let most = self.buffered.account().bound_of_key();
        let most = most.max(limits.max_body.saturating_add(limits.max_head));
        let is_admitted = admitted.hold(bytes, most).is_ok();
        if !is_admitted {
            self.note_refused(claim, Part::Body);
        }
        is_admitted
    }

    fn note_refused(&mut self, claim: Claim, part: Part) {
        self.metrics.buffers_refused.get((claim, part)).inc();
        self.pool.release_free();
    }
}

/// The state that the connections of one reactor share, in one place so that it can be lent as one.
pub struct Resources<H = Service> {
    /// The reactor's index.
    pub reactor: u16,
    pub now: Moment,
    pub handler: H,
    pub pool: BufferPool,
    pub buffered: Tally,
    pub config: Arc<Config>,
    pub bounds: Bounds,
    pub marks: Marks,
    pub draining: bool,
    pub tls: Option<Arc<Acceptor>>,
    pub handshake_steps: u32,
    pub places: Arc<Places>,
    pub metrics: Arc<ReactorSeries>,
    /// For budgets alone: a decision uses `now`.
    clock: Rc<Clock>,
    date: DateCache,
    proxy_warned_until: Moment,
}

impl<H> Resources<H> {
    pub fn new(
        reactor: u16,
        now: Moment,
        handler: H,
        config: Arc<Config>,
        metrics: Arc<ReactorSeries>,
    ) -> Resources<H> {
        Resources {
            reactor,
            now,
            handler,
            pool: BufferPool::default(),
            buffered: Tally::new(Account::new(usize::MAX)),
            bounds: bounds(&config),
            config,
            marks: Marks::DEFAULT,
            draining: false,
            tls: None,
            handshake_steps: limits::HANDSHAKE_STEPS_PER_TURN_MAX,
            places: Arc::default(),
            metrics,
            clock: Rc::new(Moment::now),
            date: DateCache::new(),
            proxy_warned_until: now,
        }
    }

    /// Lends the connection with this key what it needs.
    pub fn turn(&mut self, key: Key) -> Turn<'_, H> {
        Turn {
            now: self.now,
            budget: Budget::new(limits::PUMP_TIME_MAX, &*self.clock),
            key,
            reactor: self.reactor,
            handler: &mut self.handler,
            pool: &mut self.pool,
            buffered: &self.buffered,
            config: &self.config,
            bounds: &self.bounds,
            marks: self.marks,
            date: self.date.at(self.now),
            draining: self.draining,
            tls: self.tls.as_ref(),
            handshake_steps: &mut self.handshake_steps,
            proxy_warned_until: &mut self.proxy_warned_until,
            places: &self.places,
            metrics: &self.metrics,
        }
    }

    /// Uses another clock than the process's, for budgets.
    pub fn set_clock(&mut self, clock: Rc<Clock>) {
        self.clock = clock;
    }

    /// Applies another configuration.
    pub fn apply(&mut self, config: Arc<Config>) {
        self.bounds = bounds(&config);
        self.config = config;
    }
}

fn bounds(config: &Config) -> Bounds {
    Bounds {
        head_bytes_max: config.limits.max_head,
        uri_bytes_max: config.limits.max_uri,
        fields_max: config.limits.max_headers,
    }
}
