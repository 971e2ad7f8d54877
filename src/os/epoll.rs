//! The one registration in epoll(7) that mio does not offer: a descriptor that several instances
//! watch, of which one is woken.
//!
//! Owns nothing. Readiness arrives through mio's own `poll`, under the token that is given here.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Adds `descriptor` to an epoll instance, edge-triggered, for reading, with `EPOLLEXCLUSIVE`: an
/// event wakes the first instance that sleeps instead of all of them. Instances that are awake see
/// the event too, as soon as they look.
pub fn add_exclusive(epoll: &impl AsRawFd, descriptor: &impl AsFd, token: usize) -> io::Result<()> {
    let mut event = libc::epoll_event {
        events: (libc::EPOLLIN | libc::EPOLLET | libc::EPOLLEXCLUSIVE) as u32,
        u64: token as u64,
    };
    let number = descriptor.as_fd().as_raw_fd();
    // SAFETY: both descriptors are open, and the kernel only reads the event, which lives until
    // epoll_ctl(2) returns.
    let result = unsafe {
        libc::epoll_ctl(
            epoll.as_raw_fd(),
            libc::EPOLL_CTL_ADD,
            number,
            &raw mut event,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
