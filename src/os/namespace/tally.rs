//! A number that init writes and the caller reads, in memory shared by both.

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A time in microseconds. The program never sees it: execve replaces its memory.
pub(super) struct Tally {
    microseconds: NonNull<AtomicU64>,
}

// SAFETY: the mapping belongs to the value, and an atomic number may be used from any thread.
unsafe impl Send for Tally {}

impl Tally {
    pub(super) fn new() -> io::Result<Tally> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        let bytes = size_of::<AtomicU64>();
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing of ours.
        let mapped = unsafe { libc::mmap(std::ptr::null_mut(), bytes, access, flags, -1, 0) };
        match NonNull::new(mapped.cast()) {
            Some(microseconds) if mapped != libc::MAP_FAILED => Ok(Tally { microseconds }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    pub(super) fn read(&self) -> Duration {
        Duration::from_micros(self.number().load(Ordering::Relaxed))
    }

    pub(super) fn write(&self, time: Duration) {
        let microseconds = time.as_secs() * 1_000_000 + u64::from(time.subsec_micros());
        self.number().store(microseconds, Ordering::Relaxed);
    }

    fn number(&self) -> &AtomicU64 {
        // SAFETY: the mapping lives as long as the value, is aligned to a page, and its zeros are
        // a valid number.
        unsafe { self.microseconds.as_ref() }
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        // SAFETY: the mapping was made with this length, and nothing borrows from it any more.
        unsafe { libc::munmap(self.microseconds.as_ptr().cast(), size_of::<AtomicU64>()) };
    }
}
