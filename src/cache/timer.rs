//! Acts that are due at a moment, on a thread of their own.
//!
//! A look-up or a write in the store may take as long as a disk or a server wants, and no thread of
//! the store can notice that it takes too long. This thread does. It waits for the time alone.
//!
//! Invariants:
//!  1. At most `limits::TIMED_ACTS_MAX` acts wait; others are refused.
//!  2. An act is done once, unless the thread ends before: then it is dropped.
//!  3. Acts that are due together are done in the order of their moments.

use std::cmp::Ordering as Order;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};

use crate::core::Moment;
use crate::limits::cache as limits;

/// A way to the thread, for any number of users.
#[derive(Clone)]
pub struct Timer {
    acts: Sender<Act>,
    waiting: Arc<AtomicUsize>,
}

struct Act {
    at: Moment,
    run: Box<dyn FnOnce() + Send>,
}

/// The earliest is the greatest, which is what a heap returns first.
impl Ord for Act {
    fn cmp(&self, other: &Act) -> Order {
        other.at.cmp(&self.at)
    }
}

impl PartialOrd for Act {
    fn partial_cmp(&self, other: &Act) -> Option<Order> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Act {
    fn eq(&self, other: &Act) -> bool {
        self.at == other.at
    }
}

impl Eq for Act {}

impl Timer {
    /// Has an act done at a moment, on the timer's thread: it must be quick. `false`: too many
    /// wait, or the thread has ended. Never waits.
    pub fn at(&self, at: Moment, run: impl FnOnce() + Send + 'static) -> bool {
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        let run = Box::new(run);
        let fits = before < limits::TIMED_ACTS_MAX;
        if fits && self.acts.try_send(Act { at, run }).is_ok() {
            return true;
        }
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        false
    }
}

/// The acts that wait for a test, which does them itself.
#[cfg(test)]
pub struct Acts(Receiver<Act>);

#[cfg(test)]
impl Acts {
    pub fn of_timer() -> (Timer, Acts) {
        let (acts, inbox) = bounded(limits::TIMED_ACTS_MAX);
        let timer = Timer {
            acts,
            waiting: Arc::default(),
        };
        (timer, Acts(inbox))
    }

    /// Does the next act, whatever its moment, which is returned.
    pub fn do_next(&self) -> Option<Moment> {
        let act = self.0.try_recv().ok()?;
        (act.run)();
        Some(act.at)
    }
}

/// The thread. Dropping it ends the thread and waits for that.
pub struct TimerThread {
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl TimerThread {
    pub fn start() -> std::io::Result<(TimerThread, Timer)> {
        let (acts, inbox) = bounded(limits::TIMED_ACTS_MAX);
        let (end, ended) = bounded(0);
        let timer = Timer {
            acts,
            waiting: Arc::default(),
        };
        let worker = Worker {
            inbox,
            ended,
            waiting: Arc::clone(&timer.waiting),
            acts: BinaryHeap::new(),
        };
        let thread = thread::Builder::new()
            .name("cache".into())
            .spawn(move || worker.run())?;
        let thread = TimerThread {
            end: Some(end),
            thread: Some(thread),
        };
        Ok((thread, timer))
    }
}

impl Drop for TimerThread {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the cache's thread has panicked");
        }
    }
}

/// The state of the thread.
struct Worker {
    inbox: Receiver<Act>,
    ended: Receiver<()>,
    waiting: Arc<AtomicUsize>,
    acts: BinaryHeap<Act>,
}

impl Worker {
    fn run(mut self) {
        loop {
            let now = Moment::now();
            while let Some(act) = self.pop_due(now) {
                self.waiting.fetch_sub(1, Ordering::Relaxed);
                (act.run)();
            }
            let next = self.acts.peek().map_or(Moment::NEVER, |act| act.at);
            let patience = next.since(Moment::now()).min(limits::TIMER_REST);
            let came = crossbeam_channel::select! {
                recv(self.inbox) -> act => act.ok(),
                recv(self.ended) -> _ => return,
                default(patience) => None,
            };
            self.acts.extend(came);
            // After a pause of this thread several acts are due, and came in any order.
            self.acts.extend(self.inbox.try_iter());
            if self.ended.try_recv() == Err(TryRecvError::Disconnected) {
                return;
            }
        }
    }

    fn pop_due(&mut self, now: Moment) -> Option<Act> {
        let is_due = self.acts.peek().is_some_and(|act| act.at <= now);
        is_due.then(|| self.acts.pop()).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    /// Far above the expected time; reached only by a failure.
    const PATIENCE: Duration = Duration::from_secs(30);

    /// Mutations: a heap whose greatest act is the latest; one act taken per round.
    #[test]
    fn acts_are_done_in_the_order_of_their_moments() {
        let (thread, timer) = TimerThread::start().unwrap();
        // The thread is held up in an act until all others have come.
        let ((began, begun), (let_go, held)) = (channel(), channel::<()>());
        assert!(timer.at(Moment::ZERO, move || {
            began.send(()).unwrap();
            held.recv().unwrap();
        }));
        begun.recv_timeout(PATIENCE).unwrap();
        let (sender, done) = channel();
        let now = Moment::now();
        let overdue = [3, 1, 2].map(|number| (number, Moment::from_micros(number)));
        let due = [6, 4, 5].map(|number| (number, now + Duration::from_millis(10 * number)));
        for (number, at) in overdue.into_iter().chain(due) {
            let sender = sender.clone();
            assert!(timer.at(at, move || {
                sender.send((number, at, Moment::now())).unwrap()
            }));
        }
        let_go.send(()).unwrap();
        for expected in 1..=6 {
            let (number, at, done) = done.recv_timeout(PATIENCE).unwrap();
            assert_eq!(number, expected);
            assert!(done >= at, "too early");
        }
        assert!(timer.at(Moment::NEVER, || panic!("never")));
        drop(thread);
        assert!(!timer.at(Moment::ZERO, || ()), "the thread has ended");
    }

    /// Mutation: a count that is not given back, or none at all.
    #[test]
    fn too_many_acts_are_refused_until_some_are_done() {
        let (_thread, timer) = TimerThread::start().unwrap();
        for _ in 1..limits::TIMED_ACTS_MAX {
            assert!(timer.at(Moment::NEVER, || ()));
        }
        let (sender, done) = channel();
        assert!(timer.at(Moment::ZERO, move || sender.send(()).unwrap()));
        done.recv_timeout(PATIENCE).unwrap();
        assert!(timer.at(Moment::NEVER, || ()));
        assert!(!timer.at(Moment::NEVER, || ()));
    }
}
