//! The workers, as a part: the threads that run the pool's tasks.
//!
//! Owns the threads. Reactors go first on a core that they share with them, because a task may take
//! 280 ms, and a reactor's clients wait for as long as it cannot run. The threads outlive the
//! engine and the reactors, which send them tasks until their own ends, so a drain does not concern
//! them.

use std::sync::Arc;
use std::thread::{self, JoinHandle};

use super::failure::Failure;
use super::part::{Birth, Part};
use crate::limits::offload as limits;
use crate::offload::Workers;
use crate::os::process::{give_way, thread_cpu_time};

pub struct WorkerThreads {
    workers: Arc<Workers>,
    threads: Vec<JoinHandle<()>>,
}

impl Part for WorkerThreads {
    fn start(birth: &mut Birth) -> Result<WorkerThreads, Failure> {
        let mut part = WorkerThreads {
            workers: birth.workers.clone(),
            threads: Vec::new(),
        };
        for index in 0..thread_count() {
            let workers = part.workers.clone();
            let thread = thread::Builder::new()
                .name(format!("worker-{index}"))
                .stack_size(limits::WORKER_STACK_BYTES)
                .spawn(move || {
                    give_way();
                    workers.work(thread_cpu_time);
                })
                .map_err(|error| Failure::os("starting a thread", &error))?;
            part.threads.push(thread);
        }
        Ok(part)
    }

    fn join(&mut self) -> bool {
        self.workers.close();
        let mut is_good = true;
        for thread in self.threads.drain(..) {
            is_good &= thread.join().is_ok();
        }
        is_good
    }
}

impl Drop for WorkerThreads {
    fn drop(&mut self) {
        // A start that has failed after this part.
        self.join();
    }
}

/// Half of the cores: the model is computed on all of them.
fn thread_count() -> usize {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    (cores / 2).clamp(limits::WORKER_THREADS_MIN, limits::WORKER_THREADS_MAX)
}
