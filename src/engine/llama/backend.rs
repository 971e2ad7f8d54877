//! The scheduler's interface to a model: the border between policy and computation.
//!
//! In the daemon llama.cpp is behind it; in the scheduler's tests it is a toy that hashes the
//! tokens that it has read, and time is virtual too.
//!
//! A backend has a number of sequences. Each holds the tokens computed so far; a batch appends to
//! them; truncating removes from the end. Sequences share nothing.

use std::fmt;
use std::sync::Arc;

use crate::core::Moment;
use crate::engine::prefixes::Origin;
use crate::engine::{Prompt, Sampling};

/// A token's number in the model's vocabulary.
pub type Token = i32;

pub trait Backend {
    /// Chooses the next tokens of one sequence.
    type Sampler;

    /// Reads the clock. Computing takes time, so one reading per step would not do.
    fn now(&self) -> Moment;

    fn sequences(&self) -> usize;
    /// Returns how many tokens one sequence has room for.
    fn context_length(&self) -> usize;
    /// Returns how many tokens one batch may have.
    fn batch_limit(&self) -> usize;

    /// Returns the part of the model that prepares prompts.
    fn preparer(&self) -> Arc<dyn Prepare>;
    /// Creates the sampler of a sequence whose output follows `prompt`.
    fn sampler(&self, sampling: &Sampling, prompt: &[Token]) -> Self::Sampler;

    /// Computes a batch. Stops early if `should_stop` returns true.
    fn decode(
        &mut self,
        batch: &Batch,
        should_stop: &(dyn Fn(Moment) -> bool + Sync),
    ) -> Result<(), DecodeError>;
    /// Chooses the token after the entry at `index` of the last batch.
    fn sample(&mut self, index: usize, sampler: &mut Self::Sampler) -> Option<Token>;

    /// Returns whether this token ends an output.
    fn is_end(&self, token: Token) -> bool;
    /// Appends the bytes of a token.
    fn append_piece(&self, token: Token, bytes: &mut Vec<u8>);

    /// Returns how many tokens a sequence holds.
    fn length(&self, sequence: usize) -> usize;
    /// Removes a sequence's tokens from `length` on, or all if the model cannot be cut.
    fn truncate(&mut self, sequence: usize, length: usize);
    /// Copies the contents of a sequence.
    fn save(&mut self, sequence: usize) -> Option<Vec<u8>>;
    /// Replaces the contents of a sequence by a copy of `length` tokens. On failure the sequence is
    /// empty.
    fn restore(&mut self, sequence: usize, state: &[u8], length: usize) -> bool;

    /// Returns everything that a copy depends on, for the model's file with this digest; `None` if
    /// a copy cannot be used by another process.
    fn origin(&self, _model_sha256: &str, _gpu_layers: u32) -> Option<Origin> {
        None
    }
}

/// The part of a model that prepares prompts. It computes nothing with the model, so it works on
/// any thread, beside the computation, and it may outlive the backend.
pub trait Prepare: fmt::Debug + Send + Sync {
    /// Returns the bytes of the longest prompt that can fit the context.
    fn bytes_max(&self) -> usize;

    /// Renders a prompt with the model's template and tokenizes it. The error is for the client.
    fn prepare(&self, prompt: &Prompt) -> Result<Prepared, PrepareError>;
}

/// A prompt, ready for the model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prepared {
    pub tokens: Vec<Token>,
    /// How many of the first tokens come from the daemon itself and are the same for all tenants,
    /// who may share them.
    pub common: usize,
    /// The output begins with this text, which is part of `tokens` already.
    pub opening: String,
    /// The output ends with this text.
    pub closing: Option<&'static str>,
    /// The output ends before any of these.
    pub epilogues: Vec<String>,
}

/// Why a prompt cannot be prepared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PrepareError {
    /// It has more bytes than can fit the context.
    TooLong,
    /// The model's template refuses the conversation, with this reason.
    Template(String),
    /// The model failed, with this reason; the client is not at fault.
    Engine(String),
}

/// Tokens to compute at once. Entries of one sequence must be neighbours in order, and the
/// sequences in rising order: llama.cpp splits anything else into more passes.
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

    /// Appends a token; returns its index.
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

    /// Yields each sequence of the batch once, in rising order.
    pub fn sequences(&self) -> impl Iterator<Item = usize> {
        let neighbours = self
            .entries
            .chunk_by(|left, right| left.sequence == right.sequence);
        neighbours.map(|entries| entries[0].sequence)
    }
}

/// Why a batch was not computed as a whole. [`Backend::length`] returns what its sequences hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// `should_stop` returned true.
    Stopped,
    /// A sequence has no room for its tokens.
    Full,
    /// The model does not accept the batch: a bug in the caller.
    Refused(&'static str),
    /// The computation failed, with llama.cpp's status.
    Failed(i32),
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mutation: `<=` in place of `==` in `sequences` joins all of them to one.
    #[test]
    fn each_sequence_of_a_batch_comes_once() {
        let mut batch = Batch::default();
        assert_eq!(batch.sequences().count(), 0);
        for sequence in [0, 0, 2, 5, 5, 5] {
            batch.push(sequence, 1, false);
        }
        assert_eq!(batch.sequences().collect::<Vec<_>>(), [0, 2, 5]);
    }
}
