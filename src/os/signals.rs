//! Signals as events of a descriptor: signalfd(2).
//!
//! A signal handler may run between any two instructions of any thread and may call almost nothing.
//! Blocked signals that are read from a descriptor are events like all others.
//!
//! Call order: first [`block`], in the main thread before any other is started, because threads
//! inherit the mask, and one thread that does not block a signal would take it; then
//! [`Signals::new`]. Children start with an empty mask: `std::process::Command` sees to it.
//!
//! Invariant: equal signals that come faster than they are read count as one. That is the kernel's
//! rule for standard signals, so the caller must not depend on how many came.

use std::io;
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

/// A request of an operator or a service manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Signal {
    /// SIGTERM: finish what is running, then end.
    Terminate,
    /// SIGINT: the same, from a terminal.
    Interrupt,
    /// SIGHUP: reload the configuration.
    Hangup,
    /// SIGUSR1: reopen the log files.
    User1,
}

impl Signal {
    pub const ALL: [Signal; 4] = [
        Signal::Terminate,
        Signal::Interrupt,
        Signal::Hangup,
        Signal::User1,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Signal::Terminate => "SIGTERM",
            Signal::Interrupt => "SIGINT",
            Signal::Hangup => "SIGHUP",
            Signal::User1 => "SIGUSR1",
        }
    }

    const fn number(self) -> libc::c_int {
        match self {
            Signal::Terminate => libc::SIGTERM,
            Signal::Interrupt => libc::SIGINT,
            Signal::Hangup => libc::SIGHUP,
            Signal::User1 => libc::SIGUSR1,
        }
    }
}

/// Blocks the signals of [`Signal`] in this thread and in all that it starts, and ignores SIGPIPE,
/// so that writing to a closed socket returns an error instead of killing the process.
pub fn block() -> io::Result<()> {
    let set = signal_set();
    // SAFETY: the set is initialised; a null pointer means that the old mask is not wanted.
    let error = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, ptr::null_mut()) };
    if error != 0 {
        return Err(io::Error::from_raw_os_error(error));
    }
    // SAFETY: SIG_IGN installs no handler, so no code of ours runs in a signal's context.
    if unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) } == libc::SIG_ERR {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The blocked signals as a readable descriptor.
#[derive(Debug)]
pub struct Signals {
    descriptor: OwnedFd,
}

impl Signals {
    /// Must be called after [`block`].
    pub fn new() -> io::Result<Signals> {
        let set = signal_set();
        let flags = libc::SFD_NONBLOCK | libc::SFD_CLOEXEC;
        // SAFETY: the set is initialised and read during the call only; -1 asks for a new one.
        let descriptor = unsafe { libc::signalfd(-1, &set, flags) };
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Signals {
            // SAFETY: the kernel has just created this descriptor for us, and nothing else owns it.
            descriptor: unsafe { OwnedFd::from_raw_fd(descriptor) },
        })
    }

    /// Returns the next signal, or `None` if none is pending. Never blocks.
    pub fn next_pending(&mut self) -> io::Result<Option<Signal>> {
        const SIZE: usize = size_of::<libc::signalfd_siginfo>();
        let mut info = MaybeUninit::<libc::signalfd_siginfo>::uninit();
        loop {
            let descriptor = self.descriptor.as_raw_fd();
            // SAFETY: the buffer has exactly the size that is given, and outlives the call.
            let bytes = unsafe { libc::read(descriptor, info.as_mut_ptr().cast(), SIZE) };
            if bytes == SIZE as isize {
                break;
            }
            let error = io::Error::last_os_error();
            match error.kind() {
                io::ErrorKind::Interrupted => {}
                io::ErrorKind::WouldBlock => return Ok(None),
                _ => return Err(error),
            }
        }
        // SAFETY: signalfd(2) writes whole structures only, and one was read in full.
        let number = unsafe { info.assume_init() }.ssi_signo;
        let known = |signal: &Signal| signal.number() as u32 == number;
        Ok(Signal::ALL.into_iter().find(known))
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl AsRawFd for Signals {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.descriptor.as_raw_fd()
    }
}

fn signal_set() -> libc::sigset_t {
    // SAFETY: all zeros is a valid `sigset_t`, which sigemptyset(3) then initialises. Both
    // functions fail only for invalid signal numbers.
    unsafe {
        let mut set: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in Signal::ALL {
            libc::sigaddset(&mut set, signal.number());
        }
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::wait::wait_readable;

    impl Signal {
        /// Sends the signal to this thread, in which it must be blocked.
        pub fn raise(self) {
            // SAFETY: the thread is this one, so it exists.
            let sent = unsafe { libc::pthread_kill(libc::pthread_self(), self.number()) };
            assert_eq!(sent, 0);
        }
    }

    /// Reading the descriptor returns what is pending for the reading thread, so signals sent to
    /// this thread do not disturb other tests.
    #[test]
    fn blocked_signals_are_read_from_the_descriptor() {
        block().unwrap();
        let mut signals = Signals::new().unwrap();
        assert_eq!(signals.next_pending().unwrap(), None);
        for signal in Signal::ALL {
            signal.raise();
            assert_eq!(wait_readable([signals.as_fd()], None).unwrap(), [true]);
            assert_eq!(
                signals.next_pending().unwrap(),
                Some(signal),
                "{}",
                signal.as_str()
            );
            assert_eq!(signals.next_pending().unwrap(), None);
        }
    }

    #[test]
    fn threads_inherit_the_mask() {
        block().unwrap();
        let blocked = std::thread::spawn(|| {
            let mut set = signal_set();
            // SAFETY: a null set changes nothing; the old mask is written into `set`.
            unsafe {
                libc::pthread_sigmask(libc::SIG_BLOCK, ptr::null(), &mut set);
                Signal::ALL.map(|signal| libc::sigismember(&set, signal.number()))
            }
        });
        assert_eq!(blocked.join().unwrap(), [1; 4]);
    }
}
