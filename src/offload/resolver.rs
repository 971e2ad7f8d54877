//! Resolves names off the reactors: `getaddrinfo(3)` has no form that does not wait.
//!
//! Owns the questions, which wait in a pool of threads of their own ([`Workers`]): fair between
//! tenants, bounded, and apart from the workers, which would stand still for seconds behind a
//! silent name server. It decides nothing about the addresses.
//!
//! # A silent name server
//!
//! A look-up that has begun cannot be withdrawn: its thread waits as long as the C library does. A
//! tenant chooses the names, and so which name servers are asked. Therefore:
//!
//!  * a tenant holds no more threads than its share ([`Shares`]), and the daemon itself always
//!    finds one;
//!  * a tenant that asks for a name again, while it waits for that very name, joins the look-up: a
//!    hundred callbacks to one dead host hold one thread;
//!  * the C library is asked to give up soon (`limits::outbound::LOOK_UP_TIMEOUT`).
//!
//! Questions of two tenants are not joined: the time of a response would show one what the other
//! asks for. Nor is a result remembered: that is the work of a name server, which knows how long a
//! result is good, also that a name does not exist. Without a name server on the machine, each
//! question costs a round trip, and a name whose server is silent costs its own tenant a thread
//! again.
//!
//! # Invariants
//!
//!  1. Each question that was admitted has one result, also if its look-up panics or the pool
//!     closes. One that its asker has dropped has none, and is not looked up for its own sake.
//!  2. A name that a tenant asks for is open as long as its task is admitted and has no result.
//!  3. Each task is counted once, by its outcome, and in a gauge while it waits or runs.
//!
//! Mutations that the tests catch: a look-up without its drop, `is_wanted` that is true, `ask` that
//! never joins, one that joins the questions of all tenants, a pool without shares, a task that
//! stays in its gauge.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::OWN_TENANT;
use super::fair_queue::Bounds;
use super::metrics::{LookUpOutcome, ResolverSeries};
use super::shares::Shares;
use super::workers::{Full, Task, Workers};
use crate::limits::outbound as limits;
use crate::os::names::NoAddress;
use crate::telemetry::metrics::Gauge;

/// Looks up a name, and waits for the result: the system's resolver, or one of a test's own.
pub type LookUp = fn(&str) -> Result<Vec<IpAddr>, NoAddress>;

/// The addresses of a name; none if there are none, or no server knew them in time.
pub type Addresses = Vec<IpAddr>;

/// See the file's head. A clone asks the same threads.
#[derive(Clone)]
pub struct Resolver {
    threads: Arc<Workers>,
    open: Arc<Open>,
    look_up: LookUp,
    series: Arc<ResolverSeries>,
}

/// Keeps a question alive: dropping it withdraws the question.
pub struct Asked(Arc<()>);

/// The names that are being asked for, by tenant, and the questions that wait for each. A key and
/// its task share the text, so that a later look-up of the same name is another one.
#[derive(Default)]
struct Open(Mutex<Names>);

type Names = HashMap<(u64, Arc<str>), Vec<Question>>;

struct Question {
    asker: Weak<()>,
    answer: Box<dyn FnOnce(Addresses) + Send>,
}

/// The task of one name.
struct Search {
    tenant: u64,
    name: Arc<str>,
    look_up: LookUp,
    open: Arc<Open>,
    series: Arc<ResolverSeries>,
    /// Until it runs.
    waits: Option<Counted>,
    outcome: LookUpOutcome,
    found: Addresses,
}

/// One in a gauge, as long as it lives.
struct Counted(Gauge);

impl Resolver {
    pub fn new(look_up: LookUp, series: Arc<ResolverSeries>) -> Resolver {
        let bounds = Bounds {
            items: limits::WAITING_NAMES_MAX,
            bytes: limits::WAITING_NAMES_MAX as u64,
            visit_bytes: 1,
            item_bytes_min: 1,
        };
        let shares = Shares::new(limits::RESOLVER_THREADS, OWN_TENANT);
        Resolver {
            threads: Arc::new(Workers::sharing(bounds, Some(shares))),
            open: Arc::default(),
            look_up,
            series,
        }
    }

    /// Returns the pool, for its threads.
    pub fn threads(&self) -> &Arc<Workers> {
        &self.threads
    }

    /// Asks for the addresses of a name. `answer` is called once on another thread, unless the
    /// question is withdrawn, or the result here is `None`: too many names wait.
    pub fn ask(
        &self,
        tenant: u64,
        name: &str,
        answer: impl FnOnce(Addresses) + Send + 'static,
    ) -> Option<Asked> {
        let asked = Asked(Arc::new(()));
        let question = Question {
            asker: Arc::downgrade(&asked.0),
            answer: Box::new(answer),
        };
        let mut open = self.open.lock();
        let entry = match open.entry((tenant, name.into())) {
            Entry::Occupied(mut same) => {
                let questions = same.get_mut();
                questions.retain(Question::is_wanted);
                questions.push(question);
                return Some(asked);
            }
            Entry::Vacant(entry) => entry,
        };
        let search = Search {
            tenant,
            name: entry.key().1.clone(),
            look_up: self.look_up,
            open: self.open.clone(),
            series: self.series.clone(),
            waits: Some(Counted::new(&self.series.waiting)),
            outcome: LookUpOutcome::Withdrawn,
            found: Addresses::new(),
        };
        // The pool drops no task while it holds a lock, and this one comes back if it is full: so
        // the two locks are never taken the other way round.
        match self.threads.submit(tenant, 1, search) {
            Ok(()) => {
                entry.insert(vec![question]);
                Some(asked)
            }
            Err(Full(mut search)) => {
                drop(entry);
                drop(open);
                search.outcome = LookUpOutcome::Refused;
                // Its drop looks for questions.
                drop(search);
                None
            }
        }
    }
}

impl Open {
    /// Removes the questions of a task, unless `must_stay`: the next one for its name begins
    /// another look-up. Returns them; none if they stay, or were removed before.
    fn take(&self, task: &Search, must_stay: impl Fn(&[Question]) -> bool) -> Vec<Question> {
        match self.lock().entry((task.tenant, task.name.clone())) {
            Entry::Occupied(entry)
                if Arc::ptr_eq(&entry.key().1, &task.name) && !must_stay(entry.get()) =>
            {
                entry.remove()
            }
            Entry::Occupied(_) | Entry::Vacant(_) => Vec::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Names> {
        // No code of an asker runs under the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Question {
    fn is_wanted(&self) -> bool {
        self.asker.strong_count() > 0
    }
}

impl Task for Search {
    /// Closes the name if it is not wanted, under the lock: a question that comes now must not join
    /// a task that is about to be dropped.
    fn is_wanted(&self) -> bool {
        let wanted = |questions: &[Question]| questions.iter().any(Question::is_wanted);
        self.open.take(self, wanted).is_empty()
    }

    /// Its drop answers.
    fn run(mut self: Box<Self>) {
        self.waits = None;
        let _runs = Counted::new(&self.series.busy);
        // If it panics.
        self.outcome = LookUpOutcome::Failed;
        let found = (self.look_up)(&self.name);
        self.outcome = match &found {
            Ok(found) if found.is_empty() => LookUpOutcome::NotFound,
            Ok(_) => LookUpOutcome::Found,
            Err(NoAddress::NotFound) => LookUpOutcome::NotFound,
            Err(NoAddress::NoResponse) => LookUpOutcome::NoResponse,
            Err(NoAddress::Failed) => LookUpOutcome::Failed,
        };
        self.found = found.unwrap_or_default();
    }
}

impl Drop for Search {
    /// Counts before it answers, so that an asker that looks finds its own look-up.
    fn drop(&mut self) {
        self.waits = None;
        self.series.look_ups.get(self.outcome).inc();
        let questions = self.open.take(self, |_| false).into_iter();
        for question in questions.filter(Question::is_wanted) {
            (question.answer)(self.found.clone());
        }
    }
}

impl Counted {
    fn new(gauge: &Gauge) -> Counted {
        gauge.inc();
        Counted(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metrics::Metrics;
    use std::sync::mpsc::{self, Receiver, Sender};

    fn known(name: &str) -> Result<Vec<IpAddr>, NoAddress> {
        assert_ne!(name, "broken", "as the test wants it");
        match name {
            "here" => Ok(vec![[127, 0, 0, 1].into()]),
            "silent" => Err(NoAddress::NoResponse),
            "unasked" => Err(NoAddress::Failed),
            "empty" => Ok(Vec::new()),
            _ => Err(NoAddress::NotFound),
        }
    }

    /// The number of a question, and how many addresses it got.
    type Found = (u32, usize);

    /// A resolver, and its results.
    struct Bench {
        resolver: Resolver,
        sender: Sender<Found>,
        results: Receiver<Found>,
        asked: u32,
    }

    impl Bench {
        fn new() -> Bench {
            let (sender, results) = mpsc::channel();
            Bench {
                resolver: Resolver::new(known, Metrics::new("echo").series()),
                sender,
                results,
                asked: 0,
            }
        }

        fn ask(&mut self, tenant: u64, name: &str) -> Option<Asked> {
            let (number, sender) = (self.asked, self.sender.clone());
            self.asked += 1;
            self.resolver.ask(tenant, name, move |found| {
                sender.send((number, found.len())).expect("the test waits");
            })
        }

        fn results(&self) -> Vec<Found> {
            let mut results: Vec<_> = self.results.try_iter().collect();
            results.sort_unstable();
            results
        }

        fn is_empty(&self) -> bool {
            self.resolver.open.lock().is_empty()
        }
    }

    /// Mutations: an outcome that is not counted, or taken for another one; a gauge that a task
    /// does not leave.
    #[test]
    fn each_look_up_is_counted_once_by_its_outcome() {
        let mut bench = Bench::new();
        let series = bench.resolver.series.clone();
        let threads = bench.resolver.threads().clone();
        let names = ["here", "nowhere", "empty", "silent", "unasked", "broken"];
        let asked = names.map(|name| bench.ask(1, name).expect("room"));
        let joined = bench.ask(1, "here");
        drop(bench.ask(1, "withdrawn"));
        let gauges = || (series.waiting.get(), series.busy.get());
        assert_eq!(gauges(), (7, 0));
        assert!(threads.run_one());
        assert_eq!(gauges(), (6, 0));
        while threads.run_one() {}
        threads.close();
        assert!(bench.ask(1, "refused").is_none());
        assert_eq!(gauges(), (0, 0));
        let counts = LookUpOutcome::ALL.map(|outcome| series.look_ups.get(outcome).get());
        assert_eq!(counts, [1, 2, 1, 2, 1, 1]);
        drop((asked, joined));
    }

    #[test]
    fn each_question_has_one_result_and_a_withdrawn_one_is_not_asked() {
        let mut bench = Bench::new();
        let kept = ["here", "nowhere", "broken"].map(|name| bench.ask(1, name).expect("room"));
        drop(bench.ask(1, "withdrawn"));
        let threads = bench.resolver.threads().clone();
        while threads.run_one() {}
        assert_eq!(bench.results(), [(0, 1), (1, 0), (2, 0)]);
        let figures = threads.figures();
        assert_eq!(
            (figures.done, figures.unwanted, figures.panicked),
            (2, 1, 1)
        );
        let late = bench.ask(1, "here");
        threads.close();
        assert_eq!(bench.results(), [(4, 0)]);
        assert!(bench.ask(1, "here").is_none(), "closed");
        assert!(bench.is_empty());
        drop((kept, late));
    }

    #[test]
    fn a_tenant_that_asks_for_a_name_again_joins_the_look_up() {
        let mut bench = Bench::new();
        let threads = bench.resolver.threads().clone();
        let first = bench.ask(1, "here");
        let second = bench.ask(1, "here").expect("it joins");
        let other = bench.ask(2, "here");
        // Nor does it end with the question that began it.
        drop(first);
        assert_eq!(threads.figures().waiting, 2, "one for each tenant");
        assert!(threads.run_one());
        assert_eq!(bench.results(), [(1, 1)], "only the first tenant's");
        assert!(threads.run_one());
        assert_eq!(bench.results(), [(2, 1)]);
        let again = bench.ask(1, "here");
        assert!(threads.run_one(), "a result is not remembered");
        assert_eq!(bench.results(), [(3, 1)]);
        assert!(bench.is_empty());
        drop((second, other, again));
    }

    /// Mutations: `take` without its look at the text; `is_wanted` that leaves the name open.
    #[test]
    fn a_look_up_that_ends_has_no_question_of_the_next_one() {
        let mut bench = Bench::new();
        let threads = bench.resolver.threads().clone();
        drop(bench.ask(1, "here"));
        let ended = threads.take_one().expect("a task");
        assert!(!ended.is_wanted());
        let next = bench.ask(1, "here").expect("another look-up");
        drop(ended);
        assert!(bench.results().is_empty());
        assert!(threads.run_one());
        assert_eq!(bench.results(), [(1, 1)]);
        drop(next);
    }

    /// The questions that joined, and were withdrawn, take no memory.
    #[test]
    fn withdrawn_questions_of_one_name_do_not_pile_up() {
        let mut bench = Bench::new();
        let kept = bench.ask(1, "here");
        for _ in 0..1_000 {
            drop(bench.ask(1, "here"));
        }
        let most = bench.resolver.open.lock().values().map(Vec::len).max();
        assert_eq!(most, Some(2), "the first one and the last");
        drop(kept);
    }

    #[test]
    fn names_that_find_no_place_are_refused_at_once() {
        let mut bench = Bench::new();
        let mut asked = Vec::new();
        while let Some(one) = bench.ask(1, &format!("name-{}", asked.len())) {
            asked.push(one);
        }
        let half = limits::WAITING_NAMES_MAX / 2;
        assert_eq!(asked.len(), half, "one tenant gets half");
        assert!(
            bench.ask(1, "name-0").is_some(),
            "it joins, and needs no place"
        );
        assert!(bench.ask(2, "here").is_some(), "another one has a place");
        assert_eq!(bench.resolver.open.lock().len(), half + 1);
        assert!(bench.results().is_empty(), "a refusal is known at once");
    }
}
