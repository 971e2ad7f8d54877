//! Creates the reactors. Messages can be sent to all of them before the first one runs, because
//! each knows its neighbours, and the engine and the key store know all.
//!
//! Owns the creation of their epolls, mailboxes and threads.

use std::io::{self, PipeReader, PipeWriter, Write};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use socket2::Socket;

use crate::config::Opening;
use crate::core::places::Places;
use crate::limits::offload as offload_limits;
use crate::offload::mailbox::{Receiver, Sender, mailbox};
use crate::reactor::epoll::Epoll;
use crate::reactor::event_loop::{self, Neighbour, Pulse, Reactor};
use crate::reactor::message::Message;
use crate::reactor::outbound;
use crate::service::{self, Service};
use crate::telemetry::random::random_seed;
use crate::tls::Acceptor;

/// Reactors whose threads have not started: messages can already be sent to them.
pub struct Spawner(Vec<Prepared>);

struct Prepared {
    index: u16,
    epoll: Epoll,
    openings: Vec<Opening>,
    sender: Sender<Message<Socket>>,
    receiver: Receiver<Message<Socket>>,
    pulse: Arc<Pulse>,
}

impl Spawner {
    pub fn prepare(
        count: u16,
        sockets: &[Arc<Socket>],
        openings: &[Opening],
    ) -> io::Result<Spawner> {
        let prepared = (0..count).map(|index| Prepared::new(index, sockets, openings));
        Ok(Spawner(prepared.collect::<io::Result<_>>()?))
    }

    pub fn mailboxes(&self) -> Vec<Sender<Message<Socket>>> {
        self.0.iter().map(|one| one.sender.clone()).collect()
    }

    /// Starts a thread for each reactor. Their sessions share `tls`.
    pub fn spawn(self, common: &Common, tls: &Option<Arc<Acceptor>>) -> io::Result<Spawned> {
        let (ends, writer) = io::pipe()?;
        let neighbours: Vec<_> = self.0.iter().map(Prepared::neighbour).collect();
        let mut threads = Vec::new();
        for one in self.0 {
            let mut parts = one.parts(common, neighbours.clone());
            parts.tls.clone_from(tls);
            let end = End(writer.try_clone()?);
            let thread = thread::Builder::new()
                .name(format!("reactor-{}", parts.index))
                .spawn(move || {
                    let _end = end;
                    Reactor::new(parts).run()
                })?;
            threads.push(thread);
        }
        Ok(Spawned {
            neighbours,
            threads,
            ends,
        })
    }
}

/// The things that are the same for all reactors.
pub struct Common {
    pub service: service::Parts,
    pub places: Arc<Places>,
    pub outbound: outbound::Parts,
    pub heartbeat: Option<Duration>,
}

/// Reactors whose threads run.
pub struct Spawned {
    pub neighbours: Vec<Neighbour<Socket>>,
    pub threads: Vec<JoinHandle<io::Result<()>>>,
    /// Brings a byte from each reactor that has ended.
    pub ends: PipeReader,
}

impl Prepared {
    /// Every reactor accepts, from the same sockets.
    fn new(index: u16, sockets: &[Arc<Socket>], openings: &[Opening]) -> io::Result<Prepared> {
        let epoll = Epoll::new(sockets.to_vec())?;
        let (sender, receiver) = mailbox(epoll.doorbell()?, offload_limits::MAILBOX_KEPT_ITEMS_MAX);
        Ok(Prepared {
            index,
            epoll,
            openings: openings.to_vec(),
            sender,
            receiver,
            pulse: Arc::new(Pulse::default()),
        })
    }

    fn neighbour(&self) -> Neighbour<Socket> {
        Neighbour {
            mailbox: self.sender.clone(),
            pulse: self.pulse.clone(),
        }
    }

    fn parts(
        self,
        common: &Common,
        neighbours: Vec<Neighbour<Socket>>,
    ) -> event_loop::Parts<Epoll> {
        event_loop::Parts {
            index: self.index,
            system: self.epoll,
            service: Service::new(service::Parts {
                seed: random_seed(),
                ..common.service.clone()
            }),
            config: common.service.config.clone(),
            tls: None,
            openings: self.openings,
            metrics: common.service.metrics.clone(),
            mailbox: self.receiver,
            own_mailbox: self.sender,
            pulse: self.pulse,
            neighbours,
            places: common.places.clone(),
            outbound: common.outbound.clone(),
            heartbeat: common.heartbeat,
        }
    }
}

/// Reports that its thread has ended, even by a panic.
struct End(PipeWriter);

impl Drop for End {
    fn drop(&mut self) {
        // The pipe has room for a byte of each reactor, and the reader lives as long as the
        // supervisor.
        let _ = self.0.write_all(&[1]);
    }
}
