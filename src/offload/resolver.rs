//! Resolves names off the reactors: `getaddrinfo(3)` has no form that does not wait.
//!
//! Owns the questions, which wait in a pool of threads of their own ([`Workers`]): fair between
//! tenants, bounded, and apart from the workers, which would stand still for seconds behind a
//! silent name server. It decides nothing about the addresses.
//!
//! A question that its asker has dropped is not asked. Each question has one result, also if
//! it was not asked: see the rules of a task in [`super::workers`].

use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::{Arc, Weak};

use super::fair_queue::Bounds;
use super::workers::{Task, Workers};
use crate::limits::outbound as limits;

/// Looks up a name, and waits for the result: the system's resolver, or one of a test's own.
pub type LookUp = fn(&str) -> io::Result<Vec<IpAddr>>;

/// The addresses of a name; none if there are none, or no server knew them in time.
pub type Addresses = Vec<IpAddr>;

/// See the file's head. A clone asks the same threads.
#[derive(Clone)]
pub struct Resolver {
    threads: Arc<Workers>,
    look_up: LookUp,
}

/// Keeps a question alive: dropping it withdraws the question.
pub struct Asked(Arc<()>);

struct Question<A: FnOnce(Addresses)> {
    name: Box<str>,
    look_up: LookUp,
    asker: Weak<()>,
    answer: Option<A>,
}

impl Resolver {
    pub fn new(look_up: LookUp) -> Resolver {
        let threads = Workers::new(Bounds {
            items: limits::WAITING_NAMES_MAX,
            bytes: limits::WAITING_NAMES_MAX as u64,
            visit_bytes: 1,
            item_bytes_min: 1,
        });
        Resolver {
            threads: Arc::new(threads),
            look_up,
        }
    }

    /// Returns the pool, for its threads.
    pub fn threads(&self) -> &Arc<Workers> {
        &self.threads
    }

    /// Asks for the addresses of a name. `answer` is called once on another thread, unless the
    /// result here is `None`: too many names wait.
    pub fn ask(
        &self,
        tenant: u64,
        name: &str,
        answer: impl FnOnce(Addresses) + Send + 'static,
    ) -> Option<Asked> {
        let asked = Asked(Arc::new(()));
        let question = Question {
            name: name.into(),
            look_up: self.look_up,
            asker: Arc::downgrade(&asked.0),
            answer: Some(answer),
        };
        match self.threads.submit(tenant, 1, question) {
            Ok(()) => Some(asked),
            Err(full) => {
                let mut question = full.0;
                // The caller knows at once.
                question.answer = None;
                None
            }
        }
    }
}

impl<A: FnOnce(Addresses) + Send> Task for Question<A> {
    fn is_wanted(&self) -> bool {
        self.asker.strong_count() > 0
    }

    fn run(mut self: Box<Self>) {
        let found = (self.look_up)(&self.name).unwrap_or_default();
        if let Some(answer) = self.answer.take() {
            answer(found);
        }
    }
}

impl<A: FnOnce(Addresses)> Drop for Question<A> {
    fn drop(&mut self) {
        if let Some(answer) = self.answer.take() {
            answer(Vec::new());
        }
    }
}

/// Asks the system's resolver: files, DNS, and whatever else nsswitch.conf(5) names.
pub fn look_up(name: &str) -> io::Result<Vec<IpAddr>> {
    let found = (name, 0).to_socket_addrs()?;
    Ok(found.map(|address| address.ip()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    fn known(name: &str) -> io::Result<Vec<IpAddr>> {
        match name {
            "here" => Ok(vec![[127, 0, 0, 1].into()]),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// Mutations that this test catches: a question without its drop, `is_wanted` that is true.
    #[test]
    fn each_question_is_answered_once_and_a_withdrawn_one_is_not_asked() {
        let resolver = Resolver::new(known);
        let (sender, answers) = mpsc::channel();
        let ask = |name: &'static str| {
            let sender = sender.clone();
            let asked = resolver.ask(1, name, move |found| {
                sender.send((name, found.len())).expect("the test waits");
            });
            asked.expect("there is room")
        };
        let kept = [ask("here"), ask("nowhere")];
        drop(ask("withdrawn"));
        while resolver.threads().run_one() {}
        let late = ask("here");
        resolver.threads().close();
        let mut found: Vec<_> = answers.try_iter().collect();
        found.sort_unstable();
        let expected = [("here", 0), ("here", 1), ("nowhere", 0), ("withdrawn", 0)];
        assert_eq!(found, expected);
        drop((kept, late));
    }

    #[test]
    fn names_that_find_no_place_are_refused_at_once() {
        let resolver = Resolver::new(known);
        let mut asked = Vec::new();
        while let Some(one) = resolver.ask(1, "here", |_| ()) {
            asked.push(one);
        }
        assert_eq!(
            asked.len(),
            limits::WAITING_NAMES_MAX / 2,
            "one tenant gets half"
        );
        assert!(
            resolver.ask(2, "here", |_| ()).is_some(),
            "another one has a place"
        );
        let _ = resolver.ask(1, "here", |_| panic!("it was refused"));
    }

    #[test]
    fn the_system_knows_this_machine() {
        let found = look_up("localhost").expect("a name of this machine");
        assert!(
            found.iter().all(IpAddr::is_loopback) && !found.is_empty(),
            "{found:?}"
        );
    }
}
