//! GGUF models in this process, through llama.cpp, with continuous batching.
//!
//! Owns the engine's thread, and the queue that leads to it. Only that thread computes with the
//! model; all others reach it through a bounded channel and a few atomics, and its events go to
//! their mailboxes. Prompts are prepared by workers on their way to it. Must never block a caller.
//!
//! In reading order:
//!
//! * [`backend`]: what a model must be able to do, as a trait.
//! * [`scheduler`]: decides what is computed next; pure, and tested with a toy model.
//! * [`owed`]: a job and the terminal event that it is owed.
//! * [`places`]: the queue's bound, and each tenant's share of it; [`estimates`] of the wait.
//! * [`intake`]: the way of a job to the engine's thread; its prompt is prepared there.
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
mod estimates;
mod fault;
mod ffi;
mod heartbeat;
mod intake;
mod memory;
mod metadata;
mod model;
mod openmp;
mod owed;
mod places;
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
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError};

use crate::core::{Moment, UnixSeconds};
use crate::engine::family::Family;
pub use crate::engine::family::KvType;
use crate::engine::prefixes::Folder;
use crate::engine::{Class, Deliver, Engine, Gauges, Job, ModelInfo, Refused, State};
use crate::limits::engine as limits;
use crate::offload::Workers;
use fault::Fault;
pub use ffi::optimize;
use intake::{Exit, Intake};
use model::Llama;
pub use openmp::ensure_short_spin;
use owed::Owed;
use places::Places;
pub use prove::prove;
pub use settings::{Obtain, Obtained, Settings};
use shared::{Life, Shared};
use thread::{Over, Thread};

/// Starts the engine's thread, which obtains and loads the model; returns at once. The `workers`
/// prepare the prompts; their threads must have [`limits::TOKENIZER_STACK_BYTES`] of stack, or
/// every longer text gets a thread of its own.
pub fn start(
    settings: Settings,
    obtain: Obtain,
    deliver: Arc<dyn Deliver>,
    workers: Arc<Workers>,
) -> io::Result<Arc<dyn Engine>> {
    let fault = Fault::from_environment().map_err(io::Error::other)?;
    let load =
        |model: &Obtained, settings: &Settings, shared: &Shared| load(model, settings, shared);
    Ok(Arc::new(start_with(
        settings, obtain, load, deliver, workers, fault,
    )?))
}

/// Like [`start`], for any backend.
fn start_with<B: backend::Backend>(
    settings: Settings,
    obtain: Obtain,
    load: impl Fn(&Obtained, &Settings, &Shared) -> Result<B, String> + Send + 'static,
    deliver: Arc<dyn Deliver>,
    workers: Arc<Workers>,
    fault: Fault,
) -> io::Result<Handle> {
    let room = Places::most(settings.queue) as usize;
    let (sender, receiver) = crossbeam_channel::bounded(room);
    let (ending, ended) = crossbeam_channel::bounded::<Infallible>(0);
    let (preparing, prepared) = crossbeam_channel::bounded::<Infallible>(0);
    let shared = Arc::new(Shared::new(settings.queue, settings.stall_timeout));
    let (parallel, prefixes) = (settings.parallel, settings.prefixes.clone());
    let exit = Exit {
        shared: shared.clone(),
        sender,
        left: receiver.clone(),
    };
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
        parallel,
        prefixes,
        intake: Some(Intake {
            workers,
            exit,
            ending: preparing,
        }),
        shared,
        deliver,
        thread: Some(thread),
        ended,
        prepared,
    })
}

/// The engine as its callers hold it.
struct Handle {
    parallel: u32,
    prefixes: Option<Arc<Folder>>,
    /// `None` only while it is being dropped.
    intake: Option<Intake>,
    shared: Arc<Shared>,
    deliver: Arc<dyn Deliver>,
    thread: Option<JoinHandle<()>>,
    /// Disconnected when the thread ends, so that waiting for the thread can have a timeout.
    ended: Receiver<Infallible>,
    /// Disconnected when no job is being prepared any more and none will be.
    prepared: Receiver<Infallible>,
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
        // A panic may come between the line above and this one.
        let preparer = self.shared.preparer().ok_or(Refused::Loading)?;
        let intake = self.intake.as_ref().ok_or(Refused::Draining)?;
        let under_way = intake.begin();
        if self.shared.life() >= Life::Draining {
            return Err(Refused::Draining);
        }
        if job.prompt.bytes() > preparer.bytes_max() {
            let model = self.shared.model.get();
            let context_length = model.map_or(0, |model| model.context_length);
            return Err(Refused::TooLong { context_length });
        }
        if let Some(estimated) = self.shared.time_to_first_token(&job, self.parallel)
            && job.submitted + estimated >= job.deadline
        {
            return Err(Refused::DeadlineUnmeetable { estimated });
        }
        let (tenant, class) = (job.tenant, job.class);
        let place = self.shared.places.try_take(tenant, class, job.weight);
        let place = place.ok_or_else(|| self.queue_full(tenant, class))?;
        let owed = Owed::new(job, Some(place), self.deliver.clone());
        let sent = intake.submit(owed, preparer, under_way);
        sent.map_err(|owed| {
            owed.take_back();
            self.queue_full(tenant, class)
        })
    }

    fn state(&self) -> State {
        self.shared.state(Moment::now())
    }

    fn model(&self) -> Option<ModelInfo> {
        self.shared.model.get().cloned()
    }

    fn gauges(&self) -> Gauges {
        let folder = self.prefixes.as_ref();
        Gauges {
            prefixes: folder.map(|folder| folder.figures()).unwrap_or_default(),
            ..self.shared.gauges(Moment::now())
        }
    }

    fn forget(&self, tenant: Option<u64>) {
        if let Some(folder) = &self.prefixes {
            folder.forget(tenant);
        }
    }

    fn free_forgotten(&self, _: Option<u64>) {
        if let Some(folder) = &self.prefixes {
            folder.free_forgotten();
        }
    }

    fn await_end(&self, patience: Duration) -> bool {
        // An engine that is being loaded has computed nothing.
        self.prefixes.is_none()
            || matches!(self.state(), State::Loading { .. })
            || self.ended.recv_timeout(patience) == Err(RecvTimeoutError::Disconnected)
    }

    fn end(&self) {
        self.shared.advance(Life::Ending);
        self.shared.wake();
    }

    fn drain(&self) {
        if self.shared.advance(Life::Draining) {
            self.shared.wake();
        }
    }
}

impl Handle {
    fn queue_full(&self, tenant: u64, class: Class) -> Refused {
        Refused::QueueFull {
            retry_after: self.shared.time_to_empty_queue(tenant, class),
        }
    }
}

impl Drop for Handle {
    /// Ends the thread and waits for it and for prompts that are being prepared, so that the
    /// model's memory is free afterwards. Does not wait while the model is being fetched or loaded:
    /// an unresponsive server or disk would keep the process alive.
    fn drop(&mut self) {
        self.end();
        self.intake = None;
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
        // Workers drop what waits, and finish what they have begun.
        if self.prepared.recv_timeout(limits::PREPARING_STOP_PATIENCE)
            == Err(RecvTimeoutError::Timeout)
        {
            log::warn!("stopping without waiting for prompts that are being prepared");
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
        id: obtained.id.as_deref().unwrap_or(&settings.id).into(),
        engine: "llama",
        description: llama.description(),
        context_length: backend::Backend::context_length(&llama) as u32,
        fingerprint: fingerprint(obtained, settings, &llama),
        created: UnixSeconds::now().as_u64(),
        defaults: llama.family().defaults(),
    });
    Ok(llama)
}

/// Returns a digest of everything about a model that decides its output. The daemon's version
/// stands for its own words around a prompt, and for llama.cpp's.
fn fingerprint(obtained: &Obtained, settings: &Settings, llama: &Llama) -> [u8; 32] {
    let context = backend::Backend::context_length(llama);
    let version = env!("CARGO_PKG_VERSION");
    let file = match obtained.sha256.is_empty() {
        true => format!("{:?} {}", obtained.path, llama.description()),
        false => obtained.sha256.clone(),
    };
    let way = (
        settings.kv_type,
        settings.gpu_layers,
        settings.is_reproducible,
    );
    let facts = format!("{version} {file} {:?} {context} {way:?}", llama.family());
    *blake3::hash(facts.as_bytes()).as_bytes()
}
