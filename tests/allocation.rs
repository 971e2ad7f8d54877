//! Allocations per request, counted by the allocator itself on the reactor's thread.
//!
//! A reactor that keeps its buffers allocates nothing for a request that it can serve from memory,
//! and for a generation only the values that outlive the call. The tests assert both numbers
//! exactly, so one more allocation per request fails here. Avoid it, or add a row below and a
//! comment with the reason at the place of the allocation.
//!
//! Mutations that these tests catch: `set_keys` that clones the ring instead of its pointer
//! (`new_keys_cost_a_reactor_no_allocation_and_nothing_to_free`), `BufferPool::give` that drops its buffer
//! (`a_route_that_is_answered_from_memory_allocates_nothing`), `Hosts::are_named_by` that compares a
//! name in lower case (`a_generation_allocates_the_named_exceptions_and_nothing_else`).

use std::alloc::{GlobalAlloc, Layout, System};
use std::backtrace::Backtrace;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use autoglmd::config::{Config, Opening};
use autoglmd::core::UnixMillis;
use autoglmd::core::buffered::Account;
use autoglmd::core::places::Places;
use autoglmd::engine::echo::Echo;
use autoglmd::keys::{ChangedKey, KeyRecord, KeyRing, Scopes, Secret};
use autoglmd::offload::mailbox::{Sender, mailbox};
use autoglmd::offload::resolver::Resolver;
use autoglmd::os::names::look_up;
use autoglmd::reactor::epoll::Epoll;
use autoglmd::reactor::event_loop::{Neighbour, Parts, Pulse, Reactor};
use autoglmd::reactor::message::{Mailboxes, Message};
use autoglmd::reactor::outbound;
use autoglmd::service::{self, Limiter, Purger, Responses, Service};
use autoglmd::telemetry::LogFormat;
use autoglmd::telemetry::log::{Settings, init};
use autoglmd::telemetry::metrics::Metrics;
use autoglmd::tls::Connector;
use socket2::Socket;

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

/// Bytes that the reactor's thread freed.
static FREED_BYTES: AtomicU64 = AtomicU64::new(0);

/// Where the allocations of a few requests were made, by function.
static PLACES: Mutex<BTreeMap<String, u64>> = Mutex::new(BTreeMap::new());

#[derive(Clone, Copy, PartialEq)]
enum Watch {
    Off,
    Count,
    /// Finds the place of each allocation. Slow.
    Name,
}

/// The test's order to the reactor's thread: 0, 1 or 2, as [`Watch`].
static WATCH: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// Whether this thread is watched, and not busy with naming an allocation.
    static IS_WATCHED: Cell<bool> = const { Cell::new(false) };
}

fn note() {
    if !IS_WATCHED.try_with(Cell::get).unwrap_or(false) {
        return;
    }
    match WATCH.load(Ordering::SeqCst) {
        1 => _ = ALLOCATIONS.fetch_add(1, Ordering::SeqCst),
        2 => {
            IS_WATCHED.set(false);
            let trace = Backtrace::force_capture().to_string();
            let names = trace
                .lines()
                .filter_map(|line| line.trim().split_once(": "));
            // Behind the allocator's own frames: the function that needed the memory, and its
            // callers.
            let callers = names
                .skip_while(|(_, name)| !name.contains("__rust_"))
                .skip(1);
            let name: Vec<&str> = callers.map(|(_, name)| name).take(14).collect();
            let name = name.join(" < ");
            let mut places = PLACES.lock().unwrap_or_else(PoisonError::into_inner);
            *places.entry(name).or_default() += 1;
            drop(places);
            IS_WATCHED.set(true);
        }
        _ => {}
    }
}

fn note_free(bytes: usize) {
    let is_watched = IS_WATCHED.try_with(Cell::get).unwrap_or(false);
    if is_watched && WATCH.load(Ordering::SeqCst) == Watch::Count as u64 {
        FREED_BYTES.fetch_add(bytes as u64, Ordering::SeqCst);
    }
}

// SAFETY: every call is the system allocator's; the code around it allocates only while its thread
// is not watched, so it never calls itself without end.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note();
        // SAFETY: as the caller of this function promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note();
        // SAFETY: as the caller of this function promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note();
        // SAFETY: as the caller of this function promises.
        unsafe { System.realloc(block, layout, size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        note_free(layout.size());
        // SAFETY: as the caller of this function promises.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// One reactor with the echo engine, on a port that the kernel chose.
struct Daemon {
    address: SocketAddr,
    sender: Sender<Message<Socket>>,
    thread: Option<JoinHandle<()>>,
}

impl Daemon {
    fn start() -> Daemon {
        Daemon::start_with(|_| {})
    }

    fn start_with(configure: impl FnOnce(&mut Config)) -> Daemon {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
        listener.set_nonblocking(true).expect("a socket");
        let address = listener.local_addr().expect("it is bound");
        let epoll = Epoll::new(vec![Arc::new(Socket::from(listener))]).expect("epoll");
        let (sender, receiver) = mailbox(epoll.doorbell().expect("an eventfd"), 64);
        let pulse = Arc::new(Pulse::default());
        let mailboxes = Arc::new(Mailboxes(vec![sender.clone()]));
        let engine = Echo::new(mailboxes.clone());
        let mut config = Config::default();
        config.auth.enabled = false;
        config.rate_limit.enabled = false;
        config.log.access = false;
        configure(&mut config);
        let (config, metrics) = (Arc::new(config), Metrics::new("echo"));
        let responses = Arc::new(Responses::new([7; 32], &config.cache));
        let purger = Purger::new(responses.clone(), engine.clone(), Arc::default());
        let service = service::Parts {
            config: config.clone(),
            keys: Arc::new(KeyRing::new(Vec::new())),
            purger: Arc::new(purger),
            engine,
            limiter: Arc::new(Limiter::default()),
            buffered: Account::new(usize::MAX),
            metrics: metrics.clone(),
            requests: Arc::default(),
            responses,
            jobs: Default::default(),
            workers: Arc::default(),
            replies: mailboxes,
            wall_clock: UnixMillis::default,
            seed: 0,
        };
        let neighbour = Neighbour {
            mailbox: sender.clone(),
            pulse: pulse.clone(),
        };
        let resolver = Resolver::new(look_up, metrics.series());
        let parts = Parts {
            index: 0,
            system: epoll,
            service: Service::new(service),
            config,
            tls: None,
            openings: vec![Opening::PLAIN],
            metrics,
            mailbox: receiver,
            own_mailbox: sender.clone(),
            pulse,
            neighbours: vec![neighbour],
            places: Arc::new(Places::new(16)),
            outbound: outbound::Parts {
                resolver,
                connector: Arc::new(Connector::load(None, None).expect("authorities")),
                sockets_most: 8,
            },
            heartbeat: None,
        };
        let thread = thread::spawn(move || {
            let mut reactor = Reactor::new(parts);
            IS_WATCHED.set(true);
            reactor.run().expect("epoll works");
            IS_WATCHED.set(false);
        });
        Daemon {
            address,
            sender,
            thread: Some(thread),
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.sender.post(Message::Stop);
        let ended = self.thread.take().expect("it is joined once").join();
        assert!(ended.is_ok() || thread::panicking(), "the reactor panicked");
    }
}

/// A client that keeps its connection.
struct Client(TcpStream);

impl Client {
    fn connect(daemon: &Daemon) -> Client {
        let stream = TcpStream::connect(daemon.address).expect("the reactor listens");
        let patience = Some(Duration::from_secs(60));
        stream.set_read_timeout(patience).expect("a socket");
        Client(stream)
    }

    /// Sends a request this many times, and reads each response to its end.
    fn ask(&mut self, request: &str, times: u64) {
        let mut buffer = [0; 16 * 1024];
        for _ in 0..times {
            self.0.write_all(request.as_bytes()).expect("it is taken");
            let mut length = 0;
            loop {
                let count = self.0.read(&mut buffer[length..]).expect("a response");
                assert!(count > 0, "the connection was closed");
                length += count;
                let text = std::str::from_utf8(&buffer[..length]).expect("UTF-8");
                let Some((head, body)) = text.split_once("\r\n\r\n") else {
                    continue;
                };
                assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
                let fields = head.lines().filter_map(|line| line.split_once(": "));
                let mut lengths = fields.filter(|(name, _)| name == &"content-length");
                let (_, expected) = lengths.next().expect("a length");
                if body.len() == expected.parse::<usize>().expect("a number") {
                    break;
                }
            }
        }
    }

    fn watch<T>(&mut self, watch: Watch, call: impl FnOnce(&mut Client) -> T) -> T {
        WATCH.store(watch as u64, Ordering::SeqCst);
        let result = call(self);
        WATCH.store(Watch::Off as u64, Ordering::SeqCst);
        result
    }
}

/// Requests before the first counted one: afterwards buffers have their size and tables their rows.
const WARM_UP: u64 = 200;

const COUNTED: u64 = 500;

const NAMED: u64 = 10;

/// The allocator counts for the whole process.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Returns the allocations that `COUNTED` requests make, and the functions that make those of one.
fn measure(request: &str) -> (u64, BTreeMap<String, u64>) {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let daemon = Daemon::start();
    let mut client = Client::connect(&daemon);
    client.ask(request, WARM_UP);
    ALLOCATIONS.store(0, Ordering::SeqCst);
    client.watch(Watch::Count, |client| client.ask(request, COUNTED));
    let count = ALLOCATIONS.load(Ordering::SeqCst);
    PLACES
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clear();
    client.watch(Watch::Name, |client| client.ask(request, NAMED));
    let places = PLACES.lock().unwrap_or_else(PoisonError::into_inner);
    let each = places
        .iter()
        .map(|(name, count)| (name.clone(), count.div_ceil(NAMED)));
    (count, each.collect())
}

#[test]
fn a_route_that_is_answered_from_memory_allocates_nothing() {
    let (count, places) = measure("GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n");
    assert_eq!(count, 0, "{places:#?}");
}

/// The log's thread gives its buffers back between the rounds, so that its own speed does not
/// matter: a queue that it cannot empty grows. They go on until a second has ended, because lines
/// share the date of theirs.
///
/// Mutations: a buffer that is made for each line, or a date for each second; buffers of the queue
/// that begin without room.
#[test]
fn an_access_line_allocates_nothing() {
    const ROUND: u64 = 100;
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("log");
    let settings = Settings {
        level: log::LevelFilter::Info,
        format: LogFormat::Json,
        file: Some(file.clone()),
        access: true,
    };
    let handle = init(&settings).expect("no other test installs a logger");
    let daemon = Daemon::start_with(|config| config.log.access = true);
    let mut client = Client::connect(&daemon);
    let request = "GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n";
    client.ask(request, WARM_UP);
    // Each try takes up to two seconds: the log's thread gives way to all others.
    let write_all = || assert!((0..30).any(|_| handle.shutdown()), "lines are not written");
    write_all();
    ALLOCATIONS.store(0, Ordering::SeqCst);
    let (begun, mut counted) = (second(), 0);
    while counted < COUNTED || second() == begun {
        client.watch(Watch::Count, |client| client.ask(request, ROUND));
        counted += ROUND;
        write_all();
    }
    assert_eq!(ALLOCATIONS.load(Ordering::SeqCst), 0);
    let text = std::fs::read_to_string(&file).expect("the log");
    let lines = text.matches("\"target\":\"access\"").count() as u64;
    assert_eq!(lines, WARM_UP + counted, "one line for each request");
    handle.set_access(false);
}

/// Returns the second of the time of day.
fn second() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
    since_1970.expect("a time after 1970").as_secs()
}

fn key(number: u32) -> KeyRecord {
    let mut bytes = [0; 32];
    bytes[..4].copy_from_slice(&number.to_le_bytes());
    KeyRecord {
        id: format!("key_{number:012x}"),
        name: format!("client {number}"),
        hash: Secret::from_bytes(&bytes).hash(),
        scopes: Scopes::GENERATE,
        created_at: 0,
        expires_at: None,
        requests_per_minute: None,
        tokens_per_minute: None,
        concurrency: None,
        weight: 1,
        revoked: false,
    }
}

/// The thread that has read the keys holds the old ring, so the reactor drops no more than a count.
/// Where that thread does not, which is the last part of this test, the reactor frees the ring.
#[test]
fn new_keys_cost_a_reactor_no_allocation_and_nothing_to_free() {
    const KEYS: u32 = 20_000;
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let daemon = Daemon::start();
    let mut client = Client::connect(&daemon);
    let request = "GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n";
    client.ask(request, WARM_UP);
    let first = Arc::new(KeyRing::new((0..KEYS).map(key).collect()));
    daemon.sender.post(Message::Keys(Arc::clone(&first)));
    client.ask(request, WARM_UP);
    let revoked = KeyRecord {
        revoked: true,
        ..key(7)
    };
    let change = ChangedKey {
        id: revoked.id.clone(),
        records: vec![revoked],
    };
    let second = Arc::new(first.changed([change]).expect("a key is revoked"));
    let mut swap = |next: &Arc<KeyRing>, old: std::sync::Weak<KeyRing>, left: usize| {
        ALLOCATIONS.store(0, Ordering::SeqCst);
        FREED_BYTES.store(0, Ordering::SeqCst);
        client.watch(Watch::Count, |client| {
            daemon.sender.post(Message::Keys(Arc::clone(next)));
            // Until the reactor has read its mailbox, which may be after the next request.
            while old.strong_count() > left {
                client.ask(request, 1);
            }
            client.ask(request, 1);
        });
        let allocations = ALLOCATIONS.load(Ordering::SeqCst);
        (allocations, FREED_BYTES.load(Ordering::SeqCst))
    };
    assert_eq!(swap(&second, Arc::downgrade(&first), 1), (0, 0));
    let other = Arc::new(KeyRing::new(Vec::new()));
    let old = Arc::downgrade(&second);
    drop((first, second));
    let (allocations, freed) = swap(&other, old, 0);
    assert_eq!(allocations, 0);
    assert!(freed > 100 * u64::from(KEYS), "the test is wrong: {freed}");
}

/// The allocations that a generation may make on the reactor's thread, where the echo engine runs
/// too: the file that has the reason in a comment, and their number.
const EXCEPTIONS: &[(&str, u64)] = &[
    ("src/service/api/native/body.rs", 1),
    ("src/service/api/native/dialect.rs", 1),
    ("src/service/api/native/request.rs", 1),
    ("src/service/generation/recording.rs", 1),
    ("src/service/generation/reading.rs", 1),
    ("src/service/mod.rs", 1),
    ("src/engine/echo.rs", 2),
];

#[test]
fn a_generation_allocates_the_named_exceptions_and_nothing_else() {
    for (file, count) in EXCEPTIONS {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
        let text = std::fs::read_to_string(path).expect("the file of an exception");
        let reason = match count {
            1 => "// Allocates per request: ",
            _ => "// Allocates per request, twice: ",
        };
        assert_eq!(text.matches(reason).count(), 1, "{file}");
    }
    let body = r#"{"prompt":"sort a list","language":"python","cache":"bypass"}"#;
    let (count, places) = measure(&generation(body));
    let excepted = EXCEPTIONS.iter().map(|(_, count)| count).sum::<u64>();
    assert_eq!(count, COUNTED * excepted, "{places:#?}");
}

/// Mutation: a hit that copies the stored body into a vector of its own.
#[test]
fn a_generation_that_is_in_the_cache_allocates_nothing() {
    let (count, places) = measure(&generation(
        r#"{"prompt":"sort a list","language":"python"}"#,
    ));
    assert_eq!(count, 0, "{places:#?}");
}

fn generation(body: &str) -> String {
    format!(
        "POST /api/v1/generate HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
}
