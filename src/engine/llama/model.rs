//! A GGUF model as the scheduler's backend: llama.cpp computes, and the model's own template
//! formats the prompts.
//!
//! Owns the one context of the engine, and so the KV cache. Lives on the engine's thread.

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;

use super::backend::{Backend, Batch, DecodeError, PrepareError, Prepared, Token};
use super::controls::Controls;
use super::ffi::{Context, ContextSettings, LoadError, Model};
use super::metadata;
use super::sampler::Sampler;
use super::template::{PROBE, Template, TemplateError};
use crate::core::Moment;
use crate::engine::family::{Family, Traits};
use crate::engine::language;
use crate::engine::prompt::{self, Conversation};
use crate::engine::{Message, Prompt, Sampling};

#[derive(Debug)]
pub struct Llama {
    model: Arc<Model>,
    context: Context,
    template: Template,
    controls: Controls,
    family: &'static Family,
    /// The system message of its family's template, for a file that came without a template.
    system: Option<&'static str>,
    /// Tokenizing puts this before a text. A template may do so too; it must be there once.
    start_text: String,
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
        let llama = Llama {
            model,
            context,
            template,
            controls,
            family,
            system,
            start_text,
        };
        let probe = prompt::conversation(family, None, PROBE, &[]);
        let messages = llama.with_system(&probe.messages);
        llama.template.check(&messages).map_err(useless)?;
        Ok(llama)
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

    /// Returns the conversation with the system message that a template would add.
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

    /// Tokenizes a text that was cut at its marks, with the model's start token before it.
    fn tokens<'a>(
        &self,
        pieces: impl Iterator<Item = &'a str>,
        parses_names: bool,
    ) -> Result<Vec<Token>, PrepareError> {
        let mut pieces = pieces.peekable();
        let first = pieces.peek().copied().unwrap_or_default();
        let has_start =
            parses_names && !self.start_text.is_empty() && first.starts_with(&self.start_text);
        let start = self.model.start_token().filter(|_| !has_start);
        let mut tokens: Vec<Token> = start.into_iter().collect();
        for piece in pieces {
            let parses_names = parses_names && !self.controls.is_plain(piece);
            let more = self.model.tokenize(piece, parses_names);
            tokens.extend(more.map_err(|thrown| PrepareError::Engine(thrown.to_string()))?);
        }
        Ok(tokens)
    }

    /// Tokenizes a conversation and the beginning of the reply.
    fn conversation_tokens(
        &self,
        messages: &[Message],
        thinks: bool,
        opening: &str,
    ) -> Result<Vec<Token>, PrepareError> {
        let guarded = self.controls.guard(messages);
        let mut text = self.render(&guarded.messages, thinks)?;
        text.push_str(opening);
        self.tokens(text.split(guarded.mark), true)
    }

    fn render(&self, messages: &[Message], thinks: bool) -> Result<String, PrepareError> {
        let rendered = self.template.render(messages, thinks);
        rendered.map_err(|error| match error {
            TemplateError::Refused(says) => PrepareError::Template(says),
            broken @ TemplateError::Broken(_) => {
                PrepareError::Engine(format!("the model's chat template fails: {broken}"))
            }
        })
    }

    /// Prepares a prompt for a program, including the beginning of the reply.
    fn prepare_code(&self, conversation: Conversation) -> Result<Prepared, PrepareError> {
        let messages = self.with_system(&conversation.messages);
        let tokens = self.conversation_tokens(&messages, false, &conversation.opening)?;
        let own_tokens = self.own_tokens(messages.into_owned(), conversation.own)?;
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

    /// Returns the tokens before the first word of a client: the part that all tenants may share.
    /// They come from a conversation without any word of a client, so nothing that a client writes
    /// can pass for the daemon's own text. `own` is the number of bytes of the last message that
    /// are the daemon's.
    fn own_tokens(
        &self,
        mut messages: Vec<Message>,
        own: usize,
    ) -> Result<Vec<Token>, PrepareError> {
        const END: char = '\u{10FFFD}';
        if let Some(last) = messages.last_mut() {
            last.content.truncate(own);
            last.content.push(END);
        }
        let text = self.render(&messages, false)?;
        // A template that drops or changes the end has nothing to share.
        let own_text = text.split_once(END).map_or("", |(before, _)| before);
        self.tokens([own_text].into_iter(), true)
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
        // Tokenizing takes time in proportion to the bytes, so a text that cannot fit is refused
        // before.
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
                let language = language.and_then(language::language);
                let family = self.family;
                self.prepare_code(prompt::conversation(family, language, prompt, context))
            }
            Prompt::Chat(messages) => {
                let messages = self.with_system(messages);
                Ok(Prepared {
                    tokens: self.conversation_tokens(&messages, true, "")?,
                    ..Prepared::default()
                })
            }
            Prompt::Raw(text) => Ok(Prepared {
                tokens: self.tokens([text.as_str()].into_iter(), false)?,
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
