//! Metrics pushed to an OpenTelemetry collector, as a part: one thread, which reads the registry
//! once per interval, and hands batches to the way of requests to other servers.
//!
//! Owns the thread, its clock and the log lines about the pushes. What is pushed and when a failed
//! push is tried again is decided in [`otlp`](crate::telemetry::otlp). Never waits for a reactor,
//! and no reactor ever waits for it.
//!
//! Born after the reactors, so it is the first part to drain: the last push begins while the
//! reactors, which carry it, still run. A drain waits `PUSH_DRAIN_TIMEOUT` for it at most; the
//! numbers of requests that end during a drain follow as long as reactors run.
//!
//! Mutations that `tests/otlp.rs` catches: `drain` without its wait, a fate that is not counted, a
//! token or a header that is not sent, a body without `content-encoding`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};

use super::failure::Failure;
use super::part::{Birth, Part};
use crate::config::{CredentialPath, HeaderValue, MetricsPush, PushHeader};
use crate::console::exit;
use crate::core::address_policy::AddressPolicy;
use crate::core::buffered::Account;
use crate::core::{Moment, UnixSeconds};
use crate::engine::Engine;
use crate::http::http1::response_reader::ResponseBounds;
use crate::http::origin::Origin;
use crate::http::{Fields, Method};
use crate::limits::telemetry as limits;
use crate::offload::fetch::{Fetch, FetchError, FetchSink, Fetcher, Request, Response, Timeouts};
use crate::offload::{OWN_TENANT, Workers};
use crate::os::file::read_up_to;
use crate::os::process::give_way;
use crate::service::{Copied, Owners, Responses, templates};
use crate::store::Requests;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::otlp::delivery::Delivery;
use crate::telemetry::otlp::metrics::{Attempt, Points, PushSeries};
use crate::telemetry::otlp::reply::{self, Fate};
use crate::telemetry::otlp::snapshot::Source;
use crate::telemetry::random::random_seed;

pub struct Push {
    /// `None` without a collector.
    running: Option<(Sender<Note>, JoinHandle<()>)>,
}

/// A message to the thread. They are few: one result at a time, and those of the end.
enum Note {
    Result(Result<Response, FetchError>),
    /// Push now; the sender is dropped when nothing waits any more, or cannot be sent.
    Last(Sender<()>),
    End,
}

impl Part for Push {
    fn start(birth: &mut Birth) -> Result<Push, Failure> {
        let settings = &birth.config.metrics_push;
        if settings.url.is_empty() {
            return Ok(Push { running: None });
        }
        let invalid = |message| Failure::new(exit::CONFIG, message);
        let target = Target::of(settings, birth.sources.credentials_dir().as_deref());
        let target = target.map_err(invalid)?;
        let (Some(fetcher), Some(engine), Some(responses)) = (
            birth.fetcher.clone(),
            birth.engine.clone(),
            birth.responses.clone(),
        ) else {
            let message = "the pushes are born before the reactors";
            return Err(Failure::new(exit::SOFTWARE, message));
        };
        let (sender, notes) = unbounded();
        let owned = Owned {
            engine,
            responses,
            buffered: birth.buffered.clone(),
            workers: birth.workers.clone(),
            requests: birth.requests.clone(),
        };
        let engine = birth.config.engine.kind.as_str();
        let pusher = Pusher {
            series: birth.metrics.series(),
            copied: Copied::new(&birth.metrics),
            metrics: birth.metrics.clone(),
            source: Source::new(&instance(), engine, templates().collect(), unix_nanos()),
            delivery: Delivery::new(settings.spool, random_seed()),
            interval: settings.interval,
            next_at: Moment::now() + settings.interval,
            last: None,
            troubles: Troubles::default(),
            owned,
            target,
            fetcher,
            own: sender.clone(),
        };
        let thread = thread::Builder::new()
            .name("push".to_owned())
            .stack_size(limits::PUSH_STACK_BYTES)
            .spawn(move || {
                give_way();
                pusher.run(&notes);
            })
            .map_err(|error| Failure::os("starting a thread", &error))?;
        Ok(Push {
            running: Some((sender, thread)),
        })
    }

    fn drain(&mut self, patience: Duration) {
        let Some((notes, _)) = &self.running else {
            return;
        };
        let (done, end) = bounded(0);
        if notes.send(Note::Last(done)).is_ok() {
            // Nothing is ever sent: it ends with the drop of the sender, or with its time.
            let _ = end.recv_timeout(patience.min(limits::PUSH_DRAIN_TIMEOUT));
        }
    }

    fn join(&mut self) -> bool {
        let Some((notes, thread)) = self.running.take() else {
            return true;
        };
        // A thread that has ended needs no message.
        let _ = notes.send(Note::End);
        thread.join().is_ok()
    }
}

impl Drop for Push {
    fn drop(&mut self) {
        // A start that has failed after this part.
        self.join();
    }
}

// ---- the collector ------------------------------------------------------------------------------

struct Target {
    url: String,
    origin: Origin,
    path: String,
    token_file: Option<PathBuf>,
    headers: Vec<(&'static str, HeaderValue)>,
    timeout: Duration,
}

impl Target {
    fn of(settings: &MetricsPush, credentials: Option<&Path>) -> Result<Target, String> {
        let url = settings.url.clone();
        let parsed = Origin::parse(&url);
        let (origin, path) = parsed.map_err(|why| format!("metrics.push.url: {why}"))?;
        let token_file = match &settings.token_file {
            Some(path) => Some(CredentialPath(path).resolve(credentials)?),
            None => None,
        };
        let headers = PushHeader::parse_all(&settings.headers, token_file.is_some());
        let headers = headers.map_err(|(key, why)| format!("{key}: {why}"))?;
        let target = Target {
            url,
            origin,
            path,
            token_file,
            headers: named(headers, credentials)?,
            timeout: settings.timeout,
        };
        // A mistake shows at the start.
        target.fields()?;
        Ok(target)
    }

    fn fields(&self) -> Result<Fields, String> {
        let mut fields = Fields::new();
        fields.push("content-type", "application/x-protobuf");
        fields.push("content-encoding", "gzip");
        let agent = concat!("autoglmd/", env!("CARGO_PKG_VERSION"));
        fields.push("user-agent", agent);
        if let Some(path) = &self.token_file {
            let shown = path.display();
            let bytes = secret(path)?;
            let token = bytes.trim_ascii();
            if token.is_empty() || !token.iter().all(u8::is_ascii_graphic) {
                return Err(format!("{shown}: expected one word of visible ASCII"));
            }
            let token = String::from_utf8_lossy(token);
            fields.push("authorization", &format!("Bearer {token}"));
        }
        for &(name, ref value) in &self.headers {
            match value {
                HeaderValue::Text(text) => fields.push(name, text),
                HeaderValue::File(path) => {
                    let value = PushHeader::value_of(&secret(path)?);
                    let value = value.map_err(|why| format!("{}: {why}", path.display()))?;
                    fields.push(name, &value);
                }
            }
        }
        Ok(fields)
    }
}

/// Finds the files of the values. Names live as long as the process: a collector is configured once
/// for it.
fn named(
    headers: Vec<PushHeader>,
    credentials: Option<&Path>,
) -> Result<Vec<(&'static str, HeaderValue)>, String> {
    let one = |header: PushHeader| {
        let value = match header.value {
            HeaderValue::File(path) => {
                HeaderValue::File(CredentialPath(&path).resolve(credentials)?)
            }
            text @ HeaderValue::Text(_) => text,
        };
        Ok::<_, String>((&*header.name.leak(), value))
    };
    headers.into_iter().map(one).collect()
}

fn secret(path: &Path) -> Result<Vec<u8>, String> {
    let bytes = read_up_to(path, limits::PUSH_SECRET_BYTES_MAX);
    bytes.map_err(|error| format!("{}: {error}", path.display()))
}

/// Sends the result back to the thread.
struct Sink(Sender<Note>);

impl FetchSink for Sink {
    fn finish(self: Box<Self>, result: Result<Response, FetchError>) {
        // A thread that has ended has given up this batch.
        let _ = self.0.send(Note::Result(result));
    }
}

// ---- the thread ---------------------------------------------------------------------------------

/// The owners of numbers that are copied before the registry is read.
struct Owned {
    engine: Arc<dyn Engine>,
    responses: Arc<Responses>,
    buffered: Account,
    workers: Arc<Workers>,
    requests: Arc<Requests>,
}

struct Pusher {
    metrics: Metrics,
    copied: Copied,
    owned: Owned,
    series: Arc<PushSeries>,
    source: Source,
    delivery: Delivery,
    target: Target,
    fetcher: Fetcher,
    /// For the results of fetches.
    own: Sender<Note>,
    interval: Duration,
    /// When the registry is read next.
    next_at: Moment,
    /// The drain waits until this is dropped.
    last: Option<Sender<()>>,
    troubles: Troubles,
}

impl Pusher {
    fn run(mut self, notes: &Receiver<Note>) {
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

/// What went wrong since the last line of the log about it.
#[derive(Debug, Default)]
struct Troubles {
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
fn unix_nanos() -> u64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH);
    elapsed.map_or(0, |elapsed| elapsed.as_nanos() as u64)
}

/// Names this process among all daemons: a UUID of version 4.
fn instance() -> String {
    let (high, low) = (random_seed(), random_seed());
    let bytes = (u128::from(high) << 64 | u128::from(low)).to_be_bytes();
    uuid::Builder::from_random_bytes(bytes)
        .into_uuid()
        .to_string()
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
