//! The reactors' threads from outside: how to start them, send them messages, and notice their end.
//!
//! Messages can be sent to all of them before the first one runs, because each knows its neighbours
//! and the engine knows all. Their ends come through a pipe: each thread writes one byte when it
//! ends, however it ends, so that the supervisor can wait for that like for everything else.

use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use socket2::Socket;

use super::listeners::Listeners;
use crate::config::Opening;
use crate::core::Moment;
use crate::limits::offload as offload_limits;
use crate::offload::mailbox::{Receiver, Sender, mailbox};
use crate::reactor::epoll::Epoll;
use crate::reactor::event_loop::{self, Neighbour, Pulse, Reactor};
use crate::reactor::message::Message;
use crate::service::{self, Service};
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
    pub fn prepare(count: u16, listeners: &Listeners) -> io::Result<Spawner> {
        let reactors = (0..count).map(|index| Prepared::new(index, listeners));
        Ok(Spawner(reactors.collect::<io::Result<_>>()?))
    }

    pub fn mailboxes(&self) -> Vec<Sender<Message<Socket>>> {
        self.0
            .iter()
            .map(|reactor| reactor.sender.clone())
            .collect()
    }

    pub fn start(
        self,
        parts: &service::Parts,
        tls: &Option<Arc<Acceptor>>,
        max_connections: usize,
        heartbeat: Option<Duration>,
    ) -> io::Result<Reactors> {
        let (ends, writer) = io::pipe()?;
        let neighbours: Vec<_> = self.0.iter().map(Prepared::neighbour).collect();
        let mut threads = Vec::new();
        for reactor in self.0 {
            let mut parts = reactor.parts(parts, neighbours.clone(), max_connections, heartbeat);
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
        Ok(Reactors {
            running: threads.len(),
            neighbours,
            threads,
            ends,
        })
    }
}

impl Prepared {
    /// Only the first one accepts.
    fn new(index: u16, listeners: &Listeners) -> io::Result<Prepared> {
        let own = match index {
            0 => listeners.sockets(),
            _ => Vec::new(),
        };
        let epoll = Epoll::new(own)?;
        let (sender, receiver) = mailbox(epoll.doorbell()?, offload_limits::MAILBOX_KEPT_ITEMS_MAX);
        Ok(Prepared {
            index,
            epoll,
            openings: listeners.openings(),
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
        parts: &service::Parts,
        neighbours: Vec<Neighbour<Socket>>,
        max_connections: usize,
        heartbeat: Option<Duration>,
    ) -> event_loop::Parts<Epoll> {
        event_loop::Parts {
            index: self.index,
            system: self.epoll,
            service: Service::new(parts.clone()),
            config: parts.config.clone(),
            tls: None,
            openings: self.openings,
            metrics: parts.metrics.clone(),
            mailbox: self.receiver,
            pulse: self.pulse,
            neighbours,
            max_connections,
            heartbeat,
        }
    }
}

/// Reports that its thread has ended, even by a panic.
struct End(PipeWriter);

impl Drop for End {
    fn drop(&mut self) {
        // The pipe has room for a byte of each, and the reader lives as long as the supervisor.
        let _ = self.0.write_all(&[1]);
    }
}

/// Running reactors.
pub struct Reactors {
    neighbours: Vec<Neighbour<Socket>>,
    threads: Vec<JoinHandle<io::Result<()>>>,
    /// How many have not ended.
    running: usize,
    /// A byte from each that has ended.
    ends: PipeReader,
}

impl Reactors {
    pub fn post(&self, message: impl Fn() -> Message<Socket>) {
        self.neighbours
            .iter()
            .for_each(|reactor| reactor.mailbox.post(message()));
    }

    /// Returns whether each loop has turned within this time.
    pub fn have_turned_within(&self, interval: Duration) -> bool {
        let now = Moment::now();
        self.neighbours.iter().all(|reactor| {
            let last = reactor.pulse.last_turn_micros.load(Ordering::Relaxed);
            now.since(Moment::from_micros(last)) < interval
        })
    }

    pub fn are_running(&self) -> bool {
        self.running > 0
    }

    /// Readable when a reactor has ended.
    pub fn ends(&self) -> BorrowedFd<'_> {
        self.ends.as_fd()
    }

    /// Counts reactors that have ended. Waits for one if none has.
    pub fn count_ends(&mut self) -> io::Result<()> {
        // Bytes that do not fit are read the next time.
        let mut bytes = [0; 8];
        let ended = self.ends.read(&mut bytes)?;
        self.running = self.running.saturating_sub(ended);
        Ok(())
    }

    /// Waits for all, and returns their errors.
    pub fn join(&mut self) -> Vec<String> {
        let mut problems = Vec::new();
        for (index, thread) in self.threads.drain(..).enumerate() {
            match thread.join() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => problems.push(format!("reactor {index} ended: {error}")),
                Err(_) => problems.push(format!("reactor {index} ended: a panic, see above")),
            }
        }
        problems
    }
}
