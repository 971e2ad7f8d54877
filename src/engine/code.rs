//! Extracts the program from a model's output: no fences, no prose.
//!
//! Owns the rules by which [`extract`] finds the code in a whole output and [`Extractor`] in one
//! that is still being written. Fences are those of CommonMark (section 4.5): three or more back
//! quotes or tildes on their own line, closed by as many of the same. Must never fail: every output
//! contains some code, even if it is empty.
//!
//! States of an [`Extractor`]:
//!
//! ```text
//!   Searching ── a fence that may hold the language opens ──> Inside
//!   Inside    ── its fence closes ──────────────────────────> Complete
//! ```
//!
//! Invariants:
//!  1. However an output is cut into pieces, what `push` appends and `finish` returns concatenates
//!     to the same text.
//!  2. If an output has one fenced block, that text equals the result of [`extract`].
//!  3. The text that `push` appends is final: no later piece changes it.
//!  4. Code starts with a line that is not blank and does not end with white space.

use std::borrow::Cow;
use std::cell::LazyCell;
use std::iter;

use memchr::{memchr, memchr2, memrchr};

use super::language::{self, Language};

/// Returns the code of a whole output. Of several fenced blocks, it is the longest of those that
/// are marked as `language`, otherwise of those without a mark, otherwise of all. In an output
/// without a fence, the code goes from the first to the last line that does not read as prose.
pub fn extract<'a>(text: &'a str, language: Option<&str>) -> Cow<'a, str> {
    // Most outputs have one block, which needs no rank and so no language.
    let language = LazyCell::new(|| language.and_then(language::language));
    let mut best: Option<Block<'_>> = None;
    let mut rest = text;
    while let Some((block, after)) = next_block(rest) {
        if best
            .as_ref()
            .is_none_or(|best| block.rank(*language) > best.rank(*language))
        {
            best = Some(block);
        }
        rest = after;
    }
    best.map_or_else(|| without_prose(text).into(), |block| block.code)
}

/// Extracts the code of an output that arrives in pieces.
#[derive(Debug)]
pub struct Extractor {
    language: Option<&'static Language>,
    state: State,
}

#[derive(Debug)]
enum State {
    /// No block that may hold the program has opened yet.
    Searching {
        /// All output so far: if no such block opens, `finish` judges it as a whole.
        text: String,
        /// Where the next unread line begins.
        line: usize,
        /// The block in another language that is being skipped.
        passing: Option<Fence>,
    },
    Inside(Body),
    Complete,
}

impl Extractor {
    pub fn new(language: Option<&str>) -> Extractor {
        let state = State::Searching {
            text: String::new(),
            line: 0,
            passing: None,
        };
        Extractor {
            language: language.and_then(language::language),
            state,
        }
    }

    /// Takes the next piece of the output; appends the code that is now final.
    pub fn push(&mut self, piece: &str, code: &mut String) {
        match &mut self.state {
            State::Searching {
                text,
                line,
                passing,
            } => {
                text.push_str(piece);
                let Some((fence, start)) = find_opening(text, line, passing, self.language) else {
                    return;
                };
                let body = text[start..].to_owned();
                self.state = State::Inside(Body::new(fence));
                self.push(&body, code);
            }
            State::Inside(body) => {
                code.reserve(body.held.len() + piece.len());
                if body.push(piece, code).is_some() {
                    self.state = State::Complete;
                }
            }
            State::Complete => {}
        }
    }

    /// Ends the output: returns the code that was still in doubt.
    pub fn finish(self) -> String {
        match self.state {
            State::Searching { text, .. } => {
                extract(&text, self.language.map(|known| known.name)).into_owned()
            }
            State::Inside(_) | State::Complete => String::new(),
        }
    }
}

/// Reads whole lines from `line` on, until one opens a block that may hold the program; returns its
/// fence and where its content begins.
fn find_opening(
    text: &str,
    line: &mut usize,
    passing: &mut Option<Fence>,
    language: Option<&Language>,
) -> Option<(Fence, usize)> {
    while let Some(length) = text[*line..].find('\n') {
        let current = &text[*line..*line + length];
        *line += length + 1;
        match passing {
            Some(fence) if fence.is_closed_by(current) => *passing = None,
            Some(_) => {}
            None => {
                let Some((fence, word)) = Fence::open(current) else {
                    continue;
                };
                if word.is_empty() || language.is_none_or(|known| known.has_fence(word)) {
                    return Some((fence, *line));
                }
                *passing = Some(fence);
            }
        }
    }
    None
}

/// One fenced block of a whole output.
struct Block<'a> {
    word: &'a str,
    code: Cow<'a, str>,
}

impl Block<'_> {
    /// Returns the rank of the block. Of several blocks, the one with the highest rank is the
    /// program.
    fn rank(&self, language: Option<&Language>) -> (bool, u8, usize) {
        let fit = match language {
            Some(known) if known.has_fence(self.word) => 2,
            Some(_) if self.word.is_empty() => 1,
            _ => 0,
        };
        (!self.code.is_empty(), fit, self.code.len())
    }
}

/// Returns the next fenced block and the text after it. A block that is never closed reaches to the
/// end.
fn next_block(text: &str) -> Option<(Block<'_>, &str)> {
    lines_with(text, b'`', b'~').find_map(|(start, line)| {
        let (fence, word) = Fence::open(line)?;
        let (code, after) = fence.read_block(&text[start + line.len()..]);
        Some((Block { word, code }, after))
    })
}

/// Yields the lines that contain one of two bytes, which are ASCII, and where each begins. Few
/// lines of a program do, so the others are only searched.
fn lines_with(text: &str, first: u8, second: u8) -> impl Iterator<Item = (usize, &str)> {
    let bytes = text.as_bytes();
    let mut from = 0;
    iter::from_fn(move || {
        let place = from + memchr2(first, second, &bytes[from..])?;
        let start = memrchr(b'\n', &bytes[from..place]).map_or(from, |end| from + end + 1);
        let length = memchr(b'\n', &bytes[place..]);
        from = length.map_or(text.len(), |length| place + length + 1);
        Some((start, &text[start..from]))
    })
}

/// The properties of an opening line that decide which line closes the block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Fence {
    character: char,
    length: usize,
    /// Spaces before it: as many are removed from each line of the content.
    indent: usize,
}

/// Shorter runs of back quotes or tildes are not fences.
const FENCE_LENGTH: usize = 3;

impl Fence {
    /// Reads a line that may open a block; also returns the word that names the block's language.
    fn open(line: &str) -> Option<(Fence, &str)> {
        let unindented = line.trim_start_matches([' ', '\t']);
        let character = unindented
            .chars()
            .next()
            .filter(|first| matches!(first, '`' | '~'))?;
        let info = unindented.trim_start_matches(character);
        let length = unindented.len() - info.len();
        if length < FENCE_LENGTH || (character == '`' && info.contains('`')) {
            return None;
        }
        let info = info.trim_start_matches([' ', '\t', '{', '.']);
        let end = info.find(|c: char| !is_of_word(c)).unwrap_or(info.len());
        Some((
            Fence {
                character,
                length,
                indent: line.len() - unindented.len(),
            },
            &info[..end],
        ))
    }

    /// Returns the code up to the line that closes the block, and the text after that line.
    ///
    /// If the fence is not indented, nothing is removed from the lines between: the code is a part
    /// of the output, and needs no reading character by character and no copy.
    fn read_block(self, text: &str) -> (Cow<'_, str>, &str) {
        if self.indent > 0 {
            let mut code = String::new();
            let length = Body::new(self).push(text, &mut code);
            return (code.into(), &text[length.unwrap_or(text.len())..]);
        }
        let character = self.character as u8;
        let closing = lines_with(text, character, character).find(|(_, line)| {
            // A shorter run at the very end is a fence that was cut off.
            let is_last = !line.ends_with('\n');
            self.is_closed_by(line) || is_last && self.is_run(line.trim())
        });
        match closing {
            Some((end, line)) => (trim_lines(&text[..end]).into(), &text[end + line.len()..]),
            None => (trim_lines(text).into(), ""),
        }
    }

    fn is_closed_by(self, line: &str) -> bool {
        let unindented = line.trim();
        unindented.len() >= self.length && self.is_run(unindented)
    }

    fn is_run(self, text: &str) -> bool {
        !text.is_empty() && text.chars().all(|c| c == self.character)
    }
}

/// Removes blank lines before the code and white space after it: invariant 4.
fn trim_lines(text: &str) -> &str {
    let code = text.trim_end();
    let first = code.len() - code.trim_start().len();
    let start = code[..first].rfind('\n').map_or(0, |end| end + 1);
    &code[start..]
}

/// Accepts the characters of words like `c++`, `objective-c` and `f#`.
fn is_of_word(character: char) -> bool {
    character.is_alphanumeric() || matches!(character, '+' | '#' | '-' | '_')
}

/// The content of a block, read character by character.
#[derive(Debug)]
struct Body {
    fence: Fence,
    line: Line,
    /// Read but not returned yet: white space that may turn out to end the code, and after it the
    /// run that may turn out to close the block.
    held: String,
    /// Whether any code has been returned: until then blank lines are dropped.
    started: bool,
}

/// The kind of the current line, judged by the part read so far.
#[derive(Clone, Copy, Debug)]
enum Line {
    /// This many spaces and nothing else.
    Blank(usize),
    /// Spaces, then this many of the fence's characters.
    Run(usize),
    /// The same, then spaces again.
    RunEnded(usize),
    Code,
}

impl Body {
    fn new(fence: Fence) -> Body {
        Body {
            fence,
            line: Line::Blank(0),
            held: String::new(),
            started: false,
        }
    }

    /// Appends the text that is certainly code to `code`. Once the block is closed, returns how
    /// many bytes of `text` were read, including the closing line.
    fn push(&mut self, text: &str, code: &mut String) -> Option<usize> {
        for (offset, character) in text.char_indices() {
            match (self.line, character) {
                (Line::Run(length) | Line::RunEnded(length), '\n') => {
                    if length >= self.fence.length {
                        return Some(offset + 1);
                    }
                    // Not a fence: the run is code. The spaces after it may still end the code.
                    let blanks = self.held.split_off(self.held.trim_end().len());
                    self.give_held(code);
                    self.held = blanks;
                    self.held.push('\n');
                    self.line = Line::Blank(0);
                }
                (_, '\n') => {
                    self.held.push('\n');
                    self.line = Line::Blank(0);
                }
                (Line::Blank(columns), ' ' | '\t') => {
                    if columns >= self.fence.indent {
                        self.held.push(character);
                    }
                    self.line = Line::Blank(columns + 1);
                }
                (Line::Blank(_), _) if character == self.fence.character => {
                    self.held.push(character);
                    self.line = Line::Run(1);
                }
                (Line::Run(length), _) if character == self.fence.character => {
                    self.held.push(character);
                    self.line = Line::Run(length + 1);
                }
                (Line::Run(length) | Line::RunEnded(length), _) if character.is_whitespace() => {
                    self.held.push(character);
                    self.line = Line::RunEnded(length);
                }
                (_, _) if character.is_whitespace() => self.held.push(character),
                (_, _) => {
                    self.give_held(code);
                    code.push(character);
                    self.line = Line::Code;
                }
            }
        }
        None
    }

    /// Adds the held text to the code, because more code follows it.
    fn give_held(&mut self, code: &mut String) {
        let from = match self.started {
            true => 0,
            // Blank lines before the code are dropped; the first line's indentation stays.
            false => self.held.rfind('\n').map_or(0, |end| end + 1),
        };
        code.push_str(&self.held[from..]);
        self.held.clear();
        self.started = true;
    }
}

/// Returns an output without a fence, less the sentences before and after the code.
fn without_prose(text: &str) -> &str {
    let mut start = None;
    let mut end = 0;
    let mut offset = 0;
    for line in text.split_inclusive('\n') {
        if !line.trim().is_empty() && !is_prose(line) {
            start.get_or_insert(offset);
            end = offset + line.trim_end().len();
        }
        offset += line.len();
    }
    start.map_or("", |start| &text[start..end])
}

/// Returns whether a line reads as a sentence or a heading rather than as code. In doubt it is
/// code.
fn is_prose(line: &str) -> bool {
    let sentence = line.trim_end();
    if sentence.starts_with("##") || sentence.starts_with("**") {
        return true;
    }
    let Some(first) = sentence
        .chars()
        .next()
        .filter(|first| first.is_alphabetic())
    else {
        return false;
    };
    let is_wide = !first.is_ascii();
    let words = sentence.split_whitespace();
    let first_word = words.clone().next().unwrap_or("");
    // SQL and similar languages write their words in capitals.
    let shouts = first_word.len() > 1 && first_word.chars().all(|c| c.is_ascii_uppercase());
    if shouts || !(first.is_uppercase() || is_wide) || sentence.contains(['=', ';', '{', '}']) {
        return false;
    }
    let ends = sentence.ends_with(['.', ':', '!', '?', '。', '：', '！', '？']);
    let enough_words = is_wide || words.count() >= 3;
    let has_brackets = sentence.contains(['(', '[', '<', '"', '$']);
    enough_words && (ends || !has_brackets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn streamed(pieces: &[&str], language: Option<&str>) -> String {
        let mut extractor = Extractor::new(language);
        let mut code = String::new();
        for piece in pieces {
            extractor.push(piece, &mut code);
        }
        code.push_str(&extractor.finish());
        code
    }

    #[test]
    fn fences_and_prose_are_left_out() {
        let answer = "Here it is:\n\n```python\n\ndef f():\n    return 1\n\n```\nThat is all.";
        assert_eq!(extract(answer, Some("python")), "def f():\n    return 1");
        assert_eq!(
            streamed(&[answer], Some("python")),
            "def f():\n    return 1"
        );
    }

    #[test]
    fn language_decides_between_several_blocks() {
        let answer = "```bash\npip install a-very-long-package-name\n```\n\
                      ```py\nx = 1\n```\n```python\nprint(x + 1)\n```\n";
        assert_eq!(extract(answer, Some("Python")), "print(x + 1)");
        assert_eq!(
            extract(answer, Some("bash")),
            "pip install a-very-long-package-name"
        );
        assert_eq!(
            extract(answer, None),
            "pip install a-very-long-package-name"
        );
        assert_eq!(streamed(&[answer], Some("python")), "x = 1");
    }

    #[test]
    fn block_in_another_language_is_better_than_none() {
        let answer = "Run this:\n```console\nls\n```\n";
        assert_eq!(extract(answer, Some("c")), "ls");
        assert_eq!(streamed(&[answer], Some("c")), "ls");
    }

    #[test]
    fn unclosed_block_reaches_to_the_end_without_half_a_fence() {
        assert_eq!(extract("```c\nint x;\n``", Some("c")), "int x;");
        assert_eq!(extract("```c\nint x;\n", Some("c")), "int x;");
        assert_eq!(extract("```c", Some("c")), "");
    }

    #[test]
    fn shorter_and_other_fences_within_a_block_are_code() {
        let answer = "````markdown\n```c\nx\n```\n~~~\n````\nEnd.";
        assert_eq!(extract(answer, None), "```c\nx\n```\n~~~");
    }

    #[test]
    fn indented_block_loses_its_indentation() {
        let answer = "1. Do:\n   ```python\n   if x:\n       y()\n   ```\n";
        assert_eq!(extract(answer, Some("python")), "if x:\n    y()");
    }

    #[test]
    fn answer_without_a_fence_is_code_less_its_sentences() {
        let answer = "Here is a function:\n\ndef f():\n    return 1\n\nIt returns one.";
        assert_eq!(extract(answer, Some("python")), "def f():\n    return 1");
        assert_eq!(
            extract("SELECT name FROM users", Some("sql")),
            "SELECT name FROM users"
        );
        assert_eq!(extract("这是一个函数：\nx = 1", None), "x = 1");
        assert_eq!(extract("I cannot help with that request.", None), "");
        assert_eq!(extract("", None), "");
    }

    #[test]
    fn code_is_given_as_soon_as_it_is_certain() {
        let mut extractor = Extractor::new(Some("python"));
        let mut push = |piece: &str| {
            let mut code = String::new();
            extractor.push(piece, &mut code);
            code
        };
        assert_eq!(push("```python\nx ="), "x =");
        assert_eq!(push(" 1\n"), " 1");
        assert_eq!(push("``"), "");
        assert_eq!(push("x"), "\n``x");
        assert_eq!(push("\n```\nprose"), "");
        assert_eq!(extractor.finish(), "");
    }

    /// Scraps that reach every branch when they are strung together.
    fn scraps() -> impl Strategy<Value = Vec<&'static str>> {
        let scrap = prop::sample::select(vec![
            "`",
            "``",
            "```",
            "```python",
            "~~~",
            "\n",
            "\n\n",
            " ",
            "    ",
            "\t",
            "\r",
            "x = 1",
            "def f():",
            "Here is the code:",
            "é",
            "快速",
            "{",
            "## A",
            "",
        ]);
        prop::collection::vec(scrap, 0..40)
    }

    proptest! {
        #[test]
        fn lines_with_a_byte_are_those_of_all_lines(text in "[`~\na é]{0,40}") {
            let mut start = 0;
            let mut expected = Vec::new();
            for line in text.split_inclusive('\n') {
                if line.contains(['`', '~']) {
                    expected.push((start, line));
                }
                start += line.len();
            }
            let found: Vec<_> = lines_with(&text, b'`', b'~').collect();
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn pieces_have_the_result_of_the_whole(scraps in scraps(), cuts in any::<u64>()) {
            let whole = scraps.concat();
            for language in [None, Some("python"), Some("rust")] {
                let at_scraps = streamed(&scraps, language);
                let at_once = streamed(&[&whole], language);
                let mut buffer = [0; 4];
                let mut extractor = Extractor::new(language);
                let mut code = String::new();
                let mut piece = String::new();
                for (index, character) in whole.chars().enumerate() {
                    piece.push_str(character.encode_utf8(&mut buffer));
                    if cuts >> (index % 64) & 1 == 1 {
                        extractor.push(&piece, &mut code);
                        piece.clear();
                    }
                }
                extractor.push(&piece, &mut code);
                code.push_str(&extractor.finish());
                prop_assert_eq!(&at_scraps, &at_once);
                prop_assert_eq!(&code, &at_once);
            }
        }

        #[test]
        fn a_block_is_read_by_the_line_as_by_the_character(text in "[ \t\r\n`~x\u{a0}]{0,40}") {
            for (character, length) in [('`', 3), ('~', 4)] {
                let fence = Fence { character, length, indent: 0 };
                let mut code = String::new();
                let read = Body::new(fence).push(&text, &mut code).unwrap_or(text.len());
                prop_assert_eq!(fence.read_block(&text), (code.into(), &text[read..]));
            }
        }

        #[test]
        fn stream_of_one_block_is_what_extract_gives(
            before in "[A-Za-z :\n]{0,30}",
            lines in prop::collection::vec("[ -_a-}\t]{0,12}", 0..12),
            after in "[A-Za-z .\n]{0,30}",
        ) {
            let body = lines.join("\n");
            let answer = format!("{before}\n```python\n{body}\n```\n{after}");
            let code = extract(&answer, Some("python"));
            prop_assert_eq!(streamed(&[&answer], Some("python")), &*code);
            let first = body.find(|c: char| !c.is_whitespace());
            let expected = first.map_or("", |first| {
                let start = body[..first].rfind('\n').map_or(0, |end| end + 1);
                body[start..].trim_end()
            });
            prop_assert_eq!(code, expected);
        }
    }
}
