//! A pseudo-terminal (pty(7)), and commands with or without one.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::FromRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

/// Runs a command on its own terminal, with these lines typed. Returns its exit code, and the
/// terminal's contents, including the typed lines.
pub fn run(command: &mut Command, typed: &str) -> (Option<i32>, String) {
    let (mut ours, theirs) = open();
    let share = || theirs.try_clone().expect("a descriptor");
    command.stdin(share()).stdout(share()).stderr(share());
    // SAFETY: two system calls, which are allowed between fork and exec.
    unsafe {
        command.pre_exec(|| {
            // Fails if the process leads a session already, which is fine.
            libc::setsid();
            // Standard input becomes the terminal that /dev/tty names.
            match libc::ioctl(0, libc::TIOCSCTTY, 0) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        });
    }
    let mut child = command.spawn().expect("it starts");
    // The last copies on this side: the terminal hangs up when the child ends.
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    drop(theirs);
    ours.write_all(typed.as_bytes()).expect("typed");
    let mut shown = Vec::new();
    // Linux ends a terminal that has hung up with EIO.
    let _ = ours.read_to_end(&mut shown);
    let status = child.wait().expect("it ends");
    let shown = String::from_utf8(shown).expect("UTF-8");
    (status.code(), shown.replace("\r\n", "\n"))
}

/// Makes a command run without any terminal, even if the tests themselves have one.
pub fn detach(command: &mut Command) -> &mut Command {
    // SAFETY: one system call, which is allowed between fork and exec.
    unsafe {
        command.pre_exec(|| {
            libc::setsid();
            Ok(())
        })
    }
}

/// Returns our end of a new terminal, and that of a program.
fn open() -> (File, File) {
    let (mut ours, mut theirs) = (0, 0);
    let none = std::ptr::null_mut();
    // SAFETY: openpty(3) writes two descriptors; names and settings may be null.
    let result = unsafe { libc::openpty(&mut ours, &mut theirs, none, none.cast(), none.cast()) };
    assert_eq!(result, 0, "openpty: {}", io::Error::last_os_error());
    // SAFETY: both descriptors are new and owned by nothing else.
    let files = unsafe { (File::from_raw_fd(ours), File::from_raw_fd(theirs)) };
    for descriptor in [ours, theirs] {
        // SAFETY: fcntl(2) with numbers only, on a descriptor that is open.
        unsafe { libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
    files
}
