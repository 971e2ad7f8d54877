//! The sources as the rules need them: without comments and literals, and without tests.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// A file of `src`.
#[derive(Clone)]
pub struct Source {
    /// Relative to the repository: `src/core/wheel.rs`.
    pub name: String,
    /// The first folder under `src`, or the file's own name: `core`.
    pub module: String,
    pub text: String,
    /// The text with blanks in place of comments and literals, so that lines and columns stay.
    pub code: String,
    /// The code with blanks in place of tests as well. Empty lines only, if the file is a test's.
    pub product: String,
}

/// Returns every file of `src`, in the order of its names. They are read once for all rules.
pub fn sources() -> Vec<Source> {
    static READ: OnceLock<Vec<Source>> = OnceLock::new();
    READ.get_or_init(read_sources).clone()
}

fn read_sources() -> Vec<Source> {
    let mut paths = Vec::new();
    collect(&root().join("src"), &mut paths);
    assert!(paths.len() > 20, "no sources under src");
    let mut sources: Vec<Source> = paths.iter().map(|path| Source::read(path)).collect();
    let tests: BTreeSet<String> = sources.iter().flat_map(test_modules).collect();
    for source in &mut sources {
        let is_test = tests.iter().any(|test| {
            let below = source.name.strip_prefix(test.as_str());
            below.is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
        });
        if is_test {
            source.product = blank_all(&source.product);
        }
    }
    sources
}

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Collects all Rust files under `folder`, in the order of their names.
pub fn collect(folder: &Path, found: &mut Vec<PathBuf>) {
    let entries = std::fs::read_dir(folder).expect("the folder can be read");
    for entry in entries {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            collect(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
}

impl Source {
    fn read(path: &Path) -> Source {
        let text = std::fs::read_to_string(path).expect("sources are UTF-8");
        let name = path.strip_prefix(root()).expect("it lies below");
        let name = name.display().to_string();
        let module = name.split('/').nth(1).expect("src/ is first");
        let module = module.trim_end_matches(".rs").to_owned();
        let code = without_comments_and_literals(&text);
        let product = without_tests(&code);
        Source {
            name,
            module,
            text,
            code,
            product,
        }
    }

    /// Returns the folder of the files that this one declares as its modules: `src/reactor/http1`
    /// for both `src/reactor/http1.rs` and `src/reactor/http1/mod.rs`.
    pub fn folder(&self) -> &str {
        let stem = self.name.trim_end_matches(".rs");
        for root in ["/mod", "/lib", "/main"] {
            if let Some(folder) = stem.strip_suffix(root) {
                return folder;
            }
        }
        stem
    }
}

/// Returns the folder or stem of each module that this file declares for tests only.
fn test_modules(source: &Source) -> Vec<String> {
    let mut found = Vec::new();
    for (start, end) in tests_of(&source.code) {
        let item = &source.code[start..end];
        let item = &item[item.find(']').map_or(0, |at| at + 1)..];
        let words: Vec<&str> = item.split_whitespace().collect();
        if let Some(at) = words.iter().position(|word| *word == "mod")
            && let Some(name) = words.get(at + 1).and_then(|word| word.strip_suffix(';'))
        {
            found.push(format!("{}/{name}", source.folder()));
        }
    }
    found
}

fn blank_all(text: &str) -> String {
    let keep = |character| if character == '\n' { '\n' } else { ' ' };
    text.chars().map(keep).collect()
}

/// Puts blanks in place of each item that is compiled for tests only.
fn without_tests(code: &str) -> String {
    let mut product = code.to_owned();
    for (start, end) in tests_of(code) {
        product.replace_range(start..end, &blank_all(&code[start..end]));
    }
    product
}

/// Returns the places of the items behind a `cfg` with `test` in it.
fn tests_of(code: &str) -> Vec<(usize, usize)> {
    let mut found: Vec<(usize, usize)> = Vec::new();
    for (start, _) in code.match_indices("#[cfg(") {
        let condition = &code[start..matching(code, start + 1)];
        let words = condition.split(|c: char| !c.is_alphanumeric() && c != '_');
        let is_test = words.clone().any(|word| word == "test");
        if is_test
            && !condition.contains("not(")
            && found.last().is_none_or(|(_, end)| start >= *end)
        {
            found.push((start, end_of_item(code, matching(code, start + 1) + 1)));
        }
    }
    found
}

/// Returns the end of the item, field or statement that begins at `from`, past its attributes.
fn end_of_item(code: &str, from: usize) -> usize {
    const KEYWORDS: &[&str] = &[
        "pub",
        "fn",
        "impl",
        "mod",
        "use",
        "struct",
        "enum",
        "const",
        "static",
        "unsafe",
        "type",
        "trait",
        "async",
        "extern",
        "let",
        "macro_rules",
    ];
    let mut at = from;
    loop {
        at += code[at..].len() - code[at..].trim_start().len();
        if !code[at..].starts_with("#[") {
            break;
        }
        at = matching(code, at + 1) + 1;
    }
    let first = code[at..].split(|c: char| !c.is_alphanumeric() && c != '_');
    let first = first.clone().next().unwrap_or_default();
    let is_item = KEYWORDS.contains(&first);
    let is_use = first == "use" || code[at..].starts_with("pub use");
    while let Some(byte) = code.as_bytes().get(at) {
        match byte {
            b';' => return at + 1,
            b'{' if !is_use => return matching(code, at) + 1,
            b'(' | b'[' | b'{' => at = matching(code, at),
            b',' if !is_item => return at + 1,
            b'}' => return at,
            _ => {}
        }
        at += 1;
    }
    at
}

/// Returns the position of the bracket that closes the one at `open`.
pub fn matching(code: &str, open: usize) -> usize {
    let mut depth = 0_usize;
    for (at, byte) in code.bytes().enumerate().skip(open) {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at;
        }
    }
    code.len() - 1
}

/// Puts blanks in place of comments, strings and character literals, byte for byte.
pub fn without_comments_and_literals(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = match bytes[at] {
            b'/' if bytes[at..].starts_with(b"//") => end_of_line(bytes, at),
            b'/' if bytes[at..].starts_with(b"/*") => end_of_block(bytes, at),
            b'"' => end_of_string(bytes, at),
            b'r' if !is_word(bytes, at) => end_of_raw_string(bytes, at),
            b'\'' => end_of_character(bytes, at),
            _ => at,
        };
        for byte in &mut out[at..end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at = end.max(at + 1);
    }
    String::from_utf8(out).expect("literals were replaced whole")
}

/// Returns whether a word continues at `at`: the `r` of `for"` begins no raw string, that of `br"`
/// does.
fn is_word(bytes: &[u8], at: usize) -> bool {
    let before = |back: usize| at.checked_sub(back).map(|at| bytes[at]);
    let is_word = |byte: Option<u8>| byte.is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_');
    let is_prefix = matches!(before(1), Some(b'b' | b'c')) && !is_word(before(2));
    is_word(before(1)) && !is_prefix
}

fn end_of_line(bytes: &[u8], from: usize) -> usize {
    let length = bytes[from..].iter().position(|byte| *byte == b'\n');
    length.map_or(bytes.len(), |length| from + length)
}

fn end_of_block(bytes: &[u8], from: usize) -> usize {
    let mut depth = 0;
    let mut at = from;
    while at < bytes.len() {
        if bytes[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if bytes[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                break;
            }
        } else {
            at += 1;
        }
    }
    at
}

fn end_of_string(bytes: &[u8], from: usize) -> usize {
    let mut at = from + 1;
    while at < bytes.len() && bytes[at] != b'"' {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    at + 1
}

fn end_of_raw_string(bytes: &[u8], from: usize) -> usize {
    let hashes = bytes[from + 1..]
        .iter()
        .take_while(|byte| **byte == b'#')
        .count();
    if bytes.get(from + 1 + hashes) != Some(&b'"') {
        return from;
    }
    let mut end = vec![b'"'];
    end.resize(1 + hashes, b'#');
    let start = from + 2 + hashes;
    let length = bytes[start..]
        .windows(end.len())
        .position(|window| window == end);
    length.map_or(bytes.len(), |length| start + length + end.len())
}

/// Recognises `'x'` and `'\n'`, but not the `'a` of a lifetime.
fn end_of_character(bytes: &[u8], from: usize) -> usize {
    match bytes.get(from + 1) {
        Some(b'\\') => {
            let length = bytes[from + 3..].iter().position(|byte| *byte == b'\'');
            length.map_or(bytes.len(), |length| from + 4 + length)
        }
        Some(_) => {
            let closes = (2..=5).find(|length| bytes.get(from + length) == Some(&b'\''));
            let text = closes.map(|length| &bytes[from + 1..from + length]);
            let is_one = text.and_then(|text| std::str::from_utf8(text).ok());
            let is_one = is_one.is_some_and(|text| text.chars().count() == 1);
            if is_one {
                from + closes.unwrap_or(0) + 1
            } else {
                from
            }
        }
        None => from,
    }
}

#[test]
fn comments_and_literals_become_blanks() {
    let text = "a /* b /* c */ d */ e // f\nlet g = \"h\\\"{\"; 'i' 'a: '\\'' br#\"}\"#; b'{'";
    let code = without_comments_and_literals(text);
    assert_eq!(code.len(), text.len());
    let words: Vec<&str> = code.split_whitespace().collect();
    assert_eq!(
        words,
        ["a", "e", "let", "g", "=", ";", "'a:", "b", ";", "b"]
    );
}

#[test]
fn items_for_tests_become_blanks() {
    let code = "struct A {\n#[cfg(test)]\nb: u8,\nc: u8,\n}\n\
                #[cfg(all(test, unix))]\n#[inline]\nfn d<E, F>() { { } }\n\
                #[cfg(test)] mod tests;\n#[cfg(not(test))]\nuse g;";
    let product = without_tests(code);
    let words: Vec<&str> = product.split_whitespace().collect();
    assert_eq!(
        words,
        [
            "struct",
            "A",
            "{",
            "c:",
            "u8,",
            "}",
            "#[cfg(not(test))]",
            "use",
            "g;"
        ]
    );
}
