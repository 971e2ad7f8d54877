//! Real reactors in this process, over real sockets: with any distribution of listeners, and with an
//! engine that holds up the reactor that submits a job.

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use autoglmd::config::{Config, Opening};
use autoglmd::core::buffered::Account;
use autoglmd::core::places::Places;
use autoglmd::core::{Moment, UnixMillis};
use autoglmd::engine::echo::Echo;
use autoglmd::engine::{Engine, Gauges, Job, ModelInfo, Refused, State};
use autoglmd::keys::KeyRing;
use autoglmd::offload::fetch::Fetcher;
use autoglmd::offload::mailbox::mailbox;
use autoglmd::offload::resolver::Resolver;
use autoglmd::os::names::look_up;
use autoglmd::os::process::thread_cpu_time;
use autoglmd::reactor::epoll::Epoll;
use autoglmd::reactor::event_loop::{Neighbour, Parts, Pulse, Reactor};
use autoglmd::reactor::message::{Mailboxes, Message};
use autoglmd::reactor::outbound;
use autoglmd::service::{self, Limiter, Purger, Responses, Service};
use autoglmd::telemetry::metrics::Metrics;
use autoglmd::tls::Connector;
use socket2::Socket;

/// More connections than any test or bench opens.
const CONNECTIONS_MAX: usize = 4_096;

/// The echo engine, which does something else first, on the thread of the reactor that submits.
struct Held {
    echo: Arc<Echo>,
    first: Box<dyn Fn(usize) + Send + Sync>,
}

impl Engine for Held {
    fn submit(&self, job: Job) -> Result<(), Refused> {
        (self.first)(usize::from(job.key.reactor));
        self.echo.submit(job)
    }

    fn state(&self) -> State {
        self.echo.state()
    }

    fn model(&self) -> Option<ModelInfo> {
        self.echo.model()
    }

    fn gauges(&self) -> Gauges {
        self.echo.gauges()
    }

    fn drain(&self) {
        self.echo.drain();
    }
}

/// Running reactors. Dropping them stops them.
pub struct Reactors {
    neighbours: Vec<Neighbour<Socket>>,
    threads: Vec<JoinHandle<Duration>>,
    fetcher: Fetcher,
    resolver: Resolver,
    resolves: Option<JoinHandle<()>>,
}

impl Reactors {
    /// Starts a reactor for each element of `listeners`. Without hand-over each knows only itself.
    /// `first` is done for each job before the engine gets it, with the reactor's index.
    pub fn start(
        listeners: Vec<Vec<Arc<Socket>>>,
        hands_over: bool,
        first: impl Fn(usize) + Send + Sync + 'static,
    ) -> Reactors {
        let connector = Connector::load(None, None).expect("the built-in authorities");
        Reactors::start_with(connector, listeners, hands_over, first)
    }

    /// The same, with these authorities for the reactors' own requests.
    pub fn start_with(
        connector: Connector,
        listeners: Vec<Vec<Arc<Socket>>>,
        hands_over: bool,
        first: impl Fn(usize) + Send + Sync + 'static,
    ) -> Reactors {
        let (mut ends, mut neighbours) = (Vec::new(), Vec::new());
        for own in listeners {
            let openings = vec![Opening::PLAIN; own.len()];
            let epoll = Epoll::new(own).expect("epoll");
            let (sender, receiver) = mailbox(epoll.doorbell().expect("an eventfd"), 64);
            ends.push((epoll, receiver, openings));
            neighbours.push(Neighbour {
                mailbox: sender,
                pulse: Arc::new(Pulse::default()),
            });
        }
        let senders = neighbours.iter().map(|one| one.mailbox.clone()).collect();
        let mailboxes = Arc::new(Mailboxes(senders));
        let engine = Arc::new(Held {
            echo: Echo::new(mailboxes.clone()),
            first: Box::new(first),
        });
        let fetcher = Fetcher::new(mailboxes.clone());
        let service = service_parts(engine, mailboxes);
        let places = Arc::new(Places::new(CONNECTIONS_MAX));
        let resolver = Resolver::new(look_up, service.metrics.series());
        let outbound = outbound::Parts {
            resolver: resolver.clone(),
            connector: Arc::new(connector),
            sockets_most: 8,
        };
        let mut threads = Vec::new();
        for (index, (system, receiver, openings)) in ends.into_iter().enumerate() {
            let own = neighbours[index].clone();
            let parts = Parts {
                index: index as u16,
                system,
                service: Service::new(service.clone()),
                config: service.config.clone(),
                tls: None,
                openings,
                metrics: service.metrics.clone(),
                mailbox: receiver,
                pulse: own.pulse.clone(),
                neighbours: match hands_over {
                    true => neighbours.clone(),
                    false => vec![own.clone()],
                },
                places: places.clone(),
                own_mailbox: own.mailbox.clone(),
                outbound: outbound.clone(),
                heartbeat: None,
            };
            threads.push(thread::spawn(move || {
                Reactor::new(parts).run().expect("epoll works");
                thread_cpu_time()
            }));
        }
        let names = resolver.threads().clone();
        Reactors {
            neighbours,
            threads,
            fetcher,
            resolver,
            resolves: Some(thread::spawn(move || names.work(thread_cpu_time))),
        }
    }

    /// Posts requests of the reactors' own.
    pub fn fetcher(&self) -> &Fetcher {
        &self.fetcher
    }

    /// Returns how many connections each reactor has.
    pub fn connections(&self) -> Vec<u32> {
        let pulses = self.neighbours.iter().map(|one| &one.pulse);
        let load = |pulse: &Arc<Pulse>| pulse.connections.load(std::sync::atomic::Ordering::SeqCst);
        pulses.map(load).collect()
    }

    /// Returns the reactors whose turn takes too long now.
    pub fn held_up(&self) -> Vec<usize> {
        let now = Moment::now();
        let held = |index: &usize| self.neighbours[*index].pulse.is_held_up(now);
        (0..self.neighbours.len()).filter(held).collect()
    }

    /// Ends the reactors; returns the CPU time that each of them took.
    pub fn stop(&mut self) -> Vec<Duration> {
        for one in &self.neighbours {
            one.mailbox.post(Message::Stop);
        }
        let threads = self.threads.drain(..);
        let times = threads.map(|thread| thread.join().expect("a reactor panicked"));
        times.collect()
    }
}

impl Drop for Reactors {
    fn drop(&mut self) {
        if !thread::panicking() {
            self.stop();
        }
        self.resolver.threads().close();
        let ended = self.resolves.take().map(JoinHandle::join);
        assert!(ended.is_none_or(|end| end.is_ok()) || thread::panicking());
    }
}

fn service_parts(engine: Arc<dyn Engine>, mailboxes: Arc<Mailboxes<Socket>>) -> service::Parts {
    let mut config = Config::default();
    config.auth.enabled = false;
    config.rate_limit.enabled = false;
    config.log.access = false;
    config.cache.enabled = false;
    let responses = Arc::new(Responses::new([7; 32], &config.cache));
    let purger = Purger::new(responses.clone(), engine.clone(), Arc::default());
    service::Parts {
        config: Arc::new(config.clone()),
        keys: Arc::new(KeyRing::new(Vec::new())),
        purger: Arc::new(purger),
        engine,
        limiter: Arc::new(Limiter::default()),
        buffered: Account::new(usize::MAX),
        metrics: Metrics::new("echo"),
        requests: Arc::default(),
        responses,
        jobs: Default::default(),
        workers: Arc::default(),
        replies: mailboxes,
        wall_clock: UnixMillis::default,
        seed: 0,
    }
}
