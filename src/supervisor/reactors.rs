//! The reactors' threads, from outside: sends them messages, and notices their ends.
//!
//! Their ends come through a pipe: each thread writes one byte when it ends, for whatever reason,
//! so that the supervisor can wait for it as for everything else.

use std::io::{self, PipeReader, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::Socket;

use super::buffers;
use super::failure::Failure;
use super::part::{Birth, Part, Settings};
use super::spawner::Common;
use crate::bus::Notice;
use crate::config::Config;
use crate::console::exit;
use crate::core::buffered::Account;
use crate::core::places::Places;
use crate::core::{Moment, UnixMillis};
use crate::limits::supervisor as limits;
use crate::reactor::event_loop::Neighbour;
use crate::reactor::message::{Mailboxes, Message, Receipt, Receipts};
use crate::service::{self, Announce, Purger, Responses};

/// Running reactors.
pub struct Reactors {
    neighbours: Vec<Neighbour<Socket>>,
    threads: Vec<JoinHandle<io::Result<()>>>,
    /// The number of reactors that have not ended.
    running: usize,
    /// Brings a byte from each reactor that has ended.
    ends: PipeReader,
    /// Of the messages that were posted with a receipt last.
    receipts: Option<Receipts>,
    buffered: Account,
    responses: Arc<Responses>,
    purger: Arc<Purger>,
}

impl Part for Reactors {
    fn start(birth: &mut Birth) -> Result<Reactors, Failure> {
        let (Some(spawner), Some(engine), Some(outbound)) = (
            birth.spawner.take(),
            birth.engine.clone(),
            birth.outbound.take(),
        ) else {
            return Err(Failure::new(
                exit::SOFTWARE,
                "the reactors are born before the engine",
            ));
        };
        let responses = responses(&birth.config)?;
        birth.responses = Some(responses.clone());
        let announce = birth.bus.clone().map(|bus| {
            let announce = move |key: Option<&str>| match key {
                Some(id) => bus.publish(&Notice::Tenant(id.to_owned())),
                None => bus.publish(&Notice::Entries),
            };
            Box::new(announce) as Announce
        });
        let purger = Purger::new(responses.clone(), engine.clone(), birth.workers.clone());
        let purger = purger.with(birth.timer.clone(), announce, &birth.config.cache);
        let purger = birth.purger.get_or_init(|| Arc::new(purger)).clone();
        let common = Common {
            service: service::Parts {
                config: birth.config.clone(),
                keys: birth.keys.clone(),
                engine,
                limiter: birth.limiter.clone(),
                buffered: birth.buffered.clone(),
                responses: responses.clone(),
                purger: purger.clone(),
                workers: birth.workers.clone(),
                replies: Arc::new(Mailboxes(spawner.mailboxes())),
                metrics: birth.metrics.clone(),
                requests: birth.requests.clone(),
                jobs: birth.jobs.clone(),
                wall_clock: UnixMillis::now,
                seed: 0,
            },
            places: Arc::new(Places::new(birth.max_connections)),
            outbound,
            heartbeat: birth.heartbeat,
        };
        let spawned = spawner.spawn(&common, &birth.acceptor);
        let spawned = spawned.map_err(|error| Failure::os("starting a thread", &error))?;
        Ok(Reactors {
            running: spawned.threads.len(),
            neighbours: spawned.neighbours,
            threads: spawned.threads,
            ends: spawned.ends,
            receipts: None,
            buffered: birth.buffered.clone(),
            responses,
            purger,
        })
    }

    fn apply(&mut self, settings: &Settings) {
        // Read here, because a reactor must not read files.
        self.buffered.set_bound(buffers::bound(&settings.config));
        // Shrinking takes milliseconds.
        self.responses.apply(&settings.config.cache, Moment::now());
        self.purger.apply(&settings.config.cache);
        self.post_with_receipt(|| {
            [
                Message::Tls(settings.acceptor.clone()),
                Message::Apply(settings.config.clone()),
            ]
        });
    }

    fn drain(&mut self, patience: Duration) {
        self.post_with_receipt(|| [Message::Drain(patience)]);
    }

    /// Waits for all threads, and logs what went wrong in them.
    fn join(&mut self) -> bool {
        let mut is_good = true;
        for (index, thread) in self.threads.drain(..).enumerate() {
            match thread.join() {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => log::error!("reactor {index} ended: {error}"),
                Err(_) => log::error!("reactor {index} ended by a panic, see above"),
            }
            is_good = false;
        }
        is_good
    }
}

impl Reactors {
    fn post(&self, message: impl Fn() -> Message<Socket>) {
        self.neighbours
            .iter()
            .for_each(|reactor| reactor.mailbox.post(message()));
    }

    /// Posts messages, and behind them a receipt for [`Reactors::wait_until_handled`].
    fn post_with_receipt<const N: usize>(&mut self, messages: impl Fn() -> [Message<Socket>; N]) {
        let (receipt, receipts) = Receipt::new();
        for reactor in &self.neighbours {
            // At once: a reactor that drains may end before it gets a second batch.
            let handled = Message::Handled(receipt.clone());
            reactor
                .mailbox
                .post_all(messages().into_iter().chain([handled]));
        }
        self.receipts = Some(receipts);
    }

    /// Blocks until every reactor has handled its last settings, or the order to drain: a report
    /// of them is true then for each connection that is opened after it.
    pub fn wait_until_handled(&mut self) {
        let receipts = self.receipts.take();
        if receipts.is_some_and(|receipts| !receipts.wait(limits::HANDLING_TIME_MAX)) {
            log::warn!("a reactor has not turned for a second; it takes what changed later");
        }
    }

    /// Cuts off running requests.
    pub fn stop(&self) {
        self.post(|| Message::Stop);
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

    /// The descriptor that is readable when a reactor has ended.
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
}

/// Returns an empty cache of responses, with a secret of this process.
fn responses(config: &Config) -> Result<Arc<Responses>, Failure> {
    let mut secret = [0; 32];
    getrandom::fill(&mut secret).map_err(|error| {
        let message = format!("getrandom(2) failed: {error}");
        Failure::new(exit::OS_ERROR, message)
    })?;
    Ok(Arc::new(Responses::new(secret, &config.cache)))
}
