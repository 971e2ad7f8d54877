//! Tokenizes text, on a stack that is large enough and with a bound on the input of one call.
//!
//! llama.cpp splits text into words before it makes tokens of them. For pre-tokenizers without
//! special code it runs `std::regex`, which recurses once for each character of a match: a run of
//! one kind of character (60,000 times `a`) needs stack in proportion to its length, and overflows
//! any thread if it is long enough. So no call here gets more than
//! [`limits::TOKENIZER_PIECE_BYTES_MAX`], and all but the shortest run on a stack sized for that:
//! that of a worker, which prepares the prompts of requests; on any other thread, that of a thread
//! of their own.
//!
//! Invariants:
//!  1. No call of llama.cpp's tokenizer gets more than a piece if it may recurse.
//!  2. The tokens represent the text, byte for byte, wherever it was cut. If a line or a word ends
//!     in the second half of a piece, they are also the tokens of the uncut text.

use std::panic::resume_unwind;
use std::thread;

use llama_cpp_sys_2 as sys;

use super::super::backend::Token;
use super::Model;
use super::calls::{self, Thrown, guarded};
use crate::limits::engine as limits;
use crate::os::process::stack_left;

impl Model {
    /// Returns the tokens of a text. Names of special tokens in it become those tokens if
    /// `parses_special` is set.
    pub fn tokenize(&self, text: &str, parses_special: bool) -> Result<Vec<Token>, Thrown> {
        let work = || {
            let mut tokens = Vec::new();
            for piece in pieces(text, self.longest_call()) {
                tokens.extend(self.tokenize_piece(piece, parses_special)?);
            }
            Ok(tokens)
        };
        let is_short = text.len() <= limits::TOKENIZER_SHORT_TEXT_BYTES_MAX;
        match is_short || stack_left() >= limits::TOKENIZER_STACK_BYTES {
            true => work(),
            false => on_ample_stack(work)?,
        }
    }

    /// Tokenizers of any other kind split no words: they do not recurse, and some mark the
    /// beginning of each text that they get.
    fn longest_call(&self) -> usize {
        // SAFETY: the vocabulary is that of a loaded model.
        let kind = unsafe { sys::llama_vocab_type(self.vocabulary.as_ptr()) };
        match kind {
            sys::LLAMA_VOCAB_TYPE_BPE => limits::TOKENIZER_PIECE_BYTES_MAX,
            _ => usize::MAX,
        }
    }

    fn tokenize_piece(&self, text: &str, parses_special: bool) -> Result<Vec<Token>, Thrown> {
        // One token has at least one byte, except for a mark at the beginning.
        let mut tokens: Vec<Token> = vec![0; text.len() + 2];
        let (Ok(length), Ok(room)) = (i32::try_from(text.len()), i32::try_from(tokens.len()))
        else {
            return Err(Thrown::nonsense("the text is larger than 2 GiB"));
        };
        let (vocabulary, data) = (self.vocabulary.as_ptr(), tokens.as_mut_ptr());
        let bytes = text.as_ptr().cast();
        // SAFETY: both pointers come with their lengths; llama.cpp writes at most `room` tokens.
        let count = guarded(|| unsafe {
            calls::llama_tokenize(vocabulary, bytes, length, data, room, false, parses_special)
        })?;
        match usize::try_from(count) {
            Ok(count) if count <= tokens.len() => tokens.truncate(count),
            _ => {
                return Err(Thrown::nonsense(
                    "the tokenizer returned more tokens than the text has bytes",
                ));
            }
        }
        Ok(tokens)
    }
}

/// Runs `work` on a thread of its own whose stack is large enough for a piece, and waits for it.
/// The system gets the stack's memory back afterwards.
fn on_ample_stack<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, Thrown> {
    let builder = thread::Builder::new()
        .name("tokenizer".to_owned())
        .stack_size(limits::TOKENIZER_STACK_BYTES);
    thread::scope(|scope| {
        let started = builder.spawn_scoped(scope, work).map_err(|error| {
            Thrown::nonsense(&format!("cannot start a thread for the tokenizer: {error}"))
        })?;
        // A panic in here belongs to the caller.
        started.join().map_err(|panic| resume_unwind(panic))
    })
}

/// Splits the text into pieces of at most `most` bytes.
fn pieces(text: &str, most: usize) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (piece, after) = rest.split_at(end_of_piece(rest, most));
        rest = after;
        Some(piece)
    })
}

/// Returns where the first piece of a text ends: all pre-tokenizers that split words do so between
/// a letter and the end of its line, and nearly all between a letter and a space before a letter.
fn end_of_piece(text: &str, most: usize) -> usize {
    if text.len() <= most {
        return text.len();
    }
    let bytes = text.as_bytes();
    let letter_before = |at: usize| bytes[at - 1].is_ascii_alphabetic();
    let ends_line = |at: &usize| bytes[*at] == b'\n' && letter_before(*at);
    let ends_word = |at: &usize| {
        let is_word = bytes.get(at + 1).is_some_and(u8::is_ascii_alphabetic);
        bytes[*at] == b' ' && is_word && letter_before(*at)
    };
    let second_half = most / 2..most + 1;
    let end = second_half.clone().rev().find(ends_line);
    let end = end.or_else(|| second_half.rev().find(ends_word));
    // A character has at most four bytes.
    let character = || {
        (most - 3..=most)
            .rev()
            .find(|at| text.is_char_boundary(*at))
    };
    end.or_else(character).unwrap_or(most)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn pieces_end_with_a_line_else_a_word_else_a_character() {
        let cut = |text: &str| pieces(text, 8).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(cut("abc de\nf g"), ["abc de", "\nf g"]);
        assert_eq!(cut("abc def ghi"), ["abc def", " ghi"]);
        assert_eq!(cut("中中中中"), ["中中", "中中"]);
        assert_eq!(cut("a"), ["a"]);
        assert!(cut("").is_empty());
    }

    proptest! {
        #[test]
        fn pieces_are_the_text_and_none_is_too_long(text in "[ab \n中🎉]{0,200}") {
            let all: Vec<&str> = pieces(&text, 16).collect();
            prop_assert_eq!(all.concat(), text.as_str());
            prop_assert!(all.iter().all(|piece| !piece.is_empty() && piece.len() <= 16));
        }
    }
}
