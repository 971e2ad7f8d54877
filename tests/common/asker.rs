//! An engine in this process, asked one thing at a time.
//!
//! Shows without a daemon how a prompt is handled before anything is computed. An engine that
//! crashes ends the test's whole process.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use autoglmd::core::{Key, Moment};
use autoglmd::engine::llama::{self, KvType, Settings};
use autoglmd::engine::{
    CacheMode, Class, Deliver, Done, Engine, Event, FailReason, Failed, GenerationId, Job, Prompt,
    Refused, Sampling, State, Timings, Usage,
};
use autoglmd::error::ErrorCode;
use autoglmd::offload::{JobKey, Ticket};

use super::workers::workers;
use super::{PATIENCE, eventually};

pub struct Asker {
    engine: Arc<dyn Engine>,
    events: Receiver<Event>,
}

struct Mailbox(Sender<Event>);

impl Deliver for Mailbox {
    fn deliver(&self, events: &mut Vec<(JobKey, Event)>) {
        for (_, event) in events.drain(..) {
            // The test may have failed meanwhile.
            let _ = self.0.send(event);
        }
    }
}

impl Asker {
    /// Returns once the model is ready, and fails the test if it never is.
    pub fn start(path: &Path) -> Asker {
        Asker::try_start(path).unwrap_or_else(|message| panic!("{message}"))
    }

    /// The error is the engine's reason for refusing a model.
    pub fn try_start(path: &Path) -> Result<Asker, String> {
        let path = path.to_owned();
        let settings = Settings {
            id: "tiny".to_owned(),
            family: None,
            stall_timeout: PATIENCE,
            prefixes: None,
            own_words: None,
            parallel: 1,
            threads: 1,
            context: 2048,
            kv_type: Some(KvType::F16),
            queue: 4,
            prompt_budget: Duration::from_millis(250),
            gpu_layers: 0,
            is_reproducible: false,
        };
        let (sender, events) = channel();
        let obtain = Box::new(move |_: &dyn Fn() -> bool| Ok(path.into()));
        let engine = llama::start(settings, obtain, Arc::new(Mailbox(sender)), workers()).unwrap();
        let (outcome, _) = eventually("the model", || match engine.state() {
            State::Ready => Some(Ok(())),
            State::Loading { .. } | State::Stalled { .. } => None,
            State::Failed(message) => Some(Err(message)),
        });
        outcome.map(|()| Asker { engine, events })
    }

    /// Asks for one token, which is enough to know that the prompt was computed.
    pub fn ask(&self, prompt: Prompt) -> Result<Done, Box<Failed>> {
        self.ask_as(1, prompt)
    }

    pub fn ask_as(&self, tenant: u64, prompt: Prompt) -> Result<Done, Box<Failed>> {
        let key = JobKey {
            reactor: 0,
            connection: Key::new(0, 0),
            request: 0,
        };
        let job = Job {
            key,
            id: GenerationId::FIRST,
            tenant,
            class: Class::Live,
            weight: 1,
            prompt,
            sampling: Sampling::default(),
            max_tokens: 1,
            stop: Vec::new(),
            deadline: Moment::NEVER,
            submitted: Moment::now(),
            cache: CacheMode::Bypass,
            ticket: Arc::new(Ticket::new(0)),
        };
        match self.engine.submit(job) {
            Ok(()) => {}
            Err(Refused::TooLong { .. }) => return Err(Box::new(too_long())),
            Err(refused) => panic!("an idle engine refuses: {refused:?}"),
        }
        match self.events.recv_timeout(Duration::from_secs(120)) {
            Ok(Event::Done(done)) => Ok(*done),
            Ok(Event::Failed(failed)) => Err(failed),
            other => panic!("{other:?}"),
        }
    }
}

/// A prompt that has more bytes than the context can hold is refused before a worker sees it; to a
/// test, that is the same as a prompt of too many tokens.
fn too_long() -> Failed {
    Failed {
        reason: FailReason::Error(ErrorCode::ContextLengthExceeded),
        message: "more bytes than the context can hold".to_owned(),
        text: String::new(),
        usage: Usage::default(),
        timings: Timings::default(),
    }
}
