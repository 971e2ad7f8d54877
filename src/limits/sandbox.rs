//! Bounds of a program in the sandbox. The defaults fit a compiler that builds a small program and
//! the program itself; `sandbox::Limits` sets them for each task.

use std::time::Duration;

/// CPU time of all processes together: a Go build takes 3 s on two old cores.
pub const SANDBOX_CPU: Duration = Duration::from_secs(20);

/// A program that sleeps is ended after this.
pub const SANDBOX_WALL: Duration = Duration::from_secs(30);

/// Memory. rustc takes 250 MiB for a small program, V8 reserves 600 MiB before it starts one.
pub const SANDBOX_MEMORY_BYTES: u64 = 1 << 30;

/// Processes and threads at a time. node has 11 threads, a Go build up to 40.
pub const SANDBOX_PROCESSES: u32 = 64;

/// Files, temporary ones and caches of compilers included.
pub const SANDBOX_DISK_BYTES: u64 = 256 << 20;

/// Files and folders, for each takes about a kilobyte of the kernel's memory.
pub const SANDBOX_INODES: u64 = 16_384;

/// Standard output and standard error together.
pub const SANDBOX_OUTPUT_BYTES: usize = 1 << 20;

/// Open descriptors in each process. Pipes and sockets hold memory of the kernel.
pub const SANDBOX_DESCRIPTORS: u64 = 256;

/// The main thread's stack, and the default of others.
pub const SANDBOX_STACK_BYTES: u64 = 8 << 20;

/// Address space of each process. Go and V8 reserve gigabytes that they never touch, so this does
/// not bound memory; it bounds page tables, which take 1/512 of it.
pub const SANDBOX_ADDRESS_BYTES: u64 = 64 << 30;

/// Bytes of a command: its words and the files' names.
pub const SANDBOX_COMMAND_BYTES: usize = 64 << 10;

/// Bytes that are read from a pipe at a time.
pub const SANDBOX_READ_BYTES: usize = 16 << 10;

/// Standard input of a program that a user runs.
pub const SANDBOX_INPUT_BYTES: u64 = 16 << 20;
