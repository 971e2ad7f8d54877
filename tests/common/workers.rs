//! Workers for an engine that runs in the test's own process.

use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use autoglmd::limits::offload::WORKER_STACK_BYTES;
use autoglmd::offload::Workers;

/// Returns the workers of this process. Their two threads end with it.
pub fn workers() -> Arc<Workers> {
    static WORKERS: OnceLock<Arc<Workers>> = OnceLock::new();
    let start = || {
        let workers = Arc::new(Workers::default());
        for _ in 0..2 {
            let workers = workers.clone();
            let thread = thread::Builder::new().stack_size(WORKER_STACK_BYTES);
            let work = move || workers.work(Duration::default);
            thread.spawn(work).expect("a thread");
        }
        workers
    };
    WORKERS.get_or_init(start).clone()
}
