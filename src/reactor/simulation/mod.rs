//! The real loop, the real protocol and the real service over a simulated kernel.
//!
//! A seed decides everything: how bytes are cut, when edges come, which clients reset, what the
//! engine generates and when, how many reactors there are, and what the supervisor sends them.
//! After every turn the invariants are checked; in the end the accounts must balance:
//!
//!  * no lost wake-up: a connection that could go on is queued, or an edge for it is on its way;
//!  * accepted = placed + closed;
//!  * each client got its responses whole and in order, except those that vanished;
//!  * a job that runs has at least one client that waits, or is cancelled within the turn: of
//!    several requests that wait for one job, each has a client;
//!  * the bytes that wait for a client that does not read are bounded by the marks and the credit;
//!  * exactly one terminal event for each admitted job;
//!  * the account of buffered memory has what the connections hold, and nothing when none is left;
//!  * the maximum of connections holds for all reactors together, and no client network has a count
//!    in the end;
//!  * every gauge is back at zero, and every buffer back in the pool.
//!
//! `AUTOGLMD_SIM_SEEDS=10000` tries more of them, `AUTOGLMD_SIM_SEED=17` repeats one ([`seeds`]).
//! [`scenarios`] are runs without chance. [`fetches`] are worlds in which the daemon is a client
//! of simulated [`servers`], [`jobs`] worlds with a store and the runner of durable jobs.

mod client;
mod engine;
mod fetches;
mod http2_client;
mod jobs;
mod response;
mod scenarios;
mod secure;
mod seeds;
mod servers;
mod system;
mod workers;

use std::cell::RefCell;
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use client::Client;
use crossbeam_channel::Receiver;
use engine::{SimulatedEngine, Verbosity};
use http2_client::Http2Client;
use system::Network;
pub use system::SimulatedKernel;
use workers::SimulatedWorkers;

use super::close_reason::CloseReason;
use super::event_loop::{Neighbour, Parts, Pulse, Reactor};
use super::message::{Mailboxes, Message};
use super::outbound;
use crate::cache::cached::Cached;
use crate::cache::metrics::{CacheSeries, Level, Verdicts};
use crate::cache::results::{Levels, Results};
use crate::config::{Config, Listen, TrustedProxies};
use crate::core::Moment;
use crate::core::buffered::{Account, Claim};
use crate::core::places::Places;
use crate::core::proxy_header::SIGNATURE;
use crate::keys::KeyRing;
use crate::limits::core as core_limits;
use crate::limits::offload as offload_limits;
use crate::limits::service as service_limits;
use crate::offload::JobKey;
use crate::offload::fetch::Fetcher;
use crate::offload::mailbox::mailbox;
use crate::offload::resolver::Resolver;
use crate::reactor::metrics::{Part, ReactorSeries};
use crate::reactor::outbound::metrics::OutboundSeries;
use crate::runner::{self, Destinations, Followers, Journal, Note};
use crate::service::CompressionSeries;
use crate::service::metrics::ServiceSeries;
use crate::service::{self, Limiter, Purger, Responses, Service};
use crate::store::Requests;
use crate::telemetry::metrics::{Counter, Metrics};
use crate::tls::testing;

/// SplitMix64 (Steele, Lea, Flood 2014): the same seed leads to the same dice on every machine.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Returns 0 up to `bound`, exclusive.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }
}

/// The bytes that a stream may have under way beside those that wait below the high mark.
pub struct StreamBound;

impl StreamBound {
    /// All credit's worth of events and the one that crossed the mark. On the wire an event is its
    /// text with each line end escaped (one byte more for each `LINE`), in a frame and a chunk.
    pub const EVENTS_BYTES: usize =
        (service_limits::CREDIT_EVENTS as usize + 1) * (engine::EVENT_BYTES_MOST * 10 / 9 + 100);

    /// The most that the daemon holds for one slow reader of a stream, before encryption.
    pub const SLOW_READER_BYTES: usize = core_limits::OUTPUT_HIGH_BYTES + StreamBound::EVENTS_BYTES;
}

// The figure of docs/architecture.md.
const _: () = assert!(StreamBound::SLOW_READER_BYTES == 138_862);

/// The daemon: its reactors, the engine, and the books.
struct Daemon {
    network: Rc<RefCell<Network>>,
    reactors: Vec<Member>,
    engine: Arc<SimulatedEngine>,
    results: Arc<Results>,
    /// The network's clock in microseconds, for the results.
    clock: Arc<AtomicU64>,
    workers: SimulatedWorkers,
    /// The threads that resolve names.
    resolvers: SimulatedWorkers,
    fetcher: Fetcher,
    fetched: Arc<OutboundSeries>,
    metrics: Arc<ReactorSeries>,
    served: Arc<ServiceSeries>,
    coded: Arc<CompressionSeries>,
    buffered: Account,
    places: Arc<Places>,
    /// By [`CloseReason`].
    closed: [Counter; CloseReason::ALL.len()],
    panics_expected: u64,
    /// The store's queue, and the runner's part of durable jobs.
    requests: Arc<Requests>,
    jobs: runner::Access,
    notes: Receiver<Note>,
}

/// A reactor, until it has ended.
struct Member {
    neighbour: Neighbour<system::Socket>,
    reactor: Option<Reactor<SimulatedKernel>>,
}

impl Daemon {
    fn new(
        network: Rc<RefCell<Network>>,
        reactors: usize,
        max_connections: usize,
        config: &Arc<Config>,
        verbosity: Verbosity,
    ) -> Daemon {
        let (mut ends, mut neighbours) = (Vec::new(), Vec::new());
        for _ in 0..reactors {
            let kernel = SimulatedKernel::new(&network);
            let (sender, receiver) =
                mailbox(kernel.doorbell(), offload_limits::MAILBOX_KEPT_ITEMS_MAX);
            ends.push((kernel, receiver));
            neighbours.push(Neighbour {
                mailbox: sender,
                pulse: Arc::new(Pulse::default()),
            });
        }
        let senders = neighbours.iter().map(|member| member.mailbox.clone());
        let mailboxes = Arc::new(Mailboxes(senders.collect()));
        let workers = SimulatedWorkers::new();
        let metrics = Metrics::new("simulated");
        let buffered = Account::new(bound(config));
        let clock = Arc::new(AtomicU64::new(0));
        let (journal, notes) = Journal::new();
        let deliver = Arc::new(Destinations {
            requests: Mailboxes(mailboxes.0.clone()),
            journal: journal.clone(),
        });
        let results = Arc::new(Results::new(
            deliver,
            buffered.clone(),
            &config.cache,
            Levels {
                verdicts: Verdicts::of(&metrics.series::<CacheSeries>(), Level::Generation),
                shared: None,
                stored: None,
            },
            Box::new({
                let clock = clock.clone();
                move || Moment::from_micros(clock.load(Ordering::Relaxed))
            }),
        ));
        let engine = Arc::new(SimulatedEngine::new(results.clone(), verbosity));
        let requests = Arc::<Requests>::default();
        let jobs = runner::Access {
            journal,
            followers: Arc::new(Followers::new(mailboxes.clone())),
        };
        let responses = Arc::new(Responses::new([7; 32], &config.cache));
        let cached = Arc::new(Cached::new(results.clone(), engine.clone()));
        let pool = workers.pool.clone();
        let parts = service::Parts {
            config: config.clone(),
            keys: Arc::new(KeyRing::new(Vec::new())),
            purger: Arc::new(Purger::new(responses.clone(), cached.clone(), pool)),
            engine: cached,
            limiter: Arc::new(Limiter::default()),
            buffered: buffered.clone(),
            metrics: metrics.clone(),
            requests: requests.clone(),
            responses,
            jobs: jobs.clone(),
            workers: workers.pool.clone(),
            replies: mailboxes.clone(),
            wall_clock: jobs::wall_clock,
            seed: 0,
        };
        let places = Arc::new(Places::new(max_connections));
        let outbound = outbound::Parts {
            resolver: Resolver::new(servers::look_up, metrics.series()),
            connector: testing::connector(),
            sockets_most: servers::SOCKETS_MOST,
        };
        let mut members = Vec::new();
        for (index, (system, receiver)) in ends.into_iter().enumerate() {
            let reactor = Reactor::new(Parts {
                index: index as u16,
                system,
                service: Service::new(service::Parts {
                    seed: index as u64,
                    ..parts.clone()
                }),
                config: config.clone(),
                tls: Some(testing::acceptor()),
                openings: config.server.listen.iter().map(Listen::opening).collect(),
                metrics: metrics.clone(),
                mailbox: receiver,
                own_mailbox: neighbours[index].mailbox.clone(),
                pulse: neighbours[index].pulse.clone(),
                neighbours: neighbours.clone(),
                places: places.clone(),
                outbound: outbound.clone(),
                heartbeat: None,
            });
            members.push(Member {
                neighbour: neighbours[index].clone(),
                reactor: Some(reactor),
            });
        }
        let series = metrics.series::<ReactorSeries>();
        let closed = CloseReason::ALL.map(|reason| series.closed.get(reason));
        Daemon {
            network,
            reactors: members,
            engine,
            results,
            clock,
            workers,
            resolvers: SimulatedWorkers::of(outbound.resolver.threads().clone()),
            fetcher: Fetcher::new(mailboxes),
            fetched: metrics.series(),
            metrics: series,
            served: metrics.series(),
            coded: metrics.series(),
            buffered,
            places,
            closed,
            panics_expected: 0,
            requests,
            jobs,
            notes,
        }
    }

    /// Runs one turn of one reactor; does nothing if that one has ended.
    fn turn(&mut self, index: usize) {
        self.set_clock();
        let Some(reactor) = &mut self.reactors[index].reactor else {
            return;
        };
        self.network.borrow_mut().stopwatch.begin();
        let turn = reactor.turn();
        self.network.borrow_mut().stopwatch.lap();
        let turn = turn.expect("the simulated kernel has no errors of its own");
        reactor.check();
        if turn.is_break() {
            reactor.check_ended();
            self.reactors[index].reactor = None;
        }
        self.check();
    }

    fn check(&self) {
        let closed = self.closed.iter().map(Counter::get).sum::<u64>();
        let open = self.metrics.connections_accepted.get() - closed;
        let live = |member: &Member| member.reactor.as_ref().map_or(0, Reactor::live) as u64;
        let placed = |member: &Member| member.reactor.as_ref().map_or(0, Reactor::placed) as u64;
        assert_eq!(self.metrics.connections.get() as u64, open);
        assert_eq!(
            self.reactors.iter().map(placed).sum::<u64>(),
            open,
            "accepted = placed + closed"
        );
        let taken = self.places.taken() as u64;
        assert_eq!(taken, open, "a place for each open connection");
        assert!(self.reactors.iter().map(live).sum::<u64>() <= open);
        let panics = self.closed[CloseReason::Panic as usize].get();
        assert!(panics <= self.panics_expected, "a panic, see above");
        for job in self.engine.wanted() {
            if job.reactor == JobKey::JOURNAL {
                // The runner's: it needs no client.
                continue;
            }
            // A flight's job runs for its followers, and every other one for its own request.
            let requests = self.results.waiting(job).unwrap_or_else(|| vec![job]);
            assert!(!requests.is_empty(), "{job:?} runs for no client");
            for key in requests {
                let reactor = &self.reactors[usize::from(key.reactor)].reactor;
                assert!(
                    reactor.as_ref().is_some_and(|reactor| reactor.awaits(key)),
                    "{key:?} runs although its client is gone"
                );
            }
        }
    }

    /// Returns how often a request or a connection was refused for lack of memory.
    fn refused_for_memory(&self) -> u64 {
        let refused = &self.metrics.buffers_refused;
        let claims = [Claim::Anonymous, Claim::Keyed];
        let parts = [Part::Frame, Part::Head, Part::Body];
        let labels = claims
            .iter()
            .flat_map(|&claim| parts.map(|part| (claim, part)));
        labels.map(|label| refused.get(label).get()).sum()
    }

    /// Other threads read the clock by themselves.
    fn set_clock(&self) {
        let now = self.network.borrow().clock;
        self.clock.store(now.as_micros(), Ordering::Relaxed);
    }

    fn tell_all(&self, message: impl Fn() -> Message<system::Socket>) {
        for member in &self.reactors {
            member.neighbour.mailbox.post(message());
        }
    }

    fn has_ended(&self) -> bool {
        self.reactors.iter().all(|member| member.reactor.is_none())
    }

    /// Checks that nothing is left when all reactors and all jobs have ended.
    fn check_ended(&self) {
        assert!(
            self.results.is_empty(),
            "a request still waits for a result"
        );
        let (admitted, ended) = self.engine.totals();
        assert_eq!(admitted, ended, "one terminal event for each job");
        assert_eq!(self.metrics.connections.get(), 0);
        assert_eq!(self.fetched.sockets.get(), 0);
        let networks = self.places.networks().totals();
        assert_eq!(
            networks,
            (0, 0),
            "a connection is still counted for its network"
        );
        let wires = &self.network.borrow().wires;
        assert!(wires.iter().all(|wire| wire.closed), "a socket leaked");
        assert_eq!(
            self.buffered.held(),
            0,
            "memory is counted that nothing holds"
        );
    }

    fn describe(&self) -> String {
        let live = self.reactors.iter().map(|member| member.reactor.as_ref());
        let live: Vec<_> = live.map(|reactor| reactor.map(Reactor::live)).collect();
        let running = self.engine.running();
        let wires = &self.network.borrow().wires;
        let open: Vec<_> = wires.iter().filter(|wire| !wire.closed).collect();
        format!("connections live: {live:?}, jobs running: {running}, open wires: {open:?}")
    }
}

/// A client of either protocol.
enum Visitor {
    Http1(Box<Client>),
    Http2(Box<Http2Client>),
}

impl Visitor {
    fn new(name: u64, wire: usize, is_narrow: bool, dice: &mut Dice) -> Visitor {
        // Frames through a pipe of a few bytes take longer than any run lasts.
        match !is_narrow && dice.one_in(3) {
            true => Visitor::Http2(Box::new(Http2Client::new(name, wire, dice))),
            false => Visitor::Http1(Box::new(Client::new(name, wire, is_narrow, dice))),
        }
    }

    fn step(&mut self, network: &mut Network, must_be_served: bool) {
        match self {
            Visitor::Http1(client) => client.step(network, must_be_served),
            Visitor::Http2(client) => client.step(network, must_be_served),
        }
    }

    fn is_done(&self) -> bool {
        match self {
            Visitor::Http1(client) => client.is_done(),
            Visitor::Http2(client) => client.is_done(),
        }
    }
}

/// A daemon, its clients, and its supervisor.
struct World {
    daemon: Daemon,
    clients: Vec<Visitor>,
    dice: Dice,
    /// Timeouts are out of reach and there is room for all, so that no idle connection is closed:
    /// every waiting client must be served.
    generous: bool,
    patient: bool,
    proxied: bool,
    /// There is memory for next to nothing.
    is_tight: bool,
    has_cache: bool,
    is_chatty: bool,
}

/// The number of clients in a world.
const CROWD_MOST: u64 = 16;

/// A client that can receive less than this at a time asks little and reads often, or runs take too
/// long.
const NARROW_BYTES: usize = 64;

/// More turns than any run needs; a run that reaches this has lost a wake-up.
const TURNS_MOST: u32 = 30_000;

impl World {
    fn new(seed: u64) -> World {
        let mut dice = Dice::new(seed);
        let (patient, cramped) = (!dice.one_in(3), dice.one_in(3));
        let is_chatty = dice.one_in(24);
        // A quarter of the worlds is behind a proxy that forwards connections.
        let proxied = seed % 4 == 3;
        let is_tight = seed % 8 == 5;
        // All requests of a world are equal, so a cache would leave nothing for the engine.
        let has_cache = seed % 8 == 2;
        let mut config = config(patient, proxied, is_tight, &mut dice);
        config.cache.enabled = has_cache;
        config.cache.ttl = Duration::from_millis(dice.below(50));
        let config = Arc::new(config);
        let network = Network::new(dice.next());
        if proxied {
            network.borrow_mut().introduction = proxy_header([192, 0, 2, 7]);
        }
        network.borrow_mut().is_slow = patient && !cramped;
        if !proxied {
            // Two client networks, and this machine.
            let addresses = [[192, 0, 2, 1], [192, 0, 2, 2], [127, 0, 0, 1]];
            network.borrow_mut().addresses = addresses.map(IpAddr::from).to_vec();
        }
        let mut max_connections = CROWD_MOST as usize;
        if cramped {
            network.borrow_mut().descriptor_famine = dice.below(20) as u32;
            max_connections = dice.below(CROWD_MOST) as usize + 1;
        }
        let reactors = [1, 1, 2, 3][dice.below(4) as usize];
        let verbosity = match is_chatty {
            true => engine::CHATTY,
            false => engine::TERSE,
        };
        World {
            daemon: Daemon::new(network, reactors, max_connections, &config, verbosity),
            clients: Vec::new(),
            dice,
            generous: patient && !cramped && !is_tight,
            patient,
            proxied,
            is_tight,
            has_cache,
            is_chatty,
        }
    }

    fn run(&mut self) {
        let crowd = 1 + self.dice.below(if self.is_chatty { 4 } else { CROWD_MOST });
        let ends_early = self.dice.one_in(4);
        let mut turns = 0;
        loop {
            turns += 1;
            assert!(turns < TURNS_MOST, "no end: {}", self.daemon.describe());
            self.let_clients_act(crowd);
            self.let_engine_act();
            self.let_supervisor_act();
            let all_came = self.clients.len() as u64 == crowd;
            if all_came && (ends_early || self.clients.iter().all(Visitor::is_done)) {
                break;
            }
            self.let_reactors_act();
            assert!(!self.daemon.has_ended());
        }
        self.end();
    }

    fn let_clients_act(&mut self, crowd: u64) {
        let network = &mut *self.daemon.network.borrow_mut();
        let name = self.clients.len() as u64;
        if name < crowd && network.dice.one_in(3) {
            // From one byte at a time to more than any response.
            let narrowest = if self.is_chatty { 12 } else { 0 };
            let capacity = 1 << (narrowest + network.dice.below(18 - narrowest));
            if let Some(wire) = network.connect(capacity) {
                let is_narrow = capacity < NARROW_BYTES;
                self.clients
                    .push(Visitor::new(name, wire, is_narrow, &mut self.dice));
            }
        }
        for client in &mut self.clients {
            client.step(network, self.generous);
        }
    }

    fn let_engine_act(&mut self) {
        self.daemon.set_clock();
        self.daemon.workers.step(&mut self.dice);
        let steps_most = if self.is_chatty { 60 } else { 4 };
        for _ in 0..self.dice.below(steps_most) {
            self.daemon.engine.step(&mut self.dice);
        }
    }

    /// Reloads, changes keys, or lets the machine stand still for a while.
    fn let_supervisor_act(&mut self) {
        if self.dice.one_in(100) {
            let mut config = config(self.patient, self.proxied, self.is_tight, &mut self.dice);
            config.cache.enabled = self.has_cache;
            config.cache.ttl = Duration::from_millis(self.dice.below(50));
            self.daemon.results.apply(&config.cache);
            let config = Arc::new(config);
            self.daemon.buffered.set_bound(bound(&config));
            self.daemon.tell_all(|| Message::Apply(config.clone()));
        }
        if self.dice.one_in(100) {
            let keys = Arc::new(KeyRing::new(Vec::new()));
            self.daemon.tell_all(|| Message::Keys(keys.clone()));
        }
        if self.dice.one_in(100) {
            let acceptor = testing::acceptor();
            self.daemon
                .tell_all(|| Message::Tls(Some(acceptor.clone())));
        }
        if self.dice.one_in(200) && !self.generous {
            let network = &mut *self.daemon.network.borrow_mut();
            network.clock = network.clock + Duration::from_millis(self.dice.below(100_000));
        }
    }

    /// Reactors are threads: the scheduler decides which of them is ahead.
    fn let_reactors_act(&mut self) {
        for index in 0..self.daemon.reactors.len() {
            if !self.dice.one_in(4) {
                self.daemon.turn(index);
            }
        }
    }

    /// Ends all reactors, in one way or the other; the daemon must end and owe nothing.
    fn end(&mut self) {
        let patience = Duration::from_secs(1 + self.dice.below(1_000_000));
        match self.dice.below(4) {
            0 => self.daemon.tell_all(|| Message::Stop),
            _ => self.daemon.tell_all(|| Message::Drain(patience)),
        }
        let mut turns = 0;
        while !self.daemon.has_ended() {
            turns += 1;
            assert!(turns < TURNS_MOST, "no end: {}", self.daemon.describe());
            for client in &mut self.clients {
                // A daemon that ends may leave later requests of a connection without a response.
                client.step(&mut self.daemon.network.borrow_mut(), false);
            }
            self.let_engine_act();
            self.let_reactors_act();
        }
        self.daemon.workers.end();
        self.daemon.resolvers.end();
        // No client waits any more: jobs that still run have been cancelled.
        for _ in 0..TURNS_MOST {
            self.daemon.engine.step(&mut self.dice);
            if self.daemon.engine.running() == 0 {
                break;
            }
        }
        self.daemon.check_ended();
    }
}

/// Returns a header of the PROXY protocol that names this client, with an extension after the
/// addresses.
fn proxy_header(client: [u8; 4]) -> Vec<u8> {
    let addresses = [&client[..], &[10, 0, 0, 1, 0, 80, 1, 187]].concat();
    let extension = [4, 0, 3, 0, 0, 0];
    [&SIGNATURE[..], &[0x21, 0x11, 0, 18], &addresses, &extension].concat()
}

/// Returns the bound of the account of buffered memory, which the supervisor sets.
fn bound(config: &Config) -> usize {
    match config.limits.max_buffered {
        0 => usize::MAX,
        bytes => bytes,
    }
}

fn config(patient: bool, proxied: bool, is_tight: bool, dice: &mut Dice) -> Config {
    let mut config = Config::default();
    if proxied {
        config.server.listen = vec![Listen::parse("proxy:127.0.0.1:1").expect("an address")];
        config.server.trusted_proxies = TrustedProxies::parse(&["127.0.0.1"]).expect("one");
    }
    config.auth.enabled = false;
    config.rate_limit.enabled = false;
    let seconds = |patience: u64| Duration::from_secs(if patient { 10_000_000 } else { patience });
    let limits = &mut config.limits;
    limits.header_timeout = seconds(1 + dice.below(10));
    limits.body_timeout = seconds(1 + dice.below(10));
    limits.idle_timeout = seconds(1 + dice.below(30));
    limits.write_timeout = seconds(1 + dice.below(10));
    limits.default_request_timeout = seconds(1 + dice.below(30));
    limits.max_request_timeout = limits.default_request_timeout;
    if is_tight {
        // From no buffer of the pool at all to a few.
        limits.max_buffered = 1 << (10 + dice.below(7));
    }
    // A patient world refuses no connection; in the others a network has half of the places.
    limits.max_connections_per_network = if patient { CROWD_MOST as u32 } else { 0 };
    // A few compressed bytes may become a long body, so workers read them.
    limits.max_inflate_ratio = 1_000_000;
    config
}

/// Runs a world. Returns how often it refused something for lack of memory.
fn simulate(seed: u64) -> u64 {
    let mut world = World::new(seed);
    let run = catch_unwind(AssertUnwindSafe(|| {
        world.run();
        world.daemon.refused_for_memory()
    }));
    run.unwrap_or_else(|panic| {
        for (reason, count) in CloseReason::ALL.iter().zip(&world.daemon.closed) {
            eprintln!("closed for {reason:?}: {}", count.get());
        }
        eprintln!("replay with AUTOGLMD_SIM_SEED={seed}");
        resume_unwind(panic)
    })
}

#[test]
fn every_seed_keeps_the_invariants() {
    let (seeds, refused) = (seeds::asked_for(), AtomicU64::new(0));
    let is_whole = seeds.contains(&0) && seeds.contains(&255);
    seeds::try_all(seeds, |seed| {
        refused.fetch_add(simulate(seed), Ordering::Relaxed);
    });
    let refused = refused.into_inner();
    assert!(refused > 0 || !is_whole, "no world was short of memory");
}
