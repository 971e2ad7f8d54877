//! Colours for a program that comes in pieces.
//!
//! Knows keywords, strings, comments and numbers of the usual languages, which are enough to make a
//! program readable. A grammar library would know more but takes megabytes. Languages without a row
//! here stay plain.
//!
//! Invariants:
//! 1. Without its escape sequences, the output is the input.
//! 2. Each character's colour is the same, however the input is cut into pieces.
//! 3. Every piece of output ends without a colour, so that an interrupted command leaves the
//!    terminal as it was.

/// The kind of a piece of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Plain,
    Keyword,
    Text,
    Comment,
    Number,
}

impl Kind {
    /// Returns the sequence that begins it (ECMA-48, SGR), from the eight colours that every
    /// terminal has.
    fn colour(self) -> Option<&'static str> {
        match self {
            Kind::Plain => None,
            Kind::Keyword => Some("\x1b[35m"),
            Kind::Text => Some("\x1b[32m"),
            Kind::Comment => Some("\x1b[90m"),
            Kind::Number => Some("\x1b[36m"),
        }
    }
}

const END: &str = "\x1b[0m";

/// Words and delimiters of some languages.
#[derive(Debug)]
struct Grammar {
    /// The names that `engine::language` uses.
    languages: &'static [&'static str],
    /// Separated by spaces.
    keywords: &'static str,
    line_comments: &'static [&'static str],
    block_comment: Option<(&'static str, &'static str)>,
    /// The delimiters of strings; the longest first.
    quotes: &'static [&'static str],
    /// The delimiters among them whose strings may span lines.
    long_quotes: &'static [&'static str],
    /// Keywords are the same in upper case.
    ignores_case: bool,
    /// A comment begins only at the beginning of a word: `$#` does not begin one.
    spaced_comments: bool,
    /// `'a` does not begin a string, but `'a'` is one.
    has_lifetimes: bool,
}

const DEFAULTS: Grammar = Grammar {
    languages: &[],
    keywords: "",
    line_comments: &["//"],
    block_comment: Some(("/*", "*/")),
    quotes: &["\"", "'"],
    long_quotes: &[],
    ignores_case: false,
    spaced_comments: false,
    has_lifetimes: false,
};

/// The longest delimiter, in bytes. Shorter input may be the beginning of one.
const LOOKAHEAD: usize = 3;

/// Characters of the longest literal of a character, `'\u{10FFFF}'`.
const LITERAL: usize = 12;

const GRAMMARS: &[Grammar] = &[
    Grammar {
        languages: &["python"],
        keywords: "and as assert async await break case class continue def del elif else except \
                   False finally for from global if import in is lambda match None nonlocal not \
                   or pass raise return True try while with yield self",
        line_comments: &["#"],
        block_comment: None,
        quotes: &["\"\"\"", "'''", "\"", "'"],
        long_quotes: &["\"\"\"", "'''"],
        ..DEFAULTS
    },
    Grammar {
        languages: &["javascript", "typescript"],
        keywords: "abstract as async await break case catch class const continue debugger \
                   declare default delete do else enum export extends false finally for from \
                   function get if implements import in instanceof interface let namespace new \
                   null of private protected public readonly return set static super switch \
                   this throw true try type typeof undefined var void while yield",
        quotes: &["\"", "'", "`"],
        long_quotes: &["`"],
        ..DEFAULTS
    },
    Grammar {
        languages: &["c", "cpp", "objective-c"],
        keywords: "alignas alignof auto bool break case catch char class const consteval \
                   constexpr continue decltype default delete do double else enum explicit \
                   export extern false final float for friend goto if inline int long mutable \
                   namespace new noexcept nullptr NULL operator override private protected \
                   public register return short signed sizeof static static_assert struct \
                   switch template this throw true try typedef typename union unsigned using \
                   virtual void volatile while size_t",
        ..DEFAULTS
    },
    Grammar {
        languages: &["java", "csharp", "kotlin", "swift", "scala", "dart"],
        keywords: "abstract as async await base bool boolean break byte case catch char class \
                   const continue data def default do double else enum extends extension false \
                   final finally float for foreach fun func get guard if implements import in \
                   init instanceof int interface internal is lateinit let long namespace new \
                   nil null object open operator override package private protected public \
                   readonly record return sealed self set short static string struct super \
                   switch this throw throws trait true try typealias using val var virtual void \
                   when where while yield",
        ..DEFAULTS
    },
    Grammar {
        languages: &["go"],
        keywords: "any bool break byte case chan const continue default defer else error \
                   fallthrough false float64 for func go goto if import int int64 interface \
                   iota map nil package range return rune select string struct switch true type \
                   var",
        quotes: &["\"", "'", "`"],
        long_quotes: &["`"],
        ..DEFAULTS
    },
    Grammar {
        languages: &["rust"],
        keywords: "as async await bool break char const continue crate dyn else enum extern f32 \
                   f64 false fn for i32 i64 if impl in let loop match mod move mut pub ref \
                   return self Self static str String struct super trait true type u8 u32 u64 \
                   unsafe use usize where while",
        quotes: &["\""],
        long_quotes: &["\""],
        has_lifetimes: true,
        ..DEFAULTS
    },
    Grammar {
        languages: &["bash"],
        keywords: "break case continue declare do done elif else esac eval exec exit export fi \
                   for function if in local read readonly return set shift then trap unset \
                   until while",
        line_comments: &["#"],
        block_comment: None,
        long_quotes: &["\"", "'"],
        spaced_comments: true,
        ..DEFAULTS
    },
    Grammar {
        languages: &["sql"],
        keywords: "add all alter and as asc begin between by case check column commit \
                   constraint create cross default delete desc distinct drop else end exists \
                   foreign from full group having if in index inner insert integer into is join \
                   key left like limit not null offset on or order outer primary real \
                   references right rollback select set table text then union unique update \
                   using values view when where with",
        line_comments: &["--"],
        quotes: &["'", "\""],
        long_quotes: &["'"],
        ignores_case: true,
        ..DEFAULTS
    },
    Grammar {
        languages: &["ruby"],
        keywords: "alias and attr_accessor attr_reader begin break case class def do else elsif \
                   end ensure false for if in include module next nil not or raise redo require \
                   rescue retry return self super then true undef unless until when while yield",
        line_comments: &["#"],
        block_comment: None,
        long_quotes: &["\"", "'"],
        ..DEFAULTS
    },
    Grammar {
        languages: &["php"],
        keywords: "abstract and array as break case catch class const continue declare default \
                   do echo else elseif extends false final finally fn for foreach function \
                   global if implements include instanceof interface match namespace new null \
                   or print private protected public require return static switch this throw \
                   trait true try use var while yield",
        line_comments: &["//", "#"],
        long_quotes: &["\"", "'"],
        ..DEFAULTS
    },
    Grammar {
        languages: &["lua"],
        keywords: "and break do else elseif end false for function goto if in local nil not or \
                   repeat return then true until while",
        line_comments: &["--"],
        block_comment: None,
        ..DEFAULTS
    },
    Grammar {
        languages: &["perl"],
        keywords: "and chomp die each else elsif eq exit for foreach ge gt if keys last le \
                   local lt my ne next no not or our package print printf push return scalar \
                   shift sort sub undef unless until use values wantarray while",
        line_comments: &["#"],
        block_comment: None,
        long_quotes: &["\"", "'"],
        spaced_comments: true,
        ..DEFAULTS
    },
];

/// Colours one program.
#[derive(Debug)]
pub struct Highlighter {
    grammar: &'static Grammar,
    /// Input whose kind depends on what follows.
    pending: String,
    /// The string or comment around the pending input.
    inside: Option<Inside>,
    /// The character before the pending input.
    previous: char,
}

/// A string or comment that has begun.
#[derive(Clone, Copy, Debug)]
struct Inside {
    kind: Kind,
    /// The delimiter that ends it, and belongs to it.
    close: &'static str,
    /// A line's end ends it too.
    ends_with_line: bool,
}

impl Highlighter {
    /// `None` for a language without a grammar.
    pub fn of(language: &str) -> Option<Highlighter> {
        let grammar = GRAMMARS
            .iter()
            .find(|row| row.languages.contains(&language))?;
        Some(Highlighter {
            grammar,
            pending: String::new(),
            inside: None,
            previous: '\n',
        })
    }

    /// Takes the next piece and returns as much as can be shown.
    pub fn push(&mut self, text: &str) -> String {
        self.pending.push_str(text);
        self.advance(false)
    }

    /// Returns the rest: nothing comes after it.
    pub fn finish(&mut self) -> String {
        self.advance(true)
    }

    fn advance(&mut self, is_end: bool) -> String {
        let pending = std::mem::take(&mut self.pending);
        let mut rest = pending.as_str();
        let mut output = String::with_capacity(rest.len() * 2);
        while !rest.is_empty() {
            let (kind, length) = match self.inside {
                Some(inside) => self.within(inside, rest, is_end),
                None => self.outside(rest, is_end),
            };
            if length == 0 {
                break;
            }
            let (text, after) = rest.split_at(length);
            append(&mut output, kind, text);
            self.previous = text.chars().next_back().unwrap_or(self.previous);
            rest = after;
        }
        self.pending = rest.to_owned();
        output
    }

    /// Returns the kind and length of the next part within a string or comment; length 0 if
    /// undecided.
    fn within(&mut self, inside: Inside, rest: &str, is_end: bool) -> (Kind, usize) {
        let mut at = 0;
        while let Some(c) = rest[at..].chars().next() {
            let here = &rest[at..];
            if c == '\n' && inside.ends_with_line {
                self.inside = None;
                return match at {
                    0 => (Kind::Plain, 1),
                    _ => (inside.kind, at),
                };
            }
            if !inside.close.is_empty() && here.starts_with(inside.close) {
                self.inside = None;
                return (inside.kind, at + inside.close.len());
            }
            let may_close = !inside.close.is_empty() && inside.close.starts_with(here);
            let is_escape = c == '\\' && inside.kind == Kind::Text;
            if !is_end && (may_close || (is_escape && here.len() == 1)) {
                break;
            }
            let mut next = here.chars().skip(1);
            let escaped = is_escape.then(|| next.next()).flatten();
            at += c.len_utf8() + escaped.map_or(0, char::len_utf8);
        }
        (inside.kind, at)
    }

    /// Like `within`, outside of strings and comments.
    fn outside(&mut self, rest: &str, is_end: bool) -> (Kind, usize) {
        let grammar = self.grammar;
        let Some(first) = rest.chars().next() else {
            return (Kind::Plain, 0);
        };
        if first.is_whitespace() {
            return (Kind::Plain, first.len_utf8());
        }
        if first.is_alphanumeric() || first == '_' {
            return self.word(rest, is_end);
        }
        if rest.len() < LOOKAHEAD && !is_end {
            return (Kind::Plain, 0);
        }
        let at_word = !grammar.spaced_comments || self.previous.is_whitespace();
        let comment = grammar
            .line_comments
            .iter()
            .find(|open| rest.starts_with(**open));
        if let Some(open) = comment.filter(|_| at_word) {
            return self.enter(Kind::Comment, open, "", true);
        }
        if let Some((open, close)) = grammar
            .block_comment
            .filter(|(open, _)| rest.starts_with(open))
        {
            return self.enter(Kind::Comment, open, close, false);
        }
        if let Some(quote) = grammar
            .quotes
            .iter()
            .find(|quote| rest.starts_with(**quote))
        {
            let is_long = grammar.long_quotes.contains(quote);
            return self.enter(Kind::Text, quote, quote, !is_long);
        }
        if first == '\'' && grammar.has_lifetimes {
            return character_literal(rest, is_end);
        }
        // The name in `$name` and `@name` is not a keyword.
        (Kind::Plain, first.len_utf8())
    }

    fn enter(
        &mut self,
        kind: Kind,
        open: &'static str,
        close: &'static str,
        ends_with_line: bool,
    ) -> (Kind, usize) {
        self.inside = Some(Inside {
            kind,
            close,
            ends_with_line,
        });
        (kind, open.len())
    }

    fn word(&self, rest: &str, is_end: bool) -> (Kind, usize) {
        let is_number = rest.starts_with(|c: char| c.is_ascii_digit());
        let goes_on = |c: char| c.is_alphanumeric() || c == '_' || (is_number && c == '.');
        let Some(length) = rest.find(|c| !goes_on(c)).or(is_end.then_some(rest.len())) else {
            return (Kind::Plain, 0);
        };
        let word = &rest[..length];
        let is_variable = matches!(self.previous, '$' | '@' | '%' | '.');
        let mut keywords = self.grammar.keywords.split_whitespace();
        let is_keyword = match self.grammar.ignores_case {
            true => keywords.any(|keyword| keyword.eq_ignore_ascii_case(word)),
            false => keywords.any(|keyword| keyword == word),
        };
        match () {
            () if is_number => (Kind::Number, length),
            () if is_keyword && !is_variable => (Kind::Keyword, length),
            () => (Kind::Plain, length),
        }
    }
}

/// Distinguishes `'a'` and `'\n'` from the lifetime `'a`.
fn character_literal(rest: &str, is_end: bool) -> (Kind, usize) {
    let mut characters = rest.char_indices().skip(1);
    let is_escape = characters.next().is_some_and(|(_, c)| c == '\\');
    let close = match is_escape {
        true => characters
            .skip(1)
            .take(LITERAL - 3)
            .find(|(_, c)| *c == '\''),
        false => characters.next().filter(|(_, c)| *c == '\''),
    };
    let is_short = rest.chars().count() < if is_escape { LITERAL } else { 3 };
    match close {
        Some((at, _)) => (Kind::Text, at + 1),
        None if is_short && !is_end => (Kind::Plain, 0),
        None => (Kind::Plain, 1),
    }
}

fn append(output: &mut String, kind: Kind, text: &str) {
    match kind.colour() {
        Some(colour) => output.extend([colour, text, END]),
        None => output.push_str(text),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::engine::language;

    fn coloured(language: &str, pieces: &[&str]) -> String {
        let mut highlighter = Highlighter::of(language).expect("a grammar");
        let mut output: String = pieces.iter().map(|piece| highlighter.push(piece)).collect();
        output.push_str(&highlighter.finish());
        output
    }

    /// Returns each character with the colour in which it is shown.
    fn cells(output: &str) -> Vec<(char, String)> {
        let mut cells = Vec::new();
        let mut colour = String::new();
        let mut rest = output;
        while let Some(c) = rest.chars().next() {
            if let Some(sequence) = rest.strip_prefix("\x1b[") {
                let end = sequence.find('m').expect("a whole sequence");
                colour = sequence[..end].to_owned();
                rest = &sequence[end + 1..];
                continue;
            }
            cells.push((c, colour.clone()));
            rest = &rest[c.len_utf8()..];
        }
        cells
    }

    /// Returns the parts that have this colour.
    fn parts(language: &str, text: &str, kind: Kind) -> Vec<String> {
        let wanted = kind.colour().expect("a colour");
        coloured(language, &[text])
            .split(wanted)
            .skip(1)
            .map(|part| part.split(END).next().unwrap_or_default().to_owned())
            .collect()
    }

    #[test]
    fn every_row_is_for_languages_of_the_table() {
        for name in GRAMMARS.iter().flat_map(|row| row.languages) {
            assert!(
                language::LANGUAGES.iter().any(|row| row.name == *name),
                "{name}"
            );
        }
        let delimiters = GRAMMARS
            .iter()
            .flat_map(|row| row.quotes.iter().chain(row.line_comments));
        assert_eq!(
            delimiters.map(|delimiter| delimiter.len()).max(),
            Some(LOOKAHEAD)
        );
        assert!(Highlighter::of("verilog").is_none());
    }

    #[test]
    fn keywords_strings_comments_and_numbers_are_distinguished() {
        let text = "def f(x):  # for\n    return \"if # not\" + 'it\\'s' + str(12)\n";
        assert_eq!(parts("python", text, Kind::Keyword), ["def", "return"]);
        let comment: String = parts("python", text, Kind::Comment).concat();
        assert_eq!(comment, "# for");
        assert_eq!(
            parts("python", text, Kind::Text).concat(),
            "\"if # not\"'it\\'s'"
        );
        assert_eq!(parts("python", text, Kind::Number), ["12"]);
    }

    #[test]
    fn languages_differ_where_it_matters() {
        let text = "fn f<'a>(x: &'a str) -> char { '\"' }";
        assert_eq!(parts("rust", text, Kind::Text), ["'\"'"]);
        let text = "SELECT 'it''s' -- from\nFROM t";
        assert_eq!(parts("sql", text, Kind::Keyword), ["SELECT", "FROM"]);
        let text = "echo $# ${#x} \"a\nb\" # end";
        assert_eq!(parts("bash", text, Kind::Comment).concat(), "# end");
        let text = "/* if\n * */ int x = 0; // y";
        assert_eq!(parts("c", text, Kind::Comment).concat(), "/* if\n * */// y");
        let text = "x = \"\"\"a\n\"b\" \"\"\"; y";
        assert_eq!(
            parts("python", text, Kind::Text).concat(),
            "\"\"\"a\n\"b\" \"\"\""
        );
    }

    proptest! {
        #[test]
        fn output_is_the_input_and_does_not_depend_on_its_pieces(
            text in r#"([a-z]{1,6}|if|return|[0-9]|["'`#/*\\ \n$\-]|"""|好){0,40}"#,
            cuts in prop::collection::vec(0_usize..200, 0..6),
            row in 0..GRAMMARS.len(),
        ) {
            let language = GRAMMARS[row].languages[0];
            let whole = cells(&coloured(language, &[&text]));
            let plain: String = whole.iter().map(|(c, _)| *c).collect();
            prop_assert_eq!(&plain, &text);
            let places = text.char_indices().map(|(at, _)| at).filter(|at| cuts.contains(at));
            let places: Vec<usize> = places.chain([text.len()]).collect();
            let mut from = 0;
            let pieces: Vec<&str> = places
                .iter()
                .map(|to| &text[std::mem::replace(&mut from, *to)..*to])
                .collect();
            prop_assert_eq!(cells(&coloured(language, &pieces)), whole);
        }
    }
}
