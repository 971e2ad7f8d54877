//! Preloading: things that the first requests after a start would wait for.
//!
//! Owns the order: the most used entries of the store, while there is room in memory, then the
//! daemon's own words of the prompts, which the engine computes once and keeps for every client. It
//! begins when the model is loaded, and ends after [`limits::PRELOAD_TIME`] at the latest. Nothing
//! waits for it: a step is taken only while the engine is idle, and `/readyz` does not know of it.
//!
//! Steps run on the timer's thread, and pages come back on the store's. Must never remove an entry
//! of memory: one that finds no room is left out.
//!
//! Mutations that tests catch: a step beside a running generation, no end by time (both in
//! `a_step_is_taken_only_by_an_idle_engine_...`), entries without their check
//! (`preloading_brings_entries_...` in `tests/policies.rs`), and those listed in
//! `tests/preload.rs`.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::entry::Entry;
use super::results::Results;
use super::sealed::open;
use super::timer::Timer;
use crate::core::{Key, Moment, UnixMillis};
use crate::engine::language::LANGUAGES;
use crate::engine::{
    CacheMode, Class, Engine, GenerationId, Job, Prompt, Sampling, State as EngineState,
};
use crate::limits::cache as limits;
use crate::offload::{JobKey, Ticket};
use crate::store::interface::entries::{EntryPlace, EntryRow};
use crate::store::{Requests, Store, StoreError, StoreTask};

crate::families! {
    /// Things that were brought into memory after the start.
    pub struct PreloadSeries {
        /// Entries of the store, and prompts of the daemon, that were preloaded.
        preloaded: Counter = "cache_preloaded" [ kind: Kind ], "autoglmd.cache.preloaded";
    }
}

/// A kind of things that are preloaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Entry,
    Prompt,
}

impl Kind {
    const ALL: [Kind; 2] = [Kind::Entry, Kind::Prompt];

    const fn as_str(self) -> &'static str {
        match self {
            Kind::Entry => "entry",
            Kind::Prompt => "prompt",
        }
    }
}

crate::label!(Kind, as_str, Kind::ALL, 0);

/// See the file's head.
pub struct Preload {
    results: Arc<Results>,
    /// The engine that computes.
    engine: Arc<dyn Engine>,
    timer: Timer,
    requests: Arc<Requests>,
    series: Arc<PreloadSeries>,
    plan: Mutex<Plan>,
}

/// The order of the steps.
#[derive(Debug)]
struct Plan {
    stage: Stage,
    /// Known once the model is loaded.
    until: Option<Moment>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// After this entry.
    Entries(Option<EntryPlace>),
    /// From this one on: 0 is the prompt without a language.
    Prompts(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// Look again later.
    Rest,
    Page(Option<EntryPlace>),
    Prompt(Option<&'static str>),
    Over,
}

impl Plan {
    fn next(&mut self, now: Moment, is_busy: bool) -> Next {
        let until = *self.until.get_or_insert(now + limits::PRELOAD_TIME);
        match self.stage {
            _ if now >= until => Next::Over,
            _ if is_busy => Next::Rest,
            Stage::Entries(after) => Next::Page(after),
            Stage::Prompts(number) => {
                self.stage = Stage::Prompts(number + 1);
                match number.checked_sub(1) {
                    None => Next::Prompt(None),
                    Some(index) if index >= limits::PRELOADED_LANGUAGES_MAX => Next::Over,
                    Some(index) => match LANGUAGES.get(index) {
                        Some(language) => Next::Prompt(Some(language.name)),
                        None => Next::Over,
                    },
                }
            }
        }
    }
}

impl Preload {
    /// `has_entries`: the store keeps entries.
    pub fn new(
        results: Arc<Results>,
        engine: Arc<dyn Engine>,
        timer: Timer,
        requests: Arc<Requests>,
        series: Arc<PreloadSeries>,
        has_entries: bool,
    ) -> Preload {
        let stage = match has_entries {
            true => Stage::Entries(None),
            false => Stage::Prompts(0),
        };
        Preload {
            results,
            engine,
            timer,
            requests,
            series,
            plan: Mutex::new(Plan { stage, until: None }),
        }
    }

    /// Begins once the model is loaded.
    pub fn begin(self) {
        Arc::new(self).again(Duration::ZERO);
    }

    fn again(self: Arc<Self>, pause: Duration) {
        let timer = self.timer.clone();
        // If too many acts wait, there is work enough without this.
        timer.at(Moment::now() + pause, move || self.step());
    }

    fn step(self: Arc<Self>) {
        let model = match (self.engine.state(), self.engine.model()) {
            (EngineState::Failed(_), _) => return,
            (EngineState::Ready, Some(model)) => model,
            _ => return self.again(limits::PRELOAD_PAUSE),
        };
        let has_prompts = model.fingerprint != [0; 32];
        self.results.model.get_or_init(|| model);
        let gauges = self.engine.gauges();
        let is_busy = gauges.sequences_running > 0
            || gauges.queue_depth > 0
            || self.requests.health().is_failing();
        let next = self.lock().next(Moment::now(), is_busy);
        match next {
            Next::Rest => self.again(limits::PRELOAD_PAUSE),
            Next::Page(after) => {
                let page = Page {
                    after,
                    rows: Vec::new(),
                    preload: Arc::clone(&self),
                };
                if self.requests.submit(0, Box::new(page)).is_err() {
                    self.again(limits::PRELOAD_PAUSE);
                }
            }
            // An engine without a model has none to read.
            Next::Prompt(language) if has_prompts => {
                self.compute(language);
                self.again(limits::PRELOAD_PAUSE);
            }
            Next::Prompt(_) | Next::Over => log::debug!("preloading has ended"),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the engine read a prompt that has the daemon's own words and no other.
    fn compute(&self, language: Option<&'static str>) {
        let now = Moment::now();
        let job = Job {
            // No flight has this number, so the events end with the results.
            key: JobKey {
                reactor: JobKey::FLIGHTS,
                connection: Key::from_u64(u64::MAX),
                request: 0,
            },
            id: GenerationId::FIRST,
            tenant: 0,
            class: Class::Background,
            weight: 1,
            prompt: Prompt::Code {
                language,
                prompt: "x".to_owned(),
                context: Vec::new(),
            },
            sampling: Sampling::default(),
            max_tokens: 1,
            stop: Vec::new(),
            deadline: now + limits::PRELOAD_TIME,
            submitted: now,
            cache: CacheMode::Bypass,
            ticket: Arc::new(Ticket::new(0)),
        };
        if self.engine.submit(job).is_ok() {
            self.series.preloaded.get(Kind::Prompt).inc();
        }
    }

    /// Handles a page, on the store's thread.
    fn handle_page(self: Arc<Self>, rows: Vec<(EntryPlace, EntryRow)>) {
        let last = rows.last().map(|(place, _)| *place);
        let rows = rows.into_iter().map(|(_, row)| row);
        let stored = rows.filter(|row| self.store(row)).count();
        self.series.preloaded.get(Kind::Entry).inc_by(stored as u64);
        // A page of which nothing was stored found no room, and the next ones are used less.
        let next = last.filter(|_| stored > 0);
        self.lock().stage = match next {
            Some(_) => Stage::Entries(next),
            None => Stage::Prompts(0),
        };
        self.again(Duration::ZERO);
    }

    fn store(&self, row: &EntryRow) -> bool {
        let now = (UnixMillis::now(), Moment::now());
        let id = self.results.id_of(row.digest, row.tenant);
        let entry = id.and_then(|id| open(id, row.value.clone()));
        let entry = entry.and_then(|bytes| Entry::decode(&bytes, None, now));
        entry.is_some_and(|entry| self.results.preload(row.digest, row.tenant, entry))
    }
}

/// Reads a page of the most used entries.
struct Page {
    after: Option<EntryPlace>,
    rows: Vec<(EntryPlace, EntryRow)>,
    preload: Arc<Preload>,
}

impl StoreTask for Page {
    fn run(&mut self, store: &mut dyn Store) -> Result<(), StoreError> {
        let now = UnixMillis::now().as_u64();
        self.rows = store.most_used_entries(now, self.after, limits::PRELOADED_PAGE_ENTRIES)?;
        Ok(())
    }

    fn finish(self: Box<Self>, result: Result<(), &StoreError>) {
        match result {
            Ok(()) => self.preload.handle_page(self.rows),
            Err(_) => self.preload.again(limits::PRELOAD_PAUSE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_taken_only_by_an_idle_engine_and_all_ends_with_the_time() {
        let mut plan = Plan {
            stage: Stage::Entries(None),
            until: None,
        };
        let start = Moment::from_micros(5_000_000);
        assert_eq!(plan.next(start, true), Next::Rest);
        assert_eq!(plan.next(start, false), Next::Page(None));
        plan.stage = Stage::Prompts(0);
        assert_eq!(plan.next(start, true), Next::Rest);
        assert_eq!(plan.next(start, false), Next::Prompt(None));
        assert_eq!(plan.next(start, false), Next::Prompt(Some("python")));
        let end = start + limits::PRELOAD_TIME;
        assert_eq!(plan.next(end, true), Next::Over);
        assert_eq!(plan.next(end, false), Next::Over);
    }

    #[test]
    fn each_prompt_is_read_once() {
        let mut plan = Plan {
            stage: Stage::Prompts(0),
            until: None,
        };
        let mut prompts = Vec::new();
        while let Next::Prompt(language) = plan.next(Moment::ZERO, false) {
            assert!(!prompts.contains(&language));
            prompts.push(language);
        }
        assert_eq!(prompts.len(), 1 + limits::PRELOADED_LANGUAGES_MAX);
    }
}
