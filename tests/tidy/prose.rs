//! The prose: words that `docs/style.md` advises against, counted in the comments and messages
//! under `src`, in the pages under `docs` and in the README.
//!
//! `AUTOGLMD_PROSE=src/os cargo test --test tidy prose -- --nocapture` lists each place in a folder.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Words and phrases that no English code base uses in this way.
const LISTED: &[&str] = &[
    "somebody",
    "nobody",
    "anybody",
    "everybody",
    "whoever",
    "whom",
    "whomever",
    "anew",
    "be it",
    "for want of",
    "in vain",
    "dear",
    "dearer",
    "dearest",
    "needless",
    "needlessly",
    "mend",
    "mends",
    "mended",
    "mending",
    "at hand",
    "but for",
    "so many",
    "is over",
    "gives the",
    "on the average",
    "slip of the pen",
];

/// "is no number" should be "is not a number", but "is no longer" and "there is no" are English.
const FOLLOW_IS_NO: &[&str] = &[
    "longer", "more", "less", "better", "worse", "later", "earlier", "larger", "smaller", "wider",
    "faster", "slower", "other",
];

/// Programs report, return and log. They seldom say or tell.
const SPOKEN: &[&str] = &["say", "says", "said", "saying", "tell", "tells", "told"];

/// HTTP sends a response. "Answer" is for what a model or a person says.
const ANSWERS: &[&str] = &["answer", "answers", "answered", "answering", "unanswered"];
const RESPONSES: &[&str] = &[
    "response",
    "responses",
    "respond",
    "responds",
    "responded",
    "responding",
];

/// A sentence that opens with one of these and asks nothing has no subject yet.
const HEADLESS: &[&str] = &["What", "Who", "Whoever", "Whose"];

/// Occurrences per 10,000 words that are still plain English.
const HEADLESS_PER_10_000_MAX: usize = 2;
const SPOKEN_PER_10_000_MAX: usize = 2;
/// "Response" must stand this many times as often as "answer".
const RESPONSES_PER_ANSWER_MIN: usize = 10;

/// Mutations: "whoever" in a comment, in a page, or in the text of an error.
#[test]
fn no_listed_word_is_used() {
    let mut wrong = String::new();
    for (folder, counts) in count_all() {
        if counts.listed + counts.messages > 0 {
            wrong.push_str(&places(&folder));
        }
    }
    assert!(
        wrong.is_empty(),
        "listed words, see docs/style.md:\n{wrong}"
    );
}

/// Mutations: "What follows" for "The rest" at forty places; "answer" for "response" in `service`.
#[test]
fn programs_report_sentences_have_subjects_and_http_responds() {
    let found = count_all();
    print_counts(&found);
    if let Ok(folder) = std::env::var("AUTOGLMD_PROSE") {
        print!("{}", places(&folder));
    }
    let mut total = Counts::default();
    found.values().for_each(|counts| total.add(counts));
    let rate = |count: usize| count * 10_000 / total.words;
    let hint = "AUTOGLMD_PROSE=src cargo test --test tidy prose -- --nocapture lists the places";
    assert!(
        rate(total.spoken) < SPOKEN_PER_10_000_MAX,
        "say, tell: {hint}"
    );
    assert!(
        rate(total.headless) < HEADLESS_PER_10_000_MAX,
        "sentences that open with What or Who: {hint}"
    );
    assert!(
        total.responses >= total.answers * RESPONSES_PER_ANSWER_MIN,
        "{} answers for {} responses: {hint}",
        total.answers,
        total.responses
    );
}

/// The counts of one folder.
#[derive(Clone, Copy, Default)]
struct Counts {
    words: usize,
    listed: usize,
    spoken: usize,
    headless: usize,
    answers: usize,
    responses: usize,
    /// Listed and spoken words in string literals of product code.
    messages: usize,
}

impl Counts {
    fn add(&mut self, other: &Counts) {
        self.words += other.words;
        self.listed += other.listed;
        self.spoken += other.spoken;
        self.headless += other.headless;
        self.answers += other.answers;
        self.responses += other.responses;
        self.messages += other.messages;
    }
}

fn count_all() -> BTreeMap<String, Counts> {
    let mut found: BTreeMap<String, Counts> = BTreeMap::new();
    for text in texts() {
        let counts = count(&text);
        found.entry(text.folder.clone()).or_default().add(&counts);
    }
    found
}

fn count(text: &Text) -> Counts {
    let words = words_of(&text.prose);
    let listed = count_phrases(&words);
    let spoken = count_words(&words, SPOKEN);
    match text.kind {
        Kind::Message => Counts {
            messages: listed + spoken,
            ..Counts::default()
        },
        Kind::Prose => Counts {
            words: words.len(),
            listed: listed + usize::from(begins_with_gives(&text.prose)),
            spoken,
            headless: headless(&text.prose).len(),
            answers: count_words(&words, ANSWERS),
            responses: count_words(&words, RESPONSES),
            messages: 0,
        },
        Kind::Heading => Counts {
            words: words.len(),
            listed,
            spoken,
            ..Counts::default()
        },
    }
}

fn count_words(words: &[String], list: &[&str]) -> usize {
    let is_listed = |word: &&String| list.contains(&word.as_str());
    words.iter().filter(is_listed).count()
}

fn count_phrases(words: &[String]) -> usize {
    phrases(words).len()
}

/// The listed phrases in a text, in its order.
fn phrases(words: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    for at in 0..words.len() {
        let starts = LISTED
            .iter()
            .filter(|phrase| phrase.starts_with(&words[at]));
        for phrase in starts {
            let parts: Vec<&str> = phrase.split(' ').collect();
            let here = words[at..].iter().take(parts.len());
            if here.map(String::as_str).eq(parts.iter().copied()) {
                found.push((*phrase).to_owned());
            }
        }
        found.extend(is_no(words, at));
    }
    found
}

fn is_no(words: &[String], at: usize) -> Option<String> {
    let verb = words[at].as_str();
    let next = words.get(at + 1)?.as_str();
    let follows = words.get(at + 2).map_or("", String::as_str);
    let before = at.checked_sub(1).map_or("", |at| words[at].as_str());
    let matches = matches!(verb, "is" | "are" | "was" | "were")
        && next == "no"
        && before != "there"
        && !FOLLOW_IS_NO.contains(&follows);
    matches.then(|| format!("{verb} no {follows}"))
}

/// Sentences that open with "What" or "Who" and are no questions.
fn headless(prose: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut rest = prose.trim_start();
    while !rest.is_empty() {
        let end = sentence_end(rest);
        let sentence = &rest[..end];
        let first = sentence.split([' ', ',']).next().unwrap_or_default();
        if HEADLESS.contains(&first) && !sentence.ends_with('?') {
            found.push(sentence);
        }
        rest = rest[end..].trim_start();
    }
    found
}

/// Where the first sentence ends: behind a full stop, a question or an exclamation mark that a
/// space follows.
fn sentence_end(text: &str) -> usize {
    let ends = |&(at, character): &(usize, char)| {
        let follows = text[at + character.len_utf8()..].chars().next();
        matches!(character, '.' | '?' | '!') && follows.is_none_or(char::is_whitespace)
    };
    let end = text.char_indices().find(ends);
    end.map_or(text.len(), |(at, mark)| at + mark.len_utf8())
}

/// Lower-case words. Text between back quotes is code and does not count.
fn words_of(prose: &str) -> Vec<String> {
    let is_word = |character: char| character.is_alphanumeric() || matches!(character, '\'' | '-');
    let mut words = Vec::new();
    for (index, part) in prose.split('`').enumerate() {
        if index % 2 == 0 {
            let found = part.split(|character| !is_word(character));
            words.extend(found.filter(|word| !word.is_empty()).map(str::to_lowercase));
        } else {
            words.push("`".to_owned());
        }
    }
    words
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// A paragraph of a comment or of a page.
    Prose,
    Heading,
    /// A string literal of product code.
    Message,
}

struct Text {
    folder: String,
    place: String,
    kind: Kind,
    prose: String,
}

fn texts() -> Vec<Text> {
    let root = root();
    let mut found = Vec::new();
    for path in files_below(&root.join("src"), "rs") {
        let (folder, name) = place_of(&root, &path);
        let source = std::fs::read_to_string(&path).expect("sources are UTF-8");
        let is_test = name.contains("/tests") || name.contains("/simulation");
        for (line, kind, prose) in read_source(&source, is_test) {
            let (folder, place) = (folder.clone(), format!("{name}:{line}"));
            found.push(Text {
                folder,
                place,
                kind,
                prose,
            });
        }
    }
    let mut pages = files_below(&root.join("docs"), "md");
    pages.push(root.join("README.md"));
    for path in pages {
        let (_, name) = place_of(&root, &path);
        let page = std::fs::read_to_string(&path).expect("pages are UTF-8");
        for (line, kind, prose) in read_page(&page) {
            let (folder, place) = (name.clone(), format!("{name}:{line}"));
            found.push(Text {
                folder,
                place,
                kind,
                prose,
            });
        }
    }
    assert!(found.len() > 1000, "the sources were not found");
    found
}

/// A Rust source's comments and, outside tests, its string literals, each with its line.
fn read_source(source: &str, is_test: bool) -> Vec<(usize, Kind, String)> {
    let mut found = Vec::new();
    let mut comment: Vec<(usize, String)> = Vec::new();
    let mut in_tests = is_test;
    let mut rest = source;
    let mut line = 1;
    let mut is_first_on_line = true;
    while let Some(next) = rest.chars().next() {
        if rest.starts_with("#[cfg(test)]\nmod ") && rest.contains('{') {
            in_tests = true;
        }
        let length = if rest.starts_with("//") {
            let length = rest.find('\n').unwrap_or(rest.len());
            if !is_first_on_line {
                flush_comment(&mut comment, &mut found);
            }
            comment.push((line, rest[..length].to_owned()));
            if !is_first_on_line {
                flush_comment(&mut comment, &mut found);
            }
            length
        } else if next.is_whitespace() {
            next.len_utf8()
        } else {
            flush_comment(&mut comment, &mut found);
            let (length, literal) = token(rest);
            if let Some(literal) = literal.filter(|literal| !in_tests && literal.contains(' ')) {
                found.push((line, Kind::Message, without_arguments(literal)));
            }
            length
        };
        let token = &rest[..length];
        line += token.matches('\n').count();
        is_first_on_line = token.ends_with('\n') || (is_first_on_line && token.trim().is_empty());
        rest = &rest[length..];
    }
    flush_comment(&mut comment, &mut found);
    found
}

/// `{name:?}` becomes `{}`: a variable's name is not a word that a user sees.
fn without_arguments(literal: &str) -> String {
    let mut plain = String::with_capacity(literal.len());
    let mut depth = 0;
    for character in literal.chars() {
        depth -= i32::from(character == '}');
        if depth <= 0 {
            plain.push(character);
        }
        depth += i32::from(character == '{');
    }
    plain
}

/// The length of the token at the beginning of `rest`, and its text if it is a string literal.
fn token(rest: &str) -> (usize, Option<&str>) {
    let bytes = rest.as_bytes();
    let raw = rest.trim_start_matches(['b', 'c']);
    let prefix = rest.len() - raw.len();
    if prefix <= 1 && raw.starts_with('r') {
        let hashes = raw[1..].bytes().take_while(|byte| *byte == b'#').count();
        if raw.as_bytes().get(1 + hashes) == Some(&b'"') {
            let begin = prefix + hashes + 2;
            let close = format!("\"{}", "#".repeat(hashes));
            let length = rest[begin..].find(&close).expect("a raw string ends");
            let literal = &rest[begin..begin + length];
            return (begin + length + close.len(), Some(literal));
        }
    }
    if prefix <= 1 && raw.starts_with('"') {
        let mut at = prefix + 1;
        while bytes[at] != b'"' {
            at += if bytes[at] == b'\\' { 2 } else { 1 };
        }
        return (at + 1, Some(&rest[prefix + 1..at]));
    }
    if bytes[0] == b'\'' {
        // A character or a lifetime.
        let mut characters = rest.char_indices().skip(1);
        let (_, first) = characters.next().expect("a quote is not the end of a file");
        if first == '\\' {
            let close = rest[3..].find('\'').expect("a character literal ends");
            return (3 + close + 1, None);
        }
        let (second_at, second) = characters.next().expect("a quote is not the end of a file");
        return if second == '\'' {
            (second_at + 1, None)
        } else {
            (1, None)
        };
    }
    let is_name = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
    let name = bytes.iter().take_while(|byte| is_name(byte)).count();
    let character = rest.chars().next().map_or(1, char::len_utf8);
    (name.max(character), None)
}

/// Joins the lines of one comment and splits it into paragraphs and list items.
fn flush_comment(comment: &mut Vec<(usize, String)>, found: &mut Vec<(usize, Kind, String)>) {
    let strip = |text: &str| {
        let text = text.trim_start_matches('/').trim_start_matches('!');
        text.strip_prefix(' ').unwrap_or(text).to_owned()
    };
    let lines: Vec<(usize, String)> = comment
        .drain(..)
        .map(|(line, text)| (line, strip(&text)))
        .collect();
    for (line, _, paragraph) in paragraphs(&lines) {
        found.push((line, Kind::Prose, paragraph));
    }
}

/// A Markdown page's paragraphs, list items, cells and headings.
fn read_page(page: &str) -> Vec<(usize, Kind, String)> {
    let lines = page.lines().enumerate();
    let lines: Vec<(usize, String)> = lines.map(|(at, text)| (at + 1, text.to_owned())).collect();
    paragraphs(&lines)
}

fn paragraphs(lines: &[(usize, String)]) -> Vec<(usize, Kind, String)> {
    let mut found: Vec<(usize, Kind, String)> = Vec::new();
    let mut is_fenced = false;
    let mut after_blank = true;
    for (line, text) in lines {
        let trimmed = text.trim();
        if trimmed.starts_with("```") {
            is_fenced = !is_fenced;
            continue;
        }
        let is_item = is_list_item(trimmed);
        let is_code = text.starts_with("    ") && after_blank && !is_item;
        if is_fenced || is_code {
            continue;
        }
        if trimmed.is_empty() {
            after_blank = true;
            continue;
        }
        let prose = without_links(trimmed);
        if let Some(heading) = prose.strip_prefix('#') {
            let heading = heading.trim_start_matches('#').trim().to_owned();
            found.push((*line, Kind::Heading, heading));
            after_blank = true;
            continue;
        }
        if prose.starts_with('|') {
            let cells = prose
                .split('|')
                .map(str::trim)
                .filter(|cell| !cell.is_empty());
            found.extend(cells.map(|cell| (*line, Kind::Prose, cell.to_owned())));
            after_blank = true;
            continue;
        }
        match found.last_mut().filter(|_| !after_blank && !is_item) {
            Some((_, _, paragraph)) => {
                paragraph.push(' ');
                paragraph.push_str(&prose);
            }
            None => found.push((*line, Kind::Prose, without_bullet(&prose).to_owned())),
        }
        after_blank = false;
    }
    found
}

fn is_list_item(text: &str) -> bool {
    without_bullet(text).len() < text.len()
}

fn without_bullet(text: &str) -> &str {
    for bullet in ["* ", "- ", "> "] {
        if let Some(rest) = text.strip_prefix(bullet) {
            return rest;
        }
    }
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    match text[digits..].strip_prefix(". ").filter(|_| digits > 0) {
        Some(rest) => rest,
        None => text,
    }
}

/// `[text](address)` becomes `text`.
fn without_links(text: &str) -> String {
    let mut plain = text.to_owned();
    while let Some(middle) = plain.find("](") {
        let Some(end) = plain[middle..].find(')') else {
            break;
        };
        plain.replace_range(middle..middle + end + 1, "");
    }
    plain.replace(['[', ']'], "")
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The first folder under `src` (or the file beside it), and the name within the repository.
fn place_of(root: &Path, path: &Path) -> (String, String) {
    let name = path.strip_prefix(root).expect("it lies below");
    let name = name.display().to_string();
    let mut parts = name.splitn(3, '/');
    let first = parts.next().unwrap_or_default();
    let folder = match parts.next() {
        Some(second) => format!("{first}/{second}"),
        None => first.to_owned(),
    };
    (folder.trim_end_matches(".rs").to_owned(), name)
}

fn files_below(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("the folder exists") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(files_below(&path, extension));
        } else if path.extension().is_some_and(|found| found == extension) {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn print_counts(found: &BTreeMap<String, Counts>) {
    let mut total = Counts::default();
    println!(
        "{:32} {:>7} {:>6} {:>6} {:>8} {:>7} {:>9} {:>8}",
        "folder", "words", "listed", "spoken", "headless", "answers", "responses", "messages"
    );
    let row = |name: &str, counts: &Counts| {
        println!(
            "{name:32} {:7} {:6} {:6} {:8} {:7} {:9} {:8}",
            counts.words,
            counts.listed,
            counts.spoken,
            counts.headless,
            counts.answers,
            counts.responses,
            counts.messages
        );
    };
    for (folder, counts) in found {
        row(folder, counts);
        total.add(counts);
    }
    row("total", &total);
    let rate = |count: usize| count as f64 * 10_000.0 / total.words as f64;
    println!(
        "goals: listed 0, messages 0; spoken {:.1} of {SPOKEN_PER_10_000_MAX} and headless {:.1} of \
         {HEADLESS_PER_10_000_MAX} per 10,000 words; responses {} for {} answers, at least \
         {RESPONSES_PER_ANSWER_MIN} times as many",
        rate(total.spoken),
        rate(total.headless),
        total.responses,
        total.answers
    );
}

/// Returns each place in a folder or page, with what was found there.
fn places(folder: &str) -> String {
    let mut places = String::new();
    for text in texts().iter().filter(|text| text.place.starts_with(folder)) {
        let words = words_of(&text.prose);
        let mut hits = phrases(&words);
        let lists: &[&[&str]] = match text.kind {
            Kind::Prose => &[SPOKEN, ANSWERS],
            _ => &[SPOKEN],
        };
        for list in lists {
            let listed = words.iter().filter(|word| list.contains(&word.as_str()));
            hits.extend(listed.cloned());
        }
        if text.kind == Kind::Prose {
            if begins_with_gives(&text.prose) {
                hits.push("Gives".to_owned());
            }
            hits.extend(headless(&text.prose).into_iter().map(str::to_owned));
        }
        if !hits.is_empty() {
            writeln!(
                places,
                "{}: {:?}: {}",
                text.place,
                text.kind,
                hits.join(" | ")
            )
            .unwrap();
        }
    }
    places
}

/// "Gives the length" should be "Returns the length".
fn begins_with_gives(prose: &str) -> bool {
    prose.trim_start().starts_with("Gives ")
}

#[test]
fn words_and_phrases_are_found_in_any_case_and_outside_code() {
    let found = |text: &str| phrases(&words_of(text));
    assert_eq!(
        found("Nobody reads it; be\u{a0}it slow"),
        ["nobody", "be it"]
    );
    assert_eq!(found("it is no number"), ["is no number"]);
    assert!(found("there is no number, and it is no longer one").is_empty());
    assert!(found("`nobody` is a user").is_empty());
    assert!(found("he is `x` no").is_empty());
    assert_eq!(found("deaf but forever dear"), ["dear"]);
}

#[test]
fn sentences_without_a_subject_differ_from_questions() {
    let text = "Who waits is first. What is it? What comes goes! The one who waits. Whose?";
    assert_eq!(headless(text), ["Who waits is first.", "What comes goes!"]);
    assert!(headless("Whether 1.5 is more. Whatever").is_empty());
}

/// Mutations: a lifetime taken for a character hides the string behind it; a raw string that ends
/// at its first quote shows code as a comment.
#[test]
fn comments_and_literals_are_found_where_they_stand() {
    let source = "//! Head\n//! goes on.\n//!\n//! * item\nfn a<'a>(x: &'a str) -> &'a str {\n    \
                  let s = r#\"raw {said:?} \"// no\"#; // Tail.\n    // Next.\n    f(\"a \\\" // b\", '\"')\n}\n\
                  #[cfg(test)]\nmod tests {\n    // In tests.\n    fn f() { g(\"x y\") }\n}\n";
    let found = read_source(source, false);
    let found: Vec<(usize, Kind, &str)> = found
        .iter()
        .map(|(line, kind, text)| (*line, *kind, text.as_str()))
        .collect();
    let expected = [
        (1, Kind::Prose, "Head goes on."),
        (4, Kind::Prose, "item"),
        (6, Kind::Message, "raw {} \"// no"),
        (6, Kind::Prose, "Tail."),
        (7, Kind::Prose, "Next."),
        (8, Kind::Message, "a \\\" // b"),
        (12, Kind::Prose, "In tests."),
    ];
    assert_eq!(found, expected);
}

#[test]
fn pages_are_read_without_their_code() {
    let page = "# What it is\n\nOne\ntwo [three](four.md).\n\n    code here\n\n```\nmore\n```\n\
                | Who | `b` |\n- five\n- six\n";
    let found = read_page(page);
    let found: Vec<&str> = found.iter().map(|(_, _, text)| text.as_str()).collect();
    let expected = ["What it is", "One two three.", "Who", "`b`", "five", "six"];
    assert_eq!(found, expected);
}
