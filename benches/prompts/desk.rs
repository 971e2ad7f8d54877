//! Sends a model all questions, as the daemon does, and keeps its outputs.
//!
//! Owns the engine while one variant is asked. Outputs are kept in a file below `target/`, one line
//! of JSON each, under a digest of everything that they depend on. So an interrupted run continues
//! where it ended, and a changed check or extraction needs no model.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use autoglmd::core::{Key, Moment};
use autoglmd::engine::family::Family;
use autoglmd::engine::llama::{self, KvType, Settings};
use autoglmd::engine::{
    CacheMode, Class, ContextFile, Deliver, Done, Engine, Event, FinishReason, GenerationId, Job,
    Prompt, State, language, prompt,
};
use autoglmd::offload::{JobKey, Ticket};
use serde::{Deserialize, Serialize};

use super::tasks::{Task, Tongue};
use super::workers::workers;

/// Sequences that are computed together.
const PARALLEL: u32 = 16;

/// Context of each. The longest request takes about 400 tokens.
const CONTEXT_TOKENS: u32 = 2048;

/// A question for a model.
#[derive(Clone, Copy)]
pub struct Question<'a> {
    pub task: &'a Task,
    pub tongue: Tongue,
}

/// A model, and how to run and ask it.
pub struct Variant {
    pub model: String,
    pub path: PathBuf,
    pub digest: blake3::Hash,
    pub wording: &'static str,
    pub family: &'static Family,
    pub kv_type: KvType,
    pub max_tokens: u32,
    pub threads: u32,
}

/// The output of a model.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Written {
    key: String,
    /// The model's description of itself, with the type of its weights.
    pub weights: String,
    pub text: String,
    /// Whether the output ended by itself.
    pub is_complete: bool,
    pub tokens: u32,
}

/// All outputs that were ever written, by their keys.
pub struct Archive {
    file: File,
    written: HashMap<String, Written>,
}

impl Archive {
    /// Opens the file, or begins a new one.
    pub fn open(path: &Path, is_fresh: bool) -> Archive {
        if is_fresh {
            let _ = fs::remove_file(path);
        }
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .read(true)
            .open(path)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let mut written = HashMap::new();
        for line in BufReader::new(&file).lines() {
            let line = line.expect("the archive is text");
            // A run that was killed may have left half a line.
            if let Ok(answer) = serde_json::from_str::<Written>(&line) {
                written.insert(answer.key.clone(), answer);
            }
        }
        Archive { file, written }
    }

    fn add(&mut self, answer: Written) {
        let mut line = serde_json::to_string(&answer).expect("text and numbers");
        line.insert(0, '\n');
        self.file
            .write_all(line.as_bytes())
            .expect("the archive can be written");
        self.written.insert(answer.key.clone(), answer);
    }
}

/// Returns the outputs for all questions, in their order. `None` for those that `deadline` cut off.
pub fn ask(
    variant: &Variant,
    questions: &[Question<'_>],
    archive: &mut Archive,
    deadline: Instant,
) -> Option<Vec<Written>> {
    let keys: Vec<String> = questions
        .iter()
        .map(|question| key(variant, question))
        .collect();
    let missing: Vec<usize> = (0..questions.len())
        .filter(|index| !archive.written.contains_key(&keys[*index]))
        .collect();
    if !missing.is_empty() {
        write_missing(variant, questions, &keys, &missing, archive, deadline)?;
    }
    Some(
        keys.iter()
            .map(|key| archive.written[key].clone())
            .collect(),
    )
}

fn write_missing(
    variant: &Variant,
    questions: &[Question<'_>],
    keys: &[String],
    missing: &[usize],
    archive: &mut Archive,
    deadline: Instant,
) -> Option<()> {
    let desk = Desk::open(variant);
    let weights = desk.engine.model().expect("it is loaded").description;
    for index in missing {
        let job = job(variant, &questions[*index], *index as u32);
        desk.engine.submit(job).expect("the queue is long enough");
    }
    for count in 1..=missing.len() {
        let (index, done) = desk.next(deadline)?;
        archive.add(Written {
            key: keys[index].clone(),
            weights: weights.clone(),
            is_complete: done.finish_reason == FinishReason::Stop,
            tokens: done.usage.completion_tokens,
            text: done.text,
        });
        eprint!(
            "\r{} {}: {count} of {}",
            variant.model,
            variant.wording,
            missing.len()
        );
    }
    eprintln!();
    Some(())
}

/// Returns a digest of everything that an output depends on.
fn key(variant: &Variant, question: &Question<'_>) -> String {
    let Prompt::Code {
        language,
        prompt,
        context,
    } = prompt(question)
    else {
        unreachable!("a program is asked for")
    };
    let language = language.and_then(language::language);
    let all = format!(
        "{} {:?} {:?} {:?} {} {PARALLEL} {CONTEXT_TOKENS} {}",
        variant.digest,
        variant.kv_type,
        prompt::conversation(variant.family, language, &prompt, &context),
        variant.family.sampling(),
        variant.max_tokens,
        env!("CARGO_PKG_VERSION"),
    );
    blake3::hash(all.as_bytes()).to_hex().to_string()
}

fn prompt(question: &Question<'_>) -> Prompt {
    let files = question.task.context.iter();
    Prompt::Code {
        language: Some(question.task.language),
        prompt: question.task.request(question.tongue).to_owned(),
        context: files
            .map(|file| ContextFile {
                path: file.path.clone(),
                text: file.text.trim_start_matches('\n').to_owned(),
            })
            .collect(),
    }
}

fn job(variant: &Variant, question: &Question<'_>, request: u32) -> Job {
    Job {
        key: JobKey {
            reactor: 0,
            connection: Key::new(0, 0),
            request,
        },
        id: GenerationId::FIRST,
        tenant: 1,
        class: Class::Live,
        weight: 1,
        prompt: prompt(question),
        sampling: variant.family.sampling(),
        max_tokens: variant.max_tokens,
        stop: Vec::new(),
        deadline: Moment::NEVER,
        submitted: Moment::now(),
        cache: CacheMode::Bypass,
        ticket: Arc::new(Ticket::new(0)),
    }
}

/// The engine, and the one channel through which all its events return.
struct Desk {
    engine: Arc<dyn Engine>,
    events: Receiver<(JobKey, Event)>,
}

struct Mailbox(Sender<(JobKey, Event)>);

impl Deliver for Mailbox {
    fn deliver(&self, events: &mut Vec<(JobKey, Event)>) {
        for event in events.drain(..) {
            // The receiver is gone only when the bench ends.
            let _ = self.0.send(event);
        }
    }
}

impl Desk {
    fn open(variant: &Variant) -> Desk {
        let (sender, events) = channel();
        let settings = Settings {
            id: variant.model.clone(),
            family: Some(variant.family),
            parallel: PARALLEL,
            threads: variant.threads,
            context: CONTEXT_TOKENS,
            kv_type: Some(variant.kv_type),
            queue: 1024,
            prompt_budget: Duration::from_millis(250),
            is_reproducible: false,
            gpu_layers: 0,
            stall_timeout: Duration::from_secs(300),
            prefixes: None,
            own_words: None,
        };
        let path = variant.path.clone();
        let obtain = Box::new(move |_: &dyn Fn() -> bool| Ok(path.into()));
        let engine =
            llama::start(settings, obtain, Arc::new(Mailbox(sender)), workers()).expect("a thread");
        loop {
            match engine.state() {
                State::Ready => return Desk { engine, events },
                State::Loading { .. } | State::Stalled { .. } => {
                    std::thread::sleep(Duration::from_millis(10))
                }
                State::Failed(message) => panic!("{message}"),
            }
        }
    }

    /// Returns the next output that is complete, and the question that it belongs to.
    fn next(&self, deadline: Instant) -> Option<(usize, Box<Done>)> {
        let patience = deadline.saturating_duration_since(Instant::now());
        match self.events.recv_timeout(patience) {
            Ok((key, Event::Done(done))) => Some((key.request as usize, done)),
            Ok((_, Event::Failed(failed))) => panic!("{}", failed.message),
            Ok((_, Event::Served(_) | Event::Token { .. })) => unreachable!("no credit was given"),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => panic!("the engine stopped"),
        }
    }
}
