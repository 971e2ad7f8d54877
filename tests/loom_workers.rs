//! Checks every interleaving of the pool's threads, with loom.
//!
//! The sources are the daemon's own files, compiled against loom's mutex and condition variable. A
//! lost wake-up leaves every thread blocked, which loom reports.
//!
//! Mutation that these tests catch: `asleep` counted before the queue is looked at, under another
//! lock; `notify_one` left out if one thread sleeps; `close` without `notify_all`;
//! `execute` that gives no share back.

// The daemon uses more of these files than the model.
#![allow(dead_code)]

mod sync {
    pub use loom::sync::{Condvar, Mutex, MutexGuard};
}

#[path = "../src/offload/fair_queue.rs"]
mod fair_queue;
#[path = "../src/limits/offload.rs"]
mod offload_limits;
#[path = "../src/offload/shares.rs"]
mod shares;
#[path = "../src/offload/workers.rs"]
mod workers;

mod limits {
    pub(crate) use super::offload_limits as offload;
}

use std::time::Duration;

use fair_queue::Bounds;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;
use shares::Shares;
use workers::{Full, Task, Workers};

const BOUNDS: Bounds = Bounds {
    items: 8,
    bytes: 8_000,
    visit_bytes: 100,
    item_bytes_min: 1,
};

/// Counts its run or, without one, its drop.
struct Count {
    ran: Arc<AtomicUsize>,
    dropped: Arc<AtomicUsize>,
    is_answered: bool,
}

impl Task for Count {
    fn is_wanted(&self) -> bool {
        true
    }

    fn run(mut self: Box<Count>) {
        self.is_answered = true;
        self.ran.fetch_add(1, Ordering::SeqCst);
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        if !self.is_answered {
            self.dropped.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// `threads` workers, a task each from `senders` threads, and a close that waits for their runs if
/// `waits`. Each task is answered once.
fn check(threads: usize, senders: usize, waits: bool) {
    check_with(threads, senders, waits, || None);
}

fn check_with(threads: usize, senders: usize, waits: bool, shares: fn() -> Option<Shares>) {
    let mut model = loom::model::Builder::new();
    // Two threads that wait for each other in a loop have too many interleavings for all of them.
    model.preemption_bound = (threads > 1).then_some(2);
    model.check(move || {
        let workers = Arc::new(Workers::sharing(BOUNDS, shares()));
        let (ran, dropped) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let pool: Vec<_> = (0..threads)
            .map(|_| {
                let workers = workers.clone();
                thread::spawn(move || workers.work(Duration::default))
            })
            .collect();
        let submit = |workers: &Workers, tenant: u64| {
            let task = Count {
                ran: ran.clone(),
                dropped: dropped.clone(),
                is_answered: false,
            };
            match workers.submit(tenant, 1, task) {
                Ok(()) => 1,
                Err(Full(mut task)) => {
                    task.is_answered = true;
                    0
                }
            }
        };
        let mut admitted = 0;
        for tenant in 0..senders as u64 {
            admitted += submit(&workers, tenant);
        }
        while waits && ran.load(Ordering::SeqCst) < admitted {
            thread::yield_now();
        }
        workers.close();
        pool.into_iter().for_each(|thread| thread.join().unwrap());
        let (ran, dropped) = (ran.load(Ordering::SeqCst), dropped.load(Ordering::SeqCst));
        assert_eq!(ran + dropped, admitted, "a task was lost");
        assert!(!waits || dropped == 0);
        assert_eq!(workers.figures().done, ran as u64);
    });
}

#[test]
fn a_task_wakes_a_sleeping_worker() {
    check(1, 2, true);
}

#[test]
fn two_workers_share_the_tasks() {
    check(2, 2, true);
}

#[test]
fn a_close_ends_all_threads_and_answers_all_tasks() {
    check(2, 1, false);
}

/// One thread is kept for a tenant that has no task, and each end of a task makes room for one.
#[test]
fn a_task_that_its_share_has_held_up_runs_in_the_end() {
    check_with(2, 2, true, || Some(Shares::new(2, 9)));
}
