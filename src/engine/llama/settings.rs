//! How a model is run, and where its file comes from.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::engine::family::{Family, KvType};
use crate::engine::prefixes::{Folder, OwnPlace};

/// How to run a model.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The name in responses.
    pub id: String,
    /// From the catalogue; `None` leaves it to the file's metadata.
    pub family: Option<&'static Family>,
    /// Sequences that are computed together.
    pub parallel: u32,
    /// Compute threads. 0: chosen by the machine's cores.
    pub threads: u32,
    /// Context of one sequence in tokens. 0: chosen by model and memory.
    pub context: u32,
    /// `None` leaves it to the model's family.
    pub kv_type: Option<KvType>,
    /// Jobs that may wait for a sequence.
    pub queue: u32,
    /// Time for reading prompts between two tokens of running outputs.
    pub prompt_budget: Duration,
    /// Output does not depend on what else is computed, at the price of speed.
    pub is_reproducible: bool,
    /// Layers on the GPU, if a GPU backend is compiled in.
    pub gpu_layers: u32,
    /// How long a step may go without a sign of life before the engine counts as stalled.
    pub stall_timeout: Duration,
    /// The folder in which computed prefixes survive the engine; `None`: they do not.
    pub prefixes: Option<Arc<Folder>>,
    /// The place where the daemon's own words survive it, once they are computed; `None`: they do
    /// not.
    pub own_words: Option<OwnPlace>,
}

/// A model's file, and facts about it that the settings cannot contain because they do not know
/// which of several models is available.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Obtained {
    pub path: PathBuf,
    /// Of the file; empty if it is not known.
    pub sha256: String,
    /// Replaces [`Settings::id`].
    pub id: Option<String>,
    /// Replaces [`Settings::family`].
    pub family: Option<&'static Family>,
    /// Replaces [`Settings::context`].
    pub context: Option<u32>,
    /// Replaces [`Settings::kv_type`].
    pub kv_type: Option<Option<KvType>>,
    /// Replaces [`Settings::gpu_layers`].
    pub gpu_layers: Option<u32>,
}

impl Obtained {
    /// Returns the settings of this model.
    pub fn adjust(&self, settings: &Settings) -> Settings {
        Settings {
            context: self.context.unwrap_or(settings.context),
            kv_type: self.kv_type.unwrap_or(settings.kv_type),
            gpu_layers: self.gpu_layers.unwrap_or(settings.gpu_layers),
            ..settings.clone()
        }
    }
}

impl From<PathBuf> for Obtained {
    fn from(path: PathBuf) -> Obtained {
        Obtained {
            path,
            ..Obtained::default()
        }
    }
}

/// Returns the GGUF file, after fetching it if necessary; the error is for people. The argument
/// reports whether the model is still wanted: if not, the function must end as soon as it can.
pub type Obtain = Box<dyn FnOnce(&dyn Fn() -> bool) -> Result<Obtained, String> + Send>;
