//! Chooses the engine by the configuration, and obtains its model.

#[cfg(feature = "llama")]
use std::collections::BTreeMap;
use std::ops::Deref;
#[cfg(feature = "llama")]
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::failure::Failure;
use super::part::{Birth, Part, Settings};
use crate::cache::cached::Cached;
use crate::cache::metrics::{CacheSeries, Level, Verdicts};
use crate::cache::preload::Preload;
use crate::cache::results::{Levels, Results};
use crate::cache::shared::{RedisLevel, SharedLevel};
use crate::cache::stored::StoreLevel;
use crate::cache::timer::TimerThread;
#[cfg(feature = "llama")]
use crate::config::Model;
use crate::config::{Config, EngineKind};
#[cfg(not(feature = "llama"))]
use crate::console::exit;
use crate::core::Moment;
use crate::engine::echo::Echo;
#[cfg(feature = "llama")]
use crate::engine::family::Family;
#[cfg(feature = "llama")]
use crate::engine::llama::{self, Obtained};
#[cfg(feature = "llama")]
use crate::engine::prefixes::{self, Folder, OwnPlace};
use crate::engine::{Deliver, Engine};
use crate::limits::prefixes as prefix_limits;
use crate::offload::Workers;
use crate::reactor::message::Mailboxes;
use crate::runner::Destinations;

/// Must run before anything else, because it may execute this program again.
pub fn prepare_process(config: &Config) -> Result<(), Failure> {
    #[cfg(feature = "llama")]
    if config.engine.kind == EngineKind::Llama {
        crate::engine::llama::ensure_short_spin()
            .map_err(|error| Failure::os("setting GOMP_SPINCOUNT", &error))?;
    }
    #[cfg(not(feature = "llama"))]
    let _ = config;
    Ok(())
}

/// The engine, as a part.
pub struct EnginePart {
    engine: Arc<dyn Engine>,
    results: Arc<Results>,
    /// `None` once it has ended.
    timer: Option<TimerThread>,
}

impl Part for EnginePart {
    fn start(birth: &mut Birth) -> Result<EnginePart, Failure> {
        let mailboxes = birth.spawner.as_ref().map(|spawner| spawner.mailboxes());
        let deliver = Arc::new(Destinations {
            requests: Mailboxes(mailboxes.unwrap_or_default()),
            journal: birth.jobs.journal.clone(),
        });
        let verdicts = Verdicts::of(&birth.metrics.series::<CacheSeries>(), Level::Generation);
        let (buffered, cache) = (birth.buffered.clone(), &birth.config.cache);
        let shared = birth.redis.clone().map(|(_, redis)| {
            let level = RedisLevel::new(redis, birth.metrics.series());
            Arc::new(level) as Arc<dyn SharedLevel>
        });
        let (thread, timer) = TimerThread::start()
            .map_err(|error| Failure::os("starting the cache's thread", &error))?;
        let stored = cache.persist.then(|| {
            let (requests, series) = (birth.requests.clone(), birth.metrics.series());
            StoreLevel::new(requests, cache, series, timer.clone())
        });
        let levels = Levels {
            verdicts,
            shared,
            stored,
        };
        let clock = Box::new(Moment::now);
        let results = Arc::new(Results::new(deliver, buffered, cache, levels, clock));
        let computing = start(&birth.config, results.clone(), &birth.workers)?;
        birth.timer = Some(timer.clone());
        if cache.enabled && cache.preload {
            let (requests, series) = (birth.requests.clone(), birth.metrics.series());
            let (results, engine) = (results.clone(), computing.clone());
            Preload::new(results, engine, timer, requests, series, cache.persist).begin();
        }
        let engine: Arc<dyn Engine> = Arc::new(Cached::new(results.clone(), computing));
        birth.engine = Some(engine.clone());
        Ok(EnginePart {
            engine,
            results,
            timer: Some(thread),
        })
    }

    fn apply(&mut self, settings: &Settings) {
        self.results.apply(&settings.config.cache);
    }

    fn keep(&mut self, is_over: &mut dyn FnMut() -> bool) {
        keep(&*self.engine, prefix_limits::DRAIN_TIME_MAX, is_over);
    }

    fn join(&mut self) -> bool {
        self.timer = None;
        true
    }
}

/// Lets an engine keep what it has computed, for up to `patience`, and then ends it. Without any
/// time the engine is only ended: a drain would let its thread begin to keep prefixes before the
/// second order comes.
fn keep(engine: &dyn Engine, patience: Duration, is_over: &mut dyn FnMut() -> bool) {
    if is_over() {
        return engine.end();
    }
    engine.drain();
    let until = Moment::now() + patience;
    while !is_over() && Moment::now() < until {
        if engine.await_end(prefix_limits::END_POLL_INTERVAL) {
            return;
        }
    }
    engine.end();
}

impl Deref for EnginePart {
    type Target = dyn Engine;

    fn deref(&self) -> &(dyn Engine + 'static) {
        &*self.engine
    }
}

/// Returns at once; a model is obtained and loaded on the engine's own thread.
fn start(
    config: &Config,
    deliver: Arc<dyn Deliver>,
    workers: &Arc<Workers>,
) -> Result<Arc<dyn Engine>, Failure> {
    #[cfg(not(feature = "llama"))]
    let _ = workers;
    match config.engine.kind {
        EngineKind::Echo => Ok(Echo::new(deliver)),
        #[cfg(feature = "llama")]
        EngineKind::Llama => start_llama(config, deliver, workers.clone()),
        #[cfg(not(feature = "llama"))]
        EngineKind::Llama => Err(Failure::new(
            exit::CONFIG,
            "engine.kind = \"llama\" is not compiled in; build with the feature `llama`, or start \
             with `--engine echo`",
        )),
    }
}

#[cfg(feature = "llama")]
fn start_llama(
    config: &Config,
    deliver: Arc<dyn Deliver>,
    workers: Arc<Workers>,
) -> Result<Arc<dyn Engine>, Failure> {
    use super::prover;

    let (engine, settings) = (&config.engine, settings(config));
    let (models, cache_dir) = (engine.model.clone(), config.cache_dir.clone());
    let (sections, common) = (config.models.clone(), settings.clone());
    let obtain = Box::new(move |is_wanted: &dyn Fn() -> bool| {
        let mut obtained = obtain_model(&models, &cache_dir, is_wanted)?;
        describe(&mut obtained, &sections);
        let own = obtained.adjust(&common);
        prover::prove(&obtained.path, own.kv_type, own.gpu_layers, is_wanted)?;
        Ok(obtained)
    });
    llama::start(settings, obtain, deliver, workers)
        .map_err(|error| Failure::os("starting the engine", &error))
}

/// Returns the settings that are the same for every model.
#[cfg(feature = "llama")]
fn settings(config: &Config) -> llama::Settings {
    let engine = &config.engine;
    llama::Settings {
        // Known once the model is obtained.
        id: String::new(),
        family: None,
        parallel: engine.parallel,
        threads: engine.threads,
        context: engine.context,
        kv_type: engine.kv_type,
        queue: engine.queue,
        prompt_budget: engine.prompt_budget,
        is_reproducible: engine.reproducible,
        gpu_layers: engine.gpu_layers,
        stall_timeout: engine.stall_timeout,
        prefixes: (config.cache.prefixes > 0).then(|| {
            let folder = prefixes::folder(&config.state_dir);
            Arc::new(Folder::new(folder, config.cache.prefixes as u64))
        }),
        own_words: Some(OwnPlace::new(
            prefixes::folder(&config.state_dir),
            config.disk_shares().own_words,
        )),
    }
}

/// Adds the settings of the model's own section, if it has one.
#[cfg(feature = "llama")]
fn describe(obtained: &mut Obtained, sections: &BTreeMap<String, Model>) {
    let section = obtained.id.as_ref().and_then(|id| sections.get(id));
    if let Some(section) = section {
        obtained.context = section.context;
        obtained.kv_type = section.kv_type;
        obtained.gpu_layers = section.gpu_layers;
    }
}

/// Runs on the engine's thread, before it loads: returns the first model of the list that is
/// available.
#[cfg(feature = "llama")]
fn obtain_model(
    models: &[String],
    cache_dir: &Path,
    is_wanted: &dyn Fn() -> bool,
) -> Result<Obtained, String> {
    use std::ops::ControlFlow;

    use crate::console::progress::ProgressDisplay;
    use crate::models::{Means, Models};

    let mut display = ProgressDisplay::new();
    let found =
        Models::new(cache_dir).ensure_one_of(models, &Means::of_process(), &mut |progress| {
            display.show(&progress);
            match is_wanted() {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            }
        });
    let found = found.map_err(|error| error.to_string())?;
    Ok(Obtained {
        path: found.path,
        sha256: found.sha256,
        id: Some(found.name),
        // A file of the catalogue is recognised by its digest, any other by its metadata.
        family: found.entry.and_then(|entry| Family::find(entry.family)),
        ..Obtained::default()
    })
}

#[cfg(test)]
mod end_tests {
    use super::*;
    use crate::engine::{Gauges, Job, ModelInfo, Refused, State};
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Has something to keep for a number of waits.
    #[derive(Default)]
    struct Keeper {
        waits_left: AtomicUsize,
        drained: AtomicUsize,
        ended: AtomicUsize,
    }

    impl Engine for Keeper {
        fn submit(&self, _: Job) -> Result<(), Refused> {
            Err(Refused::Draining)
        }

        fn state(&self) -> State {
            State::Ready
        }

        fn model(&self) -> Option<ModelInfo> {
            None
        }

        fn gauges(&self) -> Gauges {
            Gauges::default()
        }

        fn drain(&self) {
            self.drained.fetch_add(1, Ordering::Relaxed);
        }

        fn await_end(&self, _: Duration) -> bool {
            self.waits_left.fetch_sub(1, Ordering::Relaxed) == 1
        }

        fn end(&self) {
            self.ended.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Mutations that this test catches: no patience; an `is_over` that is not asked; an engine
    /// that is not ended; one that is drained although it has no time.
    #[test]
    fn engine_is_awaited_until_it_ends_or_the_time_is_over() {
        const LONG: Duration = Duration::from_secs(3_600);
        let waits_left = |patience, mut looks: usize| {
            let keeper = Keeper {
                waits_left: AtomicUsize::new(5),
                ..Keeper::default()
            };
            let has_time = looks > 1;
            keep(&keeper, patience, &mut || {
                looks -= 1;
                looks == 0
            });
            assert_eq!(keeper.drained.into_inner() == 1, has_time);
            let waits_left = keeper.waits_left.into_inner();
            let is_ended = keeper.ended.into_inner() == 1;
            assert_eq!(is_ended, waits_left > 0);
            waits_left
        };
        assert_eq!(waits_left(LONG, 100), 0);
        assert_eq!(waits_left(LONG, 4), 3);
        assert_eq!(waits_left(LONG, 1), 5);
        assert_eq!(waits_left(Duration::ZERO, 100), 5);
    }
}

#[cfg(all(test, feature = "llama"))]
mod tests {
    use super::*;
    use crate::models::{CATALOGUE, DEFAULT_MODEL};

    #[test]
    fn every_family_of_the_catalogue_is_known() {
        for entry in CATALOGUE {
            let family = Family::find(entry.family).map(|family| family.name);
            assert_eq!(family, Some(entry.family), "{}", entry.name);
        }
        assert_eq!(Config::default().engine.model, [DEFAULT_MODEL]);
    }

    /// Mutation: `adjust` that keeps the settings' own context.
    #[test]
    fn a_models_section_wins_over_the_engines() {
        let section = Model {
            context: Some(2_048),
            kv_type: Some(None),
            ..Model::default()
        };
        let sections = BTreeMap::from([("small".to_owned(), section)]);
        let of = |id: &str| {
            let mut obtained = Obtained {
                id: Some(id.to_owned()),
                ..Obtained::default()
            };
            describe(&mut obtained, &sections);
            obtained
        };
        let common = llama::Settings {
            context: 4_096,
            kv_type: Some(llama::KvType::F16),
            gpu_layers: 7,
            ..settings(&Config::default())
        };
        let own = of("small").adjust(&common);
        assert_eq!((own.context, own.kv_type, own.gpu_layers), (2_048, None, 7));
        let other = of("other").adjust(&common);
        assert_eq!(
            (other.context, other.kv_type, other.gpu_layers),
            (common.context, common.kv_type, common.gpu_layers)
        );
    }
}
