//! The pure mechanisms on the hot path, each alone: nanoseconds that they cost per request.
//!
//!     cargo bench --bench micro
//!
//! `cargo bench --bench micro forms` compares JSON, Protobuf and gRPC.

use std::hint::black_box;
use std::io::IoSlice;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use autoglmd::cache::lru::Item;
use autoglmd::cache::shards::Shards;
use autoglmd::config::Config;
use autoglmd::core::buffered::Account;
use autoglmd::core::output::OutputQueue;
use autoglmd::core::pool::BufferPool;
use autoglmd::core::wheel::Wheel;
use autoglmd::core::{Key, Moment, UnixMillis};
use autoglmd::engine::{
    Done, Engine, Event, FinishReason, Gauges, Job, ModelInfo, Refused, Served, State, Timings,
    Usage,
};
use autoglmd::grpc::messages::{Message as _, autoglm};
use autoglmd::grpc::{Encoding, frame};
use autoglmd::http::http1::{Bounds, Progress, Reception, Storage, chunked};
use autoglmd::http::{Fields, Method, Request, ResponseHead, ResponseSink, Version};
use autoglmd::keys::KeyRing;
use autoglmd::offload::{JobKey, Workers};
use autoglmd::service::{
    Completion, Flow, Limiter, Parts, Peer, PeerAddress, Purger, Reply, Responses, Service,
};
use autoglmd::telemetry::metrics::Metrics;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};

/// The request that Python's `requests` sends.
const REQUEST: &[u8] = b"POST /api/v1/generate HTTP/1.1\r\n\
    Host: localhost:8080\r\n\
    User-Agent: python-requests/2.32.3\r\n\
    Accept-Encoding: gzip, deflate\r\n\
    Accept: */*\r\n\
    Connection: keep-alive\r\n\
    Authorization: Bearer aglm_0123456789abcdef0123456789abcdef\r\n\
    Content-Length: 2\r\n\
    Content-Type: application/json\r\n\r\n{}";

fn head(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("head");
    group.throughput(Throughput::Bytes(REQUEST.len() as u64));
    let bounds = Bounds::default();
    let mut input = REQUEST.to_vec();
    group.bench_function("found and parsed", |bencher| {
        bencher.iter(|| {
            let mut reception = Reception::new();
            let progress = reception.poll(black_box(&mut input), &bounds);
            let Ok(Progress::Head(span)) = progress else {
                panic!("the head is whole")
            };
            let mut storage = Storage::new();
            let head = span.parse(&input, &mut storage).expect("the head is good");
            black_box(head.len)
        });
    });
    group.finish();
}

fn chunked_body(criterion: &mut Criterion) {
    let mut wire = Vec::new();
    for _ in 0..64 {
        wire.extend_from_slice(b"100\r\n");
        wire.extend_from_slice(&[b'a'; 256]);
        wire.extend_from_slice(b"\r\n");
    }
    wire.extend_from_slice(b"0\r\n\r\n");
    let mut group = criterion.benchmark_group("chunked");
    group.throughput(Throughput::Bytes(wire.len() as u64));
    group.bench_function("64 chunks of 256 bytes", |bencher| {
        bencher.iter_batched_ref(
            || wire.clone(),
            |bytes| {
                chunked::Decoder::new(1 << 20)
                    .decode(bytes, 0, 0)
                    .expect("a good body")
            },
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

/// The lazy wheel: a connection re-queues its entry when the old deadline comes, not at each read.
fn wheel(criterion: &mut Criterion) {
    const CONNECTIONS: u32 = 10_000;
    let second = Duration::from_secs(1);
    let mut expired = Vec::new();
    criterion.bench_function("wheel/10,000 deadlines set and expired", |bencher| {
        let mut now = Moment::from_micros(1);
        let mut wheel = Wheel::new(now);
        bencher.iter(|| {
            for index in 0..CONNECTIONS {
                let spread = Duration::from_millis(u64::from(index) / 10);
                wheel.schedule(Key::new(index, 1), now + spread);
            }
            now = now + second + second;
            expired.clear();
            while wheel.expire(now, &mut expired, 1_024) {}
            assert_eq!(expired.len(), CONNECTIONS as usize);
        });
    });
}

fn output(criterion: &mut Criterion) {
    let mut pool = BufferPool::new(4_096, 1 << 20);
    let mut queue = OutputQueue::new();
    criterion.bench_function("output/an answer queued and written", |bencher| {
        bencher.iter(|| {
            queue.tail(&mut pool).extend_from_slice(black_box(REQUEST));
            let mut slices = [IoSlice::new(&[]); 8];
            let filled = queue.io_slices(&mut slices);
            let count = slices[..filled].iter().map(|slice| slice.len()).sum();
            queue.advance(count, &mut pool);
        });
    });
}

/// The same generation in each form, through the whole service: from a head and a body to the bytes
/// of a response. The engine's work is left out.
fn forms(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("forms");
    for form in ["json", "protobuf", "grpc"] {
        let body = form_body(form);
        let mut service = form_service();
        let mut now = Moment::from_micros(1);
        let answer = exchange(&mut service, form, &body, now);
        println!(
            "forms/{form}: {} bytes asked, {answer} answered",
            body.len()
        );
        group.bench_function(form, |bencher| {
            bencher.iter(|| {
                now = now + Duration::from_micros(10);
                black_box(exchange(&mut service, form, black_box(&body), now))
            });
        });
    }
    group.finish();
}

const PROMPT: &str = "实现快速排序算法, and explain its worst case in a comment";

const PROGRAM: &str = "def quicksort(items):\n    \"\"\"Sorted; quadratic in the worst case.\"\"\"\n    \
    if len(items) < 2:\n        return items\n    pivot, *rest = items\n    \
    low = [item for item in rest if item < pivot]\n    \
    high = [item for item in rest if item >= pivot]\n    \
    return quicksort(low) + [pivot] + quicksort(high)\n\n\n";

fn form_body(form: &str) -> Vec<u8> {
    let request = autoglm::GenerateRequest {
        prompt: PROMPT.into(),
        temperature: 0.5,
        language: "python".into(),
        timeout_ms: 10_000,
        ..Default::default()
    };
    match form {
        "json" => format!(
            "{{\"prompt\": \"{PROMPT}\", \"temperature\": 0.5, \"language\": \"python\", \
             \"timeout\": 10000}}"
        )
        .into_bytes(),
        "protobuf" => request.encode_to_vec(),
        _ => {
            let mut body = Vec::new();
            frame::append(&mut body, &request, Encoding::Identity);
            body
        }
    }
}

/// The bodies here are too short for workers.
struct NoReplies;

impl Reply for NoReplies {
    fn reply(&self, _: JobKey, _: Completion) {}
}

/// Without keys and rates, which cost the same in every form.
fn form_service() -> Service {
    let mut config = Config::default();
    config.auth.enabled = false;
    config.rate_limit.enabled = false;
    config.log.access = false;
    config.cache.enabled = false;
    let (responses, workers) = (
        Arc::new(Responses::new([7; 32], &config.cache)),
        Arc::<Workers>::default(),
    );
    let engine = Arc::new(NoEngine);
    Service::new(Parts {
        config: Arc::new(config.clone()),
        keys: Arc::new(KeyRing::new(Vec::new())),
        purger: Arc::new(Purger::new(
            responses.clone(),
            engine.clone(),
            workers.clone(),
        )),
        engine,
        limiter: Arc::new(Limiter::default()),
        buffered: Account::new(usize::MAX),
        metrics: Metrics::new("bench"),
        requests: Arc::default(),
        responses,
        jobs: Default::default(),
        workers,
        replies: Arc::new(NoReplies),
        wall_clock: UnixMillis::default,
        seed: 0,
    })
}

/// Serves one request and returns the number of bytes of its response.
fn exchange(service: &mut Service, form: &str, body: &[u8], now: Moment) -> usize {
    let (path, content_type) = match form {
        "json" => ("/api/v1/generate", "application/json"),
        "protobuf" => ("/api/v1/generate", "application/x-protobuf"),
        _ => ("/AutoGLMService/Generate", "application/grpc"),
    };
    let header = |name, value: &'static str| httparse::Header {
        name,
        value: value.as_bytes(),
    };
    let headers = [
        header("user-agent", "bench"),
        header("accept", "*/*"),
        header("content-type", content_type),
    ];
    let request = Request {
        method: Method::Post,
        authority: None,
        path,
        query: None,
        version: Version::Http2,
        headers: &headers,
    };
    let peer = Peer::new(PeerAddress::Ip(IpAddr::from([192, 0, 2, 1])));
    let key = JobKey {
        reactor: 0,
        connection: Key::new(0, 0),
        request: 0,
    };
    let mut reply = Counted(0);
    let admitted = service.admit(&request, &peer, now).expect("a good head");
    let exchange = service.handle(admitted, &request, body.into(), key, now, &mut reply);
    let done = Done {
        text: format!("```python\n{}```", PROGRAM.repeat(3)),
        finish_reason: FinishReason::Stop,
        usage: Usage {
            prompt_tokens: 60,
            cached_tokens: 20,
            completion_tokens: 300,
        },
        timings: Timings::default(),
        served: Served::default(),
    };
    let mut exchange = exchange.expect("a good body");
    let event = Event::Done(Box::new(done));
    let completion = Completion::Event(event);
    let flow = service.handle_event(&mut exchange, completion, now, &mut reply);
    assert_eq!(flow, Flow::Finished);
    reply.0
}

struct Counted(usize);

impl ResponseSink for Counted {
    fn respond(&mut self, _: &ResponseHead<'_>, body: &[u8]) {
        self.0 += body.len();
    }

    fn start(&mut self, _: &ResponseHead<'_>) {}

    fn data(&mut self, bytes: &[u8]) {
        self.0 += bytes.len();
    }

    fn finish_with(&mut self, _: &Fields) {}

    fn has_room(&self) -> bool {
        true
    }
}

struct NoEngine;

impl Engine for NoEngine {
    fn submit(&self, _: Job) -> Result<(), Refused> {
        Ok(())
    }

    fn state(&self) -> State {
        State::Ready
    }

    fn model(&self) -> Option<ModelInfo> {
        None
    }

    fn gauges(&self) -> Gauges {
        Gauges::default()
    }

    fn drain(&self) {}
}

/// Look-ups and replacements in the cache, which must cost the same for a million entries.
fn cache(criterion: &mut Criterion) {
    const ENTRY_BYTES: usize = 1_024;
    let mut group = criterion.benchmark_group("cache");
    for entries in [1_000u64, 1_000_000] {
        let shards: Shards<[u64; 4], Arc<()>> = Shards::new(entries as usize * ENTRY_BYTES);
        let mut removed = Vec::new();
        let mut store = |number: u64| {
            let key = [number; 4];
            let item = Item {
                tenant: number % 8,
                value: Arc::new(()),
                bytes: ENTRY_BYTES,
                expires: Moment::NEVER,
            };
            let mut shard = shards.of(&key);
            shard
                .insert(key, item, Moment::ZERO, &mut removed)
                .expect("it fits");
            drop(shard);
            removed.clear();
        };
        (0..2 * entries).for_each(&mut store);
        let mut number = 2 * entries;
        group.bench_function(format!("replace one of {entries} entries"), |bencher| {
            bencher.iter(|| {
                number += 1;
                store(number);
            });
        });
        let held: usize = shards.each().map(|shard| shard.len()).sum();
        let mut hits = 0u64;
        group.bench_function(format!("look up one of {entries} entries"), |bencher| {
            bencher.iter(|| {
                // An odd factor visits the recent half of the entries in no order.
                hits = hits.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let key = [number - hits % (held as u64 / 2); 4];
                black_box(shards.of(&key).get(&key, Moment::ZERO).cloned())
            });
        });
        for mut shard in shards.each() {
            let max_bytes = shard.max_bytes() / 2;
            shard.set_max_bytes(max_bytes, Moment::ZERO, &mut removed);
            shard.remove_tenant(0, &mut removed);
            assert!(!shard.is_empty() && shard.tenants() == 7);
            drop(shard.take_all());
        }
    }
    group.finish();
}

criterion_group!(benches, head, chunked_body, wheel, output, cache, forms);
criterion_main!(benches);
