//! GGUF models in this process, through llama.cpp, with continuous batching.
//!
//! Owns the engine's thread, and the queue that leads to it. The thread alone touches the model;
//! everybody else meets it through a bounded channel, a few atomics, and the mailboxes that its
//! events go to. Must never block a caller.
//!
//! In reading order:
//!
//! * [`backend`]: what a model must be able to do, as a trait.
//! * [`scheduler`]: who computes what next; pure, and tested with a toy model.
//! * [`owed`]: a job and the terminal event that it is owed.
//! * [`text`], [`sampler`], [`template`], [`speed`]: what the scheduler and the model are made of.
//! * [`model`], [`ffi`]: llama.cpp behind the trait; all `unsafe` is in the latter.
//!
//! States: `Loading` until the model is there, then `Ready` until drained, or `Failed` for good.
//! A model that is being fetched or loaded when the drain begins is given up: nobody waits for it.

mod backend;
mod ffi;
mod memory;
mod model;
mod openmp;
mod owed;
mod sampler;
mod scheduler;
mod speed;
mod template;
mod text;

use std::any::Any;
use std::convert::Infallible;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError};

use crate::engine::{Deliver, Engine, Gauges, Job, ModelInfo, Refused, State};
use crate::limits::{
    ENGINE_INTAKE_JOBS, ENGINE_LOADING_END_PATIENCE, ENGINE_RETRY_SECONDS, PROMPT_BYTES_PER_TOKEN,
};
use crate::offload::CancelReason;
pub use ffi::optimize;
use model::Llama;
pub use openmp::ensure_short_spin;
use owed::{Owed, Place};
use scheduler::Scheduler;
use speed::Speed;

/// How keys and values lie in the KV cache, by llama.cpp's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvType {
    /// 16 bits a value.
    F16,
    /// 8 bits a value, and a scale for each 32 of them: half the memory.
    Q8_0,
}

/// How a model is run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The name that answers carry.
    pub id: String,
    /// Sequences that are computed together.
    pub parallel: u32,
    /// Compute threads. 0: chosen by the machine's cores.
    pub threads: u32,
    /// Context of one sequence in tokens. 0: chosen by model and memory.
    pub context: u32,
    pub kv_type: KvType,
    /// Jobs that wait for a sequence.
    pub queue: u32,
    /// Prompt tokens computed between two tokens of running answers.
    pub prefill_chunk: u32,
    /// Layers on the GPU, where a GPU back end is compiled in.
    pub gpu_layers: u32,
}

/// Gives the path of the GGUF file, and fetches it first if it must; the error is for people. What
/// it is called with says whether the model is still wanted: if not, it ends as soon as it can.
pub type Obtain = Box<dyn FnOnce(&dyn Fn() -> bool) -> Result<PathBuf, String> + Send>;

/// Starts the engine's thread, which obtains and loads the model; returns at once.
pub fn start(
    settings: Settings,
    obtain: Obtain,
    deliver: Arc<dyn Deliver>,
) -> io::Result<Arc<dyn Engine>> {
    // One place more than the queue's bound: the order to drain must find room.
    let (sender, receiver) = crossbeam_channel::bounded(settings.queue as usize + 1);
    let (ending, ended) = crossbeam_channel::bounded::<Infallible>(0);
    let shared = Arc::new(Shared::default());
    let (queue, parallel) = (settings.queue, settings.parallel);
    let thread = {
        let (deliver, shared) = (deliver.clone(), shared.clone());
        thread::Builder::new()
            .name("engine".to_owned())
            .spawn(move || {
                let _ending = ending;
                run(&settings, obtain, &receiver, deliver, &shared);
            })?
    };
    let sender = Some(sender);
    let thread = Some(thread);
    Ok(Arc::new(Handle {
        queue,
        parallel,
        sender,
        shared,
        deliver,
        thread,
        ended,
    }))
}

/// What the engine's thread and its callers both see.
#[derive(Debug, Default)]
struct Shared {
    /// Jobs that were submitted and have no sequence yet.
    queued: Arc<AtomicU32>,
    is_ready: AtomicBool,
    is_draining: AtomicBool,
    /// The engine's owner is gone: end at once.
    is_ending: AtomicBool,
    percent: AtomicU8,
    failure: OnceLock<String>,
    model: OnceLock<ModelInfo>,
    gauges: Mutex<Gauges>,
    /// Microseconds; 0 as long as too little was measured.
    job_cost: AtomicU64,
    /// Nanoseconds; 0 as long as too little was measured.
    prompt_token_cost: AtomicU64,
}

enum Message {
    Job(Box<Owed>),
    Drain,
}

/// The engine as its callers hold it.
struct Handle {
    queue: u32,
    parallel: u32,
    /// `None` only while it is being dropped.
    sender: Option<Sender<Message>>,
    shared: Arc<Shared>,
    deliver: Arc<dyn Deliver>,
    thread: Option<JoinHandle<()>>,
    /// Disconnected when the thread ends: a wait for it that can have a bound.
    ended: Receiver<Infallible>,
}

impl Engine for Handle {
    fn submit(&self, job: Job) -> Result<(), Refused> {
        match self.state() {
            State::Ready => {}
            State::Loading { .. } => return Err(Refused::Loading),
            State::Failed(message) => return Err(Refused::Unavailable(message)),
        }
        if self.shared.is_draining.load(Ordering::Acquire) {
            return Err(Refused::Draining);
        }
        if let Some(estimated) = self.time_to_first_token(&job)
            && job.submitted + estimated >= job.deadline
        {
            return Err(Refused::DeadlineUnmeetable { estimated });
        }
        let Some(place) = Place::take(&self.shared.queued, self.queue) else {
            return Err(Refused::QueueFull {
                retry_after: self.time_to_empty_queue(),
            });
        };
        let owed = Box::new(Owed::new(job, Some(place), self.deliver.clone()));
        // The place that was taken has its room in the channel.
        let sent = self
            .sender
            .as_ref()
            .map(|sender| sender.try_send(Message::Job(owed)));
        if let Some(Err(error)) = sent {
            if let Message::Job(owed) = error.into_inner() {
                owed.take_back();
            }
            return Err(Refused::Draining);
        }
        Ok(())
    }

    fn state(&self) -> State {
        if let Some(message) = self.shared.failure.get() {
            State::Failed(message.clone())
        } else if self.shared.is_ready.load(Ordering::Acquire) {
            State::Ready
        } else {
            State::Loading {
                percent: self.shared.percent.load(Ordering::Relaxed),
            }
        }
    }

    fn model(&self) -> Option<ModelInfo> {
        self.shared.model.get().cloned()
    }

    fn gauges(&self) -> Gauges {
        let mut gauges = self.shared.lock_gauges();
        // Those in the channel wait, too.
        gauges.queue_depth = self.shared.queued.load(Ordering::Relaxed);
        gauges
    }

    fn drain(&self) {
        if !self.shared.is_draining.swap(true, Ordering::AcqRel)
            && let Some(sender) = &self.sender
        {
            // It fails only if the thread has ended, which is what draining is for.
            let _ = sender.try_send(Message::Drain);
        }
    }
}

impl Handle {
    /// When a job that is submitted now would have its first token, by measured speed.
    fn time_to_first_token(&self, job: &Job) -> Option<Duration> {
        let job_cost = self.shared.job_cost.load(Ordering::Relaxed);
        let prompt_token_cost = self.shared.prompt_token_cost.load(Ordering::Relaxed);
        if job_cost == 0 {
            return None;
        }
        let is_full = self.shared.lock_gauges().sequences_running >= self.parallel;
        let before = self.shared.queued.load(Ordering::Relaxed);
        let tokens = job.prompt.bytes() / PROMPT_BYTES_PER_TOKEN;
        let context = self.shared.model.get()?.context_length;
        if tokens > context as usize {
            // Too long, by the look of it: the engine counts, and says by how much.
            return None;
        }
        // The engine is through with one job after each `job_cost`, and the next one begins.
        let waiting = u64::from(if is_full { before + 1 } else { before });
        let wait = Duration::from_micros(job_cost.saturating_mul(waiting));
        Some(wait + Duration::from_nanos(prompt_token_cost.saturating_mul(tokens as u64)))
    }

    /// When all that waits now will have begun, by measured speed.
    fn time_to_empty_queue(&self) -> Duration {
        let job_cost = self.shared.job_cost.load(Ordering::Relaxed);
        let waiting = u64::from(self.shared.queued.load(Ordering::Relaxed));
        match job_cost.saturating_mul(waiting) {
            0 => Duration::from_secs(ENGINE_RETRY_SECONDS),
            microseconds => Duration::from_micros(microseconds),
        }
    }
}

impl Drop for Handle {
    /// Ends the thread and waits for it: the model's memory is free afterwards. Not so while the
    /// model is on its way: a server or a disk that does not answer would keep the process alive.
    fn drop(&mut self) {
        self.shared.is_ending.store(true, Ordering::Release);
        self.sender = None;
        if let State::Loading { .. } = self.state()
            && self.ended.recv_timeout(ENGINE_LOADING_END_PATIENCE)
                == Err(RecvTimeoutError::Timeout)
        {
            return log::warn!("the model is still on its way, and is not waited for");
        }
        if let Some(thread) = self.thread.take() {
            // A panic was told where it happened.
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// Whether a model that is still on its way would be of use to anybody.
    fn is_wanted(&self) -> bool {
        !self.is_draining.load(Ordering::Acquire) && !self.is_ending.load(Ordering::Acquire)
    }

    fn lock_gauges(&self) -> Gauges {
        // A number, copied: nothing can be half done if a holder panicked.
        *self
            .gauges
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn publish(&self, gauges: Gauges, speed: &Speed) {
        *self
            .gauges
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner()) = gauges;
        let job_cost = speed.job_cost().map_or(0, |cost| cost.as_micros() as u64);
        let prompt_token_cost = speed
            .prompt_token_cost()
            .map_or(0, |cost| cost.as_nanos() as u64);
        self.job_cost.store(job_cost, Ordering::Relaxed);
        self.prompt_token_cost
            .store(prompt_token_cost, Ordering::Relaxed);
    }

    fn fail(&self, message: String) {
        log::error!("the engine has ended: {message}");
        // The first failure is the cause.
        let _ = self.failure.set(message);
    }
}

/// The engine's thread.
fn run(
    settings: &Settings,
    obtain: Obtain,
    receiver: &Receiver<Message>,
    deliver: Arc<dyn Deliver>,
    shared: &Shared,
) {
    let is_wanted = || shared.is_wanted();
    let work = || match obtain(&is_wanted).and_then(|path| load(&path, settings, shared)) {
        Ok(llama) => {
            let chunk = settings.prefill_chunk as usize;
            let mut scheduler = Scheduler::new(llama, chunk, deliver);
            shared.publish(scheduler.gauges(), scheduler.speed());
            shared.is_ready.store(true, Ordering::Release);
            serve(&mut scheduler, receiver, shared);
        }
        Err(message) if shared.is_wanted() => shared.fail(message),
        Err(_) => log::info!("the model was on its way, and is given up"),
    };
    // What a panic leaves behind is dropped on the way: each job tells its own failure.
    if let Err(panic) = catch_unwind(AssertUnwindSafe(work)) {
        shared.fail(panic_message(&*panic));
    }
}

fn load(path: &Path, settings: &Settings, shared: &Shared) -> Result<Llama, String> {
    let mut progress = |fraction: f32| {
        shared
            .percent
            .store((fraction.clamp(0.0, 1.0) * 100.0) as u8, Ordering::Relaxed);
        shared.is_wanted()
    };
    let plan = |model: &ffi::Model| memory::plan(settings, model);
    let llama = Llama::load(path, settings.gpu_layers, &mut progress, plan)
        .map_err(|error| error.to_string())?;
    let since_1970 = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    // Set here only.
    let _ = shared.model.set(ModelInfo {
        id: settings.id.clone(),
        engine: "llama",
        description: llama.description(),
        context_length: backend::Backend::context_length(&llama) as u32,
        created: since_1970.as_secs(),
    });
    Ok(llama)
}

/// Takes jobs in and lets the scheduler step, until the engine is drained or nobody is left.
fn serve(scheduler: &mut Scheduler<Llama>, receiver: &Receiver<Message>, shared: &Shared) {
    let mut is_draining = false;
    while !shared.is_ending.load(Ordering::Acquire) {
        if scheduler.is_idle() {
            if is_draining && receiver.is_empty() {
                return;
            }
            match receiver.recv() {
                Ok(Message::Job(owed)) => scheduler.admit(*owed),
                Ok(Message::Drain) => is_draining = true,
                Err(_) => return,
            }
        }
        // Preparing a prompt takes time, too: a few between two steps.
        for _ in 0..ENGINE_INTAKE_JOBS {
            match receiver.try_recv() {
                Ok(Message::Job(owed)) => scheduler.admit(*owed),
                Ok(Message::Drain) => is_draining = true,
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
            }
        }
        scheduler.step();
        shared.publish(scheduler.gauges(), scheduler.speed());
    }
    scheduler.cancel_all(CancelReason::Drain);
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("a bug: {}", text.unwrap_or("a panic without a message"))
}
