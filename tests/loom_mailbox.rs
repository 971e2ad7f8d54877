//! Checks every interleaving of the mailbox's threads, with loom.
//!
//! The source is the daemon's own file, compiled against loom's mutex instead of the standard
//! library's. The bell is modelled after the kernel's `eventfd(2)`: a count that a write raises and
//! that a sleeping reader waits for.

mod sync {
    pub use loom::sync::{Arc, Mutex, MutexGuard};
}

#[path = "../src/offload/mailbox.rs"]
mod mailbox;

use std::sync::PoisonError;

use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;
use mailbox::{Doorbell, Receiver, mailbox};

const KEPT: usize = 8;

/// An `eventfd`: rings are counted, and a sleeper sleeps until there is one.
#[derive(Clone)]
struct Bell(Arc<(Mutex<Rings>, Condvar)>);

#[derive(Default)]
struct Rings {
    pending: usize,
    total: usize,
}

impl Bell {
    fn new() -> Bell {
        Bell(Arc::new((Mutex::new(Rings::default()), Condvar::new())))
    }

    /// Models `epoll_wait`: returns once the bell has rung since the last time. If it never rings,
    /// loom finds that every thread is blocked and fails the model: a lost wake-up.
    fn sleep(&self) {
        let (rings, rung) = &*self.0;
        let mut rings = rings.lock().unwrap_or_else(PoisonError::into_inner);
        while rings.pending == 0 {
            rings = rung.wait(rings).unwrap_or_else(PoisonError::into_inner);
        }
        rings.pending = 0;
    }

    fn total(&self) -> usize {
        let (rings, _) = &*self.0;
        rings.lock().unwrap_or_else(PoisonError::into_inner).total
    }
}

impl Doorbell for Bell {
    fn ring(&self) {
        let (rings, rung) = &*self.0;
        let mut rings = rings.lock().unwrap_or_else(PoisonError::into_inner);
        rings.pending += 1;
        rings.total += 1;
        rung.notify_one();
    }
}

/// The reactor: sleeps if it may, then takes all items.
fn receive(bell: &Bell, receiver: &mut Receiver<u32>, count: usize) -> Vec<u32> {
    let mut received = Vec::new();
    let mut batch = Vec::new();
    while received.len() < count {
        if receiver.sleep() {
            bell.sleep();
        }
        receiver.take(&mut batch);
        assert!(!batch.is_empty(), "woken up for nothing");
        received.append(&mut batch);
    }
    received
}

#[test]
fn every_sender_wakes_a_sleeping_reactor() {
    loom::model(|| {
        let bell = Bell::new();
        let (sender, mut receiver) = mailbox(Box::new(bell.clone()), KEPT);
        let other = sender.clone();
        let first = thread::spawn(move || sender.post(1));
        let second = thread::spawn(move || other.post(2));
        let mut received = receive(&bell, &mut receiver, 2);
        received.sort();
        assert_eq!(received, [1, 2]);
        assert!(bell.total() <= 2);
        first.join().unwrap();
        second.join().unwrap();
    });
}

#[test]
fn items_of_one_sender_keep_their_order() {
    loom::model(|| {
        let bell = Bell::new();
        let (sender, mut receiver) = mailbox(Box::new(bell.clone()), KEPT);
        let producer = thread::spawn(move || {
            sender.post(1);
            sender.post_all([2, 3]);
            sender.post(4);
        });
        assert_eq!(receive(&bell, &mut receiver, 4), [1, 2, 3, 4]);
        producer.join().unwrap();
    });
}

#[test]
fn a_reactor_that_takes_without_having_been_rung_loses_nothing() {
    loom::model(|| {
        let bell = Bell::new();
        let (sender, mut receiver) = mailbox(Box::new(bell.clone()), KEPT);
        let producer = thread::spawn(move || {
            sender.post(1);
            sender.post(2);
        });
        // Another event began this turn.
        let mut early = Vec::new();
        receiver.take(&mut early);
        let mut received = early.clone();
        let missing = 2 - received.len();
        received.extend(receive(&bell, &mut receiver, missing));
        assert_eq!(received, [1, 2]);
        producer.join().unwrap();
    });
}

#[test]
fn awake_reactor_gets_no_ring_and_does_not_sleep_while_items_wait() {
    loom::model(|| {
        let bell = Bell::new();
        let (sender, mut receiver) = mailbox(Box::new(bell.clone()), KEPT);
        let mut batch = Vec::new();
        assert!(receiver.sleep());
        // Another event began this turn: items posted within it need no bell.
        receiver.take(&mut batch);
        let producer = thread::spawn(move || sender.post(1));
        producer.join().unwrap();
        assert!(!receiver.sleep());
        receiver.take(&mut batch);
        assert_eq!((batch, bell.total()), (vec![1], 0));
    });
}

#[test]
fn a_batch_rings_once_and_an_empty_one_not_at_all() {
    loom::model(|| {
        let bell = Bell::new();
        let (sender, mut receiver) = mailbox(Box::new(bell.clone()), KEPT);
        assert!(receiver.sleep());
        sender.post_all([]);
        assert_eq!(bell.total(), 0);
        for batch in 1..=2 {
            assert!(receiver.sleep());
            sender.post_all([1, 2, 3]);
            sender.post(4);
            assert_eq!(bell.total(), batch);
            let mut items = vec![0];
            receiver.take(&mut items);
            assert_eq!(items, [0, 1, 2, 3, 4]);
        }
    });
}

#[test]
fn what_comes_after_the_receiver_is_dropped() {
    loom::model(|| {
        let bell = Bell::new();
        let (sender, receiver) = mailbox(Box::new(bell.clone()), KEPT);
        let item = Arc::new(());
        let (early, late) = (item.clone(), item.clone());
        let producer = thread::spawn(move || {
            sender.post(early);
            sender.post_all([late]);
            sender
        });
        drop(receiver);
        let sender = producer.join().unwrap();
        assert_eq!(Arc::strong_count(&item), 1, "an item outlived its receiver");
        drop(sender);
    });
}

#[test]
fn what_is_offered_is_taken_or_left_at_the_close_or_given_back() {
    loom::model(|| {
        let (sender, mut receiver) = mailbox(Box::new(Bell::new()), KEPT);
        let producer = thread::spawn(move || sender.offer(7));
        let mut received = Vec::new();
        receiver.take(&mut received);
        receiver.close(&mut received);
        match producer.join().unwrap() {
            Ok(()) => assert_eq!(received, [7]),
            Err(item) => assert_eq!((item, received), (7, vec![])),
        }
    });
}

#[test]
fn buffers_shrink_after_a_burst() {
    loom::model(|| {
        let (sender, mut receiver) = mailbox(Box::new(Bell::new()), KEPT);
        let mut batch = Vec::new();
        sender.post_all(0..100 * KEPT);
        receiver.take(&mut batch);
        assert_eq!(batch.len(), 100 * KEPT);
        for _ in 0..2 {
            batch.clear();
            receiver.take(&mut batch);
        }
        assert!(batch.capacity() < 100 * KEPT);
    });
}
