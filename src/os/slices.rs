//! Threads that compute beside a reactor, in slices: each offers its core several times per
//! millisecond.
//!
//! Two threads that want one core take turns, but an ordinary kernel changes between them only when
//! one of them waits, or at its next tick: every 4 ms at 250 Hz. A reactor that has to wait for one
//! such turn is late for all of its clients, however small the other thread's share is. A thread
//! that calls sched_yield(2) ends its turn itself. On a core that no other thread wants, the call
//! returns at once.
//!
//! Work that can count its steps calls [`offer`] itself, as SQLite does. Other work has no places
//! of its own for that: it is spent in a JSON parser, in zlib or in a tokenizer. So a timer
//! interrupts it, and the handler of the timer's signal offers the core. Go's runtime interrupts
//! its goroutines in the same way, by the same signal (SIGURG, which nothing else sends here, and
//! which is ignored where no handler is set).
//!
//! Each signal starts the timer again, so a thread that waits for its core gets one and not
//! thousands: the kernel wakes the thread that reads a signalfd(2) for each signal of any thread.
//!
//! # What the handler may do
//!
//! It runs between any two instructions of its thread. So it takes no lock, allocates nothing, and
//! calls clock_gettime(2) and timer_settime(2), which signal-safety(7) allows, and sched_yield(2),
//! which is a bare system call. None of them changes `errno`, since none can fail here. It keeps
//! its state in thread-local variables without initialisers or destructors.
//!
//! # Invariants
//!
//!  1. The timer runs only within [`Slices::during`], also if the work panics. That work never
//!     sleeps: the signal would cut a sleep in a library short, such as SQLite's when another
//!     process holds the lock.
//!  2. A thread that was interrupted has its turn first: it offers its core only after it has run
//!     for [`SLICE_TIME_MIN`] since it did last. Otherwise a signal that came while it waited for
//!     the core would cost it the turn.
//!
//! [`SLICE_TIME_MIN`]: limits::SLICE_TIME_MIN

use std::cell::Cell;
use std::mem;
use std::ptr;
use std::sync::Once;
use std::time::Duration;

use super::process::thread_cpu_time;
use crate::limits::os as limits;

const SIGNAL: libc::c_int = libc::SIGURG;

thread_local! {
    /// The CPU time, in nanoseconds, at which this thread has last offered its core.
    static OFFERED_AT: Cell<u64> = const { Cell::new(0) };
    /// How often it has.
    static OFFERS: Cell<u64> = const { Cell::new(0) };
    /// The timer that the handler starts again; `None` outside [`Slices::during`]. A null pointer
    /// is a timer like all others: the first of a process.
    static RUNNING: Cell<Option<libc::timer_t>> = const { Cell::new(None) };
}

/// The timer of the thread that created it.
#[derive(Debug)]
pub struct Slices {
    /// `None`: the kernel had none left. A raw pointer, so the value stays on its thread.
    timer: Option<libc::timer_t>,
}

impl Slices {
    /// Creates the calling thread's timer, which does not run yet. The kernel has none left if the
    /// user's signals are used up (`RLIMIT_SIGPENDING`); the work then has the kernel's turns.
    pub fn new() -> Slices {
        static HANDLER: Once = Once::new();
        HANDLER.call_once(set_handler);
        // SAFETY: a sigevent is numbers and a pointer, for which zeros are valid values.
        let mut event: libc::sigevent = unsafe { mem::zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = SIGNAL;
        // SAFETY: gettid(2) only returns a number.
        event.sigev_notify_thread_id = unsafe { libc::gettid() };
        let mut timer: libc::timer_t = ptr::null_mut();
        // SAFETY: both pointers are to variables of this stack, of the types that timer_create(2)
        // asks for, and the signal has a handler.
        let status = unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, &mut timer) };
        Slices {
            timer: (status == 0).then_some(timer),
        }
    }

    /// Does this work, which computes and never sleeps, and offers the core meanwhile.
    pub fn during<R>(&self, work: impl FnOnce() -> R) -> R {
        let _running = Running::start(self);
        work()
    }
}

impl Default for Slices {
    fn default() -> Slices {
        Slices::new()
    }
}

impl Drop for Slices {
    fn drop(&mut self) {
        if let Some(timer) = self.timer {
            // SAFETY: the timer exists, and nothing uses it after this.
            unsafe { libc::timer_delete(timer) };
        }
    }
}

/// A timer that runs; dropping this stops it.
struct Running<'a>(&'a Slices);

impl Running<'_> {
    fn start(slices: &Slices) -> Running<'_> {
        RUNNING.set(slices.timer);
        if let Some(timer) = slices.timer {
            start(timer, limits::SLICE_INTERVAL);
        }
        Running(slices)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        // First: a signal between the two would start the timer again.
        RUNNING.set(None);
        if let Some(timer) = self.0.timer {
            start(timer, Duration::ZERO);
        }
    }
}

/// Lets the timer expire once, after this time; never for a time of zero.
fn start(timer: libc::timer_t, after: Duration) {
    let never = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let setting = libc::itimerspec {
        it_interval: never,
        it_value: libc::timespec {
            tv_nsec: after.subsec_nanos() as libc::c_long,
            ..never
        },
    };
    // SAFETY: the timer exists: only its `Slices` deletes it, after the last `Running`. The setting
    // is initialised, and the old one is not wanted. So the call cannot fail.
    unsafe { libc::timer_settime(timer, 0, &setting, ptr::null_mut()) };
}

fn set_handler() {
    // SAFETY: a sigaction is numbers, a set of signals and a pointer, for which zeros are valid.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    action.sa_sigaction = handle_signal as extern "C" fn(libc::c_int) as libc::sighandler_t;
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: `handle_signal` has the type of a handler without `SA_SIGINFO`, and keeps to what a
    // handler may do (see the file's head). The old action is not wanted.
    unsafe { libc::sigaction(SIGNAL, &action, ptr::null_mut()) };
}

extern "C" fn handle_signal(_signal: libc::c_int) {
    offer();
    if let Some(timer) = RUNNING.get() {
        start(timer, limits::SLICE_INTERVAL);
    }
}

/// Offers the calling thread's core to others, if the thread has run for
/// [`SLICE_TIME_MIN`](limits::SLICE_TIME_MIN) since it did last. Takes a third of a microsecond for
/// the clock.
pub fn offer() {
    let nanos = || u64::try_from(thread_cpu_time().as_nanos()).unwrap_or(0);
    let has_run = nanos().saturating_sub(OFFERED_AT.get());
    if has_run < limits::SLICE_TIME_MIN.as_nanos() as u64 {
        return;
    }
    // SAFETY: sched_yield(2) takes nothing and always succeeds.
    unsafe { libc::sched_yield() };
    OFFERED_AT.set(nanos());
    OFFERS.set(OFFERS.get() + 1);
}

/// Returns how often the calling thread has offered its core.
#[cfg(test)]
pub fn offers() -> u64 {
    OFFERS.get()
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::time::Instant;

    use super::*;

    /// Far above the expected time; reached only by a failure.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// Computes until the thread has offered its core so often.
    fn compute_until(count: u64) {
        let end = Instant::now() + PATIENCE;
        while offers() < count {
            assert!(Instant::now() < end, "{} offers", offers());
        }
    }

    /// Mutations: no `start` in `Running::start`, or none in the handler; `sched_yield` and its
    /// count left out; a handler that offers the core at each signal (the second assertion).
    #[test]
    fn a_thread_that_computes_offers_its_core_after_each_slice() {
        let start = thread_cpu_time();
        Slices::new().during(|| compute_until(20));
        let most = (thread_cpu_time() - start).div_duration_f64(limits::SLICE_TIME_MIN);
        assert!(
            offers() as f64 <= most,
            "{} offers, at most {most}",
            offers()
        );
    }

    /// Mutation: `drop` of `Running` that leaves `RUNNING` as it is, or the timer.
    #[test]
    fn the_timer_runs_only_while_there_is_work() {
        let slices = Slices::new();
        for _ in 0..2 {
            let panicked = catch_unwind(AssertUnwindSafe(|| {
                slices.during(|| {
                    compute_until(offers() + 1);
                    panic!("as a task may");
                });
            }));
            assert!(panicked.is_err());
            let (count, start) = (offers(), thread_cpu_time());
            while thread_cpu_time() - start < 20 * limits::SLICE_INTERVAL {}
            assert_eq!(offers(), count);
        }
    }

    /// Each thread's timer interrupts that thread.
    ///
    /// Mutation: `SIGEV_SIGNAL`, which interrupts any thread of the process.
    #[test]
    fn other_threads_are_not_interrupted() {
        let slices = Slices::new();
        slices.during(|| {
            let other = std::thread::spawn(|| {
                let start = thread_cpu_time();
                while thread_cpu_time() - start < 20 * limits::SLICE_INTERVAL {}
                offers()
            });
            compute_until(3);
            assert_eq!(other.join().unwrap(), 0);
        });
    }
}
