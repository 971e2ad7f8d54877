//! What the scheduler needs of a model, and no more: the border between policy and computation.
//!
//! llama.cpp stands behind it in the daemon, and a toy that hashes what it has read in the
//! scheduler's tests, where time is virtual too.
//!
//! A backend has a number of sequences. Each holds the tokens computed so far; a batch appends to
//! them; truncating takes from the end. Nothing is shared between sequences.

use crate::core::Moment;
use crate::engine::{Prompt, Sampling};

/// A token's number in the model's vocabulary.
pub type Token = i32;

pub trait Backend {
    /// What chooses one sequence's next tokens.
    type Sampler;

    /// The clock. Computing takes time, so one reading a step would not do.
    fn now(&self) -> Moment;

    fn sequences(&self) -> usize;
    /// Tokens that one sequence has room for.
    fn context_length(&self) -> usize;
    /// Tokens that one batch may have.
    fn batch_limit(&self) -> usize;

    /// Puts a prompt through the model's template and into tokens. The error is for its sender.
    fn prepare(&self, prompt: &Prompt) -> Result<Prepared, PrepareError>;
    /// Makes the sampler of a sequence whose answer follows `prompt`.
    fn sampler(&self, sampling: &Sampling, prompt: &[Token]) -> Self::Sampler;

    /// Computes a batch. Ends early if `should_stop` says so.
    fn decode(
        &mut self,
        batch: &Batch,
        should_stop: &(dyn Fn(Moment) -> bool + Sync),
    ) -> Result<(), DecodeError>;
    /// Chooses the token after the entry at `index` of the last batch.
    fn sample(&mut self, index: usize, sampler: &mut Self::Sampler) -> Option<Token>;

    /// Whether this token ends an answer.
    fn is_end(&self, token: Token) -> bool;
    /// Appends the bytes that a token stands for.
    fn append_piece(&self, token: Token, bytes: &mut Vec<u8>);

    /// How many tokens a sequence holds.
    fn length(&self, sequence: usize) -> usize;
    /// Removes a sequence's tokens from `length` on, or all where the model cannot be cut.
    fn truncate(&mut self, sequence: usize, length: usize);
    /// Copies what a sequence holds.
    fn save(&mut self, sequence: usize) -> Option<Vec<u8>>;
    /// Puts a copy of `length` tokens in the place of what a sequence holds. On failure the
    /// sequence is empty.
    fn restore(&mut self, sequence: usize, state: &[u8], length: usize) -> bool;
}

/// A prompt, ready for the model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prepared {
    pub tokens: Vec<Token>,
    /// So many of the first tokens come from the daemon itself, whoever asks: every tenant may
    /// share them.
    pub common: usize,
    /// The answer begins with this text, which is part of `tokens` already.
    pub opening: String,
    /// The answer ends with this text.
    pub closing: Option<&'static str>,
    /// The answer ends before any of these.
    pub epilogues: Vec<String>,
}

/// Why a prompt cannot be put into tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PrepareError {
    /// It has so many bytes that it cannot fit the context.
    TooLong,
    /// The model's template refuses the conversation, and says why.
    Template(String),
    /// The model cannot do what it must, and says why: no fault of the prompt's sender.
    Engine(String),
}

/// Tokens to compute at once. Entries of one sequence stand together and in order, and the
/// sequences stand in rising order: llama.cpp splits anything else into more passes.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    entries: Vec<Entry>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub sequence: usize,
    pub token: Token,
    /// Whether the token after this one will be asked for.
    pub wants_logits: bool,
}

impl Batch {
    pub fn clear(&mut self) {
        self.entries.clear();
    }

    /// Appends a token; gives its index.
    pub fn push(&mut self, sequence: usize, token: Token, wants_logits: bool) -> usize {
        debug_assert!(
            self.entries
                .last()
                .is_none_or(|last| last.sequence <= sequence)
        );
        self.entries.push(Entry {
            sequence,
            token,
            wants_logits,
        });
        self.entries.len() - 1
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }
}

/// Why a batch was not computed as a whole. What its sequences hold is in
/// [`Backend::length`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// `should_stop` said so.
    Stopped,
    /// A sequence has no room for its tokens.
    Full,
    /// The batch is not one that the model takes: a bug above.
    Refused(&'static str),
    /// The computation failed, with llama.cpp's status.
    Failed(i32),
}
