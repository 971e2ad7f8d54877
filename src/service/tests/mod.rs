//! The service on a test bench: a scripted engine on one side, a recording reply on the other, and
//! a clock that stands still until it is set.

mod admission;
mod cached;
mod coding;
mod dialect;
mod forms;
mod generation;
mod grpc;
mod jobs;
mod long_bodies;
mod long_responses;
mod protobuf;
mod records;
mod routes;
mod served;

use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::router::{self, Access, Surface, Verbs};
use super::*;
use crate::core::buffered::Account;
use crate::core::{Key, UnixMillis};
use crate::engine::{
    Defaults, Done, Engine, Event, FinishReason, Gauges, Job, ModelInfo, Refused, Served, State,
    Timings, Usage,
};
use crate::error::{ApiError, ErrorCode};
use crate::http::http1::target::{self, Target};
use crate::http::{Fields, ResponseHead, Version};
use crate::keys::{KeyRecord, Scopes, Secret};
use crate::limits::service as limits;
use crate::offload::Workers;
use crate::store::Requests;
use crate::telemetry::metrics::Metrics;

/// Without the cache: equal requests of a test are to reach the engine.
pub fn config() -> Config {
    let mut config = Config::default();
    config.cache.enabled = false;
    config
}

/// The defaults of the tests' model, which differ from any in the product.
pub const DEFAULTS: Defaults = Defaults {
    repeat_penalty: 1.25,
    max_tokens: 77,
};

/// Completes no job by itself: the test reads the jobs and writes their events.
pub struct Scripted {
    pub jobs: Mutex<Vec<Job>>,
    pub cancelled: Mutex<Vec<JobKey>>,
    pub credited: Mutex<Vec<JobKey>>,
    pub overdue: Mutex<Vec<JobKey>>,
    pub refusal: Mutex<Option<Refused>>,
    pub state: Mutex<State>,
}

impl Engine for Scripted {
    fn submit(&self, job: Job) -> Result<(), Refused> {
        if let Some(refused) = self.refusal.lock().unwrap().clone() {
            return Err(refused);
        }
        self.jobs.lock().unwrap().push(job);
        Ok(())
    }

    fn cancel(&self, key: JobKey) {
        self.cancelled.lock().unwrap().push(key);
    }

    fn handle_credit(&self, key: JobKey) {
        self.credited.lock().unwrap().push(key);
    }

    fn handle_deadline(&self, key: JobKey) {
        self.overdue.lock().unwrap().push(key);
    }

    fn state(&self) -> State {
        self.state.lock().unwrap().clone()
    }

    fn model(&self) -> Option<ModelInfo> {
        (self.state() == State::Ready).then(|| ModelInfo {
            id: "tiny".into(),
            engine: "llama",
            description: "a model of the tests".into(),
            context_length: 2_048,
            fingerprint: [0; 32],
            created: 7,
            defaults: DEFAULTS,
        })
    }

    fn gauges(&self) -> Gauges {
        Gauges {
            generated_tokens: 4_711,
            ..Gauges::default()
        }
    }

    fn drain(&self) {}
}

/// Records the service's calls, as a protocol would send them. Checks their order.
#[derive(Debug)]
pub struct Recording {
    pub status: u16,
    pub content_type: Option<&'static str>,
    pub fields: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub trailers: Vec<(String, String)>,
    pub is_started: bool,
    pub is_finished: bool,
    pub room: bool,
}

impl Recording {
    pub fn new() -> Recording {
        Recording {
            status: 0,
            content_type: None,
            fields: Vec::new(),
            body: Vec::new(),
            trailers: Vec::new(),
            is_started: false,
            is_finished: false,
            room: true,
        }
    }

    pub fn field(&self, name: &str) -> Option<&str> {
        let mut found = self.fields.iter().filter(|(known, _)| known == name);
        let value = found.next().map(|(_, value)| value.as_str());
        assert!(found.next().is_none(), "{name} stands twice");
        value
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub fn json(&self) -> serde_json::Value {
        assert_eq!(self.content_type, Some("application/json"));
        serde_json::from_slice(&self.body).unwrap()
    }

    /// Returns the error's code, after checking that the response has the one form of all errors.
    #[track_caller]
    pub fn error(&self) -> String {
        let json = self.json();
        let error = json["error"].as_object().unwrap();
        let code = error["code"].as_str().unwrap();
        let known = ErrorCode::ALL.iter().find(|known| known.as_str() == code);
        let known = known.unwrap_or_else(|| panic!("{code} is not in the catalogue"));
        assert_eq!(self.status, known.status(), "{code}");
        assert_eq!(error["type"], known.family().as_str());
        assert!(!error["message"].as_str().unwrap().is_empty());
        assert_eq!(error["request_id"].as_str(), self.field("x-request-id"));
        assert!(error.contains_key("param"));
        assert!(self.is_finished);
        code.to_owned()
    }

    fn head(&mut self, answer: &ResponseHead<'_>) {
        assert!(!self.is_started, "a second answer");
        self.is_started = true;
        self.status = answer.status;
        self.content_type = answer.content_type;
        self.fields = owned(answer.headers);
    }
}

fn owned(fields: &Fields) -> Vec<(String, String)> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let fields = fields.iter();
    fields
        .map(|(name, value)| (name.to_owned(), text(value)))
        .collect()
}

impl ResponseSink for Recording {
    fn respond(&mut self, answer: &ResponseHead<'_>, body: &[u8]) {
        self.head(answer);
        self.body.extend_from_slice(body);
        self.is_finished = true;
    }

    fn start(&mut self, answer: &ResponseHead<'_>) {
        self.head(answer);
    }

    fn data(&mut self, bytes: &[u8]) {
        assert!(self.is_started && !self.is_finished && !bytes.is_empty());
        self.body.extend_from_slice(bytes);
    }

    fn finish_with(&mut self, trailers: &Fields) {
        assert!(self.is_started && !self.is_finished, "a second end");
        self.trailers = owned(trailers);
        self.is_finished = true;
    }

    fn has_room(&self) -> bool {
        self.room
    }
}

/// The results of the workers, until a test takes them.
#[derive(Default)]
pub struct Replies(Mutex<Vec<Completion>>);

impl Replies {
    pub fn take(&self) -> Vec<Completion> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

impl Reply for Replies {
    fn reply(&self, _: JobKey, completion: Completion) {
        self.0.lock().unwrap().push(completion);
    }
}

/// A service with everything around it.
pub struct Bench {
    pub service: Service,
    pub engine: Arc<Scripted>,
    pub metrics: Metrics,
    pub responses: Arc<Responses>,
    pub workers: Arc<Workers>,
    pub replies: Arc<Replies>,
    pub store: Arc<Requests>,
    /// The test runs the workers' tasks itself.
    pub are_workers_slow: bool,
    pub peer: Peer,
    pub now: Moment,
    requests: AtomicU32,
}

/// The bench's keys are built from these bytes.
pub const FULL: u8 = 1;
pub const NO_SCOPES: u8 = 2;
pub const EXPIRED: u8 = 3;
pub const REVOKED: u8 = 4;
pub const UNKNOWN: u8 = 5;
/// One request at once, and per minute ten tokens more than a short prompt of one token may cost.
pub const NARROW: u8 = 6;

/// The wall clock of the bench, in seconds since 1970.
const WALL_CLOCK: u64 = 1_000_000;

pub fn key(byte: u8) -> String {
    Secret::from_bytes(&[byte; 32]).reveal().to_owned()
}

pub fn record(byte: u8) -> KeyRecord {
    KeyRecord {
        id: format!("key_{byte}"),
        name: String::new(),
        hash: Secret::from_bytes(&[byte; 32]).hash(),
        scopes: Scopes::ALL,
        created_at: 0,
        expires_at: None,
        requests_per_minute: None,
        tokens_per_minute: None,
        concurrency: None,
        weight: 1,
        revoked: false,
    }
}

fn ring() -> KeyRing {
    let no_scopes = KeyRecord {
        scopes: Scopes::NONE,
        ..record(NO_SCOPES)
    };
    let expired = KeyRecord {
        expires_at: Some(WALL_CLOCK),
        ..record(EXPIRED)
    };
    let revoked = KeyRecord {
        revoked: true,
        ..record(REVOKED)
    };
    let narrow = KeyRecord {
        requests_per_minute: Some(4),
        tokens_per_minute: Some(100),
        concurrency: Some(1),
        weight: 3,
        ..record(NARROW)
    };
    KeyRing::new(vec![record(FULL), no_scopes, expired, revoked, narrow])
}

impl Bench {
    pub fn new() -> Bench {
        Bench::with(|_| ())
    }

    pub fn with(change: impl FnOnce(&mut Config)) -> Bench {
        let mut config = config();
        change(&mut config);
        let config = Arc::new(config);
        let responses = Arc::new(Responses::new([7; 32], &config.cache));
        let engine = Arc::new(Scripted {
            jobs: Mutex::default(),
            cancelled: Mutex::default(),
            credited: Mutex::default(),
            overdue: Mutex::default(),
            refusal: Mutex::default(),
            state: Mutex::new(State::Ready),
        });
        let store = Arc::<Requests>::default();
        let metrics = Metrics::new("test");
        let (workers, replies) = (Arc::new(Workers::default()), Arc::new(Replies::default()));
        let parts = Parts {
            config: config.clone(),
            keys: Arc::new(ring()),
            engine: engine.clone(),
            limiter: Arc::new(Limiter::default()),
            buffered: Account::new(usize::MAX),
            metrics: metrics.clone(),
            responses: responses.clone(),
            purger: Arc::new(Purger::new(
                responses.clone(),
                engine.clone(),
                workers.clone(),
            )),
            jobs: Default::default(),
            requests: store.clone(),
            workers: workers.clone(),
            replies: replies.clone(),
            wall_clock: || UnixMillis::new(WALL_CLOCK * 1_000),
            seed: 0,
        };
        let address = PeerAddress::Ip(IpAddr::from([192, 0, 2, 1]));
        Bench {
            service: Service::new(parts),
            engine,
            metrics,
            responses,
            workers,
            replies,
            store,
            are_workers_slow: false,
            peer: Peer::new(address),
            now: Moment::from_micros(5_000_000),
            requests: AtomicU32::new(0),
        }
    }

    pub fn advance(&mut self, milliseconds: u64) {
        self.now = self.now + Duration::from_millis(milliseconds);
    }

    /// Sends a whole request as the reactor would: admit, then handle or refuse.
    pub fn send(&mut self, sent: &Sent<'_>) -> (Recording, Option<Box<Exchange>>) {
        let mut reply = Recording::new();
        let exchange = self.send_to(sent, &mut reply);
        assert_eq!(reply.is_finished, exchange.is_none());
        (reply, exchange)
    }

    /// Sends a generation whose body is not text.
    pub fn start_with_body(&mut self, sent: &Sent<'_>, body: &[u8]) -> Option<Box<Exchange>> {
        self.send_body_to(sent, body, &mut Recording::new())
    }

    /// Sends a body that must be refused.
    pub fn refused_body(&mut self, sent: &Sent<'_>, body: &[u8]) -> Recording {
        let mut reply = Recording::new();
        assert!(self.send_body_to(sent, body, &mut reply).is_none());
        reply
    }

    fn send_to(&mut self, sent: &Sent<'_>, reply: &mut Recording) -> Option<Box<Exchange>> {
        self.send_body_to(sent, sent.body.as_bytes(), reply)
    }

    fn send_body_to(
        &mut self,
        sent: &Sent<'_>,
        body: &[u8],
        reply: &mut Recording,
    ) -> Option<Box<Exchange>> {
        let headers: Vec<_> = sent
            .headers
            .iter()
            .map(|(name, value)| httparse::Header {
                name,
                value: value.as_bytes(),
            })
            .collect();
        // Tests also ask for targets that no protocol lets through.
        let target = target::split(sent.method.as_str(), sent.target).unwrap_or(Target {
            authority: None,
            path: sent.target,
            query: None,
        });
        let request = Request {
            method: sent.method,
            authority: target.authority,
            path: target.path,
            query: target.query,
            version: Version::Http11,
            headers: &headers,
        };
        let job_key = JobKey {
            reactor: 0,
            connection: Key::new(0, 0),
            request: self.requests.fetch_add(1, Ordering::Relaxed),
        };
        match self.service.admit(&request, &self.peer, self.now) {
            Ok(admitted) => {
                assert!(
                    body.len() <= admitted.body_limit,
                    "the reactor would refuse"
                );
                let service = &mut self.service;
                let exchange =
                    service.handle(admitted, &request, body.into(), job_key, self.now, reply);
                self.run_workers(exchange, reply)
            }
            Err(refusal) => {
                self.service.refuse(refusal, self.now, reply);
                None
            }
        }
    }

    /// Runs the workers' tasks, as their threads would, and hands in the results for this exchange.
    pub fn run_workers(
        &mut self,
        exchange: Option<Box<Exchange>>,
        reply: &mut Recording,
    ) -> Option<Box<Exchange>> {
        let mut exchange = exchange?;
        if self.are_workers_slow {
            return Some(exchange);
        }
        while self.workers.run_one() {}
        for completion in self.replies.take() {
            let service = &mut self.service;
            if service.handle_event(&mut exchange, completion, self.now, reply) == Flow::Finished {
                return None;
            }
        }
        Some(exchange)
    }

    /// Sends a request that is served at once.
    pub fn ask(&mut self, sent: &Sent<'_>) -> Recording {
        let (reply, exchange) = self.send(sent);
        assert!(exchange.is_none());
        reply
    }

    /// Sends a generation that must become a job.
    pub fn start(&mut self, sent: &Sent<'_>) -> (Recording, Box<Exchange>) {
        let (reply, exchange) = self.send(sent);
        let exchange = exchange.unwrap_or_else(|| panic!("no job: {}", reply.text()));
        (reply, exchange)
    }

    /// Hands in an event. Workers write the response to it if it is long.
    pub fn event(&mut self, exchange: &mut Exchange, event: Event, reply: &mut Recording) -> Flow {
        let flow = self.complete(exchange, Completion::Event(event), reply);
        if flow == Flow::Finished || self.are_workers_slow {
            return flow;
        }
        while self.workers.run_one() {}
        let written = self.replies.take().pop();
        written.map_or(flow, |written| self.complete(exchange, written, reply))
    }

    pub fn complete(
        &mut self,
        exchange: &mut Exchange,
        completion: Completion,
        reply: &mut Recording,
    ) -> Flow {
        self.service
            .handle_event(exchange, completion, self.now, reply)
    }

    pub fn job(&self) -> Job {
        self.engine
            .jobs
            .lock()
            .unwrap()
            .last()
            .expect("a job")
            .clone()
    }

    /// Advances the clock to the exchange's deadline, which it handles.
    pub fn pass_deadline(&mut self, exchange: &mut Exchange, reply: &mut Recording) -> Flow {
        self.now = exchange.next_deadline();
        self.service.handle_deadline(exchange, self.now, reply)
    }

    /// Returns a line of the metrics.
    pub fn metric(&self, name: &str) -> Option<String> {
        let mut text = String::new();
        self.metrics.encode(&mut text);
        let value = |line: &str| Some(line.strip_prefix(name)?.strip_prefix(' ')?.to_owned());
        text.lines().find_map(value)
    }
}

/// A request of the tests.
#[derive(Clone, Debug)]
pub struct Sent<'a> {
    pub method: Method,
    pub target: &'a str,
    pub headers: Vec<(&'a str, String)>,
    pub body: &'a str,
}

impl<'a> Sent<'a> {
    pub fn get(target: &'a str) -> Sent<'a> {
        Sent {
            method: Method::Get,
            target,
            headers: Vec::new(),
            body: "",
        }
    }

    /// Returns a generation with the full key.
    pub fn generate(body: &'a str) -> Sent<'a> {
        Sent {
            method: Method::Post,
            body,
            ..Sent::get("/api/v1/generate")
        }
        .key(FULL)
    }

    pub fn method(mut self, method: Method) -> Sent<'a> {
        self.method = method;
        self
    }

    pub fn header(mut self, name: &'a str, value: &str) -> Sent<'a> {
        self.headers.retain(|(known, _)| *known != name);
        self.headers.push((name, value.to_owned()));
        self
    }

    pub fn key(self, byte: u8) -> Sent<'a> {
        let value = format!("Bearer {}", key(byte));
        self.header("authorization", &value)
    }
}

pub fn token(text: &str) -> Event {
    Event::Token { text: text.into() }
}

pub const USAGE: Usage = Usage {
    prompt_tokens: 9,
    cached_tokens: 4,
    completion_tokens: 3,
};

pub const TIMINGS: Timings = Timings {
    queue: Duration::from_millis(1),
    prefill: Duration::from_millis(20),
    decode: Duration::from_millis(300),
};

pub fn done(text: &str) -> Event {
    Event::Done(Box::new(Done {
        text: text.into(),
        finish_reason: FinishReason::Stop,
        usage: USAGE,
        timings: TIMINGS,
        served: Served::default(),
    }))
}
