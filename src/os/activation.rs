//! Sockets that the service manager opened for the daemon: `sd_listen_fds_with_names(3)`.
//!
//! The manager passes listening sockets as descriptors 3 and up, with their number in `LISTEN_FDS`,
//! their names in `LISTEN_FDNAMES` and the receiving process in `LISTEN_PID`. Connections then wait
//! in the kernel while the daemon starts or restarts, and the daemon needs no right to bind a low
//! port.
//!
//! Invariants:
//!  1. A descriptor is taken over at most once in a process's life.
//!  2. Every passed descriptor becomes either a listening stream socket or an error that names it.

use std::env;
use std::fs;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};

use super::socket::Listener;
use crate::limits::os as limits;

/// The first passed descriptor, after standard input, output and error.
const FIRST: RawFd = 3;

const VARIABLES: [&str; 3] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];

/// A listening socket, by the name that its unit gives it (`FileDescriptorName=`).
#[derive(Debug)]
pub struct Inherited {
    pub name: String,
    pub listener: Listener,
}

/// Takes over the passed sockets; returns an empty list if there are none. Must be called in the
/// main thread before any other is started: only then can it also remove the variables, so that
/// children do not read them.
pub fn take() -> io::Result<Vec<Inherited>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Ok(Vec::new());
    }
    let [pid, count, names] = VARIABLES.map(|variable| env::var(variable).ok());
    let passed = parse(
        pid.as_deref(),
        count.as_deref(),
        names.as_deref(),
        process::id(),
    )?;
    remove_variables();
    passed
        .into_iter()
        .map(|(descriptor, name)| {
            let listener = open(descriptor).and_then(Listener::from_descriptor);
            let listener = listener.map_err(|error| {
                let message = format!("descriptor {descriptor} ({name}) was passed, but {error}");
                io::Error::new(error.kind(), message)
            })?;
            Ok(Inherited { name, listener })
        })
        .collect()
}

/// Reads the variables without touching a descriptor.
fn parse(
    pid: Option<&str>,
    count: Option<&str>,
    names: Option<&str>,
    own_pid: u32,
) -> io::Result<Vec<(RawFd, String)>> {
    let invalid = |message: String| io::Error::new(io::ErrorKind::InvalidInput, message);
    let (Some(pid), Some(count)) = (pid, count) else {
        return Ok(Vec::new());
    };
    let pid: u32 = pid
        .parse()
        .map_err(|_| invalid(format!("LISTEN_PID is {pid:?}; expected a process id")))?;
    if pid != own_pid {
        // Meant for the process that started us; its descriptors are not ours.
        return Ok(Vec::new());
    }
    let parsed: Option<RawFd> = count.parse().ok();
    let known = |count: &RawFd| (0..=limits::INHERITED_DESCRIPTORS_MAX).contains(count);
    let Some(count) = parsed.filter(known) else {
        let maximum = limits::INHERITED_DESCRIPTORS_MAX;
        return Err(invalid(format!(
            "LISTEN_FDS is {count:?}; expected 0 to {maximum}"
        )));
    };
    let names: Vec<String> = match names {
        Some(names) if count > 0 => names.split(':').map(str::to_owned).collect(),
        // The name that libsystemd uses.
        _ => vec!["unknown".to_owned(); count as usize],
    };
    if names.len() != count as usize {
        let named = names.len();
        return Err(invalid(format!(
            "LISTEN_FDNAMES has {named} names; expected {count}, as in LISTEN_FDS"
        )));
    }
    Ok((FIRST..FIRST + count).zip(names).collect())
}

/// Owns a descriptor after checking that it is open.
fn open(descriptor: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_GETFD reads a flag of a number, open or not.
    if unsafe { libc::fcntl(descriptor, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, the service manager passed it to this very process, and `TAKEN` lets
    // each be taken over once, before anything else in the process can have opened it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Removes the variables if that is sound. Otherwise they stay: children find the `LISTEN_PID` of
/// another process in them and ignore them.
fn remove_variables() {
    let threads = fs::read_dir("/proc/self/task").map(Iterator::count);
    if !threads.is_ok_and(|threads| threads == 1) {
        return;
    }
    for variable in VARIABLES {
        // SAFETY: the kernel has just reported that this thread is the only one of the process, so
        // no other thread reads the environment meanwhile.
        unsafe { env::remove_var(variable) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::os::fd::IntoRawFd;

    fn names(passed: io::Result<Vec<(RawFd, String)>>) -> Vec<(RawFd, String)> {
        passed.unwrap()
    }

    #[test]
    fn descriptors_count_from_three_and_have_names() {
        let passed = parse(Some("7"), Some("2"), Some("http:admin"), 7);
        assert_eq!(
            names(passed),
            [(3, "http".to_owned()), (4, "admin".to_owned())]
        );
        let passed = parse(Some("7"), Some("1"), None, 7);
        assert_eq!(names(passed), [(3, "unknown".to_owned())]);
        assert_eq!(names(parse(Some("7"), Some("0"), Some(""), 7)), []);
    }

    #[test]
    fn what_is_meant_for_another_process_is_left_alone() {
        assert_eq!(names(parse(Some("8"), Some("2"), Some("a:b"), 7)), []);
        assert_eq!(names(parse(None, Some("2"), Some("a:b"), 7)), []);
        assert_eq!(names(parse(Some("7"), None, None, 7)), []);
    }

    #[test]
    fn nonsense_is_an_error_that_names_the_variable() {
        let error = |pid, count, names| parse(Some(pid), Some(count), names, 7).unwrap_err();
        assert!(error("x", "1", None).to_string().contains("LISTEN_PID"));
        for count in ["x", "-1", "2147483647", ""] {
            assert!(
                error("7", count, None)
                    .to_string()
                    .contains("LISTEN_FDS is")
            );
        }
        let error = error("7", "2", Some("only-one")).to_string();
        assert_eq!(
            error,
            "LISTEN_FDNAMES has 1 names; expected 2, as in LISTEN_FDS"
        );
    }

    #[test]
    fn a_descriptor_is_owned_only_if_it_is_open() {
        assert_eq!(
            open(i32::MAX).unwrap_err().raw_os_error(),
            Some(libc::EBADF)
        );
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let owned = open(listener.into_raw_fd()).unwrap();
        let listener = Listener::from_descriptor(owned).unwrap();
        assert_eq!(listener.address().unwrap(), address.to_string());
    }
}
