//! A GGUF model as the scheduler's backend: llama.cpp computes.
//!
//! Owns the one context of the engine, and so the KV cache. Lives on the engine's thread.

use std::path::Path;
use std::sync::Arc;

use super::backend::{Backend, Batch, DecodeError, Prepare, Token};
use super::controls::Controls;
use super::ffi::{self, Context, ContextSettings, LoadError, Model};
use super::metadata;
use super::preparer::Preparer;
use super::sampler::Sampler;
use super::template::Template;
use crate::core::Moment;
use crate::engine::Sampling;
use crate::engine::family::{Family, KvType, Traits};
use crate::engine::prefixes::Origin;

#[derive(Debug)]
pub struct Llama {
    model: Arc<Model>,
    context: Context,
    family: &'static Family,
    preparer: Arc<Preparer>,
}

impl Llama {
    /// Loads the file and, once the model is known, creates the context that `plan` asks for.
    /// Without a `family` the file's metadata decide.
    pub fn load(
        path: &Path,
        family: Option<&'static Family>,
        gpu_layers: u32,
        progress: &mut dyn FnMut(f32) -> bool,
        plan: impl FnOnce(&Model, &Family) -> Result<ContextSettings, LoadError>,
    ) -> Result<Llama, LoadError> {
        metadata::check(path)
            .map_err(|reason| LoadError(format!("{}: {reason}", path.display())))?;
        let model = Arc::new(Model::load(path, gpu_layers, progress)?);
        let start_text = model.start_text().unwrap_or_default();
        let end_text = model.end_text().unwrap_or_default();
        let source = model.chat_template();
        let family = family.unwrap_or_else(|| recognise(&model, source.as_deref()));
        let context = Context::new(model.clone(), plan(&model, family)?)?;
        let system = match source {
            Some(_) => None,
            None => family.default_system,
        };
        let useless = |says: String| {
            let name = path.display();
            LoadError(format!(
                "{name}: the model's chat template cannot be used: {says}"
            ))
        };
        let template = Template::new(source.as_deref(), &start_text, &end_text).map_err(useless)?;
        let controls = Controls::new(model.control_names())
            .map_err(|error| LoadError(format!("{}: {error}", path.display())))?;
        let preparer = Preparer {
            bytes_max: context.context_length() * model.longest_piece(),
            model: model.clone(),
            template,
            controls,
            family,
            system,
            start_text,
        };
        preparer.check().map_err(useless)?;
        Ok(Llama {
            model,
            context,
            family,
            preparer: Arc::new(preparer),
        })
    }

    pub fn description(&self) -> String {
        self.model.description()
    }

    pub fn family(&self) -> &'static Family {
        self.family
    }

    /// Returns whether the scores of an entry of the last batch are numbers.
    pub fn has_scores(&mut self, index: usize) -> bool {
        let scores = self.context.logits(index);
        scores.is_some_and(|scores| scores.iter().any(|score| score.is_finite()))
    }
}

fn recognise(model: &Model, template: Option<&str>) -> &'static Family {
    let metadata = |key| model.metadata(key).unwrap_or_default();
    Family::recognise(&Traits {
        architecture: metadata(c"general.architecture"),
        name: metadata(c"general.name"),
        basename: metadata(c"general.basename"),
        template: template.unwrap_or_default().to_owned(),
    })
}

impl Backend for Llama {
    type Sampler = Sampler;

    fn now(&self) -> Moment {
        Moment::now()
    }

    fn sequences(&self) -> usize {
        self.context.sequences()
    }

    fn context_length(&self) -> usize {
        self.context.context_length()
    }

    fn batch_limit(&self) -> usize {
        self.context.batch_limit()
    }

    fn preparer(&self) -> Arc<dyn Prepare> {
        self.preparer.clone()
    }

    fn sampler(&self, sampling: &Sampling, prompt: &[Token]) -> Sampler {
        Sampler::new(&self.model, sampling, prompt)
    }

    fn decode(
        &mut self,
        batch: &Batch,
        should_stop: &(dyn Fn(Moment) -> bool + Sync),
    ) -> Result<(), DecodeError> {
        self.context.decode(batch, &|| should_stop(Moment::now()))
    }

    fn sample(&mut self, index: usize, sampler: &mut Sampler) -> Option<Token> {
        sampler.sample(&mut self.context, index)
    }

    fn is_end(&self, token: Token) -> bool {
        self.model.is_end(token)
    }

    fn append_piece(&self, token: Token, bytes: &mut Vec<u8>) {
        self.model.append_piece(token, bytes);
    }

    fn length(&self, sequence: usize) -> usize {
        self.context.length(sequence)
    }

    fn truncate(&mut self, sequence: usize, length: usize) {
        self.context.truncate(sequence, length);
    }

    fn save(&mut self, sequence: usize) -> Option<Vec<u8>> {
        self.context.save(sequence)
    }

    fn restore(&mut self, sequence: usize, state: &[u8], length: usize) -> bool {
        self.context.restore(sequence, state, length)
    }

    fn origin(&self, model_sha256: &str, gpu_layers: u32) -> Option<Origin> {
        Some(Origin {
            build: ffi::build(),
            model_sha256: model_sha256.to_owned(),
            kv_type: match self.context.kv_type() {
                KvType::F16 => "f16",
                KvType::Q8_0 => "q8_0",
            },
            // Set by `Context::new`, for every context.
            has_flash_attention: true,
            has_unified_cache: false,
            context: self.context.context_length() as u32,
            gpu_layers,
        })
    }
}
