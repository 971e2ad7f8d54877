//! GGUF models in this process, through llama.cpp, with continuous batching.
//!
//! Owns the engine's thread, and the queue that leads to it. Only that thread touches the model;
//! all others reach it through a bounded channel and a few atomics, and its events go to their
//! mailboxes. Must never block a caller.
//!
//! In reading order:
//!
//! * [`backend`]: what a model must be able to do, as a trait.
//! * [`scheduler`]: decides what is computed next; pure, and tested with a toy model.
//! * [`owed`]: a job and the terminal event that it is owed.
//! * [`text`], [`sampler`], [`template`], [`speed`]: the parts of the scheduler and the model.
//! * [`thread`]: the engine's thread, and how it survives a panic.
//! * [`shared`], [`heartbeat`]: the engine's state as other threads see it.
//! * [`controls`]: keeps the text of a client from becoming control tokens.
//! * [`metadata`], [`prove`]: models that are refused, and why.
//! * [`preparer`]: from the prompt of a request to tokens.
//! * [`model`], [`ffi`]: llama.cpp behind the trait; all `unsafe` is in the latter.
//!
//! States: `Loading` until the model is loaded, then `Ready` until drained; `Stalled` while a step
//! does not end; `Loading` again after a panic; `Failed` for good. A drain cancels a model that is
//! being fetched or loaded.

mod backend;
mod controls;
mod fault;
mod ffi;
mod heartbeat;
mod memory;
mod metadata;
mod model;
mod openmp;
mod owed;
mod preparer;
mod prove;
mod sampler;
mod scheduler;
mod settings;
mod shared;
mod speed;
mod template;
mod text;
mod thread;

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

use crate::core::{Moment, UnixSeconds};
use crate::engine::family::Family;
pub use crate::engine::family::KvType;
use crate::engine::{Deliver, Engine, Gauges, Job, ModelInfo, Refused, State};
use crate::limits::engine as limits;
use crate::offload::Permit;
use fault::Fault;
pub use ffi::optimize;
use model::Llama;
pub use openmp::ensure_short_spin;
use owed::Owed;
pub use prove::prove;
pub use settings::{Obtain, Obtained, Settings};
use shared::{Life, Shared};
use thread::{Message, Over, Thread};

/// Starts the engine's thread, which obtains and loads the model; returns at once.
pub fn start(
    settings: Settings,
    obtain: Obtain,
    deliver: Arc<dyn Deliver>,
) -> io::Result<Arc<dyn Engine>> {
    let fault = Fault::from_environment().map_err(io::Error::other)?;
    let load =
        |model: &Obtained, settings: &Settings, shared: &Shared| load(model, settings, shared);
    Ok(Arc::new(start_with(
        settings, obtain, load, deliver, fault,
    )?))
}

/// Like [`start`], for any backend.
fn start_with<B: backend::Backend>(
    settings: Settings,
    obtain: Obtain,
    load: impl Fn(&Obtained, &Settings, &Shared) -> Result<B, String> + Send + 'static,
    deliver: Arc<dyn Deliver>,
    fault: Fault,
) -> io::Result<Handle> {
    // One place more than the queue's bound, for the order to drain.
    let (sender, receiver) = crossbeam_channel::bounded(settings.queue as usize + 1);
    let (ending, ended) = crossbeam_channel::bounded::<Infallible>(0);
    let shared = Arc::new(Shared::new(settings.stall_timeout));
    let (queue, parallel) = (settings.queue, settings.parallel);
    let left = receiver.clone();
    let thread = {
        let (deliver, shared) = (deliver.clone(), shared.clone());
        std::thread::Builder::new()
            .name("engine".to_owned())
            .spawn(move || {
                let _ending = ending;
                let _over = Over::new(&shared, &receiver);
                let thread = Thread {
                    settings: &settings,
                    load: &|model| load(model, &settings, &shared),
                    receiver: &receiver,
                    deliver,
                    shared: &shared,
                    fault,
                };
                thread.run(obtain);
            })?
    };
    Ok(Handle {
        queue,
        parallel,
        sender: Some(sender),
        left,
        shared,
        deliver,
        thread: Some(thread),
        ended,
    })
}

/// The engine as its callers hold it.
struct Handle {
    queue: u32,
    parallel: u32,
    /// `None` only while it is being dropped.
    sender: Option<Sender<Message>>,
    /// The channel's other end, for jobs that the thread left in it when it ended.
    left: Receiver<Message>,
    shared: Arc<Shared>,
    deliver: Arc<dyn Deliver>,
    thread: Option<JoinHandle<()>>,
    /// Disconnected when the thread ends, so that waiting for the thread can have a timeout.
    ended: Receiver<Infallible>,
}

impl Engine for Handle {
    fn submit(&self, job: Job) -> Result<(), Refused> {
        match self.state() {
            State::Ready => {}
            State::Loading { .. } => return Err(Refused::Loading),
            State::Failed(message) => return Err(Refused::Unavailable(message)),
            State::Stalled { seconds } => {
                let message = format!("the engine has made no progress for {seconds} s");
                return Err(Refused::Unavailable(message));
            }
        }
        if self.shared.life() >= Life::Draining {
            return Err(Refused::Draining);
        }
        if let Some(estimated) = self.time_to_first_token(&job)
            && job.submitted + estimated >= job.deadline
        {
            return Err(Refused::DeadlineUnmeetable { estimated });
        }
        let Some(permit) = Permit::try_take(&self.shared.queued, self.queue) else {
            return Err(Refused::QueueFull {
                retry_after: self.time_to_empty_queue(),
            });
        };
        let owed = Box::new(Owed::new(job, Some(permit), self.deliver.clone()));
        // The permit guarantees room in the channel.
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
        thread::drop_jobs_if_over(&self.shared, &self.left);
        Ok(())
    }

    fn state(&self) -> State {
        self.shared.state(Moment::now())
    }

    fn model(&self) -> Option<ModelInfo> {
        self.shared.model.get().cloned()
    }

    fn gauges(&self) -> Gauges {
        self.shared.gauges(Moment::now())
    }

    fn drain(&self) {
        if self.shared.advance(Life::Draining)
            && let Some(sender) = &self.sender
        {
            // This fails only if the thread has ended, which is the aim of draining.
            let _ = sender.try_send(Message::Drain);
        }
    }
}

impl Handle {
    /// Returns when a job that is submitted now would get its first token, by measured speed.
    /// `None` while too little is known, and while the engine is at rest: refusing a job would
    /// teach it nothing, and computing the job delays no other.
    fn time_to_first_token(&self, job: &Job) -> Option<Duration> {
        let now = Moment::now();
        let context = self.shared.model.get()?.context_length as usize;
        let tokens = job.prompt.bytes() / limits::BYTES_PER_TOKEN;
        if tokens > context {
            // Probably too long: the engine counts the tokens, and reports by how much.
            return None;
        }
        let before = self.shared.queued.load(Ordering::Relaxed);
        let published = self.shared.published();
        let running = published.gauges.sequences_running;
        if running == 0 && before == 0 {
            return None;
        }
        let job_cost = published.speed.job_cost(now)?;
        let prompt_token_cost = published.speed.prompt_token_cost(now)?;
        // The sequences of the tenant may hold the beginning of this prompt, which is then not
        // computed again. That is certain only after the prompt is tokenized.
        let held = published.held.iter();
        let own = held.filter_map(|(tenant, held)| (*tenant == job.tenant).then_some(*held));
        let computed = tokens.saturating_sub(own.max().unwrap_or(0));
        // The engine finishes one job per `job_cost`, and the next one begins.
        let is_full = running >= self.parallel;
        let waiting = if is_full { before + 1 } else { before };
        let reading = prompt_token_cost.checked_mul(u32::try_from(computed).ok()?)?;
        Some(job_cost.saturating_mul(waiting).saturating_add(reading))
    }

    /// Returns when all jobs that wait now will have begun, by measured speed.
    fn time_to_empty_queue(&self) -> Duration {
        let job_cost = self.shared.published().speed.job_cost(Moment::now());
        let waiting = self.shared.queued.load(Ordering::Relaxed);
        match job_cost.unwrap_or_default().saturating_mul(waiting) {
            Duration::ZERO => limits::RETRY_AFTER,
            wait => wait,
        }
    }
}

impl Drop for Handle {
    /// Ends the thread and waits for it, so that the model's memory is free afterwards. Does not
    /// wait while the model is being fetched or loaded: an unresponsive server or disk would keep
    /// the process alive.
    fn drop(&mut self) {
        self.shared.advance(Life::Ending);
        self.sender = None;
        if let State::Loading { .. } = self.state()
            && self.ended.recv_timeout(limits::LOADING_STOP_PATIENCE)
                == Err(RecvTimeoutError::Timeout)
        {
            return log::warn!("stopping without waiting for the model load to end");
        }
        if let Some(thread) = self.thread.take() {
            // A panic was reported where it happened.
            let _ = thread.join();
        }
    }
}

fn load(obtained: &Obtained, settings: &Settings, shared: &Shared) -> Result<Llama, String> {
    let settings = &obtained.adjust(settings);
    let mut progress = |fraction: f32| {
        shared.set_percent((fraction.clamp(0.0, 1.0) * 100.0) as u8);
        shared.is_wanted()
    };
    let plan = |model: &ffi::Model, family: &Family| memory::plan(settings, model, family);
    let llama = Llama::load(
        &obtained.path,
        obtained.family.or(settings.family),
        settings.gpu_layers,
        &mut progress,
        plan,
    )
    .map_err(|error| error.to_string())?;
    // Set only here.
    let _ = shared.model.set(ModelInfo {
        id: obtained.id.clone().unwrap_or_else(|| settings.id.clone()),
        engine: "llama",
        description: llama.description(),
        context_length: backend::Backend::context_length(&llama) as u32,
        created: UnixSeconds::now().as_u64(),
        defaults: llama.family().defaults(),
    });
    Ok(llama)
}
