//! The program that a sandbox runs, and its limits.

use std::time::Duration;

use crate::limits::sandbox as limits;

/// A program to run, with its files, input and limits.
#[derive(Clone, Copy, Debug)]
pub struct Task<'a> {
    /// Relative names and contents, written into the working folder.
    pub files: &'a [(&'a str, &'a [u8])],
    /// The program, found on the PATH unless it has a slash, and its arguments.
    pub command: &'a [&'a str],
    pub stdin: &'a [u8],
    pub limits: Limits,
}

/// Limits on a program's use of resources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// CPU time of all processes together.
    pub cpu: Duration,
    /// Time from the start until all processes are killed.
    pub wall: Duration,
    /// Writable memory of each process, and of all together as measured by init every 10 ms.
    pub memory_bytes: u64,
    /// Processes and threads at a time.
    pub processes: u32,
    /// Files in the working folder and the folder for temporary files.
    pub disk_bytes: u64,
    /// Standard output and standard error together.
    pub output_bytes: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            cpu: limits::CPU_TIME_DEFAULT,
            wall: limits::WALL_TIME_DEFAULT,
            memory_bytes: limits::MEMORY_BYTES_DEFAULT,
            processes: limits::PROCESSES_DEFAULT,
            disk_bytes: limits::DISK_BYTES_DEFAULT,
            output_bytes: limits::OUTPUT_BYTES_DEFAULT,
        }
    }
}

impl Limits {
    /// Returns the limits for setrlimit(2), which hold for each process.
    pub(super) fn resources(&self) -> Vec<(libc::c_uint, u64)> {
        // The kernel counts whole seconds. Init measures all processes together more finely.
        let cpu_seconds = self.cpu.as_secs() + 1;
        vec![
            (libc::RLIMIT_CPU, cpu_seconds),
            (libc::RLIMIT_DATA, self.memory_bytes),
            (
                libc::RLIMIT_AS,
                limits::ADDRESS_SPACE_BYTES_MAX.max(self.memory_bytes),
            ),
            (libc::RLIMIT_STACK, limits::STACK_BYTES),
            // If the caller is not root, init counts as a process of the same user.
            (libc::RLIMIT_NPROC, u64::from(self.processes) + 1),
            (libc::RLIMIT_FSIZE, self.disk_bytes),
            (libc::RLIMIT_NOFILE, limits::DESCRIPTORS_MAX),
            (libc::RLIMIT_CORE, 0),
            (libc::RLIMIT_MEMLOCK, 0),
            (libc::RLIMIT_MSGQUEUE, 0),
        ]
    }
}
