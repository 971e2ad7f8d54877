//! The thread that talks to Redis, and the bounded queue in front of it.
//!
//! Owns the thread and the queue. Must never block a caller: [`Handle::submit`] enters a request or
//! refuses it. All requests that wait go in one pipeline.
//!
//! Invariants:
//!  1. An accepted request gets exactly one reply, on this thread.
//!  2. Requests and their bytes in the queue are bounded; those beyond are refused.
//!  3. While no server is connected, requests are refused, not queued.
//!  4. Dropping the link ends the thread, after the step under way.
//!
//! Mutations that tests catch: a batch of one request (`requests_that_wait_go_together`), bytes
//! that are not given back (`a_full_queue_refuses_...`), `submit` that ignores `is_up`
//! (`without_a_server_...`).

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::dial::Settings;
use super::metrics::{Outcome, RedisSeries};
use super::request::{Reply, Request};
use super::servers::Servers;
use crate::core::Moment;
use crate::limits::redis as limits;

/// A request was not accepted: the queue is full, or no server is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

/// A way to the thread, for any number of users.
#[derive(Clone)]
pub struct Handle {
    requests: Sender<Request>,
    shared: Arc<Shared>,
    series: Arc<RedisSeries>,
}

#[derive(Default)]
struct Shared {
    is_up: AtomicBool,
    waiting_bytes: AtomicUsize,
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle")
            .field("is_up", &self.is_up())
            .finish()
    }
}

impl Handle {
    /// Enters a request. Never waits.
    pub fn submit(&self, request: Request) -> Result<(), Refused> {
        let accepted = self.enter(request);
        if accepted.is_err() {
            self.series.requests.get(Outcome::Refused).inc();
        }
        accepted
    }

    /// Returns whether at least one server is connected.
    pub fn is_up(&self) -> bool {
        self.shared.is_up.load(Ordering::Relaxed)
    }

    fn enter(&self, request: Request) -> Result<(), Refused> {
        if !self.is_up() {
            return Err(Refused);
        }
        let bytes = request.bytes();
        let waiting = &self.shared.waiting_bytes;
        let before = waiting.fetch_add(bytes, Ordering::Relaxed);
        let fits = before + bytes <= limits::WAITING_COMMAND_BYTES_MAX;
        if fits && self.requests.try_send(request).is_ok() {
            return Ok(());
        }
        waiting.fetch_sub(bytes, Ordering::Relaxed);
        Err(Refused)
    }
}

/// The thread. Dropping it ends the thread and waits for that.
pub struct Link {
    /// Its drop ends the thread.
    _end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Link {
    pub fn start(settings: Settings, series: Arc<RedisSeries>) -> std::io::Result<(Link, Handle)> {
        let (requests, inbox) = bounded(limits::WAITING_REQUESTS_MAX);
        let (end, ended) = bounded(0);
        let shared = Arc::new(Shared::default());
        let handle = Handle {
            requests,
            shared: Arc::clone(&shared),
            series: Arc::clone(&series),
        };
        let url = settings.url.to_string();
        let worker = Worker {
            servers: Servers::new(settings),
            inbox,
            ended,
            shared,
            series,
            url,
            was_up: None,
        };
        let thread = thread::Builder::new()
            .name("redis".into())
            .spawn(move || worker.run())?;
        let link = Link {
            _end: Some(end),
            thread: Some(thread),
        };
        Ok((link, handle))
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        drop(self._end.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the thread of Redis has panicked");
        }
    }
}

/// The state of the thread.
struct Worker {
    servers: Servers,
    inbox: Receiver<Request>,
    ended: Receiver<()>,
    shared: Arc<Shared>,
    series: Arc<RedisSeries>,
    url: String,
    /// `None`: nothing was logged yet.
    was_up: Option<bool>,
}

impl Drop for Worker {
    /// Also after a panic: no request may be accepted that will not be served.
    fn drop(&mut self) {
        self.shared.is_up.store(false, Ordering::Relaxed);
        while let Ok(request) = self.inbox.try_recv() {
            request.finish(Reply::Failed);
        }
    }
}

impl Worker {
    fn run(mut self) {
        loop {
            let now = Moment::now();
            if now >= self.servers.next_maintenance() {
                self.servers.maintain(now);
            }
            self.note_state();
            let wait = self.servers.next_maintenance().since(Moment::now());
            match self.wait(wait) {
                Ok(Some(first)) => self.serve(first),
                Ok(None) => {}
                Err(Ended) => return,
            }
        }
    }

    fn wait(&self, patience: Duration) -> Result<Option<Request>, Ended> {
        crossbeam_channel::select! {
            recv(self.inbox) -> request => Ok(request.ok()),
            recv(self.ended) -> _ => Err(Ended),
            default(patience) => Ok(None),
        }
    }

    fn serve(&mut self, first: Request) {
        let now = Moment::now();
        let mut bytes = 0;
        let mut batch = Vec::new();
        let mut next = Some(first);
        while let Some(request) = next {
            self.shared
                .waiting_bytes
                .fetch_sub(request.bytes(), Ordering::Relaxed);
            bytes += request.bytes();
            if now > request.deadline {
                request.finish(Reply::Failed);
                self.series.requests.get(Outcome::Late).inc();
            } else {
                batch.push(self.counted(request));
            }
            let is_full =
                batch.len() >= limits::BATCH_REQUESTS_MAX || bytes >= limits::BATCH_BYTES_MAX;
            next = if is_full {
                None
            } else {
                self.inbox.try_recv().ok()
            };
        }
        self.series.batches.inc();
        self.servers.exchange(batch, now);
    }

    /// Returns the request with a reply that is counted.
    fn counted(&self, request: Request) -> Request {
        let series = Arc::clone(&self.series);
        let reply = request.reply;
        Request {
            reply: Box::new(move |outcome| {
                let word = match outcome {
                    Reply::Failed => Outcome::Failed,
                    _ => Outcome::Served,
                };
                series.requests.get(word).inc();
                reply(outcome);
            }),
            ..request
        }
    }

    /// Publishes whether a server is connected, and logs each change once.
    fn note_state(&mut self) {
        let is_up = self.servers.is_up();
        self.shared.is_up.store(is_up, Ordering::Relaxed);
        self.series.up.set(i64::from(is_up));
        if self.was_up == Some(is_up) || (self.was_up.is_none() && self.has_not_tried()) {
            return;
        }
        self.was_up = Some(is_up);
        let url = &self.url;
        match (is_up, &self.servers.last_error) {
            (true, _) => log::info!("connected to {url}"),
            (false, Some(error)) => log::warn!("{url} is lost: {error}; going on without it"),
            (false, None) => log::warn!("{url} is lost; going on without it"),
        }
    }

    fn has_not_tried(&self) -> bool {
        !self.servers.is_up() && self.servers.last_error.is_none()
    }
}

/// The link was dropped.
struct Ended;
