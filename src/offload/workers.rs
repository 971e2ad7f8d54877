//! A few threads that do the work a reactor must not do itself, because it takes milliseconds.
//!
//! Owns the waiting tasks, in a [`FairQueue`], and the loop that a worker's thread runs; the
//! supervisor starts the threads. One pool serves the whole daemon: reactors send it bodies, the
//! engine prompts.
//!
//! ```text
//!   reactor, engine ── submit ──> [ FairQueue ] ── work ──> Task::run ──> the owner's mailbox
//!                        │ Full                     │                            ^
//!                        v                          │ no longer wanted,          │
//!                  the task comes back              v panicked, closed           │
//!                                               its drop answers ────────────────┘
//! ```
//!
//! # The rules of a task
//!
//! A task owns everything that it needs, and the way to its owner's mailbox. It answers exactly
//! once: by `run`, or by its `Drop` if it was dropped without a run or in the middle of one. So an
//! owner gets its answer also if a task panics, or when the pool closes. A task never waits.
//!
//! # Why no wake-up is lost
//!
//! `asleep` counts the threads that wait for a task, and is changed under the lock of the queue. A
//! thread looks into the queue and counts itself under one lock; the condition variable releases
//! that lock and waits in one step. So a task that comes later finds the count, and wakes one
//! thread. If no thread sleeps, none needs waking: each looks into the queue again before it
//! sleeps. This spares the system call of a notification while the workers are busy. The model test
//! tries every interleaving.
//!
//! # Tasks that wait
//!
//! A pool may have [`Shares`]: its tasks wait for another machine, as a look-up does for a name
//! server. Then a tenant's task stays in the queue while that tenant has its share of the threads,
//! and other threads sleep beside it. A task that ends may leave room for two others, of which its
//! thread takes one. So a thread that has taken a task wakes the next one if anything is left; that
//! one looks, and sleeps again if it may not take it.
//!
//! # Invariants
//!
//!  1. A task that was admitted runs once or is dropped once. Never under the lock.
//!  2. When all threads sleep, no task waits that may run, or a thread is about to wake.
//!  3. After `close` nothing is admitted and nothing waits; threads end after their present task.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::PoisonError;
use std::time::Duration;

use super::fair_queue::{Bounds, FairQueue};
use super::shares::Shares;
use super::sync::{Condvar, Mutex, MutexGuard};
use crate::limits::offload as limits;

/// The thread on which [`Workers::work`] runs.
pub trait Thread {
    /// Returns the CPU time that it has used so far.
    fn cpu_time(&self) -> Duration;

    /// Runs a task, which computes and does not wait.
    fn run(&self, task: Box<dyn Task>) {
        task.run();
    }
}

/// One that only has a clock.
impl<F: Fn() -> Duration> Thread for F {
    fn cpu_time(&self) -> Duration {
        self()
    }
}

/// A piece of work for a thread other than the owner's. See the file's head for its rules.
pub trait Task: Send {
    /// Returns whether the owner still waits for the result. Asked before `run`.
    fn is_wanted(&self) -> bool;

    fn run(self: Box<Self>);
}

/// The pool has no place left for this tenant; the task comes back.
#[derive(Debug)]
pub struct Full<T>(pub T);

/// See the file's head.
pub struct Workers {
    state: Mutex<State>,
    task_came: Condvar,
}

struct State {
    queue: FairQueue<Box<dyn Task>>,
    /// Of the threads, if tasks may wait.
    shares: Option<Shares>,
    /// Threads that wait to be woken.
    asleep: usize,
    is_open: bool,
    figures: Figures,
}

/// Numbers for `/metrics`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Figures {
    /// Tasks that wait, and the bytes that they declare.
    pub waiting: usize,
    pub waiting_bytes: u64,
    /// Totals since the start: tasks that ran to their end, that were dropped because their owner
    /// had left, that panicked, that found no place.
    pub done: u64,
    pub unwanted: u64,
    pub panicked: u64,
    pub refused: u64,
    /// CPU time of all of them.
    pub busy: Duration,
}

impl Default for Workers {
    fn default() -> Workers {
        Workers::new(Bounds {
            items: limits::WAITING_TASKS_MAX,
            bytes: limits::WAITING_TASKS_BYTES_MAX,
            visit_bytes: limits::WORKER_VISIT_BYTES,
            item_bytes_min: limits::TASK_BYTES_MIN,
        })
    }
}

impl Workers {
    /// A pool for tasks that never wait.
    pub fn new(bounds: Bounds) -> Workers {
        Workers::sharing(bounds, None)
    }

    /// A pool whose threads are divided, if tasks may wait.
    pub fn sharing(bounds: Bounds, shares: Option<Shares>) -> Workers {
        Workers {
            state: Mutex::new(State {
                queue: FairQueue::new(bounds),
                shares,
                asleep: 0,
                is_open: true,
                figures: Figures::default(),
            }),
            task_came: Condvar::new(),
        }
    }

    // ---- getters ----

    pub fn figures(&self) -> Figures {
        let state = self.lock();
        Figures {
            waiting: state.queue.waiting(),
            waiting_bytes: state.queue.bytes(),
            ..state.figures
        }
    }

    // ---- commands ----

    /// Puts a task into its tenant's line. `bytes` is what it works on: tenants that wait at the
    /// same time get the same number of bytes done.
    pub fn submit<T: Task + 'static>(
        &self,
        tenant: u64,
        bytes: u32,
        task: T,
    ) -> Result<(), Full<T>> {
        // Allocates before the lock is taken.
        let task = Box::new(task);
        let mut state = self.lock();
        if !state.is_open || !state.queue.admits(tenant, bytes) {
            state.figures.refused += 1;
            drop(state);
            return Err(Full(*task));
        }
        state.queue.push(tenant, bytes, task);
        let must_wake = state.asleep > 0;
        drop(state);
        if must_wake {
            self.task_came.notify_one();
        }
        Ok(())
    }

    /// Runs tasks on the calling thread, which is `thread`, until the pool closes.
    pub fn work(&self, thread: impl Thread) {
        while let Some((tenant, task)) = self.wait_for_task() {
            self.execute(tenant, task, &thread);
        }
    }

    /// Runs the next task on the calling thread, if one waits: a pool without threads, for tests.
    #[cfg(test)]
    pub fn run_one(&self) -> bool {
        let next = self.lock().take_next();
        let is_some = next.is_some();
        if let Some((tenant, task)) = next {
            self.execute(tenant, task, &Duration::default);
        }
        is_some
    }

    /// Removes the next task, if one waits: the caller runs it when it likes, or drops it. It holds
    /// no thread.
    #[cfg(test)]
    pub fn take_one(&self) -> Option<Box<dyn Task>> {
        self.lock().queue.pop()
    }

    /// Drops all waiting tasks and ends the threads.
    pub fn close(&self) {
        let mut state = self.lock();
        state.is_open = false;
        let left = state.queue.take_all();
        drop(state);
        self.task_came.notify_all();
        // Their drops answer their owners, without the lock.
        drop(left);
    }

    /// Returns the next task and its tenant. `None`: the pool is closed.
    fn wait_for_task(&self) -> Option<(u64, Box<dyn Task>)> {
        let mut state = self.lock();
        loop {
            if !state.is_open {
                return None;
            }
            if let Some(next) = state.take_next() {
                let must_wake = state.must_wake_another();
                drop(state);
                if must_wake {
                    self.task_came.notify_one();
                }
                return Some(next);
            }
            state.asleep += 1;
            let woken = self.task_came.wait(state);
            state = woken.unwrap_or_else(PoisonError::into_inner);
            state.asleep -= 1;
        }
    }

    fn execute(&self, tenant: u64, task: Box<dyn Task>, thread: &impl Thread) {
        let start = thread.cpu_time();
        // A task that panics has answered by its drop; nothing of it is used again.
        let ran = catch_unwind(AssertUnwindSafe(|| {
            let is_wanted = task.is_wanted();
            if is_wanted {
                thread.run(task);
            }
            is_wanted
        }));
        let spent = thread.cpu_time().saturating_sub(start);
        if ran.is_err() {
            log::error!("a worker's task panicked, see above; its request fails");
        }
        let mut state = self.lock();
        if let Some(shares) = &mut state.shares {
            shares.give_back(tenant);
        }
        let figures = &mut state.figures;
        match ran {
            Ok(true) => figures.done += 1,
            Ok(false) => figures.unwanted += 1,
            Err(_) => figures.panicked += 1,
        }
        figures.busy += spent;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code of a task runs under the lock, and the queue's own does not panic half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Removes the task whose turn it is, among those that may run now.
    fn take_next(&mut self) -> Option<(u64, Box<dyn Task>)> {
        let State { queue, shares, .. } = self;
        let Some(shares) = shares else {
            return queue.pop_of(|_| true);
        };
        let next = queue.pop_of(|tenant| shares.admits(tenant))?;
        shares.take(next.0);
        Some(next)
    }

    /// Returns whether a thread that has taken a task must wake another one. Without shares, each
    /// task has woken a thread of its own.
    fn must_wake_another(&self) -> bool {
        self.shares.is_some() && self.asleep > 0 && self.queue.waiting() > 0
    }
}
