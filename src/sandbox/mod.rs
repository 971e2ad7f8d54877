//! Runs a program that has not been reviewed.
//!
//! Owns what a program may see and use: a read-only view of the system's programs, an empty folder
//! of its own, no network, and limits on time, memory, processes, disk and output.
//! [`crate::os::namespace`] sets up namespaces, rlimits and the system call filter; if the kernel
//! forbids one of them, [`run`] returns an error. It never runs the program with less.
//!
//! Blocks until the program has ended, so it must never be called on a reactor thread.
//!
//! Invariants:
//! 1. When [`run`] returns, no process of the program exists any more.
//! 2. The program sees no file of a home folder except for the installation of an interpreter or
//!    compiler that lies in one.
//! 3. The caller holds at most `output_bytes` of the program's output, and one buffer.

mod error;
mod recipes;
mod task;
mod tools;
mod view;

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

pub use self::error::SandboxError;
pub use self::recipes::{RECIPES, Recipe, recipe};
pub use self::task::{Limits, Task};
use crate::limits::sandbox as limits;
use crate::os::namespace::{self, Ids, Notice, Plan, Sandboxed};
use crate::os::wait::wait_readable_of;

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// By itself, with this code.
    Exited(i32),
    /// By this signal.
    Signalled(i32),
    /// Killed at the limit of CPU or wall time.
    OutOfTime,
    /// Killed at the limit of output.
    OutOfOutput,
    /// Killed because all processes together used too much memory. A single process that wants too
    /// much is refused the memory instead, and ends in its own way.
    OutOfMemory,
}

/// The result of a program that ran.
#[derive(Clone, Debug)]
pub struct Report {
    pub ended: Ended,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// CPU time of all processes together.
    pub cpu: Duration,
}

/// Runs a task to its end. May be called from several threads at the same time.
pub fn run(task: &Task<'_>) -> Result<Report, SandboxError> {
    let view = view::View::of(task)?;
    let plan = Plan {
        steps: view.steps,
        program: view.program,
        arguments: view.arguments,
        environment: view.environment,
        folder: view.folder,
        limits: task.limits.resources(),
        cpu: task.limits.cpu,
        memory_bytes: task.limits.memory_bytes,
        ids: Ids::of_process(),
    };
    let io_error = |doing| move |source| SandboxError::Io { doing, source };
    let stdin = namespace::sealed_file(task.stdin).map_err(io_error("storing the input"))?;
    // A limit beyond the end of the clock means no limit.
    let deadline = Instant::now().checked_add(task.limits.wall);
    let mut sandboxed = namespace::spawn(&plan, &stdin).map_err(SandboxError::of_spawn)?;
    let mut output = Output::new(task.limits.output_bytes);
    let watched = output.collect(&mut sandboxed, &plan, deadline);
    let cpu = sandboxed
        .finish()
        .map_err(io_error("waiting for the program"))?;
    let ended = match watched.map_err(io_error("reading the output"))? {
        Watched::Notice(Notice::Refused { stage, error }) => {
            return Err(SandboxError::Refused {
                step: stage,
                source: error,
            });
        }
        Watched::Notice(Notice::NotStarted(source)) => {
            let program = plan.program.to_string_lossy().into_owned();
            return Err(SandboxError::NotStarted { program, source });
        }
        Watched::Notice(Notice::Ended(status)) => ended(status),
        // Init was killed, by the machine's own lack of memory or by its administrator.
        Watched::Notice(Notice::Vanished) => Ended::Signalled(libc::SIGKILL),
        Watched::Notice(Notice::OutOfTime) | Watched::OutOfTime => Ended::OutOfTime,
        Watched::Notice(Notice::OutOfMemory) => Ended::OutOfMemory,
        Watched::OutOfOutput => Ended::OutOfOutput,
    };
    Ok(Report {
        ended,
        stdout: output.stdout,
        stderr: output.stderr,
        cpu,
    })
}

/// Translates a status of wait(2).
fn ended(status: i32) -> Ended {
    if libc::WIFEXITED(status) {
        return Ended::Exited(libc::WEXITSTATUS(status));
    }
    match libc::WTERMSIG(status) {
        // RLIMIT_CPU, which a process can reach before init has measured it.
        libc::SIGXCPU => Ended::OutOfTime,
        signal => Ended::Signalled(signal),
    }
}

/// The reason why collecting ended.
enum Watched {
    Notice(Notice),
    OutOfTime,
    OutOfOutput,
}

struct Output {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    left_bytes: usize,
    buffer: Vec<u8>,
}

impl Output {
    fn new(limit_bytes: usize) -> Output {
        Output {
            stdout: Vec::new(),
            stderr: Vec::new(),
            left_bytes: limit_bytes,
            buffer: vec![0; limits::PIPE_READ_BYTES],
        }
    }

    /// Reads both streams until they end, which they do once init has ended.
    fn collect(
        &mut self,
        sandboxed: &mut Sandboxed,
        plan: &Plan,
        deadline: Option<Instant>,
    ) -> io::Result<Watched> {
        let mut is_open = [true, true];
        let mut notice = None;
        loop {
            let ended = match notice.take() {
                Some(ended) if is_open == [false, false] => return Ok(Watched::Notice(ended)),
                ended => ended,
            };
            notice = ended;
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let waiting = [
                is_open[0].then(|| sandboxed.stdout.as_fd()),
                is_open[1].then(|| sandboxed.stderr.as_fd()),
                notice.is_none().then(|| sandboxed.report()),
            ];
            let ready = wait_readable_of(waiting, left)?;
            if ready == [false; 3] {
                return Ok(Watched::OutOfTime);
            }
            if ready[2] {
                notice = Some(sandboxed.read_notice(plan));
            }
            let streams = [&mut sandboxed.stdout, &mut sandboxed.stderr];
            let texts = [&mut self.stdout, &mut self.stderr];
            for (index, (stream, text)) in streams.into_iter().zip(texts).enumerate() {
                if !ready[index] {
                    continue;
                }
                let count = read_some(stream, &mut self.buffer)?;
                is_open[index] = count > 0;
                let kept = count.min(self.left_bytes);
                text.extend_from_slice(&self.buffer[..kept]);
                self.left_bytes -= kept;
                if kept < count {
                    return Ok(Watched::OutOfOutput);
                }
            }
        }
    }
}

fn read_some(stream: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match stream.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
