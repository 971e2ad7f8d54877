//! Starts a program in new namespaces: user, mount, PID, network, IPC and UTS (namespaces(7)).
//!
//! Owns the processes and pipes of one sandbox. The caller decides which folders the program sees
//! and how much it may use, and writes that down in a [`Plan`]. This module carries the plan out or
//! reports the step that the kernel refused. It never continues with less.
//!
//! ```text
//! caller's thread       init (PID 1 inside)             program (PID 2 inside)
//! spawn: clone -------> close descriptors
//! write uid_map ------> steps of the plan
//!                       drop all capabilities
//!                       clone ------------------------> limits, seccomp, execve
//! read pipes            reap, measure <---------------- runs
//! Notice <------------- report, exit: the kernel kills what is left
//! wait
//! ```
//!
//! Invariants:
//! 1. Between clone and execve the child makes only system calls: no allocation, no lock, no panic.
//!    The caller has other threads, and one of them may have held the allocator's lock when the
//!    child was copied. The plan contains all that the child needs before the clone.
//! 2. The init process is a copy of the caller's memory, secrets included. It is not dumpable, so
//!    the program can neither trace it nor read `/proc/1`, and it closes the caller's descriptors
//!    before anything else.
//! 3. When init ends, every process inside ends, however deeply they forked.

mod calls;
mod child;
mod ids;
mod measure;
mod mounts;
mod plan;
mod seccomp;
mod tally;

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

pub use self::ids::Ids;
pub use self::plan::{MACHINE, Notice, Plan, Step};
use self::tally::Tally;

/// A running sandbox. Dropping it kills every process inside.
pub struct Sandboxed {
    process: libc::pid_t,
    is_reaped: bool,
    report: File,
    /// CPU time, as measured by init.
    cpu: Tally,
    pub stdout: File,
    pub stderr: File,
}

/// Starts the plan's program. `stdin` becomes its standard input.
pub fn spawn(plan: &Plan, stdin: &File) -> io::Result<Sandboxed> {
    let (stdout, stdout_inside) = pipe()?;
    let (stderr, stderr_inside) = pipe()?;
    let (report, report_inside) = pipe()?;
    let (ready_inside, ready) = pipe()?;
    let arguments = pointers(&plan.arguments);
    let environment = pointers(&plan.environment);
    let filter = seccomp::filter();
    let cpu = Tally::new()?;
    let inside = child::Inside {
        plan,
        arguments: &arguments,
        environment: &environment,
        filter: &filter,
        cpu: &cpu,
        descriptors: [
            stdin.as_raw_fd(),
            stdout_inside.as_raw_fd(),
            stderr_inside.as_raw_fd(),
            report_inside.as_raw_fd(),
            ready_inside.as_raw_fd(),
        ],
    };
    let flags = libc::CLONE_NEWUSER
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS;
    // No signal at its end: the caller may have its own handlers and waiters for SIGCHLD.
    // SAFETY: without CLONE_VM the child has its own copy of memory and stack, as after fork(2). It
    // runs only `child::run`, which keeps to invariant 1 and does not return.
    let process = unsafe { child::clone_process(flags) };
    match process {
        // SAFETY: this is the child, and `Inside` was made for it.
        0 => unsafe { child::run(&inside) },
        process if process < 0 => return Err(io::Error::last_os_error()),
        _ => {}
    }
    drop((stdout_inside, stderr_inside, report_inside, ready_inside));
    // From here on, an early return kills and reaps the child.
    let sandboxed = Sandboxed {
        process: process as libc::pid_t,
        is_reaped: false,
        report: File::from(report),
        cpu,
        stdout: File::from(stdout),
        stderr: File::from(stderr),
    };
    plan.ids.map(sandboxed.process)?;
    // If the child has ended, the pipe is broken, and the report has the reason.
    let _ = File::from(ready).write_all(&[1]);
    Ok(sandboxed)
}

impl Sandboxed {
    /// Becomes readable when a notice has come, or when init has ended.
    pub fn report(&self) -> BorrowedFd<'_> {
        self.report.as_fd()
    }

    /// Reads init's notice. Blocks until there is one.
    pub fn read_notice(&mut self, plan: &Plan) -> Notice {
        let mut bytes = [0; child::MESSAGE_BYTES];
        match self.report.read_exact(&mut bytes) {
            Ok(()) => child::Message::from_bytes(bytes).into_notice(plan),
            Err(_) => Notice::Vanished,
        }
    }

    /// Kills every process inside. A second call does nothing.
    pub fn kill(&mut self) {
        if !self.is_reaped {
            // SAFETY: kill(2) takes numbers only. The process is ours and not yet waited for, so
            // its number cannot belong to another one.
            unsafe { libc::kill(self.process, libc::SIGKILL) };
        }
    }

    /// Kills what still runs and returns the CPU time of all processes that were inside.
    pub fn finish(mut self) -> io::Result<Duration> {
        self.kill();
        self.reap()
    }

    fn reap(&mut self) -> io::Result<Duration> {
        // SAFETY: all zeros is a valid `rusage`, which is made of integers.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        loop {
            let mut status = 0;
            // SAFETY: both pointers are those of variables that outlive the call.
            let reaped =
                unsafe { libc::wait4(self.process, &mut status, libc::__WALL, &mut usage) };
            if reaped == self.process {
                self.is_reaped = true;
                // Without the time of processes that were killed by init's end: the kernel adds a
                // child's time to its parent's only if the parent has waited for it.
                let own = measure::duration(usage.ru_utime) + measure::duration(usage.ru_stime);
                return Ok(own.max(self.cpu.read()));
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }
}

impl Drop for Sandboxed {
    fn drop(&mut self) {
        if !self.is_reaped {
            self.kill();
            // Only reaps: the reason for dropping the sandbox matters more than a failure here.
            let _ = self.reap();
        }
    }
}

/// Returns an anonymous file with these bytes, at its beginning, that no process can change.
pub fn sealed_file(bytes: &[u8]) -> io::Result<File> {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: the name is a string with its terminator.
    let descriptor = unsafe { libc::memfd_create(c"stdin".as_ptr(), flags) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and owned by nothing else.
    let mut file = unsafe { File::from_raw_fd(descriptor) };
    file.write_all(bytes)?;
    io::Seek::rewind(&mut file)?;
    let seals = libc::F_SEAL_WRITE | libc::F_SEAL_GROW | libc::F_SEAL_SHRINK | libc::F_SEAL_SEAL;
    // SAFETY: fcntl(2) with numbers only, on a descriptor that is open.
    match unsafe { libc::fcntl(descriptor, libc::F_ADD_SEALS, seals) } {
        0 => Ok(file),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Creates a pipe: its reading and its writing end, both closed on exec.
fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: the array has room for the two descriptors that pipe2(2) writes.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: both descriptors are new and owned by nothing else.
    Ok(unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) })
}

/// Returns pointers to the strings, with the null at the end that execve(2) needs.
fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    let pointers = strings.iter().map(|string| CStr::as_ptr(string));
    pointers.chain([std::ptr::null()]).collect()
}
