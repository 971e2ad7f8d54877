//! The workers, as a part: the threads that run the pool's tasks.
//!
//! Owns the threads. Reactors go first on a core that they share with them, because a task may take
//! 280 ms, and a reactor's clients wait for as long as it cannot run: the threads are nicer, and
//! work in slices. They outlive the engine and the reactors, which send them tasks until their own
//! ends, so a drain does not concern them.

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::failure::Failure;
use super::part::{Birth, Part};
use crate::limits::offload as limits;
use crate::offload::Workers;
use crate::offload::workers::{Task, Thread};
use crate::os::process::{give_way, thread_cpu_time};
use crate::os::slices::Slices;

pub struct WorkerThreads {
    workers: Arc<Workers>,
    threads: Vec<JoinHandle<()>>,
}

/// A thread whose tasks run in slices.
struct Sliced(Slices);

impl Thread for Sliced {
    fn cpu_time(&self) -> Duration {
        thread_cpu_time()
    }

    fn run(&self, task: Box<dyn Task>) {
        self.0.during(|| task.run());
    }
}

impl WorkerThreads {
    fn start_for(workers: Arc<Workers>) -> Result<WorkerThreads, Failure> {
        let mut part = WorkerThreads {
            workers,
            threads: Vec::new(),
        };
        for index in 0..thread_count() {
            let workers = part.workers.clone();
            let thread = thread::Builder::new()
                .name(format!("worker-{index}"))
                .stack_size(limits::WORKER_STACK_BYTES)
                .spawn(move || {
                    give_way();
                    workers.work(Sliced(Slices::new()));
                })
                .map_err(|error| Failure::os("starting a thread", &error))?;
            part.threads.push(thread);
        }
        Ok(part)
    }
}

impl Part for WorkerThreads {
    fn start(birth: &mut Birth) -> Result<WorkerThreads, Failure> {
        WorkerThreads::start_for(birth.workers.clone())
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Sender, channel};
    use std::time::Instant;

    use super::*;
    use crate::os::slices::offers;

    /// Far above the expected time; reached only by a failure.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// Computes until its thread has offered its core.
    struct Long(Sender<u64>);

    impl Task for Long {
        fn is_wanted(&self) -> bool {
            true
        }

        fn run(self: Box<Long>) {
            let end = Instant::now() + PATIENCE;
            while offers() == 0 && Instant::now() < end {}
            let _ = self.0.send(offers());
        }
    }

    /// Mutation: `run` of `Sliced` without `during`.
    #[test]
    fn a_long_task_offers_its_core_to_the_reactors() {
        let workers = Arc::new(Workers::default());
        let started = WorkerThreads::start_for(Arc::clone(&workers));
        let Ok(mut threads) = started else {
            panic!("no threads");
        };
        let (sender, done) = channel();
        assert!(workers.submit(1, 1, Long(sender)).is_ok());
        assert!(done.recv_timeout(2 * PATIENCE).unwrap() > 0);
        assert!(threads.join());
    }
}
