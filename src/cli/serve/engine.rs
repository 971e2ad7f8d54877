//! Which engine the configuration asks for, and how it comes by its model.

#[cfg(feature = "llama")]
use std::path::{Path, PathBuf};
use std::sync::Arc;

use socket2::Socket;

use super::Failure;
#[cfg(not(feature = "llama"))]
use super::exit;
use crate::config::{Config, EngineKind};
use crate::engine::Engine;
use crate::engine::echo::Echo;
#[cfg(feature = "llama")]
use crate::engine::family::Family;
use crate::reactor::message::Mailboxes;
#[cfg(feature = "llama")]
use crate::store::models::Entry;

/// What has to happen before anything else, because it may start this program anew.
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

/// Returns at once; a model is obtained and loaded on the engine's own thread.
pub fn start(config: &Config, deliver: Arc<Mailboxes<Socket>>) -> Result<Arc<dyn Engine>, Failure> {
    match config.engine.kind {
        EngineKind::Echo => Ok(Echo::new(deliver)),
        #[cfg(feature = "llama")]
        EngineKind::Llama => start_llama(config, deliver),
        #[cfg(not(feature = "llama"))]
        EngineKind::Llama => Err(Failure::new(
            exit::CONFIG,
            "engine.kind = \"llama\" is not compiled in: build with the feature `llama`, or start \
             with `--engine echo`",
        )),
    }
}

#[cfg(feature = "llama")]
fn start_llama(
    config: &Config,
    deliver: Arc<Mailboxes<Socket>>,
) -> Result<Arc<dyn Engine>, Failure> {
    use crate::config::KvType;
    use crate::engine::llama;

    let engine = &config.engine;
    let settings = llama::Settings {
        id: model_id(&engine.model),
        family: family_of(&engine.model),
        parallel: engine.parallel,
        threads: engine.threads,
        context: engine.context,
        kv_type: match engine.kv_type {
            KvType::Auto => None,
            KvType::F16 => Some(llama::KvType::F16),
            KvType::Q8_0 => Some(llama::KvType::Q8_0),
        },
        queue: engine.queue,
        prefill_chunk: engine.prefill_chunk,
        is_reproducible: engine.reproducible,
        gpu_layers: engine.gpu_layers,
        stall_timeout: engine.stall_timeout,
    };
    let (model, cache_dir) = (engine.model.clone(), config.cache_dir.clone());
    let obtain =
        Box::new(move |is_wanted: &dyn Fn() -> bool| obtain_model(&model, &cache_dir, is_wanted));
    llama::start(settings, obtain, deliver)
        .map_err(|error| Failure::os("starting the engine", &error))
}

/// The name that answers carry: a file's own name where the model is a file.
#[cfg(feature = "llama")]
fn model_id(model: &str) -> String {
    let stem = Path::new(model)
        .file_stem()
        .map(|stem| stem.to_string_lossy().into_owned());
    if model.ends_with(".gguf") {
        stem.unwrap_or_default()
    } else {
        model.to_owned()
    }
}

/// What the catalogue says about how a model is asked; of any other file its metadata decide.
#[cfg(feature = "llama")]
fn family_of(model: &str) -> Option<&'static Family> {
    Entry::find(model).and_then(|entry| Family::find(entry.family))
}

/// On the engine's thread, before it loads: a pinned model that is not here yet is fetched.
#[cfg(feature = "llama")]
fn obtain_model(
    model: &str,
    cache_dir: &Path,
    is_wanted: &dyn Fn() -> bool,
) -> Result<PathBuf, String> {
    use std::ops::ControlFlow;

    use crate::cli::model::{ProgressDisplay, means};
    use crate::store::models::Models;

    let mut display = ProgressDisplay::new();
    Models::new(cache_dir)
        .ensure(model, &means(), &mut |progress| {
            display.show(&progress);
            match is_wanted() {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            }
        })
        .map(|found| found.path)
        .map_err(|error| error.to_string())
}

#[cfg(all(test, feature = "llama"))]
mod tests {
    use super::*;
    use crate::store::models::CATALOGUE;

    #[test]
    fn every_family_of_the_catalogue_is_known() {
        for entry in CATALOGUE {
            let family = family_of(entry.name).map(|family| family.name);
            assert_eq!(family, Some(entry.family), "{}", entry.name);
        }
        assert_eq!(family_of("/some/file.gguf"), None);
    }
}
