//! What the thread of pushed metrics does: reads the numbers once per interval, sends them, and
//! counts what became of them.
//!
//! Owns the times of readings. What is pushed and when a failed push is tried again is decided in
//! [`otlp`](crate::telemetry::otlp). All but `run` has its time as an argument.
//!
//! ```text
//!   handle_result, handle_last ──> poll ──> next_moment
//!         ^                                     │
//!         └───── a note, or that moment <───────┘
//! ```
//!
//! Invariants:
//!  1. An interval is read when its time comes, whatever becomes of those before it.
//!  2. Each batch that is sent has one result, which is counted once, and so are its points.
//!  3. The drain waits until all batches were taken, or one of them must be tried again.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

use super::collector::Target;
use super::numbers::Numbers;
use super::troubles::Troubles;
use crate::core::address_policy::AddressPolicy;
use crate::core::{Moment, UnixSeconds};
use crate::http::Method;
use crate::http::http1::response_reader::ResponseBounds;
use crate::limits::telemetry as limits;
use crate::offload::OWN_TENANT;
use crate::offload::fetch::{Fetch, FetchError, FetchSink, Fetcher, Request, Response, Timeouts};
use crate::telemetry::otlp::delivery::Delivery;
use crate::telemetry::otlp::metrics::{Attempt, Points, PushSeries};
use crate::telemetry::otlp::reply::{self, Fate};

/// See the file's head.
pub struct Pusher<N> {
    pub numbers: N,
    pub series: Arc<PushSeries>,
    pub delivery: Delivery,
    pub target: Target,
    pub fetcher: Fetcher,
    /// For the results of fetches.
    pub own: Sender<Note>,
    pub interval: Duration,
    /// When the numbers are read next.
    pub next_at: Moment,
    /// The drain waits until this is dropped.
    pub last: Option<Sender<()>>,
    pub troubles: Troubles,
}

impl<N: Numbers> Pusher<N> {
    pub fn run(mut self, notes: &Receiver<Note>) {
        loop {
            match notes.recv_timeout(self.next_moment().since(Moment::now())) {
                Ok(Note::Result(result)) => self.handle_result(result, Moment::now()),
                Ok(Note::Last(done)) => self.handle_last(done, Moment::now()),
                Ok(Note::End) | Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {}
            }
            self.poll(Moment::now());
        }
        if let Some(line) = self.troubles.take_line(&self.target.url) {
            log::warn!("{line}");
        }
    }

    // ---- getters ----

    /// Returns when [`Pusher::poll`] has something to do, unless a note comes before.
    fn next_moment(&self) -> Moment {
        let due = self.delivery.due_at().unwrap_or(self.next_at);
        due.min(self.next_at)
    }

    // ---- events ----

    fn handle_result(&mut self, result: Result<Response, FetchError>, now: Moment) {
        let response = match result {
            Ok(response) => response,
            Err(error) => return self.fail(error.to_string(), now),
        };
        let asked = response.retry_after(UnixSeconds::now());
        let fate = reply::read(response.status, asked, &response.body);
        let attempt = match &fate {
            Fate::Taken { rejected: 0, .. } => Attempt::Taken,
            Fate::Taken { rejected, message } => {
                let message: String = message
                    .chars()
                    .take(limits::PUSH_TEXT_CHARACTERS_MAX)
                    .collect();
                self.troubles
                    .note(format!("it rejected {rejected} points: {message}"));
                Attempt::Partial
            }
            Fate::Again { .. } => {
                self.troubles.note(format!("status {}", response.status));
                Attempt::Again
            }
            Fate::Refused => {
                self.troubles.note(format!("status {}", response.status));
                Attempt::Refused
            }
        };
        self.series.attempts.get(attempt).inc();
        self.settle(&fate, now);
    }

    /// The daemon begins to drain: all numbers are sent now, those of this moment as well.
    fn handle_last(&mut self, done: Sender<()>, now: Moment) {
        self.read(now);
        self.delivery.handle_end(now);
        self.last = Some(done);
    }

    // ---- commands ----

    /// Does what is due.
    fn poll(&mut self, now: Moment) {
        if now >= self.next_at {
            self.read(now);
        }
        self.send(now);
        self.publish(now);
    }

    /// Puts the numbers of this moment into the spool.
    fn read(&mut self, now: Moment) {
        for batch in self.numbers.read() {
            let dropped = self.delivery.handle_batch(batch);
            self.series.points.get(Points::Dropped).inc_by(dropped);
            self.troubles.lose(dropped);
        }
        self.series.intervals.inc();
        // A machine that slept does not catch up on the intervals that it missed.
        self.next_at = now + self.interval;
    }

    /// Sends the oldest batch, if its time has come.
    fn send(&mut self, now: Moment) {
        let Some(bytes) = self.delivery.poll(now) else {
            return;
        };
        let fields = match self.target.fields() {
            Ok(fields) => fields,
            Err(problem) => return self.fail(problem, now),
        };
        let timeout = self.target.timeout;
        let fetch = Fetch {
            tenant: OWN_TENANT,
            origin: self.target.origin.clone(),
            request: Request {
                method: Method::Post,
                target: self.target.path.clone(),
                fields,
                body: bytes,
                // A point that comes twice has the same time and value.
                is_idempotent: true,
            },
            timeouts: Timeouts {
                connect: timeout,
                first_byte: timeout,
                whole: timeout,
            },
            bounds: ResponseBounds {
                head_bytes: limits::PUSH_RESPONSE_BYTES_MAX,
                body_bytes: limits::PUSH_RESPONSE_BYTES_MAX,
                // With success it has taken the batch. A body that is cut off hides at most how
                // many points were rejected; sent again, the batch would meet the same response.
                status_is_enough: true,
            },
            // The operator names the collector, which is usually on a private network.
            policy: AddressPolicy::Any,
            sink: Box::new(Sink(self.own.clone())),
        };
        if self.fetcher.submit(fetch).is_err() {
            self.fail("too many requests to other servers wait".to_owned(), now);
        }
    }

    /// The batch on its way got no response.
    fn fail(&mut self, problem: String, now: Moment) {
        self.series.attempts.get(Attempt::Failed).inc();
        self.troubles.note(problem);
        self.settle(&Fate::Again { after: None }, now);
    }

    fn settle(&mut self, fate: &Fate, now: Moment) {
        let ended = self.delivery.handle_fate(fate, now);
        let points = &self.series.points;
        match fate {
            Fate::Taken { .. } => {
                points
                    .get(Points::Taken)
                    .inc_by(ended.points - ended.rejected);
                points.get(Points::Rejected).inc_by(ended.rejected);
                self.troubles.lose(ended.rejected);
            }
            Fate::Refused => {
                points.get(Points::Refused).inc_by(ended.points);
                self.troubles.lose(ended.points);
            }
            // One chance at the end is enough: the drain must not wait for another.
            Fate::Again { .. } => self.last = None,
        }
    }

    fn publish(&mut self, now: Moment) {
        let spool = self.delivery.spool();
        self.series.spool.set(spool.bytes() as i64);
        let wait = self.delivery.wait().as_secs_f64().ceil();
        self.series.wait.set(wait as i64);
        if spool.is_empty() {
            self.last = None;
        }
        if let Some(line) = self.troubles.poll_line(&self.target.url, now) {
            log::warn!("{line}");
        }
    }
}

/// A message to the thread. They are few: one result at a time, and those of the end.
pub enum Note {
    Result(Result<Response, FetchError>),
    /// Push now; the sender is dropped when nothing waits any more, or cannot be sent.
    Last(Sender<()>),
    End,
}

/// Sends the result back to the thread.
struct Sink(Sender<Note>);

impl FetchSink for Sink {
    fn finish(self: Box<Self>, result: Result<Response, FetchError>) {
        // A thread that has ended has given up this batch.
        let _ = self.0.send(Note::Result(result));
    }
}

#[cfg(test)]
mod tests;
