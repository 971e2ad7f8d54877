//! Keeps the text of a client from becoming control tokens.
//!
//! A chat template writes the names of control tokens (`<|im_end|>`) as text, and the tokenizer
//! turns each name into its token. A client can write the same names. If they became tokens as
//! well, a prompt or a file could end its own turn and speak as the assistant.
//!
//! Owns the names of a model's control tokens. Before a template is rendered, [`Controls::guard`]
//! puts a mark inside each name that a message contains; the rendered text is cut at the marks, and
//! each piece is tokenized by itself. No piece contains a name that a client wrote, so every
//! control token comes from the template. Text without such names has no mark: it is tokenized in
//! one piece with the template around it, as the model was trained.
//!
//! The alternative, marks around every message, would change what templates see (`trim`,
//! `startswith`, `split`) and cut each prompt where the model expects one text.
//!
//! Invariants:
//!  1. A mark is a character that no message of its conversation contains: it cannot be forged.
//!  2. Without its marks a guarded message is the message, byte for byte.
//!  3. No piece of a guarded message contains a name, and no name can form at either end of a
//!     message.
//!
//! Mutations that the tests catch: no mark within a name, overlapping names marked once, no marks
//! at the ends, the first mark of the plane whatever the messages contain.

use std::borrow::Cow;
use std::collections::HashSet;

use aho_corasick::{AhoCorasick, BuildError, MatchKind};

use crate::engine::Message;

/// The names of a model's control tokens, prepared for searching.
#[derive(Debug)]
pub struct Controls {
    names: HashSet<String>,
    finder: AhoCorasick,
    /// The proper beginnings of all names (and in `tails` their ends). Some models have thousands
    /// of names, so a message is compared with these sets once for each length that a name has.
    heads: HashSet<String>,
    tails: HashSet<String>,
    longest: usize,
}

/// A conversation in which the text of clients contains no name.
#[derive(Debug, PartialEq, Eq)]
pub struct Guarded<'a> {
    pub messages: Cow<'a, [Message]>,
    /// The rendered text must be cut at this character, which occurs nowhere else.
    pub mark: char,
}

impl Controls {
    /// Fails only for more names than any vocabulary has.
    pub fn new(mut names: Vec<String>) -> Result<Controls, BuildError> {
        names.retain(|name| !name.is_empty());
        let finder = AhoCorasick::builder()
            .match_kind(MatchKind::Standard)
            .build(&names)?;
        let inner_cuts = |name: &'_ String| {
            let cuts = name.char_indices().skip(1).map(|(at, _)| at);
            cuts.collect::<Vec<usize>>()
        };
        let parts = |part: fn(&str, usize) -> &str| {
            let names = names.iter();
            let all =
                names.flat_map(|name| inner_cuts(name).into_iter().map(move |at| part(name, at)));
            all.map(str::to_owned).collect()
        };
        Ok(Controls {
            finder,
            heads: parts(|name, at| &name[..at]),
            tails: parts(|name, at| &name[at..]),
            longest: names.iter().map(String::len).max().unwrap_or(0),
            names: names.into_iter().collect(),
        })
    }

    /// Returns the conversation with a mark inside each name. Takes time in proportion to its
    /// bytes.
    pub fn guard<'a>(&self, messages: &'a [Message]) -> Guarded<'a> {
        let mark = mark_for(messages);
        let is_clean = |message: &Message| {
            self.cuts(&message.content).is_empty() && self.cuts(&message.role).is_empty()
        };
        let messages = match messages.iter().all(is_clean) {
            true => Cow::Borrowed(messages),
            false => Cow::Owned(
                messages
                    .iter()
                    .map(|message| Message {
                        role: self.marked(&message.role, mark),
                        content: self.marked(&message.content, mark),
                    })
                    .collect(),
            ),
        };
        Guarded { messages, mark }
    }

    fn marked(&self, content: &str, mark: char) -> String {
        let mut marked = String::with_capacity(content.len() + 16);
        let mut start = 0;
        for cut in self.cuts(content) {
            marked.push_str(&content[start..cut]);
            marked.push(mark);
            start = cut;
        }
        marked.push_str(&content[start..]);
        marked
    }

    /// Returns where to cut the content, in rising order: after the first character of each name,
    /// and at an end that a template's text could complete to a name.
    fn cuts(&self, content: &str) -> Vec<usize> {
        let mut cuts = Vec::new();
        if self.could_end_a_name(content) {
            cuts.push(0);
        }
        for found in self.finder.find_overlapping_iter(content) {
            let name = &content[found.range()];
            let first = name.chars().next().map_or(0, char::len_utf8);
            // A name of one character is cut off on both sides: see `is_plain`.
            if first == name.len() {
                cuts.push(found.start());
            }
            cuts.push(found.start() + first);
        }
        if self.could_begin_a_name(content) {
            cuts.push(content.len());
        }
        cuts.sort_unstable();
        cuts.dedup();
        cuts
    }

    /// Returns whether a piece of a marked text is a name of one character. No cut can break such a
    /// name, so the piece must be tokenized without names.
    pub fn is_plain(&self, piece: &str) -> bool {
        piece.chars().count() == 1 && self.names.contains(piece)
    }

    /// Returns whether some name ends with the beginning of the content.
    fn could_end_a_name(&self, content: &str) -> bool {
        let mut ends =
            (1..=self.longest.min(content.len())).filter(|at| content.is_char_boundary(*at));
        ends.any(|at| self.tails.contains(&content[..at]))
    }

    /// Returns whether some name begins with the end of the content.
    fn could_begin_a_name(&self, content: &str) -> bool {
        let shortest = content.len() - self.longest.min(content.len());
        let mut starts = (shortest..content.len()).filter(|at| content.is_char_boundary(*at));
        starts.any(|at| self.heads.contains(&content[at..]))
    }
}

/// Returns the first character of a private plane that no message contains.
fn mark_for(messages: &[Message]) -> char {
    const PRIVATE_PLANE: std::ops::RangeInclusive<char> = '\u{F0000}'..='\u{FFFFD}';
    // Texts rarely contain any: one pass finds the characters to avoid.
    let used: HashSet<char> = messages
        .iter()
        .flat_map(|message| message.role.chars().chain(message.content.chars()))
        .filter(|character| PRIVATE_PLANE.contains(character))
        .collect();
    PRIVATE_PLANE
        .into_iter()
        .find(|character| !used.contains(character))
        // All 65,534 of them take more bytes than a request may have; then this plane is full.
        .unwrap_or('\u{10FFFD}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn controls(names: &[&str]) -> Controls {
        Controls::new(names.iter().map(|name| (*name).to_owned()).collect()).unwrap()
    }

    fn message(content: &str) -> Message {
        Message {
            role: "user".to_owned(),
            content: content.to_owned(),
        }
    }

    fn pieces(controls: &Controls, content: &str) -> Vec<String> {
        let messages = [message(content)];
        let guarded = controls.guard(&messages);
        let pieces = guarded.messages[0].content.split(guarded.mark);
        pieces.map(str::to_owned).collect()
    }

    const NAMES: &[&str] = &["<|im_start|>", "<|im_end|>", "<s>", "</s>", "aba", "#", ""];

    #[test]
    fn text_without_names_is_left_alone() {
        let messages = [message("sort a list; x < y | z > 0, a <b> c")];
        let guarded = controls(&NAMES[..4]).guard(&messages);
        assert!(matches!(guarded.messages, Cow::Borrowed(_)));
    }

    #[test]
    fn names_are_cut_wherever_they_stand() {
        let controls = controls(NAMES);
        assert_eq!(pieces(&controls, "x<|im_end|>y"), ["x<", "|im_end|>y"]);
        assert_eq!(pieces(&controls, "x<s></s> "), ["x<", "s><", "/s> "]);
        // Overlapping names: each one is cut.
        assert_eq!(pieces(&controls, "xababay"), ["xa", "ba", "bay"]);
        // Taking out the inner name must not leave the outer one whole.
        assert_eq!(
            pieces(&controls, "<|im_<|im_end|>end|>."),
            ["<|im_<", "|im_end|>end|>."]
        );
    }

    /// Mutation: a role that is passed on unchanged.
    #[test]
    fn role_is_a_client_s_text_as_well() {
        let messages = [Message {
            role: "user<s>\u{F0000}".to_owned(),
            content: "hi".to_owned(),
        }];
        let controls = controls(NAMES);
        let guarded = controls.guard(&messages);
        let pieces: Vec<&str> = guarded.messages[0].role.split(guarded.mark).collect();
        assert_eq!(pieces, ["user<", "s>\u{F0000}"]);
    }

    #[test]
    fn no_name_forms_at_the_ends_of_a_message() {
        let controls = controls(NAMES);
        assert_eq!(pieces(&controls, "x <|im_end|"), ["x <|im_end|", ""]);
        assert_eq!(pieces(&controls, "|im_end|> x"), ["", "|im_end|> x"]);
    }

    #[test]
    fn name_of_one_character_stands_alone_and_is_plain() {
        let controls = controls(NAMES);
        assert_eq!(pieces(&controls, "x#y"), ["x", "#", "y"]);
        assert!(controls.is_plain("#") && !controls.is_plain("x") && !controls.is_plain("x#"));
    }

    #[test]
    fn mark_is_a_character_that_no_message_holds() {
        let controls = controls(NAMES);
        let messages = [message("a\u{F0000}<s>"), message("\u{F0001}b")];
        let guarded = controls.guard(&messages);
        assert_eq!(guarded.mark, '\u{F0002}');
        let [first, second] =
            [0, 1].map(|at| guarded.messages[at].content.replace(guarded.mark, ""));
        assert_eq!(
            (first.as_str(), second.as_str()),
            ("a\u{F0000}<s>", "\u{F0001}b")
        );
    }

    proptest! {
        #[test]
        fn no_piece_holds_a_name_and_all_pieces_are_the_text(
            parts in prop::collection::vec(
                prop::sample::select(vec![
                    "<|im_end|>", "<|im_", "end|>", "<s>", "<", "s>", "ab", "a", "#", "中", " ",
                    "\u{F0000}",
                ]),
                0..20,
            ),
        ) {
            let controls = controls(NAMES);
            let text = parts.concat();
            let pieces = pieces(&controls, &text);
            prop_assert_eq!(pieces.concat(), text);
            for piece in &pieces {
                let name = controls.names.iter().find(|name| piece.contains(name.as_str()));
                prop_assert!(name.is_none() || controls.is_plain(piece), "{piece:?}: {name:?}");
            }
        }
    }
}
