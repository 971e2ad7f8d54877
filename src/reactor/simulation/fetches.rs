//! Worlds in which the daemon is a client: fetches to servers of every manner.
//!
//! A seed decides which fetches there are, how the servers behave and when. After each turn the
//! reactors' invariants are checked; in the end:
//!
//!  * each fetch has had one result, also if it was cancelled or the daemon ended;
//!  * a response belongs to its own request;
//!  * no address that is not public was connected to;
//!  * a patient fetch to a good server has its response;
//!  * no socket, buffer, byte of the account or place of a tenant is left.
//!
//! Mutations that the seeds catch: `handle_writable_edge` left out of `Endpoint::handle_edge`, or
//! `Event::Again` that does not queue its connection (a lost wake-up); `is_connected` taken as true
//! for every edge (a write before the handshake's end); `take_response` that keeps a connection
//! with bytes left over, and a kept connection whose bytes are not looked at (the response to
//! another request); `finish` that closes no attempts (a socket leaked); `dial` without its filter,
//! with the second look in `connect` (a private address); `Owed` without its drop (a fetch without
//! a result).

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;

use super::engine;
use super::servers::{NAMES, Servers};
use super::system::Network;
use super::{Daemon, Dice, seeds};
use crate::config::Config;
use crate::core::address_policy::AddressPolicy;
use crate::http::http1::response_reader::ResponseBounds;
use crate::http::origin::Origin;
use crate::http::{Fields, Method};
use crate::offload::fetch::{Fetch, FetchError, FetchId, FetchSink, Request, Response, Timeouts};
use crate::reactor::message::Message;

/// The results of each fetch, by its number.
pub type Results = Arc<Mutex<HashMap<u64, Vec<Result<Response, FetchError>>>>>;

/// Writes down the result.
struct Noted {
    number: u64,
    results: Results,
}

impl FetchSink for Noted {
    fn finish(self: Box<Self>, result: Result<Response, FetchError>) {
        let mut results = self.results.lock().expect("one thread");
        results.entry(self.number).or_default().push(result);
    }
}

/// Returns a fetch whose target holds its number.
pub fn fetch(number: u64, url: &str, results: &Results) -> Fetch {
    let (origin, target) = Origin::parse(&format!("{url}{number}")).expect(url);
    let timeout = Duration::from_secs(1_000_000);
    Fetch {
        tenant: number % 3,
        origin,
        request: Request {
            method: Method::Post,
            target,
            fields: Fields::new(),
            body: Bytes::from_static(b"a body"),
            is_idempotent: true,
        },
        timeouts: Timeouts {
            connect: timeout,
            first_byte: timeout,
            whole: timeout,
        },
        bounds: ResponseBounds {
            head_bytes: 1_024,
            body_bytes: 1_024,
            status_is_enough: false,
        },
        policy: AddressPolicy::PublicAnd(Arc::new([])),
        sink: Box::new(Noted {
            number,
            results: results.clone(),
        }),
    }
}

struct World {
    daemon: Daemon,
    servers: Servers,
    dice: Dice,
    results: Results,
    submitted: u64,
    ids: Vec<FetchId>,
    cancelled: Vec<u64>,
    /// By number: a fetch without deadlines to a server that serves it.
    must_succeed: Vec<u64>,
}

/// More turns than any run needs.
const TURNS_MOST: u32 = 60_000;

impl World {
    fn new(seed: u64) -> World {
        let mut dice = Dice::new(seed);
        let network = Network::new(dice.next());
        network.borrow_mut().is_slow = dice.one_in(2);
        let reactors = [1, 1, 2][dice.below(3) as usize];
        let config = Arc::new(Config::default());
        World {
            daemon: Daemon::new(network, reactors, 4, &config, engine::TERSE),
            servers: Servers::default(),
            dice,
            results: Results::default(),
            submitted: 0,
            ids: Vec::new(),
            cancelled: Vec::new(),
            must_succeed: Vec::new(),
        }
    }

    fn run(&mut self) {
        let wanted = 1 + self.dice.below(24);
        let ends_early = self.dice.one_in(4);
        let mut turns = 0;
        loop {
            turns += 1;
            assert!(
                turns < TURNS_MOST,
                "no end: {} pending",
                self.daemon.fetcher.pending()
            );
            if self.submitted < wanted && self.dice.one_in(3) {
                self.submit();
            }
            if self.dice.one_in(40) && !self.ids.is_empty() {
                let number = self.dice.below(self.ids.len() as u64);
                self.daemon.fetcher.cancel(self.ids[number as usize]);
                self.cancelled.push(number);
            }
            let is_done = self.submitted == wanted && self.daemon.fetcher.pending() == 0;
            if is_done || (ends_early && self.dice.one_in(300)) {
                break;
            }
            self.step();
        }
        self.end(!ends_early);
    }

    fn submit(&mut self) {
        let number = self.submitted;
        self.submitted += 1;
        let name = NAMES[self.dice.below(NAMES.len() as u64) as usize];
        let is_tls = name == "localhost" || self.dice.one_in(4);
        let url = format!("http{}://{name}/", if is_tls { "s" } else { "" });
        let mut fetch = fetch(number, &url, &self.results);
        let serves = ["good.test", "localhost", "closing.test", "second.test"].contains(&name);
        let is_patient = serves && (!is_tls || name == "localhost") && self.dice.one_in(2);
        if !is_patient {
            let dice = &mut self.dice;
            let mut time = || Duration::from_millis(1 + dice.below(60_000));
            fetch.timeouts = Timeouts {
                connect: time(),
                first_byte: time(),
                whole: time(),
            };
        }
        fetch.request.is_idempotent = is_patient || self.dice.one_in(2);
        if is_patient && name != "second.test" {
            self.must_succeed.push(number);
        }
        let id = self.daemon.fetcher.submit(fetch);
        self.ids
            .push(id.unwrap_or_else(|_| panic!("there is room for all")));
    }

    fn step(&mut self) {
        self.servers.step(&mut self.daemon.network.borrow_mut());
        self.daemon.resolvers.step(&mut self.dice);
        for index in 0..self.daemon.reactors.len() {
            if !self.dice.one_in(4) {
                self.daemon.turn(index);
            }
        }
    }

    fn end(&mut self, is_whole: bool) {
        match self.dice.one_in(2) {
            true => self.daemon.tell_all(|| Message::Stop),
            false => self.daemon.tell_all(|| Message::Drain(Duration::ZERO)),
        }
        let mut turns = 0;
        while !self.daemon.has_ended() {
            turns += 1;
            assert!(turns < TURNS_MOST, "the daemon does not end");
            self.step();
        }
        self.daemon.resolvers.end();
        self.daemon.check_ended();
        assert_eq!(
            self.daemon.fetcher.pending(),
            0,
            "a place was not given back"
        );
        let results = self.results.lock().expect("one thread");
        for number in 0..self.submitted {
            let found = results.get(&number).map_or(&[][..], Vec::as_slice);
            assert_eq!(found.len(), 1, "fetch {number} has {} results", found.len());
            assert!(
                !matches!(found[0], Err(FetchError::Bug)),
                "a panic, see above"
            );
            if let Ok(response) = &found[0] {
                let body = String::from_utf8_lossy(&response.body);
                assert_eq!(
                    body,
                    format!("/{number}"),
                    "the response to another request"
                );
            }
        }
        if !is_whole {
            return;
        }
        for number in self
            .must_succeed
            .iter()
            .filter(|it| !self.cancelled.contains(it))
        {
            let result = &results[number][0];
            let is_excused = matches!(
                result,
                // Ten thousand faults are in the network, and a name may get lost in the resolver.
                Err(FetchError::Unreachable(_) | FetchError::Unresolved)
            );
            assert!(result.is_ok() || is_excused, "fetch {number}: {result:?}");
        }
    }
}

#[test]
fn every_seed_keeps_the_invariants_of_fetches() {
    let succeeded = std::sync::atomic::AtomicUsize::new(0);
    seeds::try_all(seeds::asked_for(), |seed| {
        let mut world = World::new(seed);
        let run = catch_unwind(AssertUnwindSafe(|| world.run()));
        if let Err(panic) = run {
            eprintln!("replay with AUTOGLMD_SIM_SEED={seed}");
            resume_unwind(panic);
        }
        let results = world.results.lock().expect("one thread");
        let good = results
            .values()
            .flatten()
            .filter(|result| result.is_ok())
            .count();
        succeeded.fetch_add(good, std::sync::atomic::Ordering::Relaxed);
    });
    assert!(succeeded.into_inner() > 0, "no fetch succeeded");
}
