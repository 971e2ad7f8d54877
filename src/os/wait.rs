//! poll(2) on a few descriptors, for threads without an event loop.
//!
//! The main thread uses it to wait for signals, file changes and its children. The reactor uses
//! epoll instead, because poll(2) scans all its descriptors in each call.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

/// Waits until one of `descriptors` can be read, has failed or has been hung up, or until `timeout`
/// has passed; `None` waits for ever. If the time has passed, all results are `false`.
///
/// An interruption by a signal handler (EINTR) neither ends the wait nor makes it longer.
pub fn wait_readable<const N: usize>(
    descriptors: [BorrowedFd<'_>; N],
    timeout: Option<Duration>,
) -> io::Result<[bool; N]> {
    wait_readable_of(descriptors.map(Some), timeout)
}

/// Like [`wait_readable`], leaving out those that are `None`: a pipe that has ended is always
/// ready.
pub fn wait_readable_of<const N: usize>(
    descriptors: [Option<BorrowedFd<'_>>; N],
    timeout: Option<Duration>,
) -> io::Result<[bool; N]> {
    // A timeout beyond the end of the clock means no timeout.
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    let mut polled = descriptors.map(|descriptor| libc::pollfd {
        // poll(2) skips negative numbers.
        fd: descriptor.map_or(-1, |descriptor| descriptor.as_raw_fd()),
        events: libc::POLLIN,
        revents: 0,
    });
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        // SAFETY: the pointer and the length are those of an array that outlives the call, and the
        // descriptors are borrowed, hence open, for as long.
        let count = unsafe {
            libc::poll(
                polled.as_mut_ptr(),
                N as libc::nfds_t,
                poll_milliseconds(left),
            )
        };
        if count < 0 {
            let error = io::Error::last_os_error();
            if error.kind() == io::ErrorKind::Interrupted {
                continue;
            }
            return Err(error);
        }
        // poll(2) counts whole milliseconds up to 24 days; a longer wait takes several.
        if count == 0 && left.is_none_or(|left| !left.is_zero()) {
            continue;
        }
        return Ok(polled.map(|polled| polled.revents != 0));
    }
}

/// Rounded up, so that the last millisecond does not become a busy loop; -1 waits for ever.
fn poll_milliseconds(left: Option<Duration>) -> libc::c_int {
    left.map_or(-1, |left| {
        let milliseconds = left.as_micros().div_ceil(1_000);
        libc::c_int::try_from(milliseconds).unwrap_or(libc::c_int::MAX)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn tells_which_descriptor_is_ready() {
        let (mut writer, reader) = UnixStream::pair().unwrap();
        let (idle, _idle_peer) = UnixStream::pair().unwrap();
        let wait = |timeout| wait_readable([idle.as_fd(), reader.as_fd()], timeout).unwrap();
        assert_eq!(wait(Some(Duration::ZERO)), [false, false]);
        writer.write_all(b"x").unwrap();
        assert_eq!(wait(None), [false, true]);
    }

    #[test]
    fn a_hang_up_is_readable() {
        let (writer, reader) = UnixStream::pair().unwrap();
        drop(writer);
        assert_eq!(wait_readable([reader.as_fd()], None).unwrap(), [true]);
    }

    #[test]
    fn a_timeout_is_waited_out_in_full() {
        let (_writer, reader) = UnixStream::pair().unwrap();
        let start = Instant::now();
        let timeout = Duration::from_micros(2_500);
        assert_eq!(
            wait_readable([reader.as_fd()], Some(timeout)).unwrap(),
            [false]
        );
        assert!(start.elapsed() >= timeout);
        assert_eq!(poll_milliseconds(Some(timeout)), 3);
        assert_eq!(poll_milliseconds(Some(Duration::MAX)), libc::c_int::MAX);
        assert_eq!(poll_milliseconds(None), -1);
    }
}
