//! The thread of pushed metrics: reads the numbers once per interval, sends them, and counts what
//! became of them.
//!
//! Owns the times of readings, and the log lines about trouble. What is pushed and when a failed
//! push is tried again is decided in [`otlp`](crate::telemetry::otlp).

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

use super::collector::Target;
use crate::core::address_policy::AddressPolicy;
use crate::core::buffered::Account;
use crate::core::{Moment, UnixSeconds};
use crate::engine::Engine;
use crate::http::Method;
use crate::http::http1::response_reader::ResponseBounds;
use crate::limits::telemetry as limits;
use crate::offload::fetch::{Fetch, FetchError, FetchSink, Fetcher, Request, Response, Timeouts};
use crate::offload::{OWN_TENANT, Workers};
use crate::service::{Copied, Owners, Responses};
use crate::store::Requests;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::otlp::delivery::Delivery;
use crate::telemetry::otlp::metrics::{Attempt, Points, PushSeries};
use crate::telemetry::otlp::reply::{self, Fate};
use crate::telemetry::otlp::snapshot::Source;

/// See the file's head.
pub struct Pusher {
    pub metrics: Metrics,
    pub copied: Copied,
    pub owned: Owned,
    pub series: Arc<PushSeries>,
    pub source: Source,
    pub delivery: Delivery,
    pub target: Target,
    pub fetcher: Fetcher,
    /// For the results of fetches.
    pub own: Sender<Note>,
    pub interval: Duration,
    /// When the registry is read next.
    pub next_at: Moment,
    /// The drain waits until this is dropped.
    pub last: Option<Sender<()>>,
    pub troubles: Troubles,
}

impl Pusher {
    pub fn run(mut self, notes: &Receiver<Note>) {
        loop {
            let now = Moment::now();
            let due = self.delivery.due_at().unwrap_or(self.next_at);
            match notes.recv_timeout(due.min(self.next_at).since(now)) {
                Ok(Note::Result(result)) => self.handle_result(result),
                Ok(Note::Last(done)) => {
                    self.read_registry();
                    self.delivery.handle_end(Moment::now());
                    self.last = Some(done);
                }
                Ok(Note::End) | Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {}
            }
            if Moment::now() >= self.next_at {
                self.read_registry();
            }
            self.send();
            self.publish();
        }
        self.troubles.tell(&self.target.url);
    }

    /// Puts the numbers of this moment into the spool.
    fn read_registry(&mut self) {
        let owned = &self.owned;
        self.copied.update(&Owners {
            engine: &*owned.engine,
            buffered: &owned.buffered,
            workers: &owned.workers,
            responses: &owned.responses,
            requests: &owned.requests,
        });
        let mut text = String::new();
        self.metrics.encode(&mut text);
        let batches = self
            .source
            .batches(&text, &self.metrics.rows(), unix_nanos());
        for batch in batches {
            let dropped = self.delivery.handle_batch(batch);
            self.series.points.get(Points::Dropped).inc_by(dropped);
            self.troubles.points += dropped;
        }
        self.series.intervals.inc();
        // A machine that slept does not catch up on the intervals that it missed.
        self.next_at = Moment::now() + self.interval;
    }

    /// Sends the oldest batch, if its time has come.
    fn send(&mut self) {
        let Some(bytes) = self.delivery.poll(Moment::now()) else {
            return;
        };
        let fields = match self.target.fields() {
            Ok(fields) => fields,
            Err(problem) => return self.fail(problem),
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
            self.fail("too many requests to other servers wait".to_owned());
        }
    }

    /// The batch on its way got no response.
    fn fail(&mut self, problem: String) {
        self.series.attempts.get(Attempt::Failed).inc();
        self.troubles.note(problem);
        self.settle(&Fate::Again { after: None });
    }

    fn handle_result(&mut self, result: Result<Response, FetchError>) {
        let response = match result {
            Ok(response) => response,
            Err(error) => return self.fail(error.to_string()),
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
        self.settle(&fate);
    }

    fn settle(&mut self, fate: &Fate) {
        let ended = self.delivery.handle_fate(fate, Moment::now());
        let points = &self.series.points;
        match fate {
            Fate::Taken { .. } => {
                points
                    .get(Points::Taken)
                    .inc_by(ended.points - ended.rejected);
                points.get(Points::Rejected).inc_by(ended.rejected);
                self.troubles.points += ended.rejected;
            }
            Fate::Refused => {
                points.get(Points::Refused).inc_by(ended.points);
                self.troubles.points += ended.points;
            }
            // One chance at the end is enough: the drain must not wait for another.
            Fate::Again { .. } => self.last = None,
        }
    }

    fn publish(&mut self) {
        let spool = self.delivery.spool();
        self.series.spool.set(spool.bytes() as i64);
        let wait = self.delivery.wait().as_secs_f64().ceil();
        self.series.wait.set(wait as i64);
        if spool.is_empty() {
            self.last = None;
        }
        if self.troubles.is_due(Moment::now()) {
            self.troubles.tell(&self.target.url);
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

/// The owners of numbers that are copied before the registry is read.
pub struct Owned {
    pub engine: Arc<dyn Engine>,
    pub responses: Arc<Responses>,
    pub buffered: Account,
    pub workers: Arc<Workers>,
    pub requests: Arc<Requests>,
}

/// What went wrong since the last line of the log about it.
#[derive(Debug, Default)]
pub struct Troubles {
    times: u64,
    points: u64,
    latest: String,
    told_at: Option<Moment>,
}

impl Troubles {
    fn note(&mut self, problem: String) {
        self.times += 1;
        self.latest = problem;
    }

    fn is_due(&mut self, now: Moment) -> bool {
        let is_early = |at: Moment| now.since(at) < limits::PUSH_LOG_INTERVAL;
        if self.times + self.points == 0 || self.told_at.is_some_and(is_early) {
            return false;
        }
        self.told_at = Some(now);
        true
    }

    fn tell(&mut self, url: &str) {
        let (times, points) = (
            std::mem::take(&mut self.times),
            std::mem::take(&mut self.points),
        );
        if times + points == 0 {
            return;
        }
        let latest = std::mem::take(&mut self.latest);
        log::warn!(
            "metrics.push: {times} pushes to {url} failed, the last one: {latest}; \
             {points} points were lost"
        );
    }
}

/// Returns the wall clock in nanoseconds since 1970.
pub fn unix_nanos() -> u64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH);
    elapsed.map_or(0, |elapsed| elapsed.as_nanos() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mutation: `is_due` that does not remember when it told.
    #[test]
    fn trouble_is_told_once_a_minute() {
        let mut troubles = Troubles::default();
        let start = Moment::from_micros(1_000_000);
        assert!(!troubles.is_due(start), "there is none");
        let mut told = 0;
        for second in 0..180 {
            troubles.note("status 503".to_owned());
            if troubles.is_due(start + Duration::from_secs(second)) {
                troubles.tell("http://localhost/");
                told += 1;
            }
        }
        assert_eq!(told, 3);
    }
}
