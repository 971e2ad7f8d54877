//! A request of the daemon's own to another server, handed to a reactor.
//!
//! Any thread posts a [`Fetch`] through a [`Fetcher`]; a reactor connects, sends, receives, and
//! calls the fetch's sink on its own thread. Neither side waits for the other. Owns admission, and
//! the promise of one result; the work is in `reactor/outbound`. It knows nothing of what is
//! fetched: callbacks, metrics and upstream servers are all alike here.
//!
//! ```text
//!   any thread ── submit ──> [ the tenant's share? ] ──> mailbox of a reactor ──> outbound
//!                     │ Full                                                        │
//!                     v                                                             v
//!               the fetch comes back                             FetchSink::finish, exactly once
//! ```
//!
//! # Which reactor
//!
//! All fetches to one origin go to one reactor, chosen by the origin's hash: connections are kept
//! per reactor, and the next request should find one.
//!
//! # Bounds
//!
//! A fetch is admitted if its tenant has less than what is still free, in number and in bytes, as
//! in [`super::fair_queue`]: one tenant alone gets half, and there is always a place for a
//! newcomer. The place is given back with the result.
//!
//! # Invariants
//!
//!  1. Each submitted fetch that is not returned as `Full` has its sink called once: with the
//!     result; with [`FetchError::Ended`] if it is dropped on any way, such as by a reactor that
//!     has ended.
//!  2. The counts of the gate are the sums over the fetches that have no result yet.
//!
//! Mutations that tests catch: `Owed` without its drop, a `Place` without its drop
//! (`each_fetch_has_one_result_and_gives_its_place_back`), `admits` that looks at the total alone
//! (`one_tenant_leaves_places_for_others`).

use std::collections::HashMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use crate::core::UnixSeconds;
use crate::core::address_policy::AddressPolicy;
use crate::http::http1::response::BadResponse;
use crate::http::http1::response_reader::{ResponseBounds, WholeResponse};
use crate::http::origin::Origin;
use crate::http::{Fields, Method, retry_after};
use crate::limits::outbound as limits;

/// One request, and where its result goes.
pub struct Fetch {
    pub tenant: u64,
    pub origin: Origin,
    pub request: Request,
    pub timeouts: Timeouts,
    pub bounds: ResponseBounds,
    pub policy: AddressPolicy,
    pub sink: Box<dyn FetchSink>,
}

/// The request itself; the protocol adds `Host` and `Content-Length`.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: Method,
    /// Path and query, as from [`Origin::parse`].
    pub target: String,
    pub fields: Fields,
    pub body: Bytes,
    /// Whether it may be sent once more if a kept connection turns out to be closed after the
    /// server may have seen a part of it.
    pub is_idempotent: bool,
}

/// The times that a fetch may take, each from its own beginning.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// To resolve the name, connect, and finish TLS's handshake.
    pub connect: Duration,
    /// From there to the first byte of the response.
    pub first_byte: Duration,
    /// Everything, with the time in which the fetch waited for its turn.
    pub whole: Duration,
}

/// A response that was received whole, or as far as the fetch needs it: see [`ResponseBounds`].
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    /// The head as it came; see [`Response::field`].
    pub head_bytes: Vec<u8>,
    pub body: Vec<u8>,
}

/// The step of a fetch in which its time ran out, its own or the whole's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It waited for its turn.
    Wait,
    Resolve,
    /// TCP's handshake, or TLS's.
    Connect,
    FirstByte,
    /// The response had begun.
    Whole,
}

/// Why there is no response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FetchError {
    /// Every address of the host is one to which the daemon must not connect.
    Forbidden,
    /// The name has no address, or no name server knew it in time.
    Unresolved,
    /// No address accepted; the reason of the last one.
    Unreachable(io::ErrorKind),
    TimedOut(Stage),
    /// TLS's handshake failed, or its records were broken.
    Tls(String),
    Response(BadResponse),
    /// The connection broke before the response had ended.
    Broken,
    /// The memory for all buffers is used up.
    BuffersFull,
    /// Too many of them wait, or of their names.
    Busy,
    Cancelled,
    /// The daemon ends.
    Ended,
    /// The handling of its connection panicked.
    Bug,
}

/// Receives the result, on the reactor's thread: must not wait, and must not take long.
pub trait FetchSink: Send {
    fn finish(self: Box<Self>, result: Result<Response, FetchError>);
}

/// Names a fetch, to cancel it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FetchId {
    number: u64,
    /// Chooses the reactor.
    pub origin_hash: u64,
}

/// A message to a reactor.
pub enum Order {
    Begin(Box<Admitted>),
    Cancel(FetchId),
}

/// The mailboxes of the reactors, whatever their sockets are.
pub trait FetchDoor: Send + Sync {
    fn post(&self, origin_hash: u64, order: Order);
}

/// A fetch that has its place.
pub struct Admitted {
    pub id: FetchId,
    pub tenant: u64,
    pub origin: Origin,
    pub request: Request,
    pub timeouts: Timeouts,
    pub bounds: ResponseBounds,
    pub policy: AddressPolicy,
    owed: Owed,
    /// Given back when it is dropped.
    _place: Place,
}

/// There is no place for another fetch of this tenant; it comes back.
pub struct Full(pub Box<Fetch>);

/// The handle of all threads. A clone posts to the same reactors.
#[derive(Clone)]
pub struct Fetcher {
    door: Arc<dyn FetchDoor>,
    gate: Arc<Gate>,
}

impl Fetcher {
    pub fn new(door: Arc<dyn FetchDoor>) -> Fetcher {
        Fetcher {
            door,
            gate: Arc::default(),
        }
    }

    /// Posts a fetch to its reactor. Never waits.
    pub fn submit(&self, fetch: Fetch) -> Result<FetchId, Full> {
        let bytes = bytes_of(&fetch.request);
        if !self.gate.enter(fetch.tenant, bytes) {
            return Err(Full(Box::new(fetch)));
        }
        let mut hasher = DefaultHasher::new();
        fetch.origin.hash(&mut hasher);
        let id = FetchId {
            // Relaxed: only that no two are equal matters.
            number: self.gate.numbers.fetch_add(1, Ordering::Relaxed),
            origin_hash: hasher.finish(),
        };
        let admitted = Box::new(Admitted {
            id,
            tenant: fetch.tenant,
            origin: fetch.origin,
            request: fetch.request,
            timeouts: fetch.timeouts,
            bounds: fetch.bounds,
            policy: fetch.policy,
            owed: Owed(Some(fetch.sink)),
            _place: Place {
                gate: self.gate.clone(),
                tenant: fetch.tenant,
                bytes,
            },
        });
        self.door.post(id.origin_hash, Order::Begin(admitted));
        Ok(id)
    }

    /// Asks the fetch's reactor to end it now. Its result is [`FetchError::Cancelled`], unless it
    /// has another one already.
    pub fn cancel(&self, id: FetchId) {
        self.door.post(id.origin_hash, Order::Cancel(id));
    }

    /// Returns how many fetches have no result yet.
    pub fn pending(&self) -> usize {
        self.gate.lock().total.fetches
    }
}

impl Admitted {
    /// Passes on the result. The place is free by then, for a fetch that follows on the result.
    pub fn finish(mut self, result: Result<Response, FetchError>) {
        let sink = self.owed.0.take();
        drop(self);
        if let Some(sink) = sink {
            sink.finish(result);
        }
    }

    /// Returns the memory that its request takes.
    pub fn bytes(&self) -> u32 {
        bytes_of(&self.request)
    }
}

impl fmt::Debug for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Order::Begin(fetch) => write!(f, "Begin({:?} to {:?})", fetch.id, fetch.origin),
            Order::Cancel(id) => write!(f, "Cancel({id:?})"),
        }
    }
}

impl From<WholeResponse> for Response {
    fn from(whole: WholeResponse) -> Response {
        Response {
            status: whole.head.status,
            head_bytes: whole.head_bytes,
            body: whole.body,
        }
    }
}

impl Response {
    /// Returns the first field of this name, if it is visible ASCII.
    pub fn field(&self, name: &str) -> Option<&str> {
        let lines = self.head_bytes.split(|byte| *byte == b'\n').skip(1);
        lines
            .filter_map(|line| str::from_utf8(line).ok())
            .find_map(|line| {
                let (found, value) = line.split_once(':')?;
                found.eq_ignore_ascii_case(name).then(|| value.trim())
            })
    }

    /// Returns how long the server asks to be left alone. The caller has a bound of its own.
    pub fn retry_after(&self, now: UnixSeconds) -> Option<Duration> {
        retry_after::parse(self.field("retry-after")?, self.field("date"), now.as_u64())
    }
}

impl FetchError {
    /// Returns a stable word for logs, metrics and records.
    pub const fn as_str(&self) -> &'static str {
        match self {
            FetchError::Forbidden => "forbidden_address",
            FetchError::Unresolved => "unresolved_name",
            FetchError::Unreachable(_) => "unreachable",
            FetchError::TimedOut(Stage::Wait) => "wait_timeout",
            FetchError::TimedOut(Stage::Resolve) => "resolve_timeout",
            FetchError::TimedOut(Stage::Connect) => "connect_timeout",
            FetchError::TimedOut(Stage::FirstByte) => "first_byte_timeout",
            FetchError::TimedOut(Stage::Whole) => "timeout",
            FetchError::Tls(_) => "tls_failed",
            FetchError::Response(_) => "bad_response",
            FetchError::Broken => "connection_broken",
            FetchError::BuffersFull => "buffers_full",
            FetchError::Busy => "busy",
            FetchError::Cancelled => "cancelled",
            FetchError::Ended => "daemon_ended",
            FetchError::Bug => "bug",
        }
    }
}

impl fmt::Display for FetchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FetchError::Forbidden => f.write_str("its address is not public, and not allowed"),
            FetchError::Unresolved => f.write_str("its name has no address"),
            FetchError::Unreachable(kind) => write!(f, "no connection: {kind}"),
            FetchError::TimedOut(Stage::Wait) => {
                f.write_str("its turn among the daemon's requests did not come in time")
            }
            FetchError::TimedOut(Stage::Resolve) => {
                f.write_str("its name was not resolved in time")
            }
            FetchError::TimedOut(Stage::Connect) => f.write_str("no connection in time"),
            FetchError::TimedOut(Stage::FirstByte) => f.write_str("no response in time"),
            FetchError::TimedOut(Stage::Whole) => f.write_str("no whole response in time"),
            FetchError::Tls(why) => write!(f, "TLS failed: {why}"),
            FetchError::Response(why) => write!(f, "{why}"),
            FetchError::Broken => f.write_str("the connection broke"),
            FetchError::BuffersFull => f.write_str("the daemon's buffers are full"),
            FetchError::Busy => f.write_str("too many of the daemon's requests wait"),
            FetchError::Cancelled => f.write_str("it was cancelled"),
            FetchError::Ended => f.write_str("the daemon ended"),
            FetchError::Bug => f.write_str("a bug in the daemon"),
        }
    }
}

/// A result that is still owed.
struct Owed(Option<Box<dyn FetchSink>>);

impl Drop for Owed {
    fn drop(&mut self) {
        if let Some(sink) = self.0.take() {
            sink.finish(Err(FetchError::Ended));
        }
    }
}

/// The memory that a request takes, for its share of the bounds.
fn bytes_of(request: &Request) -> u32 {
    let bytes = request.target.len() + request.fields.lines().len() + request.body.len();
    u32::try_from(bytes)
        .unwrap_or(u32::MAX)
        .max(limits::FETCH_BYTES_MIN)
}

// ---- admission ----------------------------------------------------------------------------------

/// Counts the fetches without a result, for each tenant.
#[derive(Default)]
struct Gate {
    counts: Mutex<Counts>,
    numbers: AtomicU64,
}

#[derive(Default)]
struct Counts {
    total: Load,
    /// Only those that have fetches.
    tenants: HashMap<u64, Load>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Load {
    fetches: usize,
    bytes: u64,
}

impl Gate {
    fn enter(&self, tenant: u64, bytes: u32) -> bool {
        let counts = &mut *self.lock();
        let own = counts.tenants.get(&tenant).copied().unwrap_or_default();
        let free_bytes = limits::FETCH_BYTES_MAX.saturating_sub(counts.total.bytes);
        let is_admitted = own.fetches < limits::FETCHES_MAX.saturating_sub(counts.total.fetches)
            && own.bytes + u64::from(bytes) <= free_bytes;
        if is_admitted {
            counts.total.add(bytes);
            counts.tenants.entry(tenant).or_default().add(bytes);
        }
        is_admitted
    }

    fn leave(&self, tenant: u64, bytes: u32) {
        let counts = &mut *self.lock();
        counts.total.remove(bytes);
        if let Some(own) = counts.tenants.get_mut(&tenant) {
            own.remove(bytes);
            if *own == Load::default() {
                counts.tenants.remove(&tenant);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        // Each change is complete before anything can panic.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Load {
    fn add(&mut self, bytes: u32) {
        self.fetches += 1;
        self.bytes += u64::from(bytes);
    }

    fn remove(&mut self, bytes: u32) {
        self.fetches -= 1;
        self.bytes -= u64::from(bytes);
    }
}

struct Place {
    gate: Arc<Gate>,
    tenant: u64,
    bytes: u32,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.gate.leave(self.tenant, self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    /// Keeps the orders.
    #[derive(Default)]
    struct Kept(Mutex<Vec<Order>>);

    impl FetchDoor for Kept {
        fn post(&self, _: u64, order: Order) {
            self.0.lock().expect("one thread").push(order);
        }
    }

    struct Sent(mpsc::Sender<Result<Response, FetchError>>);

    impl FetchSink for Sent {
        fn finish(self: Box<Self>, result: Result<Response, FetchError>) {
            // A test that fails does not wait for it.
            let _ = self.0.send(result);
        }
    }

    fn fetch(
        tenant: u64,
        bytes: usize,
        sender: &mpsc::Sender<Result<Response, FetchError>>,
    ) -> Fetch {
        let (origin, target) = Origin::parse("http://example.org/").expect("a URL");
        Fetch {
            tenant,
            origin,
            request: Request {
                method: Method::Post,
                target,
                fields: Fields::new(),
                body: vec![0; bytes].into(),
                is_idempotent: true,
            },
            timeouts: Timeouts {
                connect: Duration::ZERO,
                first_byte: Duration::ZERO,
                whole: Duration::ZERO,
            },
            bounds: ResponseBounds::NOTHING,
            policy: AddressPolicy::Any,
            sink: Box::new(Sent(sender.clone())),
        }
    }

    #[test]
    fn each_fetch_has_one_result_and_gives_its_place_back() {
        let door = Arc::new(Kept::default());
        let fetcher = Fetcher::new(door.clone());
        let (sender, results) = mpsc::channel();
        for _ in 0..2 {
            assert!(fetcher.submit(fetch(1, 10, &sender)).is_ok());
        }
        assert_eq!(fetcher.pending(), 2);
        let mut orders = std::mem::take(&mut *door.0.lock().unwrap());
        let Some(Order::Begin(first)) = orders.pop() else {
            panic!("an order to begin");
        };
        first.finish(Err(FetchError::Unresolved));
        // Whatever drops it: a reactor that has ended, a mailbox that is closed.
        drop(orders);
        let results: Vec<_> = results
            .try_iter()
            .map(|result| result.unwrap_err())
            .collect();
        assert_eq!(results, [FetchError::Unresolved, FetchError::Ended]);
        assert_eq!(fetcher.pending(), 0);
        assert!(fetcher.gate.lock().tenants.is_empty());
    }

    /// Mutation: `finish` that calls the sink first.
    #[test]
    fn a_fetch_that_follows_on_a_result_finds_its_place() {
        struct Pending(Fetcher, mpsc::Sender<usize>);
        impl FetchSink for Pending {
            fn finish(self: Box<Self>, _: Result<Response, FetchError>) {
                self.1.send(self.0.pending()).expect("the test waits");
            }
        }
        let door = Arc::new(Kept::default());
        let fetcher = Fetcher::new(door.clone());
        let (results, _) = mpsc::channel();
        let (sender, pending) = mpsc::channel();
        let mut one = fetch(1, 10, &results);
        one.sink = Box::new(Pending(fetcher.clone(), sender));
        assert!(fetcher.submit(one).is_ok());
        let Some(Order::Begin(first)) = door.0.lock().unwrap().pop() else {
            panic!("an order to begin");
        };
        first.finish(Err(FetchError::Unresolved));
        assert_eq!(pending.try_recv(), Ok(0));
    }

    #[test]
    fn one_tenant_leaves_places_for_others() {
        let fetcher = Fetcher::new(Arc::new(Kept::default()));
        let (sender, _results) = mpsc::channel();
        let admitted = |tenant, bytes| fetcher.submit(fetch(tenant, bytes, &sender)).is_ok();
        let large = limits::FETCH_BYTES_MAX as usize / 2 + 1;
        assert!(!admitted(1, large + large), "more than there is for all");
        let count = (0..).take_while(|_| admitted(1, 0)).count();
        assert_eq!(count, limits::FETCHES_MAX / 2);
        assert!(admitted(2, 0), "a place for a newcomer");
        assert!(admitted(2, large));
        assert!(!admitted(2, large), "it has more than what is free");
    }

    #[test]
    fn a_field_is_found_whatever_its_case() {
        let response = Response {
            status: 429,
            head_bytes: b"HTTP/1.1 429 No\r\nRetry-After:  7 \r\nx: y\r\n\r\n".to_vec(),
            body: Vec::new(),
        };
        assert_eq!(response.field("retry-after"), Some("7"));
        assert_eq!(response.field("http/1.1 429 no"), None);
        assert_eq!(response.field("y"), None);
    }
}
