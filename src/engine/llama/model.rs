//! A GGUF model as the scheduler's backend: llama.cpp for the numbers, the model's own template for
//! the prompts.
//!
//! Owns the one context of the engine, and with it the KV cache. Lives on the engine's thread.

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;

use super::backend::{Backend, Batch, DecodeError, PrepareError, Prepared, Token};
use super::ffi::{Context, ContextSettings, LoadError, Model};
use super::sampler::Sampler;
use super::template::Template;
use crate::core::Moment;
use crate::engine::family::{Family, Traits};
use crate::engine::prompt::{self, Conversation};
use crate::engine::{Message, Prompt, Sampling};

#[derive(Debug)]
pub struct Llama {
    model: Arc<Model>,
    context: Context,
    template: Template,
    family: &'static Family,
    /// For a file that came without a template: what its family's template would say.
    system: Option<&'static str>,
    /// Tokenizing puts this before a text; a template may do so as well, and once is enough.
    start_text: String,
}

impl Llama {
    /// Loads the file and makes the context that `plan` asks for, once the model is known. Without
    /// a `family` the file's metadata decide which it is.
    pub fn load(
        path: &Path,
        family: Option<&'static Family>,
        gpu_layers: u32,
        progress: &mut dyn FnMut(f32) -> bool,
        plan: impl FnOnce(&Model) -> Result<ContextSettings, LoadError>,
    ) -> Result<Llama, LoadError> {
        let model = Arc::new(Model::load(path, gpu_layers, progress)?);
        let context = Context::new(model.clone(), plan(&model)?)?;
        let start_text = model.start_text().unwrap_or_default();
        let end_text = model.end_text().unwrap_or_default();
        let source = model.chat_template();
        let family = family.unwrap_or_else(|| recognise(&model, source.as_deref()));
        let system = match source {
            Some(_) => None,
            None => family.default_system,
        };
        let template = Template::new(source.as_deref(), &start_text, &end_text);
        Ok(Llama {
            model,
            context,
            template,
            family,
            system,
            start_text,
        })
    }

    pub fn description(&self) -> String {
        self.model.description()
    }

    pub fn family(&self) -> &'static Family {
        self.family
    }

    /// The conversation with the system message that a template would add.
    fn with_system<'a>(&self, messages: &'a [Message]) -> Cow<'a, [Message]> {
        let has_own = messages.first().is_some_and(|first| first.role == "system");
        let Some(system) = self.system.filter(|_| !has_own) else {
            return Cow::Borrowed(messages);
        };
        let mut all = vec![Message {
            role: "system".to_owned(),
            content: system.to_owned(),
        }];
        all.extend_from_slice(messages);
        Cow::Owned(all)
    }

    /// The tokens of a whole prompt.
    fn tokens(&self, text: &str) -> Result<Vec<Token>, PrepareError> {
        let has_start = !self.start_text.is_empty() && text.starts_with(&self.start_text);
        let start = self.model.start_token().filter(|_| !has_start);
        let tokens = self.model.tokenize(text, true);
        let tokens = tokens.map_err(|thrown| PrepareError::Engine(thrown.to_string()))?;
        Ok(start.into_iter().chain(tokens).collect())
    }

    /// A prompt for a program, with the beginning of the answer in it.
    fn prepare_code(&self, conversation: Conversation) -> Result<Prepared, PrepareError> {
        let messages = self.with_system(&conversation.messages);
        let mut text = self
            .template
            .render(&messages, false)
            .map_err(PrepareError::Template)?;
        let content = conversation
            .messages
            .last()
            .map_or("", |last| &last.content);
        // Where the template has changed the message there is nothing to share.
        let own_text = text
            .rfind(content)
            .map_or(0, |start| start + conversation.own);
        let own_tokens = self.tokens(&text[..own_text])?;
        text.push_str(&conversation.opening);
        let tokens = self.tokens(&text)?;
        let pairs = own_tokens.iter().zip(&tokens);
        let common = pairs.take_while(|(own, token)| own == token).count();
        Ok(Prepared {
            tokens,
            common,
            opening: conversation.opening,
            closing: conversation.closing,
            epilogues: conversation.epilogues,
        })
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

    fn prepare(&self, prompt: &Prompt) -> Result<Prepared, PrepareError> {
        // Tokenizing takes time by the byte: what cannot fit is not worth it.
        let fitting_bytes = self.context.context_length() * self.model.longest_piece();
        if prompt.bytes() > fitting_bytes {
            return Err(PrepareError::TooLong);
        }
        match prompt {
            Prompt::Code {
                language,
                prompt,
                context,
            } => {
                let language = language.and_then(prompt::language);
                let family = self.family;
                self.prepare_code(prompt::conversation(family, language, prompt, context))
            }
            Prompt::Chat(messages) => {
                let text = self
                    .template
                    .render(&self.with_system(messages), true)
                    .map_err(PrepareError::Template)?;
                Ok(Prepared {
                    tokens: self.tokens(&text)?,
                    ..Prepared::default()
                })
            }
            Prompt::Raw(text) => Ok(Prepared {
                tokens: self.tokens(text)?,
                ..Prepared::default()
            }),
        }
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
}
