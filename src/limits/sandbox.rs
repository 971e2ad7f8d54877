//! Bounds of a program in the sandbox. The defaults fit a compiler that builds a small program and
//! the program itself; `sandbox::Limits` sets them for each task.

use std::time::Duration;

/// CPU time of all processes together: a Go build takes 3 s on two old cores.
pub const CPU_TIME_DEFAULT: Duration = Duration::from_secs(20);

/// A program that sleeps is ended after this.
pub const WALL_TIME_DEFAULT: Duration = Duration::from_secs(30);

/// Memory. rustc takes 250 MiB for a small program, V8 reserves 600 MiB before it starts one.
pub const MEMORY_BYTES_DEFAULT: u64 = 1 << 30;

/// Processes and threads at a time. node has 11 threads, a Go build up to 40.
pub const PROCESSES_DEFAULT: u32 = 64;

/// Bytes of files, temporary ones and caches of compilers included.
pub const DISK_BYTES_DEFAULT: u64 = 256 << 20;

/// Files and folders, because each takes about a kilobyte of the kernel's memory.
pub const INODES_MAX: u64 = 16_384;

/// Standard output and standard error together.
pub const OUTPUT_BYTES_DEFAULT: usize = 1 << 20;

/// Open descriptors in each process. Pipes and sockets hold memory of the kernel.
pub const DESCRIPTORS_MAX: u64 = 256;

/// The main thread's stack, and the default of other threads.
pub const STACK_BYTES: u64 = 8 << 20;

/// Address space of each process. Go and V8 reserve gigabytes that they never touch, so this does
/// not bound memory; it bounds page tables, which take 1/512 of it.
pub const ADDRESS_SPACE_BYTES_MAX: u64 = 64 << 30;

/// Bytes of a command: its words and the files' names.
pub const COMMAND_BYTES_MAX: usize = 64 << 10;

/// Bytes that are read from a pipe at a time.
pub const PIPE_READ_BYTES: usize = 16 << 10;
