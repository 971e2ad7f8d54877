//! The thread of callbacks over a real store, with a way to reactors that keeps the requests and a
//! clock of the test's own.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::*;
use crate::http::http1::response::BadResponse;
use crate::jobs::{CallbackState, NewJob, WebhookSecret};
use crate::offload::fetch::{FetchDoor, Order};
use crate::runner::change::cancel;
use crate::store::interface::Groups as _;
use crate::store::{Callbacks as _, Jobs as _, Keys as _, NewKey, SqliteStore};
use crate::telemetry::id::Ids;
use crate::telemetry::metrics::Metrics;

const NOW_MS: u64 = 1_000_000;

/// Keeps the orders.
#[derive(Default)]
struct Kept(Mutex<Vec<Order>>);

impl FetchDoor for Kept {
    fn post(&self, _: u64, order: Order) {
        self.0.lock().unwrap().push(order);
    }
}

struct Bench {
    caller: Caller,
    notes: Receiver<CallbackNote>,
    requests: Arc<Requests>,
    store: SqliteStore,
    door: Arc<Kept>,
    key_id: String,
    ids: Ids,
    now: Moment,
    _folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let mut store = SqliteStore::open_in(folder.path()).unwrap();
        let key_id = store.create(&NewKey::default(), 1).unwrap().0.id;
        let (own, notes) = Callbacks::new();
        let now = Moment::from_micros(1_000_000);
        let (door, requests) = (Arc::new(Kept::default()), Arc::<Requests>::default());
        let parts = CallbackParts {
            fetcher: Fetcher::new(door.clone()),
            requests: requests.clone(),
            series: Metrics::new("test").series::<CallbackSeries>(),
            config: Arc::new(Config::default()),
            body: |_| b"body".to_vec(),
            wall_clock: || UnixMillis::new(NOW_MS),
            seed: 1,
        };
        Bench {
            caller: Caller::new(parts, own, now),
            notes,
            requests,
            store,
            door,
            key_id,
            ids: Ids::new(SplitMix64::new(1, TENANT)),
            now,
            _folder: folder,
        }
    }

    /// Adds a key whose callbacks are signed, and speaks of it from here on.
    fn add_key(&mut self) {
        self.key_id = self.store.create(&NewKey::default(), 1).unwrap().0.id;
        self.make_secret();
    }

    fn make_secret(&mut self) {
        let secret = WebhookSecret::new([7; 32]);
        let made = self
            .store
            .rotate_webhook_secret(&self.key_id, secret.reveal(), 0);
        assert!(made.unwrap());
    }

    /// Ends a job, so that its callback is due.
    fn end(&mut self, number: u8) -> JobId {
        let id: JobId = self.ids.make(UnixMillis::new(number.into()));
        let job = NewJob {
            id,
            key_id: self.key_id.clone(),
            created_at: 1,
            expires_at: 2 * NOW_MS,
            request: "{}".to_owned(),
            callback_url: Some("https://example.com/".to_owned()),
            idempotency: None,
        };
        self.store.insert_job(&job).unwrap();
        cancel(&mut self.store, &self.key_id, id, 2, 10 * NOW_MS).unwrap();
        id
    }

    fn let_store_act(&mut self) -> bool {
        let mut group = Vec::new();
        if self.requests.waiting() > 0 {
            self.requests.take(&mut group, Duration::ZERO);
        }
        let any = !group.is_empty();
        for mut task in group {
            let result = task.run(&mut self.store);
            task.finish(result.as_ref().copied());
        }
        any
    }

    fn settle(&mut self) {
        for _ in 0..50 {
            self.caller.save(self.now);
            self.caller.make_way(self.now);
            self.caller.claim(self.now);
            let has_acted = self.let_store_act();
            let notes: Vec<CallbackNote> = self.notes.try_iter().collect();
            let is_quiet = notes.is_empty();
            notes
                .into_iter()
                .for_each(|note| self.caller.handle_note(note, self.now));
            if is_quiet && !has_acted {
                return;
            }
        }
        panic!("no end");
    }

    fn look(&mut self) {
        self.caller.handle_note(CallbackNote::Look, self.now);
        self.settle();
    }

    fn orders(&self) -> usize {
        self.door.0.lock().unwrap().len()
    }

    /// Does what the reactors do with orders to cancel.
    fn cancel(&self) {
        let mut orders = std::mem::take(&mut *self.door.0.lock().unwrap());
        let is_cancel = |order: &mut Order| matches!(order, Order::Cancel(_));
        let cancelled: Vec<Order> = orders.extract_if(.., is_cancel).collect();
        for order in cancelled {
            let is_its = |begun: &mut Order| match (begun, &order) {
                (Order::Begin(fetch), Order::Cancel(id)) => fetch.id == *id,
                _ => false,
            };
            for begun in orders.extract_if(.., is_its) {
                let Order::Begin(fetch) = begun else {
                    continue;
                };
                fetch.finish(Err(FetchError::Cancelled));
            }
        }
        *self.door.0.lock().unwrap() = orders;
    }

    fn callback(&mut self, id: JobId) -> Callback {
        self.store.job(id).unwrap().unwrap().callback.unwrap()
    }
}

#[test]
fn a_key_has_a_bounded_number_of_callbacks_under_way() {
    let mut bench = Bench::new();
    bench.make_secret();
    let most = limits::CALLBACK_REQUESTS_PER_KEY_MAX as u8;
    let ids: Vec<JobId> = (0..most + 3).map(|number| bench.end(number)).collect();
    bench.look();
    bench.look();
    assert_eq!(bench.orders(), usize::from(most));
    let first = bench.callback(ids[0]);
    // The attempt has half of the lease, and its result the rest.
    let timeout = milliseconds(Config::default().jobs.callback_timeout);
    assert_eq!((first.attempts, first.next_at), (1, NOW_MS + 2 * timeout));
    // Whatever becomes of an order, its place is free for the next callback.
    bench.door.0.lock().unwrap().truncate(usize::from(most) - 2);
    bench.settle();
    assert_eq!(bench.orders(), usize::from(most));
}

#[test]
fn a_callback_without_a_secret_fails_for_good() {
    let mut bench = Bench::new();
    let id = bench.end(1);
    bench.look();
    assert_eq!(bench.orders(), 0);
    let callback = bench.callback(id);
    assert_eq!(callback.state, CallbackState::Failed);
    let why = callback.error.unwrap();
    assert!(why.contains("no webhook secret"), "{why}");
}

#[test]
fn a_drain_begins_no_attempt() {
    let mut bench = Bench::new();
    bench.make_secret();
    let [claimed, late] = [bench.end(1), bench.end(2)];
    bench.caller.handle_note(CallbackNote::Look, bench.now);
    bench.caller.claim(bench.now);
    bench.caller.handle_note(CallbackNote::Drain, bench.now);
    assert!(!bench.caller.is_over(bench.now), "a claim is under way");
    bench.settle();
    assert!(bench.caller.is_over(bench.now));
    assert_eq!(bench.orders(), 0);
    let callback = bench.callback(claimed);
    assert_eq!(callback.state, CallbackState::Pending);
    let why = callback.error.as_deref();
    assert_eq!(why, Some("the daemon ended during the attempt"));
    assert_eq!(callback.next_at, NOW_MS, "at once, by the next daemon");
    let attempts = bench.callback(late).attempts;
    bench.look();
    assert_eq!(
        bench.callback(late).attempts,
        attempts,
        "nothing is claimed"
    );
}

#[test]
fn each_result_has_its_meaning() {
    let outcome = |error| outcome_of(Err(error), UnixSeconds::new(1));
    for end in [FetchError::Ended, FetchError::Cancelled] {
        assert_eq!(outcome(end), Outcome::CutOff);
    }
    let forbidden = outcome(FetchError::Forbidden);
    assert!(
        matches!(forbidden, Outcome::Refused { .. }),
        "{forbidden:?}"
    );
    let long = "x".repeat(10_000);
    let Outcome::Failed { why, .. } = outcome(FetchError::Tls(long)) else {
        panic!("it may be tried again");
    };
    assert_eq!(why.len(), limits::CALLBACK_REASON_CHARACTERS_MAX);
    let Outcome::Failed { why, .. } = outcome(FetchError::Response(BadResponse::Interim)) else {
        panic!("it may be tried again");
    };
    assert_eq!(why, "too many interim responses");
}

/// Mutations: `run` that makes no way; `make_way` without `note_waiting`; `handle_fetched` that
/// takes an attempt which had to leave for one that the daemon's end has cut off.
#[test]
fn a_newcomer_is_called_soon_however_many_receivers_are_silent() {
    let mut bench = Bench::new();
    let silent = 3 * limits::CALLBACK_REQUESTS_MAX / limits::CALLBACK_REQUESTS_PER_KEY_MAX;
    bench.store.begin().unwrap();
    for _ in 0..silent {
        bench.add_key();
        for number in 0..limits::CALLBACK_REQUESTS_PER_KEY_MAX as u8 {
            bench.end(number);
        }
    }
    bench.store.commit().unwrap();
    let (all, quick) = (
        limits::CALLBACK_REQUESTS_MAX as usize,
        limits::CALLBACK_QUICK_REQUESTS as usize,
    );
    bench.look();
    assert_eq!(bench.orders(), all);
    // Until all of them have shown how slow they are.
    for _ in 0..silent {
        bench.now = bench.now + limits::CALLBACK_QUICK_TIME;
        bench.look();
        bench.cancel();
        bench.look();
        assert!(bench.orders() <= all);
    }
    assert_eq!(bench.orders(), all - quick, "they do not come back at once");
    bench.add_key();
    let newcomer = bench.end(1);
    bench.look();
    assert_eq!(bench.callback(newcomer).attempts, 1);
    assert_eq!(bench.orders(), all - quick + 1);
}

/// The attempt fails, and its callback waits as after any failure.
#[test]
fn an_attempt_that_has_to_leave_has_failed() {
    let mut bench = Bench::new();
    bench.make_secret();
    let id = bench.end(1);
    bench.look();
    let (serial, one) = bench.caller.under_way.iter_mut().next().unwrap();
    let serial = *serial;
    one.is_leaving = true;
    bench
        .caller
        .handle_fetched(serial, Err(FetchError::Cancelled), bench.now);
    bench.settle();
    let callback = bench.callback(id);
    assert_eq!(callback.state, CallbackState::Pending);
    assert!(callback.next_at > NOW_MS, "after a pause");
    let why = callback.error.unwrap();
    assert!(why.contains("no response within 1 s"), "{why}");
}
