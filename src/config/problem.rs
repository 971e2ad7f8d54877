//! Mistakes and their places: `file:line:column: message`, the source line, a caret.
//!
//! Owns the text of the file, places in it, and the form of mistakes. Must never print a control
//! character that came from the file: a terminal would obey it.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::limits::config as limits;

/// One mistake (or warning) and its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Such as `/etc/autoglmd/autoglmd.toml:3:8`, `AUTOGLMD_LIMITS__MAX_HEAD` or `--parallel`.
    pub place: String,
    pub message: String,
    /// The source line with a caret below it, if there is one.
    pub excerpt: Option<String>,
}

impl Problem {
    pub fn new(place: impl Into<String>, message: impl Into<String>) -> Problem {
        Problem {
            place: place.into(),
            message: message.into(),
            excerpt: None,
        }
    }

    /// Returns it on one line, for the log.
    pub fn brief(&self) -> String {
        format!("{}: {}", self.place, self.message)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)?;
        match &self.excerpt {
            Some(excerpt) => write!(f, "\n{excerpt}"),
            None => Ok(()),
        }
    }
}

/// Every mistake of a configuration, at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors {
    /// At least one.
    pub problems: Vec<Problem>,
    /// The number of further mistakes.
    pub more: usize,
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{problem}")?;
        }
        match self.more {
            0 => Ok(()),
            more => write!(f, "\nand {more} more"),
        }
    }
}

impl std::error::Error for ConfigErrors {}

/// The text and the name of a file.
pub struct Document {
    pub path: PathBuf,
    pub text: String,
    /// Where each line begins, so that a binary search finds the line of a byte.
    line_starts: Vec<usize>,
}

impl Document {
    pub fn new(path: PathBuf, text: String) -> Document {
        let after_newlines = text.match_indices('\n').map(|(newline, _)| newline + 1);
        let line_starts = std::iter::once(0).chain(after_newlines).collect();
        Document {
            path,
            text,
            line_starts,
        }
    }

    /// Returns the mistake at a range of bytes of the text.
    pub fn problem(&self, span: Range<usize>, message: String) -> Problem {
        let line = self.line(span.start);
        let column = self
            .slice(self.line_starts[line - 1]..span.start)
            .chars()
            .count()
            + 1;
        Problem {
            place: format!("{}:{line}:{column}", printable_path(&self.path)),
            message,
            excerpt: Some(self.excerpt(line, column, span)),
        }
    }

    /// Returns the line of a byte, from 1.
    pub fn line(&self, offset: usize) -> usize {
        // The first line begins at 0, so there is always one that begins at or before.
        self.line_starts.partition_point(|start| *start <= offset)
    }

    /// Returns a line's text, without its end.
    pub fn source(&self, line: usize) -> &str {
        let start = self.line_starts[line - 1];
        let end = self
            .line_starts
            .get(line)
            .map_or(self.text.len(), |next| next - 1);
        self.slice(start..end).trim_end_matches('\r')
    }

    fn excerpt(&self, line: usize, column: usize, span: Range<usize>) -> String {
        let source = without_password(self.source(line));
        let width = source.chars().count();
        // A long line is cut so that the caret's surroundings stay visible.
        let first = match width > limits::EXCERPT_CHARACTERS_MAX {
            true => (column - 1).saturating_sub(limits::EXCERPT_CHARACTERS_MAX / 2),
            false => 0,
        };
        let shown: String = source
            .chars()
            .skip(first)
            .take(limits::EXCERPT_CHARACTERS_MAX)
            .map(visible)
            .collect();
        let marked = self.slice(span).chars();
        let room = (first + shown.chars().count())
            .saturating_sub(column - 1)
            .max(1);
        let carets = marked.take_while(|c| *c != '\n').count().clamp(1, room);
        let (number, gutter) = (line.to_string(), " ".repeat(line.to_string().len()));
        let pad = " ".repeat(column - 1 - first);
        format!(
            "  {number} | {shown}\n  {gutter} | {pad}{}",
            "^".repeat(carets)
        )
    }

    /// Returns a part of the text, cut to characters: parsers may point past the end.
    fn slice(&self, span: Range<usize>) -> &str {
        let boundary = |offset: usize| {
            let mut offset = offset.min(self.text.len());
            while !self.text.is_char_boundary(offset) {
                offset -= 1;
            }
            offset
        };
        let (start, end) = (boundary(span.start), boundary(span.end));
        &self.text[start.min(end)..end]
    }
}

/// Quotes a value for a message: on one line, and bounded.
pub fn quote(text: &str) -> String {
    let mut shown: String = without_password(text)
        .chars()
        .take(limits::QUOTE_CHARACTERS_MAX)
        .map(visible)
        .collect();
    if text.chars().nth(limits::QUOTE_CHARACTERS_MAX).is_some() {
        shown.push('…');
    }
    shown
}

/// Returns a whole text on one line.
pub fn printable(text: &str) -> String {
    text.chars().map(visible).collect()
}

pub fn printable_path(path: &Path) -> String {
    printable(&path.to_string_lossy())
}

/// Returns the nearest of the known names, if one is near enough to have been meant.
pub fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    if word.len() > limits::SUGGESTION_BYTES_MAX {
        return None;
    }
    let distance =
        |name: &str| strsim::damerau_levenshtein(&word.to_lowercase(), &name.to_lowercase());
    let best = known.map(|name| (distance(name), name)).min()?;
    // Two typos in a short word, one in three letters of a long one.
    (best.0 <= (best.1.len() / 3).max(2)).then_some(best.1)
}

/// Replaces the password of each URL by as many stars, so that places stay the same: messages are
/// logged, and a URL with a password is often in the wrong key, or has a typo elsewhere.
fn without_password(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(scheme) = rest.find("://") {
        let start = scheme + "://".len();
        let url = &rest[start..];
        let is_end = |c: char| c.is_whitespace() || matches!(c, '"' | '\'');
        let end = url.find(is_end).unwrap_or(url.len());
        let secret = secret_of(&url[..end]);
        shown.push_str(&rest[..start + secret.start]);
        shown.extend(url[secret.clone()].chars().map(|_| '*'));
        rest = &url[secret.end..];
    }
    shown.push_str(rest);
    shown
}

/// Returns the place of the password in a URL without its scheme; an empty one at its end if it has
/// none.
fn secret_of(url: &str) -> Range<usize> {
    const PARAMETER: &str = "password=";
    // A password with an `@` of its own is wrong, and it is one all the same.
    if let Some(at) = url.rfind('@')
        && let Some(colon) = url[..at].find(':')
    {
        return colon + 1..at;
    }
    match url.find(PARAMETER) {
        Some(start) => {
            let start = start + PARAMETER.len();
            let length = url[start..].find('&').unwrap_or(url.len() - start);
            start..start + length
        }
        None => url.len()..url.len(),
    }
}

/// Replaces a tab by one space, so that the caret is at the right place, and control characters by
/// a replacement character.
fn visible(c: char) -> char {
    match c {
        '\t' => ' ',
        c if c.is_control() => char::REPLACEMENT_CHARACTER,
        c => c,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn document(text: &str) -> Document {
        Document::new("a.toml".into(), text.to_owned())
    }

    #[test]
    fn the_caret_stands_below_the_place_in_characters() {
        let document = document("[log]\r\n\t名 = \"é\" # 注\r\n");
        let start = document.text.find("\"é\"").expect("it is there");
        let problem = document.problem(start..start + "\"é\"".len(), "no".to_owned());
        assert_eq!(
            problem.to_string(),
            "a.toml:2:6: no\n  2 |  名 = \"é\" # 注\n    |      ^^^"
        );
    }

    #[test]
    fn a_long_line_is_cut_around_the_place_and_escapes_are_disarmed() {
        let text = format!("{}\x1b[2J{}", "a".repeat(5_000), "b".repeat(5_000));
        let problem = document(&text).problem(5_000..9_000, "no".to_owned());
        let excerpt = problem.excerpt.expect("a place in the file has one");
        assert!(
            excerpt
                .lines()
                .all(|line| line.chars().count() < limits::EXCERPT_CHARACTERS_MAX + 20)
        );
        assert!(excerpt.contains("a\u{fffd}[2Jb") && !excerpt.contains('\x1b'));
    }

    /// Mutation that this test catches: `find('@')`, which shows the end of a password.
    #[test]
    fn passwords_in_urls_are_not_shown() {
        for (text, shown) in [
            ("postgres://me:p@ss@db/a", "postgres://me:****@db/a"),
            (
                "\"redis://:wörd@db\" x://a:b@c",
                "\"redis://:****@db\" x://a:*@c",
            ),
            ("a://b/c?password=xyz&d=e", "a://b/c?password=***&d=e"),
            ("a://b:1/c://d", "a://b:1/c://d"),
            ("://", "://"),
            ("no URL: at@all", "no URL: at@all"),
        ] {
            assert_eq!(without_password(text), shown);
            assert_eq!(quote(text), shown);
        }
        let problem = document("a = \"b://c:d@e\"").problem(4..15, String::new());
        assert_eq!(
            problem.excerpt.as_deref(),
            Some("  1 | a = \"b://c:*@e\"\n    |     ^^^^^^^^^^^")
        );
    }

    #[test]
    fn suggestions_need_likeness() {
        let names = ["listen", "reactors", "watch_config"];
        assert_eq!(nearest("lisen", names.into_iter()), Some("listen"));
        assert_eq!(nearest("Reactor", names.into_iter()), Some("reactors"));
        assert_eq!(nearest("colour", names.into_iter()), None);
        assert_eq!(nearest(&"x".repeat(1_000), names.into_iter()), None);
    }

    proptest! {
        #[test]
        fn any_range_has_a_place(text: String, start in 0usize..80, length in 0usize..80) {
            let problem = document(&text).problem(start..start + length, String::new());
            let excerpt = problem.excerpt.unwrap_or_default();
            prop_assert_eq!(excerpt.lines().count(), 2);
            prop_assert!(excerpt.ends_with('^'));
        }
    }
}
