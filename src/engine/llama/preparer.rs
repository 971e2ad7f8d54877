//! Prepares prompts: the model's own template formats them, and its tokenizer makes tokens of them.
//!
//! Owns the template and the names of control tokens, and holds the model for its vocabulary. All
//! of it is only read, by any number of threads at once. Must never touch the context, which
//! belongs to the engine's thread.

use std::borrow::Cow;
use std::sync::Arc;

use super::backend::{Prepare, PrepareError, Prepared, Token};
use super::controls::Controls;
use super::ffi::Model;
use super::template::{PROBE, Template, TemplateError};
use crate::engine::family::Family;
use crate::engine::language;
use crate::engine::prompt::{self, Conversation};
use crate::engine::{Message, Prompt};

#[derive(Debug)]
pub struct Preparer {
    pub model: Arc<Model>,
    pub template: Template,
    pub controls: Controls,
    pub family: &'static Family,
    /// The system message of its family's template, for a file that came without a template.
    pub system: Option<&'static str>,
    /// Tokenizing puts this before a text. A template may do so too; it must be there once.
    pub start_text: String,
    /// Tokenizing takes time in proportion to the bytes, so a text that cannot fit is refused
    /// before.
    pub bytes_max: usize,
}

impl Preparer {
    /// Tries the template. The error is for the operator.
    pub fn check(&self) -> Result<(), String> {
        let probe = prompt::conversation(self.family, None, PROBE, &[]);
        self.template.check(&self.with_system(&probe.messages))
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

impl Prepare for Preparer {
    fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    fn prepare(&self, prompt: &Prompt) -> Result<Prepared, PrepareError> {
        if prompt.bytes() > self.bytes_max() {
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
}
