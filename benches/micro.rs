//! The pure mechanisms on the hot path, each alone: nanoseconds that a request pays for them.
//!
//!     cargo bench --bench micro

use std::hint::black_box;
use std::io::IoSlice;
use std::time::Duration;

use autoglmd::core::output::OutputQueue;
use autoglmd::core::pool::BufferPool;
use autoglmd::core::wheel::Wheel;
use autoglmd::core::{Key, Moment};
use autoglmd::http::http1::{Bounds, Progress, Reception, Storage, chunked};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};

/// What Python's `requests` sends.
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

criterion_group!(benches, head, chunked_body, wheel, output);
criterion_main!(benches);
