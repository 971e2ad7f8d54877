//! Formatted lines on their way from the threads that log to the log's thread.
//!
//! # The mechanism
//!
//! ```text
//!   a reactor                                      the log's thread
//!                                                  wait: "nothing here, wake me at 1 byte"
//!   push ---> [ line line line ]  (one buffer,
//!      '- enough to wake it?       one mutex) ---> take: the whole buffer changes hands
//!                                                  write(2)
//!             [ ]  <- the empty one takes its place
//! ```
//!
//! A line is one copy into a buffer that is there already: no allocation, no system call. To wake a
//! thread takes a system call, so the thread says how much must wait before it wants to be woken:
//! one byte when it is idle, a batch when it lingers, nothing when it is busy or its output
//! refuses. The push that reaches the mark wakes it, and no other does.
//!
//! **Why no wake-up is lost.** The mark and the lines are under one lock. A line that comes first
//! is found before the wait begins; one that comes later finds the mark.
//!
//! **Why a mutex does not block a reactor.** It is held for a copy of one line, or a swap of two
//! buffers, never across a system call: the lines are formatted before it is taken, and the thread
//! is woken and memory is freed after it is released.
//!
//! # Invariants
//!
//!  1. At most `limits::LOG_QUEUE_BYTES_MAX` wait. A line that does not fit is dropped and counted.
//!  2. Lines are taken in the order in which they were pushed, each once.
//!  3. A push wakes only a thread that waits, and at most once for each wait.
//!
//! Mutations that the tests below catch: a mark that stays after it was reached, no bound, a wait
//! without its end.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use super::output::Batch;
use crate::limits::telemetry as limits;

#[derive(Debug, Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    dropped: AtomicU64,
}

#[derive(Debug)]
struct State {
    lines: Batch,
    commands: VecDeque<Command>,
    /// The thread waits, and wants to be woken when this many bytes wait.
    wake_at: usize,
    is_closed: bool,
}

/// As a mark: the thread does not wait for lines.
pub(super) const NEVER: usize = usize::MAX;

#[derive(Debug)]
pub(super) enum Command {
    Reopen,
    /// Acknowledged once everything that was queued before is written, unless the output refuses.
    Flush(Sender<()>),
}

/// The reason why a wait ended.
#[derive(Debug)]
pub(super) enum Woken {
    /// Enough lines, or the end of the time.
    Lines,
    Command(Command),
    /// The logger is gone.
    Closed,
}

impl Default for State {
    fn default() -> State {
        State {
            lines: Batch::new(),
            commands: VecDeque::new(),
            wake_at: NEVER,
            is_closed: false,
        }
    }
}

impl Queue {
    // ---- the threads that log ----

    /// Queues one line, or drops and counts it.
    pub(super) fn push(&self, line: &[u8]) {
        if !self.wakes(line) {
            return;
        }
        self.changed.notify_one();
    }

    /// Queues one line. Returns whether the thread must be woken for it.
    fn wakes(&self, line: &[u8]) -> bool {
        let mut state = self.lock();
        if state.lines.bytes() + line.len() > limits::LOG_QUEUE_BYTES_MAX {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        state.lines.add(line);
        let wakes = state.lines.bytes() >= state.wake_at;
        if wakes {
            state.wake_at = NEVER;
        }
        wakes
    }

    /// Returns how many lines were dropped.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Queues a command. Returns false if too many wait.
    pub(super) fn command(&self, command: Command) -> bool {
        let mut state = self.lock();
        if state.commands.len() >= limits::LOG_QUEUE_COMMANDS_MAX {
            return false;
        }
        state.commands.push_back(command);
        drop(state);
        self.changed.notify_one();
        true
    }

    /// There will be no more lines.
    pub(super) fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_one();
    }

    // ---- the log's thread ----

    /// Waits for a command, for `mark` bytes of lines, or for the end of `patience`, if it has one.
    pub(super) fn wait(&self, mark: usize, patience: Option<Duration>) -> Woken {
        let end = patience.map(|patience| Instant::now() + patience);
        let mut state = self.lock();
        let woken = loop {
            if let Some(command) = state.commands.pop_front() {
                break Woken::Command(command);
            }
            if state.is_closed {
                break Woken::Closed;
            }
            if state.lines.bytes() >= mark {
                break Woken::Lines;
            }
            state.wake_at = mark;
            state = match end {
                None => self
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(end) => {
                    let rest = end.saturating_duration_since(Instant::now());
                    if rest.is_zero() {
                        break Woken::Lines;
                    }
                    let waited = self.changed.wait_timeout(state, rest);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        };
        state.wake_at = NEVER;
        woken
    }

    /// Swaps all lines into `batch`, which must be empty.
    pub(super) fn take(&self, batch: &mut Batch) {
        debug_assert!(batch.is_empty(), "what was taken before is written first");
        // Before locking: no reactor should wait while memory is freed.
        batch.shrink();
        std::mem::swap(&mut self.lock().lines, batch);
    }

    /// No code panics while it holds the lock, but a poisoned log would be worse than an odd one.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &[u8] = b"0123456789abcdef";

    /// Pushes lines, and returns how many of them would have woken the thread.
    fn wakes(queue: &Queue, lines: usize) -> usize {
        (0..lines).filter(|_| queue.wakes(LINE)).count()
    }

    fn sleep(queue: &Queue, mark: usize) {
        queue.lock().wake_at = mark;
    }

    #[test]
    fn a_wait_costs_the_threads_that_log_one_wake_up() {
        let queue = Queue::default();
        assert_eq!(wakes(&queue, 100), 0, "the thread is awake");
        let mut batch = Batch::new();
        queue.take(&mut batch);
        assert_eq!(batch.bytes(), 100 * LINE.len());

        sleep(&queue, 1);
        assert_eq!(wakes(&queue, 100), 1, "an idle thread wants the first line");

        sleep(&queue, 1_000 * LINE.len());
        assert_eq!(wakes(&queue, 899), 0, "lines wait for the batch");
        assert!(queue.wakes(LINE), "the batch is full");
        assert_eq!(wakes(&queue, 1_000), 0, "it was woken before");

        sleep(&queue, NEVER);
        assert_eq!(wakes(&queue, 1_000), 0, "the output refuses");
    }

    #[test]
    fn what_waits_is_bounded_and_the_rest_is_counted() {
        let queue = Queue::default();
        let fitting = limits::LOG_QUEUE_BYTES_MAX / LINE.len();
        wakes(&queue, fitting + 3);
        assert_eq!(queue.dropped(), 3);
        let mut batch = Batch::new();
        queue.take(&mut batch);
        assert_eq!(batch.bytes(), fitting * LINE.len());
        wakes(&queue, 1);
        assert_eq!(queue.dropped(), 3, "there is room again");
    }

    #[test]
    fn a_wait_ends_for_lines_a_command_its_time_and_the_end() {
        let queue = Queue::default();
        queue.push(LINE);
        assert!(matches!(queue.wait(1, None), Woken::Lines));
        assert!(queue.command(Command::Reopen));
        assert!(matches!(
            queue.wait(1, None),
            Woken::Command(Command::Reopen)
        ));
        let moment = Some(Duration::from_millis(1));
        assert!(matches!(queue.wait(NEVER, moment), Woken::Lines));
        assert_eq!(queue.lock().wake_at, NEVER, "it does not wait any more");
        let waits = Some(Duration::from_secs(60));
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| queue.wait(LINE.len() * 2, waits));
            queue.push(LINE);
            assert!(matches!(waiter.join().unwrap(), Woken::Lines));
        });
        queue.close();
        assert!(matches!(queue.wait(NEVER, None), Woken::Closed));
        for _ in 0..limits::LOG_QUEUE_COMMANDS_MAX {
            assert!(queue.command(Command::Reopen));
        }
        assert!(!queue.command(Command::Reopen), "commands are bounded too");
    }
}
